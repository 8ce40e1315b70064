"""Figures and tables: each pixel in its place, each number beside its floor, and JSON that every reader accepts."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from scoregen.app.build import build
from scoregen.app.config import load
from scoregen.app.evaluate import Measured, Metric, evaluate
from scoregen.app.report import (
    _holding,
    curve,
    save_curve,
    save_grid,
    save_likelihoods,
    save_marginals,
    save_metrics,
    save_plane,
    table,
)
from scoregen.data import Dataset, points
from scoregen.train.log import MetricsLog


@pytest.mark.parametrize(("height", "width", "channels"), [(16, 20, 1), (16, 20, 3), (4, 6, 1)])
def test_a_grid_holds_every_image_in_reading_order(tmp_path, height, width, channels):
    """Five images in three columns: each is found again, as blocks of whole pixels between white gaps."""
    rng, scale, gap = np.random.default_rng(0), 3, 1
    images = rng.integers(250, size=(5, height, width, channels), dtype=np.uint8)
    if height < 16:  # interpolated: one grey each
        images[:] = images[:, :1, :1]
    path = save_grid(tmp_path / "grid.png", images, side=3 * (width + 1) * scale)
    page = np.rint(imread(path)[..., :3] * 255).astype(np.uint8)
    tall, wide = height * scale, width * scale
    assert page.shape == (2 * (tall + gap) + gap, 3 * (wide + gap) + gap, 3)
    white = np.ones(page.shape[:2], bool)
    for i, image in enumerate(images):
        y, x = gap + i // 3 * (tall + gap), gap + i % 3 * (wide + gap)
        assert (page[y : y + tall, x : x + wide] == image.repeat(scale, 0).repeat(scale, 1)).all()
        white[y : y + tall, x : x + wide] = False
    assert (page[white] == 255).all()


@pytest.mark.parametrize("losses", [[], [0.5], [3.0 / k for k in range(1, 9)], [-1.0 * k for k in range(8)]])
def test_a_curve_is_drawn_of_any_losses(tmp_path, losses):
    """None yet, one, many, and those of sliced score matching, which are negative and have no logarithm."""
    with MetricsLog(tmp_path, 0) as log:
        for step, loss in enumerate(losses, 1):
            log.write(step, loss=loss)
        if losses:
            log.write(len(losses), held_out_loss=losses[-1])
    page = imread(save_curve(tmp_path / "loss.png", tmp_path))
    assert page[..., :3].std() > (0.05 if losses else 0)


def test_lines_are_drawn_around_their_share_of_the_mass():
    """Of a Gaussian in the plane, 1 - c of the mass lies above c times the highest density."""
    axis = np.linspace(-6, 6, 401)
    density = np.exp(-0.5 * (axis**2 + axis[:, None] ** 2))
    assert _holding(density, (0.95, 0.8, 0.5)) == pytest.approx([0.05, 0.2, 0.5], rel=0.01)
    flat = np.where(np.abs(axis) < 3, 1.0, 0.0) * np.where(np.abs(axis[:, None]) < 3, 1.0, 0.0)
    assert _holding(flat, (0.95, 0.8, 0.5)) == [1.0]  # and no line twice, which matplotlib refuses


def test_a_curve_says_its_loss_in_plain_numbers(tmp_path):
    """For losses within a decade, of several, and of many: at least three numbers, none of them a power of ten."""
    for low in (0.8, 0.09, 1e-4):
        with MetricsLog(tmp_path, 0) as log:
            for step, loss in enumerate(np.geomspace(1, low, 20), 1):
                log.write(step, loss=float(loss))
        page = curve(tmp_path, "ddpm_toy, trained on mixture", "loss vlb, bits/dim")
        panel = page.axes[0]
        assert (panel.get_ylabel(), panel.get_title()) == ("loss vlb, bits/dim", "ddpm_toy, trained on mixture")
        page.canvas.draw()
        said = [label.get_text() for label in panel.get_yticklabels(which="both") if label.get_text()]
        inside = [float(text) for text in said if panel.get_ylim()[0] <= float(text) <= panel.get_ylim()[1]]
        assert len(inside) >= 3 and "$" not in "".join(said)


def test_a_curve_leaves_out_what_is_not_finite(tmp_path):
    """It is null in metrics.jsonl."""
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": null}\n{"step": 3, "loss": 0.5}\n'
    )
    (line,) = curve(tmp_path).axes[0].lines
    assert line.get_xdata().tolist() == [1, 3]


def test_marginals_show_samples_that_are_off(tmp_path):
    """One panel a coordinate: samples drawn elsewhere make another picture than samples of the truth."""
    rng = np.random.default_rng(0)
    data = Dataset("cube", *(rng.normal(size=(500, 5)).astype(np.float32) for _ in range(2)))
    good = imread(save_marginals(tmp_path / "good.png", data, data.train))
    bad = imread(save_marginals(tmp_path / "bad.png", data, data.train + 1))
    assert good.std() > 0.05
    assert good.shape == bad.shape
    assert abs(good - bad).max(axis=-1).mean() > 0.005


def test_verdicts_and_the_table():
    verdicts = [Metric("MMD", 0.03, 0.02, 0.001), Metric("nearest", 12.0, note="median")]
    page = io.StringIO()
    Console(file=page, width=100).print(
        table("ddpm_toy: train", [("process", "ddpm")], verdicts, [Path("a.png"), Path("b.npz")])
    )
    lines = [line.strip().split(maxsplit=1) for line in page.getvalue().splitlines()]
    assert lines == [
        ["ddpm_toy:", "train"], ["process", "ddpm"],
        ["MMD", "0.03, 1.50x the floor of 0.02 +- 0.001 (real against real)"], ["nearest", "12 (median)"],
        ["files", "a.png"], ["b.npz"],
    ]  # fmt: skip


def strict(path: Path):
    """What is in a file of strict JSON."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_verdicts_are_kept_as_json(tmp_path):
    """With what is needed to repeat them; an infinity is a string, as JSON has none."""
    config = load("ddpm_toy")
    config.sampler.process.name = "edm"
    config.sampler.step.name = "edm"
    assert config.sampler.step.edm.high == float("inf")
    verdicts = [Metric("MMD", 0.0, 0.02, 0.001), Metric("near", float("inf"))]
    kept = strict(save_metrics(tmp_path / "distances.json", config, 4000, 7, verdicts))
    assert (kept["config"], kept["step"], kept["seed"], kept["samples"]) == ("ddpm_toy", 7, 0, 4000)
    assert kept["sampler"]["step"]["name"] == "edm" and kept["sampler"]["n"] == 250
    assert kept["sampler"]["step"]["edm"]["high"] == "Infinity"
    assert [(line["name"], line["value"]) for line in kept["distances"]] == [("MMD", 0.0), ("near", "Infinity")]
    assert kept["distances"][0]["floor"] == 0.02


