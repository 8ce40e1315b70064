"""Training: the state, one jitted and donated step, and the loop around it, to be read from top to bottom.

The three jit boundaries of the package are here: `make_step`, `make_eval`, `make_sampler`. Randomness is
`fold_in(key(seed), step)`, then one key an example: no key lives in the state, and a run that is stopped
and resumed anywhere ends in the same parameters, bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from scoregen import mesh
from scoregen.config import Config
from scoregen.errors import UsageError
from scoregen.experiment import Experiment
from scoregen.log import Bar, MetricsLog
from scoregen.process import example_keys, perturb, split_keys
from scoregen.samplers import sample
from scoregen.times import Drawn, Own, TimeLaw

if TYPE_CHECKING:
    from scoregen.checkpoint import Checkpoints


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds.

    Attributes:
        step: the number of steps done.
        params: the parameters.
        ema: their average.
        opt_state: the optimizer's state.
        times: what the time law has learned.
    """

    step: Array
    params: Any
    ema: Any
    opt_state: Any
    times: Any


def make_optimizer(train: Config) -> optax.GradientTransformation:
    """Adam with a linear warm-up from 0, after a clip of the gradient's global norm (Ho et al. 2020, appendix B).

    From step `decay_from` on the rate falls as sqrt(decay_from / step), as EDM2's does (Karras et al. 2024).
    """

    def rate(step: ArrayLike) -> Array:
        done = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, done / train.warmup) if train.warmup else 1.0
        worn = jnp.maximum(1.0, done / train.decay_from) if train.decay_from else 1.0
        return train.learning_rate * warm * worn**-0.5

    adam = optax.adam(rate)
    return optax.chain(optax.clip_by_global_norm(train.clip), adam) if train.clip else adam


def init_state(experiment: Experiment) -> TrainState:
    """The state before the first step."""
    config = experiment.config
    params = jax.jit(experiment.init)(jax.random.key(config.seed))
    # The average starts as a copy: a donated buffer cannot be given away twice.
    ema = jax.tree.map(jnp.copy, params)
    opt_state, times = make_optimizer(config.train).init(params), experiment.times.init(experiment.process)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, opt_state, times)


def abstract_state(experiment: Experiment) -> TrainState:
    """The state without its values: what a checkpoint is read by. On every device, where there are several."""
    return mesh.abstract(jax.eval_shape(lambda: init_state(experiment)))


def restore_average(experiment: Experiment, checkpoints: Checkpoints, best: bool = False) -> tuple[Any, int] | None:
    """The averaged parameters, to sample with, of the newest checkpoint or the best, and its step; None without one."""
    return checkpoints.restore_part("ema", abstract_state(experiment).ema, best=best)


def mean_loss(
    experiment: Experiment,
    law: TimeLaw,
    known: Any,
    params: Any,
    raw: Array,
    keys: Array,
    dropout: Array | None,
    labels: Array | None = None,
) -> tuple[Array, tuple[Drawn, Array]]:
    """The mean loss of a raw batch, with one key an example `[B]`, and the times drawn and the losses there, `[B]`."""
    terms, found = losses_of(experiment, law, known, params, raw, keys, dropout, labels)
    return terms.mean(), found


def losses_of(
    experiment: Experiment,
    law: TimeLaw,
    known: Any,
    params: Any,
    raw: Array,
    keys: Array,
    dropout: Array | None,
    labels: Array | None = None,
) -> tuple[Array, tuple[Drawn, Array]]:
    """What `mean_loss` is the mean of, `[B]`, and what else it gives."""
    prepare, time_, noise, key, label, augment = split_keys(keys, 6)
    x0, told = experiment.prepare(raw, prepare), None
    if dropout is not None:  # held-out examples are as they are
        x0, told = experiment.augmented(x0, augment)
    drawn = law(experiment.process, known, time_, x0.shape[0])
    noised = perturb(experiment.process, noise, x0, drawn.t)
    if labels is not None:
        labels = experiment.forget(labels, label)
    losses = experiment.loss(experiment.process, experiment.predict(params, dropout, labels, told), noised, key)
    return drawn.weight * experiment.settled(params, losses, drawn.t), (drawn, losses)


