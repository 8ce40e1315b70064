"""NCSN++ and DDPM++, the networks of Song et al. 2021, which EDM trains too."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoregen.nets.layers import (
    AttentionBlock,
    GroupNorm,
    check_levels,
    conv,
    dense,
    double,
    full_precision,
    halve,
    sinusoidal,
    upfirdn,
)


def _groups(channels: int) -> int:
    return max(min(channels // 4, 32), 1)


def _norm(x: jax.Array, name: str) -> jax.Array:
    channels, groups = x.shape[-1], _groups(x.shape[-1])
    if channels % groups:
        raise ValueError(
            f"the norm of {channels} channels would have {groups} groups, which do not divide them: take `channels` of "
            "which all sums are multiples of 32, or small ones with multiples of 4"
        )
    return GroupNorm(groups, name=name)(x)


class Fourier(nn.Module):
    """[sin, cos](2 pi c w) with w ~ N(0, scale^2), drawn once (Tancik et al. 2020): [B] -> [B, 2 channels].

    w is a parameter that no gradient reaches, so that it is stored, averaged to itself and exchanged with the rest: a
    network means nothing without its own w.
    """

    channels: int
    scale: float

    @nn.compact
    def __call__(self, c: jax.Array) -> jax.Array:
        w = self.param("frequencies", nn.initializers.normal(self.scale), (self.channels,))
        angle = c[:, None] * jax.lax.stop_gradient(w)[None, :].astype(c.dtype) * 2 * math.pi
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


class ResBlock(nn.Module):
    """A residual block that may change the size of its image on the way, as BigGAN's do.

        h = conv(move(swish(norm(x)))) + dense(e)
        y = (shortcut(move(x)) + conv(dropout(swish(norm(h))))) / sqrt(2)

    `move` doubles or halves the image, or is None. The shortcut is a 1x1 convolution where the block moves or the
    number of channels changes, else the identity. The second convolution starts at zero.
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

    e = swish(dense(swish(dense(features(c) + told)))) has 4 `channels` numbers, which every residual block receives.
    Level i works at 1 / 2^i of the image's size with `channels * multipliers[i]` channels:

        down    `blocks` residual blocks a level; then (but for the last level) one that halves the image, and with
                the progressive input the average of it and of a pyramid, h <- (h + conv(p)) / sqrt(2), p <- h, which
                begins with the image itself and is filtered and halved on its way; every output is kept
        middle  residual block, attention, residual block
        up      `blocks + 1` residual blocks a level, each of which sees one kept output beside its input;
                then (but for the first level) one that doubles the image

    At the heights named by `attention` there is self-attention after every residual block on the way down, and after
    the last of a level on the way up. Every sum is divided by sqrt(2). What the features are:

        positional   [sin, cos](c f), those of `sinusoidal`, `channels` of them
        fourier      [sin, cos](2 pi c w), 2 `channels` of them, with random w that are kept; c is log sigma

    Counts for 32x32x3, equal to those of the papers' code: NCSN++ (the defaults) 62,758,915 parameters, w being 128 of
    them, and 107,587,075 with 8 blocks (VE, "deep"); DDPM++ (`filter=(1, 1)`, `progressive="none"`,
    `embedding="positional"`) 61,804,419, and 106,632,579 with 8 blocks; EDM's (Karras et al. 2022, arXiv:2206.00364:
    DDPM++ with `multipliers=(2, 2, 2)`) 55,733,891, of which 1,152 are for augmentation, and with classes 1,408 more.

    The output is what `scoregen.denoiser` makes of it. DDPM++ under VP gives the noise in the papers' code too, target
    "eps". Their NCSN++ is divided by sigma and is then the score, so without the division it is minus the noise:
    target "eps" again, with the sign of the last layer, drawn symmetrically, turned (`scoregen.weights.ncsnpp`). In EDM
    it is that of the target "edm", with c = ln(sigma) / 4, the condition "edm".

    Fields:
        channels: channels of the first convolution.
        multipliers: one number a level.
        blocks: residual blocks a level on the way down; 8 for the "deep" networks of the paper.
        attention: heights, in pixels, at which there is attention; () for the middle alone.
        dropout: rate inside the residual blocks, with `train=True` only.
        filter: what smooths an image that is resampled; (1, 1) for plain doubling and halving.
        progressive: "residual" for the progressive input, "none" without.
        embedding: "fourier" or "positional".
        fourier_scale: the standard deviation of w.
        remat: compute the blocks again in the backward pass rather than keep what is in them, to save memory.
        dtype: of the arithmetic, "float32" or "bfloat16"; parameters, statistics and output stay float32. With
            "float64", under `jax.enable_x64`, statistics and output are float64 too.

    Call:
        As of `UNet`. The class is told as in EDM, sqrt(classes) dense(one_hot), and before the first layer; the label
        `classes`, for none, is a vector of zeros. `augment` [B, 9] are the numbers that say how each example was
        augmented (`scoregen.data.augment`), 0 for not at all; they are told beside it, if given.

    Raises:
        ValueError: if x is no image, if its sides cannot be halved `len(multipliers) - 1` times, if `attention` names a
            height that no level has, or for a `filter`, `progressive` or `embedding` that is not one.

    >>> net = NCSNpp(channels=8, multipliers=(1, 2), blocks=1, attention=(4,))
    >>> x, c = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2)
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x, c)
    >>> jax.eval_shape(net.apply, params, x, c).shape
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

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        c: jax.Array,
        train: bool = False,
        heads: int = 1,
        labels: jax.Array | None = None,
        classes: int = 0,
        augment: jax.Array | None = None,
    ) -> jax.Array:
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
            e = Fourier(self.channels, self.fourier_scale, name="fourier")(c.astype(full))
        else:
            e = sinusoidal(c.astype(full), self.channels)
        if labels is not None:
            told = math.sqrt(classes) * jax.nn.one_hot(labels, classes, dtype=full)
            e = e + dense(e.shape[-1], dtype=full, name="label")(told)
        if augment is not None:
            e = e + dense(e.shape[-1], bias=False, dtype=full, name="augment")(augment)
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
                    # Filtered at both ends as far as the filter reaches, and then the convolution's own border of one.
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
        return conv(heads * x.shape[-1], scale=0.0, dtype=dtype, name="conv_out")(h).astype(full)

    def _check(self, shape: tuple[int, ...]) -> None:
        for name, least, given in (
            ("channels", 4, (self.channels,)),
            ("blocks", 0, (self.blocks,)),
            ("multipliers", 1, self.multipliers),
        ):
            if not given or min(given) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least} is needed")
        check_levels(shape, len(self.multipliers), self.attention)
        taps = tuple(self.filter)
        if not taps or len(taps) % 2 or taps != taps[::-1] or sum(taps) <= 0:
            raise ValueError(f"filter={taps}: an even number of taps, the same read backwards, is needed: (1, 3, 3, 1)")
        for name, words in (("progressive", ("residual", "none")), ("embedding", ("fourier", "positional"))):
            if (word := getattr(self, name)) not in words:
                raise ValueError(f"{name}={word!r}: {' or '.join(words)} is needed")
