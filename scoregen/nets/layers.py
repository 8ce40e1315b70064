"""The parts that the networks are made of.

Initialisation and normalisation follow Ho et al. 2020 (arXiv:2006.11239): kernels are drawn uniformly with
variance `scale / fan_avg`, and a layer that should start at zero gets `scale = 1e-10` in place of 0.

Everything here is made of plain array operations. Sliced score matching takes `jax.jvp` of a network inside a
reverse-mode gradient, and an operation that carries only a custom VJP (as fused attention kernels do) cannot
be differentiated that way.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scoregen.cond import Cond
from scoregen.errors import check_count, check_counts


class Form(NamedTuple):
    """How messages speak of examples with one, two or three axes beside the batch and the channels."""

    examples: str
    shape: str
    first: str


FORMS = {
    1: Form("series", "[B, L, C]", "length"),
    2: Form("images", "[B, H, W, C]", "height"),
    3: Form("volumes", "[B, D, H, W, C]", "depth"),
}


def sized(shape: tuple[int, ...]) -> str:
    """The kind and size of a batch of this shape, for messages.

    >>> sized((4, 30, 3)), sized((4, 28, 28, 1)), sized((4, 12, 10, 8, 1))
    ('series of length 30', 'images of 28x28', 'volumes of 12x10x8')
    """
    sizes = shape[1:-1]
    return f"{FORMS[len(sizes)].examples} of {'length ' * (len(sizes) == 1)}{'x'.join(map(str, sizes))}"


def conditioning(net: Any, x: jax.Array, cond: Cond, *, axes: tuple[int, ...] = (2,)) -> tuple[jax.Array, Cond]:
    """Check x and `cond`; return the noise [B], and `cond` with a default for each input that is not given.

    The network's fields `num_classes`, `context_dim` and `augment_dim` (0 where it has none) say which inputs it has.
    Without the input, the part is None. With the input, a part that `cond` does not give gets its default: for the
    label [B] it is `num_classes`, which stands for no class, for the context [B, context_dim] it is NaN, which stands
    for no context, and for `augment` [B, augment_dim] it is zero.

    Args:
        net: the network, for its fields, and for its name in messages.
        x: examples, [B, ..., C].
        cond: a `Cond` for B examples.
        axes: the numbers of axes between B and C that the network takes: 1 for series, 2 for images, 3 for volumes; ()
            for any shape with an axis beside B.

    Raises:
        TypeError: if x is not an array, or cond is not a `Cond`.
        ValueError: if a shape or dtype does not fit, or if the network has no input for a part that is given.

    >>> from scoregen.nets import MLP
    >>> conditioning(MLP(num_classes=3), jnp.ones((2, 4)), Cond(jnp.zeros(2)), axes=())[1].label.tolist()
    [3, 3]
    """
    name = type(net).__name__
    if not isinstance(x, jax.Array | np.ndarray):
        raise TypeError(f"{name} takes an array of examples, not {type(x).__name__}: say jnp.asarray(x)")
    if not isinstance(cond, Cond):
        raise TypeError(
            f"{name} takes a Cond for the noise level, not {type(cond).__name__}: say net.apply(params, x, "
            "Cond(noise=...))"
        )
    if axes and x.ndim - 2 not in axes:
        *most, last = (f"{FORMS[count].examples} {FORMS[count].shape}" for count in axes)
        taken = f"{', '.join(most)} or {last}" if most else last
        other = f"{FORMS[x.ndim - 2].examples} use UNet or DiT" if x.ndim - 2 in FORMS else "points [B, D] use MLP"
        raise ValueError(f"{name} takes {taken}, not {x.shape}; for {other}")
    if x.ndim < 2:
        raise ValueError(f"{name} takes points [B, ..., C] with at least one axis beside B, not {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} takes examples of a floating-point dtype, not {x.dtype}: scale and cast them first")
    classes, context_dim, augment_dim = (
        check_count(field, getattr(net, field, 0), 0) for field in ("num_classes", "context_dim", "augment_dim")
    )
    batch = x.shape[0]
    if cond.noise is None:
        raise ValueError(f"{name} needs a noise level for each of the {batch} examples: say Cond(noise=...)")
    if (shape := jnp.shape(cond.noise)) != (batch,):
        raise ValueError(f"{batch} examples need cond.noise of shape ({batch},), one number per example, not {shape}")
    noise = jnp.asarray(cond.noise)
    return noise, Cond(
        noise,
        _label(name, batch, classes, cond.label),
        _context(net, batch, context_dim, cond.context),
        _augment(name, batch, augment_dim, cond.augment),
    )


def _label(name: str, batch: int, classes: int, label: jax.Array | None) -> jax.Array | None:
    if not classes:
        if label is not None:
            raise ValueError(
                f"{name} was built without class labels: set its field num_classes, or leave cond.label=None"
            )
        return None
    if label is None:
        return jnp.full(batch, classes, jnp.int32)
    label = jnp.asarray(label)
    if label.shape != (batch,) or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(
            f"{batch} examples need cond.label as integers of shape ({batch},), from 0 to {classes} (no class), not "
            f"{label.dtype} of shape {label.shape}"
        )
    return label


def _context(net: Any, batch: int, numbers: int, context: jax.Array | None) -> jax.Array | None:
    if not numbers:
        if context is not None:
            how = (
                "set its field context_dim" if hasattr(net, "context_dim") else "use MLP, UNet or DiT with context_dim"
            )
            raise ValueError(
                f"{type(net).__name__} has no input for a context vector: leave cond.context=None, or {how}"
            )
        return None
    if context is None:
        return jnp.full((batch, numbers), jnp.nan, jnp.float32)
    context = jnp.asarray(context)
    if context.shape != (batch, numbers) or not jnp.issubdtype(context.dtype, jnp.floating):
        raise ValueError(
            f"{batch} examples need cond.context as floating-point numbers of shape ({batch}, {numbers}), as "
            f"context_dim={numbers} says, with a row of NaN for no context, not {context.dtype} of shape "
            f"{context.shape}"
        )
    return context


def _augment(name: str, batch: int, numbers: int, augment: jax.Array | None) -> jax.Array | None:
    if not numbers:
        if augment is not None:
            raise ValueError(
                f"{name} has no input for augmentations: leave cond.augment=None, or use NCSNpp with its field "
                "augment_dim set"
            )
        return None
    if augment is None:
        return jnp.zeros((batch, numbers))
    if jnp.shape(augment) != (batch, numbers):
        raise ValueError(
            f"{batch} examples need cond.augment of shape ({batch}, {numbers}), as augment_dim={numbers} says, not "
            f"{jnp.shape(augment)}"
        )
    return jnp.asarray(augment)


def outputs(net: Any, x: jax.Array) -> int:
    """Channels of the network's output: its field `out_channels`, or as many as x has.

    Raises:
        TypeError: if `out_channels` is not an integer.
        ValueError: if it is less than one.
    """
    if net.out_channels is None:
        return x.shape[-1]
    return check_count("out_channels", net.out_channels)


def add_label(
    e: jax.Array, label: jax.Array | None, classes: int, *, std: float = 1.0, dtype: jnp.dtype | None = None
) -> jax.Array:
    """e [B, E] plus a learned vector for each example's label; e itself if there are no classes.

    The table has a row for each class and a last one for no class; rows start as N(0, std^2 I). It is a parameter of
    the compact module that calls this function.
    """
    if label is None:
        return e
    init = nn.initializers.normal(std)
    return e + nn.Embed(classes + 1, e.shape[-1], embedding_init=init, dtype=dtype, name="label")(label)


def add_context(
    e: jax.Array,
    context: jax.Array | None,
    *,
    init: jax.nn.initializers.Initializer = nn.initializers.lecun_normal(),
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """e [B, E] plus a learned function of each example's context [B, K]; e itself if there is no such input.

        e + dense(swish(dense([context, 1])))        for an example with a context
        e + dense(swish(dense([0, ..., 0])))         for a row of NaN, which stands for no context

    So "no context" is a learned vector, and it differs from a context of zeros. The numbers of a context should have
    about unit scale. A row with NaN in some places only is a mistake in the data, and makes the output NaN. The layers
    are parameters of the compact module that calls this function, and start from `init`.
    """
    if context is None:
        return e
    # Replaced before any arithmetic: a NaN times the derivative 0 would still be NaN.
    given = ~jnp.isnan(context).all(-1, keepdims=True)
    told = jnp.concatenate([jnp.where(given, context, 0.0), given.astype(context.dtype)], axis=-1)
    for name in ("context1", "context2"):
        told = nn.Dense(e.shape[-1], kernel_init=init, dtype=dtype, name=name)(told)
        told = nn.swish(told) if name == "context1" else told
    return e + told


def full_precision(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of statistics and outputs: float32, or float64 if `dtype` is float64 (with `jax.enable_x64`).

    >>> full_precision(jnp.dtype("bfloat16"))
    dtype('float32')
    """
    return jnp.dtype("float64" if dtype == jnp.float64 else "float32")


