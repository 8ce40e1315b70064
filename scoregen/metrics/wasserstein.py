"""Wasserstein distances between two samples: along random directions, and exact for small samples."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from scoregen.errors import UsageError, check_count, check_numbers
from scoregen.metrics.pairs import as_rows, squared_distances

MOST = 5000  # points of an exact distance: the costs take 200 MB, and the assignment some seconds


def wasserstein(x: ArrayLike, y: ArrayLike) -> float:
    """The exact 2-Wasserstein distance between two samples of equal size, at most 5,000 points each.

        W_2(x, y)^2 = min over permutations s of  mean_i ||x_i - y_s(i)||^2

    For equal sizes and weights an optimal transport plan is a permutation (Birkhoff 1946; Peyre & Cuturi 2019,
    proposition 2.1), so the linear assignment of SciPy is exact. The time grows as N^3 in the worst case.

    A shift by d gives ||d||. Between two samples of one distribution in D > 4 dimensions the distance falls only as
    N^{-1/D}: compare it with the floor, at equal N.

    Args:
        x, y: [N, ...], with equal N.

    Returns:
        W_2, in the units of the data.

    Raises:
        UsageError: if the sizes differ, or are above 5,000.
        ValueError: if the dimensions differ, a sample is empty, or a value is not finite.

    >>> wasserstein([[0.0], [5.0]], [[5.0], [3.0]]) ** 2  # 0 goes to 3
    4.5
    """
    points, others = as_rows(x, y)
    if len(points) != len(others) or len(points) > MOST:
        raise UsageError(
            f"{len(points)} and {len(others)} points: the exact distance needs equally many, at most {MOST}: "
            f"take the first {min(len(points), len(others), MOST)} of each, or sliced_wasserstein"
        )
    from scipy.optimize import linear_sum_assignment  # imported late: this takes most of a second

    centre = others.mean(axis=0, dtype=np.float64)
    points, others = points - centre, others - centre
    rows, columns = linear_sum_assignment(squared_distances(points, others))
    # By subtraction, which keeps the digits of small distances.
    return math.sqrt(float(np.square(points[rows] - others[columns]).sum(axis=1).mean()))


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
    x, y = (rows.astype(np.float64) for rows in as_rows(x, y))
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
