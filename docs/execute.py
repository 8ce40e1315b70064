"""Run the code of a page as a reader would: from the top, in one namespace, in an empty folder.

    python docs/execute.py docs/tour.ipynb docs/recipes/loss.md

runs these pages, and writes the output of each piece of code, and the pictures of a notebook, below the piece.
tests/test_docs.py compares the output instead. A piece of code whose first line is `# NAME.py` is also written to a
file of that name.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A piece of code, and its output if the page shows it.
FENCED = re.compile(r"^```python\n(?P<code>.*?)^```$(?:\n\n```text\n(?P<shown>.*?)^```$)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclasses.dataclass
class Piece:
    """A piece of code, its place, and its output on the page: text, and PNGs of a notebook."""

    where: str
    code: str
    shown: str = ""
    pictures: list[bytes] = dataclasses.field(default_factory=list)


def pieces(path: Path) -> list[Piece]:
    """The code of a Markdown file or a notebook, in order."""
    if path.suffix == ".ipynb":
        return [_of_cell(cell, f"{path.name}, cell {i}") for i, cell in enumerate(_cells(path)) if _is_code(cell)]
    text = path.read_text()
    return [
        Piece(f"{path.name}, line {text[: found.start()].count(chr(10)) + 2}", found["code"], found["shown"] or "")
        for found in FENCED.finditer(text)
    ]


def run(path: Path, folder: Path) -> Iterator[tuple[Piece, Piece]]:
    """Run the pieces of a page in order in `folder`. Yields each piece as on the page, and with its new output."""
    import matplotlib.pyplot as plt

    namespace: dict[str, Any] = {"__name__": "__main__"}
    todo = pieces(path)
    with contextlib.chdir(folder):
        for piece in todo:
            if found := re.match(r"# (\w+\.py)\n", piece.code):
                Path(found[1]).write_text(piece.code)
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(piece.code, piece.where, "exec", dont_inherit=True), namespace)
            pictures = []
            for number in plt.get_fignums():
                drawn = io.BytesIO()
                # Without the version of matplotlib, so that the same picture is the same file.
                plt.figure(number).savefig(drawn, dpi=80, bbox_inches="tight", metadata={"Software": None})
                pictures.append(drawn.getvalue())
            plt.close("all")
            yield piece, dataclasses.replace(piece, shown=out.getvalue(), pictures=pictures)


def same(found: str, shown: str, rough: float = 0) -> bool:
    """Whether two outputs agree: the same words, and each number to the digits shown, up to one in the last digit.

    A number may also differ by the share `rough` of its value, since results of training depend on the machine.
    Integers must be equal.

    >>> same("a 0.1249 b", "a  0.12 b"), same("a 0.149", "a 0.12"), same("a 1", "b 1"), same("x 1.99e-5", "x 2e-05")
    (True, False, False, True)
    >>> same("a 1.4", "a 1.0", 0.5), same("a 14", "a 10", 0.5)
    (True, False)
    """
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (found, shown)]
    numbers = [NUMBER.findall(text) for text in (found, shown)]
    if words[0] != words[1]:
        return False
    pairs = [(float(a), float(b), _last(b)) for a, b in zip(*numbers, strict=True)]
    return all(abs(a - b) <= (last and max(last, rough * abs(b))) for a, b, last in pairs)


def _last(number: str) -> float:
    """One in the last digit of a number as it is written; 0 for an integer, which must be equal."""
    mantissa, _, exponent = number.partition("e")
    if "." not in mantissa and not exponent:
        return 0
    return 1.001 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def store(path: Path, found: list[Piece]) -> None:
    """Write the output and the pictures of the pieces below them."""
    if path.suffix == ".ipynb":
        page, left = json.loads(path.read_text()), iter(found)
        for cell in filter(_is_code, page["cells"]):
            cell["outputs"] = _outputs(next(left))
        path.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n")
        return
    left = iter(found)

    def filled(match: re.Match[str]) -> str:
        shown = next(left).shown
        return f"```python\n{match['code']}```" + (f"\n\n```text\n{shown}```" if shown else "")

    path.write_text(FENCED.sub(filled, path.read_text()))


def _cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["cells"]


def _is_code(cell: dict[str, Any]) -> bool:
    return cell["cell_type"] == "code"


def _of_cell(cell: dict[str, Any], where: str) -> Piece:
    shown = "".join("".join(output.get("text", "")) for output in cell["outputs"])
    pictures = [output["data"]["image/png"] for output in cell["outputs"] if "data" in output]
    return Piece(where, "".join(cell["source"]), shown, [base64.b64decode(picture) for picture in pictures])


def _outputs(piece: Piece) -> list[dict[str, Any]]:
    text = [{"name": "stdout", "output_type": "stream", "text": piece.shown.splitlines(keepends=True)}]
    pictures = [
        {"data": {"image/png": base64.b64encode(png).decode()}, "metadata": {}, "output_type": "display_data"}
        for png in piece.pictures
    ]
    return text * bool(piece.shown) + pictures


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    for name in sys.argv[1:]:
        page = Path(name).resolve()
        with tempfile.TemporaryDirectory() as empty:
            store(page, [found for _, found in run(page, Path(empty))])
