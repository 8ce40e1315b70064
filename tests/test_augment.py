"""Augmentation: the numbers given to the network describe the change of each example."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusal import refused
from scipy.ndimage import affine_transform
from scipy.stats import binom

from scoregen.app.build import build
from scoregen.app.config import load
from scoregen.cond import Cond
from scoregen.data import NUMBERS, Centered, Prepare, augment
from scoregen.data.augment import _apply, warp
from scoregen.losses import EpsilonMSE, Objective
from scoregen.process import ddpm
from scoregen.random import broadcast, split_keys
from scoregen.train import Model

KEYS = jax.random.split(jax.random.key(0), 400)
run = jax.jit(augment, compiler_options={"xla_backend_optimization_level": 0})


def images(count=400, height=6, width=8):
    return np.random.default_rng(0).standard_normal((count, height, width, 2)).astype(np.float32)


def test_probability_0_is_the_identity():
    x, numbers = run(KEYS, images(), 0.0)
    np.testing.assert_array_equal(x, images())
    np.testing.assert_array_equal(numbers, np.zeros((400, NUMBERS)))


def test_flips_move_pixels_only():
    """At a probability of 1e-9 half of the images are mirrored to the bit, as their numbers say; the others stay."""
    x, numbers = run(KEYS, images(), 1e-9)
    mirrored = np.asarray(numbers[:, 0]) == 1
    assert abs(mirrored.sum() - 200) < 60 and not numbers[:, 1:].any()
    np.testing.assert_array_equal(x[mirrored], images()[mirrored][:, :, ::-1])
    np.testing.assert_array_equal(x[~mirrored], images()[~mirrored])


def test_each_is_as_likely_as_it_should_be_and_example_by_example():
    x, numbers = run(KEYS, images(), 0.3)
    numbers = np.asarray(numbers)
    parts = {"upside down": ([1], 0.15), "scale": ([2], 0.3), "turn": ([3, 4], 0.3), "stretch": ([5, 6], 0.3)}
    done = {name: numbers[:, at].any(1) for name, (at, _) in (parts | {"shift": ([7, 8], 0.3)}).items()}
    for name, which in done.items():
        low, high = binom.ppf([1e-5, 1 - 1e-5], 400, parts.get(name, (None, 0.3))[1])
        assert low <= which.sum() <= high, name
    none = ~np.stack(list(done.values())).any(0) & (numbers[:, 0] == 0)
    assert none.sum() > 10 and (np.asarray(x)[none] == images()[none]).all()
    # The distributions of the numbers that are not 0.
    for at in (2, 7, 8):
        some = numbers[:, at][numbers[:, at] != 0]
        assert abs(some.mean()) < 0.5 and 0.7 < some.std() < 1.3
    turn = numbers[done["turn"]]
    np.testing.assert_allclose((turn[:, 3] + 1) ** 2 + turn[:, 4] ** 2, 1, atol=1e-5)
    straight = (numbers[done["stretch"], 6] == 0).sum()
    assert binom.ppf(1e-5, done["stretch"].sum(), 0.5) <= straight <= binom.ppf(1 - 1e-5, done["stretch"].sum(), 0.5)
    # The change of an example does not depend on the rest of its batch.
    some, few = run(KEYS[100:107], images()[100:107], 0.3)
    np.testing.assert_allclose(some, x[100:107], atol=1e-5)
    np.testing.assert_allclose(few, numbers[100:107], atol=1e-6)


def test_shifts_by_whole_pixels_reflect_at_the_edges():
    """The wavelet's doubling and halving undo each other, and commute with such a shift."""
    x = images(1)[0]
    moved = jax.jit(warp)
    np.testing.assert_allclose(moved(x, jnp.eye(2), jnp.zeros(2)), x, atol=2e-6)
    reflected = np.pad(x, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    np.testing.assert_allclose(moved(x, jnp.eye(2), jnp.array([2.0, -1.0])), reflected[1:7, 4:], atol=2e-6)


def smooth(x, y):
    """An image without edges."""
    return np.stack([np.sin(0.21 * x + 0.1 * y), np.cos(0.08 * x - 0.23 * y + 0.4)], -1)


def origin(numbers, u, v, c, d):
    """Where the pixels at (u, v) come from: the moves of the numbers undone, the last first, with stretch c along d."""
    *_, a, cos, sin, _, _, e, f = numbers
    p, q = u - e * u.shape[1] / 8, v - f * v.shape[0] / 8
    along, across = np.cos(d) * p - np.sin(d) * q, np.sin(d) * p + np.cos(d) * q
    along, across = along * 2 ** (-0.2 * c), across * 2 ** (0.2 * c)
    p, q = np.cos(d) * along + np.sin(d) * across, -np.sin(d) * along + np.cos(d) * across
    p, q = (cos + 1) * p - sin * q, sin * p + (cos + 1) * q
    return p * 2 ** (-0.2 * a), q * 2 ** (-0.2 * a)


def test_the_numbers_say_what_was_done():
    """A smooth image is moved as the numbers say: a formula in NumPy finds where each pixel comes from."""
    height, width, count = 36, 44, 60
    v, u = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (height, width)), indexing="ij")
    x, every = run(KEYS[:count], np.repeat(smooth(u, v)[None].astype(np.float32), count, 0), 0.7)
    checked = 0
    for image, numbers in zip(np.asarray(x), np.asarray(every, np.float64), strict=True):
        cosine, sine = numbers[5:7]
        c, d = np.hypot(cosine, sine), np.arctan2(sine, cosine)
        errors = []
        for stretch in ((c, d), (-c, d)) if sine else ((cosine, 0.0),):  # for a turned axis the sign of c is not known
            p, q = origin(numbers, u, v, *stretch)
            # Only inside the image, since the formula does not hold where the edges reflect.
            inside = (np.abs(p) < width / 2 - 5) & (np.abs(q) < height / 2 - 5)
            want = smooth(p * (1 - 2 * numbers[0]), q * (1 - 2 * numbers[1]))
            errors.append(np.abs(image - want)[inside].max(initial=0))
            checked += inside.sum() > 100
        assert min(errors) < 0.06, numbers  # the filter is not quite symmetric, so turns leave a small error
    assert checked > 40