def make_step(experiment: Experiment) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """One jitted step (state, raw batch `[B, ...]`, its labels `[B]`) -> (state, metrics); the old state is donated.

    Without labels the network is told none.

    With `config.train.microbatch` the gradient is added up over parts of the batch: the same step in less memory,
    but for the draws of dropout.

    On several devices the batch comes from `spread_batch` and the state from `mesh.replicate`. What is drawn depends
    on the step and the example alone, so it is the same step but for the order of sums.

    Raises:
        UsageError: if a part of the batch cannot be spread evenly over the devices.
    """
    refuse_uneven(experiment)
    train = experiment.config.train
    optimizer = make_optimizer(train)

    def step(state: TrainState, raw: Array, labels: Array | None = None) -> tuple[TrainState, dict[str, Array]]:
        noise, dropout = jax.random.split(jax.random.fold_in(jax.random.key(experiment.config.seed), state.step))
        keys = example_keys(noise, train.batch)
        # Part i is row i of [parts, B / parts, ...]: each is spread over all devices, and none has to be moved.
        raw, labels, keys = (mesh.keep_spread(a, 1) for a in in_parts(experiment, raw, labels, keys))

        total = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
        times = state.times
        # Unrolled, not scanned: within a loop XLA's CPU backend runs a convolution's gradient many times slower.
        parts = len(raw)
        for i in range(parts):
            # The barrier has each part wait for the one before, whose memory it can then take over.
            params, total = jax.lax.optimization_barrier((state.params, total))
            loss = functools.partial(mean_loss, experiment, experiment.times, state.times)
            found, grads = jax.value_and_grad(loss, has_aux=True)(
                params,
                raw[i],
                keys[i],
                jax.random.fold_in(dropout, i),
                None if labels is None else labels[i],
            )
            times = experiment.times.update(times, *mesh.keep_whole(jax.lax.stop_gradient(found[1])))
            total = jax.tree.map(jnp.add, total, (found[0], grads))
        loss, grads = jax.tree.map(lambda a: a / parts, total)

        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer's power
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = experiment.average(state.step, train.batch)
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
        return TrainState(state.step + 1, params, ema, opt_state, times), {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
        }

    return jax.jit(step, donate_argnums=0, out_shardings=mesh.everywhere())


