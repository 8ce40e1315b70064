"""Chains: processes with N levels, given as tables."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.errors import check_count, check_finite, what_it_is
from scoregen.process.kernel import Process, check_data_std, check_sigmas
from scoregen.random import by_example, widest

LOWEST = -30.0  # the log alpha of a level with alpha = 0, between levels


@dataclasses.dataclass(frozen=True, eq=False)
class Chain(Process):
    """A process with N levels, given as tables; t is the index 0 .. N-1, where 0 is the least noisy.

    An integer t reads the tables. At a real t, log alpha and lam are interpolated linearly between two levels. The
    network of a chain can therefore serve as a denoiser at any noise level in its range (see
    `scoregen.denoiser.Denoiser.under`).

    Attributes:
        alphas: alpha of each level, `[N]`.
        sigmas: sigma of each level, `[N]`, rising.
        logsnrs: lam of each level, `[N]`, falling.
        data_std: see `Process`. It is 1 for the variance-preserving chains, which makes the prior N(0, I)
            (Ho et al. 2020, section 2).
        start: the prior: "normal" for N(0, prior_std^2), or "uniform" for U[0, 1), where NCSN v1 starts its sampler.

    >>> chain = ddpm()
    >>> chain.levels, float(chain.alpha(jnp.array(0)) ** 2)  # 1 - beta_min
    (1000, 0.9998999834060669)
    """

    alphas: Array
    sigmas: Array
    logsnrs: Array
    data_std: float = 1.0
    start: str = "normal"

    discrete = True

    @property
    def levels(self) -> int:
        """The number of levels N."""
        return self.alphas.shape[0]

    @property
    def ends(self) -> tuple[int, int]:
        """Levels 0 and N - 1."""
        return 0, self.levels - 1

    def _between(self, table: Array, t: Array) -> Array:
        """The table at real times, linear between levels, in the dtype of t."""
        t = jnp.asarray(t)
        wide = widest(table.dtype, t.dtype)
        return jnp.interp(t.astype(wide), jnp.arange(self.levels, dtype=wide), table.astype(wide)).astype(t.dtype)

    @property
    def _log_alphas(self) -> Array:
        """log alpha of each level, finite where alpha = 0, so that it can be interpolated."""
        return jnp.maximum(jnp.log(self.alphas), LOWEST)

    @property
    def _finite_logsnrs(self) -> Array:
        """lam of each level, finite where alpha = 0."""
        return jnp.maximum(self.logsnrs, 2 * LOWEST)

    def alpha(self, t: Array) -> Array:
        if jnp.issubdtype(jnp.asarray(t).dtype, jnp.integer):
            return self.alphas[t]
        return jnp.exp(self._between(self._log_alphas, t))

    def sigma(self, t: Array) -> Array:
        if jnp.issubdtype(jnp.asarray(t).dtype, jnp.integer):
            return self.sigmas[t]
        return self.alpha(t) * jnp.exp(-0.5 * self.logsnr(t))

    def logsnr(self, t: Array) -> Array:
        if jnp.issubdtype(jnp.asarray(t).dtype, jnp.integer):
            return self.logsnrs[t]
        return self._between(self._finite_logsnrs, t)

    def time(self, logsnr: Array) -> Array:
        logsnr = jnp.asarray(logsnr)
        wide = widest(self.logsnrs.dtype, logsnr.dtype)
        # jnp.interp needs a rising table, and lam falls with the index.
        t = jnp.interp(-logsnr.astype(wide), -self._finite_logsnrs.astype(wide), jnp.arange(self.levels, dtype=wide))
        return t.astype(logsnr.dtype)

    def prior(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Draws `[B, ...]` from N(0, prior_std^2), or from U[0, 1)."""
        if self.start != "uniform":
            return super().prior(key, shape)
        return by_example(jax.random.uniform, key, shape).astype(self.sigmas.dtype)

    def between(self, t_min: float, t_max: float) -> Chain:
        """The chain of the levels from t_min to t_max."""
        kept = slice(round(t_min), round(t_max) + 1)
        return dataclasses.replace(self, alphas=self.alphas[kept], sigmas=self.sigmas[kept], logsnrs=self.logsnrs[kept])


def _chain(log_alpha2: np.ndarray, log_sigma2: np.ndarray, **options) -> Chain:
    """Tables from log alpha^2 and log sigma^2 in float64, cast once."""
    alphas, sigmas = np.exp(0.5 * log_alpha2), np.exp(0.5 * log_sigma2)
    with jax.ensure_compile_time_eval():  # so that tables have values also during tracing
        return Chain(jnp.asarray(alphas), jnp.asarray(sigmas), jnp.asarray(log_alpha2 - log_sigma2), **options)


def _variance_preserving(steps: np.ndarray) -> Chain:
    with np.errstate(divide="ignore"):  # the last beta may be 1
        log_abar = np.cumsum(np.log1p(-steps))
    return _chain(log_abar, np.log(-np.expm1(log_abar)), data_std=1.0)


