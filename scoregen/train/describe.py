"""A description of the parts of a run as JSON: names of classes and their plain fields, never a pickle.

    {"class": "scoregen.nets.mlp.MLP", "fields": {"width": 96, ...}}        an object
    {"name": "my_module.my_loss"}                                           a function or a class
    {"array": [0.1, 0.2], "dtype": "float32"}    {"float": "inf"}    {"dict": {...}}

`rebuild` makes only objects of scoregen's own classes. For any other class it raises an error with its name, and the
user must pass the object when loading the run.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from scoregen.errors import UsageError
from scoregen.files import whole

if TYPE_CHECKING:
    from scoregen.data import Dataset

FILE = "model.json"
_KEYS = ("model", "objective", "optimizer", "average", "prepare", "data", "batch", "seed")  # the keys of a description
_OF_SAMPLES = ("units", "context_units", "columns", "form", "classes")  # the fields of a data set that samples need
_LINEN = ("parent", "name")  # fields that Flax adds to every module


def describe(value: Any) -> Any:
    """The value as JSON.

    >>> from scoregen.train.ema import Decay
    >>> describe(Decay(0.9))
    {'class': 'scoregen.train.ema.Decay', 'fields': {'rate': 0.9, 'ramp': True}}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple | list):
        return [describe(element) for element in value]
    if isinstance(value, dict):
        return {"dict": {str(key): describe(element) for key, element in value.items()}}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        plain = array.dtype.kind in "bui" or np.isfinite(array).all()
        return {"array": array.tolist() if plain else describe(array.tolist()), "dtype": str(array.dtype)}
    if isinstance(value, functools.partial):
        given = {"dict": {str(i): describe(a) for i, a in [*enumerate(value.args), *value.keywords.items()]}}
        return {"name": _path(value.func), "given": given}
    if hasattr(value, "__qualname__"):
        return {"name": _path(value)}
    return {"class": _path(type(value)), "fields": {key: describe(field) for key, field in _fields(value)}}


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        linen = _LINEN if hasattr(value, "parent") else ()
        for field in dataclasses.fields(value):
            if field.init and field.name not in linen:
                yield field.name, getattr(value, field.name)
    else:
        yield from ((key, field) for key, field in getattr(value, "__dict__", {}).items() if not key.startswith("_"))


def _path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def rebuild(description: Any) -> Any:
    """The object that `describe` described. All sequences become tuples.

    Raises:
        ValueError: for a class or function that is not scoregen's own, with its name.

    >>> from scoregen.process import ddpm
    >>> rebuild(describe(ddpm(steps=30))).levels
    30
    >>> rebuild({"class": "my_module.MyNet", "fields": {}})
    Traceback (most recent call last):
    ValueError: my_module.MyNet is not scoregen's own
    """
    if isinstance(description, list):
        return tuple(map(rebuild, description))
    if not isinstance(description, dict):
        return description
    if "float" in description:
        return float(description["float"])
    if "dict" in description:
        return {key: rebuild(element) for key, element in description["dict"].items()}
    if "array" in description:
        values = description["array"]
        return jax.numpy.asarray(np.asarray(_floats(values), dtype=description["dtype"]))
    if "given" in description:
        raise ValueError(f"arguments given to {description['name']} cannot be rebuilt")
    if "name" in description:
        return _own(description["name"])
    if "class" not in description:
        raise ValueError(f"{sorted(description)} describe nothing")
    kind = _own(description["class"])
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ValueError(f"{description['class']} cannot be rebuilt")
    return kind(**{key: rebuild(field) for key, field in description.get("fields", {}).items()})


def _floats(values: Any) -> Any:
    if isinstance(values, list):
        return [_floats(value) for value in values]
    return float(values["float"]) if isinstance(values, dict) else values


def _own(path: str) -> Any:
    """The class or function of scoregen with this path."""
    module, _, name = path.rpartition(".")
    if not re.fullmatch(r"scoregen(\.\w+)+", path):
        raise ValueError(f"{path} is not scoregen's own")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise ValueError(f"{path} is not in this version of scoregen") from None
    if str(getattr(found, "__module__", None)).partition(".")[0] != "scoregen":  # imported from elsewhere
        raise ValueError(f"{path} is not scoregen's own")
    return found


def fingerprint(optimizer: Any, params: Any) -> dict[str, str]:
    """A checksum of an optimizer's program, with its rate and schedule, for parameters of these shapes.

    An optax transformation is a pair of closures, and its constants are only visible in the traced program. The text of
    this program depends on the versions of jax and optax, so these are stored together with the checksum.
    """
    state = jax.eval_shape(optimizer.init, params)
    with jax.numpy_dtype_promotion("standard"):
        program = str(jax.make_jaxpr(optimizer.update)(params, state, params))
    text = re.sub(r"0x[0-9a-f]+", "", program)  # addresses differ from one process to the next
    versions = {package: importlib.metadata.version(package) for package in ("jax", "optax")}
    return {"program": f"{zlib.crc32(text.encode()):08x}", **versions}


