"""Latent codes: the probability-flow ODE maps data to noise and back; and interpolation between two examples."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Denoiser, check_denoiser
from scoregen.process import Process, bottom, top
from scoregen.process.kernel import as_data
from scoregen.random import broadcast
from scoregen.samplers.compiled import call
from scoregen.samplers.ode import Adaptive, transport


def encode(denoiser: Denoiser, x0: Array, solver: Adaptive = Adaptive()) -> Array:
    """The latent code of x0, `[B, ...]`: x at the noisiest time of the ODE's path through it (Song et al. 2021, D.2).

    The path begins at alpha x0 at the least noisy time. No noise is added, so the code is deterministic, and `decode`
    returns x0 up to the solver's error. If the denoiser is exact, codes of data follow the prior, up to the noise of
    the least noisy time. Like `Sampler`, the function is compiled automatically.

    Args:
        denoiser: the denoiser; for a chain the ODE runs through its interpolated levels.
        x0: the data, floating-point numbers `[B, ...]`.
        solver: the solver with its tolerances.

    Raises:
        TypeError: if `denoiser` is not a `Denoiser`, or x0 not an array of floating-point numbers.

    >>> from scoregen.testing.oracle import gaussian
    >>> from scoregen.process import VP
    >>> wide = gaussian((0.0, 0.0), 2.0).denoiser(VP())
    >>> code = encode(wide, jnp.array([[2.0, -4.0]]), Adaptive(1e-6, 1e-6))
    >>> code.tolist()  # x0 / 2: the map between two Gaussians
    [[1.000..., -2.000...]]
    >>> bool(jnp.allclose(decode(wide, code, Adaptive(1e-6, 1e-6)), jnp.array([[2.0, -4.0]]), atol=1e-4))
    True
    """
    check_denoiser(denoiser)
    return call(_encode, (solver,), denoiser, as_data(x0, "x0", axes=2))


def decode(denoiser: Denoiser, code: Array, solver: Adaptive = Adaptive()) -> Array:
    """The data of a latent code, `[B, ...]`: x at the least noisy time of its path, divided by alpha.

    Raises:
        TypeError: if `denoiser` is not a `Denoiser`, or `code` not an array of floating-point numbers.
    """
    check_denoiser(denoiser)
    return call(_decode, (solver,), denoiser, as_data(code, "code", axes=2))


def _encode(solver: Adaptive, denoiser: Denoiser, x0: Array) -> Array:
    (high, low), alpha = _ends(denoiser.process, x0), denoiser.process.alpha
    return transport(denoiser, broadcast(alpha(low), x0) * x0, low, high, solver.rtol, solver.atol)


def _decode(solver: Adaptive, denoiser: Denoiser, code: Array) -> Array:
    high, low = _ends(denoiser.process, code)
    x = transport(denoiser, code, high, low, solver.rtol, solver.atol)
    return x / broadcast(denoiser.process.alpha(low), x)


def slerp(a: Array, b: Array, fraction: Array) -> Array:
    """Points on the great arc from a to b, both `[B, ...]`, at the fractions `[N]`: `[N, B, ...]` (Shoemake 1985).

        sin((1 - f) angle) / sin(angle) a + sin(f angle) / sin(angle) b,     cos(angle) = a.b / (|a| |b|)

    Draws from a Gaussian prior in many dimensions lie near a sphere. Points on the arc do too, but points on the
    straight line do not. The straight line is used only where a and b point in the same direction or in opposite
    directions (where no arc is the shortest).

    Raises:
        TypeError: if a or b is not an array of floating-point numbers.
        ValueError: unless a and b have the same shape, and the fractions are `[N]`.

    >>> slerp(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), jnp.array([0.0, 0.5]))[:, 0].tolist()
    [[1.0, 0.0], [0.7071..., 0.7071...]]
    """
    a, b, fraction = as_data(a, "a"), as_data(b, "b"), jnp.asarray(fraction)
    if a.shape != b.shape or fraction.ndim != 1:
        shapes = f"a {list(a.shape)}, b {list(b.shape)} and fractions {list(fraction.shape)}"
        raise ValueError(f"{shapes}: two batches of the same shape and fractions [N] are needed")
    axes, fraction = tuple(range(1, a.ndim)), fraction.astype(a.dtype)
    norms = jnp.sqrt(jnp.sum(a**2, axes) * jnp.sum(b**2, axes))
    angle = jnp.arccos(jnp.clip(jnp.sum(a * b, axes) / norms, -1, 1))
    sine = jnp.sin(angle)
    apart = sine > 1e-4  # else both numbers of a quotient are nearly 0

    def share(f: Array) -> Array:  # [N, B]
        arc = jnp.sin(f[:, None] * angle[None]) / jnp.where(apart, sine, 1)[None]
        return jnp.where(apart[None], arc, f[:, None])

    first, second = (share(f).reshape(*f.shape, -1, *[1] * len(axes)) for f in (1 - fraction, fraction))
    return first * a[None] + second * b[None]


def interpolate(denoiser: Denoiser, a: Array, b: Array, fraction: Array, solver: Adaptive = Adaptive()) -> Array:
    """Data between the examples a and b, both `[B, ...]`, at the fractions `[N]`: `[N, B, ...]`, by `slerp` of codes.

    It needs a Gaussian prior around 0, which all processes have except NCSN with its uniform start. The fractions 0 and
    1 give a and b.

    Raises:
        TypeError: if `denoiser` is not a `Denoiser`, or a or b not an array of floating-point numbers.
        ValueError: unless a and b have the same shape, and the fractions are `[N]`.
    """
    codes = slerp(encode(denoiser, a, solver), encode(denoiser, b, solver), fraction)
    return jnp.stack([decode(denoiser, code, solver) for code in codes])


def _ends(process: Process, x: Array) -> tuple[Array, Array]:
    """The noisiest and the least noisy time, `[B]` each."""
    return jnp.full(len(x), top(process)), jnp.full(len(x), bottom(process))
