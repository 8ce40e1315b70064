"""The parts of the pages of a run and of a sweep: each page is one HTML file, which fetches nothing.

A part is a text of HTML. An argument that is named `html`, or is said to be HTML, is taken as it is; other texts are
escaped.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

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
p, section > ul {{ max-width: 46rem; margin: .6rem 0; }}
section > ul {{ padding-left: 1.2rem; }}
a {{ color: var(--accent); }}
:focus-visible {{ outline: 2px solid var(--accent); outline-offset: 2px; }}
:target {{ outline: 2px solid var(--accent); }}
nav ul {{ margin: .6rem 0; padding-left: 1.2rem; }}
nav > ul > li > ul {{ columns: 22rem; }}
.flat > ul {{ display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; list-style: none; }}
.soft, figcaption {{ color: var(--soft); font-size: .85rem; margin-top: .4rem; }}
.wide + .wide {{ margin-top: 1rem; }}
.wide {{ overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; overflow-wrap: normal; }}
.wide > table {{ min-width: 100%; }}
th, td {{ padding: .4rem .8rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }}
tr:last-child > :is(th, td) {{ border-bottom: 0; }}
thead th {{ border-bottom: 1px solid var(--line) !important; }}
th {{ color: var(--soft); font-weight: 600; }}
td.words {{ white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }}
.fit :is(th, td) {{ white-space: normal; overflow-wrap: anywhere; }}
.facts th {{ width: 9rem; }}
td svg {{ display: block; width: 9rem; height: .8rem; }}
.cards {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }}
.small.cards {{ grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }}
.card {{ border: 1px solid var(--line); border-radius: .5rem; background: var(--card); padding: .8rem; min-width: 0; }}
.failed {{ border-color: var(--accent); }}
figure {{ margin: 0 0 .8rem; }}
.card > figure:last-child {{ margin: 0; }}
figure img, figure svg {{ max-width: 100%; height: auto; display: block; margin: 0 auto; border-radius: .3rem; }}
figure svg {{ width: 100%; }}
svg text {{ fill: var(--soft); font: 11px system-ui, sans-serif; }}
.zoom > summary {{ list-style: none; cursor: zoom-in; }}
.zoom > summary::-webkit-details-marker {{ display: none; }}
.zoom {{ overflow-x: auto; }}
figure img.broad {{ min-width: 44rem; }}
details:not(.zoom) > summary {{ cursor: pointer; }}
section > :is(.wide, details, .card) {{ margin-top: .8rem; }}
details > .wide {{ margin-top: .6rem; }}
.dial {{ display: flex; flex-wrap: wrap; align-items: center; gap: .3rem .8rem; margin-bottom: .8rem; }}
.dial[hidden] {{ display: none; }}
.dial input {{ flex: 1 1 12rem; min-width: 0; height: 2rem; margin: 0; accent-color: var(--accent); }}
.dial output {{ min-width: 7rem; font-variant-numeric: tabular-nums; }}
.frames {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); }}
.command {{ display: flex; gap: .5rem; align-items: start; }}
code {{ font: .8rem ui-monospace, monospace; white-space: pre-wrap; }}
.command code {{ flex: 1; min-width: 0; padding: .3rem .5rem; border: 1px solid var(--line); border-radius: .3rem;
  background: var(--back); user-select: all; }}
.command + .command {{ margin-top: .4rem; }}
code span {{ display: inline-block; max-width: 100%; }}
button {{ font: .8rem system-ui, sans-serif; color: inherit; background: var(--card); cursor: pointer;
  border: 1px solid var(--line); border-radius: .3rem; padding: .3rem .6rem; }}
@media (max-width: 30rem) {{ body {{ padding: .8rem; }} svg text {{ font-size: 13px; }} .facts th {{ width: 5rem; }}
  th, td {{ padding: .35rem .5rem; }} td.words {{ min-width: 9rem; }} .numbers :is(th, td) {{ white-space: normal; }} }}
@media screen {{
  .zoom[open] > summary {{ position: fixed; inset: 0; z-index: 1; display: flex; padding: 1rem; cursor: zoom-out;
    background: var(--card); }}
  .zoom[open] > summary > * {{ width: 100%; height: 100%; min-width: 0; max-width: none;
    object-fit: contain; }}
  .one > .frames {{ display: block; }}
  .one :is(.away, figcaption) {{ display: none; }} }}
@media print {{
  :root {{ color-scheme: light; {LIGHT} }}
  body {{ max-width: none; padding: 0; font-size: .85rem; }}
  nav, button, .dial, .frame:not(.key) {{ display: none; }}
  .cards {{ display: block; }}
  .small.cards, .frames {{ display: grid; grid-template-columns: 1fr 1fr; }}
  .card {{ margin-bottom: 1rem; }}
  figure, tr, .command, .small > .card {{ break-inside: avoid; }}
  h2 {{ break-after: avoid; }}
  figure img.broad {{ min-width: 0; }}
  .wide {{ overflow: visible; }}
  .wide > table {{ font-size: .7rem; }}
  th, td {{ white-space: normal; overflow-wrap: anywhere; padding: .2rem; }}
  .numbers :is(th, td) {{ overflow-wrap: normal; }}
  td svg {{ width: 100%; }} }}
"""
# Optional. Without scripts a click selects a whole command, a second click or Enter shrinks a picture again, and all
# pictures of a course are shown.
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
document.querySelectorAll(".course").forEach(course => {
  const dial = course.querySelector(".dial"), slider = dial.querySelector("input");
  const frames = [...course.querySelectorAll(".frame")];
  const show = () => {
    frames.forEach((frame, i) => frame.classList.toggle("away", i != slider.value));
    const said = frames[slider.value].dataset.name;
    dial.querySelector("output").textContent = said;
    slider.setAttribute("aria-valuetext", said);
  };
  slider.addEventListener("input", show);
  course.classList.add("one");
  dial.hidden = false;
  show();
});
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page from HTML parts, with the style and the script inside."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def sections(html: Mapping[str, str], below: Mapping[str, str] | None = None) -> list[str]:
    """The contents, and a section for each title with its HTML. Sections without any are left out.

    `below` has HTML for the contents, to stand below the line of a title; without it the contents are one line.
    """
    found = {title: text for title, text in html.items() if text}
    lines = [link(f"#{identifier(title)}", title) + (below or {}).get(title, "") for title in found]
    look = "" if below else ' class="flat"'
    return [
        f'<nav aria-label="contents"{look}>{items(lines)}</nav>',
        *(f'<section id="{identifier(title)}"><h2>{title}</h2>{text}</section>' for title, text in found.items()),
    ]


