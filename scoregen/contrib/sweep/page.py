"""A sweep as one HTML file, which asks for no other: the table, figures, samples, loss curves, and what failed."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from scoregen.contrib.sweep.cell import folder_of, network_of
from scoregen.contrib.sweep.plan import Cell, Sweep, short
from scoregen.contrib.sweep.table import Row, all_figures, cell_text, legend, tables
from scoregen.train.log import MetricsLog

STYLE = """
:root { color-scheme: light dark; --ink: #22313f; --back: #fbfaf8; --soft: #6b7780; --line: #dfdcd6; --card: #ffffff;
  --accent: #c8553d; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe4e8; --back: #15191d; --soft: #96a1aa; --line: #333b42; --card: #1d2328; --accent: #e88a73; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.2rem; background: var(--back); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .4rem 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
h3 { font-size: .95rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p { max-width: 46rem; }
.soft { color: var(--soft); font-size: .85rem; margin-top: .4rem; }
.wide + .wide { margin-top: 1rem; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
.wide > table { min-width: 100%; }
th, td { padding: .4rem .8rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child > td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; }
td svg { display: block; width: 9rem; height: .8rem; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.card { border: 1px solid var(--line); border-radius: .5rem; background: var(--card); padding: .8rem; min-width: 0; }
.card img, .figure img { max-width: 100%; height: auto; display: block; margin: 0 auto .6rem; border-radius: .3rem; }
.card > svg { width: 100%; height: auto; display: block; }
.failed { border-color: var(--accent); }
code { font: .8rem ui-monospace, monospace; overflow-wrap: anywhere; }
.soft code { font-size: inherit; }
svg text { fill: var(--soft); font: 8px system-ui, sans-serif; }
"""


def page(sweep: Sweep, rows: Sequence[Row], out: Path) -> str:
    """The page as text. Pictures are in it; nothing is fetched, and no script runs."""
    finished, failed = sum(len(row.results) for row in rows), sum(len(row.failed) for row in rows)
    waiting = len(sweep.cells) - finished - failed
    counts = f"{len(sweep.cells)} cells: {finished} finished, {failed} failed, {waiting} not run"
    figure = out / "figure.png"
    parts = [
        f"<h1>{escape(sweep.title)}</h1>",
        *(f"<p>{escape(text)}</p>" for text in filter(None, sweep.claim.split("\n\n"))),
        f'<div class="soft">{counts}. {legend(rows)}{_devices(rows)}</div>',
        f"<h2>Compared</h2>{''.join(_table(*table) for table in tables(rows))}",
        _failures(rows) if failed else "",
        f'<h2>Figure</h2><div class="card figure">{_image(figure, "the rows compared")}</div>'
        if figure.is_file()
        else "",
        f'<h2>Row by row</h2><div class="cards">{"".join(_card(row, out) for row in rows)}</div>',
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(sweep.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body>\n</html>\n"
    )


def _devices(rows: Sequence[Row]) -> str:
    found = sorted({result["device"] for row in rows for result in row.results.values() if "device" in result})
    return f" Computed on {escape(', '.join(found))}." if found else ""


def _table(options: Sequence[str], rows: Sequence[Row]) -> str:
    figures = all_figures(rows)
    reach = {figure: _reach(rows, figure) for figure in figures}
    lines = ["".join(f"<th>{escape(name)}</th>" for name in [*map(short, options), "cells", *figures, "seconds"])]
    for row in rows:
        line = [escape(str(row.options[key])) for key in options] + [row.count]
        line += [escape(cell_text(row, figure)) + _strip(row, figure, *reach[figure]) for figure in figures]
        line.append("–" if math.isnan(row.seconds()) else f"{row.seconds():.3g}")
        lines.append("".join(f"<td>{text}</td>" for text in line))
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _reach(rows: Sequence[Row], figure: str) -> tuple[float, float]:
    """The least and the largest that a strip of this figure shows."""
    ends = [row.mean(figure) + side * (row.error(figure) or 0.0) for row in rows for side in (-1, 1)]
    ends += [floor for row in rows if (floor := row.floor(figure)) is not None]
    known = [end for end in ends if not math.isnan(end)]
    return (min(known), max(known)) if known else (0.0, 0.0)


def _strip(row: Row, figure: str, low: float, high: float) -> str:
    """Where the mean lies among those of all rows, with its error, and the floor as a tick."""
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


def _failures(rows: Sequence[Row]) -> str:
    lines = [
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(reason)}</td></tr>"
        for row in rows
        for name, reason in row.failed.items()
    ]
    return f'<h2>Failed</h2><div class="wide failed"><table>{"".join(lines)}</table></div>'


def _card(row: Row, out: Path) -> str:
    """The pictures of a row's first finished cell, the losses of all of them, and each one's figures."""
    finished = [cell for cell in row.cells if cell.name in row.results]
    parts = [f"<h3>{escape(row.label)}</h3>"]
    for cell in finished[:1]:
        pictures = sorted(folder_of(out, cell).glob("[!.]*.png"), key=lambda path: (path.name != "samples.png", path))
        parts += [_image(path, f"{path.stem} of {cell.name}") for path in pictures]
    parts.append(_curves(finished, out))
    parts += [f'<div class="soft">failed: {escape(reason)}</div>' for reason in row.failed.values()]
    figures = row.figures
    if finished and len(row.cells) > 1:
        seeds = [f"{cell.said.get('seed', '')}" for cell in finished]
        lines = ["<tr><th>seed</th>" + "".join(f"<th>{escape(seed)}</th>" for seed in seeds) + "</tr>"]
        for figure in figures:
            values = [row.results[cell.name]["figures"].get(figure) for cell in finished]
            cells = "".join(f"<td>{'–' if value is None else format(value, '.4g')}</td>" for value in values)
            lines.append(f"<tr><td>{escape(figure)}</td>{cells}</tr>")
        parts.append(f'<div class="wide"><table>{"".join(lines)}</table></div>')
    parts.append(f'<div class="soft"><code>cells/{escape(row.cells[0].name)}</code></div>')
    return f'<div class="card">{"".join(parts)}</div>'


def _curves(cells: Iterable[Cell], out: Path) -> str:
    """The training losses over the steps, a line a network, as SVG."""
    named = {cell.training: MetricsLog.read(network_of(out, cell)) for cell in cells if cell.training}
    curves = [[(row["step"], row["loss"]) for row in rows if "loss" in row] for rows in named.values()]
    curves = [curve[:: max(1, len(curve) // 200)] for curve in curves if len(curve) > 1]
    values = [loss for curve in curves for _, loss in curve]
    if not values:
        return ""
    scale = math.log if min(values) > 0 else float
    low, high = scale(min(values)), scale(max(values))
    last = max(step for curve in curves for step, _ in curve)
    lines = []
    for curve in curves:
        points = [
            f"{8 + 304 * step / last:.1f},{86 - 72 * (scale(loss) - low) / ((high - low) or 1.0):.1f}"
            for step, loss in curve
        ]
        lines.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="var(--accent)" opacity=".75"/>')
    kind = "loss, on a log scale" if scale is math.log else "loss"
    return (
        f'<svg viewBox="0 0 320 102" role="img" aria-label="{kind}"><path d="M8 10V88H312" fill="none" '
        f'stroke="var(--line)"/>{"".join(lines)}<text x="12" y="10">{max(values):.3g}</text>'
        f'<text x="12" y="84">{min(values):.3g}</text><text x="312" y="99" text-anchor="end">{kind}, '
        f"{last:,} steps</text></svg>"
    )


def _image(path: Path, what: str) -> str:
    """A picture within the page, no wider than it is seen, compressed: a page of many is to be sent."""
    from PIL import Image

    with Image.open(path) as found:
        image = found.convert("RGB")
    image.thumbnail((1280, 4000))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=88)
    data = base64.b64encode(stream.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img alt="{escape(what, quote=True)}" {size} src="data:image/webp;base64,{data}">'
