"""A run of the command or of `fit` is loaded in Python from its folder, and gives the command's samples."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scoregen as sg
from scoregen import run as command
from scoregen.app import build as build_lib
from scoregen.app import config as config_lib
from scoregen.data import Dataset, Unit, points
from scoregen.errors import UsageError
from scoregen.losses import LOSSES
from scoregen.random import example_keys
from scoregen.train import describe, fit

ROOT = Path(__file__).parent.parent
NET = ("--config.net.mlp.width=8", "--config.net.mlp.depth=1", "--config.net.mlp.embedding=8")
TINY = (
    *("--config=ddpm_toy", "--config.data.mixture.size=200", *NET, "--config.train.steps=6", "--config.train.batch=8"),
    *("--config.train.log_every=1", "--config.train.checkpoint_every=3", "--config.sampler.n=5"),
    *("--config.sampler.batch=20", "--config.sampler.images=20", "--config.eval.samples=30"),
)
DIGITS = (
    *("--config=ddpm_digits", "--config.net.name=mlp", *NET, "--config.train.steps=2", "--config.train.batch=8"),
    *("--config.sampler.n=4", "--config.sampler.images=6", "--config.eval.at_end=False"),
    *("--config.train.learning_rate=0.3", "--config.schedule.constant.warmup=0"),
)


def without(monkeypatch, name):
    """Make a source of data fail, with its signature kept."""

    @functools.wraps(build_lib.SOURCES[name])
    def gone(**_):
        raise UsageError("the data are not there")

    monkeypatch.setitem(build_lib.SOURCES, name, gone)


@pytest.fixture(autouse=True, scope="module")
def few_held_out_points():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points, "TEST_SIZE", 100)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the command line in the plane."""
    workdir = tmp_path_factory.mktemp("runs") / "toy"
    assert command.main([*TINY, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of the command line on images, with classes."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    assert command.main([*DIGITS, "--config.labels=true", f"--workdir={workdir}"]) == 0
    return workdir


@pytest.mark.slow
def test_a_run_of_the_command_line(trained):
    run = sg.load(trained)
    assert (run.workdir, run.step, run.config.train.batch) == (trained, 6, 8)
    assert [line["step"] for line in run.metrics if "loss" in line] == [1, 2, 3, 4, 5, 6]
    drawn = run.sample(12)
    written = np.load(trained / "samples.npy")
    np.testing.assert_allclose(drawn, written[:12], rtol=1e-4, atol=1e-4)  # the command's samples
    np.testing.assert_allclose(run.sample(3, batch=2), drawn[:3], rtol=1e-4, atol=1e-4)
    assert not np.allclose(run.sample(12, seed=5), drawn)
    found = run.denoiser(jnp.ones((3, 2)), 10)
    assert found.x0.shape == (3, 2) and run.denoiser.process is run.model.process
    # The distances in the closing table of the command.
    distances = json.loads((trained / "distances.json").read_text())["distances"]
    for verdict, line in zip(run.evaluate(), distances, strict=True):
        assert (verdict.name, verdict.value) == (line["name"], pytest.approx(line["value"], rel=1e-4))
    assert sg.load(str(trained), best=True).step in (3, 6)


@pytest.mark.slow
def test_images_come_in_bytes_and_by_class(digits):
    run = sg.load(digits)
    drawn = run.sample(6)
    assert drawn.shape == (6, 8, 8, 1) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, np.load(digits / "samples.npy")[:6])
    assert (run.sample(4, label=3) != run.sample(4, label=4)).any()
    for label, parts in ((10, "0 to 9"), (-1, "0 to 9")):
        with pytest.raises(ValueError, match=parts):
            run.sample(4, label=label)
    with pytest.raises(ValueError, match="n=0"):
        run.sample(0)


@pytest.mark.slow
def test_a_run_draws_without_its_data(trained, monkeypatch):
    """The data are read only when something needs them."""
    without(monkeypatch, "mixture")
    run = sg.load(trained)
    assert run.sample(3).shape == (3, 2)
    with pytest.raises(UsageError, match="not there"):
        run.evaluate()
    rng = np.random.default_rng(0)
    other = Dataset("other", *(rng.normal(size=(60, 2)).astype(np.float32) for _ in range(2)))
    assert [verdict.name for verdict in run.evaluate(other, samples=20)] == ["sliced Wasserstein", "MMD"]


@pytest.mark.slow
def test_classes_are_known_without_the_data(digits, monkeypatch):
    without(monkeypatch, "digits")
    run = sg.load(digits)
    assert run.model.num_classes == 10 and run.sample(2, label=9).shape == (2, 8, 8, 1)


@pytest.mark.slow
def test_another_sampler_and_another_process(trained):
    run = sg.load(trained)
    ddim = sg.Sampler(sg.Ancestral(eta=0.0), n=8)
    first = run.sample(4, sampler=ddim)
    keys = example_keys(jax.random.key(run.config.seed + 2), 4)
    np.testing.assert_allclose(first, ddim(run.denoiser, keys, (4, 2)), rtol=1e-4, atol=1e-4)
    assert run._variant(None, sg.Sampler(sg.Ancestral(eta=0.0), n=8), None) is run._variant(None, ddim, None)
    bridged = run.sample(4, sampler=ddim, process=sg.ncsn(0.05, 20.0, 100))
    assert bridged.shape == (4, 2) and not np.allclose(bridged, first)
    with pytest.raises(ValueError, match="noise levels"):
        run.sample(4, process=sg.ncsn(1e6, 1e7, 10))


@pytest.mark.slow
def test_the_likelihood_of_any_examples(trained):
    run = sg.load(trained)
    x = run.dataset.test[:5]
    found = run.log_likelihood(x)
    assert found.nats.shape == found.error.shape == (5,) and np.isfinite(found.nats).all()
    direct = sg.ProbabilityFlow()(run.denoiser, jax.random.key(9), jnp.asarray(x))  # in two dimensions without draws
    np.testing.assert_allclose(found.nats, direct.nats, atol=2e-3)
    bound = run.log_likelihood(x.astype(np.float64), sg.Bound(), batch=3)
    assert (bound.nats < found.nats + 5 * bound.error + 1).all()
    with pytest.raises(ValueError, match="examples of shape"):
        run.log_likelihood(x[:, :1])


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"n": 1.5}, ["n=1.5: an integer"]),
        ({"n": 0, "seed": -1, "batch": 0, "label": 99}, ["4 things", "n=0", "seed=-1", "batch=0", "has no classes"]),
        ({"guidance": 2.0}, ["guidance=2.0: this network has no classes"]),
        (
            {"process": sg.ncsn, "sampler": sg.Ancestral()},
            ["2 things", "the function ncsn", "sg.Sampler(sg.Ancestral()"],
        ),
    ],
)
def test_samples_that_cannot_be_drawn(trained, options, parts):
    with pytest.raises((ValueError, TypeError)) as caught:
        sg.load(trained).sample(**{"n": 2} | options)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("x", "options", "parts"),
    [
        (np.zeros(2, np.float32), {}, ["x of shape [2]: examples of shape [N, 2]"]),
        (np.zeros((3, 2), np.uint8), {}, ["x of type uint8: floating-point numbers"]),
        (np.full((3, 2), np.nan), {"batch": 0, "seed": -1}, ["3 things", "x has 3 of 3 examples with NaN", "batch=0"]),
        (np.zeros((3, 2)), {"label": 1}, ["label=1: this network has no classes"]),
        (np.zeros((3, 2)), {"estimate": sg.Bound}, ["estimate=the class Bound", "sg.Bound()"]),
    ],
)
def test_likelihoods_that_cannot_be_computed(trained, x, options, parts):
    with pytest.raises((ValueError, TypeError)) as caught:
        sg.load(trained).log_likelihood(x, **options)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.slow
