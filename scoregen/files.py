"""Files that are whole, or not there: what is written beside its place, and then renamed."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """A file that one process at a time holds, until it leaves or dies: a kill leaves no lock behind.

    Raises UsageError if another one holds it and there is to be no `wait`, or if the file cannot be written.

    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder, "lock")), locked(Path(folder, "lock")):
    ...     pass
    Traceback (most recent call last):
    scoregen.errors.UsageError: ... is at work in ...: wait until it has ended, or take another folder
    """
    import fcntl

    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UsageError(
                f"another command is at work in {path.parent}: wait until it has ended, or take another folder"
            ) from None
        except OSError as error:
            raise UsageError(_cannot(path, error)) from None
        yield


def check_writable(folder: Path) -> None:
    """Raises UsageError if no file can be made in a folder: to be asked before work that ends in one."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(_cannot(folder, error)) from None


def _cannot(path: Path, error: OSError) -> str:
    return f"cannot write {path}: {error.strerror or error}; make room there, or choose another --workdir"
