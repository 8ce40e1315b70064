"""The design of noise levels, held to the published numbers, to closed forms and to scoregen's own sampler."""

import contextlib
import io
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread
from scipy.integrate import quad
from scipy.stats import chi

from scoregen.app.arguments import parse
from scoregen.app.build import build
from scoregen.app.config import changes, load
from scoregen.app.figures import ACCENT
from scoregen.contrib.design import (
    Levels,
    command,
    coverage,
    design,
    distance_bounds,
    figure,
    final_variance,
    largest_distance,
    levels,
    ratio,
    step_size,
    techniques,
)
from scoregen.contrib.design.preset import present, with_settings
from scoregen.data import SOURCES, Dataset
from scoregen.denoiser import Denoiser, Prediction
from scoregen.process import ncsn
from scoregen.random import broadcast
from scoregen.samplers import Langevin

V1, V2 = 100 ** (1 / 9), 5000 ** (1 / 231)  # the ratios of Song & Ermon 2019 and 2020


DIGITS = ("--config=ncsn_digits", "--config.net.name=mlp")  # a network that is quick to build


def main(*argv) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command.main([str(arg) for arg in argv])
    return code, out.getvalue(), err.getvalue()


def refused(*argv, parts=()) -> None:
    code, out, err = main(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("scoregen: ") and err.count("\n") == 1
    for part in parts:
        assert str(part) in err


def brute_force(x: np.ndarray) -> float:
    return float(np.linalg.norm(x[:, None] - x[None], axis=-1).max())


# Technique 1


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9, 31])
@pytest.mark.parametrize("dims", [1, 2, 7])
def test_the_largest_distance_is_that_of_all_pairs(monkeypatch, size, dims):
    """Blocks of four: less than one, just one, one and a bit, several. Skewed data, so that the mean is off centre."""
    monkeypatch.setattr(techniques, "BLOCK", 4)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x = np.exp(1.5 * rng.normal(size=(size, dims))).astype(np.float32)
        assert largest_distance(x) == pytest.approx(brute_force(x.astype(np.float64)), rel=1e-12)


def test_examples_on_a_sphere_are_compared_in_full(monkeypatch):
    """All are equally far from the mean: none can be left out, and the farthest pair is in different blocks."""
    monkeypatch.setattr(techniques, "BLOCK", 4)
    for seed in range(30):
        x = np.random.default_rng(seed).normal(size=(21, 3))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        assert largest_distance(x) == pytest.approx(brute_force(x), rel=1e-12)


def test_duplicates_have_no_distance_and_change_none(monkeypatch):
    monkeypatch.setattr(techniques, "BLOCK", 4)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    wide = np.random.default_rng(1).normal(size=(1, 50))  # the mean of 49 copies is off by a rounding error
    assert all(largest_distance(np.repeat(wide, n, axis=0)) == 0.0 for n in range(1, 50))
    assert largest_distance(np.repeat(x, 3, axis=0)) == pytest.approx(largest_distance(x), rel=1e-12)


def test_no_digits_are_lost_far_from_the_origin():
    """The squares of these are 1e16, which float64 keeps to the ones. The squares of their distances are about 10."""
    for seed in range(30):
        x = 1e8 + np.random.default_rng(seed).normal(size=(20, 2))
        assert largest_distance(x) == pytest.approx(brute_force(x), rel=1e-7)
        assert largest_distance(x.reshape(20, 2, 1)) == largest_distance(x)  # images are flattened


def test_outer_examples_suffice(monkeypatch):
    """With one pair far outside a ball, only the first block is compared, for which the budget is enough."""
    monkeypatch.setattr(techniques, "BLOCK", 4)
    x = np.random.default_rng(0).normal(size=(400, 2))
    x = np.concatenate([x / 10, [[-5.0, 0.0], [5.0, 0.0]]])
    assert distance_bounds(x, budget=1) == (10.0, 10.0)


