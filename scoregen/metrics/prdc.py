"""Precision and recall, density and coverage: by balls that reach to the k-th nearest neighbour."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from scoregen.errors import UsageError, check_count
from scoregen.metrics.pairs import COLUMNS, ROWS, as_rows, blocks, nearest, squared_distances
from scoregen.metrics.result import Result, jackknife_error, least_error


def prdc(x: ArrayLike, y: ArrayLike, *, k: int = 3, k_density: int = 5) -> tuple[Result, Result, Result, Result]:
    """Precision, recall, density and coverage of samples x with respect to real data y, with standard errors.

    B_k(a) is the ball around a point a of a set, as large as the distance to its k-th nearest other point of this set.

        precision = share of the x_i in at least one B_k(y_j)
        recall    = share of the y_j in at least one B_k(x_i)
        density   = mean over i of (1 / k') #{j: x_i in B_k'(y_j)}
        coverage  = share of the B_k'(y_j) that hold at least one x_i

    Precision and recall: Kynkaanniemi et al. 2019 (arXiv:1904.06991), eqs. (1) and (2), k = 3; a ball includes its
    boundary, as in torch-fidelity. Density and coverage: Naeem et al. 2020 (arXiv:2002.09797),
    k' = 5; a ball excludes its boundary, as in the authors' package prdc. The two differ only if distances are equal.

    The errors are over draws of the samples, for the same y. Precision and density are means over the samples, so their
    errors are those of a mean. Those of recall and coverage are the jackknife: recall without x_i has the ball of x_i
    removed, and the balls that reached to x_i or beyond it enlarged. On average it is not too small (Efron & Stein
    1981). No error is below that of Wilson's interval for a share of 0 or 1 of N samples, 1.96 / (N + 3.84): within the
    samples such a share has no spread. Intervals end at 0, and those of shares at 1.

    The distances are computed in float64 by blocks, of which one is held in memory, in O((N + M)^2 F). All four numbers
    come from one pass over each kind of pairs.

    Args:
        x, y: features of samples [N, F] and of real data [M, F].
        k, k_density: the neighbours k and k'.

    Raises:
        UsageError: if a set has too few points for these neighbours: at least max(k + 1, k_density) + 1.
        TypeError, ValueError: for k that are not positive integers, if the shapes do not fit, or a value is not finite.

    >>> x, y = np.array([[0.1], [0.9], [9.0]]), np.array([[0.0], [1.0], [3.0]])
    >>> [round(result.value, 4) for result in prdc(x, y, k=1, k_density=1)]
    [0.6667, 1.0, 1.3333, 0.6667]
    """
    x, y = as_rows(x, y)
    check_count("k", k)
    check_count("k_density", k_density)
    least = max(k + 1, k_density) + 1
    if min(len(x), len(y)) < least:
        raise UsageError(
            f"{len(x)} samples and {len(y)} real ones: precision, recall, density and coverage need {least} of each"
        )
    found = _Balls(x, y, k, k_density)
    n, inside = len(x), found.inside.mean()
    of = f"k={k}; standard error over {n} samples", f"k={k_density}; standard error over {n} samples"
    jackknife = f"k={k}; jackknife over {n} samples", f"k={k_density}; jackknife over {n} samples"
    deviation = float(found.balls.std(ddof=1)) / k_density
    recall, coverage = (found.caught > 0).mean(), (found.held > 0).mean()

    def result(name: str, value: float, std: float, how: str, most: float = 1.0) -> Result:
        return Result(name, float(value), max(float(std), least_error(n)), how, "higher", limits=(0.0, most))

    return (
        result("precision", inside, math.sqrt(inside * (1 - inside) / (n - 1)), of[0]),
        result("recall", recall, jackknife_error(found.recall_changes() / len(y)), jackknife[0]),
        result("density", found.balls.mean() / k_density, deviation / math.sqrt(n), of[1], math.inf),
        result("coverage", coverage, jackknife_error(found.coverage_changes() / len(y)), jackknife[1]),
    )


class _Balls:
    """Which points are in which balls.

    Attributes:
        inside: [N], whether x_i is in any ball B_k(y_j).
        balls: [N], the number of the balls B_k'(y_j) around x_i.
        held: [M], the number of the x_i in B_k'(y_j).
        caught: [M], the number of the balls B_k(x_i) around y_j.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, k: int, k_density: int) -> None:
        # One centre for all passes, so that equal points have equal distances, to the last bit.
        centre = y.mean(axis=0, dtype=np.float64)
        radii, _ = nearest(y, y, max(k, k_density), centre=centre, others=True)
        reach, index = nearest(x, x, k + 1, centre=centre, others=True)
        self.inside, self.balls = np.zeros(len(x), bool), np.zeros(len(x), np.int64)
        self.held, self.caught = np.zeros(len(y), np.int64), np.zeros(len(y), np.int64)
        self._holder, self._catcher = np.zeros(len(y), np.int64), np.zeros(len(y), np.int64)
        self._neighbours = index[:, :k]
        # The pairs where y_j is outside B_k(x_i), but in B_{k+1}(x_i): it is caught if a neighbour of x_i is removed.
        near: list[np.ndarray] = []
        for columns, a in blocks(x, COLUMNS, centre):
            for rows, b in blocks(y, ROWS, centre):
                squares = squared_distances(b, a)
                self.inside[columns] |= (squares <= radii[rows, k - 1, None]).any(axis=0)
                within = squares < radii[rows, k_density - 1, None]
                self.balls[columns] += within.sum(axis=0)
                _count(within, self.held[rows], self._holder[rows], columns.start)
                within = squares <= reach[None, columns, k - 1]
                _count(within, self.caught[rows], self._catcher[rows], columns.start)
                j, i = np.nonzero((squares <= reach[None, columns, k]) & ~within)
                near.append(np.stack([j + rows.start, i + columns.start]))
        self._near = np.concatenate(near, axis=1)

    def coverage_changes(self) -> np.ndarray:
        """By how many balls around y coverage changes without x_i, [N]."""
        return -np.bincount(self._holder[self.held == 1], minlength=len(self.inside))

    def recall_changes(self) -> np.ndarray:
        """By how many y_j recall changes without x_i, [N]."""
        j, i = self._near
        # Pairs (y_j, x_l): without x_l, an enlarged ball catches y_j.
        j, rescuers = np.repeat(j, self._neighbours.shape[1]), self._neighbours[i].ravel()
        gained = (self.caught[j] == 0) | ((self.caught[j] == 1) & (self._catcher[j] == rescuers))
        pairs = np.unique(np.stack([j[gained], rescuers[gained]]), axis=1)
        lost = self._catcher[self.caught == 1]
        n = len(self.inside)
        return np.bincount(pairs[1], minlength=n) - np.bincount(lost, minlength=n)


def _count(within: np.ndarray, count: np.ndarray, last: np.ndarray, start: int) -> None:
    """Add the columns of each row that are within, and note the last one."""
    more = within.sum(axis=1)
    count += more
    where = np.flatnonzero(more)
    last[where] = start + within[where].argmax(axis=1)
