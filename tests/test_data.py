"""An interruption does not change the data of a run, and a damaged file is never trained on."""

import dataclasses
import email.message
import gzip
import hashlib
import importlib
import inspect
import io
import tarfile
import urllib.error

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusal import refused
from scipy.stats import chisquare

from scoregen.data import (
    SCALINGS,
    SOURCES,
    Auto,
    Centered,
    Dataset,
    Identity,
    Prepare,
    Unit,
    as_dataset,
    augment,
    download,
    hold_out,
    in_turns,
    is_verified,
    random_crop,
    random_flip,
    random_shift,
    reads_files,
    shape_of,
    source,
)
from scoregen.data import checkerboard as make_checkerboard
from scoregen.data import cifar10 as load_cifar10
from scoregen.data import digits as load_digits
from scoregen.data import fashion_mnist as load_fashion_mnist
from scoregen.errors import UsageError
from scoregen.random import fold_keys, split_keys

cifar = importlib.import_module("scoregen.data.cifar10")  # the name in the package is the function
fashion = importlib.import_module("scoregen.data.fashion_mnist")
POINTS = ["mixture", "two_modes", "moons", "swissroll", "checkerboard"]


def numbered(n, **options):
    """A set whose example i is the number i."""
    return Dataset("numbered", np.arange(n, dtype=np.float32)[:, None], np.zeros((1, 1), np.float32), **options)


def keys(n, seed=0):
    # made from the index, so that a longer batch begins with the keys of a shorter one
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(n))


def bytes_of_all_levels(copies):
    return np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), (copies, 1, 1, 1))


# batches


