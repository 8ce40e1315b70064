"""From a chain to its stochastic differential equation

With L levels, a walk down DDPM's chain ends at a distance of order 1/L from the data's law, and so do the simplest
solvers of its two differential equations. The bound closes as 1/L too, if a step has the variance of the forward one,
or if levels are even in log-SNR, and the decoder that of the least noise; with the posterior's variance on DDPM's own
levels it does not close. Distances: Wasserstein, of a mixture on the line, computed and not drawn. Likelihoods: nats
above those of the exact density, of eight Gaussians in the plane.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.special import ndtr

from scoregen.denoiser import as_process
from scoregen.likelihood import Bound, ProbabilityFlow
from scoregen.oracle import Mixture
from scoregen.process import VP, betas, normal, rows
from scoregen.report import ACCENT, INK, pyplot
from scoregen.samplers import Ancestral, EulerMaruyama
from scoregen.sweep import grid

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
FLAT = ("ODE, DDPM's levels", "forward variance")  # at the end, where they are 0 within their error
# Levels, the variance of a step, and the decoder: DDPM's or of variance sigma_0^2.
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
        with jax.enable_x64(run.experiment is None):
            found = [gap(run, levels) for levels in LEVELS]
    figures = {f"L = {levels}": value for levels, value in zip(LEVELS, found, strict=True)}
    if run.options.get("nats above", "").endswith(FLAT):
        return figures
    return figures | {"slope": np.polyfit(np.log(LEVELS[2:]), np.log(found[2:]), 1)[0]}


def chain(log_abar):
    """The variance-preserving chain with these log abar."""
    return betas(tuple(-np.expm1(np.diff(log_abar, prepend=0.0))))


def ddpm_levels(count):
    """DDPM's, whose beta_t is beta(t) / L, up to what is smaller: at t = 1/L, 2/L, ... 1 of the SDE."""
    t = np.arange(1, count + 1) / count
    return chain(-(0.1 * t + 19.9 * t**2 / 2))


def even_levels(count):
    """As noisy at both ends as DDPM with a thousand, and even in log-SNR between."""
    return chain(-np.logaddexp(0, -np.linspace(9.2, -10.0, count)))


def distance(name, levels):
    """Of a walk's end from the data: its density is carried down the levels, on a grid of points.

    A step from x is normal, with a mean m(x) and a deviation c that does not depend on x: of two draws of it whose
    noise is known, one has both. Without noise the shares of mass below the points are carried instead.
    """
    predictor, on_chain = WALKS[name]
    process = ddpm_levels(levels) if on_chain else VP(t_min=1 / levels)
    predict, times = LINE.predict(process), process.grid(levels)
    # Some 0.0086 apart: a sum over a normal density whose deviation is 0.0077, that of the shortest step's noise, is
    # then exact to 1e-7. Without noise so many that some end between the modes.
    x = jnp.linspace(-6.0, 6.0, 40_001 if name in DETERMINISTIC else 1401)
    width = x[1] - x[0]
    keys = [jax.vmap(lambda _, i=i: jax.random.key(i))(x) for i in (0, 1)]  # so that all points have one noise
    noises = [normal(key, (len(x), 1))[0, 0] for key in keys]

    def at(end):
        return jnp.full(len(x), end)

    def step(state, ends):
        points, density = state
        one, two = (predictor(process, predict, key, points[:, None], *map(at, ends))[:, 0] for key in keys)
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
        return predict(state[0][:, None], at(times[-1])).x0[:, 0], state[1]

    ends, density = map(np.asarray, walk(times))
    below = PchipInterpolator(ends, CubicSpline(x, density).antiderivative()(x))
    y = np.linspace(-3.5, 3.5, 20_001)
    truth = sum(w * ndtr((y - m[0]) / c) for w, m, c in zip(LINE.weights, LINE.means, LINE.stds, strict=True))
    return np.trapezoid(np.abs(below(np.clip(y, ends[0], ends[-1])) - truth), y)


def gap(run, levels):
    """Nats by which -log p is above that of the exact density, a mean over the same examples."""
    name = run.options["nats above"]
    key = jax.random.key(run.experiment.config.seed if run.experiment else run.options["seed"])
    process = even_levels(levels) if "even" in name else ddpm_levels(levels)
    predict = denoiser(run, process)
    x0 = RING.sample(key, EXAMPLES)
    if name.startswith("ODE"):
        x0, estimate = x0[:256], ProbabilityFlow(None, rtol=1e-5, atol=1e-5)
    elif name == "bound of DDPM":
        estimate = Bound(None, strata=0)
    else:
        estimate = Bound(None, variance="learned", strata=0)
        predict = varied(predict, lambda t: (t >= 0) if "forward" in name else (t == 0))
    found = jax.jit(functools.partial(estimate, process, predict))(key, x0)
    return float(jnp.mean(RING.log_prob(x0) - found.nats))


def denoiser(run, process):
    if run.experiment is None:
        return RING.predict(process)
    return as_process(run.experiment.predict(run.params), run.experiment.process, process)


def varied(predict, forward):
    """The forward step's variance at the times where `forward(t)` holds, at others the posterior's.

    Of the decoder, at 0, the first is sigma_0^2, what x0 has left of x_0's noise. DDPM's has the variance of a step
    from its first level, and goes to 0 as steps grow short.
    """

    def predict_(x, t):
        found = predict(x, t)
        return found._replace(between=jnp.broadcast_to(rows(forward(t).astype(x.dtype), x), x.shape))

    return predict_


def draw(rows, path):
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5.4), layout="constrained")
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
            means = np.maximum(means, LEAST / 2)  # so that what is 0 within its error leaves through the bottom
            right.errorbar(LEVELS, means, errors, color=GAPS[name], lw=2, capsize=3, label=label, **look)
    size = {"fontsize": 14}
    left.loglog(LEVELS, 0.8 / np.array(LEVELS), ":", color=INK, lw=1.5, label="1 / L")
    left.set_ylabel("Wasserstein distance from the data", fontsize=13)
    left.set_title("Samples: all three walks come to err as 1/L", **size)
    right.plot([], [], "s--", color="black", mfc="none", lw=2, label="dashed: trained networks")
    right.set(xscale="log", yscale="log", ylim=(LEAST, 60))
    right.set_ylabel("nats above the exact -log p", fontsize=13)
    right.set_title("Likelihood: with the posterior's variance the bound\nstays open on DDPM's levels", **size)
    for panel in (left, right):
        panel.set_xlabel("levels L", fontsize=13)
        panel.set_xticks(LEVELS, map(str, LEVELS))
        panel.minorticks_off()
        panel.tick_params(labelsize=11)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=11)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)
