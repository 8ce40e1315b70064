"""DDPM on a ring of eight Gaussians, in the plane: under a minute on a laptop.

    scoregen train ddpm_toy
    scoregen train ddpm_toy --config.data.name=moons --config.loss.name=ssm

Ho et al. 2020 with a perceptron instead of the U-Net. The network gets the log-SNR, so it is also defined between the
noise levels, and `scoregen eval runs/ddpm_toy --config.sampler.process.name=ncsn
--config.sampler.process.ncsn.sigma_max=100.0 --config.sampler.process.ncsn.levels=200 --config.sampler.n=0` samples the
trained network like an NCSN.
"""

from scoregen.app.config import load


def get_config():
    config = load("default")
    config.data.name = "mixture"
    config.scaling.name = "identity"
    config.net.name = "mlp"
    config.net.condition = "logsnr"
    config.train.steps = 8000
    config.train.batch = 512
    config.train.learning_rate = 4e-3
    config.train.log_every = 100
    config.train.checkpoint_every = 4000
    config.sampler.n = 250
    config.sampler.batch = 4000
    config.sampler.images = 4000
    config.eval.samples = 4000
    return config
