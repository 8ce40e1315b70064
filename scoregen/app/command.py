"""What all commands share: a console, exit codes, and one line for what went wrong."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from scoregen.cache import keep_compiled
from scoregen.errors import UsageError


def answer(
    argv: Sequence[str] | None,
    work: Callable[[list[str], Console], int],
    usage: Callable[[Console], None],
    bare: bool = False,
) -> int:
    """Do the work, or say how, and return the exit code.

    2 and a line on stderr for each thing that a user can fix: a UsageError, a file system that refuses, too little
    memory, a device that is not there. Everything else keeps its traceback.

    Args:
        argv: the arguments without the program's name; None for those of the process.
        work: called with the arguments and a console for the output.
        usage: prints the help, if it is asked for or arguments are missing.
        bare: whether there is work to do without arguments.
    """
    keep_compiled()
    os.environ["MPLBACKEND"] = "Agg"  # figures are files; a notebook's backend cannot be imported by a command
    console = _Console(soft_wrap=True, emoji=False)
    if not console.is_terminal:
        console = _Console(soft_wrap=True, emoji=False, width=120)  # a file has no width of its own
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if not (argv or bare) or {"--help", "-h", "--helpfull", "-help"} & set(argv):
            usage(console)
            return 0
        return work(argv, console)
    except KeyboardInterrupt:  # before there was anything to save
        return 128 + signal.SIGINT
    except Exception as error:
        lines = error.args if isinstance(error, UsageError) else [advice(error)]
        if lines == [None]:
            raise
    warn(*map(str, lines))
    return 2


def warn(*lines: str) -> None:
    """Say lines on stderr, each with the program's name before it."""
    stderr = Console(stderr=True, soft_wrap=True, emoji=False)
    for line in lines:
        stderr.print("scoregen: " + plain(line).replace("\n", " "), markup=False, highlight=False)


class _Console(Console):
    """A console that goes quiet when who read it is gone: what is said is less than what is done."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def advice(error: Exception) -> str | None:
    """The line for what a user can fix, such as a file system that refuses or too little memory; None for the rest.

    >>> advice(MemoryError()), advice(KeyError("x"))
    ('out of memory: try a smaller --config.train.microbatch ...', None)
    """
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror or error}" if error.filename else str(error.strerror or error)
    if (line := _no_device(error)) is not None:
        return line
    # Out of memory is the one failure of the runtime that a flag can fix.
    if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
        return (
            "out of memory: try a smaller --config.train.microbatch (the same step in parts), "
            "--config.train.batch or --config.sampler.batch"
        )
    return None


# What JAX_PLATFORMS may be meant to name, and the extra for it, which JAX calls by the same name.
_EXTRAS = {"cpu": "", "cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}
_WHEELS = {"cuda": "cuda13", "tpu": "tpu"}  # the extra of jax that ours brings


def check_platform() -> None:
    """Raises UsageError unless JAX finds the devices that JAX_PLATFORMS names: to be called before the first use.

    Where several processes are to be joined, they must have been joined before.
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
    """The line for a device that JAX does not find, None for another error."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    # A platform that JAX knows and was installed without: a bare AssertionError, whose traceback JAX has cut.
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
    """A text without what a terminal would obey, such as a file's names can hold: each becomes a question mark.

    >>> plain("a name\\x1b[2J of\\ntwo lines")
    'a name?[2J of\\ntwo lines'
    """
    return re.sub(r"[^\n\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", "?", text)


def suppress_warnings() -> None:
    """Suppress Python's complaints about a write that failed, once it was reported in one line.

    Orbax closes its event loop while tensorstore still calls back into it, and leaves coroutines that nobody awaits;
    Python complains about each, whenever it finds them. This is for the whole process, so only a command line does it.
    """
    complain = sys.unraisablehook
    sys.unraisablehook = lambda found: str(found.exc_value) == "Event loop is closed" or complain(found)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def need(extra: str, *modules: str) -> None:
    """End with one line and the code 2 unless these modules are installed, which the extra of this name brings.

    >>> need("test", "json")
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        line = f"scoregen: {', '.join(missing)} is not installed: python -m pip install -e '.[{extra}]'"
        print(line, file=sys.stderr)
        raise SystemExit(2)


unfinished: set[Path] = set()  # folders that are gone when Ctrl-C ends the process at once


def leave_at_once() -> None:
    """From now on Ctrl-C ends the process, where there is nothing to save but what is `unfinished` to be removed.

    A KeyboardInterrupt is raised wherever Python happens to be: in a callback of XLA's it is lost, and while JAX is
    loaded it becomes an ImportError.
    """

    def leave(number: int, _: object) -> None:
        Console().show_cursor()  # which a bar hides
        for folder in unfinished:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + number)

    signal.signal(signal.SIGINT, leave)


def name_of(preset: str, changed: Iterable[tuple[str, Any]]) -> str:
    """A name for what is written: the preset's, and what was changed of it, so that two of them do not meet.

    >>> name_of("ddpm_toy", [("data.name", "moons"), ("data.moons.noise", 0.1)])
    'ddpm_toy,data=moons,data.moons.noise=0.1'
    """
    said = (f"{key.removesuffix('.name')}={value}" for key, value in changed)
    return re.sub(r"[^\w.=,+-]+", "_", ",".join([preset, *said]))[:120]


def saved(workdir: Path) -> bool:
    """Whether there is a checkpoint in the folder of a run."""
    return any(child.name.isdigit() for child in (workdir / "checkpoints").glob("*"))


def no_checkpoint(workdir: Path) -> UsageError:
    """The error for a run that has saved nothing yet."""
    by_fit = (workdir / "model.json").is_file() and not (workdir / "config.json").is_file()
    how = "scoregen.fit" if by_fit else "scoregen train or --mode=train"
    return UsageError(f"no checkpoint in {workdir}: train first, with {how}")


def say(console: Console, line: str) -> None:
    """Print a line as it is, however long, but for what a terminal would obey."""
    console.print(plain(line), markup=False, highlight=False, soft_wrap=True)


def say_presets(console: Console) -> None:
    """The part of a help text that lists what --config may be."""
    from scoregen.app import config

    presets = {name: line for name, line in config.presets().items() if name != "default"}
    for name, line in presets.items():
        say(console, f"  {name:<{max(map(len, presets))}}  {line}")
