"""Configurations: from a constructor's signature to a tree of options, and back to the object.

A table maps names to constructors. `choice` copies every constructor's defaults into the configuration, so each default
is written in one place only. `build` makes the object. A preset is a Python file whose docstring shows its command, and
whose `get_config()` loads the default configuration, `load("default")`, and changes it.

Each option is declared together with its conditions, its commands and its effect (see `scoregen.app.options`, whose
functions can also be imported from here).

Every error that a user can cause is a UsageError of one line.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import linecache
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from scoregen import files
from scoregen.app.options import (
    MODES,
    SECTION,
    Config,
    Option,
    Texts,
    changes,
    changes_network,
    effect,
    idle,
    idle_in_preset,
    is_choice,
    leaves,
    nearest,
    only_trains,
    option,
    parts,
    section,
    sections,
    take_out,
    used,
)
from scoregen.errors import UsageError

# The names of `options` that presets and other modules import from here. The names defined here are public too.
__all__ = [
    "MODES",
    "changes",
    "changes_network",
    "effect",
    "idle",
    "idle_in_preset",
    "only_trains",
    "option",
    "section",
    "used",
]

T = typing.TypeVar("T")

_HERE = Path(__file__).resolve().parent
# The folder of the presets: beside the package in a checkout, inside the package in an installed wheel.
FOLDER = next(
    (folder for folder in (_HERE.parent / "configs", _HERE.parent.parent / "configs") if folder.is_dir()),
    _HERE.parent / "configs",
)

PLAIN = (bool, int, float, str)
# How a message names what an option of this type needs.
WORDS: Mapping[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    tuple: "a tuple",
}


def choice(
    table: Mapping[str, Callable],
    name: str,
    without: tuple[str, ...] = (),
    *,
    when: Mapping[str, Texts] = types.MappingProxyType({}),
    modes: tuple[str, ...] = (),
    changes: str = "",
) -> Config:
    """The section of a configuration that chooses from `table`: the name, and every entry's defaults.

    The options of an entry are the parameters of its constructor (a function, a dataclass, a linen module) whose
    default is an int, a float, a str, a bool or a tuple of these. A default of None counts if the annotation names one
    of these types. All other parameters are left out: `build` supplies a parameter without a default, and a callable
    or a dtype cannot be written on a command line. The parameters in `without` are also left out and given to `build`.

    `when` declares conditions of options by their key in the section, such as {"ssm.slices": ".ssm.exact=false"}.
    An option of a part has an effect only if the part is chosen; this condition need not be declared.

    Raises:
        UsageError: if `name` is not in the table.

    >>> def dsm(weighting="sigma2", slices=1): ...
    >>> section = choice({"dsm": dsm, "ism": lambda process: ...}, "dsm")
    >>> section.name, section.dsm.to_dict(), section.ism.to_dict()
    ('dsm', {'slices': 1, 'weighting': 'sigma2'}, {})
    """
    if name not in table:
        raise UsageError(unknown("choice", name, table))
    made: Config = ConfigDict({"name": name} | {key: _options(make, without) for key, make in table.items()})
    for key in when:
        get(made, key)
    if when or modes or changes:
        made[SECTION] = Option(modes=modes, changes=changes, inner=when)
    return made


def switches(
    table: Mapping[str, Callable],
    on: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    *,
    modes: tuple[str, ...] = (),
    changes: str = "",
) -> Config:
    """The section of a configuration that chooses any number of parts from `table`: an option for each.

    The option is the argument of the part's constructor, a text; "" leaves the part out. If the constructor has no
    argument, the option is true or false. `several` makes the parts.

    Args:
        table: the parts by name. A parameter with a default does not count.
        on: the parts without an argument that are chosen by default.
        without: parts that get no option.
        modes, changes: see `Option`.

    >>> switches({"file": lambda: ..., "service": lambda project: ..., "always": lambda: ...}, ("file",), ("always",))
    file: true
    service: ''
    """
    made: Config = ConfigDict({name: "" if _needed(make) else name in on for name, make in table.items()})
    for name in without:
        del made[name]
    if modes or changes:
        made[SECTION] = Option(modes=modes, changes=changes)
    return made


def several(table: Mapping[str, Callable[..., T]], section: Config, key: str) -> list[T]:
    """The parts that a section of `switches` chooses, in the order of the table.

    `key` is the key of the section in the configuration, for error messages.

    Raises:
        UsageError: if a part refuses its argument.

    >>> table = {"file": lambda: "a file", "service": lambda project: f"the project {project}"}
    >>> several(table, ConfigDict({"file": True, "service": "digits"}), "train.log")
    ['a file', 'the project digits']
    """
    found, wrong = [], []
    for name, make in table.items():
        if given := section.get(name):
            try:
                found.append(make(given) if _needed(make) else make())
            except (TypeError, ValueError, UsageError) as error:
                wrong.append(f"config.{key}.{name}: {first_line(error)}")
    if wrong:
        raise UsageError(*wrong)
    return found


def _needed(make: Callable) -> bool:
    """Whether a constructor has an argument without a default."""
    return any(parameter.default is parameter.empty for parameter in inspect.signature(make).parameters.values())


def pick(table: Mapping[str, T], name: str, what: str) -> T:
    """table[name], for an entry without options; `what` is the option that holds the name.

    Raises:
        UsageError: if the table has no such entry, with the choices.

    >>> pick({"eps": 1, "v": 2}, "x", "config.target")
    Traceback (most recent call last):
    scoregen.errors.UsageError: no config.target 'x': there are: eps, v
    """
    if name not in table:
        raise UsageError(unknown(what, name, table))
    return table[name]


def build(table: Mapping[str, Callable], section: Config, key: str = "", /, **extra: Any) -> Any:
    """The object that a section of `choice` describes: table[section.name](its options, extra).

    `key` is the key of the section in the configuration, for error messages.

    `extra` are arguments that are not in the configuration (the shape of the data, the process). Arguments that the
    constructor does not accept are dropped, so one call works for the whole table. The other arguments override an
    option of the same name.

    Raises:
        UsageError: if the name is not in the table, if the constructor does not have an option, or if it refuses a
            value with a ValueError, or with a TypeError that names the option.

    >>> def vp(beta_max=20.0, steps=10, shape=None):
    ...     return (beta_max, steps, shape)
    >>> section = choice({"vp": vp}, "vp")
    >>> section.vp.beta_max = 5.0
    >>> build({"vp": vp}, section, shape=(2,), process=None)
    (5.0, 10, (2,))
    """
    name: Any = section.name
    if name not in table:
        raise UsageError(unknown("choice", name, table))
    make = table[name]
    chosen: Any = section.get(name, ConfigDict())
    options = tuples(chosen.to_dict())
    accepted = inspect.signature(make).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        for option_name in options:
            if option_name not in accepted:
                raise UsageError(unknown(f"option of {name}", option_name, accepted))
        extra = {known: value for known, value in extra.items() if known in accepted}
    try:
        return make(**(options | extra))
    except (TypeError, ValueError) as error:
        part, line = f"config.{key}.{name}" if key else name, first_line(error)
        of_option = names_option(line, options)
        if isinstance(error, TypeError) and not of_option:
            raise  # a fault of the part, not of a value
        between = "." if of_option else ": "
        raise UsageError(f"{part}{between}{line}") from error


def names_option(line: str, options: Iterable[str]) -> bool:
    """Whether an error is about one of these options: its message then begins with "option=value"."""
    return line.partition("=")[0] in options


# Presets and files


def presets() -> dict[str, str]:
    """Preset's name -> the first line of its docstring, for all presets. No preset is run.

    >>> all(isinstance(line, str) for line in presets().values())
    True
    """
    paths = (path for path in sorted(FOLDER.glob("*.py")) if not path.stem.startswith("_"))
    return {path.stem: _summary(path) for path in paths}


def is_bare(name: str) -> bool:
    """Whether --config=NAME means a preset of the package. If not, it is the path of a file.

    >>> is_bare("ncsn_cifar"), is_bare("mine.py")
    (True, False)
    """
    return not (name.endswith((".py", ".json")) or "/" in name or "\\" in name)


def execute(path: Path, source: str | bytes) -> types.ModuleType:
    """Run a user's Python file and return it as a module.

    Raises:
        UsageError: if the file fails, with the line of the file that failed.
    """
    # Registered, since Python looks up the module of a dataclass or a network that the file defines.
    module = sys.modules[f"file {path}"] = types.ModuleType(f"file {path}")
    module.__file__ = str(path)
    with blaming(path):
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    return module


def load(name: str, over: str = "default", trains: bool = False) -> Config:
    """The configuration of a preset: of a bare name such as "ncsn_cifar", or of the path of a .py file.

    Runs the file and returns the result of its `get_config()`. It is locked, so that a misspelt key is an error, and
    `config.name` is the stem of the file. A bare name works from any directory. The path of a .json file names a
    configuration that a run has saved; its values are set in the preset `over`. Its loggers of your own are left out
    unless the command `trains`, since only a training uses them.

    Raises:
        UsageError: if there is no such preset; if the file is not Python, has no `get_config`, or fails (the message
            names the file and line); if it chooses an unknown part; if a saved configuration has parts that `over`
            does not have.

    >>> load("no_such_preset")
    Traceback (most recent call last):
    scoregen.errors.UsageError: no preset 'no_such_preset': ...
    """
    return load_with_base(name, over, trains)[0]


def load_with_base(name: str, over: str = "default", trains: bool = False) -> tuple[Config, Config]:
    """The result of `load`, and the configuration that the preset starts from and changes."""
    bare = is_bare(name)
    path = FOLDER / f"{name}.py" if bare else Path(name).expanduser()
    if not bare and path.is_dir():
        saved = " (a run's configuration is the config.json in its folder)" if (path / "config.json").is_file() else ""
        raise UsageError(f"{path} is a folder: --config needs a preset's name or the path of a file{saved}")
    try:
        source = path.read_bytes()
        linecache.checkcache(str(path))
    except OSError as error:
        if bare:
            raise UsageError(unknown("preset", name, preset_names())) from None
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from error
    if path.suffix == ".json":
        config = _saved(source.decode(errors="replace"), path, load(over), trains)
        return config, config
    _began.append(None)
    try:
        module = execute(path, source)
        with blaming(path):
            if not hasattr(module, "get_config"):
                raise UsageError(f"{path}: it has no get_config(): define one that returns the configuration")
            config = module.get_config()
    finally:
        base = _began.pop()
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict")
    with config.unlocked():
        config.name = path.stem
        take_out(config, _DECLARED.setdefault(FOLDER, {"name": Option(changes="nothing")}))
    check_choices(config)
    if _began:
        _began[-1] = config.copy_and_resolve_references()
    return config.lock(), config if base is None else base


# A stack with an entry for each preset that is being run: the last configuration that it has loaded.
_began: list[Config | None] = []
# folder of the presets -> (key -> its declaration).
_DECLARED: dict[Path, dict[str, Option]] = {}


def declared() -> Mapping[str, Option]:
    """Dotted key -> the declaration of the option or section."""
    if FOLDER not in _DECLARED:
        load("default")
    return _DECLARED[FOLDER]


@contextlib.contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Run code from a user's file: an exception becomes a UsageError of one line that names the file and the line.

    Raises:
        UsageError: with the exception as its cause.

    >>> with blaming(Path("mine.py")):
    ...     exec(compile("1 / 0", "mine.py", "exec"))
    Traceback (most recent call last):
    scoregen.errors.UsageError: mine.py, line 1: ZeroDivisionError: division by zero
    """
    try:
        yield
    except UsageError:
        raise
    except SyntaxError as error:
        raise UsageError(f"{error.filename or path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = ([frame.lineno for frame in frames if frame.filename == str(path)] or [1])[-1]
        what = _no_option(path, line) or f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"{path}, line {line}: {what}") from error


