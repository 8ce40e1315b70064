"""Denoisers: a network and the process that it was trained under, in one object.

A process mixes data and noise, and a network is trained to give some other mixture of the two:

    x      = alpha x0 + sigma eps
    output = a     x0 + b     eps             det = alpha b - a sigma

A target (a parametrisation) is just the pair (a, b). Solving the two lines for x0 and eps turns any network into the
same `denoiser(x, t) -> Prediction(x0, eps, score)`. Losses, samplers and likelihoods use nothing else.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from scoregen.errors import Refusal
from scoregen.process import Process, bottom, covers, top
from scoregen.process.kernel import as_data, check_process, check_times, has_values
from scoregen.random import broadcast, widest

Target = Callable[[Process, Array], tuple[Array, Array]]
Condition = Callable[[Process, Array], Array]
Predict = Callable[[Array, Array], "Prediction"]


class Prediction(NamedTuple):
    """What a denoiser estimates from x at time t, `[B, ...]` unless noted. XLA removes the parts that are not used.

    Attributes:
        x0: an estimate of E[x_0 | x_t = x], the clean data.
        eps: an estimate of E[eps | x_t = x], the noise.
        score: an estimate of grad log p_t(x) = -eps / sigma.
        between: the learned variance of a step, as a position between two variances on a log scale: 0 is the
            posterior's, 1 the forward step's (Nichol & Dhariwal 2021, eq. 15). None if no variance is learned.
        log_density: log p_t(x) up to a constant, `[B]`, if the score is known to be its gradient; else None.
    """

    x0: Array
    eps: Array
    score: Array
    between: Array | None = None
    log_density: Array | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Denoiser:
    """A denoiser and the process that it denoises: `denoiser(x, t) -> Prediction`.

    It is a pytree, so it can be an argument of `jax.jit`. Its leaves are the arrays in its process and, if `predict` is
    a `jax.tree_util.Partial`, the arrays in that Partial. The arrays that any other `predict` closes over become
    constants of the compiled programs, and samplers compile too. For new parameters make a new function, or pass them
    by `Partial(function, params)`.

    Attributes:
        process: the process under which x was noised.
        predict: x `[B, ...]`, t `[B]` -> `Prediction`.

    Raises:
        TypeError: unless `process` is a `Process` and `predict` a function.

    >>> from scoregen.process import VE
    >>> ones = Denoiser(VE(), lambda x, t: prediction_from_x0(VE(), x, t, jnp.ones_like(x)))
    >>> float(ones(jnp.full((1, 1), 3.0), 0.5).x0[0, 0])  # one time for all examples
    1.0
    """

    process: Process
    predict: Predict

    def __post_init__(self):
        check_process(self.process)
        if not callable(self.predict):
            raise TypeError(f"predict is a {type(self.predict).__name__}: a function (x, t) -> Prediction is needed")

    def __call__(self, x: Array, t: Array | float) -> Prediction:
        """The prediction for x `[B, ...]` at the times t, `[B]` or one for all. A chain takes real times as well.

        Raises:
            TypeError: if x is not an array of floating-point numbers.
            ValueError: unless there is one time for all or one for each example, within `process.ends`.
        """
        x = as_data(x, "x")
        t = self._time(x, t)
        check_times(self.process, t)
        if t.shape not in ((), x.shape[:1]):
            raise ValueError(
                f"t of shape {list(t.shape)} for x of shape {list(x.shape)}: give one time for each example"
            )
        return self.predict(x, jnp.broadcast_to(t, x.shape[:1]))

    def under(self, process: Process) -> Denoiser:
        """The same network as a denoiser under another process.

        In the coordinates x / alpha every process adds noise of standard deviation sigma / alpha. At equal log-SNRs the
        inputs x of two processes therefore differ only in scale:

            u = source.time(target.logsnr(t)),     x_source = (alpha_source(u) / alpha_target(t)) x

        x0 and eps stay the same, and the score becomes -eps / sigma_target(t). A learned variance is dropped, since it
        belongs to the source's steps. This is the whole connection between DDPM and NCSN. Between the levels of a
        source chain the network is evaluated at fractional t, so it should be conditioned on a smooth value (log-SNR
        or log sigma).

        Raises:
            TypeError: unless `process` is a `Process`.
            ValueError: if `process` has levels outside the noise range of the denoiser's own process, for which the
                network was not trained. `process.within(denoiser.process)` leaves these levels out.

        >>> from scoregen.process import ddpm, ncsn
        >>> vp, ve = ddpm(), ncsn(0.01, 20.0, 100)
        >>> def gaussian(x, t):  # the exact denoiser of N(0, I) data under NCSN: x0 = x / (1 + sigma^2)
        ...     s = broadcast(ve.sigma(t), x)
        ...     return Prediction(x / (1 + s**2), s * x / (1 + s**2), -x / (1 + s**2))
        >>> bridged = Denoiser(ve, gaussian).under(vp.within(ve))
        >>> float(bridged(jnp.full((1, 1), 0.5), 400).score[0, 0])  # N(0, I) stays N(0, I) under DDPM: the score is -x
        -0.50...
        """
        check_process(process)
        if has_values(self.process, process):
            with jax.ensure_compile_time_eval():
                ends = jnp.stack([bottom(process), top(process)])
                times = jnp.arange(int(ends[1]) + 1) if process.discrete else ends
                inside = covers(self.process, process.logsnr(times))
            if not inside.all():
                count = f"{(~inside).sum()} of its {inside.size} levels lie"
                which = count if process.discrete else "an end of it lies"
                raise ValueError(
                    f"the denoiser cannot be used under this process: {which} outside the noise range that it was "
                    "trained for; say denoiser.under(process.within(denoiser.process)), or train with a wider range"
                )
        return Denoiser(process, Partial(_bridged, self, process))

    def velocity(self, x: Array, t: Array) -> Array:
        """dx/dt of the probability-flow ODE, alpha' x0 + sigma' eps, `[B, ...]` (Song et al. 2021, eq. 13).

        It equals f x - g^2 score / 2, with f and g from `drift_diffusion`, but it is finite where alpha = 0. t is real.
        For a chain the ODE runs through its interpolated levels, and the unit of time is one level.

        Raises:
            TypeError: if x is not an array of floating-point numbers, and for the integer times of a chain.
            ValueError: unless there is one time for all or one for each example, within `process.ends`.

        >>> from scoregen.process import VP
        >>> white = Denoiser(VP(), lambda x, t: prediction_from_x0(VP(), x, t, broadcast(VP().alpha(t), x) * x))
        >>> t = jnp.array([0.5])
        >>> bool(jnp.abs(white.velocity(jnp.ones((1, 2)), t)).max() < 1e-5)  # VP leaves N(0, I) as it is
        True
        """
        x = as_data(x, "x")
        t = self._time(x, t)
        found, (a, b) = self(x, t), velocity_target(self.process, t)
        return broadcast(a, x) * found.x0 + broadcast(b, x) * found.eps

    def _time(self, x: Array, t: Array | float) -> Array:
        """The time as an array. A Python number gets the dtype of x, or float32 if that is wider."""
        t = jnp.asarray(t, _wide(x) if isinstance(t, float) else None)
        return t if self.process.discrete or jnp.issubdtype(t.dtype, jnp.floating) else t.astype(_wide(x))


def _flatten(denoiser: Denoiser) -> tuple[tuple, Any]:
    if isinstance(denoiser.predict, Partial):
        return (denoiser.process, denoiser.predict), None
    return (denoiser.process,), denoiser.predict


def _unflatten(predict: Any, children: tuple) -> Denoiser:
    denoiser = object.__new__(Denoiser)  # no checks: JAX also unflattens with placeholders in place of processes
    object.__setattr__(denoiser, "process", children[0])
    object.__setattr__(denoiser, "predict", children[1] if predict is None else predict)
    return denoiser


jax.tree_util.register_pytree_node(Denoiser, _flatten, _unflatten)


def check_denoiser(denoiser: Any) -> None:
    """Raises TypeError unless the argument is a `Denoiser`."""
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            f"a Denoiser is needed, not {type(denoiser).__name__}: say model.denoiser(params), or "
            "Denoiser(process, predict)"
        )


def _wide(x: Array) -> Any:
    return widest(x.dtype, jnp.float32)


def _bridged(source: Denoiser, target: Process, x: Array, t: Array) -> Prediction:
    u = source.process.time(target.logsnr(t)).astype(_wide(x))
    kernels = target.alpha(t), target.sigma(t), source.process.alpha(u), source.process.sigma(u)
    alpha, sigma, alpha_u, sigma_u = (value.astype(_wide(x)) for value in kernels)
    # Where both alphas are 0, x is pure noise, and only its scale differs.
    ratio = jnp.where(alpha > 0, alpha_u / jnp.where(alpha > 0, alpha, 1), sigma_u / sigma)
    found = source(broadcast(ratio, x) * x, u)
    return Prediction(found.x0, found.eps, -found.eps / broadcast(sigma, x))


def eps_target(process: Process, t: Array) -> tuple[Array, Array]:
    """The network gives the noise (Ho et al. 2020, eq. 11): a = 0, b = 1."""
    b = jnp.ones_like(process.alpha(t))
    return jnp.zeros_like(b), b


def x0_target(process: Process, t: Array) -> tuple[Array, Array]:
    """The network gives the clean data, as a denoising autoencoder does: a = 1, b = 0."""
    a = jnp.ones_like(process.alpha(t))
    return a, jnp.zeros_like(a)


def score_target(process: Process, t: Array) -> tuple[Array, Array]:
    """The network gives the score -eps / sigma (Song & Ermon 2019, eq. 5): a = 0, b = -1 / sigma."""
    b = -1.0 / process.sigma(t)
    return jnp.zeros_like(b), b


def v_target(process: Process, t: Array) -> tuple[Array, Array]:
    """The network gives v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D): a = -sigma, b = alpha."""
    return -process.sigma(t), process.alpha(t)


def velocity_target(process: Process, t: Array) -> tuple[Array, Array]:
    """The network gives dx/dt = alpha' x0 + sigma' eps (Lipman et al. 2023, eqs. 13-15): a = alpha', b = sigma'.

    For flow matching it is eps - x0.

    Raises:
        TypeError: for the integer times of a chain, which has no derivative in time.
    """
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.floating):
        raise TypeError(
            f"the velocity is a derivative in time, and t is {t.dtype}: take a process in continuous time, or the "
            "equation through the levels of a chain at real times, t.astype(float)"
        )
    one = jnp.ones_like(t)
    return jax.jvp(process.alpha, (t,), (one,))[1], jax.jvp(process.sigma, (t,), (one,))[1]


velocity_target.continuous_only = True


def edm_target(process: Process, t: Array) -> tuple[Array, Array]:
    """The preconditioning of Karras et al. 2022 (eq. 7, table 1), for any process.

        x0 = c_skip x + c_out output,    a = (1 - c_skip alpha) / c_out,    b = -c_skip sigma / c_out

    Here d = data_std, and q = sigma^2 + alpha^2 d^2 is the variance of x. With c_skip = alpha d^2 / q and
    c_out = sigma d / sqrt(q) this gives a = sigma / (d sqrt(q)) and b = -alpha d / sqrt(q). The output has unit
    variance, and the input should have it too (`input_scale`). On a variance-preserving process with d = 1 the output
    is -v.
    """
    alpha, sigma, std = process.alpha(t), process.sigma(t), process.data_std
    root = jnp.hypot(sigma, alpha * std)
    return sigma / (std * root), -alpha * std / root


def _refuse_no_std(process: Process) -> Refusal | None:
    if process.data_std > 0:
        return None
    reason = "the target edm divides by the standard deviation of the data, and this process takes it to be 0"
    return Refusal(reason, ("process.data_std=0.5", "target=v"))


edm_target.refuse = _refuse_no_std


def input_scale(process: Process, t: Array) -> Array:
    """c_in = 1 / sqrt(sigma^2 + alpha^2 data_std^2), which gives x unit variance (Karras et al. 2022, table 1)."""
    return 1 / jnp.hypot(process.sigma(t), process.alpha(t) * process.data_std)


# An entry is a function (process, t `[B]`) -> (a, b). It may have the attributes `continuous_only`, True if it needs a
# derivative in time, and `refuse`, a function (process) -> Refusal | None.
TARGETS: dict[str, Target] = {
    "eps": eps_target,
    "x0": x0_target,
    "score": score_target,
    "v": v_target,
    "velocity": velocity_target,
    "edm": edm_target,
}


def index_condition(process: Process, t: Array) -> Array:
    """DDPM's index of the level; in continuous time 999 t, as in score_sde's code: t = 1 is the last of 1000 levels."""
    return t.astype(jnp.float32) * (1.0 if process.discrete else 999.0)


def rescaled_condition(process: Process, t: Array) -> Array:
    """The index scaled to a chain of 1000 levels, as in improved DDPM's code; in continuous time 1000 t."""
    return t.astype(jnp.float32) * (1000 / (process.ends[1] + 1 if process.discrete else 1))


