"""Every law of times: its density, its draws, and expectations weighted by its ratios."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from levels import levels

from scoregen.process import EDM, PROCESSES, VE, VP, Flow, betas, bottom, ddpm, ncsn, top
from scoregen.times import (
    OWN,
    TIMES,
    Drawn,
    Fixed,
    LogitNormal,
    LogNormal,
    Own,
    SecondMoment,
    UniformLogSNR,
    own_density,
)

COUNT = 40_000
MADE = {name: make() for name, make in PROCESSES.items()}


def phi(z):
    """The standard normal distribution function at z."""
    return 0.5 * (1 + np.vectorize(math.erf)(np.asarray(z, np.float64) / math.sqrt(2)))


def own_quantile(process, t):
    """The published distribution function at t: uniform, but for EDM ln t ~ N(-1.2, 1.2^2), truncated at the ends."""
    t = np.asarray(t, np.float64)
    low, high = process.ends
    if isinstance(process, EDM):
        low, high, at = (phi((np.log(a) + 1.2) / 1.2) for a in (low, high, t))
        return (at - low) / (high - low)
    return (t - low) / (high - low)


def drawn(law, process, seed=0, count=COUNT, state=None):
    state = law.init(process) if state is None else state
    got = law.draw(process, state, jax.random.key(seed), count)  # not under jit: few operations, of the same shapes
    return jax.tree.map(np.asarray, got)


def assert_shares(counts, shares):
    """Counts have the expectations COUNT * shares, within five standard deviations."""
    counts, want = np.asarray(counts), np.asarray(shares) * np.sum(counts)
    np.testing.assert_allclose(np.sum(shares), 1, rtol=1e-6)
    assert (abs(counts - want) < 5 * np.sqrt(want) + 1e-9).all(), (counts, want)


def state_after_losses(law, process):
    """A law's state after every bin has seen a full history of losses, whose size differs between bins."""
    state = law.init(process)
    if not isinstance(law, SecondMoment):
        return state
    bins = law.bins(process)
    size = 0.2 + np.random.default_rng(0).uniform(size=bins) ** 4
    each = jnp.tile(jnp.arange(bins, dtype=jnp.int32), law.history)
    return law.update(state, Drawn(jnp.zeros(0), jnp.zeros(0), each), jnp.asarray(size, jnp.float32)[each])


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["ncsn", "edm"])
@pytest.mark.parametrize("law", TIMES)
def test_laws_are_keyed_by_example_and_stay_in_range(law, name):
    """Row i depends on the key and i alone; times are levels of a chain, or lie between t_min and t_max."""
    process, law = MADE[name], TIMES[law]()
    few, many = (law.draw(process, law.init(process), jax.random.key(2), n) for n in (3, 50))
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:3])
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(2), i))(jnp.arange(50))
    np.testing.assert_array_equal(law.draw(process, law.init(process), keys, 50).t, many.t)
    assert many.t.dtype == (jnp.int32 if process.discrete else jnp.float32)
    assert bottom(process) <= many.t.min() and many.t.max() <= top(process)
    assert len(np.unique(many.t)) > (2 if process.discrete else 20)


LAWS = {name: make() for name, make in TIMES.items()} | {
    "lognormal, far": LogNormal(1.0, 2.5),
    "logitnormal, steep": LogitNormal(-1.0, 2.0),
}
LAWS["second_moment, fed"] = SecondMoment(history=2)


def law_and_state(name, process):
    law = LAWS[name]
    return law, state_after_losses(law, process) if name.endswith("fed") else law.init(process)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("law", LAWS)
