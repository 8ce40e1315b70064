"""The value of a metric, with its error and how it was computed."""

from __future__ import annotations

import dataclasses

import numpy as np


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
        floor_std: the spread of the floor between draws of real data; see `with_floor`.

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

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high) of 95 %, value -+ 1.96 std, or None.

        >>> Result("KID", 0.5, 0.1, "", "lower").interval
        (0.304, 0.696)
        """
        return None if self.std is None else (self.value - 1.96 * self.std, self.value + 1.96 * self.std)

    def __str__(self) -> str:
        error = "" if self.std is None else f" +- {self.std:.2g}"
        floor = "" if self.floor is None else f", floor {self.floor:.4g} +- {self.floor_std:.2g}"
        return f"{self.name} {self.value:.4g}{error}{floor}"


def jackknife_error(without: np.ndarray) -> float:
    """The standard error of a statistic by its N values without one of the examples [N] (Tukey 1958).

    >>> jackknife_error(np.array([4.0, 3.0, 2.0]) / 2)  # of the mean of 1, 2, 3: 1 / sqrt(3)
    0.57735
    """
    return float(np.sqrt((len(without) - 1) * np.var(without)))
