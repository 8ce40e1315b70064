"""A data set: arrays in memory, or memory-mapped, and one stateless `batch` over them."""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from scoregen.cond import Cond
from scoregen.data.mapped import release, take
from scoregen.data.units import Form, Units
from scoregen.errors import UsageError, check_fraction
from scoregen.random import check_seed

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)  # by identity: arrays do not compare to one truth value
class Dataset:
    """Examples to train on and examples held out.

    The examples are uint8 images `[N, H, W, C]` in 0..255, or floating-point arrays `[N, ...]` of any rank in the units
    of their source. A `scaling` turns them into the network's input. Floating-point numbers are held as float32:
    float16 and float64 are converted, which for float64 rounds each value to 24 significant bits and needs a copy in
    memory. Labels are held as int32 `[N]`; any integer type is converted if its values are the same in int32.

    A data set with `units` holds its examples as they came in, and `examples` and `batch` standardise them.

    Attributes:
        name: for messages and reports.
        train: the examples to train on.
        test: held-out examples of the same kind. With None there is no held-out loss.
        train_labels, test_labels: their classes; None if there are no labels.
        train_context, test_context: a vector for each example, `[N, K]`, that the network is conditioned on; None for
            none. It is held as float32, of about unit scale.
        log_density: if the true density is known, a JAX function from points `[B, D]` to log p(x) `[B]` in nats.
        columns: the name of each coordinate of examples `[N, D]`, for figures; None numbers them. If `train` is a
            pandas DataFrame, its columns are used.
        units: how `train` and `test` are standardised; None for examples that are trained on as they are.
        context_units: the same for contexts, which are standardised already.
        form: the kind of file that samples are written to.
        classes: the name of each class, in the order of the labels; None if they have no names.
        notes: lines about the data that a user should see before a training, such as files that could not be read.

    Raises UsageError, with the split's name, for an empty array, another type or rank, values that are not finite (with
    the number of such examples and the first index), train and test of different kinds, and labels that do not fit or
    have no name in `classes`.

    >>> points = Dataset("line", np.arange(6, dtype=np.float32)[:, None], np.zeros((1, 1), np.float32))
    >>> points.shape, points.is_image
    ((1,), False)
    >>> sorted(float(x) for x in points.batch(seed=0, step=0, size=6)[:, 0])
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    name: str
    train: np.ndarray
    test: np.ndarray | None = None
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    log_density: Callable | None = None
    columns: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    train_context: np.ndarray | None = None
    test_context: np.ndarray | None = None
    units: Units | None = None
    context_units: Units | None = None
    form: Form = Form()
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        columns = getattr(self.train, "columns", None) if self.columns is None else self.columns
        if columns is not None:
            object.__setattr__(self, "columns", tuple(map(str, columns)))
        for split in ("train", "test") if self.test is not None else ("train",):
            what, examples = f"{self.name}: {split}", getattr(self, split)
            if self.units is None:
                examples = _as_examples(what, examples)
                object.__setattr__(self, split, examples)
            if (labels := getattr(self, f"{split}_labels")) is not None:
                object.__setattr__(self, f"{split}_labels", as_labels(what, labels, len(examples)))
            if (context := getattr(self, f"{split}_context")) is not None:
                object.__setattr__(self, f"{split}_context", _as_context(what, context, len(examples)))
            if self.classes is not None:
                _check_classes(what, getattr(self, f"{split}_labels"), self.classes)
        if self.columns is not None and self.shape != (len(self.columns),):
            raise UsageError(
                f"{self.name}: {len(self.columns)} columns for examples of shape {self.shape}: name each coordinate"
            )
        if self.test is None:
            for of in ("labels", "context"):
                if getattr(self, f"test_{of}") is not None:
                    raise UsageError(f"{self.name}: there are test_{of} and no test examples: give both, or neither")
        elif (self.train_context is None) != (self.test_context is None):
            raise UsageError(f"{self.name}: only one of train and test has a context: give both, or neither")
        elif self.test_context is not None and self.test_context.shape[1] != self.context_dim:
            raise UsageError(f"{self.name}: train_context and test_context have vectors of different lengths")
        elif (self.train.dtype, self.train.shape[1:]) != (self.test.dtype, self.test.shape[1:]):
            raise UsageError(
                f"{self.name}: train holds {self.train.dtype} {self.train.shape[1:]} and test "
                f"{self.test.dtype} {self.test.shape[1:]}: make them the same kind of example"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example as it is trained on: (H, W, C), (D,) or any other."""
        return self.train.shape[1:] if self.units is None else self.units.example

    @property
    def dtype(self) -> np.dtype:
        """The type of the examples as they are trained on: uint8 or float32."""
        return self.train.dtype if self.units is None else self.units.example_dtype

    @property
    def is_image(self) -> bool:
        """True for uint8 images `[N, H, W, C]`, False for floating-point arrays."""
        return self.dtype == np.uint8

    @property
    def context_dim(self) -> int:
        """The length of the context vector of an example; 0 without contexts."""
        return 0 if self.train_context is None else self.train_context.shape[1]

    def examples(self, index: Any = slice(None), *, test: bool = False) -> np.ndarray:
        """Examples as they are trained on, uint8 or float32 `[n, *shape]`: those of an index, or all.

        Args:
            index: an integer array or a slice.
            test: whether to take them from the held-out examples, which must then exist.

        >>> from scoregen.data.units import Units
        >>> units = Units("float64", (1,), mean=(10.0,), std=(2.0,))
        >>> Dataset("line", np.array([[10.0], [14.0]]), units=units).examples([1]).tolist()
        [[2.0]]
        """
        raw: Any = self.test if test else self.train
        raw = raw[index] if isinstance(index, slice) else take(raw, np.asarray(index))
        return raw if self.units is None else self.units.encode(raw)

    def cond(self, index: Any = slice(None), *, test: bool = False, labels: bool = True) -> Cond:
        """The labels `[n]` and the contexts `[n, K]` of examples, as a network is given them; see `examples`.

        Args:
            index, test: see `examples`.
            labels: whether the network takes labels; without, they are left out.
        """
        label, context = (self.test_labels, self.test_context) if test else (self.train_labels, self.train_context)
        label, context = (None if of is None else of[index] for of in (label if labels else None, context))
        return Cond(label=label, context=context)  # pyright: ignore[reportArgumentType] - NumPy arrays

    def indices(self, seed: int, step: int, size: int) -> np.ndarray:
        """The indices of the training examples in batch number `step`: int `[size]`.

        The stream of examples has one new permutation of 0..N-1 per epoch, and batch `step` takes its positions
        step * size .. (step + 1) * size - 1. A batch may run across the end of an epoch, so no example is dropped,
        and `size` may exceed N. The labels of a `batch` are `data.train_labels[data.indices(seed, step, size)]`.

        Raises UsageError for a size below 1 and for a negative seed or step.

        >>> points = Dataset("line", np.zeros((3, 1), np.float32))
        >>> sorted(int(i) for i in points.indices(seed=0, step=0, size=6))
        [0, 0, 1, 1, 2, 2]
        """
        seed, step, size, n = int(seed), int(step), int(size), len(self.train)
        if size < 1 or seed < 0 or step < 0:
            raise UsageError(
                f"a batch needs size >= 1, seed >= 0 and step >= 0, not size={size}, seed={seed}, step={step}"
            )
        position, end, pieces = step * size, (step + 1) * size, []
        while position < end:
            epoch, offset = divmod(position, n)
            pieces.append(_permutation(seed, epoch, n)[offset : offset + end - position])
            position += len(pieces[-1])
        return np.concatenate(pieces)  # a copy even of one piece: the cached permutation stays unchanged

    def batch(self, seed: int, step: int, size: int) -> np.ndarray:
        """Batch number `step` of the shuffled training examples: `[size, *shape]`, uint8 or float32.

        It is a pure function of (seed, step, size). Training resumed at step k sees the same batches as an
        uninterrupted run, and a checkpoint needs no state of the data. See `indices` for the order and the
        errors.

        >>> points = Dataset("line", np.arange(9, dtype=np.float32)[:, None])
        >>> bool(np.all(points.batch(0, step=7, size=4) == points.batch(0, step=7, size=4)))
        True
        """
        return self.examples(self.indices(seed, step, size))


