"""The probability-flow ODE by an adaptive solver, diffrax's, which is imported where it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import eval_jaxpr

from scoregen.denoiser import Predict
from scoregen.process import Process, rows


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
        rtol, atol: the local error that is allowed, atol + rtol |y|, of y = x / sqrt(alpha^2 + sigma^2); 1e-5 is the
            paper's, there of x.

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
    """Along the probability-flow ODE from x `[B, ...]` at the times t `[B]` to the times s `[B]`, up or down.

    In the coordinates of `rotation`; the tolerances are on y.
    """
    (begin, size), (end, other) = polar(process, t, x.dtype), polar(process, s, x.dtype)
    field = together(rotation(process, predict), x)
    y = jax.vmap(lambda y, begin, end: solve(field, y, begin, end, rtol, atol)[0])(x / rows(size, x), begin, end)
    return rows(other, x) * y


def polar(process: Process, t: Array, dtype: Any) -> tuple[Array, Array]:
    """(alpha, sigma) in polar coordinates: the angle phi = arctan(sigma / alpha) and the size, as t is shaped."""
    alpha, sigma = process.alpha(t).astype(dtype), process.sigma(t).astype(dtype)
    return jnp.arctan2(sigma, alpha), jnp.hypot(alpha, sigma)


def rotation(process: Process, predict: Predict) -> Callable[[Array, Array], Array]:
    """The probability-flow ODE where it is the same for every process (Salimans & Ho 2022, appendix D).

    With the angle phi = arctan(sigma / alpha) for time and y = x / sqrt(alpha^2 + sigma^2),

        dy/dphi = cos(phi) eps - sin(phi) x0

    which is finite where alpha = 0, and has no jumps: in t, that of a chain has one at every level, which an adaptive
    solver passes over with far more error than it thinks.

    Returns:
        (phi `[B]`, y `[B, ...]`) -> dy/dphi `[B, ...]`.
    """

    def field(phi: Array, y: Array) -> Array:
        cos, sin = jnp.maximum(jnp.cos(phi), 0), jnp.sin(phi)  # a right angle may round to more than one
        t = process.time(2 * (jnp.log(cos) - jnp.log(sin))).astype(y.dtype)
        _, size = polar(process, t, y.dtype)
        found = predict(rows(size, y) * y, t)
        return rows(cos, y) * found.eps - rows(sin, y) * found.x0

    return field


def together(field: Callable[[Array, Array], Array], batch: Array) -> Callable[[Array, Array], Array]:
    """Of a field of all examples, (`[B]`, `[B, ...]`) -> `[B, ...]`, that of one, to be used inside a `vmap` over them.

    It is asked for the whole batch at once, since a denoiser may know something of each of its examples: a label, or
    what has been measured of it.
    """
    whole = jax.make_jaxpr(field)(jnp.zeros(batch.shape[:1], batch.dtype), batch)

    # What the closure holds goes in by the front door: a rule for `vmap` may not close over what is being traced.
    @jax.custom_batching.custom_vmap
    def single(consts: list[Array], time: Array, x: Array) -> Array:
        return jnp.zeros_like(x)  # of one example alone, only the shape is asked

    @single.def_vmap
    def _(size: int, batched: Any, consts: list[Array], time: Array, x: Array) -> tuple[Array, bool]:
        return eval_jaxpr(whole.jaxpr, consts, jnp.broadcast_to(time, (size,)), x)[0], True

    return lambda time, x: single(whole.consts, time, x)
