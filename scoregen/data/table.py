"""A table of numbers: CSV, TSV or Parquet, read and written by pandas. Each row is an example."""

from __future__ import annotations

import csv
import difflib
import importlib.util
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scoregen.data.dataset import NO_LABEL, Dataset, errors_of, split
from scoregen.data.sources import source
from scoregen.data.standardize import EXACT, WIDER, check_given, contexts, standardized
from scoregen.data.units import Form, Units
from scoregen.errors import UsageError

if TYPE_CHECKING:
    import pandas

SUFFIXES = (".csv", ".tsv", ".parquet")
SHOWN = 3  # columns that a message names
EMPTY = ["", "NA", "N/A", "#N/A", "n/a", "na", "NaN", "nan", "NULL", "null", "None", "none", "<NA>"]  # no value


@source(suffixes=SUFFIXES)
def table(
    dir: str,
    *,
    columns: str = "",
    label: str = "",
    context: str = "",
    standardize: bool = True,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    drop: bool = False,
    header: str = "auto",
    held_out: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """The rows of a table as points `[N, D]`, one coordinate for each column.

    Each column is standardised by the mean and the standard deviation of the training rows. Samples are converted back
    to the units and types of the columns. The separator of a .csv file may be a comma, a semicolon, a tab or "|".

    Args:
        dir: the file, .csv, .tsv or .parquet (which needs the extra `parquet`); .csv.gz works too.
        columns: the names of the columns to learn, separated by commas; "" for all but `label` and `context`.
        label: the column with the class of each row, as text or numbers.
        context: the columns, separated by commas, that the network is conditioned on: it learns p(columns | context).
        standardize: whether to standardise.
        mean, std: given means and standard deviations, one for all columns or one for each.
        drop: leave out rows with empty cells, instead of refusing them.
        header: whether the first line has the names of the columns: "yes", "no", or "auto" to find out. Without names
            the columns are called 1, 2, 3 and so on.
        held_out: the share of the rows to test on.
        seed: of the random choice of these rows.

    Raises:
        UsageError: if the file cannot be read or is no table; for columns of text, empty cells, NaN and infinity, with
            their row and column; for options that do not fit the file.

    >>> table("no_such.csv")
    Traceback (most recent call last):
    scoregen.errors.UsageError: no_such.csv: there is no such file
    """
    with errors_of("table"):
        check_given(standardize, mean, std, held_out, seed)
        if header not in ("auto", "yes", "no"):
            raise ValueError(f"header={header!r}: one of auto, yes, no is needed")
    path = Path(dir).expanduser()
    frame, first, said = read(path, header, label.strip())
    learned, given = _named(path, frame, columns), _named(path, frame, context)
    classes = _named(path, frame, label)
    if len(classes) > 1:
        raise UsageError(f"table: label={label}: one column is needed")
    if both := sorted({*learned} & {*given, *classes} | {*given} & {*classes}):
        raise UsageError(f"table: column {both[0]!r} is named twice, among columns, label and context: say it once")
    learned = learned or [name for name in frame.columns if name not in (*given, *classes)]
    if not learned:
        raise UsageError(f"{path}: no column is left to learn: name fewer in label and context")
    used = {*learned, *given, *classes}
    in_file = tuple(name for name in frame.columns if name in used)
    frame = frame.loc[:, [*learned, *given, *classes]]
    _refuse_text(path, frame.loc[:, [*learned, *given]], label)
    _refuse_long(path, frame.loc[:, [*learned, *given]])
    frame, dropped = _complete(path, frame, first, drop)
    notes = [f"{path}: {len(frame):,} rows of {len(learned)} columns{said}", *dropped]
    train, test = split("table", len(frame), held_out, seed)
    raw = frame[learned].to_numpy(np.float64)
    units = Units("float64", raw.shape[1:])
    names = tuple(learned)
    units, more = standardized(str(path), raw, units, train, standardize, mean, std, names)
    notes += more
    picked: dict[str, Any] = {}
    if given:
        picked |= contexts(str(path), frame[given].to_numpy(np.float64), train, test)
        notes.append(f"conditioned on {_some(given)}")
    if classes:
        found = frame[classes[0]].astype(str)
        numeric = all(map(_is_number, found))
        values = sorted(set(found), key=lambda value: (float(value), value) if numeric else value)
        order = {value: i for i, value in enumerate(values)}
        known = np.array([order[value] for value in found], np.int32)
        picked |= {"train_labels": known[train], "test_labels": known[test] if len(test) else None}
        picked |= {"classes": tuple(map(str, values))}
        notes.append(f"{len(values)} classes: " + _some([f"{i} = {value}" for i, value in enumerate(values)], 20))
    notes.append(f"{len(train):,} to train on, {len(test):,} held out")
    held = raw[test] if len(test) else None
    dtypes, of_context = (
        tuple(str(frame[column].to_numpy().dtype) for column in columns) for columns in (learned, given)
    )
    form = Form(_suffix(path), dtypes, tuple(given), of_context, "".join(classes), headed=first != 1, order=in_file)
    about = {"units": units, "columns": names, "form": form, "notes": tuple(notes)}
    return Dataset("table", raw[train], held, **about, **picked)


def _suffix(path: Path) -> str:
    """The kind of file, by its name, without a .gz at the end."""
    inner = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if inner.endswith(suffix)), "")


