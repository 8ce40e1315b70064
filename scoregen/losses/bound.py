"""The variational bound: -log p(x0) <= E[ L_T + sum_{t >= 1} L_{t-1} + L_0 ] (Ho et al. 2020, eq. 5), and its parts.

The parts are in nats and summed over data dimensions, `[B]`. In continuous time the sum is an integral
(Kingma et al. 2021, eq. 17). A part is drawn at random, at the example's own t, so that the mean over t of what
`VLB` returns is the bound.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import log_ndtr

from scoregen.denoiser import Predict, Prediction
from scoregen.losses.matching import EpsilonMSE, Loss, bound_weight, snr, snr_lost, sum_dims
from scoregen.process import Noised, Process, perturb, rows

Bins = tuple[float, float, float]


def prior_kl(process: Process, x0: Array) -> Array:
    """L_T = KL( p(x_T | x_0) || prior ), how far the noisiest level is from what sampling starts with, `[B]` nats.

    With v = (sigma / prior_std)^2 at the noisiest level, 1/2 sum( v - 1 - log v + (alpha x0 / prior_std)^2 ).
    """
    top, std = process.grid(1)[0], process.prior_std()
    spread = (process.sigma(top) / std) ** 2
    return 0.5 * sum_dims(spread - 1 - jnp.log(spread) + (process.alpha(top) / std * x0) ** 2)


def step_kl(process: Process, found: Prediction, x0: Array, t: Array, between: Array | float = 0.0) -> Array:
    """L_{t-1} = KL( p(x_s | x_t, x0) || p_theta(x_s | x_t) ) for the step t to s = t - 1, `[B]` nats.

    Both are `posterior`s, given x0 and given its estimate, whose means differ by alpha_s w (x0 - x0_theta). With
    the variances posterior = sigma_s^2 w and model = posterior e^d, where d = `between` log(sigma_t^2 / sigma_s^2),

        1/2 sum( d + e^-d - 1 + e^-d (SNR_s - SNR_t) (x0 - x0_theta)^2 )

    In continuous time it is the same per unit of time, with -SNR' for the difference, and d = 0.

    Args:
        process: the process.
        found: the denoiser's estimate at x_t.
        x0: the clean data `[B, ...]`.
        t: times `[B]`; a chain's are 1 or more.
        between: 0 for the posterior's variance, 1 for the forward step's, or `Prediction.between`.
    """
    error = rows(snr_lost(process, t), x0) * (x0 - found.x0) ** 2
    if isinstance(between, float) and between == 0.0:
        return 0.5 * sum_dims(error)
    span = 2 * (jnp.log(process.sigma(t)) - jnp.log(process.sigma(jnp.maximum(t - 1, 0))))
    d = between * rows(span, x0)
    return 0.5 * sum_dims(d + jnp.expm1(-d) + jnp.exp(-d) * error)


def decoder_nll(x0: Array, mean: Array, log_var: Array, bins: Bins | None) -> Array:
    """L_0 = -log p(x0 | x_1), `[B]` nats: of a normal density, or of the bin that x0 lies in.

    With `bins` = (low, high, width) the data are the numbers low, low + width, ..., high, and the probability of x0
    is that of the interval of this width around it, the first and the last of which have no outer end (Ho et al.
    2020, eq. 13). With None it is the density, and its logarithm has the unit of x0.

    >>> x0 = jnp.array([[-1.0], [0.0]])
    >>> decoder_nll(x0, jnp.zeros((2, 1)), jnp.zeros((2, 1)), (-1.0, 1.0, 1.0)).tolist()  # Phi(-1/2), Phi(1/2) - ...
    [1.1759..., 0.9599...]
    """
    std = jnp.exp(0.5 * log_var)
    if bins is None:
        return 0.5 * sum_dims(((x0 - mean) / std) ** 2 + log_var + math.log(2 * math.pi))
    low, high, width = bins
    below, above = (x0 - 0.5 * width - mean) / std, (x0 + 0.5 * width - mean) / std
    # Seen from the side where both ends are below the mean: there no digits are lost.
    flip = below + above > 0
    below, above = jnp.where(flip, -above, below), jnp.where(flip, -below, above)
    open_below = jnp.where(flip, x0 > high - 0.5 * width, x0 < low + 0.5 * width)
    open_above = jnp.where(flip, x0 < low + 0.5 * width, x0 > high - 0.5 * width)
    tail = log_ndtr(above)
    inside = tail + jnp.log(-jnp.expm1(jnp.minimum(log_ndtr(below) - tail, -1e-30)))
    inner = jnp.where(open_below, tail, jnp.where(open_above, log_ndtr(-below), inside))
    return -sum_dims(inner)


def decoder_log_var(process: Process, between: Array | float = 0.0) -> Array:
    """log of the variance of p(x0 | x_1) for a chain, where x_1 is level 0 here.

    No step leads there, so with w = -expm1(lam_1 - lam_0) it is sigma_0^2 w, the posterior's variance of the next
    level, at between = 0, and sigma_0^2 at 1 (as in the code of Ho et al. 2020 and of Nichol & Dhariwal 2021).
    """
    ends = jnp.arange(2)
    lam = process.logsnr(ends)
    log_w = jnp.log(-jnp.expm1(lam[1] - lam[0]))
    return 2 * jnp.log(process.sigma(ends)[0]) + (1 - between) * log_w


@dataclasses.dataclass(frozen=True)
class VLB(Loss):
    """The whole bound, one part of it an example: its mean over times, noise and data is the bound.

    Of a chain of N levels, N L_{t-1} for t >= 1 or N L_0 for t = 0, plus L_T. In continuous time the integrand
    over the density of t, plus L_0 and L_T, where L_0 needs no network: p(x0 | x) is taken to be normal around
    x / alpha at t_min, with the deviation sigma / alpha (as in Kingma et al. 2021, section 3.3), which is tight
    once that is well below a bin, so choose t_min with that in mind.

    Attributes:
        bins: (low, high, width) of discrete data, None for a density; the run takes it from the data's scaling.
        unit: "bits" for bits a dimension, "nats" for nats an example.
        variance: of the reverse steps of a chain: "small" (the posterior's), "large" (the forward step's) or
            "learned" (Nichol & Dhariwal 2021, eq. 15).
        width: what a density is of, by its side: a byte, as wide as the noise that it was spread over with, so that
            the bound is one on the discrete data (Theis et al. 2016, section 3.1), or 1 for points. With `bins` it is
            not used; the run takes it from the scaling too.

    Raises:
        ValueError: for another unit or variance, or unless width > 0; when it is called, if the variance is to be
            learned and was not, or if it is to be chosen in continuous time.
    """

    bins: Bins | None
    unit: str = "bits"
    variance: str = "small"
    width: float = 1.0
    positive = False

    def __post_init__(self):
        if self.unit not in ("bits", "nats"):
            raise ValueError(f"unit={self.unit!r}: 'bits' or 'nats' is needed")
        if self.variance not in ("small", "large", "learned"):
            raise ValueError(f"variance={self.variance!r}: 'small', 'large' or 'learned' is needed")
        if not self.width > 0:
            raise ValueError(f"width={self.width}: a positive number is needed")

    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        x0, t = noised.x0, noised.t
        found = predict(noised.x, t)
        between = {"small": 0.0, "large": 1.0, "learned": found.between}[self.variance]
        if between is None:
            raise ValueError("variance='learned': the denoiser has learned none")
        if self.variance != "small" and not process.discrete:
            raise ValueError(f"variance={self.variance!r}: in continuous time a step has no length, and no variance")
        part = step_kl(process, found, x0, t, between)
        if process.discrete:
            first = rows(t == 0, x0)
            # Elsewhere the estimate may be so far off that the decoder's tails are beyond the arithmetic.
            mean = jnp.where(first, found.x0, x0)
            # Its mean is the estimate itself, and both fixed variances begin alike.
            log_var = decoder_log_var(process, between if self.variance == "learned" else 0.0)
            last = decoder_nll(x0, mean, jnp.broadcast_to(log_var, x0.shape), self.bins)
            total = jnp.where(t == 0, last, part) / process.density(t)
        else:
            end = jnp.broadcast_to(process.grid(2)[1], t.shape)
            alpha, sigma = rows(process.alpha(end), x0), rows(process.sigma(end), x0)
            mean = perturb(process, key, x0, end).x / alpha
            log_var = jnp.broadcast_to(2 * jnp.log(sigma / alpha), x0.shape)
            total = part / process.density(t) + decoder_nll(x0, mean, log_var, self.bins)
        total = total + prior_kl(process, x0)
        if self.bins is None:
            total = total - x0[0].size * math.log(self.width)
        return total / (x0[0].size * math.log(2)) if self.unit == "bits" else total

    def weight(self, process: Process, t: Array) -> Array:
        """`bound_weight`: with the posterior's variance, in nats, but for a chain's level 0."""
        return bound_weight(process, t)


@dataclasses.dataclass(frozen=True)
class Hybrid(Loss):
    """L_simple + share L_vlb with a learned variance (Nichol & Dhariwal 2021, eq. 16), for a chain.

    L_simple is `EpsilonMSE`, a mean over dimensions; L_vlb is `VLB` in bits a dimension. Through the second the
    gradient reaches the variance alone: the mean is held there.

    Attributes:
        bins: see `VLB`.
        share: lambda of the paper.
        width: see `VLB`. It adds a constant.

    Raises:
        ValueError: unless share > 0; when it is called, if the variance was not learned.
    """

    bins: Bins | None
    share: float = 0.001
    width: float = 1.0
    positive = False

    def __post_init__(self):
        if not self.share > 0:
            raise ValueError(f"share={self.share}: a positive number is needed")

    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        found = predict(noised.x, noised.t)
        held = jax.lax.stop_gradient(found)._replace(between=found.between)
        simple = EpsilonMSE()(process, lambda x, t: found, noised, key)
        bound = VLB(self.bins, "bits", "learned", self.width)
        return simple + self.share * bound(process, lambda x, t: held, noised, key)

    def weight(self, process: Process, t: Array) -> Array:
        """SNR, that of the first term, through which alone the estimate of x0 is trained."""
        return snr(process, t)
