"""Cost, noise and bias of sliced, finite-difference and exact score matching.

    python experiments/losses/estimators.py            writes estimators.md and .png beside itself
    python experiments/losses/estimators.py --quick    a small version, into the folder runs/

Every error is an error of the gradient of one example in the parameters of the network, in units of ||E gradient||. In
a batch of B it is sqrt(B) times smaller. The sliced losses are compared with `ISM`, whose trace is exact, at the same
x_t. `DSM` is compared with the Fisher divergence, whose score is exact, at the same x_t.
"""

import argparse
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from scoregen.app.figures import figure, save
from scoregen.cond import Cond
from scoregen.denoiser import CONDITIONS, from_network
from scoregen.losses import DSM, FDSSM, ISM, SSM
from scoregen.losses.matching import PROJECTIONS
from scoregen.nets import MLP
from scoregen.process import VP, Noised, perturb
from scoregen.random import example_keys
from scoregen.testing.oracle import Mixture
from scoregen.times import Own

HERE = Path(__file__).parent
PROCESS = VP()
SLICED = {"SSM": lambda *a: SSM(*a, variance_reduced=False), "SSM-VR": SSM, "FD-SSM": FDSSM}  # type: ignore[arg-type]
COLOURS = {"DSM": "#22313f", "ISM": "#7d7d7d", "SSM": "#e0a030", "SSM-VR": "#2a7f9e", "FD-SSM": "#c8553d"}


def mixture(dims, components=8, std=0.3):
    """A Gaussian mixture of about unit variance in each of its dimensions."""
    means = math.sqrt(1 - std**2) * np.random.default_rng(0).standard_normal((components, dims))
    return Mixture((1 / components,) * components, tuple(map(tuple, means)), (std,) * components)


def random_weights(params, seed=0, dtype="float32"):
    """Random weights that preserve the variance. Unlike in an untrained network, no layer is zero."""
    rng = np.random.default_rng(seed)

    def weights(leaf):
        fan = math.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 4
        return jnp.asarray(rng.standard_normal(leaf.shape) / math.sqrt(fan), dtype)

    return jax.tree.map(weights, params)


def network(net, shape, dtype="float32"):
    """Random weights `[P]`, and a function from such weights to a denoiser; the output of `net` is eps."""
    template = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)), Cond(jnp.zeros(1)))
    flat, unravel = ravel_pytree(random_weights(template, dtype=dtype))

    def denoiser(weights):
        params = unravel(weights)
        return from_network(PROCESS, "eps", lambda x, t: net.apply(params, x, Cond(CONDITIONS["logsnr"](PROCESS, t))))

    return flat, denoiser


def times(key, count):
    """Times `[count]` from the training law."""
    return Own().draw(PROCESS, (), key, count).t


def noised_batch(data, count, seed=1):
    """Draws of x_t, with t from the training law."""
    keys = jax.random.split(jax.random.key(seed), 3)
    return perturb(PROCESS, keys[1], data.sample(keys[2], count), times(keys[0], count))


class Fisher:
    """sigma^2 / 2 ||s_theta - grad log p_t||^2 at x_t. DSM is an unbiased estimate of it, up to a constant."""

    def __init__(self, data):
        self.data = data

    def __call__(self, denoiser, noised, key):
        process = denoiser.process
        gap = denoiser(noised.x, noised.t).score - self.data.score(process, noised.x, noised.t)
        return 0.5 * process.sigma(noised.t) ** 2 * jnp.sum(gap**2, 1)

    def constant(self, process, noised):
        """E[DSM | x_t] - Fisher = 1/2 tr Cov(eps | x_t) = 1/2 (D + sigma^2 tr grad^2 log p_t), `[B]`."""
        exact = self.data.denoiser(process)
        square = jnp.sum(exact(noised.x, noised.t).eps ** 2, 1)
        return 0.5 * (self.data.dim + ISM()(exact, noised, jax.random.key(0)) - 0.5 * square)


