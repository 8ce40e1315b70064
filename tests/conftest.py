"""Set before jax starts: cheap compiles, and every silent conversion an error."""

import importlib
import os
from pathlib import Path

# Tests compile far more than they compute: level 1 halves their time and changes no result we assert.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# And what was compiled is kept, beside what pytest keeps: the next time most tests compute only.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Networks in PyTorch, for the tests that have it: they are imported there, and hold no tests or examples themselves.
collect_ignore = ["reference"]

TABLES = (
    ("scoregen.process", "PROCESSES"),
    ("scoregen.denoiser", "TARGETS"),
    ("scoregen.denoiser", "CONDITIONS"),
    ("scoregen.times", "TIMES"),
    ("scoregen.losses", "LOSSES"),
    ("scoregen.losses", "WEIGHTINGS"),
    ("scoregen.samplers", "STEPS"),
    ("scoregen.samplers", "CORRECTORS"),
    ("scoregen.samplers", "GRIDS"),
    ("scoregen.guidance", "X0S"),
    ("scoregen.guidance", "CONTROLS"),
    ("scoregen.nets", "NETS"),
    ("scoregen.data", "SOURCES"),
    ("scoregen.data", "SCALINGS"),
    ("scoregen.train", "AVERAGES"),
    ("scoregen.train", "OPTIMIZERS"),
    ("scoregen.train", "SCHEDULES"),
)


@pytest.fixture(autouse=True)
def tables_as_they_were():
    """A part that a test puts into a table goes with the test: no other test depends on the order."""
    tables = [getattr(importlib.import_module(module), name) for module, name in TABLES]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        if table != entries:
            table.clear()
            table.update(entries)


@pytest.fixture
def exact():
    """Arithmetic in float64, to be checked to many digits."""
    with jax.enable_x64(True):
        yield
