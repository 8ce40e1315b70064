"""The output of a training run: a progress bar, and the log of its metrics and pictures."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from scoregen.errors import UsageError
from scoregen.train.loggers import JsonLines, LoggedRun, Logger


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
    """The log of a run: metrics.jsonl in the workdir, always, and other loggers.

    An exception of another logger does not stop the training: it is reported in one line, and this logger gets nothing
    more.

    Args:
        workdir: the folder of the run; None to have no metrics.jsonl.
        resume_at: the step that the run continues from, 0 for a new run.
        loggers: the other loggers.
        config: the configuration of the run, for loggers that store it.
        say: prints the lines about loggers; None for stderr.

    Raises:
        UsageError: on entry, if a logger cannot start a new run. A resumed run goes on without it.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with MetricsLog(folder.name, resume_at=0) as log:
    ...     log.write(10, loss=0.5)
    >>> MetricsLog.read(folder.name)
    [{'step': 10, 'loss': 0.5}]
    >>> folder.cleanup()
    """

    def __init__(
        self,
        workdir: str | Path | None,
        resume_at: int,
        loggers: Iterable[Logger] = (),
        config: Mapping[str, Any] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        folder = None if workdir is None else Path(workdir)
        self._say = say or (lambda line: print(line, file=sys.stderr))
        last = max((row["step"] for row in self.read(folder)), default=0) if folder else 0
        name = folder.resolve().name if folder else "run"
        self._run = LoggedRun(name, folder, resume_at, max(last, resume_at), config or {}, self._say)
        self._lines = JsonLines() if folder else None
        # metrics.jsonl is written anyway, and would have every line twice.
        self._loggers = [logger for logger in loggers if folder is None or type(logger) is not JsonLines]

    def __enter__(self) -> MetricsLog:
        # metrics.jsonl comes last, so that it stays as it was if another logger refuses the run.
        for logger in list(self._loggers):
            try:
                logger.start(self._run)
            except Exception as error:
                what = f"{type(logger).__name__} could not start: {_line(error)}"
                if self._run.step == 0:
                    for other in self._loggers:
                        self._close(other)
                    raise UsageError(f"{what}; correct this, or train without this logger") from error
                self._leave_out(logger, what)
        if self._lines is not None:
            self._lines.start(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        for logger in self._loggers:
            with self._guarded(logger, "at its end"):
                logger.close()
        if self._lines is not None:
            self._lines.close()

    def write(self, step: int, **metrics: float) -> None:
        """Log metrics of a step by name."""
        if self._lines is not None:
            self._lines.scalars(step, metrics)
        for logger in list(self._loggers):
            with self._guarded(logger, f"at step {step}"):
                logger.scalars(step, metrics)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Log a picture, uint8 `[H, W, C]` with 1 or 3 channels. Another one is reported and left out."""
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
            self._say(f"the picture {name} is {image.dtype} {list(image.shape)}, and uint8 [H, W, 1 or 3] is needed")
            return
        for logger in list(self._loggers):
            with self._guarded(logger, f"at step {step}"):
                logger.picture(step, name, image)

    @contextlib.contextmanager
    def _guarded(self, logger: Logger, when: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._leave_out(logger, f"{type(logger).__name__} failed {when}: {_line(error)}")

    def _leave_out(self, logger: Logger, why: str) -> None:
        self._say(f"{why}; the training goes on without it")
        self._loggers = [other for other in self._loggers if other is not logger]
        self._close(logger)

    def _close(self, logger: Logger) -> None:
        with contextlib.suppress(Exception):
            logger.close()

    @staticmethod
    def read(workdir: str | Path) -> list[dict[str, Any]]:
        """All complete lines of a run's metrics.jsonl; see `JsonLines.read`."""
        return JsonLines.read(workdir)


def _line(error: Exception) -> str:
    """An exception as one line."""
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, UsageError) else type(error).__name__
    return ": ".join(filter(None, (kind, text)))
