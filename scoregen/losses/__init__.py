"""Losses: what a network is trained to make small, how much each noise level counts in it, and at which times.

A new loss is one file and one line in `LOSSES`, a new weighting one line in `WEIGHTINGS`: the tests and the conformance
matrix go through these tables.
"""

from scoregen.losses.bound import VLB, Hybrid
from scoregen.losses.matching import DSM, FDSSM, ISM, PROJECTIONS, SSM, X0MSE, EpsilonMSE, FlowMatching, Loss
from scoregen.losses.objective import Objective, Terms
from scoregen.losses.weightings import (
    P2,
    WEIGHTINGS,
    Constant,
    EDMWeight,
    Likelihood,
    MinSNR,
    Sigma2,
    Sigmoid,
    Weighted,
    Weighting,
)

LOSSES: dict[str, type[Loss]] = {
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
    "P2",
    "PROJECTIONS",
    "SSM",
    "VLB",
    "WEIGHTINGS",
    "X0MSE",
    "Constant",
    "EDMWeight",
    "EpsilonMSE",
    "FlowMatching",
    "Hybrid",
    "Likelihood",
    "Loss",
    "MinSNR",
    "Objective",
    "Sigma2",
    "Sigmoid",
    "Terms",
    "Weighted",
    "Weighting",
]