@pytest.mark.parametrize("budget", [0, 1e4])
def test_bounds_hold_when_the_budget_runs_out(monkeypatch, budget):
    monkeypatch.setattr(techniques, "BLOCK", 4)
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=(60, 20))
        low, high = distance_bounds(x, budget)
        assert low <= brute_force(x) * (1 + 1e-12) and brute_force(x) <= high * (1 + 1e-12)
        assert low < high  # not all pairs were compared


# Technique 2


def test_the_published_ratio_and_levels():
    assert ratio(3072, 0.5) == pytest.approx(1.0398, abs=5e-5)
    assert 219 <= levels(0.01, 50.0, ratio(3072, 0.5)) <= 225
    assert coverage(3072, V2) == pytest.approx(0.567, abs=5e-4)  # the overlap of the paper's 232 levels
    assert levels(0.01, 50.0, ratio(3072, coverage(3072, V2))) == 232


@pytest.mark.parametrize("dims", [5, 28, 64, 3072, 200_000])
@pytest.mark.parametrize("overlap", [0.01, 0.5, 0.9, 0.99])
def test_the_ratio_leaves_the_overlap(dims, overlap):
    """Phi's difference is the integral of the radial normal at sigma = 1 over the three-sigma range at gamma."""
    gamma = ratio(dims, overlap)
    assert gamma > 1
    mean, std = math.sqrt(dims), math.sqrt(0.5)
    low, high = gamma * (mean - 3 * std), gamma * (mean + 3 * std)
    low, high = max(low, mean - 12 * std), min(high, mean + 12 * std)  # else quad misses the bump

    def density(r: float) -> float:
        return math.exp(-0.5 * ((r - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))

    assert quad(density, low, high, epsabs=1e-12)[0] == pytest.approx(overlap, abs=1e-9)


def test_the_norm_of_noise_is_as_the_equation_has_it():
    """The exact norm is chi distributed; the normal law differs by its skewness, of order 1 / sqrt(D)."""
    for dims in (64, 3072):
        gamma, mean, std = ratio(dims, 0.5), math.sqrt(dims), math.sqrt(0.5)
        exact = np.diff(chi(dims).cdf([gamma * (mean - 3 * std), gamma * (mean + 3 * std)]))[0]
        assert exact == pytest.approx(0.5, abs=0.5 / math.sqrt(dims))


@pytest.mark.parametrize(("dims", "overlap"), [(1, 0.5), (4, 0.5), (64, 0.9974), (64, 0.0), (64, 1.0), (64, math.nan)])
def test_where_there_is_no_ratio(dims, overlap):
    with pytest.raises(ValueError, match="overlap"):
        ratio(dims, overlap)


def test_in_four_dimensions_no_ratio_leaves_less_than_all():
    assert all(coverage(4, gamma) > 0.997 for gamma in np.geomspace(1, 1e6, 50))
    assert coverage(5, 1e6) == 0.0


@pytest.mark.parametrize("gamma", [1.01, 1.0398, 1.5, 2.0, 1e9])
def test_levels_are_the_fewest(gamma):
    count = levels(0.01, 30.0, gamma)
    assert 3000 ** (1 / (count - 1)) <= gamma
    assert count == 2 or 3000 ** (1 / (count - 2)) > gamma


def test_a_ratio_that_fits_costs_no_level():
    assert all(levels(0.01, 0.01 * 1.1**n, 1.1) == n + 1 for n in range(1, 200))
    assert levels(1.0, 1 + 1e-12, 1.1) == 2  # one, by the formula alone


@pytest.mark.parametrize("wrong", [(0.0, 1.0, 1.1), (1.0, 1.0, 1.1), (2.0, 1.0, 1.1), (0.1, 1.0, 1.0)])
def test_levels_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="0 < min < max"):
        levels(*wrong)


# Technique 4


def test_the_published_steps():
    assert step_size(0.01, V2, 5) == pytest.approx(6.18e-6, abs=5e-9)
    assert final_variance(step_size(0.01, V2, 5), 0.01, V2, 5) == pytest.approx(1.055, abs=5e-4)
    assert final_variance(2e-5, 0.01, V1, 100) == pytest.approx(1.111, abs=5e-4)


