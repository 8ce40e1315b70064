"""The noise levels of an NCSN, and the step of its sampler, from the data: the techniques, and their command line."""

from scoregen.design.techniques import (
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
