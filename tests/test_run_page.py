"""The page of a run: it says what the run's files say, fetches nothing, and its failure stops no training."""

import base64
import io
import json
import os
import re
import shlex
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from html_page import Page, console, looked_at, read_page
from PIL import Image

from scoregen.app import config as config_lib
from scoregen.app import page_parts, record, report, run_page
from scoregen.app.arguments import parse
from scoregen.app.record import Record
from scoregen.data import Centered, Dataset
from scoregen.errors import UsageError
from scoregen.files import locked, to_json
from scoregen.metrics import nearest_neighbours
from scoregen.train import describe

HOSTILE = "<script>alert(1)</script>"
SECTIONS = [
    *("What was trained", "Commands", "Versions and devices", "Loss, gradient and speed"),
    *("Samples over the course of training", "Samples beside real data", "Distances", "Compared by scoregen fid"),
    *("Likelihoods", "Nearest neighbours", "Warnings", "Files"),
]
# The last one has no effect, since the network is no MLP.
CHANGES = {"train.steps": 900, "loss.name": "ssm", "loss.ssm.slices": 3, "sampler.n": 20, "net.mlp.width": 7}
RECORD = {
    "command": "scoregen train ddpm_digits --steps=900",
    "about": [("network", "unet, 701,345 parameters")],
    "notes": ["2 of 1,439 files could not be read"],
    "loss": "loss eps",
    "step": 900,
    "machines": [
        {"versions": {"scoregen": "0.1.0", "jax": "0.9"}, "devices": "1 x cpu", "step": 0},
        {"versions": {"scoregen": "0.1.0", "jax": "0.10"}, "devices": "4 x NVIDIA H200", "step": 500},
    ],
    "warnings": ["no picture at step 300: the sampler diverged"],
    "sampled": {
        "step": 900,
        "facts": [("sampled", "64 by ancestral")],
        "pictures": [("64 samples at step 900", "page/pair_0.png"), ("64 held-out examples", "page/pair_1.png")],
        "warnings": [],
    },
}
DISTANCES = [
    {"name": "Frechet distance", "value": 0.87, "floor": 0.28, "floor_std": 0.05, "note": "features of a classifier"},
    {"name": "distance to nearest training image", "value": 369.4, "floor": 262.0, "note": "medians"},
    {"name": "memorised (%)", "value": 0.5, "floor": 1.1, "note": "closer than 99 %", "text": "0.5 % are near"},
]
FID = {
    "judged": {"name": "runs/digits, step 900", "count": 500},
    "reference": {"name": "photos", "count": None},
    "features": "Inception",
    "metrics": [
        {"name": "FID", "value": 41.5, "std": 1.25, "how": "key 1", "floor": 4.0, "floor_std": 0.5, "better": "lower"},
        {"name": "KID", "value": 0.5, "std": None, "how": "unbiased", "floor": None, "floor_std": None},
        {"name": "recall", "value": float("nan"), "std": 0.1, "how": "", "floor": 0.9, "floor_std": 0.1},
    ],
}
LIKELIHOODS = [{"name": "ode", "value": 4.71, "error": 0.05, "own": 0.0, "unit": "bits/dim", "steps": 60.0}]


def picture(path: Path, pixels=None) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((40, 30, 3), np.uint8) if pixels is None else pixels).save(path)


