"""The metrics of a run: distances of its samples, with the values of a perfect sampler, and held-out likelihood."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array

from scoregen.app.figures import plain
from scoregen.errors import UsageError
from scoregen.likelihood import LogLikelihood, bits_per_dim
from scoregen.metrics import (
    Activations,
    Features,
    Neighbours,
    Result,
    auto_features,
    judge,
    mmd,
    nearest_neighbours,
    shortfall,
    sliced_wasserstein,
    with_floor,
)
from scoregen.random import example_keys, fold_keys
from scoregen.train import mesh

if TYPE_CHECKING:
    from scoregen.app.build import Parts
    from scoregen.app.sampling import Sampling
    from scoregen.cond import Cond
    from scoregen.data import Dataset


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric of a report: its value, and its floor with the floor's spread, if it has a floor and this is known.

    Attributes:
        std: the standard error of the value over draws of the samples, if it is known.
        better: "lower" or "higher".
        chance: the probability that a perfect sampler has a value at least as high, if it is known.
        note: how the value was computed, for distances.json only.
        text: a sentence for the closing table, which replaces the numbers there.
    """

    name: str
    value: float
    floor: float | None = None
    floor_std: float | None = None
    note: str = ""
    text: str = ""
    std: float | None = None
    better: str = "lower"
    chance: float | None = None

    @classmethod
    def of(cls, result: Result, note: str) -> Metric:
        """A result of `scoregen.metrics`."""
        known = result.floor, result.floor_std
        return cls(result.name, result.value, *known, note, std=result.std, better=result.better)


def evaluate(
    dataset: Dataset,
    scaling: Any,
    samples: np.ndarray,
    say: Callable[[str], None] | None = None,
    found: Callable[[np.ndarray, np.ndarray, Neighbours], object] | None = None,
    features: Features | None = None,
) -> list[Metric]:
    """Metrics of samples `[N, ...]`, in the network's units, against the held-out data.

    First `distance_to_data`; then for points MMD, and for images the distance to the nearest training image, in bytes.
    `found` is called with the samples and the training images, as bytes, and with the nearest ones. `features` are
    those of the Frechet distance; None for `auto_features`.

    Raises:
        UsageError: if there are no features for the images, or if a distance cannot be computed.
    """
    from scoregen.data.mapped import release

    train, test = real = _real(dataset, len(samples))
    try:
        first = distance_to_data(dataset, scaling, say, real, features)(samples)
        if not dataset.is_image:
            return [first, _with_floor("MMD", mmd, _flat(samples), _flat(train), _flat(test))]
        near = nearest_neighbours(images := scaling.to_bytes(samples), train, test)
        if found is not None:
            found(images, train, near)
    except ValueError as error:  # data without a distance, such as points that are all equal
        raise UsageError(f"the distances cannot be computed: {error}") from error
    finally:
        release(dataset.train, test)
    median = [float(np.median(distances)) for distances in (near.samples, near.held_out)]
    held_out = "the floor is of held-out images"
    return [
        first,
        Metric(
            "distance to nearest training image",
            *median,
            note=f"medians, in grey levels; {held_out}",
            text=f"{plain(median[0], 3)} grey levels; for held-out images {plain(median[1], 3)} (medians)",
        ),
        Metric(
            "memorised (%)",
            100 * near.memorised,
            100 * near.memorised_held_out,
            note=f"as near to a training image as the nearest 1 % of held-out images, or the nearest one; {held_out}",
            text=near.statement(),
            chance=near.chance,
        ),
    ]


def _with_floor(
    name: str, distance: Callable[..., float], samples: np.ndarray, train: np.ndarray, test: np.ndarray
) -> Metric:
    found = with_floor(distance, samples, train, test, repeats=REPEATS)
    return Metric(name, *dataclasses.astuple(found), note=shortfall(len(samples), len(train), REPEATS))


