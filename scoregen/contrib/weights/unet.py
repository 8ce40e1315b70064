"""The layouts of other libraries' U-Nets, for our `UNet` and `NCSNpp`.

The libraries are diffusers (`UNet2DModel`), score_sde_pytorch (`ddpm`, NCSN++ and DDPM++), improved DDPM and ADM
(Dhariwal & Nichol 2021), and NVlabs/edm (SongUNet). Each layout is a function from our network and the shape
`[H, W, C]` of an example to a list of entries. The last two libraries have one convolution for query, key and value.
`split` splits each into the three arrays that we use, and `join` is its inverse.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoregen.app.config import first_line
from scoregen.contrib.weights.layout import Entry
from scoregen.errors import UsageError
from scoregen.nets import Cond, NCSNpp, UNet

# Fields that change no array, and change the output of a trained network only by rounding.
IDLE = {"dropout", "dtype", "remat"}
SHARED = {"channels", "multipliers", "blocks", "attention", "attention_last", "groups", *IDLE, "parent", "name"}
THREE = ("query", "key", "value")

# Layers of a residual block and of attention: our name -> the names in diffusers, score_sde, ADM and EDM.
LAYERS = {
    "norm1": ("norm1", "GroupNorm_0", "in_layers.0", "norm0"),
    "conv1": ("conv1", "Conv_0", "in_layers.2", "conv0"),
    "time": ("time_emb_proj", "Dense_0", "emb_layers.1", "affine"),
    "norm2": ("norm2", "GroupNorm_1", "out_layers.0", "norm1"),
    "conv2": ("conv2", "Conv_1", "out_layers.3", "conv1"),
    "shortcut": ("conv_shortcut", "Conv_2", "skip_connection", "skip"),
    "norm": ("group_norm", "GroupNorm_0", "norm", "norm2"),
    "query": ("to_q", "NIN_0", "query", "query"),
    "key": ("to_k", "NIN_1", "key", "key"),
    "value": ("to_v", "NIN_2", "value", "value"),
    "proj": ("to_out.0", "NIN_3", "proj_out", "proj"),
    "": ("", "", "", ""),
}
# Layers outside the blocks: our name -> the names in diffusers and ADM.
OUTER = {
    "time1": ("time_embedding.linear_1", "time_embed.0"),
    "time2": ("time_embedding.linear_2", "time_embed.2"),
    "conv_in": ("conv_in", "input_blocks.0.0"),
    "norm_out": ("conv_norm_out", "out.0"),
    "conv_out": ("conv_out", "out.2"),
    "middle0": ("mid_block.resnets.0", "middle_block.0"),
    "middle_attention": ("mid_block.attentions.0", "middle_block.1"),
    "middle1": ("mid_block.resnets.1", "middle_block.2"),
}


def diffusers(net: UNet, shape: tuple[int, ...]) -> list[Entry]:
    """The arrays of diffusers' `UNet2DModel`.

    Raises:
        UsageError: if a field of the network has a value that theirs does not support.

    >>> net = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)
    >>> next(entry for entry in diffusers(net, (8, 8, 1)) if entry.ours == "up1_0_attention.proj.kernel")
    Entry(theirs='up_blocks.0.attentions.0.to_out.0.weight', ours='up1_0_attention.proj.kernel', kind='dense')
    """
    _refuse(net, "diffusers' UNet2DModel", {"form", "scale_shift", "attention_heads", "head_channels"})
    if net.attention_last:
        raise UsageError("net.unet.attention_last=True: diffusers' UNet2DModel attends after every block of a level")

    def place(module: str) -> str:
        if module in OUTER:
            return OUTER[module][0]
        side, level, layer = _parsed(module)
        block = f"down_blocks.{level}" if side == "down" else f"up_blocks.{len(net.multipliers) - 1 - level}"
        if layer in ("halve", "double"):
            return f"{block}.{side}samplers.0.conv"
        j, _, attention = layer.partition("_")
        return f"{block}.{'attentions' if attention else 'resnets'}.{j}"

    return [
        array.entry(place(array.module), 0, "pointwise" if array.layer == "shortcut" else "dense")
        for array in _arrays(net, shape)
    ]


def score_sde(net: UNet | NCSNpp, shape: tuple[int, ...] = (32, 32, 3), by_sigma: bool = False) -> list[Entry]:
    """The arrays of score_sde_pytorch: models/ddpm.py for a `UNet`, models/ncsnpp.py for an `NCSNpp`.

    Their modules are numbered in the order in which they are applied. The keys in their checkpoints also have a prefix
    `module.`, and there is a table `sigmas`, which is not a weight. With `by_sigma` their network divides its output by
    sigma (`scale_by_sigma`, as in NCSN++ under VE) to get the score -eps / sigma, so its last layer gives -eps. Our
    network has the target "eps", so the sign of the last layer changes.

    Raises:
        UsageError: if a field of a `UNet` has a value that theirs does not support.

    >>> layout = score_sde(NCSNpp(), by_sigma=True)
    >>> layout[0].theirs, layout[0].ours, layout[-1].theirs, layout[-1].kind
    ('all_modules.0.W', 'fourier.frequencies', 'all_modules.58.weight', 'negated_conv')
    """
    plain = not isinstance(net, NCSNpp)
    if plain:
        _refuse(net, "score_sde's ddpm", set())
        if net.attention and not net.attention_last:
            raise UsageError("net.unet.attention_last=False: score_sde's ddpm attends once a level on the way up")
        if min(net.groups, net.channels) != 32:
            raise UsageError(f"net.unet.groups={net.groups}: score_sde's ddpm has 32 groups")
    entries = []
    for array in _arrays(net, shape):
        layer = LAYERS[array.layer][1]
        if array.layer == "shortcut" and plain:
            layer = "NIN_0"
        elif not layer and array.module.endswith(("halve", "double", "pyramid")):
            layer = "Conv_0" if plain else "Conv2d_0"
        theirs = ".".join(filter(None, ["all_modules", str(array.index), layer]))
        if layer.startswith("NIN") or array.name == "frequencies":  # a matrix [in, out], as ours
            entries.append(Entry(f"{theirs}.{'b' if array.name == 'bias' else 'W'}", array.ours))
        else:
            matrix = "pointwise" if array.layer == "shortcut" else "dense"
            entries.append(array.entry(theirs, None, matrix, by_sigma and array.module == "conv_out"))
    return entries


def adm(net: UNet, shape: tuple[int, ...]) -> list[Entry]:
    """The arrays of improved DDPM and ADM, after `split(theirs, net.heads_of)`.

    This is for their `QKVAttentionLegacy`, which all published checkpoints use. Their table of labels has no row for
    "no class"; ours gets a row of zeros.

    >>> entries = adm(UNet(scale_shift=True, form="adm"), (32, 32, 3))
    >>> next(entry for entry in entries if entry.ours == "up0_0.shortcut.kernel")
    Entry(theirs='output_blocks.9.0.skip_connection.weight', ours='up0_0.shortcut.kernel', kind='pointwise')
    """
    arrays = list(_arrays(net, shape))
    present, last, block = {array.module for array in arrays}, len(net.multipliers) - 1, net.resample == "block"

    def place(module: str) -> str:
        if module in OUTER:
            return OUTER[module][1]
        side, level, layer = _parsed(module)
        first = (level if side == "down" else last - level) * (net.blocks + 1)
        if layer == "halve":
            return f"input_blocks.{first + net.blocks + 1}.0" + ("" if block else ".op")
        if layer == "double":
            attends = f"up{level}_{net.blocks}_attention" in present
            return f"output_blocks.{first + net.blocks}.{1 + attends}" + ("" if block else ".conv")
        j, _, attention = layer.partition("_")
        n = first + int(j) + (side == "down")
        return f"{'input' if side == 'down' else 'output'}_blocks.{n}.{1 if attention else 0}"

    kinds = {"shortcut": "pointwise", **dict.fromkeys((*THREE, "proj"), "pointwise1d")}
    return [
        Entry("label_emb.weight", array.ours, "labels")
        if array.module == "label"
        else array.entry(place(array.module), 2, kinds.get(array.layer, "dense"))
        for array in arrays
    ]


def edm(net: NCSNpp, shape: tuple[int, ...] = (32, 32, 3), negated: bool = False) -> list[Entry]:
    """The arrays `model...` of NVlabs/edm's SongUNet, after `split(theirs)`.

    Args:
        net: ours. Its fields `num_classes` and `augment_dim` (9 in what they published) say which of their arrays
            `map_label` and `map_augment` there are.
        shape: of an example.
        negated: its output is minus the noise, as in their preconditioning "ve"; "edm" has the target "edm", and "vp"
            has "eps".

    >>> fields = {"filter": (1, 1), "progressive": "none", "embedding": "positional", "augment_dim": 9}
    >>> edm(NCSNpp(multipliers=(2, 2, 2), **fields))[0]
    Entry(theirs='model.map_augment.weight', ours='augment.kernel', kind='dense')
    """
    sizes = [f"{shape[0] >> i}x{shape[0] >> i}" for i in range(len(net.multipliers))]
    outer = {"fourier": "map_noise", "label": "map_label", "augment": "map_augment"}
    outer |= {"time1": "map_layer0", "time2": "map_layer1", "conv_in": f"enc.{sizes[0]}_conv"}
    outer |= dict.fromkeys(("middle0", "middle_attention"), f"dec.{sizes[-1]}_in0") | {
        "middle1": f"dec.{sizes[-1]}_in1"
    }
    outer |= {"norm_out": f"dec.{sizes[0]}_aux_norm", "conv_out": f"dec.{sizes[0]}_aux_conv"}

    def place(module: str) -> str:
        if module in outer:
            return outer[module]
        side, level, layer = _parsed(module)
        if layer == "halve":
            return f"enc.{sizes[level + 1]}_down"
        if layer == "pyramid":
            return f"enc.{sizes[level + 1]}_aux_residual"
        if layer == "double":
            return f"dec.{sizes[level - 1]}_up"
        j = net.blocks if layer == "attention" else layer.partition("_")[0]
        return f"{'enc' if side == 'down' else 'dec'}.{sizes[level]}_block{j}"

    pixel = ("shortcut", *THREE, "proj")  # convolutions by one pixel
    return [
        array.entry(
            f"model.{place(array.module)}",
            3,
            "pointwise" if array.layer in pixel else "dense",
            negated and array.module == "conv_out",
        )
        for array in _arrays(net, shape)
    ]


def split(theirs: Mapping[str, np.ndarray], heads: Callable[[int], int] = int) -> dict[str, np.ndarray]:
    """A state dict with separate query, key and value, `[3 C, ...]` -> `[C, ...]` each, and without constant filters.

    Their array holds the three for one head after the other; `heads` maps C channels to the number of heads. In EDM the
    three alternate channel by channel, as if every channel were a head.

    >>> sorted(split({"a.qkv.bias": np.arange(6), "a.conv0.resample_filter": np.ones(4)}).items())
    [('a.key.bias', array([1, 4])), ('a.query.bias', array([0, 3])), ('a.value.bias', array([2, 5]))]
    """
    found = {}
    for name, array in theirs.items():
        if ".qkv." in name:
            width, rest = len(array) // 3, array.shape[1:]
            parts = np.asarray(array).reshape(heads(width), 3, -1, *rest)
            found |= {name.replace(".qkv.", f".{p}."): parts[:, i].reshape(width, *rest) for i, p in enumerate(THREE)}
        elif not name.endswith(".resample_filter"):
            found[name] = array
    return found


def join(ours: Mapping[str, np.ndarray], heads: Callable[[int], int] = int) -> dict[str, np.ndarray]:
    """The inverse of `split`, but without the filters, so load the result with `strict=False`.

    >>> join({f"a.{part}.bias": np.array([i, i + 3]) for i, part in enumerate(THREE)})
    {'a.qkv.bias': array([0, 1, 2, 3, 4, 5])}
    """
    found = {}
    for name, array in ours.items():
        if ".query." in name:
            parts = [ours[name.replace(".query.", f".{part}.")] for part in THREE]
            by_head = [part.reshape(heads(len(part)), -1, *part.shape[1:]) for part in parts]
            found[name.replace(".query.", ".qkv.")] = np.stack(by_head, 1).reshape(-1, *array.shape[1:])
        elif not any(f".{part}." in name for part in THREE):
            found[name] = array
    return found


class _Array(NamedTuple):
    """One of our arrays: its path, its module and that module's number, the layer of a block, its name, its axes."""

    ours: str
    module: str
    index: int
    layer: str
    name: str
    axes: int

    def entry(self, theirs: str, library: int | None, matrix: str, negated: bool = False) -> Entry:
        """The entry of a PyTorch layer at `theirs`; `matrix` is the kind of our matrices there.

        `library` is the column of `LAYERS` whose name is to be added, None if it is there already.
        """
        layer = "" if library is None else LAYERS[self.layer][library]
        name = {"kernel": "weight", "scale": "weight", "frequencies": "freqs"}.get(self.name, self.name)
        kind = {4: "conv", 2: matrix, 1: "same"}[self.axes]
        if negated:
            kind = {"conv": "negated_conv", "same": "negated"}[kind]
        return Entry(".".join(filter(None, [theirs, layer, name])), self.ours, kind)


