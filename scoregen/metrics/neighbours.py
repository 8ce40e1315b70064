"""Distances of samples to their nearest training points: whether a network copies its training data."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from scoregen.errors import check_count
from scoregen.metrics.pairs import as_rows, blocks, nearest

RARE = 1e-3  # a probability below which something is not called chance


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
    def limit(self) -> float:
        """The k-th smallest distance of the M held-out points, k = max(1, M // 100).

        It is no interpolated quantile: with few held-out points, far more than 1 % of new data are below that.
        """
        return float(np.partition(self.held_out, self._rank - 1)[self._rank - 1])

    @property
    def memorised(self) -> float:
        """The share of the samples that are not farther from a training point than `limit`."""
        return self._counts[0] / len(self.samples)

    @property
    def memorised_held_out(self) -> float:
        """The same share of the held-out points, the floor of `memorised`.

        It is k / M: about 1 % of 100 points or more, and one point of fewer. It is larger if several have the distance
        `limit`, such as 0, the distance of those that are in the training set too.
        """
        return self._counts[1] / len(self.held_out)

    @property
    def chance(self) -> float:
        """The probability that new data, in place of the samples, have a share `memorised` at least as large.

        If samples and held-out points have one distribution, the number of samples up to the k-th of M held-out points
        is beta-binomial with the parameters N, k and M + 1 - k. If h > k held-out points are within the limit, because
        distances are equal, k is h + 1, which is Fisher's exact test for a given limit.

        >>> Neighbours(np.zeros(2), np.array([0.0, 1.0, 2.0]), np.zeros(2, int), 0.0).chance  # 2! 3! / 5!
        0.1
        """
        from scipy.stats import hypergeom  # imported late: this takes most of a second

        ours, theirs = self._counts
        before = theirs if theirs > self._rank else theirs - 1
        # The same probability as the beta-binomial one, which is not defined for h = M: of the first points by
        # distance, so many or fewer are held-out ones.
        everyone = len(self.samples) + len(self.held_out)
        return float(hypergeom(everyone, len(self.held_out), ours + before).cdf(before))

    @property
    def _rank(self) -> int:
        return max(1, len(self.held_out) // 100)

    @property
    def _counts(self) -> tuple[int, int]:
        return int((self.samples <= self.limit).sum()), int((self.held_out <= self.limit).sum())

    def statement(self, examples: str = "images") -> str:
        """One sentence on `memorised` and its floor. It says "more than chance" if `chance` is below `RARE`.

        >>> near = nearest_neighbours([[1.0], [2.0]], [[0.0], [3.0]], [[5.0]])
        >>> print(near.statement("points"))  # doctest: -NUMBER
        100.0 % of the samples are as near to a training point as the nearest 100.0 % of only 1 held-out points: ...
        """
        count = len(self.held_out)
        few = "" if count >= 100 else f"only {count} "
        return (
            f"{100 * self.memorised:.1f} % of the samples are as near to a training {examples.removesuffix('s')} as "
            f"the nearest {100 * self.memorised_held_out:.1f} % of {few}held-out {examples}: "
            + ("more than chance" if self.chance < RARE else "this may be chance")
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
