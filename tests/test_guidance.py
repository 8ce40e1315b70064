"""What steers the samples, against closed forms: classes, clips, and the posterior given a linear measurement."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusal import refused
from scipy.integrate import solve_ivp
from test_train import fit, same

from scoregen import report, run, train
from scoregen.config import load
from scoregen.data import SOURCES, Dataset, in_turns
from scoregen.denoiser import of_x0
from scoregen.experiment import assemble
from scoregen.guidance import (
    METHODS,
    SPREADS,
    ClassifierFree,
    Clip,
    Colorize,
    DynamicThreshold,
    Grey,
    Inpaint,
    Likelihood,
    Matrix,
    Pixels,
    Replace,
)
from scoregen.judge import likelihoods
from scoregen.nets import MLP, NETS
from scoregen.oracle import TWO_MODES, Mixture, gaussian
from scoregen.process import EDM, PROCESSES, VE, VP, Flow, ddpm, example_keys, rows
from scoregen.samplers import (
    Adaptive,
    Ancestral,
    DPMSolver,
    EDMHeun,
    EvenLogSNR,
    Heun,
    Karras,
    UniPC,
    decode,
    encode,
    interpolate,
    sample,
    slerp,
)

MEAN = np.array([0.3, -0.5, 0.2])
COV = np.array([[1.0, 0.6, -0.3], [0.6, 0.8, 0.1], [-0.3, 0.1, 0.5]])
A = np.array([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]])
Y = np.array([[1.2, -0.7]])
STD = 0.4


def correlated(process, mean=MEAN, cov=COV):
    """The exact denoiser of N(mean, cov): m + alpha C (alpha^2 C + sigma^2 I)^-1 (x - alpha m)."""
    mean, cov = jnp.asarray(mean)[None], jnp.asarray(cov)

    def predict(x, t):
        m, c = mean.astype(x.dtype), cov.astype(x.dtype)
        alpha, sigma = rows(process.alpha(t), x), rows(process.sigma(t), x)
        total = alpha[..., None] ** 2 * c[None] + sigma[..., None] ** 2 * jnp.eye(len(c), dtype=x.dtype)[None]
        return of_x0(process, x, t, m + alpha * (jnp.linalg.solve(total, (x - alpha * m)[..., None])[..., 0] @ c))

    return predict


def conditioned(mean, cov, a, y, std):
    """The law of x ~ N(mean, cov) given a x + std z = y."""
    gain = cov @ a.T @ np.linalg.inv(a @ cov @ a.T + std**2 * np.eye(len(a)))
    return mean + gain @ (y - a @ mean), cov - gain @ a @ cov


def law(draws):
    return draws.mean(0), np.cov(draws.T)


def agrees(draws, mean, cov, extra=0.0):
    """Mean and covariance within five standard errors, and what error is allowed besides, in standard deviations."""
    ours, spread = law(np.asarray(draws, np.float64))
    scale = np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
    np.testing.assert_array_less(np.abs(ours - mean) / np.sqrt(np.diag(cov)), 5 / math.sqrt(len(draws)) + extra)
    np.testing.assert_array_less(np.abs(spread - cov) / scale, 5 * math.sqrt(2 / len(draws)) + 2 * extra)


# --- the range of the data


def fixed(x0):
    """A denoiser that always says x0."""
    return lambda x, t: of_x0(VP(), x, t, jnp.asarray(x0, x.dtype))


def test_a_clip_by_hand():
    """x0 held in the range, and eps what is left of x: (x - alpha x0) / sigma."""
    process, x, t = VP(), jnp.array([[0.4, 0.4, 0.4]]), jnp.array([0.3])
    found = Clip(-1.0, 0.5)(process, fixed([[-3.0, 0.2, 0.7]]))(x, t)
    np.testing.assert_array_equal(found.x0, np.float32([[-1.0, 0.2, 0.5]]))
    alpha, sigma = float(process.alpha(t)[0]), float(process.sigma(t)[0])
    eps = (0.4 - alpha * np.array([[-1.0, 0.2, 0.5]])) / sigma
    np.testing.assert_allclose(found.eps, eps, rtol=1e-5)
    np.testing.assert_allclose(found.score, -eps / sigma, rtol=1e-5)


def test_a_dynamic_threshold_by_hand():
    """In [0, 2] about 1: of |u| = 0, 1, 2, 3, 4 the quantile 3/4 is s = 3, so u is clipped to 3 and divided by it."""
    x, t = jnp.zeros((2, 5)), jnp.array([0.3, 0.3])
    x0 = 1 + np.array([[0.0, -1.0, 2.0, -3.0, 4.0], [0.0, 0.1, -0.2, 0.3, -0.9]])
    found = DynamicThreshold(0.0, 2.0, quantile=0.75)(VP(), fixed(x0))(x, t)
    want = 1 + np.array([[0.0, -1 / 3, 2 / 3, -1.0, 1.0], [0.0, 0.1, -0.2, 0.3, -0.3]])
    want[1, 4] = 1 - 0.9  # within the range nothing is moved: s is 1
    np.testing.assert_allclose(found.x0, want, atol=1e-6)


# --- nothing known


NOTHING = {
    "clip": Clip(-math.inf, math.inf),
    "dynamic": DynamicThreshold(-100.0, 100.0),
    "guidance at 1": ClassifierFree(TWO_MODES.predict(VP()), 1.0),
    "guidance by itself": ClassifierFree(TWO_MODES.predict(VP()), 3.0),
    "replace": Replace(Pixels(np.zeros(2, bool)), jnp.zeros((1, 0))),
    **{f"{name}, no pixels": Likelihood(Pixels(np.zeros(2, bool)), jnp.zeros((1, 0)), 0.1, name) for name in SPREADS},
    **{f"{name}, all noise": Likelihood(Pixels(np.ones(2, bool)), jnp.ones((1, 2)), 1e6, name) for name in SPREADS},
    **{f"{name}, no scale": Likelihood(Pixels(np.ones(2, bool)), jnp.ones((1, 2)), 0.1, name, 0.0) for name in SPREADS},
}


@pytest.mark.parametrize("name", NOTHING)
def test_where_nothing_is_known_nothing_changes(name):
    process, predict = VP(), TWO_MODES.predict(VP())
    x, t = jax.random.normal(jax.random.key(0), (4, 2)), jnp.array([0.02, 0.3, 0.7, 1.0])
    ours, plain = NOTHING[name](process, predict)(x, t), predict(x, t)
    for field in ("x0", "eps", "score"):
        np.testing.assert_allclose(getattr(ours, field), getattr(plain, field), rtol=1e-3, atol=1e-4)


# --- classes


def test_guidance_is_linear_in_all_that_is_said():
    """Ho & Salimans 2022, eq. 6, with w = scale - 1; and the density's gradient is still the score."""
    process, one, two = VP(), TWO_MODES.predict(VP()), gaussian((0.5, 0.5), 0.4).predict(VP())
    x, t = jax.random.normal(jax.random.key(0), (4, 2)), jnp.array([0.02, 0.3, 0.7, 1.0])
    guided = ClassifierFree(one, 2.5)(process, two)
    found, w = guided(x, t), 1.5
    for field in ("x0", "eps", "score", "log_density"):
        want = (1 + w) * getattr(two(x, t), field) - w * getattr(one(x, t), field)
        np.testing.assert_allclose(getattr(found, field), want, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: guided(x, t).log_density.sum())(x)
    np.testing.assert_allclose(gradient, found.score, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.x0, of_x0(process, x, t, found.x0).x0)
    np.testing.assert_allclose(found.eps, of_x0(process, x, t, found.x0).eps, rtol=1e-3, atol=1e-3)
    learned = lambda x, t: one(x, t)._replace(between=jnp.full_like(x, 0.25))  # noqa: E731
    assert (ClassifierFree(two, 2.0)(process, learned)(x, t).between == 0.25).all()  # the conditional one's


