"""The output of a training run: a progress bar, and metrics as JSON lines and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours, minutes and seconds.

    >>> clock(75), clock(7380)
    ('1:15', '2:03:00')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Bar:
    """Progress of one task: a bar on a terminal; otherwise a line every ten seconds and at the end."""

    every = 10.0  # seconds between lines without a terminal

    def __init__(self, console: Console, what: str, total: int, done: int = 0) -> None:
        self.console, self.what, self.total = console, what, total
        self.first, self.done, self.cold = done, done, True
        self.began = self.printed = self.started = time.monotonic()
        self.figures = ""
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(what, total=total, completed=done, figures="")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.done > self.first:
            self.console.print(self.line(), highlight=False)

    def update(self, done: int, **figures: float) -> None:
        """Move to `done`, and show the numbers `figures`. The pace ignores the first step, since it compiles."""
        if self.cold and self.done < done < self.total:
            self.first, self.began, self.cold = done, time.monotonic(), False
        self.done = max(done, self.done)
        if figures:
            self.figures = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._show(f"{self.figures}  {self.pace()}", self.line() if self.done < self.total else "")

    @contextlib.contextmanager
    def aside(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """For other work between steps, whose time the pace ignores. Yields a function of (done, total)."""
        began = time.monotonic()

        def update(done: int, total: int) -> None:
            self._show(f"{what} {done}/{total}", f"{self.what} {self.done}/{self.total}  {what} {done}/{total}")

        try:
            yield update
        finally:
            aside = time.monotonic() - began
            self.began, self.started = self.began + aside, self.started + aside

    def _show(self, figures: str, line: str) -> None:
        self.progress.update(self.task, completed=self.done, figures=figures)
        now = time.monotonic()
        if line and not self.console.is_terminal and now - self.printed >= self.every:
            self.printed = now
            self.console.print(line, highlight=False)

    def rate(self) -> float:
        """Steps per second since the first step, without the time of `aside`."""
        return (self.done - self.first) / max(time.monotonic() - self.began, 1e-9)

    def pace(self) -> str:
        """Steps per second since the first step, and the remaining time; at the end, the total time."""
        rate = self.rate()
        if not rate:
            return ""
        speed = f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each"
        left = (self.total - self.done) / rate
        return f"{speed}  {clock(left)} left" if left else f"{speed}  in {clock(time.monotonic() - self.started)}"

    def line(self) -> str:
        """The bar as a line of text."""
        return "  ".join(filter(None, (f"{self.what} {self.done}/{self.total}", self.figures, self.pace())))


class MetricsLog:
    """Metrics of a run, `metrics.jsonl` (one JSON object a line) and TensorBoard events below `tensorboard/`.

    A run that resumes from step k first removes the lines after step k, so that no step is in the file twice.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with MetricsLog(folder.name, resume_at=0) as log:
    ...     log.write(10, loss=0.5)
    >>> MetricsLog.read(folder.name)
    [{'step': 10, 'loss': 0.5}]
    >>> folder.cleanup()
    """

    def __init__(self, workdir: str | Path, resume_at: int) -> None:
        from tensorboardX import SummaryWriter

        path = Path(workdir, "metrics.jsonl")
        kept = [row for row in self.read(workdir) if row["step"] <= resume_at]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", buffering=1)
        self._events = SummaryWriter(str(Path(workdir, "tensorboard")), purge_step=resume_at + 1)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._events.close()

    def write(self, step: int, **metrics: float) -> None:
        """Add a line, and a point to each curve. A value that is not finite becomes null in the line."""
        row = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)

    @staticmethod
    def read(workdir: str | Path) -> list[dict[str, Any]]:
        """All complete lines of a run's metrics.jsonl. A last line that a kill has cut off is dropped."""
        path = Path(workdir, "metrics.jsonl")
        rows = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows
