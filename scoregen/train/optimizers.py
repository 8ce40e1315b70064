"""Optimizers and schedules of the learning rate, by name: a thin table over optax.

Every entry of `OPTIMIZERS` is called as `(learning_rate, ...)`, every entry of `SCHEDULES` as
`(learning_rate, steps, ...)`; the other arguments have defaults. `scoregen.fit` also takes any other optax
transformation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from scoregen.denoiser import named
from scoregen.errors import check_count, check_fraction, check_not_negative, check_positive

Schedule = Callable[[ArrayLike], Array]
Rate = float | Schedule
Optimizer = optax.GradientTransformation


def adam(learning_rate: Rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam (Kingma & Ba 2015).

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless b1 and b2 lie in [0, 1), and eps >= 0.
    """
    check_fraction(b1=b1, b2=b2)
    check_not_negative(eps=eps)
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


def adamw(
    learning_rate: Rate, weight_decay: float = 0.01, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): it also subtracts rate * weight_decay * params.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless b1 and b2 lie in [0, 1), eps >= 0 and weight_decay >= 0.
    """
    check_fraction(b1=b1, b2=b2)
    check_not_negative(eps=eps, weight_decay=weight_decay)
    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def sgd(learning_rate: Rate, momentum: float = 0.9, nesterov: bool = False) -> Optimizer:
    """Stochastic gradient descent, with momentum unless that is 0.

    Raises:
        TypeError: if momentum is not a number.
        ValueError: unless 0 <= momentum < 1.
    """
    check_fraction(momentum=momentum)
    return optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov)


def lion(learning_rate: Rate, weight_decay: float = 1e-3, b1: float = 0.9, b2: float = 0.99) -> Optimizer:
    """Lion (Chen et al. 2023): the sign of a momentum. It needs a rate 3 to 10 times smaller than Adam's.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: unless b1 and b2 lie in [0, 1), and weight_decay >= 0.
    """
    check_fraction(b1=b1, b2=b2)
    check_not_negative(weight_decay=weight_decay)
    return optax.lion(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)


def adafactor(
    learning_rate: Rate, decay_rate: float = 0.8, clipping_threshold: float = 1.0, weight_decay: float = 0.0
) -> Optimizer:
    """Adafactor (Shazeer & Stern 2018): second moments of large matrices by row and column.

    The steps are relative to the size of the parameters. A clipping_threshold of 0 is none.

    Raises:
        TypeError: for an option that is not a number.
        ValueError: if one of them is negative or not finite.
    """
    check_not_negative(decay_rate=decay_rate, clipping_threshold=clipping_threshold, weight_decay=weight_decay)
    return optax.adafactor(
        learning_rate,
        decay_rate=decay_rate,
        clipping_threshold=clipping_threshold or None,
        weight_decay_rate=weight_decay or None,
    )


def muon(
    learning_rate: Rate,
    beta: float = 0.95,
    weight_decay: float = 0.0,
    ns_steps: int = 5,
    consistent_rms: float = 0.2,
    b1: float = 0.9,
    b2: float = 0.999,
) -> Optimizer:
    """Muon (Jordan et al. 2024): the momentum of a matrix, made orthogonal by Newton-Schulz iterations.

    It applies to the kernels of dense layers and of convolutions in two and three dimensions, which count as matrices
    of (height * width * inputs, outputs). Everything else is trained by Adam with Nesterov momentum at the same rate.
    The root mean square of an update is `consistent_rms` times the rate; Adam's is about 0.2 times the rate (Liu et al.
    2025), so that the same rates can be used.

    Raises:
        TypeError: if ns_steps is not an integer, or for another option that is not a number.
        ValueError: unless beta, b1 and b2 lie in [0, 1), weight_decay >= 0, ns_steps >= 1 and consistent_rms >= 0.
    """
    check_count("ns_steps", ns_steps)
    check_fraction(beta=beta, b1=b1, b2=b2)
    check_not_negative(weight_decay=weight_decay, consistent_rms=consistent_rms)
    return optax.contrib.muon(
        learning_rate,
        beta=beta,
        weight_decay=weight_decay,
        ns_steps=ns_steps,
        consistent_rms=consistent_rms or None,
        adam_b1=b1,
        adam_b2=b2,
        muon_weight_dimension_numbers=_matrices,
    )


def _matrices(params: Any) -> Any:
    """The input and output axes of each parameter that counts as a matrix; None for other parameters."""

    def axes(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name != "kernel" or leaf.ndim not in (2, 4, 5):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
    "lion": lion,
    "adafactor": adafactor,
    "muon": muon,
}


def constant(learning_rate: float, steps: int, warmup: int = 0) -> Schedule:
    """The rate, after a linear warm-up from 0 over `warmup` steps (Ho et al. 2020, appendix B).

    Raises:
        TypeError: if steps or warmup is not an integer, or another argument not a number.
        ValueError: unless the rate is positive and finite, and warmup >= 0.

    >>> [float(constant(1.0, 100, warmup=4)(step)) for step in (0, 1, 4, 90)]
    [0.0, 0.25, 1.0, 1.0]
    """
    _check(learning_rate, steps, warmup)
    return lambda step: learning_rate * _warm(step, warmup)


def cosine(learning_rate: float, steps: int, warmup: int = 0, end: float = 0.0) -> Schedule:
    """Half a cosine from the rate to `end` times the rate at step `steps`, after the warm-up (Loshchilov & Hutter
    2017).

    Raises:
        TypeError: if steps or warmup is not an integer, or another argument not a number.
        ValueError: unless the rate is positive, 0 <= warmup < steps, and end >= 0.

    >>> [round(float(cosine(1.0, 100)(step)), 3) for step in (0, 50, 100)]
    [1.0, 0.5, 0.0]
    """
    _check(learning_rate, steps, warmup, decays=True)
    check_not_negative(end=end)

    def rate(step: ArrayLike) -> Array:
        fallen = 0.5 - 0.5 * jnp.cos(jnp.pi * _share(step, warmup, steps))
        return learning_rate * _warm(step, warmup) * (1 - (1 - end) * fallen)

    return rate


def linear(learning_rate: float, steps: int, warmup: int = 0, end: float = 0.0) -> Schedule:
    """A line from the rate to `end` times the rate at step `steps`, after the warm-up.

    Raises:
        TypeError: if steps or warmup is not an integer, or another argument not a number.
        ValueError: unless the rate is positive, 0 <= warmup < steps, and end >= 0.

    >>> [float(linear(1.0, 100, warmup=50)(step)) for step in (25, 50, 75, 100)]
    [0.5, 1.0, 0.5, 0.0]
    """
    _check(learning_rate, steps, warmup, decays=True)
    check_not_negative(end=end)
    return lambda step: learning_rate * _warm(step, warmup) * (1 - (1 - end) * _share(step, warmup, steps))


def inverse_sqrt(learning_rate: float, steps: int, warmup: int = 0, decay_from: int = 1000) -> Schedule:
    """rate * sqrt(decay_from / step) from step `decay_from` on, as in EDM2 (Karras et al. 2024).

    Raises:
        TypeError: if steps, warmup or decay_from is not an integer, or the rate not a number.
        ValueError: unless the rate is positive and finite, warmup >= 0 and decay_from >= 1.

    >>> [float(inverse_sqrt(1.0, 10_000, decay_from=100)(step)) for step in (50, 100, 400)]
    [1.0, 1.0, 0.5]
    """
    _check(learning_rate, steps, warmup)
    check_count("decay_from", decay_from)

    def rate(step: ArrayLike) -> Array:
        worn = jnp.maximum(1.0, jnp.asarray(step, jnp.float32) / decay_from)
        return learning_rate * _warm(step, warmup) * worn**-0.5

    return rate


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
}


def _warm(step: ArrayLike, warmup: int) -> Array:
    return jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / warmup) if warmup else jnp.ones((), jnp.float32)


def _share(step: ArrayLike, warmup: int, steps: int) -> Array:
    """The finished share of the steps between the end of the warm-up and the last step, in [0, 1]."""
    return jnp.clip((jnp.asarray(step, jnp.float32) - warmup) / (steps - warmup), 0.0, 1.0)


def _check(learning_rate: float, steps: int, warmup: int, decays: bool = False) -> None:
    check_positive(learning_rate=learning_rate)
    check_count("steps", steps, 0)
    check_count("warmup", warmup, 0)
    if decays and not warmup < steps:
        raise ValueError(f"warmup={warmup}: less than the {steps} steps of the whole schedule is needed")


def make_optimizer(
    optimizer: str | Callable[[Schedule], Optimizer] = "adam",
    schedule: str | Callable[[float, int], Schedule] = "constant",
    learning_rate: float = 1e-3,
    *,
    clip: float = 0.0,
    accumulate: int = 1,
    steps: int = 0,
) -> Optimizer:
    """An optimizer with a schedule, a clip of the gradient and gradient accumulation.

    Args:
        optimizer: a name in `OPTIMIZERS`, or a function of the schedule, such as `partial(adamw, weight_decay=0.1)`.
        schedule: a name in `SCHEDULES`, or a function of (rate, steps), such as `partial(cosine, warmup=500)`.
        learning_rate: the learning rate of the optimizer.
        clip: the largest global norm of the gradient; 0 for no clip.
        accumulate: the number of gradients that are averaged for one step of the optimizer. The parameters change only
            at these steps. The schedule counts optimizer steps, so `steps` is divided by `accumulate`.
        steps: the number of training steps, for schedules that decay until the end.

    Raises:
        TypeError: if `optimizer` or `schedule` is neither a name nor a function, or if `accumulate` is not an integer.
        ValueError: for a name that does not exist, or a number out of range.

    >>> optimizer = make_optimizer("adamw", "cosine", 2e-4, clip=1.0, steps=10_000)
    """
    check_not_negative(clip=clip)
    check_count("accumulate", accumulate)
    rate = named(SCHEDULES, "schedule", schedule)(learning_rate, steps // accumulate)
    found = named(OPTIMIZERS, "optimizer", optimizer)(rate)
    if clip:
        found = optax.chain(optax.clip_by_global_norm(clip), found)
    return optax.MultiSteps(found, accumulate).gradient_transformation() if accumulate > 1 else found
