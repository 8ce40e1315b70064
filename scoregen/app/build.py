"""Builds the parts of a run from its configuration. All parts that do not fit are reported in one error."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import optax

from scoregen.app import config as config_lib
from scoregen.app.config import Config
from scoregen.app.refusals import SECTIONS, Refusals
from scoregen.app.sampling import Sampling
from scoregen.data import NUMBERS, SCALINGS, SOURCES, Dataset, Prepare, in_turns, is_slow
from scoregen.denoiser import CONDITIONS, TARGETS
from scoregen.errors import (
    MOST,
    Refusal,
    UsageError,
    check_count,
    check_finite,
    check_fraction,
    check_not_negative,
    check_numbers,
    check_positive,
)
from scoregen.guidance import CONTROLS, X0S, Control
from scoregen.likelihood import LIKELIHOODS
from scoregen.losses import LOSSES, WEIGHTINGS, Objective
from scoregen.nets import NETS
from scoregen.process import PROCESSES, Process
from scoregen.samplers import CORRECTORS, GRIDS, STEPS, Sampler
from scoregen.times import TIMES
from scoregen.train import (
    AVERAGES,
    OPTIMIZERS,
    SCHEDULES,
    Average,
    Model,
    check_even,
    check_shapes,
    make_optimizer,
)
from scoregen.train import refusals as train_refusals

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a run, as its configuration names them.

    Attributes:
        config: the configuration.
        dataset: the data.
        prepare: turns raw examples into the input of the training.
        model: the network, its process and its target.
        objective: the loss, its weighting and the law of times.
        optimizer: the optimizer with its schedule, clip and accumulation.
        average: the average of the parameters (EMA), for sampling.
        sampling: how samples are drawn.
    """

    config: Config
    dataset: Dataset
    prepare: Prepare
    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    average: Average
    sampling: Sampling

    @property
    def scaling(self) -> Any:
        """The scaling between the units of the data and of the network."""
        return self.prepare.scaling

    @property
    def evaluated(self) -> int:
        """The number of samples for the distances."""
        return evaluated(self.config, self.dataset)

    def estimators(self) -> dict[str, Any]:
        """The likelihoods that the configuration chooses, by name; see `estimators`."""
        return estimators(self.config, self.model, self.sampling.process)

    def labels_held_out(self, index: np.ndarray) -> np.ndarray | None:
        """The classes of these held-out examples, `[B]`; `config.sampler.label` replaces them if it is set."""
        known, label = self.dataset.test_labels, self.config.sampler.label
        if not self.model.num_classes or known is None:
            return None
        return known[index % len(known)] if label < 0 else np.full(len(index), label, np.int32)


def evaluated(config: Config, dataset: Dataset) -> int:
    """`config.eval.samples`; if that is 0, the number of training examples, at most 1000."""
    return config.eval.samples or min(1000, len(dataset.train))


def data(config: Config) -> Dataset:
    """The data of a configuration.

    Raises:
        UsageError: if the data are missing, or an option is out of range.
    """
    with naming_options(config):
        return config_lib.build(SOURCES, config.data, "data", dir=config.data.dir)


@contextlib.contextmanager
def naming_options(config: Config) -> Iterator[None]:
    """Within it, the errors of a data source name options in place of its parameters."""
    try:
        yield
    except UsageError as error:
        raise UsageError(*(_with_options(line, config) for line in error.args)) from error


def _with_options(line: str, config: Config) -> str:
    name: Any = config.data.name
    line = re.sub(r"(?<![\w.-])dir=(?=[A-Z])", "--config.data.dir=", line)
    own = "|".join(map(re.escape, config.data.get(name, {})))
    line = re.sub(rf"^{re.escape(name)}: (?=({own})=)", f"config.data.{name}.", line)
    return re.sub(r"(?<![\w.-])(prepared)=(?=[A-Z])", rf"--config.data.{name}.\1=", line)


