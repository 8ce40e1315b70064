"""Steps of the predictors and correctors, against the papers' formulas spelled out, and what all of them must keep."""

import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.denoiser import as_energy, as_process, of_energy, of_x0
from scoregen.guidance import ClassifierFree, Clip, DynamicThreshold
from scoregen.oracle import TWO_MODES, gaussian
from scoregen.process import EDM, PROCESSES, VE, VP, Flow, SubVP, ddpm, ncsn, normal, posterior, rows
from scoregen.rules import unsuited
from scoregen.samplers import (
    CORRECTORS,
    GRIDS,
    MALA,
    PREDICTORS,
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
    Karras,
    Langevin,
    Listed,
    NoCorrector,
    OwnGrid,
    Power,
    ReverseDiffusion,
    SNRLangevin,
    UniPC,
    evaluations,
    sample,
    trajectory,
)

KEY = jax.random.key(5)


@pytest.fixture(autouse=True)
def exact():
    with jax.enable_x64(True):
        yield


def batch(process, n=5):
    """x near the data's law at n times, and a less noisy time for each."""
    grid = process.grid(2 * n + 2)
    t, s = grid[1:-1:2], grid[2::2]
    x = normal(jax.random.key(1), (n, 2)) * rows(jnp.hypot(process.alpha(t), process.sigma(t)), jnp.ones((n, 2)))
    return x, t, s


def step(predictor, process, x, t, s, predict=None, memory=None):
    predict = predict or TWO_MODES.predict(process)
    if hasattr(predictor, "init"):
        memory = predictor.init(x, process.grid(7)) if memory is None else memory
        return predictor(process, predict, KEY, x, t, s, memory)[0]
    return predictor(process, predict, KEY, x, t, s)


def column(a):
    return np.asarray(a)[:, None]


def close(a, b, **options):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), **({"rtol": 1e-9, "atol": 1e-11} | options))


@pytest.mark.parametrize("noise", [True, False])
def test_reverse_diffusion_of_ddpm_is_song_et_al(noise):
    """x - f + G^2 s + G z with f = (sqrt(1 - beta) - 1) x and G = sqrt(beta); of the ODE half the score, and no z."""
    process = ddpm()
    x, t, _ = batch(process)
    beta = column(np.linspace(1e-4, 0.02, 1000)[t])
    score = np.asarray(TWO_MODES.predict(process)(x, t).score)
    want = (2 - np.sqrt(1 - beta)) * x + (1 if noise else 0.5) * beta * score
    want += noise * np.sqrt(beta) * np.asarray(normal(KEY, x.shape))
    # in float32 the tables' last digits are in lam, of which w is a small difference
    close(step(ReverseDiffusion(noise), process, x, t, t - 1), want, rtol=2e-4, atol=2e-6)


def test_reverse_diffusion_of_ncsn_is_song_et_al():
    """x + (sigma_t^2 - sigma_s^2) s + sqrt(sigma_t^2 - sigma_s^2) z."""
    process = VE(0.02, 30.0)
    x, t, s = batch(process)
    span = column(process.sigma(t) ** 2 - process.sigma(s) ** 2)
    score = np.asarray(TWO_MODES.predict(process)(x, t).score)
    close(
        step(ReverseDiffusion(), process, x, t, s),
        x + span * score + np.sqrt(span) * np.asarray(normal(KEY, x.shape)),
    )


@pytest.mark.parametrize(("process", "sub"), [(VP(), False), (SubVP(), True)])
def test_euler_maruyama_is_song_et_al(process, sub):
    """f = -beta x / 2 and g^2 = beta, of the sub-VP times 1 - e^(-2 B), with beta and B = int beta as in eq. 29."""
    x, t, s = batch(process)
    at, h = column(t), column(t - s)
    beta, whole = 0.1 + 19.9 * at, 0.1 * at + 0.5 * 19.9 * at**2
    g2 = beta * (1 - np.exp(-2 * whole)) if sub else beta
    score = np.asarray(TWO_MODES.predict(process)(x, t).score)
    want = x - h * (-0.5 * beta * x - g2 * score) + np.sqrt(g2 * h) * np.asarray(normal(KEY, x.shape))
    close(step(EulerMaruyama(), process, x, t, s), want, rtol=1e-8)


