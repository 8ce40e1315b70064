"""From a configuration to the objects of a run, spelled out. What makes no sense is refused here, before compiling."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.averages import AVERAGES, Average
from scoregen.config import Config, build, pick
from scoregen.data import NUMBERS, SCALINGS, SOURCES, Dataset, augment, in_turns, random_flip
from scoregen.denoiser import CONDITIONS, TARGETS, Predict, Row, as_energy, as_process, denoiser, input_scale
from scoregen.errors import UsageError
from scoregen.guidance import CONTROLS, X0S, ClassifierFree, Control
from scoregen.losses import LOSSES, WEIGHTINGS, Loss, Weighted
from scoregen.nets import NETS, LogVariance, RefineNet
from scoregen.process import PROCESSES, Process, rows, split_keys
from scoregen.rules import refusal, unsuited
from scoregen.samplers import (
    CORRECTORS,
    GRIDS,
    MALA,
    PREDICTORS,
    Adaptive,
    Ancestral,
    Corrector,
    Grid,
    Langevin,
    Predictor,
)
from scoregen.times import TIMES, TimeLaw

if TYPE_CHECKING:
    import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All parts of a run. Parameters are passed in, so one object serves training and sampling.

    Attributes:
        process: the one that the network is trained under.
        walk: the one that it is sampled under, the same unless `config.sampler.process` names another.
    """

    config: Config
    dataset: Dataset
    scaling: Any
    process: Process
    target: Row
    condition: Callable[[Process, Array], Array]
    times: TimeLaw
    average: Average
    loss: Loss | Weighted
    net: nn.Module
    walk: Process
    predictor: Predictor
    corrector: Corrector
    grid: Grid
    hold_x0: Callable[[Process, Predict], Predict]
    control: Control | None = None

    def init(self, key: Array) -> Any:
        """Fresh parameters: of the network, and of the loss's variance if it is learned."""
        x, c = jnp.zeros((1, *self.dataset.shape)), jnp.zeros(1)
        params = {"net": self.net.init(key, x, c, heads=self.heads, **self._told(None, 1))}
        if self.config.log_variance:
            params["log_variance"] = LogVariance().init(jax.random.fold_in(key, 1), jnp.zeros(1))
        return params

    @property
    def heads(self) -> int:
        """How many outputs the network has for each input."""
        return 2 if self.config.learned_variance else 1

    @property
    def classes(self) -> int:
        """How many classes the network is told of; 0: it knows no labels."""
        labels = self.dataset.train_labels
        return int(labels.max()) + 1 if self.config.labels and labels is not None else 0

    def _told(self, labels: Array | None, count: int, augment: Array | None = None) -> dict[str, Any]:
        """What the network is told of so many examples: of their classes, and of how they were augmented.

        Without labels, that there is no class; without the numbers, that nothing was done.
        """
        told = {}
        if self.classes:
            none = jnp.full(count, self.classes)
            told |= {"labels": none if labels is None else labels, "classes": self.classes}
        if self.config.data.augment:
            told["augment"] = jnp.zeros((count, NUMBERS)) if augment is None else augment
        return told

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The raw examples `[B, ...]` of a training step, and their labels `[B]` if the network is told of them."""
        which = self.config.seed, step, self.config.train.batch
        labels = self.dataset.train_labels if self.classes else None
        return self.dataset.batch(*which), None if labels is None else labels[self.dataset.indices(*which)]

    def forget(self, labels: Array, keys: Array) -> Array:
        """Labels `[B]`, of which each is dropped with the probability `config.label_dropout` (Ho & Salimans 2022)."""
        gone = jax.vmap(lambda key: jax.random.bernoulli(key, self.config.label_dropout))(keys)
        return jnp.where(gone, self.classes, labels)

    def labels_to_sample(self, index: np.ndarray) -> np.ndarray | None:
        """The classes of these samples, `[B]`: the one asked for, or in turns, each as often as in the data.

        Of images that are completed it is their own class.
        """
        known = self.dataset.train_labels
        if self.control is not None or known is None:
            return self.labels_held_out(index)
        return self._labels(in_turns(known), index)

    def labels_held_out(self, index: np.ndarray) -> np.ndarray | None:
        """The classes of these held-out examples, `[B]`, or the one asked for in their place."""
        return self._labels(self.dataset.test_labels, index)

    def _labels(self, known: np.ndarray | None, index: np.ndarray) -> np.ndarray | None:
        if not self.classes or known is None:
            return None
        asked = self.config.sampler.label
        return known[index % len(known)] if asked < 0 else np.full(len(index), asked, np.int32)

    def held_out(self, index: np.ndarray) -> Array:
        """Held-out examples as the network sees data, `[B, ...]`, from the first again after the last."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.config.seed + 1), index)
        return self.scaling(self.dataset.test[index % len(self.dataset.test)], keys)

    def prepare(self, raw: Array, keys: Array) -> Array:
        """A batch of data as the network is trained on it, `[B, ...]`: scaled, and flipped if asked for."""
        scale, flip = split_keys(keys, 2)
        x0 = self.scaling(raw, scale)
        return random_flip(flip, x0) if self.config.data.flip else x0

    def augmented(self, x0: Array, keys: Array) -> tuple[Array, Array | None]:
        """Scaled examples `[B, ...]`, augmented if `config.data.augment` says so, and the numbers that say how."""
        probability = self.config.data.augment
        return augment(keys, x0, probability) if probability else (x0, None)

    def predict(
        self,
        params: Any,
        dropout: Array | None = None,
        labels: Array | None = None,
        augment: Array | None = None,
    ) -> Predict:
        """The denoiser under `process`, of the classes `labels` `[B]` or of any.

        With a key for dropout it is the one in training, where `augment` `[B, 9]` says how each was augmented.
        """

        def apply(x: Array, t: Array) -> Array:
            scale = input_scale(self.process, t) if self.config.net.unit_input else None
            if self.config.net.centered and self.scaling.low == 0.0:
                x = 2 * x - rows(self.process.alpha(t), x)  # 2 x0 - 1, seen through the process
                scale = None if scale is None else 0.5 * scale
            if scale is not None:
                x = rows(scale, x) * x
            c = self.condition(self.process, t)
            rngs = {} if dropout is None else {"dropout": dropout}
            told = {"train": dropout is not None, "heads": self.heads} | self._told(labels, len(x), augment)
            return self.net.apply(params["net"], x, c, rngs=rngs, **told)  # pyright: ignore[reportReturnType]

        predict = denoiser(self.process, self.target, apply, self.config.learned_variance)
        return as_energy(self.process, predict) if self.config.energy else predict

    def settled(self, params: Any, losses: Array, t: Array) -> Array:
        """The losses `[B]` at t, or L / e^u + u if their variance is learned (see `LogVariance`)."""
        if not self.config.log_variance:
            return losses
        u: Any = LogVariance().apply(params["log_variance"], CONDITIONS["logsnr"](self.process, t))
        return losses * jnp.exp(-u) + u

    def guided(self, unconditional: Predict, predict: Predict | None = None) -> Predict:
        """Guidance away from a denoiser, towards `predict` (itself, if only the evaluations count)."""
        scale = self.config.sampler.guidance
        return ClassifierFree(unconditional, scale)(self.process, predict or unconditional)

    def predict_to_sample(self, params: Any, labels: Array | None = None, clean: Array | None = None) -> Predict:
        """The denoiser under `walk`: of the classes `labels` `[B]`, and of what is measured of `clean` `[B, ...]`."""
        predict = self.predict(params, labels=labels)
        if labels is not None:
            predict = self.guided(self.predict(params), predict)
        if self.walk is not self.process:
            predict = as_process(predict, self.process, self.walk)
        wrappers = [self.hold_x0]
        if self.control is not None and clean is not None:
            # What replaces x0 comes last, so that it stays as it is; a gradient would see nothing through a clip.
            wrappers.insert(self.control.method == "replace", self.control(clean))
        for wrapper in wrappers:
            predict = wrapper(self.walk, predict)
        return predict