def _no_option(path: Path, line: int | None) -> str:
    """The error text if this line of the file assigns to an option that does not exist; else ""."""
    written = re.match(r"\s*config\.([\w.]+)\s*=[^=]", linecache.getline(str(path), line or 1))
    if written is None or path == FOLDER / "default.py":
        return ""
    try:
        get(load("default"), written[1])
    except UsageError as error:
        return str(error)
    return ""


def _saved(text: str, path: Path, config: Config, trains: bool) -> Config:
    """Set the values of a saved configuration in `config`, which knows their types."""
    saved = from_json(text, str(path))
    if not trains:
        _leave_out_loggers(saved, config)
    theirs, ours = ({key for key, _ in (*sections(of), *leaves(of))} for of in (saved, config))
    # Only the outermost of the missing keys.
    if foreign := sorted(key for key in theirs - ours if key.rpartition(".")[0] in ours):
        raise UsageError(
            f"{path} has options that this version of scoregen does not have ({', '.join(foreign)}): name the preset "
            "that defines them (--config=FILE.py, or config= of scoregen.load), or train again"
        )
    holds = [{key for key, _ in sections(of)} for of in (config, saved)]
    if wrong := sorted(key for key in holds[0] & theirs - holds[1] if key):
        raise UsageError(f"{path} does not fit this version of scoregen: {', '.join(wrong)}: a section is needed")
    try:
        config.update(saved)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} does not fit this version of scoregen: {first_line(error)}") from None
    check_choices(config)
    return config


