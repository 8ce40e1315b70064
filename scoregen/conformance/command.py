"""Hold every process x target x objective to closed forms, and print the matrix of what was found.

    python -m scoregen.conformance                     the whole matrix, in some minutes
    python -m scoregen.conformance --small             one target for each process and objective
    python -m scoregen.conformance --out=matrix.md     and write it down

What a cell means. On data whose exact denoiser is known, the network is that denoiser plus an error with parameters,
and gives what the target asks for, spelled out anew from the papers. Whatever the objective, its expected gradient at a
noise level must be that of

    w E || x0_theta - x0 ||^2

with the weight w that the objective has by its paper, and vanish where the error does. The figure in a cell is the
larger of two data sets' errors (a Gaussian in the plane, a mixture of two on the line), relative to the largest
component of the true gradient; 1e-05 is allowed, and 1e-03 for fdssm, which is biased by the square of its step. A
letter stands for what is refused, with the reason below the table.

Exit codes: 0 no cell failed; 1 one did; 2 something that you can mend, said in one line; 130 ended by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from scoregen.command import Parser, answer, say
from scoregen.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Print the matrix; 1 if a cell failed."""
    return answer(argv, _run, _help, bare=True)


def _help(console: Console) -> None:
    say(console, __doc__ or "")
    say(console, "--small     one target for each process and objective; the cells of the others stay blank")
    say(console, "--out=FILE  where the matrix is written, in Markdown, once it is whole")


def _run(argv: list[str], console: Console) -> int:
    parser = Parser("scoregen.conformance")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args(argv)
    out = None if options.out is None else _writable(options.out)

    # Here and not above: a wrong flag is answered before JAX is loaded.
    from scoregen.conformance.matrix import check, combinations, table
    from scoregen.log import Bar

    chosen, cells = combinations(options.small), []
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
        _write(out, text)
    ran = [cell for cell in cells if cell.refused is None]
    failed = sum(not cell.passed for cell in ran)
    say(console, f"{len(cells)} cells: {len(ran) - failed} passed, {failed} failed, {len(cells) - len(ran)} refused")
    return int(failed > 0)


def _writable(name: str) -> Path:
    """The path that --out names, if a file can be put there: what cannot be written is said now, not after minutes."""
    path = Path(name).expanduser().resolve()  # where a link points, for it is to stay one
    if not name or name.endswith("/") or (path.exists() and not path.is_file()):
        raise UsageError(f"--out={name}: a file is needed, such as --out=matrix.md")
    _write(path, None)
    return path


def _write(path: Path, text: str | None) -> None:
    """Put a file in place when it is whole, so that nothing cuts the one that is there short; None: only try to."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text or "", encoding="utf-8")
        if text is not None:
            os.replace(fresh, path)
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {error.strerror}; choose another --out") from None
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()
