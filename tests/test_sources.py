"""Data from elsewhere: what is read is what was written, and a hostile file costs one line and little memory."""

import dataclasses
import gzip
import importlib
import importlib.util
import io
import os
import struct
import sys
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image
from refusal import refused

from scoregen.app import build
from scoregen.app.arguments import parse
from scoregen.data import arrays, open_array, pictures, shape_of
from scoregen.data import cifar100 as load_cifar100
from scoregen.data import fashion_mnist as load_fashion_mnist
from scoregen.data import hf as load_hf
from scoregen.data import idx as load_idx
from scoregen.data.units import Form

cifar = importlib.import_module("scoregen.data.cifar")
cifar100 = importlib.import_module("scoregen.data.cifar100")  # the name in the package is the function
fashion = importlib.import_module("scoregen.data.fashion_mnist")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 5, 7), np.uint8)
MB = 1 << 20


def peak(call) -> int:
    """The bytes that Python held at most during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bomb(start: bytes, size: int) -> bytes:
    """A .gz file of these bytes and then zeros, which is a thousandth of its content."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as file:
        file.write(start)
        zeros = bytes(MB)
        for _ in range(size // MB):
            file.write(zeros)
    return packed.getvalue()


# .npy and .npz


def npy(descr: str, shape: str, content: bytes = b"", version: int = 1, order: bool = False) -> bytes:
    """A .npy file with a header of any text."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + content


@pytest.mark.parametrize("dtype", ["u1", "<f2", "<f4", ">f8", "<i8", "?", "<c8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_opened_in_place(dtype, order, tmp_path):
    x = np.asarray(RNG.standard_normal((6, 4, 3)) * 50).astype(dtype, order=order)
    np.save(tmp_path / "x.npy", x)
    found = open_array(tmp_path / "x.npy")
    assert isinstance(found, np.memmap) and found.mode == "r" and found.dtype == x.dtype
    np.testing.assert_array_equal(found, x)
    np.savez(tmp_path / "x.npz", x=x)
    np.savez_compressed(tmp_path / "y.npz", x=x, y=x[1:])
    for given in (open_array(tmp_path / "x.npz"), open_array(str(tmp_path / "y.npz"), "x.npy")):
        assert given.dtype == x.dtype
        np.testing.assert_array_equal(given, x)
    np.testing.assert_array_equal(open_array(tmp_path / "y.npz", key="y"), x[1:])


def test_versions_of_the_format(tmp_path):
    for version in (1, 2):
        (tmp_path / "x.npy").write_bytes(npy("'<f4'", "(2, 1)", np.float32([3, 4]).tobytes(), version))
        assert open_array(tmp_path / "x.npy").tolist() == [[3], [4]]


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        (b"", ["no whole .npy file", "np.save"]),
        (b"x,y\n1,2\n", ["no whole .npy file", "np.save"]),
        (npy("'<f4'", "(2, 3)")[:9], ["no whole .npy file"]),
        (npy("'<f4'", "(2, 3)")[:-4], ["no whole .npy file"]),
        (npy("'<f4'", "(2, 3)", bytes(20)), ["no whole .npy file", "bytes, and by its header", "np.save"]),
        (npy("'<f4'", "(2, 3)", bytes(28)), ["no whole .npy file", "may hold several arrays"]),
        (npy("'<f8'", "(1000000000000, 3)", bytes(28)), ["no whole .npy file", "240000000000"]),
        (npy("'|V0'", "(1000000000000,)"), ["raw bytes (|V0)", "astype(np.float32)"]),
        (npy("'|V2'", "(2,)", bytes(4)), ["as bfloat16 is saved"]),
        (npy("'|S0'", "(1000000000000,)"), ["texts", "np.unique"]),
        (npy("'<U3'", "(2,)", bytes(24)), ["texts"]),
        (npy("'|O'", "(1000000000000,)", b"cos\nsystem\n(S'false'\ntR."), ["Python objects"]),
        (npy("[('a', '<f4'), ('b', '<f4')]", "(2,)", bytes(16)), ["records", "x['a'], x['b']"]),
        (npy("('<f4', (3,))", "(2,)", bytes(24)), ["raw bytes"]),
        (npy("'<M8[s]'", "(2,)", bytes(16)), ["dates", "int64"]),
        (npy("'<m8[s]'", "(2,)", bytes(16)), ["durations"]),
        (npy("'<f4'", "()", bytes(4)), ["a single number", "[N, ...]"]),
        (npy("'<f4'", f"(0, {10**30})"), ["is empty"]),
        (npy("'<f4'", "(-1, -2)", bytes(8)), ["no whole .npy file"]),
        (npy("'<f4'", "(True, 2)", bytes(8)), ["no whole .npy file"]),
        (npy("'<f4'", f"({'1,' * 60})", bytes(4)), ["no whole .npy file"]),
        (npy("'<f4'", "(" * 3000), ["no whole .npy file"]),
        (npy("'\\d'", "(2,)", bytes(8)), ["no whole .npy file"]),
        (b"\x93NUMPY\1\0\0\0" + bytes(90), ["no whole .npy file"]),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(90), ["no whole .npy file"]),
        (b"\x93NUMPY\3\0" + npy("'<f4'", "(2,)", bytes(8), 2)[8:], ["no whole .npy file"]),
    ],
)
def test_a_bad_array_is_refused_by_its_header(raw, parts, tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(raw)
    assert peak(lambda: refused(lambda: open_array(path), path, *parts)) < MB


def test_no_array_at_all(tmp_path):
    refused(lambda: open_array(""), "say dir=FILE.npy")
    refused(lambda: open_array(str(tmp_path / "none.npy")), "none.npy", "No such file", "say dir=FILE.npy")
    refused(lambda: open_array(tmp_path), "is a folder")
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: open_array(tmp_path / "pipe"), "no regular file")
    np.save(tmp_path / "x.npy", np.zeros(3))
    refused(lambda: open_array(tmp_path / "x.npy", "a"), "leave out key='a'")


def test_the_header_of_a_large_file_is_read_in_part(tmp_path):
    """A header of four gigabytes, in a file that is large enough, is not read."""
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        file.write(b"\x93NUMPY\2\0" + struct.pack("<I", 3 << 30))
        file.truncate(4 << 30)  # a hole, which takes no room
    assert peak(lambda: refused(lambda: open_array(path), "no whole .npy file")) < MB


def test_members_of_an_archive_are_named(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **{f"a{i}": np.zeros((i + 1, 2)) for i in range(13)})
    refused(lambda: open_array(path), path, "a0 (1, 2), a1 (2, 2)", "a9 (10, 2) and 3 more", "say key=NAME")
    refused(lambda: open_array(path, "b"), "say key=NAME")
    assert open_array(path, "a12").shape == (13, 2)
    np.savez(path)
    refused(lambda: open_array(path), "no arrays", "np.savez")
    np.savez(path, x=np.array([{}], object))
    assert "pickle" not in refused(lambda: open_array(path), "x in", "Python objects")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", npy("'<f4'", "(2,)", bytes(8)))
    refused(lambda: open_array(path), "another way than np.savez_compressed")


def test_a_damaged_archive_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=RNG.standard_normal(4000))
    whole = path.read_bytes()
    for raw in (whole[:-1], whole[:100], b"PK", whole[:9000] + b"x" + whole[9001:]):
        path.write_bytes(raw)
        refused(lambda: open_array(path), path, "no whole .npz file", "np.savez")


def test_a_bomb_in_an_archive_is_refused(tmp_path, monkeypatch):
    """A member of 64 MB of zeros: longer than its header says, or larger than the memory."""
    path, content = tmp_path / "x.npz", bytes(64 * MB)
    for shape, parts in (("(2, 3)", ["no whole .npy file"]), (f"({16 * MB},)", ["more than the memory"])):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("x.npy", npy("'<f4'", shape, content))
        monkeypatch.setattr(arrays, "memory", lambda: 50 * MB)
        assert peak(lambda parts=parts: refused(lambda: open_array(path), "x in", *parts)) < MB


def test_a_long_list_of_members_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "DIRECTORY", 1000)
    np.savez(tmp_path / "x.npz", **{f"a{i}": np.zeros(1) for i in range(30)})
    refused(lambda: open_array(tmp_path / "x.npz"), "no whole .npz file", "a list of members of")


# IDX


def idx_file(path, x: np.ndarray):
    """Write an IDX file, compressed if its name ends in .gz."""
    code = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[x.dtype.str[1:]]
    raw = (
        bytes([0, 0, code, x.ndim])
        + struct.pack(f">{x.ndim}I", *x.shape)
        + x.astype(x.dtype.newbyteorder(">")).tobytes()
    )
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def idx_folder(folder, name="{}-{}-idx{}-ubyte", parts=("train", "t10k"), first=0):
    """Files of 20 images to train on and 19 to test on, with labels from `first`."""
    folder.mkdir(exist_ok=True)
    for i, part in enumerate(parts):
        idx_file(folder / name.format(part, "images", 3), PIXELS[i:])
        idx_file(folder / name.format(part, "labels", 1), (np.arange(20, dtype=np.uint8) + first)[i:])
    return folder


@pytest.mark.parametrize(
    "name", ["{}-{}-idx{}-ubyte", "{}-{}-idx{}-ubyte.gz", "{}-{}.idx{}-ubyte", "qmnist-{}-{}-idx{}-ubyte.gz"]
)
@pytest.mark.parametrize("test", ["t10k", "test"])
def test_pairs_of_files_are_a_data_set(name, test, tmp_path):
    data = load_idx(dir=str(idx_folder(tmp_path / "x", name, ("train", test))))
    np.testing.assert_array_equal(data.train, PIXELS[..., None])
    np.testing.assert_array_equal(data.test, PIXELS[1:, ..., None])
    assert data.train_labels.tolist() == [*range(20)] and data.test_labels.tolist() == [*range(1, 20)]
    assert data.train_labels.dtype == data.test_labels.dtype == np.int32 and data.notes == ()
    assert shape_of(load_idx, dir=str(tmp_path / "x")) == data.shape == (5, 7, 1)
    assert isinstance(data.train, np.memmap) == (not name.endswith(".gz"))


def test_a_border_is_put_around_images(tmp_path):
    place = str(idx_folder(tmp_path / "x"))
    data = load_idx(dir=place, size=10)
    assert data.shape == shape_of(load_idx, dir=place, size=10) == (10, 10, 1)
    np.testing.assert_array_equal(data.train[:, 2:7, 1:8, 0], PIXELS)
    assert data.train.sum() == PIXELS.sum()
    refused(lambda: load_idx(dir=place, size=6), "idx: size=6: the images are 5x7")


def test_one_of_several_data_sets_is_chosen(tmp_path):
    """EMNIST: its images are transposed, and its letters count from 1."""
    for name in ("letters", "digits"):
        idx_folder(tmp_path / "x", f"emnist-{name}-{{}}-{{}}-idx{{}}-ubyte.gz", ("train", "test"), name == "letters")
    place = str(tmp_path / "x")
    refused(lambda: load_idx(dir=place), "several data sets", "say split=NAME with one of digits, letters")
    refused(lambda: load_idx(dir=place, split="byclass"), "split='byclass'", "digits, letters")
    letters, digits = (load_idx(dir=place, split=split) for split in ("letters", "emnist-digits"))
    for data in (letters, digits):
        np.testing.assert_array_equal(data.train[..., 0], PIXELS.transpose(0, 2, 1))
        assert shape_of(load_idx, dir=place, split="letters") == data.shape == (7, 5, 1)
        assert data.train_labels.tolist() == [*range(20)] and data.test_labels.tolist() == [*range(1, 20)]
    assert len(letters.notes) == 2 and len(digits.notes) == 1
    assert "turned upright" in digits.notes[0] and "count from 1" in letters.notes[1]
    np.testing.assert_array_equal(load_idx(dir=place, split="digits", transposed="no").train[..., 0], PIXELS)
    idx_folder(tmp_path / "x")
    refused(lambda: load_idx(dir=place), "files without such a name into another folder")
    turned = load_idx(dir=str(idx_folder(tmp_path / "y")), transposed="yes")
    np.testing.assert_array_equal(turned.train[..., 0], PIXELS.transpose(0, 2, 1))


def test_the_command_line_names_its_own_options(tmp_path):
    for name in ("a", "b"):
        idx_folder(tmp_path, f"{name}-{{}}-{{}}-idx{{}}-ubyte")
    options = ["--config=images", "--config.data.name=idx", f"--config.data.dir={tmp_path}"]
    refused(lambda: build.data(parse(options).config), "say --config.data.idx.split=NAME with one of a, b")
    options.append("--config.data.idx.split=c")
    refused(lambda: build.data(parse(options).config), "config.data.idx.split='c': ")


def test_without_a_file_to_test_on_a_part_is_held_out(tmp_path):
    place = str(idx_folder(tmp_path / "x", parts=("train",)))
    data = load_idx(dir=place, held_out=0.25)
    assert (len(data.train), len(data.test)) == (15, 5)
    np.testing.assert_array_equal(data.train[..., 0], PIXELS[data.train_labels])
    np.testing.assert_array_equal(data.test[..., 0], PIXELS[data.test_labels])
    assert load_idx(dir=place, seed=1).test_labels.tolist() != load_idx(dir=place, seed=2).test_labels.tolist()


def test_a_single_file_of_any_kind(tmp_path):
    colour = RNG.integers(0, 256, (12, 4, 6, 3), np.uint8)
    data = load_idx(dir=str(idx_file(tmp_path / "mine.gz", colour)))
    every = np.concatenate([data.train, data.test])
    assert sorted(map(bytes, every)) == sorted(map(bytes, colour)) and data.train_labels is None
    assert "no file of labels" in data.notes[0]
    for dtype in ("<f4", "<f8"):
        x = RNG.standard_normal((12, 3, 2)).astype(dtype)
        path = str(idx_file(tmp_path / "x", x))
        data = load_idx(dir=path)
        np.testing.assert_array_equal(
            np.sort(np.concatenate([data.train, data.test]), 0), np.sort(x.astype(np.float32), 0)
        )
        assert shape_of(load_idx, dir=path) == data.shape == (3, 2)
        refused(lambda path=path: load_idx(dir=path, size=8), "float", "only images have a size")
    for dtype, shape in (("i1", (9, 4, 4)), ("<i2", (9, 4, 4)), ("<i4", (9, 2)), ("u1", (9, 2)), ("u1", (9,))):
        path = idx_file(tmp_path / "x", np.ones(shape, dtype))
        refused(lambda path=path: load_idx(dir=str(path)), path, str(shape), "as float32", "np.save")
    refused(lambda: load_idx(dir=str(path), split="x"), "split='x'", "single file")


@pytest.mark.parametrize("dtype", ["i1", "<i2", "<i4"])
def test_labels_of_any_integer_type(dtype, tmp_path):
    place = idx_folder(tmp_path / "x")
    for name, i in (("train", 0), ("t10k", 1)):
        (place / f"{name}-labels-idx1-ubyte").unlink()
        idx_file(place / f"{name}-labels-idx1-int", np.arange(i, 20).astype(dtype))
    assert load_idx(dir=str(place)).train_labels.tolist() == [*range(20)]
    idx_file(place / "train-labels-idx1-int", np.zeros(20, "<f4"))
    refused(lambda: load_idx(dir=str(place)), "train-labels-idx1-int holds float32", "an integer is needed for each")
    idx_file(place / "train-labels-idx1-int", np.zeros(19, "<i4"))
    refused(lambda: load_idx(dir=str(place)), "(19,) for the 20 examples in", "train-images")


def test_files_that_are_missing_or_too_many(tmp_path):
    place = idx_folder(tmp_path / "x")
    refused(lambda: load_idx(dir=""), "say dir=FOLDER")
    refused(lambda: load_idx(dir=str(tmp_path / "none")), tmp_path / "none", "no such folder")
    refused(lambda: load_idx(dir=str(tmp_path)), tmp_path, "train-images-idx3-ubyte")
    (place / "t10k-labels-idx1-ubyte").unlink()
    refused(lambda: load_idx(dir=str(place)), "t10k-images-idx3-ubyte has no file of labels", "the other part has one")
    (place / "train-images-idx3-ubyte").unlink()
    refused(lambda: load_idx(dir=str(place)), "train-labels-idx1-ubyte has no file of images")
    (place / "train-labels-idx1-ubyte").unlink()
    refused(lambda: load_idx(dir=str(place)), "t10k-images-idx3-ubyte is to test on", "no file to train on")
    for name in ("train-images-idx3-ubyte", "train-images-idx3-int"):
        idx_file(place / name, PIXELS)
    refused(lambda: load_idx(dir=str(place)), "train-images-idx3-int", "are the same part")
    (place / "train-images-idx3-int").unlink()
    idx_file(place / "train-images-idx3-ubyte.gz", PIXELS[:3])  # the plain file comes first
    idx_file(place / "test-images-idx3-ubyte", PIXELS)
    refused(lambda: load_idx(dir=str(place)), "t10k-images", "test-images", "are the same part")
    (place / "test-images-idx3-ubyte").unlink()
    assert len(load_idx(dir=str(place)).train) == 20


HEADER = bytes([0, 0, 8, 3]) + struct.pack(">3I", 20, 5, 7)
BAD_IDX = {
    "empty": b"",
    "no zeros": b"\1" + HEADER[1:] + PIXELS.tobytes(),
    "type": HEADER[:2] + b"\x0a" + HEADER[3:] + PIXELS.tobytes(),
    "no axes": b"\0\0\x08\0" + bytes(9),
    "too many axes": b"\0\0\x08\xff" + bytes(2000),
    "cut header": HEADER[:9],
    "no examples": bytes([0, 0, 8, 3]) + struct.pack(">3I", 0, 5, 7),
    "cut short": HEADER + PIXELS.tobytes()[:-1],
    "longer": HEADER + PIXELS.tobytes() + b"x",
    "absurd": bytes([0, 0, 14, 4]) + b"\xff" * 16 + PIXELS.tobytes(),
}


@pytest.mark.parametrize("flaw", BAD_IDX)
@pytest.mark.parametrize("name", ["x", "x.gz"])
def test_a_bad_idx_file_is_refused_by_its_header(name, flaw, tmp_path):
    path, raw = tmp_path / name, BAD_IDX[flaw]
    path.write_bytes(gzip.compress(raw) if path.suffix else raw)
    assert peak(lambda: refused(lambda: load_idx(dir=str(path)), path)) < MB


def test_a_damaged_gz_is_refused(tmp_path):
    path = idx_file(tmp_path / "x.gz", PIXELS)
    whole = path.read_bytes()
    for raw in (whole[:-9], whole[:-8] + bytes(8), whole[:20], b"<html>"):  # -8: the checksum
        path.write_bytes(raw)
        refused(lambda: load_idx(dir=str(path)), path, "get it again")


def test_a_gz_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """64 MB of zeros after a small header; and a header that asks for more than the memory."""
    path = tmp_path / "x.gz"
    path.write_bytes(bomb(HEADER, 64 * MB))
    assert peak(lambda: refused(lambda: load_idx(dir=str(path)), path, "goes on after the 700 bytes")) < MB
    large = bytes([0, 0, 8, 3]) + struct.pack(">3I", 64, 1024, 1024)
    path.write_bytes(bomb(large, 64 * MB))
    monkeypatch.setattr(arrays, "memory", lambda: 50 * MB)
    assert peak(lambda: refused(lambda: load_idx(dir=str(path)), path, "the memory of this machine")) < MB


def test_a_bomb_in_the_place_of_fashion_mnist_is_not_unpacked(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(bomb(HEADER, 256 * MB))

    def load():
        refused(lambda: load_fashion_mnist(dir=str(tmp_path)), "at least 47040017 bytes", "get http")

    assert peak(load) < 150 * MB


# CIFAR-100


@pytest.fixture
def records(monkeypatch):
    """Six records to train on and four to test on: the coarse label i // 5, the fine label i, and random pixels."""
    few = dataclasses.replace(cifar100.PUBLISHED, train={"train.bin": 6}, test={"test.bin": 4})
    monkeypatch.setattr(cifar100, "PUBLISHED", few)

    def made(count: int) -> bytes:
        labels = np.stack([np.arange(count) // 5, np.arange(count) + 90], -1).astype(np.uint8)
        return np.concatenate([labels, RNG.integers(0, 256, (count, 3072), np.uint8)], 1).tobytes()

    return {"train.bin": made(6), "test.bin": made(4)}


def archived(members, tail: bytes = b"") -> bytes:
    """A .tar.gz archive of (header, content), with real headers for what is named by a string."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as file:
        for name, content in members:
            info = name
            if isinstance(name, str):
                info = tarfile.TarInfo(name)
                info.size = len(content)
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            if isinstance(content, int):
                for _ in range(content // MB):
                    file.write(bytes(MB))
            else:
                file.write(content + bytes(-len(content) % 512))
        file.write(bytes(1024) + tail)
    return packed.getvalue()


def test_records_have_two_labels(records, tmp_path):
    place = tmp_path / "cifar-100-binary"
    place.mkdir()
    for name, raw in records.items():
        (place / name).write_bytes(raw)
    fine, coarse = (load_cifar100(dir=str(tmp_path), coarse=coarse) for coarse in (False, True))
    assert fine.train_labels.tolist() == [90, 91, 92, 93, 94, 95] and fine.test_labels.tolist() == [90, 91, 92, 93]
    assert coarse.train_labels.tolist() == [0, 0, 0, 0, 0, 1] and fine.train_labels.dtype == np.int32
    for i in range(4):
        pixels = records["test.bin"][3074 * i + 2 : 3074 * (i + 1)]
        assert bytes(fine.test[i].transpose(2, 0, 1)) == pixels
    small = load_cifar100(dir=str(place), size=16)
    np.testing.assert_array_equal(
        small.test[:, 0, 1], np.floor(fine.test[:, 0:2, 2:4].astype(np.float64).mean((1, 2)) + 0.5)
    )
    top = [(f"cifar-100-binary/{name}", raw) for name, raw in records.items()]
    for raw in (
        archived([("cifar-100-binary/fine_label_names.txt", b"apple\n"), *top]),
        archived([*top[::-1], (tarfile.TarInfo("cifar-100-binary"), b"")]),
    ):
        (tmp_path / "mine.tgz").write_bytes(raw)
        found = load_cifar100(dir=str(tmp_path / "mine.tgz"))
        np.testing.assert_array_equal(found.train, fine.train)
        np.testing.assert_array_equal(found.test_labels, fine.test_labels)
    refused(lambda: load_cifar100(dir=str(place), size=5), "cifar100: size=5")
    refused(lambda: load_cifar100(dir=str(place), coarse="yes"), "cifar100: coarse='yes'")


@pytest.mark.parametrize(("byte", "label"), [(0, 20), (1, 100)])
def test_a_label_beyond_its_classes_is_refused(records, byte, label, tmp_path):
    raw = bytearray(records["test.bin"])
    raw[2 * 3074 + byte] = label
    (tmp_path / "train.bin").write_bytes(records["train.bin"])
    (tmp_path / "test.bin").write_bytes(raw)
    refused(lambda: load_cifar100(dir=str(tmp_path)), f"record 2 has the label {label}, not one of 0..{label - 1}")


def test_the_python_version_of_cifar100_is_refused(tmp_path):
    (tmp_path / "meta").touch()
    refused(lambda: load_cifar100(dir=str(tmp_path)), "python version of CIFAR-100", "the binary version is needed")


def header(kind: bytes, size: int, name: str = "././@LongLink"):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info


@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.REGTYPE]
)
def test_a_name_of_512_megabytes_is_not_read(records, kind, tmp_path):
    """Nor any other member that the published archive has not. The archive goes on for 64 MB only: it is not read."""
    path = tmp_path / "cifar-100-binary.tar.gz"
    path.write_bytes(archived([(header(kind, 512 * MB), 64 * MB), *records.items()]))

    def load():
        refused(lambda: load_cifar100(dir=str(tmp_path)), path, f"{512 * MB} bytes", "another set", "get http")

    assert peak(load) < MB


def test_what_an_archive_may_hold_besides(records, tmp_path):
    """Short extensions are skipped; many members, and much after the end, are refused before they are read."""
    path = tmp_path / "cifar-100-binary.tar.gz"

    def load():
        return load_cifar100(dir=str(tmp_path))

    path.write_bytes(archived([(header(tarfile.XHDTYPE, 18, "x"), b"18 mtime=123.4567\n"), *records.items()]))
    assert len(load().train) == 6
    path.write_bytes(archived([*records.items(), *[(f"{i}", b"") for i in range(2100)]]))
    refused(load, path, "another set")
    path.write_bytes(archived(records.items(), tail=bytes(64 * MB)))
    assert peak(lambda: refused(load, path, "not a whole .tar.gz archive", "after its end")) < 4 * MB
    path.write_bytes(archived([*records.items(), (header(tarfile.REGTYPE, -512, "a\nb"), b"")]))
    refused(load, path)
    cut = archived([("train.bin", records["train.bin"])])
    with gzip.open(io.BytesIO(cut)) as plain:
        path.write_bytes(gzip.compress(plain.read(9000)))
    refused(load, path, "it ends within train.bin")


# Hugging Face


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The library `datasets`, with its cache in a folder of the test, and without a network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


def photos(datasets, count=12, grey=False):
    """Pictures of 6x8 pixels with a class and an integer each, and the pixels."""
    pixels = RNG.integers(0, 256, (count, 6, 8, 1 if grey else 3), np.uint8)
    columns = {
        "photo": [Image.fromarray(x.squeeze()) for x in pixels],
        "animal": [i % 3 for i in range(count)],
        "number": list(range(count)),
    }
    kinds = {"photo": datasets.Image(), "animal": datasets.ClassLabel(names=["cat", "dog", "emu"])}
    return datasets.Dataset.from_dict(columns, datasets.Features(kinds | {"number": datasets.Value("int64")})), pixels


def test_saved_pictures_are_read(hub, tmp_path):
    (train, x), (test, y) = photos(hub), photos(hub, 5)
    hub.DatasetDict(train=train, validation=test).save_to_disk(tmp_path / "x")
    data = load_hf(dir=str(tmp_path / "x"), size=(6, 8))
    assert data.shape == shape_of(load_hf, dir="", size=(6, 8)) == (6, 8, 3)
    np.testing.assert_array_equal(data.train, x)
    np.testing.assert_array_equal(data.test, y)
    assert data.train_labels.tolist() == 4 * [0, 1, 2] and data.test_labels.tolist() == [0, 1, 2, 0, 1]
    assert data.train_labels.dtype == np.int32
    assert data.notes == (
        f"17 pictures in {tmp_path / 'x'}, split train, as 6x8 in colour",
        "3 classes: 0 = cat (4), 1 = dog (4), 2 = emu (4)",
        "12 to train on, 5 held out",
    )
    assert data.classes == ("cat", "dog", "emu")
    other = load_hf(dir=str(tmp_path / "x"), size=3, channels=1, label="number", split="validation", test_split="train")
    assert other.shape == (3, 3, 1) and other.test_labels.tolist() == [*range(12)]
    part = load_hf(dir=str(tmp_path / "x"), size=(6, 8), label="number", split="validation", held_out=0.4)
    assert sorted([*part.train_labels, *part.test_labels]) == [*range(5)]  # it is not tested on itself
    expected = pictures.to_grey(pictures.read(io.BytesIO(png(y[2])), pictures.Wanted(3, 3)).pixels)
    np.testing.assert_array_equal(other.train[2], expected)


def png(x: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(x).save(file, "png")
    return file.getvalue()


def test_a_single_split_is_divided(hub, tmp_path):
    train, x = photos(hub, grey=True)
    train.select(range(2, 12)).save_to_disk(tmp_path / "x")  # with a table of rows to take
    data = load_hf(dir=str(tmp_path / "x"), size=(6, 8), label="number", held_out=0.3)
    assert len(data.train) == 7 and data.shape == (6, 8, 1) and set(data.train_labels) <= {*range(2, 12)}
    np.testing.assert_array_equal(data.train, x[data.train_labels])
    np.testing.assert_array_equal(data.test, x[data.test_labels])


@pytest.mark.parametrize("form", ["parquet", "imagefolder"])
def test_files_that_load_dataset_reads(hub, form, tmp_path, monkeypatch):
    """Also from a folder with the name of a format."""
    train, x = photos(hub)
    for i in range(12):
        place = tmp_path / "x" / "train" / ["cat", "dog", "emu"][i % 3]
        place.mkdir(exist_ok=True, parents=True)
        (place / f"{i:02d}.png").write_bytes(png(x[i]))
    if form == "parquet":
        (tmp_path / "csv").mkdir()
        train.to_parquet(tmp_path / "csv" / "train.parquet")
        monkeypatch.chdir(tmp_path)
    data = load_hf(dir="csv" if form == "parquet" else str(tmp_path / "x"), size=(6, 8))
    every = np.concatenate([data.train, data.test])
    labels = [*data.train_labels, *data.test_labels]
    expected = {bytes(x[i]): i % 3 for i in range(12)}
    assert [expected[bytes(image)] for image in every] == labels and len({*map(bytes, every)}) == 12


def test_a_table_is_read(hub, tmp_path):
    (tmp_path / "x").mkdir()
    rows = RNG.standard_normal((30, 2))
    lines = "".join(f"{a},{b},{i % 2},word\n" for i, (a, b) in enumerate(rows))
    (tmp_path / "x" / "train.csv").write_text("a,b,c,d\n" + lines)
    (tmp_path / "x" / "test.csv").write_text("a,b,c,d\n1,2,0,word\n")
    place = str(tmp_path / "x")
    data = load_hf(dir=place, features=("b", "c", "a"), label="c")
    assert data.columns == ("b", "c", "a") and data.shape == shape_of(load_hf, dir="", features=("b", "c", "a"))
    expected = np.stack([rows[:, 1], np.arange(30) % 2, rows[:, 0]], -1)
    np.testing.assert_array_equal(data.train, expected)
    assert data.test.tolist() == [[2, 0, 1]] and data.train_labels.tolist() == 15 * [0, 1]
    np.testing.assert_allclose(data.units.mean, expected.mean(0), rtol=1e-12)
    np.testing.assert_allclose(data.units.std, expected.std(0), rtol=1e-12)
    np.testing.assert_allclose(data.examples(), (expected - expected.mean(0)) / expected.std(0), atol=1e-6)
    np.testing.assert_allclose(data.units.decode(data.examples(test=True)), [[2, 0, 1]], atol=1e-6)
    assert data.form == Form(".csv", ("float64", "int64", "float64"), (), (), "c") and data.classes == ("0", "1")
    assert load_hf(dir=place, features=("a",)).train_labels is None
    given = load_hf(dir=place, features=("a",), context="b, c")
    wanted = expected[:, :2]
    np.testing.assert_allclose(given.train_context, (wanted - wanted.mean(0)) / wanted.std(0), atol=1e-6)
    np.testing.assert_allclose(given.context_units.decode(given.test_context), [[2, 0]], atol=1e-6)
    assert given.form.context == ("b", "c") and given.form.context_dtypes == ("float64", "int64")
    refused(lambda: load_hf(dir=place, features=("a", "b"), context="b"), "'b' is in features and in context")
    refused(lambda: load_hf(dir=place, features=("a",), context="d"), "context=d", "holds no numbers")
    refused(lambda: load_hf(dir=place), "no column of pictures", "say features=NAMES", "a (float64)", "d (")
    refused(lambda: load_hf(dir=place, features=("a", "d")), "features=('a', 'd')", "holds no numbers")
    refused(lambda: load_hf(dir=place, features=("e",)), "features=('e',)", "no such column")
    refused(lambda: load_hf(dir=place, features=("a",), label="d"), "label='d'", "no classes or integers")
    (tmp_path / "x" / "train.csv").write_text("a,b,c,d\n1,2,0,word\n,2,0,word\n")
    refused(lambda: load_hf(dir=place, features=("a", "b")), "split train", "row 1 of the column a is nan", "1 of 2")


def test_what_does_not_fit_in_a_data_set_is_named(hub, tmp_path):
    train, _ = photos(hub)
    place = str(tmp_path / "x")
    both = train.add_column("other", train["animal"]).cast_column("other", train.features["animal"])
    both.save_to_disk(place)
    refused(lambda: load_hf(dir=place), "several columns of classes", "say label=NAME with one of animal, other")
    refused(lambda: load_hf(dir=place, split="all"), "hf: split='all'", "holds train")
    refused(lambda: load_hf(dir=place, test_split="test"), "hf: test_split='test'", "holds train")
    refused(lambda: load_hf(dir=place, test_split="train"), "hf: test_split='train'", "choose another")
    refused(lambda: load_hf(dir=place, subset="en"), "hf: subset='en'", "leave it out")
    refused(lambda: load_hf(dir=place, label="animal", image="number"), "image='number'", "holds no pictures")
    refused(lambda: load_hf(dir=place, label="animal", image="x"), "image='x'", "no such column", "photo (Image)")
    refused(lambda: load_hf(dir=place, image="photo", features=("number",)), "leave out one of the two")
    refused(lambda: load_hf(dir=place, features="number"), "features='number'", "a tuple of names")
    unknown = hub.Dataset.from_dict({"x": [1.0, 2.0], "y": [0, -1]})
    unknown.save_to_disk(tmp_path / "y")
    call = lambda: load_hf(dir=str(tmp_path / "y"), features=("x",), label="y")  # noqa: E731
    refused(call, "split train: 1 of 2 examples have no label in the column y")
    cells = [{"bytes": png(np.zeros((6, 8, 3), np.uint8)), "path": None}, {"bytes": b"junk", "path": None}, None]
    for chosen, parts in (
        (cells[:2], ["row 1", "no picture of a known format"]),
        (cells[::2], ["row 1", "it is missing"]),
    ):
        broken = hub.Dataset.from_dict({"photo": chosen}, hub.Features({"photo": hub.Image()}))
        broken.save_to_disk(tmp_path / f"z{parts[1]}")
        refused(lambda parts=parts: load_hf(dir=str(tmp_path / f"z{parts[1]}")), "split train", *parts)


def test_what_cannot_be_loaded_is_one_line(hub, tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    refused(lambda: load_hf(dir=str(tmp_path / "none")), tmp_path / "none", "cannot be read with datasets")
    (tmp_path / "x.csv").touch()
    refused(lambda: load_hf(dir=str(tmp_path / "x.csv")), "is a file", "dir=FOLDER")
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(lambda: load_hf(dir=str(tmp_path / "script")), "cannot be read with datasets")
    assert not (tmp_path / "ran").exists()

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'someone/cats' on the Hub\n(LocalEntryNotFoundError)")

    monkeypatch.setattr(hub, "load_dataset", unreachable)
    refused(lambda: load_hf(dir="someone/cats"), "someone/cats", "Couldn't reach", "with a network")


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(lambda: load_hf(dir="someone/cats"), "someone/cats", "pip install 'scoregen[hf]'")
