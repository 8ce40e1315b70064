"""A module imports only from floors below its own. docs/architecture.md lists the floors."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest
from imports import imported

ROOT = Path(__file__).parents[1]
CORE = {"random", "process", "denoiser", "times", "guidance", "losses", "samplers", "likelihood", "testing"}
# What the core may use besides: both are plain Python.
PLAIN = {"errors", "cond"}


@functools.cache
def floors() -> dict[str, int]:
    """The floor of every package, by the table."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d) \| ([^|]*) \|", text, re.MULTILINE)
    found = [(name, int(floor)) for floor, names in rows for name in re.findall(r"`(\w+)`", names)]
    assert len(dict(found)) == len(found) > 15
    return dict(found)


@functools.cache
def sources() -> dict[str, list[str]]:
    """The imports of every file, by its dotted name."""
    package = ROOT / "scoregen"
    found = {}
    for path in sorted(package.rglob("*.py")):
        dotted = ".".join(path.relative_to(package).with_suffix("").parts)
        if dotted != "__init__":
            found[dotted.removesuffix(".__init__")] = list(imported(ast.parse(path.read_text())))
    return found


@pytest.mark.parametrize("module", [name for name in sources() if not name.startswith("configs")])
def test_imports_go_down(module):
    known, names = floors(), sources()[module]
    own = module.split(".")[0]
    assert own in known, f"{own} has no floor"
    for name in names:
        package, _, inner = name.partition(".")
        other = inner.split(".")[0]
        if package == "scoregen" and other != own:
            assert known[other] < known[own], f"{module} (floor {known[own]}) imports {other} (floor {known[other]})"


def test_the_core_stands_alone():
    """It imports JAX, NumPy and itself; only the adaptive solver imports another library."""
    for module, names in sources().items():
        if module.split(".")[0] in CORE:
            outside = {name.split(".")[0] for name in names} - {"jax", "numpy", "scoregen"}
            assert outside - sys.stdlib_module_names == ({"diffrax"} if module == "samplers.ode" else set()), module
            used = {name.split(".")[1] for name in names if name.startswith("scoregen.")}
            assert used <= CORE | PLAIN, module


def test_only_the_app_knows_configurations_and_flags():
    for module, names in sources().items():
        if module.split(".")[0] in ("app", "contrib", "run", "__main__", "configs"):
            continue
        assert not {name.split(".")[0] for name in names} & {"ml_collections", "absl"}, module
        path = ROOT / "scoregen" / Path(*module.split("."))
        text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        assert "--config" not in text, f"{module} names a flag"
