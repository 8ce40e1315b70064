"""Guidance against closed forms: classes, clips, and the posterior given a linear measurement."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.integrate import solve_ivp

from scoregen.denoiser import Denoiser, prediction_from_x0
from scoregen.guidance import (
    CONTROLS,
    METHODS,
    SPREADS,
    X0S,
    ClassifierFree,
    Clip,
    Colorize,
    DynamicThreshold,
    Free,
    Grey,
    Inpaint,
    Matrix,
    Pixels,
    Posterior,
    Replace,
    Wrapper,
)
from scoregen.process import EDM, PROCESSES, VE, VP, Flow, bottom, ddpm, top
from scoregen.random import broadcast
from scoregen.samplers import (
    Adaptive,
    Ancestral,
    DPMSolver,
    EDMHeun,
    EvenLogSNR,
    Heun,
    Karras,
    OwnGrid,
    Sampler,
    UniPC,
    decode,
    encode,
    interpolate,
    slerp,
)
from scoregen.testing.oracle import TWO_MODES, Mixture, gaussian

MEAN = np.array([0.3, -0.5, 0.2])
COV = np.array([[1.0, 0.6, -0.3], [0.6, 0.8, 0.1], [-0.3, 0.1, 0.5]])
A = np.array([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]])
Y = np.array([[1.2, -0.7]])
STD = 0.4


def estimating(process, x0):
    """The denoiser whose estimate of the data is x0(x, t)."""
    return Denoiser(process, lambda x, t: prediction_from_x0(process, x, t, x0(x, t)))


def correlated(process, mean=MEAN, cov=COV):
    """The exact denoiser of N(mean, cov): m + alpha C (alpha^2 C + sigma^2 I)^-1 (x - alpha m)."""
    mean, cov = jnp.asarray(mean)[None], jnp.asarray(cov)

    def x0(x, t):
        m, c = mean.astype(x.dtype), cov.astype(x.dtype)
        alpha, sigma = broadcast(process.alpha(t), x), broadcast(process.sigma(t), x)
        total = alpha[..., None] ** 2 * c[None] + sigma[..., None] ** 2 * jnp.eye(len(c), dtype=x.dtype)[None]
        return m + alpha * (jnp.linalg.solve(total, (x - alpha * m)[..., None])[..., 0] @ c)

    return estimating(process, x0)


def conditioned(mean, cov, a, y, std):
    """The law of x ~ N(mean, cov) given a x + std z = y."""
    gain = cov @ a.T @ np.linalg.inv(a @ cov @ a.T + std**2 * np.eye(len(a)))
    return mean + gain @ (y - a @ mean), cov - gain @ a @ cov


def law(draws):
    return draws.mean(0), np.cov(draws.T)


def agrees(draws, mean, cov, extra=0.0):
    """Mean and covariance agree within five standard errors plus `extra` standard deviations of the law."""
    ours, spread = law(np.asarray(draws, np.float64))
    scale = np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
    np.testing.assert_array_less(np.abs(ours - mean) / np.sqrt(np.diag(cov)), 5 / math.sqrt(len(draws)) + extra)
    np.testing.assert_array_less(np.abs(spread - cov) / scale, 5 * math.sqrt(2 / len(draws)) + 2 * extra)


def never(x, t):
    raise AssertionError("evaluated")


# --- the range of the data


def fixed(x0):
    """A denoiser whose estimate is always x0."""
    return estimating(VP(), lambda x, t: jnp.asarray(x0, x.dtype))


def test_a_clip_by_hand():
    """x0 is clipped to the range, and eps follows from x: (x - alpha x0) / sigma."""
    process, x, t = VP(), jnp.array([[0.4, 0.4, 0.4]]), jnp.array([0.3])
    found = Clip(-1.0, 0.5)(fixed([[-3.0, 0.2, 0.7]]))(x, t)
    np.testing.assert_array_equal(found.x0, np.float32([[-1.0, 0.2, 0.5]]))
    alpha, sigma = float(process.alpha(t)[0]), float(process.sigma(t)[0])
    eps = (0.4 - alpha * np.array([[-1.0, 0.2, 0.5]])) / sigma
    np.testing.assert_allclose(found.eps, eps, rtol=1e-5)
    np.testing.assert_allclose(found.score, -eps / sigma, rtol=1e-5)


def test_a_dynamic_threshold_by_hand():
    """The range is [0, 2], so u = x0 - 1. The 3/4 quantile of |u| = 0, ..., 4 is s = 3: u is clipped to 3, over 3."""
    x, t = jnp.zeros((2, 5)), jnp.array([0.3, 0.3])
    x0 = 1 + np.array([[0.0, -1.0, 2.0, -3.0, 4.0], [0.0, 0.1, -0.2, 0.3, -0.9]])
    found = DynamicThreshold(0.0, 2.0, quantile=0.75)(fixed(x0))(x, t)
    want = 1 + np.array([[0.0, -1 / 3, 2 / 3, -1.0, 1.0], [0.0, 0.1, -0.2, 0.3, -0.3]])
    want[1, 4] = 1 - 0.9  # within the range nothing is moved: s is 1
    np.testing.assert_allclose(found.x0, want, atol=1e-6)


# --- nothing known


NOTHING = {
    "free": Free(),
    "clip": Clip(-math.inf, math.inf),
    "dynamic": DynamicThreshold(-100.0, 100.0),
    "guidance at 1": ClassifierFree(TWO_MODES.denoiser(VP()), 1.0),
    "guidance by itself": ClassifierFree(TWO_MODES.denoiser(VP()), 3.0),
    "replace": Replace(Pixels(np.zeros(2, bool)), jnp.zeros((1, 0))),
    **{f"{name}, no pixels": Posterior(Pixels(np.zeros(2, bool)), jnp.zeros((1, 0)), 0.1, name) for name in SPREADS},
    **{f"{name}, all noise": Posterior(Pixels(np.ones(2, bool)), jnp.ones((1, 2)), 1e6, name) for name in SPREADS},
    **{f"{name}, no scale": Posterior(Pixels(np.ones(2, bool)), jnp.ones((1, 2)), 0.1, name, 0.0) for name in SPREADS},
}


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", NOTHING)
def test_where_nothing_is_known_nothing_changes(name):
    denoiser = TWO_MODES.denoiser(VP())
    x, t = jax.random.normal(jax.random.key(0), (4, 2)), jnp.array([0.02, 0.3, 0.7, 1.0])
    ours, plain = NOTHING[name](denoiser)(x, t), denoiser(x, t)
    if "no pixels" in name:
        assert NOTHING[name](denoiser) is denoiser  # and costs no derivative
    for field in ("x0", "eps", "score"):
        np.testing.assert_allclose(getattr(ours, field), getattr(plain, field), rtol=1e-3, atol=1e-4)


# --- classes


@pytest.mark.slow
def test_guidance_is_linear_in_all_that_is_said():
    """Ho & Salimans 2022, eq. 6, with w = scale - 1; and the density's gradient is still the score."""
    process, one, two = VP(), TWO_MODES.denoiser(VP()), gaussian((0.5, 0.5), 0.4).denoiser(VP())
    x, t = jax.random.normal(jax.random.key(0), (4, 2)), jnp.array([0.02, 0.3, 0.7, 1.0])
    guided = ClassifierFree(one, 2.5)(two)
    found, w = guided(x, t), 1.5
    for field in ("x0", "eps", "score", "log_density"):
        want = (1 + w) * getattr(two(x, t), field) - w * getattr(one(x, t), field)
        np.testing.assert_allclose(getattr(found, field), want, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: guided(x, t).log_density.sum())(x)
    np.testing.assert_allclose(gradient, found.score, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.eps, prediction_from_x0(process, x, t, found.x0).eps, rtol=1e-3, atol=1e-3)
    learned = Denoiser(process, lambda x, t: one(x, t)._replace(between=jnp.full_like(x, 0.25)))
    assert (ClassifierFree(two, 2.0)(learned)(x, t).between == 0.25).all()  # the conditional denoiser's


def test_at_the_ends_of_the_scale_the_other_is_not_evaluated():
    one, two = (Denoiser(VP(), lambda x, t: pytest.fail("evaluated")) for _ in range(2))
    assert ClassifierFree(one, 1.0)(two) is two
    assert ClassifierFree(one, 0.0)(two) is one


def test_guidance_is_under_one_process():
    """Another process, or the same chain with other tables, is refused with the right call."""
    for one, two in (
        (VP(), VE()),
        (VP(), VP(t_min=0.01)),
        (ddpm(steps=100), ddpm(2e-4, steps=100)),
        (ddpm(steps=100), ddpm(steps=50)),
    ):
        a, b = (gaussian((0.0,), 1.0).denoiser(process) for process in (one, two))
        with pytest.raises(ValueError, match=r"under different processes: say ClassifierFree\(unconditional.under"):
            ClassifierFree(a, 2.0)(b)
        same = gaussian((0.0,), 1.0).denoiser(dataclasses.replace(two))
        assert ClassifierFree(same, 2.0)(b).process is two
    with pytest.raises(TypeError, match="a Denoiser is needed, not function: say model"):
        Clip(-1.0, 1.0)(lambda x, t: x)


# --- composition, and the declared properties of the parts


class Halve(Wrapper):
    """A wrapper of one's own, with an array and without a decorator."""

    def __init__(self, factor):
        self.factor = factor

    def predict(self, denoiser, x, t):
        return prediction_from_x0(denoiser.process, x, t, self.factor.astype(x.dtype) * denoiser(x, t).x0)


