"""How likely held-out data are under a denoiser: by its probability-flow ODE, and by the variational bound.

Both give log p of the clean data in nats, `[B]`, with a standard error of their own randomness, `[B]`. They are of two
models that share a network, the deterministic and the random way down, so neither bounds the other but where the
denoiser is exact. With bytes of a `width` both are of the bytes: a density has D log(width) added to it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from scoregen.denoiser import Predict
from scoregen.losses import VLB
from scoregen.losses.bound import Bins
from scoregen.process import Process, draw, example_keys, fold_keys, perturb, split_keys
from scoregen.samplers.adaptive import polar, rotation, solve
from scoregen.times import Drawn, UniformLogSNR

LogProb = Callable[[Array], Array]


class LogLikelihood(NamedTuple):
    """log p(x0), all `[B]`.

    Attributes:
        nats: the estimate, in nats an example.
        error: its standard error, over the estimate's own draws; 0 where there are none.
        steps: how many steps the solver took; of the bound, how often the network was asked.
    """

    nats: Array
    error: Array
    steps: Array


def bits_per_dim(nats: Array, dims: int) -> Array:
    """-log2 p over the number of dimensions, of log p in nats; negative where a density is above one.

    >>> float(bits_per_dim(jnp.log(2.0**-12), 4))
    3.0
    """
    return -nats / (dims * math.log(2))


def prior_log_prob(process: Process, x: Array) -> Array:
    """log N(x; 0, prior_std^2 I), the density that sampling starts from, `[B]` nats.

    Raises:
        ValueError: where it starts from a uniform law, which has no density for nearly all x of the noisiest level.

    >>> from scoregen.process import VP
    >>> float(prior_log_prob(VP(), jnp.zeros((1, 2)))[0])  # -log(2 pi)
    -1.837877
    """
    if getattr(process, "start", "normal") == "uniform":
        raise ValueError("the start of this process is uniform, and what is outside of it has no likelihood")
    z = (x / process.prior_std().astype(x.dtype)).reshape(len(x), -1)
    return -0.5 * jnp.sum(z**2, 1) - z.shape[1] * (0.5 * math.log(2 * math.pi) + jnp.log(process.prior_std()))


@dataclasses.dataclass(frozen=True)
class ProbabilityFlow:
    """The exact likelihood of the probability-flow ODE (Song et al. 2021, eq. 39 and appendix D.2).

        log p_{t_min}(x) = log prior(x_T) + integral from t_min to T of div v(x_t, t) dt,     dx_t/dt = v(x_t, t)

    with v the `velocity`, x_t the solution that begins at x, and div v the trace of its derivative: D forward-mode
    derivatives in few dimensions, else the mean of w' (dv/dx) w over Rademacher directions w (Hutchinson 1989;
    Grathwohl et al. 2019, eq. 8), drawn once an example, so that what is solved is a smooth equation. Each example
    has its own steps, and each direction its own integral, whose scatter is the standard error.

    It is solved in the coordinates in which it is the same for every process, and without jumps
    (`samplers.adaptive.rotation`): the angle phi = arctan(sigma / alpha) for time and y = x / sqrt(alpha^2 + sigma^2).

    There is no score at t = 0, so a datum x0 is taken where its mean is at the least noisy level:

        log p_0(x0) ~ log p_{t_min}(alpha x0) + D log alpha                 (change of variables; alpha = alpha(t_min))

    which is that of the data with noise of sigma / alpha: choose t_min well below what matters in them, such as a byte.

    Attributes:
        bins: (low, high, width) of discrete data: they are spread over their bins first, x0 + width (u - 1/2) with
            u ~ U[0, 1) (Theis et al. 2016, section 3.1). None for a density; the run takes it from the data's scaling.
        width: of a byte, or 1 for points: see `VLB`. The run takes it from the scaling too.
        exact_dims: in up to so many dimensions the trace is exact.
        probes: beyond, the number of directions.
        rtol, atol: of the solver, on y and on the integrals. With 1e-4 digits were right to 3e-4 bits a dimension.

    Raises:
        ValueError: unless probes >= 2, exact_dims >= 0, and the others are positive.

    >>> from scoregen.oracle import gaussian
    >>> from scoregen.process import EDM
    >>> process, data = EDM(), gaussian((0.0, 0.0), 0.5)
    >>> found = ProbabilityFlow(None)(process, data.predict(process), jax.random.key(0), jnp.array([[0.3, 0.4]]))
    >>> float(found.nats[0]), float(data.log_prob(jnp.array([[0.3, 0.4]]))[0])
    (-0.95..., -0.95...)
    """

    bins: Bins | None
    width: float = 1.0
    exact_dims: int = 16
    probes: int = 8
    rtol: float = 1e-4
    atol: float = 1e-4

    def __post_init__(self):
        for name, least in (("probes", 2), ("exact_dims", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least} is needed")
        for name in ("width", "rtol", "atol"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: a positive number is needed")

    def __call__(
        self, process: Process, predict: Predict, key: Array, x0: Array, top: LogProb | None = None
    ) -> LogLikelihood:
        """log p_0 of the data x0 `[B, ...]`, by the change of variables.

        Args:
            process: the process.
            predict: its denoiser.
            key: one, or one for each example `[B]`.
            x0: clean data, of `bins` if there are any.
            top: log p `[B]` of x at the noisiest level; None: `prior_log_prob`.
        """
        spread, directions = split_keys(example_keys(key, len(x0)), 2)
        if self.bins is not None:
            x0 = x0 + self.bins[2] * (draw(jax.random.uniform, spread, x0.shape).astype(x0.dtype) - 0.5)
        alpha = process.alpha(process.grid(2)[1]).astype(x0.dtype)
        found = self.at_the_end(process, predict, directions, alpha * x0, top)
        return found._replace(nats=found.nats + x0[0].size * (jnp.log(alpha) + math.log(self.width)))

    def at_the_end(
        self, process: Process, predict: Predict, key: Array, x: Array, top: LogProb | None = None
    ) -> LogLikelihood:
        """log p_{t_min} of x `[B, ...]` at the least noisy level; the arguments are those of the call."""
        dims = x[0].size
        exact = dims <= self.exact_dims
        if exact:
            basis = jnp.eye(dims, dtype=x.dtype).reshape(1, dims, *x.shape[1:])
            directions = jnp.broadcast_to(basis, (len(x), *basis.shape[1:]))
        else:
            directions = draw(jax.random.rademacher, key, (len(x), self.probes, *x.shape[1:])).astype(x.dtype)
        (last, first), (most, least) = polar(process, process.grid(2), x.dtype)
        rotate = rotation(process, predict)

        def one(y: Array, directions: Array) -> tuple[Array, Array, Array]:
            def field(angle: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
                def flow(y: Array) -> Array:
                    found = rotate(angle[None], y[None])
                    if found.shape != (1, *y.shape):
                        raise ValueError("the denoiser knows something of each example of a batch; it is asked for one")
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
    quantile of a law of times that is even in the log-SNR (`times.UniformLogSNR`), whose weights make it an average
    over the process's own. Half the difference of the two draws of a stratum tells its error, without bias.

    Attributes:
        bins, variance, width: see `VLB`; the run knows the first and the last, and a variance that was learned.
        strata: how many; the network is asked twice in each. 0: one for each level of a chain.

    Raises:
        ValueError: if strata < 0, or as `VLB` does; when it is called, if strata = 0 in continuous time.

    >>> from scoregen.oracle import gaussian
    >>> from scoregen.process import ddpm
    >>> process, data, x0 = ddpm(), gaussian((0.0, 0.0), 0.5), jnp.zeros((200, 2))
    >>> found = Bound(None)(process, data.predict(process), jax.random.key(0), x0)
    >>> bool(found.nats.mean() < data.log_prob(x0)[0])
    True
    """

    bins: Bins | None
    width: float = 1.0
    variance: str = "small"
    strata: int = 256

    def __post_init__(self):
        if self.strata < 0:
            raise ValueError(f"strata={self.strata}: 0 or more is needed")
        self._loss()

    def _loss(self) -> VLB:
        return VLB(self.bins, "nats", self.variance, self.width)

    def __call__(self, process: Process, predict: Predict, key: Array, x0: Array) -> LogLikelihood:
        """The bound on log p of the data x0 `[B, ...]`, with one key, or one for each example `[B]`."""
        if not self.strata and not process.discrete:
            raise ValueError("strata=0 is one for each level of a chain, and in continuous time there are none")
        keys, strata = example_keys(key, len(x0)), self.strata or process.levels
        loss = self._loss()

        def once(stratum: Array, keys: Array) -> Array:
            along, within, noise, inner = split_keys(keys, 4)
            if self.strata:
                u = (stratum.astype(x0.dtype) + self._uniform(along, x0)) / strata
                drawn = UniformLogSNR().at(process, (), u, self._uniform(within, x0))
            else:
                t = jnp.full(len(keys), stratum)
                drawn = Drawn(t, jnp.ones(len(keys)), t)
            noised = perturb(process, noise, x0, drawn.t)
            return drawn.weight.astype(x0.dtype) * loss(process, predict, noised, inner)

        def add(sums: tuple[Array, Array], stratum: Array) -> tuple[tuple[Array, Array], None]:
            # Both at once, but as two batches: a denoiser may know of each example of a batch what class it has.
            pair = jnp.stack(split_keys(fold_keys(keys, stratum), 2))
            first, second = jax.vmap(once, (None, 0))(stratum, pair)
            return (sums[0] + 0.5 * (first + second), sums[1] + 0.25 * (first - second) ** 2), None

        zero = jnp.zeros(len(x0), x0.dtype)
        (total, square), _ = jax.lax.scan(add, (zero, zero), jnp.arange(strata))
        return LogLikelihood(-total / strata, jnp.sqrt(square) / strata, jnp.full(len(x0), 2 * strata))

    @staticmethod
    def _uniform(keys: Array, x0: Array) -> Array:
        return draw(jax.random.uniform, keys, keys.shape).astype(x0.dtype)


LIKELIHOODS = {"both": lambda: None, "ode": ProbabilityFlow, "bound": Bound}