def network(config: Config, classes: int = 0) -> Any:
    """The network of a configuration; `classes` is the number of classes."""
    process: Process = config_lib.build(PROCESSES, config.process)
    return config_lib.build(
        NETS,
        config.net,
        levels=int(process.ends[1]) + 1 if process.discrete else None,
        num_classes=classes,
        augment_dim=NUMBERS if config.data.augment else 0,
    )


def model(config: Config, classes: int = 0) -> Model:
    """The model of a configuration; `classes` is the number of classes. It does not check whether the parts fit."""
    scaling = config_lib.build(SCALINGS, config.scaling)
    return Model(
        config_lib.build(PROCESSES, config.process),
        network(config, classes),
        target=config_lib.pick(TARGETS, config.target, "config.target") and config.target,
        condition=config_lib.pick(CONDITIONS, config.net.condition, "config.net.condition") and config.net.condition,
        learned_variance=config.learned_variance,
        energy=config.energy,
        log_variance=config.log_variance,
        unit_input=config.net.unit_input,
        centered=config.net.centered and scaling.low == 0.0,
    )


def build(config: Config, mode: str = "train", dataset: Dataset | None = None) -> Parts:
    """Build all parts that a configuration names.

    Args:
        config: the configuration.
        mode: the command that the parts are for. Options that this command does not use are not checked.
        dataset: the data to use instead of the data that the configuration names.

    Raises:
        UsageError: for parts that do not exist, options out of range, missing data and parts that cannot be combined.
            One error lists all of them, each with the flag that fixes it.
    """
    refusals = Refusals(config)

    def attempt(make: Callable[..., T], *arguments: Any, **options: Any) -> T | None:
        with refusals.collect():
            return make(*arguments, **options)
        return None

    _check_ranges(refusals, config)
    bad_ranges = bool(refusals.reasons)

    def choose(table: Mapping[str, Callable], key: str, **known: Any) -> Any:
        return attempt(config_lib.build, table, config_lib.get(config, key), key, **known)

    process = choose(PROCESSES, "process")
    scaling = choose(SCALINGS, "scaling")
    known = {} if scaling is None else {"bins": scaling.bins, "width": scaling.width}
    bounds = {} if scaling is None else {"low": scaling.low, "high": scaling.high}
    loss = choose(LOSSES, "loss", **known)
    weighting = choose(WEIGHTINGS, "weighting")
    times = choose(TIMES, "times")
    average = choose(AVERAGES, "train.ema")
    # Both parts alone, so that their errors are found together; the number of steps may be one of the errors.
    steps, accumulate = config.train.steps, config.train.accumulate
    last = steps // accumulate if min(steps, accumulate) > 0 else MOST
    schedule = choose(SCHEDULES, "schedule", learning_rate=1.0, steps=last)
    optimizer = choose(OPTIMIZERS, "optimizer", learning_rate=1.0)
    if bad_ranges or schedule is None or optimizer is None:
        optimizer = None
    else:
        optimizer = attempt(optimizer_of, config)
    step, grid = choose(STEPS, "sampler.step"), choose(GRIDS, "sampler.grid")
    corrector, sampler = choose(CORRECTORS, "sampler.corrector"), None
    if step is not None and grid is not None and (corrector is not None or config.sampler.corrector.name == "none"):
        n = None if config_lib.idle(config, ["sampler.n"]) else config.sampler.n or None  # a preset may set it in vain
        sampler = attempt(Sampler, step, corrector, grid, n, config.sampler.denoise)
    hold_x0 = choose(X0S, "sampler.x0", **bounds)
    control = choose(CONTROLS, "sampler.control")
    walk = None if process is None else attempt(_walk, config, process)
    # Last, since this may read or download files.
    if dataset is None and refusals.reasons and is_slow(SOURCES.get(config.data.name)):
        refusals.check()
    dataset = dataset or attempt(data, config)

    if None in (process, walk, scaling, dataset):
        refusals.check()
    assert process is not None and walk is not None and scaling is not None and dataset is not None
    _check_labels(refusals, config, dataset)
    _check_data(refusals, config, dataset)
    _check_evaluation(refusals, config, dataset, mode)
    prepare = attempt(Prepare, scaling, config.data.flip, config.data.augment)
    classes = _classes(config, dataset)
    trained = attempt(model, config, classes)
    objective = None
    if loss is not None and times is not None:
        objective = attempt(Objective, loss, weighting, times, config.label_dropout if classes else 0.0)
    if trained is not None and objective is not None and prepare is not None:
        found = train_refusals(trained, objective, math.prod(dataset.shape))
        refusals.extend(found)
        if not found:
            _check_fit(refusals, config, dataset, prepare, trained, objective)
    if trained is not None:
        used = None if mode == "likelihood" else sampler  # a likelihood uses no grid
        _check_sampler(refusals, config, dataset, trained, walk, used, hold_x0, control)
        if mode == "likelihood":
            with refusals.collect():
                estimators(config, trained, trained.process if walk is process else walk)
    if mode == "train" and not bad_ranges:
        with refusals.collect("config.train."):
            check_even(config.train.batch, config.train.microbatch)
    refusals.check()
    assert trained is not None and objective is not None and sampler is not None and prepare is not None
    sampling = Sampling(
        trained,
        sampler,
        dataset.shape,
        scaling,
        # The same object as the model's process, so that the denoiser is not converted.
        trained.process if walk is process else walk,
        is_image=dataset.is_image,
        hold_x0=hold_x0,
        labels=_labels_to_sample(config, dataset, control) if classes else None,
        guidance=config.sampler.guidance,
        control=control,
        dataset=dataset,
        seed=config.seed if config.sampler.seed is None else config.sampler.seed,
        batch=config.sampler.batch,
    )
    assert optimizer is not None and average is not None
    return Parts(config, dataset, prepare, trained, objective, optimizer, average, sampling)


