"""Perturbation processes: how data turn into noise.

Every process here is defined by its Gaussian kernel alone:

    p(x_t | x_0) = N(x_t ; alpha(t) x_0, sigma(t)^2 I),            lam(t) = log(alpha^2 / sigma^2)

Everything that follows from the kernel is written once, for all processes: the noised example (`perturb`), the exact
law of a less noisy level given a noisier level and the clean data (`posterior`), the stochastic differential equation
(`drift_diffusion`), and the law from which sampling starts (`Process.prior`). `scoregen.times` chooses the times of
training, and `scoregen.samplers.grids` the times of sampling.

Times and units. A larger t is noisier, for every process (papers differ in this). The times of a chain are its levels,
the integers 0 .. N-1.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
from numbers import Real
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from scoregen.errors import check_finite, check_not_negative
from scoregen.random import broadcast, by_example, check_key


class Process(abc.ABC):
    """A perturbation process p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I).

    A process of your own is a class with `alpha`, `sigma`, `logsnr`, `time` and `ends`. Times are arrays `[B]` (or
    scalars) and all methods are elementwise in them, so that they work inside `jax.jit`, `jax.grad` and `jax.vmap`.

    Every process is automatically a pytree, whether its class is a dataclass or not. Its leaves are the attributes that
    hold arrays, alone or in a tuple, dict or other pytree. All other attributes are constants of a compiled program, so
    they must be hashable and must not change. If you register a class with JAX yourself, your registration stays.

    Attributes:
        discrete: whether times are the integers 0 .. N-1 rather than reals.
        data_std: the assumed standard deviation of the data in each dimension. The prior, EDM's preconditioning and
            EDM's weight all read it here, so they always agree.

    Raises:
        TypeError: when JAX flattens the process, if an attribute neither holds arrays nor is hashable.
    """

    discrete: bool = False
    data_std: float = 1.0

    def __new__(cls, *args: Any, **options: Any) -> Self:
        process = super().__new__(cls)
        if cls not in _REGISTERED:
            _REGISTERED.add(cls)
            # Not when the class is made: a decorator, such as JAX's own register_dataclass, runs after that.
            with contextlib.suppress(ValueError):  # already registered by its author
                jax.tree_util.register_pytree_node(cls, _flatten, functools.partial(_unflatten, cls))
        return process

    @property
    @abc.abstractmethod
    def ends(self) -> tuple[float, float]:
        """The least noisy and the noisiest time, (t_min, t_max); for a chain of N levels (0, N - 1)."""

    @abc.abstractmethod
    def alpha(self, t: Array) -> Array:
        """The factor alpha(t) of the data, `[B] -> [B]`."""

    @abc.abstractmethod
    def sigma(self, t: Array) -> Array:
        """The standard deviation sigma(t) of the noise, `[B] -> [B]`."""

    @abc.abstractmethod
    def logsnr(self, t: Array) -> Array:
        """lam(t) = log(alpha(t)^2 / sigma(t)^2), `[B] -> [B]`, falling in t."""

    @abc.abstractmethod
    def time(self, logsnr: Array) -> Array:
        """The inverse of `logsnr`, `[B] -> [B]`, clipped to `ends`."""

    def prior_std(self) -> Array:
        """The standard deviation of the prior, sqrt(sigma^2 + alpha^2 data_std^2) at the noisiest time."""
        t = top(self)
        return jnp.hypot(self.sigma(t), self.alpha(t) * self.data_std)

    def prior(self, key: Array, shape: tuple[int, ...]) -> Array:
        """Draws `[B, ...]` from N(0, prior_std^2), used as the law of x at the noisiest time."""
        std = self.prior_std()
        return std * by_example(jax.random.normal, key, shape).astype(std.dtype)

    def within(self, other: Process) -> Process:
        """This process, limited to the noise levels of `other`, to sample with a network trained under `other`.

        An end that `other` covers (see `covers`) stays as it is. A chain keeps the levels that `other` covers.

        Raises:
            ValueError: if the two processes share no noise levels, or fewer than two levels of a chain.
        """
        ends = self.ends
        with jax.ensure_compile_time_eval():
            if self.discrete:
                inside = np.flatnonzero(covers(other, self.logsnr(jnp.arange(int(ends[1]) + 1))))
                if inside.size < 2:
                    raise ValueError("the two processes share fewer than two noise levels")
                return self.between(int(inside[0]), int(inside[-1]))
            kept = covers(other, self.logsnr(jnp.stack([bottom(self), top(self)])))
            held = [float(self.time(other.logsnr(t))) for t in (bottom(other), top(other))]
        least, most = (end if keep else t for end, keep, t in zip(ends, kept, held, strict=True))
        if not most > least:
            raise ValueError("the two processes share no noise levels")
        return self.between(least, most)

    def between(self, t_min: float, t_max: float) -> Process:
        """This process with other ends: from t_min to t_max.

        Raises:
            ValueError: if the process has no fields t_min and t_max.
        """
        names = {field.name for field in dataclasses.fields(self)} if dataclasses.is_dataclass(self) else set()
        if not {"t_min", "t_max"} <= names:
            raise ValueError(f"{type(self).__name__} has no fields t_min and t_max to be cut by: define `between`")
        return dataclasses.replace(self, t_min=t_min, t_max=t_max)  # pyright: ignore[reportArgumentType]


# The classes registered as pytrees, and the attribute that lists the leaves of an unflattened process.
_REGISTERED: set[type] = set()
_LEAVES = "_leaves"


def _attributes(process: Process) -> dict[str, Any]:
    """All attributes of an instance, with dataclass fields in slots, but without cached properties."""
    found = dict(vars(process))
    if dataclasses.is_dataclass(process):
        slots = (field.name for field in dataclasses.fields(process) if field.name not in found)
        found |= {name: getattr(process, name) for name in slots if hasattr(process, name)}
    cached = (name for name in found if isinstance(getattr(type(process), name, None), functools.cached_property))
    return {name: found[name] for name in sorted(set(found) - set(cached) - {_LEAVES})}


def _holds_arrays(value: Any) -> bool:
    arrays = (Array, np.ndarray, jax.ShapeDtypeStruct)
    return any(isinstance(leaf, arrays) for leaf in jax.tree.leaves(value))


def _flatten(process: Process) -> tuple[list[Any], tuple]:
    """The attributes that hold arrays, and all others, with their names, as constants of a compiled program."""
    attributes = _attributes(process)
    # An unflattened process stores the names of its leaves, since JAX may put placeholders in place of arrays.
    known = vars(process).get(_LEAVES, ())
    names = tuple(name for name, value in attributes.items() if name in known or _holds_arrays(value))
    rest = tuple((name, value) for name, value in attributes.items() if name not in names)
    for name, value in rest:
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"{type(process).__name__}.{name} is a {type(value).__name__}, which cannot be a constant of a "
                "compiled program: make it a tuple or an array"
            ) from None
    return [attributes[name] for name in names], (names, rest)


def _unflatten(cls: type[Process], aux: tuple, leaves: Any) -> Process:
    names, rest = aux
    process = object.__new__(cls)
    for name, value in (*rest, *zip(names, leaves, strict=True), (_LEAVES, names)):
        object.__setattr__(process, name, value)  # a frozen dataclass allows only this
    return process


def has_values(*trees: Any) -> bool:
    """Whether the arrays in these pytrees have values; inside `jit` the arrays of an argument have none."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def check_process(process: Any) -> None:
    """Raises TypeError unless `process` is a `Process`. If it is a class or a function, the message shows a call."""
    if not isinstance(process, Process):
        name = getattr(process, "__name__", None)
        hint = f"{name}: say {name}()" if name else f"{process!r}: say scoregen.process.ddpm(), for example"
        raise TypeError(f"a process is needed, not {hint}")


