"""The commands that work on a run: train, sample, eval, trajectory, likelihood."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.console import Console

from scoregen.app import api, report
from scoregen.app import config as config_lib
from scoregen.app.build import Parts, build
from scoregen.app.command import say
from scoregen.app.config import Config
from scoregen.app.judge import judge, likelihoods
from scoregen.app.signals import Signals, leave
from scoregen.errors import UsageError
from scoregen.files import check_writable, whole
from scoregen.samplers import START_TOLERANCE, StartWarning, start_gap
from scoregen.train import Bar, fit, mesh

if TYPE_CHECKING:
    from scoregen.process import Process
    from scoregen.train import State


def perform(
    mode: str,
    config: Config,
    workdir: Path,
    console: Console,
    again: str,
    *,
    out: Path | None = None,
    coordinator: str = "",
    process: int | None = None,
    processes: int | None = None,
) -> int:
    """Perform a command and return its exit code.

    Args:
        mode: one of `config.MODES`.
        config: the configuration.
        workdir: the folder of the run.
        console: for the output.
        again: the command line to repeat after an interruption.
        out: the folder for the results, if not the workdir.
        coordinator, process, processes: how several processes find each other, see `mesh.start`.

    Raises:
        UsageError: for whatever the user can fix.
    """
    if coordinator and not process:
        say(console, f"joining the other processes, as --coordinator={coordinator} says")
    _join(coordinator, process, processes)
    several, console.quiet = mesh.processes() > 1, not mesh.first()
    if mode != "train" and not api.saved(workdir):
        raise api.no_checkpoint(workdir)
    parts = build(config, mode)
    agree(config, workdir, mode)
    if several:
        _refuse_unshared(workdir)
    warnings.simplefilter("ignore", StartWarning)  # said in one line of the command's own
    with Signals(console, mesh.loudest() if several else None) as signals, _results(workdir, out) as files:
        action = Action(parts, workdir, files, mode, console, signals, again)
        try:
            run = action.train() if mode == "train" else action.restore()
            if signals():
                if mode != "train":
                    action.say(f"stopped; the training is saved. To begin again: {again}")
                return leave(signals)
            code = action.results(run)
            mesh.finish()
            return code
        except OSError as error:
            error.filename = error.filename or str(workdir)  # a failed write to an open file does not name it
            raise


def _join(coordinator: str, process: int | None, processes: int | None) -> None:
    """Join the other processes, if there are to be others."""
    if (process is None) != (processes is None):
        raise UsageError("--process and --processes go together: say which process this is, and how many there are")
    if coordinator:
        try:
            mesh.start(coordinator, process, processes)
        except UsageError as error:  # in the words of its parameters, which are flags here
            raise UsageError(re.sub(r"\b(coordinator|process|processes)=", r"--\1=", str(error))) from error
    elif process is not None:
        raise UsageError("--process without --coordinator: say --coordinator=HOST:PORT, the address of process 0")
    elif mesh.processes() > 1:
        raise UsageError("this is one host of several: say --coordinator=auto, on each of them")


def _refuse_unshared(workdir: Path) -> None:
    """Refuses a workdir that not all processes see: checkpoints are written and read by all of them."""
    if not mesh.all_of(workdir.is_dir()):
        return  # nothing was trained, which is said elsewhere
    mark = workdir / f".seen_by_all_{mesh.of_first(time.time_ns() % 2**31)}"
    if mesh.first():
        mark.touch()
    seen = mesh.all_of(mesh.all_of(True) and mark.exists())
    if mesh.first():
        mark.unlink()
    if not seen:
        raise UsageError(
            f"--workdir={workdir} is not one folder on all hosts: name one that they share, such as by NFS"
        )


@contextlib.contextmanager
def _results(workdir: Path, out: Path | None) -> Iterator[Path]:
    """The folder for this process's results: `out` or the workdir, and for all processes but the first a lost one.

    So all of them run the same programs in the same order, whoever keeps the results.
    """
    if mesh.first():
        if out is not None:
            _make(out, "--out")
        check_writable(out or workdir)
        yield out or workdir
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _make(folder: Path, flag: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another {flag}") from None


def agree(config: Config, workdir: Path, mode: str) -> None:
    """Write the configuration beside a new run; refuse one that contradicts the run that is there."""
    path = workdir / "config.json"
    # A run that has saved nothing yet binds nobody.
    if api.saved(workdir) and path.exists():
        old = config_lib.from_json(path.read_text(errors="replace"), str(path))
        # Options that have no effect in either run do not count.
        differ = [
            f"{key} was {was!r}, now {now!r}"
            for key, was, now in config_lib.changes(config_lib.used(old), config_lib.used(config))
            if key != "name" and config_lib.changes_network(key, config)
        ]
        if differ:
            raise UsageError(
                f"{workdir} holds a run with other options ({'; '.join(differ)}): give those again, "
                "or another --workdir to start anew"
            )
    if mode == "train":
        _make(workdir, "--workdir")
    if mode == "train" and mesh.first():
        with whole(path) as fresh:
            fresh.write_text(config_lib.to_json(config))


@dataclasses.dataclass
class Action:
    """One command, once everything is known: where to write, and what to say at the end."""

    parts: Parts
    workdir: Path
    files: Path  # where results go
    mode: str
    console: Console
    signals: Signals
    again: str  # the command that continues where this one was stopped

    def __post_init__(self) -> None:
        self.config, self.sampling = self.parts.config, self.parts.sampling

    def say(self, line: str) -> None:
        say(self.console, line)

    def restore(self) -> api.Run:
        """The run of the newest checkpoint, or of the best."""
        return api.restore(self.workdir, self.parts, self.config.sampler.best, self.say)

    def train(self) -> api.Run:
        """The run, trained to the end or to a signal."""
        config, train = self.config, self.config.train

        def started(begin: int, state: State) -> None:
            if begin:
                done = f"going on to step {train.steps}" if begin < train.steps else "trained to the end already"
                self.say(f"found the checkpoint of step {begin} in {self.workdir}: {done}")
            if begin < train.steps:
                data = self.parts.dataset
                self.say(
                    f"training {config.name}: process {config.process.name}, loss {config.loss.name}, net "
                    f"{config.net.name} with {_size(state.params):,} parameters, {len(data.train):,} "
                    f"{'images' if data.is_image else 'points'} of {config.data.name}; the first step compiles"
                )

        def picture(step: int, state: State) -> None:
            if train.sample_every and step % train.sample_every == 0 and step < train.steps:
                self.sketch(step, state.ema)

        state = fit(
            self.parts.model,
            self.parts.dataset,
            self.parts.objective,
            self.parts.optimizer,
            train.steps,
            batch=train.batch,
            ema=self.parts.average,
            seed=config.seed,
            microbatch=train.microbatch,
            prepare=self.parts.prepare,
            workdir=self.workdir,
            log_every=train.log_every,
            checkpoint_every=train.checkpoint_every,
            keep=train.keep,
            callback=picture,
            stopped=self.signals,
            console=self.console,
            started=started,
        )
        step = int(state.step)
        if self.signals.now():
            saved = f"saved step {step} of {train.steps} in {self.workdir}" if step else "stopped before the first step"
            self.say(f"{saved}. To go on: {self.again}")
        return api.Run(self.workdir, step, state.ema, self.sampling, self.parts)

    def sketch(self, step: int, params: Any) -> None:
        """A picture while training."""
        count = self.config.sampler.images
        samples = self.signals.watch(lambda: self.sampling(params, count, stopped=self.signals))
        if samples is None:
            return
        if not np.isfinite(samples).all():  # training is another matter, and goes on
            self.say(f"no picture at step {step}: the sampler diverged")
            return
        self.picture(self.files / f"samples_{step:07d}.png", params, samples)

    def picture(self, path: Path, params: Any, samples: np.ndarray) -> Path:
        """The picture that suits the data: a grid of images, four panels of the plane, or one panel a coordinate."""
        dataset, params = self.parts.dataset, mesh.local(params)
        if self.parts.sampling.control is not None:
            return report.save_completed(path, self.sampling, samples)
        if dataset.is_image:
            return report.save_grid(path, self.sampling.to_data(samples[: self.config.sampler.images]))
        if dataset.shape == (2,):
            return report.save_plane(path, self.parts.model, dataset, params, samples)
        return report.save_marginals(path, dataset, samples)

    def results(self, run: api.Run) -> int:
        """The results of the command. Returns the exit code."""
        if self.mode != "likelihood":
            self.warn_of_start()
        if self.mode == "likelihood":
            return self.log_likelihood(run)
        return self.trajectory(run) if self.mode == "trajectory" else self.samples(run)

    def warn_of_start(self) -> None:
        """Say how far the start of sampling is from the prior, if it is farther than it should be."""
        sampler, process = self.sampling.sampler, self.sampling.process
        if sampler.corrector is not None:
            return
        gap = start_gap(process, sampler.levels(process)[0])
        if gap > START_TOLERANCE:
            self.say(
                f"sampling starts far from the prior: at its first level {gap:.2f} of the standard deviation of x is "
                f"data (at most {START_TOLERANCE:g} is advised), and samples miss about that share of the data's mean: "
                "take a process with more noise, or add --config.sampler.corrector.name=langevin"
            )

    def samples(self, run: api.Run) -> int:
        """Sample, judge if the command does, draw, and close with the table. Returns the exit code."""
        config, signals, folder = self.config, self.signals, self.files
        judged = self.parts.judged if self.mode == "eval" or (self.mode == "train" and config.eval.at_end) else 0
        count = max(judged, config.sampler.images)
        size = self.sampling.batch if self.mode == "train" else self.sampling.batch_for(count)
        batches = -(-count // mesh.round_up(size))
        parts = f" in {batches} batches" if batches > 1 else ""
        with Bar(self.console, f"sampling {count}{parts}, level", self.sampling.levels * batches) as bar:
            samples = signals.watch(lambda: self.sampling(run.params, count, bar.update, signals, batch=size))
        if samples is None:
            self.say(f"stopped while sampling; the training is saved. To sample again: {self.again}")
            return leave(signals)
        api.check_finite(samples)
        files = [folder / "samples.npz"]
        with whole(files[0]) as fresh:
            np.savez(fresh, samples=samples)
        name = "samples.png" if self.parts.dataset.is_image else "figure.png"
        files.append(self.picture(folder / name, run.params, samples))
        if self.mode == "train":
            title = f"{config.name}, trained on {config.data.name}"
            files.append(report.save_curve(folder / "loss.png", self.workdir, title, self.loss()))
            files += [self.workdir / name for name in ("metrics.jsonl", "checkpoints", "config.json")]

        dataset, scaling = self.parts.dataset, self.parts.scaling
        verdicts = signals.watch(lambda: judge(dataset, scaling, samples[:judged], self.say)) if judged else []
        if verdicts is None:
            self.say(f"stopped while judging; the samples are saved. To judge again: {self.again}")
            return leave(signals)
        if verdicts:
            files.insert(0, report.save_verdicts(folder / "distances.json", config, judged, run.step, verdicts))
        facts = self.summary(run, count)
        if judged and judged < count:
            facts.append(("judged", f"the first {judged:,} of them"))
        if not judged and self.mode == "train":
            command = f"scoregen eval {self.workdir}"
            facts.append(("distances", f"not computed, as config.eval.at_end is false: {command}"))
        self.close(facts, verdicts, files)
        return 0

    def close(self, facts: list[tuple[str, str]], verdicts: Any, files: list[Path]) -> None:
        """Print the closing table."""
        self.console.print()
        self.console.print(report.table(f"{self.config.name}: {self.mode}", facts, verdicts, files))

    def trajectory(self, run: api.Run) -> int:
        """Sample, and show the way. Returns the exit code."""
        from scoregen.app.trajectory import save_animation, save_sheet, walk

        dataset, scaling = self.parts.dataset, self.parts.scaling
        count = min(self.config.sampler.images, 16 if dataset.is_image else 400)
        self.say(f"sampling {count}, and keeping every level")
        seen = self.signals.watch(lambda: walk(self.sampling, mesh.local(run.params), count))
        if seen is None:
            self.say(f"stopped; the training is saved. To begin again: {self.again}")
            return leave(self.signals)
        if not all(np.isfinite(part).all() for part in (seen.x, seen.x0)):
            raise UsageError("the walk is not finite: the sampler diverged; take smaller steps or train longer")
        files = [
            save_sheet(self.files / "trajectory.png", dataset, scaling, seen),
            save_animation(self.files / "trajectory.gif", dataset, scaling, seen),
        ]
        self.close(self.summary(run, count), [], files)
        return 0

    def log_likelihood(self, run: api.Run) -> int:
        """Compute the likelihood of held-out data, and close with the table. Returns the exit code."""
        config, options = self.config, self.config.eval.likelihood
        assert self.parts.dataset.test is not None
        count = min(options.examples, len(self.parts.dataset.test))
        kinds = 2 if options.name == "both" else 1
        with Bar(self.console, f"likelihood of {count}, {options.name}", kinds * count) as bar:
            found = self.signals.watch(lambda: likelihoods(self.parts, run.params, bar.update))
        if found is None:
            self.say(f"stopped; the training is saved. To begin again: {self.again}")
            return leave(self.signals)
        other = "" if config.sampler.process.name == "trained" else f", as {config.sampler.process.name}"
        held = "" if config.sampler.x0.name == "free" else f", x0 held by {config.sampler.x0.name}"
        label = config.sampler.label
        classes = ", each with its class" if label < 0 else f", all with the class {label}"
        known = classes if self.parts.model.num_classes else ""
        facts = [*self.trained(run), ("evaluated", f"{found[1]:,} held-out examples{known}{other}{held}")]
        facts += [(measured.name, report.describe_likelihood(measured)) for measured in found[0]]
        path = self.files / "likelihood.json"
        self.close(facts, [], [path])
        # After they were printed: figures that took hours are not lost to a disk that is full.
        report.save_likelihoods(path, config, run.step, *found)
        return 0

    def loss(self) -> str:
        """The loss's name, and its unit if it has one."""
        unit = getattr(self.parts.objective.loss, "unit", "")
        return f"loss {self.config.loss.name}" + {"bits": ", bits/dim", "nats": ", nats"}.get(unit, "")

    def evaluations(self) -> str:
        """How many network evaluations a sample takes: counted, on one example with a known denoiser."""
        sampling = self.sampling
        guided = sampling.guided if sampling.labels is not None else lambda denoiser: denoiser
        count = sampling.sampler.evaluations(sampling.process, guided)
        # A solver that chooses its own steps takes others on other data.
        about = "about " if getattr(sampling.sampler.step, "adaptive", False) else ""
        text = f", {about}{_so_many(count, 'network evaluation')} each"
        if sampling.control is not None:
            along = sampling.control.derivatives(sampling.shape)
            text += {0: "", 1: ", with a derivative"}.get(along, f", with {along:,} derivatives")
        return text + (", of an energy and its gradient" if self.parts.model.energy else "")

    def summary(self, run: api.Run, count: int) -> list[tuple[str, str]]:
        """What was trained and how it was sampled, as lines of the table."""
        sampler, made = self.config.sampler, self.sampling.sampler
        moves = (sampler.step, made.step), (sampler.corrector, made.corrector)
        parts = [f"{section.name}{_changed(move)}" for section, move in moves if section.name != "none"]
        other = "" if sampler.process.name == "trained" else f", as {sampler.process.name}"
        grid = "" if sampler.grid.name == "own" else f" spaced by {sampler.grid.name}{_changed(made.grid)}"
        levels = f"{_so_many(self.sampling.levels, 'level')}{grid}{self.evaluations()}"
        sampled = f"{count:,} by {' + '.join(parts)}{other}, {levels}"
        return [*self.trained(run), ("sampled", sampled), *self.steered()]

    def steered(self) -> list[tuple[str, str]]:
        """What samples depend on beside the noise, as a line of the table, or as none."""
        sampler, control = self.config.sampler, self.sampling.control
        known = []
        if self.parts.model.num_classes:
            own = "each its own class" if control is not None else "classes as in the data"
            known.append(own if sampler.label < 0 else f"class {sampler.label}")
        if sampler.guidance != 1:
            known.append(f"guidance {sampler.guidance:g}")
        if sampler.x0.name != "free":
            known.append(f"x0 by {sampler.x0.name}")
        if control is not None:
            known.append(f"{sampler.control.name}{_changed(control)}")
        return [("steered", ", ".join(known))] if known else []

    def trained(self, run: api.Run) -> list[tuple[str, str]]:
        """What was trained, as lines of the table."""
        config, objective = self.config, self.parts.objective
        net = f"{config.net.name}, {_size(run.params):,} parameters"
        trained = [config.loss.name]
        if objective.weighting is not None:
            trained.append(f"weighted as {config.weighting.name}{_changed(objective.weighting)}")
        if config.times.name != "own":
            trained.append(f"times by {config.times.name}{_changed(objective.times)}")
        if config.log_variance:
            trained.append("scaled by a learned variance")
        if config.optimizer.name != "adam":
            trained.append(f"by {config.optimizer.name}")
        gives = f"{config.target}, of an energy" if config.energy else config.target
        return [
            ("trained", f"{', '.join(trained)} on {config.data.name}, {run.step:,} steps of {config.train.batch}"),
            ("network", f"{net}, gives {gives}, conditioned on {config.net.condition}"),
            ("process", f"{config.process.name}, {_extent(self.parts.model.process)}"),
        ]


def _changed(part: Any) -> str:
    """The options of a part that are not at their defaults, in brackets."""
    if not dataclasses.is_dataclass(part):  # a part of the user's own
        return ""
    fields = [(field.name, field.default, getattr(part, field.name)) for field in dataclasses.fields(part)]
    options = ", ".join(f"{name}={value}" for name, default, value in fields if value != default)
    return f" ({options})" if options else ""


def _so_many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _extent(process: Process) -> str:
    return f"{int(process.ends[1]) + 1} levels" if process.discrete else "in continuous time"


def _size(params: Any) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
