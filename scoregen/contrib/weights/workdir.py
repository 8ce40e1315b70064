"""The workdir of a run: written from the weights of another library, and read for an export."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from scoregen.app import config as config_lib
from scoregen.app.build import model, optimizer_of
from scoregen.app.command import IMPORTED, unfinished
from scoregen.app.config import Config, build
from scoregen.contrib.weights.source import FLOATS, read_json
from scoregen.data import SOURCES, shape_of
from scoregen.data import reads_files as source_reads_files
from scoregen.errors import UsageError
from scoregen.files import to_json
from scoregen.process import PROCESSES
from scoregen.times import TIMES
from scoregen.train import State
from scoregen.train.checkpoint import Checkpoints, reason


@contextlib.contextmanager
def fresh_folder(target: Path, flag: str) -> Iterator[Path]:
    """A temporary folder beside the target. It replaces the target at the end, and is removed after an error.

    Raises:
        UsageError: if the target exists and is not empty, or cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not empty: choose another {flag}")
    target, beside = target.resolve(), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        fresh.mkdir()  # an existing one belongs to another process
        beside = fresh
        unfinished.add(beside)
        yield beside
        if target.exists():  # it is empty, but may be the current folder, which must not be replaced
            for part in beside.iterdir():
                part.rename(target / part.name)
        else:
            beside.rename(target)
    except OSError as error:
        raise UsageError(f"cannot write to {target}: {error.strerror or error}; choose another {flag}") from None
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
            unfinished.discard(beside)


def shapes_of(config: Config, shape: tuple[int, ...], classes: int = 0) -> dict[str, Any]:
    """The parameters of the configured network for examples of this shape, nested, without the outer "params".

    The data, which are not read, would tell the number of classes; here it is `classes`.

    Raises:
        UsageError: if the network does not fit the shape.
    """
    made = model(config, shape=shape)
    if classes:
        made = dataclasses.replace(made, net=made.net.clone(num_classes=classes))
    try:
        return jax.eval_shape(lambda: made.init(jax.random.key(0), (1, *shape)))["net"]["params"]
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UsageError(f"the network '{config.net.name}': {config_lib.first_line(error)}") from None


def write(
    folder: Path,
    config: Config,
    ours: Mapping[str, Any],
    averaged: Mapping[str, Any],
    step: int,
    record: dict[str, Any],
) -> None:
    """Write a workdir as after a training, but with a new optimizer state."""
    if config.log_variance:
        raise UsageError("config.log_variance=True: the file has no weights for it: say --config.log_variance=false")
    params, ema = ({"net": {"params": jax.tree.map(jnp.asarray, part)}} for part in (ours, averaged))
    times = build(TIMES, config.times).init(build(PROCESSES, config.process))
    state = State(jnp.asarray(step, jnp.int32), params, ema, optimizer_of(config).init(params), times)
    (folder / "config.json").write_text(config_lib.to_json(config))
    (folder / IMPORTED).write_text(to_json(record))
    try:
        with Checkpoints(folder / "checkpoints", keep=config.train.keep) as checkpoints:
            checkpoints.save(step, state)
    except UsageError as error:
        raise OSError(None, reason(error.__cause__ or error)) from error


def configuration(workdir: Path) -> Config:
    """The configuration of the run in a workdir."""
    if not (workdir / "config.json").is_file():
        raise UsageError(f"{workdir} is not the folder of a run: it has no config.json")
    return config_lib.load(str(workdir / "config.json"))


def example_shape(workdir: Path, config: Config) -> tuple[int, ...]:
    """The shape of an example, from the record of imported weights or from the data."""
    record = record_of(workdir)
    return tuple(record["shape"]) if record else data_shape(config)


def data_shape(config: Config) -> tuple[int, ...]:
    """The shape of an example of the configured data. The data are not read."""
    options = config.data[config.data.name].to_dict()
    return shape_of(config_lib.pick(SOURCES, config.data.name, "config.data.name"), dir=config.data.dir, **options)


def reads_files(config: Config) -> bool:
    """Whether the data of a configuration lie on disk."""
    return source_reads_files(SOURCES[config.data.name])


def record_of(workdir: Path) -> dict[str, Any]:
    """The origin of imported weights; empty for a run that was trained here.

    Raises:
        UsageError: if the file is damaged.
    """
    if not (workdir / IMPORTED).is_file():
        return {}
    record = read_json(workdir / IMPORTED)
    kinds, shape = record.get("dtypes"), record.get("shape")
    named = kinds.values() if isinstance(kinds, dict) else [kinds]
    sound = (
        isinstance(shape, list)
        and all(type(n) is int and n > 0 for n in shape)
        and all(isinstance(record.get(key), str) for key in ("source", "format", "sha256"))
        and type(record.get("step")) is int
        and all(kind in FLOATS for kind in named)
    )
    if not sound:
        raise UsageError(f"{workdir / IMPORTED} is damaged: restore it from a copy, or import the weights again")
    return record


def read(
    workdir: Path, shapes: Mapping[str, Any], averaged: bool = True, best: bool = False, step: int | None = None
) -> tuple[dict[str, Any], int]:
    """The network's parameters of a checkpoint, nested, and its step.

    Raises:
        UsageError: if there is no checkpoint, or if it is of another network.
    """
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        part = f"{'ema' if averaged else 'params'}.net.params"
        found = checkpoints.restore_part(part, shapes, step=step, best=best)
    if found is None:
        raise UsageError(f"no checkpoint in {workdir}: train first")
    return found
