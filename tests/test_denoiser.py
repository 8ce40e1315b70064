"""Every process x target: the targets can be inverted, and agree with the papers. Also the bridge between processes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from levels import levels

from scoregen.denoiser import (
    CONDITIONS,
    TARGETS,
    Denoiser,
    Prediction,
    as_energy,
    edm_target,
    from_energy,
    from_network,
    input_scale,
    prediction_from_x0,
    refuse_condition,
    refuse_target,
    solve,
    velocity_target,
)
from scoregen.errors import Refusal
from scoregen.process import EDM, PROCESSES, VE, VP, Chain, Flow, bottom, covers, ddpm, ncsn, perturb, top
from scoregen.random import broadcast
from scoregen.testing.oracle import TWO_MODES

MADE = {name: make() for name, make in PROCESSES.items()}


@functools.cache
def why_not(name, target):
    return refuse_target(MADE[name], target)


def target_of(name, target):
    """The target, if it can be trained under the process. Others are skipped; the next test lists them."""
    if refusal := why_not(name, target):
        pytest.skip(str(refusal))
    return TARGETS[target]


@pytest.mark.slow
def test_only_these_targets_have_no_inverse():
    """A chain has no velocity, and at the end of flow matching the noise says nothing of the data."""
    refused = {(name, target) for name in PROCESSES for target in TARGETS if why_not(name, target)}
    chains = {(name, "velocity") for name, process in MADE.items() if process.discrete}
    assert refused == chains | {("flow", "eps"), ("flow", "score")}


def test_refusals_of_targets_name_what_would_fit():
    """For targets given by name and as functions; every target that a refusal names does fit."""
    chain = why_not("ddpm", "velocity")
    assert "chain has levels" in chain.reason and chain.fixes == ("target=v", "process=vp")
    for target in ("eps", TARGETS["score"]):
        refusal = refuse_target(Flow(), target)
        assert "alpha = 0" in refusal.reason
        assert refusal.fixes == ("target=x0", "target=v", "target=velocity", "target=edm")
    for process in (dataclasses.replace(ddpm(), data_std=0.0), EDM(data_std=0.0)):
        assert refuse_target(process, "edm").fixes[0] == "process.data_std=0.5"
    # The score is no fix where alpha = 0, and edm is none where the deviation of the data is not known.
    assert refuse_target(Flow(data_std=0.0), "eps").fixes == ("target=x0", "target=v", "target=velocity")
    # A chain that ends in pure noise: as in continuous time, but a chain has no velocity.
    alphas = jnp.array([0.9, 0.5, 0.0])
    lam = 2 * jnp.log(alphas) - jnp.log1p(-(alphas**2))
    chain = Chain(alphas, jnp.sqrt(1 - alphas**2), lam)
    assert refuse_target(chain, "eps").fixes == ("target=x0", "target=v", "target=edm")
    # Tables without values, as under jit, are not checked. Everything else is.
    assert jax.jit(lambda c: (refuse_target(c, "eps") is None) & (refuse_target(c, "velocity") is not None))(chain)
    assert jax.jit(lambda t: t if refuse_target(Flow(), "eps") else -t)(1.0) == 1.0
    with pytest.raises(ValueError, match="no target 'epsilon': did you mean 'eps'"):
        refuse_target(ddpm(), "epsilon")


def test_refusals_of_ones_own_targets():
    """A target that is x itself, which says nothing; one that needs derivatives; one with its own `refuse`."""

    def x_itself(process, t):
        return process.alpha(t), process.sigma(t)

    def mostly_noise(process, t):  # fine but for alpha = 0
        return 0 * process.alpha(t), 2 * jnp.ones_like(process.alpha(t))

    def slope(process, t):
        return velocity_target(process, t)

    def small(process, t):
        return -process.sigma(t), process.alpha(t)

    slope.continuous_only = True
    small.refuse = lambda process: Refusal("too long", ("process.steps=10",)) if process.ends[1] > 10 else None
    for name, process in MADE.items():
        assert ("alpha = 0" if name == "flow" else "alpha b - a sigma is 0") in refuse_target(process, x_itself).reason
        assert (refuse_target(process, mostly_noise) is None) == (name != "flow")
        assert (refuse_target(process, slope) is None) != process.discrete
        assert (refuse_target(process, small) is None) == (process.ends[1] <= 10)


def test_conditions_that_are_an_index_are_refused_where_the_time_is_sigma():
    for name, process in MADE.items():
        refused = {condition for condition in CONDITIONS if refuse_condition(process, condition)}
        assert refused == ({"index", "rescaled"} if name == "edm" else set())
    refusal = refuse_condition(EDM(), CONDITIONS["index"])
    assert "from 0.002 to 80" in refusal.reason
    for fix in refusal.fixes:
        assert refuse_condition(EDM(), fix.removeprefix("model.condition=")) is None

    def mine(process, t):
        return t

    assert refuse_condition(EDM(), mine) is None
    mine.refuse = lambda process: Refusal("no")
    assert refuse_condition(EDM(), mine) == Refusal("no")
    with pytest.raises(ValueError, match="no condition 'logsnt': did you mean 'logsnr'"):
        refuse_condition(EDM(), "logsnt")


@pytest.mark.quick(3)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PROCESSES)
def test_targets_invert(name, target):
    """A network whose output is a x0 + b eps is turned back into that x0, that eps and -eps / sigma, at all levels."""
    rule = target_of(name, target)
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        t = levels(process)
        x0 = jax.random.normal(jax.random.key(0), (len(t), 3), jnp.float64)
        noised = perturb(process, jax.random.key(1), x0, t)
        a, b = rule(process, t)
        det = process.alpha(t) * b - a * process.sigma(t)
        assert (abs(det) > 1e-6).all()
        denoiser = from_network(process, rule, lambda x, t: broadcast(a, x) * x0 + broadcast(b, x) * noised.eps)
        x0_hat, eps_hat, score, between, density = denoiser(noised.x, t)
        np.testing.assert_allclose(x0_hat, x0, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(eps_hat, noised.eps, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(score, -noised.eps / broadcast(process.sigma(t), x0), rtol=1e-7, atol=1e-7)
        assert between is None and density is None


def asked_for(process, target, t, x0, eps):
    """The output of an exact network by the target's paper, from alpha(t) and sigma(t) alone, in float64."""

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
    raise ValueError(target)


