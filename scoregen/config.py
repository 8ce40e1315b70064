"""Configurations: from a constructor's signature to the command line, and back to the object.

A table maps names to constructors. `choice` writes every constructor's defaults into the configuration,
so that a default stands in one place; the command line overrides them by their dotted keys; `build` makes
the object. A preset is a Python file with a `get_config()` that returns a diff of `load("default")`, and
whose docstring holds its command.

Whatever the person at the keyboard can get wrong ends in a UsageError of one line.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import json
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from scoregen.errors import UsageError

T = typing.TypeVar("T")
# A ConfigDict. What its attributes are depends on the preset, which no type checker runs.
Config: typing.TypeAlias = Any

_HERE = Path(__file__).resolve().parent
# The presets: beside the modules in an installed wheel, beside the package in a checkout.
FOLDER = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"

_PLAIN = (bool, int, float, str)


def choice(table: Mapping[str, Callable], name: str, without: tuple[str, ...] = ()) -> Config:
    """The section of a configuration that chooses from `table`: the name, and every entry's defaults.

    The options of an entry are the parameters of its constructor (a function, a dataclass, a linen
    module) whose default is an int, a float, a str, a bool or a tuple of these, or is None where the
    annotation says which of these it may be. Others are left out: what has no default is for `build` to
    supply, and a callable or a dtype cannot be said on a command line. So are those named in `without`, which `build`
    is told by the run although they have a default.

    Raises UsageError if `name` is not in the table.

    >>> def dsm(weighting="sigma2", slices=1): ...
    >>> section = choice({"dsm": dsm, "ism": lambda process: ...}, "dsm")
    >>> section.name, section.dsm.to_dict(), section.ism.to_dict()
    ('dsm', {'slices': 1, 'weighting': 'sigma2'}, {})
    """
    if name not in table:
        raise UsageError(_unknown("choice", name, table))
    return ConfigDict({"name": name} | {key: _options(make, without) for key, make in table.items()})


def pick(table: Mapping[str, T], name: str, what: str) -> T:
    """table[name], for an entry without options; `what` is what the person would have to say otherwise.

    Raises UsageError that lists the choices.

    >>> pick({"eps": 1, "v": 2}, "x", "config.target")
    Traceback (most recent call last):
    scoregen.errors.UsageError: no config.target 'x': there are: eps, v
    """
    if name not in table:
        raise UsageError(_unknown(what, name, table))
    return table[name]


def build(table: Mapping[str, Callable], section: Config, **extra: Any) -> Any:
    """The object that a section of `choice` describes: table[section.name](its options, extra).

    `extra` is what the run knows and the configuration does not (the shape of the data, the process).
    Those that the constructor does not accept are dropped, so that one call serves the whole table;
    those that it does accept win over an option of the same name.

    Raises UsageError if the name is not in the table, if an option is not the constructor's, or if the
    constructor refuses a value with a ValueError.

    >>> def vp(beta_max=20.0, steps=10, shape=None):
    ...     return (beta_max, steps, shape)
    >>> section = choice({"vp": vp}, "vp")
    >>> section.vp.beta_max = 5.0
    >>> build({"vp": vp}, section, shape=(2,), process=None)
    (5.0, 10, (2,))
    """
    name: Any = section.name
    if name not in table:
        raise UsageError(_unknown("choice", name, table))
    make = table[name]
    chosen: Any = section.get(name, ConfigDict())
    options = tuples(chosen.to_dict())
    accepted = inspect.signature(make).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        for key in options:
            if key not in accepted:
                raise UsageError(_unknown(f"option of {name}", key, accepted))
        extra = {key: value for key, value in extra.items() if key in accepted}
    try:
        return make(**(options | extra))
    except ValueError as error:
        raise UsageError(f"{name}: {first_line(error)}") from error


def presets() -> dict[str, str]:
    """Every preset's name and the first line of its docstring, without running any.

    >>> all(isinstance(line, str) for line in presets().values())
    True
    """
    paths = (path for path in sorted(FOLDER.glob("*.py")) if not path.stem.startswith("_"))
    return {path.stem: _summary(path) for path in paths}


def is_bare(name: str) -> bool:
    """Whether --config=NAME means a preset that comes with the package, and not the path of a file.

    >>> is_bare("ncsn_cifar"), is_bare("mine.py")
    (True, False)
    """
    return not (name.endswith((".py", ".json")) or "/" in name or "\\" in name)


def execute(path: Path, source: str | bytes) -> types.ModuleType:
    """A person's own Python file, run: what it defines.

    Raises:
        UsageError: if it fails, with the line of it that does.
    """
    # Registered, since a dataclass or a network that the file defines is looked up there.
    module = sys.modules[f"file {path}"] = types.ModuleType(f"file {path}")
    module.__file__ = str(path)
    with blaming(path):
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    return module


def load(name: str, over: str = "default") -> Config:
    """The configuration of a preset: of a bare name such as "ncsn_cifar", or of the path of a .py file.

    Runs the file and returns what its `get_config()` returns, locked, so that a misspelt key is an error,
    and with `config.name` set to the stem of the file. A bare name works from any directory. The path of a
    .json file is that of a configuration that a run has saved.

    Raises UsageError if there is no such preset, if the file is not Python, has no `get_config`, or
    fails (the file and line are named), or if it chooses a name that is not there to be chosen; and if a saved
    configuration has parts that the preset which it is laid `over` has not.

    >>> load("no_such_preset")
    Traceback (most recent call last):
    scoregen.errors.UsageError: no preset 'no_such_preset': ...
    """
    bare = is_bare(name)
    path = FOLDER / f"{name}.py" if bare else Path(name).expanduser()
    try:
        source = path.read_bytes()
    except OSError as error:
        if bare:
            raise UsageError(_unknown("preset", name, _names())) from None
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from error
    if path.suffix == ".json":
        return _saved(source.decode(errors="replace"), path, load(over))
    module = execute(path, source)
    with blaming(path):
        if not hasattr(module, "get_config"):
            raise UsageError(f"{path}: it has no get_config(): define one that returns the configuration")
        config = module.get_config()
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict")
    with config.unlocked():
        config.name = path.stem
    check_choices(config)
    return config.lock()


@contextlib.contextmanager
def blaming(path: Path) -> Iterator[None]:
    """While code of the person's own runs, from this file: what it raises becomes one line that says where.

    Raises UsageError, with the exception as its cause.

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
        line = [frame.lineno for frame in frames if frame.filename == str(path)][-1:] or [1]
        raise UsageError(f"{path}, line {line[0]}: {type(error).__name__}: {first_line(error)}") from error


