"""Every preset is built as it stands and takes a step under every loss, and impossible configurations are refused."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from small import OWN

from scoregen import metrics
from scoregen.app import build as build_lib
from scoregen.app.build import build
from scoregen.app.config import load, presets
from scoregen.data import Dataset
from scoregen.errors import UsageError
from scoregen.losses import LOSSES, WEIGHTINGS, Hybrid
from scoregen.process import PROCESSES
from scoregen.samplers import Sampler
from scoregen.times import TIMES
from scoregen.train import init_state, make_step

PRESETS = [name for name in presets() if name != "default"]


SIDE = [32]  # the last number is the side of the made-up images


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    """A few made-up images in the place of data sets that are not there."""

    def source(name: str, side: int, channels: int) -> Dataset:
        rng = np.random.default_rng(0)
        images = rng.integers(256, size=(24, side, side, channels), dtype=np.uint8)
        labels = np.arange(24, dtype=np.int32) % 10
        return Dataset(name, images[:16], images[16:], labels[:16], labels[16:])

    monkeypatch.setitem(build_lib.SOURCES, "cifar10", lambda *, dir: source("cifar10", SIDE[-1], 3))
    monkeypatch.setitem(
        build_lib.SOURCES, "fashion_mnist", lambda *, dir: source("fashion_mnist", min(28, SIDE[-1]), 1)
    )
    monkeypatch.setitem(globals(), "SIDE", [32])


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


def plain(config):
    """The configuration without a warm-up, whose first step changes nothing, and without a clip."""
    for schedule in ("constant", "cosine", "linear", "inverse_sqrt"):
        config.schedule[schedule].warmup = 0
    config.train.clip = 0.0
    return config


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_built_as_they_stand(name, tmp_path):
    config = load(name)
    if config.data.name in ("cifar10", "fashion_mnist"):
        config.eval.samples = 16  # as many as there are made-up training images
    if name in OWN:
        config.data.dir = own_data(name, tmp_path)
    parts = build(config)
    shapes = {"mixture": (2,), "digits": (8, 8, 1), "cifar10": (32, 32, 3), "fashion_mnist": (28, 28, 1)}
    assert parts.dataset.shape == (OWN.get(name) or shapes[config.data.name])


def own_data(name, folder):
    """A few examples in a file, or a folder, as the preset reads them."""
    x = np.random.default_rng(0).uniform(0, 255, (30, *OWN[name]))
    if name == "images":
        for i, pixels in enumerate(x.astype(np.uint8)):
            Image.fromarray(pixels).save(folder / f"{i}.png")
        return str(folder)
    file = folder / ("x.csv" if name == "points" else "x.npy")
    if name == "points":
        np.savetxt(file, x, delimiter=",", header="a,b,c", comments="")
    else:
        np.save(file, x)
    return str(file)


def test_the_presets_for_data_of_ones_own_are_known():
    named = {"folder", "table", "array"}
    assert {name for name in PRESETS if load(name).data.name in named} == set(OWN)


def repaired(config):
    """The built parts. As long as they are refused, the configuration is changed as the first reason says."""
    for _ in range(8):
        try:
            return build(config)
        except UsageError as error:
            reason = error.args[0]
        assert "\n" not in reason
        if "ism.max_dims" in reason:
            SIDE.append(8)
            continue
        flags = re.findall(r"--config\.([\w.]+)=([\w.+-]*\w)", reason)
        key, value = next(flag for flag in flags if flag[0] != "loss.name")
        with contextlib.suppress(ValueError):
            value = float(value) if not value.isdigit() else int(value)
        value = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
        config.update_from_flattened_dict({key: value})
        if key == "process.name":
            config.sampler.n, config.net.condition = 0, "logsnr"
    raise AssertionError(f"refused after all that it says was done: {reason}")


def takes_a_step(parts):
    """One step changes every parameter, and finite differences of the reported loss confirm its gradient.

    Adam's first average holds the gradient: m = (1 - 0.9) g. With it, L(p + h g) - L(p - h g) = 2 h |g|^2.
    """
    of = parts.model, parts.objective, parts.optimizer
    step = make_step(*of, parts.average, prepare=parts.prepare, seed=parts.config.seed)
    raw = parts.dataset.batch(0, 0, 4)
    # Not the network's initial parameters: their output layer is nearly zero and hides the other layers' gradients.
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_state(*of, (1, *parts.dataset.shape)))

    def draw(a):
        # Convolutions keep the size of their input. Else the loss of a deep network is not linear over the step h.
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
        assert (a != np.asarray(b)).any() == ("frequencies" not in name), name  # Fourier frequencies are not trained

    gradient = jax.tree.map(lambda m: np.asarray(m) / (1 - 0.9), optax.tree.get(state.opt_state, "mu"))
    norm = float(optax.tree.norm(gradient))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    if isinstance(parts.objective.loss, Hybrid):  # one of its terms stops the mean's gradient
        return
    h = 1e-3 / norm
    up, down = (
        float(run(jax.tree.map(lambda p, g, h=h: p + np.float32(h) * g, params, gradient))[1]["loss"]) for h in (h, -h)
    )
    assert (up - down) / (2 * h) == pytest.approx(norm**2, rel=0.05)


def cases():
    """All presets x losses. Quick are the presets of points in the plane, each with its own loss.

    `series`, `fields` and `volumes` are `points` with other data, so each has only its own loss.
    """
    for name in PRESETS:
        for loss in LOSSES:
            own = load(name).loss.name == loss
            if name in ("series", "fields", "volumes") and not own:
                continue
            quick = load(name).net.name == "mlp" and own
            yield pytest.param(name, loss, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "loss"), list(cases()))
def test_every_preset_takes_a_step_under_every_loss(name, loss, tmp_path):
    """Or its refusal says what to change, and the changed preset takes a step."""
    config = plain(preset(name, loss__name=loss))
    if name in OWN:
        config.data.dir, config.data.folder.size = own_data(name, tmp_path), (4,)
    if config.net.name == "auto":
        config.net.name = "mlp" if name == "points" else "unet"
    if config.learned_variance and loss not in ("hybrid", "vlb"):  # the refusal would propose another loss
        config.learned_variance, config.sampler.step.ancestral.variance = False, "small"
    # RefineNets take a minute to compile: they are kept for the losses that their presets name, and a U-Net replaces
    # them elsewhere. (RefineNetV2's ssm has jumps, as its docstring says, which finite differences would show.)
    kept = {"refinenet": ("dsm", "ssm"), "refinenet_v2": ("dsm",)}
    if loss not in kept.get(config.net.name, (loss,)):
        config.net.name = "unet"
    takes_a_step(repaired(config))


LAWS = [name for name in TIMES if name != "own"]
ALL_WEIGHTINGS = [name for name in WEIGHTINGS if name != "own"]


@pytest.mark.quick(1)
@pytest.mark.parametrize(("number", "process"), list(enumerate(PROCESSES)))
def test_every_process_takes_a_step(number, process):
    """Together the cases have every law of times and every weighting, with and without a variance of the loss."""
    config = plain(preset("ddpm_toy", process__name=process, target="v", sampler__n=0))
    config.times.name, config.weighting.name = LAWS[number % len(LAWS)], ALL_WEIGHTINGS[number % len(ALL_WEIGHTINGS)]
    config.loss.name, config.log_variance, config.net.unit_input = ("x0", "eps")[number % 2], number % 2 == 0, True
    takes_a_step(build(config))
    assert len(PROCESSES) >= max(len(LAWS), len(ALL_WEIGHTINGS))


@pytest.mark.slow
def test_a_learned_variance_is_trained():
    """By the loss vlb too, and not only by hybrid. The network then has twice the output channels."""
    config = plain(preset("ddpm_toy", loss__name="vlb", learned_variance=True))
    config.loss.vlb.variance = "learned"
    parts = build(config)
    takes_a_step(parts)
    params = jax.eval_shape(lambda key: parts.model.init(key, (1, 2)), jax.random.key(0))
    assert params["net"]["params"]["out"]["kernel"].shape == (16, 4)


@pytest.mark.quick(15)
@pytest.mark.parametrize(
    ("name", "overrides", "parts"),
    [
        ("ddpm_toy", {"sampler__n": 1001}, ["n=1001", "1000 levels", "--config.sampler.n=0"]),
        ("ncsn_toy", {"sampler__corrector__name": "none"}, ["Hold", "--config.sampler.corrector.name=langevin"]),
        ("ddpm_toy", {"net__name": "unet", "net__condition": "index"}, ["network 'unet'", "'mixture'", "MLP"]),
        ("ddpm_digits", {"scaling__name": "identity"}, ["'identity'", "'centered'"]),
        ("ddpm_digits", {"net__unet__channels": 0}, ["config.net.unet.channels=0: at least 4"]),
        ("ddpm_digits", {"net__unet__multipliers": (1, 1, 1, 1, 1)}, ["8x8", "multipliers"]),
        ("ddpm_digits", {"net__unet__dtype": "floats"}, ["network 'unet'", "floats"]),
        ("ddpm_toy", {"data__flip": True}, ["flip"]),
        ("ddpm_toy", {"target": "epsilon"}, ["config.target", "eps, x0, score, v"]),
        ("ddpm_toy", {"net__condition": "snr"}, ["config.net.condition", "index, rescaled, sigma, logsnr, edm"]),
        ("ddpm_toy", {"process__ddpm__beta_max": 2.0}, ["beta_max=2.0"]),
        ("ddpm_toy", {"sampler__process__name": "ncsn", "sampler__process__ncsn__sigma_min": 1e6,
                      "sampler__process__ncsn__sigma_max": 1e7}, ["config.sampler.process=ncsn"]),
        ("ddpm_toy", {"train__steps": 0}, ["config.train.steps=0"]),
        ("ddpm_toy", {"train__batch": 0}, ["config.train.batch=0"]),
        ("ddpm_toy", {"train__microbatch": 3}, ["config.train.microbatch=3", "batch of 4"]),
        ("ddpm_toy", {"train__ema__decay__rate": 1.0}, ["config.train.ema.decay.rate=1.0"]),
        ("ddpm_toy", {"train__learning_rate": 0.0}, ["config.train.learning_rate=0.0"]),
        ("ddpm_toy", {"train__learning_rate": float("inf")}, ["config.train.learning_rate=inf"]),
        ("ddpm_toy", {"train__clip": -1.0}, ["config.train.clip=-1.0"]),
        ("ddpm_toy", {"train__accumulate": 0}, ["config.train.accumulate=0"]),
        ("ddpm_toy", {"schedule__name": "cosine", "schedule__cosine__warmup": 50_000}, ["cosine.warmup=50000"]),
        ("ddpm_toy", {"sampler__n": -1}, ["config.sampler.n=-1"]),
        ("ddpm_toy", {"sampler__batch": 0}, ["config.sampler.batch=0"]),
        ("ddpm_toy", {"seed": 2**32}, ["config.seed=4294967296", "0 to 4294967295"]),
        ("ddpm_toy", {"seed": -1}, ["config.seed=-1"]),
        ("ddpm_toy", {"eval__samples": 20_001}, ["config.eval.samples=20001", "20000"]),
        ("edm_toy", {"net__condition": "index"}, ["--config.net.condition=sigma"]),
        ("edm_toy", {"net__condition": "rescaled"}, ["--config.net.condition=sigma"]),
        ("ncsn_cifar", {"net__condition": "sigma"}, ["RefineNet", "--config.net.condition=index"]),
        ("ncsnv2_cifar", {"net__condition": "index"}, ["RefineNetV2", "--config.net.condition=sigma"]),
        ("ncsnv2_cifar", {"target": "eps"}, ["RefineNetV2", "gives the score", "--config.target=score"]),
        ("ncsn_cifar", {"process__name": "ve"}, ["RefineNet", "has no levels", "--config.net.name=unet"]),
        ("ncsn_cifar", {"labels": True}, ["RefineNet", "no input for class labels"]),
        ("ncsn_toy", {"net__unit_input": True, "process__ncsn__data_std": 0.0},
         ["unit variance", "--config.process.ncsn.data_std=0.5"]),
        ("edm_toy", {"weighting__name": "edm", "process__edm__data_std": 0.0}, ["--config.process.edm.data_std=0.5"]),
        ("ddpm_digits", {"loss__name": "fdssm", "net__unet__dtype": "bfloat16"},
         ["bfloat16", "--config.net.unet.dtype=float32", "--config.loss.name=ssm"]),
        ("ddpm_toy", {"sampler__step__ancestral__variance": "learned"},
         ["--config.sampler.step.ancestral.variance=small"]),
        ("ddpm_toy", {"loss__name": "vlb", "loss__vlb__unit": "bytes"}, ["vlb", "'bits' or 'nats'"]),
        ("ddpm_toy", {"weighting__name": "min_snr", "weighting__min_snr__gamma": 0.0}, ["min_snr", "gamma=0.0"]),
        ("ddpm_digits", {"loss__name": "ism", "loss__ism__max_dims": 63}, ["64", "--config.loss.ism.max_dims=64"]),
        ("ddpm_toy", {"loss__name": "ssm", "log_variance": True}, ["may be negative", "--config.log_variance=false"]),
        ("ddpm_toy", {"learned_variance": True}, ["no loss would train", "--config.learned_variance=false"]),
        ("ddpm_toy", {"loss__name": "flow"}, ["derivative in time", "--config.process.name=vp"]),
        ("flow_toy", {"target": "eps"}, ["alpha = 0", "--config.target=velocity"]),
        ("flow_toy", {"sampler__step__name": "euler_maruyama"},
         ["alpha = 0", "--config.process.flow.t_max=0.999", "--config.sampler.step.name=ancestral"]),
        ("ddpm_toy", {"sampler__process__name": "flow", "sampler__step__name": "heun", "sampler__n": 20,
                      "sampler__corrector__name": "mala"}, ["MALA", "--config.energy=true"]),
        ("ddpm_toy", {"energy": True, "sampler__corrector__name": "mala", "sampler__x0__name": "clip"},
         ["only images of bytes have a range", "--config.sampler.x0.name=free"]),
        ("edm_toy", {"sampler__corrector__name": "langevin"}, ["2e-05", "diverge", "corrector.langevin.step_size="]),
    ],
)  # fmt: skip
def test_nonsense_is_refused_before_anything_compiles(name, overrides, parts):
    with pytest.raises(UsageError) as caught:
        build(preset(name, **overrides))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_everything_that_does_not_fit_is_said_at_once():
    """One error holds all reasons, with flags that change them."""
    config = preset(
        "ddpm_toy", train__batch=-1, sampler__x0__name="clip", target="velocity", sampler__step__name="heun"
    )
    with pytest.raises(UsageError) as caught:
        build(config)
    reasons = caught.value.args
    for part in (
        *("config.train.batch=-1", "--config.sampler.x0.name=free", "--config.target=v"),
        *("--config.sampler.step.name=ancestral", "Heun"),
    ):
        assert any(part in reason for reason in reasons), part
    assert len(set(reasons)) == len(reasons) >= 4


@pytest.fixture
def unlabelled(monkeypatch):
    """A folder of 20 images without labels, in place of the digits."""
    images = np.random.default_rng(0).integers(256, size=(24, 8, 8, 1), dtype=np.uint8)
    monkeypatch.setitem(
        build_lib.SOURCES, "digits", lambda *, held_out=0.2, seed=0: Dataset("p", images[:20], images[20:])
    )


@pytest.mark.slow
@pytest.mark.usefixtures("unlabelled")
def test_unlabelled_images_are_refused_once_and_what_is_switched_off_is_not_checked():
    config = load("ddpm_digits")
    config.labels = True
    with pytest.raises(UsageError) as caught:
        build(config)
    assert len(caught.value.args) == 1 and "--config.labels=false" in caught.value.args[0]
    config.labels, config.eval.at_end, config.eval.samples = False, False, 1000  # of 20 images
    assert build(config).evaluated == 1000
    with pytest.raises(UsageError, match="a number from 2 to 20 is needed"):
        build(config, "eval")
    build(config, "sample")


def test_data_without_held_out_examples_train_and_are_not_evaluated(monkeypatch):
    points = Dataset("points", np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32))
    monkeypatch.setitem(build_lib.SOURCES, "moons", lambda *, size=50, noise=0.1, seed=0: points)
    config = preset("ddpm_toy", data__name="moons")
    with pytest.raises(UsageError, match=r"'moons' have no held-out examples.*--config\.eval\.at_end=false"):
        build(config)
    with pytest.raises(UsageError, match="to compute the likelihood of"):
        build(config, "likelihood")
    config.eval.at_end = False
    assert build(config).dataset.test is None
    build(config, "sample")


def test_held_out_images_without_labels_have_no_classifier(monkeypatch):
    """With labels of the training images only, `auto` takes the features of images without labels."""
    images, labels = np.zeros((6, 8, 8, 2), np.uint8), np.arange(6) % 2
    half = Dataset("half", images, images, train_labels=labels)
    both = Dataset("both", images, images, train_labels=labels, test_labels=labels)
    config = load("ddpm_digits")
    assert "need 1 or 3 channels, and these have 2" in build_lib.not_evaluated(config, half)
    assert build_lib.not_evaluated(config, both) == ""
    monkeypatch.setattr(metrics, "efficientnet_features", lambda: "EfficientNet")
    monkeypatch.setattr(metrics, "classifier_features", lambda dataset, progress: "classifier")
    assert (metrics.auto_features(half), metrics.auto_features(both)) == ("EfficientNet", "classifier")
    monkeypatch.setitem(build_lib.SOURCES, "digits", lambda *, held_out=0.2, seed=0: half)
    config.eval.features.name = "classifier"
    with pytest.raises(UsageError, match="it is trained on labels, and these held-out images have none"):
        build(config, "eval")


def test_as_many_samples_are_evaluated_as_there_are_training_examples(monkeypatch):
    """1000 at most, unless another number is named."""
    config = load("ddpm_toy")
    for size, samples, expected in ((300, 0, 300), (5000, 0, 1000), (5000, 2000, 2000)):
        config.data.mixture.size, config.eval.samples = size, samples
        assert build(config).evaluated == expected


def test_a_reason_of_many_lines_is_cut_to_its_first(monkeypatch):
    class Verbose(nn.Module):
        @nn.compact
        def __call__(self, x, cond, train=False):
            raise TypeError("the shapes do not fit\n  at line 1\n  at line 2")

    monkeypatch.setitem(build_lib.NETS, "verbose", Verbose)
    config = preset("ddpm_toy")
    with config.unlocked():
        config.net.update(name="verbose", verbose={})
    with pytest.raises(UsageError, match=r"^the network 'verbose' and the data 'mixture': the shapes do not fit$"):
        build(config)


class Spy(nn.Module):
    """A network that notes its inputs."""

    note: Callable

    def __call__(self, x, cond, train=False):
        self.note((np.asarray(x), np.asarray(cond.noise)))
        return 0 * x


def spied(parts):
    """The parts with a network that notes its inputs, and what it notes."""
    seen = []
    model = dataclasses.replace(parts.model, net=Spy(seen.append))
    own = parts.sampling.process is parts.model.process
    sampling = dataclasses.replace(
        parts.sampling, model=model, process=model.process if own else parts.sampling.process
    )
    return dataclasses.replace(parts, model=model, sampling=sampling), seen


@pytest.mark.slow
def test_the_network_sees_centred_data_and_the_noise_as_its_condition_says():
    """Pixels of [0, 1] reach it as 2x - 1 unless `centered` is off."""
    for centered in (True, False):
        config = preset("ncsn_cifar", net__centered=centered, net__name="unet", net__condition="sigma")
        parts, seen = spied(build(config))
        x, t = jnp.full((2, 32, 32, 3), 0.75, jnp.float32), jnp.array([0, 9], jnp.int32)
        parts.model.denoiser({"net": {}})(x, t)
        assert np.allclose(seen[0][0], 0.5 if centered else 0.75)
        assert np.allclose(seen[0][1], np.log([0.01, 1.0]), rtol=1e-5)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["edm_toy", "ddpm_cifar", "ncsn_cifar"])
def test_a_network_sees_data_of_unit_variance_if_the_configuration_says_so(name):
    """EDM's c_in = 1 / sqrt(sigma^2 + (alpha data_std)^2). Pixels of [0, 1] are also centred; the deviation stays 1."""
    parts, seen = spied(build(preset(name, net__unit_input=True)))
    process = parts.model.process
    x = jnp.full((2, *parts.dataset.shape), 0.75, jnp.float32)
    t = Sampler(parts.sampling.sampler.step, n=2).levels(process)
    parts.model.denoiser({"net": {}})(x, t)
    a, s = (np.asarray(f(t), np.float64).reshape(2, *[1] * (x.ndim - 1)) for f in (process.alpha, process.sigma))
    shown = (2 * x - a) / 2 if name == "ncsn_cifar" else x
    assert np.allclose(seen[0][0], shown / np.sqrt(s**2 + (a * process.data_std) ** 2), rtol=1e-5)


