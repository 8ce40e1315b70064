"""Losses that match a noised example or the score: (denoiser, noised, key) -> `[B]`, one number per example.

Up to a constant that does not depend on the network, the expectation of a loss with a method `weight` is

    weight(process, t) E || x0 - x0_theta(x_t, t) ||^2

Each of these losses is a weighted error of the clean data, and they differ in this weight and in their variance. With
SNR = alpha^2 / sigma^2, || eps - eps_theta ||^2 = SNR ||x0 - x0_theta||^2, and the error of eps is sigma times the
error of the score. Losses are summed over data dimensions unless said otherwise; the training step averages over the
batch.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.denoiser import Denoiser, velocity_target
from scoregen.errors import Refusal, check_fields, check_positive
from scoregen.process import Noised, Process, snr_loss_rate
from scoregen.random import broadcast, by_example
from scoregen.times import own_density


class Loss(abc.ABC):
    """A loss, with the properties that the rest of the package needs. Instances are frozen dataclasses.

    A loss of your own needs only `__call__`. If it also has a method

        weight(process, t) -> [B]        the factor of ||x0 - x0_theta||^2 in its expectation at time t, see above

    then a weighting can replace this weight, and the conformance matrix checks it.

    Attributes:
        positive: whether the loss is never negative, as a squared error is.
        continuous_only: whether it needs a process in continuous time.
        average_over_time: whether the loss is an average over the process's own times by definition, as the
            variational bound is. Then it is importance-weighted under every law of times, and accepts no weighting.
        trains_variance: whether it trains the variance of a step, which the network must then give.
        needs_float32: whether it subtracts outputs that are nearly equal, so that bfloat16 is too coarse.
        max_dims: the largest number of data dimensions that it accepts; None for any.
        bias: the relative error of its gradient that its construction implies; 0 for an unbiased loss.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Huber(Loss):
    ...     delta: float = 1.0
    ...
    ...     def __call__(self, denoiser, noised, key):
    ...         off = jnp.abs(noised.eps - denoiser(noised.x, noised.t).eps)
    ...         return sum_dims(jnp.where(off < self.delta, 0.5 * off**2, self.delta * (off - 0.5 * self.delta)))
    """

    positive: bool = True
    continuous_only: bool = False
    average_over_time: bool = False
    trains_variance: bool = False
    needs_float32: bool = False
    max_dims: int | None = None
    bias: float = 0.0

    @abc.abstractmethod
    def __call__(self, denoiser: Denoiser, noised: Noised, key: Array) -> Array:
        """The loss of each example, `[B]`, in the dtype of `noised.x`; key is one key or a batch `[B]`."""

    def refuse(self, process: Process) -> Refusal | None:
        """Why the loss cannot be used under `process`, or None if it can."""
        if self.continuous_only and process.discrete:
            return Refusal(f"the loss {loss_name(self)} needs continuous time, and a chain has levels", CONTINUOUS)
        return None

    @classmethod
    def variants(cls) -> dict[str, Loss]:
        """The instances that tests and the conformance matrix try, by a short name; "" is the default.

        A loss whose options change the formula returns one instance for each formula.
        """
        return {"": cls()}

    def exact(self, dims: int) -> Loss:
        """This loss with its random draws, if any, replaced by their expectation, for data of `dims` dimensions.

        The conformance matrix compares it with a closed form, so nothing in it may be random.
        """
        return self


CONTINUOUS = ("process=vp", "process=ve")


@dataclasses.dataclass(frozen=True)
class FunctionLoss(Loss):
    """A plain function (denoiser, noised, key) -> `[B]` as a loss; `Objective` wraps functions in it."""

    function: Callable[[Denoiser, Noised, Array], Array]

    def __call__(self, denoiser: Denoiser, noised: Noised, key: Array) -> Array:
        return self.function(denoiser, noised, key)


def loss_name(loss: Loss) -> str:
    """The loss's name in a message: its class, or its function if the loss is a plain function."""
    if isinstance(loss, FunctionLoss):
        return getattr(loss.function, "__name__", type(loss.function).__name__)
    return type(loss).__name__