def make(folder: Path, changes=(), metrics=None, distances=DISTANCES, likelihoods=LIKELIHOODS, **known) -> Path:
    """The folder of a run of digits with everything that its page shows."""
    folder.mkdir()
    config = config_lib.load("ddpm_digits")
    with config.unlocked():
        for key, value in (CHANGES | dict(changes)).items():
            part, _, name = key.rpartition(".")
            config_lib.get(config, part)[name] = value
    (folder / "config.json").write_text(config_lib.to_json(config))
    summary = describe.data_summary(Dataset("digits", np.zeros((5, 8, 8, 1), np.uint8)))
    summary |= {name: known.pop(name, None) for name in ("classes", "columns")}
    describe.write(folder, dict.fromkeys(describe._KEYS, 0) | {"data": summary})
    (folder / "checkpoints" / "900").mkdir(parents=True)
    if metrics is None:
        steps = range(10, 901, 10)
        metrics = [{"step": step, "loss": 1 / step, "grad_norm": 2.0, "steps_per_second": 5.0} for step in steps]
        metrics += [{"step": 300, "held_out_loss": 0.02}, {"step": 900, "held_out_loss": 0.03}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    (folder / "distances.json").write_text(to_json({"step": 900, "samples": 1000, "distances": distances}))
    (folder / "fid.json").write_text(to_json(known.pop("fid", FID | {"metrics": FID["metrics"][:2]})))
    (folder / "likelihood.json").write_text(to_json({"step": 300, "examples": 64, "likelihoods": likelihoods}))
    for name in ("samples_0000300.png", "samples_0000600.png", "nearest.png", "page/pair_0.png", "page/pair_1.png"):
        picture(folder / name)
    picture(folder / "page" / "course_0000900.png")
    (folder / "page" / "record.json").write_text(to_json(RECORD | known))
    return folder


def page_of(folder: Path) -> tuple[str, Page]:
    """The page of a run: its text, and what a parser sees."""
    text = run_page.page(folder)
    (folder / "index.html").write_text(text)
    return text, read_page(folder)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("runs") / "digits")
    return folder, *page_of(folder)


def rows(text: str) -> list[list[str]]:
    """The texts of all lines of tables."""
    lines = re.findall(r"<tr.*?</tr>", text, re.DOTALL)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", line)] for line in lines]


def test_the_page_has_its_sections_in_order_and_fetches_nothing(digits):
    _, text, found = digits
    assert re.findall("<h2>(.*?)</h2>", text) == SECTIONS
    assert [f"#{page_parts.identifier(title)}" for title in SECTIONS] == found.links[1 : len(SECTIONS) + 1]
    assert found.links[0] == "#warnings" and "1 warning" in found.text
    assert text.startswith("<!doctype html>") and 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert {"config.json", "metrics.jsonl", "nearest.png", "checkpoints"} <= set(found.links)


def test_the_differences_from_the_preset_come_first(digits):
    _, text, _ = digits
    lines = rows(text)
    assert lines[0] == ["option", "ddpm_digits", "this run"]
    # What changes the network, then what changes the training, then the results.
    assert lines[1:3] == [["loss.name", "eps", "ssm"], ["loss.ssm.slices", "1", "3"]]
    assert lines[3:5] == [["train.steps", "1200", "900"], ["sampler.n", "50", "20"]]
    assert lines[5][0] == "data" and "5 examples of shape 8x8x1 (uint8)" in lines[5][1]
    assert "2 of 1,439 files could not be read" in lines[5][1]
    assert ["network", "unet, 701,345 parameters"] in lines
    assert ["loss.ssm.slices", "3"] in lines and ["train.batch", "64"] in lines  # the whole configuration
    assert text.index("<details><summary>The whole") > text.index("this run")
    assert not any(line[0].startswith("loss.dsm") for line in lines)  # which has no effect


def test_the_commands_train_the_same_run_and_work_on_it(digits):
    folder, _, page = digits
    train, further, sample, distances, likelihood = (shlex.split(code) for code in page.codes)
    assert train[:2] == ["scoregen", "train"] and train[-1] == f"--workdir={folder}"
    config = config_lib.from_json((folder / "config.json").read_text())
    found, config = (config_lib.used(of) for of in (parse(train[2:-1], mode="train").config, config))
    assert config_lib.changes(found, config) == []
    assert further == ["scoregen", "train", str(folder), "--steps=1800"]
    assert sample == ["scoregen", "sample", str(folder), "--n=64"]
    assert [distances, likelihood] == [["scoregen", mode, str(folder)] for mode in ("eval", "likelihood")]


def test_the_command_of_a_preset_in_a_file_is_the_one_that_was_typed(tmp_path):
    typed = "scoregen train --config='my presets/digits.py' --steps=900"
    text, found = page_of(make(tmp_path / "run", command=typed, step=300))
    train, resume, sample, *_ = found.codes
    assert train == typed and rows(text)[0] == ["option", "default", "this run"]
    assert shlex.split(resume) == ["scoregen", "train", str(tmp_path / "run"), "--config=my presets/digits.py"]
    assert shlex.split(sample)[3:] == ["--config=my presets/digits.py", "--n=64"]


