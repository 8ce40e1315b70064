"""Predictors: one step from a level t to a less noisy level s, `(process, predict, key, x, t, s) -> x`.

A predictor that remembers earlier steps, or must know the whole walk, has also an `init(x, grid) -> state`, and then
takes the state as its last argument and returns (x, state); see `scoregen.samplers.multistep`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Predict, velocity
from scoregen.process import Process, drift_diffusion, normal, rows

Predictor = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """Ancestral sampling between any two levels, with DDIM's eta (Song, Meng & Ermon 2021, eq. 12).

    With w = -expm1(lam_t - lam_s), so that sigma_s sqrt(w) is the posterior's standard deviation,

        x_s = alpha_s x0 + sigma_s sqrt(1 - eta^2 w) eps + eta sigma_s sqrt(w) z.

    eta = 1 is a draw from `scoregen.process.posterior` at the estimated x0: DDPM's sampler (Ho et al. 2020,
    algorithm 2) on a variance-preserving chain, and the "VE ancestral" step (Song et al. 2021, appendix F) on
    NCSN's levels. eta = 0 is DDIM: Euler's method for the probability-flow ODE in sigma / alpha, of order 1.

    Attributes:
        eta: the share of the posterior's noise that is fresh; the rest is taken from eps.
        variance: "small" for the posterior's variance, "large" for the forward one, sigma_t^2 w (beta_t
            between neighbours of DDPM; Ho et al. 2020, section 3.2), or "learned" for what the network says
            lies between (Nichol & Dhariwal 2021, eq. 15), as z's factor; the mean is the same.

    Raises:
        ValueError: if eta is negative or over 1, or variance is none of these words; when it is called, if the
            variance is to be learned and was not.
    """

    eta: float = 1.0
    variance: str = "small"

    def __post_init__(self):
        check_eta(self.eta)
        if self.variance not in ("small", "large", "learned"):
            raise ValueError(f"variance={self.variance!r}: 'small', 'large' or 'learned' is needed")

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array, s: Array) -> Array:
        found = predict(x, t)
        lam = process.logsnr(t) - process.logsnr(s)
        w = -jnp.expm1(lam)
        # 1 - eta^2 w, written so that at eta = 1 it is exp(lam) to the last digit.
        kept = (1 - self.eta**2) + self.eta**2 * jnp.exp(lam)
        ends = rows(process.sigma(s), x), rows(process.sigma(t), x)
        if self.variance == "learned":
            if found.between is None:
                raise ValueError("variance='learned': the denoiser has learned none")
            sigma = ends[0] * (ends[1] / ends[0]) ** found.between
        else:
            sigma = ends[self.variance == "large"]
        return (
            rows(process.alpha(s), x) * found.x0
            + rows(process.sigma(s) * jnp.sqrt(kept), x) * found.eps
            + self.eta * sigma * rows(jnp.sqrt(w), x) * normal(key, x.shape).astype(x.dtype)
        )


@dataclasses.dataclass(frozen=True)
class Consistent:
    """Consistent annealed sampling (Jolicoeur-Martineau et al. 2021), between any two levels.

    Annealed Langevin dynamics with one step a level, whose fresh noise is what brings x to the next level's noise
    exactly, and not beyond. In the coordinates x / alpha, where the noise is q = sigma / alpha,

        x_s / alpha_s = x_t / alpha_t - step q_t eps + q_s b z,     b^2 = 1 - ((1 - step) q_t / q_s)^2

    which for alpha = 1 is x + step sigma_t^2 score + sigma_s b z. With step = 1 - q_s / q_t it is DDIM, with
    1 - (q_s / q_t)^2 the posterior's own step, and with more than either it forgets faster.

    Attributes:
        step: eta of the paper, step_size / sigma_min^2 of annealed Langevin. Where it is less than DDIM's, that is
            taken: less would leave more noise than the next level has.

    Raises:
        ValueError: unless 0 < step <= 1.
    """

    step: float = 0.1

    def __post_init__(self):
        if not 0 < self.step <= 1:
            raise ValueError(f"step={self.step}: more than 0, and 1 or less, is needed")

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array, s: Array) -> Array:
        found = predict(x, t)
        # The share of the noise of level s that is kept from x: sqrt(1 - b^2), held at 1.
        more = jnp.exp(0.5 * (process.logsnr(s) - process.logsnr(t)))
        kept = jnp.minimum((1 - self.step) * more, 1) if self.step < 1 else jnp.zeros_like(more)
        fresh = jnp.sqrt(1 - kept**2)
        noise = rows(kept, x) * found.eps + rows(fresh, x) * normal(key, x.shape).astype(x.dtype)
        return rows(process.alpha(s), x) * found.x0 + rows(process.sigma(s), x) * noise


@dataclasses.dataclass(frozen=True)
class ReverseDiffusion:
    """The forward step from s to t, turned around (Song et al. 2021, eqs. 46-47).

    The forward step is x_t = a x_s + G z with a = alpha_t / alpha_s and G^2 = sigma_t^2 - a^2 sigma_s^2, so

        x_s = (2 - a) x_t + G^2 score + G z        and for the ODE        x_s = (2 - a) x_t + G^2 score / 2

    For DDPM a = sqrt(1 - beta) and G^2 = beta; for NCSN a = 1 and G^2 = sigma_t^2 - sigma_s^2. Of weak order 1.

    Attributes:
        noise: whether to add z; without it the step follows the probability-flow ODE.
    """

    noise: bool = True

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array, s: Array) -> Array:
        a = process.alpha(t) / process.alpha(s)
        variance = process.sigma(t) ** 2 * -jnp.expm1(process.logsnr(t) - process.logsnr(s))
        drift = rows((1 if self.noise else 0.5) * variance, x) * predict(x, t).score
        x = rows(2 - a, x) * x + drift
        return x + rows(jnp.sqrt(variance), x) * normal(key, x.shape).astype(x.dtype) if self.noise else x


@dataclasses.dataclass(frozen=True)
class EulerMaruyama:
    """Euler-Maruyama for the reverse SDE, from t to s = t - h (Song et al. 2021, eq. 6 and section 4.1).

        x_s = x - (f x - g^2 score) h + g sqrt(h) z

    with f and g of `drift_diffusion`. Of weak order 1. In continuous time, and where alpha > 0.
    """

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array, s: Array) -> Array:
        f, g = drift_diffusion(process, t)
        h = t - s
        x = rows(1 - f * h, x) * x + rows(g**2 * h, x) * predict(x, t).score
        return x + rows(g * jnp.sqrt(h), x) * normal(key, x.shape).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Euler:
    """Euler's method for the probability-flow ODE in the process's time, of order 1 (Song et al. 2021, eq. 13).

        x_s = x + (s - t) (alpha' x0 + sigma' eps)

    What multiplies the step is f x - g^2 score / 2, written so that it is finite also where alpha = 0. For `Flow`
    it is the sampler of flow matching, for `EDM` it is DDIM.
    """

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array, s: Array) -> Array:
        return x + rows(s - t, x) * velocity(process, predict, x, t)


@dataclasses.dataclass(frozen=True)
class Heun:
    """Heun's method for the probability-flow ODE in the process's time: order 2, two evaluations a step.

    x' = x + (s - t) v(x, t),      x_s = x + (s - t) (v(x, t) + v(x', s)) / 2
    """

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array, s: Array) -> Array:
        h, first = rows(s - t, x), velocity(process, predict, x, t)
        return x + 0.5 * h * (first + velocity(process, predict, x + h * first, s))


@dataclasses.dataclass(frozen=True)
class EDMHeun:
    """The stochastic sampler of Karras et al. 2022 (algorithm 2), for any process.

    In the coordinates y = x / alpha the probability-flow ODE is dy / dq = eps with q = sigma / alpha. A step first
    adds noise, from q_t to q^ = (1 + gamma) q_t, then takes Heun's step of order 2 from there to q_s:

        y^ = y + noise sqrt(q^2 - q_t^2) z,      y' = y^ + (q_s - q^) eps(y^),
        y_s = y^ + (q_s - q^) (eps(y^) + eps(y')) / 2

    with gamma = min(churn / n, sqrt(2) - 1) in a walk of n levels, where low <= q_t <= high, and 0 elsewhere. Two
    evaluations a step and one for the last: 35 for n = 18. Where alpha = 0 the step is DDIM's. The last level ends
    with the denoised mean, their step to 0, and is not churned first, as theirs is if low is below it.

    Attributes:
        churn: S_churn of the paper; 0 is the deterministic sampler.
        low, high: S_min and S_max, in units of sigma / alpha.
        noise: S_noise.

    Raises:
        ValueError: unless churn and noise are 0 or more, and low <= high.
    """

    churn: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    def __post_init__(self):
        for name in ("churn", "noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: 0 or more is needed")
        if not self.low <= self.high:
            raise ValueError(f"low={self.low}, high={self.high}: low <= high is needed")

    def init(self, x: Array, grid: Array) -> Array:
        """The state: how much of its noise is added to x in a walk down this grid."""
        return jnp.asarray(min(self.churn / grid.shape[0], math.sqrt(2) - 1), x.dtype)

    def __call__(
        self, process: Process, predict: Predict, key: Array, x: Array, t: Array, s: Array, gamma: Array
    ) -> tuple[Array, Array]:
        if self.churn > 0:
            x, t = self._churned(process, key, x, t, gamma)
        first = predict(x, t)
        q, target = (jnp.exp(-0.5 * process.logsnr(u)) for u in (t, s))
        # Euler's step in q is DDIM's, which needs no division by alpha.
        end = rows(process.alpha(s), x) * first.x0 + rows(process.sigma(s), x) * first.eps
        turn = predict(end, s).eps - first.eps
        h = jnp.where(jnp.isfinite(q), 0.5 * (target - q), 0)
        return end + rows(process.alpha(s) * h, x) * turn, gamma

    def _churned(self, process: Process, key: Array, x: Array, t: Array, gamma: Array) -> tuple[Array, Array]:
        q = jnp.exp(-0.5 * process.logsnr(t))
        more = (q >= self.low) & (q <= self.high) & jnp.isfinite(q)
        there = jnp.where(more, process.time(process.logsnr(t) - 2 * jnp.log1p(gamma)), t.astype(x.dtype))
        # Again, since no noise is added beyond the process's noisiest level.
        added = jnp.where(more, jnp.maximum(jnp.exp(-process.logsnr(there)) - q**2, 0), 0)
        alpha = process.alpha(there)
        ratio = jnp.where(more, alpha / jnp.where(more, process.alpha(t), 1), 1)
        z = self.noise * normal(key, x.shape).astype(x.dtype)
        return rows(ratio, x) * x + rows(alpha * jnp.sqrt(added), x) * z, there


@dataclasses.dataclass(frozen=True)
class Hold:
    """No step at all: x_s = x_t. With a Langevin corrector this is annealed Langevin dynamics."""

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array, s: Array) -> Array:
        return x


def check_eta(eta: float) -> None:
    """Raises ValueError unless it lies in [0, 1]."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: 0 (DDIM) to 1 (DDPM) is needed")
