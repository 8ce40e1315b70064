"""Every preset is built as it stands, every preset takes a step under every loss, and nonsense is refused."""

import contextlib
import dataclasses
import functools
import re
import sys

import jax
import numpy as np
import optax
import pytest

from scoregen import experiment as experiment_lib
from scoregen import train
from scoregen.config import load, presets
from scoregen.data import Dataset
from scoregen.errors import UsageError
from scoregen.losses import LOSSES, WEIGHTINGS, Hybrid
from scoregen.process import PROCESSES
from scoregen.times import TIMES

PRESETS = [name for name in presets() if name != "default"]


SIDE = [32]  # of the made-up images


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    """A few made-up images in the place of data sets that are not there."""

    def source(name: str, side: int, channels: int) -> Dataset:
        rng = np.random.default_rng(0)
        images = rng.integers(256, size=(24, side, side, channels), dtype=np.uint8)
        labels = np.arange(24, dtype=np.int32) % 10
        return Dataset(name, images[:16], images[16:], labels[:16], labels[16:])

    monkeypatch.setitem(experiment_lib.SOURCES, "cifar10", lambda *, dir: source("cifar10", SIDE[-1], 3))
    monkeypatch.setitem(
        experiment_lib.SOURCES, "fashion_mnist", lambda *, dir: source("fashion_mnist", min(28, SIDE[-1]), 1)
    )
    monkeypatch.setattr(sys.modules[__name__], "SIDE", [32])


def preset(name: str, **overrides):
    """A preset with the smallest network that has its kinds of layers."""
    config = load(name)
    config.net.unet.update(channels=4, multipliers=(1,), blocks=1, attention=(), groups=2)
    config.net.unet.update(attention_heads=1, head_channels=0)
    config.net.mlp.update(width=16, depth=1, embedding=8)
    config.net.refinenet.update(channels=4)
    config.net.refinenet_v2.update(channels=4)
    config.net.ncsnpp.update(channels=4, multipliers=(1,), blocks=0, attention=())
    config.train.update(batch=4, microbatch=0)
    config.eval.samples = 8
    for key, value in overrides.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_built_as_they_stand(name):
    config = load(name)
    if config.data.name in ("cifar10", "fashion_mnist"):
        config.eval.samples = 16  # of as many made-up images
    experiment = experiment_lib.assemble(config)
    shapes = {"mixture": (2,), "digits": (8, 8, 1), "cifar10": (32, 32, 3), "fashion_mnist": (28, 28, 1)}
    assert experiment.dataset.shape == shapes[config.data.name]


def mended(config):
    """The experiment; while it is refused, the configuration is changed as the reason says. None if it says nothing."""
    for _ in range(4):
        try:
            return experiment_lib.assemble(config)
        except UsageError as error:
            reason = str(error)
        assert "\n" not in reason
        if said := re.search(r"--config\.([\w.]+)=([\w.+-]*\w)", reason):
            key, value = said.groups()
            with contextlib.suppress(ValueError):
                value = float(value)
            config.update_from_flattened_dict({key: True if value == "true" else value})
        elif "smaller images" in reason:
            SIDE.append(8)
        elif (twins := pairs(reason)).get(config.process.name):
            config.process.name = twins[config.process.name]
            config.sampler.n, config.net.condition = 0, "logsnr"
        elif "the weighting own" in reason:
            config.weighting.name = "own"
        else:
            return None
    raise AssertionError(f"refused after all that it says was done: {reason}")


def pairs(reason):
    """What stands for what in a reason such as "... (vp for ddpm, ve for ncsn)"."""
    return {old: new for new, old in re.findall(r"(\w+) for (\w+)", reason) if old in PROCESSES}


def takes_a_step(experiment):
    """One step changes every parameter, down the gradient of the loss that it reports, as differences of that tell.

    Adam's first average holds the gradient: m = (1 - 0.9) g. With it, L(p + h g) - L(p - h g) = 2 h |g|^2.
    """
    step = train.make_step(experiment)
    raw = experiment.dataset.batch(0, 0, 4)
    # Not the network's own start, where the output layer is nearly zero and hides the gradients of the others.
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: train.init_state(experiment))

    def draw(a):
        # A convolution keeps the size of what it is given: a deep network would else bend within the step below.
        scale = np.prod(a.shape[:-1]) ** -0.5 if a.ndim == 4 else 0.3
        return np.float32(scale) * rng.standard_normal(a.shape, np.float32)

    params = jax.tree.map(draw, shapes.params)

    def run(params):
        fresh = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
        return step(dataclasses.replace(fresh, params=params, ema=params), raw)

    state, metrics = run(params)
    assert int(state.step) == 1
    assert np.isfinite(metrics["loss"])
    for path, a in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        b = functools.reduce(lambda tree, key: tree[key.key], path, state.params)
        assert (a != np.asarray(b)).any() == ("frequencies" not in name), name  # Fourier's are drawn once

    gradient = jax.tree.map(lambda m: np.asarray(m) / (1 - 0.9), optax.tree.get(state.opt_state, "mu"))
    norm = float(optax.tree.norm(gradient))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    if isinstance(experiment.loss, Hybrid):  # of which one term holds the mean, so its gradient is none of its value
        return
    h = 1e-3 / norm
    up, down = (
        float(run(jax.tree.map(lambda p, g, h=h: p + np.float32(h) * g, params, gradient))[1]["loss"]) for h in (h, -h)
    )
    assert (up - down) / (2 * h) == pytest.approx(norm**2, rel=0.05)


