"""Augmentation that does not leak: the network is given numbers that say what was done to each example."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.errors import UsageError

# The low-pass filter of the wavelet "sym6" (Daubechies 1992, section 8.1.1): orthogonal to its shifts by two.
_SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466),
    *(0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578),
    *(0.0017677118642428036, -0.007800708325034148),
)
_EDGE = len(_SYM6) // 4  # the pixels that are cut off at each side of a resampled image
NUMBERS = 9  # the count of numbers that say how an example was augmented


def augment(keys: Array, x: Array, probability: Array | float) -> tuple[Array, Array]:
    """Images `[B, H, W, C]` turned and stretched at random, and the numbers `[B, 9]` that say how.

    The pipeline of Karras et al. 2022 (appendix F.2 and table 6), after Karras et al. 2020 (arXiv:2006.06676). Each of
    these changes is made independently with the `probability`. The mirror is an exception: it is applied to half of all
    images, unless the `probability` is 0.

        mirror left to right; upside down, in half of the cases                        1 for each
        scale by 2^(0.2 a), a ~ N(0, 1)                                                a
        turn by b ~ U[-pi, pi]                                                         cos b - 1, sin b
        stretch by 2^(0.2 c) along an axis and shrink by as much across it, c ~ N(0, 1),
            the axis turned by d ~ U[-pi, pi], in half of the cases by 0               c cos d, c sin d
        shift by (e, f) / 8 of the image's size, e, f ~ N(0, 1)                        e, f

    (c, d) and (-c, d + pi) give the same numbers, although one stretches where the other shrinks; the paper's code has
    the same property. If all numbers are 0, nothing was done, and x is unchanged to the bit. Flips only move pixels.
    All other changes are made by one resampling: the image is reflected at its edges, doubled by the wavelet filter
    sym6, read between its pixels bilinearly, and halved by the same filter. The paper's code reflects only as many
    pixels as its batch needs, and at most one less than a side. Here it is always one pixel less than the longer side,
    so that an example does not depend on its batch, and a long image can be turned. `keys` holds one typed key per
    example, and example i depends only on keys[i].

    Raises UsageError if x is not a batch of images.

    >>> image = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> x, numbers = augment(jax.random.split(jax.random.key(0), 1), image, 1e-6)
    >>> x[0, :, :, 0].tolist(), numbers.astype(int).tolist()
    ([[1.0, 0.0], [3.0, 2.0]], [[1, 0, 0, 0, 0, 0, 0, 0, 0]])
    """
    if x.ndim != 4:
        raise UsageError(
            f"only images [B, H, W, C] can be augmented, not an array of shape {x.shape}: turn the augmentation off"
        )
    drawn = jax.vmap(functools.partial(_draw, probability=probability))(keys)
    return jax.vmap(_apply)(x, drawn), jax.vmap(_numbers)(drawn)


def _draw(key: Array, probability: Array | float) -> dict[str, Array]:
    """The random changes of one example; 0 for each that is not made."""
    keys = iter(jax.random.split(key, 13))
    # float32 throughout, so that JAX_ENABLE_X64 changes neither a type nor a draw.
    probability, half = jnp.asarray(probability, jnp.float32), jnp.float32(0.5)

    def perhaps(value: Array) -> Array:
        return jnp.where(jax.random.bernoulli(next(keys), probability), value, jnp.zeros_like(value))

    def normal(shape: tuple[int, ...] = ()) -> Array:
        return jax.random.normal(next(keys), shape, jnp.float32)

    def angle() -> Array:
        return jax.random.uniform(next(keys), (), jnp.float32, -math.pi, math.pi)

    def flip() -> Array:
        return jax.random.bernoulli(next(keys), half).astype(jnp.float32)

    drawn = {
        "mirror": jnp.where(probability > 0, flip(), 0.0),
        "upside_down": perhaps(flip()),
        "scale": perhaps(normal()),
    }
    drawn |= {"turn": perhaps(angle()), "stretch": perhaps(normal())}
    drawn["along"] = jnp.where(jax.random.bernoulli(next(keys), half), angle(), 0.0)
    return drawn | {"shift": perhaps(normal((2,)))}


def _numbers(drawn: dict[str, Array]) -> Array:
    turn, stretch, along = drawn["turn"], drawn["stretch"], drawn["along"]
    numbers = [drawn["mirror"], drawn["upside_down"], drawn["scale"], jnp.cos(turn) - 1, jnp.sin(turn)]
    return jnp.stack([*numbers, stretch * jnp.cos(along), stretch * jnp.sin(along), *drawn["shift"]])


def _apply(x: Array, drawn: dict[str, Array]) -> Array:
    x = jnp.where(drawn["mirror"] > 0, x[:, ::-1], x)
    x = jnp.where(drawn["upside_down"] > 0, x[::-1], x)
    moved = jnp.stack([drawn["scale"], drawn["turn"], drawn["stretch"], *drawn["shift"]]).any()
    return jnp.where(moved, warp(x, *_affine(drawn, x.shape[1], x.shape[0])), x)


def _affine(drawn: dict[str, Array], width: int, height: int) -> tuple[Array, Array]:
    """The matrix M `[2, 2]` and the shift `[2]`, in pixels: the pixel at u = (x, y) comes from M u + shift."""

    def turned(by: Array) -> Array:
        return jnp.stack([jnp.cos(by), -jnp.sin(by), jnp.sin(by), jnp.cos(by)]).reshape(2, 2)

    scale, stretch = jnp.exp2(-0.2 * drawn["scale"]), jnp.exp2(-0.2 * drawn["stretch"])
    along = drawn["along"]
    axes = turned(-along) @ jnp.diag(jnp.stack([stretch, 1 / stretch])) @ turned(along)
    matrix = scale * turned(drawn["turn"]) @ axes
    return matrix, -matrix @ (drawn["shift"] * 0.125 * jnp.array([width, height], jnp.float32))


def warp(x: Array, matrix: Array, shift: Array) -> Array:
    """The image `[H, W, C]` whose pixel at u = (x, y) from the centre comes from `x` at matrix u + shift."""
    height, width, _ = x.shape
    doubling = [_doubling(n, max(height, width) - 1).astype(x.dtype) for n in (height, width)]
    halving = [_halving(n).astype(x.dtype) for n in (height, width)]
    matrix, shift = (jnp.asarray(a, x.dtype) for a in (matrix, shift))
    fine = jnp.einsum("ih,jw,hwc->ijc", *doubling, x)
    # Positions of the pixels of the result with its edges, at twice the resolution: from the centre, in fine pixels.
    y, x_ = (jnp.arange(2 * (n + 2 * _EDGE), dtype=x.dtype) + 0.5 - (n + 2 * _EDGE) for n in (height, width))
    u = jnp.stack(jnp.broadcast_arrays(x_[None, :], y[:, None]))
    # A filter of even length moves the image by half a fine pixel when doubling, and back when halving.
    at = 2 * (jnp.einsum("ab,bij->aij", matrix, 0.5 * (u + 0.5)) + shift[:, None, None]) - 0.5
    row, column = (a + 0.5 * n - 0.5 for a, n in ((at[1], fine.shape[0]), (at[0], fine.shape[1])))
    read = functools.partial(jax.scipy.ndimage.map_coordinates, coordinates=[row, column], order=1)
    fine = jax.vmap(read, in_axes=2, out_axes=2)(fine)
    return jnp.einsum("hi,wj,ijc->hwc", *halving, fine)


@functools.cache
def _doubling(n: int, margin: int) -> np.ndarray:
    """The matrix that reflects n pixels at both ends, by a margin, and doubles them: `[2 (n + 2 margin), n]`."""
    reflected = np.pad(np.eye(n), ((margin, margin), (0, 0)), mode="reflect")
    zeros = np.zeros((2 * len(reflected) - 1, n))
    zeros[::2] = reflected
    half = len(_SYM6) // 2
    return np.stack([np.convolve(line, _SYM6)[half - 1 : -(half - 1)] for line in zeros.T], 1).astype(np.float32)


@functools.cache
def _halving(n: int) -> np.ndarray:
    """The matrix that halves 2 (n + 2 edge) pixels and leaves the edges out: `[n, 2 (n + 2 edge)]`."""
    pixels = np.eye(2 * (n + 2 * _EDGE))
    lines = np.stack([np.convolve(line, _SYM6[::-1])[6:-5:2] for line in pixels], 1)
    return lines[_EDGE:-_EDGE].astype(np.float32)
