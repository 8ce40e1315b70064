"""Denoising score matching over noise levels from the level of `one_level` to twice the size of the data."""

from scoregen.app.config import load


def get_config():
    config = load("ncsn_toy")
    config.data.name = "two_modes"
    config.process.ncsn.data_std = 1.0
    config.train.steps = 4000
    config.eval.at_end = False
    return config
