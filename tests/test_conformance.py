"""The conformance matrix: small here, whole in the slow test; and that it would notice."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from scoregen.conformance import command, matrix
from scoregen.conformance.command import main
from scoregen.conformance.matrix import OBJECTIVES, OUTPUTS, Cell, check, combinations, table
from scoregen.denoiser import TARGETS
from scoregen.losses import LOSSES, SSM
from scoregen.process import PROCESSES


def test_the_matrix_has_every_entry_of_the_tables():
    assert set(OUTPUTS) == set(TARGETS)
    tried = [type(objective.loss) for objective in OBJECTIVES.values()]
    assert all(any(issubclass(kind, loss) for kind in tried) for loss in LOSSES.values())
    assert {o.loss.variance_reduced for o in OBJECTIVES.values() if isinstance(o.loss, SSM)} == {True, False}


@pytest.mark.parametrize("process", PROCESSES)
def test_a_part_of_the_matrix(process):
    """Every process with every objective, each under one target."""
    cells = [check(*names) for names in combinations(small=True) if names[0] == process]
    assert len(cells) == len(OBJECTIVES)
    assert all(cell.passed for cell in cells), [cell for cell in cells if not cell.passed]
    assert all(cell.error > 0 for cell in cells if cell.refused is None), "an error of exactly nothing is none measured"
    assert sum(cell.refused is None for cell in cells) >= 6


@pytest.mark.slow
def test_the_whole_matrix(tmp_path, capsys):
    assert main([f"--out={tmp_path / 'matrix.md'}"]) == 0
    lines = (tmp_path / "matrix.md").read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("|")][2:]
    assert len(rows) == len(PROCESSES) * len(TARGETS)
    assert all(cell.strip() for row in rows for cell in row), "the matrix has no blank"
    # The refused are counted too: a rule that refuses too much must not pass.
    assert "660 cells: 531 passed, 0 failed, 129 refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        lambda loss: lambda *args: 2.0 * loss(*args),
        lambda loss: (
            lambda process, predict, noised, key: loss(process, predict, noised._replace(x=1.01 * noised.x), key)
        ),
        lambda loss: lambda process, predict, noised, key: jnp.nan * loss(process, predict, noised, key),
    ],
    ids=["twice", "moved", "nan"],
)
def test_what_is_wrong_fails(monkeypatch, wrong):
    monkeypatch.setitem(OBJECTIVES, "dsm", dataclasses.replace(OBJECTIVES["dsm"], loss=wrong(OBJECTIVES["dsm"].loss)))
    monkeypatch.setattr(matrix, "refusal", lambda *_, **__: None)
    cell = check("vp", "v", "dsm")
    assert not cell.passed
    assert "FAILED" in table([cell])


def test_the_table_names_its_reasons():
    cells = [check("ddpm", "velocity", "dsm"), check("ncsn", "velocity", "eps"), check("flow", "eps", "dsm")]
    text = table(cells)
    assert "| ddpm | velocity |" in text and "a. the velocity is a derivative" in text and "b. at its noisiest" in text
    assert text.count(" a |") == 2 and text.count(" b |") == 1
    assert "`ssm-vr` is the loss `ssm` as it is by default" in text and SSM().variance_reduced
    assert "A blank was not tried" in text
    assert "A blank" not in table([Cell("vp", "v", objective) for objective in OBJECTIVES])


@pytest.fixture
def one_cell(monkeypatch):
    """A matrix that is made in no time."""
    monkeypatch.setattr(matrix, "combinations", lambda small: [("vp", "v", "dsm")])
    monkeypatch.setattr(matrix, "check", lambda *names: Cell(*names))


def refused_at_once(monkeypatch, capsys, out: str, *parts: str) -> None:
    def late(*_):
        raise AssertionError("it was begun")

    monkeypatch.setattr(matrix, "check", late)
    assert main([f"--out={out}"]) == 2
    said, line = capsys.readouterr()
    assert said == "" and line.startswith("scoregen: ") and line.count("\n") == 1
    assert all(part in line for part in parts)


def test_a_place_that_is_no_file_is_refused_before_the_work(monkeypatch, capsys, tmp_path):
    for out in (str(tmp_path), "", f"{tmp_path}/new/"):
        refused_at_once(monkeypatch, capsys, out, f"--out={out}: a file is needed")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "none" / "matrix.md", tmp_path / "file" / "matrix.md"):
        refused_at_once(monkeypatch, capsys, str(out), f"cannot write to {out}", "choose another --out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("one_cell")
def test_the_matrix_is_written_whole_or_not_at_all(monkeypatch, capsys, tmp_path):
    out = tmp_path / "matrix.md"
    assert main([f"--out={out}"]) == 0
    whole = out.read_text()
    assert whole in capsys.readouterr().out and "| vp | v |" in whole
    out.write_text("before")

    def interrupted(*_):
        assert [path.name for path in tmp_path.iterdir()] == ["matrix.md"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(matrix, "check", interrupted)
        assert main([f"--out={out}"]) == 130
        assert main([f"--out={tmp_path / 'new.md'}"]) == 130

    def full(path, text, **_):
        with path.open("w") as file:
            file.write(text[:10])
        if text:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main([f"--out={out}"]) == 2
    line = capsys.readouterr().err
    assert f"cannot write to {out}: No space left on device; choose another --out" in line
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.md"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there.md").write_text("before")
    (tmp_path / "link.md").symlink_to(tmp_path / "there.md")
    assert command._writable(str(tmp_path / "link.md")) == tmp_path / "there.md"


def test_help_names_the_flags_and_exit_codes_and_nothing_of_the_inside(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for word in ("--small", "--out=FILE", "Exit codes:", "python -m scoregen.conformance"):
        assert word in out
    assert not any(word in out for word in ("OUTPUTS", "OBJECTIVES", "theta)"))


@pytest.mark.parametrize("program", ["conformance", "design"])
def test_what_is_heavy_is_loaded_where_an_interrupt_is_heard(program):
    """Ctrl-C in the first second: nothing of JAX, SciPy or matplotlib is loaded outside the guarded work."""
    code = f"import sys; import scoregen.{program}.command, scoregen.{program}.__main__; "
    code += "print([name for name in ('jax', 'scipy', 'matplotlib', 'flax') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "[]"


def test_an_interrupt_is_heard_also_where_an_exception_would_be_lost():
    code = "import os, signal, scoregen.command as c; {}\ntry:\n os.kill(os.getpid(), signal.SIGINT)\n"
    code += "except KeyboardInterrupt:\n pass\nprint('lost')"
    for before, want in (("c.leave_at_once()", (130, "", "")), ("pass", (0, "lost\n", ""))):
        argv = [sys.executable, "-c", code.format(before)]
        found = subprocess.run(argv, capture_output=True, text=True, check=False, env=os.environ)
        assert (found.returncode, found.stdout, found.stderr) == want
