"""Every process: kernel, times, posterior, differential equation and prior; and processes that a user writes."""

import copy
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from levels import levels

from scoregen.losses.matching import snr_lost
from scoregen.process import (
    EDM,
    PROCESSES,
    VE,
    VP,
    Chain,
    Continuous,
    CosineVP,
    Flow,
    Process,
    SubVP,
    betas,
    bottom,
    cosine,
    covers,
    ddpm,
    drift_diffusion,
    ncsn,
    perturb,
    posterior,
    sigmas,
    snr_loss_rate,
    top,
    vanishes,
)
from scoregen.random import broadcast, by_example, check_key, example_keys, normal
from scoregen.testing import check_process
from scoregen.times import UniformLogSNR

MADE = {name: make() for name, make in PROCESSES.items()}
CHAINS = [name for name, process in MADE.items() if process.discrete]
CONTINUOUS = [name for name, process in MADE.items() if not process.discrete]


def linear_beta(t):
    """beta(t) and its integral, with the published 0.1 and 20 (Song et al. 2021, appendix C)."""
    return 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2


def kernel(name, t):
    """alpha^2 and sigma^2 of the default processes at times t, spelled out again from the papers in float64."""
    t = np.asarray(t, np.float64)
    one = np.ones_like(t)
    match name:
        case "ncsn":
            return one, (0.01 * 100 ** (t / 9)) ** 2
        case "sigmas":
            return one, np.array([0.01, 0.03, 0.1, 0.3, 1.0, 3.0])[t.astype(int)] ** 2
        case "ve":
            return one, (0.01 * 5000**t) ** 2
        case "edm":
            return one, t**2
        case "flow":
            return (1 - t) ** 2, t**2
        case "vp":
            alpha2 = np.exp(-linear_beta(t)[1])
            return alpha2, 1 - alpha2
        case "subvp":
            alpha2 = np.exp(-linear_beta(t)[1])
            return alpha2, (1 - alpha2) ** 2
        case "vp_cosine":
            alpha2 = (np.cos((t + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
            return alpha2, 1 - alpha2
        case "ddpm":
            steps = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
        case "cosine":
            abar = [np.cos((i / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2 for i in range(1001)]
            steps = [min(1 - abar[i + 1] / abar[i], 0.999) for i in range(1000)]
        case "betas":
            steps = [1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.5, 0.7, 0.9]
        case _:  # a process that was added: compared with itself in float64; its own test checks its formulas
            with jax.enable_x64(True):
                added = PROCESSES[name]()
                alpha2 = np.asarray(added.alpha(jnp.asarray(t))) ** 2
                return alpha2, np.asarray(added.sigma(jnp.asarray(t))) ** 2
    product, alpha2 = 1.0, []
    for beta in steps:
        product *= 1 - beta
        alpha2.append(product)
    alpha2 = np.array(alpha2)[t.astype(int)]
    return alpha2, 1 - alpha2


def published_sde(name, t):
    """f and g^2 as the papers give them, in float64."""
    beta, integral = linear_beta(t)
    match name:
        case "vp":  # Song et al. 2021, eq. 11
            return -beta / 2, beta
        case "subvp":  # eq. 13
            return -beta / 2, beta * (1 - np.exp(-2 * integral))
        case "ve":  # eq. 30
            return 0 * t, (0.01 * 5000**t * np.sqrt(2 * np.log(5000))) ** 2
        case "edm":  # Karras et al. 2022, eq. 5 of appendix B with sigma(t) = t
            return 0 * t, 2 * t
        case "flow":  # d log(1 - t) / dt, and 2 sigma (sigma' - f sigma) = 2 t (1 + t / (1 - t))
            return -1 / (1 - t), 2 * t / (1 - t)
        case "vp_cosine":  # -beta / 2 and beta, as of every variance-preserving process, beta = -d log abar / dt
            beta = np.pi / 1.008 * np.tan((t + 0.008) / 1.008 * np.pi / 2)
            return -beta / 2, beta
    # A process that was added, from its kernel by differences: f = alpha' / alpha, g^2 = d(sigma^2)/dt - 2 f sigma^2.
    step = 1e-4 * t
    (low, before), (_, var), (high, after) = (kernel(name, at) for at in (t - step, t, t + step))
    f = (np.log(high) - np.log(low)) / (4 * step)
    return f, (after - before) / (2 * step) - 2 * f * var


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", PROCESSES)
def test_kernel_is_the_papers(name):
    """alpha, sigma and lam = log(alpha^2 / sigma^2) agree in float32 with float64, and lam falls."""
    process: Process = MADE[name]
    t = levels(process)[::-1]
    alpha2, sigma2 = kernel(name, t)
    np.testing.assert_allclose(process.alpha(t) ** 2, alpha2, rtol=3e-6)
    np.testing.assert_allclose(process.sigma(t) ** 2, sigma2, rtol=3e-6)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(process.logsnr(t), np.log(alpha2 / sigma2), rtol=2e-6, atol=2e-6)
    assert (np.asarray(process.logsnr(t[1:])) < np.asarray(process.logsnr(t[:-1]))).all(), "a larger time is noisier"


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", PROCESSES)
def test_time_inverts_logsnr_and_is_held_at_the_ends(name):
    process = MADE[name]
    t = levels(process)
    # In float32, lam has a relative error of 1e-6, and the time has the error of lam divided by dlam/dt.
    np.testing.assert_allclose(process.time(process.logsnr(t)), t, rtol=3e-5, atol=1e-5)
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        t = levels(process)
        np.testing.assert_allclose(process.time(process.logsnr(t)), t, rtol=1e-9, atol=1e-12)
        least, most = float(t[-1]), float(t[0])
        ends = process.logsnr(t[jnp.array([-1, 0])])
        out = jnp.array([jnp.inf, ends[0] + 1, ends[1] - 1, -jnp.inf])
        np.testing.assert_allclose(process.time(out), [least, least, most, most], rtol=1e-14)


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", CHAINS)
def test_real_times_lie_between_levels(name):
    chain = MADE[name]
    t = jnp.arange(chain.levels)
    real = t.astype(jnp.float32)
    for method in (chain.alpha, chain.sigma, chain.logsnr):
        np.testing.assert_allclose(method(real), method(t), rtol=2e-5, atol=1e-5)
    half = real[:-1] + 0.5
    np.testing.assert_allclose(chain.time(chain.logsnr(half)), half, atol=2e-3)
    # Halfway lam is the mean of its neighbours, and alpha the geometric mean.
    alpha2, sigma2 = kernel(name, t)
    lam = np.log(alpha2 / sigma2)
    np.testing.assert_allclose(chain.logsnr(half), (lam[1:] + lam[:-1]) / 2, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(chain.alpha(half) ** 4, alpha2[1:] * alpha2[:-1], rtol=1e-5)
    # The three agree between levels too: lam is log(alpha^2 / sigma^2) everywhere.
    lam = 2 * (jnp.log(chain.alpha(half)) - jnp.log(chain.sigma(half)))
    np.testing.assert_allclose(lam, chain.logsnr(half), rtol=1e-5, atol=1e-5)


@pytest.mark.quick(5)
@pytest.mark.parametrize("name", PROCESSES)
def test_rate_is_the_loss_of_signal_to_noise(name):
    """-dlam/dt by finite differences; for a chain, (SNR_{t-1} - SNR_t) / SNR_t."""
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        if process.discrete:
            alpha2, sigma2 = kernel(name, np.arange(process.levels))
            snr = alpha2 / sigma2
            step = (snr[:-1] - snr[1:]) / snr[1:]
            rate = snr_loss_rate(process, jnp.arange(process.levels))
            np.testing.assert_allclose(rate, [step[0], *step], rtol=1e-8)
            return
        t = np.geomspace(process.t_min, process.t_max, 52)[1:-1]
        lam = [np.log(np.divide(*kernel(name, t * (1 + h)))) for h in (-1e-5, 1e-5)]
        np.testing.assert_allclose(snr_loss_rate(process, jnp.asarray(t)), (lam[0] - lam[1]) / (2e-5 * t), rtol=1e-5)


@pytest.mark.parametrize("name", CHAINS)
def test_single_steps_have_the_law_of_the_one_jump(name):
    """THEORY 1: noise added one level at a time gives alpha_t and sigma_t^2: variances add, not standard deviations."""
    chain = MADE[name]
    alpha, sigma = (np.asarray(f(levels(chain)[::-1]), np.float64) for f in (chain.alpha, chain.sigma))
    mean, var = alpha[0], sigma[0] ** 2
    for t in range(1, chain.levels):
        # q(x_t | x_{t-1}), the only Gaussian with these two levels' marginals.
        factor = alpha[t] / alpha[t - 1]
        noise = sigma[t] ** 2 - factor**2 * sigma[t - 1] ** 2
        assert noise > 0
        mean, var = factor * mean, factor**2 * var + noise
    np.testing.assert_allclose([mean, var], [alpha[-1], sigma[-1] ** 2], rtol=1e-6)
    published = {"ddpm": np.linspace(1e-4, 0.02, 1000), "betas": [1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.5, 0.7, 0.9]}
    if name in published:  # and there the single step is the published one
        np.testing.assert_allclose((alpha[1:] / alpha[:-1]) ** 2, 1 - np.array(published[name])[1:], rtol=5e-7)


@pytest.mark.quick(6)
@pytest.mark.parametrize("name", PROCESSES)
def test_perturb_draws_from_the_kernel(name):
    process = MADE[name]
    t = jnp.repeat(levels(process, 3), 20_000)
    x0 = jnp.full((60_000, 2), 1.5)
    noised = perturb(process, jax.random.key(1), x0, t)
    x = np.asarray(noised.x, np.float64).reshape(3, 20_000, 2)
    alpha, sigma = (np.sqrt(a)[:, None] for a in kernel(name, levels(process, 3)))
    assert (abs(x.mean(1) - 1.5 * alpha) < 5 * sigma / np.sqrt(20_000)).all()
    assert (abs(x.std(1) / sigma - 1) < 5 / np.sqrt(2 * 20_000)).all()
    again = 1.5 * alpha[:, None] + sigma[:, None] * np.asarray(noised.eps).reshape(3, 20_000, 2)
    np.testing.assert_allclose(x, again, rtol=3e-6, atol=3e-6)
    # Dimensions are independent: the correlation of their noise is only statistical.
    assert abs(np.corrcoef(np.asarray(noised.eps).T)[0, 1]) < 5 / np.sqrt(60_000)


def test_noise_is_keyed_by_example():
    key = jax.random.key(3)
    few, many = normal(key, (3, 4)), normal(key, (7, 4))
    np.testing.assert_array_equal(few, many[:3])
    assert len(np.unique(np.asarray(many))) == many.size


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_batch_of_keys_has_one_for_each_example(count):
    """One key for three examples would be broadcast, and give all of them the same noise."""
    keys = jax.random.split(jax.random.key(0), count)
    for call in (
        lambda: example_keys(keys, 3),
        lambda: normal(keys, (3, 2)),
        lambda: VP().prior(keys, (3, 2)),
        lambda: ncsn(start="uniform").prior(keys, (3, 2)),
        lambda: perturb(VP(), keys, jnp.ones((3, 2)), jnp.full(3, 0.5)),
    ):
        with pytest.raises(
            ValueError, match=rf"keys of shape \[{count}\] for 3 examples: give one key, or one for each"
        ):
            call()
    np.testing.assert_array_equal(by_example(jax.random.normal, keys, (count, 2)), normal(keys, (count, 2)))


def test_broadcast_has_the_dtype_of_x_only_among_real_numbers():
    """A factor of 0.5 for images of bytes must not become 0."""
    half, x = jnp.array([0.5]), jnp.ones((1, 2, 2))
    assert broadcast(half, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert broadcast(half, x.astype(jnp.uint8)).tolist() == [[[0.5]]]
    assert broadcast(jnp.array([3]), x).dtype == jnp.int32


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, r"not int: say jax.random.key\(0\)"),
        (np.int64(7), r"not int64: say jax.random.key\(7\)"),
        (True, r"not bool: say jax.random.key\(0\)"),
        (None, r"not NoneType: say jax.random.key\(0\)"),
        (jnp.array(3), r"not an array int32\[\]: say jax.random.key\(0\)"),
        (
            jax.random.PRNGKey(0),
            r"typed random key is needed, not one of jax.random.PRNGKey: say jax.random.key\(seed\)",
        ),
        (jax.random.split(jax.random.PRNGKey(0)), "typed random key is needed"),
    ],
)
def test_what_is_no_key_is_refused_with_the_right_call(key, message):
    """Every function that takes a key refuses it, also under `jit`."""
    x0, t = jnp.ones((2, 3)), jnp.array([0, 1])
    for call in (
        lambda: check_key(key),
        lambda: perturb(ddpm(), key, x0, t),
        lambda: VP().prior(key, (2, 3)),
        lambda: ncsn(start="uniform").prior(key, (2, 3)),
        lambda: jax.jit(lambda x0: perturb(ddpm(), key, x0, t))(x0),
    ):
        with pytest.raises(TypeError, match=message):
            call()


@pytest.mark.parametrize(
    ("process", "x0", "t", "error", "message"),
    [
        # Times from 0 to 1, as in continuous time, would mean almost no noise on a chain.
        (
            ddpm(),
            jnp.ones((2, 3)),
            [0.1, 0.5],
            TypeError,
            r"t is float32.* levels, integers from 0 to 999: say t=jnp\.round",
        ),
        (ncsn(), jnp.ones((2, 3)), jnp.array([1.0, 9.0]), TypeError, r"integers from 0 to 9: say t=jnp\.round"),
        (
            ddpm(),
            jnp.ones((2, 3)),
            [5, 1000],
            ValueError,
            "t from 5 to 1000: the times of this process are from 0 to 999",
        ),
        (ddpm(), jnp.ones((2, 3)), [-1, 3], ValueError, "t from -1 to 3: the times of this process are from 0 to 999"),
        (VP(), jnp.ones((2, 3)), [0.5, 500], ValueError, "t from 0.5 to 500: .* are from 0.001 to 1"),
        (VP(), jnp.ones((2, 3)), [0.0, 0.5], ValueError, "t from 0 to 0.5: .* are from 0.001 to 1"),
        (VP(), jnp.ones((2, 3)), [0.5, math.nan], ValueError, "t from nan to nan"),
        (EDM(), jnp.ones((2, 3)), [0.5, 81.0], ValueError, "are from 0.002 to 80"),
        (VP(), jnp.ones((2, 3)), 0.5, ValueError, r"t of shape \[\] for 2 examples: .* jnp.full\(2, t\)"),
        (VP(), jnp.ones((2, 3)), [0.5], ValueError, r"t of shape \[1\] for 2 examples: give a time for each"),
        (VP(), jnp.ones((2, 3)), [[0.5], [0.5]], ValueError, r"t of shape \[2, 1\] for 2 examples"),
        (VP(), [[1, 2], [3, 4]], [0.5, 0.5], TypeError, r"x0 is int32\[2, 2\]: real data .* such as x / 127.5 - 1"),
        (VP(), np.ones((2, 4, 4, 3), np.uint8), [0.5, 0.5], TypeError, r"x0 is uint8\[2, 4, 4, 3\]: real data"),
        (VP(), 1.0, 0.5, TypeError, r"x0 is float32\[\]: real data \[B, ...\]"),
        (ddpm, jnp.ones((2, 3)), [5, 7], TypeError, r"a process is needed, not ddpm: say ddpm\(\)"),
        (VP, jnp.ones((2, 3)), [0.5, 0.7], TypeError, r"a process is needed, not VP: say VP\(\)"),
        (
            "ddpm",
            jnp.ones((2, 3)),
            [5, 7],
            TypeError,
            r"a process is needed, not 'ddpm': say scoregen\.process\.ddpm\(\)",
        ),
    ],
)
def test_perturb_refuses_what_it_cannot_mean(process, x0, t, error, message):
    with pytest.raises(error, match=message):
        perturb(process, jax.random.key(0), x0, t)


@pytest.mark.quick(3)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_ends_may_be_rounded(name, dtype):
    """The dtype of the times may round an end to a time beyond the end: 0.999 is 1 in bfloat16."""
    process = PROCESSES[name]()
    noised = perturb(process, jax.random.key(0), jnp.ones((2, 3)), jnp.array(process.ends, dtype))
    assert bool(jnp.isfinite(noised.x).all())


@pytest.mark.parametrize("make", [lambda: ddpm(steps=100.5), lambda: cosine(9.5), lambda: ncsn(levels=10.0)])
def test_a_chain_has_a_whole_number_of_levels(make):
    with pytest.raises(TypeError, match="an integer is needed"):
        make()


def test_perturb_takes_lists_and_integers_of_continuous_time():
    key, x0 = jax.random.key(0), [[1.0, 2.0], [3.0, 4.0]]
    for process, t in ((ddpm(), [3, 999]), (VP(), [1e-3, 1.0]), (VE(), [1, 1]), (EDM(), [80, 1])):
        noised = perturb(process, key, x0, t)
        exact = jnp.asarray(t) if process.discrete else jnp.asarray(t, float)
        assert noised.t.dtype == exact.dtype and noised.x.dtype == jnp.float32
        np.testing.assert_array_equal(noised.x, perturb(process, key, jnp.asarray(x0), exact).x)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", PROCESSES)
def test_perturb_is_the_same_inside_jit(name):
    """Times may be an argument or a constant of the function. Real times of a chain are refused during tracing too."""
    process, key, x0 = MADE[name], jax.random.key(0), jnp.ones((3, 2))
    t = levels(process, 3)
    want = perturb(process, key, x0, t).x
    for call in (
        lambda: jax.jit(lambda x0, t: perturb(process, key, x0, t))(x0, t),
        lambda: jax.jit(lambda x0: perturb(process, key, x0, t))(x0),
        lambda: jax.jit(perturb)(process, key, x0, t),
    ):
        np.testing.assert_allclose(call().x, want, rtol=1e-5, atol=1e-6)
    beyond = jnp.asarray([process.ends[1] + 1] * 3)
    with pytest.raises(ValueError, match="the times of this process are from"):
        jax.jit(lambda x0: perturb(process, key, x0, beyond))(x0)
    if process.discrete:
        with pytest.raises(TypeError, match="levels, integers from 0"):
            jax.jit(lambda x0, t: perturb(process, key, x0, t))(x0, t.astype(float))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("before", [True, False], ids=["made before x64", "made under x64"])
@pytest.mark.parametrize("name", PROCESSES)
def test_dtypes_of_data_are_kept_under_x64(name, before, dtype):
    """perturb and posterior keep the dtype of the data for times of 64 or 32 bits. Functions of real times keep the
    dtype of the times."""
    process = PROCESSES[name]() if before else None
    with jax.enable_x64(True):
        process = process or PROCESSES[name]()
        x0 = jnp.ones((3, 2), dtype)

        def both(x0, t):
            noised = perturb(process, jax.random.key(0), x0, t[:-1])
            return noised.x0, noised.eps, noised.x, posterior(process, noised.x, x0, t[:-1], t[1:])

        for t in (levels(process, 4), levels(process, 4).astype(jnp.int32 if process.discrete else jnp.float32)):
            assert {a.dtype for a in jax.tree.leaves(jax.eval_shape(both, x0, t))} == {jnp.dtype(dtype)}
        for real in (jnp.float32, jnp.float64):
            t = levels(process, 4).astype(real)
            assert {a.dtype for a in jax.eval_shape(lambda t: drift_diffusion(process, t), t)} == {jnp.dtype(real)}
            assert jax.eval_shape(lambda t: process.time(process.logsnr(t)), t).dtype == real


def bayes(name, t, s, x, x0):
    """The law of x_s given x_t and x_0: the product of q(x_s | x_0) and q(x_t | x_s), in float64."""
    (alpha2_t, sigma2_t), (alpha2_s, sigma2_s) = kernel(name, t), kernel(name, s)
    factor = np.sqrt(alpha2_t / alpha2_s)
    noise = sigma2_t - factor**2 * sigma2_s
    precision = 1 / sigma2_s + factor**2 / noise
    return (np.sqrt(alpha2_s) * x0 / sigma2_s + factor * x / noise) / precision, precision**-0.5


@pytest.mark.quick(4)
@pytest.mark.parametrize("name", PROCESSES)
def test_posterior_is_bayes_rule(name):
    """For all pairs of levels of a grid, also at the end of flow matching, where x_t does not depend on x_s."""
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        grid = np.asarray(levels(process, 9))
        t, s = (grid[i] for i in np.triu_indices(len(grid), 1))
        x, x0 = np.full((len(t), 1), 0.7), np.full((len(t), 1), -0.4)
        mean, std = posterior(process, jnp.asarray(x), jnp.asarray(x0), jnp.asarray(t), jnp.asarray(s))
        want = bayes(name, t, s, 0.7, -0.4)
        np.testing.assert_allclose(mean[:, 0], want[0], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(std, want[1], rtol=1e-7)


@pytest.mark.quick(6)
@pytest.mark.parametrize("name", PROCESSES)
def test_posterior_keeps_its_digits_between_neighbours(name):
    """In float32, where a difference of two variances would lose these digits."""
    process = MADE[name]
    grid = levels(process)[1 if name == "flow" else 0 :]
    t, s = grid[:-1], grid[1:]
    mean, std = posterior(process, jnp.full((len(t), 1), 0.7), jnp.full((len(t), 1), -0.4), t, s)
    want = bayes(name, t, s, 0.7, -0.4)
    # lam has an absolute error of 1e-6 or a relative error of 1e-7. This error of lam enters w, and with it std^2.
    np.testing.assert_allclose(mean[:, 0], want[0], rtol=5e-4, atol=1e-5)
    np.testing.assert_allclose(std, want[1], rtol=5e-4)


def test_posterior_is_ho_et_al():
    """THEORY 2, eqs. 6-7, and the same mean with x_0 eliminated, between neighbours."""
    chain = MADE["ddpm"]
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


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", CONTINUOUS)
def test_drift_and_diffusion_are_the_published(name):
    process = MADE[name]
    t = levels(process, 50)[1 if name == "flow" else 0 :]
    shipped = name in ("vp", "subvp", "ve", "edm", "flow", "vp_cosine")
    for dtype, rtol in ((np.float32, 1e-4), (np.float64, 1e-9 if shipped else 1e-4)):
        with jax.enable_x64(dtype is np.float64):
            f, g = drift_diffusion(process, jnp.asarray(np.asarray(t, dtype)))
            want = published_sde(name, np.asarray(t, np.float64))
            np.testing.assert_allclose(f, want[0], rtol=rtol, atol=0 if shipped else 1e-5)
            np.testing.assert_allclose(g**2, want[1], rtol=rtol)


def test_drift_of_flow_matching_is_infinite_where_the_data_are_gone():
    f, g = drift_diffusion(Flow(), jnp.ones(1))
    assert f.tolist() == [-math.inf] and g.tolist() == [math.inf]


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_differential_equation_has_the_kernel(name):
    """dm/dt = f m and dV/dt = 2 f V + g^2, integrated by Runge-Kutta from the least noisy time, give alpha, sigma^2.

    A chain's equation passes through its levels and has a kink at each of them, so the levels lie on edges of steps.
    """
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        if process.discrete:
            last = process.levels - 1  # far from the level before it, if beta is nearly one
            edges = [np.arange(0, last - 2, 0.25 if last > 99 else 0.01), np.linspace(last - 2, last, 401)]
            edges = np.concatenate(edges)
        else:  # f is infinite or very large at the end of some
            edges = np.linspace(process.t_min, process.t_max - 0.05 * (process.t_max - process.t_min), 1001)
        h = np.diff(edges)
        nodes = np.stack([edges[:-1] + 1e-7 * h, edges[:-1] + 0.5 * h, edges[1:] - 1e-7 * h])  # on either side of kinks
        f, g = (np.asarray(a).T for a in drift_diffusion(process, jnp.asarray(nodes)))
        first, last = (jnp.asarray(edge) for edge in (edges[0], edges[-1]))
        y = np.array([process.alpha(first), process.sigma(first) ** 2])
        slope = lambda f, g, y: np.array([f * y[0], 2 * f * y[1] + g**2])  # noqa: E731
        for step, fs, gs in zip(h, f, g, strict=True):
            a = slope(fs[0], gs[0], y)
            b = slope(fs[1], gs[1], y + step / 2 * a)
            c = slope(fs[1], gs[1], y + step / 2 * b)
            d = slope(fs[2], gs[2], y + step * c)
            y = y + step / 6 * (a + 2 * b + 2 * c + d)
        np.testing.assert_allclose(y, [process.alpha(last), process.sigma(last) ** 2], rtol=1e-5)


@pytest.mark.parametrize(
    ("chain", "name"),
    [
        (lambda n: ddpm(0.1 / n, 20.0 / n, n, rescale=False), "vp"),
        (cosine, "vp_cosine"),
        (lambda n: ncsn(0.01, 50.0, n), "ve"),
    ],
    ids=["ddpm", "cosine", "ncsn"],
)
def test_chains_converge_to_their_continuous_twins(chain, name):
    """THEORY 15: a step's drift and variance, over its length 1/N, tend to f and g^2, and twice the levels halve the
    error (Song et al. 2021, appendix B)."""
    errors = []
    with jax.enable_x64(True):
        for n in (500, 1000, 2000, 4000):
            made = chain(n)
            alpha, sigma = np.asarray(made.alphas), np.asarray(made.sigmas)
            i = np.arange(n // 10, 9 * n // 10)
            factor = alpha[i] / alpha[i - 1]
            f, g2 = published_sde(name, (i + 1) / n)
            drift = abs(n * (factor - 1) - f).max()
            errors.append((drift, abs(n * (sigma[i] ** 2 - (factor * sigma[i - 1]) ** 2) / g2 - 1).max()))
    errors = np.array(errors)[:, 1 if name == "ve" else 0 :]  # VE has no drift
    np.testing.assert_allclose(errors[:-1] / errors[1:], 2, atol=0.1)


def test_marginals_of_ddpm_converge_to_those_of_vp():
    """|abar_i - alpha(t_i)^2| at t_i = (i + 1) / N halves when N doubles."""
    errors = []
    with jax.enable_x64(True):
        for n in (500, 1000, 2000):
            t = (np.arange(n) + 1) / n
            errors.append(
                abs(np.asarray(ddpm(0.1 / n, 20.0 / n, n, rescale=False).alphas) ** 2 - kernel("vp", t)[0]).max()
            )
    np.testing.assert_allclose(np.array(errors[:-1]) / errors[1:], 2, atol=0.1)


def test_levels_of_ncsn_lie_on_ve():
    t = jnp.linspace(0.0, 1.0, 20)
    np.testing.assert_allclose(ncsn(0.01, 50.0, 20).sigmas, VE(0.01, 50.0).sigma(t), rtol=1e-5)


@pytest.mark.parametrize("steps", [25, 50, 100, 1000, 4000])
def test_ddpm_of_any_length_ends_in_noise(steps):
    """Betas from 1e-4 to 0.02 are multiplied by 1000 / steps (code of Nichol & Dhariwal 2021): abar of the last level
    is near exp(-10.05), the continuous limit, with second-order terms that fall with the length."""
    chain, betas = ddpm(steps=steps), np.linspace(1e-4, 0.02, steps) * 1000 / steps
    np.testing.assert_allclose(np.asarray(chain.alphas, np.float64) ** 2, np.cumprod(1 - betas), rtol=5e-6)
    alpha = float(chain.alpha(top(chain)))
    assert 0 < alpha < 0.0067
    if steps >= 1000:
        np.testing.assert_allclose(alpha**2, np.exp(-10.05), rtol=0.1)
    np.testing.assert_array_equal(ddpm(steps=steps, rescale=False).alphas[0], np.float32(np.sqrt(1 - 1e-4)))
    assert (np.diff(chain.logsnrs) < 0).all()


@pytest.mark.parametrize(("beta_max", "least"), [(0.02, 21), (0.0205, 21), (0.5, 501), (0.0005, 2)])
def test_ddpm_is_refused_where_its_betas_would_reach_one(beta_max, least):
    assert np.isfinite(ddpm(beta_max=beta_max, steps=least).logsnrs).all()
    if least > 2:
        with pytest.raises(ValueError, match=rf"steps={least - 1}: .* give {least} steps or more, rescale=False"):
            ddpm(beta_max=beta_max, steps=least - 1)
        assert ddpm(beta_max=beta_max, steps=least - 1, rescale=False).levels == least - 1


def test_ends_are_times():
    """The ends have the dtype of the process's times, so they can be passed to the process."""
    for process in MADE.values():
        assert top(process).dtype == bottom(process).dtype == (jnp.int32 if process.discrete else jnp.float32)
        assert (bottom(process), top(process)) == tuple(np.asarray(process.ends, top(process).dtype))
        assert process.logsnr(top(process)) < process.logsnr(bottom(process))
    with jax.enable_x64(True):
        assert top(VP()).dtype == jnp.float64


def test_vanishes_where_nothing_of_the_data_is_left():
    assert {name for name, process in MADE.items() if vanishes(process)} == {"flow"}
    assert vanishes(CosineVP(t_max=1.0)) and not vanishes(Flow(t_max=0.999))
    # A chain too may end in pure noise (Lin et al. 2024).
    alphas = jnp.array([0.9, 0.5, 0.0])
    chain = Chain(alphas, jnp.sqrt(1 - alphas**2), 2 * jnp.log(alphas) - jnp.log1p(-(alphas**2)))
    assert vanishes(chain)
    assert jax.jit(lambda t: t if vanishes(Flow()) else -t)(1.0) == 1.0, "also while something else is traced"
    assert jax.jit(lambda chain: vanishes(chain))(chain) == False  # noqa: E712 - tables without values


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("data_std", [0.0, 0.7, 2.0])
def test_prior_has_the_variance_of_noised_data(name, data_std):
    """sigma^2 + alpha^2 data_std^2 at the noisiest level."""
    process = dataclasses.replace(MADE[name], data_std=data_std)
    alpha2, sigma2 = kernel(name, levels(process, 1)[0])
    want = np.sqrt(sigma2 + alpha2 * data_std**2)
    np.testing.assert_allclose(process.prior_std(), want, rtol=2e-6)
    x = np.asarray(process.prior(jax.random.key(0), (5000, 2)), np.float64)
    assert abs(x.std() / want - 1) < 5 / np.sqrt(2 * x.size) and abs(x.mean()) < 5 * want / np.sqrt(x.size)


def test_priors():
    """The published starts: N(0, I) for what preserves the variance, the largest sigma for what does not."""
    for process in (ddpm(), cosine(), betas(), VP(), CosineVP(), Flow()):
        np.testing.assert_allclose(process.prior_std(), 1, rtol=1e-6)
    for process, sigma in ((ncsn(0.01, 50.0, 10), 50), (sigmas((1.0, 20.0)), 20), (VE(0.01, 50.0), 50), (EDM(), 80)):
        np.testing.assert_allclose(process.prior_std(), np.hypot(sigma, 0.5), rtol=1e-6)
    x = np.asarray(ncsn(start="uniform").prior(jax.random.key(0), (20_000, 2)))
    assert 0 <= x.min() < 0.001 and 0.999 < x.max() < 1 and abs(x.mean() - 0.5) < 0.01


def test_within_keeps_the_covered_levels():
    vp, ve = ddpm(), ncsn(0.05, 8.0, 20)
    part = vp.within(ve)
    ratio = np.asarray(part.sigmas / part.alphas)
    assert 0.049 < ratio.min() < 0.055 and 7.7 < ratio.max() < 8.1
    np.testing.assert_allclose(part.sigmas**2 + part.alphas**2, 1, rtol=1e-5)
    assert abs(np.asarray(part.prior(jax.random.key(0), (20_000, 2))).std() - 1) < 0.02
    assert vp.within(ncsn(0.01, 200.0, 20)).levels == 1000, "DDPM's lowest level is NCSN's 0.01"
    lam, ends = (np.log(np.divide(*kernel(*at))) for at in (("ddpm", np.arange(1000)), ("vp", [1.0, 1e-3])))
    covered = (ends[0] - 0.02 <= lam) & (lam <= ends[1] + 0.02)
    np.testing.assert_allclose(ddpm().within(VP()).logsnrs, lam[covered], rtol=1e-5)
    with pytest.raises(ValueError, match="fewer than two"):
        ncsn(100.0, 200.0, 10).within(vp.within(ve))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_within_cuts_a_continuous_process_to_the_covered_times(name):
    """The ends have the other's sigma / alpha, 0.05 and 8. A process that is covered entirely stays equal to itself."""
    whole = MADE[name]
    part = whole.within(ncsn(0.05, 8.0, 20))
    t = levels(part)[jnp.array([-1, 0])]
    alpha2, sigma2 = kernel(name, t)
    np.testing.assert_allclose(np.sqrt(sigma2 / alpha2), [0.05, 8.0], rtol=1e-4)
    assert type(part) is type(whole) and (t[0], t[1]) == (np.float32(part.t_min), np.float32(part.t_max))
    assert part.data_std == whole.data_std
    # The part keeps the schedule of the whole process: the same noise at the same time.
    np.testing.assert_array_equal(part.logsnr(t), whole.logsnr(t))
    assert whole.within(whole) == whole and part.within(whole) == part
    if name != "flow":  # which has noise levels above 1e5 too
        assert whole.within(ncsn(1e-5, 1e5, 10)) == whole
    assert covers(ncsn(0.05, 8.0, 20), part.logsnr(levels(part))).all()
    for apart in (ncsn(1e5, 1e6, 10), ncsn(1e-8, 1e-7, 10)):
        if name != "flow":
            with pytest.raises(ValueError, match="share no noise levels"):
                whole.within(apart)


def test_covers_to_one_percent():
    """sigma / alpha from 0.01 to 1 with a tolerance of 1 %, which is 0.02 in lam = -2 log sigma."""
    sigma = np.array([0.0098, 0.00992, 0.01, 0.5, 1.0, 1.008, 1.02])
    want = [False, True, True, True, True, True, False]
    assert covers(ncsn(0.01, 1.0, 10), jnp.asarray(-2 * np.log(sigma), jnp.float32)).tolist() == want
    assert covers(EDM(sigma_min=0.01, sigma_max=1.0), jnp.asarray(-2 * np.log(sigma), jnp.float32)).tolist() == want
    lam = np.asarray(-2 * np.log(sigma), np.float32)
    assert jax.jit(lambda t: t * float(covers(EDM(sigma_min=0.01, sigma_max=1.0), lam).sum()))(1.0) == 5, (
        "also under jit"
    )


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["betas", "sigmas"])
def test_levels_that_are_not_finite_are_refused(name, bad):
    with pytest.raises(ValueError, match=f"values={bad}: a finite number is needed$"):
        PROCESSES[name]((*np.linspace(0.01, 0.1, 2000), bad))


META = ["beta_min", "t_min", "t_max"]


def test_a_process_that_its_author_registers_can_be_differentiated():
    @functools.partial(jax.tree_util.register_dataclass, data_fields=["data_std", "beta_max"], meta_fields=META)
    @dataclasses.dataclass(frozen=True)
    class Mine(VP):
        pass

    slope = jax.grad(lambda process: -(process.data_std**2) * process.beta_max)(Mine(data_std=2.0, beta_max=3.0))
    assert (float(slope.data_std), float(slope.beta_max)) == (-12.0, -4.0)
    assert jax.eval_shape(lambda: Mine(data_std=jnp.ones(()))).data_std.shape == ()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ddpm(beta_min=0.0),
        lambda: ddpm(beta_max=1.0),
        lambda: ddpm(beta_min=0.5, beta_max=0.1),
        lambda: ddpm(steps=1),
        lambda: cosine(steps=1),
        lambda: ncsn(sigma_min=0.0),
        lambda: ncsn(sigma_min=2.0),
        lambda: ncsn(levels=1),
        lambda: ncsn(start="zeros"),
        lambda: ncsn(data_std=-1.0),
        lambda: betas((0.1,)),
        lambda: betas((1.0, 0.1)),
        lambda: betas((0.1, 1.0001)),
        lambda: betas((0.0, 0.1)),
        lambda: sigmas((1.0,)),
        lambda: sigmas((0.0, 1.0)),
        lambda: sigmas((1.0, 1.0)),
        lambda: sigmas((2.0, 1.0)),
        lambda: sigmas(data_std=-1.0),
        lambda: sigmas(data_std=math.nan),
        *(
            lambda make=make, options=options: make(**options)
            for make in (VP, SubVP, CosineVP, VE, Flow)
            for options in ({"t_min": 0.0}, {"t_max": 1.1}, {"t_min": 0.5, "t_max": 0.5}, {"data_std": -1.0})
        ),
        *(
            lambda make=make, options=options: make(**options)
            for make in (VP, SubVP)
            for options in ({"beta_min": 0.0}, {"beta_min": 2.0, "beta_max": 1.0})
        ),
        *(
            lambda make=make, options=options: make(**options)
            for make in (VE, EDM)
            for options in ({"sigma_min": 0.0}, {"sigma_min": 2.0, "sigma_max": 1.0}, {"sigma_max": 0.0})
        ),
        lambda: CosineVP(offset=-0.1),
        lambda: EDM(data_std=-1.0),
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


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_processes_are_constants_under_jit(name):
    """Pytrees without leaves: traced once for equal options and again for others; they can be closed over as well."""
    traces = []

    def everything(process, t):
        traces.append(1)
        return process.alpha(t), process.sigma(t), process.time(process.logsnr(t)), snr_loss_rate(process, t)

    jitted, make = jax.jit(everything), PROCESSES[name]
    process = make()
    assert jax.tree.leaves(process) == [] and hash(process) == hash(make())
    t = levels(process, 4)[1:]
    for traced in (jitted(process, t), jitted(make(), t), jax.jit(lambda t: everything(process, t))(t)):
        for a, b in zip(traced, everything(process, t), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    del traces[:]
    jitted(make(), t)
    assert not traces
    jitted(make(data_std=3.0), t)
    assert len(traces) == 1


@dataclasses.dataclass(frozen=True)
class Recipe(Continuous):
    """A process as in docs/recipes/process.md: a frozen dataclass, without another decorator."""

    most: float = 9.0
    least: float = -9.0
    t_min: float = 1e-3
    t_max: float = 1.0
    data_std: float = 1.0

    def alpha(self, t):
        return jnp.sqrt(jax.nn.sigmoid(self.logsnr(t)))

    def logsnr(self, t):
        return self.most + (self.least - self.most) * t

    def time(self, logsnr):
        return jnp.clip((self.most - logsnr) / (self.most - self.least), *self.ends)


@dataclasses.dataclass(frozen=True, eq=False)
class RecipeOfArrays(Recipe):
    """With fields that may be arrays, such as learned ends of the log-SNR."""

    most: jax.Array = dataclasses.field(default_factory=lambda: jnp.array(9.0))
    least: jax.Array = dataclasses.field(default_factory=lambda: jnp.array(-9.0))


@dataclasses.dataclass(frozen=True, slots=True)
class RecipeInSlots(Recipe):
    more: float = 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecipeRegistered(Recipe):
    """A process that the user registers with JAX: the numbers become leaves."""


class Plain(Process):
    """`Recipe` without a dataclass: all abstract methods, and an __init__ of its own."""

    def __init__(self, most=9.0, least=-9.0):
        self.lam = {"most": jnp.asarray(most), "least": jnp.asarray(least)}

    @property
    def ends(self):
        return 1e-3, 1.0

    @functools.cached_property
    def slope(self):
        return self.lam["least"] - self.lam["most"]

    def alpha(self, t):
        return jnp.sqrt(jax.nn.sigmoid(self.logsnr(t)))

    def sigma(self, t):
        return jnp.sqrt(jax.nn.sigmoid(-self.logsnr(t)))

    def logsnr(self, t):
        return self.lam["most"] + self.slope * t

    def time(self, logsnr):
        return jnp.clip((logsnr - self.lam["most"]) / self.slope, *self.ends)


class Faster(Process):
    """Another process at the square of the time: a process with a process in a field."""

    def __init__(self, inner):
        self.inner, self.name = inner, "faster"

    @property
    def ends(self):
        return self.inner.ends[0] ** 0.5, self.inner.ends[1] ** 0.5

    def alpha(self, t):
        return self.inner.alpha(t**2)

    def sigma(self, t):
        return self.inner.sigma(t**2)

    def logsnr(self, t):
        return self.inner.logsnr(t**2)

    def time(self, logsnr):
        return jnp.sqrt(self.inner.time(logsnr))


CUSTOM = {
    "dataclass": (Recipe, 0),
    "of arrays": (RecipeOfArrays, 2),
    "in slots": (RecipeInSlots, 0),
    "registered": (RecipeRegistered, 5),
    "plain": (Plain, 2),
    "nested": (lambda: Faster(VP()), 0),
    "nested, plain": (lambda: Faster(Plain()), 2),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize("kind", CUSTOM)
def test_a_process_of_ones_own_is_as_good_as_ours(kind):
    """It works as an argument of jit, under vmap and grad, and in all functions that take a process."""
    make, leaves = CUSTOM[kind]
    process, t = make(), jnp.array([0.1, 0.5, 0.9])
    process.logsnr(t)  # the value of a cached property must not become a leaf
    assert len(jax.tree.leaves(process)) == leaves
    traces = []

    @jax.jit
    def alpha(process, t):
        traces.append(1)
        return process.alpha(t)

    for each in (process, make() if leaves or kind in ("dataclass", "in slots") else process):
        np.testing.assert_allclose(alpha(each, t), process.alpha(t), rtol=1e-6)
    assert len(traces) == 1
    np.testing.assert_allclose(jax.vmap(type(process).alpha, (None, 0))(process, t), process.alpha(t), rtol=1e-6)
    slope = jax.vmap(jax.grad(lambda t: process.logsnr(t)))(t)
    np.testing.assert_allclose(jax.jit(snr_loss_rate)(process, t), -slope, rtol=1e-6)
    if leaves in (2, 5):  # and the derivative with respect to its leaves
        held = jax.grad(lambda process: process.logsnr(t).sum())(process)
        assert type(held) is type(process) and max(float(jnp.abs(a)) for a in jax.tree.leaves(held)) > 0.5
    noised = jax.jit(perturb)(process, jax.random.key(0), jnp.ones((3, 2)), t)
    mean, std = jax.jit(posterior)(process, noised.x, noised.x0, t, 0.5 * t)
    assert mean.shape == (3, 2) and (std > 0).all() and not vanishes(process)
    np.testing.assert_allclose(process.prior_std(), 1, rtol=1e-5)
    if kind not in ("plain", "nested", "nested, plain"):
        np.testing.assert_allclose(process.within(process).ends, process.ends, rtol=1e-6)


TAKEN_APART = {name: make for name, (make, _) in CUSTOM.items() if name != "registered"}  # JAX calls its __init__
TAKEN_APART |= {"ddpm": ddpm, "ncsn": ncsn, "edm": EDM}


@pytest.mark.parametrize("name", TAKEN_APART)
def test_a_process_survives_being_taken_apart(name):
    """JAX may replace leaves by None, numbers or shapes. Flattening and unflattening twice changes nothing."""
    process = TAKEN_APART[name]()
    leaves, structure = jax.tree.flatten(process)
    for put in (lambda _: None, lambda _: 0, lambda _: object(), lambda a: jax.ShapeDtypeStruct(jnp.shape(a), float)):
        other = jax.tree.unflatten(structure, [put(leaf) for leaf in leaves])
        assert type(other) is type(process)
        if put(0) is not None:
            assert jax.tree.structure(other) == structure
    twice = jax.tree.map(lambda a: a, jax.tree.map(lambda a: a, process))
    assert jax.tree.structure(twice) == structure
    t = levels(process, 3)
    for same in (twice, copy.copy(process), copy.deepcopy(process)):
        np.testing.assert_array_equal(same.logsnr(t), process.logsnr(t))
        assert same.ends == process.ends
    if leaves:  # a batch of processes, by in_axes that have their structure
        stack = jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * 2), process)
        axes = jax.tree.map(lambda _: 0, process)
        both = jax.vmap(lambda process, t: process.logsnr(t), in_axes=(axes, None))(stack, t)
        np.testing.assert_allclose(both, jnp.stack([process.logsnr(t)] * 2), rtol=1e-6)


def test_a_process_with_a_field_that_cannot_be_a_constant_says_which():
    class Listed(Plain):
        def __init__(self):
            super().__init__()
            self.names = ["a"]

    with pytest.raises(TypeError, match=r"Listed\.names is a list.*make it a tuple or an array"):
        jax.jit(lambda process, t: process.alpha(t))(Listed(), 0.5)


@dataclasses.dataclass(frozen=True)
class Halving(Process):
    """A user's chain that is no `Chain`: sigma doubles from level to level."""

    first: int = 0
    last: int = 9
    discrete = True

    @property
    def ends(self):
        return 0, self.last - self.first

    def alpha(self, t):
        return jnp.ones(jnp.shape(t))

    def sigma(self, t):
        return 0.01 * jnp.exp2(jnp.asarray(t + self.first, float))

    def logsnr(self, t):
        return -2 * jnp.log(self.sigma(t))

    def time(self, logsnr):
        return jnp.clip(jnp.log2(100 * jnp.exp(-0.5 * logsnr)) - self.first, *self.ends)

    def between(self, t_min, t_max):
        return Halving(self.first + t_min, self.first + t_max)


def test_within_of_a_chain_of_ones_own_keeps_the_covered_levels():
    part = Halving().within(ncsn(0.03, 1.0, 7))  # 0.04, 0.08 ... 0.64
    np.testing.assert_allclose(part.sigma(levels(part)), [0.64, 0.32, 0.16, 0.08, 0.04], rtol=1e-6)
    assert (jax.jit(lambda t: t * Halving().within(VE()).last)(1.0)) == 9.0, "also while something else is traced"
    with pytest.raises(ValueError, match="fewer than two"):
        Halving().within(ncsn(0.03, 0.05, 5))
    with pytest.raises(ValueError, match="Plain has no fields t_min and t_max to be cut by: define `between`"):
        Plain().within(ncsn(0.05, 1.0, 5))


@pytest.mark.quick(11)
@pytest.mark.parametrize("other", PROCESSES)
@pytest.mark.parametrize("name", PROCESSES)
def test_within_is_what_both_have(name, other):
    """Every pair of processes shares noise levels, and `within` keeps the part of the first in the shared range."""
    process, other = MADE[name], MADE[other]
    part = process.within(other)
    theirs = [float(other.logsnr(end)) for end in (top(other), bottom(other))]
    low, high = (float(part.logsnr(end)) for end in (top(part), bottom(part)))
    assert theirs[0] - 0.021 <= low < high <= theirs[1] + 0.021
    whole = [float(process.logsnr(end)) for end in (top(process), bottom(process))]
    if not process.discrete:  # the range of lam that both have
        np.testing.assert_allclose(high, min(theirs[1], whole[1]), atol=0.021)
        if max(theirs[0], whole[0]) > -12:  # below -12, alpha is nearly 0 and float32 cannot resolve the time
            np.testing.assert_allclose(low, max(theirs[0], whole[0]), atol=0.021)
    else:
        lam = np.asarray(process.logsnrs)
        assert part.levels == ((lam >= theirs[0] - 0.02) & (lam <= theirs[1] + 0.02)).sum()


def test_a_chain_may_end_in_pure_noise():
    """abar = 0.81, 0.5184, 0. The posterior from the last level knows nothing of x, and SNRs telescope to that of 0."""
    chain = betas((0.19, 0.36, 1.0))
    np.testing.assert_allclose(chain.alphas, [0.9, 0.72, 0.0], rtol=1e-6)
    np.testing.assert_allclose(chain.sigmas, np.sqrt([0.19, 1 - 0.5184, 1.0]), rtol=1e-6)
    assert vanishes(chain) and float(chain.prior_std()) == 1.0
    x, x0 = jnp.full((1, 1), 5.0), jnp.full((1, 1), 2.0)
    mean, std = posterior(chain, x, x0, jnp.array([2]), jnp.array([1]))
    np.testing.assert_allclose([mean[0, 0], std[0]], [0.72 * 2.0, math.sqrt(1 - 0.5184)], rtol=1e-6)
    t = jnp.linspace(0.0, 2.0, 9)
    lam = chain.logsnr(t)
    assert bool(jnp.isfinite(lam).all()) and bool((jnp.diff(lam) < 0).all()) and float(chain.alpha(t)[-1]) < 1e-12
    np.testing.assert_allclose(chain.time(lam), t, atol=1e-5)
    lost = snr_lost(chain, jnp.arange(3))[1:]
    np.testing.assert_allclose(lost, [0.81 / 0.19 - 0.5184 / 0.4816, 0.5184 / 0.4816], rtol=1e-5)
    law = UniformLogSNR()
    densities = np.asarray(law.density(chain, jnp.arange(3), law.init(chain)))
    assert np.isfinite(densities).all() and densities.min() > 0.01 and densities.sum() == pytest.approx(1, rel=1e-5)


@pytest.mark.slow
def test_a_chain_that_ends_in_pure_noise_keeps_every_property():
    check_process(lambda: betas((*np.linspace(1e-3, 0.3, 30), 1.0)))
