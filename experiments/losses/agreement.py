"""The gradients of ISM, SSM, SSM-VR, FD-SSM and DSM in a network's parameters agree in expectation, in float64.

    python experiments/losses/agreement.py        writes agreement.md beside itself

There are two cases: a perceptron on a Gaussian mixture in the plane, and a small U-Net with every kind of layer on
images of 4x4 pixels from a mixture.
"""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from estimators import PROCESS, SLICED, along, mixture, network, noised_batch

from scoregen.losses import DSM, FDSSM, ISM, SSM
from scoregen.nets import MLP, UNet
from scoregen.process import Noised
from scoregen.testing.oracle import TWO_MODES

LOGSNRS, NODES = (3.0, 0.5, -2.5), (20, 60, 180)
STEPS = (0.1, 0.03, 0.01, 0.003, 0.001)
BLOCK = 20  # the number of examples whose mean gradient is one observation


@dataclasses.dataclass
class Case:
    """Data, a network with random weights, and the gradients of any loss in these weights."""

    name: str
    net: MLP | UNet
    data: object
    shape: tuple
    counts: tuple  # the numbers of examples for the comparison of ISM with DSM

    def __post_init__(self):
        self.weights, self.denoiser = network(self.net, self.shape, "float64")

    def batch(self, count, seed=1):
        noised = noised_batch(self.data, count, seed)
        return Noised(*(a.reshape(count, *self.shape) if a.ndim == 2 else a for a in noised))

    def gradients(self, loss, noised, keys, share=None):
        """For each of M batches `[M, B, ...]`, the gradient `[M, P]` of the mean of share times the loss."""

        def mean(weights, noised, key, share):
            return jnp.mean(share * loss(self.denoiser(weights), noised, key))

        share = jnp.ones(noised.t.shape) if share is None else share
        each = jax.jit(lambda *batches: jax.lax.map(lambda batch: jax.grad(mean)(self.weights, *batch), batches))
        return np.asarray(each(noised, keys, share))

    def gradient(self, loss, noised):
        """The gradient `[P]` of one batch, for a loss that needs no key."""
        return self.gradients(loss, jax.tree.map(lambda a: a[None], noised), jax.random.split(jax.random.key(0), 1))[0]


def cases():
    small = UNet(channels=4, multipliers=(1, 2), blocks=1, attention=(2,), dropout=0.0, groups=2, dtype="float64")
    return (
        Case("plane, perceptron", MLP(width=32, embedding=16), TWO_MODES, (2,), (1_000, 10_000, 100_000)),
        Case("4x4 images, U-Net", small, mixture(16), (4, 4, 1), (1_000, 10_000, 30_000)),
    )


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def all_directions(case, count):
    """The directions v = sqrt(D) e_i for every i: the mean of v v' over i is exactly I, without randomness."""
    dims = math.prod(case.shape)
    return np.broadcast_to(math.sqrt(dims) * np.eye(dims).reshape(1, dims, *case.shape), (count, dims, *case.shape))


def scores(differences, floor):
    """The z-scores of the mean of observations `[M, P]` whose mean should be 0, where the spread is above `floor`."""
    error = differences.std(0, ddof=1) / math.sqrt(len(differences))
    seen = error > floor * error.max()
    return (differences.mean(0) / np.where(seen, error, 1))[seen], math.sqrt((error**2).sum())


def exact_lines(case, count=32):
    noised, directions = case.batch(count), all_directions(case, count)
    ism = case.gradient(ISM(), noised)
    losses = {
        "SSM": along(SSM, directions)(variance_reduced=False),
        "SSM-VR": along(SSM, directions)(),
        **{f"FD-SSM, step {step:g}": along(FDSSM, directions)(step=step) for step in STEPS},
    }
    for name, loss in losses.items():
        yield f"| {case.name} | {name} | {relative(case.gradient(loss, noised), ism):.1e} |"


def random_lines(case, count=16, draws=400):
    noised = case.batch(count)
    ism, size = case.gradient(ISM(), noised), np.linalg.norm(case.gradient(ISM(), noised))
    again = jax.tree.map(lambda a: jnp.broadcast_to(a, (draws, *a.shape)), noised)
    for name, make in SLICED.items():
        loss = dataclasses.replace(make(1), step=1e-3) if name == "FD-SSM" else make(1)
        found = case.gradients(loss, again, jax.random.split(jax.random.key(5), draws))
        # A weight that no direction affects has no spread, but FD-SSM has a bias of the order step^2 there.
        z, error = scores(found - ism, 1e-4)
        yield f"| {case.name} | {name} | {relative(found.mean(0), ism):.1e} | {error / size:.1e} | {summary(z)} |"