def network(config: Config) -> Any:
    """The network of a configuration, told how many noise levels there are."""
    return build(NETS, config.net, levels=build(PROCESSES, config.process).levels)


def assemble(config: Config) -> Experiment:
    """Build every part that a configuration names.

    Raises:
        UsageError: for parts that do not exist, options that are out of range, data that are not there, and
            combinations that make no sense, each with the reason.
    """
    process = build(PROCESSES, config.process)
    name = config.sampler.process.name
    same = name == config.process.name and config.sampler.process[name] == config.process[name]
    walk = process if same else build({"trained": lambda: process, **PROCESSES}, config.sampler.process)
    if walk is not process:
        try:
            walk = walk.within(process)
        except ValueError as error:
            raise UsageError(f"config.sampler.process={name}: {error}") from None
    scaling = build(SCALINGS, config.scaling)
    loss = build(LOSSES, config.loss, bins=scaling.bins, width=scaling.width)
    by = build(WEIGHTINGS, config.weighting)
    experiment = Experiment(
        config=config,
        process=process,
        target=pick(TARGETS, config.target, "config.target"),
        condition=pick(CONDITIONS, config.net.condition, "config.net.condition"),
        times=build(TIMES, config.times),
        average=build(AVERAGES, config.train.ema),
        loss=loss if by is None else Weighted(loss, by),
        net=network(config),
        walk=walk,
        predictor=build(PREDICTORS, config.sampler.predictor),
        corrector=build(CORRECTORS, config.sampler.corrector),
        grid=build(GRIDS, config.sampler.grid),
        hold_x0=build(X0S, config.sampler.x0, low=scaling.low, high=scaling.high),
        control=build(CONTROLS, config.sampler.control),
        scaling=scaling,
        # Last, since it may read files, or download them.
        dataset=build(SOURCES, config.data, dir=config.data.dir),
    )
    _refuse_nonsense(experiment)
    return experiment


