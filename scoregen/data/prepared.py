"""Pictures, prepared once as one memory-mapped array in a folder.

The prepared folder holds

    index.npz         the options, what was found of each file, and the name of the array
    pictures-KEY.npy  the pictures, uint8 [N, H, W, C], in falling order of their hashes, so that the held-out pictures
                      are the last ones for every `held_out`
    part.raw, .jsonl  while pictures are prepared: the new ones, from which a stopped preparation goes on
    lock              held while pictures are prepared

The array is complete before the index names it, so a process that is killed leaves the old index, or none. The index
has a checksum of the array, which is compared before the array is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scoregen import cache, files
from scoregen.data.mapped import release, rows_at_a_time
from scoregen.data.pictures import Reader, Wanted, answer, to_grey
from scoregen.errors import UsageError

VERSION = 2
SHOWN = 3  # files that a message names
ALONE = 16  # up to so many pictures are read without other processes
BAR = 500  # so many pictures have a progress bar

Stamp = tuple[int, int]  # of a file: its bytes, and the time of its last change


class Kind(NamedTuple):
    """What many pictures have in common; see `pictures.Picture`."""

    format: str
    mode: str
    grey: bool
    notes: tuple[str, ...]


class Table:
    """What was found of each picture: a row for each, in the order of an array of pictures.

    The numbers are kept in one NumPy array and each `Kind` once, since there may be hundreds of thousands of pictures.

    Attributes:
        names: the files.
        kinds: the kinds of pictures.
        rows: `stamp` of the file; `key`, the bytes of the hash of the picture; `crc` of its pixels as prepared, in
            colour; `size`, height and width of the whole picture; `kind`, its place in `kinds`.

    >>> table = Table()
    >>> for name in ("a.png", "b.png"):
    ...     table.add(
    ...         name,
    ...         (90, 7),
    ...         0,
    ...         {"key": "0f" * 16, "size": (6, 8), "format": "PNG", "mode": "L", "grey": True, "notes": ()},
    ...     )
    >>> len(table), table.kinds, table.rows["size"].tolist()
    (2, [Kind(format='PNG', mode='L', grey=True, notes=())], [[6, 8], [6, 8]])
    """

    ROW = np.dtype([("stamp", "<i8", 2), ("key", "u1", 16), ("crc", "<u4"), ("size", "<i4", 2), ("kind", "<i4")])

    def __init__(
        self, names: list[str] | None = None, rows: np.ndarray | None = None, kinds: list[Kind] | None = None
    ) -> None:
        self.names, self.kinds = names or [], kinds or []
        self._rows = np.zeros(0, self.ROW) if rows is None else rows
        self._kind = {kind: i for i, kind in enumerate(self.kinds)}

    def __len__(self) -> int:
        return len(self.names)

    @property
    def rows(self) -> np.ndarray:
        return self._rows[: len(self.names)]

    def add(self, name: str, stamp: Stamp, crc: int, found: Mapping[str, Any]) -> None:
        """Add a row for a picture; `found` is as from `pictures.answer`, also read back from JSON."""
        at, kind = len(self.names), Kind(found["format"], found["mode"], found["grey"], tuple(found["notes"]))
        if at == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros(max(64, at // 2), self.ROW)])
        if kind not in self._kind:
            self._kind[kind] = len(self.kinds)
            self.kinds.append(kind)
        key = np.frombuffer(bytes.fromhex(found["key"]), np.uint8)
        self._rows[at] = stamp, key, crc, found["size"], self._kind[kind]
        self.names.append(name)

    def __add__(self, other: Table) -> Table:
        """The rows of both, this one's first."""
        kinds = list(dict.fromkeys(self.kinds + other.kinds))
        more = other.rows.copy()
        more["kind"] = np.array([kinds.index(kind) for kind in other.kinds], np.int32)[more["kind"]]
        return Table(self.names + other.names, np.concatenate([self.rows, more]), kinds)

    def __getitem__(self, order: np.ndarray) -> Table:
        """The rows at these places."""
        return Table([self.names[i] for i in order], self.rows[order], self.kinds)

    def counts(self) -> list[tuple[Kind, int]]:
        """How many pictures there are of each kind."""
        counts = np.bincount(self.rows["kind"], minlength=len(self.kinds)).tolist()
        return [(kind, count) for kind, count in zip(self.kinds, counts, strict=True) if count]

    def places(self) -> np.ndarray:
        """A number in [0, 1) from the hash of each picture: below `held_out`, the picture is held out."""
        digits = self.rows["key"][:, :7].astype(np.uint64) << np.arange(48, -1, -8, dtype=np.uint64)
        return (digits.sum(axis=1) >> np.uint64(4)) / 2.0**52  # 13 digits of 16: exact in float64

    def are_current(self, found: Mapping[str, Stamp]) -> np.ndarray:
        """Whether each row is of the present version of its file, of those that were found."""
        now = itertools.chain.from_iterable(found.get(name, (-2, 0)) for name in self.names)
        return (np.fromiter(now, np.int64, 2 * len(self)).reshape(-1, 2) == self.rows["stamp"]).all(axis=1)