def cases():
    """All presets x losses. Quick are the preset's own loss, and of each loss the one in the plane whose turn it is.

    But for the RefineNets, which are long programs.
    """
    toys = [name for name in PRESETS if load(name).net.name == "mlp"]
    for name in PRESETS:
        for i, loss in enumerate(LOSSES):
            own = load(name).loss.name == loss and not load(name).net.name.startswith("refinenet")
            quick = own or toys[i % len(toys)] == name
            yield pytest.param(name, loss, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "loss"), list(cases()))
def test_every_preset_takes_a_step_under_every_loss(name, loss):
    """Or says what to change for it, and then takes one; or says why it cannot."""
    config = preset(name, loss__name=loss, train__warmup=0, train__clip=0.0)
    if config.learned_variance and loss not in ("hybrid", "vlb"):  # the reason names other losses than this one
        config.learned_variance, config.sampler.predictor.ancestral.variance = False, "small"
    # These take a minute to compile: they are kept for the losses that their presets name. (The second's ssm has jumps,
    # as its docstring says, of which differences would tell.)
    kept = {"refinenet": ("dsm", "ssm"), "refinenet_v2": ("dsm",)}
    if loss not in kept.get(config.net.name, (loss,)):
        config.net.name = "unet"
    experiment = mended(config)
    if experiment is None:
        without_a_chain = {"edm_toy", "edm_cifar", "flow_toy", "flow_cifar", "fashion_mnist", "ddpmpp_subvp_cifar"}
        assert loss == "hybrid" and name in without_a_chain
        return
    takes_a_step(experiment)


LAWS = [name for name in TIMES if name != "own"]
ALL_WEIGHTINGS = [name for name in WEIGHTINGS if name != "own"]


@pytest.mark.parametrize(("number", "process"), list(enumerate(PROCESSES)))
def test_every_process_takes_a_step(number, process):
    """Between them with every law of times, every weighting, with and without a variance of the loss."""
    config = preset("ddpm_toy", process__name=process, target="v", sampler__n=0, train__warmup=0, train__clip=0.0)
    config.times.name, config.weighting.name = LAWS[number % len(LAWS)], ALL_WEIGHTINGS[number % len(ALL_WEIGHTINGS)]
    config.loss.name, config.log_variance, config.net.unit_input = ("x0", "eps")[number % 2], number % 2 == 0, True
    takes_a_step(experiment_lib.assemble(config))
    assert len(PROCESSES) >= max(len(LAWS), len(ALL_WEIGHTINGS))


def test_a_learned_variance_is_trained():
    """By vlb too, and not only by its hybrid; the network then gives twice as much."""
    config = preset("ddpm_toy", loss__name="vlb", learned_variance=True, train__warmup=0, train__clip=0.0)
    config.loss.vlb.variance = "learned"
    experiment = experiment_lib.assemble(config)
    takes_a_step(experiment)
    params = jax.eval_shape(experiment.init, jax.random.key(0))
    assert params["net"]["params"]["out"]["kernel"].shape == (16, 4)


def test_the_loss_of_a_level_is_settled_by_its_variance():
    """L / e^u + u (Kendall & Gal 2018), least at u = log L, where u is that of the level's log-SNR."""
    experiment = experiment_lib.assemble(preset("ddpm_toy", log_variance=True))
    params = experiment.init(jax.random.key(0))
    layer = params["log_variance"]["params"]["out"]
    assert max(abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(layer)) < 1e-4  # u starts at 0
    layer["kernel"] = 0.3 * jax.random.normal(jax.random.key(1), layer["kernel"].shape)
    layer["bias"] = layer["bias"] + 0.7
    losses, t = np.array([0.5, 3.0, 20.0], np.float32), np.array([0, 500, 999], np.int32)
    lam = np.asarray(experiment.process.logsnr(t), np.float64)
    i = np.arange(32)
    angle = lam[:, None] * np.exp(-np.log(1e4) * i / 31)
    u = np.concatenate([np.sin(angle), np.cos(angle)], 1) @ np.asarray(layer["kernel"], np.float64)[:, 0] + 0.7
    assert u.std() > 0.1
    np.testing.assert_allclose(experiment.settled(params, losses, t), losses / np.exp(u) + u, rtol=1e-4)
    plain = experiment_lib.assemble(preset("ddpm_toy"))
    np.testing.assert_array_equal(plain.settled({}, losses, t), losses)


