"""CIFAR-10 in its binary version."""

from scoregen.data import cifar
from scoregen.data.dataset import Dataset
from scoregen.data.sources import source

PUBLISHED = cifar.Published(
    name="cifar10",
    title="CIFAR-10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train={f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
    test={"test_batch.bin": 10_000},
    classes=(10,),
    python=("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1"),
)


@source(shape=lambda size: (size, size, 3))
def cifar10(*, dir: str, size: int = 32) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): uint8 `[50000, 32, 32, 3]` to train on, 10000 to test on, RGB, labels 0..9.

    With a smaller `size` each pixel is the mean of a square of pixels, rounded.

    `dir` is the folder that holds cifar-10-batches-bin/, or that folder itself, or the folder of
    cifar-10-binary.tar.gz, or the path of this archive; "" is the cache, $SCOREGEN_CACHE/cifar10 or
    ~/.cache/scoregen/cifar10. If none of these exists, the archive (170 MB) is downloaded from its author's
    page into `dir`, and its md5 is verified. The archive is read in memory and never unpacked. The python version is
    not read, because it is made of pickles, and opening a pickle runs any code that it holds.

    Raises UsageError for another size, a file that is missing, unreadable, cut short or has a label above 9, an archive
    that is damaged or holds much else, a damaged download, the python version, or a download without a network.

    >>> cifar10(dir=__file__)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    scoregen.errors.UsageError: ...cifar10.py is not a whole .tar.gz archive (...): get ...
    """
    return cifar.read(PUBLISHED, dir, size)
