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
from scoregen.app.evaluate import Measured, Metric, density_notes, evaluate
from scoregen.app.figures import figure, mosaic
from scoregen.app.report import (
    _holding,
    curve,
    describe,
    heading,
    marginals,
    reference,
    save_curve,
    save_likelihoods,
    save_marginals,
    save_metrics,
    save_plane,
    save_samples,
    scatter,
    sheet,
    table,
)
from scoregen.data import Dataset, hold_out, points
from scoregen.errors import UsageError
from scoregen.train.log import MetricsLog


@pytest.mark.parametrize(("height", "width", "channels"), [(16, 20, 1), (16, 20, 3), (4, 6, 1)])
def test_a_grid_holds_every_image_in_reading_order(height, width, channels):
    """Five images in three columns: each is found again, as blocks of whole pixels between white gaps."""
    rng, scale, gap = np.random.default_rng(0), 3, 1
    images = rng.integers(250, size=(5, height, width, channels), dtype=np.uint8)
    page = sheet(images, side=3 * (width + 1) * scale)
    tall, wide = height * scale, width * scale
    assert page.shape == (2 * (tall + gap) + gap, 3 * (wide + gap) + gap, 3)
    white = np.ones(page.shape[:2], bool)
    for i, image in enumerate(images):
        y, x = gap + i // 3 * (tall + gap), gap + i % 3 * (wide + gap)
        assert (page[y : y + tall, x : x + wide] == image.repeat(scale, 0).repeat(scale, 1)).all()
        white[y : y + tall, x : x + wide] = False
    assert (page[white] == 255).all()


def found_in(page, block):
    """Where a block of pixels `[h, w, 3]` stands in a picture: its top left corners."""
    corner = np.argwhere((page == block[0, 0]).all(-1))
    tall, wide = block.shape[:2]
    return [(y, x) for y, x in corner.tolist() if np.array_equal(page[y : y + tall, x : x + wide], block)]


def test_samples_stand_below_real_images_pixel_by_pixel(tmp_path):
    """Both have a name, neither is blurred, and real images come from all of the data, not only the first class."""
    rng = np.random.default_rng(0)
    samples, real = (rng.integers(256, size=(n, 8, 8, 1), dtype=np.uint8) for n in (9, 50))
    path = save_samples(tmp_path / "samples.png", samples, real, "digits, step 3", side=90)
    page = np.rint(imread(path)[..., :3] * 255).astype(np.uint8)
    blocks = [image.repeat(3, 0).repeat(3, 1).repeat(3, 2) for image in (real[0], real[24], real[49], *samples)]
    places = [found_in(page, block) for block in blocks]
    assert [len(place) for place in places] == [1] * 12
    above, below = ([place[0] for place in part] for part in (places[:3], places[3:]))
    assert len({y for y, _ in above}) == 1 and above[0][0] < min(y for y, _ in below)
    assert [x for _, x in above] == [x for _, x in below[:3]]  # one column below the other
    margin = above[0][1]
    for top, bottom in ((above[0][0], above[0][0] + 24), (below[0][0], below[-1][0] + 24)):
        assert page[top:bottom, :margin].min() < 128  # a name at the left
    assert page[: above[0][0]].min() < 128  # and the title


def test_a_mosaic_names_its_lines_and_columns():
    picture = np.zeros((30, 30, 3), np.uint8)
    page = mosaic([("data", [picture] * 2), ("", [picture] * 2)], "a title", ["one", "two"])
    assert [text.get_text() for text in page.texts] == ["a title", "one", "two", "data"]
    boxes = [text.get_window_extent(page.canvas.get_renderer()) for text in page.texts]
    width, height = page.get_size_inches() * page.dpi
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_title_says_preset_step_and_distance():
    assert heading("ddpm_digits", 1200) == "ddpm_digits, step 1,200"
    metrics = [Metric("Frechet distance", 0.8412, 0.28, 0.05), Metric("memorised (%)", 0.1)]
    assert heading("ddpm_digits", 1200, metrics) == "ddpm_digits, step 1,200: Frechet distance 0.841, 3.0x the floor"


