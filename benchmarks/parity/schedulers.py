"""Compare x of our samplers and of diffusers' schedulers after every step, with the same exact network and noise.

    python benchmarks/parity/schedulers.py

The script writes schedulers.md beside itself and the same text into docs/parity.md, and prints it. It fails if a row
contradicts its verdict. It needs the extra `interop` (torch, diffusers), and about five minutes on two CPU cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from scoregen.app.command import need

need("interop", "diffusers", "torch")

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from scoregen.denoiser import TARGETS, Denoiser, from_network, prediction_from_x0
from scoregen.guidance import Clip
from scoregen.process import EDM, Process, betas, cosine, ddpm, ncsn, sigmas
from scoregen.random import broadcast, by_example, example_keys, fold_keys, split_keys
from scoregen.samplers import (
    Ancestral,
    DPMSolver,
    EDMHeun,
    Euler,
    Grid,
    Listed,
    OwnGrid,
    ReverseDiffusion,
    Sampler,
    SNRLangevin,
    UniPC,
    correctors,
    steps,
)
from scoregen.testing.oracle import TWO_MODES, gaussian

HERE = Path(__file__).parent
SAME, EXACT = 1e-5, 1e-9  # largest difference in float32 and in float64, relative to the root mean square of x
KEY = jax.random.key(0)

# --- the same noise, and both precisions


def normal32(key, shape, dtype=jnp.float32):
    """Our noise, always drawn in float32, so that it has the same values in any precision."""
    return by_example(functools.partial(jax.random.normal, dtype=jnp.float32), key, shape).astype(dtype)


@contextlib.contextmanager
def precision(wide: bool):
    """JAX in float64 or float32, with the same draws."""
    with (
        jax.enable_x64(wide),
        mock.patch.object(steps, "normal", normal32),
        mock.patch.object(correctors, "normal", normal32),
    ):
        yield


def drawn(count: int, shape: tuple[int, ...], corrects: bool) -> list[list[np.ndarray]]:
    """The noise that `Sampler` draws at each level, in the order in which it is used."""
    _, walk = split_keys(example_keys(KEY, shape[0]), 2)

    @jax.jit
    def at(k):
        correct, move = split_keys(fold_keys(walk, k), 2)
        first = [normal32(fold_keys(correct, 0), shape)] if corrects else []
        return [*first, normal32(move, shape)]

    return [[np.asarray(z) for z in at(k)] for k in range(count)]


class Wide:
    """torch or numpy with float64 in place of float32, so that diffusers' unchanged code runs in float64."""

    def __init__(self, module: Any):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


@contextlib.contextmanager
def wide_torch(scheduler: type, wide: bool):
    """The module of the scheduler; if `wide`, float32 in it is float64."""
    module = sys.modules[scheduler.__module__]
    with contextlib.ExitStack() as stack:
        if wide:
            stack.enter_context(mock.patch.object(module, "torch", Wide(torch)))
            if hasattr(module, "np"):
                stack.enter_context(mock.patch.object(module, "np", Wide(np)))
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float64)
        yield module


# --- the steps of diffusers


Network = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]  # their x, t, and the number of the level


def plain(scheduler, network: Network, x, noises, options) -> Iterator[torch.Tensor]:
    """x after every step, for a scheduler that evaluates the network once a step."""
    for k, t in enumerate(scheduler.timesteps):
        noises.of(k)
        x = scheduler.step(network(x, t, k), t, x, **options).prev_sample
        yield x


def heun(scheduler, network: Network, x, noises, options) -> Iterator[torch.Tensor]:
    """x after every step, for HeunDiscrete, which evaluates the network twice a step, but once in the last step."""
    last = len(scheduler.timesteps) - 1
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, t, (i + 1) // 2), t, x, **options).prev_sample
        if i % 2 or i == last:
            yield x


def predictor_corrector(scheduler, network: Network, x, noises, options) -> Iterator[torch.Tensor]:
    """x after every step, for ScoreSdeVe as its pipeline calls it: correct, predict, and no noise in the result."""
    last = len(scheduler.timesteps) - 1
    for k, t in enumerate(scheduler.timesteps):
        noises.of(k)
        x = scheduler.step_correct(network(x, t, k), x).prev_sample
        found = scheduler.step_pred(network(x, t, k), t, x)
        x = found.prev_sample
        yield found.prev_sample_mean if k == last else x


