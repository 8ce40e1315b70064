"""Checkpoints that survive a kill, a full disk and a damaged file. Only this module imports orbax.

A state is any pytree of arrays. It is stored flat: one entry per leaf, under the leaf's dotted path
(`params.Dense_0.kernel`). So a checkpoint needs no Python classes and no pickle, a part of it can be
read alone, and the names and shapes show whether it belongs to another network.

On disk a checkpoint is the folder `<directory>/<step>`. It is written under a temporary name and
renamed when complete, so a folder whose name is a number is a complete checkpoint. Its file `contents`
holds the metric, the shape and type of every leaf, and a checksum of every other file. The checksums
are needed because orbax reads a changed byte without an error, and a truncated file with a long traceback.

Importing this module takes most of a second, so import it only where it is used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from scoregen.errors import UsageError, check_count, check_path
from scoregen.files import crc32

# Orbax logs every save and every failure. Failures are reported here in one line instead.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)

_TEMPORARY = ".orbax-checkpoint-tmp"  # orbax's suffix for a folder that is not complete
_CONTENTS = "contents"
# Orbax writes these files at the commit, after the checksums. Restoring does not need them.
_UNSEALED = {_CONTENTS, "_CHECKPOINT_METADATA", "commit_success.txt"}


class _Damaged(Exception):
    """The files of a checkpoint are missing or have changed."""


class Checkpoints:
    """The checkpoints of one run: written in the background, only a few kept, damaged ones skipped.

    The newest `keep` checkpoints are kept and, with `best`, also the checkpoint with the smallest metric.
    Nothing on disk changes before the first `save`, so a sampler can read a folder while a training run
    writes to it. For each damaged checkpoint that is skipped, a line goes to `say` (default: stderr).
    In a multi-process run, every process must make the same calls.

    Raises ValueError if `keep` is less than 1.

    >>> import tempfile, numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> template = {"params": np.zeros(3), "step": 0}
    >>> with Checkpoints(folder.name) as checkpoints:
    ...     checkpoints.save(10, {"params": np.ones(3), "step": 10})
    >>> Checkpoints(folder.name).restore(template)
    ({'params': array([1., 1., 1.]), 'step': 10}, 10)
    >>> Checkpoints(folder.name).restore_part("params", template["params"])
    (array([1., 1., 1.]), 10)
    >>> folder.cleanup()
    """

    def __init__(
        self,
        directory: str | Path,
        keep: int = 3,
        best: bool = True,
        say: Callable[[str], None] | None = None,
    ) -> None:
        check_count("keep", keep)
        self.directory = check_path("directory", directory, "runs/mine/checkpoints").absolute()
        self._keep, self._best = keep, best
        self._say = say or (lambda line: print(line, file=sys.stderr))
        self._writing: int | None = None  # the step being written
        self._written: int | None = None  # the last step that this object wrote
        self._contents: dict[str, Any] = {}  # of the checkpoint being written
        self._orbax = self._open()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, step: int, state: Any, metric: float | None = None) -> None:
        """Starts to write `state` as the checkpoint of `step`, and returns when it is copied to the host.

        After the return, the state may be donated or changed. The call first waits for the previous save.
        Saving the same step twice in a row does nothing; an older checkpoint of the step is replaced.
        A `metric` that is not finite counts as None.

        Raises UsageError if this or the previous save cannot be written, and TypeError for a leaf that
        is not an array or a number, and for two leaves with the same dotted path.
        """
        self.wait()
        if step == self._written:
            return
        metric = float(metric) if metric is not None and math.isfinite(metric) else None
        entries = {key: _stored(key, leaf) for key, leaf in _flat(state).items()}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clean()
            self._contents = {"step": step, "metric": metric, "leaves": _kinds(entries)}
            self._orbax.save(self.directory / str(step), args=ocp.args.PyTreeSave(entries), force=True)
        except (OSError, ValueError) as error:
            raise self._unwritten(step, error) from error
        self._writing = step

    def wait(self) -> None:
        """Blocks until a running save is on disk, then removes the checkpoints that are not kept.

        Raises UsageError if the save could not be written; then no earlier checkpoint is removed.
        """
        if self._writing is None:
            return
        step, self._writing = self._writing, None
        try:
            self._orbax.wait_until_finished()
        except Exception as error:  # of any type: it happened during the writing
            raise self._unwritten(step, error) from error
        self._written = step
        steps = self.steps()
        keep = {*steps[-self._keep :], self.best_step() if self._best else step}
        for old in set(steps) - keep:
            self._remove(self.directory / str(old))

    def close(self) -> None:
        """Waits for a running save and stops the threads; raises the same errors as `wait`."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint on disk, in increasing order."""
        if not self.directory.is_dir():
            return []
        names = (path.name for path in self.directory.iterdir())
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))

    def latest_step(self) -> int | None:
        """The newest step on disk, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the smallest metric, the newest of equal ones; None if no checkpoint has a metric."""
        rated = []
        for step in self.steps():
            with contextlib.suppress(_Damaged):  # a checkpoint without a readable metric is never the best
                if (metric := _contents(self.directory / str(step))["metric"]) is not None:
                    rated.append((metric, -step))
        return -min(rated)[1] if rated else None

    def leaves(self, step: int) -> dict[str, str]:
        """The content of a checkpoint: dotted path of an array -> its type and shape, such as "float32 128x3".

        Raises UsageError if it is damaged.
        """
        try:
            return _contents(self.directory / str(step))["leaves"]
        except _Damaged as error:
            raise UsageError(f"checkpoint {self.directory / str(step)} is damaged: {error}") from None

    def restore(self, template: Any, step: int | None = None, best: bool = False) -> tuple[Any, int] | None:
        """Reads a whole state: the newest, the state of `step`, or with `best` the state with the smallest metric.

        `template` is a state of the same structure, of arrays or of `jax.ShapeDtypeStruct`. The result has
        its types and its shardings (a leaf without a sharding goes to one local device). The values are bit
        for bit the saved ones, for any number of devices at the save. A damaged checkpoint is skipped and
        the newest undamaged one is read, unless `step` is given.

        Returns (state, step), or None if there is no checkpoint at all. Raises UsageError if `step` does
        not exist, if no checkpoint is readable, or if it has another structure (another network).
        """
        return self._restore("", template, step, best)

    def restore_part(
        self, name: str, template: Any, step: int | None = None, best: bool = False
    ) -> tuple[Any, int] | None:
        """Reads only one part of a state, such as "ema" without the optimizer; otherwise like `restore`.

        `name` is the dotted path of the part in the state, and `template` has the structure of the part.

        Raises UsageError as `restore` does, and if there is no such part.
        """
        return self._restore(name, template, step, best)

    def _restore(self, name: str, template: Any, step: int | None, best: bool) -> tuple[Any, int] | None:
        self.wait()
        steps = self.steps()[::-1]
        if step is not None:
            if step not in steps:
                there = ", ".join(map(str, steps)) or "none"
                raise UsageError(f"no checkpoint of step {step} in {self.directory}: it has {there}")
            steps = [step]
        elif best and (first := self.best_step()) is not None:
            steps = [first, *(other for other in steps if other != first)]
        if not steps:
            return None
        for number in steps:
            try:
                return self._read(name, template, number), number
            except _Damaged as error:
                self._say(f"checkpoint {self.directory / str(number)} is damaged ({error}); it is skipped")
        raise UsageError(
            f"no readable checkpoint in {self.directory} (tried {', '.join(map(str, steps))}): "
            "restore the folder from a copy, or start the run again in an empty folder"
        )

    def _read(self, name: str, template: Any, step: int) -> Any:
        path = self.directory / str(step)
        wanted = _flat(template, name)
        contents = _contents(path)
        stored = contents["leaves"]
        part = {k: v for k, v in stored.items() if not name or k == name or k.startswith(name + ".")}
        if not part:
            parts = sorted({key.split(".")[0] for key in stored})
            raise UsageError(f"checkpoint {path} has no part {name!r}: its parts are {', '.join(parts)}")
        if difference := _difference(part, _kinds(wanted)):
            raise UsageError(
                f"checkpoint {path} does not fit this model: {difference}; "
                "use the model that it was trained with, or another folder"
            )
        for file, checksum in contents["files"].items():
            if crc32(path / file) != checksum:
                raise _Damaged(f"its file '{file}' has changed")
        arguments = ocp.args.PyTreeRestore(
            dict.fromkeys(wanted, 0),
            restore_args={key: _restore_args(leaf) for key, leaf in wanted.items()},
            partial_restore=True,
        )
        entries = self._orbax.restore(path, args=arguments)
        leaves = [_as(leaf, entries[key]) for key, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)

    def _open(self) -> ocp.AsyncCheckpointer:
        options = ocp.options.AsyncOptions(post_finalization_callback=self._seal)
        return ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=options)

    def _seal(self) -> None:
        """Writes the file `contents`. Orbax calls this after the other files, before it renames the folder."""
        if jax.process_index() != 0:
            return
        folder = self.directory / f"{self._contents['step']}{_TEMPORARY}"
        files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in _UNSEALED)
        self._contents["files"] = {path.relative_to(folder).as_posix(): crc32(path) for path in files}
        text = json.dumps(self._contents)
        (folder / _CONTENTS).write_text(f"{zlib.crc32(text.encode()):08x} {text}")

    def _unwritten(self, step: int, error: Exception) -> UsageError:
        """The error for a failed save. First frees space: a partly written checkpoint can fill the disk."""
        self._orbax, self._written = self._open(), None
        try:
            self._clean()
            last = self.latest_step()
        except OSError:
            last = None
        good = "there is no earlier one" if last is None else f"the last good checkpoint is step {last}"
        return UsageError(f"could not write {self.directory / str(step)}: {reason(error)}; {good}")

    def _clean(self) -> None:
        """Removes the temporary files of a killed or failed save."""
        for path in self.directory.glob(f"*{_TEMPORARY}*"):
            self._remove(path)

    def _remove(self, path: Path) -> None:
        if jax.process_index() != 0:
            return
        if _TEMPORARY not in path.name:  # renamed first: a partly removed folder must not look like a checkpoint
            path = path.rename(path.with_name(path.name + _TEMPORARY + "-old"))
        shutil.rmtree(path, ignore_errors=True)