@pytest.mark.slow
def test_a_network_is_called_in_the_terms_of_its_training():
    """Under DDPM a network trained with NCSN sees x / alpha at the level whose sigma is DDPM's sigma / alpha."""
    parts, seen = spied(build(preset("ncsn_toy", sampler__process__name="ddpm")))
    walk, x = parts.sampling.process, jnp.array([[0.3, -0.8]], jnp.float32)
    t = jnp.array([int(walk.ends[1] + 1) // 2], jnp.int32)
    alpha, sigma = float(walk.alpha(t)[0]), float(walk.sigma(t)[0])
    parts.sampling.denoiser({"net": {}})(x, t)
    assert np.allclose(seen[0][0], x / alpha, rtol=1e-5)
    assert np.allclose(seen[0][1], 2 * np.log(alpha / sigma), rtol=1e-4)  # its condition is the log-SNR
    assert 0.02 < sigma / alpha < 6.0


# Drawing: one program, whatever the number of batches, with or without a callback


def counting(parts):
    """The parts with a network that counts how often Python runs it, and the count."""
    count = [0]

    class Net(nn.Module):
        own: nn.Module

        def __call__(self, x, cond, train=False):
            count[0] += 1
            return self.own(x, cond, train)

    model = dataclasses.replace(parts.model, net=Net(parts.model.net))
    sampling = dataclasses.replace(parts.sampling, model=model)
    return model, sampling, count


@pytest.mark.slow
def test_a_sampler_is_compiled_once_and_says_how_far_it_is():
    parts = build(preset("ddpm_toy", sampler__n=3, sampler__batch=4))
    model, sampling, count = counting(parts)
    params, other = (model.init(jax.random.key(seed), (1, 2)) for seed in (0, 1))
    before, heard = count[0], []
    sampling(params, 3)
    once = count[0] - before
    # Python runs the network for the step, for the last denoising, and for the check of shapes.
    assert 1 <= once <= 3
    sampling(params, 10, heard.append)
    sampling(other, 4, seed=7)
    assert count[0] - before == once
    assert sorted(heard) == list(range(1, 10))  # 3 levels of 3 batches
    assert sampling(params, 4, stopped=lambda: True) is None


@pytest.mark.slow
def test_a_draw_depends_on_the_seed_and_its_number_alone():
    parts = build(preset("ddpm_toy", sampler__n=3, sampler__batch=4))
    sampling, params = parts.sampling, parts.model.init(jax.random.key(0), (1, 2))
    few, many = sampling(params, 3), sampling(params, 9, batch=5)
    np.testing.assert_allclose(few, many[:3], rtol=1e-5, atol=1e-5)
    assert not np.allclose(few, sampling(params, 3, seed=1))
    config = preset("ddpm_toy", sampler__n=3, sampler__batch=4, sampler__seed=1)
    np.testing.assert_array_equal(build(config).sampling(params, 3), sampling(params, 3, seed=1))


def test_a_batch_that_is_not_filled_is_not_drawn_unless_its_examples_are_averaged():
    parts = build(preset("ddpm_toy", sampler__n=3, sampler__batch=256))
    assert parts.sampling.batch_for(5) == 5 and parts.sampling.batch_for(5000) == 256
    config = preset("ddpm_toy", sampler__n=3, sampler__batch=256, sampler__corrector__name="snr")
    config.sampler.corrector.snr.batch_mean = True
    assert build(config).sampling.batch_for(5) == 256


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("idle", "choices"),
    [
        ({"sampler.n": 7}, {"sampler.grid.name": "list", "sampler.grid.list.times": (900, 300, 0)}),
        ({"data.dir": "nowhere"}, {}),
        ({"label_dropout": 0.5}, {"labels": False}),
        ({"net.centered": False}, {"scaling.name": "centered"}),
        ({"loss.ssm.slices": 3, "sampler.grid.karras.rho": 3.0}, {}),
    ],
    ids=lambda values: ",".join(values),
)
def test_an_option_that_is_declared_to_have_no_effect_has_none(idle, choices):
    """A preset may set it, and another choice of parts may then make it idle."""

    def made(more):
        config = load("ddpm_digits")
        config.update_from_flattened_dict({**choices, **more})
        parts = build(config)
        return str((parts.model, parts.objective, parts.sampling.sampler))

    assert made(idle) == made({})
