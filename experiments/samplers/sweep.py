"""Quality against network evaluations

With an exact denoiser, nearly every sampler comes as near to the data as its starts and draws allow: the best samplers
after 20 evaluations, the slowest after a thousand, and consistent sampling never. With networks, all samplers of the
ODE end at the error of the network, after 20 to 50 evaluations. Each sampler has the order of convergence that theory
gives (Euler-Maruyama under ve only with more levels). Distances: sliced Wasserstein distances for points, Frechet
distances in the features of a small classifier for digits.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from orders import CASES, LAM, OWN, once, order
from orders import PROCESSES as SMOOTH

from scoregen.app.evaluate import distance_to_data
from scoregen.app.figures import ACCENT, INK, empty, save
from scoregen.contrib.sweep import grid
from scoregen.denoiser import Denoiser
from scoregen.metrics import sliced_wasserstein
from scoregen.process import EDM, VE, VP, Flow, bottom, ddpm, ncsn
from scoregen.samplers import (
    Ancestral,
    Consistent,
    EDMHeun,
    Hold,
    Karras,
    Langevin,
    ReverseDiffusion,
    Sampler,
    SNRLangevin,
)
from scoregen.testing.oracle import Mixture

DRAWS = 16000
PAIRS = 16  # pairs of exact sets for each seed
EVALUATIONS = (5, 10, 20, 50, 100, 1000)  # the last number only with the exact denoiser
SIDE = 3.5 / np.sqrt(2)
MODES = Mixture((0.8, 0.2), ((-0.2 * SIDE,) * 2, (0.8 * SIDE,) * 2), (0.2, 0.2))  # the data set two_modes
PROCESSES = {"vp": VP(), "ve": VE(), "edm": EDM(), "flow": Flow(), "ddpm": ddpm(), "ncsn": ncsn(0.01, 50.0, 1000)}


@dataclasses.dataclass(frozen=True)
class Walk:
    """A sampler on a grid, with its evaluations for each step, and for the corrector at each level."""

    step: Any
    grid: Any
    stepping: int = 1
    corrector: Callable = lambda process: None
    correcting: int = 0


def least(process):
    """The noise variance at the least noisy level, which is the unit of Langevin steps."""
    return float(process.sigma(bottom(process))) ** 2


WALKS = {name: Walk(case.step, case.grid, case.evaluations) for name, case in CASES.items()} | {
    "DDIM, Karras's levels": Walk(Ancestral(0.0), Karras()),
    "EDM, own levels": Walk(EDMHeun(), OWN, 2),
    "consistent": Walk(Consistent(0.2), LAM),
    "annealed Langevin, 2 steps": Walk(Hold(), LAM, 0, lambda process: Langevin(0.2 * least(process), 2), 2),
    "ancestral + Langevin": Walk(Ancestral(), OWN, 1, lambda process: Langevin(0.05 * least(process), 1), 1),
    "reverse diffusion + snr 0.16": Walk(ReverseDiffusion(), LAM, 1, lambda process: SNRLangevin(0.16), 1),
}
EXACT = "none: exact draws"
MANY, SCATTER = f"mean of {PAIRS} pairs of sets", "standard deviation of a pair"
TRAINED = ["ancestral", "DDIM", "EDM", "UniPC-2"]


def cells():
    exact = {"config": None, "sweep.process": list(PROCESSES), "sweep.sampler": ["ancestral", "UniPC-2"]}
    yield from grid(exact | {"sweep.process": "vp", "sweep.sampler": list(WALKS)}, {"seed": range(3)})
    yield from grid(exact | {"sweep.process": [key for key in PROCESSES if key != "vp"]}, {"seed": range(3)})
    yield from grid({"config": None, "sweep.sampler": EXACT, "seed": range(3)})
    yield from grid({"config": "points.py", "sweep.sampler": TRAINED, "seed": range(3)})
    yield from grid({"config": "digits.py", "sweep.sampler": TRAINED, "seed": range(2)})
    for name, case in CASES.items():
        yield {"config": None, "sweep.order of": name, "sweep.what it is": case.theory}


def measure(run):
    if name := run.options.get("order of"):
        orders = {f"under {key}": order(process, CASES[name])[0] for key, process in SMOOTH.items()}
        return {"order in theory": CASES[name].order} | orders
    if run.options["sampler"] == EXACT:
        found = [sliced_wasserstein(*exact_sets(run.options["seed"] + 3 * i)) for i in range(PAIRS)]
        return {"the pair of this seed": found[0], MANY: np.mean(found), SCATTER: np.std(found, ddof=1)}
    walk, parts = WALKS[run.options["sampler"]], None if run.run is None else run.parts
    if parts is None:
        process, seed, shape = PROCESSES[run.options["process"]], run.options["seed"], (DRAWS, 2)
        denoiser = MODES.denoiser(process)
    else:
        data, seed, denoiser = parts.dataset, run.config.seed, parts.sampling.denoiser(run.run.params)
        shape = (run.config.eval.samples if data.is_image else DRAWS, *data.shape)
    if len(shape) == 2:
        real, _ = exact_sets(seed)
        distance = lambda points: sliced_wasserstein(points, real)  # noqa: E731
    else:
        judged = distance_to_data(parts.dataset, parts.scaling)
        distance = lambda images: ((found := judged(images)).value, found.floor)  # noqa: E731
    counts = EVALUATIONS if parts is None else EVALUATIONS[:-1]
    return {f"N = {most}": distance(draws(denoiser, walk, most, seed, shape)) for most in counts}


def exact_sets(seed):
    """Two sets of exact draws `[DRAWS, 2]`."""
    return [np.asarray(drawn_exactly(jax.random.key(1000 * i + seed))) for i in (1, 2)]


@once
def drawn_exactly(key):
    return MODES.sample(key, DRAWS)


def draws(denoiser, walk, most, seed, shape):
    """Samples with as many levels as `most` evaluations of the network allow. The run counts its evaluations."""
    levels = (most - 1 - walk.correcting) // (walk.stepping + walk.correcting) + 1
    due = (levels - 1) * walk.stepping + levels * walk.correcting + 1  # one more to denoise at the end
    evaluations = 0

    def count():
        nonlocal evaluations
        evaluations += 1

    def counted(denoiser, x, t):
        jax.debug.callback(count)
        return denoiser(x, t)

    sampler = Sampler(walk.step, walk.corrector(denoiser.process), walk.grid, levels)

    @once
    def drawn(denoiser, key):
        return sampler(Denoiser(denoiser.process, Partial(counted, denoiser)), key, shape)

    found = np.asarray(drawn(denoiser, jax.random.key(seed)))
    jax.effects_barrier()
    if evaluations != due:
        raise ValueError(f"{levels} levels took {evaluations} evaluations, not {due}")
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
APART = "consistent"


def draw(rows, path):
    page = empty((17, 10.5))
    above, below = page.subfigures(2, 1)
    exact, points, digits = above.subplots(1, 3)
    points.sharey(exact)
    between, orders = below.subplots(1, 2, width_ratios=(1.1, 1))
    found, floor = {}, None
    for row in rows:
        if row.results:
            what = row.options["sweep.order of"] or row.options["sweep.sampler"]
            where = row.options["config"] or row.options["sweep.process"] or "orders"
            if what == EXACT:
                floor = row.mean(MANY), row.mean(SCATTER) / np.sqrt(3)
            else:
                found.setdefault(where, {})[what] = row
    curves(exact, found.get("vp", {}), EVALUATIONS)
    exact.set_title("Exact denoiser: UniPC is at its limit after 20\nevaluations, ancestral sampling after 1,000")
    curves(points, found.get("points.py", {}), EVALUATIONS[:-1])
    points.set_title("With a learned denoiser: from 20 evaluations on\nlittle is lost, at 5 much by EDM and UniPC")
    curves(digits, found.get("digits.py", {}), EVALUATIONS[:-1])
    if rows_of_digits := found.get("digits.py"):
        least = next(iter(rows_of_digits.values())).floor("N = 5")
        digits.axhline(least, color=INK, ls=":", lw=1.5)
        digits.text(100, 1.05 * least, "as many real digits", ha="right", va="bottom", fontsize=11)
    digits.set(ylabel="Frechet distance, in features")
    digits.set_title("Digits, learned: after 20 to 50 evaluations\nwhat is left is the network's error")
    every_process(between, found)
    for panel in (exact, points, between):
        mark(panel, floor)
    dots(orders, found.get("orders", {}))
    for panel in (exact, points, digits, between, orders):
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=11)
        for text in (panel.xaxis.label, panel.yaxis.label, panel.title):
            text.set_size(13)
    save(path, page, dpi=100)


def curves(panel, rows, counts):
    """Draw distances against evaluations, with some samplers in colour and the others in grey."""
    for name, row in rows.items():
        means = [row.mean(f"N = {most}") for most in counts]
        spread = [row.error(f"N = {most}") or 0.0 for most in counts]
        look = {"color": REST, "lw": 1}
        if name in COLORS:
            look = {"color": COLORS[name], "lw": 2, "zorder": 3, "label": NAMES.get(name, name)}
        panel.errorbar(counts, means, spread, marker="o", ms=4, capsize=2, **look)
        if name == APART:
            panel.text(counts[-1], 1.15 * means[-1], name, ha="right", va="bottom", color="#7d868d", fontsize=11)
    panel.set(xscale="log", yscale="log", xlim=(4, 1.3 * counts[-1]), xlabel="network evaluations")
    panel.set_ylabel("sliced Wasserstein distance")
    panel.set_xticks(counts, map(str, counts))
    panel.xaxis.minorticks_off()
    if others := len(rows.keys() - COLORS.keys()):
        panel.plot([], [], color=REST, label=f"{others} others, in table.md")
    if rows:
        panel.legend(fontsize=11, frameon=False, loc="upper right")


def mark(panel, floor):
    """Draw the mean distance of exact draws, and the standard error of three seeds."""
    if floor is not None:
        mean, error = floor
        panel.axhspan(mean - error, mean + error, color=INK, alpha=0.12, lw=0)
        panel.axhline(mean, color=INK, ls=":", lw=1.5)
        at = {"transform": panel.get_yaxis_transform(), "ha": "left", "va": "top", "fontsize": 11}
        panel.text(0.02, 0.94 * (mean - error), "exact draws, ± error of three seeds", **at)
        panel.set_ylim(0.5 * (mean - error), None)


def every_process(panel, found):
    """Draw the distances after 20 and after 100 evaluations, for each process."""
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
    panel.set_title("Exact denoiser, any process: UniPC is at its\nlimit after 20 evaluations (filled; open: 100)")


def dots(panel, rows):
    """Draw the order of every sampler under every process, and its order in theory."""
    for y, row in enumerate(rows.values()):
        measured = [row.mean(figure) for figure in row.figures if figure != "order in theory"]
        panel.plot(row.mean("order in theory"), y, "|", color=ACCENT, ms=22, mew=3)
        panel.plot(measured, [y] * len(measured), "o", color=INK, ms=5, alpha=0.5, mew=0)
        if abs(max(measured) - row.mean("order in theory")) > 0.2:
            panel.text(max(measured) + 0.06, y, "ve: nearer to 1 with more levels", va="center", fontsize=11)
    panel.set_yticks(range(len(rows)), [*rows])
    panel.set(xlim=(0.5, 3.5), ylim=(len(rows) - 0.4, -0.6), xticks=(1, 2, 3), xlabel="order of convergence")
    panel.set_title("Orders: measured under " + ", ".join(SMOOTH) + "\n(dots), and of theory (bars)")
