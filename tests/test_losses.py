"""Every loss: its minimiser is the score of the noised density, and the losses differ by constants."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.denoiser import Denoiser, Prediction, from_network
from scoregen.losses import (
    DSM,
    FDSSM,
    ISM,
    LOSSES,
    PROJECTIONS,
    SSM,
    VLB,
    WEIGHTINGS,
    X0MSE,
    EpsilonMSE,
    FlowMatching,
    Hybrid,
    Weighted,
)
from scoregen.process import EDM, PROCESSES, VP, Flow, Noised, cosine, ddpm, ncsn, perturb
from scoregen.random import broadcast
from scoregen.testing import check_loss
from scoregen.testing.conformance import columns
from scoregen.testing.oracle import TWO_MODES, gaussian
from scoregen.times import Own

MAKE = {
    "ddpm": ddpm,
    "cosine": cosine,
    "ncsn": lambda: ncsn(0.1, 5.0, 10),
    "vp": VP,
    "edm": EDM,
    "flow": Flow,
}
ALL = {name: make() for name, make in MAKE.items()}
CHAINS = {name: process for name, process in ALL.items() if process.discrete}
# The forms that every loss names itself, and two weighted losses. The bound is in nats, as in the theory.
TABLE = {"vlb": VLB(unit="nats")} | {name: loss for name, loss in columns().items() if not name.startswith("vlb")}
VARIANTS = TABLE | {
    "ssm-gaussian": SSM(3, "gaussian"),
    "ssm-sphere": SSM(2, "sphere"),
    "ssm-weighted": Weighted(SSM(), WEIGHTINGS["min_snr"](5.0)),
    "ism-weighted": Weighted(ISM(), WEIGHTINGS["min_snr"](5.0)),
}
# The losses with a weight by hand, below. `check_loss` and the matrix compare a new loss with its own weight.
KNOWN = ["eps", "eps-sum", "x0", "flow", "dsm", "ism", "ssm", "ssm-plain", "fdssm", "vlb", "hybrid"]
KNOWN += [name for name in VARIANTS if name not in TABLE]


def allowed(name, loss):
    """The loss does not refuse the process."""
    return loss.refuse(ALL[name]) is None


# The effect of options does not depend on the process, so they are tested under two processes, the table under all.
CASES = [
    (name, variant)
    for name in ALL
    for variant in KNOWN
    if allowed(name, VARIANTS[variant]) and (variant in LOSSES or name in ("ncsn", "vp"))
]


@pytest.mark.slow
@pytest.mark.parametrize("name", columns())
def test_every_loss_keeps_its_promises(name):
    """It passes `check_loss`, as a loss of one's own should. Losses are found through the table."""
    check_loss(columns()[name])


def basis(x):
    """Three fields of order one that depend on x."""
    return jnp.stack([jnp.tanh(2 * x), jnp.flip(x, 1) / (1 + jnp.abs(x)), jnp.ones_like(x)])


def family(process, theta):
    """Scores around the exact one, off by a field that depends on x and is of order one in units of 1 / sigma."""

    def predict(x, t):
        sigma = broadcast(process.sigma(t), x)
        score = TWO_MODES.score(process, x, t) + jnp.tensordot(theta, basis(x), 1) / sigma
        x0 = (x + sigma**2 * score) / broadcast(process.alpha(t), x)
        return Prediction(x0, -sigma * score, score, jnp.full_like(x, 0.3))

    return Denoiser(process, predict)


def fisher_divergence(theta, noised):
    """1/2 sigma^2 ||s_theta - score||^2 at x_t, which is half the square of the field, and its gradient in theta."""
    fields = np.asarray(basis(noised.x), np.float64)
    wrong = np.tensordot(theta, fields, 1)
    return 0.5 * (wrong**2).sum(1), (fields * wrong).sum(2).T


def slopes_by_sde(process, t):
    """g^2, from the equation that the paper of the process has, in float64."""
    t = np.asarray(t, np.float64)
    return {VP: lambda: 0.1 + t * 19.9, EDM: lambda: 2 * t, Flow: lambda: 2 * t / (1 - t)}[type(process)]()


def own_density(process, t):
    t = np.asarray(t, np.float64)
    if not isinstance(process, EDM):
        return 1 / (process.t_max - process.t_min)

    def below(sigma):
        return 0.5 * (1 + math.erf((math.log(sigma) + 1.2) / (1.2 * math.sqrt(2))))

    bell = np.exp(-0.5 * ((np.log(t) + 1.2) / 1.2) ** 2) / (1.2 * t * math.sqrt(2 * math.pi))
    return bell / (below(80.0) - below(0.002))


