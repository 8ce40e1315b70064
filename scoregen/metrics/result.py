"""The value of a metric, with its error and how it was computed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

Z = 1.96  # standard errors of an interval of 95 %


@dataclasses.dataclass(frozen=True)
class Result:
    """One metric of a set of samples.

    Attributes:
        name: for reports, such as "FID" or "precision".
        value: the metric.
        std: the standard error of the value over draws of the samples, for the same reference; None if it is not known.
            The reference is held fixed, because models are compared with one reference, and because `floor_std` is of
            the same kind: the spread of a perfect sampler's value.
        how: how value and error were computed.
        better: "lower" or "higher".
        floor: the value of real data in place of the samples, at the same size; None if it was not computed.
        floor_std: the spread of the floor between draws of real data, None if it is not known; see `with_floor`.
        limits: the lowest and the highest possible value, for shares; None for others.

    >>> print(Result("KID", 0.042, 0.003, "jackknife over 500 samples", "lower", floor=0.001, floor_std=0.002))
    KID 0.042 +- 0.003, floor 0.001 +- 0.002
    """

    name: str
    value: float
    std: float | None
    how: str
    better: str
    floor: float | None = None
    floor_std: float | None = None
    limits: tuple[float, float] | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high) of 95 %, value -+ 1.96 std, cut at `limits`; or None.

        >>> Result("KID", 0.5, 0.1, "", "lower").interval
        (0.304, 0.696)
        >>> Result("recall", 1.0, 0.1, "", "higher", limits=(0.0, 1.0)).interval
        (0.804, 1.0)
        """
        if self.std is None:
            return None
        low, high = self.limits or (-math.inf, math.inf)
        return max(self.value - Z * self.std, low), min(self.value + Z * self.std, high)

    def __str__(self) -> str:
        error = "" if self.std is None else f" +- {self.std:.2g}"
        spread = "" if self.floor_std is None else f" +- {self.floor_std:.2g}"
        floor = "" if self.floor is None else f", floor {self.floor:.4g}{spread}"
        return f"{self.name} {self.value:.4g}{error}{floor}"


def jackknife_error(without: np.ndarray) -> float:
    """The standard error of a statistic by its N values without one of the examples [N] (Tukey 1958).

    >>> jackknife_error(np.array([4.0, 3.0, 2.0]) / 2)  # of the mean of 1, 2, 3: 1 / sqrt(3)
    0.57735
    """
    return float(np.sqrt((len(without) - 1) * np.var(without)))


def least_error(count: int) -> float:
    """The least standard error of a share of N samples: z / (N + z^2), z = 1.96.

    A share of 0 or 1 has no spread within the samples, though other samples may give another one. With this error, the
    interval of 95 % is that of Wilson (1927): z^2 / (N + z^2) wide.

    >>> Result("precision", 1.0, least_error(100), "", "higher", limits=(0.0, 1.0)).interval  # 100 / (100 + 1.96^2)
    (0.963005, 1.0)
    """
    return Z / (count + Z * Z)