def test_densities_are_the_law_of_the_draws(law, name):
    """Densities integrate to one, the draws follow them (Kolmogorov-Smirnov, or counts of levels), and `ratio` is the
    density of the process's own law divided by this density."""
    process = MADE[name]
    law, state = law_and_state(law, process)
    got = drawn(law, process, seed=5, state=state)
    density = np.asarray(law.density(process, jnp.asarray(got.t), state), np.float64)
    own = np.asarray(own_density(process, jnp.asarray(got.t)), np.float64)
    assert density.shape == got.t.shape and (density > 0).all()
    # A time at the edge of a bin may be rounded into the next.
    assert np.isclose(got.ratio * density, own, rtol=2e-3).mean() > 0.999
    if process.discrete:
        at = np.arange(process.levels)
        each = np.asarray(law.density(process, jnp.asarray(at), state), np.float64)
        np.testing.assert_allclose(each.sum(), 1, rtol=1e-5)
        bins = min(process.levels, 20)  # levels that are about equally likely together
        merge = np.minimum((np.cumsum(each) - each / 2) * bins, bins - 1).astype(int)
        return assert_shares(np.bincount(merge[got.t], minlength=bins), np.bincount(merge, each, bins) / each.sum())
    with jax.enable_x64(True):
        low, high = process.ends
        edges = np.unique(np.concatenate([np.geomspace(low, high, 20_001), np.linspace(low, high, 20_001)]))
        middle = (edges[1:] + edges[:-1]) / 2
        state = jax.tree.map(lambda a: a.astype(float) if a.dtype == jnp.float32 else a, state)
        below = np.cumsum(np.asarray(law.density(process, jnp.asarray(middle), state)) * np.diff(edges))
    np.testing.assert_allclose(below[-1], 1, rtol=1e-3)
    u = np.sort(np.interp(got.t, edges[1:], below))
    distance = max(abs(u - np.arange(COUNT) / COUNT).max(), abs(u - np.arange(1, COUNT + 1) / COUNT).max())
    assert distance < 2 / np.sqrt(COUNT), "beyond 2 with probability 7e-4, by Kolmogorov's law"


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("law", [name for name, law in LAWS.items() if isinstance(law, Fixed)])
def test_quantiles_invert_distribution_functions(law, name):
    """The cdf runs from 0 to 1, and its slope, or its step, is the density."""
    law = LAWS[law]
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        u = jnp.linspace(0.001, 0.999, 101)
        t = law.quantile(process, u)
        if process.discrete:  # u lies between the edges of the level that is its quantile
            assert (law.cdf(process, t) <= u + 1e-12).all() and (u - 1e-12 <= law.cdf(process, t + 1)).all()
            at = jnp.arange(process.levels)
            np.testing.assert_allclose(
                law.density(process, at), law.cdf(process, at + 1) - law.cdf(process, at), atol=1e-13
            )
            assert law.cdf(process, at[0]) == 0
            np.testing.assert_allclose(law.cdf(process, at[-1] + 1), 1, rtol=1e-12)
            return
        np.testing.assert_allclose(law.cdf(process, t), u, rtol=1e-6)
        slope = jax.vmap(jax.grad(lambda t: law.cdf(process, t)))(t)
        np.testing.assert_allclose(law.density(process, t), slope, rtol=1e-6)
        np.testing.assert_allclose(law.cdf(process, jnp.stack([bottom(process), top(process)])), [0, 1], atol=1e-3)