def _arrays(net: UNet | NCSNpp, shape: tuple[int, ...]) -> Iterator[_Array]:
    """The arrays of a network for examples of this shape, in the order in which an image meets its modules."""
    try:
        x, cond = jnp.zeros((1, *shape)), Cond(noise=jnp.zeros(1))
        params: Any = jax.eval_shape(net.init, jax.random.key(0), x, cond)["params"]
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UsageError(f"the network does not fit examples of {list(shape)}: {first_line(error)}") from None
    present = [module for module in _modules(net) if module in params]
    for index, module in enumerate(present):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params[module]):
            *layer, name = (key.key for key in path)
            yield _Array(".".join([module, *layer, name]), module, index, ".".join(layer), name, len(leaf.shape))


def _modules(net: UNet | NCSNpp) -> Iterator[str]:
    """The names of all modules that such a network may have, in the order in which they are applied."""
    yield from ("fourier", "label", "augment", "time1", "time2", "conv_in")
    for i in range(len(net.multipliers)):
        for j in range(net.blocks):
            yield from (f"down{i}_{j}", f"down{i}_{j}_attention")
        yield from (f"down{i}_halve", f"down{i}_pyramid")
    yield from ("middle0", "middle_attention", "middle1")
    for i in reversed(range(len(net.multipliers))):
        for j in range(net.blocks + 1):
            yield from (f"up{i}_{j}", f"up{i}_{j}_attention")
        yield from (f"up{i}_attention", f"up{i}_double")
    yield from ("norm_out", "conv_out")


def _parsed(module: str) -> tuple[str, int, str]:
    """The side, the level and the rest of a module's name: "down0_1_attention" is "down", 0, "1_attention"."""
    side, level, layer = re.fullmatch(r"(down|up)(\d+)_(\w+)", module).groups()  # pyright: ignore
    return side, int(level), layer


def _refuse(net: UNet, theirs: str, more: set[str]) -> None:
    if not isinstance(net, UNet):
        raise UsageError(f"the network is not a unet, but {theirs} is: say --config.net.name=unet")
    for field in dataclasses.fields(net):
        if field.name not in SHARED | more and (value := getattr(net, field.name)) != field.default:
            raise UsageError(f"net.unet.{field.name}={value}: {theirs} does not have it")
