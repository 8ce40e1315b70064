"""From a network to a denoiser: one linear identity for every way to parametrise a network.

A process mixes data and noise, and a network is trained to give some other mixture of the two:

    x      = alpha x0 + sigma eps
    output = a     x0 + b     eps             det = alpha b - a sigma

Its row (a, b) is all that a parametrisation is. Solving the two lines for x0 and eps turns any
network into the same `predict(x, t) -> Prediction(x0, eps, score)`, which is all that losses and
samplers see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.process import Process, covers, rows

Row = Callable[[Process, Array], tuple[Array, Array]]
Predict = Callable[[Array, Array], "Prediction"]


class Prediction(NamedTuple):
    """What a denoiser says of x at time t, all `[B, ...]`. XLA drops the parts that are not used.

    Attributes:
        x0: an estimate of E[x_0 | x_t = x], the clean data.
        eps: an estimate of E[eps | x_t = x], the noise.
        score: an estimate of grad log p_t(x) = -eps / sigma.
        between: if the variance of a step is learned, where it lies: 0 for the posterior's, 1 for the forward
            step's, and their logarithms mixed in proportion (Nichol & Dhariwal 2021, eq. 15); else None.
        log_density: log p_t(x) up to a constant, `[B]`, where the score is known to be its gradient; else None.
    """

    x0: Array
    eps: Array
    score: Array
    between: Array | None = None
    log_density: Array | None = None


def eps_row(process: Process, t: Array) -> tuple[Array, Array]:
    """The network gives the noise (Ho et al. 2020, eq. 11): a = 0, b = 1."""
    b = jnp.ones_like(process.alpha(t))
    return jnp.zeros_like(b), b


def x0_row(process: Process, t: Array) -> tuple[Array, Array]:
    """The network gives the clean data, as a denoising autoencoder does: a = 1, b = 0."""
    a = jnp.ones_like(process.alpha(t))
    return a, jnp.zeros_like(a)


def score_row(process: Process, t: Array) -> tuple[Array, Array]:
    """The network gives the score -eps / sigma (Song & Ermon 2019, eq. 5): a = 0, b = -1 / sigma."""
    b = -1.0 / process.sigma(t)
    return jnp.zeros_like(b), b


def v_row(process: Process, t: Array) -> tuple[Array, Array]:
    """The network gives v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D): a = -sigma, b = alpha."""
    return -process.sigma(t), process.alpha(t)


def velocity_row(process: Process, t: Array) -> tuple[Array, Array]:
    """The network gives dx/dt = alpha' x0 + sigma' eps (Lipman et al. 2023, eqs. 13-15): a = alpha', b = sigma'.

    t must be real: a chain has no velocity. For flow matching it is eps - x0.
    """
    one = jnp.ones_like(t)
    return jax.jvp(process.alpha, (t,), (one,))[1], jax.jvp(process.sigma, (t,), (one,))[1]


def edm_row(process: Process, t: Array) -> tuple[Array, Array]:
    """The preconditioning of Karras et al. 2022 (eq. 7, table 1), for any process.

        x0 = c_skip x + c_out output,    a = (1 - c_skip alpha) / c_out,    b = -c_skip sigma / c_out

    With d = data_std and q = sigma^2 + alpha^2 d^2, the variance of x, c_skip = alpha d^2 / q and
    c_out = sigma d / sqrt(q), so that a = sigma / (d sqrt(q)) and b = -alpha d / sqrt(q): the output has unit
    variance, and so should the input (`input_scale`). On a variance-preserving process with d = 1 it is -v.
    """
    alpha, sigma, std = process.alpha(t), process.sigma(t), process.data_std
    root = jnp.hypot(sigma, alpha * std)
    return sigma / (std * root), -alpha * std / root


def input_scale(process: Process, t: Array) -> Array:
    """c_in = 1 / sqrt(sigma^2 + alpha^2 data_std^2), which gives x unit variance (Karras et al. 2022, table 1)."""
    return 1 / jnp.hypot(process.sigma(t), process.alpha(t) * process.data_std)


TARGETS: dict[str, Row] = {
    "eps": eps_row,
    "x0": x0_row,
    "score": score_row,
    "v": v_row,
    "velocity": velocity_row,
    "edm": edm_row,
}

# What tells a network how noisy its input is, `[B]`. The index is DDPM's, and in continuous time 999 t, as in
# score_sde's code: at t = 1 the last of 1000 levels. Rescaled, it is as if a chain had 1000 levels, as in improved
# DDPM's code, and 1000 t. Log sigma and the log-SNR mean the same under chains of any length, and are smooth between
# levels (see `as_process`). EDM's c_noise is ln(sigma) / 4 (Karras et al. 2022, table 1), here that of sigma / alpha
# for any process.
CONDITIONS: dict[str, Callable[[Process, Array], Array]] = {
    "index": lambda process, t: t.astype(jnp.float32) * (1.0 if process.discrete else 999.0),
    "rescaled": lambda process, t: t.astype(jnp.float32) * (1000 / (process.levels if process.discrete else 1)),
    "sigma": lambda process, t: jnp.log(process.sigma(t)),
    # Where alpha is 0, as at the end of flow matching, lam is -inf, and no network could read that.
    "logsnr": lambda process, t: jnp.clip(process.logsnr(t), -25.0, 25.0),
    "edm": lambda process, t: -0.125 * CONDITIONS["logsnr"](process, t),
}


def denoiser(
    process: Process, target: Row, apply: Callable[[Array, Array], Array], learned_variance: bool = False
) -> Predict:
    """Make `predict(x, t)` of a raw network `apply(x, t)` that was trained for `target`.

        eps = (alpha output - a x) / det,    x0 = (b x - sigma output) / det,    score = -eps / sigma

    Args:
        process: the process under which x was noised.
        target: a row of `TARGETS`, or any function (process, t) -> (a, b) with det != 0.
        apply: the network, `[B, ...], [B] -> [B, ...]`.
        learned_variance: the network's last axis is twice that of x, and its second half is v in
            `Prediction.between` = (v + 1) / 2, which is not held to [0, 1] (Nichol & Dhariwal 2021, section 3.1).

    >>> from scoregen.process import ncsn, perturb
    >>> process, t = ncsn(), jnp.array([3, 7])
    >>> noised = perturb(process, jax.random.key(0), jnp.ones((2, 4)), t)
    >>> predict = denoiser(process, score_row, lambda x, t: -noised.eps / rows(process.sigma(t), x))
    >>> bool(jnp.allclose(predict(noised.x, t).x0, noised.x0, atol=1e-5))
    True
    """

    def predict(x: Array, t: Array) -> Prediction:
        output, between = apply(x, t), None
        if learned_variance:
            output, v = jnp.split(output, 2, axis=-1)
            between = 0.5 * (v + 1)
        alpha, sigma = process.alpha(t), process.sigma(t)
        a, b = target(process, t)
        det = alpha * b - a * sigma
        eps = rows(alpha / det, x) * output - rows(a / det, x) * x
        x0 = rows(b / det, x) * x - rows(sigma / det, x) * output
        return Prediction(x0, eps, -eps / rows(sigma, x), between)

    return predict


def of_x0(process: Process, x: Array, t: Array, x0: Array, between: Array | None = None) -> Prediction:
    """What a denoiser says that estimates x0 `[B, ...]`: eps is what is left of x, (x - alpha x0) / sigma."""
    sigma = rows(process.sigma(t), x)
    eps = (x - rows(process.alpha(t), x) * x0) / sigma
    return Prediction(x0, eps, -eps / sigma, between)


def of_energy(process: Process, log_density: Callable[[Array, Array], Array]) -> Predict:
    """The denoiser of a density `log_density(x, t) -> [B]` up to a constant, as of an energy with its sign turned.

    The score is its gradient, eps = -sigma score, and x0 = (x + sigma^2 score) / alpha, Tweedie's formula; alpha > 0
    is needed.

    >>> from scoregen.process import VE
    >>> density = lambda x, t: -0.5 * jnp.sum(x**2, -1) / (1 + VE().sigma(t) ** 2)  # N(0, 1) with noise
    >>> found = of_energy(VE(), density)(jnp.ones((1, 2)), jnp.array([0.5]))
    >>> float(found.x0[0, 0])  # 1 / (1 + sigma^2), with sigma^2 = 1/2
    0.666...
    """

    def predict(x: Array, t: Array) -> Prediction:
        # Examples do not see each other, so the gradient of the sum has each one's own.
        density, pull = jax.vjp(lambda x: log_density(x, t), x)
        (score,) = pull(jnp.ones_like(density))
        sigma = rows(process.sigma(t), x)
        x0 = (x + sigma**2 * score) / rows(process.alpha(t), x)
        return Prediction(x0, -sigma * score, score, None, density)

    return predict


def as_energy(process: Process, predict: Predict) -> Predict:
    """The denoiser whose log-density is -||eps(x, t)||^2 / 2, where `predict` gives eps (Salimans & Ho 2021, eq. 8).

    So the score is the gradient of something, which any other network's is only if it is exact; it costs a derivative
    of the network more. Where eps is that of one point, (x - alpha x0) / sigma, it is as it was.

    >>> from scoregen.process import VE
    >>> point = lambda x, t: of_x0(VE(), x, t, jnp.ones_like(x))
    >>> float(as_energy(VE(), point)(jnp.array([[3.0]]), jnp.array([0.5])).x0[0, 0])
    1.0
    """

    def log_density(x: Array, t: Array) -> Array:
        eps = predict(x, t).eps
        return -0.5 * jnp.sum(eps**2, axis=tuple(range(1, x.ndim)))

    return of_energy(process, log_density)


def velocity(process: Process, predict: Predict, x: Array, t: Array) -> Array:
    """dx/dt of the probability-flow ODE, alpha' x0 + sigma' eps, `[B, ...]` (Song et al. 2021, eq. 13).

    It equals f x - g^2 score / 2, with the f and g of `drift_diffusion`, but is finite where alpha = 0. t is real; of
    a chain it is the equation through its levels, in units of one.

    >>> from scoregen.process import VP
    >>> white = lambda x, t: of_x0(VP(), x, t, rows(VP().alpha(t), x) * x)  # the denoiser of N(0, I)
    >>> t = jnp.array([0.5])
    >>> bool(jnp.abs(velocity(VP(), white, jnp.ones((1, 2)), t)).max() < 1e-5)  # which VP leaves as it is
    True
    """
    found, (a, b) = predict(x, t), velocity_row(process, t)
    return rows(a, x) * found.x0 + rows(b, x) * found.eps


def as_process(predict: Predict, source: Process, target: Process) -> Predict:
    """Use a denoiser that was trained under `source` as a denoiser under `target`.

    In the coordinates x / alpha every process adds noise of standard deviation sigma / alpha, so two
    processes show a network the same picture wherever their log-SNRs agree:

        u = source.time(target.logsnr(t)),     x_source = (alpha_source(u) / alpha_target(t)) x

    x0 and eps carry over as they are, and the score becomes -eps / sigma_target(t). A learned
    variance does not carry over, being one of the source's steps. This is the whole of the connection between
    DDPM and NCSN. Between the levels of a `source` chain the network is asked
    at fractional t: it should be conditioned on something smooth (log-SNR, log sigma).

    Args:
        predict: the denoiser under `source`.
        source: the process that it was trained under.
        target: the process that it is to be used under.

    Raises:
        ValueError: if `target` has levels outside `source`'s noise range, where the network knows nothing.
            `target.within(source)` is the chain without them.

    >>> from scoregen.process import ddpm, ncsn
    >>> vp, ve = ddpm(), ncsn(0.01, 20.0, 100)
    >>> def gaussian(x, t):  # the exact denoiser of N(0, I) data under NCSN: x0 = x / (1 + sigma^2)
    ...     s = rows(ve.sigma(t), x)
    ...     return Prediction(x / (1 + s**2), s * x / (1 + s**2), -x / (1 + s**2))
    >>> bridged = as_process(gaussian, ve, vp.within(ve))
    >>> x, t = jnp.full((1, 1), 0.5), jnp.array([400])
    >>> float(bridged(x, t).score[0, 0])  # N(0, I) data stay N(0, I) under DDPM: the score is -x
    -0.50...
    """
    with jax.ensure_compile_time_eval():  # the ranges are known now, also where a sampler is being traced
        inside = covers(source, target.logsnr(target.grid()))
    if not inside.all():
        raise ValueError(
            f"{(~inside).sum()} of the target's {inside.size} levels lie outside the noise range of the source: "
            "sample on target.within(source), or train with a wider range"
        )

    def bridged(x: Array, t: Array) -> Prediction:
        u = source.time(target.logsnr(t))
        alpha, ours = target.alpha(t), source.alpha(u)
        # Where both alphas are 0 all is noise, and only its size differs.
        ratio = jnp.where(alpha > 0, ours / jnp.where(alpha > 0, alpha, 1), source.sigma(u) / target.sigma(t))
        at = predict(rows(ratio, x) * x, u)
        return Prediction(at.x0, at.eps, -at.eps / rows(target.sigma(t), x))

    return bridged
