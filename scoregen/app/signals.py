"""Signals of the operating system: a signal stops a run after its state is saved."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from rich.console import Console

T = TypeVar("T")


class Signals:
    """Records SIGINT, SIGTERM and SIGHUP, so that the run can stop at a safe place. A second SIGINT stops it at once.

    A second SIGINT within half a second is ignored, since `timeout` sends each signal twice: to its child and then to
    the group.
    """

    def __init__(self, console: Console, shared: Callable[[int], int] | None = None) -> None:
        """`shared`, for several processes: the largest signal number that any of them received (`mesh.loudest`)."""
        self.console, self.shared = console, shared
        self.caught: int | None = None  # the signal that this process received
        self.number = 0  # the signal that stops the run; the same in all processes
        self.terminal = [output for output in (1, 2) if os.isatty(output)]

    def __enter__(self) -> Signals:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            numbers.append(signal.SIGHUP)
        self.before = {number: signal.signal(number, self._catch) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:  # the terminal is gone, and printing to it would fail
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for output in self.terminal:
                os.dup2(nowhere, output)
        if self.caught is None:
            self.caught, self.at = number, time.monotonic()
            again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            self.console.print(f"{signal.Signals(number).name}: stopping after all is saved{again}", highlight=False)
        elif number == signal.SIGINT and time.monotonic() - self.at > 0.5:
            self.console.show_cursor()  # a progress bar hides it
            os._exit(128 + number)

    def __call__(self) -> bool:
        """Whether to stop. All processes must call this at the same places, and all stop at the same call."""
        if not self.number:
            received = self.caught or 0
            self.number = self.shared(received) if self.shared else received
        return bool(self.number)

    def now(self) -> bool:
        """Whether to stop, including signals up to now. With several processes a single call answers one call late."""
        return self() or self()

    def watch(self, work: Callable[[], T | None]) -> T | None:
        """Do long work that has nothing to save. Returns None if a signal came before its end.

        Several processes must stop at the same place, so with several of them the work itself must check for signals.
        """
        if self.shared:
            done = work()
            return None if self.now() else done
        pool = concurrent.futures.ThreadPoolExecutor(1)
        future = pool.submit(work)
        while not self():
            try:
                return future.result(timeout=0.2)
            except concurrent.futures.TimeoutError:
                if future.done():  # the work itself raised a TimeoutError
                    raise
        return None


def leave(signals: Signals) -> NoReturn:
    """End the process at once, also while a sampler still computes in its thread: it has nothing to save."""
    from scoregen.train import mesh

    sys.stdout.flush()
    sys.stderr.flush()
    mesh.finish()
    os._exit(128 + signals.number)
