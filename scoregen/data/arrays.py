"""Arrays in .npy and .npz files, checked before their numbers are read."""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from scoregen.errors import UsageError

LONGEST = 10_000  # bytes of a header, as in NumPy
DIRECTORY = 1 << 24  # bytes of the list of members in a .npz file
CHUNK = 1 << 20
SHOWN = 10  # members that a message names


def open_array(path: str | os.PathLike[str], key: str = "") -> np.ndarray:
    """The array in a .npy or .npz file: `[N, ...]` of numbers or truth values, in the dtype of the file.

    A .npy file is memory-mapped, read-only; an array of a .npz file is read into memory. The header is compared with
    the size of the file before anything else is read, and nothing is unpickled.

    Args:
        path: the file.
        key: the name of the array in a .npz file; "" if there is only one.

    Raises:
        UsageError: if no file is named; if it cannot be read, is damaged, cut short or longer than its header says, or
            larger than the memory; for anything but numbers and truth values, for a single number, and for an empty
            array; for a key that does not fit.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name, "x.npz")
    >>> np.savez_compressed(path, x=np.ones((3, 2)), y=np.arange(3))
    >>> open_array(path, "y")
    array([0, 1, 2])
    >>> open_array(path)
    Traceback (most recent call last):
    scoregen.errors.UsageError: ...x.npz holds x (3, 2), y (3,): say key=NAME with one of them
    >>> folder.cleanup()
    """
    if not str(path):
        raise UsageError("no file is named to read the data from: say dir=FILE.npy")
    place = Path(path).expanduser()
    try:
        status = place.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if place.is_dir() else "no regular file"
            raise UsageError(f"{path} is {kind}: say dir=FILE.npy, a file of np.save")
        with place.open("rb") as file:
            if file.read(2) == b"PK":
                return _of_npz(place, str(path), key)
            if key:
                raise UsageError(f"{path} is no .npz file, which holds arrays by name: leave out key={key!r}")
            file.seek(0)
            head = _head(file, str(path), status.st_size)
        order = "F" if head.fortran else "C"
        return np.memmap(place, head.dtype, "r", head.offset, head.shape, order)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}: say dir=FILE.npy, a file of np.save") from None


class Head(NamedTuple):
    """What a .npy file says before its numbers."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    offset: int


def _head(file: IO[bytes], what: str, size: int) -> Head:
    """The header of a .npy file of `size` bytes, if it is one of an array that can be read."""
    head = _parsed(file, size)
    if head is None:
        raise UsageError(f"{what} is no whole .npy file of numbers: write it again, with np.save")
    dtype, shape, _, offset = head
    if dtype.kind not in "biufc":
        raise UsageError(f"{what} holds {_instead(dtype)}")
    if not shape:
        raise UsageError(f"{what} holds a single number: save an array [N, ...] of N examples")
    if 0 in shape:
        raise UsageError(f"{what} is empty (shape {shape}): save at least one example")
    wanted = offset + math.prod(shape) * dtype.itemsize
    if wanted != size:
        more = "; it may hold several arrays" if size > wanted else ""
        raise UsageError(
            f"{what} is no whole .npy file: it has {size} bytes, and by its header {wanted}{more}: write it again, "
            "with np.save"
        )
    return head


def _parsed(file: IO[bytes], size: int) -> Head | None:
    """The header of a .npy file, if it has one.

    Only np.save of names of fields beyond latin-1 writes another version than 1.0 and 2.0.
    """
    start = file.read(12)
    version = start[6:8]
    if start[:6] != b"\x93NUMPY" or len(start) < 12 or version not in (b"\1\0", b"\2\0"):
        return None
    width = 2 if version == b"\1\0" else 4
    length = int.from_bytes(start[8 : 8 + width], "little")
    offset = 8 + width + length
    if not 2 <= length <= LONGEST or offset > size:  # 2 bytes at least are the braces
        return None
    text = io.BytesIO(start[8:] + file.read(offset - 12))
    read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy and of Python's parser, about the form of the text
            shape, fortran, dtype = read(text, max_header_size=LONGEST)
    except Exception:  # the parser raises errors of many kinds, among them MemoryError
        return None
    if len(shape) > 32 or any(isinstance(n, bool) or n < 0 for n in shape):
        return None
    return Head(dtype, shape, fortran, offset)


def _instead(dtype: np.dtype) -> str:
    """What an array of another kind is, and what to save instead."""
    if dtype.names is not None:
        columns = ", ".join(f"x[{name!r}]" for name in dtype.names[:SHOWN])
        return f"records, and not one array of numbers: save np.stack([{columns}], -1) instead"
    kinds = {
        "O": "Python objects, which are not read: save x.astype(np.float32), or rows of one length",
        "V": f"raw bytes ({dtype.str}), as bfloat16 is saved: save x.astype(np.float32)",
        "M": "dates: save numbers, such as x.astype(np.int64)",
        "m": "durations: save numbers, such as x.astype(np.int64)",
    }
    return kinds.get(dtype.kind, "texts: save numbers, such as np.unique(x, return_inverse=True)[1]")


# .npz


class _Sparing(io.FileIO):
    """A file that refuses to read much at once, as zipfile reads the whole list of members, of any length."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > DIRECTORY:
            raise zipfile.BadZipFile(f"a list of members of {size} bytes")
        return super().read(size)


