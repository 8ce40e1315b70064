"""How the benchmarks time two programs, and write the result: alternately, so that both have the same conditions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Pair(NamedTuple):
    """The median seconds of ours and of theirs, and the median of their ratio theirs / ours, with its quartiles."""

    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    rounds: int


def timed(work: Callable[[], Any]) -> float:
    """The seconds that `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def pair(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> Pair:
    """Time both alternately, after one call of each that is not timed."""
    ours(), theirs()
    each = np.array([(timed(ours), timed(theirs)) for _ in range(rounds)])
    ratios = each[:, 1] / each[:, 0]
    low, high = np.quantile(ratios, (0.25, 0.75))
    return Pair(*map(float, (*np.median(each, 0), np.median(ratios), low, high)), rounds)


def say(line: str) -> None:
    """Print a result at once."""
    print(line, flush=True)


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def seconds(value: float) -> str:
    """Seconds with a unit, for the tables."""
    return f"{1e3 * value:.3g} ms" if value < 0.9995 else f"{value:.3g} s"


def times(row: dict[str, Any]) -> str:
    """The ratio theirs / ours with its quartiles; more than 1: ours is faster."""
    return f"**{row['ratio']:.2f}** ({row['low']:.2f} to {row['high']:.2f})"
