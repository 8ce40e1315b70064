"""Operations counted by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import scoregen as sg
from scoregen.nets import MLP, Cond, NCSNpp, UNet, flops, memory, operations, parameters
from scoregen.nets.layers import conv, dense
from scoregen.train import Decay, Model, abstract_state, make_optimizer, make_step


def cost(layer, shape):
    x = jnp.zeros(shape)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    return operations(layer.apply, params, x)


def test_a_dense_layer_and_a_convolution():
    assert cost(dense(7), (4, 5)) == 2 * 4 * 5 * 7
    assert cost(dense(7), (2, 3, 3, 5)) == 2 * 18 * 5 * 7
    assert cost(conv(7), (2, 6, 8, 5)) == 2 * (2 * 48) * (9 * 5) * 7
    assert cost(conv(7, stride=2), (2, 6, 8, 5)) == 2 * (2 * 12) * (9 * 5) * 7


def test_groups_and_batches_of_products():
    def grouped(x, kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=3)

    assert operations(grouped, jnp.ones((1, 4, 4, 6)), jnp.ones((3, 3, 2, 9))) == 2 * 16 * (9 * 2) * 9
    heads = lambda q, k: jnp.einsum("bqhc,bkhc->bhqk", q, k)  # noqa: E731
    assert operations(heads, jnp.ones((2, 3, 4, 5)), jnp.ones((2, 7, 4, 5))) == 2 * (2 * 4 * 3 * 7) * 5


def test_programs_within():
    a = jnp.ones((3, 3))
    once = 2 * 27
    assert operations(jax.jit(lambda a: a @ a), a) == once
    assert operations(jax.checkpoint(lambda a: a @ a), a) == once
    assert operations(lambda a: jax.lax.scan(lambda h, _: (h @ h, None), a, length=5)[0], a) == 5 * once
    assert operations(lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a), a) == 2 * once
    endless = lambda a: jax.lax.while_loop(lambda h: h[0, 0] < 9, lambda h: h @ h, a)  # noqa: E731
    with pytest.raises(NotImplementedError, match="cost of a while loop is not known"):
        operations(endless, a)


def test_a_network_by_hand():
    net = MLP(width=8, depth=2, embedding=6)
    layers = [(6, 3), (5, 8), *[(3, 16), (8, 8)] * 2, (8, 10)]
    net = net.clone(out_channels=10)
    assert flops(net, (5,)) == 2 * sum(a * b for a, b in layers)
    assert parameters(net, (5,)) == sum(a * b + b for a, b in layers)


@pytest.mark.slow
def test_labels_contexts_and_augmentations_are_counted():
    """A table of labels has parameters and no products; the layers for a context and those of EDM have both."""
    mlp, net = MLP(width=8, embedding=6), NCSNpp(channels=8, multipliers=(1, 2), blocks=0, attention=())
    context = mlp.clone(context_dim=4)
    assert parameters(context, (5,)) - parameters(mlp, (5,)) == ((4 + 1) * 3 + 3) + (3 * 3 + 3)
    assert flops(context, (5,)) - flops(mlp, (5,)) == 2 * ((4 + 1) * 3 + 3 * 3)
    assert parameters(mlp.clone(num_classes=4), (5,)) - parameters(mlp, (5,)) == (4 + 1) * 3
    assert flops(mlp.clone(num_classes=4), (5,)) == flops(mlp, (5,))
    told = net.clone(num_classes=4, augment_dim=9)
    assert parameters(told, (8, 8, 1)) - parameters(net, (8, 8, 1)) == (4 + 1) * 16 + 9 * 16
    assert flops(told, (8, 8, 1)) - flops(net, (8, 8, 1)) == 2 * (4 * 16 + 9 * 16)


def test_remat_costs_nothing_forward():
    net = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)
    assert flops(net.clone(remat=True), (8, 8, 1)) == flops(net, (8, 8, 1)) > 0


# --- memory


class TwoLayers(nn.Module):
    """y = (x W + b) V. The gradient of W needs x and V, and that of V needs x W + b."""

    @nn.compact
    def __call__(self, x, cond, train=False):
        return nn.Dense(3, use_bias=False)(nn.Dense(7)(x))


@pytest.mark.parametrize("batch", [1, 10])
def test_the_memory_of_two_layers_by_hand(batch):
    assert memory(TwoLayers(), (3,), batch) == 4 * (batch * (3 + 7) + 7 * 3 + 5 * (3 * 7 + 7 + 7 * 3))


def test_remat_keeps_less():
    net = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(), groups=4)
    assert memory(net.clone(remat=True), (8, 1), 64) < 0.5 * memory(net, (8, 1), 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (MLP(width=256, depth=3), (16,)),
        (UNet(channels=16, multipliers=(1, 2), blocks=1, attention=(16,), groups=4), (32, 2)),
        (UNet(channels=16, multipliers=(1, 2), blocks=1, attention=(), groups=4), (16, 16, 3)),
        (UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(), groups=2), (8, 8, 8, 1)),
    ],
    ids=["mlp", "series", "images", "volumes"],
)
def test_the_memory_is_that_of_a_compiled_step(net, shape):
    model, objective = Model(sg.ddpm(), net), sg.Objective(sg.EpsilonMSE())
    optimizer, batch = make_optimizer("adam", "constant", 2e-4, clip=1.0), 32
    state = abstract_state(model, objective, optimizer, (batch, *shape))
    x0 = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    step = jax.jit(make_step(model, objective, optimizer, Decay(0.999)), donate_argnums=0)
    found = step.lower(state, x0, Cond()).compile().memory_analysis()
    inside = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    assert 0.9 < memory(net, shape, batch) / (inside + found.temp_size_in_bytes) < 1.6
