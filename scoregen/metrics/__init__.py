"""The quality of samples: distances between samples, and the distance that a perfect sampler would have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scoregen.metrics.efficientnet import efficientnet_features
from scoregen.metrics.family import METRICS, POINT_METRICS, Measure, judge
from scoregen.metrics.features import Features, Outputs, classifier_features, is_labelled
from scoregen.metrics.floor import WithFloor, shortfall, with_floor
from scoregen.metrics.frechet import frechet, frechet_distance, frechet_gaussians, frechet_infinity
from scoregen.metrics.inception import inception_features
from scoregen.metrics.inception_score import inception_score, inception_scores
from scoregen.metrics.kernels import kid, kid_subsets, mmd
from scoregen.metrics.neighbours import Neighbours, nearest_neighbours
from scoregen.metrics.prdc import prdc
from scoregen.metrics.result import Result
from scoregen.metrics.statistics import Activations, Moments, Origin, Statistics, read_activations
from scoregen.metrics.wasserstein import sliced_wasserstein, wasserstein


def auto_features(dataset: Any, *, progress: Callable[[str], None] | None = None) -> Features:
    """The features that fit a data set: `classifier_features` if it has all labels, else `efficientnet_features`.

    Raises:
        UsageError: as the two do.
    """
    return classifier_features(dataset, progress=progress) if is_labelled(dataset) else efficientnet_features()


# "auto" and "classifier" have an argument that must be given: the data set, whose labels the classifier is trained on.
FEATURES: dict[str, Callable[..., Features]] = {
    "auto": auto_features,
    "classifier": classifier_features,
    "efficientnet": efficientnet_features,
    "inception": inception_features,
}

__all__ = [
    "FEATURES",
    "METRICS",
    "POINT_METRICS",
    "Activations",
    "Features",
    "Measure",
    "Moments",
    "Neighbours",
    "Origin",
    "Outputs",
    "Result",
    "Statistics",
    "WithFloor",
    "auto_features",
    "classifier_features",
    "efficientnet_features",
    "frechet",
    "frechet_distance",
    "frechet_gaussians",
    "frechet_infinity",
    "inception_features",
    "inception_score",
    "inception_scores",
    "is_labelled",
    "judge",
    "kid",
    "kid_subsets",
    "mmd",
    "nearest_neighbours",
    "prdc",
    "read_activations",
    "shortfall",
    "sliced_wasserstein",
    "wasserstein",
    "with_floor",
]