@pytest.mark.quick(32)
@pytest.mark.parametrize("target", ["eps", "x0", "score", "v", "velocity", "edm"])
@pytest.mark.parametrize("name", PROCESSES)
def test_targets_are_the_papers(name, target):
    rule = target_of(name, target)
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        t = levels(process, 6)[1:-1]
        x0, eps = np.random.default_rng(0).normal(size=(2, 4, 3))
        a, b = (np.asarray(c)[:, None] for c in rule(process, t))
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
        t = levels(process, 6)
        alpha, sigma, a, b = (np.asarray(c) for c in (process.alpha(t), process.sigma(t), *edm_target(process, t)))
        np.testing.assert_allclose(a**2 * data_std**2 + b**2, 1, rtol=1e-9)
        np.testing.assert_allclose(a * alpha * data_std**2 + b * sigma, 0, atol=1e-9)
        np.testing.assert_allclose(input_scale(process, t) ** 2 * (alpha**2 * data_std**2 + sigma**2), 1, rtol=1e-9)


@pytest.mark.parametrize("name", ["ddpm", "cosine", "betas", "vp", "vp_cosine"])
def test_edm_of_a_variance_preserving_process_is_minus_v(name):
    t = levels(MADE[name], 6)
    np.testing.assert_allclose(edm_target(MADE[name], t), -np.array(TARGETS["v"](MADE[name], t)), rtol=1e-5, atol=1e-6)
    assert MADE[name].data_std == 1