class Noises:
    """Replaces diffusers' randn_tensor: returns the draws of the current level, one after the other."""

    def __init__(self, drawn: list[list[np.ndarray]], dtype: torch.dtype):
        self.drawn, self.dtype = drawn, dtype

    def of(self, k: int) -> None:
        self.left = iter(self.drawn[k])

    def __call__(self, shape, **_) -> torch.Tensor:
        return torch.tensor(next(self.left), dtype=self.dtype)


# --- a row


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        scheduler: the name of their class.
        settings: the arguments of its constructor; all others have their defaults.
        n: their number of steps.
        made: a function from their scheduler to our (process, grid, denoise).
        step, corrector: our step and corrector.
        differs: at how many of the last steps x differs.
        why: the number of the note about the difference, and who causes it.
        target: the output of the network.
        clip: whether x0 is clipped to [-1, 1].
        learned: whether the network also returns a variance.
        in_sigma: whether their x is our x / alpha.
        walk: the function that calls their scheduler.
        options: the arguments of its step.
        shown: the name of our process and grid in the table.
        data: the data whose exact score is used.
        batch: the number of samples.
    """

    scheduler: str
    settings: dict
    n: int
    made: Callable
    step: Any
    shown: str
    corrector: Any = None
    differs: int = 0
    why: str = ""
    target: str = "eps"
    clip: bool = False
    learned: bool = False
    in_sigma: bool = False
    walk: Callable = plain
    options: dict = dataclasses.field(default_factory=dict)
    data: Any = TWO_MODES
    batch: int = 64

    @property
    def theirs(self) -> type:
        return getattr(diffusers, self.scheduler)

    def scheduled(self, wide: bool):
        """Their scheduler with its levels set, and its tables in float64 if `wide`."""
        with wide_torch(self.theirs, wide):
            scheduler = self.theirs(**self.settings)
            scheduler.set_timesteps(self.n)
            if self.walk is predictor_corrector:
                scheduler.set_sigmas(self.n)
            return scheduler

    def network(self, process):
        """x, t -> the exact output for this target."""
        exact, target = self.data.denoiser(process), TARGETS[self.target]

        def apply(x, t):
            found, (a, b) = exact(x, t), target(process, t)
            output = broadcast(a, x) * found.x0 + broadcast(b, x) * found.eps
            return jnp.concatenate([output, jnp.sin(3 * x)], -1) if self.learned else output

        return apply

    def start(self, process) -> np.ndarray:
        """x at the noisiest level, in our coordinates."""
        return float(process.prior_std()) * np.asarray(normal32(jax.random.key(1), (self.batch, 2)), np.float64)

    def ours(self, wide: bool) -> np.ndarray:
        """Our x after every step, `[n, B, D]`."""
        with precision(wide):
            process, grid, denoise = self.made(self.scheduled(True))
            denoiser = from_network(process, self.target, self.network(process), self.learned)
            denoiser = Clip(-1.0, 1.0)(denoiser) if self.clip else denoiser
            x = jnp.asarray(self.start(process), process.prior_std().dtype)
            sampler = Sampler(self.step, self.corrector, grid, denoise=denoise)
            final, seen = sampler.trajectory(denoiser, KEY, x.shape, x)
            return np.asarray(jnp.concatenate([seen[1:], final[None]])[: self.n], np.float64)

    def diffusers(self, wide: bool, tables: bool | None = None) -> np.ndarray:
        """Their x after every step, in our coordinates, `[n, B, D]`; `tables`: the precision of the tables only."""
        scheduler, dtype = self.scheduled(wide if tables is None else tables), torch.float64 if wide else torch.float32
        for name, value in vars(scheduler).items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(scheduler, name, value.to(dtype))
        with precision(True), wide_torch(self.theirs, wide) as module:
            process, grid, _ = self.made(self.scheduled(True))
            levels = grid(process, None)
            alphas = [*np.asarray(process.alpha(levels[: self.n])), 1.0][: self.n + 1] if self.in_sigma else None
            apply = jax.jit(self.network(process))

            def network(x: torch.Tensor, t: torch.Tensor, k: int) -> torch.Tensor:
                scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
                x = scaled if self.in_sigma else x
                output = apply(jnp.asarray(x.numpy(), jnp.float64), jnp.full((self.batch,), levels[k]))
                return torch.tensor(np.asarray(output), dtype=dtype)

            start = self.start(process) / (alphas[0] if alphas else 1)
            noises = Noises(drawn(len(levels), start.shape, self.corrector is not None), dtype)
            replaced = mock.patch.object(module, "randn_tensor", noises) if hasattr(module, "randn_tensor") else None
            with replaced or contextlib.nullcontext():
                walk = self.walk(scheduler, network, torch.tensor(start, dtype=dtype), noises, self.options)
                xs = np.stack([x.numpy().astype(np.float64) for x in walk])
        return xs * np.reshape(alphas[1:], (-1, 1, 1)) if alphas else xs


def differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The largest difference after each step, relative to the root mean square of x at this step, `[n]`."""
    return np.abs(a - b).max((1, 2)) / np.sqrt((b**2).mean((1, 2)))


