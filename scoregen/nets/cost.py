"""The cost of a network, in floating-point operations, parameters and bytes, by tracing alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

from scoregen.cond import Cond
from scoregen.errors import check_count


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
    """The operations of a forward pass for one example of this shape, such as `[H, W, C]` or `[D]`.

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


def memory(net: nn.Module, shape: tuple[int, ...], batch: int) -> int:
    """About how many bytes a training step needs for a batch of examples of this shape.

        what the backward pass keeps of the forward pass + 5 x parameters

    The first term is the residuals of `jax.vjp` for the parameters, which include nearly all parameters. The other five
    copies are the gradient, the update, the two moments of Adam and the average of the parameters.

    It is 1.0 to 1.4 times what XLA reports for a compiled step on the CPU (`memory_analysis`), for the perceptron,
    U-Nets in one, two and three dimensions, and DiT. It is an estimate: XLA joins operations and then keeps less, and
    an accelerator needs space to work in beside it. With `remat` it is far below the need on the CPU, where XLA undoes
    the recomputation.

    Args:
        net: the network; it is traced with `train=True`, not run.
        shape: the shape of one example, such as `[H, W, C]` or `[D]`.
        batch: the number of examples that a step takes at a time.

    >>> from scoregen.nets import MLP
    >>> net = MLP(width=8)
    >>> one, two, three = (memory(net, (2,), batch) for batch in (1, 2, 3))
    >>> 5 * 4 * parameters(net, (2,)) < one < two, three - two == two - one
    (True, True)
    """
    params = _shapes(net, *_example(net, shape))
    x, cond = jax.eval_shape(lambda: _example(net, shape, check_count("batch", batch)))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def backward(params: Any, x: jax.Array, cond: Cond, key: jax.Array) -> Any:
        forward = functools.partial(net.apply, train=True, rngs={"dropout": key})
        return jax.vjp(lambda params: forward(params, x, cond), params)[1]  # a pytree, whose leaves are the residuals

    kept = jax.eval_shape(backward, params, x, cond, key)
    return _bytes(kept) + 5 * _bytes(params)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _example(net: nn.Module, shape: tuple[int, ...], batch: int = 1) -> tuple[jax.Array, Cond]:
    label = jnp.zeros(batch, jnp.int32) if getattr(net, "num_classes", 0) else None
    context = jnp.zeros((batch, count)) if (count := getattr(net, "context_dim", 0)) else None
    return jnp.zeros((batch, *shape)), Cond(noise=jnp.zeros(batch), label=label, context=context)


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
