"""`scoregen fid`: two sets of pictures, from runs, folders and files, judged in the same features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scoregen import metrics
from scoregen.app.main import main as scoregen
from scoregen.app.sides import of_archive, of_folder
from scoregen.metrics import Activations, Features, Statistics, judge
from scoregen.metrics.statistics import Origin

RNG = np.random.default_rng(0)


def pictures(count: int, low: int = 0, size: tuple[int, ...] = (6, 5, 3)) -> np.ndarray:
    return RNG.integers(low, 256, (count, *size)).astype(np.uint8)


def means(images: np.ndarray) -> np.ndarray:
    """Six numbers of each image, in float32: the means of the first three rows, and of their squares."""
    rows = np.asarray(images, np.float64)[:, :3].mean(axis=(2, 3)) / 255
    return np.concatenate([rows, rows**2], axis=1).astype(np.float32)


class Seen(list):
    """The number of images in each call of the features."""


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """Features that are cheap, in place of EfficientNet's."""
    calls = Seen()

    def apply(images):
        calls.append(len(images))
        found = means(images)
        return found[:, :4], found

    made = Features("means of rows", "0123", "means", apply, resize="none", batch=64)
    monkeypatch.setitem(metrics.FEATURES, "efficientnet", lambda weights=None: made)
    monkeypatch.setenv("SCOREGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return calls


def fid(*argv: str) -> int:
    return scoregen(["fid", *argv, "--features=efficientnet"])


def fid_plain(*argv: str) -> int:
    return scoregen(["fid", *argv])


def results(path: str) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(Path(path).read_text())["metrics"]}


def test_two_files_have_the_metrics_of_their_features(seen, capsys):
    x, y, z = pictures(40, 60), pictures(50), pictures(130)
    np.savez("x.npz", samples=x)
    np.savez("y.npz", arr_0=y)
    np.savez("z.npz", samples=z)
    assert fid("x.npz", "y.npz", "--real=z.npz", "--out=found.json") == 0
    origin = Origin("means", "0123", "none")
    sides = (Activations(means(of), means(of)[:, :4], origin) for of in (x, y))
    expected = judge(*sides, real=Activations(means(z), means(z)[:, :4], origin))
    found, out = results("found.json"), capsys.readouterr().out
    assert list(found) == [result.name for result in expected] and "Frechet distance, means" in found
    for result in expected:
        row = found[result.name]
        assert (row["value"], row["std"], row["floor"]) == pytest.approx((result.value, result.std, result.floor))
        assert row["interval"] == pytest.approx(result.interval) and result.name in out
    assert "40 6x5 pictures: x.npz" in out and "50 6x5 pictures: y.npz" in out


def test_a_folder_has_the_pictures_of_its_files(seen, tmp_path):
    x = pictures(40)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for i, image in enumerate(x):
        Image.fromarray(image).save(tmp_path / "photos" / ("deep" if i % 2 else "") / f"{i}.png")
    side = of_folder(tmp_path / "photos", None, None)
    assert (side.count, side.shape) == (40, (6, 5, 3))
    every = np.concatenate(list(side.pictures()))
    assert sorted(map(bytes, every)) == sorted(map(bytes, x))
    np.savez("x.npz", samples=every)
    assert fid("photos", "x.npz", "--out=found.json") == 0
    assert results("found.json")["Frechet distance, means"]["value"] == pytest.approx(0, abs=1e-9)
    assert of_folder(tmp_path / "photos", 3, (4, 4)).shape == (4, 4, 3)


def test_statistics_are_written_and_are_a_side(seen):
    x, y = pictures(40, 60), pictures(50)
    np.savez("x.npz", samples=x)
    np.savez("y.npz", samples=y)
    assert fid("y.npz", "--save=stats.npz") == 0
    known = Statistics.read("stats.npz")
    np.testing.assert_allclose(known.mean, means(y).mean(0), rtol=1e-6)
    assert (known.count, known.origin.features, known.origin.resize) == (50, "means", "none")
    assert fid("x.npz", "stats.npz", "--out=of_stats.json") == fid("x.npz", "y.npz", "--out=of_rows.json") == 0
    value = results("of_rows.json")["Frechet distance, means"]["value"]
    assert results("of_stats.json")["Frechet distance, means"]["value"] == pytest.approx(value, rel=1e-9)
    with np.load("stats.npz") as file:  # by other libraries
        np.savez("theirs.npz", mu=file["mu"], sigma=file["sigma"])
    assert fid("x.npz", "theirs.npz", "--out=theirs.json") == 0
    assert results("theirs.json")["Frechet distance, means"]["value"] == pytest.approx(value, rel=1e-9)


