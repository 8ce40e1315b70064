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
from scoregen.files import from_json
from scoregen.metrics import Activations, Statistics, read_activations

if TYPE_CHECKING:
    from scoregen.app.api import Run

KEYS = ("samples", "arr_0")  # the names under which a .npz file may hold pictures
READ = 256  # pictures that are read at a time
MOST = 50_000  # samples that are drawn without being asked for, as for published FIDs


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """One side of a comparison.

    Attributes:
        name: what it is, for the output, such as "runs/ddpm_digits, step 1,200, its samples".
        count: how many pictures there are; None if it is not known.
        pictures: a function that yields them in batches, uint8 [B, H, W, 1 or 3]; None if there are only statistics.
        shape: (H, W, C) of all of them; None if there are only statistics.
        rounding: how floats became bytes, "" if they were bytes.
        known: the statistics, or the features.
        made: of samples that are drawn for the comparison, how; None for pictures that are there.
        resized: whether the pictures of a folder are resized.
    """

    name: str
    count: int | None
    pictures: Callable[[], Iterator[np.ndarray]] | None = None
    shape: tuple[int, ...] | None = None
    rounding: str = ""
    known: Statistics | Activations | None = None
    made: dict[str, Any] | None = None
    resized: bool = False

    def checksum(self) -> str:
        """The SHA-256 of all pixels, which are read for it."""
        assert self.pictures is not None
        digest = hashlib.sha256(str(self.shape).encode())
        for batch in self.pictures():
            digest.update(np.ascontiguousarray(batch).data)
        return digest.hexdigest()


def some(total: int, count: int | None) -> np.ndarray:
    """The indices of `count` of so many pictures: all, or a random subset that is always the same, in its order.

    The first ones would be those of one class in a set that is ordered by classes.

    >>> some(3, None).tolist(), some(10, 4).tolist()
    ([0, 1, 2], [2, 4, 6, 7])
    """
    if count is None or count >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).permutation(total)[:count])


def side_of(path: Path, count: int | None = None, size: tuple[int, int] | None = None) -> Side:
    """The pictures or statistics at a path that is no run; `count` are taken at most, `size` is for a folder.

    Raises:
        UsageError: if there is nothing, or nothing of these kinds.
    """
    if path.is_dir():
        return of_folder(path, count, size)
    if path.suffix.lower() != ".npz":
        what = "a file of another kind" if path.exists() else "not there"
        raise UsageError(f"{path} is {what}: a run, a folder of pictures, or a .npz file is needed")
    return of_archive(path, count)


def of_run(run: Run, count: int | None) -> Side:
    """Samples of a run, which are drawn when they are asked for: as many as training pictures, at most `MOST`.

    Raises:
        UsageError: if it draws no pictures, or its data are not there to count.
    """
    check_pictures(run)
    sampling = run.sampling
    if count is None:
        try:
            count = min(MOST, len(run.dataset.train))
        except UsageError as error:
            raise UsageError(f"{run.workdir}: its training pictures cannot be counted ({error}): say --n=N") from None
    total = count

    def drawn() -> Iterator[np.ndarray]:
        from scoregen.app.api import check_samples

        for _, samples in sampling.batches(run.params, total, batch=sampling.batch_for(total)):
            check_samples(samples)
            yield sampling.to_data(samples)

    made: dict[str, Any] = {"step": run.step, "seed": sampling.seed, "guidance": sampling.guidance}
    if run.config is not None:
        made["sampler"] = run.config.sampler.to_dict()
    name = f"{run.workdir}, step {run.step:,}, its samples"
    return Side(name, total, drawn, sampling.shape, "round", made=made)


def of_data(run: Run, test: bool = False) -> Side | None:
    """The pictures that a run was trained on, or those that were held out; None if there are fewer than two.

    Raises:
        UsageError: if the data are not pictures, or no longer there.
    """
    check_pictures(run)
    data = run.dataset
    x = data.test if test else data.train
    if x is None or len(x) < 2:
        return None
    total = len(x)

    def read() -> Iterator[np.ndarray]:
        for first in range(0, total, READ):
            yield data.examples(slice(first, min(first + READ, total)), test=test)

    what = "held-out" if test else "training"
    return Side(f"{run.workdir}, all {what} pictures of {data.name}", total, read, data.shape)


def check_pictures(run: Run) -> None:
    """Raises UsageError unless a run draws pictures of bytes with one or three channels."""
    if not run.sampling.is_image or run.sampling.shape[-1] not in (1, 3):
        raise UsageError(
            f"{run.workdir} draws no pictures of bytes with 1 or 3 channels: scoregen eval {run.workdir} computes the "
            "distances that its data have"
        )