def test_likelihoods_are_kept_as_json(tmp_path):
    config = load("ddpm_digits")
    found = [Measured("ode", 3.0, 0.1, float("nan"), "bits/dim", 60.0)]
    kept = strict(save_likelihoods(tmp_path / "likelihood.json", config, 7, found, 64))
    assert (kept["examples"], kept["scaling"], kept["likelihoods"][0]["own"]) == (64, "centered", "NaN")


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no such backend"])
def test_figures_do_not_depend_on_the_backend_of_the_environment(tmp_path, backend):
    """A notebook names a backend of its own for all that it starts, which may not be installed there."""
    code = f"""
import os, sys
import numpy as np
from scoregen.app import figures, report
from scoregen.data import Dataset
page, panels = figures.figure(1, 2)
panels[0, 0].plot([1, 2])
figures.save(figures.Path({str(tmp_path)!r}, "page.png"), page)
report.save_grid(figures.Path({str(tmp_path)!r}, "grid.png"), np.zeros((2, 4, 4, 1), np.uint8))
points = Dataset("points", *(np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) for _ in range(2)))
report.save_marginals(figures.Path({str(tmp_path)!r}, "marginals.png"), points, points.train)
report.save_curve(figures.Path({str(tmp_path)!r}, "loss.png"), figures.Path({str(tmp_path)!r}))
assert os.environ["MPLBACKEND"] == {backend!r} and "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MPLBACKEND": backend, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.glob("*.png")} == {"page.png", "grid.png", "marginals.png", "loss.png"}


def test_the_plane_is_drawn_with_and_without_a_known_density(tmp_path):
    config = load("ddpm_toy")
    config.net.mlp.update(width=8, depth=1, embedding=8)
    for name in ("mixture", "moons"):
        config.data.name, config.data[name].size = name, 400
        config.eval.samples = 0
        parts = build(config)
        assert (parts.dataset.log_density is None) == (name == "moons")
        params = parts.model.init(jax.random.key(0), (1, 2))
        page = imread(
            save_plane(tmp_path / f"{name}.png", parts.model, parts.dataset, params, parts.dataset.train[:200])
        )
        assert page[..., :3].std() > 0.05
    bare = Dataset("bare", parts.dataset.train)  # without held-out examples
    assert imread(save_plane(tmp_path / "bare.png", parts.model, bare, params, bare.train[:200]))[..., :3].std() > 0.05
    assert imread(save_marginals(tmp_path / "marginals.png", bare, bare.train))[..., :3].std() > 0.05


def test_points_of_the_truth_score_the_floor_and_others_do_not(monkeypatch):
    monkeypatch.setattr(points, "TEST_SIZE", 500)
    config = load("ddpm_toy")
    config.data.mixture.size = 1000
    config.eval.samples = 300
    parts = build(config)
    fresh = points.mixture(size=300, seed=1).train
    judged = (evaluate(parts.dataset, parts.scaling, drawn) for drawn in (fresh, fresh + np.float32(1.0)))
    for truth, off in zip(*judged, strict=True):
        assert truth.floor is not None and truth.floor_std is not None
        assert abs(truth.value - truth.floor) < 5 * truth.floor_std
        assert off.floor == truth.floor and off.value > truth.floor + 5 * truth.floor_std


def test_points_of_any_rank_are_judged():
    """Series `[N, T, C]` as points `[N, T C]`."""
    rng = np.random.default_rng(0)
    train, test, fresh = (rng.normal(size=(n, 8, 2)).astype(np.float32) for n in (400, 300, 200))
    scaling = build(load("ddpm_toy")).scaling
    flat = [part.reshape(len(part), -1) for part in (train, test)]
    found = evaluate(Dataset("series", train, test), scaling, fresh)
    assert found == evaluate(Dataset("points", *flat), scaling, fresh.reshape(len(fresh), -1))


def test_images_of_the_truth_score_the_floor_and_noise_does_not():
    parts = build(load("ddpm_digits"))
    dataset, scaling = parts.dataset, parts.scaling
    rng = np.random.default_rng(0)
    real = dataset.train[rng.permutation(len(dataset.train))[:300]]
    real = (2 * real.astype(np.float32) - 255) / 255
    frechet, near, memorised = evaluate(dataset, scaling, real)
    assert frechet.floor is not None and frechet.floor_std is not None and "classifier" in frechet.note
    assert abs(frechet.value - frechet.floor) < 5 * frechet.floor_std
    assert (near.value, memorised.value) == (0.0, 100.0)  # they are training images
    assert memorised.floor is not None and memorised.floor < 2
    # A tenth of copies moves no median, and shows all the same.
    mixed = rng.uniform(-1, 1, real.shape).astype(np.float32)
    mixed[:30] = real[:30]
    noise, _, memorised = evaluate(dataset, scaling, mixed)
    assert noise.value > 10 * frechet.floor
    assert abs(memorised.value - 10.0) < 1e-6