def never(x, t):
    raise AssertionError("asked")


def test_at_the_ends_of_the_scale_the_other_is_not_asked():
    predict = TWO_MODES.predict(VP())
    assert ClassifierFree(never, 1.0)(VP(), predict) is predict
    assert ClassifierFree(predict, 0.0)(VP(), never) is predict


RING = 2 * np.pi * np.arange(8) / 8
EIGHT = Mixture((1 / 8,) * 8, tuple(zip(np.cos(RING), np.sin(RING), strict=True)), (0.15,) * 8)


def of_class(process, labels):
    """The exact denoiser of the eight Gaussians' components, one label an example."""
    means = jnp.asarray(EIGHT.means, jnp.float32)[jnp.asarray(labels)]

    def predict(x, t):
        alpha, sigma = rows(process.alpha(t), x), rows(process.sigma(t), x)
        return of_x0(process, x, t, means + alpha * 0.15**2 / (alpha**2 * 0.15**2 + sigma**2) * (x - alpha * means))

    return predict


@pytest.mark.parametrize("predictor", [Ancestral(), EDMHeun(), DPMSolver(), UniPC(), Adaptive(1e-3, 1e-3)])
def test_at_scale_1_the_draws_are_those_of_the_class(predictor):
    """Every example its own class, under every kind of sampler: a solver with steps of its own for each example too."""
    process, n = VP(t_min=1e-3), 2 if isinstance(predictor, Adaptive) else 300 if predictor == Ancestral() else 40
    labels = np.arange(2400) % 8
    guided = ClassifierFree(EIGHT.predict(process), 1.0)(process, of_class(process, labels))
    draw = lambda key: sample(  # noqa: E731
        process, guided, key, (2400, 2), predictor, n=n, grid=EvenLogSNR(), denoise=False
    )
    draws = np.asarray(jax.jit(draw)(jax.random.key(1)))
    agrees(draws - np.array(EIGHT.means)[labels], np.zeros(2), 0.15**2 * np.eye(2), extra=0.03)


def guided_flow(x, scale, means, std, process=VP()):
    """Where the ODE of guidance ends, from x at t = 1: in NumPy, on the line, for classes N(m, std^2), the first."""
    means = np.array(means)

    def field(t, x):
        integral = process.beta_min * t + 0.5 * (process.beta_max - process.beta_min) * t * t
        beta, alpha = process.beta_min + (process.beta_max - process.beta_min) * t, math.exp(-0.5 * integral)
        variance = alpha**2 * std**2 - math.expm1(-integral)
        each = (alpha * means[:, None] - x[None]) / variance
        share = np.exp(-0.5 * variance * each**2)
        any_ = (share / share.sum(0) * each).sum(0)
        return -0.5 * beta * (x + any_ + scale * (each[0] - any_))

    return solve_ivp(field, (1.0, process.t_min), x, rtol=1e-8, atol=1e-8).y[:, -1]


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 7.5])
def test_the_law_of_guidance_is_that_of_its_ode(scale):
    """Two classes N(1, 0.5^2) and N(-1, 0.5^2): quantile by quantile, against an integration that shares nothing."""
    process = VP()
    quantiles = np.linspace(-2.0, 2.0, 9)
    want = guided_flow(quantiles, scale, (1.0, -1.0), 0.5)
    both = Mixture((0.5, 0.5), ((1.0,), (-1.0,)), (0.5, 0.5)).predict(process)
    guided = ClassifierFree(both, scale)(process, gaussian((1.0,), 0.5).predict(process))
    start = jnp.asarray(quantiles[:, None], jnp.float32)
    ours = sample(process, guided, jax.random.key(0), start.shape, Adaptive(), n=2, start=start, denoise=False)
    np.testing.assert_allclose(ours[:, 0], want, atol=2e-3)
    if scale == 1.0:
        np.testing.assert_allclose(want, 1 + 0.5 * quantiles, atol=0.02)  # the class itself
    if scale > 1:  # farther from the other class, and closer together
        assert want[4] > 1.02 and np.ptp(want) < 0.9 * np.ptp(1 + 0.5 * quantiles)


# --- measurements


