"""Every process x target: the rows invert, and are the papers'; and the bridge between processes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.denoiser import CONDITIONS, TARGETS, Prediction, as_process, denoiser, edm_row, eps_row, input_scale
from scoregen.losses import DSM
from scoregen.oracle import TWO_MODES
from scoregen.process import EDM, PROCESSES, VE, VP, Flow, covers, ddpm, ncsn, perturb, rows
from scoregen.rules import refusal

MADE = {name: make() for name, make in PROCESSES.items()}


@functools.cache
def why_not(name, target):
    return refusal(MADE[name], target, DSM())


def row_of(name, target):
    """The row of what can be trained; the others are skipped, and which they are is a test of its own."""
    if reason := why_not(name, target):
        pytest.skip(reason)
    return TARGETS[target]


def test_only_these_rows_have_no_inverse():
    """A chain has no velocity, and at the end of flow matching the noise says nothing of the data."""
    refused = {(name, target) for name in PROCESSES for target in TARGETS if why_not(name, target)}
    chains = {(name, "velocity") for name, process in MADE.items() if process.discrete}
    assert refused == chains | {("flow", "eps"), ("flow", "score")}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PROCESSES)
def test_rows_invert(name, target):
    """A network whose output is a x0 + b eps is turned back into that x0, that eps and -eps / sigma, at all levels."""
    row = row_of(name, target)
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        t = process.grid()
        x0 = jax.random.normal(jax.random.key(0), (len(t), 3), jnp.float64)
        noised = perturb(process, jax.random.key(1), x0, t)
        a, b = row(process, t)
        det = process.alpha(t) * b - a * process.sigma(t)
        assert (abs(det) > 1e-6).all()
        predict = denoiser(process, row, lambda x, t: rows(a, x) * x0 + rows(b, x) * noised.eps)
        x0_hat, eps_hat, score, between, density = predict(noised.x, t)
        np.testing.assert_allclose(x0_hat, x0, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(eps_hat, noised.eps, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(score, -noised.eps / rows(process.sigma(t), x0), rtol=1e-7, atol=1e-7)
        assert between is None and density is None


def asked_for(process, target, t, x0, eps):
    """What the network is to give, in the words of its paper, from alpha(t) and sigma(t) alone, in float64."""

    def at(t):
        return (np.asarray(f(jnp.asarray(t)), np.float64)[:, None] for f in (process.alpha, process.sigma))

    alpha, sigma = at(t)
    match target:
        case "eps":
            return eps
        case "x0":
            return x0
        case "score":  # grad_x log N(x; alpha x0, sigma^2) at x = alpha x0 + sigma eps
            return -(alpha * x0 + sigma * eps - alpha * x0) / sigma**2
        case "v":
            return alpha * eps - sigma * x0
        case "velocity":  # dx/dt along a path of fixed x0 and eps, by finite differences
            h = 1e-6 * t
            (a, b), (c, d) = at(t - h), at(t + h)
            return ((c - a) * x0 + (d - b) * eps) / (2 * h[:, None])
        case "edm":  # table 1 of Karras et al. 2022, where alpha = 1: in the coordinates x / alpha
            noise, std = sigma / alpha, process.data_std
            c_skip = std**2 / (noise**2 + std**2)
            c_out = noise * std / np.sqrt(noise**2 + std**2)
            return (x0 - c_skip * (x0 + noise * eps)) / c_out
    raise NotImplementedError(f"write down what a network of target {target} is asked for")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PROCESSES)
def test_rows_are_the_papers(name, target):
    row = row_of(name, target)
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        t = process.grid(6)[1:-1]
        x0, eps = np.random.default_rng(0).normal(size=(2, 4, 3))
        a, b = (np.asarray(c)[:, None] for c in row(process, t))
        want = asked_for(process, target, np.asarray(t), x0, eps)
        np.testing.assert_allclose(a * x0 + b * eps, want, rtol=1e-7, atol=1e-7)


def test_velocity_of_flow_matching_is_noise_less_data():
    a, b = TARGETS["velocity"](Flow(), jnp.array([0.001, 0.3, 1.0]))
    np.testing.assert_allclose((a, b), [[-1, -1, -1], [1, 1, 1]], rtol=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("data_std", [0.3, 1.0, 2.0])
def test_edm_has_unit_variance_in_and_out(name, data_std):
    """On data of variance data_std^2 (Karras et al. 2022, appendix B.6): Var(c_in x) = Var(output) = 1, and the output
    has nothing of x left in it, Cov(output, x) = 0, which is what makes c_out the least possible."""
    with jax.enable_x64(True):
        process = dataclasses.replace(PROCESSES[name](), data_std=data_std)
        t = process.grid(6)
        alpha, sigma, a, b = (np.asarray(c) for c in (process.alpha(t), process.sigma(t), *edm_row(process, t)))
        np.testing.assert_allclose(a**2 * data_std**2 + b**2, 1, rtol=1e-9)
        np.testing.assert_allclose(a * alpha * data_std**2 + b * sigma, 0, atol=1e-9)
        np.testing.assert_allclose(input_scale(process, t) ** 2 * (alpha**2 * data_std**2 + sigma**2), 1, rtol=1e-9)


@pytest.mark.parametrize("name", ["ddpm", "cosine", "betas", "vp", "vp_cosine"])
def test_edm_of_a_variance_preserving_process_is_minus_v(name):
    t = MADE[name].grid(6)
    np.testing.assert_allclose(edm_row(MADE[name], t), -np.array(TARGETS["v"](MADE[name], t)), rtol=1e-5, atol=1e-6)
    assert MADE[name].data_std == 1


@pytest.mark.parametrize("target", TARGETS)
def test_a_learned_variance_is_the_second_half(target):
    """between = (v + 1) / 2 (Nichol & Dhariwal 2021, eq. 15): v = -1 the posterior's, 1 the forward step's; the first
    half is what it would be alone."""
    process = MADE["vp" if target == "velocity" else "ddpm"]
    t = process.grid(4)[1:]
    x, output, v = jax.random.normal(jax.random.key(0), (3, 3, 5, 2))
    v = v.at[:, 0].set(-1.0).at[:, 1].set(1.0)
    both = denoiser(process, TARGETS[target], lambda x, t: jnp.concatenate([output, v], -1), learned_variance=True)(
        x, t
    )
    alone = denoiser(process, TARGETS[target], lambda x, t: output)(x, t)
    for ours, want in zip(both[:3], alone[:3], strict=True):
        np.testing.assert_array_equal(ours, want)
    assert alone.between is None and both.between is not None
    np.testing.assert_allclose(both.between, (np.asarray(v) + 1) / 2, rtol=1e-6)
    assert (both.between[:, 0] == 0).all() and (both.between[:, 1] == 1).all()


@pytest.mark.parametrize("name", PROCESSES)
def test_conditions_say_how_noisy(name):
    """The index is DDPM's, and 999 t in continuous time; rescaled, of 1000 levels; log sigma; lam, finite; c_noise."""
    process = MADE[name]
    t = process.grid(5)
    alpha, sigma = (np.asarray(a, np.float64) for a in (process.alpha(t), process.sigma(t)))
    np.testing.assert_allclose(CONDITIONS["index"](process, t), np.asarray(t) * (1 if process.discrete else 999))
    rescaled = np.asarray(t, np.float64) * 1000 / (len(process.grid()) if process.discrete else 1)
    np.testing.assert_allclose(CONDITIONS["rescaled"](process, t), rescaled, rtol=1e-6)
    np.testing.assert_allclose(CONDITIONS["sigma"](process, t), np.log(sigma), rtol=1e-5, atol=1e-6)
    with np.errstate(divide="ignore"):
        lam = np.maximum(2 * np.log(alpha / sigma), -25)
    np.testing.assert_allclose(CONDITIONS["logsnr"](process, t), lam, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(CONDITIONS["edm"](process, t), -lam / 8, rtol=1e-5, atol=1e-5)  # ln(sigma / alpha) / 4


@pytest.mark.parametrize("name", PROCESSES)
def test_tweedie(name):
    """THEORY 8: the exact denoiser, its noise and its score are one thing: x0 = (x + sigma^2 score) / alpha."""
    process = MADE[name]
    t = process.grid(6)[1:]
    x = jax.random.normal(jax.random.key(0), (5, 2))
    exact = TWO_MODES.predict(process)(x, t)
    again = denoiser(process, eps_row, lambda x, t: exact.eps)(x, t)
    np.testing.assert_allclose(again.score, exact.score, rtol=1e-5)
    np.testing.assert_allclose(again.x0 * rows(process.alpha(t), x), exact.x0 * rows(process.alpha(t), x), atol=1e-4)


BRIDGED = {"ddpm": ddpm(), "cosine": PROCESSES["cosine"](), "ncsn": ncsn(0.02, 30.0, 40)} | {
    name: make() for name, make in PROCESSES.items() if not MADE[name].discrete
}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("ddpm", "ncsn"),
        ("ncsn", "ddpm"),
        ("cosine", "ddpm"),
        ("ncsn", "ncsn"),
        ("vp", "ddpm"),
        ("ddpm", "vp"),
        ("edm", "ncsn"),
        ("ncsn", "edm"),
        ("flow", "vp"),
        ("vp", "flow"),
        ("ve", "subvp"),
        ("vp_cosine", "edm"),
    ],
)
def test_bridge_of_the_exact_denoiser_is_exact(source, target):
    """THEORY 14: the exact denoiser of one process, carried over, is the exact denoiser of the other."""
    source, target = BRIDGED[source], BRIDGED[target]
    target = target.within(source)
    predict = as_process(TWO_MODES.predict(source), source, target)
    t = target.grid(11)[1:-1]  # at its ends the target may be covered by the source to one percent only
    x0 = TWO_MODES.sample(jax.random.key(0), 9)
    x = perturb(target, jax.random.key(1), x0, t).x
    ours, exact = predict(x, t), TWO_MODES.predict(target)(x, t)
    sigma = rows(target.sigma(t), x)
    np.testing.assert_allclose(ours.x0, exact.x0, atol=2e-3)
    np.testing.assert_allclose(ours.eps, exact.eps, atol=2e-3)
    np.testing.assert_allclose(sigma * ours.score, sigma * exact.score, atol=2e-3)


