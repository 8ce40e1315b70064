"""From a configuration to the objects of a run, spelled out. What makes no sense is refused here, before compiling."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.config import Config, build, pick
from scoregen.data import SCALINGS, SOURCES, Dataset, random_flip
from scoregen.denoiser import CONDITIONS, TARGETS, Predict, Row, as_energy, as_process, denoiser, input_scale
from scoregen.errors import UsageError
from scoregen.guidance import X0S
from scoregen.losses import LOSSES, WEIGHTINGS, Loss, Weighted
from scoregen.nets import NETS, LogVariance
from scoregen.process import PROCESSES, Process, rows, split_keys
from scoregen.rules import refusal, unsuited
from scoregen.samplers import (
    CORRECTORS,
    GRIDS,
    PREDICTORS,
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
    loss: Loss | Weighted
    net: nn.Module
    walk: Process
    predictor: Predictor
    corrector: Corrector
    grid: Grid
    hold_x0: Callable[[Process, Predict], Predict]

    def init(self, key: Array) -> Any:
        """Fresh parameters: of the network, and of the loss's variance if it is learned."""
        params = {"net": self.net.init(key, jnp.zeros((1, *self.dataset.shape)), jnp.zeros(1), heads=self.heads)}
        if self.config.log_variance:
            params["log_variance"] = LogVariance().init(jax.random.fold_in(key, 1), jnp.zeros(1))
        return params

    @property
    def heads(self) -> int:
        """How many outputs the network has for each input."""
        return 2 if self.config.learned_variance else 1

    def prepare(self, raw: Array, keys: Array) -> Array:
        """A batch of data as the network is trained on it, `[B, ...]`: scaled, and flipped if asked for."""
        scale, flip = split_keys(keys, 2)
        x0 = self.scaling(raw, scale)
        return random_flip(flip, x0) if self.config.data.flip else x0

    def predict(self, params: Any, dropout: Array | None = None) -> Predict:
        """The denoiser under `process`; with a key for dropout it is the one in training."""

        def apply(x: Array, t: Array) -> Array:
            scale = input_scale(self.process, t) if self.config.net.unit_input else None
            if self.config.net.centered and self.scaling.low == 0.0:
                x = 2 * x - rows(self.process.alpha(t), x)  # 2 x0 - 1, seen through the process
                scale = None if scale is None else 0.5 * scale
            if scale is not None:
                x = rows(scale, x) * x
            c = self.condition(self.process, t)
            rngs = {} if dropout is None else {"dropout": dropout}
            train = dropout is not None
            return self.net.apply(params["net"], x, c, train=train, heads=self.heads, rngs=rngs)  # pyright: ignore[reportReturnType]

        predict = denoiser(self.process, self.target, apply, self.config.learned_variance)
        return as_energy(self.process, predict) if self.config.energy else predict

    def settled(self, params: Any, losses: Array, t: Array) -> Array:
        """The losses `[B]` at t, or L / e^u + u if their variance is learned (see `LogVariance`)."""
        if not self.config.log_variance:
            return losses
        u: Any = LogVariance().apply(params["log_variance"], CONDITIONS["logsnr"](self.process, t))
        return losses * jnp.exp(-u) + u

    def predict_to_sample(self, params: Any) -> Predict:
        """The denoiser under `walk`."""
        predict = self.predict(params)
        if self.walk is not self.process:
            predict = as_process(predict, self.process, self.walk)
        return self.hold_x0(self.walk, predict)


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
        loss=loss if by is None else Weighted(loss, by),
        net=build(NETS, config.net),
        walk=walk,
        predictor=build(PREDICTORS, config.sampler.predictor),
        corrector=build(CORRECTORS, config.sampler.corrector),
        grid=build(GRIDS, config.sampler.grid),
        hold_x0=build(X0S, config.sampler.x0, low=scaling.low, high=scaling.high),
        scaling=scaling,
        # Last, since it may read files, or download them.
        dataset=build(SOURCES, config.data, dir=config.data.dir),
    )
    _refuse_nonsense(experiment)
    return experiment


