"""The default figure that compares the rows of a sweep, for sweeps without draw(rows, path)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scoregen.app.figures import ACCENT, INK, figure, save
from scoregen.contrib.sweep.table import Row, all_figures


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for each measured value, at most six: mean and standard error of each row, all cells, the floor."""
    figures = all_figures(rows)[:6]
    columns = min(3, len(figures))
    lines = -(-len(figures) // columns)
    # The last options of a long label tell the rows apart.
    labels = [row.label if len(row.label) <= 60 else f"…{row.label[-59:]}" for row in rows]
    size = (0.075 * max(map(len, labels)) + 3.2 * columns, min(200.0, lines * (1.4 + 0.3 * len(rows))))
    drawing, panels = figure(lines, columns, size=size, sharey=True)
    from matplotlib.ticker import MaxNLocator

    for panel in panels.flat[len(figures) :]:
        panel.axis("off")
    for panel, measured in zip(panels.flat, figures, strict=False):
        for y, row in enumerate(rows):
            values = row.values(measured)
            if not values:
                continue
            panel.plot(values, [y] * len(values), "o", color=INK, alpha=0.25, markersize=3, markeredgewidth=0)
            panel.errorbar(
                row.mean(measured), y, xerr=row.error(measured), fmt="o", color=ACCENT, markersize=4, capsize=3
            )
            if (floor := row.floor(measured)) is not None:
                panel.plot([floor, floor], [y - 0.35, y + 0.35], color=INK, lw=1)
        panel.set(ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)))
        panel.set_yticklabels(map(_text, labels))
        panel.set_title(_text(f"{measured} of each row"), fontsize=10)
        panel.set_xlabel(_text(f"{measured}, mean ± standard error"), fontsize=8)
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.tick_params(labelsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(4))
    for panel in panels[:, 0]:
        panel.set_ylabel("row of the table", fontsize=8)
    save(path, drawing)


def _text(text: str) -> str:
    """Escape dollar signs, since matplotlib reads text between two of them as mathematics."""
    return text.replace("$", r"\$")
