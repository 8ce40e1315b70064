"""Closed-form truth: Gaussian mixtures, whose score, denoiser and density are exact under every process.

If x_0 ~ sum_k w_k N(m_k, c_k^2 I) and x_t = alpha x_0 + sigma eps, then
x_t ~ sum_k w_k N(alpha m_k, (alpha^2 c_k^2 + sigma^2) I), and by Tweedie's formula
E[x_0 | x_t] = (x_t + sigma^2 score) / alpha,  E[eps | x_t] = -sigma score.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.denoiser import Prediction
from scoregen.process import Process, rows


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Weights `[K]`, means `[K, D]` and standard deviations `[K]` of isotropic Gaussians."""

    weights: tuple
    means: tuple
    stds: tuple

    def _tables(self):
        return (jnp.asarray(np.asarray(a, dtype=np.float64)) for a in (self.weights, self.means, self.stds))

    @property
    def dim(self) -> int:
        return len(self.means[0])

    def sample(self, key: Array, count: int) -> Array:
        weights, means, stds = self._tables()
        which, noise = jax.random.split(key)
        k = jax.random.choice(which, len(self.weights), (count,), p=weights)
        return means[k] + stds[k][:, None] * jax.random.normal(noise, (count, self.dim), means.dtype)

    def log_prob(self, x: Array, alpha: Array | float = 1.0, sigma: Array | float = 0.0) -> Array:
        """log p_t(x) `[B]` for x `[B, D]` and alpha, sigma `[B]` (or scalars)."""
        weights, means, stds = self._tables()
        alpha, sigma = (jnp.broadcast_to(jnp.asarray(a, x.dtype), x.shape[:1])[:, None] for a in (alpha, sigma))
        var = alpha**2 * stds[None] ** 2 + sigma**2
        square = jnp.sum((x[:, None] - alpha[..., None] * means[None]) ** 2, -1)
        norm = 0.5 * self.dim * jnp.log(2 * jnp.pi * var)
        return jax.nn.logsumexp(jnp.log(weights)[None] - 0.5 * square / var - norm, axis=1)

    def score(self, process: Process, x: Array, t: Array) -> Array:
        return jax.grad(lambda x: self.log_prob(x, process.alpha(t), process.sigma(t)).sum())(x)

    def predict(self, process: Process):
        """The exact denoiser under `process`."""

        def predict(x: Array, t: Array) -> Prediction:
            alpha, sigma, score = rows(process.alpha(t), x), rows(process.sigma(t), x), self.score(process, x, t)
            return Prediction((x + sigma**2 * score) / alpha, -sigma * score, score)

        return predict


def gaussian(mean, std) -> Mixture:
    """One isotropic Gaussian."""
    return Mixture((1.0,), (tuple(mean),), (std,))


# Two modes of unequal weight and width, far enough apart that a sampler can get the weights wrong.
TWO_MODES = Mixture((0.3, 0.7), ((-1.2, 0.4), (1.0, -0.3)), (0.35, 0.2))
