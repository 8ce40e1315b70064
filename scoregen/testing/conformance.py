"""The conformance matrix: every process x target x loss against closed forms, as one table.

What a cell means. The exact denoiser of the data is known. The network is this denoiser plus an error with parameters
theta, and its output is the target's mixture of x0 and noise. The exact denoiser is the conditional mean, so for every
loss, at every noise level,

    E loss(theta) - E loss(0) = w E || x0_theta - x0_0 ||^2

where w is the weight of the loss according to its paper. The gradients of both sides in theta are compared, and they
must vanish at theta = 0. All expectations are quadratures in float64 over x0 and eps. They are exact for a Gaussian in
the plane with an error that is linear in x, and they converge for a mixture of two Gaussians on the line. Random
directions are replaced by all directions of +1 and -1 (`Loss.exact`), so nothing is random. In addition, a learned
variance must be stationary at the true variance of the step.

The number in a cell is the error of the gradient, relative to the largest component of the true gradient, and the
larger of the two data sets. A letter means that the combination is refused; the reason is below the table.

Where the entries come from. The matrix covers `PROCESSES`, `TARGETS` and `LOSSES` (with `Loss.variants`), so a new
entry there is a new row or column here. The outputs of the built-in targets and the weights of the built-in losses are
written here from the papers (`OUTPUTS`, `WEIGHTS`), not taken from the tested code. Your own entries are compared with
their own declarations: a target with its (a, b), a loss with its `weight`. `check_process`, `check_target` and
`check_loss` test a single part.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from scoregen.denoiser import TARGETS, Denoiser, Target, from_network, named
from scoregen.losses import LOSSES, Loss, Objective
from scoregen.losses.matching import FunctionLoss
from scoregen.process import PROCESSES, VP, Noised, Process, bottom, ddpm, drift_diffusion, perturb, vanishes
from scoregen.random import broadcast, example_keys
from scoregen.testing.oracle import Mixture, gaussian
from scoregen.times import own_density

LOGSNRS = (3.0, 0.5, -2.5)  # the tested noise levels; a chain uses its nearest levels
TOLERANCE = 1e-5  # added to `Loss.bias`

PLANE = gaussian((0.3, -0.5), 0.8)
LINE = Mixture((0.35, 0.65), ((-0.9,), (0.8,)), (0.5, 0.4))

Output = Callable[[Process, Array, Array, Array], Array]
Weight = Callable[[Process, Array, int], Array]


def _slope(f: Callable[[Array], Array], t: Array) -> Array:
    """df/dt by finite differences, independent of the derivatives in the library."""
    h = 1e-5 * t
    return (f(t + h) - f(t - h)) / (2 * h)


def _snr(p: Process, t: Array) -> Array:
    return (p.alpha(t) / p.sigma(t)) ** 2


def _velocity(p: Process, t: Array, x0: Array, eps: Array) -> Array:
    return broadcast(_slope(p.alpha, t), x0) * x0 + broadcast(_slope(p.sigma, t), x0) * eps


def _edm(p: Process, t: Array, x0: Array, eps: Array) -> Array:
    """Karras et al. 2022, table 1, in the coordinates y = x / alpha, where their sigma is sigma / alpha."""
    sigma, std = broadcast(p.sigma(t) / p.alpha(t), x0), p.data_std
    c_skip, c_out = std**2 / (sigma**2 + std**2), sigma * std / jnp.sqrt(sigma**2 + std**2)
    return (x0 - c_skip * (x0 + sigma * eps)) / c_out


# The network's output for an estimate of x0 and eps at t, from the papers of the built-in targets.
OUTPUTS: dict[str, Output] = {
    "eps": lambda p, t, x0, eps: eps,
    "x0": lambda p, t, x0, eps: x0,
    "score": lambda p, t, x0, eps: -eps / broadcast(p.sigma(t), x0),
    "v": lambda p, t, x0, eps: broadcast(p.alpha(t), x0) * eps - broadcast(p.sigma(t), x0) * x0,
    "velocity": _velocity,
    "edm": _edm,
}


def _own_output(target: Target) -> Output:
    """The output that a target declares: a x0 + b eps."""

    def output(p: Process, t: Array, x0: Array, eps: Array) -> Array:
        a, b = (broadcast(row, x0) for row in target(p, t))
        return a * x0 + b * eps

    return output


def _lost(p: Process, t: Array) -> Array:
    """The decrease of the signal-to-noise ratio in the step to t, or per unit of time."""
    return _snr(p, t - 1) - _snr(p, t) if p.discrete else -_slope(lambda t: _snr(p, t), t)


def _flow(p: Process, t: Array) -> Array:
    return (_slope(p.alpha, t) - _slope(p.sigma, t) * p.alpha(t) / p.sigma(t)) ** 2


def _half(p: Process, t: Array, d: int) -> Array:
    return 0.5 * _snr(p, t)


def _bound(p: Process, t: Array, d: int) -> Array:
    return 0.5 * _lost(p, t) / own_density(p, t)


# The weight of ||x0 - x0_theta||^2 in the built-in losses for data of d dimensions, from their papers.
WEIGHTS: dict[str, Weight] = {
    "eps": lambda p, t, d: _snr(p, t) / d,
    "eps-sum": lambda p, t, d: _snr(p, t),
    "x0": lambda p, t, d: jnp.ones_like(p.alpha(t)),
    "flow": lambda p, t, d: _flow(p, t),
    "dsm": _half,
    "ism": _half,
    "ssm": _half,
    "ssm-plain": _half,
    "fdssm": _half,
    "vlb": lambda p, t, d: _bound(p, t, d) / (d * math.log(2)),
    "vlb-nats": _bound,
    "hybrid": lambda p, t, d: _snr(p, t) / d,
}


def columns() -> dict[str, Loss]:
    """The losses of the matrix by name, "loss" or "loss-variant", from `LOSSES`."""
    return {
        f"{name}-{variant}" if variant else name: loss
        for name, kind in LOSSES.items()
        for variant, loss in kind.variants().items()
    }


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination: the reason for its refusal, or its error and the allowed error.

    Attributes:
        process, target, loss: names.
        refused: the reason, or None.
        error: see the module; NaN for a gradient that is not finite.
        allowed: the largest error that passes.
        note: why there is no number, for a loss that does not declare its weight.
    """

    process: str
    target: str
    loss: str
    refused: str | None = None
    error: float = 0.0
    allowed: float = 0.0
    note: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it is refused, or within the allowed error."""
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
    """The tested times, `[L]`."""
    t = process.time(jnp.array(LOGSNRS))
    return jnp.clip(jnp.round(t).astype(jnp.int32), 1, int(process.ends[1])) if process.discrete else t


def _variance(process: Process, data: Mixture, x: Array, t: Array) -> Array:
    """Where the true variance of the step from t lies between the posterior's and the forward step's, `[B, D]`.

    Given x_t the step's variance is the posterior's plus (alpha_s w)^2 Var(x0 | x_t), and by Tweedie's second
    formula Var(x0 | x_t) = (sigma / alpha)^2 (1 + sigma^2 d score / dx), in each dimension.
    """
    slope = jnp.stack(
        [jax.jvp(lambda x: data.score(process, x, t), (x,), (e,))[1][:, i] for i, e in enumerate(_basis(x))], 1
    )
    noise = broadcast(process.sigma(t) / process.alpha(t), x) ** 2
    spread = noise * (1 + broadcast(process.sigma(t), x) ** 2 * slope)
    gain = jnp.log1p(broadcast(_snr(process, t - 1) - _snr(process, t), x) * spread)
    return gain / broadcast(2 * jnp.log(process.sigma(t) / process.sigma(t - 1)), x)


def _basis(x: Array) -> Iterator[Array]:
    for i in range(x.shape[1]):
        yield jnp.zeros_like(x).at[:, i].set(1.0)


def _network(process: Process, target: str | Target, oracle: Oracle, learned_variance: bool, theta: Array) -> Denoiser:
    """The denoiser of a network for `target` that is exact except for an added error. theta is `[B, 5]`."""
    exact, rule = oracle.data.denoiser(process), named(TARGETS, "target", target)
    spelled = OUTPUTS.get(target) if isinstance(target, str) else None
    mix = spelled or _own_output(rule)

    def apply(x: Array, t: Array) -> Array:
        eps = exact(x, t).eps + oracle.error(_unit(process, x, t), theta)
        x0 = (x - broadcast(process.sigma(t), x) * eps) / broadcast(process.alpha(t), x)
        output = mix(process, t, x0, eps)
        if not learned_variance:
            return output
        between = _variance(process, oracle.data, x, t) + theta[:, 4:]
        return jnp.concatenate([output, 2 * between - 1], axis=-1)

    return from_network(process, rule, apply, learned_variance)


def _unit(process: Process, x: Array, t: Array) -> Array:
    return x / broadcast(jnp.hypot(process.alpha(t), process.sigma(t)), x)


def _errors(
    process: Process, target: str | Target, loss: Loss, oracle: Oracle, weights: Sequence[Weight]
) -> np.ndarray:
    """The error of the gradient for each of the possible weights, `[W]`; see the module's docstring."""
    x0, eps, weight = oracle.quadrature()
    t, loss = levels(process), loss.exact(oracle.data.dim)
    # One batch holds all levels, each with its own theta, so one gradient gives all gradients.
    level = jnp.repeat(jnp.arange(len(t)), len(weight))
    at = t[level]
    clean, noise, share = (jnp.asarray(np.tile(a, (len(t), 1))) for a in (x0, eps, weight[:, None]))
    x = broadcast(process.alpha(at), clean) * clean + broadcast(process.sigma(at), clean) * noise
    noised, key = Noised(clean, noise, x, at), example_keys(jax.random.key(0), len(x))

    def found(theta: Array) -> Array:
        denoiser = _network(process, target, oracle, loss.trains_variance, theta[level])
        return jnp.sum(share[:, 0] * loss(denoiser, noised, key))

    def true(theta: Array, w: Weight) -> Array:
        off = oracle.error(_unit(process, x, at), theta[level])
        off = broadcast(process.sigma(at) / process.alpha(at), x) * off
        return jnp.sum(share[:, 0] * w(process, at, oracle.data.dim) * jnp.sum(off**2, 1))

    theta = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.6, (len(t), 5)) * [1, -1, 1, 1, 0])
    got, at_truth = jax.grad(found)(theta), jax.grad(found)(0 * theta)
    if not weights:
        return np.asarray(0 * (jnp.sum(got) + jnp.sum(at_truth)))[None]  # NaN if it is not finite
    errors = []
    for w in weights:
        want = jax.grad(true)(theta, w)
        size = jnp.max(jnp.abs(want), 1, keepdims=True)
        # The true variance is optimal only if the mean is exact, so it is only tested there.
        off = (got - want)[:, :4], at_truth
        errors.append(float(jnp.max(jnp.abs(jnp.concatenate(off, 1)) / size)))
    return np.array(errors)


