"""A folder of pictures as a data set."""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scoregen.data.dataset import NO_LABEL, Dataset, errors_of
from scoregen.data.pictures import CROPS, SUFFIXES, Wanted
from scoregen.data.prepared import SHOWN, Index, Stamp, Store, Table
from scoregen.data.sources import source
from scoregen.data.units import Form
from scoregen.errors import UsageError, check_counts, check_numbers

BROKEN = 0.1  # the largest share of files that may be broken
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}  # folders that are no classes


def shape_wanted(size: int | tuple[int, ...], channels: int) -> tuple[int, int, int]:
    """The shape of a picture; colour, unless the options say grey: which it is depends on the files."""
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    return height, width, channels or 3


@source(shape=shape_wanted, slow=True)
def folder(
    dir: str,
    size: int | tuple[int, ...] = (64,),
    channels: int = 0,
    crop: str = "center",
    background: tuple[int, ...] = (255,),
    held_out: float = 0.1,
    strict: bool = False,
    prepared: str = "",
) -> Dataset:
    """The pictures in a folder and its subfolders, as uint8 `[N, H, W, C]`.

    Files are found by their suffix: PNG, JPEG, WebP, BMP, TIFF and GIF. Of an animation the first frame is taken.
    Hidden files and folders, and `__MACOSX`, are left out. A picture is turned upright (EXIF), laid over the background
    if it is transparent, cut to the aspect ratio of `size`, and resized with antialiasing. Values of 16 bits are scaled
    to 8.

    Labels come from a file `labels.csv` with the columns file and label, or else from the names of the subfolders, if
    every picture is in one of two or more. Classes are numbered in the order of their names.

    Held-out pictures are chosen by a hash of their pixels: a picture stays on its side when others are added, and files
    with the same pixels are on the same side.

    The first call prepares the pictures in the folder `prepared`, with a progress bar; later calls read the result as a
    memory-mapped array. New, changed and removed files are noticed by their name, size and time. The folders of runs
    are left out.

    Args:
        dir: the folder.
        size: height and width in pixels, or one number for both.
        channels: 1 for grey, 3 for colour, 0 for grey if all pictures are grey.
        crop: "center" or "random", or "none" to stretch a picture instead; see `scoregen.data.pictures.Wanted`.
        background: grey, or red, green and blue, 0 to 255, behind transparent pixels.
        held_out: the share of the pictures to test on.
        strict: refuse a folder with a file that cannot be read. By default such a file is left out and named, unless
            it is more than one in ten.
        prepared: where to store the prepared pictures; "" is a folder of the cache.

    Raises:
        UsageError: for an option out of range; if there are no pictures, too many that cannot be read, or fewer than
            two that can; for labels that do not fit; and if `prepared` cannot be written or holds other files.

    >>> folder("no/such/folder")
    Traceback (most recent call last):
    scoregen.errors.UsageError: no/such/folder: there is no such folder
    """
    return Options(**locals()).opened().dataset  # the parameters, and nothing else yet


@dataclasses.dataclass(frozen=True)
class Opened:
    """A folder of pictures that was read.

    Attributes:
        root: the folder.
        wanted: what each picture was made into.
        table: what was found of each picture that could be read, in the order of the data.
        dataset: the data set.
    """

    root: Path
    wanted: Wanted
    table: Table
    dataset: Dataset


@dataclasses.dataclass(frozen=True)
class Options:
    """The parameters of `folder`, which explains them, with their checks."""

    dir: str
    size: int | tuple[int, ...]
    channels: int
    crop: str
    background: tuple[int, ...]
    held_out: float
    strict: bool
    prepared: str

    def __post_init__(self) -> None:
        self.wanted  # noqa: B018 - checks the options
        with errors_of("folder"):
            check_numbers(lambda share: 0 <= share < 1, "a number from 0 to below 1", held_out=self.held_out)
        if not self.dir:
            raise UsageError("no folder is named to read the pictures from: say dir=FOLDER")

    @property
    def wanted(self) -> Wanted:
        """What each picture is made into."""
        return as_wanted("folder", self.size, self.channels, self.crop, self.background)

    def opened(self) -> Opened:
        """Read the folder; see `folder`."""
        root, wanted = Path(self.dir).expanduser(), self.wanted
        index, pictures = Store(root, wanted, self.channels, self.prepared).opened(find(root).pictures)
        _refuse_broken(root, index, self.strict)
        table = index.table
        if len(table) < 2:
            raise UsageError(f"{root} holds one picture: two or more are needed")
        labels, classes = _labels(root, table.names)
        cut = int((table.places() >= self.held_out).sum())
        if not cut:
            raise UsageError(f"folder: held_out={self.held_out}: of {len(table)} pictures this leaves none to train on")
        train, test = pictures[:cut], pictures[cut:] if cut < len(table) else None
        of_train, of_test = (None, None) if labels is None else (labels[:cut], None if test is None else labels[cut:])
        notes = tuple(_notes(root, index, pictures, cut, wanted, labels, classes))
        dataset = Dataset(
            "folder", train, test, of_train, of_test, notes=notes, classes=tuple(classes) or None, form=Form(".png")
        )
        return Opened(root, wanted, table, dataset)


