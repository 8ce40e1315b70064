"""The training step and the held-out loss. Each is compiled once.

The random key of a step is `fold_in(key(seed), step)`, from which each example gets its own key. The state holds no
key, so a run that is stopped and resumed gives the same parameters, bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer

from scoregen.cond import Cond
from scoregen.errors import check_count
from scoregen.random import check_seed, example_keys, split_keys
from scoregen.times import Own
from scoregen.train import mesh
from scoregen.train.ema import Average, Decay
from scoregen.train.model import Model
from scoregen.train.state import State

if TYPE_CHECKING:
    from scoregen.data import Dataset
    from scoregen.losses import Objective

# (raw batch [B, ...], keys [B], train) -> data in the network's units, and their augmentation, [B, 9] or None.
Prepare = Callable[..., tuple[Array, Array | None]]


class TrainStep:
    """`step(state, x0, cond=None) -> (state, metrics)`, compiled at the first call; see `make_step`."""

    def __init__(self, program: Callable[..., Any], microbatch: int) -> None:
        self._program, self._microbatch = program, microbatch

    def __call__(self, state: State, x0: Any, cond: Cond | None = None) -> tuple[State, dict[str, Array]]:
        """The state after one step, and the metrics {"loss", "grad_norm"}. The old state is donated.

        Args:
            state: the state. With several devices it must be on each of them (see `mesh.replicate`).
            x0: a batch `[B, ...]` of data; raw data if the step was made with `prepare`.
            cond: label and context of the examples, if the network uses them.

        Raises:
            ValueError: if the batch does not divide into microbatches and devices.
        """
        return self._program(state, *self._in_parts(x0, cond))

    def lower(self, state: State, x0: Any, cond: Cond | None = None) -> Any:
        """The result of `jax.jit(...).lower`, to inspect the compiled program."""
        return self._program.lower(state, *self._in_parts(x0, cond))

    def _in_parts(self, x0: Any, cond: Cond | None) -> tuple[Any, Any]:
        """Arrays `[B, ...]` as `[parts, B / parts, ...]`. Each part is spread over all devices, so no data move."""
        size = len(x0)
        check_even(size, self._microbatch)
        parts = size // (self._microbatch or size)

        def split(a: Any) -> Any:
            a = a.reshape(parts, size // parts, *a.shape[1:])
            return a if isinstance(a, Tracer) else mesh.spread(a, 1)

        return split(x0), jax.tree.map(split, cond)


def make_step(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    average: Average = Decay(0.999),
    microbatch: int = 0,
    *,
    prepare: Prepare | None = None,
    seed: int = 0,
) -> TrainStep:
    """One jitted step (state, x0 `[B, ...]`, cond) -> (state, metrics); the old state is donated.

    Step k draws from `fold_in(key(seed), k)` and the index of each example. On several devices the batch is spread over
    them, and the result differs only by the order of sums.

    Args:
        model, objective, optimizer: the parts; the optimizer is any optax transformation.
        average: the average of the parameters, see `scoregen.train.ema`.
        microbatch: the size of the parts of the batch over which the gradient is added up, to save memory. Only the
            dropout masks depend on it. 0 for the whole batch at once.
        prepare: scales, flips and augments a raw batch inside the compiled step, such as `scoregen.data.Prepare`.
        seed: the random seed, 0 <= seed < 2^32.

    Raises:
        TypeError: for a seed that is not an integer.
        ValueError: for a seed out of range; at a call, if the batch does not divide into microbatches and devices.
    """
    seed = check_seed(seed)

    def step(state: State, x0: Array, cond: Cond | None) -> tuple[State, dict[str, Array]]:
        noise, dropout = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        parts, size = x0.shape[:2]
        keys = example_keys(noise, parts * size).reshape(parts, size)
        x0, cond, keys = (jax.tree.map(lambda a: mesh.keep_spread(a, 1), tree) for tree in (x0, cond, keys))

        def mean_loss(params: Any, i: int) -> tuple[Array, Any]:
            prepare_keys, objective_keys = split_keys(keys[i], 2)
            x, told = prepared(prepare, x0[i], prepare_keys, jax.tree.map(lambda a: a[i], cond))
            found = objective.evaluate(
                model, params, objective_keys, x, told, train_key=jax.random.fold_in(dropout, i), state=state.times
            )
            return found.terms.mean(), (found.drawn, found.losses)

        total, times = None, state.times
        # Unrolled, since XLA's CPU backend computes a convolution's gradient many times slower inside a loop.
        for i in range(parts):
            # The barrier makes each part wait for the previous one, so that it can reuse its memory.
            params, total = jax.lax.optimization_barrier((state.params, total))
            (loss, learned), grads = jax.value_and_grad(mean_loss, has_aux=True)(params, i)
            times = objective.update(times, *mesh.keep_whole(jax.lax.stop_gradient(learned)))
            total = (loss, grads) if total is None else jax.tree.map(jnp.add, total, (loss, grads))
        loss, grads = jax.tree.map(lambda a: a / parts, total)

        with jax.numpy_dtype_promotion("standard"):  # optax computes a float to the power of an integer
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            norm = optax.tree.norm(grads)
        params = optax.apply_updates(state.params, updates)
        decay = average(state.step, parts * size)

        def mix(old: Array, new: Array) -> Array:
            d = decay.astype(old.dtype)
            return d * old + (1 - d) * new

        ema = jax.tree.map(mix, state.ema, params)
        return State(state.step + 1, params, ema, opt_state, times), {"loss": loss, "grad_norm": norm}

    return TrainStep(jax.jit(step, donate_argnums=0, out_shardings=mesh.everywhere()), microbatch)


def prepared(
    prepare: Prepare | None, raw: Array, keys: Array, cond: Cond | None, train: bool = True
) -> tuple[Array, Cond]:
    """The batch in the network's units, and its `Cond` with the augmentation."""
    cond = cond or Cond(None)
    if prepare is None:
        return jnp.asarray(raw), cond
    x0, augment = prepare(raw, keys, train=train)
    return x0, cond if augment is None else cond._replace(augment=augment)


