"""DDPM in the plane, whose exact score is known. What a run does does not depend on how many steps it has."""

from scoregen.config import load


def get_config():
    config = load("ddpm_toy")
    config.loss.eps.reduce = "sum"
    config.weighting.name = "sigma2"  # of all losses: the error of eps, summed over dimensions
    config.train.clip = 0.0
    config.train.ema.name = "power"
    config.train.keep = 8  # all that PARTS asks for
    config.eval.at_end = False
    return config