@pytest.mark.parametrize("name", PROCESSES)
def test_own_is_the_published_law(name):
    """The law is uniform in the level or the time, and for EDM the log-normal law of Karras et al. Its ratio is one."""
    process = MADE[name]
    got = drawn(Own(), process)
    assert (got.ratio == 1).all() and (got.bin == 0).all()
    if not process.discrete:
        u = own_quantile(process, got.t)
        assert -1e-6 <= u.min() < 0.001 and 0.999 < u.max() <= 1 + 1e-6
        return assert_shares(np.histogram(np.clip(u, 0, 1), 20, (0, 1))[0], np.full(20, 0.05))
    n = process.levels
    assert got.t.min() == 0 and got.t.max() == n - 1
    bins = min(n, 10)
    assert_shares(np.bincount(got.t * bins // n, minlength=bins), np.bincount(np.arange(n) * bins // n) / n)
    # Level j holds the quantiles from j/N to (j+1)/N, and the last level also holds the quantile 1.
    np.testing.assert_array_equal(Own().quantile(process, jnp.asarray((np.arange(n) + 0.5) / n)), np.arange(n))
    assert int(Own().quantile(process, jnp.array(1.0))) == n - 1
    np.testing.assert_allclose(Own().density(process, jnp.arange(n)), np.full(n, 1 / n), rtol=1e-6)


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", [name for name, process in MADE.items() if not process.discrete])
def test_own_density_is_the_slope_of_the_published_law(name):
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        t = np.geomspace(*process.ends, 20_001)
        density = np.asarray(own_density(process, jnp.asarray(t)))
        integral = np.concatenate([[0], np.cumsum(np.diff(t) * (density[1:] + density[:-1]) / 2)])
        np.testing.assert_allclose(integral, own_quantile(process, t), atol=1e-6)
        u = np.linspace(0, 1, 21)
        np.testing.assert_allclose(np.interp(Own().quantile(process, jnp.asarray(u)), t, integral), u, atol=1e-5)


def test_a_process_that_extends_another_has_its_own_law():
    class Longer(EDM):
        pass

    assert {EDM: LogNormal()} == OWN
    t = jnp.array([0.1, 1.0])
    np.testing.assert_array_equal(own_density(Longer(), t), own_density(EDM(), t))


@pytest.mark.slow
def test_ratios_are_finite_in_the_farthest_tails():
    """For every quantile that can be drawn, down to 2^-24, except under the log-normal law of flow matching."""
    u = jnp.array([0.0, 2.0**-24, 1e-6, 0.5, 1 - 1e-6, 1 - 2.0**-24])
    for process in MADE.values():
        for law in (law for law in LAWS.values() if isinstance(law, Fixed)):
            t = law.quantile(process, u)
            if process.discrete or not isinstance(process, Flow) or not isinstance(law, LogNormal):
                assert np.isfinite(own_density(process, t) / law.density(process, t)).all(), (process, law)


@pytest.mark.quick(9)
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("law", [name for name, law in TIMES.items() if law.importance])
def test_weighted_expectations_are_those_under_the_process_law(law, name):
    """E[w h(t)] = E_own[h(t)] for h the powers of the own law's quantile, whose means are 1 / (k + 1)."""
    process, law = MADE[name], TIMES[law]()
    got = drawn(law, process, state=state_after_losses(law, process))
    if process.discrete:
        levels = np.arange(process.levels) / process.levels
        u, want = got.t / process.levels, [np.mean(levels**k) for k in (0, 1, 2)]
    else:
        u, want = own_quantile(process, got.t), [1, 1 / 2, 1 / 3]
    for k in (0, 1, 2):
        terms = got.ratio.astype(np.float64) * u**k
        assert abs(terms.mean() - want[k]) < 5 * terms.std() / np.sqrt(COUNT) + 1e-4
    if law == Own():
        return
    # The drawn time lies in `bin`, so a loss is recorded where it arose. In a bin all quantiles are equally likely.
    if process.discrete:
        np.testing.assert_array_equal(got.bin, got.t)
    else:
        inside = u * law.bins(process) - got.bin
        assert inside.min() >= -2e-3 and inside.max() <= 1 + 2e-3
        assert_shares(np.histogram(np.clip(inside, 0, 1), 5, (0, 1))[0], np.full(5, 0.2))


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", PROCESSES)
def test_lognormal_is_normal_in_log_sigma_over_alpha(name):
    """For a chain, a draw moves to the nearest level in lam. In continuous time the law is truncated at the ends."""
    process, law = MADE[name], LogNormal(mean=-1.0, std=1.5)
    t = drawn(law, process).t
    if process.discrete:
        log_ratio = -0.5 * np.asarray(process.logsnrs, np.float64)
        edges = (log_ratio[1:] + log_ratio[:-1]) / 2
        shares = np.diff(phi((edges + 1) / 1.5), prepend=0, append=1)
        np.testing.assert_allclose(law.density(process, jnp.arange(process.levels)), shares, rtol=1e-3, atol=1e-7)
        bins = min(process.levels, 20)
        merge = np.arange(process.levels) * bins // process.levels
        return assert_shares(np.bincount(merge[t], minlength=bins), np.bincount(merge, shares))
    low, high = (-0.5 * float(process.logsnr(end)) for end in (bottom(process), top(process)))
    edges = np.linspace(max(low, -4), min(high, 3), 15)
    at = -0.5 * np.asarray(process.logsnr(jnp.asarray(t)), np.float64)
    counts = np.histogram(at, [-np.inf, *edges[1:-1], np.inf])[0]
    inside = phi((np.array([low, *edges[1:-1], high]) + 1) / 1.5)
    assert_shares(counts, np.diff(inside) / (inside[-1] - inside[0]))


def test_lognormal_is_the_law_of_edm():
    """The mean and standard deviation are the same, but EDM truncates the tails."""
    for law in (LogNormal(), Own()):
        t = drawn(law, EDM(sigma_min=1e-4)).t
        counts = np.histogram(np.log(t), np.linspace(-4.8, 2.4, 13))[0]
        shares = np.diff(phi((np.linspace(-4.8, 2.4, 13) + 1.2) / 1.2))
        assert_shares([*counts, COUNT - counts.sum()], [*shares, 1 - shares.sum()])


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 1.7)])
def test_logitnormal_is_esser_et_al(mean, std):
    """Density exp(-(logit t - mean)^2 / (2 std^2)) / (std sqrt(2 pi) t (1 - t)) for flow matching, integrated."""
    t = (np.arange(200_000) + 0.5) / 200_000
    density = np.exp(-((np.log(t / (1 - t)) - mean) ** 2) / (2 * std**2)) / (std * np.sqrt(2 * np.pi) * t * (1 - t))
    shares = density.reshape(20, -1).mean(1) / 20
    got = drawn(LogitNormal(mean, std), Flow(t_min=1e-6)).t
    assert_shares(np.histogram(got, 20, (0, 1))[0], shares / shares.sum())
    # For other processes it is the law of the quantile under the process's own law.
    u = np.clip(own_quantile(EDM(), drawn(LogitNormal(mean, std), EDM()).t), 0, 1)
    assert_shares(np.histogram(u, 20, (0, 1))[0], shares / shares.sum())
    levels = drawn(LogitNormal(mean, std), ddpm()).t
    assert_shares(np.bincount(levels // 50, minlength=20), shares / shares.sum())


@pytest.mark.parametrize("chain", [ddpm(), ncsn(), betas()], ids=["ddpm", "ncsn", "betas"])
def test_uniform_logsnr_draws_a_level_as_often_as_lam_falls_there(chain):
    """P(t) ~ lam_{t-1} - lam_t, and level 0, which no step leads to, has P(1). A share of a thousandth is uniform."""
    n = chain.levels
    got = drawn(UniformLogSNR(), chain)
    lam = 2 * np.log(np.asarray(chain.alphas, np.float64) / np.asarray(chain.sigmas, np.float64))
    gaps = np.concatenate([lam[:1] - lam[1:2], lam[:-1] - lam[1:]])
    shares = 0.999 * gaps / gaps.sum() + 0.001 / n
    # In bins over which lam falls (nearly) equally, so that they get equally many draws.
    bins = np.minimum(((lam[0] - lam) / (lam[0] - lam[-1]) * min(n, 10)).astype(int), min(n, 10) - 1)
    assert_shares(np.bincount(bins[got.t], minlength=bins[-1] + 1), np.bincount(bins, shares))
    np.testing.assert_allclose(got.ratio, 1 / (n * shares[got.t]), rtol=2e-3)
    if gaps[2:].max() < np.ptp(lam) / 50:  # the levels are fine enough that lam itself is uniform
        top, low = lam[1], lam[-1]
        at = lam[got.t][(got.t > 1)]
        inside = np.histogram(at, np.linspace(low, top, 6))[0]
        np.testing.assert_allclose(inside / inside.sum(), 0.2, atol=0.02)


@pytest.mark.parametrize(
    "process", [VP(), VE(), VE(0.01, 5000.0), PROCESSES["vp_cosine"]()], ids=["vp", "ve", "ve_wide", "vp_cosine"]
)
def test_uniform_logsnr_has_uniform_logsnr(process):
    """Each of the hundred bins of t gets its share of the fall of lam. A share of a thousandth is uniform in t."""
    edges = np.linspace(*process.ends, 101)
    with jax.enable_x64(True):
        lam = np.asarray(process.logsnr(jnp.asarray(edges)))
    shares = 0.999 * -np.diff(lam) / (lam[0] - lam[-1]) + 1e-5
    got = drawn(UniformLogSNR(), process)
    assert_shares(np.bincount(got.bin, minlength=100), shares)
    np.testing.assert_allclose(got.ratio, 0.01 / shares[got.bin], rtol=2e-3)
    # So lam is uniform: the share of draws above the edge of a bin is the share of the fall of lam above this edge.
    at = np.asarray(process.logsnr(jnp.asarray(got.t)), np.float64)
    for edge in lam[[1, 5, 20, 50, 80, 95]]:
        share = (lam[0] - edge) / (lam[0] - lam[-1])
        assert abs((at > edge).mean() - share) < 5 * np.sqrt(share * (1 - share) / COUNT) + 1e-3


def fed(law, process, rounds, losses):
    """The law's state after `rounds` batches with one example in each bin; `losses(round)` is `[M]`."""
    state, bins = law.init(process), law.bins(process)
    update = jax.jit(law.update)
    for i in range(rounds):
        batch = Drawn(jnp.zeros(bins), jnp.ones(bins), jnp.arange(bins, dtype=jnp.int32))
        state = update(state, batch, jnp.asarray(losses(i), jnp.float32))
    return state


@pytest.mark.parametrize("process", [ncsn(), VP()], ids=["ncsn", "vp"])
def test_second_moment_is_nichol_and_dhariwal(process):
    """P ~ sqrt(mean of the last ten squared losses), eq. 18, a thousandth uniform. P is uniform until all have ten."""
    law = SecondMoment()
    bins = 10 if process.discrete else 100
    rng = np.random.default_rng(0)
    losses = rng.gamma(2.0, np.linspace(0.1, 3, bins), (23, bins))
    for rounds in (0, 9):
        got = drawn(law, process, state=fed(law, process, rounds, losses.__getitem__))
        np.testing.assert_allclose(got.ratio, 1, rtol=1e-6)
        assert_shares(np.bincount(got.bin, minlength=bins), np.full(bins, 1 / bins))
    for rounds in (10, 23):  # of the 23 the first 13 are forgotten
        state = fed(law, process, rounds, losses.__getitem__)
        q = np.sqrt((losses[rounds - 10 : rounds] ** 2).mean(0))
        shares = 0.999 * q / q.sum() + 0.001 / bins
        got = drawn(law, process, state=state)
        assert_shares(np.bincount(got.bin, minlength=bins), shares)
        np.testing.assert_allclose(got.ratio, 1 / (bins * shares[got.bin]), rtol=1e-5)


@pytest.mark.parametrize("law", [UniformLogSNR(), SecondMoment()])
@pytest.mark.parametrize("name", ["ddpm", "vp"])
def test_a_share_that_is_rounded_up_to_all_falls_into_the_last_bin(law, name):
    process = MADE[name]
    state = law.init(process)
    found = law.at(process, state, jnp.ones(1), jnp.zeros(1))
    assert int(found.bin[0]) == law.histogram(process, state).size - 1


def test_second_moment_waits_for_the_last_bin():
    """While one bin has only nine losses, the law stays uniform."""
    law, chain = SecondMoment(), ncsn()
    state = fed(law, chain, 9, lambda i: np.arange(1.0, 11))
    nine = Drawn(jnp.zeros(9), jnp.ones(9), jnp.arange(9, dtype=jnp.int32))
    state = law.update(state, nine, jnp.arange(1.0, 10))
    np.testing.assert_allclose(drawn(law, chain, state=state, count=50).ratio, 1, rtol=1e-6)
    last = Drawn(jnp.zeros(1), jnp.ones(1), jnp.array([9], jnp.int32))
    state = law.update(state, last, jnp.array([10.0]))
    got = drawn(law, chain, state=state, count=50)
    np.testing.assert_allclose(got.ratio, 0.1 / (0.999 * (got.bin + 1) / 55 + 1e-4), rtol=1e-5)


@pytest.mark.slow
def test_second_moment_records_every_duplicate_in_a_batch():
    """Twelve losses of one bin in one batch: the last ten are kept, in a ring, and give the bin's probability."""
    law, chain = SecondMoment(), ncsn()
    state = fed(law, chain, 10, lambda i: np.ones(10))
    again = Drawn(jnp.zeros(13), jnp.ones(13), jnp.array([3] * 12 + [7], jnp.int32))
    table, seen = law.update(state, again, jnp.arange(1.0, 14))
    assert seen.tolist() == [10, 10, 10, 22, 10, 10, 10, 11, 10, 10]
    assert sorted(table[3].tolist()) == list(range(3, 13)) and sorted(table[7].tolist()) == [*[1] * 9, 13]
    q = np.ones(10)
    q[3], q[7] = np.sqrt(np.mean(np.arange(3, 13) ** 2)), np.sqrt((9 + 169) / 10)
    got = drawn(law, chain, state=(table, seen), count=200)
    np.testing.assert_allclose(got.ratio, 0.1 / (0.999 * q / q.sum() + 1e-4)[got.bin], rtol=1e-5)


def test_second_moment_of_losses_that_are_all_zero_is_uniform():
    law, chain = SecondMoment(), ncsn()
    got = drawn(law, chain, state=fed(law, chain, 10, lambda i: np.zeros(10)), count=50)
    np.testing.assert_allclose(got.ratio, 1, rtol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda: LogNormal(std=0.0), lambda: LogitNormal(std=-1.0), lambda: SecondMoment(history=0)]
)
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match="needed"):
        make()


@pytest.mark.parametrize("name", [name for name, process in MADE.items() if not process.discrete])
@pytest.mark.parametrize("law", [name for name, law in LAWS.items() if isinstance(law, Fixed)])
def test_densities_keep_the_dtype_of_times_under_x64(law, name):
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            t = levels(MADE[name], 4)[1:-1].astype(dtype)
            assert jax.eval_shape(lambda t: LAWS[law].density(MADE[name], t), t).dtype == dtype