def test_images_that_have_no_likelihood_are_refused(digits):
    run = sg.load(digits)
    with pytest.raises(ValueError, match="x of type float32: images of uint8 are needed"):
        run.log_likelihood(np.zeros((2, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match="label=10: the classes are 0 to 9"):
        run.log_likelihood(np.zeros((2, 8, 8, 1), np.uint8), label=10)


def test_data_that_a_run_cannot_be_evaluated_on(trained):
    run = sg.load(trained)
    points, wide = (np.random.default_rng(0).normal(size=(20, d)).astype(np.float32) for d in (2, 3))
    for data, samples, part in (
        (points, None, "held-out examples are needed"),  # an array has none
        (Dataset("wide", wide, wide), None, r"data of shape \[N, 3\]: \[N, 2\] is needed"),
        (Dataset("points", points, points), 1, "samples=1: at least 2"),
        (Dataset("points", points, points), 30, "at most 20"),
    ):
        with pytest.raises((ValueError, UsageError), match=part) as caught:
            run.evaluate(data, samples)
        assert "--" not in str(caught.value)


# Folders that hold no run


def test_a_folder_without_a_run_is_one_clear_error(trained, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text((trained / "config.json").read_text())
    for path, parts in (
        (tmp_path / "none", "there is no such folder"),
        (trained / "config.json", "it is a file"),
        (tmp_path / "empty", "neither a config.json nor a model.json"),
        (tmp_path / "begun", "no checkpoint"),
    ):
        with pytest.raises(UsageError) as caught:
            sg.load(path)
        assert parts in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="leave out model="):
        sg.load(trained, model=sg.Model(sg.ddpm(), sg.nets.MLP()))
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="did you mean runs/mine"):
        sg.load("mine")


def test_what_does_not_belong_to_a_run(trained, tmp_path):
    """A configuration of another version, and arguments of the other kind of run."""
    saved = json.loads((trained / "config.json").read_text())
    saved["sampler"]["predictor"] = saved["sampler"].pop("step")
    saved["train"]["lr"] = 1.0
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UsageError, match=r"does not have \(sampler\.predictor, train\.lr\)"):
        sg.load(tmp_path)
    with pytest.raises(UsageError, match="config=3: a preset's name"):
        sg.load(trained, config=3)
    with pytest.raises(TypeError, match="best='yes': a bool is needed"):
        sg.load(trained, best="yes")


