"""A small image classifier whose pooled activations serve as features."""

from __future__ import annotations

import flax.linen as nn
import jax

from scoregen.errors import check_fields
from scoregen.nets.layers import GroupNorm, conv, dense, downsample


class Classifier(nn.Module):
    """Convolutional classifier, small enough to train in about a minute on two cores.

        stage     swish(norm(conv(x))), twice
        features  mean over pixels of the last stage
        logits    dense(features)

    Images with sides of 16 pixels or more are first halved by a convolution of stride 2. Then stages
    alternate with 2x2 average pooling until a side has 4 pixels or fewer: two stages for 8x8, three for
    32x32. The last stage has `features` channels and the earlier ones `width`.

    Fields:
        classes: number of classes.
        width: channels of all stages but the last.
        features: number of features, F.

    Call:
        `net.apply(params, x)` with x [B, H, W, C] of about unit scale returns (logits [B, classes], features
        [B, F]), both float32.

    Raises:
        TypeError: if a field is not an integer.
        ValueError: if x is not an image, if a field is below 1, or if `width` or `features` is above 8
            and not a multiple of 8.

    >>> import jax.numpy as jnp
    >>> net, x = Classifier(classes=10, features=32), jnp.zeros((2, 8, 8, 1))
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x)
    >>> [out.shape for out in jax.eval_shape(net.apply, params, x)]
    [(2, 10), (2, 32)]
    """

    classes: int = 10
    width: int = 32
    features: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        check_fields(self, classes=1, width=1, features=1)
        if x.ndim != 4:
            raise ValueError(f"Classifier takes images [B, H, W, C], not {x.shape}")
        stride = 2 if min(x.shape[1:3]) >= 16 else 1
        while True:
            last = min(x.shape[1] // stride, x.shape[2] // stride) <= 4
            width = self.features if last else self.width
            for _ in range(2):
                x = nn.swish(GroupNorm(groups=8)(conv(width, stride=stride)(x)))
                stride = 1
            if last:
                break
            x = downsample(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2])
        features = x.mean((1, 2))
        return dense(self.classes, name="logits")(features), features
