"""Loggers: where the metrics and the pictures of a training run go.

A logger of your own is one class with `scalars`. `metrics.jsonl` is always written, since a resumed run reads it; the
other loggers of `LOGGERS` are chosen, each by an option of the command line or as `fit(..., log=...)`.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from scoregen.errors import UsageError, what_it_is
from scoregen.files import to_json, whole


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """What a logger learns about the run at its start.

    Attributes:
        name: the name of the run, that of its folder.
        workdir: the folder of the run, None without one.
        step: the step of the checkpoint that the run continues from; 0 for a new run.
        logged: the last step that was logged before; it is above `step` after a kill, and the steps between are then
            logged again, with the same values.
        config: the configuration of the run, or the description in its model.json; nested, with plain values.
        say: prints a line.
    """

    name: str = "run"
    workdir: Path | None = None
    step: int = 0
    logged: int = 0
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    say: Callable[[str], None] = print


class Logger(abc.ABC):
    """A place for the metrics of a run. A subclass needs `scalars`; the other methods do nothing unless it has them.

    The steps of successive calls never fall, and several calls may have the same step. An exception in `scalars`,
    `picture` or `close` does not stop the training: the logger is reported in one line and gets nothing more.

    >>> class Lowest(Logger):
    ...     "The lowest loss so far."
    ...
    ...     loss = math.inf
    ...
    ...     def scalars(self, step, values):
    ...         self.loss = min(self.loss, values.get("loss", math.inf))
    >>> lowest = Lowest()
    >>> lowest.scalars(1, {"loss": 0.5})
    >>> lowest.scalars(2, {"held_out_loss": 0.7})
    >>> lowest.loss
    0.5
    """

    def start(self, run: LoggedRun) -> None:
        """Called once before the first step. An exception here refuses a new run; a resumed run goes on without."""
        return

    @abc.abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a step by name, such as loss, grad_norm and held_out_loss. A value may be NaN or infinite."""

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture, uint8 `[H, W, C]` with 1 or 3 channels."""
        return

    def close(self) -> None:
        """Called once after the last step, also if the training fails."""
        return


class JsonLines(Logger):
    """`metrics.jsonl` in the workdir, one JSON object a line. Pictures are left out.

    A run that resumes from step k first removes the lines after step k, so that no step is in the file twice. A value
    that is not finite becomes null.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = JsonLines()
    ...     log.start(LoggedRun(workdir=Path(folder)))
    ...     log.scalars(10, {"loss": 0.5, "grad_norm": math.inf})
    ...     log.close()
    ...     JsonLines.read(folder)
    [{'step': 10, 'loss': 0.5, 'grad_norm': None}]
    """

    _file: IO[str]

    def start(self, run: LoggedRun) -> None:
        path = _workdir(self, run) / "metrics.jsonl"
        rows, damaged = _rows(path)
        if run.step and damaged:
            run.say(f"{path}: left out {damaged} damaged line{'s' * (damaged != 1)}")
        kept = [row for row in rows if row["step"] <= run.step]
        with whole(path) as fresh:
            fresh.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", buffering=1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        row = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def read(workdir: str | Path) -> list[dict[str, Any]]:
        """The sound lines of a run's metrics.jsonl. Damaged ones, and a last one that was cut off, are left out."""
        return _rows(Path(workdir, "metrics.jsonl"))[0]


