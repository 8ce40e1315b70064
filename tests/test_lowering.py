"""Every preset's training step and sampler lower for TPU, without a TPU: an operation without a TPU rule fails here.

That does not check whether XLA compiles them, nor their memory or speed.
"""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from small import OWN

from scoregen.app.build import build
from scoregen.app.config import load, presets
from scoregen.cond import Cond
from scoregen.data import Dataset
from scoregen.losses import Objective
from scoregen.train import abstract_state, make_step, mesh

PRESETS = [name for name in presets() if name != "default"]
# Networks of images take long to trace.
CASES = [pytest.param(name, marks=[pytest.mark.slow] * ("toy" not in name)) for name in PRESETS]
IMAGES = {"cifar10": (32, 32, 3), "fashion_mnist": (28, 28, 1)}  # data that would have to be on disk


def parts_of(name):
    """The parts of a preset; data that are not there are made up, since a program depends on their shapes alone."""
    config = load(name)
    if name in OWN:
        x = np.random.default_rng(0).normal(size=(1000, *OWN[name])).astype(np.float32)
        x = np.zeros(x.shape, np.uint8) if name == "images" else x
        return build(config, dataset=Dataset("made up", x, x))
    if config.data.name not in IMAGES:
        return build(config)
    images = np.zeros((10_000, *IMAGES[config.data.name]), np.uint8)
    labels = np.arange(10_000, dtype=np.int32) % 10
    return build(config, dataset=Dataset("made up", images, images, labels, labels))


@pytest.fixture
def eight_devices(monkeypatch):
    """A mesh of devices that are not there: lowering does not need them."""
    absent = AbstractMesh((8,), ("examples",), axis_types=(AxisType.Auto,))
    monkeypatch.setattr(mesh, "devices", lambda: [None] * 8)
    monkeypatch.setattr(mesh, "_sharding", lambda *axes: NamedSharding(absent, PartitionSpec(*axes)))


def programs(parts):
    """The jitted functions of a run and the shapes of their arguments; nothing is computed."""
    config, shape = parts.config, parts.dataset.shape
    raw = jax.ShapeDtypeStruct((config.train.batch, *shape), parts.dataset.dtype)
    label = jax.ShapeDtypeStruct(raw.shape[:1], jnp.int32) if parts.model.num_classes else None
    trained = parts.model, parts.objective, parts.optimizer
    step = make_step(*trained, parts.average, config.train.microbatch, prepare=parts.prepare, seed=config.seed)
    state = abstract(abstract_state(*trained, raw.shape))
    yield "step", jax.jit(step), (state, raw, Cond(label=label))
    size = config.sampler.batch
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
    cond = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), parts.sampling.cond_of(np.arange(size))
    )
    # Without the callback of the progress bar: JAX lowers a callback only on a machine with the device.
    yield "sampler", parts.sampling.drawer(None), (state.ema, keys, cond, None)


def abstract(tree):
    """The tree without shardings, so that it is not bound to this machine's devices."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def lower(function, arguments):
    return jax.export.export(function, platforms=["tpu"])(*arguments)


@pytest.mark.parametrize("name", CASES)
def test_a_preset_lowers_for_tpu(name):
    for what, function, arguments in programs(parts_of(name)):
        lowered = lower(function, arguments)
        assert lowered.platforms == ("tpu",), what


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize("name", CASES)
def test_a_preset_lowers_for_eight_tpus(name):
    for what, function, arguments in programs(parts_of(name)):
        lowered = lower(function, arguments)
        assert (lowered.platforms, lowered.nr_devices) == (("tpu",), 8), what


def test_what_has_no_rule_for_tpu_is_found():
    """With the eigenvalues of a general matrix, which only the CPU computes, in the loss."""
    parts = parts_of("ddpm_toy")

    def loss(denoiser, noised, key):
        return parts.objective.loss(denoiser, noised, key) + jnp.real(jnp.linalg.eigvals(jnp.eye(2))).sum()

    _, function, arguments = next(programs(dataclasses.replace(parts, objective=Objective(loss))))
    with pytest.raises(NotImplementedError, match="platform tpu"):
        lower(function, arguments)
