"""The RefineNets of NCSN (Song & Ermon 2019) and NCSNv2 (Song & Ermon 2020): `RefineNet` and `RefineNetV2`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scoregen.nets.layers import downsample, full_precision

# norm(name=...) is a layer (x [B, H, W, C], at) -> [B, H, W, C]; `at` [B, L] says which noise level it is, or is None.
Norm = Callable[..., Callable[[jax.Array, jax.Array | None], jax.Array]]


class InstanceNormPlus(nn.Module):
    """InstanceNorm++: every channel is normalised, and what its mean was is given back (Song & Ermon 2019, appendix A).

        y = gamma ((x - mu) / sqrt(var + eps) + alpha (mu - m) / sqrt(v + eps)) + beta

    with mu and var the mean and the (biased) variance of one channel of one example over its pixels, m the mean of an
    example's C means mu, and v their variance, with C - 1 in the denominator. Statistics are in float32 whatever the
    input, but for float64. gamma and alpha start as N(1, 0.02^2), beta at 0. x [B, H, W, C] -> [B, H, W, C].

    With `levels` there are so many of each (gamma, alpha, beta), the rows of a table, and `at` [B, levels] mixes them.

    Raises:
        ValueError: if there is but one channel, whose mean has no variance, or if it has levels and is not told which.
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
                raise ValueError(f"a norm of {self.levels} levels has to be told at which one it is")
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
    """The weight of each of the levels 0 .. L-1 at an index c: [B] -> [B, L], held within the range.

    An integer is one level, and what lies between is mixed of two, as the tables of a chain are.

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

    It starts as PyTorch's do, and so NCSN's: uniform on +-1 / sqrt(fan_in), the bias too.
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
    """Each pixel joined with all of the 5x5 square around it, [B, H, W, C] -> [B, H, W, C].

    One axis after the other, of shifted copies: on a CPU XLA's own windows take up to seventy times as long.
    """
    for axis in (1, 2):
        padding = [(2, 2) if i == axis else (0, 0) for i in range(4)]
        padded, size = jnp.pad(x, padding, constant_values=outside), x.shape[axis]
        x = functools.reduce(join, (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(5)))
    return x


def max_pool(x: jax.Array) -> jax.Array:
    """The greatest of the 5x5 square around each pixel, [B, H, W, C] -> [B, H, W, C]."""
    return _windows(x, jnp.maximum, -jnp.inf)


def mean_pool(x: jax.Array) -> jax.Array:
    """The mean of the 5x5 square around each pixel, where what lies outside the image counts as 0."""
    return _windows(x, jnp.add, 0) / 25


def stretch(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Bilinear interpolation whose corners stay corners, [B, H, W, C] -> [B, *shape, C].

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
    1x1 convolution; a dilated block keeps the size, and its shortcut is a dilated convolution. Else the shortcut is
    the identity.  [B, H, W, C] -> [B, H, W, F] or [B, H / 2, W / 2, F].
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

        RCU    h += conv(elu(norm(conv(elu(norm(h))))))           residual units: two an input, `units` at the end
        MSF    h  = sum of conv(norm(h)), stretched to the first input's size, where there are several
        CRP    h  = p = elu(h);   twice:  p = conv(pool(norm(p))),  h += p

    Convolutions have no bias but for those of MSF.  `xs`, of [B, H_i, W_i, C_i] -> [B, H_0, W_0, F], F = `features`.
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
    """What both networks are but for the noise, called inside a compact module: [B, H, W, C] -> [B, H, W, out]."""
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


def _check(name: str, x: jax.Array, c: jax.Array, labels: jax.Array | None) -> None:
    if x.ndim != 4 or x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"the {name} takes images [B, H, W, C] with even sides, not {x.shape}")
    if c.shape != x.shape[:1]:
        raise ValueError(f"{x.shape[0]} images need as many conditioning values, not the shape {c.shape}")
    if labels is not None:
        raise ValueError(f"the {name} knows no classes: take the unet, or leave the labels out")


class RefineNet(nn.Module):
    """The network of Song & Ermon 2019, "Generative Modeling by Estimating Gradients of the Data Distribution".

    A RefineNet (Lin et al. 2017) as appendix A has it, in every layer of which the noise level picks the constants of
    the norm:

        down    four stages of two residual blocks, of C, 2C, 2C and 2C channels, C = `channels`; the second halves the
                image, the third and fourth dilate their convolutions by 2 and 4 instead
        up      four refine blocks, from the last stage to the first, each of which joins a stage's output to what
                comes from below; the poolings are means
        out     conv(elu(norm(h)))

    It gives the score itself (the target `score`), of any size: the second of the two papers found that its output
    should be divided by sigma, which `RefineNetV2` does. For 32x32x3 images and 10 levels it has 30,117,635
    parameters.

    Fields:
        levels: how many noise levels there are, which is the process's affair.
        channels: C.
        dtype: of the arithmetic, "float32" or "bfloat16"; parameters, statistics and output stay float32.
        remat: compute what is in a block again on the way back, to save memory.

    Call:
        `net.apply(params, x, c)` with x [B, H, W, C] and c [B], the index of the noise level, 0 the least noisy (in
        the paper's code it is the noisiest), returns [B, H, W, C], or [B, H, W, heads C] if `heads` is given. Between
        two indices the constants are mixed. There is no dropout, so `train` changes nothing.

    Raises:
        ValueError: if x is no image of even sides, if c is not [B], or if there are labels, which it does not know.

    >>> net, x, c = RefineNet(levels=3, channels=2), jnp.zeros((2, 8, 8, 1)), jnp.zeros(2)
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x, c)
    >>> jax.eval_shape(net.apply, params, x, c).shape
    (2, 8, 8, 1)
    """

    condition: ClassVar[str] = "index"  # the one of `CONDITIONS` that it must be told

    levels: int
    channels: int = 128
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
        _check("refinenet", x, c, labels)
        dtype = jnp.dtype(self.dtype)
        norm = functools.partial(InstanceNormPlus, self.levels)
        return _refine_net(
            x,
            hat(c.astype(full_precision(dtype)), self.levels),
            self.channels,
            norm=norm,
            refine_norm=norm,
            pool=mean_pool,
            out=heads * x.shape[-1],
            dtype=dtype,
            remat=self.remat,
        )


class RefineNetV2(nn.Module):
    """The network of Song & Ermon 2020, "Improved Techniques for Training Score-Based Generative Models", for 32x32.

    That of the first paper (`RefineNet`) without anything that depends on the noise but for the last line,

        output = h(x) / sigma

    which is technique 3. Its refine blocks have no norms and pool with maxima. For 32x32x3 images it has 29,694,083
    parameters.

    The derivative of a maximum in x jumps, at places that move with the parameters. What the jumps add to the gradient
    of an expected derivative, automatic differentiation leaves out: of E[d/dx max(x, b)] = P(x > b) it has the
    gradient 0 in b. So `dsm` suits this network, and `fdssm`; under `ssm`, `ism` or as an energy its gradients have a
    bias, which `RefineNet` with its means has not.

    Fields:
        channels: of the first stage; the other three have twice as many.
        dtype: of the arithmetic, "float32" or "bfloat16"; parameters, statistics and output stay float32.
        remat: compute what is in a block again on the way back, to save memory.

    Call:
        `net.apply(params, x, c)` with x [B, H, W, C] and c [B], the logarithm of sigma, returns the score
        [B, H, W, C]. If `heads` is given it is [B, H, W, heads C], of which the first C are divided by sigma. There is
        no dropout, so `train` changes nothing.

    Raises:
        ValueError: if x is no image of even sides, if c is not [B], or if there are labels, which it does not know.

    >>> net, x, c = RefineNetV2(channels=2), jnp.zeros((2, 8, 8, 1)), jnp.zeros(2)
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x, c)
    >>> jax.eval_shape(net.apply, params, x, c).shape
    (2, 8, 8, 1)
    """

    condition: ClassVar[str] = "sigma"  # the one of `CONDITIONS` that it must be told
    target: ClassVar[str] = "score"  # what it gives, being divided by sigma

    channels: int = 128
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
        _check("refinenet_v2", x, c, labels)
        h = _refine_net(
            x,
            None,
            self.channels,
            norm=InstanceNormPlus,
            refine_norm=_no_norm,
            pool=max_pool,
            out=heads * x.shape[-1],
            dtype=jnp.dtype(self.dtype),
            remat=self.remat,
        )
        # The score comes first; what other heads give is not of its size.
        first = (np.arange(h.shape[-1]) < x.shape[-1])[None, :]
        return h * jnp.where(first, jnp.exp(-c.astype(h.dtype))[:, None], 1)[:, None, None, :]


def _no_norm(name: str) -> Callable[[jax.Array, jax.Array | None], jax.Array]:
    return lambda x, at: x