def sum_dims(x: Array) -> Array:
    """Sum over all axes but the first, `[B, ...] -> [B]`."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def snr(process: Process, t: Array) -> Array:
    """alpha^2 / sigma^2, `[B] -> [B]`."""
    return jnp.exp(process.logsnr(t))


def snr_lost(process: Process, t: Array) -> Array:
    """`snr_loss_rate` times SNR, `[B] -> [B]`: SNR_{t-1} - SNR_t for a chain, else -SNR', which is 0 at alpha = 0."""
    ratio = snr(process, t)
    lost = jnp.where(ratio > 0, snr_loss_rate(process, t), 0) * ratio
    return jnp.where(ratio > 0, lost, snr(process, jnp.maximum(t - 1, 0))) if process.discrete else lost


def bound_weight(process: Process, t: Array) -> Array:
    """The weight of the variational bound in nats, 1/2 rate SNR / p(t), `[B] -> [B]`, with p(t) = `own_density`.

    Here rate is `snr_loss_rate`. With times from `times.Own`, the mean of the error of x0 with this weight is the sum
    or integral in the bound (Kingma et al. 2021, eqs. 14 and 17). In continuous time the weight is 1/2 (-SNR') / p(t),
    and for a chain of N levels N / 2 (SNR_{t-1} - SNR_t).
    """
    return 0.5 * snr_lost(process, t) / own_density(process, t)


@dataclasses.dataclass(frozen=True)
class EpsilonMSE(Loss):
    """The simple loss of Ho et al. 2020 (eq. 14): ||eps - eps_theta(x_t, t)||^2.

    `reduce="mean"` averages over data dimensions, as their code does; `"sum"` adds them up, as the
    equation does. With "sum" it is exactly twice `DSM`.

    Raises:
        ValueError: if reduce is not "mean" or "sum".
    """

    reduce: str = "mean"

    def __post_init__(self):
        if self.reduce not in ("mean", "sum"):
            raise ValueError(f"reduce={self.reduce!r}: 'mean' or 'sum' is needed")

    def __call__(self, denoiser: Denoiser, noised: Noised, key: Array) -> Array:
        total = sum_dims((noised.eps - denoiser(noised.x, noised.t).eps) ** 2)
        return total / noised.x0[0].size if self.reduce == "mean" else total

    def weight(self, process: Process, t: Array) -> Array:
        """The SNR. The factor 1 / D of a mean over D dimensions is left out, as in every loss."""
        return snr(process, t)

    @classmethod
    def variants(cls) -> dict[str, Loss]:
        return {"": cls(), "sum": cls("sum")}


@dataclasses.dataclass(frozen=True)
class X0MSE(Loss):
    """The error of the clean data itself, ||x0 - x0_theta(x_t, t)||^2.

    With the weighting `EDMWeight` it is the loss of Karras et al. 2022 (eq. 8).
    """

    def __call__(self, denoiser: Denoiser, noised: Noised, key: Array) -> Array:
        return sum_dims((noised.x0 - denoiser(noised.x, noised.t).x0) ** 2)

    def weight(self, process: Process, t: Array) -> Array:
        """1 at every time."""
        return jnp.ones_like(process.alpha(t))


@dataclasses.dataclass(frozen=True)
class FlowMatching(Loss):
    """Conditional flow matching (Lipman et al. 2023, eq. 9): ||alpha' x0 + sigma' eps - u_theta(x_t, t)||^2.

    u_theta = alpha' x0_theta + sigma' eps_theta is the velocity, for any target of the network. For the process `Flow`
    the first two terms are eps - x0 (their eq. 23; Liu et al. 2023, eq. 1). The loss needs continuous time.

    Raises:
        TypeError: when it is called, for the integer times of a chain.
    """

    continuous_only = True

    def __call__(self, denoiser: Denoiser, noised: Noised, key: Array) -> Array:
        a, b = (broadcast(r, noised.x) for r in velocity_target(denoiser.process, noised.t))
        found = denoiser(noised.x, noised.t)
        return sum_dims((a * (noised.x0 - found.x0) + b * (noised.eps - found.eps)) ** 2)

    def weight(self, process: Process, t: Array) -> Array:
        """(det / sigma)^2, where det = alpha sigma' - alpha' sigma is the determinant of `velocity_target`."""
        a, b = velocity_target(process, t)
        return (process.alpha(t) * b / process.sigma(t) - a) ** 2

    def refuse(self, process: Process) -> Refusal | None:
        if process.discrete:
            reason = "flow matching trains a derivative in time, and a chain has levels instead"
            return Refusal(reason, (*CONTINUOUS, "loss=x0"))
        return None