def test_machines_are_those_of_each_part_of_the_training(digits):
    assert ["from step 500", "4 x NVIDIA H200scoregen 0.1.0, jax 0.10"] in rows(digits[1])


def test_the_curves_are_drawn_where_their_values_are():
    """On a log axis, 0.1 is in the middle of 1 and 0.01. The axis has 4 % of room at each end."""
    curve = page_parts.Curve("a", [(0, 1.0), (50, 0.1), (100, 0.01)], "red")
    svg = page_parts.plot([curve], "Loss", "step", "loss")
    found = re.search('points="(.*?)"', svg)
    assert found is not None
    points = [tuple(map(float, pair.split(","))) for pair in found[1].split()]
    room = 160 * 0.04 / 1.08
    assert np.allclose(points, [(64, 10 + room), (239, 90), (414, 170 - room)], atol=0.06)
    assert ">0.01<" in svg and ">1<" in svg and "on a log scale" in svg
    # An axis from 0 is linear.
    svg = page_parts.plot([page_parts.Curve("a", [(0, 0.5), (8, 1.0)], "red")], "Speed", "step", "speed", zero=True)
    assert f'points="64.0,{170 - 80 / 1.04:.1f} 414.0,{170 - 160 / 1.04:.1f}"' in svg and "log" not in svg
    assert page_parts.plot([page_parts.Curve("a", [(1, float("nan"))], "red")], "a", "b", "c") == ""


def test_the_loss_is_shown_smoothed_and_held_out(digits):
    _, text, found = digits
    section = text.partition('<section id="loss-gradient-and-speed">')[2].partition("</section>")[0]
    assert section.count("<polyline") == 5 and section.count("<circle") == 2  # three losses, the norm and the speed
    assert "mean of 90 steps" in found.text  # 90 losses, so 4 on each side, 10 steps apart
    assert "The held-out loss of the last checkpoint, 0.03, is above the lowest, 0.02 at step 300." in found.text
    assert [alt for alt, _ in found.images][:3] == [
        *("Training loss", "Norm of the gradient, before clipping"),
        "Speed, as the mean since the training was started or continued",
    ]


def test_the_course_has_the_pictures_of_the_training_and_its_end(digits, tmp_path):
    _, text, _ = digits
    assert re.findall('data-name="(.*?)"', text) == ["step 300", "step 600", "step 900"]
    assert '<input type="range" id="slider" min="0" max="2" value="2"' in text and '<label for="slider">' in text
    # A picture of an earlier run in the folder, after the last step of this one, is not shown.
    text, _ = page_of(make(tmp_path / "run", step=500))
    assert "data-name" not in text


def test_the_course_is_thinned_by_powers_of_two(tmp_path, monkeypatch):
    folder = make(tmp_path / "run", step=10**6)
    for step in range(1, 61):
        picture(folder / f"samples_{step:07d}.png")
    encoded, encode = [], page_parts._webp
    monkeypatch.setattr(page_parts, "_webp", lambda *of, **how: encoded.append(of) or encode(*of, **how))
    names = re.findall('data-name="(.*?)"', page_of(folder)[0])
    assert len(encoded) <= 2 * run_page.FRAMES  # each in two ways, and none of those that are not shown
    encoded.clear()
    assert names == [*(f"step {step}" for step in range(1, 61, 4)), "step 300", "step 900"]
    size = len(page_parts.image(folder / "samples_0000300.png", "samples at step 300"))
    monkeypatch.setattr(run_page, "COURSE", 3 * size)
    few = re.findall('data-name="(.*?)"', page_of(folder)[0])
    assert few == ["step 1", "step 33", "step 900"]


def test_a_large_picture_is_made_smaller_by_a_whole_factor(tmp_path):
    """Blocks of 3 x 3 pixels become pixels, exactly. The picture has few colours, so it is kept without loss."""
    blocks = np.random.default_rng(0).choice(np.array([0, 40, 255], np.uint8), (20, 1100, 1)).repeat(3, 2)
    for scale in (1, 3):
        picture(tmp_path / "large.png", blocks.repeat(scale, 0).repeat(scale, 1))
        html = page_parts.image(tmp_path / "large.png", 'a "b"')
        assert 'alt="a &quot;b&quot;" width="1100" height="20"' in html and 'class="broad"' in html
        data = html.partition("base64,")[2].partition('"')[0]
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        assert np.array_equal(shown, blocks)
    picture(tmp_path / "square.png", np.zeros((700, 1400, 3), np.uint8))
    assert 'class="broad"' not in page_parts.image(tmp_path / "square.png", "as wide as twice its height")