def in_units_of_fisher(variant, process, t):
    """The factor by which a loss is the sigma^2-weighted Fisher divergence, by hand.

    An error ds of the score is sigma^2 / alpha ds of x0, -sigma ds of eps and -g^2 / 2 ds of the velocity
    (the probability-flow ODE is f x - g^2 / 2 s), and the bound weighs it by g^2 / 2 (THEORY 4, 13, 15).
    """
    alpha, sigma = (np.asarray(a, np.float64) for a in (process.alpha(t), process.sigma(t)))
    if variant == "eps-sum":
        return 2.0 + 0 * sigma
    if variant.endswith("-weighted"):
        return 2 * np.minimum(1, 5 * (sigma / alpha) ** 2)
    if variant == "x0":
        return 2 * (sigma / alpha) ** 2
    if variant == "flow":
        return slopes_by_sde(process, t) ** 2 / (2 * sigma**2)
    if variant == "vlb" and process.discrete:
        ratio = np.asarray(process.alphas, np.float64) ** 2 / np.asarray(process.sigmas, np.float64) ** 2
        return (process.ends[1] + 1) * (ratio[np.asarray(t) - 1] / ratio[np.asarray(t)] - 1)
    if variant == "vlb":
        return slopes_by_sde(process, t) / sigma**2 / own_density(process, t)
    return 1.0 + 0 * sigma  # eps: without the 1/2, and a mean over D = 2


def times(process, n=1000):
    """All levels of a chain but the first, or n - 1 times, the noisiest first."""
    if process.discrete:
        return jnp.arange(process.ends[1], 0, -1)
    if isinstance(process, EDM):
        return jnp.geomspace(*process.ends[::-1], n)[:-1]
    return jnp.linspace(*process.ends[::-1], n)[:-1]


def noised_batch(process, count, key=0):
    names = jax.random.split(jax.random.key(key), 4)
    x0 = TWO_MODES.sample(names[0], count)
    # Levels where the mixture is still seen through the noise: that is where a wrong formula shows. The first of a
    # chain is left out, where the bound has the decoder (see test_bound).
    levels = times(process)
    levels = levels[np.asarray(process.logsnr(levels)) > -2]
    t = levels[jax.random.randint(names[1], (count,), 0, len(levels))]
    return perturb(process, names[2], x0, t), names[3]


@functools.cache
def chunks_of(name):
    """Independent batches, so that their spread is the statistical error of their mean."""
    return [noised_batch(ALL[name], 1000, key) for key in range(80, 120)]


def first(name, count):
    """The first few examples of a batch, with their keys."""
    noised, key = chunks_of(name)[0]
    return jax.tree.map(lambda a: a[:count], noised), key


def at(loss, name, theta, noised, key):
    """The loss of each example, in one program."""
    return jax.jit(lambda noised, key: loss(family(ALL[name], theta), noised, key))(noised, key)


def by_chunks(loss, name):
    """theta -> the mean loss of each chunk and its gradient (reverse mode, as in training), `[C]` and `[C, 3]`."""
    process = ALL[name]
    both = jax.jit(jax.value_and_grad(lambda theta, noised, key: loss(family(process, theta), noised, key).mean()))

    def run(theta):
        values, slopes = zip(*(both(theta, *chunk) for chunk in chunks_of(name)), strict=True)
        return np.asarray(values, np.float64), np.asarray(slopes, np.float64)

    return run


def fisher_by_chunks(variant, name):
    def run(theta):
        rows = []
        for noised, _ in chunks_of(name):
            value, slope = fisher_divergence(np.asarray(theta, np.float64), noised)
            scale = in_units_of_fisher(variant, ALL[name], noised.t)
            rows.append(((scale * value).mean(), (scale[:, None] * slope).mean(0)))
        return tuple(map(np.asarray, zip(*rows, strict=True)))

    return run


