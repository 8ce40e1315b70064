"""A residual perceptron for points: two-dimensional problems, and any other data without pixels."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from scoregen.nets.layers import dense, label_embedding, sinusoidal


class MLP(nn.Module):
    """Residual perceptron conditioned on one number an example.

        e    = swish(dense(sinusoidal(c)) + embedding(label))         without the label if none are given
        h    = dense(x)
        a, b = dense(e)
        h   += dense(dropout(swish((1 + a) h + b)))        this line and the one before `depth` times
        out  = dense(swish(h))

    The sinusoidal features (Ho et al. 2020) have frequencies from 1 to 1e-4 radians a unit, so that the same
    network serves a log-SNR within some ten units of 0 and an index up to 1000, and is smooth in both. The
    inner layers keep the variance of what they receive (fan-in scaling: with a fan average, a plane's two
    coordinates would enter at a tenth of their size); the last layer starts at (nearly) zero. Each layer is
    modulated by a scale and a shift of its own ("FiLM", Perez et al. 2018), which learns faster than adding e
    once.

    Fields:
        width: hidden units.
        depth: residual layers.
        embedding: sinusoidal features of c.
        dropout: rate inside the residual layers, with `train=True` only.

    Call:
        `net.apply(params, x, c, train=False, rngs={"dropout": key})` with x [B, ...] (about unit scale) and c
        [B] returns the shape of x, or with `heads` outputs an input, so many times its last axis. It is float32,
        or float64 if x, c or the parameters are (with `jax.enable_x64`). Points of more than one axis are
        flattened on the way. With `labels`, integers [B], and the number of `classes`, the network is told the
        class too; the label `classes` is none.

    Raises:
        ValueError: if x has no axis beside B, or c is not [B].

    >>> net, x, c = MLP(width=8), jnp.ones((5, 2)), jnp.zeros(5)
    >>> params = jax.eval_shape(net.init, jax.random.key(0), x, c)
    >>> jax.eval_shape(net.apply, params, x, c).shape
    (5, 2)
    """

    width: int = 96
    depth: int = 2
    embedding: int = 64
    dropout: float = 0.0

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
        if x.ndim < 2:
            raise ValueError(f"the mlp takes points [B, ...] with at least one axis beside B, not {x.shape}")
        if c.shape != x.shape[:1]:
            raise ValueError(f"{x.shape[0]} points need as many conditioning values, not the shape {c.shape}")
        inner = nn.initializers.lecun_normal()
        points = x.reshape(x.shape[0], -1)
        # Half as many units as features: e is mapped to every layer, and would else cost as much as the layers.
        e = nn.Dense(self.embedding // 2, kernel_init=inner, name="time")(sinusoidal(c, self.embedding))
        if labels is not None:
            e = e + label_embedding(labels, classes, self.embedding // 2)
        e = nn.swish(e)
        h = nn.Dense(self.width, kernel_init=inner, name="in")(points)
        for i in range(self.depth):
            a, b = jnp.split(nn.Dense(2 * self.width, kernel_init=inner, name=f"film{i}")(e), 2, axis=-1)
            y = nn.Dropout(self.dropout, deterministic=not train)(nn.swish((1 + a) * h + b))
            h = h + nn.Dense(self.width, kernel_init=inner, name=f"residual{i}")(y)
        out = dense(heads * points.shape[-1], scale=0.0, name="out")(nn.swish(h))
        return out.reshape(*x.shape[:-1], heads * x.shape[-1])
