"""Every preset's training step and sampler lower for TPU, which needs none: what has no rule for TPU fails here.

That says nothing of whether XLA then compiles them, of memory or of speed.
"""

import dataclasses
import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from scoregen import data, experiment, mesh, train
from scoregen.config import load, presets
from scoregen.data import Dataset

PRESETS = [name for name in presets() if name != "default"]
# Of images, which take long to trace, all but one are slow tests.
SEVERAL, ONE = (
    [pytest.param(name, marks=[pytest.mark.slow] * ("toy" not in name and name != quick)) for name in PRESETS]
    for quick in ("ddpm_digits", "")
)
IMAGES = {"cifar10": (32, 32, 3), "fashion_mnist": (28, 28, 1)}  # of data that would have to be there


def made_up(shape, **_):
    """Images of nothing, with labels of ten classes: a program depends on their shapes alone."""
    images, labels = np.zeros((10_000, *shape), np.uint8), np.arange(10_000, dtype=np.int32) % 10
    return Dataset("made up", images, images, labels, labels)


@pytest.fixture
def assembled(monkeypatch):
    def make(name):
        config = load(name)
        for source, shape in IMAGES.items():
            monkeypatch.setitem(data.SOURCES, source, functools.partial(made_up, shape))
        return experiment.assemble(config)

    return make


@pytest.fixture
def eight_devices(monkeypatch):
    """A mesh of devices that are not there: what lowers does not ask for them."""
    absent = AbstractMesh((8,), ("examples",), axis_types=(AxisType.Auto,))
    monkeypatch.setattr(mesh, "devices", lambda: [None] * 8)
    monkeypatch.setattr(mesh, "_sharding", lambda *axes: NamedSharding(absent, PartitionSpec(*axes)))


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def programs(it):
    """The jitted functions of a run and what they are called with, without a number being computed."""
    state = jax.eval_shape(lambda: train.init_state(it))
    yield "step", train.make_step(it), (state, *abstract(train.in_parts(it, *it.batch(0))))
    # Without the callback that moves the bar: JAX lowers one only where the device itself is there to be called back.
    size = it.config.sampler.batch
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
    yield "sampler", train.make_draw(it), (state.ema, keys, abstract(it.labels_to_sample(np.arange(size))), None)


def lower(function, arguments):
    return jax.export.export(function, platforms=["tpu"])(*arguments)


@pytest.mark.parametrize("name", ONE)
def test_a_preset_lowers_for_tpu(assembled, name):
    it = assembled(name)
    for what, function, arguments in programs(it):
        lowered = lower(function, arguments)
        assert lowered.platforms == ("tpu",), what


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize("name", SEVERAL)
def test_a_preset_lowers_for_eight_tpus(assembled, name):
    for what, function, arguments in programs(assembled(name)):
        lowered = lower(function, arguments)
        assert (lowered.platforms, lowered.nr_devices) == (("tpu",), 8), what


def test_what_has_no_rule_for_tpu_is_found(assembled):
    """With the eigenvalues of a general matrix, which there are on a CPU alone, in the loss."""
    it = assembled("ddpm_toy")

    def loss(*arguments):
        return it.loss(*arguments) + jnp.real(jnp.linalg.eigvals(jnp.eye(2))).sum()

    _, function, arguments = next(programs(dataclasses.replace(it, loss=loss)))
    with pytest.raises(NotImplementedError, match="platform tpu"):
        lower(function, arguments)