def _contents(path: Path) -> dict[str, Any]:
    try:
        checksum, text = (path / _CONTENTS).read_bytes().split(b" ", 1)
    except OSError as error:
        raise _Damaged(f"its file '{_CONTENTS}': {reason(error)}") from error
    except ValueError:
        checksum, text = b"", b""
    if checksum != f"{zlib.crc32(text):08x}".encode():
        raise _Damaged(f"its file '{_CONTENTS}' has changed")
    return json.loads(text)


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """The leaves by dotted path, below `name`, in the order in which they flatten."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
    flat = {".".join(filter(None, (name, path))): leaf for path, (_, leaf) in zip(paths, leaves, strict=True)}
    if len(flat) != len(leaves):
        raise TypeError("two leaves of the state have the same dotted path: rename one of its keys")
    return flat


def _stored(key: str, leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf
    if isinstance(leaf, np.ndarray | np.generic | bool | int | float) and np.asarray(leaf).dtype != object:
        return np.asarray(leaf)  # orbax takes a copy of it
    raise TypeError(f"cannot save {key or 'the state'}: {type(leaf).__name__} is not an array of numbers")


def _kinds(leaves: dict[str, Any]) -> dict[str, str]:
    """What each leaf is, as "float32 128x3"."""

    def kind(leaf: Any) -> str:
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        return f"{leaf.dtype} {'x'.join(map(str, leaf.shape)) or 'scalar'}"

    return {key: kind(leaf) for key, leaf in leaves.items()}


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _as(leaf: Any, value: Any) -> Any:
    """`value` as the type of Python object that `leaf` is."""
    if isinstance(leaf, np.generic):
        return np.asarray(value)[()]
    return type(leaf)(value) if isinstance(leaf, bool | int | float) else value


def _difference(stored: dict[str, str], wanted: dict[str, str]) -> str:
    """The first leaf that is not the same in both, or "" if there is none."""
    for key in sorted(stored | wanted):
        if key not in stored:
            return f"it has no {key}"
        if key not in wanted:
            return f"it has {key}, which the model does not have"
        if stored[key] != wanted[key]:
            return f"its {key} is {stored[key]}, the model's is {wanted[key]}"
    return ""


def reason(error: BaseException) -> str:
    """The reason why a write failed: the message of the system, if there is one."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    if system := re.search(r"os_error_code='(\d+)'", text):  # tensorstore turns an OSError into a ValueError
        return os.strerror(int(system[1]))
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]
