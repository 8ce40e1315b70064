"""Every experiment that is a sweep can be read, and has a page, a figure and a table of its own."""

import contextlib
import csv
import io
import re
from pathlib import Path

import pytest

from scoregen.app.build import build
from scoregen.contrib.sweep import command, plan

ROOT = Path(__file__).parent.parent
SWEEPS = sorted((ROOT / "experiments").glob("*/sweep.py"))
# One cell of each, and what makes it small.
TINY = {
    "pitfalls": (
        "one_level*seed=0*",
        "--config.train.steps=20",
        "--config.net.mlp.width=16",
        "--config.sampler.images=64",
        "--config.sampler.corrector.langevin.steps=2",
    ),
    "connection": (
        "ddpm_toy*seed=0*",
        "--config.train.steps=20",
        "--config.net.mlp.width=16",
        "--config.eval.samples=64",
        "--config.sampler.n=5",
        "--config.sampler.batch=64",
    ),
    "chain_to_sde": ("*DDIM*",),
    "samplers": (
        "points*UniPC*seed=0*",
        "--config.train.steps=20",
        "--config.net.mlp.width=16",
        "--config.eval.samples=64",
    ),
    "losses": (
        "points*loss=ism*seed=0*",
        "--config.train.steps=20",
        "--config.net.mlp.width=16",
        "--config.sampler.n=5",
        "--config.sampler.images=64",
    ),
    "noise_levels": (
        "all_five,seed=0,techniques=all_five,*",
        "--config.train.steps=20",
        "--config.train.checkpoint_every=20",
        "--config.net.unet.channels=8",
        "--config.sampler.process.ncsn.levels=3",
        "--config.sampler.corrector.langevin.steps=1",
        "--config.sampler.images=8",
        "--config.eval.at_end=false",
    ),
}


def test_there_are_some():
    assert {path.parent.name for path in SWEEPS} >= set(TINY)


@pytest.mark.quick(1)
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.parent.name)
def test_it_can_be_read_and_its_table_is_of_it(path):
    """The table has the title and the claim that the file has now, no cell that is missing and none that failed."""
    sweep = plan.read(path)
    assert sweep.measure is not None and sweep.draw is not None
    table = (path.parent / "table.md").read_text()
    assert table.startswith(f"# {sweep.title}\n\n{sweep.claim}\n\n|")
    assert "Failed" not in table
    finished, at = [], 0
    for line in re.findall(r"^\| (.*) \|$", table, re.MULTILINE):
        words = line.split(" | ")
        if "cells" in words:
            at = words.index("cells")
        else:
            finished.append(words[at])
    assert all(map(str.isdigit, finished)) and sum(map(int, finished)) == len(sweep.cells)
    assert (path.parent / "figure.png").read_bytes().startswith(b"\x89PNG")
    page = (path.parent / "README.md").read_text()
    command_line = f"scoregen sweep experiments/{path.parent.name}/sweep.py"
    assert command_line in page and "(figure.png)" in page and "(table.md)" in page
    assert f"]({path.parent.name}/README.md)" in (ROOT / "experiments" / "README.md").read_text()


@pytest.mark.slow
def test_losses_have_one_budget():
    """The training of every loss costs the budget, to the nearest step and to the four digits of COST."""
    path = ROOT / "experiments" / "losses" / "sweep.py"
    _, script = plan.execute(path)
    for cell in plan.read(path).cells:
        if cell.said["seed"] == 0:
            each, budget = script["cost"](build(cell.config)), script["BUDGET"][cell.said["config"]]
            assert abs(each * cell.config.train.steps - budget) <= 0.5 * each + 5e-4 * budget, cell.name


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_cell_of_it_runs(name, tmp_path):
    glob, *flags = TINY[name]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = command.main(
            [str(ROOT / "experiments" / name / "sweep.py"), f"--out={tmp_path}", f"--only={glob}", *flags]
        )
    assert code == 0, said.getvalue()
    (row,) = csv.DictReader((tmp_path / "cells.csv").read_text().splitlines())
    assert row["cell"] and (tmp_path / "figure.png").is_file()
