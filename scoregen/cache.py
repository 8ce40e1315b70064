"""The folder for what can be made again: downloads, the classifiers of the distances, compiled programs."""

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
    """Let JAX keep the programs that it compiles, so that a command starts at once when it is given again.

    Said in the environment, for a JAX that is yet to be imported: what the person has said there already counts, such
    as another folder (JAX_COMPILATION_CACHE_DIR) or none at all (JAX_ENABLE_COMPILATION_CACHE=false). A program takes
    up less than a megabyte, mostly; the folder may be removed at any time.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder("compiled")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # A file that a kill cut short, a folder that cannot be written: the program is compiled, as without a cache.
    warnings.filterwarnings("ignore", ".*persistent compilation cache.*", UserWarning)