def both_gradients(case, noised, parts, share=None):
    """The gradients of ISM and of DSM, each `[parts, P]`, for `parts` equal parts of a batch."""
    noised, share = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), (noised, share))
    return (case.gradients(loss, noised, jax.random.split(jax.random.key(0), parts), share) for loss in (ISM(), DSM()))


def quadrature(data, logsnr, nodes):
    """A noised batch and its weights `[Q]`, for the integral over (x0, eps) in the plane.

    For a component with mean m and standard deviation c, the coordinates are u = (alpha c z1 + sigma z2) / rho and
    w = (sigma z1 - alpha c z2) / rho, where z1 = (x0 - m) / c, z2 = eps and rho^2 = alpha^2 c^2 + sigma^2. u and w are
    normal and independent, and x_t = alpha m + rho u. DSM is quadratic in w, so two nodes in w are enough.
    """
    t = PROCESS.time(jnp.asarray(logsnr))
    alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
    (u, first), (w, second) = (np.polynomial.hermite_e.hermegauss(n) for n in (nodes, 2))
    grid = np.stack(np.meshgrid(u, u, w, w, indexing="ij"), -1).reshape(-1, 4)
    weight = np.einsum("a,b,c,d->abcd", first, first, second, second).ravel()
    u, w, parts = grid[:, :2], grid[:, 2:], []
    for share, mean, std in zip(data.weights, data.means, data.stds, strict=True):
        rho = math.hypot(alpha * std, sigma)
        x0 = np.asarray(mean) + std * (alpha * std * u + sigma * w) / rho
        parts.append((x0, (sigma * u - alpha * std * w) / rho, share * weight / weight.sum()))
    x0, eps, weight = (jnp.asarray(np.concatenate(a)) for a in zip(*parts, strict=True))
    return Noised(x0, eps, alpha * x0 + sigma * eps, jnp.full(len(weight), t)), weight


def quadrature_lines(case):
    for logsnr in LOGSNRS:
        for nodes in NODES:
            noised, weight = quadrature(case.data, logsnr, nodes)
            ism, dsm = (g.mean(0) for g in both_gradients(case, noised, nodes, len(weight) * weight))
            yield f"| {logsnr:g} | {nodes}^2 | {relative(ism, dsm):.1e} | {cosine(ism, dsm)} |"


def sampled_lines(case):
    total = max(case.counts)
    ism, dsm = both_gradients(case, case.batch(total, seed=4), total // BLOCK)
    for count in case.counts:
        one, two = (g[: count // BLOCK] for g in (ism, dsm))
        z, error = scores(one - two, 1e-9)
        one, two = one.mean(0), two.mean(0)
        yield (
            f"| {case.name} | {count:,} | {relative(one, two):.1e} | {error / np.linalg.norm(two):.1e} "
            f"| {cosine(one, two)} | {summary(z)} |"
        )


def cosine(a, b):
    gap = 1 - float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return f"1 - {gap:.0e}" if gap > 1e-14 else "1"


def summary(z):
    return f"{np.mean(z**2):.2f} | {np.abs(z).max():.1f} | {len(z)}"


TABLES = (
    """Gradients at the same x_t, averaged over all directions sqrt(D) e_i, which gives the expectation. The table has
||gradient - ISM's|| / ||ISM's||. The gradients are equal up to rounding; FD-SSM's bias falls as step^2.

| case | estimator | relative difference |
|---|---|---|""",
    """
Gradients at the same x_t, along the random directions of the library (Rademacher, one direction for each example, 400
draws; FD-SSM with step 1e-3). The table has the relative difference of the mean gradient from ISM's, the difference
that the spread of the draws predicts, and the z-scores of the parameters that the directions affect. The mean square of
the z-scores should be near 1.

| case | estimator | relative difference | expected | mean z^2 | largest abs(z) | parameters |
|---|---|---|---|---|---|---|""",
    """
ISM compared with DSM, in the plane at one noise level, by quadrature over x0 and eps ("nodes": along x_t). The
difference is the error of the quadrature, and falls with the number of nodes.

| log-SNR | nodes | relative difference | cosine |
|---|---|---|---|""",
    """
ISM compared with DSM over N random examples, with t from the training law. The difference is chance, and falls as
1/sqrt(N). The columns are as above.

| case | N | relative difference | expected | cosine | mean z^2 | largest abs(z) | parameters |
|---|---|---|---|---|---|---|---|""",
)


def report():
    both = cases()
    lines = (
        (line for case in both for line in exact_lines(case)),
        (line for case in both for line in random_lines(case)),
        quadrature_lines(both[0]),
        (line for case in both for line in sampled_lines(case)),
    )
    for head, body in zip(TABLES, lines, strict=True):
        yield head
        yield from body


def main():
    lines = []
    with jax.enable_x64(True):
        for line in report():
            print(line, flush=True)
            lines.append(line)
    Path(__file__).with_name("agreement.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
