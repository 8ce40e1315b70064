"""Steps and correctors agree with the papers' formulas, and all of them keep dtypes and refuse wrong combinations."""

import contextlib
import dataclasses
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from levels import levels
from scipy.integrate import quad

from scoregen.denoiser import Denoiser, as_energy, from_energy, prediction_from_x0
from scoregen.guidance import ClassifierFree, Clip, DynamicThreshold
from scoregen.process import EDM, PROCESSES, VE, VP, Flow, SubVP, ddpm, ncsn, posterior
from scoregen.random import broadcast, normal
from scoregen.samplers import (
    CORRECTORS,
    MALA,
    STEPS,
    Adaptive,
    Ancestral,
    Consistent,
    DPMSolver,
    EDMHeun,
    Euler,
    EulerMaruyama,
    EvenLogSNR,
    EvenTime,
    Heun,
    Hold,
    Langevin,
    ReverseDiffusion,
    Sampler,
    SNRLangevin,
    UniPC,
    decode,
    encode,
    interpolate,
)
from scoregen.testing.oracle import TWO_MODES, gaussian

KEY = jax.random.key(5)


pytestmark = pytest.mark.usefixtures("exact")


def batch(process, n=5):
    """x near the data's law at n times, and a less noisy time for each."""
    grid = levels(process, 2 * n + 2)
    t, s = grid[1:-1:2], grid[2::2]
    x = normal(jax.random.key(1), (n, 2)) * jnp.hypot(process.alpha(t), process.sigma(t))[:, None]
    return x, t, s


def step(step, process, x, t, s, denoiser=None):
    """x at s, by the first step of a grid of 7 levels."""
    denoiser = denoiser or TWO_MODES.denoiser(process)
    return step.step(denoiser, KEY, x, t, s, step.init(denoiser, x, levels(process, 7)))[0]


def column(a):
    return np.asarray(a)[:, None]


def close(a, b, **options):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), **({"rtol": 1e-9, "atol": 1e-11} | options))


@pytest.mark.quick(1)
@pytest.mark.parametrize("noise", [True, False])
def test_reverse_diffusion_of_ddpm_is_song_et_al(noise):
    """x - f + G^2 s + G z with f = (sqrt(1 - beta) - 1) x and G = sqrt(beta); the ODE has half the score and no z."""
    process = ddpm()
    x, t, _ = batch(process)
    beta = column(np.linspace(1e-4, 0.02, 1000)[t])
    score = np.asarray(TWO_MODES.denoiser(process)(x, t).score)
    want = (2 - np.sqrt(1 - beta)) * x + (1 if noise else 0.5) * beta * score
    want += noise * np.sqrt(beta) * np.asarray(normal(KEY, x.shape))
    # the tolerance also suits float32 tables, where the variance loses digits as a small difference in lam
    close(step(ReverseDiffusion(noise), process, x, t, t - 1), want, rtol=2e-4, atol=2e-6)


def test_reverse_diffusion_of_ncsn_is_song_et_al():
    """x + (sigma_t^2 - sigma_s^2) s + sqrt(sigma_t^2 - sigma_s^2) z."""
    process = VE(0.02, 30.0)
    x, t, s = batch(process)
    span = column(process.sigma(t) ** 2 - process.sigma(s) ** 2)
    score = np.asarray(TWO_MODES.denoiser(process)(x, t).score)
    close(
        step(ReverseDiffusion(), process, x, t, s),
        x + span * score + np.sqrt(span) * np.asarray(normal(KEY, x.shape)),
    )


@pytest.mark.parametrize(("process", "sub"), [(VP(), False), (SubVP(), True)])
def test_euler_maruyama_is_song_et_al(process, sub):
    """f = -beta x / 2 and g^2 = beta, for sub-VP times 1 - e^(-2 B), with beta and B = int beta as in eq. 29."""
    x, t, s = batch(process)
    at, h = column(t), column(t - s)
    beta, whole = 0.1 + 19.9 * at, 0.1 * at + 0.5 * 19.9 * at**2
    g2 = beta * (1 - np.exp(-2 * whole)) if sub else beta
    score = np.asarray(TWO_MODES.denoiser(process)(x, t).score)
    want = x - h * (-0.5 * beta * x - g2 * score) + np.sqrt(g2 * h) * np.asarray(normal(KEY, x.shape))
    close(step(EulerMaruyama(), process, x, t, s), want, rtol=1e-8)


def test_euler_and_heun_follow_the_straight_path():
    """The velocity of flow matching is eps - x0."""
    process = Flow()
    x, t, s = batch(process)
    denoiser, h = TWO_MODES.denoiser(process), column(s - t)

    def v(x, t):
        found = denoiser(x, t)
        return np.asarray(found.eps - found.x0)

    euler = x + h * v(x, t)
    close(step(Euler(), process, x, t, s), euler)
    close(step(Heun(), process, x, t, s), x + 0.5 * h * (v(x, t) + v(euler, s)))


