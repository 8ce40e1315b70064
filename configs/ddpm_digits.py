"""DDPM on scikit-learn's 8x8 digits, which are embedded: legible digits in a few minutes without a GPU.

    scoregen train ddpm_digits
    scoregen eval runs/ddpm_digits --config.sampler.step.ancestral.eta=0.0

A small version of Ho et al. 2020: their chain and loss, and their U-Net with 32 channels, two levels and one block per
level. The sampler uses every twentieth of the thousand noise levels.
"""

from scoregen.app.config import load


def get_config():
    config = load("default")
    config.net.unet.channels = 32
    config.net.unet.multipliers = (1, 2)
    config.net.unet.blocks = 1
    config.net.unet.attention = (4,)
    config.net.unet.dropout = 0.0
    config.net.unet.groups = 8
    config.train.steps = 1200
    config.train.batch = 64
    config.train.learning_rate = 1e-3
    config.schedule.constant.warmup = 100
    config.train.ema.decay.rate = 0.995
    config.train.sample_every = 400
    config.train.checkpoint_every = 400
    config.sampler.x0.name = "clip"
    config.sampler.n = 50
    config.sampler.batch = 250
    return config
