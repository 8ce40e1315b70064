"""NCSN++, DDPM++ and EDM's network: where score_sde_pytorch and NVlabs/edm keep the arrays of `nets.NCSNpp`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoregen.contrib.weights.layout import Entry
from scoregen.nets import Cond, NCSNpp

# Ours, score_sde's and EDM's names of the parts of a block; attention is a part of EDM's blocks.
_PARTS = {
    "norm1": ("GroupNorm_0", "norm0"),
    "conv1": ("Conv_0", "conv0"),
    "time": ("Dense_0", "affine"),
    "norm2": ("GroupNorm_1", "norm1"),
    "conv2": ("Conv_1", "conv1"),
    "shortcut": ("Conv_2", "skip"),
    "norm": ("GroupNorm_0", "norm2"),
    "query": ("NIN_0", "query"),
    "key": ("NIN_1", "key"),
    "value": ("NIN_2", "value"),
    "proj": ("NIN_3", "proj"),
}
_THREE = ("query", "key", "value")


def _walk(net: NCSNpp, size: int) -> Iterator[tuple[str, str]]:
    """Our names of the parts of the net, in the order in which an image meets them, and EDM's.

    Among them are some that such a net may not have.
    """
    levels = len(net.multipliers)
    at = [f"{size >> i}x{size >> i}" for i in range(levels)]
    yield from (("fourier", "map_noise"), ("label", "map_label"), ("augment", "map_augment"))
    yield from (("time1", "map_layer0"), ("time2", "map_layer1"), ("conv_in", f"enc.{at[0]}_conv"))
    for i in range(levels):
        for j in range(net.blocks):
            yield f"down{i}_{j}", f"enc.{at[i]}_block{j}"
            yield f"down{i}_{j}_attention", f"enc.{at[i]}_block{j}"
        if i < levels - 1:
            yield f"down{i}_halve", f"enc.{at[i + 1]}_down"
            yield f"down{i}_pyramid", f"enc.{at[i + 1]}_aux_residual"
    yield from (("middle0", f"dec.{at[-1]}_in0"), ("middle_attention", f"dec.{at[-1]}_in0"))
    yield "middle1", f"dec.{at[-1]}_in1"
    for i in reversed(range(levels)):
        for j in range(net.blocks + 1):
            yield f"up{i}_{j}", f"dec.{at[i]}_block{j}"
        yield f"up{i}_attention", f"dec.{at[i]}_block{net.blocks}"
        if i > 0:
            yield f"up{i}_double", f"dec.{at[i - 1]}_up"
    yield from (("norm_out", f"dec.{at[0]}_aux_norm"), ("conv_out", f"dec.{at[0]}_aux_conv"))


class _Array(NamedTuple):
    """One of our arrays: its path, the part of the net it is in and the part of a block, and its number of axes."""

    ours: str
    index: int
    name: str
    edm: str
    part: str
    axes: int

    @property
    def leaf(self) -> str:
        """What it is called in PyTorch."""
        last = self.ours.rpartition(".")[2]
        return {"kernel": "weight", "scale": "weight"}.get(last, last)

    @property
    def kind(self) -> str:
        """How it is turned, where a convolution by one pixel is one."""
        pixel = self.part == "shortcut" or (self.name.endswith("attention") and self.part != "norm")
        return {4: "conv", 2: "pointwise" if pixel else "dense", 1: "same"}[self.axes]


def _arrays(net: NCSNpp, shape: tuple[int, ...]) -> Iterator[_Array]:
    x, cond = jnp.zeros((1, *shape)), Cond(noise=jnp.zeros(1))
    params: Any = jax.eval_shape(net.init, jax.random.key(0), x, cond)
    present = [(ours, edm) for ours, edm in _walk(net, shape[0]) if ours in params["params"]]
    for index, (name, edm) in enumerate(present):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params["params"][name]):
            parts = [key.key for key in path]
            yield _Array(".".join([name, *parts]), index, name, edm, parts[0] if parts[1:] else "", len(leaf.shape))


def _signed(kind: str, negated: bool) -> str:
    return {"conv": "negated_conv", "same": "negated"}[kind] if negated else kind


def score_sde(net: NCSNpp, shape: tuple[int, ...] = (32, 32, 3), by_sigma: bool = False) -> list[Entry]:
    """The layout of a state dict of score_sde_pytorch, with keys `all_modules.N...`, for images of this `shape`.

    Their checkpoints have a prefix `module.` more, and a table `sigmas`, which is no weight. With `by_sigma` their
    network divides its output by sigma (`scale_by_sigma`, as NCSN++ does under VE), so that it is the score -eps /
    sigma. What is divided is then -eps, and the sign of the last layer is turned: ours has the target "eps".

    >>> layout = score_sde(NCSNpp(), by_sigma=True)
    >>> layout[0].theirs, layout[0].ours, layout[-1].theirs, layout[-1].kind
    ('all_modules.0.W', 'fourier.frequencies', 'all_modules.58.weight', 'negated_conv')
    """
    entries = []
    for array in _arrays(net, shape):
        part, leaf, kind = _PARTS.get(array.part, ("",))[0], array.leaf, array.kind
        if part.startswith("NIN") or leaf == "frequencies":
            leaf, kind = {"bias": "b"}.get(leaf, "W"), "same"  # a matrix [in, out], as ours
        elif array.name.endswith("pyramid"):
            part = "Conv2d_0"
        kind = _signed(kind, by_sigma and array.name == "conv_out")
        entries.append(Entry(".".join(filter(None, ["all_modules", str(array.index), part, leaf])), array.ours, kind))
    return entries


def edm(net: NCSNpp, shape: tuple[int, ...] = (32, 32, 3), negated: bool = False) -> list[Entry]:
    """The layout of a state dict of NVlabs/edm's SongUNet, with keys `model...`, in the form that `apart` gives it.

    Args:
        net: ours, for images of this `shape`. Its fields `num_classes` and `augment_dim` (9 in what they published) say
            which of their arrays `map_label` and `map_augment` there are.
        negated: its output is minus the noise, as in their preconditioning "ve"; "edm" has the target "edm", and "vp"
            has "eps".

    >>> fields = {"filter": (1, 1), "progressive": "none", "embedding": "positional", "augment_dim": 9}
    >>> edm(NCSNpp(multipliers=(2, 2, 2), **fields))[0]
    Entry(theirs='model.map_augment.weight', ours='augment.kernel', kind='dense')
    """
    entries = []
    for array in _arrays(net, shape):
        part = _PARTS.get(array.part, ("", ""))[1]
        leaf = {"frequencies": "freqs"}.get(array.leaf, array.leaf)
        kind = _signed(array.kind, negated and array.name == "conv_out")
        entries.append(Entry(".".join(filter(None, ["model", array.edm, part, leaf])), array.ours, kind))
    return entries


def apart(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """EDM's state dict as `edm` lays it out: query, key and value apart, and without the filters, which are constants.

    In theirs the three are channel by channel beside each other in one convolution, `qkv`.

    >>> sorted(apart({"a.qkv.bias": np.arange(6), "a.conv0.resample_filter": np.ones(4)}).items())
    [('a.key.bias', array([1, 4])), ('a.query.bias', array([0, 3])), ('a.value.bias', array([2, 5]))]
    """
    found = {}
    for name, array in theirs.items():
        if ".qkv." in name:
            for i, part in enumerate(_THREE):
                found[name.replace(".qkv.", f".{part}.")] = array[i::3]
        elif not name.endswith(".resample_filter"):
            found[name] = array
    return found


def together(ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `apart`, but for the filters: to be loaded with `strict=False`.

    >>> together({f"a.{part}.bias": np.array([i, i + 3]) for i, part in enumerate(("query", "key", "value"))})
    {'a.qkv.bias': array([0, 1, 2, 3, 4, 5])}
    """
    found = {}
    for name, array in ours.items():
        if ".query." in name:
            three = [ours[name.replace(".query.", f".{part}.")] for part in _THREE]
            found[name.replace(".query.", ".qkv.")] = np.stack(three, 1).reshape(-1, *array.shape[1:])
        elif not any(f".{part}." in name for part in _THREE):
            found[name] = array
    return found