def data_summary(dataset: Dataset) -> dict[str, Any]:
    """The shape, type and number of the examples, what samples need to become examples, and a checksum of a few.

    Samples need `_OF_SAMPLES`.
    """
    train = dataset.train
    every = max(1, len(train) // 64)
    few = np.ascontiguousarray(train[::every]).tobytes()
    for of in (dataset.train_labels, dataset.train_context):
        few += b"" if of is None else np.ascontiguousarray(of[::every]).tobytes()
    return {
        "shape": list(dataset.shape),
        "dtype": str(dataset.dtype),
        "size": len(train),
        "labels": 0 if dataset.train_labels is None else int(dataset.train_labels.max()) + 1,
        "context": dataset.context_dim,
        **{name: describe(getattr(dataset, name)) for name in _OF_SAMPLES},
        "checksum": f"{zlib.crc32(few):08x}",
    }


def stand_in(summary: dict[str, Any], name: str) -> Dataset:
    """A data set of zeros in place of the one of a summary, with its shape, units, classes and kind of file."""
    from scoregen.data import Dataset

    form = {key: rebuild(summary[key]) for key in _OF_SAMPLES}
    units, count = form["units"], max(1, summary["labels"], len(form["classes"] or ()))
    shape, dtype = (summary["shape"], summary["dtype"]) if units is None else (units.shape, units.dtype)
    zeros, labels = np.zeros((count, *shape), dtype), np.arange(count, dtype=np.int32) if summary["labels"] else None
    context = np.zeros((count, summary["context"]), np.float32) if summary["context"] else None
    return Dataset(name, zeros, zeros, labels, labels, train_context=context, test_context=context, **form)


def as_trained(dataset: Dataset, summary: dict[str, Any]) -> Dataset:
    """A data set with the units of a training, which differ from its own if its file has changed since.

    Raises:
        UsageError: if its examples, columns, classes or contexts are of another kind than those of the training.
    """
    old = {key: rebuild(summary[key]) for key in _OF_SAMPLES}
    pairs = {
        "examples of shape": (list(dataset.shape), summary["shape"]),
        "columns": (dataset.columns, old["columns"]),
        "classes": (dataset.classes, old["classes"]),
        "context of length": (dataset.context_dim, summary["context"]),
    }
    for what, (now, was) in pairs.items():
        if now != was:
            raise UsageError(f"{dataset.name}: {what} {now}, and the run was trained with {was}: give it those data")
    changed: dict[str, Any] = {"units": old["units"], "context_units": old["context_units"]}
    units, before = old["context_units"], dataset.context_units
    if units is not None and before is not None and units != before:
        for name in ("train_context", "test_context"):
            if (context := getattr(dataset, name)) is not None:
                changed[name] = units.encode(before.decode(context))
    return dataclasses.replace(dataset, **changed)


def write(workdir: Path, description: dict[str, Any]) -> None:
    """Writes the description of a run atomically."""
    with whole(workdir / FILE) as fresh:
        fresh.write_text(json.dumps(description, indent=1, allow_nan=False) + "\n")


def read(workdir: str | Path) -> dict[str, Any] | None:
    """The description of a run, or None without one.

    Raises:
        UsageError: if it is damaged, or was written by a version of scoregen with another format.
    """
    path = Path(workdir, FILE)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(errors="replace"))
    except ValueError as error:
        found = error
    if not isinstance(found, dict):
        raise UsageError(f"{path} is damaged: restore it from a copy, or delete it")
    missing = [key for key in _KEYS if key not in found]
    if missing or not {"shape", "dtype", *_OF_SAMPLES} <= set(found["data"] or ()):
        raise UsageError(f"{path} does not fit this version of scoregen: {', '.join(missing) or 'data'} is not in it")
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The differences between two descriptions, each as "KEY was OLD, now NEW" or "KEY was another"."""
    before, after = old.get("optimizer") or {}, new.get("optimizer") or {}
    # The optimizer's program also changes with the versions and with the shapes of the parameters.
    versions = any(before.get(package) != after.get(package) for package in ("jax", "optax"))
    was, now = old.get("data") or {}, new.get("data") or {}
    shapes = any(was.get(key) != now.get(key) for key in ("shape", "context", "labels"))
    if versions or shapes or old.get("model") != new.get("model"):
        old, new = ({key: value for key, value in found.items() if key != "optimizer"} for found in (old, new))
    found = list(_differences(old, new, ""))
    if any(line.startswith("data.shape ") for line in found):  # then all that follows from the shape differs too
        found = [line for line in found if not re.match(r"data\.(units|form|checksum|size)\b", line)]
    return found


def _differences(old: Any, new: Any, key: str) -> Iterator[str]:
    if old == new:
        return
    plain = [isinstance(value, dict) and not {"array", "float", "name"} & set(value) for value in (old, new)]
    if all(plain) and old.get("class") == new.get("class"):
        for name in [*new, *(name for name in old if name not in new)]:
            # The names of the format itself are left out: "model.net.width".
            inner = key if name in ("fields", "dict") else f"{key}.{name}".lstrip(".")
            yield from _differences(old.get(name), new.get(name), inner)
        return
    was, now = _shown(old), _shown(new)
    what = {"optimizer.program": "optimizer (its options, rate, schedule or clip)"}.get(key, key)
    short = key.rpartition(".")[2] not in ("program", "checksum") and was != now and max(len(was), len(now)) < 60
    yield f"{what} was {was}, now {now}" if short else f"{what} was another"


def _shown(value: Any) -> str:
    """The value in readable form."""
    if not isinstance(value, dict):
        return repr(value)
    path = value.get("class") or value.get("name")
    return path.rpartition(".")[2] if path else str(value)
