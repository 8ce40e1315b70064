"""Check every process x target x loss against closed forms, and print the matrix of the errors.

    scoregen conformance                     the whole matrix, in some minutes
    scoregen conformance --small             one target for each process and loss
    scoregen conformance --out=matrix.md     also write the matrix to a file

What a cell means. The exact denoiser of the data is known. The network is this denoiser plus an error with parameters
theta, and its output is the target's mixture of data and noise. For every loss, the expected gradient at a noise level
must be the gradient of

    w E || x0_theta - x0 ||^2

where w is the weight of the loss according to its paper. The gradient must also vanish where the error is 0. There are
two data sets, a Gaussian in the plane and a mixture of two Gaussians on the line. The number in a cell is the larger of
their two errors, relative to the largest component of the true gradient. An error of 1e-05 is allowed, and 1e-03 more
for fdssm, whose bias is the square of its step. A letter in a cell means that the combination is refused; the reason is
below the table.

Exit codes: 0 no cell failed; 1 some cells failed; 2 an error that you can fix, one line each; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from scoregen.app.arguments import Flag, read
from scoregen.app.command import answer, say, say_flags, say_help
from scoregen.errors import UsageError
from scoregen.files import check_writable, whole


def main(argv: Sequence[str] | None = None) -> int:
    """Print the matrix. Returns the exit code, 1 if a cell failed."""
    return answer(argv, _run, _help, bare=True)


FLAGS = (
    Flag("small", "try one target for each process and loss; the other cells stay blank", False),
    Flag("out", "a Markdown file for the matrix, written at the end", value="FILE"),
)


def _help(console: Console) -> None:
    lines = [(flag.usage, flag.help) for flag in FLAGS]
    say_help(console, "conformance", __doc__, lambda: say_flags(console, lines))


def _run(argv: list[str], console: Console) -> int:
    options = read(argv, FLAGS)
    options.check()
    small, out = options.values["small"], options.values["out"]
    out = None if out is None else _writable(out)

    # Imported here, so that a wrong flag is reported before JAX is loaded.
    from scoregen.testing.conformance import check, combinations, table
    from scoregen.train.log import Bar

    chosen, cells = combinations(small), []
    with Bar(console, "checking, cell", len(chosen)) as bar:
        for i, combination in enumerate(chosen):
            cells.append(check(*combination))
            if not cells[-1].passed:
                found = f"error {cells[-1].error:.2e}, but only {cells[-1].allowed:.0e} is allowed"
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
    """The path that --out names. If it cannot be written, the error comes now and not after minutes."""
    path = Path(name).expanduser().resolve()  # write to the target of a link, so that the link stays
    if not name or name.endswith("/") or (path.exists() and not path.is_file()):
        raise UsageError(f"--out={name}: a file is needed, such as --out=matrix.md")
    check_writable(path.parent)
    return path