def top(process: Process) -> Array:
    """The noisiest time, a scalar array in the dtype of times."""
    return _as_time(process, process.ends[1])


def bottom(process: Process) -> Array:
    """The least noisy time, a scalar array in the dtype of times."""
    return _as_time(process, process.ends[0])


def _as_time(process: Process, t: float) -> Array:
    return jnp.asarray(t, jnp.int32) if process.discrete else jnp.asarray(t, jnp.result_type(float))


def vanishes(process: Process) -> bool:
    """Whether alpha = 0 at the noisiest time, as at the end of flow matching, where x is pure noise.

    False for a process that is an argument of `jit`, because its arrays have no values.
    """
    if not has_values(process):
        return False
    with jax.ensure_compile_time_eval():
        return float(process.alpha(top(process))) == 0


def snr_loss_rate(process: Process, t: Array) -> Array:
    """The relative loss rate of the signal-to-noise ratio, `[B] -> [B]`.

    In continuous time it is -d SNR/dt / SNR = -d lam/dt. For a chain it is the loss over the step from level t - 1 to
    t, (SNR_{t-1} - SNR_t) / SNR_t = expm1(lam_{t-1} - lam_t). No step leads to level 0, so level 0 has the rate of
    level 1.
    """
    if process.discrete:
        t = jnp.maximum(t, 1)
        return jnp.expm1(process.logsnr(t - 1) - process.logsnr(t))
    return -jax.jvp(process.logsnr, (t,), (jnp.ones_like(t),))[1]