def sinusoidal(c: jax.Array, dim: int, form: str = "ddpm") -> jax.Array:
    """Sinusoidal features of a scalar (Ho et al. 2020, appendix B), in one of two published forms.

        half = dim // 2,   i = 0 .. half - 1
        ddpm    [sin(c f_0), ..., sin(c f_{half-1}), cos(c f_0), ...],   f_i = exp(-log(1e4) i / (half - 1))
        adm     [cos(c f_0), ..., cos(c f_{half-1}), sin(c f_0), ...],   f_i = exp(-log(1e4) i / half)

    The first is from Ho et al., the second from Nichol & Dhariwal 2021; ADM and DiT use the second. The frequencies
    reach from 1 down to (about) 1e-4 radians per unit of `c`, so the features resolve both an index up to 1000 and a
    log-SNR of a few units. With an odd `dim` the last feature is zero.

    Args:
        c: conditioning value, [B]; it is cast to float32 unless it is float64.
        dim: number of features, at least 4.
        form: "ddpm" or "adm".

    Returns:
        [B, dim], in float32, or in float64 if c is.

    Raises:
        ValueError: if `c` is not [B], or if `dim` is too small for two frequencies.

    >>> sinusoidal(jnp.zeros(1), 4).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    if jnp.ndim(c) != 1:
        raise ValueError(f"the conditioning value is one number per example, shape [B], not {jnp.shape(c)}")
    if dim < 4:
        raise ValueError(f"sinusoidal features need dim >= 4 for two frequencies, not {dim}")
    half = dim // 2
    dtype = full_precision(jnp.asarray(c).dtype)
    # The table is made in float64 and cast once: float32 powers would be off by several units of the last place.
    frequencies = np.exp(-np.log(1e4) * np.arange(half) / (half if form == "adm" else half - 1)).astype(dtype)
    angle = jnp.asarray(c, dtype)[:, None] * frequencies[None, :]
    parts = (jnp.cos(angle), jnp.sin(angle)) if form == "adm" else (jnp.sin(angle), jnp.cos(angle))
    return jnp.pad(jnp.concatenate(parts, axis=1), ((0, 0), (0, dim % 2)))


def fan_average(scale: float = 1.0) -> jax.nn.initializers.Initializer:
    """Uniform on [-r, r] with r = sqrt(3 scale / fan_avg); a scale below 1e-10 is raised to it (Ho et al. 2020)."""
    return jax.nn.initializers.variance_scaling(max(scale, 1e-10), "fan_avg", "uniform")


def dense(
    features: int,
    *,
    scale: float = 1.0,
    bias: bool = True,
    dtype: jnp.dtype | None = None,
    name: str | None = None,
) -> nn.Dense:
    """Affine map of the last axis, [B, ..., C] -> [B, ..., features]; over an image it is a 1x1 convolution."""
    return nn.Dense(features, use_bias=bias, kernel_init=fan_average(scale), dtype=dtype, name=name)


def conv(
    features: int,
    *,
    axes: int = 2,
    stride: int = 1,
    scale: float = 1.0,
    padding: str | int = "SAME",
    dtype: jnp.dtype | None = None,
    name: str | None = None,
) -> nn.Conv:
    """Convolution with a window of 3 along each of `axes` axes, [B, H, W, C] -> [B, H / stride, W / stride, features].

    With stride 2 and an even size, "SAME" pads one pixel after the last, as TensorFlow does. `padding=1` pads one pixel
    on either side, as PyTorch does, so its windows lie one pixel earlier.
    """
    init = fan_average(scale)
    return nn.Conv(features, (3,) * axes, strides=stride, padding=padding, kernel_init=init, dtype=dtype, name=name)


def upsample(x: jax.Array) -> jax.Array:
    """Every pixel is repeated twice along all axes but the batch and the channels, [B, H, W, C] -> [B, 2 H, 2 W, C].

    >>> upsample(jnp.arange(2.0).reshape(1, 1, 2, 1))[0, :, :, 0].tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    >>> upsample(jnp.arange(2.0).reshape(1, 2, 1))[0, :, 0].tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    b, *sizes, c = x.shape
    # Broadcast + reshape: jax.image.resize does the same with a gather, about forty times slower on a CPU.
    one, two = ([n for size in sizes for n in (size, times)] for times in (1, 2))
    return jnp.broadcast_to(x.reshape(b, *one, c), (b, *two, c)).reshape(b, *(2 * size for size in sizes), c)