def as_dataset(data: Any, name: str = "data") -> Dataset:
    """A data set that uses a whole array `[N, ...]` for training; a `Dataset` is returned as it is.

    Raises UsageError as `Dataset` does, and for anything but an array or a data set.

    >>> series = as_dataset(np.zeros((400, 64, 2)))
    >>> series.shape, series.train.dtype, series.test is None
    ((64, 2), dtype('float32'), True)
    """
    return data if isinstance(data, Dataset) else Dataset(name, data)


@contextlib.contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Within it, a TypeError or a ValueError about an option becomes a UsageError that begins with the data's name."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: {error}") from None


def in_turns(labels: np.ndarray) -> np.ndarray:
    """An order of examples `[N]` in which the classes take turns: each class has its share of the first n, for any n.

    Example r = 0 .. c-1 of a class with c examples is placed at the fraction (r + 1/2) / c of the order.

    >>> labels = np.array([1, 1, 0, 0, 0, 0])
    >>> in_turns(labels).tolist(), labels[in_turns(labels)].tolist()
    ([2, 0, 3, 4, 1, 5], [0, 1, 0, 0, 1, 0])
    """
    order, count = np.argsort(labels, kind="stable"), np.bincount(labels)
    ordered = labels[order]
    rank = np.arange(len(labels)) - (np.cumsum(count) - count)[ordered]
    return order[np.argsort((rank + 0.5) / count[ordered], kind="stable")]


