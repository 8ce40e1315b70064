"""Averages of the parameters, for sampling:

    average <- d average + (1 - d) params

Each class here computes d from `step`, the number of finished steps, and `batch`, the examples per step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.errors import check_fraction, check_numbers

Average = Callable[[Array, int], Array]


@dataclasses.dataclass(frozen=True)
class NoAverage:
    """d = 0: the parameters themselves."""

    def __call__(self, step: Array, batch: int) -> Array:
        return jnp.zeros(())


@dataclasses.dataclass(frozen=True)
class Decay:
    """d = rate. With `ramp`, d is at most (1 + step) / (10 + step), so that the average is shorter at the start.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless 0 <= rate < 1.

    >>> float(Decay(0.999)(jnp.array(80), 64))
    0.9
    """

    rate: float = 0.999
    ramp: bool = True

    def __post_init__(self):
        check_fraction(rate=self.rate)

    def __call__(self, step: Array, batch: int) -> Array:
        done = step.astype(jnp.float32)
        return jnp.minimum(self.rate, (1.0 + done) / (10.0 + done)) if self.ramp else jnp.float32(self.rate)


@dataclasses.dataclass(frozen=True)
class HalfLife:
    """d = 2^(-batch / H): the weight of parameters halves with every H images (Karras et al. 2022, appendix F).

    H is `images`, but at most the share `ramp` of the images seen before the step. The default of 5 % is from their
    code; a large `ramp` has no effect.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless both are positive.

    >>> float(HalfLife(images=6400)(jnp.array(10_000), 6400))
    0.5
    """

    images: int = 500_000
    ramp: float = 0.05

    def __post_init__(self):
        check_numbers(lambda value: value > 0, "a positive number", images=self.images, ramp=self.ramp)

    def __call__(self, step: Array, batch: int) -> Array:
        half = jnp.minimum(self.images / batch, self.ramp * step.astype(jnp.float32))  # in steps
        return jnp.exp2(-1 / half)  # at half = 0 this is 0


@dataclasses.dataclass(frozen=True)
class Power:
    """d = (1 - 1/n)^(gamma + 1) at step n = 1, 2, ...: the weights follow tau^gamma, for every length of training.

    The parameters of step k have the relative time tau = k / n. The standard deviation of tau under the weights is
    `std`, the sigma_rel of Karras et al. 2024, eqs. 123 and 127:

        std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless 0 < std < 12^(-1/2). The upper limit belongs to the plain mean, gamma = 0.

    >>> round(Power(0.1).gamma, 2), round(Power(0.05).gamma, 2)
    (6.94, 16.97)
    """

    std: float = 0.1

    def __post_init__(self):
        check_numbers(lambda std: 0 < std < 12**-0.5, "between 0 and 12^(-1/2) = 0.2887", std=self.std)

    @property
    def gamma(self) -> float:
        return float(np.roots([1, 7, 16 - self.std**-2, 12 - self.std**-2]).real.max())

    def __call__(self, step: Array, batch: int) -> Array:
        # log1p keeps the digits of 1 / n, most of which 1 - 1/n would lose late in training; d = 0 at step 0.
        return jnp.exp(-(self.gamma + 1) * jnp.log1p(1 / step.astype(jnp.float32)))


AVERAGES = {"none": NoAverage, "decay": Decay, "halflife": HalfLife, "power": Power}