def _saved(text: str, path: Path, config: Config) -> Config:
    """A saved configuration over one that knows the types of its values."""
    saved = from_json(text, str(path))
    parts, known = ({key for key, _ in _sections(of)} for of in (saved, config))
    if foreign := sorted(parts - known):
        raise UsageError(
            f"{path} has parts that are not scoregen's own ({', '.join(foreign)}): say --config=FILE.py, the preset "
            "that brings them"
        )
    try:
        config.update(saved)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} does not fit this version of scoregen: {first_line(error)}") from None
    check_choices(config)
    return config


def check_choices(config: ConfigDict) -> None:
    """Refuses a choice that cannot be made: a section's `name` must be that of a section beside it.

    A section is a choice if it has a `name` and holds sections; `config.name` itself is the preset's.

    Raises UsageError that lists the choices.

    >>> check_choices(ConfigDict({"loss": {"name": "dms", "dsm": {}, "ssm": {}}}))
    Traceback (most recent call last):
    scoregen.errors.UsageError: no config.loss.name 'dms': did you mean 'dsm'? There are: dsm, ssm
    """
    for key, section in _sections(config):
        names = [name for name, value in section.items() if isinstance(value, ConfigDict)]
        if key and names and "name" in section and section.name not in names:
            raise UsageError(_unknown(f"config.{key}.name", section.name, names))


