"""Inception-v3, in the form in which the Frechet Inception distance was published."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoregen.nets.pretrained import PRECISION, conv, max_pool, mean_pool


class Conv(NamedTuple):
    """A convolution with bias and relu."""

    name: str
    features: int
    window: tuple[int, int] = (1, 1)
    stride: int = 1

    def __call__(self, x: jax.Array) -> jax.Array:
        padding = "VALID" if self.stride == 2 else "SAME"
        return nn.relu(conv(self.features, self.window, self.stride, padding, name=self.name)(x))


class Split(NamedTuple):
    """Convolutions of the same input, whose outputs are joined."""

    parts: tuple[Conv, ...]

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([part(x) for part in self.parts], axis=-1)


Layer = Callable[[jax.Array], jax.Array]
Branch = tuple[Layer, ...]


class Mixed(nn.Module):
    """Branches of the same input, whose outputs are joined, [B, H, W, C] -> [B, H', W', C']."""

    branches: tuple[Branch, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = []
        for branch in self.branches:
            y = x
            for layer in branch:
                y = layer(y)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=-1)


def halve(x: jax.Array) -> jax.Array:
    """Half the size, rounded down, by a maximum."""
    return max_pool(x, stride=2)


def _block_a(pooled: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        (mean_pool, Conv("branch_pool", pooled)),
    )


def _block_b() -> tuple[Branch, ...]:
    return (
        (Conv("branch3x3", 384, (3, 3), 2),),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2)),
        (halve,),
    )


def _block_c(inner: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", inner), Conv("branch7x7_2", inner, (1, 7)), Conv("branch7x7_3", 192, (7, 1))),
        (
            Conv("branch7x7dbl_1", inner),
            Conv("branch7x7dbl_2", inner, (7, 1)),
            Conv("branch7x7dbl_3", inner, (1, 7)),
            Conv("branch7x7dbl_4", inner, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (mean_pool, Conv("branch_pool", 192)),
    )


def _block_d() -> tuple[Branch, ...]:
    return (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ),
        (halve,),
    )


def _block_e(pool: Layer) -> tuple[Branch, ...]:
    def split(name: str) -> Split:
        return Split((Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))))

    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), split("branch3x3_2")),
        (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)), split("branch3x3dbl_3")),
        (pool, Conv("branch_pool", 192)),
    )


# In the network of the published FID, the last block has a maximum where the one before has a mean.
BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _block_b(),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _block_d(),
    "Mixed_7b": _block_e(mean_pool),
    "Mixed_7c": _block_e(max_pool),
}


class Inception(nn.Module):
    """Inception-v3 (Szegedy et al. 2015, arXiv:1512.00567) as the Frechet Inception distance uses it, for evaluation.

    It is the TensorFlow network of 2015-12-05 (Heusel et al. 2017, arXiv:1706.08500). Unlike in later versions, its
    mean pools do not count the padding, and the last block pools by a maximum. Each batch norm (eps = 0.001) is folded
    into its convolution. The names of layers are those of torchvision.

    Call:
        `net.apply(params, x)` with x [B, 299, 299, 3] in about [-1, 1] returns (logits [B, 1008], features [B, 2048]):
        the features are the means over the pixels of the last block. Smaller and larger images, of at least 75 pixels,
        are possible too. In float32, at full precision on every device.

    >>> x = jnp.zeros((2, 299, 299, 3))
    >>> params = jax.eval_shape(Inception().init, jax.random.key(0), x)
    >>> [out.shape for out in jax.eval_shape(Inception().apply, params, x)]
    [(2, 1008), (2, 2048)]
    """

    classes: int = 1008

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.relu(conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x))
        x = nn.relu(conv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x))
        x = halve(nn.relu(conv(64, (3, 3), name="Conv2d_2b_3x3")(x)))
        x = nn.relu(conv(80, name="Conv2d_3b_1x1")(x))
        x = halve(nn.relu(conv(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)))
        for name, branches in BLOCKS.items():
            x = Mixed(branches, name=name)(x)
        features = x.mean((1, 2))
        return nn.Dense(self.classes, precision=PRECISION, name="fc")(features), features