def _leave_out_loggers(saved: Config, config: Config) -> None:
    """Remove the options of a saved configuration below `train.log` that `config` does not have."""
    train = saved.get("train")
    chosen = train.get("log") if isinstance(train, ConfigDict) else None
    if isinstance(chosen, ConfigDict):
        with chosen.unlocked():
            for name in set(chosen) - set(config.train.log):
                del chosen[name]


def check_choices(config: ConfigDict) -> None:
    """Refuse an unknown choice: a section's `name` must be the name of one of its subsections.

    A section is a choice if it has a `name` and subsections. `config.name` itself is the name of the preset.

    Raises:
        UsageError: with the choices.

    >>> check_choices(ConfigDict({"loss": {"name": "dms", "dsm": {}, "ssm": {}}}))
    Traceback (most recent call last):
    scoregen.errors.UsageError: no config.loss.name 'dms': did you mean 'dsm'? There are: dsm, ssm
    """
    wrong = [
        unknown(f"config.{key}.name", section.name, parts(section))
        for key, section in sections(config)
        if is_choice(key, section) and section.name not in parts(section)
    ]
    if wrong:
        raise UsageError(*wrong)


def check_seeds(config: ConfigDict) -> None:
    """Raises UsageError unless every seed is in the range of `scoregen.random.check_seed`.

    >>> check_seeds(ConfigDict({"seed": 4294967296}))
    Traceback (most recent call last):
    scoregen.errors.UsageError: config.seed=4294967296: an integer from 0 to 4294967295 is needed
    """
    from scoregen.random import check_seed  # imported here, since it loads JAX

    wrong = []
    for key, value in leaves(config):
        if key.rpartition(".")[2] == "seed" and value is not None:
            try:
                check_seed(value)
            except (TypeError, ValueError) as error:
                wrong.append(f"config.{key.removesuffix('seed')}{error}")
    if wrong:
        raise UsageError(*wrong)