def upfirdn(x: jax.Array, taps: Sequence[float], *, up: int = 1, down: int = 1, pad: int = 0) -> jax.Array:
    """Resample along all axes but the batch and the channels: insert zeros, filter, and keep every `down`-th pixel.

    It puts `up - 1` zeros between pixels and `pad` zeros at both ends. The filter is scaled to a sum of `up`, so that
    resampling keeps the mean. Beyond the edges the image is zero. The operations are ordered as in StyleGAN2's function
    of this name (Karras et al. 2020). [B, H, W, C] -> [B, (up (H - 1) + 1 + 2 pad - taps) / down + 1, ..., C].

    >>> upfirdn(jnp.array([1.0, 2.0, 4.0]).reshape(1, 1, 3, 1).repeat(3, 1), (1, 1), pad=1)[0, 1, :, 0].tolist()
    [0.5, 1.5, 3.0, 2.0]
    """
    scaled = [float(up * tap / sum(taps)) for tap in reversed(taps)]
    for axis in range(1, x.ndim - 1):
        widths = [(pad, pad, up - 1) if a == axis else (0, 0, 0) for a in range(x.ndim)]
        padded = jax.lax.pad(x, jnp.zeros((), x.dtype), widths)
        end = padded.shape[axis] - len(taps) + 1
        # Shifted sums, one axis at a time: XLA makes one loop of them, but a depthwise convolution is slow on a CPU.
        shifts = (jax.lax.slice_in_dim(padded, k, k + end, down, axis) for k in range(len(taps)))
        x = functools.reduce(jnp.add, (tap * shift for tap, shift in zip(scaled, shifts, strict=True)))
    return x


