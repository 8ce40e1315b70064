"""`Model`: a network with its training process, and the denoiser that they define."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from jax import Array
from jax.tree_util import Partial

from scoregen.cond import Cond
from scoregen.denoiser import (
    CONDITIONS,
    TARGETS,
    Condition,
    Denoiser,
    Prediction,
    Target,
    as_energy,
    input_scale,
    named,
    refuse_condition,
    refuse_target,
    solve,
)
from scoregen.errors import Refusal, check_kind
from scoregen.process import Process, vanishes
from scoregen.random import broadcast, check_key

if TYPE_CHECKING:
    import flax.linen as nn


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A network, the process that it is trained under, and the meaning of its input and output.

    A model holds no parameters: `init` makes them, and `denoiser` takes them. Compare two models with `is`.

    Attributes:
        process: the process that noises the data.
        net: any Flax Linen module that is called as `net(x, cond, train=False)`, with x `[B, ..., C]` and a `Cond`, and
            returns `[B, ..., C]`. Three optional fields declare further inputs: `num_classes` (labels, 0 for none),
            `context_dim` (numbers of a context vector, 0 for none) and `augment_dim` (numbers that describe an
            augmentation, 0 for none). A missing field means 0.
        target: the meaning of the output: a name in `TARGETS`, or a function (process, t) -> (a, b).
        condition: the value of `cond.noise`: a name in `CONDITIONS`, or a function (process, t) -> `[B]`.
        learned_variance: the network also gives the variance of a step of a chain, in twice as many channels (Nichol &
            Dhariwal 2021). If the network has a field `out_channels` that is None, it is set to this number.
        energy: the score is minus the gradient of the energy ||eps||^2 / 2 (see `as_energy`).
        log_variance: the loss at each noise level is divided by a learned variance (see `uncertainty_weight`).
        unit_input: x is multiplied by `input_scale`, so that its variance is 1 (Karras et al. 2022, c_in).
        centered: for data in [0, 1]: the network sees 2 x - alpha, the noised 2 x_0 - 1.

    Raises:
        TypeError: if `process` is not a process, if the network cannot be called in this way, or if the target or the
            condition is neither a name nor a function.
        ValueError: for an unknown target or condition. `refuse` lists the parts that cannot be combined.

    >>> from scoregen.nets import MLP
    >>> from scoregen.process import ddpm
    >>> model = Model(ddpm(), MLP(width=8), target="eps")
    >>> params = model.init(jax.random.key(0), (1, 2))
    >>> denoiser = model.denoiser(params)
    >>> denoiser(jnp.ones((5, 2)), 10).x0.shape
    (5, 2)
    """

    process: Process
    net: nn.Module
    target: str | Target = "eps"
    condition: str | Condition = "logsnr"
    _: dataclasses.KW_ONLY
    learned_variance: bool = False
    energy: bool = False
    log_variance: bool = False
    unit_input: bool = False
    centered: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.net, Process) and not isinstance(self.process, Process):
            raise TypeError("the network stands in the place of the process: say Model(process, net)")
        check_kind("process", self.process, Process, "sg.ddpm() or sg.VP()")
        check_net(self.net)
        named(TARGETS, "target", self.target)
        named(CONDITIONS, "condition", self.condition)

    @property
    def num_classes(self) -> int:
        """The number of classes that the network is conditioned on; 0 for none."""
        return getattr(self.net, "num_classes", 0)

    @property
    def context_dim(self) -> int:
        """The numbers of the context vector that the network is conditioned on; 0 for none."""
        return getattr(self.net, "context_dim", 0)

    @property
    def augment_dim(self) -> int:
        """The number of inputs that describe an augmentation to the network; 0 for none."""
        return getattr(self.net, "augment_dim", 0)

    def init(self, key: Array, shape: tuple[int, ...], cond: Cond | None = None) -> dict[str, Any]:
        """New parameters, {"net": ...} and, with `log_variance`, {"log_variance": ...}.

        Args:
            key: one typed random key.
            shape: the shape of a batch of data, `(B, ...)`; the parameters do not depend on B.
            cond: inputs of your own network beside noise, label, context and augmentation; only their shapes matter.

        Raises:
            TypeError: if `key` is not a random key.
            ValueError: if `shape` is not `(B, ...)`, or if the network has variables that are not parameters, such as a
                running mean.
        """
        if not isinstance(shape, tuple | list) or len(shape) < 2:
            raise ValueError(f"shape={shape}: the shape of a batch is needed, such as (1, 2) for points in the plane")
        # One example is enough. It is always float32, as parameters are.
        x, c = jnp.zeros((1, *shape[1:]), jnp.float32), jnp.zeros(1, jnp.float32)
        one: Cond = jax.tree.map(lambda a: a[:1], cond or Cond())
        variables = self._net(x).init(check_key(key), x, self._conditioning(one, c, 1))
        if others := sorted(set(variables) - {"params"}):
            raise ValueError(
                f"{type(self.net).__name__} has variables that training would not update ({', '.join(others)}): use "
                "layers without them, such as GroupNorm instead of BatchNorm"
            )
        params = {"net": variables}
        if self.log_variance:
            from scoregen.nets import LogVariance

            params["log_variance"] = LogVariance().init(jax.random.fold_in(key, 1), c)
        return params

    def denoiser(self, params: Any, cond: Cond | None = None, train_key: Array | None = None) -> Denoiser:
        """The denoiser with these parameters. It is a pytree with `params` and `cond` as leaves.

        Args:
            params: parameters as from `init`; for sampling, the average of a trained state, `state.ema`.
            cond: label, context and augment of the examples in the later calls; `cond.noise` is set here. Without a
                label, a network with classes gets "no class", and without a context, one with a context "no context".
            train_key: a random key for dropout in training; with None the network is called with train=False.

        Raises:
            TypeError: for anything but parameters; when the denoiser is called, if the network does not return an
                array.
            ValueError: when the denoiser is called, if the parameters were made for another shape of x, or the
                network's output has the wrong shape.
        """
        if not isinstance(params, Mapping) or "net" not in params:
            hint = "say model.denoiser(state.ema)" if hasattr(params, "ema") else "parameters from `init` are needed"
            raise TypeError(f"params is a {type(params).__name__}: {hint}")
        denoiser = Denoiser(self.process, Partial(self._predict, params, cond or Cond(), train_key))
        return as_energy(denoiser) if self.energy else denoiser

    def _predict(self, params: Any, cond: Cond, train_key: Array | None, x: Array, t: Array) -> Prediction:
        process, seen = self.process, x
        scale = input_scale(process, t) if self.unit_input else None
        if self.centered:
            seen = 2 * x - broadcast(process.alpha(t), x)  # 2 x_0 - 1, noised
            scale = None if scale is None else 0.5 * scale
        if scale is not None:
            seen = broadcast(scale, x) * seen
        noise = named(CONDITIONS, "condition", self.condition)(process, t)
        given = self._conditioning(cond, noise.astype(jnp.promote_types(x.dtype, jnp.float32)), len(x))
        rngs = {} if train_key is None else {"dropout": train_key}
        try:
            output: Any = self._net(x).apply(params["net"], seen, given, train=train_key is not None, rngs=rngs)
        except ScopeParamShapeError as error:
            shape, reason = list(x.shape), str(error).partition(" (https:")[0]
            raise ValueError(
                f"the parameters do not fit x of shape {shape}; were they made for data of another shape? {reason}"
            ) from error
        if not hasattr(output, "shape"):
            raise TypeError(f"the network gives a {type(output).__name__}: one array [B, ...] is needed")
        return solve(process, named(TARGETS, "target", self.target), output, x, t, self.learned_variance)

    def _net(self, x: Array) -> Any:
        """The network with the number of output channels that the model needs."""
        if self.learned_variance and getattr(self.net, "out_channels", 0) is None:
            return self.net.clone(out_channels=2 * x.shape[-1])
        return self.net

    def _conditioning(self, cond: Cond, noise: Array, count: int) -> Cond:
        if self.num_classes and cond.label is None:
            cond = cond._replace(label=jnp.full(count, self.num_classes, jnp.int32))
        if self.context_dim and cond.context is None:
            cond = cond._replace(context=jnp.full((count, self.context_dim), jnp.nan, jnp.float32))
        if self.augment_dim and cond.augment is None:
            cond = cond._replace(augment=jnp.zeros((count, self.augment_dim), jnp.float32))
        return cond._replace(noise=noise)

    def uncertainty_weight(self, params: Any, losses: Array, t: Array) -> Array:
        """The losses `[B]` at t `[B]`; with `log_variance` L / e^u + u, u(t) learned (see `nets.LogVariance`)."""
        if not self.log_variance:
            return losses
        from scoregen.nets import LogVariance

        c = CONDITIONS["logsnr"](self.process, t).astype(losses.dtype)
        u: Any = LogVariance().apply(params["log_variance"], c)
        u = u.astype(losses.dtype)
        return losses * jnp.exp(-u) + u

    def refuse(self) -> list[Refusal]:
        """All reasons why these parts cannot be combined; an empty list if they can.

        >>> from scoregen.nets import MLP
        >>> from scoregen.process import Flow
        >>> for refusal in Model(Flow(), MLP(), target="eps").refuse():
        ...     print(refusal)
        at its noisiest level this process has alpha = 0, ...
        """
        return [refusal for refusal in self._refusals() if refusal is not None]

    def _refusals(self) -> list[Refusal | None]:
        process, net = self.process, type(self.net).__name__
        found = [refuse_target(process, self.target), refuse_condition(process, self.condition)]
        if self.energy and self.learned_variance:
            fixes = ("model.learned_variance=false", "model.energy=false")
            found.append(Refusal("an energy network cannot also learn the variance of a step", fixes))
        if self.energy and vanishes(process):
            reason = "at its noisiest level this process has alpha = 0, where the gradient of an energy gives no x0"
            found.append(Refusal(reason, ("model.energy=false", "process.t_max=0.999")))
        if self.unit_input and process.data_std == 0:
            reason = (
                "x can be scaled to unit variance only where the standard deviation of the data is known, and it is 0"
            )
            found.append(Refusal(reason, ("process.data_std=0.5", "model.unit_input=false")))
        # A user's own network may use these field names for something else, so unknown values are ignored.
        needed = getattr(self.net, "condition", self.condition)
        if isinstance(needed, str) and needed != self.condition and needed in CONDITIONS:
            reason = f"the network {net} takes the noise level in one form only"
            found.append(Refusal(reason, (f"model.condition={needed}",)))
        needed = getattr(self.net, "target", self.target)
        if isinstance(needed, str) and needed != self.target and needed in TARGETS:
            reason = f"the network {net} is divided by sigma, so that it gives the score"
            found.append(Refusal(reason, (f"target={needed}", "net=unet")))
        if getattr(self.net, "needs_levels", False):
            found.append(self._refuse_levels(net))
        return found

    def _refuse_levels(self, net: str) -> Refusal | None:
        if not self.process.discrete:
            reason = f"the network {net} has parameters for each level of a chain, and this process has no levels"
            return Refusal(reason, ("net=unet", "process=ncsn"))
        levels, own = int(self.process.ends[1]) + 1, getattr(self.net, "levels", None)
        if own not in (None, levels):
            reason = f"the network {net} has parameters for {own} levels, and this chain has {levels}"
            return Refusal(reason, (f"net.levels={levels}",))
        return None


def check_net(net: Any) -> None:
    """Raises TypeError unless `net` is a Linen module that can be called as net(x, cond, train=False)."""
    if not (hasattr(net, "init") and hasattr(net, "apply")) or inspect.isclass(net):
        hint = f": say {net.__name__}()" if inspect.isclass(net) else ""
        raise TypeError(f"net: a Flax Linen module is needed, with init and apply, not {net!r}{hint}")
    call = getattr(net, "__call__", None)  # noqa: B004 - its signature is wanted
    signature = inspect.signature(call) if call else None
    try:
        if signature is not None:
            signature.bind(None, None, train=False)
    except TypeError:
        raise TypeError(
            f"{type(net).__name__}.__call__{signature}: a network is called as net(x, cond, train=False), with "
            "cond.noise [B]: declare all of these arguments, also unused ones"
        ) from None
