"""Files are whole or not there, a lock can be asked about, and JSON is what any reader accepts."""

import fcntl
import json
import math
import os
import subprocess
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.errors import UsageError
from scoregen.files import from_json, is_locked, locked, remove_unfinished, to_json, whole


def strict(text):
    """The text as parsed by a reader that allows only JSON's own numbers."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


VALUES = {
    "infinite": {"low": -math.inf, "high": math.inf, "inside": [1.5, (math.inf, {"deep": -math.inf})]},
    "numpy": {"a": np.float32("inf"), "b": np.arange(3), "c": np.array([0.5, -np.inf]), "d": np.bool_(True)},
    "jax": {"a": jnp.float32(0.5), "b": jnp.array([1.0, jnp.inf])},
    "plain": {"a": None, "b": True, "c": 1, "d": 0.1, "e": "inf", "f": "nan", "g": [], "h": {}, "i": "é"},
    "number": math.inf,
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", VALUES)
def test_what_is_written_is_json_and_comes_back(name, indent):
    text = to_json(VALUES[name], indent)
    strict(text)
    assert text.endswith("\n") and (indent or text.count("\n") == 1)
    plain = json.loads(json.dumps(VALUES[name], default=lambda value: value.tolist()))  # with Infinity, no JSON
    assert from_json(text) == plain and to_json(from_json(text), indent) == text


def test_not_a_number_comes_back():
    for value in (math.nan, np.float32("nan"), jnp.float32("nan")):
        text = to_json({"loss": value})
        strict(text)
        assert math.isnan(from_json(text)["loss"])


def test_every_float_comes_back_to_the_last_bit():
    values = [0.1, 1e-308, 5e-324, 1.7976931348623157e308, -0.0, float(np.float32(0.1))]
    assert [v.hex() for v in from_json(to_json(values))] == [v.hex() for v in values]


@pytest.mark.parametrize("value", ["NaN", {"x": "Infinity"}, {"-Infinity": 1}, [["NaN"]]])
def test_a_text_that_would_come_back_as_a_number_is_refused(value):
    with pytest.raises(ValueError, match="would be read back as a number"):
        to_json(value)


@pytest.mark.parametrize("text", ["NaN", '{"a": Infinity}', "[-Infinity]", "{", "", "{'a': 1}"])
def test_what_is_not_json_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        from_json(text)


def test_what_json_has_nothing_for_is_refused():
    with pytest.raises(TypeError, match="object"):
        to_json({"a": object()})


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "a.png"
    with whole(path) as one, whole(path) as two:
        one.write_text("first")
        two.write_text("second")
        assert str(os.getpid()) in one.name and one.name[0] == two.name[0] == "." and one.suffix == ".png"
    assert path.read_text() == "first" and [each.name for each in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(ZeroDivisionError), whole(path) as fresh:
        fresh.write_text(f"half{fresh.write_text('half') / 0}")
    assert path.read_text() == "first" and [each.name for each in tmp_path.iterdir()] == ["a.png"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    """At once if it was a process of this machine, else after an hour."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with whole(tmp_path / "a.json") as fresh:
        fresh.write_text("{")
        here = fresh.name.split(".new.")[1][:8]
        left = {
            f".gone.new.{here}-{gone.pid}-0123abcd.png": 0,
            f".runs.new.{here}-{os.getpid()}-0123abcd.png": 0,
            f".old.new.{'0' * 8}-{os.getpid()}-0123abcd.png": 4000,
            f".theirs.new.{'0' * 8}-{gone.pid}-0123abcd.png": 0,
            ".new.json": 4000,
        }
        for name, age in left.items():
            (tmp_path / name).touch()
            at = fresh.stat().st_mtime - age
            os.utime(tmp_path / name, (at, at))
        remove_unfinished(tmp_path)
        assert fresh.exists()
    stays = {name for name in left if name.startswith((".runs", ".theirs", ".new"))}
    assert {each.name for each in tmp_path.iterdir()} == stays | {"a.json"}
    remove_unfinished(tmp_path / "none")


def test_to_ask_about_a_lock_makes_no_file_and_makes_nothing_fail(tmp_path):
    """A probe that lasts 30 ms, as if the process had been put to sleep in it, does not refuse a command."""
    path = tmp_path / ".lock"
    assert not is_locked(path) and not path.exists()
    with locked(path):
        assert is_locked(path)
        with pytest.raises(UsageError, match="another command is at work"), locked(path):
            pass
    assert not is_locked(path)
    with path.open() as probe, path.open() as other:
        fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert not is_locked(path)  # of another probe
        fcntl.flock(other, fcntl.LOCK_UN)
        timer = threading.Timer(0.03, lambda: fcntl.flock(probe, fcntl.LOCK_UN))
        timer.start()
        with locked(path):
            assert is_locked(path)
        timer.join()
