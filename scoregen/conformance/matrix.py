"""The conformance matrix: every process x target x objective against closed forms, as one table.

What a cell means. On data whose exact denoiser is known, the network is that denoiser plus an error with parameters
theta, and gives what the target asks for, spelled out anew from the papers (`OUTPUTS`), not taken from the rows under
test. The exact denoiser is the conditional mean, so whatever the objective is, at every noise level

    E loss(theta) - E loss(0) = w E || x0_theta - x0_0 ||^2

with the weight w that the objective has according to its paper (`OBJECTIVES`). Compared are the gradients of both sides
in theta, which must also vanish at theta = 0. All expectations are quadratures in float64, over x0 and eps: on a
Gaussian in the plane, with an error that is linear in x, they are exact; on a mixture of two Gaussians on the line they
converge. Random directions are replaced by all those of +1 and -1, so nothing is left to chance. A learned variance
must in addition be stationary at the true variance of the step.

The figure in a cell is the larger of the two oracles' errors: of the gradient, relative to the largest component of the
true one. Beside it stands a letter for what is refused, with the reason below the table.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.denoiser import TARGETS, Predict, denoiser
from scoregen.losses import DSM, FDSSM, ISM, SSM, VLB, X0MSE, EpsilonMSE, FlowMatching, Hybrid, Loss
from scoregen.oracle import Mixture, gaussian
from scoregen.process import PROCESSES, Noised, Process, example_keys, rows
from scoregen.rules import refusal

LOGSNRS = (3.0, 0.5, -2.5)  # the noise levels that are tried; of a chain, the nearest

PLANE = gaussian((0.3, -0.5), 0.8)
LINE = Mixture((0.35, 0.65), ((-0.9,), (0.8,)), (0.5, 0.4))


def _slope(f: Callable[[Array], Array], t: Array) -> Array:
    """df/dt by differences, so that no derivative of the library's own is trusted."""
    h = 1e-5 * t
    return (f(t + h) - f(t - h)) / (2 * h)


def _snr(p: Process, t: Array) -> Array:
    return (p.alpha(t) / p.sigma(t)) ** 2


def _velocity(p: Process, t: Array, x0: Array, eps: Array) -> Array:
    return rows(_slope(p.alpha, t), x0) * x0 + rows(_slope(p.sigma, t), x0) * eps


def _edm(p: Process, t: Array, x0: Array, eps: Array) -> Array:
    """Karras et al. 2022, table 1, in the coordinates y = x / alpha, where their sigma is sigma / alpha."""
    sigma, std = rows(p.sigma(t) / p.alpha(t), x0), p.data_std
    c_skip, c_out = std**2 / (sigma**2 + std**2), sigma * std / jnp.sqrt(sigma**2 + std**2)
    return (x0 - c_skip * (x0 + sigma * eps)) / c_out


# What the network gives for an estimate of x0 and eps at t, in the words of the papers.
OUTPUTS: dict[str, Callable[[Process, Array, Array, Array], Array]] = {
    "eps": lambda p, t, x0, eps: eps,
    "x0": lambda p, t, x0, eps: x0,
    "score": lambda p, t, x0, eps: -eps / rows(p.sigma(t), x0),
    "v": lambda p, t, x0, eps: rows(p.alpha(t), x0) * eps - rows(p.sigma(t), x0) * x0,
    "velocity": _velocity,
    "edm": _edm,
}


def _lost(p: Process, t: Array) -> Array:
    """What the signal-to-noise ratio loses over the step to t, or per unit of time."""
    return _snr(p, t - 1) - _snr(p, t) if p.discrete else -_slope(lambda t: _snr(p, t), t)


def _flow(p: Process, t: Array) -> Array:
    return (_slope(p.alpha, t) - _slope(p.sigma, t) * p.alpha(t) / p.sigma(t)) ** 2


class _AllSigns:
    """Rademacher directions, but all of them, so that their mean is the expectation."""

    def draw(self, key: Array, x: Array) -> Array:
        del key
        signs = jnp.array(list(itertools.product((-1.0, 1.0), repeat=x.shape[1])))
        return jnp.broadcast_to(signs, (x.shape[0], *signs.shape))


class _SSM(_AllSigns, SSM):
    pass


