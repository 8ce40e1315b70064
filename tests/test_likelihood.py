"""Log-likelihoods: on a mixture the ODE gives the exact one; the estimate of the bound is unbiased, and lies below."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_bound import bound_by_hand, gaussian_denoiser

from scoregen.data.scaling import Centered, Unit
from scoregen.denoiser import Denoiser, prediction_from_x0
from scoregen.likelihood import LIKELIHOODS, Bound, ProbabilityFlow, bits_per_dim, prior_log_prob
from scoregen.losses import VLB
from scoregen.process import EDM, PROCESSES, VE, VP, Flow, bottom, cosine, ddpm, ncsn, perturb, top
from scoregen.random import broadcast
from scoregen.samplers.ode import solve
from scoregen.testing.oracle import TWO_MODES, Mixture, gaussian
from scoregen.times import Own

EXACT = {"rtol": 1e-6, "atol": 1e-6}


def ends(process):
    """alpha and sigma at the least noisy and at the noisiest level."""
    return [(process.alpha(t), process.sigma(t)) for t in (bottom(process), top(process))]


# --- the bound


@pytest.mark.quick(1)
@pytest.mark.parametrize("strata", [0, 40])
@pytest.mark.parametrize("make", [lambda: ddpm(0.001, 0.3, 40, rescale=False), lambda: ncsn(0.01, 20.0, 40)])
def test_the_bound_of_gaussian_data_is_its_closed_form(exact, make, strata):
    """Its mean over data is the closed form, and its error is the scatter over the keys of one datum."""
    process, std, count = make(), 0.6, 2000
    x0 = std * jax.random.normal(jax.random.key(0), (count, 2))
    estimate = jax.jit(lambda x0: Bound(None, strata=strata)(gaussian_denoiser(process, std), jax.random.key(1), x0))
    nll = -np.asarray(estimate(x0).nats)
    want = bound_by_hand(process, std).sum()
    assert abs(nll.mean() - want) < 4 * nll.std() / math.sqrt(count)
    flow = jax.jit(lambda x0: ProbabilityFlow(None)(gaussian_denoiser(process, std), jax.random.key(1), x0))
    gap = nll - -np.asarray(flow(x0[:count]).nats)
    assert gap.mean() > 4 * gap.std() / math.sqrt(count)

    one = estimate(jnp.broadcast_to(jnp.array([0.5, -0.9]), (count, 2)))
    assert one.steps[0] == 80
    np.testing.assert_allclose(np.mean(np.asarray(one.error) ** 2), np.var(np.asarray(one.nats)), rtol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("process", [EDM(0.002, 80.0), Flow()], ids=["edm", "flow"])
def test_in_continuous_time_too(exact, process):
    """Kingma et al. 2021: the integral between the ends, and the two ends; see tests/test_bound.py."""
    std, count = 0.6, 4000
    x0 = std * jax.random.normal(jax.random.key(0), (count, 2))
    (a, s), (last, noise) = ends(process)
    low, high, prior = (float(v) ** 2 for v in (a / s, last / noise, process.prior_std()))
    way = math.log((1 + std**2 * low) / (1 + std**2 * high))
    top = float(noise**2) / prior - 1 - math.log(float(noise**2) / prior) + (float(last) * std) ** 2 / prior
    want = way + top + math.log(2 * math.pi * math.e / low)
    found = jax.jit(lambda x0: Bound(None)(gaussian_denoiser(process, std), jax.random.key(1), x0))(x0)
    nll = -np.asarray(found.nats)
    assert abs(nll.mean() - want) < 4 * nll.std() / math.sqrt(count)
    one = jax.jit(lambda x0: Bound(None, strata=32)(gaussian_denoiser(process, std), jax.random.key(1), x0))(
        jnp.broadcast_to(jnp.array([0.5, -0.9]), (count, 2))
    )
    np.testing.assert_allclose(np.mean(np.asarray(one.error) ** 2), np.var(np.asarray(one.nats)), rtol=0.2)


@pytest.mark.slow
def test_more_strata_are_surer(exact):
    """Four times as many strata have a quarter of the variance, far less than as many draws of the process's law."""
    process, std = VP(), 0.6
    x0 = jnp.broadcast_to(jnp.array([0.5, -0.9]), (1000, 2))
    of = lambda n: jax.jit(  # noqa: E731
        lambda x0: Bound(None, strata=n)(gaussian_denoiser(process, std), jax.random.key(1), x0)
    )(x0)
    few, many = (float(np.var(np.asarray(of(n).nats))) for n in (8, 32))
    assert 3 < few / many < 6
    times, noise, inner = jax.random.split(jax.random.key(2), 3)
    noised = perturb(process, noise, x0, Own().draw(process, (), times, 1000).t)
    plain = np.asarray(VLB(None, "nats")(gaussian_denoiser(process, std), noised, inner))
    assert many < 0.5 * float(np.var(plain)) / 64


