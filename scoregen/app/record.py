"""What the page of a run shows and no other file of the run has, and the renewal of the page.

RUN/page/record.json holds the training command, versions, devices, warnings, and how the newest samples were drawn.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from scoregen.app import report, run_page
from scoregen.app.command import advice, from_here
from scoregen.app.run_page import FOLDER, RECORD, read
from scoregen.errors import UsageError
from scoregen.files import locked, make_folder, remove_unfinished, to_json, whole
from scoregen.train import describe

if TYPE_CHECKING:
    from scoregen.app.sampling import Sampling
    from scoregen.data import Dataset

INDEX = "index.html"  # the page, in the folder of a run
_PACKAGES = ("scoregen", "jax", "flax", "numpy")
SHOWN = 64  # samples beside real data, at most
SHARE = 20  # of the time of a training, the renewals of the page take at most 1 / SHARE
PATIENCE = 5.0  # seconds to wait for another command that writes the page


def _guarded(method: Callable[..., None]) -> Callable[..., None]:
    """A method that has no effect if the record is off, and that never raises: a run does not need its page."""

    @functools.wraps(method)
    def attempt(self: Record, *args: Any, **options: Any) -> None:
        if not self.on:
            return
        try:
            method(self, *args, **options)
        except Exception as error:
            if not self.told:
                reason = str(error) or type(error).__name__
                self.say(f"the page of the run was not written ({reason}); nothing else needs it")
            self.told = True

    return attempt


@dataclasses.dataclass
class Record:
    """Keeps the record and the page of a run while a command works on it. If it is not `on`, it writes nothing.

    Attributes:
        workdir: the folder of the run.
        on: whether this command changes the folder of the run: its results go there, and this process writes them.
        say: prints a line.
    """

    workdir: Path
    on: bool
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.told, self.training, self.written = False, False, False
        self.renewed, self.cost = float("-inf"), 0.0  # the end of the last renewal, and how long it took, in seconds
        self.pending: list[str] = []  # warnings about the samples that are being drawn

    @property
    def path(self) -> Path:
        """The file of the page."""
        return self.workdir / INDEX

    @_guarded
    def began(self, step: int, **known: Any) -> None:
        """A training begins after `step`. `known` are values for the record; only a new run replaces its command."""
        self.training, now = True, _machine()
        if not step:  # pictures of a run without a checkpoint, which is started anew
            for path in [*(self.workdir / FOLDER).glob("*.png"), *run_page.drawn_in_training(self.workdir)]:
                path.unlink(missing_ok=True)
        for folder in (self.workdir, self.workdir / FOLDER):
            remove_unfinished(folder)
        known |= {"run": from_here(self.workdir), "folder": str(Path.cwd())}

        def change(old: dict[str, Any]) -> dict[str, Any]:
            old = old if step else {}
            machines = list(old.get("machines", ()))
            if not machines or {**machines[-1], "step": 0} != {**now, "step": 0}:
                machines.append(now | {"step": step})
            first = {key: old[key] for key in ("command", "run", "folder") if key in old}
            kept = {"warnings": old.get("warnings", []), "sampled": old.get("sampled", {})}
            return known | first | kept | {"step": step, "machines": machines, "failed": ""}

        self._change(change)

    @_guarded
    def warn(self, line: str) -> None:
        """Add a warning about the training."""
        self._change(lambda old: {"warnings": list(dict.fromkeys([*old.get("warnings", ()), line]))})

    @_guarded
    def renew(self, step: int | None = None, hurry: bool = False) -> None:
        """Write the page anew; `step` is the newest step of the training. A run of `fit` has no page.

        With `hurry` this is left out if the renewals would take more than 1 / SHARE of the time.
        """
        began, config = time.monotonic(), self.workdir / "config.json"
        if hurry and began - self.renewed < SHARE * self.cost:
            return
        if (self.workdir / describe.FILE).is_file() and not config.is_file():
            return
        self.written = False
        try:
            if step is not None:
                self._change(lambda old: {"step": step})
            text = run_page.page(self.workdir)
            with _alone(self.workdir), whole(self.path) as fresh:
                # The name of a folder may be no Unicode.
                fresh.write_text(text, encoding="utf-8", errors="backslashreplace")
            self.written = True
        finally:  # also of a renewal that fails, which may have taken long
            self.renewed = time.monotonic()
            self.cost = self.renewed - began

    @_guarded
    def failed(self, error: UsageError | OSError) -> None:
        """The training, or what follows it, has ended with this error."""
        if self.training:  # else the command was refused, and may not concern this run
            lines = error.args if isinstance(error, UsageError) else [advice(error)]
            self._change(lambda old: {"failed": "; ".join(map(str, lines))})
            self.renew()

    @_guarded
    def sampled(
        self,
        step: int,
        picture: Path,
        facts: Sequence[tuple[str, str]],
        pair: Callable[[], Mapping[str, np.ndarray]],
    ) -> None:
        """Samples were drawn at `step`, and `picture` shows them.

        `pair` returns images to show side by side in its place, by their names: the samples and real data, uint8
        `[h, w, 3]`; or nothing.
        """
        pictures = [(f"samples at step {step:,}", picture.name)]
        if images := pair():
            pictures = [(said, f"{FOLDER}/pair_{i}.png") for i, said in enumerate(images)]
        make_folder(self.workdir / FOLDER)
        for (_, name), image in zip(pictures, images.values(), strict=False):
            report.save_picture(self.workdir / name, image)
        if self.training:
            with whole(self.workdir / FOLDER / f"course_{step:07d}.png") as fresh:
                shutil.copyfile(picture, fresh)
        sampled = {"step": step, "facts": facts, "pictures": pictures, "warnings": self.pending}
        self._change(lambda old: {"sampled": sampled})

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Set the values that `change` makes from the record, while no other command writes it."""
        with _alone(self.workdir):
            old = read(self.workdir)
            with whole(self.workdir / FOLDER / RECORD) as fresh:
                fresh.write_text(to_json(old | change(old)))


@contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Keeps other commands from writing the page at the same time. Raises UsageError after `PATIENCE`."""
    end = time.monotonic() + PATIENCE

    def wait() -> None:
        if time.monotonic() > end:
            raise UsageError("another command is writing it")

    make_folder(workdir / FOLDER)
    with locked(workdir / FOLDER / ".lock", wait=wait):
        yield


def _machine() -> dict[str, Any]:
    """The versions and the devices of this process."""
    versions = {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    kinds: dict[str, int] = {}
    for device in jax.devices():
        kinds[device.device_kind] = kinds.get(device.device_kind, 0) + 1
    devices = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    if jax.default_backend() == "cpu":
        devices += f" ({platform.machine()}, {os.cpu_count()} cores)"
    return {"versions": versions, "devices": devices}


def _version(name: str) -> str:
    """The version of a package. A checkout that is not installed has none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def pair(sampling: Sampling, dataset: Dataset, samples: np.ndarray, step: int) -> dict[str, np.ndarray]:
    """Samples and equally many real examples as two grids of one scale, by their names.

    {} for data that are not pictures, and for samples that complete held-out images.
    """
    if len(dataset.shape) not in (3, 4) or sampling.control is not None:
        return {}
    real, samples, said = report.reference(dataset), samples[:SHOWN], ""
    # Evenly spread, since the data may be in the order of their classes.
    real = real[np.unique(np.linspace(0, len(real) - 1, min(len(samples), len(real))).round().astype(int))]
    if dataset.is_image:
        samples = sampling.scaling.to_bytes(samples)
    else:
        (real, samples), said = report.as_pictures(dataset, real, samples)
        said = f", {said}" if said else ""
    held = "training" if dataset.test is None else "held-out"
    columns = report.columns_of(len(samples))
    return {
        f"{len(samples)} samples at step {step:,}{said}": report.sheet(samples, 480, columns),
        f"{len(real)} {held} examples{said}": report.sheet(real, 480, columns),
    }
