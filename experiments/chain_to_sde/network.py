"""DDPM in the plane, whose denoiser is asked at the levels of other chains; its own samples are of no account here."""

from scoregen.config import load


def get_config():
    config = load("ddpm_toy")
    config.eval.at_end = False
    config.sampler.images = 64
    return config
