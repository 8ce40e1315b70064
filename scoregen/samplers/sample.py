"""The one driver of every sampler: down the noise levels in one `lax.scan`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Predict, Prediction
from scoregen.process import Process, example_keys, fold_keys, rows, split_keys
from scoregen.samplers.correctors import Corrector, NoCorrector
from scoregen.samplers.grids import Grid, OwnGrid
from scoregen.samplers.predictors import Predictor


def sample(
    process: Process,
    predict: Predict,
    key: Array,
    shape: tuple[int, ...],
    predictor: Predictor,
    corrector: Corrector = NoCorrector(),
    n: int | None = None,
    *,
    grid: Grid = OwnGrid(),
    start: Array | None = None,
    denoise: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Array:
    """Draw x0 `[B, ...]` by walking a grid of n noise levels from the prior down.

    At each level the corrector moves first, then the predictor steps to the next level; at the last
    level the denoised mean E[x0 | x] is returned in place of a step (Jolicoeur-Martineau et al. 2021; Ho et al.
    2020, algorithm 2 with z = 0), so that no level without noise is ever needed. What a walk costs in network
    evaluations, `evaluations` counts: n for an ancestral sampler, n T + 1 for annealed Langevin.

        ancestral          sample(..., Ancestral(1.0))
        DDIM               sample(..., Ancestral(0.0))
        annealed Langevin  sample(..., Hold(), Langevin(step_size, steps))

    Args:
        process: the process, whose prior is used.
        predict: the denoiser, see `scoregen.denoiser.denoiser`.
        key: one key, or one for each example `[B]`. Example i depends on its own key alone, so the same
            seed gives the same image whatever the batch size.
        shape: the shape of the batch, (B, ...).
        predictor: the step from level to level.
        corrector: the moves within a level.
        n: the number of levels, None for all of a chain's.
        grid: which levels, see `scoregen.samplers.grids`.
        start: x at the noisiest level, if it is not to be drawn from the prior.
        denoise: whether to end with the denoised mean; False returns the last x (as NCSN v1 does).
        progress: called from the device with the number of levels done, at most a hundred times a run, and at the last.

    Raises:
        ValueError: if n is beyond the chain's length, or does not fit the grid.

    >>> from scoregen.denoiser import Prediction
    >>> from scoregen.process import ddpm, rows
    >>> from scoregen.samplers import Ancestral
    >>> vp = ddpm()
    >>> def predict(x, t):  # the exact denoiser of data that are all 2
    ...     eps = (x - 2 * rows(vp.alpha(t), x)) / rows(vp.sigma(t), x)
    ...     return Prediction(jnp.full_like(x, 2.0), eps, -eps / rows(vp.sigma(t), x))
    >>> sample(vp, predict, jax.random.key(0), (1, 3), Ancestral(), n=10).tolist()
    [[2.0, 2.0, 2.0]]
    """
    arguments = (process, predict, key, shape, predictor, corrector, n, grid, start, denoise, progress)
    return _walk(*arguments, record=False)[0]


def trajectory(
    process: Process,
    predict: Predict,
    key: Array,
    shape: tuple[int, ...],
    predictor: Predictor,
    corrector: Corrector = NoCorrector(),
    n: int | None = None,
    *,
    grid: Grid = OwnGrid(),
    start: Array | None = None,
    denoise: bool = True,
    progress: Callable[[int], None] | None = None,
) -> tuple[Array, Array]:
    """As `sample`, which see, with the walk: the draws, and x at every level before its moves, `[n, B, ...]`."""
    arguments = (process, predict, key, shape, predictor, corrector, n, grid, start, denoise, progress)
    return _walk(*arguments, record=True)


def _walk(
    process: Process,
    predict: Predict,
    key: Array,
    shape: tuple[int, ...],
    predictor: Predictor,
    corrector: Corrector,
    n: int | None,
    grid: Grid,
    start: Array | None,
    denoise: bool,
    progress: Callable[[int], None] | None,
    *,
    record: bool,
) -> tuple[Array, Any]:
    levels = grid(process, n or 0)
    last = levels.shape[0] - 1
    begin, walk = split_keys(example_keys(key, shape[0]), 2)
    if start is None:
        # A walk may begin below the process's noisiest level: then with so much less noise.
        top = jnp.hypot(process.sigma(levels[0]), process.alpha(levels[0]) * process.data_std)
        x = process.prior(begin, shape) * (top / process.prior_std())
    else:
        x = start
    remembers = hasattr(predictor, "init")
    memory = predictor.init(x, levels) if remembers else ()

    def move(key: Array, x: Array, t: Array, s: Array, memory: Any) -> tuple[Array, Any]:
        if remembers:
            return predictor(process, predict, key, x, t, s, memory)
        return predictor(process, predict, key, x, t, s), memory

    def step(state: tuple[Array, Any], k: Array) -> tuple[tuple[Array, Any], Array | None]:
        x, memory = state
        seen = x if record else None
        t = jnp.full(shape[:1], levels[k])
        s = jnp.full(shape[:1], levels[jnp.minimum(k + 1, last)])
        correct, predict_ = split_keys(fold_keys(walk, k), 2)
        x = corrector(process, predict, correct, x, t)
        x, memory = jax.lax.cond(
            k < last,
            lambda x, memory: move(predict_, x, t, s, memory),
            lambda x, memory: (predict(x, t).x0 if denoise else x, memory),
            x,
            memory,
        )
        if progress is not None:
            every = -(-(last + 1) // 100)
            jax.lax.cond(
                ((k + 1) % every == 0) | (k == last),
                functools.partial(jax.debug.callback, progress, k + 1),
                lambda: None,
            )
        return (x, memory), seen

    (x, _), seen = jax.lax.scan(step, (x, memory), jnp.arange(last + 1))
    return x, seen


def evaluations(
    process: Process,
    predictor: Predictor,
    corrector: Corrector = NoCorrector(),
    n: int | None = None,
    *,
    wrap: Callable[[Predict], Predict] = lambda predict: predict,
    **options: Any,
) -> int:
    """How often such a walk asks the network: counted where it happens, on one example whose denoiser is known.

    `wrap` is what lies between the network and the walk, such as guidance, which asks twice. For a predictor that
    chooses its own steps the count is a measure, since they depend on the data.

    >>> from scoregen.process import EDM
    >>> from scoregen.samplers import EDMHeun
    >>> evaluations(EDM(), EDMHeun(), n=18)
    35
    """
    count = 0

    def asked() -> None:
        nonlocal count
        count += 1

    def predict(x: Array, t: Array) -> Prediction:
        jax.debug.callback(asked)
        # Of data of the standard deviation 1/2, whose x has the variance q / 4.
        alpha, sigma = rows(process.alpha(t), x), rows(process.sigma(t), x)
        q = alpha**2 + 4 * sigma**2
        eps = 4 * sigma / q * x
        return Prediction(alpha / q * x, eps, -eps / sigma, jnp.zeros_like(x), -2 * jnp.sum(x**2 / q, 1))

    walk = sample(process, wrap(predict), jax.random.key(0), (1, 1), predictor, corrector, n, **options)
    jax.block_until_ready(walk)
    jax.effects_barrier()
    return count