def linear(gain, process):
    """A denoiser with a leaf, as for the parameters of a trained network: x0 = gain x."""
    return Denoiser(process, Partial(times_gain, process, gain))


def times_gain(process, gain, x, t):
    return prediction_from_x0(process, x, t, gain * x)


@pytest.mark.quick(1)
@pytest.mark.parametrize("process", [VP(), ddpm(steps=100)], ids=["vp", "chain"])
def test_wrappers_compose_and_the_whole_is_an_argument_of_jit(process):
    """One program serves all parameters, measurements and wrappers with equal options."""
    traced = []
    x, t = jax.random.normal(jax.random.key(0), (3, 2)), jnp.full(3, 50 if process.discrete else 0.5)

    def whole(gain, y):
        guided = ClassifierFree(linear(jnp.float32(0.5), process), 2.0)(linear(jnp.float32(gain), process))
        held = DynamicThreshold(-1.0, 1.0, 0.9)(Clip(-1.5, 1.5)(guided))
        return Replace(Pixels(np.array([True, False])), jnp.full((1, 1), y))(Halve(jnp.full((1, 1), 0.5))(held))

    @jax.jit
    def run(denoiser, x, t):
        traced.append(1)
        return denoiser(x, t)

    for gain, y in ((0.7, 0.25), (3.0, -2.0)):
        denoiser = whole(gain, y)
        found, want = run(denoiser, x, t), denoiser(x, t)
        x0 = np.clip(0.5 * np.asarray(x) + 2 * (gain - 0.5) * np.asarray(x), -1.5, 1.5)
        s = np.maximum(np.quantile(np.abs(x0), 0.9, axis=1, keepdims=True), 1)
        x0 = 0.5 * np.clip(x0, -s, s) / s
        x0[:, 0] = y
        np.testing.assert_allclose(found.x0, x0, rtol=1e-5)
        np.testing.assert_allclose(found.eps, want.eps, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(jax.tree.map(lambda a: a, denoiser)(x, t).x0, want.x0)
    assert len(traced) == 1
    gradient = jax.grad(lambda d: jnp.sum(d(0.1 * x, t).x0))(Clip(-1.0, 1.0)(linear(jnp.float32(0.7), process)))
    (leaf,) = [g for g in jax.tree.leaves(gradient) if g.shape == ()]
    assert float(leaf) == pytest.approx(float(0.1 * x.sum()), rel=1e-5)
    bound = partial(jax.jit, static_argnums=0)(lambda wrapper, d: wrapper(d)(x, t).x0)
    np.testing.assert_allclose(bound(Clip(-1.0, 1.0), whole(3.0, 0.5)), Clip(-1.0, 1.0)(whole(3.0, 0.5))(x, t).x0)


@pytest.mark.slow
def test_a_measurement_may_be_an_argument_of_jit():
    """All three kinds, with the posterior's covariance."""
    x, t = 0.3 * jnp.arange(12.0).reshape(1, 2, 2, 3), jnp.array([0.4])
    for measure in (Pixels(SEEN), Grey(3), Matrix(RANDOM)):
        y = jnp.ones((1, measure(x).shape[1]))
        for wrap in (Replace(measure, y), Posterior(measure, y, 0.3)):
            denoiser = wrap(estimating(VP(), lambda x, t: jnp.tanh(x)))
            np.testing.assert_allclose(jax.jit(lambda d: d(x, t).x0)(denoiser), denoiser(x, t).x0, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_wrapper_says_whether_a_density_is_left():
    """For the wrappers of every table, and for the wrappers that take a denoiser or data."""
    x, t = jnp.full((1, 2, 2, 3), 0.1), jnp.array([0.4])
    exact = estimating(VP(), lambda x, t: 0.5 * x)
    denoiser = Denoiser(VP(), lambda x, t: exact(x, t)._replace(log_density=jnp.zeros(len(x))))
    wrappers = [make(-1.0, 1.0) if make is not Free else make() for make in X0S.values()]
    wrappers += [ClassifierFree(denoiser, 2.0)]
    for make in CONTROLS.values():
        if (control := make()) is not None:
            wrappers += [dataclasses.replace(control, method=method)(x) for method in METHODS]
            assert not control.keeps_density
    for wrapper in wrappers:
        assert (wrapper(denoiser)(x, t).log_density is not None) == wrapper.keeps_density, wrapper
    assert {type(wrapper) for wrapper in wrappers if wrapper.keeps_density} == {Free, ClassifierFree}


@pytest.mark.parametrize(
    ("control", "process", "shape", "parts"),
    [
        (Inpaint(), VP(), (2,), ["for images [H, W, C]", "(2,)", "control=none"]),
        (Colorize(), VP(), (4,), ["for images", "control=none"]),
        (Colorize(), VP(), (8, 8, 1), ["no colours", "control=inpaint"]),
        (Inpaint("dps"), Flow(), (8, 8, 1), ["alpha = 0", "process.t_max=0.999", "control.method=replace"]),
        (Inpaint("moments", max_measured=31), VP(), (8, 8, 1), ["32 measured", "=pigdm", "control.max_measured=32"]),
    ],
)  # fmt: skip
def test_a_control_says_what_it_cannot_do(control, process, shape, parts):
    refusal = control.refuse(process, shape)
    assert refusal is not None and not [part for part in parts if part not in str(refusal)], refusal
    assert "--" not in str(refusal)


def test_a_control_that_fits_is_not_refused():
    for control in (Inpaint("dps"), Inpaint("moments", max_measured=32), Inpaint("pigdm")):
        assert control.refuse(VP(), (8, 8, 1)) is None and control.refuse(ddpm(steps=100), (8, 8, 1)) is None
        assert control.refuse(Flow(t_max=0.999), (8, 8, 1)) is None
    assert Inpaint().refuse(Flow(), (8, 8, 1)) is None and Colorize().refuse(Flow(), (8, 8, 3)) is None
    assert Posterior(Grey(), Y, 0.1).refuse(Flow()).fixes == ("process.t_max=0.999",)
    assert Posterior(Grey(), Y, 0.1).refuse(VP()) is None and Clip(-1.0, 1.0).refuse(Flow()) is None


def test_a_measurement_of_another_shape_is_refused():
    measure, x, t = Pixels(np.array([True, True, False])), jnp.zeros((4, 3)), jnp.full(4, 0.5)
    for y in (jnp.zeros((1, 3)), jnp.zeros((2, 2)), jnp.zeros(2), jnp.zeros((4, 1))):
        for wrap in (Replace(measure, y), Posterior(measure, y, 0.1)):
            with pytest.raises(
                ValueError, match=r"\[4, 2\] is needed, 2 measured numbers of each example, or \[1, 2\]"
            ):
                wrap(fixed(jnp.zeros((4, 3))))(x, t)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Replace(Pixels(np.ones(5, bool)), jnp.ones((1, 5))), ValueError, "3 numbers, .* needs 5"),
        (lambda: Replace(Matrix(np.ones((1, 5))), jnp.ones((1, 1))), ValueError, "3 numbers, .* needs 5"),
        (lambda: Replace(Grey(2), jnp.ones((1, 1))), ValueError, r"3 channels .* of 2: say Grey\(3\)"),
        (lambda: Pixels(np.array([0, 2])), TypeError, "seen holds int64: booleans"),
        (lambda: Replace(Grey(), [[1.0]]), TypeError, "y is a list: an array"),
        (lambda: Posterior(Grey(), [[1.0]], 0.1), TypeError, "y is a list: an array"),
        (lambda: ClassifierFree(lambda x, t: x, 2.0), TypeError, "a Denoiser is needed, not function"),
    ],
)
def test_a_measurement_of_another_example_is_refused(make, error, message):
    """JAX would clamp an index beyond the example, so the wrong pixels would be taken for the right ones."""
    with pytest.raises(error, match=message):
        make()(fixed(jnp.zeros((4, 3))))(jnp.zeros((4, 3)), jnp.full(4, 0.5))