@dataclasses.dataclass(frozen=True)
class Index:
    """What a prepared folder holds.

    Attributes:
        options: all that the prepared pictures depend on beside the files.
        array: the name of the file of the array.
        checksum: the CRC-32 of this file.
        table: the pictures, in the order of the array.
        broken: the files that could not be read, each with the reason.
    """

    options: dict[str, Any]
    array: str
    checksum: int
    table: Table
    broken: dict[str, str]

    def write(self, path: Path) -> None:
        """Write the index. Names of files may be no Unicode, and contain any character but NUL."""
        header = {"options": self.options, "array": self.array, "checksum": self.checksum, "broken": self.broken}
        text = json.dumps(header | {"kinds": self.table.kinds}).encode()
        names = "".join(f"{name}\0" for name in self.table.names).encode("utf-8", "surrogatepass")
        with files.whole(path) as fresh, fresh.open("wb") as file:
            text, names = (np.frombuffer(held, np.uint8) for held in (text, names))
            np.savez(file, header=text, names=names, rows=self.table.rows)

    @classmethod
    def read(cls, path: Path, options: dict[str, Any]) -> Index | None:
        """The index in a file; None if there is none, or if it is damaged.

        Raises:
            UsageError: for an index of another program, or for pictures made with other options.
        """
        folder = path.parent
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(file["header"].tobytes())
                if header["options"] != options:
                    raise UsageError(
                        f"{folder} holds pictures of {header['options'].get('folder')}, or made with other options: "
                        "say another prepared=FOLDER"
                    )
                names = file["names"].tobytes().decode("utf-8", "surrogatepass").split("\0")[:-1]
                kinds = [Kind(*kind[:-1], notes=tuple(kind[-1])) for kind in header.pop("kinds")]
                return cls(table=Table(names, file["rows"], kinds), **header)
        except KeyError:
            raise UsageError(_not_ours(folder, f"an {path.name} of another program")) from None
        except (FileNotFoundError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile):
            return None


def _not_ours(folder: Path, held: str) -> str:
    return f"{folder} holds {held}, so nothing is written there: say another prepared=FOLDER"


OURS = re.compile(
    r"lock|index\.npz|part\.raw|part\.jsonl|\.?pictures-[0-9a-f]{16}(\.new)?\.npy|\.(index|part)\.new\..*"
)


