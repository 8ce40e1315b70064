"""Objectives that match a noised example, or the score. Each is (process, predict, noised, key) -> `[B]`, unreduced.

Up to a constant that does not depend on the network, the expectation of each is

    weight(process, t) E || x0 - x0_theta(x_t, t) ||^2

so every one is a weighted error of the clean data, and they differ in that weight and in their variance. With
SNR = alpha^2 / sigma^2: || eps - eps_theta ||^2 = SNR ||x0 - x0_theta||^2, and sigma times the error of the score is
the error of eps. Summed over data dimensions unless said otherwise; the training step averages over the batch.
"""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Predict, velocity_row
from scoregen.process import Noised, Process, draw, rows


class Loss(abc.ABC):
    """An objective. Instances are frozen dataclasses; their fields are its options.

    Attributes:
        positive: whether it is never negative, as the error of something known is.
    """

    positive: bool = True

    @abc.abstractmethod
    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        """One number an example, `[B]`."""

    @abc.abstractmethod
    def weight(self, process: Process, t: Array) -> Array:
        """How much the squared error of x0 counts at t, `[B] -> [B]`."""


def sum_dims(x: Array) -> Array:
    """Sum over all axes but the first, `[B, ...] -> [B]`."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def snr(process: Process, t: Array) -> Array:
    """alpha^2 / sigma^2, `[B] -> [B]`."""
    return jnp.exp(process.logsnr(t))


def snr_lost(process: Process, t: Array) -> Array:
    """rate SNR: of a chain SNR_{t-1} - SNR_t, in continuous time -SNR', `[B] -> [B]`. It is 0 where alpha is."""
    ratio = snr(process, t)
    return jnp.where(ratio > 0, process.rate(t), 0) * ratio


def bound_weight(process: Process, t: Array) -> Array:
    """1/2 rate SNR over the density of t, `[B] -> [B]`: the mean over t of so weighted an error of x0 is the bound's.

    Kingma et al. 2021, eqs. 14 and 17, in nats. Divided by the density it does not depend on which times a process
    prefers: in continuous time 1/2 (-SNR') / p(t), of a chain of N levels N / 2 (SNR_{t-1} - SNR_t).
    """
    return 0.5 * snr_lost(process, t) / process.density(t)


@dataclasses.dataclass(frozen=True)
class EpsilonMSE(Loss):
    """The simple loss of Ho et al. 2020 (eq. 14): ||eps - eps_theta(x_t, t)||^2.

    `reduce="mean"` averages over data dimensions, as their code does; `"sum"` adds them up, as the
    equation does. With "sum" it is exactly twice `DSM`.

    Raises:
        ValueError: if reduce is neither.
    """

    reduce: str = "mean"

    def __post_init__(self):
        if self.reduce not in ("mean", "sum"):
            raise ValueError(f"reduce={self.reduce!r}: 'mean' or 'sum' is needed")

    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        total = sum_dims((noised.eps - predict(noised.x, noised.t).eps) ** 2)
        return total / noised.x0[0].size if self.reduce == "mean" else total

    def weight(self, process: Process, t: Array) -> Array:
        """SNR; that of a mean over dimensions is a D-th of it, like the mean of any other error."""
        return snr(process, t)


@dataclasses.dataclass(frozen=True)
class X0MSE(Loss):
    """The error of the clean data itself, ||x0 - x0_theta(x_t, t)||^2; with a `weightings` entry, any other.

    With the weighting "edm" it is the loss of Karras et al. 2022 (eq. 8).
    """

    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        return sum_dims((noised.x0 - predict(noised.x, noised.t).x0) ** 2)

    def weight(self, process: Process, t: Array) -> Array:
        return jnp.ones_like(process.alpha(t))


