"""Sets of points in the plane, centred and with about unit standard deviation in each coordinate.

Every constructor draws `size` points to train on and, from an independent stream, 10000 to test on. The test set
does not change with `size`. The mixtures have their exact log-density, so that a likelihood can be checked against it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from scoregen.data.dataset import Dataset, errors_of
from scoregen.errors import check_count, check_finite, check_not_negative, check_numbers, check_positive
from scoregen.random import check_seed

TEST_SIZE = 10_000


def mixture(modes: int = 8, radius: float = 1.4, std: float = 0.15, size: int = 20_000, seed: int = 0) -> Dataset:
    """p(x) = 1/K sum_k N(x; m_k, std^2 I), with the K = `modes` means m_k evenly on a circle of `radius`.

    Points are float32 `[N, 2]`, labels the index of the mode, `log_density` exact, in nats. A single mode is
    at the origin. Covariance: (radius^2 / 2 + std^2) I for three modes or more.

    Raises UsageError unless modes >= 1, std > 0, radius >= 0, size >= 1 and 0 <= seed < 2^32.

    >>> data = mixture(modes=1, std=1.0, size=5)
    >>> data.train.shape, round(float(data.log_density(np.zeros((1, 2), np.float32))[0]), 4)  # -log(2 pi)
    ((5, 2), -1.8379)
    """
    with errors_of("mixture"):
        check_count("modes", modes)
        check_not_negative(radius=radius)
    angle = 2 * np.pi * np.arange(modes) / modes
    means = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _gaussians("mixture", means - means.mean(axis=0), std, np.full(modes, 1 / modes), size, seed)


def two_modes(
    weight: float = 0.8, separation: float = 3.5, std: float = 0.2, size: int = 20_000, seed: int = 0
) -> Dataset:
    """p(x) = w N(x; -(1-w) s u, std^2 I) + (1-w) N(x; w s u, std^2 I), with u = (1, 1) / sqrt(2).

    Here w = `weight`, s = `separation`, and the overall mean is zero. It is the standard test of
    whether a sampler finds the right proportions of two modes, and not only their places, when a region of low
    density separates them. Plain Langevin dynamics does not (Song and Ermon 2019, section 3.2.2). Labels are 0 for the
    first mode and 1 for the second; `log_density` is exact, in nats. Covariance: w (1-w) s^2 u u^T + std^2 I.

    Raises UsageError unless 0 < weight < 1, std > 0, separation is finite, size >= 1 and 0 <= seed < 2^32.

    >>> data = two_modes(weight=0.8)
    >>> round(float(np.mean(data.train_labels == 0)), 1)
    0.8
    """
    with errors_of("two_modes"):
        check_numbers(lambda w: 0 < w < 1, "a number between 0 and 1", weight=weight)
        check_finite(separation=separation)
    along = separation * np.array([-(1 - weight), weight])
    means = along[:, None] * np.full((1, 2), np.sqrt(0.5))
    return _gaussians("two_modes", means, std, np.array([weight, 1 - weight]), size, seed)


def moons(noise: float = 0.07, size: int = 20_000, seed: int = 0) -> Dataset:
    """Two interleaved half circles, plus N(0, noise^2 I): float32 `[N, 2]`, labels 0 (upper) and 1 (lower).

    Upper: (cos a, sin a); lower: (1 - cos a, 1/2 - sin a); a ~ U[0, pi]; then centred by (1/2, 1/4) and
    stretched by sqrt(2). The noise is in the units of the result. `log_density` is None.

    Raises UsageError unless noise >= 0, size >= 1 and 0 <= seed < 2^32.

    >>> moons(noise=0.0, size=3).train.shape
    (3, 2)
    """

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        label, angle = rng.integers(2, size=n), rng.uniform(0, np.pi, n)
        sign = 1 - 2 * label
        x = np.stack([label + sign * np.cos(angle) - 0.5, label / 2 + sign * np.sin(angle) - 0.25], axis=1)
        return np.sqrt(2) * x + noise * rng.standard_normal((n, 2)), label

    with errors_of("moons"):
        check_not_negative(noise=noise)
    return _dataset("moons", draw, size, seed)


def swissroll(noise: float = 0.05, size: int = 20_000, seed: int = 0) -> Dataset:
    """The spiral ((a cos a, a sin a) - m) / 7 + N(0, noise^2 I), a ~ U[3 pi/2, 9 pi/2], m = (2, 2/(3 pi)).

    The spiral is centred. Float32 `[N, 2]`; the noise is in the units of the result. There are no labels and no
    `log_density`.

    Raises UsageError unless noise >= 0, size >= 1 and 0 <= seed < 2^32.

    >>> swissroll(size=3).train.shape
    (3, 2)
    """

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, None]:
        angle = rng.uniform(1.5 * np.pi, 4.5 * np.pi, n)
        mean = np.array([[2, 2 / (3 * np.pi)]])
        x = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1) - mean
        return x / 7 + noise * rng.standard_normal((n, 2)), None

    with errors_of("swissroll"):
        check_not_negative(noise=noise)
    return _dataset("swissroll", draw, size, seed)


def checkerboard(cells: int = 4, size: int = 20_000, seed: int = 0) -> Dataset:
    """Uniform on the black cells of a `cells` x `cells` board over [-sqrt(3), sqrt(3)]^2.

    The first cell is black. Float32 `[N, 2]`, without labels. For an even number of cells both coordinates
    have unit variance. `log_density` is None although it is known: it is -inf off the black cells, so its
    mean over samples would be useless.

    Raises UsageError unless cells >= 1, size >= 1 and 0 <= seed < 2^32.

    >>> bool(np.abs(checkerboard(size=100).train).max() <= np.float32(3**0.5))
    True
    """
    with errors_of("checkerboard"):
        check_count("cells", cells)
    black = np.argwhere(np.indices((cells, cells)).sum(axis=0) % 2 == 0)

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, None]:
        corner = black[rng.integers(len(black), size=n)]
        return np.sqrt(3) * (2 * (corner + rng.uniform(size=(n, 2))) / cells - 1), None

    return _dataset("checkerboard", draw, size, seed)


def _gaussians(name: str, means: np.ndarray, std: float, weights: np.ndarray, size: int, seed: int) -> Dataset:
    """sum_k weights_k N(means_k, std^2 I), means `[K, D]`."""
    with errors_of(name):
        check_positive(std=std)

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        label = rng.choice(len(weights), size=n, p=weights)
        return means[label] + std * rng.standard_normal((n, means.shape[1])), label

    centres = means.astype(np.float32)
    log_scale = (np.log(weights) - means.shape[1] * np.log(std * np.sqrt(2 * np.pi))).astype(np.float32)

    def log_density(x: jax.Array) -> jax.Array:
        z = (jnp.asarray(x)[:, None, :] - centres[None]) / std
        return jax.nn.logsumexp(log_scale[None] - jnp.sum(z * z, axis=-1) / 2, axis=-1)

    return _dataset(name, draw, size, seed, log_density)


def _dataset(name: str, draw: Callable, size: int, seed: int, log_density: Callable | None = None) -> Dataset:
    with errors_of(name):
        check_count("size", size)
        check_seed(seed)
    first, second = np.random.default_rng(seed).spawn(2)
    train, test = draw(first, size), draw(second, TEST_SIZE)
    labels, test_labels = (None if label is None else label.astype(np.int32) for _, label in (train, test))
    return Dataset(name, train[0].astype(np.float32), test[0].astype(np.float32), labels, test_labels, log_density)