def _rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The sound lines of a metrics.jsonl, and the number of damaged ones, without a last line that was cut off."""
    *lines, cut = path.read_text(errors="replace").split("\n") if path.exists() else [""]
    rows = [row for line in [*lines, cut] if (row := _row(line)) is not None]
    return rows, sum(_row(line) is None for line in lines)


def _row(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl: a step, and numbers or null by name. None if it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(found, dict) and type(found.get("step")) is int and found["step"] >= 0
    return found if sound and all(map(_is_logged, found.values())) else None


def _is_logged(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


class TensorBoard(Logger):
    """TensorBoard events below `tensorboard/` in the workdir: curves and pictures.

    A run that resumes from step k hides the events after step k.
    """

    _events: Any

    def start(self, run: LoggedRun) -> None:
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(str(_workdir(self, run) / "tensorboard"), purge_step=run.step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._events.close()


class _Remote(Logger):
    """A service that keeps what it has got, under an id that is stored in the workdir: `NAME.json`.

    A resumed run continues under its id, and leaves out the steps that an earlier start has sent.

    Attributes:
        project: the name of the project.

    Raises:
        TypeError: if the project is not a text.
        ValueError: if it is empty.
        UsageError: if the library is not installed.
    """

    library: str

    def __init__(self, project: str) -> None:
        if not isinstance(project, str):
            raise TypeError(f"project={what_it_is(project)}: the name of a project is needed")
        if not project.strip():
            raise ValueError(f"project={project!r}: the name of a project is needed")
        if importlib.util.find_spec(self.library) is None:
            raise UsageError(
                f"{type(self).__name__} needs the library {self.library}, which is missing: "
                f"pip install 'scoregen[{self.library}]'"
            )
        self.project = project
        self._sent = 0

    def start(self, run: LoggedRun) -> None:
        found = self._record(run) if run.step else None
        # Of a run that starts anew in an old folder nothing is continued: its options may be others.
        continued = found is not None and found["project"] == self.project
        name = found["id"] if found is not None and continued else secrets.token_hex(4)
        self._sent = max(found["step"], run.logged) if found is not None and continued else 0
        self._open(run, name, continued)
        if run.workdir is not None:
            with whole(run.workdir / f"{self.library}.json") as fresh:
                fresh.write_text(to_json({"project": self.project, "id": name, "step": self._sent}))

    def _record(self, run: LoggedRun) -> dict[str, Any] | None:
        """What an earlier start has stored; None if there is none, or if it is damaged."""
        try:
            found = json.loads((run.workdir / f"{self.library}.json").read_text()) if run.workdir else None
        except (OSError, ValueError):
            return None
        kinds = {"project": str, "id": str, "step": int}
        sound = isinstance(found, dict) and all(type(found.get(key)) is kind for key, kind in kinds.items())
        return found if sound else None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._sent:
            self._send(step, dict(values))

    @abc.abstractmethod
    def _open(self, run: LoggedRun, name: str, continued: bool) -> None:
        """Begin the run with this id, or continue it."""

    @abc.abstractmethod
    def _send(self, step: int, values: dict[str, Any]) -> None:
        """Send values of a step."""


class WandB(_Remote):
    """Weights & Biases, with `pip install 'scoregen[wandb]'`: curves, pictures and the configuration.

    Its files are below `wandb/` in the workdir. Its own variables apply: with WANDB_MODE=offline nothing is sent, and
    `wandb sync` sends the files later. What it cannot upload within a minute after the training stays in these files.

    Attributes:
        project: the name of the project.

    Raises:
        TypeError, ValueError: unless the project is a text that is not empty.
        UsageError: if wandb is not installed.
    """

    library = "wandb"
    _run: Any

    def _open(self, run: LoggedRun, name: str, continued: bool) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=self.project,
            id=name,
            name=run.name,
            resume="allow",
            dir=run.workdir,
            config=dict(run.config),
            # A resumed run may have other options of those that do not change the network.
            allow_val_change=True,
            settings=wandb.Settings(silent=True, console="off", finish_timeout=60),
        )
        where = f"offline, in {Path(self._run.dir).parent}" if self._run.offline else self._run.url
        run.say(f"Weights & Biases: {where}{', continued' * continued}")

    def _send(self, step: int, values: dict[str, Any]) -> None:
        self._run.log(values, step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        if step > self._sent:
            self._send(step, {name: wandb.Image(image if image.shape[-1] == 3 else image[..., 0])})

    def close(self) -> None:
        self._run.finish()


class Trackio(_Remote):
    """trackio of Hugging Face, with `pip install 'scoregen[trackio]'`: curves, pictures and the configuration.

    It writes to its own folder (TRACKIO_DIR), which `trackio show` reads, or to the Space in TRACKIO_SPACE_ID.

    Attributes:
        project: the name of the project.

    Raises:
        TypeError, ValueError: unless the project is a text that is not empty.
        UsageError: if trackio is not installed.
    """

    library = "trackio"
    _run: Any

    def _open(self, run: LoggedRun, name: str, continued: bool) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        named = f"{run.name}-{name}"  # trackio knows a run by its name
        with contextlib.redirect_stdout(io.StringIO()):
            self._run = trackio.init(
                project=self.project, name=named, config=dict(run.config), resume="allow", embed=False
            )
        run.say(f"trackio: the run {named} of the project {self.project}{', continued' * continued}")

    def _send(self, step: int, values: dict[str, Any]) -> None:
        self._run.log(values, step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        if step > self._sent:
            self._send(step, {name: trackio.Image(np.repeat(image, 3 // image.shape[-1], axis=-1))})

    def close(self) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()


def _workdir(logger: Logger, run: LoggedRun) -> Path:
    if run.workdir is None:
        raise UsageError(f"{type(logger).__name__} writes to the workdir: give one")
    return run.workdir


LOGGERS: dict[str, Callable[..., Logger]] = {
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
