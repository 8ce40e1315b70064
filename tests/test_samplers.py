"""Every sampler, with the exact score: it must draw from the mixture, not merely draw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.denoiser import Prediction, as_process
from scoregen.guidance import Clip
from scoregen.metrics import sliced_wasserstein
from scoregen.oracle import TWO_MODES, Mixture
from scoregen.process import EDM, PROCESSES, VE, VP, CosineVP, Flow, SubVP, cosine, ddpm, ncsn, normal, posterior, rows
from scoregen.samplers import (
    CORRECTORS,
    MALA,
    PREDICTORS,
    Adaptive,
    Ancestral,
    Consistent,
    DPMSolver,
    EDMHeun,
    Euler,
    EulerMaruyama,
    Heun,
    Hold,
    Langevin,
    NoCorrector,
    ReverseDiffusion,
    SNRLangevin,
    UniPC,
    sample,
)

COUNT = 20_000
# For annealed Langevin, which asks the denoiser some ten thousand times; and for continuous processes, whose steps
# here are fewer and longer.
FEWER = 5_000
# The least noisy level is far below the modes' widths, the noisiest far above their distance.
LEVELS = ncsn(0.01, 30.0, 300)
LANGEVIN = Langevin(step_size=0.1 * 0.01**2, steps=30)
DRAWS = {
    "ddpm ancestral": (ddpm(), Ancestral(), NoCorrector(), None),
    "ddpm ancestral, large variance": (ddpm(), Ancestral(variance="large"), NoCorrector(), None),
    "ddpm DDIM": (ddpm(), Ancestral(eta=0.0), NoCorrector(), None),
    "ddpm eta 1/2": (ddpm(), Ancestral(eta=0.5), NoCorrector(), None),
    "ddpm annealed Langevin": (ddpm().within(LEVELS), Hold(), LANGEVIN, None),
    "cosine ancestral": (cosine(), Ancestral(), NoCorrector(), None),
    "cosine DDIM": (cosine(), Ancestral(eta=0.0), NoCorrector(), 400),
    "ncsn ancestral": (ncsn(0.01, 30.0, 1000), Ancestral(), NoCorrector(), None),
    "ncsn DDIM": (LEVELS, Ancestral(eta=0.0), NoCorrector(), None),
    "ncsn annealed Langevin": (LEVELS, Hold(), LANGEVIN, None),
    "ncsn predictor-corrector": (LEVELS, Ancestral(), Langevin(0.1 * 0.01**2, 1), None),
    "vp ancestral": (VP(), Ancestral(), NoCorrector(), 1000),
    "vp DDIM": (VP(), Ancestral(eta=0.0), NoCorrector(), 400),
    "ve ancestral": (VE(0.01, 30.0), Ancestral(), NoCorrector(), 200),
    "ve DDIM": (VE(0.01, 30.0), Ancestral(eta=0.0), NoCorrector(), 100),
    "edm ancestral": (EDM(), Ancestral(), NoCorrector(), 200),
    "edm DDIM": (EDM(), Ancestral(eta=0.0), NoCorrector(), 100),
    "flow ancestral": (Flow(), Ancestral(), NoCorrector(), 200),
    "flow DDIM": (Flow(), Ancestral(eta=0.0), NoCorrector(), 100),
    "ncsn consistent": (ncsn(0.01, 30.0, 600), Consistent(0.05), NoCorrector(), None),
    "ncsn MALA": (LEVELS, Hold(), MALA(step_size=0.3 * 0.01**2, steps=20), None),
    "ncsn reverse diffusion": (ncsn(0.01, 30.0, 1000), ReverseDiffusion(), NoCorrector(), None),
    "vp reverse diffusion of the ODE": (VP(), ReverseDiffusion(noise=False), NoCorrector(), 1000),
    "subvp Euler-Maruyama": (SubVP(), EulerMaruyama(), NoCorrector(), 1000),
    "vp Euler": (VP(), Euler(), NoCorrector(), 400),
    "cosine Heun": (CosineVP(), Heun(), NoCorrector(), 60),
    "edm Heun": (EDM(), EDMHeun(), NoCorrector(), 40),
    "edm Heun with churn": (EDM(), EDMHeun(churn=20.0, low=0.05, high=50.0), NoCorrector(), 80),
    "ddpm Heun with churn": (ddpm(), EDMHeun(churn=20.0), NoCorrector(), 300),
    "ddpm DPM-Solver": (ddpm(), DPMSolver(), NoCorrector(), 300),
    "flow DPM-Solver of the SDE": (Flow(), DPMSolver(eta=1.0), NoCorrector(), 200),
    "ve UniPC": (VE(0.01, 30.0), UniPC(), NoCorrector(), 40),
    "flow UniPC": (Flow(), UniPC(order=3), NoCorrector(), 200),
    "vp ODE": (VP(), Adaptive(), NoCorrector(), 2),
}


def exact(process):
    return TWO_MODES.predict(process)


@pytest.mark.parametrize("name", [name for name in PROCESSES if name != "flow"])
def test_the_exact_denoiser_is_tweedies(name):
    """By modes, and by Tweedie's formula from the gradient of the density."""
    process = PROCESSES[name]()
    t = process.grid(6)
    x = normal(jax.random.key(0), (6, 2)) * rows(process.prior_std(), jnp.ones(()))
    x = x * rows(process.sigma(t) / process.sigma(t[0]), x)
    ours, score = exact(process)(x, t), TWO_MODES.score(process, x, t)
    sigma, alpha = rows(process.sigma(t), x), rows(process.alpha(t), x)
    for a, b in ((ours.eps, -sigma * score), (ours.score, score), (alpha * ours.x0, x + sigma**2 * score)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_draws_cover_the_tables():
    used = {type(part) for _, predictor, corrector, _ in DRAWS.values() for part in (predictor, corrector)}
    # Its step depends on the score and on the noise, so few dimensions have another law: see below.
    assert used | {SNRLangevin} == {*PREDICTORS.values(), *CORRECTORS.values()}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_the_mixture(name):
    """Weights, means and variances of the modes, and the distance to exact draws.

    The modes are 6 standard deviations apart, so each draw belongs to one of them beyond doubt. For chains the sliced
    Wasserstein distance to exact draws is what it is between two sets of exact draws.
    """
    process, predictor, corrector, n = DRAWS[name]
    shape = (COUNT if process.discrete and predictor != Hold() else FEWER, 2)
    run = jax.jit(lambda key: sample(process, exact(process), key, shape, predictor, corrector, n))
    x = np.asarray(run(jax.random.key(7)), np.float64)
    if process.discrete:
        mean, std = floor(len(x))
        assert distance(x, truth(0, len(x))) < mean + 4 * std
    first = x[:, 0] < 0
    weight = TWO_MODES.weights[0]
    assert abs(first.mean() - weight) < 4 * np.sqrt(weight * (1 - weight) / len(x))
    for mode, mine in enumerate((first, ~first)):
        part, std = x[mine], TWO_MODES.stds[mode]
        assert (abs(part.mean(0) - TWO_MODES.means[mode]) < 4 * std / np.sqrt(len(part))).all()
        # 0.5 % beside the statistical error: the last, denoising step takes sigma_min^2 off the variance
        # (0.25 % here), and a chain of n levels is itself an approximation of order 1/n.
        assert (abs(part.std(0) / std - 1) < 0.005 + 4 / np.sqrt(2 * len(part))).all()


@functools.cache
def truth(seed, count):
    return np.asarray(TWO_MODES.sample(jax.random.key(100 + seed), count))


def distance(x, y):
    return sliced_wasserstein(x, y, projections=32)


@functools.cache
def floor(count):
    """The distance of two exact samples, over independent pairs: its mean and its standard deviation."""
    pairs = [distance(truth(2 * i, count), truth(2 * i + 1, count)) for i in range(16)]
    return np.mean(pairs), np.std(pairs, ddof=1)


def test_a_wrong_score_shows():
    """The tests above can fail: a score 5 % too large moves the spread by more than they allow."""
    process = ddpm()
    exact = TWO_MODES.predict(process)

    def wrong(x, t):
        eps = 1.05 * exact(x, t).eps
        sigma = rows(process.sigma(t), x)
        return Prediction((x - sigma * eps) / rows(process.alpha(t), x), eps, -eps / sigma)

    x = np.asarray(sample(process, wrong, jax.random.key(7), (COUNT, 2), Ancestral()))
    part = x[x[:, 0] < 0]
    assert (abs(part.std(0) / TWO_MODES.stds[0] - 1) > 0.005 + 4 / np.sqrt(2 * len(part))).any()


def at_random(process, n=6):
    """Some x, and for each a time and the next below it. Not the end of flow matching, where nothing is known of x0."""
    key = jax.random.key(0)
    if process.discrete:
        t = jnp.asarray(np.linspace(process.levels - 1, 1, n).round(), jnp.int32)
        s = t - 1
    else:
        grid = process.grid(n + 2)
        t, s = grid[1:-1], grid[2:]
    return key, normal(key, (n, 2)) * rows(jnp.maximum(process.sigma(t), process.alpha(t)), jnp.ones((n, 2))), t, s


@pytest.mark.parametrize("name", PROCESSES)
def test_eta_one_draws_from_the_posterior(name):
    """DDPM ancestral sampling is eta = 1: the mean and the deviation of `posterior` at the predicted x0."""
    process = PROCESSES[name]()
    key, x, t, s = at_random(process)
    predict = exact(process)
    mean, std = posterior(process, x, predict(x, t).x0, t, s)
    step = Ancestral()(process, predict, key, x, t, s)
    np.testing.assert_allclose(step, mean + rows(std, x) * normal(key, x.shape), rtol=1e-4, atol=1e-4)


def with_variance(predict, between):
    return lambda x, t: predict(x, t)._replace(between=jnp.broadcast_to(between, x.shape))


@pytest.mark.parametrize("name", [name for name in PROCESSES if PROCESSES[name]().discrete])
def test_a_learned_variance_lies_between_small_and_large(name):
    """log Sigma = f log beta + (1 - f) log beta-tilde (Nichol & Dhariwal 2021, eq. 15), number by number of x: f = 0
    is the small one, f = 1 the large, and 1/2 their geometric mean."""
    process = PROCESSES[name]()
    key, x, t, s = at_random(process)
    predict = exact(process)
    mean = np.asarray(posterior(process, x, predict(x, t).x0, t, s)[0])
    small, large = (Ancestral(variance=v)(process, predict, key, x, t, s) for v in ("small", "large"))
    learned = lambda between: Ancestral(variance="learned")(  # noqa: E731
        process, with_variance(predict, jnp.asarray(between)), key, x, t, s
    )
    scale = 1e-5 * np.abs(large).max()
    np.testing.assert_allclose(learned(0.0), small, rtol=1e-5, atol=scale)
    np.testing.assert_allclose(learned(1.0), large, rtol=1e-5, atol=scale)
    z = np.asarray(normal(key, x.shape))
    middle = np.sign(z) * np.sqrt((np.asarray(small) - mean) * (np.asarray(large) - mean))
    np.testing.assert_allclose(learned(0.5) - mean, middle, rtol=2e-3, atol=10 * scale)
    mixed = np.asarray(learned([0.0, 1.0]))
    np.testing.assert_allclose(mixed[:, 0], small[:, 0], rtol=1e-5, atol=scale)
    np.testing.assert_allclose(mixed[:, 1], large[:, 1], rtol=1e-5, atol=scale)


def test_a_learned_variance_is_nichol_and_dhariwal():
    """In float64, from DDPM's betas: the standard deviation of a step is exp((f log beta + (1 - f) log btilde) / 2)."""
    process = ddpm()
    key, x, t, s = at_random(process)
    predict = exact(process)
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    beta, tilde = betas[t], (1 - abar[s]) / (1 - abar[t]) * betas[t]
    mean = np.asarray(posterior(process, x, predict(x, t).x0, t, s)[0])
    for f in (0.0, 0.3, 1.0, 1.2):
        step = Ancestral(variance="learned")(process, with_variance(predict, jnp.array(f)), key, x, t, s)
        std = np.exp(0.5 * (f * np.log(beta) + (1 - f) * np.log(tilde)))
        np.testing.assert_allclose(step, mean + std[:, None] * np.asarray(normal(key, x.shape)), atol=1e-5)


def test_a_variance_that_was_not_learned_is_refused():
    process = ddpm()
    key, x, t, s = at_random(process)
    with pytest.raises(ValueError, match="learned none"):
        Ancestral(variance="learned")(process, exact(process), key, x, t, s)


def test_ddpm_step_is_ho_et_al():
    """Algorithm 2 of Ho et al. 2020 as their code has it, in float64: clipped x0, and either variance."""
    process = ddpm()
    key, x, t, _ = at_random(process)
    z = np.asarray(normal(key, x.shape), np.float64)
    predict = TWO_MODES.predict(process)
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    c = lambda a: np.asarray(a)[:, None]  # noqa: E731
    beta, ab, prev = betas[t], abar[t], abar[np.asarray(t) - 1]
    eps = np.asarray(predict(x, t).eps, np.float64)
    x0 = np.clip(x / c(np.sqrt(ab)) - c(np.sqrt(1 / ab - 1)) * eps, -0.5, 0.5)
    mean = c(beta * np.sqrt(prev) / (1 - ab)) * x0 + c((1 - prev) * np.sqrt(1 - beta) / (1 - ab)) * np.asarray(x)
    for variance, value in (("small", (1 - prev) / (1 - ab) * beta), ("large", beta)):
        step = Ancestral(1.0, variance)(process, Clip(-0.5, 0.5)(process, predict), key, x, t, t - 1)
        np.testing.assert_allclose(step, mean + c(np.sqrt(value)) * z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_step_is_song_meng_ermon(eta):
    """x_prev = sqrt(abar_prev) x0 + sqrt(1 - abar_prev - s^2) eps + s z, between levels far apart."""
    process = ddpm()
    key, x, t, _ = at_random(process)
    s = t // 3
    predict = TWO_MODES.predict(process)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    ab, prev = abar[t][:, None], abar[s][:, None]
    spread = eta * np.sqrt((1 - prev) / (1 - ab)) * np.sqrt(1 - ab / prev)
    x0, eps, *_ = predict(x, t)
    want = np.sqrt(prev) * x0 + np.sqrt(1 - prev - spread**2) * eps + spread * normal(key, x.shape)
    np.testing.assert_allclose(Ancestral(eta)(process, predict, key, x, t, s), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PROCESSES)
def test_ddim_is_euler_in_sigma_over_alpha(name):
    """DDIM = Euler's method for d(x/alpha) / d(sigma/alpha) = eps (Song, Meng & Ermon 2021, eq. 13)."""
    process = PROCESSES[name]()
    key, x, t, s = at_random(process)
    predict = exact(process)
    ratio = lambda u: rows(process.sigma(u) / process.alpha(u), x)  # noqa: E731
    scaled = x / rows(process.alpha(t), x) + (ratio(s) - ratio(t)) * predict(x, t).eps
    want = rows(process.alpha(s), x) * scaled
    np.testing.assert_allclose(Ancestral(0.0)(process, predict, key, x, t, s), want, rtol=1e-3, atol=1e-3)


def test_ddim_converges_at_first_order():
    """To the probability-flow map, known in closed form for Gaussian data: halving the step halves the error."""
    data = Mixture((1.0,), ((0.5, -0.2),), (0.3,))
    process = ddpm(steps=4000, beta_min=2.5e-5, beta_max=0.005)
    errors = []
    for n in (25, 50, 100, 200):
        x = sample(process, data.predict(process), jax.random.key(0), (64, 2), Ancestral(0.0), n=n)
        start = process.prior(jax.vmap(lambda k: jax.random.split(k)[0])(keys(64)), (64, 2))
        first, last = process.grid()[0], process.grid()[-1]
        mean = jnp.array([[0.5, -0.2]])
        wide, narrow = (jnp.hypot(process.alpha(t) * 0.3, process.sigma(t)) for t in (first, last))
        flow = process.alpha(last) * mean + narrow / wide * (start - process.alpha(first) * mean)
        end = data.predict(process)(flow, jnp.full(64, last)).x0
        errors.append(float(jnp.abs(x - end).max()))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (abs(orders - 1) < 0.3).all(), (errors, orders)


def keys(count):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(count))


def test_langevin_settles_at_the_level():
    """One Gaussian level: the chain's variance is V / (1 - h / 2V), the docstring's, not V / 2 nor 2 V."""
    data, process = Mixture((1.0,), ((0.0, 0.0),), (0.6,)), ncsn(0.4, 0.8, 2)
    for level in (0, 1):
        t = jnp.full(COUNT, level)
        corrector = Langevin(step_size=0.04, steps=150)
        x = corrector(process, data.predict(process), jax.random.key(0), jnp.zeros((COUNT, 2)), t)
        v, h = 0.36 + float(process.sigma(t)[0]) ** 2, 0.04 * (1, 4)[level]
        np.testing.assert_allclose(np.asarray(x).var(), v / (1 - h / (2 * v)), rtol=4 / np.sqrt(COUNT))


def test_langevin_step_is_song_and_ermon():
    """Algorithm 1 in their code's convention: a_i = step (sigma_i / sigma_L)^2, x += a_i s + sqrt(2 a_i) z."""
    process = ncsn(0.01, 1.0, 10)
    key, x, t, _ = at_random(process)
    score = TWO_MODES.predict(process)(x, t).score
    ours = Langevin(2e-5, 1)(process, TWO_MODES.predict(process), key, x, t)
    a = 2e-5 * (np.asarray(process.sigma(t)) / 0.01)[:, None] ** 2
    np.testing.assert_allclose(a / np.asarray(process.sigma(t))[:, None] ** 2, 0.2, rtol=1e-5)
    z = (ours - x - a * score) / np.sqrt(2 * a)
    zs = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), (2,)))(keys(len(t)))
    np.testing.assert_allclose(z, zs, atol=2e-2)


