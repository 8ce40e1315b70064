"""Perturbation processes: how data turn into noise.

Every process here is its Gaussian kernel

    p(x_t | x_0) = N(x_t ; alpha(t) x_0, sigma(t)^2 I),            lam(t) = log(alpha^2 / sigma^2),

and all else follows from it: the noised example (`perturb`), the exact law of a less noisy level
given a noisier one and the clean data (`posterior`), the stochastic differential equation
(`drift_diffusion`), and the law from which sampling starts (`Process.prior`). Nothing else in the
package knows which process it has.

Times and units. A larger t is noisier, for every family (papers disagree); a chain's t is its level
0 .. N-1. Noise is keyed by example: row i of a batch depends on the key and on i, never on how many
other rows there are.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def example_keys(key: Array, count: int) -> Array:
    """One key for each example, `[B]`; a batch of keys is passed through as it is.

    Key i is `fold_in(key, i)`, so it is the same whatever the batch size.

    >>> few, many = (example_keys(jax.random.key(0), n) for n in (2, 5))
    >>> bool((few == many[:2]).all())
    True
    """
    return key if key.ndim else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))


def split_keys(keys: Array, count: int) -> tuple[Array, ...]:
    """`count` independent batches of keys `[B]`, from one batch of keys `[B]`."""
    return tuple(jax.vmap(lambda k: jax.random.split(k, count), out_axes=1)(keys))


def fold_keys(keys: Array, data: Array | int) -> Array:
    """`jax.random.fold_in` for a batch of keys `[B]`: fresh keys for step `data` of a loop."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def draw(law: Callable, key: Array, shape: tuple[int, ...]) -> Array:
    """`law(key, shape)` with noise keyed by example: row i depends on the key and i alone.

    `key` is one key or a batch of keys `[B]`; `law` is any `jax.random` sampler of (key, shape).
    """
    return jax.vmap(lambda k: law(k, shape[1:]))(example_keys(key, shape[0]))


