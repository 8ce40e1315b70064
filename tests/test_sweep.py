"""A sweep runs each cell once, names failures, continues after a kill, and writes the table that we compute by hand."""

import contextlib
import csv
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import urllib.parse
from pathlib import Path

import pytest
from html_page import Page, console, looked_at, read_page
from refusal import refused

from scoregen.app import config as config_lib
from scoregen.app.arguments import parse
from scoregen.app.config import load
from scoregen.app.main import main as app_main
from scoregen.contrib.sweep import cell, command, grid, launch, page, plan
from scoregen.contrib.sweep import figure as sweep_figure
from scoregen.contrib.sweep.table import as_csv, as_markdown, rows_of, time_left
from scoregen.data import points
from scoregen.errors import UsageError
from scoregen.files import locked

ROOT = Path(__file__).parent.parent
# Two options by two seeds, computed and not trained; each cell notes in a file that it was run.
AREAS = '''
    """Areas: <of> circles & more

    They grow as r^2."""
    from pathlib import Path
    from scoregen.contrib.sweep import grid

    def cells():
        return grid({"config": None, "unit": 3, "radius": [1, 2], "seed": range(2)})

    def measure(run):
        with (Path(__file__).parent / "ran").open("a") as ran:
            ran.write(run.workdir.name + "\\n")
        radius, seed = run.options["radius"], run.options["seed"]
        if (radius, seed) == (2, 1):
            raise RuntimeError("made to fail")
        return {"area": run.options["unit"] * radius**2 + seed}
'''


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "sweep.py"
    path.write_text(textwrap.dedent(text).strip() + "\n")
    return path


def main(*argv) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command line; the cells are processes of their own."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command.main([str(arg) for arg in argv])
    return code, out.getvalue(), err.getvalue()


def ran(path: Path) -> list[str]:
    """The names of the cells that ran, with one entry for each run."""
    file = path.parent / "ran"
    return sorted(file.read_text().split()) if file.is_file() else []