SHAPE = (2, 2, 3)
SEEN = np.arange(12).reshape(SHAPE) % 5 != 1
MEASURES = {
    "pixels": (Pixels(SEEN), np.eye(12)[SEEN.ravel()]),
    "grey": (Grey(3), np.kron(np.eye(4), np.full((1, 3), 1 / 3))),
    "matrix": (Matrix(RANDOM := np.random.default_rng(0).standard_normal((4, 12))), RANDOM),
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", MEASURES)
def test_a_measurement_is_its_matrix(name):
    """A x, (noise + signal A A^T)^-1 y, and the nearest point with A x = y, by NumPy's pseudo-inverse."""
    measure, matrix = MEASURES[name]
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((3, *SHAPE)), rng.standard_normal((3, len(matrix)))
    flat = x.reshape(3, -1)
    np.testing.assert_allclose(measure(jnp.asarray(x)), flat @ matrix.T, rtol=1e-9)
    noise, signal = np.array([0.3, 0.1, 2.0]), np.array([1.0, 0.2, 3.0])
    for i, ours in enumerate(np.asarray(measure.solve(jnp.asarray(y), jnp.asarray(noise), jnp.asarray(signal)))):
        total = noise[i] * np.eye(len(matrix)) + signal[i] * matrix @ matrix.T
        np.testing.assert_allclose(ours, np.linalg.solve(total, y[i]), rtol=1e-8)
    nearest = np.asarray(measure.nearest(jnp.asarray(x), jnp.asarray(y))).reshape(3, -1)
    np.testing.assert_allclose(nearest, flat + (y - flat @ matrix.T) @ np.linalg.pinv(matrix).T, rtol=1e-8, atol=1e-10)


def test_colours_are_replaced_in_orthogonal_coordinates():
    """Song et al. 2021 (appendix I.3): rotate the channels so that grey is one coordinate, put it, and rotate back."""
    basis = np.linalg.qr(np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).T)[0].T
    rng = np.random.default_rng(0)
    x, other = rng.standard_normal((2, 3, 2, 2, 3))
    turned = np.einsum("ij,bhwj->bhwi", basis, x)
    turned[..., 0] = np.einsum("j,bhwj->bhw", basis[0], other)
    want = np.einsum("ij,bhwi->bhwj", basis, turned)
    grey = Grey()
    np.testing.assert_allclose(grey.nearest(jnp.asarray(x), grey(jnp.asarray(other))), want, atol=1e-5)


