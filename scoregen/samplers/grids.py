"""Grids: which noise levels a sampler walks, `(process, n) -> [n]`, noisiest first, with both ends.

n is 0 for as many as the process's own grid has. Of a chain they are levels, each once: where a grid would have two
steps on one level, the nearest free one is taken.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.process import Process

# Where the data are gone, as at the end of flow matching, lam is -inf: grids in lam end here, in sigma / alpha at 400.
LEAST_LOGSNR = -12.0


@dataclasses.dataclass(frozen=True)
class OwnGrid:
    """The process's own: even in the index of a chain and in the time of an SDE, and Karras's for EDM."""

    def __call__(self, process: Process, n: int) -> Array:
        return process.grid(n or None)


class _Spaced(abc.ABC):
    """Evenly spaced between both ends in some measure of the noise."""

    @abc.abstractmethod
    def times(self, process: Process, ends: Array, fraction: Array) -> Array:
        """The times at these fractions of the way from the first of the `ends` to the last, `[n]`."""

    def __call__(self, process: Process, n: int) -> Array:
        count = process.grid(n or None).shape[0]  # which also refuses an n beyond a chain's length
        ends = process.grid(2)
        if count == 1:
            return ends[:1]
        times = self.times(process, ends, jnp.linspace(0.0, 1.0, count))
        if not process.discrete:
            return times.at[0].set(ends[0]).at[-1].set(ends[1])
        # Strictly falling, and room enough below each: steps back from the left, then up from the right.
        order = jnp.arange(count, dtype=jnp.int32)
        levels = jax.lax.cummin(jnp.round(times).astype(jnp.int32) + order) - order
        return jnp.maximum(levels, count - 1 - order).at[0].set(ends[0])


def _logsnr(process: Process, ends: Array) -> Array:
    lam = process.logsnr(ends)
    return jnp.where(process.alpha(ends) < 0.01, jnp.maximum(lam, LEAST_LOGSNR), lam)


def _between(first: Array, last: Array, fraction: Array) -> Array:
    return first + (last - first) * fraction.astype(first.dtype)


@dataclasses.dataclass(frozen=True)
class EvenTime(_Spaced):
    """Even in the time, of a chain in the index."""

    def times(self, process: Process, ends: Array, fraction: Array) -> Array:
        first, last = ends.astype(fraction.dtype)
        return _between(first, last, fraction)


@dataclasses.dataclass(frozen=True)
class EvenLogSNR(_Spaced):
    """Even in the log-SNR (Lu et al. 2022, section 3.3)."""

    def times(self, process: Process, ends: Array, fraction: Array) -> Array:
        first, last = _logsnr(process, ends)
        return process.time(_between(first, last, fraction))


@dataclasses.dataclass(frozen=True)
class Karras(_Spaced):
    """Even in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5).

    Raises:
        ValueError: unless rho > 0.
    """

    rho: float = 7.0

    def __post_init__(self):
        _check_positive("rho", self.rho)

    def times(self, process: Process, ends: Array, fraction: Array) -> Array:
        first, last = jnp.exp(-0.5 / self.rho * _logsnr(process, ends))
        return process.time(-2 * self.rho * jnp.log(_between(first, last, fraction)))


@dataclasses.dataclass(frozen=True)
class Power(_Spaced):
    """Even in t^(1 / power): denser near the data. At 2 it is DDIM's quadratic grid (Song, Meng & Ermon 2021, D.2).

    Raises:
        ValueError: unless power > 0.
    """

    power: float = 2.0

    def __post_init__(self):
        _check_positive("power", self.power)

    def times(self, process: Process, ends: Array, fraction: Array) -> Array:
        first, last = ends.astype(fraction.dtype) ** (1 / self.power)
        return _between(first, last, fraction) ** self.power


@dataclasses.dataclass(frozen=True)
class Listed:
    """These times, or levels of a chain, noisiest first.

    Raises:
        ValueError: unless they fall strictly; when it is called, unless they lie in the process's range, are whole
            numbers for a chain, and are n, if n is given.
    """

    times: tuple[float, ...] = ()

    def __post_init__(self):
        if not all(isinstance(time, int | float) for time in self.times):
            raise ValueError(f"times={self.times}: numbers are needed")
        if any(not a > b for a, b in zip(self.times, self.times[1:], strict=False)):
            raise ValueError(f"times={self.times}: they must fall, from the noisiest down")

    def __call__(self, process: Process, n: int) -> Array:
        if not self.times:
            raise ValueError("times=(): at least one is needed")
        if n not in (0, len(self.times)):
            raise ValueError(f"times: {len(self.times)} are given, and n={n} are wanted: say --config.sampler.n=0")
        with jax.ensure_compile_time_eval():
            first, last = (float(end) for end in process.grid(2))
        if self.times[0] > first or self.times[-1] < last:
            raise ValueError(f"times={self.times}: they must lie between {first:g} and {last:g}")
        if not process.discrete:
            return jnp.asarray(self.times, process.grid(2).dtype)
        if any(time != round(time) for time in self.times):
            raise ValueError(f"times={self.times}: a chain's levels are whole numbers")
        return jnp.asarray([round(time) for time in self.times], jnp.int32)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value}: a positive number is needed")


Grid = Callable[[Process, int], Array]

GRIDS = {
    "own": OwnGrid,
    "time": EvenTime,
    "logsnr": EvenLogSNR,
    "karras": Karras,
    "power": Power,
    "list": Listed,
}
