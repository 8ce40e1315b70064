"""The conditioning of a network: the noise level, and anything else that it is told about each example."""

from __future__ import annotations

from typing import NamedTuple

from jax import Array


class Cond(NamedTuple):
    """What a network is told about each example: a pytree, so it passes through `jit`, `vmap` and `grad`.

    `None` means that nothing is given. A network refuses every part that it has no input for.

    Fields:
        noise: one conditioning value per example, [B], for example an index, a log-SNR or a log sigma. The model's
            `condition` decides which.
        label: the class of each example, integers [B]. The label `num_classes` stands for no class.
        context: a vector of about unit scale per example, floating-point [B, K]. A row of NaN stands for no context.
        augment: how each example was augmented, [B, 9], with zeros for no augmentation.

    >>> import jax, jax.numpy as jnp
    >>> cond = Cond(noise=jnp.zeros(2), label=jnp.array([3, 1]))
    >>> jax.tree.map(jnp.shape, cond)
    Cond(noise=(2,), label=(2,), context=None, augment=None)
    """

    noise: Array | None = None
    label: Array | None = None
    context: Array | None = None
    augment: Array | None = None
