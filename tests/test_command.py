"""The command `scoregen`: its grammar, its help, and the options that would have no effect."""

import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest
from refusal import refused as refuses

import scoregen.run
from scoregen.app import command, main, options
from scoregen.app import config as C
from scoregen.app.arguments import Flag, parse

ROOT = Path(__file__).parent.parent
DEFAULT = C.load("default")
KEYS = [key for key, _ in C.leaves(DEFAULT)]
MODES = C.MODES
NOT_JUDGED = ("--noconfig.eval.at_end",)


@pytest.fixture
def performed(monkeypatch):
    """The calls of `perform` that the command line makes; nothing is performed."""
    calls = []

    def perform(mode, config, workdir, console, again, **more):
        calls.append(types.SimpleNamespace(mode=mode, config=config, workdir=workdir, again=again, **more))
        return 0

    monkeypatch.setitem(sys.modules, "scoregen.app.actions", types.SimpleNamespace(perform=perform))
    return calls


def say(*argv, entry=main.main) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = entry([str(arg) for arg in argv])
    return code, out.getvalue(), err.getvalue()


def refused(*argv, parts=(), lines=1, entry=main.main) -> str:
    """The error output of a command that is refused with this number of lines."""
    code, out, err = say(*argv, entry=entry)
    assert code == 2 and out == ""
    assert [line.startswith("scoregen: ") for line in err.splitlines()] == [True] * lines, err
    for part in parts:
        assert str(part) in err
    return err