def parse(
    argv: Sequence[str], flags: absl_flags.FlagValues | None = None, needed: bool = True
) -> tuple[Config, list[tuple[str, Any, Any]]]:
    """The configuration that a command line asks for, and its `changes` from the preset.

    `argv` is without the program's name. The configuration is None if none is named and none is `needed`.

    `--config=NAME` loads a preset or a file and `--config.a.b=value` overrides one of its values, with
    the type it has there; `--config.a.b value`, `--config.flag` and `--noconfig.flag` are read too.
    `flags` holds the flags that the program defines besides; they are parsed along.

    Raises UsageError for anything that is not understood, with the nearest thing that would be.

    >>> flags = absl_flags.FlagValues()
    >>> _ = absl_flags.DEFINE_string("workdir", None, "where to write", flag_values=flags)
    >>> parse(["--wrkdir=runs"], flags)
    Traceback (most recent call last):
    scoregen.errors.UsageError: no flag '--wrkdir': did you mean '--workdir'? There are: --config, --workdir
    """
    flags = absl_flags.FlagValues() if flags is None else flags
    names = ["config", *flags]
    try:
        argv = flags.read_flags_from_files(list(argv))
        config_flags.DEFINE_config_file("config", flag_values=flags, sys_argv=["", *argv])
        parser = flags["config"].parser = _Preset(argv)
        rest = flags(["", *argv])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        name = error.flagname
        if re.match(r"(no)?config\.", name):
            raise UsageError(f"--{name} without --config: {_no_config()}") from None
        known = [f"--{flag}" for flag in sorted(names)]
        if "." in name:  # a misspelt --config, with a key behind it
            known.append(f"--config.{name.partition('.')[2]}")
        raise UsageError(_unknown("flag", f"--{name}", known)) from None
    except (absl_flags.Error, ValueError) as error:
        if found := re.match(r"flag --(\w+)=(.*): (invalid literal|could not convert)", first_line(error)):
            flag = flags[found[1]]  # a number that is none, which Python says in its own words
            kind = f"expected {flag.flag_type()}, such as {flag.default}"
            raise UsageError(f"--{found[1]}={found[2]}: {kind}") from None
        raise UsageError(first_line(error)) from error
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}: say --name=value, with quotes around spaces")
    config = flags["config"].value
    if config is None:
        if needed:
            raise UsageError(_no_config())
        return None, []
    for key, old in parser.overridden.items():
        _check_elements(key, old, _at(config, key))
    check_choices(config)
    asked = ((key, old, _at(config, key)) for key, old in sorted(parser.overridden.items()))
    return config, [(key, old, new) for key, old, new in asked if new != old]


def changes(old: ConfigDict, new: ConfigDict) -> list[tuple[str, Any, Any]]:
    """What differs, as (dotted key, old value, new value) in the order of the keys; None for a missing one.

    1 and 1.0 differ, nan and nan do not.

    >>> changes(ConfigDict({"a": {"b": 1, "c": 2}}), ConfigDict({"a": {"b": 1, "c": 3}, "d": "x"}))
    [('a.c', 2, 3), ('d', None, 'x')]
    """
    a, b = dict(_leaves(old)), dict(_leaves(new))
    return [(key, a.get(key), b.get(key)) for key in sorted(a | b) if repr(a.get(key)) != repr(b.get(key))]


def used(config: ConfigDict) -> Config:
    """The configuration without the options of parts that it does not choose; the name "both" chooses all.

    >>> used(ConfigDict({"loss": {"name": "dsm", "dsm": {"a": 1}, "ssm": {"b": 2}}})).to_dict()
    {'loss': {'dsm': {'a': 1}, 'name': 'dsm'}}
    """
    found = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            inner = used(value)
            choices = [name for name, part in value.items() if isinstance(part, ConfigDict)]
            found[key] = {k: v for k, v in inner.items() if k not in choices or value.get("name") in (k, "both")}
            if "name" not in value:
                found[key] = inner
        else:
            found[key] = value
    return ConfigDict(found)


