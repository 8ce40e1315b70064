"""The networks agree with numbers worked out by hand, and their derivatives are consistent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from scoregen.nets import MLP, NETS, Classifier, Cond, DiT, NCSNpp, RefineNet, RefineNetV2, UNet, parameters
from scoregen.nets.layers import GroupNorm, conv, dense, downsample, sinusoidal, upsample
from scoregen.nets.unet import ResBlock

# One block per level on the way up and none on the way down: this has every kind of layer and compiles fast.
TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 0, "attention": (4,), "groups": 4}
TINY_DIT = {"patch": 4, "width": 8, "depth": 1, "attention_heads": 2}


def _alive(params, seed=7):
    """Parameters of unit order: at initialisation the layers that start at zero hide all layers before them."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))

    def draw(key, leaf):
        fan = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 4.0
        return jax.random.normal(key, leaf.shape) / np.float32(np.sqrt(fan))

    return jax.tree.unflatten(tree, [draw(k, a) for k, a in zip(keys, leaves, strict=True)])


class Case:
    """A small network with parameters of unit order, and with dropout unless it is a DiT; functions compile once."""

    def __init__(self, name):
        self.net, shape = {
            "mlp": (MLP(width=16, depth=2, embedding=8, dropout=0.3), (3, 2)),
            "unet": (UNet(**TINY, dropout=0.3), (3, 8, 8, 1)),
            "dit": (DiT(**TINY_DIT), (3, 8, 8, 1)),
        }[name]
        self.x = jax.random.normal(jax.random.key(1), shape)
        self.c = jnp.array([-1.0, 0.5, 2.0])
        self.cond = Cond(noise=self.c)
        self.params = _alive(jax.eval_shape(self.net.init, jax.random.key(0), self.x, self.cond))
        self.apply = jax.jit(lambda params, x, c, rngs=None: self.net.apply(params, x, Cond(noise=c), rngs=rngs))
        self.noisy = jax.jit(
            lambda x, key: self.net.apply(self.params, x, self.cond, train=True, rngs={"dropout": key})
        )

    @functools.cached_property
    def sliced(self):
        """Value and gradient of v' s + v' grad(v' s), by forward-over-reverse and by reverse-over-reverse."""
        v = jax.random.normal(jax.random.key(3), self.x.shape)

        def score(params, x):
            return self.net.apply(params, x, self.cond, train=True, rngs={"dropout": jax.random.key(4)})

        def forward(params):
            s, js = jax.jvp(lambda x: score(params, x), (self.x,), (v,))
            return jnp.vdot(v, s + js)

        def reverse(params):
            vs, gradient = jax.value_and_grad(lambda x: jnp.vdot(v, score(params, x)))(self.x)
            return vs + jnp.vdot(v, gradient)

        # Second derivatives are long programs that run once: they are not worth optimising.
        quick = {"xla_backend_optimization_level": 0}
        return [jax.jit(jax.value_and_grad(f), compiler_options=quick)(self.params) for f in (forward, reverse)]


@pytest.fixture(scope="module", params=["mlp", "unet", "dit"])
def case(request):
    return Case(request.param)


def _count(net, shape):
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape), Cond(noise=jnp.zeros(shape[0])))
    return sum(leaf.size for leaf in jax.tree.leaves(params)), params["params"]


# --- layers
# ---------------------------------------------------------------------------------------------------------


def test_sinusoidal_by_hand():
    # dim 6: half = 3, frequencies 1, 1e-2, 1e-4
    got = sinusoidal(jnp.array([0.0, 2.0, 999.0]), 6)
    want = [
        [0, 0, 0, 1, 1, 1],
        [0.9092974268, 0.0199986667, 0.0002, -0.4161468365, 0.9998000067, 0.99999998],
        [-0.0264608, -0.5356033, 0.0997339, 0.9996499, -0.8444697, 0.9950141],
    ]
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert sinusoidal(jnp.ones(1), 7).shape == (1, 7) and sinusoidal(jnp.ones(1), 7)[0, 6] == 0
    assert sinusoidal(jnp.array([3]), 8).dtype == jnp.float32  # an integer index will do
    # In ADM's form the cosines come first, and the frequencies are 1, 1e4^(-1/3), 1e4^(-2/3).
    np.testing.assert_allclose(
        sinusoidal(jnp.array([2.0]), 6, "adm")[0],
        [-0.4161468, 0.9956942, 0.9999907, 0.9092974, 0.0926985, 0.0043089],
        atol=1e-6,
    )


