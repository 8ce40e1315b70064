"""Processes in continuous time. Each defines alpha(t), the log-SNR and its inverse; the rest is derived.

A process is a frozen dataclass of plain numbers, without arrays, so `jit` treats it as a constant.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.errors import check_not_negative
from scoregen.process.kernel import Process, check_data_std, check_sigmas, known


class Continuous(Process):
    """The base class of processes with real times in [t_min, t_max].

    Sampling and training go no lower than `t_min`, since at t = 0 there is no noise and no score.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless 0 < t_min < t_max <= 1 and data_std >= 0.
    """

    discrete = False
    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        if known(t_min=self.t_min, t_max=self.t_max) and not 0 < self.t_min < self.t_max <= 1:
            raise ValueError(f"t_min={self.t_min}, t_max={self.t_max}: 0 < t_min < t_max <= 1 is needed")
        check_data_std(self.data_std)

    @property
    def ends(self) -> tuple[float, float]:
        return self.t_min, self.t_max

    def sigma(self, t: Array) -> Array:
        return self.alpha(t) * jnp.exp(-0.5 * self.logsnr(t))


@dataclasses.dataclass(frozen=True)
class _LinearBeta(Continuous):
    """log alpha^2 = -B(t), where B(t) = beta_min t + (beta_max - beta_min) t^2 / 2 integrates a linear beta."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    data_std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if known(beta_min=self.beta_min, beta_max=self.beta_max) and not 0 < self.beta_min <= self.beta_max:
            raise ValueError(f"beta_min={self.beta_min}, beta_max={self.beta_max}: 0 < beta_min <= beta_max is needed")

    def _integral(self, t: Array | float) -> Any:
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def alpha(self, t: Array) -> Array:
        return jnp.exp(-0.5 * self._integral(t))

    def _time_of(self, integral: Array) -> Array:
        """The root of the quadratic, written so that nothing cancels where t is small."""
        integral = jnp.minimum(integral, self._integral(self.t_max))
        root = jnp.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        return jnp.clip(2 * integral / (self.beta_min + root), self.t_min, self.t_max)


@dataclasses.dataclass(frozen=True)
class VP(_LinearBeta):
    """The variance-preserving SDE, DDPM in continuous time (Song et al. 2021, eqs. 11 and 32-33).

        dx = -beta(t)/2 x dt + sqrt(beta(t)) dw,     beta(t) = beta_min + t (beta_max - beta_min)
        alpha^2 = exp(-B(t)),    sigma^2 = 1 - alpha^2,    B(t) = beta_min t + (beta_max - beta_min) t^2 / 2

    At t = 1e-3 sigma is 0.0105; at DDPM's first level it is 0.01.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max, 0 < t_min < t_max <= 1 and data_std >= 0.

    >>> vp = VP()
    >>> float(vp.alpha(jnp.array(1.0))), float(vp.sigma(jnp.array(1.0)))
    (0.0065715..., 0.999978...)
    """

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def logsnr(self, t: Array) -> Array:
        b = self._integral(t)
        return -b - jnp.log(-jnp.expm1(-b))

    def time(self, logsnr: Array) -> Array:
        return self._time_of(jax.nn.softplus(-logsnr))


@dataclasses.dataclass(frozen=True)
class SubVP(_LinearBeta):
    """The sub-VP SDE, with less variance than VP at every time (Song et al. 2021, eqs. 12 and 34).

        dx = -beta(t)/2 x dt + sqrt(beta(t) (1 - exp(-2 B(t)))) dw
        alpha^2 = exp(-B(t)),    sigma = 1 - alpha^2        (so sigma equals VP's sigma^2)

    Raises:
        ValueError: unless 0 < beta_min <= beta_max, 0 < t_min < t_max <= 1 and data_std >= 0.

    >>> float(SubVP().sigma(jnp.array(0.5))), float(VP().sigma(jnp.array(0.5)) ** 2)
    (0.920936..., 0.920936...)
    """

    def sigma(self, t: Array) -> Array:
        return -jnp.expm1(-self._integral(t))

    def logsnr(self, t: Array) -> Array:
        b = self._integral(t)
        return -b - 2 * jnp.log(-jnp.expm1(-b))

    def time(self, logsnr: Array) -> Array:
        return self._time_of(2 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * logsnr)))


