"""Where the cells of a sweep run: processes of this machine, tasks of a Ray cluster, or jobs of Slurm.

A launcher has `slots`, how many cells it takes, and `room`, how many of them it runs at once, if that is known. It
starts one by `start(folder, slot)`. That gives a handle with `poll()`, None while it runs, then its exit code, or a
line where the launcher itself failed; and `stop()`, on which the cell saves what it has and ends. Whatever it is, a
cell is `python -m scoregen.contrib.sweep.cell FOLDER`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from scoregen.app.command import need
from scoregen.app.config import first_line
from scoregen.contrib.sweep.cell import (
    FAILED,
    LOCK,
    LOG,
    fail,
    folder_of,
    is_trained,
    network_of,
    note,
    prepare,
    result_of,
)
from scoregen.contrib.sweep.plan import Cell, Sweep
from scoregen.errors import UsageError
from scoregen.files import is_locked

# How a cell ends that is told to stop; by the bare signal while it was still loading.
STOPPED = [sign for number in (signal.SIGTERM, signal.SIGINT) for sign in (128 + number, -number)]
_ANY = 10_000  # cells in a queue that is not ours to keep
LATE = 60.0  # seconds
_BEGUN = "--- begun "  # a line of the log for each time


class Handle(Protocol):
    """A cell that was started."""

    def poll(self) -> int | str | None:
        """None while it runs; its exit code, or a line that says why there is none."""
        ...

    def stop(self) -> None:
        """Tell it to save what it has, and end."""
        ...


class Launcher(Protocol):
    """An entry of `LAUNCHERS`, made: `(workers, out, options)`."""

    slots: int
    room: int | None

    def start(self, folder: Path, slot: int) -> Handle:
        """Start the cell of a folder, in one of the slots."""
        ...


def spawn(folder: Path, env: dict[str, str] | None = None, cwd: str | None = None) -> subprocess.Popen:
    """The process of a cell. It ends when this one does, since its input is then closed; Ctrl-C is not heard there."""
    env, here = os.environ | (env or {}), Path(__file__).parents[3]
    if here.name not in ("site-packages", "dist-packages"):  # a checkout, which need not be the folder of the command
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(here), env.get("PYTHONPATH")]))
    with (folder / LOG).open("ab") as log:
        log.write(f"{_BEGUN}{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "scoregen.contrib.sweep.cell", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )


def work(folder: str, cwd: str) -> int:
    """A cell from beginning to end, as a task of a cluster; returns its exit code. What cancels the task stops it."""
    process = spawn(Path(folder), cwd=cwd)
    try:
        while (code := process.poll()) is None:
            time.sleep(0.2)  # where Ray's cancellation is heard, which it is not in process.wait()
        return code
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def job(folder: str, cwd: str) -> int:
    """As `work`, and stopped by SIGTERM too: so Slurm cancels a job, and submitit would pass over it."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    return work(folder, cwd)


class Local:
    """Processes of this machine: one a GPU; on a CPU, and for all TPUs of a host, one, or as many as asked for."""

    def __init__(self, workers: int | None, out: Path, options: dict[str, Any]) -> None:
        if options:
            raise UsageError(f"--launch.{next(iter(options))}: the launcher 'local' has no options but --workers")
        self.gpus = _gpus()
        self.slots = self.room = workers or max(1, len(self.gpus))

    def start(self, folder: Path, slot: int) -> Handle:
        env = {}
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
            if self.slots > len(self.gpus):  # JAX would take three quarters of the memory for each
                env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        return _Process(spawn(folder, env))


class _Process:
    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process

    def poll(self) -> int | None:
        code = self.process.poll()
        if code is not None and self.process.stdin is not None:
            self.process.stdin.close()
        return code

    def stop(self) -> None:
        self.process.terminate()


