"""Data parallelism: one mesh over all devices of all processes, with the examples of a batch spread over it.

Parameters are replicated on every device, and XLA sums the gradients. All randomness is keyed by example, so only the
order of sums depends on the number of devices. On one device the functions here change nothing.

With several processes, each process runs the same program and has its own devices. All processes must call every
function here that makes an array, with the same values.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scoregen.errors import UsageError

T = TypeVar("T")


def devices() -> list[Any]:
    """The devices that a batch is spread over: all devices."""
    return jax.devices()


def count() -> int:
    """The number of devices."""
    return len(devices())


def _sharding(*axes: str | None) -> NamedSharding:
    # Not `jax.make_mesh`: its axes are explicit, so networks would have to declare the sharding of all their arrays.
    return NamedSharding(Mesh(np.array(devices()), ("examples",)), PartitionSpec(*axes))


def everywhere() -> NamedSharding | None:
    """The sharding of an array that is replicated on every device; None on one device, the default of `jax.jit`."""
    return _sharding() if count() > 1 else None


def _by_example(axis: int) -> NamedSharding:
    return _sharding(*[None] * axis, "examples")


def spread(x: T, axis: int = 0) -> T:
    """Spread the examples of an array along `axis` over the devices. None stays None.

    The array holds numbers or keys, on the host and the same in every process. Each process moves only its own part.
    """
    if x is None or count() == 1:
        return x
    full: Any = x if _is_key(x) else np.asarray(x)
    return jax.make_array_from_callback(full.shape, _by_example(axis), lambda index: full[index])  # pyright: ignore


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def replicate(tree: T) -> T:
    """Replicate a tree of arrays, the same in every process, on every device."""
    if count() == 1:
        return tree

    def copy(leaf: Any) -> Array:
        full = np.asarray(leaf)
        return jax.make_array_from_callback(full.shape, _sharding(), lambda index: full[index])

    return jax.tree.map(copy, tree)


def abstract(tree: T) -> T:
    """The tree as `jax.ShapeDtypeStruct`, with the sharding of a replicated array."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere()), tree)


def local(tree: T) -> T:
    """The copy of a replicated tree on this process's first device, for work that each process does alone."""
    return tree if count() == 1 else jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def keep_spread(x: Any, axis: int = 0) -> Any:
    """Inside jit: keep the examples of an array along `axis` spread over the devices."""
    return x if x is None or count() == 1 else jax.lax.with_sharding_constraint(x, _by_example(axis))


def keep_whole(tree: T) -> T:
    """Inside jit: keep a tree replicated on every device."""
    return tree if count() == 1 else jax.lax.with_sharding_constraint(tree, _sharding())


def round_up(size: int) -> int:
    """The smallest number of examples, at least `size`, that can be spread evenly over the devices."""
    return -(-size // count()) * count()


# --- several processes


def start(coordinator: str, process: int | None = None, processes: int | None = None) -> None:
    """Join the other processes. Call it before anything uses a device.

    Args:
        coordinator: "auto" if JAX can find the other processes itself (TPU slice, Slurm, Open MPI, Kubernetes), else
            the address HOST:PORT of process 0.
        process: the index of this process, from 0.
        processes: the number of processes. With "auto", give both or neither.

    Raises:
        UsageError: if `coordinator` is neither "auto" nor HOST:PORT, or if the other processes cannot be found.
    """
    if not re.fullmatch(r"auto|.+:\d+", coordinator):
        raise UsageError(f"coordinator={coordinator}: auto or HOST:PORT is needed, such as 10.0.0.2:8476")
    # This service would catch SIGTERM. Here `loudest` makes all processes stop together.
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
    """Wait for the other processes, and disconnect."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def first() -> bool:
    """Whether this is the first process, which prints and writes."""
    return jax.process_index() == 0


def processes() -> int:
    """The number of processes."""
    return jax.process_count()


def _largest(value: int) -> Array:
    """The largest value of all processes, as an array whose computation may still run."""
    mine = np.full(count(), value, np.int32)  # each device of this process takes one element
    numbers = jax.make_array_from_callback(mine.shape, _by_example(0), lambda index: mine[index])
    return _maximum()(numbers)


@functools.cache
def _maximum() -> Callable[[Array], Array]:
    return jax.jit(jnp.max, out_shardings=_sharding())


def all_of(true: bool) -> bool:
    """Whether `true` holds in all processes. Waits for all of them."""
    return true if processes() == 1 else not int(_largest(not true))


def of_first(number: int) -> int:
    """The value of `number` in the first process, 0 <= number < 2^31."""
    return number if processes() == 1 else int(_largest(number if first() else 0))


def in_all(numbers: Iterable[int]) -> Iterator[int]:
    """The numbers, 0 or more, that the first process iterates over, in all processes. The others ignore their own.

    >>> list(in_all([3, 1]))
    [3, 1]
    """
    if processes() == 1:
        yield from numbers
        return
    mine = iter(numbers if first() else ())
    while following := of_first(next(mine, -1) + 1):
        yield following - 1


def check_same(number: int, what: str) -> None:
    """Check that all processes have the same number, 0 or more.

    Raises:
        UsageError: in all processes, if the numbers differ; `what` names them in the message.
    """
    if not all_of(of_first(number) == number):
        raise UsageError(f"the processes see different {what}: all must see the same files")


def loudest() -> Callable[[int], int]:
    """A function that exchanges a number between all processes and returns their largest number.

    All processes must call it at the same places. A call returns the result of the previous call, and 0 at first, so
    that no process waits: the numbers are exchanged while the devices compute. With one process it returns its own
    number at once.

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
