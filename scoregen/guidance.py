"""Wrappers of a denoiser: what is known of x0 from elsewhere, put into every estimate of it.

Each is `(process, predict) -> predict`, so it works with every sampler, and they compose. What is known may be the
range of the data (`Clip`, `DynamicThreshold`), a class (`ClassifierFree`), or a linear measurement y = A x0 + noise
(`Replace`, `Likelihood`): pixels for inpainting, grey values for colorization, any matrix.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.denoiser import Predict, Prediction, of_x0
from scoregen.process import Process, rows


@dataclasses.dataclass(frozen=True)
class Clip:
    """x0 clipped to the range of the data, as in the sampler of Ho et al. 2020; eps is then what is left of x.

    Attributes:
        low, high: the range; the run takes it from the data's scaling.

    Raises:
        ValueError: unless low < high.
    """

    low: float
    high: float

    def __post_init__(self):
        _check_range(self.low, self.high)

    def __call__(self, process: Process, predict: Predict) -> Predict:
        def clipped(x: Array, t: Array) -> Prediction:
            found = predict(x, t)
            return of_x0(process, x, t, jnp.clip(found.x0, self.low, self.high), found.between)

        return clipped


@dataclasses.dataclass(frozen=True)
class DynamicThreshold:
    """Imagen's dynamic thresholding (Saharia et al. 2022, section 2.3): x0 scaled to the range of the data.

    With u = x0 as a number of [-1, 1] and q a high quantile of |u| over an example's dimensions, u is clipped to
    [-s, s] and divided by s, where s = max(q, 1). So what would be clipped is pulled in with all the rest.

    Attributes:
        low, high: the range; the run takes it from the data's scaling.
        quantile: which one.

    Raises:
        ValueError: unless low < high, both finite, and 0 < quantile <= 1.
    """

    low: float
    high: float
    quantile: float = 0.995

    def __post_init__(self):
        _check_range(self.low, self.high)
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"low={self.low}, high={self.high}: data without a range have nothing to be scaled to")
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile={self.quantile}: more than 0, and 1 or less, is needed")

    def __call__(self, process: Process, predict: Predict) -> Predict:
        middle, half = 0.5 * (self.low + self.high), 0.5 * (self.high - self.low)

        def scaled(x: Array, t: Array) -> Prediction:
            found = predict(x, t)
            u = (found.x0 - middle) / half
            size = jnp.quantile(jnp.abs(u).reshape(len(u), -1), self.quantile, axis=1)
            s = rows(jnp.maximum(size, 1), u)
            return of_x0(process, x, t, middle + half * jnp.clip(u, -s, s) / s, found.between)

        return scaled


@dataclasses.dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): away from what any example looks like, towards the class's.

        eps = eps_unconditional + scale (eps_conditional - eps_unconditional)

    and so for x0 and the score, which are linear in eps. The wrapped denoiser is the conditional one. The paper's
    weight w is scale - 1: at scale 1 the conditional denoiser is all there is and at 0 the unconditional, exactly, and
    the other is not even asked. Any other scale is the score of p(x_t) p(c | x_t)^scale at each level by itself, which
    is not the noised law of any data: draws are nearer to the class's middle than that product at t = 0.

    Attributes:
        unconditional: the denoiser that knows no class.
        scale: how far.

    >>> from scoregen.oracle import gaussian
    >>> from scoregen.process import VE
    >>> one, two = (gaussian((m,), 1.0).predict(VE()) for m in (1.0, 2.0))
    >>> guided = ClassifierFree(one, 3.0)(VE(), two)
    >>> x, t = jnp.zeros((1, 1)), jnp.array([0.5])
    >>> [round(float(predict(x, t).x0[0, 0]), 4) for predict in (one, two, guided)]
    [0.3333, 0.6667, 1.3333]
    """

    unconditional: Predict
    scale: float

    def __call__(self, process: Process, predict: Predict) -> Predict:
        if self.scale in (0, 1):
            return predict if self.scale == 1 else self.unconditional

        def beyond(ours: Array | None, other: Array | None) -> Array | None:
            return None if ours is None or other is None else other + self.scale * (ours - other)

        def guided(x: Array, t: Array) -> Prediction:
            ours, other = predict(x, t), self.unconditional(x, t)
            mixed = Prediction(*map(beyond, ours, other))  # pyright: ignore[reportArgumentType]
            return mixed._replace(between=ours.between)

        return guided


