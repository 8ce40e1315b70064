"""Loggers get every step once, in order, and none of them can stop a training."""

import importlib.machinery
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusal import refused
from small import toy
from tensorboardX.proto.event_pb2 import Event, SessionLog

from scoregen.app.build import build
from scoregen.app.config import load, to_json, used
from scoregen.app.main import main
from scoregen.errors import UsageError
from scoregen.train import LOGGERS, JsonLines, LoggedRun, Logger, MetricsLog, TensorBoard, Trackio, WandB

PICTURE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


class Kept(Logger):
    """Keeps its calls, and fails at a step, at its start or at a picture if it is told to."""

    def __init__(self, fail: object = None) -> None:
        self.calls, self.fail, self.run = [], fail, LoggedRun()

    def _call(self, *call: object) -> None:
        self.calls.append(call)
        if self.fail in call:
            raise ConnectionError("no route\nto host")

    def start(self, run):
        self.run = run
        self._call("start", run.step)

    def scalars(self, step, values):
        self._call("scalars", step, tuple(values.items()))

    def picture(self, step, name, image):
        self._call("picture", step, name, image.tobytes())

    def close(self):
        self._call("close")


def pairs(logger: Kept) -> list[tuple[int, str]]:
    """(step, name) of every number that a logger has got."""
    return [(call[1], name) for call in logger.calls if call[0] == "scalars" for name, _ in call[2]]


@pytest.mark.slow
def test_a_logger_gets_what_metrics_jsonl_gets(tmp_path):
    """The same numbers in the same order, between one start and one end; the steps never fall."""
    kept, seen = Kept(), []

    def callback(step, _):
        seen.append(step)
        return {"grid": PICTURE} if step == 2 else "no dictionary"

    toy().fit(tmp_path / "mine", steps=4, log=kept, callback=callback)
    assert kept.calls[0] == ("start", 0) and kept.calls[-1] == ("close",) and len(seen) == 4
    assert [call for call in kept.calls if call[0] == "picture"] == [("picture", 2, "grid", PICTURE.tobytes())]
    got = [{"step": call[1], **dict(call[2])} for call in kept.calls if call[0] == "scalars"]
    assert got == MetricsLog.read(tmp_path / "mine")
    steps = [call[1] for call in kept.calls[1:-1]]
    assert steps == sorted(steps)
    assert [pair for pair in pairs(kept) if pair[1] == "loss"] == [(k, "loss") for k in range(1, 5)]
    assert (kept.run.name, kept.run.workdir, kept.run.logged) == ("mine", tmp_path / "mine", 0)
    described = json.loads((tmp_path / "mine" / "model.json").read_text())
    assert kept.run.config["batch"] == 8 and kept.run.config.items() <= described.items()
    assert not (tmp_path / "mine" / "tensorboard").exists()  # `log` replaces the default


@pytest.mark.slow
def test_a_logger_needs_no_workdir():
    first, second = Kept(), Kept()
    toy().fit(steps=2, log=(first, second), config={"lr": 0.5}, log_every=2)
    assert pairs(first) == pairs(second) == [(k, name) for k in (1, 2) for name in ("loss", "grad_norm")]
    assert first.run.config == {"lr": 0.5} and first.run.workdir is None
    with pytest.raises(UsageError, match="TensorBoard could not start: TensorBoard writes to the workdir"):
        toy().fit(steps=2, log=TensorBoard())


@pytest.mark.parametrize("log", [Kept, "tensorboard", 3, [TensorBoard(), "wandb"]])
def test_what_is_no_logger_is_refused(log):
    with pytest.raises(TypeError, match=r"log=.*: a Logger is needed, such as sg.train.TensorBoard\(\)"):
        toy().fit(steps=2, log=log)


def test_after_a_kill_the_steps_since_the_checkpoint_come_again(tmp_path):
    """A logger of your own learns both steps, and decides."""
    kept = [Kept(), Kept()]
    for logger, at, steps in ((kept[0], 0, range(1, 8)), (kept[1], 4, range(5, 10))):
        with MetricsLog(tmp_path, at, [logger]) as log:
            for step in steps:
                log.write(step, loss=1.0 / step)
    assert [step for step, _ in pairs(kept[1])] == [5, 6, 7, 8, 9]
    assert (kept[1].run.step, kept[1].run.logged) == (4, 7)
    assert [row["step"] for row in MetricsLog.read(tmp_path)] == list(range(1, 10))


