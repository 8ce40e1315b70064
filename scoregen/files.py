"""Files that are whole, or not there: what is written beside its place, and then renamed."""

from __future__ import annotations

import contextlib
import errno
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from scoregen.errors import UsageError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to in place of `path`, whose name it takes over at the end.

    Until then, and if writing fails, the old file is there as it was.

    Raises UsageError if it cannot be written.

    >>> folder = tempfile.TemporaryDirectory()
    >>> with whole(Path(folder.name, "note.txt")) as fresh:
    ...     _ = fresh.write_text("done")
    >>> [path.name for path in Path(folder.name).iterdir()]
    ['note.txt']
    >>> folder.cleanup()
    """
    fresh = path.with_name(f".{path.stem}.new{path.suffix}")
    try:
        yield fresh
        fresh.replace(path)
    except OSError as error:
        raise UsageError(_cannot(path, error)) from None
    finally:
        with contextlib.suppress(OSError):  # it is gone if all went well
            fresh.unlink()


@contextlib.contextmanager
def locked(path: Path, wait: Callable[[], object] | None = None) -> Iterator[None]:
    """A file that one process at a time holds, until it leaves or dies: a kill leaves no lock behind.

    While another one holds it, `wait` is called again and again, and may raise; without it, that is the UsageError.
    So is a file that cannot be written.

    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder, "lock")), locked(Path(folder, "lock")):
    ...     pass
    Traceback (most recent call last):
    scoregen.errors.UsageError: ... is at work in ...: wait until it has ended, or take another folder
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("a"))
            while not _held(file):
                if wait is None:
                    raise UsageError(
                        f"another command is at work in {path.parent}: wait until it has ended, or take another folder"
                    )
                wait()
                time.sleep(0.1)
        except OSError as error:
            raise UsageError(_cannot(path, error)) from None
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds a file by `locked`."""
    try:
        with path.open("a") as file:
            return not _held(file)
    except OSError:
        return False


def _held(file: IO[str]) -> bool:
    """Whether this process has the lock of an open file now."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise  # else it is a file system without locks, where nobody can be told apart
    return True


def check_writable(folder: Path) -> None:
    """Raises UsageError if no file can be made in a folder: to be asked before work that ends in one."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(_cannot(folder, error)) from None


def _cannot(path: Path, error: OSError) -> str:
    return f"cannot write {path}: {error.strerror or error}; make room there, or choose another --workdir"