def test_euler_and_heun_follow_the_straight_path():
    """Of flow matching the velocity is eps - x0."""
    process = Flow()
    x, t, s = batch(process)
    predict, h = TWO_MODES.predict(process), column(s - t)

    def v(x, t):
        found = predict(x, t)
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
    score = np.asarray(TWO_MODES.predict(process)(x, t).score)
    want = x + column(s - t) * (column(f) * x - 0.5 * column(g2) * score)
    close(step(Euler(), process, x, t, s), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("churn", [0.0, 2.0, 40.0])  # of which the last alone is held at sqrt(2) - 1
def test_edm_is_karras_et_al(churn):
    """Algorithm 2, with D for the denoiser; 7 levels, noise 1.003, and churn between 0.05 and 50 alone."""
    process = EDM()
    sigma = np.array([60.0, 20.0, 1.3, 0.3, 0.01])
    following = np.array([40.0, 3.0, 0.4, 0.1, 0.004])
    x = np.asarray(normal(jax.random.key(1), (5, 2))) * column(np.hypot(sigma, 1))
    predict = TWO_MODES.predict(process)
    D = lambda x, sigma: np.asarray(predict(jnp.asarray(x), jnp.asarray(sigma)).x0)  # noqa: E731
    gamma = np.where((sigma >= 0.05) & (sigma <= 50), min(churn / 7, math.sqrt(2) - 1), 0)
    hat = sigma + gamma * sigma
    x_hat = x + column(np.sqrt(hat**2 - sigma**2)) * 1.003 * np.asarray(normal(KEY, x.shape))
    d = (x_hat - D(x_hat, hat)) / column(hat)
    euler = x_hat + column(following - hat) * d
    d2 = (euler - D(euler, following)) / column(following)
    want = x_hat + column(following - hat) * 0.5 * (d + d2)
    predictor = EDMHeun(churn, 0.05, 50.0, 1.003)
    close(step(predictor, process, jnp.asarray(x), jnp.asarray(sigma), jnp.asarray(following)), want, rtol=1e-8)


@pytest.mark.parametrize(
    "predictor", [Ancestral(), Ancestral(0.0), Consistent(0.5), EDMHeun(), EDMHeun(churn=3.0), DPMSolver(), UniPC()]
)
@pytest.mark.parametrize("name", ["vp", "subvp", "flow", "ddpm"])
def test_what_walks_in_sigma_over_alpha_walks_alike_under_every_process(predictor, name):
    """x / alpha at a noise of sigma / alpha is all that these know: EDM's walk, seen through another process."""
    process, plain = PROCESSES[name](), EDM(1e-4, 1e4)
    x, t, s = batch(process)
    ratio = lambda u: process.sigma(u) / process.alpha(u)  # noqa: E731
    predict = TWO_MODES.predict(process)
    there = step(predictor, plain, x / rows(process.alpha(t), x), ratio(t), ratio(s), TWO_MODES.predict(plain))
    close(step(predictor, process, x, t, s, predict), rows(process.alpha(s), x) * there, rtol=1e-4, atol=1e-5)


def test_consistent_sampling_is_jolicoeur_martineau_et_al():
    """x += eta sigma_t^2 s + sigma_s b z, with b^2 = 1 - ((1 - eta) / gamma)^2 and gamma = sigma_s / sigma_t."""
    process = ncsn(0.01, 1.0, 30)
    x, t, s = batch(process)
    sigma, following = column(process.sigma(t)), column(process.sigma(s))
    score = np.asarray(TWO_MODES.predict(process)(x, t).score)
    b = np.sqrt(1 - ((1 - 0.4) * sigma / following) ** 2)
    want = x + 0.4 * sigma**2 * score + following * b * np.asarray(normal(KEY, x.shape))
    close(step(Consistent(0.4), process, x, t, s), want, rtol=1e-4, atol=1e-5)
    # less than DDIM's step would leave too much noise, and DDIM's is taken
    close(step(Consistent(0.01), process, x, t, s), step(Ancestral(0.0), process, x, t, s), atol=1e-6)
    mean, std = posterior(process, x, TWO_MODES.predict(process)(x, t).x0, t, s)
    own = Consistent(float(1 - (following / sigma)[0, 0] ** 2))
    close(
        step(own, process, x[:1], t[:1], s[:1]), (mean + rows(std, x) * normal(KEY, x.shape))[:1], rtol=1e-4, atol=1e-5
    )


def test_the_first_steps_of_the_multistep_methods():
    """With nothing before, DPM-Solver is DDIM, or for the SDE ancestral sampling, and UniPC too is DDIM."""
    process = VP()
    x, t, s = batch(process)
    close(step(DPMSolver(), process, x, t, s), step(Ancestral(0.0), process, x, t, s))
    close(step(DPMSolver(1.0), process, x, t, s), step(Ancestral(1.0), process, x, t, s))
    close(step(UniPC(3), process, x, t, s), step(Ancestral(0.0), process, x, t, s))


def test_dpm_solver_is_lu_et_al():
    """x_s = (sigma_s / sigma_t) x - alpha_s (e^-h - 1) D with D = (1 + 1 / 2r) x0 - x0_before / 2r, of the ODE.

    Of the SDE it is (sigma_s / sigma_t) e^-h x + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) z.
    """
    process = VP()
    half = lambda t: 0.5 * np.asarray(process.logsnr(t))  # noqa: E731
    before, t, s = (jnp.array([time]) for time in (0.8, 0.5, 0.4))
    x, predict = jnp.array([[0.3, -0.7]]), TWO_MODES.predict(process)
    h, r = (half(s) - half(t))[0], ((half(t) - half(before)) / (half(s) - half(t)))[0]
    x0, old = (np.asarray(predict(x, time).x0) for time in (t, before))
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
        _, memory = solver(process, predict, KEY, x, before, t, solver.init(x, before))
        close(solver(process, predict, KEY, x, t, s, memory)[0], want, rtol=1e-8)


@pytest.mark.parametrize("predictor", [UniPC(1), UniPC(2), UniPC(3), DPMSolver()])
def test_the_ode_is_solved_exactly_where_x0_does_not_change(predictor):
    """The linear part is: x = alpha x0 + (sigma_s / sigma_t) (x - alpha x0), whatever the steps are."""
    process = VP()
    predict = lambda x, t: of_x0(process, x, t, jnp.full_like(x, 1.7))  # noqa: E731
    start = normal(KEY, (3, 2))
    x = sample(process, predict, KEY, (3, 2), predictor, n=7, grid=EvenTime(), start=start, denoise=False)
    (first, last), mean = process.grid(2), 1.7
    shrink = process.sigma(last) / process.sigma(first)
    close(x, process.alpha(last) * mean + shrink * (start - process.alpha(first) * mean), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "t", "s"),
    [(VP, [1.0, 0.6], [0.01, 0.2]), (Flow, [1.0, 0.2], [0.01, 0.6]), (ddpm, [999, 10], [0, 30])],
    ids=["VP", "Flow", "DDPM"],
)
def test_adaptive_solves_the_ode_to_its_tolerance(make, t, s):
    """Gaussian data: x - alpha m is scaled by the ratio of the standard deviations. Down, and the second up."""
    data, process = gaussian((0.5, -0.2), 0.3), make()
    x, t, s = jnp.array([[0.3, -1.0], [2.0, 0.1]]), jnp.array(t), jnp.array(s)
    mean = jnp.array([[0.5, -0.2]])
    spread = lambda u: jnp.hypot(0.3 * process.alpha(u), process.sigma(u))  # noqa: E731
    want = rows(process.alpha(s), x) * mean + rows(spread(s) / spread(t), x) * (x - rows(process.alpha(t), x) * mean)
    errors = []
    for tolerance in (1e-4, 1e-7):
        found = Adaptive(tolerance, tolerance)(process, data.predict(process), KEY, x, t, s)
        errors.append(float(jnp.abs(found - want).max()))
    assert errors[0] < 3e-4 and errors[1] < 3e-6, errors


