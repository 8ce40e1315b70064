"""The quality of samples: distances between samples, and the distance that a perfect sampler would have."""

from scoregen.metrics.efficientnet import efficientnet_features
from scoregen.metrics.family import METRICS, POINT_METRICS, Metric, judge
from scoregen.metrics.features import Features, Outputs, classifier_features
from scoregen.metrics.floor import WithFloor, with_floor
from scoregen.metrics.frechet import frechet, frechet_distance, frechet_gaussians, frechet_infinity
from scoregen.metrics.inception import inception_features
from scoregen.metrics.inception_score import inception_score, inception_scores
from scoregen.metrics.kernels import kid, kid_subsets, mmd
from scoregen.metrics.neighbours import Neighbours, nearest_neighbours
from scoregen.metrics.prdc import prdc
from scoregen.metrics.result import Result
from scoregen.metrics.statistics import Activations, Moments, Origin, Statistics, read_activations
from scoregen.metrics.wasserstein import sliced_wasserstein, wasserstein

# Only the classifier's constructor has an argument that must be given: the data set, whose labels it is trained on.
FEATURES = {
    "inception": inception_features,
    "efficientnet": efficientnet_features,
    "classifier": classifier_features,
}

__all__ = [
    "FEATURES",
    "METRICS",
    "POINT_METRICS",
    "Activations",
    "Features",
    "Metric",
    "Moments",
    "Neighbours",
    "Origin",
    "Outputs",
    "Result",
    "Statistics",
    "WithFloor",
    "classifier_features",
    "efficientnet_features",
    "frechet",
    "frechet_distance",
    "frechet_gaussians",
    "frechet_infinity",
    "inception_features",
    "inception_score",
    "inception_scores",
    "judge",
    "kid",
    "kid_subsets",
    "mmd",
    "nearest_neighbours",
    "prdc",
    "read_activations",
    "sliced_wasserstein",
    "wasserstein",
    "with_floor",
]