NONE = dict.fromkeys(("mirror", "upside_down", "scale", "turn", "stretch", "along"), jnp.zeros(()))
NONE["shift"] = jnp.zeros(2)
moved = jax.jit(_apply)


def resampled(x, **drawn):
    """The same by SciPy: cubic interpolation, reflected at the edges as often as needed."""
    center = (np.array(x.shape[:2]) - 1) / 2
    a, b, (e, f) = drawn.get("scale", 0.0), drawn.get("turn", 0.0), drawn.get("shift", (0, 0))
    # From (row, column) of the result to that of x.
    matrix = 2 ** (-0.2 * a) * np.array([[np.cos(b), np.sin(b)], [-np.sin(b), np.cos(b)]])
    offset = center - matrix @ (center + np.array([f * x.shape[0], e * x.shape[1]]) / 8)
    layers = [affine_transform(x[..., i], matrix, offset, order=3, mode="mirror") for i in range(x.shape[-1])]
    return np.stack(layers, -1)


@pytest.mark.parametrize(("height", "width"), [(20, 36), (33, 18), (8, 40)])
def test_a_rectangle_is_moved_in_pixels_and_shifted_by_its_own_sides(height, width):
    v, u = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (height, width)), indexing="ij")
    x = smooth(u, v).astype(np.float32)
    # Shifts by whole pixels, 3 to the right and 2 down, move pixels exactly.
    y = moved(x, NONE | {"shift": jnp.array([8 * 3 / width, 8 * 2 / height])})
    want = np.pad(x, ((2, 0), (3, 0), (0, 0)), mode="reflect")[:height, :width]
    np.testing.assert_allclose(y, want, atol=3e-6)
    # A quarter turn moves the square in the middle as if it stood alone.
    quarter = moved(x, NONE | {"turn": jnp.float32(np.pi / 2)})
    side = min(height, width) - min(height, width) % 2
    top, left = (height - side) // 2, (width - side) // 2
    if (height - width) % 2 == 0:
        square = x[top : top + side, left : left + side]
        np.testing.assert_allclose(quarter[top : top + side, left : left + side], np.rot90(square), atol=0.03)
    # Everywhere, also where the reflected image is read far from its edge.
    for drawn in ({"turn": np.pi / 2}, {"scale": 1.3, "turn": -0.6, "shift": (0.4, -0.7)}):
        y = moved(x, NONE | {name: jnp.asarray(value, jnp.float32) for name, value in drawn.items()})
        assert np.abs(y - resampled(x, **drawn)).max() < 0.03


