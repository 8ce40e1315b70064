"""Multistep methods: they remember x0 at earlier levels, and so reach a higher order with one evaluation per step.

Both work in the log-SNR. With h = (lam_s - lam_t) / 2 the exact solution of the probability-flow ODE is

    x_s = (sigma_s / sigma_t) x_t + alpha_s int_0^h e^(u - h) x0(u) du

(Lu et al. 2022, eq. 9), so only x0 between the two levels is approximated, from its values at earlier levels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Denoiser, prediction_from_x0
from scoregen.errors import check_fields
from scoregen.process import Process
from scoregen.random import broadcast
from scoregen.samplers.steps import Ancestral, Step, check_eta


class Before(NamedTuple):
    """The estimate of x0 `[B, ...]` at the previous level, and its log-SNR `[B]`, -inf if there is none before."""

    x0: Array
    logsnr: Array


@dataclasses.dataclass(frozen=True)
class DPMSolver(Step):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), and its form for the SDE.

    It is `Ancestral` with x0 extrapolated linearly from the last two levels to the middle of the step:

        x0' = x0 + (x0 - x0_before) h / (2 h_before)

    where h and h_before are the lengths of this step and the previous step, in log-SNR. With eta = 0 the order is 2;
    eta = 1 is SDE-DPM-Solver++(2M). Each step takes one evaluation.

    Attributes:
        eta: the share of fresh noise, as in `Ancestral`.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: if eta is negative or over 1.
    """

    eta: float = 0.0

    def __post_init__(self):
        check_eta(self.eta)

    def init(self, denoiser: Denoiser, x: Array, grid: Array) -> Before:
        lam = denoiser.process.logsnr(grid[0])
        return Before(jnp.zeros_like(x), jnp.full(x.shape[:1], -jnp.inf, lam.dtype))

    def step(self, denoiser: Denoiser, key: Array, x: Array, t: Array, s: Array, state: Before) -> tuple[Array, Before]:
        process = denoiser.process
        found, lam = denoiser(x, t), process.logsnr(t)
        known = jnp.isfinite(state.logsnr)
        span = jnp.where(known, lam - state.logsnr, 1)
        factor = jnp.where(known, 0.5 * (process.logsnr(s) - lam) / span, 0)
        x0 = found.x0 + broadcast(factor, x) * (found.x0 - state.x0)
        extrapolated = prediction_from_x0(process, x, t, x0)
        return Ancestral(self.eta).move(process, extrapolated, key, x, t, s), Before(found.x0, lam)


class History(NamedTuple):
    """The last levels, newest first.

    Attributes:
        x: x at the newest level, corrected, `[B, ...]`.
        t: the time of the newest level, `[B]`.
        x0: the estimate of x0 at each level, `[order, B, ...]`.
        logsnr: the log-SNR of each level, `[order, B]`.
        count: how many levels are known.
    """

    x: Array
    t: Array
    x0: Array
    logsnr: Array
    count: Array