def test_distances_and_likelihoods_are_in_words(digits):
    _, text, found = digits
    (first, near, memorised) = (row for row in rows(text) if row[0] in {row["name"] for row in DISTANCES})
    assert first[1:] == ["0.870", "0.280 +- 0.050", "3.1x the floor"]
    section = text.partition('<section id="distances">')[2].partition("</section>")[0]
    meanings = re.findall("<li><strong>(.*?)</strong>: (.*?)</li>", section)
    assert [name for name, _ in meanings] == [row["name"] for row in DISTANCES]
    assert "it is not the FID" in meanings[0][1] and meanings[0][1].endswith(". Features of a classifier.")
    assert meanings[2][1].endswith(" copies training images. 0.5 % are near.")
    assert near[1:] == ["369", "held out: 262", "–"] and memorised[1:] == ["0.5", "held out: 1.1", "–"]
    assert "1,000 samples of step 900. The floor is" in found.text
    assert "“samples”, the number after +- is the standard error of the value over draws of the samples" in section
    assert "“floor”, it is the standard deviation of the floor between draws of the real examples" in section
    ways = next(row for row in rows(text) if row[0] == "ode")
    assert ways[1:] == [
        "4.710 +- 0.050 bits/dim, in 60 solver steps",
        "by the probability-flow ODE: of the sampler without noise",
    ]
    assert "64 held-out examples, at step 300. The training has gone on since." in found.text


def test_what_is_missing_is_said_with_its_command(tmp_path):
    folder = make(tmp_path / "run", sampled={})
    for name in ("distances.json", "likelihood.json", "fid.json", "nearest.png", "metrics.jsonl"):
        (folder / name).unlink()
    text, found = page_of(folder)
    without = ("Loss, gradient and speed", "Samples beside real data", "Nearest neighbours", "Compared by scoregen fid")
    assert re.findall("<h2>(.*?)</h2>", text) == [title for title in SECTIONS if title not in without]
    assert found.text.count("They have not been computed.") == 2
    assert found.codes[-2:] == [f"scoregen eval {folder}", f"scoregen likelihood {folder}"]


def test_warnings_are_of_the_run_and_of_its_numbers(tmp_path):
    copies = "12.0 % of the samples are as near: more than chance"
    distances = [
        DISTANCES[0] | {"value": 0.02},
        {"name": "MMD", "value": float("nan"), "floor": 0.1, "floor_std": 0.01},
        DISTANCES[2] | {"value": 12.0, "text": copies, "chance": 1e-9},
        DISTANCES[2] | {"value": 12.0, "text": "12 of 100: this may be chance", "chance": 0.2},
    ]
    metrics = [{"step": 10, "loss": None, "grad_norm": 1.0}, {"step": 20, "loss": None}, {"step": 30, "loss": 1.0}]
    likelihoods = [LIKELIHOODS[0] | {"value": float("inf"), "error": float("nan")}]
    known = {
        "fid": FID,
        "failed": "the loss became nan by step 31",
        "sampled": RECORD["sampled"] | {"warnings": ["far off"]},
    }
    folder = make(tmp_path / "run", (), metrics, distances, likelihoods, **known)
    text, found = page_of(folder)
    section = text.partition('<section id="warnings">')[2].partition("</section>")[0]
    assert re.findall("<li>(.*?)</li>", section) == [
        "the loss became nan by step 31",
        "no picture at step 300: the sampler diverged",
        "far off",
        "loss was not finite in 2 lines of metrics.jsonl, first at step 10",
        "the Frechet distance is far below the floor: too near to the real data",
        "the MMD is not finite: nan",
        copies,
        "the recall is not finite: nan",
        "the likelihood &#x27;ode&#x27; is not finite: inf",
    ]
    assert "but what follows has failed. 9 warnings" in found.text
    assert not re.search(r"(?:nan|inf)[ ,]*[\d\"]", "".join(re.findall("<svg.*?</svg>", text)))