@pytest.mark.parametrize(("c", "dim"), [(jnp.zeros(()), 8), (jnp.zeros((2, 1)), 8), (jnp.zeros(2), 3)])
def test_sinusoidal_refuses(c, dim):
    with pytest.raises(ValueError, match=r"number per example|dim >= 4"):
        sinusoidal(c, dim)


def test_upsample_repeats_pixels():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    np.testing.assert_array_equal(upsample(jnp.asarray(x)), x.repeat(2, axis=1).repeat(2, axis=2))


def test_downsample_averages_pixels():
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)
    want = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(downsample(jnp.asarray(x)), want, atol=1e-6)


@pytest.mark.parametrize(("padding", "first"), [("SAME", 0), (1, -1)])
def test_where_a_convolution_of_stride_two_looks(padding, first):
    """The window of output i begins at pixel 2 i with "SAME", and at 2 i - 1 with a pixel of padding on either side."""
    layer = conv(1, stride=2, padding=padding)
    params = {"params": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}}
    x = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    got = layer.apply(params, jnp.asarray(x)[None, :, :, None])[0, :, :, 0]
    padded = np.pad(x, 1)
    rows = [slice(2 * i + first + 1, 2 * i + first + 4) for i in range(3)]
    np.testing.assert_allclose(got, [[padded[r, c].sum() for c in rows] for r in rows], atol=1e-5)


@pytest.mark.quick(1)
@pytest.mark.parametrize("shape", [(2, 4, 6, 12), (3, 12)])
def test_group_norm_against_numpy(shape):
    rng = np.random.default_rng(0)
    # The mean is large compared with the spread, so a one-pass variance would lose its digits.
    x = (1e3 + rng.standard_normal(shape)).astype(np.float32)
    scale, bias = rng.standard_normal((2, 12)).astype(np.float32)
    got = GroupNorm(groups=3).apply(
        {"params": {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}}, jnp.asarray(x)
    )
    want = np.empty(shape)
    for b in range(shape[0]):
        for g in range(3):
            part = x[b, ..., 4 * g : 4 * g + 4].astype(np.float64)
            want[b, ..., 4 * g : 4 * g + 4] = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
    np.testing.assert_allclose(got, want * scale + bias, atol=2e-3)


def test_group_norm_groups():
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    few, all_ = GroupNorm(groups=32), GroupNorm(groups=4)  # 32 is lowered to the 4 channels
    params = few.init(jax.random.key(0), x)
    np.testing.assert_array_equal(few.apply(params, x), all_.apply(params, x))
    with pytest.raises(ValueError, match="3 groups do not divide 4 channels"):
        GroupNorm(groups=3).init(jax.random.key(0), x)


@pytest.mark.quick(1)
@pytest.mark.parametrize(("layer", "shape", "fan_avg"), [(dense, (1, 30), 40.0), (conv, (1, 4, 4, 30), 9 * 40.0)])
def test_fan_average_uniform(layer, shape, fan_avg):
    kernel = layer(50).init(jax.random.key(0), jnp.zeros(shape))["params"]["kernel"]
    bound = np.sqrt(3 / fan_avg)
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(np.var(kernel), 1 / fan_avg, rtol=0.1)
    zero = layer(50, scale=0.0).init(jax.random.key(0), jnp.zeros(shape))["params"]["kernel"]
    assert 0 < np.abs(zero).max() < 1e-5


# --- networks
# -------------------------------------------------------------------------------------------------------


def test_table():
    assert NETS["mlp"] is MLP and NETS["unet"] is UNet and NETS["dit"] is DiT and NETS["ncsnpp"] is NCSNpp


def test_unet_is_the_ddpm_cifar_network():
    count, params = _count(UNet(), (1, 32, 32, 3))
    assert count == 35_746_307
    # The same total could hide attention at the wrong places.
    attention = sorted(name for name in params if "attention" in name)
    assert attention == [
        *("down1_0_attention", "down1_1_attention", "middle_attention"),
        *("up1_0_attention", "up1_1_attention", "up1_2_attention"),
    ]
    # Each up-block takes the current channels and a skip connection's channels, in reverse order of the way down.
    inputs = [params[f"up{i}_{j}"]["conv1"]["kernel"].shape[2] for i in (3, 2, 1, 0) for j in range(3)]
    assert inputs == [512, 512, 512, 512, 512, 512, 512, 512, 384, 384, 256, 256]


