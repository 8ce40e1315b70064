"""Atomic file writes, locks, and strict JSON."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import platform
import re
import secrets
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from scoregen.errors import UsageError

# The names that `whole` writes to: with a hash of the machine's name, the process, and a random part.
_UNFINISHED = re.compile(r"\..*\.new\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}(\.[^.]*)?")
ABANDONED = 3600.0  # seconds after which an unfinished file is one of a process that was killed
TRIES, PAUSE = 5, 0.02  # how often, and after how many seconds each, a lock is asked for again


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to instead of `path`; it is renamed to `path` at the end.

    Until then, and if writing fails, an old file stays as it was. Of several processes that write one file at once, the
    last one that ends gives the file.

    Raises UsageError if the file cannot be written.

    >>> folder = tempfile.TemporaryDirectory()
    >>> with whole(Path(folder.name, "note.txt")) as fresh:
    ...     _ = fresh.write_text("done")
    >>> [path.name for path in Path(folder.name).iterdir()]
    ['note.txt']
    >>> folder.cleanup()
    """
    fresh = path.with_name(f".{path.stem}.new.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield fresh
        fresh.replace(path)
    except OSError as error:
        raise UsageError(_cannot(path, error)) from None
    finally:
        with contextlib.suppress(OSError):  # after the rename it no longer exists
            fresh.unlink()


def remove_unfinished(folder: Path) -> None:
    """Remove the files in a folder that a process was writing (see `whole`) when it was killed.

    Those of a process of another machine stay for an hour (`ABANDONED`), since it may be writing them now.
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if (named := _UNFINISHED.fullmatch(path.name)) is None:
                    continue
                ours, old = named[1] == _machine(), time.time() - path.stat().st_mtime > ABANDONED
                if old or (ours and not _runs(int(named[2]))):
                    path.unlink()


@functools.cache
def _machine() -> str:
    """A hash of the name of this machine."""
    return f"{zlib.crc32(platform.node().encode(errors='replace')):08x}"


def _runs(process: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


@contextlib.contextmanager
def locked(path: Path, wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Holds the lock of a file. Only one process at a time can hold it, and a process that is killed releases it.

    While another process holds the lock, `wait` is called again and again; it may raise, to stop waiting. Without
    `wait` a few tries are made within a tenth of a second, since `is_locked` holds the lock for a moment.

    Raises UsageError if another process holds the lock and there is no `wait`, or if the file cannot be written.

    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder, "lock")), locked(Path(folder, "lock")):
    ...     pass
    Traceback (most recent call last):
    scoregen.errors.UsageError: ... is at work in ...: wait until it has ended, or use another folder
    """
    with contextlib.ExitStack() as stack:
        try:
            file, tries = stack.enter_context(path.open("a")), 1
            while not _held(file):
                if wait is None and tries == TRIES:
                    raise UsageError(
                        f"another command is at work in {path.parent}: wait until it has ended, or use another folder"
                    )
                if wait is not None:
                    wait()
                time.sleep(PAUSE if wait is None else 0.1)
                tries += 1
        except OSError as error:
            raise UsageError(_cannot(path, error)) from None
        yield


def is_locked(path: Path) -> bool:
    """Whether any process holds the lock of this file; see `locked`. The file is neither made nor changed."""
    try:
        with path.open() as file:
            return not _held(file, shared=True)
    except OSError:
        return False


@contextlib.contextmanager
def claimed(path: Path, number: int, *, wait: bool = False) -> Iterator[bool]:
    """Claims one piece of work among processes that share it, by a lock on the byte `number` of a file.

    Yields whether this process has the claim; with `wait` it waits for it. A process that is killed loses its claims.
    The threads of one process do not exclude each other.

    Raises UsageError if the file cannot be written.

    >>> with tempfile.TemporaryDirectory() as folder, claimed(Path(folder, "lock"), 3) as mine:
    ...     print(mine)
    True
    """
    import fcntl

    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("a"))
            how = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
            mine = _is_free(lambda: fcntl.lockf(file, how, 1, number))
        except OSError as error:
            raise UsageError(_cannot(path, error)) from None
        yield mine


