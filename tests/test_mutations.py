"""The mutations can still be made; that they are caught is what `tests/mutations/mutate.py` finds, in half an hour."""

import ast
import shutil

import pytest
from mutations.mutate import MUTATIONS, ROOT, apply, guards


def test_there_are_enough_and_no_two_alike():
    assert len(MUTATIONS) >= 30
    assert len({(m.file, m.old, m.new) for m in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.file}: {m.meaning}")
def test_the_line_is_still_there(tmp_path, mutation):
    shutil.copytree(ROOT / "scoregen", tmp_path / "scoregen", ignore=shutil.ignore_patterns("__pycache__"))
    apply(mutation, tmp_path)
    ast.parse((tmp_path / "scoregen" / mutation.file).read_text())  # broken in meaning, not in grammar
    assert all((ROOT / test).exists() for test in guards(mutation))
