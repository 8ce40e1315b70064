"""Turns the examples of a data set into the network's input: scaled, moved at random and augmented."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jax import Array

from scoregen.data.augment import augment
from scoregen.data.moves import random_crop, random_flip, random_shift
from scoregen.errors import Refusal, UsageError, check_count, check_numbers
from scoregen.random import fold_keys, split_keys


@dataclasses.dataclass(frozen=True)
class Prepare:
    """`prepare(raw, keys) -> (x0, numbers)`: raw examples `[B, ...]` as the network's input.

    It runs on the device, inside the training step. Example i depends on keys[i] alone.

    Attributes:
        scaling: one of `SCALINGS`, or any function (raw, keys) -> x0.
        flip: whether images are mirrored left to right with probability 1/2. The network is not told which.
        augment: the probability of each change in `augment`. The network is given the numbers of these changes.
        crop: how many pixels images are shifted at most, in both directions; see `random_crop`. The network is not
            told.
        shift: whether series `[B, L, C]` are shifted around their end; see `random_shift`. The network is not told.

    Examples are cropped or shifted first, then flipped, then augmented. Each change has draws of its own, so turning
    one on or off does not change those of the others.

    Raises:
        TypeError, ValueError: unless 0 <= augment <= 1, and crop is an integer of at least 0.

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
    crop: int = 0
    shift: bool = False

    def __post_init__(self):
        check_numbers(lambda share: 0 <= share <= 1, "a probability from 0 to 1", augment=self.augment)
        check_count("crop", self.crop, 0)

    def refuse(self, shape: tuple[int, ...]) -> list[Refusal]:
        """Why examples of this shape, without the batch, cannot be changed so; empty if they can.

        >>> from scoregen.data.scaling import Identity
        >>> for refusal in Prepare(Identity(), flip=True, crop=2).refuse((64, 2)):
        ...     print(refusal)
        flip=True: it is for images [H, W, C], not for examples of shape [64, 2]: take data.flip=False
        crop=2: it is for images [H, W, C], not for examples of shape [64, 2]: take data.crop=0
        """
        options = {"flip": (3, "images [H, W, C]"), "crop": (3, "images [H, W, C]"), "augment": (3, "images [H, W, C]")}
        options |= {"shift": (2, "series [L, C]")}
        found = []
        for name, (rank, kind) in options.items():
            value = getattr(self, name)
            if value and len(shape) != rank:
                reason = f"{name}={value}: it is for {kind}, not for examples of shape {list(shape)}"
                found.append(Refusal(reason, (f"data.{name}={type(value)(0)}",)))
        if len(shape) == 3 and self.crop >= min(shape[:2]):
            reason = f"crop={self.crop}: images of {shape[0]}x{shape[1]} cannot be reflected by so many pixels"
            found.append(Refusal(reason, (f"data.crop={min(shape[:2]) - 1}",)))
        return found

    def __call__(self, raw: Array | np.ndarray, keys: Array, train: bool = True) -> tuple[Array, Array | None]:
        """Examples for the network.

        Args:
            raw: `[B, ...]`, as the data set has them.
            keys: one key an example, `[B]`.
            train: False for held-out examples, which are scaled only.

        Returns:
            x0 `[B, ...]`, and the numbers `[B, 9]` that say how each was augmented; None without augmentation.

        Raises:
            UsageError: if the scaling is for another type of data, and for changes that do not exist for examples of
                this shape; see `refuse`.
        """
        if train and (refused := self.refuse(raw.shape[1:])):
            raise UsageError(*(f"{each.reason}: say {each.fixes[0].removeprefix('data.')}" for each in refused))
        scale, flip, change = split_keys(keys, 3)
        crop, shift = split_keys(fold_keys(keys, 3), 2)  # the three keys above are those of runs without a crop
        x0 = self.scaling(raw, scale)
        if train and self.crop:
            x0 = random_crop(crop, x0, self.crop)
        if train and self.shift:
            x0 = random_shift(shift, x0)
        if train and self.flip:
            x0 = random_flip(flip, x0)
        return augment(change, x0, self.augment) if train and self.augment else (x0, None)