def distance_to_data(
    dataset: Dataset,
    scaling: Any,
    say: Callable[[str], None] | None = None,
    real: tuple[np.ndarray, np.ndarray] | None = None,
    features: Features | None = None,
) -> Callable[[np.ndarray], Metric]:
    """Samples `[N, ...]`, in the network's units -> their distance to the held-out data.

    For points this is the sliced 1-Wasserstein distance. For images it is the Frechet distance in `features`, by
    default those of `auto_features`. The floor is the same distance for equally many training examples: the value of a
    perfect sampler. The features of the data are computed only once, and of the training images only as many as the
    floor needs. `real` are the training and the held-out examples as they are trained on, if they are at hand.

    Raises:
        UsageError: if there are no features for the images.
    """
    train, test = real or _real(dataset)
    if not dataset.is_image:
        train, test = _flat(train), _flat(test)
        return lambda points: _with_floor("sliced Wasserstein", sliced_wasserstein, _flat(points), train, test)
    of = auto_features(dataset, progress=say) if features is None else features
    origin = of.origin("round")

    @functools.cache
    def known(count: int) -> Activations:
        """Of the training images: of enough for disjoint subsets of this size, if these are features for any images."""
        few = len(train) if of.shape else min(len(train), REPEATS * count)
        rows = np.sort(np.random.default_rng(0).permutation(len(train))[:few])
        return Activations(of(train if few == len(train) else train[rows]), origin=origin)

    @functools.cache
    def held_out() -> Activations:
        if say is not None and not of.shape:
            say(f"computing features of {len(test):,} held-out images: {of.name}")
        return Activations(of(test), origin=origin)

    def distance(samples: np.ndarray) -> Metric:
        reference, pool = held_out(), known(len(samples))
        found = Activations(of(scaling.to_bytes(samples)), origin=origin)
        (result,) = judge(found, reference, ["frechet"], real=pool, repeats=REPEATS)
        note = f"features of {of.name}, key {of.key}; error: {result.how}"
        return Metric.of(result, note)

    return distance


REPEATS = 5  # subsets of a floor
MOST = 2**31  # bytes of the examples that distances are computed with