def read(path: Path, header: str = "auto", label: str = "") -> tuple[pandas.DataFrame, int, str]:
    """The table in a file, the line of its first row (0 if rows have no lines), and what to say about it.

    For `header` see `table`. The column `label` is read as text.

    Raises:
        UsageError: if it cannot be read, or has columns of the same name.
    """
    import pandas as pd

    if not str(path) or str(path) == ".":
        raise UsageError("no file is named to read the table from: say dir=FILE.csv")
    if not path.is_file():
        what = "it is a folder, and a file is needed; the preset images takes a folder of pictures"
        raise UsageError(f"{path}: {what if path.is_dir() else 'there is no such file'}")
    suffix = _suffix(path)
    if not suffix:
        raise UsageError(f"{path}: a file of {', '.join(SUFFIXES)} is needed")
    if suffix == ".parquet":
        if importlib.util.find_spec("pyarrow") is None:
            raise UsageError(f"{path}: Parquet needs pyarrow: pip install 'scoregen[parquet]'")
        try:
            frame = pd.read_parquet(path, engine="pyarrow")
        except Exception as error:  # pyarrow has many kinds of errors
            raise UsageError(f"{path} cannot be read as Parquet ({_first(error)}): write it again") from error
        frame.columns = [str(name) for name in frame.columns]
        return _checked(path, frame), 0, ""
    try:
        return _read_text(path, "\t" if suffix == ".tsv" else "", header, label)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}): save it as CSV in UTF-8") from None
    except (ValueError, OSError, EOFError, csv.Error) as error:  # pandas' errors are ValueErrors
        raise UsageError(f"{path} cannot be read as a table ({_first(error)})") from error