class _FDSSM(_AllSigns, FDSSM):
    pass


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective, the weight of ||x0 - x0_theta||^2 in it by its paper, and how far it may be off."""

    loss: Loss
    weight: Callable[[Process, Array, int], Array]  # of a process, times and the number of dimensions
    tolerance: float = 1e-5
    learned_variance: bool = False


def _half(p: Process, t: Array, d: int) -> Array:
    return 0.5 * _snr(p, t)


OBJECTIVES = {
    "eps": Objective(EpsilonMSE(), lambda p, t, d: _snr(p, t) / d),
    "x0": Objective(X0MSE(), lambda p, t, d: jnp.ones_like(p.alpha(t))),
    "flow": Objective(FlowMatching(), lambda p, t, d: _flow(p, t)),
    "dsm": Objective(DSM(), _half),
    "ism": Objective(ISM(), _half),
    "ssm": Objective(_SSM(variance_reduced=False), _half),
    "ssm-vr": Objective(_SSM(), _half),
    "fdssm": Objective(_FDSSM(), _half, tolerance=1e-3),  # biased, by the square of its step
    "vlb": Objective(VLB(None, "nats"), lambda p, t, d: 0.5 * _lost(p, t) / p.density(t)),
    "hybrid": Objective(Hybrid(None), lambda p, t, d: _snr(p, t) / d, learned_variance=True),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination: the reason why it is refused, or the error found and the one that is allowed."""

    process: str
    target: str
    objective: str
    refused: str | None = None
    error: float = 0.0
    allowed: float = 0.0

    @property
    def passed(self) -> bool:
        return self.refused is not None or self.error <= self.allowed  # False for NaN


def _plane_error(x: Array, theta: Array) -> Array:
    """Linear in x: a scale, a rotation, a shift and a shear. theta is `[B, 4]`."""
    a, b, c, d = (theta[:, i : i + 1] for i in range(4))
    return a * x + b * jnp.flip(x, 1) * jnp.array([[1.0, -1.0]]) + c + d * x * jnp.array([[1.0, -1.0]])


def _line_error(x: Array, theta: Array) -> Array:
    a, b, c, d = (theta[:, i : i + 1] for i in range(4))
    return a * x + b * jnp.sin(x) + c + d * jnp.cos(2 * x)


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Data with a known denoiser, an error to add to it, and the quadrature that suits both."""

    data: Mixture
    error: Callable[[Array, Array], Array]
    nodes: int  # in each dimension, for x0 and for eps

    def quadrature(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x0 `[Q, D]`, eps `[Q, D]` and weights `[Q]` that add up to one."""
        z, w = np.polynomial.hermite_e.hermegauss(self.nodes)
        w, d = w / w.sum(), self.data.dim
        points = np.array(list(itertools.product(z, repeat=2 * d)))
        weights = np.array(list(itertools.product(w, repeat=2 * d))).prod(1)
        parts = [
            (np.asarray(mean) + std * points[:, :d], points[:, d:], share * weights)
            for share, mean, std in zip(self.data.weights, self.data.means, self.data.stds, strict=True)
        ]
        x0, eps, weight = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return x0, eps, weight


ORACLES = (Oracle(PLANE, _plane_error, 3), Oracle(LINE, _line_error, 28))


def levels(process: Process) -> Array:
    """The times that are tried, `[L]`."""
    t = process.time(jnp.array(LOGSNRS))
    return jnp.clip(jnp.round(t).astype(jnp.int32), 1, process.levels - 1) if process.discrete else t


def _variance(process: Process, data: Mixture, x: Array, t: Array) -> Array:
    """Where the true variance of the step from t lies between the posterior's and the forward step's, `[B, D]`.

    Given x_t the step's variance is that of the posterior plus (alpha_s w)^2 Var(x0 | x_t), and by Tweedie's second
    formula Var(x0 | x_t) = (sigma / alpha)^2 (1 + sigma^2 d score / dx), in each dimension.
    """
    slope = jnp.stack(
        [jax.jvp(lambda x: data.score(process, x, t), (x,), (e,))[1][:, i] for i, e in enumerate(_basis(x))], 1
    )
    noise = rows(process.sigma(t) / process.alpha(t), x) ** 2
    spread = noise * (1 + rows(process.sigma(t), x) ** 2 * slope)
    gain = jnp.log1p(rows(_snr(process, t - 1) - _snr(process, t), x) * spread)
    return gain / rows(2 * jnp.log(process.sigma(t) / process.sigma(t - 1)), x)


def _basis(x: Array) -> Iterator[Array]:
    for i in range(x.shape[1]):
        yield jnp.zeros_like(x).at[:, i].set(1.0)


def _network(process: Process, target: str, oracle: Oracle, objective: Objective, theta: Array) -> Predict:
    """The exact denoiser with an error, as a network for `target` and back. theta is `[B, 5]`."""
    exact = oracle.data.predict(process)

    def apply(x: Array, t: Array) -> Array:
        eps = exact(x, t).eps + oracle.error(_unit(process, x, t), theta)
        x0 = (x - rows(process.sigma(t), x) * eps) / rows(process.alpha(t), x)
        output = OUTPUTS[target](process, t, x0, eps)
        if not objective.learned_variance:
            return output
        between = _variance(process, oracle.data, x, t) + theta[:, 4:]
        return jnp.concatenate([output, 2 * between - 1], axis=-1)

    return denoiser(process, TARGETS[target], apply, objective.learned_variance)