def normal(key: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise `[B, ...]`, keyed by example (see `draw`)."""
    return draw(jax.random.normal, key, shape)


def rows(a: Array, x: Array) -> Array:
    """A number an example, `[B]` or a scalar, with axes of size one to multiply `x` `[B, ...]`."""
    return jnp.reshape(a, jnp.shape(a) + (1,) * (x.ndim - jnp.ndim(a)))


class Process(abc.ABC):
    """A perturbation process p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I).

    Times are arrays `[B]` (or scalars) and all methods are elementwise in them, so that they can be
    used inside `jax.jit`, `jax.grad` and `jax.vmap`.

    Attributes:
        discrete: whether times are the integers 0 .. levels - 1 rather than reals.
        levels: how many levels `grid()` has.
        data_std: the standard deviation that the process takes the data to have, in each dimension. The
            prior, EDM's preconditioning and EDM's weight read it here, so that they cannot disagree.
    """

    discrete: bool
    levels: int
    data_std: float

    @abc.abstractmethod
    def alpha(self, t: Array) -> Array:
        """The factor alpha(t) of the data, `[B] -> [B]`."""

    @abc.abstractmethod
    def sigma(self, t: Array) -> Array:
        """The standard deviation sigma(t) of the noise, `[B] -> [B]`."""

    @abc.abstractmethod
    def logsnr(self, t: Array) -> Array:
        """lam(t) = log(alpha(t)^2 / sigma(t)^2), `[B] -> [B]`, falling in t."""

    @abc.abstractmethod
    def time(self, logsnr: Array) -> Array:
        """The inverse of `logsnr`, `[B] -> [B]`, held at the ends of the process's range."""

    @abc.abstractmethod
    def spread(self, u: Array) -> Array:
        """The training law over t as its quantiles: of u uniform in [0, 1), a time, `[B] -> [B]`."""

    @abc.abstractmethod
    def density(self, t: Array) -> Array:
        """The density of the training law at t (of a chain: the probability), `[B] -> [B]`."""

    @abc.abstractmethod
    def rate(self, t: Array) -> Array:
        """How fast the signal-to-noise ratio is lost, `[B] -> [B]`.

        In continuous time -d SNR/dt / SNR = -d lam/dt; of a chain, over the step from level t - 1 to t,
        (SNR_{t-1} - SNR_t) / SNR_t = expm1(lam_{t-1} - lam_t). At a chain's level 0, which no step leads to,
        it is that of level 1.
        """

    @abc.abstractmethod
    def grid(self, n: int | None = None) -> Array:
        """`n` levels from the noisiest to the least noisy, `[n]`; `None`: `levels` of them."""

    @abc.abstractmethod
    def within(self, other: Process) -> Process:
        """The part of this process whose noise `other` covers, to sample with a network of `other`'s.

        Raises:
            ValueError: if nearly nothing is covered.
        """

    def prior_std(self) -> Array:
        """The standard deviation of the prior, sqrt(sigma^2 + alpha^2 data_std^2) at the noisiest level."""
        top = self.grid(1)[0]
        return jnp.hypot(self.sigma(top), self.alpha(top) * self.data_std)

    def prior(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Draws `[B, ...]` from what is taken for the law of x at the noisiest level, N(0, prior_std^2)."""
        return self.prior_std() * normal(key, shape)

    def sample_time(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Times drawn from the training law, `[B]`."""
        return self.spread(draw(jax.random.uniform, key, shape))


def check_finite(**values: float | tuple[float, ...]) -> None:
    """Raises ValueError, naming it, if one is infinite or NaN: of such levels the figures are, too."""
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{name}={value}: finite numbers are needed")


def check_data_std(data_std: float) -> None:
    """Raises ValueError if it is negative, or no number."""
    check_finite(data_std=data_std)
    if not data_std >= 0:
        raise ValueError(f"data_std={data_std}: 0 or more is needed")


def check_sigmas(sigma_min: float, sigma_max: float) -> None:
    """Raises ValueError unless 0 < sigma_min < sigma_max, and both are finite."""
    check_finite(sigma_min=sigma_min, sigma_max=sigma_max)
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: 0 < sigma_min < sigma_max is needed")


def covers(process: Process, logsnr: Array) -> np.ndarray:
    """Whether each lam, `[n]`, lies in the range of `process`, as bools `[n]`.

    The ends count with a tolerance of 0.02 in lam, that is 1 % in sigma / alpha: DDPM's lowest level
    has sigma / alpha = 0.010001 and NCSN's 0.01, and nobody means those to differ.
    """
    ends = np.asarray(process.logsnr(process.grid()[jnp.array([0, -1])]))
    lam = np.asarray(logsnr)
    return (lam >= ends[0] - 0.02) & (lam <= ends[1] + 0.02)


class Noised(NamedTuple):
    """A noised batch: x = alpha(t) x0 + sigma(t) eps. All `[B, ...]` but t, which is `[B]`."""

    x0: Array
    eps: Array
    x: Array
    t: Array


def perturb(process: Process, key: Array, x0: Array, t: Array) -> Noised:
    """Noise each example to its own level: x = alpha(t) x0 + sigma(t) eps, eps ~ N(0, I).

    Args:
        process: the process.
        key: one key, or one for each example `[B]`.
        x0: clean data `[B, ...]`.
        t: their times `[B]`.

    >>> from scoregen.process import ncsn
    >>> x0 = jnp.ones((2, 3))
    >>> noised = perturb(ncsn(), jax.random.key(0), x0, jnp.array([0, 9]))
    >>> bool(jnp.allclose(noised.x - x0, jnp.array([[0.01], [1.0]]) * noised.eps, atol=1e-6))
    True
    """
    eps = normal(key, x0.shape).astype(x0.dtype)
    return Noised(x0, eps, rows(process.alpha(t), x0) * x0 + rows(process.sigma(t), x0) * eps, t)


def posterior(process: Process, x: Array, x0: Array, t: Array, s: Array) -> tuple[Array, Array]:
    """The exact law of x_s given x_t and x_0, s less noisy than t: N(mean, std^2 I).

    With w = -expm1(lam_t - lam_s), the share of x_s that x_t has not yet settled,

        mean = (alpha_t / alpha_s) (sigma_s / sigma_t)^2 x_t + alpha_s w x_0,      std = sigma_s sqrt(w).

    For the chain of Ho et al. 2020 this is their eqs. 6-7 between neighbours, for NCSN's levels the
    ancestral step of Song et al. 2021 (appendix F); and it holds between any two levels, which is how a
    chain is walked with fewer steps. The textbook form subtracts two variances that are nearly equal;
    expm1 keeps what digits lam has (Kingma et al. 2021, appendix A).

    Args:
        process: the process.
        x: x_t, `[B, ...]`.
        x0: the clean data or an estimate of them, `[B, ...]`.
        t, s: times `[B]`.

    Returns:
        The mean `[B, ...]` and the standard deviation `[B]`.

    >>> from scoregen.process import ddpm
    >>> chain, one = ddpm(), jnp.ones((1, 1))
    >>> mean, std = posterior(chain, one, one, jnp.array([1]), jnp.array([0]))
    >>> float(mean[0, 0]), float(std[0] ** 2)  # beta-tilde of the second step
    (0.999..., 5.4...e-05)
    """
    lam_t, lam_s = process.logsnr(t), process.logsnr(s)
    w = -jnp.expm1(lam_t - lam_s)
    # (alpha_s / alpha_t) (1 - w), but finite where alpha_t = 0, as at the end of flow matching.
    on_x = process.alpha(t) / process.alpha(s) * (process.sigma(s) / process.sigma(t)) ** 2
    mean = rows(on_x, x) * x + rows(process.alpha(s) * w, x) * x0
    return mean, process.sigma(s) * jnp.sqrt(w)


def drift_diffusion(process: Process, t: Array) -> tuple[Array, Array]:
    """The stochastic differential equation that has this kernel, dx = f x dt + g dw (Song et al. 2021, eq. 5).

        f = d log alpha / dt,      g^2 = 2 sigma (sigma' - f sigma) = -sigma^2 dlam/dt

    so nothing has to be written down but alpha and sigma (Kingma et al. 2021, appendix B). Where alpha = 0, f is
    infinite. For a chain, give a real t: it is the equation through its levels, in units of one level.

    Args:
        process: the process.
        t: real times `[B]`.

    Returns:
        f and g, both `[B]`.

    >>> from scoregen.process import VP
    >>> f, g = drift_diffusion(VP(), jnp.array([0.5]))
    >>> float(f[0]), float(g[0] ** 2)  # -beta / 2 and beta, where beta(0.5) = 10.05
    (-5.025, 10.05)
    """
    alpha, slope = jax.jvp(process.alpha, (t,), (jnp.ones_like(t),))
    _, lam_slope = jax.jvp(process.logsnr, (t,), (jnp.ones_like(t),))
    return slope / alpha, process.sigma(t) * jnp.sqrt(-lam_slope)
