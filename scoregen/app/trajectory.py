"""Pictures of sampling: x and the estimate of x0 at successive noise levels, as a sheet and as an animation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoregen.app.figures import ACCENT, INK, figure, mosaic, plain, save
from scoregen.app.report import coordinates, percent, reference, scatter, sheet
from scoregen.app.sampling import Sampling, sampling_key
from scoregen.files import whole
from scoregen.random import broadcast, example_keys

if TYPE_CHECKING:
    from scoregen.data import Dataset

FRAMES = 60  # of an animation, at most
COLUMNS = 8  # of a sheet
VISIBLE = 0.1, 2.5  # below and above this noise, in standard deviations of the data, pictures look alike


class Walk(NamedTuple):
    """Frames of a walk, noisiest first.

    Attributes:
        noise: sigma / alpha of each, `[F]`.
        x: the state for display, `[F, B, ...]`: scaled around the data's middle to the spread of the data.
        x0: the estimate of x0, `[F, B, ...]`; in the last frame the samples.
    """

    noise: np.ndarray
    x: np.ndarray
    x0: np.ndarray


def walk(sampling: Sampling, params: Any, count: int) -> Walk:
    """Draw `count` samples as a run does, with the same seed, and store the frames along the way."""
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


def levels_to_show(noise: np.ndarray, spread: float, count: int = COLUMNS) -> np.ndarray:
    """The indices of at most `count` frames that look different: the first, the last, and frames between them.

    The frames between are evenly spaced in log-SNR over the range of visible noise.

    Args:
        noise: sigma / alpha of each frame, in decreasing order.
        spread: the standard deviation of the data.
        count: the largest number of frames, at least 2.

    >>> noise = np.geomspace(160, 0.01, 60)
    >>> [plain(value) for value in noise[levels_to_show(noise, 1.0)]]
    ['160', '1.6', '0.99', '0.6', '0.37', '0.27', '0.16', '0.01']
    """
    place = np.log(np.clip(noise, VISIBLE[0] * spread, VISIBLE[1] * spread))
    targets = np.linspace(place[0], place[-1], count)
    # Of several frames that look alike, take the first: above the visible noise this is the noisiest.
    some = np.abs(place - targets[:, None]).argmin(axis=1)
    return np.unique([*some[:-1], len(noise) - 1])


def save_sheet(path: Path, dataset: Dataset, scaling: Any, seen: Walk, title: str = "") -> Path:
    """A few frames side by side: x in the upper row, the estimate of x0 below, the noise as the title."""
    return save(path, sheet_of(dataset, scaling, seen, title))


def sheet_of(dataset: Dataset, scaling: Any, seen: Walk, title: str = "") -> Any:
    """The figure of `save_sheet`."""
    some = levels_to_show(seen.noise, _spread(dataset, scaling))
    heads = [_head(float(seen.noise[k])) for k in some]
    lines = ("x, scaled", seen.x[some]), ("estimate of x0", seen.x0[some])
    if dataset.is_image:
        return mosaic(
            [(name.replace(" ", "\n", 1), [sheet(scaling.to_bytes(k), 160) for k in kept]) for name, kept in lines],
            title,
            heads,
        )
    names, ranges = _axes(dataset, seen)
    page, axes = figure(2, len(some), size=(0.8 + 1.6 * len(some), 4.2), sharex=True, sharey=True)
    page.suptitle("\n".join(filter(None, (title, _said(dataset)))))
    for line, (name, kept), color in zip(axes, lines, (INK, ACCENT), strict=True):
        for panel, points in zip(line, kept, strict=True):
            _draw(panel, points, ranges, color)
        line[0].set_ylabel("\n".join(filter(None, (name, names[1]))))
    for panel, head in zip(axes[0], heads, strict=True):
        panel.set_title(head)
    for panel in axes[1]:
        panel.set_xlabel(names[0])
    return page


def save_animation(path: Path, dataset: Dataset, scaling: Any, seen: Walk, title: str = "") -> Path:
    """A GIF: x on the left, the estimate of x0 on the right; the last frame stays for two seconds."""
    from PIL import Image

    frames = []
    names, ranges = ("", ""), np.zeros((2, 2))
    if not dataset.is_image:
        names, ranges = _axes(dataset, seen)
    for k in range(len(seen.noise)):
        heads = [f"x, scaled; {_head(seen.noise[k])}", "estimate of x0"]
        if dataset.is_image:
            pictures = [sheet(scaling.to_bytes(images[k]), 320) for images in (seen.x, seen.x0)]
            page = mosaic([("", pictures)], title, heads)
        else:
            page, (axes,) = figure(1, 2, size=(8, 4.5), sharex=True, sharey=True)
            page.suptitle("\n".join(filter(None, (title, _said(dataset)))))
            for panel, points, color, head in zip(axes, (seen.x[k], seen.x0[k]), (INK, ACCENT), heads, strict=True):
                _draw(panel, points, ranges, color)
                panel.set(title=head, xlabel=names[0])
            axes[0].set_ylabel(names[1])
        page.canvas.draw()
        frames.append(Image.fromarray(np.asarray(page.canvas.buffer_rgba())[..., :3]).quantize(64))
    durations = [100] * (len(frames) - 1) + [2000]
    with whole(path) as fresh:
        frames[0].save(fresh, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return path


def _head(noise: float) -> str:
    return f"sigma/alpha = {plain(noise)}"


def _said(dataset: Dataset) -> str:
    """A note on how many coordinates are shown, if not all of them are."""
    dims = int(np.prod(dataset.shape))
    return f"2 of {dims} coordinates, the first ones" if dims > 2 else ""


def _spread(dataset: Dataset, scaling: Any) -> float:
    """The standard deviation of the data as the network sees them, over some examples and all coordinates."""
    some = reference(dataset)[:2000]
    if dataset.is_image:
        some = scaling.low + (scaling.high - scaling.low) * some.astype(np.float32) / 255
    return max(float(np.std(some)), 1e-6)


def _axes(dataset: Dataset, seen: Walk) -> tuple[tuple[str, str], np.ndarray]:
    """The names of the two coordinates that are shown, and their ranges `[2, 2]`, for points.

    The ranges cover 99 % of the data, of the samples and of the initial noise. Estimates of x0 can be outside.
    """
    shown = [_plane(points) for points in (reference(dataset), seen.x0[-1], seen.x[0])]
    low = np.min([np.quantile(points, 0.005, axis=0) for points in shown], axis=0)
    high = np.max([np.quantile(points, 0.995, axis=0) for points in shown], axis=0)
    middle, half = 0.5 * (low + high), 0.6 * max(float((high - low).max()), 1e-6)
    names = coordinates(dataset)
    return (names[0], names[1] if len(names) > 1 else ""), np.stack([middle - half, middle + half], axis=1)


def _plane(points: np.ndarray) -> np.ndarray:
    """The first two coordinates `[N, 2]`; the second is 0 for points with one coordinate."""
    points = points.reshape(len(points), -1).astype(np.float64)
    return points[:, :2] if points.shape[1] > 1 else np.concatenate([points, np.zeros_like(points)], axis=1)


def _draw(panel: Any, points: np.ndarray, ranges: np.ndarray, color: str) -> None:
    off = scatter(panel, _plane(points), ranges, color, s=4, linewidths=0, alpha=0.6)
    panel.set(xlim=ranges[0], ylim=ranges[1], aspect="equal")
    if off >= 0.01:
        said = panel.text(0.03, 0.97, f"{percent(off)} outside", transform=panel.transAxes, va="top", fontsize=8)
        said.set_in_layout(False)
