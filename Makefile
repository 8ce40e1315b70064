# Needs Python >= 3.11, make and git; everything else comes from the lock files into $(VENV).
# A second environment, with another Python: make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON  ?= python3
VENV    ?= .venv
CONFIG  ?= ddpm_digits
WORKDIR ?= runs/$(CONFIG)
ARGS    ?=
WORKERS ?= 2

py   := $(VENV)/bin/python
pip  := $(py) -m pip --disable-pip-version-check --no-input
# All tests of a file run in one worker, so that each program is compiled by one worker and dropped after the file.
test := $(py) -m pytest -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help run test changed test-all mutate lint docs package format lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

run: $(VENV)/.installed  ## train, sample and report: CONFIG=ddpm_digits WORKDIR=runs/... ARGS='--config.a.b=c'
	$(py) -m scoregen.run --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

test: $(VENV)/.installed  ## the quick tests and the docstrings' examples (WORKERS=2 ARGS='-k name')
	$(test) -m "not slow" $(ARGS)

changed: $(VENV)/.installed  ## the quick tests of what differs from the last commit (SINCE=main: from a branch)
	@files=$$($(py) tests/changed.py $(SINCE)) || exit; \
	if [ -n "$$files" ]; then $(test) -m "not slow" $$files $(ARGS); else echo "nothing has changed"; fi

test-all: $(VENV)/.installed $(VENV)/.launchers  ## every test, the slow ones too
	$(test) $(ARGS)

mutate: $(VENV)/.installed  ## break formulas, and see tests fail (ARGS='--only bound', '--list', '--all')
	$(py) tests/mutations/mutate.py --workers $(WORKERS) $(ARGS)

lint: $(VENV)/.installed $(VENV)/.dev  ## ruff (rules, layout) and pyright (types)
	$(py) -m ruff check
	$(py) -m ruff format --check
	$(py) -m pyright --pythonpath $(py)

docs: $(VENV)/.dev  ## the documentation as a site, into site/
	NO_MKDOCS_2_WARNING=1 $(py) -m mkdocs build --strict

package: $(VENV)/.installed $(VENV)/.dev  ## archive and wheel into dist/: built, checked, installed into a new environment, run
	rm -rf dist build
	$(py) -m build --no-isolation
	$(py) -m uv tool run twine check --strict dist/*
	$(PYTHON) -m venv build/venv
	build/venv/bin/pip install --quiet --require-hashes -r requirements.lock
	build/venv/bin/pip install --quiet --no-deps dist/*.whl
	cd build && venv/bin/scoregen train ddpm_toy --steps=200 --workdir=run
	cd build && venv/bin/python -c 'import scoregen as sg; print(sg.__version__, sg.load("run").sample(3).shape)'
	rm -rf build

format: $(VENV)/.dev  ## apply ruff's automatic fixes
	$(py) -m ruff check --fix-only
	$(py) -m ruff format

clean:  ## remove the environment, caches and build products; runs/ stays
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# --- the environment -------------------------------------------------------------------------------------------
# A stamp file is touched last, so an interrupted install leaves no stamp and starts again in an empty folder.

$(VENV)/.locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "scoregen needs Python 3.11 or newer, and '$(PYTHON)' is not: try make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(pip) install --quiet --require-hashes -r requirements.lock
	@touch $@

# No dependencies and no build isolation: only locked packages are used, setuptools among them.
# `pip check` then fails if setup.cfg needs a package that the lock file does not have.
$(VENV)/.installed: $(VENV)/.locked setup.cfg pyproject.toml
	$(pip) install --quiet --no-deps --no-build-isolation --editable .
	@$(pip) check || { echo "setup.cfg and requirements.lock disagree: make lock" >&2; exit 1; }
	@touch $@

# In addition: the development tools, and the packages for the tests of all launchers of sweeps.
$(VENV)/.dev $(VENV)/.launchers: $(VENV)/.%: $(VENV)/.locked requirements-%.lock
	$(pip) install --quiet --require-hashes -r requirements-$*.lock
	@touch $@

# --- the locks -------------------------------------------------------------------------------------------------
# Each lock file is for every platform and every Python from 3.11 on. Locked versions are kept where they still fit;
# `make lock UPGRADE=--upgrade` takes the newest. UV=PATH uses another uv, in case the lock files cannot be installed.

UV      ?=
UPGRADE ?=
compile  = $(or $(UV),$(py) -m uv) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
           --fork-strategy requires-python --no-emit-index-url --no-emit-find-links \
           --custom-compile-command "make lock" $(UPGRADE)
# The build backend, setuptools, is locked too; its requirement is read from pyproject.toml.
backend  = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
extras   = import sys, configparser as c; p = c.ConfigParser(); p.read("setup.cfg"); \
           print(*(p["options.extras_require"][name] for name in sys.argv[1:]))

lock: $(if $(UV),,$(VENV)/.dev)  ## make the lock files anew from setup.cfg
	$(PYTHON) -c '$(backend)' | $(compile) setup.cfg - --extra test -o requirements.lock
	$(PYTHON) -c '$(extras)' dev | $(compile) - --constraint requirements.lock -o requirements-dev.lock
	$(PYTHON) -c '$(extras)' ray slurm hf parquet features | $(compile) - --constraint requirements.lock \
	  --constraint requirements-dev.lock -o requirements-launchers.lock
