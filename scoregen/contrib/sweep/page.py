"""A sweep as one self-contained HTML file: table, figures, samples, loss curves, commands and failures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from scoregen.contrib.sweep.cell import folder_of, network_of
from scoregen.contrib.sweep.plan import Cell, Sweep, short
from scoregen.contrib.sweep.table import Row, all_figures, cell_text, legend, tables
from scoregen.train.log import MetricsLog

LIGHT = "--ink: #22313f; --back: #fbfaf8; --soft: #5d6973; --line: #dfdcd6; --card: #ffffff; --accent: #b8472f;"
DARK = "--ink: #dfe4e8; --back: #15191d; --soft: #96a1aa; --line: #333b42; --card: #1d2328; --accent: #e88a73;"
STYLE = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 76rem; padding: 1.2rem; background: var(--back); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: .4rem 0; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .6rem; }}
h3 {{ font-size: .95rem; margin: 0 0 .5rem; }}
h4 {{ font-size: .85rem; margin: .8rem 0 .2rem; }}
p {{ max-width: 46rem; }}
a {{ color: var(--accent); }}
:focus-visible {{ outline: 2px solid var(--accent); outline-offset: 2px; }}
:target {{ outline: 2px solid var(--accent); }}
nav ul {{ margin: .6rem 0; padding-left: 1.2rem; }}
nav > ul > li > ul {{ columns: 22rem; }}
.soft, figcaption {{ color: var(--soft); font-size: .85rem; margin-top: .4rem; }}
.wide + .wide {{ margin-top: 1rem; }}
.wide {{ overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; overflow-wrap: normal; }}
.wide > table {{ min-width: 100%; }}
th, td {{ padding: .4rem .8rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }}
tr:last-child > td {{ border-bottom: 0; }}
th {{ color: var(--soft); font-weight: 600; }}
td.reason {{ white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }}
td svg {{ display: block; width: 9rem; height: .8rem; }}
.cards {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }}
.card {{ border: 1px solid var(--line); border-radius: .5rem; background: var(--card); padding: .8rem; min-width: 0; }}
.failed {{ border-color: var(--accent); }}
figure {{ margin: 0 0 .8rem; }}
figure img, figure svg {{ max-width: 100%; height: auto; display: block; margin: 0 auto; border-radius: .3rem; }}
figure svg {{ width: 100%; }}
svg text {{ fill: var(--soft); font: 11px system-ui, sans-serif; }}
.zoom > summary {{ list-style: none; cursor: zoom-in; }}
.zoom > summary::-webkit-details-marker {{ display: none; }}
.command {{ display: flex; gap: .5rem; align-items: start; }}
code {{ font: .8rem ui-monospace, monospace; }}
.command code {{ flex: 1; min-width: 0; padding: .3rem .5rem; border: 1px solid var(--line); border-radius: .3rem;
  background: var(--back); user-select: all; }}
.command + .command {{ margin-top: .4rem; }}
code span {{ display: inline-block; max-width: 100%; }}
button {{ font: .8rem system-ui, sans-serif; color: inherit; background: var(--card); cursor: pointer;
  border: 1px solid var(--line); border-radius: .3rem; padding: .3rem .6rem; }}
@media screen {{
  .zoom[open] > summary {{ position: fixed; inset: 0; z-index: 1; display: flex; padding: 1rem; cursor: zoom-out;
    background: var(--card); }}
  .zoom[open] > summary > * {{ width: 100%; height: 100%; max-width: none; object-fit: contain; }} }}
@media print {{
  :root {{ color-scheme: light; {LIGHT} }}
  body {{ max-width: none; padding: 0; font-size: .85rem; }}
  nav, button {{ display: none; }}
  .cards {{ display: block; }}
  .card {{ margin-bottom: 1rem; }}
  figure, tr, .command {{ break-inside: avoid; }}
  .wide {{ overflow: visible; }}
  .wide > table {{ font-size: .7rem; }}
  th, td {{ white-space: normal; overflow-wrap: anywhere; padding: .2rem; }}
  td svg {{ width: 100%; }} }}
"""
# Optional: without scripts, a click selects a whole command, and a second click or Enter shrinks a picture again.
SCRIPT = """
document.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  getSelection().selectAllChildren(button.previousElementSibling);
  if (document.execCommand("copy")) button.textContent = "copied";
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape") document.querySelectorAll(".zoom[open]").forEach(each => each.open = false);
});
"""
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
TRAINED = ("config.json", "metrics.jsonl", "loss.png", "checkpoints")