def sigma_condition(process: Process, t: Array) -> Array:
    """log sigma: the same for chains of any length, and smooth between levels (see `Denoiser.under`)."""
    return jnp.log(process.sigma(t))


def logsnr_condition(process: Process, t: Array) -> Array:
    """lam, which means the same under every process, clipped to [-25, 25] (it is -inf where alpha = 0)."""
    return jnp.clip(process.logsnr(t), -25.0, 25.0)


def edm_condition(process: Process, t: Array) -> Array:
    """EDM's c_noise = ln(sigma) / 4 (Karras et al. 2022, table 1), with sigma / alpha as sigma, for any process."""
    return -0.125 * logsnr_condition(process, t)


def _refuse_no_index(process: Process) -> Refusal | None:
    low, high = process.ends
    if process.discrete or not has_values(process.ends) or high <= 1:
        return None
    reason = f"an index of the noise level needs times up to 1, and those of this process go from {low:g} to {high:g}"
    return Refusal(reason, ("model.condition=logsnr", "model.condition=sigma"))


index_condition.refuse = rescaled_condition.refuse = _refuse_no_index

# Values that tell a network the noise of its input. An entry is a function (process, t `[B]`) -> `[B]`; it may have an
# attribute `refuse`, a function (process) -> Refusal | None, as targets may.
CONDITIONS: dict[str, Condition] = {
    "index": index_condition,
    "rescaled": rescaled_condition,
    "sigma": sigma_condition,
    "logsnr": logsnr_condition,
    "edm": edm_condition,
}


