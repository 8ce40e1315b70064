"""Configurations as trees: values and sections under dotted keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict


def value(config: ConfigDict, key: str) -> Any:
    """The value, or the section, under a dotted key; the whole under "".

    Raises:
        KeyError: if there is none.

    >>> value(ConfigDict({"a": {"b": 1}}), "a.b")
    1
    """
    found: Any = config
    for name in key.split(".") if key else ():
        if not isinstance(found, ConfigDict) or name not in found:
            raise KeyError(key)
        found = found[name]
    return found


def sections(config: ConfigDict, key: str = "") -> Iterator[tuple[str, ConfigDict]]:
    """Every section with its dotted key, the whole first, under ""."""
    yield key, config
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from sections(value, f"{key}.{name}".lstrip("."))


def parts(section: ConfigDict) -> list[str]:
    """The names of the sections in a section."""
    return [name for name, value in section.items() if isinstance(value, ConfigDict)]


def is_choice(key: str, section: ConfigDict) -> bool:
    """Whether a section chooses a part: it has a `name` and holds sections. The whole configuration does not."""
    return key != "" and "name" in section and bool(parts(section))


def changes(old: ConfigDict, new: ConfigDict) -> list[tuple[str, Any, Any]]:
    """The differences, as (dotted key, old value, new value) in the order of the keys; None for a missing one.

    1 and 1.0 differ, nan and nan do not.

    >>> changes(ConfigDict({"a": {"b": 1, "c": 2}}), ConfigDict({"a": {"b": 1, "c": 3}, "d": "x"}))
    [('a.c', 2, 3), ('d', None, 'x')]
    """
    a, b = dict(leaves(old)), dict(leaves(new))
    return [(key, a.get(key), b.get(key)) for key in sorted(a | b) if repr(a.get(key)) != repr(b.get(key))]


def leaves(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Every option's dotted key and value."""
    for key, section in sections(config):
        for name, value in section.items():
            if not isinstance(value, ConfigDict):
                yield f"{key}.{name}".lstrip("."), value
