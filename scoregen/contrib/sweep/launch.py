"""The launchers of cells: processes of this machine, tasks of a Ray cluster, or jobs of Slurm.

A launcher has `slots`, the number of cells that it accepts, and `room`, the number that run at once, if that is known.
`start(folder, slot)` starts a cell and returns a handle with `poll()`, which is None while the cell runs, then its exit
code, or a line where the launcher itself failed; and `stop()`, after which the cell saves its state and ends. With
every launcher a cell is the process `python -m scoregen.contrib.sweep.cell FOLDER`.
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

# The exit codes of a stopped cell; those of the bare signal while it was still loading.
STOPPED = [sign for number in (signal.SIGTERM, signal.SIGINT) for sign in (128 + number, -number)]
_ANY = 10_000  # cells in the queue of a cluster
LATE = 60.0  # seconds
_BEGUN = "--- begun "  # a line of the log for each start


class Handle(Protocol):
    """A cell that was started."""

    def poll(self) -> int | str | None:
        """None while it runs; its exit code, or a line that says why there is none."""
        ...

    def stop(self) -> None:
        """Make it save its state and end."""
        ...


class Launcher(Protocol):
    """An entry of `LAUNCHERS`, made: `(workers, out, options)`."""

    slots: int
    room: int | None

    def start(self, folder: Path, slot: int) -> Handle:
        """Start the cell of a folder, in one of the slots."""
        ...


def spawn(folder: Path, env: dict[str, str] | None = None, cwd: str | None = None) -> subprocess.Popen:
    """Start the process of a cell. It ends with this process, which holds its input open, and does not get Ctrl-C."""
    env, here = os.environ | (env or {}), Path(__file__).parents[3]
    if here.name not in ("site-packages", "dist-packages"):  # a checkout, perhaps not the current folder
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
    """Run a cell as a task of a cluster; returns its exit code. Cancelling the task stops the cell."""
    process = spawn(Path(folder), cwd=cwd)
    try:
        while (code := process.poll()) is None:
            time.sleep(0.2)  # Ray cannot cancel process.wait()
        return code
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def job(folder: str, cwd: str) -> int:
    """`work`, stopped by SIGTERM too, with which Slurm cancels a job and which submitit ignores."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    return work(folder, cwd)


class Local:
    """Processes of this machine: one a GPU; on a CPU, and for all TPUs of a host, one; or `workers`."""

    def __init__(self, workers: int | None, out: Path, options: dict[str, Any]) -> None:
        self.gpus = _gpus()
        self.slots = self.room = workers or max(1, len(self.gpus))

    def start(self, folder: Path, slot: int) -> Handle:
        env = {}
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
            if self.slots > len(self.gpus):  # JAX would take three quarters of the memory for each
                env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        return _Process(spawn(folder, env))


@dataclasses.dataclass
class _Process:
    process: subprocess.Popen

    def poll(self) -> int | None:
        code = self.process.poll()
        if code is not None and self.process.stdin is not None:
            self.process.stdin.close()
        return code

    def stop(self) -> None:
        self.process.terminate()


