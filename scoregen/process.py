"""Perturbation processes: how data turn into noise.

Every process here is its Gaussian kernel

    p(x_t | x_0) = N(x_t ; alpha(t) x_0, sigma(t)^2 I),            lam(t) = log(alpha^2 / sigma^2),

and all else follows from it: the noised example (`perturb`), the exact law of a less noisy level
given a noisier one and the clean data (`posterior`), and the law from which sampling starts
(`Process.prior`). DDPM (Ho et al. 2020) and NCSN (Song & Ermon 2019) are two tables of alpha and
sigma, made by `ddpm`, `cosine` and `ncsn`; nothing else in the package knows which one it has.

Indices and units. A chain has levels t = 0 .. N-1 and **index 0 is the least noisy**, for both
families (papers disagree). Noise is keyed by example: row i of a batch depends on the key and on i,
never on how many other rows there are.
"""

from __future__ import annotations

import abc
import dataclasses
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
    """

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
    def sample_time(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Times drawn from the training law, `[B]`."""

    @abc.abstractmethod
    def grid(self, n: int | None = None) -> Array:
        """`n` levels from the noisiest to the least noisy, `[n]`; `None`: all of a chain's."""

    @abc.abstractmethod
    def prior(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Draws `[B, ...]` from the law of x at the noisiest level."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Chain(Process):
    """A process with N levels, given as tables; t is the index 0 .. N-1, 0 the least noisy.

    An integer t reads the tables. A real t lies between two levels, where log alpha and lam are
    linear in t: that is how a chain's network serves as a denoiser at any noise level in its range
    (see `scoregen.denoiser.as_process`).

    Attributes:
        alphas: alpha of each level, `[N]`.
        sigmas: sigma of each level, `[N]`, rising.
        logsnrs: lam of each level, `[N]`, falling.
        data_std: what the prior N(0, sigma^2 + alpha^2 data_std^2) at the noisiest level takes for the
            data's own standard deviation. One for the variance-preserving chains, where it makes the
            prior N(0, I) (Ho et al. 2020, section 2); zero for NCSN, whose prior is N(0, sigma_max^2).
        start: "normal" for that prior, or "uniform" for U[0, 1) (where NCSN v1 starts its sampler).

    >>> chain = ddpm()
    >>> chain.levels, float(chain.alpha(jnp.array(0)) ** 2)  # 1 - beta_min
    (1000, 0.9998999834060669)
    """

    alphas: Array
    sigmas: Array
    logsnrs: Array
    data_std: float = dataclasses.field(default=0.0, metadata={"static": True})
    start: str = dataclasses.field(default="normal", metadata={"static": True})

    @property
    def levels(self) -> int:
        """The number of levels N."""
        return self.alphas.shape[0]

    def _between(self, table: Array, t: Array) -> Array:
        return jnp.interp(t, jnp.arange(self.levels, dtype=table.dtype), table)

    def alpha(self, t: Array) -> Array:
        if jnp.issubdtype(jnp.asarray(t).dtype, jnp.integer):
            return self.alphas[t]
        return jnp.exp(self._between(jnp.log(self.alphas), t))

    def sigma(self, t: Array) -> Array:
        if jnp.issubdtype(jnp.asarray(t).dtype, jnp.integer):
            return self.sigmas[t]
        return self.alpha(t) * jnp.exp(-0.5 * self.logsnr(t))

    def logsnr(self, t: Array) -> Array:
        if jnp.issubdtype(jnp.asarray(t).dtype, jnp.integer):
            return self.logsnrs[t]
        return self._between(self.logsnrs, t)

    def time(self, logsnr: Array) -> Array:
        # jnp.interp wants a rising table, and lam falls with the index.
        return jnp.interp(-logsnr, -self.logsnrs, jnp.arange(self.levels, dtype=self.logsnrs.dtype))

    def sample_time(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Levels drawn uniformly, int32 `[B]`."""
        return draw(lambda k, s: jax.random.randint(k, s, 0, self.levels), key, shape)

    def grid(self, n: int | None = None) -> Array:
        """`n` levels, noisiest first, evenly spaced in the index and with both ends, int32 `[n]`.

        With n = 1 it is the noisiest level alone.

        Raises:
            ValueError: if `n` is not between 1 and the number of levels.

        >>> ddpm().grid(5).tolist()
        [999, 749, 500, 250, 0]
        """
        n = self.levels if n is None else n
        if not 1 <= n <= self.levels:
            raise ValueError(f"a chain of {self.levels} levels has no grid of {n}: give 1 to {self.levels}")
        # Half-integers always round up, so that no two steps of an even grid differ by their parity.
        return jnp.asarray(np.floor(np.linspace(self.levels - 1, 0, n) + 0.5), dtype=jnp.int32)

    def prior(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Draws `[B, ...]` from N(0, sigma^2 + alpha^2 data_std^2) at the noisiest level, or U[0, 1)."""
        if self.start == "uniform":
            return draw(jax.random.uniform, key, shape)
        return jnp.hypot(self.sigmas[-1], self.alphas[-1] * self.data_std) * normal(key, shape)

    def within(self, other: Process) -> Chain:
        """The chain of those levels whose noise `other` covers, to sample with a network of `other`'s.

        A level is covered if its lam lies in `other`'s range, give or take 1 %; see `covers`.

        Raises:
            ValueError: if fewer than two levels are covered.
        """
        inside = covers(other, self.logsnrs)
        if inside.sum() < 2:
            raise ValueError("the two processes share fewer than two noise levels")
        return dataclasses.replace(
            self, alphas=self.alphas[inside], sigmas=self.sigmas[inside], logsnrs=self.logsnrs[inside]
        )


def covers(process: Process, logsnr: Array) -> np.ndarray:
    """Whether each lam, `[n]`, lies in the range of `process`, as bools `[n]`.

    The ends count with a tolerance of 0.02 in lam, that is 1 % in sigma / alpha: DDPM's lowest level
    has sigma / alpha = 0.010001 and NCSN's 0.01, and nobody means those to differ.
    """
    ends = np.asarray(process.logsnr(process.grid()[jnp.array([0, -1])]))
    lam = np.asarray(logsnr)
    return (lam >= ends[0] - 0.02) & (lam <= ends[1] + 0.02)


def _chain(log_alpha2: np.ndarray, log_sigma2: np.ndarray, **options) -> Chain:
    """Tables from log alpha^2 and log sigma^2 in float64, cast once."""
    alphas, sigmas = np.exp(0.5 * log_alpha2), np.exp(0.5 * log_sigma2)
    return Chain(jnp.asarray(alphas), jnp.asarray(sigmas), jnp.asarray(log_alpha2 - log_sigma2), **options)


def _variance_preserving(betas: np.ndarray) -> Chain:
    log_abar = np.cumsum(np.log1p(-betas))
    return _chain(log_abar, np.log(-np.expm1(log_abar)), data_std=1.0)


def ddpm(beta_min: float = 1e-4, beta_max: float = 0.02, steps: int = 1000) -> Chain:
    """DDPM's variance-preserving chain with linear betas (Ho et al. 2020, section 4).

        x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z      (eq. 2)
        alpha^2 = abar_t = prod_{i <= t} (1 - beta_i),   sigma^2 = 1 - abar_t      (eq. 4)

    Index t here is the paper's t + 1. At the last level abar is 4e-5, not 0.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max < 1 and steps >= 2.

    >>> float(ddpm().alpha(jnp.array(999)) ** 2)
    4.0358296e-05
    """
    if not 0 < beta_min <= beta_max < 1:
        raise ValueError(f"beta_min={beta_min}, beta_max={beta_max}: 0 < beta_min <= beta_max < 1 is needed")
    _check_levels(steps, "steps")
    return _variance_preserving(np.linspace(beta_min, beta_max, steps, dtype=np.float64))


def cosine(steps: int = 1000) -> Chain:
    """The cosine chain (Nichol & Dhariwal 2021, eq. 17).

        abar(t) = f(t) / f(0),   f(t) = cos^2( (t/T + 0.008) / 1.008 * pi/2 ),
        beta_t = min(1 - abar(t) / abar(t-1), 0.999)

    The clip of beta keeps the last level from being pure noise.

    Raises:
        ValueError: if steps < 2.

    >>> float(cosine().sigma(jnp.array(0)))  # beta_1 = 4.13e-5: the first level is barely noisy
    0.00642...
    """
    _check_levels(steps, "steps")
    f = np.cos((np.arange(steps + 1, dtype=np.float64) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return _variance_preserving(np.minimum(1 - f[1:] / f[:-1], 0.999))


def ncsn(sigma_min: float = 0.01, sigma_max: float = 1.0, levels: int = 10, start: str = "normal") -> Chain:
    """NCSN's variance-exploding levels (Song & Ermon 2019, section 4): alpha = 1, sigmas geometric.

        x_t = x_0 + sigma_t eps,     sigma_t = sigma_min (sigma_max / sigma_min)^{t / (levels - 1)}

    `start="uniform"` starts the sampler at U[0, 1), as the paper's code does, in place of
    N(0, sigma_max^2).

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max, levels >= 2 and start is one of the two.

    >>> ncsn(0.01, 1.0, 3).sigmas.tolist()
    [0.009999999776482582, 0.10000000149011612, 1.0]
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: 0 < sigma_min < sigma_max is needed")
    if start not in ("normal", "uniform"):
        raise ValueError(f"start={start!r}: 'normal' or 'uniform' is needed")
    _check_levels(levels, "levels")
    log_sigmas = np.linspace(np.log(sigma_min), np.log(sigma_max), levels, dtype=np.float64)
    return _chain(np.zeros(levels), 2 * log_sigmas, start=start)


def _check_levels(count: int, name: str) -> None:
    if count < 2:
        raise ValueError(f"{name}={count}: a chain has at least 2 levels")


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

        mean = (alpha_s / alpha_t) (1 - w) x_t + alpha_s w x_0,      std = sigma_s sqrt(w).

    For the chain of Ho et al. 2020 this is their eqs. 6-7 between neighbours, for NCSN's levels the
    ancestral step of Song et al. 2021 (appendix F); and it holds between any two levels, which is how a
    chain is walked with fewer steps. The textbook form subtracts two variances that are nearly equal;
    expm1 keeps every digit (Kingma et al. 2021, appendix A).

    Args:
        process: the process.
        x: x_t, `[B, ...]`.
        x0: the clean data or an estimate of them, `[B, ...]`.
        t, s: times `[B]`.

    Returns:
        The mean `[B, ...]` and the standard deviation `[B]`.

    >>> chain, one = ddpm(), jnp.ones((1, 1))
    >>> mean, std = posterior(chain, one, one, jnp.array([1]), jnp.array([0]))
    >>> float(mean[0, 0]), float(std[0] ** 2)  # beta-tilde of the second step
    (0.999..., 5.4...e-05)
    """
    lam_t, lam_s = process.logsnr(t), process.logsnr(s)
    w = -jnp.expm1(lam_t - lam_s)
    on_x = process.alpha(s) / process.alpha(t) * jnp.exp(lam_t - lam_s)
    mean = rows(on_x, x) * x + rows(process.alpha(s) * w, x) * x0
    return mean, process.sigma(s) * jnp.sqrt(w)


PROCESSES = {"ddpm": ddpm, "cosine": cosine, "ncsn": ncsn}