def _refuse_nonsense(experiment: Experiment) -> None:
    config, process, walk = experiment.config, experiment.process, experiment.walk
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
    )
    if reason is not None:
        raise UsageError(reason)
    if config.net.condition == "index" and config.process.name == "edm":
        raise UsageError(
            f"config.net.condition=index: the time of the process '{config.process.name}' is sigma, and no index: say "
            "--config.net.condition=sigma"
        )
    if config.net.unit_input and process.data_std == 0:
        raise UsageError(
            "config.net.unit_input: the variance of x is not known where that of the data is 0: say what it is, "
            f"such as --config.process.{config.process.name}.data_std=0.5"
        )
    step = experiment.predictor
    learned = config.learned_variance and walk is process
    if isinstance(step, Ancestral) and step.variance == "learned" and not learned:
        raise UsageError(
            "config.sampler.predictor.ancestral.variance=learned: the network has learned none for the steps of this "
            "process: take small or large"
        )
    reason = unsuited(walk, step, experiment.corrector, density=config.energy)
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
    if walk.discrete and config.sampler.n > walk.levels:
        raise UsageError(
            f"config.sampler.n={config.sampler.n}: there are only {walk.levels} noise levels to walk: say "
            f"--config.sampler.n=0 for all of them, or 1 to {walk.levels}"
        )
    try:
        experiment.grid(walk, config.sampler.n)
    except ValueError as error:
        raise UsageError(f"config.sampler.grid.{config.sampler.grid.name}: {error}") from None
    train = config.train
    for name in ("steps", "batch", "log_every", "checkpoint_every", "keep"):
        if train[name] < 1:
            raise UsageError(f"config.train.{name}={train[name]}: at least 1 is needed")
    if config.seed < 0:
        raise UsageError(f"config.seed={config.seed} is negative: 0 or more is needed")
    if not 0 <= config.net[config.net.name].get("dropout", 0.0) < 1:
        raise UsageError(f"config.net.{config.net.name}.dropout: 0 up to, but not, 1 is needed")
    if experiment.dataset.is_image and experiment.dataset.train_labels is None and config.eval.at_end:
        raise UsageError(
            "images without labels cannot be judged, since the distance is in the features of a classifier: "
            "say --config.eval.at_end=false"
        )
    for key in ("train.microbatch", "train.warmup", "train.clip", "train.sample_every", "sampler.n"):
        section, name = key.split(".")
        if config[section][name] < 0:
            raise UsageError(f"config.{key}={config[section][name]} is negative: 0 or more is needed")
    if train.microbatch and train.batch % train.microbatch:
        raise UsageError(f"config.train.microbatch={train.microbatch} does not divide the batch of {train.batch}")
    if not 0 <= train.ema < 1:
        raise UsageError(f"config.train.ema={train.ema}: 0 (none) up to, but not, 1 is needed")
    if not 0 < train.learning_rate < math.inf:
        raise UsageError(f"config.train.learning_rate={train.learning_rate}: a positive number is needed")
    for name in ("batch", "images"):
        if config.sampler[name] < 1:
            raise UsageError(f"config.sampler.{name}={config.sampler[name]}: at least 1 is needed")
    for name, least in (("examples", 2), ("batch", 1)):
        if (given := config.eval.likelihood[name]) < least:
            raise UsageError(f"config.eval.likelihood.{name}={given}: at least {least} is needed")
    if not 2 <= config.eval.samples <= len(experiment.dataset.train):
        raise UsageError(
            f"config.eval.samples={config.eval.samples}: 2 to {len(experiment.dataset.train)} are needed, the size of "
            "the training set, from which as many are drawn for comparison"
        )
    # Shapes and types are found out without computing: a network that does not fit its data is refused here.
    raw = jax.ShapeDtypeStruct((2, *experiment.dataset.shape), experiment.dataset.train.dtype)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    try:
        x0 = jax.eval_shape(experiment.prepare, raw, keys)
        params = jax.eval_shape(experiment.init, jax.random.key(0))
        t = jax.eval_shape(lambda k: process.sample_time(k, (2,)), jax.random.key(0))
        jax.eval_shape(lambda p, x, t: experiment.predict(p)(x, t), params, x0, t)
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).strip().partition("\n")[0]  # JAX's own go on for lines
        raise UsageError(f"the network '{config.net.name}' and the data '{config.data.name}': {reason}") from None
