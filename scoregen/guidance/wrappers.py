"""Wrappers of a denoiser: the range of the data, and classifier-free guidance."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from scoregen.denoiser import Denoiser, Prediction, check_denoiser, prediction_from_x0
from scoregen.errors import Refusal, check_finite, check_numbers, check_positive
from scoregen.process import Process
from scoregen.process.kernel import has_values
from scoregen.random import broadcast


class Node:
    """A class whose instances are pytrees: arrays, denoisers and other nodes are children, all else is static.

    Static attributes must be hashable. Instances with equal static attributes share a compiled program.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        jax.tree_util.register_pytree_node(cls, _flatten, lambda aux, children: _unflatten(cls, aux, children))


def _flatten(node: Node) -> tuple[list[Any], tuple]:
    fields = vars(node)
    # An unflattened node stores the names of its children, since JAX may put placeholders in place of arrays.
    names = fields.get(_CHILDREN) or tuple(name for name, value in fields.items() if _is_child(value))
    rest = tuple((name, value) for name, value in fields.items() if name not in (*names, _CHILDREN))
    return [fields[name] for name in names], (names, rest)


def _unflatten(cls: type, aux: tuple, children: Any) -> Any:
    names, rest = aux
    node = object.__new__(cls)
    node.__dict__.update(rest, **{_CHILDREN: names})
    node.__dict__.update(zip(names, children, strict=True))
    return node


def _is_child(value: Any) -> bool:
    return isinstance(value, Array | np.ndarray | jax.ShapeDtypeStruct | Denoiser | Node)


_CHILDREN = "_children"


class Wrapper(Node, abc.ABC):
    """A denoiser from a denoiser: `wrapper(denoiser) -> Denoiser`, under the same process.

    A wrapper of your own is a frozen dataclass with `predict`. Its arrays and denoisers are leaves of the denoiser that
    it returns, which can therefore be an argument of `jax.jit`. All its other fields are constants.

    Attributes:
        keeps_density: whether `Prediction.log_density` is kept, with the score as its gradient.
    """

    keeps_density: ClassVar[bool] = False

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        """The wrapped denoiser.

        Raises:
            TypeError: for anything but a denoiser.
            ValueError: if `refuse` has a reason.
        """
        check_denoiser(denoiser)
        if refusal := self.refuse(denoiser.process):
            raise ValueError(str(refusal))
        return Denoiser(denoiser.process, Partial(_predict, self, denoiser))

    @abc.abstractmethod
    def predict(self, denoiser: Denoiser, x: Array, t: Array) -> Prediction:
        """What the wrapped denoiser predicts for x `[B, ...]` at the times t `[B]`."""

    def refuse(self, process: Process) -> Refusal | None:
        """Why the wrapper cannot be used under `process`, or None if it can."""
        return None


def _predict(wrapper: Wrapper, denoiser: Denoiser, x: Array, t: Array) -> Prediction:
    return wrapper.predict(denoiser, x, t)


@dataclasses.dataclass(frozen=True)
class Free(Wrapper):
    """No limit on x0: the denoiser as it is."""

    keeps_density: ClassVar[bool] = True

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        return denoiser

    def predict(self, denoiser: Denoiser, x: Array, t: Array) -> Prediction:
        return denoiser(x, t)


@dataclasses.dataclass(frozen=True)
class Clip(Wrapper):
    """x0 clipped to the range of the data, as in the sampler of Ho et al. 2020; eps follows from x0.

    Attributes:
        low, high: the range, in the units that the network sees; a scaling has them as `low` and `high`.
        reach: x0 is clipped to a range that is so many times as wide, with the same middle.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless low < high and reach > 0; for a reach but 1 of an infinite range, which has no middle.

    >>> from scoregen.process import VP
    >>> big = Denoiser(VP(), lambda x, t: prediction_from_x0(VP(), x, t, 3 * jnp.ones_like(x)))
    >>> Clip(-1.0, 1.0)(big)(jnp.zeros((1, 2)), 0.5).x0.tolist()
    [[1.0, 1.0]]
    """

    low: float
    high: float
    reach: float = 1.0

    def __post_init__(self):
        _check_range(self.low, self.high)
        check_positive(reach=self.reach)
        known = has_values(self.low, self.high, self.reach)
        if known and self.reach != 1 and not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"reach={self.reach}: the range {self.low} to {self.high} has no middle: 1 is needed")

    def predict(self, denoiser: Denoiser, x: Array, t: Array) -> Prediction:
        found, more = denoiser(x, t), 0.5 * (self.reach - 1)
        wide = jnp.where(self.reach == 1, 0.0, more * (self.high - self.low))  # 0 also for an infinite range
        low, high = self.low - wide, self.high + wide
        return prediction_from_x0(denoiser.process, x, t, jnp.clip(found.x0, low, high), found.between)


