"""Every sampler with the exact score draws from the law of the mixture."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from levels import levels

from scoregen.denoiser import Denoiser, Prediction, from_network, prediction_from_x0
from scoregen.guidance import Clip
from scoregen.metrics import sliced_wasserstein
from scoregen.process import EDM, PROCESSES, VE, VP, CosineVP, Flow, SubVP, cosine, ddpm, ncsn, posterior
from scoregen.random import broadcast, normal
from scoregen.samplers import (
    CORRECTORS,
    MALA,
    STEPS,
    Adaptive,
    Ancestral,
    Consistent,
    Corrector,
    DPMSolver,
    EDMHeun,
    Euler,
    EulerMaruyama,
    Grid,
    Heun,
    Hold,
    Langevin,
    Listed,
    ReverseDiffusion,
    Sampler,
    StartWarning,
    Step,
    UniPC,
    start_gap,
)
from scoregen.testing.oracle import TWO_MODES, Mixture, gaussian

COUNT = 20_000
# The number of samples for annealed Langevin, which evaluates the denoiser about ten thousand times, and for continuous
# processes, which have fewer and longer steps in these tests.
FEWER = 5_000
# The least noisy level is far below the modes' widths, the noisiest far above their distance.
LEVELS = ncsn(0.01, 30.0, 300)
LANGEVIN = Langevin(step_size=0.1 * 0.01**2, steps=30)
# The shipped parts with particular options. Tests below find the entries of the tables and use their defaults.
DRAWS = {
    "ddpm ancestral": (ddpm(), Sampler(Ancestral())),
    "ddpm ancestral, large variance": (ddpm(), Sampler(Ancestral(variance="large"))),
    "ddpm DDIM": (ddpm(), Sampler(Ancestral(eta=0.0))),
    "ddpm eta 1/2": (ddpm(), Sampler(Ancestral(eta=0.5))),
    "ddpm annealed Langevin": (ddpm().within(LEVELS), Sampler(Hold(), LANGEVIN)),
    "cosine ancestral": (cosine(), Sampler(Ancestral())),
    "cosine DDIM": (cosine(), Sampler(Ancestral(eta=0.0), n=400)),
    "ncsn ancestral": (ncsn(0.01, 30.0, 1000), Sampler(Ancestral())),
    "ncsn DDIM": (LEVELS, Sampler(Ancestral(eta=0.0))),
    "ncsn annealed Langevin": (LEVELS, Sampler(Hold(), LANGEVIN)),
    "ncsn predictor-corrector": (LEVELS, Sampler(Ancestral(), Langevin(0.1 * 0.01**2, 1))),
    "vp ancestral": (VP(), Sampler(Ancestral(), n=1000)),
    "vp DDIM": (VP(), Sampler(Ancestral(eta=0.0), n=400)),
    "ve ancestral": (VE(0.01, 30.0), Sampler(Ancestral(), n=200)),
    "ve DDIM": (VE(0.01, 30.0), Sampler(Ancestral(eta=0.0), n=100)),
    "edm ancestral": (EDM(), Sampler(Ancestral(), n=200)),
    "edm DDIM": (EDM(), Sampler(Ancestral(eta=0.0), n=100)),
    "flow ancestral": (Flow(), Sampler(Ancestral(), n=200)),
    "flow DDIM": (Flow(), Sampler(Ancestral(eta=0.0), n=100)),
    "ncsn consistent": (ncsn(0.01, 30.0, 600), Sampler(Consistent(0.05))),
    "ncsn MALA": (LEVELS, Sampler(Hold(), MALA(step_size=0.3 * 0.01**2, steps=20))),
    "ncsn reverse diffusion": (ncsn(0.01, 30.0, 1000), Sampler(ReverseDiffusion())),
    "vp reverse diffusion of the ODE": (VP(), Sampler(ReverseDiffusion(noise=False), n=1000)),
    "subvp Euler-Maruyama": (SubVP(), Sampler(EulerMaruyama(), n=1000)),
    "vp Euler": (VP(), Sampler(Euler(), n=400)),
    "cosine Heun": (CosineVP(), Sampler(Heun(), n=60)),
    "edm Heun": (EDM(), Sampler(EDMHeun(), n=40)),
    "edm Heun with churn": (EDM(), Sampler(EDMHeun(churn=20.0, low=0.05, high=50.0), n=80)),
    "ddpm Heun with churn": (ddpm(), Sampler(EDMHeun(churn=20.0), n=300)),
    "ddpm DPM-Solver": (ddpm(), Sampler(DPMSolver(), n=300)),
    "flow DPM-Solver of the SDE": (Flow(), Sampler(DPMSolver(eta=1.0), n=200)),
    "ve UniPC": (VE(0.01, 30.0), Sampler(UniPC(), n=40)),
    "flow UniPC": (Flow(), Sampler(UniPC(order=3), n=200)),
    "vp ODE": (VP(), Sampler(Adaptive(), n=2)),
}


def exact(process):
    return TWO_MODES.denoiser(process)


def move(step, denoiser, key, x, t, s):
    """x at s, by a step without a memory of earlier steps."""
    return step.step(denoiser, key, x, t, s, step.init(denoiser, x, jnp.stack([t[0], s[0]])))[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PROCESSES if name != "flow"])
def test_the_exact_denoiser_is_tweedies(name):
    """The posterior over the modes agrees with Tweedie's formula and the gradient of the log density."""
    process = PROCESSES[name]()
    t = levels(process, 6)
    x = normal(jax.random.key(0), (6, 2)) * process.prior_std()
    x = x * broadcast(process.sigma(t) / process.sigma(t[0]), x)
    ours, score = exact(process)(x, t), TWO_MODES.score(process, x, t)
    sigma, alpha = broadcast(process.sigma(t), x), broadcast(process.alpha(t), x)
    for a, b in ((ours.eps, -sigma * score), (ours.score, score), (alpha * ours.x0, x + sigma**2 * score)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def the_sampler(step, process, n=300):
    """A sampler with this step and with the corrector and n that the step asks for, and the reasons to refuse it."""
    sampler = Sampler(step, LANGEVIN if step.needs_corrector else None, n=2 if step.adaptive else n)
    refusals = sampler.refuse(process, density=True)
    return sampler, "; ".join(map(str, refusals))


def is_the_mixture(x, weight, mean, std):
    """Whether the modes of the draws have the mixture's weights, means and standard deviations to these errors."""
    first = x[:, 0] < 0
    assert abs(first.mean() - TWO_MODES.weights[0]) < weight
    for mode, mine in enumerate((first, ~first)):
        assert (abs(x[mine].mean(0) - TWO_MODES.means[mode]) < mean).all()
        assert (abs(x[mine].std(0) / TWO_MODES.stds[mode] - 1) < std).all()


@pytest.mark.quick(1)
@pytest.mark.parametrize("process", [LEVELS, VE(0.01, 30.0), VP()], ids=["chain", "VE", "VP"])
@pytest.mark.parametrize("name", STEPS)
def test_every_step_of_the_table_draws_the_mixture(name, process):
    """With its defaults, to the accuracy of 300 levels at order 1. A step that is added to the table is tested too."""
    sampler, reason = the_sampler(STEPS[name](), process)
    if reason:
        with pytest.raises(ValueError, match="take"):
            sampler(exact(process), jax.random.key(1), (2, 2))
        return
    x = np.asarray(sampler(exact(process), jax.random.key(1), (3000, 2)), np.float64)
    is_the_mixture(x, weight=0.05, mean=0.06, std=0.12)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", CORRECTORS)
def test_every_corrector_of_the_table_draws_the_mixture(name):
    """The corrector moves between ancestral steps, which draw the mixture by themselves. Few moves suffice."""
    corrector = CORRECTORS[name]()
    if hasattr(corrector, "steps"):
        corrector = dataclasses.replace(corrector, steps=2)
    x = np.asarray(Sampler(Ancestral(), corrector)(exact(LEVELS), jax.random.key(1), (3000, 2)), np.float64)
    is_the_mixture(x, weight=0.05, mean=0.06, std=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_the_mixture(name):
    """Weights, means and variances of the modes, and the distance to exact draws.

    The modes are 6 standard deviations apart, so each draw belongs clearly to one of them. For chains the sliced
    Wasserstein distance to exact draws is as small as between two sets of exact draws.
    """
    process, sampler = DRAWS[name]
    shape = (COUNT if process.discrete and sampler.step != Hold() else FEWER, 2)
    x = np.asarray(sampler(exact(process), jax.random.key(7), shape), np.float64)
    if process.discrete:
        mean, std = floor(len(x))
        assert distance(x, truth(0, len(x))) < mean + 4 * std
    first = x[:, 0] < 0
    weight = TWO_MODES.weights[0]
    assert abs(first.mean() - weight) < 4 * np.sqrt(weight * (1 - weight) / len(x))
    for mode, mine in enumerate((first, ~first)):
        part, std = x[mine], TWO_MODES.stds[mode]
        assert (abs(part.mean(0) - TWO_MODES.means[mode]) < 4 * std / np.sqrt(len(part))).all()
        # 0.5 % in addition to the statistical error: the last, denoising step takes sigma_min^2 off the variance
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


@pytest.mark.slow
def test_a_wrong_score_shows():
    """The tests above can fail: a score 5 % too large moves the spread by more than they allow."""
    process = ddpm()
    wrong = from_network(process, "eps", lambda x, t: 1.05 * exact(process)(x, t).eps)
    x = np.asarray(Sampler(Ancestral())(wrong, jax.random.key(7), (COUNT, 2)))
    part = x[x[:, 0] < 0]
    assert (abs(part.std(0) / TWO_MODES.stds[0] - 1) > 0.005 + 4 / np.sqrt(2 * len(part))).any()


def at_random(process, n=6):
    """Some x, and for each a time and the next below it. Not the end of flow matching, where nothing is known of x0."""
    key = jax.random.key(0)
    if process.discrete:
        t = jnp.asarray(np.linspace(process.levels - 1, 1, n).round(), jnp.int32)
        s = t - 1
    else:
        grid = levels(process, n + 2)
        t, s = grid[1:-1], grid[2:]
    return key, normal(key, (n, 2)) * jnp.maximum(process.sigma(t), process.alpha(t))[:, None], t, s


@pytest.mark.parametrize("name", PROCESSES)
def test_eta_one_draws_from_the_posterior(name):
    """DDPM ancestral sampling is eta = 1: the mean and the deviation of `posterior` at the predicted x0."""
    process = PROCESSES[name]()
    key, x, t, s = at_random(process)
    denoiser = exact(process)
    mean, std = posterior(process, x, denoiser(x, t).x0, t, s)
    step = move(Ancestral(), denoiser, key, x, t, s)
    np.testing.assert_allclose(step, mean + std[:, None] * normal(key, x.shape), rtol=1e-4, atol=1e-4)


def with_variance(denoiser, between):
    def predict(x, t):
        return denoiser(x, t)._replace(between=jnp.broadcast_to(between, x.shape))

    return Denoiser(denoiser.process, predict)


@pytest.mark.parametrize("name", [name for name in PROCESSES if PROCESSES[name]().discrete])
def test_a_learned_variance_lies_between_small_and_large(name):
    """log Sigma = f log beta + (1 - f) log beta-tilde (Nichol & Dhariwal 2021, eq. 15), number by number of x: f = 0
    is the small one, f = 1 the large, and 1/2 their geometric mean."""
    process = PROCESSES[name]()
    key, x, t, s = at_random(process)
    denoiser = exact(process)
    mean = np.asarray(posterior(process, x, denoiser(x, t).x0, t, s)[0])
    small, large = (move(Ancestral(variance=v), denoiser, key, x, t, s) for v in ("small", "large"))
    learned = lambda between: move(  # noqa: E731
        Ancestral(variance="learned"), with_variance(denoiser, jnp.asarray(between)), key, x, t, s
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
    denoiser = exact(process)
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    beta, tilde = betas[t], (1 - abar[s]) / (1 - abar[t]) * betas[t]
    mean = np.asarray(posterior(process, x, denoiser(x, t).x0, t, s)[0])
    for f in (0.0, 0.3, 1.0, 1.2):
        step = move(Ancestral(variance="learned"), with_variance(denoiser, jnp.array(f)), key, x, t, s)
        std = np.exp(0.5 * (f * np.log(beta) + (1 - f) * np.log(tilde)))
        np.testing.assert_allclose(step, mean + std[:, None] * np.asarray(normal(key, x.shape)), atol=1e-5)


def test_a_variance_that_was_not_learned_is_refused():
    process = ddpm()
    key, x, t, s = at_random(process)
    with pytest.raises(ValueError, match="no learned variance"):
        move(Ancestral(variance="learned"), exact(process), key, x, t, s)
    with pytest.raises(ValueError, match="no learned variance"):
        Sampler(Ancestral(variance="learned"), n=3)(exact(process), key, (2, 2))
    sampler = Sampler(Ancestral(variance="learned"))
    assert [refusal.fixes[0] for refusal in sampler.refuse(process)] == ["step.variance=small"]
    assert sampler.refuse(process, variance=True) == []


def test_ddpm_step_is_ho_et_al():
    """Algorithm 2 of Ho et al. 2020 as their code has it, in float64: clipped x0, and either variance."""
    process = ddpm()
    key, x, t, _ = at_random(process)
    z = np.asarray(normal(key, x.shape), np.float64)
    denoiser = exact(process)
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    c = lambda a: np.asarray(a)[:, None]  # noqa: E731
    beta, ab, prev = betas[t], abar[t], abar[np.asarray(t) - 1]
    eps = np.asarray(denoiser(x, t).eps, np.float64)
    x0 = np.clip(x / c(np.sqrt(ab)) - c(np.sqrt(1 / ab - 1)) * eps, -0.5, 0.5)
    mean = c(beta * np.sqrt(prev) / (1 - ab)) * x0 + c((1 - prev) * np.sqrt(1 - beta) / (1 - ab)) * np.asarray(x)
    for variance, value in (("small", (1 - prev) / (1 - ab) * beta), ("large", beta)):
        step = move(Ancestral(1.0, variance), Clip(-0.5, 0.5)(denoiser), key, x, t, t - 1)
        np.testing.assert_allclose(step, mean + c(np.sqrt(value)) * z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_step_is_song_meng_ermon(eta):
    """x_prev = sqrt(abar_prev) x0 + sqrt(1 - abar_prev - s^2) eps + s z, between levels far apart."""
    process = ddpm()
    key, x, t, _ = at_random(process)
    s = t // 3
    denoiser = exact(process)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    ab, prev = abar[t][:, None], abar[s][:, None]
    spread = eta * np.sqrt((1 - prev) / (1 - ab)) * np.sqrt(1 - ab / prev)
    x0, eps, *_ = denoiser(x, t)
    want = np.sqrt(prev) * x0 + np.sqrt(1 - prev - spread**2) * eps + spread * normal(key, x.shape)
    np.testing.assert_allclose(move(Ancestral(eta), denoiser, key, x, t, s), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PROCESSES)
def test_ddim_is_euler_in_sigma_over_alpha(name):
    """DDIM = Euler's method for d(x/alpha) / d(sigma/alpha) = eps (Song, Meng & Ermon 2021, eq. 13)."""
    process = PROCESSES[name]()
    key, x, t, s = at_random(process)
    denoiser = exact(process)
    ratio = lambda u: (process.sigma(u) / process.alpha(u))[:, None]  # noqa: E731
    scaled = x / process.alpha(t)[:, None] + (ratio(s) - ratio(t)) * denoiser(x, t).eps
    want = process.alpha(s)[:, None] * scaled
    np.testing.assert_allclose(move(Ancestral(0.0), denoiser, key, x, t, s), want, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_ddim_converges_at_first_order():
    """To the probability-flow map, known in closed form for Gaussian data: halving the step halves the error."""
    data = Mixture((1.0,), ((0.5, -0.2),), (0.3,))
    process = ddpm(steps=4000)
    errors = []
    for n in (25, 50, 100, 200):
        x = Sampler(Ancestral(0.0), n=n)(data.denoiser(process), jax.random.key(0), (64, 2))
        start = process.prior(jax.vmap(lambda k: jax.random.split(k)[0])(keys(64)), (64, 2))
        first, last = jnp.array(3999), jnp.array(0)
        mean = jnp.array([[0.5, -0.2]])
        wide, narrow = (jnp.hypot(process.alpha(t) * 0.3, process.sigma(t)) for t in (first, last))
        flow = process.alpha(last) * mean + narrow / wide * (start - process.alpha(first) * mean)
        end = data.denoiser(process)(flow, last).x0
        errors.append(float(jnp.abs(x - end).max()))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (abs(orders - 1) < 0.3).all(), (errors, orders)


def keys(count):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(count))


@pytest.mark.slow
def test_langevin_settles_at_the_level():
    """For Gaussian data at one level, the variance is V / (1 - h / 2V), as in the docstring, and not V / 2 or 2 V."""
    data, process = Mixture((1.0,), ((0.0, 0.0),), (0.6,)), ncsn(0.4, 0.8, 2)
    for level in (0, 1):
        t = jnp.full(COUNT, level)
        corrector = Langevin(step_size=0.04, steps=150)
        x = corrector(data.denoiser(process), jax.random.key(0), jnp.zeros((COUNT, 2)), t)
        v, h = 0.36 + float(process.sigma(t)[0]) ** 2, 0.04 * (1, 4)[level]
        np.testing.assert_allclose(np.asarray(x).var(), v / (1 - h / (2 * v)), rtol=4 / np.sqrt(COUNT))


def test_langevin_step_is_song_and_ermon():
    """Algorithm 1 in their code's convention: a_i = step (sigma_i / sigma_L)^2, x += a_i s + sqrt(2 a_i) z."""
    process = ncsn(0.01, 1.0, 10)
    key, x, t, _ = at_random(process)
    score = exact(process)(x, t).score
    ours = Langevin(2e-5, 1)(exact(process), key, x, t)
    a = 2e-5 * (np.asarray(process.sigma(t)) / 0.01)[:, None] ** 2
    np.testing.assert_allclose(a / np.asarray(process.sigma(t))[:, None] ** 2, 0.2, rtol=1e-5)
    z = (ours - x - a * score) / np.sqrt(2 * a)
    zs = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), (2,)))(keys(len(t)))
    np.testing.assert_allclose(z, zs, atol=2e-2)


@pytest.mark.quick(1)
@pytest.mark.parametrize("process", [ncsn(0.01, 30.0, 60), ddpm(), EDM()])
@pytest.mark.parametrize("step", [Ancestral(), Ancestral(0.0), Hold()])
def test_draws_do_not_depend_on_the_batch(process, step):
    """The same seed gives the same example, whatever the rest of the batch."""
    sampler = Sampler(step, Langevin(2e-6, 1) if step == Hold() else None, n=20)
    few, many = (sampler(exact(process), jax.random.key(1), (n, 2)) for n in (2, 5))
    np.testing.assert_allclose(few, many[:2], rtol=1e-4, atol=1e-4)
    part = sampler(exact(process), jax.random.key(2), (5, 2))
    assert (np.asarray(part) != np.asarray(many)).all(), "another seed, other draws"
    keys_one_by_one = sampler(
        exact(process), jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(2)), (2, 2)
    )
    np.testing.assert_array_equal(few, keys_one_by_one)