@pytest.mark.parametrize("losses", [[], [0.5], [3.0 / k for k in range(1, 9)], [-1.0 * k for k in range(8)]])
def test_a_curve_is_drawn_of_any_losses(tmp_path, losses):
    """No loss yet, one loss, many losses, and negative losses, as of sliced score matching, without a logarithm."""
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
    """A loss that is not finite is null in metrics.jsonl."""
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": null}\n{"step": 3, "loss": 0.5}\n'
    )
    (line,) = curve(tmp_path).axes[0].lines
    assert line.get_xdata().tolist() == [1, 3]


def test_a_curve_is_smoothed_and_shows_the_held_out_loss(tmp_path):
    """Losses of single batches alone seem to rise where the last batch is a hard one."""
    rng = np.random.default_rng(0)
    losses = 1 + 0.3 * rng.normal(size=100)
    losses[0], losses[-1] = 10.0, 3.0
    with MetricsLog(tmp_path, 0) as log:
        for i, loss in enumerate(losses, 1):
            log.write(10 * i, loss=float(loss))
        log.write(500, held_out_loss=1.1)
        log.write(1000, held_out_loss=0.9)
    panel = curve(tmp_path).axes[0]
    raw, smooth, held = panel.lines
    assert raw.get_alpha() < 0.5 and raw.get_ydata().tolist() == losses.tolist()
    y = smooth.get_ydata()
    np.testing.assert_allclose(y[50], losses[45:56].mean())
    np.testing.assert_allclose(y[-1], losses[-6:].mean())
    np.testing.assert_allclose(y[:2], [10.0, losses[:3].mean()])  # the fall at the start is not smeared
    assert held.get_xdata().tolist() == [500, 1000] and held.get_ydata().tolist() == [1.1, 0.9]
    said = [text.get_text() for text in panel.get_legend().get_texts()]
    assert said == ["training loss, single batches", "training loss, mean of 110 steps", "held-out loss"]
    assert panel.get_xlabel() == "training step"


def wide(dims, **options):
    rng = np.random.default_rng(0)
    return Dataset("wide", *(rng.normal(size=(500, dims)).astype(np.float32) for _ in range(2)), **options)


def test_marginals_say_how_many_of_the_coordinates_they_show():
    data = wide(128)
    page = marginals(data, data.train, "table, step 7")
    assert page.get_suptitle() == "table, step 7\n12 of 128 coordinates, the first ones"
    assert [panel.get_xlabel() for panel in page.axes] == [f"coordinate {i}" for i in range(12)]
    assert marginals(wide(3), wide(3).train).get_suptitle() == "all 3 coordinates"


def test_columns_keep_their_names():
    """The names come from a table or from an argument, with one name for each coordinate."""

    class Table:
        columns = ("age", "height")

        def __array__(self, dtype=None, copy=None):
            return np.random.default_rng(0).normal(size=(40, 2))

    assert Dataset("table", Table()).columns == ("age", "height")
    assert hold_out("table", Table(), 0.5, 0).columns == ("age", "height")
    data = wide(3, columns=("age", "height", "weight"))
    assert [panel.get_xlabel() for panel in marginals(data, data.train).axes[:3]] == ["age", "height", "weight"]
    with pytest.raises(UsageError, match="2 columns for examples of shape"):
        wide(3, columns=("age", "height"))


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_marginals_show_samples_that_leave_the_range_of_the_data(scale):
    """A histogram without an example in its range would warn, and warnings are errors in these tests."""
    data = wide(4)
    samples = data.train.copy()
    samples[:, 1] += 100 * scale
    samples[:, 2] = 3.0  # a constant
    page = marginals(data, samples)
    assert "axes are extended" in page.get_suptitle()
    assert "extended" not in marginals(data, data.train).get_suptitle()
    for i, panel in enumerate(page.axes):
        low, high = panel.get_xlim()
        assert np.mean((samples[:, i] >= low) & (samples[:, i] <= high)) >= 0.98
        assert np.mean((data.test[:, i] >= low) & (data.test[:, i] <= high)) >= 0.98
    same = Dataset("same", np.ones((9, 3), np.float32), np.ones((9, 3), np.float32))
    assert len(marginals(same, same.train).axes) == 3