@pytest.mark.parametrize(("chance", "warned"), [(0.02, False), (1e-5, True)])
def test_a_share_of_copies_that_may_be_chance_is_no_warning(tmp_path, chance, warned):
    folder = make(tmp_path / "run", warnings=[], distances=[DISTANCES[2] | {"value": 70.0, "chance": chance}])
    assert ("None of the checks of this run has warned." not in page_of(folder)[1].text) == warned


def test_a_run_without_warnings_says_so(tmp_path):
    _, found = page_of(make(tmp_path / "run", warnings=[]))
    assert "None of the checks of this run has warned." in found.text and "warnings" not in found.links[0]


def test_names_are_shown_as_they_are_and_not_as_html(tmp_path):
    changes = {"name": HOSTILE, "data.dir": HOSTILE, "loss.name": HOSTILE}
    known = {
        "classes": (HOSTILE, "b"),
        "columns": [HOSTILE, "sugar & spice"],
        "notes": [HOSTILE],
        "warnings": [HOSTILE],
        "failed": HOSTILE,
        "loss": HOSTILE,
        "command": f"scoregen train '{HOSTILE}.py'",
        "about": [(HOSTILE, HOSTILE)],
        "sampled": {"facts": [(HOSTILE, HOSTILE)], "pictures": [(f'"{HOSTILE}', "page/pair_0.png")], "step": 1},
        "machines": [{"versions": {HOSTILE: HOSTILE}, "devices": HOSTILE, "step": 0}],
    }
    distances = [{"name": HOSTILE, "value": 1.0, "note": HOSTILE}]
    likelihoods = [LIKELIHOODS[0] | {"name": HOSTILE, "unit": HOSTILE}]
    folder = make(tmp_path / HOSTILE.replace("/", "⁄"), changes, None, distances, likelihoods, **known)
    text, found = page_of(folder)
    assert "<script>alert" not in text and text.count("<script") == 1
    assert found.text.count(HOSTILE) >= 15 and "sugar & spice" in found.text
    assert found.codes[0] == f"scoregen train '{HOSTILE}.py'"


@pytest.mark.parametrize(
    ("step", "held", "failed", "said"),
    [
        (300, True, "", "Training: step 300 of 900."),
        (300, False, "", "Stopped at step 300 of 900."),
        (900, False, "", "Finished: 900 steps."),
        (300, False, "the loss became nan", "Failed after step 300 of 900."),
        (900, False, "x is not finite", "Trained: 900 steps, but what follows has failed."),
    ],
)
def test_the_state_is_said_first(tmp_path, step, held, failed, said):
    folder = make(tmp_path / "run", step=step, failed=failed)
    if held:
        with locked(folder / ".lock"):
            assert said in page_of(folder)[1].text
    else:
        assert said in page_of(folder)[1].text


def test_a_run_from_before_there_were_pages_has_a_page(tmp_path):
    folder = make(tmp_path / "run")
    for path in (folder / "page").iterdir():
        path.unlink()
    _, found = page_of(folder)
    assert "Finished: 900 steps." in found.text
    (folder / "page" / "record.json").write_text("{")  # damaged
    assert "Finished: 900 steps." in page_of(folder)[1].text


# The record


def recording(folder: Path, on: bool = True) -> tuple[Record, list[str]]:
    said: list[str] = []
    return Record(folder, on, said.append), said


def test_a_page_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path):
    folder = make(tmp_path / "run")
    for path in (folder / "page").iterdir():
        path.unlink()
    (folder / "page").rmdir()
    (folder / "page").write_text("no folder")
    kept, said = recording(folder)
    kept.began(0, command="scoregen train ddpm_digits")
    kept.warn("a")
    kept.renew(3)
    kept.failed(UsageError("a"))
    assert len(said) == 1 and said[0].startswith("the page of the run was not written (")
    assert "page" in said[0] and "\n" not in said[0] and not (folder / "index.html").exists()


def test_an_error_in_the_page_itself_stops_nothing(tmp_path, monkeypatch):
    kept, said = recording(make(tmp_path / "run"))
    monkeypatch.setattr(run_page, "page", lambda workdir: 1 / 0)
    (kept.path).write_text("old")
    kept.renew(3)
    assert said == ["the page of the run was not written (division by zero); nothing else needs it"]
    assert kept.path.read_text() == "old"