@pytest.mark.parametrize("sigma_min", [0.01, 2.0])
@pytest.mark.parametrize("gamma", [1.01, V2, V1, 4.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 100])
def test_the_variance_is_that_of_the_recursion(sigma_min, gamma, steps):
    """v <- (1 - h / s^2)^2 v + 2 h at the least noisy level, from the variance of the level before."""
    for h in sigma_min**2 * np.array([1e-4, 0.0618, 0.3, 1.0, 1.5]):
        v = (gamma * sigma_min) ** 2
        for _ in range(steps):
            v = (1 - h / sigma_min**2) ** 2 * v + 2 * h
        assert final_variance(h, sigma_min, gamma, steps) == pytest.approx(v / sigma_min**2, rel=1e-10)


@pytest.mark.parametrize("gamma", [1.001, V2, V1, 4.0, 100.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 100, 10_000])
def test_no_other_step_is_nearer(gamma, steps):
    """No step in (0, 2 sigma_min^2) is nearer, and the steps on both sides are farther."""
    best = step_size(0.1, gamma, steps)
    value = final_variance(best, 0.1, gamma, steps)
    assert value > 1
    for h in [*np.geomspace(1e-9, 1.999, 2000), 0.99 * best / 0.01, 1.01 * best / 0.01]:
        assert final_variance(h * 0.01, 0.1, gamma, steps) >= value * (1 - 1e-13)
    assert min(final_variance(factor * best, 0.1, gamma, steps) for factor in (0.8, 1.2)) > value


@pytest.mark.quick(1)
@pytest.mark.parametrize("index", [0, 4])
def test_our_sampler_ends_with_that_variance(index):
    """`samplers.Langevin` with the exact score of data at a point, coming from the level before.

    An empirical variance of n normals has the relative standard error sqrt(2 / n). The test allows four of them.
    """
    process = ncsn(0.02, 2.0, 10)
    gamma, n = V1, 200_000
    h = step_size(0.02, gamma, 3)
    t = jnp.full(n, index)
    sigma = float(process.sigma(jnp.array(index)))
    x = gamma * sigma * jax.random.normal(jax.random.key(0), (n, 1))

    def predict(x, t):
        return Prediction(jnp.zeros_like(x), x, -x / broadcast(process.sigma(t) ** 2, x))

    x = jax.jit(lambda x: Langevin(step_size=h, steps=3)(Denoiser(process, predict), jax.random.key(1), x, t))(x)
    assert float(jnp.var(x)) / sigma**2 == pytest.approx(final_variance(h, 0.02, gamma, 3), rel=4 * math.sqrt(2 / n))


@pytest.mark.parametrize("step", [0.0, -1e-5, 2e-4, math.nan])
def test_steps_that_diverge_have_no_variance(step):
    with pytest.raises(ValueError, match="sigma_min"):
        final_variance(step, 0.01, 1.1, 5)


@pytest.mark.parametrize("wrong", [(0.0, 1.1, 5), (0.1, 1.0, 5), (0.1, 1.1, 0)])
def test_a_step_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        step_size(*wrong)


# All together


def test_a_design_joins_the_techniques():
    found = design(64, 9.6271, 0.01, 5)
    assert found.sigma_max == 9.63
    assert found.gamma <= ratio(64, 0.5) < (963 ** (1 / (found.levels - 2)))
    assert found.step_size == pytest.approx(step_size(0.01, found.gamma, 5), rel=5e-3)  # for the levels' own ratio
    assert found.step_size != pytest.approx(step_size(0.01, ratio(64, 0.5), 5), rel=5e-3)
    assert found.step_size is not None and found.final_variance == final_variance(found.step_size, 0.01, found.gamma, 5)
    assert found.evaluations == 5 * found.levels
    assert design(2, 4.0, 0.01, 5).gamma <= V1  # in few dimensions any ratio would do
    assert design(10, 4.0, 0.01, 5).gamma <= V1 < ratio(10, 0.5)


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(9.6271, 9.63), (9.63, 9.63), (9.62, 9.62), (9.996, 10.0), (0.012301, 0.0124), (53.21, 53.3), (123456, 124000)],
)
def test_sigma_max_is_rounded_up(value, rounded):
    assert techniques._rounded_up(value) == rounded


