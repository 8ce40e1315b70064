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


def check_writable(folder: Path) -> None:
    """Raises UsageError if no file can be made in a folder: to be asked before work that ends in one."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(_cannot(folder, error)) from None


def _cannot(path: Path, error: OSError) -> str:
    return f"cannot write {path}: {error.strerror or error}; make room there, or choose another --workdir"
