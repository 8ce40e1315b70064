"""A small NCSN v2: digits in [0, 1], all five techniques, with the noise levels and step of scoregen.contrib.design.

The U-Net does not get the noise level, and its output is divided by sigma.
"""

import jax.numpy as jnp

from scoregen.app.config import load
from scoregen.contrib.design import design, largest_distance
from scoregen.contrib.design.preset import settings, with_settings
from scoregen.data import digits
from scoregen.denoiser import CONDITIONS

CONDITIONS["none"] = lambda process, t: jnp.zeros(jnp.shape(t))


def levels(sigma_max=None):
    train = digits().train / 255
    return design(train[0].size, sigma_max or largest_distance(train), sigma_min=0.01, steps=5)


def get_config(sigma_max=None):
    config = with_settings(load("ddpm_digits"), settings(levels(sigma_max), "unet"))
    config.scaling.name = "unit"
    config.scaling.unit.dequantize = False
    config.net.condition = "none"
    config.net.unet.channels = 16
    config.train.steps = 800
    config.train.sample_every = 0
    config.train.checkpoint_every = 800
    config.sampler.x0.name = "free"
    config.sampler.batch = 500
    config.eval.samples = 500
    # The same process as in training; it is named here so that cells can change its levels.
    config.sampler.process.name = "ncsn"
    config.sampler.process.ncsn.update(config.process.ncsn)
    return config
