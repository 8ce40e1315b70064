"""The conformance matrix: small here, whole in the slow test; and that it would notice."""

import dataclasses

import jax.numpy as jnp
import pytest

from scoregen import conformance
from scoregen.conformance import OBJECTIVES, OUTPUTS, check, combinations, main, table
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
    monkeypatch.setattr(conformance, "refusal", lambda *_, **__: None)
    cell = check("vp", "v", "dsm")
    assert not cell.passed
    assert "FAILED" in table([cell])


def test_the_table_names_its_reasons():
    cells = [check("ddpm", "velocity", "dsm"), check("ncsn", "velocity", "eps"), check("flow", "eps", "dsm")]
    text = table(cells)
    assert "| ddpm | velocity |" in text and "a. the velocity is a derivative" in text and "b. at its noisiest" in text
    assert text.count(" a |") == 2 and text.count(" b |") == 1
