"""Losses, weightings of the noise levels, and the objective that joins them with a law of training times.

A new loss is one file and one line in `LOSSES`; a new weighting is one line in `WEIGHTINGS`. The tests and the
conformance matrix check every entry of these tables.
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