def identifier(title: str) -> str:
    """The id of a section.

    >>> identifier("Row by row, each")
    'row-by-row-each'
    """
    return "-".join("".join(each if each.isalnum() else " " for each in title.lower()).split())


def link(address: str, text: str) -> str:
    """A link."""
    return f'<a href="{escape(address)}">{escape(text)}</a>'


def links(folder: Path, names: Iterable[str], page: Path) -> str:
    """Links to the existing files of a folder, relative to the folder of the page."""
    there = [folder / name for name in names if (folder / name).exists()]
    return " ".join(link(quote(path.relative_to(page).as_posix()), path.name) for path in there)


def items(html: Iterable[str]) -> str:
    """A list."""
    return f"<ul>{''.join(f'<li>{item}</li>' for item in html)}</ul>"


def line(html: Iterable[str], tag: str = "td") -> str:
    """A line of a table, from the HTML of its cells.

    >>> line(["a", "b"], "th")
    '<tr><th>a</th><th>b</th></tr>'
    """
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in html)}</tr>"


def scrolled(html: Iterable[str], name: str, more: str = "") -> str:
    """A table, from the HTML of its lines, in its own box. It scrolls if it is wider, also with the arrow keys."""
    box = f'<div class="wide{more}" tabindex="0" role="region" aria-label="{escape(name)}">'
    return f"{box}<table>{''.join(html)}</table></div>"


def facts(html: Iterable[tuple[str, str]], name: str) -> str:
    """A table of names, each with the HTML of its value."""
    lines = (f'<tr><th scope="row">{escape(of)}</th><td class="words">{value}</td></tr>' for of, value in html)
    return scrolled(lines, name, " facts")


