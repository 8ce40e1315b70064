"""Train a toy DDPM and a toy NCSN, sample each by its own sampler and, through as_process, by the other's.

    python experiments/bridge/bridge.py

Writes table.md and figure.png beside this script; the runs go to runs/ and are not trained twice.
"""

from pathlib import Path

import numpy as np

from scoregen.checkpoint import Checkpoints
from scoregen.config import load
from scoregen.experiment import assemble
from scoregen.metrics import mmd, sliced_wasserstein
from scoregen.report import pyplot
from scoregen.run import main
from scoregen.train import make_sampler, restore_average

HERE = Path(__file__).parent
SETS, SIZE = 6, 4000  # independent sets of samples, so that each distance has an error


def settings(trained, sampled):
    """The configuration of a run trained as one process and sampled as the other."""
    config, other = load(f"{trained}_toy"), load(f"{sampled}_toy")
    config.sampler = other.sampler
    if trained != sampled:
        config.sampler.process.name = sampled
        config.sampler.process[sampled] = other.process[sampled]
    return config


def summary(values):
    return np.mean(values), np.std(values, ddof=1)


def run():
    rows, pictures = [], []
    for trained in ("ddpm", "ncsn"):
        workdir = Path("runs", f"{trained}_toy")
        if main([f"--config={trained}_toy", f"--workdir={workdir}"]):
            raise SystemExit(2)
        for sampled in ("ddpm", "ncsn"):
            config = settings(trained, sampled)
            experiment = assemble(config)
            params, _ = restore_average(experiment, Checkpoints(workdir / "checkpoints"))
            drawn = make_sampler(experiment)(params, SETS * SIZE)
            test = experiment.dataset.test
            sets = drawn.reshape(SETS, SIZE, 2)
            rows.append(
                (
                    trained.upper(),
                    {"ddpm": "DDPM, ancestral", "ncsn": "NCSN, annealed Langevin"}[sampled],
                    *summary([sliced_wasserstein(x, test) for x in sets]),
                    *summary([mmd(x, test) for x in sets]),
                )
            )
            pictures.append((f"trained as {trained.upper()}, sampled as {sampled.upper()}", sets[0]))
    real = experiment.dataset.train[: 5 * SIZE].reshape(5, SIZE, 2)
    floor = (*summary([sliced_wasserstein(x, test) for x in real]), *summary([mmd(x, test) for x in real]))
    rows.append(("real data", "(the floor)", *floor))
    return rows, pictures


def write(rows, pictures):
    lines = ["| trained as | sampled as | sliced Wasserstein | MMD |", "|---|---|---|---|"]
    lines += [f"| {a} | {b} | {sw:.4f} +- {sws:.4f} | {k:.4f} +- {ks:.4f} |" for a, b, sw, sws, k, ks in rows]
    (HERE / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))

    plt = pyplot()
    figure, axes = plt.subplots(1, 4, figsize=(15, 4), layout="constrained")
    for panel, (title, points) in zip(axes, pictures, strict=True):
        native = title.split()[2].strip(",") == title.split()[-1]
        panel.scatter(*points.T, s=3, linewidths=0, alpha=0.5, color="#22313f" if native else "#c8553d")
        panel.set(xlim=(-2.1, 2.1), ylim=(-2.1, 2.1), aspect="equal", title=title)
        panel.tick_params(labelsize=8)
    figure.savefig(HERE / "figure.png", dpi=100)


if __name__ == "__main__":
    write(*run())
