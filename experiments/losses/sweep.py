"""Losses at equal compute

All six losses have the same minimum (FD-SSM up to the square of its step) and the same weight at every noise level.
Each trains for the same number of floating-point operations. Regression on the known noise, by eps or DSM, which are
the same loss, is better than matching an unknown score. Of the losses that match an unknown score, ISM is the best in 2
dimensions and the worst in 64, where one of its steps costs as much as 66 steps of eps. SSM-VR is second in 2
dimensions and first in 64, together with FD-SSM, which differs only in the cost of a step. Cost and compute are in
steps of eps. The Fisher divergence has the factor 1/2 sigma^2, and the error of eps is a mean over pixels; both are
means over t. Distances are between samples and held-out data.
"""

import estimators
import jax
import jax.numpy as jnp
import numpy as np

from scoregen.app.build import build
from scoregen.app.evaluate import distance_to_data
from scoregen.app.figures import figure, save
from scoregen.app.report import sheet
from scoregen.contrib.sweep import grid
from scoregen.nets.cost import operations
from scoregen.process import perturb
from scoregen.testing.oracle import Mixture
from scoregen.train import Checkpoints, abstract_state, make_step

LOSSES = {
    "eps": {"loss.name": "eps"},
    "DSM": {"loss.name": "dsm"},
    "SSM": {"loss.name": "ssm", "loss.ssm.variance_reduced": False},
    "SSM-VR": {"loss.name": "ssm", "loss.ssm.variance_reduced": True},
    "FD-SSM": {"loss.name": "fdssm"},
    "ISM": {"loss.name": "ism"},
}
SEEDS = {"points.py": 3, "digits.py": 2}
BUDGET = {"points.py": 4000, "digits.py": 660}  # the compute, in steps of eps
# Floating-point operations of a step, in units of a step of eps, as `cost` counts them.
COST = {
    "points.py": {"eps": 1.0, "DSM": 1.0, "SSM": 1.579, "SSM-VR": 1.579, "FD-SSM": 2.0, "ISM": 2.157},
    "digits.py": {"eps": 1.0, "DSM": 1.0, "SSM": 2.012, "SSM-VR": 2.012, "FD-SSM": 2.0, "ISM": 65.74},
}
DISTANCE = "Frechet distance, digits classifier"
COLOURS = estimators.COLOURS | {"eps": "#9bc2a4"}
PARTS = {"points.py": 8, "digits.py": 4}  # a training is divided into so many parts; the error is computed after each
APART = 6  # the least number of steps of a part, because each checkpoint also computes a held-out loss
# The style of lines that would hide each other.
LOOKS = {"eps": {"lw": 5, "alpha": 0.5, "marker": ""}, "DSM": {"lw": 1.5}, "FD-SSM": {"ls": "--"}}
NOISE = (0.1, 1.0)  # the values of sigma / alpha that separate low, middle and high noise


