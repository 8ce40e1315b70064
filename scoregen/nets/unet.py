"""The U-Net of Ho et al. 2020, with the variants of Nichol & Dhariwal 2021 and ADM as fields."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoregen.cond import Cond
from scoregen.errors import check_fields, check_fraction
from scoregen.nets.layers import (
    AttentionBlock,
    GroupNorm,
    add_context,
    add_label,
    check_levels,
    conditioning,
    conv,
    dense,
    downsample,
    full_precision,
    outputs,
    sinusoidal,
    upsample,
)


class ResBlock(nn.Module):
    """Two convolutions around the time embedding, plus a shortcut.

        h = conv(swish(norm(x))) + dense(swish(e))
        y = shortcut(x) + conv(dropout(swish(norm(h))))

    With `scale_shift` the embedding enters after the second norm instead (Nichol & Dhariwal 2021, "adaptive group
    normalization" of Dhariwal & Nichol 2021, section 3):

        (a, b) = dense(swish(e)),    y = shortcut(x) + conv(dropout(swish((1 + a) norm(conv(swish(norm(x)))) + b)))

    The shortcut is the identity, or a 1x1 convolution where the number of channels changes. The second
    convolution starts at zero, so a new block equals its shortcut. A block with `move` also resamples: `move` is
    applied to x and to the input of the first convolution (Dhariwal & Nichol 2021, after Brock et al. 2019).
    x [B, H, W, C], e [B, E] -> [B, H', W', F] with F = `channels`; x may have one or three axes in place of H and W.
    """

    channels: int
    dropout: float
    groups: int
    dtype: jnp.dtype
    scale_shift: bool = False
    eps: float = 1e-6
    move: Callable[[jax.Array], jax.Array] = lambda x: x

    @nn.compact
    def __call__(self, x: jax.Array, e: jax.Array, train: bool) -> jax.Array:
        axes = x.ndim - 2
        h = self.move(nn.swish(GroupNorm(self.groups, self.eps, name="norm1")(x)))
        x = self.move(x)
        h = conv(self.channels, axes=axes, dtype=self.dtype, name="conv1")(h)
        features = (1 + self.scale_shift) * self.channels
        e = dense(features, dtype=self.dtype, name="time")(nn.swish(e))
        e = jnp.expand_dims(e, range(1, 1 + axes))
        norm = GroupNorm(self.groups, self.eps, name="norm2")
        if self.scale_shift:
            scale, shift = jnp.split(e, 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + e)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.swish(h))
        h = conv(self.channels, axes=axes, scale=0.0, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return x + h


class UNet(nn.Module):
    """The network of Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B, and its descendants.

    One network for series [B, L, C], images [B, H, W, C] and volumes [B, D, H, W, C]: it convolves, halves and doubles
    along all axes between B and C. "Pixel" stands for a point of any of them.

    The noise level becomes e = dense(swish(dense(sinusoidal(noise)))), a vector of 4 `channels` numbers, and the label
    and the context each add a learned vector to it. Every residual block receives e. Level i works at 1 / 2^i of the
    size with `channels * multipliers[i]` channels:

        down    `blocks` residual blocks per level; then (except on the last level) the size is halved;
                every output is stored
        middle  residual block, attention, residual block
        up      `blocks + 1` residual blocks per level, each of which receives one stored output beside its input;
                then (except on the first level) the size is doubled

    Every residual block of a level whose first size is in `attention` is followed by self-attention, on the way down
    and on the way up. The output layer starts at (nearly) zero. For 32x32x3 the default has 35,746,307 parameters: the
    CIFAR-10 model of the paper (arXiv:2006.11239).

    With `blocks=3, attention=(16, 8), attention_heads=4, scale_shift=True, form="adm", out_channels=6` it is the
    CIFAR-10 model of Nichol & Dhariwal 2021 (arXiv:2102.09672), with 52,546,438 parameters. Only the initial values
    differ: theirs are PyTorch's. With `head_channels=64, resample="block", scale_shift=True` it belongs to the family
    of Dhariwal & Nichol 2021, "ADM" (arXiv:2105.05233, section 3).

    Fields:
        channels: channels of the first level.
        multipliers: one number per level.
        blocks: residual blocks per level on the way down.
        attention: the levels with attention, by their first size in pixels (the length of a series, the height of an
            image, the depth of a volume); () for attention in the middle alone.
        attention_last: on the way up, attend only after the last block of a level, as the code of Song et al. 2021
            does (score_sde's `ddpm`). Ho et al. attend after every block.
        attention_heads: number of attention heads, the same on every level.
        head_channels: channels per attention head, which replaces `attention_heads`; 0 to use `attention_heads`.
        scale_shift: if true, e scales and shifts the output of a block's second norm; otherwise it is added before
            the norm.
        resample: "conv" halves the size by a convolution of stride 2, and doubles it by nearest neighbours and a
            convolution; "block" resamples inside a residual block, by averages over two pixels along each axis and by
            nearest neighbours.
        dropout: rate inside the residual blocks, with `train=True` only.
        groups: groups of the group norm, at most `channels`; it must divide `channels`.
        form: the code to follow where the papers leave a choice, "ddpm" or "adm". "adm" follows Nichol & Dhariwal
            2021: its own sinusoidal features (see `sinusoidal`), one pixel of padding on either side of convolutions
            of stride 2 (see `conv`), and 1e-5 instead of 1e-6 beside the variance in a norm.
        dtype: of the arithmetic, "float32" or "bfloat16"; parameters, statistics and output stay float32. With
            "float64", under `jax.enable_x64`, statistics and output are float64 too.
        remat: recompute the inside of every residual block and attention layer in the backward pass, which saves
            memory (Chen et al. 2016, arXiv:1604.06174).
        num_classes: number of classes; 0 for a network without class labels.
        context_dim: numbers of the context vector; 0 for a network without one (see `add_context`).
        out_channels: channels of the output; None for as many as x has.

    Call:
        `net.apply(params, x, cond, train=False, rngs={"dropout": key})` with x [B, L, C], [B, H, W, C] or
        [B, D, H, W, C] and a `Cond` returns x's shape with `out_channels` in place of C. The caller decides what the
        noise level means: an index, log sigma, a log-SNR.

    Raises:
        TypeError: if x is not an array, if cond is not a `Cond`, or if an integer field holds anything else.
        ValueError: if x has another shape or is not floating-point, if a size cannot be halved `len(multipliers) - 1`
            times, if `channels` < 4 or another integer is below 1 (`blocks`, `head_channels`: 0), if `attention` names
            a size that no level has, if `groups` does not divide `channels`, if the attention heads do not divide a
            level's channels or are given in two ways, if `resample` or `form` is unknown, if `num_classes`,
            `context_dim` or `out_channels` is out of range, if the noise level is not [B], or if cond holds something
            that the network has no input for.

    >>> net = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)
    >>> x, cond = jnp.zeros((2, 8, 8, 1)), Cond(noise=jnp.zeros(2))
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x, cond)
    >>> jax.eval_shape(net.apply, params, x, cond).shape
    (2, 8, 8, 1)
    >>> series = jnp.zeros((2, 16, 3))
    >>> jax.eval_shape(net.clone(attention=()).init_with_output, jax.random.key(0), series, cond)[0].shape
    (2, 16, 3)
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    attention_last: bool = False
    attention_heads: int = 1
    head_channels: int = 0
    scale_shift: bool = False
    resample: str = "conv"
    dropout: float = 0.1
    groups: int = 32
    form: str = "ddpm"
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
        dtype, levels, adm = jnp.dtype(self.dtype), len(self.multipliers), self.form == "adm"
        full, eps = full_precision(dtype), 1e-5 if adm else 1e-6
        # Every width of the net is a multiple of `channels`, so one number of groups divides them all.
        groups = min(self.groups, self.channels)
        convolution = functools.partial(conv, axes=x.ndim - 2, dtype=dtype)
        # Argument 3 is `train`; argument 0 is self.
        residual, attention = (
            (nn.remat(ResBlock, static_argnums=(3,)), nn.remat(AttentionBlock))
            if self.remat
            else (ResBlock, AttentionBlock)
        )
        residual = functools.partial(
            residual, dropout=self.dropout, groups=groups, dtype=dtype, scale_shift=self.scale_shift, eps=eps
        )

        def attend(h: jax.Array, name: str) -> jax.Array:
            return attention(groups, self.heads_of(h.shape[-1]), dtype, eps, name=name)(h)

        def level(h: jax.Array, i: int, name: str, last: bool = True) -> jax.Array:
            h = residual(self.channels * self.multipliers[i], name=name)(h, e, train)
            attends = h.shape[1] in self.attention and (last or not self.attention_last)
            return attend(h, f"{name}_attention") if attends else h

        def halve(h: jax.Array, name: str) -> jax.Array:
            if self.resample == "block":
                return residual(h.shape[-1], move=downsample, name=name)(h, e, train)
            return convolution(h.shape[-1], stride=2, padding=1 if adm else "SAME", name=name)(h)

        def double(h: jax.Array, name: str) -> jax.Array:
            if self.resample == "block":
                return residual(h.shape[-1], move=upsample, name=name)(h, e, train)
            return convolution(h.shape[-1], name=name)(upsample(h))

        features = sinusoidal(noise.astype(full), self.channels, self.form)
        e = dense(4 * self.channels, dtype=dtype, name="time1")(features)
        e = dense(4 * self.channels, dtype=dtype, name="time2")(nn.swish(e))
        e = add_label(e, cond.label, self.num_classes, dtype=dtype)
        e = add_context(e, cond.context, dtype=dtype)

        h = convolution(self.channels, name="conv_in")(x)
        kept = [h]
        for i in range(levels):
            for j in range(self.blocks):
                h = level(h, i, f"down{i}_{j}")
                kept.append(h)
            if i < levels - 1:
                h = halve(h, f"down{i}_halve")
                kept.append(h)

        h = residual(h.shape[-1], name="middle0")(h, e, train)
        h = attend(h, "middle_attention")
        h = residual(h.shape[-1], name="middle1")(h, e, train)

        for i in reversed(range(levels)):
            for j in range(self.blocks + 1):
                h = level(jnp.concatenate([h, kept.pop()], axis=-1), i, f"up{i}_{j}", last=j == self.blocks)
            if i > 0:
                h = double(h, f"up{i}_double")

        h = nn.swish(GroupNorm(groups, eps, name="norm_out")(h))
        return convolution(out, scale=0.0, name="conv_out")(h).astype(full)

    def heads_of(self, width: int) -> int:
        """Number of attention heads for this number of channels.

        Raises:
            ValueError: if `head_channels` does not divide `width`.
        """
        if self.head_channels and width % self.head_channels:
            raise ValueError(f"head_channels={self.head_channels} does not divide the {width} channels of a level")
        return width // self.head_channels if self.head_channels else self.attention_heads

    def _check(self, shape: tuple[int, ...]) -> None:
        """Refuse settings that would fail later, or that would silently give another network."""
        check_fraction(dropout=self.dropout)
        check_fields(self, channels=4, blocks=0, multipliers=1, attention_heads=1, head_channels=0, groups=1)
        check_levels(shape, len(self.multipliers), self.attention)
        if self.channels % min(self.groups, self.channels):
            raise ValueError(f"groups={self.groups} does not divide channels={self.channels}")
        for name, options in (("resample", ("conv", "block")), ("form", ("ddpm", "adm"))):
            if (given := getattr(self, name)) not in options:
                raise ValueError(f"{name}={given!r}: '{options[0]}' or '{options[1]}' is needed")
        if self.head_channels and self.attention_heads != 1:
            raise ValueError(
                f"attention_heads={self.attention_heads} and head_channels={self.head_channels}: one follows from the "
                "other, so leave head_channels=0, or attention_heads=1"
            )
