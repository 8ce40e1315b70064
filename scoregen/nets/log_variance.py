"""How uncertain the loss is at each noise level, learned along with the network."""

from __future__ import annotations

import flax.linen as nn
import jax

from scoregen.nets.layers import dense, sinusoidal


class LogVariance(nn.Module):
    """u(c) of the loss L / e^u + u (Kendall & Gal 2018; Karras et al. 2024, "EDM2", eqs. 14 and 21).

    The minimum is at u = log L, so all noise levels come to contribute equally, whatever their weights were. u is one
    linear layer on sinusoidal features of c. It starts at 0 and is needed only in training.

    Call:
        `net.apply(params, c)` with c [B] returns [B].

    Raises:
        ValueError: if c is not [B], or if `features` < 4.

    >>> import jax.numpy as jnp
    >>> net = LogVariance()
    >>> net.apply(net.init(jax.random.key(0), jnp.ones(3)), jnp.ones(3)).shape
    (3,)
    """

    features: int = 64

    @nn.compact
    def __call__(self, c: jax.Array) -> jax.Array:
        return dense(1, scale=0.0, name="out")(sinusoidal(c, self.features))[:, 0]