@pytest.mark.slow
def test_the_covariance_of_bfloat16_is_taken_in_float32():
    measure, x = Matrix(np.ones((1, 2))), jnp.ones((3, 2), jnp.bfloat16)
    steered = Posterior(measure, jnp.ones((1, 1)), 0.5)(gaussian((0.0, 0.0), 1.0).denoiser(VP()))
    found = steered(x, 0.5).x0
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(float), steered(x.astype(jnp.float32), 0.5).x0, atol=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_float32_stays_float32():
    """With JAX_ENABLE_X64, where times and tables are float64."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *SHAPE)), jnp.float32)
    plain = [Clip(-1.0, 1.0), DynamicThreshold(-1.0, 1.0)]
    for process in (VP(), VE(), EDM(), ddpm(steps=100)):
        t = jnp.full(2, top(process)) if process.discrete else jnp.full(2, 0.5)
        denoiser = estimating(process, lambda x, t: jnp.tanh(x))
        steered = [Replace(m, jnp.zeros((1, len(a)))) for m, a in MEASURES.values()]
        steered += [Posterior(m, jnp.zeros((1, len(a))), 0.3, s) for m, a in MEASURES.values() for s in SPREADS]
        for wrapper in (*plain, ClassifierFree(denoiser, 2.0), *steered):
            found = wrapper(denoiser)(x, t)
            assert {found.x0.dtype, found.eps.dtype, found.score.dtype} == {np.dtype(np.float32)}, (process, wrapper)


RING = 2 * np.pi * np.arange(8) / 8
EIGHT = Mixture((1 / 8,) * 8, tuple(zip(np.cos(RING), np.sin(RING), strict=True)), (0.15,) * 8)


def of_class(process, labels):
    """The exact denoiser of components of the eight Gaussians, one label for each example."""
    means = jnp.asarray(EIGHT.means, jnp.float32)[jnp.asarray(labels)]

    def x0(x, t):
        alpha, sigma = broadcast(process.alpha(t), x), broadcast(process.sigma(t), x)
        return means + alpha * 0.15**2 / (alpha**2 * 0.15**2 + sigma**2) * (x - alpha * means)

    return estimating(process, x0)


@pytest.mark.quick(1)
@pytest.mark.parametrize("step", [Ancestral(), EDMHeun(), DPMSolver(), UniPC(), Adaptive(1e-3, 1e-3)])
def test_at_scale_1_the_draws_are_those_of_the_class(step):
    """Every example has its own class. The samplers include a solver that chooses its steps for each example."""
    process, n = VP(t_min=1e-3), 2 if isinstance(step, Adaptive) else 300 if step == Ancestral() else 40
    labels = np.arange(2400) % 8
    guided = ClassifierFree(EIGHT.denoiser(process), 1.0)(of_class(process, labels))
    sampler = Sampler(step, grid=EvenLogSNR(), n=n, denoise=False)
    draws = np.asarray(sampler(guided, jax.random.key(1), (2400, 2)))
    agrees(draws - np.array(EIGHT.means)[labels], np.zeros(2), 0.15**2 * np.eye(2), extra=0.03)


def guided_flow(x, scale, means, std, process=VP()):
    """The end of the guided ODE from x at t = 1, in NumPy, on the line, for the first of the classes N(m, std^2)."""
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


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 7.5])
def test_the_law_of_guidance_is_that_of_its_ode(scale):
    """Two classes N(1, 0.5^2) and N(-1, 0.5^2): quantile by quantile, against an independent integration."""
    process = VP()
    quantiles = np.linspace(-2.0, 2.0, 9)
    want = guided_flow(quantiles, scale, (1.0, -1.0), 0.5)
    both = Mixture((0.5, 0.5), ((1.0,), (-1.0,)), (0.5, 0.5)).denoiser(process)
    guided = ClassifierFree(both, scale)(gaussian((1.0,), 0.5).denoiser(process))
    start = jnp.asarray(quantiles[:, None], jnp.float32)
    ours = Sampler(Adaptive(), n=2, denoise=False)(guided, jax.random.key(0), start.shape, start)
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


@pytest.mark.quick(1)
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
    """Song et al. 2021 (appendix I.3): rotate the channels so that grey is one coordinate, replace it, rotate back."""
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


@pytest.mark.quick(1)
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("name", ["ncsn", "subvp", "edm"])
def test_an_estimate_given_a_measurement(name, spread):
    """On Gaussian data x0 has the covariance V = (C^-1 + alpha^2 / sigma^2)^-1 given x_t, and the gain is
    V A^T (std^2 + A W A^T)^-1, where W is V (the exact E[x0 | x_t, y]), r^2 I or 0."""
    process = PROCESSES[name]()
    t = OwnGrid()(process, 6)[1:]
    x = jax.random.normal(jax.random.key(0), (5, 3), jnp.float64) * broadcast(process.sigma(t), jnp.ones((5, 3)))
    denoiser = correlated(process)
    scale = 1.0 if spread == "jacobian" else 0.7
    found = Posterior(Matrix(A), jnp.asarray(Y), STD, spread, scale)(denoiser)(x, t)
    plain, d2 = np.asarray(denoiser(x, t).x0), process.data_std**2
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


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_given_a_measurement_are_the_posteriors(name):
    """Mean and covariance of the closed form, on Gaussian data with the moments of x0 given x_t."""
    process, step, n, extra = SAMPLERS[name]
    denoiser = Posterior(Matrix(A), jnp.asarray(Y, jnp.float32), STD)(correlated(process))
    grid = EvenLogSNR() if name != "vp adaptive" else Karras()
    draws = Sampler(step, grid=grid, n=n, denoise=False)(denoiser, jax.random.key(0), (4000, 3))
    mean, cov = conditioned(MEAN, COV, A, Y[0], STD)
    agrees(draws, mean, cov, extra)
    assert np.abs(mean - MEAN).max() > 0.5  # the measurement has an effect


@pytest.mark.slow
def test_each_example_may_have_its_own_measurement():
    """Also where every example has steps of its own."""
    y = np.linspace(-2.0, 2.0, 5, dtype=np.float32)[:, None]
    plain = gaussian((0.0, 0.0), 1.0).denoiser(VP())
    denoiser = Posterior(Pixels(np.array([True, False])), jnp.asarray(y), 0.3)(plain)
    for step, n in ((Adaptive(1e-4, 1e-4), 2), (Heun(), 100)):
        start = jnp.zeros((5, 2))
        ours = Sampler(step, n=n)(denoiser, jax.random.key(0), (5, 2), start)
        np.testing.assert_allclose(ours, np.concatenate([y / (1 + 0.3**2), 0 * y], 1), atol=0.02)


@pytest.mark.slow
def test_the_bias_of_posterior_sampling_without_a_covariance():
    """Without V (Chung et al. 2023) draws of N(0, 1) given y have the mean y (1 - e^(-1/std^2)), not y / (1 + std^2),
    and the variance std^2 (1 - e^(-2/std^2)) / 2, not std^2 / (1 + std^2).

    With v = 1 + sigma^2 / alpha^2 from infinity to 1, dm/dv = m / v - (y - m / v) / (v std^2) and
    ds/dv = 2 s (1 / v + 1 / (v std)^2) - 1, for the mean m and the variance s of x / alpha.
    """
    y, std = 1.5, 0.5
    steer = Posterior(Pixels(np.array([True])), jnp.array([[y]]), std, "none")
    sampler = Sampler(Ancestral(), grid=EvenLogSNR(), n=2000, denoise=False)
    draws = sampler(steer(gaussian((0.0,), 1.0).denoiser(VP())), jax.random.key(0), (6000, 1))
    mean, variance = y * -math.expm1(-1 / std**2), 0.5 * std**2 * -math.expm1(-2 / std**2)
    draws = np.asarray(draws[:, 0])
    assert abs(draws.mean() - mean) < 5 * math.sqrt(variance / 6000) + 0.005
    assert abs(draws.var() / variance - 1) < 5 * math.sqrt(2 / 6000) + 0.02
    assert mean == pytest.approx(0.982 * y, rel=1e-3) and math.sqrt(variance) == pytest.approx(0.354, abs=1e-3)


@pytest.mark.slow
def test_the_bias_of_replacement():
    """Two N(0, 1) with correlation r, the first replaced by y: the second's mean is y (1 - sqrt(1 - r^2)) / r, not r y.

    With v = 1 + sigma^2 / alpha^2 and D = v^2 - r^2, dm/dv = (v m - r y) / D. The variance s and the covariance c have
    dc/dv = c (1 / (v - 1) + v / D) - r (v - 1) / D and ds/dv = 2 (v s - r c) / D - 1.
    """
    r, y = 0.8, 1.5
    replace = Replace(Pixels(np.array([True, False])), jnp.array([[y]]))
    denoiser = replace(correlated(VP(), np.zeros(2), np.array([[1, r], [r, 1]])))
    sampler = Sampler(Ancestral(), grid=EvenLogSNR(), n=1000, denoise=False)
    draws = sampler(denoiser, jax.random.key(0), (6000, 2))
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


@pytest.mark.quick(1)
@pytest.mark.parametrize("step", INPAINTERS)
def test_known_pixels_stay_to_the_last_bit(step):
    clean = jax.random.normal(jax.random.key(5), (3, 4, 4, 1))
    clipped = Clip(-0.5, 0.5)(estimating(VP(), lambda x, t: jnp.tanh(x)))
    denoiser = Inpaint(hidden="left")(clean)(clipped)
    ours = np.asarray(Sampler(step, grid=EvenLogSNR(), n=8)(denoiser, jax.random.key(0), clean.shape))
    np.testing.assert_array_equal(ours[:, :, 2:], np.asarray(clean)[:, :, 2:])
    assert np.abs(ours[:, :, :2]).max() <= 0.5


@pytest.mark.slow
def test_what_is_hidden():
    """The pixels and the count of each region; for colours, their grey."""
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


@pytest.mark.quick(1)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_wrapper_that_it_names(method):
    clean = jax.random.normal(jax.random.key(0), (2, 2, 2, 3))
    denoiser = estimating(VP(), lambda x, t: jnp.tanh(x + 0.3 * jnp.roll(x, 1, -1)))
    x, t = jax.random.normal(jax.random.key(1), clean.shape), jnp.array([0.2, 0.6])
    ours = Colorize(method=method, std=0.3, scale=0.8)(clean)(denoiser)(x, t).x0
    grey, spread = Grey(3), {"dps": "none", "pigdm": "isotropic", "moments": "jacobian"}.get(method)
    by_hand = Replace(grey, grey(clean)) if spread is None else Posterior(grey, grey(clean), 0.3, spread, 0.8)
    np.testing.assert_array_equal(ours, by_hand(denoiser)(x, t).x0)


@pytest.mark.slow
def test_a_covariance_that_is_none_is_made_one():
    """A network's Jacobian may be lopsided or negative: only its symmetric, positive part counts."""
    process, x, t = VE(), jnp.array([[0.3, -0.2]]), jnp.array([0.7])
    lopsided = np.array([[0.4, 0.5], [0.1, -0.9]])
    denoiser = estimating(process, lambda x, t: x @ jnp.asarray(lopsided.T, x.dtype))
    found = Posterior(Pixels(np.ones(2, bool)), jnp.array([[1.0, 2.0]]), 0.5)(denoiser)(x, t)
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
        (lambda: Clip(-math.inf, 1.0, reach=1.5), "reach=1.5"),
        (lambda: Clip(-1.0, math.inf, reach=0.5), "reach=0.5"),
        (lambda: DynamicThreshold(-1.0, math.inf), "finite range"),
        (lambda: DynamicThreshold(-1.0, 1.0, 0.0), "quantile=0.0"),
        (lambda: Posterior(Grey(), Y, 0.0), "std=0.0"),
        (lambda: Posterior(Grey(), Y, 0.1, "all"), "spread='all': one of none, isotropic, jacobian"),
        (lambda: Posterior(Grey(), Y, 0.1)(estimating(Flow(), never)), "alpha = 0 at .*process.t_max=0.999"),
        (lambda: Inpaint(hidden="middle"), "hidden='middle'"),
        (lambda: Inpaint(std=-1.0), "std=-1.0"),
        (lambda: Colorize(method="guess"), "method='guess': one of replace, dps, pigdm, moments"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- codes


# Flow(0.2) has alpha = 0.8 at the least noisy level. Elsewhere this alpha is so near 1 that a missing factor would not
# be noticed.
@pytest.mark.slow
@pytest.mark.parametrize(
    "process", [VE(0.01, 30.0), Flow(), Flow(0.2), ddpm(steps=100)], ids=["VE", "Flow", "Flow-0.2", "Chain"]
)
def test_codes_of_gaussian_data_are_known(process):
    """The ODE scales N(0, c^2) data by the deviations: code = alpha_0 x0 q_T / q_0, q^2 = alpha^2 c^2 + sigma^2."""
    c, x0 = 0.6, jnp.array([[0.5, -1.0], [2.0, 0.1]])
    denoiser = gaussian((0.0, 0.0), c).denoiser(process)
    code = encode(denoiser, x0, Adaptive(1e-6, 1e-6))
    ends = jnp.stack([top(process), bottom(process)])
    alpha, sigma = (np.asarray(f(ends)) for f in (process.alpha, process.sigma))
    q = np.hypot(alpha * c, sigma)
    np.testing.assert_allclose(code, alpha[1] * x0 * q[0] / q[1], rtol=5e-6)
    back = decode(denoiser, code, Adaptive(1e-6, 1e-6))
    np.testing.assert_allclose(back, x0, rtol=5e-5)


@pytest.mark.slow
def test_round_trip_of_a_mixture():
    """x0 -> code -> x0 to the solver's tolerance, and better where that is smaller."""
    process = VP()
    with jax.enable_x64(True):
        x0, denoiser = TWO_MODES.sample(jax.random.key(0), 20), TWO_MODES.denoiser(process)
        errors = []
        for tolerance in (1e-4, 1e-8):
            solver = Adaptive(tolerance, tolerance)
            back = decode(denoiser, encode(denoiser, x0, solver), solver)
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


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d, a: slerp(a, jnp.ones((3, 2)), jnp.array([0.5])), ValueError, r"a \[1, 2\], b \[3, 2\] and"),
        (lambda d, a: slerp(a, a, 0.5), ValueError, r"fractions \[N\] are needed"),
        (lambda d, a: encode(d.predict, a), TypeError, "a Denoiser is needed"),
        (lambda d, a: decode(d, a.astype(int)), TypeError, "code is int32"),
    ],
)
def test_codes_refuse_what_they_cannot_mean(call, error, message):
    with pytest.raises(error, match=message):
        call(gaussian((0.0, 0.0), 0.6).denoiser(VP()), jnp.ones((1, 2)))


