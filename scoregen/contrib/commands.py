"""What the commands of contrib share: all faults of a command line at once, and commands as they are typed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from scoregen.app.arguments import CONFIG, Arguments, Flag, parse, read
from scoregen.app.config import Config, idle
from scoregen.errors import UsageError


def parsed(
    argv: Sequence[str],
    flags: Sequence[Flag],
    faults: Callable[[Arguments], Iterable[str]],
    takes: int = 0,
    needed: bool = True,
) -> Arguments:
    """The command line, as `parse` reads it, after a check of its values.

    Args:
        argv, flags, takes, needed: of `parse`.
        faults: gives a line for each fault in what the command line says, before any configuration is known.

    Raises:
        UsageError: with all that is wrong, for `parse` and for `faults`.
    """
    wrong = list(faults(read(argv, (CONFIG, *flags), takes)))
    try:
        given = parse(argv, flags, takes, needed=needed)
    except UsageError as error:
        raise UsageError(*wrong, *error.args) from None
    if wrong:
        raise UsageError(*wrong)
    return given


def train_command(preset: str, config: Config, changed: Iterable[tuple[str, Any, Any]]) -> str:
    """The command that trains a configuration, quoted for a shell.

    An option without effect in `scoregen train` is left out, since the command refuses it.

    Args:
        preset: its name, or the path of its file.
        config: the configuration.
        changed: what differs from the preset, (key, old, new), as `config.changes` gives it.

    >>> from scoregen.app.config import load
    >>> train_command("ddpm_toy", load("ddpm_toy"), [("seed", 0, 1), ("eval.likelihood.examples", 9, 3)])
    'scoregen train --config=ddpm_toy --config.seed=1'
    """
    flags = [f"--config.{key}={value}" for key, _, value in changed if not idle(config, [key], "train")]
    return shlex.join(["scoregen", "train", f"--config={preset}", *flags])


def from_here(path: str | Path) -> str:
    """A path as it is typed in the current folder: relative, if it is below that."""
    whole = Path(os.path.normpath(path))
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(path)