def optimizer_of(config: Config) -> optax.GradientTransformation:
    """The optimizer of a configuration, with its schedule, clip and accumulation."""
    return make_optimizer(
        lambda rate: config_lib.build(OPTIMIZERS, config.optimizer, "optimizer", learning_rate=rate),
        lambda rate, steps: config_lib.build(SCHEDULES, config.schedule, "schedule", learning_rate=rate, steps=steps),
        config.train.learning_rate,
        clip=config.train.clip,
        accumulate=config.train.accumulate,
        steps=config.train.steps,
    )


def _walk(config: Config, process: Process) -> Process:
    """The process of the sampling: the trained process, unless `config.sampler.process` names another."""
    options = config.sampler.process
    name = options.name
    if name == "trained" or (name == config.process.name and options[name] == config.process[name]):
        return process
    walk = config_lib.build(PROCESSES, options, "sampler.process")
    try:
        return walk.within(process)
    except ValueError as error:
        raise UsageError(f"config.sampler.process={name}: {error}") from None


def _classes(config: Config, dataset: Dataset) -> int:
    labels = dataset.train_labels
    return int(labels.max()) + 1 if config.labels and labels is not None else 0


def _labels_to_sample(config: Config, dataset: Dataset, control: Control | None) -> np.ndarray | None:
    """The classes that samples get in turn: the chosen class, or all classes in the proportions of the data.

    A completed image gets its own class.
    """
    if config.sampler.label >= 0:
        return np.full(1, config.sampler.label, np.int32)
    if control is not None:
        return dataset.test_labels
    assert dataset.train_labels is not None
    return in_turns(dataset.train_labels)


# The least value -> the keys of the options that count.
_COUNTS = {
    1: "train.steps train.batch train.log_every train.checkpoint_every train.keep train.accumulate sampler.batch "
    "sampler.images",
    0: "train.microbatch train.sample_every sampler.n",
}
_probability = functools.partial(check_numbers, lambda value: 0 <= value <= 1, "a probability from 0 to 1")
# The options that measure, each with its check.
_RANGES: dict[str, Callable[..., None]] = {
    "train.clip": check_not_negative,
    "train.learning_rate": check_positive,
    "label_dropout": check_fraction,
    "data.augment": _probability,
    "sampler.guidance": check_finite,
}


