"""The variational bound: each part is the divergence of two Gaussians, and on Gaussian data the whole is exact."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import log_ndtr

from scoregen.data.scaling import SCALINGS, Centered, Unit
from scoregen.denoiser import Denoiser, Prediction
from scoregen.losses import VLB, EpsilonMSE, Hybrid
from scoregen.losses.bound import decoder_log_var, decoder_nll, prior_kl, step_kl
from scoregen.process import EDM, VE, VP, CosineVP, Flow, Noised, betas, cosine, ddpm, ncsn, posterior, top
from scoregen.random import broadcast
from scoregen.times import own_density

LEVELS = 40  # the same for all chains, so that every program is compiled once
CHAINS = {
    "ddpm": lambda: ddpm(0.001, 0.3, LEVELS, rescale=False),
    "cosine": lambda: cosine(LEVELS),
    "ncsn": lambda: ncsn(0.01, 20.0, LEVELS),
    "betas": lambda: betas(tuple(np.random.default_rng(0).uniform(1e-3, 0.5, LEVELS))),
}
BYTES = (-1.0, 1.0, 2 / 255)


pytestmark = pytest.mark.usefixtures("exact")


def gaussian_kl(mean, std, other_mean, other_std):
    """KL of two normal laws, summed over the last axis."""
    ratio = (std / other_std) ** 2
    return np.sum(0.5 * (ratio - 1 - np.log(ratio) + ((mean - other_mean) / other_std) ** 2), -1)


def batch(process, t, dims=3, seed=0):
    """Noised data at the times t, and an estimate of them that is off."""
    x0, eps, wrong = np.random.default_rng(seed).standard_normal((3, len(t), dims))
    alpha, sigma = (np.asarray(a(t))[:, None] for a in (process.alpha, process.sigma))
    found_eps = eps - alpha / sigma * wrong
    found = Prediction(*map(jnp.asarray, (x0 + wrong, found_eps, -found_eps / sigma)))
    return Noised(jnp.asarray(x0), jnp.asarray(eps), jnp.asarray(alpha * x0 + sigma * eps), t), found


# --- the steps


def test_every_step_of_ddpm_is_its_weighted_dsm_term():
    """THEORY 4 and 13: L_{t-1} = beta^2 / (2 Sigma alpha (1 - abar)) ||eps - eps_theta||^2, at every t."""
    process, t = ddpm(), jnp.arange(1, 1000)
    noised, found = batch(process, t)
    beta = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - beta)
    beta, before, abar = beta[1:], abar[:-1], abar[1:]
    variance = (1 - before) / (1 - abar) * beta
    weight = beta**2 / (2 * variance * (1 - beta) * (1 - abar))
    square = np.sum((np.asarray(noised.eps) - np.asarray(found.eps)) ** 2, 1)
    dsm = 0.5 * np.sum((np.sqrt(1 - abar)[:, None] * np.asarray(found.score) + np.asarray(noised.eps)) ** 2, 1)
    np.testing.assert_allclose(step_kl(process, found, noised.x0, t), weight * square, rtol=1e-5)
    np.testing.assert_allclose(step_kl(process, found, noised.x0, t), 2 * weight * dsm, rtol=1e-5)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("name", CHAINS)
def test_a_step_is_the_divergence_of_two_posteriors(name, variance):
    """The posterior given x0, and the one given its estimate, with the model's variance. "large" is Nichol's beta."""
    process = CHAINS[name]()
    t = jnp.arange(1, process.levels)
    noised, found = batch(process, t)
    mean, std = map(np.asarray, posterior(process, noised.x, noised.x0, t, t - 1))
    other, _ = posterior(process, noised.x, found.x0, t, t - 1)
    # sigma_t^2 w: the variance that a forward step adds; 1 - alpha_t^2 / alpha_s^2 if the total variance is 1.
    a, s = np.asarray(process.alphas), np.asarray(process.sigmas)
    forward = s[1:] ** 2 - (a[1:] / a[:-1] * s[:-1]) ** 2
    mix = np.random.default_rng(1).uniform(-0.2, 1.2, noised.x0.shape)
    share = {"small": np.zeros_like(mix), "large": np.ones_like(mix), "learned": mix}[variance]
    model = np.exp(0.5 * (share * np.log(forward)[:, None] + (1 - share) * np.log(std[:, None] ** 2)))
    between = {"small": 0.0, "large": 1.0, "learned": jnp.asarray(mix)}[variance]
    want = gaussian_kl(mean, std[:, None], np.asarray(other), model)
    np.testing.assert_allclose(step_kl(process, found, noised.x0, t, between), want, rtol=1e-7)


@pytest.mark.parametrize("process", [VP(), CosineVP(), VE(), EDM(), Flow()])
def test_in_continuous_time_it_is_the_limit_of_short_steps(process):
    """Kingma et al. 2021, eq. 17: KL of two posteriors a step of length h apart, over h."""
    t = jnp.asarray(np.linspace(0.1, 0.9, 5)) * process.t_max
    noised, found = batch(process, t)
    h = 1e-5 * t
    mean, std = posterior(process, noised.x, noised.x0, t, t - h)
    other, _ = posterior(process, noised.x, found.x0, t, t - h)
    short = gaussian_kl(np.asarray(mean), np.asarray(std)[:, None], np.asarray(other), np.asarray(std)[:, None])
    np.testing.assert_allclose(step_kl(process, found, noised.x0, t), short / h, rtol=1e-4)


# --- the ends


@pytest.mark.parametrize("make", [ddpm, lambda: ncsn(0.1, 2.0, 5), lambda: ncsn(data_std=0.0), VP, VE, Flow])
def test_prior_kl_is_the_divergence_of_two_gaussians(make):
    """The divergence of p(x_T | x_0) from N(0, sigma^2 + alpha^2 data_std^2)."""
    process = make()
    x0 = np.random.default_rng(0).standard_normal((4, 2, 3))
    a, s = float(process.alpha(top(process))), float(process.sigma(top(process)))
    want = gaussian_kl(a * x0.reshape(4, -1), s, 0.0, math.sqrt(s**2 + a**2 * process.data_std**2))
    np.testing.assert_allclose(prior_kl(process, jnp.asarray(x0)), want, rtol=1e-9, atol=1e-12)


def bins_by_hand(x0, mean, std, low, high, width):
    """-log(Phi(b) - Phi(a)) from SciPy's log Phi, on the side of the mean where the difference has its digits."""
    a, b = (x0 - width / 2 - mean) / std, (x0 + width / 2 - mean) / std
    a, b = np.where(x0 == low, -np.inf, a), np.where(x0 == high, np.inf, b)
    a, b = np.where(a + b > 0, -b, a), np.where(a + b > 0, -a, b)
    near, far = log_ndtr(b), log_ndtr(a)
    return -(near + np.log1p(-np.exp(far - near)))