def test_fractions_may_be_a_list():
    a, b = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    np.testing.assert_array_equal(slerp(a, b, [0.25, 0.5]), slerp(a, b, jnp.array([0.25, 0.5])))


@pytest.mark.slow
def test_between_two_gaussian_examples():
    """Data N(0, c^2 I) and their codes differ by a factor, so the path between two of them is their own great arc."""
    denoiser = gaussian((0.0, 0.0), 0.6).denoiser(VP())
    a, b, f = jnp.array([[0.5, -1.0]]), jnp.array([[0.7, 0.4]]), jnp.linspace(0, 1, 3)
    ours = interpolate(denoiser, a, b, f)
    np.testing.assert_allclose(ours, slerp(a, b, f), atol=2e-3)


@pytest.mark.quick(1)
@pytest.mark.parametrize("method", METHODS)
def test_derivatives_are_counted(method):
    """`derivatives` is the number of times that the network is differentiated for each evaluation."""
    control, taken = Inpaint(method), []

    @jax.custom_vjp
    def network(x):
        return x

    def backward(_, g):
        jax.debug.callback(lambda g: taken.append(g), g)
        return (g,)

    network.defvjp(lambda x: (x, None), backward)
    clean = jnp.ones((1, 2, 4, 1))
    steered = control(clean)(estimating(VP(), lambda x, t: network(x)))
    steered(clean + 1, jnp.array([0.5]))
    jax.effects_barrier()
    assert len(taken) == control.derivatives((2, 4, 1))


@pytest.mark.slow
def test_a_chain_may_be_an_argument_of_jit():
    """Its tables are traced then, and the likelihood's factor is the same as without jit."""
    wrap = Posterior(Pixels(np.array([True, False])), jnp.ones((1, 1)), 0.3)
    x, t = jnp.array([[0.3, -0.2]]), jnp.array([40])
    found = lambda process: wrap(gaussian((0.0, 0.0), 1.0).denoiser(process))(x, t).x0  # noqa: E731
    np.testing.assert_allclose(jax.jit(found)(ddpm(steps=100)), found(ddpm(steps=100)), rtol=1e-6)
