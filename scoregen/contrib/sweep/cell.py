"""One cell of a sweep, in a process of its own: python -m scoregen.contrib.sweep.cell FOLDER

It trains the network of the cell, unless another cell has trained it, samples and evaluates it like `scoregen eval`,
and calls measure(run) of the sweep. It writes result.json last and atomically; a cell with this file is finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import shlex
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from scoregen.app import config as config_lib
from scoregen.app.command import advice, answer, say, suppress_warnings
from scoregen.app.config import Config, blaming
from scoregen.app.signals import Signals, leave
from scoregen.contrib.sweep.plan import Cell, Sweep, execute, headings, stamp_of
from scoregen.errors import UsageError
from scoregen.files import from_json, locked, to_json, whole

if TYPE_CHECKING:
    import numpy as np

    from scoregen.app.api import Run
    from scoregen.app.build import Parts

TASK, RESULT, FAILED, LOG, LOCK = "cell.json", "result.json", "failed.json", "log.txt", ".lock"
BEFORE = "result.before.json"  # the previous result, if the cell was run again and failed


@dataclasses.dataclass(frozen=True)
class Subject:
    """The argument of a sweep's measure(run).

    Attributes:
        options: the cell's options under "sweep."; all options if the cell trains nothing.
        workdir: the cell's folder, where measure(run) can write files.
        run: the trained run, as from `scoregen.load`, with `.denoiser`, `.params`, `.step`, `.parts` ...; its
            `workdir` is the folder of the training. None if the cell trains nothing.
    """

    options: dict[str, Any]
    workdir: Path
    run: Run | None = None

    @property
    def parts(self) -> Parts:
        """The parts of the run, as its configuration names them."""
        assert self.run is not None and self.run.parts is not None
        return self.run.parts

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return self.parts.config

    @property
    def samples(self) -> np.ndarray:
        """The samples `[N, ...]` that were drawn and evaluated, in the network's units."""
        from scoregen.app.report import saved_data

        return saved_data(self.workdir, self.parts.dataset, self.parts.scaling)


def folder_of(out: Path, cell: Cell) -> Path:
    """The folder of a cell."""
    return out / "cells" / cell.name


def network_of(out: Path, cell: Cell) -> Path:
    """The folder of a cell's network, a workdir of `scoregen train`."""
    assert cell.training is not None
    return out / "trained" / cell.training


def is_trained(network: Path, config: Config) -> bool:
    """Whether the training in a folder is complete."""
    return (network / "checkpoints" / str(config.train.steps)).is_dir()


def prepare(out: Path, sweep: Sweep, cell: Cell, again: str = "") -> Path:
    """Write the task of a cell into its folder, for the process of the cell; `again` as in `result_of`."""
    folder = folder_of(out, cell)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED).unlink(missing_ok=True)
    task = {
        "sweep": str(sweep.path.resolve()),
        "measure": sweep.stamp,
        "headings": headings(sweep.cells),
        "key": cell.key,
        "again": again,
        "options": cell.options,
    }
    if cell.config is not None:
        task |= {"preset": cell.preset, "trained": str(network_of(out, cell))}
        with whole(folder / "config.json") as fresh:
            fresh.write_text(config_lib.to_json(cell.config))
    with whole(folder / TASK) as fresh:
        fresh.write_text(to_json(task))
    return folder


def note(folder: Path, name: str, key: str) -> dict[str, Any] | None:
    """The content of the file `name` of a cell, its result or its failure; None without it or with another key."""
    try:
        found = from_json((folder / name).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key else None


def result_of(folder: Path, key: str, again: str = "") -> dict[str, Any] | None:
    """The result of a cell. `again` names a command with --again: then only a result of this command counts."""
    found = note(folder, RESULT, key)
    return found if found and again in ("", found.get("again")) else None


def fail(folder: Path, key: str, reason: str, training: bool = False, again: str = "") -> None:
    """Write the reason of a failure, and whether the training failed. An older result is renamed to `BEFORE`."""
    if again and (found := note(folder, RESULT, key)) and found["again"] != again:
        (folder / RESULT).replace(folder / BEFORE)
    with whole(folder / FAILED) as fresh:
        fresh.write_text(to_json({"key": key, "reason": reason, "training": training}))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cell of a folder; returns the exit code."""
    _end_with_parent()
    return answer(argv, lambda argv, console: _run(Path(argv[0]).absolute(), console), lambda console: None)


def _end_with_parent() -> None:
    """From now on, exit when the parent process exits. Its exit closes the pipe to the standard input."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=watch, daemon=True).start()


def _run(folder: Path, console: Console) -> int:
    task = from_json((folder / TASK).read_text())
    # After a broken connection two processes can have the same task. The second waits, and then finds the result.
    with locked(folder / LOCK, wait=_saying(console, folder)), Signals(console) as signals:
        if result_of(folder, task["key"], task["again"]):
            return 0
        work = _Work(folder, task, console, signals)
        began = time.monotonic()
        try:
            found = work()
        except Exception as error:
            fail(folder, task["key"], _reason(error), work.training, task["again"])
            if isinstance(error, UsageError) and error.__cause__ is not None:  # from the user's code
                traceback.print_exception(error.__cause__)
            raise
        seconds = time.monotonic() - began - work.trained_for
        times = {"seconds": round(seconds, 2), "training": round(work.trained_for, 2)}
        result = {"key": task["key"], "again": task["again"]} | times | found
        with whole(folder / RESULT) as fresh:
            fresh.write_text(to_json(result))
    return 0


def _reason(error: Exception) -> str:
    """One line for a failure. It names the line of code, unless a user can fix the failure with an option."""
    message = advice(error)
    if message is not None:
        return message
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__}: {config_lib.first_line(error)}{where}"