def _unit(process: Process, x: Array, t: Array) -> Array:
    return x / rows(jnp.hypot(process.alpha(t), process.sigma(t)), x)


def _check(process: Process, target: str, objective: Objective, oracle: Oracle) -> float:
    """The error of the gradient, relative to the true one's largest component at the same noise level."""
    x0, eps, weight = oracle.quadrature()
    t = levels(process)
    # One batch holds all, and every level has a theta of its own, so that one gradient is all gradients.
    level = jnp.repeat(jnp.arange(len(t)), len(weight))
    at = t[level]
    clean, noise, share = (jnp.asarray(np.tile(a, (len(t), 1))) for a in (x0, eps, weight[:, None]))
    x = rows(process.alpha(at), clean) * clean + rows(process.sigma(at), clean) * noise
    noised, key = Noised(clean, noise, x, at), example_keys(jax.random.key(0), len(x))

    def found(theta: Array) -> Array:
        predict = _network(process, target, oracle, objective, theta[level])
        return jnp.sum(share[:, 0] * objective.loss(process, predict, noised, key))

    def true(theta: Array) -> Array:
        off = oracle.error(_unit(process, x, at), theta[level])
        off = rows(process.sigma(at) / process.alpha(at), x) * off
        return jnp.sum(share[:, 0] * objective.weight(process, at, oracle.data.dim) * jnp.sum(off**2, 1))

    theta = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.6, (len(t), 5)) * [1, -1, 1, 1, 0])
    want = jax.grad(true)(theta)
    size = jnp.max(jnp.abs(want), 1, keepdims=True)
    # The true variance of the step is the best only where the mean is right, so there alone it is asked for.
    off = (jax.grad(found)(theta) - want)[:, :4], jax.grad(found)(0 * theta)
    return float(jnp.max(jnp.abs(jnp.concatenate(off, 1)) / size))


def check(process_name: str, target: str, objective_name: str) -> Cell:
    """One cell of the matrix, in float64."""
    objective = OBJECTIVES[objective_name]
    with jax.enable_x64(True):
        process = PROCESSES[process_name]()
        reason = refusal(process, target, objective.loss, learned_variance=objective.learned_variance)
        if reason is not None:
            return Cell(process_name, target, objective_name, reason)
        # np.max and not max: it lets no NaN pass.
        error = float(np.max([_check(process, target, objective, oracle) for oracle in ORACLES]))
        return Cell(process_name, target, objective_name, None, error, objective.tolerance)


def combinations(small: bool = False) -> list[tuple[str, str, str]]:
    """(process, target, objective) of every cell; of the small matrix, one target for each of the other two."""
    if not small:
        return list(itertools.product(PROCESSES, TARGETS, OBJECTIVES))
    targets = list(TARGETS)
    return [
        (process, targets[(i + j) % len(targets)], objective)
        for i, process in enumerate(PROCESSES)
        for j, objective in enumerate(OBJECTIVES)
    ]


def table(cells: Sequence[Cell]) -> str:
    """The matrix in Markdown: a row for each process and target, a column for each objective."""
    reasons = {
        reason: chr(ord("a") + i) for i, reason in enumerate(dict.fromkeys(c.refused for c in cells if c.refused))
    }
    by_row: dict[tuple[str, str], dict[str, str]] = {}
    for cell in cells:
        text = reasons[cell.refused] if cell.refused else f"{'' if cell.passed else 'FAILED '}{cell.error:.0e}"
        by_row.setdefault((cell.process, cell.target), {})[cell.objective] = text
    matrix = [
        f"| process | target | {' | '.join(OBJECTIVES)} |",
        f"|---|---|{'---|' * len(OBJECTIVES)}",
        *(f"| {p} | {t} | {' | '.join(row.get(o, '') for o in OBJECTIVES)} |" for (p, t), row in sorted_rows(by_row)),
    ]
    refused = [f"{letter}. {reason}" for reason, letter in reasons.items()]
    notes = [
        "`ssm-vr` is the loss `ssm` as it is by default; `ssm` is that with --config.loss.ssm.variance_reduced=false."
    ]
    if any(len(row) < len(OBJECTIVES) for row in by_row.values()):
        notes.append("A blank was not tried: --small takes one target for each process and objective.")
    return "\n\n".join("\n".join(part) for part in (matrix, refused, notes) if part) + "\n"


def sorted_rows(by_row: dict[tuple[str, str], dict[str, str]]) -> list[tuple[tuple[str, str], dict[str, str]]]:
    """In the order of the tables, whatever order the cells came in."""
    order = list(itertools.product(PROCESSES, TARGETS))
    return sorted(by_row.items(), key=lambda item: order.index(item[0]))
