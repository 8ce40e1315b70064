"""Sources, which are functions that return a `Dataset`, and their properties, known without a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from scoregen.data.dataset import Dataset

Make = TypeVar("Make", bound=Callable[..., Dataset])


def source(
    *,
    shape: Callable[..., tuple[int, ...]] | None = None,
    verified: bool = False,
    slow: bool = False,
    suffixes: tuple[str, ...] = (),
) -> Callable[[Make], Make]:
    """Decorator that declares properties of a source, known without reading its data. A source may do without it.

    Args:
        shape: a function from some of the source's options, by name, to the shape of an example.
        verified: whether every file is compared with a published checksum, so that the data are the same in any
            folder.
        slow: whether the first reading may take minutes, so that a command reports all other errors before it.
        suffixes: the kinds of file that the source reads, such as ".npy". A command that is given such a file as its
            data then chooses this source.

    >>> @source(shape=lambda size: (size, size, 3))
    ... def photos(*, dir: str, size: int = 32, seed: int = 0) -> Dataset:
    ...     raise NotImplementedError
    >>> shape_of(photos, dir="", size=8, seed=1), shape_of(photos), reads_files(photos), is_verified(photos)
    ((8, 8, 3), (32, 32, 3), True, False)
    """

    def declare(make: Make) -> Make:
        declared = {"example_shape": shape, "verified": verified, "slow": slow, "suffixes": suffixes}
        for name, value in declared.items():
            setattr(make, name, value)
        return make

    return declare


def reads_files(make: Callable[..., Dataset]) -> bool:
    """Whether a source reads files: it then has a parameter `dir`, the folder or file that the user names."""
    return "dir" in inspect.signature(make).parameters


def is_verified(make: Callable[..., Dataset]) -> bool:
    """Whether the data of a source are the same in any folder; see `source`."""
    return getattr(make, "verified", False)


def suffixes(make: Callable[..., Dataset]) -> tuple[str, ...]:
    """The kinds of file that a source reads; see `source`."""
    return getattr(make, "suffixes", ())


def is_slow(make: Callable[..., Dataset] | None) -> bool:
    """Whether the first reading of a source may take minutes; see `source`."""
    return getattr(make, "slow", False)


def shape_of(make: Callable[..., Dataset], **options: Any) -> tuple[int, ...]:
    """The shape of an example of a source with these options: as declared, or else from its data.

    `dir` may be given to a source that reads no files.
    """
    shape, parameters = getattr(make, "example_shape", None), inspect.signature(make).parameters
    if shape is None:
        return make(**{name: value for name, value in options.items() if name != "dir" or name in parameters}).shape
    known = {name: parameter.default for name, parameter in parameters.items()} | options
    return shape(**{name: known[name] for name in inspect.signature(shape).parameters})