BYTE = 2 * np.arange(256) / 255 - 1


@pytest.mark.parametrize("std", [1e-3, 5e-3, 0.03, 0.5, 20.0])
@pytest.mark.parametrize("mean", [0.0, -0.3, 0.999, -1.7, 6.0])
def test_the_bins_are_those_of_a_gaussian_and_have_all_of_it(mean, std):
    """Ho et al. 2020, eq. 13, and the probabilities of the 256 levels add up to one."""
    nll = np.asarray(decode(BYTE, mean, std))
    want = bins_by_hand(BYTE, mean, std, -1.0, 1.0, 2 / 255)
    # Far from the mean the mass beyond a bin's far end is negligible: both results are then the near end's alone.
    np.testing.assert_allclose(nll, want, rtol=1e-7, atol=1e-9)
    assert abs(np.exp(-nll).sum() - 1) < 1e-9


def decode(levels, mean, std, bins=BYTES):
    x0 = jnp.asarray(levels)[:, None]
    return decoder_nll(x0, jnp.full_like(x0, mean), jnp.full_like(x0, 2 * math.log(std)), bins)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("std", [1e-3, 0.02, 1.0])
def test_the_tails_of_the_decoder_are_finite(dtype, std):
    """An estimate that is off by hundreds of standard deviations has a finite likelihood and the right gradient."""
    x0 = jnp.asarray(BYTE, dtype)[:, None]

    def nll(mean, log_var):
        return decoder_nll(x0, mean + jnp.zeros_like(x0), log_var + jnp.zeros_like(x0), tuple(BYTES)).sum()

    for mean in (-2.0, -0.5, 0.0, 0.9, 3.0):
        at = dtype(mean), dtype(2 * math.log(std))
        assert np.isfinite(nll(*at))
        slopes = jax.grad(nll, (0, 1))(*at)
        assert np.isfinite(slopes).all()
        if dtype == jnp.float64:
            for i, h in enumerate((1e-4 * std, 1e-4)):
                up, down = (nll(*(a + d * (i == j) for j, a in enumerate(at))) for d in (h, -h))
                np.testing.assert_allclose(slopes[i], (up - down) / (2 * h), rtol=1e-4, atol=1e-13 * up / h)


