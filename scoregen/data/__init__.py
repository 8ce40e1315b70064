"""Data: one module per source, one stateless `batch` for all of them, and their preparation for the network.

A source is a function that returns a `Dataset`; a new source is a file here and a line in `SOURCES`.
"""

from scoregen.data.augment import NUMBERS, augment
from scoregen.data.cifar10 import cifar10
from scoregen.data.dataset import Dataset, as_dataset, hold_out, in_turns, read_array
from scoregen.data.digits import digits
from scoregen.data.fashion_mnist import fashion_mnist
from scoregen.data.folder import folder
from scoregen.data.points import checkerboard, mixture, moons, swissroll, two_modes
from scoregen.data.prepare import Prepare
from scoregen.data.scaling import SCALINGS, Centered, Identity, Unit, random_flip
from scoregen.data.sources import is_slow, is_verified, reads_files, shape_of, source

SOURCES = {
    "mixture": mixture,
    "two_modes": two_modes,
    "moons": moons,
    "swissroll": swissroll,
    "checkerboard": checkerboard,
    "digits": digits,
    "cifar10": cifar10,
    "fashion_mnist": fashion_mnist,
    "folder": folder,
}

__all__ = [
    "NUMBERS",
    "SCALINGS",
    "SOURCES",
    "Centered",
    "Dataset",
    "Identity",
    "Prepare",
    "Unit",
    "as_dataset",
    "augment",
    "checkerboard",
    "cifar10",
    "digits",
    "fashion_mnist",
    "folder",
    "hold_out",
    "in_turns",
    "is_slow",
    "is_verified",
    "mixture",
    "moons",
    "random_flip",
    "read_array",
    "reads_files",
    "shape_of",
    "source",
    "swissroll",
    "two_modes",
]
