"""Samples as files, a batch at a time: a command that is stopped at any moment continues where it was.

A file is written under another name and then renamed, so it is whole or not there. The batches are the same in every
start, because float32 rounds differently in batches of other sizes. Several processes may write to one place: each
claims the batch that it draws.
"""

from __future__ import annotations

import abc
import csv
import io
import math
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from scoregen.app import report
from scoregen.app.selection import ARCHIVE, SETTINGS, pictured
from scoregen.data.table import SUFFIXES as TABLES
from scoregen.errors import UsageError
from scoregen.files import claimed, from_json, make_folder, remove_unfinished, to_json, whole

if TYPE_CHECKING:
    from scoregen.app.sampling import Draws, Sampling
    from scoregen.data import Dataset

WAIT = 0.5  # seconds between looks at the batches of another process
_END_OF_PNG = b"IEND\xaeB`\x82"


class SampleFiles(abc.ABC):
    """The files of samples, and their settings in samples.json.

    Attributes:
        out: the folder or the file that was asked for.
        dataset: the data, or a stand-in, for the kind of the files.
        sampling: how samples are drawn.
        draws: which samples.
        size: the number of samples in a batch.
    """

    def __init__(self, out: Path, dataset: Dataset, sampling: Sampling, draws: Draws, size: int) -> None:
        self.out = self.folder = out
        self.dataset, self.sampling, self.draws, self.size = dataset, sampling, draws, size
        self.lock = out / ".lock"
        self.busy = threading.Lock()  # held while a batch is written

    @property
    def written(self) -> list[Path]:
        """What a user gets."""
        return [self.out]

    @property
    def batches(self) -> int:
        """The number of batches."""
        return -(-len(self.draws) // self.size)

    def index(self, batch: int) -> np.ndarray:
        """The samples of a batch, by their index in the draws."""
        return np.arange(batch * self.size, min((batch + 1) * self.size, len(self.draws)))

    @abc.abstractmethod
    def has(self, batch: int) -> bool:
        """Whether all samples of a batch are there, whole."""

    @abc.abstractmethod
    def count(self) -> int:
        """The number of samples that are there."""

    @abc.abstractmethod
    def _write(self, index: np.ndarray, samples: np.ndarray) -> None:
        """Write a batch of samples in the network's units."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Complete the files, once all batches are there."""

    def begin(self, settings: dict[str, Any]) -> None:
        """Prepare the place for samples of these settings.

        Raises:
            UsageError: if it holds samples of other settings, cannot be written, or is too small.
        """
        make_folder(self.lock.parent, "--out")
        with claimed(self.lock, 0, wait=True):
            self._clear()
            found = self._settings()
            if found is None:
                self._prepare(settings)
            elif differ := _differences(found, settings):
                raise UsageError(
                    f"{self.out} holds samples of other settings ({'; '.join(differ)}): say another --out, or the "
                    "settings of these samples"
                )

    def _clear(self) -> None:
        """Remove what commands that were killed have left unfinished."""
        for folder in {self.lock.parent, self.folder, self.folder / "parts"}:
            remove_unfinished(folder)

    def _settings(self) -> dict[str, Any] | None:
        """The settings of the samples that are there, or None without samples."""
        path = self.folder / SETTINGS
        return _read(path.read_bytes(), path) if path.is_file() else None

    @abc.abstractmethod
    def _room(self) -> int:
        """The number of bytes that a sample takes at least."""

    def _prepare(self, settings: dict[str, Any]) -> None:
        need, free = len(self.draws) * self._room(), shutil.disk_usage(self.lock.parent).free
        if need > free:
            raise UsageError(
                f"--out={self.out}: {len(self.draws):,} samples need {_size(need)}, and {_size(free)} are free: say "
                "fewer samples, or another --out"
            )
        make_folder(self.folder, "--out")
        with whole(self.folder / SETTINGS) as fresh:
            fresh.write_text(to_json(settings))

    def missing(self) -> Iterator[int]:
        """The batches that are not there. Until the next one is asked for, no other process gets the same one."""
        left = True
        while left:
            left, idle = False, True
            for batch in range(self.batches):
                if self.has(batch):
                    continue
                with claimed(self.lock, batch + 1) as mine:
                    left = left or not mine
                    if mine and not self.has(batch):
                        idle = False
                        yield batch
            if left and idle:  # other processes draw the rest, and may be killed
                time.sleep(WAIT)

    def put(self, index: np.ndarray, samples: np.ndarray) -> None:
        """Write a batch of samples `[B, ...]` in the network's units.

        Raises:
            UsageError: if a file cannot be written.
        """
        with self.busy:
            try:
                self._write(index, samples)
            except UsageError as error:
                kept = f"{self.count():,} of {len(self.draws):,} samples are there, and the same command continues"
                raise UsageError(f"{error}; {kept}") from error


class Pictures(SampleFiles):
    """A PNG for each sample, named by its seed and its number: 000000-0000012.png.

    With classes, labels.csv has the class of each, so that the folder is again a data set.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.done: set[int] = set()

    @property
    def written(self) -> list[Path]:
        cond = self.sampling.cond
        return [self.out] if cond is None or cond.label is None else [self.out, self.out / "labels.csv"]

    def paths(self, index: np.ndarray) -> list[Path]:
        """The file of each sample."""
        place = self.draws.at(index)
        pairs = zip(place.seed.tolist(), place.number.tolist(), strict=True)
        return [self.out / f"{seed:06d}-{number:07d}.png" for seed, number in pairs]

    def has(self, batch: int) -> bool:
        if batch not in self.done and all(map(_is_whole, self.paths(self.index(batch)))):
            self.done.add(batch)
        return batch in self.done

    def _room(self) -> int:
        return max(67, os.statvfs(self.lock.parent).f_frsize)  # an image of one pixel; a file takes whole blocks

    def count(self) -> int:
        return sum(1 for path in self.out.iterdir() if path.suffix == ".png" and path.name[0] != ".")

    def _write(self, index: np.ndarray, samples: np.ndarray) -> None:
        images = self.sampling.scaling.to_bytes(samples)
        for path, image in zip(self.paths(index), images, strict=True):
            if not _is_whole(path):
                report.save_picture(path, image)

    def finish(self) -> None:
        index = np.arange(len(self.draws))
        cond = self.sampling.cond_of(self.draws.at(index).turn)
        if cond is None or cond.label is None:
            return
        labels = np.asarray(cond.label)
        names = self.dataset.classes or range(int(labels.max()) + 1)
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("file", "label"))
        rows.writerows((path.name, names[k]) for path, k in zip(self.paths(index), labels, strict=True))
        with claimed(self.lock, self.batches + 1, wait=True), whole(self.out / "labels.csv") as fresh:
            fresh.write_text(text.getvalue(), encoding="utf-8")

    def first(self, count: int) -> np.ndarray:
        """The first samples, uint8 `[count, H, W, C]`."""
        from PIL import Image

        images = []
        for path in self.paths(np.arange(count)):
            with Image.open(path) as image:
                images.append(np.asarray(image).reshape(self.dataset.shape))
        return np.stack(images)


class Joined(SampleFiles):
    """One file of all samples in the units of the data, joined from a part for each batch: samples.npy."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.final, self.parts = self.out / "samples.npy", self.out / "parts"

    @property
    def written(self) -> list[Path]:
        return [self.final]

    def part(self, batch: int) -> Path:
        """The file of a batch."""
        return self.parts / f"{batch:06d}.npy"

    def complete(self) -> bool:
        """Whether the file of all samples is there, whole."""
        return _array(self.final) is not None

    def has(self, batch: int) -> bool:
        return self.complete() or _array(self.part(batch)) is not None

    def count(self) -> int:
        if self.complete():
            return len(self.draws)
        return sum(len(self.index(batch)) for batch in range(self.batches) if self.part(batch).is_file())

    def _room(self) -> int:
        units, shape = self.sampling.units, self.sampling.shape
        kind = np.dtype(units.dtype if units is not None else self.dataset.dtype)
        return 2 * math.prod(shape) * kind.itemsize  # in a part, and in the file

    def _write(self, index: np.ndarray, samples: np.ndarray) -> None:
        make_folder(self.parts, "--out")
        with whole(self.part(int(index[0]) // self.size)) as fresh, fresh.open("wb") as file:
            np.save(file, self.sampling.to_data(samples), allow_pickle=False)

    def finish(self) -> None:
        with claimed(self.lock, self.batches + 1, wait=True):
            if not self.complete():
                self._join()
        shutil.rmtree(self.parts, ignore_errors=True)

    def _join(self) -> None:
        with whole(self.final) as fresh, fresh.open("wb") as file:
            self._copy(file)

    def _copy(self, file: IO[bytes]) -> None:
        """Write all parts as one array in the format of .npy, with one part in memory."""
        for batch in range(self.batches):
            part = np.load(self.part(batch), allow_pickle=False)
            if batch == 0:
                header = {"descr": np.lib.format.dtype_to_descr(part.dtype), "fortran_order": False}
                shape = (len(self.draws), *part.shape[1:])
                np.lib.format.write_array_header_1_0(file, header | {"shape": shape})  # pyright: ignore
            file.write(part.tobytes())


class Table(Joined):
    """A table of all samples, of the kind of the data. Its rows are joined in memory."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.final = self.out / f"samples{self.dataset.form.suffix}"

    def complete(self) -> bool:
        return self.final.is_file()

    def _join(self) -> None:
        rows = np.concatenate([np.load(self.part(batch)) for batch in range(self.batches)])
        place = self.draws.at(np.arange(len(self.draws)))
        report.save_data(self.out, self.dataset, rows, self.sampling.cond_of(place.turn))


class Archive(Joined):
    """A .npz file with the arrays `samples` and `settings`, and with classes `labels`, with contexts `contexts`.

    Until it is complete, its parts are in the folder FILE.npz.parts.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.final = self.out
        self.folder = self.parts = self.out.with_name(f"{self.out.name}.parts")
        self.lock = self.out.with_name(f".{self.out.name}.lock")

    def complete(self) -> bool:
        return self.final.is_file()  # `_settings` has read it

    def _settings(self) -> dict[str, Any] | None:
        if not self.final.exists():
            return super()._settings()
        try:
            with self.final.open("rb") as file, np.load(file, allow_pickle=False) as found:
                return _read(str(found["settings"]), self.final)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
            raise UsageError(
                f"{self.final} is no whole file of this command: say another --out, or delete it"
            ) from None

    def _join(self) -> None:
        cond = self.sampling.cond_of(self.draws.at(np.arange(len(self.draws))).turn)
        arrays: dict[str, Any] = {"settings": np.array((self.folder / SETTINGS).read_text())}
        if cond is not None and cond.label is not None:
            arrays["labels"] = np.asarray(cond.label)
        if cond is not None and cond.context is not None:
            units = self.sampling.context_units
            arrays["contexts"] = np.asarray(cond.context) if units is None else units.decode(cond.context)
        with whole(self.final) as fresh, zipfile.ZipFile(fresh, "w") as archive:
            with archive.open(zipfile.ZipInfo("samples.npy"), "w", force_zip64=True) as file:
                self._copy(file)
            for name, array in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)

    def first(self, count: int) -> np.ndarray:
        """The first samples, if they are images, uint8 `[count, H, W, C]`."""
        with zipfile.ZipFile(self.final) as archive, archive.open("samples.npy") as file:
            np.lib.format.read_magic(file)
            (_, *shape), _, kind = np.lib.format.read_array_header_1_0(file)
            raw = np.frombuffer(file.read(count * math.prod(shape) * kind.itemsize), kind).reshape(count, *shape)
        return raw if self.sampling.units is None else self.sampling.units.channels_last(raw)


def files_of(out: Path, dataset: Dataset, sampling: Sampling, draws: Draws, size: int) -> SampleFiles:
    """The files for samples of this data set: `out` is a folder or a .npz file."""
    if out.suffix.lower() == ARCHIVE:
        kind = Archive
    elif pictured(dataset):
        kind = Pictures
    else:
        kind = Table if dataset.form.suffix in TABLES else Joined
    return kind(out, dataset, sampling, draws, size)


def _is_whole(path: Path) -> bool:
    """Whether a file is there and ends as a PNG does."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_END_OF_PNG), 2)
            return file.read() == _END_OF_PNG
    except OSError:
        return False


def _array(path: Path) -> np.ndarray | None:
    """A .npy file, mapped; None unless it is there and whole."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _read(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        found = from_json(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is damaged: say another --out, or delete it")
    return found


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs, each as "KEY was OLD, now NEW". The same weights in another folder are the same run."""
    new = from_json(to_json(new))
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    if "weights" not in keys and "run" in keys:
        keys.remove("run")
    if {"run", "step"} & set(keys):  # these explain other weights
        keys = [key for key in keys if key != "weights"]
    return [f"{key} was {_said(old.get(key))}, now {_said(new.get(key))}" for key in keys]


def _said(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) < 60 else f"{text[:56]} ..."


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
