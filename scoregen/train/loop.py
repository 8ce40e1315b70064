"""The training loop."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optax
from jax import Array

from scoregen.cond import Cond
from scoregen.errors import Problems, UsageError, check_count, check_kind, check_path, what_it_is
from scoregen.files import locked, make_folder
from scoregen.random import check_seed
from scoregen.train import describe, mesh
from scoregen.train.ema import Average, Decay, NoAverage
from scoregen.train.log import Bar, MetricsLog
from scoregen.train.loggers import Logger, TensorBoard
from scoregen.train.model import Model
from scoregen.train.state import State, abstract_state, check_parts, init_state
from scoregen.train.step import Prepare, TrainStep, check_even, check_shapes, make_eval, make_step, wait

if TYPE_CHECKING:
    from rich.console import Console

    from scoregen.data import Dataset
    from scoregen.losses import Objective
    from scoregen.train.checkpoint import Checkpoints


def fit(
    model: Model,
    data: Dataset | np.ndarray | Array,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    steps: int,
    *,
    batch: int = 128,
    ema: float | Average | None = 0.999,
    seed: int = 0,
    microbatch: int = 0,
    prepare: Prepare | None = None,
    workdir: str | Path | None = None,
    log: Logger | Iterable[Logger] | None = None,
    log_every: int = 50,
    config: Mapping[str, Any] | None = None,
    checkpoint_every: int = 1000,
    keep: int = 3,
    progress: bool = True,
    callback: Callable[[int, State], object] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    console: Console | None = None,
    started: Callable[[int, State], object] | None = None,
) -> State:
    """Train a model. With a `workdir`, a stopped or killed run can be continued, with bit-identical results.

    Batches, noise and dropout depend only on the seed and the number of the step.

    Args:
        model: process, network and target.
        data: an array `[N, ...]` of floating-point examples or of uint8 images `[N, H, W, C]`, or a `Dataset`. A
            network with a positive `num_classes` gets the labels.
        objective: loss, weighting and time law.
        optimizer: any optax transformation.
        steps: the total number of steps, including those of an earlier run in `workdir`.
        batch: the batch size, in examples per step.
        ema: the average of the parameters: the rate of `Decay`, any class in `scoregen.train.ema`, or None for none.
        seed: the random seed, 0 <= seed < 2^32.
        microbatch: the number of examples at a time, to save memory (see `make_step`); 0 for the whole batch.
        prepare: a function that prepares a raw batch inside the compiled step, such as
            `sg.data.Prepare(scaling, flip=True)`. With None, uint8 images are scaled to [-1, 1], and floating-point
            data stay unchanged.
        workdir: a folder for checkpoints, metrics.jsonl, TensorBoard events and model.json, which `sg.load` reads. Only
            one run at a time may use it.
        log: the loggers beside metrics.jsonl, such as `sg.train.WandB("project")`, or a subclass of
            `sg.train.Logger`; several in a sequence. () for none, and None for TensorBoard, if there is a workdir.
        log_every: steps between lines of metrics.jsonl.
        config: what loggers store as the configuration of the run; None for the description in model.json.
        checkpoint_every: steps between checkpoints, each with the loss of held-out data.
        keep: the number of newest checkpoints to keep, beside the best one.
        progress: whether to show a progress bar.
        callback: called as (step, state) after every step. The next step reuses the arrays of the state, so copy what
            you want to keep. If it returns a dictionary of pictures by name, uint8 `[H, W, C]` with 1 or 3 channels,
            the loggers get them.
        stopped: called before every step; if it returns true, the state is saved and returned.
        console: the console of the progress bar; None for stderr.
        started: called once before the first step, as (step, state): with step 0, or the step of the checkpoint.

    Returns:
        The state after the last step; `state.ema` are the parameters for sampling.

    Raises:
        TypeError: before anything is compiled, if one argument has the wrong type and nothing else is wrong.
        ValueError: before anything is compiled: for options out of range, parts that cannot be combined (with all
            reasons), a network that does not fit the data, and several problems of any type, with a line for each.
        UsageError: for data that `Dataset` refuses; for a logger that cannot start; for a workdir that another run
            uses, that holds a damaged run or a run with other options, or that cannot be written; if the loss or the
            parameters become NaN or infinite. Such a state is not saved.

    >>> import scoregen as sg
    >>> model = sg.Model(sg.ddpm(), sg.nets.MLP(width=8))
    >>> data = np.random.default_rng(0).standard_normal((100, 2)).astype(np.float32)
    >>> state = fit(model, data, sg.Objective(sg.EpsilonMSE()), optax.adam(1e-3), steps=2, batch=16, progress=False)
    >>> int(state.step)
    2
    """
    from scoregen.data import Centered, as_dataset
    from scoregen.data import Prepare as Preparation

    problems = Problems()
    batch, microbatch = sizes = (
        problems.attempt(check_count, "batch", batch),
        problems.attempt(check_count, "microbatch", microbatch, 0),
    )
    if None not in sizes:
        problems.attempt(check_even, *sizes)
    counts = {"steps": steps, "log_every": log_every, "checkpoint_every": checkpoint_every, "keep": keep}
    for name, number in counts.items():
        problems.attempt(check_count, name, number)
    seed = problems.attempt(check_seed, seed)
    problems.attempt(_check_optimizer, optimizer)
    average = problems.attempt(_average, ema)
    for name, function in {"callback": callback, "stopped": stopped, "started": started, "prepare": prepare}.items():
        problems.attempt(_check_callable, name, function)
    loggers = problems.attempt(_loggers, log, workdir is not None)
    dataset: Dataset | None = problems.attempt(as_dataset, data)
    folder: Path | None = None
    if workdir is not None:
        folder = problems.attempt(check_path, "workdir", workdir, "runs/mine")
    problems.attempt(check_parts, model, objective, dataset and math.prod(dataset.shape))
    problems.check()
    assert dataset is not None
    if prepare is None and dataset.is_image:
        prepare = Preparation(Centered())
    check_cond(model, dataset)
    check_scale(dataset)
    shape = check_shapes(model, objective, dataset, prepare)

    step = make_step(model, objective, optimizer, average, microbatch, prepare=prepare, seed=seed)

    say = None
    if console is not None:
        say = functools.partial(console.print, highlight=False, soft_wrap=True)

    def run(
        state: State, begin: int, checkpoints: Checkpoints | None = None, description: Mapping[str, Any] | None = None
    ) -> State:
        if started is not None:
            started(begin, state)
        if begin >= steps:
            return state
        held_out = None
        if checkpoints is not None and dataset.test is not None:
            size = min(64, microbatch or batch)
            held_out = make_eval(model, objective, dataset, prepare=prepare, seed=seed, batch=size)
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(_bar(console, steps, begin)) if progress and mesh.first() else None
            log = None
            if (folder is not None or loggers) and mesh.first():
                told = description if config is None else config
                log = stack.enter_context(MetricsLog(folder, begin, loggers, told, say))
            return train(
                step,
                state,
                functools.partial(_batch, model, dataset, seed, batch),
                range(begin, steps),
                checkpoints=checkpoints,
                held_out=held_out,
                log=log,
                bar=bar,
                log_every=log_every,
                checkpoint_every=checkpoint_every,
                callback=callback,
                stopped=stopped,
            )

    def fresh() -> State:
        return mesh.replicate(init_state(model, objective, optimizer, shape, seed))

    if folder is None:
        return run(fresh(), 0)

    from scoregen.train.checkpoint import Checkpoints

    with _locked(folder), Checkpoints(folder / "checkpoints", keep=keep, say=say) as checkpoints:
        template = abstract_state(model, objective, optimizer, shape)
        description = {
            "model": describe.describe(model),
            "objective": describe.describe(objective),
            "optimizer": describe.fingerprint(optimizer, template.params),
            "average": describe.describe(average),
            "prepare": describe.describe(prepare),
            "data": describe.data_summary(dataset),
            "batch": batch,
            "seed": seed,
        }
        _agree(folder, description, bool(checkpoints.steps()))
        found = checkpoints.restore(template)
        mesh.check_same(found[1] + 1 if found else 0, "checkpoints")
        return run(*(found or (fresh(), 0)), checkpoints, description)


def train(
    step: TrainStep,
    state: State,
    batches: Callable[[int], tuple[Any, Cond | None]],
    steps: range,
    *,
    checkpoints: Checkpoints | None = None,
    held_out: Callable[..., float | None] | None = None,
    log: MetricsLog | None = None,
    bar: Bar | None = None,
    log_every: int = 50,
    checkpoint_every: int = 1000,
    callback: Callable[[int, State], object] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> State:
    """The loop of `fit`. With checkpoints, the last state is saved.

    Args:
        step: the training step, from `make_step`.
        state: a new or a restored state, on every device (`mesh.replicate`); it is donated.
        batches: number of a step -> (x0 `[B, ...]`, cond).
        steps: the numbers of the steps to do.
        checkpoints: for the states; None to save nothing.
        held_out: the held-out loss, from `make_eval`; the value for the average is the metric of a checkpoint. If
            `stopped()` becomes true, it is skipped or aborted.
        log, bar: for the metrics.
        log_every, checkpoint_every, callback, stopped: see `fit`.

    Raises:
        UsageError: if the loss or the parameters become NaN or infinite; such a state is not saved.
    """
    done = saved = steps.start

    def check_finite(value: float, what: str, at: int) -> float:
        if not math.isfinite(value):
            kept = "nothing was saved"
            if checkpoints is not None:
                checkpoints.wait()  # the last save may still be running
                good = checkpoints.latest_step()
                kept = f"the checkpoint of step {good} is good" if good is not None else "nothing was saved yet"
            raise UsageError(
                f"the {what} became {value} by step {at}; {kept}. Check the data, or start again in another workdir "
                "with a lower learning rate or a smaller clip of the gradient"
            )
        return value

    def report(at: int, metrics: dict[str, Array], write: bool) -> None:
        loss = check_finite(wait(metrics["loss"]), "loss", at)
        norm = check_finite(float(metrics["grad_norm"]), "norm of the gradient", at)
        if bar is not None:
            bar.update(at, loss=loss)
        if write and log is not None:
            pace = {} if bar is None else {"steps_per_second": bar.rate()}
            log.write(at, loss=loss, grad_norm=norm, **pace)

    def save(checkpoints: Checkpoints) -> int:
        wait(state.step)  # so that the running step does not count as time of the evaluation
        loss = None
        if held_out is not None:
            with bar.aside("held-out loss, batch") if bar else contextlib.nullcontext(_silent) as progress:
                loss = held_out(state.ema, stopped, progress)
        check_finite(wait(optax.tree.norm(state.params)), "norm of the parameters", done)
        if loss is not None:  # None if stopped; the checkpoint then has no metric and cannot be the best
            check_finite(loss, "held-out loss", done)
            if log is not None:
                log.write(done, held_out_loss=loss)
        checkpoints.save(done, state, metric=loss)
        return done

    in_flight = None
    for number in steps:
        if stopped():
            break
        state, metrics = step(state, *batches(number))
        done = number + 1
        # At most one step runs while the next is prepared, so the bar shows only finished steps.
        if in_flight is not None:
            at, earlier = in_flight
            report(at, earlier, write=at % log_every == 0 or at == steps.start + 1)
        in_flight = done, metrics
        shown = None if callback is None else callback(done, state)
        if log is not None and isinstance(shown, dict):
            for name, image in shown.items():
                log.picture(done, name, image)
        if checkpoints is not None and done % checkpoint_every == 0 and done < steps.stop:
            saved = save(checkpoints)
    if in_flight is not None:
        report(*in_flight, write=True)
    if checkpoints is not None:
        if done > saved:
            save(checkpoints)
        checkpoints.wait()
    return state


def _silent(done: int, total: int) -> None:
    pass


def _bar(console: Console | None, steps: int, begin: int) -> Bar:
    from rich.console import Console

    return Bar(console or Console(stderr=True), "training", steps, begin)


def _check_optimizer(optimizer: Any) -> None:
    if isinstance(optimizer, type) or not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"optimizer={what_it_is(optimizer)}: an optax transformation is needed, such as optax.adam(1e-3)"
        )


def _check_callable(name: str, function: Any) -> None:
    if function is not None and not callable(function):
        raise TypeError(f"{name}={function!r}: a function is needed")


def _loggers(log: Logger | Iterable[Logger] | None, workdir: bool) -> list[Logger]:
    if log is None:
        return [TensorBoard()] if workdir else []
    found = list(log) if isinstance(log, Iterable) and not isinstance(log, Logger | str) else [log]
    for one in found:
        check_kind("log", one, Logger, "sg.train.TensorBoard()")
    return found  # pyright: ignore[reportReturnType]


def _average(ema: float | Average | None) -> Average:
    if ema is None:
        return NoAverage()
    if isinstance(ema, bool | str | type) or not (callable(ema) or hasattr(ema, "__float__")):
        raise TypeError(f"ema={what_it_is(ema)}: a rate below 1, a law such as sg.Decay(0.999), or None is needed")
    if callable(ema):
        return ema
    try:
        return Decay(float(ema))
    except ValueError as error:
        raise ValueError(f"ema: {error}") from None


def _batch(model: Model, dataset: Dataset, seed: int, size: int, step: int) -> tuple[np.ndarray, Cond | None]:
    """The raw examples `[B, ...]` of a training step, with the labels and contexts that the network takes."""
    cond = dataset.cond(dataset.indices(seed, step, size), labels=bool(model.num_classes))
    return dataset.batch(seed, step, size), cond if any(part is not None for part in cond) else None


def check_scale(dataset: Dataset) -> None:
    """Raises UsageError for floating-point data far from unit scale, on which nothing would be learned.

    >>> from scoregen.data import Dataset
    >>> check_scale(Dataset("far", np.full((4, 2), 1e20, np.float32)))
    Traceback (most recent call last):
    scoregen.errors.UsageError: far: the values are about 1e+20: ...
    """
    if dataset.is_image:
        return
    some = np.abs(dataset.examples(slice(0, max(1, min(1000, 10**7 // math.prod(dataset.shape))))).astype(np.float64))
    size = math.sqrt(np.square(some).mean())
    if not 1e-6 <= size <= 1e6:
        raise UsageError(
            f"{dataset.name}: the values are about {size:.3g}: networks learn values of about 1; sg.data.array(x) "
            "standardises an array"
        )


def check_cond(model: Model, dataset: Dataset) -> None:
    """Raises ValueError unless the data have the labels and contexts that the network takes."""
    length = getattr(model, "context_dim", 0)
    if length != dataset.context_dim:
        given = f"a context of {dataset.context_dim} numbers" if dataset.context_dim else "no context"
        raise ValueError(
            f"the network has context_dim={length}, and the data have {given}: say context_dim={dataset.context_dim}"
        )
    count = model.num_classes
    if not count:
        return
    splits = [dataset.train_labels] if dataset.test is None else [dataset.train_labels, dataset.test_labels]
    for labels in splits:
        if labels is None:
            raise ValueError(
                f"the network has num_classes={count}, and the data have no labels: give a Dataset with labels, or a "
                "network with num_classes=0"
            )
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= count:
            raise ValueError(
                f"the data have labels from {least} to {most}, and a network with num_classes={count} takes 0 to "
                f"{count - 1}: say num_classes={most + 1}, and count classes from 0"
            )


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Create the workdir if needed, and lock it for this run."""
    make_folder(workdir, "workdir")
    with locked(workdir / ".lock") if mesh.first() else contextlib.nullcontext():
        yield


def _agree(workdir: Path, description: dict[str, Any], trained: bool) -> None:
    """Writes the description of a new run. Raises UsageError if it contradicts the run in the workdir."""
    # A run without a checkpoint can be started again with any options.
    old = describe.read(workdir) if trained else None
    if old is not None and (differ := describe.differences(old, description)):
        what = "data" if all(line.startswith("data.") for line in differ) else "options"
        raise UsageError(
            f"{workdir} holds a run with other {what} ({'; '.join(differ)}): use the same {what}, or another "
            "workdir for a new run"
        )
    if old is None and mesh.first():
        describe.write(workdir, description)