@pytest.mark.parametrize(
    ("name", "overrides", "parts"),
    [
        ("ddpm_toy", {"sampler__n": 1001}, ["config.sampler.n=1001", "1000 noise levels"]),
        ("ncsn_toy", {"sampler__corrector__name": "none"}, ["'hold'", "--config.sampler.corrector.name=langevin"]),
        ("ddpm_toy", {"net__name": "unet"}, ["network 'unet'", "'mixture'", "use the mlp"]),
        ("ddpm_digits", {"scaling__name": "identity"}, ["'identity'", "'centered'"]),
        ("ddpm_digits", {"net__unet__channels": 0}, ["network 'unet'"]),
        ("ddpm_digits", {"net__unet__multipliers": (1, 1, 1, 1, 1)}, ["8x8", "multipliers"]),
        ("ddpm_digits", {"net__unet__dtype": "floats"}, ["network 'unet'", "floats"]),
        ("ddpm_toy", {"data__flip": True}, ["flip"]),
        ("ddpm_toy", {"target": "epsilon"}, ["config.target", "eps, x0, score, v"]),
        ("ddpm_toy", {"net__condition": "snr"}, ["config.net.condition", "index, rescaled, sigma, logsnr, edm"]),
        ("ddpm_toy", {"process__ddpm__beta_max": 2.0}, ["beta_max=2.0", "< 1 is needed"]),
        ("ddpm_toy", {"sampler__process__name": "ncsn", "sampler__process__ncsn__sigma_min": 1e6,
                      "sampler__process__ncsn__sigma_max": 1e7}, ["config.sampler.process=ncsn"]),
        ("ddpm_toy", {"train__steps": 0}, ["config.train.steps=0"]),
        ("ddpm_toy", {"train__batch": 0}, ["config.train.batch=0"]),
        ("ddpm_toy", {"train__microbatch": 3}, ["config.train.microbatch=3", "batch of 4"]),
        ("ddpm_toy", {"train__ema__decay__rate": 1.0}, ["decay: rate=1.0"]),
        ("ddpm_toy", {"train__learning_rate": 0.0}, ["config.train.learning_rate=0.0"]),
        ("ddpm_toy", {"train__clip": -1.0}, ["config.train.clip=-1.0"]),
        ("ddpm_toy", {"sampler__n": -1}, ["config.sampler.n=-1"]),
        ("ddpm_toy", {"sampler__batch": 0}, ["config.sampler.batch=0"]),
        ("ddpm_toy", {"eval__samples": 20_001}, ["config.eval.samples=20001", "20000"]),
        ("edm_toy", {"net__condition": "index"}, ["config.net.condition=index", "--config.net.condition=sigma"]),
        ("edm_toy", {"net__condition": "rescaled"}, ["config.net.condition=rescaled", "--config.net.condition=sigma"]),
        ("ncsn_cifar", {"net__condition": "sigma"}, ["condition=sigma", "'refinenet'", "--config.net.condition=index"]),
        ("ncsnv2_cifar", {"net__condition": "index"}, ["'refinenet_v2'", "--config.net.condition=sigma"]),
        ("ncsnv2_cifar", {"target": "eps"}, ["'refinenet_v2'", "gives the score", "--config.target=score"]),
        ("ncsn_cifar", {"process__name": "ve"}, ["'refinenet'", "'ve' has no levels", "--config.net.name=unet"]),
        ("ncsn_cifar", {"labels": True}, ["'refinenet'", "knows no classes"]),
        ("ncsn_toy", {"net__unit_input": True, "process__ncsn__data_std": 0.0}, ["unit_input", "ncsn.data_std="]),
        ("edm_toy", {"weighting__name": "edm", "process__edm__data_std": 0.0}, ["--config.process.edm.data_std=0.5"]),
        ("ddpm_digits", {"loss__name": "fdssm", "net__unet__dtype": "bfloat16"}, ["bfloat16", "dtype=float32", "ssm"]),
        ("ddpm_toy", {"sampler__predictor__ancestral__variance": "learned"}, ["variance=learned", "small or large"]),
        ("ddpm_toy", {"loss__name": "vlb", "loss__vlb__unit": "bytes"}, ["vlb", "'bits' or 'nats'"]),
        ("ddpm_toy", {"weighting__name": "min_snr", "weighting__min_snr__gamma": 0.0}, ["min_snr", "gamma=0.0"]),
        ("ddpm_digits", {"loss__name": "ism", "loss__ism__max_dims": 63}, ["64 dimensions", "ism.max_dims"]),
        ("ddpm_toy", {"loss__name": "vlb", "times__name": "lognormal"}, ["'vlb'", "second_moment"]),
        ("ddpm_toy", {"loss__name": "ssm", "log_variance": True}, ["may be negative"]),
        ("ddpm_toy", {"learned_variance": True}, ["nothing would train"]),
    ],
)  # fmt: skip
def test_nonsense_is_refused_before_anything_compiles(name, overrides, parts):
    with pytest.raises(UsageError) as caught:
        experiment_lib.assemble(preset(name, **overrides))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_reason_of_many_lines_is_cut_to_its_first(monkeypatch):
    class Verbose:
        def init(self, *_, **__):
            raise TypeError("the shapes do not fit\n  at line 1\n  at line 2")

    monkeypatch.setitem(experiment_lib.NETS, "verbose", Verbose)
    config = preset("ddpm_toy")
    with config.unlocked():
        config.net.update(name="verbose", verbose={})
    with pytest.raises(UsageError, match=r"^the network 'verbose' and the data 'mixture': the shapes do not fit$"):
        experiment_lib.assemble(config)


