"""Every loss: its minimiser is the score of the noised density, and the losses differ by constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import TWO_MODES, gaussian

from scoregen.denoiser import Prediction
from scoregen.losses import DSM, LOSSES, PROJECTIONS, SSM, EpsilonMSE
from scoregen.process import PROCESSES, ddpm, ncsn, perturb, rows

CHAINS = {"ddpm": ddpm(), "cosine": PROCESSES["cosine"](), "ncsn": ncsn(0.1, 5.0, 10)}
VARIANTS = {
    "eps": EpsilonMSE(),
    "eps-sum": EpsilonMSE("sum"),
    "dsm": DSM(),
    "ssm": SSM(),
    "ssm-plain": SSM(variance_reduced=False),
    "ssm-gaussian": SSM(3, "gaussian"),
    "ssm-sphere": SSM(2, "sphere"),
}


def test_variants_cover_the_table():
    assert set(LOSSES.values()) == {type(v) for v in VARIANTS.values()}


def family(process, theta):
    """Scores around the exact one, off by a field that depends on x and is of order one in units of 1 / sigma."""

    def predict(x, t):
        sigma = rows(process.sigma(t), x)
        wrong = theta[0] * jnp.tanh(2 * x) + theta[1] * jnp.flip(x, 1) / (1 + jnp.abs(x)) + theta[2]
        score = TWO_MODES.score(process, x, t) + wrong / sigma
        return Prediction((x + sigma**2 * score) / rows(process.alpha(t), x), -sigma * score, score)

    return predict


def fisher_divergence(process, predict, noised, key):
    """1/2 sigma^2 ||s_theta - score||^2 at x_t, which no estimator is in the way of."""
    off = predict(noised.x, noised.t).score - TWO_MODES.score(process, noised.x, noised.t)
    return 0.5 * jnp.sum((rows(process.sigma(noised.t), off) * off) ** 2, 1)


def noised_batch(process, count, key=0):
    names = jax.random.split(jax.random.key(key), 4)
    x0 = TWO_MODES.sample(names[0], count)
    # Levels where the mixture is still seen through the noise: that is where a wrong formula shows.
    levels = process.grid()
    levels = levels[np.asarray(process.logsnr(levels)) > -2]
    t = levels[jax.random.randint(names[1], (count,), 0, len(levels))]
    return perturb(process, names[2], x0, t), names[3]


def by_chunks(loss, process):
    """theta -> the mean loss of each chunk and its gradient (reverse mode, as in training), `[C]` and `[C, 3]`.

    The chunks are independent, so their spread is the statistical error of their mean.
    """
    both = jax.jit(
        jax.value_and_grad(lambda theta, noised, key: loss(process, family(process, theta), noised, key).mean())
    )
    chunks = [noised_batch(process, 1000, key) for key in range(40)]

    def run(theta):
        values, slopes = zip(*(both(theta, *chunk) for chunk in chunks), strict=True)
        return np.asarray(values, np.float64), np.asarray(slopes, np.float64)

    return run


def is_zero(chunks, errors=4.5):
    """Whether the mean over chunks is zero within so many standard errors, elementwise."""
    return abs(chunks.mean(0)) < errors * chunks.std(0, ddof=1) / np.sqrt(len(chunks)) + 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CHAINS)
def test_the_exact_score_is_the_minimum_and_losses_differ_by_a_constant(name, variant):
    """THEORY 6-9: up to a constant in theta every loss is the Fisher divergence, in value and in gradient."""
    process, thetas = CHAINS[name], (jnp.array([0.2, -0.1, 0.3]), jnp.array([-0.4, 0.3, 0.1]))
    scale = 2.0 if variant == "eps-sum" else 1.0  # EpsilonMSE has no 1/2, and its mean is over D = 2
    ours, fisher = by_chunks(VARIANTS[variant], process), by_chunks(fisher_divergence, process)

    _, at_truth = ours(jnp.zeros(3))
    assert is_zero(at_truth).all(), "the exact score is a stationary point"

    (one, slope), (two, _) = (ours(theta) for theta in thetas)
    (one_exact, slope_exact), (two_exact, _) = (fisher(theta) for theta in thetas)
    assert is_zero((one - two) / scale - (one_exact - two_exact))
    assert is_zero(slope / scale - slope_exact).all()
    # and neither is the equality of two zeros
    assert not is_zero(one_exact - two_exact, 8)
    assert not is_zero(slope_exact, 8).any()


@pytest.mark.parametrize("name", CHAINS)
def test_eps_is_twice_dsm(name):
    """THEORY 13: sigma s = -eps, so the simple loss is sigma^2-weighted DSM, example by example."""
    process = CHAINS[name]
    noised, key = noised_batch(process, 100)
    predict = family(process, jnp.array([0.3, 0.2, -0.5]))
    dsm = DSM()(process, predict, noised, key)
    np.testing.assert_allclose(EpsilonMSE("sum")(process, predict, noised, key), 2 * dsm, rtol=1e-4)
    np.testing.assert_allclose(EpsilonMSE("mean")(process, predict, noised, key), dsm, rtol=1e-4)


def test_dsm_in_numbers():
    """One example by hand: sigma 0.5, eps (1, -2), score (0.4, 2): 1/2 ((0.2 + 1)^2 + (1 - 2)^2) = 1.22."""
    process = ncsn(0.25, 0.5, 2)
    noised = perturb(process, jax.random.key(0), jnp.zeros((1, 2)), jnp.array([1]))._replace(
        eps=jnp.array([[1.0, -2.0]])
    )
    score = jnp.array([[0.4, 2.0]])
    loss = DSM()(process, lambda x, t: Prediction(x, -0.5 * score, score), noised, jax.random.key(0))
    np.testing.assert_allclose(loss, [1.22], rtol=1e-6)


def linear(matrix):
    return lambda x, t: Prediction(x, x, x @ matrix.T)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("variance_reduced", [True, False])
def test_ssm_is_unbiased_for_the_trace(projection, variance_reduced):
    """THEORY 9: over v it averages to sigma^2 (tr J + 1/2 ||s||^2); the Jacobian here is not symmetric."""
    matrix = jnp.array([[-1.0, 2.0, 0.0], [0.5, -1.3, 1.0], [-0.7, 0.2, -0.4]])
    process, t = ncsn(0.5, 2.0, 3), jnp.array([2])
    x = jnp.array([[0.3, -0.4, 0.2]])
    noised = perturb(process, jax.random.key(0), jnp.zeros((1, 3)), t)._replace(x=x)
    many = jax.tree.map(lambda a: jnp.repeat(a, 60_000, 0), noised)
    loss = np.asarray(
        SSM(1, projection, variance_reduced)(process, linear(matrix), many, jax.random.key(5)), np.float64
    )
    want = 4.0 * (float(jnp.trace(matrix)) + 0.5 * float(jnp.sum((x @ matrix.T) ** 2)))
    assert abs(loss.mean() - want) < 4.5 * loss.std() / np.sqrt(len(loss))
    assert loss.min() < 0, "the first term may be negative: no norm stands around it"


@pytest.mark.parametrize("data", [(4,), (3, 5)])
def test_spheres_are_of_radius_sqrt_d_each(data):
    """Each slice by itself, not all of an example's together."""
    v = np.asarray(PROJECTIONS["sphere"](jax.random.key(0), (7, *data))).reshape(7, -1)
    np.testing.assert_allclose((v**2).sum(1), v.shape[1], rtol=1e-5)