def refuse_target(process: Process, target: str | Target) -> Refusal | None:
    """Why a network cannot be trained to give `target` under this process, or None if it can.

    Raises:
        ValueError: for a name that is not in `TARGETS`.

    >>> from scoregen.process import Flow, ddpm
    >>> refuse_target(ddpm(), "eps")
    >>> print(refuse_target(Flow(), "eps"))
    at its noisiest level this process has alpha = 0, where this target says nothing about the clean data: take ...
    """
    chosen = named(TARGETS, "target", target)
    reason = _refuse_target(process, chosen)
    if not isinstance(reason, str):
        return reason
    fit = (name for name, other in TARGETS.items() if _refuse_target(process, other) is None)
    return Refusal(reason, tuple(f"target={name}" for name in fit))


def _refuse_target(process: Process, target: Target) -> Refusal | str | None:
    """A Refusal, or just its reason if every target that is not refused would be a fix."""
    if process.discrete and getattr(target, "continuous_only", False):
        reason = "this target is a derivative in time, and a chain has levels instead"
        return Refusal(reason, ("target=v", "process=vp"))
    if refusal := getattr(target, "refuse", lambda process: None)(process):
        return refusal
    if not has_values(process):
        return None
    with jax.ensure_compile_time_eval():
        for where, t in (("noisiest", top(process)), ("least noisy", bottom(process))):
            (a, b), alpha, sigma = target(process, t), process.alpha(t), process.sigma(t)
            det = float(alpha * b - a * sigma)
            if det != 0 and math.isfinite(det):
                continue
            if alpha == 0 and a == 0:
                return (
                    "at its noisiest level this process has alpha = 0, where this target says nothing about the clean "
                    "data"
                )
            return (
                f"x0 and eps cannot be computed from x and this target at the {where} level of this process, where "
                f"alpha b - a sigma is {det:g} (a = {float(a):g}, b = {float(b):g})"
            )
    return None


