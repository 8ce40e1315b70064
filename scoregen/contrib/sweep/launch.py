"""The launchers of cells: local processes, tasks of a Ray cluster, or Slurm jobs.

A launcher has `slots`, the number of cells that it accepts, and `room`, the number of cells that run at once, if known.
`start(folder, slot)` starts a cell and returns a handle. `handle.poll()` is None while the cell runs, and then its exit
code, or a line if the launcher itself failed. After `handle.stop()` the cell saves its state and exits. With every
launcher a cell is the process `python -m scoregen.contrib.sweep.cell FOLDER`.
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

# The exit codes of a stopped cell: 128 + n, or -n if the signal n came while the cell was still loading.
STOPPED = [sign for number in (signal.SIGTERM, signal.SIGINT) for sign in (128 + number, -number)]
_ANY = 10_000  # the number of cells in the queue of a cluster, if there is no limit
LATE = 60.0  # seconds to wait for a result on a network file system
_BEGUN = "--- begun "  # the first line of the log after each start


class Handle(Protocol):
    """A cell that was started."""

    def poll(self) -> int | str | None:
        """None while the cell runs; then its exit code, or a line that says why there is no exit code."""
        ...

    def stop(self) -> None:
        """Make the cell save its state and exit."""
        ...


class Launcher(Protocol):
    """An instance of an entry of `LAUNCHERS`, which is called as `(workers, out, options)`."""

    slots: int
    room: int | None

    def start(self, folder: Path, slot: int) -> Handle:
        """Start the cell of a folder, in one of the slots."""
        ...


def spawn(folder: Path, env: dict[str, str] | None = None, cwd: str | None = None) -> subprocess.Popen:
    """Start the process of a cell. It exits when this process closes its input, and does not receive Ctrl-C."""
    env, here = os.environ | (env or {}), Path(__file__).parents[3]
    if here.name not in ("site-packages", "dist-packages"):  # a checkout, which may not be the current folder
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
    """Run a cell as a task of a cluster, and return its exit code. If the task is cancelled, the cell stops."""
    process = spawn(Path(folder), cwd=cwd)
    try:
        while (code := process.poll()) is None:
            time.sleep(0.2)  # polled, since Ray cannot cancel process.wait()
        return code
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def task(folder: str, cwd: str) -> int:
    """`work` that Ray can cancel with SIGINT. If a script started the cluster with `&`, its workers ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return work(folder, cwd)


def job(folder: str, cwd: str) -> int:
    """`work` that also stops on SIGTERM. Slurm cancels a job with this signal, but submitit ignores it."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    return work(folder, cwd)


class Local:
    """Local processes: `workers` of them, by default one per GPU. On a CPU, or for all TPUs of a host, it is one."""

    def __init__(self, workers: int | None, out: Path, options: dict[str, Any]) -> None:
        self.gpus = _gpus()
        self.slots = self.room = workers or max(1, len(self.gpus))

    def start(self, folder: Path, slot: int) -> Handle:
        env = {}
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
            if self.slots > len(self.gpus):  # by default each JAX process reserves three quarters of the memory
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
    """The names of the usable GPUs, as in CUDA_VISIBLE_DEVICES."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    tool = shutil.which("nvidia-smi")
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False).stdout if tool else ""
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