@pytest.mark.parametrize("source", PROCESSES)
def test_what_is_within_the_source_can_be_bridged(source):
    """`within` and `as_process` agree on what is covered, and refuse the rest."""
    for name, target in MADE.items():
        if target.levels == 1000 and target.discrete:
            continue  # slow: every other length is compiled anew
        whole = bool(covers(MADE[source], target.logsnr(target.grid())).all())
        part = target.within(MADE[source])
        as_process(TWO_MODES.predict(MADE[source]), MADE[source], part)
        if not target.discrete:
            assert (part == target) == whole, name
        if not whole:
            with pytest.raises(ValueError, match="outside the noise range"):
                as_process(TWO_MODES.predict(MADE[source]), MADE[source], target)


def test_a_learned_variance_does_not_cross_the_bridge():
    """It is one of the source's steps."""

    def learned(x, t):
        return Prediction(x, x, x, jnp.full_like(x, 0.5))

    assert as_process(learned, EDM(), VE())(jnp.ones((1, 2)), jnp.array([0.5])).between is None


def test_bridge_refuses_what_the_source_never_saw():
    with pytest.raises(ValueError, match=r"outside the noise range.*target\.within\(source\)"):
        as_process(TWO_MODES.predict(ncsn()), ncsn(), ddpm())
    with pytest.raises(ValueError, match="1 of the target's 1000 levels lie outside"):
        as_process(TWO_MODES.predict(VP(t_min=1e-5)), VP(t_min=1e-5, t_max=0.9985), VP(t_min=1e-5))
