"""The sides of a comparison of pictures: a run, a folder of pictures, or a .npz file of pictures or of statistics."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scoregen.errors import UsageError
from scoregen.metrics import Activations, Statistics, read_activations

if TYPE_CHECKING:
    from scoregen.app.api import Run

KEYS = ("samples", "arr_0", "images")  # the names under which a .npz file may hold pictures
READ = 256  # pictures that are read at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """One side of a comparison.

    Attributes:
        name: what it is, for the output, such as "runs/ddpm_digits, step 1,200".
        pictures: a function that yields the pictures in batches, uint8 [B, H, W, 1 or 3]; None if there are only
            statistics.
        count: how many there are; None if it is not known.
        shape: (H, W, C) of all of them; None if there are only statistics.
        rounding: how floats became bytes, "" if they were bytes.
        known: the statistics, or the features.
    """

    name: str
    pictures: Callable[[], Iterator[np.ndarray]] | None = None
    count: int | None = None
    shape: tuple[int, ...] | None = None
    rounding: str = ""
    known: Statistics | Activations | None = None

    def checksum(self) -> str:
        """The SHA-256 of all pixels, which are read for it."""
        assert self.pictures is not None
        digest = hashlib.sha256(str(self.shape).encode())
        for batch in self.pictures():
            digest.update(np.ascontiguousarray(batch).data)
        return digest.hexdigest()


def side_of(path: Path, count: int | None, size: tuple[int, int] | None) -> Side:
    """What is at a path. `count` are at most taken of it, and `size` is that of the pictures of a folder.

    A run is not one of these; see `of_run`.

    Raises:
        UsageError: if there is nothing, or nothing of these kinds.
    """
    if path.is_dir():
        return of_folder(path, count, size)
    if path.suffix.lower() != ".npz":
        what = "a file of another kind" if path.exists() else "not there"
        raise UsageError(f"{path} is {what}: a run, a folder of pictures, or a .npz file is needed")
    return of_archive(path, count)


def is_run(path: Path) -> bool:
    """Whether a folder is a run."""
    return any((path / name).is_file() for name in ("config.json", "model.json"))


def of_run(run: Run, count: int, progress: Callable[[int], None]) -> Side:
    """`count` samples of a run, drawn when they are asked for. `progress` is called with the number of finished levels.

    Raises:
        UsageError: if it draws no pictures.
    """
    sampling = run.sampling
    check_pictures(run)

    def drawn() -> Iterator[np.ndarray]:
        from scoregen.app.api import check_samples

        for _, samples in sampling.batches(run.params, count, progress):
            check_samples(samples)
            yield sampling.to_data(samples)

    return Side(f"{run.workdir}, step {run.step:,}, its samples", drawn, count, sampling.shape, "round")


def of_data(run: Run, test: bool = False, count: int | None = None) -> Side | None:
    """The pictures that a run was trained on, or those that were held out; None if there are fewer than two.

    Raises:
        UsageError: if the data are not pictures, or no longer there.
    """
    check_pictures(run)
    data = run.dataset
    x = data.test if test else data.train
    if x is None or len(x) < 2:
        return None
    total = min(len(x), count or len(x))

    def read() -> Iterator[np.ndarray]:
        for first in range(0, total, READ):
            yield data.examples(slice(first, min(first + READ, total)), test=test)

    what = "held-out" if test else "training"
    return Side(f"{run.workdir}, its {what} pictures of {data.name}", read, total, data.shape)


def check_pictures(run: Run) -> None:
    """Raises UsageError unless a run draws pictures of bytes with one or three channels."""
    if not run.sampling.is_image or run.sampling.shape[-1] not in (1, 3):
        raise UsageError(
            f"{run.workdir} draws no pictures of bytes with 1 or 3 channels: scoregen eval {run.workdir} computes the "
            "distances that its data have"
        )


def of_folder(root: Path, count: int | None, size: tuple[int, int] | None) -> Side:
    """The pictures in a folder, in the order of their names; they must be of one size, unless `size` is given.

    Raises:
        UsageError: if there are none, if one cannot be read, and for several sizes.
    """
    from PIL import Image

    from scoregen.data.folder import find
    from scoregen.data.pictures import Unreadable, Wanted, read

    names = [str(root / name) for name in sorted(find(root).pictures)][:count]
    sizes = set()
    for name in names:
        try:
            with Image.open(name) as image:
                sizes.add(_upright(image))
        except (OSError, ValueError) as error:
            raise UsageError(f"{name} cannot be read ({error}): remove it") from None
        if len(sizes) > 1 and size is None:
            some = " and ".join(f"{rows}x{columns}" for rows, columns in sorted(sizes))
            raise UsageError(
                f"{root} holds pictures of several sizes ({some} ...): say --size=64 to resize and cut all of them"
            )
    high, wide = size or sizes.pop()
    wanted = Wanted(high, wide)

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, len(names), READ):
            some = []
            for name in names[first : first + READ]:
                try:
                    some.append(read(name, wanted).pixels)
                except Unreadable as error:
                    raise UsageError(f"{name} cannot be read ({error}): remove it") from None
            yield np.stack(some)

    resized = f", cut to {wanted.height}x{wanted.width}" if size else ""
    return Side(f"{root}{resized}", batches, len(names), (wanted.height, wanted.width, 3))


def _upright(image: Any) -> tuple[int, int]:
    """Height and width of a picture once it is turned as its EXIF data say."""
    wide, high = image.size
    return (wide, high) if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (high, wide)


def of_archive(path: Path, count: int | None) -> Side:
    """The pictures or the statistics in a .npz file.

    Raises:
        UsageError: if it holds neither, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        said = getattr(error, "strerror", None) or "it is damaged, or no .npz file"
        raise UsageError(f"{path} cannot be read: {said}") from None
    key = next((key for key in KEYS if key in held), None)
    if key is None:
        found = read_activations(path)
        if isinstance(found, Activations):
            found = found[:count]
            return Side(f"{path}, features", None, len(found), known=found)
        return Side(f"{path}, statistics", None, found.count, known=found)
    x = _pictures(path, key)[:count]
    if len(x) < 2:
        raise UsageError(f"{path}: two or more pictures are needed, and it holds {len(x)}")

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, len(x), READ):
            yield x[first : first + READ]

    return Side(str(path), batches, len(x), x.shape[1:])


def _pictures(path: Path, key: str) -> np.ndarray:
    from scoregen.data import open_array

    x = open_array(path, key)
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3):
        raise UsageError(
            f"{path}: '{key}' is {x.dtype} {x.shape}: pictures are uint8 [N, H, W] or [N, H, W, 1 or 3]; round floats "
            "to bytes first"
        )
    return x