def test_points_have_a_density():
    x0, mean = np.random.default_rng(0).standard_normal((2, 5, 3))
    log_var = np.linspace(-3, 2, 15).reshape(5, 3)
    want = np.sum(0.5 * np.log(2 * np.pi * np.exp(log_var)) + (x0 - mean) ** 2 / (2 * np.exp(log_var)), 1)
    np.testing.assert_allclose(decoder_nll(*map(jnp.asarray, (x0, mean, log_var)), None), want, rtol=1e-12)


@pytest.mark.parametrize("name", CHAINS)
def test_the_decoder_begins_with_the_variance_of_the_next_step(name):
    """PRESETS: "fixedlarge" and "fixedsmall" both start with btilde_2; a learned one is between btilde_2 and beta_1."""
    process = CHAINS[name]()
    a, s = np.asarray(process.alphas), np.asarray(process.sigmas)
    forward = s[1] ** 2 - (a[1] / a[0] * s[0]) ** 2
    small = forward * s[0] ** 2 / s[1] ** 2
    np.testing.assert_allclose(float(decoder_log_var(process)), math.log(small), rtol=1e-6)
    np.testing.assert_allclose(float(decoder_log_var(process, 1.0)), 2 * math.log(s[0]), rtol=1e-9)
    half = decoder_log_var(process, jnp.array([0.5]))
    np.testing.assert_allclose(half, [0.5 * math.log(small) + math.log(s[0])], rtol=1e-6)


# --- the whole


def left(process, std, t):
    """The variance of x0 given x_t, of N(0, std^2) data."""
    return std**2 / (1 + std**2 * (process.alpha(t) / process.sigma(t)) ** 2)


def gaussian_denoiser(process, std, between=None):
    """The exact denoiser of N(0, std^2) data; `between` is a function of t."""

    def predict(x, t):
        alpha, sigma = (broadcast(a, x) for a in (process.alpha(t), process.sigma(t)))
        x0 = alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x
        eps = sigma / (alpha**2 * std**2 + sigma**2) * x
        found = Prediction(x0, eps, -eps / sigma)
        return found if between is None else found._replace(between=broadcast(between(t), x) + jnp.zeros_like(x))

    return Denoiser(process, predict)


def true_between(process, std):
    """The `between` of the true variance of p(x_s | x_t), and of p(x_0 | x_1) first, as a function of t."""
    a, s = np.asarray(process.alphas), np.asarray(process.sigmas)
    known = np.asarray(left(process, std, jnp.arange(process.levels)))
    forward = s[1:] ** 2 - (a[1:] / a[:-1] * s[:-1]) ** 2
    w = forward / s[1:] ** 2
    small = np.append(w[0], w) * np.append(s[0], s[:-1]) ** 2
    large = np.append(s[0] ** 2, forward)
    true = np.append(known[0], small[1:] + (a[:-1] * w) ** 2 * known[1:])
    table = jnp.asarray(np.log(true / small) / np.log(large / small))
    return lambda t: table[t]


def corners(process, std, t, dims=2):
    """Noised data over which the mean of any quadratic function of (x0, eps) is exactly its expectation."""
    points = np.sqrt(2 * dims) * np.concatenate([np.eye(2 * dims), -np.eye(2 * dims)])
    x0, eps = (np.tile(part, (len(t), 1)) for part in (std * points[:, :dims], points[:, dims:]))
    at = jnp.repeat(t, len(points))
    alpha, sigma = (np.asarray(a(at))[:, None] for a in (process.alpha, process.sigma))
    return Noised(*map(jnp.asarray, (x0, eps, alpha * x0 + sigma * eps)), at)


def expected(loss, process, std, between=None):
    """E of the loss at each level of a chain, with the exact denoiser, `[N]`."""
    noised = corners(process, std, jnp.arange(process.levels))
    values = loss(gaussian_denoiser(process, std, between), noised, jax.random.key(0))
    return np.asarray(values).reshape(process.levels, -1).mean(1)


def entropy(std, dims=2):
    return dims * 0.5 * math.log(2 * math.pi * math.e * std**2)


