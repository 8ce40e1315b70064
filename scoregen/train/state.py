"""The training state, which checkpoints store: its start values, and the checks before anything is compiled."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.cond import Cond
from scoregen.errors import check_kind, what_it_is
from scoregen.random import check_seed
from scoregen.train import mesh
from scoregen.train.model import Model

if TYPE_CHECKING:
    import optax

    from scoregen.errors import Refusal
    from scoregen.losses import Objective
    from scoregen.train.checkpoint import Checkpoints


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything that training changes and that a checkpoint stores; a pytree.

    Attributes:
        step: the number of finished steps, a scalar.
        params: the parameters.
        ema: their average, for sampling.
        opt_state: the state of the optimizer.
        times: what the time law has learned.
    """

    step: Array
    params: Any
    ema: Any
    opt_state: Any
    times: Any


def init_state(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    shape: tuple[int, ...],
    seed: int = 0,
    cond: Cond | None = None,
) -> State:
    """The state before the first step.

    Args:
        model, objective, optimizer: the parts.
        shape: the shape of a batch of data, `(B, ...)`; nothing depends on B.
        seed: the random seed of the parameters, 0 <= seed < 2^32.
        cond: see `Model.init`.

    Raises:
        TypeError: if `model`, `objective` or `seed` has the wrong type.
        ValueError: with all reasons why the parts cannot be combined; for a seed out of range; as `Model.init` does.
    """
    check_parts(model, objective, math.prod(shape[1:]))
    return jax.jit(functools.partial(_init, model, objective, optimizer, tuple(shape)))(
        jax.random.key(check_seed(seed)), cond
    )


def _init(model: Model, objective: Objective, optimizer: Any, shape: tuple[int, ...], key: Array, cond: Any) -> State:
    # This function is jitted, so `params` and the average get two buffers. One buffer could not be donated twice.
    params = model.init(key, shape, cond)
    return State(jnp.zeros((), jnp.int32), params, params, optimizer.init(params), objective.init(model.process))


def abstract_state(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    shape: tuple[int, ...],
    cond: Cond | None = None,
) -> State:
    """The shapes and types of the state, as a template for `Checkpoints.restore`; replicated on all devices."""
    init = functools.partial(_init, model, objective, optimizer, tuple(shape))
    return mesh.abstract(jax.eval_shape(init, jax.random.key(0), cond))


def restore_average(
    model: Model, checkpoints: Checkpoints, shape: tuple[int, ...], best: bool = False, cond: Cond | None = None
) -> tuple[Any, int] | None:
    """The averaged parameters of the newest checkpoint, or of the best, and its step; None without a checkpoint.

    Raises:
        UsageError: if no checkpoint is readable, or if the checkpoint belongs to another network.
    """
    params = jax.eval_shape(functools.partial(model.init, shape=tuple(shape)), jax.random.key(0), cond=cond)
    return checkpoints.restore_part("ema", mesh.abstract(params), best=best)


def refusals(model: Model, objective: Objective, dims: int | None = None) -> list[Refusal]:
    """All reasons why a model cannot be trained on an objective. `dims` is the size of an example, if known."""
    return list(dict.fromkeys([*model.refuse(), *objective.refuse(model, dims)]))


def check_parts(model: Model, objective: Objective, dims: int | None = None) -> None:
    """Raises a ValueError with all refusals, and a TypeError if `model` or `objective` has the wrong type."""
    check_kind("model", model, Model, "sg.Model(sg.ddpm(), net)")
    if isinstance(objective, type) or not hasattr(objective, "evaluate"):
        made = objective if isinstance(objective, type) else type(objective)
        if hasattr(made, "evaluate") or not callable(objective):
            raise TypeError(
                f"objective={what_it_is(objective)}: an Objective is needed, such as sg.Objective(sg.EpsilonMSE())"
            )
        name = getattr(objective, "__name__", made.__name__)
        call = f"sg.{name}()" if made.__module__.startswith("scoregen.losses") else name
        raise TypeError(f"objective: {name} is a loss, and an Objective is needed: say sg.Objective({call})")
    reasons = [str(refusal) for refusal in refusals(model, objective, dims)]
    if len(reasons) == 1:
        raise ValueError(reasons[0])
    if reasons:
        raise ValueError("\n- ".join([f"{len(reasons)} reasons why these parts cannot be combined:", *reasons]))