def hold_out(name: str, examples: np.ndarray, fraction: float, seed: int, labels: np.ndarray | None = None) -> Dataset:
    """Split `examples` `[N, ...]` by a seeded permutation: round(fraction * N) of them become `test`.

    Raises UsageError if one of the two parts would be empty, for a seed out of range, if all examples are the same, and
    in the same cases as `Dataset`. The message names a wrong example or label by its index in `examples`.

    >>> data = hold_out("line", np.arange(10, dtype=np.float32)[:, None], fraction=0.2, seed=0)
    >>> len(data.train), len(data.test)
    (8, 2)
    """
    # Checked before the shuffle, so that an index in a message is an index in the user's own data.
    columns = getattr(examples, "columns", None)
    examples = _as_examples(name, examples)
    n = len(examples)
    train, test = split(name, n, fraction, seed)
    if not len(test):
        raise UsageError(f"{name}: held_out={fraction} of {n} examples leaves none to test on: {ENOUGH}")
    if labels is not None:
        labels = as_labels(name, labels, n)
    if all(np.array_equal(each, examples[0]) for each in examples):  # mostly decided by the second example
        raise UsageError(f"{name}: all {n} examples are the same: there is nothing to learn but one point")
    picked = (None, None) if labels is None else (labels[train], labels[test])
    return Dataset(name, examples[train], examples[test], *picked, columns=columns)


ENOUGH = "choose a fraction between 0 and 1, and give more examples if there are few"


