"""Grids: the noise levels that a sampler visits, `(process, n) -> [n]`, noisiest first, with both ends.

Without n (None or 0) a grid has all levels of a chain, or 1000 times in continuous time. Each level of a chain is
visited at most once: if a spacing gives the same level twice, the nearest free level is taken.
"""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.errors import Refusal, check_positive
from scoregen.process import EDM, Process, bottom, top

# At the end of flow matching lam is -inf. Grids in lam begin there at this value, where sigma / alpha is 400.
LEAST_LOGSNR = -12.0


class Grid(abc.ABC):
    """A spacing of noise levels. A grid of your own is a class with `__call__`, or a function with its arguments.

    >>> class Halves(Grid):
    ...     "Each time is half the one before."
    ...
    ...     def __call__(self, process, n=None):
    ...         return top(process) * 0.5 ** jnp.arange(count(process, n), dtype=float)
    >>> from scoregen.process import VP
    >>> Halves()(VP(), 3).tolist()
    [1.0, 0.5, 0.25]
    """

    @abc.abstractmethod
    def __call__(self, process: Process, n: int | None = None) -> Array:
        """The levels, noisiest first, `[n]`: times within `process.ends`; for a chain, int32 levels.

        Raises:
            ValueError: if there is no grid of n levels.
        """

    def refuse(self, process: Process, n: int | None = None) -> Refusal | None:
        """Why there is no grid of n levels under this process; None if there is one."""
        levels = int(process.ends[1]) + 1 if process.discrete else None
        if n is None or (n >= 0 and n == int(n) and (levels is None or n <= levels)):
            return None
        needed = "1 or more levels are" if levels is None else f"this chain has {levels} levels, and 1 to {levels} are"
        return Refusal(f"n={n}: {needed} needed, or None for all of the process's own", ("sampler.n=0",))


def count(process: Process, n: int | None) -> int:
    """The number of levels that n means; None and 0 mean the process's own number.

    >>> from scoregen.process import VP, ddpm
    >>> count(ddpm(), None), count(VP(), 0), count(VP(), 5)
    (1000, 1000, 5)
    """
    return n or (int(process.ends[1]) + 1 if process.discrete else 1000)


