"""Every preset is built as it stands, every preset takes a step under every loss, and nonsense is refused."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from scoregen import experiment as experiment_lib
from scoregen import train
from scoregen.config import load, presets
from scoregen.data import Dataset
from scoregen.errors import UsageError
from scoregen.losses import LOSSES

PRESETS = [name for name in presets() if name != "default"]


@pytest.fixture(autouse=True)
def cifar10(monkeypatch):
    """A few made-up images in the place of CIFAR-10, which is not there."""

    def source(*, dir: str) -> Dataset:
        rng = np.random.default_rng(0)
        images = rng.integers(256, size=(24, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(24, dtype=np.int32) % 10
        return Dataset("cifar10", images[:16], images[16:], labels[:16], labels[16:])

    monkeypatch.setitem(experiment_lib.SOURCES, "cifar10", source)


def preset(name: str, **overrides):
    """A preset with the smallest network that has its kinds of layers."""
    config = load(name)
    config.net.unet.update(channels=4, multipliers=(1,), blocks=1, attention=(), groups=2)
    config.net.mlp.update(width=16, depth=1, embedding=8)
    config.train.update(batch=4, microbatch=0)
    config.eval.samples = 8
    for key, value in overrides.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_built_as_they_stand(name):
    config = load(name)
    if config.data.name == "cifar10":
        config.eval.samples = 16  # of as many made-up images
    experiment = experiment_lib.assemble(config)
    assert experiment.dataset.shape == {"mixture": (2,), "digits": (8, 8, 1), "cifar10": (32, 32, 3)}[config.data.name]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_takes_a_step_under_every_loss(name, loss):
    """And the step goes down the gradient of the loss that it reports, as differences of that loss tell.

    Adam's first average holds the gradient: m = (1 - 0.9) g. With it, L(p + h g) - L(p - h g) = 2 h |g|^2.
    """
    experiment = experiment_lib.assemble(preset(name, loss__name=loss, train__warmup=0, train__clip=0.0))
    step = train.make_step(experiment)
    raw = experiment.dataset.batch(0, 0, 4)
    # Not the network's own start, where the output layer is nearly zero and hides the gradients of the others.
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: train.init_state(experiment))
    params = jax.tree.map(lambda a: 0.3 * rng.standard_normal(a.shape, np.float32), shapes.params)

    def run(params):
        fresh = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
        return step(dataclasses.replace(fresh, params=params, ema=params), raw)

    state, metrics = run(params)
    assert int(state.step) == 1
    assert np.isfinite(metrics["loss"])
    changed = jax.tree.map(lambda a, b: bool((a != np.asarray(b)).any()), params, state.params)
    assert all(jax.tree.leaves(changed)), changed

    gradient = jax.tree.map(lambda m: np.asarray(m) / (1 - 0.9), optax.tree.get(state.opt_state, "mu"))
    norm = float(optax.tree.norm(gradient))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    h = 1e-3 / norm
    up, down = (
        float(run(jax.tree.map(lambda p, g, h=h: p + np.float32(h) * g, params, gradient))[1]["loss"]) for h in (h, -h)
    )
    assert (up - down) / (2 * h) == pytest.approx(norm**2, rel=0.05)


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
        ("ddpm_toy", {"net__condition": "snr"}, ["config.net.condition", "index, sigma, logsnr"]),
        ("ddpm_toy", {"process__ddpm__beta_max": 2.0}, ["beta_max=2.0", "< 1 is needed"]),
        ("ddpm_toy", {"sampler__process__name": "ncsn", "sampler__process__ncsn__sigma_min": 1e6,
                      "sampler__process__ncsn__sigma_max": 1e7}, ["config.sampler.process=ncsn"]),
        ("ddpm_toy", {"train__steps": 0}, ["config.train.steps=0"]),
        ("ddpm_toy", {"train__batch": 0}, ["config.train.batch=0"]),
        ("ddpm_toy", {"train__microbatch": 3}, ["config.train.microbatch=3", "batch of 4"]),
        ("ddpm_toy", {"train__ema": 1.0}, ["config.train.ema=1.0"]),
        ("ddpm_toy", {"train__learning_rate": 0.0}, ["config.train.learning_rate=0.0"]),
        ("ddpm_toy", {"train__clip": -1.0}, ["config.train.clip=-1.0"]),
        ("ddpm_toy", {"sampler__n": -1}, ["config.sampler.n=-1"]),
        ("ddpm_toy", {"sampler__batch": 0}, ["config.sampler.batch=0"]),
        ("ddpm_toy", {"eval__samples": 20_001}, ["config.eval.samples=20001", "20000"]),
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
        def init(self, *_):
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
        config = preset("ncsn_cifar", net__centered=centered, net__condition="sigma")
        experiment = experiment_lib.assemble(config)
        seen = []
        spy = dataclasses.replace(experiment, net=Spy(seen))
        x, t = np.full((2, 32, 32, 3), 0.75, np.float32), np.array([0, 9], np.int32)
        spy.predict({})(x, t)
        assert np.allclose(seen[0][0], 0.5 if centered else 0.75)
        assert np.allclose(seen[0][1], np.log([0.01, 1.0]), rtol=1e-5)


def test_a_network_is_asked_in_the_terms_it_was_trained_in():
    """Under DDPM a network of NCSN's sees x / alpha at the level where sigma' is DDPM's sigma / alpha."""
    experiment = experiment_lib.assemble(preset("ncsn_toy", sampler__process__name="ddpm"))
    seen = []
    spy = dataclasses.replace(experiment, net=Spy(seen))
    walk, x = experiment.walk, np.array([[0.3, -0.8]], np.float32)
    t = np.array([walk.levels // 2], np.int32)
    alpha, sigma = float(walk.alpha(t)[0]), float(walk.sigma(t)[0])
    spy.predict_to_sample({})(x, t)
    assert np.allclose(seen[0][0], x / alpha, rtol=1e-5)
    assert np.allclose(seen[0][1], 2 * np.log(alpha / sigma), rtol=1e-4)  # it is told the log-SNR
    assert 0.02 < sigma / alpha < 6.0


class Spy:
    """A network that notes what it is shown."""

    def __init__(self, seen):
        self.seen = seen

    def apply(self, params, x, c, train=False, rngs=None):
        self.seen.append((np.asarray(x), np.asarray(c)))
        return 0 * x
