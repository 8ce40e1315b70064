"""How good a run's samples are: each distance beside what a perfect sampler would score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from scoregen.errors import UsageError
from scoregen.experiment import Experiment
from scoregen.metrics import classifier_features, frechet_distance, mmd, nearest_neighbours, sliced_wasserstein
from scoregen.metrics import with_floor as floored


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One figure of a report: its value, and the floor and its spread where there is one."""

    name: str
    value: float
    floor: float | None = None
    floor_std: float | None = None
    note: str = ""
    against: str = "the floor"


def judge(experiment: Experiment, samples: np.ndarray, say: Callable[[str], None] | None = None) -> list[Verdict]:
    """Judge samples `[N, ...]`, in the network's units, against the held-out data.

    Points: sliced 1-Wasserstein distance and MMD. Images: the Frechet distance in the features of a small
    classifier of that data set, which is no FID, and the distance to the nearest training image, in bytes. The
    floor is the same distance for as many training examples, which is what a perfect sampler would score.

    Raises:
        UsageError: if images have no labels to train the classifier on, or if a distance cannot be taken.
    """
    try:
        return _judge(experiment, samples, say)
    except ValueError as error:  # data that a distance cannot be taken of, such as points that are all one
        raise UsageError(f"the samples cannot be judged: {error}; say --config.eval.at_end=false") from error


def _judge(experiment: Experiment, samples: np.ndarray, say: Callable[[str], None] | None) -> list[Verdict]:
    dataset = experiment.dataset
    if not dataset.is_image:
        verdicts = []
        for name, distance in (("sliced Wasserstein", sliced_wasserstein), ("MMD", mmd)):
            found = floored(distance, samples, dataset.train, dataset.test)
            verdicts.append(Verdict(name, found.value, found.floor, found.floor_std))
        return verdicts
    features = classifier_features(dataset, progress=say)
    images = experiment.scaling.to_bytes(samples)
    found = floored(frechet_distance, features(images), features(dataset.train), features(dataset.test))
    near = nearest_neighbours(images, dataset.train, dataset.test)
    close = float(np.quantile(near.held_out, 0.01))
    spread = (
        "" if 5 * len(images) <= len(dataset.train) else "; the floor's subsets overlap, so its spread is too small"
    )
    return [
        Verdict(
            "Frechet distance",
            found.value,
            found.floor,
            found.floor_std,
            f"features of {features.name}, key {features.key}{spread}",
        ),
        Verdict(
            "distance to nearest training image",
            float(np.median(near.samples)),
            float(np.median(near.held_out)),
            note="medians, in bytes",
            against="that of held-out images,",
        ),
        Verdict(
            "memorised, at most",
            100 * float(np.mean(near.samples < close)),
            100 * float(np.mean(near.held_out < close)),
            note="% nearer to a training image than 99 % of held-out images are",
            against="that of held-out images,",
        ),
    ]
