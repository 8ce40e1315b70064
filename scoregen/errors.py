"""Errors that a user can fix, and reasons why parts cannot be combined."""

from __future__ import annotations

import dataclasses
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any


class UsageError(Exception):
    """Something that a user can fix. Each argument is one line that says what is wrong and what to do.

    >>> print(UsageError("steps=0: at least 1 is needed", "batch=0: at least 1 is needed"))
    steps=0: at least 1 is needed; batch=0: at least 1 is needed
    """

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why parts cannot be combined, and which settings would work.

    Attributes:
        reason: one sentence without a full stop, in the words of the field.
        fixes: settings that would be accepted, each "part=value" or "part.option=value", such as "target=v" or
            "process.t_max=0.999". A command line turns them into its own options.

    >>> print(Refusal("the velocity is a derivative in time, and a chain has none", ("target=v", "process=vp")))
    the velocity is a derivative in time, and a chain has none: take target=v or process=vp
    """

    reason: str
    fixes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.reason}: take {' or '.join(self.fixes)}" if self.fixes else self.reason


class Problems:
    """Collects the errors of several checks, to raise them all at once.

    >>> problems = Problems()
    >>> _ = problems.attempt(check_count, "steps", 0), problems.attempt(check_count, "batch", 1.5)
    >>> problems.check()
    Traceback (most recent call last):
    ValueError: 2 things are wrong:
    - steps=0: at least 1 is needed
    - batch=1.5: an integer is needed
    """

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def attempt(self, check: Callable[..., Any], *args: Any) -> Any:
        """The result of `check(*args)`. A TypeError, a ValueError or a UsageError is stored, and the result is None."""
        try:
            return check(*args)
        except (TypeError, ValueError, UsageError) as error:
            self.errors.append(error)
            return None

    def check(self) -> None:
        """Raises a single error as it is, and several errors as one ValueError with a line for each."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise ValueError("\n- ".join([f"{len(self.errors)} things are wrong:", *map(str, self.errors)]))


MOST = 2**31 - 1  # the largest count: without 64-bit types, JAX counts in int32


def check_count(name: str, value: Any, least: int = 1) -> int:
    """The value as an int.

    Raises:
        TypeError: for anything but an integer.
        ValueError: unless least <= value < 2^31.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: an integer is needed")
    if number < least:
        raise ValueError(f"{name}={number}: at least {least} is needed")
    if number > MOST:
        raise ValueError(f"{name}={number}: at most {MOST} is needed")
    return number


def check_fields(part: Any, **least: int) -> None:
    """Raises TypeError or ValueError unless these fields are integers, or tuples of integers, of at least this size.

    >>> from scoregen.nets import MLP
    >>> check_fields(MLP(width=0), width=1, depth=0)
    Traceback (most recent call last):
    ValueError: width=0: at least 1 is needed
    """
    for name, smallest in least.items():
        value = getattr(part, name)
        numbers = value if isinstance(value, tuple | list) else (value,)
        for number in numbers:
            check_count(name, number, smallest)
        if not numbers:
            raise ValueError(f"{name}={value}: one or more numbers are needed")


def check_positive(**options: float) -> None:
    """Raises ValueError, with the option's name, for a value that is not positive or not finite.

    >>> check_positive(rtol=1e-4, atol=0.0)
    Traceback (most recent call last):
    ValueError: atol=0.0: a positive number is needed
    """
    for name, value in options.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: a positive number is needed")


def what_it_is(value: Any) -> str:
    """How a message names a value of the wrong kind: "the class MLP", "the function adam", or its repr.

    >>> what_it_is(Problems), what_it_is("adam")
    ('the class Problems', "'adam'")
    """
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"the {'class' if inspect.isclass(value) else 'function'} {value.__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) < 80 else f"{text[:76]} ..."


def check_kind(name: str, value: Any, kind: type, example: str) -> None:
    """Raises TypeError unless `value` is a `kind`, with an example of one.

    >>> check_kind("process", "vp", Problems, "sg.VP()")
    Traceback (most recent call last):
    TypeError: process='vp': a Problems is needed, such as sg.VP()
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name}={what_it_is(value)}: a {kind.__name__} is needed, such as {example}")