@dataclasses.dataclass(frozen=True)
class CosineVP(Continuous):
    """The cosine schedule in continuous time (Nichol & Dhariwal 2021, eq. 17), variance-preserving.

        alpha = cos(phi(t)) / cos(phi(0)),    sigma^2 = 1 - alpha^2,    phi(t) = (t + offset) / (1 + offset) pi/2

    alpha would be 0 at t = 1; t_max keeps a trace of the data, as the chain's clip of beta does.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless offset >= 0, 0 < t_min < t_max <= 1 and data_std >= 0.

    >>> float(CosineVP().alpha(jnp.array(0.5)) ** 2)
    0.4938...
    """

    offset: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.999
    data_std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if known(offset=self.offset):
            check_not_negative(offset=self.offset)

    def _angle(self, t: Array) -> Array:
        return (t + self.offset) / (1 + self.offset) * (math.pi / 2)

    @property
    def _first(self) -> float:
        return self.offset / (1 + self.offset) * (math.pi / 2)

    def alpha(self, t: Array) -> Array:
        # cos(phi) as sin(pi/2 - phi), which keeps its digits where it is small.
        return jnp.sin((1 - t) / (1 + self.offset) * (math.pi / 2)) / math.cos(self._first)

    def sigma(self, t: Array) -> Array:
        # sin^2(phi) - sin^2(phi_0) is computed as sin(phi - phi_0) sin(phi + phi_0), where nothing cancels.
        apart = t / (1 + self.offset) * (math.pi / 2)
        return jnp.sqrt(jnp.sin(apart) * jnp.sin(self._angle(t) + self._first)) / math.cos(self._first)

    def logsnr(self, t: Array) -> Array:
        return 2 * jnp.log(self.alpha(t)) - 2 * jnp.log(self.sigma(t))

    def time(self, logsnr: Array) -> Array:
        cos, sin = math.cos(self._first), math.sin(self._first)
        angle = jnp.arctan2(jnp.sqrt(sin**2 + cos**2 * jax.nn.sigmoid(-logsnr)), cos * jnp.sqrt(jax.nn.sigmoid(logsnr)))
        return jnp.clip(angle * (1 + self.offset) / (math.pi / 2) - self.offset, self.t_min, self.t_max)


@dataclasses.dataclass(frozen=True)
class VE(Continuous):
    """The variance-exploding SDE, NCSN in continuous time (Song et al. 2021, eqs. 9 and 30-31).

        dx = sigma(t) sqrt(2 log(sigma_max / sigma_min)) dw,      alpha = 1,
        sigma(t) = sigma_min (sigma_max / sigma_min)^t

    As in the paper's code, the kernel has the variance sigma(t)^2, not sigma(t)^2 - sigma_min^2.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless 0 < sigma_min < sigma_max < inf, 0 < t_min < t_max <= 1 and data_std >= 0.

    >>> VE(0.01, 50.0).sigma(jnp.array([0.0, 1.0])).tolist()
    [0.01, 50.0]
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_max: float = 1.0
    data_std: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sigmas(self.sigma_min, self.sigma_max)

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def logsnr(self, t: Array) -> Array:
        return -2 * (math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min))

    def time(self, logsnr: Array) -> Array:
        t = (-0.5 * logsnr - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)
        return jnp.clip(t, self.t_min, self.t_max)


@dataclasses.dataclass(frozen=True)
class EDM(Continuous):
    """The kernel of Karras et al. 2022: alpha = 1, and the time is the noise itself, sigma(t) = t.

    Their log-normal law of training times is `times.LogNormal`, and their grid with rho is `samplers.Karras`. Both are
    the defaults for this process (`times.Own`, `samplers.OwnGrid`).

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless 0 < sigma_min < sigma_max < inf and data_std >= 0.

    >>> EDM().sigma(jnp.array([0.002, 80.0])).tolist()
    [0.002, 80.0]
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    data_std: float = 0.5

    def __post_init__(self) -> None:
        check_sigmas(self.sigma_min, self.sigma_max)
        check_data_std(self.data_std)

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def t_max(self) -> float:
        return self.sigma_max

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def sigma(self, t: Array) -> Array:
        return jnp.asarray(t)

    def logsnr(self, t: Array) -> Array:
        return -2 * jnp.log(t)

    def time(self, logsnr: Array) -> Array:
        return jnp.clip(jnp.exp(-0.5 * logsnr), self.t_min, self.t_max)

    def between(self, t_min: float, t_max: float) -> EDM:
        return dataclasses.replace(self, sigma_min=t_min, sigma_max=t_max)


@dataclasses.dataclass(frozen=True)
class Flow(Continuous):
    """The straight path of flow matching and rectified flow (Lipman et al. 2023, eq. 20; Liu et al. 2023).

        x_t = (1 - t) x_0 + t eps,       alpha = 1 - t,    sigma = t

    t = 1 is noise, as for every process here; the papers' time runs the other way. At t = 1 alpha is 0, so x0
    cannot be computed from an estimate of eps: the network should give the velocity, v or x0.

    Raises:
        ValueError: unless 0 < t_min < t_max <= 1 and data_std >= 0.

    >>> Flow().logsnr(jnp.array([0.5, 1.0])).tolist()
    [0.0, -inf]
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    data_std: float = 1.0

    def alpha(self, t: Array) -> Array:
        return 1 - t

    def sigma(self, t: Array) -> Array:
        return jnp.asarray(t)

    def logsnr(self, t: Array) -> Array:
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def time(self, logsnr: Array) -> Array:
        return jnp.clip(jax.nn.sigmoid(-0.5 * logsnr), self.t_min, self.t_max)