@pytest.mark.parametrize("target", TARGETS)
def test_a_learned_variance_is_the_second_half(target):
    """between = (v + 1) / 2 (Nichol & Dhariwal 2021, eq. 15): v = -1 is the posterior's variance, 1 the forward step's.
    The first half gives the same prediction as without a learned variance."""
    process = MADE["vp" if target == "velocity" else "ddpm"]
    t = levels(process, 4)[1:]
    x, output, v = jax.random.normal(jax.random.key(0), (3, 3, 5, 2))
    v = v.at[:, 0].set(-1.0).at[:, 1].set(1.0)
    twice = jnp.concatenate([output, v], -1)
    both = from_network(process, target, lambda x, t: twice, learned_variance=True)(x, t)
    alone = from_network(process, target, lambda x, t: output)(x, t)
    for ours, want in zip(both[:3], alone[:3], strict=True):
        np.testing.assert_array_equal(ours, want)
    assert alone.between is None and both.between is not None
    np.testing.assert_allclose(both.between, (np.asarray(v) + 1) / 2, rtol=1e-6)
    assert (both.between[:, 0] == 0).all() and (both.between[:, 1] == 1).all()


@pytest.mark.parametrize("name", PROCESSES)
def test_conditions_say_how_noisy(name):
    """index is DDPM's, 999 t in continuous time; rescaled is of 1000 levels; then log sigma, a finite lam, c_noise."""
    process = MADE[name]
    t = levels(process, 5)
    alpha, sigma = (np.asarray(a, np.float64) for a in (process.alpha(t), process.sigma(t)))
    np.testing.assert_allclose(CONDITIONS["index"](process, t), np.asarray(t) * (1 if process.discrete else 999))
    rescaled = np.asarray(t, np.float64) * 1000 / (len(levels(process)) if process.discrete else 1)
    np.testing.assert_allclose(CONDITIONS["rescaled"](process, t), rescaled, rtol=1e-6)
    np.testing.assert_allclose(CONDITIONS["sigma"](process, t), np.log(sigma), rtol=1e-5, atol=1e-6)
    with np.errstate(divide="ignore"):
        lam = np.maximum(2 * np.log(alpha / sigma), -25)
    np.testing.assert_allclose(CONDITIONS["logsnr"](process, t), lam, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(CONDITIONS["edm"](process, t), -lam / 8, rtol=1e-5, atol=1e-5)  # ln(sigma / alpha) / 4


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", PROCESSES)
def test_tweedie(name):
    """THEORY 8: the exact denoiser, its noise and its score determine each other: x0 = (x + sigma^2 score) / alpha."""
    process = MADE[name]
    t = levels(process, 6)[1:]
    x = jax.random.normal(jax.random.key(0), (5, 2))
    exact = TWO_MODES.denoiser(process)(x, t)
    again = from_network(process, "eps", lambda x, t: exact.eps)(x, t)
    np.testing.assert_allclose(again.score, exact.score, rtol=1e-5)
    np.testing.assert_allclose(
        again.x0 * broadcast(process.alpha(t), x), exact.x0 * broadcast(process.alpha(t), x), atol=1e-4
    )


BRIDGED = {"ddpm": ddpm(), "cosine": PROCESSES["cosine"](), "ncsn": ncsn(0.02, 30.0, 40)} | {
    name: make() for name, make in PROCESSES.items() if not MADE[name].discrete
}


@pytest.mark.quick(1)
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
    denoiser = TWO_MODES.denoiser(source).under(target)
    t = levels(target, 11)[1:-1]  # at its ends the target may be covered by the source to one percent only
    x0 = TWO_MODES.sample(jax.random.key(0), 9)
    x = perturb(target, jax.random.key(1), x0, t).x
    ours, exact = denoiser(x, t), TWO_MODES.denoiser(target)(x, t)
    sigma = broadcast(target.sigma(t), x)
    np.testing.assert_allclose(ours.x0, exact.x0, atol=2e-3)
    np.testing.assert_allclose(ours.eps, exact.eps, atol=2e-3)
    np.testing.assert_allclose(sigma * ours.score, sigma * exact.score, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("source", PROCESSES)
def test_what_is_within_the_source_can_be_bridged(source):
    """For every pair of processes `within` and `under` agree on what is covered, and refuse the rest."""
    denoiser = Denoiser(MADE[source], lambda x, t: prediction_from_x0(MADE[source], x, t, 0 * x))
    for name, target in MADE.items():
        whole = bool(covers(MADE[source], target.logsnr(levels(target))).all())
        part = target.within(MADE[source])
        assert denoiser.under(part).process is part
        if target.discrete:
            assert (part.levels == target.levels) == whole, name
        else:
            assert (part == target) == whole, name
        if whole:
            assert denoiser.under(target).process is target
        else:
            with pytest.raises(ValueError, match="outside the noise range"):
                denoiser.under(target)


@pytest.mark.quick(14)
@pytest.mark.parametrize("target", PROCESSES)
@pytest.mark.parametrize("source", PROCESSES)
def test_bridge_of_every_pair_carries_a_point_over(source, target):
    """Where the data are one point, x0 is that point under any process: the bridge has to scale x right."""
    source, target = MADE[source], MADE[target].within(MADE[source])
    point = jnp.array([[0.5, -2.0]])
    # This denoiser has a fixed noise: its x0 is the point only if x is scaled as by the denoiser's own process.
    noise = jnp.array([[0.3, -0.1]])
    denoiser = Denoiser(source, lambda x, t: from_eps(source, x, t, noise))
    t = levels(target, 5)[1:-1]
    x = broadcast(target.alpha(t), point + jnp.zeros((len(t), 1))) * point
    x = x + broadcast(target.sigma(t), x) * noise
    found = denoiser.under(target)(x, t)
    lost = broadcast(target.sigma(t) / target.alpha(t), x)  # the digits of x0 that x has lost
    assert (abs(found.x0 - point) < 1e-4 * (1 + lost)).all()
    np.testing.assert_allclose(found.eps, noise + 0 * x, rtol=1e-6)
    np.testing.assert_allclose(found.score, -noise / broadcast(target.sigma(t), x), rtol=1e-5)


def from_eps(process, x, t, eps):
    return solve(process, "eps", eps + 0 * x, x, t)


@pytest.mark.slow
def test_a_learned_variance_does_not_cross_the_bridge():
    """It is the variance of a step of the source."""

    def learned(x, t):
        return Prediction(x, x, x, jnp.full_like(x, 0.5))

    assert Denoiser(EDM(), learned).under(VE())(jnp.ones((1, 2)), 0.5).between is None


def test_bridge_refuses_what_the_source_never_saw():
    with pytest.raises(ValueError, match=r"outside the noise range.*process\.within\(denoiser\.process\)"):
        TWO_MODES.denoiser(ncsn()).under(ddpm())
    with pytest.raises(ValueError, match="an end of it lies outside"):
        TWO_MODES.denoiser(VP(t_min=1e-5, t_max=0.9985)).under(VP(t_min=1e-5))
    with pytest.raises(ValueError, match="1 of its 1000 levels lie outside"):
        TWO_MODES.denoiser(ddpm().between(0, 998)).under(ddpm().between(0, 999))
    with pytest.raises(TypeError, match=r"a process is needed, not VP: say VP\(\)"):
        TWO_MODES.denoiser(ddpm()).under(VP)


@pytest.mark.slow
def test_the_bridge_is_refused_while_a_sampler_is_traced():
    """The noise ranges of constants are known then. The range of a traced chain is not, so nothing is checked."""
    denoiser = TWO_MODES.denoiser(ncsn())
    x = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="outside the noise range"):
        jax.jit(lambda x: denoiser.under(ddpm())(x, 400).x0)(x)
    part = ddpm().within(ncsn())
    assert jax.jit(lambda chain, x: denoiser.under(chain)(x, 40).x0)(part, x).shape == (2, 2)


@pytest.mark.quick(6)
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: from_network(ddpm(), "epsilon", lambda x, t: x),
            ValueError,
            "no target 'epsilon': did you mean 'eps'",
        ),
        (lambda: from_network(ddpm(), 3, lambda x, t: x), TypeError, r"target=3: a name is needed \(eps, x0, "),
        (lambda: from_network(ddpm, "eps", lambda x, t: x), TypeError, r"a process is needed, not ddpm: say ddpm\(\)"),
        (lambda: from_network(ddpm(), "eps", {"w": 1}), TypeError, "apply is a dict: a function is needed"),
        (lambda: from_network(ddpm(), "eps", lambda x, t: x[:1])(jnp.ones((2, 3)), 5), ValueError, "as for x"),
        (
            lambda: from_network(ddpm(), "eps", lambda x, t: x, learned_variance=True)(jnp.ones((2, 3)), 5),
            ValueError,
            r"gives \[2, 3\] for x of shape \[2, 3\]: the shape \[2, 6\] is needed, twice as many channels",
        ),
        (lambda: from_network(ddpm(), "velocity", lambda x, t: x)(jnp.ones((2, 3)), 5), TypeError, "t is int32"),
        (lambda: TWO_MODES.denoiser(VP())(jnp.ones((2, 2)), jnp.ones(3)), ValueError, r"t of shape \[3\] for x of"),
        (
            lambda: TWO_MODES.denoiser(ddpm()).velocity(jnp.ones((2, 2)), 5),
            TypeError,
            r"real times, t\.astype\(float\)",
        ),
        (lambda: Denoiser(VP, lambda x, t: x), TypeError, r"a process is needed, not VP: say VP\(\)"),
        (lambda: Denoiser(VP(), None), TypeError, r"a function \(x, t\) -> Prediction is needed"),
        (lambda: TWO_MODES.denoiser(VP())(jnp.ones((2, 2), int), 0.5), TypeError, r"x is int32\[2, 2\]: real data"),
        (lambda: TWO_MODES.denoiser(VP())(jnp.ones((2, 2)), 5.0), ValueError, "t from 5 to 5: .* from 0.001 to 1"),
        (lambda: TWO_MODES.denoiser(ddpm())(jnp.ones((2, 2)), 1000), ValueError, "t from 1000 to 1000"),
        (lambda: TWO_MODES.denoiser(ddpm())(jnp.ones((2, 2)), -1), ValueError, "t from -1 to -1"),
        (lambda: from_network(VP(), "eps", lambda x, t: (x, x))(jnp.ones((2, 3)), 0.5), TypeError, "gives tuple"),
        (lambda: from_energy(VP, lambda x, t: x), TypeError, r"say VP\(\)"),
        (lambda: from_energy(VP(), 3), TypeError, "log_density is a int: a function is needed"),
        (lambda: from_energy(VP(), lambda x, t: x)(jnp.ones((2, 3)), 0.5), ValueError, r"gives \[2, 3\] for 2"),
        (lambda: as_energy(lambda x, t: x), TypeError, "a Denoiser is needed, not function"),
    ],
)
def test_denoisers_refuse_what_they_cannot_mean(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
def test_one_time_for_all_is_that_time_for_each():
    for process, t in ((ddpm(), 400), (VP(), 0.3), (ddpm(), 400.5)):
        denoiser, x = TWO_MODES.denoiser(process), jnp.ones((3, 2))
        np.testing.assert_array_equal(denoiser(x, t).x0, denoiser(x, jnp.full(3, t)).x0)
        if isinstance(t, float):
            np.testing.assert_array_equal(denoiser.velocity(x, t), denoiser.velocity(x, jnp.full(3, t)))


def test_a_whole_number_is_a_time_where_times_are_real():
    """As for `perturb`: 1 is 1.0 in continuous time, also for the velocity."""
    for process in (VP(), VE(), Flow(), EDM()):
        denoiser, x = TWO_MODES.denoiser(process), jnp.ones((3, 2))
        for ask in (denoiser, denoiser.velocity):
            for ours, other in zip(jax.tree.leaves(ask(x, 1)), jax.tree.leaves(ask(x, 1.0)), strict=True):
                np.testing.assert_array_equal(ours, other)


def dtypes_of(call, *arrays):
    """The dtypes of the result of `call(*arrays)`, which is not computed."""
    return {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(call, *arrays))}


