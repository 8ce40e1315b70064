"""Calls of functions of a denoiser, compiled once for each structure of it, and not again for new parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array

from scoregen.denoiser import Denoiser


class _Constant:
    """A constant of a compiled program: compared by its value, or by its identity if it cannot be hashed."""

    def __init__(self, value: Any):
        self.value = value
        try:
            self._hash, self._hashable = hash((type(value), value)), True
        except TypeError:
            self._hash, self._hashable = id(value), False

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Constant) or type(self.value) is not type(other.value):
            return False
        return self.value is other.value or (self._hashable and other._hashable and bool(self.value == other.value))


def call(function: Callable, constants: tuple, denoiser: Denoiser, *arrays: Any) -> Any:
    """`function(*constants, denoiser, *arrays)`, compiled once for each structure and shape of its arguments.

    The arrays that a denoiser holds as a pytree are arguments of the program, so another set of parameters does not
    compile it again. A denoiser that is not a pytree of arrays becomes a constant, and so do the arrays that its
    `predict` closes over.
    """
    leaves, structure = jax.tree.flatten(denoiser)
    try:
        hash(structure)
        argument = all(isinstance(leaf, Array | np.ndarray | np.generic | int | float | complex) for leaf in leaves)
    except TypeError:
        argument = False
    fixed = _Constant(function), tuple(map(_Constant, constants)), None if argument else _Constant(denoiser)
    return _run(*fixed, denoiser if argument else None, *arrays)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    function: _Constant, constants: tuple, fixed: _Constant | None, denoiser: Denoiser | None, *arrays: Any
) -> Any:
    return function.value(*(c.value for c in constants), denoiser if fixed is None else fixed.value, *arrays)
