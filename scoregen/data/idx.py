"""IDX files, the format of MNIST and its relatives.

An IDX file has two bytes 0, a byte for the type, a byte for the number of axes, the length of each axis in 4 bytes, and
then the numbers row by row; the first byte of a number is its highest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from scoregen.data.arrays import read_exactly
from scoregen.data.dataset import Dataset, errors_of, hold_out
from scoregen.data.sources import source
from scoregen.errors import UsageError, check_count, check_numbers
from scoregen.random import check_seed

TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
MOST_AXES = 32


class Head(NamedTuple):
    """What an IDX file says before its numbers."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The bytes of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


@contextlib.contextmanager
def unpacked(path: Path, remedy: str) -> Iterator[IO[bytes]]:
    """The content of a file, which may be compressed as .gz. Errors in reading are a UsageError with the remedy."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            yield file  # pyright: ignore[reportReturnType]
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read to its end ({error}): {remedy}") from error


def read_head(file: IO[bytes], what: str) -> Head:
    """The header of an IDX file. Raises UsageError if it has none."""
    start = file.read(4)
    axes = file.read(4 * start[3]) if len(start) == 4 and start[:2] == b"\0\0" else b""
    if not axes or len(axes) < 4 * start[3] or start[2] not in TYPES or start[3] > MOST_AXES:
        raise UsageError(
            f"{what} is no IDX file, such as those of MNIST: it begins with {(start + axes)[:16].hex(' ')}"
        )
    return Head(np.dtype(TYPES[start[2]]), tuple(map(int, np.frombuffer(axes, ">u4"))))


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, plain or compressed as .gz.

    A plain file is memory-mapped, if it holds bytes. The header is compared with the size of the file before the
    numbers are read, and no more is unpacked than the header says.

    Raises:
        UsageError: for another file, and for one that is cut short, damaged, or longer than its header says.
    """
    remedy = "get it again"
    with unpacked(path, remedy) as file:
        head, size = read_head(file, str(path)), path.stat().st_size
        if 0 in head.shape:
            raise UsageError(f"{path} is empty (shape {head.shape}): give a file with examples")
        offset = 4 + 4 * len(head.shape)
        if path.suffix == ".gz":
            raw = read_exactly(file, str(path), head.bytes, remedy)
            return np.frombuffer(raw, head.dtype).reshape(head.shape)
        if size != offset + head.bytes:
            raise UsageError(f"{path} has {size} bytes, and by its header {offset + head.bytes}: {remedy}")
        return np.memmap(path, head.dtype, "r", offset, head.shape)


def decode(raw: bytes, what: str) -> np.ndarray:
    """The array in the content of an IDX file; see `read_idx`.

    >>> decode(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9]), "three").tolist()
    [[7, 8, 9]]
    """
    file = io.BytesIO(raw)
    head = read_head(file, what)
    return np.frombuffer(read_exactly(file, what, head.bytes, "get it again"), head.dtype).reshape(head.shape)


# The source

IMAGES = re.compile(r"(?P<name>.*)images(?P<end>.*idx)[34].*", re.IGNORECASE)
LABELS = re.compile(r"(?P<name>.*)labels(?P<end>.*idx)1.*", re.IGNORECASE)
PART = re.compile(r"(?:^|[-_. ])(train|t10k|test)[-_. ]*$", re.IGNORECASE)


class Pair(NamedTuple):
    """A file of examples and the file of their labels, if there is one."""

    examples: Path
    labels: Path | None


def _shape(dir: str, split: str, size: int, transposed: str) -> tuple[int, ...]:
    """The shape of an example, by the header of the file."""
    path = _pairs(dir, split)[0].examples
    with unpacked(path, "get it again") as file:
        head = read_head(file, str(path))
    if not _is_images(head):
        return head.shape[1:]
    _, *sides = head.shape
    if _is_turned(path, transposed):
        sides[:2] = sides[1::-1]
    return (size or sides[0], size or sides[1], *(sides[2:] or (1,)))


