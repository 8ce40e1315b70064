"""Quality against network evaluations

With an exact denoiser nearly every sampler comes as near to the data as exact draws are: the best after 20 evaluations,
the slowest after a thousand. With a network of digits the samplers of the ODE all end at its own error, far above the
floor, and some 20 evaluations reach it. Each sampler has the order of convergence that its theory gives it. Distances:
of points the sliced Wasserstein distance, of digits the Frechet distance in a small classifier's features.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from orders import CASES, LAM, OWN, once, order
from orders import PROCESSES as SMOOTH

from scoregen.metrics import classifier_features, frechet_distance, sliced_wasserstein, with_floor
from scoregen.oracle import Mixture
from scoregen.process import EDM, VE, VP, Flow, ddpm, ncsn
from scoregen.report import ACCENT, INK, pyplot
from scoregen.samplers import (
    Ancestral,
    Consistent,
    Hold,
    Langevin,
    NoCorrector,
    ReverseDiffusion,
    SNRLangevin,
    sample,
)
from scoregen.sweep import grid

DRAWS = 4000
EVALUATIONS = (5, 10, 20, 50, 100, 1000)  # the last with the exact denoiser alone
FLOORS = {"points": "two sets of exact draws", "digits": "two sets of real digits"}
SIDE = 3.5 / np.sqrt(2)
MODES = Mixture((0.8, 0.2), ((-0.2 * SIDE,) * 2, (0.8 * SIDE,) * 2), (0.2, 0.2))  # the law of the data two_modes
PROCESSES = {"vp": VP(), "ve": VE(), "edm": EDM(), "flow": Flow(), "ddpm": ddpm(), "ncsn": ncsn(0.01, 50.0, 1000)}


@dataclasses.dataclass(frozen=True)
class Walk:
    """A sampler on the grid that it is meant for, with how many evaluations its steps and its corrections take."""

    predictor: Any
    grid: Any
    stepping: int = 1
    corrector: Callable = lambda process: NoCorrector()
    correcting: int = 0


def least(process):
    """The variance at the least noisy level, which Langevin's steps are measured by."""
    return float(process.sigma(process.grid()[-1])) ** 2


WALKS = {name: Walk(case.predictor, case.grid, case.evaluations) for name, case in CASES.items()} | {
    "consistent": Walk(Consistent(0.2), LAM),
    "annealed Langevin, 2 steps": Walk(Hold(), LAM, 0, lambda process: Langevin(0.2 * least(process), 2), 2),
    "ancestral + Langevin": Walk(Ancestral(), OWN, 1, lambda process: Langevin(0.05 * least(process), 1), 1),
    "reverse diffusion + snr 0.16": Walk(ReverseDiffusion(), LAM, 1, lambda process: SNRLangevin(0.16), 1),
}
EXACT, MANY = "none: exact draws", "mean of 16 pairs of exact sets"
TRAINED = ["ancestral", "DDIM", "EDM", "UniPC-2"]


def cells():
    exact = {"config": None, "sweep.process": list(PROCESSES), "sweep.sampler": ["ancestral", "UniPC-2"]}
    yield from grid(exact | {"sweep.process": "vp", "sweep.sampler": list(WALKS)}, {"seed": range(3)})
    yield from grid(exact | {"sweep.process": [key for key in PROCESSES if key != "vp"]}, {"seed": range(3)})
    yield from grid({"config": None, "sweep.sampler": EXACT, "seed": range(3)})
    yield from grid({"config": "points.py", "sweep.sampler": TRAINED, "seed": range(3)})
    yield from grid({"config": "digits.py", "sweep.sampler": TRAINED, "seed": range(1)})
    for name, case in CASES.items():
        yield {"config": None, "sweep.order of": name, "sweep.what it is": case.theory}


