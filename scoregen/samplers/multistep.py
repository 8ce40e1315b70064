"""Predictors that remember what was found at the levels before, and so reach a higher order at one evaluation a step.

Both work in the log-SNR. With h = (lam_s - lam_t) / 2 the probability-flow ODE is solved exactly by

    x_s = (sigma_s / sigma_t) x_t + alpha_s int_0^h e^(u - h) x0(u) du

(Lu et al. 2022, eq. 9), so only x0 between the two levels has to be guessed, from its values at the levels before.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Predict, of_x0
from scoregen.process import Process, rows
from scoregen.samplers.predictors import Ancestral, check_eta


class Before(NamedTuple):
    """The x0 `[B, ...]` found at the level before, and that level's log-SNR `[B]`: -inf where there is none."""

    x0: Array
    logsnr: Array


@dataclasses.dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), and its form for the SDE.

    It is `Ancestral` with x0 carried forward along the line through the last two levels, to the middle of the step:

        x0' = x0 + (x0 - x0_before) h / (2 h_before)

    where h and h_before are the lengths in log-SNR of this step and of the one before. Of order 2 with eta = 0;
    eta = 1 is SDE-DPM-Solver++(2M). One evaluation a step.

    Attributes:
        eta: the share of fresh noise, as `Ancestral` has it.

    Raises:
        ValueError: if eta is negative or over 1.
    """

    eta: float = 0.0

    def __post_init__(self):
        check_eta(self.eta)

    def init(self, x: Array, grid: Array) -> Before:
        return Before(jnp.zeros_like(x), jnp.full(x.shape[:1], -jnp.inf, x.dtype))

    def __call__(
        self, process: Process, predict: Predict, key: Array, x: Array, t: Array, s: Array, before: Before
    ) -> tuple[Array, Before]:
        found, lam = predict(x, t), process.logsnr(t)
        known = jnp.isfinite(before.logsnr)
        span = jnp.where(known, lam - before.logsnr, 1)
        factor = jnp.where(known, 0.5 * (process.logsnr(s) - lam) / span, 0)
        x0 = found.x0 + rows(factor, x) * (found.x0 - before.x0)
        carried = of_x0(process, x, t, x0)
        return Ancestral(self.eta)(process, lambda x, t: carried, key, x, t, s), Before(found.x0, lam)


class History(NamedTuple):
    """What is known of the last levels, the newest first.

    Attributes:
        x: at the newest, corrected, `[B, ...]`.
        t: the time of the newest, `[B]`.
        x0: found at each, `[order, B, ...]`.
        logsnr: of each, `[order, B]`.
        count: how many there are.
    """

    x: Array
    t: Array
    x0: Array
    logsnr: Array
    count: Array


@dataclasses.dataclass(frozen=True)
class UniPC:
    """UniPC of order p with B2(h) (Zhao et al. 2023, algorithms 1-2 and 5-8), for the data.

    With phi_1 = e^-h - 1 and the r_k and D_k of the levels before, r_k = (lam_k - lam_t) / (2 h) and
    D_k = (x0_k - x0_t) / r_k, a step is

        x_s = (sigma_s / sigma_t) x_t - alpha_s phi_1 (x0_t + sum_k rho_k D_k)

    The predictor (UniP) takes p - 1 levels before. The corrector (UniC) takes the same step once more when x0 at s is
    known, with s as one more level: that is at the next step, so it costs no evaluation. The weights rho solve a small
    linear system, which makes the step exact for polynomials of their number (eq. 10). Of order p + 1.

    Attributes:
        order: p, 1 to 3.

    Raises:
        ValueError: for another order.
    """

    order: int = 2

    def __post_init__(self):
        if self.order not in (1, 2, 3):
            raise ValueError(f"order={self.order}: 1, 2 or 3 is needed")

    def init(self, x: Array, grid: Array) -> History:
        batch = x.shape[:1]
        x0, logsnr = jnp.zeros((self.order, *x.shape), x.dtype), jnp.zeros((self.order, *batch), x.dtype)
        return History(x, jnp.broadcast_to(grid[0], batch), x0, logsnr, jnp.zeros((), jnp.int32))

    def __call__(
        self, process: Process, predict: Predict, key: Array, x: Array, t: Array, s: Array, past: History
    ) -> tuple[Array, History]:
        x0, lam = predict(x, t).x0, process.logsnr(t)
        x = jnp.where(past.count > 0, self._step(process, past, t, x0), x)
        # At a level without data lam is -inf, and nothing can be carried forward from it.
        count = jnp.where(jnp.isfinite(lam[0]), past.count + 1, 0)
        x0s, logsnrs = (jnp.concatenate([a[None], b[:-1]]) for a, b in ((x0, past.x0), (lam, past.logsnr)))
        now = History(x, t, x0s, logsnrs, count)
        return self._step(process, now, s), now

    def _step(self, process: Process, past: History, s: Array, x0: Array | None = None) -> Array:
        """From the newest level to s: the predictor, or with the `x0` found there the corrector."""
        lam, x = past.logsnr, past.x
        h = 0.5 * (process.logsnr(s) - process.logsnr(past.t))
        # Levels that there are not yet have no weight; any number stands for where they lie.
        places = [
            jnp.where(k < past.count, 0.5 * (lam[k] - lam[0]) / jnp.where(jnp.isfinite(h), h, 1), -k)
            for k in range(1, self.order)
        ]
        slopes = [(past.x0[k] - past.x0[0]) / rows(places[k - 1], x) for k in range(1, self.order)]
        if x0 is not None:
            places, slopes = [*places, jnp.ones_like(h)], [*slopes, x0 - past.x0[0]]
        guess = past.x0[0]
        orders = [self._weights(h, places, order, x0 is not None) for order in range(1, self.order + 1)]
        weights = jnp.stack(orders)[jnp.clip(past.count, 1, self.order) - 1]
        for weight, slope in zip(weights, slopes, strict=True):
            guess = guess + rows(weight, x) * slope
        shrink = process.sigma(s) / process.sigma(past.t)
        return rows(shrink, x) * x - rows(process.alpha(s) * jnp.expm1(-h), x) * guess

    def _weights(self, h: Array, places: list[Array], order: int, correct: bool) -> Array:
        """rho `[len(places), B]` of a step of this order: zero for the levels that it does not take."""
        taken = places[: order - 1] + places[len(places) - correct :]
        rho = jnp.zeros((len(places), *h.shape), h.dtype)
        if not taken:
            return rho
        if len(taken) == 1:  # 1/2 is exact to the order of the step (section 3.2), and what the authors' code has
            solved = jnp.full((1, *h.shape), 0.5, h.dtype)
        else:
            # b_i = i! z phi_{i + 1}(z) / (z phi_1(z)) at z = -h, with z phi_{i + 1} = phi_i - 1 / i! (eqs. 5 and 10).
            base = phi = jnp.expm1(-h)
            right = []
            for i in range(1, len(taken) + 1):
                phi = phi / -h - 1 / math.factorial(i)
                # For short steps that loses all digits, and a few terms of the series are exact.
                series = sum((-h) ** j / float(math.factorial(j + i)) for j in range(1, 11))
                right.append(math.factorial(i) * jnp.where(h < 0.3, series, phi) / base)
            powers = jnp.stack([jnp.stack([r**i for r in taken]) for i in range(len(taken))])
            solved = jnp.linalg.solve(jnp.moveaxis(powers, -1, 0), jnp.stack(right, -1)[..., None])[..., 0].T
        rho = rho.at[: order - 1].set(solved[: order - 1])
        return rho.at[-1].set(solved[-1]) if correct else rho
