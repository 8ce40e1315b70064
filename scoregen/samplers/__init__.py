"""Samplers: a driver, and the predictors and correctors that it combines."""

from scoregen.samplers.correctors import CORRECTORS, Corrector, Langevin, NoCorrector
from scoregen.samplers.predictors import PREDICTORS, Ancestral, Hold, Predictor
from scoregen.samplers.sample import sample

__all__ = [
    "CORRECTORS",
    "PREDICTORS",
    "Ancestral",
    "Corrector",
    "Hold",
    "Langevin",
    "NoCorrector",
    "Predictor",
    "sample",
]
