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

from scoregen.app.sampling import Sampling
from scoregen.errors import UsageError
from scoregen.random import check_seed
from scoregen.train import Model, describe, mesh, restore_average
from scoregen.train.log import MetricsLog

if TYPE_CHECKING:
    from scoregen.app.build import Parts
    from scoregen.app.config import Config
    from scoregen.app.judge import Verdict
    from scoregen.data import Dataset
    from scoregen.denoiser import Denoiser
    from scoregen.likelihood import LogLikelihood
    from scoregen.process import Process
    from scoregen.samplers import Sampler


def load(
    folder: str | Path, config: Config | str | None = None, model: Model | None = None, *, best: bool | None = None
) -> Run:
    """The trained run in a folder: of the command `scoregen train`, or of `scoregen.fit` with a workdir.

    The data are not read before something needs them, such as `Run.evaluate`.

    Args:
        folder: the workdir of the run.
        config: for a run of the command line with parts of your own: the preset that brings them ("mine.py"), or the
            whole configuration.
        model: for a run of `fit` with a network, a process or a target of your own: the model that was trained.
        best: whether to take the checkpoint with the best held-out loss instead of the newest; None for the choice of
            the configuration.

    Raises:
        UsageError: if there is no such folder, no run or no readable checkpoint in it, or if it was trained from parts
            that are not given here.

    >>> load("no/such/folder")
    Traceback (most recent call last):
    scoregen.errors.UsageError: no run in no/such/folder: there is no such folder
    """
    workdir = Path(folder).expanduser()
    _check_folder(workdir)
    if config is not None or (workdir / "config.json").is_file():
        if model is not None:
            raise UsageError(
                f"{workdir} is a run of the command line, and its configuration names its model: leave out model="
            )
        parts, known = _from_config(workdir, config)
        best = bool(parts.config.sampler.best) if best is None else best
        return restore(workdir, parts, best=best, data_known=known)
    sampling = _from_description(workdir, model)
    params, step = _restored(workdir, sampling.model, sampling.shape, bool(best))
    return Run(workdir, step, params, sampling)