@pytest.mark.parametrize("name", ["vp", "subvp", "vp_cosine"])
def test_euler_is_the_published_ode(name):
    """f x - g^2 score / 2, with f and g as differences of alpha and sigma."""
    process = PROCESSES[name]()
    x, t, s = batch(process)
    d = 1e-5 * t
    slope = lambda a: np.asarray((a(t + d) - a(t - d)) / (2 * d))  # noqa: E731
    f = slope(lambda t: jnp.log(process.alpha(t)))
    g2 = slope(lambda t: process.sigma(t) ** 2) - 2 * f * np.asarray(process.sigma(t)) ** 2
    score = np.asarray(TWO_MODES.denoiser(process)(x, t).score)
    want = x + column(s - t) * (column(f) * x - 0.5 * column(g2) * score)
    close(step(Euler(), process, x, t, s), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("churn", [0.0, 2.0, 40.0])  # only the last reaches the limit sqrt(2) - 1 of gamma
def test_edm_is_karras_et_al(churn):
    """Algorithm 2, with D for the denoiser; 7 levels, noise 1.003, and churn only for sigma between 0.05 and 50."""
    process = EDM()
    sigma = np.array([60.0, 20.0, 1.3, 0.3, 0.01])
    following = np.array([40.0, 3.0, 0.4, 0.1, 0.004])
    x = np.asarray(normal(jax.random.key(1), (5, 2))) * column(np.hypot(sigma, 1))
    denoiser = TWO_MODES.denoiser(process)
    D = lambda x, sigma: np.asarray(denoiser(jnp.asarray(x), jnp.asarray(sigma)).x0)  # noqa: E731
    gamma = np.where((sigma >= 0.05) & (sigma <= 50), min(churn / 7, math.sqrt(2) - 1), 0)
    hat = sigma + gamma * sigma
    x_hat = x + column(np.sqrt(hat**2 - sigma**2)) * 1.003 * np.asarray(normal(KEY, x.shape))
    d = (x_hat - D(x_hat, hat)) / column(hat)
    euler = x_hat + column(following - hat) * d
    d2 = (euler - D(euler, following)) / column(following)
    want = x_hat + column(following - hat) * 0.5 * (d + d2)
    predictor = EDMHeun(churn, 0.05, 50.0, 1.003)
    close(step(predictor, process, jnp.asarray(x), jnp.asarray(sigma), jnp.asarray(following)), want, rtol=1e-8)


@pytest.mark.quick(7)
@pytest.mark.parametrize(
    "predictor", [Ancestral(), Ancestral(0.0), Consistent(0.5), EDMHeun(), EDMHeun(churn=3.0), DPMSolver(), UniPC()]
)
@pytest.mark.parametrize("name", ["vp", "subvp", "flow", "ddpm"])
def test_what_walks_in_sigma_over_alpha_walks_alike_under_every_process(predictor, name):
    """These steps use only x / alpha and sigma / alpha, so under every process they equal the step under EDM."""
    process, plain = PROCESSES[name](), EDM(1e-4, 1e4)
    x, t, s = batch(process)
    ratio = lambda u: process.sigma(u) / process.alpha(u)  # noqa: E731
    there = step(predictor, plain, x / column(process.alpha(t)), ratio(t), ratio(s))
    close(step(predictor, process, x, t, s), column(process.alpha(s)) * there, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_consistent_sampling_is_jolicoeur_martineau_et_al():
    """x += eta sigma_t^2 s + sigma_s b z, with b^2 = 1 - ((1 - eta) / gamma)^2 and gamma = sigma_s / sigma_t."""
    process = ncsn(0.01, 1.0, 30)
    x, t, s = batch(process)
    sigma, following = column(process.sigma(t)), column(process.sigma(s))
    score = np.asarray(TWO_MODES.denoiser(process)(x, t).score)
    b = np.sqrt(1 - ((1 - 0.4) * sigma / following) ** 2)
    want = x + 0.4 * sigma**2 * score + following * b * np.asarray(normal(KEY, x.shape))
    close(step(Consistent(0.4), process, x, t, s), want, rtol=1e-4, atol=1e-5)
    # an eta below DDIM's would leave too much noise, so DDIM's step is taken
    close(step(Consistent(0.01), process, x, t, s), step(Ancestral(0.0), process, x, t, s), atol=1e-6)
    mean, std = posterior(process, x, TWO_MODES.denoiser(process)(x, t).x0, t, s)
    own = Consistent(float(1 - (following / sigma)[0, 0] ** 2))
    close(
        step(own, process, x[:1], t[:1], s[:1]),
        (mean + column(std) * normal(KEY, x.shape))[:1],
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_first_steps_of_the_multistep_methods():
    """The first step of DPM-Solver is DDIM, or for the SDE ancestral sampling; the first step of UniPC is DDIM."""
    process = VP()
    x, t, s = batch(process)
    close(step(DPMSolver(), process, x, t, s), step(Ancestral(0.0), process, x, t, s))
    close(step(DPMSolver(1.0), process, x, t, s), step(Ancestral(1.0), process, x, t, s))
    close(step(UniPC(3), process, x, t, s), step(Ancestral(0.0), process, x, t, s))


def test_dpm_solver_is_lu_et_al():
    """x_s = (sigma_s / sigma_t) x - alpha_s (e^-h - 1) D with D = (1 + 1 / 2r) x0 - x0_before / 2r, for the ODE.

    For the SDE it is (sigma_s / sigma_t) e^-h x + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) z.
    """
    process = VP()
    half = lambda t: 0.5 * np.asarray(process.logsnr(t))  # noqa: E731
    before, t, s = (jnp.array([time]) for time in (0.8, 0.5, 0.4))
    x, denoiser = jnp.array([[0.3, -0.7]]), TWO_MODES.denoiser(process)
    h, r = (half(s) - half(t))[0], ((half(t) - half(before)) / (half(s) - half(t)))[0]
    x0, old = (np.asarray(denoiser(x, time).x0) for time in (t, before))
    d = (1 + 1 / (2 * r)) * x0 - old / (2 * r)
    alpha, shrink, sigma = (
        float(a[0]) for a in (process.alpha(s), process.sigma(s) / process.sigma(t), process.sigma(s))
    )
    z = np.asarray(normal(KEY, x.shape))
    for eta, want in (
        (0.0, shrink * x - alpha * math.expm1(-h) * d),
        (1.0, shrink * math.exp(-h) * x - alpha * math.expm1(-2 * h) * d + sigma * math.sqrt(-math.expm1(-2 * h)) * z),
    ):
        solver = DPMSolver(eta)
        _, state = solver.step(denoiser, KEY, x, before, t, solver.init(denoiser, x, before))
        close(solver.step(denoiser, KEY, x, t, s, state)[0], want, rtol=1e-8)


@pytest.mark.quick(1)
@pytest.mark.parametrize("predictor", [UniPC(1), UniPC(2), UniPC(3), DPMSolver()])
def test_the_ode_is_solved_exactly_where_x0_does_not_change(predictor):
    """The linear part is solved exactly, whatever the steps: x = alpha x0 + (sigma_s / sigma_t) (x - alpha x0)."""
    process = VP()
    denoiser = Denoiser(process, lambda x, t: prediction_from_x0(process, x, t, jnp.full_like(x, 1.7)))
    start = normal(KEY, (3, 2))
    x = Sampler(predictor, grid=EvenTime(), n=7, denoise=False)(denoiser, KEY, (3, 2), start)
    (first, last), mean = levels(process, 2), 1.7
    shrink = process.sigma(last) / process.sigma(first)
    close(x, process.alpha(last) * mean + shrink * (start - process.alpha(first) * mean), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "t", "s"),
    [(VP, [1.0, 0.6], [0.01, 0.2]), (Flow, [1.0, 0.2], [0.01, 0.6]), (ddpm, [999, 10], [0, 30])],
    ids=["VP", "Flow", "DDPM"],
)
def test_adaptive_solves_the_ode_to_its_tolerance(make, t, s):
    """For Gaussian data x - alpha m is scaled by the ratio of the standard deviations, also when time rises."""
    data, process = gaussian((0.5, -0.2), 0.3), make()
    x, t, s = jnp.array([[0.3, -1.0], [2.0, 0.1]]), jnp.array(t), jnp.array(s)
    mean = jnp.array([[0.5, -0.2]])
    spread = lambda u: jnp.hypot(0.3 * process.alpha(u), process.sigma(u))  # noqa: E731
    want = column(process.alpha(s)) * mean + column(spread(s) / spread(t)) * (x - column(process.alpha(t)) * mean)
    errors = []
    for tolerance in (1e-4, 1e-7):
        found = step(Adaptive(tolerance, tolerance), process, x, t, s, data.denoiser(process))
        errors.append(float(jnp.abs(found - want).max()))
    assert errors[0] < 3e-4 and errors[1] < 3e-6, errors


def by_norms(snr, score, z, batch_mean):
    """h = 2 (snr ||z|| / ||s||)^2 of Song et al. 2021, algorithm 5, with the batch's mean norms or each example's."""
    norms = [np.linalg.norm(a, axis=1, keepdims=True) for a in (z, score)]
    noise, signal = (a.mean(keepdims=True) if batch_mean else a for a in norms)
    return 2 * (snr * noise / signal) ** 2


@pytest.mark.slow
def test_langevin_by_signal_to_noise_is_song_et_al():
    """Algorithm 5: x + h s + sqrt(2 h) z. With `batch_mean`, h comes from the norms of the batch. By default h is the
    value that these norms give in many dimensions, 2 (snr sigma)^2."""
    process, dims = ncsn(0.01, 5.0, 20), 4096
    t = jnp.array([19, 19, 19])
    denoiser = gaussian((0.0,) * dims, 0.05).denoiser(process)
    x = column(jnp.hypot(process.sigma(t), 0.05)) * normal(KEY, (3, dims))
    score = np.asarray(denoiser(x, t).score)
    keys = jax.vmap(jax.random.fold_in, (0, None))(jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(3)), 0)
    z = np.asarray(normal(keys, x.shape))
    paper = by_norms(0.16, score, z, batch_mean=True)
    found = SNRLangevin(0.16, 1, batch_mean=True)(denoiser, KEY, x, t)
    close(found, x + paper * score + np.sqrt(2 * paper) * z, rtol=1e-7, atol=1e-8)
    h = 2 * (0.16 * column(process.sigma(t))) ** 2
    close(SNRLangevin(0.16)(denoiser, KEY, x, t), x + h * score + np.sqrt(2 * h) * z, rtol=1e-7, atol=1e-8)
    for each in (paper, by_norms(0.16, score, z, batch_mean=False)):
        np.testing.assert_allclose(each, np.full_like(each, h[0, 0]), rtol=0.05)
    flat = Denoiser(process, lambda x, t: prediction_from_x0(process, x, t, x))  # no score at all
    held = SNRLangevin(0.16, batch_mean=True)(flat, KEY, x, t)
    close(held, x + np.sqrt(2) * column(process.sigma(t)) * z, rtol=1e-7)


def anisotropic(process, stds):
    """The exact denoiser of data N(0, diag(stds^2)), and the variance of x at t in each direction."""
    stds = jnp.asarray(stds, float)

    def variance(t):
        alpha, sigma = (broadcast(a(t), stds) for a in (process.alpha, process.sigma))
        return alpha**2 * stds**2 + sigma**2

    def predict(x, t):
        x0 = broadcast(process.alpha(t), x) * (stds**2)[None] / jax.vmap(variance)(t) * x
        return prediction_from_x0(process, x, t, x0)

    return Denoiser(process, predict), lambda t: np.asarray(variance(t))


@pytest.mark.quick(1)
@pytest.mark.parametrize("dims", [1, 2, 4, 16])
@pytest.mark.parametrize(
    ("process", "t"),
    [(ncsn(0.01, 10.0, 10), 0), (ncsn(0.01, 10.0, 10), 4), (ncsn(0.01, 10.0, 10), 9), (ddpm(), 300), (VP(), 0.2)],
)
def test_langevin_by_signal_to_noise_settles_at_the_exact_variance(process, t, dims):
    """The data are Gaussians whose directions range from nearly no width to a large one. In every direction the
    variance settles at V / (1 - snr^2 sigma^2 / V), as the docstring says: at most snr^2 / (1 - snr^2) of V above V."""
    snr, count, steps = 0.4, 10_000, 100
    denoiser, variance = anisotropic(process, np.geomspace(1e-3, 1.0, dims) if dims > 1 else [0.02])
    t = jnp.asarray(t)
    v, sigma2 = variance(t), float(process.sigma(t)) ** 2
    settled = v / (1 - snr**2 * sigma2 / v)
    assert (settled <= v / (1 - snr**2) * (1 + 1e-6)).all()
    # Each step multiplies the distance to `settled` by (1 - h / V)^2, which is slow where the data are wide.
    want = settled + (v - settled) * (1 - 2 * snr**2 * sigma2 / v) ** (2 * steps)
    run = jax.jit(lambda x: SNRLangevin(snr, steps)(denoiser, KEY, x, jnp.full(count, t)))
    x = np.asarray(run(jnp.sqrt(v)[None] * normal(jax.random.key(3), (count, dims))))
    np.testing.assert_allclose(x.var(0), want, rtol=4.5 * math.sqrt(2 / count))


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "factor"), [(2, 4.0), (4, 2.5), (16, 1.3)])
def test_norms_of_each_example_would_not(dims, factor):
    """This is why the default uses no ratio of norms. With each example's norms, the variance of the tightest direction
    settles at 6.1, 3.7 and 1.6 times the exact variance in 2, 4 and 16 dimensions; with the batch's norms at 1.02."""
    process = ncsn(0.1, 10.0, 10)
    denoiser, variance = anisotropic(process, np.geomspace(0.01, 1.0, dims))
    v, t = variance(jnp.asarray(0)), jnp.zeros(4000, jnp.int32)

    def step(x, key):
        score, z = denoiser(x, t).score, jax.random.normal(key, x.shape)
        norm = lambda a: jnp.linalg.norm(a, axis=1, keepdims=True)  # noqa: E731
        h = jnp.minimum(2 * (0.16 * norm(z) / norm(score)) ** 2, 0.01)
        return x + h * score + jnp.sqrt(2 * h) * z, None

    start = jnp.sqrt(v)[None] * normal(KEY, (4000, dims))
    x, _ = jax.lax.scan(step, start, jax.random.split(KEY, 400))
    assert np.asarray(x).var(0)[0] > factor * v[0]
    for batch_mean in (False, True):
        x = SNRLangevin(0.16, 400, batch_mean)(denoiser, KEY, start, t)
        assert np.asarray(x).var(0)[0] == pytest.approx(v[0], rel=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [1, 2, 16])
