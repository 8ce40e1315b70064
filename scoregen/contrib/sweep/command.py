"""Run a sweep: many cells from one short file, and one table that compares them.

    scoregen sweep experiments/NAME/sweep.py --dry-run
    scoregen sweep experiments/NAME/sweep.py
    scoregen sweep experiments/NAME/sweep.py --config.train.steps=20000 --out=sweeps/long

The file's `cells()` yields a dict for each run: its preset as "config", its seed, and the options that it changes. A
finished cell is never run again, an interrupted one resumes, and a failed one is named and tried again the next time.
See docs/sweeps.md.

Exit codes: 0 all cells are done; 1 some failed; 2 something that you can fix, in one line each; 128 + n ended by
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
from scoregen.app.command import answer, say
from scoregen.app.config import blaming, unknown
from scoregen.app.signals import Signals
from scoregen.contrib.sweep.cell import FAILED, folder_of, is_trained, network_of, note, result_of
from scoregen.contrib.sweep.launch import LAUNCHERS, Launcher, last_line, launch
from scoregen.contrib.sweep.plan import Cell, Sweep, placed, read
from scoregen.contrib.sweep.table import as_csv, as_markdown, cells_csv, rows_of, stale, time_left
from scoregen.errors import UsageError
from scoregen.files import check_writable, locked, make_folder, whole
from scoregen.train.log import clock

AGAIN = ".again"  # holds the name of a command with --again until it has done all
FLAGS = (
    Flag("out", "the folder for everything (sweeps/NAME)", value="DIR"),
    Flag("dry-run", "show the cells, which are finished, and the remaining time; run nothing", False),
    Flag("only", "the cells with such names, for example '*loss=ssm*'", value="GLOB"),
    Flag("again", "run finished cells again (--only chooses); their networks stay", False),
    Flag("table", "write the tables and the page again; run nothing", False),
    Flag("workers", "cells at a time (local: one a GPU, else 1; ray and slurm: no limit)", kind=int, value="N"),
    Flag("launcher", f"{', '.join(LAUNCHERS)} (local)", "local", value="NAME"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(argv, _run, _help)


def _help(console: Console) -> None:
    say(console, __doc__ or "")
    lines = [(flag.usage, flag.help) for flag in FLAGS]
    lines.append(("--launch.OPTION=VALUE", "an option of the launcher, such as --launch.slurm_partition=gpu"))
    lines.append(("--config.SECTION.OPTION=VALUE", "changes one option of all cells"))
    for usage, text in lines:
        say(console, f"{usage:<30} {text}")


def _run(argv: list[str], console: Console) -> int:
    given = read_arguments(argv, FLAGS, takes=1, prefixes=("launch",))
    options = SimpleNamespace(**{name.replace("-", "_"): value for name, value in given.values.items()})
    launching = {name: _literal(text) for name, text in given.more["launch"].items()}
    if not given.positional:
        given.errors.append("which sweep? Say: scoregen sweep FILE, such as experiments/losses/sweep.py")
    if options.launcher not in LAUNCHERS:
        given.errors.append(unknown("--launcher", options.launcher, LAUNCHERS))
    if options.launcher == "local":
        given.errors += [f"--launch.{name}: the launcher 'local' has no options but --workers" for name in launching]
    if options.workers is not None and options.workers < 1:
        given.errors.append(f"--workers={options.workers}: at least 1 is needed")

    import jax

    # The cells need the devices; the file's own computations are done on the CPU.
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
        raise UsageError(f"--only={options.only}: no cell has such a name, for instance {sweep.cells[0].name}")
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
            say(console, f"no node of the cluster has room for a cell ({takes}); waiting for one that has")
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
                say(console, "stopped; what was done is saved. The same command goes on")
                return 128 + signals.caught
            if not display.failed:
                (out / AGAIN).unlink()
            return code


def _again(out: Path, stamp: str) -> str:
    """What to call a command with --again: as the one with this measure(run) that has not done all, and so goes on."""
    with contextlib.suppress(OSError):
        if (before := (out / AGAIN).read_text()).endswith(stamp):
            return before
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {stamp}"


def _literal(text: str) -> Any:
    """A number, a bool or a tuple as such, all else as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _show(
    console: Console, sweep: Sweep, chosen: Sequence[Cell], todo: Sequence[Cell], out: Path, room: int | None
) -> int:
    """Say what would run."""
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
    """How long these cells take, `room` of them at once, in words."""
    if not cells:
        return "none"
    if room is None:
        return "unknown, since it depends on the queue"
    if room == 0:
        return "unknown until the cluster has room for a cell"
    seconds = time_left(cells, sweep, out, room)
    return "unknown until a cell is finished" if seconds is None else f"about {clock(seconds)}"


def _report(console: Console, sweep: Sweep, out: Path, failures: int | None = None) -> int:
    """Write the tables, the figure and the page; returns the exit code after so many failures, or the table's own."""
    from scoregen.contrib.sweep.page import page

    with locked(out / ".report", wait=lambda: None):  # by --table beside a sweep that ends
        rows = rows_of(sweep, out)
        markdown = as_markdown(sweep, rows)
        (out / "figure.png").unlink(missing_ok=True)  # of other rows than these
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
    """Draw the figure, by the sweep's draw(rows, path) if there is one; 1 if that failed."""
    from scoregen.contrib.sweep.figure import draw

    if sweep.draw is not None:
        try:
            with whole(path) as fresh, blaming(sweep.path):  # inside: a file it cannot read is no failure to write
                sweep.draw(rows, fresh)
            return 0
        except UsageError as error:
            say(console, f"draw(rows, path) failed: {error}")
    if any(row.figures for row in rows):
        draw(rows, path)
    return int(sweep.draw is not None)


class Display:
    """What runs, and how far all is: moving lines on a terminal, elsewhere one line a cell at its end."""

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
        """One cell has: say so."""
        self.todo.remove(cell)
        self.failed += reason is not None
        self.left = _left(self.todo, self.sweep, self.out, self.launcher.room)
        how = "done" if reason is None else f"FAILED: {reason}"
        left = f"; time left: {self.left}" if self.todo else ""
        say(self.console, f"[{self.total - len(self.todo)}/{self.total}] {cell.name}  {how}{left}")

    def tick(self, running: Sequence[Cell]) -> None:
        """Show what runs now, each with the last line of its log."""
        now = time.monotonic()
        if self.live is None:
            for cell in running:  # which, where there is a queue, is not known
                if cell not in self.begun and self.launcher.room == self.launcher.slots:
                    self.begun.add(cell)
                    say(self.console, f"begun  {cell.name}")
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
