"""Our samplers give the same numbers in float64 as the update formulas of other libraries, written out in NumPy.

benchmarks/parity runs the schedulers of diffusers themselves; these tests need no other library.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.process import EDM, VP, bottom, ddpm, ncsn, top
from scoregen.random import example_keys, fold_keys, normal, split_keys
from scoregen.samplers import (
    Ancestral,
    DPMSolver,
    EDMHeun,
    Karras,
    Listed,
    OwnGrid,
    ReverseDiffusion,
    Sampler,
    SNRLangevin,
    UniPC,
)
from scoregen.testing.oracle import TWO_MODES

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(3)
TIMES = (999, 800, 650, 420, 199)
SHAPE = (6, 2)


pytestmark = pytest.mark.usefixtures("exact")


def walk(process, step, times, corrector=None):
    """Our x at every level, `[n, B, D]`, and the z of every level's step and corrector, `[n, 2, B, D]`."""

    @jax.jit
    def run():
        start = process.prior_std() * normal(jax.random.key(4), SHAPE)
        sampler = Sampler(step, corrector, Listed(times), denoise=False)
        final, seen = sampler.trajectory(TWO_MODES.denoiser(process), KEY, SHAPE, start)
        keys = split_keys(example_keys(KEY, SHAPE[0]), 2)[1]

        def drawn(k):
            correct, move = split_keys(fold_keys(keys, k), 2)
            return jnp.stack([normal(move, SHAPE), normal(fold_keys(correct, 0), SHAPE)])

        return jnp.concatenate([seen, final[None]]), jax.vmap(drawn)(jnp.arange(len(times)))

    return map(np.asarray, run())


def exact_network(process, part):
    """x, t -> the exact x0 or eps."""
    denoiser = TWO_MODES.denoiser(process)
    found = jax.jit(lambda x, t: getattr(denoiser(x, t), part))
    return lambda x, t: np.asarray(found(jnp.asarray(x), t))


def coefficients():
    """alpha, sigma and lambda = log(alpha / sigma) of the chain at TIMES, from its betas."""
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[list(TIMES)]
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    return alpha, sigma, np.log(alpha / sigma)


@pytest.mark.quick(1)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpm_solver_is_2m_midpoint(eta):
    """DPMSolverMultistep, dpmsolver++ and sde-dpmsolver++, order 2 by the midpoint, after a first step of order 1."""
    process = ddpm()
    ours, z = walk(process, DPMSolver(eta), TIMES)
    network, (alpha, sigma, lam) = exact_network(process, "x0"), coefficients()
    x, before = ours[0], None
    for k, t in enumerate(TIMES[:-1]):
        h, m0 = lam[k + 1] - lam[k], network(x, t)
        d1 = 0.0 if k == 0 else (m0 - before) / ((lam[k] - lam[k - 1]) / h)
        if eta == 0:
            x = sigma[k + 1] / sigma[k] * x - alpha[k + 1] * (np.exp(-h) - 1) * (m0 + 0.5 * d1)
        else:
            share = 1 - np.exp(-2 * h)
            x = sigma[k + 1] / sigma[k] * np.exp(-h) * x + alpha[k + 1] * share * (m0 + 0.5 * d1)
            x = x + sigma[k + 1] * np.sqrt(share) * z[k][0]
        before = m0
        np.testing.assert_allclose(ours[k + 1], x, rtol=0, atol=1e-6)


def bh2(h, places, x_t, x0, others, ratio, alpha, order):
    """A step of UniPC with B(h) = expm1(-h) (Zhao et al. 2023, eq. 10), as the authors' code solves for its weights."""
    phi = np.expm1(-h)
    right, factorial, phi_k = [], 1, phi / -h - 1
    for i in range(1, order + 1):
        right.append(phi_k * factorial / phi)
        factorial *= i + 1
        phi_k = phi_k / -h - 1 / factorial
    matrix = np.stack([np.asarray(places) ** i for i in range(order)])
    rho = [0.5] if order == 1 else np.linalg.solve(matrix, right)
    slopes = [(other - x0) / place for other, place in zip(others, places, strict=True)]
    return ratio * x_t - alpha * phi * (x0 + sum(r * d for r, d in zip(rho, slopes, strict=True)))