class _HalfSNR(Loss):
    """1/2 sigma^2 times the squared error of the score, which is 1/2 SNR times the squared error of x0."""

    def weight(self, process: Process, t: Array) -> Array:
        """1/2 SNR."""
        return 0.5 * snr(process, t)


@dataclasses.dataclass(frozen=True)
class DSM(_HalfSNR):
    """Denoising score matching (Vincent 2011, eq. 9), weighted by sigma^2 (Song & Ermon 2019, eq. 5-6).

        1/2 sigma^2 || s_theta(x_t, t) - grad log p(x_t | x_0) ||^2  =  1/2 || sigma s_theta(x_t, t) + eps ||^2

    since grad log p(x_t | x_0) = -(x_t - alpha x_0) / sigma^2 = -eps / sigma. The minimiser is the score of
    the noised density p_t.
    """

    def __call__(self, denoiser: Denoiser, noised: Noised, key: Array) -> Array:
        sigma = broadcast(denoiser.process.sigma(noised.t), noised.x)
        return 0.5 * sum_dims((sigma * denoiser(noised.x, noised.t).score + noised.eps) ** 2)


def _jacobian_products(denoiser: Denoiser, noised: Noised, vs: Array) -> tuple[Array, Array]:
    """The score s `[B, ...]`, and J v for each of the directions vs `[B, S, ...]`, by forward mode.

    The score itself does not depend on v, so all directions share one evaluation of it.
    """

    def derivative(v: Array) -> tuple[Array, Array]:
        return jax.jvp(lambda x: denoiser(x, noised.t).score, (noised.x,), (v,))

    return jax.vmap(derivative, in_axes=1, out_axes=(None, 1))(vs)


@dataclasses.dataclass(frozen=True)
class ISM(_HalfSNR):
    """Implicit score matching (Hyvarinen 2005, eq. 4), exact, at noise level t and weighted by sigma^2.

        sigma^2 ( tr(grad s_theta) + 1/2 ||s_theta||^2 )

    Integration by parts shows that its expectation equals the expectation of `DSM` up to a constant, although neither
    term uses x_0 or eps. The trace takes D forward-mode derivatives, one for each of the data's D dimensions, so a step
    takes about D times the time and memory of a step of `DSM`. The loss is for points and small images, and it is the
    reference for the estimators below.

    Attributes:
        max_dims: data of more dimensions are refused.

    Raises:
        TypeError: if max_dims is not an integer.
        ValueError: if max_dims < 1; when it is called, if the data have more dimensions.
    """

    max_dims: int = 256  # pyright: ignore[reportIncompatibleVariableOverride]
    positive = False

    def __post_init__(self):
        check_fields(self, max_dims=1)

    def __call__(self, denoiser: Denoiser, noised: Noised, key: Array) -> Array:
        dims = noised.x[0].size
        check_dims(self, dims)
        basis = jnp.eye(dims, dtype=noised.x.dtype).reshape(1, dims, *noised.x.shape[1:])
        s, columns = _jacobian_products(denoiser, noised, jnp.broadcast_to(basis, (len(noised.x), *basis.shape[1:])))
        total = sum_dims(basis * columns) + 0.5 * sum_dims(s**2)
        return broadcast(denoiser.process.sigma(noised.t), total) ** 2 * total