def rows_in(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def areas(tmp_path_factory):
    """A sweep that has run, and in which one cell failed: its file, its folder and its stdout."""
    folder = tmp_path_factory.mktemp("areas")
    path, out = write(folder, AREAS), folder / "out"
    code, said, err = main(path, f"--out={out}", "--workers=2")
    assert (code, err) == (1, "")
    return path, out, said


def test_a_grid_is_every_combination_and_later_parts_win():
    assert grid({"a": [1, 2], "b": range(2)}) == [{"a": a, "b": b} for a in (1, 2) for b in (0, 1)]
    pairs = [{"b": 5, "c": 6}, {"c": 7}]
    assert grid({"a": (1, 2), "b": 3}, pairs) == [{"a": (1, 2), "b": 5, "c": 6}, {"a": (1, 2), "b": 3, "c": 7}]
    assert grid({"a": []}) == [] and grid() == [{}]


def test_a_cell_that_fails_is_named_and_the_others_are_done(areas):
    path, out, said = areas
    assert len(ran(path)) == 4
    assert "3 of 4 cells finished, 1 failed" in said
    line = next(line for line in said.splitlines() if line.startswith("- `radius=2,seed=1-"))
    assert line.endswith(f"{path}, line 15: RuntimeError: made to fail")
    log = next((out / "cells").glob("radius=2,seed=1-*")) / "log.txt"
    assert "Traceback" in log.read_text() and 'raise RuntimeError("made to fail")' in log.read_text()


def test_the_tables_are_what_one_computes_by_hand(areas):
    """Areas 3, 4 and 12: a mean of 3.5 with the error sqrt(1/2) / sqrt(2) = 0.5, and one value without an error."""
    _, out, _ = areas
    table = rows_in(out / "table.csv")
    assert [(row["radius"], row["finished"], row["failed"]) for row in table] == [("1", "2", "0"), ("2", "1", "1")]
    assert [(row["area"], row["area, standard error"]) for row in table] == [("3.5", "0.5"), ("12.0", "")]
    cells = rows_in(out / "cells.csv")
    assert [(row["radius"], row["seed"], row["area"]) for row in cells] == [
        ("1", "0", "3.0"),
        ("1", "1", "4.0"),
        ("2", "0", "12.0"),
    ]
    text = (out / "table.md").read_text()
    assert "| radius | cells | area |\n|---|---|---|\n| 1 | 2 | 3.50 ± 0.50 |\n| 2 | 1 of 2 | 12 |\n" in text
    assert text.startswith("# Areas: <of> circles & more\n\nThey grow as r^2.\n")


def test_the_page_asks_for_nothing_and_says_all(areas):
    _, out, _ = areas
    text, found = (out / "index.html").read_text(), read_page(out)
    assert "Areas: <of> circles & more" in found.text and "made to fail" in found.text
    assert "4 cells: 3 finished, 1 failed, 0 not run" in found.text and "3.50 ± 0.50" in found.text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text and "@media print" in text
    assert "data:image/webp" in text  # figure.png


def test_the_page_leads_from_a_row_to_its_section_and_back_and_to_its_files(areas):
    path, out, _ = areas
    found, sweep = read_page(out), plan.read(path)
    for title in ("compared", "failed", "figure", "row-by-row", "files"):
        assert title in found.ids and f"#{title}" in found.links
    for row in rows_of(sweep, out):
        anchor = f"row-{row.cells[0].key[:8]}"
        assert found.links.count(f"#{anchor}") >= 2  # from the contents and from the table
        assert f"#in-table-{anchor}" in found.links and {anchor, f"in-table-{anchor}"} <= set(found.ids)
    files = {urllib.parse.unquote(address) for address in found.links if not address.startswith("#")}
    assert {"table.md", "table.csv", "cells.csv", "figure.png"} < files
    for each in sweep.cells:
        there = {f"cells/{each.name}/{file}" for file in ("result.json", "failed.json", "log.txt")}
        assert there & files == {name for name in there if (out / name).exists()}


def test_every_picture_of_the_page_is_enlarged_by_an_element_that_hears_the_keyboard(areas):
    text, found = (areas[1] / "index.html").read_text(), read_page(areas[1])
    assert found.images and all(around == ("details", "summary") for _, around in found.images)
    assert ".zoom[open] > summary { position: fixed; inset: 0;" in text and '"Escape"' in found.scripts


def test_the_page_has_the_command_of_every_cell(areas):
    """For a computed cell, the command is the sweep's, restricted to this cell."""
    path, out, _ = areas
    codes = [shlex.split(code) for code in read_page(out).codes]
    for each in plan.read(path).cells:
        (argv,) = (argv for argv in codes if f"--only={each.name}" in argv)
        assert argv[:2] == ["scoregen", "sweep"] and "\n1 of 1 cells to run" in main(*argv[2:], "--dry-run")[1]


def test_the_command_of_a_trained_cell_gives_its_configuration(tmp_path, monkeypatch):
    """Also with the options of the command line, and with a preset in a file whose name needs quotes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it's mine.py").write_text(textwrap.dedent(OWN))
    text = """
        def cells():
            odd = {"net.mlp.width": 8, "sampler.grid.name": "list", "sampler.grid.list.times": (1.0, 0.5, 0.01)}
            yield {"config": "../it's mine.py", "seed": 4, "sweep.budget": 2, "train.ema.decay.ramp": False}
            yield {"config": "ddpm_toy", "loss.name": "ssm", "train.learning_rate": 1e-3, "eval.likelihood.name": "ode"}
            yield {"config": "flow_toy"} | odd
        def measure(run):
            return {}
    """
    sweep = plan.read(write(tmp_path / "of", text), ["--config.train.steps=7"])
    for each in sweep.cells:
        program, command_name, *argv = shlex.split(each.command)
        assert (program, command_name) == ("scoregen", "train")
        got = parse(argv, mode="train").config  # parse refuses an option without effect
        differ = [key for key, _, _ in config_lib.changes(got, each.config)]
        assert differ == (["eval.likelihood.name"] if each is sweep.cells[1] else [])
    assert sweep.cells[0].command.startswith("""scoregen train '--config=it'"'"'s mine.py' --config.seed=4 """)


def test_every_figure_of_the_page_has_a_title_and_labelled_axes(areas, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(sweep_figure, "save", lambda path, page: drawn.append(page))
    sweep_figure.draw(rows_of(plan.read(areas[0]), areas[1]), tmp_path / "figure.png")
    (panel,) = drawn[0].axes
    assert panel.get_title() == "area of each row" and panel.get_xlabel() == "area, mean ± standard error"
    assert panel.get_ylabel() == "row of the table"

    toy = plan.read(write(tmp_path / "toy", TOY % "{}"))
    for each in toy.cells:
        network = cell.network_of(tmp_path, each)
        network.mkdir(parents=True)
        lines = [json.dumps({"step": step, "loss": 1.0 / step}) for step in (1, 2, 4000)]
        (network / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    curves = page._curves(toy.cells, tmp_path)
    found = Page(curves)
    assert found.images == [("Training loss over the steps", ("details", "summary"))]
    for text in ("training step", "loss simple", "on a log scale", "seed 0", "seed 1", "4,000", "0.001", "1"):
        assert text.replace("simple", toy.cells[0].config.loss.name) in found.text
    assert curves.count("<polyline") == 2


def test_what_is_finished_is_not_run_again_and_what_failed_is(areas, tmp_path):
    shutil.copytree(areas[0].parent, tmp_path / "copy")
    path, out = tmp_path / "copy" / "sweep.py", tmp_path / "copy" / "out"
    before = ran(path)
    failing = next(name for name in before if name.startswith("radius=2,seed=1"))
    code, said, _ = main(path, f"--out={out}", "--dry-run")
    assert code == 0 and "1 of 4 cells to run" in said and "failed: " in said and "time: about 0:00" in said
    path.write_text(path.read_text().replace("(2, 1)", "(2, 7)"))  # fixed
    code, said, _ = main(path, f"--out={out}")
    assert code == 0 and "4 of 4 cells finished, 0 failed" in said
    assert "Stale results: 3, from before measure(run) was changed" in said and "--again" in said
    assert "| 1 | 2, 2 stale | 3.50 ± 0.50 |" in (out / "table.md").read_text()
    assert [row["stale"] for row in rows_in(out / "cells.csv")] == ["1", "1", "1", "0"]
    assert ran(path) == sorted([*before, failing])
    assert not list(out.glob("cells/*/failed.json"))
    # The sweep grows by a cell with another `unit`, and earlier results are still found.
    path.write_text(
        path.read_text().replace("range(2)})", "range(2)}) + [{'config': None, 'unit': 4, 'radius': 1, 'seed': 2}]")
    )
    code, said, _ = main(path, f"--out={out}", "--dry-run")
    assert "1 of 5 cells to run" in said and "  unit=4,radius=1,seed=2-" in said
    # --again runs a finished cell again.
    code, _, _ = main(path, f"--out={out}", "--again", "--only=radius=1,seed=0*")
    assert code == 0 and ran(path).count(before[0]) == 2 and len(ran(path)) == 6


def test_a_sweep_may_draw_its_own_figure(areas, tmp_path):
    """`draw` gets the finished rows; no cell runs. If `draw` fails, stdout says so and the usual figure is drawn."""
    shutil.copytree(areas[0].parent, tmp_path / "copy")
    path, out = tmp_path / "copy" / "sweep.py", tmp_path / "copy" / "out"
    before, usual = ran(path), (out / "figure.png").read_bytes()
    text = path.read_text()
    path.write_text(
        text
        + """
def draw(rows, path):
    import numpy as np
    from matplotlib.image import imsave
    assert [(row.label, row.mean("area"), row.error("area")) for row in rows] == [
        ("radius=1", 3.5, 0.5), ("radius=2", 12.0, None)]
    imsave(path, np.zeros((7, 9, 3)))
"""
    )
    code, said, _ = main(path, f"--out={out}", "--table")
    assert code == 1 and "3 of 4 cells finished, 1 failed" in said and "draw(rows" not in said
    from matplotlib.image import imread

    assert imread(out / "figure.png").shape[:2] == (7, 9)
    assert 'width="9" height="7"' in (out / "index.html").read_text()
    path.write_text(text + "def draw(rows, path):\n    1 / 0\n")
    code, said, _ = main(path, f"--out={out}", "--table")
    assert code == 1 and f"draw(rows, path) failed: {path}, line " in said and "ZeroDivisionError" in said
    assert (out / "figure.png").read_bytes() == usual
    path.write_text(text + "def draw(rows, path):\n    open('absent.npz')\n")
    code, said, _ = main(path, f"--out={out}", "--table")
    assert code == 1 and f"draw(rows, path) failed: {path}, line " in said and "FileNotFoundError" in said
    assert ran(path) == before


def test_comments_are_no_other_measure_and_helpers_are():
    text = textwrap.dedent(AREAS)
    assert plan.stamp_of(text) == plan.stamp_of("# note\n" + text.replace("range(2)", "range(9)"))
    assert plan.stamp_of(text) != plan.stamp_of(text.replace("* radius", "/ radius"))
    local = text.replace("return grid(", "area = 1; return grid(").replace("return {", "area = 3; return {")
    assert plan.stamp_of(local) == plan.stamp_of(local.replace("area = 1", "area = 2"))
    one_line = "K = 2; J = 3\ndef measure(run): return K * J\n"
    assert plan.stamp_of(one_line) != plan.stamp_of(one_line.replace("2", "5"))
    patched = "import a\na.SIZE = 2\ndef measure(run): return 1\n"
    assert plan.stamp_of(patched) != plan.stamp_of(patched.replace("2", "5"))
    made = "import a\nT = {}\nT['x'] = 1\nT.y = 2\nT.update(z=3)\ndef measure(run): return a.f(T)\n"
    for old, new in (("import a", "import b as a"), ("= 1", "= 5"), ("= 2", "= 5"), ("z=3", "z=5")):
        assert plan.stamp_of(made) != plan.stamp_of(made.replace(old, new)), new
    helped = "K = 2\ndef f(x): return K * x\ndef measure(run): return f(1)\ndef g(): pass\n"
    assert plan.stamp_of(helped) == plan.stamp_of(helped.replace("def g(): pass", "def g(): return 1"))
    assert plan.stamp_of(helped) != plan.stamp_of(helped.replace("K = 2", "K = 3"))


TOY = """from scoregen.contrib.sweep import grid
def cells():
    return grid({"config": "ddpm_toy", "seed": range(2)}, [%s])
"""


def cells_of(tmp_path, *options: str, flags=()):
    return plan.read(write(tmp_path / "toy", TOY % ", ".join(options)), flags).cells


def test_cells_that_train_alike_share_a_network_and_no_others(tmp_path):
    samplers = cells_of(tmp_path, '{"sampler.n": 5}', '{"sampler.n": 9, "eval.samples": 7}', '{"sweep.cost": 3}')
    assert len({each.key for each in samplers}) == 6
    assert {each.training for each in samplers[:3]} == {samplers[0].training}
    assert len({each.training for each in samplers}) == 2  # one for each seed
    trainings = cells_of(tmp_path, '{"loss.name": "ssm"}', '{"train.steps": 5}', '{"data.mixture.size": 50}', "{}")
    assert len({each.training for each in trainings}) == 8
    assert [each.options for each in samplers[:3]] == [{}, {}, {"cost": 3}]


def test_where_data_lie_counts_unless_they_are_the_same_everywhere(tmp_path):
    on_disk = '{"data.name": "cifar10", "data.dir": "%s"}'
    images = cells_of(tmp_path, on_disk % "a", on_disk % "b")
    assert len({each.key for each in images}) == len({each.training for each in images}) == 4
    text = "def cells(): return [{'config': 'fashion_mnist', 'data.dir': 'a'}]"
    (here,), (there,) = (plan.read(write(tmp_path / "x", text.replace("'a'", name))).cells for name in ("'a'", "'b'"))
    assert (here.key, here.training[-8:]) == (there.key, there.training[-8:])


def test_what_no_figure_depends_on_does_not_count(tmp_path):
    often = '{"train.log_every": 7, "sampler.batch": 9}'
    seldom = '{"train.log_every": 8, "sampler.batch": 10}'
    one, other = (cells_of(tmp_path, text)[0] for text in (often, seldom))
    assert (one.key, one.training[-8:]) == (other.key, other.training[-8:])
    snr = '"sampler.corrector.name": "snr", "sampler.corrector.snr.batch_mean": True'  # where draws depend on the batch
    one, other = (cells_of(tmp_path, f"{text[:-1]}, {snr}}}")[0] for text in (often, seldom))
    assert one.key != other.key


def test_options_of_both_likelihoods_count(tmp_path):
    one, other = cells_of(tmp_path, '{"eval.likelihood.ode.rtol": 1e-3}', '{"eval.likelihood.ode.rtol": 1e-4}')[:2]
    assert one.key != other.key and one.training == other.training


def test_a_name_is_no_longer_than_a_file_system_takes(tmp_path):
    (long, _) = cells_of(tmp_path, '{"sweep.of": "a"}', '{"sweep.of": "' + "\u6570" * 120 + '"}')[1:3]
    assert len(long.name.encode()) <= 120 and "\u6570" in long.name


def test_keys_are_of_the_whole_configuration_and_of_no_part_that_is_not_chosen(tmp_path, monkeypatch):
    plain, typed = (cells_of(tmp_path, text)[0] for text in ('{"train.clip": 2}', '{"train.clip": 2.0}'))
    assert plain.key == typed.key
    other = cells_of(tmp_path, '{"train.clip": 2.0}', flags=["--config.sampler.n=7"])[0]
    assert other.key != plain.key and other.training == plain.training and other.said["sampler.n"] == 7
    back = cells_of(tmp_path, '{"train.steps": 5}', flags=["--config.train.steps=8000"])[0]  # as the preset has it
    assert back.said["train.steps"] == back.config.train.steps == 8000 and back.key == cells_of(tmp_path, "{}")[0].key
    flags = ["--config.loss.ssm.slices=2"]  # an option of the cell with ssm only
    (eps, ssm, *_) = cells_of(tmp_path, '{"train.clip": 2.0}', '{"loss.name": "ssm"}', flags=flags)
    assert eps.key == plain.key and "loss.ssm.slices=2" not in eps.command and ssm.config.loss.ssm.slices == 2
    assert plain.config.seed == 0 and cells_of(tmp_path, "{}")[1].config.seed == 1

    def changed(name):
        config = load(name)
        config.train.batch = 7
        return config

    monkeypatch.setattr("scoregen.app.config.load", changed)  # the preset has changed
    assert cells_of(tmp_path, '{"train.clip": 2.0}')[0].key != plain.key


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("def cells(:", ["line 1: ", "invalid syntax"]),
        ("x = 1", ["no cells()"]),
        ("def cells():\n    yield {}['a']", ["line 2: KeyError: a"]),
        ("def cells(): return []", ["yields no cells"]),
        ("def cells(): return [{'config': None, 'a': 1}]", ["cell 1", "measure(run)"]),
        ("def cells(): return [{'a': 1}]", ["cell 1", "has no config"]),
        ("def cells(): return [3]", ["cell 1", "3 is not a dict"]),
        ("def cells(): return [{'config': 'ddpm_tiy'}]", ["cell 1", "no preset 'ddpm_tiy'", "did you mean 'ddpm_toy'"]),
        ("def cells(): return [{'config': 'ddpm_toy', 'train.step': 3}]", ["no config.train.step", "train.steps"]),
        ("def cells(): return [{'config': 'ddpm_toy', 'loss.name': 'sm'}]", ["no config.loss.name 'sm'"]),
        ("def cells(): return [{'config': 'ddpm_toy', 'train.steps': 'x'}]", ["train.steps=x: an integer is needed"]),
        ("def cells(): return [{'config': 'ddpm_toy', 'seed': {1}}]", ["seed={1}: a number"]),
        ("def cells(): return [{'config': 'ddpm_toy'}, {'config': 'ddpm_toy', 'seed': 0}]", ["1 and 2 are the same"]),
        ("def cells(): return [{'config': 'ddpm_toy', 'seed.': 1}]", ["no config.seed."]),
        (
            "def measure(run): pass\ndef cells(): return [{'config': None, 'a': 1, 'sweep.a': 2}]",
            ["a and sweep.a are the same option"],
        ),
        (
            "def cells(): return [{'config': 'ddpm_toy', 'sweep.seconds': n} for n in (1, 2)]",
            ["the column for sweep.seconds would be named 'seconds'", "like a column of every table"],
        ),
        (
            "def cells(): return [{'config': 'ddpm_toy', 'loss.name': n, 'sweep.loss': n} for n in ('eps', 'dsm')]",
            ["the column for sweep.loss would be named 'loss', like loss.name"],
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_sweep_is_refused_in_one_line(tmp_path, text, parts):
    path = write(tmp_path / "bad", text)
    refused(lambda: plan.read(path), path, *parts)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--workers=0"], ["--workers=0: at least 1"]),
        (["--launcher=cloud"], ["no --launcher 'cloud'", "local, ray, slurm"]),
        (["--launch.num_gpus=1"], ["--launch.num_gpus", "the launcher 'local' is --workers"]),
        (["--only=nothing"], ["--only=nothing", "one cell is radius=1,seed=0"]),
        (["--wrkers=1"], ["no flag '--wrkers'", "did you mean '--workers'"]),
        (["--config.train.steps=1"], ["--config.train.steps=1: no cell", "configuration"]),
    ],
)
def test_a_command_that_cannot_be_is_refused_in_one_line(tmp_path, argv, parts):
    path = write(tmp_path / "areas", AREAS)
    code, _, err = main(path, f"--out={tmp_path / 'out'}", *argv)
    assert code == 2 and err.startswith("scoregen: ") and err.count("\n") == 1
    for part in parts:
        assert part in err
    assert ran(path) == []


def test_all_faults_of_a_command_are_said_at_once(tmp_path):
    path = write(tmp_path / "toy", TOY % '{"train.step": 3}')
    bad = ["--wrkers=1", "--workers=0", "--launch.a=1", "--launch.b=2", "--out="]
    code, out, err = main(path, *bad)
    lines, parts = (
        err.splitlines(),
        ["'--wrkers'", "--out=", "--launch.a", "--launch.b", "--workers=0", "config.train.step"],
    )
    assert (code, out, len(lines)) == (2, "", len(parts)), err
    assert all(line.startswith("scoregen: ") and part in line for line, part in zip(lines, parts, strict=True)), err
    assert main("--launcher=cloud")[2].splitlines()[-1].endswith("'cloud': there are: local, ray, slurm")


def test_two_sweeps_do_not_work_in_one_folder(tmp_path):
    path = write(tmp_path / "areas", AREAS)
    with locked(tmp_path / ".lock"):
        code, _, err = main(path, f"--out={tmp_path}")
    assert (code, err.count("\n")) == (2, 1) and f"another command is at work in {tmp_path}" in err
    assert ran(path) == []


def test_help_names_every_flag():
    code, out, _ = main("--help")
    assert code == 0 and all(flag.usage in out for flag in command.FLAGS)
    refused_line = main("absent/sweep.py")[2]
    assert "cannot read the sweep absent/sweep.py: No such file" in refused_line and refused_line.count("\n") == 1
    assert "scoregen sweep FILE" in main("--workers=2")[2]


@pytest.mark.parametrize(
    "idle",
    ['"data.dir": "photos"', '"loss.ssm.slices": 4', '"net.unet.channels": 8', '"label_dropout": 0.5'],
)
def test_an_option_without_effect_is_an_error_that_names_its_cells(tmp_path, idle):
    path = write(tmp_path / "toy", TOY % ("{}, {%s}" % idle))  # noqa: UP031
    key, value = idle.replace('"', "").split(": ")
    refused(lambda: plan.read(path), path, "cells 2, 4: ", f"--config.{key}={value} has no effect")


@pytest.mark.parametrize("same", ['"train.steps": 8000', '"train.log_every": 7', '"loss.name": "eps"'])
def test_cells_that_differ_in_nothing_are_refused_before_anything_runs(tmp_path, same):
    """An option at its default, an option that no figure depends on, and an option with the preset's value."""
    path = write(tmp_path / "toy", TOY % ("{}, {%s}" % same))  # noqa: UP031
    refused(lambda: plan.read(path), path, "cells 1 and 2, 3 and 4 are the same")
    code, _, err = main(path, f"--out={tmp_path / 'out'}")
    assert code == 2 and "are the same" in err and not (tmp_path / "out").exists()


def test_an_option_for_all_cells_must_have_an_effect_on_one(tmp_path):
    path = write(tmp_path / "toy", TOY % '{"loss.name": "ssm"}, {}')
    assert len(plan.read(path, ["--config.loss.ssm.slices=2"]).cells) == 4
    refused(lambda: plan.read(path, ["--config.net.unet.channels=8"]), "--config.net.unet.channels=8 has no effect")


def test_all_faults_of_all_cells_are_said_at_once(tmp_path):
    text = TOY % '{"train.step": 3}, {"loss.name": "sm", "train.clip": "x"}, {"config": "ddpm_tiy"}'
    with pytest.raises(UsageError) as error:
        plan.read(write(tmp_path / "toy", text))
    lines = list(error.value.args)
    for line, parts in zip(
        lines,
        [("cells 1, 4: no config.train.step",), ("cells 2, 5: ", "train.clip"), ("cells 2, 5: ", "loss.name 'sm'"),
         ("cells 3, 6: no preset 'ddpm_tiy'",)],
        strict=True,
    ):  # fmt: skip
        assert all(part in line for part in parts), line


def result(
    folder: Path, key: str, figures: dict, seconds: float, training: float = 0.0, measure: str = "another"
) -> None:
    folder.mkdir(parents=True)
    found = {"key": key, "figures": figures, "floors": {"d": 0.25}, "seconds": seconds, "training": training}
    found["measure"] = measure
    (folder / "result.json").write_text(json.dumps(found))


def test_time_is_told_by_the_cells_that_are_finished(tmp_path):
    """Rows of 4 s and of 10 s a cell, trainings of 100 s and 300 s; the networks of seed 1 are still to be trained."""
    sweep = plan.read(write(tmp_path / "toy", TOY % '{"sampler.n": 5}, {"loss.name": "ssm"}, {"sampler.n": 6}'))
    out = tmp_path / "out"
    assert time_left(sweep.cells, sweep, out, 1) is None
    few, ssm = sweep.cells[0], sweep.cells[1]
    result(cell.folder_of(out, few), few.key, {"d": 1.0}, 4.0, 100.0)
    result(cell.folder_of(out, ssm), ssm.key, {"d": 2.0}, 10.0, 300.0)
    for trained in (few, ssm):
        (out / "trained" / trained.training / "checkpoints" / str(trained.config.train.steps)).mkdir(parents=True)
    rest = [each for each in sweep.cells if each not in (few, ssm)]
    # Cells with sampler.n=6 count the mean, 7 s, and others the time of their row, as do the two trainings.
    assert time_left(rest, sweep, out, 1) == pytest.approx(7 + 7 + 4 + 10 + 100 + 300)
    assert time_left(rest, sweep, out, 2) == pytest.approx((7 + 7 + 4 + 10 + 100 + 300) / 2)


def test_a_result_of_another_key_does_not_count(tmp_path):
    sweep = plan.read(write(tmp_path / "toy", TOY % "{}"))
    first, second = sweep.cells
    result(cell.folder_of(tmp_path, first), first.key, {"d": 1.0, "only": 3.0}, 1.0)
    result(cell.folder_of(tmp_path, second), "another", {"d": 5.0}, 1.0)
    (row,) = rows_of(sweep, tmp_path)
    assert row.values("d") == [1.0] and row.error("d") is None and math.isnan(row.mean("e"))
    assert row.floor("d") == 0.25 and row.floor("only") is None
    assert 'd,"d, standard error","d, floor",only' in as_csv([row])
    assert "1 (floor 0.25)" in as_markdown(sweep, [row])


def test_what_was_measured_otherwise_has_a_table_of_its_own(tmp_path):
    """A table omits options that its cells do not have. A row without results stays in the table of the row before."""
    sweep = plan.read(
        write(
            tmp_path / "two",
            """
            def cells():
                yield from ({"config": None, "radius": r} for r in (1, 2))
                yield {"config": None, "side": 3}

            def measure(run):
                return {}
            """,
        )
    )
    first, _, third = sweep.cells
    result(cell.folder_of(tmp_path, first), first.key, {"area": 3.0}, 1.0, measure=sweep.stamp)
    result(cell.folder_of(tmp_path, third), third.key, {"edge": 12.0}, 1.0, measure=sweep.stamp)
    rows = rows_of(sweep, tmp_path)
    text = as_markdown(sweep, rows)
    assert "| radius | cells | area |\n|---|---|---|\n| 1 | 1 | 3 |\n| 2 | 0 of 1 | – |\n\n" in text
    assert "| side | cells | edge |\n|---|---|---|\n| 3 | 1 | 12 |\n\n" in text
    assert page.page(sweep, rows, tmp_path).count("<th>radius</th>") == 1
    assert [row.folders for row in rows] == [[cell.folder_of(tmp_path, first)], [], [cell.folder_of(tmp_path, third)]]


def test_a_gpu_for_each_cell(tmp_path, monkeypatch):
    """Two GPUs are visible. If more cells than GPUs run, they share the GPUs, and no cell takes all the memory."""
    started = []
    monkeypatch.setattr(launch, "spawn", lambda folder, env: started.append(env))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-5f")
    for workers, slots in ((None, 2), (3, 3)):
        local = launch.Local(workers, tmp_path, {})
        assert local.slots == local.room == slots
        for slot in range(slots):
            local.start(tmp_path, slot)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in started] == ["1", "GPU-5f", "1", "GPU-5f", "1"]
    assert ["XLA_PYTHON_CLIENT_PREALLOCATE" in env for env in started] == [False, False, True, True, True]

    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: H100'\necho '  MIG 1'\necho 'GPU 1: H100'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert launch.Local(None, tmp_path, {}).slots == 2
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert launch.Local(None, tmp_path, {}).slots == 1


