"""The grammar of every command: --name=value flags, --config.a.b=value options, and positional arguments.

`read` parses a command line without a configuration. `apply` then sets the options that it found in a configuration.
Both collect all errors, so that they are reported together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from ml_collections import ConfigDict

from scoregen.app import config as config_lib
from scoregen.app.config import Config
from scoregen.app.options import ABBREVIATIONS
from scoregen.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a command.

    Attributes:
        name: the name without the dashes.
        help: the explanation in the help text, one line.
        default: the value if the flag is not given; the flag has its type. False makes the flag a switch.
        kind: the type of a flag without a default.
        value: the placeholder for the value in a help text.
        key: the option of the configuration that the flag is an alias for, such as "train.steps". The key "data" takes
            the name of a data set or the folder with its files.
    """

    name: str
    help: str = ""
    default: Any = None
    kind: type = str
    value: str = "VALUE"
    key: str = ""

    @property
    def type(self) -> type:
        return self.kind if self.default is None else type(self.default)

    @property
    def usage(self) -> str:
        """The flag as the help text shows it."""
        return f"--{self.name}" if self.type is bool else f"--{self.name}={self.value}"


CONFIG = Flag("config", "a preset, or the path of a .py file", value="NAME")


@dataclasses.dataclass(frozen=True)
class _Override:
    """An option of the configuration on the command line; `text` is None for a flag without a value."""

    flag: str
    text: str | None
    negated: bool = False

    @property
    def said(self) -> str:
        return self.flag if self.text is None else f"{self.flag}={self.text}"


@dataclasses.dataclass
class Arguments:
    """A parsed command line.

    Attributes:
        positional: the arguments that are not flags, in order.
        values: flag -> its value or its default, for every flag that is not an alias of an option.
        given: the names of the flags on the command line.
        more: prefix -> {name: text}, for flags such as --launch.NAME=VALUE.
        overrides: the options of the configuration, by their dotted keys.
        errors: one line for each error.
        config: the configuration, once it is loaded.
        applied: the overrides that could be set in the configuration: (key, old, new).
    """

    positional: list[str]
    values: dict[str, Any]
    given: set[str]
    more: dict[str, dict[str, str]]
    overrides: dict[str, _Override]
    errors: list[str]
    config: Config = None
    applied: list[tuple[str, Any, Any]] = dataclasses.field(default_factory=list)

    @property
    def changes(self) -> list[tuple[str, Any, Any]]:
        """The differences that the overrides made in the configuration: (key, old, new)."""
        return [(key, old, new) for key, old, new in self.applied if repr(new) != repr(old)]

    def check(self) -> None:
        """Raises one UsageError with all errors, if there are any."""
        if self.errors:
            raise UsageError(*dict.fromkeys(map(self._as_typed, self.errors)))

    @contextlib.contextmanager
    def as_typed(self) -> Iterator[None]:
        """Within it, errors name an option by the flag that was typed for it: --n=0, not config.eval.samples=0."""
        try:
            yield
        except UsageError as error:
            raise UsageError(*map(self._as_typed, map(str, error.args))) from error

    def _as_typed(self, line: str) -> str:
        for key, override in self.overrides.items():
            if not override.negated:
                line = re.sub(rf"^config\.{re.escape(key)}(?=[=:])", override.flag, line)
        return line

    def said(self) -> dict[str, str]:
        """Key -> the text on the command line, for each option that was changed."""
        return {key: self.overrides[key].said for key, _, _ in self.changes}

    def typed(self) -> dict[str, str]:
        """Key -> the text on the command line, for each option from which an effect is expected.

        These are the changed options, and those that say the value of the configuration again, unless this value is
        false, zero or empty: --config.sampler.best=false asks for nothing, but --size=64 does.
        """
        return {key: self.overrides[key].said for key, old, new in self.applied if new or repr(new) != repr(old)}


def parse(
    argv: Sequence[str],
    flags: Sequence[Flag] = (),
    takes: int = 0,
    prefixes: Sequence[str] = (),
    needed: bool = True,
    preset: bool = False,
    mode: str = "",
    faults: Callable[[Arguments], Iterable[str]] = lambda found: (),
) -> Arguments:
    """Parse a command line, load the configuration that --config names, and set its options.

    Args:
        argv: the arguments without the program's name.
        flags: the flags of the command, without --config.
        takes: the number of positional arguments that are allowed.
        prefixes: the prefixes of flags with free names, such as "launch" for --launch.NAME=VALUE.
        needed: whether --config is required. If not, `config` is None without it.
        preset: whether the first positional argument names the configuration, as --config does.
        mode: the command, one of `config.MODES`: options without effect in it are refused. "" refuses none.
        faults: returns a line for each error that can be found without a configuration.

    Raises:
        UsageError: with all errors, and the nearest known name for an unknown one.

    >>> parse(["--wrkdir=runs"], [Flag("workdir")])
    Traceback (most recent call last):
    scoregen.errors.UsageError: no flag '--wrkdir': did you mean '--workdir'? There are: --config, --workdir; say ...
    >>> found = parse(["--config=ncsn_toy", "--config.seed=1", "--workdir=runs"], [Flag("workdir")])
    >>> found.values["workdir"], found.changes
    ('runs', [('seed', 0, 1)])
    """
    found = read(argv, (CONFIG, *flags), takes, prefixes, mode)
    found.errors[:0] = faults(found)
    if preset and found.positional:
        first, name = found.positional[0], found.values["config"]
        if name is not None:
            found.errors.append(two_configs(first, name))
        else:
            found.values["config"] = first
    name = found.values["config"]
    if name is None and (needed or found.overrides):
        typed = next(iter(found.overrides.values()), None)
        found.errors.append(f"{typed.flag} without --config: {no_config()}" if typed else no_config())
    if name is not None:
        try:
            found.config = config_lib.load(name)
        except UsageError as error:
            found.errors += error.args
    if found.config is not None:
        apply(found, found.config)
        if mode:
            found.errors += config_lib.idle(found.config, found.typed(), mode)
    found.check()
    return found


