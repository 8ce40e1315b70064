"""The layout of the RefineNets of Song & Ermon in `ermongroup/ncsn`, `ermongroup/ncsnv2` and `score_sde_pytorch`.

Their checkpoints differ in two ways. Those of ncsnv2 hold the buffer `sigmas`, which our network does not need. If the
network was trained on several devices, each key has the prefix `module.`.
"""

from __future__ import annotations

from collections.abc import Iterator

from scoregen.contrib.weights.layout import Entry
from scoregen.nets import RefineNet, RefineNetV2


def layout(net: RefineNet | RefineNetV2) -> list[Entry]:
    """The layout of `CondRefineNetDilated` or `NCSNv2`.

    Their noise level 0 is the noisiest, but ours is the least noisy, so the rows of the norms' tables are reversed.

    >>> entries = layout(RefineNet(levels=10))
    >>> entries[0], len(entries)
    (Entry(theirs='begin_conv.weight', ours='conv_in.kernel', kind='conv'), 173)
    """
    conditional = isinstance(net, RefineNet)

    def conv(theirs: str, ours: str, bias: bool = True) -> Iterator[Entry]:
        yield Entry(f"{theirs}.weight", f"{ours}.kernel", "conv")
        if bias:
            yield Entry(f"{theirs}.bias", f"{ours}.bias")

    def norm(theirs: str, ours: str) -> Iterator[Entry]:
        if conditional:
            yield Entry(f"{theirs}.embed.weight", f"{ours}.table", "reversed")
        else:
            for name in ("alpha", "gamma", "beta"):
                yield Entry(f"{theirs}.{name}", f"{ours}.{name}")

    def refine_norm(theirs: str, ours: str) -> Iterator[Entry]:
        if conditional:
            yield from norm(theirs, f"{ours}_norm")

    def residual(theirs: str, ours: str, units: int) -> Iterator[Entry]:
        for i in range(units):
            for j in range(2):
                yield from refine_norm(f"{theirs}.{i + 1}_{j + 1}_norm", f"{ours}_{i}_{j}")
                yield from conv(f"{theirs}.{i + 1}_{j + 1}_conv", f"{ours}_{i}_{j}", bias=False)

    def down(i: int, j: int) -> Iterator[Entry]:
        theirs, ours = f"res{i + 1}.{j}", f"down{i}_{j}"
        yield from norm(f"{theirs}.normalize1", f"{ours}.norm1")
        yield from conv(f"{theirs}.conv1", f"{ours}.conv1")
        yield from norm(f"{theirs}.normalize2", f"{ours}.norm2")
        pooled = ".conv" if (i, j) == (1, 0) else ""  # their convolution includes the mean pooling here
        yield from conv(f"{theirs}.conv2{pooled}", f"{ours}.conv2")
        if i > 0 and j == 0:
            yield from conv(f"{theirs}.shortcut{pooled}", f"{ours}.shortcut")

    def up(i: int) -> Iterator[Entry]:
        theirs, ours = f"refine{4 - i}", f"up{i}"
        inputs = 1 if i == 3 else 2
        for k in range(inputs):
            yield from residual(f"{theirs}.adapt_convs.{k}", f"{ours}.adapt{k}", 2)
        for k in range(inputs if inputs > 1 else 0):
            yield from refine_norm(f"{theirs}.msf.norms.{k}", f"{ours}.fuse{k}")
            yield from conv(f"{theirs}.msf.convs.{k}", f"{ours}.fuse{k}")
        for k in range(2):
            yield from refine_norm(f"{theirs}.crp.norms.{k}", f"{ours}.pool{k}")
            yield from conv(f"{theirs}.crp.convs.{k}", f"{ours}.pool{k}", bias=False)
        yield from residual(f"{theirs}.output_convs", f"{ours}.out", 3 if i == 0 else 1)

    entries = [*conv("begin_conv", "conv_in"), *norm("normalizer", "norm_out"), *conv("end_conv", "conv_out")]
    for i in range(4):
        entries += [*down(i, 0), *down(i, 1)]
    for i in reversed(range(4)):
        entries += up(i)
    return entries
