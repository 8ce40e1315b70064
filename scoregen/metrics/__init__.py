"""The quality of samples: distances between samples, and the distance that a perfect sampler would have."""

from scoregen.metrics.efficientnet import efficientnet_features
from scoregen.metrics.features import Features, Outputs, classifier_features
from scoregen.metrics.frechet import frechet_distance, frechet_gaussians
from scoregen.metrics.inception import inception_features
from scoregen.metrics.two_sample import (
    Neighbours,
    WithFloor,
    mmd,
    nearest_neighbours,
    sliced_wasserstein,
    with_floor,
)

# Only the classifier's constructor has an argument that must be given: the data set, whose labels it is trained on.
FEATURES = {
    "inception": inception_features,
    "efficientnet": efficientnet_features,
    "classifier": classifier_features,
}

__all__ = [
    "FEATURES",
    "Features",
    "Neighbours",
    "Outputs",
    "WithFloor",
    "classifier_features",
    "efficientnet_features",
    "frechet_distance",
    "frechet_gaussians",
    "inception_features",
    "mmd",
    "nearest_neighbours",
    "sliced_wasserstein",
    "with_floor",
]
