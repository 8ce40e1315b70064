"""The log-likelihood of data under a denoiser: by its probability-flow ODE, and by the variational bound.

Both give log p of the clean data in nats, `[B]`, with the standard error of their random draws, `[B]`. They belong to
two models that share a network: sampling by the ODE, and sampling by random steps. Neither value bounds the other
unless the denoiser is exact. For bytes of width `width` both give the likelihood of the bytes, by adding D log(width)
to the log-density; the bound with `bins` takes the decoder's probability of the bytes instead.
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
from scoregen.errors import Refusal, check_fields, check_positive
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
        error: the standard error of the estimate, over its random draws; 0 if it draws nothing.
        steps: how many steps the solver took; for the bound, the number of network evaluations.
    """

    nats: Array
    error: Array
    steps: Array


def bits_per_dim(nats: Array, dims: int) -> Array:
    """-log2 p divided by the number of dimensions, from log p in nats; negative if a density is above 1.

    >>> float(bits_per_dim(jnp.log(2.0**-12), 4))
    3.0
    """
    return -nats / (dims * math.log(2))


def prior_log_prob(process: Process, x: Array) -> Array:
    """log N(x; 0, prior_std^2 I), the log-density of the prior that sampling starts from, `[B]` nats.

    Raises:
        ValueError: if sampling starts from a uniform law, whose density is 0 at nearly all x of the noisiest level.

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

    Here v is the `velocity`, x_t the solution that begins at x, and div v the trace of dv/dx. In few dimensions the
    trace is exact, from D forward-mode derivatives. In more it is the mean of w' (dv/dx) w over Rademacher directions w
    (Hutchinson 1989; Grathwohl et al. 2019, eq. 8). These are drawn once per example, so that the equation is smooth.
    Each example has its own solver steps. Each direction has its own integral, and the scatter of the integrals gives
    the standard error.

    The solver uses the angle phi = arctan(sigma / alpha) as time, and y = x / sqrt(alpha^2 + sigma^2). In these
    coordinates the equation is the same for every process and has no jumps (`samplers.ode.rotation`).

    There is no score at t = 0. An example x0 is therefore evaluated at the least noisy level, at its mean alpha x0:

        log p_0(x0) ~ log p_{t_min}(alpha x0) + D log alpha                 (change of variables; alpha = alpha(t_min))

    This is the density of the data with noise of standard deviation sigma / alpha. Choose t_min so that this is well
    below the smallest scale that matters in the data, such as the width of a byte.

    Attributes:
        bins: (low, high, width) of discrete data, which are first spread over their bins: x0 + width (u - 1/2) with
            u ~ U[0, 1) (Theis et al. 2016, section 3.1). None for continuous data. A run takes it from the data's
            scaling.
        width: the width of a byte, or 1 for points; see `VLB`. A run takes it from the scaling too.
        exact_dims: the trace is exact for data of up to this many dimensions.
        probes: the number of directions for data of more dimensions.
        rtol, atol: the solver's tolerances, for y and for the integrals. With 1e-4 the likelihoods of the data set
            `digits` were right to 3e-4 bits per dimension.

    Raises:
        TypeError: if probes or exact_dims is not an integer.
        ValueError: unless probes >= 2, exact_dims >= 0, and the other numbers are positive; when it is called without
            `top`, if `refuse` refuses the process.

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
        check_fields(self, probes=2, exact_dims=0)
        check_positive(width=self.width, rtol=self.rtol, atol=self.atol)

    def refuse(self, process: Process) -> Refusal | None:
        """Why data have no likelihood under `process`, or None if they have one."""
        return refuse_uniform_start(process)

    def __call__(self, denoiser: Denoiser, key: Array, x0: Array, top: LogProb | None = None) -> LogLikelihood:
        """log p_0 of the data x0 `[B, ...]`, by the change of variables.

        Args:
            denoiser: the denoiser. It must not hold one value per example of a batch, such as labels.
            key: one key, or one for each example `[B]`.
            x0: clean data; if `bins` are given, values of these bins.
            top: a function for log p `[B]` of x at the noisiest level; None for `prior_log_prob`.

        Raises:
            TypeError: if `denoiser` is not a `Denoiser`, `key` not a random key, or x0 not an array of floating-point
                numbers.
            ValueError: if the denoiser holds one value per example of a batch; for a wrong number of keys; without
                `top`, if `refuse` refuses the process.
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
        """log p_{t_min} of x `[B, ...]` at the least noisy level; the arguments are as for the call.

        Raises:
            ValueError: as for the call.
        """
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
                            "the denoiser holds one value per example of a batch, such as labels, but here it is "
                            "evaluated for one example at a time"
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
    """The variational bound as an evaluation: log p(x0) >= -E[ VLB ], with random times and noise (see `VLB`).

    The times of an example are stratified: [0, 1) is divided into equal strata, with two draws in each. A draw is a
    quantile of the time law that is uniform in the log-SNR (`times.UniformLogSNR`). Its importance ratios turn the mean
    into an average over the process's own law. The squared half-difference of the two draws in a stratum estimates
    the variance of their mean without bias.

    Attributes:
        bins, variance, width: see `VLB`. A run takes bins and width from the data's scaling, and variance="learned"
            if the network has learned a variance under this process.
        strata: the number of strata; the network is evaluated twice in each. 0 means one for each level of a chain.

    Raises:
        TypeError: if strata is not an integer.
        ValueError: if strata < 0, or as `VLB` does; when it is called, if `refuse` refuses the process.

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
        check_fields(self, strata=0)
        self._loss()

    def _loss(self) -> VLB:
        return VLB(self.bins, "nats", self.variance, self.width)

    def refuse(self, process: Process) -> Refusal | None:
        """Why there is no bound under `process`, or None if there is one."""
        if not self.strata and not process.discrete:
            reason = "strata=0 means one for each level of a chain, and continuous time has no levels"
            return Refusal(reason, ("likelihood.strata=256",))
        return self._loss().refuse(process)

    def __call__(self, denoiser: Denoiser, key: Array, x0: Array) -> LogLikelihood:
        """The bound on log p of the data x0 `[B, ...]`, with one key, or one for each example `[B]`.

        Raises:
            TypeError: if `denoiser` is not a `Denoiser`, `key` not a random key, or x0 not an array of floating-point
                numbers.
            ValueError: for a wrong number of keys; if `refuse` refuses the process; for variance="learned", if the
                denoiser has no learned variance.
        """
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
            # Both draws at once, but as two batches, since a denoiser may hold the class of each example.
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
