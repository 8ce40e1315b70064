"""Steps: the move from a noise level t to a less noisy level s.

Every sampler of this library except annealed Langevin dynamics is a step (papers say "predictor", "solver" or "update
rule"). Steps that remember earlier levels are in `scoregen.samplers.multistep`, and the adaptive step is in
`scoregen.samplers.ode`.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Denoiser, Prediction
from scoregen.errors import Refusal, check_not_negative, check_numbers
from scoregen.process import Process, drift_diffusion, vanishes
from scoregen.random import broadcast, normal


class Step(abc.ABC):
    """A step from level t to a less noisy level s.

    A step of your own is a class with `step`. If it needs to know the whole grid or to remember earlier levels, `init`
    returns its first state, a pytree of arrays whose shapes and dtypes stay the same during sampling.

    Attributes:
        continuous_only: whether it steps in time, so that it cannot be used on a chain.
        needs_corrector: whether it samples only together with a corrector.
        excludes_corrector: whether it cannot be used together with a corrector.
        needs_variance: whether it needs a denoiser with a learned variance.
        adaptive: whether it chooses its own steps between the levels of the grid, so that two levels are enough.

    >>> class Jump(Step):
    ...     "Noise the denoised mean again, to level s."
    ...
    ...     def step(self, denoiser, key, x, t, s, state):
    ...         process, found = denoiser.process, denoiser(x, t)
    ...         z = normal(key, x.shape, x.dtype)
    ...         return broadcast(process.alpha(s), x) * found.x0 + broadcast(process.sigma(s), x) * z, state
    """

    continuous_only: ClassVar[bool] = False
    needs_corrector: ClassVar[bool] = False
    excludes_corrector: ClassVar[bool] = False
    needs_variance: bool = False
    adaptive: ClassVar[bool] = False

    def init(self, denoiser: Denoiser, x: Array, grid: Array) -> Any:
        """The state before the first step; () if nothing is remembered.

        x `[B, ...]` is the sample at the first of the levels `grid` `[n]`.
        """
        return ()

    @abc.abstractmethod
    def step(self, denoiser: Denoiser, key: Array, x: Array, t: Array, s: Array, state: Any) -> tuple[Array, Any]:
        """x `[B, ...]` at the levels s `[B]`, from x at the levels t `[B]`, and the next state.

        `key` is one key for each example, `[B]`; `scoregen.random.normal(key, x.shape, x.dtype)` draws noise with it.
        """

    def refuse(self, process: Process) -> Refusal | None:
        """Why the step cannot be used under this process, beyond its attributes; None if it can."""
        return None


@dataclasses.dataclass(frozen=True)
class Ancestral(Step):
    """Ancestral sampling between any two levels, with DDIM's eta (Song, Meng & Ermon 2021, eq. 12).

    With w = -expm1(lam_t - lam_s), so that sigma_s sqrt(w) is the posterior's standard deviation,

        x_s = alpha_s x0 + sigma_s sqrt(1 - eta^2 w) eps + eta sigma_s sqrt(w) z.

    With eta = 1 it is a draw from `scoregen.process.posterior` at the estimated x0: DDPM's sampler (Ho et al. 2020,
    algorithm 2) on a variance-preserving chain, and the "VE ancestral" step (Song et al. 2021, appendix F) on
    NCSN's levels. eta = 0 is DDIM: Euler's method for the probability-flow ODE in sigma / alpha, of order 1.

    Attributes:
        eta: the share of the posterior's noise that is fresh; the rest is taken from eps.
        variance: the variance of the fresh noise: "small" for the posterior's, "large" for the forward step's,
            sigma_t^2 w (beta_t between neighbours of DDPM; Ho et al. 2020, section 3.2), or "learned" for the
            network's, which lies between the two (Nichol & Dhariwal 2021, eq. 15). The mean is the same.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: if eta is negative or over 1, or for another `variance`; when it is called, if variance="learned"
            and the denoiser has no learned variance.
    """

    eta: float = 1.0
    variance: str = "small"

    def __post_init__(self):
        check_eta(self.eta)
        if self.variance not in ("small", "large", "learned"):
            raise ValueError(f"variance={self.variance!r}: 'small', 'large' or 'learned' is needed")

    @property
    def needs_variance(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.variance == "learned"

    def step(self, denoiser: Denoiser, key: Array, x: Array, t: Array, s: Array, state: Any) -> tuple[Array, Any]:
        found = denoiser(x, t)
        return self.move(denoiser.process, found, key, x, t, s), state

    def move(self, process: Process, found: Prediction, key: Array, x: Array, t: Array, s: Array) -> Array:
        """The step from x with the prediction `found`."""
        lam = process.logsnr(t) - process.logsnr(s)
        w = -jnp.expm1(lam)
        # 1 - eta^2 w, in a form that is exactly exp(lam) at eta = 1.
        kept = (1 - self.eta**2) + self.eta**2 * jnp.exp(lam)
        small, large = broadcast(process.sigma(s), x), broadcast(process.sigma(t), x)
        if self.variance == "learned":
            if found.between is None:
                raise ValueError(
                    "variance='learned': this denoiser has no learned variance: take variance='small' or 'large', or "
                    "a model with learned_variance=True under its own process"
                )
            sigma = small * (large / small) ** found.between
        else:
            sigma = large if self.variance == "large" else small
        return (
            broadcast(process.alpha(s), x) * found.x0
            + broadcast(process.sigma(s) * jnp.sqrt(kept), x) * found.eps
            + self.eta * sigma * broadcast(jnp.sqrt(w), x) * normal(key, x.shape, x.dtype)
        )


@dataclasses.dataclass(frozen=True)
class Consistent(Step):
    """Consistent annealed sampling (Jolicoeur-Martineau et al. 2021), between any two levels.

    It is annealed Langevin dynamics with one step per level. The fresh noise brings x exactly to the noise of the next
    level. In the coordinates x / alpha, where the noise is q = sigma / alpha,

        x_s / alpha_s = x_t / alpha_t - size q_t eps + q_s b z,     b^2 = 1 - ((1 - size) q_t / q_s)^2

    For alpha = 1 this is x + size sigma_t^2 score + sigma_s b z. With size = 1 - q_s / q_t it is DDIM, and with
    size = 1 - (q_s / q_t)^2 it is a draw from the posterior. A larger size replaces more of the noise.

    Attributes:
        size: eta of the paper, step_size / sigma_min^2 of annealed Langevin dynamics. A size below DDIM's is raised to
            DDIM's, since it would leave more noise than the next level has.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless 0 < size <= 1.
    """

    size: float = 0.1

    def __post_init__(self):
        check_numbers(lambda size: 0 < size <= 1, "more than 0, and 1 or less,", size=self.size)

    def step(self, denoiser: Denoiser, key: Array, x: Array, t: Array, s: Array, state: Any) -> tuple[Array, Any]:
        process, found = denoiser.process, denoiser(x, t)
        # The share of the noise of level s that is kept from x: sqrt(1 - b^2), at most 1.
        more = jnp.exp(0.5 * (process.logsnr(s) - process.logsnr(t)))
        kept = jnp.minimum((1 - self.size) * more, 1) if self.size < 1 else jnp.zeros_like(more)
        fresh = jnp.sqrt(1 - kept**2)
        noise = broadcast(kept, x) * found.eps + broadcast(fresh, x) * normal(key, x.shape, x.dtype)
        return broadcast(process.alpha(s), x) * found.x0 + broadcast(process.sigma(s), x) * noise, state


@dataclasses.dataclass(frozen=True)
class ReverseDiffusion(Step):
    """The forward step from s to t, reversed (Song et al. 2021, eqs. 46-47).

    The forward step is x_t = a x_s + G z with a = alpha_t / alpha_s and G^2 = sigma_t^2 - a^2 sigma_s^2, so

        x_s = (2 - a) x_t + G^2 score + G z        and for the ODE        x_s = (2 - a) x_t + G^2 score / 2

    For DDPM a = sqrt(1 - beta) and G^2 = beta; for NCSN a = 1 and G^2 = sigma_t^2 - sigma_s^2. The weak order is 1.

    Attributes:
        noise: whether to add z; without it the step follows the probability-flow ODE.
    """

    noise: bool = True

    def step(self, denoiser: Denoiser, key: Array, x: Array, t: Array, s: Array, state: Any) -> tuple[Array, Any]:
        process = denoiser.process
        a = process.alpha(t) / process.alpha(s)
        variance = process.sigma(t) ** 2 * -jnp.expm1(process.logsnr(t) - process.logsnr(s))
        drift = broadcast((1 if self.noise else 0.5) * variance, x) * denoiser(x, t).score
        x = broadcast(2 - a, x) * x + drift
        if self.noise:
            x = x + broadcast(jnp.sqrt(variance), x) * normal(key, x.shape, x.dtype)
        return x, state


@dataclasses.dataclass(frozen=True)
class EulerMaruyama(Step):
    """Euler-Maruyama for the reverse SDE, from t to s = t - h (Song et al. 2021, eq. 6 and section 4.1).

        x_s = x - (f x - g^2 score) h + g sqrt(h) z

    with f and g from `drift_diffusion`. The weak order is 1. It needs continuous time and alpha > 0.

    Raises:
        TypeError: when it is called, for the integer times of a chain.
    """

    continuous_only = True

    def step(self, denoiser: Denoiser, key: Array, x: Array, t: Array, s: Array, state: Any) -> tuple[Array, Any]:
        f, g = drift_diffusion(denoiser.process, t)
        h = t - s
        x = broadcast(1 - f * h, x) * x + broadcast(g**2 * h, x) * denoiser(x, t).score
        return x + broadcast(g * jnp.sqrt(h), x) * normal(key, x.shape, x.dtype), state

    def refuse(self, process: Process) -> Refusal | None:
        if vanishes(process):
            return Refusal(
                "at its noisiest time this process has alpha = 0, where the drift of its SDE is infinite",
                ("step=ancestral", "process.t_max=0.999"),
            )
        return None


@dataclasses.dataclass(frozen=True)
class Euler(Step):
    """Euler's method for the probability-flow ODE in the process's time, of order 1 (Song et al. 2021, eq. 13).

        x_s = x + (s - t) (alpha' x0 + sigma' eps)

    The factor of s - t is f x - g^2 score / 2, written so that it is finite also where alpha = 0. For `Flow`
    it is the sampler of flow matching, for `EDM` it is DDIM.

    Raises:
        TypeError: when it is called, for the integer times of a chain.
    """

    continuous_only = True

    def step(self, denoiser: Denoiser, key: Array, x: Array, t: Array, s: Array, state: Any) -> tuple[Array, Any]:
        return x + broadcast(s - t, x) * denoiser.velocity(x, t), state


@dataclasses.dataclass(frozen=True)
class Heun(Step):
    """Heun's method for the probability-flow ODE in the process's time: order 2, two evaluations a step.

    x' = x + (s - t) v(x, t),      x_s = x + (s - t) (v(x, t) + v(x', s)) / 2

    Raises:
        TypeError: when it is called, for the integer times of a chain.
    """

    continuous_only = True

    def step(self, denoiser: Denoiser, key: Array, x: Array, t: Array, s: Array, state: Any) -> tuple[Array, Any]:
        h, first = broadcast(s - t, x), denoiser.velocity(x, t)
        return x + 0.5 * h * (first + denoiser.velocity(x + h * first, s)), state


@dataclasses.dataclass(frozen=True)
class EDMHeun(Step):
    """The stochastic sampler of Karras et al. 2022 (algorithm 2), for any process.

    In the coordinates y = x / alpha the probability-flow ODE is dy / dq = eps with q = sigma / alpha. A step first
    adds noise, from q_t to q^ = (1 + gamma) q_t, then takes Heun's step of order 2 from there to q_s:

        y^ = y + noise sqrt((q^)^2 - q_t^2) z,      y' = y^ + (q_s - q^) eps(y^),
        y_s = y^ + (q_s - q^) (eps(y^) + eps(y')) / 2

    with gamma = min(churn / n, sqrt(2) - 1) on a grid of n levels if low <= q_t <= high, and 0 otherwise. It takes two
    evaluations per step and one at the last level: 35 for n = 18. Where alpha = 0 it takes DDIM's step. At the last
    level the sampler returns the denoised mean, which is the paper's step to q = 0 without churn. (The paper has churn
    there too if low is below that level.)

    Attributes:
        churn: S_churn of the paper; 0 is the deterministic sampler.
        low, high: S_min and S_max, in units of sigma / alpha.
        noise: S_noise.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless churn and noise are 0 or more, and 0 <= low <= high.
    """

    churn: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    def __post_init__(self):
        check_not_negative(churn=self.churn, noise=self.noise)
        check_numbers(lambda q: q >= 0, "0 or a positive number", low=self.low, high=self.high)
        if not self.low <= self.high:
            raise ValueError(f"low={self.low}, high={self.high}: low <= high is needed")

    def init(self, denoiser: Denoiser, x: Array, grid: Array) -> Array:
        """The state is gamma for a grid of this length: the relative increase of the noise by churn."""
        return jnp.asarray(min(self.churn / grid.shape[0], math.sqrt(2) - 1), denoiser.process.logsnr(grid[0]).dtype)

    def step(self, denoiser: Denoiser, key: Array, x: Array, t: Array, s: Array, state: Array) -> tuple[Array, Array]:
        process = denoiser.process
        if self.churn > 0:
            x, t = self._churned(process, key, x, t, state)
        first = denoiser(x, t)
        q, target = (jnp.exp(-0.5 * process.logsnr(u)) for u in (t, s))
        # Euler's step in q is DDIM's, which needs no division by alpha.
        end = broadcast(process.alpha(s), x) * first.x0 + broadcast(process.sigma(s), x) * first.eps
        turn = denoiser(end, s).eps - first.eps
        h = jnp.where(jnp.isfinite(q), 0.5 * (target - q), 0)
        return end + broadcast(process.alpha(s) * h, x) * turn, state

    def _churned(self, process: Process, key: Array, x: Array, t: Array, gamma: Array) -> tuple[Array, Array]:
        q = jnp.exp(-0.5 * process.logsnr(t))
        more = (q >= self.low) & (q <= self.high) & jnp.isfinite(q)
        noisier = process.time(process.logsnr(t) - 2 * jnp.log1p(gamma))
        there = jnp.where(more, noisier, t.astype(noisier.dtype))
        # Computed from `there`, which is never noisier than the process's noisiest level.
        added = jnp.where(more, jnp.maximum(jnp.exp(-process.logsnr(there)) - q**2, 0), 0)
        alpha = process.alpha(there)
        ratio = jnp.where(more, alpha / jnp.where(more, process.alpha(t), 1), 1)
        z = self.noise * normal(key, x.shape, x.dtype)
        return broadcast(ratio, x) * x + broadcast(alpha * jnp.sqrt(added), x) * z, there


@dataclasses.dataclass(frozen=True)
class Hold(Step):
    """No step at all: x_s = x_t. With a Langevin corrector this is annealed Langevin dynamics."""

    needs_corrector = True

    def step(self, denoiser: Denoiser, key: Array, x: Array, t: Array, s: Array, state: Any) -> tuple[Array, Any]:
        return x, state


def check_eta(eta: float) -> None:
    """Raises TypeError for anything but a number, and ValueError unless eta lies in [0, 1]."""
    check_numbers(lambda eta: 0 <= eta <= 1, "0 (DDIM) to 1 (DDPM)", eta=eta)