def done(performed, *argv, entry=main.main):
    """The call of `perform` that a successful command makes."""
    code, _, err = say(*argv, entry=entry)
    assert (code, err) == (0, "")
    return performed.pop()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a trained run, with only the files that the command line reads."""
    config = parse(["--config=ddpm_toy", "--config.train.steps=40", "--config.sampler.n=50"]).config
    return run_of(tmp_path_factory.mktemp("runs") / "made", config)


def run_of(folder: Path, config) -> Path:
    """The folder of a run with this configuration and an empty checkpoint: the command line reads no more."""
    (folder / "checkpoints" / "40").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(C.to_json(config))
    return folder


# The declared effects of options


def test_what_every_option_changes():
    """An option that is not listed here changes the trained network."""
    sections = {"results": ("sampler", "eval"), "training": ("data.dir",), "nothing": ("train.log",)}
    training = {f"train.{key}": "training" for key in ("steps", "microbatch", "checkpoint_every", "keep")}
    nothing = dict.fromkeys(
        [
            *("name", "train.log_every", "train.sample_every", "sampler.batch", "eval.likelihood.batch"),
            *("data.folder.prepared", "data.folder.strict"),
        ],
        "nothing",
    )
    for key in KEYS:
        inside = [effect for effect, names in sections.items() if any(f"{key}.".startswith(f"{n}.") for n in names)]
        expected = (training | nothing).get(key) or (inside or ["network"])[0]
        assert C.effect(key) == expected, key
        assert C.changes_network(key) == (expected == "network")
    assert not C.changes_network("sampler.process") and C.changes_network("loss") and C.changes_network("of.ones.own")


def test_what_an_option_changes_may_depend_on_others():
    steps = {name: C.effect("train.steps", parse(["--config=ddpm_toy", f"--config.schedule.name={name}"]).config)
             for name in C.load("default").schedule if name != "name"}  # fmt: skip
    assert steps == {"constant": "training", "inverse_sqrt": "training", "cosine": "network", "linear": "network"}
    assert C.effect("sampler.batch", C.load("ncsnpp_ve_cifar")) == "results"  # its corrector averages over the batch
    assert C.effect("data.dir", C.load("fashion_mnist")) == "nothing"  # whose files have checksums
    assert C.effect("data.dir", C.load("ddpm_cifar")) == "training"


def test_conditions_are_of_options_that_are_there():
    """A condition on a misspelt key or an impossible value would never hold."""
    for key in KEYS:
        for mode in ("", *MODES):
            for condition in options._conditions(key, DEFAULT, mode):
                value = C.get(DEFAULT, condition.key)
                holder = C.get(DEFAULT, condition.key.rpartition(".")[0])
                if condition.key.endswith(".name"):
                    assert set(condition.values) <= {n for n in holder if n != "name"}, condition
                else:
                    assert all(isinstance(v, type(value)) or isinstance(value, float) for v in condition.values), key


def another(value):
    """Another value of the same type."""
    if value is None:
        return 7
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, *value[-1:]) or (0.5,)
    if isinstance(value, float) and value > 1e9:
        return 1.0
    return value + "x" if isinstance(value, str) else value + 1


PARTS = [key for key in KEYS if not key.endswith("name") and C.idle(DEFAULT, [key])]


@pytest.mark.quick(72)
@pytest.mark.parametrize("key", PARTS)
def test_an_option_without_effect_is_named_with_what_would_give_it_one(key):
    """The line names the option. With the flags that the line proposes, the option has an effect."""
    (line,) = C.idle(DEFAULT, {key: f"--config.{key}=..."})
    assert line.startswith(f"--config.{key}=... has no effect: ")
    fixed = with_values(DEFAULT, dict(re.findall(r"--config\.([\w.]+)=(\w+)(?! or)", line.split(" or --config")[0])))
    for other in re.findall(r"another --config\.([\w.]+)", line):
        fixed = with_values(fixed, {other: another(C.get(fixed, other))})
    for above in re.findall(r"a --config\.([\w.]+) above 0", line):
        fixed = with_values(fixed, {above: "0.5"})
    for named in re.findall(r"choose a --config\.([\w.]+)", line):
        fixed = with_values(fixed, {named: "some_name"})
    assert C.idle(fixed, [key]) == []
    assert key in dict(C.leaves(C.used(fixed)))


def with_values(config, values):
    fresh = config.copy_and_resolve_references().unlock()
    for key, value in values.items():
        if isinstance(value, str):
            C.override(fresh, key, value, f"--config.{key}")
        else:
            with fresh.ignore_type():
                C.get(fresh, key.rpartition(".")[0])[key.rpartition(".")[2]] = value
    return fresh


def test_what_is_idle_is_not_used():
    """Options are idle because of parts, conditions or both. All other options are kept."""
    all_others = with_values(DEFAULT, {key: another(C.get(DEFAULT, key)) for key in PARTS})
    assert len(C.changes(DEFAULT, all_others)) == len(PARTS) > 100
    assert C.used(all_others).to_dict() == C.used(DEFAULT).to_dict()
    for name in C.preset_names():
        config = C.load(name)
        kept, every = dict(C.leaves(C.used(config))), dict(C.leaves(config))
        idle = {key for key in every if C.idle(config, [key])}
        assert set(kept) == set(every) - idle, name


@pytest.mark.parametrize("name", C.preset_names())
def test_the_presets_set_nothing_that_has_no_effect(name):
    config, base = C.load_with_base(name)
    assert C.changes(base, config)
    assert C.idle_in_preset(config, base, name) == []


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--config.loss.ssm.slices=4"], ["slices=4", "the loss 'ssm'", "'eps' is chosen", "--config.loss.name=ssm"]),
        (["--config.process.ncsn.levels=5"], ["the process 'ncsn'", "'ddpm' is chosen", "--config.process.name=ncsn"]),
        (["--config.net.unet.channels=8"], ["the net 'unet'", "'mlp' is chosen"]),
        (["--config.sampler.corrector.langevin.steps=8"], ["'langevin'", "'none' is chosen"]),
        (["--config.optimizer.adamw.weight_decay=0.1"], ["'adamw'", "--config.optimizer.name=adamw"]),
        (["--config.schedule.cosine.end=0.1"], ["--config.schedule.name=cosine"]),
        (["--config.train.ema.power.std=0.2"], ["--config.train.ema.name=power"]),
        (["--config.data.digits.seed=3"], ["the data 'digits'", "'mixture' is chosen"]),
        (["--config.data.dir=photos"], ["data.dir=photos", "the data is 'mixture'", "--config.data.name=cifar10"]),
        (["--data=/photos"], ["--data=/photos has no effect", "the data is 'mixture'"]),
        (["--config.label_dropout=0.2"], ["config.labels is False", "add --config.labels=true"]),
        (["--config.sampler.guidance=2.0"], ["config.labels is False"]),
        (["--config.sampler.label=3"], ["config.labels is False"]),
        (["--config.eval.samples=5", "--config.eval.at_end=false"], ["config.eval.at_end is False"]),
        (["--config.eval.likelihood.examples=5"], ["`scoregen train`", "likelihood uses it"]),
        (["--config.sampler.best=true"], ["sample, eval, trajectory and likelihood use it"]),
        (["--config.sampler.control.name=inpaint"], ["sample uses it"]),
        (["--config.process.ddpm.rescale=false"], ["config.process.ddpm.steps is 1000", "choose another"]),
        (
            ["--config.labels=true", "--config.sampler.label=3", "--config.sampler.guidance=0", *NOT_JUDGED],
            ["config.sampler.guidance is 0.0"],
        ),
        (["--config.net.centered=false"], ["the scaling is 'identity'", "--config.scaling.name=unit"]),
        (["--config.sampler.n=5", "--config.sampler.grid.name=list"], ["the sampler.grid is 'list'", "choose another"]),
        (["--config.sampler.step.ancestral.variance=large", "--config.sampler.step.ancestral.eta=0"], ["eta is 0.0"]),
        (["--config.sampler.step.edm.low=1", "--config.sampler.step.name=edm"], ["churn is 0.0"]),
        (["--config.loss.ssm.slices=1"], ["slices=1", "--config.loss.name=ssm"]),  # the value of the preset
        (["--config.label_dropout=0.1"], ["config.labels is False"]),
        (["--size=64"], ["--size=64", "the data 'folder'", "'mixture' is chosen"]),
    ],
)  # fmt: skip
def test_an_option_that_has_no_effect_is_an_error(argv, parts, performed):
    for entry, before in ((main.main, ["train", "ddpm_toy"]), (main.main, ["train", "--config=ddpm_toy"]),
                          (main.run, ["--config=ddpm_toy"])):  # fmt: skip
        line = refused(*before, *argv, parts=parts, entry=entry)
        assert "has no effect" in line and "leave it out" in line and not performed


def test_flags_that_ask_for_nothing_are_fine(performed):
    argv = ["--config.data.dir=", "--config.sampler.best=false", "--config.train.steps=8000"]
    assert done(performed, "train", "ddpm_toy", *argv).config == C.load("ddpm_toy")


def test_all_that_is_wrong_is_said_at_once(performed):
    err = refused(
        *(
            "train",
            "ddpm_toy",
            "--config.loss.ssm.slices=4",
            "--config.data.dir=x",
            "--config.train.lr=1",
            "--loss=ssm",
        ),
        *("--seed=-1", "--steps=many"),
        lines=6,
    )
    for part in ("loss.ssm.slices=4", "data.dir=x", "train.learning_rate", "loss.name=ssm", "seed=-1", "--steps=many"):
        assert part in err
    assert not performed


@pytest.mark.parametrize(
    ("mode", "argv", "part"),
    [
        ("sample", ["--config.eval.samples=5"], "train and eval use it"),
        ("sample", ["--config.eval.at_end=false"], "train uses it"),
        ("sample", ["--config.train.log_every=5"], "train uses it"),
        ("sample", ["--config.train.steps=50"], "train uses it"),
        ("sample", ["--config.train.keep=1"], "train uses it"),
        ("eval", ["--config.train.microbatch=4"], "train uses it"),
        ("eval", ["--config.sampler.control.name=inpaint"], "sample uses it"),
        ("trajectory", ["--config.eval.likelihood.examples=4"], "likelihood uses it"),
        ("likelihood", ["--config.sampler.n=5"], "train, sample, eval and trajectory use it"),
        ("likelihood", ["--config.sampler.images=5"], "train, sample, eval and trajectory use it"),
        ("likelihood", ["--config.sampler.step.name=dpm"], "train, sample, eval and trajectory use it"),
        ("likelihood", ["--config.sampler.denoise=false"], "train, sample, eval and trajectory use it"),
        ("sample", ["--config.loss.name=ssm"], "was trained with 'eps'"),
        ("eval", ["--config.train.learning_rate=1"], "was trained with 0.004"),
        ("likelihood", ["--config.seed=3"], "was trained with 0"),
    ],
)
def test_an_option_of_another_command_is_an_error(mode, argv, part, made, performed):
    line = refused(mode, made, *argv, parts=[argv[0], f"`scoregen {mode}`", part])
    assert "has no effect" in line and not performed


@pytest.mark.parametrize(
    ("mode", "argv"),
    [
        (
            "sample",
            ["--config.sampler.n=5", "--config.sampler.step.name=dpm", "--config.sampler.best=true", "--seed=3"],
        ),
        ("eval", ["--n=20", "--batch=10", "--config.sampler.corrector.name=snr", "--config.sampler.process.name=vp"]),
        ("likelihood", ["--n=20", "--batch=10", "--config.sampler.process.name=vp", "--config.sampler.best=true"]),
        ("likelihood", ["--config.eval.likelihood.name=ode", "--config.eval.likelihood.ode.rtol=1e-3"]),
        ("likelihood", ["--config.eval.likelihood.ode.rtol=1e-3", "--config.eval.likelihood.bound.strata=8"]),  # both
        ("trajectory", ["--n=20", "--config.sampler.denoise=false", "--seed=4"]),
        ("sample", ["--config.train.steps=40", "--config.sampler.n=50"]),  # the run's own values
    ],
)
def test_options_that_a_command_uses(mode, argv, made, performed):
    done(performed, mode, made, *argv)


def test_a_condition_may_be_of_one_command_alone(tmp_path, performed):
    """Whether distances are computed at the end of training says nothing about `scoregen eval`."""
    config = parse(["--config=ddpm_toy", "--config.eval.at_end=false"]).config
    run_of(tmp_path, config)
    done(performed, "eval", tmp_path, "--n=20")
    refused("train", tmp_path, "--config.eval.samples=20", parts=["config.eval.at_end is False"])
    assert "eval.samples" in dict(C.leaves(C.used(config)))


def test_a_run_can_be_named_by_the_flags_that_trained_it(made, tmp_path, monkeypatch, performed):
    """With `--config=PRESET --mode=sample` and the same flags. Flags with the run's own values are no error."""
    monkeypatch.chdir(tmp_path)
    name = "ddpm_toy,loss=ssm"
    argv = ["--config=ddpm_toy", "--config.loss.name=ssm", "--config.train.steps=40"]
    assert done(performed, *argv, entry=main.run).workdir == Path("runs", name)
    refused(*argv, "--mode=sample", parts=["no checkpoint in runs/ddpm_toy,loss=ssm"], entry=main.run)
    folder = run_of(Path("runs", name), parse(argv).config)
    assert done(performed, *argv, "--mode=sample", entry=main.run).workdir == folder
    line = refused(*argv[:2], "--config.train.steps=41", "--mode=sample", entry=main.run)
    assert "--config.train.steps=41 has no effect in `scoregen sample`" in line