def test_langevin_by_signal_to_noise_does_not_depend_on_the_batch(dims):
    process = VP()
    denoiser, _ = anisotropic(process, np.geomspace(0.1, 1.0, dims) if dims > 1 else [0.5])
    x, t = 3 * normal(KEY, (5, dims)), jnp.full(5, 0.3)
    many = SNRLangevin(0.16, 3)(denoiser, KEY, x, t)
    np.testing.assert_array_equal(SNRLangevin(0.16, 3)(denoiser, KEY, x[:2], t[:2]), many[:2])
    few, all_five = (SNRLangevin(0.16, 3, True)(denoiser, KEY, x[:n], t[:n]) for n in (2, 5))
    assert (np.asarray(few) != np.asarray(all_five)[:2]).all()


@pytest.mark.slow
def test_mala_has_no_bias_where_langevin_has():
    """With a step h, Langevin settles at the variance V / (1 - h / 2V), while MALA's acceptance keeps V."""
    process, data = ncsn(0.4, 0.8, 2), gaussian((0.0, 0.0), 0.6)
    t, count = jnp.zeros(20_000, jnp.int32), 20_000
    v = 0.36 + 0.16
    start = math.sqrt(v) * normal(jax.random.key(8), (count, 2))
    x = np.asarray(MALA(0.5, 20)(data.denoiser(process), KEY, start, t))
    assert x.var() == pytest.approx(v, rel=4 / math.sqrt(count))
    biased = np.asarray(Langevin(0.5, 20)(data.denoiser(process), KEY, start, t))
    assert biased.var() == pytest.approx(v / (1 - 0.5 / (2 * v)), rel=0.05)
    still = np.asarray(MALA(0.5, 1)(data.denoiser(process), KEY, start, t)) == np.asarray(start)
    assert 0.05 < still.mean() < 0.95  # some moves are refused, in all dimensions at once
    assert (still[:, 0] == still[:, 1]).all()
    without = Denoiser(process, lambda x, t: data.denoiser(process)(x, t)._replace(log_density=None))
    with pytest.raises(ValueError, match="score alone"):
        MALA()(without, KEY, start, t)
    with pytest.raises(ValueError, match="score alone"):
        Sampler(Hold(), MALA())(without, KEY, start.shape)