def test_the_present_levels_are_those_that_are_walked():
    config = load("ncsn_digits")
    now = present(config)
    assert now is not None
    assert (now.sigma_min, now.sigma_max, now.levels, now.steps) == (0.05, 10.0, 60, 4)
    assert now.final_variance == final_variance(0.15 * 0.05**2, 0.05, 200 ** (1 / 59), 4)
    for key, value in {"sampler.step.name": "ancestral", "sampler.n": 5}.items():
        other = present(with_settings(config, {key: value}))
        assert other is not None and other.levels == 60 and other.steps is other.final_variance is None
    wild = present(with_settings(config, {"sampler.corrector.langevin.step_size": 1.0}))
    assert wild is not None and wild.final_variance == math.inf
    assert present(load("ddpm_digits")) is None


@pytest.mark.slow
def test_examples_are_as_the_network_sees_them():
    """Every training image once, scaled by the configuration's own scaling; its noise follows the seed."""
    config = with_settings(load("ncsn_digits"), {"net.name": "mlp"})  # quick to build
    parts = build(config)
    x, raw = command.examples(parts), parts.dataset.train
    np.testing.assert_allclose(x, raw.reshape(len(raw), -1) / 127.5 - 1, atol=1e-6)
    config = with_settings(config, {"scaling.name": "unit"})
    noisy, again = (command.examples(build(config)) for _ in range(2))
    assert (noisy == again).all()
    assert (noisy != command.examples(build(with_settings(config, {"seed": 1})))).any()
    noise = 256 * noisy - raw.reshape(len(raw), -1)
    assert noise.min() >= 0 and noise.max() < 1
    # Of N uniform numbers, the mean has the standard error 1 / sqrt(12 N); no two blocks have the same.
    assert abs(noise.mean() - 0.5) < 4 / math.sqrt(12 * noise.size)
    assert not np.allclose(noise[: len(raw) - techniques.BLOCK], noise[techniques.BLOCK :])


def test_sampled_distances_are_those_of_pairs():
    x = np.random.default_rng(0).normal(size=(40, 3))
    some = figure.sampled_distances(x, 5)
    assert some.shape == (10,)
    every = np.linalg.norm(x[:, None] - x[None], axis=-1)
    assert all(np.isclose(every, value, rtol=1e-9).any() for value in some)
    assert np.sort(figure.sampled_distances(x))[-1] == pytest.approx(every.max())


@pytest.mark.parametrize("dims", [1, 2, 64, 3072])
def test_the_drawn_density_is_one(dims):
    r = np.linspace(0, math.sqrt(dims) * 2.5 + 20, 20_001)
    assert np.trapezoid(figure._radial(r, dims, 1.5), r) == pytest.approx(1, abs=1e-3)
    exact = chi.pdf(r[1:] / 1.5, dims) / 1.5
    np.testing.assert_allclose(figure._radial(r, dims, 1.5)[1:], exact, rtol=1e-6, atol=1e-12)


# The command line


