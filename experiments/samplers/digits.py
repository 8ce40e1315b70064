"""DDPM on 8x8 digits, with half of the channels of the preset."""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_digits")
    config.net.unet.channels = 16
    config.train.steps = 600
    config.train.sample_every = 0
    config.sampler.images = 64
    config.eval.samples = 500
    config.eval.at_end = False
    return config