def per_example(loss, denoiser, weights, noised, seed=0, chunk=64):
    """The loss `[N]` and the gradient `[N, P]` of each single example."""

    def one(weights, row, key):
        batch = jax.tree.map(lambda a: a[None], row)
        return loss(denoiser(weights), batch, key[None])[0]

    many = jax.jit(jax.vmap(jax.value_and_grad(one), (None, 0, 0)))
    keys, values, gradients = example_keys(jax.random.key(seed), len(noised.x)), [], []
    for i in range(0, len(noised.x), chunk):
        part = jax.tree.map(lambda a, i=i: a[i : i + chunk], (noised, keys))
        value, gradient = many(weights, *part)
        values.append(np.asarray(value))
        gradients.append(np.asarray(gradient))
    return np.concatenate(values), np.concatenate(gradients)


class Accuracy:
    """Errors at one D. All exact values are computed once, and each estimator is compared with them."""

    def __init__(self, dims, count):
        self.weights, self.denoiser = network(MLP(), (dims,))
        data = mixture(dims)
        fisher = Fisher(data)
        many = noised_batch(data, 16 * count, seed=2)
        key = jax.random.key(0)

        def mean_loss(w):
            return jnp.mean(fisher(self.denoiser(w), many, key))

        # All losses have the same expected gradient; the Fisher divergence estimates it with the least noise.
        self.scale, mean = jax.jit(jax.value_and_grad(mean_loss))(self.weights)
        self.size = float(jnp.linalg.norm(mean))
        self.direction = np.asarray(mean) / self.size
        self.noised = noised_batch(data, count)
        self.fisher = per_example(fisher, self.denoiser, self.weights, self.noised)
        self.fisher = (self.fisher[0] + np.asarray(jax.jit(fisher.constant)(PROCESS, self.noised)), self.fisher[1])
        self.ism = per_example(ISM(), self.denoiser, self.weights, self.noised)

    def __call__(self, loss):
        """RMS errors of loss, gradient, and gradient with the noise of the data; the bias and its standard error."""
        is_ism = isinstance(loss, ISM)
        value, gradient = self.ism if is_ism else per_example(loss, self.denoiser, self.weights, self.noised)
        exact = self.fisher if isinstance(loss, DSM) else self.ism
        bias = (gradient - (self.fisher if is_ism else exact)[1]) @ self.direction / self.size
        return (
            math.sqrt(np.mean((value - exact[0]) ** 2)) / float(self.scale),
            math.sqrt(np.mean(np.sum((gradient - exact[1]) ** 2, 1))) / self.size,
            math.sqrt(np.mean(np.sum((gradient - self.size * self.direction) ** 2, 1))) / self.size,
            bias.mean(),
            bias.std(ddof=1) / math.sqrt(len(bias)),
        )


def along(cls, directions):
    """The loss `cls` along the given directions `[B, S, ...]`."""

    class Along(cls):
        def directions(self, key, x):
            return jnp.asarray(directions, x.dtype)

    return Along


def step_errors(dims, count, steps):
    """The relative error of FD-SSM's batch gradient against SSM-VR, with the same directions, in both precisions."""
    directions = np.random.default_rng(3).choice([-1.0, 1.0], (count, 1, dims))
    found = {}
    with jax.enable_x64(True):
        noised = noised_batch(mixture(dims), count)
        for dtype in ("float64", "float32"):
            weights, denoiser = network(MLP(), (dims,), dtype)
            batch = Noised(*(a.astype(dtype) for a in noised))

            def gradient(loss, weights=weights, denoiser=denoiser, batch=batch):
                f = jax.jit(jax.grad(lambda w: jnp.mean(loss(denoiser(w), batch, jax.random.key(0)))))
                return np.asarray(f(weights), np.float64)

            if dtype == "float64":
                exact = gradient(along(SSM, directions)())
            off = [gradient(along(FDSSM, directions)(step=step)) - exact for step in steps]
            found[dtype] = [np.linalg.norm(o) / np.linalg.norm(exact) for o in off]
    return found


