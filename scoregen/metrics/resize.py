"""Bilinear resizing of images, in the three conventions that features are computed with.

Every convention is linear in the pixels and the same for rows and columns:

    out[i] = sum_j w(i, j) in[j] / sum_j w(i, j),      w(i, j) = max(0, 1 - |j - p(i)| / width)

and they differ in the position p(i) of the output pixel i among the n input pixels, for m output pixels, and in width.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def pytorch(n: int, m: int) -> np.ndarray:
    """PyTorch's `interpolate(mode="bilinear", align_corners=False)`: p(i) = (i + 1/2) n / m - 1/2, and width 1.

    Smaller images are therefore not smoothed first.

    >>> pytorch(2, 4).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    return _weights(np.float32(n / m) * (np.arange(m, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), n)


def tensorflow1(n: int, m: int) -> np.ndarray:
    """TensorFlow 1's `resize_bilinear` without aligned corners: p(i) = i n / m, and width 1.

    The image is therefore shifted by up to half a pixel.

    >>> tensorflow1(2, 4).tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.0, 1.0]]
    """
    return _weights(np.float32(n / m) * np.arange(m, dtype=np.float32), n)


def antialiased(n: int, m: int) -> np.ndarray:
    """p(i) = (i + 1/2) n / m - 1/2 and width max(1, n / m), as Pillow's `BILINEAR`: smaller images are smoothed.

    >>> antialiased(4, 2).round(3).tolist()
    [[0.429, 0.429, 0.143, 0.0], [0.0, 0.143, 0.429, 0.429]]
    """
    return _weights((np.arange(m) + 0.5) * n / m - 0.5, n, max(1.0, n / m))


def _weights(positions: np.ndarray, n: int, width: float = 1.0) -> np.ndarray:
    """[m, n] in float32. Positions in float32 are those of the libraries, which compute them so."""
    weights = np.maximum(0, 1 - np.abs(np.arange(n) - positions.astype(np.float64)[:, None]) / width)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def resized(images: Any, rows: np.ndarray, columns: np.ndarray) -> Any:
    """float32 images [B, H, W, C] -> [B, H', W', C], with the weights [H', H] of rows and [W', W] of columns."""
    import jax
    import jax.numpy as jnp

    exact = jax.lax.Precision.HIGHEST
    images = jnp.einsum("hi,biwc->bhwc", rows, images, precision=exact)
    return jnp.einsum("wj,bhjc->bhwc", columns, images, precision=exact)