def double(x: jax.Array, taps: Sequence[float]) -> jax.Array:
    """Twice the size, smoothed by a symmetric filter with an even number of taps: [B, H, W, C] -> [B, 2 H, 2 W, C].

    (1, 1) repeats the pixels, as `upsample` does; (1, 3, 3, 1) gives 3/4 of the nearest pixel and 1/4 of the next.

    >>> double(jnp.ones((1, 2, 2, 1)), (1, 3, 3, 1))[0, 1, :, 0].tolist()  # beyond the edges is 0
    [0.75, 1.0, 1.0, 0.75]
    """
    return upfirdn(x, taps, up=2, pad=len(taps) // 2)


def halve(x: jax.Array, taps: Sequence[float]) -> jax.Array:
    """Half the size, smoothed by a symmetric filter with an even number of taps: [B, H, W, C] -> [B, H / 2, W / 2, C].

    (1, 1) is the mean of two by two pixels.

    >>> halve(jnp.arange(4.0).reshape(1, 1, 4, 1).repeat(2, 1), (1, 1))[0, 0, :, 0].tolist()
    [0.5, 2.5]
    """
    return upfirdn(x, taps, down=2, pad=len(taps) // 2 - 1)


def check_levels(shape: tuple[int, ...], levels: int, attention: Sequence[int]) -> None:
    """Raises ValueError unless a U-Net with this number of levels can take examples of this shape, `[B, ..., C]`.

    Each level but the last halves every size, and each number in `attention` must be the first size (the length, the
    height, the depth) of some level.

    >>> check_levels((1, 30, 3), 4, ())
    Traceback (most recent call last):
    ValueError: series of length 30 cannot be halved 3 times, which 4 multipliers need: pad or crop to a multiple of ...
    """
    check_counts("attention", attention, empty=True)
    factor = 2 ** (levels - 1)
    if any(size % factor for size in shape[1:-1]):
        raise ValueError(
            f"{sized(shape)} cannot be halved {levels - 1} times, which {levels} multipliers need: "
            f"pad or crop to a multiple of {factor}, or give fewer multipliers"
        )
    sizes, what = [shape[1] // 2**i for i in range(levels)], FORMS[len(shape) - 2].first
    absent = [size for size in attention if size not in sizes]
    if absent:
        raise ValueError(f"attention at {absent}: no level has that {what}, the {what}s here are {sizes}")


def downsample(x: jax.Array) -> jax.Array:
    """The mean of every two pixels along all axes but the batch and the channels, [B, 2 H, 2 W, C] -> [B, H, W, C].

    >>> downsample(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
    [[[[1.5]]]]
    """
    return halve(x, (1, 1))


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018, eq. 1 and 2), with channels as the last axis.

        y = scale (x - mean_g) / sqrt(var_g + eps) + bias

    with the mean and the (biased) variance of one example over all pixels and the C / groups neighbouring
    channels of group g. Statistics are computed in float32, or in float64 if the input is float64.

    `groups` is lowered to C where C is smaller.  [B, ..., C] -> [B, ..., C].

    Raises:
        ValueError: if the groups do not divide the channels.
    """

    groups: int = 32
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        groups = min(self.groups, channels)
        if channels % groups:
            raise ValueError(f"{groups} groups do not divide {channels} channels")
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        y = x.astype(full_precision(x.dtype)).reshape(x.shape[0], -1, channels)

        def mean(y: jax.Array) -> jax.Array:
            """First over the pixels, by whole rows of channels (fast in XLA), then over the group: [B, 1, C]."""
            each = y.mean(1).reshape(-1, groups, channels // groups)
            return jnp.broadcast_to(each.mean(-1, keepdims=True), each.shape).reshape(-1, 1, channels)

        y = y - mean(y)
        # Two passes: E[x^2] - E[x]^2 loses all its digits where the mean is large beside the spread.
        scale, bias = (a.astype(y.dtype).reshape(1, 1, channels) for a in (scale, bias))
        y = y * (jax.lax.rsqrt(mean(jnp.square(y)) + self.eps) * scale) + bias
        return y.reshape(x.shape).astype(x.dtype)


def self_attention(
    y: jax.Array, heads: int, *, inner: float = 1.0, scale: float = 1.0, dtype: jnp.dtype | None = None
) -> jax.Array:
    """Self-attention over tokens (Vaswani et al. 2017, section 3.2.2), [B, N, C] -> [B, N, C].

        proj(softmax(q k' / sqrt(C / heads)) v),    (q, k, v) = dense(y)

    Each of the `heads` groups of C / heads neighbouring channels takes its own softmax. `scale` sets the initial
    variance of the projection, and `inner` the initial variance of the other layers. The layers are parameters of the
    compact module that calls this function. It is written as two products and a softmax, not as a fused kernel, so
    that forward mode works.

    Raises:
        ValueError: if the heads do not divide the channels.
    """
    b, n, channels = y.shape
    if heads < 1 or channels % heads:
        raise ValueError(f"{heads} heads do not divide {channels} channels")
    q, k, v = (
        dense(channels, scale=inner, dtype=dtype, name=name)(y).reshape(b, n, heads, channels // heads)
        for name in ("query", "key", "value")
    )
    logits = jnp.einsum("bqhc,bkhc->bhqk", q, k) * (channels // heads) ** -0.5
    # The softmax is never computed in half precision: a row over 1,024 pixels would not sum to one.
    weights = nn.softmax(logits.astype(full_precision(logits.dtype))).astype(v.dtype)
    y = jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(b, n, channels)
    return dense(channels, scale=scale, dtype=dtype, name="proj")(y)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, plus the identity: y = x + self_attention(norm(x)).

    With `rescale` the result is y / sqrt(2), which preserves the variance of a sum. The projection starts at zero, and
    the other layers with the variance `scale / fan_avg`.  [B, ..., C] -> [B, ..., C].

    Raises:
        ValueError: if the heads do not divide the channels.
    """

    groups: int = 32
    heads: int = 1
    dtype: jnp.dtype | None = None
    eps: float = 1e-6
    scale: float = 1.0
    rescale: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = GroupNorm(self.groups, self.eps, name="norm")(x).reshape(x.shape[0], -1, x.shape[-1])
        y = self_attention(y, self.heads, inner=self.scale, scale=0.0, dtype=self.dtype)
        y = x + y.reshape(x.shape)
        return y * 0.5**0.5 if self.rescale else y
