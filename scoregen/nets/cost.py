"""The cost of a network, in floating-point operations and parameters, by tracing alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

from scoregen.cond import Cond


def operations(function: Callable, *args: Any) -> int:
    """The floating-point operations of the matrix products and convolutions in `function(*args)`.

    A multiplication and an addition count as two. Other operations (norms, softmax, additions) are not counted; in a
    network they are negligible. The window of a convolution counts in full where it extends beyond the edge.

    Args:
        function: the function; it is traced, not run.
        *args: arrays, or their shapes and types (`jax.ShapeDtypeStruct`).

    Raises:
        NotImplementedError: for a `while` loop with such products, whose number of iterations is not known.

    >>> operations(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 5)))  # 2 * 2 * 3 * 5
    60
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def flops(net: nn.Module, shape: tuple[int, ...]) -> int:
    """The operations of a forward pass for one example of this shape, `[H, W, C]` or `[D]`.

    Raises:
        NotImplementedError: as for `operations`.

    >>> from scoregen.nets import MLP
    >>> flops(MLP(width=8, depth=0, embedding=4), (2,)) == 2 * (4 * 2 + 2 * 8 + 8 * 2)  # time, in, out
    True
    """
    x, cond = _example(net, shape)
    return operations(net.apply, _shapes(net, x, cond), x, cond)


def parameters(net: nn.Module, shape: tuple[int, ...]) -> int:
    """The number of parameters of the network for examples of this shape.

    >>> from scoregen.nets import UNet
    >>> parameters(UNet(), (32, 32, 3))
    35746307
    """
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(net, *_example(net, shape))))


def _example(net: nn.Module, shape: tuple[int, ...]) -> tuple[jax.Array, Cond]:
    label = jnp.zeros(1, jnp.int32) if getattr(net, "num_classes", 0) else None
    return jnp.zeros((1, *shape)), Cond(noise=jnp.zeros(1), label=label)


def _shapes(net: nn.Module, x: jax.Array, cond: Cond) -> Any:
    return jax.eval_shape(net.init, jax.random.key(0), x, cond)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        # Each number of the output is a sum over the contracted axes.
        left, ((contracted, _), _) = equation.invars[0].aval.shape, params["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        # Each number of the output is a sum over a window and over the input channels of its group.
        kernel, where = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        return 2 * equation.outvars[0].aval.size * math.prod(kernel) // kernel[where[0]]
    inner = [_count(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == "while" and any(inner):
        raise NotImplementedError(
            "the cost of a while loop is not known in advance: its number of iterations depends on the data"
        )
    if name == "cond":
        return max(inner)
    return sum(inner) * params.get("length", 1) if name == "scan" else sum(inner)
