"""The units of a data set: from examples as they came in to the numbers that are trained on, and back."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from scoregen.errors import check_numbers


@dataclasses.dataclass(frozen=True)
class Units:
    """Standardises examples of a source, and converts samples back to the type and shape of these examples.

        z = (x - mean) / std,    x = mean + std z        one mean and one std for each channel, computed in float64

    A channel is an index of the last axis of z: a column of a table, a channel of an image. For a channel with std = 0,
    whose examples are all equal, z = x - mean and x = mean.

    Attributes:
        dtype: the type of x, such as "float64" or "uint16". For integers, x is rounded and clipped to their range.
        shape: the shape of one example x.
        channel: the axis of the channels in `shape`: -1 for the last, 0 for the first, None if x has no such axis. z
            has it as its last axis, with length 1 if x has none.
        mean, std: for each channel; () if x is not standardised.

    Raises:
        ValueError: for a std below 0, or a mean or std that is not finite or does not fit the shape.

    >>> units = Units("int16", (2, 3), channel=0, mean=(10.0, 0.0), std=(2.0, 1.0))
    >>> z = units.encode(np.array([[[10, 12, 8], [0, 0, 5]]], np.int16))
    >>> z.tolist()  # channels last
    [[[0.0, 0.0], [1.0, 0.0], [-1.0, 5.0]]]
    >>> units.decode(z + 0.01).tolist()
    [[[10, 12, 8], [0, 0, 5]]]
    """

    dtype: str
    shape: tuple[int, ...]
    channel: int | None = -1
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            for value in getattr(self, name):
                check_numbers(math.isfinite, "a finite number", **{name: value})
        if min(self.std, default=0.0) < 0:
            raise ValueError(f"std={self.std}: no number below 0 is a standard deviation")
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, self.example[-1]):
            raise ValueError(
                f"mean={self.mean}, std={self.std}: one number for each of the {self.example[-1]} channels is needed"
            )

    @property
    def example(self) -> tuple[int, ...]:
        """The shape of one z."""
        if self.channel is None:
            return (*self.shape, 1)
        return self.shape if self.channel == -1 else (*self.shape[1:], self.shape[0])

    @property
    def example_dtype(self) -> np.dtype:
        """The type of z: images of bytes stay bytes if they are not standardised, everything else becomes float32."""
        is_image = self.dtype == "uint8" and not self.mean and len(self.example) == 3
        return np.dtype("uint8" if is_image else "float32")

    def encode(self, x: Any) -> np.ndarray:
        """Examples `[N, *shape]` as z `[N, *example]`."""
        x = self.channels_last(np.asarray(x))
        if not self.mean:
            return np.ascontiguousarray(x, self.example_dtype)
        std = np.asarray(self.std)
        return ((x - np.asarray(self.mean)) / np.where(std > 0, std, 1.0)).astype(np.float32)

    def channels_last(self, x: np.ndarray) -> np.ndarray:
        """Examples `[N, *shape]` as `[N, *example]`, with their own values."""
        if self.channel is None:
            return x[..., None]
        return np.moveaxis(x, 1, -1) if self.channel == 0 else x

    def values(self, z: Any) -> np.ndarray:
        """x = mean + std z in float64, without rounding, with the channels last: `[N, *example]`."""
        z = np.asarray(z, np.float64)
        return np.asarray(self.mean) + np.asarray(self.std) * z if self.mean else z

    def decode(self, z: Any) -> np.ndarray:
        """z `[N, *example]` as examples `[N, *shape]` of type `dtype`."""
        kind = np.dtype(self.dtype)
        x = np.asarray(z) if not self.mean else self.values(z)
        if kind.kind == "b":
            x = x > 0.5
        elif kind.kind in "iu":
            x = _rounded(x, kind)
        elif kind.itemsize < 8:
            most = np.finfo(kind).max
            x = np.clip(x, -most, most)
        x = x.astype(kind)
        if self.channel is None:
            return x[..., 0]
        return np.moveaxis(x, -1, 1) if self.channel == 0 else x

    @property
    def log_scale(self) -> float:
        """log |dx/dz| of one example, in nats: p(x) = p(z) exp(-log_scale). Channels with std = 0 count as 0."""
        logs = [math.log(std) for std in self.std if std > 0]
        return sum(logs) * math.prod(self.example[:-1])


@dataclasses.dataclass(frozen=True)
class Form:
    """The kind of file that the data came in, and that samples are written to.

    Attributes:
        suffix: ".npy", ".csv", ".tsv" or ".parquet"; ".png" for a folder of pictures.
        dtypes: of a table, the type of each column that is learned.
        context, context_dtypes: of a table, the columns with the context, and their types.
        label: of a table, the column with the class.
        headed: whether the first line of a table has the names of its columns.
        order: of a table, the learned columns, the context and the label in the order of the file.
    """

    suffix: str = ".npy"
    dtypes: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    context_dtypes: tuple[str, ...] = ()
    label: str = ""
    headed: bool = True
    order: tuple[str, ...] = ()


def _rounded(x: np.ndarray, kind: np.dtype) -> np.ndarray:
    """The nearest integers within the range of their type, as that type."""
    if x.dtype.kind in "iub":
        return x.astype(kind)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    # float(2^63 - 1) is 2^63, which is out of range: clip to the largest float below it.
    top = float(high) if int(float(high)) <= high else math.nextafter(float(high), 0.0)
    return np.clip(np.rint(x), float(low), top).astype(kind)
