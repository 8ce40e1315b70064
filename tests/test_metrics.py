"""The metrics agree with closed forms, and the feature extractor's cache survives damage."""

import logging
import types

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from scoregen.errors import UsageError
from scoregen.metrics import (
    WithFloor,
    classifier_features,
    frechet_distance,
    frechet_gaussians,
    mmd,
    nearest_neighbours,
    sliced_wasserstein,
    with_floor,
)


def _normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


# --- sliced Wasserstein ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(7, 7), (7, 4), (5, 30), (1, 3)])
def test_one_dimension_is_exact(n, m):
    x, y = _normal(0, n), 1 + 2 * _normal(1, m)
    want = scipy.stats.wasserstein_distance(x, y)
    np.testing.assert_allclose(sliced_wasserstein(x, y, projections=3), want, rtol=1e-12)
    # Order 2 by brute force: repeat every point until both samples have n m points.
    squares = np.square(np.sort(np.repeat(x, m)) - np.sort(np.repeat(y, n)))
    np.testing.assert_allclose(sliced_wasserstein(x, y, p=2), np.sqrt(squares.mean()), rtol=1e-12)


@pytest.mark.parametrize(("dim", "mean_cosine"), [(2, 2 / np.pi), (3, 1 / 2), (16, 0.20364)])
def test_shift(dim, mean_cosine):
    x, shift = _normal(0, 50, dim), np.zeros(dim)
    shift[:2] = 3.0, 4.0
    # W_1 of a shifted copy is |<u, d>| in every direction, and its mean over u is known.
    got = sliced_wasserstein(x, x + shift, projections=20_000)
    np.testing.assert_allclose(got, 5 * mean_cosine, rtol=0.02)
    second = sliced_wasserstein(x, x + shift, projections=20_000, p=2)
    np.testing.assert_allclose(second, 5 / np.sqrt(dim), rtol=0.02)


def test_sliced_wasserstein_is_a_distance():
    x, y = _normal(0, 40, 3), _normal(1, 25, 3)
    assert sliced_wasserstein(x, x[::-1]) == 0
    assert sliced_wasserstein(x, y) == pytest.approx(sliced_wasserstein(y, x), rel=1e-12)
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x, y)
    assert sliced_wasserstein(x, y) != sliced_wasserstein(x, y, seed=1)
    images = x.reshape(40, 1, 3, 1)
    assert sliced_wasserstein(images, y) == sliced_wasserstein(x, y)
    single, other = x.astype(np.float32), y.astype(np.float32)
    assert sliced_wasserstein(single, other) == sliced_wasserstein(single.astype(float), other.astype(float))
    assert mmd(single, other) == mmd(single.astype(float), other.astype(float))
    # Differences of uint8 values must not wrap around.
    assert sliced_wasserstein(np.array([[3]], np.uint8), np.array([[5]], np.uint8)) == 2


def test_projections_by_chunks(monkeypatch):
    x, y = _normal(0, 3000, 2), _normal(1, 2000, 2)
    whole = sliced_wasserstein(x, y, projections=7)
    one_by_one = np.mean([_by_hand(x, y, u) for u in _directions(2, 7)])
    np.testing.assert_allclose(whole, one_by_one, rtol=1e-12)
    # A chunk has 2^22 numbers, so 900 directions of 5,000 points take two chunks.
    some = np.mean([_by_hand(x, y, u) for u in _directions(2, 900)])
    np.testing.assert_allclose(sliced_wasserstein(x, y, projections=900), some, rtol=1e-12)


def _directions(dim, count):
    u = np.random.default_rng(0).standard_normal((dim, count))
    return (u / np.linalg.norm(u, axis=0)).T


def _by_hand(x, y, u):
    return scipy.stats.wasserstein_distance(x @ u, y @ u)


# --- maximum mean discrepancy ---------------------------------------------------------------------------------------


def test_mmd_by_brute_force():
    x, y = 100 + _normal(0, 30, 3), 100.5 + _normal(1, 20, 3)

    def kernel(a, b, h):
        return np.mean([[np.exp(-np.sum((p - q) ** 2) / (2 * h * h)) for q in b] for p in a])

    def direct(h):
        return np.sqrt(kernel(x, x, h) + kernel(y, y, h) - 2 * kernel(x, y, h))

    np.testing.assert_allclose(mmd(x, y, bandwidth=0.7), direct(0.7), rtol=1e-9)
    median = np.median([np.linalg.norm(y[i] - y[j]) for i in range(20) for j in range(i)])
    np.testing.assert_allclose(mmd(x, y), direct(median), rtol=1e-9)


