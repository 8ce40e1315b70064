"""The commands that work on a run: train, sample, eval, trajectory, likelihood."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import jax
import numpy as np
from rich.console import Console

from scoregen.app import api, report
from scoregen.app import config as config_lib
from scoregen.app.build import Parts, build, not_evaluated
from scoregen.app.command import from_here, preset_file, run_command, saved, say
from scoregen.app.config import Config
from scoregen.app.evaluate import density_notes, evaluate, likelihoods
from scoregen.app.record import Record, pair
from scoregen.app.run_page import read
from scoregen.app.samplefiles import Archive, Pictures, SampleFiles, files_of
from scoregen.app.sampling import Draws
from scoregen.app.selection import ARCHIVE, Selection, misfits, read_classes, write_seeds
from scoregen.app.signals import Signals, leave
from scoregen.errors import UsageError
from scoregen.files import check_writable, make_folder, whole
from scoregen.nets import describe_size
from scoregen.samplers import START_TOLERANCE, StartWarning, start_gap
from scoregen.train import Bar, describe, fit, mesh

if TYPE_CHECKING:
    from scoregen.train import State

T = TypeVar("T")
P = ParamSpec("P")
# At most so many samples are in the picture of --grid, in a column of one class, and so many columns have a name.
IN_GRID, IN_COLUMN, NAMED = 100, 10, 20


def perform(
    mode: str,
    config: Config,
    workdir: Path,
    console: Console,
    again: str,
    *,
    out: Path | None = None,
    selection: Selection | None = None,
    coordinator: str = "",
    process: int | None = None,
    processes: int | None = None,
) -> int:
    """Perform a command and return its exit code.

    Args:
        mode: one of `config.MODES`.
        config: the configuration.
        workdir: the folder of the run. It has a checkpoint, unless the mode is "train".
        console: for the output.
        again: the command line to repeat after an interruption.
        out: the folder for the results, or of samples their folder or file; None for the workdir.
        selection: in the mode "sample" which samples to draw.
        coordinator, process, processes: how several processes find each other, see `mesh.start`.

    Raises:
        UsageError: for an error that the user can fix.
    """
    if coordinator and not process:
        say(console, f"joining the other processes (--coordinator={coordinator})")
    _join(coordinator, process, processes)
    several, console.quiet = mesh.processes() > 1, not mesh.first()
    description = None if mode == "train" else describe.read(workdir)
    parts = _build(config, mode, None if description is None else description["data"], selection or Selection())
    if config.net.name == "auto":
        memory, batch = config.net.auto.memory, config.train.batch
        say(console, f"chosen by the data: {describe_size(parts.model.net, parts.dataset.shape, batch, memory)}")
    config = parts.config
    agree(config, workdir, mode)
    if several:
        _refuse_unshared(workdir)
    warnings.simplefilter("ignore", StartWarning)  # the command reports it in one line
    folder = out.parent if mode == "sample" and out is not None and out.suffix.lower() == ARCHIVE else out
    with Signals(console, mesh.loudest() if several else None) as signals, _results(workdir, folder) as files:
        action = Action(parts, workdir, files, mode, console, signals, again, selection or Selection(), out)
        try:
            run = action.train() if mode == "train" else action.restore()
            if signals():
                if mode != "train":
                    action.say(f"stopped. To start again: {again}")
                leave(signals)
            code = action.results(run)
            mesh.finish()
            return code
        except OSError as error:
            error.filename = error.filename or str(workdir)  # an OSError from an open file has no file name
            raise


def _build(config: Config, mode: str, summary: dict[str, Any] | None, selection: Selection) -> Parts:
    """The parts of a command, drawing the classes that were selected.

    Raises:
        UsageError: with all that is wrong in the configuration and in the selection.
    """
    parts, lines = None, []
    try:
        parts = build(config, mode, summary=summary)
    except UsageError as error:
        lines += error.args
        if summary is None:
            raise
    if parts is not None:
        dataset, classes = parts.dataset, parts.model.num_classes
    else:
        assert summary is not None
        dataset, classes = describe.stand_in(summary, config.data.name), summary["labels"] if config.labels else 0
    lines += misfits(selection, config.sampler.images, dataset, classes)
    if lines or parts is None:
        raise UsageError(*lines)
    if not selection.classes:
        return parts
    chosen, cond = read_classes(selection.classes, classes, dataset.classes)[0], parts.sampling.cond
    assert cond is not None
    label: Any = np.array(chosen, np.int32)
    return dataclasses.replace(parts, sampling=dataclasses.replace(parts.sampling, cond=cond._replace(label=label)))


def _join(coordinator: str, process: int | None, processes: int | None) -> None:
    """Join the other processes, if the flags ask for several."""
    if (process is None) != (processes is None):
        raise UsageError("--process and --processes go together: the index of this process, and their number")
    if coordinator:
        try:
            mesh.start(coordinator, process, processes)
        except UsageError as error:  # its message names parameters, which are flags here
            raise UsageError(re.sub(r"\b(coordinator|process|processes)=", r"--\1=", str(error))) from error
    elif process is not None:
        raise UsageError("--process without --coordinator: say --coordinator=HOST:PORT, the address of process 0")
    elif mesh.processes() > 1:
        raise UsageError("this host is one of several: use --coordinator=auto on each of them")


def _refuse_unshared(workdir: Path) -> None:
    """Refuse a workdir that some process does not see, since all processes write and read the checkpoints."""
    if not mesh.all_of(workdir.is_dir()):
        return  # there is no run here, which is reported elsewhere
    mark = workdir / f".seen_by_all_{mesh.of_first(time.time_ns() % 2**31)}"
    if mesh.first():
        mark.touch()
    seen = mesh.all_of(mesh.all_of(True) and mark.exists())
    if mesh.first():
        mark.unlink()
    if not seen:
        raise UsageError(
            f"--workdir={workdir} is not the same folder on all hosts: use a folder that they share, such as on NFS"
        )


@contextlib.contextmanager
def _results(workdir: Path, out: Path | None) -> Iterator[Path]:
    """The folder for this process's results: `out` or the workdir in the first process, a temporary one in the others.

    So all processes run the same programs in the same order, but only the first keeps its results.
    """
    if mesh.first():
        if out is not None:
            make_folder(out, "--out")
        check_writable(out or workdir)
        yield out or workdir
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def agree(config: Config, workdir: Path, mode: str) -> None:
    """Write the configuration of a new run. Refuse a configuration that contradicts the run in this folder."""
    path = workdir / "config.json"
    # A run without a checkpoint can be started again with any options.
    resumed = saved(workdir)
    if resumed and path.exists():
        old = config_lib.from_json(path.read_text(errors="replace"), str(path))
        # Options that have no effect in either run do not count.
        was, now = (dict(config_lib.leaves(config_lib.used(of))) for of in (old, config))
        found = [
            key
            for key, _, _ in config_lib.changes(config_lib.used(old), config_lib.used(config))
            if key != "name" and config_lib.changes_network(key, config)
        ]
        # Another part has other options too, so only the choice of the part is named.
        common = [key for key in found if key in was and key in now] or found
        if common:
            differ = "; ".join(f"{key} was {was.get(key)!r}, now {now.get(key)!r}" for key in common)
            raise UsageError(
                f"{workdir} holds a run with other options ({differ}): use the same options, or another --workdir "
                "for a new run"
            )
    if mode == "train":
        make_folder(workdir, "--workdir")
        if not resumed:
            write_config(config, workdir)


def write_config(config: Config, workdir: Path) -> None:
    """Write config.json: of a run with a checkpoint only once it is known that its training goes on."""
    if mesh.first():
        with whole(workdir / "config.json") as fresh:
            fresh.write_text(config_lib.to_json(config))


def _recorded(work: Callable[Concatenate[Action, P], T]) -> Callable[Concatenate[Action, P], T]:
    """A method of an action whose failure the page of the run shows."""

    @functools.wraps(work)
    def attempt(self: Action, /, *args: P.args, **options: P.kwargs) -> T:
        try:
            return work(self, *args, **options)
        except (UsageError, OSError) as error:
            if self.begun:
                self.record.failed(error)
            raise

    return attempt


@dataclasses.dataclass
class Action:
    """One command with all its parts: what it computes, writes and prints."""

    parts: Parts
    workdir: Path
    files: Path  # where results go
    mode: str
    console: Console
    signals: Signals
    again: str  # the command that continues where this one was stopped
    selection: Selection = Selection()
    out: Path | None = None  # as it was typed
    begun: bool = True  # False while a run with a checkpoint may still refuse to be trained further

    def __post_init__(self) -> None:
        self.config, self.sampling = self.parts.config, self.parts.sampling
        self.record = Record(self.workdir, mesh.first() and self.files.resolve() == self.workdir.resolve(), self.say)

    def say(self, line: str) -> None:
        say(self.console, line)

    def restore(self) -> api.Run:
        """The run with its newest checkpoint, or with the best one if the configuration says so."""
        return api.restore(self.workdir, self.sampling, self.parts, self.config.sampler.best, self.say)

    @_recorded
    def train(self) -> api.Run:
        """Train to the last step or until a signal, and return the run."""
        config, train, resumed = self.config, self.config.train, saved(self.workdir)
        data, self.begun = self.parts.dataset, not resumed

        def announce() -> None:
            for note in data.notes:
                self.say(note)
            parts = f"process {config.process.name}, loss {config.loss.name}, net {config.net.name}"
            kind = report.kind_of(data)
            self.say(f"training {config.name}: {parts}, {len(data.train):,} {kind} of {config.data.name}")

        def started(begin: int, state: State) -> None:
            self.begun = True
            if resumed:
                write_config(config, self.workdir)
                done = f"continuing to step {train.steps}"
                if begin == train.steps:
                    done = "training is already complete"
                elif begin > train.steps:
                    done = f"nothing to train up to --steps={train.steps}; for a new run, say another --workdir"
                self.say(f"found the checkpoint of step {begin} in {self.workdir}: {done}")
            if begin < train.steps:
                if resumed:
                    announce()
                self.say(f"the network has {_size(state.params):,} parameters; the first step compiles")
            about = self.trained(api.Run(self.workdir, train.steps, state.ema, self.sampling, self.parts))
            self.record.began(begin, command=self.again, about=about, notes=data.notes, loss=self.loss())

        def picture(step: int, state: State) -> dict[str, np.ndarray] | None:
            found = None
            if drawn := train.sample_every and step % train.sample_every == 0 and step < train.steps:
                found = self.sketch(step, state.ema)
            # One step after a checkpoint, whose held-out loss is then known.
            if drawn or (step - 1) % train.checkpoint_every == 0:
                self.record.renew(step, hurry=True)
            return found

        if not resumed:  # before the network is initialised, which may take a minute
            announce()
        state = fit(
            self.parts.model,
            data,
            self.parts.objective,
            self.parts.optimizer,
            train.steps,
            batch=train.batch,
            ema=self.parts.average,
            seed=config.seed,
            microbatch=train.microbatch,
            prepare=self.parts.prepare,
            workdir=self.workdir,
            log=self.parts.loggers,
            log_every=train.log_every,
            config=config_lib.used(config).to_dict(),
            checkpoint_every=train.checkpoint_every,
            keep=train.keep,
            callback=picture,
            stopped=self.signals,
            console=self.console,
            started=started,
        )
        step = int(state.step)
        self.record.renew(step)
        if self.signals.now():
            done = f"saved step {step} of {train.steps} in {self.workdir}" if step else "stopped before the first step"
            self.say(f"{done}. To continue: {self.again}")
        return api.Run(self.workdir, step, state.ema, self.sampling, self.parts)

    def watch(self, work: Callable[[], T | None], stopped: str) -> T:
        """The result of `work`. A signal before its end exits the process, with a line that starts with `stopped`."""
        if (done := self.signals.watch(work)) is None:
            self.say(f"{stopped}: {self.again}")
            leave(self.signals)
        return done

    def sketch(self, step: int, params: Any) -> dict[str, np.ndarray] | None:
        """Draw a picture of samples during training, and return it for the loggers."""
        count = self.config.sampler.images
        samples = self.signals.watch(lambda: self.sampling(params, count, stopped=self.signals))
        if samples is None:
            return None
        if not np.isfinite(samples).all():  # the training does not need the picture and continues
            self.say(line := f"no picture at step {step}: the sampler diverged")
            self.record.warn(line)
            return None
        title = report.heading(self.config.name, step)
        path = self.picture(self.files / f"samples_{step:07d}.png", params, samples, title)
        return {"samples": report.pixels(path)} if self.parts.loggers else None

    def picture(self, path: Path, params: Any, samples: np.ndarray, title: str) -> Path:
        """The picture for this kind of data: a grid of images, four panels of the plane, or a panel per coordinate."""
        dataset, params = self.parts.dataset, mesh.local(params)
        if self.sampling.control is not None:
            turns = self.draws(len(samples)).at(np.arange(len(samples))).turn
            return report.save_completed(path, self.sampling, turns, samples, title)
        if dataset.is_image:
            shown = self.parts.scaling.to_bytes(samples[: self.config.sampler.images])
            return report.save_samples(path, shown, report.reference(dataset), title)
        if len(dataset.shape) > 1:
            return report.save_arrays(path, dataset, samples, title)
        if dataset.shape == (2,):
            return report.save_plane(path, self.parts.model, dataset, params, samples, title)
        return report.save_marginals(path, dataset, samples, title)

    @_recorded
    def results(self, run: api.Run) -> int:
        """Compute and write the results of the command. Returns the exit code."""
        if self.mode != "likelihood":
            self.warn_of_start()
        if self.mode == "sample" and self.out is not None:
            self.sample_files(run, self.out)
            return 0
        actions = {"likelihood": self.log_likelihood, "trajectory": self.trajectory}
        actions.get(self.mode, self.samples)(run)
        return 0

    def warn_of_start(self) -> None:
        """Print a warning if sampling starts too far from the prior."""
        sampler, process = self.sampling.sampler, self.sampling.process
        if sampler.corrector is not None:
            return
        gap = start_gap(process, sampler.levels(process)[0])
        if gap > START_TOLERANCE:
            line = (
                f"sampling starts far from the prior: at its first level the data make up {gap:.2f} of the standard "
                f"deviation of x (at most {START_TOLERANCE:g} is advised), and samples miss about this share of the "
                "data's mean: use a process with more noise, or add --config.sampler.corrector.name=langevin"
            )
            self.say(line)
            self.record.pending.append(line)

    def samples(self, run: api.Run) -> None:
        """Sample, evaluate if the command does, draw the picture, and print the closing table."""
        config, folder, dataset = self.config, self.files, self.parts.dataset
        evaluated, why_not = self.evaluated()
        draws = self.draws(evaluated if self.mode == "eval" else max(evaluated, config.sampler.images))
        count = len(draws)
        size = self.sampling.batch if self.mode == "train" else self.sampling.batch_for(count)
        batches = -(-count // mesh.round_up(size))
        parts = f" in {batches} batches" if batches > 1 else ""
        with Bar(self.console, f"sampling {count}{parts}, level", self.sampling.levels * batches) as bar:
            samples = self.watch(
                lambda: self.sampling(run.params, draws, bar.update, self.signals, batch=size),
                "stopped while sampling; the trained network is saved. To sample again",
            )
        api.check_samples(samples, self.smaller_steps())
        in_units = self.sampling.to_data(samples)
        cond = self.sampling.cond_of(draws.at(np.arange(count)).turn)
        files = [report.save_data(folder, dataset, in_units, cond)]
        if self.mode == "sample" and dataset.form.suffix == ".png":
            files.append(report.save_pictures(folder, in_units))
        picture = folder / ("samples.png" if dataset.is_image else "figure.png")
        files.append(self.picture(picture, run.params, samples, report.heading(config.name, run.step)))
        if self.mode == "train":
            title = f"{config.name}, trained on {config.data.name}"
            files.append(report.save_curve(folder / "loss.png", self.workdir, title, self.loss()))
            files += [self.workdir / name for name in ("metrics.jsonl", "checkpoints", "config.json")]

        facts, metrics = self.summary(run, count), []
        drawn = [row for row in facts if row not in self.trained(run)]
        some = samples[: config.sampler.images]
        self.record.sampled(run.step, picture, drawn, lambda: pair(self.sampling, dataset, some, run.step))
        if evaluated:
            title = f"{report.heading(config.name, run.step)}: the samples nearest to a training image"
            nearest = functools.partial(report.save_nearest, folder / "nearest.png", title)
            metrics = self.watch(
                lambda: evaluate(
                    dataset,
                    self.parts.scaling,
                    samples[:evaluated],
                    self.say,
                    nearest,
                    self.parts.features(self.say),
                ),
                "stopped while computing the distances; the samples are saved. To compute them again",
            )
            files.insert(0, report.save_metrics(folder / "distances.json", config, evaluated, run.step, metrics))
            files += [folder / "nearest.png"] * dataset.is_image
            # Drawn again with the distance in its title. The first picture remains if the distances fail.
            self.picture(picture, run.params, samples, report.heading(config.name, run.step, metrics))
            if evaluated < count:
                facts.append(("evaluated", f"the first {evaluated:,} of these samples"))
        elif self.mode == "train":
            typed = read(self.workdir).get("command", self.again)
            how = run_command("eval", from_here(self.workdir), preset_file(typed))
            facts.append(("distances", f"not computed, since {why_not}; to compute them: {how}"))
        self.close(facts, metrics, files)

    def evaluated(self) -> tuple[int, str]:
        """The number of samples whose distances the command computes, or 0 and the reason."""
        if self.mode == "train" and not self.config.eval.at_end:
            return 0, "config.eval.at_end is false"
        if self.mode == "train" and (reason := not_evaluated(self.config, self.parts.dataset)):
            return 0, reason
        return (self.parts.evaluated, "") if self.mode in ("train", "eval") else (0, "")

    def draws(self, count: int) -> Draws:
        """The samples to draw: the first `count` of the seed, unless the command line selects others."""
        chosen = self.selection
        classes = len(chosen.classes and self._classes())
        if chosen.seeds:
            return Draws.of_seeds(chosen.seeds, max(1, classes))
        if classes and not chosen.counted:
            count = -(-count // classes) * classes
        return self.sampling.draws(count)

    def _classes(self) -> list[int]:
        """The classes that the samples have in turn."""
        cond = self.sampling.cond
        return [] if cond is None or cond.label is None else np.asarray(cond.label).tolist()

    def sample_files(self, run: api.Run, out: Path) -> None:
        """Draw samples into files, from where a stopped command ended, and print the closing table."""
        draws = self.draws(self.config.sampler.images)
        count, size = len(draws), mesh.round_up(self.sampling.batch_for(len(draws)))
        files = files_of(out, self.parts.dataset, self.sampling, draws, size)
        refused = None
        if mesh.first():
            try:
                files.begin(self.settings(run, draws, size))
            except UsageError as error:
                refused = error
        if not mesh.all_of(refused is None):
            raise refused or UsageError(f"--out={out}: the first process, which writes the samples, refuses it")
        there = mesh.of_first(files.count() if mesh.first() else 0)
        if there:
            self.say(f"{there:,} of {count:,} samples are already in {out}")
        parts = f" in {files.batches} batches" if files.batches > 1 else ""
        levels, words = self.sampling.levels, f"sampling {count}{parts}, level"
        with Bar(self.console, words, levels * files.batches, there // size * levels) as bar:
            finished = self.signals.watch(lambda: self.fill(run.params, files, bar.update))
        if not finished:
            with files.busy:
                if mesh.first():
                    done = f"stopped with {files.count():,} of {count:,} samples in {out}"
                    self.say(f"{done}. To continue: {self.again}")
                leave(self.signals)
        written = files.written
        if self.selection.grid and mesh.first():
            assert isinstance(files, Pictures | Archive)
            written = [*written, self.grid(run, files)]
        self.close(self.summary(run, count), [], written)

    def grid(self, run: api.Run, files: Pictures | Archive) -> Path:
        """Draw the first samples into one picture, with a column for each selected class if these are few."""
        classes, known = self._classes() if self.selection.classes else [], self.parts.dataset.classes
        names = [known[k] if known else f"class {k}" for k in classes] if 1 < len(classes) <= NAMED else []
        count = min(len(files.draws), IN_COLUMN * len(names) or IN_GRID)
        place = files.out if files.out.name not in ("", "..") else files.out.resolve()
        name = place.stem if isinstance(files, Archive) else place.name
        title = report.heading(self.config.name, run.step)
        return report.save_grid(place.with_name(f"{name}-grid.png"), files.first(count), title, names)

    def fill(self, params: Any, files: SampleFiles, progress: Callable[[int], None]) -> bool | None:
        """Draw all samples that are not in their files yet. Returns None if a signal stopped it."""
        missing, several = mesh.in_all(files.missing()), mesh.processes() > 1
        stopped = self.signals if several else lambda: False  # otherwise the signal is watched from another thread
        batches = self.sampling.batches(params, files.draws, progress, stopped, batch=files.size, blocks=missing)
        for index, samples in batches:
            api.check_samples(samples, self.smaller_steps())
            if mesh.first():
                files.put(index, samples)
        if self.signals.number:
            return None
        if mesh.first():
            files.finish()
        return True

    def settings(self, run: api.Run, draws: Draws, size: int) -> dict[str, Any]:
        """All that samples in files depend on."""
        chosen, used = self.selection, dict(config_lib.leaves(config_lib.used(self.config)))
        apart = {f"sampler.{name}" for name in ("images", "batch", "seed", "best")}
        return {
            "run": str(self.workdir.resolve()),
            "step": run.step,
            "weights": _checksum(mesh.local(run.params)),
            "samples": len(draws),
            "seeds" if chosen.seeds else "seed": write_seeds(chosen.seeds) if chosen.seeds else self.sampling.seed,
            "classes": self._classes() if chosen.classes else None,
            "conditions": _checksum(self.sampling.cond),
            "completes": _checksum(self.completed(draws)) if self.sampling.control is not None else None,
            "batch": size,
            **{key: value for key, value in used.items() if key.startswith("sampler.") and key not in apart},
        }

    def completed(self, draws: Draws) -> Iterator[np.ndarray]:
        """The held-out examples that the samples complete, each once, in parts."""
        data = self.sampling.dataset
        assert data is not None and data.test is not None
        index = np.unique(draws.at(np.arange(len(draws))).turn % len(data.test))
        for start in range(0, len(index), 256):
            yield data.examples(index[start : start + 256], test=True)

    def smaller_steps(self) -> str:
        """The change to suggest if the sampler diverges."""
        name = self.config.sampler.corrector.name
        size = next((option for option in ("step_size", "snr") if option in self.config.sampler.corrector[name]), None)
        return f"a smaller --config.sampler.corrector.{name}.{size}" if size else "more levels (--config.sampler.n)"

    def close(self, facts: list[tuple[str, str]], metrics: Any, files: list[Path]) -> None:
        """Renew the page, and print the closing table."""
        self.record.renew()
        files = [self.record.path] * self.record.written + files
        self.console.print()
        self.console.print(report.table(f"{self.config.name}: {self.mode}", facts, metrics, files))

    def trajectory(self, run: api.Run) -> None:
        """Sample, and draw x and the estimates of x0 at successive levels."""
        from scoregen.app.trajectory import save_animation, save_sheet, walk

        dataset, scaling = self.parts.dataset, self.parts.scaling
        count = min(self.config.sampler.images, 16 if dataset.is_image else 400)
        self.say(f"sampling {count}, and storing every level")
        seen = self.watch(lambda: walk(self.sampling, mesh.local(run.params), count), "stopped. To start again")
        if not all(np.isfinite(part).all() for part in (seen.x, seen.x0)):
            raise UsageError(
                f"x is not finite at some level: the sampler diverged; use {self.smaller_steps()} or train longer"
            )
        title = f"{report.heading(self.config.name, run.step)}: from noise to samples"
        files = [
            save_sheet(self.files / "trajectory.png", dataset, scaling, seen, title),
            save_animation(self.files / "trajectory.gif", dataset, scaling, seen, title),
        ]
        self.close(self.summary(run, count), [], files)

    def log_likelihood(self, run: api.Run) -> None:
        """Compute the likelihood of held-out data, and print the closing table."""
        config, options = self.config, self.config.eval.likelihood
        assert self.parts.dataset.test is not None
        count = min(options.examples, len(self.parts.dataset.test))
        kinds = 2 if options.name == "both" else 1
        for note in density_notes(self.parts.dataset):
            self.say(note)
        with Bar(self.console, f"likelihood of {count}, {options.name}", kinds * count) as bar:
            found, count = self.watch(
                lambda: likelihoods(self.parts, run.params, bar.update), "stopped. To start again"
            )
        every = "all " if count == len(self.parts.dataset.test) else ""
        known = [f"{every}{count:,} held-out examples{self.bridged()}", *self.conditions("each with its class")]
        facts = [*self.trained(run), ("evaluated", ", ".join(known))]
        facts += [(measured.name, report.describe_likelihood(measured)) for measured in found]
        path = self.files / "likelihood.json"
        self.close(facts, [], [path])
        # Printed before they are saved: results that took hours are then not lost if the disk is full.
        report.save_likelihoods(path, config, run.step, found, count)
        self.record.renew()

    # What the table says

    def loss(self) -> str:
        """The loss's name, and its unit if it has one."""
        unit = getattr(self.parts.objective.loss, "unit", "")
        return f"loss {self.config.loss.name}" + {"bits": ", bits/dim", "nats": ", nats"}.get(unit, "")

    def evaluations(self) -> str:
        """The number of network evaluations per sample, counted on one example with a known denoiser."""
        sampling = self.sampling
        guided = sampling.guided if sampling.cond is not None else lambda denoiser: denoiser
        count = sampling.sampler.evaluations(sampling.process, guided)
        # The number of steps of an adaptive solver depends on the data.
        about = "about " if getattr(sampling.sampler.step, "adaptive", False) else ""
        text = f", {about}{report.so_many(count, 'network evaluation')} each"
        if sampling.control is not None:
            along = sampling.control.derivatives(sampling.shape)
            text += {0: "", 1: ", with a derivative"}.get(along, f", with {along:,} derivatives")
        return text + (", of an energy and its gradient" if self.parts.model.energy else "")

    def bridged(self) -> str:
        """The process of the sampling, if it is not the trained process."""
        name = self.config.sampler.process.name
        return "" if name == "trained" else f", as {name}"

    def summary(self, run: api.Run, count: int) -> list[tuple[str, str]]:
        """The rows of the closing table about the training and the sampling."""
        sampler, made, control = self.config.sampler, self.sampling.sampler, self.sampling.control
        parts = [_part(sampler.step, made.step)]
        if made.corrector is not None:
            parts.append(_part(sampler.corrector, made.corrector))
        grid = "" if sampler.grid.name == "own" else f" spaced by {_part(sampler.grid, made.grid)}"
        levels = f"{report.so_many(self.sampling.levels, 'level')}{grid}{self.evaluations()}"
        lines = [*self.trained(run), ("sampled", f"{count:,} by {' + '.join(parts)}{self.bridged()}, {levels}")]
        known = self.conditions("classes as in the data" if control is None else "each its own class")
        if control is not None:
            known.append(_part(sampler.control, control))
        return [*lines, ("conditions", ", ".join(known))] if known else lines

    def conditions(self, classes: str) -> list[str]:
        """The inputs of an estimate beside x and the noise level; `classes` is the text if no class is chosen."""
        sampler, known = self.config.sampler, []
        if self.selection.classes:
            known.append(f"classes {self.selection.classes} in turn")
        elif self.parts.model.num_classes:
            known.append(classes if sampler.label < 0 else f"class {sampler.label}")
        if self.parts.model.context_dim:
            chosen = ", ".join(f"{value:g}" for value in sampler.context)
            known.append(f"context ({chosen})" if chosen else "contexts of the data")
        if sampler.guidance != 1:
            known.append(f"guidance {sampler.guidance:g}")
        if sampler.x0.name != "free":
            known.append(f"x0 by {sampler.x0.name}")
        return known

    def trained(self, run: api.Run) -> list[tuple[str, str]]:
        """The rows of the closing table about the training."""
        config, objective, process = self.config, self.parts.objective, self.parts.model.process
        trained = [config.loss.name]
        if objective.weighting is not None:
            trained.append(f"weighted as {_part(config.weighting, objective.weighting)}")
        if config.times.name != "own":
            trained.append(f"times by {_part(config.times, objective.times)}")
        if config.log_variance:
            trained.append("scaled by a learned variance")
        if config.optimizer.name != "adam":
            trained.append(f"by {config.optimizer.name}")
        gives = f"{config.target}, of an energy" if config.energy else config.target
        net = f"{config.net.name}, {_size(run.params):,} parameters"
        extent = f"{int(process.ends[1]) + 1} levels" if process.discrete else "in continuous time"
        return [
            ("trained", f"{', '.join(trained)} on {config.data.name}, {run.step:,} steps of {config.train.batch}"),
            ("network", f"{net}, gives {gives}, conditioned on {config.net.condition}"),
            ("process", f"{config.process.name}, {extent}"),
        ]


def _part(section: Config, part: Any) -> str:
    """The name of a part, and in brackets its options that differ from their defaults."""
    if not dataclasses.is_dataclass(part):  # a part of the user
        return section.name
    fields = [(field.name, field.default, getattr(part, field.name)) for field in dataclasses.fields(part)]
    options = ", ".join(f"{name}={value}" for name, default, value in fields if value != default)
    return f"{section.name} ({options})" if options else section.name


def _checksum(tree: Any) -> str:
    """The CRC-32 of all arrays of a tree, or of an iterator."""
    found = 0
    for leaf in tree if isinstance(tree, Iterator) else jax.tree.leaves(tree):
        found = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), found)
    return f"{found:08x}"


def _size(params: Any) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