def test_a_matrix_that_says_a_thing_twice_is_refused():
    with pytest.raises(ValueError, match="2 rows of rank 1"):
        Matrix(np.array([[1.0, 2.0], [2.0, 4.0]]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("name", ["ncsn", "subvp", "edm"])
def test_an_estimate_given_a_measurement(name, spread):
    """On Gaussian data x0 has the covariance V = (C^-1 + alpha^2 / sigma^2)^-1 given x_t, and the gain is
    V A^T (std^2 + A W A^T)^-1, where W is V (the exact E[x0 | x_t, y]), r^2 I or 0."""
    process = PROCESSES[name]()
    t = process.grid(6)[1:]
    x = jax.random.normal(jax.random.key(0), (5, 3), jnp.float64) * rows(process.sigma(t), jnp.ones((5, 3)))
    predict = correlated(process)
    scale = 1.0 if spread == "jacobian" else 0.7
    found = Likelihood(Matrix(A), jnp.asarray(Y), STD, spread, scale)(process, predict)(x, t)
    plain, d2 = np.asarray(predict(x, t).x0), process.data_std**2
    for i in range(5):
        alpha, sigma = float(process.alpha(t)[i]), float(process.sigma(t)[i])
        v = np.linalg.inv(np.linalg.inv(COV) + (alpha / sigma) ** 2 * np.eye(3))
        r2 = sigma**2 * d2 / (alpha**2 * d2 + sigma**2)
        w = {"none": np.zeros((3, 3)), "isotropic": r2 * np.eye(3), "jacobian": v}[spread]
        gain = v @ A.T @ np.linalg.inv(STD**2 * np.eye(2) + A @ w @ A.T)
        want = plain[i] + scale * gain @ (Y[0] - A @ plain[i])
        np.testing.assert_allclose(found.x0[i], want, rtol=1e-4, atol=1e-5)
        if spread == "jacobian":  # and that is the posterior's, from x_t and y at once
            precision = np.linalg.inv(COV) + (alpha / sigma) ** 2 * np.eye(3) + A.T @ A / STD**2
            shift = np.linalg.inv(COV) @ MEAN + alpha / sigma**2 * np.asarray(x)[i] + A.T @ Y[0] / STD**2
            np.testing.assert_allclose(found.x0[i], np.linalg.solve(precision, shift), rtol=1e-4, atol=1e-5)


SAMPLERS = {
    "ancestral": (VP(), Ancestral(), 400, 0.03),
    "DDIM": (VP(), Ancestral(0.0), 200, 0.03),
    "edm": (EDM(), EDMHeun(), 40, 0.03),
    "ve unipc": (VE(0.005, 50.0), UniPC(), 40, 0.03),
    "vp heun": (VP(), Heun(), 100, 0.03),
    "vp adaptive": (VP(), Adaptive(1e-4, 1e-4), 2, 0.03),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_given_a_measurement_are_the_posteriors(name):
    """Mean and covariance of the closed form, on Gaussian data with the moments of x0 given x_t."""
    process, predictor, n, extra = SAMPLERS[name]
    predict = Likelihood(Matrix(A), jnp.asarray(Y, jnp.float32), STD)(process, correlated(process))
    grid = EvenLogSNR() if name != "vp adaptive" else Karras()
    draw = jax.jit(lambda key: sample(process, predict, key, (4000, 3), predictor, n=n, grid=grid, denoise=False))
    mean, cov = conditioned(MEAN, COV, A, Y[0], STD)
    agrees(draw(jax.random.key(0)), mean, cov, extra)
    assert np.abs(mean - MEAN).max() > 0.5  # it does say something


def test_each_example_may_have_its_own_measurement():
    """Also where every example has steps of its own."""
    process, y = VP(), np.linspace(-2.0, 2.0, 5, dtype=np.float32)[:, None]
    predict = Likelihood(Pixels(np.array([True, False])), jnp.asarray(y), 0.3)(
        process, gaussian((0.0, 0.0), 1.0).predict(process)
    )
    for predictor, n in ((Adaptive(1e-4, 1e-4), 2), (Heun(), 100)):
        start = jnp.zeros((5, 2))
        ours = sample(process, predict, jax.random.key(0), (5, 2), predictor, n=n, start=start)
        np.testing.assert_allclose(ours, np.concatenate([y / (1 + 0.3**2), 0 * y], 1), atol=0.02)


def test_the_bias_of_posterior_sampling_without_a_covariance():
    """Without V (Chung et al. 2023) draws of N(0, 1) given y have the mean y (1 - e^(-1/std^2)), not y / (1 + std^2),
    and the variance std^2 (1 - e^(-2/std^2)) / 2, not std^2 / (1 + std^2).

    With v = 1 + sigma^2 / alpha^2 from infinity to 1, dm/dv = m / v - (y - m / v) / (v std^2) and
    ds/dv = 2 s (1 / v + 1 / (v std)^2) - 1, for the mean m and the variance s of x / alpha.
    """
    process, y, std = VP(), 1.5, 0.5
    predict = Likelihood(Pixels(np.array([True])), jnp.array([[y]]), std, "none")(
        process, gaussian((0.0,), 1.0).predict(process)
    )
    draws = sample(
        process, predict, jax.random.key(0), (6000, 1), Ancestral(), n=2000, grid=EvenLogSNR(), denoise=False
    )
    mean, variance = y * -math.expm1(-1 / std**2), 0.5 * std**2 * -math.expm1(-2 / std**2)
    draws = np.asarray(draws[:, 0])
    assert abs(draws.mean() - mean) < 5 * math.sqrt(variance / 6000) + 0.005
    assert abs(draws.var() / variance - 1) < 5 * math.sqrt(2 / 6000) + 0.02
    assert mean == pytest.approx(0.982 * y, rel=1e-3) and math.sqrt(variance) == pytest.approx(0.354, abs=1e-3)


def test_the_bias_of_replacement():
    """Of N(0, 1) twice with correlation r, the first put to y: the other's mean is y (1 - sqrt(1 - r^2)) / r, not r y.

    With v = 1 + sigma^2 / alpha^2 and D = v^2 - r^2, dm/dv = (v m - r y) / D; the variance from
    dc/dv = c (1 / (v - 1) + v / D) - r (v - 1) / D and ds/dv = 2 (v s - r c) / D - 1.
    """
    r, y, process = 0.8, 1.5, VP()
    predict = Replace(Pixels(np.array([True, False])), jnp.array([[y]]))(
        process, correlated(process, np.zeros(2), np.array([[1, r], [r, 1]]))
    )
    draws = sample(
        process, predict, jax.random.key(0), (6000, 2), Ancestral(), n=1000, grid=EvenLogSNR(), denoise=False
    )
    ours = np.asarray(draws)[:, 1]
    v = 1 + np.logspace(-6, 6, 200_001)
    root = np.sqrt(v * v - r * r)
    inner = 2 * (v - 1) * (v - root) / root**4 + 1 / root**2
    variance = (1 - r * r) * np.trapezoid(inner, v)
    mean = y * (1 - math.sqrt(1 - r * r)) / r
    assert mean == pytest.approx(0.5 * y) and math.sqrt(variance) == pytest.approx(0.734, abs=1e-3)
    assert abs(ours.mean() - mean) < 5 * math.sqrt(variance / 6000) + 0.005
    assert abs(ours.var() / variance - 1) < 5 * math.sqrt(2 / 6000) + 0.02


INPAINTERS = [Ancestral(), EDMHeun(), UniPC(), Adaptive(1e-2, 1e-2)]


@pytest.mark.parametrize("predictor", INPAINTERS)
def test_known_pixels_stay_to_the_last_bit(predictor):
    process, clean = VP(), jax.random.normal(jax.random.key(5), (3, 4, 4, 1))
    inpaint = Inpaint(hidden="left")
    hold = Clip(-0.5, 0.5)(process, lambda x, t: of_x0(process, x, t, jnp.tanh(x)))
    ours = np.asarray(
        sample(
            process, inpaint(clean)(process, hold), jax.random.key(0), clean.shape, predictor, n=8, grid=EvenLogSNR()
        )
    )
    np.testing.assert_array_equal(ours[:, :, 2:], np.asarray(clean)[:, :, 2:])
    assert np.abs(ours[:, :, :2]).max() <= 0.5


def test_what_is_hidden():
    """Each region by its count and its corners; and grey for colours."""
    clean = jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)
    gone = {
        "left": [[0, 1]] * 4, "right": [[2, 3]] * 4, "top": [[0, 1, 2, 3]] * 2 + [[]] * 2,
        "bottom": [[]] * 2 + [[0, 1, 2, 3]] * 2, "box": [[], [1, 2], [1, 2], []],
    }  # fmt: skip
    for name, columns in gone.items():
        want = np.array(clean)
        for i, line in enumerate(columns):
            want[0, i, line, 0] = -7.0
        np.testing.assert_array_equal(Inpaint(hidden=name).seen(clean, -7.0), want)
        assert Inpaint(hidden=name).count((4, 4, 1)) == (want != -7.0).sum()
    colours = jax.random.normal(jax.random.key(0), (2, 3, 3, 3))
    seen = Colorize().seen(colours, 0.0)
    np.testing.assert_allclose(seen, np.repeat(np.asarray(colours).mean(-1, keepdims=True), 3, -1), atol=1e-6)
    with pytest.raises(ValueError, match="one channel"):
        Colorize().measure((8, 8, 1))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_wrapper_that_it_names(method):
    process, clean = VP(), jax.random.normal(jax.random.key(0), (2, 2, 2, 3))
    predict = lambda x, t: of_x0(process, x, t, jnp.tanh(x + 0.3 * jnp.roll(x, 1, -1)))  # noqa: E731
    x, t = jax.random.normal(jax.random.key(1), clean.shape), jnp.array([0.2, 0.6])
    ours = Colorize(method=method, std=0.3, scale=0.8)(clean)(process, predict)(x, t).x0
    grey, spread = Grey(3), {"dps": "none", "pigdm": "isotropic", "moments": "jacobian"}.get(method)
    by_hand = Replace(grey, grey(clean)) if spread is None else Likelihood(grey, grey(clean), 0.3, spread, 0.8)
    np.testing.assert_array_equal(ours, by_hand(process, predict)(x, t).x0)


def test_a_covariance_that_is_none_is_made_one():
    """A network's Jacobian may be lopsided or negative: only its symmetric, positive part counts."""
    process, x, t = VE(), jnp.array([[0.3, -0.2]]), jnp.array([0.7])
    lopsided = np.array([[0.4, 0.5], [0.1, -0.9]])
    predict = lambda x, t: of_x0(process, x, t, x @ jnp.asarray(lopsided.T, x.dtype))  # noqa: E731
    found = Likelihood(Pixels(np.ones(2, bool)), jnp.array([[1.0, 2.0]]), 0.5)(process, predict)(x, t)
    ratio = float(process.sigma(t)[0]) ** 2
    values, vectors = np.linalg.eigh(ratio * 0.5 * (lopsided + lopsided.T))
    total = vectors @ np.diag(0.25 + np.maximum(values, 0)) @ vectors.T
    plain = lopsided @ np.array([0.3, -0.2])
    want = plain + ratio * lopsided.T @ np.linalg.solve(total, np.array([1.0, 2.0]) - plain)
    np.testing.assert_allclose(found.x0[0], want, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clip(1.0, 1.0), "low < high"),
        (lambda: DynamicThreshold(-1.0, math.inf), "without a range"),
        (lambda: DynamicThreshold(-1.0, 1.0, 0.0), "quantile=0.0"),
        (lambda: Likelihood(Grey(), Y, 0.0), "std=0.0"),
        (lambda: Likelihood(Grey(), Y, 0.1, "all"), "spread='all': one of none, isotropic, jacobian"),
        (lambda: Likelihood(Grey(), Y, 0.1)(Flow(), never), "alpha = 0 at the noisiest level"),
        (lambda: Inpaint(hidden="middle"), "hidden='middle'"),
        (lambda: Inpaint(std=-1.0), "std=-1.0"),
        (lambda: Colorize(method="guess"), "method='guess': one of replace, dps, pigdm, moments"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- codes


# Flow from 0.2 on: there alpha = 0.8 at the least noisy level, which elsewhere is too near 1 to be missed.
@pytest.mark.parametrize(
    "process", [VE(0.01, 30.0), Flow(), Flow(0.2), ddpm(steps=100)], ids=["VE", "Flow", "Flow-0.2", "Chain"]
)
def test_codes_of_gaussian_data_are_known(process):
    """The ODE scales N(0, c^2) data by the deviations: code = alpha_0 x0 q_T / q_0, q^2 = alpha^2 c^2 + sigma^2."""
    c, x0 = 0.6, jnp.array([[0.5, -1.0], [2.0, 0.1]])
    predict = gaussian((0.0, 0.0), c).predict(process)
    code = encode(process, predict, x0, Adaptive(1e-6, 1e-6))
    alpha, sigma = (np.asarray(f(process.grid(2))) for f in (process.alpha, process.sigma))
    q = np.hypot(alpha * c, sigma)
    np.testing.assert_allclose(code, alpha[1] * x0 * q[0] / q[1], rtol=5e-6)
    back = decode(process, predict, code, Adaptive(1e-6, 1e-6))
    np.testing.assert_allclose(back, x0, rtol=5e-5)


@pytest.mark.slow
def test_round_trip_of_a_mixture():
    """x0 -> code -> x0 to the solver's tolerance, and better where that is smaller."""
    process = VP()
    with jax.enable_x64(True):
        x0, predict = TWO_MODES.sample(jax.random.key(0), 20), TWO_MODES.predict(process)
        errors = []
        for tolerance in (1e-4, 1e-8):
            solver = Adaptive(tolerance, tolerance)
            back = decode(process, predict, encode(process, predict, x0, solver), solver)
            errors.append(float(jnp.abs(back - x0).max()))
    assert errors[0] < 1e-2 and errors[1] < 1e-5 and errors[1] < 0.01 * errors[0]


def test_the_great_arc():
    """Equal lengths are kept, angles are in proportion, and the ends are the ends; along one line it is that line."""
    a, b = jnp.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), jnp.array([[0.0, 1.2, 1.6], [3.0, 3.0, 0.0]])
    f = jnp.array([0.0, 0.25, 0.5, 1.0])
    arc = np.asarray(slerp(a, b, f), np.float64)
    np.testing.assert_allclose(arc[[0, 3]], [a, b], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(arc[:, 0], axis=1), 2.0, rtol=1e-6)
    angles = np.arccos(arc[:, 0] @ [0.5, 0, 0])
    np.testing.assert_allclose(angles, np.array(f) * np.pi / 2, atol=1e-3)
    np.testing.assert_allclose(arc[:, 1, 0], 1 + 2 * np.array(f), rtol=1e-5)
    np.testing.assert_allclose(slerp(a, -a, f)[:, 0], (1 - 2 * f)[:, None] * a[:1], atol=1e-6)  # no arc is the shortest


def test_between_two_gaussian_examples():
    """Data N(0, c^2 I) and their codes differ by a factor, so the path between two of them is their own great arc."""
    process, predict = VP(), gaussian((0.0, 0.0), 0.6).predict(VP())
    a, b, f = jnp.array([[0.5, -1.0]]), jnp.array([[0.7, 0.4]]), jnp.linspace(0, 1, 3)
    ours = interpolate(process, predict, a, b, f)
    np.testing.assert_allclose(ours, slerp(a, b, f), atol=2e-3)


# --- labels in the networks, in training and in sampling


@pytest.mark.parametrize("name", ["mlp", pytest.param("unet", marks=pytest.mark.slow)])
def test_a_label_is_added_to_the_embedding_of_the_noise(name):
    """Adding a class's row to the bias of the layer that makes that embedding does the same; no label is a row too."""
    unet = {"channels": 4, "multipliers": (1,), "blocks": 1, "attention": (), "dropout": 0.0, "groups": 2}
    net = MLP(width=8, depth=1, embedding=8) if name == "mlp" else NETS[name](**unet)
    shape = (3, 2) if name == "mlp" else (3, 4, 4, 1)
    x, c, labels = jax.random.normal(jax.random.key(0), shape), jnp.array([-1.0, 0.5, 2.0]), jnp.array([2, 0, 3])
    params = net.init(jax.random.key(1), x, c, labels=labels, classes=3)
    params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(2), a.shape), params)
    table = params["params"].pop("label")["embedding"]
    assert table.shape[0] == 4
    whole = {"params": params["params"] | {"label": {"embedding": table}}}
    ours = net.apply(whole, x, c, labels=labels, classes=3)
    layer = {"mlp": "time", "unet": "time2"}[name]
    for i, label in enumerate(np.asarray(labels)):
        moved = jax.tree.map(jnp.array, params)
        moved["params"][layer]["bias"] += table[label]
        np.testing.assert_allclose(ours[i], net.apply(moved, x, c)[i], rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(ours - net.apply(params, x, c))).max() > 0.01