@dataclasses.dataclass(frozen=True)
class FlowMatching(Loss):
    """Conditional flow matching (Lipman et al. 2023, eq. 9): ||alpha' x0 + sigma' eps - u_theta(x_t, t)||^2.

    u_theta = alpha' x0_theta + sigma' eps_theta is the velocity, whatever the network gives; for the process
    `Flow` the first two terms are eps - x0 (their eq. 23; Liu et al. 2023, eq. 1). In continuous time only.
    """

    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        a, b = (rows(r, noised.x) for r in velocity_row(process, noised.t))
        found = predict(noised.x, noised.t)
        return sum_dims((a * (noised.x0 - found.x0) + b * (noised.eps - found.eps)) ** 2)

    def weight(self, process: Process, t: Array) -> Array:
        """(det / sigma)^2, where det = alpha sigma' - alpha' sigma is that of the velocity's row."""
        a, b = velocity_row(process, t)
        return (process.alpha(t) * b / process.sigma(t) - a) ** 2


class _HalfSNR(Loss):
    """What is weighted by sigma^2 as an error of the score, with 1/2 before it: 1/2 SNR as an error of x0."""

    def weight(self, process: Process, t: Array) -> Array:
        return 0.5 * snr(process, t)


@dataclasses.dataclass(frozen=True)
class DSM(_HalfSNR):
    """Denoising score matching (Vincent 2011, eq. 9), weighted by sigma^2 (Song & Ermon 2019, eq. 5-6).

        1/2 sigma^2 || s_theta(x_t, t) - grad log p(x_t | x_0) ||^2  =  1/2 || sigma s_theta(x_t, t) + eps ||^2

    since grad log p(x_t | x_0) = -(x_t - alpha x_0) / sigma^2 = -eps / sigma. The minimiser is the score of
    the noised density p_t.
    """

    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        sigma = rows(process.sigma(noised.t), noised.x)
        return 0.5 * sum_dims((sigma * predict(noised.x, noised.t).score + noised.eps) ** 2)


def _jacobian_products(predict: Predict, noised: Noised, vs: Array) -> tuple[Array, Array]:
    """The score s `[B, ...]`, and J v for each of the directions vs `[B, S, ...]`, by forward mode.

    The score itself does not depend on v, so all directions share the one evaluation of it.
    """

    def derivative(v: Array) -> tuple[Array, Array]:
        return jax.jvp(lambda x: predict(x, noised.t).score, (noised.x,), (v,))

    return jax.vmap(derivative, in_axes=1, out_axes=(None, 1))(vs)


@dataclasses.dataclass(frozen=True)
class ISM(_HalfSNR):
    """Implicit score matching (Hyvarinen 2005, eq. 4), exact, at noise level t and weighted by sigma^2.

        sigma^2 ( tr(grad s_theta) + 1/2 ||s_theta||^2 )

    By parts, its expectation is that of `DSM` up to a constant, though neither term sees x_0 or eps. The trace
    is D forward-mode derivatives, one for each of the data's D dimensions, so a step costs about D times one of
    `DSM` and as much memory: it is for points and small images, and the measure of the estimators below.

    Attributes:
        max_dims: more dimensions than this are refused.

    Raises:
        ValueError: if max_dims < 1; when it is called, if the data have more dimensions.
    """

    max_dims: int = 256
    positive = False

    def __post_init__(self):
        if self.max_dims < 1:
            raise ValueError(f"max_dims={self.max_dims}: at least 1 is needed")

    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        dims = noised.x[0].size
        if dims > self.max_dims:
            raise ValueError(
                f"the exact trace takes a derivative for each of the data's {dims} dimensions, and "
                f"max_dims={self.max_dims}: take ssm, which takes one a slice, or smaller images"
            )
        basis = jnp.eye(dims, dtype=noised.x.dtype).reshape(1, dims, *noised.x.shape[1:])
        s, columns = _jacobian_products(predict, noised, jnp.broadcast_to(basis, (len(noised.x), *basis.shape[1:])))
        trace = sum_dims(basis * columns)
        return process.sigma(noised.t) ** 2 * (trace + 0.5 * sum_dims(s**2))


def _sphere(key: Array, shape: tuple[int, ...]) -> Array:
    """Slices `[S, ...]`, each uniform on the sphere of radius sqrt(D), so that E[v v'] = I."""
    v = jax.random.normal(key, shape)
    axes = tuple(range(1, v.ndim))
    return v / jnp.sqrt(jnp.mean(v**2, axes, keepdims=True))