def test_points_outside_are_drawn_at_the_edge_and_counted():
    _, ((panel,),) = figure()
    points = np.array([[0.0, 0.0], [0.5, -0.5], [7.0, 0.2], [0.0, -9.0]])
    assert scatter(panel, points, np.array([[-1.0, 1.0]] * 2), "black") == 0.5
    inside, edge = (drawn.get_offsets().tolist() for drawn in panel.collections)
    assert (inside, edge) == ([[0.0, 0.0], [0.5, -0.5]], [[1.0, 0.2], [0.0, -1.0]])


def test_marginals_show_samples_that_are_off(tmp_path):
    """One panel a coordinate: samples drawn elsewhere make another picture than samples of the truth."""
    rng = np.random.default_rng(0)
    data = Dataset("cube", *(rng.normal(size=(500, 5)).astype(np.float32) for _ in range(2)))
    good = imread(save_marginals(tmp_path / "good.png", data, data.train))
    bad = imread(save_marginals(tmp_path / "bad.png", data, data.train + 1))
    assert good.std() > 0.05
    assert good.shape == bad.shape
    assert abs(good - bad).max(axis=-1).mean() > 0.005


def test_metrics_and_the_table():
    """A metric has three figures or a sentence. Notes are only in the JSON. The last line names the page to read."""
    metrics = [
        Metric("sliced Wasserstein", 0.0205, 0.027, 0.0049, note="key 28bf8c5d"),
        Metric("MMD", 0.03, 0.016, 0.001),
        Metric("memorised (%)", 0.1, 1.1, note="key", text="0.1 % of the samples are near"),
        Metric("nearest", 12.0, note="median"),
    ]
    page = io.StringIO()
    Console(file=page, width=100).print(
        table("ddpm_toy: train", [("process", "ddpm")], metrics, [Path("a.png"), Path("b.npz")])
    )
    lines = [line.rstrip() for line in page.getvalue().splitlines()]
    assert lines == [
        "ddpm_toy: train",
        "process             ddpm",
        "sliced Wasserstein  0.0205   floor 0.0270 +- 0.0049   at the floor",
        "MMD                 0.0300   floor 0.0160 +- 0.0010   1.9x the floor",
        "memorised (%)       0.1 % of the samples are near",
        "nearest             12",
        "files               a.png",
        "                    b.npz",
        "explained           see scoregen eval --help; docs/manual/results.md",
    ]
    assert (Path(__file__).parent.parent / lines[-1].split()[-1]).is_file()


def test_a_floor_of_one_draw_has_no_spread():
    """It is compared by its value alone, and its spread is not written."""
    metrics = [Metric("a", 0.3, 0.2), Metric("a", 0.2, 0.2), Metric("a", 0.05, 0.2)]
    assert describe(metrics) == [
        "0.3    floor 0.2   1.5x the floor",
        "0.2    floor 0.2   at the floor",
        "0.05   floor 0.2   far below the floor: too near to the real data",
    ]


def test_the_note_says_what_the_floor_of_points_lacks():
    rng = np.random.default_rng(0)
    train, test, fresh = (rng.normal(size=(n, 2)).astype(np.float32) for n in (100, 60, 100))
    scaling = build(load("ddpm_toy")).scaling
    notes = [evaluate(Dataset("points", train, test), scaling, fresh[:n]) for n in (20, 21, 100)]
    assert [[metric.note[:26] for metric in found] for found in notes] == [
        ["", ""],
        ["the floor's subsets overla"] * 2,
        ["the floor is of one subset"] * 2,
    ]
    assert notes[2][0].floor_std is None and notes[1][0].floor_std