def page(sweep: Sweep, rows: Sequence[Row], out: Path) -> str:
    """The HTML of the page, for the folder `out` of the sweep. All pictures are embedded."""
    finished, failed = sum(len(row.results) for row in rows), sum(len(row.failed) for row in rows)
    waiting = len(sweep.cells) - finished - failed
    counts = f"{len(sweep.cells)} cells: {finished} finished, {failed} failed, {waiting} not run"
    sections = {
        "Compared": "".join(_table(*table) for table in tables(rows)),
        "Failed": _failures(rows, out),
        "Figure": _comparison(sweep, out / "figure.png"),
        "Row by row": f'<div class="cards">{"".join(_card(sweep, row, out) for row in rows)}</div>',
        "Files": _links(out, ("table.md", "table.csv", "cells.csv", "figure.png"), out),
    }
    sections = {title: text for title, text in sections.items() if text}
    below = {"Row by row": _list(_link(f"#{_anchor(row)}", row.label) for row in rows)}
    contents = _list(_link(f"#{_id(title)}", title) + below.get(title, "") for title in sections)
    parts = [
        f"<h1>{escape(sweep.title)}</h1>",
        *(f"<p>{escape(text)}</p>" for text in filter(None, sweep.claim.split("\n\n"))),
        f'<div class="soft">{counts}. {legend(rows)} {STRIPS}{_devices(rows)}</div>',
        f'<nav aria-label="contents">{contents}</nav>',
        *(f'<section id="{_id(title)}"><h2>{title}</h2>{text}</section>' for title, text in sections.items()),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(sweep.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")


def _anchor(row: Row) -> str:
    """The id of a row's section, which is the same in every version of the page."""
    return f"row-{row.cells[0].key[:8]}"


def _link(address: str, text: str) -> str:
    return f'<a href="{escape(address)}">{escape(text)}</a>'


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _links(folder: Path, names: Iterable[str], out: Path) -> str:
    """Links to the existing files of a folder, relative to the page."""
    there = [folder / name for name in names if (folder / name).exists()]
    return " ".join(_link(quote(path.relative_to(out).as_posix()), path.name) for path in there)


def _devices(rows: Sequence[Row]) -> str:
    found = sorted({result["device"] for row in rows for result in row.results.values() if "device" in result})
    return f" Computed on {escape(', '.join(found))}." if found else ""


def _scrolled(lines: Iterable[str], name: str, more: str = "") -> str:
    """A table in its own box, which scrolls if the table is wider, also with the arrow keys."""
    box = f'<div class="wide{more}" tabindex="0" role="region" aria-label="{escape(name)}">'
    return f"{box}<table>{''.join(lines)}</table></div>"


def _table(options: Sequence[str], rows: Sequence[Row]) -> str:
    figures = all_figures(rows)
    ranges = {figure: _range(rows, figure) for figure in figures}
    head = [*map(short, options), "cells", *figures, "seconds per cell"]
    lines = [f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"]
    for row in rows:
        first, *line = [str(row.options[key]) for key in options] + [row.count]
        texts = [_link(f"#{_anchor(row)}", first or "–"), *map(escape, line)]
        texts += [escape(cell_text(row, figure)) + _strip(row, figure, *ranges[figure]) for figure in figures]
        texts.append("–" if math.isnan(row.seconds()) else f"{row.seconds():.3g}")
        lines.append(f'<tr id="in-table-{_anchor(row)}">{"".join(f"<td>{text}</td>" for text in texts)}</tr>')
    return _scrolled(lines, "the rows compared")


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
        f'<tr><td class="reason">{_link(f"#{_anchor(row)}", name)}</td><td class="reason">{escape(reason)}</td>'
        f"<td>{_links(out / 'cells' / name, ['log.txt'], out)}</td></tr>"
        for row in rows
        for name, reason in row.failed.items()
    ]
    return _scrolled(lines, "the failed cells", " failed") if lines else ""


def _comparison(sweep: Sweep, path: Path) -> str:
    if not path.is_file():
        return ""
    shown = "The rows compared"
    how = "" if sweep.draw else ": mean ± standard error, small dots for the cells, a line for the floor"
    return f'<div class="card">{_figure(_image(path, shown), shown, how)}</div>'


def _card(sweep: Sweep, row: Row, out: Path) -> str:
    """The pictures of a row's first finished cell; the losses, measured values, commands and files of all its cells."""
    finished = [cell for cell in row.cells if cell.name in row.results]
    parts = [f"<h3>{escape(row.label)}</h3>"]
    for cell in finished[:1]:
        pictures = sorted(folder_of(out, cell).glob("[!.]*.png"), key=lambda path: (path.name != "samples.png", path))
        for path in pictures:
            shown = f"{path.stem} of {cell.name}"
            parts.append(_figure(_image(path, shown), shown))
    parts.append(_curves(finished, out))
    parts += [f'<div class="soft">failed: {escape(reason)}</div>' for reason in row.failed.values()]
    if finished and len(row.cells) > 1:
        lines = [["seed", *(f"{cell.said.get('seed', '')}" for cell in finished)]]
        for figure in row.figures:
            values = [row.results[cell.name]["figures"].get(figure) for cell in finished]
            lines.append([figure, *("–" if value is None else format(value, ".4g") for value in values)])
        tags = ["th", *["td"] * len(row.figures)]
        cells = ["".join(f"<{t}>{escape(each)}</{t}>" for each in line) for t, line in zip(tags, lines, strict=True)]
        parts.append(_scrolled((f"<tr>{line}</tr>" for line in cells), f"every cell of {row.label}"))
    for cell in row.cells:
        parts.append(f"<h4>{escape(cell.name)}</h4>")
        parts += map(_command, sweep.commands(cell, out))
        links = _links(folder_of(out, cell), FILES, out)
        if cell.training and (trained := _links(network_of(out, cell), TRAINED, out)):
            links += f" training: {trained}"
        parts.append(f'<div class="soft">{links}</div>')
    parts.append(f'<div class="soft">{_link(f"#in-table-{_anchor(row)}", "back to the table")}</div>')
    return f'<article class="card" id="{_anchor(row)}">{"".join(parts)}</article>'


def _command(command: str) -> str:
    """A command with a copy button. Lines break only between its words."""
    words = " ".join(f"<span>{escape(word)}</span>" for word in command.split(" "))
    return f'<div class="command"><code>{words}</code><button type="button">copy</button></div>'


def _curves(cells: Iterable[Cell], out: Path) -> str:
    """The training losses over the steps as SVG, a line per network."""
    curves, kind = {}, ""
    for cell in cells:
        if cell.config is None:
            continue
        found = MetricsLog.read(network_of(out, cell))
        points = [(line["step"], line["loss"]) for line in found if "loss" in line]
        if len(points) > 1:
            curves[f"seed {cell.config.seed}"] = points[:: max(1, len(points) // 200)]
            kind = f"loss {cell.config.loss.name}"
    values = [loss for curve in curves.values() for _, loss in curve]
    if not values:
        return ""
    scale = math.log if min(values) > 0 else float
    low, high, last = scale(min(values)), scale(max(values)), max(curve[-1][0] for curve in curves.values())
    kind += ", log scale" if scale is math.log else ""

    def x(step: float) -> float:
        return 60 + 350 * step / last

    def y(part: float) -> float:
        return 170 - 160 * part

    drawn = []
    for part in (0.0, 0.5, 1.0):
        value = low + part * (high - low)
        text = f"{math.exp(value) if scale is math.log else value:.3g}"
        drawn.append(f'<path d="M60 {y(part):.1f}H410" stroke="var(--line)"/>')
        drawn.append(f'<text x="55" y="{y(part) + 4:.1f}" text-anchor="end">{text}</text>')
        drawn.append(f'<text x="{x(part * last):.1f}" y="186" text-anchor="middle">{round(part * last):,}</text>')
    names = []
    for i, (name, curve) in enumerate(curves.items()):
        color = f"hsl({(12 + 137 * i) % 360} 60% 50%)"
        points = [f"{x(step):.1f},{y((scale(loss) - low) / ((high - low) or 1.0)):.1f}" for step, loss in curve]
        drawn.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        names.append(f'<span style="color: {color}">■</span> {name}')
    drawn.append('<text x="235" y="204" text-anchor="middle">training step</text>')
    drawn.append(f'<text transform="translate(11 90) rotate(-90)" text-anchor="middle">{escape(kind)}</text>')
    title = "Training loss over the steps"
    picture = f'<svg viewBox="0 0 430 210" role="img" aria-label="{title}">{"".join(drawn)}</svg>'
    return _figure(picture, title, f": {', '.join(names)}")


def _figure(picture: str, caption: str, more: str = "") -> str:
    """A picture with its caption. A click, Enter or Space enlarges it to the window, and shrinks it again."""
    zoom = f'<details class="zoom"><summary>{picture}</summary></details>'
    return f"<figure>{zoom}<figcaption>{escape(caption)}{more}</figcaption></figure>"


def _image(path: Path, what: str) -> str:
    """An embedded picture, compressed and at most 1280 pixels wide, so that a page with many can be sent."""
    from PIL import Image

    with Image.open(path) as found:
        image = found.convert("RGB")
    image.thumbnail((1280, 4000))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=88)
    data = base64.b64encode(stream.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img alt="{escape(what)}" {size} src="data:image/webp;base64,{data}">'