def refuse_dims(loss: Loss, dims: int) -> Refusal | None:
    """Why the loss cannot be used for data of `dims` dimensions, or None if it can."""
    if loss.max_dims is None or dims <= loss.max_dims:
        return None
    return Refusal(
        f"the exact trace takes one derivative for each of the data's {dims} dimensions, so a step costs about {dims} "
        f"times as much, and max_dims={loss.max_dims}",
        ("loss=ssm", f"loss.max_dims={dims}"),
    )


def check_dims(loss: Loss, dims: int) -> None:
    """Raises ValueError if the loss refuses data of `dims` dimensions."""
    refused = refuse_dims(loss, dims)
    if refused is not None:
        raise ValueError(str(refused))


Projection = Callable[[Array, tuple[int, ...]], Array]


def _sphere(key: Array, shape: tuple[int, ...]) -> Array:
    """Directions `[S, ...]`, each uniform on the sphere of radius sqrt(D), so that E[v v'] = I."""
    v = jax.random.normal(key, shape)
    axes = tuple(range(1, v.ndim))
    return v / jnp.sqrt(jnp.mean(v**2, axes, keepdims=True))


def _all_signs(key: Array, shape: tuple[int, ...]) -> Array:
    """All 2^D directions `[2^D, ...]` of entries +1 and -1. A mean over them is the expectation over "rademacher"."""
    return jnp.asarray(np.array(list(itertools.product((-1.0, 1.0), repeat=math.prod(shape[1:])))).reshape(shape))


PROJECTIONS: dict[str, Projection] = {
    "rademacher": jax.random.rademacher,
    "gaussian": jax.random.normal,
    "sphere": _sphere,
}


@dataclasses.dataclass(frozen=True)
class _Sliced(_HalfSNR):
    """Score matching along random directions v with E[v v'] = I.

    Attributes:
        slices: the number of directions v for each example; the loss is the mean over them.
        projection: the law of v: "rademacher" (never more variance than "gaussian"), "gaussian", "sphere" of radius
            sqrt(D), or a function (key, shape `[S, ...]`) -> directions of one example.
    """

    slices: int = 1
    projection: str | Projection = "rademacher"
    positive = False

    def __post_init__(self):
        check_fields(self, slices=1)
        if not callable(self.projection) and self.projection not in PROJECTIONS:
            raise ValueError(f"projection={self.projection!r}: one of {', '.join(PROJECTIONS)} is needed")

    def directions(self, key: Array, x: Array) -> Array:
        """The directions `[B, S, ...]` for x `[B, ...]`."""
        law = PROJECTIONS[self.projection] if isinstance(self.projection, str) else self.projection
        return by_example(law, key, (x.shape[0], self.slices, *x.shape[1:])).astype(x.dtype)

    def exact(self, dims: int) -> Self:
        """With all 2^D directions of signs, over which the mean of v v' is I."""
        return dataclasses.replace(self, slices=2**dims, projection=_all_signs)


@dataclasses.dataclass(frozen=True)
class SSM(_Sliced):
    """Sliced score matching (Song et al. 2019, SSM and SSM-VR), at noise level t and weighted by sigma^2.

        sigma^2 E_v [ v' grad(v' s_theta) + 1/2 (v' s_theta)^2 ]              (variance_reduced=False)
        sigma^2 E_v [ v' grad(v' s_theta) ] + sigma^2 / 2 ||s_theta||^2       (variance_reduced=True)

    Neither term uses x_0 or eps: only draws x_t from p_t are needed. Its mean over v is `ISM`, so its expectation
    equals the expectation of `DSM` up to a constant. The first term may be negative. Here v' grad(v' s) = v' J v is one
    forward-mode derivative inside the reverse-mode gradient.

    Attributes:
        slices: the number of directions v for each example; the loss is the mean over them.
        projection: the law of v: "rademacher" (never more variance than "gaussian"), "gaussian", "sphere" of radius
            sqrt(D), or a function (key, shape `[S, ...]`) -> directions of one example.
        variance_reduced: whether to use the second formula.

    Raises:
        TypeError: if slices is not an integer.
        ValueError: if slices < 1, or for an unknown projection.
    """

    variance_reduced: bool = True

    def __call__(self, denoiser: Denoiser, noised: Noised, key: Array) -> Array:
        vs = self.directions(key, noised.x)
        s, jvs = _jacobian_products(denoiser, noised, vs)
        axes = tuple(range(2, vs.ndim))
        trace = jnp.sum(vs * jvs, axes)
        norm = sum_dims(s**2)[:, None] if self.variance_reduced else jnp.sum(vs * s[:, None], axes) ** 2
        total = jnp.mean(trace + 0.5 * norm, axis=1)
        return broadcast(denoiser.process.sigma(noised.t), total) ** 2 * total

    @classmethod
    def variants(cls) -> dict[str, Loss]:
        return {"": cls(), "plain": cls(variance_reduced=False)}


