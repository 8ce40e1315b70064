"""THEORY 6-9 in double precision: the gradients of ISM, SSM, FD-SSM and DSM in a network's parameters agree."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from scoregen.cond import Cond
from scoregen.denoiser import from_network
from scoregen.losses import DSM, FDSSM, ISM, SSM
from scoregen.nets import MLP, UNet
from scoregen.process import VP, Noised, perturb
from scoregen.testing.oracle import TWO_MODES, Mixture

PROCESS = VP()
SIXTEEN = Mixture((0.4, 0.6), tuple(map(tuple, 0.8 * np.random.default_rng(2).choice([-1, 1], (2, 16)))), (0.3, 0.5))
PLAIN = functools.partial(SSM, variance_reduced=False)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


class Case:
    """Data, a network with weights of unit order, and the gradients of losses in these weights."""

    def __init__(self, name):
        self.net, self.data, self.shape = {
            "mlp": (MLP(width=8, embedding=8), TWO_MODES, (2,)),
            # Every kind of layer: a stride, an upsampling, attention, and shortcuts of both kinds.
            "unet": (
                UNet(channels=4, multipliers=(1, 2), blocks=0, attention=(), dropout=0.0, groups=2, dtype="float64"),
                SIXTEEN,
                (4, 4, 1),
            ),
        }[name]
        x, c = jnp.zeros((1, *self.shape), jnp.float32), jnp.zeros(1, jnp.float32)
        template = jax.eval_shape(self.net.init, jax.random.key(0), x, Cond(c))
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda a: jnp.asarray(rng.standard_normal(a.shape) / math.sqrt(math.prod(a.shape[:-1]) or 1)), template
        )
        self.weights, self.unravel = ravel_pytree(params)

    def apply(self, weights, x, t):
        return self.net.apply(self.unravel(weights), x, Cond(PROCESS.logsnr(t)))

    def batches(self, count, size):
        """`[count, size, ...]`, at log-SNRs from -4 to 4."""
        t = PROCESS.time(jax.random.uniform(jax.random.key(1), (count * size,), minval=-4.0, maxval=4.0))
        x0 = self.data.sample(jax.random.key(2), count * size).reshape(-1, *self.shape)
        noised = perturb(PROCESS, jax.random.key(3), x0, t)
        return jax.tree.map(lambda a: a.reshape(count, size, *a.shape[1:]), noised)

    def gradients(self, loss, batches, share=1.0):
        """The gradient of each batch's sum of share times loss, `[count, P]`. Each batch has its own directions."""

        def total(weights, noised, key, share):
            denoiser = from_network(PROCESS, "eps", functools.partial(self.apply, weights))
            return jnp.sum(share * loss(denoiser, noised, key))

        share = jnp.broadcast_to(share, batches.t.shape)
        keys = jax.random.split(jax.random.key(4), len(batches.t))
        # Second derivatives are long programs that run once: they are not worth optimising.
        quick = {"xla_backend_optimization_level": 0}
        each = jax.jit(
            lambda args: jax.lax.map(lambda a: jax.grad(total)(self.weights, *a), args), compiler_options=quick
        )
        return np.asarray(each((batches, keys, share)))


@functools.cache
def case(name):
    return Case(name)


@functools.cache
def exact(name):
    """Batches, and the gradients of `ISM` on them."""
    batches = case(name).batches(*{"mlp": (1, 8), "unet": (40, 6)}[name])
    return batches, case(name).gradients(ISM(), batches)


def over_all_directions(name, cls, **options):
    """How far the gradient of `cls` over all directions is from the exact one, at the first batch of x_t."""
    batches, gradients = exact(name)
    found = case(name).gradients(all_directions(cls)(**options), jax.tree.map(lambda a: a[:1], batches))
    return relative(found, gradients[:1])