# --- our process and grid, from their scheduler


def on(chain: Callable, extra: tuple[int, ...] = (), denoise: bool = True):
    """The same chain at their timesteps and, below them, at the levels `extra`."""
    return lambda scheduler: (chain(), Listed((*dict.fromkeys(int(t) for t in scheduler.timesteps), *extra)), denoise)


def own(chain: Callable):
    """All levels of the same chain."""
    return lambda scheduler: (chain(), OwnGrid(), True)


def in_sigma(scheduler):
    """The variance-exploding chain with their sigmas, since their x is x / alpha."""
    return sigmas(tuple(sorted({float(s) for s in scheduler.sigmas} - {0.0}))), OwnGrid(), True


def in_betas(scheduler):
    """The variance-preserving chain with their sigmas, which need not be levels of their original chain."""
    abar = 1 / (1 + np.sort(scheduler.sigmas.numpy()[:-1]) ** 2)
    return betas(tuple(1 - abar / np.concatenate([[1.0], abar[:-1]]))), OwnGrid(), True


def edm(n: int):
    """EDM's own grid, which is Karras's."""
    return lambda scheduler: (EDM(), Levels(n), True)


@dataclasses.dataclass(frozen=True)
class Levels(Grid):
    """The own grid of the process, with `count` levels."""

    count: int

    def __call__(self, process: Process, n: int | None = None) -> jax.Array:
        return OwnGrid()(process, self.count)


LINEAR = {"beta_start": 1e-4, "beta_end": 0.02}
FREE = {"clip_sample": False}
LEADING, TRAILING, LINSPACE = ({"timestep_spacing": word} for word in ("leading", "trailing", "linspace"))
DDPM, DDIM, DPM, UNIPC = "DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
EULER, HEUN, VE = "EulerDiscreteScheduler", "HeunDiscreteScheduler", "ScoreSdeVeScheduler"
SDE = {"algorithm_type": "sde-dpmsolver++"}
KARRAS, MIN = {"use_karras_sigmas": True}, {"final_sigmas_type": "sigma_min"}
CHAIN, LEVELS, IN_SIGMA = "`ddpm()`, `Listed(timesteps)`", "`betas` of their sigmas", "`sigmas` of theirs"

SCORE_SDE = {
    "scheduler": VE,
    "settings": {"sigma_max": 50.0, "snr": 0.15},
    "n": 100,
    "made": own(lambda: ncsn(0.01, 50.0, 100)),
    "step": ReverseDiffusion(),
    "corrector": SNRLangevin(0.15, batch_mean=True),
    "shown": "`ncsn(0.01, 50, 100)`",
    "target": "score",
    "walk": predictor_corrector,
}
CAPPED = 23  # at this many of the last levels our Langevin step is limited: see note 5

