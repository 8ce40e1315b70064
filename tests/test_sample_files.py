"""Samples as files: the same bytes however often the command was stopped, and nothing that was not asked for."""

import csv
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from hosts import address, nobody_is_left, said, start  # noqa: F401 - a fixture
from matplotlib.image import imread
from PIL import Image
from refusal import refused
from test_command import made, performed, say  # noqa: F401 - fixtures
from test_command import refused as command_refused

import scoregen
from scoregen import data
from scoregen.app import actions, report
from scoregen.app import config as config_lib
from scoregen.app import samplefiles as S
from scoregen.app.sampling import Draws, Sampling, keys_of, sampling_key
from scoregen.app.selection import Selection, misfits, read_classes, read_seeds, write_seeds, wrong_out
from scoregen.cond import Cond
from scoregen.data import Centered, Dataset, Identity
from scoregen.data.units import Form, Units
from scoregen.errors import UsageError
from scoregen.random import example_keys

ROOT = Path(__file__).parent.parent
SETTINGS = {"run": "/runs/a", "step": 3, "weights": "abc", "samples": 23, "seed": 0, "batch": 5}


@functools.partial(jax.jit, static_argnums=1)
def noise(keys, shape):
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


class Known(Sampling):
    """A sampling whose samples are standard normal noise of their keys, without a network."""

    levels = 2  # pyright: ignore

    @property
    def draw(self):  # pyright: ignore
        def draw(params, keys, cond, clean):
            self.params_seen.append(len(keys))
            x = noise(keys, self.shape)
            return x if cond is None else x + 10.0 * cond.label.reshape(-1, *[1] * len(self.shape))

        return draw

    @property
    def params_seen(self):
        return self.__dict__.setdefault("drawn", [])


def known(shape=(4, 4, 1), labels=None, **options):
    cond = None if labels is None else Cond(label=np.array(labels, np.int32))  # pyright: ignore
    scaling = Centered() if len(shape) == 3 else Identity()
    return Known(None, None, shape, scaling, None, is_image=len(shape) == 3, cond=cond, batch=5, **options)  # pyright: ignore


def pictures(classes=None, labels=None):
    images = np.zeros((4, 4, 4, 1), np.uint8)
    return Dataset("pictures", images, train_labels=labels, classes=classes)


def fill(files, settings=SETTINGS, stop=None):
    """Draw what is missing, as the command does; `stop` batches at most."""
    files.begin(settings)
    for k, (index, samples) in enumerate(
        files.sampling.batches(None, files.draws, batch=files.size, blocks=files.missing())
    ):
        if k == stop:
            return
        files.put(index, samples)
    files.finish()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# The draws


def test_batches_are_the_samples_of_one_call():
    sampling = known()
    whole, heard = sampling(None, 23), []
    assert whole is not None and whole.shape == (23, 4, 4, 1)
    drawn = list(sampling.batches(None, 23, heard.append))
    assert [len(index) for index, _ in drawn] == [5, 5, 5, 5, 3]
    np.testing.assert_array_equal(np.concatenate([index for index, _ in drawn]), np.arange(23))
    np.testing.assert_array_equal(np.concatenate([samples for _, samples in drawn]), whole)
    expected = noise(example_keys(sampling_key(0), 23), (4, 4, 1))
    np.testing.assert_array_equal(whole, expected)
    assert set(sampling.params_seen) == {5}  # one program for all batches

    some = list(sampling.batches(None, 23, blocks=[4, 1]))
    np.testing.assert_array_equal(some[0][0], [20, 21, 22])
    np.testing.assert_array_equal(some[1][1], whole[5:10])
    answers = iter([False, False, True])
    assert sampling(None, 23, stopped=lambda: next(answers)) is None


def test_the_next_batch_is_asked_for_when_it_is_needed():
    asked, sampling = [], known()
    batches = sampling.batches(None, 23, blocks=(asked.append(k) or k for k in range(5)))
    for k in range(3):
        next(batches)
        assert asked == list(range(k + 1))


