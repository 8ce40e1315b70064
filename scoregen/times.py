"""Time laws: which noise levels training draws, and with which density.

The reference is `Own`, the law that the process's paper trains with. Every law gives the ratio of its density to this
reference: `Drawn.ratio` = p_own(t) / q(t). A law with `importance` is importance sampling: losses are multiplied by the
ratio, so that their expectation is the same as under `Own`. Any other law changes how much each time counts in
training. Its ratio multiplies only a loss that is an average over times by definition (the variational bound).
A law may learn from the losses at its draws; what it has learned is a pytree in the training state.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr, ndtri

from scoregen.errors import check_fields, check_finite, check_positive
from scoregen.process import EDM, Process, bottom, snr_loss_rate, top
from scoregen.random import by_example, example_keys, split_keys


class Drawn(NamedTuple):
    """Times `[B]`, the ratios p_own / q there `[B]`, and the bin of each `[B]` (zero for laws without bins)."""

    t: Array
    ratio: Array
    bin: Array


class TimeLaw(abc.ABC):
    """A law q(t) of training times, with the protocol (init, draw, update) and a density.

    Attributes:
        importance: whether losses are multiplied by p_own / q, so that their expectation is the same as under `Own`.
    """

    importance: ClassVar[bool] = False

    def init(self, process: Process) -> Any:
        """The state before training, a pytree; () if the law learns nothing."""
        return ()

    @abc.abstractmethod
    def draw(self, process: Process, state: Any, key: Array, count: int) -> Drawn:
        """Draw times for `count` examples; example i depends only on its own key."""

    def update(self, state: Any, drawn: Drawn, losses: Array) -> Any:
        """The next state, from the losses `[B]` at the drawn times, without the importance ratio."""
        return state

    @abc.abstractmethod
    def density(self, process: Process, t: Array, state: Any = ()) -> Array:
        """q(t), `[B] -> [B]`, per unit of time; for a chain, the probability of the level."""


class Fixed(TimeLaw):
    """A law that learns nothing, given by its quantiles, its distribution function and its density."""

    @abc.abstractmethod
    def quantile(self, process: Process, u: Array) -> Array:
        """The time at the quantile u, which is uniform in [0, 1), `[B] -> [B]`; for a chain, an int32 level."""

    @abc.abstractmethod
    def cdf(self, process: Process, t: Array) -> Array:
        """The probability of times below t, `[B] -> [B]`; for a chain, of levels below the edge t - 1/2."""

    def density(self, process: Process, t: Array, state: Any = ()) -> Array:
        if process.discrete:
            return self.cdf(process, t + 1) - self.cdf(process, t)
        return jax.jvp(lambda t: self.cdf(process, t), (t,), (jnp.ones_like(t),))[1]

    def draw(self, process: Process, state: Any, key: Array, count: int) -> Drawn:
        t = self.quantile(process, by_example(jax.random.uniform, key, (count,)))
        return Drawn(t, own_density(process, t) / self.density(process, t), jnp.zeros(count, jnp.int32))


@dataclasses.dataclass(frozen=True)
class Uniform(Fixed):
    """All times between `process.ends`, or all levels of a chain, are equally likely.

    >>> from scoregen.process import VP, ddpm
    >>> Uniform().quantile(ddpm(), jnp.array([0.0, 0.9999])).tolist(), float(Uniform().density(VP(), jnp.array(0.5)))
    ([0, 999], 1.001...)
    """

    def quantile(self, process: Process, u: Array) -> Array:
        low, high = process.ends
        if process.discrete:
            count = int(high) + 1
            return jnp.minimum((u * count).astype(jnp.int32), count - 1)
        return low + u * (high - low)

    def cdf(self, process: Process, t: Array) -> Array:
        low, high = process.ends
        return t.astype(jnp.result_type(float)) / (high + 1) if process.discrete else (t - low) / (high - low)

    def density(self, process: Process, t: Array, state: Any = ()) -> Array:
        low, high = process.ends
        each = 1 / (high + 1) if process.discrete else 1 / (high - low)
        return jnp.full(jnp.shape(t), each, jnp.result_type(process.alpha(t)))


@dataclasses.dataclass(frozen=True)
class LogNormal(Fixed):
    """ln(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1), for any process, truncated at its ends.

    For a chain each draw takes the nearest level; a draw beyond the ends takes the end level.

    Raises:
        TypeError: if mean or std is not a number.
        ValueError: unless mean is finite and std > 0.

    >>> from scoregen.process import EDM
    >>> float(LogNormal().quantile(EDM(), jnp.array(0.5)))  # the median is exp(mean)
    0.301...
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        check_finite(mean=self.mean)
        check_positive(std=self.std)

    def _standard(self, process: Process, t: Array) -> Array:
        return (-0.5 * process.logsnr(t) - self.mean) / self.std

    def _edge(self, process: Process, t: Array) -> Array:
        """`_standard` at half a level below t."""
        return self._standard(process, t.astype(jnp.result_type(float)) - 0.5)

    def _ends(self, process: Process) -> tuple[Array, Array]:
        """The probabilities of noise below the least noisy and below the noisiest end, in the untruncated law."""
        if process.discrete:
            return jnp.zeros(()), jnp.ones(())
        return ndtr(self._standard(process, bottom(process))), ndtr(self._standard(process, top(process)))

    def quantile(self, process: Process, u: Array) -> Array:
        low, high = (end.astype(u.dtype) for end in self._ends(process))
        t = process.time(-2 * (self.mean + self.std * ndtri(_inside(low + _inside(u) * (high - low)))))
        return jnp.round(t).astype(jnp.int32) if process.discrete else t

    def cdf(self, process: Process, t: Array) -> Array:
        if process.discrete:
            at = ndtr(self._edge(process, t))
            return jnp.where(t <= 0, 0.0, jnp.where(t > process.ends[1], 1.0, at))
        low, high = (end.astype(t.dtype) for end in self._ends(process))
        return (ndtr(self._standard(process, t)) - low) / (high - low)

    def density(self, process: Process, t: Array, state: Any = ()) -> Array:
        if process.discrete:
            below, above = self._edge(process, t), self._edge(process, t + 1)
            below, above = jnp.where(t <= 0, -jnp.inf, below), jnp.where(t >= process.ends[1], jnp.inf, above)
            # The upper tail is mirrored, where less cancels: no level that can be drawn gets density 0.
            return jnp.where(below > 0, ndtr(-below) - ndtr(-above), ndtr(above) - ndtr(below))
        low, high = (end.astype(t.dtype) for end in self._ends(process))
        bell = _bell(self._standard(process, t))
        # At alpha = 0 the rate is infinite, but the density is 0.
        rate = jnp.where(bell > 0, snr_loss_rate(process, t), 0)
        return 0.5 * rate * bell / (self.std * (high - low))


