"""Objectives: what a network is trained to make small, and how much each noise level counts in it."""

from scoregen.losses.bound import VLB, Hybrid
from scoregen.losses.matching import DSM, FDSSM, ISM, PROJECTIONS, SSM, X0MSE, EpsilonMSE, FlowMatching, Loss
from scoregen.losses.weightings import WEIGHTINGS, Weighted, Weighting

LOSSES = {
    "eps": EpsilonMSE,
    "x0": X0MSE,
    "flow": FlowMatching,
    "dsm": DSM,
    "ism": ISM,
    "ssm": SSM,
    "fdssm": FDSSM,
    "vlb": VLB,
    "hybrid": Hybrid,
}

__all__ = [
    "DSM",
    "FDSSM",
    "ISM",
    "LOSSES",
    "PROJECTIONS",
    "SSM",
    "VLB",
    "WEIGHTINGS",
    "X0MSE",
    "EpsilonMSE",
    "FlowMatching",
    "Hybrid",
    "Loss",
    "Weighted",
    "Weighting",
]
