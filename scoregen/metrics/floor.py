"""The floor of a metric: the value that a perfect sampler would have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scoregen.errors import UsageError, check_count


@dataclasses.dataclass(frozen=True)
class WithFloor:
    """A distance with the value that a perfect sampler would show: see `with_floor`.

    >>> print(WithFloor(value=0.042, floor=0.03, floor_std=0.0021))
    0.042 (floor 0.03 +- 0.0021)
    """

    value: float
    floor: float
    floor_std: float | None

    def __str__(self) -> str:
        spread = "" if self.floor_std is None else f" +- {self.floor_std:.2g}"
        return f"{self.value:.4g} (floor {self.floor:.4g}{spread})"


def with_floor(
    distance: Callable[[np.ndarray, np.ndarray], float],
    samples: ArrayLike,
    train: ArrayLike,
    test: ArrayLike,
    *,
    repeats: int = 5,
    seed: int = 0,
) -> WithFloor:
    """A distance of samples to the test set, with the same distance of real data.

        value = distance(samples, test),     floor = mean_r distance(train_r, test),   r = 1 .. repeats

    Here train_r is a random subset of the training set, with as many points as there are samples. A distance
    between finite samples is not 0 even if the distributions are equal, and it depends on the sample size. The
    floor is the value of a perfect sampler at this size against this test set. floor_std is the standard
    deviation of this value between draws (divisor repeats - 1). A value within two or three floor_std of the
    floor cannot be distinguished from a perfect sampler's. A value well *below* the floor is a sign that the
    samples are too similar to the test set.

    The subsets are disjoint if the training set is large enough for `repeats` of them. Otherwise each is drawn
    separately, without replacement. The subsets then overlap, and floor_std is too small; `shortfall` says so. If
    there is one subset, because `repeats` is 1 or each subset would be the whole training set, floor_std is None.

    Args:
        distance: a function that takes two arrays [N, ...] and returns a number, such as `sliced_wasserstein`,
            `mmd` or `frechet_distance`.
        samples, train, test: [N, ...], [K, ...], [M, ...].
        repeats: number of subsets, at least 1.
        seed: the seed of the subsets.

    Raises:
        UsageError: if there are more samples than training examples.
        TypeError: if `repeats` is not an integer.
        ValueError: if repeats < 1.

    >>> points = np.arange(12.0)[:, None]
    >>> from scoregen.metrics import sliced_wasserstein
    >>> print(with_floor(sliced_wasserstein, points[:4] + 100.0, points, points))
    96 (floor 1.517 +- 0.43)
    """
    samples, train, test = np.asarray(samples), np.asarray(train), np.asarray(test)
    found = floors(lambda real: float(distance(real, test)), len(samples), train, repeats=repeats, seed=seed)
    std = spread(found)
    return WithFloor(float(distance(samples, test)), float(found.mean()), None if std is None else float(std))


def floors(
    measure: Callable[[Any], ArrayLike], count: int, train: Any, *, repeats: int = 5, seed: int = 0
) -> np.ndarray:
    """A measure of random subsets of real data, [repeats, ...]; [1, ...] if each subset would be the whole.

    Args:
        measure: a function of a subset, which returns one or more numbers.
        count: the size of the subsets; see `with_floor` on how they are drawn.
        train: [K, ...], or anything that has a length and takes an array of indices, such as `Activations`.
        repeats: number of subsets, at least 1.
        seed: the seed of the subsets.

    Raises:
        UsageError: if `count` is above K.
        TypeError, ValueError: as `with_floor`.

    >>> floors(np.mean, 2, np.arange(4.0), repeats=2)
    array([1., 2.])
    """
    check_floor(count, len(train), repeats)
    if count == len(train):
        return np.asarray([measure(train)])
    rng = np.random.default_rng(seed)
    if repeats * count <= len(train):
        subsets = rng.permutation(len(train))[: repeats * count].reshape(repeats, count)
    else:
        subsets = [rng.permutation(len(train))[:count] for _ in range(repeats)]
    # Sorted indices read a memory-mapped training set in order, and no distance depends on the order.
    return np.asarray([measure(train[np.sort(subset)]) for subset in subsets])


def check_floor(count: int, total: int, repeats: int) -> None:
    """Raises UsageError, TypeError and ValueError as `floors` does, for `repeats` subsets of `count` out of `total`."""
    check_count("repeats", repeats)
    if count > total:
        raise UsageError(
            f"{count} samples, but there are only {total} real examples to draw a comparison from: draw at most "
            f"{total} samples"
        )


def spread(found: np.ndarray) -> np.ndarray | None:
    """The standard deviation of `floors` (divisor repeats - 1); None if there is only one floor.

    >>> spread(np.array([[1.0, 4.0], [3.0, 4.0]]))
    array([1.41421, 0.     ])
    """
    return np.std(found, axis=0, ddof=1) if len(found) > 1 else None


def shortfall(count: int, total: int, repeats: int = 5) -> str:
    """What is wrong with the spread of a floor of `repeats` subsets of `count` out of `total`; "" if nothing is.

    >>> shortfall(10, 50), shortfall(10, 49), shortfall(10, 10)
    ('', "the floor's subsets overlap, so its spread is too small", 'the floor is of one subset, so its spread is ...')
    """
    if repeats == 1 or count == total:
        return "the floor is of one subset, so its spread is not known"
    return "the floor's subsets overlap, so its spread is too small" if repeats * count > total else ""
