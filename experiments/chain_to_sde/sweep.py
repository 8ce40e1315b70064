"""From a chain to its stochastic differential equation

With L levels, the samples of DDPM's chain have a distance of order 1/L from the data, and so do the samples of the
simplest solvers of its two differential equations. The gap between bound and likelihood also falls as 1/L if the
decoder has the variance of the least noise and, in addition, each step has the variance of the forward step or the
levels are even in log-SNR. With the variance of the posterior on DDPM's own levels, the gap does not close. Distances:
Wasserstein distances for a mixture on the line, computed and not estimated. Likelihoods: nats above the exact -log p,
for eight Gaussians in the plane.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.special import ndtr

from scoregen.app.figures import ACCENT, INK, figure, save
from scoregen.contrib.sweep import grid
from scoregen.denoiser import Denoiser
from scoregen.likelihood import Bound, ProbabilityFlow
from scoregen.process import VP, betas
from scoregen.random import broadcast, normal
from scoregen.samplers import Ancestral, EulerMaruyama, OwnGrid
from scoregen.testing.oracle import Mixture

LEVELS = (10, 30, 100, 300, 1000)
EXAMPLES = 1024
LEAST = 5e-3
LINE = Mixture((0.3, 0.7), ((-1.4,), (0.6,)), (0.35, 0.2))
TURN = 2 * np.pi * np.arange(8) / 8
RING = Mixture((1 / 8,) * 8, tuple(zip(1.4 * np.cos(TURN), 1.4 * np.sin(TURN), strict=True)), (0.15,) * 8)
WALKS = {
    "ancestral: the chain": (Ancestral(), True),
    "Euler-Maruyama: its reverse SDE": (EulerMaruyama(), False),
    "DDIM: its ODE": (Ancestral(0.0), True),
}
DETERMINISTIC = ("DDIM: its ODE",)
FLAT = ("ODE, DDPM's levels", "forward variance")  # no slope: the last values are 0 within their error
# A name has the levels, the variance of a step, and the decoder (a wide decoder has the variance sigma_0^2).
GAPS = {
    "bound of DDPM": ACCENT,
    "bound, DDPM's levels, wide decoder": "#d9a36a",
    "bound, DDPM's levels, forward variance": "#2a7f9e",
    "bound, even in log-SNR, wide decoder": "#8b9aa8",
    "ODE, DDPM's levels": INK,
}


def cells():
    yield from grid({"config": None, "sweep.distance of": list(WALKS)})
    gaps = list(GAPS)
    yield from grid({"config": None, "sweep.nats above": gaps, "sweep.denoiser": "exact", "seed": range(3)})
    yield from grid({"config": "network.py", "sweep.nats above": gaps, "sweep.denoiser": "trained", "seed": range(3)})


def measure(run):
    if walk := run.options.get("distance of"):
        with jax.enable_x64(True):
            found = [distance(walk, levels) for levels in LEVELS]
    else:
        with jax.enable_x64(run.run is None):
            found = [gap(run, levels) for levels in LEVELS]
    figures = {f"L = {levels}": value for levels, value in zip(LEVELS, found, strict=True)}
    if run.options.get("nats above", "").endswith(FLAT):
        return figures
    return figures | {"slope": np.polyfit(np.log(LEVELS[2:]), np.log(found[2:]), 1)[0]}


def chain(log_abar):
    """The variance-preserving chain with these log abar."""
    return betas(tuple(-np.expm1(np.diff(log_abar, prepend=0.0))))


def ddpm_levels(count):
    """DDPM's levels, with beta_t = beta(t) / L to first order: the times t = 1/L, 2/L, ... 1 of the SDE."""
    t = np.arange(1, count + 1) / count
    return chain(-(0.1 * t + 19.9 * t**2 / 2))


def even_levels(count):
    """Levels even in log-SNR, with the same ends as DDPM with a thousand levels."""
    return chain(-np.logaddexp(0, -np.linspace(9.2, -10.0, count)))


def distance(name, levels):
    """The distance of samples from the data. The steps carry the density of x down the levels, on a grid of points.

    A step from x has a normal distribution with a mean m(x) and a standard deviation that does not depend on x. Two
    draws with known noise determine both. For a step without noise, the mass below each point is carried instead.
    """
    solver, on_chain = WALKS[name]
    process = ddpm_levels(levels) if on_chain else VP(t_min=1 / levels)
    denoiser, times = LINE.denoiser(process), OwnGrid()(process, levels)
    # 1401 points are 0.0086 apart, and the noise of the shortest step has a standard deviation of 0.0077, so a sum over
    # its normal density is exact to 1e-7. Without noise, 40,001 points make sure that some end between the modes.
    x = jnp.linspace(-6.0, 6.0, 40_001 if name in DETERMINISTIC else 1401)
    width = x[1] - x[0]
    keys = [jax.vmap(lambda _, i=i: jax.random.key(i))(x) for i in (0, 1)]  # the same noise at all points
    noises = [normal(key, (len(x), 1))[0, 0] for key in keys]

    def at(end):
        return jnp.full(len(x), end)

    def step(state, ends):
        points, density = state
        one, two = (solver.step(denoiser, key, points[:, None], *map(at, ends), ())[0][:, 0] for key in keys)
        if name in DETERMINISTIC:
            return (one, density), None
        deviation = (one[0] - two[0]) / (noises[0] - noises[1])
        off = (x[:, None] - (one - deviation * noises[0])) / deviation
        kernel = jnp.exp(-0.5 * off**2) / (deviation * jnp.sqrt(2 * jnp.pi))
        return (points, width * kernel @ density), None

    @jax.jit
    def walk(times):
        std = process.prior_std()
        density = jnp.exp(-0.5 * (x / std) ** 2) / (std * jnp.sqrt(2 * jnp.pi))
        state, _ = jax.lax.scan(step, (x, density), (times[:-1], times[1:]))
        return denoiser(state[0][:, None], at(times[-1])).x0[:, 0], state[1]

    ends, density = map(np.asarray, walk(times))
    below = PchipInterpolator(ends, CubicSpline(x, density).antiderivative()(x))
    y = np.linspace(-3.5, 3.5, 20_001)
    truth = sum(w * ndtr((y - m[0]) / c) for w, m, c in zip(LINE.weights, LINE.means, LINE.stds, strict=True))
    return np.trapezoid(np.abs(below(np.clip(y, ends[0], ends[-1])) - truth), y)


