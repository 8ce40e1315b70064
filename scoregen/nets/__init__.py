"""Networks: `net.apply(params, x, c, train=False)`, x [B, ...] and one conditioning value c [B] an example."""

from scoregen.nets.classifier import Classifier
from scoregen.nets.mlp import MLP
from scoregen.nets.unet import UNet

NETS = {"mlp": MLP, "unet": UNet}

__all__ = ["MLP", "NETS", "Classifier", "UNet"]
