"""Correctors: moves that keep the law of x at one noise level, `(denoiser, key, x, t) -> x`."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Denoiser
from scoregen.errors import Refusal, check_fields, check_positive
from scoregen.process import Process, bottom
from scoregen.random import broadcast, example_keys, fold_keys, normal, split_keys


class Corrector(abc.ABC):
    """A move at one noise level. A corrector of your own is a class with `__call__`, or a function with its arguments.

    Attributes:
        needs_density: whether it needs a denoiser that gives log p_t(x).
        continuous_only: whether it cannot be used on a chain.
    """

    needs_density: ClassVar[bool] = False
    continuous_only: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, denoiser: Denoiser, key: Array, x: Array, t: Array) -> Array:
        """x `[B, ...]` after the move, at the same levels t `[B]`. `key` is one key, or one for each example `[B]`."""

    def refuse(self, process: Process) -> Refusal | None:
        """Why the corrector cannot be used under this process; None if it can."""
        return None


class _Langevin(Corrector):
    """A number of Langevin steps x <- x + h s(x, t) + sqrt(2 h) z, whose length h the subclass gives."""

    steps: int

    def __post_init__(self):
        check_fields(self, steps=1)

    @abc.abstractmethod
    def length(self, process: Process, score: Array, z: Array, t: Array) -> Array:
        """h, `[B]`."""

    def __call__(self, denoiser: Denoiser, key: Array, x: Array, t: Array) -> Array:
        keys = example_keys(key, x.shape[0])

        def step(i: Array, x: Array) -> Array:
            score, z = denoiser(x, t).score, normal(fold_keys(keys, i), x.shape, x.dtype)
            h = broadcast(self.length(denoiser.process, score, z, t), x)
            return x + h * score + jnp.sqrt(2 * h) * z

        return jax.lax.fori_loop(0, self.steps, step, x)


def _scaled(process: Process, step_size: float, t: Array) -> Array:
    """step_size (sigma_t / sigma_min)^2, `[B]`."""
    return step_size * (process.sigma(t) / process.sigma(bottom(process))) ** 2


@dataclasses.dataclass(frozen=True)
class Langevin(_Langevin):
    """Langevin steps at one noise level (Song & Ermon 2019, algorithm 1).

        x <- x + h s(x, t) + sqrt(2 h) z,        h = step_size (sigma_t / sigma_min)^2

    Here sigma_min is sigma at the process's least noisy level. The convention and the default 2e-5 are from the paper's
    code; the paper writes the same step with alpha = 2 h. The accuracy depends on h / sigma_t^2 = step_size /
    sigma_min^2, which is 0.2 for NCSN v1. On a Gaussian level of variance V the Langevin chain converges to the
    variance V / (1 - h / (2 V)), so step_size must be small compared with sigma_min^2. From 2 sigma_min^2 on the chain
    diverges, and `refuse` rejects it.

    Attributes:
        step_size: h at the least noisy level.
        steps: the number of steps at each level.

    Raises:
        TypeError: if steps is not an integer.
        ValueError: if step_size <= 0 or steps < 1.
    """

    step_size: float = 2e-5
    steps: int = 100

    def __post_init__(self):
        super().__post_init__()
        check_positive(step_size=self.step_size)

    def length(self, process: Process, score: Array, z: Array, t: Array) -> Array:
        return _scaled(process, self.step_size, t)

    def refuse(self, process: Process) -> Refusal | None:
        with jax.ensure_compile_time_eval():
            least = float(process.sigma(bottom(process))) ** 2
        if self.step_size < 2 * least:
            return None
        return Refusal(
            f"Langevin steps of step_size={self.step_size:g} diverge: at the least noisy level less than 2 sigma^2 = "
            f"{2 * least:.3g} is needed, and a tenth of it is accurate",
            (f"corrector.step_size={0.2 * least:.3g}",),
        )


@dataclasses.dataclass(frozen=True)
class SNRLangevin(_Langevin):
    """Langevin steps of a given signal-to-noise ratio (Song et al. 2021, algorithms 4-5).

        x <- x + h s(x, t) + sqrt(2 h) z,        h = 2 (snr sigma_t)^2

    The paper takes h = 2 (snr ||z|| / ||s||)^2, which makes the step along the score snr times as long as the added
    noise. Here the norms are replaced by their expectations: E||z||^2 = D, and E||sigma_t s||^2 is about D at a noisy
    level. In many dimensions both h are nearly equal. In few dimensions the paper's norms fluctuate, and a step
    whose length depends on x and z does not keep the law of the level. On Gaussians in 2, 4 and 16 dimensions, steps by
    each example's own norms converged to 6.1, 3.7 and 1.6 times the exact variance in the narrowest direction.

    With constant h it is an ordinary Langevin step. On a Gaussian level, a direction of variance V >= sigma_t^2
    converges to the variance

        V / (1 - snr^2 sigma_t^2 / V)  <=  V / (1 - snr^2)

    The variance is therefore too large by at most the share snr^2 / (1 - snr^2), which is 2.6 % at the paper's 0.16.
    This holds in any dimension, at any level of any process, and for any other examples in the batch.

    `batch_mean=True` follows the paper's code: the norms are means over the batch, so a sample depends on its batch. h
    is limited to sigma_t^2, since in few dimensions a score may be near 0. On variance-preserving chains the paper's
    code has another factor alpha_t = 1 - beta_t, between 0.98 and 1, which is left out here.

    Attributes:
        snr: the ratio; 0.16 in the paper, for CIFAR-10.
        steps: the number of steps at each level.
        batch_mean: whether to use the mean norms of the batch, as the paper's code does.

    Raises:
        TypeError: if steps is not an integer.
        ValueError: if snr <= 0, if snr >= 1 without `batch_mean` (the steps would diverge), or if steps < 1.
    """

    snr: float = 0.16
    steps: int = 1
    batch_mean: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_positive(snr=self.snr)
        if self.snr >= 1 and not self.batch_mean:
            raise ValueError(f"snr={self.snr}: less than 1 is needed, or the steps diverge; the paper has 0.16")

    def length(self, process: Process, score: Array, z: Array, t: Array) -> Array:
        variance = process.sigma(t) ** 2
        if not self.batch_mean:
            return 2 * self.snr**2 * variance
        noise, signal = (jnp.mean(jnp.sqrt(jnp.sum(a**2, axis=tuple(range(1, a.ndim))))) for a in (z, score))
        # This form avoids noise / signal, which is infinite for a score of 0.
        longest = variance.astype(score.dtype)
        return longest * jnp.minimum(1, 2 * (self.snr * noise) ** 2 / jnp.maximum(longest * signal**2, 1e-30))


@dataclasses.dataclass(frozen=True)
class MALA(Corrector):
    """Langevin steps with a Metropolis test, which keep the law of the level exactly (Roberts & Tweedie 1996).

    A step as in `Langevin` from x to y is accepted with the probability

        min(1, p_t(y) q(x | y) / (p_t(x) q(y | x))),        q(y | x) = N(y ; x + h s(x), 2 h I)

    There is therefore no bias at any step size. Long steps are often rejected, which makes the corrector slow. It needs
    p_t and not only its score, so the denoiser must give `Prediction.log_density`. The oracles do, and so do networks
    trained as an energy (`denoiser.from_energy`, `denoiser.as_energy`).

    Attributes:
        step_size, steps: as for `Langevin`.

    Raises:
        TypeError: if steps is not an integer.
        ValueError: if step_size <= 0 or steps < 1; when it is called, if the denoiser has no density.
    """

    step_size: float = 2e-5
    steps: int = 100

    needs_density = True

    def __post_init__(self):
        check_fields(self, steps=1)
        check_positive(step_size=self.step_size)

    def __call__(self, denoiser: Denoiser, key: Array, x: Array, t: Array) -> Array:
        keys = example_keys(key, x.shape[0])
        h = _scaled(denoiser.process, self.step_size, t).astype(x.dtype)

        def evaluate(x: Array) -> tuple[Array, Array]:
            found = denoiser(x, t)
            if found.log_density is None:
                raise ValueError(
                    "the corrector MALA accepts a move by the density, and this denoiser gives the score alone: take "
                    "Langevin, or a model with energy=True under its own process"
                )
            return found.score, found.log_density.astype(x.dtype)

        def log_q(there: Array, x: Array, score: Array) -> Array:
            away = there - x - broadcast(h, x) * score
            return -jnp.sum(away**2, axis=tuple(range(1, x.ndim))) / (4 * h)

        def step(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            x, score, density = state
            move, accept = split_keys(fold_keys(keys, i), 2)
            y = x + broadcast(h, x) * score + broadcast(jnp.sqrt(2 * h), x) * normal(move, x.shape, x.dtype)
            new_score, new_density = evaluate(y)
            log_ratio = new_density - density + log_q(x, y, new_score) - log_q(y, x, score)
            accepted = jnp.log(jax.vmap(jax.random.uniform)(accept).astype(x.dtype)) < log_ratio
            return tuple(
                jnp.where(broadcast(accepted, a), a, b) for a, b in ((y, x), (new_score, score), (new_density, density))
            )  # pyright: ignore[reportReturnType]

        return jax.lax.fori_loop(0, self.steps, step, (x, *evaluate(x)))[0]


CORRECTORS = {"none": lambda: None, "langevin": Langevin, "snr": SNRLangevin, "mala": MALA}
