"""The log-likelihood of data under a denoiser: by its probability-flow ODE, and by the variational bound.

Both give log p of the clean data in nats, `[B]`, with the standard error of their own randomness, `[B]`. They belong to
two models that share a network, the deterministic and the random way down, so neither bounds the other unless the
denoiser is exact. With bytes of a `width` both are likelihoods of the bytes: D log(width) is added to a density.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Denoiser, check_denoiser
from scoregen.errors import Refusal, check_positive
from scoregen.losses.bound import VLB, Bins, refuse_uniform_start
from scoregen.process import Process, bottom, perturb
from scoregen.process.kernel import as_data
from scoregen.random import broadcast, by_example, example_keys, fold_keys, split_keys
from scoregen.samplers.ode import polar, rotation, solve
from scoregen.times import Drawn, UniformLogSNR

LogProb = Callable[[Array], Array]


class LogLikelihood(NamedTuple):
    """log p(x0), all `[B]`.

    Attributes:
        nats: the estimate, in nats an example.
        error: its standard error, over the estimate's own draws; 0 where there are none.
        steps: how many steps the solver took; for the bound, the number of network evaluations.
    """

    nats: Array
    error: Array
    steps: Array


def bits_per_dim(nats: Array, dims: int) -> Array:
    """-log2 p over the number of dimensions, from log p in nats; negative where a density is above one.

    >>> float(bits_per_dim(jnp.log(2.0**-12), 4))
    3.0
    """
    return -nats / (dims * math.log(2))


def prior_log_prob(process: Process, x: Array) -> Array:
    """log N(x; 0, prior_std^2 I), the density that sampling starts from, `[B]` nats.

    Raises:
        ValueError: where it starts from a uniform law, which has no density at nearly all x of the noisiest level.

    >>> from scoregen.process import VP
    >>> float(prior_log_prob(VP(), jnp.zeros((1, 2)))[0])  # -log(2 pi)
    -1.837877
    """
    _check(refuse_uniform_start(process))
    std = process.prior_std().astype(x.dtype)
    z = (x / std).reshape(len(x), -1)
    return -0.5 * jnp.sum(z**2, 1) - z.shape[1] * (0.5 * math.log(2 * math.pi) + jnp.log(std))


def _check(refused: Refusal | None) -> None:
    if refused is not None:
        raise ValueError(str(refused))


@dataclasses.dataclass(frozen=True)
class ProbabilityFlow:
    """The exact likelihood of the probability-flow ODE (Song et al. 2021, eq. 39 and appendix D.2).

        log p_{t_min}(x) = log prior(x_T) + integral from t_min to T of div v(x_t, t) dt,     dx_t/dt = v(x_t, t)

    with v the `velocity`, x_t the solution that begins at x, and div v the trace of its derivative: D forward-mode
    derivatives in few dimensions, else the mean of w' (dv/dx) w over Rademacher directions w (Hutchinson 1989;
    Grathwohl et al. 2019, eq. 8), drawn once an example, so that the equation is smooth. Each example
    has its own steps, and each direction its own integral, whose scatter is the standard error.

    It is solved in the coordinates in which it is the same for every process, and without jumps
    (`samplers.ode.rotation`): the angle phi = arctan(sigma / alpha) for time and y = x / sqrt(alpha^2 + sigma^2).

    There is no score at t = 0, so a datum x0 is taken where its mean is at the least noisy level:

        log p_0(x0) ~ log p_{t_min}(alpha x0) + D log alpha                 (change of variables; alpha = alpha(t_min))

    which is the density of the data with noise of sigma / alpha: choose t_min well below the scale that matters in
    them, such as a byte.

    Attributes:
        bins: (low, high, width) of discrete data: they are spread over their bins first, x0 + width (u - 1/2) with
            u ~ U[0, 1) (Theis et al. 2016, section 3.1). None for a density; a run takes it from the data's scaling.
        width: of a byte, or 1 for points: see `VLB`. A run takes it from the scaling too.
        exact_dims: in up to so many dimensions the trace is exact.
        probes: beyond, the number of directions.
        rtol, atol: of the solver, on y and on the integrals. With 1e-4 digits were right to 3e-4 bits a dimension.

    Raises:
        ValueError: unless probes >= 2, exact_dims >= 0, and the others are positive; when it is called, under a process
            that `refuse` refuses, if no `top` is given.

    >>> from scoregen.testing.oracle import gaussian
    >>> from scoregen.process import EDM
    >>> data, x0 = gaussian((0.0, 0.0), 0.5), jnp.array([[0.3, 0.4]])
    >>> found = ProbabilityFlow()(data.denoiser(EDM()), jax.random.key(0), x0)
    >>> float(found.nats[0]), float(data.log_prob(x0)[0])
    (-0.95..., -0.95...)
    """

    bins: Bins | None = None
    width: float = 1.0
    exact_dims: int = 16
    probes: int = 8
    rtol: float = 1e-4
    atol: float = 1e-4

    def __post_init__(self):
        for name, least in (("probes", 2), ("exact_dims", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least} is needed")
        check_positive(width=self.width, rtol=self.rtol, atol=self.atol)

    def refuse(self, process: Process) -> Refusal | None:
        """Why nothing has a likelihood under `process`, or None."""
        return refuse_uniform_start(process)

    def __call__(self, denoiser: Denoiser, key: Array, x0: Array, top: LogProb | None = None) -> LogLikelihood:
        """log p_0 of the data x0 `[B, ...]`, by the change of variables.

        Args:
            denoiser: the denoiser; one that knows each example of a batch, such as its label, is refused.
            key: one, or one for each example `[B]`.
            x0: clean data; numbers of `bins` if there are any.
            top: log p `[B]` of x at the noisiest level; None: `prior_log_prob`.

        Raises:
            TypeError: if it is no denoiser, or x0 no array of floating-point numbers.
        """
        check_denoiser(denoiser)
        x0 = as_data(x0, "x0")
        noise, directions = split_keys(example_keys(key, len(x0)), 2)
        if self.bins is not None:
            x0 = x0 + self.bins[2] * (by_example(jax.random.uniform, noise, x0.shape).astype(x0.dtype) - 0.5)
        alpha = denoiser.process.alpha(bottom(denoiser.process)).astype(x0.dtype)
        found = self.at_the_end(denoiser, directions, alpha * x0, top)
        return found._replace(nats=found.nats + x0[0].size * (jnp.log(alpha) + math.log(self.width)))

    def at_the_end(self, denoiser: Denoiser, key: Array, x: Array, top: LogProb | None = None) -> LogLikelihood:
        """log p_{t_min} of x `[B, ...]` at the least noisy level; the arguments are those of the call."""
        process = denoiser.process
        if top is None:
            _check(self.refuse(process))
        dims = x[0].size
        exact = dims <= self.exact_dims
        if exact:
            basis = jnp.eye(dims, dtype=x.dtype).reshape(1, dims, *x.shape[1:])
            directions = jnp.broadcast_to(basis, (len(x), *basis.shape[1:]))
        else:
            directions = by_example(jax.random.rademacher, key, (len(x), self.probes, *x.shape[1:])).astype(x.dtype)
        (first, last), (least, most) = polar(process, jnp.asarray(process.ends), x.dtype)
        rotate = rotation(denoiser)

        def one(y: Array, directions: Array) -> tuple[Array, Array, Array]:
            def field(angle: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
                def flow(y: Array) -> Array:
                    found = rotate(angle[None], y[None])
                    if found.shape != (1, *y.shape):
                        raise ValueError(
                            "the denoiser knows each example of a batch, such as its label, and is evaluated for one "
                            "example at a time here"
                        )
                    return found[0]

                def derivative(w: Array) -> tuple[Array, Array]:
                    v, along = jax.jvp(flow, (state[0],), (w,))
                    return v, jnp.sum(w * along)

                v, traces = jax.vmap(derivative, out_axes=(None, 0))(directions)
                return v, jnp.sum(traces, keepdims=True) if exact else traces

            state = y, jnp.zeros(1 if exact else self.probes, y.dtype)
            (y, integrals), steps = solve(field, state, first, last, self.rtol, self.atol)
            return y, integrals, steps

        y, integrals, steps = jax.vmap(one)(x / least, directions)
        error = jnp.zeros(len(x), x.dtype) if exact else jnp.std(integrals, 1, ddof=1) / math.sqrt(self.probes)
        start = (prior_log_prob(process, most * y) if top is None else top(most * y)) + dims * jnp.log(most / least)
        return LogLikelihood(start + integrals.mean(1), error, steps)


@dataclasses.dataclass(frozen=True)
class Bound:
    """The variational bound as an evaluation, log p(x0) >= -E[ VLB ], by draws of times and noise (see `VLB`).

    The times of an example are stratified: v in [0, 1) falls into even strata, with two draws in each, and is the
    quantile of a law of times that is even in the log-SNR (`times.UniformLogSNR`), whose importance ratios make it an
    average over the process's own law. Half the difference of the two draws of a stratum gives its error, without bias.

    Attributes:
        bins, variance, width: see `VLB`; a run knows the first and the last, and whether a variance was learned.
        strata: how many; the network is evaluated twice in each. 0: one for each level of a chain.

    Raises:
        ValueError: if strata < 0, or as `VLB` does; when it is called, under a process that `refuse` refuses.

    >>> from scoregen.testing.oracle import gaussian
    >>> from scoregen.process import ddpm
    >>> data, x0 = gaussian((0.0, 0.0), 0.5), jnp.zeros((200, 2))
    >>> found = Bound()(data.denoiser(ddpm()), jax.random.key(0), x0)
    >>> bool(found.nats.mean() < data.log_prob(x0)[0])
    True
    """

    bins: Bins | None = None
    width: float = 1.0
    variance: str = "small"
    strata: int = 256

    def __post_init__(self):
        if self.strata < 0:
            raise ValueError(f"strata={self.strata}: 0 or more is needed")
        self._loss()

    def _loss(self) -> VLB:
        return VLB(self.bins, "nats", self.variance, self.width)

    def refuse(self, process: Process) -> Refusal | None:
        """Why there is no such bound under `process`, or None."""
        if not self.strata and not process.discrete:
            reason = "strata=0 means one for each level of a chain, and continuous time has no levels"
            return Refusal(reason, ("likelihood.strata=256",))
        return self._loss().refuse(process)

    def __call__(self, denoiser: Denoiser, key: Array, x0: Array) -> LogLikelihood:
        """The bound on log p of the data x0 `[B, ...]`, with one key, or one for each example `[B]`."""
        check_denoiser(denoiser)
        process, x0 = denoiser.process, as_data(x0, "x0")
        _check(self.refuse(process))
        keys, strata = example_keys(key, len(x0)), self.strata or int(process.ends[1]) + 1
        loss = self._loss()

        def once(stratum: Array, keys: Array) -> Array:
            along, within, noise, inner = split_keys(keys, 4)
            if self.strata:
                u = self._uniform(along)
                u = (stratum.astype(u.dtype) + u) / strata
                drawn = UniformLogSNR().at(process, (), u, self._uniform(within))
            else:
                t = jnp.full(len(keys), stratum)
                drawn = Drawn(t, jnp.ones(len(keys)), t)
            noised = perturb(process, noise, x0, drawn.t)
            value = loss(denoiser, noised, inner)
            return broadcast(drawn.ratio, value) * value

        def add(sums: tuple[Array, Array], stratum: Array) -> tuple[tuple[Array, Array], None]:
            # Both at once, but as two batches: a denoiser may know the class of each example of a batch.
            pair = jnp.stack(split_keys(fold_keys(keys, stratum), 2))
            first, second = jax.vmap(once, (None, 0))(stratum, pair)
            return (sums[0] + 0.5 * (first + second), sums[1] + 0.25 * (first - second) ** 2), None

        zero = jnp.zeros(len(x0), x0.dtype)
        (total, square), _ = jax.lax.scan(add, (zero, zero), jnp.arange(strata))
        return LogLikelihood(-total / strata, jnp.sqrt(square) / strata, jnp.full(len(x0), 2 * strata))

    @staticmethod
    def _uniform(keys: Array) -> Array:
        return by_example(jax.random.uniform, keys, keys.shape)


LIKELIHOODS = {"both": lambda: None, "ode": ProbabilityFlow, "bound": Bound}
