"""DDPM on points with a known exact score. Each step is the same, whatever the number of steps of the run."""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_toy")
    config.loss.eps.reduce = "sum"
    config.weighting.name = "sigma2"  # every loss has the weight of the error of eps, summed over dimensions
    config.train.clip = 0.0
    config.train.ema.name = "power"
    config.train.keep = 8  # at least PARTS of sweep.py
    config.eval.at_end = False
    return config
