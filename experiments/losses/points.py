"""DDPM in the plane, whose exact score is known. A step does not depend on the number of steps of the run."""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_toy")
    config.loss.eps.reduce = "sum"
    config.weighting.name = "sigma2"  # for all losses: the error of eps, summed over dimensions
    config.train.clip = 0.0
    config.train.ema.name = "power"
    config.train.keep = 8  # as many as PARTS
    config.eval.at_end = False
    return config
