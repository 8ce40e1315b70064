"""The declarations of options: under which conditions and in which commands an option has an effect, and which effect.

The declarations are made with `option`, `section` and `config.choice` in configs/default.py, together with the options.
There is no other list of keys: `idle`, `used`, `effect` and `changes_network` read the declarations.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from ml_collections import ConfigDict

# A ConfigDict. A type checker cannot know its attributes, since they depend on the preset.
Config: TypeAlias = Any
Texts: TypeAlias = str | tuple[str, ...]

MODES = ("train", "sample", "eval", "trajectory", "likelihood")
# The possible effects of an option; each includes the effects after it. "network": the option changes the trained
# parameters. "training": the length of the training, its parts and its checkpoints, which may change when a run is
# continued. "results": samples and figures. "nothing": only the output, or the number of examples at a time.
EFFECTS = ("network", "training", "results", "nothing")
SECTION = "*"  # the key of a section's own declaration, until `load` removes it

ABBREVIATIONS = {
    "lr": "learning_rate",
    "bs": "batch",
    "batch_size": "batch",
    "wd": "weight_decay",
    "iterations": "steps",
    "num_steps": "steps",
    "timesteps": "steps",
    "grad_clip": "clip",
    "optim": "optimizer",
    "scheduler": "schedule",
    "lr_schedule": "schedule",
    "predictor": "step",
    "sde": "process",
    "model": "net",
    "network": "net",
    "arch": "net",
    "dataset": "data",
    "sigma_data": "data_std",
    "num_samples": "images",
    "conditional": "labels",
}

# Configurations as trees: values and sections under dotted keys


def value_of(config: ConfigDict, key: str) -> Any:
    """The value, or the section, under a dotted key; the key "" gives the whole configuration.

    Raises:
        KeyError: if the key does not exist.

    >>> value_of(ConfigDict({"a": {"b": 1}}), "a.b")
    1
    """
    found: Any = config
    for name in key.split(".") if key else ():
        if not isinstance(found, ConfigDict) or name not in found:
            raise KeyError(key)
        found = found[name]
    return found


def sections(config: ConfigDict, key: str = "") -> Iterator[tuple[str, ConfigDict]]:
    """Every section with its dotted key. The first is the whole configuration, with the key ""."""
    yield key, config
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from sections(value, f"{key}.{name}".lstrip("."))


def parts(section: ConfigDict) -> list[str]:
    """The names of the sections in a section."""
    return [name for name, value in section.items() if isinstance(value, ConfigDict)]


def is_choice(key: str, section: ConfigDict) -> bool:
    """Whether a section chooses a part: it has a `name` and subsections. The whole configuration is no choice."""
    return key != "" and "name" in section and bool(parts(section))


def changes(old: ConfigDict, new: ConfigDict) -> list[tuple[str, Any, Any]]:
    """The differences, as (dotted key, old value, new value), sorted by key; None stands for a missing value.

    1 and 1.0 count as different, nan and nan as equal.

    >>> changes(ConfigDict({"a": {"b": 1, "c": 2}}), ConfigDict({"a": {"b": 1, "c": 3}, "d": "x"}))
    [('a.c', 2, 3), ('d', None, 'x')]
    """
    a, b = dict(leaves(old)), dict(leaves(new))
    return [(key, a.get(key), b.get(key)) for key in sorted(a | b) if repr(a.get(key)) != repr(b.get(key))]


def leaves(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Every option's dotted key and value."""
    for key, section in sections(config):
        for name, value in section.items():
            if not isinstance(value, ConfigDict):
                yield f"{key}.{name}".lstrip("."), value


# The declaration of an option


@dataclasses.dataclass(frozen=True)
class Option:
    """The declaration of an option, or of a section for all options in it.

    Attributes:
        value: the default of the option.
        when: the option has an effect only if all of these conditions hold: "key=a|b" (one of these values), "key!=a",
            "key>0", or "key=a or other=b" (at least one of these). A key that starts with a dot is relative to the
            section. "train:key=a" counts in `train` only.
        modes: the commands that use the option; () inherits the value of the section, or means all commands.
        changes: one of `EFFECTS`; "" inherits the value of the section, or means "network".
        also: effect -> the conditions under which the option has this effect instead.
        inner: for a section: conditions of its options, by their keys relative to the section.
    """

    value: Any = None
    when: Texts = ()
    modes: tuple[str, ...] = ()
    changes: str = ""
    also: Mapping[str, Texts] = dataclasses.field(default_factory=dict)
    inner: Mapping[str, Texts] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if wrong := sorted({self.changes, *self.also} - {"", *EFFECTS}):
            raise ValueError(f"changes={wrong[0]!r}: one of {', '.join(EFFECTS)} is needed")
        if unknown := [mode for mode in self.modes if mode not in MODES]:
            raise ValueError(f"modes={unknown[0]!r}: some of {', '.join(MODES)} are needed")