def all_directions(cls):
    """`cls` along sqrt(D) e_i for every i: the mean of v v' is exactly I."""

    class AllDirections(cls):
        def directions(self, key, x):
            dims = x[0].size
            basis = math.sqrt(dims) * jnp.eye(dims, dtype=x.dtype).reshape(1, dims, *x.shape[1:])
            return jnp.broadcast_to(basis, (len(x), *basis.shape[1:]))

    return AllDirections


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def z_scores(differences):
    """The z-scores of the mean of observations `[M, P]`, where they have a spread, and the norm of its error."""
    error = differences.std(0, ddof=1) / math.sqrt(len(differences))
    seen = error > 1e-4 * error.max()
    return differences.mean(0)[seen] / error[seen], np.linalg.norm(error)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_double_is_double_throughout(name):
    """No number within is rounded to single, and the output is a double."""
    noised = jax.tree.map(lambda a: a[0], case(name).batches(1, 2))
    program = jax.make_jaxpr(case(name).apply)(case(name).weights, noised.x, noised.t)
    assert "f32" not in str(program) and program.out_avals[0].dtype == jnp.float64


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "variance_reduced"),
    [("mlp", True), ("mlp", False), ("unet", True), pytest.param("unet", False, marks=pytest.mark.slow)],
)
def test_sliced_gradients_are_the_exact_ones_over_all_directions(name, variance_reduced):
    """THEORY 9 against 7, at the same x_t: equality to rounding."""
    assert over_all_directions(name, SSM, variance_reduced=variance_reduced) < 1e-12


@pytest.mark.parametrize("name", ["mlp", pytest.param("unet", marks=pytest.mark.slow)])
def test_finite_difference_gradients_are_off_by_the_square_of_the_step(name):
    """Pang et al. 2020: half the step, a quarter of the bias."""
    wide, narrow = (over_all_directions(name, FDSSM, step=step) for step in (2e-3, 1e-3))
    assert 1e-9 < narrow < 1e-5
    np.testing.assert_allclose(wide / narrow, 4, rtol=0.01)


@pytest.mark.slow
def test_finite_difference_gradients_are_nearly_the_exact_ones_on_images():
    assert over_all_directions("unet", FDSSM, step=1e-4) < 1e-7


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "loss", [PLAIN(2, "sphere"), SSM(1, "gaussian"), SSM(1, "rademacher"), FDSSM(1, "rademacher", 1e-3)]
)
def test_random_directions_are_unbiased_for_the_gradient(loss):
    """The library's own directions, 400 times at the same x_t."""
    batches, (want,) = exact("mlp")
    again = jax.tree.map(lambda a: jnp.broadcast_to(a, (400, *a.shape[1:])), batches)
    z, error = z_scores(case("mlp").gradients(loss, again) - want)
    # The parameters' z-scores depend on each other, so their mean square is near 1 on the average only.
    assert np.mean(z**2) < 3 and np.abs(z).max() < 5
    assert error < 0.1 * np.linalg.norm(want), "too few draws to say anything"


@pytest.mark.quick(1)
@pytest.mark.parametrize("logsnr", [3.0, 0.5])
def test_denoising_gradient_is_the_exact_one_in_the_plane(logsnr):
    """THEORY 8 against 7, by quadrature over (x0, eps).

    x0 and eps are rotated to u and w. Then x_t = alpha m + rho u, and DSM is quadratic in w, so two nodes suffice.
    """
    t = PROCESS.time(jnp.asarray(logsnr))
    alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
    (u, first), (w, second) = (np.polynomial.hermite_e.hermegauss(n) for n in (80, 2))
    grid = np.stack(np.meshgrid(u, u, w, w, indexing="ij"), -1).reshape(-1, 4)
    law = np.einsum("a,b,c,d->abcd", first, first, second, second).ravel()
    parts = []
    for share, mean, std in zip(TWO_MODES.weights, TWO_MODES.means, TWO_MODES.stds, strict=True):
        rho = math.hypot(alpha * std, sigma)
        z0 = (alpha * std * grid[:, :2] + sigma * grid[:, 2:]) / rho
        eps = (sigma * grid[:, :2] - alpha * std * grid[:, 2:]) / rho
        parts.append((np.asarray(mean) + std * z0, eps, share * law / law.sum()))
    x0, eps, law = (jnp.asarray(np.concatenate(a))[None] for a in zip(*parts, strict=True))
    noised = Noised(x0, eps, alpha * x0 + sigma * eps, jnp.full(law.shape, t))
    ism, dsm = (case("mlp").gradients(loss, noised, law) for loss in (ISM(), DSM()))
    assert relative(dsm, ism) < 1e-6


@pytest.mark.slow
def test_denoising_gradient_is_the_exact_one_on_images():
    """THEORY 8 against 7 through the U-Net, over x0 and eps that are drawn."""
    batches, ism = exact("unet")
    dsm = case("unet").gradients(DSM(), batches)
    z, error = z_scores(dsm - ism)
    assert np.mean(z**2) < 3 and np.abs(z).max() < 6
    assert error < 0.1 * np.linalg.norm(dsm.mean(0)), "too few draws to say anything"
