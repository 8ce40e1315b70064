"""The files and the table that a run leaves: sample grids, the figure of a plane, the loss curve, the closing table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from scoregen.app.evaluate import Measured, Metric
from scoregen.app.figures import ACCENT, INK, figure, load_matplotlib, save, save_image
from scoregen.data import Dataset
from scoregen.files import to_json, whole
from scoregen.samplers import OwnGrid
from scoregen.train.log import MetricsLog

if TYPE_CHECKING:
    from rich.table import Table

    from scoregen.app.config import Config
    from scoregen.app.sampling import Sampling
    from scoregen.train import Model


def reference(dataset: Dataset) -> np.ndarray:
    """The held-out examples, or the training examples of data that hold none out."""
    return dataset.train if dataset.test is None else dataset.test


def save_grid(path: Path, images: np.ndarray, side: int = 640) -> Path:
    """Write uint8 images `[N, H, W, C]` as one PNG, a `sheet` of about `side` pixels."""
    return save_image(path, sheet(images, side))


def sheet(images: np.ndarray, side: int, columns: int | None = None) -> np.ndarray:
    """uint8 images as one of about `side` pixels, in a grid near to square, or of `columns`, uint8 `[h, w, 3]`.

    Each pixel becomes a block of whole pixels. Images of fewer than 16 pixels a side are interpolated linearly: the
    eye reads a digit of 8x8 pixels as one sees it from afar, and not as a pattern of blocks.
    """
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    scale = max(1, min(side // (columns * (width + 1)), 32))
    gap = max(1, scale // 2)
    tall, wide = height * scale + gap, width * scale + gap
    page = np.full((lines * tall + gap, columns * wide + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * tall, gap + i % columns * wide
        block = _enlarge(image, scale)
        page[y : y + height * scale, x : x + width * scale] = block if channels == 3 else block[..., :1]
    return page


def _enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    if min(image.shape[:2]) >= 16:
        return np.repeat(np.repeat(image, scale, 0), scale, 1)
    from scipy.ndimage import zoom

    return np.asarray(zoom(image, (scale, scale, 1), order=1, mode="nearest", grid_mode=True))


def save_completed(path: Path, sampling: Sampling, samples: np.ndarray, most: int = 12) -> Path:
    """Three named lines: the first held-out images, their visible part, and the samples that complete it."""
    count, scaling, control = min(most, len(samples)), sampling.scaling, sampling.control
    clean = sampling.clean_of(np.arange(count))
    assert control is not None and clean is not None
    seen = control.seen(clean, 0.5 * (scaling.low + scaling.high))
    lines = [np.asarray(line) for line in (clean, seen, samples[:count])]
    image = sheet(scaling.to_bytes(np.concatenate(lines)), 80 * count, columns=count)
    height, width = image.shape[:2]
    page, ((panel,),) = figure(size=(1 + 0.8 * count, 0.8 * count * height / width))
    panel.imshow(image)
    names = (
        "held out",
        "seen",
        f"completed,\n{count} of {len(samples)}" if len(samples) > count else "completed",
    )
    panel.set_yticks([height * (i + 0.5) / 3 for i in range(3)], names)
    panel.set_xticks([])
    panel.tick_params(length=0, labelsize=10)
    panel.spines[:].set_visible(False)
    return save(path, page)


def save_plane(path: Path, model: Model, dataset: Dataset, params: Any, samples: np.ndarray) -> Path:
    """Four panels of a two-dimensional run: data, samples, the learned score field, the samples' density.

    The score is drawn at the level whose sigma / alpha is nearest to 0.2, over the exact density at that level where
    it is known (the density of the data, smoothed by that noise), else over the data's own histogram. The lines of the
    last panel hold half, 80 % and 95 % of the data.
    """
    from scipy.ndimage import gaussian_filter

    process, shown = model.process, reference(dataset)
    held = shown[: len(samples)]
    reach = 1.15 * float(np.quantile(np.abs(shown), 0.999))
    axis = np.linspace(-reach, reach, 161)
    xx, yy = np.meshgrid(axis, axis)
    plane = jnp.asarray(np.stack([xx, yy], -1).reshape(-1, 2), jnp.float32)

    if dataset.log_density is not None:
        truth = np.exp(np.asarray(dataset.log_density(plane))).reshape(xx.shape)
        truth_name = "exact"
    else:
        truth, truth_name = _smooth_histogram(shown, axis), "data's"

    t = OwnGrid()(process, None)
    t = t[jnp.argmin(jnp.abs(jnp.log(process.sigma(t) / process.alpha(t)) - jnp.log(0.2)))]
    arrows = np.linspace(-reach, reach, 23)
    ax_, ay_ = np.meshgrid(arrows, arrows)
    points = jnp.asarray(np.stack([ax_, ay_], -1).reshape(-1, 2), jnp.float32)
    predict = jax.jit(lambda params, x, t: model.denoiser(params)(x, t).score)
    score = np.asarray(predict(params, process.alpha(t).astype(points.dtype) * points, jnp.full(len(points), t)))
    norm = np.linalg.norm(score, axis=1, keepdims=True)
    # Lengths on a log scale: the score grows a hundredfold away from the data, and its direction is the point.
    field = score / np.maximum(norm, 1e-9) * np.log1p(norm)

    noise = float(process.sigma(t) / process.alpha(t))

    page, (axes,) = figure(1, 4, size=(16, 4.5))
    dots = {"s": 3, "linewidths": 0, "alpha": 0.5}
    axes[0].scatter(*held.T, color=INK, **dots)
    axes[0].set_title(f"data ({len(held):,} {'training' if dataset.test is None else 'held-out'} points)")
    axes[1].scatter(*samples.T, color=ACCENT, **dots)
    axes[1].set_title(f"samples ({len(samples):,})")
    there = gaussian_filter(truth, noise / (axis[1] - axis[0]))
    # A light grey by its scale and not by transparency, which draws every edge of a step twice.
    axes[2].contourf(axis, axis, there, levels=12, cmap="Greys", vmin=0, vmax=there.max() / 0.6)
    axes[2].quiver(*np.asarray(points).T, *field.T, color=ACCENT, width=0.004, angles="xy")
    axes[2].set_title(f"arrows: learned score at noise {noise:.2g}\nshade: {truth_name} density there, in 12 shades")
    axes[3].contourf(axis, axis, _smooth_histogram(samples, axis), levels=16, cmap="Oranges")
    axes[3].contour(axis, axis, truth, levels=_holding(truth, (0.95, 0.8, 0.5)), colors=INK, linewidths=0.6)
    axes[3].set_title(f"shade: density of the samples\nlines: {truth_name}, around 50, 80, 95 % of it")
    for panel in axes:
        panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        panel.tick_params(labelsize=8)
    return save(path, page)


def save_marginals(path: Path, dataset: Dataset, samples: np.ndarray) -> Path:
    """For points of any dimension: the histogram of each coordinate, samples over held-out data; the first twelve."""
    drawn, held = (points.reshape(len(points), -1)[:, :12] for points in (samples, reference(dataset)))
    columns = min(4, drawn.shape[1])
    lines = -(-drawn.shape[1] // columns)
    page, panels = figure(lines, columns, size=(3.2 * columns, 2.4 * lines))
    for i, panel in enumerate(panels.flat):
        if i >= drawn.shape[1]:
            panel.axis("off")
            continue
        low, high = np.quantile(held[:, i], (0.001, 0.999))
        bins = np.linspace(low, high, 50).tolist()
        panel.hist(held[:, i], bins, density=True, color=INK, alpha=0.35, label="data")
        panel.hist(drawn[:, i], bins, density=True, histtype="step", color=ACCENT, lw=1.5, label="samples")
        panel.set_title(f"coordinate {i}", fontsize=9)
        panel.set_yticks([])
    panels[0, 0].legend(frameon=False, fontsize=8)
    return save(path, page)


def _smooth_histogram(points: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """A density on the grid axis x axis: a histogram, smoothed over two cells."""
    from scipy.ndimage import gaussian_filter

    step = axis[1] - axis[0]
    edges = np.append(axis - step / 2, axis[-1] + step / 2)
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=(edges, edges))
    return np.asarray(gaussian_filter(counts / (len(points) * step**2), 2.0))


def _holding(density: np.ndarray, shares: Sequence[float]) -> list[float]:
    """The levels above which a density on an even grid holds these shares of its mass, from more to less of it."""
    falling = np.sort(density, axis=None)[::-1]
    mass = np.cumsum(falling) / falling.sum()
    # Each is less than the one after, also for a density with few values.
    return sorted({float(falling[np.searchsorted(mass, share)]) for share in shares})


def curve(workdir: Path, title: str = "", loss: str = "loss") -> Any:
    """The figure of `save_curve`."""
    load_matplotlib()
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    lines = MetricsLog.read(workdir)
    page, ((panel,),) = figure(size=(7, 4))
    for key, style in (("loss", {"color": INK, "lw": 1}), ("held_out_loss", {"color": ACCENT, "marker": "o", "lw": 0})):
        # A loss that was not finite is null in the file.
        found = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if found:
            panel.plot(*np.array(found).T, label=key.replace("_", "-", 1).replace("_", " "), **style)
    panel.set(xlabel="step", ylabel=loss, title=title)
    values = np.array([line["loss"] for line in lines if line.get("loss") is not None])
    if len(values) > 5 and (values > 0).all():  # sliced score matching is negative, and stays linear
        panel.set_yscale("log")
        low, high = panel.get_ylim()
        if high < 5 * low:
            panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        elif high < 200 * low:  # the powers of ten alone would say little
            panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if panel.lines:
        panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    return page


def save_curve(path: Path, workdir: Path, title: str = "", loss: str = "loss") -> Path:
    """The loss over the steps, from the run's metrics.jsonl; held-out losses as dots. `loss` labels the axis."""
    return save(path, curve(workdir, title, loss))