@dataclasses.dataclass(frozen=True)
class DynamicThreshold(Wrapper):
    """Imagen's dynamic thresholding (Saharia et al. 2022, section 2.3): x0 scaled to the range of the data.

    With u = x0 mapped linearly from [low, high] to [-1, 1], and q a high quantile of |u| over the dimensions of an
    example, u is clipped to [-s, s] and divided by s, where s = min(max(q, 1), `most`). Values outside the range
    therefore move into it together with all others.

    Attributes:
        low, high: the range, in the units that the network sees; a scaling has them as `low` and `high`.
        quantile: the probability of the quantile q.
        most: the largest s; infinite in the paper. With 1, x0 is clipped to the range.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless low < high, both finite, 0 < quantile <= 1, and most >= 1.
    """

    low: float
    high: float
    quantile: float = 0.995
    most: float = math.inf

    def __post_init__(self):
        _check_range(self.low, self.high)
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"low={self.low}, high={self.high}: a dynamic threshold needs data of a finite range")
        check_numbers(lambda q: 0 < q <= 1, "more than 0, and 1 or less,", quantile=self.quantile)
        check_numbers(lambda most: most >= 1, "a number of at least 1", most=self.most)

    def predict(self, denoiser: Denoiser, x: Array, t: Array) -> Prediction:
        middle, half = 0.5 * (self.low + self.high), 0.5 * (self.high - self.low)
        found = denoiser(x, t)
        u = (found.x0 - middle) / half
        size = jnp.quantile(jnp.abs(u).reshape(len(u), -1), self.quantile, axis=1)
        s = broadcast(jnp.clip(size, 1, self.most), u)
        return prediction_from_x0(denoiser.process, x, t, middle + half * jnp.clip(u, -s, s) / s, found.between)


@dataclasses.dataclass(frozen=True)
class ClassifierFree(Wrapper):
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6), away from the unconditional denoiser.

        eps = eps_unconditional + scale (eps_conditional - eps_unconditional)

    The same formula gives x0, the score and the log-density. The wrapped denoiser is the conditional one. The paper's
    weight w is scale - 1. Scale 1 gives exactly the conditional denoiser and scale 0 exactly the unconditional one, and
    the other is not evaluated. Any other scale gives the score of p(x_t) p(c | x_t)^scale at each level separately.
    These products are not the noised distributions of any data: samples lie nearer to the middle of the class than the
    product at t = 0 does.

    Attributes:
        unconditional: the denoiser that knows no class, under the same process.
        scale: the guidance scale.

    Raises:
        TypeError: when it is called, unless both are denoisers.
        ValueError: when it is called with a scale other than 0 and 1, if the two denoisers are under different
            processes.

    >>> from scoregen.testing.oracle import gaussian
    >>> from scoregen.process import VE
    >>> one, two = (gaussian((m,), 1.0).denoiser(VE()) for m in (1.0, 2.0))
    >>> guided = ClassifierFree(one, 3.0)(two)
    >>> x, t = jnp.zeros((1, 1)), jnp.array([0.5])
    >>> [round(float(denoiser(x, t).x0[0, 0]), 4) for denoiser in (one, two, guided)]
    [0.3333, 0.6667, 1.3333]
    """

    keeps_density: ClassVar[bool] = True

    unconditional: Denoiser
    scale: float

    def __post_init__(self):
        check_finite(scale=self.scale)

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        check_denoiser(self.unconditional)
        check_denoiser(denoiser)
        if self.scale not in (0, 1) and not _same(self.unconditional.process, denoiser.process):
            raise ValueError(
                "the conditional and the unconditional denoiser are under different processes: say "
                "ClassifierFree(unconditional.under(denoiser.process), scale)(denoiser)"
            )
        if self.scale == 0:
            return self.unconditional
        return denoiser if self.scale == 1 else super().__call__(denoiser)

    def predict(self, denoiser: Denoiser, x: Array, t: Array) -> Prediction:
        ours, other = denoiser(x, t), self.unconditional(x, t)

        def extrapolate(ours: Array | None, other: Array | None) -> Array | None:
            return None if ours is None or other is None else other + self.scale * (ours - other)

        mixed = Prediction(*map(extrapolate, ours, other))  # pyright: ignore[reportArgumentType]
        return mixed._replace(between=ours.between)


def _same(a: Process, b: Process) -> bool:
    """Whether two processes are equal, as far as can be known: under `jit` the tables of a chain have no values."""
    if a is b:
        return True
    (ours, tree), (theirs, other) = jax.tree.flatten(a), jax.tree.flatten(b)
    if tree != other:
        return False
    equal: Callable[[Any, Any], bool] = np.array_equal if has_values(a, b) else lambda a, b: np.shape(a) == np.shape(b)
    return all(equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _check_range(low: float, high: float) -> None:
    check_numbers(lambda value: value == value, "a number, or an infinity,", low=low, high=high)
    if not low < high:
        raise ValueError(f"low={low}, high={high}: low < high is needed")


# How the estimate of x0 is kept in the range of the data.
X0S: dict[str, Callable[..., Wrapper]] = {"free": Free, "clip": Clip, "dynamic": DynamicThreshold}