def test_mmd_of_gaussians():
    # E k for x ~ N(0, s^2), y ~ N(d, s^2) in one dimension: h / sqrt(h^2 + 2 s^2) exp(-d^2 / (2 (h^2 + 2 s^2)))
    h, d, n = 1.5, 1.0, 3000
    width = h * h + 2
    want = np.sqrt(2 * h / np.sqrt(width) * (1 - np.exp(-d * d / (2 * width))))
    assert mmd(_normal(0, n, 1), d + _normal(1, n, 1), bandwidth=h) == pytest.approx(want, rel=0.06)


def test_mmd_zero_and_shift():
    x, y = _normal(0, 1500, 2), _normal(1, 1100, 2)  # more than one block of rows
    assert mmd(x, x) < 1e-7
    same, moved = mmd(x, y), mmd(x + 0.3, y)
    assert same < 2 * np.sqrt(1 / 1500 + 1 / 1100) < moved
    assert mmd(x, x + 1e4, bandwidth=1.0) < np.sqrt(2)


@pytest.mark.parametrize("distance", [sliced_wasserstein, mmd])
def test_refusals(distance):
    good = np.ones((3, 2)) * np.arange(3)[:, None]
    with pytest.raises(ValueError, match=r"unequal dimensions: \[3, 2\]"):
        distance(np.ones((4, 3)), good)
    with pytest.raises(ValueError, match="at least one row"):
        distance(good[:0], good)
    bad = good.copy()
    bad[1, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 3 points are not finite"):
        distance(bad, good)


def test_refused_options():
    x = np.arange(4.0)
    for options, message in (
        ({"p": 0.5}, "p=0.5: a number of at least 1"),
        ({"projections": 0}, "projections=0: at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            sliced_wasserstein(x, x, **options)
    for call in (lambda: mmd(x, np.ones(4)), lambda: mmd(x, x, bandwidth=-1.0), lambda: mmd(x, x[:1])):
        with pytest.raises(ValueError, match=r"bandwidth=.*: a positive finite number"):
            call()


# --- nearest neighbours ---------------------------------------------------------------------------------------------


def test_nearest_neighbours():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (2500, 4, 4, 1), np.uint8)  # more than two blocks of rows
    held_out = rng.integers(0, 256, (60, 4, 4, 1), np.uint8)
    samples = np.concatenate([train[[2400, 7]], held_out[:10]])
    found = nearest_neighbours(samples, train, held_out)

    def direct(images):
        gaps = images.reshape(-1, 1, 16).astype(float) - train.reshape(1, -1, 16)
        return np.linalg.norm(gaps, axis=2)

    np.testing.assert_allclose(found.samples, direct(samples).min(1), rtol=1e-12)
    np.testing.assert_allclose(found.held_out, direct(held_out).min(1), rtol=1e-12)
    np.testing.assert_array_equal(found.index, direct(samples).argmin(1))
    assert found.samples[:2].tolist() == [0, 0] and list(found.index[:2]) == [2400, 7]
    assert found.ratio == np.median(found.samples) / np.median(found.held_out)


def test_memorisation_shows():
    train, held_out, fresh = _normal(0, 300, 8), _normal(1, 200, 8), _normal(2, 200, 8)
    assert 0.9 < nearest_neighbours(fresh, train, held_out).ratio < 1.1
    assert nearest_neighbours(train[:200] + 0.01 * fresh, train, held_out).ratio < 0.05
    with pytest.raises(ValueError, match="held-out points are training points"):
        nearest_neighbours(fresh, train, train[:50])
    with pytest.raises(ValueError, match="training set is empty"):
        nearest_neighbours(fresh, train[:0], held_out)


# --- the floor ------------------------------------------------------------------------------------------------------


def test_floor_of_a_perfect_and_of_a_poor_sampler():
    train, test = _normal(0, 3000, 2), _normal(1, 1000, 2)
    perfect = with_floor(sliced_wasserstein, _normal(2, 300, 2), train, test)
    poor = with_floor(sliced_wasserstein, 0.5 + _normal(2, 300, 2), train, test)
    assert perfect.floor == poor.floor and perfect.floor_std == poor.floor_std > 0
    assert abs(perfect.value - perfect.floor) < 4 * perfect.floor_std
    assert poor.value > poor.floor + 10 * poor.floor_std
    # Fewer samples, higher floor.
    assert with_floor(sliced_wasserstein, _normal(2, 30, 2), train, test).floor > 1.5 * perfect.floor


def test_floor_subsets():
    """The subsets are as large as the samples, are disjoint if the training set allows it, and repeat no point."""
    seen = []

    def distance(a, b):
        assert b is not None and len(b) == 7
        seen.append(a[:, 0].astype(int).tolist())
        return float(a.mean())

    train, test = np.arange(100.0)[:, None], np.zeros((7, 1))
    judged = with_floor(distance, np.full((20, 1), -1.0), train, test, repeats=5)
    *floors, value = seen
    assert value == [-1] * 20 and judged.value == -1
    assert [len(rows) for rows in floors] == [20] * 5
    assert len({row for rows in floors for row in rows}) == 100
    assert judged.floor == pytest.approx(np.mean([np.mean(rows) for rows in floors]))
    assert judged.floor_std == pytest.approx(np.std([np.mean(rows) for rows in floors], ddof=1))

    seen.clear()
    with_floor(distance, np.full((60, 1), -1.0), train, test, repeats=3)  # 180 > 100: they must overlap
    assert [len(set(rows)) for rows in seen[:3]] == [60] * 3 and seen[0] != seen[1]
    assert with_floor(distance, np.ones((100, 1)), train, test).floor_std is None
    assert with_floor(distance, np.ones((5, 1)), train, test, repeats=1).floor_std is None
    first, again, other = (with_floor(distance, np.ones((5, 1)), train, test, seed=s).floor for s in (0, 0, 1))
    assert first == again != other


def test_floor_refuses():
    points = np.arange(5.0)[:, None]
    with pytest.raises(UsageError, match=r"6 samples, but there are only 5 real examples.*at most 5 samples"):
        with_floor(sliced_wasserstein, np.ones((6, 1)), points, points)
    with pytest.raises(ValueError, match="repeats=0: at least 1"):
        with_floor(sliced_wasserstein, points, points, points, repeats=0)
    assert str(WithFloor(1.0, 0.5, 0.25)) == "1 (floor 0.5 +- 0.25)"
    assert str(WithFloor(1.0, 0.5, None)) == "1 (floor 0.5)"


# --- Frechet --------------------------------------------------------------------------------------------------------


def _covariance(seed, dim, rank=None):
    root = _normal(seed, dim, rank or 2 * dim)
    return root @ root.T / root.shape[1]


def test_frechet_closed_forms():
    mean, cov = _normal(0, 5), _covariance(1, 5)
    assert frechet_gaussians(mean, cov, mean, cov) == pytest.approx(0, abs=1e-12)
    assert frechet_gaussians(mean, cov, mean + 2.0, cov) == pytest.approx(20)
    # S and c^2 S commute: tr(S) (1 - c)^2
    assert frechet_gaussians(mean, cov, mean, 9 * cov) == pytest.approx(4 * np.trace(cov))
    # Diagonal: sum of (s - r)^2
    s, r = np.arange(1.0, 6), np.full(5, 2.0)
    assert frechet_gaussians(mean, np.diag(s * s), mean, np.diag(r * r)) == pytest.approx(np.sum((s - r) ** 2))
    # Two lines at an angle: both covariances have rank one, and (S_x S_y)^{1/2} has the trace |cos|.
    a, b = np.array([1.0, 0]), np.array([np.cos(0.7), np.sin(0.7)])
    lines = frechet_gaussians(np.zeros(2), np.outer(a, a), np.zeros(2), np.outer(b, b))
    assert lines == pytest.approx(2 - 2 * np.cos(0.7))


@pytest.mark.parametrize("rank", [None, 3])
def test_frechet_against_the_matrix_root(rank):
    x, y = _covariance(1, 6), _covariance(2, 6, rank)
    root = scipy.linalg.sqrtm(x @ y).real
    want = np.sum(np.ones(6)) + np.trace(x + y - 2 * root)
    assert frechet_gaussians(np.zeros(6), x, np.ones(6), y) == pytest.approx(want, abs=1e-6)


def test_frechet_of_samples():
    x, y = _normal(0, 40, 3), 1 + 2 * _normal(1, 60, 3)
    want = frechet_gaussians(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert frechet_distance(x, y) == pytest.approx(want, rel=1e-10)
    assert frechet_distance(x, x) < 1e-12
    single, other = x.astype(np.float32), y.astype(np.float32)
    assert frechet_distance(single, other) == frechet_distance(single.astype(float), other.astype(float))
    # A mean of 1e4 in float32 features must not swallow a covariance of 1.
    assert frechet_distance((x + 1e4).astype(np.float32), (x + 1e4).astype(np.float32) + 1) == pytest.approx(
        3, rel=1e-3
    )


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((1, 2)), "at least two rows of features, not 1"),
        (np.array([[1, 2], [3, np.inf], [0, 0]]), "1 of 3 rows of features are not finite"),
        (np.ones(4), r"shape \[N, F\]"),
        (np.ones((4, 3)), "of one F are needed"),
    ],
)
def test_frechet_refuses(x, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, _normal(0, 5, 2))
    with pytest.raises(ValueError, match="not finite"):
        frechet_gaussians([np.nan], [[1.0]], [0.0], [[1.0]])


