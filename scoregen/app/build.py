"""Builds the parts of a run from its configuration. All parts that do not fit are reported in one error."""

from __future__ import annotations

import contextlib
import dataclasses
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
from scoregen.cond import Cond
from scoregen.data import NUMBERS, SCALINGS, SOURCES, Auto, Dataset, Prepare, in_turns, is_slow
from scoregen.denoiser import CONDITIONS, TARGETS
from scoregen.errors import (
    MOST,
    Refusal,
    UsageError,
    check_count,
    check_finite,
    check_fraction,
    check_not_negative,
    check_positive,
)
from scoregen.guidance import CONTROLS, X0S, Control
from scoregen.likelihood import LIKELIHOODS
from scoregen.losses import LOSSES, WEIGHTINGS, Objective
from scoregen.metrics import FEATURES, Features, is_labelled
from scoregen.metrics.efficientnet import packaged
from scoregen.nets import NETS
from scoregen.process import PROCESSES, Process
from scoregen.samplers import CORRECTORS, GRIDS, STEPS, Sampler
from scoregen.times import TIMES
from scoregen.train import (
    AVERAGES,
    LOGGERS,
    OPTIMIZERS,
    SCHEDULES,
    Average,
    Logger,
    Model,
    check_even,
    check_scale,
    check_shapes,
    describe,
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
        loggers: where the metrics of the training go, beside metrics.jsonl; none for another command.
    """

    config: Config
    dataset: Dataset
    prepare: Prepare
    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    average: Average
    sampling: Sampling
    loggers: tuple[Logger, ...] = ()

    @property
    def scaling(self) -> Any:
        """The scaling between the units of the data and of the network."""
        return self.prepare.scaling

    @property
    def evaluated(self) -> int:
        """The number of samples for the distances."""
        return evaluated(self.config, self.dataset)

    def features(self, say: Callable[[str], None] | None = None) -> Features | None:
        """The features that images are compared by; None for other data.

        Raises:
            UsageError: if there are none.
        """
        return features(self.config, self.dataset, say) if self.dataset.is_image else None

    def estimators(self) -> dict[str, Any]:
        """The likelihoods that the configuration chooses, by name; see `estimators`."""
        return estimators(self.config, self.model, self.sampling.process, self.scaling)

    def cond_held_out(self, index: np.ndarray) -> Cond | None:
        """The classes and the contexts of these held-out examples; those that `config.sampler` chooses replace them."""
        assert self.dataset.test is not None
        of = self.dataset.cond(index % len(self.dataset.test), test=True, labels=bool(self.model.num_classes))
        chosen = chosen_cond(self.config, self.dataset)
        return _either(of, jax.tree.map(lambda one: np.repeat(one, len(index), 0), chosen))


def evaluated(config: Config, dataset: Dataset) -> int:
    """`config.eval.samples`; if that is 0, the number of training examples, at most 1000."""
    return config.eval.samples or min(1000, len(dataset.train))


def features(config: Config, dataset: Dataset, say: Callable[[str], None] | None = None) -> Features:
    """The features of `config.eval.features` for a data set.

    Raises:
        UsageError: if the weights of the network or the labels for the classifier are missing.
    """
    return config_lib.build(FEATURES, config.eval.features, "eval.features", dataset=dataset, progress=say)


def not_evaluated(config: Config, dataset: Dataset) -> str:
    """Why a training on these images ends without distances, unless features are asked for; "" if it does not."""
    if not dataset.is_image or config.eval.features.name != "auto":
        return ""
    if dataset.test is None or len(dataset.test) < 2:
        return "fewer than two images are held out"
    if is_labelled(dataset):
        return ""
    if dataset.shape[2] not in (1, 3):
        return f"the features of images without labels need 1 or 3 channels, and these have {dataset.shape[2]}"
    try:
        packaged()
    except UsageError as error:
        return str(error)
    return ""


def data(config: Config) -> Dataset:
    """The data of a configuration.

    Raises:
        UsageError: if the data are missing, or an option is out of range.
    """
    with naming_options(config):
        return config_lib.build(SOURCES, config.data, "data", dir=config.data.dir, context=config.data.context)


@contextlib.contextmanager
def naming_options(config: Config) -> Iterator[None]:
    """Within it, the errors of a data source name options in place of its parameters."""
    try:
        yield
    except UsageError as error:
        raise UsageError(*(_with_options(line, config) for line in error.args)) from error


def _with_options(line: str, config: Config) -> str:
    name: Any = config.data.name
    own = "|".join(map(re.escape, config.data.get(name, {})))
    line = re.sub(rf"^{re.escape(name)}: (?=({own})=)", f"config.data.{name}.", line)
    line = re.sub(rf"^{re.escape(name)}: (?=context=)", "config.data.", line)
    # In what a message advises: "dir=FILE.csv", "say layout=first".
    line = re.sub(r"(?<![\w.-])(dir|context)=(?=[A-Z])", r"--config.data.\1=", line)
    return (
        re.sub(
            rf"(?<![\w.-])({own})=(?=[A-Z])|(?:(?<=say )|(?<=or )|(?<=as )|(?<=with ))({own})=(?=\S)",
            _as_flag(name),
            line,
        )
        if own
        else line
    )


def _as_flag(source: str) -> Callable[[re.Match[str]], str]:
    return lambda found: f"--config.data.{source}.{found[1] or found[2]}="


def network(config: Config, dataset: Dataset | None = None, shape: tuple[int, ...] | None = None) -> Any:
    """The network of a configuration. It depends on the shape, the classes and the contexts of the data set.

    Without a data set it has no classes and no context; `shape` is then the shape of an example (only "auto" needs it).
    Its memory is counted for the whole batch, whatever the microbatch: that may change when a run is continued.
    """
    process: Process = config_lib.build(PROCESSES, config.process)
    shape = shape if dataset is None else dataset.shape
    return config_lib.build(
        NETS,
        config.net,
        "net",
        levels=int(process.ends[1]) + 1 if process.discrete else None,
        num_classes=0 if dataset is None else _classes(config, dataset),
        context_dim=0 if dataset is None else dataset.context_dim,
        augment_dim=NUMBERS if config.data.augment else 0,
        **({} if shape is None else {"shape": shape, "batch": config.train.batch}),
    )


def with_network(config: Config, net: Any) -> Config:
    """The configuration with the network that "auto" has chosen in place of "auto", so that a run stores it.

    Other configurations are returned as they are.
    """
    if config.net.name != "auto":
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.net.name = next(name for name, make in NETS.items() if make is type(net))
        chosen = config.net[config.net.name]
        for option in chosen:
            chosen[option] = getattr(net, option)
    return config.lock()


def model(config: Config, dataset: Dataset | None = None, shape: tuple[int, ...] | None = None) -> Model:
    """The model of a configuration; for the arguments see `network`. It does not check whether the parts fit."""
    scaling = config_lib.build(SCALINGS, config.scaling)
    return Model(
        config_lib.build(PROCESSES, config.process),
        network(config, dataset, shape),
        target=config_lib.pick(TARGETS, config.target, "config.target") and config.target,
        condition=config_lib.pick(CONDITIONS, config.net.condition, "config.net.condition") and config.net.condition,
        learned_variance=config.learned_variance,
        energy=config.energy,
        log_variance=config.log_variance,
        unit_input=config.net.unit_input,
        centered=config.net.centered and scaling.low == 0.0,
    )


def build(
    config: Config, mode: str = "train", dataset: Dataset | None = None, summary: dict[str, Any] | None = None
) -> Parts:
    """Build all parts that a configuration names.

    Args:
        config: the configuration.
        mode: the command that the parts are for. Options that this command does not use are not checked.
        dataset: the data to use instead of the data that the configuration names.
        summary: of the data that the run was trained on; the data then get its units.

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

    def bins(scaling: Any) -> dict[str, Any]:
        return {} if scaling is None else {"bins": scaling.bins, "width": scaling.width}

    def bounds(scaling: Any) -> dict[str, Any]:
        return {} if scaling is None else {"low": scaling.low, "high": scaling.high}

    process = choose(PROCESSES, "process")
    scaling = choose(SCALINGS, "scaling")
    loss = choose(LOSSES, "loss", **bins(scaling))
    weighting = choose(WEIGHTINGS, "weighting")
    times = choose(TIMES, "times")
    average = choose(AVERAGES, "train.ema")
    loggers = attempt(config_lib.several, LOGGERS, config.train.log, "train.log") if mode == "train" else []
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
    hold_x0 = choose(X0S, "sampler.x0", **bounds(scaling))
    control = choose(CONTROLS, "sampler.control")
    walk = None if process is None else attempt(_walk, config, process)
    prepare = None
    with refusals.collect("config.data."):
        prepare = Prepare(scaling, **{name: config.data[name] for name in CHANGES})
    # Last, since this may read or download files.
    if dataset is None and refusals.reasons and is_slow(SOURCES.get(config.data.name)):
        refusals.check()
    dataset = dataset or attempt(data, config)
    if dataset is not None and summary is not None:
        dataset = attempt(describe.as_trained, dataset, summary)

    if None in (process, walk, scaling, dataset):
        refusals.check()
    assert process is not None and walk is not None and scaling is not None and dataset is not None
    if isinstance(scaling, Auto):  # now that the data are known
        scaling = scaling.of(dataset)
        loss, hold_x0 = choose(LOSSES, "loss", **bins(scaling)), choose(X0S, "sampler.x0", **bounds(scaling))
        prepare = None if prepare is None else dataclasses.replace(prepare, scaling=scaling)
    _check_labels(refusals, config, dataset)
    _check_context(refusals, config, dataset)
    if mode == "train":
        with refusals.collect():
            check_scale(dataset)
    _check_data(refusals, config, dataset, scaling, prepare)
    _check_evaluation(refusals, config, dataset, mode)
    trained = attempt(model, config, dataset)
    objective = None
    if loss is not None and times is not None:
        conditional = trained is not None and bool(trained.num_classes or trained.context_dim)
        objective = attempt(Objective, loss, weighting, times, config.label_dropout if conditional else 0.0)
    if trained is not None and objective is not None and prepare is not None and not prepare.refuse(dataset.shape):
        found = train_refusals(trained, objective, math.prod(dataset.shape))
        refusals.extend(found)
        if not found and not _are_no_bytes(dataset, scaling):
            _check_fit(refusals, config, dataset, prepare, trained, objective)
    if trained is not None:
        used = None if mode == "likelihood" else sampler  # a likelihood uses no grid
        _check_sampler(refusals, config, dataset, trained, walk, used, hold_x0, control)
        if mode == "likelihood":
            with refusals.collect():
                estimators(config, trained, trained.process if walk is process else walk, scaling)
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
        cond=_cond_to_sample(config, dataset, control, bool(trained.num_classes)),
        guidance=config.sampler.guidance,
        control=control,
        dataset=dataset,
        units=dataset.units,
        context_units=dataset.context_units,
        seed=config.seed if config.sampler.seed is None else config.sampler.seed,
        batch=config.sampler.batch,
    )
    assert optimizer is not None and average is not None and loggers is not None
    config = with_network(config, trained.net)
    return Parts(config, dataset, prepare, trained, objective, optimizer, average, sampling, tuple(loggers))


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


