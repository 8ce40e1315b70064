"""Points as rows, and all pairs of two sets of points by blocks, so that an [N, M] array is never held."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

ROWS, COLUMNS = 1024, 4096  # of a block of pairs: 32 MiB in float64


def as_rows(*arrays: ArrayLike) -> list[np.ndarray]:
    """Arrays [N, ...] as finite points [N, D] with the same D. Their type is kept, and nothing is copied.

    Raises:
        ValueError: if the dimensions differ, a set is empty, or a value is not a finite number.

    >>> as_rows([[[1.0], [2.0]]])
    [array([[1., 2.]])]
    """
    found = []
    for array in arrays:
        array = np.asarray(array)
        if array.ndim == 0 or len(array) == 0:
            raise ValueError(f"a sample needs at least one row, not the shape {array.shape}")
        if array.dtype.kind not in "buif":
            raise ValueError(f"points are real numbers, not {array.dtype}")
        rows = array.reshape(len(array), -1)
        if bad := rows.dtype.kind == "f" and sum(
            int((~np.isfinite(b).all(axis=1)).sum()) for _, b in _slices(rows, ROWS)
        ):
            raise ValueError(f"{bad} of {len(rows)} points are not finite")
        found.append(rows)
    if len({rows.shape[1] for rows in found}) > 1:
        raise ValueError(f"points of unequal dimensions: {[rows.shape[1] for rows in found]}")
    return found


def _slices(rows: np.ndarray, size: int) -> Iterator[tuple[slice, np.ndarray]]:
    for first in range(0, len(rows), size):
        at = slice(first, min(first + size, len(rows)))
        yield at, rows[at]


def blocks(
    rows: np.ndarray, size: int = ROWS, centre: np.ndarray | float = 0.0, dtype: DTypeLike = np.float64
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows [N, D] minus the centre, each with its slice. The difference is taken in float64.

    >>> [(at.start, at.stop, block.ravel().tolist()) for at, block in blocks(np.arange(3)[:, None], 2, 1.0)]
    [(0, 2, [-1.0, 0.0]), (2, 3, [1.0])]
    """
    for at, block in _slices(rows, size):
        yield at, (block.astype(np.float64) - centre).astype(dtype, copy=False)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, D], [M, D] -> [N, M]; rounding may give values slightly below 0, which are set to 0.

    They come from ||a||^2 + ||b||^2 - 2 <a, b>, which loses digits far from the origin, so centre the points first.

    >>> squared_distances(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[25.,  0.]])
    """
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None, :]
    return np.maximum(squares - 2 * (a @ b.T), 0.0)


def kernel_sums(
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    centre: np.ndarray | float = 0.0,
) -> np.ndarray:
    """sum_j k(x_i, y_j) for each i, [N], in float64. The kernel maps blocks [R, D] and [C, D] to [R, C].

    >>> kernel_sums(lambda a, b: a @ b.T, np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]]))
    array([ 7., 14.])
    """
    sums = np.zeros(len(x))
    for _, b in blocks(y, COLUMNS, centre):
        for at, a in blocks(x, ROWS, centre):
            sums[at] += kernel(a, b).sum(axis=1)
    return sums


def nearest(
    x: np.ndarray,
    y: np.ndarray,
    count: int,
    *,
    centre: np.ndarray | float = 0.0,
    dtype: DTypeLike = np.float64,
    others: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances to the `count` nearest points of y, ascending, and their indices, both [N, count].

    Args:
        x, y: [N, D] and [M, D].
        centre: subtracted from all points, for the digits.
        dtype: of the arithmetic. In float32 it is twice as fast, and points at almost the same distance may swap.
        others: if y is x: a point is not its own neighbour.

    >>> x = np.array([[0.0], [1.0], [3.0]])
    >>> nearest(x, x, 1, others=True)[1].ravel()
    array([1, 0, 1])
    """
    best = np.full((len(x), count), np.inf, dtype)
    index = np.zeros((len(x), count), np.int64)
    # y outside: a set in a file is then read once, in order.
    for columns, b in blocks(y, COLUMNS, centre, dtype):
        for at, a in blocks(x, ROWS, centre, dtype):
            squares = squared_distances(a, b)
            if others:
                same = np.arange(max(at.start, columns.start), min(at.stop, columns.stop))
                squares[same - at.start, same - columns.start] = np.inf
            close = _smallest(squares, count)
            both = np.concatenate([best[at], np.take_along_axis(squares, close, 1)], axis=1)
            places = np.concatenate([index[at], columns.start + close], axis=1)
            order = np.argsort(both, axis=1, kind="stable")[:, :count]
            best[at], index[at] = np.take_along_axis(both, order, 1), np.take_along_axis(places, order, 1)
    return best, index


def _smallest(squares: np.ndarray, count: int) -> np.ndarray:
    """Where the `count` smallest numbers of each row are, in any order."""
    if count == 1:
        return squares.argmin(axis=1)[:, None]
    if count >= squares.shape[1]:
        return np.broadcast_to(np.arange(squares.shape[1]), squares.shape)
    return np.argpartition(squares, count - 1, axis=1)[:, :count]
