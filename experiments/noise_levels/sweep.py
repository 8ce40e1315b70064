"""The techniques of NCSN's second version, one by one

With the exact score, samples end at the wrong modes if the first level is below half of the largest distance, if there
are few levels, or if there are many levels of one step each. The variance after one level agrees with the paper's
criterion for the step. But each level starts with the variance that the level before has left, and over all levels
these excesses add up. Networks on small digits need the levels, a step that is long enough, and the division by sigma.
With these, the average of the parameters, the denoising at the end and the input sigma make little or no difference,
and a first level of a fifth of the largest distance is no loss.
"""

import jax
import jax.numpy as jnp
import numpy as np
from all_five import levels as of_digits

from scoregen.app.figures import ACCENT, INK, empty, save
from scoregen.app.report import sheet
from scoregen.app.sampling import held_out
from scoregen.contrib.design import Levels, coverage, design, largest_distance, step_size
from scoregen.contrib.sweep import grid
from scoregen.data import digits
from scoregen.process import ncsn
from scoregen.samplers import Hold, Langevin, Sampler
from scoregen.testing.oracle import Mixture, gaussian

SIGMA_MIN, DIMS = 0.01, 64
DISTANCE = "Frechet distance, digits classifier"
FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
COUNTS = (3, 5, 7, 15, 21, 35, 105)  # numbers of levels; each divides BUDGET
BUDGET = 105
SEEDS = 3  # networks of each kind
STEPS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.2)  # step sizes, in units of sigma^2


def cells():
    yield from grid({"config": None, "sweep.sigma_1 over d": list(FRACTIONS), "seed": range(3)})
    yield from grid({"config": None, "sweep.levels": list(COUNTS), "seed": range(3)})
    yield from grid(
        {"config": None, "sweep.variance after": ["one level", "the walk"], "sweep.steps": [5, 25], "seed": range(3)}
    )
    yield from grid(list(networks()), {"seed": range(SEEDS)})


def networks():
    """Cells with all five techniques, without each technique, and with all as in NCSN v1, with about 110 evaluations.

    Other levels and steps are also tried with networks that get sigma.
    """
    found = of_digits()
    length, count, steps = (
        f"sampler.{key}" for key in ("corrector.langevin.step_size", "process.ncsn.levels", "corrector.langevin.steps")
    )

    def spaced(levels, each):
        gamma = Levels(found.sigma_min, found.sigma_max, levels, None, None).gamma
        return {count: levels, steps: each, length: float(f"{step_size(found.sigma_min, gamma, each):.3g}")}

    for presets, name, changed in (
        ("all_five conditioned", "all five", {}),
        ("without_1", "1 off: sigma_1 = 1", {}),
        ("all_five conditioned", "2 off: 10 levels of 11 steps", spaced(10, 11)),
        ("all_five conditioned", "2 off: 110 levels of 1 step", spaced(110, 1)),
        ("without_3", "3 off: the score itself", {}),
        ("all_five conditioned", "4 off: steps 5 times shorter", {length: found.step_size / 5}),
        ("all_five conditioned", "4 off: steps 5 times longer", {length: found.step_size * 5}),
        ("without_5", "5 off: no average", {}),
        ("all_five", "no denoising at the end", {"sampler.denoise": False}),
        ("none", "all off: NCSN v1, 11 steps a level", {steps: 11}),
        ("none", "NCSN v1, 100 steps a level", {}),
    ):
        for preset in presets.split():
            yield {"config": f"{preset}.py", "sweep.techniques": name, **changed}


def measure(run):
    if run.run is not None:
        return of_network(run)
    options, key = run.options, jax.random.key(run.options["seed"])
    if "sigma_1 over d" in options:
        return initial(options["sigma_1 over d"], key)
    if "levels" in options:
        return spacing(options["levels"], key)
    return variance(options["variance after"], options["steps"], key)


def of_network(run):
    np.save(run.workdir / "shown.npy", run.parts.scaling.to_bytes(run.samples[:8]))
    sampler, process = run.parts.sampling.sampler, run.parts.sampling.process
    langevin, sigma = sampler.corrector, np.asarray(process.sigma(sampler.levels(process)), np.float64)
    levels = sigma[0] / sigma[1], len(sigma), langevin.step_size / sigma[-1] ** 2, langevin.steps
    return {
        "evaluations": sampler.evaluations(process),
        "noise left: exact score (sigma_L)": float(np.sqrt(passed_on(*levels))),
        "noise left: read off x (sigma_L)": float(np.sqrt(passed_on(*levels, exact=False))),
        "eps at twice the noise": pull(run),
    }