def _real(dataset: Dataset, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out examples as they are trained on: of each at most `MOST` bytes, but at least `count`.

    Raises:
        UsageError: if there are no held-out examples.
    """
    check_held_out(dataset)
    first = slice(0, max(count, MOST // (math.prod(dataset.shape) * dataset.dtype.itemsize)))
    return dataset.examples(first), dataset.examples(first, test=True)


def check_held_out(dataset: Dataset) -> None:
    """Raises UsageError if there are no held-out examples."""
    if dataset.test is None:
        raise UsageError(f"{dataset.name}: held-out examples are needed, but there are none")


def _flat(points: np.ndarray) -> np.ndarray:
    """Points of any rank as `[N, D]`."""
    return np.asarray(points).reshape(len(points), -1)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A mean over held-out examples of -log p: bits per dimension for images, nats per example for points.

    Attributes:
        error: the standard error over the examples. It includes the error from the random draws per example.
        own: the part of the error from the random draws (times and noise, or directions); 0 if there are no draws.
        steps: solver steps per example, or network evaluations.
    """

    name: str
    value: float
    error: float
    own: float
    unit: str
    steps: float = 0.0


def likelihoods(parts: Parts, params: Any, progress: Callable[[int], None] | None = None) -> tuple[list[Measured], int]:
    """The likelihood of held-out data under the denoiser that samples are drawn with (`parts.sampling`).

    A network with classes gets the class of each example, or `config.sampler.label`; the result is then
    -log p(x | class). `config.eval.likelihood.name` chooses the bound, the ODE or both; both adds their paired
    difference. For points with a known density the exact value is added. `progress` is called after every batch with
    the number of finished examples.

    Returns:
        The results, and the number of examples.

    Raises:
        UsageError: if there is no likelihood, or if a likelihood is not finite.
    """
    config, dataset = parts.config.eval.likelihood, parts.dataset
    estimates = parts.estimators()
    check_held_out(dataset)
    raw = dataset.examples(slice(0, config.examples), test=True)
    cond = parts.cond_held_out(np.arange(len(raw)))
    dims, unit = math.prod(dataset.shape), "bits/dim" if dataset.is_image else "nats"

    def per_example(nats: Any) -> np.ndarray:
        return np.asarray(bits_per_dim(nats, dims) if dataset.is_image else -nats, np.float64)

    def measured(name: str, values: np.ndarray, own: np.ndarray, steps: float = 0.0) -> Measured:
        error, drawn = values.std(ddof=1) / math.sqrt(len(values)), np.sqrt(np.sum(own**2)) / len(own)
        return Measured(name, float(values.mean()), float(error), float(drawn), unit, steps)

    def report(done: int) -> None:
        if progress is not None:
            progress(len(values) * len(raw) + done)

    found, values, own = [], {}, {}
    for kind, estimate in estimates.items():
        nats, error, steps = in_batches(
            parts.sampling, params, estimate, raw, cond, parts.sampling.seed, config.batch, report
        )
        if bad := int((~np.isfinite(nats)).sum()):
            raise UsageError(
                f"{bad} of {len(raw)} likelihoods by '{kind}' are not finite: train longer, or loosen the solver's "
                "tolerances (--config.eval.likelihood.ode.rtol=1e-3 --config.eval.likelihood.ode.atol=1e-3)"
            )
        values[kind], own[kind] = per_example(nats), np.abs(per_example(error))
        found.append(measured(kind, values[kind], own[kind], float(steps.mean())))
    if len(estimates) == 2:
        apart = values["bound"] - values["ode"]
        found.append(measured("bound - ode", apart, np.hypot(own["bound"], own["ode"])))
    if dataset.log_density is not None:
        exact = per_example(dataset.log_density(raw))  # such a data set has no units
        found.append(measured("exact", exact, np.zeros(len(raw))))
        found += [measured(f"{kind} - exact", values[kind] - exact, own[kind]) for kind in estimates]
    return found, len(raw)


def density_notes(dataset: Dataset) -> list[str]:
    """What makes log p of standardised data hard to read: integers, and columns with a single value."""
    units, names = dataset.units, dataset.columns
    if units is None or dataset.is_image:
        return []
    kinds = dataset.form.dtypes or (units.dtype,) * len(units.std)
    called = [names[i] if names else f"channel {i}" for i in range(len(units.std))]
    whole = [name for name, kind in zip(called, kinds, strict=True) if np.dtype(kind).kind in "biu"]
    constant = [name for name, std in zip(called, units.std, strict=True) if std == 0]
    lines = []
    if whole:
        lines.append(f"{_first(whole)} of integers: log p is the density of continuous values, not a probability")
    if constant:
        lines.append(f"{_first(constant)} constant: log p has no upper limit; leave such columns out")
    return lines


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


def in_batches(
    sampling: Sampling,
    params: Any,
    estimate: Callable[..., LogLikelihood],
    raw: np.ndarray,
    cond: Cond | None,
    seed: int,
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> LogLikelihood:
    """Compute an estimate for data `[N, ...]`, as they are trained on, in batches.

    A density has the units of the data, not those of the network.

    The last batch is padded, so that one compiled program works for all. A batch is spread over the devices, so its
    size is rounded up to a multiple of their number.

    Raises:
        UsageError: if the estimate does not exist for this process or these data.
    """
    count = len(raw)
    size = mesh.round_up(min(batch, count))

    @functools.partial(jax.jit, out_shardings=mesh.everywhere())
    def step(params: Any, raw: Array, keys: Array, cond: Cond | None) -> LogLikelihood:
        x0 = sampling.scaling(raw, fold_keys(keys, 0))
        keys = fold_keys(keys, 1)
        if cond is None:
            return estimate(sampling.denoiser(params), keys, x0)

        def one(x: Array, key: Array, of: Cond) -> LogLikelihood:
            # One example at a time, since the ODE evaluates single examples, and a denoiser has the classes of a batch.
            given = jax.tree.map(lambda leaf: leaf[None], of)
            return estimate(sampling.denoiser(params, given), key[None], x[None])

        return jax.tree.map(lambda leaf: leaf[:, 0], jax.vmap(one)(x0, keys, cond))

    keys, results = example_keys(jax.random.key((seed + 3) % 2**32), count), []
    for begin in range(0, count, size):
        index = np.arange(begin, begin + size) % count
        try:
            examples = jax.numpy.asarray(raw[index]), keys[index], jax.tree.map(lambda of, at=index: of[at], cond)
            found = step(params, *(jax.tree.map(mesh.spread, tree) for tree in examples))
            results.append(jax.tree.map(np.asarray, found))
        except ValueError as error:
            raise UsageError(f"the likelihood: {error}") from error
        progress(min(begin + size, count))
    found = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *results)
    # p(x) = p(z) |dz/dx|, for x = mean + std z
    return found if sampling.units is None else found._replace(nats=found.nats - sampling.units.log_scale)