class Linear(abc.ABC):
    """A linear measurement A of every example, `[B, ...] -> [B, M]`, whose rows are linearly independent."""

    @abc.abstractmethod
    def __call__(self, x: Array) -> Array:
        """A x, `[B, M]`."""

    @abc.abstractmethod
    def solve(self, y: Array, noise: Array | float, signal: Array | float) -> Array:
        """(noise I + signal A A^T)^-1 y, `[B, M]`, where noise and signal are numbers or `[B]`."""

    def nearest(self, x: Array, y: Array) -> Array:
        """The point nearest to x `[B, ...]` of which y `[B, M]` is measured: x + A^T (A A^T)^-1 (y - A x)."""
        seen, transpose = jax.vjp(self, x)
        return x + transpose(self.solve(y - seen, 0.0, 1.0))[0]


class Pixels(Linear):
    """Some of the numbers of an example as they are.

    Args:
        seen: which ones, booleans in the shape of an example.

    >>> left = Pixels(np.array([True, False]))
    >>> left(jnp.array([[1.0, 2.0]])).tolist(), left.nearest(jnp.zeros((1, 2)), jnp.array([[5.0]])).tolist()
    ([[1.0]], [[5.0, 0.0]])
    """

    def __init__(self, seen: np.ndarray):
        self.index = np.flatnonzero(seen)

    def __call__(self, x: Array) -> Array:
        return x.reshape(len(x), -1)[:, self.index]

    def solve(self, y: Array, noise: Array | float, signal: Array | float) -> Array:
        return y / _column(noise + signal, y)

    def nearest(self, x: Array, y: Array) -> Array:
        # Put there and not added up: what is known is then known to the last bit.
        return x.reshape(len(x), -1).at[:, self.index].set(y).reshape(x.shape)


class Grey(Linear):
    """The mean over the last axis of an image, `[B, H, W, C] -> [B, H W]`.

    With an orthogonal matrix Q whose first row is (1, ..., 1) / sqrt(C) it is the first of the coordinates Q x of a
    pixel, but for sqrt(C): so `nearest` is the replacement in these coordinates of Song et al. 2021 (appendix I.3).
    """

    def __init__(self, channels: int = 3):
        self.channels = channels

    def __call__(self, x: Array) -> Array:
        return x.mean(-1).reshape(len(x), -1)

    def solve(self, y: Array, noise: Array | float, signal: Array | float) -> Array:
        return y / _column(noise + signal / self.channels, y)


class Matrix(Linear):
    """Any matrix A `[M, D]`, of examples flattened to `[B, D]`.

    Raises:
        ValueError: if its rows are not linearly independent.

    >>> total = Matrix(np.array([[1.0, 1.0]]))
    >>> total.nearest(jnp.zeros((1, 2)), jnp.array([[6.0]])).round(4).tolist()
    [[3.0, 3.0]]
    """

    def __init__(self, matrix: np.ndarray):
        self.matrix = np.asarray(matrix, np.float64)
        rank = np.linalg.matrix_rank(self.matrix)
        if rank < len(self.matrix):
            raise ValueError(f"{len(self.matrix)} rows of rank {rank}: leave out those that the others say already")
        self.values, self.vectors = np.linalg.eigh(self.matrix @ self.matrix.T)

    def __call__(self, x: Array) -> Array:
        return x.reshape(len(x), -1) @ jnp.asarray(self.matrix.T, x.dtype)

    def solve(self, y: Array, noise: Array | float, signal: Array | float) -> Array:
        vectors, values = (jnp.asarray(a, y.dtype) for a in (self.vectors, self.values[None]))
        return ((y @ vectors) / (_column(noise, y) + _column(signal, y) * values)) @ vectors.T