@dataclasses.dataclass(frozen=True)
class _Model:
    """The part of a model that `Objective.refuse` reads."""

    process: Process
    target: str | Target
    learned_variance: bool
    net: Any = None
    log_variance: bool = False

    def denoiser(self, params: Any, cond: Any = None, train_key: Array | None = None) -> Denoiser:
        raise NotImplementedError

    def uncertainty_weight(self, params: Any, losses: Array, t: Array) -> Array:
        raise NotImplementedError


def measure(process: Process, target: str | Target, loss: Loss, weight: Weight | None = None) -> Cell:
    """One cell, for parts that need not stand in a table; in float64.

    Args:
        process: the process, made under `jax.enable_x64`.
        target: a name in `TARGETS`, or a function (process, t) -> (a, b).
        loss: the loss.
        weight: its weight by its paper, (process, t, dims) -> `[B]`; None: its own `weight`, for a sum or a mean over
            data dimensions.
    """
    names = (
        type(process).__name__,
        target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__),
        type(loss).__name__,
    )
    with jax.enable_x64(True):
        refused = Objective(loss).refuse(_Model(process, target, loss.trains_variance))
        if refused:
            return Cell(*names, str(refused[0]))
        own = getattr(loss, "weight", None)
        weights: list[Weight] = [weight] if weight is not None else []
        if weight is None and own is not None:
            weights = [lambda p, t, d: own(p, t), lambda p, t, d: own(p, t) / d]
        # np.max and not max: it lets no NaN pass.
        errors = np.max([_errors(process, target, loss, oracle, weights) for oracle in ORACLES], 0)
    note = None if weights else "this loss has no `weight`: its gradient is finite, and nothing else was compared"
    return Cell(*names, None, float(np.min(errors)), TOLERANCE + loss.bias, note)


