"""The diffusion transformer: its formulas in NumPy, its size and cost as published, and its output against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.contrib.weights.layout import Entry, to_ours
from scoregen.nets import Cond, DiT, flops, parameters
from scoregen.nets.dit import positions

# Peebles & Xie 2022, table 1 (width, depth, heads) and table 4: Gflops, which are multiply-adds, at patches 2, 4 and 8.
PUBLISHED = {
    "S": ({"width": 384, "depth": 12, "attention_heads": 6}, 33e6, (6.06, 1.41, 0.36)),
    "B": ({"width": 768, "depth": 12, "attention_heads": 12}, 130e6, (23.01, 5.56, 1.42)),
    "L": ({"width": 1024, "depth": 24, "attention_heads": 16}, 458e6, (80.71, 19.70, 5.01)),
    "XL": ({"width": 1152, "depth": 28, "attention_heads": 16}, 675e6, (118.64, 29.05, 7.39)),
}
# As there: latents of 32x32x4, a learned variance, 1000 classes and one row for none.
LATENT, TOLD = (32, 32, 4), {"out_channels": 8, "num_classes": 1000}


def counted(patch, width, depth):
    """Parameters, layer by layer as in the code of facebookresearch/DiT, without the positions, which are fixed there.

    A block: qkv and proj of attention, 4 D^2 + 4 D; two layers of 4 D units, 8 D^2 + 5 D; modulation, 6 D^2 + 6 D.
    """
    d = width
    block = (4 * d * d + 4 * d) + (8 * d * d + 5 * d) + (6 * d * d + 6 * d)
    into = (patch**2 * 4 * d + d) + (256 * d + d) + (d * d + d) + 1001 * d
    return into + depth * block + (2 * d * d + 2 * d) + (d + 1) * patch**2 * 8


@pytest.mark.parametrize("name", ["S", *(pytest.param(name, marks=pytest.mark.slow) for name in ("B", "L", "XL"))])
def test_it_is_as_large_and_as_costly_as_published(name):
    fields, total, billions = PUBLISHED[name]
    for patch, gmacs in zip((2, 4, 8), billions, strict=True):
        net = DiT(patch=patch, **fields, **TOLD)
        count = parameters(net, LATENT)
        assert count == counted(patch, fields["width"], fields["depth"])
        assert flops(net, LATENT) / 2e9 == pytest.approx(gmacs, abs=0.006, rel=2.5e-4)
    fixed = 256 * fields["width"]
    assert counted(2, fields["width"], fields["depth"]) + fixed == pytest.approx(total, abs=0.6e6)


def test_xl_to_the_last_parameter():
    """The training script of facebookresearch/DiT logs 675,129,632 for XL/2, with 256 positions of 1152 numbers."""
    assert counted(2, 1152, 28) + 256 * 1152 == 675_129_632


def alive(net, shape, seed=7):
    """Parameters all of unit order: at the start the zeros of the modulation would hide the blocks."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)), Cond(noise=jnp.zeros(1)))
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan = leaf.shape[0] if leaf.ndim > 1 else 4
        return (rng.standard_normal(leaf.shape) / np.sqrt(fan)).astype(np.float32)

    return jax.tree.map(draw, shapes)


def test_by_hand():
    """Every formula of the docstrings in float64 NumPy, on an image that is not square, token by token."""
    net = DiT(patch=2, width=8, depth=2, attention_heads=2, expansion=3, num_classes=5, out_channels=6)
    params = alive(net, (4, 6, 3))
    rng = np.random.default_rng(0)
    x, c, labels = rng.standard_normal((2, 4, 6, 3)), np.array([3.0, 700.0]), np.array([1, 5])
    cond = Cond(noise=jnp.asarray(c, jnp.float32), label=jnp.asarray(labels, jnp.int32))
    quick = {"xla_backend_optimization_level": 0}
    got = jax.jit(net.apply, compiler_options=quick)(params, x.astype(np.float32), cond)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])

    def layer(at, h):
        return h @ at["kernel"] + at["bias"]

    def swish(h):
        return h / (1 + np.exp(-h))

    def norm(h):
        return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)

    def gelu(h):
        return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))

    for b in range(2):
        angle = c[b] * 1e4 ** (-np.arange(128) / 128)
        e = layer(p["time2"], swish(layer(p["time1"], np.concatenate([np.cos(angle), np.sin(angle)]))))
        e = swish(e + p["label"]["embedding"][labels[b]])
        f = 1e4 ** -np.array([0.0, 0.5])
        tokens = np.stack(
            [
                layer(p["in"], x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].ravel())
                + np.concatenate([np.sin(j * f), np.cos(j * f), np.sin(i * f), np.cos(i * f)])
                for i in range(2)
                for j in range(3)
            ]
        )
        for name in ("block0", "block1"):
            at = p[name]
            shift1, scale1, gate1, shift2, scale2, gate2 = layer(at["modulation"], e).reshape(6, 8)
            h = (1 + scale1) * norm(tokens) + shift1
            q, k, v = (layer(at[part], h) for part in ("query", "key", "value"))
            mixed = np.empty_like(v)
            for part in (slice(0, 4), slice(4, 8)):
                logits = np.exp(q[:, part] @ k[:, part].T / 2)
                mixed[:, part] = logits / logits.sum(1, keepdims=True) @ v[:, part]
            tokens = tokens + gate1 * layer(at["proj"], mixed)
            h = (1 + scale2) * norm(tokens) + shift2
            tokens = tokens + gate2 * layer(at["mlp2"], gelu(layer(at["mlp1"], h)))
        shift, scale = layer(p["modulation"], e).reshape(2, 8)
        squares = layer(p["out"], (1 + scale) * norm(tokens) + shift)
        for n, square in enumerate(squares):
            i, j = divmod(n, 3)
            want = square.reshape(2, 2, 6)
            np.testing.assert_allclose(got[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], want, atol=2e-5)


@pytest.mark.slow
def test_a_new_block_is_the_identity():
    """The output of a new network is almost zero for any input."""
    net = DiT(patch=2, width=8, depth=1, attention_heads=2)
    x, cond = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), Cond(noise=jnp.ones(2))
    quick = {"xla_backend_optimization_level": 0}
    params = jax.jit(net.init, compiler_options=quick)(jax.random.key(1), x, cond)
    show = functools.partial(net.apply, capture_intermediates=True, mutable=["intermediates"])
    show = jax.jit(show, compiler_options=quick)
    assert np.abs(show(params, x, cond)[0]).max() < 1e-3
    params["params"]["out"]["kernel"] = jnp.ones_like(params["params"]["out"]["kernel"]).at[::2].set(0)
    got, seen = show(params, x, cond)
    (block,), (entry,) = (seen["intermediates"][name]["__call__"] for name in ("block0", "in"))
    np.testing.assert_allclose(block, entry + positions(2, 2, dim=8)[None].astype(np.float32), atol=1e-3)
    assert np.abs(got).max() > 0.1


@pytest.mark.slow
def test_layers_start_with_their_variance():
    """Query, key and value have the variance of one layer of three times the width, 2 / (C + 3 C); others 1 / C."""
    net = DiT(patch=2, width=256, depth=1, attention_heads=2)
    x, cond = jnp.zeros((1, 4, 4, 1)), Cond(noise=jnp.ones(1))
    quick = {"xla_backend_optimization_level": 0}
    block = jax.jit(net.init, compiler_options=quick)(jax.random.key(1), x, cond)["params"]["block0"]
    for name in ("query", "key", "value"):
        assert np.var(block[name]["kernel"]) == pytest.approx(0.5 / 256, rel=0.03)
    assert np.var(block["proj"]["kernel"]) == pytest.approx(1 / 256, rel=0.03)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"patch": 3}, (32, 32, 3), "32x32 cannot be cut into squares of patch=3"),
        ({"patch": 4}, (8, 6, 1), "8x6 cannot be cut"),
        ({"patch": 0}, (8, 8, 1), "patch=0"),
        ({"attention_heads": 5}, (32, 32, 3), "attention_heads=5 does not divide width=384"),
        ({"attention_heads": 0}, (32, 32, 3), "attention_heads=0"),
        ({"width": 6, "attention_heads": 1}, (32, 32, 3), "width=6: a multiple of 4"),
        ({"patch": 4}, (30, 1), "series of length 30 cannot be cut into pieces of patch=4"),
        ({"patch": 4}, (8, 8, 6, 1), "volumes of 8x8x6 cannot be cut into cubes of patch=4"),
        ({"width": 5, "attention_heads": 1}, (8, 1), "width=5: a multiple of 2 .* in series"),
        ({"width": 8, "attention_heads": 1}, (4, 4, 4, 1), "width=8: a multiple of 6 .* in volumes"),
        ({}, (2,), "takes images"),
    ],
)
def test_refuses(fields, shape, message):
    with pytest.raises(ValueError, match=message):
        parameters(DiT(**fields), shape)


def mapped(net, blocks):
    """diffusers' `DiTTransformer2DModel` has the embeddings of c and the label once in every block, all alike."""
    embedding = "transformer_blocks.0.norm1.emb"
    names = [
        *(("pos_embed.proj", "in", "patch"), (f"{embedding}.timestep_embedder.linear_1", "time1", "dense")),
        *((f"{embedding}.timestep_embedder.linear_2", "time2", "dense"), ("proj_out_1", "modulation", "dense")),
        ("proj_out_2", "out", "dense"),
    ]
    parts = {"attn1.to_q": "query", "attn1.to_k": "key", "attn1.to_v": "value", "attn1.to_out.0": "proj"}
    parts |= {"norm1.linear": "modulation", "ff.net.0.proj": "mlp1", "ff.net.2": "mlp2"}
    for i in range(blocks):
        names += [(f"transformer_blocks.{i}.{theirs}", f"block{i}.{ours}", "dense") for theirs, ours in parts.items()]
    entries = [Entry(f"{embedding}.class_embedder.embedding_table.weight", "label.embedding")]
    for theirs, ours, kind in names:
        entries += [Entry(f"{theirs}.weight", f"{ours}.kernel", kind), Entry(f"{theirs}.bias", f"{ours}.bias")]
    return entries


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::diffusers", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_parity_with_diffusers():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()
    net = DiT(patch=2, width=32, depth=3, attention_heads=4, num_classes=10, out_channels=6)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5)
    first = theirs.transformer_blocks[0].norm1.emb
    # diffusers divides by half - 1. The paper's code, and the weights that diffusers loads, use half.
    first.time_proj.downscale_freq_shift = 0
    for block in theirs.transformer_blocks:
        block.norm1.emb = first
    state = {key: value.numpy() for key, value in theirs.state_dict().items() if "pos_embed.pos_embed" not in key}
    entries = mapped(net, 3)
    shared = {entry.theirs for entry in entries}
    state = {key: value for key, value in state.items() if key in shared or ".norm1.emb." not in key}
    # A convolution by a patch is a layer over its pixels: [out, channel, row, column] -> [row column channel, out].
    weight = state["pos_embed.proj.weight"]
    state["pos_embed.proj.weight"] = weight.transpose(0, 2, 3, 1).reshape(32, -1)
    entries = [entry._replace(kind="dense") if entry.kind == "patch" else entry for entry in entries]
    params = to_ours(entries, state)

    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((3, 8, 8, 3), np.float32), np.array([0, 7, 10], np.int32)
    t = np.array([0, 37, 999], np.int32)
    with torch.no_grad():
        shown = torch.tensor(x).permute(0, 3, 1, 2)
        want = theirs(shown, torch.tensor(t), torch.tensor(labels)).sample.permute(0, 2, 3, 1).numpy()
    got = net.apply({"params": params}, jnp.asarray(x), Cond(jnp.asarray(t, jnp.float32), jnp.asarray(labels)))
    assert want.std() > 0.1
    np.testing.assert_allclose(got / want.std(), want / want.std(), atol=1e-4)