def table(title: str, facts: Sequence[tuple[str, str]], metrics: Sequence[Metric], files: Sequence[Path]) -> Table:
    """The closing table: what was trained and how it was sampled, the distances, where the files are."""
    from rich.table import Table

    found = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    found.add_column(style="bold", no_wrap=True)
    found.add_column(overflow="fold")
    for name, value in facts:
        found.add_row(name, value)
    for metric in metrics:
        found.add_row(metric.name, describe(metric))
    for i, path in enumerate(files):
        found.add_row("files" if i == 0 else "", str(path))
    return found


def describe(metric: Metric) -> str:
    """A figure in words.

    >>> describe(Metric("MMD", 0.03, 0.02, 0.001))
    '0.03, 1.50x the floor of 0.02 +- 0.001 (real against real)'
    >>> describe(Metric("distance", 12.0, 10.0, note="median"))
    '12, 1.20x the floor of 10 (median)'
    """
    text = f"{metric.value:.4g}"
    if metric.floor:
        spread = f" +- {metric.floor_std:.2g}" if metric.floor_std is not None else ""
        of = " of" if metric.against == "the floor" else ""
        text += f", {metric.value / metric.floor:.2f}x {metric.against}{of} {metric.floor:.4g}{spread}"
    note = metric.note or "real against real"
    return f"{text} ({note})"


