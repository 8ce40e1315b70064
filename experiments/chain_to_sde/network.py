"""DDPM in the plane. `sweep.py` uses its denoiser at the levels of other chains, so it draws few samples itself."""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_toy")
    config.eval.at_end = False
    config.sampler.images = 64
    return config
