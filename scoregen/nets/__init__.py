"""Networks: `net.apply(params, x, c, train=False, heads=1)`, x [B, ...] and one conditioning value c [B] an example."""

from scoregen.nets.classifier import Classifier
from scoregen.nets.cost import flops, operations, parameters
from scoregen.nets.dit import DiT
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
}

__all__ = [
    "MLP",
    "NETS",
    "Classifier",
    "DiT",
    "LogVariance",
    "NCSNpp",
    "RefineNet",
    "RefineNetV2",
    "UNet",
    "flops",
    "operations",
    "parameters",
]