def toy(**overrides):
    config = load("ddpm_toy")
    config.data.mixture.size = 64
    config.labels = True
    config.net.mlp.update(width=8, depth=1, embedding=8)
    config.train.update(steps=6, batch=8, log_every=1, checkpoint_every=3, ema={"decay": {"rate": 0.9}})
    config.sampler.update(n=3, batch=4, images=8)
    config.eval.samples = 8
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
    return config


def alive(experiment, seed=3):
    """Parameters all of unit order, so that a label makes a difference."""
    params = experiment.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [0.5 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def test_labels_come_with_their_examples():
    experiment = assemble(toy())
    for step in (0, 5, 9):
        raw, labels = experiment.batch(step)
        np.testing.assert_array_equal(raw, experiment.dataset.batch(0, step, 8))
        nearest = np.linalg.norm(raw[:, None] - 1.0 * ring(experiment)[None], axis=-1).argmin(1)
        np.testing.assert_array_equal(labels, nearest)
    assert assemble(toy(labels=False)).batch(0)[1] is None


def ring(experiment):
    """The middle of each class."""
    data = experiment.dataset
    return np.stack([data.test[data.test_labels == k].mean(0) for k in range(8)])


def test_labels_are_dropped_as_often_as_said():
    """By the key of each example: 8 stands for none."""
    experiment = assemble(toy(label_dropout=0.3))
    labels, keys = jnp.arange(4000) % 8, example_keys(jax.random.key(0), 4000)
    told = np.asarray(experiment.forget(labels, keys))
    gone = told == 8
    assert abs(gone.mean() - 0.3) < 5 * math.sqrt(0.21 / 4000)
    np.testing.assert_array_equal(told[~gone], np.asarray(labels)[~gone])
    np.testing.assert_array_equal(experiment.forget(labels[5:9], keys[5:9]), told[5:9])


def told_labels(experiment):
    """The labels that the network is told in one step of training, as it says itself."""
    told = []

    class Net:
        init = staticmethod(experiment.net.init)

        @staticmethod
        def apply(params, x, c, **options):
            jax.debug.callback(lambda labels: told.append(np.asarray(labels)), options["labels"])
            return experiment.net.apply(params, x, c, **options)

    return dataclasses.replace(experiment, net=Net), told


@pytest.mark.parametrize("microbatch", [0, 4])
def test_a_step_tells_the_network_the_labels_but_for_those_dropped(microbatch):
    experiment, told = told_labels(assemble(toy(train__microbatch=microbatch, label_dropout=0.4)))
    raw, labels = experiment.batch(3)
    state = train.init_state(experiment)
    state = dataclasses.replace(state, step=jnp.int32(3))
    train.make_step(experiment)(state, raw, labels)
    jax.effects_barrier()
    keys = example_keys(jax.random.split(jax.random.fold_in(jax.random.key(0), 3))[0], 8)
    want = np.asarray(experiment.forget(labels, jax.vmap(lambda k: jax.random.split(k, 5)[4])(keys)))
    assert set(want[want != labels]) == {8} and (want == labels).any()
    size = microbatch or 8
    assert sorted(map(tuple, told)) == sorted(tuple(want[i : i + size]) for i in range(0, 8, size))


@pytest.mark.slow
def test_a_run_with_labels_is_resumed_bit_for_bit(tmp_path):
    """And a label more or less dropped is another run."""
    whole = fit(toy(), tmp_path / "whole")
    fit(toy(), tmp_path / "cut", stop_at=2)
    assert same(fit(toy(), tmp_path / "cut"), whole)
    assert not same(fit(toy(label_dropout=0.9), tmp_path / "other"), whole)


def test_labels_change_nothing_else_of_a_step():
    """Times and noise are keyed as without them: a network that is never told a class takes the same step."""
    plain, labelled = assemble(toy(labels=False)), assemble(toy())
    params = alive(labelled)
    bare = {"net": {"params": {k: v for k, v in params["net"]["params"].items() if k != "label"}}}
    bare["net"]["params"]["time"] = {
        "kernel": params["net"]["params"]["time"]["kernel"],
        "bias": params["net"]["params"]["time"]["bias"] + params["net"]["params"]["label"]["embedding"][8],
    }
    raw, keys = labelled.dataset.batch(0, 0, 8), example_keys(jax.random.key(1), 8)
    loss = lambda experiment, params, labels: train.mean_loss(  # noqa: E731
        experiment, experiment.times, (), params, raw, keys, None, labels
    )[0]
    ours, without = loss(labelled, params, jnp.full(8, 8)), loss(plain, bare, None)
    np.testing.assert_allclose(ours, without, rtol=1e-5)
    np.testing.assert_allclose(loss(labelled, params, None), ours, rtol=1e-6)
    assert abs(float(loss(labelled, params, jnp.arange(8)) - ours)) > 1e-3


def test_the_same_draw_whatever_the_batch():
    """Sample i has its own class and noise."""
    drawn = {}
    for size in (4, 7):
        experiment = assemble(toy(sampler__batch=size, sampler__guidance=2.0))
        drawn[size] = train.make_sampler(experiment)(alive(experiment), 10)
    np.testing.assert_allclose(drawn[4], drawn[7], rtol=1e-5, atol=1e-6)
    experiment = assemble(toy(sampler__label=3))
    assert (experiment.labels_to_sample(np.arange(5)) == 3).all()
    experiment = assemble(toy())
    np.testing.assert_array_equal(
        experiment.labels_to_sample(np.arange(200)), np.resize(in_turns(experiment.dataset.train_labels), 200)
    )


def test_scale_1_is_the_conditional_model_bit_for_bit():
    """The other network is not even traced; scale 0 is the network without labels; any other scale asks both."""
    drawn, told = {}, {}
    for scale in (0.0, 1.0, 2.0):
        experiment, told[scale] = told_labels(assemble(toy(sampler__guidance=scale)))
        drawn[scale] = train.make_sampler(experiment)(alive(assemble(toy())), 4)
    assert all((labels < 8).all() for labels in told[1.0]) and all((labels == 8).all() for labels in told[0.0])
    assert len(told[2.0]) == 2 * len(told[1.0])

    experiment = assemble(toy())
    params, keys = alive(experiment), example_keys(jax.random.key(2), 4)
    for labels, scale in ((experiment.labels_to_sample(np.arange(4)), 1.0), (None, 0.0)):

        @jax.jit
        def walk(params, keys, labels=labels):
            predict = experiment.hold_x0(experiment.walk, experiment.predict(params, labels=labels))
            return sample(experiment.walk, predict, keys, (4, 2), experiment.predictor, n=3)

        np.testing.assert_array_equal(walk(params, keys), drawn[scale])
    assert np.abs(drawn[1.0] - drawn[0.0]).max() > 1e-3


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"data__name": "swissroll"}, ["'swissroll' have no labels", "--config.labels=false"]),
        ({"labels": False, "sampler__guidance": 2.0}, ["config.sampler.guidance=2.0", "--config.labels=true"]),
        ({"labels": False, "sampler__label": 0}, ["config.sampler.label=0", "--config.labels=true"]),
        ({"sampler__label": 8}, ["config.sampler.label=8", "0 to 7"]),
        ({"sampler__label": -2}, ["config.sampler.label=-2"]),
        ({"label_dropout": 1.0}, ["config.label_dropout=1.0"]),
        ({"label_dropout": -0.1}, ["config.label_dropout=-0.1"]),
        ({"label_dropout": 0.0, "sampler__guidance": 2.0}, ["guidance=2.0", "--config.label_dropout=0.1"]),
        ({"sampler__guidance": math.inf}, ["config.sampler.guidance=inf"]),
        ({"sampler__control__name": "inpaint"}, ["control=inpaint", "'mixture' are points"]),
        ({"sampler__x0__name": "clip"}, ["points have no range", "x0.name=free"]),
        ({"sampler__corrector__name": "mala", "energy": True, "sampler__x0__name": "clip"}, ["'mala'", "x0.name=free"]),
        ({"sampler__corrector__name": "mala", "energy": True, "sampler__control__name": "inpaint"}, ["'mala'", "none"]),
    ],
)  # fmt: skip
def test_nonsense_with_labels_is_refused(overrides, parts):
    refused(lambda: assemble(toy(**overrides)), *parts)