def known(**options: Any) -> bool:
    """Whether all these options of a process are numbers. Raises TypeError or ValueError unless these are finite.

    An array, or another object, is not known: it may be a placeholder of JAX, which makes such processes by calling the
    class, if its author registered it as a pytree.
    """
    plain = {name: value for name, value in options.items() if value is None or isinstance(value, Real | str)}
    check_finite(**plain)
    return len(plain) == len(options)


def check_data_std(data_std: float) -> None:
    """Raises TypeError for anything but a number, and ValueError unless 0 <= data_std < inf. See also `known`."""
    if known(data_std=data_std):
        check_not_negative(data_std=data_std)


def check_sigmas(sigma_min: float, sigma_max: float) -> None:
    """Raises TypeError for anything but numbers, and ValueError unless 0 < sigma_min < sigma_max < inf.

    See also `known`.
    """
    if known(sigma_min=sigma_min, sigma_max=sigma_max) and not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: 0 < sigma_min < sigma_max is needed")


def covers(process: Process, logsnr: Array) -> np.ndarray:
    """Whether each lam, `[n]`, lies in the range of `process`, as bools `[n]`.

    The ends have a tolerance of 0.02 in lam, which is 1 % in sigma / alpha. For example, the lowest levels of DDPM and
    NCSN have sigma / alpha = 0.010001 and 0.01, and should count as equal.
    """
    with jax.ensure_compile_time_eval():
        low, high = (np.asarray(process.logsnr(t)) for t in (top(process), bottom(process)))
    lam = np.asarray(logsnr)
    return (lam >= low - 0.02) & (lam <= high + 0.02)


