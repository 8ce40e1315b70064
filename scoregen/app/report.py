"""The results of a run: sample grids, the figure of a plane, the loss curve, the closing table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from scoregen.app.evaluate import Measured, Metric
from scoregen.app.figures import ACCENT, INK, figure, load_matplotlib, mosaic, plain, save
from scoregen.data import Dataset
from scoregen.data.table import SUFFIXES as TABLES
from scoregen.data.table import read, write
from scoregen.files import make_folder, to_json, whole
from scoregen.random import example_keys
from scoregen.samplers import OwnGrid
from scoregen.train.log import MetricsLog

if TYPE_CHECKING:
    from rich.table import Table

    from scoregen.app.config import Config
    from scoregen.app.sampling import Sampling
    from scoregen.cond import Cond
    from scoregen.metrics import Neighbours
    from scoregen.train import Model


def reference(dataset: Dataset, most: int = 10_000) -> np.ndarray:
    """The first held-out examples as they are trained on, or training examples if there are no held-out ones."""
    most = min(most, max(64, 2**26 // math.prod(dataset.shape)))  # of large examples fewer
    return dataset.examples(slice(0, most), test=dataset.test is not None)


def in_units(dataset: Dataset, x: np.ndarray) -> np.ndarray:
    """Examples `[N, ...]` in the units of the data, as real numbers with the channels last."""
    return x if dataset.units is None else dataset.units.values(x)


def kind_of(dataset: Dataset) -> str:
    """What the examples are called: points, series, images or volumes.

    >>> kind_of(Dataset("line", np.zeros((5, 2), np.float32)))
    'points'
    """
    return {1: "points", 2: "series", 3: "images", 4: "volumes"}.get(len(dataset.shape), "arrays")


def save_data(folder: Path, dataset: Dataset, samples: np.ndarray, cond: Cond | None = None) -> Path:
    """Write samples in the units of the data: a table as a table, everything else as samples.npy.

    A table also has the context and the class of each sample, `cond`, in the columns of the data.
    """
    form = dataset.form
    if form.suffix not in TABLES:
        with whole(folder / "samples.npy") as fresh, fresh.open("wb") as file:
            np.save(file, samples, allow_pickle=False)
        return folder / "samples.npy"
    columns, dtypes, label = dataset.columns or (), form.dtypes, None
    if cond is not None and cond.context is not None and dataset.context_units is not None:
        samples = np.concatenate([samples, dataset.context_units.decode(cond.context)], axis=1)
        columns, dtypes = (*columns, *form.context), (*dtypes, *form.context_dtypes)
    if cond is not None and cond.label is not None and dataset.classes is not None:
        label = form.label, np.asarray(dataset.classes)[cond.label]
    path = folder / f"samples{form.suffix}"
    with whole(path) as fresh:
        write(fresh, samples, columns, dtypes, label, form.headed, form.order)
    return path


def saved_data(folder: Path, dataset: Dataset, scaling: Any) -> np.ndarray:
    """The samples that `save_data` wrote, in the network's units."""
    if dataset.form.suffix in TABLES:
        header = "yes" if dataset.form.headed else "no"
        frame = read(folder / f"samples{dataset.form.suffix}", header, dataset.form.label)[0]
        if not dataset.form.headed:
            frame.columns = list(dataset.form.order)
        raw = frame[list(dataset.columns or ())].to_numpy(np.float64)
    else:
        raw = np.load(folder / "samples.npy", allow_pickle=False)
    z = raw if dataset.units is None else dataset.units.encode(raw)
    return np.asarray(scaling(z, example_keys(jax.random.key(0), len(z)))) if dataset.is_image else z


def save_pictures(folder: Path, images: np.ndarray) -> Path:
    """Write each image of uint8 `[N, H, W, C]` as a PNG into the folder `samples`, in place of those there."""
    inside = folder / "samples"
    make_folder(inside, "--out")
    for path in inside.glob("[0-9]*.png"):
        path.unlink()
    for i, image in enumerate(images):
        save_picture(inside / f"{i:05d}.png", image)
    return inside