def is_zero(chunks, errors=4.5):
    """Whether the mean over chunks is zero within so many standard errors, elementwise."""
    return abs(chunks.mean(0)) < errors * chunks.std(0, ddof=1) / np.sqrt(len(chunks)) + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_exact_score_is_the_minimum_and_losses_differ_by_a_constant(name, variant):
    """THEORY 6-9: up to a constant in theta every loss is the Fisher divergence, in value and in gradient."""
    thetas = jnp.array([0.3, 0.2, 0.4]), jnp.array([-0.1, 0.2, 0.1])
    ours, fisher = by_chunks(VARIANTS[variant], name), fisher_by_chunks(variant, name)

    _, at_truth = ours(jnp.zeros(3))
    assert is_zero(at_truth).all(), "the exact score is a stationary point"

    (one, slope), (two, _) = (ours(theta) for theta in thetas)
    (one_exact, slope_exact), (two_exact, _) = (fisher(theta) for theta in thetas)
    assert is_zero(slope - slope_exact).all()
    if variant != "hybrid":  # one of its terms is in the value, but has no gradient here
        assert is_zero((one - two) - (one_exact - two_exact))
    # neither equality is between two zeros
    assert not is_zero(one_exact - two_exact, 8)
    assert not is_zero(slope_exact, 8).any()


@pytest.mark.quick(8)
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_weight_is_that_of_the_error_of_x0(name, variant):
    """1/2 sigma^2 ||ds||^2 is 1/2 SNR ||dx0||^2. A loss that is a mean over dimensions counts as their sum."""
    loss = VARIANTS[variant]
    with jax.enable_x64(True):
        process = MAKE[name]()
        t = times(process, 50)
        t = t[np.asarray(process.alpha(t)) > 0]
        snr = (np.asarray(process.alpha(t)) / np.asarray(process.sigma(t))) ** 2
        dims = 2 if variant in ("eps", "hybrid") else 1
        want = 0.5 * snr * in_units_of_fisher(variant, process, t) * dims
        np.testing.assert_allclose(loss.weight(process, t), want, rtol=1e-9)


@pytest.mark.quick(6)
@pytest.mark.parametrize(("name", "variant"), [case for case in CASES if VARIANTS[case[1]].positive])
def test_an_error_is_its_weight_times_the_error_of_x0(name, variant):
    """Example by example, for any output of the network."""
    loss = VARIANTS[variant]
    with jax.enable_x64(True):
        process, rng = MAKE[name](), np.random.default_rng(0)
        t = times(process, 50)
        t = t[np.asarray(process.alpha(t)) > 0]
        x0, eps, wrong = jnp.asarray(rng.standard_normal((3, len(t), 2)))
        alpha, sigma = broadcast(process.alpha(t), x0), broadcast(process.sigma(t), x0)
        found = Prediction(x0 + wrong, eps - alpha / sigma * wrong, -(eps - alpha / sigma * wrong) / sigma)
        noised = Noised(x0, eps, alpha * x0 + sigma * eps, t)
        value = loss(Denoiser(process, lambda x, t: found), noised, jax.random.key(0))
        want = loss.weight(process, t) * jnp.sum(wrong**2, 1)
        np.testing.assert_allclose(value, want / (2 if variant == "eps" else 1), rtol=1e-9)


def test_flow_matching_is_the_regression_of_the_velocity():
    """On the straight path ||(eps - x0) - u||^2 (Liu et al. 2023, eq. 1), for a network that gives u, also at t = 1."""
    process, t = Flow(), jnp.array([0.001, 0.3, 0.8, 1.0])
    x0, u = jax.random.normal(jax.random.key(0), (2, 4, 3))
    noised = perturb(process, jax.random.key(1), x0, t)
    denoiser = from_network(process, "velocity", lambda x, t: u)
    want = np.sum((np.asarray(noised.eps) - np.asarray(x0) - np.asarray(u)) ** 2, 1)
    np.testing.assert_allclose(FlowMatching()(denoiser, noised, jax.random.key(2)), want, rtol=1e-4)


@pytest.mark.slow
def test_flow_matching_of_a_diffusion_has_its_velocity():
    """VP: alpha' = -beta alpha / 2 and sigma' = beta alpha^2 / (2 sigma)."""
    with jax.enable_x64(True):
        process, t = VP(), jnp.array([0.01, 0.3, 0.8])
        x0, u = jax.random.normal(jax.random.key(0), (2, 3, 2))
        noised = perturb(process, jax.random.key(1), x0, t)
        beta, integral = 0.1 + 19.9 * np.asarray(t), 0.1 * np.asarray(t) + 9.95 * np.asarray(t) ** 2
        alpha, sigma = np.exp(-0.5 * integral), np.sqrt(1 - np.exp(-integral))
        a, b = -0.5 * beta * alpha, 0.5 * beta * alpha**2 / sigma
        want = np.sum((a[:, None] * x0 + b[:, None] * noised.eps - u) ** 2, 1)
        denoiser = from_network(process, "velocity", lambda x, t: u)
        np.testing.assert_allclose(FlowMatching()(denoiser, noised, jax.random.key(2)), want, rtol=1e-9)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", CHAINS)