def test_the_record_of_a_training_that_is_continued(tmp_path, monkeypatch):
    machine = {"versions": {"jax": "1"}, "devices": "cpu"}
    monkeypatch.setattr(record, "_machine", lambda: dict(machine))
    kept, said = recording(tmp_path)
    kept.began(0, command="first", loss="loss eps")
    kept.warn("diverged")
    kept.warn("diverged")
    kept.failed(UsageError("one", "two"))
    found = record.read(tmp_path)
    assert (found["command"], found["warnings"], found["failed"]) == ("first", ["diverged"], "one; two")
    recording(tmp_path)[0].began(5, command="second", loss="loss dsm")  # on the same machine
    machine["devices"] = "tpu"
    recording(tmp_path)[0].began(9, command="third", loss="loss dsm")
    found = record.read(tmp_path)
    assert (found["command"], found["loss"], found["failed"], found["step"]) == ("first", "loss dsm", "", 9)
    assert [(each["step"], each["devices"]) for each in found["machines"]] == [(0, "cpu"), (9, "tpu")]
    assert found["warnings"] == ["diverged"]
    picture(tmp_path / "page" / "course_0000009.png")
    recording(tmp_path)[0].began(0, command="anew")
    found = record.read(tmp_path)
    assert (found["command"], found["warnings"], len(found["machines"])) == ("anew", [], 1)
    assert not list((tmp_path / "page").glob("*.png"))
    assert len(said) == 1 and "config.json" in said[0]  # this folder has none


def test_a_refusal_before_the_training_is_not_written(tmp_path):
    kept, _ = recording(make(tmp_path / "run"))
    kept.failed(UsageError("another run is at work"))
    assert "failed" not in record.read(tmp_path / "run") and not kept.path.exists()


def test_a_record_that_is_off_writes_nothing(tmp_path):
    kept, said = recording(tmp_path, on=False)
    kept.began(0)
    kept.renew(1)
    assert not list(tmp_path.iterdir()) and not said


def test_renewals_take_a_small_part_of_the_time(tmp_path, monkeypatch):
    kept, _ = recording(make(tmp_path / "run"))
    kept.renew(100, hurry=True)
    assert kept.path.exists() and kept.cost > 0 and record.read(tmp_path / "run")["step"] == 100
    for since, step in ((19.0, 100), (21.0, 200)):  # seconds, of renewals that take one second
        kept.cost, kept.renewed = 1.0, time.monotonic() - since
        kept.renew(200, hurry=True)
        assert record.read(tmp_path / "run")["step"] == step
    kept.cost, kept.renewed = 1.0, time.monotonic()
    kept.renew(300)
    assert record.read(tmp_path / "run")["step"] == 300
    monkeypatch.setattr(run_page, "page", lambda workdir: time.sleep(0.02) or 1 / 0)
    kept.renew(300)  # also a renewal that fails takes its time
    assert 0.02 <= kept.cost < 1.0 and not kept.written


