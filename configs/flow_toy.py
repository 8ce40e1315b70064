"""Flow matching on a ring of eight Gaussians, in the plane: under a minute on a laptop.

    scoregen train flow_toy
    scoregen train flow_toy --config.process.name=vp --config.times.name=logitnormal

Lipman et al. 2023 and Liu et al. 2023: the straight path from data to noise, and a network that gives its velocity. The
sampler is DDIM, which is Euler's method on this path.
"""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_toy")
    config.process.name = "flow"
    config.target = "velocity"
    config.loss.name = "flow"
    config.sampler.step.ancestral.eta = 0.0
    config.sampler.n = 100
    return config