def test_damaged_lines_are_left_out_and_counted(tmp_path):
    """Those after them stay, a last line without its end is no damage, and the file is replaced as a whole."""
    path, said = tmp_path / "metrics.jsonl", []
    good = [b'{"step": 1, "loss": 0.5}', b'{"step": 2, "loss": null, "own": 3}', b'{"step": 3, "loss": 0.25}']
    bad = [b"\xff\xfe", b"{}", b"3", b'{"step": 2, "loss": "low"}', b'{"step": true}', b'{"step": 2, "loss": NaN}']
    bad += [b'{"step": 1.5}', b'{"step": 2, "loss": [1]}', b'{"step": 2, "loss": 1e999}', b"[" * 100_000, b""]
    path.write_bytes(b"\n".join([good[0], *bad, good[1], good[2], b'{"step": 4, "lo']))
    rows = [json.loads(line) for line in good]
    assert MetricsLog.read(tmp_path) == rows
    with path.open("rb") as before, MetricsLog(tmp_path, 2, say=said.append) as log:
        assert said == [f"{path}: left out {len(bad)} damaged lines"]
        assert MetricsLog.read(tmp_path) == rows[:2] and b"0.25" in before.read()
        log.write(3, loss=0.125)
    assert [row["step"] for row in MetricsLog.read(tmp_path)] == [1, 2, 3]
    with MetricsLog(tmp_path, 3, say=said.append):
        assert len(said) == 1


def test_metrics_jsonl_has_each_line_once(tmp_path):
    twice = JsonLines()
    with MetricsLog(tmp_path, 0, [twice, kept := Kept()]) as log:
        log.write(1, loss=1.0)
        assert not hasattr(twice, "_file")
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1 and len(pairs(kept)) == 1


def test_a_run_with_a_logger_of_ones_own_can_be_loaded_without_it(tmp_path):
    config, path = load("ddpm_toy"), tmp_path / "config.json"
    with config.unlocked():
        config.train.log.table = True
    path.write_text(to_json(config))
    assert "table" not in load(str(path)).train.log and load(str(path)).train.log.tensorboard is True
    with pytest.raises(UsageError, match=r"does not have \(train.log.table\)"):
        load(str(path), trains=True)
    with config.unlocked():
        config.train.mine = True
    path.write_text(to_json(config))
    with pytest.raises(UsageError, match=r"does not have \(train.mine\)"):
        load(str(path))


@pytest.mark.parametrize("fail", [2, "grid", "close"])
def test_a_logger_that_fails_is_reported_once_and_training_goes_on(tmp_path, capsys, fail):
    broken, whole = Kept(fail), Kept()
    with MetricsLog(tmp_path, 0, [broken, whole]) as log:
        for step in range(1, 5):
            log.write(step, loss=1.0 / step)
            log.picture(step, "grid", PICTURE)
    (line,) = capsys.readouterr().err.splitlines()
    where = "at its end" if fail == "close" else f"at step {1 if fail == 'grid' else 2}"
    assert line == f"Kept failed {where}: ConnectionError: no route to host; the training goes on without it"
    assert broken.calls[-1] == ("close",) and whole.calls[-1] == ("close",)
    assert sum(fail in call for call in broken.calls) == (2 if fail == "close" else 1)  # closing is tried twice
    assert [row["step"] for row in MetricsLog.read(tmp_path)] == [1, 2, 3, 4]
    assert pairs(whole) == [(k, "loss") for k in range(1, 5)]


def test_a_logger_that_cannot_start_refuses_a_new_run_and_not_a_resumed_one(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, loss=1.0)
        log.write(2, loss=2.0)
    before, first = (tmp_path / "metrics.jsonl").read_bytes(), Kept()
    broken = MetricsLog(tmp_path, 0, [first, Kept("start")])
    refused(broken.__enter__, "Kept could not start: ConnectionError: no route to host")
    assert first.calls == [("start", 0), ("close",)] and (tmp_path / "metrics.jsonl").read_bytes() == before
    said, other, failed = [], Kept(), Kept("start")
    with MetricsLog(tmp_path, 1, [failed, other], say=said.append) as log:
        log.write(2, loss=2.0)
    assert said == ["Kept could not start: ConnectionError: no route to host; the training goes on without it"]
    assert pairs(other) == [(2, "loss")] and pairs(failed) == []


