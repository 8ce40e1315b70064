"""The figures of docs/theory.md and of the manual, drawn by the library, and the gallery of the presets.

python docs/figures.py                   all figures, in about a minute on two CPU cores
python docs/figures.py kernels bound     these
python docs/figures.py gallery           all of the gallery of README and site, in about 40 minutes: it trains
python docs/figures.py digits completed  these of the gallery; a run that is in runs/gallery is not trained again

Every number in the figures of docs/theory.md is computed here.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.colors import LinearSegmentedColormap

from scoregen.app import figures as drawing
from scoregen.app.figures import ACCENT, GREEN, GREY, INK, ORANGE
from scoregen.denoiser import Denoiser, Prediction
from scoregen.losses import DSM, VLB, WEIGHTINGS, Objective
from scoregen.losses.bound import decoder_nll, prior_kl, step_kl
from scoregen.nets import MLP
from scoregen.process import (
    EDM,
    VE,
    VP,
    Chain,
    CosineVP,
    Flow,
    Noised,
    Process,
    SubVP,
    betas,
    cosine,
    ddpm,
    ncsn,
    perturb,
    posterior,
    sigmas,
)
from scoregen.samplers import Hold, Langevin, OwnGrid, Sampler
from scoregen.testing import Mixture, gaussian
from scoregen.train import Model, fit

mpl.use("agg")
drawing.load_matplotlib()
FOLDER = Path(__file__).parent / "img"
SAND, SEA = ORANGE, GREEN
INKS = LinearSegmentedColormap.from_list("inks", ["#ffffff", INK])
EMBERS = LinearSegmentedColormap.from_list("embers", ["#ffffff", "#f0d9c8", ACCENT, "#6b2417"])

LINE = Mixture((0.3, 0.7), ((-1.3,), (0.8,)), (0.25, 0.35))
APART = Mixture((0.2, 0.8), ((-2.0, 0.8), (2.0, -0.8)), (0.4, 0.4))
THREE = Mixture((0.3, 0.4, 0.3), ((-1.2, -0.6), (0.0, 1.1), (1.2, -0.6)), (0.25, 0.25, 0.25))


def save(figure: Any, name: str) -> Path:
    """Write docs/img/theory_NAME.png."""
    path = FOLDER / f"theory_{name}.png"
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path


def mesh(reach: float, n: int) -> tuple[np.ndarray, jax.Array]:
    """An axis `[n]` and all points of its square `[n * n, 2]`."""
    axis = np.linspace(-reach, reach, n)
    return axis, jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), jnp.float32)


def dissolving() -> Path:
    """The marginals of a mixture over t, and the curves along which the share of mass below stays the same."""
    processes = {"VP": (VP(), 3.2), "VE": (VE(0.01, 6.0), 12.0), "Flow": (Flow(), 3.2)}
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for panel, (name, (process, reach)) in zip(axes, processes.items(), strict=True):
        t = jnp.linspace(process.t_min, process.t_max, 240)
        x = np.linspace(-reach, reach, 1201)
        at = jax.vmap(lambda t, process=process, x=x: LINE.log_prob(jnp.asarray(x)[:, None], *kernel(process, t)))
        density = np.exp(np.asarray(at(t), np.float64)).T
        shown = (density / density.max(0)) ** 0.7
        panel.imshow(
            shown, extent=(0, 1, -reach, reach), origin="lower", aspect="auto", cmap=INKS, interpolation="bilinear"
        )
        below = np.cumsum(density, 0) / density.sum(0)
        for share in (0.02, 0.1, 0.2, 0.28, 0.32, 0.45, 0.65, 0.85, 0.98):
            path = [np.interp(share, column, x) for column in below.T]
            panel.plot(np.asarray(t), path, color=ACCENT, lw=1)
        panel.set(title=name, xlabel="time t (0: data, 1: noise)", xlim=(0, 1))
    axes[0].set_ylabel("x")
    return save(figure, "dissolving")


def kernel(process: Process, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """alpha and sigma."""
    return process.alpha(t), process.sigma(t)


def kernels() -> Path:
    """alpha, sigma and lam of every process along its own grid, chains as dots on their continuous counterparts."""
    top = {
        "VP; dots: ddpm": (VP(), ddpm(), INK, "-"),
        "CosineVP; dots: cosine": (CosineVP(), cosine(), ACCENT, "-"),
        "SubVP": (SubVP(), None, GREY, "--"),
        "Flow": (Flow(), None, SAND, "-"),
        "betas: eight by hand": (None, betas(), SEA, "-"),
    }
    bottom = {
        "VE; dots: ncsn": (VE(0.01, 50.0), ncsn(0.01, 50.0, 30), INK, "-"),
        "EDM": (EDM(), None, ACCENT, "-"),
        "sigmas: six by hand": (None, sigmas(), SEA, "-"),
    }
    figure, axes = plt.subplots(2, 3, figsize=(13.5, 5.8), layout="constrained", sharex=True)
    for line, group in zip(axes, (top, bottom), strict=True):
        drawn = line if group is top else line[1:]  # in the lower row, alpha is 1 for all
        for name, (process, chain, color, style) in group.items():
            if process is not None:
                t = OwnGrid()(process, 301)[::-1]
                values_of = (*kernel(process, t), process.logsnr(t))
                for panel, values in zip(drawn, values_of[-len(drawn) :], strict=True):
                    panel.plot(np.linspace(0, 1, 301), values, color=color, ls=style, lw=1.8, label=name)
            if chain is not None:
                t = OwnGrid()(chain, min(30, chain.levels))[::-1]
                values_of = (*kernel(chain, t), chain.logsnr(t))
                for panel, values in zip(drawn, values_of[-len(drawn) :], strict=True):
                    label = name if process is None else None
                    panel.plot(np.linspace(0, 1, len(t)), values, "o", ms=3.5, color=color, mew=0, label=label)
        line[2].set_ylim(-12, 14)
        line[2].axhline(0, color=INK, lw=0.5, alpha=0.4)
        entries = line[1].get_legend_handles_labels()
        line[2].legend(*entries, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for panel, what in zip(line, ("alpha: what is left of the data", "sigma: the noise", "log-SNR"), strict=True):
            panel.set_title(what, fontsize=11)
            panel.spines[["top", "right"]].set_visible(False)
    processes = [made for pair in bottom.values() for made in pair[:2] if made is not None]
    assert all(np.all(np.asarray(made.alpha(OwnGrid()(made, None))) == 1) for made in processes)
    axes[1, 0].axhline(1, color=INK, lw=1.8)
    axes[1, 0].text(0.5, 0.94, "1 for every process of this row", ha="center", va="top", color=INK)
    axes[1, 0].set_ylim(0, 1.1)
    axes[1, 1].set_yscale("log")
    for panel in axes[1]:
        panel.set_xlabel("share of the way along the grid")
    return save(figure, "kernels")


def pitfalls() -> Path:
    """Langevin dynamics from noise with the exact score, plain and annealed, at the same number of evaluations."""
    process, count, levels, steps = ncsn(0.05, 8.0, 25), 4000, 25, 60
    denoiser, start = APART.denoiser(process), 3.0 * jax.random.normal(jax.random.key(0), (count, 2))
    # All evaluations at the least noisy level, with steps as large as the width of the modes allows.
    plain = jax.jit(Langevin(step_size=0.02, steps=levels * steps))
    annealed = Sampler(Hold(), Langevin(step_size=0.1 * 0.05**2, steps=steps))
    clouds = {
        "the data": APART.sample(jax.random.key(3), count),
        "plain Langevin, started from noise": plain(denoiser, jax.random.key(1), start, jnp.zeros(count, jnp.int32)),
        "annealed Langevin, started from noise": annealed(denoiser, jax.random.key(2), (count, 2)),
    }
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.3), layout="constrained")
    for panel, (name, cloud) in zip(axes, clouds.items(), strict=True):
        x = np.asarray(cloud)
        left = np.linalg.norm(x - APART.means[0], axis=1) < np.linalg.norm(x - APART.means[1], axis=1)
        panel.scatter(*x.T, s=3, lw=0, alpha=0.35, color=INK if name == "the data" else ACCENT)
        for share, (a, b) in zip((left.mean(), 1 - left.mean()), APART.means, strict=True):
            panel.text(a, b + 1.75, f"{100 * share:.0f} %", ha="center", fontsize=15, color=INK)
        panel.set(title=name, xlim=(-4.6, 4.6), ylim=(-3.3, 3.5), aspect="equal", xticks=[], yticks=[])
    return save(figure, "pitfalls")


def learned(process: Process, data: Mixture, steps: int = 3000) -> Denoiser:
    """A perceptron trained by denoising score matching."""
    model = Model(process, MLP(width=128), unit_input=True)
    points = np.asarray(data.sample(jax.random.key(1), 256 * steps))  # one epoch: each point is used once
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    state = fit(model, points, Objective(DSM()), optimizer, steps, batch=256, ema=None, progress=False)
    return model.denoiser(state.params)


def scarce() -> Path:
    """Where a learned score is wrong, at a low and at a high noise level; and the score beside a manifold."""
    process = ncsn(0.1, 4.0, 8, data_std=2.0)  # the deviation of these data
    denoiser = learned(process, APART)
    axis, points = mesh(4.5, 121)
    figure, axes = plt.subplots(1, 3, figsize=(12.4, 3.7), layout="constrained")
    drawn: Any = None
    for panel, level in zip(axes, (0, 5), strict=False):
        t = jnp.full(len(points), level)
        sigma = float(process.sigma(t[0]))
        off = np.linalg.norm(np.asarray(denoiser(points, t).score - APART.score(process, points, t)), axis=1)
        truth = np.exp(np.asarray(APART.log_prob(points, 1.0, sigma))).reshape(121, 121)
        drawn = panel.imshow(
            np.log10(np.maximum(sigma * off, 1e-9)).reshape(121, 121),
            extent=(-4.5, 4.5, -4.5, 4.5),
            origin="lower",
            cmap=EMBERS,
            vmin=-3,
            vmax=1,
            interpolation="bilinear",
        )
        panel.contour(axis, axis, truth, levels=truth.max() * np.array([0.01, 0.1, 0.5]), colors=INK, linewidths=0.9)
        panel.set(title=f"sigma times the error of a learned score,\nsigma = {sigma:.1f}", xticks=[], yticks=[])
    bar = figure.colorbar(drawn, ax=list(axes[:2]), ticks=[-3, -2, -1, 0, 1], shrink=0.9, pad=0.02)
    bar.ax.set_yticklabels(["0.001", "0.01", "0.1", "1", "10"])

    angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    circle = Mixture((1 / 4000,) * 4000, tuple(zip(np.cos(angles), np.sin(angles), strict=True)), (0.0,) * 4000)
    noise = np.geomspace(0.01, 2, 40)
    chain = sigmas(tuple(float(s) for s in noise))
    x = jnp.tile(jnp.array([[1.1, 0.0]]), (40, 1))
    size = np.linalg.norm(np.asarray(circle.score(chain, x, jnp.arange(40))), axis=1)
    axes[2].loglog(noise, size, color=ACCENT, lw=2)
    axes[2].loglog(noise, 0.1 / noise**2, color=INK, lw=1, ls=":")
    axes[2].text(0.42, 0.1, "0.1 / sigma²", color=INK, ha="right")
    axes[2].set(title="size of the score at a distance of 0.1\nfrom a circle of data", xlabel="sigma", xlim=(0.008, 3))
    figure.get_layout_engine().set(rect=(0, 0, 0.985, 1))
    axes[2].set_ylim(0.03, 2000)
    axes[2].spines[["top", "right"]].set_visible(False)
    return save(figure, "scarce")


def weightings() -> Path:
    """Every weighting over the log-SNR, as the weight of an error of x0 and as the weight of an error of eps."""
    process = VP()
    lam = np.linspace(-9, 9, 400)
    t = process.time(jnp.asarray(lam, jnp.float32))
    looks = {
        "constant": ("constant: x0", SAND, "-"),
        "sigma2": ("sigma2: eps, dsm", INK, "-"),
        "likelihood": ("likelihood, on VP", ACCENT, "-"),
        "sigmoid": ("sigmoid, on VP", ACCENT, "--"),
        "min_snr": ("min_snr, gamma 5", GREY, "-"),
        "p2": ("p2, gamma 1", GREY, "--"),
        "edm": ("edm, data_std 1", INK, "--"),
    }
    figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", sharex=True)
    for name, (label, color, style) in looks.items():
        look = {"color": color, "ls": style, "lw": 1.8}
        if name in ("constant", "sigma2"):  # broad, since other lines cover them
            look |= {"lw": 5.0, "alpha": 0.4}
        w = np.asarray(WEIGHTINGS[name]()(process, t), np.float64)
        axes[0].semilogy(lam, w, label=label, **look)
        axes[1].semilogy(lam, w / np.exp(lam), **look)
    axes[0].set(ylim=(1e-4, 1e5), title="weight of an error of x0: w")
    axes[1].set(ylim=(1e-3, 1e4), title="the same as the weight of an error of eps: w / SNR")
    for panel in axes:
        panel.set_xlabel("log-SNR (left: noise, right: data)")
        panel.spines[["top", "right"]].set_visible(False)
        panel.axvline(0, color=INK, lw=0.5, alpha=0.4)
        panel.set_xticks(range(-8, 9, 4))
    figure.legend(frameon=False, loc="outside right center")
    return save(figure, "weightings")


def left(process: Process, std: float, t: jax.Array) -> jax.Array:
    """Var(x0 | x_t) for data from N(0, std^2)."""
    alpha, sigma = kernel(process, t)
    return (std * sigma) ** 2 / ((alpha * std) ** 2 + sigma**2)


def exact_between(process: Chain, std: float) -> jax.Array:
    """For a chain, the true variance of each reverse step as `Prediction.between`, for `VLB(variance="learned")`."""
    t = jnp.arange(process.levels)
    lam, sigma = process.logsnr(t), process.sigma(t)
    snr = jnp.exp(lam)
    gain = jnp.log1p((snr[:-1] - snr[1:]) * left(process, std, t)[1:])
    between = gain / (2 * jnp.log(sigma[1:] / sigma[:-1]))
    # The decoder: sigma_0^2 w at 0, sigma_0^2 at 1.
    log_w = jnp.log(-jnp.expm1(lam[1] - lam[0]))
    first = 1 - jnp.log(left(process, std, t)[0] / sigma[0] ** 2) / log_w
    return jnp.concatenate([first[None], between])


def bound_of(process: Chain, std: float, variance: str) -> float:
    """The expected bound in nats for data from N(0, std^2) and the exact denoiser, of a chain.

    Every part is linear in x0^2 and in (x0 - x0_theta)^2, so one example with their expectations gives the mean.
    """
    t = jnp.arange(process.levels)
    x0 = jnp.full((process.levels, 1), std)
    error = jnp.sqrt(left(process, std, t))[:, None]
    between = exact_between(process, std)[:, None] if variance == "learned" else None
    noised = Noised(x0, x0, x0, t)
    found = Prediction(x0 + error, x0, x0, between)
    return float(VLB(None, "nats", variance)(Denoiser(process, lambda x, t: found), noised, jax.random.key(0)).mean())


def even_bound_of(levels: int, std: float) -> float:
    """The same for levels evenly spaced in log-SNR; x0 is read from level 0 as x / alpha (Kingma et al. 2021)."""
    process = ncsn(1e-3, 100.0, levels, data_std=std)
    t = jnp.arange(1, levels)
    x0 = jnp.full((levels - 1, 1), std)
    found = Prediction(x0 + jnp.sqrt(left(process, std, t))[:, None], x0, x0)
    s = process.sigma(jnp.zeros(1, jnp.int32))[:, None]
    end = decoder_nll(x0[:1], x0[:1] + s, 2 * jnp.log(s), None) + prior_kl(process, x0[:1])
    return float(step_kl(process, found, x0, t).sum() + end[0])


def bound() -> Path:
    """The terms of the bound of DDPM on N(0, 1/4), three ways; and how far the whole is from the entropy."""
    std, draws = 0.5, 4000
    with jax.enable_x64(True):
        process, data = ddpm(), gaussian((0.0,), 0.5)
        t = jnp.arange(1, 1000)

        def weight(process, t):  # of one level: 1/2 (SNR_{t-1} - SNR_t) of an error of x0
            return WEIGHTINGS["likelihood"]()(process, t) / process.levels

        closed = np.asarray(weight(process, t) * left(process, std, t))
        simple = np.asarray(jnp.exp(process.logsnr(t)) * left(process, std, t))
        some = np.unique(np.geomspace(1, 999, 24).round().astype(int))
        at = jnp.repeat(jnp.asarray(some), draws)
        noised = perturb(process, jax.random.key(0), data.sample(jax.random.key(1), len(at)), at)
        denoiser = data.denoiser(process)
        dsm = DSM()(denoiser, noised, jax.random.key(2)) * weight(process, at) / DSM().weight(process, at)
        mean, deviation = posterior(process, noised.x, noised.x0, at, at - 1)
        model, _ = posterior(process, noised.x, denoiser(noised.x, at).x0, at, at - 1)
        kl = jnp.sum((mean - model) ** 2, 1) / (2 * deviation**2)
        by_level = [np.asarray(a).reshape(len(some), draws).mean(1) for a in (kl, dsm)]

        entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
        counts = np.array([30, 100, 300, 1000, 3000, 10000])
        linear = [ddpm(0.1 / n, 20.0 / n, n, rescale=False) for n in counts.tolist()]
        small = [bound_of(p, std, "small") - entropy for p in linear]
        true = [bound_of(p, std, "learned") - entropy for p in linear]
        even = [even_bound_of(n, std) - entropy for n in counts.tolist()]

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    one, two = axes
    # The labels count from x_1, as the paper does; the level of x_1 has index 0 here.
    one.loglog(np.asarray(t) + 1, closed, color=INK, lw=1.5, label="L$_{t-1}$ in closed form")
    one.loglog(some + 1, by_level[0], "o", ms=9, mfc="none", mec=INK, label="KL of the two posteriors, 4,000 draws")
    one.loglog(some + 1, by_level[1], "x", ms=5, color=ACCENT, label="DSM times its weight, the same draws")
    one.loglog(np.asarray(t) + 1, simple, color=GREY, lw=1.5, ls="--", label="the simple loss, no weight")
    one.set(
        title="terms of DDPM's bound, data N(0, 1/4)",
        xlabel="t, from 2 to T = 1000 (in the code: index t - 1)",
        ylabel="nats",
    )
    one.set_ylim(1e-9, 30)
    two.loglog(counts, small, "o-", color=GREY, lw=1.5, ms=4, label="DDPM's betas times 1000 / N, posterior's variance")
    two.loglog(counts, even, "o-", color=ACCENT, lw=1.5, ms=4, label="even in log-SNR, posterior's variance")
    two.set_ylim(1e-4, 20)
    two.set(title="the whole bound above the entropy", xlabel="levels N", ylabel="nats")
    worst = max(abs(g) for g in true)
    two.text(
        32, 1.5e-4, f"DDPM's betas, true variance: below {10 ** math.ceil(math.log10(worst)):.0e} for every N",
        color=INK, fontsize=9,
    )  # fmt: skip
    print(f"bound: gaps {np.round(small, 4)}, even {np.round(even, 5)}, true {worst:.1e}")
    for panel in axes:
        panel.legend(frameon=False, fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    return save(figure, "bound")


def field() -> Path:
    """The score of a mixture at three noise levels, over the density that it belongs to."""
    chain = sigmas((0.1, 0.5, 1.5))
    _, points = mesh(2.6, 161)
    _, arrows = mesh(2.35, 15)
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.5), layout="constrained")
    for level, panel in enumerate(axes):
        sigma = float(chain.sigmas[level])
        density = np.exp(np.asarray(THREE.log_prob(points, 1.0, sigma))).reshape(161, 161)
        shown = 0.6 * density / density.max()
        panel.imshow(
            shown, extent=(-2.6, 2.6, -2.6, 2.6), origin="lower", cmap=INKS, vmin=0, vmax=1, interpolation="bilinear"
        )
        score = np.asarray(THREE.score(chain, arrows, jnp.full(len(arrows), level)))
        norm = np.linalg.norm(score, axis=1, keepdims=True)
        arrow = sigma * score / (1 + 0.6 * sigma * norm)  # the length is bounded, since only the direction matters
        panel.quiver(*np.asarray(arrows).T, *arrow.T, color=ACCENT, width=0.0055, angles="xy", scale=22)
        panel.set(title=f"noise sigma = {sigma:.1f}", aspect="equal", xticks=[], yticks=[])
    return save(figure, "field")


def data() -> Path:
    """Digits in files of many kinds, as `scoregen data` shows them."""
    from PIL import Image

    from scoregen.data import digits

    rng, held = np.random.default_rng(0), digits()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "photos")
        for i, (digit, label) in enumerate(zip(held.test[:40, ..., 0], held.test_labels[:40], strict=True)):
            shape = rng.integers(100, 200, 2)
            ink = np.zeros(shape, np.uint8)
            top, left = (shape - 80) // 2
            ink[top : top + 80, left : left + 80] = np.kron(digit, np.ones((10, 10), np.uint8))
            shade = np.full((*shape, 3), rng.integers(60, 200, 3), np.uint8)
            light = (shade + (255 - shade) * (ink[..., None] / 255)).astype(np.uint8)
            path = root / f"{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif[0x0112] = 6  # to be turned by a quarter
            kinds: list[tuple[np.ndarray, dict]] = [
                (light, {}),
                (ink.astype(np.uint16) * 257, {}),
                (np.dstack([shade, ink]), {}),
                (np.ascontiguousarray(np.rot90(light)), {"exif": exif}),
            ]
            pixels, options = kinds[i % len(kinds)]
            Image.fromarray(pixels).save(path, **options)
        here, there = Path.cwd(), FOLDER / "data.png"
        os.chdir(folder)
        try:
            scoregen("data", "photos", "--size=64", f"--out={there}")
        finally:
            os.chdir(here)
    return there


FIGURES = {f.__name__: f for f in (dissolving, kernels, pitfalls, scarce, weightings, bound, field, data)}

# The gallery

RUNS = Path(__file__).parents[1] / "runs" / "gallery"
# For each picture: the preset and its options, the command that draws it, and the picture that the command writes.
GALLERY: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], str]] = {
    "ddpm_toy": ("ddpm_toy", (), ("train",), "figure.png"),
    "ncsn_toy": ("ncsn_toy", (), ("train",), "figure.png"),
    "digits": ("ddpm_digits", (), ("train",), "samples.png"),
    "completed": (
        "ddpm_digits",
        (),
        ("sample", "--config.sampler.control.name=inpaint", "--config.sampler.control.inpaint.hidden=right"),
        "samples.png",
    ),
    "trajectory": (
        "ddpm_toy",
        (),
        (
            "trajectory",
            "--config.sampler.step.name=dpm",
            "--config.sampler.grid.name=logsnr",
            "--config.sampler.n=20",
        ),
        "trajectory.png",
    ),
    "fashion": ("fashion_mnist", (), ("train",), "samples.png"),
    "guidance": ("ddpm_toy", ("--config.labels=true",), ("guidance",), "guidance.png"),
}


def gallery(name: str) -> Path:
    """Train the preset, unless it is trained, draw, and copy the picture to docs/img/NAME.png."""
    preset, options, (mode, *more), written = GALLERY[name]
    workdir = RUNS / ",".join([preset, *(option.removeprefix("--config.") for option in options)])
    scoregen("train", preset, f"--workdir={workdir}", *options)
    if mode == "guidance":
        return guidance(workdir)
    out = workdir
    if mode != "train":
        out = workdir / name
        scoregen(mode, str(workdir), f"--out={out}", *more)
    return Path(shutil.copy(out / written, FOLDER / f"{name}.png"))


def scoregen(*arguments: str) -> None:
    """Run a command of scoregen in a process of its own."""
    subprocess.run([sys.executable, "-m", "scoregen", *arguments], check=True)


def guidance(workdir: Path) -> Path:
    """One class of eight, drawn by three scales of guidance."""
    from scoregen import load

    run = load(workdir)
    page, (axes,) = drawing.figure(1, 3, (10, 4.3), sharex=True, sharey=True)
    for panel, scale in zip(axes, (0.0, 1.0, 4.0), strict=True):
        x = run.sample(2000, label=0, guidance=scale)
        panel.scatter(*x.T, s=3, lw=0, alpha=0.5, color=ACCENT)
        panel.set(title=f"guidance {scale:g}", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal")
        panel.set_xlabel("coordinate 0")
        angle = 2 * np.pi * np.arange(8) / 8
        panel.plot(1.4 * np.cos(angle), 1.4 * np.sin(angle), "+", color=INK, ms=9)
    axes[0].set_ylabel("coordinate 1")
    page.suptitle("samples of class 0 of eight; crosses: the means of the classes")
    return drawing.save(FOLDER / "guidance.png", page)


def main(names: list[str]) -> None:
    """Draw the figures named, or all of docs/theory.md."""
    for name in [each for given in names or FIGURES for each in (GALLERY if given == "gallery" else [given])]:
        started = time.process_time()
        path = gallery(name) if name in GALLERY else FIGURES[name]()
        print(f"{path.name} ({path.stat().st_size // 1000} kB, {time.process_time() - started:.0f} s)")


if __name__ == "__main__":
    main(sys.argv[1:])
