"""EDM on a ring of eight Gaussians, in the plane: under a minute on a laptop.

    scoregen train edm_toy

Karras et al. 2022: the time is sigma, with a log-normal distribution in training. The network's input and output have
unit variance (--config.target=edm, --config.net.unit_input), and the loss is the error of this output
(--config.weighting.name=edm). data_std is the standard deviation of the data. The sampler is DDIM; the sampler of the
paper is --config.sampler.step.name=edm.
"""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_toy")
    config.process.name = "edm"
    config.process.edm.data_std = 1.0
    config.target = "edm"
    config.loss.name = "x0"
    config.weighting.name = "edm"
    config.net.condition = "sigma"
    config.net.unit_input = True
    config.sampler.step.ancestral.eta = 0.0
    config.sampler.n = 100
    return config
