"""Data sets of Hugging Face, from the hub or from a local folder, read with the library `datasets`."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scoregen.data.arrays import memory
from scoregen.data.dataset import Dataset, errors_of
from scoregen.data.dataset import split as divided
from scoregen.data.folder import as_wanted, name_classes, shape_wanted, what_was_done
from scoregen.data.pictures import Unreadable, Wanted, read, to_grey
from scoregen.data.prepared import bar
from scoregen.data.sources import source
from scoregen.data.standardize import contexts, standardized
from scoregen.data.units import Form, Units
from scoregen.errors import UsageError, check_numbers
from scoregen.random import check_seed

TESTS = ("test", "validation")  # the splits to test on, if none is named
SHOWN = 20  # columns that a message names
LONGEST = 300  # characters of a message of another library


def _shape(features: tuple[str, ...], size: int | tuple[int, ...], channels: int) -> tuple[int, ...]:
    return (len(features),) if features else shape_wanted(size, channels)


@source(shape=_shape, slow=True)
def hf(
    *,
    dir: str,
    subset: str = "",
    split: str = "train",
    test_split: str = "",
    image: str = "",
    label: str = "",
    features: tuple[str, ...] = (),
    context: str = "",
    size: int | tuple[int, ...] = (64,),
    channels: int = 0,
    crop: str = "center",
    background: tuple[int, ...] = (255,),
    held_out: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """A data set of Hugging Face: pictures as uint8 `[N, H, W, C]`, or numeric columns as points `[N, D]`.

    It needs the library `datasets`: pip install 'scoregen[hf]'. Code of a data set is never run. The pictures are held
    in memory, and are made as those of `scoregen.data.folder`. Columns are standardised as those of
    `scoregen.data.table`.

    Args:
        dir: the name of a data set on the hub, or a local folder: one of `save_to_disk`, or one that `load_dataset`
            reads, with pictures, parquet or CSV files.
        subset: the configuration of the data set, if it has several.
        split: the split to train on.
        test_split: the split to test on; "" is "test" or "validation" if there is one, or else a part of `split`.
        image: the column of the pictures; "" is the only one of pictures.
        label: the column of the labels, classes or integers; "" is the only one of classes, if there is one.
        features: the numeric columns, for a table.
        context: the numeric columns, separated by commas, that the network is conditioned on.
        size: height and width of the pictures in pixels, or one number for both.
        channels: 1 for grey, 3 for colour, 0 for grey if all pictures are grey.
        crop: "center" or "random", or "none" to stretch a picture instead.
        background: grey, or red, green and blue, 0 to 255, behind transparent pixels.
        held_out: the share of the examples to test on, if there is no split to test on.
        seed: the seed that chooses them.

    Raises:
        UsageError: for an option out of range; without the library; if the data set cannot be read or downloaded; for a
            split or a column that is not there or of another kind, or that must be named because there are several; for
            a picture that cannot be read, and for labels that are missing.

    >>> hf(dir="")
    Traceback (most recent call last):
    scoregen.errors.UsageError: no data set is named: say dir=NAME of one on the hub, or dir=FOLDER
    """
    wanted = as_wanted("hf", size, channels, crop, background)
    with errors_of("hf"):
        check_numbers(lambda share: 0 < share < 1, "a number between 0 and 1", held_out=held_out)
        check_seed(seed)
        if not isinstance(features, tuple | list) or not all(isinstance(name, str) for name in features):
            raise TypeError(f"features={features!r}: a tuple of names of columns is needed, such as ('x', 'y')")
    if image and features:
        raise UsageError(f"hf: image={image!r}: features are columns of numbers, so leave out one of the two")
    if not dir:
        raise UsageError("no data set is named: say dir=NAME of one on the hub, or dir=FOLDER")
    if importlib.util.find_spec("datasets") is None:
        raise UsageError(f"{dir} is read with the library datasets, which is missing: pip install 'scoregen[hf]'")
    parts = _parts(dir, subset, split, test_split)
    kinds = parts[0][1].features
    labelled, given = _label(dir, kinds, label), [name.strip() for name in context.split(",") if name.strip()]
    if both := sorted({*features} & {*given}):
        raise UsageError(f"hf: column {both[0]!r} is in features and in context: name it in one of them")
    sizes = [len(part) for _, part in parts]
    train, test = np.split(np.arange(sum(sizes)), sizes[:1])
    if len(parts) == 1:
        train, test = divided("hf", sizes[0], held_out, seed)
    picked: dict[str, Any] = {}
    if features:
        raw = _numbers(parts, features, "features")
        units, notes = standardized(dir, raw, Units("float64", raw.shape[1:]), train, True, names=tuple(features))
        notes.insert(0, f"{dir}: {len(raw):,} rows of {len(features)} columns")
        picked |= {"units": units, "columns": tuple(features)}
    else:
        raw, notes = _pictures(parts, _image(dir, kinds, image), wanted, channels)
    if given:
        picked |= contexts(dir, _numbers(parts, given, "context"), train, test)
        notes.append(f"conditioned on {', '.join(given)}")
    if features:
        picked["form"] = Form(".csv", _types(kinds, features), tuple(given), _types(kinds, given), labelled or "")
    if labelled is not None:
        labels = np.concatenate([_labels(what, part, labelled) for what, part in parts])
        picked |= {"train_labels": labels[train], "test_labels": labels[test] if len(test) else None}
        if names := getattr(kinds[labelled], "names", None):
            notes.append(name_classes(labels[train], names))
            picked["classes"] = tuple(names)
        elif features and labels.max() < len(labels):  # the column of a table with samples has the integers
            picked["classes"] = tuple(map(str, range(labels.max() + 1)))
    notes.append(f"{len(train):,} to train on, {len(test):,} held out")
    # Of two splits without a copy: pictures take much memory.
    examples, held = np.split(raw, sizes[:1]) if len(parts) == 2 else (raw[train], raw[test])
    return Dataset("hf", examples, held if len(held) else None, notes=tuple(notes), **picked)


# What is read


def _library() -> Any:
    """The library `datasets`, which takes seconds to import."""
    import datasets  # pyright: ignore[reportMissingImports]

    return datasets


def _parts(dir: str, subset: str, split: str, test_split: str) -> list[tuple[str, Any]]:
    """The data sets to train on and, if there is one, to test on, each with its name for messages."""
    splits = _splits(dir, subset)
    test = test_split or next((name for name in TESTS if name in splits and name != split), "")
    for option, name in (("split", split), ("test_split", test_split)):
        if name not in splits and (name or option == "split"):
            raise UsageError(f"hf: {option}={name!r}: {dir} holds {', '.join(splits)}: choose one of these")
    if test == split:
        raise UsageError(f"hf: test_split={test!r}: this is the split to train on: choose another one")
    parts = [(f"{dir}, split {name}", splits[name]) for name in (split, test) if name]
    for what, part in parts:
        if not len(part):
            raise UsageError(f"{what} is empty: choose another one")
        if part.features != parts[0][1].features and set(part.features) != set(parts[0][1].features):
            raise UsageError(f"{what} has other columns than {parts[0][0]}: choose another test_split")
        for column, feature in part.features.items():
            names = getattr(parts[0][1].features[column], "names", None)
            if getattr(feature, "names", None) != names:
                raise UsageError(
                    f"{what} has other classes in {column!r} than {parts[0][0]}: choose another test_split"
                )
    return parts


def _splits(dir: str, subset: str) -> dict[str, Any]:
    """The data sets by the name of the split."""
    path = Path(dir).expanduser()
    if path.is_file():
        raise UsageError(f"{dir} is a file: say dir=FOLDER with the folder that holds it")
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))  # by save_to_disk
    if saved and subset:
        raise UsageError(f"hf: subset={subset!r}: {dir} was saved without subsets: leave it out")
    library = _library()  # its import sets the level of the log
    try:
        with _quiet():
            if saved:
                found = library.load_from_disk(str(path))
            else:
                # An absolute path, since a relative one may be the name of a format, such as csv.
                found = library.load_dataset(str(path.resolve()) if path.is_dir() else dir, subset or None)
    except Exception as error:  # of many kinds: of the network, of the formats, of the library
        if "Config name is missing" in str(error) or "BuilderConfig" in str(error):
            raise UsageError(f"hf: subset={subset!r}: {_said(error)}: choose one of the subsets of {dir}") from error
        kind = "a folder that it reads" if path.is_dir() else "a name on the hub, with a network, or a local folder"
        raise UsageError(f"{dir} cannot be read with datasets ({_said(error)}): give {kind}") from error
    if isinstance(found, library.DatasetDict):
        return {str(name): part for name, part in found.items()}
    return {str(found.split or "train"): found}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within it, the hub's library does not log each attempt to reach the network; the error says it."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _said(error: BaseException) -> str:
    """An error of another library in one short line."""
    cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


# Columns


def _image(dir: str, columns: Any, image: str) -> str:
    """The column of the pictures."""
    found = [name for name, kind in columns.items() if isinstance(kind, _library().Image)]
    if image:
        if image not in found:
            raise UsageError(f"hf: image={image!r}: {_is_not(dir, columns, image, 'pictures')}")
        return image
    if len(found) > 1:
        raise UsageError(f"{dir} has several columns of pictures: say image=NAME with one of {', '.join(found)}")
    if not found:
        raise UsageError(f"{dir} has no column of pictures: say features=NAMES for a table; it holds {_kinds(columns)}")
    return found[0]


def _label(dir: str, columns: Any, label: str) -> str | None:
    """The column of the labels, if there is one."""
    found = [name for name, kind in columns.items() if isinstance(kind, _library().ClassLabel)]
    if label:
        if label not in found and not _type(columns.get(label)).startswith(("int", "uint")):
            raise UsageError(f"hf: label={label!r}: {_is_not(dir, columns, label, 'classes or integers')}")
        return label
    if len(found) > 1:
        raise UsageError(f"{dir} has several columns of classes: say label=NAME with one of {', '.join(found)}")
    return found[0] if found else None


def _is_not(dir: str, columns: Any, name: str, kind: str) -> str:
    what = f"this column of {dir} holds no {kind}" if name in columns else f"{dir} has no such column"
    return f"{what}: it holds {_kinds(columns)}"


def _kinds(columns: Any) -> str:
    """The columns, each with the kind of its values."""
    kinds = [f"{name} ({_type(kind) or type(kind).__name__})" for name, kind in columns.items()]
    more = f" and {len(kinds) - SHOWN} more" if len(kinds) > SHOWN else ""
    return ", ".join(kinds[:SHOWN]) + more


def _type(kind: Any) -> str:
    """The type of a column of single values, such as "int64"; "" for any other."""
    return kind.dtype if type(kind) is _library().Value else ""


def _types(columns: Any, names: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """The types of numeric columns, as NumPy calls them."""
    return tuple(str(np.dtype(_type(columns[name]))) for name in names)


def _numbers(parts: list[tuple[str, Any]], names: tuple[str, ...] | list[str], option: str) -> np.ndarray:
    """Numeric columns of all parts as float64 `[N, D]`; `option` is where they are named."""
    given = (*names,) if option == "features" else ",".join(names)
    found = []
    for what, part in parts:
        for name in names:
            if not _type(part.features.get(name)).startswith(("int", "uint", "float", "bool")):
                raise UsageError(f"hf: {option}={given}: {name}: {_is_not(what, part.features, name, 'numbers')}")
        table = part.select_columns([*dict.fromkeys(names)]).with_format("arrow")[:]
        found.append(np.stack([table.column(name).to_numpy().astype(np.float64) for name in names], -1))
        if len(bad := np.argwhere(~np.isfinite(found[-1]))):
            row, column = bad[0]
            raise UsageError(
                f"{what}: the value in row {row} of the column {names[column]} is {found[-1][row, column]}; "
                f"{len({*bad[:, 0]})} of {len(found[-1])} rows have such values: leave them out, with datasets and "
                "save_to_disk"
            )
    return np.concatenate(found)


def _labels(what: str, part: Any, name: str) -> np.ndarray:
    """int32 `[N]`."""
    column = part.select_columns([name]).with_format("arrow")[:].column(name)
    labels = column.to_numpy()
    missing = column.null_count or (labels < 0).sum()
    if missing:
        raise UsageError(
            f"{what}: {missing} of {len(labels)} examples have no label in the column {name}: leave them out, or "
            "choose another split"
        )
    if (most := labels.max()) > np.iinfo(np.int32).max:
        raise UsageError(f"{what}: the label {most} in the column {name} does not fit int32: count the classes from 0")
    return labels.astype(np.int32)


def _pictures(parts: list[tuple[str, Any]], column: str, wanted: Wanted, channels: int) -> tuple[np.ndarray, list[str]]:
    """The pictures of all parts, uint8 `[N, H, W, C]`, and notes."""
    count = sum(len(part) for _, part in parts)
    shape = (wanted.height, wanted.width, 3)
    if (needed := count * int(np.prod(shape))) > memory():
        raise UsageError(
            f"{count} pictures need {needed} bytes, more than the memory of this machine: say another size"
        )
    pictures, at, grey, done = np.empty((count, *shape), np.uint8), 0, True, collections.Counter()
    with bar(count) as advance:
        for what, part in parts:
            for row, pixels in enumerate(_undecoded(part, column)):
                try:
                    if pixels is None:
                        raise Unreadable("it is missing")
                    picture = read(pixels, wanted)
                except Unreadable as error:
                    raise UsageError(
                        f"{what}: the picture in row {row} of the column {column} cannot be read ({error}): leave it "
                        "out, with datasets and save_to_disk"
                    ) from None
                pictures[at], at, grey = picture.pixels, at + 1, grey and picture.grey
                done.update(picture.notes)
                advance()
    grey = channels == 1 or (channels == 0 and grey)
    kind = "grey" if grey else "colour"
    notes = [f"{count:,} pictures in {parts[0][0]}, as {wanted.height}x{wanted.width} in {kind}"]
    if said := what_was_done(done, wanted):
        notes.append(said)
    return to_grey(pictures) if grey else pictures, notes


def _undecoded(part: Any, column: str) -> Iterator[io.BytesIO | str | None]:
    """The content or the path of the file of each picture, which this package decodes; None if it is missing."""
    for row in part.select_columns([column]).cast_column(column, _library().Image(decode=False)).with_format(None):
        cell = row[column] or {}
        content = cell.get("bytes")
        yield io.BytesIO(content) if content is not None else cell.get("path")
