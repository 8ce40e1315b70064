"""A data set: two arrays in memory, or memory-mapped, and one stateless `batch` over them."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scoregen.errors import UsageError


@dataclasses.dataclass(frozen=True, eq=False)  # by identity: arrays do not compare to one truth value
class Dataset:
    """Examples to train on and examples held out.

    Images are uint8 `[N, H, W, C]` in 0..255, points float32 `[N, D]` in the units of their source; what the
    network sees is the business of `scaling`. Labels are int32 `[N]`. `log_density`, where the true density
    is known, maps points `[B, D]` to `log p(x)` `[B]` in nats, as a jax function.

    Raises UsageError, naming the split, for an empty array, another dtype or rank, rows that are not finite
    (how many, and the first), train and test of different kinds, and labels that do not fit.

    >>> points = Dataset("line", np.arange(6, dtype=np.float32)[:, None], np.zeros((1, 1), np.float32))
    >>> points.shape, points.is_image
    ((1,), False)
    >>> sorted(float(x) for x in points.batch(seed=0, step=0, size=6)[:, 0])
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    log_density: Callable | None = None

    def __post_init__(self) -> None:
        _check(f"{self.name}: train", self.train, self.train_labels)
        _check(f"{self.name}: test", self.test, self.test_labels)
        if (self.train.dtype, self.train.shape[1:]) != (self.test.dtype, self.test.shape[1:]):
            raise UsageError(
                f"{self.name}: train holds {self.train.dtype} {self.train.shape[1:]} and test "
                f"{self.test.dtype} {self.test.shape[1:]}: make them the same kind of example"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example: (H, W, C) or (D,)."""
        return self.train.shape[1:]

    @property
    def is_image(self) -> bool:
        """True for uint8 images, False for points."""
        return self.train.dtype == np.uint8

    def indices(self, seed: int, step: int, size: int) -> np.ndarray:
        """Which training examples batch number `step` holds: int `[size]`.

        The stream is the concatenation of one fresh permutation of 0..N-1 an epoch, and batch `step` is its
        positions step * size .. (step + 1) * size - 1. A batch runs across the end of an epoch, so no example
        is dropped, and `size` may exceed N. Taken apart from `batch` for those who want the labels too:
        `data.train_labels[data.indices(seed, step, size)]`.

        Raises UsageError for a size below 1 and for a negative seed or step.

        >>> points = Dataset("line", np.zeros((3, 1), np.float32), np.zeros((1, 1), np.float32))
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
        return np.concatenate(pieces)  # a copy, also of one piece: the permutation stays untouched

    def batch(self, seed: int, step: int, size: int) -> np.ndarray:
        """Batch number `step` of the shuffled training examples: `[size, *shape]`, in the dtype of `train`.

        A pure function of (seed, step, size): training resumed at step k sees what an uninterrupted run sees,
        and nothing about the data has to go into a checkpoint. See `indices` for the order; raises as it
        does.

        >>> points = Dataset("line", np.arange(9, dtype=np.float32)[:, None], np.zeros((1, 1), np.float32))
        >>> bool(np.all(points.batch(0, step=7, size=4) == points.batch(0, step=7, size=4)))
        True
        """
        return self.train[self.indices(seed, step, size)]


def in_turns(labels: np.ndarray) -> np.ndarray:
    """The labels `[N]` in an order where the classes take turns: of the first n, each has its share of all.

    Number r of the c of a class stands where the fraction (r + 1/2) / c of all has passed.

    >>> in_turns(np.array([1, 1, 0, 0, 0, 0])).tolist(), in_turns(np.array([2, 2, 1, 1, 0, 0])).tolist()
    ([0, 1, 0, 0, 1, 0], [0, 1, 2, 0, 1, 2])
    """
    ordered, count = np.sort(labels), np.bincount(labels)
    rank = np.arange(len(labels)) - (np.cumsum(count) - count)[ordered]
    return ordered[np.argsort((rank + 0.5) / count[ordered], kind="stable")]


def read_array(path: str) -> np.ndarray:
    """The array in a .npy file.

    Raises UsageError if none is named, and if it cannot be read, is no such file or is cut short.
    """
    if not path:
        raise UsageError("no file is named to read the data from: say --config.data.dir=FILE.npy")
    try:
        with Path(path).expanduser().open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: say --config.data.dir=FILE.npy, a file of np.save") from None
    except ValueError:
        raise UsageError(f"{path} is no whole .npy file of numbers: write it anew, with np.save") from None


def hold_out(name: str, examples: np.ndarray, fraction: float, seed: int, labels: np.ndarray | None = None) -> Dataset:
    """Split `examples` `[N, ...]` by a seeded permutation: round(fraction * N) of them become `test`.

    Raises UsageError where one of the two sides would be empty, and as Dataset does, but for rows that are not finite,
    whose index is that in `examples`.

    >>> data = hold_out("line", np.arange(10, dtype=np.float32)[:, None], fraction=0.2, seed=0)
    >>> len(data.train), len(data.test)
    (8, 2)
    """
    n, seed = len(examples), int(seed)
    cut = round(fraction * n) if 0 < fraction < 1 else 0
    if not 0 < cut < n:
        raise UsageError(
            f"{name}: held_out={fraction} of {n} examples leaves none to train on or none to test "
            "on: choose a fraction between 0 and 1, and give more examples if there are few"
        )
    if seed < 0:
        raise UsageError(f"{name}: seed={seed} must not be negative")
    if labels is not None and len(labels) != n:
        raise UsageError(f"{name}: {len(labels)} labels for {n} examples: each example needs one")
    if isinstance(examples, np.ndarray):
        _check_finite(name, examples)  # before they are shuffled: the index is that in the person's own data
    if all(np.array_equal(each, examples[0]) for each in examples):  # as a rule the second is another
        raise UsageError(f"{name}: all {n} examples are the same: there is nothing to learn but one point")
    order = np.random.default_rng(seed).permutation(n)
    test, train = order[:cut], order[cut:]
    pick = (lambda index: None) if labels is None else (lambda index: labels[index].astype(np.int32))
    return Dataset(name, examples[train], examples[test], pick(train), pick(test))


@functools.lru_cache(maxsize=4)  # a memo, not a state; four, because one batch may run across an epoch's end
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)


def _check_finite(what: str, x: np.ndarray) -> None:
    if x.dtype == np.float32 and x.ndim == 2:
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if bad.size:
            raise UsageError(
                f"{what} has {bad.size} of {len(x)} rows with NaN or infinite values, the first at "
                f"index {bad[0]}: drop or mend them"
            )


def _check(what: str, x: np.ndarray, labels: np.ndarray | None) -> None:
    if not isinstance(x, np.ndarray):
        raise UsageError(f"{what} is a {type(x).__name__}, not a numpy array: pass np.asarray(...)")
    if (x.dtype, x.ndim) not in ((np.dtype(np.uint8), 4), (np.dtype(np.float32), 2)):
        raise UsageError(
            f"{what} is {x.dtype} of shape {x.shape}: pass uint8 images [N, H, W, C] or float32 points [N, D]"
        )
    if x.size == 0:
        raise UsageError(f"{what} is empty (shape {x.shape}): pass at least one example")
    _check_finite(what, x)
    if labels is not None:
        kind = getattr(labels, "dtype", type(labels).__name__)
        if kind != np.dtype(np.int32) or labels.shape != (len(x),):
            raise UsageError(f"{what}: labels are {kind} of shape {np.shape(labels)}: pass int32 of shape ({len(x)},)")