def _gpus() -> list[str]:
    """The GPUs that a process here may use, by the name that CUDA_VISIBLE_DEVICES has for them."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    tool = shutil.which("nvidia-smi")
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False).stdout if tool else ""
    return [str(i) for i, line in enumerate(each for each in listed.splitlines() if each.startswith("GPU "))]


class Ray:
    """Tasks of a Ray cluster (Moritz et al. 2018), whose nodes share the folder; those of a lost node begin again.

    Options: `address` of the cluster (auto); what a cell takes, `num_cpus` (1), `num_gpus` and any resource of the
    cluster's, such as `TPU`.
    """

    def __init__(self, workers: int | None, out: Path, options: dict[str, Any]) -> None:
        need("ray", "ray")
        import ray  # pyright: ignore[reportMissingImports]

        self.ray, self.slots = ray, workers or _ANY
        address = options.pop("address", "auto")
        takes = {"CPU": options.pop("num_cpus", 1), "GPU": options.pop("num_gpus", 0), **options}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            # A node that is lost is no fault of the cell's.
            task = ray.remote(max_retries=5)(work)
            shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if 0 < takes["GPU"] < 1 else {}
            self.task = task.options(
                num_cpus=takes["CPU"],
                num_gpus=takes["GPU"],
                resources=options,
                runtime_env={"env_vars": shared},
            )
            there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            takes = {name: least for name, least in takes.items() if least}
            rooms = (min(int(node.get(name, 0) / least) for name, least in takes.items()) for node in there)
            self.room = min(self.slots, sum(rooms)) if takes else self.slots
        except Exception as error:
            raise UsageError(
                f"--launcher=ray: {first_line(error)}; `ray start --head` starts a cluster, "
                "--launch.address=local a small one for the time of the sweep"
            ) from error

    def start(self, folder: Path, slot: int) -> Handle:
        return _Task(self.ray, self.task.remote(str(folder), os.getcwd()))


class _Task:
    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference

    def poll(self) -> int | str | None:
        if not self.ray.wait([self.reference], timeout=0)[0]:
            return None
        try:
            return self.ray.get(self.reference)
        except self.ray.exceptions.TaskCancelledError:
            return STOPPED[0]
        except self.ray.exceptions.RayError as error:
            return f"Ray: {_last_line(error)}"

    def stop(self) -> None:
        self.ray.cancel(self.reference)


class Slurm:
    """Jobs of Slurm, through submitit; options are those of its `update_parameters`, such as `slurm_partition`."""

    def __init__(self, workers: int | None, out: Path, options: dict[str, Any]) -> None:
        need("slurm", "submitit")
        import submitit  # pyright: ignore[reportMissingImports]

        self.slots, self.room = workers or _ANY, workers
        try:
            self.executor = submitit.AutoExecutor(out / "slurm", cluster=options.pop("cluster", "slurm"))
            self.executor.update_parameters(**{"timeout_min": 24 * 60} | options)
        except Exception as error:
            raise UsageError(f"--launcher=slurm: {first_line(error)}") from error

    def start(self, folder: Path, slot: int) -> Handle:
        return _Job(self.executor.submit(job, str(folder), os.getcwd()))


class _Job:
    def __init__(self, job: Any) -> None:
        self.job, self.stopped = job, False

    def poll(self) -> int | str | None:
        if not self.job.done():
            return None
        try:
            return self.job.result()
        except Exception as error:  # submitit's own, which it pickles from the job, and what the job died of
            return STOPPED[0] if self.stopped else f"Slurm: {_last_line(error)}"

    def stop(self) -> None:
        self.stopped = True
        self.job.cancel()


LAUNCHERS = {"local": Local, "ray": Ray, "slurm": Slurm}


def launch(
    sweep: Sweep,
    cells: Sequence[Cell],
    out: Path,
    launcher: Launcher,
    stopped: Callable[[], bool],
    tick: Callable[[Sequence[Cell]], None] = lambda running: None,
    again: str = "",
) -> Generator[tuple[Cell, str | None]]:
    """Run these cells; gives each that has ended, with None or with why it failed.

    Of those that share a network one trains it, and the others wait for that; if the training fails they all have.
    After `stopped()` nothing is started, and what runs is told to stop; so it is if this generator is closed.

    Args:
        tick: told every moment what runs.
        again: as in `result_of`.
    """
    queue, told = _Queue(sweep, out, launcher, again, list(cells), min(launcher.slots, len(cells))), False
    try:
        while queue.running or (queue.pending and not stopped()):
            yield from queue.start(stopped)
            if stopped() and not told:
                told = True
                for _, handle in queue.running.values():
                    handle.stop()
            tick([cell for cell, _ in queue.running.values()])
            yield from queue.end(stopped())
            time.sleep(0.05)
    finally:
        _stop([handle for _, handle in queue.running.values()])


@dataclasses.dataclass
class _Queue:
    """The cells that wait and those that run, by their slots."""

    sweep: Sweep
    out: Path
    launcher: Launcher
    again: str
    pending: list[Cell]
    most: int  # that run at once
    running: dict[int, tuple[Cell, Handle]] = dataclasses.field(default_factory=dict)
    full: bool = False  # whether one was refused, until one has ended
    late: dict[int, float] = dataclasses.field(default_factory=dict)  # when those ended whose result is not seen

    def start(self, stopped: Callable[[], bool]) -> Iterator[tuple[Cell, str]]:
        """Start what may be; gives what could not be."""
        while not (self.full or stopped()) and len(self.running) < self.most:
            cell = next(filter(self._may_start, self.pending), None)
            if cell is None:
                return
            self.pending.remove(cell)
            folder = prepare(self.out, self.sweep, cell, self.again)
            slot = next(slot for slot in itertools.count() if slot not in self.running)
            try:
                self.running[slot] = cell, self.launcher.start(folder, slot)
            except Exception as error:  # no process, no place in a queue
                if self.running:
                    self.pending.append(cell)
                    self.full = True
                    return
                reason = f"could not be started: {_last_line(error)}"
                fail(folder, cell.key, reason, again=self.again)
                yield cell, reason

    def _may_start(self, cell: Cell) -> bool:
        """Whether it has its network, or may train it."""
        if cell.training is None or all(cell.training != other.training for other, _ in self.running.values()):
            return True
        return is_trained(network_of(self.out, cell), cell.config)

    def end(self, stopping: bool) -> Iterator[tuple[Cell, str | None]]:
        """Let go of what has ended; gives it, and what has failed with it."""
        for slot, (cell, handle) in list(self.running.items()):
            code, folder = handle.poll(), folder_of(self.out, cell)
            # A cluster gives a task up before what that started has saved.
            if code is None or (code in STOPPED and is_locked(folder / LOCK)):
                continue
            found = result_of(folder, cell.key, self.again)
            if code == 0 and not found and not self._is_late(slot):
                continue
            self.late.pop(slot, None)
            del self.running[slot]
            self.full = False
            if found:
                yield cell, None
            elif not (stopping and code in STOPPED):
                failure = _failure(folder, cell, code, self.again)
                yield cell, failure["reason"]
                if failure["training"]:
                    yield from self._without(cell, f"its training failed: {failure['reason']}")

    def _is_late(self, slot: int) -> bool:
        """Whether it is a while since a cell has ended well: a network file system may not show a new file at once."""
        return time.monotonic() - self.late.setdefault(slot, time.monotonic()) > LATE

    def _without(self, failed: Cell, reason: str) -> Iterator[tuple[Cell, str]]:
        """The cells that wait for a network that there will not be: they have failed too."""
        for cell in [cell for cell in self.pending if cell.training == failed.training]:
            self.pending.remove(cell)
            fail(prepare(self.out, self.sweep, cell, self.again), cell.key, reason, True, self.again)
            yield cell, reason


def _stop(handles: Sequence[Handle]) -> None:
    """Tell these to save what they have, and give them half a minute for it."""
    for handle in handles:
        with contextlib.suppress(Exception):  # the others are to hear of it too
            handle.stop()
    until = time.monotonic() + 30
    with contextlib.suppress(Exception):
        while time.monotonic() < until and any(handle.poll() is None for handle in handles):
            time.sleep(0.05)


def _failure(folder: Path, cell: Cell, code: int | str, again: str) -> dict[str, Any]:
    """Why a cell failed: as it says itself, or how it died."""
    found = note(folder, FAILED, cell.key)
    if found is None:
        how = code if isinstance(code, str) else f"ended with the exit code {code}"
        if isinstance(code, int) and code < 0:
            how = f"ended by {signal.Signals(-code).name}"
            how += ", perhaps since there was no memory left" * (code == -signal.SIGKILL)
        said = last_line(folder)
        fail(folder, cell.key, f"{how}; the last that it said: {said}" if said else how, again=again)
        found = note(folder, FAILED, cell.key)
    assert found is not None
    return found


def last_line(folder: Path) -> str:
    """The last line that a cell has said since it was begun, or ""."""
    with contextlib.suppress(OSError), (folder / LOG).open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
        lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip().removeprefix("scoregen: ") if lines and not lines[-1].startswith(_BEGUN) else ""
    return ""


def _last_line(error: Exception) -> str:
    """The last line of an exception's message, or of the trace in it: what went wrong elsewhere.

    >>> _last_line(Exception("failed\\n-----\\nTraceback:\\n  line 1\\nValueError: 3\\n-----\\nlogs are in\\n - /out"))
    'ValueError: 3'
    """
    _, *traces = re.split(r"^-{5,}$", str(error), flags=re.MULTILINE)
    text = traces[0] if traces else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[-1].strip()