def pixels(path: Path) -> np.ndarray:
    """The pixels of a picture in a file, uint8 `[H, W, 3]`."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def save_picture(path: Path, image: np.ndarray) -> Path:
    """Write an image of uint8 `[H, W, 1 or 3]` as a PNG."""
    from PIL import Image

    with whole(path) as fresh:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(fresh, format="png")
    return path


def heading(name: str, step: int, metrics: Sequence[Metric] = ()) -> str:
    """The title of a picture: the preset, the step, and the distance if it was computed.

    >>> heading("ddpm_digits", 1200), heading("ddpm_digits", 1200, [Metric("Frechet distance", 0.87, 0.28, 0.05)])
    ('ddpm_digits, step 1,200', 'ddpm_digits, step 1,200: Frechet distance 0.870, 3.1x the floor')
    """
    title = f"{name}, step {step:,}"
    if not metrics:
        return title
    first = metrics[0]
    standing = verdict(first)
    return f"{title}: {first.name} {numbers(first)[0]}" + (f", {standing}" if standing else "")


def save_samples(path: Path, samples: np.ndarray, real: np.ndarray, title: str = "", side: int = 480) -> Path:
    """A line of real images over a grid of samples, all uint8 `[N, H, W, C]`, with a title.

    The grid is about `side` pixels wide. The real images are spread evenly over `real`, which may be in the order of
    its classes.
    """
    columns = columns_of(len(samples))
    some = np.unique(np.linspace(0, len(real) - 1, min(columns, len(real))).round().astype(int))
    lines = [("data", [sheet(real[some], side, columns)]), ("samples", [sheet(samples, side, columns)])]
    return save(path, mosaic(lines, title))


def columns_of(count: int) -> int:
    """The columns of a nearly square grid."""
    return math.ceil(math.sqrt(count))


def save_nearest(
    path: Path, title: str, samples: np.ndarray, train: np.ndarray, near: Neighbours, most: int = 10
) -> Path:
    """The samples nearest to a training image, over these training images; all uint8 `[N, H, W, C]`."""
    first, nearest, _ = near.closest(most)
    count = len(first)
    lines = [
        (name, [sheet(images, 64 * count, count)])
        for name, images in (("samples", samples[first]), ("nearest in\ntraining", train[nearest]))
    ]
    return save(path, mosaic(lines, title))


def save_grid(path: Path, images: np.ndarray, title: str = "", names: Sequence[str] = (), side: int = 640) -> Path:
    """A grid of uint8 images `[N, H, W, 1 or 3]`, about `side` pixels wide, with a title.

    With `names`, image i is in column i mod len(names), under its name.
    """
    if not names:
        return save(path, mosaic([("", [sheet(images, side)])], title))
    room = side // max(len(names), len(images) // len(names))
    columns = [sheet(images[i :: len(names)], room, 1) for i in range(len(names))]
    return save(path, mosaic([("", columns)], title, names))


def sheet(images: np.ndarray, side: int, columns: int | None = None) -> np.ndarray:
    """uint8 images in one image of about `side` pixels, uint8 `[h, w, 3]`: a grid of `columns`, or nearly square.

    Each pixel becomes a block of whole pixels, so that nothing is blurred.
    """
    count, height, width, channels = images.shape
    columns = columns or columns_of(count)
    lines = math.ceil(count / columns)
    scale = max(1, min(round(side / (columns * (width + 1))), 32))
    gap = max(1, scale // 2)
    tall, wide = height * scale + gap, width * scale + gap
    page = np.full((lines * tall + gap, columns * wide + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * tall, gap + i % columns * wide
        block = np.repeat(np.repeat(image, scale, 0), scale, 1)
        page[y : y + height * scale, x : x + width * scale] = block if channels == 3 else block[..., :1]
    return page


def as_pictures(dataset: Dataset, *sets: np.ndarray) -> tuple[list[np.ndarray], str]:
    """Float images `[N, H, W, C]` or volumes `[N, D, H, W, C]` as bytes `[N, H, W, 1 or 3]`, and what they show.

    Black and white are the values between which 99 % of the data lie.
    """
    said = []
    shown = [reference(dataset, 1000), *sets]
    if len(dataset.shape) == 4:
        said.append(f"middle slice of {dataset.shape[0]}")
        shown = [x[:, x.shape[1] // 2] for x in shown]
    if dataset.shape[-1] not in (1, 3):
        said.append(f"first of {dataset.shape[-1]} channels")
        shown = [x[..., :1] for x in shown]
    low, high = np.quantile(shown[0].astype(np.float64), (0.005, 0.995))
    width = max(float(high - low), 1e-12)
    return [np.rint(255 * np.clip((x - low) / width, 0, 1)).astype(np.uint8) for x in shown[1:]], ", ".join(said)


def save_arrays(path: Path, dataset: Dataset, samples: np.ndarray, title: str = "", most: int = 64) -> Path:
    """Series as lines; float images and volumes as a grid of pictures under a line of real ones."""
    if len(dataset.shape) == 2:
        return save(path, series(dataset, samples, title))
    if len(dataset.shape) not in (3, 4):
        return save_marginals(path, dataset, samples, title)
    (real, drawn), said = as_pictures(dataset, reference(dataset), samples[:most])
    return save_samples(path, drawn, real, "\n".join(filter(None, (title, said))))


def series(dataset: Dataset, samples: np.ndarray, title: str = "", columns: int = 5, channels: int = 3) -> Any:
    """The figure of series `[N, L, C]`: a line of held-out ones over two lines of samples, with the same axes."""
    real, drawn = in_units(dataset, reference(dataset)), in_units(dataset, samples)
    lines = [("training data" if dataset.test is None else "held-out data", INK, real[:columns])]
    lines += [("samples", ACCENT, drawn[i : i + columns]) for i in (0, columns) if len(drawn) > i]
    page, panels = figure(len(lines), columns, size=(2.4 * columns, 0.8 + 1.7 * len(lines)), sharex=True, sharey=True)
    looks, shown = ("-", "--", ":"), min(channels, dataset.shape[-1])
    values = real[..., :shown].reshape(-1, shown)
    middle, by = np.zeros(shown), np.ones(shown)
    if apart := values.std(0).max() > 5 * values.std(0).min():  # such channels cannot share an axis
        middle, by = values.mean(0), np.where(values.std(0) > 0, values.std(0), 1.0)
    for panel_line, (name, color, examples) in zip(panels, lines, strict=True):
        panel_line[0].set_ylabel(name)
        for panel, example in zip(panel_line, examples, strict=False):
            for i in range(shown):
                panel.plot((example[:, i] - middle[i]) / by[i], color=color, lw=1.0, ls=looks[i])
        for panel in panel_line[len(examples) :]:
            panel.axis("off")
    for panel in panels[-1]:
        panel.set_xlabel("position")
    count = dataset.shape[-1]
    said = [f"the first {channels} of {count} channels"] if count > channels else []
    if shown > 1:
        said.append(", ".join(f"{look}: channel {i}" for i, look in enumerate(("solid", "dashed", "dotted")[:shown])))
    if apart:
        said.append("each channel minus its mean, by its standard deviation")
    page.suptitle("\n".join(filter(None, (title, "; ".join(said)))))
    return page


def save_completed(
    path: Path, sampling: Sampling, turns: np.ndarray, samples: np.ndarray, title: str = "", most: int = 12
) -> Path:
    """Three named lines: the held-out images of the first turns, their visible part, and the samples that complete it.

    `turns` `[N]` are those of the samples, see `Draws`.
    """
    count, scaling, control = min(most, len(samples)), sampling.scaling, sampling.control
    clean = sampling.clean_of(turns[:count])
    assert control is not None and clean is not None
    seen = control.seen(clean, 0.5 * (scaling.low + scaling.high))
    completed = f"completed,\n{count} of {len(samples)}" if len(samples) > count else "completed"
    lines = [
        (name, [sheet(scaling.to_bytes(np.asarray(images)), 64 * count, count)])
        for name, images in (("held out", clean), ("seen", seen), (completed, samples[:count]))
    ]
    return save(path, mosaic(lines, title))


def save_plane(path: Path, model: Model, dataset: Dataset, params: Any, samples: np.ndarray, title: str = "") -> Path:
    """Four panels of a two-dimensional run: data, samples, the learned score field, the samples' density.

    The panels show the range of the data. Samples outside it are drawn at the edge, and the title gives their share.

    The score is drawn at the level whose sigma / alpha is nearest to 0.2. The shade below it is the density of the
    data, smoothed with the noise of this level: the exact density if it is known, else a histogram. The lines of the
    last panel enclose 50, 80 and 95 % of the data.
    """
    from scipy.ndimage import gaussian_filter

    process, shown, units = model.process, reference(dataset), dataset.units
    # All is drawn in the network's units; only the axes are labelled in the units of the data.
    shift, by = (np.zeros(2), np.ones(2)) if units is None else (units.values(np.zeros(2)), np.asarray(units.std))
    by = np.where(by > 0, by, 1.0)
    held = shown[: len(samples)]
    reach = 1.15 * float(np.quantile(np.abs(shown), 0.999))
    axis = np.linspace(-reach, reach, 161)
    xx, yy = np.meshgrid(axis, axis)
    plane = jnp.asarray(np.stack([xx, yy], -1).reshape(-1, 2), jnp.float32)

    if dataset.log_density is not None:
        truth = np.exp(np.asarray(dataset.log_density(plane))).reshape(xx.shape)
        truth_name = "exact"
    else:
        truth, truth_name = (
            _smooth_histogram(shown, axis),
            f"{'training' if dataset.test is None else 'held-out'} data's",
        )

    t = OwnGrid()(process, None)
    t = t[jnp.argmin(jnp.abs(jnp.log(process.sigma(t) / process.alpha(t)) - jnp.log(0.2)))]
    arrows = np.linspace(-reach, reach, 23)
    ax_, ay_ = np.meshgrid(arrows, arrows)
    points = jnp.asarray(np.stack([ax_, ay_], -1).reshape(-1, 2), jnp.float32)
    predict = jax.jit(lambda params, x, t: model.denoiser(params)(x, t).score)
    score = np.asarray(predict(params, process.alpha(t).astype(points.dtype) * points, jnp.full(len(points), t)))
    norm = np.linalg.norm(score, axis=1, keepdims=True)
    # Lengths on a log scale, since the score grows a hundredfold away from the data and only its direction matters.
    field = score / np.maximum(norm, 1e-9) * np.log1p(norm)

    noise = float(process.sigma(t) / process.alpha(t))

    page, (axes,) = figure(1, 4, size=(13.2, 3.9))
    page.suptitle(title)
    range_of = (shift + by * np.array([[-reach], [reach]])).T
    across, up = shift[0] + by[0] * axis, shift[1] + by[1] * axis
    dots = {"s": 3 if len(samples) > 500 else 12, "linewidths": 0, "alpha": 0.5}
    axes[0].scatter(*(shift + by * held).T, color=INK, **dots)
    axes[0].set_title(f"data: {len(held):,} {'training' if dataset.test is None else 'held-out'} points")
    out = scatter(axes[1], shift + by * samples, range_of, ACCENT, **dots)
    axes[1].set_title(f"samples: {len(samples):,}" + (f", {percent(out)} outside, at the edge" if out else ""))
    there = gaussian_filter(truth, noise / (axis[1] - axis[0]))
    # Light grey through vmax and not through transparency, which would draw every edge twice.
    axes[2].contourf(across, up, there, levels=12, cmap="Greys", vmin=0, vmax=there.max() / 0.6)
    axes[2].quiver(*(shift + by * np.asarray(points)).T, *(by * field).T, color=ACCENT, width=0.004, angles="xy")
    axes[2].set_title(f"arrows: learned score\nshade: {truth_name} density, sigma/alpha = {plain(noise)}")
    axes[3].contourf(across, up, _smooth_histogram(samples, axis), levels=16, cmap="Oranges")
    axes[3].contour(across, up, truth, levels=_holding(truth, (0.95, 0.8, 0.5)), colors=INK, linewidths=0.6)
    axes[3].set_title("shade: density of the samples\nlines: 50, 80, 95 % of the data")
    names = coordinates(dataset)
    for panel in axes:
        aspect = "equal" if units is None else "auto"
        panel.set(xlim=range_of[0], ylim=range_of[1], aspect=aspect, xlabel=names[0])
    axes[0].set_ylabel(names[1])
    return save(path, page)


def coordinates(dataset: Dataset) -> list[str]:
    """The name of each coordinate of an example: the name of its column, or else its index.

    >>> coordinates(Dataset("series", np.zeros((5, 2, 2), np.float32)))
    ['coordinate 0, 0', 'coordinate 0, 1', 'coordinate 1, 0', 'coordinate 1, 1']
    """
    if dataset.columns is not None:
        return list(dataset.columns)
    return [f"coordinate {', '.join(map(str, place))}" for place in np.ndindex(*dataset.shape)]


def percent(share: float) -> str:
    """A share in percent. A share above 0 is never shown as 0 %, and a share below 1 never as 100 %.

    >>> percent(0.03), percent(0.0004), percent(0.9999), percent(1.0)
    ('3 %', 'under 1 %', 'over 99 %', '100 %')
    """
    rounded = round(100 * share)
    if rounded == 0 and share > 0:
        return "under 1 %"
    return "over 99 %" if rounded == 100 and share < 1 else f"{rounded} %"


def scatter(panel: Any, points: np.ndarray, ranges: np.ndarray, color: str, **look: Any) -> float:
    """Draw points `[N, 2]`. Points outside `ranges` `[2, 2]` become crosses at the edge. Returns their share."""
    low, high = ranges.T
    off = ((points < low) | (points > high)).any(axis=1)
    panel.scatter(*points[~off].T, color=color, **look)
    if off.any():
        panel.scatter(*np.clip(points[off], low, high).T, color=color, marker="x", s=16, lw=0.8, clip_on=False)
    return float(off.mean())


def save_marginals(path: Path, dataset: Dataset, samples: np.ndarray, title: str = "", most: int = 12) -> Path:
    """Histograms of the first `most` coordinates, samples over held-out data, for points of any dimension.

    The title says how many coordinates are shown. Each axis covers the data and 99 % of the samples.
    """
    return save(path, marginals(dataset, samples, title, most))


def marginals(dataset: Dataset, samples: np.ndarray, title: str = "", most: int = 12) -> Any:
    """The figure of `save_marginals`."""
    drawn, held = (
        in_units(dataset, points).reshape(len(points), -1).astype(np.float64)
        for points in (samples, reference(dataset))
    )
    names, dims = coordinates(dataset), drawn.shape[1]
    shown = min(most, dims)
    columns = min(4, shown)
    lines = -(-shown // columns)
    page, panels = figure(lines, columns, size=(max(5.0, 3.0 * columns), 0.6 + 2.1 * lines))
    real = "training data" if dataset.test is None else "held-out data"
    extended = False
    for i, panel in enumerate(panels.flat):
        if i >= shown:
            panel.axis("off")
            continue
        low, high = np.quantile(held[:, i], (0.001, 0.999))
        first, last = np.quantile(drawn[:, i], (0.005, 0.995))
        room = 0.25 * (high - low)
        begin, end = min(low, first), max(high, last)
        if begin < low - room or end > high + room:
            extended = True
        if end - begin <= 1e-6 * max(abs(begin), abs(end), 1e-6):  # all values are equal
            begin, end = begin - 0.5 * max(abs(begin), 1e-6), end + 0.5 * max(abs(end), 1e-6)
        # So few bins that of few points most do not hold just one or none.
        bins = np.linspace(begin, end, int(np.clip(2 * math.sqrt(min(len(drawn), len(held))), 10, 50)))
        # Normalized by all examples, also those outside, since otherwise the histogram would look complete.
        for points, look in (
            (held, {"color": INK, "alpha": 0.35, "label": real}),
            (drawn, {"histtype": "step", "color": ACCENT, "lw": 1.5, "label": "samples"}),
        ):
            weights = np.full(len(points), 1 / (len(points) * (bins[1] - bins[0])))
            panel.hist(points[:, i], bins.tolist(), weights=weights, **look)
        panel.set_xlabel(names[i] if len(names[i]) <= 40 else f"{names[i][:39]}…")
        panel.set_yticks([])
        panel.spines[["top", "right", "left"]].set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("density")
    said = f"{shown} of {dims} coordinates, the first ones" if shown < dims else f"all {dims} coordinates"
    if dims == 1:
        said = ""
    if extended:
        extension = "axes are extended to where 99 % of the samples are"
        said = ("; " if columns > 1 else "\n").join(filter(None, (said, extension)))
    page.suptitle("\n".join(filter(None, (title, said))))
    page.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return page


def _smooth_histogram(points: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """A density on the grid axis x axis: a histogram, smoothed over two cells."""
    from scipy.ndimage import gaussian_filter

    step = axis[1] - axis[0]
    edges = np.append(axis - step / 2, axis[-1] + step / 2)
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=(edges, edges))
    return np.asarray(gaussian_filter(counts / (len(points) * step**2), 2.0))


def _holding(density: np.ndarray, shares: Sequence[float]) -> list[float]:
    """The levels above which a density on an even grid holds these shares of its mass, largest share first."""
    falling = np.sort(density, axis=None)[::-1]
    mass = np.cumsum(falling) / falling.sum()
    # A set, sorted, since the levels must increase strictly, also for a density with few values.
    return sorted({float(falling[np.searchsorted(mass, share)]) for share in shares})


SMOOTHED = 20  # the smoothed loss averages over 1 / SMOOTHED of the losses on each side


def curve(workdir: Path, title: str = "", loss: str = "loss") -> Any:
    """The figure of `save_curve`."""
    load_matplotlib()
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    lines = MetricsLog.read(workdir)
    page, ((panel,),) = figure(size=(7, 4))
    # A loss that was not finite is null in the file.
    steps, losses = values_of(lines, "loss")
    reach = len(losses) // SMOOTHED
    if reach:
        panel.plot(steps, losses, color=INK, lw=0.8, alpha=0.3, label="training loss, single batches")
        label = f"training loss, mean of {span_of(steps, reach):,} steps"
        panel.plot(steps, smooth(losses, reach), color=INK, lw=1.8, label=label)
    elif len(losses):
        panel.plot(steps, losses, "o-", color=INK, lw=1.2, ms=4, label="training loss, single batches")
    at, held = values_of(lines, "held_out_loss")
    if len(held):
        panel.plot(at, held, "o-", color=ACCENT, lw=1.2, ms=5, label="held-out loss")
    panel.set(xlabel="training step", ylabel=loss, title=title)
    if len(losses) > 5 and (losses > 0).all():  # sliced score matching is negative: linear axis
        panel.set_yscale("log")
        low, high = panel.get_ylim()
        if high < 5 * low:
            panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        elif high < 200 * low:  # powers of ten alone would give too few ticks
            panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if panel.lines:
        panel.legend()
    panel.spines[["top", "right"]].set_visible(False)
    return page


def values_of(lines: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps of a value in metrics.jsonl, such as a loss, and its finite values."""
    found = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    steps, losses = np.array(found, np.float64).reshape(-1, 2).T
    return steps, losses


def smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """For each value, the mean over `reach` values on each side.

    At the start, where losses fall steeply, the mean takes the same number of values on both sides: all that there are
    on the left. At the end it takes `reach` values on the left and the remaining values on the right.

    >>> smooth(np.array([9.0, 2.0, 1.0, 6.0, 2.0]), 1).tolist()
    [9.0, 4.0, 3.0, 3.0, 4.0]
    """
    sums, at = np.concatenate([[0.0], np.cumsum(values)]), np.arange(len(values))
    first, last = np.maximum(at - reach, 0), np.minimum(at + np.minimum(at, reach), len(values) - 1)
    return (sums[last + 1] - sums[first]) / (last + 1 - first)


def span_of(steps: np.ndarray, reach: int) -> int:
    """The number of steps that a mean over `reach` values on each side covers."""
    return (2 * reach + 1) * round((steps[-1] - steps[0]) / (len(steps) - 1))


def save_curve(path: Path, workdir: Path, title: str = "", loss: str = "loss") -> Path:
    """Plot the losses in the run's metrics.jsonl over the steps: of each logged batch, smoothed, and held-out.

    `loss` labels the axis.
    """
    return save(path, curve(workdir, title, loss))


def so_many(count: int, what: str) -> str:
    """A number of things.

    >>> so_many(1, "level"), so_many(1200, "level")
    ('1 level', '1,200 levels')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


# What explains the closing table. A wheel holds the help text, but not the page.
PAGE = "docs/manual/results.md"


def table(
    title: str,
    facts: Sequence[tuple[str, str]],
    metrics: Sequence[Metric],
    files: Sequence[Path],
    command: str = "eval",
) -> Table:
    """The closing table: the training, the sampling, the distances and the files."""
    from rich.table import Table

    found = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    found.add_column(style="bold", no_wrap=True)
    found.add_column(overflow="fold")
    for name, value in [*facts, *zip((metric.name for metric in metrics), describe(metrics), strict=True)]:
        found.add_row(name, value)
    for i, path in enumerate(files):
        found.add_row("files" if i == 0 else "", str(path))
    found.add_row("explained", f"see scoregen {command} --help; {PAGE}")
    return found


def describe(metrics: Sequence[Metric]) -> list[str]:
    """One line per metric, in columns: value, floor, comparison. A metric with a `text` gives this text instead.

    >>> for line in describe([Metric("sliced", 0.0205, 0.027, 0.0049), Metric("MMD", 0.03, 0.015, 0.001)]):
    ...     print(line)
    0.0205   floor 0.0270 +- 0.0049   at the floor
    0.0300   floor 0.0150 +- 0.0010   2.0x the floor
    >>> describe([Metric("memorised", 0.1, 1.1, text="0.1 % of the samples"), Metric("distance", 12.0)])
    ['0.1 % of the samples', '12']
    """
    cells = [None if metric.text else (*numbers(metric), verdict(metric)) for metric in metrics]
    wide = [max((len(cell[i]) for cell in cells if cell), default=0) for i in range(2)]
    return [
        metric.text if cell is None else "   ".join((cell[0].ljust(wide[0]), cell[1].ljust(wide[1]), cell[2])).rstrip()
        for metric, cell in zip(metrics, cells, strict=True)
    ]


def numbers(metric: Metric) -> tuple[str, str]:
    """The value with its error, and the floor, rounded to two digits of the floor's spread, or without it to three."""
    spread = metric.floor_std
    digits = 1 - math.floor(math.log10(spread)) if spread and math.isfinite(spread) else -1
    if not 0 <= digits <= 6 or not math.isfinite(metric.value):
        floor = "" if metric.floor is None else f"floor {plain(metric.floor, 3)}"
        error = "" if metric.std is None else f" +- {metric.std:.2g}"
        return plain(metric.value, 3) + error, floor + (f" +- {spread:.2g}" if spread and floor else "")
    floor = "" if metric.floor is None else f"floor {metric.floor:.{digits}f} +- {spread:.{digits}f}"
    error = "" if metric.std is None else f" +- {metric.std:.{digits}f}"
    return f"{metric.value:.{digits}f}{error}", floor


