"""DDPM on 8x8 digits, with 16 channels. Each step is the same, whatever the number of steps of the run."""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_digits")
    config.loss.eps.reduce = "sum"
    config.weighting.name = "sigma2"  # every loss has the weight of the error of eps, summed over dimensions
    config.net.unet.channels = 16
    config.train.batch = 32
    config.train.learning_rate = 3e-3
    config.schedule.constant.warmup = 0
    config.train.clip = 0.0
    config.train.ema.name = "power"
    config.train.keep = 8  # at least PARTS of sweep.py
    config.train.sample_every = 0
    config.sampler.batch = 500
    config.sampler.images = 500
    config.eval.at_end = False
    return config
