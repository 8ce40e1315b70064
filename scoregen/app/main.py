"""The command `scoregen`: all subcommands share one grammar, from training to the conformance matrix."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from scoregen.app import config as config_lib
from scoregen.app.arguments import CONFIG, Arguments, Flag, apply, no_config, read, two_configs
from scoregen.app.command import (
    HELP_FLAGS,
    answer,
    check_platform,
    leave_at_once,
    name_of,
    no_checkpoint,
    saved,
    say,
    say_flags,
    say_presets,
    suppress_warnings,
    warn,
)
from scoregen.app.selection import Selection, read_seeds, wrong_out
from scoregen.errors import UsageError

OUT = Flag("out", "the output folder (default: RUN)", value="FOLDER")
SAMPLED = Flag("batch", "batch size: samples drawn at a time", value="N", key="sampler.batch")
SEED = "random seed, 0 to 4294967295"
DRAWS = Flag("seed", f"{SEED} (default: the seed of the training)", value="N", key="sampler.seed")
DATA = Flag("data", "the name of a data set, or a file or a folder of data", value="NAME", key="data")
CONTEXT = Flag("y", "the context, in the units of the data, as 0.3,1.2", value="NUMBERS", key="sampler.context")
FOLDER = Flag("data", "the folder of the data, if it was moved since the training", value="FOLDER", key="data.dir")
PICTURES = (
    Flag("size", "of pictures: height and width in pixels, as 64 or (48,64)", value="N", key="data.folder.size"),
    Flag("prepared", "of pictures: where to store them when read", value="FOLDER", key="data.folder.prepared"),
)
HOSTS = (
    Flag("coordinator", "with several hosts: auto (TPU slice, Slurm job), or HOST:PORT of process 0", ""),
    Flag("process", "with --coordinator=HOST:PORT: the index of this process, from 0", kind=int, value="I"),
    Flag("processes", "with --coordinator=HOST:PORT: the number of processes", kind=int, value="N"),
)
MODE = Flag("mode", "train, sample, eval, trajectory or likelihood", "train")
WORKDIR = Flag(
    "workdir", "the folder of the run (default: runs/NAME; NAME is the preset and the changed options)", value="FOLDER"
)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that works on a run.

    Attributes:
        summary: what the command does, in half a line.
        about: what the command does, and which files it writes.
        examples: command lines, without the program's name.
        flags: the short flags for its options.
        takes: the argument before the flags.
    """

    summary: str
    about: str
    examples: tuple[str, ...]
    flags: tuple[Flag, ...]
    takes: str = "RUN"