UNIT = "ddpm_digits,scaling=unit,sigma_min=0.02_designed"  # the name has the chosen options


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The folder and the output of a design for digits in [0, 1]."""
    folder = tmp_path_factory.mktemp("my designs") / "deep"
    code, out, err = main("--config=ddpm_digits", "--config.scaling.name=unit", "--sigma_min=0.02", f"--out={folder}")
    assert (code, err) == (0, "")
    return folder, out


def command_in(out: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.startswith(("scoregen train --", "scoregen train '--"))]
    return shlex.split(line)[2:]


@pytest.mark.slow
def test_the_preset_and_the_command_are_the_same(digits):
    folder, out = digits
    path = folder / f"{UNIT}.py"
    preset, flagged = load(str(path)), parse(command_in(out)).config
    assert [key for key, _, _ in changes(preset, flagged)] == ["name"]
    assert preset.scaling.name == "unit" and preset.net.unet.channels == 32  # a chosen option, and one of the base
    assert f"--config={shlex.quote(str(path))}" in out


@pytest.mark.slow
def test_the_preset_is_ncsn_at_the_designed_levels(digits):
    folder, out = digits
    parts = build(load(str(folder / f"{UNIT}.py")))
    found = present(parts.config)
    assert found is not None and found.steps == 5
    distance = largest_distance(command.examples(parts))
    assert distance <= found.sigma_max < distance + 0.01
    assert found.levels == levels(0.02, found.sigma_max, ratio(64, 0.5))
    config = parts.config
    assert (config.process.name, config.process.ncsn.start, config.loss.name) == ("ncsn", "normal", "dsm")
    assert (config.target, config.net.condition, config.train.ema.name) == ("eps", "sigma", "decay")
    assert config.train.ema.decay.rate == 0.999
    assert (config.sampler.step.name, config.sampler.corrector.name) == ("hold", "langevin")
    assert config.sampler.denoise is True and config.sampler.n == 0
    for number in (found.sigma_max, found.levels, found.step_size):
        assert f" {number} " in out
    assert "now: ddpm" in out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ncsn_cifar", "ncsnv2_cifar"])
def test_the_design_of_a_paper_s_preset_is_ncsn_v2(name, tmp_path, monkeypatch):
    """It has the paper's network, and differs from the preset ncsnv2_cifar only in the numbers of the levels."""
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    monkeypatch.setitem(SOURCES, "cifar10", lambda dir: Dataset("cifar10", images[:10], images[10:]))
    small = ("--config.net.refinenet_v2.channels=8", "--config.eval.samples=2")
    code, out, err = main(f"--config={name}", *small, f"--out={tmp_path}")
    assert (code, err) == (0, "")
    found, published = parse(command_in(out)).config, load("ncsnv2_cifar")
    numbers = {"sigma_max", "levels", "step_size"}
    kept = ("process.", "sampler.", "net.", "target", "train.ema.")
    apart = {key for key, _, _ in changes(published, found) if key.startswith(kept)}
    assert {key.rpartition(".")[2] for key in apart} == numbers | {"channels"}
    assert build(found).model.net.channels == 8