def as_wanted(name: str, size: Any, channels: Any, crop: Any, background: Any) -> Wanted:
    """What pictures are made into, by the options of a source of this name; see `folder`.

    Raises:
        UsageError: for an option out of range.
    """
    sizes: tuple[Any, ...] = tuple(size) if isinstance(size, tuple | list) else (size,)
    with errors_of(name):
        check_counts("size", sizes)
        check_counts("background", background, 0)
    if len(sizes) > 2:
        raise UsageError(f"{name}: size={size}: one number is needed, or height and width")
    if channels not in (1, 3) or isinstance(channels, bool):
        with errors_of(name):
            check_numbers(lambda number: number == 0, "1, 3, or 0 to find out,", channels=channels)
    if crop not in CROPS:
        raise UsageError(f"{name}: crop={crop!r}: one of {', '.join(CROPS)} is needed")
    if len(background) not in (1, 3) or max(background) > 255:
        raise UsageError(f"{name}: background={background}: one or three numbers from 0 to 255 are needed")
    height, *more = map(int, sizes)
    red, green, blue = background if len(background) == 3 else 3 * tuple(background)
    return Wanted(height, more[0] if more else height, crop, (red, green, blue))


@dataclasses.dataclass(frozen=True)
class Found:
    """The files of a folder.

    Attributes:
        pictures: name -> (bytes, time of the last change), for files with a suffix of a picture; (-1, 0) for a link
            to nowhere. A name is relative to the folder, with "/".
        others: suffix -> the number of other files.
    """

    pictures: dict[str, Stamp]
    others: dict[str, int]


def find(root: Path) -> Found:
    """The files below a folder, without hidden ones. Links are followed.

    Raises:
        UsageError: if there is no such folder, or no picture in it, or if one of its folders cannot be read.
    """
    if not root.is_dir():
        what = "it is a file, and a folder is needed" if root.exists() else "there is no such folder"
        if root.is_file() and root.suffix.lower() in SUFFIXES:
            what = f"it is one picture: name its folder, {root.parent}"
        raise UsageError(f"{root}: {what}")
    pictures, others = {}, collections.Counter()
    seen = set()
    for folder, inside, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:  # a link to a folder that is read already
            inside.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        if "checkpoints" in inside and {"config.json", "model.json"} & set(names):  # a run, with pictures of samples
            inside.clear()
            continue
        inside[:] = sorted(name for name in inside if not _hidden(name))
        for name in names:
            path = Path(folder, name)
            if _hidden(name):
                continue
            if path.suffix.lower() not in SUFFIXES:
                others[path.suffix.lower() or "no suffix"] += 1
                continue
            stamp = (-1, 0)
            with contextlib.suppress(OSError):
                status = path.stat()
                stamp = (status.st_size, status.st_mtime_ns & (2**63 - 1))  # 64 bits, whatever the year
            pictures[path.relative_to(root).as_posix()] = stamp
    if not pictures:
        held = ", ".join(f"{count} of {suffix}" for suffix, count in others.most_common(SHOWN)) or "no files at all"
        convert = "; convert them to PNG or JPEG" if others else ""
        raise UsageError(f"no pictures in {root}: it holds {held}{convert}")
    return Found(pictures, dict(others))


def _refuse_folder(error: OSError) -> None:
    raise UsageError(f"{error.filename}: {error.strerror}: make the folder readable, or hide it with a dot")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _broken(index: Index) -> list[str]:
    """The files that cannot be read, each with the reason."""
    return [f"{name} ({why})" for name, why in index.broken.items()]


def _refuse_broken(root: Path, index: Index, strict: bool) -> None:
    broken, count = _broken(index), len(index.table) + len(index.broken)
    if broken and (strict or len(broken) > BROKEN * count):
        what = f"{len(broken)} of {count} pictures in {root} cannot be read"
        raise UsageError(f"{what}: {_some(broken)}: repair or remove them")