@pytest.mark.parametrize("seed", [0, 2**31 - 2, 2**32 - 1])
def test_keys_are_those_of_the_seed_and_the_number(seed):
    found = keys_of(Draws.of_seeds([seed, 7], each=2).at(np.arange(4)))
    expected = [*example_keys(sampling_key(seed), 2), *example_keys(sampling_key(7), 2)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(jax.random.key_data(one), jax.random.key_data(other))


def test_a_sample_of_a_seed_depends_on_the_seed_alone():
    """Its noise is that of sample 0, or k, of this seed, and its class does not depend on the other seeds."""
    sampling = known(labels=[0, 1, 2])
    for chosen in ([4, 9, 5], [5], [0, 5, 1, 2, 3, 8]):
        found = sampling(None, Draws.of_seeds(chosen))
        one = sampling(None, Draws.first(1, 5))
        assert found is not None and one is not None
        np.testing.assert_allclose(found[chosen.index(5)], one[0] + 10.0 * (5 % 3), rtol=1e-6)
    each = sampling(None, Draws.of_seeds([5, 6], each=3))  # every seed with every class
    alone = sampling(None, 3, seed=6)
    assert each is not None and alone is not None
    np.testing.assert_array_equal(each[3:], alone)


# Pictures


@pytest.mark.parametrize("kind", ["pictures", "archive", "array", "table"])
def test_files_are_the_same_however_often_they_were_begun(kind, tmp_path):
    """Stopped after every number of batches, with half a file under another name and a file that was cut off."""
    begun, kept = [], []

    def files(place):
        if kind in ("pictures", "archive"):
            sampling, dataset = known(labels=[1, 0]), pictures(("ape", "cat"), np.array([0, 1, 0, 1]))
        else:
            table = kind == "table"
            sampling = known((3,), [1, 0] if table else None)
            form = Form(".csv", ("float64",) * 3, label="k") if table else Form()
            names = {"classes": ("ape", "cat"), "train_labels": np.array([0, 1])} if table else {}
            units = Units("float64", (3,), mean=(0.0,) * 3, std=(2.0,) * 3)
            dataset = Dataset("x", np.zeros((2, 3)), units=units, columns=("a", "b", "c"), form=form, **names)
            object.__setattr__(sampling, "units", units)
        out = tmp_path / place / ("x.npz" if kind == "archive" else "out")
        out.parent.mkdir(exist_ok=True)
        begun.append(S.files_of(out, dataset, sampling, Draws.first(23, 3), 5))
        return begun[-1]

    fill(files("straight"))
    for k in range(5):
        fill(files("cut"), stop=1)
        lying = sorted((tmp_path / "cut").rglob("*.npy" if kind != "pictures" else "*.png"))
        if k == 2:  # a file that something else cut off, which is not taken for whole, and half a file of a kill
            lying[0].write_bytes(lying[0].read_bytes()[:-9])
            half = lying[1].with_name(f".{lying[1].stem}.new.00000000-99-0123abcd{lying[1].suffix}")
            half.write_bytes(b"half")
            os.utime(half, (1, 1))
            os.remove(lying[1])
            kept = lying[2:]
            for path in kept:
                os.utime(path, (1, 1))
    fill(files("cut"))
    assert tree(tmp_path / "cut") == tree(tmp_path / "straight")
    if kind == "pictures":  # what was whole was not written again
        assert {path.stat().st_mtime for path in kept} == {1}
    # Each batch was drawn once and those of the two files twice; of each start the last was not written.
    assert sum(len(one.sampling.params_seen) for one in begun[1:]) == 5 + 5 + {"pictures": 1}.get(kind, 2)
    again = files("cut")
    fill(again)
    assert not again.sampling.params_seen and again.count() == 23


def test_pictures_hold_the_samples_under_their_names(tmp_path):
    sampling, draws = known(labels=[2, 0]), Draws.of_seeds([3, 4000000000], each=2)
    files = S.files_of(tmp_path / "out", pictures(("a", "b", "c"), np.array([0, 1, 2, 0])), sampling, draws, 3)
    fill(files)
    names = ["000003-0000000.png", "000003-0000001.png", "4000000000-0000000.png", "4000000000-0000001.png"]
    assert set(tree(tmp_path / "out")) == {*names, "samples.json", "labels.csv", ".lock"}
    expected = sampling.scaling.to_bytes(sampling(None, draws))
    for name, image in zip(names, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / name)), image[..., 0])
    assert isinstance(files, S.Pictures)
    np.testing.assert_array_equal(files.first(4), expected)
    with (tmp_path / "out" / "labels.csv").open() as file:
        assert list(csv.reader(file)) == [["file", "label"], *([name, "ca"[i % 2]] for i, name in enumerate(names))]
    assert files.written == [tmp_path / "out", tmp_path / "out" / "labels.csv"]
    read = data.folder(str(tmp_path / "out"), size=4, held_out=0.0, prepared=str(tmp_path / "prepared"))
    assert read.classes == ("a", "c") and len(read.train) == 4  # the folder is a data set