@pytest.mark.slow
def test_the_figure_shows_the_design(digits, tmp_path):
    folder, _ = digits
    page = imread(folder / f"{UNIT}.png")[..., :3]
    assert page.std() > 0.05
    accent = np.frombuffer(bytes.fromhex(ACCENT[1:]), np.uint8) / 255
    height, width = page.shape[0] // 2, page.shape[1] // 2
    for rows_ in (slice(0, height), slice(height, None)):
        for columns in (slice(0, width), slice(width, None)):
            assert (np.abs(page[rows_, columns] - accent).max(-1) < 0.01).sum() > 50  # each panel has the choice
    found = design(64, 9.0, 0.01, 5)
    pages = [
        imread(figure.save_figure(tmp_path / f"{i}.png", np.linspace(1, 9, 100), 64, found, now))
        for i, now in enumerate((None, Levels(0.05, 10.0, 60, None, None)))
    ]
    for panel in (np.s_[:height, :width], np.s_[height:, :width]):  # these panels also show the configuration's levels
        assert (pages[0][panel] != pages[1][panel]).any()
    middle = page[height // 2 : int(0.8 * height), :width]  # of the first panel, beneath the legend
    assert (
        np.flatnonzero((np.abs(middle - accent).max(-1) < 0.01).any(0)).min() > 0.8 * width
    )  # at the largest distance


@pytest.mark.slow
def test_what_the_configuration_has_stands_beside(tmp_path):
    code, out, _ = main(*DIGITS, f"--out={tmp_path}")
    assert code == 0
    table = {line.split()[0]: line.split()[1:3] for line in out.splitlines() if len(line.split()) > 2}
    assert [table[key][1] for key in ("sigma_max", "sigma_min", "levels", "steps")] == ["10", "0.05", "60", "4"]
    assert table["sigma_min"][0] == "0.01" and table["evaluations"][1] == "240"


def test_in_the_plane_the_ratio_is_limited(tmp_path):
    code, out, err = main("--config=ncsn_toy", "--config.data.mixture.size=4000", f"--out={tmp_path}")
    assert (code, err) == (0, "")
    assert "in 2 dimensions levels overlap at any ratio; the limit is the ratio of NCSN v1, 1.6681" in out
    assert build(load(str(tmp_path / "ncsn_toy,data.mixture.size=4000_designed.py"))).dataset.train.shape == (
        4000,
        2,
    )


@pytest.mark.slow
def test_a_file_of_ones_own_is_found_from_anywhere(tmp_path, monkeypatch):
    """With data of its own, and a space in its name."""
    (tmp_path / "my points.py").write_text(OWN.format(points="rng.normal(size=(50, 6))"))
    monkeypatch.chdir(tmp_path)
    code, out, err = main("--config=./my points.py", "--out=out", "--config.net.mlp.width=8")
    assert (code, err) == (0, "")
    monkeypatch.chdir("/")
    preset = build(load(str(tmp_path / "out" / "my_points,net.mlp.width=8_designed.py")))
    assert preset.dataset.shape == (6,) and preset.config.net.mlp.width == 8
    assert [key for key, _, _ in changes(preset.config, parse(command_in(out)).config)] == ["name"]


OWN = """
import numpy as np
from scoregen.app.config import load
from scoregen.data import SOURCES, Dataset

def own():
    rng = np.random.default_rng(0)
    points = np.asarray({points}, np.float32)
    return Dataset("own", points, points)

def get_config():
    SOURCES["own"] = own
    config = load("ddpm_toy")
    with config.unlocked():
        config.data.own = {{}}
    config.data.name = "own"
    config.eval.samples = 10
    return config
"""


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--sigma_min=0"], ["--sigma_min=0", "positive"]),
        (["--sigma_min=-1"], ["--sigma_min=-1"]),
        (["--sigma_min=nan"], ["--sigma_min=nan"]),
        (["--sigma_min=much"], ["sigma_min"]),
        (["--sigma_min=9.7"], ["--sigma_min=9.7", "9.62"]),
        (["--sigma_min=1e300"], ["--sigma_min=1e+300", "9.62"]),
        (["--sigma_min=1e-300"], ["--sigma_min=1e-300", "float32"]),
        (["--steps=0"], ["--steps=0", "1 to"]),
        (["--steps=2.5"], ["--steps=2.5: an integer is needed, such as 5"]),
        (["--overlap=half"], ["--overlap=half: a number is needed, such as 0.5"]),
        (["--steps=99999999999999999999"], ["--steps=", "1 to"]),
        (["--overlap=0"], ["--overlap=0.0", "between 0 and 1 is"]),
        (["--overlap=1"], ["--overlap=1.0", "between 0 and 1 is"]),
        (["--overlap=0.999"], ["--overlap=0.999", "0.9973"]),
        (["--sigma_mni=0.1"], ["did you mean '--sigma_min'"]),
        (["--config.data.digits.sed=1"], ["did you mean config.data.digits.seed"]),
        (["--config.data.digits.held_out=2.0"], ["held_out=2.0"]),
        (["surplus"], ["surplus and --config=ncsn_digits both name a configuration"]),
    ],
)
def test_what_cannot_be_is_said_in_one_line(tmp_path, flags, parts):
    refused(*DIGITS, f"--out={tmp_path / 'out'}", *flags, parts=parts)
    assert not list(tmp_path.glob("out/*"))


def test_an_option_without_effect_is_an_error(tmp_path):
    """Unless the design gives it one, as it does to refinenet_v2."""
    refused("--config=ncsn_toy", "--config.loss.ssm.slices=4", f"--out={tmp_path}", parts=["has no effect", "'ssm'"])