PROJECTIONS = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal, "sphere": _sphere}


@dataclasses.dataclass(frozen=True)
class _Sliced(_HalfSNR):
    """Score matching along random directions v with E[v v'] = I.

    Attributes:
        slices: the number of projections v for each example; their mean is taken.
        projection: the law of v: "rademacher" (of no more variance than Gaussian), "gaussian", or "sphere" of
            radius sqrt(D).
    """

    slices: int = 1
    projection: str = "rademacher"
    positive = False

    def __post_init__(self):
        if self.slices < 1:
            raise ValueError(f"slices={self.slices}: at least 1 is needed")
        if self.projection not in PROJECTIONS:
            raise ValueError(f"projection={self.projection!r}: one of {', '.join(PROJECTIONS)} is needed")

    def draw(self, key: Array, x: Array) -> Array:
        """The directions `[B, S, ...]` for x `[B, ...]`."""
        shape = (x.shape[0], self.slices, *x.shape[1:])
        return draw(PROJECTIONS[self.projection], key, shape).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class SSM(_Sliced):
    """Sliced score matching (Song et al. 2019, SSM and SSM-VR), at noise level t and weighted by sigma^2.

        sigma^2 E_v [ v' grad(v' s_theta) + 1/2 (v' s_theta)^2 ]              (variance_reduced=False)
        sigma^2 E_v [ v' grad(v' s_theta) ] + sigma^2 / 2 ||s_theta||^2       (variance_reduced=True)

    Neither term sees x_0 or eps: only draws x_t from p_t are needed. Over v it averages to `ISM`, and so does
    its expectation to that of `DSM` up to a constant. The first term may be negative. Here
    v' grad(v' s) = v' J v is one forward-mode derivative inside the reverse-mode gradient.

    Attributes:
        slices: the number of projections v for each example; their mean is taken.
        projection: the law of v: "rademacher" (of no more variance than Gaussian), "gaussian", or "sphere" of
            radius sqrt(D).
        variance_reduced: the second form.

    Raises:
        ValueError: if slices < 1, or for an unknown projection.
    """

    variance_reduced: bool = True

    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        vs = self.draw(key, noised.x)
        s, jvs = _jacobian_products(predict, noised, vs)
        axes = tuple(range(2, vs.ndim))
        trace = jnp.sum(vs * jvs, axes)
        norm = sum_dims(s**2)[:, None] if self.variance_reduced else jnp.sum(vs * s[:, None], axes) ** 2
        return process.sigma(noised.t) ** 2 * jnp.mean(trace + 0.5 * norm, axis=1)


@dataclasses.dataclass(frozen=True)
class FDSSM(_Sliced):
    """Sliced score matching by finite differences (Pang et al. 2020), at noise level t and weighted by sigma^2.

    With h = step sigma_t and s+ and s- the score at x + h v and at x - h v,

        sigma^2 E_v [ v' (s+ - s-) / (2 h) + 1/8 ||s+ + s-||^2 ]

    two evaluations a slice and no derivative within the gradient. It is `SSM` but for a bias of order step^2.

    Attributes:
        slices: the number of projections v for each example; their mean is taken.
        projection: the law of v: "rademacher" (of no more variance than Gaussian), "gaussian", or "sphere" of
            radius sqrt(D).
        step: of the difference, in units of sigma_t. Smaller is less biased, until the arithmetic's rounding
            shows: below 1e-3 in float32.

    Raises:
        ValueError: if slices < 1, for an unknown projection, or if step <= 0.
    """

    step: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if not self.step > 0:
            raise ValueError(f"step={self.step}: a positive number is needed")

    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        sigma = process.sigma(noised.t)
        h = self.step * sigma

        def at(v: Array) -> Array:
            shift = rows(h, v) * v
            up, down = (predict(noised.x + d, noised.t).score for d in (shift, -shift))
            return sum_dims(v * (up - down)) / (2 * h) + 0.125 * sum_dims((up + down) ** 2)

        return sigma**2 * jnp.mean(jax.vmap(at, in_axes=1, out_axes=1)(self.draw(key, noised.x)), axis=1)