def test_a_damaged_picture_costs_one_picture(tmp_path):
    folder = make(tmp_path / "run")
    whole = (folder / "nearest.png").read_bytes()
    (folder / "nearest.png").write_bytes(whole[: len(whole) // 2])
    (folder / "samples_0000300.png").write_bytes(whole[:8] + b"no chunk")
    (folder / "samples_0000600.png").write_bytes(b"")
    text, found = page_of(folder)
    assert re.findall("<p>(.*?) cannot be read</p>", text) == [
        *("samples_0000300.png", "samples_0000600.png"),
        "nearest.png",
    ]
    assert len([alt for alt, _ in found.images if alt == "samples at step 900"]) == 1


def test_a_picture_of_the_course_is_whole_or_not_there(tmp_path, monkeypatch):
    folder = make(tmp_path / "run")
    kept, said = recording(folder)
    kept.training = True
    before = (folder / "page" / "course_0000900.png").read_bytes()

    def cut(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.shutil, "copyfile", cut)
    kept.sampled(900, folder / "nearest.png", [], dict)
    assert (folder / "page" / "course_0000900.png").read_bytes() == before and "No space left" in said[0]


def test_the_commands_are_for_the_folder_in_which_the_training_was_started(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    folder = make(tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    recording(Path("runs/mine"))[0].began(0, command="scoregen train ddpm_digits")
    monkeypatch.chdir(tmp_path / "runs")
    recording(Path("mine"))[0].began(5, command="scoregen train mine")
    codes = page_of(folder)[1].codes
    assert codes[0].endswith(" --workdir=runs/mine") and codes[-1] == "scoregen likelihood runs/mine"
    folder.rename(tmp_path / "elsewhere")
    codes = page_of(tmp_path / "elsewhere")[1].codes
    assert codes[-1] == f"scoregen likelihood {tmp_path / 'elsewhere'}"


def test_the_page_of_an_imported_run_shows_its_origin_and_how_to_train_it(tmp_path):
    folder = make(tmp_path / "run", metrics=[])
    (folder / "page" / "record.json").unlink()
    (folder / "checkpoints" / "20").mkdir()
    origin = {"source": "ema_0.9_000900.pt", "format": "adm", "sha256": "ab" * 32, "step": 900}
    (folder / "weights.json").write_text(to_json(origin))
    text, found = page_of(folder)
    assert "Imported, at step 900." in found.text and "weights.json" in found.links
    assert f"ema_0.9_000900.pt, format adm, at step 900, SHA-256 of the file {'ab' * 32}" in found.text
    assert found.codes[0] == f"scoregen train {folder} --steps=1800" and "Train</h4>" not in text.split("further")[0]
    recording(folder)[0].began(900, command="scoregen train run")
    text, found = page_of(folder)
    assert "Finished: 900 steps." in found.text and "<h4>Train</h4>" not in text


def test_the_results_of_fid_are_on_the_page(digits, tmp_path):
    _, text, found = digits
    section = text.partition('<section id="compared-by-scoregen-fid">')[2].partition("</section>")[0]
    assert rows(section)[1:] == [["FID", "41.50 +- 1.25", "4.00 +- 0.50", "10x the floor"], ["KID", "0.5", "", ""]]
    assert "Samples: 500 pictures of runs/digits, step 900. Reference: pictures of photos. Features: Inc" in found.text
    assert "fid.json" in found.links and "<strong>FID</strong>: How differently" in section
    assert "standard error of the value over draws of the samples" in section
    # As `scoregen fid` renews it: in a run of `fit`, which has no page, this does nothing.
    kept, said = recording(make(tmp_path / "run", metrics=[]))
    kept.renew()
    assert kept.written and "Compared by" in kept.path.read_text() and not said
    kept.path.unlink()
    (kept.workdir / "config.json").unlink()
    kept.renew()
    assert not kept.path.exists() and not said


def test_a_new_run_shows_no_picture_of_an_earlier_one(tmp_path):
    folder = make(tmp_path / "run")
    picture(folder / "samples_2-mine.png")
    recording(folder)[0].began(5)
    assert len(list(folder.glob("samples_*.png"))) == 3
    recording(folder)[0].began(0)
    assert [path.name for path in folder.glob("samples_*.png")] == ["samples_2-mine.png"]


def test_a_folder_whose_name_is_no_unicode_has_a_page(tmp_path):
    kept, said = recording(make(Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff"))))
    kept.renew()
    assert not said and kept.written and "run\\udcff" in kept.path.read_text()


def test_two_commands_lose_no_warning(tmp_path, monkeypatch):
    """The second command warns while the first one waits for the record."""
    folder = make(tmp_path / "run", warnings=[])
    alone, (one, _), (two, _) = record._alone, recording(folder), recording(folder)

    def late(workdir):
        monkeypatch.setattr(record, "_alone", alone)
        two.warn("second")
        return alone(workdir)

    monkeypatch.setattr(record, "_alone", late)
    one.warn("first")
    assert record.read(folder)["warnings"] == ["second", "first"]


def test_a_checkout_that_is_not_installed_has_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "_PACKAGES", ("no-such-package",))
    recording(tmp_path)[0].began(0)
    assert record.read(tmp_path)["machines"][0]["versions"]["no-such-package"] == "(not installed)"


def test_values_near_the_ends_of_floats_are_drawn_or_left_out():
    for values in ([1e-320, 1e299], [1e-320, 5e-324], [-1e20, -1e20], [-1e299, 1.0], [1e-240, 1e240]):
        svg = page_parts.plot([page_parts.Curve("a", list(enumerate(values)), "red")], "a", "step", "loss")
        assert "nan" not in svg and "inf" not in svg


def test_two_spaces_of_a_command_stay_two():
    assert Page(page_parts.command("scoregen train 'my  run'")).codes == ["scoregen train 'my  run'"]
    assert re.search(r"^code \{.*white-space: pre-wrap", page_parts.STYLE, re.MULTILINE)


def test_samples_are_beside_as_many_real_images_of_the_same_scale(tmp_path):
    class Of:
        control, scaling = None, Centered()

    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (40, 8, 8, 1), np.uint8)
    samples = rng.uniform(-1, 1, (90, 8, 8, 1)).astype(np.float32)
    data = Dataset("digits", real, real[::-1].copy())
    found = record.pair(Of(), data, samples[:20], 300)  # pyright: ignore[reportArgumentType]
    assert list(found) == ["20 samples at step 300", "20 held-out examples"]
    drawn, held = found.values()
    assert drawn.shape == held.shape
    scale = round(480 / (5 * 9))
    gap = scale // 2
    tile = np.s_[gap : gap + 8 * scale : scale, gap : gap + 8 * scale : scale, 0]
    assert np.array_equal(drawn[tile], Centered().to_bytes(samples[:1])[0, ..., 0])
    assert np.array_equal(held[tile], real[-1, ..., 0])
    many = record.pair(Of(), data, samples, 300)  # pyright: ignore[reportArgumentType]
    assert list(many) == ["64 samples at step 300", "40 held-out examples"]  # there are no more
    points = Dataset("points", np.zeros((9, 2), np.float32))
    assert record.pair(Of(), points, np.zeros((9, 2)), 1) == {}  # pyright: ignore[reportArgumentType]


def test_the_nearest_samples_are_above_their_training_images(tmp_path, monkeypatch):
    """Sample i is the training image 7 - i, with i of its pixels changed; so sample 0 is the nearest."""
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (8, 8, 8, 1), np.uint8)
    samples = train[::-1].copy()
    for i, image in enumerate(samples):
        image.reshape(-1)[:i] ^= 0x80
    drawn = []
    monkeypatch.setattr(report, "mosaic", lambda lines, title: drawn.append((dict(lines), title)))
    monkeypatch.setattr(report, "save", lambda path, page: path)
    near = nearest_neighbours(samples, train, rng.integers(0, 256, (9, 8, 8, 1), np.uint8))
    report.save_nearest(
        tmp_path / "nearest.png", "nearest", samples[[5, 0, 3]], train, near_of(near, [5, 0, 3]), most=2
    )
    (lines, title) = drawn[0]
    (upper,), (lower,) = lines.values()
    assert title == "nearest"
    assert zlib.crc32(upper.tobytes()) == zlib.crc32(report.sheet(samples[[0, 3]], 128, 2).tobytes())
    assert zlib.crc32(lower.tobytes()) == zlib.crc32(report.sheet(train[[7, 4]], 128, 2).tobytes())


def near_of(near, index):
    """The neighbours of some of the samples."""
    from dataclasses import replace

    return replace(near, samples=near.samples[index], index=near.index[index])


@pytest.mark.slow
def test_the_page_in_a_browser(digits, tmp_path):
    """No console error, nothing fetched, nothing wider than the window; the slider shows one picture at a time."""
    folder, *_ = digits
    path = folder / "index.html"
    assert console(path, tmp_path) == ""
    look = """
        const slider = page.querySelector("#slider"), frames = [...page.querySelectorAll(".frame")];
        const shown = () => frames.map(each => +(each.getBoundingClientRect().height > 0)).join("");
        const before = shown();
        slider.value = 1;
        slider.dispatchEvent(new Event("input"));
        const said = page.querySelector("output").textContent;
        const small = [...page.querySelectorAll("p, td, th, a, button, h1, h2")].filter(
          each => parseFloat(getComputedStyle(each).fontSize) < 11).length;
        return [before, shown(), said, slider.getAttribute("aria-valuetext"), small];
    """
    assert looked_at(path, tmp_path, look) == [["001", "010", "step 600", "step 600", 0]] * 3