def pull(run, excess=2.0):
    """<eps, z> / <z, z> at x_0 + excess sigma z, where z is noise.

    The value is `excess` for the exact score of points, and 1 for a network that assumes that the noise in x has the
    size of the level. x_0 are the held-out digits. The result is a mean over the training levels for which `excess`
    times the noise is still within the levels.
    """
    parts, denoiser = run.parts, run.run.denoiser
    process, every = denoiser.process, np.arange(len(parts.dataset.test))
    x0 = held_out(parts.dataset, parts.scaling, run.config.seed, every)
    z = jax.random.normal(jax.random.key(0), x0.shape, x0.dtype)

    @jax.jit
    def at(denoiser, level):
        eps = denoiser(x0 + excess * process.sigma(level) * z, jnp.full(len(z), level)).eps
        return jnp.sum(eps * z) / jnp.sum(z * z)

    sigma = process.sigma(jnp.arange(process.levels))
    return float(np.mean([at(denoiser, level) for level in np.flatnonzero(excess * sigma <= sigma[-1])]))


def ten_digits():
    """The first training digit of each class, in [0, 1], as points; class k has the weight (k + 1) / 55."""
    data = digits()
    first = [int(np.argmax(data.train_labels == k)) for k in range(10)]
    points = data.train[first].reshape(10, -1) / 255
    return Mixture(tuple((k + 1) / 55 for k in range(10)), tuple(map(tuple, points)), (0.0,) * 10)


def farthest():
    return largest_distance(np.array(ten_digits().means))


def walk(data, found, key, draws=4000, start=None):
    """Samples of annealed Langevin dynamics with the exact score, from N(0, sigma_1^2) or from `start`."""
    process = ncsn(found.sigma_min, found.sigma_max, found.levels, data_std=0.0)
    sampler = Sampler(Hold(), Langevin(found.step_size, found.steps), denoise=False)
    return sampler(data.denoiser(process), key, (draws, data.dim), start)


def nearest(data, x):
    """For each sample, the index of the nearest point and its distance."""
    away = np.linalg.norm(np.asarray(x, np.float64)[:, None] - np.array(data.means)[None], axis=2)
    return away.argmin(1), away.min(1)


def wrong(data, x):
    """The error of the weights of the points, in %: half of the sum of the absolute differences."""
    found = np.bincount(nearest(data, x)[0], minlength=len(data.weights)) / len(x)
    return 50 * np.abs(found - data.weights).sum()


def initial(fraction, key):
    """Technique 1: the largest sigma is this fraction of the largest distance d; the other settings follow from it."""
    data, keys = ten_digits(), jax.random.split(key, 3)
    found = design(data.dim, fraction * farthest(), SIGMA_MIN, steps=5)
    prior = walk(data, found, keys[0])
    worst = walk(data, found, keys[1], start=jnp.tile(jnp.array(data.means[0]), (len(prior), 1)))
    return {
        "levels that follow": found.levels,
        "weights wrong, from the prior (%)": wrong(data, prior),
        "weights wrong, from the lightest digit (%)": wrong(data, worst),
        "weights wrong, exact draws (%)": wrong(data, data.sample(keys[2], len(prior))),
    }


def spacing(count, key):
    """Technique 2: `count` levels from d down, always with `BUDGET` evaluations and the step of technique 4."""
    data, keys, steps = ten_digits(), jax.random.split(key, 2), BUDGET // count
    gamma = Levels(SIGMA_MIN, farthest(), count, None, None).gamma
    found = Levels(SIGMA_MIN, farthest(), count, step_size(SIGMA_MIN, gamma, steps), steps)
    x = walk(data, found, keys[0])
    radius = np.linalg.norm(jax.random.normal(keys[1], x.shape), axis=1)
    shell = np.abs(radius - np.sqrt(DIMS) * gamma) < 3 * gamma / np.sqrt(2)
    return {
        "ratio of levels": gamma,
        "overlap C of the rule (%)": 100 * coverage(DIMS, gamma),
        "of drawn noise (%)": 100 * shell.mean(),
        "weights wrong (%)": wrong(data, x),
        "variance at the end / sigma_L^2": np.square(nearest(data, x)[1]).mean() / (DIMS * SIGMA_MIN**2),
    }