def test_langevin_by_signal_to_noise_is_song_et_al():
    """Algorithm 5: h = 2 (snr ||z|| / ||s||)^2, and x + h s + sqrt(2 h) z."""
    process = ncsn(0.01, 5.0, 20)
    t = jnp.array([19, 12, 3])
    predict = gaussian((0.0,) * 64, 0.5).predict(process)
    x = rows(jnp.hypot(process.sigma(t), 0.5), jnp.ones((3, 64))) * normal(KEY, (3, 64))
    score = np.asarray(predict(x, t).score)
    keys = jax.vmap(jax.random.fold_in, (0, None))(jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(3)), 0)
    z = np.asarray(normal(keys, x.shape))
    norm = lambda a: np.linalg.norm(a, axis=1, keepdims=True)  # noqa: E731
    for batch_mean in (False, True):
        n, s = (np.mean(norm(a), keepdims=True) if batch_mean else norm(a) for a in (z, score))
        h = np.minimum(2 * (0.16 * n / s) ** 2, column(process.sigma(t)) ** 2)
        found = SNRLangevin(0.16, 1, batch_mean)(process, predict, KEY, x, t)
        close(found, x + h * score + np.sqrt(2 * h) * z, rtol=1e-7, atol=1e-8)
    zero = lambda x, t: of_x0(process, x, t, x)  # noqa: E731  # no score at all
    held = SNRLangevin(0.16)(process, zero, KEY, x, t)
    close(held, x + np.sqrt(2) * column(process.sigma(t)) * z, rtol=1e-7)