@pytest.mark.slow
def test_an_energy_has_the_score_for_its_gradient():
    """The mixture's energy gives the exact denoiser. `as_energy` has the score of -||eps||^2 / 2, by differences."""
    process = VP()
    x, t, _ = batch(process)
    exact = TWO_MODES.denoiser(process)
    found = from_energy(process, lambda x, t: TWO_MODES.log_prob(x, process.alpha(t), process.sigma(t)))(x, t)
    want = exact(x, t)
    for name in ("x0", "eps", "score", "log_density"):
        close(getattr(found, name), getattr(want, name), rtol=1e-7)
    energetic = as_energy(exact)(x, t)
    h = 1e-6
    for i in range(2):
        d = h * jnp.eye(2)[i][None]
        up, down = (-0.5 * np.sum(np.asarray(exact(x + e, t).eps) ** 2, 1) for e in (d, -d))
        close(energetic.score[:, i], (up - down) / (2 * h), rtol=1e-6, atol=1e-7)
    close(energetic.x0, (x + column(process.sigma(t) ** 2) * energetic.score) / column(process.alpha(t)))


def test_the_range_of_the_data():
    """Clip clips x0, and the dynamic threshold scales x0 by a high quantile; eps follows from x and the new x0."""
    process = VP()
    x, t = jnp.ones((1, 4)), jnp.array([0.5])
    denoiser = Denoiser(process, lambda x, t: prediction_from_x0(process, x, t, jnp.array([[0.5, -3.0, 1.5, 2.0]])))
    a, s = float(process.alpha(t)[0]), float(process.sigma(t)[0])
    for wrapper, want in (
        (Clip(-1.0, 1.0), [0.5, -1.0, 1.0, 1.0]),
        (Clip(0.0, 4.0, reach=0.5), [1.0, 1.0, 1.5, 2.0]),  # the range from 1 to 3
        (Clip(-1.0, 1.0, reach=2.5), [0.5, -2.5, 1.5, 2.0]),
        (Clip(-math.inf, math.inf), [0.5, -3.0, 1.5, 2.0]),
        (DynamicThreshold(-1.0, 1.0, 1.0), [0.5 / 3, -1.0, 0.5, 2 / 3]),
        (DynamicThreshold(-1.0, 1.0, 1.0, most=2.0), [0.25, -1.0, 0.75, 1.0]),
        (DynamicThreshold(-1.0, 1.0, 1.0, most=1.0), [0.5, -1.0, 1.0, 1.0]),  # a clip
        (DynamicThreshold(-1.0, 1.0, 1 / 3), [0.5 / 1.5, -1.0, 1.0, 1.0]),  # the quantile of |x0| is 1.5
        (DynamicThreshold(0.0, 4.0, 1.0), [2 - 1.5 / 2.5, 0.0, 2 - 0.5 / 2.5, 2.0]),
        (DynamicThreshold(-9.0, 9.0, 1.0), [0.5, -3.0, 1.5, 2.0]),
    ):
        found = wrapper(denoiser)(x, t)
        close(found.x0, [want])
        close(found.eps, (1 - a * np.array([want])) / s)
    with pytest.raises(ValueError, match="finite range"):
        DynamicThreshold(-math.inf, math.inf)