def refuse_condition(process: Process, condition: str | Condition) -> Refusal | None:
    """Why the noise levels of this process cannot be given to a network as `condition`, or None if they can.

    Raises:
        ValueError: for a name that is not in `CONDITIONS`.

    >>> from scoregen.process import EDM
    >>> print(refuse_condition(EDM(), "index"))
    an index of the noise level needs times up to 1, and those of this process go from 0.002 to 80: take ...
    """
    refuse = getattr(named(CONDITIONS, "condition", condition), "refuse", None)
    return refuse(process) if refuse else None


def named(table: dict[str, Any], what: str, name: Any) -> Any:
    """The entry of a table with this name; a function is returned as it is.

    Raises:
        TypeError: for anything but a string or a function.
        ValueError: if the table has no such name; the message lists its names.

    >>> named({"eps": 1}, "target", "epz")
    Traceback (most recent call last):
    ValueError: no target 'epz': did you mean 'eps'? There are: eps
    """
    if not isinstance(name, str):
        if not callable(name):
            raise TypeError(f"{what}={name!r}: a name is needed ({', '.join(table)}), or a function of (process, t)")
        return name
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}? There" if near else "there"
        raise ValueError(f"no {what} {name!r}: {hint} are: {', '.join(table)}")
    return table[name]


