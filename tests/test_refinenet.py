"""NCSN's networks agree with their parts written out in NumPy, and with PyTorch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.contrib.weights.layout import to_ours, to_theirs
from scoregen.contrib.weights.ncsn import layout
from scoregen.nets import NETS, Cond, RefineNet, RefineNetV2
from scoregen.nets.refinenet import InstanceNormPlus, RefineBlock, ResBlock, conv_fan_in, max_pool, mean_pool, stretch

RNG = np.random.default_rng(0)
NAMES = ("refinenet", "refinenet_v2")
SHAPE = (3, 8, 8, 3)
# The noise level of each example: the index, or log sigma.
TOLD = {"refinenet": np.array([0.0, 2.0, 4.0], np.float32), "refinenet_v2": np.array([-2.0, 0.0, 1.5], np.float32)}


def small(name, **options):
    return RefineNet(levels=5, channels=4, **options) if name == "refinenet" else RefineNetV2(channels=4, **options)


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


def alive(shapes):
    """Random arrays of these shapes, with which each layer roughly keeps the size of its input."""
    return jax.tree.map(lambda a: normal(*a.shape) / np.sqrt(np.prod(a.shape[:-1]) if a.ndim == 4 else 1), shapes)


def shapes_of(net, shape=SHAPE):
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape), Cond(noise=jnp.zeros(shape[0])))


@functools.cache
def case(name):
    """A small network, parameters of unit order, an x, the jitted network, and its output for x."""
    net, x = small(name), normal(*SHAPE)
    params = alive(shapes_of(net))
    # Long programs that run a few times: they are not worth optimising.
    quick = {"xla_backend_optimization_level": 0}
    apply = jax.jit(lambda params, x, c: net.apply(params, x, Cond(noise=c)), compiler_options=quick)
    return net, params, x, apply, apply(params, x, TOLD[name])


# --- by hand, in float64


def norm_by_hand(x, gamma, alpha, beta):
    """One example [H, W, C]."""
    x = x.astype(np.float64)
    mu = x.mean((0, 1))
    shift = (mu - mu.mean()) / np.sqrt(mu.var(ddof=1) + 1e-5)
    return gamma * ((x - mu) / np.sqrt(x.var((0, 1)) + 1e-5) + alpha * shift) + beta


def conv_by_hand(x, layer, dilation=1):
    """A sum over pixels that lie `dilation` apart, with zeros outside the image."""
    kernel = np.asarray(layer["kernel"], np.float64)
    far = dilation * (kernel.shape[0] // 2)
    padded = np.pad(x, ((0, 0), (far, far), (far, far), (0, 0)))
    height, width = x.shape[1:3]
    out = np.zeros((*x.shape[:3], kernel.shape[3]))
    for i, j in np.ndindex(kernel.shape[:2]):
        part = padded[:, i * dilation : i * dilation + height, j * dilation : j * dilation + width]
        out += part @ kernel[i, j]
    return out + np.asarray(layer.get("bias", 0.0))


def pool_by_hand(x, join, outside):
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=outside)
    height, width = x.shape[1:3]
    return join([padded[:, i : i + height, j : j + width] for i in range(5) for j in range(5)], axis=0)


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def scaled(name):
    """In place of a norm: multiplication by a number that depends on the name, so that no two norms are confused."""
    factor = np.float32(0.5 + sum(map(ord, name)) % 97 / 97)
    return lambda x, at: x * factor


# --- parts


@pytest.mark.quick(1)
@pytest.mark.parametrize("levels", [None, 3])
def test_instance_norm_plus_against_numpy(levels):
    net = InstanceNormPlus(levels)
    # The mean is large compared with the spread, and C is small, so that dividing by C or by C - 1 differs much.
    x = (100 * normal(1, 1, 1, 4) + normal(3, 5, 7, 4)).astype(np.float32)
    if levels is None:
        at, constants = None, {name: normal(4) for name in ("gamma", "alpha", "beta")}
        of = [[constants[name] for name in ("gamma", "alpha", "beta")]] * 3
    else:
        # Of three examples two are at a level and one lies a quarter of the way from the first to the second.
        at, constants = np.array([[0, 0, 1], [0.75, 0.25, 0], [1, 0, 0]], np.float32), {"table": normal(3, 12)}
        of = [np.split(row, 3) for row in at @ constants["table"]]
    got = net.apply({"params": constants}, jnp.asarray(x), at)
    want = [norm_by_hand(one, *three) for one, three in zip(x, of, strict=True)]
    np.testing.assert_allclose(got, want, atol=1e-3)
    half = net.apply({"params": constants}, jnp.asarray(x - x.mean((1, 2), keepdims=True), jnp.bfloat16), at)
    assert half.dtype == jnp.bfloat16


@pytest.mark.slow
def test_instance_norm_plus_starts_as_the_papers():
    x = normal(2, 3, 3, 500)
    table = InstanceNormPlus(6).init(jax.random.key(0), x, np.ones((2, 6), np.float32))["params"]["table"]
    for a in np.split(np.asarray(table), 3, axis=1)[:2]:
        assert abs(a.mean() - 1) < 0.002 and a.std() == pytest.approx(0.02, rel=0.05)
    assert not np.any(table[:, 1000:])
    plain = InstanceNormPlus().init(jax.random.key(0), x)["params"]
    assert plain["gamma"].std() == pytest.approx(0.02, rel=0.1) and not np.any(plain["beta"])
    with pytest.raises(ValueError, match="two or more"):
        InstanceNormPlus().init(jax.random.key(0), x[..., :1])


@pytest.mark.slow
def test_poolings_by_hand():
    x = normal(2, 6, 7, 3) - 1
    np.testing.assert_array_equal(max_pool(x), pool_by_hand(x, np.max, -np.inf))
    np.testing.assert_allclose(mean_pool(x), pool_by_hand(x, np.mean, 0.0), atol=1e-6)
    # The derivative of a maximum goes to the pixel that attains it.
    counts = jax.grad(lambda x: max_pool(x).sum())(x)
    want = np.zeros(x.shape)
    for b, i, j, c in np.ndindex(x.shape):
        rows, columns = slice(max(i - 2, 0), i + 3), slice(max(j - 2, 0), j + 3)
        square = x[b, rows, columns, c]
        p, q = np.unravel_index(square.argmax(), square.shape)
        want[b, rows, columns, c][p, q] += 1
    np.testing.assert_array_equal(counts, want)


def test_stretch_keeps_the_corners():
    x = normal(2, 3, 4, 2)

    def line(values, size):
        return np.interp(np.linspace(0, len(values) - 1, size), np.arange(len(values)), values)

    want = np.apply_along_axis(line, 1, np.apply_along_axis(line, 2, x, 9), 5)
    np.testing.assert_allclose(stretch(jnp.asarray(x), (5, 9)), want, atol=1e-6)
    np.testing.assert_array_equal(stretch(jnp.asarray(x), (3, 4)), x)


def test_convolutions_start_as_those_of_pytorch():
    """Kernel and bias uniform on +-1 / sqrt(fan_in)."""

    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            return conv_fan_in(x, 400, "one", jnp.dtype("float32"))

    layer = One().init(jax.random.key(0), normal(1, 4, 4, 10))["params"]["one"]
    for a in layer.values():
        assert 0.97 / np.sqrt(90) < np.abs(a).max() <= 1 / np.sqrt(90)
        assert np.var(a) == pytest.approx(1 / 270, rel=0.15)


@pytest.mark.parametrize(
    ("dilation", "down", "features", "size"), [(1, False, 3, 6), (1, True, 4, 3), (2, True, 3, 6), (4, False, 3, 6)]
)
def test_residual_block_by_hand(dilation, down, features, size):
    x = normal(2, 6, 6, 3)
    block = ResBlock(features, scaled, jnp.dtype("float32"), dilation, down)
    params = alive(jax.eval_shape(block.init, jax.random.key(0), x, None))
    layers = params["params"]
    h = conv_by_hand(elu(scaled("norm1")(x, None)), layers["conv1"], dilation)
    h = conv_by_hand(elu(scaled("norm2")(h, None)), layers["conv2"], dilation)
    if down:
        assert layers["shortcut"]["kernel"].shape[:2] == ((1, 1) if dilation == 1 else (3, 3))
        h = h + conv_by_hand(x, layers["shortcut"], dilation)
    else:
        assert "shortcut" not in layers
        h = h + x
    if size == 3:
        h = h.reshape(2, 3, 2, 3, 2, features).mean((2, 4))
    np.testing.assert_allclose(block.apply(params, x, None), h, atol=1e-5)


@pytest.mark.quick(1)
@pytest.mark.parametrize("pool", [mean_pool, max_pool])
def test_refine_block_by_hand(pool):
    """Two inputs of different sizes and widths, and one residual unit at the end."""
    xs = (normal(1, 4, 6, 3), normal(1, 2, 3, 2))
    block = RefineBlock(4, scaled, pool, jnp.dtype("float32"))
    params = alive(jax.eval_shape(block.init, jax.random.key(0), xs, None))
    layers = params["params"]
    biased = {name for name, layer in layers.items() if "bias" in layer}
    assert biased == {"fuse0", "fuse1"}

    def normed(x, name):
        return scaled(f"{name}_norm")(x, None)

    def unit(x, name):
        h = conv_by_hand(elu(normed(x, f"{name}_0")), layers[f"{name}_0"])
        return x + conv_by_hand(elu(normed(h, f"{name}_1")), layers[f"{name}_1"])

    fused = 0.0
    for i, x in enumerate(xs):
        h = unit(unit(x, f"adapt{i}_0"), f"adapt{i}_1")
        h = conv_by_hand(normed(h, f"fuse{i}"), layers[f"fuse{i}"])
        fused = fused + np.asarray(stretch(jnp.asarray(h, jnp.float32), (4, 6)))
    h = path = elu(fused)
    by_hand = {mean_pool: (np.mean, 0.0), max_pool: (np.max, -np.inf)}[pool]
    for i in range(2):
        path = conv_by_hand(pool_by_hand(normed(path, f"pool{i}"), *by_hand), layers[f"pool{i}"])
        h = h + path
    np.testing.assert_allclose(block.apply(params, xs, None), unit(h, "out_0"), atol=2e-5)


# --- networks


def test_they_are_the_papers_networks():
    """Counted by hand from the architecture: convolutions 29,683,715, and the norms of each."""
    assert (NETS["refinenet"], NETS["refinenet_v2"]) == (RefineNet, RefineNetV2)
    for net, norms in ((RefineNet(levels=10), 14_464 * 3 * 10), (RefineNetV2(), 3_456 * 3)):
        shapes = shapes_of(net, (1, 32, 32, 3))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 29_683_715 + norms


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", NAMES)
def test_the_layout_is_of_all_parameters_both_ways(name):
    net, params, *_ = case(name)
    theirs = to_theirs(layout(net), params["params"])
    back = to_ours(layout(net), theirs)
    jax.tree.map(np.testing.assert_array_equal, back, params["params"])
    if name == "refinenet":  # the noisiest level is the first in their table, and the last in ours
        table = params["params"]["up2"]["fuse1_norm"]["table"]
        np.testing.assert_array_equal(theirs["refine2.msf.norms.1.embed.weight"][0], table[4])
        np.testing.assert_array_equal(theirs["refine2.msf.norms.1.embed.weight"][4], table[0])


def test_every_level_has_its_own_constants():
    _, params, x, apply, out = case("refinenet")
    same = np.broadcast_to(x[:1], SHAPE)
    at = [apply(params, same, np.full(3, c, np.float32))[0] for c in range(5)]
    assert min(np.abs(a - b).max() for i, a in enumerate(at) for b in at[:i]) > 0.1
    # The output for an example depends on its own level, not on the rest of the batch.
    np.testing.assert_allclose(apply(params, x[::-1], TOLD["refinenet"][::-1])[::-1], out, atol=1e-4)
    # A row of the table changes only the output at the level with its index.
    path = ("up0", "pool1_norm", "table")
    other = jax.tree_util.tree_map_with_path(
        lambda keys, a: (
            np.where(np.arange(5)[:, None] == 2, a + 1, a) if tuple(key.key for key in keys[1:]) == path else a
        ),
        params,
    )
    moved = np.abs(apply(other, x, TOLD["refinenet"]) - out).max((1, 2, 3))
    assert moved[1] > 1e-2 and moved[0] == moved[2] == 0


@pytest.mark.slow
def test_the_second_is_told_sigma_and_divides_by_it():
    net, params, x, apply, out = case("refinenet_v2")
    sigma = np.exp(TOLD["refinenet_v2"])
    for factor in (0.01, 50.0):
        scaled = apply(params, x, np.log(sigma * np.float32(factor)))
        np.testing.assert_allclose(scaled * factor, out, rtol=1e-5, atol=1e-6)
    plain = apply(params, x, np.zeros(3, np.float32))
    np.testing.assert_allclose(out, plain / sigma[:, None, None, None], rtol=1e-5, atol=1e-6)
    assert np.abs(plain).max() > 0.1
    # The channels of the score are divided by sigma, and further channels are not.
    twice = net.clone(out_channels=6)
    two = alive(shapes_of(twice))
    both = jax.jit(twice.apply, compiler_options={"xla_backend_optimization_level": 0})
    first, second = (both(two, x, Cond(noise=c)) for c in (np.zeros(3, np.float32), np.log(sigma)))
    np.testing.assert_allclose(second[..., 3:], first[..., 3:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second[..., :3], first[..., :3] / sigma[:, None, None, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("shape", "c", "labels", "message"),
    [
        ((2, 7, 8, 3), 2, None, "even sides"),
        ((2, 8), 2, None, "takes images"),
        ((2, 8, 8, 3), 3, None, "2 examples need cond.noise"),
        ((2, 8, 8, 3), 2, jnp.zeros(2, jnp.int32), "no input for class labels"),
    ],
)
def test_what_they_refuse(name, shape, c, labels, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(small(name).init, jax.random.key(0), jnp.zeros(shape), Cond(jnp.zeros(c), labels))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name):
    _, params, x, _, out = case(name)
    half = jax.jit(small(name, dtype="bfloat16").apply)(params, x, Cond(noise=TOLD[name]))
    assert half.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(small(name, dtype="bfloat16")))} == {jnp.dtype("float32")}
    error = np.abs(half - out).max() / np.abs(out).max()
    assert 1e-4 < error < 0.1  # less would mean that nothing ran in half precision


class Blocks(nn.Module):
    """One block of each kind, which compiles faster than a whole network."""

    conditional: bool

    @nn.compact
    def __call__(self, x, at):
        dtype, norm = jnp.dtype("float32"), functools.partial(InstanceNormPlus, 5 if self.conditional else None)
        h = ResBlock(4, norm, dtype, down=True, name="down")(x, at)
        within = norm if self.conditional else lambda name: lambda x, at: x
        pool = mean_pool if self.conditional else max_pool
        return RefineBlock(3, within, pool, dtype, name="up")((x, h), at)


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [True, False])
def test_forward_mode_inside_reverse_mode(conditional):
    """Sliced score matching, v' grad(v' s), by forward-over-reverse and by reverse-over-reverse."""
    net, x, v = Blocks(conditional), normal(2, 6, 6, 3), normal(2, 6, 6, 3)
    at = np.array([[0, 1, 0, 0, 0], [0, 0, 0.5, 0.5, 0]], np.float32)
    params = alive(jax.eval_shape(net.init, jax.random.key(0), x, at))

    def forward(params):
        return jnp.vdot(v, jax.jvp(lambda x: net.apply(params, x, at), (x,), (v,))[1])

    def reverse(params):
        return jnp.vdot(v, jax.grad(lambda x: jnp.vdot(v, net.apply(params, x, at)))(x))

    quick = {"xla_backend_optimization_level": 0}
    (one, g_one), (two, g_two) = (
        jax.jit(jax.value_and_grad(of), compiler_options=quick)(params) for of in (forward, reverse)
    )
    assert abs(one) > 1e-2
    np.testing.assert_allclose(one, two, rtol=1e-4)
    scale = max(float(np.abs(g).max()) for g in jax.tree.leaves(g_two))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(g_one), jax.tree.leaves(g_two), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * scale)
        assert np.abs(a).max() > 1e-6 * scale, path


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_blocks_that_are_computed_again_give_the_same(name):
    _, params, x, *_ = case(name)
    v = normal(*SHAPE)

    def gradient(remat):
        loss = lambda params: jnp.vdot(v, small(name, remat=remat).apply(params, x, Cond(noise=TOLD[name])))  # noqa: E731
        assert ("remat" in str(jax.make_jaxpr(loss)(params))) == remat
        return jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})(params)

    kept, again = gradient(False), gradient(True)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())
        assert np.abs(a).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_parity_with_pytorch(name):
    torch = pytest.importorskip("torch")
    from reference.refinenet import RefineNet as Theirs

    levels, sigmas = 5, np.geomspace(0.01, 50, 5).astype(np.float32)  # ours: the least noisy first
    net, theirs = small(name), Theirs(4, 3, levels=levels)
    if name == "refinenet_v2":
        theirs = Theirs(4, 3, sigmas=torch.tensor(sigmas[::-1].copy()))
    state = alive({key: np.asarray(value) for key, value in theirs.state_dict().items()})
    state = {key: value.astype(np.float32) for key, value in state.items()}
    theirs.load_state_dict({key: torch.tensor(value) for key, value in state.items()})

    x, index = normal(5, 16, 16, 3), np.arange(levels)
    with torch.no_grad():
        want = theirs(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(levels - 1 - index)).permute(0, 2, 3, 1).numpy()
    told = index.astype(np.float32) if name == "refinenet" else np.log(sigmas)
    got = jax.jit(net.apply)({"params": to_ours(layout(net), state)}, x, Cond(noise=told))
    if name == "refinenet_v2":
        got, want = (a * sigmas[:, None, None, None] for a in (np.asarray(got), want))
    assert 0.1 < np.abs(want).max() < 20
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("net", "options"), [(RefineNet(levels=10), {"levels": 10}), (RefineNetV2(), {})])
def test_pytorch_has_as_many_parameters(net, options):
    pytest.importorskip("torch")
    from reference.refinenet import RefineNet as Theirs

    theirs = {name: tuple(value.shape) for name, value in Theirs(128, 3, **options).state_dict().items()}
    ours = to_theirs(layout(net), jax.tree.map(lambda a: np.empty(a.shape, np.bool_), shapes_of(net)["params"]))
    assert {name: value.shape for name, value in ours.items()} == theirs