def test_the_statistics_of_a_reference_are_computed_once(seen, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SCOREGEN_CACHE", str(tmp_path / "cache"))
    x, y = pictures(40), pictures(100)
    np.savez("x.npz", samples=x)
    np.savez("y.npz", samples=y)
    values = []
    for _ in range(2):
        assert fid("x.npz", "y.npz", "--metrics=frechet", "--out=found.json") == 0
        values.append(results("found.json")["Frechet distance, means"]["value"])
    assert values[0] == values[1] and "known from an earlier comparison" in capsys.readouterr().out
    assert seen == [64, 64, 64, 64]  # 40 and 64 + 36 images, then only 40 again, all padded to a batch
    y[0, 0, 0, 0] ^= 1  # another picture: other statistics
    np.savez("y.npz", samples=y)
    assert fid("x.npz", "y.npz", "--metrics=frechet") == 0 and len(seen) == 7
    (first, second) = (tmp_path / "cache").glob("statistics-*.npz")
    for file in (first, second):
        file.write_bytes(file.read_bytes()[:100])
    assert fid("x.npz", "y.npz", "--metrics=frechet", "--out=found.json") == 0 and len(seen) == 10
    assert results("found.json")["Frechet distance, means"]["value"] == pytest.approx(values[0], rel=0.1)


def test_n_takes_a_random_subset_that_is_always_the_same(seen):
    """The first ones would be those of one class in a set that is ordered by classes."""
    x = pictures(600)
    np.savez("x.npz", samples=x)
    taken = [np.concatenate(list(of_archive(Path("x.npz"), 300).pictures())) for _ in range(2)]
    np.testing.assert_array_equal(taken[0], taken[1])
    rows = [next(i for i, image in enumerate(x) if (image == one).all()) for one in taken[0]]
    assert rows == sorted({*rows}) and len(rows) == 300 and 240 < np.mean(rows) < 360


def test_the_floor_is_of_all_real_pictures_whatever_n_is(seen):
    for name, count in (("x", 60), ("y", 60), ("z", 200)):
        np.savez(f"{name}.npz", samples=pictures(count))
    assert fid("x.npz", "y.npz", "--real=z.npz", "--n=40", "--out=found.json") == 0
    found = json.loads(Path("found.json").read_text())
    assert (found["judged"]["count"], found["reference"]["count"], found["floor"]["count"]) == (40, 40, 200)
    assert all(row["floor_std"] > 0 for row in found["metrics"])


def test_a_grey_folder_has_one_channel(seen, tmp_path, capsys):
    x = pictures(30, size=(6, 5, 1))
    (tmp_path / "grey").mkdir()
    for i, image in enumerate(x):
        Image.fromarray(np.repeat(image, 3, 2)).save(tmp_path / "grey" / f"{i:02d}.png")
    side = of_folder(tmp_path / "grey")
    assert side.shape == (6, 5, 1)
    np.testing.assert_array_equal(np.concatenate(list(side.pictures())), x)
    np.savez("colour.npz", samples=pictures(30))
    assert fid("grey", "colour.npz") == 2
    assert "differ in size or channels (grey: 6x5x1; colour.npz: 6x5x3)" in capsys.readouterr().err


def test_of_pictures_and_statistics_in_one_file_the_statistics_are_taken(seen):
    """As ADM's own evaluation does with its reference files, whose pictures are only some of the set."""
    x = pictures(50)
    known = Statistics.of(means(pictures(90)))
    np.savez("adm.npz", arr_0=x, mu=known.mean, sigma=known.cov)
    side = of_archive(Path("adm.npz"))
    assert side.pictures is None and "arr_0 are not used" in side.name
    np.testing.assert_array_equal(side.known.mean, known.mean)


def test_many_statistics_are_compared_by_what_they_have(seen):
    for name, low in (("x", 60), ("y", 0)):
        Statistics.of(np.tile(means(pictures(40, low)), (300, 1)), Origin("means", "0123")).write(f"{name}.npz")
    assert fid_plain("x.npz", "y.npz", "--out=found.json") == 0
    assert [*results("found.json")] == ["Frechet distance, means"]


def test_samples_that_are_not_all_drawn_are_refused(seen, tmp_path, capsys):
    (tmp_path / "part").mkdir()
    for i, image in enumerate(pictures(5)):
        Image.fromarray(image).save(tmp_path / "part" / f"{i}.png")
    (tmp_path / "part" / "samples.json").write_text('{"samples": 8}')
    np.savez("y.npz", samples=pictures(30))
    assert fid("part", "y.npz") == 2 and "holds 5 of 8 samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["a.npz"], ["say what to compare a.npz with", "scoregen fid a.npz B"]),
        (["no", "a.npz"], ["no is not there"]),
        (["a.npz", "small.npz"], ["differ in size or channels", "a.npz: 6x5x3", "small.npz: 4x4x3"]),
        (["a.npz", "floats.npz"], ["'samples' is float64", "round floats"]),
        (["a.npz", "other.npz"], ["no file of statistics", "'z'"]),
        (["a.npz", "text.npz"], ["text.npz cannot be read"]),
        (["a.npz", "text.txt"], ["a file of another kind"]),
        (["a.npz", "a.npz"], ["named twice"]),
        (["a.npz", "b.npz", "--real=./b.npz"], ["named twice"]),
        (["a.npz", "b.npz", "--n=1"], ["--n=1: two or more"]),
        (["a.npz", "b.npz", "--metrics=,"], ["no metric is named"]),
        (["a.npz", "stats.npz", "--metrics=kid"], ["kid: pictures are needed, and stats.npz, statistics has only"]),
        (["a.npz", "b.npz", "--real=stats.npz"], ["a floor needs pictures"]),
        (["a.npz", "b.npz", "--size=0"], ["--size=0: a number"]),
        (["a.npz", "b.npz", "--size=8"], ["--size=8 has no effect"]),
        (["a.npz", "b.npz", "--save=x.NPZ"], ["a .npz file"]),
        (["a.npz", "one.npz"], ["looks like one picture"]),
        (["single", "a.npz"], ["single: two or more pictures are needed, and it holds 1"]),
        (["a.npz", "b.npz", "--metrics=frechet,fd"], ["no metric 'fd'", "frechet, "]),
        (["a.npz", "b.npz", "--resize=bilinear"], ["--resize=bilinear: pytorch-fid or torch-fidelity"]),
        (["a.npz", "b.npz", "--out=x.txt"], ["--out=x.txt: a .json file"]),
        (["a.npz", "b.npz", "--save=x.json"], ["--save=x.json: a .npz file"]),
        (
            ["a.npz", "b.npz", "--real=few.npz"],
            ["few.npz: the floor needs as many real pictures as samples, 40, and these are 5"],
        ),
        (["a.npz", "b.npz", "--size=big"], ["--size=big"]),
        (["a.npz", "stats.npz"], ["key", "'0123' on one side and '9' on the other"]),
        (["empty", "a.npz"], ["no pictures in empty"]),
        (["mixed", "a.npz"], ["pictures of several sizes (3x3 and 4x4", "--size=64"]),
        (["broken", "a.npz"], ["0.png cannot be read"]),
    ],
)
def test_what_does_not_fit_is_refused(seen, tmp_path, capsys, argv, parts):
    np.savez("a.npz", samples=pictures(40))
    np.savez("b.npz", samples=pictures(40))
    np.savez("one.npz", samples=pictures(1)[0])
    np.savez("few.npz", samples=pictures(5))
    np.savez("small.npz", samples=pictures(40, size=(4, 4, 3)))
    np.savez("floats.npz", samples=RNG.random((3, 4, 4, 3)))
    np.savez("other.npz", z=np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "text.txt").write_text("no archive")
    Statistics.of(means(pictures(40)), Origin("means", "9")).write("stats.npz")
    for name in ("empty", "mixed", "broken", "single"):
        (tmp_path / name).mkdir()
    for side in (3, 4):
        Image.fromarray(pictures(1, size=(side, side, 3))[0]).save(tmp_path / "mixed" / f"{side}.png")
    for i in range(2):
        (tmp_path / "broken" / f"{i}.png").write_bytes(b"no picture")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "single" / "0.png")
    assert fid(*argv) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err and all(part in err for part in parts), err


