"""Grids: the levels that a sampler visits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.process import EDM, PROCESSES, VP, Flow, bottom, ddpm, top
from scoregen.samplers import (
    GRIDS,
    Ancestral,
    EvenLogSNR,
    EvenTime,
    Karras,
    Listed,
    OwnGrid,
    Power,
    Sampler,
)
from scoregen.testing.oracle import TWO_MODES

KEY = jax.random.key(5)


pytestmark = pytest.mark.usefixtures("exact")


def close(a, b, **options):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), **({"rtol": 1e-9, "atol": 1e-11} | options))


def spaced():
    """Every grid of the table that can be made for any number of levels: all but a list of times."""
    return [name for name, make in GRIDS.items() if make().refuse(VP(), 5) is None]


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("grid", spaced())
def test_grids_fall_from_end_to_end(name, grid):
    process, make = PROCESSES[name](), GRIDS[grid]
    whole = process.levels if process.discrete else 1000
    for n in (1, 2, min(7, whole), whole if process.discrete else 200):
        times = make()(process, n)
        assert times.dtype == top(process).dtype
        times = np.asarray(times, np.float64)
        assert len(times) == n and (np.diff(times) < 0).all()
        assert times[0] == float(top(process)) and (n == 1 or times[-1] == float(bottom(process)))
    for n in (None, 0):
        assert make()(process, n).shape == (whole,)
    with pytest.raises(ValueError, match="n=-1"):
        make()(process, -1)
    if process.discrete:
        with pytest.raises(ValueError, match=f"this chain has {whole} levels.*sampler.n=0"):
            make()(process, whole + 1)


@pytest.mark.quick(10)
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("grid", spaced())
def test_grids_can_be_made_inside_jit(name, grid):
    """With the process as an argument."""
    process = PROCESSES[name]()
    if name == "flow" and grid == "karras":
        process = Flow(t_max=0.999)  # so that the two results differ in rounding only
    found = jax.jit(lambda process: GRIDS[grid]()(process, 5))(process)
    close(found, GRIDS[grid]()(process, 5), rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in PROCESSES if PROCESSES[name]().discrete])
def test_the_own_grid_of_a_chain_is_even_in_the_index(name):
    """With both ends, and half-integers rounded up, so that no two steps of an even grid differ by their parity."""
    process = PROCESSES[name]()
    for n in (2, 3, 5, process.levels):
        if n <= process.levels:
            want = [math.floor((process.levels - 1) * (n - 1 - k) / (n - 1) + 0.5) for k in range(n)]
            assert OwnGrid()(process, n).tolist() == want
    assert OwnGrid()(process).tolist() == list(range(process.levels - 1, -1, -1))
    assert OwnGrid()(process, 1).tolist() == [process.levels - 1]


@pytest.mark.parametrize("name", [name for name in PROCESSES if not PROCESSES[name]().discrete])
def test_the_own_grid_in_continuous_time(name):
    """Even in time; of EDM even in sigma^(1/7) (Karras et al. 2022, eq. 5)."""
    process = PROCESSES[name]()
    low, high = process.ends
    for n in (2, 7, 18):
        i = np.arange(n) / (n - 1)
        if name == "edm":
            want = (high ** (1 / 7) + i * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        else:
            want = high + i * (low - high)
        close(OwnGrid()(process, n), want)
    with jax.enable_x64(False):
        grid = OwnGrid()(process, n)
        np.testing.assert_allclose(grid, want, rtol=1e-5)
        assert grid.dtype == np.float32 and grid[0] == np.float32(high) and grid[-1] == np.float32(low)


def test_karras_heeds_rho():
    close(Karras(1.0)(EDM(0.5, 2.0), 4), [2.0, 1.5, 1.0, 0.5])
    close(Karras(2.0)(EDM(1.0, 9.0), 3), [9.0, 4.0, 1.0])


def test_grids_are_even_in_what_they_say():
    even = lambda a: close(np.diff(a), np.full(len(a) - 1, a[1] - a[0]), rtol=1e-5)  # noqa: E731
    process = VP()
    even(np.asarray(EvenTime()(process, 9)))
    even(np.asarray(process.logsnr(EvenLogSNR()(process, 9))))
    ratio = lambda t: np.asarray(process.sigma(t) / process.alpha(t))  # noqa: E731
    even(ratio(Karras(5.0)(process, 9)) ** 0.2)
    even(np.sqrt(np.asarray(Power(2.0)(process, 9))))
    close(OwnGrid()(EDM(), 18), Karras()(EDM(), 18))
    # DDIM's quadratic grid, of a chain
    close(Power()(ddpm(), 10), np.round(np.linspace(math.sqrt(999), 0, 10) ** 2))
    close(OwnGrid()(ddpm(), 5), EvenTime()(ddpm(), 5))


def test_a_chains_levels_are_taken_once():
    """Near the data DDPM's levels are far apart in lam, and an even grid would take the last ones many times."""
    levels = np.asarray(EvenLogSNR()(ddpm(), 100))
    lam = np.asarray(ddpm().logsnr(jnp.asarray(levels)))
    assert (np.diff(levels) < 0).all()
    free = levels > 60  # there the levels are dense, and each is the nearest to an even lam
    want = np.linspace(*np.asarray(ddpm().logsnr(jnp.array([999, 0]))), 100)
    assert (abs(lam - want)[free] <= np.abs(np.gradient(np.asarray(ddpm().logsnrs)))[levels[free]]).all()


