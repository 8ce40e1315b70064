"""An array of examples of any shape, from a .npy or .npz file or from memory, standardised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scoregen.data.arrays import open_array
from scoregen.data.dataset import Dataset, as_labels, errors_of, split
from scoregen.data.sources import source
from scoregen.data.standardize import check_given, contexts, listed, rows, standardized
from scoregen.data.units import Units
from scoregen.errors import UsageError

KINDS = {"points": 0, "series": 1, "images": 2, "volumes": 3}  # the number of spatial axes
LAYOUTS = ("auto", "first", "last", "none")  # where the axis of the channels is


@source(suffixes=(".npy", ".npz"))
def array(
    dir: str | np.ndarray,
    *,
    key: str = "",
    kind: str = "auto",
    layout: str = "auto",
    standardize: bool = True,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    labels: str | np.ndarray | None = "",
    context: str | np.ndarray | None = "",
    held_out: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """An array of examples, such as points `[N, D]`, series `[N, L, C]`, images `[N, H, W, C]` or volumes.

    Numbers may be bool, integers or float16 to float64. Each channel, or each column of points, is standardised by the
    mean and the standard deviation of the training examples, in float64; samples are converted back to the type, units
    and shape of the array. Images of uint8 stay bytes. A file of more than 256 MiB is memory-mapped.

    Args:
        dir: the .npy or .npz file, or an array.
        key: the name of the array in a .npz file that holds several.
        kind: "points" `[N]` or `[N, D]`, "series" `[N, L]` or `[N, L, C]`, "images" `[N, H, W]` or `[N, H, W, C]`,
            "volumes" `[N, D, H, W]` or `[N, D, H, W, C]`. "auto" decides by the number of axes: up to two are points,
            then series, images, volumes, all with channels. Three axes of uint8 or uint16 are grey images, unless the
            last or the second is below 5.
        layout: whether the axis of the channels is the "first" or the "last" of an example, or there is "none"; "auto"
            finds out from the shape, and refuses a shape that may be both.
        standardize: whether to standardise.
        mean, std: given means and standard deviations, one for all channels or one for each.
        labels: a .npy file or an array of classes `[N]`, or the name of an array in the same .npz file.
        context: a vector for each example, `[N]` or `[N, K]`, that the network is conditioned on, given as `labels`
            are. It is standardised too.
        held_out: the share of the examples to test on.
        seed: of the random choice of these examples.

    Raises:
        UsageError: if a file cannot be read, for options that do not fit the array, for values that are not finite,
            and if all examples are the same.

    >>> data = array(np.arange(20.0).reshape(10, 2), held_out=0.2)
    >>> data.units.mean, data.examples().mean(0).round(6).tolist()
    ((8.75, 9.75), [0.0, 0.0])
    """
    name = "array"
    with errors_of(name):
        _check(kind, layout)
        check_given(standardize, mean, std, held_out, seed)
    where = "the array" if isinstance(dir, np.ndarray) else str(dir)
    raw = _read(dir, key)
    raw, units, said = _shaped(where, raw, kind, layout)
    train, test = split(name, len(raw), held_out, seed)
    of = f" {listed(raw.shape[1:])}" if raw.ndim > 1 else ""
    notes = [f"{where}: {len(raw):,} {'examples' if of else 'numbers'}{of} of {raw.dtype}{said}"]
    is_bytes = units.example_dtype == np.uint8
    if is_bytes and all(np.array_equal(each, raw[0]) for each in raw):  # mostly decided by the second example
        raise UsageError(f"{where}: all examples are the same: there is nothing to learn but one point")
    if is_bytes and (mean or std):
        raise UsageError(f"{name}: mean and std are for numbers, and images of bytes are scaled by the scaling")
    if not is_bytes:
        units, more = standardized(where, raw, units, train, standardize, mean, std)
        notes += more
    of_labels = _companion(labels, dir, "labels")
    of_context = _companion(context, dir, "context")
    picked: dict[str, Any] = {}
    if of_labels is not None:
        known = as_labels(labels if isinstance(labels, str) else where, np.asarray(of_labels), len(raw))
        picked |= {"train_labels": known[train], "test_labels": known[test] if len(test) else None}
    if of_context is not None:
        picked |= contexts(where, np.asarray(of_context), train, test)
        length = picked["train_context"].shape[1]
        notes.append(f"conditioned on {length} number{'s' * (length > 1)} for each example")
    notes.append(f"{len(train):,} to train on, {len(test):,} held out")
    held = rows(raw, test) if len(test) else None
    return Dataset(name, rows(raw, train), held, units=units, notes=tuple(notes), **picked)


def _check(kind: Any, layout: Any) -> None:
    if kind not in ("auto", *KINDS):
        raise ValueError(f"kind={kind!r}: one of auto, {', '.join(KINDS)} is needed")
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: one of {', '.join(LAYOUTS)} is needed")


def _read(dir: str | np.ndarray, key: str) -> np.ndarray:
    if isinstance(dir, str | Path):
        if not str(dir):
            raise UsageError("no file is named to read the array from: say dir=FILE.npy")
        return open_array(dir, key)
    return np.asarray(dir)


def _companion(given: Any, dir: Any, option: str) -> np.ndarray | None:
    """Labels or contexts: an array, one in a file of their own, or one in the same .npz file; None if not given."""
    if given is None or (isinstance(given, str) and not given):
        return None
    if not isinstance(given, str | Path):
        return np.asarray(given)
    inside = isinstance(dir, str | Path) and str(dir).lower().endswith(".npz") and not Path(given).expanduser().exists()
    try:
        return open_array(dir, str(given)) if inside else open_array(given)
    except UsageError as error:
        reason = str(error).partition(": say ")[0]
        raise UsageError(
            f"array: {option}={given}: {reason}: name a .npy file, or an array of the .npz file"
        ) from error


# The shape of an example


def _shaped(where: str, raw: np.ndarray, kind: str, layout: str) -> tuple[np.ndarray, Units, str]:
    """The array, its units without a standardisation, and what to say about its layout."""
    if raw.ndim == 0 or not raw.size:
        raise UsageError(f"{where} is {'a single number' if raw.ndim == 0 else 'empty'}: an array [N, ...] is needed")
    if raw.dtype.kind not in "buif":
        raise UsageError(f"{where} is of type {raw.dtype}: numbers are needed, as integers or floats")
    shape = raw.shape[1:]
    spatial = KINDS.get(kind)
    if spatial is None:
        grey = len(shape) == 2 and min(shape) > 4 and raw.dtype in (np.uint8, np.uint16)
        spatial = 2 if grey else max(0, len(shape) - 1)
    if spatial > 3 or len(shape) not in (spatial, spatial + 1):
        wanted = {0: "[N] or [N, D]", 1: "[N, L] or [N, L, C]", 2: "[N, H, W] or [N, H, W, C]"}
        kinds = kind if kind != "auto" else "examples"
        raise UsageError(
            f"{where} has the shape {listed(raw.shape)}: {kinds} are {wanted.get(spatial, '[N, D, H, W, C]')}: "
            "reshape it, or choose another kind"
        )
    channel, said = _channel(where, shape, spatial, layout)
    return raw, Units(str(raw.dtype), shape, channel), said


def _channel(where: str, shape: tuple[int, ...], spatial: int, layout: str) -> tuple[int | None, str]:
    """The axis of the channels, and what to say about it."""
    if len(shape) == spatial:
        if layout in ("first", "last"):
            raise UsageError(f"{where}: layout={layout}: examples of shape {listed(shape)} have no axis of channels")
        return None, "" if not spatial else "; one channel"
    if layout == "none":
        raise UsageError(f"{where}: layout=none: examples of shape {listed(shape)} have an axis of channels")
    if spatial == 0 or layout == "last":
        return -1, ""
    if layout == "first":
        return 0, f"; channels first: {shape[0]} channels"
    first, last = shape[0], shape[-1]
    if last <= 4 or last < min(shape[:-1]):
        return -1, f"; {last} channel{'s' * (last > 1)}, last"
    evident = len({*shape[1:]}) == 1 if spatial > 1 else first <= 16 and 4 * first <= last
    if first <= 4 or (evident and first < last):
        return 0, f"; {first} channel{'s' * (first > 1)}, first: they are moved to the end for the training"
    raise UsageError(
        f"{where}: examples of shape {listed(shape)}: it is not clear which axis has the channels: say layout=first or "
        f"layout=last{_instead(spatial)}"
    )


def _instead(spatial: int) -> str:
    more = {1: "images", 2: "volumes"}.get(spatial)
    return f", or kind={more} for examples of one channel" if more else ""