def from_network(
    process: Process,
    target: str | Target,
    apply: Callable[[Array, Array], Array],
    learned_variance: bool = False,
) -> Denoiser:
    """The denoiser of a raw network `apply(x, t)` that was trained for `target`.

        eps = (alpha output - a x) / det,    x0 = (b x - sigma output) / det,    score = -eps / sigma

    Args:
        process: the process under which x was noised.
        target: a name in `TARGETS`, or any function (process, t) -> (a, b) with det != 0.
        apply: the network, `[B, ...], [B] -> [B, ...]`. The arrays that a `jax.tree_util.Partial` holds become leaves
            of the denoiser.
        learned_variance: whether the last axis of the output is twice as long as the last axis of x. Its second half
            is then v in `Prediction.between` = (v + 1) / 2, without a limit to [0, 1] (Nichol & Dhariwal 2021,
            section 3.1).

    Raises:
        TypeError: unless `process` is a `Process`, `apply` a function and `target` a name or a function; when the
            denoiser is called, if the network does not return an array.
        ValueError: for a name that is not in `TARGETS`; when the denoiser is called, if the network's output has the
            wrong shape.

    >>> from scoregen.process import ncsn, perturb
    >>> process, t = ncsn(), jnp.array([3, 7])
    >>> noised = perturb(process, jax.random.key(0), jnp.ones((2, 4)), t)
    >>> denoiser = from_network(process, "score", lambda x, t: -noised.eps / broadcast(process.sigma(t), x))
    >>> bool(jnp.allclose(denoiser(noised.x, t).x0, noised.x0, atol=1e-5))
    True
    """
    check_process(process)
    if not callable(apply):
        raise TypeError(f"apply is a {type(apply).__name__}: a function is needed, (x [B, ...], t [B]) -> [B, ...]")
    predict = _NetworkPrediction(named(TARGETS, "target", target), learned_variance)
    if isinstance(apply, Partial):
        return Denoiser(process, Partial(predict, process, apply))
    return Denoiser(process, lambda x, t: predict(process, apply, x, t))


@dataclasses.dataclass(frozen=True)
class _NetworkPrediction:
    target: Target
    learned_variance: bool

    def __call__(self, process: Process, apply: Callable[[Array, Array], Array], x: Array, t: Array) -> Prediction:
        return solve(process, self.target, apply(x, t), x, t, self.learned_variance)


def solve(
    process: Process, target: str | Target, output: Array, x: Array, t: Array, learned_variance: bool = False
) -> Prediction:
    """The prediction from a network's output `[B, ...]` for `target` at x `[B, ...]`; see `from_network`.

    All its parts have the dtype of x.

    Raises:
        TypeError: if the output is not an array.
        ValueError: for a name that is not in `TARGETS`, or if the output has the wrong shape.
    """
    if not isinstance(output, Array | np.ndarray):
        raise TypeError(f"the network gives {type(output).__name__}: an array in the shape of x is needed")
    between, channels = None, (2 if learned_variance else 1) * x.shape[-1]
    if output.shape != (*x.shape[:-1], channels):
        twice = ", twice as many channels as x, for a learned variance" if learned_variance else ", as for x"
        raise ValueError(
            f"the network gives {list(output.shape)} for x of shape {list(x.shape)}: the shape "
            f"{[*x.shape[:-1], channels]} is needed{twice}"
        )
    output = output.astype(x.dtype)
    if learned_variance:
        output, v = jnp.split(output, 2, axis=-1)
        between = 0.5 * (v + 1)
    alpha, sigma = process.alpha(t), process.sigma(t)
    a, b = named(TARGETS, "target", target)(process, t)
    det = alpha * b - a * sigma
    eps = broadcast(alpha / det, x) * output - broadcast(a / det, x) * x
    x0 = broadcast(b / det, x) * x - broadcast(sigma / det, x) * output
    return Prediction(x0, eps, -eps / broadcast(sigma, x), between)


