"""The command line: train a model, sample from it, judge it.

    python -m scoregen.run --config=ncsn_toy
    python -m scoregen.run --config=ddpm_digits --workdir=runs/mine --config.loss.name=ssm
    python -m scoregen.run --config=ddpm_digits --mode=sample --config.sampler.predictor.ancestral.eta=0.0
    python -m scoregen.run --config=ddpm_cifar --coordinator=auto         the same on each host of a TPU slice, or Slurm

Exit codes: 0 done; 2 something that you can mend, said in one line; 128 + n ended by signal n, with everything saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags
from rich.console import Console

from scoregen import config as config_lib
from scoregen.command import answer, hush, name_of, say, say_presets
from scoregen.errors import UsageError
from scoregen.files import check_writable, locked, whole
from scoregen.signals import Signals, ended

if TYPE_CHECKING:
    import numpy as np

    from scoregen.checkpoint import Checkpoints
    from scoregen.experiment import Experiment
    from scoregen.process import Process

MODES = {
    "train": "train, or go on where the last run in the workdir stopped; then sample and judge",
    "sample": "draw --config.sampler.images samples from the workdir's newest checkpoint",
    "eval": "judge --config.eval.samples samples from the workdir's newest checkpoint",
    "trajectory": "draw as sample does, up to 400 points or 16 images, and show x and x0 on the way, as PNG and GIF",
    "likelihood": "how likely --config.eval.likelihood.examples held-out examples are under the newest checkpoint",
}
# What may differ between the run that trained a workdir and this one: it does not change what was trained.
FREE = (
    *("name", "sampler", "eval", "data.dir"),
    *(f"train.{key}" for key in ("steps", "log_every", "sample_every", "checkpoint_every", "keep", "microbatch")),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(argv, _run, _help)


def _help(console: Console) -> None:
    say(console, __doc__ or "")
    say_presets(console)
    say(console, "--config.SECTION.OPTION=VALUE changes one option; see configs/default.py for all")
    say(
        console,
        "--workdir=DIR  where everything goes (runs/NAME, and what was changed of it); that of a run that is there",
    )
    say(console, "               has its configuration, which --config need not name")
    say(
        console, "--coordinator=auto on each host of a TPU slice or a Slurm job: all of them train one model; elsewhere"
    )
    say(console, "               --coordinator=HOST:PORT of the first, --processes=N, and --process=I from 0")
    say(console, "--mode=MODE")
    for mode, line in MODES.items():
        say(console, f"  {mode:<14} {line}")


def _run(argv: Sequence[str], console: Console) -> int:
    flags = absl_flags.FlagValues()
    absl_flags.DEFINE_string("workdir", "", "where everything goes", flag_values=flags)
    absl_flags.DEFINE_string("mode", "train", ", ".join(MODES), flag_values=flags)
    absl_flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, or auto", flag_values=flags)
    absl_flags.DEFINE_integer("process", None, "the number of this process, from 0", flag_values=flags)
    absl_flags.DEFINE_integer("processes", None, "how many there are", flag_values=flags)
    config, changes = config_lib.parse(_with_config(argv), flags)
    mode = str(flags["mode"].value)
    config_lib.pick(MODES, mode, "--mode")
    if mode != "sample" and config.sampler.control.name != "none":
        raise UsageError(
            f"config.sampler.control={config.sampler.control.name} completes held-out images, for --mode=sample alone: "
            f"with --mode={mode} say --config.sampler.control.name=none"
        )
    if any(re.fullmatch("--?workdir=", argument) for argument in argv):
        raise UsageError("--workdir= names no folder: say which, or leave the flag out")
    workdir = Path(flags["workdir"].value or Path("runs", _run_name(config.name, changes))).expanduser()

    # Here and not above: a wrong flag is answered before JAX is loaded.
    from scoregen import mesh
    from scoregen.experiment import assemble
    from scoregen.train import refuse_uneven

    if flags["coordinator"].value and not flags["process"].value:
        say(console, f"joining the other processes, as --coordinator={flags['coordinator'].value} says")
    _join(str(flags["coordinator"].value), flags["process"].value, flags["processes"].value)
    several, console.quiet = mesh.processes() > 1, not mesh.first()
    experiment = assemble(config)
    _refuse_classes(config, mode)
    if mode == "train":
        refuse_uneven(experiment)
    agree(config, workdir, mode)
    if several:
        _refuse_unshared(workdir)
    with Signals(console, mesh.loudest() if several else None) as signals, _files(workdir, mode) as files:
        again = f"python -m scoregen.run {shlex.join(argv)}"
        run = Run(experiment, workdir, files, mode, console, signals, again)
        try:
            step, params = run.train() if mode == "train" else run.restore()
            if signals():
                if mode != "train":
                    run.say(f"stopped; the training is saved. To begin again: {run.again}")
                return ended(signals)
            code = run.weigh(step, params) if mode == "likelihood" else run.show(step, params)
            mesh.finish()
            return code
        except OSError as error:
            error.filename = error.filename or str(workdir)  # a write to an open file that fails does not say where
            raise


def _join(coordinator: str, process: int | None, processes: int | None) -> None:
    """Join the other processes, if there are to be others."""
    from scoregen import mesh

    if (process is None) != (processes is None):
        raise UsageError("--process and --processes go together: say which process this is, and how many there are")
    if coordinator:
        mesh.start(coordinator, process, processes)
    elif process is not None:
        raise UsageError("--process without --coordinator: say --coordinator=HOST:PORT, the address of process 0")
    elif mesh.processes() > 1:
        raise UsageError("this is one host of several: say --coordinator=auto, on each of them")


def _refuse_unshared(workdir: Path) -> None:
    """Refuses a workdir that not all processes see: checkpoints are written and read by all of them."""
    from scoregen import mesh

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
def _files(workdir: Path, mode: str) -> Iterator[Path]:
    """Where this process's files go: into the workdir, and those of all processes but the first into oblivion.

    So all of them run the same programs in the same order, whoever is to keep what comes of it. Nobody else may train
    there at the same time.
    """
    from scoregen import mesh

    if mesh.first():
        with locked(workdir / ".lock") if mode == "train" else contextlib.nullcontext():
            yield workdir
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _with_config(argv: Sequence[str]) -> list[str]:
    """The arguments, with the configuration of the run in the workdir where none is named."""
    found = re.search(r"(?:^|\0)--?workdir[=\0]([^\0]+)", "\0".join(argv))
    saved = Path(found[1], "config.json").expanduser() if found else None
    if saved is None or not saved.is_file() or any(re.match(r"--?config(=|$)", argument) for argument in argv):
        return [*argv]
    return [f"--config={saved}", *argv]


def _refuse_classes(config: Any, mode: str) -> None:
    """What compares with all of the held-out data cannot be of one class."""
    judged = mode == "eval" or (mode == "train" and config.eval.at_end)
    if judged and config.sampler.label >= 0:
        raise UsageError(
            f"config.sampler.label={config.sampler.label}: samples are judged beside held-out data of all classes: say "
            "--config.sampler.label=-1, or --mode=sample"
        )


def _run_name(preset: str, changes: Sequence[tuple[str, Any, Any]]) -> str:
    """The preset's name, and every option that was changed on the command line and changes what is trained.

    So two trainings never meet in one folder unless they are told to.
    """
    return name_of(preset, ((key, new) for key, _, new in changes if not is_free(key)))


def is_free(key: str) -> bool:
    """Whether an option may differ between the run that trained a workdir and another one there."""
    return any(key == free or key.startswith(free + ".") for free in FREE)


def agree(config: Any, workdir: Path, mode: str) -> None:
    """Write the configuration beside a new run; refuse one that contradicts the run that is there."""
    from scoregen import mesh

    path = workdir / "config.json"
    # A run that has saved nothing yet binds nobody.
    saved = any(child.name.isdigit() for child in (workdir / "checkpoints").glob("*"))
    if saved and path.exists():
        old = config_lib.from_json(path.read_text(errors="replace"), str(path))
        # Options of a part that neither run uses do not count.
        differ = [
            f"{key} was {was!r}, now {now!r}"
            for key, was, now in config_lib.changes(config_lib.used(old), config_lib.used(config))
            if not is_free(key)
        ]
        if differ:
            raise UsageError(
                f"{workdir} holds a run with other options ({'; '.join(differ)}): give those again, "
                "or another --workdir to start anew"
            )
    if mode != "train":
        if workdir.is_dir():
            check_writable(workdir)
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {workdir}: {error.strerror}; choose another --workdir") from None
    if mesh.first():
        with whole(path) as fresh:
            fresh.write_text(config_lib.to_json(config))


@dataclasses.dataclass
class Run:
    """One call of the command line, once everything is known: where to write, and what to say at the end."""

    experiment: Experiment
    workdir: Path
    files: Path  # the workdir, but for all processes that are not the first
    mode: str
    console: Console
    signals: Signals
    again: str  # the command that goes on where this one was stopped

    def __post_init__(self) -> None:
        from scoregen.train import make_sampler

        self.sampler = make_sampler(self.experiment)  # one for all pictures, so that it compiles once
        self.config = self.experiment.config

    def say(self, line: str) -> None:
        say(self.console, line)

    def checkpoints(self) -> Checkpoints:
        from scoregen.checkpoint import Checkpoints

        return Checkpoints(self.workdir / "checkpoints", keep=self.config.train.keep, say=self.say)

    def restore(self) -> tuple[int, Any]:
        """The step and the averaged parameters of the newest checkpoint, or of the best."""
        from scoregen import mesh
        from scoregen.train import restore_average

        with self.checkpoints() as checkpoints:
            found = restore_average(self.experiment, checkpoints, self.config.sampler.best)
        mesh.check_same(found[1] + 1 if found else 0, "checkpoints")
        if found is None:
            raise UsageError(f"no checkpoint in {self.workdir}: train first, with --mode=train")
        return found[1], found[0]

    def train(self) -> tuple[int, Any]:
        """The step and the averaged parameters, trained to the end or to a signal."""
        from scoregen import mesh
        from scoregen.log import Bar, MetricsLog
        from scoregen.train import abstract_state, fit, init_state

        config, steps = self.config, self.config.train.steps
        with self.checkpoints() as checkpoints:
            found = checkpoints.restore(abstract_state(self.experiment))
            state, begin = found if found else (mesh.replicate(init_state(self.experiment)), 0)
            mesh.check_same(begin + 1 if found else 0, "checkpoints")
            if found:
                done = "trained to the end already" if begin >= steps else f"going on to step {steps}"
                self.say(f"found the checkpoint of step {begin} in {self.workdir}: {done}")
            if begin < steps:
                data = self.experiment.dataset
                self.say(
                    f"training {config.name}: process {config.process.name}, loss {config.loss.name}, net "
                    f"{config.net.name} with {_size(state.params):,} parameters, {len(data.train):,} "
                    f"{'images' if data.is_image else 'points'} of {config.data.name}; the first step compiles"
                )
                with MetricsLog(self.files, begin) as log, Bar(self.console, "training", steps, begin) as bar:
                    state = fit(self.experiment, state, checkpoints, log, bar, self.signals, self.sketch)
            step = int(state.step)
        if self.signals.now():
            saved = f"saved step {step} of {steps} in {self.workdir}" if step else "stopped before the first step"
            self.say(f"{saved}. To go on: {self.again}")
        return step, state.ema

    def sketch(self, step: int, params: Any) -> None:
        """A picture while training."""
        import numpy as np

        count = self.config.sampler.images
        samples = self.signals.watch(lambda: self.sampler(params, count, stopped=self.signals))
        if samples is None:
            return
        if not np.isfinite(samples).all():  # training is another matter, and goes on
            self.say(f"no picture at step {step}: the sampler diverged")
            return
        self.picture(self.files / f"samples_{step:07d}.png", params, samples)

    def picture(self, path: Path, params: Any, samples: np.ndarray) -> Path:
        """The picture that suits the data: a grid of images, four panels of the plane, or one panel a coordinate."""
        from scoregen import mesh, report

        shape, params = self.experiment.dataset.shape, mesh.local(params)
        if self.experiment.control is not None:
            return report.save_completed(path, self.experiment, samples)
        if self.experiment.dataset.is_image:
            images = self.experiment.scaling.to_bytes(samples[: self.config.sampler.images])
            return report.save_grid(path, images)
        if shape == (2,):
            return report.save_plane(path, self.experiment, params, samples)
        return report.save_marginals(path, self.experiment.dataset, samples)

    def show(self, step: int, params: Any) -> int:
        """Sample, judge if it is asked for, draw, and close with the table. Returns the exit code."""
        import numpy as np

        from scoregen import report
        from scoregen.judge import judge
        from scoregen.log import Bar
        from scoregen.train import levels

        config, signals, folder = self.config, self.signals, self.files
        if self.mode == "trajectory":
            return self.show_trajectory(step, params)
        judged = self.mode == "eval" or (self.mode == "train" and config.eval.at_end)
        count = max(config.eval.samples, config.sampler.images) if judged else config.sampler.images
        batches = -(-count // config.sampler.batch)
        parts = f" in {batches} batches" if batches > 1 else ""
        with Bar(self.console, f"sampling {count}{parts}, level", levels(self.experiment) * batches) as bar:
            samples = signals.watch(lambda: self.sampler(params, count, bar.update, signals))
        if samples is None:
            self.say(f"stopped while sampling; the training is saved. To sample again: {self.again}")
            return ended(signals)
        if bad := int((~np.isfinite(samples.reshape(count, -1)).all(1)).sum()):
            raise UsageError(
                f"{bad} of {count} samples are not finite: the sampler diverged; take smaller steps "
                "(--config.sampler.corrector.langevin.step_size) or train longer"
            )
        files = [folder / "samples.npz"]
        with whole(files[0]) as fresh:
            np.savez(fresh, samples=samples)
        name = "samples.png" if self.experiment.dataset.is_image else "figure.png"
        files.append(self.picture(folder / name, params, samples))
        if self.mode == "train":
            title = f"{config.name}, trained on {config.data.name}"
            files.append(report.save_curve(folder / "loss.png", self.workdir, title, self.loss()))
            files += [self.workdir / name for name in ("metrics.jsonl", "checkpoints", "config.json")]

        work = lambda: judge(self.experiment, samples[: config.eval.samples], self.say)  # noqa: E731
        verdicts = signals.watch(work) if judged else []
        if verdicts is None:
            self.say(f"stopped while judging; the samples are saved. To judge again: {self.again}")
            return ended(signals)
        if verdicts:
            files.insert(0, report.save_verdicts(folder / "distances.json", self.experiment, step, verdicts))
        what = self.summary(step, params, count)
        if judged and config.eval.samples < count:
            what.append(("judged", f"the first {config.eval.samples:,} of them"))
        if not judged and self.mode == "train":
            what.append(("distances", f"not computed, as config.eval.at_end is false: {self.again} --mode=eval"))
        self.console.print()
        self.console.print(report.table(f"{config.name}: {self.mode}", what, verdicts, files))
        return 0

    def asked(self) -> str:
        """How often a sample asks the network: counted, on one example whose denoiser is known."""
        from scoregen.samplers import Adaptive, evaluations

        it, sampler = self.experiment, self.config.sampler
        options = {"grid": it.grid, "denoise": sampler.denoise, "wrap": it.guided}
        count = evaluations(it.walk, it.predictor, it.corrector, sampler.n or None, **options)
        # A solver that chooses its own steps takes others on other data.
        text = f", {'about ' * isinstance(it.predictor, Adaptive)}{_so_many(count, 'network evaluation')} each"
        if it.control is not None:
            along = it.control.derivatives(it.dataset.shape)
            text += {0: "", 1: ", with a derivative"}.get(along, f", with {along:,} derivatives")
        return text + ", of an energy and its gradient" * bool(self.config.energy)

    def show_trajectory(self, step: int, params: Any) -> int:
        """Sample, and show what was on the way. Returns the exit code."""
        import numpy as np

        from scoregen import mesh, report
        from scoregen.trajectory import save_animation, save_sheet, walk

        count = min(self.config.sampler.images, 16 if self.experiment.dataset.is_image else 400)
        self.say(f"sampling {count}, and keeping what is on the way")
        seen = self.signals.watch(lambda: walk(self.experiment, mesh.local(params), count))
        if seen is None:
            self.say(f"stopped; the training is saved. To begin again: {self.again}")
            return ended(self.signals)
        if not all(np.isfinite(part).all() for part in (seen.x, seen.x0)):
            raise UsageError("the walk is not finite: the sampler diverged; take smaller steps or train longer")
        files = [
            save_sheet(self.files / "trajectory.png", self.experiment, seen),
            save_animation(self.files / "trajectory.gif", self.experiment, seen),
        ]
        self.console.print()
        self.console.print(
            report.table(f"{self.config.name}: {self.mode}", self.summary(step, params, count), [], files)
        )
        return 0

    def loss(self) -> str:
        """The loss's name, and the unit of one that has a unit."""
        unit = getattr(self.experiment.loss, "unit", "")
        return f"loss {self.config.loss.name}" + {"bits": ", bits/dim", "nats": ", nats"}.get(unit, "")

    def weigh(self, step: int, params: Any) -> int:
        """Compute the likelihood of held-out data, and close with the table. Returns the exit code."""
        from scoregen import report
        from scoregen.judge import likelihoods
        from scoregen.log import Bar

        config, options = self.config, self.config.eval.likelihood
        count = min(options.examples, len(self.experiment.dataset.test))
        kinds = 2 if options.name == "both" else 1
        with Bar(self.console, f"likelihood of {count}, {options.name}", kinds * count) as bar:
            work = lambda: likelihoods(self.experiment, params, bar.update)  # noqa: E731
            found = self.signals.watch(work)
        if found is None:
            self.say(f"stopped; the training is saved. To begin again: {self.again}")
            return ended(self.signals)
        other = "" if config.sampler.process.name == "trained" else f", as {config.sampler.process.name}"
        held = "" if config.sampler.x0.name == "free" else f", x0 held by {config.sampler.x0.name}"
        classes = ", each told its class" if config.sampler.label < 0 else f", told the class {config.sampler.label}"
        told = classes if self.experiment.classes else ""
        what = [*self.trained(step, params), ("evaluated", f"{found[1]:,} held-out examples{told}{other}{held}")]
        what += [(measured.name, report.tell(measured)) for measured in found[0]]
        self.console.print()
        path = self.files / "likelihood.json"
        self.console.print(report.table(f"{config.name}: {self.mode}", what, [], [path]))
        # After they were said: figures that took hours are not lost to a disk that is full.
        report.save_likelihoods(path, self.experiment, step, *found)
        return 0

    def summary(self, step: int, params: Any, count: int) -> list[tuple[str, str]]:
        """What was trained and how it was sampled, as rows of the table."""
        from scoregen.train import levels

        sampler = self.config.sampler
        moves = (sampler.predictor, self.experiment.predictor), (sampler.corrector, self.experiment.corrector)
        parts = [f"{section.name}{_changed(move)}" for section, move in moves if section.name != "none"]
        other = "" if sampler.process.name == "trained" else f", as {sampler.process.name}"
        grid = "" if sampler.grid.name == "own" else f" spaced by {sampler.grid.name}{_changed(self.experiment.grid)}"
        sampled = (
            f"{count:,} by {' + '.join(parts)}{other}, {_so_many(levels(self.experiment), 'level')}{grid}{self.asked()}"
        )
        return [*self.trained(step, params), ("sampled", sampled), *self.steered()]

    def steered(self) -> list[tuple[str, str]]:
        """What the samples were told beside the noise, as a row of the table, or as none."""
        it, sampler = self.experiment, self.config.sampler
        told = []
        if it.classes:
            own = "each its own class" if it.control is not None else "classes as in the data"
            told.append(own if sampler.label < 0 else f"class {sampler.label}")
        if sampler.guidance != 1:
            told.append(f"guidance {sampler.guidance:g}")
        if sampler.x0.name != "free":
            told.append(f"x0 by {sampler.x0.name}")
        if it.control is not None:
            told.append(f"{sampler.control.name}{_changed(it.control)}")
        return [("steered", ", ".join(told))] if told else []

    def trained(self, step: int, params: Any) -> list[tuple[str, str]]:
        """What was trained, as rows of the table."""
        config = self.config
        net = f"{config.net.name}, {_size(params):,} parameters"
        trained, weighting = [config.loss.name], getattr(self.experiment.loss, "by", None)
        if weighting is not None:
            trained.append(f"weighted as {config.weighting.name}{_changed(weighting)}")
        if config.times.name != "own":
            trained.append(f"times by {config.times.name}{_changed(self.experiment.times)}")
        if config.log_variance:
            trained.append("scaled by a learned variance")
        gives = f"{config.target}, of an energy" if config.energy else config.target
        return [
            ("trained", f"{', '.join(trained)} on {config.data.name}, {step:,} steps of {config.train.batch}"),
            ("network", f"{net}, gives {gives}, knows {config.net.condition}"),
            ("process", f"{config.process.name}, {_extent(self.experiment.process)}"),
        ]


def _changed(move: Any) -> str:
    """The options of a predictor or corrector that are not at their defaults, in brackets."""
    fields = [(field.name, field.default, getattr(move, field.name)) for field in dataclasses.fields(move)]
    options = ", ".join(f"{name}={value}" for name, default, value in fields if value != default)
    return f" ({options})" if options else ""


def _so_many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _extent(process: Process) -> str:
    return f"{process.levels} levels" if process.discrete else "in continuous time"


def _size(params: Any) -> int:
    """The number of parameters."""
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(params))


if __name__ == "__main__":
    hush()
    sys.exit(main())