def test_an_archive_is_read_by_numpy_and_as_data(tmp_path):
    """In the units and the layout of the data: channels first here."""
    units = Units("uint8", (1, 4, 4), channel=0)
    dataset = Dataset("x", np.zeros((2, 1, 4, 4), np.uint8), units=units, train_labels=np.array([0, 1]))
    sampling = known(labels=[1, 0], units=units)
    files = S.files_of(tmp_path / "x.npz", dataset, sampling, Draws.first(13, 0), 5)
    fill(files)
    bytes_ = sampling.scaling.to_bytes(sampling(None, 13))
    with np.load(tmp_path / "x.npz") as found:
        assert set(found) == {"samples", "labels", "settings"}
        np.testing.assert_array_equal(found["samples"], bytes_.transpose(0, 3, 1, 2))
        assert found["samples"].dtype == np.uint8 and found["labels"].tolist() == [1, 0] * 6 + [1]
        assert json.loads(str(found["settings"])) == SETTINGS
    assert isinstance(files, S.Archive)
    np.testing.assert_array_equal(files.first(7), bytes_[:7])
    read = data.array(str(tmp_path / "x.npz"), key="samples", labels="labels", layout="first", held_out=0.0)
    assert read.train.shape[0] == 13 and read.train_labels is not None
    assert {path.name for path in tmp_path.iterdir()} == {"x.npz", ".x.npz.lock"}
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert archive.testzip() is None
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # no byte is of the clock


def test_contexts_are_in_an_archive_in_the_units_of_the_data(tmp_path):
    context = Units("float64", (2,), mean=(1.0, 2.0), std=(3.0, 4.0))
    sampling = known((3,), context_units=context)
    object.__setattr__(sampling, "cond", Cond(context=np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)))  # pyright: ignore
    sampling.__dict__["draw"] = None
    files = S.files_of(tmp_path / "x.npz", Dataset("x", np.zeros((2, 3), np.float32)), sampling, Draws.first(3, 0), 2)
    files.begin(SETTINGS)
    for k in files.missing():
        files.put(files.index(k), np.zeros((len(files.index(k)), 3), np.float32))
    files.finish()
    with np.load(tmp_path / "x.npz") as found:
        assert found["contexts"].tolist() == [[1.0, 6.0], [4.0, 2.0], [1.0, 6.0]]


def test_one_batch_at_a_time_is_in_memory(tmp_path):
    sampling, dataset = known((16, 16, 3)), Dataset("x", np.zeros((2, 16, 16, 3), np.uint8))
    draws = Draws.first(1200, 0)  # 3.7 MB of float32, 0.9 MB of bytes
    files = S.files_of(tmp_path / "x.npz", dataset, sampling, draws, 40)
    sampling(None, 40, batch=40)  # what is compiled stays
    tracemalloc.start()
    fill(files)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 0.5e6
    with np.load(tmp_path / "x.npz") as found:
        assert found["samples"].shape == (1200, 16, 16, 3)


# What is refused