def test_eps_is_twice_dsm(name):
    """THEORY 13: sigma s = -eps, so the simple loss is sigma^2-weighted DSM, example by example."""
    losses = EpsilonMSE("sum"), EpsilonMSE("mean"), DSM()
    both, mean, dsm = (at(loss, name, jnp.array([0.3, 0.2, -0.5]), *first(name, 100)) for loss in losses)
    np.testing.assert_allclose(both, 2 * dsm, rtol=1e-4)
    np.testing.assert_allclose(mean, dsm, rtol=1e-4)


def test_dsm_in_numbers():
    """One example by hand: sigma 0.5, eps (1, -2), score (0.4, 2): 1/2 ((0.2 + 1)^2 + (1 - 2)^2) = 1.22."""
    process = ncsn(0.25, 0.5, 2)
    noised = perturb(process, jax.random.key(0), jnp.zeros((1, 2)), jnp.array([1]))._replace(
        eps=jnp.array([[1.0, -2.0]])
    )
    score = jnp.array([[0.4, 2.0]])
    denoiser = Denoiser(process, lambda x, t: Prediction(x, -0.5 * score, score))
    loss = DSM()(denoiser, noised, jax.random.key(0))
    np.testing.assert_allclose(loss, [1.22], rtol=1e-6)


def linear(matrix, process=None):
    return Denoiser(process or ncsn(0.5, 2.0, 3), lambda x, t: Prediction(x, x, x @ matrix.T))


MATRIX = ((-1.0, 2.0, 0.0), (0.5, -1.3, 1.0), (-0.7, 0.2, -0.4))  # not symmetric


def one_point():
    """A point at sigma = 2, and sigma^2 (tr J + 1/2 ||s||^2) of the linear score there."""
    matrix, x = np.array(MATRIX), np.array([[0.3, -0.4, 0.2]])
    noised = perturb(ncsn(0.5, 2.0, 3), jax.random.key(0), jnp.zeros((1, 3)), jnp.array([2]))
    want = 4.0 * (matrix.trace() + 0.5 * ((matrix @ x[0]) ** 2).sum())
    return noised._replace(x=jnp.asarray(x, jnp.float32)), want


@pytest.mark.quick(1)
@pytest.mark.parametrize("shape", [(3,), (1, 3, 1)])
def test_ism_is_the_trace_and_half_the_norm(shape):
    """Hyvarinen 2005, eq. 4: exact, and for data of any shape."""
    noised, want = one_point()
    image = jax.tree.map(lambda a: a.reshape(1, *shape) if a.ndim == 2 else a, noised)

    def predict(x, t):
        score = (x.reshape(-1, 3) @ jnp.array(MATRIX).T).reshape(x.shape)
        return Prediction(x, x, score)

    denoiser = Denoiser(ncsn(0.5, 2.0, 3), predict)
    np.testing.assert_allclose(ISM()(denoiser, image, jax.random.key(0)), [want], rtol=1e-5)


def test_ism_refuses_what_it_cannot_afford():
    noised, _ = one_point()
    with pytest.raises(ValueError, match=r"data's 3 dimensions, .* max_dims=2: take loss=ssm or loss.max_dims=3"):
        ISM(2)(linear(jnp.array(MATRIX)), noised, jax.random.key(0))


@pytest.mark.quick(2)
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("loss", [SSM(), SSM(variance_reduced=False), FDSSM()])
def test_sliced_losses_are_unbiased_for_the_trace(projection, loss):
    """THEORY 9: over v they average to sigma^2 (tr J + 1/2 ||s||^2), which is ISM; differences of a line are exact."""
    noised, want = one_point()
    many = jax.tree.map(lambda a: jnp.repeat(a, 60_000, 0), noised)
    loss = dataclasses.replace(loss, projection=projection)
    found = np.asarray(loss(linear(jnp.array(MATRIX)), many, jax.random.key(5)), np.float64)
    assert abs(found.mean() - want) < 4.5 * found.std() / np.sqrt(len(found))
    assert found.min() < 0, "the first term may be negative: no norm stands around it"