@pytest.mark.slow
def test_the_weights_of_unipc_keep_their_digits_in_short_steps():
    """In float32 the recursion for phi loses all digits in short steps; the series does not."""
    for order in (2, 3):
        for h in (1e-3, 4e-3, 0.02, 0.29, 0.31, 2.0):
            found = {}
            for exact in (False, True):
                with jax.enable_x64(exact):
                    places = [jnp.full(1, -k, float) for k in range(1, order)] + [jnp.ones(1)]
                    found[exact] = np.asarray(UniPC(order)._weights(jnp.full(1, h), places, order, True))
            np.testing.assert_allclose(found[False], found[True], rtol=2e-4)
            if h < 0.01:  # the weights of Adams and Moulton, at equal steps
                np.testing.assert_allclose(found[True][-1], {2: 5 / 12, 3: 3 / 8}[order], rtol=1e-2)


@pytest.mark.parametrize("h", [0.29, 0.31, 2.0, 6.0, 15.0])
@pytest.mark.parametrize("order", [2, 3])
def test_the_weights_of_unipc_are_exact_for_polynomials_at_any_step(h, order):
    """sum_m rho_m r_m^(i - 1) = -h int_0^1 exp(-(1 - u) h) u^i du / expm1(-h) (Zhao et al. 2023, eq. 5)."""
    ratios = [-k for k in range(1, order)] + [1.0]
    places = [jnp.full(1, r, float) for r in ratios]
    rho = np.asarray(UniPC(order)._weights(jnp.full(1, h), places, order, True), np.float64)[:, 0]
    for i in range(1, order + 1):
        integral = quad(lambda u, i=i: math.exp(-(1 - u) * h) * u**i, 0, 1, epsabs=1e-12)[0]
        # z phi_{i + 1}(z) = z / i! int exp((1 - u) z) u^i du, at z = -h
        exact = -h * integral / math.expm1(-h)
        np.testing.assert_allclose(sum(rho * np.power(ratios, i - 1)), exact, rtol=2e-4)