@pytest.mark.parametrize("size", [1, 4, 10, 37])
def test_batches_are_one_permutation_an_epoch_joined_without_a_gap(size):
    n, epochs = 10, 8
    stream = np.concatenate([numbered(n).batch(3, step, size)[:, 0] for step in range(-(-n * epochs // size))])
    rows = stream[: n * epochs].reshape(epochs, n)
    assert np.array_equal(np.sort(rows, axis=1), np.tile(np.arange(n), (epochs, 1)))
    assert len({tuple(row) for row in rows}) == epochs  # and a fresh one every time


def test_resuming_at_any_step_sees_what_an_uninterrupted_run_sees():
    whole = [numbered(10).batch(0, step, 7) for step in range(12)]
    for step in reversed(range(12)):  # backwards, on a new object, with others asking in between
        numbered(11).batch(5, step, 3)
        assert np.array_equal(numbered(10).batch(0, step, 7), whole[step])


def test_a_batch_can_be_changed_without_changing_the_next_one():
    data = numbered(10)
    data.batch(0, 0, 10)[:] = -1
    data.indices(0, 0, 10)[:] = 0
    assert np.array_equal(np.sort(data.batch(0, 0, 10)[:, 0]), np.arange(10))


def test_batches_depend_on_the_seed_and_on_nothing_about_batch_size():
    data = numbered(50)
    assert not np.array_equal(data.batch(0, 0, 50), data.batch(1, 0, 50))
    halves = np.concatenate([data.batch(0, 0, 20), data.batch(0, 1, 20)])
    assert np.array_equal(halves, data.batch(0, 0, 40))


def test_indices_pair_labels_with_examples():
    data = numbered(10, train_labels=np.arange(10, dtype=np.int32) * 2)
    assert np.array_equal(data.train_labels[data.indices(1, 2, 7)], data.batch(1, 2, 7)[:, 0] * 2)


def test_classes_take_turns():
    """Of the first n labels each class has its share, to within the rounding of the shares."""
    labels = np.random.default_rng(0).choice(4, 1000, p=[0.5, 0.3, 0.15, 0.05])
    assert np.array_equal(np.sort(in_turns(labels)), np.arange(1000))
    turns, share = labels[in_turns(labels)], np.bincount(labels) / 1000
    for n in range(1, 1001):
        assert (np.abs(np.bincount(turns[:n], minlength=4) - n * share) <= 1.5 + 2 * share).all()
    assert np.array_equal(in_turns(np.repeat(np.arange(7), 5)), np.arange(35).reshape(7, 5).T.ravel())


@pytest.mark.parametrize("bad", [{"size": 0}, {"step": -1}, {"seed": -1}])
def test_a_bad_batch_is_refused(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        numbered(4).batch(**({"seed": 0, "step": 0, "size": 2} | bad))


# validation


def test_rows_that_are_not_finite_are_counted_and_the_first_is_named():
    for shape in ((9, 2), (9, 2, 3), (9, 4, 4, 3)):
        for dtype in (np.float16, np.float32, np.float64):
            x, good = np.zeros(shape, dtype), np.zeros((1, *shape[1:]), dtype)
            x[4, 1], x[7] = np.nan, np.inf
            with pytest.raises(UsageError, match=r"train has 2 of 9 examples .* index 4"):
                Dataset("bad", x, good)
            with pytest.raises(UsageError, match="test has 2 of 9 examples"):
                Dataset("bad", good, x)


@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (5, 64, 2), (5, 8, 8), (5, 8, 8, 3), (5, 4, 4, 4, 1)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_floating_point_arrays_of_any_rank_are_held_as_float32(shape, dtype):
    x = np.random.default_rng(0).standard_normal(shape).astype(jnp.dtype(dtype))
    for given in (x, jnp.asarray(x)) if dtype != "float64" else (x,):
        data = Dataset("any", given, given[:2])
        assert data.train.dtype == data.test.dtype == np.float32 and type(data.train) is np.ndarray
        assert data.shape == shape[1:] and not data.is_image
        np.testing.assert_array_equal(data.train, x.astype(np.float32))
        np.testing.assert_array_equal(np.sort(data.batch(0, 0, 5), axis=0), np.sort(x.astype(np.float32), axis=0))
    if dtype == "float32":
        assert Dataset("any", x).train is x  # no copy


def test_a_memory_mapped_array_stays_on_disk(tmp_path):
    for x in (np.ones((4, 3), np.float32), np.ones((4, 2, 2, 1), np.uint8)):
        np.save(tmp_path / "x.npy", x)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        assert Dataset("mapped", mapped).train is mapped


def test_the_names_of_the_classes_fit_the_labels():
    x, labels = np.zeros((4, 2), np.float32), np.array([0, 2, 1, 1])
    assert Dataset("named", x, train_labels=labels, classes=("a", "b", "c")).classes == ("a", "b", "c")
    refused(lambda: Dataset("named", x, classes=("a", "b")), "train: 2 names of classes and no labels")
    for wrong, said in (
        (labels, "test: labels from 0 to 2 for 2 names of classes"),
        (labels - 1, "test: a label is -1"),
    ):
        refused(lambda wrong=wrong: Dataset("named", x, x, labels * 0, wrong, classes=("a", "b")), said)


def test_an_array_is_a_data_set_without_held_out_examples():
    data = as_dataset(np.zeros((7, 64, 2)), "series")
    assert (data.name, data.test, data.test_labels, len(data.train), data.shape) == ("series", None, None, 7, (64, 2))
    assert as_dataset(data) is data
    assert as_dataset(np.zeros((7, 4, 4, 1), np.uint8)).is_image
    refused(lambda: as_dataset([1.0, 2.0]), "data: train is a list", "np.asarray")
    refused(lambda: Dataset("x", np.zeros((3, 1)), test_labels=np.zeros(3, int)), "test_labels and no test examples")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (np.zeros(3, np.float32), r"float32 of shape \(3,\): pass an array \[N, ...\], such as x\[:, None\]"),
        (np.float32(3), "float32 of shape"),
        (np.zeros((3, 2), np.uint8), r"uint8 of shape \(3, 2\): pass sg.data.array\(x\), which standardises it"),
        (np.zeros((3, 8, 8), np.uint8), r"x\[..., None\] for grey"),
        (np.zeros((3, 2), np.int64), "train is int64 of shape .*which standardises it"),
        (np.zeros((3, 8, 8, 1), np.uint16), "train is uint16"),
        (np.zeros((3, 2), bool), "train is bool"),
        (np.zeros((3, 2), np.complex64), "the real and the imaginary part"),
        (np.array([["a", "b"]]), "pass numbers"),
        (np.array([[None, None]]), "pass numbers"),
        (np.full((3, 2), 1e39), r"values beyond float32, up to 1e\+39"),
        (np.zeros((0, 2), np.float32), "train is empty"),
        (np.zeros((3, 0), np.float64), "train is empty"),
        (np.zeros((3, 1), np.float32), "the same kind"),
        (np.zeros((3, 8, 8, 1), np.uint8), "the same kind"),
        ([[0.0, 1.0]], "train is a list"),
    ],
)
def test_a_bad_array_is_refused(train, message):
    with pytest.raises(UsageError, match=message):
        Dataset("bad", train, np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_labels_of_any_integer_type_are_held_as_int32(dtype):
    most = min(np.iinfo(dtype).max, np.iinfo(np.int32).max)
    labels = np.array([3, 0, 1, most], dtype)
    data = numbered(4, train_labels=labels)
    assert data.train_labels.dtype == np.int32 and data.train_labels.tolist() == labels.tolist()
    if dtype == "int32":
        assert data.train_labels is labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 2**40 + 1, -(2**40)]), "the label 1099511627777 at index 2 does not fit int32"),
        (np.array([0, 2**32 - 1, 1, 2], np.uint32), "the label 4294967295 at index 1 does not fit int32"),
        (np.array([2**64 - 1, 1, 1, 2], np.uint64), "the label 18446744073709551615 at index 0"),
        (np.array([-(2**31) - 1, 1, 1, 2]), "the label -2147483649 at index 0"),
        (np.array([0.5, 1.5, 0.5, 0.5]), r"labels are float64, such as 0.5: pass the classes as integers"),
        (np.array([np.nan, 1, 1, 1]), "float64, such as nan"),
        (np.zeros(4, complex), "complex128"),
        (np.array([True, False, True, True]), "bool, such as True"),
        (np.array(["cat", "dog", "cat", "cat"]), "such as cat"),
        (np.zeros(3, np.int32), r"labels of shape \(3,\) for 4 examples"),
        (np.zeros((4, 1), np.int32), r"labels of shape \(4, 1\) for 4 examples"),
        ([0, 1, 2, 3], r"labels is a list, not an array: pass np.asarray"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(UsageError, match=f"numbered: train: .*{message}"):
        numbered(4, train_labels=labels)
    with pytest.raises(UsageError, match=f"mine: .*{message}"):
        hold_out("mine", np.arange(4.0)[:, None], 0.5, 0, labels)
    with pytest.raises(UsageError, match=f"numbered: test: .*{message}"):
        Dataset("numbered", np.zeros((2, 1)), np.zeros((4, 1)), test_labels=labels)


def test_hold_out_names_the_row_as_it_was_before_the_shuffle():
    x = np.zeros((50, 2), np.float32)
    x[31, 1], x[47] = np.nan, -np.inf
    with pytest.raises(UsageError, match=r"^mine has 2 of 50 examples .* at index 31: "):
        hold_out("mine", x, 0.3, seed=1)


def test_hold_out_takes_any_array():
    x = np.random.default_rng(0).standard_normal((20, 64, 2))
    data = hold_out("series", x, 0.25, seed=0, labels=np.arange(20, dtype=np.uint8))
    assert data.train.shape == (15, 64, 2) and data.test.shape == (5, 64, 2) and data.train.dtype == np.float32
    np.testing.assert_array_equal(data.train, x[data.train_labels].astype(np.float32))
    refused(lambda: hold_out("ints", np.ones((20, 3), int), 0.25, seed=0), "ints is int64", "which standardises it")


def test_examples_that_are_all_the_same_are_refused():
    refused(lambda: hold_out("mine", np.ones((30, 2), np.float32), 0.3, seed=1), "mine: all 30 examples are the same")


def test_hold_out_loses_and_repeats_nothing():
    x = np.arange(50, dtype=np.float32)[:, None]
    data = hold_out("x", x, 0.3, seed=1, labels=np.arange(50))
    assert len(data.test) == 15
    assert np.array_equal(np.sort(np.concatenate([data.train, data.test]), axis=0), x)
    assert np.array_equal(data.test[:, 0], data.test_labels)
    assert np.array_equal(data.train[:, 0], data.train_labels)
    assert not np.array_equal(data.test, hold_out("x", x, 0.3, seed=2).test)
    for fraction in (0.0, 1.0, -0.5, 0.001, float("nan")):
        with pytest.raises(UsageError, match="held_out"):
            hold_out("x", x, fraction, seed=0)
    with pytest.raises(UsageError, match=r"labels of shape \(49,\) for 50 examples"):
        hold_out("x", x, 0.5, seed=0, labels=np.arange(49))


# what is known of a source


@pytest.mark.parametrize("name", SOURCES)
def test_a_shape_is_known_without_files(name):
    """Sources that read files declare their shape for the default options; other sources make the data."""
    make = SOURCES[name]
    assert reads_files(make) == (
        name in ("cifar10", "cifar100", "fashion_mnist", "folder", "idx", "array", "table", "hf")
    )
    if name in ("idx", "array", "table"):  # their shape is in the files
        refused(lambda: shape_of(make, dir="no such folder"), "no such folder")
        return
    shape = shape_of(make, dir="no such folder")
    shapes = {"digits": (8, 8, 1), "fashion_mnist": (28, 28, 1)}
    shapes |= dict.fromkeys(("cifar10", "cifar100"), (32, 32, 3)) | dict.fromkeys(("folder", "hf"), (64, 64, 3))
    assert shape == shapes.get(name, (2,))
    if not reads_files(make):
        assert shape == make().shape


def test_a_source_of_ones_own():
    """A plain function is a source. A declared shape is computed from the options that it needs."""

    def lines(dir: str, length: int = 5) -> Dataset:
        return Dataset("lines", np.zeros((3, length, int(dir))))

    assert reads_files(lines) and not is_verified(lines)
    assert shape_of(lines, dir="4", length=6) == (6, 4) and shape_of(lambda n=3: numbered(n), dir="", n=2) == (1,)
    declared = source(shape=lambda length: (length, 1), verified=True)(lines)
    assert declared is lines and is_verified(lines)
    assert (shape_of(lines, dir=""), shape_of(lines, dir="", length=9)) == ((5, 1), (9, 1))


def test_only_checked_files_are_the_same_in_every_folder():
    assert [name for name in SOURCES if is_verified(SOURCES[name])] == ["fashion_mnist"]


# points


@pytest.mark.parametrize("name", POINTS)
def test_points_are_centred_of_unit_scale_and_drawn_anew(name):
    data = SOURCES[name]()
    assert data.shape == (2,)
    assert not data.is_image
    assert len(data.test) == 10_000
    # four standard errors of a mean over 20000 points of unit scale
    assert np.abs(data.train.mean(axis=0)).max() < 4 * data.train.std() / np.sqrt(len(data.train))
    assert 0.6 < data.train.std() < 1.2
    # two independent draws of the same law: means agree, points do not
    assert np.abs(data.train.mean(axis=0) - data.test.mean(axis=0)).max() < 0.06
    assert np.abs(np.cov(data.train.T) - np.cov(data.test.T)).max() < 0.08
    assert not set(map(bytes, data.train)) & set(map(bytes, data.test))
    assert np.array_equal(data.train, SOURCES[name]().train)
    assert not np.array_equal(data.train, SOURCES[name](seed=1).train)
    assert np.array_equal(data.test, SOURCES[name](size=10).test)


@pytest.mark.parametrize("name", SOURCES)
def test_messages_of_the_library_name_no_flags(name, tmp_path):
    """The messages about a folder without the files, and about an option out of range."""
    make = SOURCES[name]
    bad = {"dir": str(tmp_path)} if reads_files(make) else {"seed": -1}
    with pytest.raises((UsageError, ValueError)) as raised:
        make(**bad)
    assert "--" not in str(raised.value)
    if reads_files(make) or make.__module__ == "scoregen.data.points":
        assert (str(tmp_path) if "dir" in bad else "seed=-1") in str(raised.value)


@pytest.mark.parametrize("name", SOURCES)
def test_every_option_has_a_default_that_a_flag_can_hold(name):
    for option in inspect.signature(SOURCES[name]).parameters.values():
        assert option.name == "dir" or type(option.default) in (
            int,
            float,
            str,
            bool,
            tuple,
        )


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mixture", {}),
        ("mixture", {"modes": 3, "radius": 1.0, "std": 0.3}),
        ("two_modes", {}),
        ("two_modes", {"weight": 0.3, "std": 0.4}),
    ],
)
def test_log_density_is_that_of_the_points(name, options):
    data = SOURCES[name](**options)
    axis, step = np.linspace(-5, 5, 501, dtype=np.float32, retstep=True)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    log_p = np.asarray(jax.jit(data.log_density)(grid), np.float64)
    p = np.exp(log_p) * step**2
    assert p.sum() == pytest.approx(1, abs=1e-4)
    mean = p @ grid
    assert mean == pytest.approx(0, abs=1e-4)
    assert np.cov(data.train.T) == pytest.approx((p[:, None] * grid).T @ grid, abs=0.05)
    # the mass above the diagonal: mean and covariance alone do not separate the modes' weights from their places
    above = grid.sum(axis=1) > 0
    assert np.mean(data.train.sum(axis=1) > 0) == pytest.approx(p[above].sum(), abs=0.015)
    # E log p over the points = -entropy
    assert np.mean(data.log_density(data.test)) == pytest.approx(p @ log_p, abs=0.05)


