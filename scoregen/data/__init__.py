"""Data: one module a source, one stateless `batch` over all of them, and the scalings for the network."""

from scoregen.data.augment import NUMBERS, augment
from scoregen.data.cifar10 import cifar10
from scoregen.data.dataset import Dataset, hold_out, in_turns, read_array
from scoregen.data.digits import digits
from scoregen.data.fashion_mnist import fashion_mnist
from scoregen.data.points import checkerboard, mixture, moons, swissroll, two_modes
from scoregen.data.scaling import SCALINGS, Centered, Identity, Unit, random_flip

SOURCES = {
    "mixture": mixture,
    "two_modes": two_modes,
    "moons": moons,
    "swissroll": swissroll,
    "checkerboard": checkerboard,
    "digits": digits,
    "cifar10": cifar10,
    "fashion_mnist": fashion_mnist,
}

# The shape of an example of those that lie on disk, which one need not have for this.
SHAPES = {"cifar10": lambda size: (size, size, 3), "fashion_mnist": lambda size: (size, size, 1)}

__all__ = [
    "NUMBERS",
    "SCALINGS",
    "SHAPES",
    "SOURCES",
    "Centered",
    "Dataset",
    "Identity",
    "Unit",
    "augment",
    "checkerboard",
    "cifar10",
    "digits",
    "fashion_mnist",
    "hold_out",
    "in_turns",
    "mixture",
    "moons",
    "random_flip",
    "read_array",
    "swissroll",
    "two_modes",
]
