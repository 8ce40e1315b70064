"""DDPM in continuous time, on two modes in the plane with a known exact denoiser; the training is short."""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_toy")
    config.data.name = "two_modes"
    config.process.name = "vp"
    config.train.steps = 500
    config.sampler.n = 20
    config.sampler.images = 64
    config.eval.at_end = False
    return config
