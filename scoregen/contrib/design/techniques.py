"""Techniques 1, 2 and 4 of Song & Ermon 2020, "Improved techniques for training score-based generative models".

They compute the largest sigma, the ratio of neighbouring levels (and with it their number), and the step size of the
Langevin sampler from the data. Nothing here depends on a configuration.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

# The ratio of NCSN v1, ten levels from 1 to 0.01. No published NCSN has a larger ratio.
COARSEST = 100 ** (1 / 9)
BLOCK = 1024  # examples at a time


def largest_distance(x: np.ndarray) -> float:
    """The largest Euclidean distance between two examples: technique 1 of Song & Ermon 2020 for sigma_max.

        max_{i,j} ||x_i - x_j||

    x is `[N, ...]`, and the distance is in its units. It is exact up to the rounding of float64, and 0 for one example.
    Only pairs that can have the largest distance are compared, of all N (N - 1) / 2 pairs; see `distance_bounds`.

    >>> largest_distance(np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]))
    5.0
    """
    return distance_bounds(x)[0]


def distance_bounds(x: np.ndarray, budget: float = math.inf) -> tuple[float, float]:
    """Two bounds of the largest distance between examples `[N, ...]`, equal unless the budget ran out.

    With r_i = ||x_i - mean||, the distance of a pair is at most r_i + r_j. So blocks of examples are compared in the
    order of decreasing r, until no other pair can exceed the largest distance found. For images a few thousand examples
    are enough. If all examples have nearly the same r, every pair is compared.

    Args:
        x: the examples, finite.
        budget: the largest number of products. A pair counts as D products, but at least 200, the overhead per pair.
            When the budget is used up, the second bound is the largest r_i + r_j of the other pairs.

    >>> distance_bounds(np.eye(3000), budget=0)  # after one block
    (1.41421, 1.99967)
    """
    x = x.reshape(len(x), -1)
    centre = x.mean(axis=0, dtype=np.float64)
    starts = range(0, len(x), BLOCK)
    radius = np.concatenate([np.linalg.norm(x[i : i + BLOCK] - centre, axis=1) for i in starts])
    order = np.argsort(-radius, kind="stable")
    radius = radius[order]

    def block(start: int) -> tuple[np.ndarray, np.ndarray]:
        part = x[order[start : start + BLOCK]] - centre
        return part, np.square(part).sum(axis=1)

    best, spent = 0.0, 0.0
    for j in starts:
        if radius[0] + radius[j] <= best:
            break
        outer, outer_norms = block(j)
        for i in range(0, j + 1, BLOCK):
            if radius[i] + radius[j] <= best:
                break
            if spent > budget:
                return best, float(radius[0] + radius[j])
            inner, inner_norms = block(i)
            squares = inner @ outer.T
            squares *= -2
            squares += inner_norms[:, None]
            squares += outer_norms
            a, b = np.unravel_index(squares.argmax(), squares.shape)
            # The products only find the pair; its distance is computed directly, so equal examples have distance 0.
            best = max(best, float(np.linalg.norm(inner[a] - outer[b])))
            spent += squares.size * max(x.shape[1], 200)
    return best, best


def coverage(dims: int, gamma: float) -> float:
    """The overlap of a noise level with the next noisier one (Song & Ermon 2020, technique 2).

        C = Phi(sqrt(2D) (gamma - 1) + 3 gamma) - Phi(sqrt(2D) (gamma - 1) - 3 gamma)

    In D dimensions, the norm r of noise of level sigma is nearly N(sqrt(D) sigma, sigma^2 / 2) (their proposition 2).
    C is the probability that r lies within three standard deviations of its mean at the level gamma sigma.

    >>> coverage(3072, 1.0398)
    0.500
    """
    shift = math.sqrt(2 * dims) * (gamma - 1)
    low, high = ((shift + side * 3 * gamma) / math.sqrt(2) for side in (-1, 1))
    return (math.erfc(low) - math.erfc(high)) / 2  # by symmetry; avoids the difference of two numbers near 1


def ratio(dims: int, overlap: float = 0.5) -> float:
    """The ratio gamma > 1 of neighbouring noise levels with `coverage(dims, gamma) = overlap` (technique 2).

    Raises:
        ValueError: if there is no such ratio. In at most four dimensions, the overlap grows with the ratio, since three
            standard deviations reach down to 0. The largest overlap is Phi(3) - Phi(-3) = 0.9973, at gamma = 1, since
            only three standard deviations count.

    >>> ratio(3072)
    1.0398
    """
    if dims <= 4:
        raise ValueError(f"in {dims} dimensions noise levels overlap at any ratio")
    most = coverage(dims, 1.0)
    if not 0 < overlap < most:
        raise ValueError(f"overlap={overlap}: a number between 0 and {most:.4f} is needed")
    high = 2.0
    while coverage(dims, high) > overlap:  # it falls to 0, but only at large ratios: about 20 in five dimensions
        high *= 2
    return _root(lambda gamma: coverage(dims, gamma) - overlap, 1.0, high)


def levels(sigma_min: float, sigma_max: float, gamma: float) -> int:
    """The least number L >= 2 of geometric levels, both ends included, with a ratio of at most gamma (technique 2).

        (sigma_max / sigma_min)^{1 / (L - 1)} <= gamma

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max and gamma > 1.

    >>> levels(0.01, 1.0, 1.67), levels(0.01, 50.0, ratio(3072))
    (10, 220)
    """
    if not (0 < sigma_min < sigma_max and gamma > 1):
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}, gamma={gamma}: 0 < min < max, 1 < gamma")
    exact = math.log(sigma_max / sigma_min) / math.log(gamma)
    return max(2, math.ceil(exact - 1e-9) + 1)  # rounding must not add a level to a ratio that fits exactly


def final_variance(step: float, sigma_min: float, gamma: float, steps: int) -> float:
    """The variance after T Langevin steps at a level, over that level's own sigma^2 (Song & Ermon 2020, eq. 4).

        a^{2T} (gamma^2 - c) + c,    a = 1 - step / sigma_min^2,    c = 2 step / (sigma_min^2 (1 - a^2))

    This holds for data at a single point and the exact score, if the sampler enters the level with the variance
    gamma^2 sigma^2. The value is the result of the recursion v <- a^2 v + 2 step / sigma_min^2 that starts at gamma^2,
    and it is the same at every level. With h = step / sigma_min^2, c is 1 / (1 - h / 2), the limit of
    `samplers.Langevin` for many steps. The value is always above 1, because the steps are too few or too long.

    This is the paper's criterion. In real sampling, each level starts with the variance that the previous level has
    left. Then v <- q gamma^2 v + (1 - q) c with q = a^{2T}, which converges to c (1 - q) / (1 - q gamma^2). At NCSN
    v2's levels for CIFAR-10 this is 1.128 instead of 1.055, and it diverges if the steps are so short that q gamma^2
    approaches 1. A network without the level as input estimates the noise from x and corrects excess noise less, so
    more noise is left (experiments/noise_levels).

    Args:
        step: the `step_size` of `samplers.Langevin`: h at the least noisy level, in units of sigma^2.
        sigma_min: that level's sigma.
        gamma: the ratio of neighbouring levels.
        steps: T, the steps at each level.

    Raises:
        ValueError: unless 0 < step < 2 sigma_min^2; other steps diverge.

    >>> final_variance(6.2e-6, 0.01, (50 / 0.01) ** (1 / 231), 5)  # NCSN v2 on CIFAR-10
    1.055
    >>> final_variance(2e-5, 0.01, 100 ** (1 / 9), 100)  # NCSN v1
    1.111
    """
    h = step / sigma_min**2
    if not 0 < h < 2:
        raise ValueError(f"step={step}: 0 < step < 2 sigma_min^2 = {2 * sigma_min**2:.3g} is needed")
    left, c = (1 - h) ** (2 * steps), 1 / (1 - h / 2)
    return left * (gamma**2 - c) + c


def step_size(sigma_min: float, gamma: float, steps: int) -> float:
    """The Langevin step size whose `final_variance` is nearest to 1 (Song & Ermon 2020, technique 4).

    In h = step / sigma_min^2, with q = (1 - h)^{2T}, the derivative is

        c' (1 - q) + q' (gamma^2 - c),    c' = 2 / (2 - h)^2,    q' = -2T (1 - h)^{2T - 1}

    The derivative is -2T (gamma^2 - 1) at h = 0, rises while c < gamma^2, and is positive from there to h = 1. So it
    has one root, which is the minimum, since for h > 1 the variance is at least the smaller of gamma^2 and 2. The
    result is in units of sigma^2, for `samplers.Langevin`.

    Raises:
        ValueError: unless sigma_min > 0, gamma > 1 and steps >= 1.

    >>> step_size(0.01, (50 / 0.01) ** (1 / 231), 5)  # the paper's 6.2e-6
    6.18e-06
    """
    if not (sigma_min > 0 and gamma > 1 and steps >= 1):
        raise ValueError(f"sigma_min={sigma_min}, gamma={gamma}, steps={steps}: above 0, above 1, at least 1")

    def slope(h: float) -> float:
        q, dq = (1 - h) ** (2 * steps), -2 * steps * (1 - h) ** (2 * steps - 1)
        return 2 / (2 - h) ** 2 * (1 - q) + dq * (gamma**2 - 1 / (1 - h / 2))

    return sigma_min**2 * _root(slope, 0.0, 1.0)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that differs in sign at the two ends is 0, to 14 digits."""
    from scipy.optimize import brentq  # imported late: this takes most of a second

    found: Any = brentq(function, low, high, xtol=1e-15, rtol=np.float64(1e-14))
    return float(found)


