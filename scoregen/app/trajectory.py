"""Pictures of sampling: x and the estimate of x0 at successive noise levels, as a sheet and as an animation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoregen.app.figures import ACCENT, INK, figure, mosaic, plain, save
from scoregen.app.report import as_pictures, coordinates, in_units, percent, reference, scatter, sheet
from scoregen.app.sampling import Sampling, sampling_key
from scoregen.files import whole
from scoregen.random import broadcast, example_keys

if TYPE_CHECKING:
    from scoregen.data import Dataset

FRAMES = 60  # of an animation, at most
COLUMNS = 8  # of a sheet
LINES = 3  # series in a panel
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
    return Walk(*map(np.asarray, draw(params, keys, sampling.cond_of(index), sampling.clean_of(index))))


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
    if len(dataset.shape) in (3, 4):
        shown = [
            (name.replace(" ", "\n", 1), [sheet(_bytes(dataset, scaling, k), 160) for k in kept])
            for name, kept in lines
        ]
        return mosaic(shown, title, heads)
    names, ranges = _axes(dataset, seen)
    page, axes = figure(2, len(some), size=(0.8 + 1.6 * len(some), 4.2), sharex=True, sharey=True)
    page.suptitle("\n".join(filter(None, (title, _said(dataset)))))
    for line, (name, kept), color in zip(axes, lines, (INK, ACCENT), strict=True):
        for panel, points in zip(line, kept, strict=True):
            _draw(panel, dataset, points, ranges, color)
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
    pictured = len(dataset.shape) in (3, 4)
    if not pictured:
        names, ranges = _axes(dataset, seen)
    for k in range(len(seen.noise)):
        heads = [f"x, scaled; {_head(seen.noise[k])}", "estimate of x0"]
        if pictured:
            pictures = [sheet(_bytes(dataset, scaling, images[k]), 320) for images in (seen.x, seen.x0)]
            page = mosaic([("", pictures)], title, heads)
        else:
            page, (axes,) = figure(1, 2, size=(8, 4.5), sharex=True, sharey=True)
            page.suptitle("\n".join(filter(None, (title, _said(dataset)))))
            for panel, points, color, head in zip(axes, (seen.x[k], seen.x0[k]), (INK, ACCENT), heads, strict=True):
                _draw(panel, dataset, points, ranges, color)
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


def _bytes(dataset: Dataset, scaling: Any, images: np.ndarray) -> np.ndarray:
    """Images or volumes in the network's units, as bytes `[N, H, W, C]`."""
    return scaling.to_bytes(images) if dataset.is_image else as_pictures(dataset, images)[0][0]


def _said(dataset: Dataset) -> str:
    """A note on what is shown, if it is not everything."""
    if len(dataset.shape) == 2:
        return f"{LINES} series, the first channel" if dataset.shape[-1] > 1 else f"{LINES} series"
    dims = int(np.prod(dataset.shape))
    return f"2 of {dims} coordinates, the first ones" if dims > 2 else ""


def _spread(dataset: Dataset, scaling: Any) -> float:
    """The standard deviation of the data as the network sees them, over some examples and all coordinates."""
    some = reference(dataset, 2000)
    if dataset.is_image:
        some = scaling.low + (scaling.high - scaling.low) * some.astype(np.float32) / 255
    return max(float(np.std(some)), 1e-6)


def _axes(dataset: Dataset, seen: Walk) -> tuple[tuple[str, str], np.ndarray]:
    """The names of the two coordinates that are shown, and their ranges `[2, 2]`, for points.

    The ranges cover 99 % of the data, of the samples and of the initial noise. Estimates of x0 can be outside.
    """
    sets = [in_units(dataset, points) for points in (reference(dataset), seen.x0[-1], seen.x[0])]
    if len(dataset.shape) == 2:
        low, high = np.quantile(np.concatenate([x[..., 0].ravel() for x in sets]), (0.001, 0.999))
        room = 0.1 * max(high - low, 1e-6)
        return ("position", "value"), np.array([[0, dataset.shape[0] - 1], [low - room, high + room]])
    shown = [_plane(points) for points in sets]
    low = np.min([np.quantile(points, 0.005, axis=0) for points in shown], axis=0)
    high = np.max([np.quantile(points, 0.995, axis=0) for points in shown], axis=0)
    middle, half = 0.5 * (low + high), 0.6 * np.maximum(high - low, 1e-6)
    if dataset.units is None:  # both coordinates have the same unit
        half = np.full(2, half.max())
    names = coordinates(dataset)
    return (names[0], names[1] if len(names) > 1 else ""), np.stack([middle - half, middle + half], axis=1)


def _plane(points: np.ndarray) -> np.ndarray:
    """The first two coordinates `[N, 2]`; the second is 0 for points with one coordinate."""
    points = points.reshape(len(points), -1).astype(np.float64)
    return points[:, :2] if points.shape[1] > 1 else np.concatenate([points, np.zeros_like(points)], axis=1)


def _draw(panel: Any, dataset: Dataset, points: np.ndarray, ranges: np.ndarray, color: str) -> None:
    points = in_units(dataset, points)
    if len(dataset.shape) == 2:
        panel.plot(points[:LINES, :, 0].T, color=color, lw=0.8, alpha=0.8)
        panel.set(xlim=ranges[0], ylim=ranges[1])
        return
    off = scatter(panel, _plane(points), ranges, color, s=4, linewidths=0, alpha=0.6)
    panel.set(xlim=ranges[0], ylim=ranges[1], aspect="equal" if dataset.units is None else "auto")
    if off >= 0.01:
        said = panel.text(0.03, 0.97, f"{percent(off)} outside", transform=panel.transAxes, va="top", fontsize=8)
        said.set_in_layout(False)
