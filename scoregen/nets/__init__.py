"""Networks: `net.apply(params, x, cond)` with examples x [B, ..., C] and a `Cond` returns [B, ..., out_channels]."""

from scoregen.cond import Cond
from scoregen.nets.auto import auto, describe_size
from scoregen.nets.classifier import Classifier
from scoregen.nets.cost import flops, memory, operations, parameters
from scoregen.nets.dit import DiT
from scoregen.nets.efficientnet import EfficientNetLite0
from scoregen.nets.inception import Inception
from scoregen.nets.log_variance import LogVariance
from scoregen.nets.mlp import MLP
from scoregen.nets.ncsnpp import NCSNpp
from scoregen.nets.refinenet import RefineNet, RefineNetV2
from scoregen.nets.unet import UNet

NETS = {
    "mlp": MLP,
    "unet": UNet,
    "ncsnpp": NCSNpp,
    "refinenet": RefineNet,
    "refinenet_v2": RefineNetV2,
    "dit": DiT,
    "auto": auto,
}

__all__ = [
    "MLP",
    "NETS",
    "Classifier",
    "Cond",
    "DiT",
    "EfficientNetLite0",
    "Inception",
    "LogVariance",
    "NCSNpp",
    "RefineNet",
    "RefineNetV2",
    "UNet",
    "auto",
    "describe_size",
    "flops",
    "memory",
    "operations",
    "parameters",
]
