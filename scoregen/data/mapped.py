"""Memory-mapped arrays: the pages that were read are given back, so that an array may be larger than the memory."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

KEPT = 1 << 27  # bytes that may stay in memory
PAGE = 1 << 21  # a byte that is read brings its neighbours along, up to a huge page


def take(array: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The rows `array[index]`. Of a large memory-mapped array no more than `KEPT` bytes stay in memory.

    >>> take(np.array([3.0, 4.0, 5.0]), np.array([2, 0])).tolist()
    [5.0, 3.0]
    """
    if array.nbytes <= KEPT or _map_of(array) is None:
        return array[index]
    rows = np.empty((len(index), *array.shape[1:]), array.dtype)
    count = rows_at_a_time(array)
    for i in range(0, len(index), count):
        rows[i : i + count] = array[index[i : i + count]]
        release(array)
    return rows


def rows_at_a_time(array: np.ndarray) -> int:
    """How many scattered rows of an array may be read between two releases.

    >>> rows_at_a_time(np.zeros((2, 2), np.uint8))
    63
    """
    return max(1, KEPT // (PAGE + array[:1].nbytes))


def release(*arrays: Any) -> None:
    """Give back the pages of memory-mapped arrays. Pages that were read count as memory of the process until then.

    What is read again comes from the cache of the operating system, or from the disk. Only arrays of `mode` "r" are
    released, whole or in part: the changed pages of another one may exist in memory alone. Arrays in memory are left as
    they are, and so is everything on systems without `madvise`.

    >>> release(np.zeros(3), None)
    """
    for array in arrays:
        pages = _map_of(array)
        if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)


def _map_of(array: Any) -> mmap.mmap | None:
    """The map that holds the memory of an array that is read only; None for other arrays."""
    if not (isinstance(array, np.memmap) and array.mode == "r"):
        return None
    while isinstance(array, np.ndarray):
        array = array.base
    return array if isinstance(array, mmap.mmap) else None
