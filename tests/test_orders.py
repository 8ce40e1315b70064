"""Every sampler converges at the order that theory gives it, under every process: `experiments/samplers/orders.py`."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "experiments" / "samplers" / "orders.py"
SPEC = importlib.util.spec_from_file_location("orders", PATH)
assert SPEC is not None and SPEC.loader is not None
orders = sys.modules.setdefault("orders", importlib.util.module_from_spec(SPEC))
SPEC.loader.exec_module(orders)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", orders.CASES)
@pytest.mark.parametrize("key", orders.PROCESSES)
def test_the_order_is_that_of_theory(name, key):
    case = orders.CASES[name]
    found, errors = orders.order(orders.PROCESSES[key], case)
    assert abs(found - case.order) < 0.3, (found, errors)