def _check_ranges(refusals: Refusals, config: Config) -> None:
    for least, keys in _COUNTS.items():
        for key in keys.split():
            with refusals.collect("config."):
                check_count(key, config_lib.get(config, key), least)
    for key, check in _RANGES.items():
        with refusals.collect("config."):
            check(**{key: config_lib.get(config, key)})
    with refusals.collect():
        config_lib.check_seeds(config)


def _check_labels(refusals: Refusals, config: Config, dataset: Dataset) -> None:
    sampler, name = config.sampler, config.data.name
    if not config.labels:
        for option, default in (("guidance", 1.0), ("label", -1)):
            if sampler[option] != default and math.isfinite(sampler[option]):
                refusals.add(
                    f"config.sampler.{option}={sampler[option]}: this network has no classes: train a network with "
                    "--config.labels=true"
                )
        return
    if dataset.train_labels is None or (dataset.test is not None and dataset.test_labels is None):
        refusals.add(f"config.labels: the data '{name}' have no labels: say --config.labels=false")
        return
    known = (dataset.train_labels, dataset.train_labels if dataset.test_labels is None else dataset.test_labels)
    (least, most), (least_held, most_held) = ((int(labels.min()), int(labels.max())) for labels in known)
    if min(least, least_held) < 0 or most_held > most:
        refusals.add(
            f"config.labels: classes count from 0, and each needs a training example; '{name}' has training labels "
            f"from {least} to {most}, and held-out labels from {least_held} to {most_held}"
        )
    if sampler.guidance != 1 and config.label_dropout == 0:
        refusals.add(
            f"config.sampler.guidance={sampler.guidance}: guidance needs a network trained also without labels: "
            "train with --config.label_dropout=0.1"
        )
    if not -1 <= sampler.label <= most:
        refusals.add(f"config.sampler.label={sampler.label}: the classes are 0 to {most}; -1 draws all classes")
    if not _takes(config, "num_classes"):
        refusals.add(f"config.labels: the network '{config.net.name}' has no input for classes", "net=unet")


def _check_data(refusals: Refusals, config: Config, dataset: Dataset) -> None:
    name, augment = config.data.name, config.data.augment
    if not dataset.is_image:
        if config.data.flip:
            refusals.add(f"config.data.flip: it is for images, and '{name}' are points: say --config.data.flip=false")
        if augment:
            refusals.add(
                f"config.data.augment={augment}: it is for images, and '{name}' are points: say --config.data.augment=0"
            )
        if config.sampler.x0.name != "free":
            refusals.add(
                f"config.sampler.x0.name={config.sampler.x0.name}: points have no range to clip x0 to",
                "x0=free",
            )
    elif augment and not _takes(config, "augment_dim"):
        refusals.add(
            f"config.data.augment={augment}: the network '{config.net.name}' has no input for the augmentation, and "
            "would draw augmented images: say --config.net.name=ncsnpp, or --config.data.augment=0"
        )


def _takes(config: Config, field: str) -> bool:
    """Whether the network of a configuration has this field, for an input beside x and the noise level."""
    make = NETS.get(config.net.name)
    return make is None or field in inspect.signature(make).parameters


def _check_evaluation(refusals: Refusals, config: Config, dataset: Dataset, mode: str) -> None:
    options, none = config.eval, f"the data '{config.data.name}' have no held-out examples"
    if dataset.test is None and mode == "likelihood":
        refusals.add(f"{none} to compute the likelihood of")
    if dataset.test is None and config.sampler.control.name != "none":
        refusals.add(f"{none} to complete", "control=none")
    if not (mode == "eval" or (mode == "train" and options.at_end)):
        return
    if dataset.test is None:
        refusals.add(f"{none} to compare samples with", "eval.at_end=false")
    if dataset.is_image and dataset.train_labels is None:
        refusals.add(
            "images without labels cannot be evaluated: the distance needs a classifier, which is trained on labels",
            "eval.at_end=false",
        )
    if not 2 <= evaluated(config, dataset) <= len(dataset.train):
        refusals.add(
            f"config.eval.samples={options.samples}: a number from 2 to {len(dataset.train)} is needed, since as many "
            "training examples are drawn for comparison; 0 takes the size of the training set, at most 1000"
        )