def test_a_preset_file_is_warned_of_an_option_that_it_makes_idle(tmp_path, performed):
    """Once, and only about options that the file itself sets, not about options that flags make idle."""
    (path := tmp_path / "mine.py").write_text(
        "from scoregen.app.config import load\n\ndef get_config():\n    config = load('edm_toy')\n"
        "    config.loss.ssm.slices = 4\n    config.data.dir = 'photos'\n    config.label_dropout = 0.0\n"
        "    config.sampler.step.name = 'dpm'\n    return config\n"
    )
    code, _, err = say("train", path)
    assert code == 0 and performed
    assert err.splitlines() == [
        f"scoregen: {path}: config.data.dir='photos' has no effect: the data is 'mixture', and it needs cifar10 or "
        "cifar100 or fashion_mnist or idx or folder or array or table or hf",
        f"scoregen: {path}: config.loss.ssm.slices=4 has no effect: it belongs to the loss 'ssm', and 'x0' is chosen",
    ]
    path.write_text(
        path.read_text().replace("'dpm'", "'ancestral'").replace("loss.ssm", "loss.name = 'ssm'; config.loss.ssm")
    )
    code, _, err = say("train", path, "--config.loss.name=dsm")
    assert code == 0 and err.count("\n") == 1 and "data.dir" in err


