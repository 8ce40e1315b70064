"""The Frechet distance between two samples of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def frechet_distance(features_x: ArrayLike, features_y: ArrayLike) -> float:
    """Squared Frechet (2-Wasserstein) distance between the Gaussians fitted to two samples.

        d^2 = ||m_x - m_y||^2 + tr(S_x + S_y - 2 (S_x S_y)^{1/2})

    Dowson & Landau 1982; Heusel et al. 2017 (arXiv:1706.08500), eq. (6), on features of images. m is the mean
    and S the covariance with the divisor N - 1. The name "FID" is reserved for the features of one
    Inception network; for other features, name them.

    The estimate is biased upwards, roughly as 1/N, so compare values only at equal sample sizes.
    `with_floor` measures the value between two real samples of that size.

    Args:
        features_x: [N, F].
        features_y: [M, F].

    Returns:
        d^2, in squared units of the features; not negative.

    Raises:
        ValueError: if the shapes do not fit, a sample has fewer than two rows, or a value is not finite.

    >>> x = np.array([[0.0], [2.0]])
    >>> frechet_distance(x, x + 3.0)
    9.0
    """
    return frechet_gaussians(*moments(features_x), *moments(features_y))


def moments(features: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean [F] and covariance [F, F] (divisor N - 1) of features [N, F], in float64.

    Raises:
        ValueError: if the shape is not [N, F], N < 2, or a value is not finite.

    >>> moments([[0.0], [2.0]])
    (array([1.]), array([[2.]]))
    """
    rows = np.asarray(features, np.float64)
    if rows.ndim != 2:
        raise ValueError(f"features have the shape [N, F], not {rows.shape}")
    if len(rows) < 2:
        raise ValueError(f"a covariance needs at least two rows of features, not {len(rows)}")
    bad = int(np.count_nonzero(~np.isfinite(rows).all(axis=1)))
    if bad:
        raise ValueError(f"{bad} of {len(rows)} rows of features are not finite: look at the samples first")
    mean = rows.mean(axis=0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def frechet_gaussians(mean_x: ArrayLike, cov_x: ArrayLike, mean_y: ArrayLike, cov_y: ArrayLike) -> float:
    """The same distance between N(mean_x, cov_x) and N(mean_y, cov_y), for stored statistics.

    With the symmetric roots R = S^{1/2}, tr (S_x S_y)^{1/2} is the sum of the singular values of R_x R_y. Two
    symmetric eigen-decompositions give the roots, so a singular covariance gives no complex numbers, unlike
    in the general matrix root.

    Args:
        mean_x, mean_y: [F].
        cov_x, cov_y: symmetric [F, F], positive semi-definite up to rounding.

    Raises:
        ValueError: if the shapes do not fit, or a value is not finite.

    >>> frechet_gaussians([0.0], [[4.0]], [1.0], [[9.0]])
    2.0
    """
    mean_x, cov_x, mean_y, cov_y = (np.asarray(a, np.float64) for a in (mean_x, cov_x, mean_y, cov_y))
    if mean_x.shape != mean_y.shape or cov_x.shape != cov_y.shape or cov_x.shape != 2 * mean_x.shape:
        shapes = ", ".join(str(a.shape) for a in (mean_x, cov_x, mean_y, cov_y))
        raise ValueError(f"means [F] and covariances [F, F] of one F are needed, not {shapes}")
    if not all(np.isfinite(a).all() for a in (mean_x, cov_x, mean_y, cov_y)):
        raise ValueError("a mean or a covariance is not finite")
    overlap = np.linalg.svd(_root(cov_x) @ _root(cov_y), compute_uv=False).sum()
    distance = np.square(mean_x - mean_y).sum() + np.trace(cov_x) + np.trace(cov_y) - 2.0 * overlap
    return max(float(distance), 0.0)


def _root(cov: np.ndarray) -> np.ndarray:
    """Symmetric root of a positive semi-definite matrix; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
