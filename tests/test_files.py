"""JSON that any reader accepts, and numbers that come back as they were."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.files import from_json, to_json


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
