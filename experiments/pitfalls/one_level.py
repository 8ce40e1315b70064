"""Like `all_levels`, but with one level: nearly clean data, with noise of a tenth of the width of a mode."""

from scoregen.app.config import load


def get_config():
    config = load("ncsn_toy")
    config.data.name = "two_modes"
    config.process.name = "sigmas"
    config.process.sigmas.values = (0.02, 0.02002)  # a chain needs two levels; these are nearly equal
    config.process.sigmas.data_std = 1.0
    config.sampler.corrector.langevin.step_size = 0.02**2
    config.sampler.corrector.langevin.steps = 250
    config.train.steps = 4000
    config.eval.at_end = False
    return config
