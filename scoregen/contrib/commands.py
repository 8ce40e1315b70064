"""Shared by the commands of contrib: command lines and paths as a user types them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scoregen.app.config import Config, idle


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
    flags = [f"--config.{key}={value}" for key, _, value in changed if not idle(config, [key], "train")]
    return shlex.join(["scoregen", "train", f"--config={preset}", *flags])


def from_here(path: str | Path) -> str:
    """A path as typed in the current folder: relative if it is inside this folder."""
    whole = Path(os.path.normpath(path))
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(path)
