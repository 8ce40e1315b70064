"""The command line as a user sees it: what a run writes, how it continues, and how it is refused."""

import contextlib
import io
import itertools
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from html_page import read_page
from rich.console import Console
from small import same

from scoregen import files, run
from scoregen.app import actions, record
from scoregen.app import config as config_lib
from scoregen.app import main as command
from scoregen.app.arguments import parse
from scoregen.app.build import build
from scoregen.app.config import presets
from scoregen.data import points
from scoregen.data.cifar10 import PUBLISHED
from scoregen.errors import UsageError
from scoregen.samplers import Langevin
from scoregen.train import Checkpoints, MetricsLog, init_state, loggers, loop

ROOT = Path(__file__).parent.parent
NET = ("--config.net.mlp.width=8", "--config.net.mlp.depth=1", "--config.net.mlp.embedding=8")
TINY = (
    *("--config=ddpm_toy", "--config.data.mixture.size=200", *NET),
    *("--config.train.steps=6", "--config.train.batch=8", "--config.train.log_every=1"),
    *("--config.train.checkpoint_every=3", "--config.sampler.n=5", "--config.sampler.batch=20"),
    *("--config.sampler.images=20", "--config.eval.samples=30"),
)


def once(argv) -> list[str]:
    """The arguments with only the last of repeated flags, and without `eval.samples` if no distance is computed."""
    flags = {str(arg).partition("=")[0]: str(arg) for arg in argv}
    if flags.get("--config.eval.at_end") == "--config.eval.at_end=False":
        flags.pop("--config.eval.samples", None)
    return list(flags.values())


@pytest.fixture(autouse=True, scope="module")
def few_held_out_points():
    """Few held-out points, so that the distances take little time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "TEST_SIZE", 100)
        yield


def main(*argv) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run.main(once(argv))
    return code, out.getvalue(), err.getvalue()


def done(*argv) -> str:
    """The output of a run that ends well."""
    code, out, err = main(*argv)
    assert (code, err) == (0, "")
    return out


def refused(*argv, parts=(), lines=1) -> str:
    """The lines, usually one, with which a run is refused."""
    code, out, err = main(*argv)
    assert code == 2
    assert err.startswith("scoregen: ") and err.count("\n") == lines, err
    assert "Traceback" not in out + err
    for part in parts:
        assert str(part) in err
    return err


def steps_logged(workdir) -> list[int]:
    return [row["step"] for row in MetricsLog.read(workdir) if "loss" in row]


def state_of(workdir, *argv):
    """The whole state of the newest checkpoint, and its step."""
    parts = build(parse(once(argv)).config)
    of = parts.model, parts.objective, parts.optimizer, (1, *parts.dataset.shape)
    template = jax.eval_shape(lambda: init_state(*of))
    found = Checkpoints(workdir / "checkpoints").restore(template)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run from beginning to end with its distances: (workdir, stdout)."""
    workdir = tmp_path_factory.mktemp("runs") / "deep" / "first run"
    return workdir, done(*TINY, f"--workdir={workdir}")


@pytest.fixture
def trained(first, tmp_path):
    """A copy of that run's folder, which a test may change."""
    return Path(shutil.copytree(first[0], tmp_path / "run"))


def test_a_run_writes_what_its_table_names(first):
    workdir, out = first
    named = [Path(found) for found in re.findall(rf"{re.escape(str(workdir))}/\S+", out)]
    assert {path.name for path in named} == {
        *("index.html", "distances.json", "samples.npy", "figure.png", "loss.png", "metrics.jsonl", "checkpoints"),
        "config.json",
    }
    assert named[0].name == "index.html" and all(path.exists() for path in named)
    assert "eps on mixture, 6 steps of 8" in out and "   floor " in out
    for name in ("figure.png", "loss.png"):
        assert picture_spread(workdir / name) > 0.05

    samples = np.load(workdir / "samples.npy")
    assert samples.shape == (30, 2) and np.isfinite(samples).all() and samples.std(0).min() > 0
    distances = json.loads((workdir / "distances.json").read_text())
    assert (distances["step"], distances["samples"]) == (6, 30)
    assert all(row["value"] > row["floor"] > 0 for row in distances["distances"])  # six steps are too few to learn
    assert json.loads((workdir / "model.json").read_text())["batch"] == 8
    assert steps_logged(workdir) == [1, 2, 3, 4, 5, 6]
    assert json.loads((workdir / "config.json").read_text())["train"]["batch"] == 8
    assert list((workdir / "tensorboard").glob("events*"))


def picture_spread(path: Path) -> float:
    """The standard deviation over all pixels of a PNG, of 1; an empty page has 0."""
    from matplotlib.image import imread

    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return float(imread(path)[..., :3].std())