@dataclasses.dataclass(frozen=True)
class FDSSM(_Sliced):
    """Sliced score matching by finite differences (Pang et al. 2020), at noise level t and weighted by sigma^2.

    With s+ and s- the score at x + h v and at x - h v,

        sigma^2 E_v [ v' (s+ - s-) / (2 h) + 1/8 ||s+ + s-||^2 ]

    It takes two evaluations per direction, and no derivative within the gradient. It equals `SSM` up to two errors. The
    difference has a bias of the order (h / sigma)^2. The rounding of x + h v and of the network's activations adds an
    error of the order u size / h, where size = max |x| and u is the unit roundoff of the dtype (6e-8 in float32). A
    fixed step fails for large data: with size 300 and sigma 0.01 the second error is 18 % at h = 0.01 sigma. Therefore

        h = sigma max( step, (u size / sigma)^(1/3) )

    where the second term makes both errors of equal order. Relative to the trace they are then at most of the order

        max( step, r^(1/3) )^2 + min( r / step, r^(2/3) ),         r = u size / sigma

    In float32 r^(2/3) is 0.07 % at size / sigma = 300, 1.5 % at 30,000, 3 % at 100,000 and 7 % at 300,000; in float64
    only `step` counts. Since x + h v is rounded, the difference is divided by the actual displacement.

    Attributes:
        slices: the number of directions v for each example; the loss is the mean over them.
        projection: the law of v: "rademacher" (never more variance than "gaussian"), "gaussian", "sphere" of radius
            sqrt(D), or a function (key, shape `[S, ...]`) -> directions of one example.
        step: the smallest step h of the difference, in units of sigma_t.

    Raises:
        TypeError: if slices is not an integer.
        ValueError: if slices < 1, for an unknown projection, or if step <= 0.
    """

    step: float = 0.01
    needs_float32 = True

    def __post_init__(self):
        super().__post_init__()
        check_positive(step=self.step)

    @property
    def bias(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Ten times the square of the step."""
        return 10 * self.step**2

    def __call__(self, denoiser: Denoiser, noised: Noised, key: Array) -> Array:
        x, t = noised.x, noised.t
        sigma = broadcast(denoiser.process.sigma(t), jnp.zeros(len(x), x.dtype))
        size = jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)))
        h = sigma * jnp.maximum(self.step, jnp.cbrt(0.5 * jnp.finfo(x.dtype).eps * size / sigma))

        def along(v: Array) -> Array:
            shift = broadcast(h, v) * v
            # Without the barrier the compiler may compute a sum twice, with different rounding.
            above, below = jax.lax.optimization_barrier((x + shift, x - shift))
            made = above - below  # 2 h v, up to the rounding of the two sums
            up, down = (denoiser(point, t).score for point in (above, below))
            # v / (2 h) in v'(s+ - s-) / (2 h) is computed as v^2 / (2 h v), which is odd in each entry of v.
            slope = jnp.where(made == 0, 0, v**2 / jnp.where(made == 0, 1, made))
            return sum_dims(slope * (up - down)) + 0.125 * sum_dims((up + down) ** 2)

        return sigma**2 * jnp.mean(jax.vmap(along, in_axes=1, out_axes=1)(self.directions(key, x)), axis=1)
