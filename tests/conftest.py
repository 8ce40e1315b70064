"""Set before jax starts: cheap compiles, and every silent conversion an error."""

import os

# Tests compile far more than they compute: level 1 halves their time and changes no result we assert.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Networks in PyTorch, for the tests that have it: they are imported there, and hold no tests or examples themselves.
collect_ignore = ["reference"]
