"""The network that is chosen from the shape of the data and a memory budget."""

import itertools
import math

import jax
import jax.numpy as jnp
import pytest

from scoregen.app.build import build
from scoregen.app.config import load
from scoregen.errors import UsageError
from scoregen.nets import MLP, Cond, DiT, UNet, auto, cost, describe_size, memory
from scoregen.nets.auto import _ladder, _largest


@pytest.fixture
def needs(monkeypatch):
    """A network of rank i in its list "needs" i GB, times the batch; the networks are not traced."""
    ranks = {}
    monkeypatch.setattr(cost, "memory", lambda net, shape, batch: ranks.setdefault(net, 1 + len(ranks)) * batch * 1e9)

    def rank(shape):
        ranks.clear()
        for net in _ladder(shape):
            cost.memory(net, shape, 1)
        return list(ranks)

    _largest.cache_clear()
    yield rank
    _largest.cache_clear()


SHAPES = {
    (2,): MLP(128, 3),
    (40,): MLP(256, 4),
    (3000,): MLP(1024, 6),
    (1024, 2): UNet(128, (1, 2, 2, 2, 2, 2), attention=(32,), groups=32),
    (8, 8, 1): UNet(128, (1, 2), attention=(4,), groups=32),
    (28, 28, 1): UNet(128, (1, 2, 2), attention=(7,), groups=32),
    (32, 32, 3): UNet(128, (1, 2, 2, 2), attention=(4,), groups=32),
    (100, 60, 3): UNet(128, (1, 2, 2), attention=(), groups=32),  # 25x15 pixels: attention in the middle alone
    (4, 128, 1): UNet(128, (1, 2, 2), attention=(1,), groups=32),
    (16, 16, 16, 1): UNet(128, (1, 2, 2), attention=(4,), groups=32),
    (7, 9, 2): UNet(128, (1,), attention=(7,), groups=32),
    (45, 45, 1): DiT(3, 768, 12, 12),
    (5005, 3): DiT(35, 768, 12, 12),
    (30, 30, 30, 1): DiT(5, 768, 12, 12),
    (101, 101, 3): MLP(1024, 6),
    (1031, 1): MLP(1024, 6),
    (2, 2, 2, 2, 1): MLP(128, 3),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shape_decides_the_kind(shape):
    assert _ladder(shape)[-1] == SHAPES[shape]


def test_every_size_has_a_network_that_takes_it():
    """The networks check the sizes themselves. No U-Net attends over more than 1024 pixels, no DiT over 256 tokens."""
    sizes = [*itertools.product(range(1, 300)), *itertools.product(range(1, 70, 3), range(1, 70))]
    sizes += itertools.product(*[(1, 2, 3, 5, 8, 12, 16, 24, 31, 60)] * 3)
    kinds = set()
    for size in sizes:
        for net in _ladder((*size, 2)):
            kinds.add(type(net))
            if not isinstance(net, MLP):
                net._check((1, *size, 2))
            last = math.prod(size) >> (len(size) * (len(net.multipliers) - 1)) if isinstance(net, UNet) else 0
            tokens = math.prod(size) // net.patch ** len(size) if isinstance(net, DiT) else 16
            assert last <= 1024 and 16 <= tokens <= 256
    assert kinds == {MLP, UNet, DiT}


@pytest.mark.parametrize("shape", [(8, 8, 1), (45, 45, 1), (100,)])
def test_it_is_the_largest_that_fits(shape, needs):
    ladder = needs(shape)
    for fit in range(1, 1 + len(ladder)):
        for batch in (1, 3):
            assert needs(shape)[fit - 1] == auto(shape, memory=fit * batch, batch=batch)
            assert needs(shape)[fit - 1] == auto(shape, memory=fit * batch + 0.99 * batch, batch=batch)
    assert auto(shape, memory=1e6, batch=1) == ladder[-1]


def test_a_memory_that_is_too_small_is_refused_with_the_least(needs):
    needs((8, 8, 1))
    line = (
        r"memory=0.5: a training step of the smallest U-Net for examples of shape \[8, 8, 1\] needs about 3 GB with a "
        "batch of 3: allow memory=3, or take a smaller batch or smaller examples"
    )
    with pytest.raises(ValueError, match=line):
        auto((8, 8, 1), memory=0.5, batch=3)


def test_the_least_memory_that_it_names_is_enough():
    with pytest.raises(ValueError, match=r"memory=1e-06: .* smallest MLP .*: allow memory=0.01,"):
        auto((2,), memory=1e-6)
    assert auto((2,), memory=0.01) == MLP(128, 3)


def test_it_passes_the_fields_on():
    net = auto((2,), num_classes=3, context_dim=5, out_channels=4)
    assert net == MLP(128, 3, num_classes=3, context_dim=5, out_channels=4)


@pytest.mark.slow
def test_real_networks_fit_into_the_budget_and_the_next_does_not():
    shape, batch, ladder = (16, 16, 3), 8, _ladder((16, 16, 3))
    net = auto(shape, memory=0.1, batch=batch)
    at = ladder.index(net)
    assert 0 < at < len(ladder) - 1
    assert memory(net, shape, batch) <= 0.1e9 < memory(ladder[at + 1], shape, batch)
    for shape in SHAPES:
        net, x = _ladder(shape)[0], jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        out = jax.eval_shape(lambda x, net=net: net.init_with_output(jax.random.key(0), x, Cond(jnp.zeros(2)))[0], x)
        assert out.shape == x.shape


def test_the_line_to_print():
    net = UNet(8, (1, 2), 0, (), groups=2)
    line = describe_size(net, (8, 1), 4, 2.0)
    assert line.startswith("a U-Net of 8-16 channels, ") and line.endswith(" for a batch of 4 (budget 2 GB)")
    assert f"{cost.parameters(net, (8, 1)):,} parameters" in line
    assert f"about {math.ceil(memory(net, (8, 1), 4) / 1e6)} MB" in line
    big = describe_size(MLP(1024, 6), (3000,), 64)
    assert big.startswith("an MLP of 6 layers of 1024 units") and "about 0.3 GB for a batch of 64" in big
    assert describe_size(DiT(2, 8, 1, 2), (4, 1), 1).startswith("a DiT of 1 blocks of 8 channels on patches of 2, ")


def test_a_configuration_can_choose_it():
    config = load("ddpm_toy")
    config.net.name = "auto"
    assert build(config).model.net == MLP(128, 3)
    config.net.auto.memory = 1e-6
    with pytest.raises(UsageError, match=r"config.net.auto.memory=1e-06: a training step of the smallest MLP"):
        build(config)