# The grammar


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["train", "ddpm_toy", "--steps=5"], "train.steps", 5),
        (["train", "ddpm_toy", "--steps", "5"], "train.steps", 5),
        (["train", "--config=ddpm_toy", "--batch=5"], "train.batch", 5),
        (["train", "ddpm_toy", "--seed=4294967295"], "seed", 2**32 - 1),
        (["train", "ddpm_toy", "--data=moons"], "data.name", "moons"),
        (["train", "ddpm_cifar", "--data=/photos"], "data.dir", "/photos"),
        (["train", "ddpm_cifar", "--data=~"], "data.dir", "~"),
        (["train", "ddpm_cifar", "--data=holidays"], "data.dir", "holidays"),
        (["train", "ddpm_toy", "--config.optimizer.name=adamw"], "optimizer.name", "adamw"),
        (["sample", "RUN", "--n=5"], "sampler.images", 5),
        (["sample", "--n=5", "RUN"], "sampler.images", 5),
        (["sample", "RUN", "--seed=5"], "sampler.seed", 5),
        (["sample", "RUN", "--batch=5"], "sampler.batch", 5),
        (["eval", "RUN", "--n=5"], "eval.samples", 5),
        (["trajectory", "RUN", "--n=5"], "sampler.images", 5),
        (["likelihood", "RUN", "--n=5"], "eval.likelihood.examples", 5),
        (["likelihood", "--workdir=RUN", "--batch=5"], "eval.likelihood.batch", 5),
        (["train", "RUN", "--steps=50"], "train.steps", 50),
    ],
)
def test_short_flags(argv, key, value, made, performed):
    call = done(performed, *(arg.replace("RUN", str(made)) for arg in argv))
    assert C.get(call.config, key) == value
    assert call.mode == argv[0]
    assert call.workdir == (made if "RUN" in " ".join(argv) else call.workdir)
    if "RUN" in " ".join(argv):
        assert call.config.train.steps == (50 if argv[0] == "train" else 40)  # the run's own configuration


def test_the_four_ways_to_say_the_same(performed, made):
    """`scoregen MODE` is equal to `python -m scoregen.run --mode=MODE`."""
    for mode in MODES:
        flags = ["--config=ddpm_toy", f"--workdir={made}", "--config.sampler.process.name=vp"]
        calls = [done(performed, mode, *flags), done(performed, *flags, f"--mode={mode}", entry=main.run)]
        assert calls[0].config == calls[1].config and {call.mode for call in calls} == {mode}
        assert {call.workdir for call in calls} == {made}
        assert calls[0].again == f"scoregen {mode} {' '.join(flags)}"
        assert calls[1].again.startswith("python -m scoregen.run --config=ddpm_toy ")
    assert done(performed, "--config=ddpm_toy", entry=scoregen.run.main).mode == "train"
    assert done(performed, "sample", made, "--out=a b").out == Path("a b")
    call = done(performed, "train", "ddpm_toy", "--coordinator=h:1", "--process=1", "--processes=2")
    assert (call.coordinator, call.process, call.processes, call.out) == ("h:1", 1, 2, None)


def test_the_modules_and_the_script_are_the_command(monkeypatch):
    monkeypatch.setattr(main, "main", lambda argv=None: 7)
    monkeypatch.setattr(main, "run", lambda argv=None: 8)
    for path, code in {"scoregen/__main__.py": 7, "scoregen/run.py": 8}.items():
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / path), run_name="__main__")
        assert end.value.code == code
    script = re.search(r"scoregen = ([\w.]+):(\w+)", (ROOT / "setup.cfg").read_text())
    assert script is not None and getattr(importlib.import_module(script[1]), script[2]) is main.main