@pytest.mark.slow
def test_finite_differences_are_of_second_order():
    """Pang et al. 2020: along the same directions it is SSM but for O(step^2): half the step, a quarter of the bias."""
    with jax.enable_x64(True):
        process, x = ncsn(0.1, 5.0, 10), jnp.asarray(np.random.default_rng(0).standard_normal((20, 3)))
        noised = Noised(x, x, x, jnp.arange(20) % 7)
        matrix = jnp.array(MATRIX)

        denoiser = Denoiser(process, lambda x, t: Prediction(x, x, jnp.sin(x @ matrix.T) - x))
        exact = SSM(2, "gaussian")(denoiser, noised, jax.random.key(0))
        gaps = [
            np.abs(FDSSM(2, "gaussian", step)(denoiser, noised, jax.random.key(0)) - exact)
            for step in (0.02, 0.01, 0.005)
        ]
        assert (gaps[0] > 1e-10).all()
        np.testing.assert_allclose(np.log2(gaps[:-1]) - np.log2(gaps[1:]), 2, atol=0.1)


@pytest.mark.parametrize("data", [(4,), (3, 5)])
def test_spheres_are_of_radius_sqrt_d_each(data):
    """Each slice by itself, not all of an example's together."""
    v = np.asarray(PROJECTIONS["sphere"](jax.random.key(0), (7, *data))).reshape(7, -1)
    np.testing.assert_allclose((v**2).sum(1), v.shape[1], rtol=1e-5)


@pytest.mark.slow
def test_ssm_variance():
    """By hand for a linear score: the reduced form and Rademacher directions have less variance, m slices 1/m of it.

    With S the symmetric part of the matrix and Gaussian v, Var v'Sv = 2 |S|^2, Var (v's)^2 / 2 = |s|^4 / 2 and their
    covariance is s'Ss; with v of +1 and -1 the diagonal of S is without variance.
    """
    noised, _ = one_point()
    many = jax.tree.map(lambda a: jnp.repeat(a, 40_000, 0), noised)
    matrix = np.array(MATRIX)
    both, s = 0.5 * (matrix + matrix.T), matrix @ np.asarray(noised.x, np.float64)[0]
    reduced = 2 * (both**2).sum()
    want = {
        (1, "gaussian", True): reduced,
        (1, "gaussian", False): reduced + 0.5 * (s @ s) ** 2 + 2 * s @ both @ s,
        (1, "rademacher", True): reduced - 2 * (both.diagonal() ** 2).sum(),
        (4, "gaussian", True): reduced / 4,
    }
    for options, variance in want.items():
        found = SSM(*options)(linear(jnp.array(MATRIX)), many, jax.random.key(2))
        np.testing.assert_allclose(np.asarray(found, np.float64).var(), 16 * variance, rtol=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [ISM(), SSM(), FDSSM()])
def test_implicit_losses_fit_a_gaussian(loss):
    """The minimum over a linear score -a x is at a = 1 / variance, and the loss does not use x_0 or eps."""
    process, data = ncsn(0.3, 0.6, 2), gaussian((0.0, 0.0), 0.8)
    t = jnp.ones(200_000, jnp.int32)
    noised = perturb(process, jax.random.key(1), data.sample(jax.random.key(0), len(t)), t)
    blind = noised._replace(x0=jnp.full_like(noised.x0, jnp.nan), eps=jnp.full_like(noised.eps, jnp.nan))

    def mean_loss(a):
        return loss(linear(-a * jnp.eye(2), process), blind, jax.random.key(2)).mean()

    # Quadratic in a: two slopes give its minimum exactly.
    low, high = (float(jax.grad(mean_loss)(jnp.float32(a))) for a in (0.0, 2.0))
    np.testing.assert_allclose(-2 * low / (high - low), 1 / (0.8**2 + 0.6**2), rtol=0.01)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EpsilonMSE("average"),
        lambda: SSM(0),
        lambda: SSM(projection="cube"),
        lambda: FDSSM(0),
        lambda: FDSSM(step=0.0),
        lambda: ISM(0),
        lambda: VLB(None, "bytes"),
        lambda: VLB(None, "bits", "huge"),
        lambda: Hybrid(None, 0.0),
        lambda: Hybrid(width=0.0),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match="needed"):
        make()


@pytest.mark.quick(1)
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_are_unreduced_and_keyed_by_example(variant):
    """Example i gets the same number in a batch of 3 as in one of 8."""
    name, loss = "ddpm" if allowed("ddpm", VARIANTS[variant]) else "flow", VARIANTS[variant]
    whole, part = (at(loss, name, jnp.array([0.3, 0.2, -0.5]), *first(name, count)) for count in (8, 3))
    np.testing.assert_allclose(part, whole[:3], rtol=1e-5)
    assert len(np.unique(np.asarray(whole))) == 8


