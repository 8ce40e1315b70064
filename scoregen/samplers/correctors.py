"""Correctors: moves that leave the level as it is, `(process, predict, key, x, t) -> x`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Predict
from scoregen.process import Process, example_keys, fold_keys, normal, rows

Corrector = Callable[[Process, Predict, Array, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class NoCorrector:
    """Leave x as it is."""

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array) -> Array:
        return x


@dataclasses.dataclass(frozen=True)
class Langevin:
    """Langevin steps at one noise level (Song & Ermon 2019, algorithm 1).

        x <- x + h s(x, t) + sqrt(2 h) z,        h = step_size (sigma_t / sigma_min)^2

    where sigma_min is the process's least noisy level. This is the convention of the paper's code, and its
    2e-5; the paper writes the same step with alpha = 2 h. What counts is h / sigma_t^2 = step_size / sigma_min^2:
    0.2 for NCSN v1. On a level that is Gaussian with variance V the chain settles at V / (1 - h / (2 V))
    rather than V, so the steps must be small beside sigma_min^2.

    Attributes:
        step_size: h at the least noisy level.
        steps: how many steps a level.

    Raises:
        ValueError: if step_size <= 0 or steps < 1.
    """

    step_size: float = 2e-5
    steps: int = 100

    def __post_init__(self):
        if not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size}: a positive number is needed")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: at least 1 is needed")

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array) -> Array:
        keys = example_keys(key, x.shape[0])
        h = rows(self.step_size * (process.sigma(t) / process.sigma(process.grid()[-1])) ** 2, x)

        def step(i: Array, x: Array) -> Array:
            z = normal(fold_keys(keys, i), x.shape).astype(x.dtype)
            return x + h * predict(x, t).score + jnp.sqrt(2 * h) * z

        return jax.lax.fori_loop(0, self.steps, step, x)


CORRECTORS = {"none": NoCorrector, "langevin": Langevin}
