"""What metrics are computed from: features with their logits, or their mean and covariance, and files of both."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scoregen import files
from scoregen.errors import UsageError, check_path
from scoregen.metrics.pairs import ROWS, as_rows

PUBLISHED = "Inception"  # the network of the published FID, with its own weights
# float32 rounds a covariance [F, F] by 6e-8 of its largest value. An eigenvalue may change by F times that, 1e-4 of
# the largest for F = 2048; usually it is far less. In float64, negative eigenvalues are 1e-12 of it at most.
NEGATIVE = 1e-4
# In Inception's features these metrics have names of their own.
NAMES = {"Frechet distance": "FID", "Frechet distance, extrapolated": "FID-infinity", "kernel distance": "KID"}


@dataclasses.dataclass(frozen=True)
class Origin:
    """How features were made. Values are comparable only if it is the same on both sides; "" is not known.

    Attributes:
        features: the name of the network; "Inception" only with the weights of the published FID.
        key: a hash of its parameters.
        resize: how the pictures were resized.
        rounding: how floats became bytes.
        pictures: height x width of the pictures before they were resized, such as "32x32".

    >>> Origin(rounding="round").check_same(Origin(features="Inception", rounding="truncate"))
    Traceback (most recent call last):
    scoregen.errors.UsageError: rounding: 'round' on one side and 'truncate' on the other: ...
    """

    features: str = ""
    key: str = ""
    resize: str = ""
    rounding: str = ""
    pictures: str = ""

    def titled(self, metric: str) -> str:
        """The name of a metric, with the network in it; only the published Inception's are called FID and KID.

        >>> Origin("Inception").titled("Frechet distance"), Origin("EfficientNet-Lite0").titled("Frechet distance")
        ('FID', 'Frechet distance, EfficientNet-Lite0')
        """
        if self.features == PUBLISHED:
            return NAMES.get(metric, metric)
        return f"{metric}, {self.features}" if self.features else metric

    def check_same(self, other: Origin) -> None:
        """Raises UsageError, with a line for each field that is known on both sides and differs."""
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in _ORIGIN)
        wrong = [
            f"{name}: {mine!r} on one side and {theirs!r} on the other: compute both in the same way"
            for name, mine, theirs in pairs
            if mine and theirs and mine != theirs
        ]
        if wrong:
            raise UsageError(*wrong)

    def merged(self, other: Origin) -> Origin:
        """What is known on either side. Raises UsageError as `check_same` does.

        >>> Origin("Inception").merged(Origin(pictures="32x32"))
        Origin(features='Inception', key='', resize='', rounding='', pictures='32x32')
        """
        self.check_same(other)
        return Origin(*(getattr(self, field.name) or getattr(other, field.name) for field in _ORIGIN))


_ORIGIN = dataclasses.fields(Origin)


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of features.

    Attributes:
        count: N, the number of rows that they were computed from; None if it is not known.
        mean: float64 [F].
        cov: float64 [F, F], with the divisor N - 1.
        origin: how the features were made.

    Raises:
        ValueError: if the shapes do not fit, a value is not finite, the covariance is not symmetric (up to 1e-6 of its
            largest value) or a variance is negative.

    >>> Statistics.of([[0.0], [2.0]])
    Statistics(count=2, mean=array([1.]), cov=array([[2.]]), origin=Origin(features='', ...))
    """

    count: int | None
    mean: np.ndarray
    cov: np.ndarray
    origin: Origin = Origin()

    def __post_init__(self) -> None:
        mean, cov = (np.asarray(a) for a in (self.mean, self.cov))
        if mean.ndim != 1 or not len(mean) or cov.shape != 2 * mean.shape:
            raise ValueError(f"a mean [F] and a covariance [F, F] are needed, not {mean.shape} and {cov.shape}")
        if mean.dtype.kind not in "iuf" or cov.dtype.kind not in "iuf":
            raise ValueError(f"mean and covariance are real numbers, not {mean.dtype} and {cov.dtype}")
        mean, cov = mean.astype(np.float64), cov.astype(np.float64)
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise ValueError("a mean or a covariance is not finite")
        if np.abs(cov - cov.T).max() > 1e-6 * np.abs(cov).max():
            raise ValueError("the covariance is not symmetric")
        if (np.diagonal(cov) < 0).any():
            raise ValueError("the covariance has negative variances")
        if self.count is not None and self.count < 2:
            raise ValueError(f"a covariance needs at least two rows of features, not {self.count}")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "cov", (cov + cov.T) / 2)

    @classmethod
    def of(cls, features: ArrayLike | Iterator[np.ndarray], origin: Origin = Origin()) -> Statistics:
        """Of features [N, F], or of an iterator of batches of them; see `Moments`.

        Raises:
            ValueError: if the shape is not [N, F], N < 2, or a value is not finite.
        """
        moments = Moments()
        for batch in features if isinstance(features, Iterator) else (features,):
            moments.add(batch)
        return moments.statistics(origin)

    @functools.cached_property
    def root(self) -> np.ndarray:
        """The symmetric root of the covariance [F, F]; eigenvalues that rounding made negative count as 0.

        Raises:
            ValueError: if an eigenvalue is negative beyond rounding: below -1e-4 of the largest.

        >>> Statistics(None, np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]])).root
        Traceback (most recent call last):
        ValueError: the covariance has negative eigenvalues, down to -0.33 of the largest: it is no covariance
        """
        values, vectors = np.linalg.eigh(self.cov)
        if values[0] < -NEGATIVE * values[-1]:
            raise ValueError(
                f"the covariance has negative eigenvalues, down to {values[0] / values[-1]:.2g} of the largest: it is "
                "no covariance"
            )
        return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Statistics:
        """The statistics in a .npz file; see `read_activations`.

        Raises:
            UsageError: if the file cannot be used.
        """
        found = read_activations(path)
        return found if isinstance(found, Statistics) else found.statistics

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write a .npz file with `mu` and `sigma`, which pytorch-fid and EDM read too, and with count and origin.

        Raises:
            UsageError: if the name does not end with .npz, or the file cannot be written.
        """
        path = _npz(path)
        kept = {"count": self.count, **dataclasses.asdict(self.origin)}
        with files.whole(path) as fresh:
            np.savez(fresh, mu=self.mean, sigma=self.cov, scoregen=np.array(json.dumps(kept)))
        return path


class Moments:
    """Mean and covariance of features that arrive in batches, in float64 and in bounded memory.

    With n rows of mean m and scatter C = sum (x - m)(x - m)^T, and a block of n' rows with m' and C',

        m <- m + (m' - m) n' / (n + n'),     C <- C + C' + (m' - m)(m' - m)^T n n' / (n + n')

    Chan, Golub & LeVeque 1983. No large squares are subtracted, so a large mean costs no digits. Rows wait
    until they fill a block of 1,024, so the result does not depend on the batches, to the last bit.

    >>> moments = Moments()
    >>> moments.add([[0.0]])
    >>> moments.add([[1.0], [5.0]])
    >>> moments.statistics().mean, moments.statistics().cov
    (array([2.]), array([[7.]]))
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: np.ndarray | float = 0.0
        self._scatter: np.ndarray | float = 0.0
        self._waiting: list[np.ndarray] = []

    def add(self, features: ArrayLike) -> None:
        """Add features [N, F].

        Raises:
            ValueError: if the shape is not [N, F] with the F of earlier rows, or a value is not finite.
        """
        rows = np.asarray(features)
        if rows.ndim != 2 or not rows.shape[1]:
            raise ValueError(f"features have the shape [N, F], not {rows.shape}")
        if self._waiting and self._waiting[0].shape[1] != rows.shape[1]:
            raise ValueError(f"features of one F are needed, not {self._waiting[0].shape[1]} and {rows.shape[1]}")
        if not len(rows):
            return
        try:
            as_rows(rows)
        except ValueError as error:
            raise ValueError(f"{error}: look at the samples first".replace("points", "rows of features")) from None
        while len(rows):
            room = ROWS - sum(map(len, self._waiting)) or ROWS
            if room == ROWS:
                self._merge()
            self._waiting.append(rows[:room].astype(np.float64))
            rows = rows[room:]

    def _merge(self) -> None:
        if self._waiting:
            self._count, self._mean, self._scatter = self._merged()
            self._waiting = []

    def _merged(self) -> tuple[int, Any, Any]:
        rows = np.concatenate(self._waiting)
        fresh = rows.mean(axis=0)
        apart, rows = fresh - self._mean, rows - fresh
        total = self._count + len(rows)
        share = len(rows) / total
        scatter = self._scatter + rows.T @ rows + np.outer(apart, apart) * (self._count * share)
        return total, self._mean + apart * share, scatter

    def statistics(self, origin: Origin = Origin()) -> Statistics:
        """The statistics of all rows so far. More rows may follow.

        Raises:
            ValueError: for fewer than two rows.
        """
        if not self._waiting:
            raise ValueError("a covariance needs at least two rows of features, not 0")
        count, mean, scatter = self._merged()
        if count < 2:
            raise ValueError(f"a covariance needs at least two rows of features, not {count}")
        return Statistics(count, mean, scatter / (count - 1), origin)


@dataclasses.dataclass(frozen=True, eq=False)
class Activations:
    """Features of pictures, one row a picture, with the logits of the same network if they are needed.

    Attributes:
        features: [N, F].
        logits: [N, C], or None.
        origin: how they were made.

    Raises:
        ValueError: if the shapes do not fit, or there is no row.

    >>> Activations(np.zeros((3, 2)))[[0, 2]].features.shape
    (2, 2)
    """

    features: np.ndarray
    logits: np.ndarray | None = None
    origin: Origin = Origin()

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or 0 in self.features.shape:
            raise ValueError(f"features have the shape [N, F], not {self.features.shape}")
        if self.logits is not None and (self.logits.ndim != 2 or len(self.logits) != len(self.features)):
            raise ValueError(f"logits [{len(self.features)}, C] are needed, not {self.logits.shape}")

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> Activations:
        return Activations(self.features[rows], None if self.logits is None else self.logits[rows], self.origin)

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Mean and covariance of the features."""
        return Statistics.of(self.features, self.origin)


def as_statistics(given: ArrayLike | Activations | Statistics) -> Statistics:
    """The statistics of features [N, F], or of what already has some.

    >>> as_statistics([[0.0], [2.0]]).count
    2
    """
    if isinstance(given, Statistics):
        return given
    return given.statistics if isinstance(given, Activations) else Statistics.of(given)


def read_activations(path: str | os.PathLike[str]) -> Activations | Statistics:
    """What a .npz file holds: statistics `mu` [F] and `sigma` [F, F], or features `pool_3` [N, F].

    pytorch-fid and EDM write `mu` and `sigma`, and score_sde writes `pool_3`, with `logits` [N, C] for samples. Count
    and origin are known only if scoregen wrote the file. A pickle is never opened.

    Raises:
        UsageError: if the file is missing, damaged, encrypted or of another kind, if it says that it is larger than the
            memory, if the shapes do not fit, if a value is not finite, or if `sigma` has negative eigenvalues.
    """
    path = _npz(path)
    try:
        # Opened here: np.load leaves a damaged file open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            names = set(file.files)
            kept = {name: file[name] for name in ("mu", "sigma", "pool_3", "logits", "scoregen") if name in names}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise UsageError(f"{path} cannot be read: by its header it is larger than the memory of this machine") from None
    # What a damaged zip file raises depends on where the damage is: also OverflowError and struct.error. ValueError is
    # also a pickle in it, and RuntimeError a password, a kind of compression or depth of a header.
    except Exception:
        raise UsageError(f"{path} cannot be read: it is damaged, encrypted, or no .npz file of numbers") from None
    try:
        return _found(kept)
    except LookupError:
        held = f"it holds {', '.join(map(repr, sorted(names)[:6]))}" if names else "it is empty"
        raise UsageError(
            f"{path} is no file of statistics: 'mu' and 'sigma', or 'pool_3', are needed, and {held}"
        ) from None
    except ValueError as error:
        raise UsageError(f"{path} cannot be used: {error}") from None


def _found(kept: dict[str, np.ndarray]) -> Activations | Statistics:
    if "mu" in kept or "sigma" in kept:
        try:
            fields = json.loads(str(kept.get("scoregen", "{}")))
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict) or type(fields.get("count")) not in (int, type(None)):
            raise ValueError("its entry 'scoregen' is damaged")
        origin = Origin(**{field.name: str(fields.get(field.name, "")) for field in _ORIGIN})
        statistics = Statistics(fields.get("count"), kept["mu"], kept["sigma"], origin)
        _ = statistics.root  # which is kept for the distance, and refuses what is no covariance
        return statistics
    found = Activations(kept["pool_3"], kept.get("logits"))
    as_rows(found.features)
    return found


def _npz(path: str | os.PathLike[str]) -> Path:
    path = check_path("statistics", path, "statistics.npz")
    if path.suffix != ".npz":
        raise UsageError(f"{path}: statistics are a .npz file with 'mu' and 'sigma', or with 'pool_3'")
    return path