@dataclasses.dataclass(frozen=True)
class UniPC(Step):
    """UniPC of order p with B2(h) (Zhao et al. 2023, algorithms 1-2 and 5-8), in its x0-predicting form.

    With phi_1 = e^-h - 1, and r_k = (lam_k - lam_t) / (2 h) and D_k = (x0_k - x0_t) / r_k for each earlier level k, a
    step is

        x_s = (sigma_s / sigma_t) x_t - alpha_s phi_1 (x0_t + sum_k rho_k D_k)

    The predictor (UniP) uses p - 1 earlier levels. The corrector (UniC) repeats the step with s as one more level, once
    x0 at s is known. It is known at the next step anyway, so UniC costs no evaluation. The weights rho solve a small
    linear system, which makes the step exact for polynomials of a degree up to the number of weights (eq. 10). The
    order is p + 1.

    No other corrector can be used with it: UniC starts again from x before that corrector's moves.

    Attributes:
        order: p, 1 to 3.

    Raises:
        TypeError: if order is not an integer.
        ValueError: for another order.
    """

    order: int = 2

    excludes_corrector = True

    def __post_init__(self):
        check_fields(self, order=1)
        if self.order > 3:
            raise ValueError(f"order={self.order}: 1, 2 or 3 is needed")

    def init(self, denoiser: Denoiser, x: Array, grid: Array) -> History:
        batch, lam = x.shape[:1], denoiser.process.logsnr(grid[0])
        x0, logsnr = jnp.zeros((self.order, *x.shape), x.dtype), jnp.zeros((self.order, *batch), lam.dtype)
        return History(x, jnp.broadcast_to(grid[0], batch), x0, logsnr, jnp.zeros((), jnp.int32))

    def step(
        self, denoiser: Denoiser, key: Array, x: Array, t: Array, s: Array, state: History
    ) -> tuple[Array, History]:
        process = denoiser.process
        x0, lam = denoiser(x, t).x0, process.logsnr(t)
        x = jnp.where(state.count > 0, self._step(process, state, t, x0), x)
        # At a level with alpha = 0 lam is -inf, and nothing can be extrapolated from it.
        count = jnp.where(jnp.isfinite(lam[0]), state.count + 1, 0)
        x0s, logsnrs = (jnp.concatenate([a[None], b[:-1]]) for a, b in ((x0, state.x0), (lam, state.logsnr)))
        now = History(x, t, x0s, logsnrs, count)
        return self._step(process, now, s), now

    def _step(self, process: Process, past: History, s: Array, x0: Array | None = None) -> Array:
        """From the newest level to s: UniP, or UniC if `x0` at s is given."""
        lam, x = past.logsnr, past.x
        h = 0.5 * (process.logsnr(s) - process.logsnr(past.t))
        # Levels that are not known yet have weight 0, so any finite place works.
        places = [
            jnp.where(k < past.count, 0.5 * (lam[k] - lam[0]) / jnp.where(jnp.isfinite(h), h, 1), -k)
            for k in range(1, self.order)
        ]
        slopes = [(past.x0[k] - past.x0[0]) / broadcast(places[k - 1], x) for k in range(1, self.order)]
        if x0 is not None:
            places, slopes = [*places, jnp.ones_like(h)], [*slopes, x0 - past.x0[0]]
        guess = past.x0[0]
        orders = [self._weights(h, places, order, x0 is not None) for order in range(1, self.order + 1)]
        weights = jnp.stack(orders)[jnp.clip(past.count, 1, self.order) - 1]
        for weight, slope in zip(weights, slopes, strict=True):
            guess = guess + broadcast(weight, x) * slope
        shrink = process.sigma(s) / process.sigma(past.t)
        return broadcast(shrink, x) * x - broadcast(process.alpha(s) * jnp.expm1(-h), x) * guess

    def _weights(self, h: Array, places: list[Array], order: int, correct: bool) -> Array:
        """rho `[len(places), B]` of a step of this order: zero for the levels that it does not use."""
        taken = places[: order - 1] + places[len(places) - correct :]
        rho = jnp.zeros((len(places), *h.shape), h.dtype)
        if not taken:
            return rho
        if len(taken) == 1:  # 1/2 keeps the order of the step (section 3.2), as in the authors' code
            solved = jnp.full((1, *h.shape), 0.5, h.dtype)
        else:
            # b_i = i! z phi_{i + 1}(z) / (z phi_1(z)) at z = -h, with z phi_{i + 1} = phi_i - 1 / i! (eqs. 5 and 10).
            base = phi = jnp.expm1(-h)
            right = []
            for i in range(1, len(taken) + 1):
                phi = phi / -h - 1 / math.factorial(i)
                # For short steps the recursion loses all digits, but a few terms of the series are accurate.
                series = sum((-h) ** j / float(math.factorial(j + i)) for j in range(1, 11))
                right.append(math.factorial(i) * jnp.where(h < 0.3, series, phi) / base)
            powers = jnp.stack([jnp.stack([r**i for r in taken]) for i in range(len(taken))])
            solved = jnp.linalg.solve(jnp.moveaxis(powers, -1, 0), jnp.stack(right, -1)[..., None])[..., 0].T
        rho = rho.at[: order - 1].set(solved[: order - 1])
        return rho.at[-1].set(solved[-1]) if correct else rho
