"""Random moves of examples that the network is not told of: mirrored, cropped and shifted, on the device.

Each takes one typed key per example, `[B]`. How example i is moved depends on keys[i] alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from scoregen.errors import UsageError, check_count

Array = jax.Array | np.ndarray


def random_flip(keys: jax.Array, x: Array) -> jax.Array:
    """Mirror each image left to right with probability 1/2: `[B, H, W, C]` of any dtype.

    Raises UsageError if x is not a batch of images.

    >>> random_flip(jax.random.split(jax.random.key(0), 2), np.zeros((2, 4, 4, 3), np.uint8)).shape
    (2, 4, 4, 3)
    """
    if x.ndim != 4:
        raise UsageError(f"only images [B, H, W, C] can be flipped, not an array of shape {x.shape}: turn the flip off")
    # float32, so that JAX_ENABLE_X64 does not change the draw.
    flip = jax.vmap(lambda key: jax.random.bernoulli(key, jnp.float32(0.5)))(keys)
    return jnp.where(flip[:, None, None, None], x[:, :, ::-1], x)


def random_crop(keys: jax.Array, x: Array, pixels: int) -> jax.Array:
    """Shift each image by whole pixels, and fill what is empty then by reflection: `[B, H, W, C]` of any dtype.

    The image is reflected at its edges, by this number of pixels at each side, and cut to its own size at a place that
    is uniform among all: both shifts are uniform on -pixels .. pixels.

    Raises UsageError if x is not a batch of images, or if it has a side that is not longer than `pixels`, and TypeError
    or ValueError unless `pixels` is an integer of at least 0.

    >>> x = np.arange(4.0).reshape(1, 1, 4, 1).repeat(3, axis=1)
    >>> random_crop(jax.random.split(jax.random.key(0), 1), x, 2)[0, 0, :, 0].tolist()
    [1.0, 0.0, 1.0, 2.0]
    """
    pixels = check_count("pixels", pixels, 0)
    if x.ndim != 4:
        raise UsageError(f"only images [B, H, W, C] can be cropped, not an array of shape {x.shape}: turn the crop off")
    if pixels >= min(x.shape[1:3]):
        raise UsageError(
            f"images of {x.shape[1]}x{x.shape[2]} cannot be reflected by {pixels} pixels: crop by fewer than the "
            "shorter side"
        )

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        wide = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")
        top, left = jax.random.randint(key, (2,), 0, 2 * pixels + 1, jnp.int32)
        return jax.lax.dynamic_slice(wide, (top, left, jnp.int32(0)), image.shape)

    return jax.vmap(one)(keys, jnp.asarray(x))


def random_shift(keys: jax.Array, x: Array) -> jax.Array:
    """Shift each series along its first axis, around its end: `[B, L, C]` of any dtype, by 0 .. L - 1, uniformly.

    It is meant for series that could begin anywhere, such as periodic ones.

    Raises UsageError if x is not a batch of series.

    >>> x = np.arange(4.0).reshape(1, 4, 1)
    >>> random_shift(jax.random.split(jax.random.key(0), 1), x)[0, :, 0].tolist()
    [1.0, 2.0, 3.0, 0.0]
    """
    if x.ndim != 3:
        raise UsageError(f"only series [B, L, C] can be shifted, not an array of shape {x.shape}: turn the shift off")

    def one(key: jax.Array, series: jax.Array) -> jax.Array:
        return jnp.roll(series, jax.random.randint(key, (), 0, len(series), jnp.int32), axis=0)

    return jax.vmap(one)(keys, jnp.asarray(x))