def top_gap(process, std, dims=2):
    """KL( p(x_T) || prior )."""
    t = top(process)
    ratio = (process.sigma(t) ** 2 + process.alpha(t) ** 2 * std**2) / process.prior_std() ** 2
    return dims * 0.5 * float(ratio - 1 - jnp.log(ratio))


def bound_by_hand(process, std, dims=2):
    """L_T, sum L_{t-1} and L_0 of N(0, std^2) data, with the posterior's variance."""
    a, s = np.asarray(process.alphas), np.asarray(process.sigmas)
    ratio, known = (a / s) ** 2, std**2 / (1 + std**2 * (a / s) ** 2)
    prior = float(process.prior_std()) ** 2
    end = 0.5 * (s[-1] ** 2 / prior - 1 - math.log(s[-1] ** 2 / prior) + (a[-1] * std) ** 2 / prior)
    decoder = s[0] ** 2 * (1 - ratio[1] / ratio[0])
    last = 0.5 * (math.log(2 * math.pi * decoder) + known[0] / decoder)
    return np.array([end, 0.5 * np.sum((ratio[:-1] - ratio[1:]) * known[1:]), last]) * dims


@pytest.mark.parametrize("unit", ["nats", "bits"])
@pytest.mark.parametrize("name", CHAINS)
def test_the_bound_of_gaussian_data_has_its_closed_form(name, unit):
    """THEORY 3: each example has one part of the bound, and the mean over uniform t is the sum of all parts."""
    process, std = CHAINS[name](), 0.6
    found = expected(VLB(None, unit), process, std).mean() * (2 * math.log(2) if unit == "bits" else 1)
    np.testing.assert_allclose(found, bound_by_hand(process, std).sum(), rtol=1e-9)
    assert found > entropy(std)
    # At the least noisy level the loss is L_T + N L_0.
    end, _, last = bound_by_hand(process, std)
    first = expected(VLB(None), process, std)[0] * 2 * math.log(2)
    np.testing.assert_allclose(first, end + process.levels * last, rtol=1e-9)


@pytest.mark.parametrize("name", CHAINS)
def test_with_the_true_variances_the_bound_is_the_entropy(name):
    """THEORY 3: for Gaussian data every reverse step is Gaussian, so the bound loses only the prior's divergence."""
    process, std = CHAINS[name](), 0.6
    found = expected(VLB(None, "nats", "learned"), process, std, true_between(process, std)).mean()
    np.testing.assert_allclose(found, entropy(std) + top_gap(process, std), rtol=1e-8)
    for variance in ("small", "large"):
        assert expected(VLB(None, "nats", variance), process, std).mean() > found


