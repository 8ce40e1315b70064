"""`load`: a trained run as an object, for Python and for the commands."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from scoregen.app.command import no_checkpoint, saved
from scoregen.app.sampling import Sampling
from scoregen.cond import Cond
from scoregen.errors import Problems, UsageError, check_count, check_finite, check_kind, check_path, what_it_is
from scoregen.process import Process
from scoregen.random import check_seed
from scoregen.samplers import Ancestral, Sampler
from scoregen.train import Model, describe, mesh, restore_average
from scoregen.train.log import MetricsLog

if TYPE_CHECKING:
    from scoregen.app.build import Parts
    from scoregen.app.config import Config
    from scoregen.app.evaluate import Metric
    from scoregen.data import Dataset
    from scoregen.denoiser import Denoiser
    from scoregen.likelihood import LogLikelihood


def load(
    folder: str | Path, config: Config | str | None = None, model: Model | None = None, *, best: bool | None = None
) -> Run:
    """Load the trained run in a folder, from `scoregen train` or from `scoregen.fit` with a workdir.

    The data are only read when something needs them, such as `Run.evaluate`.

    Args:
        folder: the workdir of the run.
        config: needed for a run of the command line with your own parts: the preset that defines them ("mine.py"), or
            the whole configuration.
        model: needed for a run of `fit` with your own network, process or target: the model that was trained.
        best: whether to load the checkpoint with the best held-out loss instead of the newest; None for the choice of
            the configuration.

    Raises:
        UsageError: if the folder does not exist or has no run or no readable checkpoint, if the run has your own parts
            and they are not given here, or if `config` or `model` does not belong to the run.
        TypeError: if `folder` is not a path, `best` not a bool, or `model` not a `Model`.

    >>> load("no/such/folder")
    Traceback (most recent call last):
    scoregen.errors.UsageError: no run in no/such/folder: there is no such folder
    """
    if best is not None:
        check_kind("best", best, bool, "best=True")
    workdir = check_path("folder", folder, "runs/ddpm_toy")
    by_command = _check_folder(workdir)
    if by_command and model is not None:
        raise UsageError(
            f"{workdir} is a run of the command line, and its configuration names its model: leave out model="
        )
    if not by_command and config is not None:
        raise UsageError(f"{workdir} is a run of scoregen.fit and has no configuration: leave out config=")
    if not by_command:
        return restore(workdir, _from_description(workdir, model), best=bool(best))
    parts, known = _from_config(workdir, config)
    best = bool(parts.config.sampler.best) if best is None else best
    return restore(workdir, parts.sampling, parts, best, data_known=known)


def restore(
    workdir: Path,
    sampling: Sampling,
    parts: Parts | None = None,
    best: bool = False,
    say: Callable[[str], None] | None = None,
    data_known: bool = True,
) -> Run:
    """The run in a folder, with the averaged parameters of its newest or its best checkpoint.

    `data_known` says whether `parts.dataset` holds the real data.

    Raises:
        UsageError: if there is no readable checkpoint, or if it belongs to another network.
    """
    from scoregen.train import Checkpoints

    with Checkpoints(workdir / "checkpoints", say=say) as checkpoints:
        found = restore_average(sampling.model, checkpoints, (1, *sampling.shape), best=best)
    mesh.check_same(found[1] + 1 if found else 0, "checkpoints")
    if found is None:
        raise no_checkpoint(workdir)
    return Run(workdir, found[1], found[0], sampling, parts, data_known=data_known)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained run, see `load`.

    Attributes:
        workdir: its folder.
        step: the number of training steps of the checkpoint.
        params: the averaged parameters (EMA).
        sampling: how samples are drawn.
        parts: all parts of a run of the command line; None for a run of `fit`.
    """

    workdir: Path
    step: int
    params: Any = dataclasses.field(repr=False)
    sampling: Sampling = dataclasses.field(repr=False)
    parts: Parts | None = dataclasses.field(default=None, repr=False)
    data_known: bool = dataclasses.field(default=True, repr=False)

    @property
    def model(self) -> Model:
        """The model."""
        return self.sampling.model

    @property
    def denoiser(self) -> Denoiser:
        """The trained denoiser without a class, under the process of the training and in the network's units."""
        return self.model.denoiser(self.params)

    @property
    def config(self) -> Config | None:
        """The configuration of a run of the command line; None for a run of `fit`."""
        return None if self.parts is None else self.parts.config

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, such as {"step": 50, "loss": 0.9, ...}."""
        return MetricsLog.read(self.workdir)

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The data of a run of the command line, read when they are needed.

        Raises:
            UsageError: if the data are no longer in their place, and for a run of `fit`, which stores no data.
        """
        if self.parts is None:
            raise UsageError(f"{self.workdir} stores no data: pass the data, such as run.evaluate(data)")
        if self.data_known:
            return self.parts.dataset
        from scoregen.app.build import data

        found, description = data(self.parts.config), describe.read(self.workdir)
        return found if description is None else describe.as_trained(found, description["data"])

    def sample(
        self,
        n: int,
        seed: int | None = None,
        label: int | None = None,
        context: Any = None,
        batch: int | None = None,
        process: Process | None = None,
        sampler: Sampler | None = None,
        guidance: float | None = None,
    ) -> np.ndarray:
        """Draw n samples `[n, ...]` in the units, the type and the shape of the data.

        They equal the samples of the command `scoregen sample`. Sample i depends only on the seed and on i.

        Args:
            n: the number of samples.
            seed: the random seed, 0 <= seed < 2^32; None for the seed of the run.
            label: the class of all samples; None for all classes in turn.
            context: the context of all samples `[K]`, or one for each `[n, K]`, in the units of the data. None for
                those of training examples in turn, or for no context if the data are not there.
            batch: the batch size.
            process: the process of the sampling, such as `sg.ncsn()`, cut to the noise range of the training.
            sampler: a `Sampler`; None for the sampler of the run.
            guidance: the scale of classifier-free guidance.

        Raises:
            ValueError: for a number out of range, a process that shares no noise levels with the run's process, and
                parts that cannot be combined.
            TypeError: for one argument of another type. Several problems give one ValueError that lists all of them.
            UsageError: if samples are not finite, because the sampler diverged.
        """
        problems = Problems()
        problems.attempt(check_count, "n", n)
        if batch is not None:
            problems.attempt(check_count, "batch", batch)
        if seed is not None:
            seed = problems.attempt(check_seed, seed)
        cond = problems.attempt(self._cond, label, context, n)
        if process is not None:
            problems.attempt(check_kind, "process", process, Process, "sg.ncsn()")
        if sampler is not None:
            problems.attempt(check_kind, "sampler", sampler, Sampler, "sg.Sampler(sg.Ancestral(), n=100)")
        if guidance is not None:
            problems.attempt(self._check_guidance, guidance)
        problems.check()
        sampling = self._variant(process, sampler, guidance)
        samples = sampling(self.params, n, seed=seed, cond=cond, batch=batch or sampling.batch_for(n))
        assert samples is not None
        check_samples(samples)
        return self.sampling.to_data(samples)

    def log_likelihood(
        self,
        x: np.ndarray | jax.Array,
        estimate: Callable[..., LogLikelihood] | None = None,
        label: np.ndarray | int | None = None,
        context: Any = None,
        seed: int | None = None,
        batch: int = 64,
    ) -> LogLikelihood:
        """log p(x) of examples `[N, ...]` in the units of the data, in nats: (nats, error, steps), each `[N]`.

        Images of bytes have a probability, points a density. `scoregen.likelihood.bits_per_dim` converts.

        Args:
            x: the examples.
            estimate: the method; None for `ProbabilityFlow` with the bins of the data's scaling.
            label: the class of each example or one class for all, for log p(x | class).
            context: the context of each example `[N, K]` or one for all `[K]`, in the units of the data, for
                log p(x | context).
            seed: the random seed; None for the seed of the run.
            batch: the batch size.

        Raises:
            ValueError: if x is not finite or has another shape or type than the data, for an unknown class, and for a
                number out of range.
            TypeError: for one argument of another type. Several problems give one ValueError that lists all of them.
            UsageError: if the likelihood does not exist under this process.
        """
        from scoregen.app.evaluate import in_batches
        from scoregen.likelihood import ProbabilityFlow

        problems, scaling = Problems(), self.sampling.scaling
        examples: Any = problems.attempt(self._examples, x)
        count = 1 if examples is None else len(examples)
        cond = problems.attempt(self._cond_of_examples, label, context, count)
        of: Any = self.sampling.seed if seed is None else problems.attempt(check_seed, seed)
        problems.attempt(check_count, "batch", batch)
        if isinstance(estimate, type) or not (estimate is None or callable(estimate)):
            problems.errors.append(
                TypeError(f"estimate={what_it_is(estimate)}: a likelihood is needed, such as sg.Bound()")
            )
        problems.check()
        assert examples is not None
        estimate = estimate or ProbabilityFlow(scaling.bins, scaling.width)
        return in_batches(self.sampling, self.params, estimate, examples, cond, of, batch)

    def evaluate(self, data: Dataset | None = None, samples: int | None = None) -> list[Metric]:
        """Distances of samples to held-out data, as in `scoregen eval`, each with the value of a perfect sampler.

        Args:
            data: the data, with a held-out part; None for the data of the run's configuration.
            samples: the number of samples; None for `config.eval.samples`.

        Raises:
            ValueError: for data of another shape than the run's, or for a number of samples that is out of range.
            TypeError: if `samples` is not an integer.
            UsageError: if the data are missing, have no held-out part, or are images without features to compare them
                by; if samples are not finite, or if a distance cannot be computed.
        """
        from scoregen.app.build import features
        from scoregen.app.evaluate import check_held_out, evaluate
        from scoregen.data import as_dataset

        dataset, units = self.dataset if data is None else as_dataset(data), self.sampling.units
        wanted = self.sampling.shape if units is None else units.shape
        if dataset.train.shape[1:] != wanted:
            raise ValueError(f"data of shape {_shape(dataset.train.shape[1:])}: {_shape(wanted)} is needed")
        if dataset.units != units:  # the distances are those of the run's own units
            dataset = dataclasses.replace(dataset, units=units)
        check_held_out(dataset)
        configured = 0 if self.config is None else self.config.eval.samples
        count = configured or min(1000, len(dataset.train)) if samples is None else check_count("samples", samples, 2)
        cond = self.sampling.cond
        if self.model.context_dim and dataset.train_context is not None:
            raw, own = dataset.train_context, dataset.context_units
            contexts: Any = raw if own is None else self._contexts(own.decode(raw), len(raw))
            cond = Cond(label=None if cond is None else cond.label, context=contexts)
        self._check_trained_without((cond or Cond()).label, (cond or Cond()).context)
        drawn = self.sampling(self.params, count, cond=cond)
        assert drawn is not None
        check_samples(drawn)
        chosen = None if self.config is None or not dataset.is_image else features(self.config, dataset)
        return evaluate(dataset, self.sampling.scaling, drawn, features=chosen)

    def _check_guidance(self, guidance: Any) -> None:
        check_finite(guidance=guidance)
        if not (self.model.num_classes or self.model.context_dim):
            raise ValueError(f"guidance={guidance}: this network has no classes and no context")

    def _cond(self, label: Any, context: Any, count: int) -> Cond | None:
        """The classes and contexts that are given, and for those that are not, those of the run."""
        own = self.sampling.cond or Cond()
        label = own.label if label is None else self._labels(label, count)
        context = own.context if context is None else self._contexts(context, count)
        self._check_trained_without(label, context)
        return None if label is None and context is None else Cond(label=label, context=context)  # pyright: ignore

    def _cond_of_examples(self, label: Any, context: Any, count: int) -> Cond | None:
        """The classes and contexts of `count` examples as they are given; both, if the network has both."""
        both = self.model.num_classes and self.model.context_dim
        if both and (label is None) != (context is None):
            raise ValueError("this network has classes and a context: give label and context, or neither")
        label = None if label is None else self._labels(label, count)
        if context is not None:
            context = np.broadcast_to(self._contexts(context, count), (count, self.model.context_dim))
        self._check_trained_without(label, context)
        return None if label is None and context is None else Cond(label=label, context=context)  # pyright: ignore

    def _check_trained_without(self, label: Any, context: Any) -> None:
        """Refuses to evaluate a network without its class or context if it was never trained without them."""
        missing = [
            name
            for name, size, given in (
                ("label", self.model.num_classes, label),
                ("context", self.model.context_dim, context),
            )
            if size and given is None
        ]
        if missing and self._label_dropout() == 0:
            raise ValueError(
                f"this network was never trained without a {missing[0]} (label_dropout=0): give {' and '.join(missing)}"
            )

    def _label_dropout(self) -> float:
        if self.config is not None:
            return self.config.label_dropout
        fields = (describe.read(self.workdir) or {}).get("objective", {}).get("fields", {})
        return fields.get("label_dropout", 1.0)

    def _contexts(self, context: Any, count: int) -> np.ndarray:
        """Contexts in the network's units, `[1, K]` or `[count, K]`."""
        length, given = self.model.context_dim, np.asarray(context)
        if not length:
            raise ValueError(f"context={context!r}: this network has no context")
        if given.dtype.kind not in "buif" or given.shape not in ((length,), (count, length)):
            raise ValueError(
                f"context of shape {list(given.shape)}: {length} numbers are needed, or {length} for each example"
            )
        given = given.reshape(-1, length).astype(np.float64)
        if not np.isfinite(given).all():
            raise ValueError("context: finite numbers are needed")
        units = self.sampling.context_units
        return given.astype(np.float32) if units is None else units.encode(given)

    def _labels(self, label: Any, count: int) -> np.ndarray:
        """The classes of `count` examples, one for all of them or one for each."""
        labels, classes = np.asarray(label), self.model.num_classes
        if labels.dtype.kind not in "iu" or labels.shape not in ((), (count,)):
            raise ValueError(f"label={label!r}: an integer is needed, or one for each of the examples")
        if not classes:
            raise ValueError(f"label={label}: this network has no classes")
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"label={label}: the classes are 0 to {classes - 1}")
        return np.broadcast_to(labels.astype(np.int32), (count,))

    def _examples(self, x: Any) -> np.ndarray:
        """Examples `[N, ...]` in the units of the data, as they are trained on."""
        x, units = np.asarray(x), self.sampling.units
        if units is not None:
            if x.shape[1:] != units.shape or not len(x) or x.dtype.kind not in "buif":
                raise ValueError(
                    f"x of shape {list(x.shape)} and type {x.dtype}: numbers of shape {_shape(units.shape)} are needed"
                )
            if self.sampling.is_image and x.dtype != np.uint8:
                raise ValueError(f"x of type {x.dtype}: images of uint8 are needed, as the network was trained on")
            _check_finite(x)
            return units.encode(x)
        if x.shape[1:] != self.sampling.shape or not len(x):
            raise ValueError(f"x of shape {list(x.shape)}: examples of shape {_shape(self.sampling.shape)} are needed")
        if self.sampling.is_image:
            if x.dtype != np.uint8:
                raise ValueError(f"x of type {x.dtype}: images of uint8 are needed, as the network was trained on")
            return x
        if not jax.numpy.issubdtype(x.dtype, np.floating):
            raise ValueError(f"x of type {x.dtype}: floating-point numbers are needed, as the network was trained on")
        _check_finite(x)
        return x.astype(jax.dtypes.canonicalize_dtype(x.dtype))

    def _variant(self, process: Process | None, sampler: Sampler | None, guidance: float | None) -> Sampling:
        """The sampling with these changes. The same changes give the same object, so that it is compiled only once."""
        given = {"process": process, "sampler": sampler, "guidance": guidance}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if not changes:
            return self.sampling
        for known, variant in self._variants:
            if known.keys() == changes.keys() and all(_same(known[name], value) for name, value in changes.items()):
                return variant
        made = changes if process is None else changes | {"process": process.within(self.model.process)}
        self._variants.append((changes, dataclasses.replace(self.sampling, **made)))
        return self._variants[-1][1]

    @functools.cached_property
    def _variants(self) -> list[tuple[dict[str, Any], Sampling]]:
        return []


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return type(one) is type(other) and bool(one == other)
    except (TypeError, ValueError):  # arrays have no single truth value
        return False


