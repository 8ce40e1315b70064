"""What a network costs: floating-point operations and parameters, without computing anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params


def operations(function: Callable, *args: Any) -> int:
    """The floating-point operations of the products of matrices and the convolutions in `function(*args)`.

    A multiplication and an addition are two. Nothing else is counted, which in a network is next to nothing: no norm,
    softmax, or addition. A convolution's window is counted whole where it stands out over the edge.

    Args:
        function: to be traced, not computed.
        *args: arrays, or their shapes and types (`jax.ShapeDtypeStruct`).

    Raises:
        NotImplementedError: for a loop that ends when it will (`while`), so that nobody knows its cost.

    >>> operations(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 5)))  # 2 * 2 * 3 * 5
    60
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def flops(net: nn.Module, shape: tuple[int, ...], **call: Any) -> int:
    """The operations of a forward pass for one example of this shape `[H, W, C]` or `[D]`; `call` as in `net.apply`.

    >>> from scoregen.nets import MLP
    >>> flops(MLP(width=8, depth=0, embedding=4), (2,)) == 2 * (4 * 2 + 2 * 8 + 8 * 2)  # time, in, out
    True
    """
    x, c = _example(shape)
    params = jax.eval_shape(lambda key: net.init(key, x, c, **call), jax.random.key(0))
    return operations(lambda params, x, c: net.apply(params, x, c, **call), params, x, c)


def parameters(net: nn.Module, shape: tuple[int, ...], **call: Any) -> int:
    """How many parameters the network has for examples of this shape; `call` as in `net.apply`.

    >>> from scoregen.nets import UNet
    >>> parameters(UNet(), (32, 32, 3))
    35746307
    """
    x, c = _example(shape)
    params = jax.eval_shape(lambda key: net.init(key, x, c, **call), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _example(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((1, *shape)), jnp.zeros(1)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        # Each number of the output is a sum over the contracted axes.
        left, ((contracted, _), _) = equation.invars[0].aval.shape, params["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        # Each number of the output is a sum over a window and, of the input's channels, those of its group.
        kernel, where = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        return 2 * equation.outvars[0].aval.size * math.prod(kernel) // kernel[where[0]]
    inner = [_count(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == "while" and any(inner):
        raise NotImplementedError("a loop that ends when it will has no cost that could be told beforehand")
    if name == "cond":
        return max(inner)
    return sum(inner) * params.get("length", 1) if name == "scan" else sum(inner)
