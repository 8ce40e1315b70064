"""Tools to test your own parts: exact solutions, and checks of a single part.

`TWO_MODES.denoiser(process)` is an exact denoiser under any process, to test a sampler or a likelihood.
`check_process`, `check_target` and `check_loss` test a new part, and report the property that does not hold.

>>> import jax.numpy as jnp
>>> from scoregen.process import VP
>>> TWO_MODES.denoiser(VP())(jnp.zeros((3, 2)), 0.5).score.shape
(3, 2)
"""

from scoregen.testing.conformance import check_loss, check_process, check_target
from scoregen.testing.oracle import TWO_MODES, Mixture, gaussian

__all__ = ["TWO_MODES", "Mixture", "check_loss", "check_process", "check_target", "gaussian"]
