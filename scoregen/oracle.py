"""Closed-form truth: Gaussian mixtures, whose score, denoiser and density are exact under every process.

If x_0 ~ sum_k w_k N(m_k, c_k^2 I) and x_t = alpha x_0 + sigma eps, then
x_t ~ sum_k w_k N(alpha m_k, (alpha^2 c_k^2 + sigma^2) I), and the denoiser is that of each mode, weighted by how
likely x_t comes from it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.denoiser import Predict, Prediction
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

    def predict(self, process: Process) -> Predict:
        """The exact denoiser under `process`, mode by mode, so that nothing is divided by alpha.

        Of the mode k that x came from, E[x_0 | x, k] = m_k + alpha c_k^2 / (alpha^2 c_k^2 + sigma^2) (x - alpha m_k).
        """
        weights, means, stds = self._tables()

        def predict(x: Array, t: Array) -> Prediction:
            alpha, sigma = rows(process.alpha(t), x), rows(process.sigma(t), x)
            variance = alpha**2 * stds[None] ** 2 + sigma**2  # [B, K]
            off = x[:, None] - alpha[..., None] * means[None]  # [B, K, D]
            square = jnp.sum(off**2, -1) / variance
            share = jax.nn.softmax(jnp.log(weights)[None] - 0.5 * (square + self.dim * jnp.log(variance)))
            x0 = means[None] + (alpha * stds[None] ** 2 / variance)[..., None] * off
            eps = jnp.sum((share * sigma / variance)[..., None] * off, 1)
            density = self.log_prob(x, process.alpha(t), process.sigma(t))
            return Prediction(jnp.sum(share[..., None] * x0, 1), eps, -eps / sigma, None, density)

        return predict


def gaussian(mean, std) -> Mixture:
    """One isotropic Gaussian."""
    return Mixture((1.0,), (tuple(mean),), (std,))


# Two modes of unequal weight and width, far enough apart that a sampler can get the weights wrong.
TWO_MODES = Mixture((0.3, 0.7), ((-1.2, 0.4), (1.0, -0.3)), (0.35, 0.2))
