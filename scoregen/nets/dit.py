"""The diffusion transformer of Peebles & Xie 2022, sized by its fields."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scoregen.cond import Cond
from scoregen.errors import check_fields
from scoregen.nets.layers import add_label, conditioning, dense, full_precision, outputs, self_attention, sinusoidal


def positions(height: int, width: int, dim: int) -> np.ndarray:
    """Fixed features for the position of each token of a grid, `[height * width, dim]`, row by row.

        f_i = 1e4^(-i / (dim / 4)),   [sin(column f), cos(column f), sin(row f), cos(row f)]

    as in Peebles & Xie 2022 (section 3.2, "sine-cosine"), in float64.

    >>> positions(2, 2, 4).round(2).tolist()[1]  # the first row, the second column
    [0.84, 0.54, 0.0, 1.0]
    """
    frequencies = 1e4 ** (-np.arange(dim // 4) / (dim // 4))
    row, column = (a.reshape(-1, 1) * frequencies for a in np.mgrid[:height, :width])
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1)


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
        e         dense(swish(dense(sinusoidal(noise)))), from 256 features, + embedding(label)
        blocks    `depth` times `DiTBlock`
        out       each token becomes a square: dense((1 + scale) norm(x) + shift),    (shift, scale) = dense(swish(e))

    The last layer and the modulation by e start at (nearly) zero. The default is DiT-S/2: with `out_channels=8` and
    `num_classes=1000`, on latents of 32x32x4, it has 32,865,056 parameters. B, L and XL are (width, depth,
    attention_heads) = (768, 12, 12), (1024, 24, 16) and (1152, 28, 16).

    Fields:
        patch: side of a square, in pixels.
        width: channels of a token.
        depth: number of blocks.
        attention_heads: number of attention heads.
        expansion: hidden units of a block's perceptron, as a multiple of `width`.
        dtype: of the arithmetic, "float32" or "bfloat16"; parameters, statistics, softmax and output stay float32.
        remat: recompute the inside of every block in the backward pass, which saves memory.
        num_classes: number of classes; 0 for a network without class labels.
        out_channels: channels of the output; None for as many as x has.

    Call:
        `net.apply(params, x, cond)` with x [B, H, W, C] and a `Cond` returns [B, H, W, out_channels]. There is no
        dropout, so `train` has no effect.

    Raises:
        TypeError: if x is not an array, if cond is not a `Cond`, or if an integer field holds anything else.
        ValueError: if x is not a floating-point image, if `patch` does not divide its sides, if `attention_heads` does
            not divide `width`, if `width` is not a multiple of 4 (which the positions need), if `num_classes` or
            `out_channels` is out of range, if the noise level is not [B], or if cond holds something that the network
            has no input for.

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
    out_channels: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, train: bool = False) -> jax.Array:
        noise, label, _ = conditioning(self, x, cond)
        out = outputs(self, x)
        self._check(x.shape)
        dtype, p = jnp.dtype(self.dtype), self.patch
        full = full_precision(dtype)
        b, h, w, channels = x.shape
        rows, columns = h // p, w // p

        # Smaller initial values than in other layers, as in the paper's code: e modulates every layer.
        small = nn.initializers.normal(0.02)
        e = sinusoidal(noise.astype(full), 256, "adm")
        e = nn.swish(nn.Dense(self.width, kernel_init=small, dtype=dtype, name="time1")(e))
        e = nn.Dense(self.width, kernel_init=small, dtype=dtype, name="time2")(e)
        e = add_label(e, label, self.num_classes, std=0.02, dtype=dtype)

        y = x.reshape(b, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, -1)
        place = jnp.asarray(positions(rows, columns, self.width), dtype)
        y = dense(self.width, dtype=dtype, name="in")(y) + place[None]
        block = nn.remat(DiTBlock) if self.remat else DiTBlock
        for i in range(self.depth):
            y = block(self.attention_heads, self.expansion, dtype, name=f"block{i}")(y, e)

        shift, scale = modulation(e, 2, self.width, dtype)
        y = (1 + scale) * layer_norm(y) + shift
        y = dense(p * p * out, scale=0.0, dtype=dtype, name="out")(y).astype(full)
        y = y.reshape(b, rows, columns, p, p, out).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(b, h, w, out)

    def _check(self, shape: tuple[int, ...]) -> None:
        """Refuse settings that would fail later without a reason."""
        check_fields(self, patch=1, width=4, depth=0, attention_heads=1, expansion=1)
        if shape[1] % self.patch or shape[2] % self.patch:
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} cannot be cut into squares of patch={self.patch}: pad or crop to a "
                "multiple of it, or take another patch"
            )
        if self.width % 4:
            raise ValueError(f"width={self.width}: a multiple of 4 is needed, for the features of a token's position")
        if self.width % self.attention_heads:
            raise ValueError(f"attention_heads={self.attention_heads} does not divide width={self.width}")
