"""The command `scoregen`: one grammar for everything, from training to the conformance matrix."""

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
from scoregen.app.arguments import CONFIG, Arguments, Flag, apply, no_config, read
from scoregen.app.command import (
    answer,
    check_platform,
    leave_at_once,
    name_of,
    no_checkpoint,
    saved,
    say,
    say_presets,
    suppress_warnings,
    warn,
)
from scoregen.errors import UsageError

OUT = Flag("out", "the folder for what it writes (RUN)", value="FOLDER")
SAMPLED = Flag("batch", "examples at a time", value="N", key="sampler.batch")
DRAWS = Flag("seed", "of the draws, 0 to 4294967295 (that of the training)", value="N", key="sampler.seed")
DATA = Flag("data", "a data set, or the folder of one", value="NAME", key="data")
FOLDER = Flag("data", "the folder of the data, where it was moved", value="FOLDER", key="data.dir")
HOSTS = (
    Flag("coordinator", "auto on each host of a TPU slice or a Slurm job, else HOST:PORT of the first", ""),
    Flag("process", "with HOST:PORT, the number of this process, from 0", kind=int, value="I"),
    Flag("processes", "with HOST:PORT, how many there are", kind=int, value="N"),
)
MODE = Flag("mode", "train, sample, eval, trajectory or likelihood", "train")
WORKDIR = Flag("workdir", "the folder of the run (runs/NAME, and what was changed of it)", value="FOLDER")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that works on a run.

    Attributes:
        summary: what it does, in half a line.
        about: what it does and where its files go.
        examples: command lines, without the program's name.
        flags: the short flags for its options.
        takes: what stands before its flags.
    """

    summary: str
    about: str
    examples: tuple[str, ...]
    flags: tuple[Flag, ...]
    takes: str = "RUN"


COMMANDS: Mapping[str, Command] = {
    "train": Command(
        "train a model, or go on with one; then sample and evaluate it",
        "Trains the model of a preset, samples from it, and computes distances to the held-out data. Everything goes "
        "into one folder, the run: checkpoints, metrics.jsonl, config.json, samples and figures. The same command goes "
        "on where a run was stopped, and ends in the same numbers. `scoregen train RUN --steps=N` trains it further.",
        (
            "train ddpm_toy",
            "train ncsn_cifar --data=DIR --config.loss.name=ssm",
            "train --config=mine.py --steps=5000 --workdir=runs/mine",
            "train ddpm_cifar --coordinator=auto          the same on each host of a TPU slice, or of a Slurm job",
        ),
        (
            DATA,
            Flag("steps", "training steps", value="N", key="train.steps"),
            Flag("batch", "examples a step", value="N", key="train.batch"),
            Flag("seed", "of everything that is drawn, 0 to 4294967295", value="N", key="seed"),
            WORKDIR,
        ),
        "PRESET",
    ),
    "sample": Command(
        "draw samples from a run",
        "Draws samples from the newest checkpoint of a run: samples.npz, and a picture of them.",
        ("sample runs/ddpm_digits --n=64 --out=images", "sample runs/ddpm_digits --config.sampler.step.name=unipc"),
        (Flag("n", "samples", value="N", key="sampler.images"), DRAWS, SAMPLED, FOLDER, OUT),
    ),
    "eval": Command(
        "compute the distances between a run's samples and held-out data",
        "Draws samples from the newest checkpoint of a run and computes their distances to the held-out data, beside "
        "what a perfect sampler would score: distances.json, samples.npz and a picture.",
        ("eval runs/ddpm_digits", "eval runs/ddpm_digits --n=500 --config.sampler.n=20"),
        (Flag("n", "samples", value="N", key="eval.samples"), DRAWS, SAMPLED, FOLDER, OUT),
    ),
    "likelihood": Command(
        "compute the likelihood of held-out data under a run",
        "Computes log p of held-out examples under the newest checkpoint of a run, by its ODE and by its variational "
        "bound: likelihood.json. Of the sampler only the process, x0, the label and the guidance count.",
        ("likelihood runs/ddpm_digits --n=256", "likelihood runs/ddpm_toy --config.eval.likelihood.name=ode"),
        (
            Flag("n", "held-out examples", value="N", key="eval.likelihood.examples"),
            Flag("batch", "examples at a time", value="N", key="eval.likelihood.batch"),
            FOLDER,
            OUT,
        ),
    ),
    "trajectory": Command(
        "show samples of a run on their way from noise to data",
        "Draws samples as `scoregen sample` does, at most 400 points or 16 images, and shows x and the estimates of x0 "
        "on the way: trajectory.png and trajectory.gif.",
        ("trajectory runs/ddpm_toy",),
        (Flag("n", "samples", value="N", key="sampler.images"), DRAWS, FOLDER, OUT),
    ),
}
# Commands with modules of their own: what each does, and where its main(argv) is.
OTHERS = {
    "sweep": ("run many configurations and compare them in one table", "scoregen.contrib.sweep.command"),
    "design": ("choose an NCSN's noise levels from the data", "scoregen.contrib.design.command"),
    "weights": ("import and export weights of other libraries", "scoregen.contrib.weights.command"),
    "conformance": ("check every combination of parts against closed forms", "scoregen.app.conformance"),
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
    return answer(argv, functools.partial(_refuse_mode, mode), _overview)


def _refuse_mode(mode: str, argv: Sequence[str], console: Console) -> int:
    raise UsageError(config_lib.unknown("--mode", mode, COMMANDS))


def _unknown(argv: Sequence[str], console: Console) -> int:
    """Refuses what is no command."""
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
    """The flags of a command; --workdir is another way to name its run."""
    own = COMMANDS[mode].flags
    run = dataclasses.replace(WORKDIR, help="the folder of the run: another way to say RUN")
    return [CONFIG, *own, *([] if WORKDIR in own else [run]), *HOSTS]


def _perform(mode: str, typed: str, more: Sequence[Flag], argv: Sequence[str], console: Console) -> int:
    """Parse the command line, refuse what cannot be, and hand over to `actions.perform`.

    `typed` is the whole command line, to be repeated; `more` are flags beside those of the command.
    """
    found = read(argv, [*_flags(mode), *more], takes=1, mode=mode)
    preset, workdir, of_run = _named(mode, found)
    config = None
    if preset is not None or of_run is not None:
        try:
            config, base = config_lib.load_with_base(str(of_run or preset), (of_run and preset) or "default")
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
            if (workdir / "config.json").is_file() or not found.positional:  # else it was said
                found.errors[:0] = no_checkpoint(workdir).args
        else:
            found.errors += _without_effect(mode, found, workdir, of_run is not None) + _unfit(mode, found)
    found.check()
    assert workdir is not None and config is not None
    out = found.values.get("out")
    hosts = {flag.name: found.values[flag.name] for flag in HOSTS}

    from scoregen.app.actions import perform  # here: a wrong flag is answered before JAX is used

    if not hosts["coordinator"]:
        check_platform()
    out = None if out is None else Path(out).expanduser()
    return perform(mode, config, workdir, console, typed, out=out, **hosts)


def _named(mode: str, found: Arguments) -> tuple[str | None, Path | None, Path | None]:
    """What a command line names: the preset, the folder of the run, and the saved configuration to begin from."""
    preset, workdir = found.values["config"], found.values["workdir"]
    run = found.positional[0] if found.positional else None
    if run is not None and mode == "train" and not (Path(run).expanduser() / "config.json").is_file():
        if preset is not None:
            found.errors.append(f"{run} and --config={preset} both name a configuration: say one of them")
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
        return f"no run in {run}: did you mean runs/{run}?"
    if run in config_lib.presets() or run.endswith(".py"):
        return (
            f"{run} is a preset, and `scoregen {mode}` needs the folder of a run: train one with scoregen train {run}"
        )
    folder = Path(run).expanduser()
    if (folder / "model.json").is_file():
        return f"{run} was trained by scoregen.fit and has no configuration: in Python, say scoregen.load({run!r})"
    what = "it has no config.json" if folder.is_dir() else "there is no such folder"
    return f"no run in {run}: {what}; scoregen train PRESET --workdir={run} makes one"


def _nothing_named(mode: str, found: Arguments) -> str:
    if typed := next(iter(found.overrides.values()), None):
        return f"{typed.flag} without --config: {no_config()}"
    return no_config() if mode == "train" else f"say which run, such as: scoregen {mode} runs/ddpm_toy"


def _without_effect(mode: str, found: Arguments, workdir: Path, of_run: bool) -> list[str]:
    """A line for each option on the command line that has no effect in this command.

    A command that does not train takes the network as it is. If its configuration is that of a preset, an option that
    changes the network says which run is meant, and so may an option of the training that has the run's own value.
    """
    config, said = found.config, found.said()
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
    """A line for each option of the configuration that this command cannot honour."""
    sampler, changed = found.config.sampler, {key for key, _, _ in found.changes}
    lines = []
    if mode != "sample" and sampler.control.name != "none" and "sampler.control.name" not in changed:
        lines.append(
            f"config.sampler.control.name={sampler.control.name} completes held-out images, in `scoregen sample` "
            "alone: add --config.sampler.control.name=none"
        )
    if sampler.label >= 0 and (mode == "eval" or (mode == "train" and found.config.eval.at_end)):
        lines.append(
            f"config.sampler.label={sampler.label}: samples are compared with held-out data of all classes: add "
            "--config.sampler.label=-1, or use `scoregen sample`"
        )
    return lines


# Help


def _overview(console: Console) -> None:
    say(console, "Score-based and diffusion generative models in JAX.\n")
    for name, command in COMMANDS.items():
        say(console, f"  scoregen {f'{name} {command.takes}':<20} {command.summary}")
    for name, (summary, _) in OTHERS.items():
        say(console, f"  scoregen {name:<20} {summary}")
    say(console, "\nBegin with:  scoregen train ddpm_toy        under a minute; then: scoregen sample runs/ddpm_toy")
    say(console, "Each says more with --help. `python -m scoregen` is the same as `scoregen`.")


def _help(mode: str, console: Console) -> None:
    command = COMMANDS[mode]
    line: Callable[[str], Any] = functools.partial(say, console)
    line(f"scoregen {mode} {command.takes} [--flag=value ...]\n")
    console.print(command.about, markup=False, highlight=False, soft_wrap=False, width=min(console.width, 100))
    line("")
    for example in command.examples:
        line(f"    scoregen {example}")
    if mode == "train":
        line("\nPRESET, or --config=NAME, is one of these, or the path of a .py file with a get_config():\n")
        say_presets(console)
    else:
        line("\nRUN is a folder that scoregen train wrote. Its configuration is the run's own; if a preset file of")
        line("yours brought parts of its own, such as a network, name that file too: --config=FILE.py.")
    line("\nFlags:\n")
    shown = [flag for flag in _flags(mode) if flag.name != "config"]
    for flag in shown:
        short = f" [--config.{flag.key}]" if flag.key and flag.key != "data" else ""
        line(f"  {flag.usage:<20} {flag.help}{short}")
    line(f"\n  --config.SECTION.OPTION=VALUE changes any other option. They are listed, with their defaults, in\n  "
         f"{config_lib.FOLDER / 'default.py'}")  # fmt: skip
    line("  An option that would have no effect is refused, as is a flag that is given twice.")
    others = " or ".join(other for other in COMMANDS if other != mode)
    line(f"\nThe same: python -m scoregen.run --config=PRESET --mode={mode} (or {others})")
    line(
        "\nExit codes: 0 done; 2 something to fix, said in one line; 128 + n ended by signal n, with everything saved."
    )


if __name__ == "__main__":
    sys.exit(main())
