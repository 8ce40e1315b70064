"""EDM on series of yours, such as audio, ECGs or sensors: an array `[N, L]` or `[N, L, C]` in a .npy or .npz file.

    scoregen train series --data=ecg.npy
    scoregen sample runs/series --n=100

Each channel is standardised, and the samples are a .npy file of the same type. The network is a one-dimensional U-Net,
whose size depends on the length of the series and on the memory that --config.net.auto.memory allows: 0.5 GB, for two
CPU cores. On an accelerator, allow more.
"""

from scoregen.app.config import load


def get_config():
    config = load("points")
    config.data.name = "array"
    config.data.array.kind = "series"
    config.net.auto.memory = 0.5
    config.train.steps = 4000
    config.train.batch = 64
    config.train.learning_rate = 5e-4
    config.train.checkpoint_every = 1000
    config.sampler.n = 20
    config.sampler.batch = 64
    config.sampler.images = 64
    return config