def test_unet_other_sizes():
    assert _count(UNet(), (1, 64, 32, 1))[0] < 35_746_307  # one input and one output channel in place of three
    _, params = _count(UNet(channels=16, multipliers=(1, 2), attention=(8, 4)), (1, 8, 8, 1))  # 32 groups > 16
    assert {"down0_0_attention", "down1_1_attention", "up0_2_attention", "up1_0_attention"} <= set(params)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (1, 28, 28, 1), "28x28 cannot be halved 3 times.*multiple of 8"),
        ({}, (1, 32, 30, 1), "32x30 cannot be halved"),
        ({"multipliers": (1, 2, 2)}, (1, 2, 2, 1), "2x2 cannot be halved 2 times"),
        ({"multipliers": (1, 2)}, (1, 8, 8, 1), r"attention at \[16\].*\[8, 4\]"),
        ({"groups": 24}, (1, 32, 32, 3), "groups=24 does not divide channels=128"),
        ({"attention_heads": 3}, (1, 32, 32, 3), "3 heads do not divide 256 channels"),
        ({"attention_heads": 0}, (1, 32, 32, 3), "attention_heads=0: at least 1 is needed"),
        ({"head_channels": 96}, (1, 32, 32, 3), "head_channels=96 does not divide the 256 channels"),
        ({"head_channels": 64, "attention_heads": 4}, (1, 32, 32, 3), "leave head_channels=0, or attention_heads=1"),
        ({"resample": "pool"}, (1, 32, 32, 3), "resample='pool': 'conv' or 'block' is needed"),
        ({"form": "edm"}, (1, 32, 32, 3), "form='edm': 'ddpm' or 'adm' is needed"),
        ({}, (4, 2), r"UNet takes images .*, series .* or volumes .*, not \(4, 2\); for points \[B, D\] use MLP"),
        ({}, (1, 30, 3), "series of length 30 cannot be halved 3 times.*multiple of 8"),
        ({}, (1, 16, 16, 12, 1), "volumes of 16x16x12 cannot be halved 3 times"),
        ({"multipliers": (1, 2)}, (1, 8, 1), r"attention at \[16\]: no level has that length, the lengths.*\[8, 4\]"),
        ({"multipliers": (1,)}, (1, 8, 4, 4, 1), r"attention at \[16\]: no level has that depth, the depths"),
    ],
)
def test_unet_refuses(options, shape, message):
    with pytest.raises(ValueError, match=message):
        _count(UNet(**options), shape)


