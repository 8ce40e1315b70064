"""Data parallelism: one mesh over all devices of all processes, with the examples of a batch spread over it.

Parameters are replicated on every device, and XLA sums the gradients. All randomness is keyed by example, so only the
order of sums depends on the number of devices. On one device the functions here change nothing.

With several processes, each runs the same program and sees its own devices. Every function here that makes an array
must be called by all of them, with the same values.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scoregen.errors import UsageError

T = TypeVar("T")


def devices() -> list[Any]:
    """The devices that a batch is spread over: all there are."""
    return jax.devices()


def count() -> int:
    """How many devices there are."""
    return len(devices())


def _sharding(*axes: str | None) -> NamedSharding:
    # Not `jax.make_mesh`, whose axes are explicit: networks would have to say the sharding of all that they make.
    return NamedSharding(Mesh(np.array(devices()), ("examples",)), PartitionSpec(*axes))


def everywhere() -> NamedSharding | None:
    """The sharding of an array that every device holds whole; None on one device, the default of `jax.jit`."""
    return _sharding() if count() > 1 else None


def _by_example(axis: int) -> NamedSharding:
    return _sharding(*[None] * axis, "examples")


def spread(x: T, axis: int = 0) -> T:
    """An array of numbers or keys, on the host and the same in every process, with its examples along `axis` spread.

    None stays None. Of the array each process moves its own part alone.
    """
    if x is None or count() == 1:
        return x
    full: Any = x if _is_key(x) else np.asarray(x)
    return jax.make_array_from_callback(full.shape, _by_example(axis), lambda index: full[index])  # pyright: ignore


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def replicate(tree: T) -> T:
    """A tree of arrays, the same in every process, with all of it on every device."""
    if count() == 1:
        return tree

    def copy(leaf: Any) -> Array:
        full = np.asarray(leaf)
        return jax.make_array_from_callback(full.shape, _sharding(), lambda index: full[index])

    return jax.tree.map(copy, tree)


def abstract(tree: T) -> T:
    """A tree of `jax.ShapeDtypeStruct`, with the sharding that puts all of it on every device."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere()), tree)


def local(tree: T) -> T:
    """A tree that is on every device, as it is on this process's first one: for work that each process does alone."""
    return tree if count() == 1 else jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def keep_spread(x: Any, axis: int = 0) -> Any:
    """Inside jit: the same array, with its examples along `axis` spread."""
    return x if x is None or count() == 1 else jax.lax.with_sharding_constraint(x, _by_example(axis))


def keep_whole(tree: T) -> T:
    """Inside jit: the same tree, with all of it on every device."""
    return tree if count() == 1 else jax.lax.with_sharding_constraint(tree, _sharding())


def round_up(size: int) -> int:
    """The least number of examples, `size` or more, that can be spread evenly."""
    return -(-size // count()) * count()


# --- several processes


def start(coordinator: str, process: int | None = None, processes: int | None = None) -> None:
    """Join the other processes; before anything else asks JAX for a device.

    Args:
        coordinator: "auto", where JAX finds the others by itself: a TPU slice, Slurm, Open MPI, Kubernetes; else the
            address HOST:PORT of process 0.
        process: the number of this one, from 0; and how many `processes` there are. Both or none, with "auto".

    Raises:
        UsageError: if the others cannot be found.
    """
    if not re.fullmatch(r"auto|.+:\d+", coordinator):
        raise UsageError(f"coordinator={coordinator}: auto or HOST:PORT is needed, such as 10.0.0.2:8476")
    # It would take SIGTERM for itself; that all stop together is the business of `loudest`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(None if coordinator == "auto" else coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().rstrip(".").partition("\n")[0]
        raise UsageError(
            f"coordinator={coordinator}: {reason}: say coordinator=HOST:PORT, the address of process 0, with process=I "
            "and processes=N on each host"
        ) from None


def finish() -> None:
    """Wait for the other processes, and part with them."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def first() -> bool:
    """Whether this is the process that speaks and writes."""
    return jax.process_index() == 0


def processes() -> int:
    """How many there are."""
    return jax.process_count()


def _largest(value: int) -> Array:
    """The largest value of all processes, as an array that is still being computed."""
    mine = np.full(count(), value, np.int32)  # the devices of this process take their part of it
    numbers = jax.make_array_from_callback(mine.shape, _by_example(0), lambda index: mine[index])
    return _maximum()(numbers)


@functools.cache
def _maximum() -> Callable[[Array], Array]:
    return jax.jit(jnp.max, out_shardings=_sharding())


def all_of(true: bool) -> bool:
    """Whether it is true in all processes. Waits for all of them."""
    return true if processes() == 1 else not int(_largest(not true))


def of_first(number: int) -> int:
    """The number that the first process gives, 0 <= number < 2^31."""
    return number if processes() == 1 else int(_largest(number if first() else 0))


def check_same(number: int, what: str) -> None:
    """Check that all processes have the same number, 0 or more.

    Raises:
        UsageError: in all of them, if one has another; `what` names it in the message.
    """
    if not all_of(of_first(number) == number):
        raise UsageError(f"the processes see different {what}: all must see the same files")


def loudest() -> Callable[[int], int]:
    """A function of a number, called by all processes at the same places, that returns the largest of their numbers.

    The result is that of the call before, and 0 at the first call, so that no process waits: the numbers are exchanged
    while the devices are at work. With one process it is the number itself, at once.

    >>> loudest()(15)
    15
    """
    if processes() == 1:
        return lambda number: number
    answers: list[Array] = []

    def exchange(number: int) -> int:
        answers.append(_largest(number))
        return int(answers.pop(0)) if len(answers) > 1 else 0

    return exchange