@pytest.mark.slow
def test_the_bound_of_bytes_and_the_width_of_a_density(exact):
    """`Bound` passes its options on to `VLB`."""
    process, x0 = ddpm(0.001, 0.3, 10, rescale=False), jnp.round(20 * TWO_MODES.sample(jax.random.key(0), 3)) / 20
    denoiser = TWO_MODES.denoiser(process)
    of = lambda **o: Bound(**{"strata": 0} | o)(denoiser, jax.random.key(1), x0).nats  # noqa: E731
    np.testing.assert_allclose(of(width=0.5), of() + 2 * math.log(0.5), rtol=1e-9)
    assert (abs(of(bins=(-4.0, 4.0, 0.05)) - of()) > 0.5).all()
    assert (of(variance="large") != of()).all()


# --- the ODE


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_on_a_mixture_the_ode_has_its_density(exact, name):
    """With the noised mixture at the top: most defaults end too early for N(0, prior_std^2) to be right to 1e-3."""
    process, x0 = PROCESSES[name](), TWO_MODES.sample(jax.random.key(0), 16)
    (alpha, sigma), (last, noise) = ends(process)
    found = jax.jit(
        lambda x0: ProbabilityFlow(None, **EXACT)(
            TWO_MODES.denoiser(process), jax.random.key(1), x0, lambda x: TWO_MODES.log_prob(x, last, noise)
        )
    )(x0)
    want = TWO_MODES.log_prob(alpha * x0, alpha, sigma) + 2 * jnp.log(alpha)
    np.testing.assert_allclose(found.nats, want, atol=2e-5)
    assert not found.error.any() and (found.steps > 5).all() and (found.steps < 40).all()
    # It is the density of data with noise of deviation sigma / alpha.
    np.testing.assert_allclose(want, TWO_MODES.log_prob(x0, 1.0, sigma / alpha), rtol=1e-9)