def split(name: str, count: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices of examples to train on, and of round(held_out * count) held-out ones: a seeded permutation.

    Raises:
        UsageError: for a fraction or a seed out of range, and if none would be left to train on.
    """
    with errors_of(name):
        check_fraction(held_out=held_out)
        check_seed(seed)
    cut = round(held_out * count)
    if cut == count:
        raise UsageError(f"{name}: held_out={held_out} of {count} examples leaves none to train on: {ENOUGH}")
    order = np.random.default_rng(seed).permutation(count)
    return order[cut:], order[:cut]


@functools.lru_cache(maxsize=4)  # a cache, not a state; four, because one batch may run across an epoch's end
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)


def _as_array(what: str, x: Any, kind: str = "one array of all examples, [N, ...]") -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x
    if hasattr(x, "__array__"):
        return np.asarray(x)
    pair = (
        what.endswith("train") and isinstance(x, tuple) and [hasattr(part, "__array__") for part in x] == [True, True]
    )
    if pair:
        hint = "pass examples and labels as sg.data.Dataset('mine', examples, train_labels=labels)"
    elif isinstance(x, str | os.PathLike):
        hint = "read the file first, such as with np.load"
    elif isinstance(x, list | tuple):
        hint = "pass np.asarray(...)"
    else:
        hint = f"pass {kind}"
    raise UsageError(f"{what} is {'a pair of arrays' if pair else f'a {type(x).__name__}'}, not an array: {hint}")


def _as_examples(what: str, x: Any) -> np.ndarray:
    """The examples as uint8 images `[N, H, W, C]` or as finite float32 `[N, ...]`."""
    x = _as_array(what, x)
    if np.issubdtype(x.dtype, np.floating) or x.dtype.name == "bfloat16":
        if x.ndim < 2:
            raise UsageError(f"{what} is {x.dtype} of shape {x.shape}: pass an array [N, ...], such as x[:, None]")
    elif x.dtype != np.uint8 or x.ndim != 4:
        raise UsageError(f"{what} is {x.dtype} of shape {x.shape}: {_instead(x)}")
    if x.size == 0:
        raise UsageError(f"{what} is empty (shape {x.shape}): pass at least one example")
    if x.dtype == np.uint8:
        return x
    _check_finite(what, x)
    release(x)
    if x.dtype == np.float32:
        return x
    with np.errstate(over="ignore"):
        converted = x.astype(np.float32)
    if not np.isfinite(converted).all():
        raise UsageError(f"{what} is {x.dtype} with values beyond float32, up to {np.abs(x).max():.3g}: scale it down")
    _log.info("%s is %s, and is taken as float32", what, x.dtype)
    return converted


def _instead(x: np.ndarray) -> str:
    """What to pass instead of an array that is neither uint8 images nor floating-point."""
    if np.issubdtype(x.dtype, np.complexfloating):
        return "pass the real and the imaginary part as float32, such as np.stack([x.real, x.imag], -1)"
    if x.dtype == np.uint8 and x.ndim == 3:
        return "pass uint8 images as [N, H, W, C], such as x[..., None] for grey ones"
    if np.issubdtype(x.dtype, np.number):
        return "pass sg.data.array(x), which standardises it, or uint8 images [N, H, W, C]"
    return "pass numbers, as uint8 images [N, H, W, C] or a float32 array [N, ...]"


def _check_finite(what: str, x: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
    if bad.size:
        raise UsageError(
            f"{what} has {bad.size} of {len(x)} examples with NaN or infinite values, the first at index {bad[0]}: "
            "drop or fix them"
        )


def _as_context(what: str, context: Any, count: int) -> np.ndarray:
    """Contexts as finite float32 `[count, K]`."""
    context = _as_array(f"{what}: contexts", context, "an array [N, K]")
    if context.ndim != 2 or len(context) != count or not np.issubdtype(context.dtype, np.floating):
        raise UsageError(
            f"{what}: contexts are {context.dtype} of shape {context.shape} for {count} examples: pass floating-point "
            f"vectors ({count}, K)"
        )
    _check_finite(f"{what}: contexts", context)
    return context.astype(np.float32, copy=False)


NO_LABEL = ("nan", "NaN", "NAN")  # as programs write a label that is not known: no name of a class


def as_labels(what: str, labels: Any, count: int) -> np.ndarray:
    """Labels as int32 `[count]`, if their values fit."""
    labels = _as_array(f"{what}: labels", labels, "an array of integers, one for each example")
    if labels.shape != (count,):
        raise UsageError(f"{what}: labels of shape {labels.shape} for {count} examples: pass one for each, ({count},)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"{what}: labels are {labels.dtype}, such as {labels[0]}: pass the classes as integers, counted from 0"
        )
    least, most = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    bad = np.flatnonzero((labels < least) | (labels > most))
    if bad.size:
        raise UsageError(
            f"{what}: the label {labels[bad[0]]} at index {bad[0]} does not fit int32: count the classes from 0"
        )
    if labels.size and labels.min() < 0:
        raise UsageError(
            f"{what}: a label is {labels.min()}: count the classes from 0, such as by "
            "np.unique(labels, return_inverse=True)[1]"
        )
    return labels.astype(np.int32, copy=False)


def _check_classes(what: str, labels: np.ndarray | None, classes: tuple[str, ...]) -> None:
    if labels is None:
        raise UsageError(f"{what}: {len(classes)} names of classes and no labels: give both, or neither")
    if labels.max() >= len(classes):
        raise UsageError(
            f"{what}: labels from {labels.min()} to {labels.max()} for {len(classes)} names of classes: give each "
            "class a name, and count the classes from 0"
        )