def test_every_package_is_shipped():
    text = (ROOT / "setup.cfg").read_text()
    listed = set(re.search(r"\npackages =\n((?:    .*\n)+)", text)[1].split())
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "scoregen").rglob("*.py")}
    assert listed == there | {"scoregen.configs"}
    assert "OS Independent" not in text and "POSIX :: Linux" in text and "MacOS" in text


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["tran"], ["no command 'tran'", "did you mean 'train'", "conformance"]),
        (["--config=ddpm_toy"], ["say which command first", "scoregen train --config=ddpm_toy"]),
        (["ddpm_toy", "--steps=5"], ["ddpm_toy is a preset", "scoregen train ddpm_toy --steps=5"]),
        (["train", "ddpm_tyo"], ["no preset 'ddpm_tyo'", "did you mean 'ddpm_toy'"]),
        (["train", "--steps=5"], ["--steps without --config", "--config=NAME", "ddpm_toy"]),
        (["train", "ddpm_toy", "--config=ncsn_toy"], ["both name a configuration"]),
        (["train", "ddpm_toy", "more"], ["unexpected argument 'more'"]),
        (["train", "ddpm_toy", "--mode=eval"], ["no flag '--mode'"]),
        # A suggested option has an effect in this command, or the line names the command that uses it.
        (["sample", "RUN", "--learning_rate=4"], ["'--config.train.learning_rate=4'", "of `scoregen train`?"]),
        (["sample", "RUN", "--steps=4"], ["'--config.sampler.n=4', the number of noise levels?"]),
        (["train", "ddpm_toy", "--config.sampler.step.name=DDIM"], ["did you mean 'ancestral' with the option eta=0?"]),
        (["train", "ddpm_toy", "--config.loss.name=mse"], ["did you mean 'eps'?"]),
        (["train", "DDPM_TOY"], ["did you mean 'ddpm_toy'"]),
        (["sample", "RUN", "--config.sampler.label=3"], ["only training can change this; leave it out"]),
        (["sample", "RUN/checkpoints"], ["no run in", "checkpoints: did you mean RUN?"]),
        (["train", "ddpm_toy", "ncsn_toy"], ["unexpected argument 'ncsn_toy': 'ddpm_toy' is already given"]),
        (["likelihood", "RUN", "--seed=3"], ["'--config.seed=3' of `scoregen train`?"]),
        (["sample", "RUN", "--lable=3"], ["did you mean '--config.sampler.label=3'?"]),
        (["train", "ddpm_toy", "--workdir="], ["--workdir= has no value"]),
        (["train", "ddpm_toy", "--steps=5", "--steps=6"], ["--steps is given twice"]),
        (["train", "ddpm_toy", "--steps=5", "--config.train.steps=5"], ["--steps and --config.train.steps", "twice"]),
        (["train", "ddpm_toy", "--data=moons", "--config.data.name=moons"], ["--config.data.name and --data", "twice"]),
        (["train", "ddpm_toy", "--data=mons"], ["no config.data.name 'mons'", "did you mean 'moons'"]),
        (["train", "ddpm_toy", "--data=holidays"], ["no config.data.name 'holidays'", "array, checkerboard"]),
        (["train", "ddpm_toy", "--process=one"], ["--process=one: an integer is needed"]),
        (["train", "ddpm_toy", "--config.loss.huber.delta=1"], ["no config.loss.huber.delta: config.loss holds: dsm"]),
        (["sample", "--n=5"], ["--n without --config"]),
        (["sample", "--batch", "5", "--out=x"], ["--batch without --config"]),
        (["sample", "--out=x"], ["say which run", "scoregen sample runs/"]),
        (["sample", "nothing/there"], ["no run in nothing/there", "no such folder", "scoregen train"]),
        (["eval", "ddpm_toy"], ["ddpm_toy is a preset", "scoregen train ddpm_toy"]),
        (["eval", "--config=ddpm_toy", "--workdir=nothing"], ["no checkpoint in nothing", "train first"]),
        (["likelihood", "RUN", "--workdir=x"], ["both name the run"]),
        (["sample", "RUN", "--config.sampler.n=x"], ["--config.sampler.n=x: an integer is needed"]),
    ],
)
def test_what_the_command_line_cannot_mean(argv, parts, made, tmp_path, monkeypatch, performed):
    monkeypatch.chdir(tmp_path)
    refused(*(arg.replace("RUN", str(made)) for arg in argv), parts=[part.replace("RUN", str(made)) for part in parts])
    assert not performed and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        (["--seed=-1"], ["--seed=-1: an integer from 0 to 4294967295 is needed"]),
        (["--config.net.mlp.dropout=2"], ["--config.net.mlp.dropout=2.0: a number from 0 to below 1 is needed"]),
        (["--steps=0", "--batch=0"], ["--steps=0: at least 1 is needed", "--batch=0: at least 1 is needed"]),
        (["--config.data.mixture.modes=0"], ["--config.data.mixture.modes=0: at least 1 is needed"]),
        (["--config.train.clip=-1"], ["--config.train.clip=-1.0: 0 or a positive finite number is needed"]),
        (
            ["--config.optimizer.adam.b1=2", "--config.schedule.constant.warmup=-1", "--config.train.clip=nan"],
            [
                "--config.train.clip=nan: 0 or a positive finite number is needed",
                "--config.schedule.constant.warmup=-1: at least 0 is needed",
                "--config.optimizer.adam.b1=2.0: a number from 0 to below 1 is needed",
            ],
        ),
    ],
)
def test_an_error_names_the_flag_that_was_typed(flags, lines, tmp_path):
    code, out, err = say("train", "ddpm_toy", f"--workdir={tmp_path / 'run'}", *flags)
    assert (code, out) == (2, "")
    assert err.splitlines() == [f"scoregen: {line}" for line in lines]
    assert not list(tmp_path.iterdir())


