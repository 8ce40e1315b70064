"""What a walk down the noise levels looks like: x and the estimate of x0 on the way, as a sheet and as an animation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoregen.experiment import Experiment
from scoregen.files import whole
from scoregen.process import example_keys, rows
from scoregen.report import ACCENT, INK, pyplot, sheet
from scoregen.samplers import trajectory

FRAMES = 60  # of an animation, at most
COLUMNS = 8  # of a sheet


class Walk(NamedTuple):
    """Frames of a walk, noisiest first.

    Attributes:
        noise: sigma / alpha of each, `[F]`.
        x: as it is shown, `[F, B, ...]`: scaled about the data's middle to the spread of data, whatever the noise.
        x0: its estimate, `[F, B, ...]`; of the last frame the draws themselves.
    """

    noise: np.ndarray
    x: np.ndarray
    x0: np.ndarray


def walk(experiment: Experiment, params: Any, count: int) -> Walk:
    """Draw `count` samples as a run does, the same for the same seed, and keep what was on the way."""
    process, config = experiment.walk, experiment.config
    keys = example_keys(jax.random.key(config.seed + 2), count)
    low, high = experiment.scaling.low, experiment.scaling.high
    bounded = bool(np.isfinite(high - low))
    middle, half = (0.5 * (low + high), 0.5 * (high - low)) if bounded else (0.0, 1.0)

    @jax.jit
    def draw(params: Any, keys: jax.Array, *known: Any) -> tuple[jax.Array, ...]:
        predict = experiment.predict_to_sample(params, *known)
        levels = experiment.grid(process, config.sampler.n)
        drawn, xs = trajectory(
            process,
            predict,
            keys,
            (count, *experiment.dataset.shape),
            experiment.predictor,
            experiment.corrector,
            config.sampler.n or None,
            grid=experiment.grid,
            denoise=config.sampler.denoise,
        )
        some = np.unique(np.linspace(0, len(xs) - 1, min(FRAMES, len(xs))).round().astype(int))
        times, xs = levels[some], xs[some]
        x0 = jax.lax.map(lambda at: predict(at[0], jnp.full(count, at[1])).x0, (xs, times))
        alpha, sigma = rows(process.alpha(times), xs), rows(process.sigma(times), xs)
        shown = middle + (xs - alpha * middle) / jnp.sqrt(alpha**2 + (sigma / half) ** 2)
        return jnp.exp(-0.5 * process.logsnr(times)), shown, x0.at[-1].set(drawn)

    index = np.arange(count)
    clean = None if experiment.control is None else experiment.held_out(index)
    return Walk(*map(np.asarray, draw(params, keys, experiment.labels_to_sample(index), clean)))


def save_sheet(path: Path, experiment: Experiment, seen: Walk) -> Path:
    """A few frames side by side: x above, the estimate of x0 below, with the noise of each over it."""
    plt = pyplot()
    some = np.unique(np.linspace(0, len(seen.noise) - 1, COLUMNS).round().astype(int))
    figure, axes = plt.subplots(2, len(some), figsize=(2.0 * len(some), 4.5), layout="constrained", squeeze=False)
    for column, k in zip(axes.T, some, strict=True):
        column[0].set_title(f"sigma / alpha = {seen.noise[k]:.3g}", fontsize=10)
        for panel, what, color in zip(column, (seen.x[k], seen.x0[k]), (INK, ACCENT), strict=True):
            _draw(panel, experiment, what, color)
    axes[0, 0].set_ylabel("x")
    axes[1, 0].set_ylabel("estimate of x0")
    with whole(path) as fresh:
        figure.savefig(fresh, dpi=110)
    plt.close(figure)
    return path


def save_animation(path: Path, experiment: Experiment, seen: Walk) -> Path:
    """A GIF: x on the left, the estimate of x0 on the right; the last frame stays for two seconds."""
    from PIL import Image

    plt = pyplot()
    frames = []
    for k in range(len(seen.noise)):
        figure, axes = plt.subplots(1, 2, figsize=(8, 4.3), layout="constrained")
        for panel, what, color, name in zip(
            axes,
            (seen.x[k], seen.x0[k]),
            (INK, ACCENT),
            (f"x, sigma / alpha = {seen.noise[k]:.2g}", "estimate of x0"),
            strict=True,
        ):
            _draw(panel, experiment, what, color)
            panel.set_title(name)
        figure.canvas.draw()
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]).quantize(64))
        plt.close(figure)
    durations = [100] * (len(frames) - 1) + [2000]
    with whole(path) as fresh:
        frames[0].save(fresh, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return path


def _draw(panel: Any, experiment: Experiment, what: np.ndarray, color: str) -> None:
    panel.set(xticks=[], yticks=[])
    if experiment.dataset.is_image:
        panel.imshow(sheet(experiment.scaling.to_bytes(what), 320))
        panel.spines[:].set_visible(False)
        return
    # Of points the first two coordinates, or one over its histogram's place.
    points = what.reshape(len(what), -1)
    y = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    reach = 1.3 * float(np.quantile(np.abs(experiment.dataset.test), 0.999))
    panel.scatter(points[:, 0], y, s=4, linewidths=0, alpha=0.6, color=color)
    panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