COMMANDS: Mapping[str, Command] = {
    "train": Command(
        "train a model or continue a run, then sample and evaluate it",
        "Trains the model of a preset, samples from it, and computes distances to the held-out data. All files go into "
        "one folder, the run: index.html, a page that shows the run, checkpoints, metrics.jsonl, config.json, samples "
        "and figures. The same command continues "
        "a stopped run, and the result is the same as without the stop. `scoregen train RUN --steps=N` trains a run "
        "up to step N.",
        (
            "train ddpm_toy",
            "train images --data=photos --size=64",
            "train ncsn_cifar --data=DIR --config.loss.name=ssm",
            "train --config=mine.py --steps=5000 --workdir=runs/mine",
            "train ddpm_cifar --coordinator=auto          on each host of a TPU slice or a Slurm job",
        ),
        (
            DATA,
            *PICTURES,
            Flag("steps", "number of training steps", value="N", key="train.steps"),
            Flag("batch", "batch size: examples per training step", value="N", key="train.batch"),
            Flag("seed", SEED, value="N", key="seed"),
            WORKDIR,
        ),
        "PRESET",
    ),
    "sample": Command(
        "draw samples from a run",
        "Draws samples from the newest checkpoint of a run. Writes them in the units of the data, as samples.npy or as "
        "a table if the data are one, and a picture of them.\n\n"
        "With --out, writes each picture as a PNG file into a folder, or all samples into one .npz file. Other samples "
        "are written as samples.npy or as a table. Any number of samples fits into the memory, and the same command "
        "continues a stopped one. Several such commands at once share the work.",
        (
            "sample runs/ddpm_digits --n=64",
            "sample runs/ddpm_digits --n=50000 --out=images",
            "sample runs/ddpm_digits --seeds=0-63 --grid --out=images",
            "sample runs/ddpm_digits --n=50000 --out=samples.npz",
            "sample runs/ddpm_digits --config.sampler.step.name=unipc",
        ),
        (
            Flag("n", "number of samples", value="N", key="sampler.images"),
            Flag("seeds", "in place of --n and --seed: one sample for each seed, as 0-63 or 0,5,7-9", value="SEEDS"),
            Flag("classes", "the classes to draw in turn, as 0,3,5-7 or by name", value="CLASSES"),
            CONTEXT,
            DRAWS,
            SAMPLED,
            FOLDER,
            Flag("out", "a new folder, or a .npz file, for the samples (default: RUN)", value="PLACE"),
            Flag("grid", "with --out: also draw the first samples into one picture, PLACE-grid.png", False),
        ),
    ),
    "eval": Command(
        "compute the distances between a run's samples and held-out data",
        "Draws samples from the newest checkpoint of a run and computes their distances to the held-out data. The "
        "floor, the distance of a perfect sampler, is reported with each. Writes distances.json, the samples, a "
        "picture, and for images nearest.png, the samples beside their nearest training images.\n\n"
        "'at the floor' means that a perfect sampler may have the same distance; '1.9x the floor' means a distance "
        "that is 1.9 times as large. 'memorised' is the share of samples that are as near to a training image as the "
        "nearest 1 % of the held-out images are (the nearest one, if they are fewer than 100). If it is far above "
        "that of the held-out images, the network copies training images.",
        ("eval runs/ddpm_digits", "eval runs/ddpm_digits --n=500 --config.sampler.n=20"),
        (Flag("n", "number of samples", value="N", key="eval.samples"), DRAWS, SAMPLED, FOLDER, OUT),
    ),
    "likelihood": Command(
        "compute the likelihood of held-out data under a run",
        "Computes log p of held-out examples under the newest checkpoint of a run, by its ODE and by its variational "
        "bound. Writes likelihood.json. The only sampler options with an effect are process, x0, label, guidance and "
        "best.",
        ("likelihood runs/ddpm_digits --n=256", "likelihood runs/ddpm_toy --config.eval.likelihood.name=ode"),
        (
            Flag("n", "number of held-out examples", value="N", key="eval.likelihood.examples"),
            CONTEXT,
            Flag("batch", "batch size: examples evaluated at a time", value="N", key="eval.likelihood.batch"),
            FOLDER,
            OUT,
        ),
    ),
    "trajectory": Command(
        "show how samples of a run develop from noise to data",
        "Draws samples as `scoregen sample` does, at most 400 points or 16 images. Writes trajectory.png and "
        "trajectory.gif, which show x and the estimate of x0 at successive noise levels.",
        ("trajectory runs/ddpm_toy",),
        (Flag("n", "number of samples", value="N", key="sampler.images"), DRAWS, FOLDER, OUT),
    ),
}
# Commands with their own modules: a summary, and the module whose main(argv) runs the command.
OTHERS = {
    "data": ("show what a training would see of a folder of pictures", "scoregen.app.data"),
    "fid": ("compare pictures by FID, KID, precision and recall: of runs, folders and files", "scoregen.app.fid"),
    "sweep": ("run many configurations and compare them in one table", "scoregen.contrib.sweep.command"),
    "design": ("choose an NCSN's noise levels from the data", "scoregen.contrib.design.command"),
    "weights": ("import and export weights of other libraries", "scoregen.contrib.weights.command"),
    "conformance": ("check every process x target x loss against closed forms", "scoregen.app.conformance"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `scoregen`; returns the exit code."""
    program = "scoregen"
    if argv is None:
        suppress_warnings()
        if Path(sys.argv[0]).name == "__main__.py":
            program = "python -m scoregen"
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name == "help":
        arguments = [*rest, "--help"]
        name, rest = arguments[0], arguments[1:]
    if name in OTHERS:
        if argv is None:
            leave_at_once()  # before JAX is imported
        return importlib.import_module(OTHERS[name][1]).main(rest)
    if name in COMMANDS:
        typed = f"{program} {shlex.join(arguments)}"
        return answer(rest, functools.partial(_perform, name, typed, ()), functools.partial(_help, name))
    if name and not name.startswith("-"):  # an unknown command is an error, even with --help
        arguments = [argument for argument in arguments if argument not in HELP_FLAGS]
    return answer(arguments, _unknown, _overview)


def run(argv: Sequence[str] | None = None) -> int:
    """`python -m scoregen.run --config=NAME --mode=MODE`: the same as `scoregen MODE --config=NAME`."""
    if argv is None:
        suppress_warnings()
    argv = list(sys.argv[1:] if argv is None else argv)
    typed = f"python -m scoregen.run {shlex.join(argv)}"
    found = re.search(r"(?:^|\0)--?mode[=\0]([^\0]*)", "\0".join(argv))
    mode = found[1] if found else "train"
    if mode in COMMANDS:
        return answer(argv, functools.partial(_perform, mode, typed, (MODE,)), functools.partial(_help, mode))
    argv = [argument for argument in argv if argument not in HELP_FLAGS]  # an unknown mode is an error in any case
    return answer(argv, functools.partial(_refuse_mode, mode), _overview)


def _refuse_mode(mode: str, argv: Sequence[str], console: Console) -> int:
    raise UsageError(config_lib.unknown("--mode", mode, COMMANDS))


def _unknown(argv: Sequence[str], console: Console) -> int:
    """Refuses an unknown command, with the nearest known one."""
    name, every = argv[0], [*COMMANDS, *OTHERS]
    if name == "--version":
        from importlib.metadata import version

        say(console, f"scoregen {version('scoregen')}")
        return 0
    if name.startswith("-"):
        raise UsageError(f"say which command first, such as: scoregen train {shlex.join(argv)}")
    if name in config_lib.presets() or name.endswith(".py"):
        raise UsageError(f"{name} is a preset, not a command: say scoregen train {shlex.join(argv)}")
    near = difflib.get_close_matches(name, every, n=1)
    hint = f"did you mean {near[0]!r}? There" if near else "there"
    raise UsageError(f"no command {name!r}: {hint} are: {', '.join(every)}")


def _flags(mode: str) -> list[Flag]:
    """The flags of a command. Every command has --workdir, since it is another way to name the run."""
    own = COMMANDS[mode].flags
    run = dataclasses.replace(WORKDIR, help="the folder of the run, instead of RUN")
    return [CONFIG, *own, *([] if WORKDIR in own else [run]), *HOSTS]


def _perform(mode: str, typed: str, more: Sequence[Flag], argv: Sequence[str], console: Console) -> int:
    """Parse the command line, refuse it if it has errors, and call `actions.perform`.

    `typed` is the whole command line, for the message how to repeat it. `more` are additional flags.
    """
    found = read(argv, [*_flags(mode), *more], takes=1, mode=mode)
    preset, workdir, of_run = _named(mode, found)
    config = None
    if preset is not None or of_run is not None:
        try:
            config, base = config_lib.load_with_base(
                str(of_run or preset), (of_run and preset) or "default", mode == "train"
            )
            if of_run is None:
                warn(*config_lib.idle_in_preset(config, base, preset or ""))
        except UsageError as error:
            found.errors += error.args
    elif not found.errors:
        found.errors.append(_nothing_named(mode, found))
    if config is not None:
        apply(found, config)
        if workdir is None:
            changed = [(key, new) for key, _, new in found.changes if config_lib.changes_network(key, config)]
            workdir = Path("runs", name_of(config.name, changed))
        if mode != "train" and not saved(workdir):
            if (workdir / "config.json").is_file() or not found.positional:  # else `_named` has reported it
                found.errors[:0] = no_checkpoint(workdir).args
        else:
            found.errors += _without_effect(mode, found, workdir, of_run is not None) + _unfit(mode, found)
    selection = _selection(found) if mode == "sample" else None
    found.check()
    assert workdir is not None and config is not None
    out = found.values.get("out")
    hosts = {flag.name: found.values[flag.name] for flag in HOSTS}

    from scoregen.app.actions import perform  # imported here, so that a wrong flag is reported before JAX is used

    if not hosts["coordinator"]:
        check_platform()
    out = None if out is None else Path(out).expanduser()
    with found.as_typed():
        return perform(mode, config, workdir, console, typed, out=out, selection=selection, **hosts)


def _selection(found: Arguments) -> Selection:
    """What the flags say about the samples to draw. Errors are added to `found.errors`."""
    seeds, classes, out = (found.values[name] for name in ("seeds", "classes", "out"))
    numbers: tuple[int, ...] = ()
    if seeds is not None:
        numbers, errors = read_seeds(seeds)
        found.errors += errors
    pairs = (
        ("seeds", "sampler.images", "how many samples to draw"),
        ("seeds", "sampler.seed", "the seed"),
        ("classes", "sampler.label", "the class"),
    )
    for name, key, what in pairs:
        if name in found.given and key in found.overrides:
            found.errors.append(f"--{name} and {found.overrides[key].flag} both say {what}: say one of them")
    if found.values["grid"] and out is None:
        found.errors.append("--grid without --out: say --out=FOLDER; without it the command draws a picture anyway")
    if out is not None:
        found.errors += wrong_out(Path(out))
    return Selection(numbers, classes or "", found.values["grid"], "sampler.images" in found.overrides)


def _named(mode: str, found: Arguments) -> tuple[str | None, Path | None, Path | None]:
    """The preset, the folder of the run, and the saved configuration to start from, as the command line names them."""
    preset, workdir = found.values["config"], found.values["workdir"]
    run = found.positional[0] if found.positional else None
    if run is not None and mode == "train" and not (Path(run).expanduser() / "config.json").is_file():
        if preset is not None:
            found.errors.append(two_configs(run, preset))
        preset, run = run, None
    if run is not None:
        if workdir is not None:
            found.errors.append(f"{run} and --workdir={workdir} both name the run: say one of them")
        workdir = run
    if workdir is None:
        return preset, None, None
    folder = Path(workdir).expanduser()
    path = folder / "config.json"
    if not path.is_file():
        if run is not None or (mode != "train" and preset is None):
            found.errors.append(_no_run(workdir, mode))
        return preset, folder, None
    return preset, folder, path if run is not None or preset is None else None


def _no_run(run: str, mode: str) -> str:
    """The line for a folder that holds no run."""
    if (Path("runs", run) / "config.json").is_file():
        return f"no run in {run}: did you mean {shlex.quote(f'runs/{run}')}?"
    if run in config_lib.presets() or run.endswith(".py"):
        return (
            f"{run} is a preset, and `scoregen {mode}` needs the folder of a run: train one with scoregen train {run}"
        )
    folder = Path(run).expanduser()
    if (folder / "model.json").is_file():
        return (
            f"{run} has no config.json: if scoregen.fit trained it, say scoregen.load({run!r}) in Python; if not, "
            f"repeat its training command, with --workdir={shlex.quote(run)}"
        )
    if folder.parent not in (Path(), folder) and (folder.parent / "config.json").is_file():
        return f"no run in {run}: did you mean {shlex.quote(str(folder.parent))}?"
    if inside := min((path.parent.name for path in folder.glob("*/config.json")), default=None):
        one = shlex.quote(str(Path(run) / inside))
        return f"no run in {run}: did you mean one of the runs inside it, such as {one}?"
    what = "it has no config.json" if folder.is_dir() else "there is no such folder"
    return f"no run in {run}: {what}; scoregen train PRESET --workdir={shlex.quote(run)} makes one"


def _nothing_named(mode: str, found: Arguments) -> str:
    if typed := next(iter(found.overrides.values()), None):
        return f"{typed.flag} without --config: {no_config()}"
    return no_config() if mode == "train" else f"say which run, such as: scoregen {mode} runs/ddpm_toy"


def _without_effect(mode: str, found: Arguments, workdir: Path, of_run: bool) -> list[str]:
    """A line for each option on the command line that has no effect in this command.

    A command that does not train cannot change the network. An option that would change it is an error if the
    configuration comes from the run (`of_run`). If it comes from a preset, the option only tells which run is meant.
    An option with the value that the run has already is always accepted.
    """
    config, said = found.config, found.typed()
    lines = []
    if mode != "train":
        was = config_lib.from_json((workdir / "config.json").read_text(errors="replace"), str(workdir / "config.json"))
        values = dict(config_lib.leaves(was))
        for key in list(said):
            if key in values and repr(values[key]) == repr(config_lib.get(config, key)):
                del said[key]
            elif config_lib.changes_network(key, config):
                if of_run:
                    old = values.get(key)
                    lines.append(
                        f"{said[key]} has no effect in `scoregen {mode}`: it changes the trained network, and "
                        f"{workdir} was trained with {old!r}; leave it out, or train another run"
                    )
                del said[key]
    return lines + config_lib.idle(config, said, mode)


def _unfit(mode: str, found: Arguments) -> list[str]:
    """A line for each option of the configuration that this command does not support."""
    sampler, changed = found.config.sampler, {key for key, _, _ in found.changes}
    lines = []
    if mode != "sample" and sampler.control.name != "none" and "sampler.control.name" not in changed:
        lines.append(
            f"config.sampler.control.name={sampler.control.name} completes held-out images, which only "
            "`scoregen sample` can do: add --config.sampler.control.name=none"
        )
    compares = mode == "eval" or (mode == "train" and found.config.eval.at_end)
    if compares and found.config.labels and sampler.label >= 0:  # without labels the option has no effect at all
        lines.append(
            f"config.sampler.label={sampler.label} draws one class, but samples are compared with held-out data of all "
            "classes: use --config.sampler.label=-1, or `scoregen sample`"
        )
    return lines


# Help


def _overview(console: Console) -> None:
    say(console, "Score-based and diffusion generative models in JAX.\n")
    for name, command in COMMANDS.items():
        say(console, f"  scoregen {f'{name} {command.takes}':<20} {command.summary}")
    for name, (summary, _) in OTHERS.items():
        say(console, f"  scoregen {name:<20} {summary}")
    say(console, "\nStart with: scoregen train ddpm_toy (under a minute), then: scoregen sample runs/ddpm_toy")
    say(console, "`scoregen COMMAND --help` explains a command. `python -m scoregen` is the same as `scoregen`.")


def _help(mode: str, console: Console) -> None:
    command = COMMANDS[mode]
    line: Callable[[str], Any] = functools.partial(say, console)
    line(f"scoregen {mode} {command.takes} [--flag=value ...]\n")
    console.print(command.about, markup=False, highlight=False, soft_wrap=False, width=min(console.width, 100))
    line("")
    for example in command.examples:
        line(f"    scoregen {example}")
    if mode == "train":
        say_presets(console, "PRESET (or --config=PRESET)")
    else:
        line("\nRUN is a folder that `scoregen train` wrote. The command uses the configuration of the run. If the run")
        line("has parts from your own preset file, such as a network, name that file too: --config=FILE.py.")
    shown = [flag for flag in _flags(mode) if flag.name != "config"]
    short = [f" [--config.{flag.key}]" if flag.key and flag.key != "data" else "" for flag in shown]
    say_flags(console, [(flag.usage, flag.help + key) for flag, key in zip(shown, short, strict=True)])
    line(f"\n  --config.SECTION.OPTION=VALUE changes any other option. All options and their defaults are in\n  "
         f"{config_lib.FOLDER / 'default.py'}")  # fmt: skip
    line("  An option without effect and a flag that is given twice are errors.")
    named = "--config=PRESET" if mode == "train" else "--workdir=RUN"
    line(f"\nThe same: python -m scoregen.run --mode={mode} {named}")
    line(
        "\nExit codes: 0 done; 2 an error that you can fix, one line each; "
        "128 + n stopped by signal n, with everything saved."
    )


if __name__ == "__main__":
    sys.exit(main())
