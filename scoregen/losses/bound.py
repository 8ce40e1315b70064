"""The variational bound: -log p(x0) <= E[ L_T + sum_{t > 1} L_{t-1} + L_0 ] (Ho et al. 2020, eq. 5), and its parts.

The paper counts levels from 1: its level t is level t - 1 here. The parts are in nats and summed over data dimensions,
`[B]`. In continuous time the sum is an integral (Kingma et al. 2021, eq. 17). Each example gets one part, at its own
random time. With times from `times.Own`, the mean of `VLB` is the bound.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import log_ndtr

from scoregen.denoiser import Denoiser, Prediction
from scoregen.errors import Refusal, check_positive
from scoregen.losses.matching import EpsilonMSE, Loss, bound_weight, snr, snr_lost, sum_dims
from scoregen.process import Noised, Process, bottom, perturb, top
from scoregen.random import broadcast
from scoregen.times import own_density

Bins = tuple[float, float, float]


def prior_kl(process: Process, x0: Array) -> Array:
    """L_T = KL( p(x_T | x_0) || prior ) at the noisiest level, with the prior that sampling starts from, `[B]` nats.

    With v = (sigma / prior_std)^2 it is 1/2 sum( v - 1 - log v + (alpha x0 / prior_std)^2 ).
    """
    t, std = top(process), process.prior_std()
    v = (process.sigma(t) / std) ** 2
    const = broadcast(v - 1 - jnp.log(v), x0)
    return 0.5 * sum_dims(const + (broadcast(process.alpha(t) / std, x0) * x0) ** 2)


def step_kl(process: Process, found: Prediction, x0: Array, t: Array, between: Array | float = 0.0) -> Array:
    """L_{t-1} = KL( p(x_s | x_t, x0) || p_theta(x_s | x_t) ) for the step from t to s = t - 1, `[B]` nats.

    Both laws come from `posterior`, given x0 and given its estimate. Their means differ by alpha_s w (x0 - x0_theta).
    The first has the variance sigma_s^2 w, the model e^d times as much, with d = `between` log(sigma_t^2 / sigma_s^2).
    The divergence is

        1/2 sum( d + e^-d - 1 + e^-d (SNR_s - SNR_t) (x0 - x0_theta)^2 )

    In continuous time it is a rate per unit of time, with -SNR' in place of SNR_s - SNR_t, and d = 0.

    Args:
        process: the process.
        found: the denoiser's estimate at x_t.
        x0: the clean data `[B, ...]`.
        t: times `[B]`; levels of a chain, 1 or more.
        between: 0 for the posterior's variance, 1 for the forward step's, or `Prediction.between`.
    """
    error = broadcast(snr_lost(process, t), x0) * (x0 - found.x0) ** 2
    if isinstance(between, float) and between == 0.0:
        return 0.5 * sum_dims(error)
    log_ratio = 2 * (jnp.log(process.sigma(t)) - jnp.log(process.sigma(jnp.maximum(t - 1, 0))))
    d = between * broadcast(log_ratio, x0)
    return 0.5 * sum_dims(d + jnp.expm1(-d) + jnp.exp(-d) * error)


def decoder_nll(x0: Array, mean: Array, log_var: Array, bins: Bins | None) -> Array:
    """L_0 = -log p(x0 | x_1), `[B]` nats, for a normal density, or for the bin that x0 lies in.

    With `bins` = (low, high, width) the data are the numbers low, low + width, ..., high. The probability of x0 is the
    mass of the normal law in the interval of this width around x0; the first and the last interval extend to infinity
    (Ho et al. 2020, eq. 13). With None it is the density, whose value depends on the unit of x0.

    >>> x0 = jnp.array([[-1.0], [0.0]])
    >>> decoder_nll(x0, jnp.zeros((2, 1)), jnp.zeros((2, 1)), (-1.0, 1.0, 1.0)).tolist()  # Phi(-1/2), Phi(1/2) - ...
    [1.1759..., 0.9599...]
    """
    std = jnp.exp(0.5 * log_var)
    if bins is None:
        return 0.5 * sum_dims(((x0 - mean) / std) ** 2 + log_var + math.log(2 * math.pi))
    low, high, width = bins
    below, above = (x0 - 0.5 * width - mean) / std, (x0 + 0.5 * width - mean) / std
    # Mirrored, if necessary, so that the interval's centre is below the mean, where no digits are lost.
    flip = below + above > 0
    below, above = jnp.where(flip, -above, below), jnp.where(flip, -below, above)
    open_below = jnp.where(flip, x0 > high - 0.5 * width, x0 < low + 0.5 * width)
    open_above = jnp.where(flip, x0 < low + 0.5 * width, x0 > high - 0.5 * width)
    tail = log_ndtr(above)
    inside = tail + jnp.log(-jnp.expm1(jnp.minimum(log_ndtr(below) - tail, -1e-30)))
    inner = jnp.where(open_below, tail, jnp.where(open_above, log_ndtr(-below), inside))
    return -sum_dims(inner)


def decoder_log_var(process: Process, between: Array | float = 0.0) -> Array:
    """The log-variance of p(x0 | x_1) for a chain; the papers' x_1 is level 0 here.

    No step of the chain gives it. With w = -expm1(lam_1 - lam_0) it is sigma_0^2 w at between = 0, the posterior's
    variance for the step from level 1 to level 0, and sigma_0^2 at between = 1 (as in the code of Ho et al. 2020 and of
    Nichol & Dhariwal 2021).
    """
    levels = jnp.arange(2)
    lam = process.logsnr(levels)
    log_w = jnp.log(-jnp.expm1(lam[1] - lam[0]))
    log_var = 2 * jnp.log(process.sigma(levels)[0])
    dtype = jnp.result_type(between if isinstance(between, Array) else log_w)
    return log_var.astype(dtype) + (1 - between) * log_w.astype(dtype)


def refuse_uniform_start(process: Process) -> Refusal | None:
    """Why `process` has no likelihood and no bound, if its sampling starts from a uniform law; else None.

    >>> from scoregen.process import ncsn
    >>> refuse_uniform_start(ncsn())
    >>> print(refuse_uniform_start(ncsn(start="uniform")))
    sampling starts from a uniform law, whose density is 0 at nearly all x of the noisiest level, so there is no ...
    """
    if getattr(process, "start", "normal") != "uniform":
        return None
    return Refusal(
        "sampling starts from a uniform law, whose density is 0 at nearly all x of the noisiest level, so there is no "
        "likelihood and no finite bound",
        ("process.start=normal",),
    )


def refuse_step_variance(process: Process) -> Refusal | None:
    """Why the variance of a step can be neither chosen nor learned under `process`; None for a chain."""
    if process.discrete:
        return None
    return Refusal(
        "the variance of a step can be chosen or learned only where steps have a length: in continuous time the "
        "posterior's variance and the forward step's are equal",
        ("process=ddpm", "process=cosine", "process=ncsn"),
    )


@dataclasses.dataclass(frozen=True)
class VLB(Loss):
    """The whole bound, one random part for each example: the mean over times, noise and data is the bound.

    For a chain of N levels it is N `step_kl` for t >= 1, or N L_0 for t = 0, plus L_T. In continuous time it is the
    integrand divided by the density of t (`own_density`), plus L_0 and L_T. There L_0 needs no network: at t_min,
    p(x0 | x) is taken to be normal with mean x / alpha and standard deviation sigma / alpha (as in Kingma et al. 2021,
    section 3.3). The bound is tight if this deviation is well below the width of a bin: choose t_min accordingly.

    Attributes:
        bins: (low, high, width) of discrete data, None for continuous data. A run takes it from the data's scaling.
        unit: "bits" for bits per dimension, "nats" for nats per example.
        variance: the variance of a chain's reverse steps: "small" (the posterior's), "large" (the forward step's) or
            "learned" (Nichol & Dhariwal 2021, eq. 15).
        width: for continuous data, the side of the cell whose probability is bounded. For bytes with added uniform
            noise it is the width of a byte, so that the bound holds for the bytes (Theis et al. 2016,
            section 3.1); 1 for points. Not used with `bins`. A run takes it from the scaling too.

    Raises:
        ValueError: for another unit or variance, or unless width > 0; when it is called, for variance="learned" if the
            network gives no variance, and for "large" or "learned" in continuous time.
    """

    bins: Bins | None = None
    unit: str = "bits"
    variance: str = "small"
    width: float = 1.0
    positive = False
    average_over_time = True

    def __post_init__(self):
        if self.unit not in ("bits", "nats"):
            raise ValueError(f"unit={self.unit!r}: 'bits' or 'nats' is needed")
        if self.variance not in ("small", "large", "learned"):
            raise ValueError(f"variance={self.variance!r}: 'small', 'large' or 'learned' is needed")
        check_positive(width=self.width)

    @property
    def trains_variance(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the variance is learned."""
        return self.variance == "learned"

    def __call__(self, denoiser: Denoiser, noised: Noised, key: Array) -> Array:
        process, x0, t = denoiser.process, noised.x0, noised.t
        found = denoiser(noised.x, t)
        between = {"small": 0.0, "large": 1.0, "learned": found.between}[self.variance]
        if between is None:
            raise ValueError("variance='learned': the network gives no variance of a step; say learned_variance=True")
        if self.variance != "small" and (refused := refuse_step_variance(process)):
            raise ValueError(f"variance={self.variance!r}: {refused}")
        part = step_kl(process, found, x0, t, between)
        density = broadcast(own_density(process, t), part)
        if process.discrete:
            first = broadcast(t == 0, x0)
            # Other levels use x0 itself: their estimate may be so far off that the decoder's tails underflow.
            mean = jnp.where(first, found.x0, x0)
            # The fixed variances "small" and "large" share the decoder's variance at between = 0.
            log_var = jnp.asarray(decoder_log_var(process, between if self.variance == "learned" else 0.0), x0.dtype)
            last = decoder_nll(x0, mean, jnp.broadcast_to(log_var, x0.shape), self.bins)
            total = jnp.where(t == 0, last, part) / density
        else:
            end = jnp.full_like(t, bottom(process))
            alpha, sigma = broadcast(process.alpha(end), x0), broadcast(process.sigma(end), x0)
            mean = perturb(process, key, x0, end).x / alpha
            log_var = jnp.broadcast_to(2 * jnp.log(sigma / alpha), x0.shape)
            total = part / density + decoder_nll(x0, mean, log_var, self.bins)
        total = total + prior_kl(process, x0)
        if self.bins is None:
            total = total - x0[0].size * math.log(self.width)
        return total / (x0[0].size * math.log(2)) if self.unit == "bits" else total

    def weight(self, process: Process, t: Array) -> Array:
        """`bound_weight`, divided by log 2 for bits. It holds for variance="small", and not at level 0 of a chain.

        The factor 1 / D of a mean over D dimensions is left out, as in every loss.
        """
        weight = bound_weight(process, t)
        return weight / math.log(2) if self.unit == "bits" else weight

    def refuse(self, process: Process) -> Refusal | None:
        return refuse_uniform_start(process) or (refuse_step_variance(process) if self.variance != "small" else None)

    @classmethod
    def variants(cls) -> dict[str, Loss]:
        return {"": cls(), "nats": cls(unit="nats")}


@dataclasses.dataclass(frozen=True)
class Hybrid(Loss):
    """L_simple + share L_vlb with a learned variance (Nichol & Dhariwal 2021, eq. 16), for a chain.

    L_simple is `EpsilonMSE`, a mean over dimensions; L_vlb is `VLB` in bits a dimension. The gradient of L_vlb
    reaches only the variance, because the estimate of x0 is held constant in it.

    Attributes:
        bins: see `VLB`.
        share: lambda of the paper.
        width: see `VLB`. It adds a constant.

    Raises:
        ValueError: unless share > 0 and width > 0; when it is called, if the network gives no variance, and in
            continuous time.
    """

    bins: Bins | None = None
    share: float = 0.001
    width: float = 1.0
    positive = False
    average_over_time = True
    trains_variance = True

    def __post_init__(self):
        check_positive(share=self.share, width=self.width)

    def __call__(self, denoiser: Denoiser, noised: Noised, key: Array) -> Array:
        found = denoiser(noised.x, noised.t)
        held = jax.lax.stop_gradient(found)._replace(between=found.between)
        simple = EpsilonMSE()(Denoiser(denoiser.process, lambda x, t: found), noised, key)
        bound = VLB(self.bins, "bits", "learned", self.width)
        return simple + self.share * bound(Denoiser(denoiser.process, lambda x, t: held), noised, key)

    def weight(self, process: Process, t: Array) -> Array:
        """The SNR, as for L_simple: only that term trains the estimate of x0. The factor 1 / D is left out."""
        return snr(process, t)

    def refuse(self, process: Process) -> Refusal | None:
        return refuse_uniform_start(process) or refuse_step_variance(process)
