"""Maximum mean discrepancies: with a Gaussian kernel for points, and with a polynomial kernel for features (KID)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from scoregen.errors import UsageError, check_count, check_positive
from scoregen.metrics.pairs import as_rows, blocks, kernel_sums, squared_distances
from scoregen.metrics.result import Result, jackknife_error


def mmd(x: ArrayLike, y: ArrayLike, *, bandwidth: float | None = None) -> float:
    """Maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012, eq. (5), the biased estimate).

        k(a, b) = exp(-||a - b||^2 / (2 h^2))
        MMD^2   = mean k(x_i, x_j) + mean k(y_i, y_j) - 2 mean k(x_i, y_j)     (all pairs, i = j too)

    The result is MMD, the square root. It is a distance between the two empirical distributions, zero only if
    they are equal, and at most sqrt(2). Between two samples of one distribution it is of the order of sqrt(1/N + 1/M),
    not 0: see `with_floor`.

    All pairs are used. The memory is one block of pairs, and the time is O((N + M)^2 D).

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
    x, y = as_rows(x, y)
    centre = y.mean(axis=0, dtype=np.float64)
    h = _median_distance(y[:2000] - centre) if bandwidth is None else bandwidth
    check_positive(bandwidth=h)

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        sums = kernel_sums(lambda p, q: np.exp(squared_distances(p, q) / (-2 * h * h)), a, b, centre)
        return float(sums.sum()) / (len(a) * len(b))

    return max(mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y), 0.0) ** 0.5


def _median_distance(points: np.ndarray) -> float:
    above = np.triu_indices(len(points), k=1)
    return float(np.median(np.sqrt(squared_distances(points, points)[above]))) if len(points) > 1 else 0.0


def kid(x: ArrayLike, y: ArrayLike) -> Result:
    """The squared maximum mean discrepancy with a cubic kernel, without bias, and its standard error.

        k(a, b) = (<a, b> / F + 1)^3
        MMD^2   = sum_{i != j} k(x_i, x_j) / (N (N - 1)) + sum_{i != j} k(y_i, y_j) / (M (M - 1))
                  - 2 sum_{i, j} k(x_i, y_j) / (N M)

    Binkowski et al. 2018 (arXiv:1801.01401); Gretton et al. 2012, eq. (3). In Inception features this is
    the KID; for other features, name them. The estimate is not biased, at any N and M: between two samples of one
    distribution its mean is 0, so it may be below 0.

    The error is the jackknife over the samples x, for the same y: the value without x_i follows from the sums of the
    kernel over the rows, so all N values cost no further kernel. On average it is not too small (Efron & Stein 1981).

    All pairs are used. The memory is one block of pairs, and the time is O((N + M)^2 F); `kid_subsets` is faster.

    Args:
        x, y: features [N, F] and [M, F], N at least 3 and M at least 2.

    Raises:
        UsageError: if there are fewer rows.
        ValueError: if the shapes do not fit, or a value is not finite.

    >>> kid([[0.0], [1.0], [2.0]], [[1.0], [1.0]]).value  # 58/6 + 16/2 - 2 * 72/6
    -6.33333
    """
    x, y = as_rows(x, y)
    if len(x) < 3 or len(y) < 2:
        raise UsageError(
            f"{len(x)} and {len(y)} rows of features: at least 3 samples and 2 of the reference are needed"
        )
    n, m = len(x), len(y)
    own, cross = _others(x), kernel_sums(_cubic, x, y)
    among = float(_others(y).sum()) / (m * (m - 1))

    def value(own: np.ndarray | float, cross: np.ndarray | float, n: int) -> np.ndarray | float:
        return own / (n * (n - 1)) + among - 2 * cross / (n * m)

    without = np.asarray(value(own.sum() - 2 * own, cross.sum() - cross, n - 1))
    how = f"all pairs; jackknife over {n} samples"
    return Result("kernel distance", float(value(own.sum(), cross.sum(), n)), jackknife_error(without), how, "lower")


def _cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    kernel = a @ b.T / a.shape[1] + 1.0
    return kernel * kernel * kernel


def _others(x: np.ndarray) -> np.ndarray:
    """sum_{j != i} k(x_i, x_j), [N]."""
    own = [(np.square(a).sum(axis=1) / a.shape[1] + 1.0) ** 3 for _, a in blocks(x)]
    return kernel_sums(_cubic, x, x) - np.concatenate(own)


def kid_subsets(x: ArrayLike, y: ArrayLike, *, subsets: int = 100, size: int = 1000, seed: int = 2020) -> np.ndarray:
    """The same estimate for random subsets of both sets, [subsets], as torch-fidelity draws them.

    The mean and the standard deviation (divisor `subsets`) of the result are torch-fidelity's two numbers, with the
    same defaults. The standard deviation is the spread of a subset's value, not the error of the mean.

    Args:
        x, y: features [N, F] and [M, F].
        subsets: their number.
        size: rows of a subset, drawn without replacement.
        seed: of the subsets.

    Raises:
        UsageError: if there are fewer rows than `size`.
        TypeError, ValueError: as `kid`, and for counts that are not integers, or too small.

    >>> kid_subsets([[0.0], [1.0], [2.0]], [[1.0], [1.0], [1.0]], subsets=2, size=3)
    array([-6.33333, -6.33333])
    """
    x, y = as_rows(x, y)
    check_count("subsets", subsets)
    check_count("size", size, 2)
    if size > min(len(x), len(y)):
        raise UsageError(f"subsets of {size}, but there are only {min(len(x), len(y))} rows: take a smaller size")
    rng = np.random.RandomState(seed)  # as torch-fidelity
    found = np.empty(subsets)
    for i in range(subsets):
        a, b = (rows[rng.choice(len(rows), size, replace=False)] for rows in (x, y))
        own = float(_others(a).sum() + _others(b).sum())
        found[i] = own / (size * (size - 1)) - 2 * float(kernel_sums(_cubic, a, b).sum()) / size**2
    return found
