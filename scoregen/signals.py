"""What a run is told from outside: signals, which end it once all is saved."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from rich.console import Console

T = TypeVar("T")


class Signals:
    """Remembers SIGINT, SIGTERM and SIGHUP, so that the run can end at a good place; a second SIGINT ends it at once.

    One that follows within half a second is the same one twice: `timeout` signals its child and then the group.
    """

    def __init__(self, console: Console, loudest: Callable[[int], int] | None = None) -> None:
        """`loudest`: of several processes, what all of them are told of what each was sent (`mesh.loudest`)."""
        self.console, self.loudest = console, loudest
        self.caught: int | None = None  # what this process was sent
        self.heard = 0  # what it stops for
        self.terminal = [output for output in (1, 2) if os.isatty(output)]

    def __enter__(self) -> Signals:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup asks for
            numbers.append(signal.SIGHUP)
        self.before = {number: signal.signal(number, self._catch) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:  # the terminal is gone, and to print there would fail
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for output in self.terminal:
                os.dup2(nowhere, output)
        if self.caught is None:
            self.caught, self.at = number, time.monotonic()
            again = "; Ctrl-C again: at once" if number == signal.SIGINT else ""
            self.console.print(f"{signal.Signals(number).name}: stopping once all is saved{again}", highlight=False)
        elif number == signal.SIGINT and time.monotonic() - self.at > 0.5:
            self.console.show_cursor()  # which a bar hides
            os._exit(128 + number)

    def __call__(self) -> bool:
        """Whether to stop. Several processes ask together, and all hear of it at the same call."""
        if not self.heard:
            sent = self.caught or 0
            self.heard = self.loudest(sent) if self.loudest else sent
        return bool(self.heard)

    def now(self) -> bool:
        """Whether to stop, of all that was sent until now: the second answer is to what was said at the first."""
        return self() or self()

    def watch(self, work: Callable[[], T]) -> T | None:
        """Do long work that has nothing to save; None if a signal came before it was done.

        Of several processes none may leave the others in the middle of it: they go by what the work asks on the way.
        """
        if self.loudest:
            done = work()
            return None if self.now() else done
        pool = concurrent.futures.ThreadPoolExecutor(1)
        future = pool.submit(work)
        while not self():
            try:
                return future.result(timeout=0.2)
            except concurrent.futures.TimeoutError:
                if future.done():  # the work's own TimeoutError
                    raise
        return None


def ended(signals: Signals) -> int:
    """Leave at once: a sampler that is still at work in its thread has nothing to save."""
    from scoregen import mesh

    sys.stdout.flush()
    sys.stderr.flush()
    mesh.finish()
    os._exit(128 + signals.heard)
