"""`fit` trains any network on any array. With a folder it resumes after any interruption."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusal import refused
from small import same, toy

import scoregen as sg
from scoregen.data import Dataset, Prepare, Unit
from scoregen.files import locked
from scoregen.metrics import sliced_wasserstein, with_floor
from scoregen.random import check_seed
from scoregen.train import Decay, MetricsLog, Model, describe, make_eval, restore_average
from scoregen.train.checkpoint import Checkpoints

ROOT = Path(__file__).parent.parent


class Waves(nn.Module):
    """A convolutional network in one dimension, [B, L, C] -> [B, L, C], as a user may write it."""

    width: int = 16

    @nn.compact
    def __call__(self, x, cond, train=False):
        c = 0.1 * cond.noise[:, None]
        e = nn.Dense(self.width)(jnp.concatenate([jnp.sin(c), jnp.cos(c), c], -1))[:, None]
        h = nn.Conv(self.width, (5,))(x)
        h = h + nn.Conv(self.width, (5,))(nn.gelu(h + e))
        return nn.Dense(x.shape[-1])(nn.gelu(h + e))


def series(count=400, length=64):
    """Sines of two phases, `[N, L, 2]`."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, length)
    phase, speed = rng.uniform(0, 2 * np.pi, (count, 1)), rng.uniform(1, 3, (count, 1))
    return np.stack([np.sin(2 * np.pi * speed * t + phase), np.cos(2 * np.pi * speed * t + phase)], -1)


def test_a_network_of_ones_own_on_an_array_of_ones_own():
    """Float64 data [400, 64, 2], one's own function as the loss, and samples of the same shape."""
    model = Model(sg.VP(), Waves(), target="v")

    def huber(denoiser, noised, key):
        error = jnp.abs(denoiser(noised.x, noised.t).eps - noised.eps)
        return jnp.where(error < 1, 0.5 * error**2, error - 0.5).mean((1, 2))

    losses = []
    for steps in (1, 60):
        state = sg.fit(model, series(), sg.Objective(huber), optax.adamw(3e-3), steps=steps, batch=32, progress=False)
        data = Dataset("series", series(), series())
        losses.append(make_eval(model, sg.Objective(huber), data, count=200)(state.params))
    assert losses[1] < 0.7 * losses[0]
    x = sg.Sampler(sg.Ancestral(), n=5)(model.denoiser(state.ema), jax.random.key(1), (3, 64, 2))
    assert x.shape == (3, 64, 2) and x.dtype == jnp.float32 and np.isfinite(x).all()


def test_the_held_out_loss_is_that_of_the_average(tmp_path):
    parts = toy()
    state = sg.fit(
        parts.model,
        parts.data,
        parts.objective,
        optax.sgd(0.5),
        3,
        batch=8,
        ema=0.9,
        seed=parts.seed,
        workdir=tmp_path,
        progress=False,
    )
    written = [line["held_out_loss"] for line in MetricsLog.read(tmp_path) if "held_out_loss" in line]
    loss = make_eval(parts.model, parts.objective, parts.data, seed=parts.seed, batch=8)
    assert written[-1] == pytest.approx(loss(state.ema), rel=1e-6)
    assert written[-1] != pytest.approx(loss(state.params), rel=1e-3)


@pytest.mark.slow
def test_the_ten_lines_of_the_readme_are_near_the_floor():
    model = Model(sg.ddpm(), sg.nets.MLP(), target="eps", condition="logsnr")
    data = sg.data.mixture()
    state = sg.fit(
        model, data, sg.Objective(sg.EpsilonMSE()), optax.adam(2e-3), 2000, ema=0.999, seed=0, progress=False
    )
    x0 = sg.Sampler(sg.Ancestral(), n=100)(model.denoiser(state.ema), jax.random.key(1), (2000, 2))
    judged = with_floor(sliced_wasserstein, x0, data.train, data.test)
    assert judged.value < 1.5 * judged.floor


class Narrow(nn.Module):
    @nn.compact
    def __call__(self, x, cond, train=False):
        return nn.Dense(3)(x)


class Broken(nn.Module):
    @nn.compact
    def __call__(self, x, cond, train=False):
        return x @ jnp.ones((5, 2))


class Paired(nn.Module):
    @nn.compact
    def __call__(self, x, cond, train=False):
        return x, nn.Dense(2)(x)