@pytest.mark.parametrize(
    ("times", "process", "n", "said"),
    [
        ((1.0, 1.0), VP(), 0, "must fall"),
        ((), VP(), 0, "at least one"),
        ((1.0, 0.5), VP(), 3, "2 times are given"),
        ((2.0, 0.5), VP(), 0, "between 1 and 0.001"),
        ((1.00001, 0.5), VP(), 0, "between 1 and 0.001"),
        ((1.0, 0.00099), VP(), None, "between 1 and 0.001"),
        ((0.5 + 1e-9, 0.5), VP(), None, "fall also in float32"),
        ((1000, 5), ddpm(), None, "between 999 and 0"),
        ((3.5, 1.0), ddpm(), 0, "whole numbers"),
        ((5.0, "a"), ddpm(), 0, "numbers are needed"),
        (3.0, ddpm(), 0, "numbers are needed"),
        ((math.nan,), VP(), 0, "between 1 and 0.001"),
    ],
)
def test_a_list_that_is_none_is_refused(times, process, n, said):
    with pytest.raises(ValueError, match=said):
        Listed(times)(process, n)


def test_a_walk_may_begin_below_the_noisiest_level():
    """Its x is drawn from the law at its first level, not from the law at the top, where EDM has a deviation of 80."""
    levels = Listed(tuple(np.geomspace(5.0, 0.0021, 60).tolist()))
    drawn, walk = Sampler(Ancestral(0.0), grid=levels).trajectory(TWO_MODES.denoiser(EDM()), KEY, (4000, 2))
    assert float(walk[0].std()) == pytest.approx(math.hypot(5.0, 0.5), rel=0.03)
    first = np.asarray(drawn)[:, 0] < 0
    assert abs(first.mean() - 0.3) < 0.04  # 5 is not so far above the modes' distance that the prior is exact
    assert np.asarray(drawn)[first].std(0) == pytest.approx(0.35, rel=0.1)


@pytest.mark.parametrize("of", [list, np.array, jnp.array])
def test_a_list_may_be_any_sequence(of):
    times = (0.75, 0.5, 0.125)
    assert Listed(of(times)) == Listed(times) and hash(Listed(of(times))) == hash(Listed(times))


def test_a_process_that_extends_another_has_its_own_grid():
    class Longer(EDM):
        pass

    np.testing.assert_array_equal(OwnGrid()(Longer(), 5), Karras()(EDM(), 5))


def test_a_list_is_visited_as_it_stands():
    assert Listed((900.0, 30.0, 2.0))(ddpm(), 0).tolist() == [900, 30, 2]
    close(Listed((0.9, 0.4))(VP(), 2), [0.9, 0.4])


@pytest.mark.quick(29)
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("n", [None, 0, 3])
@pytest.mark.parametrize("name", PROCESSES)
def test_a_list_may_have_the_processs_own_ends(name, n, x64):
    """As they are written, and rounded to float32 as in arrays of times, which may move them out of the range."""
    with jax.enable_x64(x64):
        process = PROCESSES[name]()
        low, high = process.ends
        middle = round((low + high) / 2) if process.discrete else (low + high) / 2
        for ends in ((high, low), (float(np.float32(high)), float(np.float32(low))), (float(top(process)), low)):
            times = Listed((ends[0], middle, ends[1]))(process, n)
            close(times, [high, middle, low], rtol=1e-6)
            assert bottom(process) <= times[-1] and times[0] <= top(process)
            assert np.isfinite(process.logsnr(times)[1:]).all()


def test_rounding_does_carry_an_end_beyond_itself():
    """Otherwise the test above would test nothing."""
    assert any(
        float(np.float32(high)) > high or float(np.float32(low)) < low
        for low, high in (make().ends for make in PROCESSES.values())
    )


@pytest.mark.parametrize("make", [lambda: Karras(0.0), lambda: Power(-1.0), lambda: Karras(math.inf)])
def test_nonsense_is_refused(make):
    with pytest.raises(ValueError, match="needed"):
        make()
