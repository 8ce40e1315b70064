"""Scalings: from the numbers of a data set to the network's input, and back.

A scaling is called as scaling(x, keys) with one typed key per example, so that the noise of an example does not depend
on its batch. `low` and `high` bound the scaled values, and `width` is the width of one byte in them. `bins` is (low,
high, width) if each byte has one value, and None if the values are continuous. `to_bytes` is the inverse, exact for
bytes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from scoregen.errors import UsageError

if TYPE_CHECKING:
    from scoregen.data.dataset import Dataset

Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Centered:
    """x = X / 127.5 - 1, from bytes X to float32 in [-1, 1] (Ho et al. 2020, section 3.3). No randomness.

    Raises UsageError for anything but uint8.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> [float(x) for x in Centered()(np.array([[0], [255]], np.uint8), keys)[:, 0]]
    [-1.0, 1.0]
    """

    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 1.0
    width: ClassVar[float] = 2 / 255
    bins: ClassVar[tuple[float, float, float] | None] = (-1.0, 1.0, 2 / 255)

    def __call__(self, x: Array, key: jax.Array) -> jax.Array:
        del key
        # not X / 127.5 - 1: the compiler turns this division into a product, and 255 gives a value above 1
        return (2 * _floats(self, x) - 255) / 255

    def to_bytes(self, x: Array) -> np.ndarray:
        """X = 127.5 (x + 1), clipped to 0..255, then rounded to the nearest byte: uint8, in the shape of x.

        A Frechet distance depends on this choice: truncating instead shifts every image half a level darker.
        Raises UsageError if a value is NaN or infinite, which a clip would hide.

        >>> Centered().to_bytes(np.array([-2.0, 0.01, 1.0], np.float32)).tolist()
        [0, 129, 255]
        """
        return _round(127.5 * (_host(x) + 1))


@dataclasses.dataclass(frozen=True)
class Unit:
    """x = (X + U) / 256 in [0, 1), float32, from bytes X with U ~ U[0, 1) per pixel; without U, X / 255.

    The first is "(255 X' + U) / 256" of NCSN's code (Song and Ermon 2019), where X' = X / 255. U is drawn
    from the multiples of 2^-16, so that X + U is exact in float32 and an example never rounds up to the next
    byte.

    Raises UsageError for anything but uint8.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> [float(x) for x in Unit(dequantize=False)(np.array([[0], [255]], np.uint8), keys)[:, 0]]
    [0.0, 1.0]
    """

    dequantize: bool = True
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    @property
    def width(self) -> float:
        return 1 / 256 if self.dequantize else 1 / 255

    @property
    def bins(self) -> tuple[float, float, float] | None:
        return None if self.dequantize else (0.0, 1.0, self.width)

    def __call__(self, x: Array, key: jax.Array) -> jax.Array:
        levels = _floats(self, x)
        if not self.dequantize:
            return levels / 255
        bits = jax.vmap(lambda k: jax.random.bits(k, x.shape[1:], jnp.uint16))(key)
        return (levels + bits.astype(jnp.float32) / 65536) / 256

    def to_bytes(self, x: Array) -> np.ndarray:
        """X = 256 x - 1/2, or 255 x without U, clipped to 0..255, then rounded to the nearest byte.

        256 x - 1/2 because byte X stands for the interval [X, X + 1) / 256, whose centre is (X + 1/2) / 256;
        so bytes come back exactly, whatever U was. A Frechet distance depends on this choice. Gives uint8
        NumPy, in the shape of x. Raises UsageError if a value is NaN or infinite, which a clip would hide.

        >>> Unit().to_bytes(np.array([0.0, 0.5, 2.0], np.float32)).tolist()
        [0, 128, 255]
        """
        values = _host(x)
        # floor(z) rounds z - 1/2; a tie, at a whole z (the lower end of a byte), goes up
        return _round(np.floor(256 * values) if self.dequantize else 255 * values)


@dataclasses.dataclass(frozen=True)
class Identity:
    """x as it is, for floating-point data: unbounded, in the dtype of x.

    Raises UsageError for anything but floating-point numbers.

    >>> Identity()(np.ones((1, 2), np.float32), jax.random.split(jax.random.key(0), 1)).tolist()
    [[1.0, 1.0]]
    """

    low: ClassVar[float] = float("-inf")
    high: ClassVar[float] = float("inf")
    width: ClassVar[float] = 1.0
    bins: ClassVar[tuple[float, float, float] | None] = None

    def __call__(self, x: Array, key: jax.Array) -> jax.Array:
        del key
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise UsageError(
                f"the scaling 'identity' is for floating-point data, not {x.dtype}: use 'centered' or 'unit' for images"
            )
        return jnp.asarray(x)

    def to_bytes(self, x: Array) -> np.ndarray:
        """Raises UsageError: floating-point data have no bytes."""
        raise UsageError("floating-point data cannot be written as bytes: save the array, or draw points as a scatter")


@dataclasses.dataclass(frozen=True)
class Auto:
    """`Centered` for images of bytes, `Identity` for other data. Its range is that of `Centered` until `of` chooses."""

    low: ClassVar[float] = Centered.low
    high: ClassVar[float] = Centered.high
    width: ClassVar[float] = Centered.width
    bins: ClassVar[tuple[float, float, float] | None] = Centered.bins

    def of(self, data: Dataset) -> Centered | Identity:
        """The scaling for a data set."""
        return Centered() if data.is_image else Identity()

    def __call__(self, x: Array, key: jax.Array) -> jax.Array:
        return (Centered() if x.dtype == jnp.uint8 else Identity())(x, key)

    def to_bytes(self, x: Array) -> np.ndarray:
        """See `Centered.to_bytes`."""
        return Centered().to_bytes(x)


SCALINGS = {"centered": Centered, "unit": Unit, "identity": Identity, "auto": Auto}


def _floats(scaling: object, x: Array) -> jax.Array:
    if x.dtype != jnp.uint8:
        raise UsageError(
            f"the scaling {type(scaling).__name__.lower()!r} is for uint8 images, not {x.dtype}: "
            "use 'identity' for floating-point data"
        )
    return jnp.asarray(x).astype(jnp.float32)


def _host(x: Array) -> np.ndarray:
    values = np.asarray(x, np.float32)
    if bad := int(values.size - np.isfinite(values).sum()):
        raise UsageError(
            f"{bad} of {values.size} values are NaN or infinite, so they have no bytes: the sampler or the training "
            "diverged, try smaller steps"
        )
    return values


def _round(levels: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