def command(text: str) -> str:
    """A command with a copy button. Lines break only between its words."""
    words = " ".join(f"<span>{escape(word)}</span>" for word in text.split(" "))
    return f'<div class="command"><code>{words}</code><button type="button">copy</button></div>'


def card(html: str, more: str = "") -> str:
    """A box with a frame around some HTML."""
    return f'<div class="card{more}">{html}</div>'


def figure(picture: str, caption: str, html: str = "") -> str:
    """A picture (HTML) with its caption. A click, Enter or Space enlarges it to the window, and shrinks it again."""
    zoom = f'<details class="zoom"><summary>{picture}</summary></details>'
    return f"<figure>{zoom}<figcaption>{escape(caption)}{html}</figcaption></figure>"


def image(path: Path, what: str) -> str:
    """An embedded picture, compressed and of moderate size, so that a page with many pictures can be sent.

    Large pictures are made smaller by a whole factor, since other factors would blur their pixels unevenly. A picture
    that is more than twice as wide as high scrolls on a narrow screen, where its text would be too small. In place of a
    file that is no whole picture, a line says so.
    """
    try:
        stat = path.stat()
        data, width, height = _embedded(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, SyntaxError, ValueError):  # Pillow raises any of them for a damaged file
        return f"<p>{escape(path.name)} cannot be read</p>"
    look = ' class="broad"' if width > max(2 * height, 700) else ""
    size = f'width="{width}" height="{height}"'
    return f'<img{look} alt="{escape(what)}" {size} src="data:image/webp;base64,{data}">'


WIDEST = 1600, 4000  # pixels of an embedded picture, at most


@functools.lru_cache(maxsize=128)
def _embedded(path: Path, changed: int, size: int) -> tuple[str, int, int]:
    """The data of a picture in base64, its width and its height. A page that is renewed encodes only new pictures."""
    from PIL import Image

    with Image.open(path) as found:
        picture = found.convert("RGB")
    factor = max(math.ceil(side / most) for side, most in zip(picture.size, WIDEST, strict=True))
    if factor > 1:
        picture = picture.reduce(factor)
    best = min((_webp(picture, lossless=True, quality=50, method=2), _webp(picture, quality=88)), key=len)
    return base64.b64encode(best).decode(), *picture.size


def _webp(picture: object, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "WEBP", **options)  # pyright: ignore[reportAttributeAccessIssue]
    return stream.getvalue()


def course(frames: Sequence[tuple[str, str]], name: str) -> str:
    """Pictures (name, HTML) with a slider that chooses one. Without scripts all are shown, and a few are printed."""
    last = len(frames) - 1
    printed = {round(last * part / 3) for part in range(4)}
    shown = [
        f'<div class="frame{" key" if i in printed else ""}" data-name="{escape(of)}">{html}</div>'
        for i, (of, html) in enumerate(frames)
    ]
    dial = (
        f'<div class="dial" hidden><label for="slider">{escape(name)}</label><input type="range" id="slider" min="0" '
        f'max="{last}" value="{last}" autocomplete="off"><output for="slider">{escape(frames[-1][0])}</output></div>'
    )
    return f'<div class="course">{dial}<div class="frames">{"".join(shown)}</div></div>'


# Curves