@pytest.mark.parametrize(
    ("x", "c", "message"),
    [((4,), (4,), "one axis beside B"), ((4, 2), (3,), r"4 examples need cond.noise of shape \(4,\)")],
)
def test_mlp_refuses(x, c, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(MLP().init, jax.random.key(0), jnp.zeros(x), Cond(noise=jnp.zeros(c)))


@pytest.mark.quick(1)
@pytest.mark.parametrize("scale_shift", [False, True])
def test_where_the_embedding_enters_a_block(scale_shift):
    """The embedding is added before the second norm, or gives scale a and shift b after it: (1 + a) norm(h) + b."""
    block = ResBlock(4, 0.0, 2, jnp.dtype("float32"), scale_shift)
    x, e = _normal(1, (2, 6, 6, 4)), _normal(2, (2, 5))
    params = _alive(jax.eval_shape(lambda key: block.init(key, x, e, False), jax.random.key(0)))
    at = params["params"]

    def norm(name, h):
        return np.asarray(GroupNorm(2).apply({"params": at[name]}, h))

    def convolved(name, h):
        return np.asarray(conv(4).apply({"params": at[name]}, jnp.asarray(h)))

    def swish(h):
        return h / (1 + np.exp(-h))

    h = convolved("conv1", swish(norm("norm1", x)))
    told = (swish(np.asarray(e)) @ np.asarray(at["time"]["kernel"]) + np.asarray(at["time"]["bias"]))[:, None, None]
    if scale_shift:
        h = (1 + told[..., :4]) * norm("norm2", jnp.asarray(h)) + told[..., 4:]
    else:
        h = norm("norm2", jnp.asarray(h + told))
    np.testing.assert_allclose(block.apply(params, x, e, False), x + convolved("conv2", swish(h)), atol=1e-5)


@pytest.mark.parametrize(
    ("net", "shape", "last"),
    [
        (UNet(**TINY), (1, 8, 8, 1), "conv_out"),
        (MLP(), (1, 2), "out"),
        (DiT(**TINY_DIT), (1, 8, 8, 1), "out"),
    ],
)
def test_starts_at_zero(net, shape, last):
    # The last layer's output is its kernel times activations of unit order, so a small kernel suffices. XLA does not
    # draw the other layers, which `init` leaves unused.
    init = jax.jit(lambda: net.init(jax.random.key(0), jnp.zeros(shape), Cond(noise=jnp.zeros(1)))["params"][last])
    layer = init()
    assert 0 < np.abs(layer["kernel"]).max() < 1e-4
    np.testing.assert_array_equal(layer["bias"], 0)


@pytest.mark.quick(1)
def test_shape_dtype_and_examples_apart(case):
    out = case.apply(case.params, case.x, case.c)
    assert out.shape == case.x.shape and out.dtype == jnp.float32 and np.isfinite(out).all()
    # An example's output does not depend on its neighbours, and the order of a batch is kept.
    np.testing.assert_allclose(case.apply(case.params, case.x[::-1], case.c[::-1])[::-1], out, atol=1e-5)
    np.testing.assert_allclose(case.apply(case.params, case.x.at[0].set(5.0), case.c)[1:], out[1:], atol=1e-5)


@pytest.mark.quick(1)
def test_conditioning_matters_and_is_smooth(case):
    out = case.apply(case.params, case.x, case.c)
    moved = case.apply(case.params, case.x, case.c.at[1].add(1.0))
    change = np.abs(moved - out).reshape(3, -1).max(axis=1)
    assert change[1] > 1e-2 and change[0] < 1e-5 and change[2] < 1e-5
    near = np.abs(case.apply(case.params, case.x, case.c + 1e-3) - out).max()
    assert near < 5e-2 * change[1]


@pytest.mark.quick(1)
def test_dropout_only_in_training(case):
    one, two = jax.random.key(1), jax.random.key(2)
    still = case.apply(case.params, case.x, case.c)
    np.testing.assert_array_equal(case.apply(case.params, case.x, case.c, rngs={"dropout": one}), still)
    noisy = case.noisy(case.x, one)
    if isinstance(case.net, DiT):  # a DiT has no dropout: the two compiled programs differ only by rounding
        np.testing.assert_allclose(noisy, still, rtol=1e-5, atol=1e-6)
        return
    assert np.abs(noisy - still).max() > 1e-2
    assert np.abs(noisy - case.noisy(case.x, two)).max() > 1e-2
    np.testing.assert_array_equal(noisy, case.noisy(case.x, one))


@pytest.mark.quick(1)
def test_forward_mode_inside_reverse_mode(case):
    (one, g_one), (two, g_two) = case.sliced
    assert abs(one) > 1e-2
    np.testing.assert_allclose(one, two, rtol=1e-4)
    scale = max(float(np.abs(g).max()) for g in jax.tree.leaves(g_two))
    for a, b in zip(jax.tree.leaves(g_one), jax.tree.leaves(g_two), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * scale)


@pytest.mark.quick(1)
def test_every_parameter_is_used(case):
    for path, g in jax.tree_util.tree_leaves_with_path(case.sliced[0][1]):
        name = jax.tree_util.keystr(path)
        # A bias of the keys shifts all logits of a row equally, which does not change the softmax.
        assert np.abs(g).max() > (-1 if "'key']['bias" in name else 1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "points-of-two-axes", "unet", "dit"])
