"""Arrays and tables of any shape: how they are read, standardised, and turned back."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from scoregen.app.build import build
from scoregen.app.config import load
from scoregen.app.report import save_data, saved_data
from scoregen.data import Dataset, Units, array, table
from scoregen.data.standardize import Rows, rows
from scoregen.data.table import write
from scoregen.errors import UsageError

RNG = np.random.default_rng(0)


def whole(data: Dataset) -> np.ndarray:
    return np.concatenate([data.examples(), data.examples(test=True)])


# Shapes and types


@pytest.mark.parametrize(
    ("shape", "options", "example"),
    [
        ((), {}, (1,)),
        ((3,), {}, (3,)),
        ((20,), {"kind": "series"}, (20, 1)),
        ((20, 2), {}, (20, 2)),
        ((2, 20), {"kind": "series"}, (20, 2)),
        ((8, 10), {"kind": "images"}, (8, 10, 1)),
        ((8, 10, 3), {}, (8, 10, 3)),
        ((3, 8, 10), {}, (8, 10, 3)),
        ((13, 16, 16), {}, (16, 16, 13)),
        ((6, 7, 8), {"kind": "volumes"}, (6, 7, 8, 1)),
        ((6, 7, 8, 2), {}, (6, 7, 8, 2)),
        ((2, 6, 7, 8), {}, (6, 7, 8, 2)),
        ((30, 20), {"layout": "first", "kind": "series"}, (20, 30)),
        ((12, 50), {"kind": "series"}, (50, 12)),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "uint16", "int64", "bool"])
@pytest.mark.quick(26)
def test_an_array_of_any_shape_is_standardised_and_comes_back(shape, options, example, dtype):
    x = (RNG.normal(20, 5, (40, *shape)) > 20) if dtype == "bool" else RNG.normal(20, 5, (40, *shape)).astype(dtype)
    data = array(x, **options)
    assert data.shape == example
    z = data.examples()
    assert z.dtype == np.float32
    axes = tuple(range(z.ndim - 1))
    np.testing.assert_allclose(z.mean(axes, dtype=np.float64), 0, atol=2e-4)
    np.testing.assert_allclose(z.std(axes, dtype=np.float64), 1, atol=2e-4)
    back = data.units.decode(z)
    assert back.dtype == x.dtype and back.shape == data.train.shape
    tolerance = {"float16": 2e-2, "float32": 2e-5, "float64": 1e-5}.get(dtype, 0)
    np.testing.assert_allclose(back.astype(float), data.train.astype(float), atol=tolerance)
    # All examples are there once, and a channel stays a channel.
    raw = np.concatenate([data.train, data.test])
    assert sorted(map(bytes, raw)) == sorted(map(bytes, x))
    first = np.moveaxis(data.train, 1, -1) if data.units.channel == 0 else data.train.reshape(len(z), *example)
    np.testing.assert_allclose(data.units.values(z), first.astype(float), atol=max(tolerance, 2e-5))


def test_images_of_bytes_stay_bytes():
    x = RNG.integers(0, 256, (20, 3, 8, 10), dtype=np.uint8)
    data = array(x)
    assert data.is_image and data.shape == (8, 10, 3)
    assert np.array_equal(data.examples(), np.moveaxis(data.train, 1, -1))
    assert np.array_equal(data.units.decode(data.examples()), data.train)
    assert array(x[:, 0]).shape == (8, 10, 1)
    # Bytes that are no images are numbers, also without a standardisation.
    assert not array(RNG.integers(0, 256, (20, 5), dtype=np.uint8), standardize=False).is_image
    assert array(RNG.integers(0, 256, (20, 5), dtype=np.uint8)).examples().dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((20, 30), {"kind": "series"}),
        ((12, 10, 12), {"kind": "images"}),
        ((9, 9, 9), {}),
        ((20, 30, 40), {}),
        ((5, 6, 7, 8), {"layout": ""}),
    ],
)
def test_an_unclear_layout_is_asked_for(shape, options):
    with pytest.raises(UsageError, match="layout="):
        array(RNG.normal(size=(10, *shape)), **options)


def test_the_channel_that_is_said_is_the_one_that_is_moved():
    notes = " ".join(array(RNG.normal(size=(10, 2, 6, 7))).notes)
    assert "2 channels, first: they are moved to the end" in notes
    assert "moved" not in " ".join(array(RNG.normal(size=(10, 6, 7, 2))).notes)


# Standardisation


def test_only_training_examples_are_used_for_the_mean():
    x = RNG.normal(3, 2, (50, 4)) * [1, 10, 100, 1000]
    data = array(x, held_out=0.4, seed=5)
    np.testing.assert_allclose(data.units.mean, data.train.mean(0), rtol=1e-12)
    np.testing.assert_allclose(data.units.std, data.train.std(0), rtol=1e-12)
    assert not np.allclose(data.units.mean, x.mean(0), rtol=1e-3)


@pytest.mark.parametrize(
    ("centre", "spread"), [(1e20, 1e19), (0, 1e-40), (1.7e9, 1e-2), (0, 1e200), (-1e-300, 1e-302), (0, 1e305)]
)
def test_no_magnitude_is_too_large_or_too_small(centre, spread):
    unit = RNG.normal(size=(200, 3))
    x = centre + spread * unit
    data = array(x)
    z = data.examples()
    assert np.isfinite(z).all()
    expected = (data.train - np.asarray(data.units.mean)) / np.asarray(data.units.std)
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(z.std(0), 1, rtol=1e-4)
    assert np.abs(data.units.decode(z) - data.train).max() < 1e-6 * spread + 1e-15 * abs(centre)


def test_chunks_do_not_change_the_moments(monkeypatch):
    x = RNG.normal(size=(101, 7, 3)) + np.arange(3) * 1e6
    once = array(x).units
    monkeypatch.setattr("scoregen.data.standardize.CHUNK", 8 * 21 * 10)
    again = array(x).units
    np.testing.assert_allclose(again.mean, once.mean, rtol=1e-13)
    np.testing.assert_allclose(again.std, once.std, rtol=1e-10)


def test_given_units_are_used():
    data = array(np.arange(20.0).reshape(10, 2), mean=(1.0,), std=(4.0, 2.0))
    np.testing.assert_allclose(data.examples(), (data.train - 1) / [4, 2], rtol=1e-6)


def test_a_constant_column_is_said_and_comes_back_exactly():
    x = np.stack([RNG.normal(size=50), np.full(50, 7.3)], 1)
    data = array(x)
    assert any("constant: 1 = 7.3" in note for note in data.notes)
    assert np.all(data.units.decode(data.examples() + 0.2)[:, 1] == 7.3)
    with pytest.raises(UsageError, match="all training examples are the same"):
        array(np.ones((20, 2)))


def test_the_density_changes_with_the_units():
    units = Units("float64", (4, 2), mean=(1.0, 2.0), std=(3.0, 0.5))
    z, step = RNG.normal(size=(1, 4, 2)), 1e-6
    jacobian = [(units.decode(z + step * e) - units.decode(z)).sum() / step for e in np.eye(8).reshape(8, 1, 4, 2)]
    assert np.log(np.abs(jacobian)).sum() == pytest.approx(units.log_scale, abs=1e-6)


def test_integers_are_rounded_and_kept_in_range():
    units = Units("uint8", (1,), mean=(250.0,), std=(10.0,))
    assert units.decode(np.array([[0.04], [0.06], [5.0], [-100.0]])).ravel().tolist() == [250, 251, 255, 0]
    for kind in ("int64", "uint64", "int32"):
        most = np.iinfo(kind).max
        made = Units(kind, (1,), mean=(0.0,), std=(1e30,)).decode(np.array([[1.0], [-1.0]]))
        assert made[0, 0] > 0.99 * most and made[1, 0] == np.iinfo(kind).min


# What is refused


@pytest.mark.parametrize(
    ("x", "options", "line"),
    [
        (np.array(3.0), {}, "a single number"),
        (np.zeros((0, 3)), {}, "empty"),
        (np.array(["a", "b"]), {}, "of type <U1: numbers are needed"),
        (np.array([1 + 2j, 3]), {}, "complex128"),
        (RNG.normal(size=(5, 4, 3, 2, 2, 2)), {}, "shape"),
        (RNG.normal(size=(5, 4, 3)), {"kind": "points"}, "reshape it, or choose another kind"),
        (RNG.normal(size=(5, 4)), {"kind": "serie"}, "kind='serie'"),
        (RNG.normal(size=(5, 4)), {"layout": "firts"}, "layout='firts'"),
        (RNG.normal(size=(5, 4)), {"mean": (0.0,)}, "both are needed"),
        (RNG.normal(size=(5, 4)), {"mean": (0.0, 1.0), "std": (1.0, 1.0)}, "each of the 4 channels"),
        (RNG.normal(size=(5, 4)), {"mean": (0.0,), "std": (0.0,)}, "std=0.0"),
        (RNG.normal(size=(5, 4)), {"mean": (0.0,), "std": (1.0,), "standardize": False}, "no effect"),
        (RNG.normal(size=(5, 4)), {"held_out": 1.0}, "held_out=1.0"),
        (RNG.normal(size=(5, 4)), {"held_out": 0.99}, "none to train on"),
        (RNG.normal(size=(5, 4)), {"seed": -1}, "seed"),
        (RNG.normal(size=(5, 4)), {"labels": np.arange(4)}, "labels"),
        (RNG.normal(size=(5, 4)), {"labels": np.array([0.5, 1, 2, 3, 4])}, "integers"),
        (RNG.normal(size=(5, 4)), {"labels": np.array([0, 1, 2, 3, 2**40])}, "does not fit int32"),
        (RNG.normal(size=(5, 4)), {"context": np.arange(4)}, "context"),
        (RNG.normal(size=(5, 4)), {"context": np.full((5, 1), np.nan)}, "NaN"),
        (RNG.integers(0, 9, (5, 4, 4, 1)).astype(np.uint8), {"mean": (0.0,), "std": (1.0,)}, "images of bytes"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(x, options, line):
    with pytest.raises(UsageError) as error:
        array(x, **options)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_a_preset_for_bytes_names_the_presets_for_numbers(tmp_path, dtype):
    """One line, and none about the range of x0, which the other preset does not clip."""
    np.save(tmp_path / "maps.npy", np.random.default_rng(0).uniform(0, 9, (30, 8, 8, 1)).astype(dtype))
    config = load("images")
    config.net.unet.update(channels=32, multipliers=(1,), blocks=1)
    config.data.update(name="array", dir=str(tmp_path / "maps.npy"))
    with pytest.raises(UsageError) as caught:
        build(config)
    (line,) = caught.value.args
    assert f"maps.npy' holds {dtype}: for numbers there are the presets points, series, fields" in line


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_by_its_place(bad):
    x = RNG.normal(size=(30, 6, 2))
    x[17, 3, 1] = x[20, 0, 0] = bad
    with pytest.raises(UsageError, match=r"row 17, position \[3, 1\] is .*; 2 of 30 rows"):
        array(x)


# Large arrays on disk


def test_rows_of_a_file_are_read_when_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("scoregen.data.standardize.IN_MEMORY", 100)
    x = RNG.normal(size=(60, 5))
    np.save(tmp_path / "x.npy", x)
    data = array(str(tmp_path / "x.npy"), seed=3)
    assert isinstance(data.train, Rows) and len(data.train) == 54
    inside = array(x, seed=3)
    assert np.array_equal(np.asarray(data.train), inside.train)
    assert np.array_equal(data.batch(0, 2, 16), inside.batch(0, 2, 16))
    assert np.array_equal(data.examples(slice(3, 9), test=True), inside.examples(slice(3, 9), test=True))
    assert isinstance(rows(x, np.arange(3)), np.ndarray)


def test_labels_and_contexts_stay_with_their_examples(tmp_path):
    x = RNG.normal(size=(40, 3))
    labels, context = np.arange(40) % 4, np.stack([x[:, 0] * 3 + 5, x[:, 1]], 1)
    np.savez(tmp_path / "all.npz", x=x, y=labels, c=context)
    np.save(tmp_path / "y.npy", labels)
    file = str(tmp_path / "all.npz")
    for given in ("y", str(tmp_path / "y.npy")):
        data = array(file, key="x", labels=given, context="c")
        for test in (False, True):
            raw, cond = (data.test if test else data.train), data.cond(test=test)
            at = [int(np.flatnonzero((x == row).all(1))[0]) for row in raw]
            assert np.array_equal(cond.label, labels[at])
            np.testing.assert_allclose(data.context_units.decode(cond.context), context[at], rtol=1e-6, atol=1e-6)
    assert data.cond(labels=False).label is None
    np.testing.assert_allclose(data.train_context.std(0), 1, rtol=1e-4)


# Tables


def text(path, content):
    path.write_text(content)
    return str(path)


WINE = "a,b,kind\n" + "".join(f"{i}.5,{i % 7},{'red' if i % 2 else 'white'}\n" for i in range(40))


def test_a_table_comes_back_with_its_columns_and_types(tmp_path):
    data = table(text(tmp_path / "w.csv", WINE), columns="b,a")
    assert data.columns == ("b", "a") and data.shape == (2,) and data.form.suffix == ".csv"
    write(tmp_path / "out.csv", data.units.decode(data.examples()), data.columns, data.form.dtypes)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "b,a" and lines[1:] == [f"{int(b)},{a}" for b, a in data.train]


@pytest.mark.parametrize(
    ("mark", "suffix"), [(",", ".csv"), (";", ".csv"), ("\t", ".tsv"), ("|", ".csv"), (",", ".csv.gz")]
)
def test_every_separator_gives_the_same_table(tmp_path, mark, suffix):
    content = WINE.replace(",", mark)
    path = tmp_path / f"w{suffix}"
    path.write_bytes(gzip.compress(content.encode()) if suffix.endswith("gz") else content.encode("utf-8-sig"))
    data = table(str(path), columns="a,b", label="kind")
    expected = table(text(tmp_path / "plain.csv", WINE), columns="a,b", label="kind")
    assert np.array_equal(data.train, expected.train) and np.array_equal(data.train_labels, expected.train_labels)


def test_no_column_and_no_row_is_lost_between_header_and_rows(tmp_path):
    """One name too few (as R writes row names), no name for a counter, a wide first line, an empty first cell."""
    rows = "".join(f"{i},{i}.5,{i * i}.25\n" for i in range(9))
    for header, line in (("a,b\n", "more cells than the 2"), (",a,b\n", "column 1 has no name")):
        with pytest.raises(UsageError, match=line):
            table(text(tmp_path / "r.csv", header + rows))
    wide = "\n".join(",".join(f"{i * j % 97}.{j}" for j in range(1, 6001)) for i in range(1, 7))
    assert table(text(tmp_path / "w.csv", wide), held_out=0.0).train.shape == (6, 6000)
    assert len(table(text(tmp_path / "e.csv", "1.5,,3.5\n" + rows), drop=True, held_out=0.0).train) == 9
    iris = "".join(f"{i}.1,{i}.2,setosa\n" for i in range(9))
    with pytest.raises(UsageError, match="numbers and words: say header=yes"):
        table(text(tmp_path / "i.csv", iris), label="3")
    assert len(table(text(tmp_path / "i.csv", iris), label="3", header="no", held_out=0.0).train) == 9
    years = table(
        text(tmp_path / "y.csv", "country,2019\n" + iris.replace(".1,", ",").replace(",setosa", "")), header="yes"
    )
    assert years.columns == ("country", "2019")


def test_what_is_written_is_read_back(tmp_path):
    """Also without names, and with the contexts beside the samples."""
    for content, options in (
        (WINE, {"label": "kind", "context": "b"}),
        ("1,2,3\n4,5,6\n7,8,9\n2,2,1\n", {"context": "2"}),
    ):
        data = table(text(tmp_path / "in.csv", content), held_out=0.0, **options)
        save_data(tmp_path, data, data.units.decode(data.examples()), data.cond())
        np.testing.assert_allclose(saved_data(tmp_path, data, None), data.examples(), atol=1e-5)


def test_classes_that_look_empty_are_classes_and_long_integers_are_refused(tmp_path):
    rows = "".join(f"{i},{('NA', 'None', '10', '9')[i % 4]}\n" for i in range(40))
    data = table(text(tmp_path / "k.csv", "a,k\n" + rows), label="k")
    assert data.classes == ("10", "9", "NA", "None") and len(data.train) == 36
    with pytest.raises(UsageError, match="column 'a' has integers with more digits"):
        table(text(tmp_path / "l.csv", "a,b\n" + "".join(f"{2**60 + i},{i}\n" for i in range(9))))


def test_a_decimal_comma_and_a_file_without_names(tmp_path):
    content = "".join(f"{i},5;{i * 2},25\n" for i in range(10))
    data = table(text(tmp_path / "x.csv", "a;b\n" + content), held_out=0.0)
    assert sorted(data.train[:, 0]) == [i + 0.5 for i in range(10)] and "decimal mark" in data.notes[0]
    bare = table(text(tmp_path / "y.csv", content.replace(",", ".")), held_out=0.0)
    assert bare.columns == ("1", "2") and np.array_equal(bare.train, data.train) and len(bare.train) == 10


def test_labels_and_contexts_of_a_table(tmp_path):
    data = table(text(tmp_path / "w.csv", WINE), label="kind", context="b")
    assert data.columns == ("a",) and data.classes == ("red", "white") and data.context_dim == 1
    i = (data.train[:, 0] - 0.5).astype(int)
    assert np.array_equal(data.train_labels, (i + 1) % 2)
    np.testing.assert_allclose(data.context_units.decode(data.train_context)[:, 0], i % 7, atol=1e-5)


def test_samples_of_a_table_have_the_contexts_and_classes_they_were_drawn_for(tmp_path):
    data = table(text(tmp_path / "w.csv", WINE), label="kind", context="b")
    save_data(tmp_path, data, data.units.decode(data.examples()), data.cond())
    lines = (tmp_path / "samples.csv").read_text().splitlines()
    assert lines[0] == "a,b,kind" and sorted(lines[1:]) == sorted(
        f"{a},{int(a - 0.5) % 7},{'red' if int(a - 0.5) % 2 else 'white'}" for a in data.train[:, 0]
    )


def test_samples_of_a_table_have_the_columns_in_the_order_of_the_file(tmp_path):
    data = table(text(tmp_path / "w.csv", WINE), label="kind", context="a")
    save_data(tmp_path, data, data.units.decode(data.examples()), data.cond())
    lines = (tmp_path / "samples.csv").read_text().splitlines()
    assert data.columns == ("b",) and lines[0] == "a,b,kind"
    a, b, kind = lines[1].split(",")
    assert float(b) == (float(a) - 0.5) % 7 and kind == ("red" if int(float(a) - 0.5) % 2 else "white")
    np.testing.assert_allclose(saved_data(tmp_path, data, None), data.examples(), rtol=1e-5)


def test_nan_is_no_class_of_a_table(tmp_path):
    path = text(tmp_path / "w.csv", WINE.replace("5.5,5,red", "5.5,5,nan"))
    with pytest.raises(UsageError, match=r"line 7, column 'kind': the cell is empty or NaN"):
        table(path, label="kind")


def test_labels_are_named_by_their_file_and_count_from_0(tmp_path):
    for labels, said in (([0.5, 1.5], r"l.npy: labels are float64, such as 0.5"), ([-1, 1], r"l.npy: a label is -1: ")):
        np.save(tmp_path / "l.npy", labels * 10)
        with pytest.raises(UsageError, match=said):
            array(np.random.default_rng(0).normal(size=(20, 2)), labels=str(tmp_path / "l.npy"))


def test_rows_with_empty_cells_are_named_or_left_out(tmp_path):
    path = text(tmp_path / "w.csv", WINE.replace("5.5,5,red", "5.5,,red").replace("\n9.5,", "\n,"))
    with pytest.raises(UsageError, match=r"w.csv, line 7, column 'b': the cell is empty or NaN; 2 of 40 rows"):
        table(path, columns="a,b")
    data = table(path, columns="a,b", drop=True)
    assert len(data.train) + len(data.test) == 38 and "2 rows with empty cells are left out" in data.notes
    assert not {5.5, 9.5} & {*data.train[:, 0], *data.test[:, 0]}


@pytest.mark.parametrize(
    ("content", "options", "line"),
    [
        (WINE, {}, "column 'kind' (such as 'white'): no numbers"),
        (WINE, {"columns": "a,kind"}, "no numbers"),
        (WINE, {"columns": "aa"}, "no column 'aa': did you mean 'a'?"),
        (WINE, {"columns": "a,a"}, "named twice"),
        (WINE, {"columns": "a,b", "context": "b"}, "named twice"),
        (WINE, {"columns": "a,b", "label": "a,b"}, "one column is needed"),
        ("a,a\n1,2\n3,4\n", {}, "two columns are called 'a'"),
        ("", {}, "empty"),
        ("a,b\n", {}, "0 rows"),
        ("a,b\n1,2\n", {}, "1 row:"),
        ("a,b\n1,2\n3,inf\n4,5\n", {}, "line 3, column 'b': the value is infinite"),
        ("a,b\n1,2\n3,4,5,6\n4,5\n", {}, "cannot be read as a table"),
        ("a,b\n1,2\n1,2\n1,2\n", {}, "all training examples are the same"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(tmp_path, content, options, line):
    with pytest.raises(UsageError) as error:
        table(text(tmp_path / "w.csv", content), **options)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_tables(tmp_path):
    for name, line in (
        (tmp_path, "folder"),
        (tmp_path / "no.csv", "no such file"),
        (tmp_path / "a.txt", "a file of .csv"),
    ):
        if not name.exists() and name.suffix == ".txt":
            name.write_text("a\n1\n")
        with pytest.raises(UsageError, match=line):
            table(str(name))
    (tmp_path / "latin.csv").write_bytes("größe\n1\n2\n".encode("latin-1"))
    with pytest.raises(UsageError, match="UTF-8"):
        table(str(tmp_path / "latin.csv"))
    (tmp_path / "half.csv.gz").write_bytes(gzip.compress(WINE.encode())[:40])
    with pytest.raises(UsageError, match="cannot be read"):
        table(str(tmp_path / "half.csv.gz"))


@pytest.mark.slow
def test_other_data_in_the_folder_of_a_run_change_nothing_of_it(tmp_path, capsys):
    from scoregen.app.main import main

    rng, run = np.random.default_rng(0), tmp_path / "run"
    for name, columns in (("first", "abc"), ("other", "xy")):
        rows = rng.normal(size=(60, len(columns)))
        np.savetxt(tmp_path / f"{name}.csv", rows, delimiter=",", header=",".join(columns), comments="")
    small = ["--batch=16", "--config.sampler.n=3", "--config.eval.samples=10", f"--workdir={run}"]
    assert main(["train", "points", f"--data={tmp_path / 'first.csv'}", "--steps=2", *small]) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["train", "points", f"--data={tmp_path / 'other.csv'}", "--steps=4", *small]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("scoregen: "))
    assert "holds a run with other data (data.shape was [3], now [2]; data.columns was ['a', 'b', 'c']" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main(["sample", str(run), "--n=5"]) == 0
