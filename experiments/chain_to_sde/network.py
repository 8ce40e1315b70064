"""DDPM in the plane, whose denoiser is used at the levels of other chains; few of its own samples are drawn."""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_toy")
    config.eval.at_end = False
    config.sampler.images = 64
    return config