def chosen_cond(config: Config, dataset: Dataset) -> Cond:
    """The class `[1]` and the context `[1, K]` that `config.sampler` chooses for all examples; None if it does not."""
    label, context = config.sampler.label, config.sampler.context
    units = dataset.context_units
    given: Any = None
    if len(context) and units is not None:
        given = units.encode(np.asarray([context], np.float64))
    one: Any = np.full(1, label, np.int32) if label >= 0 else None
    return Cond(label=one, context=given)


def _cond_to_sample(config: Config, dataset: Dataset, control: Control | None, labels: bool) -> Cond | None:
    """The classes and contexts that samples get in turn: the chosen ones, or those of training examples.

    The examples are in an order in which each class has its proportion of the data. A completed image gets its own.
    """
    if control is not None:
        of = dataset.cond(test=True, labels=labels)
    else:
        turns = in_turns(dataset.train_labels) if labels and dataset.train_labels is not None else slice(None)
        of = dataset.cond(turns, labels=labels)
    return _either(of, chosen_cond(config, dataset))


def _either(of: Cond, chosen: Cond) -> Cond | None:
    """The classes and contexts in `of`, replaced by those that are chosen; None without any."""
    pairs: Any = zip(of, chosen, strict=True)
    cond = Cond(*(old if old is None or new is None else new for old, new in pairs))
    return cond if any(part is not None for part in cond) else None


