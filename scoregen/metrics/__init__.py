"""The quality of samples: distances between samples, and the distance that a perfect sampler would have."""

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
