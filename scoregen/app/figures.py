"""The common style of all figures, and figures drawn to files, independent of the backend in the environment.

matplotlib is only imported when something is drawn, since the import takes most of a second.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scoregen.files import whole

# The palette of Okabe and Ito (2008), which colour-blind readers can distinguish.
BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
YELLOW, BLUE, VERMILLION, PURPLE = "#f0e442", "#0072b2", "#d55e00", "#cc79a7"
# INK: data and text. ACCENT: samples and the subject of the figure. GREY: background.
INK, ACCENT, GREY = "#222222", VERMILLION, "#8b9aa8"
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK, YELLOW)
DPI = 110
MARK = "scoregen"  # in the PNGs that `save` writes, which may be replaced
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures are the same everywhere
    "font.size": 10.0,
    "figure.titlesize": 11.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10.0,
    "axes.linewidth": 0.8,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "image.interpolation": "nearest",
    "savefig.dpi": DPI,
}


def load_matplotlib() -> None:
    """Import matplotlib without the environment's MPLBACKEND, and set the style for this process.

    A notebook sets its own backend for every process that it starts. If that backend is not installed, the import of
    matplotlib fails. Figures here need no window, since they use their own canvas.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        from cycler import cycler
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    style: dict[Any, Any] = STYLE | {"axes.prop_cycle": cycler(color=COLOURS)}
    matplotlib.rcParams.update(style)


def plain(number: float, digits: int = 2) -> str:
    """A number without an exponent, rounded to `digits` significant digits.

    >>> plain(157.3), plain(1.6), plain(0.0474), plain(0.0100)
    ('160', '1.6', '0.047', '0.01')
    """
    rounded = float(f"{number:.{digits - 1}e}")
    return np.format_float_positional(rounded, trim="-")


def empty(size: tuple[float, float], layout: str | None = "constrained") -> Any:
    """A matplotlib figure with an Agg canvas, outside of pyplot, `size` inches wide and high, without panels.

    >>> len(empty((4.0, 3.0)).axes)
    0
    """
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    page = Figure(figsize=size, dpi=DPI, layout=layout)  # pyright: ignore[reportArgumentType]
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


def save(path: Path, page: Any, dpi: int = DPI) -> Path:
    """Write a figure, in the format of the name's suffix.

    Raises:
        UsageError: if the file cannot be written.
    """
    # Values of 1e200 and more overflow where matplotlib measures its arrows, which is no reason for a warning.
    with whole(path) as fresh, np.errstate(over="ignore", invalid="ignore"):
        page.savefig(fresh, dpi=dpi, metadata={"Software": MARK} if path.suffix.lower() == ".png" else None)
    return path


def is_ours(path: Path) -> bool:
    """Whether `save` has written a PNG."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Software") == MARK
    except OSError:
        return False


def mosaic(lines: Sequence[tuple[str, Sequence[np.ndarray]]], title: str = "", heads: Sequence[str] = ()) -> Any:
    """A figure of pictures in named lines, in which each pixel of a picture is one pixel of the figure.

    Args:
        lines: for each the name at its left, and its pictures, uint8 `[h, w, 3]`.
        title: over the figure.
        heads: over the pictures of the first line.

    >>> black = np.zeros((40, 60, 3), np.uint8)
    >>> [text.get_text() for text in mosaic([("data", [black]), ("samples", [black])], "digits").texts]
    ['digits', 'data', 'samples']
    """
    page = empty((1, 1), layout=None)
    from matplotlib.transforms import IdentityTransform

    renderer = page.canvas.get_renderer()

    def text(words: str, size: str, **options: Any) -> tuple[Any, int, int]:
        options |= {"fontsize": STYLE[size], "parse_math": False}
        made = page.text(0, 0, words, transform=IdentityTransform(), **options)
        box = made.get_window_extent(renderer)
        return made, round(box.width), round(box.height)

    pad = 10
    top = text(title, "figure.titlesize", ha="center", va="top")
    over = [text(head, "axes.titlesize", ha="center", va="bottom") for head in heads]
    left = [text(name, "axes.labelsize", ha="right", va="center", linespacing=1.3) for name, _ in lines]
    margin = pad + max((width + pad for _, width, _ in left if width), default=0)
    # As wide as the widest picture or head of each column.
    columns = max(len(pictures) for _, pictures in lines)
    wide = [max(pictures[i].shape[1] for _, pictures in lines if i < len(pictures)) for i in range(columns)]
    wide = [max(width, over[i][1] if i < len(over) else 0) for i, width in enumerate(wide)]
    tall = [max(picture.shape[0] for picture in pictures) for _, pictures in lines]
    inner = sum(wide) + pad * (columns - 1)
    width = max(margin + inner + pad, top[1] + 2 * pad)
    margin += (width - margin - inner - pad) // 2
    head = pad + (top[2] + pad if title else 0) + (max(height for *_, height in over) + pad // 2 if over else 0)
    height = head + sum(tall) + pad * len(tall)
    page.set_size_inches(width / DPI, height / DPI)

    top[0].set_position((width // 2, height - pad))
    starts = [margin + sum(wide[:i]) + pad * i for i in range(columns)]
    for (made, _, _), start, room in zip(over, starts, wide, strict=False):
        made.set_position((start + room // 2, height - head + pad // 2))
    below = height - head
    for (made, _, _), (_, pictures), room in zip(left, lines, tall, strict=True):
        below -= room
        made.set_position((margin - pad, below + room // 2))
        for picture, start, across in zip(pictures, starts, wide, strict=False):
            x, y = start + (across - picture.shape[1]) // 2, below + (room - picture.shape[0]) // 2
            page.figimage(picture, x, y)
        below -= pad
    for made in [text for text in page.texts if not text.get_text()]:
        made.remove()
    return page
