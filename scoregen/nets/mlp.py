"""A residual perceptron for points: two-dimensional problems, and any other data without pixels."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoregen.cond import Cond
from scoregen.errors import check_fields, check_fraction
from scoregen.nets.layers import add_context, add_label, conditioning, dense, outputs, sinusoidal


class MLP(nn.Module):
    """Residual perceptron conditioned on one number per example, and optionally on a class and a context vector.

        e    = swish(dense(sinusoidal(noise)) + embedding(label) + f(context))
        h    = dense(x)
        a, b = dense(e)
        h   += dense(dropout(swish((1 + a) h + b)))        (this line and the line before it, `depth` times)
        out  = dense(swish(h))

    There is no embedding if `num_classes` is 0, and no perceptron f (see `add_context`) if `context_dim` is 0.

    The sinusoidal features (Ho et al. 2020) have frequencies from 1 to 1e-4 radians per unit. The same network
    therefore serves a log-SNR within some ten units of 0 and an index up to 1000, and is smooth in both. The inner
    layers preserve the variance of their input (fan-in scaling: with a fan average, the two coordinates of a plane
    would enter at a fifth of their size). The last layer starts at (nearly) zero. Each layer is modulated by its own
    scale and shift ("FiLM", Perez et al. 2018), which learns faster than adding e once.

    Fields:
        width: hidden units.
        depth: residual layers.
        embedding: number of sinusoidal features of the noise level.
        dropout: rate inside the residual layers, with `train=True` only.
        num_classes: number of classes; 0 for a network without class labels.
        context_dim: numbers of the context vector; 0 for a network without one.
        out_channels: size of the last axis of the output; None for the size that x has.

    Call:
        `net.apply(params, x, cond, train=False, rngs={"dropout": key})` with x [B, ..., C] of about unit scale and a
        `Cond` returns [B, ..., out_channels]. The output is float32, or float64 if x, the noise level, the
        context or the parameters are (with `jax.enable_x64`). Points of more than one axis are flattened internally.

    Raises:
        TypeError: if x is not an array, if cond is not a `Cond`, or if an integer field holds anything else.
        ValueError: if x has no axis beside B or is not floating-point, if `embedding` < 4, `width` < 1 or `depth` < 0,
            if `num_classes`, `context_dim` or `out_channels` is out of range, if the noise level is not [B], or if cond
            holds something that the network has no input for.

    >>> net, x, cond = MLP(width=8), jnp.ones((5, 2)), Cond(noise=jnp.zeros(5))
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x, cond)
    >>> jax.eval_shape(net.apply, params, x, cond).shape
    (5, 2)
    """

    width: int = 96
    depth: int = 2
    embedding: int = 64
    dropout: float = 0.0
    num_classes: int = 0
    context_dim: int = 0
    out_channels: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, cond: Cond, train: bool = False) -> jax.Array:
        check_fraction(dropout=self.dropout)
        check_fields(self, width=1, depth=0, embedding=4)
        noise, cond = conditioning(self, x, cond, axes=())
        out = outputs(self, x)
        inner = nn.initializers.lecun_normal()
        points = x.reshape(x.shape[0], -1)
        # Half as many units as features: mapping e to every layer would otherwise cost as much as the layers.
        e = nn.Dense(self.embedding // 2, kernel_init=inner, name="time")(sinusoidal(noise, self.embedding))
        e = nn.swish(add_context(add_label(e, cond.label, self.num_classes), cond.context))
        h = nn.Dense(self.width, kernel_init=inner, name="in")(points)
        for i in range(self.depth):
            a, b = jnp.split(nn.Dense(2 * self.width, kernel_init=inner, name=f"film{i}")(e), 2, axis=-1)
            y = nn.Dropout(self.dropout, deterministic=not train)(nn.swish((1 + a) * h + b))
            h = h + nn.Dense(self.width, kernel_init=inner, name=f"residual{i}")(y)
        h = dense(math.prod(x.shape[1:-1]) * out, scale=0.0, name="out")(nn.swish(h))
        return h.reshape(*x.shape[:-1], out)