# --- features -------------------------------------------------------------------------------------------------------


def _stripes(seed=0):
    """Two classes that a small convolution can separate: horizontal and vertical stripes, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 160)
    lines = np.where(np.arange(8) % 2, 180, 60)
    images = np.where(labels[:, None, None], lines[None, :, None], lines[None, None, :]) + rng.normal(
        0, 20, (160, 8, 8)
    )
    images = images.round().clip(0, 255).astype(np.uint8)[..., None]
    return types.SimpleNamespace(
        name="stripes", train=images[:100], test=images[100:], train_labels=labels[:100], test_labels=labels[100:]
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """(data set, cache directory with the trained classifier, features, progress messages)."""
    folder, said = tmp_path_factory.mktemp("cache") / "made", []
    features = classifier_features(_stripes(), cache_dir=folder, steps=12, progress=said.append)
    return _stripes(), folder, features, said


@pytest.mark.slow
def test_features(kept):
    data, folder, features, said = kept
    assert features.accuracy > 0.9
    assert features.name == f"stripes classifier, {100 * features.accuracy:.1f} % held-out accuracy"
    assert "training the stripes classifier" in said[0] and features.name in said[-1]
    out = features(data.train)
    assert out.shape == (100, 64) and out.dtype == np.float32
    # The features separate the two classes more than the two halves of one class.
    rows, columns = (out[data.train_labels == label] for label in (0, 1))
    assert frechet_distance(rows, columns) > 3 * frechet_distance(rows[::2], rows[1::2])
    # 600 rows take three batches of 256, the last one padded; the rows' features do not change.
    many = np.concatenate([data.train] * 6)
    np.testing.assert_allclose(features(many), np.tile(out, (6, 1)), atol=1e-5)
    assert features(data.train[:0]).shape == (0, 64)
    assert [path.name for path in folder.iterdir()] == [f"classifier-{features.key}.npz"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "images", [np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((8, 8, 1), np.uint8)]
)
def test_features_refuse(kept, images):
    with pytest.raises(ValueError, match=r"uint8 images \[N, 8, 8, 1\] are needed"):
        kept[2](images)


@pytest.mark.slow
def test_images_are_normalised_by_the_training_images(tmp_path, monkeypatch):
    """The classifier sees (image - mean) / (std + 1), and held-out images change neither."""
    data = _stripes()
    brighter = types.SimpleNamespace(**vars(data) | {"test": np.minimum(data.test, 155) + 100})
    seen = []

    def untrained(net, forward, *rest):
        params = net.init(jax.random.key(5), np.zeros((1, 8, 8, 1)))
        seen.append((net, forward, params))
        return params

    monkeypatch.setattr("scoregen.metrics.features._train", untrained)
    for i, each in enumerate((data, brighter)):
        classifier_features(each, cache_dir=tmp_path / str(i), steps=1)
    x = data.train.astype(np.float32)
    for net, forward, params in seen:
        expected = net.apply(params, (x - x.mean()) / (x.std() + 1))
        for found, exact in zip(forward(params, data.train), expected, strict=True):
            np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-4)


def test_cache_is_used(kept, monkeypatch):
    data, folder, features, _ = kept
    monkeypatch.setattr("scoregen.metrics.features._train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setenv("SCOREGEN_CACHE", str(folder))
    again = classifier_features(data, steps=12)
    assert (again.accuracy, again.name, again.key) == (features.accuracy, features.name, features.key)
    np.testing.assert_array_equal(again(data.test), features(data.test))


def test_cache_key_sees_everything(kept, monkeypatch):
    """Another seed, number of steps, label or pixel gives another key. No classifier is trained here: zeros suffice."""
    data, _, features, _ = kept
    monkeypatch.setattr("scoregen.metrics.features._load", lambda file, like, warn: (_zeros(like), 0.5))
    keys = {features.key, classifier_features(data, steps=12, seed=1).key, classifier_features(data, steps=13).key}
    for field in ("train", "test", "train_labels", "test_labels"):
        changed = _stripes()
        array = getattr(changed, field)
        array[(0,) * array.ndim] ^= 1
        keys.add(classifier_features(changed, steps=12).key)
    assert len(keys) == 7
    assert classifier_features(_stripes(), steps=12).key == features.key


def _zeros(like):

    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)


@pytest.mark.quick(4)
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "shape", "nan", "missing"])
def test_corrupt_cache_is_made_again(kept, damage, tmp_path, monkeypatch, caplog):
    data, folder, features, _ = kept
    good = next(folder.iterdir())
    file, whole = tmp_path / good.name, good.read_bytes()
    with np.load(good) as arrays:
        arrays = dict(arrays)
    name = "params/logits/kernel"
    if damage in ("shape", "nan", "missing"):
        arrays |= {name: arrays[name][:1] if damage == "shape" else arrays[name] * np.nan}
        if damage == "missing":
            del arrays[name]
        np.savez(file, **arrays)
    else:
        half = len(whole) // 2
        flipped = whole[:half] + bytes([whole[half] ^ 255]) + whole[half + 1 :]
        file.write_bytes({"cut": whole[:half], "flipped": flipped, "empty": b"", "text": b"not a zip"}[damage])
    # test_features covers the training; here the parameters trained for the fixture replace it.
    monkeypatch.setattr("scoregen.metrics.features._train", lambda *_: _parameters(good))
    with caplog.at_level(logging.WARNING):
        again = classifier_features(data, cache_dir=tmp_path, steps=12)
    assert [record.message.count("is made again") for record in caplog.records] == [1]
    assert str(file) in caplog.text
    np.testing.assert_array_equal(again(data.test), features(data.test))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # written again, without a leftover temporary file
    caplog.clear()
    classifier_features(data, cache_dir=tmp_path, steps=12)
    assert not caplog.records


def _parameters(file):
    tree = {}
    with np.load(file) as arrays:
        for path in arrays.files:
            *outer, name = path.split("/")
            node = tree
            for part in outer:
                node = node.setdefault(part, {})
            node[name] = arrays[path]
    tree.pop("accuracy")
    return tree


def test_unwritable_cache_is_not_fatal(kept, tmp_path, monkeypatch):
    data, folder, features, _ = kept
    monkeypatch.setattr("scoregen.metrics.features._train", lambda *_: _parameters(next(folder.iterdir())))
    blocked = tmp_path / "file"
    blocked.write_text("a file where the directory should be")
    said = []
    again = classifier_features(data, cache_dir=blocked / "cache", steps=12, progress=said.append)
    assert again.accuracy == features.accuracy
    assert sum("cannot be" in line for line in said) >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": None}, "stripes has no labels, .* use sliced_wasserstein or mmd"),
        ({"test": None}, "stripes has no held-out images"),
        ({"test_labels": np.zeros(3, int)}, "labels that are not one class"),
        ({"train_labels": np.full(100, -1)}, "counted from 0"),
        ({"train_labels": np.zeros(100)}, "labels that are not one class"),
        ({"train": np.zeros((100, 2), np.float32)}, "no set of uint8 images"),
    ],
)
def test_unfit_data(change, message):
    data = types.SimpleNamespace(**{**vars(_stripes()), **change})
    with pytest.raises(UsageError, match=message) as caught:
        classifier_features(data)
    assert "--" not in str(caught.value)


def test_no_label_fields_at_all():
    data = _stripes()
    del data.train_labels
    with pytest.raises(UsageError, match="has no labels"):
        classifier_features(data)
