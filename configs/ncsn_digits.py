"""NCSN on scikit-learn's 8x8 digits, which are embedded: denoising score matching and annealed Langevin dynamics.

    scoregen train ncsn_digits
    scoregen train ncsn_digits --config.loss.name=ssm

The network of `ddpm_digits` under Song & Ermon's levels: sigma_max is about the largest distance between two digits
(technique 1 of Song & Ermon 2020) and the network gives -sigma times the score (technique 3).
"""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_digits")
    config.process.name = "ncsn"
    config.process.ncsn.sigma_min = 0.05
    config.process.ncsn.sigma_max = 10.0
    config.process.ncsn.levels = 60
    config.loss.name = "dsm"
    config.net.condition = "sigma"
    config.sampler.step.name = "hold"
    config.sampler.corrector.name = "langevin"
    config.sampler.corrector.langevin.step_size = 0.15 * 0.05**2
    config.sampler.corrector.langevin.steps = 4
    config.sampler.n = 0
    return config
