"""Perturbation processes, which turn data into noise: `kernel` has the interface, the other modules the processes."""

from scoregen.process.chain import Chain, betas, cosine, ddpm, ncsn, sigmas
from scoregen.process.continuous import EDM, VE, VP, Continuous, CosineVP, Flow, SubVP
from scoregen.process.kernel import (
    Noised,
    Process,
    bottom,
    covers,
    drift_diffusion,
    perturb,
    posterior,
    snr_loss_rate,
    top,
    vanishes,
)

PROCESSES = {
    "ddpm": ddpm,
    "cosine": cosine,
    "ncsn": ncsn,
    "betas": betas,
    "sigmas": sigmas,
    "vp": VP,
    "subvp": SubVP,
    "vp_cosine": CosineVP,
    "ve": VE,
    "edm": EDM,
    "flow": Flow,
}

__all__ = [
    "EDM",
    "PROCESSES",
    "VE",
    "VP",
    "Chain",
    "Continuous",
    "CosineVP",
    "Flow",
    "Noised",
    "Process",
    "SubVP",
    "betas",
    "bottom",
    "cosine",
    "covers",
    "ddpm",
    "drift_diffusion",
    "ncsn",
    "perturb",
    "posterior",
    "sigmas",
    "snr_loss_rate",
    "top",
    "vanishes",
]
