"""A sweep as one self-contained HTML file: table, figures, samples, loss curves, commands and failures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from scoregen.app.page_parts import (
    Curve,
    card,
    command,
    document,
    figure,
    image,
    items,
    line,
    link,
    links,
    plot,
    scrolled,
    sections,
)
from scoregen.contrib.sweep.cell import folder_of, network_of
from scoregen.contrib.sweep.plan import Cell, Sweep, short
from scoregen.contrib.sweep.table import Row, all_figures, cell_text, legend, tables
from scoregen.train.log import MetricsLog

STRIPS = "The strip below a number shows the mean, its error and the floor (tick) within the range of the column."
FILES = (
    "result.json",
    "failed.json",
    "config.json",
    "distances.json",
    "samples.npy",
    "samples.csv",
    "samples.tsv",
    "samples.parquet",
    "log.txt",
)
TRAINED = ("index.html", "config.json", "metrics.jsonl", "loss.png", "checkpoints")


def page(sweep: Sweep, rows: Sequence[Row], out: Path) -> str:
    """The HTML of the page, for the folder `out` of the sweep. All pictures are embedded."""
    finished, failed = sum(len(row.results) for row in rows), sum(len(row.failed) for row in rows)
    waiting = len(sweep.cells) - finished - failed
    counts = f"{len(sweep.cells)} cells: {finished} finished, {failed} failed, {waiting} not run"
    texts = {
        "Compared": "".join(_table(*table) for table in tables(rows)),
        "Failed": _failures(rows, out),
        "Figure": _comparison(sweep, out / "figure.png"),
        "Row by row": f'<div class="cards">{"".join(_row(sweep, row, out) for row in rows)}</div>',
        "Files": links(out, ("table.md", "table.csv", "cells.csv", "figure.png"), out),
    }
    below = {"Row by row": items(link(f"#{_anchor(row)}", row.label) for row in rows)}
    head = [
        f"<h1>{escape(sweep.title)}</h1>",
        *(f"<p>{escape(text)}</p>" for text in filter(None, sweep.claim.split("\n\n"))),
        f'<div class="soft">{counts}. {legend(rows)} {STRIPS}{_devices(rows)}</div>',
    ]
    return document(sweep.title, [*head, *sections(texts, below)])


def _anchor(row: Row) -> str:
    """The id of a row's section, which is the same in every version of the page."""
    return f"row-{row.cells[0].key[:8]}"


def _devices(rows: Sequence[Row]) -> str:
    found = sorted({result["device"] for row in rows for result in row.results.values() if "device" in result})
    return f" Computed on {escape(', '.join(found))}." if found else ""


def _table(options: Sequence[str], rows: Sequence[Row]) -> str:
    measured = all_figures(rows)
    ranges = {name: _range(rows, name) for name in measured}
    head = [*map(short, options), "cells", *measured, "seconds per cell"]
    lines = [line(map(escape, head), "th")]
    for row in rows:
        first, *values = [str(row.options[key]) for key in options] + [row.count]
        texts = [link(f"#{_anchor(row)}", first or "–"), *map(escape, values)]
        texts += [escape(cell_text(row, name)) + _strip(row, name, *ranges[name]) for name in measured]
        texts.append("–" if math.isnan(row.seconds()) else f"{row.seconds():.3g}")
        lines.append(f'<tr id="in-table-{_anchor(row)}">{"".join(f"<td>{text}</td>" for text in texts)}</tr>')
    return scrolled(lines, "the rows compared")


def _range(rows: Sequence[Row], figure: str) -> tuple[float, float]:
    """The ends of the strips for this measured value."""
    ends = [row.mean(figure) + side * (row.error(figure) or 0.0) for row in rows for side in (-1, 1)]
    ends += [floor for row in rows if (floor := row.floor(figure)) is not None]
    known = [end for end in ends if not math.isnan(end)]
    return (min(known), max(known)) if known else (0.0, 0.0)


