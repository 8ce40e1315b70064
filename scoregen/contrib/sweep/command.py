"""Run a sweep: many cells from one short file, and one table that compares them.

    scoregen sweep experiments/NAME/sweep.py --dry-run
    scoregen sweep experiments/NAME/sweep.py
    scoregen sweep experiments/NAME/sweep.py --config.train.steps=20000 --out=sweeps/long

A cell is one run of the sweep. The function `cells()` in the file yields a dict for each cell: the preset as "config",
the seed, and the options that the cell changes. If you repeat the command, finished cells are skipped, an interrupted
cell continues, and a failed cell is tried again. See docs/sweeps.md.

Exit codes: 0 all cells are done; 1 some cells failed; 2 an error that you can fix, one line each; 128 + n stopped by
signal n, with everything saved.
"""

from __future__ import annotations

import ast
import contextlib
import fnmatch
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from scoregen.app.arguments import Flag
from scoregen.app.arguments import read as read_arguments
from scoregen.app.command import answer, say, say_flags, say_help
from scoregen.app.config import blaming, unknown
from scoregen.app.signals import Signals
from scoregen.contrib.sweep.cell import FAILED, folder_of, is_trained, network_of, note, result_of
from scoregen.contrib.sweep.launch import LAUNCHERS, Launcher, last_line, launch
from scoregen.contrib.sweep.plan import Cell, Sweep, placed, read
from scoregen.contrib.sweep.table import as_csv, as_markdown, cells_csv, rows_of, stale, time_left
from scoregen.errors import UsageError
from scoregen.files import check_writable, locked, make_folder, whole
from scoregen.train.log import clock

