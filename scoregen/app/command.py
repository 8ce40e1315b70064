"""The parts that all commands share: a console, exit codes, help texts, and one line for each error."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from scoregen.cache import keep_compiled
from scoregen.errors import UsageError

if TYPE_CHECKING:
    from scoregen.app.config import Config

IMPORTED = "weights.json"  # in the folder of a run: the origin of imported weights
HELP_FLAGS = {"--help", "-h", "--helpfull", "-help"}


def answer(
    argv: Sequence[str] | None,
    work: Callable[[list[str], Console], int],
    usage: Callable[[Console], None],
    bare: bool = False,
) -> int:
    """Do the work, or print the help, and return the exit code.

    An error that a user can fix gives the exit code 2 and a line on stderr: a UsageError, a file system error, too
    little memory, a device that JAX does not find. Every other error keeps its traceback.

    Args:
        argv: the arguments without the program's name; None for those of the process.
        work: called with the arguments and a console for the output.
        usage: prints the help. It is called for --help, and if there are no arguments.
        bare: whether the command works without arguments.
    """
    keep_compiled()
    os.environ["MPLBACKEND"] = "Agg"  # the backend of a notebook cannot be imported by a command
    console = _Console(soft_wrap=True, emoji=False)
    if not console.is_terminal:
        console = _Console(soft_wrap=True, emoji=False, width=120)  # a file has no width
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if not (argv or bare) or HELP_FLAGS & set(argv):
            usage(console)
            return 0
        return work(argv, console)
    except KeyboardInterrupt:  # there was nothing to save yet
        return 128 + signal.SIGINT
    except Exception as error:
        lines = error.args if isinstance(error, UsageError) else [advice(error)]
        if lines == [None]:
            raise
    warn(*map(str, lines))
    return 2


def warn(*lines: str) -> None:
    """Print lines to stderr, each with the program's name before it."""
    stderr = Console(stderr=True, soft_wrap=True, emoji=False)
    for line in lines:
        stderr.print("scoregen: " + plain(line).replace("\n", " "), markup=False, highlight=False)


class _Console(Console):
    """A console that goes quiet when the reader of its pipe has exited, so that the work still finishes."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def advice(error: Exception) -> str | None:
    """The line for an error that a user can fix, such as a full disk or too little memory; None for any other error.

    >>> advice(MemoryError()), advice(KeyError("x"))
    ('out of memory: in training, try a smaller ...', None)
    """
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror or error}" if error.filename else str(error.strerror or error)
    if (line := _no_device(error)) is not None:
        return line
    # Of all errors of the runtime, a flag can fix only this one.
    if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
        return (
            "out of memory: in training, try a smaller --config.train.microbatch (the same step in parts) or "
            "--config.train.batch; in sampling, a smaller --config.sampler.batch; "
            "in a likelihood, a smaller --config.eval.likelihood.batch; in a trajectory, a smaller --n"
        )
    return None


# The names that a user may write in JAX_PLATFORMS, each with the extra that it needs. JAX uses the extra's name too.
_EXTRAS = {"cpu": "", "cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}
_WHEELS = {"cuda": "cuda13", "tpu": "tpu"}  # our extra -> the extra of jax that it installs


def check_platform() -> None:
    """Raises UsageError unless JAX finds the devices that JAX_PLATFORMS names. Call it before JAX is first used.

    With several processes, join them before this call.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(_no_device(error) or str(error).partition("\n")[0]) from error


def _finds_devices() -> bool:
    import jax

    try:
        return bool(jax.devices())
    except (RuntimeError, AssertionError):
        return False


def _no_device(error: Exception) -> str | None:
    """The line for an error about a device that JAX does not find; None for any other error."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    # For a platform that JAX knows but has no wheel for, it raises a bare AssertionError and cuts its traceback.
    missing = isinstance(error, AssertionError) and asked and not _finds_devices()
    if not (missing or (isinstance(error, RuntimeError) and "nable to initialize backend" in str(error))):
        return None
    if not asked:
        return f"JAX finds no device: {str(error).partition(chr(10))[0]}"
    reason = str(error).partition("\n")[0]
    for name in map(str.strip, asked.split(",")):
        if name not in _EXTRAS:
            near = difflib.get_close_matches(name, _EXTRAS, n=1)
            hint = f"did you mean {near[0]}? There" if near else "there"
            reason = f"JAX has no platform {name!r}: {hint} are: {', '.join(['cpu', *_WHEELS])}"
            break
        if extra := _EXTRAS[name]:
            install = f"python -m pip install -e '.[{extra}]', or 'jax[{_WHEELS[extra]}]'"
            reason = (
                f"JAX finds no such device: say JAX_PLATFORMS={extra} with the extra '{extra}' installed ({install}), "
                "or JAX_PLATFORMS=cpu"
            )
            break
    return f"JAX_PLATFORMS={asked}: {reason}"


def plain(text: str) -> str:
    """A text whose control characters are replaced by question marks, since a file's name can hold such characters.

    >>> plain("a name\\x1b[2J of\\ntwo lines")
    'a name?[2J of\\ntwo lines'
    """
    return re.sub(r"[^\n\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", "?", text)


def suppress_warnings() -> None:
    """Suppress Python's warnings that follow a failed write, which the command itself reports in one line.

    Orbax closes its event loop while tensorstore still calls back into it, and leaves coroutines that nobody awaits.
    Python warns about each of them later. The filter is for the whole process, so only command lines set it.
    """
    complain = sys.unraisablehook
    sys.unraisablehook = lambda found: str(found.exc_value) == "Event loop is closed" or complain(found)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def need(extra: str, *modules: str) -> None:
    """Exit with one line and the code 2 unless these modules are installed. The extra `extra` installs them.

    >>> need("test", "json")
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        line = f"scoregen: {', '.join(missing)} is not installed: python -m pip install -e '.[{extra}]'"
        print(line, file=sys.stderr)
        raise SystemExit(2)