def _check(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise ValueError(str(refusal))


@dataclasses.dataclass(frozen=True)
class EvenTime(Grid):
    """Evenly spaced in time; for a chain in the index, where half-integers are rounded up.

    >>> from scoregen.process import ddpm
    >>> EvenTime()(ddpm(), 5).tolist()
    [999, 749, 500, 250, 0]
    """

    def __call__(self, process: Process, n: int | None = None) -> Array:
        _check(self.refuse(process, n))
        low, high = process.ends
        times = np.linspace(high, low, count(process, n))
        return jnp.asarray(np.floor(times + 0.5), jnp.int32) if process.discrete else jnp.asarray(times)


class _Spaced(Grid):
    """Evenly spaced between both ends in some measure of the noise."""

    @abc.abstractmethod
    def times(self, process: Process, ends: Array, fraction: Array) -> Array:
        """The times at these fractions of the way from the first of the `ends` to the last, `[n]`."""

    def __call__(self, process: Process, n: int | None = None) -> Array:
        _check(self.refuse(process, n))
        size, ends = count(process, n), jnp.stack([top(process), bottom(process)])
        if size == 1:
            return ends[:1]
        times = self.times(process, ends, jnp.linspace(0.0, 1.0, size))
        if not process.discrete:
            return times.astype(ends.dtype).at[0].set(ends[0]).at[-1].set(ends[1])
        # Strictly falling: repeated levels are first moved down, then up again where too few levels are left below.
        order = jnp.arange(size, dtype=jnp.int32)
        levels = jax.lax.cummin(jnp.round(times).astype(jnp.int32) + order) - order
        return jnp.maximum(levels, size - 1 - order).at[0].set(ends[0])


def _logsnr(process: Process, ends: Array) -> Array:
    lam = process.logsnr(ends)
    return jnp.where(process.alpha(ends) < 0.01, jnp.maximum(lam, LEAST_LOGSNR), lam)


def _between(first: Array, last: Array, fraction: Array) -> Array:
    return first + (last - first) * fraction.astype(first.dtype)


@dataclasses.dataclass(frozen=True)
class EvenLogSNR(_Spaced):
    """Evenly spaced in the log-SNR (Lu et al. 2022, section 3.3)."""

    def times(self, process: Process, ends: Array, fraction: Array) -> Array:
        first, last = _logsnr(process, ends)
        return process.time(_between(first, last, fraction))


@dataclasses.dataclass(frozen=True)
class Karras(_Spaced):
    """Evenly spaced in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5).

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless rho > 0.

    >>> from scoregen.process import EDM
    >>> Karras()(EDM(), 3).tolist()
    [80.0, 2.515..., 0.002...]
    """

    rho: float = 7.0

    def __post_init__(self):
        check_positive(rho=self.rho)

    def times(self, process: Process, ends: Array, fraction: Array) -> Array:
        first, last = jnp.exp(-0.5 / self.rho * _logsnr(process, ends))
        return process.time(-2 * self.rho * jnp.log(_between(first, last, fraction)))


@dataclasses.dataclass(frozen=True)
class Power(_Spaced):
    """Evenly spaced in t^(1 / power), so denser near the data.

    power=2 is DDIM's quadratic grid (Song, Meng & Ermon 2021, D.2).

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless power > 0.
    """

    power: float = 2.0

    def __post_init__(self):
        check_positive(power=self.power)

    def times(self, process: Process, ends: Array, fraction: Array) -> Array:
        first, last = ends.astype(fraction.dtype) ** (1 / self.power)
        return _between(first, last, fraction) ** self.power


# The grid of a process's paper, if it is not evenly spaced in time.
OWN: dict[type[Process], Grid] = {EDM: Karras()}


@dataclasses.dataclass(frozen=True)
class OwnGrid(Grid):
    """The grid of the process's own paper: `Karras()` for `EDM` and its subclasses, `EvenTime()` for all others."""

    def __call__(self, process: Process, n: int | None = None) -> Array:
        grid = next((OWN[kind] for kind in type(process).__mro__ if kind in OWN), EvenTime())
        return grid(process, n)


@dataclasses.dataclass(frozen=True)
class Listed(Grid):
    """The listed times, noisiest first; for a chain, its levels. Any sequence of numbers is stored as a tuple.

    Raises:
        ValueError: unless the times are numbers that fall strictly; when it is called, unless they lie within
            `process.ends` (an end may be rounded to float32), are whole numbers for a chain, and number n, if n is
            given.

    >>> from scoregen.process import VP
    >>> Listed((1.0, 0.5, 1e-3))(VP()).tolist()
    [1.0, 0.5, 0.001...]
    """

    times: tuple[float, ...] = ()

    def __post_init__(self):
        try:
            object.__setattr__(self, "times", tuple(map(float, self.times)))
        except (TypeError, ValueError):
            raise ValueError(f"times={self.times}: numbers are needed") from None
        if any(not a > b for a, b in zip(self.times, self.times[1:], strict=False)):
            raise ValueError(f"times={self.times}: they must fall, from the noisiest down")

    def __call__(self, process: Process, n: int | None = None) -> Array:
        _check(self.refuse(process, n))
        if process.discrete:
            return jnp.asarray([round(time) for time in self.times], jnp.int32)
        low, high = process.ends
        return jnp.asarray(np.clip(self.times, low, high))

    def refuse(self, process: Process, n: int | None = None) -> Refusal | None:
        low, high = process.ends
        if not self.times:
            return Refusal("times=(): at least one time is needed", (f"grid.times=({high:g},{low:g})", "grid=own"))
        if n not in (None, 0, len(self.times)):
            return Refusal(f"{len(self.times)} times are given, and n={n}", ("sampler.n=0",))
        # An end that was rounded to float32, as in arrays of times, may lie slightly outside.
        slack = 0 if process.discrete else 1e-6
        if not (self.times[0] <= high + slack * abs(high) and self.times[-1] >= low - slack * abs(low)):  # or NaN
            return Refusal(f"times={self.times}: they must lie between {high:g} and {low:g}")
        if process.discrete and any(time != round(time) for time in self.times):
            return Refusal(f"times={self.times}: the levels of a chain are whole numbers")
        if not process.discrete and (np.diff(np.asarray(self.times, np.float32)) >= 0).any():
            return Refusal(f"times={self.times}: they must fall also in float32")
        return None


GRIDS = {
    "own": OwnGrid,
    "time": EvenTime,
    "logsnr": EvenLogSNR,
    "karras": Karras,
    "power": Power,
    "list": Listed,
}
