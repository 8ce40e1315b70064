"""Orders of convergence of samplers, from their errors with different numbers of steps.

Samplers of the ODE are compared with the exact map from the prior to the data, for a mixture in the plane; a solver of
SciPy computes this map to a tolerance of 1e-11. Samplers of the SDE are compared with the exact variance on Gaussian
data. There the last x is linear in the noises, so its variance is computed and not estimated. Both parts use double
precision.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from scoregen.process import EDM, VE, VP, CosineVP, Flow, Process, SubVP, bottom, top
from scoregen.random import normal
from scoregen.samplers import (
    Ancestral,
    DPMSolver,
    EDMHeun,
    Euler,
    EulerMaruyama,
    EvenLogSNR,
    Grid,
    Heun,
    Karras,
    OwnGrid,
    ReverseDiffusion,
    Sampler,
    Step,
    UniPC,
)
from scoregen.testing.oracle import TWO_MODES, gaussian

STARTS = 16
COUNTS = {"ODE": (129, 257), "SDE": (513, 1025)}  # the numbers of levels between which an order is computed


@dataclasses.dataclass(frozen=True)
class Case:
    """A step, a suitable grid, the equation that the step solves, and its order in theory."""

    step: Step
    grid: Grid
    follows: str
    order: int
    theory: str
    evaluations: int = 1  # of the network, for each step


OWN, LAM = OwnGrid(), EvenLogSNR()
CASES = {
    "DDIM": Case(Ancestral(0.0), OWN, "ODE", 1, "Euler's method in sigma / alpha"),
    "Euler": Case(Euler(), OWN, "ODE", 1, "Euler's method in t"),
    "reverse diffusion, no noise": Case(ReverseDiffusion(False), LAM, "ODE", 1, "Euler's method, in the coefficients"),
    "Heun": Case(Heun(), OWN, "ODE", 2, "Heun's method in t", 2),
    "EDM": Case(EDMHeun(), Karras(), "ODE", 2, "Heun's method in sigma / alpha", 2),
    "DPM-Solver++ 2M": Case(DPMSolver(), LAM, "ODE", 2, "Lu et al. 2022"),
    "UniPC-2": Case(UniPC(2), LAM, "ODE", 3, "2, and 1 by its corrector: Zhao et al. 2023"),
    "ancestral": Case(Ancestral(), OWN, "SDE", 1, "exact given x0, which is held over a step"),
    "ancestral, large variance": Case(Ancestral(variance="large"), OWN, "SDE", 1, "the same to first order"),
    "reverse diffusion": Case(ReverseDiffusion(), LAM, "SDE", 1, "Euler-Maruyama, in the coefficients"),
    "Euler-Maruyama": Case(EulerMaruyama(), OWN, "SDE", 1, "of weak order 1"),
    "EDM, churn 10": Case(EDMHeun(churn=10.0), Karras(), "SDE", 2, "Heun's method, noise added exactly", 2),
    "SDE-DPM-Solver++ 2M": Case(DPMSolver(1.0), LAM, "SDE", 2, "x0 carried along a line"),
}

# The processes end before alpha = 0, where lam is infinite: a grid in lam ends at -12, and the rest would be one step,
# however many levels there are.
PROCESSES = {
    "vp": VP(t_min=1e-2),
    "subvp": SubVP(t_min=1e-2),
    "vp_cosine": CosineVP(t_min=1e-2, t_max=0.99),
    "ve": VE(0.05, 20.0),
    "edm": EDM(0.02, 80.0),
    "flow": Flow(t_min=1e-2, t_max=0.99),
}


def once(function: Callable) -> Callable:
    """Compiled without optimization, since compiling takes longer here than running."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def ode_errors(process: Process, case: Case, counts: tuple[int, ...]) -> list[float]:
    """RMS distance of the last x, which is not denoised, from the exact one, for each of these numbers of levels."""
    denoiser = TWO_MODES.denoiser(process)
    start = process.prior(jax.random.key(0), (STARTS, 2))
    last, first = process.ends

    @once
    def field(t, x):
        return denoiser.velocity(x.reshape(STARTS, 2), jnp.full(STARTS, t)).ravel()

    flow = solve_ivp(field, (first, last), np.asarray(start).ravel(), "DOP853", rtol=1e-11, atol=1e-11)
    errors = []
    for n in counts:
        sampler = Sampler(case.step, grid=case.grid, n=n, denoise=False)
        walk = once(lambda start, sampler=sampler: sampler(denoiser, jax.random.key(0), start.shape, start))
        errors.append(float(np.sqrt(np.mean((np.asarray(walk(start)).ravel() - flow.y[:, -1]) ** 2))))
    return errors


def sde_errors(process: Process, case: Case, counts: tuple[int, ...], std: float = 0.5) -> list[float]:
    """The relative error of the variance of the last x on data N(0, std^2), for each number of levels in `counts`."""
    return [abs(last_variance(process, case, n, std) / _variance(process, bottom(process), std) - 1) for n in counts]


def _variance(process: Process, t: jax.Array, std: float) -> float:
    return float(process.alpha(t) ** 2 * std**2 + process.sigma(t) ** 2)


def last_variance(process: Process, case: Case, n: int, std: float) -> float:
    """The variance at the last of n levels on data N(0, std^2), if it is exact at the noisiest level."""
    denoiser = gaussian((0.0,), std).denoiser(process)
    levels = case.grid(process, n)

    @once
    def walk(levels):
        # Row 0 is the factor of the start, row k the factor of the noise of step k - 1; both noises have unit size.
        x = jnp.zeros((n, 1)).at[0].set(1.0)
        keys = jax.random.key(0), jax.random.key(1)
        z, other = (normal(key, x.shape) for key in keys)

        def step(state, k):
            x, memory = state
            t, s = (jnp.full(n, levels[i]) for i in (k, k + 1))
            (one, memory), (two, _) = (case.step.step(denoiser, key, x, t, s, memory) for key in keys)
            fresh = (one - two) / (z - other)  # the factor of z in each row
            return ((one - fresh * z).at[k + 1].add(fresh[k + 1]), memory), None

        (x, _), _ = jax.lax.scan(step, (x, case.step.init(denoiser, x, levels)), jnp.arange(n - 1))
        return x

    x = np.asarray(walk(levels))
    return float(x[0, 0] ** 2 * _variance(process, top(process), std) + np.sum(x[1:] ** 2))


def order(process: Process, case: Case) -> tuple[float, list[float]]:
    """The slope of log error against log steps between the two `COUNTS`, with the sign changed, and the errors."""
    counts = COUNTS[case.follows]
    with jax.enable_x64(True):
        errors = (ode_errors if case.follows == "ODE" else sde_errors)(process, case, counts)
    return math.log(errors[0] / errors[1]) / math.log((counts[1] - 1) / (counts[0] - 1)), errors
