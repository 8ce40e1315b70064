"""The cache folder, for files that can be made again: downloads, classifiers for distances, compiled programs."""

from __future__ import annotations

import os
import warnings
from pathlib import Path


def folder(name: str = "") -> Path:
    """The path $SCOREGEN_CACHE/name, or ~/.cache/scoregen/name if that is not set. The folder may not exist yet.

    >>> folder("cifar10").name
    'cifar10'
    """
    return Path(os.environ.get("SCOREGEN_CACHE") or "~/.cache/scoregen").expanduser() / name


def keep_compiled() -> None:
    """Make JAX cache its compiled programs, so that a command starts at once when it is run again.

    It sets environment variables, so it must be called before JAX is imported. Variables that are already set stay:
    they may choose another folder (JAX_COMPILATION_CACHE_DIR) or no cache (JAX_ENABLE_COMPILATION_CACHE=false). Most
    programs take less than a megabyte. The folder may be removed at any time.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder("compiled")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # If a file is damaged or the folder cannot be written, JAX warns and then compiles the program as usual.
    warnings.filterwarnings("ignore", ".*persistent compilation cache.*", UserWarning)