@dataclasses.dataclass
class _Work:
    folder: Path
    task: dict[str, Any]
    console: Console
    signals: Signals
    training: bool = False  # whether it is training now
    trained_for: float = 0.0  # seconds of training

    def __call__(self) -> dict[str, Any]:
        path = Path(self.task["sweep"])
        source, module = execute(path)
        if stamp_of(source) != self.task["measure"]:  # a row must not have cells of two measures
            raise UsageError(
                f"{path}: its measure(run) has changed since the sweep started: start the same command again"
            )
        options, figures, floors = config_lib.tuples(self.task["options"]), {}, {}
        subject = Subject(options, self.folder)
        if "trained" in self.task:
            subject, figures, floors = self.train_and_evaluate(options)
        if measure := module.get("measure"):
            with blaming(path):
                measured = self.signals.watch(lambda: measure(subject))
            if measured is None and self.signals():
                leave(self.signals)
            more, its_floors = _numbers(measured, path, {*self.task["headings"], *figures})
            figures, floors = figures | more, floors | its_floors
        return {
            "figures": figures,
            "floors": floors,
            "step": 0 if subject.run is None else subject.run.step,
            "measure": self.task["measure"],
        } | _device()

    def train_and_evaluate(self, options: dict[str, Any]) -> tuple[Subject, dict[str, float], dict[str, float]]:
        from scoregen.app.actions import Action, agree
        from scoregen.app.build import build
        from scoregen.app.report import save_curve

        config = config_lib.load(str(self.folder / "config.json"), over=self.task["preset"], trains=True)
        parts = build(config)
        config = parts.config  # with the network that "auto" has chosen
        trained = Path(self.task["trained"])
        trained.mkdir(parents=True, exist_ok=True)
        again = f"scoregen sweep {shlex.quote(self.task['sweep'])}"
        # A second lock: the lock of the training itself raises an error instead of waiting.
        with locked(trained / ".cells.lock", wait=_saying(self.console, trained, self.signals)):
            agree(config, trained, "train")
            training = Action(parts, trained, trained, "train", self.console, self.signals, again)
            fresh, began, self.training = not is_trained(trained, config), time.monotonic(), True
            # Also if the training is complete, to replace a checkpoint that was damaged later.
            run = training.train()
            if self.signals():
                leave(self.signals)
            self.training = False
            if fresh:
                self.trained_for = time.monotonic() - began
                save_curve(
                    trained / "loss.png", trained, f"{config.name}, trained on {config.data.name}", training.loss()
                )
            if config.sampler.best:
                run = training.restore()
        evaluated = config.eval.at_end and config.sampler.control.name == "none" and config.sampler.label < 0
        mode = "eval" if evaluated else "sample"
        Action(parts, trained, self.folder, mode, self.console, self.signals, again).results(run)
        found = from_json((self.folder / "distances.json").read_text())["distances"] if evaluated else []
        figures = {row["name"]: row["value"] for row in found}
        floors = {row["name"]: row["floor"] for row in found if "floor" in row}
        return Subject(options, self.folder, run), figures, floors


def _saying(console: Console, folder: Path, signals: Signals | None = None) -> Callable[[], None]:
    """A callback while waiting for a lock. It prints one line, since the lock may belong to a lost node."""
    say_once = functools.cache(lambda: say(console, f"waiting for another process that works in {folder}"))

    def wait() -> None:
        say_once()
        if signals is not None and signals():
            leave(signals)

    return wait


def _numbers(measured: Any, path: Path, taken: Container[str]) -> tuple[dict[str, float], dict[str, float]]:
    """The values that measure(run) returned, and their floors."""
    if not isinstance(measured, Mapping):
        raise UsageError(f"{path}: measure(run) returned {type(measured).__name__}, not a dict of numbers")
    found: tuple[dict[str, float], dict[str, float]] = {}, {}
    for name, value in measured.items():
        if str(name) in taken:
            raise UsageError(f"{path}: measure(run) returned {name!r}, but another column of the table has this name")
        pair: tuple[Any, ...] = value if isinstance(value, tuple) and len(value) == 2 else (value,)
        for of, number in zip(found, pair, strict=False):
            with contextlib.suppress(TypeError, ValueError):
                of[str(name)] = float(number)
            if not math.isfinite(of.get(str(name), math.nan)):
                raise UsageError(f"{path}: measure(run) returned {value!r} for {name!r}, which is not a finite number")
    return found


def _device() -> dict[str, str]:
    """The kind of the device, if JAX was used."""
    if "jax" not in sys.modules:
        return {}
    return {"device": sys.modules["jax"].devices()[0].device_kind}


if __name__ == "__main__":
    suppress_warnings()
    sys.exit(main())
