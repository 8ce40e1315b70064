"""How good are the samples: distances between samples, and what a perfect sampler would score."""

from scoregen.metrics.features import Features, classifier_features
from scoregen.metrics.frechet import frechet_distance, frechet_gaussians
from scoregen.metrics.two_sample import (
    Neighbours,
    WithFloor,
    mmd,
    nearest_neighbours,
    sliced_wasserstein,
    with_floor,
)

__all__ = [
    "Features",
    "Neighbours",
    "WithFloor",
    "classifier_features",
    "frechet_distance",
    "frechet_gaussians",
    "mmd",
    "nearest_neighbours",
    "sliced_wasserstein",
    "with_floor",
]
