"""The documentation is true: its code runs and prints what it shows, its commands are understood, its links lead on."""

import contextlib
import doctest
import importlib.util
import io
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scoregen import config as config_lib
from scoregen import run
from scoregen.averages import AVERAGES
from scoregen.conformance.matrix import OBJECTIVES
from scoregen.data import SCALINGS, SOURCES
from scoregen.denoiser import CONDITIONS, TARGETS
from scoregen.design import command as design
from scoregen.experiment import assemble
from scoregen.losses import LOSSES, WEIGHTINGS
from scoregen.nets import NETS
from scoregen.process import PROCESSES
from scoregen.samplers import CORRECTORS, GRIDS, PREDICTORS
from scoregen.sweep import command as sweep
from scoregen.times import TIMES
from scoregen.weights import command as weights

ROOT = Path(__file__).parent.parent


def tool(name: str) -> ModuleType:
    """A script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = tool("execute")

TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("*.md")),
]
PAGES = [path for path in [*TEXTS, *sorted((ROOT / "docs").glob("*.ipynb"))] if execute.pieces(path)]
SLOW = {"docs/recipes/diffusers.md"}
MAINS = {
    "scoregen.run": run.main,
    "scoregen.weights": weights.main,
    "scoregen.design": design.main,
    "scoregen.sweep": sweep.main,
}
# The interfaces, in the words of Python but with bodies left out.
NO_PROGRAM = {"docs/architecture.md"}
TABLES = (
    *(PROCESSES, TARGETS, CONDITIONS, TIMES, LOSSES, WEIGHTINGS, PREDICTORS, CORRECTORS, GRIDS, NETS, SOURCES),
    *(SCALINGS, AVERAGES, OBJECTIVES),
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(autouse=True)
def as_they_were(monkeypatch):
    """What a page puts into the tables of the package goes with it, and no picture opens a window."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    before = [dict(table) for table in TABLES]
    yield
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=name_of(path), marks=[pytest.mark.slow] * (name_of(path) in SLOW))
        for path in PAGES
        if name_of(path) not in NO_PROGRAM
    ],
)
def test_code_prints_what_is_shown(path, tmp_path):
    rough = 0.5 if path.suffix == ".ipynb" else 0  # there it is what training came to
    for piece, found in execute.run(path, tmp_path):
        assert not piece.shown or execute.same(found.shown, piece.shown, rough), (
            f"{piece.where} prints\n{found.shown}and not\n{piece.shown}"
        )
        assert len(found.pictures) == len(piece.pictures), piece.where


@pytest.mark.parametrize("name", ["execute", "pages"])
def test_examples_of_the_tools(name):
    if name == "pages":
        pytest.importorskip("mkdocs", reason="the site is built with what `make docs` installs")
    assert doctest.testmod(tool(name)).failed == 0


class Parsed(BaseException):
    """A command line was understood, and what follows is not done."""


def commands(path: Path) -> list[str]:
    """The command lines of the package in a file; one with brackets or dots says how others are made."""
    text = re.sub(r" *\\\n *", " ", path.read_text())  # what goes on in the next line
    lines = re.findall(r"^ {4,}.*?(\bpython -m scoregen\.\w+ [^\">#&\n]+)", text, re.MULTILINE)
    lines += re.findall(r"`(python -m scoregen\.\w+ [^`\n]+)`", text)
    return [line for line in lines if "[" not in line and "=..." not in line]


COMMANDS = [(path, line) for path in TEXTS for line in commands(path)]


def as_if_there(module: str, argv: list[str], folder: Path) -> list[str]:
    """The arguments with what they take as given: a run that was made, a sweep's file; of a sweep nothing is run."""
    flags = dict(arg.split("=", 1) for arg in argv if "=" in arg)
    if module == "scoregen.run" and "--workdir" in flags and "--config" not in flags:
        made = folder / "made"
        made.mkdir()
        name = re.split(r"[/,]", flags["--workdir"].rstrip("/"))[-1]  # else it has weights from elsewhere
        config = config_lib.load(name if name in config_lib.presets() else "ddpm_cifar")
        (made / "config.json").write_text(config_lib.to_json(config))
        return [f"--workdir={made}" if arg.startswith("--workdir=") else arg for arg in argv]
    if module != "scoregen.sweep":
        return argv
    path = ROOT / flags["--sweep"]
    if not path.is_file():
        path = folder / "sweep.py"
        path.write_text('def cells(): return [{"config": "ddpm_toy"}]')
    kept = [arg for arg in argv if not arg.startswith(("--sweep=", "--only=", "--out="))]
    return [f"--sweep={path}", f"--out={folder / 'out'}", "--dry-run", *kept]


def test_a_shell_reads_the_commands():
    """Brackets, for one, want quotes."""
    for path, line in COMMANDS:
        done = subprocess.run(["bash", "-n"], input=line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{path}: {line}: {done.stderr}"


@pytest.mark.parametrize(
    ("path", "line"), COMMANDS, ids=[f"{name_of(path)}-{i}" for i, (path, _) in enumerate(COMMANDS)]
)
def test_commands_are_understood(path, line, tmp_path, monkeypatch):
    """Every flag, preset, option and mode; of a recipe's own preset also that its parts go together."""
    parse = config_lib.parse

    def parsed(argv, flags=None, needed=True):
        config, _ = parse(argv, flags, needed)
        raise Parsed(config, flags["mode"].value if flags is not None and "mode" in flags else None)

    monkeypatch.setattr(config_lib, "parse", parsed)
    monkeypatch.chdir(tmp_path)
    for piece in execute.pieces(path):
        if found := re.match(r"# (\w+\.py)\n", piece.code):
            Path(found[1]).write_text(piece.code)
    _, _, module, *argv = shlex.split(line, comments=True)
    if module not in MAINS or "--help" in argv:
        assert importlib.util.find_spec(module) is not None
        return
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = MAINS[module](as_if_there(module, argv, tmp_path))
        except Parsed as end:
            config, mode = end.args
        else:
            assert module == "scoregen.sweep" and code == 0, f"{line}: {code}, {said.getvalue()}"
            return
    assert mode is None or mode in run.MODES
    if "--config=mine.py" in argv and "dir=" not in line:
        assemble(config)


def test_make_knows_its_targets():
    """`make X CONFIG=Y`: there is such a target, and such a preset."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in TEXTS:
        for target, rest in re.findall(r"^ {4}make ([a-z-]+)(.*)$", path.read_text(), re.MULTILINE):
            assert target in targets, (path, target)
            assert all(name in config_lib.presets() for name in re.findall(r"CONFIG=(\w+)", rest)), (path, rest)


def test_links_lead_to_files():
    """Where a file is read as it is; on the site, mkdocs looks for itself."""
    for path in TEXTS:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", re.sub(r"`[^`\n]*`", "", path.read_text())):
            assert (path.parent / target).exists(), f"{name_of(path)}: {target}"


def test_the_package_names_its_commands(capsys):
    """`python -m scoregen` lists every module that is a command, and no other."""
    runpy.run_module("scoregen", run_name="__main__")
    named = set(re.findall(r"python -m scoregen\.(\w+) ", capsys.readouterr().out))
    packages = {path.parent.name for path in (ROOT / "scoregen").glob("*/__main__.py")}
    assert named == packages | {"run"}
