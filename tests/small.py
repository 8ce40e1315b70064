"""Small parts for training runs, and comparisons of their results."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

import scoregen as sg
from scoregen.train import Decay, Model, init_state, make_eval, make_optimizer, make_step

# The presets for data of one's own, each with the shape of an example.
OWN = {"images": (64, 64, 3), "points": (3,), "series": (32, 2), "fields": (8, 8, 1), "volumes": (4, 4, 4, 1)}


@dataclasses.dataclass(frozen=True)
class Parts:
    """All that a training run is made of."""

    model: Model
    objective: Any
    data: Any
    optimizer: Any
    average: Any = Decay(0.9)
    batch: int = 8
    microbatch: int = 0
    prepare: Any = None
    seed: int = 0

    def init(self):
        return init_state(self.model, self.objective, self.optimizer, (1, *self.data.shape), self.seed)

    def step(self):
        return make_step(
            self.model,
            self.objective,
            self.optimizer,
            self.average,
            self.microbatch,
            prepare=self.prepare,
            seed=self.seed,
        )

    def eval(self):
        return make_eval(
            self.model, self.objective, self.data, prepare=self.prepare, seed=self.seed, batch=self.eval_batch
        )

    @property
    def eval_batch(self):
        return min(64, self.microbatch or self.batch)

    def x0(self, step, batch=None):
        return self.data.batch(self.seed, step, batch or self.batch)

    def cond(self, step):
        if not self.model.num_classes:
            return None
        return sg.Cond(label=self.data.train_labels[self.data.indices(self.seed, step, self.batch)])

    def fit(self, workdir=None, steps=6, **options):
        """`sg.fit` with these parts."""
        options = {"log_every": 1, "checkpoint_every": 3, "progress": False} | options
        return sg.fit(
            self.model,
            self.data,
            self.objective,
            self.optimizer,
            steps,
            batch=self.batch,
            ema=self.average,
            seed=self.seed,
            microbatch=self.microbatch,
            prepare=self.prepare,
            workdir=workdir,
            **options,
        )


def toy(net=None, process=None, model=None, **parts) -> Parts:
    """The smallest run in the plane."""
    net = net or sg.nets.MLP(width=8, depth=1, embedding=8)
    found = Parts(
        Model(process or sg.ddpm(), net, "eps", "logsnr", **(model or {})),
        sg.Objective(sg.EpsilonMSE()),
        sg.data.mixture(size=64),
        make_optimizer("adam", "constant", 2e-3, clip=1.0),
    )
    return dataclasses.replace(found, **parts)


def digits(net=None, **parts) -> Parts:
    """The smallest run on images, with every kind of randomness: dropout, flips, dequantization."""
    found = Parts(
        Model(sg.ddpm(), net or sg.nets.MLP(width=8, depth=1, embedding=8, dropout=0.5)),
        sg.Objective(sg.EpsilonMSE()),
        sg.data.digits(),
        optax.adam(lambda step: 1e-3 * np.float32(1) * jax.numpy.minimum(1.0, step / 2)),
        batch=4,
        prepare=sg.data.Prepare(sg.data.Unit(), flip=True),
    )
    return dataclasses.replace(found, **parts)


def learned(**parts) -> Parts:
    """The smallest run that learns more than the network: the law of times, and the loss's variance."""
    process = sg.ddpm(steps=30).between(27, 29)  # three levels
    objective = sg.Objective(sg.EpsilonMSE(), times=sg.SecondMoment(history=2))
    return toy(**({"process": process, "model": {"log_variance": True}, "objective": objective, "batch": 16} | parts))


def same(a, b) -> bool:
    """Equal in structure and every bit."""
    equal = lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes()  # noqa: E731
    return jax.tree.structure(a) == jax.tree.structure(b) and all(map(equal, *map(jax.tree.leaves, (a, b))))


def close(a, b, **tolerance) -> bool:
    return all(np.allclose(x, y, **tolerance) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