def test_other_settings_are_refused_with_what_differs(tmp_path):
    def begin(place="out", **changes: Any):
        S.files_of(tmp_path / place, pictures(), known(), Draws.first(23, 0), 5).begin(SETTINGS | changes)

    begin()
    begin(run="/elsewhere/a")  # the same weights in another place
    before = tree(tmp_path)
    said_ = refused(lambda: begin(batch=6, seed=1), "out holds samples of other settings", "seed was 0, now 1")
    assert "batch was 5, now 6" in said_ and "another --out" in said_
    refused(lambda: begin(step=4, weights="def"), "(step was 3, now 4)")
    refused(lambda: begin(weights="def"), "(weights was abc, now def)")
    refused(lambda: begin("out", **{"sampler.n": 7}), "(sampler.n was none, now 7)")
    assert tree(tmp_path) == before
    (tmp_path / "out" / "samples.json").write_text("{")
    refused(begin, "samples.json is damaged", "another --out")

    files = S.files_of(tmp_path / "x.npz", pictures(), known(), Draws.first(23, 0), 5)
    fill(files)
    refused(lambda: begin("x.npz", step=5), "step was 3, now 5")
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[:-30])
    refused(lambda: begin("x.npz"), "x.npz is no whole file of this command", "another --out, or delete it")
    np.savez(tmp_path / "x.npz", other=np.zeros(3))
    refused(lambda: begin("x.npz"), "no whole file of this command")


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    files = S.files_of(tmp_path / "out", pictures(), known(), Draws.first(23, 0), 5)
    fill(files, stop=2)
    before = tree(tmp_path)

    def full(image, file, **options):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        refused(
            lambda: fill(files),
            "No space left",
            "make room",
            "10 of 23 samples are there, and the same command continues",
        )
    assert tree(tmp_path) == before
    fill(files)
    assert files.count() == 23

    monkeypatch.setattr(S.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_500_000))
    large = S.files_of(
        tmp_path / "x", Dataset("x", np.zeros((2, 3), np.float32)), known((3,)), Draws.first(10**5, 0), 5
    )
    refused(lambda: large.begin(SETTINGS), "100,000 samples need 2.4 MB, and 1.5 MB are free", "fewer samples")


def test_the_settings_know_the_images_that_are_completed(tmp_path):
    """Of the held-out images, only those that these samples complete."""
    held = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4, 1)
    found = []
    for changed in (None, 1, 5):
        images = held.copy()
        if changed is not None:
            images[changed] += 1
        sampling = known(control="inpaint", dataset=Dataset("digits", held, images))
        action = actions.Action.__new__(actions.Action)
        action.sampling, action.workdir, action.config = sampling, tmp_path, config_lib.load("ddpm_digits")
        found.append(action.settings(SimpleNamespace(step=3, params={}), Draws.first(4, 0), 5)["completes"])  # pyright: ignore
    assert found[0] == found[2] != found[1]


def test_seeds_and_classes_are_read_as_they_are_meant():
    assert read_seeds("0-3,9, 7 - 8") == ((0, 1, 2, 3, 9, 7, 8), [])
    assert write_seeds(read_seeds("0-3,9,7-8")[0]) == "0-3,9,7-8"
    for text, part in (
        ("", "a seed, or a range"),
        ("1,,2", "''"),
        ("-1", "'-1'"),
        ("1.5", "'1.5'"),
        ("0-4294967296", "4294967296: an integer from 0 to 4294967295"),
        ("9" * 5000, "99999: an integer from 0 to 4294967295"),
        ("0-99999999", "at most 10,000,000"),
        ("3,1-4", "3 is named twice"),
    ):
        found, errors = read_seeds(text)
        assert not found and part in errors[0], text
    assert len(read_seeds("a,5-3,4294967296")[1]) == 3
    names = ("0", "zwei", "3")
    assert read_classes("0,zwei,2", 3, names) == ((0, 1, 2), [])
    assert read_classes("0-2", 3) == ((0, 1, 2), [])
    assert read_classes("3,x", 3, names)[1] == [
        "--classes: 3: the classes are 0 to 2; the class called 3 is class 2",
        "--classes: no class 'x': there are: 0, zwei, 3",
    ]
    assert read_classes("cat", 10)[1] == ["--classes: no class 'cat': there are: 0 to 9"]
    assert read_classes("1,1", 3)[1] == ["--classes: 1 is named twice: say it once"]