def test_langevin_by_signal_to_noise_settles_in_many_dimensions():
    """There the norms are all but numbers: h = 2 snr^2 V for variance V, which settles at V / (1 - h / 2V)."""
    process, dims = ncsn(0.5, 2.0, 2), 1024
    predict = gaussian((0.0,) * dims, 0.5).predict(process)
    t = jnp.array([1] * 16)
    x = SNRLangevin(0.3, 60)(process, predict, KEY, jnp.zeros((16, dims)), t)
    v = 0.25 + 4.0
    # h = 2 snr^2 D / ||x / V||^2 holds itself: at the variance q, h = 2 snr^2 V^2 / q
    q = v
    for _ in range(50):
        q = v / (1 - 0.09 * v / q)
    assert float(jnp.mean(x**2)) == pytest.approx(q, rel=0.03)


def test_mala_has_no_bias_where_langevin_has():
    """A step that Langevin answers with a variance of V / (1 - h / 2V) leaves it V with the acceptance."""
    process, data = ncsn(0.4, 0.8, 2), gaussian((0.0, 0.0), 0.6)
    t, count = jnp.zeros(20_000, jnp.int32), 20_000
    v = 0.36 + 0.16
    start = math.sqrt(v) * normal(jax.random.key(8), (count, 2))
    x = np.asarray(MALA(0.5, 20)(process, data.predict(process), KEY, start, t))
    assert x.var() == pytest.approx(v, rel=4 / math.sqrt(count))
    biased = np.asarray(Langevin(0.5, 20)(process, data.predict(process), KEY, start, t))
    assert biased.var() == pytest.approx(v / (1 - 0.5 / (2 * v)), rel=0.05)
    still = np.asarray(MALA(0.5, 1)(process, data.predict(process), KEY, start, t)) == np.asarray(start)
    assert 0.05 < still.mean() < 0.95  # moves are refused, whole
    assert (still[:, 0] == still[:, 1]).all()
    without = lambda x, t: data.predict(process)(x, t)._replace(log_density=None)  # noqa: E731
    with pytest.raises(ValueError, match="score alone"):
        MALA()(process, without, KEY, start, t)


def test_an_energy_has_the_score_for_its_gradient():
    """Of the mixture's density it is the exact denoiser; of any network's noise, -||eps||^2 / 2 by differences."""
    process = VP()
    x, t, _ = batch(process)
    exact = TWO_MODES.predict(process)
    found = of_energy(process, lambda x, t: TWO_MODES.log_prob(x, process.alpha(t), process.sigma(t)))(x, t)
    want = exact(x, t)
    for name in ("x0", "eps", "score", "log_density"):
        close(getattr(found, name), getattr(want, name), rtol=1e-7)
    energetic = as_energy(process, exact)(x, t)
    h = 1e-6
    for i in range(2):
        d = h * jnp.eye(2)[i][None]
        up, down = (-0.5 * np.sum(np.asarray(exact(x + e, t).eps) ** 2, 1) for e in (d, -d))
        close(energetic.score[:, i], (up - down) / (2 * h), rtol=1e-6, atol=1e-7)
    close(energetic.x0, (x + rows(process.sigma(t) ** 2, x) * energetic.score) / rows(process.alpha(t), x))


