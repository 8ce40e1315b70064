"""Samplers: a driver, the grids it walks, and the predictors and correctors that it combines."""

from scoregen.samplers.adaptive import Adaptive
from scoregen.samplers.correctors import CORRECTORS, MALA, Corrector, Langevin, NoCorrector, SNRLangevin
from scoregen.samplers.encode import decode, encode, interpolate, slerp
from scoregen.samplers.grids import GRIDS, EvenLogSNR, EvenTime, Grid, Karras, Listed, OwnGrid, Power
from scoregen.samplers.multistep import DPMSolver, UniPC
from scoregen.samplers.predictors import (
    Ancestral,
    Consistent,
    EDMHeun,
    Euler,
    EulerMaruyama,
    Heun,
    Hold,
    Predictor,
    ReverseDiffusion,
)
from scoregen.samplers.sample import evaluations, sample, trajectory

PREDICTORS = {
    "ancestral": Ancestral,
    "consistent": Consistent,
    "reverse_diffusion": ReverseDiffusion,
    "euler_maruyama": EulerMaruyama,
    "euler": Euler,
    "heun": Heun,
    "edm": EDMHeun,
    "dpm": DPMSolver,
    "unipc": UniPC,
    "ode": Adaptive,
    "hold": Hold,
}

__all__ = [
    "CORRECTORS",
    "GRIDS",
    "MALA",
    "PREDICTORS",
    "Adaptive",
    "Ancestral",
    "Consistent",
    "Corrector",
    "DPMSolver",
    "EDMHeun",
    "Euler",
    "EulerMaruyama",
    "EvenLogSNR",
    "EvenTime",
    "Grid",
    "Heun",
    "Hold",
    "Karras",
    "Langevin",
    "Listed",
    "NoCorrector",
    "OwnGrid",
    "Power",
    "Predictor",
    "ReverseDiffusion",
    "SNRLangevin",
    "UniPC",
    "decode",
    "encode",
    "evaluations",
    "interpolate",
    "sample",
    "slerp",
    "trajectory",
]