option = Option  # the name in presets: a default with its declaration; `load` replaces it by the default


def section(**declared: Any) -> Config:
    """A section of a configuration, with a declaration for all options in it (see `Option`)."""
    return ConfigDict({SECTION: Option(**declared)})


# Whether an option has an effect, and what it changes


@dataclasses.dataclass(frozen=True)
class _Condition:
    """A condition: the value under a key is one of `values` ("="), none of them ("!="), or larger (">")."""

    key: str
    test: str
    values: tuple[Any, ...]
    mode: str = ""  # the only command in which the condition counts; "" for all
    of_part: bool = False  # whether the condition is that the option's part is chosen
    instead: _Condition | None = None  # it is enough that this one holds

    def holds(self, config: ConfigDict) -> bool:
        if self.instead is not None and self.instead.holds(config):
            return True
        named = self.test == "!=" and "" in self.values  # a text that has an effect only in some data sources
        if named and any(not other.holds(config) for other in _conditions(self.key, config)):
            return False
        try:
            value = value_of(config, self.key)
        except KeyError:  # a configuration without this part, such as in a test
            return True
        if self.test == ">":
            return value > self.values[0]
        return (value in self.values) == (self.test == "=")

    def missing(self, config: ConfigDict) -> list[_Condition]:
        """The conditions to report: none if this one holds, and for a text also those under which it has an effect."""
        if self.holds(config):
            return []
        if self.instead is not None or self.test != "!=" or "" not in self.values:
            return [self]
        own = [self] if value_of(config, self.key) in self.values else []
        return own + [found for other in _conditions(self.key, config) for found in other.missing(config)]

    def reason(self, config: ConfigDict) -> str:
        """Why the option has no effect."""
        if self.instead is not None:
            return f"{dataclasses.replace(self, instead=None).reason(config)} and {self.instead.reason(config)}"
        value = value_of(config, self.key)
        if self.of_part:
            return f"it belongs to the {self.key.removesuffix('.name')} '{self.values[0]}', and '{value}' is chosen"
        if self.key.endswith(".name"):
            needs = f", and it needs {' or '.join(map(str, self.values))}" if self.test == "=" else ""
            return f"the {self.key.removesuffix('.name')} is '{value}'{needs}"
        return f"config.{self.key} is {value!r}" if value == "" else f"config.{self.key} is {value}"

    def fix(self) -> str:
        """The change that would give the option an effect."""
        if self.instead is not None:
            return f"{dataclasses.replace(self, instead=None).fix()}, or {self.instead.fix()}"
        if self.test == "=":
            values = self.values[:1] if self.of_part else self.values[:3]
            return f"add {' or '.join(f'--config.{self.key}={_text(value)}' for value in values)}"
        if self.test == ">":
            return f"add a --config.{self.key} above {self.values[0]}"
        return f"choose {'a' if '' in self.values else 'another'} --config.{self.key}"


def _condition(text: str, section: str) -> _Condition:
    first, either, rest = text.partition(" or ")
    if either:
        return dataclasses.replace(_condition(first, section), instead=_condition(rest, section))
    found = re.fullmatch(r"(?:(\w+):)?(\.?[\w.]+)(!=|=|>)(.*)", text)
    if found is None:
        raise ValueError(f"{text!r} is not a condition: 'key=value|value', 'key!=value' or 'key>number' is needed")
    mode, key, test, values = found.groups()
    key = f"{section}{key}".lstrip(".") if key.startswith(".") else key
    return _Condition(key, test, tuple(map(_literal, values.split("|"))), mode or "")