def test_a_cell_that_cannot_be_started_keeps_no_other_from_it(tmp_path):
    path = write(tmp_path / "areas", AREAS)
    sweep = plan.read(path)
    launcher = Fake(1, lambda folder: 1)
    begin = launcher.start

    def start(folder, slot):
        if not launcher.together:
            launcher.together.append(set())
            raise OSError(12, "Cannot allocate memory")
        return begin(folder, slot)

    launcher.start = start
    ended = [reason for _, reason in launch.launch(sweep, sweep.cells, tmp_path, launcher, lambda: False)]
    assert len(ended) == 4 and ended[0] == "could not be started: [Errno 12] Cannot allocate memory"
    assert ended[1:] == ["ended with the exit code 1"] * 3


class Fake:
    """A launcher without processes: a cell ends at the third poll with the code of `fate`. `together` is what ran."""

    def __init__(self, slots, fate):
        self.slots = self.room = slots
        self.fate, self.running, self.together = fate, set(), []

    def start(self, folder, slot):
        self.running.add(folder.name)
        self.together.append(set(self.running))
        return FakeHandle(self, folder)


class FakeHandle:
    def __init__(self, launcher, folder):
        self.launcher, self.folder, self.polled = launcher, folder, 0

    def poll(self):
        self.polled += 1
        if self.polled < 3:
            return None
        self.launcher.running.discard(self.folder.name)
        return self.launcher.fate(self.folder)

    def stop(self):
        self.polled = 10