def test_a_folder_as_a_configuration_is_one_clear_error(trained):
    with pytest.raises(UsageError, match="is a folder"):
        config_lib.load(str(trained))


@pytest.mark.slow
def test_a_fresh_python_loads_a_run(digits):
    code = f"import scoregen as sg; x = sg.load({str(digits)!r}).sample(3); print(x.shape, x.dtype)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(3, 8, 8, 1) uint8\n"), done.stderr


# Parts of one's own

PRESET = """
import dataclasses
from scoregen.app.config import choice, load
from scoregen.losses import LOSSES, Loss
from scoregen.losses.matching import sum_dims
import jax.numpy as jnp

@dataclasses.dataclass(frozen=True)
class Huber(Loss):
    delta: float = 1.0

    def __call__(self, denoiser, noised, key):
        off = jnp.abs(noised.eps - denoiser(noised.x, noised.t).eps)
        return sum_dims(jnp.where(off < self.delta, 0.5 * off**2, self.delta * (off - 0.5 * self.delta)))

LOSSES["huber"] = Huber

def get_config():
    config = load("ddpm_toy")
    config.loss = choice(LOSSES, "huber")
    return config
"""


@pytest.fixture
def own(tmp_path):
    """A preset with a loss of one's own, and a run of it."""
    (tmp_path / "mine.py").write_text(PRESET)
    try:
        argv = [f"--config={tmp_path / 'mine.py'}", *TINY[1:], f"--workdir={tmp_path / 'run'}"]
        assert command.main(argv) == 0
        yield tmp_path
    finally:
        LOSSES.pop("huber", None)


@pytest.mark.slow
def test_a_run_of_a_preset_with_parts_of_ones_own(own, capsys, monkeypatch):
    with monkeypatch.context() as fresh:
        fresh.delitem(LOSSES, "huber")
        with pytest.raises(UsageError, match="huber"):
            sg.load(own / "run")
    run = sg.load(own / "run", config=str(own / "mine.py"))
    assert run.config.train.batch == 8 and run.sample(3).shape == (3, 2)
    # A loss without a weight trains; another weighting in place of none is refused, with the reason.
    argv = [f"--config={own / 'mine.py'}", *TINY[1:], f"--workdir={own / 'other'}"]
    assert command.main([*argv, "--config.weighting.name=min_snr"]) == 2
    assert "--config.weighting.name=own" in capsys.readouterr().err


# Runs of fit