def check_even(batch: int, microbatch: int = 0) -> None:
    """Raises ValueError unless a batch and its microbatches can be spread evenly over the devices.

    Raises TypeError if one of them is not an integer.
    """
    n = mesh.count()
    check_count("batch", batch)
    check_count("microbatch", microbatch, 0)
    if batch % n:
        near = [k for k in (batch // n * n, mesh.round_up(batch)) if k]
        raise ValueError(
            f"batch={batch} cannot be spread evenly over {n} devices: take a multiple of {n}, such as "
            f"{' or '.join(map(str, near))}"
        )
    if microbatch and batch % microbatch:
        near = _parts(batch, n, microbatch)
        raise ValueError(f"microbatch={microbatch} does not divide the batch of {batch}: take one such as {near}")
    if microbatch % n:
        raise ValueError(
            f"microbatch={microbatch} cannot be spread evenly over {n} devices: take one that can, and divides the "
            f"batch of {batch}, such as {_parts(batch, n, microbatch)}"
        )


def _parts(batch: int, n: int, near: int) -> str:
    """The two nearest microbatches to `near` that a batch on n devices can have, up to a million."""
    fit = [k for k in range(n, min(batch, 10**6) + 1, n) if batch % k == 0]
    return " or ".join(map(str, sorted(sorted(fit, key=lambda k: abs(k - near))[:2])))


def check_shapes(model: Model, objective: Objective, data: Dataset, prepare: Prepare | None = None) -> tuple[int, ...]:
    """Check from the shapes alone, without computing, whether the network, the data and the loss fit.

    Args:
        model, objective: the parts.
        data: the data set; only its shapes and types matter.
        prepare: see `make_step`.

    Returns:
        The shape of a prepared batch, `(B, ...)`.

    Raises:
        ValueError: with one line from the error of the part. The original error is its cause.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    raw = jax.ShapeDtypeStruct((2, *data.shape), data.dtype)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    label: Any = jax.ShapeDtypeStruct((2,), jnp.int32) if model.num_classes else None
    context: Any = jax.ShapeDtypeStruct((2, data.context_dim), jnp.float32) if data.context_dim else None
    what = f"data of shape {list(data.shape)}"
    x0, cond = _shapes(what, functools.partial(prepared, prepare), raw, keys, Cond(label=label, context=context))
    if cond.augment is not None and not model.augment_dim:
        raise ValueError(
            f"the data are augmented, but the network {type(model.net).__name__} has no input for the augmentation, so "
            "it would draw augmented examples: use augment=0, or a network with augment_dim, such as sg.nets.NCSNpp"
        )

    network = f"the network {type(model.net).__name__} and {what}"
    try:
        params = _shapes(network, lambda key: model.init(key, x0.shape), key)
    except ValueError as error:
        if len(data.shape) == 3 and data.shape[0] <= 4 < data.shape[-1]:
            hint = "the channels seem to be first: pass np.moveaxis(x, 1, -1), or sg.data.array(x)"
            raise ValueError(f"{error}; {hint}") from error
        raise
    times = jnp.full(x0.shape[0], model.process.ends[1])
    _shapes(network, lambda params, x0, cond: model.denoiser(params, cond)(x0, times), params, x0, cond)

    def terms(params: Any, key: Array, keys: Array, x0: Array, cond: Cond) -> Any:
        state = objective.init(model.process)
        return objective.evaluate(model, params, keys, x0, cond, train_key=key, state=state).terms

    found = _shapes(f"the loss and {what}", terms, params, key, keys, x0, cond)
    if found.shape != (2,):
        raise ValueError(f"the loss gives {list(found.shape)} for 2 examples: [B], one for each, is needed")
    return x0.shape


def _shapes(what: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return jax.eval_shape(function, *args)
    except Exception as error:  # a user's network can raise anything
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]  # errors of JAX have many lines
        raise ValueError(f"{what}: {reason}") from error


def make_eval(
    model: Model,
    objective: Objective,
    data: Dataset,
    *,
    prepare: Prepare | None = None,
    seed: int = 0,
    batch: int = 64,
    count: int = 512,
) -> Callable[..., float | None]:
    """A function (params, stopped=..., progress=...) -> the mean held-out loss.

    Times and noise are fixed, with times from the process's own law. So the value changes only with the network, and
    runs with different time laws can be compared. Noise and times are keyed by example, so the value does not depend
    on the batch. `stopped` is called before every batch; if it returns true, the result is None. `progress` is called
    with the number of finished batches and their total.

    Args:
        model, objective: the parts; the time law of the objective is replaced by `Own`.
        data: the first `count` test examples are used, with their labels if the network uses labels.
        prepare: see `make_step`; called with train=False.
        seed: the noise comes from seed + 1.
        batch: the largest batch size; a size that fits in training also fits here.
        count: the largest number of examples.

    Raises:
        TypeError: for a seed, batch or count that is not an integer.
        ValueError: if the data have no test examples, or for a seed, batch or count out of range.
    """
    if data.test is None:
        raise ValueError("the held-out loss needs test examples, and the data have none: give a Dataset with test=")
    check_count("batch", batch)
    check_count("count", count)
    objective = dataclasses.replace(objective, times=Own())
    labels = bool(model.num_classes)
    count = min(count, len(data.test))
    size = mesh.round_up(min(batch, count))
    batches, key = -(-count // size), jax.random.key((check_seed(seed) + 1) % 2**32)

    @functools.partial(jax.jit, out_shardings=mesh.everywhere())
    def step(params: Any, raw: Array, cond: Cond, keys: Array, counts: Array) -> Array:
        prepare_keys, objective_keys = split_keys(keys, 2)
        x0, cond = prepared(prepare, raw, prepare_keys, cond, train=False)
        terms = objective(model, params, objective_keys, x0, cond)
        return jnp.sum(jnp.where(counts, terms, jnp.zeros_like(terms)))

    def evaluate(
        params: Any,
        stopped: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> float | None:
        keys, total = example_keys(key, batches * size), 0.0
        for i in range(batches):
            progress(i, batches)
            if stopped():
                return None
            # The last batch is padded with the last example, which does not count again: one program works for all.
            at = np.arange(i * size, (i + 1) * size)
            held = np.minimum(at, count - 1)
            batch = data.examples(held, test=True), data.cond(held, test=True, labels=labels)
            total += wait(step(params, *(jax.tree.map(mesh.spread, tree) for tree in (*batch, keys[at], at < count))))
        return total / count

    return evaluate


def wait(array: Any) -> float:
    """The number in a scalar array. It waits in Python and not in the runtime, so that signals are handled."""
    pause = 1e-4
    while not array.is_ready():
        time.sleep(pause)
        pause = min(1.5 * pause, 0.05)
    return float(array)
