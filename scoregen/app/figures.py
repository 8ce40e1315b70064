"""Figures that are drawn to files, whatever backend the environment names.

matplotlib is imported where something is drawn, since the import costs most of a second.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from scoregen.files import whole

INK, ACCENT = "#22313f", "#c8553d"


def load_matplotlib() -> None:
    """Import matplotlib without the environment's MPLBACKEND.

    A notebook names its own backend for every process that it starts, and where that one is not installed the import
    of matplotlib itself fails. Nothing here needs a window: figures use their own canvas.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: F401
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def empty(size: tuple[float, float]) -> Any:
    """A matplotlib figure with an Agg canvas, outside of pyplot, `size` inches wide and high, without panels.

    >>> len(empty((4.0, 3.0)).axes)
    0
    """
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    page = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(page)
    return page


def figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (7.0, 4.0), **options: Any
) -> tuple[Any, np.ndarray]:
    """A matplotlib figure with an Agg canvas, outside of pyplot, and its panels `[rows, columns]`.

    Args:
        rows, columns: how many panels.
        size: width and height in inches.
        options: of `matplotlib.figure.Figure.subplots`.

    >>> page, panels = figure(1, 2)
    >>> panels.shape, type(page.canvas).__name__
    ((1, 2), 'FigureCanvasAgg')
    """
    page = empty(size)
    return page, page.subplots(rows, columns, squeeze=False, **options)


def save(path: Path, page: Any, dpi: int = 110) -> Path:
    """Write a figure, in the format of the name's suffix.

    Raises:
        UsageError: if the file cannot be written.
    """
    with whole(path) as fresh:
        page.savefig(fresh, dpi=dpi)
    return path


def save_image(path: Path, image: np.ndarray) -> Path:
    """Write a uint8 image `[h, w, 3]` as PNG.

    Raises:
        UsageError: if the file cannot be written.
    """
    load_matplotlib()
    from matplotlib.image import imsave

    with whole(path) as fresh:
        imsave(fresh, image)
    return path
