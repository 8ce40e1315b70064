"""The probability-flow ODE by diffrax's adaptive solver; diffrax is imported only when it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import eval_jaxpr

from scoregen.denoiser import Denoiser
from scoregen.errors import check_positive
from scoregen.process import Process
from scoregen.random import broadcast
from scoregen.samplers.steps import Step


def solve(field: Callable[[Array, Any], Any], state: Any, begin: Array, end: Array, rtol: float, atol: float) -> Any:
    """Solve d state / dt = field(t, state) for one example; gives (state at `end`, number of steps).

    `state` is the state at `begin`. The method is Tsitouras's 5(4) Runge-Kutta, with steps that keep the local error
    below atol + rtol |state|. If the solver fails, for example after 100,000 steps, the state is NaN.
    """
    import diffrax  # takes a second to import

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(jnp.asarray(t), y)),
        diffrax.Tsit5(),
        begin,
        end,
        None,
        state,
        stepsize_controller=diffrax.PIDController(rtol, atol),
        saveat=diffrax.SaveAt(t1=True),
        max_steps=100_000,
        adjoint=diffrax.ForwardMode(),
        throw=False,
    )
    reached = solution.result == diffrax.RESULTS.successful
    state = jax.tree.map(lambda leaf: jnp.where(reached, leaf[0], jnp.nan), solution.ys)
    return state, solution.stats["num_steps"]


@dataclasses.dataclass(frozen=True)
class Adaptive(Step):
    """The probability-flow ODE from t to s by an adaptive Runge-Kutta method of order 5 (Song et al. 2021, eq. 13).

    Each example has its own steps, so no sample depends on its batch. Between two levels of the grid the solver takes
    as many steps as it needs, so the grid only says where to stop: two levels are enough (`Sampler(Adaptive(), n=2)`),
    and more give a trajectory.

    Attributes:
        rtol, atol: the allowed local error is atol + rtol |y|, where y = x / sqrt(alpha^2 + sigma^2). The
            paper takes 1e-5, for x.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless both are positive.
    """

    rtol: float = 1e-5
    atol: float = 1e-5

    adaptive = True

    def __post_init__(self):
        check_positive(rtol=self.rtol, atol=self.atol)

    def step(self, denoiser: Denoiser, key: Array, x: Array, t: Array, s: Array, state: Any) -> tuple[Array, Any]:
        return transport(denoiser, x, t, s, self.rtol, self.atol), state


def transport(denoiser: Denoiser, x: Array, t: Array, s: Array, rtol: float, atol: float) -> Array:
    """Solve the probability-flow ODE from x `[B, ...]` at the times t `[B]` to the times s `[B]`, up or down.

    The solver works in the coordinates of `rotation`, and the tolerances apply to y.
    """
    (begin, size), (end, other) = polar(denoiser.process, t, x.dtype), polar(denoiser.process, s, x.dtype)
    field = together(rotation(denoiser), x)
    y = jax.vmap(lambda y, begin, end: solve(field, y, begin, end, rtol, atol)[0])(x / broadcast(size, x), begin, end)
    return broadcast(other, x) * y


def polar(process: Process, t: Array, dtype: Any) -> tuple[Array, Array]:
    """(alpha, sigma) in polar coordinates: the angle phi = arctan(sigma / alpha) and the size, in the shape of t."""
    alpha, sigma = process.alpha(t).astype(dtype), process.sigma(t).astype(dtype)
    return jnp.arctan2(sigma, alpha), jnp.hypot(alpha, sigma)


def rotation(denoiser: Denoiser) -> Callable[[Array, Array], Array]:
    """The probability-flow ODE in coordinates where it is the same for every process (Salimans & Ho 2022, appendix D).

    With the angle phi = arctan(sigma / alpha) as time and y = x / sqrt(alpha^2 + sigma^2),

        dy/dphi = cos(phi) eps - sin(phi) x0

    The right-hand side is continuous, and finite where alpha = 0. In t, the equation of a chain jumps at every level,
    and an adaptive solver that steps across a jump makes a far larger error than it estimates.

    Returns:
        (phi `[B]`, y `[B, ...]`) -> dy/dphi `[B, ...]`.
    """

    def field(phi: Array, y: Array) -> Array:
        cos, sin = jnp.maximum(jnp.cos(phi), 0), jnp.sin(phi)  # pi / 2 may be rounded up
        t = denoiser.process.time(2 * (jnp.log(cos) - jnp.log(sin))).astype(y.dtype)
        _, size = polar(denoiser.process, t, y.dtype)
        found = denoiser(broadcast(size, y) * y, t)
        return broadcast(cos, y) * found.eps - broadcast(sin, y) * found.x0

    return field


def together(field: Callable[[Array, Array], Array], batch: Array) -> Callable[[Array, Array], Array]:
    """Turns a field of the whole batch into a field of one example, for use inside a `vmap` over the batch.

    The batch's field (`[B]`, `[B, ...]`) -> `[B, ...]` is evaluated for the whole batch at once, since a
    denoiser may hold one value per example, such as a label or a measurement.
    """
    whole = jax.make_jaxpr(field)(jnp.zeros(batch.shape[:1], batch.dtype), batch)

    # The constants of the closure are passed as arguments: a rule for `vmap` may not close over traced arrays.
    @jax.custom_batching.custom_vmap
    def single(consts: list[Array], time: Array, x: Array) -> Array:
        return jnp.zeros_like(x)  # outside of a `vmap` only the shape is needed

    @single.def_vmap
    def _(size: int, batched: Any, consts: list[Array], time: Array, x: Array) -> tuple[Array, bool]:
        return eval_jaxpr(whole.jaxpr, consts, jnp.broadcast_to(time, (size,)), x)[0], True

    return lambda time, x: single(whole.consts, time, x)
