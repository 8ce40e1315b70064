"""DDPM and NCSN are one model

A network that was trained as one of the two can be sampled as the other. Neither for points nor for small digits is
there a visible loss of quality. Every term L_{t-1} of the variational bound, a divergence of two Gaussians, is
denoising score matching at its noise level with its own weight. Distances: sliced Wasserstein distances for points,
Frechet distances in the features of a small classifier for digits.
"""

import jax
import jax.numpy as jnp
import numpy as np

from scoregen.app.build import build
from scoregen.app.config import load
from scoregen.app.evaluate import distance_to_data
from scoregen.app.figures import ACCENT, INK, empty, save
from scoregen.app.report import sheet
from scoregen.app.sampling import held_out
from scoregen.contrib.sweep import grid
from scoregen.losses import DSM
from scoregen.process import perturb, posterior, snr_loss_rate

PAIRS = {"ddpm_toy": "ncsn_toy", "ncsn_toy": "ddpm_toy", "ddpm_digits": "ncsn_digits", "ncsn_digits": "ddpm_digits"}
NAMES = {"ddpm": "DDPM, ancestral", "ncsn": "NCSN, annealed Langevin"}
SMALL = {"eval.at_end": False, "sampler.images": 64, "sampler.batch": 500}


def cells():
    yield from grid(SMALL, {"config": ["ddpm_toy", "ncsn_toy"], "eval.samples": 4000, "seed": range(3)})
    digits = {"config": ["ddpm_digits", "ncsn_digits"], "net.unet.channels": 16, "eval.samples": 500}
    yield from grid(SMALL, digits, {"seed": range(4)})


def measure(run):
    figures, dataset, scaling = {}, run.parts.dataset, run.parts.scaling
    distance = distance_to_data(dataset, scaling)
    for name, sampling in sorted(both(run.parts).items()):
        drawn = sampling(run.run.params, run.config.eval.samples)
        np.save(run.workdir / f"{name}.npy", scaling.to_bytes(drawn[:16]) if dataset.is_image else drawn)
        found = distance(drawn)
        figures[f"distance, sampled as {NAMES[name]}"] = found.value, found.floor
        figures[f"evaluations as {name.upper()}"] = sampling.sampler.evaluations(sampling.process)
    return figures | terms(run)


def both(parts):
    """The sampling of the network by its own preset and by the other preset, by the name of the process."""
    config = parts.config.copy_and_resolve_references()
    other = load(PAIRS[config.name])
    config.sampler = other.sampler
    config.sampler.batch = parts.config.sampler.batch
    config.sampler.process.name = other.process.name
    config.sampler.process[other.process.name] = other.process[other.process.name]
    return {
        config.process.name: parts.sampling,
        other.process.name: build(config, "sample", parts.dataset).sampling,
    }


def terms(run):
    """L_{t-1} at all levels, from the two Gaussians and from the DSM loss, in double precision.

    The parameters of the network are the trained ones. The levels are computed again in double precision, because in
    single precision the difference of two neighbouring log-SNRs has few digits. All levels use the same noise, so that
    their terms are comparable.
    """
    dataset = run.parts.dataset
    examples = 16 if dataset.is_image else 256
    noise = jax.random.key(run.config.seed)
    with jax.enable_x64(True):
        model = build(run.config, "sample", dataset).model
        process = model.process
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), run.run.params)
        x0 = jnp.asarray(held_out(dataset, run.parts.scaling, run.config.seed, np.arange(examples)), jnp.float64)

        @jax.jit
        def at(params, level):
            t = jnp.full(examples, level)
            noised = perturb(process, noise, x0, t)
            denoiser = model.denoiser(params)
            estimate = denoiser(noised.x, t).x0
            (mean, std), (guess, _) = (posterior(process, noised.x, x, t, t - 1) for x in (x0, estimate))
            kl = jnp.sum((mean - guess) ** 2, range(1, x0.ndim)) / (2 * std**2)
            dsm = DSM()(denoiser, noised, noise)
            return kl.mean(), dsm.mean(), snr_loss_rate(process, t)[0]

        found = np.array([at(params, level) for level in range(1, process.levels)])
    kl, dsm, weight = found.T
    np.save(run.workdir / "terms.npy", found)
    return {
        "sum of L_{t-1} (nats)": kl.sum(),
        "sum of weighted DSM (nats)": (weight * dsm).sum(),
        "largest difference of a term (relative)": np.abs(weight * dsm / kl - 1).max(),
    }


def draw(rows, path):
    page = empty((17, 6.2))
    left, right = page.subfigures(1, 2, width_ratios=(1.85, 1))
    panels = left.subplots(2, 4)
    done = {row.options["config"]: row.folders[0] for row in rows if row.folders}
    for line, kind in zip(panels, ("toy", "digits"), strict=True):
        pairs = [(a, b) for a in ("ddpm", "ncsn") for b in ("ddpm", "ncsn")]
        for panel, (trained, sampled) in zip(line, pairs, strict=True):
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
            if kind == "toy":
                panel.set_title(f"trained as {trained.upper()},\nsampled as {sampled.upper()}", fontsize=13)
            if folder := done.get(f"{trained}_{kind}"):
                show(panel, np.load(folder / f"{sampled}.npy"), INK if trained == sampled else ACCENT)

    panel = right.subplots()
    if "ddpm_toy" in done:
        kl, dsm, weight = np.load(done["ddpm_toy"] / "terms.npy").T
        t = np.arange(1, len(kl) + 1)
        some = np.unique(np.geomspace(1, len(kl), 22).astype(int)) - 1
        panel.loglog(t, kl, color=ACCENT, lw=3, label="divergence of the two Gaussians")
        panel.loglog(t[some], (weight * dsm)[some], "o", color=INK, ms=7, mfc="none", mew=1.6, label="DSM x its weight")
        panel.loglog(t, dsm, color=INK, lw=1.5, ls=":", label="DSM without the weight")
    panel.set_xlabel("level t of DDPM (right: noise)", fontsize=12)
    panel.set_ylabel("nats", fontsize=12)
    panel.set_title("Each term of the bound, L$_{t-1}$,\nis denoising score matching", fontsize=13)
    panel.legend(frameon=False, fontsize=12)
    panel.tick_params(labelsize=11)
    panel.spines[["top", "right"]].set_visible(False)
    save(path, page, dpi=100)


def show(panel, samples, color):
    """Points in this colour, or a sheet of digits."""
    if samples.ndim == 2:
        panel.scatter(*samples.T, s=3, lw=0, alpha=0.4, color=color)
        panel.set(xlim=(-2.1, 2.1), ylim=(-2.1, 2.1), aspect="equal")
    else:
        panel.imshow(sheet(samples, 320))
