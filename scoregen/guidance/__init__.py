"""Guidance: extra knowledge about x0, put into every estimate of x0.

A wrapper is called as `wrapper(denoiser) -> Denoiser`, so it works with every sampler, and wrappers compose. The
knowledge may be the range of the data (`Clip`, `DynamicThreshold`), a class (`ClassifierFree`), or a linear measurement
y = A x0 + noise (`Replace`, `Posterior`): pixels for inpainting, grey values for colorization, any matrix.
"""

from scoregen.guidance.measurements import (
    CONTROLS,
    METHODS,
    SPREADS,
    Colorize,
    Control,
    Grey,
    Inpaint,
    Linear,
    Matrix,
    Pixels,
    Posterior,
    Replace,
)
from scoregen.guidance.wrappers import X0S, ClassifierFree, Clip, DynamicThreshold, Free, Wrapper

__all__ = [
    "CONTROLS",
    "METHODS",
    "SPREADS",
    "X0S",
    "ClassifierFree",
    "Clip",
    "Colorize",
    "Control",
    "DynamicThreshold",
    "Free",
    "Grey",
    "Inpaint",
    "Linear",
    "Matrix",
    "Pixels",
    "Posterior",
    "Replace",
    "Wrapper",
]
