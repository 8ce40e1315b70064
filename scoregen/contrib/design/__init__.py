"""Chooses the noise levels of an NCSN, and the step size of its sampler, from the data; as functions and a command."""

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