def ddpm(beta_min: float = 1e-4, beta_max: float = 0.02, steps: int = 1000, rescale: bool = True) -> Chain:
    """DDPM's variance-preserving chain with linear betas (Ho et al. 2020, section 4).

        x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z      (eq. 2)
        alpha^2 = abar_t = prod_{i <= t} (1 - beta_i),   sigma^2 = 1 - abar_t      (eq. 4)

    Level t here is the paper's level t + 1. At the last level abar is 4e-5, not 0. If `steps` is not 1000, the betas
    are multiplied by 1000 / steps, as in the code of Nichol & Dhariwal 2021, so that the last level is still noise.
    `rescale=False` leaves the betas unchanged.

    Raises:
        TypeError: if steps is not an integer, or a beta not a number.
        ValueError: unless 0 < beta_min <= beta_max < 1, also after rescaling, and steps >= 2.

    >>> float(ddpm().alpha(jnp.array(999)) ** 2)
    4.0358296e-05
    >>> float(ddpm(steps=50).alpha(jnp.array(49)) ** 2), float(ddpm(steps=50, rescale=False).alpha(jnp.array(49)) ** 2)
    (7.7...e-06, 0.60...)
    """
    check_finite(beta_min=beta_min, beta_max=beta_max)
    if not 0 < beta_min <= beta_max < 1:
        raise ValueError(f"beta_min={beta_min}, beta_max={beta_max}: 0 < beta_min <= beta_max < 1 is needed")
    check_count("steps", steps, 2)
    scale = 1000 / steps if rescale else 1.0
    if scale * beta_max >= 1:
        least = math.floor(1000 * beta_max) + 1
        raise ValueError(
            f"steps={steps}: the betas of 1000 steps, up to {beta_max:g}, are multiplied by 1000 / steps, and would "
            f"not stay below 1: give {least} steps or more, rescale=False, or the betas themselves"
        )
    return _variance_preserving(scale * np.linspace(beta_min, beta_max, steps, dtype=np.float64))


def cosine(steps: int = 1000) -> Chain:
    """The cosine chain (Nichol & Dhariwal 2021, eq. 17).

        abar(t) = f(t) / f(0),   f(t) = cos^2( (t/T + 0.008) / 1.008 * pi/2 ),
        beta_t = min(1 - abar(t) / abar(t-1), 0.999)

    The clip of beta keeps the last level from being pure noise.

    Raises:
        TypeError: if steps is not an integer.
        ValueError: if steps < 2.

    >>> float(cosine().sigma(jnp.array(0)))  # beta_1 = 4.13e-5: the first level is barely noisy
    0.00642...
    """
    check_count("steps", steps, 2)
    return _variance_preserving(cosine_betas(steps))


def cosine_betas(steps: int) -> np.ndarray:
    """The betas of `cosine`, `[N]` in float64.

    >>> cosine_betas(3).round(4).tolist()
    [0.2571, 0.6683, 0.999]
    """
    f = np.cos((np.arange(steps + 1, dtype=np.float64) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def ncsn(
    sigma_min: float = 0.01,
    sigma_max: float = 1.0,
    levels: int = 10,
    start: str = "normal",
    data_std: float = 0.5,
) -> Chain:
    """NCSN's variance-exploding levels (Song & Ermon 2019, section 4): alpha = 1, sigmas geometric.

        x_t = x_0 + sigma_t eps,     sigma_t = sigma_min (sigma_max / sigma_min)^{t / (levels - 1)}

    `start="uniform"` starts the sampler at U[0, 1), as the paper's code does, in place of
    N(0, sigma_max^2 + data_std^2).

    Raises:
        TypeError: if levels is not an integer, or a sigma or data_std not a number.
        ValueError: unless 0 < sigma_min < sigma_max < inf, levels >= 2, data_std >= 0 and start is "normal" or
            "uniform".

    >>> ncsn(0.01, 1.0, 3).sigmas.tolist()
    [0.009999999776482582, 0.10000000149011612, 1.0]
    """
    check_sigmas(sigma_min, sigma_max)
    if start not in ("normal", "uniform"):
        raise ValueError(f"start={start!r}: 'normal' or 'uniform' is needed")
    check_count("levels", levels, 2)
    check_data_std(data_std)
    log_sigmas = np.linspace(np.log(sigma_min), np.log(sigma_max), levels, dtype=np.float64)
    return _chain(np.zeros(levels), 2 * log_sigmas, start=start, data_std=data_std)


def _numbers(values: tuple[float, ...]) -> np.ndarray:
    """Two or more finite numbers in float64."""
    if np.ndim(values) == 0 or len(values) < 2:
        raise ValueError(f"values={what_it_is(values)}: two or more numbers are needed")
    for value in values:
        check_finite(values=value)
    return np.asarray(values, np.float64)


def betas(values: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.5, 0.7, 0.9)) -> Chain:
    """A variance-preserving chain with these betas, the least noisy step first (Ho et al. 2020, eq. 2).

    The last beta may be 1. The last level is then pure noise, with alpha = 0: a "zero terminal SNR" (Lin et al. 2024,
    arXiv:2305.08891), where a network of the target eps says nothing about x0.

    Raises:
        TypeError: if one is not a number.
        ValueError: unless there are two or more, all in (0, 1), or the last 1.

    >>> betas((0.19, 0.36)).alphas.tolist()  # sqrt(0.81), sqrt(0.81 * 0.64)
    [0.9, 0.72]
    >>> betas((0.19, 1.0)).alphas.tolist()
    [0.9, 0.0]
    """
    table = _numbers(values)
    if not ((table > 0) & (table <= 1)).all() or (table[:-1] == 1).any():
        raise ValueError(f"values={values}: numbers between 0 and 1 are needed; the last may be 1")
    return _variance_preserving(table)


def sigmas(values: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), data_std: float = 0.5) -> Chain:
    """A variance-exploding chain with these sigmas, in rising order: x_t = x_0 + sigma_t eps.

    Raises:
        TypeError: if one is not a number.
        ValueError: unless there are two or more, positive, finite and rising, and data_std >= 0.

    >>> sigmas((0.1, 2.0)).sigmas.tolist()
    [0.1, 2.0]
    """
    table = _numbers(values)
    check_data_std(data_std)
    if table[0] <= 0 or (np.diff(table) <= 0).any():
        raise ValueError(f"values={values}: positive numbers in rising order are needed")
    return _chain(np.zeros(table.size), 2 * np.log(table), data_std=data_std)
