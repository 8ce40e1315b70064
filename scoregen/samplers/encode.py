"""Data as the noise that the probability-flow ODE turns them into, and back; and what lies between two examples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Predict
from scoregen.process import Process, rows
from scoregen.samplers.adaptive import Adaptive, transport


def encode(process: Process, predict: Predict, x0: Array, solver: Adaptive = Adaptive()) -> Array:
    """The latent code of x0, `[B, ...]`: x at the noisiest level of the ODE's path through it (Song et al. 2021, D.2).

    The path begins at the least noisy level at alpha x0, so there is no randomness, and `decode` comes back to x0 but
    for the solver's error. If the denoiser is exact, codes of data are draws of the prior, but for what noise the
    least noisy level has.

    Args:
        process: the process; of a chain it is the equation through its levels.
        predict: its denoiser.
        x0: the data.
        solver: with its tolerances.

    >>> from scoregen.oracle import gaussian
    >>> from scoregen.process import VP
    >>> wide = gaussian((0.0, 0.0), 2.0).predict(VP())
    >>> code = encode(VP(), wide, jnp.array([[2.0, -4.0]]), Adaptive(1e-6, 1e-6))
    >>> code.tolist()  # x0 / 2: the map between two Gaussians
    [[1.000..., -2.000...]]
    >>> bool(jnp.allclose(decode(VP(), wide, code, Adaptive(1e-6, 1e-6)), jnp.array([[2.0, -4.0]]), atol=1e-4))
    True
    """
    top, bottom = _ends(process, x0)
    return transport(process, predict, rows(process.alpha(bottom), x0) * x0, bottom, top, solver.rtol, solver.atol)


def decode(process: Process, predict: Predict, code: Array, solver: Adaptive = Adaptive()) -> Array:
    """The data of a latent code, `[B, ...]`: down the ODE to the least noisy level, and x / alpha there."""
    top, bottom = _ends(process, code)
    x = transport(process, predict, code, top, bottom, solver.rtol, solver.atol)
    return x / rows(process.alpha(bottom), x)


def slerp(a: Array, b: Array, fraction: Array) -> Array:
    """Points on the great arc from a to b, both `[B, ...]`, at fractions `[N]` of it: `[N, B, ...]` (Shoemake 1985).

        sin((1 - f) angle) / sin(angle) a + sin(f angle) / sin(angle) b,     cos(angle) = a.b / (|a| |b|)

    Draws of a Gaussian prior in many dimensions lie on a sphere, nearly, and so do the points between them; on the
    straight line they would not. Where a and b point the same way it is that line; so it is where they point opposite
    ways, since then no arc is the shortest.

    >>> slerp(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), jnp.array([0.0, 0.5]))[:, 0].tolist()
    [[1.0, 0.0], [0.7071..., 0.7071...]]
    """
    axes = tuple(range(1, a.ndim))
    norms = jnp.sqrt(jnp.sum(a**2, axes) * jnp.sum(b**2, axes))
    angle = jnp.arccos(jnp.clip(jnp.sum(a * b, axes) / norms, -1, 1))
    sine = jnp.sin(angle)
    apart = sine > 1e-4  # else the quotients are those of numbers that are nearly 0

    def share(f: Array) -> Array:  # [N, B]
        arc = jnp.sin(f[:, None] * angle[None]) / jnp.where(apart, sine, 1)[None]
        return jnp.where(apart[None], arc, f[:, None])

    first, second = (share(f).reshape(*f.shape, -1, *[1] * len(axes)) for f in (1 - fraction, fraction))
    return first * a[None] + second * b[None]


def interpolate(
    process: Process, predict: Predict, a: Array, b: Array, fraction: Array, solver: Adaptive = Adaptive()
) -> Array:
    """What lies between the examples a and b, both `[B, ...]`: `[N, B, ...]`, by `slerp` of their codes.

    For priors that are Gaussian about 0, as all but NCSN's uniform one are. At the fractions 0 and 1 it is a and b.
    """
    codes = slerp(encode(process, predict, a, solver), encode(process, predict, b, solver), fraction)
    return jax.lax.map(lambda code: decode(process, predict, code, solver), codes)


def _ends(process: Process, x: Array) -> tuple[Array, Array]:
    """The noisiest and the least noisy time, `[B]` each."""
    top, bottom = process.grid(2)
    return jnp.full(len(x), top), jnp.full(len(x), bottom)
