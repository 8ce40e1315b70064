"""NCSN++, DDPM++ and EDM's network: numbers of parameters, and parity with other libraries for the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.contrib.weights import unet as weights
from scoregen.contrib.weights.layout import to_ours, to_theirs
from scoregen.denoiser import CONDITIONS, from_network, input_scale
from scoregen.nets import Cond, NCSNpp
from scoregen.nets.layers import AttentionBlock, double, halve, upfirdn, upsample
from scoregen.nets.ncsnpp import Fourier
from scoregen.process import EDM, VE, VP
from scoregen.random import broadcast

DDPMPP = {"filter": (1, 1), "progressive": "none", "embedding": "positional"}
# One block per level on the way up and none on the way down: this has every kind of layer and compiles fast.
TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 0, "attention": (4,)}
# Programs that run once are not worth optimising.
QUICK = {"xla_backend_optimization_level": 0}


def count(net, shape=(32, 32, 3)):
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)), Cond(noise=jnp.zeros(1)))
    return sum(leaf.size for leaf in jax.tree.leaves(params)), params["params"]


def alive(net, x, cond, seed=7):
    """Parameters of unit order: at initialisation the layers that start at zero hide all layers before them."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, cond)
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 4.0
        return jnp.asarray(rng.standard_normal(leaf.shape) / np.sqrt(fan), jnp.float32)

    return jax.tree.map(draw, shapes)


# --- resampling
# -------------------------------------------------------------------------------------------------


