"""The networks of improved DDPM (Nichol & Dhariwal 2021) and ADM (Dhariwal & Nichol 2021), as their code names them.

Theirs have one convolution for query, key and value, whose output holds these three for one head after the other;
`split` makes three of it, each of which lies in ours as it is, and `join` is its inverse:

    params = to_ours(layout(net, shape), split(net, theirs))
    theirs = join(net, to_theirs(layout(net, shape), params))

That is ADM's `QKVAttentionLegacy`, all that was published is trained with. Labels are left out: theirs has no row for
none, and ours has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scoregen.contrib.weights.layout import Entry
from scoregen.nets import Cond, UNet

_PARTS = ("query", "key", "value")


def layout(net: UNet, shape: tuple[int, ...]) -> list[Entry]:
    """Where each array of theirs, after `split`, lies in `net` for images of this shape `[H, W, C]`.

    >>> entries = layout(UNet(scale_shift=True, form="adm"), (32, 32, 3))
    >>> next(entry for entry in entries if entry.ours == "up0_0.shortcut.kernel")
    Entry(theirs='output_blocks.9.0.skip_connection.weight', ours='up0_0.shortcut.kernel', kind='pointwise')
    """
    x, cond = jnp.zeros((1, *shape)), Cond(noise=jnp.zeros(1))
    ours: Any = jax.eval_shape(net.init, jax.random.key(0), x, cond)["params"]
    return [
        *_layer("time_embed.0", "time1", "dense"),
        *_layer("time_embed.2", "time2", "dense"),
        *(entry for theirs, name in _modules(net, ours) for entry in _module(theirs, name, ours[name])),
        *_layer("out.0", "norm_out", "norm"),
        *_layer("out.2", "conv_out", "conv"),
    ]


def split(net: UNet, theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Their arrays, with each `qkv` in three: `[3 C, ...]`, by heads, -> `[C, ...]` for query, key and value."""
    found: dict[str, np.ndarray] = {}
    for key, array in theirs.items():
        if ".qkv." not in key:
            found[key] = array
            continue
        width = array.shape[0] // 3
        byhead = np.asarray(array).reshape(net.heads_of(width), 3, -1, *array.shape[1:])
        for i, part in enumerate(_PARTS):
            found[key.replace(".qkv.", f".{part}.")] = byhead[:, i].reshape(width, *array.shape[1:])
    return found


def join(net: UNet, theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `split`."""
    found: dict[str, np.ndarray] = {}
    for key, array in theirs.items():
        if ".query." in key:
            heads = net.heads_of(array.shape[0])
            parts = [theirs[key.replace(".query.", f".{part}.")] for part in _PARTS]
            byhead = np.stack([part.reshape(heads, -1, *part.shape[1:]) for part in parts], axis=1)
            found[key.replace(".query.", ".qkv.")] = byhead.reshape(-1, *array.shape[1:])
        elif not re.search(r"\.(key|value)\.", key):
            found[key] = array
    return found


def _modules(net: UNet, ours: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Their name and ours of each convolution, residual block and attention of the U, in the order of the pass."""
    levels, block = len(net.multipliers), net.resample == "block"
    yield "input_blocks.0.0", "conv_in"
    n = 0
    for i in range(levels):
        for j in range(net.blocks):
            n += 1
            yield f"input_blocks.{n}.0", f"down{i}_{j}"
            if f"down{i}_{j}_attention" in ours:
                yield f"input_blocks.{n}.1", f"down{i}_{j}_attention"
        if i < levels - 1:
            n += 1
            yield f"input_blocks.{n}.0" + ("" if block else ".op"), f"down{i}_halve"
    for k, name in enumerate(("middle0", "middle_attention", "middle1")):
        yield f"middle_block.{k}", name
    n = -1
    for i in reversed(range(levels)):
        for j in range(net.blocks + 1):
            n += 1
            yield f"output_blocks.{n}.0", f"up{i}_{j}"
            attends = f"up{i}_{j}_attention" in ours
            if attends:
                yield f"output_blocks.{n}.1", f"up{i}_{j}_attention"
            if i > 0 and j == net.blocks:
                yield f"output_blocks.{n}.{1 + attends}" + ("" if block else ".conv"), f"up{i}_double"


def _module(theirs: str, name: str, params: Mapping[str, Any]) -> Iterator[Entry]:
    """The entries of one module, which its parameters tell: a residual block, attention, or a convolution."""
    if "conv1" in params:
        layers = [
            *(("in_layers.0", "norm1", "norm"), ("in_layers.2", "conv1", "conv"), ("emb_layers.1", "time", "dense")),
            *(("out_layers.0", "norm2", "norm"), ("out_layers.3", "conv2", "conv")),
            *([("skip_connection", "shortcut", "pointwise")] if "shortcut" in params else []),
        ]
    elif "query" in params:
        layers = [("norm", "norm", "norm"), *((part, part, "pointwise1d") for part in _PARTS)]
        layers.append(("proj_out", "proj", "pointwise1d"))
    else:
        yield from _layer(theirs, name, "conv")
        return
    for at, ours, kind in layers:
        yield from _layer(f"{theirs}.{at}", f"{name}.{ours}", kind)


def _layer(theirs: str, ours: str, kind: str) -> list[Entry]:
    """Weights and bias of one layer."""
    weights = Entry(f"{theirs}.weight", f"{ours}.scale") if kind == "norm" else None
    return [weights or Entry(f"{theirs}.weight", f"{ours}.kernel", kind), Entry(f"{theirs}.bias", f"{ours}.bias")]
