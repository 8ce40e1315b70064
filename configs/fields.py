"""EDM on images of numbers, such as maps, microscope images or simulations: an array `[N, H, W]` or `[N, H, W, C]`.

    scoregen train fields --data=maps.npy
    scoregen sample runs/fields --n=100

The array is of floats or integers, in a .npy or .npz file. Each channel is standardised, and the samples are a .npy
file of the same type. The network is a U-Net, whose size depends on the size of the images and on the memory that
--config.net.auto.memory allows: 0.5 GB, for two CPU cores. On an accelerator, allow more. Images of bytes and folders
of pictures have the preset `images`.
"""

from scoregen.app.config import load


def get_config():
    config = load("series")
    config.data.array.kind = "images"
    return config