def measure(run):
    if name := run.options.get("order of"):
        orders = {f"under {key}": order(process, CASES[name])[0] for key, process in SMOOTH.items()}
        return {"order in theory": CASES[name].order} | orders
    if run.options["sampler"] == EXACT:
        pairs = [run.options["seed"] + 3 * i for i in range(16)]
        return {MANY: np.mean([to_points(pair, DRAWS)[1] for pair in pairs])}
    walk, experiment = WALKS[run.options["sampler"]], run.experiment
    if experiment is None:
        process, seed, shape = PROCESSES[run.options["process"]], run.options["seed"], (DRAWS, 2)
        predict = lambda params: MODES.predict(process)  # noqa: E731
    else:
        process, seed, predict = experiment.walk, experiment.config.seed, experiment.predict_to_sample
        shape = (experiment.config.eval.samples, *experiment.dataset.shape)
    kind = "points" if len(shape) == 2 else "digits"
    distance, floor = to_points(seed, shape[0]) if kind == "points" else to_digits(experiment)
    figures = {FLOORS[kind]: floor}
    for most in EVALUATIONS if experiment is None else EVALUATIONS[:-1]:
        figures[f"N = {most}"] = distance(draws(process, predict, run.params, walk, most, seed, shape))
    return figures


def to_points(seed, count):
    """samples -> their distance to exact draws, and that of as many other ones."""
    keys = [jax.random.key(1000 * i + seed) for i in (1, 2)]
    real, other = map(np.asarray, once(lambda: [MODES.sample(key, count) for key in keys])())
    return lambda samples: sliced_wasserstein(samples, real), sliced_wasserstein(other, real)


def to_digits(experiment):
    """samples -> their distance to the held-out digits, and that of as many training digits."""
    data, count = experiment.dataset, experiment.config.eval.samples
    features = classifier_features(data)
    train, test = features(data.train), features(data.test)

    def distance(samples):
        return frechet_distance(features(experiment.scaling.to_bytes(samples)), test)

    return distance, with_floor(frechet_distance, train[:count], train, test).floor


def draws(process, predict, params, walk, most, seed, shape):
    """By the longest walk of no more than so many evaluations of the network, which are counted as they happen."""
    each = walk.stepping + walk.correcting
    levels = (most - 1 - walk.correcting) // each + 1
    asked = 0

    def count():
        nonlocal asked
        asked += 1

    moves = walk.predictor, walk.corrector(process)

    @once
    def drawn(params, key):
        known = predict(params)

        def counted(x, t):
            jax.debug.callback(count)
            return known(x, t)

        return sample(process, counted, key, shape, *moves, levels, grid=walk.grid)

    found = np.asarray(drawn(params, jax.random.key(seed)))
    jax.effects_barrier()
    if not most - each < asked <= most:
        raise ValueError(f"a walk of {levels} levels took {asked} evaluations, not {most} or a little fewer")
    return found


NAMES = {"EDM": "EDM (Heun)", "DPM-Solver++ 2M": "DPM-Solver++"}
COLORS = {
    "Euler-Maruyama": "#8a6fb0",
    "ancestral": INK,
    "DDIM": "#2a7f9e",
    "EDM": "#d9942b",
    "DPM-Solver++ 2M": "#5c8a4a",
    "UniPC-2": ACCENT,
}
REST = "#c4c8cc"