def _check_finite(x: np.ndarray) -> None:
    if bad := int((~np.isfinite(x.reshape(len(x), -1)).all(1)).sum()):
        raise ValueError(f"x has {bad} of {len(x)} examples with NaN or infinite values: drop or fix them")


def _shape(shape: tuple[int, ...]) -> str:
    return f"[N, {', '.join(map(str, shape))}]"


def check_samples(samples: np.ndarray, smaller: str = "smaller steps") -> None:
    """Raises UsageError unless all samples `[N, ...]` are finite; `smaller` is the change to suggest."""
    if bad := int((~np.isfinite(samples.reshape(len(samples), -1)).all(1)).sum()):
        raise UsageError(
            f"{bad} of {len(samples)} samples are not finite: the sampler diverged; use {smaller} or train longer"
        )


def _check_folder(workdir: Path) -> bool:
    """True for a run of the command line, False for a run of `fit`; UsageError if the folder holds no run."""
    if not workdir.is_dir():
        kind = "it is a file, but the folder of a run is needed" if workdir.exists() else "there is no such folder"
        near = Path("runs", workdir)
        hint = f": did you mean {near}?" if not workdir.exists() and near.is_dir() else ""
        raise UsageError(f"no run in {workdir}: {kind}{hint}")
    if not any((workdir / name).is_file() for name in ("config.json", describe.FILE)):
        raise UsageError(f"no run in {workdir}: it holds neither a config.json nor a {describe.FILE}")
    if not saved(workdir):
        raise no_checkpoint(workdir)
    return (workdir / "config.json").is_file()


