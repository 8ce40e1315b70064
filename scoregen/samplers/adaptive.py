"""The probability-flow ODE by an adaptive solver, diffrax's, which is imported where it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

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
        def field(t: Array, x: Array) -> Array:
            return velocity(process, predict, x[None], t[None])[0]

        t, s = (time.astype(x.dtype) for time in (t, s))
        return jax.vmap(lambda x, t, s: solve(field, x, t, s, self.rtol, self.atol)[0])(x, t, s)