def strict(text: str):
    """The value of strict JSON."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_a_run_writes_is_strict_json(first):
    workdir = first[0]
    for name in ("config.json", "model.json", "distances.json", "page/record.json"):
        strict((workdir / name).read_text())
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        strict(line)


def test_a_run_has_a_page(first):
    """The numbers of the page are those of the run's files, and its training command has the run's configuration."""
    workdir, out = first
    page = read_page(workdir)
    assert "Finished: 6 steps." in page.text and "None of the checks of this run has warned." in page.text
    network = re.search(r"^network +(.*?) *$", out, re.MULTILINE)
    assert network is not None and network[1] in page.text
    value = re.search(r"^sliced Wasserstein +([\d.]+)", out, re.MULTILINE)
    assert value is not None and f">{value[1]}<" in (workdir / "index.html").read_text()
    train = shlex.split(page.codes[0])
    found, config = parse(train[2:-1], mode="train").config, config_lib.load(str(workdir / "config.json"))
    assert config_lib.changes(config_lib.used(found), config_lib.used(config)) == []
    assert [alt for alt, _ in page.images][-1] == "samples at step 6"


@pytest.mark.slow
def test_a_page_is_renewed_during_the_training_and_by_what_follows(tmp_path, monkeypatch):
    seen = []
    write = record.Record.renew

    def renew(self, *args, **options):
        write(self, *args, **options)
        text = self.path.read_text()
        state = re.search("<p>([^<]*)", text)
        seen.append((state and state[1].strip(), len(re.findall('class="frame[ "]', text)), "Wasserstein" in text))

    monkeypatch.setattr(record.Record, "renew", renew)
    monkeypatch.setattr(record, "SHARE", 0)  # renewed each time
    done(*TINY, "--config.train.sample_every=2", f"--workdir={tmp_path}")
    # After steps 1 and 4, one after a checkpoint at step 3; after the pictures of steps 2 and 4; and at the end.
    assert seen == [
        *(("Training: step 1 of 6.", 0, False), ("Training: step 2 of 6.", 0, False)),
        *(("Training: step 4 of 6.", 2, False), ("Finished: 6 steps.", 2, False), ("Finished: 6 steps.", 3, True)),
    ]
    few = ("--config.eval.likelihood.examples=4", "--config.eval.likelihood.bound.strata=8")
    done("--mode=likelihood", f"--workdir={tmp_path}", *few)
    page = read_page(tmp_path)
    assert "4 held-out examples, at step 6." in page.text
    done("--mode=sample", f"--workdir={tmp_path}", "--config.sampler.images=7")
    assert "7 by ancestral" in read_page(tmp_path).text
    assert seen[-1][1] == 3  # sampling is no training
    done(*TINY, "--config.train.steps=8", f"--workdir={tmp_path}")
    assert seen[-1] == ("Finished: 8 steps.", 4, True)


@pytest.mark.slow
def test_a_training_that_fails_says_so_on_its_page(tmp_path):
    huge = (*TINY, "--config.train.learning_rate=1e30", "--config.train.clip=0", f"--workdir={tmp_path}")
    err = refused(*huge, parts=["became"])
    text = (tmp_path / "index.html").read_text()
    assert "Failed after step" in text and err.removeprefix("scoregen: ").split(";")[0] in read_page(tmp_path).text


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "loss.png"), UsageError("too far", "no")])
def test_whatever_ends_a_training_is_on_its_page(tmp_path, error):
    """Also in a cell of a sweep, which trains without the function of the commands."""

    class Failing(actions.Action):
        def __init__(self, folder):
            self.mode, self.record = "train", record.Record(folder, True, print)

        def warn_of_start(self):
            raise error

    failing: Any = Failing(tmp_path)
    failing.record.training = True
    with pytest.raises(type(error)):
        failing.results(None)
    said = {OSError: "loss.png: No space left on device", UsageError: "too far; no"}[type(error)]
    assert record.read(tmp_path)["failed"] == said


def test_the_table_names_a_page_only_if_it_was_written(tmp_path):
    page = io.StringIO()
    parts = {"config": SimpleNamespace(name="x"), "console": Console(file=page, width=300), "mode": "eval"}
    for made in (False, True):
        (tmp_path / "config.json").write_text(config_lib.to_json(config_lib.load("ddpm_toy")) if made else "{")
        kept = record.Record(tmp_path, True, lambda line: None)
        actions.Action.close(SimpleNamespace(record=kept, **parts), [], [], [])  # pyright: ignore
        assert ("index.html" in page.getvalue()) == made == kept.path.exists()


@pytest.mark.slow
def test_a_run_with_a_logger_of_ones_own_needs_it_only_to_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = "from scoregen.train import LOGGERS, JsonLines\nfrom scoregen.app.config import load\n"
    own += "class Table(JsonLines):\n    def start(self, run): pass\n    def scalars(self, step, values): pass\n"
    own += "    def close(self): pass\nLOGGERS['table'] = Table\ndef get_config():\n"
    own += "    config = load('ddpm_toy')\n    config.train.log.table = True\n    return config\n"
    Path("my logger.py").write_text(own)
    try:
        argv = [*TINY[1:], "--config.train.steps=2", "--config.eval.at_end=False", "--workdir=runs/x"]
        code, out, err = main("--config=my logger.py", *argv)
    finally:
        loggers.LOGGERS.pop("table", None)
    assert (code, err) == (0, ""), err
    assert "to compute them: scoregen eval runs/x '--config=my logger.py'" in " ".join(out.split())
    code, _, err = main("--workdir=runs/x", "--mode=sample")
    assert (code, err) == (0, ""), err
    assert (tmp_path / "runs/x/index.html").is_file()


@pytest.mark.slow
def test_the_nearest_training_images_are_drawn(tmp_path):
    done(
        *("--config=ddpm_digits", "--config.net.name=mlp", *NET, "--config.train.steps=2", "--config.train.batch=8"),
        *("--config.sampler.n=3", "--config.sampler.batch=9", "--config.sampler.images=9", f"--workdir={tmp_path}"),
        "--config.eval.samples=20",
    )
    page = read_page(tmp_path)
    assert picture_spread(tmp_path / "nearest.png") > 0.05
    assert [alt for alt, _ in page.images][-3:-1] == ["9 samples at step 2", "9 held-out examples"]
    assert page.images[-1][0].startswith("The samples that are nearest to a training image")


@pytest.mark.slow
def test_results_go_to_another_folder_if_it_is_named(trained, tmp_path):
    kept = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        argv = ["eval", str(trained), "--n=10", f"--out={tmp_path / 'deep' / 'results'}"]
        assert command.main(argv) == 0
    assert {path.name for path in (tmp_path / "deep" / "results").iterdir()} == {
        *("samples.npy", "figure.png", "distances.json")
    }
    assert str(tmp_path / "deep" / "results") in out.getvalue()
    assert {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()} == kept


@pytest.mark.slow
def test_a_start_far_from_the_prior_is_said_with_its_number(tmp_path):
    """A chain of 50 steps with the betas of 1000 has alpha = 0.78 at the noisiest level."""
    short = ("--config.process.ddpm.steps=50", "--config.process.ddpm.rescale=false")
    far = "sampling starts far from the prior: at its first level the data make up 0.78 of the standard deviation of x"
    out = done(*TINY, *short, "--config.eval.at_end=False", f"--workdir={tmp_path}")
    assert far in out
    for mode in (["--mode=sample"], ["--mode=eval", "--config.eval.samples=30"]):
        out = done(f"--workdir={tmp_path}", *mode, "--config.sampler.images=5")
        assert far in out and "StartWarning" not in out
    langevin = ("--config.sampler.corrector.name=langevin", "--config.sampler.corrector.langevin.steps=2")
    out = done(
        f"--workdir={tmp_path}", "--mode=sample", *langevin, "--config.sampler.corrector.langevin.step_size=1e-5"
    )
    assert "far from" not in out


def elsewhere(*argv, **env) -> subprocess.CompletedProcess:
    """The command line in a process of its own, with another environment."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    argv = [sys.executable, "-m", "scoregen.run", *once(argv)]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.slow
