"""Every way to specify a configuration, and the refusals of wrong ones."""

import dataclasses
import json
import math
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from refusal import refused

from scoregen.app import config as C
from scoregen.app.arguments import Flag
from scoregen.app.arguments import parse as parse_arguments
from scoregen.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Sliced:
    slices: int = 1
    weight: float = 1.0

    def __post_init__(self):
        if self.slices < 1:
            raise ValueError("slices must be at least 1")


class Net(nn.Module):
    channels: int
    widths: tuple[int, ...] = (64, 128)
    attention: bool = False
    act: str = "swish"
    dtype: type = jnp.float32
    groups: int | None = None


def function(process, *rest, weighting="sigma2", levels: "int | None" = None, odd=None, **more):
    return process, weighting, levels


TABLE = {"ssm": Sliced, "net": Net, "function": function, "nothing": lambda: 0}

DEFAULT = '''"""What all presets differ from."""
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "seed": 0, "note": "", "hosts": ("a", "b"),
        "loss": {"name": "dsm", "dsm": {"weight": 1.0}, "ssm": {"slices": 1, "exact": False}},
        "train": {"steps": 1000, "rate": 1e-4, "amp": True, "widths": (64, 128), "decays": (0.9, 0.999)},
    })
'''
PRESET = '''"""NCSN on CIFAR-10.

    scoregen train ncsn_cifar
"""
from scoregen.app.config import load

def get_config():
    config = load("default")
    config.loss.name = "ssm"
    return config
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(C, "FOLDER", tmp_path)
    for name, text in {"default": DEFAULT, "ncsn_cifar": PRESET, "_private": "", "__init__": ""}.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


FLAGS = (Flag("workdir"), Flag("dry-run", default=False), Flag("workers", kind=int), Flag("share", default=0.5))


def parse(*argv: str) -> ConfigDict:
    return parse_arguments(["--config=ncsn_cifar", *argv], FLAGS).config


# choice and build


def test_choice_reads_every_kind_of_constructor():
    section = C.choice(TABLE, "ssm")
    assert section.to_dict() == {
        "name": "ssm",
        "ssm": {"slices": 1, "weight": 1.0},
        "net": {"widths": (64, 128), "attention": False, "act": "swish", "groups": None},
        "function": {"weighting": "sigma2", "levels": None},
        "nothing": {},
    }
    for key, kind in {"widths": tuple, "attention": bool, "groups": int}.items():
        assert section.net.get_type(key) is kind
    with pytest.raises(TypeError):
        section.function.levels = "ten"


def test_choice_and_build_agree_with_the_constructors():
    needs = {"ssm": {}, "net": {"channels": 3}, "function": {"process": "p"}, "nothing": {}}
    for name, extra in needs.items():
        made = C.build(TABLE, C.choice(TABLE, name), **extra, unheard_of=object())
        assert made == TABLE[name](**extra)


def test_build_passes_options_and_extra():
    section = C.choice(TABLE, "net")
    assert "groups" in section.net and "groups" not in C.choice(TABLE, "net", without=("groups",)).net
    section.net.widths, section.net.groups = (8, [16, 32]), 4
    net = C.build(TABLE, section, channels=5, attention=True)
    assert net == Net(channels=5, widths=(8, (16, 32)), groups=4, attention=True)
    assert hash(net.widths)  # tuples all the way, as linen requires


def test_choice_and_build_refuse():
    refused(lambda: C.choice(TABLE, "smm"), "'smm'", "did you mean 'ssm'", "function")
    section = C.choice(TABLE, "ssm")
    section.name = "sm"
    refused(lambda: C.build(TABLE, section), "'ssm'", "nothing")
    refused(lambda: C.build(TABLE, ConfigDict({"name": "ssm", "ssm": {"slice": 2}})), "'slice'", "'slices'")
    refused(lambda: C.build(TABLE, ConfigDict({"name": "ssm", "ssm": {"slices": 0}})), "ssm: slices must be")


# presets


def test_load(folder, tmp_path_factory, monkeypatch):
    config = C.load("ncsn_cifar")
    assert (config.name, config.loss.name, config.train.steps) == ("ncsn_cifar", "ssm", 1000)
    assert config.is_locked and config.train.is_locked
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    Path("mine.py").write_text(PRESET.replace('"ssm"', '"dsm"'))
    assert C.load("mine.py").loss.name == "dsm"
    assert C.load(str(elsewhere / "mine.py")).name == "mine"
    assert C.load("ncsn_cifar") == config
    assert C.presets() == {"default": "What all presets differ from.", "ncsn_cifar": "NCSN on CIFAR-10."}
    assert {path.suffix for path in folder.iterdir()} == {".py"}  # nothing is compiled into the folder


OWN = PRESET.replace(
    "from scoregen.app.config import load\n",
    """from __future__ import annotations

import dataclasses
import flax.linen as nn
from scoregen.app.config import choice, load

@dataclasses.dataclass(frozen=True)
class Mine:
    power: int | None = None

class Net(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)
""",
)


@pytest.mark.parametrize("text", [OWN, OWN.replace("from __future__ import annotations\n", "")])
def test_a_preset_can_define_parts(folder, text):
    """Dataclasses and networks, with annotations as objects or as text."""
    return_ = "    config = choice({'mine': Mine, 'net': Net}, 'mine')\n    return config\n"
    (folder / "own.py").write_text(text.replace("    return config\n", return_))
    config = C.load("own")
    assert config.mine.get_type("power") is int and config.mine.power is None
    assert config.net.to_dict() == {"width": 8}


def test_a_saved_configuration_with_parts_of_ones_own(folder):
    saved = folder / "config.json"
    config = C.load("ncsn_cifar").copy_and_resolve_references().unlock()
    config.loss.huber = ConfigDict({"delta": 1.0})
    config.loss.name = "huber"
    saved.write_text(C.to_json(config))
    refused(lambda: C.load(str(saved)), str(saved), "loss.huber", "--config=FILE.py")


def test_load_refuses(folder):
    said = refused(lambda: C.load("ncsn_cifr"), "no preset 'ncsn_cifr'", "did you mean 'ncsn_cifar'")
    assert "default" not in said and "_private" not in said
    refused(lambda: C.load("other/x.py"), "other/x.py", "No such file")
    bad = folder / "bad.py"
    for text, *parts in [
        ("x = 1\ndef get_config(:\n", "line 2"),
        ("x = 1\n", "no get_config()"),
        (PRESET.replace("config.loss.name", "config.lass.name"), "line 9", "loss"),
        (PRESET.replace('"ssm"', "7"), "line 9", "TypeError"),
        (PRESET.replace('"ssm"', '"smm"'), "config.loss.name", "'ssm'", "dsm"),
        (PRESET.replace("return config", "pass"), "NoneType"),
        ("import no_such_module\n", "line 1", "no_such_module"),
    ]:
        bad.write_text(text)
        said = refused(lambda: C.load("bad"), *parts)
        assert "config.loss.name" in said or str(bad) in said


# the command line


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["--config.loss.name=dsm"], "loss.name", "dsm"),
        (["--config.loss.ssm.slices=4"], "loss.ssm.slices", 4),
        (["--config.train.steps", "7"], "train.steps", 7),
        (["-config.train.steps=-7"], "train.steps", -7),
        (["--config.train.rate=1"], "train.rate", 1.0),
        (["--config.train.rate=2e-4"], "train.rate", 2e-4),
        (["--noconfig.train.amp"], "train.amp", False),
        (["--config.train.amp=false"], "train.amp", False),
        (["--config.loss.ssm.exact"], "loss.ssm.exact", True),
        (["--config.train.widths=(1, 2, 3)"], "train.widths", (1, 2, 3)),
        (["--config.train.widths=[1, 2]"], "train.widths", (1, 2)),
        (["--config.train.widths=3"], "train.widths", (3,)),
        (["--config.train.decays=(0, 0.5)"], "train.decays", (0, 0.5)),
        (["--config.hosts=x"], "hosts", ("x",)),
        (["--config.hosts=('x', 'y')"], "hosts", ("x", "y")),
        (["--config.note=a=b, --c"], "note", "a=b, --c"),
        (["--config.note="], "note", ""),
    ],
)
def test_parse_reads(folder, argv, key, value):
    config = parse(*argv)
    for name in key.split("."):
        config = config[name]
    assert config == value
    assert type(config) is type(value)


def test_parse_reads_the_flags_of_a_command_along(folder):
    (flagfile := folder / "flags").write_text("--config.train.steps=5\n")
    argv = ["FILE", "--workdir=w", "--config", "ncsn_cifar", "--dry-run", "--workers", "3", f"--flagfile={flagfile}"]
    for _ in range(2):  # twice in a process
        found = parse_arguments(argv, FLAGS, takes=1)
        assert found.changes == [("train.steps", 1000, 5)]
        assert found.values == {"config": "ncsn_cifar", "workdir": "w", "dry-run": True, "workers": 3, "share": 0.5}
        assert found.positional == ["FILE"] and found.given == {"config", "workdir", "dry-run", "workers"}
    flagfile.write_text("--config.train.step=5\n")
    refused(lambda: parse_arguments(argv, FLAGS, takes=1), "did you mean config.train.steps")
    found = parse_arguments(["--", "--workdir=w"], FLAGS, takes=1, needed=False)
    assert found.positional == ["--workdir=w"] and found.config is None


def test_flags_with_names_of_their_own():
    found = parse_arguments(["--launch.gpus=1", "--launch.a.b=x=y"], (), prefixes=("launch",), needed=False)
    assert found.more == {"launch": {"gpus": "1", "a.b": "x=y"}}
    for argv, *parts in [
        (["--launch.gpus=1", "--launch.gpus=2"], "--launch.gpus is given twice"),
        (["--launc.gpus=1"], "no flag '--launc.gpus'", "--launch.NAME"),
    ]:
        refused(lambda argv=argv: parse_arguments(argv, (), prefixes=("launch",), needed=False), *parts)


def test_a_short_flag_is_an_option(folder):
    flags = (Flag("steps", key="train.steps"), Flag("amp", key="train.amp"))
    found = parse_arguments(["--config=ncsn_cifar", "--steps=5", "--amp=false"], flags)
    assert found.changes == [("train.amp", True, False), ("train.steps", 1000, 5)]
    assert found.said() == {"train.amp": "--amp=false", "train.steps": "--steps=5"}
    refused(
        lambda: parse_arguments(["--config=ncsn_cifar", "--steps=x"], flags),
        "--steps=x: an integer is needed, such as 1000",
    )


def all_at_once(what) -> tuple[str, ...]:
    """The lines of the refusal."""
    with pytest.raises(UsageError) as caught:
        what()
    return caught.value.args


def test_all_that_is_wrong_is_said_at_once(folder):
    argv = [
        "--wrkdir=x",
        "--config.los.name=ssm",
        "--config.train.steps=abc",
        "--workers=many",
        "--config.loss.name=smm",
    ]
    lines = all_at_once(lambda: parse(*argv, "more"))
    for part in (
        "--wrkdir",
        "config.los.name",
        "steps=abc: an integer is needed",
        "--workers=many",
        "'smm'",
        "argument 'more'",
    ):
        assert sum(part in line for line in lines) == 1, part
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--config.los.name=ssm"], ["no config.los.name", "did you mean config.loss.name?", "train"]),
        (["--config.loss.ssm.slice=4"], ["did you mean config.loss.ssm.slices", "loss.ssm holds: exact"]),
        (["--config.steps=4"], ["did you mean config.train.steps"]),
        (["--config.train.steps.x=4"], ["config.train.steps is a value (1000)"]),
        (["--config.train.widths[0]=4"], ["no config.train.widths[0]"]),
        (["--config.train.steps=abc"], ["--config.train.steps=abc", "an integer is needed"]),
        (["--config.train.steps=1.5"], ["--config.train.steps=1.5", "an integer is needed"]),
        (["--config.train.steps"], ["config.train.steps", "int"]),
        (["--config.train.rate=fast"], ["--config.train.rate=fast", "a number is needed"]),
        (["--config.train.amp=maybe"], ["--config.train.amp=maybe", "true or false is needed"]),
        (["--config.train.widths=(1,"], ["config.train.widths", "(1,", "tuple"]),
        (["--config.train.widths=wide"], ["config.train.widths", "wide", "tuple"]),
        (["--config.train.widths=('a',)"], ["config.train.widths", "'a'", "tuple"]),
        (["--config.train.steps=1", "--config.train.steps=2"], ["--config.train.steps is given twice", "say it once"]),
        (["--config.train.widths=1", "--config.train.widths=2"], ["--config.train.widths is given twice"]),
        (
            ["--config.train.amp", "--noconfig.train.amp"],
            ["--config.train.amp and --noconfig.train.amp are given twice"],
        ),
        (["--workdir=x", "--workdir=x"], ["--workdir is given twice"]),
        (["--config=ncsn_cifar"], ["--config is given twice"]),
        (["--workdir="], ["--workdir= has no value"]),
        (["--workdir"], ["--workdir needs a value"]),
        (["--workdir", "--dry-run"], ["--workdir needs a value"]),
        (["--dry-run=maybe"], ["--dry-run=maybe: this flag is a switch"]),
        (["--workers=1.5"], ["--workers=1.5: an integer is needed"]),
        (["--share=half"], ["--share=half: a number is needed, such as 0.5"]),
        (["--noconfig.train.steps"], ["noconfig.train.steps", "int"]),
        (["--noconfig.train.amp=false"], ["noconfig.train.amp"]),
        (["--config.train.amp", "false"], ["unexpected argument 'false'", "--name=value"]),
        (["--config.loss=ssm"], ["config.loss is a section", "--config.loss.name="]),
        (["--config.train=x"], ["config.train is a section", "--config.train.amp="]),
        (["--config.=x"], ["section"]),
        (["--config.loss.name=smm"], ["config.loss.name 'smm'", "did you mean 'ssm'", "dsm, ssm"]),
        (["--wrkdir=x"], ["'--wrkdir'", "did you mean '--workdir'"]),
    ],
)
def test_parse_refuses(folder, argv, parts):
    refused(lambda: parse(*argv), *parts)


def test_parse_wants_a_config(folder):
    for argv in ([], ["--config.train.steps=3"]):
        assert "default" not in refused(lambda argv=argv: parse_arguments(argv), "--config=", "ncsn_cifar")
    refused(lambda: parse_arguments(["--configg=ncsn_cifar", "--config.train.steps=3"]), "did you mean '--config'")
    refused(lambda: parse_arguments(["--config=ncsn_cifr"]), "did you mean 'ncsn_cifar'")
    refused(lambda: parse_arguments(["--config"]), "--config needs a value")
    refused(lambda: parse_arguments([f"--config={folder}"]), "is a folder")
    refused(lambda: parse_arguments(["--flagfile=/no/such/file", "--config=ncsn_cifar"]), "/no/such/file")
    # The order does not matter.
    assert parse_arguments(["--config.train.steps=1", "--config=ncsn_cifar"]).config.train.steps == 1


def test_check_choices_is_only_about_choices():
    C.check_choices(ConfigDict({"name": "x", "loss": {"name": "a", "a": {}}, "data": {"name": "digits"}}))
    nested = ConfigDict({"name": "x", "data": {"source": {"name": "b", "a": {}}}})
    refused(lambda: C.check_choices(nested), "config.data.source.name", "'b'")


# comparison and storage


def test_changes():
    old = ConfigDict({"a": {"b": 1, "c": math.nan, "e": {}}, "t": (1, 2)})
    assert C.changes(old, ConfigDict(old)) == []
    new = ConfigDict({"a": {"b": 1.0, "c": math.nan}, "t": (1, 3), "z": False})
    assert C.changes(old, new) == [("a.b", 1, 1.0), ("t", (1, 2), (1, 3)), ("z", None, False)]
    assert C.changes(new, old)[-1] == ("z", False, None)


def test_json(folder):
    config = C.load("ncsn_cifar")
    with config.unlocked():
        config.deep = ((1, 2.0), ("x", (True, None)))
        config.limit, config.empty = math.inf, ConfigDict()
    text = C.to_json(config)
    back = C.from_json(text)
    assert back.to_dict() == config.to_dict()
    assert C.changes(back, config) == []
    assert type(back.deep[1][1]) is tuple
    assert back.is_locked and C.to_json(back) == text
    assert C.to_json(ConfigDict({"a": 1, "b": 2})) == C.to_json(ConfigDict({"b": 2, "a": 1}))
    for damaged in (text[:-20], "", "[1]", "null"):
        refused(lambda damaged=damaged: C.from_json(damaged, "x/config.json"), "x/config.json is damaged")

    def no_constant(name):
        raise AssertionError(name)

    json.loads(text, parse_constant=no_constant)  # no Infinity or NaN, which JSON does not have
