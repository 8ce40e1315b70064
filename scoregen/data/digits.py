"""Handwritten digits of 8 x 8 pixels, small enough to come with the package."""

import importlib.resources

import numpy as np

from scoregen.data.dataset import Dataset, hold_out


def digits(held_out: float = 0.2, seed: int = 0) -> Dataset:
    """1797 grey images of the digits 0..9: uint8 `[N, 8, 8, 1]`, background 0, labels the digit.

    A pixel counts the ink in a block of 4 x 4 dots, k = 0..16, and becomes the byte 255 k / 16, rounded. A
    seeded permutation holds out the fraction `held_out`, without stratification.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, its test part, licence CC BY 4.0
    (https://creativecommons.org/licenses/by/4.0/). `digits.npz` holds it as scikit-learn 1.9.1 gives it,
    values unchanged, and was made with

        d = sklearn.datasets.load_digits()
        np.savez_compressed("digits.npz", images=d.images.astype(np.uint8), labels=d.target.astype(np.uint8))

    Raises UsageError if held_out leaves no example to train on, or none to test on, or the seed is
    out of range.

    >>> data = digits()
    >>> data.train.shape, data.test.shape
    ((1438, 8, 8, 1), (359, 8, 8, 1))
    """
    images, labels = _load()
    levels = ((images.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)  # integers round alike anywhere
    return hold_out("digits", levels[..., None], held_out, seed, labels)


def _load() -> tuple[np.ndarray, np.ndarray]:
    path = importlib.resources.files("scoregen.data") / "digits.npz"
    with path.open("rb") as file, np.load(file) as arrays:
        return arrays["images"], arrays["labels"]