def read(
    argv: Sequence[str], flags: Sequence[Flag], takes: int = 0, prefixes: Sequence[str] = (), mode: str = ""
) -> Arguments:
    """Parse a command line, without a configuration (see `parse`)."""
    by_name = {flag.name: flag for flag in flags}
    found = Arguments([], {flag.name: flag.default for flag in flags if not flag.key}, set(), {}, {}, [])
    found.more = {prefix: {} for prefix in prefixes}
    try:
        tokens = absl_flags.FlagValues().read_flags_from_files(list(argv), force_gnu=True)
    except absl_flags.Error as error:
        raise UsageError(config_lib.first_line(error)) from error
    while tokens:
        token = tokens.pop(0)
        if token == "--":
            found.positional += tokens
            break
        typed = re.fullmatch(r"--?([^\W\d][^=]*)(?:=(.*))?", token, re.DOTALL)
        if typed is None:
            found.positional.append(token)
            continue
        name, text = typed.groups()
        prefix, _, rest = name.partition(".")
        if prefix in ("config", "noconfig") and "." in name:
            negated = prefix != "config"
            if text is None and not negated and not _is_switch(rest) and tokens and not tokens[0].startswith("--"):
                text = tokens.pop(0)
            _override(found, rest, _Override(f"--{name}", text, negated))
        elif prefix in prefixes and rest and text is not None:
            if rest in found.more[prefix]:
                found.errors.append(f"--{name} is given twice: say it once")
            found.more[prefix][rest] = text
        elif name in by_name:
            flag = by_name[name]
            if text is None and flag.type is not bool:
                if not tokens or tokens[0].startswith("--"):
                    found.errors.append(f"--{name} needs a value: --{name}={flag.value}")
                    continue
                text = tokens.pop(0)
            if flag.key:
                _override(found, flag.key, _Override(f"--{name}", text))
                continue
            if name in found.given:
                found.errors.append(f"--{name} is given twice: say it once")
            found.given.add(name)
            try:
                found.values[name] = _value(flag, text)
            except UsageError as error:
                found.errors += error.args
        else:
            found.errors.append(_unknown_flag(name, text, flags, prefixes, mode))
            if text is None and tokens and not tokens[0].startswith("-"):
                tokens.pop(0)  # most likely the value of the unknown flag
    for extra in found.positional[takes:]:
        given = f"{found.positional[0]!r} is already given; " if takes else ""
        found.errors.append(
            f"unexpected argument {extra!r}: {given}write flags as --name=value, and put quotes around spaces"
        )
    return found


def apply(found: Arguments, config: Config) -> None:
    """Set the options of a command line in a configuration, which becomes `found.config`.

    Errors are added to `found.errors`.
    """
    found.config, before = config, {}
    if (data := found.overrides.pop("data", None)) is not None and data.text is not None:
        key = _data_key(config, data.text)
        if data.flag.startswith("--config"):
            key = "data"  # refused below, as any section
        _override(found, key, data)
        source = source_of(data.text) if key == "data.dir" else ""
        if source and "data.name" not in found.overrides and source != config.data.name:
            found.overrides["data.name"] = dataclasses.replace(data, text=source)
    for key, typed in found.overrides.items():
        try:
            before[key] = config_lib.get(config, key)
            config_lib.override(config, key, typed.text, typed.flag, typed.negated)
        except UsageError as error:
            found.errors += error.args
            before.pop(key, None)
    for check in (config_lib.check_choices, config_lib.check_seeds):
        try:
            check(config)
        except UsageError as error:
            found.errors += error.args
    found.applied = [(key, old, config_lib.get(config, key)) for key, old in sorted(before.items())]


def two_configs(first: str, name: str) -> str:
    """The line for a command line that names a configuration twice."""
    return f"{first} and --config={name} both name a configuration: say one of them"