@source(shape=_shape)
def idx(
    *, dir: str, split: str = "", size: int = 0, transposed: str = "auto", held_out: float = 0.1, seed: int = 0
) -> Dataset:
    """IDX files: MNIST, KMNIST, EMNIST, Fashion-MNIST, or any others.

    Bytes of shape [N, H, W] or [N, H, W, C] are images. float32 and float64 of shape [N, ...] are examples as they
    are, held as float32. Labels are int32; if they count from 1, as in EMNIST's letters, 1 is subtracted.

    In a folder, files with names such as train-images-idx3-ubyte are trained on, and those with t10k or test in place
    of train are held out. Their labels are in files such as train-labels-idx1-ubyte. Each may be compressed as .gz. If
    there is no file to test on, a part of the examples is held out.

    Args:
        dir: the folder, or a single file without labels.
        split: which data set, if the folder holds several, such as "letters" for files whose names begin with
            emnist-letters.
        size: height and width, made with a border of zeros; 0 keeps the size of the images.
        transposed: "yes" if the files hold the columns of each image as rows, "no" if not; "auto" is "yes" for files
            whose names begin with emnist.
        held_out: the share of the examples to test on, if there is no file to test on.
        seed: the seed that chooses them.

    Raises:
        UsageError: for an option out of range; if there are no files, or several data sets; for a file that is damaged,
            cut short or longer than its header says; for integers that are no images; and for labels that do not fit.

    >>> idx(dir=__file__)
    Traceback (most recent call last):
    scoregen.errors.UsageError: ...idx.py is no IDX file, such as those of MNIST: it begins with 22 22 22 49
    """
    with errors_of("idx"):
        check_count("size", size, 0)
        check_numbers(lambda share: 0 < share < 1, "a number between 0 and 1", held_out=held_out)
        check_seed(seed)
        if transposed not in ("auto", "yes", "no"):
            raise ValueError(f"transposed={transposed!r}: auto, yes or no is needed")
    train, test = _pairs(dir, split)
    examples = _examples(train, size, transposed)
    others = None if test is None else _examples(test, size, transposed)
    labels = _labels(train, len(examples))
    of_others = None if test is None or others is None else _labels(test, len(others))
    notes = []
    if labels is None:
        notes.append(f"{train.examples} has no file of labels")
    if _is_images(examples) and _is_turned(train.examples, transposed):
        notes.append("the images are transposed in the files, as in EMNIST, and are turned upright")
    if min((of.min() for of in (labels, of_others) if of is not None), default=0) == 1:
        notes.append("the labels count from 1 in the files: 1 is subtracted")
        labels, of_others = (None if of is None else of - 1 for of in (labels, of_others))
    if others is None:
        data = hold_out("idx", examples, held_out, seed, labels)
        return dataclasses.replace(data, notes=tuple(notes))
    return Dataset("idx", examples, others, labels, of_others, notes=tuple(notes))


def _pairs(dir: str, split: str) -> tuple[Pair, Pair | None]:
    """The files to train on, and those to test on if there are some."""
    if not dir:
        raise UsageError("no folder is named to read the IDX files from: say dir=FOLDER")
    folder = Path(dir).expanduser()
    if folder.is_file():
        if split:
            raise UsageError(
                f"idx: split={split!r}: {folder} is a single file; give its folder, or leave out the split"
            )
        return Pair(folder, None), None
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder")
    images, labels = _matching(folder, IMAGES), _matching(folder, LABELS)
    if not images:
        raise UsageError(f"{folder} holds no IDX file of images: give the folder of files as train-images-idx3-ubyte")
    chosen = _chosen(folder, sorted({_set(name) for name, _ in images}), split)
    parts: dict[bool, Pair] = {}
    for key in (key for key in {**images, **labels} if _set(key[0]) == chosen):
        if key not in images:
            raise UsageError(f"{labels[key]} has no file of images: get it too, or remove the labels")
        part = PART.search(key[0])
        is_test = part is not None and part[1].lower() != "train"
        if is_test in parts:
            raise UsageError(f"{parts[is_test].examples} and {images[key]} are the same part: remove one of them")
        parts[is_test] = Pair(images[key], labels.get(key))
    if False not in parts:
        raise UsageError(f"{parts[True].examples} is to test on, and there is no file to train on: get it too")
    train, test = parts[False], parts.get(True)
    if test is not None and (train.labels is None) != (test.labels is None):
        lacking = train if train.labels is None else test
        raise UsageError(f"{lacking.examples} has no file of labels, and the other part has one: get it too")
    return train, test


