"""`make changed` selects every test that a change can affect, and not all of them."""

import pytest
from changed import affected


@pytest.mark.parametrize(
    ("path", "selected", "left"),
    [
        # By import: of a test, and of what it imports.
        pytest.param(
            *("scoregen/process/kernel.py", ["tests/test_process.py", "tests/test_run.py"], ["tests/test_nets.py"]),
            marks=pytest.mark.slow,
        ),
        # By `import scoregen as sg`, whose names are found in their modules.
        ("scoregen/train/optimizers.py", ["tests/test_fit.py"], ["tests/test_process.py"]),
        # By a module in a string: a command in another process.
        ("scoregen/train/mesh.py", ["tests/test_hosts.py"], ["tests/test_times.py"]),
        # By the name of a file.
        ("experiments/samplers/orders.py", ["tests/test_orders.py"], ["tests/test_samplers.py"]),
        ("README.md", ["tests/test_docs.py"], ["tests/test_samplers.py"]),
        # Presets are found in their folder.
        ("configs/ncsn_toy.py", ["tests/test_presets.py"], ["tests/test_samplers.py"]),
        # A helper of the tests.
        ("tests/levels.py", ["tests/test_process.py"], ["tests/test_run.py"]),
    ],
)
def test_a_change_selects_its_tests(path, selected, left):
    found = affected([path])
    assert set(selected) <= set(found)
    assert not set(left) & set(found)


def test_examples_in_docstrings_are_selected_with_their_module():
    assert "scoregen/process/kernel.py" in affected(["scoregen/process/kernel.py"])
    assert "scoregen/losses/matching.py" in affected(["scoregen/process/kernel.py"])


@pytest.mark.parametrize("path", ["setup.cfg", "tests/conftest.py", "scoregen/removed.py"])
def test_all_is_selected_where_a_change_may_affect_all(path):
    assert affected([path]) == ["tests", "scoregen"]


def test_nothing_is_selected_without_a_change():
    assert affected([]) == []