def draw(rows, path):
    plt = pyplot()
    figure = plt.figure(figsize=(17, 10.5), layout="constrained")
    above, below = figure.subfigures(2, 1)
    exact, points, digits = above.subplots(1, 3)
    between, orders = below.subplots(1, 2, width_ratios=(1.1, 1))
    found = {}
    for row in rows:
        if row.results:
            what = row.options["sweep.order of"] or row.options["sweep.sampler"]
            where = row.options["config"] or row.options["sweep.process"] or "orders"
            found.setdefault(where, {})[what] = row
    floor = found.get("orders", {}).pop(EXACT, None)
    floor = floor and floor.mean(MANY)
    curves(exact, found.get("vp", {}), EVALUATIONS, floor)
    exact.set_title(
        "Exact denoiser: UniPC meets the floor, within error,\nafter 20 evaluations, ancestral sampling after 100"
    )
    curves(points, found.get("points.py", {}), EVALUATIONS[:-1], floor)
    points.set_title("The same, with a learned denoiser:\nlittle is lost")
    curves(digits, found.get("digits.py", {}), EVALUATIONS[:-1])
    digits.set(ylabel="Frechet distance, in features")
    digits.set_title("Digits, learned: the ODE's samplers all end\nat the network's own error, 5 times the floor")
    every_process(between, found, floor)
    dots(orders, found.get("orders", {}))
    for panel in (exact, points, digits, between, orders):
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=11)
        for text in (panel.xaxis.label, panel.yaxis.label, panel.title):
            text.set_size(13)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def curves(panel, rows, counts, floor=None):
    """Distance against evaluations: some samplers in colour, with their names, the others in grey."""
    starts = {}
    for name, row in rows.items():
        means = [row.mean(f"N = {most}") for most in counts]
        spread = [row.error(f"N = {most}") or 0.0 for most in counts]
        look = {"color": COLORS[name], "lw": 2, "zorder": 3} if name in COLORS else {"color": REST, "lw": 1}
        panel.errorbar(counts, means, spread, marker="o", ms=4, capsize=2, **look)
        if name in COLORS:
            starts[name] = means[0]
    panel.set(xscale="log", yscale="log", xlim=(0.5, 1.3 * counts[-1]), xlabel="network evaluations")
    panel.set_ylabel("sliced Wasserstein distance")
    panel.set_xticks(counts, map(str, counts))
    panel.xaxis.minorticks_off()
    if rows:
        mark(panel, floor or next(iter(rows.values())).mean(FLOORS["digits"]), FLOORS["points" if floor else "digits"])
        names(panel, 4.5, starts)


def mark(panel, floor, what):
    """Shade what lies below the floor."""
    if not np.isnan(floor):
        panel.axhspan(0.4 * floor, floor, color=INK, alpha=0.12, lw=0)
        panel.set_ylim(0.4 * floor, None)
        panel.text(0.98, 0.03, what, transform=panel.transAxes, ha="right", va="bottom", fontsize=11)


def names(panel, x, starts):
    """Names before the curves, moved apart where they would touch."""
    low, high = np.log(panel.get_ylim())
    gap, last = 0.055 * (high - low), -np.inf
    for name, y in sorted(starts.items(), key=lambda start: start[1]):
        last = max(np.log(y), last + gap)
        at = {"ha": "right", "va": "center", "color": COLORS[name], "fontsize": 11}
        panel.text(x, np.exp(last), NAMES.get(name, name), **at)


def every_process(panel, found, floor):
    """After 20 and after 100 evaluations, process by process."""
    for i, key in enumerate(PROCESSES):
        for name in ("ancestral", "UniPC-2"):
            if row := found.get(key, {}).get(name):
                for most, aside, fill in ((20, -0.08, COLORS[name]), (100, 0.08, "white")):
                    look = {"color": COLORS[name], "mfc": fill, "marker": "o", "ms": 9, "capsize": 3, "zorder": 3}
                    panel.errorbar(i + aside, row.mean(f"N = {most}"), row.error(f"N = {most}") or 0.0, **look)
                if i == len(PROCESSES) - 1:
                    panel.text(i + 0.25, row.mean("N = 20"), name, color=COLORS[name], va="center", fontsize=11)
    panel.set(yscale="log", xlim=(-0.4, len(PROCESSES) + 0.3), ylabel="sliced Wasserstein distance")
    panel.set_xticks(range(len(PROCESSES)), [*PROCESSES])
    panel.set_title("Exact denoiser: under every process much the same\n(filled: 20 evaluations, open: 100)")
    mark(panel, np.nan if floor is None else floor, FLOORS["points"])


def dots(panel, rows):
    """The order of every sampler, under every process, and in theory."""
    for y, row in enumerate(rows.values()):
        measured = [row.mean(figure) for figure in row.figures if figure != "order in theory"]
        panel.plot(row.mean("order in theory"), y, "|", color=ACCENT, ms=22, mew=3)
        panel.plot(measured, [y] * len(measured), "o", color=INK, ms=5, alpha=0.5, mew=0)
    panel.set_yticks(range(len(rows)), [*rows])
    panel.set(xlim=(0.5, 3.5), ylim=(len(rows) - 0.4, -0.6), xticks=(1, 2, 3), xlabel="order of convergence")
    panel.set_title("Each has its order: measured under six processes (dots),\nand of theory (bars)")