def no_config() -> str:
    """The line for a command line that names no configuration."""
    names = ", ".join(config_lib.preset_names()) or "none"
    return f"say --config=NAME, or the path of a .py file; the presets are: {names}"


def _override(found: Arguments, key: str, typed: _Override) -> None:
    if key in found.overrides:
        both = dict.fromkeys((found.overrides[key].flag, typed.flag))
        one = "say it once" if len(both) == 1 else f"both are config.{key}: say one of them"
        found.errors.append(f"{' and '.join(both)} {'is' if len(both) == 1 else 'are'} given twice: {one}")
    found.overrides[key] = typed


def _is_switch(key: str) -> bool:
    """Whether --config.KEY needs no value, as far as the default configuration knows."""
    try:
        return config_lib.kind_of(config_lib.load("default"), key) is bool
    except (UsageError, KeyError):
        return False


def _value(flag: Flag, text: str | None) -> Any:
    if flag.type is bool:
        if text is None or text.lower() in ("true", "1", "yes"):
            return True
        if text.lower() in ("false", "0", "no"):
            return False
        raise UsageError(f"--{flag.name}={text}: this flag is a switch and takes no value")
    assert text is not None
    if text == "" and flag.type is str:
        raise UsageError(f"--{flag.name}= has no value: say --{flag.name}={flag.value}, or leave the flag out")
    try:
        return flag.type(text)
    except ValueError:
        example = "" if flag.default is None else f", such as {flag.default}"
        raise UsageError(f"--{flag.name}={text}: {config_lib.WORDS[flag.type]} is needed{example}") from None


def _data_key(config: Config, text: str) -> str:
    """The option that --data=TEXT sets: the name of the data set, or the folder of the chosen data set."""
    names = [name for name, value in config.data.items() if isinstance(value, ConfigDict)]
    if text in names:
        return "data.name"
    if Path(text).expanduser().exists() or "/" in text or text.startswith(("~", ".")):
        return "data.dir"
    reads_files = not config_lib.idle(config, ["data.dir"])
    return "data.dir" if reads_files and not difflib.get_close_matches(text, names, n=1) else "data.name"


def source_of(path: str) -> str:
    """The data source that reads a file of this suffix; "" for a folder and for other files."""
    from scoregen.data import SOURCES, suffixes

    if Path(path).expanduser().is_dir():
        return ""
    name = path.lower().removesuffix(".gz")
    return next((source for source, make in SOURCES.items() if name.endswith(suffixes(make) or ("\0",))), "")


def _unknown_flag(name: str, text: str | None, flags: Sequence[Flag], prefixes: Sequence[str], mode: str) -> str:
    """The line for an unknown flag, with the nearest known flag or option of the configuration."""
    known = sorted(f"--{flag.name}" for flag in flags)
    there = ", ".join([*known, *(f"--{prefix}.NAME" for prefix in prefixes)])
    has_config = any(flag.name == "config" for flag in flags)
    hint = _meant(name, text, known, has_config, mode)
    more = "; say --config.SECTION.OPTION=VALUE for an option" if has_config else ""
    return f"no flag '--{name}': {f'did you mean {hint}? There' if hint else 'there'} are: {there}{more}"


def _meant(name: str, text: str | None, known: Sequence[str], has_config: bool, mode: str) -> str:
    """The flag or option that an unknown flag is nearest to, or ""."""
    if name == "steps" and mode in ("sample", "eval", "trajectory"):
        return f"'--config.sampler.n={text or 'N'}', the number of noise levels"
    short = f"--{ABBREVIATIONS.get(name, name)}"
    if near := [short] if short in known else difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.9):
        return repr(near[0])
    if has_config and (option := _option_meant(name, text, mode, exact=True)):
        return option
    if near := difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.75):
        return repr(near[0])
    return _option_meant(name, text, mode) if has_config else ""


def _option_meant(name: str, text: str | None, mode: str, exact: bool = False) -> str:
    """The option of the default configuration that a flag without `config.` probably means, with its value; or "".

    Options with an effect in the command `mode` are preferred. Any other option is marked "of `scoregen train`".
    `exact`: only accept an option or section whose last component is the flag's.
    """
    first, _, rest = name.partition(".")
    if rest and difflib.SequenceMatcher(None, first, "config").ratio() > 0.7:
        name = rest
    config = config_lib.load("default")
    try:
        found = config_lib.get(config, name)
        keys = [name] if not isinstance(found, ConfigDict) else [f"{name}.name"] if "name" in found else []
    except UsageError:
        keys = config_lib.nearest(config, name)
        last = name.removesuffix(".name").rpartition(".")[2]
        lasts = (last, ABBREVIATIONS.get(last))
        keys = [key for key in keys if not exact or key.removesuffix(".name").rpartition(".")[2] in lasts]
    used = [key for key in keys if mode in ("", "train") or not config_lib.only_trains(key, mode)]
    value = "" if text is None else f"={text}"
    meant = " or ".join(f"'--config.{key}{value}'" for key in used or keys)
    return meant if used or not keys else f"{meant} of `scoregen train`"