class Conv(nn.Module):
    """A small convolutional network for series `[B, T, C]`."""

    width: int = 8

    @nn.compact
    def __call__(self, x, cond, train=False):
        h = nn.Conv(self.width, (3,))(x) + nn.Dense(self.width)(cond.noise[:, None] / 10)[:, None]
        return nn.Conv(x.shape[-1], (3,))(nn.swish(h))


def objective():
    return sg.Objective(sg.EpsilonMSE())


@pytest.mark.slow
def test_a_run_of_fit(tmp_path):
    """With a network of scoregen's own, whose model is described in the folder."""
    data = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    model = sg.Model(sg.VP(), sg.nets.MLP(width=8, depth=1))
    state = fit(model, data, objective(), optax.adam(1e-3), 3, batch=16, workdir=tmp_path, progress=False)
    run = sg.load(tmp_path)
    assert (run.step, run.config, run.model.net, run.model.process) == (3, None, model.net, model.process)
    for ours, theirs in zip(jax.tree.leaves(run.params), jax.tree.leaves(state.ema), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    drawn = run.sample(5, sampler=sg.Sampler(sg.Ancestral(), n=6))
    assert drawn.shape == (5, 2) and drawn.dtype == np.float32
    assert np.isfinite(run.log_likelihood(data[:3]).nats).all()
    assert [line["step"] for line in run.metrics if "loss" in line] == [1, 3]
    with pytest.raises(UsageError, match="stores no data"):
        run.evaluate()
    verdicts = run.evaluate(Dataset("data", data[:60], data[60:]), samples=20)
    assert [verdict.name for verdict in verdicts] == ["sliced Wasserstein", "MMD"]


@pytest.mark.slow
def test_a_run_of_fit_on_images_with_classes(tmp_path):
    """Bytes come back through the scaling that they went through; without a label the classes take turns."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(40, 4, 4, 1), dtype=np.uint8)
    data = Dataset("images", images, train_labels=np.arange(40) % 3)
    model = sg.Model(sg.ddpm(steps=30), sg.nets.MLP(width=8, depth=1, num_classes=3))
    fit(model, data, objective(), optax.adam(1e-3), 2, batch=8, workdir=tmp_path, progress=False,
        prepare=sg.data.Prepare(Unit()))  # fmt: skip
    run = sg.load(tmp_path)
    assert isinstance(run.sampling.scaling, Unit)
    drawn = run.sample(4)
    assert drawn.shape == (4, 4, 4, 1) and drawn.dtype == np.uint8
    assert run.sampling.cond_of(np.arange(5)).label.tolist() == [0, 1, 2, 0, 1]
    assert run.sample(2, label=2).shape == (2, 4, 4, 1)


@pytest.mark.slow
def test_a_run_of_fit_with_a_network_of_ones_own(tmp_path):
    series = np.random.default_rng(0).normal(size=(64, 16, 2))
    model = sg.Model(sg.ddpm(steps=30), Conv())
    fit(model, series, objective(), optax.adam(1e-3), 2, batch=8, workdir=tmp_path, progress=False)
    with pytest.raises(UsageError, match=r"Conv is not scoregen's own: say load\(.*model=") as caught:
        sg.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert sg.load(tmp_path, model=model).sample(3).shape == (3, 16, 2)
    with pytest.raises(TypeError, match="a Model is needed"):
        sg.load(tmp_path, model=Conv())
    with pytest.raises(UsageError, match="leave out config="):
        sg.load(tmp_path, config="ddpm_toy")
    with pytest.raises(UsageError, match=r"model\.net\.width was 8, now 9"):
        sg.load(tmp_path, model=sg.Model(sg.ddpm(steps=30), Conv(width=9)))


@pytest.mark.slow
def test_a_damaged_description_is_one_clear_error(tmp_path):
    data = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    model = sg.Model(sg.VP(), sg.nets.MLP(width=8, depth=1))
    fit(model, data, objective(), optax.adam(1e-3), 1, batch=4, workdir=tmp_path, progress=False)
    (tmp_path / describe.FILE).write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        sg.load(tmp_path)
    (tmp_path / describe.FILE).write_text("{}")
    for options in ({}, {"model": model}):
        with pytest.raises(UsageError, match="does not fit this version"):
            sg.load(tmp_path, **options)
    (tmp_path / "checkpoints").rename(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"no checkpoint .* with scoregen\.fit"):
        sg.load(tmp_path)