def _of_npz(place: Path, path: str, key: str) -> np.ndarray:
    with _damage_named(path), _Sparing(place) as file, zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if _is_array(info)}
        name = key.removesuffix(".npy") or (next(iter(members)) if len(members) == 1 else "")
        if name not in members:
            raise UsageError(f"{path} holds {_named(archive, members)}: {_choose(members)}")
        info, what = members[name], f"{name} in {path}"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UsageError(f"{what} is compressed in another way than np.savez_compressed does: write it again")
        with archive.open(info) as member:
            head = _head(member, what, info.file_size)
            raw = read_exactly(member, what, info.file_size - head.offset, "write it again, with np.savez")
    return np.frombuffer(raw, head.dtype).reshape(head.shape, order="F" if head.fortran else "C")


def _is_array(info: zipfile.ZipInfo) -> bool:
    return info.filename.endswith(".npy")


def _choose(members: dict[str, zipfile.ZipInfo]) -> str:
    return "say key=NAME with one of them" if members else "write it again, with np.savez"


def _named(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> str:
    """The first members with their shapes."""
    named = []
    for name, info in [*members.items()][:SHOWN]:
        with archive.open(info) as member:
            head = _parsed(member, info.file_size)
        named.append(f"{name} {'(damaged)' if head is None else head.shape}")
    more = f" and {len(members) - SHOWN} more" if len(members) > SHOWN else ""
    return ", ".join(named) + more or "no arrays"


@contextlib.contextmanager
def _damage_named(path: str) -> Iterator[None]:
    """Within it, the errors of a damaged .npz file become a UsageError."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, RuntimeError) as error:
        # RuntimeError: it needs a password, or a version of zip that Python does not know (NotImplementedError)
        said = " ".join(str(error).split())
        raise UsageError(f"{path} is no whole .npz file ({said}): write it again, with np.savez") from None


# Content of a known size


def read_exactly(file: IO[bytes], what: str, size: int, remedy: str) -> bytearray:
    """The rest of a file, which has `size` bytes by its header. At most one more byte is read.

    Memory is taken as bytes arrive, so a header cannot make it more than the file fills.

    Raises:
        UsageError: if the file ends before or goes on after that, or if the machine has less memory.

    >>> read_exactly(io.BytesIO(b"abc"), "x.gz", 2, "get it again")
    Traceback (most recent call last):
    scoregen.errors.UsageError: x.gz goes on after the 2 bytes that its header promises: get it again
    """
    if size > memory():
        raise UsageError(f"{what} promises {size} bytes, more than the memory of this machine: {remedy}")
    content = bytearray()
    while len(content) < size and (chunk := file.read(min(CHUNK, size - len(content)))):
        content += chunk
    if len(content) < size:
        raise UsageError(f"{what} ends after {len(content)} of the {size} bytes that its header promises: {remedy}")
    if file.read(1):  # at the end of the file, its checksum is compared
        raise UsageError(f"{what} goes on after the {size} bytes that its header promises: {remedy}")
    return content


def memory() -> float:
    """The bytes of memory of this machine; infinite if it does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return math.inf