def test_twice_the_outputs_are_two_networks_with_one_trunk(name):
    """Each half of the last axis is the output of a network with half of the last layer, and derivatives reach both."""
    net, shape, last = {
        "mlp": (MLP(width=8, depth=1, embedding=8), (3, 2), "out"),
        "points-of-two-axes": (MLP(width=8, depth=1, embedding=8), (3, 4, 2), "out"),
        "unet": (UNet(**TINY), (2, 8, 8, 3), "conv_out"),
        "dit": (DiT(**TINY_DIT), (2, 8, 8, 3), "out"),
    }[name]
    x, v, c = _normal(1, shape), _normal(2, shape), jnp.linspace(-1.0, 2.0, shape[0])
    cond, twice = Cond(noise=c), net.clone(out_channels=2 * shape[-1])
    params = _alive(jax.eval_shape(twice.init, jax.random.key(0), x, cond))
    both = jax.jit(twice.apply)(params, x, cond)
    assert both.shape == (*shape[:-1], 2 * shape[-1])

    def half(leaf, i):
        """The columns of the last layer that produce half i of the last axis."""
        channels = shape[-1]
        table = leaf.reshape(*leaf.shape[:-1], -1, 2, channels)[..., i, :]
        return table.reshape(*leaf.shape[:-1], -1)

    # The trunk is shared, so whatever holds for a network with half the outputs holds for each half.
    one = jax.jit(net.apply)
    for i, out in enumerate(jnp.split(both, 2, -1)):
        layer = jax.tree.map(functools.partial(half, i=i), params["params"][last])
        np.testing.assert_allclose(out, one({"params": params["params"] | {last: layer}}, x, cond), atol=1e-5)
    assert np.abs(both[..., : shape[-1]] - both[..., shape[-1] :]).max() > 0.1

    def pushed(layer):
        full = {"params": params["params"] | {last: layer}}
        return jax.jvp(lambda x: twice.apply(full, x, cond), (x,), (v,))[1]

    # Forward mode inside reverse mode reaches nearly all weights of both halves. A long program that runs once is not
    # worth optimising.
    quick = {"xla_backend_optimization_level": 0}
    total = lambda layer: jnp.sum(jnp.sin(pushed(layer)))  # noqa: E731
    gradient = jax.jit(jax.grad(total), compiler_options=quick)(params["params"][last])
    for i in (0, 1):
        assert (np.abs(half(gradient["kernel"], i)) > 1e-6).mean() > 0.9


# Every network in a small size with the shape of its examples, and the networks that take class labels.
EACH = {
    "mlp": (MLP(width=8, depth=1, embedding=8), (2,)),
    "unet": (UNet(**TINY), (8, 8, 1)),
    "ncsnpp": (NCSNpp(channels=8, multipliers=(1, 2), blocks=0, attention=(4,)), (8, 8, 1)),
    "refinenet": (RefineNet(levels=3, channels=2), (8, 8, 1)),
    "refinenet_v2": (RefineNetV2(channels=2), (8, 8, 1)),
    "dit": (DiT(**TINY_DIT), (8, 8, 1)),
}
CLASSES = ("mlp", "unet", "ncsnpp", "dit")
CONTEXTS = ("mlp", "unet", "dit")


def _init(net, x, cond):
    return jax.eval_shape(lambda key: net.init(key, x, cond), jax.random.key(0))


def test_each_network_is_tried():
    classes = {name: make for name, make in NETS.items() if isinstance(make, type)}  # "auto" makes one of them
    assert EACH.keys() == classes.keys() and all(type(net) is NETS[name] for name, (net, _) in EACH.items())


@pytest.mark.parametrize("name", EACH)
def test_what_every_network_refuses(name):
    """The refusal comes at trace time, and its message names the right call or field."""
    net, shape = EACH[name]
    x, c = jnp.zeros((2, *shape)), jnp.zeros(2)
    for cond, error, message in (
        (c, TypeError, rf"{type(net).__name__} takes a Cond .*, not \w+: say .*Cond\(noise=...\)"),
        ((c, None, None, None), TypeError, "takes a Cond .*, not tuple"),
        (None, TypeError, "takes a Cond"),
        (Cond(None), ValueError, "needs a noise level for each of the 2 examples"),
        (Cond(jnp.zeros(3)), ValueError, r"2 examples need cond.noise of shape \(2,\).*not \(3,\)"),
        (Cond(jnp.zeros((2, 1))), ValueError, r"one number per example, not \(2, 1\)"),
        (Cond(jnp.zeros(())), ValueError, r"one number per example, not \(\)"),
        (
            Cond(c, context=jnp.zeros((2, 5))),
            ValueError,
            "no input for a context vector.*cond.context=None, or (set|use)",
        ),
        (Cond(c, augment=jnp.zeros((2, 9))), ValueError, "augment_dim"),
        (Cond(c, label=jnp.zeros(2, jnp.int32)), ValueError, "set its field num_classes|no input for class labels"),
    ):
        with pytest.raises(error, match=message):
            _init(net, x, cond)
    axes = r"for series use UNet or DiT" if name in ("ncsnpp", "refinenet", "refinenet_v2") else None
    for bad, error, message in (
        *([(jnp.zeros((2, 8, 1)), ValueError, axes)] if axes else []),
        (jnp.zeros((2, *shape), jnp.int32), ValueError, "floating-point dtype, not int32: scale and cast"),
        (jnp.zeros(2), ValueError, "takes (images|points)"),
        ([[0.0, 1.0]] * 2, TypeError, "takes an array of examples, not list"),
    ):
        with pytest.raises(error, match=message):
            _init(net, bad, Cond(c))
    with pytest.raises(ValueError, match="out_channels=0: at least 1 is needed"):
        _init(net.clone(out_channels=0), x, Cond(c))