# --- the arithmetic


def off_by_size(dtype, size, sigma, rotated):
    """How far FD-SSM in `dtype` is from ISM in double precision at the same x, relative to the trace.

    The data are as wide as the noise, around a point of entries of this size. Rotated, the network rounds its input as
    any layer does; else it only subtracts, which is exact.
    """
    process, count = ncsn(sigma, 10.0, 2), 4000
    rng = np.random.default_rng(0)
    mean = size * np.array([1.0, -0.7, 0.9, -1.0])
    turn = np.linalg.qr(rng.standard_normal((4, 4)))[0] if rotated else np.eye(4)
    x = jnp.asarray(mean + math.sqrt(2) * sigma * rng.standard_normal((count, 4)), dtype)

    def score(x, t):
        turn_, mean_ = jnp.asarray(turn, x.dtype), jnp.asarray(mean[None], x.dtype)
        y = ((x @ turn_ - mean_ @ turn_) @ turn_.T if rotated else x - mean_) / (math.sqrt(2) * sigma)
        return Prediction(x, x, -(y + 0.5 * jnp.sin(2 * y)) / (math.sqrt(2) * sigma))

    def of(loss, x):
        noised = Noised(x, x, x, jnp.zeros(count, jnp.int32))
        return np.asarray(jax.jit(loss)(Denoiser(process, score), noised, jax.random.key(0)), np.float64)

    exact = of(ISM(), x.astype(jnp.float64))
    trace = exact - 0.5 * sigma**2 * np.sum(np.asarray(score(x.astype(jnp.float64), 0).score) ** 2, 1)
    # For each example by itself: the mean over many would hide rounding errors, which are nearly random.
    return np.sqrt(np.mean((of(FDSSM().exact(4), x) - exact) ** 2)) / abs(trace.mean())


@pytest.mark.quick(3)
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("size", [1.0, 30.0, 300.0, 1000.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_finite_difference_keeps_its_digits_whatever_the_size_of_the_data(dtype, size, sigma, rotated):
    """The error is below a third of the error that the docstring of `FDSSM` states."""
    with jax.enable_x64(True):
        r = float(jnp.finfo(dtype).eps) / 2 * size / sigma
        stated = max(0.01, r ** (1 / 3)) ** 2 + min(r / 0.01, r ** (2 / 3))
        assert stated < 0.07
        assert off_by_size(dtype, size, sigma, rotated) < stated / 3


def test_the_displacement_is_the_one_that_was_made():
    """At one point of size 1000, where x + h v has few digits left, no average hides what rounding does to h v."""
    process, x = ncsn(0.01, 10.0, 2), jnp.array([[1000.0, -777.7]], jnp.float32)
    noised = Noised(x, x, x, jnp.zeros(1, jnp.int32))
    denoiser = Denoiser(process, lambda x, t: Prediction(x, x, -(x - jnp.array([[1000.0, -777.7]])) * 1e4))
    found = jax.jit(FDSSM().exact(2))(denoiser, noised, jax.random.key(0))
    slope = -2.0  # sigma^2 tr J, for J = -I / sigma^2
    np.testing.assert_allclose(found - 0.5 * 1e-4 * jnp.sum(denoiser(x, 0).score ** 2, 1), slope, rtol=1e-3)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("x64", "dtype"), [(False, "float32"), (True, "float32"), (True, "float64")])
def test_losses_keep_the_dtype_of_the_data(x64, dtype, name):
    """Every loss under every process, weighted too, with times and tables in the precision that JAX has as default."""
    with jax.enable_x64(x64):
        process = PROCESSES[name]()
        x0 = TWO_MODES.sample(jax.random.key(0), 4).astype(dtype)
        t = Own().draw(process, (), jax.random.key(1), 4).t
        noised = perturb(process, jax.random.key(2), x0, t)
        losses = columns()
        for weighting, make in WEIGHTINGS.items():
            if weighting != "own":
                losses[f"x0-{weighting}"] = Weighted(X0MSE(), make())
        for variant, loss in losses.items():
            if loss.refuse(process) is not None:
                continue

            def network(x, t, twice=loss.trains_variance):
                return jnp.concatenate([jnp.tanh(x)] * 2, 1) if twice else jnp.tanh(x)

            denoiser = from_network(process, "v", network, loss.trains_variance)
            found = jax.eval_shape(loss, denoiser, noised, jax.random.key(3))
            assert found.dtype == dtype and found.shape == (4,), variant