def _gpus() -> list[str]:
    """The names of the usable GPUs for CUDA_VISIBLE_DEVICES."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    tool = shutil.which("nvidia-smi")
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False).stdout if tool else ""
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


class Ray:
    """Tasks of a Ray cluster (Moritz et al. 2018) whose nodes share the folder; tasks of a lost node start again.

    Options: `address` of the cluster (auto), and the resources of a cell: `num_cpus` (1), `num_gpus` (0), and any
    resource of the cluster, such as `TPU`.
    """

    def __init__(self, workers: int | None, out: Path, options: dict[str, Any]) -> None:
        need("ray", "ray")
        import ray  # pyright: ignore[reportMissingImports]

        self.ray, self.slots = ray, workers or _ANY
        address = options.pop("address", "auto")
        takes = {"CPU": options.pop("num_cpus", 1), "GPU": options.pop("num_gpus", 0), **options}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if 0 < takes["GPU"] < 1 else {}
            env = {"env_vars": shared}
            # Retries: a lost node is not the cell's fault.
            self.task = ray.remote(max_retries=5)(work).options(
                num_cpus=takes["CPU"], num_gpus=takes["GPU"], resources=options, runtime_env=env
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


@dataclasses.dataclass
class _Task:
    ray: Any
    reference: Any

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


@dataclasses.dataclass
class _Job:
    job: Any
    stopped: bool = False

    def poll(self) -> int | str | None:
        if not self.job.done():
            return None
        try:
            return self.job.result()
        except Exception as error:  # of submitit, or the pickled one of the job
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
    """Run these cells; yields each that has ended, with None or with the reason of its failure.

    Of cells that share a network one trains it, and the others wait; if the training fails, all of them have failed.
    After `stopped()` no cell starts, and the running ones are stopped; so they are if this generator is closed.

    Args:
        tick: called every moment with the running cells.
        again: as in `result_of`.
    """
    queue, ending = _Queue(sweep, out, launcher, again, list(cells), min(launcher.slots, len(cells))), False
    try:
        while queue.running or (queue.pending and not stopped()):
            yield from queue.start(stopped)
            if stopped() and not ending:
                ending = True
                for _, handle in queue.running.values():
                    handle.stop()
            tick([cell for cell, _ in queue.running.values()])
            yield from queue.end(stopped())
            time.sleep(0.05)
    finally:
        _stop([handle for _, handle in queue.running.values()])


@dataclasses.dataclass
class _Queue:
    """The cells that wait, and those that run by their slots."""

    sweep: Sweep
    out: Path
    launcher: Launcher
    again: str
    pending: list[Cell]
    most: int  # that run at once
    running: dict[int, tuple[Cell, Handle]] = dataclasses.field(default_factory=dict)
    full: bool = False  # the launcher refused a cell; until a running one ends
    late: dict[int, float] = dataclasses.field(default_factory=dict)  # when cells ended whose result is not seen yet

    def start(self, stopped: Callable[[], bool]) -> Iterator[tuple[Cell, str]]:
        """Start the cells that may run; yields those that could not be started."""
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
        """Whether its network is trained, or no running cell trains it."""
        if cell.training is None or all(cell.training != other.training for other, _ in self.running.values()):
            return True
        return is_trained(network_of(self.out, cell), cell.config)

    def end(self, stopping: bool) -> Iterator[tuple[Cell, str | None]]:
        """Yield the cells that have ended, and those that have failed with them."""
        for slot, (cell, handle) in list(self.running.items()):
            code, folder = handle.poll(), folder_of(self.out, cell)
            # A cluster may report a cancelled task before its cell has saved.
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
        """Whether a cell ended more than `LATE` ago: a network file system may show its result later."""
        return time.monotonic() - self.late.setdefault(slot, time.monotonic()) > LATE

    def _without(self, failed: Cell, reason: str) -> Iterator[tuple[Cell, str]]:
        """Fail the cells that wait for the network of a cell whose training has failed."""
        for cell in [cell for cell in self.pending if cell.training == failed.training]:
            self.pending.remove(cell)
            fail(prepare(self.out, self.sweep, cell, self.again), cell.key, reason, True, self.again)
            yield cell, reason


def _stop(handles: Sequence[Handle]) -> None:
    """Stop cells, and wait half a minute until they have saved."""
    for handle in handles:
        with contextlib.suppress(Exception):  # the others must be stopped too
            handle.stop()
    until = time.monotonic() + 30
    with contextlib.suppress(Exception):
        while time.monotonic() < until and any(handle.poll() is None for handle in handles):
            time.sleep(0.05)


def _failure(folder: Path, cell: Cell, code: int | str, again: str) -> dict[str, Any]:
    """The reason of a failure: the cell's own, or how its process ended."""
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
    """The last line of a cell's log since its last start, or ""."""
    with contextlib.suppress(OSError), (folder / LOG).open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
        lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip().removeprefix("scoregen: ") if lines and not lines[-1].startswith(_BEGUN) else ""
    return ""


def _last_line(error: Exception) -> str:
    """The last line of an exception's message, or of the remote traceback in it.

    >>> _last_line(Exception("failed\\n-----\\nTraceback:\\n  line 1\\nValueError: 3\\n-----\\nlogs are in\\n - /out"))
    'ValueError: 3'
    """
    _, *traces = re.split(r"^-{5,}$", str(error), flags=re.MULTILINE)
    text = traces[0] if traces else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[-1].strip()