def as_data(x: Any, name: str, axes: int = 1) -> Array:
    """x as an array `[B, ...]` with at least `axes` axes. Raises TypeError, with `name`, unless x is floating-point."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < axes:
        raise TypeError(f"{name} is {x.dtype}{list(x.shape)}: real data [B, ...] are needed, such as x / 127.5 - 1")
    return x


def check_times(process: Process, t: Array) -> None:
    """Raises ValueError for a time outside `process.ends`, also for NaN. Times without values, in `jit`, pass."""
    if not t.size or not has_values(t, process.ends):
        return
    times = np.asarray(t)  # in NumPy, since under `jit` even a JAX operation on a constant has no value
    low, high, least, most = (float(value) for value in (*process.ends, times.min(), times.max()))
    # Rounding may move a time at an end slightly outside.
    rounding = float(jnp.finfo(t.dtype).eps) if jnp.issubdtype(t.dtype, jnp.floating) else 0
    slack = max(rounding, 1e-6) * (abs(high) + abs(low)) if rounding else 0
    if not (least >= low - slack and most <= high + slack):
        raise ValueError(f"t from {least:g} to {most:g}: the times of this process are from {low:g} to {high:g}")


class Noised(NamedTuple):
    """A noised batch: x = alpha(t) x0 + sigma(t) eps. All are `[B, ...]`, except t, which is `[B]`."""

    x0: Array
    eps: Array
    x: Array
    t: Array


def perturb(process: Process, key: Array, x0: Array, t: Array) -> Noised:
    """Noise each example to its own level: x = alpha(t) x0 + sigma(t) eps, eps ~ N(0, I).

    Args:
        process: the process.
        key: one key, or one for each example `[B]`.
        x0: clean data `[B, ...]`.
        t: their times `[B]`, within `process.ends`; the levels of a chain are integers.

    Raises:
        TypeError: if `process` is not a process, if `key` is not a random key, if x0 is not an array of floating-point
            numbers, or if a chain is given real times.
        ValueError: unless there is one time for each example, within `process.ends`, and one key or one for each.

    >>> from scoregen.process import ncsn
    >>> x0 = jnp.ones((2, 3))
    >>> noised = perturb(ncsn(), jax.random.key(0), x0, jnp.array([0, 9]))
    >>> bool(jnp.allclose(noised.x - x0, jnp.array([[0.01], [1.0]]) * noised.eps, atol=1e-6))
    True
    """
    check_process(process)
    check_key(key)
    x0, t = as_data(x0, "x0"), jnp.asarray(t)
    if process.discrete and not jnp.issubdtype(t.dtype, jnp.integer):
        raise TypeError(
            f"t is {t.dtype}, and the times of a chain are its levels, integers from 0 to {process.ends[1]}: say "
            f"t=jnp.round(fraction * {process.ends[1]}).astype(int), or take a process in continuous time, such as VP()"
        )
    if t.shape != x0.shape[:1]:
        one = "t" if t.ndim == 0 else "one"
        example = f"jnp.full({len(x0)}, {one})"
        raise ValueError(f"t of shape {list(t.shape)} for {len(x0)} examples: give a time for each, such as {example}")
    if not process.discrete and not jnp.issubdtype(t.dtype, jnp.floating):
        t = t.astype(jnp.result_type(float))
    check_times(process, t)
    eps = by_example(jax.random.normal, key, x0.shape).astype(x0.dtype)
    return Noised(x0, eps, broadcast(process.alpha(t), x0) * x0 + broadcast(process.sigma(t), x0) * eps, t)


def posterior(process: Process, x: Array, x0: Array, t: Array, s: Array) -> tuple[Array, Array]:
    """The exact law of x_s given x_t and x_0, where s is less noisy than t: N(mean, std^2 I).

    With w = -expm1(lam_t - lam_s), the share of the variance sigma_s^2 that x_t does not determine,

        mean = (alpha_t / alpha_s) (sigma_s / sigma_t)^2 x_t + alpha_s w x_0,      std = sigma_s sqrt(w).

    Between neighbouring levels of the chain of Ho et al. 2020 these are their eqs. 6-7; for NCSN's levels this is the
    ancestral step of Song et al. 2021 (appendix F). The formula holds between any two levels, so a chain can be sampled
    in fewer steps. The textbook form subtracts two nearly equal variances and loses digits; expm1 keeps all digits of
    lam (Kingma et al. 2021, appendix A).

    Args:
        process: the process.
        x: x_t, `[B, ...]`.
        x0: the clean data or an estimate of them, `[B, ...]`.
        t, s: times `[B]`.

    Returns:
        The mean `[B, ...]` and the standard deviation `[B]`, both in the dtype of x.

    >>> from scoregen.process import ddpm
    >>> chain, one = ddpm(), jnp.ones((1, 1))
    >>> mean, std = posterior(chain, one, one, jnp.array([1]), jnp.array([0]))
    >>> float(mean[0, 0]), float(std[0] ** 2)  # beta-tilde of the second step
    (0.999..., 5.4...e-05)
    """
    lam_t, lam_s = process.logsnr(t), process.logsnr(s)
    w = -jnp.expm1(lam_t - lam_s)
    # (alpha_s / alpha_t) (1 - w), but finite where alpha_t = 0, as at the end of flow matching.
    on_x = process.alpha(t) / process.alpha(s) * (process.sigma(s) / process.sigma(t)) ** 2
    mean = broadcast(on_x, x) * x + broadcast(process.alpha(s) * w, x) * x0
    return mean, (process.sigma(s) * jnp.sqrt(w)).astype(x.dtype)


def drift_diffusion(process: Process, t: Array) -> tuple[Array, Array]:
    """The stochastic differential equation with this kernel, dx = f x dt + g dw (Song et al. 2021, eq. 5).

        f = d log alpha / dt,      g^2 = 2 sigma (sigma' - f sigma) = -sigma^2 dlam/dt

    so alpha and sigma determine the equation (Kingma et al. 2021, appendix B). Where alpha = 0, f is infinite. For a
    chain, give a real t: the equation runs through its interpolated levels, and the unit of time is one level.

    Args:
        process: the process.
        t: real times `[B]`.

    Returns:
        f and g, both `[B]`.

    Raises:
        TypeError: if the times are integers.

    >>> from scoregen.process import VP
    >>> f, g = drift_diffusion(VP(), jnp.array([0.5]))
    >>> float(f[0]), float(g[0] ** 2)  # -beta / 2 and beta, where beta(0.5) = 10.05
    (-5.025, 10.05)
    """
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.floating):
        raise TypeError(f"t is {t.dtype}: the equation is in real times, say t.astype(float)")
    alpha, slope = jax.jvp(process.alpha, (t,), (jnp.ones_like(t),))
    _, lam_slope = jax.jvp(process.logsnr, (t,), (jnp.ones_like(t),))
    return slope / alpha, process.sigma(t) * jnp.sqrt(-lam_slope)
