"""Weightings: how much an error counts at each noise level, as the factor of || x0 - x0_theta ||^2.

A weighting means the same for every target and every loss: a loss whose own weight is `loss.weight` is multiplied by
w / `loss.weight` (`Weighted`). Factors that depend only on the noise level do not move the minimum, but they decide
where a network of finite size spends its capacity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Denoiser
from scoregen.errors import Refusal, check_finite, check_not_negative, check_positive
from scoregen.losses.matching import FunctionLoss, Loss, bound_weight, loss_name, snr
from scoregen.process import Noised, Process, top
from scoregen.random import broadcast

Weighting = Callable[[Process, Array], Array]


def refuse_weighting(loss: Loss, by: Weighting, process: Process) -> Refusal | None:
    """Why the weighting `by` cannot replace the loss's own weight under `process`, or None if it can."""
    found = _refuse_loss(loss) or getattr(by, "refuse", lambda process: None)(process)
    if found is not None:
        return found
    # At alpha = 0 an error of eps has weight 0. A chain has no level with alpha = 0, and its tables may be traced.
    if not process.discrete and loss.refuse(process) is None:
        with jax.ensure_compile_time_eval():
            none = float(loss.weight(process, top(process))) == 0  # pyright: ignore[reportAttributeAccessIssue]
        if none:
            return Refusal(
                "at its noisiest level this process has alpha = 0, where the loss has weight 0, which no other weight "
                "can replace",
                ("loss=x0", "loss=flow", "weighting=own"),
            )
    return None


def _refuse_loss(loss: Loss) -> Refusal | None:
    """Why no weighting can replace this loss's own weight, or None if one can."""
    if loss.average_over_time:
        return Refusal(
            f"the weights of the loss {loss_name(loss)} make it a bound, and a weighting would replace them",
            ("weighting=own", "loss=eps", "loss=x0"),
        )
    if not hasattr(loss, "weight"):
        return Refusal(
            f"the loss {loss_name(loss)} has no weight of its own that a weighting could replace (a method "
            "weight(process, t) -> [B], the factor of ||x0 - x0_theta||^2 in its expectation)",
            ("weighting=own",),
        )
    return None


@dataclasses.dataclass(frozen=True)
class Weighted(Loss):
    """`loss` with the weighting `by` in place of its own weight. A loss that averages over dimensions still does.

    A plain function has no method `weight`, so it cannot be weighted.

    Raises:
        ValueError: when it is called, for a loss without a method `weight`, and for a loss that is a bound.
    """

    loss: Loss
    by: Weighting

    def __post_init__(self):
        if not isinstance(self.loss, Loss):
            object.__setattr__(self, "loss", FunctionLoss(self.loss))

    @property
    def positive(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether `loss` is never negative."""
        return self.loss.positive

    def __call__(self, denoiser: Denoiser, noised: Noised, key: Array) -> Array:
        refused = _refuse_loss(self.loss)
        if refused is not None:
            raise ValueError(str(refused))
        value = self.loss(denoiser, noised, key)
        own = self.loss.weight(denoiser.process, noised.t)  # pyright: ignore[reportAttributeAccessIssue]
        return broadcast(self.by(denoiser.process, noised.t) / own, value) * value

    def weight(self, process: Process, t: Array) -> Array:
        """The weighting."""
        return self.by(process, t)

    def refuse(self, process: Process) -> Refusal | None:
        return self.loss.refuse(process) or refuse_weighting(self.loss, self.by, process)


@dataclasses.dataclass(frozen=True)
class Constant:
    """w = 1: the error of x0 itself."""

    def __call__(self, process: Process, t: Array) -> Array:
        return jnp.ones_like(process.alpha(t))


@dataclasses.dataclass(frozen=True)
class Sigma2:
    """w = SNR: sigma^2 times the squared error of the score, equal to the error of eps (Song & Ermon 2019, eq. 6)."""

    def __call__(self, process: Process, t: Array) -> Array:
        return snr(process, t)


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """w = 1/2 rate SNR / p(t), as in the variational bound (Kingma et al. 2021, eqs. 14 and 17), in nats.

    rate is `snr_loss_rate`, and p is the density of `times.Own`. In continuous time the weighted error is g^2 / 2 times
    the squared error of the score, in the integral over t (Song, Durkan et al. 2021, eq. 7). For a chain of N levels it
    is N times L_{t-1} of Ho et al. 2020 with the posterior's variance. `scoregen.losses.VLB` also has the terms at both
    ends of the bound.
    """

    def __call__(self, process: Process, t: Array) -> Array:
        return bound_weight(process, t)


@dataclasses.dataclass(frozen=True)
class MinSNR:
    """w = min(SNR, gamma) (Hang et al. 2023, section 3.4).

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless gamma > 0.
    """

    gamma: float = 5.0

    def __post_init__(self):
        check_positive(gamma=self.gamma)

    def __call__(self, process: Process, t: Array) -> Array:
        return jnp.minimum(snr(process, t), self.gamma)


@dataclasses.dataclass(frozen=True)
class P2:
    """w = SNR / (k + SNR)^gamma (Choi et al. 2022, section 3.2): the simple loss times 1 / (k + SNR)^gamma.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless k > 0 and gamma >= 0.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self):
        check_positive(k=self.k)
        check_not_negative(gamma=self.gamma)

    def __call__(self, process: Process, t: Array) -> Array:
        ratio = snr(process, t)
        return ratio / (self.k + ratio) ** self.gamma


@dataclasses.dataclass(frozen=True)
class EDMWeight:
    """w = SNR + 1 / data_std^2 (Karras et al. 2022, table 1): the error of the output of the target "edm".

    It is their (sigma^2 + d^2) / (sigma d)^2, with sigma / alpha as sigma and the process's data_std as d.
    """

    def __call__(self, process: Process, t: Array) -> Array:
        return snr(process, t) + 1 / process.data_std**2

    def refuse(self, process: Process) -> Refusal | None:
        """Why the weighting cannot be used under `process`, if data_std = 0; else None."""
        if process.data_std != 0:
            return None
        return Refusal(
            "EDM's weighting divides by the standard deviation of the data, and data_std is 0 here",
            ("process.data_std=0.5",),
        )


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """w = rate SNR sigmoid(bias - lam) / p(t) (Kingma & Gao 2023; Hoogeboom et al. 2024).

    It is twice the bound, with each level weighted by sigmoid(bias - lam): the least noisy levels count less, and
    levels with lam far below `bias` count nearly in full.

    Raises:
        TypeError: if bias is not a number.
        ValueError: unless bias is finite.
    """

    bias: float = -1.0

    def __post_init__(self):
        check_finite(bias=self.bias)

    def __call__(self, process: Process, t: Array) -> Array:
        lam = process.logsnr(t)
        return 2 * bound_weight(process, t) * jax.nn.sigmoid(self.bias - lam)


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