class Labelled(nn.Module):
    """A network with classes, as a user may write it."""

    num_classes: int = 8

    @nn.compact
    def __call__(self, x, cond, train=False):
        return nn.Dense(x.shape[-1])(jnp.concatenate([x, nn.Embed(self.num_classes + 1, 4)(cond.label)], -1))


POINTS = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
IMAGES = np.zeros((20, 8, 8, 1), np.uint8)


@pytest.mark.parametrize(
    ("changes", "error", "parts"),
    [
        ({"steps": 0}, ValueError, ["steps=0: at least 1"]),
        ({"batch": 0}, ValueError, ["batch=0"]),
        ({"microbatch": 3}, ValueError, ["microbatch=3 does not divide the batch of 8", "such as 2 or 4"]),
        ({"keep": 0}, ValueError, ["keep=0"]),
        ({"seed": -1}, ValueError, ["seed=-1: an integer from 0 to 4294967295"]),
        ({"seed": 2**32}, ValueError, ["seed=4294967296: an integer from 0 to 4294967295"]),
        ({"seed": 2**64}, ValueError, ["seed=18446744073709551616"]),
        ({"seed": 0.5}, TypeError, ["seed=0.5: an integer"]),
        ({"ema": 1.0}, ValueError, ["ema: rate=1.0"]),
        ({"ema": "decay"}, TypeError, ["ema='decay'", "sg.Decay(0.999)"]),
        ({"ema": sg.Decay}, TypeError, ["ema=the class Decay", "sg.Decay(0.999)"]),
        ({"steps": 2.5}, TypeError, ["steps=2.5: an integer is needed"]),
        ({"batch": "8"}, TypeError, ["batch='8': an integer is needed"]),
        ({"callback": 1}, TypeError, ["callback=1: a function is needed"]),
        ({"optimizer": optax.adam}, TypeError, ["optimizer=the function adam", "optax.adam(1e-3)"]),
        ({"objective": sg.EpsilonMSE}, TypeError, ["say sg.Objective(sg.EpsilonMSE())"]),
        ({"objective": sg.Objective}, TypeError, ["objective=the class Objective: an Objective is needed"]),
        ({"model": Model(sg.ddpm(), Paired())}, ValueError, ["the network gives a tuple: one array [B, ...]"]),
        ({"optimizer": "adam"}, TypeError, ["optimizer='adam'", "optax.adam(1e-3)"]),
        ({"objective": sg.EpsilonMSE()}, TypeError, ["say sg.Objective(sg.EpsilonMSE())"]),
        ({"model": sg.nets.MLP()}, TypeError, ["sg.Model(sg.ddpm(), net)", "MLP"]),
        (
            {"model": Model(sg.Flow(), sg.nets.MLP(), "eps", energy=True)},
            ValueError,
            ["2 reasons", "\n- ", "clean data", "gradient of an energy"],
        ),
        (
            {"model": Model(sg.ddpm(), sg.nets.UNet())},
            ValueError,
            ["the network UNet and data of shape [2]: UNet takes images [B, H, W, C]"],
        ),
        (
            {"model": Model(sg.ddpm(), Narrow())},
            ValueError,
            ["the network Narrow and data of shape [2]", "[2, 3]", "[2, 2]"],
        ),
        ({"model": Model(sg.ddpm(), Broken())}, ValueError, ["the network Broken and data of shape [2]: "]),
        ({"objective": sg.Objective(lambda d, n, k: n.x)}, ValueError, ["the loss", "one number for each"]),
        ({"objective": sg.Objective(sg.ISM(max_dims=1))}, ValueError, ["2"]),
        (
            {"model": Model(sg.ddpm(), Labelled())},
            ValueError,
            ["num_classes=8, and the data have no labels", "num_classes=0"],
        ),
        (
            {"model": Model(sg.ddpm(), Labelled(3)), "data": sg.data.mixture(size=64)},
            ValueError,
            ["labels from 0 to 7", "num_classes=3 takes 0 to 2", "say num_classes=8"],
        ),
        (
            {"data": IMAGES, "prepare": Prepare(Unit(), augment=0.5), "model": Model(sg.ddpm(), sg.nets.MLP())},
            ValueError,
            ["network MLP has no input for the augmentation", "augment_dim"],
        ),
    ],
)
def test_wrong_use_is_refused_before_anything_is_compiled(changes, error, parts):
    options = {
        "model": Model(sg.ddpm(), sg.nets.MLP(width=8)),
        "data": POINTS,
        "objective": sg.Objective(sg.EpsilonMSE()),
    }
    options |= {"optimizer": optax.adam(1e-3), "steps": 2, "batch": 8, "progress": False} | changes
    with pytest.raises(error) as caught:
        sg.fit(**options)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "--" not in message and ("\n" not in message or "reasons" in message)


