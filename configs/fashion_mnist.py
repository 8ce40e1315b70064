"""EDM on Fashion-MNIST with classes: garments that one can name after half an hour on two cores.

    scoregen train fashion_mnist --data=DIR
    scoregen sample runs/fashion_mnist --config.sampler.label=9

DIR is the folder with the four IDX files, gzipped or not; missing files are downloaded into it (31 MB).
Preconditioning, noise levels and weights are from Karras et al. 2022, and data_std is from these images. The network is
the U-Net of Ho et al. 2020 with 16, 32 and 64 channels at 28, 14 and 7 pixels and one block a level: 0.69 million
parameters, 0.41 GFLOP for an image in training. The loss is a sum over pixels, so the gradient's norm is about 100, and
the clip to 1 rescales every gradient (--config.train.clip=0 for none). The average of the parameters is the
power-function average of Karras et al. 2024, which suits any --config.train.steps.

Pictures have a column for each class: T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot.
The guidance scale is 1.5, so each of the 20 levels of DPM-Solver++ takes two network evaluations. With
--config.sampler.guidance=1.0 it takes one, and the garments look less clean.
"""

from scoregen.app.config import load


def get_config():
    config = load("default")
    config.data.name = "fashion_mnist"
    config.process.name = "edm"
    config.process.edm.data_std = 0.7
    config.target = "edm"
    config.loss.name = "x0"
    config.weighting.name = "edm"
    config.labels = True
    config.net.condition = "sigma"
    config.net.unit_input = True
    config.net.unet.channels = 16
    config.net.unet.multipliers = (1, 2, 4)
    config.net.unet.blocks = 1
    config.net.unet.attention = (7,)
    config.net.unet.dropout = 0.0
    config.net.unet.groups = 4
    config.train.steps = 2400
    config.train.batch = 64
    config.train.learning_rate = 2e-3
    config.schedule.constant.warmup = 100
    config.train.ema.name = "power"
    config.train.sample_every = 1000
    config.train.checkpoint_every = 1000
    config.sampler.step.name = "dpm"
    config.sampler.x0.name = "clip"
    config.sampler.guidance = 1.5
    config.sampler.n = 20
    config.sampler.batch = 100
    config.sampler.images = 100
    return config
