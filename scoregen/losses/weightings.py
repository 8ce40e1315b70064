"""Weightings: how much an error counts at each noise level, as the factor of || x0 - x0_theta ||^2.

So a weighting means the same whatever the network gives and whichever objective estimates the error: an
objective that by itself has the weight `loss.weight` is multiplied by w / `loss.weight` (`Weighted`). Factors that
depend on the noise alone do not move the minimum, but decide what a network of finite size spends itself on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Predict
from scoregen.losses.matching import Loss, bound_weight, snr
from scoregen.process import Noised, Process

Weighting = Callable[[Process, Array], Array]


@dataclasses.dataclass(frozen=True)
class Weighted:
    """`loss` with the weighting `by` in the place of its own. A loss that averages over dimensions still does."""

    loss: Loss
    by: Weighting

    @property
    def positive(self) -> bool:
        return self.loss.positive

    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        factor = self.by(process, noised.t) / self.loss.weight(process, noised.t)
        return factor * self.loss(process, predict, noised, key)

    def weight(self, process: Process, t: Array) -> Array:
        return self.by(process, t)


@dataclasses.dataclass(frozen=True)
class Constant:
    """w = 1: the error of x0 itself."""

    def __call__(self, process: Process, t: Array) -> Array:
        return jnp.ones_like(process.alpha(t))


@dataclasses.dataclass(frozen=True)
class Sigma2:
    """w = SNR: sigma^2 times the squared error of the score, which is that of eps (Song & Ermon 2019, eq. 6)."""

    def __call__(self, process: Process, t: Array) -> Array:
        return snr(process, t)


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """w = 1/2 rate SNR / p(t), the variational bound's (Kingma et al. 2021, eqs. 14 and 17), in nats.

    With p the density of the process's own law. In continuous time that is g^2 / 2 times the squared error of the
    score, in the integral over t (Song, Durkan et al. 2021, eq. 7); of a chain of N levels N times L_{t-1} of Ho et
    al. 2020 with the posterior's variance. `scoregen.losses.VLB` has the ends of the bound as well.
    """

    def __call__(self, process: Process, t: Array) -> Array:
        return bound_weight(process, t)


@dataclasses.dataclass(frozen=True)
class MinSNR:
    """w = min(SNR, gamma) (Hang et al. 2023, section 3.4).

    Raises:
        ValueError: unless gamma > 0.
    """

    gamma: float = 5.0

    def __post_init__(self):
        _positive(gamma=self.gamma)

    def __call__(self, process: Process, t: Array) -> Array:
        return jnp.minimum(snr(process, t), self.gamma)


@dataclasses.dataclass(frozen=True)
class P2:
    """w = SNR / (k + SNR)^gamma (Choi et al. 2022, section 3.2): 1 / (k + SNR)^gamma of the simple loss.

    Raises:
        ValueError: unless k > 0 and gamma >= 0.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self):
        _positive(k=self.k)
        if not self.gamma >= 0:
            raise ValueError(f"gamma={self.gamma}: 0 or more is needed")

    def __call__(self, process: Process, t: Array) -> Array:
        ratio = snr(process, t)
        return ratio / (self.k + ratio) ** self.gamma


@dataclasses.dataclass(frozen=True)
class EDMWeight:
    """w = SNR + 1 / data_std^2 (Karras et al. 2022, table 1): the error of the output of the target "edm".

    Their (sigma^2 + d^2) / (sigma d)^2, where sigma stands for sigma / alpha and d is the process's data_std.
    """

    def __call__(self, process: Process, t: Array) -> Array:
        return snr(process, t) + 1 / process.data_std**2


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """w = rate SNR sigmoid(bias - lam) / p(t) (Kingma & Gao 2023; Hoogeboom et al. 2024).

    Twice the bound with each level weighted by sigmoid(bias - lam): the least noisy ones count less, and those
    beyond lam = bias nearly in full.
    """

    bias: float = -1.0

    def __call__(self, process: Process, t: Array) -> Array:
        lam = process.logsnr(t)
        return 2 * bound_weight(process, t) * jax.nn.sigmoid(self.bias - lam)


def _positive(**options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name}={value}: a positive number is needed")


WEIGHTINGS = {
    "own": lambda: None,
    "constant": Constant,
    "sigma2": Sigma2,
    "likelihood": Likelihood,
    "min_snr": MinSNR,
    "p2": P2,
    "edm": EDMWeight,
    "sigmoid": Sigmoid,
}
