"""Turns the examples of a data set into the network's input: scaled, flipped and augmented."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jax import Array

from scoregen.data.augment import augment
from scoregen.data.scaling import random_flip
from scoregen.errors import check_numbers
from scoregen.random import split_keys


@dataclasses.dataclass(frozen=True)
class Prepare:
    """`prepare(raw, keys) -> (x0, numbers)`: raw examples `[B, ...]` as the network's input.

    It runs on the device, inside the training step. Example i depends on keys[i] alone.

    Attributes:
        scaling: one of `SCALINGS`, or any function (raw, keys) -> x0.
        flip: whether images are mirrored left to right with probability 1/2. The network is not told which.
        augment: the probability of each change in `augment`. The network is given the numbers of these changes.

    Raises:
        ValueError: unless 0 <= augment <= 1.

    >>> import jax
    >>> from scoregen.data.scaling import Centered
    >>> prepare, keys = Prepare(Centered(), augment=0.5), jax.random.split(jax.random.key(0), 2)
    >>> raw = np.zeros((2, 4, 4, 1), np.uint8)
    >>> [a.shape for a in prepare(raw, keys)]
    [(2, 4, 4, 1), (2, 9)]
    >>> prepare(raw, keys, train=False)[1] is None
    True
    """

    scaling: Any
    flip: bool = False
    augment: float = 0.0

    def __post_init__(self):
        check_numbers(lambda share: 0 <= share <= 1, "a probability from 0 to 1", augment=self.augment)

    def __call__(self, raw: Array | np.ndarray, keys: Array, train: bool = True) -> tuple[Array, Array | None]:
        """Examples for the network.

        Args:
            raw: `[B, ...]`, as the data set has them.
            keys: one key an example, `[B]`.
            train: False for held-out examples, which are scaled only.

        Returns:
            x0 `[B, ...]`, and the numbers `[B, 9]` that say how each was augmented; None without augmentation.

        Raises:
            UsageError: if the scaling is for another type of data, and for a flip or an augmentation of anything but
                images `[B, H, W, C]`.
        """
        scale, flip, change = split_keys(keys, 3)
        x0 = self.scaling(raw, scale)
        if train and self.flip:
            x0 = random_flip(flip, x0)
        return augment(change, x0, self.augment) if train and self.augment else (x0, None)