def test_all_that_is_wrong_with_a_fit_is_said_at_once():
    options = {"steps": -1, "batch": 0, "keep": 0, "ema": 2, "seed": -1, "optimizer": "adam", "data": POINTS[:, 0]}
    with pytest.raises(ValueError, match="7 things are wrong") as caught:
        sg.fit(
            **{"model": Model(sg.ddpm(), sg.nets.MLP(width=8)), "objective": sg.Objective(sg.EpsilonMSE())} | options
        )
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 7 and all(line.startswith("- ") for line in lines)
    for part in ("steps=-1", "batch=0", "keep=0", "ema: rate=2.0", "seed=-1", "optimizer='adam'", "of shape (50,)"):
        assert any(part in line for line in lines), part


def test_seeds():
    """Every seed of the range has keys of its own, and the held-out loss accepts the largest seed."""
    seeds = [0, 1, np.int64(7), 2**31, 2**32 - 1]
    keys = {jax.random.key_data(jax.random.key(check_seed(seed))).tobytes() for seed in seeds}
    assert len(keys) == len(seeds) and type(check_seed(np.int64(7))) is int
    with pytest.raises(TypeError, match="seed=True"):
        check_seed(True)
    parts = toy(seed=2**32 - 1)
    assert parts.eval()(parts.init().params) > 0


@pytest.mark.slow
def test_images_of_bytes_are_centered_and_labels_are_given():
    """Images are centred if `prepare` is None. A network with classes learns from the labels of the data set."""
    images = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 1), np.uint8)
    seen = []

    def loss(denoiser, noised, key):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), noised.x0)
        return jnp.square(denoiser(noised.x, noised.t).eps - noised.eps).mean((1, 2, 3))

    model = Model(sg.ddpm(), sg.nets.MLP(width=8, num_classes=4))
    data = Dataset("images", images, train_labels=np.arange(16) % 4)
    objective = sg.Objective(loss, label_dropout=0.5)
    start = model.init(jax.random.key(0), (1, 4, 4, 1))["net"]["params"]
    state = sg.fit(model, data, objective, optax.adam(0.1), 2, batch=16, ema=None, progress=False)
    jax.effects_barrier()
    np.testing.assert_allclose(np.sort(seen[0], axis=0), np.sort(images / 127.5 - 1, axis=0), atol=1e-6)
    # Adam moves what has a gradient: after two steps the last layer is no longer zero, and all classes are used.
    assert (
        np.abs(state.params["net"]["params"]["label"]["embedding"] - start["label"]["embedding"]).max(1) > 1e-6
    ).all()


def files(folder):
    return {path.name for path in Path(folder).iterdir()}


@pytest.mark.slow
def test_a_workdir_holds_checkpoints_metrics_and_the_description(tmp_path, capfd):
    parts, workdir = toy(), tmp_path / "deep" / "run"
    begun = []
    started = lambda step, state: begun.append((step, int(state.step)))  # noqa: E731
    state = parts.fit(workdir, steps=4, started=started)
    assert files(workdir) == {".lock", "checkpoints", "metrics.jsonl", "model.json", "tensorboard"}
    assert Checkpoints(workdir / "checkpoints").steps() == [3, 4]
    assert [row["step"] for row in MetricsLog.read(workdir) if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in MetricsLog.read(workdir) if "held_out_loss" in row] == [3, 4]
    for line in [*(workdir / "metrics.jsonl").read_text().splitlines(), (workdir / "model.json").read_text()]:
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert capfd.readouterr() == ("", "")  # progress=False

    again = parts.fit(workdir, steps=4, started=started)  # trained to the end already
    assert same(again, state) and begun == [(0, 0), (4, 4)]
    params, step = restore_average(parts.model, Checkpoints(workdir / "checkpoints"), (1, 2))
    assert step == 4 and same(params, state.ema)
    with locked(workdir / ".lock"):
        refused(lambda: parts.fit(workdir, steps=5), "at work in")