def test_log_density_of_the_mixture_is_even_over_its_modes():
    data = SOURCES["mixture"](modes=5)
    share = np.bincount(data.train_labels) / len(data.train)
    assert share == pytest.approx(0.2, abs=0.015)
    centres = np.stack([data.train[data.train_labels == k].mean(axis=0) for k in range(5)])
    assert np.linalg.norm(centres, axis=1) == pytest.approx(1.4, abs=0.02)


def test_the_checkerboard_leaves_its_white_cells_empty():
    cells = np.floor((make_checkerboard().train / np.sqrt(3) + 1) * 2).astype(int)
    assert np.all(cells.sum(axis=1) % 2 == 0)
    assert len({tuple(cell) for cell in cells}) == 8


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mixture", {"modes": 0}),
        ("mixture", {"std": 0.0}),
        ("mixture", {"radius": -1.0}),
        ("mixture", {"size": 0}),
        ("mixture", {"seed": -1}),
        ("two_modes", {"weight": 1.0}),
        ("two_modes", {"std": -1.0}),
        ("moons", {"noise": -1.0}),
        ("swissroll", {"noise": float("nan")}),
        ("checkerboard", {"cells": 0}),
        ("digits", {"held_out": 1.0}),
        ("digits", {"seed": -1}),
    ],
)
def test_a_bad_option_is_refused_by_name(name, options):
    with pytest.raises(UsageError, match=f"{name}: {next(iter(options))}="):
        SOURCES[name](**options)


