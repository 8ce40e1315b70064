"""Every process: the kernel, its chain, its posterior, its prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.process import PROCESSES, Process, cosine, ddpm, ncsn, normal, perturb, posterior

CHAINS = {name: make() for name, make in PROCESSES.items()}


def float64_tables(name):
    """alpha^2 and sigma^2 of the default chains, spelled out again from the papers, one level at a time."""
    if name == "ncsn":
        return np.ones(10), np.array([0.01 * 100 ** (i / 9) for i in range(10)]) ** 2
    if name == "ddpm":
        betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    else:
        abar = [np.cos((i / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 for i in range(1001)]
        betas = [min(1 - abar[i + 1] / abar[i], 0.999) for i in range(1000)]
    product, alpha2 = 1.0, []
    for beta in betas:
        product *= 1 - beta
        alpha2.append(product)
    return np.array(alpha2), 1 - np.array(alpha2)


@pytest.mark.parametrize("name", PROCESSES)
def test_tables_are_the_papers(name):
    chain: Process = CHAINS[name]
    t = chain.grid()[::-1]
    alpha2, sigma2 = float64_tables(name)
    np.testing.assert_allclose(chain.alpha(t) ** 2, alpha2, rtol=3e-6)
    np.testing.assert_allclose(chain.sigma(t) ** 2, sigma2, rtol=3e-6)
    np.testing.assert_allclose(chain.logsnr(t), np.log(alpha2 / sigma2), rtol=2e-6, atol=2e-6)
    assert (np.diff(chain.logsnr(t)) < 0).all(), "index 0 is the least noisy"


@pytest.mark.parametrize("name", PROCESSES)
def test_real_times_lie_between_levels(name):
    chain = CHAINS[name]
    t = jnp.arange(chain.levels)
    real = t.astype(jnp.float32)
    for method in (chain.alpha, chain.sigma, chain.logsnr):
        np.testing.assert_allclose(method(real), method(t), rtol=2e-5, atol=1e-5)
    half = real[:-1] + 0.5
    np.testing.assert_allclose(chain.time(chain.logsnr(half)), half, atol=2e-3)
    # The three agree between levels too: lam is log(alpha^2 / sigma^2) everywhere.
    lam = 2 * (jnp.log(chain.alpha(half)) - jnp.log(chain.sigma(half)))
    np.testing.assert_allclose(lam, chain.logsnr(half), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_grid_has_both_ends_and_falls(name):
    chain = CHAINS[name]
    for n in (2, 5, chain.levels):
        grid = np.asarray(chain.grid(n))
        assert len(grid) == n and grid[0] == chain.levels - 1 and grid[-1] == 0
        gaps = -np.diff(grid)
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1, "evenly spaced, no level twice"
    assert np.asarray(chain.grid()).tolist() == list(range(chain.levels - 1, -1, -1))
    for n in (0, chain.levels + 1):
        with pytest.raises(ValueError, match=f"no grid of {n}"):
            chain.grid(n)


@pytest.mark.parametrize("name", PROCESSES)
def test_times_are_uniform_over_all_levels(name):
    chain = CHAINS[name]
    t = np.asarray(chain.sample_time(jax.random.key(0), (40_000,)))
    assert t.min() == 0 and t.max() == chain.levels - 1
    counts = np.bincount(t * 10 // chain.levels, minlength=10)
    assert (abs(counts - 4000) < 5 * np.sqrt(4000)).all()


@pytest.mark.parametrize("name", PROCESSES)
def test_single_steps_have_the_law_of_the_one_jump(name):
    """THEORY 1: x_t walked one level at a time has alpha_t and sigma_t^2: variances add, not deviations."""
    chain = CHAINS[name]
    alpha, sigma = (np.asarray(f(chain.grid()[::-1]), np.float64) for f in (chain.alpha, chain.sigma))
    mean, var = alpha[0], sigma[0] ** 2
    for t in range(1, chain.levels):
        # q(x_t | x_{t-1}), the only Gaussian with these two levels' marginals.
        factor = alpha[t] / alpha[t - 1]
        noise = sigma[t] ** 2 - factor**2 * sigma[t - 1] ** 2
        assert noise > 0
        mean, var = factor * mean, factor**2 * var + noise
    np.testing.assert_allclose([mean, var], [alpha[-1], sigma[-1] ** 2], rtol=1e-6)
    if name == "ddpm":  # and there the single step is the published one
        t = np.arange(1, 1000)
        betas = np.linspace(1e-4, 0.02, 1000)[1:]
        np.testing.assert_allclose((alpha[t] / alpha[t - 1]) ** 2, 1 - betas, rtol=5e-7)


@pytest.mark.parametrize("name", PROCESSES)
def test_perturb_draws_from_the_kernel(name):
    chain = CHAINS[name]
    t = jnp.repeat(jnp.array([0, chain.levels // 2, chain.levels - 1]), 20_000)
    x0 = jnp.full((60_000, 2), 1.5)
    noised = perturb(chain, jax.random.key(1), x0, t)
    x = np.asarray(noised.x, np.float64).reshape(3, 20_000, 2)
    alpha, sigma = (np.asarray(f(t)).reshape(3, -1)[:, :1] for f in (chain.alpha, chain.sigma))
    se = sigma / np.sqrt(20_000)
    assert (abs(x.mean(1) - 1.5 * alpha) < 5 * se).all()
    assert (abs(x.std(1) / sigma - 1) < 5 / np.sqrt(2 * 20_000)).all()
    np.testing.assert_allclose(
        noised.x, chain.alpha(t)[:, None] * x0 + chain.sigma(t)[:, None] * noised.eps, rtol=1e-6, atol=1e-6
    )
    # Dimensions are independent of one another: at the noisiest level their correlation is noise.
    assert abs(np.corrcoef(np.asarray(noised.eps).T)[0, 1]) < 5 / np.sqrt(60_000)


def test_noise_is_keyed_by_example():
    key = jax.random.key(3)
    few, many = normal(key, (3, 4)), normal(key, (7, 4))
    np.testing.assert_array_equal(few, many[:3])
    assert len(np.unique(np.asarray(many))) == many.size


@pytest.mark.parametrize("name", PROCESSES)
def test_posterior_is_bayes_rule(name):
    """q(x_s | x_t, x_0) from the product of q(x_s | x_0) and q(x_t | x_s), in float64, at many pairs of levels."""
    chain = CHAINS[name]
    n = chain.levels
    pairs = [(t, s) for t in {1, 2, n // 2, n - 1} for s in {0, 1, t // 2, t - 1} if s < t]
    t, s = jnp.array(pairs).T
    x, x0 = jnp.full((len(pairs), 1), 0.7), jnp.full((len(pairs), 1), -0.4)
    mean, std = posterior(chain, x, x0, t, s)
    alpha2, sigma2 = float64_tables(name)
    for i, (ti, si) in enumerate(pairs):
        factor = np.sqrt(alpha2[ti] / alpha2[si])
        noise = sigma2[ti] - factor**2 * sigma2[si]
        precision = 1 / sigma2[si] + factor**2 / noise
        want = (np.sqrt(alpha2[si]) * -0.4 / sigma2[si] + factor * 0.7 / noise) / precision
        np.testing.assert_allclose(mean[i, 0], want, rtol=2e-4)
        np.testing.assert_allclose(std[i], precision**-0.5, rtol=2e-4)


def test_posterior_is_ho_et_al():
    """THEORY 2, eqs. 6-7, and the same mean with x_0 eliminated, between neighbours."""
    chain = CHAINS["ddpm"]
    t = jnp.array([1, 10, 500, 999])
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    beta, ab, ab_prev = betas[t], abar[t], abar[t - 1]
    eps, x = jax.random.normal(jax.random.key(0), (4, 3)), jax.random.normal(jax.random.key(1), (4, 3))
    x0 = (x - chain.sigma(t)[:, None] * eps) / chain.alpha(t)[:, None]
    mean, std = posterior(chain, x, x0, t, t - 1)
    c = lambda a: np.asarray(a)[:, None]  # noqa: E731
    paper = c(np.sqrt(ab_prev) * beta / (1 - ab)) * x0 + c(np.sqrt(1 - beta) * (1 - ab_prev) / (1 - ab)) * x
    np.testing.assert_allclose(mean, paper, rtol=2e-4, atol=2e-5)
    eliminated = (x - c(beta / np.sqrt(1 - ab)) * eps) / c(np.sqrt(1 - beta))
    np.testing.assert_allclose(mean, eliminated, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(std**2, (1 - ab_prev) / (1 - ab) * beta, rtol=2e-4)


def test_posterior_is_the_ve_ancestral_step():
    """With x_0 = x + sigma^2 score: x + (sigma^2 - sigma_prev^2) score and sigma_prev sqrt(..)/sigma."""
    chain = ncsn(0.01, 50.0, 232)
    t = jnp.array([1, 100, 231])
    sigma, prev = (np.asarray(chain.sigma(i), np.float64)[:, None] for i in (t, t - 1))
    x, score = jax.random.normal(jax.random.key(0), (2, 3, 5))
    mean, std = posterior(chain, x, x + sigma**2 * score, t, t - 1)
    np.testing.assert_allclose(mean, x + (sigma**2 - prev**2) * score, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(std[:, None], prev * np.sqrt(sigma**2 - prev**2) / sigma, rtol=1e-4)


def test_priors():
    shape = (20_000, 2)
    for chain, std in ((ddpm(), 1.0), (cosine(), 1.0), (ncsn(0.01, 50.0, 10), 50.0)):
        x = np.asarray(chain.prior(jax.random.key(0), shape))
        assert abs(x.std() / std - 1) < 5 / np.sqrt(2 * x.size) and abs(x.mean()) < 5 * std / np.sqrt(x.size)
    x = np.asarray(ncsn(start="uniform").prior(jax.random.key(0), shape))
    assert 0 <= x.min() < 0.001 and 0.999 < x.max() < 1 and abs(x.mean() - 0.5) < 0.01


def test_within_keeps_the_covered_levels():
    vp, ve = ddpm(), ncsn(0.05, 8.0, 20)
    part = vp.within(ve)
    ratio = np.asarray(part.sigmas / part.alphas)
    assert 0.049 < ratio.min() < 0.055 and 7.7 < ratio.max() < 8.1
    np.testing.assert_allclose(part.sigmas**2 + part.alphas**2, 1, rtol=1e-5)
    assert abs(np.asarray(part.prior(jax.random.key(0), (20_000, 2))).std() - 1) < 0.02
    assert vp.within(ncsn(0.01, 200.0, 20)).levels == 1000, "DDPM's lowest level is NCSN's 0.01"
    with pytest.raises(ValueError, match="fewer than two"):
        ncsn(100.0, 200.0, 10).within(vp.within(ve))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ddpm(beta_min=0.0),
        lambda: ddpm(beta_max=1.0),
        lambda: ddpm(steps=1),
        lambda: cosine(steps=1),
        lambda: ncsn(sigma_min=0.0),
        lambda: ncsn(sigma_min=2.0),
        lambda: ncsn(levels=1),
        lambda: ncsn(start="zeros"),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match=r"needed|at least 2"):
        make()


def test_chains_pass_through_jit():
    """A chain is a pytree: it can be an argument, and its statics are compared, not its arrays."""
    traces = []

    @jax.jit
    def alpha(chain, t):
        traces.append(1)
        return chain.alpha(t)

    t = jnp.array([0, 5])
    np.testing.assert_array_equal(alpha(ncsn(), t), alpha(ncsn(sigma_max=3.0), t))
    assert len(traces) == 1
