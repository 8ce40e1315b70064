"""The Inception score: how sure a classifier is of each sample, and how many classes the samples have."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike

from scoregen.errors import UsageError, check_count
from scoregen.metrics.pairs import as_rows
from scoregen.metrics.result import Result


def inception_score(logits: ArrayLike, *, splits: int = 10, seed: int = 2020) -> Result:
    """The Inception score, the mean over splits of the samples, with its standard error.

        IS = exp( E_x[ KL(p(y | x) || p(y)) ] ),     p(y) = E_x[ p(y | x) ]

    Salimans et al. 2016 (arXiv:1606.03498), section 4, in nats. p(y | x) is the softmax of the logits. The score is
    between 1 and the number of classes, and higher is better. It does not compare with real data. It is biased
    downwards, since p(y) is estimated from the samples of one split.

    The error is the infinitesimal jackknife: to first order, a sample changes log IS by (KL_i - mean KL) / n, for the n
    samples of its split. The spread between splits, which papers report, is that of `inception_scores`.

    Args:
        logits: [N, C].
        splits: number of parts of equal size.
        seed: of the order of the samples before they are split.

    Raises:
        UsageError: if there are fewer than two samples for each split.
        TypeError, ValueError: if the shape is not [N, C], a value is not finite, or `splits` is no positive integer.

    >>> inception_score(100.0 * np.eye(4), splits=1).value
    4.0
    """
    found = _divergences(logits, splits, seed)
    scores = np.array([np.exp(each.mean()) for each in found])
    errors = scores * [each.std(ddof=1) / np.sqrt(len(each)) for each in found]
    std = float(np.sqrt(np.square(errors).sum())) / splits
    how = f"mean of {splits} splits; infinitesimal jackknife over {sum(map(len, found))} samples"
    return Result("Inception score", float(scores.mean()), std, how, "higher")


def inception_scores(logits: ArrayLike, *, splits: int = 10, seed: int = 2020) -> np.ndarray:
    """The score of each split, [splits], with torch-fidelity's defaults and order.

    Its mean and standard deviation (divisor `splits`) are torch-fidelity's two numbers.

    Args and Raises: as `inception_score`.

    >>> inception_scores(100.0 * np.eye(4), splits=2)
    array([2., 2.])
    """
    return np.array([np.exp(each.mean()) for each in _divergences(logits, splits, seed)])


def _divergences(logits: ArrayLike, splits: int, seed: int) -> list[np.ndarray]:
    """KL(p(y | x_i) || p(y)) of each sample [n], for each split."""
    rows = np.asarray(logits)
    if rows.ndim != 2:
        raise ValueError(f"logits have the shape [N, C], not {rows.shape}")
    as_rows(rows)
    check_count("splits", splits)
    if len(rows) < 2 * splits:
        raise UsageError(f"{len(rows)} samples in {splits} splits: at least {2 * splits} samples are needed")
    order = np.random.RandomState(seed).permutation(len(rows))  # as torch-fidelity
    ends = [i * len(rows) // splits for i in range(splits + 1)]
    found = []
    for first, last in itertools.pairwise(ends):
        part = rows[order[first:last]].astype(np.float64)
        part -= part.max(axis=1, keepdims=True)
        log_p = part - np.log(np.exp(part).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        # A class that no sample has gives 0 log 0 = 0.
        log_q = np.log(np.maximum(p.mean(axis=0), np.finfo(float).tiny))
        found.append((p * (log_p - log_q)).sum(axis=1))
    return found
