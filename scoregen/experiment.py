"""From a configuration to the objects of a run, spelled out. What makes no sense is refused here, before compiling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.config import Config, build, pick
from scoregen.data import SCALINGS, SOURCES, Dataset, random_flip
from scoregen.denoiser import CONDITIONS, TARGETS, Predict, Row, as_process, denoiser
from scoregen.errors import UsageError
from scoregen.losses import LOSSES, Loss
from scoregen.nets import NETS
from scoregen.process import PROCESSES, Chain, rows, split_keys
from scoregen.samplers import CORRECTORS, PREDICTORS, Corrector, Hold, NoCorrector, Predictor

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
    process: Chain
    target: Row
    condition: Callable[[Chain, Array], Array]
    loss: Loss
    net: nn.Module
    walk: Chain
    predictor: Predictor
    corrector: Corrector

    def init(self, key: Array) -> Any:
        """Fresh parameters of the network."""
        return self.net.init(key, jnp.zeros((1, *self.dataset.shape)), jnp.zeros(1))

    def prepare(self, raw: Array, keys: Array) -> Array:
        """A batch of data as the network is trained on it, `[B, ...]`: scaled, and flipped if asked for."""
        scale, flip = split_keys(keys, 2)
        x0 = self.scaling(raw, scale)
        return random_flip(flip, x0) if self.config.data.flip else x0

    def predict(self, params: Any, dropout: Array | None = None) -> Predict:
        """The denoiser under `process`; with a key for dropout it is the one in training."""

        def apply(x: Array, t: Array) -> Array:
            if self.config.net.centered and self.scaling.low == 0.0:
                x = 2 * x - rows(self.process.alpha(t), x)  # 2 x0 - 1, seen through the process
            c = self.condition(self.process, t)
            rngs = {} if dropout is None else {"dropout": dropout}
            return self.net.apply(params, x, c, train=dropout is not None, rngs=rngs)  # pyright: ignore[reportReturnType]

        return denoiser(self.process, self.target, apply)

    def predict_to_sample(self, params: Any) -> Predict:
        """The denoiser under `walk`."""
        predict = self.predict(params)
        return predict if self.walk is self.process else as_process(predict, self.process, self.walk)


def assemble(config: Config) -> Experiment:
    """Build every part that a configuration names.

    Raises:
        UsageError: for parts that do not exist, options that are out of range, data that are not there, and
            combinations that make no sense, each with the reason.
    """
    process = build(PROCESSES, config.process)
    walk = build({"trained": lambda: process, **PROCESSES}, config.sampler.process)
    if walk is not process:
        try:
            walk = walk.within(process)
        except ValueError as error:
            raise UsageError(f"config.sampler.process={config.sampler.process.name}: {error}") from None
    experiment = Experiment(
        config=config,
        process=process,
        target=pick(TARGETS, config.target, "config.target"),
        condition=pick(CONDITIONS, config.net.condition, "config.net.condition"),
        loss=build(LOSSES, config.loss),
        net=build(NETS, config.net),
        walk=walk,
        predictor=build(PREDICTORS, config.sampler.predictor),
        corrector=build(CORRECTORS, config.sampler.corrector),
        scaling=build(SCALINGS, config.scaling),
        # Last, since it may read files, or download them.
        dataset=build(SOURCES, config.data, dir=config.data.dir),
    )
    _refuse_nonsense(experiment)
    return experiment


def _refuse_nonsense(experiment: Experiment) -> None:
    config = experiment.config
    if config.sampler.n > experiment.walk.levels:
        raise UsageError(
            f"config.sampler.n={config.sampler.n}: there are only {experiment.walk.levels} noise levels to walk"
        )
    if isinstance(experiment.predictor, Hold) and isinstance(experiment.corrector, NoCorrector):
        raise UsageError(
            "the predictor 'hold' moves nothing by itself: add --config.sampler.corrector.name=langevin, or take "
            "--config.sampler.predictor.name=ancestral"
        )
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
    if not train.learning_rate > 0:
        raise UsageError(f"config.train.learning_rate={train.learning_rate}: a positive number is needed")
    for name in ("batch", "images"):
        if config.sampler[name] < 1:
            raise UsageError(f"config.sampler.{name}={config.sampler[name]}: at least 1 is needed")
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
        t = jax.ShapeDtypeStruct((2,), jnp.int32)
        jax.eval_shape(lambda p, x, t: experiment.predict(p)(x, t), params, x0, t)
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).strip().partition("\n")[0]  # JAX's own go on for lines
        raise UsageError(f"the network '{config.net.name}' and the data '{config.data.name}': {reason}") from None
