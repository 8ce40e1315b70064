"""Standardisation: the mean and the standard deviation of each channel of the training examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from scoregen.data.dataset import errors_of
from scoregen.data.mapped import release, take
from scoregen.data.units import Units
from scoregen.errors import UsageError, check_finite, check_fraction, check_positive
from scoregen.random import check_seed

IN_MEMORY = 2**28  # bytes: smaller arrays are read into memory
CHUNK = 2**26  # bytes that are read at a time
EXACT = 2**53  # larger integers are not exact in float64
WIDER = "floating-point numbers can hold: leave such a column out, or subtract an offset"


def check_given(standardize: Any, mean: Any, std: Any, held_out: Any, seed: Any) -> None:
    """Raises TypeError or ValueError unless these options of a source are in their ranges, and fit each other."""
    check_fraction(held_out=held_out)
    check_seed(seed)
    for name, values, check in (("mean", mean, check_finite), ("std", std, check_positive)):
        if not isinstance(values, tuple | list):
            raise TypeError(f"{name}={values!r}: a tuple of numbers is needed, such as (0.0,)")
        for value in values:
            check(**{name: value})
    if bool(mean) != bool(std):
        raise ValueError(f"mean={mean}, std={std}: both are needed, or none")
    if mean and not standardize:
        raise ValueError(f"mean={mean}: it has no effect without standardize")


def standardized(
    where: str,
    raw: np.ndarray,
    units: Units,
    train: np.ndarray,
    standardize: bool,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    names: tuple[str, ...] = (),
) -> tuple[Units, list[str]]:
    """The units with the mean and the standard deviation of each channel, and what to say about them.

    Args:
        where: the name of the data, for messages.
        raw: all examples.
        units: of the examples, without a standardisation.
        train: the indices of the training examples, from which the mean and the standard deviation come.
        standardize: whether to standardise at all.
        mean, std: if given, they are used instead; one number, or one for each channel.
        names: of the channels, for messages.

    Raises:
        UsageError: for values that are not finite, and if no channel varies.
    """
    channels = units.example[-1]
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    is_train = np.zeros(len(raw), bool)
    is_train[train] = True
    for begin, z in _chunks(raw, units):
        if not np.isfinite(z).all():
            raise _not_finite(where, raw, units, names, begin)
        some = z[is_train[begin : begin + len(z)]].reshape(-1, channels)
        if len(some):
            low, high = np.minimum(low, some.min(0)), np.maximum(high, some.max(0))
    if names == () and max(-low.min(), high.max()) > EXACT and raw.dtype.kind in "iu":
        raise UsageError(f"{where}: integers of up to {max(-low.min(), high.max()):.3g} have more digits than {WIDER}")
    constant = np.flatnonzero(low == high)
    if len(constant) == channels:
        raise UsageError(f"{where}: all training examples are the same: there is nothing to learn but one point")
    named = [names[i] if names else str(i) for i in constant]
    said = [_constant(named, [float(low[i]) for i in constant], bool(names))] if named else []
    if not standardize:
        return units, said
    if mean:
        for option, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise UsageError(
                    f"{where}: {option}={tuple(values)}: one number, or one for each of the {channels} channels, is "
                    "needed"
                )
        centre, scale = (np.broadcast_to(np.asarray(values, float), (channels,)) for values in (mean, std))
        said.append("standardised by the given mean and std")
    else:
        centre, scale = _moments(raw, units, is_train, low, high)
        each = "column" if names or len(units.example) == 1 else "channel"
        said.append(
            f"standardised: each {each} by its mean and standard deviation"
            if channels > 1
            else f"standardised by the mean {centre[0]:.6g} and the standard deviation {scale[0]:.6g}"
        )
    with errors_of(where):
        made = Units(units.dtype, units.shape, units.channel, tuple(map(float, centre)), tuple(map(float, scale)))
    return made, said


def _constant(named: list[str], values: list[float], of_table: bool) -> str:
    what = "column" if of_table else "channel"
    shown = ", ".join(f"{name} = {value:g}" for name, value in zip(named[:3], values, strict=False))
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    verb = f"{what} is" if len(named) == 1 else f"{what}s are"
    return f"{len(named)} {verb} constant: {shown}{more}; samples have this value"


def _moments(
    raw: np.ndarray, units: Units, is_train: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, without overflow: values are first mapped to [-1, 1].

    Chunks are combined by the formulas of Chan, Golub & LeVeque 1983.
    """
    centre, half = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low
    unit = np.where(half > 0, half, 1.0)
    count, mean, square = 0, np.zeros_like(centre), np.zeros_like(centre)
    for begin, z in _chunks(raw, units):
        u = (z[is_train[begin : begin + len(z)]].reshape(-1, len(centre)) - centre) / unit
        if not len(u):
            continue
        of = u.mean(0)
        total = count + len(u)
        square += np.square(u - of).sum(0) + np.square(of - mean) * (count * len(u) / total)
        mean += (of - mean) * (len(u) / total)
        count = total
    return centre + half * mean, half * np.sqrt(square / count)