# Folders


def of_folder(root: Path, count: int | None = None, size: tuple[int, int] | None = None) -> Side:
    """The pictures in a folder, in the order of their names; they must be of one size, unless `size` is given.

    Raises:
        UsageError: if there are fewer than two, if one cannot be read, for several sizes, and for samples that are not
            all drawn.
    """
    from scoregen.data.folder import find
    from scoregen.data.pictures import Wanted, read, to_grey

    every = sorted(find(root).pictures)
    _check_complete(root, len(every))
    names = [str(root / every[i]) for i in some(len(every), count)]
    if len(names) < 2:
        raise UsageError(f"{root}: two or more pictures are needed, and it holds {len(names)}")
    wanted = Wanted(*(size or _common_size(root, names)))  # pyright: ignore[reportArgumentType]
    # Grey pictures have one channel, as in a training. Whether they are grey is decided by some of them.
    grey = all(_readable(name, lambda name: read(name, wanted)).grey for name in names[:READ])

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, len(names), READ):
            part = [(name, _readable(name, lambda name: read(name, wanted))) for name in names[first : first + READ]]
            if grey and (colour := [name for name, picture in part if not picture.grey]):
                raise UsageError(f"{colour[0]} is in colour, and the pictures before it are grey: make them one kind")
            pixels = np.stack([picture.pixels for _, picture in part])
            yield to_grey(pixels) if grey else pixels

    said = f"{root}" + (f", {len(names):,} of {len(every):,}" if len(names) < len(every) else "")
    shape = (wanted.height, wanted.width, 1 if grey else 3)
    resized = f", resized to {shape[0]}x{shape[1]}" if size else ""
    return Side(said + resized, len(names), batches, shape, resized=size is not None)


def _readable(name: str, work: Callable[[str], Any]) -> Any:
    from scoregen.data.pictures import Unreadable

    try:
        return work(name)
    except Unreadable as error:
        raise UsageError(f"{name} cannot be read ({error}): remove it") from None


def _common_size(root: Path, names: list[str]) -> tuple[int, int]:
    from scoregen.data.pictures import size_of

    sizes: set[tuple[int, int]] = set()
    for name in names:
        sizes.add(_readable(name, size_of))
        if len(sizes) > 1:
            both = " and ".join(f"{high}x{wide}" for high, wide in sorted(sizes))
            raise UsageError(
                f"{root} holds pictures of several sizes ({both} ...): say --size=64 to resize all of them"
            )
    return sizes.pop()


def _check_complete(root: Path, there: int) -> None:
    """Raises UsageError if a folder of `scoregen sample --out` has not all of its samples."""
    path = root / "samples.json"
    if not path.is_file():
        return
    try:
        wanted = from_json(path.read_text(errors="replace")).get("samples")
    except (ValueError, AttributeError, OSError):
        return
    if isinstance(wanted, int) and there < wanted:
        raise UsageError(f"{root} holds {there:,} of {wanted:,} samples: repeat its `scoregen sample`, which goes on")


# .npz files


def of_archive(path: Path, count: int | None = None) -> Side:
    """The pictures or the statistics in a .npz file; of both, as in ADM's reference files, the statistics.

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
    if key is None or {"mu", "sigma"} <= held:
        found = read_activations(path)
        if isinstance(found, Activations):
            found = found[some(len(found), count)]
            return Side(f"{path}, features", len(found), known=found)
        unused = f" (its {key} are not used)" if key else ""
        return Side(f"{path}, statistics{unused}", found.count, known=found)
    x = _pictures(path, key)
    rows = some(len(x), count)
    if len(rows) < 2:
        raise UsageError(f"{path}: two or more pictures are needed, and it holds {len(x)}")

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, len(rows), READ):
            yield x[rows[first : first + READ]]

    part = f", {len(rows):,} of {len(x):,}" if len(rows) < len(x) else ""
    return Side(f"{path}{part}", len(rows), batches, x.shape[1:])


def _pictures(path: Path, key: str) -> np.ndarray:
    from scoregen.data import open_array

    x = open_array(path, key)
    if x.ndim == 3 and x.shape[2] in (1, 2, 3, 4):
        raise UsageError(f"{path}: '{key}' of shape {x.shape} looks like one picture: pictures are [N, H, W, C]")
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3):
        raise UsageError(
            f"{path}: '{key}' is {x.dtype} {x.shape}: pictures are uint8 [N, H, W] or [N, H, W, 1 or 3]; round floats "
            "to bytes first"
        )
    return x
