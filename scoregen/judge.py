"""How good a run is: distances of its samples, beside what a perfect sampler would score; held-out likelihood."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from scoregen import mesh
from scoregen.config import build
from scoregen.errors import UsageError
from scoregen.experiment import Experiment
from scoregen.likelihood import LIKELIHOODS, LogLikelihood, bits_per_dim
from scoregen.metrics import classifier_features, frechet_distance, mmd, nearest_neighbours, sliced_wasserstein
from scoregen.metrics import with_floor as floored
from scoregen.process import example_keys, fold_keys
from scoregen.rules import unlikely


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

    First `distance_to_data`; then of points MMD, and of images the distance to the nearest training image, in bytes.

    Raises:
        UsageError: if images have no labels to train the classifier on, or if a distance cannot be taken.
    """
    try:
        return _judge(experiment, samples, say)
    except ValueError as error:  # data that a distance cannot be taken of, such as points that are all one
        raise UsageError(f"the samples cannot be judged: {error}; say --config.eval.at_end=false") from error


def _judge(experiment: Experiment, samples: np.ndarray, say: Callable[[str], None] | None) -> list[Verdict]:
    dataset = experiment.dataset
    first = distance_to_data(experiment, say)(samples)
    if not dataset.is_image:
        return [first, Verdict("MMD", *dataclasses.astuple(floored(mmd, samples, dataset.train, dataset.test)))]
    images = experiment.scaling.to_bytes(samples)
    near = nearest_neighbours(images, dataset.train, dataset.test)
    close = float(np.quantile(near.held_out, 0.01))
    return [
        first,
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


def distance_to_data(
    experiment: Experiment, say: Callable[[str], None] | None = None
) -> Callable[[np.ndarray], Verdict]:
    """Samples `[N, ...]`, in the network's units -> their distance to the held-out data.

    Of points the sliced 1-Wasserstein distance; of images the Frechet distance in the features of a small classifier
    of that data set, which is no FID. The floor is the same distance for as many training examples, which is what a
    perfect sampler would score. The features of the data are taken once, however many samples are judged.

    Raises:
        UsageError: if images have no labels to train the classifier on.
    """
    train, test = experiment.dataset.train, experiment.dataset.test
    if not experiment.dataset.is_image:
        return lambda points: Verdict(
            "sliced Wasserstein", *dataclasses.astuple(floored(sliced_wasserstein, points, train, test))
        )
    features = classifier_features(experiment.dataset, progress=say)
    real, held_out = features(train), features(test)

    def judged(samples: np.ndarray) -> Verdict:
        found = floored(frechet_distance, features(experiment.scaling.to_bytes(samples)), real, held_out)
        overlap = "; the floor's subsets overlap, so its spread is too small" if 5 * len(samples) > len(real) else ""
        note = f"features of {features.name}, key {features.key}{overlap}"
        return Verdict("Frechet distance", *dataclasses.astuple(found), note=note)

    return judged


@dataclasses.dataclass(frozen=True)
class Measured:
    """A mean over held-out examples of -log p: bits a dimension of images, nats an example of points.

    Attributes:
        error: its standard error over the examples, that of their own draws included.
        own: what of that the draws alone are, of times and noise or of directions; 0 where there are none.
        steps: steps of the solver an example, or evaluations of the network.
    """

    name: str
    value: float
    error: float
    own: float
    unit: str
    steps: float = 0.0


def likelihoods(
    experiment: Experiment, params: Any, progress: Callable[[int], None] | None = None
) -> tuple[list[Measured], int]:
    """The likelihood of held-out data as they are sampled: under `experiment.walk`, with its denoiser.

    A network that knows classes is told each example's own, or `config.sampler.label`: it is -log p(x | class) then.
    By what `config.eval.likelihood.name` says, the bound and the ODE; the paired difference of the two; and of points
    whose density is known, its own. `progress` is told of every batch that is done.

    Returns:
        The figures, and how many examples they are of.

    Raises:
        UsageError: if there is no likelihood, or if one is not finite.
    """
    config, dataset, scaling = experiment.config.eval.likelihood, experiment.dataset, experiment.scaling
    reason = unlikely(experiment.walk)
    if reason is not None:
        raise UsageError(reason)
    kinds = ("bound", "ode") if config.name == "both" else (config.name,)
    learned = experiment.config.learned_variance and experiment.walk is experiment.process
    known = {"bins": scaling.bins, "width": scaling.width} | ({"variance": "learned"} if learned else {})
    sections = {kind: type(config)({"name": kind, kind: config[kind]}) for kind in kinds}
    estimates = {kind: build(LIKELIHOODS, section, **known) for kind, section in sections.items()}
    raw = dataset.test[: config.examples]
    dims, unit = math.prod(dataset.shape), "bits/dim" if dataset.is_image else "nats"

    def per_example(nats: Any) -> np.ndarray:
        return np.asarray(bits_per_dim(nats, dims) if dataset.is_image else -nats, np.float64)

    def measured(name: str, values: np.ndarray, own: np.ndarray, steps: float = 0.0) -> Measured:
        error, drawn = values.std(ddof=1) / math.sqrt(len(values)), np.sqrt(np.sum(own**2)) / len(own)
        return Measured(name, float(values.mean()), float(error), float(drawn), unit, steps)

    def tell(done: int) -> None:
        if progress is not None:
            progress(len(values) * len(raw) + done)

    found, values, own = [], {}, {}
    for kind, estimate in estimates.items():
        nats, error, steps = _in_batches(experiment, params, estimate, raw, tell)
        if bad := int((~np.isfinite(nats)).sum()):
            raise UsageError(
                f"{bad} of {len(raw)} likelihoods by '{kind}' are not finite: train longer, or give the solver more "
                "room (--config.eval.likelihood.ode.rtol=1e-3 --config.eval.likelihood.ode.atol=1e-3)"
            )
        values[kind], own[kind] = per_example(nats), np.abs(per_example(error))
        found.append(measured(kind, values[kind], own[kind], float(steps.mean())))
    if len(kinds) == 2:
        apart = values["bound"] - values["ode"]
        found.append(measured("bound - ode", apart, np.hypot(own["bound"], own["ode"])))
    if dataset.log_density is not None:
        exact = per_example(dataset.log_density(raw))
        found.append(measured("exact", exact, np.zeros(len(raw))))
        found += [measured(f"{kind} - exact", values[kind] - exact, own[kind]) for kind in kinds]
    return found, len(raw)


def _in_batches(
    experiment: Experiment,
    params: Any,
    estimate: Callable[..., LogLikelihood],
    raw: np.ndarray,
    progress: Callable[[int], None],
) -> LogLikelihood:
    """An estimate of raw data, a batch at a time; the last is filled up, so that one program serves all.

    A batch is spread over the devices, and so rounded up to what can be.
    """
    count = len(raw)
    size = mesh.round_up(min(experiment.config.eval.likelihood.batch, count))

    @functools.partial(jax.jit, out_shardings=mesh.everywhere())
    def step(params: Any, raw: Array, keys: Array, labels: Array | None) -> LogLikelihood:
        x0 = experiment.scaling(raw, fold_keys(keys, 0))
        keys = fold_keys(keys, 1)
        if labels is None:
            return estimate(experiment.walk, experiment.predict_to_sample(params), keys, x0)

        def one(x: Array, key: Array, label: Array) -> LogLikelihood:
            # An example at a time: the ODE asks for each by itself, and a denoiser of a batch knows all their classes.
            return estimate(experiment.walk, experiment.predict_to_sample(params, label[None]), key[None], x[None])

        return jax.tree.map(lambda leaf: leaf[:, 0], jax.vmap(one)(x0, keys, labels))

    keys, parts = example_keys(jax.random.key(experiment.config.seed + 3), count), []
    for begin in range(0, count, size):
        index = np.arange(begin, begin + size) % count
        try:
            examples = jax.numpy.asarray(raw[index]), keys[index], experiment.labels_held_out(index)
            found = step(params, *map(mesh.spread, examples))
            parts.append(jax.tree.map(np.asarray, found))
        except ValueError as error:
            raise UsageError(f"config.eval.likelihood: {error}") from error
        progress(min(begin + size, count))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