def test_the_network_sees_centred_data_and_is_told_the_noise():
    """Pixels of [0, 1] reach it as 2x - 1 unless `centered` is off; c is what `condition` says of the process."""
    for centered in (True, False):
        config = preset("ncsn_cifar", net__centered=centered, net__name="unet", net__condition="sigma")
        experiment = experiment_lib.assemble(config)
        seen = []
        spy = dataclasses.replace(experiment, net=Spy(seen))
        x, t = np.full((2, 32, 32, 3), 0.75, np.float32), np.array([0, 9], np.int32)
        spy.predict({"net": None})(x, t)
        assert np.allclose(seen[0][0], 0.5 if centered else 0.75)
        assert np.allclose(seen[0][1], np.log([0.01, 1.0]), rtol=1e-5)


@pytest.mark.parametrize("name", ["edm_toy", "ddpm_cifar", "ncsn_cifar"])
def test_a_network_sees_data_of_unit_variance_if_asked(name):
    """EDM's c_in = 1 / sqrt(sigma^2 + (alpha data_std)^2); pixels of [0, 1] are centred, to twice the deviation."""
    experiment = experiment_lib.assemble(preset(name, net__unit_input=True))
    process, seen = experiment.process, []
    x = np.full((2, *experiment.dataset.shape), 0.75, np.float32)
    t = process.grid(2)
    dataclasses.replace(experiment, net=Spy(seen)).predict({"net": None})(x, t)
    a, s = (np.asarray(f(t), np.float64).reshape(2, *[1] * (x.ndim - 1)) for f in (process.alpha, process.sigma))
    shown = (2 * x - a) / 2 if name == "ncsn_cifar" else x
    assert np.allclose(seen[0][0], shown / np.sqrt(s**2 + (a * process.data_std) ** 2), rtol=1e-5)


def test_a_network_is_asked_in_the_terms_it_was_trained_in():
    """Under DDPM a network of NCSN's sees x / alpha at the level where sigma' is DDPM's sigma / alpha."""
    experiment = experiment_lib.assemble(preset("ncsn_toy", sampler__process__name="ddpm"))
    seen = []
    spy = dataclasses.replace(experiment, net=Spy(seen))
    walk, x = experiment.walk, np.array([[0.3, -0.8]], np.float32)
    t = np.array([walk.levels // 2], np.int32)
    alpha, sigma = float(walk.alpha(t)[0]), float(walk.sigma(t)[0])
    spy.predict_to_sample({"net": None})(x, t)
    assert np.allclose(seen[0][0], x / alpha, rtol=1e-5)
    assert np.allclose(seen[0][1], 2 * np.log(alpha / sigma), rtol=1e-4)  # it is told the log-SNR
    assert 0.02 < sigma / alpha < 6.0


class Spy:
    """A network that notes what it is shown."""

    def __init__(self, seen):
        self.seen = seen

    def apply(self, params, x, c, train=False, heads=1, rngs=None):
        self.seen.append((np.asarray(x), np.asarray(c)))
        return 0 * x