def test_one_cell_trains_and_the_others_wait_for_its_network(tmp_path):
    sweep = plan.read(write(tmp_path / "toy", TOY % '{"sampler.n": 5}, {"sampler.n": 6}, {"sampler.n": 7}'))
    by_name = {each.name: each for each in sweep.cells}

    def done(folder):
        it = by_name[folder.name]
        network = tmp_path / "trained" / it.training / "checkpoints" / str(it.config.train.steps)
        network.mkdir(parents=True, exist_ok=True)
        result(folder / "again", it.key, {}, 1.0)
        (folder / "again" / "result.json").replace(folder / "result.json")
        return 0

    launcher = Fake(6, done)
    ended = list(launch.launch(sweep, sweep.cells, tmp_path, launcher, lambda: False))
    assert {each for each, reason in ended if reason is None} == set(sweep.cells)
    at_first = launcher.together[1]  # one of each seed, though there was room for six
    assert len(at_first) == 2 and len({by_name[name].training for name in at_first}) == 2
    assert max(map(len, launcher.together)) == 4


def test_a_training_that_fails_fails_all_that_need_it_and_is_not_repeated(tmp_path):
    sweep = plan.read(write(tmp_path / "toy", TOY % '{"sampler.n": 5}, {"sampler.n": 6}'))
    by_name = {each.name: each for each in sweep.cells}

    def fate(folder):
        if "seed=0" in folder.name:
            cell.fail(folder, by_name[folder.name].key, "the loss became nan", training=True)
        return -signal.SIGSEGV

    launcher = Fake(1, fate)
    reasons = {
        each.name: reason for each, reason in launch.launch(sweep, sweep.cells, tmp_path, launcher, lambda: False)
    }
    zero = sorted(reason for name, reason in reasons.items() if "seed=0" in name)
    assert zero == ["its training failed: the loss became nan", "the loss became nan"]
    assert [reason for name, reason in reasons.items() if "seed=1" in name] == ["ended by SIGSEGV"] * 2
    assert len(launcher.together) == 3  # the second cell of seed 0 was not tried