ROWS = [
    Row(DDPM, FREE, 1000, own(ddpm), Ancestral(), "`ddpm()`", data=gaussian((0.3, -0.5), 0.4)),
    Row(DDPM, FREE, 1000, own(ddpm), Ancestral(), "`ddpm()`"),
    Row(DDPM, FREE | LEADING, 50, on(ddpm), Ancestral(), CHAIN),
    Row(DDPM, FREE | TRAILING, 50, on(ddpm), Ancestral(), CHAIN),
    Row(DDPM, FREE | LINSPACE, 30, on(ddpm), Ancestral(), CHAIN),
    Row(DDPM, {"clip_sample": True} | LEADING, 50, on(ddpm), Ancestral(), CHAIN + ", `Clip`", clip=True),
    Row(DDPM, FREE | {"variance_type": "fixed_large"}, 1000, own(ddpm), Ancestral(variance="large"), "`ddpm()`"),
    Row(DDPM, FREE | LEADING | {"variance_type": "fixed_large"}, 50, on(ddpm), Ancestral(variance="large"), CHAIN),
    Row(
        DDPM,
        FREE | TRAILING | {"variance_type": "fixed_large"},
        50,
        on(ddpm),
        Ancestral(variance="large"),
        CHAIN,
        differs=1,
        why="1: theirs",
    ),
    Row(
        DDPM,
        FREE | LEADING | {"variance_type": "learned_range"},
        50,
        on(ddpm),
        Ancestral(variance="learned"),
        CHAIN,
        learned=True,
    ),
    Row(
        DDPM,
        FREE | TRAILING | {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        50,
        on(cosine),
        Ancestral(),
        "`cosine()`, `Listed(timesteps)`",
        target="v",
    ),
    Row(DDIM, FREE | LEADING, 50, on(ddpm), Ancestral(0.0), CHAIN),
    Row(DDIM, FREE | TRAILING, 50, on(ddpm), Ancestral(0.0), CHAIN),
    Row(DDIM, FREE | LEADING, 50, on(ddpm), Ancestral(0.5), CHAIN, options={"eta": 0.5}),
    Row(DDIM, FREE | LEADING, 1000, own(ddpm), Ancestral(), "`ddpm()`", options={"eta": 1.0}),
    Row(
        DDIM,
        FREE | LEADING | {"set_alpha_to_one": False},
        50,
        on(ddpm, denoise=False),
        Ancestral(0.0),
        CHAIN + ", `denoise=False`",
    ),
    Row(
        DDIM,
        {"clip_sample": True} | LEADING,
        50,
        on(ddpm),
        Ancestral(0.0),
        CHAIN + ", `Clip`",
        clip=True,
        options={"use_clipped_model_output": True},
    ),
    Row(
        DDIM,
        {"clip_sample": True} | LEADING,
        50,
        on(ddpm),
        Ancestral(0.0),
        CHAIN + ", `Clip`",
        clip=True,
        differs=50,
        why="2: theirs",
    ),
    Row(DDIM, FREE | LINSPACE, 50, on(ddpm), Ancestral(0.0), CHAIN, differs=50, why="3: theirs"),
    Row(DDIM, FREE | TRAILING, 30, on(ddpm), Ancestral(0.0), CHAIN, differs=30, why="3: theirs"),
    Row(
        DDIM,
        FREE | LEADING | {"prediction_type": "sample"},
        50,
        on(ddpm),
        Ancestral(0.0),
        CHAIN,
        target="x0",
    ),
    Row(DPM, LINSPACE, 20, on(ddpm), DPMSolver(), CHAIN),
    Row(DPM, LINSPACE, 10, on(ddpm), DPMSolver(), CHAIN),
    Row(DPM, TRAILING | {"prediction_type": "v_prediction"}, 25, on(ddpm), DPMSolver(), CHAIN, target="v"),
    Row(DPM, MIN, 20, on(ddpm, (0,), False), DPMSolver(), CHAIN + " and 0, `denoise=False`"),
    Row(
        DPM,
        MIN,
        10,
        on(ddpm, (0,), False),
        DPMSolver(),
        CHAIN + " and 0, `denoise=False`",
        differs=1,
        why="4: their option",
    ),
    Row(DPM, KARRAS, 20, in_betas, DPMSolver(), LEVELS),
    Row(DPM, SDE, 20, on(ddpm), DPMSolver(1.0), CHAIN),
    Row(DPM, SDE | KARRAS, 20, in_betas, DPMSolver(1.0), LEVELS),
    Row(UNIPC, {"solver_order": 1}, 20, on(ddpm), UniPC(1), CHAIN),
    Row(UNIPC, {}, 20, on(ddpm), UniPC(2), CHAIN),
    Row(UNIPC, {"prediction_type": "v_prediction"}, 8, on(ddpm), UniPC(2), CHAIN, target="v"),
    Row(UNIPC, KARRAS, 20, in_betas, UniPC(2), LEVELS),
    Row(
        UNIPC,
        {"solver_order": 3, "lower_order_final": False} | MIN,
        20,
        on(ddpm, (0,), False),
        UniPC(3),
        CHAIN + " and 0, `denoise=False`",
    ),
    Row(
        UNIPC,
        {"solver_order": 3},
        20,
        on(ddpm),
        UniPC(3),
        CHAIN,
        differs=2,
        why="4: their option",
    ),
    Row(EULER, TRAILING, 20, on(ddpm), Ancestral(0.0), CHAIN + ", x / alpha", in_sigma=True),
    Row(EULER, LINSPACE, 20, in_sigma, Ancestral(0.0), IN_SIGMA),
    Row(EULER, KARRAS, 20, in_sigma, Ancestral(0.0), IN_SIGMA),
    Row("EulerAncestralDiscreteScheduler", LINSPACE, 20, in_sigma, Ancestral(), IN_SIGMA),
    Row(HEUN, LINEAR | TRAILING, 20, on(ddpm), EDMHeun(), CHAIN + ", x / alpha", in_sigma=True, walk=heun),
    Row(HEUN, LINEAR | KARRAS, 20, in_sigma, EDMHeun(), IN_SIGMA, walk=heun),
    Row("EDMEulerScheduler", {}, 18, edm(18), Euler(), "`EDM()`", target="edm"),
    Row("EDMDPMSolverMultistepScheduler", {}, 18, edm(18), DPMSolver(), "`EDM()`", target="edm"),
    Row("EDMDPMSolverMultistepScheduler", SDE, 18, edm(18), DPMSolver(1.0), "`EDM()`", target="edm"),
    Row(data=gaussian((0.3, -0.5), 1e-3), **SCORE_SDE),
    Row(differs=CAPPED, why="5: ours", **SCORE_SDE),
]


# --- the notes, which measure the cause of each difference


def note(text: str) -> str:
    """The text on one line, as an item of a Markdown list."""
    return " ".join(text.split())


def root_mean_square(x: np.ndarray) -> float:
    """The root mean square over all entries."""
    return float(np.sqrt((x**2).mean()))


def pick(scheduler: str, n: int, why: str = "") -> Row:
    """The first row with this scheduler, number of steps and beginning of `why`."""
    return next(row for row in ROWS if (row.scheduler, row.n) == (scheduler, n) and row.why.startswith(why))


def note_1() -> str:
    """With fixed_large, the last step adds all of its noise."""
    row = pick(DDPM, 50, "1")
    levels = row.scheduled(True).timesteps
    last, (z,) = int(levels[-1]), drawn(len(levels), (row.batch, 2), False)[-1]
    std = float(np.sqrt(1 - np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: last + 1])))
    left = np.abs(row.diffusers(True)[-1] - row.ours(True)[-1] - std * z.astype(np.float64)).max()
    return note(f"""
        1. **DDPM, `fixed_large`, `trailing`.** The last step goes from t = {last} to the data. Since t > 0, diffusers
        adds noise of the variance 1 - abar_t in this step, so every sample is returned with fresh noise of the standard
        deviation {std:.3f}. Their x minus our x minus this noise is {left:.0e}. Our sampler ends with the denoised
        mean. With `fixed_small`, diffusers sets the variance of this noise to 1e-20, which explains the 3e-10 in those
        rows.
    """)


