"""The diffusion transformer of Peebles & Xie 2022, sized by its fields."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scoregen.cond import Cond
from scoregen.errors import check_fields
from scoregen.nets.layers import (
    FORMS,
    add_context,
    add_label,
    conditioning,
    dense,
    full_precision,
    outputs,
    self_attention,
    sinusoidal,
    sized,
)


def positions(*sizes: int, dim: int) -> np.ndarray:
    """Fixed features for the position of each token of a grid of k axes, `[N, dim]`, the last axis running fastest.

        f_i = 1e4^(-i / (dim / 2k)),   [sin(p_k f), cos(p_k f), ..., sin(p_1 f), cos(p_1 f)]

    for the token at (p_1, ..., p_k), in float64. For an image p is (row, column), as in Peebles & Xie 2022 (section
    3.2, "sine-cosine"); a series has the positions of Vaswani et al. 2017, all sines first.

    >>> positions(2, 2, dim=4).round(2).tolist()[1]  # the first row, the second column
    [0.84, 0.54, 0.0, 1.0]
    """
    count = dim // (2 * len(sizes))
    frequencies = 1e4 ** (-np.arange(count) / count)
    angles = [a.reshape(-1, 1) * frequencies for a in np.indices(sizes)]
    return np.concatenate([wave(angle) for angle in reversed(angles) for wave in (np.sin, np.cos)], axis=1)


def to_tokens(x: jax.Array, patch: int) -> jax.Array:
    """Cut examples `[B, ..., C]` of k axes into tokens `[B, N, patch^k C]`: pieces of `patch` pixels along each axis.

    >>> to_tokens(jnp.arange(6.0).reshape(1, 6, 1), 3)[0].tolist()
    [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    b, *sizes, channels = x.shape
    k = len(sizes)
    x = x.reshape(b, *(n for size in sizes for n in (size // patch, patch)), channels)
    x = x.transpose(0, *range(1, 2 * k, 2), *range(2, 2 * k + 1, 2), 2 * k + 1)
    return x.reshape(b, math.prod(sizes) // patch**k, patch**k * channels)


def from_tokens(y: jax.Array, sizes: tuple[int, ...], patch: int) -> jax.Array:
    """The inverse of `to_tokens`, for examples of these sizes: `[B, N, patch^k C]` -> `[B, ..., C]`.

    >>> x = jnp.arange(48.0).reshape(1, 4, 6, 2)
    >>> bool((from_tokens(to_tokens(x, 2), (4, 6), 2) == x).all())
    True
    """
    b, k = y.shape[0], len(sizes)
    y = y.reshape(b, *(size // patch for size in sizes), *(patch,) * k, -1)
    y = y.transpose(0, *(n for axis in range(1, k + 1) for n in (axis, axis + k)), 2 * k + 1)
    return y.reshape(b, *sizes, -1)


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """(x - mean) / sqrt(var + eps) over the last axis (Ba et al. 2016), in float32 or float64; no parameters."""
    y = x.astype(full_precision(x.dtype))
    y = y - y.mean(-1, keepdims=True)
    return (y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)).astype(x.dtype)


def modulation(e: jax.Array, parts: int, width: int, dtype: jnp.dtype) -> list[jax.Array]:
    """`parts` vectors `[B, 1, width]` from the embedding e `[B, width]`, the same for all tokens; they start at 0."""
    vectors = dense(parts * width, scale=0.0, dtype=dtype, name="modulation")(nn.swish(e))
    return jnp.split(vectors[:, None, :], parts, axis=-1)


class DiTBlock(nn.Module):
    """A transformer block with "adaLN-Zero" (Peebles & Xie 2022, section 3.2 and figure 3).

        (shift1, scale1, gate1, shift2, scale2, gate2) = dense(swish(e))
        x += gate1 self_attention((1 + scale1) norm(x) + shift1)
        x += gate2 dense(gelu(dense((1 + scale2) norm(x) + shift2)))

    These six start at zero, so a new block is the identity. The query, key and value layers start with half the
    variance of other layers, because the paper's code draws them as one layer of 3 C outputs.

    x [B, N, C], e [B, C] -> [B, N, C].
    """

    heads: int
    expansion: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, e: jax.Array) -> jax.Array:
        width = x.shape[-1]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation(e, 6, width, self.dtype)
        h = (1 + scale1) * layer_norm(x) + shift1
        x = x + gate1 * self_attention(h, self.heads, inner=0.5, dtype=self.dtype)
        h = (1 + scale2) * layer_norm(x) + shift2
        h = nn.gelu(dense(self.expansion * width, dtype=self.dtype, name="mlp1")(h), approximate=True)
        return x + gate2 * dense(width, dtype=self.dtype, name="mlp2")(h)


class DiT(nn.Module):
    """The network of Peebles & Xie 2022, "Scalable Diffusion Models with Transformers" (arXiv:2212.09748), section 3.

        tokens    the image's squares of `patch` x `patch` pixels, each dense(square) + positions
        e         dense(swish(dense(sinusoidal(noise)))), from 256 features, + embedding(label) + f(context)
        blocks    `depth` times `DiTBlock`
        out       each token becomes a square: dense((1 + scale) norm(x) + shift),    (shift, scale) = dense(swish(e))

    Series are cut into pieces of `patch` pixels and volumes into cubes, with positions along each axis. The perceptron
    f is `add_context`.

    The last layer and the modulation by e start at (nearly) zero. The default is DiT-S/2: with `out_channels=8` and
    `num_classes=1000`, on latents of 32x32x4, it has 32,865,056 parameters. B, L and XL are (width, depth,
    attention_heads) = (768, 12, 12), (1024, 24, 16) and (1152, 28, 16).

    Fields:
        patch: side of a square (a piece of a series, a cube of a volume), in pixels.
        width: channels of a token, a multiple of 2 for series, of 4 for images and of 6 for volumes.
        depth: number of blocks.
        attention_heads: number of attention heads.
        expansion: hidden units of a block's perceptron, as a multiple of `width`.
        dtype: of the arithmetic, "float32" or "bfloat16"; parameters, statistics, softmax and output stay float32.
        remat: recompute the inside of every block in the backward pass, which saves memory.
        num_classes: number of classes; 0 for a network without class labels.
        context_dim: numbers of the context vector; 0 for a network without one (see `add_context`).
        out_channels: channels of the output; None for as many as x has.

    Call:
        `net.apply(params, x, cond)` with x [B, L, C], [B, H, W, C] or [B, D, H, W, C] and a `Cond` returns x's
        shape with `out_channels` in place of C. There is no dropout, so `train` has no effect.

    Raises:
        TypeError: if x is not an array, if cond is not a `Cond`, or if an integer field holds anything else.
        ValueError: if x has another shape or is not floating-point, if `patch` does not divide its sizes, if
            `attention_heads` does not divide `width`, if the positions need another `width`, if `num_classes`,
            `context_dim` or `out_channels` is out of range, if the noise level is not [B], or if cond holds something
            that the network has no input for.

    >>> net = DiT(patch=4, width=8, depth=1, attention_heads=2)
    >>> x, cond = jnp.zeros((2, 8, 12, 3)), Cond(noise=jnp.zeros(2))
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x, cond)
    >>> jax.eval_shape(net.apply, params, x, cond).shape
    (2, 8, 12, 3)
    """

    patch: int = 2
    width: int = 384
    depth: int = 12
    attention_heads: int = 6
    expansion: int = 4
    dtype: str = "float32"
    remat: bool = False
    num_classes: int = 0
    context_dim: int = 0
    out_channels: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, train: bool = False) -> jax.Array:
        noise, cond = conditioning(self, x, cond, axes=(2, 1, 3))
        out = outputs(self, x)
        self._check(x.shape)
        dtype, p = jnp.dtype(self.dtype), self.patch
        full = full_precision(dtype)
        sizes = x.shape[1:-1]

        # Smaller initial values than in other layers, as in the paper's code: e modulates every layer.
        small = nn.initializers.normal(0.02)
        e = sinusoidal(noise.astype(full), 256, "adm")
        e = nn.swish(nn.Dense(self.width, kernel_init=small, dtype=dtype, name="time1")(e))
        e = nn.Dense(self.width, kernel_init=small, dtype=dtype, name="time2")(e)
        e = add_label(e, cond.label, self.num_classes, std=0.02, dtype=dtype)
        e = add_context(e, cond.context, init=small, dtype=dtype)

        place = jnp.asarray(positions(*(size // p for size in sizes), dim=self.width), dtype)
        y = dense(self.width, dtype=dtype, name="in")(to_tokens(x, p)) + place[None]
        block = nn.remat(DiTBlock) if self.remat else DiTBlock
        for i in range(self.depth):
            y = block(self.attention_heads, self.expansion, dtype, name=f"block{i}")(y, e)

        shift, scale = modulation(e, 2, self.width, dtype)
        y = (1 + scale) * layer_norm(y) + shift
        y = dense(p ** len(sizes) * out, scale=0.0, dtype=dtype, name="out")(y)
        return from_tokens(y.astype(full), sizes, p)

    def _check(self, shape: tuple[int, ...]) -> None:
        """Refuse settings that would fail later without a reason."""
        check_fields(self, patch=1, width=4, depth=0, attention_heads=1, expansion=1)
        axes = len(shape) - 2
        if any(size % self.patch for size in shape[1:-1]):
            pieces = {1: "pieces", 2: "squares", 3: "cubes"}[axes]
            raise ValueError(
                f"{sized(shape)} cannot be cut into {pieces} of patch={self.patch}: pad or crop to a multiple of it, "
                "or take another patch"
            )
        if self.width % (2 * axes):
            raise ValueError(
                f"width={self.width}: a multiple of {2 * axes} is needed, for the features of a token's position in "
                f"{FORMS[axes].examples}"
            )
        if self.width % self.attention_heads:
            raise ValueError(f"attention_heads={self.attention_heads} does not divide width={self.width}")
