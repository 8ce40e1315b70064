"""What test_mesh.py compares: a few steps, a held-out loss and samples, on whatever devices this process is given.

    python tests/spread.py FOLDER NAME CASE,CASE... [HOST:PORT PROCESS PROCESSES]

Writes FOLDER/NAME.PROCESS.npz. Reads the checkpoint in FOLDER/one, and writes what it read as one in FOLDER/NAME.
"""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scoregen import mesh, train
from scoregen.checkpoint import Checkpoints
from scoregen.config import load
from scoregen.experiment import assemble

STEPS = 4
CASES = {
    # Dropout, flips, dequantization and classes, in two parts; a batch of the sampler that 8 does not divide.
    "random": {
        "preset": "ddpm_digits",
        "net.name": "mlp",
        "net.mlp.dropout": 0.5,
        "scaling.name": "unit",
        "data.flip": True,
        "labels": True,
        "sampler.guidance": 1.5,
        "train.batch": 32,
        "train.microbatch": 16,
        "sampler.batch": 6,
    },
    # A law of times that knows the losses, in the order of the examples, and a variance of the loss that is learned.
    "learned": {
        "preset": "ddpm_toy",
        "data.mixture.size": 64,
        "process.ddpm.steps": 3,
        "times.name": "second_moment",
        "times.second_moment.history": 2,
        "log_variance": True,
        "train.batch": 16,
        "sampler.batch": 8,
    },
    # Convolutions, group norms and attention.
    "unet": {
        "preset": "ddpm_digits",
        "net.unet.channels": 8,
        "net.unet.groups": 4,
        "net.unet.blocks": 1,
        "net.unet.dropout": 0.1,
        "train.batch": 16,
        "sampler.batch": 8,
    },
}


def experiment(case):
    """One of the cases above, small."""
    options = dict(CASES[case])
    config = load(options.pop("preset"))
    config.net.mlp.update(width=16, depth=1, embedding=8)
    config.train.update(learning_rate=0.01, warmup=0, ema={"decay": {"rate": 0.5}})
    config.sampler.n = 0 if config.process.ddpm.steps < 10 or "process.ddpm.steps" in options else 3
    config.eval.samples = 16
    config.update_from_flattened_dict(options)
    return assemble(config)


def precise(tree, dtype):
    """The tree with its real numbers of this type."""
    change = lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a  # noqa: E731
    return jax.tree.map(change, tree)


def measure(case, dtype="float32"):
    """The state after a few steps, what was told on the way, and what the compiled step costs a device."""
    it = experiment(case)
    state, told = mesh.replicate(precise(train.init_state(it), dtype)), {}
    step = train.make_step(it).lower(state, *train.spread_batch(it, *it.batch(0))).compile()
    told["flops"] = step.cost_analysis()["flops"]
    told["moves"] = len(re.findall(r" (?:all-gather|all-to-all|collective-permute)[-a-z]*\(", step.as_text()))
    told["losses"] = []
    for i in range(STEPS):
        state, metrics = step(state, *train.spread_batch(it, *it.batch(i)))
        told["losses"].append([float(metrics["loss"]), float(metrics["grad_norm"])])
    told["held_out"] = train.make_eval(it)(state.ema)
    levels = []
    told["samples"] = train.make_sampler(it)(state.ema, 10, levels.append)
    told["levels"] = levels
    return state, told


def flat(case, state, told):
    """Everything by name, on the host."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return {f"{case}/{key}": np.asarray(value) for key, value in (leaves | told).items()}


def measures(cases):
    """All of these, of which CASE64 is a case in float64."""
    found = {}
    for case in cases:
        with jax.enable_x64(case.endswith("64")):
            found |= flat(case, *measure(case.removesuffix("64"), "float64" if case.endswith("64") else "float32"))
    return found


def main(folder, name, cases, *others):
    if others:
        mesh.start(others[0], int(others[1]), int(others[2]))
    found = measures(cases.split(","))
    with Checkpoints(folder / "one") as checkpoints:
        read = checkpoints.restore(train.abstract_state(experiment("random")))
    assert read is not None
    restored, step = read
    found |= flat("restored", restored, {})
    with Checkpoints(folder / name) as checkpoints:
        checkpoints.save(step, restored)
    np.savez(folder / f"{name}.{jax.process_index()}.npz", **found)
    mesh.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
