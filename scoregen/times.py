"""Time laws: which noise levels training draws.

A law draws times and the weight of each. The weight is one where the law is a choice of what to train on, and
p(t) / q(t) where it is importance sampling: there q is drawn from, p is the process's own law, and expectations
stay those under p. A law may learn from the losses it has led to; what it knows is a pytree in the training state.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.process import Process, draw, example_keys, split_keys


class Drawn(NamedTuple):
    """Times `[B]`, their weights `[B]`, and which of a law's bins each fell in, `[B]` (zero where there are none)."""

    t: Array
    weight: Array
    bin: Array


class TimeLaw(abc.ABC):
    """The base of all: learns nothing.

    Attributes:
        importance: whether expectations are those under the process's own law.
    """

    importance: bool

    def init(self, process: Process) -> Any:
        """What the law knows before training."""
        return ()

    @abc.abstractmethod
    def __call__(self, process: Process, known: Any, key: Array, count: int) -> Drawn:
        """Draw for `count` examples; example i depends on its own key alone."""

    def update(self, known: Any, drawn: Drawn, losses: Array) -> Any:
        """What the law knows after the losses `[B]` (without their weights) at the times drawn."""
        return known


class _Unweighted(TimeLaw):
    """A law whose draws all have the weight one."""

    importance = False

    @abc.abstractmethod
    def draw(self, process: Process, key: Array, count: int) -> Array:
        """Times `[B]`."""

    def __call__(self, process: Process, known: Any, key: Array, count: int) -> Drawn:
        return Drawn(self.draw(process, key, count), jnp.ones(count), jnp.zeros(count, jnp.int32))


@dataclasses.dataclass(frozen=True)
class Own(_Unweighted):
    """The process's own law: uniform, but for EDM, whose is log-normal."""

    importance = True

    def draw(self, process: Process, key: Array, count: int) -> Array:
        return process.sample_time(key, (count,))


def _at_logsnr(process: Process, logsnr: Array) -> Array:
    t = process.time(logsnr)
    return jnp.round(t).astype(jnp.int32) if process.discrete else t


@dataclasses.dataclass(frozen=True)
class LogNormal(_Unweighted):
    """log(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1), for any process, held at its ends.

    A chain's level is the nearest.

    Raises:
        ValueError: unless std > 0.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        _check_std(self.std)

    def draw(self, process: Process, key: Array, count: int) -> Array:
        return _at_logsnr(process, -2 * (self.mean + self.std * draw(jax.random.normal, key, (count,))))


@dataclasses.dataclass(frozen=True)
class LogitNormal(_Unweighted):
    """The process's own law at the quantile u, where logit(u) ~ N(mean, std^2) (Esser et al. 2024, section 3.1).

    For flow matching u is the time itself, and the middle of the path is drawn more often than its ends.

    Raises:
        ValueError: unless std > 0.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        _check_std(self.std)

    def draw(self, process: Process, key: Array, count: int) -> Array:
        return process.spread(jax.nn.sigmoid(self.mean + self.std * draw(jax.random.normal, key, (count,))))


class _Importance(TimeLaw):
    """Importance sampling by a histogram over the quantiles u of the process's own law.

    Bin j of M holds u from j/M to (j+1)/M; a chain has a bin for each level. With the probability P_j of a bin, the
    weight p / q is 1 / (M P_j), exactly, however good or bad the histogram is.
    """

    importance = True

    def bins(self, process: Process) -> int:
        return process.levels if process.discrete else 100

    @abc.abstractmethod
    def histogram(self, process: Process, known: Any) -> Array:
        """P_j, `[M]`, all positive."""

    def __call__(self, process: Process, known: Any, key: Array, count: int) -> Drawn:
        which, where = (draw(jax.random.uniform, k, (count,)) for k in split_keys(example_keys(key, count), 2))
        return self.at(process, known, which, where)

    def at(self, process: Process, known: Any, which: Array, where: Array) -> Drawn:
        """What two numbers of [0, 1) draw: `which` `[B]` is the quantile over the bins, `where` `[B]` within one."""
        histogram = self.histogram(process, known)
        total = jnp.cumsum(histogram)
        index = jnp.minimum(jnp.searchsorted(total, which * total[-1], side="right"), histogram.size - 1)
        # Of a chain's bin the middle, which no rounding takes to the next.
        u = (index.astype(histogram.dtype) + (0.5 if process.discrete else where)) / histogram.size
        u = jnp.minimum(u, 1 - jnp.finfo(u.dtype).epsneg)  # the sum above may round up to 1
        return Drawn(process.spread(u), total[-1] / (histogram.size * histogram[index]), index.astype(jnp.int32))


@dataclasses.dataclass(frozen=True)
class UniformLogSNR(_Importance):
    """Uniform in the log-SNR, which spreads the variational bound evenly (Song, Durkan et al. 2021, section 3.2).

    The bound's integrand is -lam' / 2 ||eps - eps_theta||^2, so with q ~ -lam' = g^2 / sigma^2 the
    error of eps alone remains. It is uniform from bin to bin, and within a bin as the process's own law is; a
    thousandth is drawn from that law throughout.
    """

    def histogram(self, process: Process, known: Any) -> Array:
        if process.discrete:
            gaps = jnp.log1p(process.rate(jnp.arange(process.levels)))
        else:
            edges = process.spread(jnp.linspace(0.0, 1.0, self.bins(process) + 1))
            gaps = -jnp.diff(jnp.maximum(process.logsnr(edges), -13.0))  # at alpha = 0 lam is -inf
        return 0.999 * gaps / gaps.sum() + 0.001 / gaps.size


@dataclasses.dataclass(frozen=True)
class SecondMoment(_Importance):
    """q ~ sqrt(E[L_t^2]) over the last `history` losses of each bin (Nichol & Dhariwal 2021, eq. 18).

    A thousandth is drawn from the process's own law, and all is, until every bin has seen `history` losses.

    Raises:
        ValueError: if history < 1.
    """

    history: int = 10

    def __post_init__(self):
        if self.history < 1:
            raise ValueError(f"history={self.history}: at least 1 is needed")

    def init(self, process: Process) -> Any:
        """The last losses `[M, history]` and how many there have been `[M]`."""
        return jnp.zeros((self.bins(process), self.history)), jnp.zeros(self.bins(process), jnp.int32)

    def histogram(self, process: Process, known: Any) -> Array:
        losses, seen = known
        q = jnp.sqrt(jnp.mean(losses**2, 1))
        even = jnp.full_like(q, 1 / q.size)
        ready = (seen.min() >= self.history) & (q.sum() > 0)
        return jnp.where(ready, 0.999 * q / jnp.where(ready, q.sum(), 1.0) + 0.001 / q.size, even)

    def update(self, known: Any, drawn: Drawn, losses: Array) -> Any:
        def put(i: Array, known: Any) -> Any:  # one after the other: a bin may be drawn twice
            table, seen = known
            j = drawn.bin[i]
            return table.at[j, seen[j] % self.history].set(losses[i]), seen.at[j].add(1)

        return jax.lax.fori_loop(0, losses.shape[0], put, known)


def _check_std(std: float) -> None:
    if not std > 0:
        raise ValueError(f"std={std}: a positive number is needed")


TIMES = {
    "own": Own,
    "lognormal": LogNormal,
    "logitnormal": LogitNormal,
    "logsnr": UniformLogSNR,
    "second_moment": SecondMoment,
}
