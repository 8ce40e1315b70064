"""The file of a sweep: its cells, their folders, and the networks that cells share."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import itertools
import json
import operator
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scoregen.app import config as config_lib
from scoregen.app.arguments import parse
from scoregen.app.command import from_here, name_of, train_command
from scoregen.app.config import Config, blaming
from scoregen.errors import UsageError

OWN = "sweep."  # the prefix of options for measure(run), which are not in the configuration
_COLUMNS = ("cell", "cells", "seed", "finished", "failed", "stale", "seconds")  # beside options and results
_KEY = 8  # the number of digits of a key in a folder's name


def grid(*parts: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cross product of its parts, as cells.

    A part is a dict or a list of dicts. In a dict, the elements of a list or range are alternatives; anything else,
    also a tuple, is one value. The dicts of a list are alternatives that set several options at once. Later parts
    override earlier ones.

    >>> grid({"config": "ddpm_toy", "loss.name": ["eps", "ssm"]}, [{"seed": 1}, {"seed": 2, "target": "v"}])[1:3]
    [{'config': 'ddpm_toy', 'loss.name': 'eps', 'seed': 2, 'target': 'v'},
     {'config': 'ddpm_toy', 'loss.name': 'ssm', 'seed': 1}]
    """

    def alternatives(part: Any) -> list[Any]:
        if not isinstance(part, Mapping):
            return list(part)
        lists = [value if isinstance(value, list | range) else [value] for value in part.values()]
        return [dict(zip(part, values, strict=True)) for values in itertools.product(*lists)]

    chosen = itertools.product(*map(alternatives, parts))
    return [functools.reduce(operator.or_, map(dict, each), {}) for each in chosen]


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One run, or one computation, of a sweep.

    Attributes:
        name: the name of the cell's folder: the options that distinguish it, and the first digits of its key.
        key: a digest of everything that the cell's results depend on, except the code.
        said: its options, as in the file and on the command line.
        preset: the name or the path of its preset, which may define its own parts.
        config: its configuration; None if nothing is trained.
        options: the options for measure(run).
        training: the name of the folder of its network, which several cells may share.
        command: the command that trains this cell alone; "" if nothing is trained.
        idle: option of the command line without effect on this cell -> the reason.
    """

    name: str
    key: str
    said: dict[str, Any]
    preset: str | None
    config: Config | None
    options: dict[str, Any]
    training: str | None
    command: str = ""
    idle: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def group(self) -> str:
        """A text that is the same for cells that differ only in their seed."""
        return repr(sorted((key, value) for key, value in self.said.items() if key != "seed"))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The content of a sweep's file.

    Attributes:
        title: the first line of its docstring.
        claim: the rest of its docstring.
        measure: its function measure(run), or None.
        draw: its function draw(rows, path), or None.
        stamp: a digest of measure(run), see `stamp_of`.
        flags: options of the command line, such as --config.train.steps=100, for all cells.
    """

    path: Path
    title: str
    claim: str
    cells: list[Cell]
    measure: Callable[[Any], Mapping[str, Any]] | None
    draw: Callable[[Any, Path], None] | None
    stamp: str
    flags: Sequence[str] = ()

    def commands(self, cell: Cell, out: Path) -> list[str]:
        """The commands that reproduce a cell: the training alone, and the cell in its sweep with measure(run)."""
        again = ["scoregen", "sweep", from_here(self.path), f"--out={from_here(out)}", *self.flags]
        of_sweep = [shlex.join([*again, f"--only={cell.name}", "--again"])] if self.measure else []
        return [cell.command, *of_sweep] if cell.command else of_sweep


