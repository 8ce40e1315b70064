"""Every sampler under every process: how good its draws are for so many network evaluations, and of what order it is.

    python experiments/samplers/samplers.py            writes table.md and figure.png beside itself, in half an hour
    python experiments/samplers/samplers.py --quick    the same in little, into the folder runs/

The denoiser is exact, of a mixture of two Gaussians in the plane, so what is wrong with the draws is the sampler's.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import jax
import numpy as np
from orders import CASES, LAM, OWN, Case, order
from orders import PROCESSES as SMOOTH

from scoregen.metrics import sliced_wasserstein
from scoregen.oracle import TWO_MODES
from scoregen.process import EDM, VE, VP, Flow, ddpm, ncsn
from scoregen.report import pyplot
from scoregen.rules import unsuited
from scoregen.samplers import (
    Ancestral,
    Consistent,
    Hold,
    Langevin,
    NoCorrector,
    ReverseDiffusion,
    SNRLangevin,
    evaluations,
    sample,
)

HERE = Path(__file__).parent
DRAWS, SETS = 5000, 8
TARGETS = (5, 10, 20, 50, 100, 200, 1000)
PROCESSES = {
    "ddpm": ddpm(),
    "ncsn": ncsn(0.01, 50.0, 1000),
    "vp": VP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": Flow(),
}
# With a corrector: how many evaluations a level, and the step from level to level.
CORRECTED = {
    "annealed Langevin, 3 steps": (Case(Hold(), LAM, "", 0, ""), lambda p: Langevin(0.2 * _least(p) ** 2, 3), 3),
    "ancestral + Langevin": (Case(Ancestral(), OWN, "", 0, ""), lambda p: Langevin(0.05 * _least(p) ** 2, 1), 2),
    "reverse diffusion + snr 0.16": (Case(ReverseDiffusion(), LAM, "", 0, ""), lambda p: SNRLangevin(0.16), 2),
    "consistent": (Case(Consistent(0.2), LAM, "", 0, ""), lambda p: NoCorrector(), 1),
}


def _least(process):
    return float(process.sigma(process.grid()[-1]))


def walks():
    """Name, predictor with its grid, corrector of a process, and levels for so many evaluations."""
    for name, case in CASES.items():
        yield name, case, lambda p: NoCorrector(), lambda e, k=case.evaluations: (e - 1) // k + 1
    for name, (case, corrector, each) in CORRECTED.items():
        extra = isinstance(case.predictor, Hold)
        yield name, case, corrector, lambda e, k=each, extra=extra: (e - extra) // k


def truth(seed, count=DRAWS):
    return np.asarray(TWO_MODES.sample(jax.random.key(1000 + seed), count))


def floor():
    """The distance of two sets of exact draws, and its spread."""
    pairs = [sliced_wasserstein(truth(2 * i), truth(2 * i + 1)) for i in range(SETS)]
    return float(np.mean(pairs)), float(np.std(pairs, ddof=1))


def quality(processes, targets):
    """The distances, as {process: {sampler: {evaluations: distance or a reason}}}."""
    found = {}
    for key, process in processes.items():
        predict = TWO_MODES.predict(process)
        for name, case, corrector, levels in walks():
            begin, cells = time.time(), {}
            reason = unsuited(process, case.predictor, corrector(process))
            for target in targets if reason is None else ():
                n = levels(target)
                if n < 2:
                    continue
                move = case.predictor, corrector(process)
                if target == 20:  # the others are the same program with another count
                    asked = evaluations(process, *move, n, grid=case.grid)
                    assert target - 2 <= asked <= target, (key, name, target, asked)
                drawn = jax.jit(
                    functools.partial(sample, process, predict, shape=(DRAWS, 2), grid=case.grid, n=n),
                    static_argnames=("predictor", "corrector"),
                )
                x = drawn(key=jax.random.key(0), predictor=move[0], corrector=move[1])
                cells[target] = sliced_wasserstein(np.asarray(x), truth(0))
            found.setdefault(key, {})[name] = reason or cells
            print(f"{key}, {name}: {time.time() - begin:.0f} s", flush=True)
    return found


def orders(processes, counts):
    """{process: {sampler: (order, errors)}}."""
    return {
        key: {name: order(process, case, counts[case.follows]) for name, case in CASES.items()}
        for key, process in processes.items()
    }


def cell(distance, level):
    return "-" if distance is None else "nan" if np.isnan(distance) else f"{distance / level:.3g}"


def table(found, targets, measured, level, spread):
    lines = [
        f"Distance to exact draws in units of that between two sets of exact draws, {level:.4f} +- {spread:.4f}",
        f"(sliced Wasserstein, {DRAWS:,} draws; 1 is as good as can be told), for so many network evaluations:",
        "",
        "| process | sampler | " + " | ".join(map(str, targets)) + " |",
        "|---|---|" + "---|" * len(targets),
    ]
    reasons: list[str] = []
    for key, samplers in found.items():
        for name, cells in samplers.items():
            if isinstance(cells, str):
                if cells not in reasons:
                    reasons.append(cells)
                said = [chr(ord("a") + reasons.index(cells))] * len(targets)
            else:
                said = [cell(cells.get(target), level) for target in targets]
            lines.append(f"| {key} | {name} | " + " | ".join(said) + " |")
    lines += ["", *(f"- **{chr(ord('a') + i)}**: {reason}" for i, reason in enumerate(reasons))]
    lines += [
        "",
        "The order of convergence: the slope, between the two longest walks, of the distance to the exact map of the",
        "ODE, or of the error of the variance on Gaussian data, in double precision; beside it the order of theory.",
        "",
        "| sampler | theory | " + " | ".join(measured) + " | error of the longest walk |",
        "|---|---|" + "---|" * (len(measured) + 1),
    ]
    for name, case in CASES.items():
        slopes = " | ".join(f"{measured[key][name][0]:.2f}" for key in measured)
        worst = max(measured[key][name][1][-1] for key in measured)
        lines.append(f"| {name} | {case.order} ({case.theory}) | {slopes} | {worst:.0e} |")
    return "\n".join(lines) + "\n"


STYLES = {"ODE": "-", "SDE": "--"}


def figure(path, found, targets, measured, counts, level):
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(17, 6), layout="constrained")
    shown = {
        "DDIM": "#2a7f9e",
        "EDM": "#e0a030",
        "DPM-Solver++ 2M": "#c8553d",
        "UniPC-2": "#7a4d8f",
        "ancestral": "#22313f",
        "SDE-DPM-Solver++ 2M": "#5c8a4a",
        "reverse diffusion": "#8d8d8d",
    }
    for panel, key in zip(axes[:2], ("vp", "edm"), strict=True):
        if key not in found:
            continue
        for name, color in shown.items():
            cells = found[key][name]
            style = STYLES[CASES[name].follows]
            panel.loglog(list(cells), list(cells.values()), style, color=color, marker="o", ms=4, label=name)
        panel.axhspan(0.1 * level, level, color="#22313f", alpha=0.12, lw=0)
        panel.text(targets[0], 0.5 * level, "two sets of exact draws", ha="left", va="bottom", fontsize=10)
        panel.set(xlabel="network evaluations", xticks=targets, ylim=(0.45 * level, None))
        panel.set_xticks(targets, map(str, targets))
        panel.minorticks_off()
        panel.set_title(f"distance to the data's law, process {key}")
    axes[0].set_ylabel("sliced Wasserstein distance")
    if axes[0].lines:
        axes[0].legend(frameon=False, title="solid: ODE, dashed: SDE", loc="upper right")
    for name, color in shown.items():
        case = CASES[name]
        steps, errors = np.array(counts[case.follows]) - 1, measured["vp"][name][1]
        axes[2].loglog(steps, errors, STYLES[case.follows], color=color, marker="o", ms=4)
        axes[2].annotate(f" {name}: {measured['vp'][name][0]:.2f}", (steps[-1], errors[-1]), color=color, va="center")
    axes[2].set_xlim(None, 12 * max(max(c) for c in counts.values()))
    axes[2].set(xlabel="steps", ylabel="error", title="error on vp, and its measured order")
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Quality against evaluations, and order, of every sampler.")
    parser.add_argument("--quick", action="store_true", help="the same in little, into the folder runs/")
    if parser.parse_args().quick:
        out, targets, processes = Path("runs", "samplers"), (10, 50), {key: PROCESSES[key] for key in ("ddpm", "vp")}
        smooth, counts = {"vp": SMOOTH["vp"]}, {"ODE": (33, 65), "SDE": (65, 129)}
    else:
        out, targets, processes, smooth = HERE, TARGETS, PROCESSES, SMOOTH
        counts = {"ODE": (65, 129, 257, 513), "SDE": (257, 513, 1025)}
    out.mkdir(parents=True, exist_ok=True)
    measured = orders(smooth, counts)
    level, spread = floor()
    found = quality(processes, targets)
    text = table(found, targets, measured, level, spread)
    (out / "table.md").write_text(text)
    print(text)
    figure(out / "figure.png", found, targets, measured, counts, level)


if __name__ == "__main__":
    main()
