"""The U-Net of Ho et al. 2020, sized by its fields."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoregen.nets.layers import (
    AttentionBlock,
    GroupNorm,
    check_levels,
    conv,
    dense,
    full_precision,
    label_embedding,
    sinusoidal,
    upsample,
)


class ResBlock(nn.Module):
    """Two convolutions around the time embedding, plus a shortcut.

        h = conv(swish(norm(x))) + dense(swish(e))
        y = shortcut(x) + conv(dropout(swish(norm(h))))

    The shortcut is the identity, or a 1x1 convolution where the number of channels changes. The second
    convolution starts at zero, so a new block is its shortcut.
    x [B, H, W, C], e [B, E] -> [B, H, W, F] with F = `channels`.
    """

    channels: int
    dropout: float
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, e: jax.Array, train: bool) -> jax.Array:
        h = nn.swish(GroupNorm(self.groups, name="norm1")(x))
        h = conv(self.channels, dtype=self.dtype, name="conv1")(h)
        h = h + dense(self.channels, dtype=self.dtype, name="time")(nn.swish(e))[:, None, None, :]
        h = nn.swish(GroupNorm(self.groups, name="norm2")(h))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv(self.channels, scale=0.0, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return x + h


class UNet(nn.Module):
    """The network of Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B.

    The conditioning value c becomes e = dense(swish(dense(sinusoidal(c)))), of 4 `channels` numbers, which every
    residual block receives; a label adds a vector of its own. Level i of the U works at 1 / 2^i of the image's size
    with `channels * multipliers[i]` channels:

        down    `blocks` residual blocks a level, then (but for the last level) a convolution of stride 2;
                every output is kept
        middle  residual block, attention, residual block
        up      `blocks + 1` residual blocks a level, each of which sees one kept output beside its input;
                then (but for the first level) nearest-neighbour upsampling and a convolution

    Where the image's height at a level is one of `attention`, every residual block of that level, down and
    up, is followed by self-attention. The output layer starts at (nearly) zero. For 32x32x3 the default has
    35,746,307 parameters: the CIFAR-10 model of the paper (arXiv:2006.11239).

    Fields:
        channels: channels of the first level.
        multipliers: one number a level.
        blocks: residual blocks a level on the way down.
        attention: heights, in pixels, at which there is attention; () for the middle alone.
        dropout: rate inside the residual blocks, with `train=True` only.
        groups: groups of the group norm, at most `channels`, of which it must be a divisor.
        dtype: of the arithmetic, "float32" or "bfloat16"; parameters, statistics and output stay float32. With
            "float64", under `jax.enable_x64`, statistics and output are float64 too.

    Call:
        `net.apply(params, x, c, train=False, rngs={"dropout": key})` with x [B, H, W, C] and c [B] returns
        [B, H, W, C], or [B, H, W, heads C] if `heads` is given. What c means (index, log sigma, log-SNR) is
        the caller's affair. With `labels`, integers [B], and the number of `classes`, the class's vector is added
        to the time embedding; the label `classes` is none.

    Raises:
        ValueError: if x is no image, if its sides cannot be halved `len(multipliers) - 1` times, if
            `attention` names a height that no level has, or if `groups` does not divide `channels`.

    >>> net = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)
    >>> x, c = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2)
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x, c)
    >>> jax.eval_shape(net.apply, params, x, c).shape
    (2, 8, 8, 1)
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.1
    groups: int = 32
    dtype: str = "float32"

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
        dtype, levels = jnp.dtype(self.dtype), len(self.multipliers)
        full = full_precision(dtype)
        # Every width of the net is a multiple of `channels`, so one number of groups divides them all.
        groups = min(self.groups, self.channels)

        def level(h: jax.Array, i: int, name: str) -> jax.Array:
            h = ResBlock(self.channels * self.multipliers[i], self.dropout, groups, dtype, name=name)(h, e, train)
            return (
                AttentionBlock(groups, dtype=dtype, name=f"{name}_attention")(h) if h.shape[1] in self.attention else h
            )

        e = dense(4 * self.channels, dtype=dtype, name="time1")(sinusoidal(c.astype(full), self.channels))
        e = dense(4 * self.channels, dtype=dtype, name="time2")(nn.swish(e))
        if labels is not None:
            e = e + label_embedding(labels, classes, 4 * self.channels, dtype)

        h = conv(self.channels, dtype=dtype, name="conv_in")(x)
        kept = [h]
        for i in range(levels):
            for j in range(self.blocks):
                h = level(h, i, f"down{i}_{j}")
                kept.append(h)
            if i < levels - 1:
                h = conv(h.shape[-1], stride=2, dtype=dtype, name=f"down{i}_halve")(h)
                kept.append(h)

        width = h.shape[-1]
        h = ResBlock(width, self.dropout, groups, dtype, name="middle0")(h, e, train)
        h = AttentionBlock(groups, dtype=dtype, name="middle_attention")(h)
        h = ResBlock(width, self.dropout, groups, dtype, name="middle1")(h, e, train)

        for i in reversed(range(levels)):
            for j in range(self.blocks + 1):
                h = level(jnp.concatenate([h, kept.pop()], axis=-1), i, f"up{i}_{j}")
            if i > 0:
                h = conv(h.shape[-1], dtype=dtype, name=f"up{i}_double")(upsample(h))

        h = nn.swish(GroupNorm(groups, name="norm_out")(h))
        return conv(heads * x.shape[-1], scale=0.0, dtype=dtype, name="conv_out")(h).astype(full)

    def _check(self, shape: tuple[int, ...]) -> None:
        """Refuse what would fail later, or silently be another network."""
        check_levels(shape, len(self.multipliers), self.attention)
        if self.channels % min(self.groups, self.channels):
            raise ValueError(f"groups={self.groups} does not divide channels={self.channels}")
