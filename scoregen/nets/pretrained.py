"""What the pretrained image classifiers share: convolutions with a folded batch norm, and pooling.

These networks are only evaluated, so each batch norm is folded into the convolution before it:

    gamma (W x - mean) / sqrt(var + eps) + beta = (s W) x + (beta - s mean),     s = gamma / sqrt(var + eps)
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

PRECISION = jax.lax.Precision.HIGHEST  # a GPU's and a TPU's default rounds float32 to fewer bits


def conv(
    features: int,
    window: tuple[int, int] = (1, 1),
    stride: int = 1,
    padding: str = "SAME",
    name: str | None = None,
) -> nn.Conv:
    """Convolution with a bias, [B, H, W, C] -> [B, H', W', features]; "SAME" pads as TensorFlow does."""
    return nn.Conv(features, window, stride, padding, precision=PRECISION, name=name)


class Depthwise(nn.Module):
    """Convolution of each channel with its own window, and a bias, [B, H, W, C] -> [B, H / stride, W / stride, C].

    It is padded as in TensorFlow.
    """

    window: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, window, stride = x.shape[-1], self.window, self.stride
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (window, window, 1, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        sides = jax.lax.padtype_to_pads(x.shape[1:3], (window,) * 2, (stride,) * 2, "SAME")
        x = jnp.pad(x, ((0, 0), *sides, (0, 0)))
        last = [n - window + 1 for n in x.shape[1:3]]
        # Shifted sums: XLA makes one loop of them, and its convolution by channels is many times slower on a CPU.
        taps = (
            kernel[None, None, i, j] * x[:, i : i + last[0] : stride, j : j + last[1] : stride]
            for i in range(window)
            for j in range(window)
        )
        return functools.reduce(jnp.add, taps) + bias.reshape(1, 1, 1, channels)


def folded(
    kernel: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias, float32, of a convolution that is followed by a batch norm with stored statistics.

    The kernel is [height, width, inputs, outputs]; the other arrays are [outputs]. Computed in float64.

    >>> one = np.ones(1)
    >>> kernel, bias = folded(np.ones((1, 1, 1, 1)), 2 * one, 3 * one, 4 * one, 15 * one, 1.0)
    >>> kernel.item(), bias.item()
    (0.5, 1.0)
    """
    scale = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + eps)
    return (kernel * scale).astype(np.float32), (beta - scale * mean).astype(np.float32)


def _window3(x: jax.Array, join: Callable[[jax.Array, jax.Array], jax.Array], stride: int = 1) -> jax.Array:
    """`join` over windows of 3x3 pixels that lie within x, [B, H, W, C] -> [B, (H - 3) // stride + 1, ..., C]."""
    for axis in (1, 2):
        last = x.shape[axis] - 2
        # Shifted slices, one axis at a time: XLA makes one loop of them, and its windowed reductions are slow on a CPU.
        slices = (jax.lax.slice_in_dim(x, k, k + last, stride, axis) for k in range(3))
        x = functools.reduce(join, slices)
    return x


def max_pool(x: jax.Array, stride: int = 1) -> jax.Array:
    """Maximum over windows of 3x3 pixels. With stride 1, windows reach beyond the edges; with stride 2 they do not.

    >>> max_pool(jnp.arange(4.0).reshape(1, 1, 4, 1))[0, 0, :, 0].tolist()
    [1.0, 2.0, 3.0, 3.0]
    """
    if stride == 1:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return _window3(x, jnp.maximum, stride)


def mean_pool(x: jax.Array) -> jax.Array:
    """Mean over windows of 3x3 pixels, of those pixels of the window that are in the image.

    >>> mean_pool(jnp.arange(4.0).reshape(1, 1, 4, 1))[0, 0, :, 0].tolist()
    [0.5, 1.0, 2.0, 2.5]
    """
    counts = [np.minimum(np.arange(n), 1) + 1 + np.minimum(np.arange(n)[::-1], 1) for n in x.shape[1:3]]
    share = (1 / np.multiply.outer(*counts)).astype(np.float32)[None, :, :, None]
    return _window3(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), jnp.add) * share