def upfirdn_by_hand(x, taps, up, down, pad):
    """StyleGAN2's definition: zeros after each pixel, padding on all sides, convolution, and every `down`-th pixel."""
    b, h, w, c = x.shape
    k = np.outer(taps, taps) / np.sum(taps) ** 2 * up**2
    z = np.zeros((b, h * up, w * up, c))
    z[:, ::up, ::up] = x
    z = np.pad(z, ((0, 0), pad, pad, (0, 0)))
    n = len(taps)
    out = np.zeros((b, z.shape[1] - n + 1, z.shape[2] - n + 1, c))
    for i in range(n):
        for j in range(n):
            out += k[n - 1 - i, n - 1 - j] * z[:, i : i + out.shape[1], j : j + out.shape[2]]
    return out[:, ::down, ::down]


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 1), (1, 2, 5, 5, 2, 1)])
def test_resampling_against_numpy(taps):
    """With the padding of score_sde's upsample_2d, downsample_2d and conv_downsample_2d."""
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)
    p = len(taps) - 2
    up = upfirdn_by_hand(x, taps, 2, 1, ((p + 1) // 2 + 1, p // 2))
    down = upfirdn_by_hand(x, taps, 1, 2, ((p + 1) // 2, p // 2))
    blurred = upfirdn_by_hand(x, taps, 1, 1, ((p + 3) // 2, (p + 2) // 2))
    assert (up.shape, down.shape) == ((2, 8, 12, 3), (2, 2, 3, 3))
    found = jax.jit(lambda x: (double(x, taps), halve(x, taps), upfirdn(x, taps, pad=len(taps) // 2)))(x)
    for ours, want in zip(found, (up, down, blurred), strict=True):
        np.testing.assert_allclose(ours, want, atol=1e-6)


def test_taps_are_a_convolutions():
    """Not a correlation: the first tap weighs the pixel itself, and the last tap the pixel farthest before it."""
    x = jnp.zeros((1, 1, 5, 1)).at[0, 0, 1, 0].set(1.0).repeat(3, 1)
    np.testing.assert_allclose(upfirdn(x, (1, 2, 5), pad=2)[0, 2, :, 0], np.array([0, 1, 2, 5, 0, 0, 0]) / 8, atol=1e-7)


def test_plain_resampling():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    np.testing.assert_array_equal(double(x, (1, 1)), upsample(x))
    np.testing.assert_allclose(halve(x, (1, 1)), np.asarray(x).reshape(2, 2, 2, 3, 2, 3).mean((2, 4)), atol=1e-6)


# --- the network
# ------------------------------------------------------------------------------------------------


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 62_758_915),
        pytest.param({"blocks": 8}, 107_587_075, marks=pytest.mark.slow),
        (DDPMPP, 61_804_419),
        pytest.param({**DDPMPP, "blocks": 8}, 106_632_579, marks=pytest.mark.slow),
        ({**DDPMPP, "multipliers": (2, 2, 2)}, 55_732_739),
    ],
)
def test_counts_are_the_published_networks(options, parameters):
    number, params = count(NCSNpp(**options))
    assert number == parameters
    # The same total could hide attention at the wrong places.
    at_16 = {f"down1_{j}_attention" for j in range(options.get("blocks", 4))}
    want = at_16 | {"middle_attention", "up1_attention"}
    assert {name for name in params if "attention" in name} == want


def test_counts_of_what_is_told():
    net = NCSNpp(**DDPMPP, multipliers=(2, 2, 2))
    assert count(net.clone(augment_dim=9))[0] == 55_733_891
    assert count(net.clone(augment_dim=9, num_classes=10))[0] == 55_735_299


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (1, 28, 28, 1), "28x28 cannot be halved 3 times"),
        ({"multipliers": (1, 2)}, (1, 8, 8, 1), r"attention at \[16\]"),
        ({"filter": (1, 2, 1)}, (1, 32, 32, 3), r"filter=\(1, 2, 1\): an even number"),
        ({"filter": (1, 2)}, (1, 32, 32, 3), "symmetric order"),
        ({"filter": ()}, (1, 32, 32, 3), "an even number"),
        ({"progressive": "skip"}, (1, 32, 32, 3), "progressive='skip': residual or none"),
        ({"embedding": "sinusoidal"}, (1, 32, 32, 3), "embedding='sinusoidal': fourier or positional"),
        ({"channels": 48}, (1, 32, 32, 3), "norm of 144 channels would have 32 groups"),
        ({"channels": 2}, (1, 32, 32, 3), "channels=2: at least 4"),
        ({"multipliers": ()}, (1, 32, 32, 3), r"multipliers=\(\): one or more"),
        ({"multipliers": (1, 0)}, (1, 32, 32, 3), r"multipliers=\(1, 0\): at least 1"),
        ({}, (4, 2), "takes images"),
    ],
)
def test_refuses(options, shape, message):
    with pytest.raises(ValueError, match=message):
        count(NCSNpp(**options), shape[1:])


@pytest.mark.slow
def test_fourier_features_by_hand():
    """The features are [sin, cos](2 pi c w). The network uses c only through them: equal features, equal outputs."""
    net, x = NCSNpp(**{**TINY, "attention": ()}), jnp.ones((3, 8, 8, 1))
    params = alive(net, x, Cond(noise=jnp.zeros(3)))
    w = jnp.array([1.0, 2.0, -3.0, 4.0, 5.0, 0.0, 7.0, 8.0])
    assert params["params"]["fourier"]["frequencies"].shape == w.shape
    params["params"]["fourier"]["frequencies"] = w
    found = Fourier(8, 16.0).apply({"params": {"frequencies": w}}, jnp.array([0.3, 0.25, 1.0]))
    angle = 2 * np.pi * np.array([[0.3], [0.25], [1.0]]) * np.asarray(w)
    np.testing.assert_allclose(found, np.concatenate([np.sin(angle), np.cos(angle)], 1), atol=2e-5)
    out = jax.jit(net.apply, compiler_options=QUICK)(params, x, Cond(noise=jnp.array([0.3, 1.3, 0.7])))
    np.testing.assert_allclose(out[0], out[1], atol=1e-3)  # their c differ by a whole turn
    assert np.abs(out[0] - out[2]).max() > 1e-2
    drawn = Fourier(4096, 3.0).init(jax.random.key(0), jnp.zeros(1))["params"]["frequencies"]
    assert np.std(drawn) == pytest.approx(3, rel=0.05)


@pytest.mark.slow
def test_what_is_told():
    """Classes and augmentations change the output; without both, the output equals the plain network's."""
    plain, x, c = NCSNpp(**TINY), jax.random.normal(jax.random.key(1), (4, 8, 8, 1)), jnp.full(4, 0.5)
    net = plain.clone(num_classes=3, augment_dim=9)
    params = alive(net, x, Cond(noise=c))
    params["params"]["label"]["bias"] = jnp.zeros(16)
    labels, numbers = jnp.array([3, 3, 1, 1]), jnp.zeros((4, 9)).at[1::2, 4].set(1.0)
    call = jax.jit(net.apply, compiler_options=QUICK)
    out = call(params, x, Cond(c, labels, augment=numbers))
    alone = jax.jit(plain.apply, compiler_options=QUICK)(params, x, Cond(c))
    np.testing.assert_allclose(call(params, x, Cond(c)), alone, atol=1e-5)
    np.testing.assert_allclose(out[0], alone[0], atol=1e-5)
    assert all(np.abs(out[i] - alone[i]).max() > 1e-3 for i in (1, 2, 3))
    # A matrix adds each to the features: the label's one-hot vector times sqrt(num_classes), the augmentation as it is.
    params["params"]["label"]["kernel"] = (
        params["params"]["label"]["kernel"].at[1].set(params["params"]["augment"]["kernel"][4] / jnp.sqrt(3.0))
    )
    out = call(params, x[:1].repeat(2, 0), Cond(c[:2], jnp.array([1, 3]), augment=numbers[:2]))
    np.testing.assert_allclose(out[0], out[1], atol=1e-5)


@pytest.mark.slow
def test_attention_starts_as_in_score_sde():
    """Query, key and value start with a tenth of the usual variance, and the residual sum is divided by sqrt(2)."""
    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 256))
    block = AttentionBlock(scale=0.1, rescale=True)
    params = block.init(jax.random.key(1), x)["params"]
    for name in ("query", "key", "value"):
        assert np.var(params[name]["kernel"]) == pytest.approx(0.1 / 256, rel=0.05)
    np.testing.assert_allclose(block.apply({"params": params}, x), x / np.sqrt(2), atol=1e-3)


@pytest.mark.slow
def test_half_precision_and_rematerialisation():
    x, cond = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), Cond(noise=jnp.array([0.0, 0.3]))
    nets = [NCSNpp(**TINY, dtype="bfloat16"), NCSNpp(**TINY), NCSNpp(**TINY, remat=True)]
    params = alive(nets[0], x, cond)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    half, full, again = (jax.jit(net.apply, compiler_options=QUICK)(params, x, cond) for net in nets)
    assert half.dtype == jnp.float32
    # An error below 1e-5 would mean that nothing ran in half precision.
    assert 1e-5 < np.abs(full - half).max() / np.abs(full).max() < 0.1
    np.testing.assert_allclose(again, full, atol=1e-5)
    kept = [str(jax.make_jaxpr(lambda p, net=net: net.apply(p, x, cond))(params)).count("remat") for net in nets[1:]]
    assert kept == [0, 1 + 3 + 4]  # down, middle and up: one for each block and each attention