def test_the_range_of_the_data():
    """Clip holds x0; the dynamic threshold divides what a high quantile leaves outside; eps is what is left of x."""
    process = VP()
    x, t = jnp.ones((1, 4)), jnp.array([0.5])
    predict = lambda x, t: of_x0(process, x, t, jnp.array([[0.5, -3.0, 1.5, 2.0]]))  # noqa: E731
    a, s = float(process.alpha(t)[0]), float(process.sigma(t)[0])
    for wrapper, want in (
        (Clip(-1.0, 1.0), [0.5, -1.0, 1.0, 1.0]),
        (DynamicThreshold(-1.0, 1.0, 1.0), [0.5 / 3, -1.0, 0.5, 2 / 3]),
        (DynamicThreshold(-1.0, 1.0, 1 / 3), [0.5 / 1.5, -1.0, 1.0, 1.0]),  # of 0.5, 1.5, 2 and 3 the second
        (DynamicThreshold(0.0, 4.0, 1.0), [2 - 1.5 / 2.5, 0.0, 2 - 0.5 / 2.5, 2.0]),
        (DynamicThreshold(-9.0, 9.0, 1.0), [0.5, -3.0, 1.5, 2.0]),
    ):
        found = wrapper(process, predict)(x, t)
        close(found.x0, [want])
        close(found.eps, (1 - a * np.array([want])) / s)
    with pytest.raises(ValueError, match="without a range"):
        DynamicThreshold(-math.inf, math.inf)


# --- grids


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("grid", [name for name in GRIDS if name != "list"])
def test_grids_fall_from_end_to_end(name, grid):
    process = PROCESSES[name]()
    for n in (1, 2, min(7, process.levels), process.levels if process.discrete else 200):
        times = np.asarray(GRIDS[grid]()(process, n), np.float64)
        assert len(times) == n and (np.diff(times) < 0).all()
        ends = np.asarray(process.grid(2), np.float64)
        assert times[0] == ends[0] and (n == 1 or times[-1] == ends[1])
    assert GRIDS[grid]()(process, 0).shape == (process.levels,)


def test_grids_are_even_in_what_they_say():
    even = lambda a: close(np.diff(a), np.full(len(a) - 1, a[1] - a[0]), rtol=1e-5)  # noqa: E731
    process = VP()
    even(np.asarray(EvenTime()(process, 9)))
    even(np.asarray(process.logsnr(EvenLogSNR()(process, 9))))
    ratio = lambda t: np.asarray(process.sigma(t) / process.alpha(t))  # noqa: E731
    even(ratio(Karras(5.0)(process, 9)) ** 0.2)
    even(np.sqrt(np.asarray(Power(2.0)(process, 9))))
    close(Karras()(EDM(), 18), EDM().grid(18), rtol=1e-9)  # Karras et al. 2022, eq. 5, spelled out in test_process
    # DDIM's quadratic grid, of a chain
    close(Power()(ddpm(), 10), np.round(np.linspace(math.sqrt(999), 0, 10) ** 2))
    close(OwnGrid()(ddpm(), 5), ddpm().grid(5))


def test_a_chains_levels_are_taken_once():
    """Near the data DDPM's levels are far apart in lam, and an even grid would take the last ones many times."""
    levels = np.asarray(EvenLogSNR()(ddpm(), 100))
    lam = np.asarray(ddpm().logsnr(jnp.asarray(levels)))
    assert (np.diff(levels) < 0).all()
    free = levels > 60  # where there is room, it is the nearest level to the even lam
    want = np.linspace(*np.asarray(ddpm().logsnr(jnp.array([999, 0]))), 100)
    assert (abs(lam - want)[free] <= np.abs(np.gradient(np.asarray(ddpm().logsnrs)))[levels[free]]).all()


@pytest.mark.parametrize(
    ("times", "process", "n", "said"),
    [
        ((1.0, 1.0), VP(), 0, "must fall"),
        ((), VP(), 0, "at least one"),
        ((1.0, 0.5), VP(), 3, "2 are given"),
        ((2.0, 0.5), VP(), 0, "between 1e-05 and 1|between 1 and"),
        ((3.5, 1.0), ddpm(), 0, "whole numbers"),
        ((5.0, "a"), ddpm(), 0, "numbers are needed"),
    ],
)
def test_a_list_that_is_none_is_refused(times, process, n, said):
    with pytest.raises(ValueError, match=said):
        Listed(times)(process, n)


