"""The table of a sweep, with standard errors. Cells that differ only in their seed share a row."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scoregen.contrib.sweep.cell import FAILED, folder_of, is_trained, network_of, note, result_of
from scoregen.contrib.sweep.plan import Cell, Sweep, apart, short


@dataclasses.dataclass(frozen=True)
class Row:
    """Cells that differ only in their seed. The function draw(rows, path) of a sweep gets a list of rows.

    Attributes:
        options: the options that distinguish the row, such as {"loss.name": "ssm"}.
        cells: all cells of the row.
        results: name of a finished cell -> its result.
        failed: name of a failed cell -> the reason.
        stale: the names of the cells whose results come from an older measure(run).
        out: the sweep's folder.
    """

    options: dict[str, Any]
    cells: list[Cell]
    results: dict[str, dict[str, Any]]
    failed: dict[str, str]
    stale: list[str]
    out: Path

    @property
    def folders(self) -> list[Path]:
        """The folders of the finished cells: `run.workdir` in their measure(run)."""
        return [folder_of(self.out, cell) for cell in self.cells if cell.name in self.results]

    @property
    def label(self) -> str:
        """The options in one line."""
        return ", ".join(f"{short(key)}={value}" for key, value in self.options.items() if value != "") or "all"

    @property
    def count(self) -> str:
        """The numbers of finished cells, of all cells if some are missing, and of stale cells."""
        text = f"{len(self.results)}" + (f" of {len(self.cells)}" if len(self.results) < len(self.cells) else "")
        return text + f", {len(self.stale)} stale" * bool(self.stale)

    @property
    def figures(self) -> list[str]:
        """The names of the measured values."""
        return _once(name for result in self.results.values() for name in result["figures"])

    def values(self, figure: str) -> list[float]:
        """The values with this name in the finished cells that have it."""
        return [found["figures"][figure] for found in self.results.values() if figure in found["figures"]]

    def mean(self, figure: str) -> float:
        """The mean of `values`; nan if there are none."""
        values = self.values(figure)
        return statistics.fmean(values) if values else math.nan

    def error(self, figure: str) -> float | None:
        """The standard error of the mean, s / sqrt(n) with n - 1 in s; None for fewer than two values."""
        values = self.values(figure)
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None

    def floor(self, figure: str) -> float | None:
        """The value of a perfect sampler, if it is known."""
        known = [found["floors"][figure] for found in self.results.values() if figure in found["floors"]]
        return statistics.fmean(known) if known else None

    def seconds(self) -> float:
        """The mean time of a cell without its training; nan if none is finished."""
        return statistics.fmean(found["seconds"] for found in self.results.values()) if self.results else math.nan


def rows_of(sweep: Sweep, out: Path) -> list[Row]:
    """The rows of the table, in the order of the sweep's file, with the results in the folder `out`."""
    keys = [key for key in apart(sweep.cells) if key != "seed"]
    groups: dict[str, list[Cell]] = {}
    for cell in sweep.cells:
        groups.setdefault(cell.group, []).append(cell)
    rows = []
    for cells in groups.values():
        results, failed = {}, {}
        for cell in cells:
            if found := result_of(folder_of(out, cell), cell.key):
                results[cell.name] = found
            elif found := note(folder_of(out, cell), FAILED, cell.key):
                failed[cell.name] = found["reason"]
        options = {key: "" if (value := cells[0].said.get(key)) is None else value for key in keys}
        stale = [name for name, found in results.items() if found["measure"] != sweep.stamp]
        rows.append(Row(options, cells, results, failed, stale, out))
    return rows


def plus_minus(mean: float, error: float | None) -> str:
    """A mean and its standard error, rounded to two digits of the error.

    >>> plus_minus(0.123456, 0.00712), plus_minus(1234.5, 31.0), plus_minus(0.123456, None), plus_minus(2.0, 0.0)
    ('0.1235 ± 0.0071', '1234 ± 31', '0.1235', '2 ± 0')
    """
    if math.isnan(mean):
        return "–"
    if not error:
        return f"{mean:.4g}" + " ± 0" * (error == 0)
    digits = 1 - math.floor(math.log10(error))
    if not -3 <= digits <= 6:
        return f"{mean:.4g} ± {error:.2g}"
    digits = max(0, digits)
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def all_figures(rows: Sequence[Row]) -> list[str]:
    """The names of the measured values of all rows."""
    return _once(name for row in rows for name in row.figures)