def _chunks(raw: np.ndarray, units: Units) -> Iterator[tuple[int, np.ndarray]]:
    """Consecutive examples in float64, channels last, each piece with the index of its first example."""
    size = max(1, CHUNK // (8 * max(1, raw[0].size)))
    for begin in range(0, len(raw), size):
        yield begin, units.channels_last(np.asarray(raw[begin : begin + size], np.float64))
        release(raw)


def _not_finite(where: str, raw: np.ndarray, units: Units, names: tuple[str, ...], begin: int) -> UsageError:
    """The error that names the first value that is not finite, and says how many examples have one."""
    first, bad = None, 0
    for at, z in _chunks(raw, units):
        wrong = ~np.isfinite(z)
        per_example = wrong.reshape(len(z), -1).any(1)
        bad += int(per_example.sum())
        if first is None and per_example.any():
            i = int(per_example.argmax())
            place = np.unravel_index(int(wrong[i].argmax()), wrong[i].shape)
            first = at + i, place, z[i][place]
    assert first is not None
    row, place, value = first
    column = f"column {names[place[-1]]!r}" if names else f"position {listed(tuple(map(int, place)))}"
    return UsageError(
        f"{where}: the value of row {row}, {column} is {value}; {bad} of {len(raw)} rows have values that are NaN or "
        "infinite: drop or fix them"
    )


def contexts(where: str, context: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """The fields of a `Dataset` for a context `[N]` or `[N, K]`, standardised."""
    if context.ndim not in (1, 2) or context.dtype.kind not in "buif" or len(context) != len(train) + len(test):
        raise UsageError(
            f"{where}: a context of shape {listed(context.shape)} and type {context.dtype} for "
            f"{len(train) + len(test)} examples: numbers [N] or [N, K] are needed"
        )
    context = context.reshape(len(context), -1)
    units, _ = standardized(f"{where}: context", context, Units(str(context.dtype), context.shape[1:]), train, True)
    made: dict[str, Any] = {"train_context": units.encode(context[train]), "context_units": units}
    return made | {"test_context": units.encode(context[test]) if len(test) else None}


def listed(shape: tuple[int, ...]) -> str:
    """A shape as text.

    >>> listed((8, 2))
    '[8, 2]'
    """
    return f"[{', '.join(map(str, shape))}]"


# Examples of an array that stays on disk


class Rows:
    """The examples of an array at some indices, read when they are needed. It is indexed like an array `[n, ...]`."""

    def __init__(self, array: np.ndarray, index: np.ndarray) -> None:
        self._array, self._index = array, index

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._index), *self._array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    @property
    def nbytes(self) -> int:
        return len(self) * self._array[:1].nbytes

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Any) -> np.ndarray:
        return take(self._array, self._index[index])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def rows(array: np.ndarray, index: np.ndarray) -> Any:
    """The examples at these indices: in memory, or `Rows` of a large memory-mapped array."""
    return Rows(array, index) if isinstance(array, np.memmap) and array.nbytes > IN_MEMORY else np.asarray(array)[index]