def _refuse_nonsense(experiment: Experiment) -> None:
    for refuse in (
        *(_refuse_objective, _refuse_sampler, _refuse_labels, _refuse_augmentation, _refuse_control, _refuse_walk),
        *(_refuse_training, _refuse_evaluation, _refuse_misfit),
    ):
        refuse(experiment)


def _refuse_objective(experiment: Experiment) -> None:
    config, process = experiment.config, experiment.process
    reason = refusal(
        process,
        config.target,
        experiment.loss,
        learned_variance=config.learned_variance,
        log_variance=config.log_variance,
        energy=config.energy,
        times=experiment.times,
        dims=math.prod(experiment.dataset.shape),
        dtype=config.net[config.net.name].get("dtype", "float32"),
        name=config.process.name,
        net=config.net.name,
    )
    if reason is not None:
        raise UsageError(reason)
    if config.net.condition in ("index", "rescaled") and config.process.name == "edm":
        raise UsageError(
            f"config.net.condition={config.net.condition}: the time of the process '{config.process.name}' is sigma, "
            "and no index: say --config.net.condition=sigma"
        )
    if isinstance(experiment.net, RefineNet) and not process.discrete:
        raise UsageError(
            f"the network '{config.net.name}' has constants of its own for each level of a chain, and the process "
            f"'{config.process.name}' has no levels: say --config.net.name=unet"
        )
    told = getattr(experiment.net, "condition", config.net.condition)
    if config.net.condition != told:
        raise UsageError(
            f"config.net.condition={config.net.condition}: the network '{config.net.name}' can be told the noise in "
            f"one way only: say --config.net.condition={told}"
        )
    gives = getattr(experiment.net, "target", config.target)
    if config.target != gives:
        raise UsageError(
            f"config.target={config.target}: the network '{config.net.name}' is divided by sigma and gives the score: "
            f"say --config.target={gives}, or --config.net.name=unet"
        )
    if config.net.unit_input and process.data_std == 0:
        raise UsageError(
            "config.net.unit_input: the variance of x is not known where that of the data is 0: say what it is, "
            f"such as --config.process.{config.process.name}.data_std=0.5"
        )


def _refuse_sampler(experiment: Experiment) -> None:
    config, walk, step = experiment.config, experiment.walk, experiment.predictor
    own = walk is experiment.process
    if isinstance(step, Ancestral) and step.variance == "learned" and not (config.learned_variance and own):
        raise UsageError(
            "config.sampler.predictor.ancestral.variance=learned: the network has learned none for the steps of this "
            "process: take small or large"
        )
    reason = unsuited(walk, step, experiment.corrector, density=config.energy and own)
    if reason is not None:
        raise UsageError(reason)
    if isinstance(experiment.corrector, Langevin):
        least = float(walk.sigma(walk.grid()[-1]))
        if experiment.corrector.step_size >= 2 * least**2:
            raise UsageError(
                f"config.sampler.corrector.langevin.step_size={experiment.corrector.step_size}: where noise dominates, "
                f"steps from 2 sigma^2 on diverge, at the least noisy level {2 * least**2:.3g}: take a tenth of that, "
                f"--config.sampler.corrector.langevin.step_size={0.2 * least**2:.3g}"
            )