def gap(run, levels):
    """The mean of -log p minus the exact -log p over the same examples, in nats."""
    name = run.options["nats above"]
    key = jax.random.key(run.config.seed if run.run else run.options["seed"])
    denoiser = denoiser_under(run, even_levels(levels) if "even" in name else ddpm_levels(levels))
    x0 = RING.sample(key, EXAMPLES)
    if name.startswith("ODE"):
        x0, estimate = x0[:256], ProbabilityFlow(rtol=1e-5, atol=1e-5)
    elif name == "bound of DDPM":
        estimate = Bound(strata=0)
    else:
        estimate = Bound(variance="learned", strata=0)
        denoiser = forward_variance(denoiser, decoder_only="forward" not in name)
    found = jax.jit(estimate)(denoiser, key, x0)
    return float(jnp.mean(RING.log_prob(x0) - found.nats))


def denoiser_under(run, process):
    """The exact or the trained denoiser, under this process."""
    return RING.denoiser(process) if run.run is None else run.run.denoiser.under(process)


def forward_variance(denoiser, decoder_only):
    """The denoiser with the forward step's variance: at all levels, or only in the decoder, at level 0.

    The decoder then has the variance sigma_0^2 of the noise at level 0. DDPM's decoder has the variance of a step from
    the first level, which goes to 0 as the steps get shorter.
    """
    last = 0 if decoder_only else denoiser.process.ends[1]
    return Denoiser(denoiser.process, Partial(with_variance, denoiser, last))


def with_variance(denoiser, last, x, t):
    """The prediction, with the forward step's variance at the levels 0 to `last` and the posterior's above them."""
    between = broadcast((t <= last).astype(x.dtype), x)
    return denoiser(x, t)._replace(between=jnp.broadcast_to(between, x.shape))


def draw(rows, path):
    page, ((left, right),) = figure(1, 2, (14, 5.4))
    colors = dict(zip(WALKS, (ACCENT, "#d9a36a", INK), strict=True))
    for row in rows:
        if not row.results:
            continue
        means = np.array([row.mean(f"L = {levels}") for levels in LEVELS])
        errors = [row.error(f"L = {levels}") or 0.0 for levels in LEVELS]
        if name := row.options["sweep.distance of"]:
            left.loglog(LEVELS, means, "o-", color=colors[name], lw=2)
            label = f"{name}, slope {row.mean('slope'):.2f}"
            left.plot([], [], "o-", color=colors[name], lw=2, label=label)
        else:
            name, trained = row.options["sweep.nats above"], row.options["sweep.denoiser"] == "trained"
            look = {"ls": "--", "marker": "s", "mfc": "none"} if trained else {"ls": "-", "marker": "o"}
            label = None if trained else name
            means = np.maximum(means, LEAST / 2)  # a value of 0 within its error is drawn below the panel
            right.errorbar(LEVELS, means, errors, color=GAPS[name], lw=2, capsize=3, label=label, **look)
    size = {"fontsize": 14}
    left.loglog(LEVELS, 0.8 / np.array(LEVELS), ":", color=INK, lw=1.5, label="1 / L")
    left.set_ylabel("Wasserstein distance from the data", fontsize=13)
    left.set_title("Samples: the distance of all three falls as 1/L", **size)
    right.plot([], [], "s--", color="black", mfc="none", lw=2, label="dashed: trained networks")
    right.set(xscale="log", yscale="log", ylim=(LEAST, 60))
    right.set_ylabel("nats above the exact -log p", fontsize=13)
    right.set_title(
        "Likelihood: on the levels of DDPM, with the variance\nof the posterior, the bound keeps a gap", **size
    )
    for panel in (left, right):
        panel.set_xlabel("levels L", fontsize=13)
        panel.set_xticks(LEVELS, map(str, LEVELS))
        panel.minorticks_off()
        panel.tick_params(labelsize=11)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=11)
        panel.spines[["top", "right"]].set_visible(False)
    save(path, page, dpi=100)
