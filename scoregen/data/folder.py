"""A folder of pictures, prepared once as one memory-mapped array.

The prepared folder holds

    index.json        the options, the status of each file, and the name of the array
    pictures-KEY.npy  the pictures, uint8 [N, H, W, C], in falling order of their hashes, so that the held-out pictures
                      are the last ones for every `held_out`
    part.raw, .jsonl  while pictures are prepared: the new ones, from which a stopped preparation goes on
    lock              held while pictures are prepared

The array is complete before the index names it, so a process that is killed leaves the old index, or none. The index
has a checksum of the array, which is compared before the array is used.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import re
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scoregen import cache, files
from scoregen.data.dataset import Dataset, errors_of
from scoregen.data.pictures import CROPS, SUFFIXES, Reader, Wanted, answer, to_grey
from scoregen.data.sources import source
from scoregen.errors import UsageError, check_counts, check_numbers

VERSION = 1
SHOWN = 3  # files that a message names
BROKEN = 0.1  # the largest share of files that may be broken
ALONE = 16  # up to so many pictures are read without other processes
BAR = 500  # so many pictures have a progress bar
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}  # folders that are no classes


def _shape(size: int | tuple[int, ...], channels: int) -> tuple[int, int, int]:
    """The shape of a picture; colour, unless the options say grey: which it is depends on the files."""
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    return height, width, channels or 3


@source(shape=_shape, slow=True)
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
    return opened(dir, size, channels, crop, background, held_out, strict, prepared).dataset


@dataclasses.dataclass(frozen=True)
class Opened:
    """A folder of pictures that was read.

    Attributes:
        root: the folder.
        wanted: what each picture was made into.
        files: name -> what was found of a file, `why` if it could not be read, and its `row` in the array.
        names: the files that could be read, in the order of the rows.
        dataset: the data set.
    """

    root: Path
    wanted: Wanted
    files: dict[str, dict[str, Any]]
    names: list[str]
    dataset: Dataset


def opened(
    dir: str,
    size: int | tuple[int, ...],
    channels: int,
    crop: str,
    background: tuple[int, ...],
    held_out: float,
    strict: bool,
    prepared: str,
) -> Opened:
    """Read a folder of pictures; see `folder`."""
    height, width = _checked(size, channels, crop, background, held_out)
    colour = (*background, *background, *background)[:3] if len(background) == 1 else tuple(background)
    wanted = Wanted(height, width, crop, colour)  # pyright: ignore[reportArgumentType]
    if not dir:
        raise UsageError("no folder is named to read the pictures from: say dir=FOLDER")
    root = Path(dir).expanduser()
    found = find(root)
    options = _options(root, wanted, channels)
    place = Path(prepared).expanduser() if prepared else cache.folder("folder") / _key(options)
    index, pictures = prepare(root, found, wanted, options, place)
    _refuse_broken(root, index, strict)
    good = {name: entry for name, entry in index["files"].items() if entry["why"] is None}
    names = sorted(good, key=lambda name: good[name]["row"])
    if len(names) < 2:
        raise UsageError(f"{root} holds one picture: two or more are needed")
    labels, classes = _labels(root, names)
    cut = sum(_place(entry) >= held_out for entry in good.values())
    if not cut:
        raise UsageError(f"folder: held_out={held_out}: of {len(names)} pictures this leaves none to train on")
    train, test = pictures[:cut], pictures[cut:] if cut < len(names) else None
    of_train, of_test = (None, None) if labels is None else (labels[:cut], None if test is None else labels[cut:])
    notes = tuple(_notes(root, index, pictures, cut, wanted, labels, classes))
    dataset = Dataset("folder", train, test, of_train, of_test, notes=notes)
    return Opened(root, wanted, index["files"], names, dataset)


def _checked(size: Any, channels: Any, crop: Any, background: Any, held_out: Any) -> tuple[int, int]:
    sizes: tuple[Any, ...] = tuple(size) if isinstance(size, tuple | list) else (size,)
    with errors_of("folder"):
        check_counts("size", sizes)
        check_counts("background", background, 0)
        check_numbers(lambda share: 0 <= share < 1, "a number from 0 to below 1", held_out=held_out)
    if len(sizes) > 2:
        raise UsageError(f"folder: size={size}: one number is needed, or height and width")
    if channels not in (1, 3) or isinstance(channels, bool):
        with errors_of("folder"):
            check_numbers(lambda number: number == 0, "1, 3, or 0 to find out,", channels=channels)
    if crop not in CROPS:
        raise UsageError(f"folder: crop={crop!r}: one of {', '.join(CROPS)} is needed")
    if len(background) not in (1, 3) or max(background) > 255:
        raise UsageError(f"folder: background={background}: one or three numbers from 0 to 255 are needed")
    height, *more = map(int, sizes)
    return height, more[0] if more else height


@dataclasses.dataclass(frozen=True)
class Found:
    """The files of a folder.

    Attributes:
        pictures: name -> (bytes, time of the last change), for files with a suffix of a picture; (-1, 0) for a link
            to nowhere. A name is relative to the folder, with "/".
        others: suffix -> the number of other files.
    """

    pictures: dict[str, tuple[int, int]]
    others: dict[str, int]


def find(root: Path) -> Found:
    """The files below a folder, without hidden ones. Links are followed.

    Raises:
        UsageError: if there is no such folder, or no picture in it, or if one of its folders cannot be read.
    """
    if not root.is_dir():
        raise UsageError(
            f"{root}: {'it is a file, and a folder is needed' if root.exists() else 'there is no such folder'}"
        )
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
                stamp = (status.st_size, status.st_mtime_ns)
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


def _options(root: Path, wanted: Wanted, channels: int) -> dict[str, Any]:
    """All that the prepared pictures depend on beside the files, as it is read back from JSON."""
    options = {**dataclasses.asdict(wanted), "channels": channels, "folder": str(root.resolve()), "version": VERSION}
    return json.loads(json.dumps(options))


def _key(options: dict[str, Any]) -> str:
    """The name of the prepared folder in the cache."""
    return hashlib.blake2b(json.dumps(options).encode(), digest_size=8).hexdigest()


# Preparation


def prepare(
    root: Path, found: Found, wanted: Wanted, options: dict[str, Any], place: Path
) -> tuple[dict[str, Any], np.ndarray]:
    """The index and the array of the prepared pictures, which are made or refreshed first if they are not up to date.

    Raises:
        UsageError: if `place` cannot be written, holds other files, or belongs to another folder or to other options.
    """
    with contextlib.suppress(OSError):  # the array was removed meanwhile, by a refresh
        index = _index(place, options)
        if index is not None and _is_current(root, found, wanted, index):
            return index, np.load(place / index["array"], mmap_mode="r")
    files.make_folder(place, "prepared")
    with files.locked(place / "lock", wait=_say_once(f"another command prepares the pictures in {root}: waiting")):
        index = _index(place, options)
        if index is None or not _is_current(root, found, wanted, index):
            index = _refresh(root, found, wanted, place, options, index)
        return index, np.load(place / index["array"], mmap_mode="r")


def _say_once(line: str) -> Callable[[], None]:
    lines = [line]

    def say() -> None:
        if lines:
            print(lines.pop(), file=sys.stderr)

    return say


OURS = re.compile(
    r"lock|index\.json|part\.raw|part\.jsonl|\.?pictures-[0-9a-f]{16}(\.new)?\.npy|\.(index|part)\.new\..*"
)


def _index(place: Path, options: dict[str, Any]) -> dict[str, Any] | None:
    """The index of a prepared folder, if it is there and whole.

    Raises:
        UsageError: if the folder holds other files, or was made with other options.
    """
    others = [path.name for path in place.iterdir() if not OURS.fullmatch(path.name)] if place.is_dir() else []
    try:
        index = json.loads((place / "index.json").read_text(encoding="utf-8"))
        ours = {"options", "array", "checksum", "files"} <= set(index)
    except FileNotFoundError:
        index, ours = None, True
    except (ValueError, TypeError, UnicodeDecodeError):
        index, ours = None, not others
    if others or not ours:
        held = ", ".join(sorted(others)[:SHOWN]) or "an index.json of another program"
        raise UsageError(f"{place} holds {held}, so nothing is written there: say another prepared=FOLDER")
    if index is None:
        return None
    if index["options"] != options:
        raise UsageError(
            f"{place} holds pictures of {index['options'].get('folder')}, or made with other options: say another "
            "prepared=FOLDER"
        )
    return index if files.crc32(place / index["array"]) == index["checksum"] else None


def _is_current(root: Path, found: Found, wanted: Wanted, index: dict[str, Any]) -> bool:
    """Whether an index is up to date. Files that could not be read are tried again."""
    entries = index["files"]
    if entries.keys() != found.pictures.keys():
        return False
    broken = [name for name, entry in entries.items() if entry["why"] is not None]
    same = all(tuple(entry["stamp"]) == found.pictures[name] for name, entry in entries.items() if entry["why"] is None)
    return same and all("why" in answer(str(root / name), wanted) for name in broken)


def _refresh(
    root: Path,
    found: Found,
    wanted: Wanted,
    place: Path,
    options: dict[str, Any],
    index: dict[str, Any] | None,
) -> dict[str, Any]:
    """Read the new files, and write the array and the index again."""
    known = {} if index is None else index["files"]
    old = None if index is None else np.load(place / index["array"], mmap_mode="r")
    with _writing(place), _Part(place, options, (wanted.height, wanted.width, 3)) as part:
        both = [*part.entries.items(), *known.items()]
        same = {name: entry for name, entry in both if _is(entry, found, name)}
        _read_all(root, [name for name in found.pictures if name not in same], found, wanted, part)
        entries = {name: dict(same.get(name) or part.entries[name]) for name in sorted(found.pictures)}
        good = sorted((entry for entry in entries.values() if entry["why"] is None), key=_place, reverse=True)
        grey = options["channels"] == 1 or (options["channels"] == 0 and all(entry["grey"] for entry in good))

        def pixels(entry: dict[str, Any]) -> np.ndarray:
            rgb = part.picture(entry) if old is None or entry["row"] is None else old[entry["row"]]
            if grey:
                return to_grey(rgb) if rgb.shape[-1] == 3 else rgb
            return np.broadcast_to(rgb, (wanted.height, wanted.width, 3))

        name = _write_array(place, map(pixels, good), [entry["crc"] for entry in good], (wanted, grey))
        for row, entry in enumerate(good):
            entry["row"] = row
        checksum = files.crc32(place / name)
        made = {"options": options, "array": name, "checksum": checksum, "files": entries}
        with files.whole(place / "index.json") as fresh:
            fresh.write_text(json.dumps(made), encoding="utf-8")
    for path in place.iterdir():  # also what a process that was killed has left
        if OURS.fullmatch(path.name) and path.name not in ("lock", "index.json", name):
            path.unlink(missing_ok=True)
    return made


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Within it, an error of the file system is one about `place`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot write {place}: {reason}; make room there, or say another prepared=FOLDER") from None


def _is(entry: dict[str, Any], found: Found, name: str) -> bool:
    """Whether an entry is of the present version of a file, which could be read."""
    return entry["why"] is None and tuple(entry["stamp"]) == found.pictures.get(name)


class _Part:
    """The new pictures of a preparation: their rows in part.raw, and a line each in part.jsonl.

    A row is written before its line, and a line has the checksum of the row. After a kill, the lines up to the first
    one that is cut or has a wrong checksum are kept.
    """

    def __init__(self, place: Path, options: dict[str, Any], shape: tuple[int, int, int]):
        self.raw, self.lines = place / "part.raw", place / "part.jsonl"
        self.options, self.shape, self.bytes = options, shape, int(np.prod(shape))
        self.entries: dict[str, dict[str, Any]] = {}
        self._count = 0

    def __enter__(self) -> _Part:
        self._rows = self.raw.open("r+b" if self.raw.exists() else "w+b")
        text = self.lines.read_text(encoding="utf-8") if self.lines.exists() else ""
        kept = [json.dumps(self.options)]
        for line in text.splitlines()[1:] if text.startswith(kept[0] + "\n") else []:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if zlib.crc32(self._row(entry["at"])) != entry["crc"]:
                break
            self._count = entry["at"] + 1
            self.entries[entry["name"]] = entry
            kept.append(line)
        with files.whole(self.lines) as fresh:
            fresh.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._log = self.lines.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        self._log.close()

    def add(self, name: str, stamp: tuple[int, int], answer: dict[str, Any]) -> None:
        """Store what was found of a file; see `pictures.answer`. A file that cannot be read will be tried again."""
        if "why" in answer:
            self.entries[name] = {"name": name, "stamp": stamp, "why": answer["why"]}
            return
        pixels = answer.pop("pixels")
        self._rows.seek(self._count * self.bytes)
        self._rows.write(pixels)
        self._rows.flush()
        entry = {"name": name, "stamp": stamp, "why": None, "row": None, **answer}
        entry |= {"at": self._count, "crc": zlib.crc32(pixels)}
        self._count += 1
        self._log.write(json.dumps(entry) + "\n")
        self._log.flush()
        self.entries[name] = entry

    def picture(self, entry: dict[str, Any]) -> np.ndarray:
        """The pixels of a finished picture."""
        return np.frombuffer(self._row(entry["at"]), np.uint8).reshape(self.shape)

    def _row(self, at: int) -> bytes:
        self._rows.seek(at * self.bytes)
        return self._rows.read(self.bytes)


def _read_all(root: Path, missing: list[str], found: Found, wanted: Wanted, part: _Part) -> None:
    """Read these pictures, and store them in `part`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = 1 if len(missing) <= ALONE else min(cores, 16)
    with _bar(len(missing)) as advance, Reader(wanted, workers) as reader:
        names = {str(root / name): name for name in missing}
        for path, read in reader(names):
            part.add(names[path], found.pictures[names[path]], read)
            advance()


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar, for more than a few pictures."""
    if total < BAR:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = "preparing pictures", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def _place(entry: dict[str, Any]) -> float:
    """A number in [0, 1) from the hash of a picture: below `held_out`, the picture is held out."""
    return int(entry["key"][:13], 16) / 16**13


def _write_array(place: Path, rows: Iterable[np.ndarray], checksums: list[int], made: tuple[Wanted, bool]) -> str:
    """Write the array of these pictures, and return its name."""
    wanted, grey = made
    digest = hashlib.blake2b(json.dumps([grey, checksums]).encode(), digest_size=8).hexdigest()
    shape = (len(checksums), wanted.height, wanted.width, 1 if grey else 3)
    with files.whole(place / f"pictures-{digest}.npy") as fresh, fresh.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for row in rows:
            file.write(np.ascontiguousarray(row).data)
        file.flush()
        os.fsync(file.fileno())
    return f"pictures-{digest}.npy"


# The data set


def _broken(index: dict[str, Any]) -> list[str]:
    """The files that cannot be read, each with the reason."""
    return [f"{name} ({entry['why']})" for name, entry in index["files"].items() if entry["why"] is not None]


def _refuse_broken(root: Path, index: dict[str, Any], strict: bool) -> None:
    broken, count = _broken(index), len(index["files"])
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
    index: dict[str, Any],
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
    entries = index["files"].values()
    done = collections.Counter(note for entry in entries if entry["why"] is None for note in entry["notes"])
    shades = ", ".join(map(str, wanted.background))
    words = {
        "turned": "turned upright",
        "transparent": f"transparent, laid over ({shades})",
        "enlarged": f"smaller than {height}x{width}, enlarged",
        "first frame": "animated or of several pages, first one taken",
        "dark": "of 16 or more bits, but with values in the lowest eighth of the range: nearly black",
    }
    if said := [f"{done[note]:,} {text}" for note, text in words.items() if done[note]]:
        yield "; ".join(said)
    keys = collections.Counter(entry["key"] for entry in entries if entry["why"] is None)
    if equal := sum(number - 1 for number in keys.values()):
        yield f"{equal:,} {'picture is' if equal == 1 else 'pictures are'} equal to another one"
    if broken := _broken(index):
        left = "1 file cannot be read and is" if len(broken) == 1 else f"{len(broken):,} files cannot be read and are"
        yield f"{left} left out: {_some(broken)}"
    if not cut < count:
        yield "no picture is held out, so there is no held-out loss: add pictures, or raise held_out"
    if labels is not None:
        sizes = np.bincount(labels, minlength=len(classes))
        named = [f"{i} = {_shown(name)} ({size:,})" for i, (name, size) in enumerate(zip(classes, sizes, strict=True))]
        more = f" and {len(named) - 20} more" if len(named) > 20 else ""
        yield f"{len(classes)} classes: {', '.join(named[:20])}{more}"
        if absent := [name for i, name in enumerate(classes) if i not in labels[:cut]]:
            yield f"no picture to train on of {_some(absent)}: with few pictures of a class, all may be held out"
