"""Langevin dynamics without noise levels, and with them

Between modes that are far apart, plain Langevin dynamics does not mix, so it keeps the weights of its start. A network
that was trained without noise has not learned the score where there are no data. On a curve, the objective of score
matching has no minimum without noise, and training with nearly no noise does not reach its smallest value. Many noise
levels fix the effect of the first two failures on samples, and enough noise fixes the third (Song & Ermon 2019, section
3).
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from scoregen.app.evaluate import distance_to_data
from scoregen.app.figures import ACCENT, INK, figure, save
from scoregen.contrib.sweep import grid
from scoregen.metrics import sliced_wasserstein
from scoregen.process import ncsn, top
from scoregen.samplers import Hold, Langevin, Sampler
from scoregen.testing.oracle import Mixture

SEPARATIONS = [4, 6, 8, 12]  # distances of the modes, in units of their width
NOISE = [0.0, 0.1]
PLACES = ("where data are", "where they are scarce", "where a chain starts")
HEAVY = "samples in the heavy mode (%)"
DRAWS, LEVELS, STEPS = 4000, 25, 60


def cells():
    yield from grid({"config": None, "separation": SEPARATIONS, "seed": range(3)})
    yield from grid({"config": ["one_level.py", "all_levels.py"], "seed": range(3)})
    yield from grid({"config": "on_a_curve.py", "data.moons.noise": NOISE, "seed": range(3)})


def measure(run):
    if run.run is None:
        return mixing(run.options["separation"], run.options["seed"])
    return convergence(run) if run.parts.dataset.name == "moons" else errors(run)


def mixing(separation, seed):
    """Plain and annealed dynamics on two modes, from the same points and with equally many evaluations."""
    data = Mixture((0.8, 0.2), ((0.0, 0.0), (float(separation), 0.0)), (1.0, 1.0))
    process = ncsn(0.1, 25.0, LEVELS, data_std=0.0)
    denoiser = data.denoiser(process)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), separation), 5)
    start = process.prior(keys[0], (DRAWS, 2)) + jnp.array([separation / 2, 0.0])  # halfway between the modes
    lowest = jnp.zeros(DRAWS, jnp.int32)

    annealed = Sampler(Hold(), Langevin(0.1 * 0.1**2, STEPS))
    drawn = {
        "plain": jax.jit(Langevin(0.1, LEVELS * STEPS))(denoiser, keys[1], start, lowest),
        "annealed": annealed(denoiser, keys[2], start.shape, start),
        "exact draws": data.sample(keys[3], DRAWS),
    }
    found = {name: np.asarray(x, np.float64) for name, x in drawn.items()}
    real = np.asarray(data.sample(keys[4], DRAWS))
    shares = {f"heavy mode, {name} (%)": heavy(data, x) for name, x in found.items()}
    return shares | {f"sliced Wasserstein, {name}": sliced_wasserstein(x, real) for name, x in found.items()}


def heavy(data, x):
    """The share of the first mode in %: the mean of its probability given x. Both modes have the same width."""
    one, two = (
        np.log(weight) - 0.5 * np.sum((x - mean) ** 2, 1) / data.stds[0] ** 2
        for weight, mean in zip(data.weights, data.means, strict=True)
    )
    return 100 * np.mean(expit(one - two))


def exact(config):
    """The mixture from which the points of a data set were drawn."""
    options = config.two_modes
    along = options.separation * np.array([-(1 - options.weight), options.weight])
    means = along[:, None] * np.full((1, 2), np.sqrt(0.5))
    return Mixture((options.weight, 1 - options.weight), tuple(map(tuple, means)), (options.std,) * 2)


def errors(run):
    """The errors of the score: root mean squares, divided by the root mean square of the exact score."""
    denoiser, process = run.run.denoiser, run.run.model.process
    data = exact(run.config.data)
    keys = jax.random.split(jax.random.key(run.config.seed), 4)
    t = jnp.zeros(10_000, jnp.int32)
    noise = float(process.sigma(t[0]))
    at_data = data.sample(keys[0], len(t)) + noise * jax.random.normal(keys[1], (len(t), 2))
    square = jax.random.uniform(keys[2], (len(t), 2), minval=-3.0, maxval=3.0)
    density = data.log_prob(square, 1.0, noise)
    most = data.log_prob(jnp.array([data.means[0]]), 1.0, noise)[0]
    scarce = square[density < most + np.log(1e-3)]
    begin = process.prior(keys[3], (len(t), 2))

    @jax.jit
    def error(x, t):
        truth = data.score(process, x, t)
        return jnp.sqrt(jnp.sum((denoiser(x, t).score - truth) ** 2) / jnp.sum(truth**2))

    key = jax.random.key(run.config.seed + 2)
    by_the_exact_score = run.parts.sampling.sampler(data.denoiser(process), key, run.samples.shape)
    np.savez(run.workdir / "field.npz", **field(denoiser, data))
    places = (at_data, t), (scarce, t[: len(scarce)]), (begin, jnp.full(len(t), top(process)))
    distance = distance_to_data(run.parts.dataset, run.parts.scaling)
    judged = {"": distance(run.samples), ", exact score": distance(np.asarray(by_the_exact_score))}
    return {
        **{f"error of the score {where}": error(*at) for where, at in zip(PLACES, places, strict=True)},
        **{f"{found.name}{how}": (found.value, found.floor) for how, found in judged.items()},
        HEAVY: heavy(data, run.samples),
        f"{HEAVY}, exact score": heavy(data, np.asarray(by_the_exact_score)),
    }


def field(denoiser, data, n=121):
    """The error of the score at the least noisy level, on a grid over a square."""
    axis = np.linspace(-3.4, 3.4, n)
    x = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), jnp.float32)
    t = jnp.zeros(len(x), jnp.int32)
    off = jnp.linalg.norm(denoiser(x, t).score - data.score(denoiser.process, x, t), axis=1)
    density = data.log_prob(x, 1.0, denoiser.process.sigma(t))
    return {"axis": axis, "off": off.reshape(n, n), "density": density.reshape(n, n)}


def convergence(run):
    """The objective E[ tr(grad s) + 1/2 ||s||^2 ] during training; its smallest value is -1/2 E ||grad log p||^2."""
    config, process = run.config, run.run.model.process
    noise = float(process.sigma(jnp.zeros((), jnp.int32)))
    step, objective = np.array([(row["step"], row["loss"] / noise**2) for row in run.run.metrics if "loss" in row]).T
    (run.workdir / "objective.json").write_text(json.dumps([step.tolist(), objective.tolist()]))

    quarter = np.minimum(4 * (step - 1) // config.train.steps, 3)
    last = objective[quarter >= 2]
    x = run.parts.dataset.test
    x = jnp.asarray(x) + noise * jax.random.normal(jax.random.key(config.seed), x.shape)
    score = run.run.denoiser(x, jnp.zeros(len(x), jnp.int32)).score
    return {
        **{f"objective, quarter {i + 1}": np.median(objective[quarter == i]) for i in range(4)},
        "its least value": least(np.hypot(noise, config.data.moons.noise)),
        "scatter in the second half / median": last.std() / abs(np.median(last)),
        "norm of the learned score": jnp.linalg.norm(score, axis=1).mean(),
    }


def least(sigma):
    """The smallest objective for two noisy half circles; at their four ends, p is the integral Phi of a normal phi."""
    ends = 4 * 0.903 / (2 * np.sqrt(2) * np.pi * sigma)  # 0.903 = int phi^2 / Phi; each half circle is 2^{1/2} pi long
    return -0.5 * (1 / sigma**2 + ends)


def draw(rows, path):
    page, (axes,) = figure(1, 4, (17, 4.3), width_ratios=(1.1, 1.05, 1.2, 1.1))
    apart = [row for row in rows if "separation" in row.options and row.options["separation"] != ""]
    where = [row.options["separation"] for row in apart]
    for name, color, label in (("plain", ACCENT, "plain Langevin"), ("annealed", INK, "annealed Langevin")):
        what = f"heavy mode, {name} (%)"
        means, spread = [row.mean(what) for row in apart], [row.error(what) or 0 for row in apart]
        axes[0].errorbar(where, means, spread, color=color, marker="o", capsize=3, lw=2, label=label)
    axes[0].axhline(80, color=INK, ls="--", lw=1)
    axes[0].text(where[-1], 80.8, "the truth: 80 %", ha="right", va="bottom", fontsize=12)
    axes[0].set(xlabel="distance of the modes, in widths", ylabel="share of the heavy mode (%)")
    axes[0].set(xlim=(where[0] - 0.4, where[-1] + 0.4), ylim=(40, 100))
    axes[0].set_title("Far modes: weights are those\nof the start, unless annealed", fontsize=13)
    axes[0].legend(frameon=False, fontsize=12, loc="lower left")

    trained = {row.options["config"]: row for row in rows}
    one, every = trained["one_level.py"], trained["all_levels.py"]
    if one.folders:
        drawn = picture(axes[1], np.load(one.folders[0] / "field.npz"))
        bar = page.colorbar(drawn, ax=axes[1], shrink=0.85, ticks=[-1, 0, 1, 2])
        bar.ax.set_yticklabels(["0.1", "1", "10", "100"])
        bar.set_label("length of the error", fontsize=11)
    axes[1].set_title("Error of a score learned at one level:\nsmall where data are (lines), else large", fontsize=13)

    for i, (row, color, label) in enumerate(((one, ACCENT, "one level"), (every, INK, "all levels"))):
        if not row.results:
            continue
        place = np.arange(3) + 0.4 * i - 0.2
        figures = [f"error of the score {where}" for where in PLACES]
        means, spread = [row.mean(what) for what in figures], [row.error(what) or 0.0 for what in figures]
        bars = axes[2].bar(place, means, 0.36, color=color, yerr=spread, label=label)
        axes[2].bar_label(bars, fmt="{:#.2g}", fontsize=11, padding=2)
    axes[2].set_xticks(range(3), ["where\ndata are", "where they\nare scarce", "where a\nchain starts"])
    axes[2].set(ylabel="error of the score, relative", ylim=(0, 0.72))
    axes[2].set_title("One level was not learned where its chain\nstarts; many levels were", fontsize=13)
    axes[2].legend(frameon=False, fontsize=12, loc="upper left")

    curved = [row for row in rows if "curve" in str(row.options["config"])]
    for row, color, place in zip(curved, (ACCENT, INK), (-4e5, -14), strict=True):
        for folder in row.folders:
            step, objective = json.loads(Path(folder, "objective.json").read_text())
            axes[3].plot(step, objective, color=color, lw=1.3, alpha=0.8)
        if row.results:
            axes[3].axhline(row.mean("its least value"), color=color, ls="--", lw=1)
        label = f"noise of {row.options['data.moons.noise']:g}" if row.options["data.moons.noise"] else "no noise"
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        middle = 0.5 * max(axes[3].get_xlim())
        axes[3].text(middle, place, label, color=color, fontsize=13, ha="center", va="center", bbox=white)
    axes[3].set_yscale("symlog", linthresh=10)
    axes[3].set(xlabel="training step", ylabel="score matching objective", ylim=(-2e6, 2e5))
    axes[3].set_title("Data on a curve: the least value\n(dashed) is found only with noise", fontsize=13)
    for panel in (axes[0], axes[2], axes[3]):
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=11)
        panel.xaxis.label.set_size(12)
        panel.yaxis.label.set_size(12)
    save(path, page, dpi=100)


def picture(panel, found):
    """Draw the error as a shade on a log scale, and the density of the data as lines."""
    from matplotlib.colors import LinearSegmentedColormap

    embers = LinearSegmentedColormap.from_list("embers", ["#ffffff", "#f0d9c8", ACCENT, "#6b2417"])
    axis, density = found["axis"], found["density"]
    ends = (axis[0], axis[-1]) * 2
    shade = np.log10(np.maximum(found["off"], 1e-9))
    drawn = panel.imshow(shade, extent=ends, origin="lower", cmap=embers, vmin=-1, vmax=2)
    panel.contour(axis, axis, density, levels=density.max() + np.log([0.01, 0.1, 0.5]), colors=INK, linewidths=1)
    panel.set(xticks=[], yticks=[])
    return drawn