def test_figures_do_not_depend_on_the_backend_of_a_notebook(tmp_path):
    """A notebook sets this backend for `!python -m scoregen.run`."""
    backend = "module://matplotlib_inline.backend_inline"
    found = elsewhere(*TINY, "--config.train.steps=2", f"--workdir={tmp_path}", MPLBACKEND=backend)
    assert (found.returncode, found.stderr) == (0, "")
    assert {"figure.png", "loss.png", "distances.json"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_likelihoods_with_64_bit_types(trained):
    """The bound and the ODE of float32 data are finite."""
    few = ("--config.eval.likelihood.examples=4", "--config.eval.likelihood.bound.strata=8")
    found = elsewhere("--mode=likelihood", f"--workdir={trained}", *few, JAX_ENABLE_X64="1")
    assert (found.returncode, found.stderr) == (0, "")
    kept = strict((trained / "likelihood.json").read_text())
    assert [line["name"] for line in kept["likelihoods"]][:2] == ["bound", "ode"]
    assert all(np.isfinite(line["value"]) for line in kept["likelihoods"])


def test_everything_that_cannot_be_is_said_each_on_a_line(tmp_path):
    argv = (*TINY, "--config.train.batch=-1", "--config.sampler.x0.name=clip", "--config.target=velocity")
    parts = ["config.train.batch=-1", "--config.sampler.x0.name=free", "--config.target=v or --config.process.name=vp"]
    refused(*argv, f"--workdir={tmp_path / 'run'}", parts=parts, lines=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_best_checkpoint_can_be_sampled(tmp_path, monkeypatch):
    """Here the held-out loss only rises, so the first checkpoint is the best. By default the newest is sampled."""
    rising = itertools.count()
    monkeypatch.setattr(loop, "make_eval", lambda *_, **__: lambda *_: float(next(rising)))
    done(*TINY, f"--workdir={tmp_path}")
    assert "6 steps of 8" in done(*TINY, "--mode=sample", f"--workdir={tmp_path}")
    assert "3 steps of 8" in done(*TINY, "--mode=sample", "--config.sampler.best=true", f"--workdir={tmp_path}")


@pytest.mark.slow
def test_two_trainings_go_to_two_folders(tmp_path, monkeypatch):
    """Without --workdir, what changes the training changes the folder, and nothing else does."""
    monkeypatch.chdir(tmp_path)
    for flags in ((), ("--config.loss.name=ssm",), ("--config.sampler.step.ancestral.eta=0.5",)):
        done(*TINY, *flags)
    plain, ssm = sorted((path.name for path in Path("runs").iterdir()), key=lambda name: "loss=ssm" in name)
    assert plain.startswith("ddpm_toy,") and ",loss=ssm," in ssm and "eta" not in plain


@pytest.fixture
def steps_of_any_size(monkeypatch):
    """Langevin steps that must diverge are refused by default. These tests need them to diverge."""
    monkeypatch.setattr(Langevin, "refuse", lambda self, process: None)


@pytest.mark.slow
@pytest.mark.usefixtures("steps_of_any_size")
def test_a_picture_that_fails_does_not_end_the_training(tmp_path):
    sampler = ("hold", "langevin")
    out = main(
        *(*TINY, "--config.train.sample_every=3", f"--workdir={tmp_path}"),
        *(f"--config.sampler.{part}.name={name}" for part, name in zip(("step", "corrector"), sampler, strict=True)),
        "--config.sampler.corrector.langevin.step_size=1e9",
    )
    assert "no picture at step 3: the sampler diverged" in out[1]
    assert max(steps_logged(tmp_path)) == 6 and Checkpoints(tmp_path / "checkpoints").latest_step() == 6


@pytest.mark.slow
def test_images_come_as_grids(tmp_path):
    out = done(
        *("--config=ddpm_digits", "--config.net.name=mlp", *NET, "--config.train.steps=4", "--config.train.batch=8"),
        *("--config.train.sample_every=2", "--config.sampler.n=3", "--config.sampler.batch=9"),
        *("--config.sampler.images=9", "--config.eval.at_end=False", f"--workdir={tmp_path}"),
    )
    assert "images of digits" in out and f"scoregen eval {tmp_path}" in " ".join(out.split())
    assert {path.name for path in tmp_path.glob("*.png")} == {"samples.png", "samples_0000002.png", "loss.png"}
    assert picture_spread(tmp_path / "samples.png") > 0.05
    assert np.load(tmp_path / "samples.npy").shape == (9, 8, 8, 1)


@pytest.mark.slow
def test_a_run_that_is_cut_and_goes_on_ends_in_the_same_bits(first, tmp_path):
    done(*TINY, "--config.train.steps=3", f"--workdir={tmp_path}")
    out = done(*TINY, "--config.train.steps=6", f"--workdir={tmp_path}")
    assert "found the checkpoint of step 3" in out and "continuing to step 6" in out
    (straight, a), (cut, b) = (state_of(workdir, *TINY) for workdir in (first[0], tmp_path))
    assert a == b == 6
    assert same(straight, cut)
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 5, 6]
    losses = [[row["loss"] for row in MetricsLog.read(w) if "loss" in row] for w in (first[0], tmp_path)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(trained):
    before = state_of(trained, *TINY)
    metrics = (trained / "metrics.jsonl").read_bytes()
    out = done(*TINY, f"--workdir={trained}")
    assert "found the checkpoint of step 6" in out and "training is already complete" in out
    assert "training ddpm_toy" not in out
    out = done(*TINY, "--config.train.steps=4", f"--workdir={trained}")
    assert "checkpoint of step 6 in" in out and "nothing to train up to --steps=4; for a new run" in out
    assert (trained / "metrics.jsonl").read_bytes() == metrics
    assert same(before, state_of(trained, *TINY))


@pytest.mark.slow
def test_the_same_samples_in_batches_of_any_size(trained):
    drawn = []
    for batch in (20, 7):
        out = done(*TINY, "--mode=sample", f"--config.sampler.batch={batch}", f"--workdir={trained}")
        assert "ddpm_toy: sample" in out and "sliced Wasserstein" not in out
        drawn.append(np.load(trained / "samples.npy"))
    assert drawn[0].shape == drawn[1].shape == (20, 2)
    assert np.allclose(drawn[0], drawn[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_eval_takes_the_newest_checkpoint(first, trained):
    (trained / "distances.json").unlink()
    out = done(*TINY, "--mode=eval", f"--workdir={trained}")
    assert "sliced Wasserstein" in out and "MMD" in out
    files = [json.loads((workdir / "distances.json").read_text()) for workdir in (first[0], trained)]
    for one, other in zip(*(file["distances"] for file in files), strict=True):
        assert one["value"] == pytest.approx(other["value"], rel=1e-4)


@pytest.mark.slow
def test_as_many_samples_are_drawn_as_the_command_needs(first, trained, tmp_path):
    """`eval` draws the samples that it evaluates; training also draws for the picture, and the table says so."""
    assert "evaluated" not in first[1]
    out = done(*TINY, "--mode=eval", "--config.eval.samples=10", f"--workdir={trained}")
    assert re.search(r"sampled +10 by", out) and "evaluated" not in out
    assert np.load(trained / "samples.npy").shape == (10, 2)
    out = done(*TINY, "--config.train.steps=1", "--config.eval.samples=10", f"--workdir={tmp_path}")
    assert re.search(r"sampled +20 by", out) and re.search(r"evaluated +the first 10 of these samples", out)


@pytest.mark.slow
def test_the_table_says_what_was_trained_otherwise_and_blames_no_preset(first, tmp_path):
    out = done(
        *(*TINY, "--config.train.steps=1", f"--workdir={tmp_path}", "--config.energy=true"),
        "--config.eval.at_end=False",
        *("--config.weighting.name=min_snr", "--config.weighting.min_snr.gamma=3.0", "--config.log_variance=true"),
        *("--config.times.name=logsnr", "--config.labels=true", "--config.sampler.label=3"),
        *("--config.sampler.guidance=1.5", "--config.sampler.grid.name=karras", "--config.sampler.grid.karras.rho=5.0"),
    )
    how = "eps, weighted as min_snr (gamma=3.0), times by logsnr, scaled by a learned variance on mixture, 1 steps of 8"
    assert how in " ".join(out.split())
    assert "gives eps, of an energy, conditioned on" in out
    walk = "5 levels spaced by karras (rho=5.0), 10 network evaluations each, of an energy and its gradient"
    assert walk in " ".join(out.split())
    assert re.search(r"conditions +class 3, guidance 1.5", out) and "conditions" not in first[1]
    assert "not computed, since config.eval.at_end is false" in out and "preset:" not in out
    assert "eps on mixture, 6 steps of 8" in first[1] and "energy" not in first[1]


@pytest.mark.slow
def test_one_network_is_sampled_as_if_it_were_another_processs(tmp_path):
    ncsn = ("--config=ncsn_toy", *TINY[1:], "--config.train.steps=1", "--config.sampler.corrector.langevin.steps=1")
    ncsn = (*ncsn, "--config.eval.at_end=False")
    done(*ncsn, f"--workdir={tmp_path}")
    before = np.load(tmp_path / "samples.npy")
    out = done(
        *(*ncsn, "--mode=sample", f"--workdir={tmp_path}", "--config.sampler.process.name=ddpm"),
        *("--config.sampler.step.name=ancestral", "--config.sampler.corrector.name=none"),
    )
    assert "by ancestral, as ddpm" in out
    assert not np.allclose(np.load(tmp_path / "samples.npy"), before)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--config=dpm_toy"], ["no preset 'dpm_toy'", *(name for name in presets() if name != "default")]),
        (["--config=a:cat:b"], ["no preset 'a:cat:b'"]),
        (["--mode=train"], ["--config=NAME"]),
        (["--config=ddpm_toy", "--wrkdir=x"], ["no flag '--wrkdir'", "'--workdir'"]),
        (["--config=ddpm_toy", "--config.train.step=3"], ["no config.train.step", "config.train.steps"]),
        (["--config=ddpm_toy", "--config.train.steps=many"], ["many", "an integer is needed"]),
        (["--config=ddpm_toy", "--config.train.learning_rate=-1.0"], ["learning_rate=-1.0", "positive"]),
        (["--config=ddpm_toy", "--config.train.learning_rate=inf"], ["learning_rate=inf", "positive"]),
        (["--confg.loss.name=dsm", "--config=ddpm_toy"], ["no flag '--confg.loss.name'", "'--config.loss.name=dsm'"]),
        (["--config=ddpm_toy", "--config.loss.name=sm"], ["no config.loss.name 'sm'", "dsm, eps, fdssm"]),
        (["--config=ddpm_toy", "--config.target=e"], ["no config.target 'e'", "eps, x0, score, v, velocity, edm"]),
        (["--config=ddpm_toy", "--mode=test"], ["no --mode 'test'", "train, sample, eval"]),
        (["--config=ddpm_toy", "--config.sampler.n=1001"], ["n=1001", "1000"]),
        (["--config=ncsn_toy", "--config.sampler.corrector.name=none"], ["Hold", "corrector.name=langevin"]),
        (["--config=edm_toy", "--config.sampler.corrector.name=langevin"], ["step_size=2e-05", "diverge"]),
        (["--config=ddpm_toy", "--config.net.name=unet"], ["'unet'", "'mixture'"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(tmp_path, argv, parts):
    refused(f"--workdir={tmp_path / 'run'}", *argv, parts=parts)
    assert not (tmp_path / "run").exists()


def test_cifar10_that_is_not_whole_or_not_there(tmp_path, monkeypatch):
    argv = ("--config=ddpm_cifar", f"--workdir={tmp_path / 'run'}")
    cut = tmp_path / "cut" / PUBLISHED.folder
    cut.mkdir(parents=True)
    (cut / "data_batch_1.bin").write_bytes(bytes(1000))
    refused(*argv, f"--config.data.dir={tmp_path / 'cut'}", parts=["data_batch_1.bin", "1000 bytes", "get http"])

    def offline(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    refused(*argv, f"--config.data.dir={tmp_path / 'none'}", parts=["cannot be downloaded", "--config.data.dir"])
    assert not (tmp_path / "none").exists() and not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(*TINY, f"--workdir={tmp_path / 'file'}", parts=[tmp_path / "file", "another --workdir"])
    refused(*TINY, f"--workdir={tmp_path / 'file' / 'below'}", parts=["another --workdir"])
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("mode", ["sample", "eval"])
def test_nothing_was_trained(tmp_path, mode):
    for workdir in (tmp_path / "absent", tmp_path):
        refused(
            *TINY, f"--mode={mode}", f"--workdir={workdir}", parts=["no checkpoint", "train first, with scoregen train"]
        )
    assert not list(tmp_path.iterdir())


def damage(checkpoint: Path) -> None:
    """Change one byte in the middle of its largest file."""
    path = max((file for file in checkpoint.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(trained):
    checkpoints = trained / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["3", "6"]
    whole = state_of(trained, *TINY)
    damage(checkpoints / "6")
    out = done(*TINY, f"--workdir={trained}")
    assert f"checkpoint {checkpoints / '6'} is damaged" in out
    assert "found the checkpoint of step 3" in out and "continuing to step 6" in out
    assert same(whole, state_of(trained, *TINY))  # the checkpoint was made again with the same bits
    assert steps_logged(trained) == [1, 2, 3, 4, 5, 6]

    for step in ("3", "6"):
        damage(checkpoints / step)
    refused(*TINY, f"--workdir={trained}", parts=["no readable checkpoint", checkpoints, "tried 6, 3"])
    refused(*TINY, "--mode=sample", f"--workdir={trained}", parts=["no readable checkpoint"])


def test_a_damaged_configuration(trained):
    (trained / "config.json").write_bytes(b'{"train": \xff')
    refused(*TINY, f"--workdir={trained}", parts=[trained / "config.json", "damaged"])


def test_other_options_are_refused_and_named(trained):
    kept = (trained / "config.json").read_bytes()
    for mode in ("train", "sample", "eval"):
        refused(
            *(*TINY, f"--workdir={trained}", f"--mode={mode}", "--config.net.mlp.width=16", "--config.seed=1"),
            parts=["net.mlp.width was 8, now 16", "seed was 0, now 1", "another --workdir"],
        )
    line = refused(*TINY, f"--workdir={trained}", "--config.loss.name=dsm", parts=["loss.name was 'eps', now 'dsm'"])
    assert "None" not in line and line.count(" was ") == 1  # not the options of the part that is no longer chosen
    assert (trained / "config.json").read_bytes() == kept


@pytest.mark.slow
def test_options_that_do_not_touch_the_training_are_free(trained):
    """Options of the sampler, of the length of the training, and of how often it logs and saves."""
    out = done(
        *(*TINY, f"--workdir={trained}", "--config.train.steps=7", "--config.train.log_every=5"),
        *("--config.train.keep=1", "--config.sampler.n=4", "--config.sampler.step.ancestral.eta=0.0"),
        "--config.train.microbatch=4",
    )
    assert "continuing to step 7" in out
    assert steps_logged(trained) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.slow
def test_a_loss_that_explodes(tmp_path):
    """Nothing of such a run is saved, and the advice of the message works in the same folder."""
    wild = ("--config.train.learning_rate=1e30", "--config.train.clip=0.0")
    refused(*TINY, *wild, f"--workdir={tmp_path}", parts=["became", "nothing was saved yet", "learning rate"])
    assert not list(tmp_path.glob("checkpoints/*"))
    done(*TINY, f"--workdir={tmp_path}")


@pytest.mark.slow
@pytest.mark.parametrize("limit", [300, 5000, 20_000])
def test_a_full_disk(tmp_path, limit):
    """Files can grow no larger than `limit`, which is too small for the configuration, a checkpoint or the figure."""
    # A separate process that runs to its end, since objects left by a failed write may warn when they are collected.
    (tmp_path / "run").mkdir()
    argv = [*TINY, f"--workdir={tmp_path / 'run'}"]
    code = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    code += "sys.argv[0] = 'run'; runpy.run_module('scoregen.run', run_name='__main__')"
    process = subprocess.run(
        [sys.executable, "-B", "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 2
    assert process.stderr.startswith("scoregen: ") and process.stderr.count("\n") == 1
    assert "File too large" in process.stderr and str(tmp_path / "run") in process.stderr


def start(cwd: Path, *argv, before: str = "pass") -> subprocess.Popen:
    """The command line in a separate process that prints its progress every fifth of a second."""
    code = f"import sys; from scoregen import run; from scoregen.train.log import Bar; Bar.every = 0.2; {before}; "
    code += "sys.exit(run.main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *once(argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )


def wait_for(process: subprocess.Popen, what: str) -> str:
    """The output of the process up to the first line that begins with `what`."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(what):
            return "".join(lines)
    raise AssertionError(f"{what!r} was not said: {''.join(lines)} {process.communicate()[1]}")


LONG = ("--config.train.steps=1000000", "--config.train.checkpoint_every=400000", "--config.train.log_every=100000")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_next_start_goes_on(tmp_path, number):
    argv = (*TINY, *LONG, "--workdir=my run")
    process = start(tmp_path, *argv)
    wait_for(process, "training 1")  # past the first hundreds of steps
    process.send_signal(number)
    wait_for(process, signal.Signals(number).name)
    process.send_signal(number)  # as `timeout` does, to the child and then to the group
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == ""
    found = re.search(r"saved step (\d+) of 1000000 in my run. To continue: (.*)", out)
    assert found is not None
    step = int(found[1])
    assert shlex.split(found[2]) == ["python", "-m", "scoregen.run", *once(argv)]
    assert Checkpoints(tmp_path / "my run" / "checkpoints").steps() == [step]

    out = done(*TINY, f"--config.train.steps={step + 2}", f"--workdir={tmp_path / 'my run'}")
    assert f"found the checkpoint of step {step}" in out
    assert steps_logged(tmp_path / "my run")[-3:] == [step, step + 1, step + 2]


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["terminal", "reader"])
def test_a_run_whose_output_nobody_reads_any_more_saves(tmp_path, gone):
    """The terminal is closed, which sends SIGHUP; or the reader of the pipe ends, and later a signal stops the run."""
    argv = (*TINY, *LONG, "--config.train.log_every=50", "--workdir=run")
    if gone == "terminal":
        output, terminal = pty.openpty()
        # The new process itself makes the terminal its controlling terminal, as no Python code is safe between fork and
        # exec: JAX has threads here. SIGHUP gets its default action, since the tests may run under nohup.
        own = (
            "import fcntl, os, signal, sys, termios; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", own, sys.executable, "-m", "scoregen.run", *once(argv)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        while not steps_logged(tmp_path / "run"):
            os.read(output, 1000)
        os.close(output)
        assert process.wait(120) == 128 + signal.SIGHUP
    else:
        process = start(tmp_path, *argv)
        wait_for(process, "training 1")
        process.stdout.close()
        time.sleep(1)  # it writes more, which nobody reads
        process.terminate()
        with process.stderr:
            assert process.wait(60) == 128 + signal.SIGTERM and process.stderr.read() == ""
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()


def test_two_do_not_train_in_one_folder(tmp_path):
    with files.locked(tmp_path / ".lock"):
        refused(*TINY, f"--workdir={tmp_path}", parts=[f"another command is at work in {tmp_path}"])
    refused(*TINY, "--workdir=", parts=["--workdir= has no value"])


@pytest.mark.slow
def test_a_kill_loses_no_more_than_the_last_steps(tmp_path):
    often = ("--config.train.checkpoint_every=200", "--config.train.log_every=1")
    process = start(tmp_path, *TINY, *LONG, *often, "--workdir=run")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    try:
        deadline = time.monotonic() + 60
        while (checkpoints.latest_step() or 0) < 400:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    step = checkpoints.latest_step()
    assert step is not None
    out = done(*TINY, f"--config.train.steps={step + 2}", f"--workdir={tmp_path / 'run'}")
    assert f"found the checkpoint of step {step}" in out
    steps = steps_logged(tmp_path / "run")
    assert steps == sorted(set(steps)) and steps[-1] == step + 2


@pytest.mark.slow
def test_a_signal_while_sampling(trained, tmp_path):
    draws = ("--mode=sample", "--config.sampler.images=1000000", f"--workdir={trained}")
    kept = (trained / "samples.npy").read_bytes()
    process = start(tmp_path, *TINY, *draws)
    wait_for(process, "sampling 1000000 in ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert "stopped while sampling" in out and "To sample again: python -m scoregen.run --config=ddpm_toy" in out
    assert (trained / "samples.npy").read_bytes() == kept


@pytest.mark.slow
def test_a_signal_while_evaluating(trained, tmp_path):
    kept = (trained / "distances.json").read_bytes()
    slow = "import time; from scoregen.app import actions; "
    slow += "actions.evaluate = lambda *_: (print('evaluating'), time.sleep(60))"
    process = start(tmp_path, *TINY, "--mode=eval", f"--workdir={trained}", before=slow)
    wait_for(process, "evaluating")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "")
    assert "stopped while computing the distances" in out
    assert (trained / "distances.json").read_bytes() == kept


def test_an_interrupt_before_there_is_anything_to_save(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("scoregen.app.actions.build", interrupted)
    assert main(*TINY, f"--workdir={tmp_path}") == (130, "", "")


def test_out_of_memory_is_advised_upon(tmp_path, monkeypatch):
    def exhausted(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate\n64 bytes")

    monkeypatch.setattr("scoregen.app.actions.build", exhausted)
    refused(*TINY, f"--workdir={tmp_path}", parts=["out of memory", "--config.train.microbatch"])


@pytest.mark.slow
@pytest.mark.usefixtures("steps_of_any_size")
def test_samples_that_are_not_finite_are_not_written(trained):
    kept = (trained / "samples.npy").read_bytes()
    refused(
        *(*TINY, f"--workdir={trained}", "--mode=sample", "--config.sampler.corrector.name=langevin"),
        "--config.sampler.corrector.langevin.step_size=1e30",
        parts=["of 20 samples are not finite", "langevin.step_size"],
    )
    assert (trained / "samples.npy").read_bytes() == kept


ANCESTRAL = ("--config.sampler.step.name=ancestral", "--config.sampler.corrector.name=none")


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Both presets of the plane, trained in full and judged against the full held-out set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "TEST_SIZE", 10_000)
        folders = {name: tmp_path_factory.mktemp(name) for name in ("ddpm_toy", "ncsn_toy")}
        for name, workdir in folders.items():
            done(f"--config={name}", f"--workdir={workdir}")
        yield {name: (workdir, verdict(workdir)) for name, workdir in folders.items()}


def verdict(workdir: Path) -> dict:
    return json.loads((workdir / "distances.json").read_text())["distances"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpm_toy", "ncsn_toy"])
def test_the_toys_reach_the_floor(toys, name):
    _, native = toys[name]
    assert native["value"] <= 1.5 * native["floor"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpm_digits", "ncsn_digits"])
def test_the_digits_come_near_the_floor(tmp_path, name):
    done(f"--config={name}", f"--workdir={tmp_path}", "--config.train.sample_every=0")
    assert verdict(tmp_path)["value"] <= 5 * verdict(tmp_path)["floor"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("ncsn_toy", ("--config.sampler.process.name=ddpm", *ANCESTRAL)),
        (
            "ddpm_toy",
            (
                *("--config.sampler.process.name=ncsn", "--config.sampler.process.ncsn.sigma_min=0.02"),
                *("--config.sampler.process.ncsn.sigma_max=100.0", "--config.sampler.process.ncsn.levels=80"),
                *("--config.sampler.step.name=hold", "--config.sampler.corrector.name=langevin"),
                *("--config.sampler.corrector.langevin.step_size=4e-5", "--config.sampler.n=0"),
                "--config.sampler.corrector.langevin.steps=20",
            ),
        ),
        (
            "ddpm_toy",
            (
                *("--config.sampler.process.name=ncsn", "--config.sampler.process.ncsn.sigma_max=100.0"),
                *("--config.sampler.process.ncsn.levels=250", *ANCESTRAL, "--config.sampler.n=0"),
            ),
        ),
    ],
)
def test_a_network_serves_the_other_process_as_well_as_its_own(toys, name, sampler):
    """The distance is at most 1.5 floors, and at most four of the floor's standard deviations above the native one."""
    workdir, native = toys[name]
    done(f"--config={name}", f"--workdir={workdir}", "--mode=eval", *sampler)
    bridged = verdict(workdir)
    assert bridged["name"] == "sliced Wasserstein"
    assert bridged["value"] <= 1.5 * bridged["floor"]
    assert bridged["value"] <= native["value"] + 4 * bridged["floor_std"]


@pytest.mark.slow
def test_what_was_compiled_is_kept_for_the_next_time(tmp_path):
    """A damaged cache, or a cache folder that cannot be written, causes no warning."""
    kept = tmp_path / "cache" / "compiled"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_COMP", "JAX_PERS"))}
    env |= {"SCOREGEN_CACHE": str(tmp_path / "cache"), "JAX_EXPLAIN_CACHE_MISSES": "true"}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # programs that compile fast are kept too

    def go(name):
        command = [sys.executable, "-m", "scoregen.run", *TINY, f"--workdir={tmp_path / name}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "jit_step" in go("first") and any(path.name.startswith("jit_step") for path in kept.iterdir())
    assert "jit_step" not in go("second")  # no cache miss of the step
    for path in kept.glob("jit_step*-cache"):
        path.write_bytes(path.read_bytes()[:100])
    assert "Warning" not in go("third")
    shutil.rmtree(kept)
    kept.write_text("a file in its place")
    assert "Warning" not in go("fourth")


def test_samples_that_cannot_be_written_leave_those_that_were(first, tmp_path, monkeypatch):
    """A disk that fills while they are written: the old file is whole, and nothing half-written is beside it."""
    workdir = tmp_path / "run"
    shutil.copytree(first[0], workdir)
    before = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}

    def full(file, *arrays, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    line = refused(*TINY, "--mode=sample", f"--workdir={workdir}")
    assert "samples.npy" in line and "No space left" in line and "make room" in line
    assert {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("mode", ["sample", "eval", "likelihood", "trajectory"])
def test_a_folder_that_takes_no_file_is_refused_before_the_work(mode, first, monkeypatch):
    def no(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", no)
    monkeypatch.setattr(actions.Action, "restore", lambda self: pytest.fail("it began"))
    line = refused(*TINY, f"--mode={mode}", f"--workdir={first[0]}")
    assert str(first[0]) in line and "Read-only" in line and "another folder" in line
