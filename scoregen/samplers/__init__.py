"""Samplers: the driver, the noise levels that it visits, and the steps and correctors that it combines."""

from scoregen.samplers.correctors import CORRECTORS, MALA, Corrector, Langevin, SNRLangevin
from scoregen.samplers.encode import decode, encode, interpolate, slerp
from scoregen.samplers.grids import GRIDS, EvenLogSNR, EvenTime, Grid, Karras, Listed, OwnGrid, Power
from scoregen.samplers.multistep import DPMSolver, UniPC
from scoregen.samplers.ode import Adaptive
from scoregen.samplers.sampler import START_TOLERANCE, Sampler, StartWarning, start_gap
from scoregen.samplers.steps import (
    Ancestral,
    Consistent,
    EDMHeun,
    Euler,
    EulerMaruyama,
    Heun,
    Hold,
    ReverseDiffusion,
    Step,
)

STEPS = {
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
    "START_TOLERANCE",
    "STEPS",
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
    "OwnGrid",
    "Power",
    "ReverseDiffusion",
    "SNRLangevin",
    "Sampler",
    "StartWarning",
    "Step",
    "UniPC",
    "decode",
    "encode",
    "interpolate",
    "slerp",
    "start_gap",
]
