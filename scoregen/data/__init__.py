"""Data: one module per source, one stateless `batch` for all of them, and their preparation for the network.

A source is a function that returns a `Dataset`; a new source is a file here and a line in `SOURCES`.
"""

from scoregen.data.array import array
from scoregen.data.arrays import open_array
from scoregen.data.augment import NUMBERS, augment
from scoregen.data.cifar10 import cifar10
from scoregen.data.cifar100 import cifar100
from scoregen.data.dataset import Dataset, as_dataset, hold_out, in_turns
from scoregen.data.digits import digits
from scoregen.data.fashion_mnist import fashion_mnist
from scoregen.data.folder import folder
from scoregen.data.hugging_face import hf
from scoregen.data.idx import idx
from scoregen.data.moves import random_crop, random_flip, random_shift
from scoregen.data.points import checkerboard, mixture, moons, swissroll, two_modes
from scoregen.data.prepare import Prepare
from scoregen.data.scaling import SCALINGS, Auto, Centered, Identity, Unit
from scoregen.data.sources import is_slow, is_verified, reads_files, shape_of, source, suffixes
from scoregen.data.table import table
from scoregen.data.units import Units

SOURCES = {
    "mixture": mixture,
    "two_modes": two_modes,
    "moons": moons,
    "swissroll": swissroll,
    "checkerboard": checkerboard,
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": fashion_mnist,
    "idx": idx,
    "folder": folder,
    "array": array,
    "table": table,
    "hf": hf,
}

__all__ = [
    "NUMBERS",
    "SCALINGS",
    "SOURCES",
    "Auto",
    "Centered",
    "Dataset",
    "Identity",
    "Prepare",
    "Unit",
    "Units",
    "array",
    "as_dataset",
    "augment",
    "checkerboard",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "folder",
    "hf",
    "hold_out",
    "idx",
    "in_turns",
    "is_slow",
    "is_verified",
    "mixture",
    "moons",
    "open_array",
    "random_crop",
    "random_flip",
    "random_shift",
    "reads_files",
    "shape_of",
    "source",
    "suffixes",
    "swissroll",
    "table",
    "two_modes",
]