@pytest.mark.quick(1)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("before", [True, False], ids=["made before x64", "made under x64"])
@pytest.mark.parametrize("name", PROCESSES)
def test_dtypes_of_x_are_kept_under_x64(name, before, dtype):
    """By solve for every target, by the bridge, the velocity, energies, and with outputs of any width."""
    process, bridge = (PROCESSES[name](), VP()) if before else (None, None)
    with jax.enable_x64(True):
        process, bridge = process or PROCESSES[name](), bridge or VP()
        x, want = jnp.ones((3, 2), dtype), {jnp.dtype(dtype)}
        denoiser = Denoiser(process, lambda x, t: prediction_from_x0(process, x, t, 0 * x))
        energy = from_energy(process, lambda x, t: -0.5 * jnp.sum(x**2, -1))
        times = levels(process, 5)[1:-1]
        for t in (times, times.astype(jnp.int32 if process.discrete else jnp.float32)):
            for target in TARGETS:
                if not why_not(name, target):
                    for output in (x, x.astype(jnp.float64)):
                        assert dtypes_of(lambda *a, target=target: solve(process, target, *a), output, x, t) == want
            for kind in (denoiser, as_energy(denoiser), energy):
                assert dtypes_of(kind, x, t) == want
        for t in (times.astype(jnp.float64), times.astype(jnp.float32), float(times[1])):
            assert dtypes_of(lambda x, t=t: denoiser.velocity(x, t), x) == want
        seen = []

        def predict(x, t):
            seen.append((x.dtype, t.dtype))
            return prediction_from_x0(bridge, x, t, 0 * x)

        source, part = Denoiser(bridge, predict), process.within(bridge)
        assert dtypes_of(source.under(part), x, levels(part, 5)[1:-1]) == want and seen == [(dtype, jnp.float32)]
        source(x, 0.5)
        assert seen[1] == (dtype, jnp.float32), "a Python number widens nothing"