CHANGES = ("flip", "augment", "crop", "shift")  # the options of the data that are those of `Prepare`

# The least value -> the keys of the options that count.
_COUNTS = {
    1: "train.steps train.batch train.log_every train.checkpoint_every train.keep train.accumulate sampler.batch "
    "sampler.images",
    0: "train.microbatch train.sample_every sampler.n",
}
# The options that measure, each with its check.
_RANGES: dict[str, Callable[..., None]] = {
    "train.clip": check_not_negative,
    "train.learning_rate": check_positive,
    "label_dropout": check_fraction,
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


def _check_context(refusals: Refusals, config: Config, dataset: Dataset) -> None:
    sampler, length = config.sampler, dataset.context_dim
    if length and not _takes(config, "context_dim"):
        refusals.add(f"config.data.context: the network '{config.net.name}' has no input for a context", "net=auto")
    given = sampler.context
    with refusals.collect("config."):
        for value in given:
            check_finite(**{"sampler.context": value})
    if len(given) not in (0, length):
        counted = f"{length} number{'s' * (length != 1)}" if length else "no numbers"
        refusals.add(f"config.sampler.context={given}: the context of an example has {counted}")
    if sampler.guidance != 1 and (config.labels or length) and config.label_dropout == 0:
        refusals.add(
            f"config.sampler.guidance={sampler.guidance}: guidance needs a network trained also without labels and "
            "contexts: train with --config.label_dropout=0.1"
        )


def _check_labels(refusals: Refusals, config: Config, dataset: Dataset) -> None:
    sampler, name = config.sampler, config.data.name
    if not config.labels:
        if sampler.label != -1:
            refusals.add(
                f"config.sampler.label={sampler.label}: this network has no classes: train a network with "
                "--config.labels=true"
            )
        if sampler.guidance != 1 and math.isfinite(sampler.guidance) and not dataset.context_dim:
            refusals.add(
                f"config.sampler.guidance={sampler.guidance}: this network has no classes and no context: train a "
                "network with --config.labels=true"
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
    if not -1 <= sampler.label <= most:
        refusals.add(f"config.sampler.label={sampler.label}: the classes are 0 to {most}; -1 draws all classes")
    if not _takes(config, "num_classes"):
        refusals.add(f"config.labels: the network '{config.net.name}' has no input for classes", "net=unet")


def _check_data(refusals: Refusals, config: Config, dataset: Dataset, scaling: Any, prepare: Prepare | None) -> None:
    augment = config.data.augment
    for refusal in () if prepare is None else prepare.refuse(dataset.shape):
        refusals.add(dataclasses.replace(refusal, reason=f"config.data.{refusal.reason}"))
    if _are_no_bytes(dataset, scaling):
        assert dataset.units is not None
        refusals.add(
            f"'{config.name}' is for images of bytes, and '{config.data.dir}' holds {dataset.units.dtype}: for numbers "
            "there are the presets points, series, fields (for images of numbers) and volumes"
        )
    elif not dataset.is_image and config.sampler.x0.name != "free":
        refusals.add(
            f"config.sampler.x0.name={config.sampler.x0.name}: only images of bytes have a range to clip x0 to",
            "x0=free",
        )
    if augment and len(dataset.shape) == 3 and not _takes(config, "augment_dim"):
        refusals.add(
            f"config.data.augment={augment}: the network '{config.net.name}' has no input for the augmentation, and "
            "would draw augmented images: say --config.net.name=ncsnpp, or --config.data.augment=0"
        )


def _are_no_bytes(dataset: Dataset, scaling: Any) -> bool:
    """Whether the data are standardised numbers, and the scaling is for bytes."""
    return dataset.units is not None and not dataset.is_image and scaling.bins is not None


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
    if not (mode == "eval" or (mode == "train" and options.at_end and not not_evaluated(config, dataset))):
        return
    if dataset.test is None:
        refusals.add(f"{none} to compare samples with", "eval.at_end=false")
    elif len(dataset.test) < 2:
        refusals.add(
            f"the data '{config.data.name}' have one held-out example: two or more are needed to compare samples with",
            "eval.at_end=false",
        )
    name = options.features.name
    if not dataset.is_image and name != "auto":
        refusals.add(f"config.eval.features={name}: features are of images, and these data are none", "features=auto")
    elif dataset.is_image and name == "classifier" and not is_labelled(dataset):
        lacking = "these images" if dataset.train_labels is None else "these held-out images"
        refusals.add(
            f"config.eval.features=classifier: it is trained on labels, and {lacking} have none", "features=auto"
        )
    elif dataset.is_image and name not in ("auto", "classifier"):
        with refusals.collect():
            features(config, dataset)
    elif mode == "eval" and (reason := not_evaluated(config, dataset)):
        refusals.add(reason)
    if not 2 <= evaluated(config, dataset) <= len(dataset.train):
        refusals.add(
            f"config.eval.samples={options.samples}: a number from 2 to {len(dataset.train)} is needed, since as many "
            "training examples are drawn for comparison; 0 takes the size of the training set, at most 1000"
        )


def _check_fit(
    refusals: Refusals, config: Config, dataset: Dataset, prepare: Prepare, trained: Model, objective: Objective
) -> None:
    """Refuse a network that does not fit its data, from shapes and types alone, without computing."""
    try:
        check_shapes(trained, objective, dataset, prepare)
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


def estimators(config: Config, trained: Model, process: Process, scaling: Any) -> dict[str, Any]:
    """The likelihoods that `config.eval.likelihood.name` chooses, by name.

    Raises:
        UsageError: for options out of range, and if a chosen likelihood does not exist under this process.
    """
    options, refusals, found = config.eval.likelihood, Refusals(config), {}
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