def _labels(root: Path, names: list[str]) -> tuple[np.ndarray | None, list[str]]:
    """The class of each picture, int32 `[N]`, and the names of the classes; None and [] without classes.

    Raises:
        UsageError: if labels.csv does not fit, or if the folders are called train and test.
    """
    table = root / "labels.csv"
    if table.is_file():
        given = _read_labels(table)
        of = [given.get(unicodedata.normalize("NFC", name), "") for name in names]
        if absent := [name for name, label in zip(names, of, strict=True) if not label]:
            raise UsageError(f"{table} has no label for {_some(absent)}: give each picture one")
    else:
        of = [name.partition("/")[0] if "/" in name else "" for name in names]
        if "" in of:
            return None, []
        if len(set(of)) > 1 and {label.lower() for label in of} <= SPLITS:
            folders = " and ".join(sorted(set(of)))
            raise UsageError(
                f"{root} holds the folders {folders}, which are no classes: say dir=FOLDER with one of them"
            )
    numbers = all(re.fullmatch(r"-?\d+", label, re.ASCII) for label in of)
    classes = sorted(set(of), key=(lambda label: (int(label), label)) if numbers else None)
    if len(classes) < 2:
        return None, []
    order = {label: i for i, label in enumerate(classes)}
    return np.array([order[label] for label in of], np.int32), classes


def _read_labels(table: Path) -> dict[str, str]:
    """Name -> label, from a file with a line "file,label" for each picture; a first line of these words is a header."""
    named: dict[str, str] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for row in reader:
                cells = [cell.strip() for cell in row]
                if not any(cells) or (not named and [cell.lower() for cell in cells] == ["file", "label"]):
                    continue
                if len(cells) != 2 or not all(cells):
                    raise UsageError(f"{table}, line {reader.line_num}: {','.join(row)!r}: file,label is needed")
                if cells[1] in NO_LABEL:
                    raise UsageError(
                        f"{table}, line {reader.line_num}: the label is {cells[1]}: name a class, or remove the "
                        "picture from the folder"
                    )
                name = unicodedata.normalize("NFC", cells[0].replace("\\", "/").removeprefix("./"))
                if named.setdefault(name, cells[1]) != cells[1]:
                    raise UsageError(f"{table}, line {reader.line_num}: {name} has the label {named[name]!r} already")
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{table} cannot be read as CSV ({error}): write it with the columns file and label") from None
    return named


def _some(texts: list[str]) -> str:
    """The first of some texts, and how many there are."""
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(map(_shown, texts[:SHOWN])) + more


def _shown(name: str) -> str:
    """A name that can be printed; names of files may be no Unicode."""
    return name.encode("utf-8", "backslashreplace").decode()


def _notes(
    root: Path,
    index: Index,
    pictures: np.ndarray,
    cut: int,
    wanted: Wanted,
    labels: np.ndarray | None,
    classes: list[str],
) -> Iterator[str]:
    """What was read, a line each."""
    count, height, width, channels = pictures.shape
    kind = "grey" if channels == 1 else "colour"
    yield f"{count:,} pictures in {root}, as {height}x{width} in {kind}: {cut:,} to train on, {count - cut:,} held out"
    done = collections.Counter()
    for known, number in index.table.counts():
        done.update(dict.fromkeys(known.notes, number))
    if said := what_was_done(done, wanted):
        yield said
    if equal := count - len(np.unique(index.table.rows["key"].view("V16"))):
        yield f"{equal:,} {'picture is' if equal == 1 else 'pictures are'} equal to another one"
    if broken := _broken(index):
        left = "1 file cannot be read and is" if len(broken) == 1 else f"{len(broken):,} files cannot be read and are"
        yield f"{left} left out: {_some(broken)}"
    if not cut < count:
        yield "no picture is held out, so there is no held-out loss: add pictures, or raise held_out"
    if labels is not None:
        yield name_classes(labels, classes)
        if absent := [name for i, name in enumerate(classes) if i not in labels[:cut]]:
            yield f"no picture to train on of {_some(absent)}: with few pictures of a class, all may be held out"


def what_was_done(done: collections.Counter[str], wanted: Wanted) -> str:
    """How many pictures were changed, by the `notes` of `pictures.Picture`; "" if none was."""
    shades = ", ".join(map(str, wanted.background))
    words = {
        "turned": "turned upright",
        "transparent": f"transparent, laid over ({shades})",
        "enlarged": f"smaller than {wanted.height}x{wanted.width}, enlarged",
        "first frame": "animated or of several pages, first one taken",
        "deep": "of 16 or more bits, scaled to 8",
        "dark": "of 16 or more bits, but with values in the lowest eighth of the range: nearly black (values of 12 "
        "bits should be saved 16 times as large)",
    }
    return "; ".join(f"{done[note]:,} {text}" for note, text in words.items() if done[note])


def name_classes(labels: np.ndarray, classes: list[str]) -> str:
    """The classes, by name and with the number of their examples."""
    sizes = np.bincount(labels, minlength=len(classes))
    named = [f"{i} = {_shown(name)} ({size:,})" for i, (name, size) in enumerate(zip(classes, sizes, strict=True))]
    more = f" and {len(named) - 20} more" if len(named) > 20 else ""
    return f"{len(classes)} classes: {', '.join(named[:20])}{more}"
