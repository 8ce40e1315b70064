"""CIFAR-10 in its binary version, from a folder, from the archive, or from the network."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scoregen import cache
from scoregen.data.dataset import Dataset
from scoregen.data.download import download
from scoregen.data.sources import source
from scoregen.errors import UsageError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE, FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
TRAIN, TEST = tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"
FILES = (*TRAIN, TEST)
RECORDS = 10_000  # in each of the six files
RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the planes R, G, B, each row by row


@source(shape=lambda size: (size, size, 3))
def cifar10(*, dir: str, size: int = 32) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): uint8 `[50000, 32, 32, 3]` to train on, 10000 to test on, RGB, labels 0..9.

    With a smaller `size` each pixel is the mean of a square of pixels, rounded.

    `dir` is the folder that holds cifar-10-batches-bin/, or that folder itself, or the folder of
    cifar-10-binary.tar.gz, or the path of this archive; "" is the cache, $SCOREGEN_CACHE/cifar10 or
    ~/.cache/scoregen/cifar10. If none of these exists, the archive (170 MB) is downloaded from its author's
    page into `dir`, and its md5 is verified. The archive is read in memory and never unpacked. The python version is
    not read, because it is made of pickles, and opening a pickle runs any code that it holds.

    Raises UsageError for another size, a file that is missing, unreadable, cut short or has a label above 9, a damaged
    archive or download, the python version, or a download without a network.

    >>> cifar10(dir=__file__)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    scoregen.errors.UsageError: ...cifar10.py is not a whole .tar.gz archive (...): get ...
    """
    if size not in (1, 2, 4, 8, 16, 32):
        raise UsageError(f"cifar10: size={size}: 32, 16, 8, 4, 2 or 1 is needed, by which 32 can be divided")
    path = Path(dir).expanduser() if dir else cache.folder("cifar10")
    files = _present(path)
    if files is None:
        files = _from_archive(download("CIFAR-10", URL, MD5, path))
    parts = {name: _decode(source, raw) for name, source, raw in files}
    if missing := [name for name in FILES if name not in parts]:
        raise UsageError(f"{path} lacks {', '.join(missing)} of CIFAR-10: get {URL} again")
    parts = {name: (_shrink(images, size), labels) for name, (images, labels) in parts.items()}
    images, labels = (np.concatenate([parts[name][i] for name in TRAIN]) for i in (0, 1))
    return Dataset("cifar10", images, parts[TEST][0], labels, parts[TEST][1])


def _shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Images `[N, 32, 32, 3]` -> `[N, size, size, 3]`, the mean of each square, halves rounded up."""
    square = 32 // size
    sums = images.reshape(-1, size, square, size, square, 3).sum((2, 4), dtype=np.uint32)
    return ((2 * sums + square**2) // (2 * square**2)).astype(np.uint8)


def _present(path: Path) -> Iterator[tuple[str, str, bytes]] | None:
    """The files that are there, as (name, where from, content); None if there are none at all."""
    if path.is_file():
        return _from_archive(path)
    for folder in (path / FOLDER, path):
        if any((folder / name).is_file() for name in FILES):
            return _from_folder(folder)
    if (path / ARCHIVE).is_file():
        return _from_archive(path / ARCHIVE)
    for name in ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1"):
        if (path / name).exists():
            raise UsageError(
                f"{path / name} is the python version of CIFAR-10, made of pickles, which run code "
                f"when opened: the binary version is needed, get {URL} and put it into {path}"
            )
    if path.suffix in (".gz", ".tgz"):  # this names an archive, and not a folder to download into
        raise UsageError(f"there is no file {path}: give the path of the archive or of a folder")
    return None


def _from_folder(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    for path in (folder / name for name in FILES if (folder / name).is_file()):
        _check_size(str(path), path.stat().st_size)
        try:
            yield path.name, str(path), path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read ({error.strerror}): make it readable, or get {URL} again"
            ) from error


def _from_archive(path: Path) -> Iterator[tuple[str, str, bytes]]:
    try:
        # gzip outside and a plain stream inside: tarfile's own "r|gz" never compares the checksum
        with gzip.open(path) as plain, tarfile.open(fileobj=plain, mode="r|") as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and name in FILES:
                    source = f"{name} in {path}"
                    _check_size(source, member.size)
                    content = archive.extractfile(member)
                    assert content is not None  # it is None for what is no file
                    yield name, source, content.read()
            while plain.read(1 << 20):  # read to the end, where gzip compares the checksum
                pass
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UsageError(f"{path} is not a whole .tar.gz archive ({error}): get {URL} again") from error


def _check_size(source: str, size: int) -> None:
    if size != RECORDS * RECORD:
        raise UsageError(
            f"{source} has {size} bytes, not {RECORDS * RECORD} ({RECORDS} records of {RECORD}): it "
            f"is cut short or another set, get {URL} again"
        )


def _decode(source: str, raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Records -> uint8 images `[N, 32, 32, 3]` and int32 labels `[N]`."""
    _check_size(source, len(raw))
    records = np.frombuffer(raw, np.uint8).reshape(RECORDS, RECORD)
    labels = records[:, 0].astype(np.int32)
    if (bad := np.flatnonzero(labels > 9)).size:
        raise UsageError(
            f"{source}: record {bad[0]} has the label {labels[bad[0]]}, not one of 0..9 ({bad.size} "
            f"such records): the file is damaged or another set, get {URL} again"
        )
    # contiguous, because a batch gathers whole images
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels
