"""The U-Net in the form of improved DDPM and ADM: its parameters by formula, and its output against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.contrib.weights import unet
from scoregen.contrib.weights.layout import to_ours, to_theirs
from scoregen.nets import Cond, UNet, flops, parameters

# The CIFAR-10 model of Nichol & Dhariwal 2021: --num_res_blocks 3 --learn_sigma True --dropout 0.3 in their code, whose
# defaults are 128 channels, 4 heads, attention at "16,8" and scale and shift; 32 pixels take multipliers 1, 2, 2, 2.
IDDPM = {"blocks": 3, "attention": (16, 8), "attention_heads": 4, "scale_shift": True, "form": "adm"}


def counted(
    size, channels, out, width, multipliers, blocks, attention, *, scale_shift=True, resample="conv", classes=0
):
    """The number of parameters of the model in openai/guided-diffusion, layer by layer as the code there builds it.

    A 3x3 convolution has 9 in out + out, a dense layer in out + out, a norm 2 in. Attention has a norm, qkv and
    proj_out. Without `resample="block"` the model is the one in openai/improved-diffusion.
    """
    conv = lambda a, b: 9 * a * b + b  # noqa: E731
    dense = lambda a, b: a * b + b  # noqa: E731
    e = 4 * width

    def residual(a, b):
        norms, embedding = 2 * a + 2 * b, dense(e, 2 * b if scale_shift else b)
        return norms + conv(a, b) + embedding + conv(b, b) + (dense(a, b) if a != b else 0)

    def attend(a):
        return 2 * a + dense(a, 3 * a) + dense(a, a)

    def block(a, b, height):
        return residual(a, b) + (attend(b) if height in attention else 0)

    moved = (lambda a: conv(a, a)) if resample == "conv" else (lambda a: residual(a, a))
    total = dense(width, e) + dense(e, e) + classes * e + conv(channels, width)
    now, kept = width, [width]
    for i, m in enumerate(multipliers):
        for _ in range(blocks):
            total += block(now, m * width, size >> i)
            now = m * width
            kept.append(now)
        if i < len(multipliers) - 1:
            total += moved(now)
            kept.append(now)
    total += 2 * residual(now, now) + attend(now)
    for i, m in reversed(list(enumerate(multipliers))):
        for _ in range(blocks + 1):
            total += block(now + kept.pop(), m * width, size >> i)
            now = m * width
        total += moved(now) if i else 0
    return total + 2 * now + conv(now, out)


def test_it_is_the_cifar_network_of_improved_ddpm():
    want = counted(32, 3, 6, 128, (1, 2, 2, 2), 3, (16, 8))
    assert parameters(UNet(**IDDPM, out_channels=6), (32, 32, 3)) == want == 52_546_438  # "50M" in the published name
    assert counted(32, 3, 3, 128, (1, 2, 2, 2), 2, (16,), scale_shift=False) == 35_746_307  # DDPM's network


def test_it_is_the_imagenet_network_of_adm():
    net = UNet(192, (1, 2, 3, 4), 3, (32, 16, 8), head_channels=64, scale_shift=True, resample="block", form="adm")
    want = counted(64, 3, 6, 192, (1, 2, 3, 4), 3, (32, 16, 8), resample="block", classes=1000)
    net = net.clone(out_channels=6, num_classes=999)  # our table has one more row, for no class
    assert parameters(net, (64, 64, 3)) == want == 295_904_454  # 296M in the paper's table 4


def test_heads_cost_nothing_and_blocks_that_resample_do():
    base = UNet(32, (1, 2), 1, (8,), scale_shift=True)
    by_heads, by_width = base.clone(attention_heads=4), base.clone(head_channels=16)
    assert flops(base, (16, 16, 3)) == flops(by_heads, (16, 16, 3)) == flops(by_width, (16, 16, 3))
    assert (by_heads.heads_of(64), by_width.heads_of(64), by_width.heads_of(32)) == (4, 4, 2)
    # Each block has one more convolution, at 8x8 with 32 channels and at 16x16 with 64, and a dense layer of the time.
    more = 64 * 9 * 32**2 + 256 * 9 * 64**2 + 128 * 2 * 32 + 128 * 2 * 64
    assert flops(base.clone(resample="block"), (16, 16, 3)) - flops(base, (16, 16, 3)) == 2 * more


SMALL = {"channels": 32, "multipliers": (1, 2, 3), "blocks": 2, "attention": (8, 4)}
FORMS = {
    "improved": {**SMALL, "attention_heads": 4, "scale_shift": True, "form": "adm"},
    "adm": {**SMALL, "head_channels": 16, "scale_shift": True, "resample": "block", "form": "adm"},
    "added": {**SMALL, "attention_heads": 2, "form": "adm"},
}


@pytest.mark.parametrize("name", FORMS)
def test_a_layout_has_every_array_once(name):
    net = UNet(**FORMS[name])
    x, cond = jnp.zeros((1, 16, 16, 3)), Cond(noise=jnp.zeros(1))
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, cond)
    ours = {".".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes["params"])}
    entries = unet.adm(net, (16, 16, 3))
    assert sorted(entry.ours for entry in entries) == sorted(ours)
    assert len({entry.theirs for entry in entries}) == len(entries)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_parity_with_pytorch(name):
    """With random weights of unit order. Weights converted to ours and back are the same to the last bit."""
    torch = pytest.importorskip("torch")
    from reference.adm import UNet as Reference

    net = UNet(**FORMS[name], out_channels=6)
    torch.manual_seed(0)
    theirs = Reference(
        *(16, 3, 6, net.channels, net.multipliers, net.blocks, net.attention, net.heads_of),
        *(net.scale_shift, net.resample),
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:  # PyTorch's initial biases and norm scales are 0 and 1, which would hide a mistake
                parameter += 0.3 * torch.randn_like(parameter)
    state = {key: value.numpy().copy() for key, value in theirs.state_dict().items()}
    entries = unet.adm(net, (16, 16, 3))
    params = to_ours(entries, unet.split(state, net.heads_of))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(p.numel() for p in theirs.parameters())
    back = unet.join(to_theirs(entries, params), net.heads_of)
    assert back.keys() == state.keys()
    for key in state:
        np.testing.assert_array_equal(back[key], state[key], err_msg=key)

    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((3, 16, 16, 3), np.float32), np.array([0.0, 37.25, 999.0], np.float32)
    with torch.no_grad():
        want = theirs(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t)).permute(0, 2, 3, 1).numpy()
    got = jax.jit(net.apply)({"params": params}, x, Cond(noise=t))
    assert want.std() > 0.05
    np.testing.assert_allclose(got / want.std(), want / want.std(), atol=1e-4)