def test_all_noise_may_be_fresh_also_where_alpha_is_0():
    x = Sampler(Consistent(1.0), n=5)(TWO_MODES.denoiser(Flow()), KEY, (50, 2))
    assert np.isfinite(x).all()


# --- what all must keep


def sampler_of(step, n):
    """A sampler with this step, and with the corrector and n that the attributes of the step ask for."""
    return Sampler(step, SNRLangevin(0.1) if step.needs_corrector else None, n=2 if step.adaptive else n)


def with_options(make):
    """The part with its defaults, and copies with one real option changed, for each option that accepts the change."""
    parts = [make()]
    for name, value in vars(parts[0]).items():
        if isinstance(value, float) and math.isfinite(value):
            with contextlib.suppress(ValueError):
                parts.append(make(**{name: value / 1.5 or 0.5}))
    return parts


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", STEPS)
def test_an_example_does_not_depend_on_its_batch(name):
    with jax.enable_x64(False):
        process = VP() if STEPS[name].continuous_only else ddpm()
        sampler = sampler_of(STEPS[name](), 8)
        few, many = (sampler(TWO_MODES.denoiser(process), KEY, (n, 2)) for n in (2, 5))
        np.testing.assert_allclose(few, many[:2], rtol=1e-4, atol=1e-4)
        assert np.isfinite(many).all() and len(np.unique(np.asarray(many))) == 10


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("key", PROCESSES)
def test_a_step_is_refused_or_keeps_the_dtype(name, key):
    """`refuse` and the call of a sampler give the same reason. With JAX_ENABLE_X64 a float32 x stays float32 in the
    step and in the sampler, and the state keeps its types."""
    process, shape = PROCESSES[key](), (3, 2)
    denoiser, keys = TWO_MODES.denoiser(process), jax.random.split(KEY, 3)
    start = (process.prior_std() * normal(KEY, shape)).astype(jnp.float32)
    types = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)  # noqa: E731
    for step in with_options(STEPS[name]):
        sampler = sampler_of(step, 4)
        refusals = sampler.refuse(process)
        if refusals:
            assert all(refusal.fixes for refusal in refusals)
            with pytest.raises(ValueError, match=refusals[0].reason[:20]):
                sampler(denoiser, KEY, shape, start)
            continue
        grid = sampler.levels(process)
        state = step.init(denoiser, start, grid)
        arguments = (denoiser, keys, start, jnp.full(3, grid[0]), jnp.full(3, grid[1]), state)
        if step.adaptive:  # its programs are large, so the step is only traced
            moved, after = jax.eval_shape(step.step, *arguments)
        else:
            moved, after = step.step(*arguments)
            assert np.isfinite(moved).all()
        assert types(moved) == (shape, jnp.float32)
        assert types(after) == types(state)
        for found in jax.eval_shape(lambda x, run=sampler.trajectory: run(denoiser, KEY, shape, x), start):
            assert found.dtype == jnp.float32


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", [name for name, make in CORRECTORS.items() if make() is not None])
@pytest.mark.parametrize("key", PROCESSES)
def test_a_corrector_keeps_the_dtype_and_the_law(name, key):
    """From the exact law at a level, x stays float32 with JAX_ENABLE_X64, and its variance does not change."""
    process, count = PROCESSES[key](), 4000
    denoiser = gaussian((0.0, 0.0), 0.5).denoiser(process)
    corrector = CORRECTORS[name]()
    if hasattr(corrector, "step_size"):  # a tenth of the noise variance at the least noisy level
        corrector = dataclasses.replace(corrector, step_size=0.1 * float(process.sigma(levels(process, 2)[1])) ** 2)
    if hasattr(corrector, "steps"):
        corrector = dataclasses.replace(corrector, steps=3)
    assert corrector.refuse(process) is None
    run = jax.jit(lambda x, t: corrector(denoiser, KEY, x, jnp.full(count, t)))
    for t in levels(process, 3)[1:]:
        variance = float(process.sigma(t) ** 2 + 0.25 * process.alpha(t) ** 2)
        x = run((math.sqrt(variance) * normal(jax.random.key(2), (count, 2))).astype(jnp.float32), t)
        assert x.dtype == jnp.float32
        assert np.asarray(x, float).var() == pytest.approx(variance, rel=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_codes_keep_the_dtype(name):
    """Codes stay float32 with JAX_ENABLE_X64. For a chain and an SDE, decoding them gives the data again."""
    process, x0 = PROCESSES[name](), jnp.array([[0.5, -0.2], [1.0, 0.1]], jnp.float32)
    denoiser, solver = gaussian((0.0, 0.0), 0.5).denoiser(process), Adaptive(1e-4, 1e-4)
    for function in (encode, decode):
        assert jax.eval_shape(lambda x, f=function: f(denoiser, x, solver), x0).dtype == jnp.float32
    between = jax.eval_shape(lambda x: interpolate(denoiser, x, x[::-1], [0, 1], solver), x0)
    assert between.dtype == jnp.float32 and between.shape == (2, 2, 2)
    if name in ("ddpm", "vp"):
        np.testing.assert_allclose(interpolate(denoiser, x0, x0[::-1], [0, 1], solver), [x0, x0[::-1]], atol=0.01)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda d: encode(lambda x, t: None, jnp.ones((2, 2))), "a Denoiser is needed"),
        (lambda d: encode(d, jnp.ones((2, 2), int)), r"x0 is int64\[2, 2\]"),
        (lambda d: decode(d, jnp.ones(2)), "code is float64"),
    ],
)
def test_wrong_codes_are_refused(call, said):
    with pytest.raises(TypeError, match=said):
        call(TWO_MODES.denoiser(VP()))