@pytest.mark.parametrize("name", CLASSES)
def test_labels_that_do_not_fit(name):
    net, shape = EACH[name]
    x, c, net = jnp.zeros((2, *shape)), jnp.zeros(2), net.clone(num_classes=3)
    for label in (jnp.zeros(3, jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros((2, 3), jnp.int32), jnp.zeros(2)):
        with pytest.raises(ValueError, match=r"2 examples need cond.label as integers of shape \(2,\), from 0 to 3"):
            _init(net, x, Cond(c, label))
    with pytest.raises(ValueError, match="num_classes=-1: at least 0"):
        _init(net.clone(num_classes=-1), x, Cond(c))


@pytest.mark.parametrize("name", ["refinenet", "refinenet_v2"])
def test_refinenets_know_no_classes(name):
    net, shape = EACH[name]
    with pytest.raises(ValueError, match=r"no input for class labels: leave num_classes=0.*UNet, NCSNpp or DiT"):
        _init(net.clone(num_classes=3), jnp.zeros((2, *shape)), Cond(jnp.zeros(2)))


def test_augmentations_that_do_not_fit():
    net, x = EACH["ncsnpp"][0].clone(augment_dim=9), jnp.zeros((2, 8, 8, 1))
    with pytest.raises(ValueError, match=r"cond.augment of shape \(2, 9\), as augment_dim=9 says, not \(2, 8\)"):
        _init(net, x, Cond(jnp.zeros(2), augment=jnp.zeros((2, 8))))
    with pytest.raises(ValueError, match="augment_dim=-1: at least 0"):
        _init(net.clone(augment_dim=-1), x, Cond(jnp.zeros(2)))


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", EACH)
def test_fields_change_the_layers_they_name_and_no_other(name):
    """`out_channels` changes the last layer. `num_classes` and others add layers of their own, even if unused."""
    net, shape = EACH[name]
    x, cond = jnp.zeros((2, *shape)), Cond(jnp.zeros(2))

    def shapes(net):
        leaves = jax.tree_util.tree_leaves_with_path(_init(net, x, cond)["params"])
        return {".".join(key.key for key in path): leaf.shape for path, leaf in leaves}

    plain, c = shapes(net), shape[-1]
    assert shapes(net.clone(out_channels=c)) == plain
    wide = shapes(net.clone(out_channels=3 * c))
    assert wide.keys() == plain.keys()
    changed = {key: (plain[key], wide[key]) for key in plain if plain[key] != wide[key]}
    last = "out" if name in ("mlp", "dit") else "conv_out"
    assert changed.keys() == {f"{last}.kernel", f"{last}.bias"}
    assert all(b == (*a[:-1], 3 * a[-1]) for a, b in changed.values())
    if name in CLASSES:
        told = shapes(net.clone(num_classes=5))
        width = {"mlp": 4, "unet": 32, "ncsnpp": 16, "dit": 8}[name]
        label = {"label.kernel": (5, 16), "label.bias": (16,)} if name == "ncsnpp" else {"label.embedding": (6, width)}
        assert told == plain | label
        assert parameters(net.clone(num_classes=5), shape) == sum(map(np.prod, told.values()))
    if name in CONTEXTS:
        context = {"context1.kernel": (4, width), "context1.bias": (width,)}
        context |= {"context2.kernel": (width, width), "context2.bias": (width,)}
        assert shapes(net.clone(context_dim=3)) == plain | context
    if name == "ncsnpp":
        assert shapes(net.clone(augment_dim=9)) == plain | {"augment.kernel": (9, 16)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_no_label_is_the_label_of_none(name):
    """No label equals the label `num_classes`. With labels, each example depends only on its own label."""
    net, shape = EACH[name]
    net, x, c = net.clone(num_classes=2), _normal(1, (3, *shape)), jnp.array([-1.0, 0.5, 2.0])
    params = _alive(_init(net, x, Cond(c)))
    apply = jax.jit(net.apply)
    none = apply(params, x, Cond(c))
    np.testing.assert_array_equal(none, apply(params, x, Cond(c, jnp.array([2, 2, 2]))))
    mixed = apply(params, x, Cond(c, jnp.array([2, 0, 1])))
    np.testing.assert_allclose(mixed[0], none[0], atol=1e-5)
    assert np.abs(mixed[1:] - none[1:]).reshape(2, -1).max(1).min() > 1e-3
    other = apply(params, x, Cond(c, jnp.array([2, 1, 1])))
    assert np.abs(mixed[1] - other[1]).max() > 1e-3 and np.abs(mixed[2] - other[2]).max() < 1e-5


@pytest.mark.slow
def test_cond_is_a_pytree():
    """Through jit, vmap (with its parts mapped or shared), grad and a scan; a part that is None stays None."""
    net = MLP(width=8, depth=1, embedding=8, num_classes=4)
    x, noise, label = _normal(1, (5, 3, 2)), _normal(2, (5, 3)), jnp.arange(15).reshape(5, 3) % 5
    params = _alive(_init(net, x[0], Cond(noise[0])))
    each = [net.apply(params, x[i], Cond(noise[i], label[i])) for i in range(5)]
    mapped = jax.jit(jax.vmap(net.apply, (None, 0, 0)))(params, x, Cond(noise, label))
    np.testing.assert_allclose(mapped, each, atol=1e-5)
    shared = jax.vmap(net.apply, (None, 0, Cond(0, None)))(params, x, Cond(noise, label[0]))
    np.testing.assert_allclose(shared[3], net.apply(params, x[3], Cond(noise[3], label[0])), atol=1e-5)
    _, scanned = jax.lax.scan(lambda _, part: (None, net.apply(params, *part)), None, (x, Cond(noise, label)))
    np.testing.assert_allclose(scanned, each, atol=1e-5)
    slope = jax.grad(lambda cond: net.apply(params, x[0], cond).sum(), allow_int=True)(Cond(noise[0], label[0]))
    assert isinstance(slope, Cond) and np.abs(slope.noise).min() > 0 and slope.context is None
    bare = jax.tree.map(lambda a: a[:2], Cond(noise[0]))
    assert bare.noise.shape == (2,) and bare[1:] == (None, None, None)


@pytest.mark.slow
def test_mlp_by_hand():
    """The formula of its docstring, in NumPy."""
    net, x, c = MLP(width=8, depth=2, embedding=6), _normal(1, (4, 3)), _normal(2, (4,))
    params = _alive(jax.eval_shape(net.init, jax.random.key(0), x, Cond(noise=c)))

    def layer(name, h):
        return h @ np.asarray(params["params"][name]["kernel"]) + np.asarray(params["params"][name]["bias"])

    def swish(h):
        return h / (1 + np.exp(-h))

    e, h = swish(layer("time", np.asarray(sinusoidal(c, 6)))), layer("in", np.asarray(x))
    for i in range(2):
        both = layer(f"film{i}", e)
        h = h + layer(f"residual{i}", swish((1 + both[:, :8]) * h + both[:, 8:]))
    np.testing.assert_allclose(net.apply(params, x, Cond(noise=c)), layer("out", swish(h)), atol=1e-5)


def _normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.slow
def test_mlp_flattens():
    net, x = MLP(width=8, depth=1, embedding=4), jnp.arange(24.0).reshape(2, 3, 4) / 24
    cond = Cond(noise=jnp.ones(2))
    params = _alive(jax.eval_shape(net.init, jax.random.key(0), x, cond))
    np.testing.assert_array_equal(net.apply(params, x, cond).reshape(2, 12), net.apply(params, x.reshape(2, 12), cond))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 1), (8, 4, 4, 1)])
