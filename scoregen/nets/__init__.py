"""Networks: `net.apply(params, x, c, train=False, heads=1)`, x [B, ...] and one conditioning value c [B] an example."""

from scoregen.nets.classifier import Classifier
from scoregen.nets.log_variance import LogVariance
from scoregen.nets.mlp import MLP
from scoregen.nets.ncsnpp import NCSNpp
from scoregen.nets.unet import UNet

NETS = {"mlp": MLP, "unet": UNet, "ncsnpp": NCSNpp}

__all__ = ["MLP", "NETS", "Classifier", "LogVariance", "NCSNpp", "UNet"]