@pytest.mark.slow
def test_nor_on_how_many_devices_there_are(tmp_path):
    """A batch on one device and a batch on four devices give the same draws."""
    code = """
import jax, sys, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from scoregen.testing.oracle import TWO_MODES
from scoregen.process import EDM
from scoregen.random import example_keys
from scoregen.samplers import EDMHeun, Sampler, SNRLangevin
keys = example_keys(jax.random.key(0), 8)
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
keys = jax.device_put(keys, NamedSharding(mesh, P("data")))
x = Sampler(EDMHeun(churn=4.0), SNRLangevin(), n=10)(TWO_MODES.denoiser(EDM()), keys, (8, 2))
assert len(x.sharding.device_set) == jax.device_count(), x.sharding
np.save(sys.argv[1], np.asarray(x))
"""
    for count in (1, 4):
        env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / f"{count}.npy")], env=env, check=True)
    np.testing.assert_allclose(*(np.load(tmp_path / f"{count}.npy") for count in (1, 4)), rtol=1e-5, atol=1e-6)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("process", "sampler", "evaluations"),
    [
        (EDM(), Sampler(EDMHeun(), n=18), 35),  # Karras et al. 2022, table 2
        (VP(), Sampler(Heun(), n=11), 21),
        (VP(), Sampler(Euler(), n=11), 11),
        (ddpm(), Sampler(UniPC(3), n=10), 10),
        (ddpm(), Sampler(DPMSolver(1.0), n=10), 10),
        (ncsn(), Sampler(Hold(), Langevin(2e-5, 7)), 71),
        (ncsn(), Sampler(Hold(), MALA(2e-5, 7)), 81),  # one more per level, at the start of its moves
        (ncsn(), Sampler(ReverseDiffusion(), SNRLangevin(0.16, 2)), 30),
    ],
)
def test_evaluations_are_counted(process, sampler, evaluations):
    with jax.enable_x64(False):
        assert sampler.evaluations(process) == evaluations


def test_guidance_evaluates_twice():
    with jax.enable_x64(False):
        for scale, times in ((2.5, 2), (1.0, 1), (0.0, 1)):
            guided = lambda denoiser, scale=scale: ClassifierFree(denoiser, scale)(denoiser)  # noqa: E731
            assert Sampler(EDMHeun(), n=18).evaluations(EDM(), guided) == times * 35


@pytest.mark.slow
@pytest.mark.parametrize("step", [Ancestral(), UniPC()])
def test_a_trajectory_is_the_walk_of_the_draws(step):
    process, shape = ddpm(), (3, 2)
    denoiser, sampler = TWO_MODES.denoiser(process), Sampler(step, n=6)
    drawn, walk = sampler.trajectory(denoiser, KEY, shape)
    close(drawn, sampler(denoiser, KEY, shape))
    assert walk.shape == (6, *shape)
    close(denoiser(walk[-1], jnp.zeros(3, jnp.int32)).x0, drawn)
    start = normal(jax.random.key(3), shape)
    _, other = sampler.trajectory(denoiser, KEY, shape, start)
    close(other[0], start)
    if step == Ancestral():  # every step is a draw from the posterior, within 6 standard deviations of its mean
        grid = sampler.levels(process)
        for k in range(5):
            t, s = jnp.full(3, grid[k]), jnp.full(3, grid[k + 1])
            mean, std = posterior(process, walk[k], denoiser(walk[k], t).x0, t, s)
            z = (walk[k + 1] - mean) / column(std)
            assert 0.01 < float(jnp.abs(z).max()) < 6


