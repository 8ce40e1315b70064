"""The network for the data's shape, as large as a stated memory allows."""

from __future__ import annotations

import bisect
import functools
import math
from typing import Any

import flax.linen as nn

from scoregen.errors import check_count, check_counts, check_positive
from scoregen.nets import cost
from scoregen.nets.dit import DiT
from scoregen.nets.layers import FORMS
from scoregen.nets.mlp import MLP
from scoregen.nets.unet import UNet

GB = 1e9
ATTENDED = 1024  # the most pixels that the middle of a U-Net attends over; its attention grows with their square
TOKENS = 256  # the most tokens of a DiT, and of attention in the blocks of a U-Net's last level
FEWEST = 16  # the fewest tokens of a DiT
# From small to large: (channels, blocks) of a U-Net; (width, depth, heads) of a DiT; (width, depth) of a perceptron.
CONVOLUTIONS = ((8, 1), (16, 1), (32, 1), (32, 2), (64, 2), (96, 2), (128, 2))
TRANSFORMERS = ((96, 4, 3), (192, 6, 3), (384, 8, 6), (384, 12, 6), (768, 12, 12))
PERCEPTRONS = ((64, 2), (128, 3), (256, 4), (512, 5), (1024, 6))


def auto(
    shape: tuple[int, ...],
    memory: float = 2.0,
    batch: int = 64,
    num_classes: int = 0,
    context_dim: int = 0,
    out_channels: int | None = None,
) -> MLP | UNet | DiT:
    """The network for examples of this shape: the largest of a short list whose training step fits into `memory`.

    The shape decides the kind of network, and the memory only its size:

        [D]                       an MLP, which is wider and deeper for larger D
        [L, C], [H, W, C] and     a U-Net of c, 2c, 2c, ... channels, with c from 8 to 128. Levels halve the sizes until
        [D, H, W, C]              one is odd, all are below 8 or fewer than 64 pixels are left. If none can be halved,
                                  it has one level. The middle attends to all pixels of the last level, and with at
                                  most 256 of them, so does each of its blocks.
        more than 1024 pixels     a DiT with the smallest patch that cuts it into 16 to 256 tokens: 45x45, for example,
        in that last level        into squares of 3
        without such a patch,     an MLP, which knows nothing of neighbours: pad or crop to a multiple of 8 for a U-Net
        and all other shapes

    Args:
        shape: the shape of one example.
        memory: gigabytes (1e9 bytes) for a training step, as `scoregen.nets.memory` estimates it: activations,
            gradient, parameters and the state of the optimizer.
        batch: the number of examples that a training step takes at a time.
        num_classes, context_dim, out_channels: fields of the network.

    Raises:
        TypeError: if an argument has another type.
        ValueError: if one is out of range, or if the smallest network of the kind needs more than `memory`.

    >>> net = auto((2,))
    >>> type(net).__name__, net.width, net.depth
    ('MLP', 128, 3)
    """
    check_counts("shape", shape)
    check_positive(memory=memory)
    check_count("batch", batch)
    check_count("num_classes", num_classes, 0)
    check_count("context_dim", context_dim, 0)
    if out_channels is not None:
        check_count("out_channels", out_channels)
    return _largest(tuple(shape), float(memory), batch, num_classes, context_dim, out_channels)


@functools.lru_cache  # each size takes a trace of the network, which can last a second
def _largest(shape: tuple[int, ...], memory: float, batch: int, *fields: Any) -> MLP | UNet | DiT:
    named = dict(zip(("num_classes", "context_dim", "out_channels"), fields, strict=True))
    nets = [net.clone(**named) for net in _ladder(shape)]
    needs = functools.cache(lambda i: cost.memory(nets[i], shape, batch))
    found = bisect.bisect_right(range(len(nets)), memory * GB, key=needs)
    if not found:
        least = math.ceil(100 * needs(0) / GB) / 100
        raise ValueError(
            f"memory={memory:g}: a training step of the smallest {_kind(nets[0])} for examples of shape {list(shape)} "
            f"needs about {least:g} GB with a batch of {batch}: allow memory={least:g}, or take a smaller batch or "
            "smaller examples"
        )
    return nets[found - 1]


def _ladder(shape: tuple[int, ...]) -> list[Any]:
    """The networks for this shape, from small to large."""
    sizes = list(shape[:-1])
    if len(sizes) in FORMS:
        levels = 1
        while all(size % 2 == 0 for size in sizes) and max(sizes) >= 8 and math.prod(sizes) >= 64:
            levels, sizes = levels + 1, [size // 2 for size in sizes]
        last = math.prod(sizes)
        if last <= ATTENDED:
            multipliers, attention = (1, *(2,) * (levels - 1)), (sizes[0],) if last <= TOKENS else ()
            # At least four channels in each group of the norms: those of a single channel would remove its mean.
            return [UNet(c, multipliers, n, attention, groups=min(32, c // 4)) for c, n in CONVOLUTIONS]
        side = math.gcd(*shape[:-1])
        for patch in range(2, side + 1):
            tokens = math.prod(shape[:-1]) // patch ** len(sizes)
            if side % patch == 0 and FEWEST <= tokens <= TOKENS:
                return [DiT(patch, *fields) for fields in TRANSFORMERS]
    # Four units for each number of an example, as far as the list goes. The first is only for want of memory.
    enough = [i for i, (width, _) in enumerate(PERCEPTRONS) if i and width >= 4 * math.prod(shape)]
    return [MLP(*fields) for fields in PERCEPTRONS[: 1 + min(enough, default=len(PERCEPTRONS))]]


def describe_size(net: nn.Module, shape: tuple[int, ...], batch: int, budget: float | None = None) -> str:
    """One line with the kind of a network, its parameters and its memory in training, to print before a run.

    Args:
        net: the network.
        shape: the shape of one example.
        batch: the number of examples that a training step takes at a time.
        budget: the gigabytes that were allowed, if they are to be named.

    >>> describe_size(MLP(width=128, depth=3), (2,), 64, 2.0)
    'an MLP of 3 layers of 128 units, 77,602 parameters, about 3 MB for a batch of 64 (budget 2 GB)'
    """
    need = cost.memory(net, shape, batch)
    size = f"{need / GB:.1f} GB" if need >= 0.1 * GB else f"{math.ceil(need / 1e6)} MB"
    line = f"{_described(net)}, {cost.parameters(net, shape):,} parameters, about {size} for a batch of {batch}"
    return line if budget is None else f"{line} (budget {budget:g} GB)"


def _described(net: nn.Module) -> str:
    match net:
        case UNet():
            return f"a U-Net of {'-'.join(str(net.channels * m) for m in net.multipliers)} channels"
        case DiT():
            return f"a DiT of {net.depth} blocks of {net.width} channels on patches of {net.patch}"
        case MLP():
            return f"an MLP of {net.depth} layers of {net.width} units"
        case _:
            return f"the network {_kind(net)}"


def _kind(net: nn.Module) -> str:
    return "U-Net" if isinstance(net, UNet) else type(net).__name__
