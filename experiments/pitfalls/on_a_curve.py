"""Score matching at one level with nearly no noise, for data on two half circles."""

from scoregen.app.config import load


def get_config():
    config = load("ncsn_toy")
    config.data.name = "moons"
    config.process.name = "sigmas"
    config.process.sigmas.values = (0.003, 0.003003)
    config.process.sigmas.data_std = 1.0
    config.target = "score"
    config.loss.name = "ism"
    config.sampler.images = 64
    config.sampler.corrector.langevin.step_size = 0.1 * 0.003**2
    config.eval.at_end = False
    config.train.steps = 4000
    config.train.learning_rate = 2e-3
    return config
