"""The binary versions of CIFAR-10 and CIFAR-100, from a folder, from the archive, or from the network."""

from __future__ import annotations

import dataclasses
import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scoregen import cache
from scoregen.data.dataset import Dataset
from scoregen.data.download import download
from scoregen.errors import UsageError

PIXELS = 3 * 32 * 32  # bytes: the planes R, G, B, each row by row
BESIDES = 1 << 20  # bytes of an archive beside its files: names of the classes, headers, and the zeros at the end
BLOCK = 512  # bytes of a header in an archive, and of what the size of a member is rounded up to


@dataclasses.dataclass(frozen=True)
class Published:
    """A published set.

    Attributes:
        name: the source, and the folder of the cache.
        title: its name in messages.
        url, md5: where its archive is, and the checksum of the archive.
        folder: the folder in the archive.
        train: the files to train on, each with its number of records.
        test: the file to test on, with its number of records.
        classes: how many classes each byte of labels counts; the bytes stand before the pixels of a record.
        python: names of files of the python version.
    """

    name: str
    title: str
    url: str
    md5: str
    folder: str
    train: dict[str, int]
    test: dict[str, int]
    classes: tuple[int, ...]
    python: tuple[str, ...]

    @property
    def files(self) -> dict[str, int]:
        """The bytes of each file."""
        return {name: records * self.record for name, records in (self.train | self.test).items()}

    @property
    def record(self) -> int:
        """The bytes of a record."""
        return len(self.classes) + PIXELS

    @property
    def archive(self) -> str:
        """The name of the archive."""
        return self.url.rpartition("/")[2]


def read(published: Published, dir: str, size: int, column: int = 0) -> Dataset:
    """The data set, with one of its columns of labels; see `scoregen.data.cifar10`."""
    if isinstance(size, bool) or size not in (1, 2, 4, 8, 16, 32):
        raise UsageError(f"{published.name}: size={size}: 32, 16, 8, 4, 2 or 1 is needed, by which 32 can be divided")
    path = Path(dir).expanduser() if dir else cache.folder(published.name)
    files = _present(published, path)
    if files is None:
        files = _from_archive(published, download(published.title, published.url, published.md5, path))
    parts = {name: _decode(published, name, source, raw) for name, source, raw in files}
    if missing := [name for name in published.files if name not in parts]:
        raise UsageError(f"{path} lacks {', '.join(missing)} of {published.title}: get {published.url} again")
    train, test = (
        (
            _shrink(np.concatenate([parts[name][0] for name in names]), size),
            np.concatenate([parts[name][1] for name in names])[:, column].astype(np.int32),
        )
        for names in (published.train, published.test)
    )
    return Dataset(published.name, train[0], test[0], train[1], test[1])


def _shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Images `[N, 32, 32, 3]` -> `[N, size, size, 3]`, the mean of each square, halves rounded up."""
    square = 32 // size
    if square == 1:
        return images
    sums = images.reshape(-1, size, square, size, square, 3).sum((2, 4), dtype=np.uint32)
    return ((2 * sums + square**2) // (2 * square**2)).astype(np.uint8)


def _present(published: Published, path: Path) -> Iterator[tuple[str, str, bytes]] | None:
    """The files that are there, as (name, where from, content); None if there are none at all."""
    if path.is_file():
        return _from_archive(published, path)
    for folder in (path / published.folder, path):
        if any((folder / name).is_file() for name in published.files):
            return _from_folder(published, folder)
    if (path / published.archive).is_file():
        return _from_archive(published, path / published.archive)
    for name in published.python:
        if (path / name).exists():
            raise UsageError(
                f"{path / name} is the python version of {published.title}, made of pickles, which run code "
                f"when opened: the binary version is needed, get {published.url} and put it into {path}"
            )
    if path.suffix in (".gz", ".tgz"):  # this names an archive, and not a folder to download into
        raise UsageError(f"there is no file {path}: give the path of the archive or of a folder")
    return None


def _from_folder(published: Published, folder: Path) -> Iterator[tuple[str, str, bytes]]:
    for path in (folder / name for name in published.files if (folder / name).is_file()):
        _check_size(published, path.name, str(path), path.stat().st_size)
        try:
            yield path.name, str(path), path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read ({error.strerror}): make it readable, or get {published.url} again"
            ) from error


def _from_archive(published: Published, path: Path) -> Iterator[tuple[str, str, bytes]]:
    """The files in an archive, which is read once, in chunks, and not beyond what the published one holds.

    `tarfile` would read long names and other extensions of any size into memory, so only its parser of a header is
    used. The published archives have no extensions.
    """
    left = sum(published.files.values()) + BESIDES
    try:
        with gzip.open(path) as plain:
            while any(block := plain.read(BLOCK)):
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                name, source = Path(member.name).name, f"{member.name!r} in {path}"
                is_ours = member.isreg() and name in published.files
                if is_ours:
                    source = f"{name} in {path}"
                    _check_size(published, name, source, member.size)
                empty = member.islnk() or member.issym() or member.isdev() or member.isdir()
                size = 0 if empty else member.size
                padded = -(-size // BLOCK) * BLOCK
                left -= BLOCK + padded
                if left < 0 or size < 0:
                    raise UsageError(
                        f"{source} has {size} bytes, more than {published.title} has beside its files: it is another "
                        f"set, get {published.url} again"
                    )
                if is_ours:
                    content = plain.read(size)
                    if len(content) < size:
                        raise EOFError(f"it ends within {name}")
                    yield name, source, content
                _skip(plain, padded - size if is_ours else padded)
            if plain.tell() == 0:
                raise tarfile.ReadError("empty file")
            _to_end(plain)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UsageError(f"{path} is not a whole .tar.gz archive ({error}): get {published.url} again") from error


def _skip(plain: gzip.GzipFile, size: int) -> None:
    while size > 0:
        chunk = plain.read(min(size, BESIDES))
        if not chunk:
            raise EOFError("it ends within a file")
        size -= len(chunk)


def _to_end(plain: gzip.GzipFile) -> None:
    """Read to the end, where gzip compares its checksum."""
    if len(plain.read(BESIDES)) == BESIDES:
        raise tarfile.ReadError(f"{BESIDES} bytes or more after its end")


def _check_size(published: Published, name: str, source: str, size: int) -> None:
    expected = published.files[name]
    if size != expected:
        raise UsageError(
            f"{source} has {size} bytes, not {expected} ({expected // published.record} records of "
            f"{published.record}): it is cut short or another set, get {published.url} again"
        )


def _decode(published: Published, name: str, source: str, raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Records -> images `[N, 32, 32, 3]` and labels `[N, columns]`, both uint8."""
    _check_size(published, name, source, len(raw))
    columns = len(published.classes)
    records = np.frombuffer(raw, np.uint8).reshape(-1, published.record)
    labels = records[:, :columns]
    for column, classes in zip(labels.T, published.classes, strict=True):
        if (bad := np.flatnonzero(column >= classes)).size:
            raise UsageError(
                f"{source}: record {bad[0]} has the label {column[bad[0]]}, not one of 0..{classes - 1} ({bad.size} "
                f"such records): the file is damaged or another set, get {published.url} again"
            )
    # contiguous, because a batch gathers whole images
    return np.ascontiguousarray(records[:, columns:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels
