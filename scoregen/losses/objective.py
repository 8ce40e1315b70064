"""The training objective: a loss, a weighting that may replace its own, and the law of times, in one object."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Denoiser, Target, refuse_target
from scoregen.errors import Refusal, check_fraction
from scoregen.losses.bound import refuse_step_variance
from scoregen.losses.matching import FunctionLoss, Loss, loss_name, refuse_dims
from scoregen.losses.weightings import Weighted, Weighting, refuse_weighting
from scoregen.process import Noised, Process, perturb
from scoregen.random import broadcast, example_keys, split_keys
from scoregen.times import Drawn, Own, TimeLaw


class Trainable(Protocol):
    """The part of a `scoregen.train.Model` that an objective uses."""

    @property
    def process(self) -> Process: ...
    @property
    def net(self) -> Any: ...
    @property
    def target(self) -> str | Target: ...
    @property
    def learned_variance(self) -> bool: ...
    @property
    def log_variance(self) -> bool: ...
    def denoiser(self, params: Any, cond: Any = None, train_key: Array | None = None) -> Denoiser: ...
    def uncertainty_weight(self, params: Any, losses: Array, t: Array) -> Array: ...


class Terms(NamedTuple):
    """The result of an objective for a batch.

    Attributes:
        terms: the numbers that training averages, `[B]`: the losses, with the uncertainty weight if the model has
            `log_variance`, times the importance ratio of the law of times where it applies.
        losses: the losses without these two factors, `[B]`, but with the weighting; the law of times may learn from
            them.
        drawn: the times that were drawn.
    """

    terms: Array
    losses: Array
    drawn: Drawn


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss, a weighting that may replace its own, and the law that training times are drawn from.

    Called with a model, its parameters and clean data, it draws a time for each example, noises the data, and returns
    the loss of each example, `[B]`; training minimises their mean. The losses are multiplied by the law's importance
    ratio p_own / q if the law is importance sampling, or if the loss is an average over times by definition
    (`Loss.average_over_time`).

    Attributes:
        loss: a `Loss`, or a plain function (denoiser, noised, key) -> `[B]`.
        weighting: (process, t) -> `[B]`, see `scoregen.losses.weightings`; None for the loss's own weight.
        times: the law of times.
        label_dropout: the probability with which the label and the context of an example are replaced, both together,
            by "no class" (the label `model.net.num_classes`) and "no context" (a row of NaN), for classifier-free
            guidance (Ho & Salimans 2022).

    Raises:
        TypeError: if the loss, the weighting or the law of times has the wrong type.
        ValueError: unless 0 <= label_dropout < 1; when it is called, if parts cannot be combined (see `refuse`).

    >>> from scoregen.losses import EpsilonMSE
    >>> from scoregen.testing.oracle import TWO_MODES
    >>> from scoregen.process import ddpm
    >>> class Exact:  # in place of a `scoregen.train.Model`
    ...     process, target, net, learned_variance, log_variance = ddpm(), "eps", None, False, False
    ...
    ...     def denoiser(self, params, cond=None, train_key=None):
    ...         return TWO_MODES.denoiser(self.process)
    ...
    ...     def uncertainty_weight(self, params, losses, t):
    ...         return losses
    >>> x0 = TWO_MODES.sample(jax.random.key(0), 64)
    >>> Objective(EpsilonMSE())(Exact(), {}, jax.random.key(1), x0).shape
    (64,)
    """

    loss: Loss | Callable[[Denoiser, Noised, Array], Array]
    weighting: Weighting | None = None
    times: TimeLaw = Own()
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.loss, type) or not callable(self.loss):
            hint = f"{self.loss.__name__}()" if isinstance(self.loss, type) else "EpsilonMSE()"
            raise TypeError(
                f"loss={self.loss!r}: a loss is needed, such as {hint}, or a function of (denoiser, noised, key)"
            )
        if isinstance(self.weighting, type) or not (self.weighting is None or callable(self.weighting)):
            hint = f"{self.weighting.__name__}()" if isinstance(self.weighting, type) else "MinSNR()"
            raise TypeError(f"weighting={self.weighting!r}: a weighting is needed, such as {hint}, or None")
        if not isinstance(self.times, TimeLaw):
            hint = f"{self.times.__name__}()" if isinstance(self.times, type) else "Uniform()"
            raise TypeError(f"times={self.times!r}: a law of times is needed, such as {hint}")
        check_fraction(label_dropout=self.label_dropout)
        loss, by = self.loss, self.weighting
        if isinstance(loss, Weighted):
            loss, by = loss.loss, loss.by if by is None else by
        elif not isinstance(loss, Loss):
            loss = FunctionLoss(loss)
        object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "weighting", by)

    def init(self, process: Process) -> Any:
        """The state of the law of times before training, a pytree."""
        return self.times.init(process)

    def update(self, state: Any, drawn: Drawn, losses: Array) -> Any:
        """The next state of the law of times, from `Terms.drawn` and `Terms.losses`."""
        return self.times.update(state, drawn, losses)

    def __call__(
        self,
        model: Trainable,
        params: Any,
        key: Array,
        x0: Array,
        cond: Any = None,
        *,
        train_key: Array | None = None,
        state: Any = None,
    ) -> Array:
        """The term of each example, `[B]`; training minimises their mean. For arguments and errors see `evaluate`."""
        return self.evaluate(model, params, key, x0, cond, train_key=train_key, state=state).terms

    def evaluate(
        self,
        model: Trainable,
        params: Any,
        key: Array,
        x0: Array,
        cond: Any = None,
        *,
        train_key: Array | None = None,
        state: Any = None,
    ) -> Terms:
        """The terms, with the losses and the times that they come from.

        Args:
            model: a `scoregen.train.Model`.
            params: its parameters.
            key: one key, or one for each example `[B]`. Example i depends on its own key alone.
            x0: clean data `[B, ...]`.
            cond: a `scoregen.cond.Cond` of labels and the like, each `[B, ...]`, or None.
            train_key: a key for dropout; without it the network is evaluated as for sampling.
            state: the state of the law of times, see `init`; None for its first state.

        Raises:
            TypeError: if `key` is not a random key, or x0 not an array of floating-point numbers.
            ValueError: if parts cannot be combined (see `refuse`), with the first reason; for a wrong number of keys;
                unless the loss gives one number for each example.
        """
        x0 = jnp.asarray(x0)
        refused = self.refuse(model, x0[0].size if x0.ndim else None)
        if refused:
            raise ValueError(str(refused[0]))
        loss, process = self._loss(), model.process
        times, noise, inner, drop = split_keys(example_keys(key, len(x0)), 4)
        drawn = self.times.draw(process, self.init(process) if state is None else state, times, len(x0))
        noised = perturb(process, noise, x0, drawn.t)
        denoiser = model.denoiser(params, self._drop(model, drop, cond), train_key)
        losses = loss(denoiser, noised, inner)
        if losses.shape != x0.shape[:1]:
            raise ValueError(
                f"the loss gives {list(losses.shape)} for {len(x0)} examples: one number for each is needed, the sum "
                "or the mean over all axes but the first"
            )
        terms = model.uncertainty_weight(params, losses, drawn.t)
        if self.times.importance or self._bare.average_over_time:
            terms = broadcast(drawn.ratio, terms) * terms
        return Terms(terms, losses, drawn)

    def refuse(self, model: Trainable, dims: int | None = None) -> list[Refusal]:
        """Every reason why this objective cannot train the model; an empty list if it can.

        Reasons that concern the model alone come from its own `refuse`; the target is checked here as well.

        Args:
            model: a `scoregen.train.Model`.
            dims: the number of dimensions of an example, if it is known.
        """
        process, loss = model.process, self._bare
        found = [refuse_target(process, model.target), loss.refuse(process)]
        if self.weighting is not None:
            found.append(refuse_weighting(loss, self.weighting, process))
        if dims is not None:
            found.append(refuse_dims(loss, dims))
        found += [_refuse_precision(loss, model), *_refuse_variance(loss, model)]
        if model.log_variance and not loss.positive:
            found.append(
                Refusal(
                    "the loss may be negative, so a learned variance could make it smaller without end",
                    ("loss=eps", "loss=x0", "loss=flow", "loss=dsm", "model.log_variance=false"),
                )
            )
        if self.label_dropout and not any(_inputs(model)):
            found.append(
                Refusal(
                    "the network has no label or context to drop, since its num_classes is 0 and its context_dim is 0",
                    ("label_dropout=0",),
                )
            )
        return list(dict.fromkeys(refusal for refusal in found if refusal is not None))

    @property
    def _bare(self) -> Loss:
        """The loss without the weighting."""
        assert isinstance(self.loss, Loss)  # see __post_init__
        return self.loss

    def _loss(self) -> Loss:
        return self._bare if self.weighting is None else Weighted(self._bare, self.weighting)

    def _drop(self, model: Trainable, keys: Array, cond: Any) -> Any:
        """`cond` in which each example has lost its label and its context with the probability `label_dropout`."""
        if not self.label_dropout or cond is None:
            return cond
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, self.label_dropout))(keys)
        classes, context_dim = _inputs(model)
        if classes and cond.label is not None:
            cond = cond._replace(label=jnp.where(dropped, classes, cond.label))
        if context_dim and cond.context is not None:
            cond = cond._replace(context=jnp.where(dropped[:, None], jnp.nan, cond.context))
        return cond


def _inputs(model: Trainable) -> tuple[int, int]:
    """The numbers of classes and of context numbers that the network takes; 0 for none, also without the field."""
    return getattr(model.net, "num_classes", 0), getattr(model.net, "context_dim", 0)


def _refuse_precision(loss: Loss, model: Trainable) -> Refusal | None:
    dtype = getattr(model.net, "dtype", None)
    if not loss.needs_float32 or dtype is None or jnp.dtype(dtype).itemsize >= 4:
        return None
    return Refusal(
        f"the loss {loss_name(loss)} takes the difference of two outputs that are nearly equal, which "
        f"{jnp.dtype(dtype).name} rounds away",
        ("net.dtype=float32", "loss=ssm"),
    )


def _refuse_variance(loss: Loss, model: Trainable) -> list[Refusal | None]:
    """Refusals if only one of the two, network and loss, has a variance of a step."""
    found: list[Refusal | None] = []
    if model.learned_variance:
        found.append(refuse_step_variance(model.process))
        if not loss.trains_variance:
            learned = ("loss.variance=learned",) if hasattr(loss, "variance") else ("loss=hybrid",)
            found.append(
                Refusal(
                    "no loss would train the variance of a step that the network gives",
                    (*learned, "model.learned_variance=false"),
                )
            )
    elif loss.trains_variance:
        fixes = ("model.learned_variance=true", "loss=eps")
        found.append(
            Refusal(f"the loss {loss_name(loss)} trains the variance of a step, and the network gives none", fixes)
        )
    return found
