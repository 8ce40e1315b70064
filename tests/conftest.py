"""Set before jax starts: cheap compiles, and every silent conversion an error."""

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

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Networks in PyTorch, for the tests that have it: they are imported there, and hold no tests or examples themselves.
collect_ignore = ["reference"]