def strict(path: Path):
    """The content of a file of strict JSON."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_verdicts_are_kept_as_json(tmp_path):
    """The file has all that repeating the metrics needs. An infinity is a string, as JSON has no infinity."""
    config = load("ddpm_toy")
    config.sampler.process.name = "edm"
    config.sampler.step.name = "edm"
    assert config.sampler.step.edm.high == float("inf")
    verdicts = [Metric("MMD", 0.0, 0.02, 0.001, "a note", "a sentence"), Metric("near", float("inf"))]
    kept = strict(save_metrics(tmp_path / "distances.json", config, 4000, 7, verdicts))
    assert (kept["config"], kept["step"], kept["seed"], kept["samples"]) == ("ddpm_toy", 7, 0, 4000)
    assert kept["sampler"]["step"]["name"] == "edm" and kept["sampler"]["n"] == 250
    assert kept["sampler"]["step"]["edm"]["high"] == "Infinity"
    assert [(line["name"], line["value"]) for line in kept["distances"]] == [("MMD", 0.0), ("near", "Infinity")]
    assert kept["distances"][0]["floor"] == 0.02
    assert (kept["distances"][0]["note"], kept["distances"][0]["text"]) == ("a note", "a sentence")


def test_likelihoods_are_kept_as_json(tmp_path):
    config = load("ddpm_digits")
    found = [Measured("ode", 3.0, 0.1, float("nan"), "bits/dim", 60.0)]
    kept = strict(save_likelihoods(tmp_path / "likelihood.json", config, 7, found, 64))
    assert (kept["examples"], kept["scaling"], kept["likelihoods"][0]["own"]) == (64, "centered", "NaN")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no such backend"])
def test_figures_do_not_depend_on_the_backend_of_the_environment(tmp_path, backend):
    """A notebook sets its own backend for the processes that it starts, where the backend may not be installed."""
    code = f"""
import os, sys
import numpy as np
from scoregen.app import figures, report
from scoregen.data import Dataset
page, panels = figures.figure(1, 2)
panels[0, 0].plot([1, 2])
figures.save(figures.Path({str(tmp_path)!r}, "page.png"), page)
images = np.zeros((2, 4, 4, 1), np.uint8)
report.save_samples(figures.Path({str(tmp_path)!r}, "grid.png"), images, images)
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


@pytest.mark.slow
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
    np.testing.assert_array_equal(reference(bare), bare.train)


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
    """Series `[N, T, C]` are judged as points `[N, T C]`."""
    rng = np.random.default_rng(0)
    train, test, fresh = (rng.normal(size=(n, 8, 2)).astype(np.float32) for n in (400, 300, 200))
    scaling = build(load("ddpm_toy")).scaling
    flat = [part.reshape(len(part), -1) for part in (train, test)]
    found = evaluate(Dataset("series", train, test), scaling, fresh)
    assert found == evaluate(Dataset("points", *flat), scaling, fresh.reshape(len(fresh), -1))


@pytest.mark.slow
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
    assert memorised.text.startswith("100.0 % of the samples are as near to a training image as the nearest ")
    assert memorised.text.endswith(" % of held-out images: more than chance")
    assert memorised.chance is not None and memorised.chance < 1e-10
    assert "grey levels; for held-out images" in near.text and not frechet.text
    # If a tenth of the samples are copies, the median does not move, but the memorised share shows the copies.
    mixed = rng.uniform(-1, 1, real.shape).astype(np.float32)
    mixed[:30] = real[:30]
    noise, _, memorised = evaluate(dataset, scaling, mixed)
    assert noise.value > 10 * frechet.floor
    assert abs(memorised.value - 10.0) < 1e-6


def test_a_density_of_integers_or_of_one_value_is_said():
    """The likelihood of such columns is easily misread. Images of bytes have bits per dimension, and no note."""
    from scoregen.data.units import Form, Units

    x = np.zeros((4, 3))
    units = Units("float64", (3,), mean=(0.0,) * 3, std=(1.0, 2.0, 0.0))
    form = Form(".csv", ("float64", "int64", "float64"))
    found = density_notes(Dataset("table", x, x, units=units, columns=("a", "b", "c"), form=form))
    assert [line.split(":")[0] for line in found] == ["b is of integers", "c is constant"]
    of_array = Units("uint16", (2, 2), mean=(1.0, 1.0), std=(1.0, 1.0))
    (line,) = density_notes(Dataset("array", np.zeros((4, 2, 2), np.uint16), units=of_array))
    assert line.startswith("channel 0, channel 1 are of integers")
    assert density_notes(Dataset("images", np.zeros((4, 2, 2, 1), np.uint8))) == []