@pytest.mark.slow
def test_a_bridge_and_a_grid_go_together():
    """DPM-Solver on an NCSN's denoiser through DDPM's levels, even in lam, draws the mixture's modes."""
    with jax.enable_x64(False):
        denoiser = TWO_MODES.denoiser(ncsn(0.005, 200.0, 500)).under(ddpm())
        x = np.asarray(Sampler(DPMSolver(), grid=EvenLogSNR(), n=30)(denoiser, KEY, (4000, 2)))
        first = x[:, 0] < 0
        assert abs(first.mean() - 0.3) < 4 * math.sqrt(0.21 / 4000)
        assert x[first].std(0) == pytest.approx(0.35, rel=0.08)


@pytest.mark.parametrize(
    ("process", "sampler", "reason", "fix"),
    [
        (ddpm(), Sampler(Euler()), "Euler is in time, and a chain has levels instead", "step=ancestral"),
        (ncsn(), Sampler(Heun()), "levels instead", "step=edm"),
        (ddpm(), Sampler(EulerMaruyama()), "levels instead", "step=dpm"),
        (Flow(), Sampler(EulerMaruyama()), "alpha = 0", "process.t_max=0.999"),
        (VP(), Sampler(Hold()), "needs a corrector", "corrector=langevin"),
        (ddpm(), Sampler(Hold(), MALA()), "needs a density", "model.energy=true"),
        (VP(), Sampler(UniPC(), SNRLangevin()), "lose the moves of a corrector", "step=dpm"),
        (ddpm(), Sampler(Ancestral(variance="learned")), "needs a learned variance", "step.variance=small"),
        (ncsn(0.01), Sampler(Hold(), Langevin(2e-4)), "diverge", "corrector.step_size=2e-05"),
        (EDM(), Sampler(Ancestral(), Langevin()), "diverge", "corrector.step_size=8e-07"),
        (ddpm(), Sampler(Ancestral(), n=1001), "this chain has 1000 levels", "sampler.n=0"),
        (VP(), Sampler(Adaptive()), "chooses its own steps", "sampler.n=2"),
    ],
)
def test_what_does_not_go_together_is_refused_once(process, sampler, reason, fix):
    (refusal,) = sampler.refuse(process)
    assert reason in refusal.reason and fix in refusal.fixes
    if reason not in ("needs a density", "needs a learned variance"):  # which a denoiser may have
        with pytest.raises(ValueError, match="take"):
            sampler(TWO_MODES.denoiser(process), KEY, (2, 2))


def test_all_refusals_are_given_together():
    """Samplers with the fixes applied are accepted."""
    sampler = Sampler(Heun(), MALA(), n=2000)
    assert len(sampler.refuse(ddpm())) == 3
    assert len(Sampler(Hold(), n=2000).refuse(ddpm())) == 2
    assert Sampler(Ancestral(), Langevin()).refuse(ddpm(), density=True) == []
    assert Sampler(Ancestral(), Langevin(8e-7)).refuse(EDM()) == []
    assert Sampler(Ancestral(), Langevin(1.99e-4)).refuse(ncsn(0.01)) == []
    assert Sampler(Adaptive(), n=100).refuse(VP()) == []


def test_what_goes_together_is_not_refused():
    for process in (VP(), EDM(), Flow(t_max=0.999)):
        for name, make in STEPS.items():
            corrector = None if make.excludes_corrector else Langevin(1e-7)
            assert Sampler(make(), corrector, n=2).refuse(process) == [], name
    assert Sampler(Hold(), MALA()).refuse(ddpm(), density=True) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: Consistent(0.0),
        lambda: Consistent(1.1),
        lambda: EDMHeun(churn=-1.0),
        lambda: EDMHeun(low=2.0, high=1.0),
        lambda: DPMSolver(1.1),
        lambda: UniPC(4),
        lambda: Adaptive(rtol=0.0),
        lambda: SNRLangevin(0.0),
        lambda: SNRLangevin(0.1, 0),
        lambda: SNRLangevin(1.0),
        lambda: MALA(0.0),
        lambda: MALA(steps=0),
        lambda: Clip(1.0, 1.0),
        lambda: DynamicThreshold(0.0, 1.0, 0.0),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match="needed"):
        make()


def test_the_tables_are_complete():
    assert {type(make()) for make in STEPS.values()} | {type(make()) for make in CORRECTORS.values()} >= {
        Ancestral, Consistent, ReverseDiffusion, EulerMaruyama, Euler, Heun, EDMHeun, DPMSolver, UniPC, Adaptive, Hold,
        Langevin, SNRLangevin, MALA,
    }  # fmt: skip