@pytest.mark.parametrize("process", [ncsn(0.01, 30.0, 60), ddpm(), EDM()])
@pytest.mark.parametrize("predictor", [Ancestral(), Ancestral(0.0), Hold()])
def test_draws_do_not_depend_on_the_batch(process, predictor):
    """The same seed gives the same example whatever stands beside it."""
    corrector = Langevin(1e-5, 1) if predictor == Hold() else NoCorrector()
    few, many = (
        sample(process, TWO_MODES.predict(process), jax.random.key(1), (n, 2), predictor, corrector, 20) for n in (2, 5)
    )
    np.testing.assert_allclose(few, many[:2], rtol=1e-4, atol=1e-4)
    part = sample(process, TWO_MODES.predict(process), jax.random.key(2), (5, 2), predictor, corrector, 20)
    assert (np.asarray(part) != np.asarray(many)).all(), "another seed, other draws"


@pytest.mark.parametrize(("denoise", "corrector", "evaluations"), [(True, 3, 13), (False, 3, 12), (True, 0, 4)])
def test_network_evaluations(denoise, corrector, evaluations):
    """n for an ancestral walk, n T + 1 for annealed Langevin; counted where they happen."""
    calls = []
    process = ncsn(0.1, 1.0, 4)

    def predict(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return TWO_MODES.predict(process)(x, t)

    parts = (Hold(), Langevin(1e-3, corrector)) if corrector else (Ancestral(), NoCorrector())
    jax.block_until_ready(sample(process, predict, jax.random.key(0), (2, 2), *parts, denoise=denoise))
    jax.effects_barrier()
    assert len(calls) == evaluations


def test_last_step():
    """It is the denoised mean of the last level, and with denoise=False the last x, without one more step."""
    process = ncsn(0.5, 1.0, 2)
    exact = TWO_MODES.predict(process)
    run = lambda **kw: sample(process, exact, jax.random.key(0), (3, 2), Hold(), Langevin(0.01, 2), **kw)  # noqa: E731
    last = run(denoise=False)
    np.testing.assert_allclose(run(), exact(last, jnp.zeros(3, jnp.int32)).x0, rtol=1e-4, atol=1e-5)


def test_progress_is_told_and_a_sampler_is_traced_once():
    told, traces = [], []
    process = ddpm(steps=211)

    @jax.jit
    def run(key):
        traces.append(1)
        return sample(
            process, TWO_MODES.predict(process), key, (2, 2), Ancestral(), progress=lambda k: told.append(int(k))
        )

    for seed in range(2):
        jax.block_until_ready(run(jax.random.key(seed)))
    jax.effects_barrier()
    assert len(traces) == 1
    assert sorted(told) == sorted(2 * [*range(3, 211, 3), 211])  # at most a hundred times, and at the end


@pytest.mark.parametrize(("source", "target"), [(LEVELS, ddpm()), (ddpm(), ncsn(0.011, 100.0, 400))])
def test_bridge_samples_the_same_law(source, target):
    """A denoiser of one process, sampled by ancestral steps of the other, still draws the mixture."""
    target = target.within(source)

    @jax.jit  # as a run does it: the bridge is made while the sampler is traced
    def run(key):
        predict = as_process(TWO_MODES.predict(source), source, target)
        return sample(target, predict, key, (COUNT, 2), Ancestral())

    x = np.asarray(run(jax.random.key(3)))
    weight, first = TWO_MODES.weights[0], x[:, 0] < 0
    assert abs(first.mean() - weight) < 4 * np.sqrt(weight * (1 - weight) / COUNT)
    for mode, mine in enumerate((first, ~first)):
        std = TWO_MODES.stds[mode]
        assert (abs(x[mine].mean(0) - TWO_MODES.means[mode]) < 4 * std / np.sqrt(mine.sum())).all()
        assert (abs(x[mine].std(0) / std - 1) < 0.005 + 4 / np.sqrt(2 * mine.sum())).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Ancestral(eta=-0.1),
        lambda: Ancestral(eta=1.1),
        lambda: Ancestral(variance="medium"),
        lambda: Langevin(step_size=0.0),
        lambda: Langevin(steps=0),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match="needed"):
        make()
