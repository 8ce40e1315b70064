"""The diffusion transformer of Peebles & Xie 2022, sized by its fields."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scoregen.nets.layers import dense, full_precision, label_embedding, self_attention, sinusoidal


def positions(height: int, width: int, dim: int) -> np.ndarray:
    """Where each token of a grid lies, as fixed features, `[height * width, dim]`, row by row.

        f_i = 1e4^(-i / (dim / 4)),   [sin(column f), cos(column f), sin(row f), cos(row f)]

    as in Peebles & Xie 2022 (section 3.2, "sine-cosine"), in float64.

    >>> positions(2, 2, 4).round(2).tolist()[1]  # the first row, the second column
    [0.84, 0.54, 0.0, 1.0]
    """
    frequencies = 1e4 ** (-np.arange(dim // 4) / (dim // 4))
    row, column = (a.reshape(-1, 1) * frequencies for a in np.mgrid[:height, :width])
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1)


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """(x - mean) / sqrt(var + eps) over the last axis (Ba et al. 2016), in float32 but for float64; no parameters."""
    y = x.astype(full_precision(x.dtype))
    y = y - y.mean(-1, keepdims=True)
    return (y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)).astype(x.dtype)


def modulation(e: jax.Array, parts: int, width: int, dtype: jnp.dtype) -> list[jax.Array]:
    """So many vectors `[B, 1, width]`, for every token alike, of the embedding e `[B, width]`; they start at zero."""
    vectors = dense(parts * width, scale=0.0, dtype=dtype, name="modulation")(nn.swish(e))
    return jnp.split(vectors[:, None, :], parts, axis=-1)


class DiTBlock(nn.Module):
    """A transformer block with "adaLN-Zero" (Peebles & Xie 2022, section 3.2 and figure 3).

        (shift1, scale1, gate1, shift2, scale2, gate2) = dense(swish(e))
        x += gate1 self_attention((1 + scale1) norm(x) + shift1)
        x += gate2 dense(gelu(dense((1 + scale2) norm(x) + shift2)))

    The six start at zero, so that a new block is the identity. The query, the key and the value start with half of the
    variance of other layers: the paper's code draws them as one layer of 3 C outputs.

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
        e         dense(swish(dense(sinusoidal(c)))), of 256 features, + embedding(label)
        blocks    `depth` times `DiTBlock`
        out       each token a square again: dense((1 + scale) norm(x) + shift),    (shift, scale) = dense(swish(e))

    The last layer and all that e modulates start at (nearly) zero. The default is DiT-S/2: with `heads=2` and 1000
    classes, on latents of 32x32x4, it has 32,865,056 parameters. B, L and XL are (width, depth, attention_heads) =
    (768, 12, 12), (1024, 24, 16) and (1152, 28, 16).

    Fields:
        patch: side of a square, in pixels.
        width: channels of a token.
        depth: blocks.
        attention_heads: parts of the channels that each attend by themselves.
        expansion: hidden units of a block's perceptron, in widths.
        dtype: of the arithmetic, "float32" or "bfloat16"; parameters, statistics, softmax and output stay float32.
        remat: compute the inside of every block a second time for the gradient, instead of keeping it in memory.

    Call:
        `net.apply(params, x, c)` with x [B, H, W, C] and c [B] returns [B, H, W, C], or [B, H, W, heads C] if `heads`
        is given. There is no dropout, so `train` makes no difference. With `labels`, integers [B], and the number of
        `classes`, the class's vector is added to e; the label `classes` is none.

    Raises:
        ValueError: if x is no image, if `patch` does not divide its sides, if `attention_heads` does not divide
            `width`, or 4 does not (for the positions).

    >>> net = DiT(patch=4, width=8, depth=1, attention_heads=2)
    >>> x, c = jnp.zeros((2, 8, 12, 3)), jnp.zeros(2)
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x, c)
    >>> jax.eval_shape(net.apply, params, x, c).shape
    (2, 8, 12, 3)
    """

    patch: int = 2
    width: int = 384
    depth: int = 12
    attention_heads: int = 6
    expansion: int = 4
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        c: jax.Array,
        train: bool = False,
        heads: int = 1,
        labels: jax.Array | None = None,
        classes: int = 0,
    ) -> jax.Array:
        self._check(x.shape)
        dtype, p = jnp.dtype(self.dtype), self.patch
        full = full_precision(dtype)
        b, h, w, channels = x.shape
        rows, columns = h // p, w // p

        # Smaller than other layers, as in the paper's code: e modulates every layer.
        small = nn.initializers.normal(0.02)
        e = sinusoidal(c.astype(full), 256, "adm")
        e = nn.swish(nn.Dense(self.width, kernel_init=small, dtype=dtype, name="time1")(e))
        e = nn.Dense(self.width, kernel_init=small, dtype=dtype, name="time2")(e)
        if labels is not None:
            e = e + label_embedding(labels, classes, self.width, dtype, std=0.02)

        y = x.reshape(b, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, -1)
        place = jnp.asarray(positions(rows, columns, self.width), dtype)
        y = dense(self.width, dtype=dtype, name="in")(y) + place[None]
        block = nn.remat(DiTBlock) if self.remat else DiTBlock
        for i in range(self.depth):
            y = block(self.attention_heads, self.expansion, dtype, name=f"block{i}")(y, e)

        shift, scale = modulation(e, 2, self.width, dtype)
        y = (1 + scale) * layer_norm(y) + shift
        y = dense(p * p * heads * channels, scale=0.0, dtype=dtype, name="out")(y).astype(full)
        y = y.reshape(b, rows, columns, p, p, heads * channels).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(b, h, w, heads * channels)

    def _check(self, shape: tuple[int, ...]) -> None:
        """Refuse what would fail later, with a reason."""
        if len(shape) != 4:
            raise ValueError(f"the DiT takes images [B, H, W, C], not {shape}; for points use the mlp")
        if self.patch < 1 or shape[1] % self.patch or shape[2] % self.patch:
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} cannot be cut into squares of patch={self.patch}: pad or crop to a "
                "multiple of it, or take another patch"
            )
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width={self.width}: a multiple of 4 is needed, for the features of a token's place")
        if self.attention_heads < 1 or self.width % self.attention_heads:
            raise ValueError(f"attention_heads={self.attention_heads} does not divide width={self.width}")
