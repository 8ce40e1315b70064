"""The folder of files that can be made again: downloads, classifiers for distances, compiled programs."""

from __future__ import annotations

import os
import warnings
from pathlib import Path


def folder(name: str = "") -> Path:
    """$SCOREGEN_CACHE/name, or ~/.cache/scoregen/name without it. It need not exist.

    >>> folder("cifar10").name
    'cifar10'
    """
    return Path(os.environ.get("SCOREGEN_CACHE") or "~/.cache/scoregen").expanduser() / name


def keep_compiled() -> None:
    """Let JAX keep the programs that it compiles, so that a command starts at once when it is run again.

    It sets environment variables, for a JAX that is not imported yet, and leaves those that are set: another folder
    (JAX_COMPILATION_CACHE_DIR), or no cache (JAX_ENABLE_COMPILATION_CACHE=false). Most programs take up less than a
    megabyte; the folder may be removed at any time.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder("compiled")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # With a damaged file or an unwritable folder the program is compiled, as it is without a cache.
    warnings.filterwarnings("ignore", ".*persistent compilation cache.*", UserWarning)