@dataclasses.dataclass(frozen=True)
class Curve:
    """A curve of a plot.

    Attributes:
        points: (x, y); points that are not finite are left out.
        color: a colour of CSS.
        look: "line", "faint" (a thin line behind others) or "dots" (a line with a dot at each point).
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    look: str = "line"


MOST = 400  # points of a curve that are drawn
LEFT, RIGHT, TOP, BOTTOM = 64, 414, 10, 170  # the axes of a plot


def plot(curves: Iterable[Curve], title: str, x: str, y: str, zero: bool = False) -> str:
    """Curves as an SVG figure with the names of its axes, `x` and `y`; "" if there is nothing to draw.

    The vertical axis is logarithmic if all values are positive, or with `zero` it begins at 0.

    >>> drawn = plot([Curve("a", [(0, 1.0), (4000, 0.0004)], "red")], "Loss", "step", "loss")
    >>> ">0.001</text>" in drawn, "on a log scale" in drawn
    (True, True)
    """
    known = [dataclasses.replace(curve, points=[p for p in curve.points if all(map(_drawn, p))]) for curve in curves]
    known = [curve for curve in known if curve.points]
    if not known:
        return ""
    values = [value for curve in known for _, value in curve.points] + [0.0] * zero
    log = min(values) > 0
    scale = math.log10 if log else float
    low, high = scale(min(values)), scale(max(values))
    room = 0.04 * (high - low) or 0.1 * (1 if log else max(1, abs(low)))
    low, high = low if zero and low == 0 else low - room, high + room
    last = max(point[0] for curve in known for point in curve.points) or 1.0

    def across(step: float) -> float:
        return LEFT + (RIGHT - LEFT) * step / last

    def up(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (scale(value) - low) / (high - low)

    drawn = []
    for tick in log_ticks(10**low, 10**high) if log else ticks(low, high):
        drawn.append(f'<path d="M{LEFT} {up(tick):.1f}H{RIGHT}" stroke="var(--line)"/>')
        drawn.append(f'<text x="{LEFT - 5}" y="{up(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in ticks(0, last, 4):
        drawn.append(f'<path d="M{across(tick):.1f} {BOTTOM}v4" stroke="var(--soft)"/>')
        drawn.append(f'<text x="{across(tick):.1f}" y="187" text-anchor="middle">{_number(tick)}</text>')
    drawn.append(f'<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="var(--soft)"/>')
    for curve in known:
        points = [(across(step), up(value)) for step, value in thinned(curve.points)]
        thick = 'stroke-width="1" opacity=".35"' if curve.look == "faint" else 'stroke-width="1.6"'
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{curve.color}" {thick}/>')
        if curve.look == "dots" or len(points) == 1:
            drawn += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{curve.color}"/>' for a, b in points]
    drawn.append(f'<text x="{(LEFT + RIGHT) / 2}" y="206" text-anchor="middle">{escape(x)}</text>')
    drawn.append(f'<text transform="translate(12 90) rotate(-90)" text-anchor="middle">{escape(y)}</text>')
    names = ", ".join(f"{_key(curve)} {escape(curve.name)}" for curve in known)
    picture = f'<svg viewBox="0 0 430 212" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'
    return figure(picture, title, f"{', on a log scale' if log else ''}: {names}")


def thinned(points: Sequence[tuple[float, float]], most: int = MOST) -> list[tuple[float, float]]:
    """At most about `most` of some points, evenly chosen, with the last one.

    >>> thinned([(i, 0.0) for i in range(10)], 3)
    [(0, 0.0), (4, 0.0), (8, 0.0), (9, 0.0)]
    """
    every = math.ceil(len(points) / most)
    return [*points[:-1:every], points[-1]]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, at most about `most`.

    >>> ticks(0, 4000), ticks(0.31, 0.92)
    ([0.0, 1000.0, 2000.0, 3000.0, 4000.0], [0.4, 0.6, 0.8])
    """
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * by for by in (1, 2, 5, 10, 20) if size * by >= rough * 0.99)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones for a logarithmic axis.

    >>> log_ticks(0.0004, 1), log_ticks(0.2, 3), log_ticks(0.9, 1.2)
    ([0.001, 0.01, 0.1, 1.0], [0.3, 1.0, 3.0], [0.9, 1.0, 1.1, 1.2])
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [float(f"{by}e{power}") for power in exponents[:: max(1, len(exponents) // 6)] for by in factors]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) >= 3:
            return found
    return ticks(low, high, 4)


def _drawn(value: float | None) -> bool:
    """Whether a value can be drawn. The numbers of an axis from 1e-250 to 1e250 neither overflow nor become 0."""
    return value is not None and (value == 0 or 1e-250 < abs(value) < 1e250)


def _number(value: float) -> str:
    return f"{value:,.10g}" if 1e-4 <= abs(value) < 1e7 or value == 0 else f"{value:.3g}"


def _key(curve: Curve) -> str:
    faint = "; opacity: .5" if curve.look == "faint" else ""
    return f'<span style="color: {curve.color}{faint}">{"●" if curve.look == "dots" else "■"}</span>'