def read(path: Path, flags: Sequence[str] = ()) -> Sweep:
    """Read the sweep in a file; `flags` such as --config.train.steps=100 change every cell that has a configuration.

    Raises:
        UsageError: if the file cannot be read, is not Python, fails, or yields no cells; for all wrong cells (an option
            that does not exist or has no effect, two equal cells); if two columns of the table would have the same
            name.
    """
    source, module = execute(path)
    if not callable(module.get("cells")):
        raise UsageError(f"{path}: it has no cells(): define a function cells() that yields a dict for each cell")
    with blaming(path):
        said = module["cells"]()
        if not isinstance(said, Iterable):
            raise UsageError(f"{path}: cells() returned {said!r}: it must yield a dict for each cell")
        said = list(said)
    if not said:
        raise UsageError(f"{path}: cells() yields no cells")
    measure = module.get("measure")
    cells: dict[str, tuple[int, Cell]] = {}
    wrong: dict[str, list[str]] = {}  # each fault is reported once, with all its cells
    for i, one in enumerate(said, 1):
        try:
            cell = _cell(one, path, flags)
            if cell.config is None and measure is None:
                raise UsageError("the config is None, so the file needs a measure(run)")
        except UsageError as error:
            for line in error.args:
                wrong.setdefault(line, []).append(str(i))
            continue
        first, _ = cells.setdefault(cell.key, (i, cell))
        if first != i:
            wrong.setdefault("are the same", []).append(f"{first} and {i}")
    for flag in flags:
        idle = [cell.idle.get(flag, "") for _, cell in cells.values() if cell.config is not None]
        if not idle and not wrong:
            raise UsageError(f"{flag}: no cell of {path} has a configuration")
        if idle and all(idle):
            wrong.setdefault(idle[0], [])
    if wrong:
        raise UsageError(*(_fault(path, numbers, line) for line, numbers in wrong.items()))
    _check_headings([cell for _, cell in cells.values()], path)
    title, _, claim = (module.get("__doc__") or path.parent.name).strip().partition("\n")
    named = _named([cell for _, cell in cells.values()])
    return Sweep(path, title, claim.strip(), named, measure, module.get("draw"), stamp_of(source), flags)


def _fault(path: Path, numbers: Sequence[str], line: str) -> str:
    """One line for a fault, with all cells that have it."""
    if line == "are the same":
        return f"{path}: cells {', '.join(numbers)} are the same"
    if not numbers:
        return f"{line} (in every cell)"
    many = f"cells {', '.join(numbers[:5])}" + f" and {len(numbers) - 5} more" * (len(numbers) > 5)
    return f"{path}, {many if len(numbers) > 1 else f'cell {numbers[0]}'}: {line}"


def placed(sweep: Sweep, out: Path) -> Sweep:
    """The same sweep with the names of existing folders, which were named before an option was added."""

    def names(kind: str) -> dict[str, str]:
        return {path.name[-_KEY:]: path.name for path in (out / kind).glob("*-*")}

    cells, trained = names("cells"), names("trained")

    def of(cell: Cell) -> Cell:
        training = cell.training and trained.get(cell.training[-_KEY:], cell.training)
        return dataclasses.replace(cell, name=cells.get(cell.name[-_KEY:], cell.name), training=training)

    return dataclasses.replace(sweep, cells=[of(cell) for cell in sweep.cells])


def apart(cells: Sequence[Cell]) -> list[str]:
    """The options that differ between cells, in the order of the sweep's file."""
    every = dict.fromkeys(key for cell in cells for key in cell.said)
    return [key for key in every if len({repr(cell.said.get(key)) for cell in cells}) > 1]


def short(key: str) -> str:
    """An option's key as the heading of a column.

    >>> short("sampler.step.name"), short("sweep.steps")
    ('sampler.step', 'steps')
    """
    return key.removeprefix(OWN).removesuffix(".name")


def headings(cells: Sequence[Cell]) -> list[str]:
    """The columns of the table without the measured values."""
    return [*map(short, apart(cells)), *_COLUMNS]


def execute(path: Path) -> tuple[str, dict[str, Any]]:
    """The source of a sweep's file, and its global names. It can import modules from its folder, like a script."""
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"cannot read the sweep {path}: {reason}") from None
    if (beside := str(path.parent.resolve())) not in sys.path:
        sys.path.insert(0, beside)
    return source, config_lib.execute(path, source).__dict__