@pytest.mark.quick(1)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_bh2_with_its_corrector(order):
    """UniPCMultistep, bh2: each step is a prediction and, once x0 is known there, a correction of the step before."""
    process = ddpm()
    ours, _ = walk(process, UniPC(order), TIMES)
    network, (alpha, sigma, lam) = exact_network(process, "x0"), coefficients()
    x, found, taken, corrected = ours[0], [], 0, None
    for k, t in enumerate(TIMES[:-1]):
        m = network(x, t)
        if k:  # correct the prediction, from which the next step starts
            h = lam[k] - lam[k - 1]
            places = [(lam[k - 1 - i] - lam[k - 1]) / h for i in range(1, taken)]
            others = [found[k - 1 - i] for i in range(1, taken)]
            ratio = sigma[k] / sigma[k - 1]
            x = bh2(h, [*places, 1.0], corrected, found[k - 1], [*others, m], ratio, alpha[k], taken)
        found, corrected, taken = [*found, m], x, min(order, k + 1)
        h = lam[k + 1] - lam[k]
        places = [(lam[k - i] - lam[k]) / h for i in range(1, taken)]
        others = [found[k - i] for i in range(1, taken)]
        ratio = sigma[k + 1] / sigma[k]
        if taken == 1:
            x = ratio * x - alpha[k + 1] * np.expm1(-h) * m
        else:
            x = bh2(h, places, x, m, others, ratio, alpha[k + 1], taken - 1)
        np.testing.assert_allclose(ours[k + 1], x, rtol=0, atol=1e-6)


def karras(first, last, n, rho=7.0):
    ramp = np.arange(n) / (n - 1)
    return (first ** (1 / rho) + ramp * (last ** (1 / rho) - first ** (1 / rho))) ** rho


def test_karras_sigmas():
    """EDM's own grid, and the grid of Karras for another process, between the ends of that process."""
    np.testing.assert_allclose(OwnGrid()(EDM(), 18), karras(80.0, 0.002, 18), rtol=1e-6)
    process = VP()
    found = np.exp(-0.5 * np.asarray(process.logsnr(Karras()(process, 12))))
    np.testing.assert_allclose(found, karras(found[0], found[-1], 12), rtol=1e-6)
    ends = [np.exp(-0.5 * float(process.logsnr(end(process)))) for end in (top, bottom)]
    np.testing.assert_allclose(found[[0, -1]], ends, rtol=1e-6)


@pytest.mark.slow
def test_ancestral_is_euler_ancestral():
    """EulerAncestralDiscrete: an Euler step in sigma to sigma_down, then noise of sigma_up."""
    process, times = ncsn(0.01, 20.0, 30), (29, 22, 15, 9, 3)
    ours, z = walk(process, Ancestral(), times)
    network, sigma = exact_network(process, "eps"), 0.01 * 2000.0 ** (np.asarray(times) / 29)
    for k, t in enumerate(times[:-1]):
        now, then = sigma[k], sigma[k + 1]
        up = np.sqrt(then**2 * (now**2 - then**2) / now**2)
        down = np.sqrt(then**2 - up**2)
        want = ours[k] + (down - now) * network(ours[k], t) + up * z[k][0]
        np.testing.assert_allclose(ours[k + 1], want, rtol=0, atol=1e-6)


def test_edm_heun_is_heun_in_sigma():
    """HeunDiscrete: in x / alpha, with eps as the slope in sigma / alpha, the mean of the slopes at both ends."""
    process = ddpm()
    ours, _ = walk(process, EDMHeun(), TIMES)
    network, (alpha, sigma, _) = exact_network(process, "eps"), coefficients()
    q = sigma / alpha
    for k, t in enumerate(TIMES[:-1]):
        y, first = ours[k] / alpha[k], network(ours[k], t)
        end = y + (q[k + 1] - q[k]) * first
        second = network(end * alpha[k + 1], TIMES[k + 1])
        want = y + (q[k + 1] - q[k]) * 0.5 * (first + second)
        np.testing.assert_allclose(ours[k + 1], want * alpha[k + 1], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_reverse_diffusion_and_langevin_are_score_sde_ve():
    """ScoreSdeVe: a Langevin step with the batch's mean norms, then x + (s^2 - s'^2) score + sqrt(s^2 - s'^2) z."""
    process, times, snr = ncsn(0.01, 20.0, 30), (29, 28, 27, 26), 0.15
    ours, z = walk(process, ReverseDiffusion(), times, SNRLangevin(snr, batch_mean=True))
    network, sigma = exact_network(process, "eps"), 0.01 * 2000.0 ** (np.asarray(times) / 29)
    for k, t in enumerate(times[:-1]):
        x, (move, correct) = ours[k], z[k]
        score = -network(x, t) / sigma[k]
        norms = [np.linalg.norm(a, axis=1).mean() for a in (correct, score)]
        h = 2 * (snr * norms[0] / norms[1]) ** 2
        x = x + h * score + np.sqrt(2 * h) * correct
        gain = sigma[k] ** 2 - sigma[k + 1] ** 2
        x = x - gain * network(x, t) / sigma[k] + np.sqrt(gain) * move
        np.testing.assert_allclose(ours[k + 1], x, rtol=0, atol=1e-6)


def test_the_page_shows_what_was_measured():
    table = (ROOT / "benchmarks" / "parity" / "schedulers.md").read_text()
    assert table in (ROOT / "docs" / "parity.md").read_text()
