"""The noise levels of an NCSN, and the step of its sampler, from the data: the techniques, and their command line."""

from scoregen.contrib.design.techniques import (
    Levels,
    coverage,
    design,
    distance_bounds,
    final_variance,
    largest_distance,
    levels,
    ratio,
    step_size,
)

__all__ = [
    "Levels",
    "coverage",
    "design",
    "distance_bounds",
    "final_variance",
    "largest_distance",
    "levels",
    "ratio",
    "step_size",
]
