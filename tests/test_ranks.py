"""UNet and DiT in one, two and three dimensions: identities between them, and tokens and positions by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.nets import Cond, DiT, UNet, dit
from scoregen.nets.dit import from_tokens, positions, to_tokens
from scoregen.nets.layers import downsample, upsample

TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 0, "attention": (4,), "groups": 4, "dropout": 0.0}
TINY_DIT = {"patch": 2, "width": 12, "depth": 1, "attention_heads": 2}
SHAPES = [(8, 2), (8, 4, 2), (8, 4, 6, 2)]
QUICK = {"xla_backend_optimization_level": 0}  # long programs that run once are not worth optimising
C = jnp.array([-1.0, 2.0])


def alive(net, shape, seed=7):
    """Parameters of unit order: at the start, layers that start at zero hide all layers before them."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)), Cond(jnp.zeros(1)))
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 4.0
        return jnp.asarray(rng.standard_normal(leaf.shape) / np.sqrt(fan), jnp.float32)

    return jax.tree.map(draw, shapes)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def applied(net, params, x):
    return jax.jit(net.apply, compiler_options=QUICK)(params, x, Cond(C))


# --- layers


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_repeated_and_averaged_along_every_axis(shape):
    x = normal(2, *shape)
    want, sizes = x, shape[:-1]
    for axis in range(1, 1 + len(sizes)):
        want = want.repeat(2, axis)
    np.testing.assert_array_equal(upsample(jnp.asarray(x)), want)
    corners = itertools.product((0, 1), repeat=len(sizes))
    each = [x[(slice(None), *(slice(corner, None, 2) for corner in at))] for at in corners]
    np.testing.assert_allclose(downsample(jnp.asarray(x)), np.mean(each, axis=0), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_the_pieces_of_an_example_in_order(shape):
    x, patch = normal(2, *shape), 2
    starts = itertools.product(*(range(0, size, patch) for size in shape[:-1]))
    pieces = [x[(slice(None), *(slice(a, a + patch) for a in at))].reshape(2, -1) for at in starts]
    tokens = to_tokens(jnp.asarray(x), patch)
    np.testing.assert_array_equal(tokens, np.stack(pieces, 1))
    np.testing.assert_array_equal(from_tokens(tokens, shape[:-1], patch), x)


@pytest.mark.parametrize("sizes", [(5,), (3, 4), (3, 4, 2)])
def test_positions_by_hand(sizes):
    """Sines and cosines of each coordinate, the last one first, at two frequencies: 1 and 1/100."""
    want = [
        [wave(p * f) for p in reversed(place) for wave in (np.sin, np.cos) for f in (1.0, 0.01)]
        for place in itertools.product(*map(range, sizes))
    ]
    np.testing.assert_allclose(positions(*sizes, dim=4 * len(sizes)), want, atol=1e-12)


# --- networks


def lifted(leaf, axes):
    """A kernel of a convolution over `axes` axes as one over one axis more, which does not look along the new axis."""
    if leaf.ndim < axes + 2:
        return leaf
    kernel = np.zeros((*leaf.shape[:axes], 3, *leaf.shape[axes:]), np.float32)
    kernel[(slice(None),) * axes + (1,)] = leaf
    return jnp.asarray(kernel)


@pytest.mark.quick(1)
@pytest.mark.parametrize("shape", [(8, 2), (8, 4, 2)])
@pytest.mark.parametrize("options", [{"form": "adm"}, {"resample": "block", "scale_shift": True}])
def test_what_is_constant_along_an_axis_needs_a_network_with_one_axis_less(shape, options):
    """Convolutions that do not look along the new axis, norms, attention and resampling all keep it constant."""
    axes, net = len(shape) - 1, UNet(**TINY, **options)
    x, params = normal(2, *shape), alive(net, shape)
    few = applied(net, params, x)
    more = applied(net, jax.tree.map(lambda a: lifted(a, axes), params), np.stack([x] * 4, -2))
    assert np.std(few) > 0.1
    np.testing.assert_allclose(more, np.stack([few] * 4, -2), atol=2e-5)


@pytest.fixture
def nowhere(monkeypatch):
    """No token knows its position."""
    monkeypatch.setattr(dit, "positions", lambda *sizes, dim: np.zeros((1, dim)))


@pytest.mark.parametrize("shape", SHAPES)
def test_without_positions_a_transformer_does_not_see_the_order(shape, nowhere):
    """If the pieces of an example are permuted, so are those of the output. With positions they are not."""
    net = DiT(**TINY_DIT)
    x, params = normal(2, *shape), alive(net, shape)
    count = np.prod(shape[:-1]) // 2 ** (len(shape) - 1)
    order = np.roll(np.arange(count), 1)

    def moved(x):
        return from_tokens(to_tokens(jnp.asarray(x), 2)[:, order], shape[:-1], 2)

    run = functools.partial(applied, net, params)
    np.testing.assert_allclose(run(moved(x)), moved(run(x)), atol=1e-5)
    assert np.abs(moved(run(x)) - run(x)).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_with_positions_a_transformer_sees_the_order(shape):
    net, x = DiT(**TINY_DIT), np.ones((2, *shape), np.float32)
    tokens = to_tokens(applied(net, alive(net, shape), x), 2)
    assert np.abs(tokens - tokens[:, :1]).max(axis=(0, 2))[1:].min() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]])
@pytest.mark.parametrize("net", [UNet(**TINY), DiT(**TINY_DIT)], ids=["unet", "dit"])
def test_forward_mode_agrees_and_a_step_along_the_gradient_lowers_the_loss(net, shape):
    """Sliced score matching takes a jvp inside the gradient: v' s + v' grad(v' s), in two orders of the modes."""
    x, v, params = normal(2, *shape), normal(2, *shape, seed=1), alive(net, shape)

    def score(params, x):
        return net.apply(params, x, Cond(C), train=True, rngs={"dropout": jax.random.key(4)})

    def forward(params):
        s, js = jax.jvp(lambda x: score(params, x), (x,), (v,))
        return jnp.vdot(v, s + js)

    def reverse(params):
        vs, gradient = jax.value_and_grad(lambda x: jnp.vdot(v, score(params, x)))(x)
        return vs + jnp.vdot(v, gradient)

    (one, slope), (two, other) = (
        jax.jit(jax.value_and_grad(f), compiler_options=QUICK)(params) for f in (forward, reverse)
    )
    np.testing.assert_allclose(one, two, rtol=1e-4)
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(slope))
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * scale)
    length = sum(float(jnp.vdot(leaf, leaf)) for leaf in jax.tree.leaves(slope))
    rate = 1e-3 * abs(float(two)) / length
    after = jax.jit(reverse, compiler_options=QUICK)(jax.tree.map(lambda p, g: p - rate * g, params, slope))
    np.testing.assert_allclose(float(two - after), rate * length, rtol=0.1)  # the first order of the change