def check(process: str, target: str, loss: str) -> Cell:
    """One cell of the matrix, by the names of its parts."""
    with jax.enable_x64(True):
        found = measure(PROCESSES[process](), target, columns()[loss], WEIGHTS.get(loss))
    return dataclasses.replace(found, process=process, target=target, loss=loss)


def combinations(small: bool = False) -> list[tuple[str, str, str]]:
    """(process, target, loss) of every cell; of the small matrix, one target for each of the other two."""
    if not small:
        return list(itertools.product(PROCESSES, TARGETS, columns()))
    targets = list(TARGETS)
    return [
        (process, targets[(i + j) % len(targets)], loss)
        for i, process in enumerate(PROCESSES)
        for j, loss in enumerate(columns())
    ]


def table(cells: Sequence[Cell]) -> str:
    """The matrix in Markdown: a row for each process and target, a column for each loss."""
    losses = list(columns())
    said = [cell.refused or cell.note for cell in cells]
    letters = {reason: _letter(i) for i, reason in enumerate(dict.fromkeys(filter(None, said)))}
    by_row: dict[tuple[str, str], dict[str, str]] = {}
    for cell, reason in zip(cells, said, strict=True):
        text = letters[reason] if reason else f"{cell.error:.0e}"
        by_row.setdefault((cell.process, cell.target), {})[cell.loss] = text if cell.passed else f"FAILED {text}"
    matrix = [
        f"| process | target | {' | '.join(losses)} |",
        f"|---|---|{'---|' * len(losses)}",
        *(f"| {p} | {t} | {' | '.join(row.get(o, '') for o in losses)} |" for (p, t), row in _in_order(by_row)),
    ]
    reasons = [f"{letter}. {reason}" for reason, letter in letters.items()]
    notes = [f"`{name}` is the loss with {options}." for name, options in _options().items()]
    if any(len(row) < len(losses) for row in by_row.values()):
        notes.append("A blank was not tried: --small takes one target for each process and loss.")
    return "\n\n".join("\n".join(part) for part in (matrix, reasons, notes) if part) + "\n"


