"""Distances between two samples, and the floor: the value that a perfect sampler would have.

Rows are examples: an array [N, ...] is flattened to N points [N, D]. Results are computed in float64 with NumPy, and
every random choice comes from a seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from scoregen.errors import UsageError, check_count, check_numbers, check_positive

_ROWS = 1024  # rows in a block of pairwise distances: memory must hold 1,024 x M numbers


def sliced_wasserstein(x: ArrayLike, y: ArrayLike, *, projections: int = 256, seed: int = 0, p: float = 1.0) -> float:
    """Sliced Wasserstein distance between two samples (Rabin et al. 2012; Bonneel et al. 2015).

        SW_p(x, y)^p = E_u[ W_p(<x, u>, <y, u>)^p ],     u uniform on the unit sphere of R^D
        W_p(a, b)^p = int_0^1 |F_a^{-1}(q) - F_b^{-1}(q)|^p dq

    For p = 1 this is the mean over directions of the one-dimensional W_1. The one-dimensional distances are
    exact, also for samples of unequal sizes, because quantile functions are steps. The expectation is a
    mean over `projections` directions; for a shift its relative standard error is 0.48 / sqrt(projections)
    in two dimensions, and tends to 0.76 / sqrt(projections) in many.

    A shift by d gives SW_1 = E|<u, d>|, which is 2 ||d|| / pi in two dimensions and about
    ||d|| sqrt(2 / (pi D)) in many.

    Args:
        x, y: [N, ...] and [M, ...].
        projections: number of directions.
        seed: the seed of the directions. With equal seeds, two values differ only because of the data, not
            because of the directions.
        p: order, at least 1.

    Returns:
        SW_p, in the units of the data.

    Raises:
        TypeError: if `projections` is not an integer.
        ValueError: if the dimensions differ, a sample is empty, a value is not finite, p < 1 or
            projections < 1.

    >>> sliced_wasserstein([[0.0], [1.0]], [[3.0], [2.0]])
    2.0
    """
    x, y = _points(x, y)
    check_numbers(lambda p: 1 <= p < math.inf, "a number of at least 1", p=p)
    check_count("projections", projections)
    directions = np.random.default_rng(seed).standard_normal((x.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    # On [0, 1] both quantile functions are constant between neighbours of the set {i/N} u {j/M}. In units of
    # 1/(N M) these are integers, so the pieces are exact, and they are the same for every direction.
    n, m = len(x), len(y)
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    starts = np.concatenate([[0], ends[:-1]])
    from_x, from_y, weights = starts // m, starts // n, (ends - starts) / (n * m)
    total = 0.0
    columns = max(1, 2**22 // (n + m))  # 32 MiB of projected points at a time
    for first in range(0, projections, columns):
        u = directions[:, first : first + columns]
        gap = np.abs(np.sort(x @ u, axis=0)[from_x] - np.sort(y @ u, axis=0)[from_y])
        total += float((weights @ gap**p).sum())
    return (total / projections) ** (1.0 / p)


def mmd(x: ArrayLike, y: ArrayLike, *, bandwidth: float | None = None) -> float:
    """Maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012, eq. (5), the biased estimate).

        k(a, b) = exp(-||a - b||^2 / (2 h^2))
        MMD^2   = mean k(x_i, x_j) + mean k(y_i, y_j) - 2 mean k(x_i, y_j)     (all pairs, i = j too)

    The result is MMD, the square root. It is a distance between the two empirical distributions, zero only if
    they are equal, and at most sqrt(2). Between two samples of one distribution it is of the order of sqrt(1/N + 1/M),
    not 0: see `with_floor`.

    All pairs are used. The memory is one block of 1,024 rows of distances, and the time is O((N + M)^2 D).

    Args:
        x, y: [N, ...] and [M, ...].
        bandwidth: h, in the units of the data. None takes the median distance between the points of y (the
            first 2,000 if there are more). y is the reference, so the kernel does not depend on the samples in x.

    Raises:
        ValueError: if the dimensions differ, a sample is empty, a value is not finite, or the bandwidth is
            not positive (as when y is one point, repeated).

    >>> round(mmd([[0.0]], [[1.0]], bandwidth=1.0), 6)  # sqrt(2 - 2 exp(-1/2))
    0.887096
    """
    points_x, points_y = _points(x, y)
    # Distances come from ||a||^2 + ||b||^2 - 2 <a, b>, which loses digits far from the origin.
    centre = points_y.mean(axis=0)
    points_x, points_y = points_x - centre, points_y - centre
    h = _median_distance(points_y[:2000]) if bandwidth is None else bandwidth
    check_positive(bandwidth=h)

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        blocks = (np.exp(_squared_distances(a[i : i + _ROWS], b) / (-2 * h * h)) for i in range(0, len(a), _ROWS))
        return sum(float(block.sum()) for block in blocks) / (len(a) * len(b))

    within = mean_kernel(points_x, points_x) + mean_kernel(points_y, points_y)
    return max(within - 2 * mean_kernel(points_x, points_y), 0.0) ** 0.5


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Distances to the nearest training point: see `nearest_neighbours`."""

    samples: np.ndarray  # [N], distances of the samples
    held_out: np.ndarray  # [M], distances of the held-out points
    index: np.ndarray  # [N], the index of the training point that is nearest to each sample
    ratio: float  # median(samples) / median(held_out)


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


