"""The Frechet distance between two sets of features, its error, and its value without the bias of finite samples."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from scoregen.errors import UsageError, check_count
from scoregen.metrics.pairs import blocks
from scoregen.metrics.result import Result
from scoregen.metrics.statistics import Activations, Statistics, as_statistics

Features = ArrayLike | Activations | Statistics
PARTS = 5  # of `frechet_infinity`: 1 + 2 + ... + 5 = 15 distances, as many as in the paper


def frechet_distance(x: Features, y: Features) -> float:
    """Squared Frechet (2-Wasserstein) distance between the Gaussians fitted to two samples.

        d^2 = ||m_x - m_y||^2 + tr(S_x + S_y - 2 (S_x S_y)^{1/2})

    Dowson & Landau 1982; Heusel et al. 2017 (arXiv:1706.08500), eq. (6), on features of images. m is the mean
    and S the covariance with the divisor N - 1. The name "FID" is reserved for the features of one
    Inception network; for other features, name them.

    With the symmetric roots R = S^{1/2}, tr (S_x S_y)^{1/2} is the sum of the singular values of R_x R_y. Two
    symmetric eigen-decompositions give the roots, so a singular covariance gives no complex numbers, unlike
    in the general matrix root.

    The estimate is biased upwards, roughly as 1/N, so compare values only at equal sample sizes.
    `with_floor` measures the value between two real samples of that size, and `frechet_infinity` removes the bias.

    Args:
        x, y: features [N, F] and [M, F], as arrays or `Activations`, or their `Statistics`.

    Returns:
        d^2, in squared units of the features; not negative.

    Raises:
        ValueError: if the shapes do not fit, a sample has fewer than two rows, or a value is not finite.
        UsageError: if the features of the two were made in different ways.

    >>> x = np.array([[0.0], [2.0]])
    >>> frechet_distance(x, x + 3.0)
    9.0
    """
    x, y = _checked(x, y)
    return max(_apart(x, y) - 2.0 * float(np.linalg.svd(x.root @ y.root, compute_uv=False).sum()), 0.0)


def frechet_gaussians(mean_x: ArrayLike, cov_x: ArrayLike, mean_y: ArrayLike, cov_y: ArrayLike) -> float:
    """The same distance between N(mean_x, cov_x) and N(mean_y, cov_y).

    Args:
        mean_x, mean_y: [F].
        cov_x, cov_y: symmetric [F, F], positive semi-definite up to rounding.

    Raises:
        ValueError: if the shapes do not fit, a value is not finite, or a covariance is not symmetric or has negative
            eigenvalues.

    >>> frechet_gaussians([0.0], [[4.0]], [1.0], [[9.0]])
    2.0
    """
    x, y = ((np.asarray(mean), np.asarray(cov)) for mean, cov in ((mean_x, cov_x), (mean_y, cov_y)))
    return frechet_distance(Statistics(None, *x), Statistics(None, *y))


def frechet(x: Features, y: Features) -> Result:
    """The Frechet distance with its standard error over draws of the samples x, for the same y.

    The error is the infinitesimal jackknife (Jaeckel 1972; Efron 1982, chapter 6): to first order, sample x_i changes
    the distance by psi_i / N, and std^2 = sum psi_i^2 / (N (N - 1)). By the derivatives in mean and covariance,

        psi_i = 2 <m_x - m_y, c_i> + ||c_i||^2 - <c_i, T c_i> - (the mean of this over i),     c_i = x_i - m_x
        T     = R_y (R_y S_x R_y)^{-1/2} R_y,  the optimal transport map from N(0, S_x) to N(0, S_y)

    This costs about as much as one distance. A bootstrap would cost hundreds of them, and resamples with repeated
    samples have another bias. The error is of the biased value: it does not contain the bias. Fewer samples than
    features give a singular S_x, where the distance is not smooth, and the error is rough.

    Args:
        x, y: features [N, F] and [M, F], as arrays or `Activations`, or their `Statistics`. Without the
            rows of x, there is no error.

    Raises:
        ValueError, UsageError: as `frechet_distance`.

    >>> print(frechet([[0.0], [2.0]], [[3.0], [5.0]]))
    Frechet distance 9 +- 6
    """
    known, reference = _checked(x, y)
    if isinstance(x, Statistics):
        how = "of statistics: the samples' rows are needed for an error"
        return Result("Frechet distance", frechet_distance(known, reference), None, how, "lower")
    value, psi = _influence(_rows(x), known, reference)
    how = f"infinitesimal jackknife over {len(psi)} samples"
    if len(psi) <= len(known.mean):
        how += "; rough, as there are no more samples than features"
    return Result("Frechet distance", value, _standard_error(psi), how, "lower")


def frechet_infinity(x: Features, y: Features, *, parts: int = PARTS, seed: int = 0) -> Result:
    """The Frechet distance that infinitely many samples would have: a line in 1/N, at 1/N = 0.

        E[d^2(N)] = d^2(infinity) + c / N + O(1 / N^2)

    Chong & Forsyth 2020 (arXiv:1911.07023). They fit 15 random subsets of growing sizes. Here, for
    g = 1 .. parts, the samples are split at random into g disjoint groups, the distances of the groups to y are
    averaged, and a line is fitted to the averages over g / N. Every average uses every sample, so to first order it has
    the error of the whole set. The splits are drawn independently for each g.

    The square of the standard error is the square of the error in `frechet`, plus sum_g w_g^2 (g - 1) a for the random
    splits: w_g is the weight of g in the fitted value, and a is the variance that the distance of N samples has beyond
    the first order, measured by the spread of the groups.

    The reference y is taken as it is: its own finite size is not extrapolated. The result may be below 0. Groups of
    fewer than 2 F samples are refused: their bias is no line in 1/N. For Gaussians in 32 dimensions, groups of F
    samples and more gave a result that was too low by a third of the bias that is removed, groups of 2 F by a tenth,
    and groups of 4 F by a thirtieth.

    Args:
        x: features of the samples [N, F], N at least 2 * F * parts.
        y: features [M, F], or their `Statistics`.
        parts: the largest number of groups, at least 3.
        seed: of the groups.

    Raises:
        UsageError: for fewer samples, or if only their statistics are known.
        TypeError, ValueError: as `frechet_distance`, and unless `parts` is an integer of at least 3.

    >>> rng = np.random.default_rng(0)
    >>> x, y = Statistics(None, np.zeros(2), np.eye(2)), rng.standard_normal((200, 2))
    >>> abs(frechet_infinity(y, x).value) < 0.05  # N(0, 1) with N(0, 1)
    True
    """
    check_count("parts", parts, 3)
    if isinstance(x, Statistics):
        raise UsageError("the extrapolation needs the samples' rows of features, and there are only their statistics")
    rows = _rows(x)
    known, reference = _checked(x, y)
    if few := too_few(len(rows), rows.shape[1], parts):
        raise UsageError(few)
    _, psi = _influence(rows, known, reference)
    rng = np.random.default_rng(seed)
    groups = [[np.sort(at) for at in np.array_split(rng.permutation(len(rows)), g)] for g in range(1, parts + 1)]
    distances = [np.array([frechet_distance(rows[at], reference) for at in split]) for split in groups]
    weights = _weights_at_zero(np.array([np.mean([1.0 / len(at) for at in split]) for split in groups]))
    value = float(weights @ [found.mean() for found in distances])
    rest = [found - [psi[at].mean() for at in split] for split, found in zip(groups, distances, strict=True)]
    split_variance = float(np.square(weights) @ np.arange(parts)) * _beyond_first_order(rest)
    std = math.sqrt(_standard_error(psi) ** 2 + split_variance)
    how = f"line in 1/N through groups of {len(rows) // parts} to {len(rows)} samples; infinitesimal jackknife"
    return Result("Frechet distance, extrapolated", value, std, how, "lower")


def too_few(count: int, features: int, parts: int = PARTS) -> str:
    """Why `frechet_infinity` refuses so few samples; "" if it does not.

    >>> too_few(8192, 2048, 2), too_few(20000, 2048)
    ('', '20000 samples in 5 groups: the extrapolation in 2048 features needs at least 20480 samples')
    """
    least = 2 * features * parts
    if count >= least:
        return ""
    return f"{count} samples in {parts} groups: the extrapolation in {features} features needs at least {least} samples"


def _weights_at_zero(at: np.ndarray) -> np.ndarray:
    """The weights [G] of values at these places in the value at 0 of their least-squares line."""
    centred = at - at.mean()
    return 1.0 / len(at) - at.mean() * centred / np.square(centred).sum()


def _beyond_first_order(rest: list[np.ndarray]) -> float:
    """The variance of the whole set's distance that is not of first order, by that of g = 1, 2, ... groups, [g] each.

    The variance of second order is proportional to 1/N^2: one of g groups has g^2 times the variance of the whole set.
    The groups of a split are not independent, since together they are the whole set. Their squared deviations from
    their mean sum, on average, to (g - 1) (g - 2) / g times the variance of one group; two halves have the same.
    """
    sums = [float(np.square(found - found.mean()).sum()) / len(found) ** 2 for found in rest]
    return sum(sums) / sum((len(found) - 1) * (len(found) - 2) / len(found) for found in rest)


def _checked(x: Features, y: Features) -> tuple[Statistics, Statistics]:
    x, y = as_statistics(x), as_statistics(y)
    if x.mean.shape != y.mean.shape:
        raise ValueError(f"features of one F are needed, not {len(x.mean)} and {len(y.mean)}")
    x.origin.check_same(y.origin)
    return x, y


def _rows(x: ArrayLike | Activations) -> np.ndarray:
    return x.features if isinstance(x, Activations) else np.asarray(x)


def _apart(x: Statistics, y: Statistics) -> float:
    return float(np.square(x.mean - y.mean).sum() + np.trace(x.cov) + np.trace(y.cov))


def _influence(rows: np.ndarray, x: Statistics, y: Statistics) -> tuple[float, np.ndarray]:
    """The distance, and psi [N]; see `frechet`."""
    _, values, vectors = np.linalg.svd(x.root @ y.root)
    distance = max(_apart(x, y) - 2.0 * float(values.sum()), 0.0)
    # R_x R_y = U s V^T gives R_y S_x R_y = V s^2 V^T, so T = W W^T with W = R_y V s^{-1/2}. Directions without
    # variance have s = 0 up to rounding, and no sample has a component in them.
    kept = values > values.max() * len(values) * np.finfo(float).eps
    half = (y.root @ vectors[kept].T) / np.sqrt(values[kept])
    shift, psi = 2.0 * (x.mean - y.mean), np.empty(len(rows))
    for at, centred in blocks(rows, centre=x.mean):
        psi[at] = centred @ shift + np.square(centred).sum(axis=1) - np.square(centred @ half).sum(axis=1)
    return distance, psi - psi.mean()


def _standard_error(psi: np.ndarray) -> float:
    return math.sqrt(float(np.square(psi).sum()) / (len(psi) * (len(psi) - 1)))