def refuse_uneven(experiment: Experiment) -> None:
    """Raises UsageError if the batch, or a part of it, cannot be spread evenly over the devices."""
    train, n = experiment.config.train, mesh.count()
    if train.batch % n:
        near = [k for k in (train.batch // n * n, mesh.round_up(train.batch)) if k]
        raise UsageError(
            f"config.train.batch={train.batch} cannot be spread evenly over {n} devices: take a multiple of {n}, such "
            f"as {' or '.join(map(str, near))}"
        )
    if train.microbatch % n:
        fit = [k for k in range(n, train.batch + 1, n) if train.batch % k == 0]
        raise UsageError(
            f"config.train.microbatch={train.microbatch} cannot be spread evenly over {n} devices: take one that can, "
            f"and divides the batch of {train.batch}: {', '.join(map(str, fit))}"
        )


def in_parts(experiment: Experiment, raw: Any, *others: Any) -> list[Any]:
    """A raw batch `[B, ...]`, and what else has an entry `[B]` an example, in the parts of `config.train.microbatch`.

    So `[parts, B / parts, ...]`; None stays None, and what is in parts stays as it is.
    """
    train = experiment.config.train
    shape = train.batch // (train.microbatch or train.batch), -1
    return [raw.reshape(*shape, *experiment.dataset.shape), *(a if a is None else a.reshape(shape) for a in others)]


def spread_batch(experiment: Experiment, raw: np.ndarray, labels: np.ndarray | None = None) -> list[Any]:
    """A batch on the host, the same in every process, as `make_step` takes it: each part spread over all devices.

    Every process gathers all of it and keeps its share, a few microseconds an image while the devices work.
    """
    return [mesh.spread(a, 1) for a in in_parts(experiment, raw, labels)]


def make_eval(experiment: Experiment) -> Callable[..., float | None]:
    """(params, stopped=..., progress=None) -> the loss of held-out data, at fixed times of the process's own law.

    The noise is fixed too, so its changes are the network's, and it compares between time laws. Noise and times are
    keyed by example: the figure does not depend on the batch, which is no larger than training's at a time, since
    what fits there fits here. `stopped` is asked before every batch, and the answer is then None; `progress` is called
    with the batches that are done and how many there are.
    """
    config, dataset = experiment.config, experiment.dataset
    count = min(512, len(dataset.test))
    size = mesh.round_up(min(64, config.train.microbatch or config.train.batch, count))
    batches = -(-count // size)

    labels = dataset.test_labels if experiment.classes else None

    @functools.partial(jax.jit, out_shardings=mesh.everywhere())
    def step(params: Any, raw: Array, labels: Array | None, keys: Array, counts: Array) -> Array:
        terms = losses_of(experiment, Own(), (), params, raw, keys, None, labels)[0]
        return jnp.sum(jnp.where(counts, terms, 0.0))

    def evaluate(
        params: Any,
        stopped: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> float | None:
        keys, total = example_keys(jax.random.key(config.seed + 1), batches * size), 0.0
        for i in range(batches):
            progress(i, batches)
            if stopped():
                return None
            # The last batch is filled up with the last example, which then does not count: one program serves all.
            at = np.arange(i * size, (i + 1) * size)
            held = np.minimum(at, count - 1)
            told = None if labels is None else labels[held]
            total += wait(step(params, *map(mesh.spread, (dataset.test[held], told, keys[at], at < count))))
        return total / count

    return evaluate


def make_draw(experiment: Experiment, progress: Callable[[int], None] | None = None) -> Callable[..., Array]:
    """One jitted walk: (params, a key an example `[B]`, labels `[B]` or None, what is completed or None) -> `[B, ...]`.

    `progress` is called from the device with the number of levels that are done.
    """
    config = experiment.config.sampler

    @functools.partial(jax.jit, out_shardings=mesh.everywhere())
    def draw(params: Any, keys: Array, labels: Array | None, clean: Array | None) -> Array:
        return sample(
            experiment.walk,
            experiment.predict_to_sample(params, labels, clean),
            keys,
            (keys.shape[0], *experiment.dataset.shape),
            experiment.predictor,
            experiment.corrector,
            config.n or None,
            grid=experiment.grid,
            denoise=config.denoise,
            progress=progress,
        )

    return draw


def make_sampler(experiment: Experiment) -> Callable[..., Any]:
    """(params, count, progress=None, stopped=...) -> samples `[count, ...]`, `config.sampler.batch` at a time.

    Sample i depends on the seed and on i, not on the size of the batches; so does its class, and the held-out example
    that it completes if `config.sampler.control` says so. `progress` is called with the number of levels that are done
    of `levels * batches`. `stopped` is asked before every batch, and the answer is then None.

    A batch is spread over the devices, and so rounded up to what can be.
    """
    size = mesh.round_up(experiment.config.sampler.batch)
    told: list[Callable[[int], None]] = []  # whom to tell of the levels that are done

    def tell(level: int) -> None:
        for listener in told:
            listener(int(level))

    several = mesh.processes() > 1  # a device can call its own process alone: then each counts the batches
    draw = make_draw(experiment, None if several else tell)

    def run(
        params: Any,
        count: int,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> np.ndarray | None:
        # The last batch is filled up, so that one program serves them all.
        batches = -(-count // size)
        keys = example_keys(jax.random.key(experiment.config.seed + 2), batches * size)
        drawn = []
        for i in range(batches):
            if stopped():
                return None
            done = i * levels(experiment)
            told[:] = [lambda level, done=done: progress(done + level)] if progress else []
            index = np.arange(i * size, (i + 1) * size)
            clean = None if experiment.control is None else experiment.held_out(index)
            examples = map(mesh.spread, (keys[index], experiment.labels_to_sample(index), clean))
            drawn.append(np.asarray(draw(params, *examples)))
            jax.effects_barrier()
            if several:
                tell(levels(experiment))
        return np.concatenate(drawn)[:count]

    return run


def levels(experiment: Experiment) -> int:
    """How many noise levels the sampler walks."""
    return experiment.grid(experiment.walk, experiment.config.sampler.n).shape[0]


def wait(array: Any) -> float:
    """The number in a scalar array. Waits for it in Python, where a signal is heard, not in the runtime."""
    pause = 1e-4
    while not array.is_ready():
        time.sleep(pause)
        pause = min(1.5 * pause, 0.05)
    return float(array)


def fit(
    experiment: Experiment,
    state: TrainState,
    checkpoints: Checkpoints,
    log: MetricsLog,
    bar: Bar,
    stopped: Callable[[], bool] = lambda: False,
    picture: Callable[[int, Any], None] | None = None,
) -> TrainState:
    """Train from `state` to `config.train.steps`, or until `stopped()`; the last state is saved either way.

    Args:
        experiment: the parts.
        state: a fresh or a restored state, on every device (`mesh.replicate`); it is donated.
        checkpoints: where states go; the metric of the best is the held-out loss of the averaged parameters, which
            is left out, also when half done, once `stopped()`.
        log: where metrics go.
        bar: told of every step.
        stopped: asked before every step, and every batch of the held-out loss.
        picture: called with (step, averaged parameters) every `config.train.sample_every` steps.

    Raises:
        UsageError: if the loss or the parameters are no longer finite; nothing of that is saved.
    """
    train = experiment.config.train
    step_fn, held_out = make_step(experiment), make_eval(experiment)
    begin = step = saved = int(state.step)

    def finite(value: float, what: str, at: int) -> float:
        if not math.isfinite(value):
            checkpoints.wait()  # the last one may be under way
            good = checkpoints.latest_step()
            kept = f"the checkpoint of step {good} is good" if good is not None else "nothing was saved yet"
            raise UsageError(
                f"the {what} became {value} by step {at}; {kept}. Look at the data, or start in another --workdir with "
                "a lower --config.train.learning_rate or a smaller --config.train.clip"
            )
        return value

    def tell(at: int, metrics: dict[str, Array], write: bool) -> None:
        loss = finite(wait(metrics["loss"]), "loss", at)
        bar.update(at, loss=loss)
        if write:
            log.write(at, loss=loss, grad_norm=float(metrics["grad_norm"]), steps_per_second=bar.rate())

    def save() -> int:
        wait(state.step)  # the step that is under way is not the evaluation's time
        with bar.aside("held-out loss, batch") as progress:
            loss = held_out(state.ema, stopped, progress)
        finite(wait(optax.tree.norm(state.params)), "norm of the parameters", step)
        if loss is not None:  # else it was stopped, and what is saved is no candidate for the best
            log.write(step, held_out_loss=finite(loss, "held-out loss", step))
        checkpoints.save(step, state, metric=loss)
        return step

    in_flight = None
    while step < train.steps and not stopped():
        state, metrics = step_fn(state, *spread_batch(experiment, *experiment.batch(step)))
        step += 1
        # One step runs while the next is prepared, and no more: what the bar shows has happened.
        if in_flight is not None:
            at, earlier = in_flight
            tell(at, earlier, write=at % train.log_every == 0 or at == begin + 1)
        in_flight = step, metrics
        if step == train.steps:
            break
        if step % train.checkpoint_every == 0:
            saved = save()
        if picture is not None and train.sample_every and step % train.sample_every == 0:
            picture(step, state.ema)
    if in_flight is not None:
        tell(*in_flight, write=True)
    if step > saved:
        save()
    checkpoints.wait()
    return state