@dataclasses.dataclass(frozen=True)
class WithFloor:
    """A distance with the value that a perfect sampler would show: see `with_floor`.

    >>> print(WithFloor(value=0.042, floor=0.03, floor_std=0.0021))
    0.042 (floor 0.03 +- 0.0021)
    """

    value: float
    floor: float
    floor_std: float

    def __str__(self) -> str:
        return f"{self.value:.4g} (floor {self.floor:.4g} +- {self.floor_std:.2g})"


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
    separately, without replacement. The subsets then overlap, and floor_std is too small (0 if each subset is
    the whole training set).

    Args:
        distance: a function that takes two arrays [N, ...] and returns a number, such as `sliced_wasserstein`,
            `mmd` or `frechet_distance`.
        samples, train, test: [N, ...], [K, ...], [M, ...].
        repeats: number of subsets, at least 1; with 1, floor_std is 0.
        seed: the seed of the subsets.

    Raises:
        UsageError: if there are more samples than training points.
        TypeError: if `repeats` is not an integer.
        ValueError: if repeats < 1.

    >>> points = np.arange(12.0)[:, None]
    >>> print(with_floor(sliced_wasserstein, points[:4] + 100.0, points, points))
    96 (floor 1.517 +- 0.43)
    """
    samples, train, test = np.asarray(samples), np.asarray(train), np.asarray(test)
    check_count("repeats", repeats)
    n = len(samples)
    if n > len(train):
        raise UsageError(
            f"{n} samples, but the training set has only {len(train)} points to draw a comparison from: "
            f"draw at most {len(train)} samples"
        )
    rng = np.random.default_rng(seed)
    if n == len(train):  # each subset would be the whole training set
        subsets = np.arange(n)[None]
    elif repeats * n <= len(train):
        subsets = rng.permutation(len(train))[: repeats * n].reshape(repeats, n)
    else:
        subsets = np.stack([rng.permutation(len(train))[:n] for _ in range(repeats)])
    # Sorted indices read a memory-mapped training set in order, and no distance depends on the order.
    floors = [float(distance(train[np.sort(subset)], test)) for subset in subsets]
    spread = float(np.std(floors, ddof=1)) if len(floors) > 1 else 0.0
    return WithFloor(float(distance(samples, test)), float(np.mean(floors)), spread)


def _points(*arrays: ArrayLike) -> list[np.ndarray]:
    """Arrays [N, ...] as finite float64 [N, D], with the same D."""
    points = []
    for array in arrays:
        array = np.asarray(array)
        if array.ndim == 0 or len(array) == 0:
            raise ValueError(f"a sample needs at least one row, not the shape {array.shape}")
        rows = array.reshape(len(array), -1).astype(np.float64)
        bad = int(np.count_nonzero(~np.isfinite(rows).all(axis=1)))
        if bad:
            raise ValueError(f"{bad} of {len(rows)} points are not finite")
        points.append(rows)
    if len({rows.shape[1] for rows in points}) > 1:
        raise ValueError(f"points of unequal dimensions: {[rows.shape[1] for rows in points]}")
    return points


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, D], [M, D] -> [N, M]; rounding may give values slightly below 0, which are set to 0."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None, :]
    return np.maximum(squares - 2 * (a @ b.T), 0.0)


def _median_distance(points: np.ndarray) -> float:
    above = np.triu_indices(len(points), k=1)
    return float(np.median(np.sqrt(_squared_distances(points, points)[above]))) if len(points) > 1 else 0.0


def _nearest(points: ArrayLike, train: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest point of train [N], and its index [N]."""
    (points,) = _points(points)
    train = np.asarray(train)
    if len(train) == 0:
        raise ValueError("the training set is empty")
    centre = points.mean(axis=0)
    # The search runs in float32, which is twice as fast, and by blocks, so that a training set in bytes is never
    # held in memory at eight times its size. Rounding can only change which training point is found if two are nearly
    # equally near.
    centred = (points - centre).astype(np.float32)
    best, index = np.full(len(points), np.inf, np.float32), np.zeros(len(points), np.int64)
    for first in range(0, len(train), _ROWS):
        _, block = _points(points[:1], train[first : first + _ROWS])
        squares = _squared_distances(centred, (block - centre).astype(np.float32))
        at = squares.argmin(axis=1)
        least = squares[np.arange(len(points)), at]
        index, best = np.where(least < best, first + at, index), np.minimum(best, least)
    # The distance is computed again in float64 by subtraction: an exact copy then has distance exactly 0.
    exact = np.empty(len(points))
    for first in range(0, len(points), _ROWS):
        rows = slice(first, first + _ROWS)
        nearest = train[index[rows]].reshape(-1, points.shape[1]).astype(np.float64)
        exact[rows] = np.sqrt(np.square(points[rows] - nearest).sum(axis=1))
    return exact, index
