"""Errors that a user can fix, and reasons why parts cannot be combined."""

from __future__ import annotations

import dataclasses
import inspect
import math
import operator
import os
from collections.abc import Callable
from numbers import Real
from pathlib import Path
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


def check_counts(name: str, values: Any, least: int = 1, *, empty: bool = False) -> None:
    """Raises TypeError or ValueError unless the value is a tuple or list of integers of at least this size.

    >>> check_counts("multipliers", (1, 0))
    Traceback (most recent call last):
    ValueError: multipliers=(1, 0): at least 1 is needed
    """
    if not isinstance(values, tuple | list):
        example = f", such as ({values},)" if type(values) is int else ""
        raise TypeError(f"{name}={what_it_is(values)}: a tuple of integers is needed{example}")
    if not (values or empty):
        raise ValueError(f"{name}={values}: one or more integers are needed")
    for value in values:
        try:
            check_count(name, value, least)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}={values}: {str(error).rpartition(': ')[2]}") from None


def check_fields(part: Any, **least: int) -> None:
    """Raises TypeError or ValueError unless these fields are integers of at least this size.

    A field whose default is a tuple holds one or more of them.

    >>> from scoregen.nets import MLP
    >>> check_fields(MLP(width=0), width=1, depth=0)
    Traceback (most recent call last):
    ValueError: width=0: at least 1 is needed
    """
    for name, smallest in least.items():
        check = check_counts if isinstance(getattr(type(part), name, None), tuple) else check_count
        check(name, getattr(part, name), smallest)


def check_numbers(fits: Callable[[Any], bool], needed: str, **options: Any) -> None:
    """Raises TypeError for an option that is not a real number, and ValueError unless `fits(value)`.

    An array without axes counts as a number. If it has no value, as inside `jit`, it is accepted.

    >>> check_numbers(lambda value: value < 1, "less than 1", share=2.0)
    Traceback (most recent call last):
    ValueError: share=2.0: less than 1 is needed
    """
    for name, value in options.items():
        number = value
        if getattr(value, "shape", None) == ():
            try:
                number = value.item()
            except NotImplementedError:  # a random key
                pass
            except (TypeError, AttributeError):  # a traced array, or only a shape
                continue
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TypeError(f"{name}={what_it_is(value)}: a number is needed")
        if not fits(number):
            raise ValueError(f"{name}={value}: {needed} is needed")


def check_finite(**options: Any) -> None:
    """Raises TypeError, with the option's name, for anything but a number, and ValueError for NaN and infinity.

    >>> check_finite(mean=math.nan)
    Traceback (most recent call last):
    ValueError: mean=nan: a finite number is needed
    """
    check_numbers(math.isfinite, "a finite number", **options)


def check_positive(**options: Any) -> None:
    """Raises TypeError, with the option's name, for anything but a number, and ValueError unless 0 < value < inf.

    >>> check_positive(rtol=1e-4, atol=0.0)
    Traceback (most recent call last):
    ValueError: atol=0.0: a positive finite number is needed
    """
    check_numbers(lambda value: 0 < value < math.inf, "a positive finite number", **options)


def check_not_negative(**options: Any) -> None:
    """Raises TypeError, with the option's name, for anything but a number, and ValueError unless 0 <= value < inf.

    >>> check_not_negative(weight_decay=-0.1)
    Traceback (most recent call last):
    ValueError: weight_decay=-0.1: 0 or a positive finite number is needed
    """
    check_numbers(lambda value: 0 <= value < math.inf, "0 or a positive finite number", **options)


def check_fraction(**options: Any) -> None:
    """Raises TypeError, with the option's name, for anything but a number, and ValueError unless 0 <= value < 1.

    >>> check_fraction(dropout=1.0)
    Traceback (most recent call last):
    ValueError: dropout=1.0: a number from 0 to below 1 is needed
    """
    check_numbers(lambda value: 0 <= value < 1, "a number from 0 to below 1", **options)


def check_path(name: str, value: Any, example: str) -> Path:
    """The value as a path, with `~` for the home folder. Raises TypeError for anything but a string or a path.

    >>> check_path("workdir", None, "runs/mine")
    Traceback (most recent call last):
    TypeError: workdir=None: a path is needed, such as 'runs/mine'
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}={what_it_is(value)}: a path is needed, such as {example!r}")
    return Path(value).expanduser()


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