def test_all_faults_of_a_command_line_are_said_at_once(seen, capsys):
    assert scoregen(["fid", "no", "--n=0", "--features=vgg", "--out=x"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.slow
def test_a_run_is_judged_against_its_own_pictures(tmp_path, monkeypatch, capsys):
    """In the features of its classifier, against all of its training pictures, with the floor of the held-out ones."""
    import scoregen as sg

    monkeypatch.chdir(tmp_path)
    small = ["--config.net.unet.channels=8", "--config.net.unet.multipliers=(1,)", "--config.net.unet.blocks=1"]
    argv = [*small, "--steps=4", "--config.sampler.images=4", "--config.eval.at_end=false", "--workdir=run"]
    assert scoregen(["train", "ddpm_digits", *argv, "--config.net.unet.attention=()"]) == 0
    assert scoregen(["fid", "run", "--n=60", "--features=classifier", "--metrics=frechet,prdc"]) == 0
    found, run = json.loads((tmp_path / "run" / "fid.json").read_text()), sg.load("run")
    features = sg.metrics.classifier_features(run.dataset)
    samples, train = (Activations(features(of)) for of in (run.sample(60), run.dataset.train))
    expected = judge(samples, train, ["frechet", "prdc"], real=Activations(features(run.dataset.test)))
    for row, result in zip(found["metrics"], expected, strict=True):
        assert (row["value"], row["floor"]) == pytest.approx((result.value, result.floor), rel=1e-5)
        assert row["name"] == f"{result.name}, digits classifier"
    assert found["judged"]["origin"]["rounding"] == "round" and found["reference"]["count"] == len(run.dataset.train)
    assert scoregen(["fid", "run", "--n=60", "--features=classifier", "--metrics=frechet"]) == 0
    again = json.loads((tmp_path / "run" / "fid.json").read_text())["metrics"][0]["value"]
    assert again == pytest.approx(found["metrics"][0]["value"], rel=1e-6)
    page = (tmp_path / "run" / "index.html").read_text()
    assert "60 pictures of run, step 4, its samples" in page and "Features: digits classifier" in page
