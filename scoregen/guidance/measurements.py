"""Linear measurements of the data, and samples that agree with them."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.denoiser import Denoiser, Prediction, prediction_from_x0
from scoregen.errors import Refusal, check_count, check_fields, check_finite, check_positive
from scoregen.guidance.wrappers import Node, Wrapper
from scoregen.process import Process, vanishes
from scoregen.random import broadcast, widest


class Linear(Node, abc.ABC):
    """A linear measurement A of every example, `[B, ...] -> [B, M]`, whose rows are linearly independent."""

    @abc.abstractmethod
    def __call__(self, x: Array) -> Array:
        """A x, `[B, M]`."""

    @abc.abstractmethod
    def solve(self, y: Array, noise: Array | float, signal: Array | float) -> Array:
        """(noise I + signal A A^T)^-1 y, `[B, M]`, where noise and signal are numbers or `[B]`."""

    def nearest(self, x: Array, y: Array) -> Array:
        """The point nearest to x `[B, ...]` whose measurement is y `[B, M]`: x + A^T (A A^T)^-1 (y - A x)."""
        seen, transpose = jax.vjp(self, x)
        return x + transpose(self.solve(y - seen, 0.0, 1.0))[0]


class Pixels(Linear):
    """A measurement that selects some of the numbers of an example.

    Args:
        seen: booleans in the shape of an example, True for the selected numbers.

    Raises:
        TypeError: if `seen` holds anything but booleans.
        ValueError: when it is called, for examples of another size.

    >>> left = Pixels(np.array([True, False]))
    >>> left(jnp.array([[1.0, 2.0]])).tolist(), left.nearest(jnp.zeros((1, 2)), jnp.array([[5.0]])).tolist()
    ([[1.0]], [[5.0, 0.0]])
    """

    def __init__(self, seen: np.ndarray):
        if np.asarray(seen).dtype != bool:
            raise TypeError(f"seen holds {np.asarray(seen).dtype}: booleans in the shape of an example are needed")
        self.index, self.size = np.flatnonzero(seen).astype(np.int32), np.size(seen)

    def __call__(self, x: Array) -> Array:
        _check_size(x, self.size)
        return x.reshape(len(x), -1)[:, self.index]

    def solve(self, y: Array, noise: Array | float, signal: Array | float) -> Array:
        return y / _column(noise + signal, y)

    def nearest(self, x: Array, y: Array) -> Array:
        # Assigned rather than added, so that the measured numbers are exact to the last bit.
        return x.reshape(len(x), -1).at[:, self.index].set(y).reshape(x.shape)


class Grey(Linear):
    """The mean over the last axis of an image, `[B, H, W, C] -> [B, H W]`.

    Let Q be an orthogonal matrix whose first row is (1, ..., 1) / sqrt(C). The mean of a pixel is the first coordinate
    of Q x divided by sqrt(C), so `nearest` replaces this coordinate, as in Song et al. 2021 (appendix I.3).

    Raises:
        TypeError: if `channels` is not an integer.
        ValueError: if it is less than 1; when it is called, for images with another number of channels.
    """

    def __init__(self, channels: int = 3):
        self.channels = check_count("channels", channels)

    def __call__(self, x: Array) -> Array:
        if x.shape[-1] != self.channels:
            raise ValueError(f"{x.shape[-1]} channels for a measurement of {self.channels}: say Grey({x.shape[-1]})")
        return x.mean(-1).reshape(len(x), -1)

    def solve(self, y: Array, noise: Array | float, signal: Array | float) -> Array:
        return y / _column(noise + signal / self.channels, y)


class Matrix(Linear):
    """Any matrix A `[M, D]`, of examples flattened to `[B, D]`.

    Raises:
        ValueError: if its rows are not linearly independent; when it is called, for examples of another size.

    >>> total = Matrix(np.array([[1.0, 1.0]]))
    >>> total.nearest(jnp.zeros((1, 2)), jnp.array([[6.0]])).round(4).tolist()
    [[3.0, 3.0]]
    """

    def __init__(self, matrix: np.ndarray):
        self.matrix = np.asarray(matrix, np.float64)
        rank = np.linalg.matrix_rank(self.matrix)
        if rank < len(self.matrix):
            raise ValueError(f"{len(self.matrix)} rows of rank {rank}: leave out those that follow from the others")
        self.values, self.vectors = np.linalg.eigh(self.matrix @ self.matrix.T)

    def __call__(self, x: Array) -> Array:
        _check_size(x, self.matrix.shape[1])
        return x.reshape(len(x), -1) @ jnp.asarray(self.matrix.T, x.dtype)

    def solve(self, y: Array, noise: Array | float, signal: Array | float) -> Array:
        vectors, values = (jnp.asarray(a, y.dtype) for a in (self.vectors, self.values[None]))
        return ((y @ vectors) / (_column(noise, y) + _column(signal, y) * values)) @ vectors.T


@dataclasses.dataclass(frozen=True, eq=False)
class Replace(Wrapper):
    """Replaces the measured part of the estimate: x0 <- x0 + A^T (A A^T)^-1 (y - A x0).

    With `Pixels` the measured numbers are exact, also at the last step. Under ancestral sampling the measured part of
    x_t then follows the forward process given y. This is the inpainting of Song et al. 2021 (appendix I.2), except that
    they draw new noise at every level. Wang et al. 2023 (DDNM) do it for any A. A Langevin corrector moves x several
    times within a level, which has the same purpose as the resampling of Lugmayr et al. 2022.

    The samples do not follow the posterior. The unmeasured part is estimated from the noised y, which holds less
    information than y, and early steps are not corrected later. For example, let two numbers be N(0, 1) with the
    correlation r, and measure the first as y. In the limit of many ancestral steps the second has the mean
    y (1 - sqrt(1 - r^2)) / r instead of r y. For r = 0.8 the mean is 0.5 y instead of 0.8 y, and the standard deviation
    is 0.734 instead of 0.6. y is taken as exact, so noise in y stays in the samples.

    Attributes:
        measure: A.
        y: the measurement, `[B, M]`, or `[1, M]` for all.

    Raises:
        TypeError: if y is no array.
        ValueError: when it is evaluated, if y has another shape than A x.
    """

    measure: Linear
    y: Array

    def __post_init__(self):
        _check_array(self.y)

    def predict(self, denoiser: Denoiser, x: Array, t: Array) -> Prediction:
        found = denoiser(x, t)
        _check_measured(self.y, jax.eval_shape(self.measure, found.x0).shape)
        x0 = self.measure.nearest(found.x0, self.y.astype(x.dtype))
        return prediction_from_x0(denoiser.process, x, t, x0, found.between)


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior(Wrapper):
    """The score of the posterior: the prior's score plus grad log p(y | x_t), with y = A x0 + std z measured.

        p(y | x_t) ~ N(y ; A x0(x_t), S),     S = std^2 I + A V A^T,     V ~ Cov[x0 | x_t]
        x0 <- x0 + scale (sigma^2 / alpha) J^T A^T S^-1 (y - A x0),       J = dx0 / dx, through the denoiser

    With V = (sigma^2 / alpha) J, Tweedie's second-order formula, this is a Kalman update of the estimate x0. The
    methods differ in V:

        "none"       V = 0, diffusion posterior sampling (Chung et al. 2023, eq. 16: its rho = 1 / std^2 is scale = 2)
        "isotropic"  V = r^2 I with r^2 = sigma^2 d^2 / (alpha^2 d^2 + sigma^2), d = data_std: Pi-GDM (Song et al. 2023)
        "jacobian"   V = (sigma^2 / alpha) J, exact where p(x0 | x_t) is Gaussian: on Gaussian data the samples follow
                     the posterior. It takes M derivatives of the network at each step.

    With V = 0 the measurement is trusted too much at noisy levels, where even an exact estimate A x0 is far from y. For
    example, let the data be N(0, 1), measured as y. In the limit of many ancestral steps, samples by "none" have the
    mean y (1 - e^(-1 / std^2)) and the variance (1 - e^(-2 / std^2)) std^2 / 2, instead of y / (1 + std^2) and
    std^2 / (1 + std^2). For std = 1/2 these are 0.982 y and 0.354^2 instead of 0.8 y and 0.447^2. V = 0 also makes the
    steps stiff. A step overshoots if w (alpha V / (sigma std))^2 > 2, with w from `process.posterior` and the true V.
    Many levels are therefore needed if std is far below the standard deviation of the data.

    Attributes:
        measure: A.
        y: the measurement, `[B, M]`, or `[1, M]` for all.
        std: the standard deviation of the measurement's noise.
        spread: the method: "none", "isotropic" or "jacobian".
        scale: a factor of grad log p(y | x_t).

    Raises:
        TypeError: if y is no array.
        ValueError: unless std > 0, scale is finite and the method exists; when it is called, if alpha = 0 at the
            noisiest level; when it is evaluated, if y has another shape than A x.

    >>> from scoregen.process import VE
    >>> from scoregen.testing.oracle import gaussian
    >>> denoiser = gaussian((0.0,), 1.0).denoiser(VE())
    >>> given = Posterior(Pixels(np.array([True])), jnp.array([[2.0]]), std=1.0)(denoiser)
    >>> float(given(jnp.zeros((1, 1)), 1.0).x0[0, 0])  # of N(0, 1), where x says nearly nothing: y / (1 + std^2)
    0.99...
    """

    measure: Linear
    y: Array
    std: float
    spread: str = "jacobian"
    scale: float = 1.0

    def __post_init__(self):
        _check_array(self.y)
        check_positive(std=self.std)
        check_finite(scale=self.scale)
        if self.spread not in SPREADS:
            raise ValueError(f"spread={self.spread!r}: one of {', '.join(SPREADS)} is needed")

    def refuse(self, process: Process) -> Refusal | None:
        """Refuses a process with alpha = 0 at the noisiest level, where x has no information about the measurement."""
        if not vanishes(process):
            return None
        return Refusal(
            "alpha = 0 at the noisiest level, where x holds no information about the measurement",
            ("process.t_max=0.999",),
        )

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        wrapped = super().__call__(denoiser)
        return wrapped if self.y.shape[-1] else denoiser  # an empty measurement changes nothing

    def predict(self, denoiser: Denoiser, x: Array, t: Array) -> Prediction:
        process = denoiser.process

        def measured(x: Array) -> tuple[Array, Prediction]:
            found = denoiser(x, t)
            return self.measure(found.x0), found

        seen, pull, found = jax.vjp(measured, x, has_aux=True)
        _check_measured(self.y, seen.shape)
        residual = self.y.astype(x.dtype) - seen
        ratio = process.sigma(t) ** 2 / process.alpha(t)
        (step,) = pull(SPREADS[self.spread](process, t, self.measure, self.std**2, residual, pull))
        x0 = found.x0 + broadcast(self.scale * ratio, x) * step
        return prediction_from_x0(process, x, t, x0, found.between)


Spread = Callable[[Process, Array, Linear, float, Array, Callable[[Array], tuple[Array]]], Array]


def _none(process: Process, t: Array, measure: Linear, noise: float, residual: Array, pull: Callable) -> Array:
    return residual / noise


def _isotropic(process: Process, t: Array, measure: Linear, noise: float, residual: Array, pull: Callable) -> Array:
    data, lost = (process.alpha(t) * process.data_std) ** 2, process.sigma(t) ** 2
    return measure.solve(residual, noise, lost * process.data_std**2 / (data + lost))


def _jacobian(process: Process, t: Array, measure: Linear, noise: float, residual: Array, pull: Callable) -> Array:
    # One derivative for each measured number: row i of A J A^T is A (J^T A^T e_i).
    units = jnp.eye(residual.shape[1], dtype=residual.dtype)
    table = jax.vmap(lambda unit: measure(pull(jnp.broadcast_to(unit, residual.shape))[0]), out_axes=1)(units)
    ratio = process.sigma(t) ** 2 / process.alpha(t)
    # A network gives only nearly a covariance, so it is made symmetric, and negative variances count as 0.
    # It is at least float32, since JAX computes no eigenvectors in bfloat16.
    table = (broadcast(ratio, table) * table).astype(widest(table.dtype, jnp.float32))
    values, vectors = (a.astype(residual.dtype) for a in jnp.linalg.eigh(table, symmetrize_input=True))
    along = jnp.einsum("bmk,bm->bk", vectors, residual) / (noise + jnp.maximum(values, 0))
    return jnp.einsum("bmk,bk->bm", vectors, along)


# S^-1 (y - A x0), `[B, M]`, for each approximation of the covariance of x0 given x_t.
SPREADS: dict[str, Spread] = {"none": _none, "isotropic": _isotropic, "jacobian": _jacobian}
METHODS = {"replace": None, "dps": "none", "pigdm": "isotropic", "moments": "jacobian"}


@dataclasses.dataclass(frozen=True)
class Control(abc.ABC):
    """A measurement of images and the method that uses it: `control(clean) -> Wrapper`.

    Attributes:
        method, std, scale, max_measured: see `Inpaint`.
        keeps_density: whether the wrapped denoiser has a density; with a control it has none.

    Raises:
        TypeError: if max_measured is not an integer.
        ValueError: for a method that does not exist, and unless std > 0, scale is finite and max_measured >= 1.
    """

    keeps_density: ClassVar[bool] = False

    method: str = "replace"
    std: float = 0.1
    scale: float = 1.0
    max_measured: int = 256

    def __post_init__(self):
        check_positive(std=self.std)
        check_finite(scale=self.scale)
        check_fields(self, max_measured=1)
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: one of {', '.join(METHODS)} is needed")

    @abc.abstractmethod
    def measure(self, shape: tuple[int, ...]) -> Linear:
        """A, for images of this shape (H, W, C)."""

    def refuse(self, process: Process, shape: tuple[int, ...]) -> Refusal | None:
        """Why images of the shape (H, W, C) cannot be completed under this process, or None."""
        if len(shape) != 3:
            return Refusal(f"control is for images [H, W, C], and an example has the shape {shape}", ("control=none",))
        if self.method != "replace" and vanishes(process):
            return Refusal(
                "at its noisiest level this process has alpha = 0, where x holds no information about the measurement",
                ("process.t_max=0.999", "control.method=replace"),
            )
        if self.method == "moments" and (count := self.count(shape)) > self.max_measured:
            return Refusal(
                f"method=moments takes one derivative of the network for each of the {count} measured numbers, so a "
                f"step would cost about {count} times as much",
                ("control.method=pigdm", f"control.max_measured={count}"),
            )
        return None

    def count(self, shape: tuple[int, ...]) -> int:
        """M, the number of measured numbers of an image of this shape."""
        return jax.eval_shape(self.measure(shape), jax.ShapeDtypeStruct((1, *shape), jnp.float32)).shape[1]

    def derivatives(self, shape: tuple[int, ...]) -> int:
        """The number of derivatives of the network at each evaluation, for images of this shape."""
        return {"replace": 0, "moments": self.count(shape) + 1}.get(self.method, 1)

    def __call__(self, clean: Array) -> Wrapper:
        """The wrapper with the measurements of these images `[B, H, W, C]`, and nothing else of the images."""
        measure, spread = self.measure(clean.shape[1:]), METHODS[self.method]
        y = measure(clean)
        return Replace(measure, y) if spread is None else Posterior(measure, y, self.std, spread, self.scale)

    def seen(self, clean: Array, blank: float) -> Array:
        """A picture of the measurement, `[B, H, W, C]`, with `blank` where nothing is measured."""
        measure = self.measure(clean.shape[1:])
        return measure.nearest(jnp.full_like(clean, blank), measure(clean))


# The part of an image `[H, W, C]` that is hidden, by its name.
REGIONS: dict[str, Callable[[int, int], tuple[slice, slice]]] = {
    "left": lambda height, width: np.s_[:, : width // 2],
    "right": lambda height, width: np.s_[:, width // 2 :],
    "top": lambda height, width: np.s_[: height // 2, :],
    "bottom": lambda height, width: np.s_[height // 2 :, :],
    "box": lambda height, width: np.s_[height // 4 : height - height // 4, width // 4 : width - width // 4],
}


@dataclasses.dataclass(frozen=True)
class Inpaint(Control):
    """Hides a part of each image, and draws it given the rest.

    Attributes:
        method: replace (`Replace`), dps, pigdm or moments (`Posterior` with V = 0, isotropic, or from the Jacobian).
        std: the assumed standard deviation of the noise in the pixels, in the network's units; not for replace.
        scale: a factor of the likelihood's score; not for replace.
        max_measured: for moments, the largest allowed number of measured numbers; each takes one derivative of the
            network per step.
        hidden: left, right, top, bottom (halves), or box (the middle quarter).

    Raises:
        ValueError: for a part or a method that does not exist, and unless std > 0 and scale is finite.

    >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> Inpaint(hidden="right").seen(x, -1.0).ravel().tolist()
    [0.0, -1.0, 2.0, -1.0]
    """

    hidden: str = "right"

    def __post_init__(self):
        super().__post_init__()
        if self.hidden not in REGIONS:
            raise ValueError(f"hidden={self.hidden!r}: one of {', '.join(REGIONS)} is needed")

    def measure(self, shape: tuple[int, ...]) -> Linear:
        seen = np.ones(shape, bool)
        seen[REGIONS[self.hidden](*shape[:2])] = False
        return Pixels(seen)


@dataclasses.dataclass(frozen=True)
class Colorize(Control):
    """Draws the colours of each image given the mean of its channels.

    `replace` puts this mean into the estimate of x0, after a clip if there is one. The samples then have exactly this
    mean, and some of their channels may lie slightly outside the range of the data.

    Attributes:
        method, std, scale, max_measured: as for `Inpaint`.

    Raises:
        ValueError: for a method that does not exist, and unless std > 0 and scale is finite; when it is called, for
            images without colours.

    >>> x = jnp.array([[[[0.0, 0.5, 1.0]]]])
    >>> Colorize().seen(x, 0.0).ravel().tolist()
    [0.5, 0.5, 0.5]
    """

    def refuse(self, process: Process, shape: tuple[int, ...]) -> Refusal | None:
        if len(shape) == 3 and shape[-1] < 2:
            return Refusal("images of one channel have no colours to draw", ("control=inpaint",))
        return super().refuse(process, shape)

    def measure(self, shape: tuple[int, ...]) -> Linear:
        if shape[-1] < 2:
            raise ValueError("images of one channel have no colours to draw: use Inpaint")
        return Grey(shape[-1])


def _column(a: Array | float, y: Array) -> Array:
    return broadcast(jnp.asarray(a, y.dtype), y)


def _check_array(y: Any) -> None:
    if not isinstance(y, Array | np.ndarray):
        raise TypeError(f"y is a {type(y).__name__}: an array [B, M] is needed, say jnp.asarray(y)")


def _check_size(x: Array, size: int) -> None:
    if x[0].size != size:
        raise ValueError(f"an example has {x[0].size} numbers, but the measurement needs {size}")


def _check_measured(y: Array, shape: tuple[int, ...]) -> None:
    count, measured = shape
    if y.ndim != 2 or y.shape[0] not in (1, count) or y.shape[1] != measured:
        raise ValueError(
            f"y has the shape {list(y.shape)}: [{count}, {measured}] is needed, {measured} measured numbers of each "
            f"example, or [1, {measured}] for all"
        )


# Controls, which complete given images from a measurement of them.
CONTROLS: dict[str, Callable[[], Control | None]] = {"none": lambda: None, "inpaint": Inpaint, "colorize": Colorize}