@pytest.mark.slow
def test_forward_mode_inside_reverse_mode():
    net = NCSNpp(**{**TINY, "blocks": 0}, dropout=0.3)
    x, cond = jax.random.normal(jax.random.key(1), (2, 8, 8, 1)), Cond(noise=jnp.ones(2))
    v, rngs = jax.random.normal(jax.random.key(2), x.shape), {"dropout": jax.random.key(3)}
    params = alive(net, x, cond)

    def forward(params):
        out, moved = jax.jvp(lambda x: net.apply(params, x, cond, train=True, rngs=rngs), (x,), (v,))
        return jnp.vdot(v, out + moved)

    def reverse(params):
        value, g = jax.value_and_grad(lambda x: jnp.vdot(v, net.apply(params, x, cond, train=True, rngs=rngs)))(x)
        return value + jnp.vdot(v, g)

    (one, g_one), (two, g_two) = (
        jax.jit(jax.value_and_grad(f), compiler_options=QUICK)(params) for f in (forward, reverse)
    )
    assert abs(one) > 1e-2
    np.testing.assert_allclose(one, two, rtol=1e-4)
    scale = max(float(np.abs(g).max()) for g in jax.tree.leaves(g_two))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(g_one), jax.tree.leaves(g_two), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, atol=2e-5 * scale)
        if "frequencies" in name:
            np.testing.assert_array_equal(a, 0)  # drawn once, never trained
        else:
            assert np.abs(a).max() > (-1 if "'key']['bias" in name else 1e-6), name


# --- with the weights of others
# ---------------------------------------------------------------------------------


