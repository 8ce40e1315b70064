"""The probability-flow ODE by an adaptive solver, diffrax's, which is imported where it is used."""

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
    """Solve d state / dt = field(t, state) for one example: (the state at `end`, the number of steps).

    `state` is the one at `begin`. The method is Tsitouras's 5(4) Runge-Kutta, with steps that keep the local error
    below atol + rtol |state|. If no step is short enough, the state is nan.
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

    Each example has its own steps, so none depends on its batch. Between two levels of the grid the solver takes as
    many steps as it needs, so the grid only says where to stop: two levels are enough (`Sampler(Adaptive(), n=2)`),
    and more give a trajectory.

    Attributes:
        rtol, atol: the local error that is allowed, atol + rtol |y|, where y = x / sqrt(alpha^2 + sigma^2). The
            paper takes 1e-5, for x.

    Raises:
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
    """Along the probability-flow ODE from x `[B, ...]` at the times t `[B]` to the times s `[B]`, up or down.

    The solver works in the coordinates of `rotation`, and the tolerances are for its y.
    """
    (begin, size), (end, other) = polar(denoiser.process, t, x.dtype), polar(denoiser.process, s, x.dtype)
    field = together(rotation(denoiser), x)
    y = jax.vmap(lambda y, begin, end: solve(field, y, begin, end, rtol, atol)[0])(x / broadcast(size, x), begin, end)
    return broadcast(other, x) * y


def polar(process: Process, t: Array, dtype: Any) -> tuple[Array, Array]:
    """(alpha, sigma) in polar coordinates: the angle phi = arctan(sigma / alpha) and the size, as t is shaped."""
    alpha, sigma = process.alpha(t).astype(dtype), process.sigma(t).astype(dtype)
    return jnp.arctan2(sigma, alpha), jnp.hypot(alpha, sigma)


def rotation(denoiser: Denoiser) -> Callable[[Array, Array], Array]:
    """The probability-flow ODE in coordinates where it is the same for every process (Salimans & Ho 2022, appendix D).

    With the angle phi = arctan(sigma / alpha) for time and y = x / sqrt(alpha^2 + sigma^2),

        dy/dphi = cos(phi) eps - sin(phi) x0

    The right-hand side is finite where alpha = 0 and continuous. In t, the equation of a chain jumps at every level,
    and an adaptive solver that steps across a jump makes far more error than it estimates.

    Returns:
        (phi `[B]`, y `[B, ...]`) -> dy/dphi `[B, ...]`.
    """

    def field(phi: Array, y: Array) -> Array:
        cos, sin = jnp.maximum(jnp.cos(phi), 0), jnp.sin(phi)  # a right angle may round to more than one
        t = denoiser.process.time(2 * (jnp.log(cos) - jnp.log(sin))).astype(y.dtype)
        _, size = polar(denoiser.process, t, y.dtype)
        found = denoiser(broadcast(size, y) * y, t)
        return broadcast(cos, y) * found.eps - broadcast(sin, y) * found.x0

    return field


def together(field: Callable[[Array, Array], Array], batch: Array) -> Callable[[Array, Array], Array]:
    """The field of one example, for use inside a `vmap` over the batch, from a field of all examples.

    The field (`[B]`, `[B, ...]`) -> `[B, ...]` is evaluated for the whole batch at once, since a denoiser may hold
    something about each of its examples: a label, or a measurement.
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
