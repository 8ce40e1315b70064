"""A module imports only from floors below its own: docs/architecture.md says which is where."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = {"process", "denoiser", "times", "guidance", "oracle", "losses", "samplers", "likelihood"}


def floors() -> dict[str, int]:
    """The floor of every module, by the table."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d) \| ([^|]*) \|", text, re.MULTILINE)
    found = [(name, int(floor)) for floor, names in rows for name in re.findall(r"`([\w.]+)`", names)]
    assert len(dict(found)) == len(found) > 20
    return dict(found)


def home(dotted: str, known: dict[str, int]) -> str:
    """The module of the table that a dotted name, without "scoregen.", belongs to.

    >>> home("weights.unet", {"weights": 8, "weights.unet": 2}), home("nets.unet", {"nets": 0})
    ('weights.unet', 'nets')
    """
    first = ".".join(dotted.split(".")[:2])
    return first if first in known else dotted.split(".")[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """What is imported, within functions too, and not for annotations alone: dotted names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        yield from imported(node)


def sources() -> dict[str, list[str]]:
    """Of every file, by its dotted name, what it imports."""
    package = ROOT / "scoregen"
    found = {}
    for path in sorted(package.rglob("*.py")):
        dotted = ".".join(path.relative_to(package).with_suffix("").parts)
        if dotted != "__init__":
            found[dotted.removesuffix(".__init__")] = list(imported(ast.parse(path.read_text())))
    return found


@pytest.mark.parametrize("module", [name for name in sources() if not name.startswith("configs")])
def test_imports_go_down(module):
    known, names = floors(), sources()[module]
    own = home(module, known)
    assert own in known, f"{own} has no floor"
    for name in names:
        package, _, inner = name.partition(".")
        if package == "scoregen" and (other := home(inner, known)) != own:
            assert known[other] < known[own], f"{module} (floor {known[own]}) imports {other} (floor {known[other]})"


def test_the_core_stands_alone():
    """It imports JAX, NumPy and itself; the adaptive solver alone another library."""
    for module, names in sources().items():
        if module.split(".")[0] in CORE:
            outside = {name.split(".")[0] for name in names} - {"jax", "numpy", "scoregen"}
            assert outside - sys.stdlib_module_names == ({"diffrax"} if module == "samplers.adaptive" else set()), (
                module
            )
            assert {name.split(".")[1] for name in names if name.startswith("scoregen.")} <= CORE, module
