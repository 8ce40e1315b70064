"""NCSN on a ring of eight Gaussians, in the plane: under a minute on a laptop.

    scoregen train ncsn_toy
    scoregen train ncsn_toy --config.loss.name=ssm --config.data.name=checkerboard

Song & Ermon 2019 and 2020: denoising score matching at all levels at once, then annealed Langevin dynamics. The network
gives -sigma times the score (technique 3 of the second paper) and sigma_max is above the largest distance in the data
(technique 1).
"""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_toy")
    config.process.name = "ncsn"
    config.process.ncsn.sigma_min = 0.02
    config.process.ncsn.sigma_max = 6.0
    config.process.ncsn.levels = 50
    config.loss.name = "dsm"
    config.sampler.step.name = "hold"
    config.sampler.corrector.name = "langevin"
    config.sampler.corrector.langevin.step_size = 0.1 * 0.02**2
    config.sampler.corrector.langevin.steps = 10
    config.sampler.n = 0
    return config
