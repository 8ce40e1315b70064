"""Keys, noise and broadcasting for each example of a batch.

Noise is keyed by example: row i of a batch depends only on the key and on i. The same seed therefore gives the same
example at any batch size.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def example_keys(key: Array, count: int) -> Array:
    """One key for each example, `[B]`; a batch of `count` keys is passed through as it is.

    Key i is `fold_in(key, i)`, so it is the same at any batch size.

    Raises:
        TypeError: for anything but typed keys, such as an integer.
        ValueError: for a batch with a different number of keys.

    >>> few, many = (example_keys(jax.random.key(0), n) for n in (2, 5))
    >>> bool((few == many[:2]).all())
    True
    """
    key = check_key(key)
    if key.shape not in ((), (count,)):
        raise ValueError(f"keys of shape {list(key.shape)} for {count} examples: give one key, or one for each example")
    return key if key.ndim else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))


def check_key(key: Any) -> Array:
    """The key as it is.

    Raises:
        TypeError: unless it is a typed key or a batch of typed keys.

    >>> check_key(0)
    Traceback (most recent call last):
    TypeError: a random key is needed, not int: say jax.random.key(0)
    """
    if not (isinstance(key, Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        if isinstance(key, Array) and key.dtype == jnp.uint32 and key.shape[-1:] == (2,):
            raise TypeError("a typed random key is needed, not one of jax.random.PRNGKey: say jax.random.key(seed)")
        number = f"{key}" if isinstance(key, numbers.Integral) and not isinstance(key, bool) else "0"
        kind = f"an array {key.dtype}{list(key.shape)}" if isinstance(key, Array) else type(key).__name__
        raise TypeError(f"a random key is needed, not {kind}: say jax.random.key({number})")
    return key


def check_seed(seed: Any) -> int:
    """The seed as a Python integer.

    Without 64-bit types `jax.random.key` reads only 32 bits of the seed. A larger seed would repeat the keys of a
    smaller seed: 4294967296 would give the keys of 0.

    Raises:
        TypeError: for anything but an integer.
        ValueError: unless 0 <= seed < 2^32.

    >>> check_seed(7)
    7
    >>> check_seed(4294967296)
    Traceback (most recent call last):
    ValueError: seed=4294967296: an integer from 0 to 4294967295 is needed
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = None
    if number is None or isinstance(seed, bool):
        raise TypeError(f"seed={seed!r}: an integer from 0 to 4294967295 is needed")
    if not 0 <= number < 2**32:
        raise ValueError(f"seed={number}: an integer from 0 to 4294967295 is needed")
    return number


def split_keys(keys: Array, count: int) -> tuple[Array, ...]:
    """`count` independent batches of keys `[B]`, from one batch of keys `[B]`."""
    return tuple(jax.vmap(lambda k: jax.random.split(k, count), out_axes=1)(keys))


def fold_keys(keys: Array, data: Array | int) -> Array:
    """`jax.random.fold_in` for a batch of keys `[B]`: fresh keys for step `data` of a loop."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def by_example(law: Callable, key: Array, shape: tuple[int, ...]) -> Array:
    """`law(key, shape)` with noise keyed by example: row i depends on the key and on i alone.

    `key` is one key or a batch of keys `[B]`; `law` is any `jax.random` sampler of (key, shape). It raises the
    errors of `example_keys`.
    """
    return jax.vmap(lambda k: law(k, shape[1:]))(example_keys(key, shape[0]))


def normal(key: Array, shape: tuple[int, ...], dtype: Any = float) -> Array:
    """Standard normal noise `[B, ...]`, keyed by example (see `by_example`), drawn in the widest type and then cast."""
    return by_example(jax.random.normal, key, shape).astype(dtype)


def widest(*dtypes: Any) -> Any:
    """The widest of these floating-point dtypes. It also works where JAX's implicit promotion of dtypes is off.

    >>> widest(jnp.bfloat16, jnp.float32) == jnp.float32
    True
    """
    return max((jnp.dtype(dtype) for dtype in dtypes), key=lambda dtype: jnp.finfo(dtype).bits)


def broadcast(a: Array, x: Array) -> Array:
    """`a`, `[B]` or a scalar, with added axes of size one, so that it can multiply `x` `[B, ...]`.

    If a and x are both floating-point, the result has the dtype of x, so that products with x keep this dtype.

    >>> broadcast(jnp.ones(2), jnp.ones((2, 3, 4))).shape
    (2, 1, 1)
    """
    a = jnp.asarray(a)
    a = jnp.reshape(a, a.shape + (1,) * (x.ndim - a.ndim))
    floating = jnp.issubdtype(a.dtype, jnp.floating) and jnp.issubdtype(x.dtype, jnp.floating)
    return a.astype(x.dtype) if floating else a