def tiny(**overrides):
    """Digits with the smallest network."""
    config = load("ddpm_digits")
    config.net.name = "mlp"
    config.net.mlp.update(width=8, depth=1, embedding=8)
    config.sampler.update(n=3, batch=8, images=5)
    config.sampler.control.name = "inpaint"
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
    return config


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"sampler__control__name": "colorize"}, ["control=colorize", "take inpaint"]),
        ({"sampler__control__inpaint__hidden": "edge"}, ["inpaint", "hidden='edge'"]),
        ({"sampler__control__inpaint__method": "moments", "sampler__control__inpaint__max_measured": 31},
         ["32 measured", "pigdm", "max_measured"]),
        ({"process__name": "flow", "target": "v", "sampler__n": 3, "sampler__control__inpaint__method": "dps"},
         ["alpha = 0", "t_max=0.999"]),
    ],
)  # fmt: skip
def test_nonsense_with_control_is_refused(overrides, parts):
    refused(lambda: assemble(tiny(**overrides)), *parts)


def test_control_is_for_sampling(capsys):
    for mode in ("train", "eval"):
        argv = ["--config=ddpm_digits", f"--mode={mode}", "--config.sampler.control.name=inpaint"]
        assert run.main(argv) == 2
        assert "--mode=sample" in " ".join(capsys.readouterr().err.split())


