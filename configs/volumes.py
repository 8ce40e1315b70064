"""EDM on volumes of yours, such as scans or simulations: an array `[N, D, H, W]` or `[N, D, H, W, C]` in a .npy file.

    scoregen train volumes --data=scans.npy
    scoregen sample runs/volumes --n=8

Each channel is standardised, and the samples are a .npy file of the same type. The network is a three-dimensional
U-Net, whose size depends on the size of the volumes and on the memory that --config.net.auto.memory allows: 0.5 GB. On
an accelerator, allow more. There is no evaluation at the end; `scoregen eval runs/volumes` computes the distances.
"""

from scoregen.app.config import load


def get_config():
    config = load("series")
    config.data.array.kind = "volumes"
    config.net.auto.memory = 0.5
    config.train.batch = 16
    config.sampler.batch = 16
    config.sampler.images = 16
    config.eval.at_end = False
    return config