class Overshot:
    """A network whose x0 is 1.1, for data that are all 1."""

    @staticmethod
    def denoiser(process: Process) -> Denoiser:
        """The denoiser, with the interface of the oracles."""
        return Denoiser(process, lambda x, t: prediction_from_x0(process, x, t, jnp.full_like(x, 1.1)))


def note_2() -> str:
    """DDIM combines a clipped x0 with the eps of the x0 before clipping."""
    row = dataclasses.replace(pick(DDIM, 50, "2"), data=Overshot)
    whole = dataclasses.replace(row, options={"use_clipped_model_output": True})
    with precision(True):
        process, grid, _ = row.made(row.scheduled(True))
        alpha, sigma = (np.asarray(a(grid(process, None)))[:, None, None] for a in (process.alpha, process.sigma))
        exact = alpha[1:] + sigma[1:] * (row.start(process) - alpha[0]) / sigma[0]
    theirs, consistent, ours = (
        np.abs(x[:-1] - exact).max() for x in (row.diffusers(True), whole.diffusers(True), row.ours(True))
    )
    return note(f"""
        2. **DDIM, `clip_sample`.** By default, diffusers clips x0 and keeps the eps of the network, so x is no longer
        alpha x0 + sigma eps. If all data are 1 and the x0 of a network is 1.1, clipping makes x0 exact, so every x
        should be exact. Their x is off by {theirs:.2g}; with `use_clipped_model_output=True` it is off by
        {consistent:.0e}. Our x is off by {ours:.0e}, because our `Clip` computes eps again from the clipped x0.
    """)