def variance(after, steps, key, draws=1000):
    """Technique 4: the variance of x over sigma^2 for each step size, and the largest error of the formula."""
    data, rule = gaussian((0.0,) * DIMS, 0.0), design(DIMS, farthest(), SIGMA_MIN, steps)
    process = ncsn(rule.sigma_min, rule.sigma_max, rule.levels, data_std=0.0)
    keys, lowest = jax.random.split(key, 2), jnp.zeros(draws, jnp.int32)
    begin = rule.gamma * SIGMA_MIN * jax.random.normal(keys[0], (draws, DIMS))
    figures, errors = {}, []
    for h in STEPS:
        found = Levels(rule.sigma_min, rule.sigma_max, rule.levels, h * SIGMA_MIN**2, steps)
        if after == "one level":
            x = jax.jit(Langevin(found.step_size, steps))(data.denoiser(process), keys[1], begin, lowest)
        else:
            x = walk(data, found, keys[1], draws)
        figures[f"h = {h}"] = measured = float(jnp.mean(x**2)) / SIGMA_MIN**2
        errors.append(measured / expected(after, found) - 1)
    return figures | {"largest error of the formula (%)": 100 * np.abs(errors).max()}


def expected(after, found):
    """The variance over sigma^2 in theory: after one level that starts at gamma^2 (the criterion), or after all."""
    if after == "one level":
        return found.final_variance
    return passed_on(found.gamma, found.levels, found.step_size / found.sigma_min**2, found.steps)


def passed_on(gamma, levels, h, steps, exact=True):
    """The variance u^2 over sigma^2 after all levels, for data at one point; each next level starts at gamma u.

    With the exact score, a step moves x = x_0 + u sigma z to x_0 + (1 - h) u sigma z + sqrt(2 h) sigma w. A network
    that estimates the noise from x has eps = z for every u, so its score is -z / sigma, and a step moves x to x_0 +
    (u - h) sigma z + sqrt(2 h) sigma w: its pull does not grow with an excess of noise.
    """
    u = 1.0
    for level in range(levels):
        u = u * gamma if level else u
        for _ in range(steps):
            u = np.sqrt(((1 - h) * u if exact else u - h) ** 2 + 2 * h)
    return u**2