def _read_text(path: Path, separator: str, header: str, label: str) -> tuple[pandas.DataFrame, int, str]:
    import gzip

    import pandas as pd

    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
        line = next((line for line in file if line.strip()), "")
    if not line:
        raise UsageError(f"{path} is empty: a table is needed")
    separator = separator or max(",;\t|", key=line.count)
    names = [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
    words = [name for name in names if not (_is_number(name) or name in EMPTY)]
    if header == "auto" and words and any(map(_is_number, names)):
        raise UsageError(
            f"{path}: the first line has numbers and words: say header=yes if they are names, or header=no"
        )
    headed = bool(words) if header == "auto" else header == "yes"
    if headed and "" in names:
        at = names.index("") + 1
        raise UsageError(f"{path}: column {at} has no name: give it one, or remove it if it only counts the rows")
    if headed and (again := sorted({name for name in names if names.count(name) > 1})):
        raise UsageError(f"{path}: two columns are called {again[0]!r}: give each its own name")
    options: dict[str, Any] = {"sep": separator, "encoding": "utf-8-sig", "skipinitialspace": True, "index_col": False}
    options |= {"header": 0} if headed else {"header": None, "names": [str(i + 1) for i in range(len(names))]}
    said = "" if headed else "; the first line has no names, so the columns are called 1, 2, 3 ..."
    # Everything that stands for no value; in the column of the class, where NA may be a name, only what NaN is.
    known = names if headed else options["names"]
    missing = {name: ["", *NO_LABEL] if name == label else EMPTY for name in known}
    options |= {"keep_default_na": False, "na_values": missing}
    if label in known:
        options["dtype"] = {label: str}
    with warnings.catch_warnings():  # of lines with more cells than there are names
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            frame = pd.read_csv(path, **options)
        except pd.errors.ParserWarning:
            raise UsageError(f"{path} has lines with more cells than the {len(names)} of its first line") from None
    if separator != "," and len(_text_columns(frame)):
        other = pd.read_csv(path, decimal=",", **options)
        if len(_text_columns(other)) < len(_text_columns(frame)):
            frame, said = other, f"{said}; the comma is read as the decimal mark"
    frame.columns = [str(name).strip() for name in frame.columns]
    return _checked(path, frame), 2 if headed else 1, said


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _checked(path: Path, frame: pandas.DataFrame) -> pandas.DataFrame:
    if len(frame) < 2:
        raise UsageError(f"{path} has {len(frame)} row{'s' * (len(frame) != 1)}: two or more are needed")
    return frame


def _text_columns(frame: pandas.DataFrame) -> list[str]:
    """The columns that hold anything but numbers."""
    return [name for name in frame.columns if frame[name].dtype.kind not in "biuf"]


def _named(path: Path, frame: pandas.DataFrame, names: str) -> list[str]:
    """The columns in a text of names, separated by commas."""
    found = [name.strip() for name in next(csv.reader([names]), []) if name.strip()]
    for name in found:
        if name not in frame.columns:
            near = difflib.get_close_matches(name, map(str, frame.columns), n=1)
            hint = f"did you mean {near[0]!r}? There" if near else "there"
            raise UsageError(f"{path} has no column {name!r}: {hint} are: {_some(list(frame.columns), 20)}")
        if found.count(name) > 1:
            raise UsageError(f"table: column {name!r} is named twice: say it once")
    return found


def _refuse_text(path: Path, frame: pandas.DataFrame, label: str) -> None:
    if text := _text_columns(frame):
        numeric = [name for name in frame.columns if name not in text]
        example = frame[text[0]].dropna()
        shown = f" (such as {str(example.iloc[0])[:40]!r})" if len(example) else " (empty)"
        ways = ["write them as numbers first"]
        if numeric:
            ways.append(f"name the columns to learn, such as columns={','.join(numeric[:SHOWN])}")
        if not label and len(text) == 1:
            ways.append(f"make it the class, with label={text[0]}")
        which = f"column {text[0]!r}" if len(text) == 1 else f"columns {_some([repr(name) for name in text])}"
        raise UsageError(f"{path}: {which}{shown}: no numbers: {', or '.join(ways)}")


def _refuse_long(path: Path, frame: pandas.DataFrame) -> None:
    for name in frame.columns:
        column = frame[name].to_numpy()
        if column.dtype.kind in "iu" and np.abs(column.astype(np.float64)).max() > EXACT:
            raise UsageError(f"{path}: column {name!r} has integers with more digits than {WIDER}")


def _complete(path: Path, frame: pandas.DataFrame, first: int, drop: bool) -> tuple[pandas.DataFrame, list[str]]:
    """The rows without empty cells, and what to say about the others."""
    empty = frame.isna().to_numpy()
    places = np.arange(len(frame)) + (first or 1)
    word = "line" if first else "row"
    if empty.any() and not drop:
        i, j = map(int, np.argwhere(empty)[0])
        rows = int(empty.any(1).sum())
        raise UsageError(
            f"{path}, {word} {places[i]}, column {frame.columns[j]!r}: the cell is empty or NaN; {rows} of "
            f"{len(frame)} rows have such cells: fill them in, or say drop=true to leave these rows out"
        )
    kept = ~empty.any(1)
    if kept.sum() < 2:
        raise UsageError(
            f"{path}: without the rows that have empty cells, {kept.sum()} is left: two or more are needed"
        )
    frame, places = frame.loc[kept], places[kept]
    numbers = frame.select_dtypes("number")
    if len(bad := np.argwhere(np.isinf(numbers.to_numpy(np.float64)))):
        i, j = map(int, bad[0])
        raise UsageError(
            f"{path}, {word} {places[i]}, column {numbers.columns[j]!r}: the value is infinite; {len(bad)} "
            f"{'cell is' if len(bad) == 1 else 'cells are'}: remove these rows, or replace the values"
        )
    left = int((~kept).sum())
    return frame, [f"{left:,} rows with empty cells are left out"] if left else []


def _some(names: list[str], most: int = SHOWN) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def write(
    path: Path,
    values: np.ndarray,
    columns: tuple[str, ...],
    dtypes: tuple[str, ...],
    label: Any = None,
    headed: bool = True,
    order: tuple[str, ...] = (),
) -> None:
    """Write rows `[N, D]` as a table of the kind of the file's suffix, each column in its type.

    `label` is the name of another column and its texts `[N]`, or None. `headed` says whether text has a line of names.
    `order` has the names of the columns in the order in which they are written; () for the given one, the label last.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder, "x.csv"), np.array([[1.2, 0.5]]), ("a", "b"), ("int64", "float64"))
    ...     print(Path(folder, "x.csv").read_text(), end="")
    a,b
    1,0.5
    """
    import pandas as pd

    made = {}
    for name, kind, column in zip(columns, dtypes, np.asarray(values, np.float64).T, strict=True):
        if size := float(column.std()) or abs(float(column[0])):
            # Samples have the precision of float32: further digits say nothing.
            column = np.round(column, min(300, 6 - math.floor(math.log10(size))))
        made[name] = Units(kind, (), channel=None).decode(column[:, None])
    frame = pd.DataFrame(made)
    if label is not None:
        frame[label[0]] = label[1]
    if order:
        frame = frame.loc[:, [name for name in order if name in frame.columns]]
    if path.suffix == ".parquet":
        frame.to_parquet(path, engine="pyarrow", index=False)
    else:
        frame.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False, header=headed)
