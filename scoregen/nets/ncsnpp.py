"""NCSN++ and DDPM++, the networks of Song et al. 2021, which EDM also trains."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoregen.cond import Cond
from scoregen.errors import check_fields, check_fraction
from scoregen.nets.layers import (
    AttentionBlock,
    GroupNorm,
    check_levels,
    conditioning,
    conv,
    dense,
    double,
    full_precision,
    halve,
    outputs,
    sinusoidal,
    upfirdn,
)


def _groups(channels: int) -> int:
    return max(min(channels // 4, 32), 1)


def _norm(x: jax.Array, name: str) -> jax.Array:
    channels, groups = x.shape[-1], _groups(x.shape[-1])
    if channels % groups:
        raise ValueError(
            f"the norm of {channels} channels would have {groups} groups, which do not divide them: choose `channels` "
            "so that the sums of widths are multiples of 32, or of 4 where they are below 128"
        )
    return GroupNorm(groups, name=name)(x)


class Fourier(nn.Module):
    """[sin, cos](2 pi c w) with w ~ N(0, scale^2), drawn once (Tancik et al. 2020): [B] -> [B, 2 channels].

    w is a parameter that no gradient reaches. It is a parameter so that checkpoints hold it: a trained network is
    useless without its own w.
    """

    channels: int
    scale: float

    @nn.compact
    def __call__(self, c: jax.Array) -> jax.Array:
        w = self.param("frequencies", nn.initializers.normal(self.scale), (self.channels,))
        angle = c[:, None] * jax.lax.stop_gradient(w)[None, :].astype(c.dtype) * 2 * math.pi
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


class ResBlock(nn.Module):
    """A residual block that may also resample, as in BigGAN.

        h = conv(move(swish(norm(x)))) + dense(e)
        y = (shortcut(move(x)) + conv(dropout(swish(norm(h))))) / sqrt(2)

    `move` doubles or halves the image, or is None. The shortcut is a 1x1 convolution if the block resamples or the
    number of channels changes, and the identity otherwise. The second convolution starts at zero.
    x [B, H, W, C], e [B, E] -> [B, H', W', F] with F = `channels`.
    """

    channels: int
    dropout: float
    move: Callable[[jax.Array], jax.Array] | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, e: jax.Array, train: bool) -> jax.Array:
        h = nn.swish(_norm(x, "norm1"))
        if self.move:
            h, x = self.move(h), self.move(x)
        h = conv(self.channels, dtype=self.dtype, name="conv1")(h)
        h = h + dense(self.channels, dtype=self.dtype, name="time")(e)[:, None, None, :]
        h = nn.swish(_norm(h, "norm2"))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv(self.channels, scale=0.0, dtype=self.dtype, name="conv2")(h)
        if self.move or x.shape[-1] != self.channels:
            x = dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return (x + h) * 0.5**0.5


class NCSNpp(nn.Module):
    """NCSN++, and DDPM++ with other fields (Song et al. 2021, arXiv:2011.13456, section 4.1 and appendix H).

    The conditioning becomes e = swish(dense(swish(dense(features(noise) + label + augment)))), a vector of 4
    `channels` numbers, which every residual block receives. Level i works at 1 / 2^i of the image's size with
    `channels * multipliers[i]` channels:

        down    `blocks` residual blocks per level; then (except on the last level) one that halves the image. The
                progressive input averages its output with a pyramid, h <- (h + conv(p)) / sqrt(2), p <- h; p begins
                as the image itself and is filtered and halved on each level. Every output is stored.
        middle  residual block, attention, residual block
        up      `blocks + 1` residual blocks per level, each of which receives one stored output beside its input;
                then (except on the first level) one that doubles the image

    At the heights in `attention` there is self-attention after every residual block on the way down, and after the
    last of a level on the way up. Every sum is divided by sqrt(2). The features of the noise level c are:

        positional   [sin, cos](c f), the features of `sinusoidal`, `channels` of them
        fourier      [sin, cos](2 pi c w), 2 `channels` of them, with random w that stay fixed; c is log sigma

    A class label adds dense(sqrt(num_classes) one_hot(label)) to the features, as in EDM, where one_hot is zero for no
    class. An augmentation adds dense(augment), without a bias.

    Parameters for 32x32x3, equal to those of the papers' code: NCSN++ (the defaults) 62,758,915, of which w has 128,
    and 107,587,075 with 8 blocks (VE, "deep"); DDPM++ (`filter=(1, 1)`, `progressive="none"`,
    `embedding="positional"`) 61,804,419, and 106,632,579 with 8 blocks; EDM's (Karras et al. 2022, arXiv:2206.00364:
    DDPM++ with `multipliers=(2, 2, 2)` and `augment_dim=9`) 55,733,891, and 55,735,299 with `num_classes=10`.

    `scoregen.denoiser` turns the output into a prediction. DDPM++ under VP predicts the noise, target "eps", as in the
    papers' code. The papers' NCSN++ divides its output by sigma to give the score; the undivided output here is then
    minus the noise, and the target is "eps" with the sign of the last layer reversed (see
    `scoregen.contrib.weights.unet`). EDM's network has the target "edm" and the condition "edm", c = ln(sigma) / 4.

    Fields:
        channels: channels of the first convolution.
        multipliers: one number per level.
        blocks: residual blocks per level on the way down; 8 for the "deep" networks of the paper.
        attention: heights, in pixels, of the levels with attention; () for attention in the middle alone.
        dropout: rate inside the residual blocks, with `train=True` only.
        filter: taps of the resampling filter; (1, 1) for plain doubling and halving.
        progressive: "residual" for the progressive input, "none" without.
        embedding: "fourier" or "positional".
        fourier_scale: the standard deviation of w.
        remat: recompute the blocks in the backward pass, which saves memory.
        dtype: of the arithmetic, "float32" or "bfloat16"; parameters, statistics and output stay float32. With
            "float64", under `jax.enable_x64`, statistics and output are float64 too.
        num_classes: number of classes; 0 for a network without class labels.
        out_channels: channels of the output; None for as many as x has.
        augment_dim: size of the vector that says how an example was augmented: 9 for `scoregen.data.augment`, 0 for a
            network without this input.

    Call:
        `net.apply(params, x, cond, train=False, rngs={"dropout": key})` with x [B, H, W, C] and a `Cond` returns
        [B, H, W, out_channels].

    Raises:
        TypeError: if x is not an array, if cond is not a `Cond`, or if an integer field holds anything else.
        ValueError: if x is not a floating-point image, if its sides cannot be halved `len(multipliers) - 1` times, if
            `channels` < 4, if `blocks` < 0, if `multipliers` is empty or has a number below 1, if the groups of a norm
            (a quarter of its channels, at most 32) do not divide its channels, if `attention` names a height that no
            level has, if `filter`, `progressive` or `embedding` is unknown, if `num_classes`, `augment_dim` or
            `out_channels` is out of range, if the noise level is not [B], or if cond holds something that the network
            has no input for.

    >>> net = NCSNpp(channels=8, multipliers=(1, 2), blocks=1, attention=(4,))
    >>> x, cond = jnp.zeros((2, 8, 8, 1)), Cond(noise=jnp.zeros(2))
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x, cond)
    >>> jax.eval_shape(net.apply, params, x, cond).shape
    (2, 8, 8, 1)
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.1
    filter: tuple[int, ...] = (1, 3, 3, 1)
    progressive: str = "residual"
    embedding: str = "fourier"
    fourier_scale: float = 16.0
    remat: bool = False
    dtype: str = "float32"
    num_classes: int = 0
    out_channels: int | None = None
    augment_dim: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, train: bool = False) -> jax.Array:
        noise, cond = conditioning(self, x, cond)
        out = outputs(self, x)
        self._check(x.shape)
        dtype, levels = jnp.dtype(self.dtype), len(self.multipliers)
        full = full_precision(dtype)
        Block = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
        Attention = nn.remat(AttentionBlock) if self.remat else AttentionBlock

        def block(h: jax.Array, width: int, name: str, move: Callable[[jax.Array], jax.Array] | None = None):
            return Block(width, self.dropout, move, dtype, name=name)(h, e, train)

        def attend(h: jax.Array, name: str) -> jax.Array:
            return Attention(_groups(h.shape[-1]), scale=0.1, rescale=True, dtype=dtype, name=name)(h)

        if self.embedding == "fourier":
            e = Fourier(self.channels, self.fourier_scale, name="fourier")(noise.astype(full))
        else:
            e = sinusoidal(noise.astype(full), self.channels)
        if cond.label is not None:
            one_hot = math.sqrt(self.num_classes) * jax.nn.one_hot(cond.label, self.num_classes, dtype=full)
            e = e + dense(e.shape[-1], dtype=full, name="label")(one_hot)
        if cond.augment is not None:
            e = e + dense(e.shape[-1], bias=False, dtype=full, name="augment")(cond.augment)
        for name in ("time1", "time2"):
            e = nn.swish(dense(4 * self.channels, dtype=dtype, name=name)(e))

        h, pyramid = conv(self.channels, dtype=dtype, name="conv_in")(x), x
        kept = [h]
        for i in range(levels):
            for j in range(self.blocks):
                h = block(h, self.channels * self.multipliers[i], f"down{i}_{j}")
                if h.shape[1] in self.attention:
                    h = attend(h, f"down{i}_{j}_attention")
                kept.append(h)
            if i < levels - 1:
                h = block(h, h.shape[-1], f"down{i}_halve", functools.partial(halve, taps=self.filter))
                if self.progressive == "residual":
                    # The padding covers the filter's reach at both ends, and the convolution's border of one pixel.
                    pyramid = upfirdn(pyramid, self.filter, pad=len(self.filter) // 2)
                    name = f"down{i}_pyramid"
                    pyramid = conv(h.shape[-1], stride=2, padding="VALID", dtype=dtype, name=name)(pyramid)
                    h = pyramid = (h + pyramid) * 0.5**0.5
                kept.append(h)

        width = h.shape[-1]
        h = block(h, width, "middle0")
        h = attend(h, "middle_attention")
        h = block(h, width, "middle1")

        for i in reversed(range(levels)):
            for j in range(self.blocks + 1):
                h = block(jnp.concatenate([h, kept.pop()], axis=-1), self.channels * self.multipliers[i], f"up{i}_{j}")
            if h.shape[1] in self.attention:
                h = attend(h, f"up{i}_attention")
            if i > 0:
                h = block(h, h.shape[-1], f"up{i}_double", functools.partial(double, taps=self.filter))

        h = nn.swish(_norm(h, "norm_out"))
        return conv(out, scale=0.0, dtype=dtype, name="conv_out")(h).astype(full)

    def _check(self, shape: tuple[int, ...]) -> None:
        check_fraction(dropout=self.dropout)
        check_fields(self, channels=4, blocks=0, multipliers=1)
        check_levels(shape, len(self.multipliers), self.attention)
        taps = tuple(self.filter)
        if not taps or len(taps) % 2 or taps != taps[::-1] or sum(taps) <= 0:
            raise ValueError(
                f"filter={taps}: an even number of taps in symmetric order is needed, for example (1, 3, 3, 1)"
            )
        for name, words in (("progressive", ("residual", "none")), ("embedding", ("fourier", "positional"))):
            if (word := getattr(self, name)) not in words:
                raise ValueError(f"{name}={word!r}: {' or '.join(words)} is needed")
