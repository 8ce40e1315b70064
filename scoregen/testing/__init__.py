"""For whoever adds a part: closed-form truth, and checks of one part by itself.

`TWO_MODES.denoiser(process)` is an exact denoiser under any process, to try a sampler or a likelihood on.
`check_process`, `check_target` and `check_loss` try a new part, and say what does not hold.

>>> from scoregen.losses import EpsilonMSE
>>> check_loss(EpsilonMSE())
"""

from scoregen.testing.conformance import check_loss, check_process, check_target
from scoregen.testing.oracle import TWO_MODES, Mixture, gaussian

__all__ = ["TWO_MODES", "Mixture", "check_loss", "check_process", "check_target", "gaussian"]