def test_a_selection_that_does_not_fit_the_run():
    points, images = Dataset("x", np.zeros((2, 2), np.float32)), pictures()
    assert misfits(Selection(classes="1", grid=True), 64, points, 0) == [
        "--classes=1: this network has no classes: train a network with --config.labels=true",
        "--grid draws pictures of bytes, grey or in colour, and the samples are none: leave it out; without --out the "
        "command draws a figure",
    ]
    three = Selection(classes="0-2", counted=True, grid=True)
    assert misfits(three, 64, images, 10) == ["--n=64: not the same number of each of 3 classes: say --n=63 or --n=66"]
    assert misfits(three, 2, images, 10) == ["--n=2: not the same number of each of 3 classes: say --n=3"]
    assert misfits(three, 66, images, 10) == misfits(Selection(classes="0-2"), 64, images, 10) == []
    assert misfits(Selection((1, 2), "0-2", counted=True), 64, images, 10) == []


def test_a_place_that_is_none(tmp_path):
    run = tmp_path / "runs" / "mine"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").touch()
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").touch()
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "empty.csv").mkdir()
    for place, part in (
        (run, "is the folder of a run: say another folder, such as --out=mine-samples"),
        (run / "a" / "b.npz", f"is inside the run {run}"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "x.csv", "a folder or a .npz file is needed"),
        (tmp_path / "full", "holds other files: say a new or an empty folder"),
        (tmp_path / "folder.npz", "is a folder"),
    ):
        (line,) = wrong_out(place)
        assert line.startswith(f"--out={place}") and part in line
    (tmp_path / "full" / "samples.json").touch()
    (tmp_path / "empty.csv" / ".hidden").touch()
    for place in ("new", "new.npz", "full", "empty.csv", "runs/other"):
        assert not list(wrong_out(tmp_path / place))


def test_the_command_says_all_that_is_wrong_at_once(made, tmp_path, performed):  # noqa: F811
    (tmp_path / "file").touch()
    flags = ("--seeds=3-1", "--n=0", "--seed=4", "--grid", "--classes=1", "--config.sampler.label=1")
    command_refused(
        *("sample", made, *flags, f"--out={tmp_path / 'file'}"),
        lines=6,
        parts=[
            "--seeds: 3-1 is empty: say 1-3",
            "--seeds and --n both say how many samples to draw",
            "--seeds and --seed both say the seed",
            "--classes and --config.sampler.label both say the class",
            "file is a file",
        ],
    )
    command_refused("sample", made, "--grid", parts=["--grid without --out"])
    command_refused("eval", made, "--seeds=1", parts=["no flag '--seeds'"])
    code, out, err = say("sample", made, "--seeds=0,2-3", "--classes=a,1", "--grid", f"--out={tmp_path / 'new'}")
    assert (code, out, err) == (0, "", "")
    (call,) = performed
    assert call.selection == Selection((0, 2, 3), "a,1", True, False) and call.out == tmp_path / "new"
    assert not (tmp_path / "new").exists()


def test_the_build_and_the_selection_are_refused_together(monkeypatch):
    """What is wrong in the configuration and what does not fit the run, in one error."""
    images = pictures(labels=np.array([0, 1, 2, 0]))
    summary = actions.describe.data_summary(images)

    def no(*args, **options):
        raise UsageError("config.sampler.images=0: at least 1 is needed")

    monkeypatch.setattr(actions, "build", no)
    config = SimpleNamespace(labels=True, data=SimpleNamespace(name="x"), sampler=SimpleNamespace(images=64))
    with pytest.raises(UsageError) as caught:
        actions._build(config, "sample", summary, Selection(classes="7"))
    assert caught.value.args == (
        "config.sampler.images=0: at least 1 is needed",
        "--classes: 7: the classes are 0 to 2",
    )


# Several processes