def cells():
    for config, budget in BUDGET.items():
        for name, options in LOSSES.items():
            steps = round(budget / COST[config][name])
            trained = {"train.steps": steps, "train.checkpoint_every": max(APART, -(-steps // PARTS[config]))}
            yield from grid({"config": config, **options, **trained, "seed": range(SEEDS[config])})


def measure(run):
    parts = run.parts
    each, at = cost(parts), levels(parts.model.process)
    noise = np.exp(-0.5 * np.asarray(parts.model.process.logsnr(at)))
    steps, error = on_the_way(run.run, error_of(parts))
    means = np.average(error, 1, shares(at))
    np.savez(run.workdir / "error.npz", spent=each * np.array(steps), means=means, noise=noise, error=error[-1])
    if parts.dataset.is_image:
        np.save(run.workdir / "samples.npy", parts.scaling.to_bytes(run.samples[:8]))
        figures = {"error of eps, held out": means[-1]}
    else:
        bands = zip(("low", "middle", "high"), np.split(np.arange(len(at)), np.searchsorted(noise, NOISE)), strict=True)
        figures = {"Fisher divergence": means[-1]}
        figures |= {f"at {name} noise": np.average(error[-1][band], weights=shares(at)[band]) for name, band in bands}
    distance = distance_to_data(parts.dataset, parts.scaling)(run.samples)
    return {
        "cost of a step": each,
        "compute": each * run.run.step,
        **figures,
        distance.name: (distance.value, distance.floor),
    }


def cost(parts):
    """The floating-point operations of a training step, in units of a step on eps."""
    config = parts.config.copy_and_resolve_references()
    config.loss.name = "eps"
    this, eps = map(operations_of_a_step, (parts, build(config, dataset=parts.dataset)))
    return this / eps


def operations_of_a_step(parts):
    shape = (parts.config.train.batch, *parts.dataset.shape)
    trained = parts.model, parts.objective, parts.optimizer
    step = make_step(*trained, parts.average, prepare=parts.prepare)
    return operations(step, abstract_state(*trained, shape), jax.ShapeDtypeStruct(shape, parts.dataset.train.dtype))


def on_the_way(run, error):
    """The steps of the checkpoints `[C]`, and the error of their averaged parameters at each level `[C, L]`."""
    with Checkpoints(run.workdir / "checkpoints") as checkpoints:
        steps = checkpoints.steps()
        return steps, np.array([error(checkpoints.restore_part("ema", run.params, step)[0]) for step in steps])


def levels(process):
    """Noise levels `[L]`, least noisy first; they are closer together at little noise."""
    return np.unique(np.geomspace(1, process.levels, 32).astype(int)) - 1


def shares(at):
    """The weight of each level in the mean over all levels: half of the gaps to its two neighbours (trapezoid rule)."""
    gaps = np.diff(at, prepend=at[0], append=at[-1])
    return (gaps[:-1] + gaps[1:]) / 2


def error_of(parts):
    """A function: params -> the error at each level `[L]`, with the same examples and noise for all losses and seeds.

    For points, the error is the Fisher divergence 1/2 sigma^2 ||s_theta - grad log p_t||^2. For held-out digits it is
    the mean of (eps_theta - eps)^2 over pixels.
    """
    model, data = parts.model, parts.dataset
    process, mixture = model.process, parts.config.data.mixture
    example, noise = jax.random.split(jax.random.key(1))
    if data.is_image:
        x0 = parts.scaling(data.test, jax.random.split(example, len(data.test)))
    else:
        x0 = exact(mixture).sample(example, 2000)

    @jax.jit
    def at(params, level):
        t = jnp.full(len(x0), level)
        noised = perturb(process, jax.random.fold_in(noise, level), x0, t)
        found = model.denoiser(params)(noised.x, t)
        if data.is_image:
            return jnp.mean((found.eps - noised.eps) ** 2)
        truth = exact(mixture).score(process, noised.x, t)
        return 0.5 * jnp.mean(process.sigma(t) ** 2 * jnp.sum((found.score - truth) ** 2, 1))

    return lambda params: np.array([at(params, level) for level in levels(process)])


def exact(options):
    """The mixture from which the points were drawn."""
    angle = 2 * np.pi * np.arange(options.modes) / options.modes
    means = options.radius * np.stack([np.cos(angle), np.sin(angle)], 1)
    return Mixture((1 / options.modes,) * options.modes, tuple(map(tuple, means)), (options.std,) * options.modes)


def called(row):
    """The name of the loss of a row in `LOSSES`."""
    return next(name for name, options in LOSSES.items() if options.items() <= row.options.items())


def draw(rows, path):
    page, (panels,) = figure(1, 4, (17, 4.6), width_ratios=(1, 1, 1, 0.95))
    done = [row for row in rows if row.folders]
    points, digits = ([row for row in done if row.options["config"] == config] for config in SEEDS)
    for row in done:
        found = [dict(np.load(folder / "error.npz")) for folder in row.folders]
        along = {key: np.mean([each[key] for each in found], 0) for key in found[0]}
        look = {"color": COLOURS[called(row)], "label": called(row), "ms": 4, **LOOKS.get(called(row), {})}
        panels[0 if row in points else 2].loglog(along["spent"], along["means"], **{"marker": "o"} | look)
        if row in points:
            panels[1].loglog(along["noise"], along["error"], **look)
    panels[0].set_title("Points: for the same compute\neps and DSM err least", fontsize=13)
    panels[0].set(xlabel="compute, in steps of eps", ylabel="Fisher divergence, mean over t")
    panels[1].set_title("Points, at the end: so they do\nat nearly every noise level", fontsize=13)
    panels[1].set(xlabel="noise sigma / alpha", ylabel="Fisher divergence")
    panels[2].set_title("Digits: the same, and ISM\nhas had ten steps", fontsize=13)
    panels[2].set(xlabel="compute, in steps of eps", ylabel="error of eps, held out, mean over t")
    panels[0].legend(frameon=False, fontsize=11)
    for panel, config in ((panels[0], "points.py"), (panels[2], "digits.py")):
        spent = [BUDGET[config] // part for part in (8, 4, 2, 1) if part <= PARTS[config]]
        panel.set_xticks(spent, [f"{each:,}" for each in spent])
        panel.xaxis.minorticks_off()
    panels[2].set_yticks([0.1, 0.2, 0.3, 0.5], ["0.1", "0.2", "0.3", "0.5"])
    panels[2].yaxis.minorticks_off()
    for panel in panels[:3]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=11)
        panel.xaxis.label.set_size(12)
        panel.yaxis.label.set_size(12)
    drawn = [np.load(row.folders[0] / "samples.npy") for row in digits]
    if drawn:
        whole = sheet(np.concatenate(drawn), 640, columns=8)
        panels[3].imshow(whole)
        labels = [f"{called(row)}\n{row.mean(DISTANCE):#.3g}" for row in digits]
        panels[3].set_yticks(len(whole) * (np.arange(len(drawn)) + 0.5) / len(drawn), labels, fontsize=12)
        floor = f"Frechet distance (floor {digits[0].floor(DISTANCE):#.3g})"
        panels[3].set_title(f"Digits: samples, and their\n{floor}", fontsize=13)
    panels[3].set_xticks([])
    panels[3].set_anchor("N")
    panels[3].tick_params(length=0)
    panels[3].spines[:].set_visible(False)
    save(path, page, dpi=100)