@pytest.mark.quick(1)
@pytest.mark.parametrize(("denoise", "corrector", "evaluations"), [(True, 3, 13), (False, 3, 12), (True, 0, 4)])
def test_network_evaluations(denoise, corrector, evaluations):
    """n for an ancestral walk, n T + 1 for annealed Langevin; the denoiser counts its calls."""
    calls = []
    process = ncsn(0.1, 10.0, 4)

    def predict(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return exact(process)(x, t)

    parts = (Hold(), Langevin(1e-3, corrector)) if corrector else (Ancestral(),)
    sampler = Sampler(*parts, denoise=denoise)
    jax.block_until_ready(sampler(Denoiser(process, predict), jax.random.key(0), (2, 2)))
    jax.effects_barrier()
    assert len(calls) == evaluations == sampler.evaluations(process)


@pytest.mark.slow
def test_last_step():
    """It is the denoised mean of the last level, and with denoise=False the last x, without one more step."""
    process = ncsn(0.5, 1.0, 2)
    run = lambda denoise: Sampler(Hold(), Langevin(0.01, 2), denoise=denoise)(  # noqa: E731
        exact(process), jax.random.key(0), (3, 2)
    )
    want = exact(process)(run(False), jnp.zeros(3, jnp.int32)).x0
    np.testing.assert_allclose(run(True), want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_progress_is_reported():
    """At most a hundred times a run, and at the end."""
    done = []
    progress = lambda k: done.append(int(k))  # noqa: E731
    process = ddpm(steps=211)
    for seed in range(2):
        x = Sampler(Ancestral())(exact(process), jax.random.key(seed), (2, 2), progress=progress)
        jax.block_until_ready(x)
    jax.effects_barrier()
    assert sorted(done) == sorted(2 * [*range(3, 211, 3), 211])


# --- compilation


def a_network(params, traces):
    """A denoiser of a network with these parameters, which are its leaves; every tracing of it is counted."""
    return Denoiser(VP(), Partial(_apply, params, traces=Counter(traces)))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Counter:
    calls: list

    def __eq__(self, other):
        return self.calls is other.calls

    def __hash__(self):
        return id(self.calls)


def _apply(params, x, t, traces):
    traces.calls.append(1)
    return prediction_from_x0(VP(), x, t, jnp.tanh(x @ params["w"]))


@pytest.mark.quick(1)
@pytest.mark.parametrize("trajectory", [False, True])
def test_other_parameters_do_not_compile_again(trajectory):
    """A new but equal sampler does not compile again either; another shape does."""
    traces = []
    key = jax.random.key(0)

    def run(w, shape=(3, 2)):
        sampler = Sampler(DPMSolver(), n=5)
        found = (sampler.trajectory if trajectory else sampler)(a_network({"w": w}, traces), key, shape)
        return np.asarray(found[0] if trajectory else found)

    first = run(jnp.eye(2))
    count = len(traces)
    assert count
    second = run(-jnp.eye(2))
    assert len(traces) == count
    assert (first != second).all()
    run(jnp.eye(2), (4, 2))
    assert len(traces) == 2 * count


@pytest.mark.slow
def test_a_network_without_leaves_is_sampled_too():
    """Parameters that are closed over, a network that cannot be hashed, and a `Partial` with a string as its leaf."""

    class Unhashable:
        __hash__ = None

        def __call__(self, x, t):
            return prediction_from_x0(VP(), x, t, jnp.tanh(x))

    x = Sampler(Ancestral(), n=4)(a_network({"w": jnp.eye(2)}, []), jax.random.key(0), (3, 2))
    w = jnp.eye(2)
    for predict in (
        lambda x, t: prediction_from_x0(VP(), x, t, jnp.tanh(x @ w)),
        Unhashable(),
        Partial(lambda name, x, t: prediction_from_x0(VP(), x, t, jnp.tanh(x)), "a string, which is no array"),
    ):
        np.testing.assert_allclose(Sampler(Ancestral(), n=4)(Denoiser(VP(), predict), jax.random.key(0), (3, 2)), x)


@pytest.mark.slow
@pytest.mark.parametrize("process", [ddpm(), VP()], ids=["chain", "VP"])
def test_a_sampler_works_inside_jit(process):
    """The denoiser, and so a chain's tables, is an argument. Refusals that need no values of arrays still come."""
    sampler = Sampler(Ancestral(0.0), Langevin(1e-5, 1), n=6)
    run = jax.jit(lambda denoiser, key: sampler(denoiser, key, (3, 2)))
    found = run(exact(process), jax.random.key(0))
    np.testing.assert_allclose(found, sampler(exact(process), jax.random.key(0), (3, 2)), rtol=1e-4, atol=1e-4)
    no_corrector = jax.jit(lambda denoiser, key: Sampler(Ancestral(), n=6)(denoiser, key, (3, 2)))
    assert np.isfinite(no_corrector(exact(process), jax.random.key(0))).all()
    grad = jax.grad(lambda x: Sampler(Ancestral(0.0), n=4)(exact(process), jax.random.key(0), (1, 2), x).sum())
    assert np.isfinite(grad(jnp.ones((1, 2)))).all()
    if process.discrete:
        with pytest.raises(ValueError, match="1000 levels"):
            jax.jit(lambda d: Sampler(Ancestral(), n=1001)(d, jax.random.key(0), (3, 2)))(exact(process))


# --- parts of one's own


class Jump(Step):
    """Adds noise to the denoised mean. The step holds an array and a list, and counts its calls in the state."""

    def __init__(self, scale):
        self.scale, self.names = jnp.asarray(scale), ["cannot be hashed"]

    __hash__ = None

    def init(self, denoiser, x, grid):
        return jnp.zeros((), jnp.int32)

    def step(self, denoiser, key, x, t, s, state):
        process = denoiser.process
        noise = self.scale * broadcast(process.sigma(s), x) * normal(key, x.shape, x.dtype)
        return broadcast(process.alpha(s), x) * denoiser(x, t).x0 + noise, state + 1


class Plain:
    """A step without a base class: it has only the method `step`."""

    def step(self, denoiser, key, x, t, s, state):
        return Jump(1.0).step(denoiser, key, x, t, s, jnp.zeros((), jnp.int32))[0], state


class Shake(Corrector):
    def __call__(self, denoiser, key, x, t):
        return Langevin(1e-6, 1)(denoiser, key, x, t)


class Halves(Grid):
    def __call__(self, process, n=None):
        return process.ends[1] * 0.5 ** jnp.arange(n or 8, dtype=float)


@pytest.mark.slow
@pytest.mark.parametrize("step", [Jump(1.0), Plain()])
@pytest.mark.parametrize("corrector", [Shake(), lambda denoiser, key, x, t: x, None])
@pytest.mark.parametrize("grid", [Halves(), lambda process, n: jnp.linspace(1.0, 0.01, n)])
def test_parts_of_ones_own(step, corrector, grid):
    """Each part is a class or a function, and all that it does not define has a default."""
    sampler = Sampler(step, corrector, grid, 9)
    assert sampler.refuse(VP()) == []
    x = sampler(exact(VP()), jax.random.key(0), (400, 2))
    assert abs(float(jnp.mean(x[:, 0] < 0)) - 0.3) < 0.15
    assert sampler.evaluations(VP()) == 9 * (2 if isinstance(corrector, Shake) else 1)
    assert sampler.trajectory(exact(VP()), jax.random.key(0), (5, 2))[1].shape == (9, 5, 2)


def test_a_part_of_ones_own_is_refused_by_what_it_says():
    class Timed(Jump):
        continuous_only = True

    class Dense(Shake):
        needs_density = True
        continuous_only = True

    said = [str(refusal) for refusal in Sampler(Timed(1.0), Dense()).refuse(ddpm())]
    assert len(said) == 3 and all(name in " ".join(said) for name in ("Timed", "Dense", "density"))
    assert Sampler(Timed(1.0), Dense()).refuse(VP(), density=True) == []
    with pytest.raises(ValueError, match="the step Timed is in time"):
        Sampler(Timed(1.0))(exact(ddpm()), jax.random.key(0), (2, 2))


class Wide(Step):
    """A step that ignores the dtype of x."""

    def step(self, denoiser, key, x, t, s, state):
        assert denoiser(x, t).x0.dtype == x.dtype == jnp.float32
        return Jump(1.0).step(denoiser, key, x, t, s, jnp.zeros((), jnp.int32))[0].astype(jnp.float64), state


@pytest.mark.slow
def test_a_sample_has_the_dtype_of_its_start():
    """Also if the denoiser, the step or the corrector is careless with JAX_ENABLE_X64."""
    with jax.enable_x64(True):
        wide = lambda denoiser, key, x, t: x.astype(jnp.float64)  # noqa: E731
        predict = lambda x, t: prediction_from_x0(VP(), x.astype(jnp.float64), t, jnp.zeros(x.shape))  # noqa: E731
        start = jnp.ones((3, 2), jnp.float32)
        found, seen = Sampler(Wide(), wide, n=4).trajectory(Denoiser(VP(), predict), jax.random.key(0), (3, 2), start)
        assert found.dtype == seen.dtype == jnp.float32
        for careless in (Sampler(Wide(), n=4), Sampler(Ancestral(), wide, n=4)):
            assert careless(exact(VP()), jax.random.key(0), (3, 2), start).dtype == jnp.float32


# --- wrong use


class Broken(Step):
    def __init__(self, result):
        self.result = result

    def step(self, denoiser, key, x, t, s, state):
        return self.result(x)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda s, d: s(d, 0, (2, 2)), TypeError, r"jax.random.key\(0\)"),
        (lambda s, d: s.trajectory(d, 7, (2, 2)), TypeError, r"jax.random.key\(7\)"),
        (lambda s, d: s(d, jax.random.PRNGKey(0), (2, 2)), TypeError, "typed random key"),
        (lambda s, d: s(d, jax.random.split(jax.random.key(0), 3), (2, 2)), ValueError, r"keys of shape \[3\]"),
        (lambda s, d: s(d, jax.random.key(0), 16), ValueError, r"shape=16: .*\(B, ...\)"),
        (lambda s, d: s(d, jax.random.key(0), (2,)), ValueError, r"\(B, ...\)"),
        (lambda s, d: s(d, jax.random.key(0), (0, 2)), ValueError, r"\(B, ...\)"),
        (lambda s, d: s(d, jax.random.key(0), (2.5, 2)), ValueError, r"\(B, ...\)"),
        (lambda s, d: s(d, jax.random.key(0), (4, 3)), ValueError, r"shape \[4, 3\]"),
        (lambda s, d: s(d, jax.random.key(0), (2, 2), jnp.ones((3, 2))), ValueError, "start of shape"),
        (lambda s, d: s(d, jax.random.key(0), (2, 2), jnp.ones((2, 2), int)), TypeError, "start is int"),
        (lambda s, d: s(d.predict, jax.random.key(0), (2, 2)), TypeError, "a Denoiser is needed"),
        (lambda s, d: Sampler(Ancestral(), n=1001)(exact(ddpm()), jax.random.key(0), (2, 2)), ValueError, "n=1001"),
        (lambda s, d: Sampler(Ancestral(), n=-1)(d, jax.random.key(0), (2, 2)), ValueError, "n=-1"),
        (lambda s, d: Sampler(Ancestral(), n=2.5), TypeError, "n=2.5"),
        (lambda s, d: Sampler(Ancestral), TypeError, r"Ancestral\(\)"),
        (lambda s, d: Sampler("ancestral"), TypeError, "a Step is needed"),
        (lambda s, d: Sampler(Ancestral(), Langevin), TypeError, r"Langevin\(\)"),
        (lambda s, d: Sampler(Ancestral(), grid=None), TypeError, "grid=None"),
        (lambda s, d: Sampler(Ancestral(), 100), TypeError, "corrector=100"),
        (lambda s, d: Sampler(Broken(lambda x: x), n=3)(d, jax.random.key(0), (2, 2)), TypeError, "Broken.step gives"),
        (lambda s, d: Sampler(Broken(lambda x: (x[:1], ())), n=3)(d, jax.random.key(0), (2, 2)), ValueError, "Broken"),
        (
            lambda s, d: Sampler(Broken(lambda x: (x, x)), n=3)(d, jax.random.key(0), (2, 2)),
            TypeError,
            r"Broken.step gives the state float32\[2, 2\], from \(\): .* must stay",
        ),
        (lambda s, d: Sampler(Ancestral(), grid=(1.0, 0.5)), TypeError, r"Listed\(\(1.0, 0.5, 0.001\)\)"),
        (
            lambda s, d: Sampler(Ancestral(), grid=lambda p, n: jnp.ones((2, 2)))(d, jax.random.key(0), (2, 2)),
            ValueError,
            r"times of shape \[2, 2\]: \[n\] is needed",
        ),
        (
            lambda s, d: Sampler(Ancestral(), grid=lambda p, n: (0.1, 0.5, 1.0))(d, jax.random.key(0), (2, 2)),
            ValueError,
            "times that rise",
        ),
        (
            lambda s, d: Sampler(Ancestral(), grid=lambda p, n: (1.5, 0.5))(d, jax.random.key(0), (2, 2)),
            ValueError,
            "t from 0.5 to 1.5: the times of this process are from 0.001 to 1",
        ),
        (
            lambda s, d: s(Denoiser(VP(), lambda x, t: x), jax.random.key(0), (2, 2)),
            TypeError,
            "a Prediction is needed",
        ),
        (
            lambda s, d: s(Denoiser(VP(), lambda x, t: Prediction(x[:1], x, x)), jax.random.key(0), (2, 2)),
            ValueError,
            r"x0 of shape \[1, 2\]",
        ),
    ],
)
def test_wrong_use_is_one_clear_error(call, error, said):
    with pytest.raises(error, match=said) as caught:
        call(Sampler(Ancestral(), n=4), a_network({"w": jnp.eye(2)}, []))
    assert "\n" not in str(caught.value)