WIDE = {
    "cosine": lambda: cosine(4000),
    "vp": lambda: VP(0.1, 40.0, t_min=1e-5),
    "edm": lambda: EDM(0.001, 3000.0),
    "flow": Flow,
}


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", WIDE)
def test_over_a_wide_range_it_is_the_density_of_the_data(exact, name):
    """With the prior at the top: only the denoiser is exact."""
    process, x0 = WIDE[name](), TWO_MODES.sample(jax.random.key(0), 16)
    found = jax.jit(lambda x0: ProbabilityFlow(None, **EXACT)(TWO_MODES.denoiser(process), jax.random.key(1), x0))(x0)
    (alpha, sigma), _ = ends(process)
    blurred = TWO_MODES.log_prob(x0, 1.0, sigma / alpha)
    np.testing.assert_allclose(found.nats, blurred, atol=1e-3)
    if name != "cosine":  # whose first level has noise of 0.003
        np.testing.assert_allclose(found.nats, TWO_MODES.log_prob(x0), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("process", [VP(), Flow(t_max=0.99)])
def test_it_is_the_integral_over_time_of_the_divergence(exact, process):
    """Song et al. 2021, eq. 39, as it stands there, with a denoiser that is not exact, in three dimensions."""
    mix = Mixture((0.4, 0.6), ((0.0, 0.5, -0.5), (1.0, 0.0, 0.3)), (0.5, 0.3))
    true, x0 = mix.denoiser(process), mix.sample(jax.random.key(0), 4)

    def predict(x, t):
        at = true(x, t)
        return prediction_from_x0(process, x, t, 0.9 * at.x0 + 0.1 * jnp.sin(at.x0[:, ::-1]))

    denoiser, ((alpha, _), _) = Denoiser(process, predict), ends(process)

    def one(x):
        def field(t, state):
            flow = lambda x: denoiser.velocity(x[None], t[None])[0]  # noqa: E731
            return flow(state[0]), jnp.trace(jax.jacrev(flow)(state[0]))

        (end, total), _ = solve(field, (x, jnp.zeros(())), bottom(process), top(process), 1e-8, 1e-8)
        std = process.prior_std()
        return total - 0.5 * jnp.sum((end / std) ** 2) - 1.5 * jnp.log(2 * jnp.pi * std**2)

    want = jax.jit(jax.vmap(one))(alpha * x0)
    flow = ProbabilityFlow(None, rtol=1e-8, atol=1e-8)
    found = jax.jit(lambda x: flow.at_the_end(denoiser, jax.random.key(0), x))(alpha * x0)
    np.testing.assert_allclose(found.nats, want, atol=1e-5)
    whole = jax.jit(lambda x: flow(denoiser, jax.random.key(0), x))(x0)
    np.testing.assert_allclose(whole.nats, want + 3 * jnp.log(alpha), atol=1e-5)


@pytest.mark.slow
def test_a_bridge_does_not_change_it(exact):
    """The likelihood belongs to the denoiser, here a denoiser for VE that is evaluated under VP."""
    ve, target, x0 = VE(0.01, 300.0), VP(0.1, 25.0).within(VE(0.01, 300.0)), TWO_MODES.sample(jax.random.key(0), 8)
    (alpha, sigma), (last, noise) = ends(target)
    bridged = TWO_MODES.denoiser(ve).under(target)
    end = lambda x: TWO_MODES.log_prob(x, last, noise)  # noqa: E731
    found = jax.jit(lambda x0: ProbabilityFlow(None, **EXACT)(bridged, jax.random.key(0), x0, end))(x0)
    np.testing.assert_allclose(found.nats, TWO_MODES.log_prob(x0, 1.0, sigma / alpha), atol=1e-4)


CLOUD = Mixture((0.3, 0.7), (tuple(np.linspace(-1, 1, 6)), tuple(np.linspace(0.5, -0.2, 6))), (0.5, 0.3))


@pytest.mark.slow
def test_hutchinson_is_right_within_its_error(exact):
    """In six dimensions of two modes: without bias, and with the error that it states."""
    process, runs = VP(), 150
    x0 = jnp.repeat(CLOUD.sample(jax.random.key(0), 4), runs, 0)
    end = lambda x: CLOUD.log_prob(x, *ends(process)[1])  # noqa: E731
    denoiser, keys = CLOUD.denoiser(process), jax.random.split(jax.random.key(1), len(x0))

    def found(**options):
        flow = ProbabilityFlow(None, **options, rtol=1e-5, atol=1e-5)
        got = jax.jit(lambda x0: flow(denoiser, keys, x0, end))(x0)
        return [np.asarray(a).reshape(4, runs) for a in got]

    exact_nats, _, _ = found()
    nats, error, _ = found(exact_dims=5, probes=4)
    apart = (nats - exact_nats).mean(1)
    spread = nats.std(1, ddof=1)
    assert (spread > 0.01).all()
    assert (abs(apart) < 4 * spread / math.sqrt(runs)).all()
    # The mean of the squared errors is the variance; both have a relative deviation of about sqrt(2 / runs) or less.
    np.testing.assert_allclose((error**2).mean(1), spread**2, rtol=0.5)
    nats, error, _ = found(exact_dims=5, probes=2)
    fewer = nats.std(1, ddof=1)
    np.testing.assert_allclose((fewer**2 / spread**2).mean(), 2, rtol=0.35)
    # With two directions the error would be half as large without ddof = 1.
    np.testing.assert_allclose(((error**2).mean(1) / fewer**2).mean(), 1, rtol=0.3)


@pytest.mark.slow
def test_every_example_has_its_own_key(exact):
    """The same value whatever the batch, of bytes and with random directions, by the ODE and by the bound."""
    process, keys = VP(), jax.random.split(jax.random.key(1), 6)
    x0 = CLOUD.sample(jax.random.key(0), 6)
    bins = (-3.0, 3.0, 0.05)
    for estimate in (ProbabilityFlow(bins, exact_dims=0, probes=2), Bound(bins, strata=8)):
        of = jax.jit(lambda key, x0, e=estimate: e(CLOUD.denoiser(process), key, x0))
        whole, half = of(keys, x0).nats, of(keys[3:], x0[3:]).nats
        np.testing.assert_allclose(whole[3:], half, rtol=1e-9)
        assert (abs(of(keys, x0[jnp.zeros(6, int)]).nats - whole[0])[1:] > 1e-4).all()


@pytest.mark.slow
def test_images_and_points_are_alike(exact):
    """An example of any shape is the vector of its dimensions."""
    process, x0 = VP(), CLOUD.sample(jax.random.key(0), 3)

    def predict(x, t):
        found = CLOUD.denoiser(process)(x.reshape(len(x), -1), t)
        return prediction_from_x0(process, x, t, found.x0.reshape(x.shape))

    flow, image = ProbabilityFlow(None, exact_dims=0), Denoiser(process, predict)
    of = lambda denoiser: jax.jit(lambda x0: flow(denoiser, jax.random.key(0), x0).nats)  # noqa: E731
    np.testing.assert_allclose(of(image)(x0.reshape(3, 2, 3, 1)), of(CLOUD.denoiser(process))(x0), rtol=1e-9)


# --- bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scaling", "offset"), [(Unit(), 8.0), (Unit(False), math.log2(255)), (Centered(), math.log2(255 / 2))]
)
def test_a_density_is_counted_over_bytes(exact, scaling, offset):
    """The bits per dimension are -log2(width) more than for a density: 8 more for [0, 1)."""
    process, data = EDM(0.001, 300.0), gaussian((0.4, 0.5, 0.6), 0.1)
    x0 = data.sample(jax.random.key(0), 200)
    estimate = ProbabilityFlow(scaling.bins, scaling.width, **EXACT)
    end = lambda x: data.log_prob(x, *ends(process)[1])  # noqa: E731
    found = jax.jit(lambda x0: estimate(data.denoiser(process), jax.random.key(1), x0, end))(x0)
    bits = np.asarray(bits_per_dim(found.nats, 3))
    want = np.asarray(-data.log_prob(x0) / (3 * math.log(2)) + offset)
    if scaling.bins is None:
        np.testing.assert_allclose(bits, want, atol=2e-3)
    else:
        # The data are spread over a byte, x0 + width (u - 1/2), which adds width^2 / 12 to the variance.
        more = scaling.width**2 / 12 / (2 * 0.1**2 * math.log(2))
        apart = bits - want - more
        assert apart.std() > 0.005
        # The effect of this spread: the slope of -log p is x / std^2, with mean square 1 / std^2, per dimension.
        moved = scaling.width / math.sqrt(12) / 0.1 / (math.log(2) * math.sqrt(3))
        np.testing.assert_allclose(apart.std(), moved, rtol=0.15)
        assert abs(apart.mean()) < 4 * moved / math.sqrt(200)