def even_vp(n):
    """A variance-preserving chain whose levels are evenly spaced in the log-SNR."""
    abar = 1 / (1 + np.exp(-np.linspace(9, -9, n)))
    return betas(tuple(1 - abar / np.append(1.0, abar[:-1])))


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("make", [even_vp, lambda n: ncsn(0.01, 50.0, n)])
def test_the_steps_lose_nothing_in_the_limit_of_many(make, variance):
    """THEORY 3: with either variance the loss of the steps is positive and falls as one over their number.

    The decoder here is the true one, because the variance of the bound's decoder falls with the number of steps.
    """
    std, gaps = 0.6, []
    for n in (100, 1000, 4000):
        process = make(n)
        steps = expected(VLB(None, "nats", variance), process, std)[1:].sum() / n
        end = np.asarray(prior_kl(process, corners(process, std, jnp.arange(1)).x0)).mean()
        decoder = entropy(float(jnp.sqrt(left(process, std, 0))))
        gaps.append(steps + end / n + decoder - entropy(std) - top_gap(process, std))
    assert gaps[-1] > 0
    np.testing.assert_allclose([gaps[0] / gaps[1], gaps[1] / gaps[2]], [10, 4], rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("process", [VP(), CosineVP(), VE(), EDM(), Flow()])
def test_the_bound_in_continuous_time_is_the_entropy(process):
    """Kingma et al. 2021: the integral over t is the difference of D/2 log(1 + std^2 SNR) between the two ends."""
    std, loss, key = 0.6, VLB(None, "nats"), jax.random.key(0)
    t = jnp.asarray(np.geomspace(process.t_min, process.t_max, 3000))
    t = jnp.concatenate([t, jnp.linspace(float(t[-2]), process.t_max, 100)[1:-1], t[-1:]])
    t = jnp.sort(jnp.unique(t))
    noised = corners(process, std, t)

    exact = gaussian_denoiser(process, std)
    # A denoiser that returns x0 itself loses nothing between the ends: only the terms of the ends are left.
    knowing = Denoiser(process, lambda x, t: exact(x, t)._replace(x0=noised.x0))
    ends = np.asarray(loss(knowing, noised, key))
    whole = np.asarray(loss(exact, noised, key))
    density = np.asarray(own_density(process, t))
    way = np.trapezoid((whole - ends).reshape(len(t), -1).mean(1) * density, np.asarray(t))
    low, high = (float(process.alpha(u) / process.sigma(u)) ** 2 for u in t[jnp.array([0, -1])])
    np.testing.assert_allclose(way, np.log((1 + std**2 * low) / (1 + std**2 * high)), rtol=2e-5)

    end = np.asarray(prior_kl(process, noised.x0)).mean()
    decoder = entropy(low**-0.5)  # a normal law with the noise's deviation
    assert abs(ends.mean() - end - decoder) < 4.5 * ends.std() / math.sqrt(len(ends))
    np.testing.assert_allclose(
        way + end + decoder, entropy(std) + top_gap(process, std) + np.log1p(1 / (std**2 * low)), atol=2e-4
    )


@pytest.mark.slow
def test_discrete_data_have_their_bins_in_the_bound():
    """At the least noisy level of a chain the loss is L_T plus N times -log2 of the bin's probability, in bits."""
    process = ddpm(steps=10, rescale=False)
    x0 = jnp.asarray(BYTE[[0, 3, 200, 255]])[:, None]
    found = Prediction(0.9 * x0, x0, x0)
    noised = Noised(x0, x0, x0, jnp.zeros(4, jnp.int32))
    std = math.exp(0.5 * float(decoder_log_var(process)))
    want = 10 * np.asarray(decode(x0[:, 0], 0.9 * x0, std)) + np.asarray(prior_kl(process, x0))
    for variance in ("small", "large"):
        got = VLB(BYTES, "bits", variance)(Denoiser(process, lambda x, t: found), noised, jax.random.key(0))
        np.testing.assert_allclose(got, want / math.log(2), rtol=1e-6)
    # In continuous time the decoder is around x / alpha at t_min.
    process = EDM(sigma_min=0.003)
    many = jax.tree.map(lambda a: jnp.repeat(a, 20_000, 0), noised._replace(t=jnp.ones(4)))
    knowing = Denoiser(process, lambda x, t: Prediction(x0=many.x0, eps=x, score=x))
    got = VLB(BYTES)(knowing, many, jax.random.key(0))
    got = np.asarray(got * math.log(2) - prior_kl(process, many.x0)).reshape(4, -1)
    for level, nll in zip(np.asarray(x0)[:, 0], got, strict=True):
        bell = lambda z: np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)  # noqa: E731
        cell = lambda z, y=level: bins_by_hand(y, y + 0.003 * z, 0.003, -1.0, 1.0, 2 / 255)  # noqa: E731
        mean = quad(lambda z: bell(z) * cell(z), -8, 8, limit=200)[0]  # noqa: B023
        assert abs(nll.mean() - mean) < 4.5 * nll.std() / math.sqrt(nll.size) + 1e-9


def test_a_wild_estimate_leaves_the_gradient_finite():
    """In float32, as in training: at high noise the estimate may be so far off that the decoder's tails underflow."""
    with jax.enable_x64(False):
        process, x0 = ddpm(), jnp.asarray(BYTE[[0, 3, 200, 255]], jnp.float32)[:, None]

        def total(wild, between, t):
            found = Prediction(wild * jnp.ones_like(x0), x0, x0, between * jnp.ones_like(x0))
            loss = VLB(BYTES, "bits", "learned")
            return loss(Denoiser(process, lambda x, t: found), Noised(x0, x0, x0, t), jax.random.key(0)).sum()

        slopes = jax.jit(jax.grad(total, (0, 1)))
        for wild in (-1e6, -30.0, 0.0, 30.0, 1e6):
            for between in (-1.0, 0.5, 2.0):
                assert np.isfinite(slopes(jnp.float32(wild), jnp.float32(between), jnp.array([0, 1, 500, 999]))).all()
        assert np.isfinite(slopes(jnp.float32(1e18), jnp.float32(0.5), jnp.full(4, 999))).all()


# --- the hybrid