def test_a_walk_may_begin_below_the_noisiest_level():
    """With the law of x there, not with that of the top, which for EDM is of a deviation of 80."""
    levels = Listed(tuple(np.geomspace(5.0, 0.0021, 60).tolist()))
    drawn, walk = trajectory(EDM(), TWO_MODES.predict(EDM()), KEY, (4000, 2), Ancestral(0.0), grid=levels)
    assert float(walk[0].std()) == pytest.approx(math.hypot(5.0, 0.5), rel=0.03)
    first = np.asarray(drawn)[:, 0] < 0
    assert abs(first.mean() - 0.3) < 0.04  # 5 is not so far above the modes' distance that the prior is exact
    assert np.asarray(drawn)[first].std(0) == pytest.approx(0.35, rel=0.1)


def test_the_weights_of_unipc_keep_their_digits_in_short_steps():
    """In float32 the recursion for phi loses all of them; the series does not."""
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


def test_all_noise_may_be_fresh_also_where_alpha_is_0():
    x = sample(Flow(), TWO_MODES.predict(Flow()), KEY, (50, 2), Consistent(1.0), n=5)
    assert np.isfinite(x).all()


def test_a_list_is_walked_as_it_stands():
    assert Listed((900.0, 30.0, 2.0))(ddpm(), 0).tolist() == [900, 30, 2]
    close(Listed((0.9, 0.4))(VP(), 2), [0.9, 0.4])


# --- what all must keep


def some(name):
    """A predictor of the table, with a process that it can walk."""
    predictor = EDMHeun(churn=5.0) if name == "edm" else PREDICTORS[name]()
    return predictor, VP() if name in ("euler", "heun", "euler_maruyama", "ode") else ddpm()


@pytest.mark.parametrize("name", PREDICTORS)
def test_an_example_does_not_depend_on_its_batch(name):
    with jax.enable_x64(False):
        predictor, process = some(name)
        corrector = SNRLangevin(0.1) if name == "hold" else NoCorrector()
        run = lambda n: sample(process, TWO_MODES.predict(process), KEY, (n, 2), predictor, corrector, 8)  # noqa: E731
        few, many = run(2), run(5)
        np.testing.assert_allclose(few, many[:2], rtol=1e-4, atol=1e-4)
        assert np.isfinite(many).all() and len(np.unique(np.asarray(many))) == 10