MEAN, STD = (0.3, -0.5), 0.4


def ode_errors(row: Row, noisy: bool = False) -> tuple[float, float]:
    """The final errors of theirs and ours against the exact probability-flow ODE, for Gaussian data.

    Along the ODE, (x - alpha m) / sqrt(alpha^2 c^2 + sigma^2) is constant. With `noisy`, the end is the last level and
    not the data.
    """
    row = dataclasses.replace(row, data=gaussian(MEAN, STD))
    with precision(True):
        process, grid, _ = row.made(row.scheduled(True))
        ends = grid(process, None)[jnp.array([0, -1])]
        alpha, sigma = (np.array(a(ends)) for a in (process.alpha, process.sigma))
        if not noisy:
            alpha[1], sigma[1] = 1, 0
        width, mean = np.hypot(alpha * STD, sigma), np.array(MEAN)
        exact = alpha[1] * mean + width[1] / width[0] * (row.start(process) - alpha[0] * mean)
    return root_mean_square(row.diffusers(True)[-1] - exact), root_mean_square(row.ours(True)[-1] - exact)


def note_3() -> str:
    """DDIM steps to t - 1000 // n, whatever the next timestep is."""
    counts = (50, 150, 300, 600)
    found = [ode_errors(dataclasses.replace(pick(DDIM, 50, "3"), n=n)) for n in counts]
    theirs, ours = (", ".join(f"{error:.1e}" for error in errors) for errors in zip(*found, strict=True))
    listed = ", ".join(map(str, counts))
    return note(f"""
        3. **DDIM, if the timesteps are not 1000 // n apart.** A step of diffusers goes to t - 1000 // n, but the next
        step gives the network the next timestep of the list. The two differ with `linspace` always, and with `trailing`
        if n does not divide 1000. For N(m, {STD}^2), with `linspace` and n = {listed}, the error against the exact
        probability-flow ODE is {theirs} for diffusers and {ours} for ours. Our error falls as 1 / n; theirs does not
        converge. With `leading`, diffusers is right.
    """)


def note_4() -> str:
    """DPM-Solver++ and UniPC take the last steps at a lower order."""
    second, third = ode_errors(pick(DPM, 10, "4"), noisy=True), ode_errors(pick(UNIPC, 20, "4"))
    return note(f"""
        4. **`lower_order_final`.** For stability, DPM-Solver++ with fewer than 15 steps takes its last step at order 1,
        and UniPC-3 takes its last step but one at order 2. Our solvers keep the order. This is an option, not an error.
        The errors against the same exact ODE: DPM-Solver++ theirs {second[0]:.1e}, ours {second[1]:.1e}; UniPC-3 theirs
        {third[0]:.2e}, ours {third[1]:.2e}.
    """)


def note_5() -> str:
    """Our Langevin step is at most sigma^2."""
    row, std = pick(VE, 100, "5"), 0.2
    many = dataclasses.replace(row, data=gaussian(MEAN, std), batch=20_000)
    theirs, ours = (float(x[-1].std(0).mean()) / std for x in (many.diffusers(True), many.ours(True)))
    scheduler = row.scheduled(False)
    told = float((scheduler.sigmas / scheduler.discrete_sigmas.flip(0) - 1).abs().max())
    return note(f"""
        5. **ScoreSdeVe.** If the noise is much smaller than the scale on which the density of the data varies, the
        score no longer grows as 1 / sigma, and the step h = 2 (snr ||z|| / ||s||)^2 exceeds the sigma^2 of the level.
        `SNRLangevin` limits h to sigma^2, diffusers does not, so x differs at the last {CAPPED} of {row.n} levels.
        Neither is wrong: on N(m, {std}^2) the final standard deviation is {theirs:.3f} times the exact one with
        diffusers and {ours:.3f} times with ours (20,000 draws, +- 0.004). If the data are nearly one point, the score
        is the score of the noise, and all steps are equal. A further difference is outside the scheduler: the pipeline
        of diffusers gives the network `scheduler.sigmas[i]`, which differs by up to {told:.0e} of its value from
        `discrete_sigmas`, the level at which the step starts. Here the network gets `discrete_sigmas`.
    """)