@dataclasses.dataclass(frozen=True)
class Own(Fixed):
    """The law of the process's own paper: `LogNormal()` for `EDM`, and uniform in time for all others."""

    importance = True

    def quantile(self, process: Process, u: Array) -> Array:
        return _own(process).quantile(process, u)

    def cdf(self, process: Process, t: Array) -> Array:
        return _own(process).cdf(process, t)

    def density(self, process: Process, t: Array, state: Any = ()) -> Array:
        return _own(process).density(process, t)


def _own(process: Process) -> Fixed:
    return next((OWN[kind] for kind in type(process).__mro__ if kind in OWN), Uniform())


def own_density(process: Process, t: Array) -> Array:
    """The density of `Own` at t, `[B] -> [B]`, by which an average over training times is divided."""
    return _own(process).density(process, t)


@dataclasses.dataclass(frozen=True)
class LogitNormal(Fixed):
    """The time at the quantile u of `Own`, where logit(u) ~ N(mean, std^2) (Esser et al. 2024, section 3.1).

    For flow matching u is the time itself, and the middle of the path is drawn more often than its ends.

    Raises:
        TypeError: if mean or std is not a number.
        ValueError: unless mean is finite and std > 0.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        check_finite(mean=self.mean)
        check_positive(std=self.std)

    def quantile(self, process: Process, u: Array) -> Array:
        return _own(process).quantile(process, jax.nn.sigmoid(self.mean + self.std * ndtri(_inside(u))))

    def _standard(self, process: Process, t: Array) -> tuple[Array, Array]:
        """The quantile u of `Own`, and its logit as a standard normal number."""
        # Clipped away from 0 and 1, where the logit is infinite: this moves 1e-7 of `Own`'s probability at each end.
        u = jnp.clip(_own(process).cdf(process, t), 1e-7, 1 - 1e-7)
        return u, (jnp.log(u) - jnp.log1p(-u) - self.mean) / self.std

    def cdf(self, process: Process, t: Array) -> Array:
        below = ndtr(self._standard(process, t)[1])
        if not process.discrete:
            return below
        return jnp.where(t <= 0, 0.0, jnp.where(t > process.ends[1], 1.0, below))

    def density(self, process: Process, t: Array, state: Any = ()) -> Array:
        if process.discrete:
            return super().density(process, t)
        u, z = self._standard(process, t)
        return _own(process).density(process, t) * (_bell(z) / (self.std * u * (1 - u)))


class _Importance(TimeLaw):
    """Importance sampling by a histogram over the quantiles u of `Own`.

    Bin j of M holds u from j/M to (j+1)/M; a chain has a bin for each level. If bin j has the probability P_j,
    the ratio p_own / q is exactly 1 / (M P_j), however good or bad the histogram is.
    """

    importance = True

    def bins(self, process: Process) -> int:
        return int(process.ends[1]) + 1 if process.discrete else 100

    @abc.abstractmethod
    def histogram(self, process: Process, state: Any) -> Array:
        """P_j, `[M]`, all positive."""

    def draw(self, process: Process, state: Any, key: Array, count: int) -> Drawn:
        which, where = (by_example(jax.random.uniform, k, (count,)) for k in split_keys(example_keys(key, count), 2))
        return self.at(process, state, which, where)

    def at(self, process: Process, state: Any, which: Array, where: Array) -> Drawn:
        """The draw for two numbers in [0, 1): `which` `[B]` selects the bin, `where` `[B]` the place within it."""
        histogram = self.histogram(process, state)
        total = jnp.cumsum(histogram)
        index = jnp.minimum(jnp.searchsorted(total, which * total[-1], side="right"), histogram.size - 1)
        # For a chain take the middle of the bin, which rounding cannot move to the next bin.
        u = (index.astype(histogram.dtype) + (0.5 if process.discrete else where)) / histogram.size
        u = jnp.minimum(u, 1 - jnp.finfo(u.dtype).epsneg)  # the sum above may round up to 1
        t = _own(process).quantile(process, u)
        return Drawn(t, total[-1] / (histogram.size * histogram[index]), index.astype(jnp.int32))

    def density(self, process: Process, t: Array, state: Any = ()) -> Array:
        histogram = self.histogram(process, state if state != () else self.init(process))
        own = _own(process)
        if process.discrete:
            return histogram[t] / histogram.sum()
        index = jnp.clip((own.cdf(process, t) * histogram.size).astype(jnp.int32), 0, histogram.size - 1)
        return own.density(process, t) * histogram.size * histogram[index] / histogram.sum()


# Where the log-SNR ends for draws at alpha = 0, where it is -inf: the signal is then 0.15 % of the noise.
LEAST_LOGSNR = -13.0


@dataclasses.dataclass(frozen=True)
class UniformLogSNR(_Importance):
    """Uniform in the log-SNR, which spreads the variational bound evenly (Song, Durkan et al. 2021, section 3.2).

    The bound's integrand is -lam' / 2 ||eps - eps_theta||^2, so with q proportional to -lam' = g^2 / sigma^2
    only the error of eps is left. The probability of a bin is proportional to its range of log-SNR, and within a bin
    the law is `Own`. A thousandth of all draws follows `Own` alone.
    """

    def histogram(self, process: Process, state: Any) -> Array:
        if process.discrete:
            levels = jnp.arange(self.bins(process))
            gaps = jnp.log1p(snr_loss_rate(process, levels))
            # At alpha = 0 the gap is infinite; there it ends at the least log-SNR, or is 0.
            last = jnp.maximum(process.logsnr(levels - 1) - LEAST_LOGSNR, 0)
            gaps = jnp.where(jnp.isfinite(gaps), gaps, last)
        else:
            edges = _own(process).quantile(process, jnp.linspace(0.0, 1.0, self.bins(process) + 1))
            lam = process.logsnr(edges)
            lam = jnp.where(process.alpha(edges) < 0.01, jnp.maximum(lam, LEAST_LOGSNR), lam)  # at alpha = 0, -inf
            gaps = -jnp.diff(lam)
        return 0.999 * gaps / gaps.sum() + 0.001 / gaps.size


@dataclasses.dataclass(frozen=True)
class SecondMoment(_Importance):
    """q ~ sqrt(E[L_t^2]) over the last `history` losses of each bin (Nichol & Dhariwal 2021, eq. 18).

    A thousandth of the draws follows `Own`. Until every bin has seen `history` losses, all draws do.

    Raises:
        TypeError: if history is not an integer.
        ValueError: if history < 1.
    """

    history: int = 10

    def __post_init__(self):
        check_fields(self, history=1)

    def init(self, process: Process) -> Any:
        """The last losses `[M, history]` and how many there have been `[M]`."""
        return jnp.zeros((self.bins(process), self.history)), jnp.zeros(self.bins(process), jnp.int32)

    def histogram(self, process: Process, state: Any) -> Array:
        losses, seen = state
        q = jnp.sqrt(jnp.mean(losses**2, 1))
        even = jnp.full_like(q, 1 / q.size)
        ready = (seen.min() >= self.history) & (q.sum() > 0)
        return jnp.where(ready, 0.999 * q / jnp.where(ready, q.sum(), 1.0) + 0.001 / q.size, even)

    def update(self, state: Any, drawn: Drawn, losses: Array) -> Any:
        def put(i: Array, state: Any) -> Any:  # one example at a time: a bin may be drawn twice
            table, seen = state
            j = drawn.bin[i]
            return table.at[j, seen[j] % self.history].set(losses[i].astype(table.dtype)), seen.at[j].add(1)

        return jax.lax.fori_loop(0, losses.shape[0], put, state)


def _inside(u: Array) -> Array:
    """u clipped away from 0 and 1, where normal quantiles are infinite, by half the spacing of uniform draws."""
    return jnp.clip(u, jnp.finfo(u.dtype).epsneg, 1 - jnp.finfo(u.dtype).epsneg)


def _bell(z: Array) -> Array:
    """The density of N(0, 1)."""
    return jnp.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


# The law that a process's paper trains with, if it is not uniform.
OWN: dict[type[Process], Fixed] = {EDM: LogNormal()}

TIMES = {
    "own": Own,
    "uniform": Uniform,
    "lognormal": LogNormal,
    "logitnormal": LogitNormal,
    "logsnr": UniformLogSNR,
    "second_moment": SecondMoment,
}