# --- where sampling starts


@pytest.mark.parametrize("name", PROCESSES)
def test_the_gap_is_the_share_of_the_deviation_that_is_data(name):
    """The gap equals the correlation of x and x0 among draws at a level."""
    process = PROCESSES[name]()
    for t in (levels(process, 5)[0], levels(process, 5)[2]):
        x0 = process.data_std * normal(jax.random.key(0), (40_000, 1))
        x = process.alpha(t) * x0 + process.sigma(t) * normal(jax.random.key(1), x0.shape)
        share = np.corrcoef(np.asarray(x)[:, 0], np.asarray(x0)[:, 0])[0, 1]
        assert start_gap(process, t) == pytest.approx(share, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "sampler"),
    [
        (ddpm(steps=50, rescale=False), Sampler(Ancestral())),
        (VP(beta_max=2.0), Sampler(EDMHeun(), n=20)),
        (ddpm(), Sampler(Ancestral(0.0), grid=Listed((300, 200, 100, 0)))),
        (EDM(), Sampler(DPMSolver(), grid=Listed((2.0, 0.5, 0.002)))),
        (ncsn(), Sampler(Ancestral())),
    ],
)
def test_a_start_far_from_the_prior_is_said_with_the_number(process, sampler):
    """For data of mean 1, the samples have a smaller mean, and the more so the larger the gap. A given start and
    Langevin moves cause no warning."""
    denoiser = gaussian((1.0, 1.0), process.data_std).denoiser(process)
    first = sampler.levels(process)[0]
    gap = start_gap(process, first)
    with pytest.warns(StartWarning, match=f"{gap:.2f} of the standard deviation") as caught:
        x = sampler(denoiser, jax.random.key(0), (2000, 2))
    assert caught[0].filename == __file__
    assert gap > 0.1 and float(x.mean()) < 1 - 0.3 * gap**2
    with pytest.warns(StartWarning):
        sampler.trajectory(denoiser, jax.random.key(0), (2, 2))
    start = process.alpha(first) + process.sigma(first) * normal(jax.random.key(1), (20, 2))
    sampler(denoiser, jax.random.key(0), (20, 2), start)
    least = float(process.sigma(levels(process, 2)[1]))
    dataclasses.replace(sampler, corrector=Langevin(0.1 * least**2, 1))(denoiser, jax.random.key(0), (2, 2))


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", [name for name in PROCESSES if name not in ("ncsn", "sigmas")])
def test_the_published_processes_start_at_the_prior(name):
    """Not `ncsn` and `sigmas`, which end at sigma = 1 and 3: the Langevin moves of NCSN forget the start."""
    process = PROCESSES[name]()
    assert start_gap(process, levels(process, 2)[0]) < 0.1
    Sampler(Ancestral(), n=2)(exact(process), jax.random.key(0), (2, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), [(LEVELS, ddpm()), (ddpm(), ncsn(0.011, 100.0, 400))])
def test_bridge_samples_the_same_law(source, target):
    """A denoiser of one process, sampled by ancestral steps of the other, still draws the mixture."""
    denoiser = exact(source).under(target.within(source))
    x = np.asarray(Sampler(Ancestral())(denoiser, jax.random.key(3), (COUNT, 2)))
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