def _refuse_walk(experiment: Experiment) -> None:
    config, walk = experiment.config.sampler, experiment.walk
    if config.x0.name != "free" and not experiment.dataset.is_image:
        raise UsageError(
            f"config.sampler.x0.name={config.x0.name}: points have no range that x0 could be held in: say "
            "--config.sampler.x0.name=free"
        )
    if walk.discrete and config.n > walk.levels:
        raise UsageError(
            f"config.sampler.n={config.n}: there are only {walk.levels} noise levels to walk: say "
            f"--config.sampler.n=0 for all of them, or 1 to {walk.levels}"
        )
    for name, least in (("n", 0), ("batch", 1), ("images", 1)):
        _at_least(f"config.sampler.{name}", config[name], least)
    try:
        count = experiment.grid(walk, config.n).shape[0]
    except ValueError as error:
        raise UsageError(f"config.sampler.grid.{config.grid.name}: {error}") from None
    if isinstance(experiment.predictor, Adaptive) and count > 100:
        raise UsageError(
            f"the predictor 'ode' takes steps of its own, and would begin anew at each of {count} levels: say "
            "--config.sampler.n=2, or as many as there are to be pictures of the way"
        )


def _refuse_training(experiment: Experiment) -> None:
    config, train = experiment.config, experiment.config.train
    for name in ("steps", "batch", "log_every", "checkpoint_every", "keep"):
        _at_least(f"config.train.{name}", train[name], 1)
    for name in ("microbatch", "warmup", "decay_from", "clip", "sample_every"):
        _at_least(f"config.train.{name}", train[name], 0)
    _at_least("config.seed", config.seed, 0)
    if not 0 <= config.net[config.net.name].get("dropout", 0.0) < 1:
        raise UsageError(f"config.net.{config.net.name}.dropout: 0 up to, but not, 1 is needed")
    if train.microbatch and train.batch % train.microbatch:
        raise UsageError(f"config.train.microbatch={train.microbatch} does not divide the batch of {train.batch}")
    if not 0 < train.learning_rate < math.inf:
        raise UsageError(f"config.train.learning_rate={train.learning_rate}: a positive number is needed")


def _refuse_evaluation(experiment: Experiment) -> None:
    config, dataset = experiment.config.eval, experiment.dataset
    if dataset.is_image and dataset.train_labels is None and config.at_end:
        raise UsageError(
            "images without labels cannot be judged, since the distance is in the features of a classifier: "
            "say --config.eval.at_end=false"
        )
    for name, least in (("examples", 2), ("batch", 1)):
        _at_least(f"config.eval.likelihood.{name}", config.likelihood[name], least)
    if not 2 <= config.samples <= len(dataset.train):
        raise UsageError(
            f"config.eval.samples={config.samples}: 2 to {len(dataset.train)} are needed, the size of "
            "the training set, from which as many are drawn for comparison"
        )


def _refuse_misfit(experiment: Experiment) -> None:
    """Shapes and types are found out without computing: a network that does not fit its data is refused here."""
    config, dataset = experiment.config, experiment.dataset
    raw = jax.ShapeDtypeStruct((2, *dataset.shape), dataset.train.dtype)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    try:
        x0 = jax.eval_shape(experiment.prepare, raw, keys)
        params = jax.eval_shape(experiment.init, jax.random.key(0))
        t = jax.eval_shape(lambda k: experiment.process.sample_time(k, (2,)), jax.random.key(0))
        jax.eval_shape(lambda p, x, t: experiment.predict(p)(x, t), params, x0, t)
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).strip().partition("\n")[0]  # JAX's own go on for lines
        raise UsageError(f"the network '{config.net.name}' and the data '{config.data.name}': {reason}") from None