def tables(rows: Sequence[Row]) -> list[tuple[list[str], list[Row]]]:
    """Split the rows into tables (options, rows). Rows with the same measured values share a table.

    A row without a result goes to the table of the row before it.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    kind = next((tuple(row.figures) for row in rows if row.figures), ())
    for row in rows:
        kind = tuple(row.figures) or kind
        groups.setdefault(kind, []).append(row)
    return [
        ([key for key in group[0].options if any(row.options[key] != "" for row in group)], group)
        for group in groups.values()
    ]


def as_csv(rows: Sequence[Row]) -> str:
    """A line for each row: options, numbers of cells, and mean, standard error and floor of each measured value."""
    figures, options = all_figures(rows), rows[0].options
    floors = [figure for figure in figures if any(row.floor(figure) is not None for row in rows)]
    head = [*map(short, options), "finished", "failed", "stale"]
    for figure in figures:
        head += [figure, f"{figure}, standard error", *([f"{figure}, floor"] if figure in floors else [])]
    lines = [[*head, "seconds"]]
    for row in rows:
        line = [*row.options.values(), len(row.results), len(row.failed), len(row.stale)]
        for figure in figures:
            line += [row.mean(figure), row.error(figure), *([row.floor(figure)] if figure in floors else [])]
        lines.append([*map(_blank, line), _blank(round(row.seconds(), 2))])
    return _csv(lines)


def cells_csv(rows: Sequence[Row]) -> str:
    """A line for each finished cell: its name, options, seed and measured values."""
    figures = all_figures(rows)
    lines = [["cell", *map(short, rows[0].options), "seed", "stale", *figures, "seconds"]]
    for row in rows:
        for cell in row.cells:
            if found := row.results.get(cell.name):
                line = [cell.name, *row.options.values(), cell.said.get("seed", ""), int(cell.name in row.stale)]
                lines.append([*line, *(found["figures"].get(figure, "") for figure in figures), found["seconds"]])
    return _csv(lines)


def as_markdown(sweep: Sweep, rows: Sequence[Row]) -> str:
    """The tables in Markdown, with the title, the claim and the failures."""
    parts = [f"# {sweep.title}", sweep.claim, *(_marked(*table) for table in tables(rows)), legend(rows)]
    failed = [f"- `{name}`: {reason}" for row in rows for name, reason in row.failed.items()]
    parts.append("\n".join([f"Failed, {len(failed)}:", "", *failed]) if failed else "")
    return "\n\n".join(filter(None, parts)) + "\n"


def _marked(options: Sequence[str], rows: Sequence[Row]) -> str:
    figures = all_figures(rows)
    lines = [[*map(short, options), "cells", *figures]]
    for row in rows:
        said = [str(row.options[key]) for key in options]
        lines.append([*said, row.count, *(cell_text(row, figure) for figure in figures)])
    marked = [f"| {' | '.join(map(_safe, line))} |" for line in lines]
    return "\n".join([marked[0], "|" + "---|" * len(lines[0]), *marked[1:]])


def _safe(text: str) -> str:
    r"""A text in a cell of Markdown.

    >>> _safe("a|b < c\nd")
    'a\\|b &lt; c d'
    """
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def stale(rows: Sequence[Row]) -> str:
    """A line about the results of an older measure(run); "" if there are none."""
    count = sum(len(row.stale) for row in rows)
    text = f"Stale results: {count}, from before measure(run) was changed; --again measures them again."
    return text * (count > 0)


def legend(rows: Sequence[Row]) -> str:
    """The explanation of the numbers in the table."""
    most = max(len(row.cells) for row in rows)
    text = "Mean ± standard error over the seeds." if most > 1 else "One cell per row, so there is no standard error."
    floors = any(row.floor(figure) is not None for row in rows for figure in row.figures)
    parts = [text, "Floor: the value of a perfect sampler, computed from as many real examples." * floors, stale(rows)]
    return " ".join(filter(None, parts))


def cell_text(row: Row, figure: str) -> str:
    """The mean of a measured value, its error and its floor as text."""
    floor = row.floor(figure)
    return plus_minus(row.mean(figure), row.error(figure)) + (f" (floor {floor:.3g})" if floor is not None else "")


def time_left(cells: Sequence[Cell], sweep: Sweep, out: Path, slots: int) -> float | None:
    """An estimate of the seconds that these cells take, from the finished cells; None if no cell is finished.

    The estimate for a cell is the mean time of its row, or of all cells. The same holds for a training, which counts
    once for all cells that share it.
    """
    rows = rows_of(sweep, out)
    finished = [found for row in rows for found in row.results.values()]
    if not finished:
        return None
    trained = [found["training"] for found in finished if found["training"]]
    usual = {cell.name: row.results.values() for row in rows for cell in row.cells}
    total, seen = 0.0, set()
    for cell in cells:
        total += statistics.fmean(found["seconds"] for found in usual[cell.name] or finished)
        if cell.training is not None and cell.training not in seen and trained:
            seen.add(cell.training)
            if not is_trained(network_of(out, cell), cell.config):
                alike = [found["training"] for found in usual[cell.name] if found["training"]]
                total += statistics.fmean(alike or trained)
    return total / max(1, min(slots, len(cells)))


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _blank(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
