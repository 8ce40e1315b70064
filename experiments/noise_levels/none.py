"""NCSN v1 (Song & Ermon 2019) with the same U-Net: its levels, step size, number of steps and start.

The target is the score itself, and there is no average of the parameters. The network gets the index of the level. The
start U[0, 1) is none of the five techniques.
"""

from all_five import get_config as all_five


def get_config():
    config = all_five()
    config.process.ncsn.sigma_max = 1.0
    config.process.ncsn.levels = 10
    config.process.ncsn.start = "uniform"
    config.target = "score"
    config.net.condition = "index"
    config.train.ema.name = "none"
    config.sampler.process.name = "trained"
    config.sampler.corrector.langevin.step_size = 2e-5
    config.sampler.corrector.langevin.steps = 100
    config.sampler.denoise = False
    return config
