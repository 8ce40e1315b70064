"""Predictors: one step from a level t to a less noisy level s, `(process, predict, key, x, t, s) -> x`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Predict
from scoregen.process import Process, normal, rows

Predictor = Callable[[Process, Predict, Array, Array, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """Ancestral sampling between any two levels, with DDIM's eta (Song, Meng & Ermon 2021, eq. 12).

    With w = -expm1(lam_t - lam_s), so that sigma_s sqrt(w) is the posterior's standard deviation,

        x_s = alpha_s x0 + sigma_s sqrt(1 - eta^2 w) eps + eta sigma_s sqrt(w) z.

    eta = 1 is a draw from `scoregen.process.posterior` at the estimated x0: DDPM's sampler (Ho et al. 2020,
    algorithm 2) on a variance-preserving chain, and the "VE ancestral" step (Song et al. 2021, appendix F) on
    NCSN's levels. eta = 0 is DDIM.

    Attributes:
        eta: the share of the posterior's noise that is fresh; the rest is taken from eps.
        clip: the range that x0 is clipped to before the step, (low, high); eps is then what is left of x.
        variance: "small" for the posterior's variance, "large" for the forward one, sigma_t^2 w (beta_t
            between neighbours of DDPM; Ho et al. 2020, section 3.2), or "learned" for what the network says
            lies between (Nichol & Dhariwal 2021, eq. 15), as z's factor; the mean is the same.

    Raises:
        ValueError: if eta is negative or over 1, clip is not a range, or variance is none of these words; when it
            is called, if the variance is to be learned and was not.
    """

    eta: float = 1.0
    clip: tuple[float, float] = (-math.inf, math.inf)
    variance: str = "small"

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta}: 0 (DDIM) to 1 (DDPM) is needed")
        if len(self.clip) != 2 or not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip={self.clip}: a range (low, high) is needed")
        if self.variance not in ("small", "large", "learned"):
            raise ValueError(f"variance={self.variance!r}: 'small', 'large' or 'learned' is needed")

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array, s: Array) -> Array:
        x0, eps, _, between = predict(x, t)
        if self.clip != (-math.inf, math.inf):
            x0 = jnp.clip(x0, *self.clip)
            eps = (x - rows(process.alpha(t), x) * x0) / rows(process.sigma(t), x)
        lam = process.logsnr(t) - process.logsnr(s)
        w = -jnp.expm1(lam)
        # 1 - eta^2 w, written so that at eta = 1 it is exp(lam) to the last digit.
        kept = (1 - self.eta**2) + self.eta**2 * jnp.exp(lam)
        ends = rows(process.sigma(s), x), rows(process.sigma(t), x)
        if self.variance == "learned":
            if between is None:
                raise ValueError("variance='learned': the denoiser has learned none")
            sigma = ends[0] * (ends[1] / ends[0]) ** between
        else:
            sigma = ends[self.variance == "large"]
        return (
            rows(process.alpha(s), x) * x0
            + rows(process.sigma(s) * jnp.sqrt(kept), x) * eps
            + self.eta * sigma * rows(jnp.sqrt(w), x) * normal(key, x.shape).astype(x.dtype)
        )


@dataclasses.dataclass(frozen=True)
class Hold:
    """No step at all: x_s = x_t. With a Langevin corrector this is annealed Langevin dynamics."""

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array, s: Array) -> Array:
        return x


PREDICTORS = {"ancestral": Ancestral, "hold": Hold}
