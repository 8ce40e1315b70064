"""Check every process x target x loss against closed forms, and print the matrix of the errors.

    scoregen conformance                     the whole matrix, in some minutes
    scoregen conformance --small             one target for each process and loss
    scoregen conformance --out=matrix.md     and write it to a file

What a cell means. On data whose exact denoiser is known, the network is that denoiser plus an error with parameters,
and gives the target's mixture of data and noise. Whatever the loss, its expected gradient at a noise level must be the
gradient of

    w E || x0_theta - x0 ||^2

with the weight w that the loss has according to its paper, and vanish where the error does. The figure in a cell is the
larger of two data sets' errors (a Gaussian in the plane, a mixture of two on the line), relative to the largest
component of the true gradient; 1e-05 is allowed, and 1e-03 more for fdssm, whose bias is the square of its step. A
letter stands for a combination that is refused, with the reason below the table.

Exit codes: 0 no cell failed; 1 one did; 2 an error that you can fix, in one line; 130 ended by Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from scoregen.app.arguments import Flag, read
from scoregen.app.command import answer, say
from scoregen.errors import UsageError
from scoregen.files import check_writable, whole


def main(argv: Sequence[str] | None = None) -> int:
    """Print the matrix; 1 if a cell failed."""
    return answer(argv, _run, _help, bare=True)


FLAGS = (
    Flag("small", "one target for each process and loss; the other cells stay blank", False),
    Flag("out", "the Markdown file for the matrix, written once it is complete", value="FILE"),
)


def _help(console: Console) -> None:
    say(console, __doc__ or "")
    for flag in FLAGS:
        say(console, f"  {flag.usage:<14} {flag.help}")


def _run(argv: list[str], console: Console) -> int:
    options = read(argv, FLAGS)
    options.check()
    small, out = options.values["small"], options.values["out"]
    out = None if out is None else _writable(out)

    # Imported here, so that a wrong flag is answered before JAX is loaded.
    from scoregen.testing.conformance import check, combinations, table
    from scoregen.train.log import Bar

    chosen, cells = combinations(small), []
    with Bar(console, "checking, cell", len(chosen)) as bar:
        for i, combination in enumerate(chosen):
            cells.append(check(*combination))
            if not cells[-1].passed:
                found = f"{cells[-1].error:.2e}, where {cells[-1].allowed:.0e} is allowed"
                say(console, f"FAILED {' x '.join(combination)}: {found}")
            bar.update(i + 1)
    text = table(cells)
    say(console, text)
    if out is not None:
        with whole(out) as fresh:
            fresh.write_text(text, encoding="utf-8")
    ran = [cell for cell in cells if cell.refused is None]
    failed = sum(not cell.passed for cell in ran)
    say(console, f"{len(cells)} cells: {len(ran) - failed} passed, {failed} failed, {len(cells) - len(ran)} refused")
    return int(failed > 0)


def _writable(name: str) -> Path:
    """The path that --out names, if a file can be written there: an error now and not after minutes."""
    path = Path(name).expanduser().resolve()  # the target of a link, which stays a link
    if not name or name.endswith("/") or (path.exists() and not path.is_file()):
        raise UsageError(f"--out={name}: a file is needed, such as --out=matrix.md")
    check_writable(path.parent)
    return path
