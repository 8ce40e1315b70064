"""The figure that explains the choice of the noise levels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from scipy.special import gammaln

from scoregen.app.figures import ACCENT, INK, figure, save
from scoregen.contrib.design.techniques import Levels, coverage, final_variance


def sampled_distances(x: np.ndarray, most: int = 1500) -> np.ndarray:
    """The distances of all pairs among `most` examples `[N, D]`, evenly spaced in the data's order: `[pairs]`.

    >>> sampled_distances(np.array([[0.0], [1.0], [3.0]])).tolist()
    [1.0, 3.0, 2.0]
    """
    some = x[np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).astype(int))].astype(np.float64)
    some -= some.mean(axis=0)
    norms = np.square(some).sum(axis=1)
    squares = norms[:, None] + norms - 2 * some @ some.T
    return np.sqrt(np.maximum(squares[np.triu_indices(len(some), 1)], 0))


def save_figure(path: Path, distances: np.ndarray, dims: int, found: Levels, now: Levels | None) -> Path:
    """Four panels: the distances in the data, the overlap of neighbouring levels, the levels, the step size.

    Args:
        path: the path of the PNG.
        distances: some of the distances between examples, `[pairs]`.
        dims: the number of dimensions D.
        found: the design.
        now: the present levels of the configuration, for comparison.
    """
    assert found.step_size is not None and found.steps is not None

    page, axes = figure(2, 2, size=(11, 7.6))
    panel = axes[0, 0]
    heights, _, _ = panel.hist(distances, 80, color=INK, alpha=0.35)
    tall = float(np.max(heights))
    panel.vlines(found.sigma_max, 0, tall, color=ACCENT, lw=2, label=f"sigma_max designed: {found.sigma_max:.4g}")
    if now:
        panel.vlines(now.sigma_max, 0, tall, color=INK, ls=":", lw=2, label=f"sigma_max now: {now.sigma_max:.4g}")
    panel.set(xlabel="distance", ylabel="pairs of examples", xlim=(0, None), ylim=(0, 1.3 * tall), yticks=[])
    panel.set_title("sigma_max: the largest distance in the data")

    panel = axes[0, 1]
    root, half = math.sqrt(dims), math.sqrt(0.5)
    begin, end = found.gamma * (root - 3 * half), found.gamma * (root + 3 * half)
    r = np.linspace(max(0.0, root - 5 * half), end + 1.5 * half, 600)
    here, there = _radial(r, dims, 1.0), _radial(r, dims, found.gamma)
    inside = (r >= begin) & (r <= end)
    panel.plot(r, here, color=INK, label="noise of one level")
    panel.plot(r, there, color=ACCENT, label=f"of the next noisier, {found.gamma:.4g} times it; dotted: within 3 std")
    panel.fill_between(r[inside], here[inside], color=INK, alpha=0.25, lw=0)
    edges = [edge for edge in (begin, end) if edge > r[0]]
    panel.vlines(edges, 0, here.max(), color=ACCENT, ls=":", lw=1.5)
    panel.set(xlabel="norm of the noise / sigma", ylabel="density", ylim=(0, 1.3 * here.max()), yticks=[])
    panel.set_title(f"ratio: {coverage(dims, found.gamma):.0%} of a level lies where the next does")

    panel = axes[1, 0]
    for name, it, color, size in (("designed", found, ACCENT, 3), ("now", now, INK, 2)):
        if it:
            sigmas = np.geomspace(it.sigma_max, it.sigma_min, it.levels)
            panel.plot(sigmas, marker="o", ms=size, lw=0.8, color=color, label=f"{name}: {it.levels} levels")
    panel.set(xlabel="level, in the order of sampling", ylabel="sigma", yscale="log")
    panel.set_title(f"levels: from {found.sigma_max:.4g} to {found.sigma_min:.4g} at that ratio")

    panel = axes[1, 1]
    best = final_variance(found.step_size, found.sigma_min, found.gamma, found.steps)
    steps = np.geomspace(0.02 * found.step_size, min(8 * found.step_size, found.sigma_min**2), 300)
    panel.plot(
        steps,
        [final_variance(step, found.sigma_min, found.gamma, found.steps) for step in steps],
        color=INK,
        label=f"after {found.steps} step{'s' * (found.steps > 1)} at a level",
    )
    panel.plot(
        [found.step_size],
        [best],
        "o",
        color=ACCENT,
        ms=8,
        label=f"step_size {found.step_size:.3g}, variance {best:.4g}",
    )
    panel.axhline(1, color=INK, ls="--", lw=1, label="1: the level's own variance")
    top = max(found.gamma**2, 1 + 2 * (best - 1))
    panel.set(xlabel="step_size", ylabel="variance / sigma²", xscale="log")
    panel.set_ylim(1 - 0.1 * (top - 1), 1 + 1.5 * (top - 1))
    panel.set_title("step_size: where the variance comes nearest to 1")

    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.legend(frameon=False, fontsize=9, loc="upper left" if panel in axes[0] else "upper center")
    return save(path, page)


def _radial(r: np.ndarray, dims: int, sigma: float) -> np.ndarray:
    """The exact density of the norm of N(0, sigma^2 I) in D dimensions: a chi distribution, scaled."""
    with np.errstate(divide="ignore", invalid="ignore"):
        powers = 0.0 if dims == 1 else (dims - 1) * np.log(r)  # at r = 0 it is -inf, and the density 0
    constant = math.log(2) - dims / 2 * math.log(2 * sigma**2) - gammaln(dims / 2)
    return np.exp(constant + powers - r**2 / (2 * sigma**2))