def test_folders_that_hold_no_run(tmp_path, monkeypatch, performed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    refused("sample", "empty", parts=["no run in empty", "no config.json"])
    (tmp_path / "fitted").mkdir()
    (tmp_path / "fitted" / "model.json").write_text("{}")
    refused("sample", "fitted", parts=["scoregen.fit", "scoregen.load('fitted')"])
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.json").write_text(C.to_json(C.load("ddpm_toy")))
    refused("sample", "mine", parts=["did you mean runs/mine"])
    refused("sample", "runs", parts=["did you mean one of the runs inside it, such as runs/mine?"])
    refused("eval", "runs/mine", parts=["no checkpoint in runs/mine: train first, with scoregen train runs/mine"])
    (tmp_path / "runs" / "mine" / "config.json").write_text("{")
    refused("sample", "runs/mine", parts=["runs/mine/config.json", "damaged"])
    refused("sample", "--workdir=fitted", parts=["scoregen.fit", "scoregen.load('fitted')"])
    assert not performed


def test_a_missing_checkpoint_is_said_first(tmp_path, performed):
    (tmp_path / "config.json").write_text(C.to_json(C.load("ddpm_toy")))
    for more in ((), ("--config.sampler.control.name=inpaint",), ("--config.net.mlp.width=8",)):
        refused("eval", tmp_path, *more, parts=[f"no checkpoint in {tmp_path}", "train first"])
    err = refused("eval", tmp_path, "--sed=1", lines=2)
    assert err.startswith(f"scoregen: no checkpoint in {tmp_path}") and "--seed" in err
    assert not performed


OWN = """
from ml_collections import ConfigDict
from scoregen.app.config import load, option

def get_config():
    config = load("ddpm_toy")
    with config.unlocked():
        sharp = option(True, changes="results")
        config.loss.huber = ConfigDict({"delta": option(1.0, when=".sharp=false"), "sharp": sharp})
    config.loss.name = "huber"
    return config
"""


def test_a_preset_with_parts_and_declarations_of_its_own(tmp_path, performed):
    """Its file is given with the run, and its options behave like the package's own."""
    (path := tmp_path / "mine.py").write_text(OWN)
    config = done(performed, "train", path, "--config.loss.huber.sharp=no", "--config.loss.huber.delta=2").config
    assert (config.loss.huber.delta, config.loss.huber.sharp) == (2.0, False)
    refused("train", path, "--config.loss.huber.delta=2", parts=["config.loss.huber.sharp is True", "sharp=false"])
    assert C.changes_network("loss.huber.delta") and not C.changes_network("loss.huber.sharp")
    run = run_of(tmp_path / "run", config)
    refused("sample", run, parts=["does not have (loss.huber)", "--config=FILE.py"])
    assert done(performed, "sample", run, f"--config={path}").config.loss.huber.delta == 2.0


def test_a_saved_section_that_is_none_is_named(tmp_path, performed):
    run = run_of(tmp_path / "run", C.load("ddpm_toy"))
    saved = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(saved | {"net": "mlp", "loss": 3}))
    refused("sample", run, parts=["config.json does not fit this version", "loss, net: a section is needed"])


def test_what_a_command_cannot_honour(tmp_path, made, performed):
    (path := tmp_path / "mine.py").write_text(
        "from scoregen.app.config import load\n\ndef get_config():\n    config = load('ddpm_digits')\n"
        "    config.sampler.control.name = 'inpaint'\n    return config\n"
    )
    for mode in ("train", "eval"):
        flags = [f"--config={path}", f"--workdir={made}"]
        refused(mode, *flags, parts=["completes held-out images", "--config.sampler.control.name=none"])
    label = ["--config.labels=true", "--config.sampler.label=3"]
    refused("train", "ddpm_digits", *label, parts=["config.sampler.label=3", "held-out data of all classes"])
    refused("eval", "--config=ddpm_digits", *label, f"--workdir={made}", parts=["held-out data of all classes"])
    assert not performed