@dataclasses.dataclass(frozen=True)
class Levels:
    """Geometric noise levels, and the Langevin steps that walk them, in the units of the scaled data.

    >>> v2 = Levels(0.01, 50.0, 232, 6.2e-6, 5)
    >>> v2.gamma, v2.final_variance
    (1.0376, 1.055)
    """

    sigma_min: float
    sigma_max: float
    levels: int
    step_size: float | None
    steps: int | None

    @property
    def gamma(self) -> float:
        """The ratio of neighbouring levels."""
        return (self.sigma_max / self.sigma_min) ** (1 / (self.levels - 1))

    @property
    def final_variance(self) -> float | None:
        """See the function `final_variance`; infinite if the steps diverge, None without Langevin steps.

        Raises:
            ValueError: unless step_size > 0.
        """
        if self.step_size is None or self.steps is None:
            return None
        if self.step_size >= 2 * self.sigma_min**2:
            return math.inf
        return final_variance(self.step_size, self.sigma_min, self.gamma, self.steps)

    @property
    def evaluations(self) -> int | None:
        """Network evaluations per sample, without the final denoising step, which takes one more."""
        return None if self.steps is None else self.levels * self.steps


def design(dims: int, distance: float, sigma_min: float, steps: int, overlap: float = 0.5) -> Levels:
    """Apply techniques 1, 2 and 4 of Song & Ermon 2020 in this order.

    sigma_max is `distance`, rounded up to three digits. The ratio is at most `ratio(dims, overlap)`, and at most the
    ratio of NCSN v1, 1.67, which is the only limit in few dimensions. The step size is for the actual ratio, which
    follows from the whole number of levels. It is rounded to three digits.

    Raises:
        ValueError: unless 0 < sigma_min < distance, steps >= 1, and the overlap is one that `ratio` takes.

    >>> design(3072, 49.9, 0.01, 5, overlap=0.567)
    Levels(sigma_min=0.01, sigma_max=49.9, levels=232, step_size=6.18e-06, steps=5)
    """
    sigma_max = _rounded_up(distance)
    gamma = COARSEST if dims <= 4 else min(COARSEST, ratio(dims, overlap))
    count = levels(sigma_min, sigma_max, gamma)
    actual = Levels(sigma_min, sigma_max, count, None, None).gamma
    return Levels(sigma_min, sigma_max, count, float(f"{step_size(sigma_min, actual, steps):.3g}"), steps)


def _rounded_up(value: float) -> float:
    """The smallest number with three significant digits that is at least `value`."""
    near = float(f"{value:.3g}")
    return near if near >= value else float(f"{near + 10.0 ** (math.floor(math.log10(value)) - 2):.3g}")