# Values under dotted keys


def get(config: ConfigDict, key: str) -> Any:
    """The value, or the section, under a dotted key.

    Raises:
        UsageError: if the key does not exist, with the nearest key.
    """
    value, passed = config, []
    for name in key.split(".") if key else ():
        where = ".".join(["config", *passed])
        if not isinstance(value, ConfigDict):
            raise UsageError(f"no config.{key}: {where} is a value ({value!r}), not a section")
        if name not in value:
            near = nearest(config, key)
            hint = f"did you mean {' or '.join(f'config.{k}' for k in near)}? " if near else ""
            raise UsageError(f"no config.{key}: {hint}{where} holds: {', '.join(sorted(value)) or 'nothing'}")
        value = value[name]
        passed.append(name)
    return value


def kind_of(config: ConfigDict, key: str) -> type:
    """The type of the option under a dotted key, also if its value is None."""
    holder, _, name = key.rpartition(".")
    return get(config, holder).get_type(name)


def override(config: ConfigDict, key: str, text: str | None, flag: str, negated: bool = False) -> None:
    """Set the option under a dotted key to a text of the command line, converted to the option's type.

    `text` is None for a flag without a value: it sets True, or False if `negated`. `flag` is the name in errors.

    Raises:
        UsageError: if the option does not exist, or the text is not a value of its type.

    >>> config = ConfigDict({"train": {"rate": 1e-4, "widths": (64, 128)}})
    >>> override(config, "train.rate", "1", "--rate")
    >>> override(config, "train.widths", "(8,)", "--widths")
    >>> config.train.rate, config.train.widths
    (1.0, (8,))
    """
    old = get(config, key)
    if isinstance(old, ConfigDict):
        inner = f"{key}.name" if "name" in old else f"{key}.{next(iter(old), '...')}".lstrip(".")
        value = text if "name" in old and text in parts(old) else "..."
        raise UsageError(f"config.{key} is a section, not a value: say --config.{inner}={value}")
    kind = kind_of(config, key)
    example = "" if old is None or kind is bool else f", such as {(0.3, 1.2) if old == () else old!r}"
    if negated and (kind is not bool or text is not None):
        raise UsageError(f"{flag}: the prefix `no` needs a bool, without =; this option is of type {kind.__name__}")
    if kind not in (*PLAIN, tuple):
        raise UsageError(f"{flag} cannot be set on the command line (its value is {old!r}): set it in a preset")
    if text is None and kind is not bool:
        raise UsageError(f"{flag} needs a value: {WORDS[kind]}{example}")
    try:
        value = not negated if text is None else _read(text, kind, old)
    except ValueError:
        raise UsageError(f"{flag}={text}: {WORDS[kind]} is needed{example}") from None
    holder, _, name = key.rpartition(".")
    get(config, holder)[name] = value


