"""The documentation is true: code runs and prints what is shown, commands are understood, and links lead to files."""

import contextlib
import doctest
import functools
import importlib
import importlib.util
import io
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scoregen import run
from scoregen.app import actions, conformance, data, fid
from scoregen.app import config as config_lib
from scoregen.app.build import build
from scoregen.app.main import COMMANDS, OTHERS, main
from scoregen.contrib.design import command as design
from scoregen.contrib.weights import command as weights
from scoregen.data import SCALINGS, SOURCES
from scoregen.denoiser import CONDITIONS, TARGETS
from scoregen.errors import UsageError
from scoregen.guidance import CONTROLS, X0S
from scoregen.losses import LOSSES, WEIGHTINGS
from scoregen.nets import NETS
from scoregen.process import PROCESSES
from scoregen.samplers import CORRECTORS, GRIDS, STEPS
from scoregen.testing.conformance import columns
from scoregen.times import TIMES
from scoregen.train.ema import AVERAGES
from scoregen.train.loggers import LOGGERS
from scoregen.train.optimizers import OPTIMIZERS, SCHEDULES

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
QUICK = {"README.md"}
# Pages whose Python shows interfaces without bodies, which cannot run.
NO_PROGRAM = {"docs/architecture.md"}
TABLES: tuple[dict[str, Any], ...] = (
    *(PROCESSES, TARGETS, CONDITIONS, TIMES, LOSSES, WEIGHTINGS, STEPS, CORRECTORS, GRIDS, NETS, SOURCES),
    *(SCALINGS, AVERAGES, OPTIMIZERS, SCHEDULES, LOGGERS, CONTROLS, X0S),
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(autouse=True)
def no_windows(monkeypatch):
    """The pictures of a page open no window."""
    monkeypatch.setenv("MPLBACKEND", "agg")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=name_of(path), marks=[pytest.mark.slow] * (name_of(path) not in QUICK))
        for path in PAGES
        if name_of(path) not in NO_PROGRAM
    ],
)
def test_code_prints_what_is_shown(path, tmp_path):
    rough = 0.5 if path.suffix == ".ipynb" else 0  # there the numbers are results of training
    for piece, found in execute.run(path, tmp_path):
        assert not piece.shown or execute.same(found.shown, piece.shown, rough), (
            f"{piece.where} prints\n{found.shown}and not\n{piece.shown}"
        )
        assert len(found.pictures) == len(piece.pictures), piece.where


def test_the_readme_trains_in_ten_lines():
    """What the README promises: its first block is ten lines of code, and the last of them prints True."""
    first, *_ = execute.pieces(ROOT / "README.md")
    assert len([line for line in first.code.splitlines() if line.strip()]) == 10
    assert first.shown == "True\n"


@pytest.mark.parametrize("name", ["execute", "pages"])
def test_examples_of_the_tools(name):
    if name == "pages":
        pytest.importorskip("mkdocs", reason="the site is built with what `make docs` installs")
    assert doctest.testmod(tool(name)).failed == 0


class Parsed(BaseException):
    """Raised in place of the action of a command line, which was understood."""


# `scoregen SUBCOMMAND ...`, also by a path, within quotes or after other commands; and the modules that are commands.
COMMAND = r"""(?:python -m scoregen(?:\.[\w.]+)?|(?<![\w.-])scoregen)(?= [a-z-])[^\">`&|;\n]*"""
# The values of the placeholders in a usage line such as `scoregen train RUN --steps=N`.
PLACEHOLDERS = {"RUN": "runs/ddpm_toy", "PRESET": "ddpm_toy", "N": "100", "NAME": "ddpm_toy", "MODE": "train"}
RUN_COMMANDS = set(COMMANDS)
# The preset mine.py, for pages that name it and do not show it.
MINE = """from scoregen.app.config import load


def get_config():
    return load("ddpm_toy")
"""


def commands(path: Path) -> list[str]:
    """The package's command lines in a file. Lines with brackets are left out: they are patterns, not commands."""
    text = re.sub(r" *\\\n *", " ", path.read_text())  # joins continued lines
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks = (re.sub(r"\s#\s.*", "", line) for line in re.findall(r"^ {4,}(.*)$", text, re.MULTILINE))
    lines = [found for line in blocks for found in re.findall(COMMAND, line)]
    # In prose, a command may contain a line break.
    lines += [" ".join(found.split()) for found in re.findall(f"`({COMMAND})`".replace(r"\n", ""), text)]
    lines = [line.rstrip() for line in lines if "[" not in line and "=..." not in line]
    return [re.sub(r"\b([A-Z]+)\b", lambda found: PLACEHOLDERS.get(found[1], found[1]), line) for line in lines]


LINES = [(path, line) for path in TEXTS for line in commands(path)]