def describe_likelihood(measured: Measured) -> str:
    """A likelihood in words.

    >>> describe_likelihood(Measured("ode", 3.0, 0.1, 0.02, "bits/dim", 60.0))
    '3.0000 +- 0.1000 bits/dim; +- 0.0200 by its own draws; 60 steps an example'
    """
    text = f"{measured.value:.4f} +- {measured.error:.4f} {measured.unit}"
    text += f"; +- {measured.own:.4f} by its own draws" if measured.own else ""
    kind = "evaluations" if measured.name == "bound" else "steps"
    return text + (f"; {measured.steps:.0f} {kind} an example" if measured.steps else "")


def save_metrics(path: Path, config: Config, count: int, step: int, metrics: Sequence[Metric]) -> Path:
    """The distances as JSON, and all that is needed to repeat them."""
    how = {"samples": count, "sampler": config.sampler.to_dict()}
    distances = [{k: v for k, v in vars(metric).items() if v not in (None, "")} for metric in metrics]
    return _save_json(path, config, step, how | {"distances": distances})


def save_likelihoods(path: Path, config: Config, step: int, found: Sequence[Measured], count: int) -> Path:
    """The likelihoods as JSON, and all that is needed to repeat them."""
    how = {"examples": count, "options": config.eval.likelihood.to_dict()}
    how |= {"process": config.sampler.process.name, "x0": config.sampler.x0.name}
    return _save_json(path, config, step, how | {"likelihoods": [vars(measured) for measured in found]})


def _save_json(path: Path, config: Config, step: int, values: dict[str, Any]) -> Path:
    run = {"config": config.name, "step": step, "seed": config.seed, "scaling": config.scaling.name}
    with whole(path) as fresh:
        fresh.write_text(to_json(run | values))
    return path
