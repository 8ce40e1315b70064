"""Correctors: moves that leave the level as it is, `(process, predict, key, x, t) -> x`."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Predict
from scoregen.process import Process, example_keys, fold_keys, normal, rows, split_keys

Corrector = Callable[[Process, Predict, Array, Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class NoCorrector:
    """Leave x as it is."""

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array) -> Array:
        return x


class _Steps(abc.ABC):
    """So many Langevin steps x <- x + h s(x, t) + sqrt(2 h) z, of a length that is chosen at each."""

    steps: int

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: at least 1 is needed")

    @abc.abstractmethod
    def length(self, process: Process, score: Array, z: Array, t: Array) -> Array:
        """h, `[B]`."""

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array) -> Array:
        keys = example_keys(key, x.shape[0])

        def step(i: Array, x: Array) -> Array:
            score, z = predict(x, t).score, normal(fold_keys(keys, i), x.shape).astype(x.dtype)
            h = rows(self.length(process, score, z, t), x)
            return x + h * score + jnp.sqrt(2 * h) * z

        return jax.lax.fori_loop(0, self.steps, step, x)


def _scaled(process: Process, step_size: float, t: Array) -> Array:
    """step_size (sigma_t / sigma_min)^2, `[B]`."""
    return step_size * (process.sigma(t) / process.sigma(process.grid()[-1])) ** 2


@dataclasses.dataclass(frozen=True)
class Langevin(_Steps):
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
        super().__post_init__()
        _check_positive(step_size=self.step_size)

    def length(self, process: Process, score: Array, z: Array, t: Array) -> Array:
        return _scaled(process, self.step_size, t)


@dataclasses.dataclass(frozen=True)
class SNRLangevin(_Steps):
    """Langevin steps of a given signal-to-noise ratio (Song et al. 2021, algorithms 4-5).

        x <- x + h s(x, t) + sqrt(2 h) z,        h = 2 (snr ||z|| / ||s||)^2,      at most sigma_t^2

    so that the step along the score is snr times as long as the noise that is added. The norms are each example's,
    so an example does not depend on its batch; the paper's code takes their means over the batch. In few dimensions
    the norm of a score may be near 0, where no step would be short enough: hence sigma_t^2, beyond which the
    noise of the level would be overshot. The paper's code has another factor alpha_t = 1 - beta_t on
    variance-preserving chains, between 0.98 and 1, left out here.

    Attributes:
        snr: the ratio; 0.16 in the paper, for CIFAR-10.
        steps: how many steps a level.
        batch_mean: take the mean norms of the batch, as the paper's code does; draws then depend on the batch.

    Raises:
        ValueError: if snr <= 0 or steps < 1.
    """

    snr: float = 0.16
    steps: int = 1
    batch_mean: bool = False

    def __post_init__(self):
        super().__post_init__()
        _check_positive(snr=self.snr)

    def length(self, process: Process, score: Array, z: Array, t: Array) -> Array:
        norms = (jnp.sqrt(jnp.sum(a**2, axis=tuple(range(1, a.ndim)))) for a in (z, score))
        noise, signal = (jnp.mean(a, keepdims=True) if self.batch_mean else a for a in norms)
        # Not noise / signal, which a score of 0 makes infinite before it can be held.
        longest = process.sigma(t) ** 2
        return longest * jnp.minimum(1, 2 * (self.snr * noise) ** 2 / jnp.maximum(longest * signal**2, 1e-30))


@dataclasses.dataclass(frozen=True)
class MALA(_Steps):
    """Langevin steps that are accepted or not, so that the level's law is kept exactly (Roberts & Tweedie 1996).

    A step as in `Langevin` from x to y is taken with the probability

        min(1, p_t(y) q(x | y) / (p_t(x) q(y | x))),        q(y | x) = N(y ; x + h s(x), 2 h I)

    so whatever the step size, it has no bias, only slowness. That takes p_t and not only its score: a denoiser whose
    `Prediction.log_density` is there, as the oracles have, and networks made by `denoiser.of_energy`.

    Attributes:
        step_size, steps: as for `Langevin`.

    Raises:
        ValueError: if step_size <= 0 or steps < 1; when it is called, if the denoiser has no density.
    """

    step_size: float = 2e-5
    steps: int = 100

    def __post_init__(self):
        super().__post_init__()
        _check_positive(step_size=self.step_size)

    def length(self, process: Process, score: Array, z: Array, t: Array) -> Array:
        return _scaled(process, self.step_size, t)

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array) -> Array:
        keys, h = example_keys(key, x.shape[0]), _scaled(process, self.step_size, t)

        def evaluate(x: Array) -> tuple[Array, Array]:
            found = predict(x, t)
            if found.log_density is None:
                raise ValueError("the corrector 'mala' needs a density, and this denoiser has the score alone")
            return found.score, found.log_density

        def log_q(there: Array, x: Array, score: Array) -> Array:
            away = there - x - rows(h, x) * score
            return -jnp.sum(away**2, axis=tuple(range(1, x.ndim))) / (4 * h)

        def step(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            x, score, density = state
            move, accept = split_keys(fold_keys(keys, i), 2)
            y = x + rows(h, x) * score + rows(jnp.sqrt(2 * h), x) * normal(move, x.shape).astype(x.dtype)
            new_score, new_density = evaluate(y)
            log_ratio = new_density - density + log_q(x, y, new_score) - log_q(y, x, score)
            taken = jnp.log(jax.vmap(jax.random.uniform)(accept).astype(x.dtype)) < log_ratio
            return tuple(
                jnp.where(rows(taken, a), a, b) for a, b in ((y, x), (new_score, score), (new_density, density))
            )  # pyright: ignore[reportReturnType]

        return jax.lax.fori_loop(0, self.steps, step, (x, *evaluate(x)))[0]


def _check_positive(**options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name}={value}: a positive number is needed")


CORRECTORS = {"none": NoCorrector, "langevin": Langevin, "snr": SNRLangevin, "mala": MALA}