HOLD = """
import sys, time
from pathlib import Path
from scoregen.files import claimed
with claimed(Path(sys.argv[1]), int(sys.argv[2])) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


def test_a_batch_of_another_process_is_left_to_it_until_it_ends(tmp_path, monkeypatch):
    files = S.files_of(tmp_path / "out", pictures(), known(), Draws.first(23, 0), 5)
    files.begin(SETTINGS)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(files.lock), "2"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert other.stdout is not None and other.stdout.readline() == "True\n"
    drawn, waited = [], []

    def wait(seconds):
        waited.append(seconds)
        other.kill()
        other.communicate()

    monkeypatch.setattr(S.time, "sleep", wait)
    sampling = files.sampling
    for index, samples in sampling.batches(None, files.draws, batch=5, blocks=files.missing()):
        drawn.append(int(index[0]) // 5)
        files.put(index, samples)
    assert drawn == [0, 2, 3, 4, 1] and waited == [S.WAIT]


# The picture


def test_a_grid_has_a_column_for_each_class(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(6, 4, 4, 1), dtype=np.uint8)
    path = report.save_grid(tmp_path / "grid.png", images, "mine, step 3", ["cat", "dog"], side=48)
    page = np.rint(imread(path)[..., :3] * 255).astype(np.uint8)

    def place(image):
        block = image.repeat(3, 0).repeat(3, 1).repeat(3, 2)
        rows, columns = page.shape[0] - 11, page.shape[1] - 11
        found = [
            (y, x) for y in range(rows) for x in range(columns) if np.array_equal(page[y : y + 12, x : x + 12], block)
        ]
        assert len(found) == 1
        return found[0]

    places = [place(image) for image in images]
    assert len({x for _, x in places[::2]}) == len({x for _, x in places[1::2]}) == 1
    assert [y for y, _ in places[::2]] == [y for y, _ in places[1::2]] == sorted({y for y, _ in places})
    assert places[0][1] < places[1][1] and page[: places[0][0]].min() < 128  # the title and the names


# The command

TINY = (
    *("--config.net.unet.channels=8", "--config.net.unet.groups=4", "--config.net.unet.blocks=1", "--steps=2"),
    *("--batch=8", "--config.labels=true", "--config.sampler.n=3", "--config.sampler.images=4"),
    "--config.eval.at_end=false",
)


def started(*argv, devices=1):
    """The command in a separate process that prints its progress five times a second."""
    code = "import sys; from scoregen.app import main; from scoregen.train import Bar; Bar.every = 0.2; "
    return start(devices, "-c", f"{code} sys.exit(main.main())", *argv)


def done(*argv, devices=1) -> str:
    code, out, err = said(started(*argv, devices=devices))
    assert (code, err) == (0, "")
    return out


def refusal(*argv, lines=1) -> str:
    code, out, err = said(started(*argv))
    assert code == 2 and err.count("\n") == lines and "Traceback" not in out + err, err
    return err


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of small images with classes."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    done("train", "ddpm_digits", *TINY, f"--workdir={workdir}")
    return workdir


def shown(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder).items() if not name.endswith(".lock")}


@pytest.mark.slow
def test_ten_kills_and_two_at_once_change_no_byte(digits, tmp_path):
    """Killed with SIGKILL while files are written, then finished by two processes at once."""
    argv = ("sample", digits, "--n=2000", "--batch=100")
    done(*argv, f"--out={tmp_path / 'straight' / 'out'}")
    out = tmp_path / "cut" / "out"
    for k in range(10):
        process = started(*argv, f"--out={out}")
        wanted = 150 * k + 37  # in the middle of a batch
        while process.poll() is None and (not out.exists() or len(list(out.glob("0*.png"))) < wanted):
            time.sleep(0.002)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    there = len(list(out.glob("0*.png")))
    assert 1387 <= there < 2000
    two = [started(*argv, f"--out={out}") for _ in range(2)]
    for process in two:
        code, printed, err = said(process)
        assert (code, err) == (0, "") and "of 2,000 samples are already in" in printed
    cut, straight = shown(tmp_path / "cut"), shown(tmp_path / "straight")
    assert len(cut) == 2002 and cut == straight
    assert len({content for name, content in cut.items() if name.endswith(".png")}) > 1990

    archive = tmp_path / "x.npz"
    process = started(*argv, f"--out={archive}")
    while process.poll() is None and len(list(tmp_path.glob("x.npz.parts/0*.npy"))) < 7:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not archive.exists()
    done(*argv, f"--out={archive}")
    with np.load(archive) as found:
        names = sorted(name for name in cut if name.endswith(".png"))
        images = np.stack([np.asarray(Image.open(tmp_path / "cut" / name))[..., None] for name in names])
        np.testing.assert_array_equal(found["samples"], images)
        assert found["labels"].shape == (2000,)
    assert not (tmp_path / "x.npz.parts").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_says_how_to_go_on(digits, tmp_path, number):
    argv = ("sample", digits, "--n=100000", "--batch=100", f"--out={tmp_path / 'out'}")
    process = started(*argv)
    while process.poll() is None and len(list(tmp_path.glob("out/0*.png"))) < 150:
        time.sleep(0.01)
    process.send_signal(number)
    code, out, err = said(process)
    assert (code, err) == (128 + number, "")
    found = re.search(r"stopped with ([\d,]+) of 100,000 samples in (.*)\. To continue: scoregen (.*)", out)
    assert found is not None and found[2] == str(tmp_path / "out") and found[3] == " ".join(map(str, argv))
    files = [path.name for path in (tmp_path / "out").iterdir()]
    assert int(found[1].replace(",", "")) == sum(name.endswith(".png") for name in files)
    assert not [name for name in files if ".new." in name]
    assert re.search(r"sampling 100000 in 1000 batches, level \d+/3000  .*left", out)


@pytest.mark.slow
def test_seeds_classes_grids_and_archives(digits, tmp_path, monkeypatch):
    """Against the samples of `run.sample`; every file of the closing table is there."""
    run = scoregen.load(digits)
    out = done("sample", digits, "--seeds=3,7-8", "--classes=5,0", "--grid", f"--out={tmp_path / 'a'}")
    assert "classes 5,0 in turn" in out and str(tmp_path / "a-grid.png") in out
    for seed in (3, 7, 8):
        expected = run.sample(2, seed=seed, label=np.array([5, 0]), batch=6)  # pyright: ignore
        for number in range(2):
            image = np.asarray(Image.open(tmp_path / "a" / f"{seed:06d}-{number:07d}.png"))
            assert np.abs(image.astype(int) - expected[number, ..., 0]).max() <= 1  # a float near the edge of a byte
    assert (tmp_path / "a" / "labels.csv").read_text().splitlines()[1:3] == [
        "000003-0000000.png,5",
        "000003-0000001.png,0",
    ]
    with Image.open(tmp_path / "a-grid.png") as grid:
        assert grid.width > 50 and np.asarray(grid).std() > 10

    done("sample", digits, "--n=6", "--classes=5,0", f"--out={tmp_path / 'x.npz'}", "--grid")
    with np.load(tmp_path / "x.npz") as found:
        np.testing.assert_array_equal(found["labels"], [5, 0] * 3)
        assert found["samples"].shape == (6, 8, 8, 1)
    assert (tmp_path / "x-grid.png").exists()

    before = tree(tmp_path)
    line = refusal("sample", digits, "--seeds=3,7-9", "--classes=5,0", f"--out={tmp_path / 'a'}")
    assert "a holds samples of other settings (samples was 6, now 8; seeds was 3,7-8, now 3,7-9" in line
    line = refusal("sample", digits, "--n=7", "--classes=0,12,x", "--config.sampler.guidance=nan", lines=3)
    assert "guidance=nan" in line and "--classes: 12: the classes are 0 to 9" in line and "no class 'x'" in line
    assert tree(tmp_path) == before

    monkeypatch.chdir(tmp_path)
    code, _, err = say("sample", digits, "--seeds=4-5", "--classes=1,2", "--batch=4")  # no --out: as ever
    assert (code, err) == (0, "")
    assert np.load(digits / "samples.npy").shape == (4, 8, 8, 1) and (digits / "samples.png").exists()


@pytest.mark.slow
def test_a_disk_that_fills_while_the_command_draws(digits, tmp_path):
    """Files can grow no larger than 20 bytes once it begins to sample; afterwards the same command goes on."""
    argv = ("sample", digits, "--n=300", "--batch=100", f"--out={tmp_path / 'out'}")
    code = "import resource, sys; from scoregen.app import main, samplefiles as S; put = S.SampleFiles.put\n"
    code += "def limited(files, index, samples):\n"
    code += "    if index[0]: resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n"
    code += "    put(files, index, samples)\n"
    code += "S.SampleFiles.put = limited; sys.exit(main.main())"
    code, _, err = said(start(1, "-c", code, *argv))
    assert code == 2 and err.count("\n") == 1 and err.startswith("scoregen: cannot write ")
    assert "File too large" in err and "100 of 300 samples are there, and the same command continues" in err
    assert len(list(tmp_path.glob("out/*.png"))) == 100
    out = done(*argv)
    assert "100 of 300 samples are already in" in out and len(list(tmp_path.glob("out/*.png"))) == 300


@pytest.mark.slow
def test_devices_and_processes_draw_the_same(digits, tmp_path):
    """On four devices, and on two processes of two devices each, as on one; a folder that one began, another ends."""
    argv = ("sample", digits, "--n=50", "--batch=20")
    done(*argv, f"--out={tmp_path / 'one'}")
    done(*argv, f"--out={tmp_path / 'four'}", devices=4)
    hosts = f"--coordinator={address()}", "--processes=2"
    two = [started(*argv, f"--out={tmp_path / 'two'}", *hosts, f"--process={i}", devices=2) for i in range(2)]
    (code, out, err), other = [said(process) for process in two]
    assert (code, err) == (0, "") and other == (0, "", "") and "ddpm_digits: sample" in out
    hosts = f"--coordinator={address()}", "--processes=2"
    other = ("sample", digits, "--n=50", "--batch=10", f"--out={tmp_path / 'two'}", *hosts)
    for process in [started(*other, f"--process={i}", devices=2) for i in range(2)]:
        code, _, err = said(process)
        assert code == 2 and re.search("batch was 20, now 12|the first process", err)
    one = shown(tmp_path / "one")
    for place in ("four", "two"):
        found = shown(tmp_path / place)
        assert found.keys() == one.keys() and len(found) == 52
        for name in found:
            if name.endswith(".png"):
                a, b = (np.asarray(Image.open(tmp_path / folder / name)).astype(int) for folder in ("one", place))
                assert np.abs(a - b).max() <= 1
            else:
                assert found[name] == one[name]


@pytest.mark.slow
def test_a_table_comes_back_as_a_table(tmp_path):
    rows = "\n".join(f"{i % 7},{0.5 * i:.1f}" for i in range(60))
    (tmp_path / "t.csv").write_text(f"a,b\n{rows}\n")
    small = ("--config.net.name=mlp", "--config.net.mlp.width=8", "--config.sampler.n=3", "--config.eval.samples=20")
    done(
        "train",
        "points",
        f"--data={tmp_path / 't.csv'}",
        "--steps=2",
        "--batch=8",
        *small,
        f"--workdir={tmp_path / 'r'}",
    )
    done("sample", tmp_path / "r", "--n=30", "--batch=20", f"--out={tmp_path / 'out'}")
    lines = (tmp_path / "out" / "samples.csv").read_text().splitlines()
    assert lines[0] == "a,b" and len(lines) == 31
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"samples.csv", "samples.json", ".lock"}
    found = np.array([line.split(",") for line in lines[1:]], float)
    expected = scoregen.load(tmp_path / "r").sample(30, batch=20)
    np.testing.assert_array_equal(found[:, 0], np.rint(expected[:, 0]))  # a column of integers
    np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=1e-3, atol=1e-3)
    assert "--grid draws pictures" in refusal("sample", tmp_path / "r", "--grid", f"--out={tmp_path / 'new'}")
    assert not (tmp_path / "new").exists()