def _at_least(what: str, given: float, least: int) -> None:
    if not given >= least:
        raise UsageError(f"{what}={given}: at least {least} is needed")


def _refuse_labels(experiment: Experiment) -> None:
    config, dataset, sampler = experiment.config, experiment.dataset, experiment.config.sampler
    if not math.isfinite(sampler.guidance):
        raise UsageError(f"config.sampler.guidance={sampler.guidance}: a number is needed, 1 for the conditional model")
    if not config.labels:
        for name, default in (("guidance", 1.0), ("label", -1)):
            if sampler[name] != default:
                raise UsageError(
                    f"config.sampler.{name}={sampler[name]}: this network knows no classes: train one that does, with "
                    "--config.labels=true"
                )
        return
    if dataset.train_labels is None or dataset.test_labels is None:
        raise UsageError(f"config.labels: the data '{config.data.name}' have no labels: say --config.labels=false")
    (least, most), (least_held, most_held) = (
        (int(labels.min()), int(labels.max())) for labels in (dataset.train_labels, dataset.test_labels)
    )
    if min(least, least_held) < 0 or most_held > most:
        raise UsageError(
            f"config.labels: classes count from 0, and each needs an example to train on; '{config.data.name}' has "
            f"training labels from {least} to {most}, and held-out ones from {least_held} to {most_held}"
        )
    if not 0 <= config.label_dropout < 1:
        raise UsageError(f"config.label_dropout={config.label_dropout}: 0 up to, but not, 1 is needed")
    if sampler.guidance != 1 and config.label_dropout == 0:
        raise UsageError(
            f"config.sampler.guidance={sampler.guidance}: without config.label_dropout nothing was learned of examples "
            "without a label: train with --config.label_dropout=0.1"
        )
    if not -1 <= sampler.label < experiment.classes:
        raise UsageError(
            f"config.sampler.label={sampler.label}: the classes are 0 to {experiment.classes - 1}, or -1 for all as in "
            "the data"
        )


def _refuse_augmentation(experiment: Experiment) -> None:
    config = experiment.config
    if not 0 <= config.data.augment <= 1:
        raise UsageError(f"config.data.augment={config.data.augment}: a probability, 0 to 1, is needed; 0 is none")
    if not config.data.augment:
        return
    if not experiment.dataset.is_image:
        raise UsageError(
            f"config.data.augment={config.data.augment}: it is for images, and '{config.data.name}' are points: say "
            "--config.data.augment=0"
        )
    if "augment" not in inspect.signature(type(experiment.net).__call__).parameters:
        raise UsageError(
            f"config.data.augment={config.data.augment}: the network '{config.net.name}' cannot be told how an example "
            "was augmented, and would draw such images: say --config.net.name=ncsnpp, or --config.data.augment=0"
        )


def _refuse_control(experiment: Experiment) -> None:
    config, walk, control, shape = experiment.config, experiment.walk, experiment.control, experiment.dataset.shape
    held = config.sampler.x0.name != "free" or control is not None
    if isinstance(experiment.corrector, MALA) and held:
        raise UsageError(
            "the corrector 'mala' needs a density, and estimates of x0 that are clipped or controlled have none: say "
            "--config.sampler.x0.name=free and --config.sampler.control.name=none, or take the corrector langevin"
        )
    if control is None:
        return
    name = config.sampler.control.name
    if not experiment.dataset.is_image:
        raise UsageError(f"config.sampler.control={name}: it is for images, and '{config.data.name}' are points")
    try:
        seen = control.count(shape)
    except ValueError as error:
        raise UsageError(f"config.sampler.control={name}: {error}") from None
    if control.method != "replace" and float(walk.alpha(walk.grid(1))[0]) == 0:
        raise UsageError(
            "at its noisiest level this process has alpha = 0, where x says nothing of what was measured: let it begin "
            f"a little below (--config.process.flow.t_max=0.999), or say --config.sampler.control.{name}.method=replace"
        )
    if control.method == "moments" and seen > control.max_measured:
        raise UsageError(
            f"config.sampler.control.{name}.method=moments takes one derivative for each of the {seen} measured "
            "numbers, so a step would cost about as many times as much: take pigdm, or a larger "
            f"--config.sampler.control.{name}.max_measured"
        )