def prediction_from_x0(process: Process, x: Array, t: Array, x0: Array, between: Array | None = None) -> Prediction:
    """The prediction for an estimate of x0 `[B, ...]`: eps = (x - alpha x0) / sigma, and score = -eps / sigma."""
    sigma = broadcast(process.sigma(t), x)
    eps = (x - broadcast(process.alpha(t), x) * x0) / sigma
    return Prediction(x0, eps, -eps / sigma, between)


def from_energy(process: Process, log_density: Callable[[Array, Array], Array]) -> Denoiser:
    """The denoiser of a log-density `log_density(x, t) -> [B]`, up to a constant: the negative of an energy.

    The score is the gradient of the log-density, eps = -sigma score, and x0 = (x + sigma^2 score) / alpha (Tweedie's
    formula), which needs alpha > 0.

    Raises:
        TypeError: unless `process` is a `Process` and `log_density` a function.
        ValueError: when the denoiser is called, unless the log-density gives one number for each example.

    >>> from scoregen.process import VE
    >>> density = lambda x, t: -0.5 * jnp.sum(x**2, -1) / (1 + VE().sigma(t) ** 2)  # N(0, 1) with noise
    >>> found = from_energy(VE(), density)(jnp.ones((1, 2)), jnp.array([0.5]))
    >>> float(found.x0[0, 0])  # 1 / (1 + sigma^2), with sigma^2 = 1/2
    0.666...
    """
    if not callable(log_density):
        raise TypeError(f"log_density is a {type(log_density).__name__}: a function is needed, (x, t [B]) -> [B]")
    if isinstance(log_density, Partial):
        return Denoiser(process, Partial(_energy_prediction, process, log_density))
    return Denoiser(process, lambda x, t: _energy_prediction(process, log_density, x, t))


def as_energy(denoiser: Denoiser) -> Denoiser:
    """The denoiser whose log-density is -||eps(x, t)||^2 / 2 (Salimans & Ho 2021, eq. 8).

    The score is then the gradient of a log-density. The score of any other network is a gradient only if the network is
    exact. It costs one more derivative of the network. If all data are one point, eps = (x - alpha x0) / sigma does not
    change.

    Raises:
        TypeError: unless `denoiser` is a `Denoiser`.

    >>> from scoregen.process import VE
    >>> point = Denoiser(VE(), lambda x, t: prediction_from_x0(VE(), x, t, jnp.ones_like(x)))
    >>> float(as_energy(point)(jnp.array([[3.0]]), jnp.array([0.5])).x0[0, 0])
    1.0
    """
    check_denoiser(denoiser)
    return Denoiser(denoiser.process, Partial(_squared_noise_energy, denoiser))


def _squared_noise_energy(denoiser: Denoiser, x: Array, t: Array) -> Prediction:
    def log_density(x: Array, t: Array) -> Array:
        return -0.5 * jnp.sum(denoiser(x, t).eps ** 2, axis=tuple(range(1, x.ndim)))

    return _energy_prediction(denoiser.process, log_density, x, t)


def _energy_prediction(
    process: Process, log_density: Callable[[Array, Array], Array], x: Array, t: Array
) -> Prediction:
    # Examples are independent, so the gradient of the sum holds the gradient of each example.
    density, pull = jax.vjp(lambda x: log_density(x, t), x)
    if density.shape != x.shape[:1]:
        raise ValueError(f"the log-density gives {list(density.shape)} for {len(x)} examples: one for each is needed")
    (score,) = pull(jnp.ones_like(density))
    sigma = broadcast(process.sigma(t), x)
    x0 = (x + sigma**2 * score) / broadcast(process.alpha(t), x)
    return Prediction(x0, -sigma * score, score, None, density)