@pytest.mark.slow
def test_the_hybrid_trains_the_mean_by_one_term_and_the_variance_by_the_other():
    """Nichol & Dhariwal 2021, eq. 16: L_simple alone gives the mean's gradient, share L_vlb alone the variance's."""
    process, rng, key = ddpm(steps=20, rescale=False), np.random.default_rng(0), jax.random.key(0)
    noised, _ = batch(process, jnp.arange(20))
    x0 = jnp.asarray(rng.choice(BYTE[1:-1], (20, 3)))
    noised = noised._replace(x0=x0)
    mean, between = x0 + 0.05 * rng.standard_normal((20, 3)), jnp.asarray(rng.standard_normal((20, 3)))

    def value(loss, mean, between):
        def predict(x, t):
            alpha, sigma = broadcast(process.alpha(t), x), broadcast(process.sigma(t), x)
            return Prediction(mean, (x - alpha * mean) / sigma, (alpha * mean - x) / sigma**2, between)

        return loss(Denoiser(process, predict), noised, key)

    def slopes(loss):
        return jax.grad(lambda *at: value(loss, *at).sum(), (0, 1))(mean, between)

    bound = VLB(BYTES, "bits", "learned")
    np.testing.assert_allclose(
        value(Hybrid(BYTES, 0.7), mean, between),
        value(EpsilonMSE(), mean, between) + 0.7 * value(bound, mean, between),
        rtol=1e-12,
    )
    to_mean, to_between = slopes(Hybrid(BYTES, 0.7))
    simple, whole = slopes(EpsilonMSE()), slopes(bound)
    np.testing.assert_allclose(to_mean, simple[0], rtol=1e-12)
    np.testing.assert_allclose(to_between, 0.7 * whole[1], rtol=1e-12)
    assert not simple[1].any() and whole[0].all() and whole[1].all()


@pytest.mark.parametrize("loss", [VLB(None, "nats", "learned"), Hybrid(None, 1.0)])
@pytest.mark.parametrize("name", CHAINS)
def test_the_variance_that_is_learned_is_the_true_one(name, loss):
    """On Gaussian data the gradient vanishes at the variance of p(x_s | x_t), at every level, and not beside it."""
    process, std = CHAINS[name](), 0.6
    true = true_between(process, std)
    noised = corners(process, std, jnp.arange(process.levels))

    def slope(shift):
        def total(moved):
            denoiser = gaussian_denoiser(process, std, lambda t: true(t) + moved[t])
            return loss(denoiser, noised, jax.random.key(0)).sum()

        return np.asarray(jax.grad(total)(jnp.full(process.levels, shift)))

    low, at, high = map(slope, (-0.1, 0.0, 0.1))
    assert (low < 0).all() and (high > 0).all()
    assert (abs(at) < 1e-6 * np.minimum(-low, high)).all()


@pytest.mark.parametrize("loss", [VLB(None, variance="learned"), Hybrid(None)])
def test_a_variance_that_was_not_learned_is_missed(loss):
    process = ddpm(steps=25)
    noised, found = batch(process, jnp.arange(5))
    with pytest.raises(ValueError, match="the network gives no variance of a step"):
        loss(Denoiser(process, lambda x, t: found), noised, jax.random.key(0))


def test_bytes_with_noise_spread_over_them_are_counted_as_bytes():
    """Theis et al. 2016: the bytes have 8 bits per dimension more than their density on [0, 1)."""
    process, t = CHAINS["ddpm"](), jnp.array([0, 1, 30])
    noised, found = batch(process, t)

    def loss(**options):
        return np.asarray(VLB(**options)(Denoiser(process, lambda x, t: found), noised, jax.random.key(0)))

    np.testing.assert_allclose(loss(width=SCALINGS["unit"]().width) - loss(), 8, rtol=1e-9)
    np.testing.assert_allclose(loss(unit="nats", width=0.5) - loss(unit="nats"), 3 * math.log(2), rtol=1e-7)
    with pytest.raises(ValueError, match="width"):
        VLB(None, width=0.0)


@pytest.mark.parametrize("scaling", [Centered(), Unit(), Unit(dequantize=False)])
def test_the_width_is_how_far_two_bytes_are_apart(scaling):
    keys = jax.random.split(jax.random.key(0), 1)[jnp.zeros(2, int)]
    low, high = np.asarray(scaling(np.array([[7], [8]], np.uint8), keys), np.float64)
    np.testing.assert_allclose(high - low, scaling.width, rtol=1e-4)