def test_a_picture_of_another_kind_is_left_out(capsys):
    kept = Kept()
    with MetricsLog(None, 0, [kept]) as log:
        for wrong in (PICTURE / 255, PICTURE[..., 0], PICTURE[..., :2]):
            log.picture(1, "grid", wrong)
        log.picture(1, "grid", PICTURE[..., :1])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "the picture grid is float64 [4, 5, 3], and uint8 [H, W, 1 or 3] is needed" and len(lines) == 3
    assert [call[0] for call in kept.calls] == ["start", "picture", "close"]


# --- TensorBoard


def events(folder: Path) -> list[Event]:
    """All events of a folder, by the frames of TensorFlow's records: length, its CRC, the event, its CRC."""
    found = []
    for path in sorted(folder.glob("events*")):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            (size,) = struct.unpack("<Q", raw[at : at + 8])
            found.append(Event.FromString(raw[at + 12 : at + 12 + size]))
            at += 16 + size
    return found


def curve(found: list[Event], name: str) -> dict[int, float]:
    return {event.step: v.simple_value for event in found for v in event.summary.value if v.tag == name}


def test_tensorboard_holds_the_numbers_and_the_picture(tmp_path):
    with MetricsLog(tmp_path, 0, [TensorBoard()]) as log:
        for step in range(1, 5):
            log.write(step, loss=1.0 / step, grad_norm=float(step))
        log.picture(3, "samples", PICTURE)
    found = events(tmp_path / "tensorboard")
    assert curve(found, "loss") == pytest.approx({step: 1.0 / step for step in range(1, 5)}, rel=1e-6)
    assert curve(found, "grad_norm") == {step: step for step in range(1, 5)}
    ((step, image),) = [(e.step, v.image) for e in found for v in e.summary.value if v.HasField("image")]
    assert (step, image.height, image.width) == (3, 4, 5)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), PICTURE)

    with MetricsLog(tmp_path, 2, [TensorBoard()]) as log:
        log.write(3, loss=7.0)
    marks = [event.step for event in events(tmp_path / "tensorboard") if event.session_log.status == SessionLog.START]
    assert marks[-1] == 3  # TensorBoard hides all that was written from this step on


# --- Weights & Biases and trackio, without the libraries


class Service:
    """A stand-in for wandb and trackio. It stores what each run gets, and refuses an old step as wandb does."""

    def __init__(self) -> None:
        self.runs: dict[str, list] = {}
        self.opened: list[dict] = []

    def init(self, **options):
        self.opened.append(options)
        found = self.runs.setdefault(options.get("id", options["name"]), [])

        def log(values, step):
            assert not found or step >= found[-1][0]
            found.append((step, values))

        return types.SimpleNamespace(log=log, finish=lambda: None, url="https://there", offline=False)


@pytest.fixture(params=[WandB, Trackio])
def served(request, monkeypatch):
    """The logger, and the stand-in for its library."""
    name, service = request.param.library, Service()
    fake = types.ModuleType(name)
    fake.__spec__ = importlib.machinery.ModuleSpec(name, None)
    fake.__dict__.update(init=service.init, Image=lambda pixels: pixels, Settings=dict, finish=lambda: None)
    monkeypatch.setitem(sys.modules, name, fake)
    return request.param, service


