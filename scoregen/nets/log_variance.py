"""How uncertain the loss is at each noise level, learned along with the network."""

from __future__ import annotations

import flax.linen as nn
import jax

from scoregen.nets.layers import dense, sinusoidal


class LogVariance(nn.Module):
    """u(c) of the loss L / e^u + u (Kendall & Gal 2018; Karras et al. 2024, "EDM2", eqs. 14 and 21).

    Its minimum over u is log L, so every noise level comes to contribute alike, whatever weight it was given. One
    linear layer on sinusoidal features of c, starting at 0; it is needed in training only.

    Call:
        `net.apply(params, c)` with c [B] returns [B].

    >>> import jax.numpy as jnp
    >>> net = LogVariance()
    >>> net.apply(net.init(jax.random.key(0), jnp.ones(3)), jnp.ones(3)).shape
    (3,)
    """

    features: int = 64

    @nn.compact
    def __call__(self, c: jax.Array) -> jax.Array:
        return dense(1, scale=0.0, name="out")(sinusoidal(c, self.features))[:, 0]
