"""docs/theory.md names what exists: its functions, its tests, its figures; and every row of the theory."""

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

from scoregen.denoiser import TARGETS
from scoregen.losses import LOSSES, WEIGHTINGS
from scoregen.process import PROCESSES
from scoregen.testing.conformance import OUTPUTS, WEIGHTS
from scoregen.times import TIMES

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "theory.md").read_text()
NAMES = sorted({*re.findall(r"`([^`\n]+)`", TEXT)})
TESTS = [name for name in NAMES if "::" in name]
FILES = [name for name in NAMES if "/" in name and "::" not in name]
DOTTED = [name for name in NAMES if re.fullmatch(r"[a-z_]+(\.\w+)+", name) and not name.startswith("jax.")]
WORDS = {"x0", "eps", "alpha", "sigma", "lam"}  # the symbols
ENTRIES = {*TARGETS, *LOSSES, *WEIGHTINGS, *PROCESSES, *TIMES}


@functools.cache
def functions_in(path):
    return {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", TESTS)
def test_the_tests_named_exist(name):
    path, function = name.split("::")
    assert function.startswith("test_") and function in functions_in(path)


@pytest.mark.parametrize("name", DOTTED)
def test_the_functions_named_exist(name):
    """Of scoregen: a module, as many as there are, and then attributes."""
    found, parts = importlib.import_module("scoregen"), name.split(".")
    for i, part in enumerate(parts):
        if not hasattr(found, part):
            importlib.import_module(".".join(["scoregen", *parts[: i + 1]]))
        found = getattr(found, part)


def test_the_files_and_figures_shown_exist():
    assert all((ROOT / name).exists() for name in FILES), FILES
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", TEXT)
    assert set(shown) == {f"img/{path.name}" for path in (ROOT / "docs" / "img").glob("theory_*.png")}
    assert all((ROOT / "docs" / path).read_bytes().startswith(b"\x89PNG") for path in shown)


def test_nothing_else_is_named():
    """Whatever is named is checked by one of the tests here, or is the entry of a table."""
    rest = set(NAMES) - {*TESTS, *FILES, *DOTTED}
    assert rest - WORDS - ENTRIES == {"jax.jvp", "-expm1(lam_t - lam_s)"}


SECTIONS = {6: TARGETS, 7: LOSSES | WEIGHTINGS, 12: TIMES}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_entry_of_the_tables_is_explained(section):
    """In its section here, or, as a new entry may be, by a docstring of its own with the paper that it is from."""
    text = TEXT.split(f"## {section}. ")[1].split("\n## ")[0]
    for name, entry in SECTIONS[section].items():
        explained = f"`{name}`" in text or re.search(r"(19|20)\d\d", entry.__doc__ or "")
        assert explained or (section, name) == (7, "own"), name


def test_what_is_shipped_is_explained_on_this_page():
    """What the conformance matrix spells out from the papers."""
    for section, names in ((6, OUTPUTS), (7, {name.split("-")[0] for name in WEIGHTS})):
        text = TEXT.split(f"## {section}. ")[1].split("\n## ")[0]
        assert [name for name in names if f"`{name}`" not in text] == []


def test_every_row_of_the_theory_has_its_line():
    assert [int(row) for row in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)] == list(range(1, 17))