# A run of the command line


def _from_config(workdir: Path, config: Config | str | None) -> tuple[Parts, bool]:
    """The parts of a run, and whether their data set holds the real data."""
    from scoregen.app import config as config_lib
    from scoregen.app.build import build

    full: Any = config
    if config is None or isinstance(config, str | Path):
        full = config_lib.load(str(workdir / "config.json"), over=str(config or "default"))
    elif not isinstance(config, ConfigDict):
        raise UsageError(f"config={config!r}: a preset's name, the path of its file or a configuration is needed")
    description = describe.read(workdir)
    if description is None:
        return build(full, "sample"), True
    summary = description["data"]
    if full.sampler.control.name != "none":
        return build(full, "sample", summary=summary), True
    stand_in = describe.stand_in(summary, full.data.name)
    if not full.labels and not stand_in.context_dim:
        return build(full, "sample", stand_in), False
    try:  # with the real data, to draw each class in its proportion, and contexts of the data
        return build(full, "sample", summary=summary), True
    except UsageError:
        parts = build(full, "sample", stand_in)
    if stand_in.context_dim and not full.sampler.context:  # the contexts of a stand-in are no contexts of the data
        cond = parts.sampling.cond
        cond = None if cond is None or cond.label is None else cond._replace(context=None)
        parts = dataclasses.replace(parts, sampling=dataclasses.replace(parts.sampling, cond=cond))
    return parts, False


