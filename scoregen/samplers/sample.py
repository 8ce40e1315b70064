"""The one driver of every sampler: down the noise levels in one `lax.scan`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Predict
from scoregen.process import Process, example_keys, fold_keys, split_keys
from scoregen.samplers.correctors import Corrector, NoCorrector
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
    denoise: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Array:
    """Draw x0 `[B, ...]` by walking `process.grid(n)` from the prior down.

    At each level the corrector moves first, then the predictor steps to the next level; at the last
    level the denoised mean E[x0 | x] is returned in place of a step (Jolicoeur-Martineau et al. 2021; Ho et al.
    2020, algorithm 2 with z = 0), so that no level without noise is ever needed. An ancestral sampler costs n
    network evaluations, annealed Langevin n T + 1.

        ancestral          sample(..., Ancestral(1.0))
        DDIM               sample(..., Ancestral(0.0))
        annealed Langevin  sample(..., Hold(), Langevin(step_size, steps))

    Args:
        process: the process, whose grid and prior are used.
        predict: the denoiser, see `scoregen.denoiser.denoiser`.
        key: one key, or one for each example `[B]`. Example i depends on its own key alone, so the same
            seed gives the same image whatever the batch size.
        shape: the shape of the batch, (B, ...).
        predictor: the step from level to level.
        corrector: the moves within a level.
        n: the number of levels, None for all of a chain's.
        denoise: whether to end with the denoised mean; False returns the last x (as NCSN v1 does).
        progress: called from the device with the number of levels done, at most a hundred times a run, and at the last.

    Raises:
        ValueError: if n is beyond the chain's length.

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
    grid = process.grid(n)
    last = grid.shape[0] - 1
    start, walk = split_keys(example_keys(key, shape[0]), 2)

    def step(x: Array, k: Array) -> tuple[Array, None]:
        t = jnp.full(shape[:1], grid[k])
        s = jnp.full(shape[:1], grid[jnp.minimum(k + 1, last)])
        correct, predict_ = split_keys(fold_keys(walk, k), 2)
        x = corrector(process, predict, correct, x, t)
        x = jax.lax.cond(
            k < last,
            lambda x: predictor(process, predict, predict_, x, t, s),
            lambda x: predict(x, t).x0 if denoise else x,
            x,
        )
        if progress is not None:
            every = -(-(last + 1) // 100)
            jax.lax.cond(
                ((k + 1) % every == 0) | (k == last),
                functools.partial(jax.debug.callback, progress, k + 1),
                lambda: None,
            )
        return x, None

    x, _ = jax.lax.scan(step, process.prior(start, shape), jnp.arange(last + 1))
    return x
