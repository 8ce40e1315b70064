"""Which samples `scoregen sample` draws, and where to: its flags beside the options of the configuration."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scoregen.app.command import is_run
from scoregen.errors import MOST

if TYPE_CHECKING:
    from scoregen.data import Dataset

ARCHIVE = ".npz"
SETTINGS = "samples.json"  # the settings of samples, beside them
SEEDS = 10_000_000  # at most
# Endings of files that samples are not written to, so that nobody gets a folder of this name.
_OTHERS = {".npy", ".csv", ".tsv", ".parquet", ".png", ".jpg", ".jpeg", ".webp", ".zip", ".tar", ".json", ".h5", ".pt"}


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a command line says about the samples.

    Attributes:
        seeds: the seeds of --seeds; () draws the first samples of one seed.
        classes: the text of --classes, such as "0,3-5" or "cat,dog"; "" draws the classes of the data in turn.
        grid: whether to draw a grid of the samples.
        counted: whether the number of samples was given.
    """

    seeds: tuple[int, ...] = ()
    classes: str = ""
    grid: bool = False
    counted: bool = False


def read_seeds(text: str) -> tuple[tuple[int, ...], list[str]]:
    """The seeds in a text such as "0-63" or "0,5,7-9", and a line for each error in it.

    >>> read_seeds("0,5,7-9")
    ((0, 5, 7, 8, 9), [])
    >>> read_seeds("x,5-3")[1]
    ["--seeds: 'x': a seed, or a range such as 0-63, is needed", '--seeds: 5-3 is empty: say 3-5']
    """
    found: list[range] = []
    errors = []
    for part in text.split(","):
        if (numbers := _numbers(part)) is None:
            errors.append(f"--seeds: {part.strip()!r}: a seed, or a range such as 0-63, is needed")
        elif not numbers:
            errors.append(_empty("--seeds", part))
        elif numbers[-1] >= 2**32:
            errors.append(f"--seeds: {numbers[-1]}: an integer from 0 to 4294967295 is needed")
        else:
            found.append(numbers)
    count = sum(map(len, found))
    if count > SEEDS:
        errors.append(f"--seeds={text}: {count:,} seeds: at most {SEEDS:,} at a time are possible")
    if errors:
        return (), errors
    seeds = tuple(seed for numbers in found for seed in numbers)
    return (seeds, []) if len(set(seeds)) == count else ((), [_twice("--seeds", seeds)])


def write_seeds(seeds: Sequence[int]) -> str:
    """The text that `read_seeds` reads, as short as possible.

    >>> write_seeds((0, 5, 7, 8, 9))
    '0,5,7-9'
    """
    ranges: list[list[int]] = []
    for seed in seeds:
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def read_classes(text: str, count: int, names: Sequence[str] | None = None) -> tuple[tuple[int, ...], list[str]]:
    """The classes in a text of numbers, ranges and names, and a line for each error in it.

    A number is the number of a class, also if another class has this name.

    Args:
        text: such as "0,3-5" or "cat,dog".
        count: the number of classes.
        names: the name of each class, if they have names.

    >>> read_classes("2,cat", 3, ("ape", "cat", "dog")), read_classes("cta", 3, ("ape", "cat", "dog"))[1]
    (((2, 1), []), ["--classes: no class 'cta': did you mean 'cat'? There are: ape, cat, dog"])
    """
    known, found, errors = list(names or ()), [], []
    for part in map(str.strip, text.split(",")):
        numbers = _numbers(part)
        if numbers is None and part in known:
            found.append(known.index(part))
        elif numbers is None:
            errors.append(f"--classes: {_no_class(part, count, known)}")
        elif not numbers:
            errors.append(_empty("--classes", part))
        elif numbers[-1] >= count:
            called = f"; the class called {part} is class {known.index(part)}" if part in known else ""
            errors.append(f"--classes: {numbers[-1]}: the classes are 0 to {count - 1}{called}")
        else:
            found += numbers
    if not errors and len(set(found)) < len(found):
        errors.append(_twice("--classes", found))
    return ((), errors) if errors else (tuple(found), [])


def _numbers(part: str) -> range | None:
    """The numbers of "7" or "0-63"; None for other text."""
    found = re.fullmatch(r"\s*0*(\d+?)(?:\s*-\s*0*(\d+?))?\s*", part, re.ASCII)
    if found is None:
        return None
    # 20 digits are too many in any case, and Python reads only 4,300.
    first, last = (int(digits[:20]) for digits in (found[1], found[2] or found[1]))
    return range(first, last + 1)


def _empty(flag: str, part: str) -> str:
    first, last = part.split("-")
    return f"{flag}: {part.strip()} is empty: say {last.strip()}-{first.strip()}"


def _twice(flag: str, numbers: Sequence[int]) -> str:
    seen: set[int] = set()
    again = next(number for number in numbers if number in seen or seen.add(number))
    return f"{flag}: {again} is named twice: say it once"


def _no_class(part: str, count: int, names: list[str]) -> str:
    near = difflib.get_close_matches(part, names, n=1)
    hint = f"did you mean {near[0]!r}? There" if near else "there"
    there = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "") if names else f"0 to {count - 1}"
    return f"no class {part!r}: {hint} are: {there}"


def wrong_out(out: Path) -> Iterator[str]:
    """A line if samples cannot be written to `out`, as far as its name and the files there say."""
    said, suffix = f"--out={out}", out.suffix.lower()
    full = out.expanduser().resolve()
    if run := next((folder for folder in (full, *full.parents) if is_run(folder)), None):
        what = "is the folder of a run" if run == full else f"is inside the run {run}"
        yield f"{said} {what}: say another folder, such as --out={run.name}-samples"
    elif suffix == ARCHIVE:
        if full.is_dir():
            yield f"{said} is a folder: say a file, or a folder whose name does not end in {ARCHIVE}"
    elif suffix in _OTHERS and not full.is_dir():
        yield f"{said}: a folder or a {ARCHIVE} file is needed"
    elif full.exists() and not full.is_dir():
        yield f"{said} is a file: a folder or a {ARCHIVE} file is needed"
    elif full.is_dir() and not (full / SETTINGS).is_file() and any(p.name[0] != "." for p in full.iterdir()):
        yield f"{said} holds other files: say a new or an empty folder"


def misfits(selection: Selection, n: int, dataset: Dataset, classes: int) -> list[str]:
    """A line for each part of the selection that does not fit the run.

    Args:
        selection: of the command line.
        n: the number of samples.
        dataset: the data of the run, or a stand-in.
        classes: the number of the network's classes.
    """
    lines = []
    if selection.classes and not classes:
        lines.append(
            f"--classes={selection.classes}: this network has no classes: train a network with --config.labels=true"
        )
    elif selection.classes:
        chosen, errors = read_classes(selection.classes, classes, dataset.classes)
        lines += errors
        if chosen and not selection.seeds and selection.counted and n % len(chosen):
            below = n - n % len(chosen)
            ways = " or ".join(f"--n={m}" for m in (below, below + len(chosen)) if 0 < m <= MOST)
            lines.append(f"--n={n}: not the same number of each of {len(chosen)} classes: say {ways}")
    if selection.grid and not pictured(dataset):
        lines.append(
            "--grid draws pictures of bytes, grey or in colour, and the samples are none: leave it out; without --out "
            "the command draws a figure"
        )
    return lines


def pictured(dataset: Dataset) -> bool:
    """Whether each sample can be a PNG file: images of bytes, grey or in colour."""
    return dataset.is_image and dataset.shape[-1] in (1, 3)