AGAIN = ".again"  # this file names the command with --again that has not finished yet
FLAGS = (
    Flag("out", "the output folder (default: sweeps/NAME)", value="FOLDER"),
    Flag("dry-run", "show each cell, whether it is finished, and the remaining time; run nothing", False),
    Flag("only", "only the cells whose names match, for example '*loss=ssm*'", value="GLOB"),
    Flag("again", "run finished cells again, without training again (add --only to choose cells)", False),
    Flag("table", "write the tables and the HTML page again; run nothing", False),
    Flag("workers", "cells at a time (default: one per GPU, 1 without; no limit with ray, slurm)", kind=int, value="N"),
    Flag("launcher", f"where cells run: {', '.join(LAUNCHERS)} (default: local)", "local", value="NAME"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(argv, _run, _help)


def _help(console: Console) -> None:
    lines = [(flag.usage, flag.help) for flag in FLAGS]
    lines.append(("--launch.OPTION=VALUE", "an option of the launcher, such as --launch.slurm_partition=gpu"))
    lines.append(("--config.SECTION.OPTION=VALUE", "changes one option of all cells"))
    say_help(console, "sweep FILE", __doc__, lambda: say_flags(console, lines))


def _run(argv: list[str], console: Console) -> int:
    given = read_arguments(argv, FLAGS, takes=1, prefixes=("launch",))
    options = SimpleNamespace(**{name.replace("-", "_"): value for name, value in given.values.items()})
    launching = {name: _literal(text) for name, text in given.more["launch"].items()}
    if not given.positional:
        given.errors.append("a sweep file is needed: scoregen sweep FILE, such as experiments/losses/sweep.py")
    if options.launcher not in LAUNCHERS:
        given.errors.append(unknown("--launcher", options.launcher, LAUNCHERS))
    if options.launcher == "local":
        given.errors += [f"--launch.{name}: the only option of the launcher 'local' is --workers" for name in launching]
    if options.workers is not None and options.workers < 1:
        given.errors.append(f"--workers={options.workers}: at least 1 is needed")

    import jax

    # The cells need the devices, so this process computes on the CPU.
    jax.config.update("jax_platforms", "cpu")
    path, sweep = Path(*given.positional[:1]).expanduser(), None
    try:
        sweep = read(path, [override.said for override in given.overrides.values()]) if given.positional else None
    except UsageError as error:
        given.errors += error.args
    given.check()
    assert sweep is not None
    make = LAUNCHERS[options.launcher]
    name = path.resolve().parent.name if path.stem == "sweep" else path.stem
    out = Path(options.out or Path("sweeps", name)).expanduser().absolute()
    sweep = placed(sweep, out)
    chosen = [cell for cell in sweep.cells if fnmatch.fnmatchcase(cell.name, options.only or "*")]
    if not chosen:
        raise UsageError(f"--only={options.only}: no cell has a matching name; one cell is {sweep.cells[0].name}")
    again = _again(out, sweep.stamp) if options.again else ""
    todo = [cell for cell in chosen if not result_of(folder_of(out, cell), cell.key, again)]
    say(console, "\n\n".join(filter(None, [sweep.title, sweep.claim])) + "\n")
    if text := stale(rows_of(sweep, out)):
        say(console, text)
    if options.dry_run:
        room = make(options.workers, out, launching).room if options.launcher == "local" else options.workers
        return _show(console, sweep, chosen, todo, out, room)
    make_folder(out, "--out")
    check_writable(out)
    if options.table:
        return _report(console, sweep, out)
    with locked(out / ".lock"):
        launcher = make(options.workers, out, dict(launching))
        if launcher.room == 0:
            takes = ", ".join(f"{name}={value}" for name, value in launching.items())
            say(console, f"no node of the cluster has room for a cell ({takes}); waiting until a node has")
        (out / AGAIN).write_text(again)
        with Signals(console) as signals:
            with (
                Display(console, sweep, out, chosen, todo, launcher) as display,
                contextlib.closing(launch(sweep, todo, out, launcher, signals, display.tick, again)) as ends,
            ):
                for cell, reason in ends:
                    display.ended(cell, reason)
            code = _report(console, sweep, out, display.failed)
            if signals.caught is not None:
                say(console, "stopped, and all results are saved. The same command continues the sweep")
                return 128 + signals.caught
            if not display.failed:
                (out / AGAIN).unlink()
            return code


def _again(out: Path, stamp: str) -> str:
    """The name of this command with --again. It is the name of an unfinished one with the same measure(run), if any."""
    with contextlib.suppress(OSError):
        if (before := (out / AGAIN).read_text()).endswith(stamp):
            return before
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {stamp}"


def _literal(text: str) -> Any:
    """A text as a Python number, bool or tuple; any other text as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _show(
    console: Console, sweep: Sweep, chosen: Sequence[Cell], todo: Sequence[Cell], out: Path, room: int | None
) -> int:
    """Print what would run (--dry-run)."""
    for cell in chosen:
        folder = folder_of(out, cell)
        failed = note(folder, FAILED, cell.key)
        state = f"failed: {failed['reason']}" if failed else "to run"
        say(console, f"  {cell.name}  {'done' if result_of(folder, cell.key) else state}")
    networks = {cell.training: cell for cell in todo if cell.training is not None}
    missing = sum(not is_trained(network_of(out, cell), cell.config) for cell in networks.values())
    say(console, f"\n{len(todo)} of {len(chosen)} cells to run, {missing} networks to train, in {out}")
    say(console, f"time: {_left(todo, sweep, out, room)}")
    return 0


def _left(cells: Sequence[Cell], sweep: Sweep, out: Path, room: int | None) -> str:
    """The time that these cells take, in words, if `room` of them run at once."""
    if not cells:
        return "none"
    if room is None:
        return "unknown, since it depends on the queue"
    if room == 0:
        return "unknown until the cluster has room for a cell"
    seconds = time_left(cells, sweep, out, room)
    return "unknown until a cell is finished" if seconds is None else f"about {clock(seconds)}"


def _report(console: Console, sweep: Sweep, out: Path, failures: int | None = None) -> int:
    """Write the tables, the figure and the page. Returns the exit code, from `failures` or from all failed cells."""
    from scoregen.contrib.sweep.page import page

    with locked(out / ".report", wait=lambda: None):  # a command with --table may write at the same time
        rows = rows_of(sweep, out)
        markdown = as_markdown(sweep, rows)
        (out / "figure.png").unlink(missing_ok=True)  # it may show other rows
        texts = {"table.csv": as_csv(rows), "cells.csv": cells_csv(rows), "table.md": markdown}
        for name, text in texts.items():
            with whole(out / name) as fresh:
                fresh.write_text(text, encoding="utf-8")
        missing = any(row.results for row in rows) and _draw(console, sweep, rows, out / "figure.png")
        with whole(out / "index.html") as fresh:
            fresh.write_text(page(sweep, rows, out), encoding="utf-8")
    say(console, "\n" + markdown.partition("\n")[2].removeprefix(f"\n{sweep.claim}\n").strip())
    finished, failed = sum(len(row.results) for row in rows), sum(len(row.failed) for row in rows)
    say(console, f"\n{finished} of {len(sweep.cells)} cells finished, {failed} failed; {out / 'index.html'}")
    return int((failed if failures is None else failures) > 0 or missing)


def _draw(console: Console, sweep: Sweep, rows: list[Any], path: Path) -> int:
    """Draw the figure, with the sweep's draw(rows, path) if it has one. Returns 1 if draw(rows, path) failed."""
    from scoregen.contrib.sweep.figure import draw

    if sweep.draw is not None:
        try:
            with whole(path) as fresh, blaming(sweep.path):  # an error of draw() is no failed write
                sweep.draw(rows, fresh)
            return 0
        except UsageError as error:
            say(console, f"draw(rows, path) failed: {error}")
    if any(row.figures for row in rows):
        draw(rows, path)
    return int(sweep.draw is not None)


class Display:
    """The progress of a sweep: a live view on a terminal, else one line per finished cell."""

    def __init__(
        self,
        console: Console,
        sweep: Sweep,
        out: Path,
        chosen: Sequence[Cell],
        todo: Sequence[Cell],
        launcher: Launcher,
    ) -> None:
        self.console, self.sweep, self.out, self.launcher = console, sweep, out, launcher
        self.todo, self.total, self.begun = list(todo), len(chosen), set()
        self.failed, self.began, self.drawn = 0, time.monotonic(), 0.0
        self.left = _left(self.todo, sweep, out, launcher.room)
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Display:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def ended(self, cell: Cell, reason: str | None) -> None:
        """Print that a cell has ended."""
        self.todo.remove(cell)
        self.failed += reason is not None
        self.left = _left(self.todo, self.sweep, self.out, self.launcher.room)
        how = "done" if reason is None else f"FAILED: {reason}"
        left = f"; time left: {self.left}" if self.todo else ""
        say(self.console, f"[{self.total - len(self.todo)}/{self.total}] {cell.name}  {how}{left}")

    def tick(self, running: Sequence[Cell]) -> None:
        """Show the running cells, each with the last line of its log."""
        now = time.monotonic()
        if self.live is None:
            for cell in running:  # with a queue, it is unknown which cells really run
                if cell not in self.begun and self.launcher.room == self.launcher.slots:
                    self.begun.add(cell)
                    say(self.console, f"started  {cell.name}")
        elif now - self.drawn > 0.25:
            self.drawn = now
            done = self.total - len(self.todo)
            failed = f", {self.failed} failed" * (self.failed > 0)
            head = f"{done}/{self.total} cells{failed}  {clock(now - self.began)}  time left: {self.left}"
            lines = [f"  {cell.name}  {last_line(folder_of(self.out, cell))}" for cell in running[:20]]
            lines += [f"  and {len(running) - 20} more"] * (len(running) > 20)
            bar = ProgressBar(self.total, done, width=40)
            texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in [head, *lines]]
            self.live.update(Group(texts[0], bar, *texts[1:]))