def _literal(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _around(key: str) -> list[tuple[str, Option]]:
    """The declarations that apply to an option, from the outermost section to its own, each with its key."""
    from scoregen.app import config  # not at the top, since it imports this module

    names, every = key.split("."), config.declared()
    paths = [".".join(names[:i]) for i in range(len(names) + 1)]
    return [(path, every[path]) for path in paths if path in every]


def _conditions(key: str, config: ConfigDict, mode: str = "") -> Iterator[_Condition]:
    """The conditions of an option, from the outermost section to its own."""
    names, found = key.split("."), dict(_around(key))
    for i in range(len(names) + 1):
        path, parent = ".".join(names[:i]), ".".join(names[: i - 1]) if i else ""
        if i and i < len(names):
            around = value_of(config, parent)
            if is_choice(parent, around) and names[i - 1] in parts(around):
                both = ("both",) if "both" in around else ()
                yield _Condition(f"{parent}.name", "=", (names[i - 1], *both), of_part=True)
        texts = [(text, parent) for text in as_tuple(found[path].when)] if path in found else []
        for outer in range(i):
            above = ".".join(names[:outer])
            if above in found:
                texts += [(text, above) for text in as_tuple(found[above].inner.get(".".join(names[outer:i]), ()))]
        for text, section in texts:
            condition = _condition(text, section)
            if condition.mode in ("", mode):
                yield condition


def effect(key: str, config: ConfigDict | None = None) -> str:
    """The effect of an option, one of `EFFECTS`. An option without a declaration changes the network.

    The effect can depend on the configuration. For example, if the learning rate decays until the last step, then the
    number of steps changes the network at every step.

    >>> effect("loss.ssm.slices"), effect("train.steps"), effect("sampler.n"), effect("train.log_every")
    ('network', 'training', 'results', 'nothing')
    """
    found = "network"
    for path, declaration in _around(key):
        found = declaration.changes or found
        for other, texts in declaration.also.items():
            conditions = [_condition(text, path.rpartition(".")[0]) for text in as_tuple(texts)]
            if config is not None and all(condition.holds(config) for condition in conditions):
                found = other
    return found


def changes_network(key: str, config: ConfigDict | None = None) -> bool:
    """Whether the trained parameters depend on an option, for the same number of steps (see `effect`).

    If so, the option must not change when a run is continued, and it is part of the name of the run's folder.

    >>> changes_network("loss.name"), changes_network("train.steps"), changes_network("sampler")
    (True, False, False)
    """
    return effect(key, config) == "network"


def modes(key: str) -> tuple[str, ...]:
    """The commands in which an option has an effect.

    >>> modes("eval.likelihood.examples")
    ('likelihood',)
    """
    found = [declaration.modes for _, declaration in _around(key) if declaration.modes]
    return found[-1] if found else MODES


def only_trains(key: str, mode: str) -> bool:
    """Whether an option has no effect in a command, or only changes the network, which the command does not train.

    >>> only_trains("train.steps", "sample"), only_trains("seed", "sample"), only_trains("sampler.n", "sample")
    (True, True, False)
    """
    return mode not in modes(key) or changes_network(key)


def used(config: ConfigDict) -> Config:
    """The configuration without the options that have no effect in any command, such as options of other parts.

    >>> used(ConfigDict({"loss": {"name": "dsm", "dsm": {"a": 1}, "ssm": {"b": 2}}})).to_dict()
    {'loss': {'dsm': {'a': 1}, 'name': 'dsm'}}
    """

    def kept(section: ConfigDict, key: str) -> ConfigDict:
        found = {}
        for name, value in section.items():
            inner = f"{key}.{name}".lstrip(".")
            if isinstance(value, ConfigDict):
                if all(c.holds(config) for c in _conditions(f"{inner}.", config)):
                    found[name] = kept(value, inner)
            elif all(c.holds(config) for c in _conditions(inner, config)):
                found[name] = value
        return ConfigDict(found)

    return kept(config, "")


def idle(config: ConfigDict, given: Mapping[str, str] | Iterable[str], mode: str = "") -> list[str]:
    """A line for each option in `given` that has no effect in a configuration, with the reason and a fix.

    `given` maps the options' dotted keys to the text that the user wrote; `mode` is the command, "" for any.

    >>> from scoregen.app.config import load
    >>> idle(load("ncsn_toy"), ["loss.ssm.slices"])
    ["--config.loss.ssm.slices=1 has no effect: it belongs to the loss 'ssm', and 'dsm' is chosen: add
      --config.loss.name=ssm, or leave it out"]
    """
    if not isinstance(given, Mapping):
        given = {key: f"--config.{key}={_text(value_of(config, key))}" for key in given}
    lines = []
    for key, said in given.items():
        where = modes(key)
        if mode and mode not in where:
            uses = f"{_listed(where)} use{'s' * (len(where) == 1)} it"
            lines.append(f"{said} has no effect in `scoregen {mode}`: {uses}; leave it out")
            continue
        unmet = [found for condition in _conditions(key, config, mode) for found in condition.missing(config)]
        if unmet:
            reasons = "; ".join(dict.fromkeys(condition.reason(config) for condition in unmet))
            fixes = " and ".join(dict.fromkeys(condition.fix() for condition in unmet))
            if mode not in ("", "train") and any(changes_network(condition.key) for condition in unmet):
                lines.append(f"{said} has no effect: {reasons}, and only training can change this; leave it out")
                continue
            lines.append(f"{said} has no effect: {reasons}: {fixes}, or leave it out")
    return lines


def idle_in_preset(config: ConfigDict, base: ConfigDict, name: str) -> list[str]:
    """A line for each option that a preset sets but that has no effect with the parts that the preset chooses.

    `base` is the configuration that the preset starts from (see `load_with_base`).
    """
    own = {key: f"{name}: config.{key}={new!r}" for key, _, new in changes(base, config) if key != "name"}
    return [
        f"{said} has no effect: {unmet[0].reason(config)}"
        for key, said in own.items()
        if (unmet := [c for c in _conditions(key, config) if c.key.endswith(".name") and not c.holds(config)])
    ]


# Suggestions for unknown keys


def nearest(config: ConfigDict, key: str, count: int = 3) -> list[str]:
    """The options whose keys are nearest to an unknown key, at most `count`, the likeliest first.

    The last component counts most, and may be an abbreviation. Options of chosen parts are preferred.

    >>> config = ConfigDict({"loss": {"name": "dsm", "dsm": {"slices": 1}, "ssm": {"slices": 1}}, "lr": 1.0})
    >>> nearest(config, "loss.slices"), nearest(config, "los.name"), nearest(config, "loss.nme")
    (['loss.dsm.slices'], ['loss.name'], ['loss.name'])
    """
    section, _, last = key.rpartition(".")
    is_name = difflib.SequenceMatcher(None, last, "name").ratio() > 0.8  # `name`, or misspelt
    wanted = section if section and is_name else key
    parent, _, last = wanted.rpartition(".")
    last = ABBREVIATIONS.get(last, last)
    found: dict[str, float] = {}
    for whole in _named_keys(config):
        bare = whole.removesuffix(".name")
        name = bare.rpartition(".")[2]
        alike = 1.0 if name == last else max(difflib.SequenceMatcher(None, last, name).ratio(), _short_for(last, name))
        full = difflib.SequenceMatcher(None, wanted, bare).ratio()
        if alike < 0.8 and full < 0.8:
            continue
        chosen = all(condition.holds(config) for condition in _conditions(bare + ".", config) if condition.of_part)
        beside = bare.rpartition(".")[0] == parent and parent != ""
        found[whole] = 2 * alike + 0.5 * full + 0.3 * chosen + 0.4 * beside
    best = max(found.values(), default=0.0)
    near = sorted((name for name in found if found[name] > best - 0.2), key=lambda name: -found[name])
    return near[:count]


def _named_keys(config: ConfigDict) -> Iterator[str]:
    """The keys of all options, including `section.name` for a choice, but without the name of the preset."""
    return (key for key, _ in leaves(config) if key != "name")


def _short_for(short: str, name: str) -> float:
    """The confidence that `short` abbreviates `name`: that it is its initials or its beginning."""
    initials = "".join(word[0] for word in name.split("_") if word)
    return 0.9 if (len(short) > 1 and short == initials) or (len(short) > 2 and name.startswith(short)) else 0.0


def take_out(config: ConfigDict, into: dict[str, Option], key: str = "") -> None:
    """Replace every declared option by its value, and store the declarations in `into`."""
    for name in list(config.keys()):
        value: Any = config[name]
        inner = f"{key}.{name}".lstrip(".")
        if isinstance(value, ConfigDict):
            take_out(value, into, inner)
        elif isinstance(value, Option):
            into[key if name == SECTION else inner] = value
            del config[name]
            if name != SECTION:
                config[name] = value.value


def _listed(words: Iterable[str]) -> str:
    """The words as a list in English.

    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def as_tuple(texts: Texts) -> tuple[str, ...]:
    """One condition, or several, as a tuple."""
    return (texts,) if isinstance(texts, str) else tuple(texts)
