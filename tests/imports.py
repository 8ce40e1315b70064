"""The imports of a Python file."""

import ast
from collections.abc import Iterator


def imported(tree: ast.AST, lazy: bool = False) -> Iterator[str]:
    """Dotted names that are imported, within functions too.

    With `lazy`, also the names under `if TYPE_CHECKING`: a package that imports lazily lists its names there, beside
    the names for annotations.
    """
    for node in ast.iter_child_nodes(tree):
        if not lazy and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        yield from imported(node, lazy)
