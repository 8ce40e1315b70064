"""Wrappers of a denoiser: what is known of x0 from elsewhere, put into every estimate of it.

Each is `(process, predict) -> predict`, so it works with every sampler, and they compose.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Predict, Prediction, of_x0
from scoregen.process import Process, rows


@dataclasses.dataclass(frozen=True)
class Clip:
    """x0 clipped to the range of the data, as in the sampler of Ho et al. 2020; eps is then what is left of x.

    Attributes:
        low, high: the range; the run takes it from the data's scaling.

    Raises:
        ValueError: unless low < high.
    """

    low: float
    high: float

    def __post_init__(self):
        _check_range(self.low, self.high)

    def __call__(self, process: Process, predict: Predict) -> Predict:
        def clipped(x: Array, t: Array) -> Prediction:
            found = predict(x, t)
            return of_x0(process, x, t, jnp.clip(found.x0, self.low, self.high), found.between)

        return clipped


@dataclasses.dataclass(frozen=True)
class DynamicThreshold:
    """Imagen's dynamic thresholding (Saharia et al. 2022, section 2.3): x0 scaled to the range of the data.

    With u = x0 as a number of [-1, 1] and q a high quantile of |u| over an example's dimensions, u is clipped to
    [-s, s] and divided by s, where s = max(q, 1). So what would be clipped is pulled in with all the rest.

    Attributes:
        low, high: the range; the run takes it from the data's scaling.
        quantile: which one.

    Raises:
        ValueError: unless low < high, both finite, and 0 < quantile <= 1.
    """

    low: float
    high: float
    quantile: float = 0.995

    def __post_init__(self):
        _check_range(self.low, self.high)
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"low={self.low}, high={self.high}: data without a range have nothing to be scaled to")
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile={self.quantile}: more than 0, and 1 or less, is needed")

    def __call__(self, process: Process, predict: Predict) -> Predict:
        middle, half = 0.5 * (self.low + self.high), 0.5 * (self.high - self.low)

        def scaled(x: Array, t: Array) -> Prediction:
            found = predict(x, t)
            u = (found.x0 - middle) / half
            size = jnp.quantile(jnp.abs(u).reshape(len(u), -1), self.quantile, axis=1)
            s = rows(jnp.maximum(size, 1), u)
            return of_x0(process, x, t, middle + half * jnp.clip(u, -s, s) / s, found.between)

        return scaled


def _check_range(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"low={low}, high={high}: low < high is needed")


X0S = {"free": lambda: lambda process, predict: predict, "clip": Clip, "dynamic": DynamicThreshold}