def _matching(folder: Path, pattern: re.Pattern[str]) -> dict[tuple[str, str], Path]:
    """What is the same in the names of images and of their labels -> file. A plain file comes before one in .gz."""
    found = {}
    try:
        for path in sorted(folder.iterdir(), key=lambda path: (path.suffix == ".gz", path.name)):
            if (match := pattern.fullmatch(path.name)) and path.is_file():
                key, stem = (match["name"].lower(), match["end"].lower()), path.name.removesuffix(".gz")
                other = found.setdefault(key, path)
                if other.name.removesuffix(".gz") != stem:
                    raise UsageError(f"{other} and {path} are the same part: remove one of them")
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}: make it readable, or give another folder") from None
    return found


def _set(name: str) -> str:
    """The data set of a file, from its name up to "images": "emnist-letters" of "emnist-letters-train-"."""
    return PART.sub("", name).strip("-_. ")


def _chosen(folder: Path, sets: list[str], split: str) -> str:
    """The data set of this folder that `split` names."""
    names = {name: name.removeprefix("emnist-") for name in sets}
    if not split and len(sets) == 1:
        return sets[0]
    if fits := [name for name in sets if split and split.lower() in (name, names[name])]:
        return fits[0]
    listed = ", ".join(name for name in names.values() if name) or "one data set without a name"
    if split:
        raise UsageError(f"idx: split={split!r}: {folder} holds {listed}: choose one of these, or leave out the split")
    apart = "" if all(sets) else ", or move the files without such a name into another folder"
    raise UsageError(f"{folder} holds several data sets: say split=NAME with one of {listed}{apart}")


def _is_images(x: Head | np.ndarray) -> bool:
    return x.dtype == np.uint8 and len(x.shape) in (3, 4)


def _is_turned(path: Path, transposed: str) -> bool:
    return transposed == "yes" or (transposed == "auto" and path.name.lower().startswith("emnist"))


def _examples(pair: Pair, size: int, transposed: str) -> np.ndarray:
    """The images of a file, uint8 `[N, H, W, C]`, or its floating-point numbers."""
    path, x = pair.examples, read_idx(pair.examples)
    if not _is_images(x):
        if x.dtype.kind != "f":
            raise UsageError(
                f"{path} holds {_dtype(x)} of shape {x.shape}, and images are bytes [N, H, W]: scale "
                "the numbers to a standard deviation of about 1, as float32, and write them with np.save"
            )
        if size or transposed == "yes":
            raise UsageError(f"{path} holds {_dtype(x)}, and only images have a size and are turned: leave that out")
        return x.astype(x.dtype.newbyteorder("="))
    if x.ndim == 3:
        x = x[..., None]
    if _is_turned(path, transposed):
        x = np.ascontiguousarray(x.swapaxes(1, 2))
    if not size:
        return x
    _, height, width, _ = x.shape
    if max(height, width) > size:
        raise UsageError(f"idx: size={size}: the images are {height}x{width}, and a border only makes them larger")
    border = [((size - side) // 2, (size - side + 1) // 2) for side in (height, width)]
    return np.pad(x, ((0, 0), *border, (0, 0)))


def _labels(pair: Pair, count: int) -> np.ndarray | None:
    """int32 `[count]`."""
    if pair.labels is None:
        return None
    labels = read_idx(pair.labels)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise UsageError(
            f"{pair.labels} holds {_dtype(labels)} of shape {labels.shape} for the {count} examples in "
            f"{pair.examples}: an integer is needed for each"
        )
    return labels.astype(np.int32)


def _dtype(x: np.ndarray) -> np.dtype:
    """The type of the numbers, as a message names it."""
    return x.dtype.newbyteorder("=")
