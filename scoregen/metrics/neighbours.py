"""Distances of samples to their nearest training points: whether a network copies its training data."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from scoregen.errors import check_count
from scoregen.metrics.pairs import as_rows, blocks, nearest


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Distances to the nearest training point: see `nearest_neighbours`."""

    samples: np.ndarray  # [N], distances of the samples
    held_out: np.ndarray  # [M], distances of the held-out points
    index: np.ndarray  # [N], the index of the training point that is nearest to each sample
    ratio: float  # median(samples) / median(held_out)

    def closest(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The samples that are nearest to a training point: their indices, those of the training points, the distances.

        All three are [count], or [N] if there are fewer samples, from the smallest distance to the largest. A picture
        of `samples[first]` beside `train[second]` shows the worst cases of copying.

        >>> nearest_neighbours([[1.0], [2.9]], [[0.0], [3.0]], [[5.0]]).closest(1)
        (array([1]), array([1]), array([0.1]))
        """
        check_count("count", count)
        first = np.argsort(self.samples, kind="stable")[:count]
        return first, self.index[first], self.samples[first]

    @property
    def memorised(self) -> float:
        """The share of the samples that are nearer to a training point than 99 % of the held-out points are."""
        return float(np.mean(self.samples < np.quantile(self.held_out, 0.01)))

    @property
    def memorised_held_out(self) -> float:
        """The same share of the held-out points: the floor of `memorised`, about 0.01 by its definition."""
        return float(np.mean(self.held_out < np.quantile(self.held_out, 0.01)))

    def statement(self, examples: str = "images") -> str:
        """One sentence on `memorised`. More than chance is three standard deviations above 1 %.

        >>> near = nearest_neighbours([[1.0], [2.0]], [[0.0], [3.0]], [[5.0]])
        >>> print(near.statement("points"))  # doctest: -NUMBER
        100.0 % of the samples are closer to a training point than 99 % of held-out points: more than the 1 % of chance
        """
        chance = 0.01 + 3 * (0.01 * 0.99 * (1 / len(self.samples) + 1 / len(self.held_out))) ** 0.5
        verdict = "more than the 1 % of chance" if self.memorised > chance else "about 1 % is chance"
        return (
            f"{100 * self.memorised:.1f} % of the samples are closer to a training {examples.removesuffix('s')} than "
            f"99 % of held-out {examples}: {verdict}"
        )


def nearest_neighbours(samples: ArrayLike, train: ArrayLike, held_out: ArrayLike) -> Neighbours:
    """Euclidean distance from each sample, and from each held-out point, to its nearest training point.

        d(a) = min_i ||a - train_i||,     ratio = median d(samples) / median d(held_out)

    How to read the ratio: held-out points are new draws from the data's distribution, so a good sampler gives a
    ratio near 1. A ratio far below 1, or single samples with distances far below the held-out distances, means
    that training points were reproduced: compare the samples with `train[index]`. A ratio above 1 means that
    samples lie far from all data. Smooth or blurred images lie nearer to all images, so a ratio slightly below
    1 alone proves nothing.

    Args:
        samples, train, held_out: [N, ...], [K, ...], [M, ...] in one unit. N and M need not be equal.

    Raises:
        ValueError: if the dimensions differ, a sample is empty, a value is not finite, or more than half of
            the held-out points are in the training set, so that their median distance is 0.

    >>> nearest_neighbours([[1.0]], [[0.0], [3.0]], [[5.0]]).ratio
    0.5
    """
    from_samples, index = _nearest(samples, train)
    from_held_out, _ = _nearest(held_out, train)
    usual = float(np.median(from_held_out))
    if usual == 0:
        raise ValueError("more than half of the held-out points are training points: held-out data are needed")
    return Neighbours(from_samples, from_held_out, index, float(np.median(from_samples)) / usual)


def _nearest(points: ArrayLike, train: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest point of train [N], and its index [N]."""
    train = np.asarray(train)
    if len(train) == 0:
        raise ValueError("the training set is empty")
    points, train = as_rows(points, train)
    # The search runs in float32, which is twice as fast. Rounding can only change which training point is found if two
    # are nearly equally near.
    index = nearest(points, train, 1, centre=points.mean(axis=0, dtype=np.float64), dtype=np.float32)[1].ravel()
    # The distance is computed again in float64 by subtraction: an exact copy then has distance exactly 0.
    exact = np.empty(len(points))
    for at, block in blocks(points):
        exact[at] = np.sqrt(np.square(block - train[index[at]]).sum(axis=1))
    return exact, index