def test_progress_goes_to_stderr(capfd):
    toy().fit(steps=2, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("training 2/2  loss ")


def test_without_held_out_data_there_is_no_held_out_loss(tmp_path):
    toy(data=sg.data.as_dataset(POINTS)).fit(tmp_path, steps=3)
    assert not any("held_out_loss" in row for row in MetricsLog.read(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3]


def changed(**changes):
    return dataclasses.replace(toy(), **changes)


@pytest.mark.quick(5)
@pytest.mark.parametrize(
    ("other", "parts"),
    [
        (toy(net=sg.nets.MLP(width=9, depth=1, embedding=8)), ["model.net.width was 8, now 9"]),
        (toy(process=sg.cosine()), ["process.alphas was another; ", "sigmas was another; ", "logsnrs was another"]),
        (toy(process=sg.VP()), ["model.process was Chain, now VP"]),
        (changed(objective=sg.Objective(sg.X0MSE())), ["objective.loss was EpsilonMSE, now X0MSE"]),
        (
            changed(objective=sg.Objective(sg.EpsilonMSE(), times=sg.Uniform())),
            ["objective.times was Own, now Uniform"],
        ),
        (changed(optimizer=optax.adam(3e-3)), ["optimizer (its options, rate, schedule or clip) was another"]),
        (changed(average=Decay(0.5)), ["average.rate was 0.9, now 0.5"]),
        (changed(batch=16), ["batch was 8, now 16"]),
        (changed(seed=1, batch=16), ["batch was 8, now 16; seed was 0, now 1"]),
        (changed(data=sg.data.mixture(size=65)), ["data.size was 64, now 65; data.checksum was another"]),
        (changed(data=sg.data.mixture(size=64, seed=1)), ["data.checksum was another"]),
        # What follows from the shape (units, size, the optimizer's program) is not named beside it.
        (
            changed(data=sg.data.as_dataset(np.eye(3, dtype=np.float32))),
            ["other data (data.shape was [2], now [3]; data.labels was 8, now 0)"],
        ),
        (changed(prepare=Prepare(sg.data.Identity())), ["prepare was None, now Prepare"]),
        (changed(microbatch=4), None),  # the same training
    ],
    ids=range(14),
)
def test_a_second_fit_with_other_options_is_refused_by_name(trained, other, parts):
    if parts is None:
        assert int(other.fit(trained, steps=1).step) == 1
    else:
        message = refused(lambda: other.fit(trained, steps=1), "holds a run with other ", *parts)
        assert message.count(" was ") == " ".join(parts).count(" was ")  # and nothing else


def test_classes_of_other_names_are_other_data():
    """After a folder was renamed, the classes may have other numbers."""
    x, labels = np.zeros((2, 3), np.float32), np.arange(2)
    old, new, none = (
        {"data": describe.data_summary(Dataset("x", x, train_labels=labels, classes=classes))}
        for classes in (("cat", "dog"), ("dog", "wolf"), None)
    )
    assert describe.differences(json.loads(json.dumps(old)), old) == []
    assert describe.differences(old, new) == ["data.classes was ['cat', 'dog'], now ['dog', 'wolf']"]
    del none["data"]["classes"]  # as in a description without this field
    assert describe.differences(none, {"data": {**none["data"], "classes": None}}) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of one step."""
    folder = tmp_path_factory.mktemp("trained")
    toy().fit(folder, steps=1)
    return folder


@pytest.mark.slow
def test_a_run_that_saved_nothing_binds_nobody(tmp_path):
    toy().fit(tmp_path, steps=2, stopped=lambda: True)
    assert Checkpoints(tmp_path / "checkpoints").steps() == []
    assert int(toy(batch=4).fit(tmp_path, steps=2).step) == 2


KILLED = """
import os, pathlib, signal, sys, time
sys.path.insert(0, "tests")
from small import toy

def kill(step, state):
    while step == 5:  # the checkpoint of step 3 is written in the background
        time.sleep(0.01)
        if not pathlib.Path(sys.argv[1], "checkpoints", "3").is_dir():
            continue
        os.kill(os.getpid(), signal.SIGKILL)

toy().fit(sys.argv[1], callback=kill if sys.argv[2] == "kill" else None)
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bits(tmp_path):
    """Killed in step 5, after the checkpoint of step 3."""

    def run(folder, *options):
        command = [sys.executable, "-c", KILLED, tmp_path / folder, *options]
        return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)

    killed = run("cut", "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Checkpoints(tmp_path / "cut" / "checkpoints").steps() == [3]
    done = run("cut", "go on")
    assert (done.returncode, done.stderr) == (0, "")
    toy().fit(tmp_path / "straight")
    template = jax.eval_shape(toy().init)
    states = [Checkpoints(tmp_path / name / "checkpoints").restore(template) for name in ("cut", "straight")]
    assert states[0][1] == states[1][1] == 6 and same(*states)
    assert [row["step"] for row in MetricsLog.read(tmp_path / "cut") if "loss" in row] == list(range(1, 7))


@pytest.mark.parametrize(
    "model",
    [
        Model(sg.ddpm(), sg.nets.MLP(width=8), "eps", "logsnr", log_variance=True),
        Model(sg.EDM(), sg.nets.MLP(num_classes=3), "edm", "edm", unit_input=True),
        Model(sg.VP(beta_max=17.0), sg.nets.UNet(multipliers=(1, 2), attention=()), "v"),
        Model(sg.ddpm().between(3, 40), sg.nets.MLP(), sg.denoiser.v_target, "rescaled"),
    ],
    ids=["ddpm", "edm", "unet", "between"],
)
def test_a_description_is_json_and_makes_the_model_again(model):
    text = json.dumps(describe.describe(model), allow_nan=False)
    again = describe.rebuild(json.loads(text))
    assert describe.describe(again) == describe.describe(model)
    assert type(again.process) is type(model.process) and same(again.process, model.process)
    assert again.net == model.net and (again.target, again.condition) == (model.target, model.condition)
    assert again.unit_input == model.unit_input and again.log_variance == model.log_variance


def test_objectives_and_averages_are_made_again():
    objective = sg.Objective(sg.SSM(slices=2), sg.MinSNR(), sg.SecondMoment(history=3), label_dropout=0.1)
    for part in (objective, Decay(0.5), Prepare(Unit(dequantize=False), flip=True)):
        assert describe.rebuild(json.loads(json.dumps(describe.describe(part)))) == part


def my_loss(denoiser, noised, key):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (Model(sg.ddpm(), Waves()), "test_fit.Waves"),
        (Model(sg.ddpm(), sg.nets.MLP(), lambda process, t: (t, t)), "<lambda>"),
        (sg.Objective(my_loss), "test_fit.my_loss"),
    ],
)
def test_what_is_not_scoregens_own_is_described_but_not_made(part, name):
    description = json.loads(json.dumps(describe.describe(part), allow_nan=False))
    with pytest.raises(ValueError, match=f"{name} is not scoregen's own"):
        describe.rebuild(description)


@pytest.mark.parametrize(
    "description",
    [
        {"class": "os.system", "fields": {}},
        {"class": "scoregen.files.os.system", "fields": {}},
        {"class": "scoregen.files.Path", "fields": {}},
        {"class": "scoregen.train.checkpoint.Checkpoints", "fields": {"directory": "x"}},
        {"class": "scoregen.train.loop.fit", "fields": {}},
        {"class": "scoregen.gone.Net", "fields": {}},
        {"name": "builtins.exec"},
        {"name": "scoregen.files.contextlib"},
        {"something": 1},
    ],
)
def test_a_description_makes_only_parts_of_scoregen(description):
    with pytest.raises(ValueError, match=r"not scoregen's own|cannot be rebuilt|not in this version|describe nothing"):
        describe.rebuild(description)


def test_a_damaged_description_is_one_line(tmp_path):
    assert describe.read(tmp_path) is None
    (tmp_path / "model.json").write_text("{")
    refused(lambda: describe.read(tmp_path), "is damaged")
    for text, missing in (("{}", "model, objective"), ('{"model": 1, "data": {}}', "objective")):
        (tmp_path / "model.json").write_text(text)
        refused(lambda: describe.read(tmp_path), "does not fit this version of scoregen", missing)