@pytest.mark.slow
def test_a_denoiser_is_an_argument_of_jit():
    """The parameters in a Partial `predict` and the tables of a chain are leaves: new values have an effect and need no
    new program. The values that a plain function closes over are constants."""
    traces = []

    @jax.jit
    def x0(denoiser, x, t):
        traces.append(1)
        return denoiser(x, t).x0

    def net(params, x, t):
        return params * x

    def log_density(params, x, t):
        return -0.5 * params * jnp.sum(x**2, -1)

    x, t = jnp.ones((2, 3)), jnp.array([2, 5])
    kinds = [
        lambda p: from_network(ncsn(), "x0", Partial(net, p)),
        lambda p: from_energy(ncsn(), Partial(log_density, p)),
        lambda p: as_energy(from_network(ncsn(), "eps", Partial(net, p))),
        lambda p: from_network(VE(), "x0", Partial(net, p)).under(ncsn()),
        lambda p: Denoiser(ncsn(), Partial(lambda p, x, t: prediction_from_x0(ncsn(), x, t, p * x), p)),
    ]
    for make in kinds[:-1]:
        del traces[:]
        for p in (0.5, 2.0):
            params = jnp.array(p)
            np.testing.assert_allclose(x0(make(params), x, t), make(params)(x, t).x0, rtol=1e-5)
        assert len(traces) == 1
        slope = jax.grad(lambda denoiser: denoiser(x, t).x0.sum())(make(jnp.array(0.5)))
        assert any(abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope.predict))
    assert float(x0(kinds[-1](jnp.array(3.0)), x, t)[0, 0]) == 3.0
    constant = [from_network(ncsn(), "x0", lambda x, t, p=p: p * x) for p in (0.5, 2.0)]
    assert [float(x0(denoiser, x, t)[0, 0]) for denoiser in constant] == [0.5, 2.0], "never another function's program"
    # Taken apart and put together.
    denoiser = kinds[0](jnp.array(0.5))
    leaves, structure = jax.tree.flatten(denoiser)
    assert jax.tree.structure(jax.tree.unflatten(structure, [None] * len(leaves))) != structure
    again = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(again(x, t).x0, denoiser(x, t).x0)


@pytest.mark.slow
def test_a_process_of_ones_own_is_part_of_a_denoiser():
    """Also as an argument of jit, with its arrays as leaves."""
    from test_process import CUSTOM

    for make, _ in CUSTOM.values():
        process = make()
        denoiser = from_network(process, "v", Partial(lambda p, x, t: p * x, jnp.array(0.5)))
        x, t = jnp.ones((2, 3)), jnp.array([0.3, 0.6])
        want = denoiser(x, t)
        for a, b in zip(jax.jit(lambda denoiser, x, t: denoiser(x, t))(denoiser, x, t)[:3], want[:3], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        assert denoiser.velocity(x, t).shape == x.shape and refuse_target(process, "v") is None
        ends = [float(process.logsnr(end)) for end in (top(process), bottom(process))]
        if ends[0] < -8 and ends[1] > 4:
            assert denoiser.under(VP(t_min=0.02, t_max=0.8)).process == VP(t_min=0.02, t_max=0.8)