# A run of `fit`


def _from_description(workdir: Path, model: Model | None) -> Sampling:
    """The sampling for a run of `fit`, from its model.json."""
    description = describe.read(workdir)
    assert description is not None
    if model is None:
        try:
            model = describe.rebuild(description["model"])
        except (ValueError, TypeError) as error:
            hint = f'say load("{workdir}", model=...) with the model that was trained'
            raise UsageError(f"{workdir}: {error}: {hint}") from None
        if not isinstance(model, Model):
            raise UsageError(f"{workdir / describe.FILE} describes no model: restore it from a copy")
    else:
        check_kind("model", model, Model, "sg.Model(sg.ddpm(), net), the one that was trained")
        given = json.loads(json.dumps(describe.describe(model)))
        differ = describe.differences({"model": description["model"]}, {"model": given})
        if differ:
            raise UsageError(f"{workdir} was trained with another model ({'; '.join(differ)}): give that one")
    scaling, is_image = _scaling(description)
    classes = model.num_classes
    known = describe.stand_in(description["data"], "data")
    return Sampling(
        model,
        Sampler(Ancestral()),
        tuple(description["data"]["shape"]),
        scaling,
        model.process,
        is_image=is_image,
        units=known.units,
        context_units=known.context_units,
        cond=Cond(label=np.arange(classes, dtype=np.int32)) if classes else None,  # pyright: ignore
        seed=description["seed"],
    )


def _scaling(description: dict[str, Any]) -> tuple[Any, bool]:
    """The scaling of a run of `fit`, and whether its inverse gives bytes.

    If the run was trained with a user's own `prepare`, samples stay in the network's units.
    """
    from scoregen.data import Identity, Prepare

    is_image = description["data"]["dtype"] == "uint8"
    try:
        prepare = describe.rebuild(description["prepare"])
    except ValueError:
        prepare = None
    if isinstance(prepare, Prepare) and hasattr(prepare.scaling, "to_bytes"):
        return prepare.scaling, is_image
    return Identity(), False
