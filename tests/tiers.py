"""Which cases of a test with parameters are quick."""

from collections.abc import Mapping, Sequence
from typing import Any


def spread(cases: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """The numbers of `count` cases that have as many different values of each parameter as possible.

    >>> spread([{"loss": loss, "net": net} for loss in ("eps", "dsm", "ssm") for net in ("mlp", "unet")], 3)
    [0, 3, 4]
    """

    def values(case: Mapping[str, Any]) -> set:
        return {(name, id(value)) for name, value in case.items()}  # not every parameter can be hashed or compared

    left, chosen = dict(enumerate(map(values, cases))), []
    missing = set().union(*left.values())
    while left and len(chosen) < count:
        best = max(left, key=lambda number: len(left[number] & missing))
        missing -= left.pop(best)
        chosen.append(best)
    return sorted(chosen)
