"""The noise levels of an NCSN, and the step of its sampler, from the data: the techniques, and their command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoregen.contrib.design.techniques import (
        Levels,
        coverage,
        design,
        distance_bounds,
        largest_distance,
        levels,
        ratio,
        settled,
        step_size,
    )

__all__ = [
    "Levels",
    "coverage",
    "design",
    "distance_bounds",
    "largest_distance",
    "levels",
    "ratio",
    "settled",
    "step_size",
]


def __getattr__(name: str) -> Any:
    # Only when asked for: SciPy takes most of a second, in which the command line is to hear Ctrl-C already.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from scoregen.contrib.design import techniques

    return getattr(techniques, name)