def _held(file: IO[str], shared: bool = False) -> bool:
    """Try to lock an open file, and return whether this process now holds the lock, alone or `shared`."""
    import fcntl

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    return _is_free(lambda: fcntl.flock(file, kind | fcntl.LOCK_NB))


def _is_free(lock: Callable[[], object]) -> bool:
    """Whether `lock()` succeeds, or there are no locks."""
    try:
        lock()
    except (BlockingIOError, PermissionError):  # POSIX lets `lockf` raise either
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise  # the errors above mean a file system without locks, where other processes cannot be detected
    return True


def make_folder(folder: Path, name: str = "") -> None:
    """Make a folder, unless it exists; `name` is the option that chose it, for the message.

    Raises:
        UsageError: if the folder cannot be made.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "runs")
    >>> file.touch()
    >>> make_folder(file / "mine", "--out")
    Traceback (most recent call last):
    scoregen.errors.UsageError: cannot make the folder .../runs/mine: .../runs is a file; choose another --out
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        file = next((part for part in (folder, *folder.parents) if part.exists() and not part.is_dir()), None)
        reason = error.strerror if file is None else "it is a file" if file == folder else f"{file} is a file"
        choose = f"; choose another {name}" if name else ""
        raise UsageError(f"cannot make the folder {folder}: {reason}{choose}") from None


def crc32(path: Path) -> int | None:
    """The CRC-32 of a file; None if it cannot be read.

    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "file")
    >>> _ = path.write_bytes(b"123456789")
    >>> hex(crc32(path)), crc32(path.with_name("none"))
    ('0xcbf43926', None)
    >>> folder.cleanup()
    """
    found = 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found = zlib.crc32(block, found)
    except OSError:
        return None
    return found


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits.

    >>> with tempfile.NamedTemporaryFile() as file:
    ...     sha256(Path(file.name))[:8]
    'e3b0c442'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: Path) -> None:
    """Raises UsageError if no file can be written in a folder. Call it before long work that ends in a file."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(_cannot(folder, error)) from None


def _cannot(path: Path, error: OSError) -> str:
    what = "make room there, or use" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "use"
    return f"cannot write {path}: {error.strerror or error}; {what} another folder"


_NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def to_json(value: Any, indent: int | None = 2) -> str:
    """Strict JSON text of dictionaries, sequences, numbers, strings, booleans and None, with a newline at the end.

    JSON has no infinity and no NaN, so these become the strings "Infinity", "-Infinity" and "NaN", which `from_json`
    reads back as numbers. Tuples become lists; NumPy and JAX arrays and numbers become lists and numbers.

    Args:
        value: the value.
        indent: the number of spaces; None writes a single line.

    Raises:
        ValueError: for a string or a key that would be read back as a number, such as "NaN".
        TypeError: for anything else.

    >>> to_json({"sigma": (0.1, math.inf), "steps": 2}, indent=None)
    '{"sigma": [0.1, "Infinity"], "steps": 2}\\n'
    >>> from_json(to_json({"sigma": (0.1, math.inf), "steps": 2}))
    {'sigma': [0.1, inf], 'steps': 2}
    """
    return json.dumps(_strict(value), indent=indent, allow_nan=False) + "\n"


def from_json(text: str | bytes) -> Any:
    """The value that `to_json` wrote, with lists for its sequences.

    Raises:
        ValueError: for text that is not strict JSON.

    >>> from_json("NaN")
    Traceback (most recent call last):
    ValueError: 'NaN' is no JSON
    """
    return _restored(json.loads(text, parse_constant=_no_constant))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {_checked(key): _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    if isinstance(value, str):
        return _checked(value)
    if isinstance(value, float):  # also NumPy's float64; NumPy's other numbers are not Python floats
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return _strict(value.tolist()) if hasattr(value, "tolist") else value


def _checked(value: Any) -> Any:
    if isinstance(value, str) and value in _NUMBERS:
        raise ValueError(f"the text {value!r} would be read back as a number: use another name")
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restored(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_restored(inner) for inner in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name!r} is no JSON")