def timed(step, repeats=1):
    """The seconds of one call, as a mean over `repeats` calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def costs(dims, losses, batch, rounds):
    """Seconds `[rounds]` and temporary bytes of one gradient step of each loss, including the noising.

    Every round times all losses one after the other, so that other work of the machine affects them equally. A slow
    loss skips some rounds (NaN).
    """
    weights, denoiser = network(MLP(), (dims,))
    x0 = mixture(dims).sample(jax.random.key(0), batch)
    t = times(jax.random.key(1), batch)
    steps, alone, memory = {}, {}, {}
    for name, loss in losses.items():

        def mean_loss(w, x0, t, key, loss=loss):
            noise, projections = jax.random.split(key)
            return jnp.mean(loss(denoiser(w), perturb(PROCESS, noise, x0, t), projections))

        args = weights, x0, t, jax.random.key(2)
        compiled = jax.jit(jax.grad(mean_loss)).lower(*args).compile()
        memory[name] = compiled.memory_analysis().temp_size_in_bytes
        steps[name] = lambda compiled=compiled, args=args: compiled(*args).block_until_ready()
        steps[name]()
        alone[name] = min(timed(steps[name]) for _ in range(3))
    seconds = {name: np.full(rounds, np.nan) for name in losses}
    for i in range(rounds):
        for name, step in steps.items():
            if alone[name] < 0.5 or i % 3 == 0:
                seconds[name][i] = timed(step, max(1, round(0.02 / alone[name])))
    return seconds, memory


def all_losses(slices):
    """All losses by name, those with slices once for each number of slices."""
    sliced = {f"{name}, {s}": make(s) for name, make in SLICED.items() for s in slices}
    return {"DSM": DSM(), "ISM": ISM(), **sliced}


def measure(dims, middle, slices, steps, count, batch, rounds):
    """All values for the tables and the figure."""
    errors, times, memory = {}, {}, {}
    for d in dims:
        shown = slices if d == middle else slices[:1]
        accuracy = Accuracy(d, count)
        for name, loss in all_losses(shown).items():
            errors[d, name] = accuracy(loss)
        if d == middle:
            for name, make in SLICED.items():
                for law in PROJECTIONS:
                    errors[law, name] = accuracy(make(1, law))
        del accuracy
        seconds, used = costs(d, all_losses(slices if d == middle else (slices[0], slices[-1])), batch, rounds)
        for name, s in seconds.items():
            times[d, name] = np.nanpercentile(s / seconds["DSM"], [25, 50, 75])
            memory[d, name] = used[name] / used["DSM"]
        print(f"D = {d}: done", flush=True)
    return errors, times, memory, step_errors(middle, count, steps)


def table(dims, middle, slices, steps, errors, times, memory, by_step):
    """The four tables in Markdown."""

    def cost(d, name):
        low, mid, high = times[d, name]
        return f"{mid:.2g} ({low:.2g}..{high:.2g}) | {memory[d, name]:.2g}"

    def accuracy(row):
        loss, own, total, bias, error = row
        return f"{loss:.2g} | {own:.2g} | {total:.3g} | {100 * bias:+.2f} +- {100 * error:.2f} %"

    lines = [
        "One Rademacher direction for each example. Errors are for one example: errors of the loss in units of the",
        "mean Fisher divergence, errors of the gradient in units of ||E gradient||. *Own*: the error at a given",
        "x_t. *Total*: the error that includes the noise of the data and of x_t. The bias is measured along the",
        "true gradient, with its standard error. Time (median and quartiles) and memory are those of a jitted",
        "gradient step, including the noising, as multiples of DSM's. *Work*: the time for a gradient with the same",
        "total error as DSM's, as a multiple of DSM's time: time x (total / total of DSM)^2.",
        "",
        "| D | estimator | loss, own | gradient, own | gradient, total | gradient's bias | time | memory | work |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for d in dims:
        for name in all_losses(slices[:1]):
            work = times[d, name][1] * (errors[d, name][2] / errors[d, "DSM"][2]) ** 2
            lines.append(f"| {d} | {name.split(',')[0]} | {accuracy(errors[d, name])} | {cost(d, name)} | {work:.2g} |")
    lines += [
        "",
        f"More directions, at D = {middle}:",
        "",
        "| estimator | directions | loss, own | gradient, own | gradient, total | gradient's bias | time | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {s} | {accuracy(errors[middle, f'{name}, {s}'])} | {cost(middle, f'{name}, {s}')} |"
        for name in SLICED
        for s in slices
    ]
    lines += [
        "",
        f"The distribution of the direction, at D = {middle}, for one direction:",
        "",
        "| estimator | distribution | loss, own | gradient, own | gradient, total | gradient's bias |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {name} | {law} | {accuracy(errors[law, name])} |" for name in SLICED for law in PROJECTIONS]
    lines += [
        "",
        f"FD-SSM's step, at D = {middle}: ||gradient - SSM-VR's|| / ||SSM-VR's|| for one batch and the same",
        "directions; SSM-VR is computed in float64. The default step is 0.01.",
        "",
        "| step | float64 | float32 |",
        "|---|---|---|",
    ]
    lines += [
        f"| {step:g} | {a:.1e} | {b:.1e} |"
        for step, a, b in zip(steps, by_step["float64"], by_step["float32"], strict=True)
    ]
    return "\n".join(lines) + "\n"


def draw_figure(path, dims, middle, slices, steps, errors, times, memory, by_step):
    """Draw six panels: the noise of the estimators, and their cost."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    page, panels = figure(2, 3, (15, 8.4))

    def ticks(axis, values):
        axis.set_major_locator(FixedLocator(values))
        axis.set_major_formatter(FixedFormatter([f"{v:g}" for v in values]))
        axis.set_minor_locator(NullLocator())

    def draw(panel, x, lines, title, xlabel, ylabel, end=-1):
        """lines: (label, y, colour, style). The labels are at the right end (`end=0`: left) and do not overlap."""
        for _, y, colour, style in lines:
            panel.loglog(x, y, style, color=colour, markersize=4)
        panel.set(title=title, xlabel=xlabel, ylabel=ylabel)
        room, side = (x[-1] / x[0]) ** 0.34, 1 if end else -1
        panel.set_xlim(x[0] / (1.15 if end else room), x[-1] * (room if end else 1.15))
        ticks(panel.xaxis, x)
        at = np.log([y[end] for _, y, _, _ in lines])
        gap = 0.06 * np.diff(np.log(panel.get_ylim()))[0]
        for _ in range(200):
            for a in range(len(at)):
                for b in range(a):
                    upper, lower = (a, b) if at[a] > at[b] else (b, a)
                    push = max(0.0, gap - (at[upper] - at[lower])) / 2
                    at[upper], at[lower] = at[upper] + push, at[lower] - push
        for (label, _, colour, _), height in zip(lines, np.exp(at), strict=True):
            where = {"ha": "left" if end else "right", "va": "center"}
            panel.text(
                x[end] * (x[-1] / x[0]) ** (0.02 * side), height, label, color=colour, size=9, weight="bold", **where
            )
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)

    one = {name: name if name in ("DSM", "ISM") else f"{name}, {slices[0]}" for name in COLOURS}

    def over_dims(name, what):
        return [errors[d, one[name]][what] for d in dims]

    draw(
        panels[0, 0],
        dims,
        [
            ("SSM", over_dims("SSM", 1), COLOURS["SSM"], "o-"),
            ("SSM-VR", over_dims("SSM-VR", 1), COLOURS["SSM-VR"], "o-"),
            ("FD-SSM", over_dims("FD-SSM", 1), COLOURS["FD-SSM"], "s--"),
            ("DSM", over_dims("DSM", 1), COLOURS["DSM"], "o-"),
        ],
        "Noise of the estimator at a given x_t, one direction\n(ISM: none)",
        "dimensions D of the data",
        "RMS error of one example's gradient\n/ ||E gradient||",
    )
    draw(
        panels[0, 1],
        dims,
        [(name, over_dims(name, 2), colour, "s--" if name == "FD-SSM" else "o-") for name, colour in COLOURS.items()],
        "Noise of the gradient, with the noise of the data,\none direction",
        "dimensions D of the data",
        "RMS error of one example's gradient\n/ ||E gradient||",
    )
    ends = [(name, [errors[middle, f"{name}, {s}"][1] for s in slices], COLOURS[name]) for name in SLICED]
    draw(
        panels[0, 2],
        slices,
        [
            *((name, y, colour, "s--" if name == "FD-SSM" else "o-") for name, y, colour in ends),
            ("1/sqrt(directions)", [1.35 * ends[0][1][0] / math.sqrt(s) for s in slices], "#aaaaaa", ":"),
            ("DSM", [errors[middle, "DSM"][1]] * len(slices), COLOURS["DSM"], "-"),
        ],
        f"More directions, D = {middle}",
        "directions an example",
        "RMS error of one example's gradient\n/ ||E gradient||",
    )
    panel = panels[1, 0]
    draw(
        panel,
        steps,
        [
            ("float64", by_step["float64"], COLOURS["SSM-VR"], "o-"),
            ("float32", by_step["float32"], COLOURS["FD-SSM"], "s-"),
            ("~ step^2", [0.35 * by_step["float64"][-1] * (s / steps[-1]) ** 2 for s in steps], "#aaaaaa", ":"),
        ],
        f"FD-SSM's bias ~ step^2, until rounding rules, D = {middle}",
        "step, in units of sigma_t (default 0.01)",
        "relative error of a batch's gradient\nagainst SSM-VR",
        end=0,
    )
    panel.axvline(0.01, color="#dddddd", zorder=0)
    costly = [
        ("ISM", "ISM", "#7d7d7d", "o-"),
        *((f"{name}, {s}", f"{name}, {s}", COLOURS[name], style)
          for name in ("SSM-VR", "FD-SSM")
          for s, style in ((slices[0], "o-"), (slices[-1], "s--"))),
        ("DSM", "DSM", COLOURS["DSM"], "o-"),
    ]  # fmt: skip
    for panel, ratio, title in (
        (panels[1, 1], lambda d, name: times[d, name][1], "Time of a gradient step (name, directions)"),
        (panels[1, 2], lambda d, name: memory[d, name], "Memory of a gradient step (name, directions)"),
    ):
        lines = [(label, [ratio(d, name) for d in dims], colour, style) for label, name, colour, style in costly]
        draw(panel, dims, lines, title, "dimensions D of the data", "multiple of DSM's")
    for panel in (*panels[0], *panels[1, 1:]):
        low, high = panel.get_ylim()
        fits = [m * 10.0**e for e in range(-3, 5) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
        ticks(panel.yaxis, fits if len(fits) < 9 else [v for v in fits if math.log10(v).is_integer()])
    save(path, page, dpi=100)


def main():
    parser = argparse.ArgumentParser(description="Bias, noise, time and memory of score matching's estimators.")
    parser.add_argument("--quick", action="store_true", help="a small version, into the folder runs/")
    if parser.parse_args().quick:
        out, shown = Path("runs", "losses"), ((2, 8), 8, (1, 4), (1e-3, 1e-1))
        counts = 64, 32, 3
    else:
        out, shown = HERE, ((2, 8, 32, 128, 256), 32, (1, 2, 4, 16), (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3))
        counts = 512, 128, 15
    out.mkdir(parents=True, exist_ok=True)
    results = measure(*shown, *counts)
    text = table(*shown, *results)
    (out / "estimators.md").write_text(text)
    print(text)
    draw_figure(out / "estimators.png", *shown, *results)


if __name__ == "__main__":
    main()