def test_commands_are_found():
    """In blocks and in prose, by either name, over several lines, and within the quotes of another command."""
    manual = [name_of(path) for path in (ROOT / "docs" / "manual").glob("*.md")]
    found = {name: commands(ROOT / name) for name in ("README.md", "docs/tpu.md", "docs/index.md", *manual)}
    assert "scoregen train ddpm_toy" in found["README.md"]
    assert "python -m scoregen.run --config=ncsn_cifar --data=DIR" in found["README.md"]
    assert any(line.startswith("scoregen sweep") and "--out=/runs/" in line for line in found["docs/tpu.md"])
    assert any("--coordinator=auto" in line and "--workdir=/runs/" in line for line in found["docs/tpu.md"])
    assert any("--config.sampler.grid.name=logsnr" in line for line in found["docs/index.md"])
    assert "scoregen train runs/ddpm_toy --steps=100" in found["docs/manual/index.md"]
    assert sum(map(len, found.values())) > 50


def made(folder: Path, name: str) -> str:
    """The folder of a run, with only what a command line reads: a configuration, from the preset in the folder's name.

    The rest of the name, such as labels=True, gives the changed options. A run with another name has the preset that
    the page shows, or imported weights.
    """
    run = folder / "made" / name.strip("/")
    preset, *changed = run.name.split(",")
    own = preset if preset in config_lib.presets() else f"{preset}.py"
    config = config_lib.load(own if own == preset or Path(own).is_file() else "ddpm_cifar")
    for key, text in (option.split("=") for option in changed):
        key = f"{key}.name" if isinstance(config_lib.get(config, key), type(config)) else key
        config_lib.override(config, key, text, f"--config.{key}")
    (run / "checkpoints" / "1").mkdir(parents=True)
    (run / "config.json").write_text(config_lib.to_json(config))
    return str(run)


def as_if_there(command: str, argv: list[str], folder: Path) -> list[str]:
    """The arguments, with the runs and sweep files that they name made up; a sweep becomes a dry run."""
    if command in RUN_COMMANDS:
        flags = dict(arg.split("=", 1) for arg in argv if "=" in arg)
        named = [arg for arg in argv if not arg.startswith("-") and "/" in arg]  # a preset has no folder
        if not named and "--workdir" in flags and (command != "train" or "--config" not in flags):
            named = [flags["--workdir"]]
        runs = {name: made(folder, name) for name in named}
        return [runs.get(arg) or (f"--workdir={runs[arg[10:]]}" if arg[10:] in runs else arg) for arg in argv]
    if command == "sweep":
        path = ROOT / argv[0]
        if not path.is_file():
            path = folder / "sweep.py"
            path.write_text('def cells(): return [{"config": "ddpm_toy"}]')
        kept = [arg for arg in argv[1:] if not arg.startswith(("--only=", "--out="))]
        return [str(path), f"--out={folder / 'out'}", "--dry-run", *dict.fromkeys(kept).keys() - {"--dry-run"}]
    return argv


def understood(line: str, folder: Path, monkeypatch) -> Parsed | None:
    """The mode and configuration of a command line, whose action is left out; None for a command that only prints.

    Raises:
        UsageError: with the lines that it is refused with.
    """

    def stop(mode: str, config=None):
        raise Parsed(mode, config)

    for name in ("_import", "_export", "_inspect"):
        monkeypatch.setattr(weights, name, lambda *args, name=name: stop(name))
    monkeypatch.setattr(actions, "perform", lambda mode, config, *args, **options: stop(mode, config))
    parse, read = design.parse, conformance.read

    def parsed(mode, *given, **options):
        stop(mode, parse(*given, **options).config)

    def checked(name):
        def read_and_stop(argv, flags, takes=0):
            read(argv, flags, takes).check()
            stop(name)

        return read_and_stop

    monkeypatch.setattr(design, "parse", functools.partial(parsed, "design"))
    monkeypatch.setattr(data, "parse", functools.partial(parsed, "data"))
    monkeypatch.setattr(conformance, "read", checked("conformance"))
    monkeypatch.setattr(fid, "read", checked("fid"))

    program, *argv = shlex.split(line.removeprefix("python -m "))
    if program == "scoregen" and argv[1:] == []:  # the name of a command, in prose
        if argv[0] not in {*COMMANDS, *OTHERS, "--help"}:
            raise UsageError(f"no command {argv[0]!r}")
        return Parsed(argv[0], None)
    entry = main
    if program == "scoregen.run":
        mode = next((arg[7:] for arg in argv if arg.startswith("--mode=")), "train")
        entry, argv = run.main, as_if_there(mode, argv, folder)
    else:
        assert program == "scoregen", f"{program} is no command"
        argv = argv[:1] + as_if_there(argv[0], argv[1:], folder)
    said, why = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(why), contextlib.redirect_stdout(said):
        try:
            code = entry(argv)
        except Parsed as end:
            return end
    if code or why.getvalue():
        raise UsageError(why.getvalue() or said.getvalue())
    return None


