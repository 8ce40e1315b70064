"""EfficientNet-Lite0."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax

from scoregen.nets.pretrained import PRECISION, Depthwise, conv


class Stage(NamedTuple):
    """Blocks of one size: the first has the stride, and the channels are widened by `expand` within each block."""

    repeats: int
    window: int
    stride: int
    expand: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Block(nn.Module):
    """Inverted residual (Sandler et al. 2018, arXiv:1801.04381): widen, filter each channel, and project.

        y = project(relu6(depthwise(relu6(expand(x)))))  (+ x, where the shape is the same)

    [B, H, W, C] -> [B, H / stride, W / stride, features].
    """

    window: int
    stride: int
    expand: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y, wide = x, x.shape[-1] * self.expand
        if self.expand > 1:
            y = nn.relu6(conv(wide, name="expand")(y))
        y = nn.relu6(Depthwise(self.window, self.stride, name="depthwise")(y))
        y = conv(self.features, name="project")(y)
        return x + y if x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, for evaluation: EfficientNet-B0 (Tan & Le 2019, arXiv:1905.11946) for small devices.

    It has no squeeze-and-excitation, and relu6 in place of swish. Each batch norm (eps = 0.001) is folded into its
    convolution, and convolutions are padded as in TensorFlow.

    Call:
        `net.apply(params, x)` with x [B, 224, 224, 3] in about [-1, 1] returns (logits [B, 1000], features [B, 1280]):
        the features are the means over the pixels of the last convolution. Other sizes are possible too. In float32, at
        full precision on every device.

    >>> import jax.numpy as jnp
    >>> x = jnp.zeros((2, 224, 224, 3))
    >>> params = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), x)
    >>> [out.shape for out in jax.eval_shape(EfficientNetLite0().apply, params, x)]
    [(2, 1000), (2, 1280)]
    """

    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.relu6(conv(32, (3, 3), 2, name="stem")(x))
        number = 0
        for stage in STAGES:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                x = Block(stage.window, stride, stage.expand, stage.features, name=f"block{number}")(x)
                number += 1
        features = nn.relu6(conv(1280, name="head")(x)).mean((1, 2))
        return nn.Dense(self.classes, precision=PRECISION, name="fc")(features), features