def verdict(metric: Metric) -> str:
    """Compare a value with its floor: up to two standard deviations above, they cannot be distinguished.

    If the floor's standard deviation is not known, as of a single draw, the values alone are compared.

    >>> verdict(Metric("a", 0.0205, 0.027, 0.0049)), verdict(Metric("a", 0.0513, 0.027, 0.0049))
    ('at the floor', '1.9x the floor')
    >>> verdict(Metric("a", 0.029, 0.027, 0.0049)), verdict(Metric("a", 0.002, 0.027, 0.0049))
    ('at the floor', 'far below the floor: too near to the real data')

    A floor that is 0 up to its spread, as that of KID, gives no ratio. A metric that is better if higher is compared in
    both directions, also within its own error.

    >>> verdict(Metric("KID", 0.002, -0.0001, 0.0004)), verdict(Metric("recall", 0.7, 0.9, 0.02, better="higher"))
    ('above the floor', 'below real data')
    """
    value, floor, spread = metric.value, metric.floor, metric.floor_std or 0.0
    if floor is None or (not floor and metric.better == "lower"):
        return ""
    both = math.hypot(spread, metric.std or 0.0)
    if metric.better == "higher":
        noise = 2 * both
        return "as real data" if abs(value - floor) <= noise else f"{'below' if value < floor else 'above'} real data"
    if value <= floor + 2 * spread:
        far = value < 0.5 * floor and value < floor - 3 * both
        return "far below the floor: too near to the real data" if far else "at the floor"
    if floor <= spread:
        return "above the floor"
    ratio = value / floor
    return f"{ratio:.{0 if ratio >= 10 else 1 if ratio >= 1.05 else 2}f}x the floor"


