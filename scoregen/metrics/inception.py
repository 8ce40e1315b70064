"""Features of the Inception network, in which the published FID is measured."""

from __future__ import annotations

import os
from pathlib import Path

from scoregen.errors import UsageError, check_path
from scoregen.metrics import resize as resizing
from scoregen.metrics.features import Features
from scoregen.metrics.pretrained import Input, pretrained_features

# One file, under the names that pytorch-fid and torch-fidelity give it. The names end in the first digits of the hash.
FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
VARIABLE = "SCOREGEN_INCEPTION"

INPUTS = {
    "pytorch-fid": Input(
        "pytorch-fid resizing", 299, resizing.pytorch, before=lambda x: x / 255, after=lambda x: 2 * x - 1
    ),
    "torch-fidelity": Input(
        "torch-fidelity resizing", 299, resizing.tensorflow1, before=lambda x: x, after=lambda x: (x - 128) / 128
    ),
}


def inception_features(weights: str | os.PathLike[str] | None = None, *, resize: str = "pytorch-fid") -> Features:
    """Features of the Inception network of the published FID (Heusel et al. 2017, arXiv:1706.08500).

    The 2,048 features are the activations before the last layer, averaged over the pixels ("pool 3"). The logits are
    those of 1,008 classes, for the Inception score. Images of any size are resized to 299x299 pixels, grey ones are
    repeated to three channels, and the grey levels g become the input x, by one of two conventions:

        pytorch-fid      PyTorch's bilinear interpolation,        x = 2 g / 255 - 1
        torch-fidelity   TensorFlow 1's bilinear interpolation,   x = (g - 128) / 128

    The second is that of the original implementation in TensorFlow; most published numbers are from either. Compare
    numbers of one convention only.

    The weights are one file of 96 MB, under two names. Nothing is downloaded, and no code in the file is run. Only its
    distance is called FID: with other weights the name of the network says so.

    Args:
        weights: the file; None for the file that the environment variable SCOREGEN_INCEPTION names, or else the one
            that pytorch-fid or torch-fidelity has left in PyTorch's cache ($TORCH_HOME/hub/checkpoints, or
            ~/.cache/torch/hub/checkpoints).
        resize: "pytorch-fid" or "torch-fidelity".

    Raises:
        UsageError: if there is no file, with the place to get it from, or if it holds other weights.
        ValueError: for another `resize`.
    """
    if resize not in INPUTS:
        raise ValueError(f"resize={resize!r}: {' or '.join(map(repr, INPUTS))} is needed")
    file = _file(weights)

    from scoregen.nets.inception import Inception

    return pretrained_features(Inception(), "Inception", file, _theirs, INPUTS[resize], PUBLISHED)


def _theirs(layer: str) -> tuple[str, str]:
    return (layer, "") if layer == "fc" else (f"{layer}.conv", f"{layer}.bn")


def _file(weights: str | os.PathLike[str] | None) -> Path:
    """The file of the weights."""
    named = os.environ.get(VARIABLE)
    if weights is not None:
        file, said = check_path("weights", weights, FILES[0]), ""
    elif named:
        file, said = Path(named).expanduser(), f"{VARIABLE} names "
    else:
        folder = _cache()
        found = [folder / name for name in FILES if (folder / name).is_file()]
        if not found:
            raise UsageError(
                f"the weights of Inception are missing: get {FILES[0]} from the releases of "
                f"github.com/mseitzer/pytorch-fid, and put it into {folder}, or set {VARIABLE} to its path"
            )
        return found[0]
    if not file.is_file():
        raise UsageError(
            f"{said}{file}, which is not a file: the weights of Inception are {FILES[0]}, from the releases of "
            "github.com/mseitzer/pytorch-fid"
        )
    return file


def _cache() -> Path:
    """PyTorch's folder of downloaded weights."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or Path(caches, "torch")).expanduser() / "hub" / "checkpoints"