def draw(rows, path):
    page = empty((16, 12))
    top, bottom = page.subfigures(2, 1, height_ratios=(1, 1.15))
    first, second, third = top.subplots(1, 3)
    top.suptitle("The exact score of ten digits of 64 pixels, as points", fontsize=15)
    bottom.suptitle("Networks trained on digits: how levels are walked counts, and the division by sigma", fontsize=15)
    done = [row for row in rows if row.results]

    one = [row for row in done if row.options["sweep.sigma_1 over d"] != ""]
    where = [row.options["sweep.sigma_1 over d"] for row in one]
    for name, color, ls in (
        ("from the lightest digit", ACCENT, "-"),
        ("from the prior", INK, "-"),
        ("exact draws", INK, ":"),
    ):
        line(first, one, where, f"weights wrong, {name} (%)", color=color, ls=ls, label=name)
    mark(first, 1.0, "technique 1:\n$\\sigma_1$ = d")
    first.set(xscale="log", ylim=(0, 100))
    first.set_xticks(FRACTIONS, ["1/16", "1/8", "1/4", "1/2", "1", "2"])
    first.set_xlabel("$\\sigma_1$ / largest distance d", fontsize=12)
    first.set_ylabel("weight at wrong digits (%)", fontsize=12)
    first.set_title("1: from too small a $\\sigma_1$\nmodes have wrong weights", fontsize=13)

    two = [row for row in done if row.options["sweep.levels"] != ""]
    where = [row.options["sweep.levels"] for row in two]
    line(second, two, where, "weights wrong (%)", color=ACCENT, label="weight at wrong digits")
    excess = [100 * (row.mean("variance at the end / sigma_L^2") - 1) for row in two]
    second.plot(where, excess, "o-", color=INK, lw=2, label="variance above $\\sigma_L^2$")
    rule = design(DIMS, farthest(), SIGMA_MIN, 5)
    mark(second, rule.levels, "technique 2")
    second.set(xscale="log", yscale="log", xlim=(2.6, 125), ylim=(1, 300))
    ratios = [Levels(SIGMA_MIN, farthest(), count, None, None).gamma for count in COUNTS]
    second.set_xticks(COUNTS, [f"{count}\n{gamma:.3g}" for count, gamma in zip(COUNTS, ratios, strict=True)])
    second.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    second.set_xlabel("levels L, and their ratio $\\gamma$", fontsize=12)
    second.set_ylabel("%", fontsize=12)
    second.set_title(f"2: of {BUDGET} evaluations, too few levels\nlose weights, too many the variance", fontsize=13)

    h = np.geomspace(0.015, 1.3, 200)
    for steps, color in ((5, ACCENT), (25, INK)):
        rule = design(DIMS, farthest(), SIGMA_MIN, steps)
        for after, ls, shape in (("one level", "--", "s"), ("the walk", "-", "o")):
            each = [Levels(SIGMA_MIN, rule.sigma_max, rule.levels, x * SIGMA_MIN**2, steps) for x in h]
            third.plot(h, [expected(after, found) for found in each], color=color, ls=ls, lw=1.5)
            third.plot([], [], color=color, ls=ls, marker=shape, mfc="white", label=f"T = {steps}, after {after}")
            for row in done:
                if (row.options["sweep.variance after"], row.options["sweep.steps"]) == (after, steps):
                    found = [row.mean(f"h = {x}") for x in STEPS]
                    third.plot(STEPS, found, shape, color=color, mfc="white", ms=6)
        third.plot(rule.step_size / SIGMA_MIN**2, rule.final_variance, "*", color=color, ms=17, mec="white", zorder=3)
    third.plot([], [], "*", color=INK, ms=13, ls="none", label="technique 4")
    third.set(xscale="log", yscale="log", ylim=(0.95, 6))
    third.set_yticks([1, 1.2, 1.5, 2, 3, 5], ["1", "1.2", "1.5", "2", "3", "5"])
    third.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5, 1], ["0.02", "0.05", "0.1", "0.2", "0.5", "1"])
    third.set_xlabel("step h = $\\epsilon$ / $\\sigma_L^2$", fontsize=12)
    third.set_ylabel("variance / $\\sigma^2$", fontsize=12)
    third.set_title(
        "4: in closed form (lines; two marks are off\nthe top): levels pass on what they leave",
        fontsize=13,
    )

    nets = [row for row in done if DISTANCE in row.figures]
    ways = list(dict.fromkeys(row.options["sweep.techniques"] for row in reversed(nets)))
    dots, shown = bottom.subplots(1, 2, width_ratios=(1, 1.25))
    for row in nets:
        given = row.options["config"] not in ("all_five.py", "without_1.py", "without_5.py")
        y = ways.index(row.options["sweep.techniques"]) + (-0.19 if given else 0.19)
        mean, spread = row.mean(DISTANCE), row.error(DISTANCE) or 0.0
        dots.errorbar(mean, y, xerr=spread, marker="o", ms=8, lw=2, color=ACCENT if given else INK)
        dots.text(1.13 * (mean + spread), y, f"{mean:#.3g}", va="center", color=ACCENT if given else INK, fontsize=10)
        strip, left = sheet(np.load(row.folders[0] / "shown.npy"), 480, columns=8), 8.6 * given
        shown.imshow(strip, extent=(left, left + 8, round(y) - 0.46, round(y) + 0.46), aspect="auto")
    if nets:
        dots.axvline(nets[0].floor(DISTANCE), color=INK, ls=":", lw=1.5)
        dots.set(xscale="log", xlim=(0.3, 60))
        dots.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    dots.set_yticks(range(len(ways)), ways, fontsize=12)
    dots.set_xlabel("Frechet distance from held-out digits (dotted: as many real ones)", fontsize=12)
    for panel in (dots, shown):
        panel.set_ylim(-0.6, max(len(ways), 1) - 0.4)
    for x, title, color in ((4, "the network is not given sigma", INK), (12.6, "it is given sigma", ACCENT)):
        shown.text(x, len(ways) - 0.45, title, ha="center", va="bottom", color=color, fontsize=13)
    shown.set_xlim(0, 16.6)
    shown.axis("off")
    dots.minorticks_off()
    dots.grid(axis="y", alpha=0.2)
    for panel, where in ((first, (0.76, 1.0)), (second, (0.54, 1.0)), (third, (1.0, 1.0))):
        panel.minorticks_off()
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=11, frameon=False, loc="upper right", bbox_to_anchor=where)
    for panel in (first, second, third, dots):
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(axis="x", labelsize=11)
    save(path, page, dpi=90)


def line(panel, rows, where, what, **look):
    """Draw the measured value `what` of these rows, with its errors."""
    spread = [row.error(what) or 0.0 for row in rows]
    panel.errorbar(where, [row.mean(what) for row in rows], spread, marker="o", capsize=3, lw=2, **look)


def mark(panel, x, text):
    """Draw a vertical line at the choice of a technique."""
    panel.axvline(x, color="#8b9aa8", ls="--", lw=1.2, zorder=0)
    at = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    panel.annotate(text, (x, 0.97), (5, 0), va="top", fontsize=11, **at)
