"""Operations counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from scoregen.nets import MLP, NCSNpp, UNet, flops, operations, parameters
from scoregen.nets.layers import conv, dense


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
def test_labels_and_augmentations_are_counted():
    """A table of labels has parameters and no products; EDM's layers for labels and augmentations have both."""
    mlp, net = MLP(width=8, embedding=6), NCSNpp(channels=8, multipliers=(1, 2), blocks=0, attention=())
    assert parameters(mlp.clone(num_classes=4), (5,)) - parameters(mlp, (5,)) == (4 + 1) * 3
    assert flops(mlp.clone(num_classes=4), (5,)) == flops(mlp, (5,))
    told = net.clone(num_classes=4, augment_dim=9)
    assert parameters(told, (8, 8, 1)) - parameters(net, (8, 8, 1)) == (4 + 1) * 16 + 9 * 16
    assert flops(told, (8, 8, 1)) - flops(net, (8, 8, 1)) == 2 * (4 * 16 + 9 * 16)


def test_remat_costs_nothing_forward():
    net = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)
    assert flops(net.clone(remat=True), (8, 8, 1)) == flops(net, (8, 8, 1)) > 0