def test_ssm_variance():
    """The reduced form has less variance, Rademacher no more than Gaussian, and m slices 1/m of it."""
    process = CHAINS["ncsn"]
    noised, _ = noised_batch(process, 1)
    many = jax.tree.map(lambda a: jnp.repeat(a, 20_000, 0), noised)
    predict = family(process, jnp.array([0.5, 0.5, 1.0]))

    def variance(*options):
        return np.asarray(SSM(*options)(process, predict, many, jax.random.key(2))).var()

    assert variance(1, "gaussian", True) < 0.8 * variance(1, "gaussian", False)
    assert variance(1, "rademacher", True) < 0.8 * variance(1, "gaussian", True)
    np.testing.assert_allclose(variance(4, "gaussian", True) / variance(1, "gaussian", True), 0.25, rtol=0.15)


def test_ssm_fits_a_gaussian():
    """Minimised over a linear score -a x it finds a = 1 / variance, without ever seeing x_0 or eps."""
    process, data = ncsn(0.3, 0.6, 2), gaussian((0.0, 0.0), 0.8)
    t = jnp.ones(200_000, jnp.int32)
    noised = perturb(process, jax.random.key(1), data.sample(jax.random.key(0), len(t)), t)
    blind = noised._replace(x0=jnp.full_like(noised.x0, jnp.nan), eps=jnp.full_like(noised.eps, jnp.nan))

    def mean_loss(a):
        return SSM()(process, linear(-a * jnp.eye(2)), blind, jax.random.key(2)).mean()

    # Quadratic in a: two slopes give its minimum exactly.
    low, high = (float(jax.grad(mean_loss)(jnp.float32(a))) for a in (0.0, 2.0))
    np.testing.assert_allclose(-2 * low / (high - low), 1 / (0.8**2 + 0.6**2), rtol=0.01)


@pytest.mark.parametrize("make", [lambda: EpsilonMSE("average"), lambda: SSM(0), lambda: SSM(projection="cube")])
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match="needed"):
        make()


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_are_unreduced_and_keyed_by_example(variant):
    """Example i gets the same number in a batch of 3 as in one of 8."""
    process, loss = CHAINS["ddpm"], VARIANTS[variant]
    noised, key = noised_batch(process, 8)
    predict = family(process, jnp.array([0.3, 0.2, -0.5]))
    whole = loss(process, predict, noised, key)
    part = loss(process, predict, jax.tree.map(lambda a: a[:3], noised), key)
    np.testing.assert_allclose(part, whole[:3], rtol=1e-5)
    assert len(np.unique(np.asarray(whole))) == 8
