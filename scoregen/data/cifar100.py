"""CIFAR-100 in its binary version."""

from scoregen.data import cifar
from scoregen.data.dataset import Dataset
from scoregen.data.sources import source
from scoregen.errors import UsageError

PUBLISHED = cifar.Published(
    name="cifar100",
    title="CIFAR-100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train={"train.bin": 50_000},
    test={"test.bin": 10_000},
    classes=(20, 100),
    python=("cifar-100-python", "cifar-100-python.tar.gz", "meta"),
)


@source(shape=lambda size: (size, size, 3))
def cifar100(*, dir: str, size: int = 32, coarse: bool = False) -> Dataset:
    """CIFAR-100 (Krizhevsky 2009): uint8 `[50000, 32, 32, 3]` to train on, 10000 to test on, RGB.

    Labels are the classes 0..99, or with `coarse` the 20 groups of five classes. `size` is as in `cifar10`.

    `dir` is the folder that holds cifar-100-binary/, or that folder itself, or the folder of cifar-100-binary.tar.gz,
    or the path of this archive; "" is the cache, $SCOREGEN_CACHE/cifar100 or ~/.cache/scoregen/cifar100. If none of
    these exists, the archive (169 MB) is downloaded from its author's page into `dir`, and its md5 is verified.

    Raises UsageError in the cases of `cifar10`, and if `coarse` is no truth value.

    >>> cifar100(dir=__file__)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    scoregen.errors.UsageError: ...cifar100.py is not a whole .tar.gz archive (...): get ...
    """
    if not isinstance(coarse, bool):
        raise UsageError(f"cifar100: coarse={coarse!r}: True or False is needed")
    return cifar.read(PUBLISHED, dir, size, column=0 if coarse else 1)
