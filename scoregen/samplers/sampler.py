"""The driver of every sampler: from the noisiest level down to the data, in one `lax.scan`."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from scoregen.denoiser import Denoiser, Prediction, check_denoiser
from scoregen.errors import Refusal, check_count
from scoregen.process import Process
from scoregen.process.kernel import check_times, has_values
from scoregen.random import broadcast, check_key, example_keys, fold_keys, split_keys
from scoregen.samplers.compiled import call
from scoregen.samplers.correctors import Corrector
from scoregen.samplers.grids import Grid, OwnGrid
from scoregen.samplers.steps import Step

# A `start_gap` above this at the first level gives a `StartWarning`.
START_TOLERANCE = 0.1


class StartWarning(UserWarning):
    """Sampling starts from the prior at a level where the law of x is far from the prior."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampler: a step, a corrector, and the noise levels at which they are applied.

    At each level the corrector moves x, then the step goes to the next level. At the last level the denoised mean
    E[x0 | x] is returned in place of a step (Jolicoeur-Martineau et al. 2021; Ho et al. 2020, algorithm 2 with z = 0),
    so no level without noise is needed.

        ancestral             Sampler(Ancestral())
        DDIM, 50 levels       Sampler(Ancestral(0.0), n=50)
        EDM, 35 evaluations   Sampler(EDMHeun(), n=18)
        annealed Langevin     Sampler(Hold(), Langevin(step_size, steps))

    It is compiled automatically, once for each shape and each structure of the denoiser. Another denoiser of the same
    structure, such as the same network with other parameters, does not compile it again. It may also be called inside
    `jax.jit`.

    Attributes:
        step: the step from level to level.
        corrector: the moves at each level, or None.
        grid: the noise levels, see `scoregen.samplers.grids`.
        n: the number of levels; None or 0 for all levels of a chain, and for 1000 in continuous time.
        denoise: whether to end with the denoised mean; False returns the last x, as NCSN v1 does.

    Raises:
        TypeError: if the step is not a `Step`, if the corrector or the grid cannot be called, or if n is neither an
            integer nor None.
        ValueError: if n is negative.

    >>> from scoregen.process import ddpm
    >>> from scoregen.samplers import Ancestral
    >>> from scoregen.testing.oracle import gaussian
    >>> denoiser = gaussian((2.0, 2.0, 2.0), 0.0).denoiser(ddpm())  # all data are 2
    >>> Sampler(Ancestral(), n=10)(denoiser, jax.random.key(0), (1, 3)).round(3).tolist()
    [[2.0, 2.0, 2.0]]
    """

    step: Step
    corrector: Corrector | Callable[[Denoiser, Array, Array, Array], Array] | None = None
    grid: Grid | Callable[[Process, int | None], Array] = OwnGrid()
    n: int | None = None
    denoise: bool = True

    def __post_init__(self):
        if isinstance(self.step, type) or not hasattr(self.step, "step"):
            raise TypeError(f"step={self.step!r}: a Step is needed, such as Ancestral()")
        for name, example in (("corrector", "Langevin()"), ("grid", "Karras() or Listed((1.0, 0.5, 0.001))")):
            part = getattr(self, name)
            if isinstance(part, type) or not (callable(part) or (part is None and name == "corrector")):
                raise TypeError(f"{name}={part!r}: an object is needed, such as {example}")
        if self.n is not None:
            check_count("n", self.n, 0)

    def __call__(
        self,
        denoiser: Denoiser,
        key: Array,
        shape: tuple[int, ...],
        start: Array | None = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Array:
        """Draw x0 `[B, ...]`.

        Args:
            denoiser: the denoiser; its process is sampled.
            key: one key, or one for each example `[B]`. Example i depends only on its own key, so the same
                seed gives the same example at any batch size.
            shape: the shape of the batch, (B, ...).
            start: x at the first level `[B, ...]`; None to draw it from the prior. x0 has the dtype of x.
            progress: a function that is called from the device with the number of levels done, at most a hundred times,
                and at the last level. Another function compiles the sampler again.

        Raises:
            TypeError: if `denoiser` is not a `Denoiser`, `key` not a random key, or `start` not an array of
                floating-point numbers; if the denoiser or the step returns a wrong type.
            ValueError: if shape, keys, start and denoiser do not fit each other, if a part returns x of another shape,
                or if the parts cannot be combined with each other or with the process (see `refuse`).

        Warns:
            StartWarning: if the prior is far from the law of x at the first level (see `start_gap`). There is no
                warning with a corrector, whose moves forget the start, or with a given `start`.
        """
        return self._draw(denoiser, key, shape, start, progress, record=False)[0]

    def trajectory(
        self,
        denoiser: Denoiser,
        key: Array,
        shape: tuple[int, ...],
        start: Array | None = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Array, Array]:
        """The samples of a call, with their path: (x0 `[B, ...]`, x at every level before its moves `[n, B, ...]`).

        Raises:
            TypeError: as for a call.
            ValueError: as for a call.
        """
        return self._draw(denoiser, key, shape, start, progress, record=True)

    def levels(self, process: Process) -> Array:
        """The noise levels that the sampler visits, noisiest first, `[n]`.

        Raises:
            ValueError: if there is no grid for this process and n, or if the grid's times are not `[n]`, rise, or lie
                outside `process.ends`.
        """
        levels = jnp.asarray(self.grid(process, self.n))
        if levels.ndim != 1 or not levels.size:
            raise ValueError(f"the grid gives times of shape {list(levels.shape)}: [n] is needed, one for each level")
        check_times(process, levels)
        if has_values(levels) and not (np.diff(np.asarray(levels, float)) <= 0).all():
            raise ValueError("the grid gives times that rise: the noisiest comes first")
        return levels

    def evaluations(self, process: Process, wrap: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser) -> int:
        """The number of network evaluations for one sample, counted while a sample of a known denoiser is drawn.

        `wrap` stands between the network and the sampler; guidance, for example, evaluates the network twice. For an
        adaptive step the number depends on the data, and this is the number for Gaussian data.

        Raises:
            ValueError: if the parts cannot be combined with each other or with the process (see `refuse`).

        >>> from scoregen.process import EDM
        >>> from scoregen.samplers import EDMHeun
        >>> Sampler(EDMHeun(), n=18).evaluations(EDM())
        35
        """
        count = 0

        def increment() -> None:
            nonlocal count
            count += 1

        def predict(x: Array, t: Array) -> Prediction:
            jax.debug.callback(increment)
            # Data of standard deviation 1/2, for which x has the variance q / 4.
            alpha, sigma = broadcast(process.alpha(t), x), broadcast(process.sigma(t), x)
            q = alpha**2 + 4 * sigma**2
            eps = 4 * sigma / q * x
            return Prediction(alpha / q * x, eps, -eps / sigma, jnp.zeros_like(x), -2 * jnp.sum(x**2 / q, 1))

        denoiser = wrap(Denoiser(process, predict))
        self._check(process)
        jax.block_until_ready(_sample(self, (1, 1), False, None, denoiser, jax.random.key(0), None))
        jax.effects_barrier()
        return count

    def refuse(self, process: Process, density: bool = False, variance: bool = False) -> list[Refusal]:
        """All reasons why this process cannot be sampled so, from each part and from their combination.

        Args:
            process: the process that is sampled. If a chain is an argument of `jax.jit`, its values are not known, and
                the checks that need them are skipped.
            density: whether the denoiser gives log p_t(x).
            variance: whether the denoiser has a learned variance.

        >>> from scoregen.process import ddpm
        >>> from scoregen.samplers import Heun
        >>> for refusal in Sampler(Heun()).refuse(ddpm()):
        ...     print(refusal)
        the step Heun is in time, and a chain has levels instead: take step=ancestral or step=edm or step=dpm
        """
        step, corrector, found = self.step, self.corrector, []
        the_step, the_corrector = f"the step {type(step).__name__}", f"the corrector {type(corrector).__name__}"
        for part, name, fixes in (
            (step, the_step, ("step=ancestral", "step=edm", "step=dpm")),
            (corrector, the_corrector, ("corrector=langevin", "corrector=none")),
        ):
            if _says(part, "continuous_only") and process.discrete:
                found.append(Refusal(f"{name} is in time, and a chain has levels instead", fixes))
            elif hasattr(part, "refuse") and has_values(process):
                found.append(part.refuse(process))  # pyright: ignore[reportOptionalMemberAccess]
        if _says(step, "needs_corrector") and corrector is None:
            reason = f"{the_step} needs a corrector, and there is none"
            found.append(Refusal(reason, ("corrector=langevin", "step=ancestral")))
        if _says(step, "excludes_corrector") and corrector is not None:
            reason = f"{the_step} would lose the moves of a corrector, since it starts from x before them"
            found.append(Refusal(reason, ("corrector=none", "step=dpm")))
        if _says(step, "needs_variance") and not variance:
            reason = f"{the_step} needs a learned variance, and this denoiser has none under this process"
            found.append(Refusal(reason, ("step.variance=small", "step.variance=large")))
        if _says(corrector, "needs_density") and not density:
            reason = f"{the_corrector} needs a density, and this denoiser gives the score alone"
            found.append(Refusal(reason, ("model.energy=true", "corrector=langevin")))
        return [refusal for refusal in (*found, self._refuse_grid(process)) if refusal is not None]

    def _refuse_grid(self, process: Process) -> Refusal | None:
        if hasattr(self.grid, "refuse"):
            refusal = self.grid.refuse(process, self.n)  # pyright: ignore[reportFunctionMemberAccess]
            if refusal is not None:
                return refusal
        try:
            with jax.ensure_compile_time_eval():
                n = len(self.levels(process))
        except ValueError as error:
            return Refusal(str(error))
        if _says(self.step, "adaptive") and n > 100:
            reason = f"the step {type(self.step).__name__} chooses its own steps, and would start again at {n} levels"
            return Refusal(reason, ("sampler.n=2",))
        return None

    def _check(self, process: Process) -> None:
        # Density and variance are not checked here: a part that needs them raises if the prediction has none.
        for refusal in self.refuse(process, density=True, variance=True)[:1]:
            raise ValueError(str(refusal))

    def _draw(
        self, denoiser: Denoiser, key: Array, shape: Any, start: Any, progress: Any, record: bool
    ) -> tuple[Array, Any]:
        check_denoiser(denoiser)
        shape = _batch_shape(shape)
        if check_key(key).shape not in ((), shape[:1]):
            raise ValueError(f"keys of shape {list(key.shape)} for {shape[0]} samples: give one key, or one for each")
        if start is not None:
            start = jnp.asarray(start)
            if not jnp.issubdtype(start.dtype, jnp.floating):
                raise TypeError(f"start is {start.dtype}: floating-point x of shape {list(shape)} is needed")
            if start.shape != shape:
                raise ValueError(
                    f"start of shape {list(start.shape)} for a batch of shape {list(shape)}: give x for each"
                )
        self._check(denoiser.process)
        if start is None and self.corrector is None:
            _warn_of_gap(denoiser.process, self.levels)
        return call(_sample, (self, shape, record, progress), denoiser, key, start)


def _sample(
    sampler: Sampler,
    shape: tuple[int, ...],
    record: bool,
    progress: Callable[[int], None] | None,
    denoiser: Denoiser,
    key: Array,
    start: Array | None,
) -> tuple[Array, Any]:
    process, levels = denoiser.process, sampler.levels(denoiser.process)
    last = levels.shape[0] - 1
    begin, rest = split_keys(example_keys(key, shape[0]), 2)
    if start is None:
        # A start below the process's noisiest level has less noise, so the prior is scaled down.
        std = jnp.hypot(process.sigma(levels[0]), process.alpha(levels[0]) * process.data_std)
        x = process.prior(begin, shape) * (std / process.prior_std())
    else:
        x = start
    dtype, denoiser = x.dtype, _checked(denoiser)

    def level(state: tuple[Array, Any], k: Array) -> tuple[tuple[Array, Any], Array | None]:
        x, memory = state
        seen = x if record else None
        t = jnp.full(shape[:1], levels[k])
        s = jnp.full(shape[:1], levels[jnp.minimum(k + 1, last)])
        correct, move = split_keys(fold_keys(rest, k), 2)
        if sampler.corrector is not None:
            x = _fits(sampler.corrector(denoiser, correct, x, t), sampler.corrector, shape, dtype)

        def step(x: Array, memory: Any) -> tuple[Array, Any]:
            moved = sampler.step.step(denoiser, move, x, t, s, memory)
            if not (isinstance(moved, tuple) and len(moved) == 2):
                name = type(sampler.step).__name__
                raise TypeError(
                    f"{name}.step gives {type(moved).__name__}: (x, state) is needed, () if there is no state"
                )
            if _kinds(moved[1]) != _kinds(memory):
                name = type(sampler.step).__name__
                raise TypeError(
                    f"{name}.step gives the state {_named(moved[1])}, from {_named(memory)}: its structure, shapes and "
                    "dtypes must stay those that `init` returns"
                )
            return _fits(moved[0], sampler.step, shape, dtype), moved[1]

        def end(x: Array, memory: Any) -> tuple[Array, Any]:
            return denoiser(x, t).x0 if sampler.denoise else x, memory

        x, memory = jax.lax.cond(k < last, step, end, x, memory)
        if progress is not None:
            every = -(-(last + 1) // 100)
            jax.lax.cond(
                ((k + 1) % every == 0) | (k == last),
                functools.partial(jax.debug.callback, progress, k + 1),
                lambda: None,
            )
        return (x, memory), seen

    memory = sampler.step.init(denoiser, x, levels) if hasattr(sampler.step, "init") else ()
    (x, _), seen = jax.lax.scan(level, (x, memory), jnp.arange(last + 1))
    return x, seen


def _kinds(state: Any) -> tuple[list, Any]:
    """The shapes and dtypes of a state, and its structure."""
    leaves, structure = jax.tree.flatten(state)
    return [(jnp.shape(leaf), jnp.asarray(leaf).dtype) for leaf in leaves], structure


def _named(state: Any) -> str:
    return str(jax.tree.map(lambda leaf: f"{jnp.asarray(leaf).dtype}{list(jnp.shape(leaf))}", state))


def _fits(x: Array, part: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    if jnp.shape(x) != shape:
        raise ValueError(f"{type(part).__name__} gives x of shape {list(jnp.shape(x))}: {list(shape)} is needed")
    return jnp.asarray(x).astype(dtype)


def _checked(denoiser: Denoiser) -> Denoiser:
    """The denoiser with predictions in the dtype of x, and one clear error if it cannot take x."""
    return Denoiser(denoiser.process, Partial(_predict_checked, denoiser))


def _predict_checked(denoiser: Denoiser, x: Array, t: Array) -> Prediction:
    try:
        found = denoiser(x, t)
    except Exception as error:  # whatever the network raises at a shape that it was not made for
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"the denoiser fails at a batch (B, ...) of shape {list(x.shape)}: {reason}") from error
    if not isinstance(found, Prediction):
        raise TypeError(f"the denoiser gives {type(found).__name__}: a Prediction is needed")
    for name, part in found._asdict().items():
        shape = x.shape[:1] if name == "log_density" else x.shape
        if part is not None and jnp.shape(part) != shape:
            raise ValueError(
                f"the denoiser gives {name} of shape {list(jnp.shape(part))} at a batch (B, ...) of shape "
                f"{list(x.shape)}: {list(shape)} is needed"
            )
    cast = (None if part is None else part.astype(x.dtype) for part in found)
    return Prediction(*cast)  # pyright: ignore[reportArgumentType]


def _batch_shape(shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size.__index__()) for size in shape)
    except (TypeError, AttributeError):
        raise ValueError(f"shape={shape!r}: the shape of the batch, (B, ...), is needed, such as (16, 2)") from None
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            f"shape={shape!r}: the shape of the batch, (B, ...), is needed: the number of samples, then the shape of "
            "one, such as (16, 2)"
        )
    return sizes


def start_gap(process: Process, level: Array | float) -> float:
    """How far x at a level is from the prior: the share of the standard deviation of x that is data, 0 to 1.

        alpha data_std / sqrt(sigma^2 + alpha^2 data_std^2)

    It is 0 where x is pure noise. Sampling starts from noise with the standard deviation of x. The start lacks all
    other properties of the data, such as their mean, and the samples lose about this share of them. `Sampler` warns
    above `START_TOLERANCE`.

    >>> from scoregen.process import ddpm
    >>> start_gap(ddpm(), 999), start_gap(ddpm(steps=50, rescale=False), 49)
    (0.00635..., 0.77...)
    """
    with jax.ensure_compile_time_eval():
        level = jnp.asarray(level)
        data = process.alpha(level) * process.data_std
        return float(data / jnp.hypot(process.sigma(level), data))


def _warn_of_gap(process: Process, levels: Callable[[Process], Array]) -> None:
    if not has_values(process):
        return
    with jax.ensure_compile_time_eval():
        first = levels(process)[0]
    gap = start_gap(process, first)
    if gap > START_TOLERANCE:
        warnings.warn(
            f"sampling starts far from the prior: at its first level, t = {float(first):g}, {gap:.2f} of the standard "
            f"deviation of x is data (at most {START_TOLERANCE:g} is advised): samples miss about that share of the "
            "data's mean; take a process with more noise, begin at a noisier level, pass start, or add a corrector",
            StartWarning,
            stacklevel=4,
        )


def _says(part: Any, what: str) -> bool:
    """Whether this attribute of a part is true; False if the part has none."""
    return bool(getattr(part, what, False))
