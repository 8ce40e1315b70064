"""Maps the arrays of another library's network to ours. One list serves both directions.

A layout is a list of entries, `(theirs, ours, kind)`: the key in their state dict, the dotted path in our parameters
(`down0_0.conv1.kernel`) and the name of the conversion in `KINDS`. Each kind has a conversion and its exact inverse, so
exported and re-imported arrays are bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

Turn = Callable[[np.ndarray], np.ndarray]

# name -> (theirs to ours, ours to theirs). Theirs is PyTorch's order, ours is XLA's.
KINDS: dict[str, tuple[Turn, Turn]] = {
    "same": (lambda a: a, lambda a: a),
    "negated": (lambda a: -a, lambda a: -a),
    # one row per noise level: noisiest first <-> least noisy first
    "reversed": (lambda a: a[::-1], lambda a: a[::-1]),
    # one row per class <-> the same, and a row of zeros for "no class"
    "labels": (lambda a: np.concatenate([a, np.zeros_like(a[:1])]), lambda a: a[:-1]),
    # a dense layer: [out, in] <-> [in, out]
    "dense": (lambda a: a.T, lambda a: a.T),
    # a convolution: [out, in, height, width] <-> [height, width, in, out]
    "conv": (lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)),
    "negated_conv": (lambda a: -a.transpose(2, 3, 1, 0), lambda a: -a.transpose(3, 2, 0, 1)),
    # a 1x1 convolution, which is a dense layer here: [out, in, 1, 1] <-> [in, out]
    "pointwise": (lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None]),
    # a 1x1 convolution over a sequence: [out, in, 1] <-> [in, out]
    "pointwise1d": (lambda a: a[:, :, 0].T, lambda a: a.T[:, :, None]),
}


class Entry(NamedTuple):
    """One array: its key in their state dict, its dotted path in our parameters, and its kind."""

    theirs: str
    ours: str
    kind: str = "same"


def to_ours(layout: Iterable[Entry], theirs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters, nested, from their state dict.

    Raises:
        ValueError: if an array of the layout is missing, or if there is an array that is not in the layout.

    >>> to_ours([Entry("fc.weight", "out.kernel", "dense")], {"fc.weight": np.ones((3, 2))})["out"]["kernel"].shape
    (2, 3)
    """
    layout = list(layout)
    known = {entry.theirs for entry in layout}
    if missing := [entry.theirs for entry in layout if entry.theirs not in theirs]:
        raise ValueError(f"there is no {missing[0]} ({len(missing)} of {len(layout)} arrays are missing)")
    if unknown := sorted(set(theirs) - known):
        raise ValueError(f"there is {unknown[0]}, which the network has not ({len(unknown)} such arrays)")
    tree: dict[str, Any] = {}
    for entry in layout:
        *path, name = entry.ours.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[name] = np.ascontiguousarray(KINDS[entry.kind][0](np.asarray(theirs[entry.theirs])))
    return tree


def to_theirs(layout: Iterable[Entry], ours: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Their state dict from our parameters: the inverse of `to_ours`.

    >>> to_theirs([Entry("fc.weight", "out.kernel", "dense")], {"out": {"kernel": np.ones((2, 3))}})["fc.weight"].shape
    (3, 2)
    """

    def at(path: str) -> np.ndarray:
        node: Any = ours
        for part in path.split("."):
            node = node[part]
        return np.asarray(node)

    return {e.theirs: np.ascontiguousarray(KINDS[e.kind][1](at(e.ours))) for e in layout}