# digits


def test_digits_are_the_published_ones():
    images, labels = importlib.import_module("scoregen.data.digits")._load()
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.uint8
    assert images.max() == 16
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_digits_fill_the_range_of_bytes_and_keep_their_labels():
    data = load_digits()
    assert data.is_image
    assert data.shape == (8, 8, 1)
    assert (len(data.train), len(data.test)) == (1438, 359)
    every = np.concatenate([data.train, data.test])
    assert np.unique(every).tolist() == np.floor(np.arange(17) * 255 / 16 + 0.5).astype(int).tolist()
    counts = np.bincount(np.concatenate([data.train_labels, data.test_labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # if labels were shuffled away from images, the mean images of all digits would be alike
    means = np.stack([data.train[data.train_labels == k].mean(axis=0) for k in range(10)])
    nearest = np.argmin([[np.sum((x - m) ** 2) for m in means] for x in data.test.astype(float)], axis=1)
    assert np.mean(nearest == data.test_labels) > 0.85


# CIFAR-10


@pytest.fixture
def small(monkeypatch):
    """Files of four records with random bytes, labelled 0..3."""
    few = {"train": dict.fromkeys(cifar.PUBLISHED.train, 4), "test": {"test_batch.bin": 4}}
    monkeypatch.setattr(cifar, "PUBLISHED", dataclasses.replace(cifar.PUBLISHED, **few))
    rng = np.random.default_rng(0)
    return {
        name: np.concatenate(
            [np.arange(4, dtype=np.uint8)[:, None], rng.integers(64, size=(4, 3072), dtype=np.uint8)], axis=1
        ).tobytes()
        for name in cifar.PUBLISHED.files
    }


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(download.urllib.request, "urlopen", refuse)


def write(folder, files):
    folder.mkdir(exist_ok=True, parents=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


def packed(files, top="cifar-10-batches-bin/"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, raw in {"readme.html": b"hello", **files}.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return buffer.getvalue()


def same(a, b):
    return all(
        np.array_equal(getattr(a, field), getattr(b, field))
        for field in ("train", "test", "train_labels", "test_labels")
    )


def test_planes_become_channels(small, tmp_path):
    record = np.zeros(3073, np.uint8)
    record[0] = 7
    record[1 + 0 * 1024 + 2 * 32 + 5] = 10  # red of row 2, column 5
    record[1 + 1 * 1024 + 2 * 32 + 5] = 20
    record[1 + 2 * 1024 + 2 * 32 + 5] = 30
    small["data_batch_2.bin"] = record.tobytes() + small["data_batch_2.bin"][3073:]
    data = load_cifar10(dir=str(write(tmp_path / "here", small)))
    assert data.train[4, 2, 5].tolist() == [10, 20, 30]
    assert data.train[4].sum() == 60
    assert data.train_labels.tolist() == [0, 1, 2, 3, 7, 1, 2, 3] + 3 * [0, 1, 2, 3]
    assert data.train.shape == (20, 32, 32, 3)
    assert data.test.shape == (4, 32, 32, 3)
    assert data.is_image
    assert data.train.flags.c_contiguous
    assert bytes(data.test[0].transpose(2, 0, 1)) == small["test_batch.bin"][1:3073]


def test_smaller_pixels_are_means_of_squares(small, tmp_path):
    place = str(write(tmp_path / "here", small))
    whole, half, one = (load_cifar10(dir=place, size=size) for size in (32, 16, 1))
    assert half.train.shape == (20, 16, 16, 3)
    assert [shape_of(load_cifar10, dir="", size=n) for n in (32, 16, 1)] == [x.shape for x in (whole, half, one)]
    corner = whole.train[:, 0:2, 2:4].astype(np.float64).mean((1, 2))
    np.testing.assert_array_equal(half.train[:, 0, 1], np.floor(corner + 0.5))
    np.testing.assert_array_equal(one.test[:, 0, 0], np.floor(whole.test.astype(np.float64).mean((1, 2)) + 0.5))
    with pytest.raises(UsageError, match="size=5"):
        load_cifar10(dir=place, size=5)


def test_every_way_of_naming_the_place_gives_the_same_set(small, tmp_path, monkeypatch):
    inside = write(tmp_path / "a" / "cifar-10-batches-bin", small)
    archive = write(tmp_path / "b", {"cifar-10-binary.tar.gz": packed(small)})
    renamed = write(tmp_path / "c", {"mine.tgz": packed(small, top="./")}) / "mine.tgz"
    write(tmp_path / "cache" / "cifar10", {"cifar-10-binary.tar.gz": packed(small)})
    monkeypatch.setenv("SCOREGEN_CACHE", str(tmp_path / "cache"))
    first = load_cifar10(dir=str(inside))
    for place in (inside.parent, archive, archive / "cifar-10-binary.tar.gz", renamed, ""):
        assert same(load_cifar10(dir=str(place)), first)
    assert [path.name for path in archive.iterdir()] == ["cifar-10-binary.tar.gz"]  # nothing was unpacked


def test_an_archive_cannot_write_anywhere(small, tmp_path):
    (tmp_path / "deep").mkdir()
    place = write(tmp_path / "deep" / "b", {"cifar-10-binary.tar.gz": packed(small, top="../")})
    load_cifar10(dir=str(place))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b", "cifar-10-binary.tar.gz", "deep"]


@pytest.mark.parametrize("change", [-1, 1, -3073])
@pytest.mark.parametrize("in_archive", [False, True])
def test_a_file_of_the_wrong_size_is_named_with_both_sizes(small, tmp_path, change, in_archive):
    raw = small["data_batch_3.bin"]
    small["data_batch_3.bin"] = (raw + b"x")[: len(raw) + change]
    if in_archive:
        small = {"cifar-10-binary.tar.gz": packed(small)}
    with pytest.raises(UsageError, match=f"data_batch_3.bin.* has {len(raw) + change} bytes, not {len(raw)}"):
        load_cifar10(dir=str(write(tmp_path / "x", small)))


def test_a_label_beyond_nine_is_refused(small, tmp_path):
    raw = bytearray(small["test_batch.bin"])
    raw[2 * 3073] = 10
    small["test_batch.bin"] = bytes(raw)
    with pytest.raises(UsageError, match=r"test_batch.bin: record 2 has the label 10"):
        load_cifar10(dir=str(write(tmp_path / "x", small)))


@pytest.mark.parametrize("in_archive", [False, True])
def test_missing_files_are_named(small, tmp_path, in_archive):
    del small["data_batch_4.bin"], small["test_batch.bin"]
    if in_archive:
        small = {"cifar-10-binary.tar.gz": packed(small)}
    with pytest.raises(UsageError, match=r"lacks data_batch_4.bin, test_batch.bin"):
        load_cifar10(dir=str(write(tmp_path / "x", small)))


DAMAGES = {
    "cut in half": lambda raw: raw[: len(raw) // 2],
    "cut by a few bytes": lambda raw: raw[:-4],
    "checksum": lambda raw: raw[:-8] + bytes([raw[-8] ^ 1]) + raw[-7:],
    "flipped bits": lambda raw: raw[:5000] + bytes(b ^ 255 for b in raw[5000:5100]) + raw[5100:],
    "empty": lambda raw: b"",
    "text": lambda raw: b"<html>404</html>",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_is_refused(small, tmp_path, damage):
    place = write(tmp_path / "x", {"cifar-10-binary.tar.gz": DAMAGES[damage](packed(small))})
    with pytest.raises(UsageError, match=r"cifar-10-binary.tar.gz is not a whole .tar.gz archive") as caught:
        load_cifar10(dir=str(place))
    assert "\n" not in str(caught.value)


def test_an_archive_damaged_far_inside_a_file_is_refused(tmp_path, monkeypatch):
    # the damage is beyond the part that is read with the first header, so the decompressor's own exception is raised
    few = dict.fromkeys(cifar.PUBLISHED.train, 200)
    monkeypatch.setattr(cifar, "PUBLISHED", dataclasses.replace(cifar.PUBLISHED, train=few))
    records = np.random.default_rng(0).integers(10, size=200 * 3073, dtype=np.uint8).tobytes()
    raw = packed({"data_batch_1.bin": records})
    half = len(raw) // 2
    broken = raw[:half] + bytes(b ^ 255 for b in raw[half : half + 1000]) + raw[half + 1000 :]
    with pytest.raises(UsageError, match=r"is not a whole .tar.gz archive"):
        load_cifar10(dir=str(write(tmp_path / "x", {"cifar-10-binary.tar.gz": broken})))


@pytest.mark.parametrize("name", ["cifar-10-batches-py/data_batch_1", "data_batch_1", "cifar-10-python.tar.gz"])
def test_the_python_version_is_refused_with_the_reason(tmp_path, name):
    write((tmp_path / name).parent, {name.rsplit("/")[-1]: b"anything"})
    with pytest.raises(UsageError, match="run code when opened: the binary version is needed"):
        load_cifar10(dir=str(tmp_path))


def test_without_a_network_one_line_says_what_to_put_where(tmp_path):
    with pytest.raises(UsageError) as caught:
        load_cifar10(dir=str(tmp_path))
    message = str(caught.value)
    assert "Temporary failure in name resolution" in message
    assert "no such folder" not in message
    assert f"get {cifar.PUBLISHED.url} and put it into {tmp_path}" in message
    assert "\n" not in message
    with pytest.raises(UsageError, match=r"nowhere .there is no such folder."):
        load_cifar10(dir=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"there is no file .*mine.tar.gz"):
        load_cifar10(dir=str(tmp_path / "mine.tar.gz"))
    assert list(tmp_path.iterdir()) == []


class Response(io.BytesIO):
    """What urlopen gives; breaks off after `broken` bytes if asked to."""

    def __init__(self, raw, broken=None):
        super().__init__(raw)
        self.broken, self.headers = broken, email.message.Message()
        self.headers["Content-Length"] = str(len(raw))

    def read(self, size=-1):
        if self.broken is not None and self.tell() >= self.broken:
            raise ConnectionResetError("Connection reset by peer")
        return super().read(size)


def test_a_download_is_verified_and_then_read(small, tmp_path, monkeypatch):
    raw, timeouts = packed(small), []

    def serve(url, timeout):
        timeouts.append(timeout)
        return Response(raw)

    monkeypatch.setattr(download.urllib.request, "urlopen", serve)
    published = dataclasses.replace(cifar.PUBLISHED, md5=hashlib.md5(raw).hexdigest())
    monkeypatch.setattr(cifar, "PUBLISHED", published)
    place = tmp_path / "new" / "folder"
    first = load_cifar10(dir=str(place))
    assert same(first, load_cifar10(dir=str(write(tmp_path / "x", small))))
    assert [path.name for path in place.iterdir()] == ["cifar-10-binary.tar.gz"]
    assert same(first, load_cifar10(dir=str(place)))
    assert timeouts == [download.TIMEOUT]


def test_a_download_with_another_md5_is_thrown_away(small, tmp_path, monkeypatch):
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *_, **__: Response(packed(small)))
    with pytest.raises(UsageError, match=r"damaged .* not c32a1d4ab5d03f1284b67883e8d87530"):
        load_cifar10(dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *_, **__: Response(bytes(10**6), broken=500_000))
    with pytest.raises(UsageError, match="Connection reset by peer"):
        load_cifar10(dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# Fashion-MNIST


@pytest.fixture
def garments(monkeypatch):
    """Four IDX files of nine images to train on and three to test on, in the place of the published ones."""
    files, rng = {}, np.random.default_rng(0)
    for split, count in (("train", 9), ("t10k", 3)):
        head = bytes([0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 28, 0, 0, 0, 28])
        files[f"{split}-images-idx3-ubyte"] = head + rng.integers(256, size=count * 784, dtype=np.uint8).tobytes()
        files[f"{split}-labels-idx1-ubyte"] = bytes([0, 0, 8, 1, 0, 0, 0, count, *range(9, 9 - count, -1)])
    packed = {name: gzip.compress(raw, mtime=0) for name, raw in files.items()}
    digests = {
        name: (*(hashlib.md5(x).hexdigest() for x in (packed[name], files[name])), len(files[name])) for name in files
    }
    assert list(digests) == list(fashion.FILES)
    monkeypatch.setattr(fashion, "FILES", digests)
    return files


def zipped(files):
    return {f"{name}.gz": gzip.compress(raw, 1) for name, raw in files.items()}


@pytest.mark.parametrize("packing", [dict, zipped])
def test_garments_are_read_row_by_row(garments, tmp_path, packing):
    data = load_fashion_mnist(dir=str(write(tmp_path / "here", packing(garments))))
    assert data.train.shape == (9, 28, 28, 1)
    assert data.train.tobytes() == garments["train-images-idx3-ubyte"][16:]
    assert data.test.tobytes() == garments["t10k-images-idx3-ubyte"][16:]
    assert data.train_labels.tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1] and data.test_labels.tolist() == [9, 8, 7]
    assert data.is_image


def test_a_border_makes_them_32_pixels_wide(garments, tmp_path):
    place = str(write(tmp_path / "here", garments))
    small, large = (load_fashion_mnist(dir=place, size=size) for size in (28, 32))
    assert large.train.shape == (9, 32, 32, 1)
    assert [shape_of(load_fashion_mnist, dir="", size=n) for n in (28, 32)] == [small.shape, large.shape]
    assert np.array_equal(large.test[:, 2:30, 2:30], small.test)
    assert large.train.sum() == small.train.sum()
    refused(lambda: load_fashion_mnist(dir=place, size=30), "size=30", "28 is needed, or 32")


def test_the_usual_places_are_the_cache_and_then_debians(garments, tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "debian")
    refused(lambda: load_fashion_mnist(dir=""), tmp_path / "cache" / "fashion_mnist", "cannot be downloaded")
    write(tmp_path / "debian", zipped(garments))
    first = load_fashion_mnist(dir="")
    write(tmp_path / "cache" / "fashion_mnist", garments)
    (tmp_path / "debian" / "t10k-images-idx3-ubyte.gz").unlink()
    assert same(first, load_fashion_mnist(dir=""))


FLAWS = {
    "cut short": lambda raw: raw[:-1],
    "longer": lambda raw: raw + b"x",
    "empty": lambda raw: b"",
    "another magic number": lambda raw: b"\0\0\x0d" + raw[3:],
    "another count": lambda raw: raw[:7] + b"\x63" + raw[8:],
    "a label beyond 9, or another pixel": lambda raw: raw[:-1] + b"\x0a",
}


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("name", fashion.FILES)
def test_a_file_of_other_bytes_is_refused(garments, tmp_path, name, flaw):
    garments[name] = FLAWS[flaw](garments[name])
    place = write(tmp_path / "x", zipped(garments))
    size = f"{len(garments[name])} bytes"
    refused(lambda: load_fashion_mnist(dir=str(place)), name, size, "MNIST's files have the same names", "get http")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_gz_is_refused(garments, tmp_path, damage):
    files = zipped(garments)
    files["train-images-idx3-ubyte.gz"] = DAMAGES[damage](files["train-images-idx3-ubyte.gz"])
    place = write(tmp_path / "x", files)
    refused(lambda: load_fashion_mnist(dir=str(place)), "train-images-idx3-ubyte.gz", f"get {fashion.URL}")


def test_a_file_that_is_not_there_is_fetched(garments, tmp_path, monkeypatch):
    place = write(tmp_path / "x", garments)
    whole = load_fashion_mnist(dir=str(place))
    name = "train-labels-idx1-ubyte"
    (place / name).unlink()
    refused(lambda: load_fashion_mnist(dir=str(place)), "name resolution", f"get {fashion.URL}/{name}.gz and put it")
    asked = []

    def serve(url, timeout):
        asked.append(url)
        return Response(gzip.compress(garments[name], mtime=0))

    monkeypatch.setattr(download.urllib.request, "urlopen", serve)
    assert same(whole, load_fashion_mnist(dir=str(place)))
    assert same(whole, load_fashion_mnist(dir=str(place)))
    assert asked == [f"{fashion.URL}/{name}.gz"] and (place / f"{name}.gz").is_file()


def test_all_are_fetched_into_a_new_folder(garments, tmp_path, monkeypatch):
    def serve(url, timeout):
        return Response(gzip.compress(garments[url.rpartition("/")[2].removesuffix(".gz")], mtime=0))

    monkeypatch.setattr(download.urllib.request, "urlopen", serve)
    place = tmp_path / "new" / "folder"
    load_fashion_mnist(dir=str(place))
    assert sorted(path.name for path in place.iterdir()) == sorted(f"{name}.gz" for name in garments)


# scaling


@pytest.mark.parametrize("scaling", [Centered(), Unit(), Unit(dequantize=False)], ids=repr)
def test_bytes_come_back_and_stay_in_range(scaling):
    x = bytes_of_all_levels(64)
    y = jax.jit(scaling)(x, keys(64))
    assert y.dtype == jnp.float32
    assert y.shape == x.shape
    assert scaling.low <= float(y.min())
    assert float(y.max()) <= scaling.high
    assert (float(y.min()), float(y.max())) == pytest.approx((scaling.low, scaling.high), abs=0.01)
    back = scaling.to_bytes(y)
    assert type(back) is np.ndarray
    assert back.dtype == np.uint8
    assert np.array_equal(back, x)


@pytest.mark.parametrize("scaling", [Centered(), Unit(), Unit(dequantize=False)], ids=repr)
def test_to_bytes_clips_rounds_to_nearest_and_refuses_what_diverged(scaling):
    wide = scaling.high - scaling.low
    out = np.array([scaling.low - wide, scaling.high + wide], np.float32)
    assert scaling.to_bytes(out).tolist() == [0, 255]
    levels = np.sort(np.asarray(scaling(bytes_of_all_levels(1), keys(1))).ravel())
    if scaling != Unit():
        assert scaling.to_bytes(levels[:-1] + 0.4 * np.diff(levels)).tolist() == list(range(255))
        assert scaling.to_bytes(levels[:-1] + 0.6 * np.diff(levels)).tolist() == list(range(1, 256))
    with pytest.raises(UsageError, match="2 of 3 values are NaN or infinite"):
        scaling.to_bytes(np.array([np.nan, np.inf, 0], np.float32))


def test_scalings_are_the_published_maps():
    x = bytes_of_all_levels(1)
    level = x.astype(np.float64)
    assert np.asarray(Centered()(x, keys(1))) == pytest.approx(level / 127.5 - 1, abs=1e-6)
    assert np.asarray(Unit(dequantize=False)(x, keys(1))) == pytest.approx(level / 255, abs=1e-6)


@pytest.mark.slow
def test_dequantization_is_uniform_within_its_byte_and_keyed_by_example():
    x = np.repeat(bytes_of_all_levels(200), 3, axis=-1)
    y = np.asarray(Unit()(x, keys(200)), np.float64)
    u = 256 * y - x
    assert u.min() >= 0
    assert u.max() < 1
    assert u.mean() == pytest.approx(1 / 2, abs=5 / np.sqrt(12 * u.size))
    assert u.var() == pytest.approx(1 / 12, rel=0.01)
    assert abs(np.corrcoef(u[0].ravel(), u[1].ravel())[0, 1]) < 0.3  # examples differ
    assert abs(np.corrcoef(u[:, 0, 0, 0], u[:, 0, 1, 0])[0, 1]) < 0.3  # and so do pixels
    assert abs(np.corrcoef(u[..., 0].ravel(), u[..., 1].ravel())[0, 1]) < 0.05  # and colours
    assert np.array_equal(np.asarray(Unit()(x[:7], keys(7))), y[:7].astype(np.float32))
    assert not np.array_equal(np.asarray(Unit()(x[:7], keys(7, seed=1))), y[:7].astype(np.float32))


def test_identity_keeps_points_and_each_scaling_refuses_the_other_kind():
    points, images = np.ones((3, 2), np.float32), bytes_of_all_levels(3)
    assert np.array_equal(Identity()(points, keys(3)), points)
    series = np.ones((3, 64, 2), np.float16)
    assert Identity()(series, keys(3)).dtype == np.float16 and np.array_equal(Identity()(series, keys(3)), series)
    with pytest.raises(UsageError, match="'centered' or 'unit' for images"):
        Identity()(images, keys(3))
    for scaling in (Centered(), Unit()):
        with pytest.raises(UsageError, match="'identity' for floating-point data"):
            scaling(points, keys(3))
    with pytest.raises(UsageError, match="floating-point data cannot be written as bytes"):
        Identity().to_bytes(points)
    assert set(SCALINGS.values()) == {Centered, Unit, Identity, Auto}
    for data, kind in ((points, Identity), (images, Centered)):
        assert Auto().of(Dataset("x", data)) == kind()
        assert np.array_equal(Auto()(data, keys(3)), kind()(data, keys(3)))


def test_flips_mirror_columns_of_about_half_of_the_images():
    x = np.random.default_rng(0).integers(256, size=(400, 4, 5, 3), dtype=np.uint8)
    y = np.asarray(jax.jit(random_flip)(keys(400), x))
    kept = (y == x).all(axis=(1, 2, 3))
    mirrored = (y == x[:, :, ::-1]).all(axis=(1, 2, 3))
    assert y.dtype == x.dtype
    assert np.all(kept ^ mirrored)
    assert 0.5 - 5 / 40 < mirrored.mean() < 0.5 + 5 / 40  # five standard errors
    assert np.array_equal(np.asarray(random_flip(keys(7), x[:7])), y[:7])  # whatever the size of the batch
    assert np.array_equal(np.asarray(random_flip(keys(400)[100:103], x[100:103])), y[100:103])
    with pytest.raises(UsageError, match="only images"):
        random_flip(keys(3), np.ones((3, 2), np.float32))


def test_crops_are_uniform_shifts_of_the_reflected_image():
    """Each image is one of the 5 x 5 shifts, each as likely; keyed by example, in its dtype, for any aspect ratio."""
    count, pad = 2000, 2
    x = np.random.default_rng(0).integers(256, size=(count, 5, 7, 2), dtype=np.uint8)
    y = np.asarray(jax.jit(random_crop, static_argnums=2)(keys(count), x, pad))
    wide = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    cuts = np.stack([wide[:, i : i + 5, j : j + 7] for i in range(5) for j in range(5)])
    found = (cuts == y).all(axis=(2, 3, 4))
    assert y.dtype == x.dtype and (found.sum(0) == 1).all() and chisquare(found.sum(1)).pvalue > 1e-4
    assert np.array_equal(random_crop(keys(count)[100:103], x[100:103], pad), y[100:103])
    assert np.array_equal(random_crop(keys(3), x[:3], 0), x[:3])
    refused(lambda: random_crop(keys(3), x[:3], 5), "images of 5x7", "5 pixels", "fewer than the shorter side")
    refused(lambda: random_crop(keys(3), x[:3, 0], 1), "only images", "turn the crop off")


def test_series_are_shifted_around_their_end():
    """Each by 0 .. L - 1, uniformly, all channels alike."""
    x = np.random.default_rng(0).standard_normal((2000, 5, 2)).astype(np.float32)
    y = np.asarray(jax.jit(random_shift)(keys(2000), x))
    found = np.stack([(np.roll(x, by, axis=1) == y).all(axis=(1, 2)) for by in range(5)])
    assert (found.sum(0) == 1).all() and chisquare(found.sum(1)).pvalue > 1e-4
    assert np.array_equal(random_shift(keys(2000)[100:103], x[100:103]), y[100:103])
    for shape in ((3, 2), (3, 4, 4, 1), (3, 4, 4, 4, 1)):
        refused(
            lambda shape=shape: random_shift(keys(3), np.ones(shape)), "only series [B, L, C]", "turn the shift off"
        )


# preparation


@pytest.mark.quick(1)
@pytest.mark.parametrize("scaling", [Centered(), Unit()], ids=repr)
@pytest.mark.parametrize(("flip", "probability"), [(False, 0.0), (True, 0.0), (False, 0.6), (True, 0.6)])
def test_preparation_scales_then_flips_then_augments(scaling, flip, probability):
    """Each with keys of its own, by example; held-out examples are scaled only, with the same noise."""
    raw = np.random.default_rng(0).integers(256, size=(20, 6, 6, 1), dtype=np.uint8)
    prepare, (scale, turn, change) = Prepare(scaling, flip, probability), split_keys(keys(20), 3)
    options = {"xla_backend_optimization_level": 0}
    x0, numbers = jax.jit(prepare, static_argnames="train", compiler_options=options)(raw, keys(20))
    held_out, none = prepare(raw, keys(20), train=False)
    np.testing.assert_array_equal(held_out, scaling(raw, scale))
    assert none is None
    want = scaling(raw, scale)
    want = random_flip(turn, want) if flip else want
    if probability:
        want, told = jax.jit(augment, compiler_options=options)(change, want, probability)
        np.testing.assert_array_equal(numbers, told)
        assert np.abs(np.asarray(x0) - np.asarray(held_out)).max() > 0.1
    else:
        assert numbers is None
    np.testing.assert_allclose(x0, want, atol=1e-6)
    few, _ = prepare(raw[5:8], keys(20)[5:8])
    np.testing.assert_allclose(few, x0[5:8], atol=1e-4)  # whatever the batch


def test_crops_and_shifts_have_draws_of_their_own():
    """They are made before the flip, which is drawn as without them; held-out examples are not moved."""
    x = np.random.default_rng(0).standard_normal((20, 6, 9, 2)).astype(np.float32)
    flip, own = split_keys(keys(20), 3)[1], split_keys(fold_keys(keys(20), 3), 2)
    prepare = Prepare(Identity(), flip=True, crop=3)
    np.testing.assert_array_equal(prepare(x, keys(20))[0], random_flip(flip, random_crop(own[0], x, 3)))
    np.testing.assert_array_equal(prepare(x, keys(20), train=False)[0], x)
    shifted = Prepare(Identity(), shift=True)
    np.testing.assert_array_equal(shifted(x[..., 0], keys(20))[0], random_shift(own[1], x[..., 0]))
    np.testing.assert_array_equal(shifted(x[..., 0], keys(20), train=False)[0], x[..., 0])


def test_what_is_for_images_and_what_for_series():
    """Examples of every rank: points, series, images, volumes."""
    options = {"flip": True, "augment": 0.5, "crop": 2, "shift": True}
    each = {name: Prepare(Identity(), **{name: value}) for name, value in options.items()}
    fits = {rank: {name for name in each if not each[name].refuse((4,) * rank)} for rank in (1, 2, 3, 4)}
    assert fits == {1: set(), 2: {"shift"}, 3: {"flip", "augment", "crop"}, 4: set()}
    volume = np.ones((2, 4, 4, 4, 1), np.float32)
    for name, found in each.items():
        refused(lambda found=found: found(volume, keys(2)), f"{name}={options[name]}: it is for", f": say {name}=")
        np.testing.assert_array_equal(found(volume, keys(2), train=False)[0], volume)
    (refusal,) = Prepare(Identity(), crop=5).refuse((9, 4, 1))
    assert refusal.fixes == ("data.crop=3",) and not Prepare(Identity(), crop=3).refuse((9, 4, 1))


def test_preparation_of_points_and_what_it_refuses():
    points = np.ones((3, 2), np.float32)
    x0, numbers = Prepare(Identity())(points, keys(3))
    assert np.array_equal(x0, points) and numbers is None
    refused(lambda: Prepare(Identity(), flip=True)(points, keys(3)), "flip=True: it is for images", "say flip=False")
    refused(lambda: Prepare(Identity(), augment=0.1)(points, keys(3)), "augment=0.1: it is for images")
    refused(lambda: Prepare(Centered())(points, keys(3)), "'identity'")
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"augment={bad}: a probability"):
            Prepare(Identity(), augment=bad)
    assert Prepare(Unit(False), True, 0.2) == Prepare(Unit(False), True, 0.2)  # so that equal ones share a program
    hash(Prepare(Unit(False), True, 0.2))


@pytest.mark.slow
def test_images_of_floats_are_prepared_too():
    """Float images can be flipped and augmented, in their dtype, also with JAX_ENABLE_X64."""
    x = np.random.default_rng(0).standard_normal((4, 6, 6, 2)).astype(np.float32)
    plain = Prepare(Identity(), True, 0.7)(x, keys(4))
    with jax.enable_x64(True):
        ours = Prepare(Identity(), True, 0.7)(x, keys(4))
        wide = Prepare(Identity(), True, 0.7)(x.astype(np.float64), keys(4))
    assert [a.dtype for a in (*ours, wide[0])] == [np.float32, np.float32, np.float64]
    for a, b, c in zip(plain, ours, wide, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        np.testing.assert_allclose(a, c, atol=1e-4)