@dataclasses.dataclass(frozen=True)
class Replace:
    """What was measured, put in the place of what is estimated: x0 <- x0 + A^T (A A^T)^-1 (y - A x0).

    For `Pixels` the known ones are known exactly, at the last step too. Under ancestral sampling their x_t then walks
    a path of the forward process given y, so this is the inpainting of Song et al. 2021 (appendix I.2), but that they
    draw every level's noise anew; Wang et al. 2023 (DDNM) do it for any A. A Langevin corrector goes back and forth
    within a level, which is what the resampling of Lugmayr et al. 2022 is for.

    It is not the posterior: what is not seen is guessed from the noised y, which says less than y does until the noise
    is gone, and steps taken by then are not taken back. Of N(0, 1) in two dimensions with correlation r, the first
    measured as y, ancestral steps in the limit of many draw the second with the mean y (1 - sqrt(1 - r^2)) / r in place
    of r y: for r = 0.8 that is 0.5 y and not 0.8 y, with a deviation of 0.734 and not 0.6. y is taken as exact; noise
    in it stays in the draws.

    Attributes:
        measure: A.
        y: what it gave, `[B, M]`, or `[1, M]` for all.
    """

    measure: Linear
    y: Array

    def __call__(self, process: Process, predict: Predict) -> Predict:
        def replaced(x: Array, t: Array) -> Prediction:
            found = predict(x, t)
            return of_x0(process, x, t, self.measure.nearest(found.x0, self.y.astype(x.dtype)), found.between)

        return replaced


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The score of the posterior, that of the data plus grad log p(y | x_t), with y = A x0 + std z measured.

        p(y | x_t) ~ N(y ; A x0(x_t), S),     S = std^2 I + A V A^T,     V ~ Cov[x0 | x_t]
        x0 <- x0 + scale (sigma^2 / alpha) J^T A^T S^-1 (y - A x0),       J = dx0 / dx, through the denoiser

    which with V = (sigma^2 / alpha) J, Tweedie's formula of second order, is a Kalman update of the estimate x0. What
    is taken for V is the method:

        "none"       V = 0, diffusion posterior sampling (Chung et al. 2023, eq. 16: its rho = 1 / std^2 is scale = 2)
        "isotropic"  V = r^2 I with r^2 = sigma^2 d^2 / (alpha^2 d^2 + sigma^2), d = data_std: Pi-GDM (Song et al. 2023)
        "jacobian"   V = (sigma^2 / alpha) J, exact where p(x0 | x_t) is Gaussian: on Gaussian data the draws are those
                     of the posterior. It takes M derivatives of the network at each step.

    Without V the measurement is believed too much where there is noise, where y is far from A x0 also for the right
    x0. Of N(0, 1), measured as y, ancestral steps with "none" in the limit of many have the mean y (1 - e^(-1 / std^2))
    and the variance (1 - e^(-2 / std^2)) std^2 / 2 in place of y / (1 + std^2) and std^2 / (1 + std^2): for std = 1/2
    that is 0.982 y and 0.354^2, not 0.8 y and 0.447^2. It also makes steps stiff: those with
    w (alpha V / (sigma std))^2 > 2, for w of `process.posterior` and the true V, overshoot, so levels must be many
    where std is far below the data's deviation.

    Attributes:
        measure: A.
        y: what it gave, `[B, M]`, or `[1, M]` for all.
        std: the noise of the measurement.
        spread: the method.
        scale: a factor of grad log p(y | x_t).

    Raises:
        ValueError: unless std > 0 and the method exists; when it is called, if alpha = 0 at the noisiest level.
    """

    measure: Linear
    y: Array
    std: float
    spread: str = "jacobian"
    scale: float = 1.0

    def __post_init__(self):
        _check_std(self.std)
        if self.spread not in SPREADS:
            raise ValueError(f"spread={self.spread!r}: one of {', '.join(SPREADS)} is needed")

    def __call__(self, process: Process, predict: Predict) -> Predict:
        with jax.ensure_compile_time_eval():
            # No chain has such a level, and the tables of one that is an argument of jit have no values here.
            if not process.discrete and float(process.alpha(process.grid(1))[0]) == 0:
                raise ValueError("alpha = 0 at the noisiest level, where x says nothing of the data: begin below it")
        if self.y.shape[-1] == 0:
            return predict  # nothing is known

        def steered(x: Array, t: Array) -> Prediction:
            def look(x: Array) -> tuple[Array, Prediction]:
                found = predict(x, t)
                return self.measure(found.x0), found

            seen, pull, found = jax.vjp(look, x, has_aux=True)
            off = self.y.astype(x.dtype) - seen
            ratio = process.sigma(t) ** 2 / process.alpha(t)
            (step,) = pull(SPREADS[self.spread](process, t, self.measure, self.std**2, off, pull))
            return of_x0(process, x, t, found.x0 + rows(self.scale * ratio, x) * step, found.between)

        return steered


Spread = Callable[[Process, Array, Linear, float, Array, Callable[[Array], tuple[Array]]], Array]


def _none(process: Process, t: Array, measure: Linear, noise: float, off: Array, pull: Callable) -> Array:
    return off / noise


def _isotropic(process: Process, t: Array, measure: Linear, noise: float, off: Array, pull: Callable) -> Array:
    data, lost = (process.alpha(t) * process.data_std) ** 2, process.sigma(t) ** 2
    return measure.solve(off, noise, lost * process.data_std**2 / (data + lost))


def _jacobian(process: Process, t: Array, measure: Linear, noise: float, off: Array, pull: Callable) -> Array:
    # One derivative for each measured number: row i of A J A^T is A (J^T A^T e_i).
    units = jnp.eye(off.shape[1], dtype=off.dtype)
    table = jax.vmap(lambda unit: measure(pull(jnp.broadcast_to(unit, off.shape))[0]), out_axes=1)(units)
    ratio = process.sigma(t) ** 2 / process.alpha(t)
    # Of a network it is a covariance only nearly: symmetric, and without negative variances, once made so.
    values, vectors = jnp.linalg.eigh(rows(ratio, table) * table, symmetrize_input=True)
    along = jnp.einsum("bmk,bm->bk", vectors, off) / (noise + jnp.maximum(values, 0))
    return jnp.einsum("bmk,bk->bm", vectors, along)


# S^-1 (y - A x0), `[B, M]`, by what is taken for the covariance of x0 given x_t.
SPREADS: dict[str, Spread] = {"none": _none, "isotropic": _isotropic, "jacobian": _jacobian}
METHODS = {"replace": None, "dps": "none", "pigdm": "isotropic", "moments": "jacobian"}


@dataclasses.dataclass(frozen=True)
class Control(abc.ABC):
    """What `Inpaint` and `Colorize` share: a measurement of images, and the method by which it is heeded."""

    method: str = "replace"
    std: float = 0.1
    scale: float = 1.0
    max_measured: int = 256

    def __post_init__(self):
        _check_std(self.std)
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: one of {', '.join(METHODS)} is needed")

    @abc.abstractmethod
    def measure(self, shape: tuple[int, ...]) -> Linear:
        """A, for images of this shape (H, W, C)."""

    def count(self, shape: tuple[int, ...]) -> int:
        """M, how many numbers are measured of an image of this shape."""
        return jax.eval_shape(self.measure(shape), jax.ShapeDtypeStruct((1, *shape), jnp.float32)).shape[1]

    def derivatives(self, shape: tuple[int, ...]) -> int:
        """How many derivatives of the network each evaluation of it brings along, for images of this shape."""
        return {"replace": 0, "moments": self.count(shape) + 1}.get(self.method, 1)

    def __call__(self, clean: Array) -> Callable[[Process, Predict], Predict]:
        """The wrapper that knows of each image `[B, H, W, C]` what is measured of it, and no more."""
        measure, spread = self.measure(clean.shape[1:]), METHODS[self.method]
        y = measure(clean)
        return Replace(measure, y) if spread is None else Likelihood(measure, y, self.std, spread, self.scale)

    def seen(self, clean: Array, blank: float) -> Array:
        """A picture of what is measured, `[B, H, W, C]`, with `blank` where nothing is."""
        measure = self.measure(clean.shape[1:])
        return measure.nearest(jnp.full_like(clean, blank), measure(clean))


def _hidden(region: str, height: int, width: int) -> tuple[slice, slice]:
    return {
        "left": np.s_[:, : width // 2],
        "right": np.s_[:, width // 2 :],
        "top": np.s_[: height // 2, :],
        "bottom": np.s_[height // 2 :, :],
        "box": np.s_[height // 4 : height - height // 4, width // 4 : width - width // 4],
    }[region]


@dataclasses.dataclass(frozen=True)
class Inpaint(Control):
    """A part of each image is hidden, and drawn given the rest.

    Attributes:
        hidden: which: left, right, top, bottom (halves), or box (the middle quarter).
        method: replace (`Replace`), dps, pigdm or moments (`Likelihood` with V = 0, isotropic, or of the Jacobian).
        std: the noise that the pixels are taken to have, in the network's units; not for replace.
        scale: a factor of the likelihood's score; not for replace.
        max_measured: for moments, how many measured numbers, and so derivatives of the network a step, are allowed.

    Raises:
        ValueError: for a part or a method that does not exist, and unless std > 0.

    >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> Inpaint(hidden="right").seen(x, -1.0).ravel().tolist()
    [0.0, -1.0, 2.0, -1.0]
    """

    hidden: str = "right"

    def __post_init__(self):
        super().__post_init__()
        if self.hidden not in ("left", "right", "top", "bottom", "box"):
            raise ValueError(f"hidden={self.hidden!r}: one of left, right, top, bottom, box is needed")

    def measure(self, shape: tuple[int, ...]) -> Linear:
        seen = np.ones(shape, bool)
        seen[_hidden(self.hidden, *shape[:2])] = False
        return Pixels(seen)


@dataclasses.dataclass(frozen=True)
class Colorize(Control):
    """The mean of the channels is known, and the colours are drawn given it.

    By `replace` it is put into the estimate of x0 as it is, after a clip if there is one: the samples then have exactly
    this mean, and some of their channels may lie a little beyond the range of the data.

    Attributes:
        method, std, scale, max_measured: as for `Inpaint`.

    Raises:
        ValueError: for a method that does not exist, and unless std > 0; when it is called, for images without colours.

    >>> x = jnp.array([[[[0.0, 0.5, 1.0]]]])
    >>> Colorize().seen(x, 0.0).ravel().tolist()
    [0.5, 0.5, 0.5]
    """

    def measure(self, shape: tuple[int, ...]) -> Linear:
        if shape[-1] < 2:
            raise ValueError("images of one channel have no colours to draw: take inpaint")
        return Grey(shape[-1])


def _column(a: Array | float, y: Array) -> Array:
    return rows(jnp.asarray(a, y.dtype), y)


def _check_std(std: float) -> None:
    if not 0 < std < math.inf:
        raise ValueError(f"std={std}: a positive number is needed")


def _check_range(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"low={low}, high={high}: low < high is needed")


X0S = {"free": lambda: lambda process, predict: predict, "clip": Clip, "dynamic": DynamicThreshold}
CONTROLS = {"none": lambda: None, "inpaint": Inpaint, "colorize": Colorize}
