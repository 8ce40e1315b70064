"""Fashion-MNIST in its IDX files, from a folder or from the network."""

import hashlib
from pathlib import Path

import numpy as np

from scoregen import cache
from scoregen.data.dataset import Dataset
from scoregen.data.download import download
from scoregen.data.idx import decode, unpacked
from scoregen.data.sources import source
from scoregen.errors import UsageError

URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist puts it
# The md5 of the .gz that is downloaded; of its content, since other copies are compressed differently; and its bytes.
FILES = {
    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a", 47_040_016),
    "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9", 60_008),
    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a", 7_840_016),
    "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965", 10_008),
}
SIDE = 28


@source(shape=lambda size: (size, size, 1), verified=True)
def fashion_mnist(*, dir: str, size: int = 28) -> Dataset:
    """Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): grey uint8 `[60000, 28, 28, 1]` to train on, 10000 to test on.

    Background 0. Labels 0..9: T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot, all
    equally often. With `size=32` two lines of background are put around each image, for networks that halve
    its side more than twice.

    `dir` is the folder that holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte, each plain or compressed as .gz. "" is the cache, $SCOREGEN_CACHE/fashion_mnist or
    ~/.cache/scoregen/fashion_mnist, or, if that is empty, the folder of Debian's package dataset-fashion-mnist. A
    missing file is downloaded from its authors' repository (31 MB in all) into `dir`. The content of each file is
    compared with the md5 of the published set, since the files of MNIST have the same names.

    Raises UsageError for another size, a file that is cut short, damaged or of another set, or a download without a
    network.

    >>> fashion_mnist(dir=__file__)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    scoregen.errors.UsageError: ...fashion_mnist.py is no folder: give the folder that holds train-images-idx3-ubyte...
    """
    if size not in (SIDE, 32):
        raise UsageError(f"fashion_mnist: size={size}: 28 is needed, or 32 for a border of two pixels")
    folder = Path(dir).expanduser() if dir else _usual()
    if folder.is_file():
        raise UsageError(f"{folder} is no folder: give the folder that holds {next(iter(FILES))} and the other files")
    border = ((0, 0), *2 * [2 * ((size - SIDE) // 2,)], (0, 0))
    train, test = (np.pad(_images(folder, split), border) for split in ("train", "t10k"))
    return Dataset("fashion_mnist", train, test, _labels(folder, "train"), _labels(folder, "t10k"))


def _usual() -> Path:
    kept = cache.folder("fashion_mnist")
    return DEBIAN if DEBIAN.is_dir() and not (kept.is_dir() and any(kept.iterdir())) else kept


def _images(folder: Path, split: str) -> np.ndarray:
    """uint8 `[N, 28, 28, 1]`."""
    return _read(folder, f"{split}-images-idx3-ubyte")[..., None]


def _labels(folder: Path, split: str) -> np.ndarray:
    """int32 `[N]`."""
    return _read(folder, f"{split}-labels-idx1-ubyte").astype(np.int32)


def _read(folder: Path, name: str) -> np.ndarray:
    """The array in the file of this name, compressed or not, downloaded if it is not there."""
    packed, md5, size = FILES[name]
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    path = path or download("Fashion-MNIST", f"{URL}/{name}.gz", packed, folder)
    again = f"get {URL}/{name}.gz"
    with unpacked(path, f"{again} again") as file:
        raw = file.read(size + 1)  # a file of another set may unpack to any length
    if (found := hashlib.md5(raw, usedforsecurity=False).hexdigest()) != md5:
        more = "at least " if len(raw) > size else ""
        raise UsageError(
            f"{path} holds {more}{len(raw)} bytes that are not Fashion-MNIST's (md5 {found}, not {md5}): it is damaged "
            f"or of another set, as MNIST's files have the same names; {again}"
        )
    return decode(raw, str(path))
