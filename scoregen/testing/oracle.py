"""Exact solutions: Gaussian mixtures, with the exact score, denoiser and density under every process.

If x_0 ~ sum_k w_k N(m_k, c_k^2 I) and x_t = alpha x_0 + sigma eps, then
x_t ~ sum_k w_k N(alpha m_k, (alpha^2 c_k^2 + sigma^2) I), and the denoiser is the mean of the modes' denoisers, each
weighted by the probability that x_t came from its mode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial
from jax.typing import DTypeLike

from scoregen.denoiser import Denoiser, Prediction
from scoregen.process import Process
from scoregen.random import broadcast


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of K isotropic Gaussians in D dimensions.

    Attributes:
        weights: the probabilities of the modes, `[K]`, which add up to one.
        means: their means, `[K, D]`.
        stds: their standard deviations, `[K]`.

    >>> from scoregen.process import VE
    >>> exact = Mixture((0.5, 0.5), ((-1.0,), (1.0,)), (0.1, 0.1)).denoiser(VE())
    >>> float(exact(jnp.zeros((1, 1)), 0.5).x0[0, 0])  # half way between two equal modes
    0.0
    """

    weights: tuple[float, ...]
    means: tuple[tuple[float, ...], ...]
    stds: tuple[float, ...]

    def _tables(self, dtype: DTypeLike = float) -> tuple[Array, Array, Array]:
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        weights, means, stds = (jnp.asarray(np.asarray(a, np.float64), dtype) for a in dataclasses.astuple(self))
        return weights, means, stds

    @property
    def dim(self) -> int:
        """The number of dimensions D."""
        return len(self.means[0])

    def sample(self, key: Array, count: int) -> Array:
        """Draws `[count, D]`."""
        weights, means, stds = self._tables()
        which, noise = jax.random.split(key)
        k = jax.random.choice(which, len(self.weights), (count,), p=weights)
        return means[k] + stds[k][:, None] * jax.random.normal(noise, (count, self.dim), means.dtype)

    def log_prob(self, x: Array, alpha: Array | float = 1.0, sigma: Array | float = 0.0) -> Array:
        """log p_t(x) `[B]` for x `[B, D]` and alpha, sigma `[B]` (or scalars)."""
        weights, means, stds = self._tables(x.dtype)
        alpha, sigma = (jnp.broadcast_to(jnp.asarray(a, x.dtype), x.shape[:1])[:, None] for a in (alpha, sigma))
        var = alpha**2 * stds[None] ** 2 + sigma**2
        square = jnp.sum((x[:, None] - alpha[..., None] * means[None]) ** 2, -1)
        norm = 0.5 * self.dim * jnp.log(2 * jnp.pi * var)
        return jax.nn.logsumexp(jnp.log(weights)[None] - 0.5 * square / var - norm, axis=1)

    def score(self, process: Process, x: Array, t: Array) -> Array:
        """grad log p_t(x), `[B, D]`, by automatic differentiation of `log_prob`."""
        return jax.grad(lambda x: self.log_prob(x, process.alpha(t), process.sigma(t)).sum())(x)

    def denoiser(self, process: Process) -> Denoiser:
        """The exact denoiser under `process`, with the density. It is also finite at alpha = 0.

        Given the mode k, E[x_0 | x, k] = m_k + alpha c_k^2 / (alpha^2 c_k^2 + sigma^2) (x - alpha m_k).
        """
        return Denoiser(process, Partial(_exact, self, process))


def _exact(data: Mixture, process: Process, x: Array, t: Array) -> Prediction:
    weights, means, stds = data._tables(x.dtype)
    alpha, sigma = broadcast(process.alpha(t), x), broadcast(process.sigma(t), x)
    variance = alpha**2 * stds[None] ** 2 + sigma**2  # [B, K]
    off = x[:, None] - alpha[..., None] * means[None]  # [B, K, D]
    square = jnp.sum(off**2, -1) / variance
    share = jax.nn.softmax(jnp.log(weights)[None] - 0.5 * (square + data.dim * jnp.log(variance)))
    x0 = means[None] + (alpha * stds[None] ** 2 / variance)[..., None] * off
    eps = jnp.sum((share * sigma / variance)[..., None] * off, 1)
    density = data.log_prob(x, process.alpha(t), process.sigma(t))
    return Prediction(jnp.sum(share[..., None] * x0, 1), eps, -eps / sigma, None, density)


def gaussian(mean: Sequence[float], std: float) -> Mixture:
    """One isotropic Gaussian."""
    return Mixture((1.0,), (tuple(mean),), (std,))


# Two modes of unequal weight and width, far enough apart that a sampler can get the weights wrong.
TWO_MODES = Mixture((0.3, 0.7), ((-1.2, 0.4), (1.0, -0.3)), (0.35, 0.2))