def _read(text: str, kind: type, old: Any) -> Any:
    """A text as a value of the type `kind`; ValueError if it is not one."""
    if kind is str:
        return text
    if kind is bool:
        words = {"true": True, "t": True, "1": True, "yes": True, "false": False, "f": False, "0": False, "no": False}
        if text.lower() not in words:
            raise ValueError
        return words[text.lower()]
    if kind is not tuple:
        return kind(text)
    try:
        value = tuples(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    value = value if isinstance(value, tuple) else (value,)
    kinds = {type(element) for element in old or ()} | {int for element in old or () if isinstance(element, float)}
    if kinds and any(type(element) not in kinds for element in value):
        raise ValueError
    if not kinds and any(isinstance(element, str) and element == text for element in value):
        raise ValueError  # a bare word; the tuple probably needs numbers
    return value


# Storage


def to_json(config: ConfigDict) -> str:
    """The configuration as strict JSON, the same text for the same values. `from_json` reads sequences as tuples.

    >>> print(to_json(ConfigDict({"b": (1, 2.0), "a": {}})), end="")
    {
      "a": {},
      "b": [
        1,
        2.0
      ]
    }
    """
    return files.to_json(config.to_dict())


def from_json(text: str, source: str = "the saved configuration") -> Config:
    """The configuration, locked, that `to_json` wrote; `source` is its name in error messages.

    Raises:
        UsageError: if the text is damaged.

    >>> from_json(to_json(ConfigDict({"shape": (8, 8), "rate": 1e-4}))).to_dict()
    {'rate': 0.0001, 'shape': (8, 8)}
    """
    try:
        values = files.from_json(text)
    except ValueError as error:
        values = error
    if not isinstance(values, dict):
        reason = first_line(values) if isinstance(values, ValueError) else "it is not a table"
        raise UsageError(f"{source} is damaged ({reason}): restore it from a copy or delete it")
    return ConfigDict(tuples(values)).lock()


def tuples(value: Any) -> Any:
    """A value in which all lists, also nested ones, are tuples.

    >>> tuples({"shape": [8, [1, 2]]})
    {'shape': (8, (1, 2))}
    """
    if isinstance(value, dict):
        return {key: tuples(inner) for key, inner in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


# Helpers


def preset_names() -> list[str]:
    """The names of the presets, without `default`, on which they are based."""
    return [name for name in presets() if name != "default"]


# What other libraries call a part: its name here, and what else to say.
SYNONYMS = {
    "ddim": ("ancestral", " with the option eta=0"),
    "ddpm": ("ancestral", ""),
    "mse": ("eps", ""),
    "l2": ("eps", ""),
    "epsilon": ("eps", ""),
    "noise": ("eps", ""),
}


def unknown(kind: str, name: Any, known: Iterable[str]) -> str:
    """The line for an unknown name, with the nearest known name and a list of all."""
    known, word = list(known), str(name).lower()
    meant, more = SYNONYMS.get(word, ("", ""))
    near = [meant] if meant in known else difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]!r}{more if near == [meant] else ''}? There" if near else "there"
    return f"no {kind} {name!r}: {hint} are: {', '.join(known) or 'none'}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def _options(make: Callable, without: tuple[str, ...] = ()) -> ConfigDict:
    parameters = inspect.signature(make).parameters
    linen = {"parent", "name"} if "parent" in parameters else set()  # fields that linen adds to every module
    options = {}
    for key, parameter in parameters.items():
        if key in linen or key in without or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if _is_plain(parameter.default):
            options[key] = parameter.default
        elif parameter.default is None and (kind := _optional(make, key)):
            options[key] = placeholder(kind)
    return ConfigDict(options)


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _optional(make: Callable, key: str) -> type | None:
    """The plain type in an annotation such as `int | None`."""
    try:
        hint = inspect.signature(make, eval_str=True).parameters[key].annotation
    except NameError:  # only a type checker can resolve this annotation
        return None
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return None
    kinds = [typing.get_origin(kind) or kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and kinds[0] in (*PLAIN, tuple) else None


def _summary(path: Path) -> str:
    try:
        return (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]
    except (SyntaxError, ValueError, OSError):
        return "(cannot be read)"
