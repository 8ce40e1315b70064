"""A walk down the noise levels in pictures: x and the estimate of x0 along the way, as a sheet and as an animation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoregen.app.figures import ACCENT, INK, figure, save
from scoregen.app.report import reference, sheet
from scoregen.app.sampling import Sampling, sampling_key
from scoregen.files import whole
from scoregen.random import broadcast, example_keys

if TYPE_CHECKING:
    from scoregen.data import Dataset

FRAMES = 60  # of an animation, at most
COLUMNS = 8  # of a sheet


class Walk(NamedTuple):
    """Frames of a walk, noisiest first.

    Attributes:
        noise: sigma / alpha of each, `[F]`.
        x: as it is shown, `[F, B, ...]`: scaled about the data's middle to the spread of data, whatever the noise.
        x0: its estimate, `[F, B, ...]`; in the last frame the samples themselves.
    """

    noise: np.ndarray
    x: np.ndarray
    x0: np.ndarray


def walk(sampling: Sampling, params: Any, count: int) -> Walk:
    """Draw `count` samples as a run does, the same for the same seed, and keep the frames along the way."""
    process = sampling.process
    keys = example_keys(sampling_key(sampling.seed), count)
    low, high = sampling.scaling.low, sampling.scaling.high
    bounded = bool(np.isfinite(high - low))
    middle, half = (0.5 * (low + high), 0.5 * (high - low)) if bounded else (0.0, 1.0)

    @jax.jit
    def draw(params: Any, keys: jax.Array, *known: Any) -> tuple[jax.Array, ...]:
        denoiser = sampling.denoiser(params, *known)
        levels = sampling.sampler.levels(process)
        drawn, xs = sampling.sampler.trajectory(denoiser, keys, (count, *sampling.shape))
        some = np.unique(np.linspace(0, len(xs) - 1, min(FRAMES, len(xs))).round().astype(int))
        times, xs = levels[some], xs[some]
        x0 = jax.lax.map(lambda at: denoiser(at[0], jnp.full(count, at[1])).x0, (xs, times))
        alpha, sigma = broadcast(process.alpha(times), xs), broadcast(process.sigma(times), xs)
        shown = middle + (xs - alpha * middle) / jnp.sqrt(alpha**2 + (sigma / half) ** 2)
        return jnp.exp(-0.5 * process.logsnr(times)), shown, x0.at[-1].set(drawn)

    index = np.arange(count)
    return Walk(*map(np.asarray, draw(params, keys, sampling.labels_of(index), sampling.clean_of(index))))


def save_sheet(path: Path, dataset: Dataset, scaling: Any, seen: Walk) -> Path:
    """A few frames side by side: x above, the estimate of x0 below, with the noise of each over it."""
    some = np.unique(np.linspace(0, len(seen.noise) - 1, COLUMNS).round().astype(int))
    page, axes = figure(2, len(some), size=(2.0 * len(some), 4.5))
    for column, k in zip(axes.T, some, strict=True):
        column[0].set_title(f"sigma / alpha = {seen.noise[k]:.3g}", fontsize=10)
        for panel, examples, color in zip(column, (seen.x[k], seen.x0[k]), (INK, ACCENT), strict=True):
            _draw(panel, dataset, scaling, examples, color)
    axes[0, 0].set_ylabel("x")
    axes[1, 0].set_ylabel("estimate of x0")
    return save(path, page)


def save_animation(path: Path, dataset: Dataset, scaling: Any, seen: Walk) -> Path:
    """A GIF: x on the left, the estimate of x0 on the right; the last frame stays for two seconds."""
    from PIL import Image

    frames = []
    for k in range(len(seen.noise)):
        page, (axes,) = figure(1, 2, size=(8, 4.3))
        for panel, examples, color, name in zip(
            axes,
            (seen.x[k], seen.x0[k]),
            (INK, ACCENT),
            (f"x, sigma / alpha = {seen.noise[k]:.2g}", "estimate of x0"),
            strict=True,
        ):
            _draw(panel, dataset, scaling, examples, color)
            panel.set_title(name)
        page.canvas.draw()
        frames.append(Image.fromarray(np.asarray(page.canvas.buffer_rgba())[..., :3]).quantize(64))
    durations = [100] * (len(frames) - 1) + [2000]
    with whole(path) as fresh:
        frames[0].save(fresh, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return path


def _draw(panel: Any, dataset: Dataset, scaling: Any, examples: np.ndarray, color: str) -> None:
    panel.set(xticks=[], yticks=[])
    if dataset.is_image:
        panel.imshow(sheet(scaling.to_bytes(examples), 320))
        panel.spines[:].set_visible(False)
        return
    # Of points the first two coordinates, or one along a line.
    points = examples.reshape(len(examples), -1)
    y = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    reach = 1.3 * float(np.quantile(np.abs(reference(dataset)), 0.999))
    panel.scatter(points[:, 0], y, s=4, linewidths=0, alpha=0.6, color=color)
    panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