SLOW = '''
    """Slow."""
    import os, time
    from pathlib import Path
    from scoregen.contrib.sweep import grid

    def cells():
        return grid({"config": None, "n": list(range(12))})

    def measure(run):
        here, n = Path(__file__).parent, run.options["n"]
        with (here / "begun").open("a") as begun:
            begun.write(f"{n} {os.getpid()}\\n")
        if n == 5:
            raise RuntimeError("made to fail")
        time.sleep(0.4)
        with (here / "ran").open("a") as ran:
            ran.write(f"{n}\\n")
        return {"found": n}
'''


def start(path: Path, out: Path, *argv: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "scoregen", "sweep", str(path), f"--out={out}", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


def wait_until(true, process: subprocess.Popen, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(path: Path) -> list[int]:
    return [int(line.split()[1]) for line in (path.parent / "begun").read_text().splitlines()]


@pytest.mark.slow
def test_a_sweep_that_is_killed_twice_ends_complete_and_runs_nothing_twice(tmp_path):
    """The sweep is killed once with its process group and once alone. Then a cell is killed, and stdout names it."""
    path, out = write(tmp_path / "slow", SLOW), tmp_path / "out"
    for done, kill in ((2, os.killpg), (5, os.kill)):
        process = start(path, out, "--workers=2")
        wait_until(lambda done=done: len(ran(path)) >= done, process)
        kill(process.pid, signal.SIGKILL)
        process.communicate()
        kept = len(list(out.glob("cells/*/result.json")))
        # Its cells have ended too and write nothing more.
        time.sleep(0.3)
        assert not any(alive(pid) for pid in pids(path))
        time.sleep(0.4)
        assert len(list(out.glob("cells/*/result.json"))) == kept

    process = start(path, out, "--workers=1")
    begun, told = len(pids(path)), path.parent / "begun"
    # Wait for a cell that began after that, but not for n=5, which fails and ends at once.
    wait_until(lambda: len(pids(path)) > begun and told.read_text().splitlines()[-1].split()[0] != "5", process)
    os.kill(pids(path)[-1], signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    failed = re.findall(r"^- `n=(\d+)-\w+`: (.*)", said, re.MULTILINE)
    assert ("5", f"{path}, line 14: RuntimeError: made to fail") in failed
    (killed,) = (reason for n, reason in failed if n != "5")
    assert killed == "ended by SIGKILL, perhaps because the memory was full"
    code, said, _ = main(path, f"--out={out}", "--workers=2")
    assert code == 1 and "11 of 12 cells finished, 1 failed" in said and "- `n=5-" in said
    counts = [ran(path).count(str(n)) for n in range(12)]
    assert counts[5] == 0 and all(counts[n] >= 1 for n in range(12) if n != 5)
    # Each kill may have come after measure(run) and before the result: for two cells at a kill of the sweep, and for
    # one at the kill of a cell.
    assert sum(counts) <= 11 + 5


@pytest.mark.slow
def test_ctrl_c_tells_the_cells_and_the_next_start_goes_on(tmp_path):
    path, out = write(tmp_path / "slow", SLOW), tmp_path / "out"
    process = start(path, out)
    wait_until(lambda: (path.parent / "begun").is_file() and len(pids(path)) >= 2, process)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "SIGINT: stopping" in said and "The same command continues" in said and "FAILED" not in said
    assert not any(alive(pid) for pid in pids(path))
    assert not list(out.glob("cells/*/failed.json"))
    assert "SIGTERM: stopping" in next(out.glob("cells/n=1-*/log.txt")).read_text()


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("3", "measure(run) returned int, not a dict of numbers"),
        ("{'a': float('nan')}", "measure(run) returned nan for 'a', which is not a finite number"),
        ("{'a': 'x'}", "measure(run) returned 'x' for 'a'"),
        ("{'a': (1.0, float('inf'))}", "measure(run) returned (1.0, inf) for 'a'"),
        ("{'seconds': 1}", "measure(run) returned 'seconds', but another column"),
        ("{'b': 1}", "measure(run) returned 'b', but another column"),
    ],
)
def test_what_measure_may_not_return(tmp_path, returned, reason):
    text = "def cells(): return [{'config': None, 'b': n} for n in (1, 2)]\ndef measure(run): return " + returned
    path = write(tmp_path / "bad", text)
    sweep = plan.read(path)
    folder = cell.prepare(tmp_path, sweep, sweep.cells[0])
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert cell.main([str(folder)]) == 2
    assert reason in err.getvalue() and reason in cell.note(folder, "failed.json", sweep.cells[0].key)["reason"]
    assert cell.note(folder, "result.json", sweep.cells[0].key) is None


def test_a_cell_that_two_were_told_to_run_is_run_once(tmp_path):
    """This happens if the connection to a node is lost, and another node gets the cell."""
    path = write(tmp_path / "areas", AREAS)
    sweep = plan.read(path)
    folder = cell.prepare(tmp_path, sweep, sweep.cells[0])
    assert [cell.main([str(folder)]) for _ in range(2)] == [0, 0]
    assert ran(path) == [sweep.cells[0].name]


def test_a_cell_refuses_another_measure_than_the_sweep_began_with(tmp_path, capsys):
    path = write(tmp_path / "areas", AREAS)
    sweep = plan.read(path)
    folder = cell.prepare(tmp_path, sweep, sweep.cells[0])
    path.write_text(path.read_text().replace("radius**2", "radius**3"))
    assert cell.main([str(folder)]) == 2 and ran(path) == []
    assert "its measure(run) has changed since the sweep started" in capsys.readouterr().err


def test_what_was_found_stays_until_it_is_found_anew(tmp_path, capsys):
    """A cell runs again and fails, and then runs again and succeeds."""
    path = write(tmp_path / "areas", AREAS.replace("(2, 1)", "(1, 0)"))
    text = path.read_text()
    path.write_text(text.replace("(1, 0)", "(7, 7)"))
    sweep = plan.read(path)
    it = sweep.cells[0]
    folder = cell.prepare(tmp_path, sweep, it)
    assert cell.main([str(folder)]) == 0
    found = cell.result_of(folder, it.key)
    path.write_text(text)
    sweep = plan.read(path)
    cell.prepare(tmp_path, sweep, it, again="now")
    assert cell.main([str(folder)]) == 2 and "made to fail" in capsys.readouterr().err
    assert json.loads((folder / "result.before.json").read_text()) == found
    assert cell.result_of(folder, it.key) is None
    path.write_text(text.replace("(1, 0)", "(7, 7)").replace("+ seed", "+ seed + 5"))
    cell.prepare(tmp_path, plan.read(path), it, again="now")
    assert cell.main([str(folder)]) == 0
    assert cell.result_of(folder, it.key, "now")["figures"]["area"] == found["figures"]["area"] + 5


def test_again_goes_on_where_it_was_cut_short_and_with_another_measure_anew(areas, tmp_path):
    shutil.copytree(areas[0].parent, tmp_path / "copy")
    path, out = tmp_path / "copy" / "sweep.py", tmp_path / "copy" / "out"
    stamp = plan.read(path).stamp
    (out / ".again").write_text(f"then {stamp}")
    done = next(out.glob("cells/radius=1,seed=0-*/result.json"))
    done.write_text(json.dumps(json.loads(done.read_text()) | {"again": f"then {stamp}"}))
    code, said, _ = main(path, f"--out={out}", "--again", "--dry-run")
    assert code == 0 and "3 of 4 cells to run" in said
    path.write_text(path.read_text().replace("+ seed", "+ 2 * seed"))
    assert "4 of 4 cells to run" in main(path, f"--out={out}", "--again", "--dry-run")[1]


def test_a_pair_is_a_figure_and_its_floor(tmp_path):
    text = "def cells(): return [{'config': None, 'a': (1, 2)}]\ndef measure(run): return {'b': run.options['a']}"
    path = write(tmp_path / "pair", text)
    sweep = plan.read(path)
    folder = cell.prepare(tmp_path, sweep, sweep.cells[0])
    assert cell.main([str(folder)]) == 0
    found = cell.result_of(folder, sweep.cells[0].key)
    assert (found["figures"], found["floors"]) == ({"b": 1.0}, {"b": 2.0})


@pytest.mark.parametrize("text", ["[]", "3", "{", ""])
def test_a_result_that_is_none_does_not_count(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    assert cell.result_of(tmp_path, "key") is None


def test_where_more_jobs_are_refused_the_others_wait(tmp_path):
    """The queue takes two jobs at a time, and refuses more with an error."""
    sweep = plan.read(write(tmp_path / "areas", AREAS))
    launcher = Fake(10_000, lambda folder: 1)
    begin = launcher.start

    def start(folder, slot):
        if len(launcher.running) == 2:
            raise RuntimeError("sbatch: error: QOSMaxSubmitJobPerUserLimit")
        return begin(folder, slot)

    launcher.start = start
    ended = [reason for _, reason in launch.launch(sweep, sweep.cells, tmp_path, launcher, lambda: False)]
    assert ended == ["ended with the exit code 1"] * 4 and list(map(len, launcher.together)) == [1, 2, 1, 2]


@pytest.mark.parametrize("late", [True, False])
def test_a_result_may_be_seen_late(tmp_path, monkeypatch, late):
    """As on a network file system. If no result appears, the cell has failed, although its exit code is 0."""
    sweep = plan.read(write(tmp_path / "areas", AREAS))
    it = sweep.cells[0]
    monkeypatch.setattr(launch, "LATE", 0.5)
    polls = []

    def tick(running):
        polls.append(running)
        if late and len(polls) == 6:
            result(tmp_path / "elsewhere", it.key, {}, 1.0)
            (tmp_path / "elsewhere" / "result.json").replace(cell.folder_of(tmp_path, it) / "result.json")

    launcher = Fake(1, lambda folder: 0)
    ((_, reason),) = launch.launch(sweep, [it], tmp_path, launcher, lambda: False, tick)
    assert reason == (None if late else "ended with the exit code 0")


def test_cells_are_told_to_stop_if_the_sweep_itself_fails(tmp_path):
    sweep = plan.read(write(tmp_path / "areas", AREAS))
    launcher = Fake(2, lambda folder: -signal.SIGTERM)

    def tick(running):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        list(launch.launch(sweep, sweep.cells, tmp_path, launcher, lambda: False, tick))
    assert len(launcher.together) == 2 and not launcher.running


def test_a_job_is_stopped_by_the_signal_that_slurm_cancels_with(tmp_path):
    path = write(tmp_path / "slow", SLOW.replace("0.4", "30"))
    sweep = plan.read(path)
    folder = cell.prepare(tmp_path, sweep, sweep.cells[0])
    code = (
        f"import sys; from scoregen.contrib.sweep.launch import job; sys.exit(job({str(folder)!r}, {str(tmp_path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_until((path.parent / "begun").is_file, process)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert "SIGTERM: stopping" in (folder / "log.txt").read_text() and not any(map(alive, pids(path)))


@pytest.mark.slow
def test_a_cell_that_waits_for_a_network_hears_that_it_is_to_stop(tmp_path):
    """The log names the folder that the cell waits for, since a file system may keep the lock of a lost node."""
    toy = plan.read(write(tmp_path / "toy", TOY % "{}"))
    folder = cell.prepare(tmp_path, toy, toy.cells[0])
    network = cell.network_of(tmp_path, toy.cells[0])
    network.mkdir(parents=True)
    with locked(network / ".cells.lock"):
        process = launch.spawn(folder)
        log = folder / "log.txt"
        wait_until(lambda: f"waiting for another process that works in {network}" in log.read_text(), process)
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    process.stdin.close()


def test_names_are_written_as_they_are(tmp_path):
    """Dollar signs, bars, angle brackets and line ends in tables, page and figure. The page has a cell's pictures."""
    text = """
        def cells():
            return [{"config": None, "cost ($": "a|b <\\n$x^"}, {"config": None, "cost ($": "c"}]

        def measure(run):
            from matplotlib.image import imsave
            imsave(run.workdir / "mine.png", [[0.0, 1.0]])
            return {"$ per $^ <b>": 1.0}
    """
    path = write(tmp_path / "names", text)
    sweep = plan.read(path)
    for each in sweep.cells:
        assert cell.main([str(cell.prepare(tmp_path, sweep, each))]) == 0
    code, said, err = main(path, f"--out={tmp_path}", "--table")
    assert (code, err) == (0, "") and (tmp_path / "figure.png").is_file()
    assert "| a\\|b &lt; $x^ | 1 | 1 |" in said
    whole = (tmp_path / "index.html").read_text()
    assert "<b>" not in whole and "$ per $^ &lt;b&gt;" in whole and whole.count('alt="mine of ') == 2


# A preset file that adds a data source. A cell cannot find this source from the saved configuration alone.
OWN = """
    from scoregen.app.config import load
    from scoregen.data import SOURCES, mixture

    SOURCES["few"] = lambda size=200: mixture(size=size)

    def get_config():
        config = load("ddpm_toy")
        config.data.name = "few"
        return config
"""
TINY = {
    "config": "own.py",
    "net.mlp.width": 8,
    "net.mlp.depth": 1,
    "net.mlp.embedding": 8,
    "train.steps": 40,
    "train.batch": 8,
    "train.log_every": 1,
    "train.checkpoint_every": 10,
    "sampler.n": 5,
    "sampler.batch": 20,
    "sampler.images": 20,
    "eval.samples": 30,
}
TRAINED = f'''
    """Tiny networks."""
    from scoregen.data import points
    from scoregen.contrib.sweep import grid

    points.TEST_SIZE = 100  # the distances are computed in no time

    TINY = {TINY!r}

    def cells():
        wild = {{"loss.name": "dsm", "train.learning_rate": 1e30, "train.clip": 0.0}}
        tame = grid(TINY, {{"loss.name": ["eps", "dsm"], "sampler.n": [4, 5, 6], "seed": range(2)}})
        return [*tame[:11], TINY | wild]

    def measure(run):
        return {{"spread": run.samples.std(), "levels": run.config.sampler.n}}
'''


@pytest.fixture
def held_out_points(monkeypatch):
    """Restores the number of held-out points after the test, as TRAINED sets it in this process too."""
    monkeypatch.setattr(points, "TEST_SIZE", points.TEST_SIZE)


@pytest.mark.slow
@pytest.mark.usefixtures("held_out_points")
def test_twelve_networks_cut_twice_end_as_uncut_ones(tmp_path):
    """Of twelve cells one diverges; the others share four networks, each trained once."""
    path, out = write(tmp_path / "tiny", TRAINED), tmp_path / "out"
    (path.parent / "own.py").write_text(textwrap.dedent(OWN))
    for done in (1, 4):
        process = start(path, out)
        wait_until(lambda done=done: len(list(out.glob("cells/*/result.json"))) >= done, process, 400)
        wait_until(lambda: any(out.glob("trained/*/checkpoints/10")), process, 400)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    code, said, _ = main(path, f"--out={out}")
    assert code == 1 and "11 of 12 cells finished, 1 failed" in said
    assert re.search(r"- `.*learning_rate=1e\+30.*`: the (loss|norm of the parameters) became (nan|inf)", said)
    trained = [folder for folder in (out / "trained").iterdir() if (folder / "checkpoints" / "40").is_dir()]
    assert len(trained) == 4
    for folder in trained:
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in steps if "loss" in row] == list(range(1, 41))
    table = rows_in(out / "table.csv")
    assert [row["levels"] for row in table[:3]] == ["4.0", "5.0", "6.0"]
    assert all(float(row["sliced Wasserstein"]) > float(row["sliced Wasserstein, floor"]) > 0 for row in table[:-1])

    whole = tmp_path / "whole"
    main(path, f"--out={whole}", "--only=sampler.n=4,loss=eps,seed=*")
    one = "cells/sampler.n=4,loss=eps,seed=1*/result.json"
    uncut, cut = (json.loads(found.read_text()) for each in (whole, out) for found in each.glob(one))
    assert uncut["figures"] == cut["figures"]

    # A checkpoint that was damaged since is passed over, and made again.
    network = next(out.glob("trained/loss=eps,seed=1*/checkpoints/40"))
    file = max((file for file in network.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    main(path, f"--out={out}", "--again", "--only=sampler.n=4,loss=eps,seed=1*")
    (again,) = out.glob(one)
    assert json.loads(again.read_text())["figures"] == cut["figures"]
    log = (again.parent / "log.txt").read_text()
    assert "checkpoints/40 is damaged" in log and "continuing to step 40" in log


@pytest.mark.slow
@pytest.mark.usefixtures("held_out_points")
def test_the_command_of_a_row_trains_its_cell_to_the_same_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, out = write(tmp_path / "tiny", TRAINED), tmp_path / "out"
    (path.parent / "own.py").write_text(textwrap.dedent(OWN))
    sweep = plan.read(path)
    it = sweep.cells[0]
    assert main(path, f"--out={out}", f"--only={it.name}")[0] == 0
    codes = [shlex.split(code) for code in read_page(out).codes]
    (argv,) = (argv for argv in codes if argv == shlex.split(it.command))
    with contextlib.redirect_stdout(io.StringIO()):
        assert app_main([*argv[1:], "--workdir=alone"]) == 0
    one, other = (
        json.loads((folder / "distances.json").read_text()) for folder in (cell.folder_of(out, it), tmp_path / "alone")
    )
    assert one == other


@pytest.mark.slow
def test_the_page_in_a_browser(areas, tmp_path):
    """Chromium writes nothing to its console, and its screenshot is not empty."""
    path = areas[1] / "index.html"
    assert console(path, tmp_path) == ""
    # Escape closes a picture.
    look = """
        const zoom = page.querySelector(".zoom");
        zoom.open = true;
        const wide = zoom.querySelector("img").getBoundingClientRect().width;
        page.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
        return [wide > 0.8 * frame.clientWidth, zoom.open];
    """
    assert looked_at(path, tmp_path, look) == [[True, False]] * 3


def test_the_example_of_the_documentation_can_be_run(tmp_path):
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "sweeps.md").read_text(), re.DOTALL)
    assert found is not None
    sweep = plan.read(write(tmp_path / "docs", found[1]))
    assert [each.name.rpartition("-")[0] for each in sweep.cells] == [
        f"loss={loss},seed={seed}" for loss in ("eps", "ssm") for seed in range(3)
    ]
    assert sweep.title == "Noise prediction beside sliced score matching" and callable(sweep.measure)