def test_the_prior_is_a_normal_density(exact):
    x = 3.0 * np.random.default_rng(0).standard_normal((4, 2, 3))
    process = ncsn(0.1, 2.0, data_std=1.5)
    want = np.sum(-0.5 * x**2 / 6.25 - 0.5 * math.log(2 * math.pi * 6.25), (1, 2))
    np.testing.assert_allclose(prior_log_prob(process, jnp.asarray(x)), want, rtol=1e-9)
    with pytest.raises(ValueError, match="uniform"):
        prior_log_prob(ncsn(start="uniform"), jnp.asarray(x))


@pytest.mark.parametrize("estimate", [ProbabilityFlow(), Bound()])
def test_from_a_uniform_start_nothing_has_a_likelihood(estimate):
    assert estimate.refuse(ncsn()) is None
    refused = estimate.refuse(ncsn(start="uniform"))
    assert refused is not None and refused.fixes == ("process.start=normal",)
    with pytest.raises(ValueError, match="uniform"):
        estimate(TWO_MODES.denoiser(ncsn(start="uniform")), jax.random.key(0), jnp.ones((2, 2)))


# --- what cannot be


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ProbabilityFlow(None, probes=1), "probes=1"),
        (lambda: ProbabilityFlow(None, exact_dims=-1), "exact_dims"),
        (lambda: ProbabilityFlow(None, rtol=0.0), "rtol"),
        (lambda: ProbabilityFlow(None, width=0.0), "width"),
        (lambda: Bound(None, strata=-1), "strata"),
        (lambda: Bound(None, variance="none"), "variance"),
        (lambda: ProbabilityFlow(rtol=math.inf), "rtol=inf"),
        (
            lambda: Bound(None, strata=0)(TWO_MODES.denoiser(VP()), jax.random.key(0), jnp.ones((1, 2))),
            "continuous time",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("estimate", [ProbabilityFlow((0.0, 255.0, 1.0)), Bound(strata=2)])
def test_what_is_no_denoiser_and_what_are_no_data(estimate):
    """Integer data are refused because the noise over a bin would be rounded to 0."""
    denoiser, x0 = TWO_MODES.denoiser(VP()), jnp.ones((2, 2))
    with pytest.raises(TypeError, match="a Denoiser is needed, not function"):
        estimate(lambda x, t: x, jax.random.key(0), x0)
    with pytest.raises(TypeError, match=r"x0 is uint8\[2, 2\]: real data"):
        estimate(denoiser, jax.random.key(0), x0.astype(jnp.uint8))


def test_where_the_solver_gives_up_it_is_nan():
    (found, _), _ = jax.jit(
        lambda x: solve(lambda t, y: (y[0] ** 2, y[1]), (x, x), jnp.zeros(()), jnp.ones(()), 1e-4, 1e-4)
    )(jnp.float32(2.0))
    assert np.isnan(found)  # dy/dt = y^2 from 2 is infinite at t = 1/2


@pytest.mark.slow
def test_data_that_are_all_one_point(exact):
    """The data have no variance: the density at the datum is the density of the noise."""
    process, x0 = EDM(), jnp.ones((3, 2))
    point = Denoiser(process, lambda x, t: prediction_from_x0(process, x, t, jnp.ones_like(x)))
    found = jax.jit(lambda x0: ProbabilityFlow(None)(point, jax.random.key(0), x0))(x0)
    np.testing.assert_allclose(found.nats, -2 * (0.5 * math.log(2 * math.pi) + math.log(0.002)), atol=2e-3)
    bound = jax.jit(lambda x0: Bound(None)(point, jax.random.key(0), x0))(x0)
    assert np.isfinite(bound.nats).all() and broadcast(bound.error, x0).shape == (3, 1)


def test_a_denoiser_that_knows_its_examples_is_refused():
    """The solver takes one example at a time: a denoiser that holds three examples would always use the first."""
    means = jnp.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    denoiser = Denoiser(VP(), lambda x, t: prediction_from_x0(VP(), x, t, means))
    with pytest.raises(ValueError, match="one value per example of a batch"):
        ProbabilityFlow(None)(denoiser, jax.random.key(0), means)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("x64", "dtype"), [(False, "float32"), (True, "float32"), (True, "float64")])
def test_likelihoods_keep_the_dtype_of_the_data(x64, dtype, name):
    """By the ODE with the exact trace and with random directions, and by the bound, of a density and of bins."""
    with jax.enable_x64(x64):
        denoiser = TWO_MODES.denoiser(PROCESSES[name]())
        x0 = TWO_MODES.sample(jax.random.key(0), 3).astype(dtype)
        for bins in (None, (-3.0, 3.0, 0.05)):
            for estimate in (ProbabilityFlow(bins), ProbabilityFlow(bins, exact_dims=0), Bound(bins, strata=4)):
                found = jax.eval_shape(estimate, denoiser, jax.random.key(1), x0)
                assert found.nats.dtype == found.error.dtype == dtype, estimate
    assert {kind.__name__ for kind in LIKELIHOODS.values() if isinstance(kind, type)} == {"ProbabilityFlow", "Bound"}
