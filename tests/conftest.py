"""Settings made before jax starts: compilation is cheap, and a silent conversion of types or ranks is an error."""

import collections
import gc
import importlib
import os
from pathlib import Path

# Tests compile far more than they compute: level 1 halves their time and changes no result we assert.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiled programs are cached in pytest's cache folder, so that the next run compiles little.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
import tiers

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Networks in PyTorch, which some tests import if PyTorch is installed. They hold no tests or examples.
collect_ignore = ["reference"]

# Examples in docstrings that take some seconds.
SLOW_EXAMPLES = {f"scoregen.testing.conformance.{name}" for name in ("check_loss", "check_process", "check_target")}

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
    ("scoregen.train", "LOGGERS"),
    ("scoregen.train", "OPTIMIZERS"),
    ("scoregen.train", "SCHEDULES"),
)


def pytest_collection_modifyitems(items):
    """Mark as slow the slow examples, and all but n cases of a test that is marked quick(n)."""
    tests = collections.defaultdict(list)
    for item in items:
        if item.name in SLOW_EXAMPLES:
            item.add_marker(pytest.mark.slow)
        elif item.get_closest_marker("quick") and not item.get_closest_marker("slow"):
            tests[item.path, item.cls, item.originalname].append(item)
    for cases in tests.values():
        quick = tiers.spread([case.callspec.params for case in cases], *cases[0].get_closest_marker("quick").args)
        for number in set(range(len(cases))) - set(quick):
            cases[number].add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_go_with_the_module():
    """Without this, a worker holds the programs of all tests, several gigabytes.

    Up to 0.9 GB they are kept, since other modules use some of them too.
    """
    yield
    if resident_memory() > 0.9e9:
        jax.clear_caches()
        gc.collect()


def resident_memory() -> float:
    """The bytes that this process holds in memory; infinite where Linux's /proc is missing."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return float("inf")


@pytest.fixture(autouse=True)
def tables_as_they_were():
    """Remove the parts that a test puts into a table, so that the order of the tests does not matter."""
    tables = [getattr(importlib.import_module(module), name) for module, name in TABLES]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        if table != entries:
            table.clear()
            table.update(entries)


@pytest.fixture
def exact():
    """Arithmetic in float64, so that results can be checked to many digits."""
    with jax.enable_x64(True):
        yield