def _cell(said: Any, path: Path, flags: Sequence[str]) -> Cell:
    if not isinstance(said, Mapping) or not all(isinstance(key, str) for key in said):
        raise UsageError(f"{said!r} is not a dict of options")
    if "config" not in said:
        raise UsageError("it has no config: give a preset, the path of a .py file, or None if nothing is trained")
    said = {key: _plain(key, value) for key, value in said.items()}
    preset = said["config"]
    own = {key: value for key, value in said.items() if key.startswith(OWN)}
    rest = {key: value for key, value in said.items() if key != "config" and key not in own}
    options = {key.removeprefix(OWN): value for key, value in own.items()}
    if preset is None:
        if twice := sorted(options.keys() & rest):
            raise UsageError(f"{twice[0]} and {OWN}{twice[0]} are the same option if the config is None")
        options |= rest
        key = _digest({"options": options})
        return Cell("", key, said, None, None, options, None)
    if not isinstance(preset, str):
        raise UsageError(f"config={preset!r}: a preset or the path of a .py file is needed")
    if not config_lib.is_bare(preset):
        preset = str((path.parent / Path(preset).expanduser()).absolute())
    argv = [f"--config={preset}", *(f"--config.{key}={value}" for key, value in rest.items()), *flags]
    given = parse([argument for argument in argv if not _repeated(argument, argv)])
    config = given.config
    idle = {text: why for key, text in given.said().items() for why in config_lib.idle(config, {key: text})}
    if own_idle := [why for text, why in idle.items() if text not in flags]:
        raise UsageError(*own_idle)
    # Read from the configuration, where a flag has replaced the file's value, and 1 is 1.0 for a float option.
    changed = (key for key, _, _ in given.changes)
    rest = {key: config_lib.get(config, key) for key in (*rest, *changed)}
    used = [(key, value) for key, value in config_lib.leaves(config_lib.used(config)) if key != "name"]
    effects = {key: config_lib.effect(key, config) for key, _ in used}
    results = {key: value for key, value in used if effects[key] != "nothing"}
    key = _digest({"config": results, "options": options})
    trained = {key: value for key, value in results.items() if effects[key] in ("network", "training")}
    command = train_command(from_here(preset), config, given.changes)
    return Cell("", key, said | rest, preset, config, options, _digest(trained), command, idle)


def _repeated(argument: str, argv: Sequence[str]) -> bool:
    """Whether a later argument sets the same option, since a flag of the command line overrides the file."""
    flag = argument.partition("=")[0]
    return any(later.partition("=")[0] == flag for later in argv[argv.index(argument) + 1 :])


def _check_headings(cells: Sequence[Cell], path: Path) -> None:
    seen: dict[str, str] = dict.fromkeys(_COLUMNS, "a column of every table")
    for key in apart(cells):
        if key == "seed":
            continue
        if short(key) in seen:
            raise UsageError(f"{path}: the column for {key} would be named {short(key)!r}, like {seen[short(key)]}")
        seen[short(key)] = key


def _named(cells: list[Cell]) -> list[Cell]:
    """The cells with readable names for their folders."""
    keys = apart(cells)

    def name(cell: Cell, key: str, of_training: bool) -> str:
        preset = Path(cell.said["config"] or "computed").stem
        said = {option: cell.said[option] for option in keys if option in cell.said}
        if of_training:
            said = {k: v for k, v in said.items() if k == "config" or _trains(k, cell)}
        stem = preset if "config" in said or not said else ""
        text = name_of(stem, ((short(option), value) for option, value in said.items() if option != "config"))
        readable = text.strip(",").encode()[:100].decode(errors="ignore")  # a file system counts bytes
        return f"{readable}-{key[:_KEY]}"

    def named(cell: Cell) -> Cell:
        training = cell.training and name(cell, cell.training, True)
        return dataclasses.replace(cell, name=name(cell, cell.key, False), training=training)

    return [named(cell) for cell in cells]


def _trains(key: str, cell: Cell) -> bool:
    return not key.startswith(OWN) and config_lib.effect(key, cell.config) in ("network", "training")


def _plain(key: str, value: Any) -> Any:
    """A value that JSON and a flag can express."""
    if isinstance(value, list | tuple):
        return tuple(_plain(key, each) for each in value)
    value = value.item() if getattr(value, "ndim", None) == 0 else value  # a scalar of NumPy's
    if isinstance(value, str | bool | int | float) or (value is None and key == "config"):
        return value
    raise UsageError(f"{key}={value!r}: a number, a string, a bool or a tuple of these is needed")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def stamp_of(source: str) -> str:
    """A digest of measure(run) and of all code in its file that it uses, without comments and layout."""
    defined: dict[str, list[ast.stmt]] = {}
    for node in ast.parse(source).body:
        for name in _bound(node):
            defined.setdefault(name, []).append(node)
    wanted, found = ["measure", ""], {}
    while wanted:
        for node in defined.pop(wanted.pop(), ()):
            found[node.lineno, node.col_offset] = ast.unparse(node)
            wanted += [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]
    return _digest([found[place] for place in sorted(found)])


def _bound(node: ast.stmt) -> set[str]:
    """The names that a top-level statement defines; "" for a statement that changes an object, such as x.y = 1."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}  # names inside are local
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(each.asname or each.name).partition(".")[0] for each in node.names}
    if isinstance(node, ast.Expr):
        return set() if isinstance(node.value, ast.Constant) else {""}  # a docstring is no call
    stored = [each for each in ast.walk(node) if isinstance(getattr(each, "ctx", None), ast.Store)]
    return {each.id if isinstance(each, ast.Name) else "" for each in stored} or {""}
