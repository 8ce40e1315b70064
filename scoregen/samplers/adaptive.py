"""The probability-flow ODE by an adaptive solver, diffrax's, which is imported where it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import eval_jaxpr

from scoregen.denoiser import Predict, velocity
from scoregen.process import Process


def solve(field: Callable[[Array, Any], Any], state: Any, begin: Array, end: Array, rtol: float, atol: float) -> Any:
    """The state at time `end` of d state / dt = field(t, state), one example's, from that at `begin`, and the steps.

    By Tsitouras's 5(4) Runge-Kutta method with a step that keeps the local error below atol + rtol |state|. Where no
    step is short enough, the state is nan.
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
class Adaptive:
    """The probability-flow ODE from t to s by an adaptive Runge-Kutta method of order 5 (Song et al. 2021, eq. 13).

    Each example has steps of its own, so none depends on its batch. Between the levels of the grid the solver takes
    as many as it needs, so the grid only says where to stop: two levels do, and more are a trajectory.

    Attributes:
        rtol, atol: the local error that is allowed, atol + rtol |x|; 1e-5 is the paper's.

    Raises:
        ValueError: unless both are positive.
    """

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self):
        for name in ("rtol", "atol"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: a positive number is needed")

    def __call__(self, process: Process, predict: Predict, key: Array, x: Array, t: Array, s: Array) -> Array:
        return transport(process, predict, x, t, s, self.rtol, self.atol)


def transport(process: Process, predict: Predict, x: Array, t: Array, s: Array, rtol: float, atol: float) -> Array:
    """Along the probability-flow ODE from x `[B, ...]` at the times t `[B]` to the times s `[B]`, up or down."""
    field, (t, s) = together(process, predict, x), (time.astype(x.dtype) for time in (t, s))
    return jax.vmap(lambda x, t, s: solve(field, x, t, s, rtol, atol)[0])(x, t, s)


def together(process: Process, predict: Predict, batch: Array) -> Callable[[Array, Array], Array]:
    """The velocity of one example, `(t, x) -> dx/dt`, to be used inside a `vmap` over all of a batch `[B, ...]`.

    `predict` is asked for the whole batch at once, since it may know something of each of its examples: a label, or
    what has been measured of it.
    """
    times = jnp.zeros(batch.shape[:1], batch.dtype)
    whole = jax.make_jaxpr(lambda t, x: velocity(process, predict, x, t))(times, batch)

    # What the closure holds goes in by the front door: a rule for `vmap` may not close over what is being traced.
    @jax.custom_batching.custom_vmap
    def field(consts: list[Array], t: Array, x: Array) -> Array:
        return jnp.zeros_like(x)  # of one example alone, only the shape is asked

    @field.def_vmap
    def _(size: int, batched: Any, consts: list[Array], t: Array, x: Array) -> tuple[Array, bool]:
        t = jnp.broadcast_to(t, (size,))
        return eval_jaxpr(whole.jaxpr, consts, t, x)[0], True

    return lambda t, x: field(whole.consts, t, x)