@pytest.mark.parametrize("key", [key for key in KEYS if key.endswith("seed")])
@pytest.mark.parametrize("seed", [-1, 4294967296, 9223372036854775807, 18446744073709551616])
def test_seeds_have_one_range_that_is_checked_first(key, seed, performed):
    argv = ["train", "ddpm_toy", f"--config.{key}={seed}"]
    if key.startswith("data."):
        argv.append(f"--config.data.name={key.split('.')[1]}")
    refused(*argv, parts=[f"config.{key}={seed}", "from 0 to 4294967295"])
    done(performed, *argv[:2], f"--config.{key}=4294967295", *argv[3:])


# Suggestions


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--loss=ssm", "did you mean '--config.loss.name=ssm'?"),
        ("--los=ssm", "did you mean '--config.loss.name=ssm'?"),
        ("--loss.name=ssm", "did you mean '--config.loss.name=ssm'?"),
        ("--loss.ssm.slices=4", "did you mean '--config.loss.ssm.slices=4'?"),
        ("--confg.loss.name=dsm", "did you mean '--config.loss.name=dsm'?"),
        ("--target=v", "did you mean '--config.target=v'?"),
        ("--process=vp", "--process=vp: an integer is needed"),
        ("--lr=1e-3", "did you mean '--config.train.learning_rate=1e-3'?"),
        ("--learning_rate=1e-3", "did you mean '--config.train.learning_rate=1e-3'?"),
        ("--sampler.n=5", "did you mean '--config.sampler.n=5'?"),
        ("--predictor=heun", "did you mean '--config.sampler.step.name=heun'?"),
        ("--wrkdir=x", "did you mean '--workdir'?"),
        ("--step=5", "did you mean '--steps'?"),
        ("--batchsize=5", "did you mean '--batch'?"),
        ("--batch_size=5", "did you mean '--batch'?"),
        ("--config.train.lr=1e-3", "did you mean config.train.learning_rate?"),
        ("--config.train.bs=5", "did you mean config.train.batch?"),
        ("--config.train.step=5", "did you mean config.train.steps?"),
        ("--config.train.warmup=5", "did you mean config.schedule.constant.warmup?"),
        ("--config.lr=5", "did you mean config.train.learning_rate?"),
        ("--config.train.weight_decay=5", "or config.optimizer.adamw.weight_decay?"),
        ("--config.wd=5", "or config.optimizer.adamw.weight_decay?"),
        ("--config.optim.name=adamw", "did you mean config.optimizer.name?"),
        ("--config.optimzer.name=adamw", "did you mean config.optimizer.name?"),
        ("--config.data.size=64", "did you mean config.data.mixture.size?"),
        ("--config.data.std=0.1", "did you mean config.data.mixture.std?"),
        ("--config.loss.slices=4", "did you mean config.loss.ssm.slices or config.loss.fdssm.slices?"),
        ("--config.net.width=4", "did you mean config.net.mlp.width?"),
        ("--config.sampler.predictor.name=heun", "did you mean config.sampler.step.name?"),
        ("--config.sampler.eta=0", "did you mean config.sampler.step.ancestral.eta?"),
        ("--config.los.name=ssm", "did you mean config.loss.name?"),
        ("--config.model.name=unet", "did you mean config.net.name?"),
        ("--config.dropout=0.1", "did you mean config.net.mlp.dropout"),
        ("--config.zzz=1", "no config.zzz: config holds:"),
    ],
)  # fmt: skip
def test_what_was_meant_is_suggested(typed, meant, performed):
    assert meant in refused("train", "ddpm_toy", typed)


def test_the_chosen_part_comes_first(performed):
    for name in ("moons", "cifar10"):
        line = refused("train", "ddpm_toy", f"--config.data.name={name}", "--config.data.size=64")
        assert f"did you mean config.data.{name}.size?" in line
    line = refused("train", "ddpm_digits", "--config.data.size=64")  # the digits have no size
    assert line.partition("did you mean ")[2].partition("? ")[0].count(".size") == 3


def test_suggestions_need_a_configuration():
    """A command without a configuration suggests only its own flags."""
    refuses(lambda: parse(["--loss=ssm"], (Flag("out"),), needed=False), "no flag '--loss'", "--config, --out")


# The help


def test_the_command_alone_says_what_there_is():
    for argv in ([], ["--help"], ["-h"], ["help"]):
        code, out, err = say(*argv)
        assert (code, err) == (0, "")
        for name in (*main.COMMANDS, *main.OTHERS):
            assert f"scoregen {name}" in out
        assert "scoregen train ddpm_toy" in out and len(out.splitlines()) < 20
    assert re.fullmatch(r"scoregen \d+\.\d+.*\n", say("--version")[1])


@pytest.mark.parametrize("mode", MODES)
def test_every_command_has_a_help(mode):
    code, out, err = say(mode, "--help")
    assert (code, err) == (0, "")
    for flag in main.COMMANDS[mode].flags:
        assert f"{flag.usage} " in out and flag.help in out
    assert "--config.SECTION.OPTION=VALUE" in out and "Exit codes" in out
    assert ("4294967295" in out) == any(flag.name == "seed" for flag in main.COMMANDS[mode].flags)
    for name in C.preset_names():
        assert (f"  {name} " in out) == (mode == "train")
    assert out == say("help", mode)[1] == say(mode)[1] == say(f"--mode={mode}", "-h", entry=main.run)[1]