@pytest.mark.slow
def test_resampling_is_that_of_edm():
    """EDM's code reflects as many pixels as the batch needs, at most all of a side: here one example needs all.

    Ours reflects by the longer side on all sides, so pixels that EDM's code reads beyond the shorter one differ.
    """
    torch = pytest.importorskip("torch")
    from reference.augment import inverse
    from reference.augment import warp as theirs

    rng = np.random.default_rng(0)
    for height, width in ((12, 16), (16, 16)):
        x = rng.standard_normal((8, height, width, 3)).astype(np.float32)
        drawn = [(*(0.7 * rng.standard_normal(4)), 0.7 * rng.standard_normal(2)) for _ in x]
        if height == width:
            drawn[0] = (-8.0, 0.0, 0.0, 0.0, (0.0, 0.0))  # a third of the size
        g = torch.stack([inverse(*each, width, height) for each in drawn])
        want = theirs(torch.tensor(x).permute(0, 3, 1, 2), g).permute(0, 2, 3, 1).numpy()
        ours = jax.vmap(warp)(x, jnp.asarray(g[:, :2, :2].numpy()), jnp.asarray(g[:, :2, 2].numpy()))
        np.testing.assert_allclose(ours, want, atol=1e-4)


class Spy(nn.Module):
    """A network that passes its inputs to `note`."""

    note: Callable
    augment_dim: int = NUMBERS

    @nn.compact
    def __call__(self, x, cond, train=False):
        self.note((x, cond.augment))
        return 0 * x


@pytest.mark.slow
def test_the_network_is_given_the_numbers_in_training_only():
    """In training its input was changed as the numbers say. Held-out examples are unchanged; their numbers are 0."""
    seen, process = [], ddpm()
    model = Model(process, Spy(seen.append), target="eps", condition="logsnr")
    objective, prepare = Objective(EpsilonMSE()), Prepare(Centered(), augment=0.5)
    raw = np.random.default_rng(0).integers(256, size=(5, 8, 8, 1), dtype=np.uint8)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def shown(keys):
        ours, rest = split_keys(keys, 2)
        for train in (True, False):
            x0, numbers = prepare(raw, ours, train=train)
            objective.evaluate(model, {"net": {}}, rest, x0, Cond(augment=numbers))
        model.denoiser({"net": {}})(jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, jnp.int32))
        plain, t = Centered()(raw, ours), objective.evaluate(model, {"net": {}}, rest, x0).drawn.t
        return seen[:3], plain, augment(split_keys(ours, 3)[2], plain, 0.5), broadcast(process.alpha(t), plain)

    given, plain, (x0, numbers), alpha = shown(jax.random.split(jax.random.key(1), 5))
    (training, given_numbers), (held_out, nothing), (_, sampling) = given
    assert not nothing.any() and nothing.shape == (5, NUMBERS) and not sampling.any()
    np.testing.assert_array_equal(given_numbers, numbers)
    assert given_numbers.any(1).sum() >= 3
    # The numbers belong to the images: with the same noise, the two inputs differ only by the augmentation.
    np.testing.assert_allclose(training - held_out, alpha * (x0 - plain), atol=1e-5)


def test_only_images_are_augmented():
    refused(lambda: augment(KEYS[:3], jnp.ones((3, 2)), 0.5), "only images [B, H, W, C]", "(3, 2)")


def small(**overrides):
    config = load("ddpm_digits")
    config.net.name, config.data.augment, config.data.flip = "ncsnpp", 0.5, False
    config.net.ncsnpp.update(channels=4, multipliers=(1,), blocks=0, attention=())
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
    return config


def test_refusals():
    refused(lambda: build(small(data__augment=1.5)), "config.data.augment=1.5", "0 to 1")
    refused(lambda: build(small(net__name="unet")), "'unet' has no input", "--config.net.name=ncsnpp")
    assert refused(lambda: build(small(data__augment=2.0))).count("augment") == 1
    toy = load("ddpm_toy")
    toy.data.update(augment=0.1, flip=True, crop=2, shift=True)
    message = refused(lambda: build(toy), "--config.data.augment=0.0", "--config.data.flip=False", "data.shift=False")
    assert message.count("config.data.crop=2: it is for images [H, W, C], not for examples of shape [2]") == 1
    assert message.count(": it is for") == 4
    refused(lambda: build(small(data__crop=8)), "config.data.crop=8: images of 8x8", "say --config.data.crop=7")
    refused(lambda: build(small(data__crop=-1)), "config.data.crop=-1: at least 0")
    refused(lambda: build(small(data__shift=True)), "config.data.shift=True: it is for series [L, C]")
    build(small(data__crop=7))