def _options() -> dict[str, str]:
    """The options of every column that is a variant, as they differ from the default."""
    found = {}
    for kind, prefix in ((kind, name) for name, kind in LOSSES.items()):
        forms = kind.variants()
        for variant, loss in forms.items():
            fields = [field.name for field in dataclasses.fields(loss)] if dataclasses.is_dataclass(loss) else []
            changed = [f"{f}={getattr(loss, f)!r}" for f in fields if getattr(loss, f) != getattr(forms[""], f)]
            if variant:
                found[f"{prefix}-{variant}"] = ", ".join(changed)
    return found


def _letter(i: int) -> str:
    return chr(ord("a") + i) if i < 26 else f"a{i - 25}"


def _in_order(by_row: dict[tuple[str, str], dict[str, str]]) -> list[tuple[tuple[str, str], dict[str, str]]]:
    """In the order of the tables, whatever order the cells came in."""
    order = list(itertools.product(PROCESSES, TARGETS))
    return sorted(by_row.items(), key=lambda item: order.index(item[0]))


def _call(name: str, process: Process, t: Array) -> Array:
    return getattr(process, name)(t)


def _agree(what: str, one: Any, other: Any, rtol: float) -> None:
    np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol, err_msg=what)


def check_process(make: Callable[[], Process]) -> None:
    """Test your own process: whether its methods are consistent, and whether training and sampling work with it.

    Args:
        make: a function without arguments that makes the process, such as its class; called in float32 and float64.

    Raises:
        AssertionError: for the first property that does not hold.

    >>> from scoregen.process import VP
    >>> check_process(VP)
    """
    with jax.enable_x64(True):
        process = make()
        low, high = process.ends
        assert math.isfinite(low) and math.isfinite(high) and low < high, f"ends={process.ends}: two rising numbers"
        t = jnp.arange(int(high) + 1) if process.discrete else jnp.linspace(low, high, 201)
        inner = t if not vanishes(process) else t[:-1]
        alpha, sigma, lam = process.alpha(inner), process.sigma(inner), process.logsnr(inner)
        for name, values in (("alpha", alpha), ("sigma", sigma), ("logsnr", lam)):
            assert values.shape == inner.shape, f"{name}(t) has the shape {values.shape} for t of shape {inner.shape}"
            assert bool(jnp.isfinite(values).all()), f"{name}(t) is not finite everywhere"
        assert bool((alpha > 0).all()) and bool((sigma > 0).all()), "alpha and sigma are not positive"
        _agree("logsnr is not log(alpha^2 / sigma^2)", lam, 2 * (jnp.log(alpha) - jnp.log(sigma)), 1e-6)
        assert bool((jnp.diff(lam) < 0).all()), "logsnr does not fall in t"
        _agree("time is not the inverse of logsnr", process.time(lam), inner.astype(float), 1e-6)
        beyond = process.time(jnp.array([1e3, -1e3]))
        _agree("time is not clipped to the ends", beyond, jnp.array([low, high], float), 1e-6)
        middle = inner[len(inner) // 2]
        for name in ("alpha", "sigma", "logsnr"):
            values = getattr(process, name)(inner)
            call = functools.partial(_call, name)
            _agree(f"{name} under jax.vmap", jax.vmap(call, (None, 0))(process, inner), values, 1e-12)
            _agree(f"{name} of a scalar", call(process, middle), values[len(inner) // 2], 1e-12)
            _agree(f"{name} with the process as an argument of jax.jit", jax.jit(call)(process, inner), values, 1e-6)
        if not process.discrete:
            drift, diffusion = drift_diffusion(process, inner[1:-1])
            assert bool(jnp.isfinite(drift).all() & jnp.isfinite(diffusion).all()), "the SDE is not finite inside"
            _agree("alpha' by jax.jvp", drift * process.alpha(inner[1:-1]), _slope(process.alpha, inner[1:-1]), 1e-4)
        cell = measure(process, "v", LOSSES["dsm"]())
        assert cell.passed, f"denoising score matching is off by {cell.error:.1e} under this process: {cell.refused}"
    for x64 in (False, True):
        with jax.enable_x64(x64):
            process = make()
            draw = process.prior(jax.random.key(0), (4000, 2))
            assert draw.shape == (4000, 2), f"prior(key, (4000, 2)) has the shape {draw.shape}"
            t = jnp.full(3, bottom(process)) if process.discrete else jnp.full(3, bottom(process), jnp.float32)
            x = perturb(process, jax.random.key(0), jnp.ones((3, 2), jnp.float32), t).x
            assert x.dtype == jnp.float32, f"float32 data become {x.dtype}"


def check_target(target: str | Target, make: Callable[[], Process] = VP) -> None:
    """Test your own target: whether x0 can be computed from it, and whether losses have the right gradient with it.

    Args:
        target: a name in `TARGETS`, or a function (process, t) -> (a, b).
        make: a function without arguments that makes the process, such as its class.

    Raises:
        AssertionError: for the first property that does not hold.
        TypeError: if `target` is neither a name nor a function.
        ValueError: for a name that is not in `TARGETS`.

    >>> check_target(lambda process, t: (-process.sigma(t), process.alpha(t)))
    """
    with jax.enable_x64(True):
        process, row = make(), named(TARGETS, "target", target)
        t = jnp.arange(int(process.ends[1]) + 1) if process.discrete else jnp.linspace(*process.ends, 201)
        a, b = row(process, t)
        assert a.shape == b.shape == t.shape, f"(a, b) have the shapes {a.shape} and {b.shape} for t of shape {t.shape}"
        det = process.alpha(t) * b - a * process.sigma(t)
        assert bool((jnp.isfinite(det) & (det != 0)).all()), "det = alpha b - a sigma is 0 or not finite somewhere"
        for loss in ("eps", "x0"):
            _passes(measure(process, target, LOSSES[loss]()))


def check_loss(
    loss: Loss | Callable[[Denoiser, Noised, Array], Array], make: Callable[[], Process] | None = None
) -> None:
    """Test your own loss.

    A loss must return one finite number for each example, in the dtype of the data. The number may depend only on the
    example and its key. If the loss has a `weight`, the gradient of its expectation must be the gradient of the weight
    times the error of x0, for a sum or a mean over data dimensions, and it must vanish at the exact denoiser.

    Args:
        loss: the loss.
        make: a function without arguments that makes the process; None: `VP`, or `ddpm` for a loss that refuses VP.

    Raises:
        AssertionError: for the first property that does not hold.

    >>> from scoregen.losses import DSM
    >>> check_loss(DSM())
    """
    loss = loss if isinstance(loss, Loss) else FunctionLoss(loss)
    if make is None:
        make = VP if loss.refuse(VP()) is None else ddpm
    process = make()
    data, shape = PLANE, (8, 2)
    t = levels(process)[jnp.arange(8) % len(LOGSNRS)]
    noised = perturb(process, jax.random.key(0), data.sample(jax.random.key(1), 8).astype(jnp.float32), t)
    keys = example_keys(jax.random.key(2), 8)

    def of(count: int) -> Array:
        def apply(x: Array, t: Array) -> Array:
            v = jnp.tanh(x)
            return jnp.concatenate([v, v], -1) if loss.trains_variance else v

        denoiser = from_network(process, "v", apply, loss.trains_variance)
        return loss(denoiser, jax.tree.map(lambda a: a[:count], noised), keys[:count])

    whole, part = of(8), of(3)
    assert whole.shape == shape[:1], f"it gives {list(whole.shape)} for a batch of 8: one number for each is needed"
    assert bool(jnp.isfinite(whole).all()), "it is not finite"
    assert whole.dtype == jnp.float32, f"it is {whole.dtype} for data in float32"
    _agree("an example's loss depends on the other examples", whole[:3], part, 1e-5)
    assert not loss.positive or bool((whole >= 0).all()), "it is negative, and says that it is positive"
    with jax.enable_x64(True):
        _passes(measure(make(), "v", loss))


def _passes(cell: Cell) -> None:
    where = f"{cell.process} x {cell.target} x {cell.loss}"
    assert cell.refused is None, f"{where} is refused: {cell.refused}"
    assert cell.passed, f"{where}: the gradient is off by {cell.error:.1e}, and {cell.allowed:.0e} is allowed"