def describe_likelihood(measured: Measured) -> str:
    """A likelihood as text, rounded to two digits of its standard error.

    >>> describe_likelihood(Measured("ode", 3.0, 0.1, 0.02, "bits/dim", 60.0))
    '3.00 +- 0.10 bits/dim, in 60 solver steps'
    """
    error = measured.error
    digits = max(0, min(6, 1 - math.floor(math.log10(error)))) if error > 0 and math.isfinite(error) else 4
    kind = "network evaluations" if measured.name == "bound" else "solver steps"
    return f"{measured.value:.{digits}f} +- {error:.{digits}f} {measured.unit}" + (
        f", in {measured.steps:.0f} {kind}" if measured.steps else ""
    )


def save_metrics(path: Path, config: Config, count: int, step: int, metrics: Sequence[Metric]) -> Path:
    """Write the distances as JSON, with all settings that are needed to repeat them."""
    how = {"samples": count, "sampler": config.sampler.to_dict()}
    distances = [{k: v for k, v in vars(metric).items() if v is not None and v != ""} for metric in metrics]
    return _save_json(path, config, step, how | {"distances": distances})


def save_likelihoods(path: Path, config: Config, step: int, found: Sequence[Measured], count: int) -> Path:
    """Write the likelihoods as JSON, with all settings that are needed to repeat them."""
    how = {"examples": count, "options": config.eval.likelihood.to_dict()}
    how |= {"process": config.sampler.process.name, "x0": config.sampler.x0.name}
    return _save_json(path, config, step, how | {"likelihoods": [vars(measured) for measured in found]})


def _save_json(path: Path, config: Config, step: int, values: dict[str, Any]) -> Path:
    run = {"config": config.name, "step": step, "seed": config.seed, "scaling": config.scaling.name}
    with whole(path) as fresh:
        fresh.write_text(to_json(run | values))
    return path