@pytest.mark.parametrize("make", [functools.partial(UNet, **TINY), functools.partial(DiT, **TINY_DIT | {"width": 12})])
def test_bfloat16(make, shape):
    x, cond = jax.random.normal(jax.random.key(1), (2, *shape)), Cond(noise=jnp.array([0.0, 30.0]))
    nets = [make(dtype=dtype) for dtype in ("float32", "bfloat16")]
    params = _alive(jax.eval_shape(nets[1].init, jax.random.key(0), x, cond))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    full, half = (jax.jit(net.apply)(params, x, cond) for net in nets)
    assert half.dtype == jnp.float32
    error = np.abs(full - half).max() / np.abs(full).max()
    assert 1e-5 < error < 0.1  # less than 1e-5 would mean that nothing ran in half precision
    # All products run in half precision. The norms and the softmax, the only exponential, run in full precision.
    inside = list(_inside(jax.make_jaxpr(nets[1].apply)(params, x, cond).jaxpr))
    for names, dtype in ((("dot_general", "conv_general_dilated"), "bfloat16"), (("exp", "rsqrt"), "float32")):
        found = [e.outvars[0].aval.dtype for e in inside if e.primitive.name in names]
        assert len(found) > 2 and {str(kind) for kind in found} == {dtype}


def _inside(jaxpr):
    """All operations of a program and of the programs nested in it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _inside(inner)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "dit", "ncsnpp"])
def test_remat_computes_the_same_twice(name):
    """Names of parameters, dropout and gradients stay the same, and every block is rematerialised."""
    net, blocks = {
        # Two residual blocks in the middle and one a level on the way up; attention in the middle and at 4 pixels.
        "unet": (UNet(**TINY, dropout=0.3), 2 + 2 + 2),
        "dit": (DiT(**TINY_DIT), 1),
        # Down: one a level, one that halves, one attention. Middle: three. Up: two a level, one doubles, one attention.
        "ncsnpp": (NCSNpp(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.3), 4 + 3 + 6),
    }[name]
    x, cond = _normal(1, (2, 8, 8, 1)), Cond(noise=jnp.array([0.0, 30.0]))
    params = _alive(jax.eval_shape(net.init, jax.random.key(0), x, cond))
    again = jax.eval_shape(net.clone(remat=True).init, jax.random.key(0), x, cond)
    assert jax.tree.structure(params) == jax.tree.structure(again)

    def loss(params, remat):
        out = net.clone(remat=remat).apply(params, x, cond, train=True, rngs={"dropout": jax.random.key(5)})
        return jnp.sum(jnp.sin(3 * out))

    programs = [jax.make_jaxpr(functools.partial(loss, remat=remat))(params).jaxpr for remat in (False, True)]
    assert [sum("remat" in e.primitive.name for e in _inside(program)) for program in programs] == [0, blocks]
    quick = {"xla_backend_optimization_level": 0}
    (one, kept), (two, twice) = (
        jax.jit(jax.value_and_grad(functools.partial(loss, remat=remat)), compiler_options=quick)(params)
        for remat in (False, True)
    )
    np.testing.assert_allclose(one, two, rtol=1e-5)
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(kept))
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(twice), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)


@pytest.mark.slow
def test_classifier():
    net = Classifier(classes=7, width=8, features=16)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    params = net.init(jax.random.key(1), x)
    (logits, features), seen = net.apply(params, x, capture_intermediates=True)
    (last_norm,) = seen["intermediates"]["GroupNorm_3"]["__call__"]
    np.testing.assert_allclose(features, jax.nn.swish(last_norm).mean((1, 2)), atol=1e-6)
    assert features.shape == (2, 16)
    last = params["params"]["logits"]
    np.testing.assert_allclose(logits, features @ last["kernel"] + last["bias"][None], atol=1e-5)
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    for size, convolutions in ((28, 6), (32, 6), (8, 4)):
        _, tree = _count_classifier(net, (1, size, size, 3))
        assert sum("Conv" in name for name in tree) == convolutions
    with pytest.raises(ValueError, match="takes images"):
        net.init(jax.random.key(1), jnp.zeros((2, 8)))


def _count_classifier(net, shape):
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params)), params