def test_each_sample_completes_the_held_out_image_of_its_number():
    """Whatever the batch size; and what is seen of it is there, to the last bit."""
    drawn = {}
    for size in (4, 7):
        experiment = assemble(tiny(sampler__batch=size))
        drawn[size] = train.make_sampler(experiment)(alive(experiment), 6)
    np.testing.assert_allclose(drawn[4], drawn[7], rtol=1e-5, atol=1e-5)
    clean = experiment.dataset.test[:6].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(drawn[4][:, :, :4], clean[:, :, :4], atol=1e-6)
    assert np.abs(drawn[4][:, :, 4:] - clean[:, :, 4:]).max() > 0.1
    labelled = assemble(tiny(labels=True))
    index = np.arange(5)
    np.testing.assert_array_equal(labelled.labels_to_sample(index), labelled.dataset.test_labels[:5])


@pytest.mark.parametrize("method", ["replace", "dps"])
def test_a_clip_and_a_control(method):
    """What is measured passes a dynamic threshold untouched where it is put; a gradient is taken before a clip."""
    x0 = {"replace": "dynamic", "dps": "clip"}[method]
    experiment = assemble(tiny(sampler__x0__name=x0, sampler__control__inpaint__method=method))
    process, params = experiment.walk, alive(experiment)
    clean = experiment.held_out(np.arange(3))
    x, t = 2 * jax.random.normal(jax.random.key(0), clean.shape), jnp.array([300, 500, 700])
    found = experiment.predict_to_sample(params, None, clean)(x, t).x0
    inner, outer = experiment.hold_x0, experiment.control(clean)
    if method == "dps":
        inner, outer = outer, inner
    np.testing.assert_allclose(found, outer(process, inner(process, experiment.predict(params)))(x, t).x0, rtol=1e-5)
    assert np.abs(np.asarray(experiment.predict(params)(x, t).x0)).max() > 1.5  # the range counts
    if method == "replace":
        np.testing.assert_array_equal(found[:, :, :4], clean[:, :, :4])
    else:
        assert np.abs(np.asarray(found)).max() <= 1