def _check_fit(
    refusals: Refusals, config: Config, dataset: Dataset, prepare: Prepare, trained: Model, objective: Objective
) -> None:
    """Refuse a network that does not fit its data, from shapes and types alone, without computing."""
    raw = jax.ShapeDtypeStruct((2, *dataset.shape), dataset.train.dtype)
    try:
        check_shapes(trained, objective, raw, bool(trained.num_classes), prepare)
    except ValueError as error:
        name, reason = config.net.name, config_lib.first_line(error.__cause__ or error)
        if config_lib.names_option(reason, config.net.get(name, {})):
            refusals.add(f"config.net.{name}.{reason}")
        else:
            refusals.add(f"the network '{name}' and the data '{config.data.name}': {reason}")


def _check_sampler(
    refusals: Refusals,
    config: Config,
    dataset: Dataset,
    trained: Model,
    walk: Process,
    sampler: Sampler | None,
    hold_x0: Any,
    control: Control | None,
) -> None:
    own = walk == trained.process or config.sampler.process.name == "trained"
    sections = SECTIONS if own else SECTIONS | {"process": "sampler.process"}
    if control is not None:
        with refusals.collect(f"config.sampler.control={config.sampler.control.name}: "):
            refusals.add(control.refuse(walk, dataset.shape), sections=sections)
    if sampler is None:
        return
    kept = getattr(hold_x0, "keeps_density", False) and getattr(control, "keeps_density", True)
    refusals.extend(
        sampler.refuse(walk, density=trained.energy and kept, variance=trained.learned_variance and own), sections
    )
    if trained.energy and not kept and getattr(sampler.corrector, "needs_density", False):
        refusals.add(
            f"the corrector '{config.sampler.corrector.name}' needs a density, but clipped or controlled estimates of "
            "x0 have none",
            "x0=free",
            "control=none",
            "corrector=langevin",
        )


def estimators(config: Config, trained: Model, process: Process) -> dict[str, Any]:
    """The likelihoods that `config.eval.likelihood.name` chooses, by name.

    Raises:
        UsageError: for options out of range, and if a chosen likelihood does not exist under this process.
    """
    options, refusals, found = config.eval.likelihood, Refusals(config), {}
    scaling = config_lib.build(SCALINGS, config.scaling)
    known: dict[str, Any] = {"bins": scaling.bins, "width": scaling.width}
    if trained.learned_variance and process is trained.process:
        known["variance"] = "learned"
    for kind in ("bound", "ode") if options.name == "both" else (options.name,):
        with refusals.collect():
            section = type(options)({"name": kind, kind: options[kind]})
            found[kind] = config_lib.build(LIKELIHOODS, section, "eval.likelihood", **known)
            refusal = found[kind].refuse(process)
            if refusal is not None and "process.start=normal" in refusal.fixes:
                reason = f"{refusal.reason}: sample from a normal start; no new training is needed"
                refusal = Refusal(reason, (_normal(config),))
            refusals.add(refusal, sections=SECTIONS | {"likelihood": f"eval.likelihood.{kind}"})
    for name, least in (("examples", 2), ("batch", 1)):
        if not options[name] >= least:
            refusals.add(f"config.eval.likelihood.{name}={options[name]}: at least {least} is needed")
    refusals.check()
    return found


def _normal(config: Config) -> str:
    """The flags for sampling under the trained process, but from a normal start."""
    name = config.process.name if config.sampler.process.name == "trained" else config.sampler.process.name
    trained = config.process if config.sampler.process.name == "trained" else config.sampler.process
    options = trained[name].to_dict() | {"start": "normal"}
    default = config.sampler.process[name].to_dict()
    differ = [f"process.{name}.{key}={value}" for key, value in options.items() if default[key] != value]
    return " ".join(f"--config.sampler.{flag}" for flag in (f"process.name={name}", *differ))