def test_a_service_gets_each_step_once_whatever_is_killed(tmp_path, served):
    """The run is killed after 7 steps and again after 6, before it has come as far as it was before."""
    make, service = served
    workdir, said = tmp_path / "mine", []
    workdir.mkdir()
    for at, last in ((0, 7), (4, 6), (5, 9), (9, 10)):
        with MetricsLog(workdir, at, [make("digits")], {"seed": 3}, said.append) as log:
            for step in range(at + 1, last + 1):
                log.write(step, loss=1.0 / step)
                log.write(step, held_out_loss=2.0 / step)
                log.picture(step, "samples", PICTURE[..., :1])
    (name, found), *more = service.runs.items()
    assert not more and [step for step, _ in found] == [step for step in range(1, 11) for _ in range(3)]
    assert [values for _, values in found[:2]] == [{"loss": 1.0}, {"held_out_loss": 2.0}]
    assert found[2][1]["samples"].shape in ((4, 5), (4, 5, 3)) and (found[2][1]["samples"].flat[0] == PICTURE.flat[0])
    assert len(service.opened) == 4 and all(options["project"] == "digits" for options in service.opened)
    assert all(options["config"] == {"seed": 3} for options in service.opened)
    record = json.loads((workdir / f"{make.library}.json").read_text())
    assert record["project"] == "digits" and record["step"] == 9 and record["id"] in name
    assert [line.endswith(", continued") for line in said] == [False, True, True, True]


@pytest.mark.parametrize(("at", "project"), [(0, "digits"), (4, "other")])
def test_a_new_run_or_project_continues_nothing(tmp_path, served, at, project):
    make, service = served
    for begin, name in ((0, "digits"), (at, project)):
        with MetricsLog(tmp_path, begin, [make(name)], say=lambda _: None) as log:
            for step in range(begin + 1, 6):
                log.write(step, loss=1.0)
    assert [len(found) for found in service.runs.values()] == [5, 5 - at]


def test_a_damaged_record_begins_a_new_run(tmp_path, served):
    make, service = served
    for damage in ("{", "[]", '{"project": "digits", "id": 3, "step": 0}'):
        (tmp_path / f"{make.library}.json").write_text(damage)
        with MetricsLog(tmp_path, 2, [make("digits")], say=lambda _: None):
            pass
    assert len(service.runs) == 3


@pytest.mark.parametrize("make", [WandB, Trackio])
def test_a_missing_library_is_one_line(monkeypatch, make):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(
        lambda: make("digits"), f"the library {make.library}, which is missing: pip install 'scoregen[{make.library}]'"
    )
    with pytest.raises(ValueError, match="project='': the name of a project"):
        make("")
    with pytest.raises(TypeError, match="project=True: the name of a project"):
        make(True)


# --- the command line


def test_each_logger_is_one_option(monkeypatch):
    """All that cannot be is said at once, and other commands need no logger."""
    config = load("ddpm_toy")
    assert set(config.train.log) == set(LOGGERS) - {"jsonl"}
    assert [type(logger) for logger in build(config).loggers] == [TensorBoard]
    config.train.log.tensorboard = False
    assert build(config).loggers == ()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config.train.log.wandb = config.train.log.trackio = "digits"
    with pytest.raises(UsageError) as caught:
        build(config)
    assert [line.partition(": ")[0] for line in caught.value.args] == [
        "config.train.log.wandb",
        "config.train.log.trackio",
    ]
    assert build(config, "sample").loggers == ()


@pytest.mark.slow
def test_the_command_line_logs_its_pictures_and_configuration(tmp_path, capsys):
    """The picture of a step is that of its file; a logger of your own is an option by one line in the table."""
    kept: list[Kept] = []

    def mine(project):
        kept.append(Kept())
        return kept[-1]

    LOGGERS["mine"] = mine
    small = ("--config.net.mlp.width=8", "--config.net.mlp.depth=1", "--config.data.mixture.size=200")
    argv = (*small, "--config.train.sample_every=2", "--config.train.batch=8", "--config.eval.at_end=false")
    sampler = ("--config.sampler.n=3", "--config.sampler.images=9")
    folder = f"--workdir={tmp_path / 'run'}"
    assert main(["train", "ddpm_toy", folder, "--steps=4", "--config.train.log.mine=x", *argv, *sampler]) == 0
    assert capsys.readouterr().err == ""
    ((step, image),) = [
        (e.step, v.image.encoded_image_string)
        for e in events(tmp_path / "run" / "tensorboard")
        for v in e.summary.value
        if v.HasField("image")
    ]
    drawn = np.asarray(Image.open(tmp_path / "run" / "samples_0000002.png").convert("RGB"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image))), drawn)
    (logger,) = kept
    assert step == 2 and ("picture", 2, "samples", drawn.tobytes()) in logger.calls
    assert logger.run.config == used(load(str(tmp_path / "run" / "config.json"))).to_dict()
    assert logger.run.config["net"]["mlp"]["width"] == 8 and "unet" not in logger.run.config["net"]


