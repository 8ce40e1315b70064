"""All metrics of samples by name, each with its error and its floor, from one call: see `judge`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scoregen.errors import UsageError
from scoregen.metrics.floor import check_floor, floors, shortfall, spread
from scoregen.metrics.frechet import frechet, frechet_distance, frechet_infinity, too_few
from scoregen.metrics.inception_score import inception_score
from scoregen.metrics.kernels import kid, mmd
from scoregen.metrics.prdc import prdc
from scoregen.metrics.result import Result
from scoregen.metrics.statistics import Activations, Statistics
from scoregen.metrics.wasserstein import MOST, sliced_wasserstein, wasserstein


@dataclasses.dataclass(frozen=True)
class Measure:
    """An entry of the table: a function that gives one or more results, and what it needs.

    Attributes:
        results: a function of samples and reference, both `Activations` or `Statistics`, which returns its results.
        needs: what it needs beside statistics: of "samples" and "reference" the rows, of "logits" those of the samples,
            and "many" samples for an extrapolation.
        value: a function of the same arguments that returns the values alone, if it is faster; for floors.
        least: how many rows of each side it needs at least.
    """

    results: Callable[[Any, Any], Sequence[Result]]
    needs: tuple[str, ...] = ()
    value: Callable[[Any, Any], Sequence[float]] | None = None
    least: int = 2

    def lacks(self, samples: Activations | Statistics, reference: Activations | Statistics) -> str:
        """Why it cannot be computed from these, "" if it can."""
        if "samples" in self.needs and isinstance(samples, Statistics):
            return "the samples' rows of features are needed, and there are only their statistics"
        if "reference" in self.needs and isinstance(reference, Statistics):
            return "the reference's rows of features are needed, and there are only their statistics"
        if "logits" in self.needs and getattr(samples, "logits", None) is None:
            return "the samples' logits are needed"
        rows = [len(side) for side in (samples, reference) if isinstance(side, Activations)]
        if min(rows, default=self.least) < self.least:
            return f"{self.least} or more are needed on each side, not {min(rows)}"
        if "many" in self.needs and isinstance(samples, Activations):
            return too_few(len(samples), samples.features.shape[1])
        return ""

    def values(self, samples: Activations, reference: Activations | Statistics) -> Sequence[float]:
        """The values of its results."""
        if self.value is not None:
            return self.value(samples, reference)
        return [result.value for result in self.results(samples, reference)]


def _points(samples: Activations, reference: Activations) -> list[Result]:
    """The exact distance of as many points as it takes."""
    count = min(len(samples), len(reference), MOST)
    value = wasserstein(samples.features[:count], reference.features[:count])
    return [Result("Wasserstein-2", value, None, f"exact, first {count} points of each", "lower")]


def _plain(name: str, distance: Callable[[ArrayLike, ArrayLike], float], how: str) -> Measure:
    def results(samples: Activations, reference: Activations) -> list[Result]:
        return [Result(name, distance(samples.features, reference.features), None, how, "lower")]

    return Measure(results, ("samples", "reference"))


METRICS: dict[str, Measure] = {
    "frechet": Measure(lambda x, y: [frechet(x, y)], value=lambda x, y: [frechet_distance(x, y)]),
    "frechet_infinity": Measure(lambda x, y: [frechet_infinity(x, y)], ("samples", "many")),
    "kid": Measure(lambda x, y: [kid(x.features, y.features)], ("samples", "reference"), least=3),
    "inception_score": Measure(lambda x, y: [inception_score(x.logits)], ("samples", "logits"), least=20),
    "prdc": Measure(lambda x, y: prdc(x.features, y.features), ("samples", "reference"), least=6),
}
POINT_METRICS: dict[str, Measure] = {
    "sliced_wasserstein": _plain("sliced Wasserstein", sliced_wasserstein, "256 directions"),
    "wasserstein": Measure(_points, ("samples", "reference")),
    "mmd": _plain("MMD", mmd, "Gaussian kernel as wide as the reference"),
}


def judge(
    samples: ArrayLike | Activations | Statistics,
    reference: ArrayLike | Activations | Statistics,
    metrics: Sequence[str] | None = None,
    *,
    real: ArrayLike | Activations | None = None,
    repeats: int = 5,
    seed: int = 0,
) -> list[Result]:
    """Metrics of samples against a reference, each with its standard error, and with its floor if there are real data.

    The floor is the same metric of random subsets of `real`, of as many rows as there are samples: the value that a
    perfect sampler has. `with_floor` describes the subsets. For metrics that are better if higher it is a ceiling.
    `real` must not be the reference itself: real data that are compared with themselves are nearer than any new data.

    `how` says if the subsets overlap, so that their spread is too small; of a single subset there is no spread.

    Results are named by what is known of the features on any side.

    Memory stays bounded: blocks of pairs, a few matrices [F, F], and one subset of `real` at a time.

    Args:
        samples, reference, real: features [N, F], or `Activations`, which may have logits, or `Statistics`. Points
            [N, D] for the metrics of points.
        metrics: names of `METRICS` and `POINT_METRICS`; None for all of `METRICS` that can be computed from these.
        repeats, seed: of the floor.

    Returns:
        One result for each number; "prdc" has four.

    Raises:
        UsageError: for an unknown name, if the features were made in different ways, if a metric needs rows or
            logits that are missing, and if there are more samples than real data.
        ValueError: if the shapes do not fit, or a value is not finite.

    >>> x = np.arange(8.0)[:, None]
    >>> for result in judge(x + 3.0, x, ("frechet", "prdc")):
    ...     print(result)
    Frechet distance 9 +- 5.2
    precision 1 +- 0.17
    recall 1 +- 0.17
    density 0.825 +- 0.19
    coverage 1 +- 0.17
    """
    x, y = _known(samples), _known(reference)
    pool = None if real is None else _known(real)
    origin = x.origin.merged(y.origin)
    chosen = _chosen(metrics, x, y)
    found: list[Result] = []
    if pool is not None:
        origin = origin.merged(pool.origin)
        count = len(x) if isinstance(x, Activations) else x.count
        if count is None or isinstance(pool, Statistics):
            raise UsageError("a floor needs rows of real data, and the number of samples")
        check_floor(count, len(pool), repeats)
    for name, metric in chosen.items():
        with _named(name):
            results = list(metric.results(x, y))
            if pool is not None:
                results = _with_floor(metric, results, count, pool, y, repeats, seed)
        found += [dataclasses.replace(result, name=origin.titled(result.name)) for result in results]
    return found


def _with_floor(
    metric: Measure,
    results: Sequence[Result],
    count: int,
    pool: Activations,
    reference: Activations | Statistics,
    repeats: int,
    seed: int,
) -> list[Result]:
    values = floors(lambda part: metric.values(part, reference), count, pool, repeats=repeats, seed=seed)
    std, short = spread(values), shortfall(count, len(pool), repeats)
    return [
        dataclasses.replace(
            result,
            floor=float(value),
            floor_std=None if std is None else float(std[i]),
            how=f"{result.how}; {short}" if short else result.how,
        )
        for i, (result, value) in enumerate(zip(results, values.mean(axis=0), strict=True))
    ]


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Within it, the lines of errors begin with the name of the metric."""
    try:
        yield
    except UsageError as error:
        raise UsageError(*(f"{name}: {line}" for line in error.args)) from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _known(given: ArrayLike | Activations | Statistics) -> Activations | Statistics:
    return given if isinstance(given, Activations | Statistics) else Activations(np.asarray(given))


def _chosen(
    names: Sequence[str] | None, samples: Activations | Statistics, reference: Activations | Statistics
) -> dict[str, Measure]:
    if names is None:
        return {name: metric for name, metric in METRICS.items() if not metric.lacks(samples, reference)}
    table = METRICS | POINT_METRICS
    wrong = [f"metric {name!r} is not known: take one of {', '.join(table)}" for name in names if name not in table]
    chosen = {name: table[name] for name in names if name in table}
    wrong += [f"{name}: {lack}" for name, m in chosen.items() if (lack := m.lacks(samples, reference))]
    if wrong:
        raise UsageError(*wrong)
    return chosen