def test_all_faults_of_a_command_line_are_said_at_once(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    code, out, err = main(
        "--config=ncsn_tyo", "--sigma_min=-1", "--steps=0", "--overlap=2", "--out=setup.cfg", "--seed"
    )
    lines, parts = (
        err.splitlines(),
        ["--sigma_min=-1", "--steps=0", "--overlap=2", "--out=setup.cfg is a file", "--seed"],
    )
    assert (code, out, len(lines)) == (2, "", 6) and "no preset 'ncsn_tyo'" in err
    assert all(line.startswith("scoregen: ") and part in err for line, part in zip(lines, parts, strict=False))


@pytest.mark.slow
def test_a_notebook_s_backend_draws_the_figure(tmp_path):
    """MPLBACKEND names a module that is not installed, as `!scoregen design` in a notebook has it."""
    argv = [sys.executable, "-m", "scoregen", "design", "--config=ncsn_toy", "--config.data.mixture.size=300"]
    env = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    found = subprocess.run(
        [*argv, f"--out={tmp_path}"],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parent.parent,
    )
    assert (found.returncode, found.stderr) == (0, "") and len(list(tmp_path.glob("*.png"))) == 1


def test_without_a_configuration_there_is_no_design():
    refused("--config=ncsn_digit", parts=["did you mean 'ncsn_digits'"])
    refused("--sigma_min=0.1", parts=["--config=NAME"])
    refused("ncsn_toy", "surplus", parts=["unexpected argument 'surplus'"])
    refused("ncsn_digit", parts=["did you mean 'ncsn_digits'"])
    refused("ncsn_toy", "--config=ncsn_digits", parts=["ncsn_toy and --config=ncsn_digits both name a configuration"])


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    refused(*DIGITS, f"--out={tmp_path / 'file'}", parts=[f"--out={tmp_path / 'file'} is a file: a folder is needed"])
    refused(*DIGITS, f"--out={tmp_path / 'file' / 'below'}", parts=[f"{tmp_path / 'file'} is a file", "another --out"])
    (tmp_path / "out" / "ncsn_digits,net=mlp_designed.py").mkdir(parents=True)
    code, out, err = main(*DIGITS, f"--out={tmp_path / 'out'}")
    assert code == 2 and "cannot write" in err and "another --out" in err and err.count("\n") == 1
    assert "sigma_max" in out and any(flag.startswith("--config.process.ncsn.levels=") for flag in command_in(out))


@pytest.mark.slow
def test_designs_of_other_data_or_options_lie_beside_each_other(tmp_path):
    """Also with too few examples to evaluate a run, which training would refuse: a design evaluates nothing."""
    mixture, moons = ("--config.data.mixture.size=300",), ("--config.data.name=moons", "--config.data.moons.size=300")
    for more in (mixture, moons, (*mixture, "--steps=6")):
        code, _, err = main("--config=ncsn_toy", f"--out={tmp_path}", *more)
        assert (code, err) == (0, "")
    presets = sorted(tmp_path.glob("*.py"))
    assert len(presets) == 3 == len(list(tmp_path.glob("*.png")))
    assert all(sum(part in path.name for path in presets) == 1 for part in (",data=moons_", ",steps=6_"))
    assert {load(str(path)).data.name for path in presets} == {"mixture", "moons"}


def test_the_table_says_why_the_ratio_is_not_the_one_asked_for(digits):
    assert "the fewest with this ratio or a smaller one" in digits[1]


def test_equal_examples_have_no_levels(tmp_path):
    path = Path(tmp_path / "own.py")
    path.write_text(OWN.format(points="np.full((50, 3), 0.1)"))
    refused(f"--config={path}", f"--out={tmp_path / 'out'}", parts=["50 points of own", "all equal"])


@pytest.mark.parametrize("argv", [[], ["--help"], ["--config=ncsn_toy", "-h"]])
def test_help(argv):
    code, out, err = main(*argv)
    assert (code, err) == (0, "")
    for word in ("--sigma_min", "--steps", "--overlap", "--out", "ncsn_digits", "scoregen design"):
        assert word in out


def test_distances_that_were_not_all_compared_are_said_to_be_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "BUDGET", 0)
    code, out, _ = main(*DIGITS, f"--out={tmp_path}")
    assert code == 0
    assert "not all were compared" in out
