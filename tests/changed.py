"""Print the test files that a change can affect, one per line: `make changed` runs them.

    python tests/changed.py              # what differs from the last commit, untracked files too
    python tests/changed.py origin/main  # what differs from another commit or branch

A file depends on the modules of this repository that it imports, inside functions too. A test or a script also depends
on what its strings name: "-m scoregen.run", "orders.py", "docs", "README.md". A change of the environment or of
conftest.py affects everything. Recording which lines each test executes would select fewer tests, but it is wrong with
JAX: a function that an earlier test has compiled is not executed again.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from imports import imported

import scoregen

ROOT = Path(__file__).parents[1]
FOLDERS = ("scoregen", "tests", "configs", "experiments", "benchmarks", "docs")
EVERYTHING = {"tests/conftest.py", "setup.cfg", "pyproject.toml", "requirements.lock", "requirements-launchers.lock"}


def module(path: Path) -> str:
    """The name by which the file is imported. Tests and scripts import the files beside them by the bare name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "scoregen" else ("scoregen", *parts) if parts[0] == "configs" else parts[-1:]
    return ".".join(parts).removesuffix(".__init__")


def names(path: Path) -> Iterator[str]:
    """The dotted names in the file's imports and, outside the package, in its strings; `sg.NAME` with its module."""
    tree, inside, packages = ast.parse(path.read_text()), path.is_relative_to(ROOT / "scoregen"), set()
    yield from imported(tree, lazy=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            packages |= {alias.asname or alias.name for alias in node.names if alias.name == "scoregen"}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not inside:
            yield from re.findall(r"\bscoregen(?:\.\w+)+", node.value)
            yield from re.findall(r"\b(\w+)\.py\b", node.value)
            if node.value == "scoregen" or "-m scoregen" in node.value:
                yield "scoregen.__main__"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in packages:
            yield f"{scoregen._NAMES.get(node.attr, 'scoregen')}.{node.attr}"


@functools.cache
def graph() -> dict[str, set[str]]:
    """The files that each Python file depends on directly. All paths are relative to the root."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    known = {module(path): str(path.relative_to(ROOT)) for path in paths}
    needed = {}
    for path in paths:
        found = set()
        for name in names(path):
            parts = name.split(".")
            # The packages above a module are imported with it. `scoregen` is left out, since it imports nothing.
            found |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)} - {"scoregen"}
        here = str(path.relative_to(ROOT))
        needed[here] = {known[name] for name in found if name in known} - {here}
    # Presets are found in their folder, without an import.
    needed["scoregen/app/config.py"] |= {path for path in needed if path.startswith("configs/")}
    return needed


def affected(changed: Iterable[str]) -> list[str]:
    """The test files, and the modules with examples, that depend on one of these files.

    >>> affected(["scoregen/contrib/weights/card.py"])[-2:]
    ['tests/test_docs.py', 'tests/test_weights.py']
    """
    changed, needed = set(changed), graph()
    tests = sorted(path for path in needed if Path(path).name.startswith("test_") and path.startswith("tests/"))
    removed = {path for path in changed if path.endswith(".py")} - set(needed)
    if changed & EVERYTHING or removed:
        return ["tests", "scoregen"]
    reached, new = set(), changed & set(needed)
    while new:
        reached |= new
        new = {path for path, others in needed.items() if others & new} - reached
    # Files that no module imports, such as pages and data, affect the tests that name them or their top folder.
    others = [Path(path) for path in changed if not (path.startswith(("scoregen/", "tests/")) and path.endswith(".py"))]
    named = {f'"{part}"' for path in others for part in (path.parts[0], path.name)}
    reached |= {path for path in tests if any(name in (ROOT / path).read_text() for name in named)}
    examples = [path for path in needed if path.startswith("scoregen/") and ">>> " in (ROOT / path).read_text()]
    return [path for path in (*examples, *tests) if path in reached]


def differing(commit: str) -> list[str]:
    """Paths of the files that differ from the commit, including untracked files."""
    found = []
    for args in (["diff", "--name-only", commit], ["ls-files", "--others", "--exclude-standard"]):
        found += subprocess.run(["git", *args], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    return found


if __name__ == "__main__":
    print(*affected(differing(sys.argv[1] if len(sys.argv) > 1 else "HEAD")), sep="\n")