def restore(
    workdir: Path,
    parts: Parts,
    best: bool = False,
    say: Callable[[str], None] | None = None,
    data_known: bool = True,
) -> Run:
    """The run in a folder that was trained from these parts.

    `data_known` is whether `parts.dataset` holds the data themselves.

    Raises:
        UsageError: if there is no readable checkpoint, or if it is one of another network.
    """
    params, step = _restored(workdir, parts.model, parts.dataset.shape, best, say)
    return Run(workdir, step, params, parts.sampling, parts, data_known=data_known)


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
        """The trained denoiser, under the process of its training and in the network's units; of any class."""
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
            UsageError: if they are not where the run found them, and for a run of `fit`, which keeps no data.
        """
        if self.parts is None:
            raise UsageError(f"{self.workdir} keeps no data: give them, such as run.evaluate(data)")
        if self.data_known:
            return self.parts.dataset
        from scoregen.app.build import data

        return data(self.parts.config)

    def sample(
        self,
        n: int,
        seed: int | None = None,
        label: int | None = None,
        batch: int | None = None,
        process: Process | None = None,
        sampler: Sampler | None = None,
        guidance: float | None = None,
    ) -> np.ndarray:
        """Draw n samples `[n, ...]` in the units of the data: uint8 images or floating-point arrays.

        They are those of the command `scoregen sample`: sample i depends on the seed and on i alone.

        Args:
            n: how many.
            seed: of the draws, 0 <= seed < 2^32; None for the run's own.
            label: the class of all samples; None for classes in turn.
            batch: examples at a time.
            process: the process to sample under, such as `sg.ncsn()`: the part of it that the network knows is used.
            sampler: a `Sampler` in place of the run's own.
            guidance: the scale of classifier-free guidance.

        Raises:
            ValueError: for a number out of range, a process without noise levels in common with the run's, and parts
                that do not go together.
            UsageError: if samples are not finite, because the sampler diverged.
        """
        for name, number in (("n", n), ("batch", 1 if batch is None else batch)):
            if number < 1:
                raise ValueError(f"{name}={number}: at least 1 is needed")
        seed, labels = None if seed is None else check_seed(seed), None
        if label is not None:
            count = self.model.num_classes
            if not 0 <= label < count:
                classes = f"the classes are 0 to {count - 1}" if count else "this network has no classes"
                raise ValueError(f"label={label}: {classes}")
            labels = np.full(1, label, np.int32)
        sampling = self._variant(process, sampler, guidance)
        samples = sampling(self.params, n, seed=seed, labels=labels, batch=batch or sampling.batch_for(n))
        assert samples is not None
        check_finite(samples)
        return self.sampling.to_data(samples)

    def log_likelihood(
        self,
        x: np.ndarray | jax.Array,
        estimate: Callable[..., LogLikelihood] | None = None,
        label: np.ndarray | int | None = None,
        seed: int | None = None,
        batch: int = 64,
    ) -> LogLikelihood:
        """log p(x) of examples `[N, ...]` in the units of the data, in nats: (nats, error, steps), each `[N]`.

        Images of bytes have a probability, points a density. `scoregen.likelihood.bits_per_dim` converts.

        Args:
            x: the examples.
            estimate: how it is computed; None for `ProbabilityFlow` with the bins of the data's scaling.
            label: the class of each example or of all of them, for log p(x | class).
            seed: of the draws; None for the run's own.
            batch: examples at a time.

        Raises:
            ValueError: if x has another shape than the data.
            UsageError: if nothing has a likelihood under this process.
        """
        from scoregen.app.judge import in_batches
        from scoregen.likelihood import ProbabilityFlow

        x = np.asarray(x)
        if x.shape[1:] != self.sampling.shape or not len(x):
            needed = ", ".join(map(str, self.sampling.shape))
            raise ValueError(f"x of shape {list(x.shape)}: examples of shape [N, {needed}] are needed")
        if x.dtype == np.float64 and jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
            x = x.astype(np.float32)
        scaling = self.sampling.scaling
        estimate = estimate or ProbabilityFlow(scaling.bins, scaling.width)
        labels = None if label is None else np.broadcast_to(np.asarray(label, np.int32), (len(x),))
        seed = self.sampling.seed if seed is None else check_seed(seed)
        return in_batches(self.sampling, self.params, estimate, x, labels, seed, batch)

    def evaluate(self, data: Dataset | None = None, samples: int | None = None) -> list[Verdict]:
        """Distances of samples to held-out data, each beside the score of a perfect sampler, as `scoregen eval` gives.

        Args:
            data: the data; None for those of the run's configuration.
            samples: how many are drawn; None for `config.eval.samples`.

        Raises:
            UsageError: if the data are not there, have no held-out part, or are images without labels.
        """
        from scoregen.app.judge import judge

        dataset = self.dataset if data is None else data
        configured = 0 if self.config is None else self.config.eval.samples
        count = samples or configured or min(1000, len(dataset.train))
        drawn = self.sampling(self.params, count)
        assert drawn is not None
        check_finite(drawn)
        return judge(dataset, self.sampling.scaling, drawn)

    def _variant(self, process: Process | None, sampler: Sampler | None, guidance: float | None) -> Sampling:
        """How samples are drawn with these changes; the same object for the same ones, since it is compiled once."""
        changes: dict[str, Any] = {}
        if process is not None:
            changes["process"] = process
        if sampler is not None:
            changes["sampler"] = sampler
        if guidance is not None:
            changes["guidance"] = guidance
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


def check_finite(samples: np.ndarray) -> None:
    """Raises UsageError unless all samples `[N, ...]` are finite."""
    if bad := int((~np.isfinite(samples.reshape(len(samples), -1)).all(1)).sum()):
        raise UsageError(
            f"{bad} of {len(samples)} samples are not finite: the sampler diverged; take smaller steps "
            "(--config.sampler.corrector.langevin.step_size) or train longer"
        )


def no_checkpoint(workdir: Path) -> UsageError:
    """The error for a run that has saved nothing yet."""
    return UsageError(f"no checkpoint in {workdir}: train first, with scoregen train or --mode=train")


def saved(workdir: Path) -> bool:
    """Whether there is a checkpoint in a folder."""
    return any(child.name.isdigit() for child in (workdir / "checkpoints").glob("*"))


def _check_folder(workdir: Path) -> None:
    if not workdir.is_dir():
        kind = "it is a file, and the folder of a run is needed" if workdir.exists() else "there is no such folder"
        near = Path("runs", workdir)
        hint = f": did you mean {near}?" if not workdir.exists() and near.is_dir() else ""
        raise UsageError(f"no run in {workdir}: {kind}{hint}")
    if not any((workdir / name).is_file() for name in ("config.json", describe.FILE)):
        raise UsageError(f"no run in {workdir}: it holds neither a config.json nor a {describe.FILE}")
    if not saved(workdir):
        raise no_checkpoint(workdir)


def _restored(
    workdir: Path, model: Model, shape: tuple[int, ...], best: bool, say: Callable[[str], None] | None = None
) -> tuple[Any, int]:
    """The averaged parameters and the step of a checkpoint."""
    from scoregen.train import Checkpoints

    with Checkpoints(workdir / "checkpoints", say=say) as checkpoints:
        found = restore_average(model, checkpoints, (1, *shape), best=best)
    mesh.check_same(found[1] + 1 if found else 0, "checkpoints")
    if found is None:
        raise no_checkpoint(workdir)
    return found


# A run of the command line


def _from_config(workdir: Path, config: Config | str | None) -> tuple[Parts, bool]:
    """The parts of a run, and whether their data set holds the data themselves."""
    from scoregen.app import config as config_lib
    from scoregen.app.build import build

    if config is None or isinstance(config, str | Path):
        full: Config = config_lib.load(str(workdir / "config.json"), over=str(config or "default"))
    else:
        full = config
    description = describe.read(workdir) if (workdir / describe.FILE).is_file() else None
    if description is None or full.sampler.control.name != "none":
        return build(full, "sample"), True
    stand_in = _stand_in(full, description)
    if not full.labels:
        return build(full, "sample", stand_in), False
    try:  # for the classes, each as often as in the data
        return build(full, "sample"), True
    except UsageError:
        return build(full, "sample", stand_in), False


def _stand_in(config: Config, description: dict[str, Any]) -> Dataset:
    """A data set with the shape and the classes of the data that a run was trained on, and no example of them."""
    from scoregen.data import Dataset

    data = description["data"]
    fields = description["model"].get("fields", {}).get("net", {}).get("fields", {})
    classes = fields.get("num_classes", 0) if config.labels else 0
    empty = np.zeros((max(classes, 1), *data["shape"]), data["dtype"])
    labels = np.arange(classes, dtype=np.int32) if classes else None
    return Dataset(config.data.name, empty, empty, labels, labels)


# A run of `fit`


def _from_description(workdir: Path, model: Model | None) -> Sampling:
    """How a run of `fit` is sampled, from its model.json."""
    from scoregen.samplers import Ancestral, Sampler

    description = describe.read(workdir)
    if description is None:
        raise UsageError(f"no run in {workdir}: it holds no {describe.FILE}")
    if model is None:
        try:
            model = describe.rebuild(description["model"])
        except (ValueError, KeyError, TypeError) as error:
            hint = f'say load("{workdir}", model=...) with the model that was trained'
            raise UsageError(f"{workdir}: {error}: {hint}") from None
        if not isinstance(model, Model):
            raise UsageError(f"{workdir / describe.FILE} describes no model: restore it from a copy")
    else:
        given = json.loads(json.dumps(describe.describe(model)))
        differ = describe.differences({"model": description["model"]}, {"model": given})
        if differ:
            raise UsageError(f"{workdir} was trained with another model ({'; '.join(differ)}): give that one")
    scaling, is_image = _scaling(description)
    classes = model.num_classes
    return Sampling(
        model,
        Sampler(Ancestral()),
        tuple(description["data"]["shape"]),
        scaling,
        model.process,
        is_image=is_image,
        labels=np.arange(classes, dtype=np.int32) if classes else None,
        seed=description["seed"],
    )


def _scaling(description: dict[str, Any]) -> tuple[Any, bool]:
    """The scaling of a run of `fit`, and whether it leads back to bytes.

    Samples stay in the network's units where the run was trained through a preparation of one's own.
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