unfinished: set[Path] = set()  # folders to remove when Ctrl-C ends the process at once


def leave_at_once() -> None:
    """From now on Ctrl-C ends the process at once, and removes the folders in `unfinished`. Nothing is saved.

    Without this, Ctrl-C raises a KeyboardInterrupt at an arbitrary place: inside a callback of XLA it is lost, and
    during the import of JAX it becomes an ImportError.
    """

    def leave(number: int, _: object) -> None:
        Console().show_cursor()  # a progress bar hides it
        for folder in unfinished:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + number)

    signal.signal(signal.SIGINT, leave)


def name_of(preset: str, changed: Iterable[tuple[str, Any]]) -> str:
    """A name for output: the preset's name and the changed options, so that different runs get different folders.

    >>> name_of("ddpm_toy", [("data.name", "moons"), ("data.moons.noise", 0.1)])
    'ddpm_toy,data=moons,data.moons.noise=0.1'
    """
    said = (f"{key.removesuffix('.name')}={value}" for key, value in changed)
    return re.sub(r"[^\w.=,+-]+", "_", ",".join([preset, *said]))[:120]


def train_command(preset: str, config: Config, changed: Iterable[tuple[str, Any, Any]]) -> str:
    """The command that trains a configuration, quoted for a shell.

    An option without effect in `scoregen train` is left out, since the command refuses it.

    Args:
        preset: the name of the preset, or the path of its file.
        config: the configuration.
        changed: the differences from the preset, (key, old, new), as `config.changes` returns them.

    >>> from scoregen.app.config import load
    >>> train_command("ddpm_toy", load("ddpm_toy"), [("seed", 0, 1), ("eval.likelihood.examples", 9, 3)])
    'scoregen train --config=ddpm_toy --config.seed=1'
    """
    from scoregen.app.config import idle

    flags = [f"--config.{key}={value}" for key, _, value in changed if not idle(config, [key], "train")]
    return shlex.join(["scoregen", "train", f"--config={preset}", *flags])


def run_command(mode: str, run: str, file: str = "", *flags: str) -> str:
    """The command that works on the run in a folder, quoted for a shell; `file` is that of its preset, if it has one.

    >>> run_command("eval", "runs/my run", "mine.py")
    "scoregen eval 'runs/my run' --config=mine.py"
    """
    return shlex.join(["scoregen", mode, run, *([f"--config={file}"] if file else []), *flags])


def preset_file(typed: str) -> str:
    """The preset's file that a training command names; "" for a preset of the package, and for a sweep.

    >>> preset_file("scoregen train --config=mine.py --steps=9"), preset_file("scoregen train ddpm_toy")
    ('mine.py', '')
    >>> preset_file("python -m scoregen sweep mine/sweep.py")
    ''
    """
    words = shlex.split(typed)
    if "sweep" in words[1:4] and words[words.index("sweep") - 1] == "scoregen":
        return ""
    words = [word.removeprefix("--config=") for word in words]
    return next((word for word in words if word.endswith(".py") and not word.startswith("--")), "")


def from_here(path: str | Path) -> str:
    """A path as typed in the current folder: relative if it is inside this folder."""
    whole = Path(os.path.normpath(path))
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(path)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (folder / "checkpoints").is_dir() and any((folder / f).is_file() for f in ("config.json", "model.json"))


def saved(workdir: Path) -> bool:
    """Whether there is a checkpoint in the folder of a run."""
    return saved_step(workdir) is not None


def saved_step(workdir: Path) -> int | None:
    """The step of the newest checkpoint in the folder of a run; None if there is none."""
    names = (child.name for child in (workdir / "checkpoints").glob("*"))
    return max((int(name) for name in names if name.isdecimal()), default=None)


def no_checkpoint(workdir: Path) -> UsageError:
    """The error for a run without a checkpoint."""
    by_fit = (workdir / "model.json").is_file() and not (workdir / "config.json").is_file()
    folder = shlex.quote(str(workdir))
    what = folder if (workdir / "config.json").is_file() else f"PRESET --workdir={folder}"
    how = "scoregen.fit" if by_fit else f"scoregen train {what}"
    return UsageError(f"no checkpoint in {workdir}: train first, with {how}")


def say(console: Console, line: str) -> None:
    """Print a line without wrapping it, and without control characters."""
    console.print(plain(line), markup=False, highlight=False, soft_wrap=True)


def say_help(console: Console, usage: str, text: str | None, flags: Callable[[], None]) -> None:
    """A help text: the usage line, `text` without its exit codes, what `flags` prints, and the exit codes."""
    about, mark, codes = (text or "").partition("Exit codes:")
    say(console, f"scoregen {usage} [--flag=value ...]\n\n{about.rstrip()}")
    flags()
    say(console, f"\n{mark}{codes.rstrip()}")


def say_flags(console: Console, flags: Sequence[tuple[str, str]], heading: str = "Flags") -> None:
    """The part of a help text that lists flags, each with its explanation."""
    say(console, f"\n{heading}:\n")
    for usage, text in flags:
        say(console, f"  {usage:<{max(len(flag) for flag, _ in flags)}}  {text}")


def say_presets(console: Console, name: str) -> None:
    """The part of a help text that lists the presets; `name` is their placeholder in the usage line."""
    from scoregen.app import config

    say(console, f"\n{name} is one of these presets, or the path of a .py file with a get_config():\n")
    presets = {name: line for name, line in config.presets().items() if name != "default"}
    for name, line in presets.items():
        say(console, f"  {name:<{max(map(len, presets))}}  {line}")