def note_6() -> str:
    """How many digits float32 keeps."""
    table = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    theirs = pick(DDPM, 1000).scheduled(False).alphas_cumprod
    least = float((1 - theirs[0]) / theirs[0]) / ((1 - table[0]) / table[0])
    beta = (1 - theirs[1:] / theirs[:-1]).numpy() / (1 - table[1:] / table[:-1])
    with precision(False):
        lam = ddpm().logsnrs
        w = np.asarray(-jnp.expm1(lam[1:] - lam[:-1])) / -np.expm1(-np.diff(np.log(1 / table - 1)))
    off, beta_off, w_off = abs(np.sqrt(least) - 1), np.abs(beta - 1).max(), np.abs(w - 1).max()
    return note(f"""
        6. **float32.** diffusers computes its tables in float32, where 1 - abar has few digits at small t: the smallest
        sigma / alpha is off by {off:.0e} of its value. If the second difference of a row is small, these tables are the
        only cause. In 1,000 steps both sides lose digits, because one step is the difference of two nearly equal
        numbers: their beta, 1 - abar_t / abar_s, is off by up to {beta_off:.0e} of its value, and our w = -expm1(lam_t
        - lam_s) by up to {w_off:.0e}. In float64 these errors disappear.
    """)


# --- the table


def verdict(row: Row, shipped: float, tables: float, ours: float) -> str:
    """Whether x is the same, otherwise who causes the difference; the number names a note."""
    if row.why:
        where = (
            ""
            if row.differs == row.n
            else f", at the last {row.differs} of its steps"
            if row.differs > 1
            else ", at its last step"
        )
        note, whose = row.why.split(": ")
        return f"{whose}{where} ({note})"
    if shipped <= SAME:
        return "same"
    if tables <= SAME:
        return "same; their float32 tables lose digits (6)"
    return f"same; {'their float32 steps lose' if ours <= SAME else 'both lose'} digits (6)"


def written(part: Any) -> str:
    """The constructor call of a step or corrector, without default arguments."""
    options = {field.name: (getattr(part, field.name), field.default) for field in dataclasses.fields(part)}
    named = (f"{name}={value!r}" for name, (value, default) in options.items() if value != default)
    return f"{type(part).__name__}({', '.join(named)})"


def compared(row: Row) -> str:
    """A line of the table. Raises RuntimeError if the measured differences contradict the row."""
    exact = row.ours(True)
    runs = row.diffusers(False), row.diffusers(False, True), row.diffusers(True), row.ours(False)
    shipped, tables, wide, narrow = (differences(x, exact) for x in runs)
    same, other = np.split(wide, [row.n - row.differs])
    if (same > EXACT).any() or (row.differs and other.max() < SAME):
        raise RuntimeError(f"{row.scheduler} {row.settings}: the differences {wide} contradict differs={row.differs}")
    settings = ", ".join(f"{name}={value}" for name, value in {**row.settings, **row.options}.items())
    used = [part for part in (row.step, row.corrector) if part is not None]
    parts = [*(f"`{written(part)}`" for part in used), row.shown]
    data = "" if row.data is TWO_MODES else f" (data N(m, {row.data.stds[0]}^2))"
    figures = [f"{a.max():.1e}" for a in (shipped, tables, wide, narrow)]
    said = verdict(row, shipped.max(), tables.max(), narrow.max())
    return (
        "| "
        + " | ".join(
            [
                row.scheduler.removesuffix("Scheduler"),
                settings or "-",
                ", ".join(parts) + data,
                str(row.n),
                *figures,
                said,
            ]
        )
        + " |"
    )


COLUMNS = (
    *("diffusers", "settings", "ours", "steps"),
    *("as shipped", "its tables in float64", "all in float64", "ours in float32", "verdict"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
MARK = "<!-- What follows is written by benchmarks/parity/schedulers.py. -->\n"


def main() -> None:
    """Write the table and the notes beside this script and into docs/parity.md."""
    lines = []
    for row in ROWS:
        lines.append(compared(row))
        print(lines[-1], flush=True)
    notes = [note() for note in (note_1, note_2, note_3, note_4, note_5, note_6)]
    print("\n".join(notes))
    versions = f"diffusers {diffusers.__version__}, torch {torch.__version__}, JAX {jax.__version__}, on a CPU."
    text = f"{HEAD}{chr(10).join(lines)}\n\n{versions}\n\n{chr(10).join(notes)}\n"
    (HERE / "schedulers.md").write_text(text)
    page = HERE.parents[1] / "docs" / "parity.md"
    page.write_text(page.read_text().split(MARK)[0] + MARK + "\n" + text)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
