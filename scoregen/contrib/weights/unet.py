"""Where the arrays of two libraries' U-Nets lie in ours: diffusers' `UNet2DModel` and score_sde's `ddpm`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from scoregen.contrib.weights.layout import Entry
from scoregen.errors import UsageError
from scoregen.nets import UNet

# Layers: (their weight, our weight, its kind); a bias follows each.
NORM, DENSE, CONV = ("weight", "scale", "same"), ("weight", "kernel", "dense"), ("weight", "kernel", "conv")
POINTWISE, NIN = ("weight", "kernel", "pointwise"), ("W", "kernel", "same")
# Fields that change no array, and nothing of what a trained network computes but its rounding.
IDLE = {"dropout", "dtype", "remat"}
SHARED = {"channels", "multipliers", "blocks", "attention", "attention_last", "groups", *IDLE, "parent", "name"}

# Modules: our layer -> (theirs, the form of it), in the order in which PyTorch registers them.
RESNET = {
    "norm1": ("norm1", NORM),
    "conv1": ("conv1", CONV),
    "time": ("time_emb_proj", DENSE),
    "norm2": ("norm2", NORM),
    "conv2": ("conv2", CONV),
    "shortcut": ("conv_shortcut", POINTWISE),
}
ATTENTION = {
    "norm": ("group_norm", NORM),
    "query": ("to_q", DENSE),
    "key": ("to_k", DENSE),
    "value": ("to_v", DENSE),
    "proj": ("to_out.0", DENSE),
}
RESNET_DDPM = {
    "norm1": ("GroupNorm_0", NORM),
    "norm2": ("GroupNorm_1", NORM),
    "conv1": ("Conv_0", CONV),
    "conv2": ("Conv_1", CONV),
    "time": ("Dense_0", DENSE),
    "shortcut": ("NIN_0", NIN),
}
ATTENTION_DDPM = {
    "norm": ("GroupNorm_0", NORM),
    "query": ("NIN_0", NIN),
    "key": ("NIN_1", NIN),
    "value": ("NIN_2", NIN),
    "proj": ("NIN_3", NIN),
}


def diffusers(net: UNet, shape: tuple[int, ...]) -> list[Entry]:
    """The arrays of diffusers' `UNet2DModel` for images of this `shape`, (H, W, C).

    Raises:
        UsageError: if the network has what theirs has not, by its fields.

    >>> net = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)
    >>> next(entry for entry in diffusers(net, (8, 8, 1)) if entry.ours == "up1_0_attention.proj.kernel")
    Entry(theirs='up_blocks.0.attentions.0.to_out.0.weight', ours='up1_0_attention.proj.kernel', kind='dense')
    """
    _refuse(net, "diffusers' UNet2DModel", {"form", "scale_shift", "attention_heads", "head_channels"})
    if net.attention_last:
        raise UsageError("net.unet.attention_last=True: diffusers' UNet2DModel attends after every block of a level")
    last = len(net.multipliers) - 1
    top = {"time1": ("time_embedding.linear_1", DENSE), "time2": ("time_embedding.linear_2", DENSE)}
    top |= {"conv_in": ("conv_in", CONV), "norm_out": ("conv_norm_out", NORM), "conv_out": ("conv_out", CONV)}
    entries: list[Entry] = []
    for ours, form in modules(net, shape[0]):
        if ours in top:
            entries += _layer(*top[ours], ours)
            continue
        found = re.fullmatch(r"(down|middle|up)(\d+)?_?(\d+|halve|double|attention)?(_attention)?", ours)
        assert found is not None, ours
        side, i, j, _ = found.groups()
        if side == "middle":
            block, j = "mid_block", "0" if i is None else i
        else:
            block = f"down_blocks.{i}" if side == "down" else f"up_blocks.{last - int(i)}"
        if form == "resample":
            entries += _layer(f"{block}.{side}samplers.0.conv", CONV, ours)
        elif form == "attention":
            entries += _module(f"{block}.attentions.{j}", ATTENTION, ours)
        else:
            entries += _module(f"{block}.resnets.{j}", RESNET, ours, form == "block")
    return entries


def score_sde(net: UNet, shape: tuple[int, ...]) -> list[Entry]:
    """The arrays of score_sde_pytorch's `ddpm` (Song et al. 2021, their models/ddpm.py) for images (H, W, C).

    Their modules are numbered in the order in which they are applied.

    Raises:
        UsageError: if the network has what theirs has not, by its fields.

    >>> net = UNet(channels=32, multipliers=(1, 2), blocks=1, attention=(4,), attention_last=True)
    >>> score_sde(net, (8, 8, 1))[0]
    Entry(theirs='all_modules.0.weight', ours='time1.kernel', kind='dense')
    """
    _refuse(net, "score_sde's ddpm", set())
    if net.attention and not net.attention_last:
        raise UsageError("net.unet.attention_last=False: score_sde's ddpm attends once a level on the way up")
    if min(net.groups, net.channels) != 32:
        raise UsageError(f"net.unet.groups={net.groups}: score_sde's ddpm has 32 groups")
    entries: list[Entry] = []
    for i, (ours, form) in enumerate(modules(net, shape[0])):
        theirs = f"all_modules.{i}"
        if form == "attention":
            entries += _module(theirs, ATTENTION_DDPM, ours)
        elif form in ("block", "wider"):
            entries += _module(theirs, RESNET_DDPM, ours, form == "block")
        elif form == "resample":
            entries += _layer(f"{theirs}.Conv_0", CONV, ours)
        else:
            entries += _layer(theirs, {"dense": DENSE, "conv": CONV, "norm": NORM}[form], ours)
    return entries


def modules(net: UNet, height: int) -> Iterator[tuple[str, str]]:
    """Our modules in the order in which they are applied to images of this height, and what each is.

    "dense", "conv", "norm"; "block", a residual block without a shortcut, and "wider", one with; "attention";
    "resample".
    """
    widths, last = [net.channels * m for m in net.multipliers], len(net.multipliers) - 1

    def block(name: str, i: int, width: int, attend: bool = True) -> Iterator[tuple[str, str]]:
        yield name, "block" if width == widths[i] else "wider"
        if attend and height >> i in net.attention:
            yield f"{name}_attention", "attention"

    yield from (("time1", "dense"), ("time2", "dense"), ("conv_in", "conv"))
    width = net.channels
    kept = [width]
    for i in range(last + 1):
        for j in range(net.blocks):
            yield from block(f"down{i}_{j}", i, width)
            width = widths[i]
            kept.append(width)
        if i < last:
            yield f"down{i}_halve", "resample"
            kept.append(width)
    yield from (("middle0", "block"), ("middle_attention", "attention"), ("middle1", "block"))
    for i in reversed(range(last + 1)):
        for j in range(net.blocks + 1):
            yield from block(f"up{i}_{j}", i, width + kept.pop(), not net.attention_last or j == net.blocks)
            width = widths[i]
        if i > 0:
            yield f"up{i}_double", "resample"
    yield from (("norm_out", "norm"), ("conv_out", "conv"))


def _layer(theirs: str, form: tuple[str, str, str], ours: str) -> list[Entry]:
    weight, name, kind = form
    bias = "b" if weight == "W" else "bias"
    return [Entry(f"{theirs}.{weight}", f"{ours}.{name}", kind), Entry(f"{theirs}.{bias}", f"{ours}.bias")]


def _module(theirs: str, layers: dict[str, tuple], ours: str, same: bool = False) -> list[Entry]:
    """All layers of a module; without the shortcut if the width stays the `same`."""
    named = [(name, *layer) for name, layer in layers.items() if not (same and name == "shortcut")]
    return [entry for name, at, form in named for entry in _layer(f"{theirs}.{at}", form, f"{ours}.{name}")]


def _refuse(net: UNet, theirs: str, more: set[str]) -> None:
    if not isinstance(net, UNet):
        raise UsageError(f"the network is no unet, and {theirs} is one: say --config.net.name=unet")
    for field in dataclasses.fields(net):
        if field.name not in SHARED | more and (value := getattr(net, field.name)) != field.default:
            raise UsageError(f"net.unet.{field.name}={value}: {theirs}, as it is known here, has it not")