def to_json(config: ConfigDict) -> str:
    """The configuration as text, the same text for the same values. Its sequences come back as tuples.

    >>> print(to_json(ConfigDict({"b": (1, 2.0), "a": {}})), end="")
    {
      "a": {},
      "b": [
        1,
        2.0
      ]
    }
    """
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str, source: str = "the saved configuration") -> Config:
    """The configuration, locked, that `to_json` wrote; `source` is what to call it if it is damaged.

    Raises UsageError if the text is not such a configuration.

    >>> from_json(to_json(ConfigDict({"shape": (8, 8), "rate": 1e-4}))).to_dict()
    {'rate': 0.0001, 'shape': (8, 8)}
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        values = error
    if not isinstance(values, dict):
        reason = first_line(values) if isinstance(values, ValueError) else "it is not a table"
        raise UsageError(f"{source} is damaged ({reason}): restore it from a copy or delete it")
    return ConfigDict(tuples(values)).lock()


def tuples(value: Any) -> Any:
    """What JSON makes of a value, with its sequences as tuples again.

    >>> tuples({"shape": [8, [1, 2]]})
    {'shape': (8, (1, 2))}
    """
    if isinstance(value, dict):
        return {key: tuples(inner) for key, inner in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


class _Preset(absl_flags.ArgumentParser):
    """Reads the value of --config, and looks over the overrides that stand beside it on the command line.

    Both happen here because this is where the stock flag has a configuration in hand and has not yet
    tried the overrides, of which it says no more than an AttributeError.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = argv
        self.overridden: dict[str, Any] = {}  # dotted key -> the preset's value

    def parse(self, argument: str) -> ConfigDict:
        config = load(argument)
        for position, argument in enumerate(self.argv):
            if argument == "--":
                break
            if found := re.match(r"--?(no)?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL):
                negated, key, value = found.groups()
                old = _at(config, key)
                self.overridden.setdefault(key, old)
                if value is None and not isinstance(old, bool):
                    value = "".join(self.argv[position + 1 : position + 2])
                self._check(f"--{negated or ''}config.{key}", key, config, negated, value)
        return config

    def _check(self, flag: str, key: str, config: ConfigDict, negated: str | None, value: str | None) -> None:
        old = _at(config, key)
        if isinstance(old, ConfigDict):
            inner = f"{key}.name" if "name" in old else f"{key}.{next(iter(old), '...')}"
            raise UsageError(f"config.{key} is a section, not a value: say --config.{inner}=...")
        holder = _at(config, key.rpartition(".")[0])
        kind = holder.get_type(key.rpartition(".")[2])
        if negated and (kind is not bool or value is not None):
            raise UsageError(f"{flag}: `no` is for a bool, without =; this is {kind.__name__}")
        if kind not in (*_PLAIN, tuple):
            raise UsageError(f"{flag} cannot be set on the command line (it is {old!r}): set it in a preset")
        if value is None or kind is str:
            return
        example = "" if old is None else f", such as {old!r}"
        if kind is tuple:
            try:
                ast.literal_eval(value)
            except (ValueError, SyntaxError):
                if not all(isinstance(element, str) for element in old or ()):
                    raise UsageError(f"{flag}={value}: expected a tuple{example}") from None
            return
        try:
            absl_flags.BooleanParser().parse(value) if kind is bool else kind(value)
        except ValueError:
            raise UsageError(f"{flag}={value}: expected {kind.__name__}{example}") from None


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
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _optional(make: Callable, key: str) -> type | None:
    """The plain type in an annotation such as `int | None`."""
    try:
        hint = inspect.signature(make, eval_str=True).parameters[key].annotation
    except NameError:  # an annotation that only a type checker can resolve
        return None
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return None
    kinds = [typing.get_origin(kind) or kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and kinds[0] in (*_PLAIN, tuple) else None


def _sections(config: ConfigDict, key: str = "") -> Iterator[tuple[str, ConfigDict]]:
    """Every section with its dotted key, the whole first, under ""."""
    yield key, config
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _sections(value, f"{key}.{name}".lstrip("."))


def _leaves(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    for key, section in _sections(config):
        for name, value in section.items():
            if not isinstance(value, ConfigDict):
                yield f"{key}.{name}".lstrip("."), value


def _at(config: ConfigDict, key: str) -> Any:
    """The value under a dotted key; UsageError with the nearest key if there is none."""
    value, passed = config, []
    for name in key.split(".") if key else ():
        where = ".".join(["config", *passed])
        if not isinstance(value, ConfigDict):
            raise UsageError(f"no config.{key}: {where} is a value ({value!r}), not a section")
        if name not in value:
            every = [k for k, _ in _sections(config) if k] + [k for k, _ in _leaves(config)]
            same = [k for k in every if k.split(".")[-1] == key.split(".")[-1]]
            near = difflib.get_close_matches(key, every, n=1, cutoff=0.8) or same
            hint = f"did you mean {' or '.join(f'config.{k}' for k in near[:3])}? " if near else ""
            raise UsageError(f"no config.{key}: {hint}{where} holds: {', '.join(sorted(value)) or 'nothing'}")
        value = value[name]
        passed.append(name)
    return value


def _check_elements(key: str, old: Any, new: Any) -> None:
    """Refuses a tuple of other things than the preset's, which ml_collections lets pass."""
    if not isinstance(old, tuple) or not old:
        return
    kinds = {type(element) for element in old} | ({int} if any(isinstance(e, float) for e in old) else set())
    if any(type(element) not in kinds for element in new):
        raise UsageError(f"--config.{key}={new!r}: expected a tuple such as {old!r}")


def _names() -> list[str]:
    """The presets that one may ask for: `default` is what they are differences from."""
    return [name for name in presets() if name != "default"]


def _summary(path: Path) -> str:
    try:
        return (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]
    except (SyntaxError, ValueError, OSError):
        return "(cannot be read)"


def _no_config() -> str:
    return f"say --config=NAME, or the path of a .py file; the presets are: {', '.join(_names()) or 'none'}"


def _unknown(kind: str, name: Any, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? There" if near else "there"
    return f"no {kind} {name!r}: {hint} are: {', '.join(known) or 'none'}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]
