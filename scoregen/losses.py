"""Objectives. Each takes (process, predict, noised, key) and gives one number an example, `[B]`, unreduced.

All of them fit the score of the noised density p_t. Summed over data dimensions unless said otherwise;
the training step averages over the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Predict
from scoregen.process import Noised, Process, draw, rows

Loss = Callable[[Process, Predict, Noised, Array], Array]


def _sum(x: Array) -> Array:
    """Sum over all axes but the first, `[B, ...] -> [B]`."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


@dataclasses.dataclass(frozen=True)
class EpsilonMSE:
    """The simple loss of Ho et al. 2020 (eq. 14): ||eps - eps_theta(x_t, t)||^2.

    `reduce="mean"` averages over data dimensions, as their code does; `"sum"` adds them up, as the
    equation does. With "sum" it is exactly twice `DSM`.

    Raises:
        ValueError: if reduce is neither.
    """

    reduce: str = "mean"

    def __post_init__(self):
        if self.reduce not in ("mean", "sum"):
            raise ValueError(f"reduce={self.reduce!r}: 'mean' or 'sum' is needed")

    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        total = _sum((noised.eps - predict(noised.x, noised.t).eps) ** 2)
        return total / noised.x0[0].size if self.reduce == "mean" else total


@dataclasses.dataclass(frozen=True)
class DSM:
    """Denoising score matching (Vincent 2011, eq. 9), weighted by sigma^2 (Song & Ermon 2019, eq. 5-6).

        1/2 sigma^2 || s_theta(x_t, t) - grad log p(x_t | x_0) ||^2  =  1/2 || sigma s_theta(x_t, t) + eps ||^2

    since grad log p(x_t | x_0) = -(x_t - alpha x_0) / sigma^2 = -eps / sigma. The minimiser is the score of
    the noised density p_t.
    """

    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        sigma = rows(process.sigma(noised.t), noised.x)
        return 0.5 * _sum((sigma * predict(noised.x, noised.t).score + noised.eps) ** 2)


def _sphere(key: Array, shape: tuple[int, ...]) -> Array:
    """Slices `[S, ...]`, each uniform on the sphere of radius sqrt(D), so that E[v v'] = I."""
    v = jax.random.normal(key, shape)
    axes = tuple(range(1, v.ndim))
    return v / jnp.sqrt(jnp.mean(v**2, axes, keepdims=True))


PROJECTIONS = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal, "sphere": _sphere}


@dataclasses.dataclass(frozen=True)
class SSM:
    """Sliced score matching (Song et al. 2019, SSM and SSM-VR), at noise level t and weighted by sigma^2.

        sigma^2 E_v [ v' grad(v' s_theta) + 1/2 (v' s_theta)^2 ]              (variance_reduced=False)
        sigma^2 E_v [ v' grad(v' s_theta) ] + sigma^2 / 2 ||s_theta||^2       (variance_reduced=True)

    Neither term sees x_0 or eps: only draws x_t from p_t are needed. Up to a constant that does not
    depend on the network, its expectation is that of `DSM`. The first term may be negative. v has
    E[v v'] = I: "rademacher" (of no more variance than Gaussian), "gaussian", or "sphere" of radius sqrt(D). Here
    v' grad(v' s) = v' J v is one forward-mode derivative inside the reverse-mode gradient.

    Attributes:
        slices: the number of projections v for each example; their mean is taken.
        projection: the law of v.
        variance_reduced: the second form.

    Raises:
        ValueError: if slices < 1, or for an unknown projection.
    """

    slices: int = 1
    projection: str = "rademacher"
    variance_reduced: bool = True

    def __post_init__(self):
        if self.slices < 1:
            raise ValueError(f"slices={self.slices}: at least 1 is needed")
        if self.projection not in PROJECTIONS:
            raise ValueError(f"projection={self.projection!r}: one of {', '.join(PROJECTIONS)} is needed")

    def __call__(self, process: Process, predict: Predict, noised: Noised, key: Array) -> Array:
        shape = (noised.x.shape[0], self.slices, *noised.x.shape[1:])
        vs = draw(PROJECTIONS[self.projection], key, shape).astype(noised.x.dtype)

        def derivative(v: Array) -> tuple[Array, Array]:
            return jax.jvp(lambda x: predict(x, noised.t).score, (noised.x,), (v,))

        # The score itself does not depend on v, so all slices share the one evaluation of it.
        s, jvs = jax.vmap(derivative, in_axes=1, out_axes=(None, 1))(vs)
        axes = tuple(range(2, vs.ndim))
        trace = jnp.sum(vs * jvs, axes)
        norm = _sum(s**2)[:, None] if self.variance_reduced else jnp.sum(vs * s[:, None], axes) ** 2
        return process.sigma(noised.t) ** 2 * jnp.mean(trace + 0.5 * norm, axis=1)


LOSSES = {"eps": EpsilonMSE, "dsm": DSM, "ssm": SSM}
