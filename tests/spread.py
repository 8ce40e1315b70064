"""The measures that test_mesh.py compares: a few steps, a held-out loss and samples, on the devices of this process.

    python tests/spread.py FOLDER NAME CASE,CASE... [HOST:PORT PROCESS PROCESSES]

Writes FOLDER/NAME.PROCESS.npz. Reads the checkpoint in FOLDER/one, and writes its state to a checkpoint in FOLDER/NAME.
"""

import dataclasses
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small import digits, learned

import scoregen as sg
from scoregen.app.sampling import Sampling
from scoregen.data import in_turns
from scoregen.train import Decay, abstract_state, mesh
from scoregen.train.checkpoint import Checkpoints

STEPS = 4
COMMON = {
    "optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lambda step: 0.01)),
    "average": Decay(0.5),
}


def parts(case):
    """The parts of a case, small."""
    if case == "random":  # dropout, flips, dequantization and classes, in two parts
        net = sg.nets.MLP(width=16, depth=1, embedding=8, dropout=0.5, num_classes=10)
        objective = sg.Objective(sg.EpsilonMSE(), label_dropout=0.1)
        return digits(net, objective=objective, batch=32, microbatch=16, **COMMON)
    if case == "learned":
        # A law of times that learns from the losses, in the order of the examples, and a learned variance of the loss.
        return learned(net=sg.nets.MLP(width=16, depth=1, embedding=8), batch=16, **COMMON)
    # Convolutions, group norms and attention.
    net = sg.nets.UNet(channels=8, multipliers=(1, 2), blocks=1, groups=4, attention=(4,), dropout=0.1)
    return digits(net, batch=16, prepare=sg.data.Prepare(sg.data.Centered()), **COMMON)


def sampling(case, parts):
    """How the samples of a case are drawn. Eight devices do not divide every batch."""
    model, labels = parts.model, parts.data.train_labels
    sampler = sg.Sampler(sg.Ancestral(), n=None if case == "learned" else 3)
    guided = (
        {"cond": sg.Cond(label=labels[in_turns(labels)]), "guidance": 1.5, "batch": 6}
        if case == "random"
        else {"batch": 8}
    )
    return Sampling(model, sampler, parts.data.shape, None, model.process, **guided)


def precise(tree, dtype):
    """The tree with its floating-point arrays converted to this type."""
    change = lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a  # noqa: E731
    return jax.tree.map(change, tree)


def with_precise_data(parts, dtype):
    """The parts with data of this type."""

    def prepare(raw, keys, train=True):
        x0, augment = parts.prepare(raw, keys, train=train) if parts.prepare else (raw, None)
        return x0.astype(dtype), augment

    return dataclasses.replace(parts, prepare=prepare)


def template(case):
    """The shapes and types of the state, which restoring a checkpoint of the case needs."""
    it = parts(case)
    return abstract_state(it.model, it.objective, it.optimizer, (1, *it.data.shape))


def measure(case, dtype="float32"):
    """The state after a few steps, and by name the losses, the samples and the cost of the compiled step per device."""
    it = with_precise_data(parts(case), dtype)
    state, found = mesh.replicate(precise(it.init(), dtype)), {}
    step = it.step()
    compiled = step.lower(state, it.x0(0), it.cond(0)).compile()
    found["flops"] = compiled.cost_analysis()["flops"]
    found["moves"] = len(re.findall(r" (?:all-gather|all-to-all|collective-permute)[-a-z]*\(", compiled.as_text()))
    found["losses"] = []
    for i in range(STEPS):
        state, metrics = step(state, it.x0(i), it.cond(i))
        found["losses"].append([float(metrics["loss"]), float(metrics["grad_norm"])])
    found["held_out"] = it.eval()(state.ema)
    levels = []
    found["samples"] = sampling(case, it)(state.ema, 10, levels.append)
    found["levels"] = levels
    return state, found


def flat(case, state, found):
    """The arrays of the state and the measures, by name, as NumPy arrays."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return {f"{case}/{key}": np.asarray(value) for key, value in (leaves | found).items()}


def measures(cases):
    """The states and measures of all these cases; CASE64 is CASE in float64."""
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
        read = checkpoints.restore(template("random"))
    assert read is not None
    restored, step = read
    found |= flat("restored", restored, {})
    with Checkpoints(folder / name) as checkpoints:
        checkpoints.save(step, restored)
    np.savez(folder / f"{name}.{jax.process_index()}.npz", **found)
    mesh.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