def test_a_shell_reads_the_commands():
    """Brackets, for example, need quotes."""
    for path, line in LINES:
        done = subprocess.run(["bash", "-n"], input=line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{path}: {line}: {done.stderr}"


@pytest.mark.parametrize(("path", "line"), LINES, ids=[f"{name_of(path)}-{i}" for i, (path, _) in enumerate(LINES)])
def test_commands_are_understood(path, line, tmp_path, monkeypatch):
    """Every command, flag, preset and option exists and has an effect. The parts of a page's own preset also fit."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    for piece in execute.pieces(path):
        if found := re.match(r"# (\w+\.py)\n", piece.code):
            Path(found[1]).write_text(piece.code)
    end = understood(line, tmp_path, monkeypatch)
    assert end is not None or "sweep" in line or "--help" in line, line
    if end is not None and "mine.py" in line and "dir=" not in line:
        mode, config = end.args
        build(config, mode)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("scoregen train ddpm_tiy", "did you mean 'ddpm_toy'?"),
        ("scoregen tran ddpm_toy", "did you mean 'train'?"),
        ("scoregen sample runs/ddpm_toy --config.sampler.m=5", "no config.sampler.m"),
        ("scoregen sample runs/ddpm_toy --config.train.steps=5", "has no effect"),
        ("scoregen sample runs/ddpm_digits --config.sampler.label=3", "has no effect"),
        ("scoregen eval runs/ncsn_toy --config.net.mlp.width=5", "changes the trained network"),
        ("scoregen weights inport FOLDER", "did you mean 'import'?"),
        ("scoregen design --config=ncsn_digits --overlp=0.5", "did you mean '--overlap'?"),
        ("scoregen conformance --samll", "did you mean '--small'?"),
        ("scoregen fid A B --feature=inception", "did you mean '--features'?"),
        ("scoregen sweep FILE --dry-rum", "did you mean '--dry-run'?"),
        ("python -m scoregen.run --config=ddpm_toy --mode=tain", "did you mean 'train'?"),
    ],
)
def test_a_wrong_command_is_found(line, reason, tmp_path, monkeypatch):
    """The check of commands finds mistakes."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(reason)):
        understood(line, tmp_path, monkeypatch)


def test_the_manual_names_every_option_of_its_table_and_every_part():
    """The options in the tables of the manual exist, and so do the parts; no part of the package is missing."""
    page = (ROOT / "docs" / "manual" / "options.md").read_text()
    text = "\n".join(re.findall(r"^\| `--config.*", page, re.MULTILINE))
    config, named = config_lib.load("default"), set(re.findall(r"`([^`]+)`", text))
    for cell in re.findall(r"^\| (`--config[^|]*) \|", text, re.MULTILINE):
        first, *others = (name.removeprefix("--config.") for name in re.findall("`([^`]+)`", cell))
        section = first.rpartition(".")[0]
        for key in (first, *(name if name[0] != "." else section + name for name in others)):
            config_lib.get(config, key)
    missing = [name for table in TABLES for name in table if name not in named]
    assert not missing, f"docs/manual/options.md does not name {missing} in its tables"


def test_the_page_of_conformance_has_the_whole_matrix():
    lines = (ROOT / "docs" / "conformance.md").read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("| process | target |"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in itertools.takewhile(bool, lines[begin:])]
    assert rows[0][2:] == [*columns()], "run scoregen conformance --out=FILE, and copy its matrix to the page"
    assert [(row[0], row[1]) for row in rows[2:]] == [(p, t) for p in PROCESSES for t in TARGETS]


STEPS_OF_A_RUN = re.findall(
    r"^\| `([\w/]+\.py)` \| ([^|]*) \|", (ROOT / "docs" / "manual" / "flow.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("file", "names"), STEPS_OF_A_RUN)
def test_the_flow_of_a_run_names_what_exists(file, names):
    """Every file of the page, and every function in it."""
    found = importlib.import_module("scoregen." + file.removesuffix(".py").replace("/", "."))
    for name in re.findall(r"`([^`]+)`", names):
        assert functools.reduce(getattr, name.split("."), found).__module__ == found.__name__, name


def test_make_knows_its_targets():
    """`make X CONFIG=Y`: there is such a target, and such a preset."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in TEXTS:
        for target, rest in re.findall(r"(?:^ {4}|`)make ([a-z-]+)([^`\n]*)", path.read_text(), re.MULTILINE):
            assert target in targets, (path, target)
            assert all(name in config_lib.presets() for name in re.findall(r"CONFIG=(\w+)", rest)), (path, rest)


def test_links_lead_to_files():
    """For files that are read as they are. mkdocs checks the links of the site."""
    for path in TEXTS:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", re.sub(r"`[^`\n]*`", "", path.read_text())):
            assert (path.parent / target).exists(), f"{name_of(path)}: {target}"


def test_the_package_names_its_commands(capsys):
    """`scoregen` alone lists every command, and no other; every package with a command is one of them."""
    assert main([]) == 0
    named = re.findall(r"^  scoregen ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert named == [*COMMANDS, *OTHERS]
    packages = {path.parent.name for path in (ROOT / "scoregen" / "contrib").glob("*/command.py")}
    assert packages <= set(OTHERS)
    for name, (_, module) in OTHERS.items():
        assert callable(importlib.import_module(module).main), name