def test_layouts_name_every_array_once():
    for options in ({}, {**DDPMPP, "multipliers": (2, 2)}):
        net = NCSNpp(**{**TINY, "attention": (16,), "blocks": 1, **options})
        told = net.clone(augment_dim=9, num_classes=10)
        for layout, of in ((weights.score_sde(net), net), (weights.edm(told), told)):
            _, tree = count(of)
            ours = {".".join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
            assert {entry.ours for entry in layout} == ours
            assert len({entry.theirs for entry in layout}) == len(layout) == len(ours)


def numbered(module, seed):
    """The module in evaluation mode, with random weights of unit order from this seed. Fourier frequencies stay."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith(".W") or parameter.ndim == 2:
                fan = parameter[0].numel() if parameter.ndim > 1 else 4
                parameter.copy_(torch.randn_like(parameter) / fan**0.5)
    return module.eval()


def arrays(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


SMALL = {"channels": 32, "multipliers": (1, 2, 2), "blocks": 2, "attention": (8,), "dropout": 0.2}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ncsnpp", "ddpmpp"])
def test_parity_with_score_sde(kind):
    torch = pytest.importorskip("torch")
    from reference.ncsnpp import ScoreSDE

    ve = kind == "ncsnpp"
    net = NCSNpp(**SMALL, **({} if ve else DDPMPP))
    theirs = numbered(ScoreSDE(16, 32, (1, 2, 2), 2, (8,), ve, ve, ve, ve), 0)
    layout = weights.score_sde(net, (16, 16, 3), by_sigma=ve)
    params = to_ours(layout, arrays(theirs))
    for name, back in to_theirs(layout, params).items():
        np.testing.assert_array_equal(back, arrays(theirs)[name])

    process = VE() if ve else VP()
    t = jnp.array([0.05, 0.4, 0.99])
    sigma = process.sigma(t)
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (3, 16, 16, 3)) + np.asarray(sigma)[:, None, None, None] * rng.standard_normal((3, 16, 16, 3))
    x = jnp.asarray(x, jnp.float32)
    condition = CONDITIONS["sigma" if ve else "index"]
    seen = 2 * x - 1 if ve else x
    told = lambda t: Cond(noise=condition(process, t))  # noqa: E731
    denoiser = from_network(process, "eps", lambda x, t: net.apply({"params": params}, seen, told(t)))
    ours = np.asarray(jax.jit(lambda x, t: denoiser(x, t).score)(x, t))
    # Under VE their network takes sigma and gives the score; under VP it takes 999 t and gives the noise.
    level = torch.tensor(np.asarray(sigma if ve else 999 * t))
    with torch.no_grad():
        out = theirs(torch.tensor(np.asarray(seen)).permute(0, 3, 1, 2), level).permute(0, 2, 3, 1).numpy()
    score = out if ve else -out / np.asarray(sigma)[:, None, None, None]
    size = np.abs(score).max((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(ours / size, score / size, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp"])
def test_parity_with_edm(kind):
    torch = pytest.importorskip("torch")
    from reference.ncsnpp import EDM as Theirs

    plus = kind == "ncsnpp"
    net = NCSNpp(**SMALL, **({} if plus else DDPMPP), num_classes=5, augment_dim=9)
    theirs = Theirs(
        size=16,
        channels=32,
        mult=(1, 2, 2),
        blocks=2,
        attention=(8,),
        fourier=plus,
        taps=(1, 3, 3, 1) if plus else (1, 1),
        residual=plus,
        classes=5,
        augment=9,
    )
    layout = weights.edm(net, (16, 16, 3))
    state = arrays(numbered(theirs, 1))
    params = to_ours(layout, weights.split(state))
    back = weights.join(to_theirs(layout, params))
    assert set(state) - set(back) == {name for name in state if name.endswith("resample_filter")}
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name])

    process, rng = EDM(), np.random.default_rng(0)
    t = jnp.array([0.02, 0.7, 20.0])
    x = rng.uniform(-1, 1, (3, 16, 16, 3)) + np.asarray(t)[:, None, None, None] * rng.standard_normal((3, 16, 16, 3))
    x, augment = jnp.asarray(x, jnp.float32), rng.standard_normal((3, 9)).astype(np.float32)
    labels = jnp.array([4, 0, 5])  # 5 is the label of no class

    def apply(x, t):
        cond = Cond(CONDITIONS["edm"](process, t), labels, augment=jnp.asarray(augment))
        return net.apply({"params": params}, broadcast(input_scale(process, t), x) * x, cond)

    denoiser = from_network(process, "edm", apply)
    ours = np.asarray(jax.jit(lambda x, t: denoiser(x, t).x0)(x, t))
    one_hot = torch.eye(6)[np.array(labels), :5]
    with torch.no_grad():
        image = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
        want = theirs(image, torch.tensor(np.asarray(t)), one_hot, torch.tensor(augment)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.slow
@pytest.mark.parametrize("fourier", [True, False])
def test_references_have_as_many_parameters(fourier):
    """At full size, the references of both libraries have the numbers of parameters of our networks."""
    pytest.importorskip("torch")
    from reference.ncsnpp import EDM as Theirs
    from reference.ncsnpp import ScoreSDE

    net = NCSNpp(**({} if fourier else DDPMPP))
    score_sde = ScoreSDE(32, 128, (1, 2, 2, 2), 4, (16,), fourier, fourier, fourier, fourier)
    assert sum(p.numel() for p in score_sde.parameters()) == count(net)[0]
    edm = Theirs(
        size=32,
        channels=128,
        mult=(2, 2, 2),
        blocks=4,
        attention=(16,),
        fourier=fourier,
        taps=(1, 3, 3, 1) if fourier else (1, 1),
        residual=fourier,
        classes=10,
        augment=9,
    )
    told = {"augment_dim": 9, "num_classes": 10}
    ours = count(NCSNpp(multipliers=(2, 2, 2), **({} if fourier else DDPMPP), **told))[0]
    assert sum(p.numel() for p in edm.parameters()) == ours - 128 * fourier  # EDM's Fourier frequencies are a buffer