class Ray:
    """Tasks of a Ray cluster (Moritz et al. 2018) whose nodes share the folder. Tasks of a lost node start again.

    Options: `address` of the cluster (default: auto), and the resources of a cell: `num_cpus` (default: 1), `num_gpus`
    (default: 0), and any other resource of the cluster, such as `TPU`.
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
            # Retried, since a lost node is not the cell's fault.
            self.task = ray.remote(max_retries=5)(task).options(
                num_cpus=takes["CPU"], num_gpus=takes["GPU"], resources=options, runtime_env=env
            )
            there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            takes = {name: least for name, least in takes.items() if least}
            rooms = (min(int(node.get(name, 0) / least) for name, least in takes.items()) for node in there)
            self.room = min(self.slots, sum(rooms)) if takes else self.slots
        except Exception as error:
            raise UsageError(
                f"--launcher=ray: {first_line(error)}; `ray start --head` starts a cluster, and "
                "--launch.address=local starts one for this sweep only"
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
    """Slurm jobs, through submitit. The options are those of its `update_parameters`, such as `slurm_partition`."""

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
        except Exception as error:  # raised by submitit, or by the job and pickled
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
    """Run these cells. Yields each cell when it has ended, with None or with the reason of its failure.

    If cells share a network, one of them trains it and the others wait. If this training fails, all of them fail.
    When `stopped()` becomes true, no more cells start and the running cells are stopped. Closing this generator also
    stops them.

    Args:
        tick: called about every 0.05 seconds with the running cells.
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
    """The waiting cells, and the running cells by their slots."""

    sweep: Sweep
    out: Path
    launcher: Launcher
    again: str
    pending: list[Cell]
    most: int  # the largest number of cells that run at once
    running: dict[int, tuple[Cell, Handle]] = dataclasses.field(default_factory=dict)
    full: bool = False  # whether the launcher has refused a cell since a running cell ended
    late: dict[int, float] = dataclasses.field(default_factory=dict)  # slot -> end of a cell without a result

    def start(self, stopped: Callable[[], bool]) -> Iterator[tuple[Cell, str]]:
        """Start the cells that may run. Yields the cells that could not be started."""
        while not (self.full or stopped()) and len(self.running) < self.most:
            cell = next(filter(self._may_start, self.pending), None)
            if cell is None:
                return
            self.pending.remove(cell)
            folder = prepare(self.out, self.sweep, cell, self.again)
            slot = next(slot for slot in itertools.count() if slot not in self.running)
            try:
                self.running[slot] = cell, self.launcher.start(folder, slot)
            except Exception as error:  # the system starts no more processes, or the queue is full
                if self.running:
                    self.pending.append(cell)
                    self.full = True
                    return
                reason = f"could not be started: {_last_line(error)}"
                fail(folder, cell.key, reason, again=self.again)
                yield cell, reason

    def _may_start(self, cell: Cell) -> bool:
        """Whether the cell's network is trained, or no running cell trains it."""
        if cell.training is None or all(cell.training != other.training for other, _ in self.running.values()):
            return True
        return is_trained(network_of(self.out, cell), cell.config)

    def end(self, stopping: bool) -> Iterator[tuple[Cell, str | None]]:
        """Yield the cells that have ended, and waiting cells that fail because of them."""
        for slot, (cell, handle) in list(self.running.items()):
            code, folder = handle.poll(), folder_of(self.out, cell)
            # A cluster can report a task as cancelled before the cell has saved its state.
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
        """Whether a cell ended more than `LATE` seconds ago. A network file system can show its result late."""
        return time.monotonic() - self.late.setdefault(slot, time.monotonic()) > LATE

    def _without(self, failed: Cell, reason: str) -> Iterator[tuple[Cell, str]]:
        """Mark the cells that wait for the network of `failed`, whose training failed, as failed too."""
        for cell in [cell for cell in self.pending if cell.training == failed.training]:
            self.pending.remove(cell)
            fail(prepare(self.out, self.sweep, cell, self.again), cell.key, reason, True, self.again)
            yield cell, reason


def _stop(handles: Sequence[Handle]) -> None:
    """Stop cells, and wait up to 30 seconds until they have saved their state."""
    for handle in handles:
        with contextlib.suppress(Exception):  # also stop the others after an error
            handle.stop()
    until = time.monotonic() + 30
    with contextlib.suppress(Exception):
        while time.monotonic() < until and any(handle.poll() is None for handle in handles):
            time.sleep(0.05)


def _failure(folder: Path, cell: Cell, code: int | str, again: str) -> dict[str, Any]:
    """The reason of a failure: what the cell has written, or how its process ended."""
    found = note(folder, FAILED, cell.key)
    if found is None:
        how = code if isinstance(code, str) else f"ended with the exit code {code}"
        if isinstance(code, int) and code < 0:
            how = f"ended by {signal.Signals(-code).name}"
            how += ", perhaps because the memory was full" * (code == -signal.SIGKILL)
        said = last_line(folder)
        fail(folder, cell.key, f"{how}; the last line of its log: {said}" if said else how, again=again)
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