@pytest.mark.parametrize("mode", MODES)
def test_the_examples_of_the_help_are_understood(mode, made, tmp_path, monkeypatch, performed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text((ROOT / "configs" / "ddpm_toy.py").read_text())
    for example in main.COMMANDS[mode].examples:
        argv = example.split("   ")[0].split()
        for folder in [arg for arg in argv if arg.startswith("runs/")]:
            run_of(Path(folder), C.load(str(made / "config.json")))
        assert done(performed, *argv).mode == mode


@pytest.mark.parametrize("name", C.preset_names())
def test_the_commands_of_a_preset_are_understood(name, tmp_path, monkeypatch, performed):
    """The commands in its docstring are understood, and every flag in the text names an option and a possible value."""
    monkeypatch.chdir(tmp_path)
    text = re.sub(r" *\\\n *", " ", (ROOT / "configs" / f"{name}.py").read_text())
    run_of(Path("runs", name), C.load(name))
    lines = re.findall(r"^ {4}scoregen (.*)$", text, re.MULTILINE)
    lines += [line.replace("\n", " ") for line in re.findall(r"`scoregen ((?:train|eval|sample) [^`]+)`", text)]
    assert lines and lines[0].startswith(f"train {name}")
    for line in lines:
        labels = ["--config.labels=true"] if "label" in line and "sample" in line and name != "fashion_mnist" else []
        assert done(performed, *line.split(), *labels).mode in MODES
    config = C.load(name).copy_and_resolve_references().unlock()
    for key, value in re.findall(
        r"--config\.([\w.]+)=([\w.\-()]+?)(?=[,;.]?[\s)])", text.partition("from scoregen")[0]
    ):
        C.override(config, key, value, f"--config.{key}")
    C.check_choices(config)


# The environment


def test_the_backend_of_the_environment_does_not_matter(monkeypatch, performed):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    done(performed, "train", "ddpm_toy")
    assert os.environ["MPLBACKEND"] == "Agg"


PLATFORMS = {
    "cuda": ["JAX_PLATFORMS=cuda", "the extra 'cuda'", "pip install"],
    "gpu": ["JAX_PLATFORMS=gpu", "say JAX_PLATFORMS=cuda", "the extra 'cuda'", "pip install"],
    "tpu": ["JAX_PLATFORMS=tpu", "the extra 'tpu'"],
    "cdua": ["JAX_PLATFORMS=cdua", "did you mean cuda?", "cpu, cuda, tpu"],
    "metal": ["JAX_PLATFORMS=metal", "JAX has no platform 'metal'", "cpu, cuda, tpu"],
    "cuda,cpu": ["JAX_PLATFORMS=cuda,cpu", "the extra 'cuda'"],
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_line_for_a_device_that_is_not_there(platform, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    error = RuntimeError(f"Unable to initialize backend '{platform}': no such device")
    line = str(command.advice(error))
    assert all(part in line for part in PLATFORMS[platform]) and "\n" not in line
    monkeypatch.delenv("JAX_PLATFORMS")
    assert command.advice(error) == f"JAX finds no device: {error}"
    assert command.advice(RuntimeError("else")) is None and command.advice(AssertionError()) is None


def test_a_bare_assertion_of_jax_is_the_device_that_is_not_there(monkeypatch):
    """JAX raises it with no message, and cuts its own frames from the traceback: any command may meet it."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert command.advice(AssertionError()) is None  # the devices are there

    def missing():
        raise AssertionError

    monkeypatch.setattr("jax.devices", missing)
    assert "the extra 'cuda'" in str(command.advice(AssertionError()))


def test_the_devices_are_looked_for_first(monkeypatch, performed):
    def no_device():
        raise RuntimeError("Unable to initialize backend 'cuda': no device")

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", no_device)
    refused("train", "ddpm_toy", parts=PLATFORMS["cuda"])
    assert not performed
    done(performed, "train", "ddpm_toy", "--coordinator=host:1234")  # the processes have to be joined first


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "cdua"])
def test_a_device_that_is_not_there(platform, tmp_path):
    """JAX fails in two ways: with a bare AssertionError where it knows of the platform, else with a RuntimeError."""
    if importlib.util.find_spec("jax_cuda13_plugin") or importlib.util.find_spec("jax_cuda12_plugin"):
        pytest.skip("the wheels for it are installed here")
    env = os.environ | {"JAX_PLATFORMS": platform, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "scoregen", "train", "ddpm_toy", "--steps=1"]
    found = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1 and not list(tmp_path.iterdir())
    for part in ("scoregen: ", *PLATFORMS[platform]):
        assert part in found.stderr


def test_config_json_is_json(made):
    def no_constant(name):
        raise AssertionError(name)

    text = (made / "config.json").read_text()
    assert json.loads(text, parse_constant=no_constant)["sampler"]["step"]["edm"]["high"] == "Infinity"
    assert C.load(str(made / "config.json")).sampler.step.edm.high == float("inf")