def _strip(row: Row, figure: str, low: float, high: float) -> str:
    """A strip that shows the mean in the range of all rows, with its error, and the floor as a tick."""
    mean, error, floor = row.mean(figure), row.error(figure) or 0.0, row.floor(figure)
    if math.isnan(mean) or high <= low:
        return ""

    def at(value: float) -> str:
        return f"{4 + 136 * (value - low) / (high - low):.1f}"

    tick = f'<path d="M{at(floor)} 1V11" stroke="var(--soft)"/>' if floor is not None else ""
    return (
        f'<svg viewBox="0 0 144 12" aria-hidden="true"><path d="M4 6H140" stroke="var(--line)"/>{tick}'
        f'<path d="M{at(mean - error)} 6H{at(mean + error)}" stroke="var(--accent)" stroke-width="2"/>'
        f'<circle cx="{at(mean)}" cy="6" r="3" fill="var(--accent)"/></svg>'
    )


def _failures(rows: Sequence[Row], out: Path) -> str:
    lines = [
        f'<tr><td class="words">{link(f"#{_anchor(row)}", name)}</td><td class="words">{escape(reason)}</td>'
        f"<td>{links(out / 'cells' / name, ['log.txt'], out)}</td></tr>"
        for row in rows
        for name, reason in row.failed.items()
    ]
    return scrolled(lines, "the failed cells", " failed") if lines else ""


def _comparison(sweep: Sweep, path: Path) -> str:
    if not path.is_file():
        return ""
    shown = "The rows compared"
    how = "" if sweep.draw else ": mean ± standard error, small dots for the cells, a line for the floor"
    return card(figure(image(path, shown), shown, how))


def _row(sweep: Sweep, row: Row, out: Path) -> str:
    """The pictures of a row's first finished cell; the losses, measured values, commands and files of all its cells."""
    finished = [cell for cell in row.cells if cell.name in row.results]
    found = [f"<h3>{escape(row.label)}</h3>"]
    for cell in finished[:1]:
        pictures = sorted(folder_of(out, cell).glob("[!.]*.png"), key=lambda path: (path.name != "samples.png", path))
        for path in pictures:
            shown = f"{path.stem} of {cell.name}"
            found.append(figure(image(path, shown), shown))
    found.append(_curves(finished, out))
    found += [f'<div class="soft">failed: {escape(reason)}</div>' for reason in row.failed.values()]
    if finished and len(row.cells) > 1:
        lines = [line(["seed", *(escape(f"{cell.said.get('seed', '')}") for cell in finished)], "th")]
        for name in row.figures:
            values = [row.results[cell.name]["figures"].get(name) for cell in finished]
            lines.append(line([escape(name), *("–" if value is None else format(value, ".4g") for value in values)]))
        found.append(scrolled(lines, f"every cell of {row.label}"))
    for cell in row.cells:
        found.append(f"<h4>{escape(cell.name)}</h4>")
        found += map(command, sweep.commands(cell, out))
        files = links(folder_of(out, cell), FILES, out)
        if cell.training and (trained := links(network_of(out, cell), TRAINED, out)):
            files += f" training: {trained}"
        found.append(f'<div class="soft">{files}</div>')
    found.append(f'<div class="soft">{link(f"#in-table-{_anchor(row)}", "back to the table")}</div>')
    return f'<article class="card" id="{_anchor(row)}">{"".join(found)}</article>'


def _curves(cells: Iterable[Cell], out: Path) -> str:
    """The training losses over the steps, a line per network."""
    curves, kind = [], "loss"
    for cell in cells:
        if cell.config is None:
            continue
        found = MetricsLog.read(network_of(out, cell))
        points = [(row["step"], row["loss"]) for row in found if row.get("loss") is not None]
        if len(points) > 1:
            color = f"hsl({(12 + 137 * len(curves)) % 360} 60% 50%)"
            curves.append(Curve(f"seed {cell.config.seed}", points, color))
            kind = f"loss {cell.config.loss.name}"
    return plot(curves, "Training loss over the steps", "training step", kind)
