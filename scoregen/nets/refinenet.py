"""The RefineNets of NCSN (Song & Ermon 2019) and NCSNv2 (Song & Ermon 2020): `RefineNet` and `RefineNetV2`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scoregen.cond import Cond
from scoregen.errors import check_fields
from scoregen.nets.layers import conditioning, downsample, full_precision, outputs

# norm(name=...) is a layer (x [B, H, W, C], at) -> [B, H, W, C]; `at` [B, L] weights the noise levels, or is None.
Norm = Callable[..., Callable[[jax.Array, jax.Array | None], jax.Array]]


class InstanceNormPlus(nn.Module):
    """InstanceNorm++: every channel is normalised, and its mean is added back (Song & Ermon 2019, appendix A).

        y = gamma ((x - mu) / sqrt(var + eps) + alpha (mu - m) / sqrt(v + eps)) + beta

    with mu and var the mean and the (biased) variance of one channel of one example over its pixels, m the mean of an
    example's C means mu, and v their variance, with C - 1 in the denominator. Statistics are computed in float32, or in
    float64 if the input is float64. gamma and alpha start as N(1, 0.02^2), beta at 0. x [B, H, W, C] -> [B, H, W, C].

    With `levels` there is one (gamma, alpha, beta) per level, a row of a table, and `at` [B, levels] weights the rows.

    Raises:
        ValueError: if there is only one channel, whose mean has no variance, or if a norm with levels gets no `at`.
    """

    levels: int | None = None
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, at: jax.Array | None = None) -> jax.Array:
        channels = x.shape[-1]
        if channels < 2:
            raise ValueError("InstanceNorm++ compares the means of channels, and needs two or more")
        y = x.astype(full_precision(x.dtype))
        mean = y.mean((1, 2), keepdims=True)
        y = _standardised(y, mean, (1, 2), self.eps, 0)
        means = _standardised(mean, mean.mean(-1, keepdims=True), (3,), self.eps, 1)
        if self.levels is None:
            one = self.param("gamma", _around_one, (channels,)), self.param("alpha", _around_one, (channels,))
            rows = [a.astype(y.dtype)[None] for a in (*one, self.param("beta", nn.initializers.zeros, (channels,)))]
        else:
            if at is None:
                raise ValueError(f"a norm of {self.levels} levels needs `at`, the weights of the levels")
            table = self.param("table", _rows, (self.levels, 3 * channels)).astype(y.dtype)
            # At an integer index this is a row of the table to the last digit, on an accelerator too.
            rows = jnp.split(jnp.matmul(at.astype(y.dtype), table, precision="highest"), 3, axis=-1)
        gamma, alpha, beta = (a[:, None, None, :] for a in rows)
        return (gamma * (y + alpha * means) + beta).astype(x.dtype)


def _standardised(y: jax.Array, mean: jax.Array, axes: tuple[int, ...], eps: float, ddof: int) -> jax.Array:
    y = y - mean
    count = int(np.prod([y.shape[axis] for axis in axes]))
    return y * jax.lax.rsqrt(jnp.square(y).sum(axes, keepdims=True) / (count - ddof) + eps)


def _around_one(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return 1 + 0.02 * jax.random.normal(key, shape)


def _rows(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """[L, 3 C]: rows of gamma, alpha and beta side by side."""
    levels, width = shape
    start = _around_one(key, (levels, width // 3 * 2))
    return jnp.concatenate([start, jnp.zeros((levels, width // 3), start.dtype)], axis=-1)


def hat(c: jax.Array, levels: int) -> jax.Array:
    """The weight of each of the levels 0 .. L-1 at an index c, clipped to that range: [B] -> [B, L].

    An integer selects one level; an index between two integers interpolates linearly, as the tables of a chain do.

    >>> hat(jnp.array([2.0, 0.25, -1.0]), 3).tolist()
    [[0.0, 0.0, 1.0], [0.75, 0.25, 0.0], [1.0, 0.0, 0.0]]
    """
    index = np.arange(levels, dtype=c.dtype)
    return jnp.maximum(0, 1 - jnp.abs(jnp.clip(c, 0, levels - 1)[:, None] - index[None, :]))


def conv_fan_in(
    x: jax.Array,
    features: int,
    name: str,
    dtype: jnp.dtype,
    *,
    size: int = 3,
    dilation: int = 1,
    bias: bool = True,
) -> jax.Array:
    """Convolution with 'same' padding, [B, H, W, C] -> [B, H, W, features], called inside a compact module.

    Kernel and bias start uniform on +-1 / sqrt(fan_in), PyTorch's default, which NCSN uses.
    """
    uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    bound = (size**2 * x.shape[-1]) ** -0.5
    return nn.Conv(
        features,
        (size, size),
        kernel_dilation=dilation,
        padding="SAME",
        use_bias=bias,
        kernel_init=uniform,
        bias_init=lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
        dtype=dtype,
        name=name,
    )(x)


def _windows(x: jax.Array, join: Callable[[jax.Array, jax.Array], jax.Array], outside: float) -> jax.Array:
    """Each pixel joined with the 5x5 square around it, [B, H, W, C] -> [B, H, W, C].

    It works on one axis at a time, with shifted copies: XLA's own windows take up to 70 times as long on a CPU.
    """
    for axis in (1, 2):
        padding = [(2, 2) if i == axis else (0, 0) for i in range(4)]
        padded, size = jnp.pad(x, padding, constant_values=outside), x.shape[axis]
        x = functools.reduce(join, (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(5)))
    return x


def max_pool(x: jax.Array) -> jax.Array:
    """The maximum of the 5x5 square around each pixel, [B, H, W, C] -> [B, H, W, C]."""
    return _windows(x, jnp.maximum, -jnp.inf)


def mean_pool(x: jax.Array) -> jax.Array:
    """The mean of the 5x5 square around each pixel, with zeros outside the image."""
    return _windows(x, jnp.add, 0) / 25


def stretch(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Bilinear interpolation with aligned corners, [B, H, W, C] -> [B, *shape, C].

    >>> stretch(jnp.array([0.0, 3.0]).reshape(1, 1, 2, 1), (1, 4))[0, 0, :, 0].tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    for axis, size in zip((1, 2), shape, strict=True):
        if (old := x.shape[axis]) != size:
            place = np.linspace(0, old - 1, size)
            weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(old)[None, :])).astype(x.dtype)
            moved = jnp.tensordot(x, weights, (axis, 1), precision="highest")
            x = jnp.moveaxis(moved, -1, axis)
    return x


class ResBlock(nn.Module):
    """Two convolutions, plus a shortcut.

        y = shortcut(x) + conv(elu(norm(conv(elu(norm(x))))))

    `down` goes to F = `features` channels: without dilation the sum is averaged over 2x2 squares and the shortcut is a
    1x1 convolution; a dilated block keeps the size, and its shortcut is a dilated convolution. Without `down` the
    shortcut is the identity.  [B, H, W, C] -> [B, H, W, F] or [B, H / 2, W / 2, F].
    """

    features: int
    norm: Norm
    dtype: jnp.dtype
    dilation: int = 1
    down: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, at: jax.Array | None) -> jax.Array:
        layer = functools.partial(conv_fan_in, dtype=self.dtype, dilation=self.dilation)
        h = layer(nn.elu(self.norm(name="norm1")(x, at)), x.shape[-1], "conv1")
        h = layer(nn.elu(self.norm(name="norm2")(h, at)), self.features, "conv2")
        if not self.down:
            return x + h
        h = layer(x, self.features, "shortcut", size=1 if self.dilation == 1 else 3) + h
        return downsample(h) if self.dilation == 1 else h


class RefineBlock(nn.Module):
    """One stage of the way up (Lin et al. 2017, "RefineNet", figure 3), with ELU and InstanceNorm++.

        RCU    h += conv(elu(norm(conv(elu(norm(h))))))           residual units: two per input, `units` at the end
        MSF    h  = sum of conv(norm(h)), stretched to the first input's size, if there are several inputs
        CRP    h  = p = elu(h);   twice:  p = conv(pool(norm(p))),  h += p

    Only the convolutions of MSF have a bias. The inputs `xs` are [B, H_i, W_i, C_i], the output is [B, H_0, W_0, F]
    with F = `features`.
    """

    features: int
    norm: Norm
    pool: Callable[[jax.Array], jax.Array]
    dtype: jnp.dtype
    units: int = 1

    @nn.compact
    def __call__(self, xs: tuple[jax.Array, ...], at: jax.Array | None) -> jax.Array:
        layer = functools.partial(conv_fan_in, dtype=self.dtype)

        def norm(x: jax.Array, name: str) -> jax.Array:
            return self.norm(name=f"{name}_norm")(x, at)

        def residual(x: jax.Array, name: str, units: int) -> jax.Array:
            for i in range(units):
                h = x
                for j in range(2):
                    one = f"{name}_{i}_{j}"
                    h = layer(nn.elu(norm(h, one)), x.shape[-1], one, bias=False)
                x = x + h
            return x

        def fused(x: jax.Array, name: str) -> jax.Array:
            return stretch(layer(norm(x, name), self.features, name), xs[0].shape[1:3])

        hs = [residual(x, f"adapt{i}", 2) for i, x in enumerate(xs)]
        if len(hs) > 1:
            hs = [sum(fused(h, f"fuse{i}") for i, h in enumerate(hs))]
        h = path = nn.elu(hs[0])
        for i in range(2):
            one = f"pool{i}"
            path = layer(self.pool(norm(path, one)), self.features, one, bias=False)
            h = h + path
        return residual(h, "out", self.units)


def _refine_net(
    x: jax.Array,
    at: jax.Array | None,
    channels: int,
    *,
    norm: Norm,
    refine_norm: Norm,
    pool: Callable[[jax.Array], jax.Array],
    out: int,
    dtype: jnp.dtype,
    remat: bool,
) -> jax.Array:
    """The trunk of both networks, called inside a compact module: [B, H, W, C] -> [B, H, W, out]."""
    kept_block = nn.remat(ResBlock) if remat else ResBlock
    refine = nn.remat(RefineBlock) if remat else RefineBlock
    up = functools.partial(refine, norm=refine_norm, pool=pool, dtype=dtype)

    h, kept = conv_fan_in(x, channels, "conv_in", dtype), []
    for i, (features, dilation) in enumerate([(channels, 1), (2 * channels, 1), (2 * channels, 2), (2 * channels, 4)]):
        block = functools.partial(kept_block, features, norm, dtype, dilation)
        h = block(down=i > 0, name=f"down{i}_0")(h, at)
        h = block(name=f"down{i}_1")(h, at)
        kept.append(h)

    h = up(2 * channels, name="up3")((kept[3],), at)
    h = up(2 * channels, name="up2")((kept[2], h), at)
    h = up(channels, name="up1")((kept[1], h), at)
    h = up(channels, units=3, name="up0")((kept[0], h), at)
    h = nn.elu(norm(name="norm_out")(h, at))
    return conv_fan_in(h, out, "conv_out", dtype).astype(full_precision(dtype))


def _noise(net: RefineNet | RefineNetV2, x: jax.Array, cond: Cond) -> jax.Array:
    """The noise level [B], after checks that x are images with even sides and that there are no labels."""
    name = type(net).__name__
    check_fields(net, channels=2)
    if isinstance(cond, Cond) and (net.num_classes or cond.label is not None):
        raise ValueError(
            f"{name} has no input for class labels: leave num_classes=0 and cond.label=None, or use UNet, NCSNpp or DiT"
        )
    noise, _ = conditioning(net, x, cond)
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"{name} takes images [B, H, W, C] with even sides, not {x.shape}: pad or crop them")
    return noise


class RefineNet(nn.Module):
    """The network of Song & Ermon 2019, "Generative Modeling by Estimating Gradients of the Data Distribution".

    This is the RefineNet (Lin et al. 2017) of appendix A. The noise level selects the constants of every norm:

        down    four stages of two residual blocks, of C, 2C, 2C and 2C channels, C = `channels`; the second halves the
                image, the third and fourth dilate their convolutions by 2 and 4 instead
        up      four refine blocks, from the last stage to the first, each of which joins the output of a stage to the
                output of the previous refine block; pooling takes means
        out     conv(elu(norm(h)))

    The output is the score itself (the target "score"), whose size varies with the noise level. The second paper found
    that the output should be divided by sigma, as `RefineNetV2` does. For 32x32x3 images and 10 levels the network has
    30,117,635 parameters.

    Fields:
        levels: number of noise levels, the same as the process has.
        channels: C.
        dtype: of the arithmetic, "float32" or "bfloat16"; parameters, statistics and output stay float32.
        remat: recompute the inside of every block in the backward pass, which saves memory.
        num_classes: must stay 0; the network has no input for class labels.
        out_channels: channels of the output; None for as many as x has.

    Call:
        `net.apply(params, x, cond)` with x [B, H, W, C] and a `Cond` returns [B, H, W, out_channels]. The noise level
        is its index, where 0 is the least noisy level (in the paper's code it is the noisiest). Between two indices the
        constants are interpolated. There is no dropout, so `train` has no effect.

    Raises:
        TypeError: if x is not an array, if cond is not a `Cond`, or if an integer field holds anything else.
        ValueError: if x is not a floating-point image of even sides, if `channels` < 2 or `levels` < 1, if
            `num_classes` is not 0, if `out_channels` < 1, if the noise level is not [B], or if cond holds something
            that the network has no input for, such as a label.

    >>> net, x, cond = RefineNet(levels=3, channels=2), jnp.zeros((2, 8, 8, 1)), Cond(noise=jnp.zeros(2))
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x, cond)
    >>> jax.eval_shape(net.apply, params, x, cond).shape
    (2, 8, 8, 1)
    """

    condition: ClassVar[str] = "index"  # the noise level must be this entry of `CONDITIONS`
    needs_levels: ClassVar[bool] = True  # the process must be a chain of as many levels

    levels: int
    channels: int = 128
    dtype: str = "float32"
    remat: bool = False
    num_classes: int = 0
    out_channels: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, train: bool = False) -> jax.Array:
        check_fields(self, levels=1)
        noise, out = _noise(self, x, cond), outputs(self, x)
        dtype = jnp.dtype(self.dtype)
        norm = functools.partial(InstanceNormPlus, self.levels)
        return _refine_net(
            x,
            hat(noise.astype(full_precision(dtype)), self.levels),
            self.channels,
            norm=norm,
            refine_norm=norm,
            pool=mean_pool,
            out=out,
            dtype=dtype,
            remat=self.remat,
        )


class RefineNetV2(nn.Module):
    """The network of Song & Ermon 2020, "Improved Techniques for Training Score-Based Generative Models", for 32x32.

    It is the network of the first paper (`RefineNet`) without conditioned norms. Only the last line depends on the
    noise level,

        output = h(x) / sigma

    which is technique 3. Its refine blocks have no norms, and they pool with maxima. For 32x32x3 images it has
    29,694,083 parameters.

    The derivative of a maximum in x jumps at places that move with the parameters. Automatic differentiation omits the
    contribution of these jumps to the gradient of an expected derivative: the gradient of E[d/dx max(x, b)] = P(x > b)
    in b comes out as 0. The losses `dsm` and `fdssm` are therefore suitable for this network. With `ssm` and `ism`, or
    as an energy, its gradients are biased; those of `RefineNet`, which pools with means, are not.

    Fields:
        channels: channels of the first stage; the other three have twice as many.
        dtype: of the arithmetic, "float32" or "bfloat16"; parameters, statistics and output stay float32.
        remat: recompute the inside of every block in the backward pass, which saves memory.
        num_classes: must stay 0; the network has no input for class labels.
        out_channels: channels of the output; None for as many as x has.

    Call:
        `net.apply(params, x, cond)` with x [B, H, W, C] and a `Cond` returns [B, H, W, out_channels]. The noise level
        is log(sigma). The first C channels of the output are divided by sigma, and are the score; channels beyond them
        are not divided. There is no dropout, so `train` has no effect.

    Raises:
        TypeError: if x is not an array, if cond is not a `Cond`, or if an integer field holds anything else.
        ValueError: if x is not a floating-point image of even sides, if `channels` < 2, if `num_classes` is not 0, if
            `out_channels` < 1, if the noise level is not [B], or if cond holds something that the network has no input
            for, such as a label.

    >>> net, x, cond = RefineNetV2(channels=2), jnp.zeros((2, 8, 8, 1)), Cond(noise=jnp.zeros(2))
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x, cond)
    >>> jax.eval_shape(net.apply, params, x, cond).shape
    (2, 8, 8, 1)
    """

    condition: ClassVar[str] = "sigma"  # the noise level must be this entry of `CONDITIONS`
    target: ClassVar[str] = "score"  # what the network predicts, after the division by sigma

    channels: int = 128
    dtype: str = "float32"
    remat: bool = False
    num_classes: int = 0
    out_channels: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, train: bool = False) -> jax.Array:
        noise, out = _noise(self, x, cond), outputs(self, x)
        h = _refine_net(
            x,
            None,
            self.channels,
            norm=InstanceNormPlus,
            refine_norm=_no_norm,
            pool=max_pool,
            out=out,
            dtype=jnp.dtype(self.dtype),
            remat=self.remat,
        )
        # The first channels are the score; further channels do not scale with 1 / sigma.
        first = (np.arange(h.shape[-1]) < x.shape[-1])[None, :]
        return h * jnp.where(first, jnp.exp(-noise.astype(h.dtype))[:, None], 1)[:, None, None, :]


def _no_norm(name: str) -> Callable[[jax.Array, jax.Array | None], jax.Array]:
    return lambda x, at: x