@pytest.mark.slow
def test_nor_on_how_many_devices_there_are(tmp_path):
    """The same draws from a batch that lies on one device and on four."""
    code = """
import jax, sys, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from scoregen.oracle import TWO_MODES
from scoregen.process import EDM, example_keys
from scoregen.samplers import EDMHeun, SNRLangevin, sample
keys = example_keys(jax.random.key(0), 8)
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
keys = jax.device_put(keys, NamedSharding(mesh, P("data")))
run = jax.jit(lambda keys: sample(EDM(), TWO_MODES.predict(EDM()), keys, (8, 2), EDMHeun(churn=4.0), SNRLangevin(), 10))
x = run(keys)
assert len(x.sharding.device_set) == jax.device_count(), x.sharding
np.save(sys.argv[1], np.asarray(x))
"""
    for count in (1, 4):
        env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / f"{count}.npy")], env=env, check=True)
    np.testing.assert_allclose(*(np.load(tmp_path / f"{count}.npy") for count in (1, 4)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("process", "predictor", "corrector", "n", "asked"),
    [
        (EDM(), EDMHeun(), NoCorrector(), 18, 35),  # Karras et al. 2022, table 2
        (VP(), Heun(), NoCorrector(), 11, 21),
        (VP(), Euler(), NoCorrector(), 11, 11),
        (ddpm(), UniPC(3), NoCorrector(), 10, 10),
        (ddpm(), DPMSolver(1.0), NoCorrector(), 10, 10),
        (ncsn(), Hold(), Langevin(2e-5, 7), None, 71),
        (ncsn(), Hold(), MALA(2e-5, 7), None, 81),  # one more a level, for where it starts
        (ncsn(), ReverseDiffusion(), SNRLangevin(0.16, 2), None, 30),
    ],
)
def test_evaluations_are_counted(process, predictor, corrector, n, asked):
    with jax.enable_x64(False):
        assert evaluations(process, predictor, corrector, n) == asked


def test_guidance_asks_twice():
    with jax.enable_x64(False):
        for scale, times in ((2.5, 2), (1.0, 1), (0.0, 1)):
            guided = lambda predict, scale=scale: ClassifierFree(predict, scale)(EDM(), predict)  # noqa: E731
            assert evaluations(EDM(), EDMHeun(), n=18, wrap=guided) == times * 35


@pytest.mark.parametrize("predictor", [Ancestral(), UniPC()])
def test_a_trajectory_is_the_walk_of_the_draws(predictor):
    process, shape = ddpm(), (3, 2)
    predict = TWO_MODES.predict(process)
    arguments = (process, predict, KEY, shape, predictor, NoCorrector(), 6)
    drawn, walk = trajectory(*arguments)
    close(drawn, sample(*arguments))
    assert walk.shape == (6, *shape)
    close(predict(walk[-1], jnp.zeros(3, jnp.int32)).x0, drawn)
    start = normal(jax.random.key(3), shape)
    _, other = trajectory(*arguments, start=start)
    close(other[0], start)
    if predictor == Ancestral():  # every step is a draw from the posterior: it lies within 6 of its deviations
        for k, (t, s) in enumerate(zip(process.grid(6)[:-1], process.grid(6)[1:], strict=True)):
            t, s = jnp.full(3, t), jnp.full(3, s)
            mean, std = posterior(process, walk[k], predict(walk[k], t).x0, t, s)
            z = (walk[k + 1] - mean) / rows(std, mean)
            assert 0.01 < float(jnp.abs(z).max()) < 6


def test_a_bridge_and_a_grid_go_together():
    """DPM-Solver on an NCSN's denoiser through DDPM's levels, even in lam, draws the mixture's modes."""
    with jax.enable_x64(False):
        source = ncsn(0.005, 200.0, 500)
        process = ddpm()
        predict = as_process(TWO_MODES.predict(source), source, process)
        x = np.asarray(sample(process, predict, KEY, (4000, 2), DPMSolver(), n=30, grid=EvenLogSNR()))
        first = x[:, 0] < 0
        assert abs(first.mean() - 0.3) < 4 * math.sqrt(0.21 / 4000)
        assert x[first].std(0) == pytest.approx(0.35, rel=0.08)


@pytest.mark.parametrize(
    ("process", "predictor", "corrector", "said"),
    [
        (ddpm(), Euler(), NoCorrector(), "levels instead"),
        (ncsn(), Heun(), NoCorrector(), "levels instead"),
        (ddpm(), EulerMaruyama(), NoCorrector(), "levels instead"),
        (Flow(), EulerMaruyama(), NoCorrector(), "t_max=0.999"),
        (VP(), Hold(), NoCorrector(), "moves nothing"),
        (VP(), Hold(), MALA(), "energy=true"),
        (VP(), UniPC(), Langevin(), "take the predictor dpm"),
    ],
)
def test_what_does_not_go_together_is_refused(process, predictor, corrector, said):
    assert said in (unsuited(process, predictor, corrector) or "")


def test_what_goes_together_is_not_refused():
    for process in (VP(), EDM(), Flow(t_max=0.999)):
        for predictor in PREDICTORS.values():
            if predictor is not UniPC:
                assert unsuited(process, predictor(), Langevin()) is None
    assert unsuited(ddpm(), Hold(), MALA(), density=True) is None


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
        lambda: MALA(0.0),
        lambda: Karras(0.0),
        lambda: Power(-1.0),
        lambda: Karras(math.inf),
        lambda: Clip(1.0, 1.0),
        lambda: DynamicThreshold(0.0, 1.0, 0.0),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match="needed"):
        make()


def test_the_tables_are_complete():
    assert {type(make()) for make in PREDICTORS.values()} | {type(make()) for make in CORRECTORS.values()} >= {
        Ancestral, Consistent, ReverseDiffusion, EulerMaruyama, Euler, Heun, EDMHeun, DPMSolver, UniPC, Adaptive, Hold,
        NoCorrector, Langevin, SNRLangevin, MALA,
    }  # fmt: skip