# --- the libraries themselves, in their offline modes


def wandb_records(path: Path):
    """The records of a .wandb file: LevelDB's log format after 7 bytes, in wandb's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if (room := 32768 - at % 32768) < 7:  # the rest of a block is padding
            at += room
            continue
        _, size, kind = struct.unpack("<IHB", raw[at : at + 7])
        part, at = part + raw[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(part)
            part = b""


def in_a_process(program: str, **env: str) -> None:
    """Run a program with warnings as errors."""
    found = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (found.returncode, found.stderr) == (0, ""), found.stderr
    assert found.stdout.count("\n") == 2, found.stdout  # what `say` gets, and nothing of the library


PROGRAM = """
import numpy as np
from scoregen.train import MetricsLog, {logger}

for at, last in ((0, 7), (4, 9)):
    with MetricsLog({workdir!r}, at, [{logger}("digits")], {{"seed": 3, "net": {{"width": 8}}}}, print) as log:
        for step in range(at + 1, last + 1):
            log.write(step, loss=1.0 / step, grad_norm=float("nan"))
            log.write(step, held_out_loss=2.0 / step)
        log.picture(last, "samples", np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
"""


@pytest.mark.slow
def test_wandb_itself(tmp_path):
    """Both starts belong to one run, and together hold each step once, with its values, picture and configuration."""
    pytest.importorskip("wandb")
    workdir = tmp_path / "mine"
    workdir.mkdir()
    in_a_process(PROGRAM.format(logger="WandB", workdir=str(workdir)), WANDB_MODE="offline")
    name = json.loads((workdir / "wandb.json").read_text())["id"]
    files = sorted((workdir / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"), key=lambda p: p.stat().st_mtime)
    assert len(files) == 2
    found, config, shown = {}, {}, []
    for path in files:
        for record in wandb_records(path):
            if record.HasField("history"):
                row = {"/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                assert row["_step"] not in found or "samples/path" in row
                found.setdefault(row["_step"], {}).update(row)
                if "samples/path" in row:
                    shown.append(np.asarray(Image.open(path.parent / "files" / row["samples/path"])))
            if record.HasField("run"):
                assert (record.run.run_id, record.run.project, record.run.display_name) == (name, "digits", "mine")
                config = {update.key: json.loads(update.value_json) for update in record.run.config.update}
    assert sorted(found) == list(range(1, 10))
    for step, row in found.items():
        assert (row["loss"], row["held_out_loss"]) == (1.0 / step, 2.0 / step) and np.isnan(row["grad_norm"])
    assert config["seed"] == 3 and config["net"] == {"width": 8}
    assert len(shown) == 2 and all((picture == np.arange(60).reshape(4, 5, 3)).all() for picture in shown)


@pytest.mark.slow
def test_trackio_itself(tmp_path):
    """Its database holds each step once, with its values; the picture and the configuration are there."""
    pytest.importorskip("trackio")
    import sqlite3

    workdir, there = tmp_path / "mine", tmp_path / "there"
    workdir.mkdir()
    in_a_process(PROGRAM.format(logger="Trackio", workdir=str(workdir)), TRACKIO_DIR=str(there))
    name = "mine-" + json.loads((workdir / "trackio.json").read_text())["id"]
    with sqlite3.connect(there / "digits.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
        (config,) = database.execute("select config from configs where run_name = ?", (name,)).fetchone()
    assert {row[0] for row in rows} == {name}
    found: dict[int, dict] = {}
    for _, step, metrics in rows:
        values = json.loads(metrics)
        assert not found.get(step, {}).keys() & values.keys()
        found.setdefault(step, {}).update(values)
    assert sorted(found) == list(range(1, 10))
    assert all((v["loss"], v["held_out_loss"]) == (1.0 / step, 2.0 / step) for step, v in found.items())
    assert json.loads(config)["net"] == {"width": 8}
    for step in (7, 9):
        picture = np.asarray(Image.open(there / "media" / found[step]["samples"]["file_path"]).convert("RGB"))
        np.testing.assert_array_equal(picture, np.arange(60).reshape(4, 5, 3))