@dataclasses.dataclass(frozen=True)
class Store:
    """The folder where the pictures of a folder are prepared.

    Attributes:
        root: the folder of the pictures.
        wanted: what each picture is made into.
        channels: 1 for grey, 3 for colour, 0 for grey if all pictures are grey.
        prepared: the folder for the prepared pictures; "" is a folder of the cache.
    """

    root: Path
    wanted: Wanted
    channels: int
    prepared: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """All that the prepared pictures depend on beside the files, as it is read back from JSON."""
        options = {**dataclasses.asdict(self.wanted), "channels": self.channels, "version": VERSION}
        return json.loads(json.dumps(options | {"folder": str(self.root.resolve())}))

    @property
    def place(self) -> Path:
        if self.prepared:
            return Path(self.prepared).expanduser()
        return cache.folder("folder") / hashlib.blake2b(json.dumps(self.options).encode(), digest_size=8).hexdigest()

    def opened(self, found: Mapping[str, Stamp]) -> tuple[Index, np.memmap]:
        """The index and the array of these pictures, which are made or refreshed first if they are not up to date.

        Raises:
            UsageError: if the folder cannot be written, holds other files, or belongs to another folder or to other
                options.
        """
        index = None
        with contextlib.suppress(OSError):  # the array was removed meanwhile, by a refresh
            index = self._whole()
            if index is not None and self._is_current(found, index):
                return index, self._array(index)
        files.make_folder(self.place, "prepared")
        wait = _say_once(f"another command prepares the pictures in {self.root}: waiting")
        with files.locked(self.place / "lock", wait=wait):
            index = self._whole(index)
            if index is None or not self._is_current(found, index):
                index = self._refreshed(found, index)
            return index, self._array(index)

    def _array(self, index: Index) -> np.memmap:
        return np.load(self.place / index.array, mmap_mode="r")

    def _whole(self, known: Index | None = None) -> Index | None:
        """The index, if it is there and its array is whole.

        The checksum is not compared again if the index is already known to be whole.

        Raises:
            UsageError: if the folder holds other files, or was made with other options.
        """
        there = self.place.iterdir() if self.place.is_dir() else ()
        others = [path.name for path in there if not OURS.fullmatch(path.name)]
        if others:
            raise UsageError(_not_ours(self.place, ", ".join(sorted(others)[:SHOWN])))
        index = Index.read(self.place / "index.npz", self.options)
        if index is None or (known is not None and (known.array, known.checksum) == (index.array, index.checksum)):
            return index
        return index if files.crc32(self.place / index.array) == index.checksum else None

    def _is_current(self, found: Mapping[str, Stamp], index: Index) -> bool:
        """Whether an index is up to date. Files that could not be read are tried again."""
        if len(found) != len(index.table) + len(index.broken) or not index.table.are_current(found).all():
            return False
        return all(name in found and "why" in answer(str(self.root / name), self.wanted) for name in index.broken)

    def _refreshed(self, found: Mapping[str, Stamp], index: Index | None) -> Index:
        """Read the new files, and write the array and the index again."""
        place, known = self.place, Table() if index is None else index.table
        old: Any = None if index is None else self._array(index)
        with _writing(place), _Part(place, self.options, (self.wanted.height, self.wanted.width, 3)) as part:
            same = _current(known, found).keys() | _current(part.table, found).keys()
            self._read(found, [name for name in found if name not in same], part)
            both = known + part.table
            at = _current(both, found)
            usable = np.array([at[name] for name in sorted(at)], np.int64)
            order = usable[np.argsort(-both.places()[usable], kind="stable")]
            table = both[order]
            grey = self.channels == 1 or (self.channels == 0 and all(kind.grey for kind, _ in table.counts()))

            def pixels(at: int) -> np.ndarray:
                rgb = old[at] if at < len(known) else part.picture(at - len(known))
                if grey:
                    return to_grey(rgb) if rgb.shape[-1] == 3 else rgb
                return np.broadcast_to(rgb, (self.wanted.height, self.wanted.width, 3))

            digest = hashlib.blake2b(bytes([grey]), digest_size=8)
            digest.update(table.rows["crc"].tobytes())
            name = f"pictures-{digest.hexdigest()}.npy"
            shape = (len(order), self.wanted.height, self.wanted.width, 1 if grey else 3)
            with files.whole(place / name) as path:
                checksum = _write_array(path, shape, map(pixels, order.tolist()), old)
            made = Index(self.options, name, checksum, table, dict(sorted(part.broken.items())))
            made.write(place / "index.npz")
        for path in place.iterdir():  # also what a process that was killed has left
            if OURS.fullmatch(path.name) and path.name not in ("lock", "index.npz", name):
                path.unlink(missing_ok=True)
        return made

    def _read(self, found: Mapping[str, Stamp], missing: list[str], part: _Part) -> None:
        """Read these pictures, and store them in `part`."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = 1 if len(missing) <= ALONE else min(cores, 16)
        with bar(len(missing)) as advance, Reader(self.wanted, workers) as reader:
            names = {str(self.root / name): name for name in missing}
            for path, read in reader(names):
                part.add(names[path], found[names[path]], read)
                advance()


def _current(table: Table, found: Mapping[str, Stamp]) -> dict[str, int]:
    """The place of each file whose present version has a row; the last one, if it has several."""
    return {table.names[i]: i for i in np.flatnonzero(table.are_current(found)).tolist()}


def _say_once(line: str) -> Callable[[], None]:
    lines = [line]

    def say() -> None:
        if lines:
            print(lines.pop(), file=sys.stderr)

    return say


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Within it, an error of the file system is one about `place`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot write {place}: {reason}; make room there, or say another prepared=FOLDER") from None


class _Part:
    """The new pictures of a preparation: their rows in part.raw, and a line each in part.jsonl.

    A row is written before its line, and a line has the checksum of the row. After a kill, the lines up to the first
    one that is cut or has a wrong checksum are kept.

    Attributes:
        table: the pictures, in the order of part.raw.
        broken: the files that could not be read now, each with the reason. They will be tried again.
    """

    def __init__(self, place: Path, options: dict[str, Any], shape: tuple[int, int, int]):
        self.raw, self.lines = place / "part.raw", place / "part.jsonl"
        self.options, self.shape, self.bytes = options, shape, int(np.prod(shape))
        self.table, self.broken = Table(), {}

    def __enter__(self) -> _Part:
        self._rows = self.raw.open("r+b" if self.raw.exists() else "w+b")
        first = json.dumps(self.options) + "\n"
        with files.whole(self.lines) as fresh, fresh.open("w", encoding="utf-8") as kept:
            kept.write(first)
            with self.lines.open(encoding="utf-8") if self.lines.exists() else io.StringIO() as lines:
                for line in lines if next(lines, "") == first else ():
                    try:
                        found = json.loads(line)
                    except ValueError:
                        break
                    if zlib.crc32(self._row(len(self.table))) != found["crc"]:
                        break
                    self.table.add(found["name"], tuple(found["stamp"]), found["crc"], found)
                    kept.write(line if line.endswith("\n") else line + "\n")
        self._log = self.lines.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        self._log.close()

    def add(self, name: str, stamp: Stamp, found: dict[str, Any]) -> None:
        """Store what was found of a file; see `pictures.answer`."""
        if "why" in found:
            self.broken[name] = found["why"]
            return
        pixels = found.pop("pixels")
        self._rows.seek(len(self.table) * self.bytes)
        self._rows.write(pixels)
        self._rows.flush()
        crc = zlib.crc32(pixels)
        self._log.write(json.dumps({"name": name, "stamp": stamp, "crc": crc, **found}) + "\n")
        self._log.flush()
        self.table.add(name, stamp, crc, found)

    def picture(self, at: int) -> np.ndarray:
        """The pixels of a finished picture."""
        return np.frombuffer(self._row(at), np.uint8).reshape(self.shape)

    def _row(self, at: int) -> bytes:
        self._rows.seek(at * self.bytes)
        return self._rows.read(self.bytes)


@contextlib.contextmanager
def bar(total: int) -> Iterator[Callable[[], None]]:
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


def _write_array(path: Path, shape: tuple[int, ...], rows: Iterable[np.ndarray], old: np.ndarray | None) -> int:
    """Write an array of these rows, some of which are read from `old`, and return the CRC-32 of the file."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    checksum, every = zlib.crc32(header.getvalue()), 1 if old is None else rows_at_a_time(old)
    with path.open("wb") as file:
        file.write(header.getvalue())
        for i, row in enumerate(rows):
            pixels = np.ascontiguousarray(row).data
            file.write(pixels)
            checksum = zlib.crc32(pixels, checksum)
            if i % every == 0:
                release(old)
        file.flush()
        os.fsync(file.fileno())
    return checksum
