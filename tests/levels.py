"""Noise levels for tests of any process, computed without the package's grids."""

import jax.numpy as jnp
import numpy as np


def levels(process, n=None):
    """`n` times from the noisiest to the least noisy, `[n]`; by default all levels of a chain (never more), else 1000.

    They are even in the index or the time. If the time is sigma, from far below 1 to far above, they are even in its
    seventh root.
    """
    low, high = process.ends
    if process.discrete:
        return jnp.asarray(np.floor(np.linspace(high, 0, min(n or high + 1, high + 1)) + 0.5), jnp.int32)
    fraction = np.linspace(0, 1, n or 1000)
    if high <= 1:
        return jnp.asarray((1 - fraction) * high + fraction * low)  # both ends to the last digit
    return jnp.asarray(np.clip((high ** (1 / 7) + fraction * (low ** (1 / 7) - high ** (1 / 7))) ** 7, low, high))