def test_colours_are_completed_and_drawn(tmp_path, monkeypatch):
    """Three rows: the images, their grey, and samples of the same grey."""
    images = np.random.default_rng(0).integers(256, size=(20, 4, 4, 3), dtype=np.uint8)
    monkeypatch.setitem(SOURCES, "digits", lambda: Dataset("colours", images[:12], images[12:]))
    config = tiny(sampler__control__name="colorize", eval__samples=8, eval__at_end=False, sampler__x0__name="free")
    experiment = assemble(config)
    samples = train.make_sampler(experiment)(alive(experiment), 5)
    clean = images[12:17].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(samples.mean(-1), clean.mean(-1), atol=1e-2)
    seen = {}

    def sheet(images, side, columns):
        seen.update(images=images, columns=columns)
        return real(images, side, columns)

    real = report.sheet
    monkeypatch.setattr(report, "sheet", sheet)
    report.save_completed(tmp_path / "picture.png", experiment, samples)
    assert seen["columns"] == 5
    np.testing.assert_array_equal(seen["images"][:5], images[12:17])
    np.testing.assert_allclose(seen["images"][5:10], np.repeat(images[12:17].mean(-1, keepdims=True), 3, -1), atol=0.51)
    np.testing.assert_array_equal(seen["images"][10:], experiment.scaling.to_bytes(samples))


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_are_counted(method):
    """As many as are taken where the network is differentiated, for each of its evaluations."""
    control, taken = Inpaint(method), []

    @jax.custom_vjp
    def network(x):
        return x

    def backward(_, g):
        jax.debug.callback(lambda g: taken.append(g), g)
        return (g,)

    network.defvjp(lambda x: (x, None), backward)
    process, clean = VP(), jnp.ones((1, 2, 4, 1))
    steered = control(clean)(process, lambda x, t: of_x0(process, x, t, network(x)))
    steered(clean + 1, jnp.array([0.5]))
    jax.effects_barrier()
    assert len(taken) == control.derivatives((2, 4, 1))


def test_a_chain_may_be_an_argument_of_jit():
    """Its tables are traced then, and the likelihood's factor is what it is without."""
    wrap = Likelihood(Pixels(np.array([True, False])), jnp.ones((1, 1)), 0.3)
    x, t = jnp.array([[0.3, -0.2]]), jnp.array([40])
    found = lambda process: wrap(process, gaussian((0.0, 0.0), 1.0).predict(process))(x, t).x0  # noqa: E731
    np.testing.assert_allclose(jax.jit(found)(ddpm(steps=100)), found(ddpm(steps=100)), rtol=1e-6)


@pytest.mark.parametrize("kind", ["bound", "ode"])
@pytest.mark.parametrize(("asked", "want"), [(-1, None), (3, [3, 3, 3])])
def test_a_likelihood_is_of_the_class_that_an_example_has_or_of_the_one_asked_for(asked, want, kind):
    experiment, told = told_labels(assemble(toy(sampler__label=asked, eval__likelihood__name=kind)))
    experiment.config.eval.likelihood.update(examples=3, batch=3)
    experiment.config.eval.likelihood.ode.update(rtol=0.1, atol=0.1)
    found, count = likelihoods(experiment, jax.tree.map(lambda a: 0.1 * a, alive(experiment)))
    jax.effects_barrier()
    assert count == 3 and found[0].name == kind
    assert set(np.concatenate(told)) == set(want or experiment.dataset.test_labels[:3].tolist())


@pytest.mark.slow
def test_guidance_moves_the_samples_to_the_class_that_is_asked_for():
    """A trained network, on the ring of eight Gaussians: with its label a sample is nearest to that class's middle."""
    config = load("ddpm_toy")
    config.update(labels=True)
    config.train.update(steps=3000, batch=256, ema={"decay": {"rate": 0.99}}, log_every=1000)
    config.sampler.update(n=50, batch=800)
    experiment = assemble(config)
    state, step = train.init_state(experiment), train.make_step(experiment)
    for i in range(config.train.steps):
        state, _ = step(state, *experiment.batch(i))
    middles, right, spread = ring(experiment), {}, {}
    for scale in (0.0, 1.0, 3.0):
        config.sampler.guidance = scale
        asked = assemble(config)
        draws, labels = train.make_sampler(asked)(state.ema, 800), asked.labels_to_sample(np.arange(800))
        off = np.linalg.norm(draws[:, None] - middles[None], axis=-1)
        right[scale], spread[scale] = (off.argmin(1) == labels).mean(), np.median(off.min(1))
    assert right[0.0] < 0.2 and right[1.0] > 0.95 and right[3.0] > 0.99, right
    assert spread[3.0] < spread[0.0]
