"""Files of torch.save are read without PyTorch, in both layouts, and nothing in them is run."""

import os
import re
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from refusal import refused
from torch_frames import HUGE, archive, saved, sequence, state, storage, tensor, text, whole

from scoregen.errors import UsageError
from scoregen.torch_file import LARGEST_PICKLE, LEGACY, TorchFile


def read(path) -> dict[str, np.ndarray]:
    """Every tensor of {"model": {name: tensor}}."""
    with TorchFile(path) as file:
        return {name: file.read(tensor) for name, tensor in file.value["model"].items()}


def test_the_crafted_pickles_are_sound_but_for_what_is_wrong(tmp_path):
    numbers = np.arange(4, dtype="<f4").tobytes()
    for file in (
        archive(tmp_path / "a.pth", state(tensor()), **{"data/0": numbers}),
        sequence(tmp_path / "b.pth", state(tensor()), [(4, numbers)]),
    ):
        np.testing.assert_array_equal(read(file)["a"], [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("pickled", "part"),
    [
        (state(tensor(offset=b"K\x01")), "reaches out of its storage"),
        (state(tensor(shape=b"K\x05\x85")), "reaches out of its storage"),
        (state(tensor(strides=b"K\x02\x85")), "reaches out of its storage"),
        (state(tensor(shape=b"J\xff\xff\xff\x7f\x85", strides=b"K\x00\x85")), "uses a number twice"),  # a bomb
        (state(tensor(shape=b"K\x04K\x04\x86", strides=b"K\x00K\x01\x86")), "uses a number twice"),
        (state(tensor(shape=b"K\x02K\x02\x86", strides=b"K\x01K\x01\x86")), "uses a number twice"),
        (state(tensor(shape=b"K\x00" + 2 * HUGE + b"\x87", strides=b"K\x01K\x01K\x01\x87")), "more numbers than"),
        (b"\x80\x02}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"K\x01s.", "key out of range"),  # all hash alike
        (b"\x80\x02}J\xff\xff\xff\xffK\x01s.", "key out of range"),
        (state(tensor(offset=b"J\xff\xff\xff\xff")), "out of range"),
        (state(tensor(strides=b"J\xff\xff\xff\xff\x85")), "out of range"),
        (state(tensor(shape=b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85")), "out of range"),
        (state(tensor(shape=b"\x88\x85")), "out of range"),  # True is a 1 to Python
        (state(tensor(strides=b")")), "not as many strides"),
        (state(tensor(of=storage(key="../../etc/passwd"))), "no number"),
        (state(tensor(of=storage(key="1" * 21))), "no number"),
        (state(tensor(of=storage(view=b"(" + text("7") + b"K\x03K\x02t"))), "view that reaches out of its storage"),
        (state(tensor(of=storage(view=b"(" + text("7") + b"K\x01K\x03t"))), "tensor that reaches out of its storage"),
        (state(tensor(of=storage(view=b"K\x00"))), "damaged pickle"),
        (state(tensor(of=storage(view=b"NN"))), "damaged pickle"),
        (state(tensor() + b"s" + text("b") + tensor(of=storage(count=b"K\x05"))), "two types or counts"),
        (state(tensor() + b"s" + text("b") + tensor(of=storage(b"ctorch\nIntStorage\n"))), "two types or counts"),
        (state(tensor(of=storage(kind=b"ctorch\nload\n"))), "asks for torch.load"),
        (state(tensor(of=storage(kind=b"ccollections\nOrderedDict\n"))), "something that is not a storage"),
        (state(b"ctorch._utils\n_rebuild_tensor_v2\n)R"), "calls _rebuild_tensor_v2"),
        (state(b"ccollections\nOrderedDict\nK\x01\x85R"), "calls OrderedDict"),
        (state(b"ctorch\nFloatStorage\n)R"), "calls FloatStorage"),
        (state(tensor() + b"}" + text("__class__") + b"K\x01sb"), "sets attributes"),
        (state(b"]}" + text("_metadata") + b"}sb"), "sets attributes"),
        (state(b"ccollections\nOrderedDict\n)R}" + text("__class__") + b"K\x01sb"), "sets attributes"),
        (state(b"ccollections\nOrderedDict\n)\x81"), "NEWOBJ"),
        (state(b"(ios\nsystem\n"), "INST"),
        (state(b"\x82\x01"), "EXT1"),
        (b"\x80\x02}((K\x01ttK\x01s.", "key of type tuple"),
        (b"\x80\x02}", "damaged pickle"),
        (b"\x80\x02.", "damaged pickle"),
        (b"\x80\x02q\x00.", "damaged pickle"),
        (b"\x80\x02h\x07.", "damaged pickle"),
        (b"\x80\x02\x87.", "damaged pickle"),
        (b"\xff\xff", "damaged pickle"),
        (b"\x80\x02X\xff\xff\xff\x7fa.", "damaged pickle"),
    ],
)
@pytest.mark.parametrize("frame", [archive, sequence])
def test_a_pickle_that_is_amiss_is_refused(tmp_path, frame, pickled, part):
    refused(lambda: TorchFile(frame(tmp_path / "a.pth", pickled)), "a.pth", part, "nothing of it was run")


def test_an_archive_that_is_amiss_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    raw = archive(path, state(tensor())).read_bytes()
    np.testing.assert_array_equal(read(path)["a"], np.zeros(4))
    for cut in (1, 30, len(raw) // 2, len(raw) - 40):
        path.write_bytes(raw[: len(raw) - cut])
        refused(lambda: read(path), "a.pth", "not whole")
    path.write_bytes(raw.replace(b"\0" * 16, b"\0" * 15 + b"\1", 1))
    refused(lambda: read(path), "CRC")
    refused(lambda: read(archive(path, state(tensor(of=storage(key="7"))))), "no member archive/data/7")
    refused(lambda: read(archive(path, state(tensor()), **{"data/0": b"\0" * 12})), "12 bytes", "16")
    refused(lambda: read(archive(path, state(tensor()), byteorder=b"big")), "big-endian")
    refused(lambda: read(archive(path, b"\0" * (LARGEST_PICKLE + 1))), "data.pkl", "bytes")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:  # a megabyte could hold a gigabyte
        file.writestr("archive/data.pkl", state(tensor()))
    refused(lambda: read(path), "compressed")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model.txt", b"")
    refused(lambda: read(path), "data.pkl")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", state(tensor()))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("archive/data.pkl", state(tensor()))
    refused(lambda: read(path), "two members")
    with tarfile.open(path, "w"):
        pass
    refused(lambda: read(path), "before PyTorch 0.1.11")


@pytest.mark.parametrize("layout", ["archive", "sequence"])
def test_a_storage_is_read_once_for_all_its_tensors(tmp_path, monkeypatch, layout):
    first, second = tensor(shape=b"K\x02\x85"), tensor(offset=b"K\x02", shape=b"K\x02\x85")
    pickled, numbers = state(first + b"s" + text("b") + second), np.arange(4, dtype="<f4").tobytes()
    if layout == "archive":
        path = archive(tmp_path / "a.pth", pickled, **{"data/0": numbers})
    else:
        path = sequence(tmp_path / "a.pth", pickled, [(4, numbers)])
    with TorchFile(path) as file:
        found: list[str] = []
        numbers_of = file._frame.numbers
        monkeypatch.setattr(file._frame, "numbers", lambda of: (found.append(of.key), numbers_of(of))[1])
        model = file.value["model"]
        np.testing.assert_array_equal([*file.read(model["a"]), *file.read(model["b"])], [0, 1, 2, 3])
    assert found == ["0"]


# --- the layout of before PyTorch 1.6


def test_the_sequence_is_read_number_by_number(tmp_path):
    """Storages in another order than the tensors; names that are addresses; integers; an empty tensor and a scalar."""
    pickled = state(
        tensor(storage(key="94389238482304", count=b"K\x06"), b"K\x01", b"K\x02K\x02\x86", b"K\x01K\x03\x86")
        + b"s"
        + text("b")
        + tensor(storage(b"ctorch\nLongStorage\n", "7", b"K\x01", b"N"), shape=b")", strides=b")")
        + b"s"
        + text("c")
        + tensor(storage(key="8", count=b"K\x00"), shape=b"K\x00K\x03\x86", strides=b"K\x03K\x01\x86")
    )
    floats, integer = np.arange(6, dtype="<f4"), np.array([2**40], "<i8")
    storages = [(1, integer.tobytes()), (6, floats.tobytes()), (0, b"")]
    found = read(sequence(tmp_path / "a.pth", pickled, storages, ("7", "94389238482304", "8")))
    np.testing.assert_array_equal(found["a"], [[1, 4], [2, 5]])
    assert found["a"].dtype == np.float32 and found["b"] == 2**40 and found["b"].shape == ()
    assert found["c"].shape == (0, 3)


def test_a_view_counts_from_its_first_number(tmp_path):
    """The sixth element of old files: a tensor of numbers 3 and 4 of a view that begins at number 2 of 6."""
    view = b"(" + text("9") + b"K\x02K\x03t"
    other = b"(" + text("10") + b"K\x00K\x06t"
    pickled = state(
        tensor(storage(count=b"K\x06", view=view), b"K\x01", b"K\x02\x85")
        + b"s"
        + text("b")
        + tensor(storage(count=b"K\x06", view=other), b"K\x00", b"K\x06\x85")
    )
    found = read(sequence(tmp_path / "a.pth", pickled, [(6, np.arange(6, dtype="<f4").tobytes())]))
    np.testing.assert_array_equal(found["a"], [3, 4])
    np.testing.assert_array_equal(found["b"], np.arange(6))


def test_a_sequence_that_is_amiss_is_refused(tmp_path):
    path, good = tmp_path / "a.pth", (state(tensor()), [(4, b"\0" * 16)])
    for storages, part in (
        ([(5, b"\0" * 20)], "another count"),
        ([(3, b"\0" * 12)], "another count"),
        ([(-1, b"\0" * 16)], "another count"),
        ([(4, b"\0" * 15)], "cut short"),
        ([(4, b"\0" * 17)], "1 bytes after its last storage"),
        ([], "cut short"),
    ):
        refused(lambda storages=storages: read(sequence(path, good[0], storages)), "a.pth", part)
    for keys in ((), ("1",), ("0", "0"), ("0", "1")):
        refused(lambda keys=keys: read(sequence(path, *good, keys)), "another list of storages")
    refused(lambda: read(sequence(path, *good, version=b"M\xea\x03")), "another version than 1001")
    refused(lambda: read(sequence(path, *good, little=b"\x89")), "big-endian")
    listed = b"](" + text("0") + b"e."
    path.write_bytes(sequence(path, *good).read_bytes().replace(listed, b"](K\x00e."))
    refused(lambda: read(path), "no list of the names")
    path.write_bytes(LEGACY + b"rest")
    refused(lambda: read(path), "damaged pickle")
    path.write_bytes(b"\x80\x04" + LEGACY[2:])
    refused(lambda: read(path), "bare pickle")
    refused(lambda: TorchFile(tmp_path / "none.pth"), "none.pth", "No such file")


def test_a_sequence_cut_anywhere_is_refused(tmp_path):
    path = sequence(tmp_path / "a.pth", state(tensor()))
    raw = path.read_bytes()
    assert list(read(path)["a"]) == [0, 0, 0, 0]
    for end in range(len(raw)):
        path.write_bytes(raw[:end])
        message = refused(lambda: read(path), "a.pth")
        assert end < len(LEGACY) or re.search("cut short|damaged|without an end", message)


def test_a_sequence_with_any_byte_changed_is_read_or_refused(tmp_path):
    """Nothing but a UsageError is raised, and what is read has the shape that was checked."""
    path = sequence(tmp_path / "a.pth", state(tensor()))
    raw = path.read_bytes()
    for place in range(len(raw)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ (1 << place % 8)]) + raw[place + 1 :])
        try:
            with TorchFile(path) as file:
                model = file.value.get("model", {})
                assert all(file.read(found).nbytes <= 16 for found in model.values())
        except UsageError:
            continue


def test_counts_that_the_file_does_not_hold_take_no_memory(tmp_path):
    """A terabyte that the pickle and the frame both speak of."""
    pickled = state(tensor(storage(count=whole(2**38)), shape=whole(2**38) + b"\x85"))
    path = sequence(tmp_path / "a.pth", pickled, [(2**38, b"\0" * 16)])
    tracemalloc.start()
    try:
        refused(lambda: read(path), "cut short")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_the_names_of_old_optimizers_are_addresses(tmp_path):
    address = 139_872_345_678_912
    pickled = b"\x80\x02}" + text("state") + b"}" + whole(address) + b"K\x01ss."
    with TorchFile(sequence(tmp_path / "a.pth", pickled, [], ())) as file:
        assert file.value == {"state": {address: 1}}


def test_saved_arrays_come_back(tmp_path):
    """The writer that other tests use."""
    rng = np.random.default_rng(0)
    arrays = {"a": rng.random((2, 3, 4), np.float32), "n": np.array(5), "e": np.zeros((0, 2), np.float32)}
    with TorchFile(saved(tmp_path / "a.pth", arrays)) as file:
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.read(file.value[name]), array)


# --- PyTorch's own files


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_pytorch_writes_what_is_read(tmp_path, torch):
    whole_ = torch.randn(4, 6)
    tensors = {
        "a": torch.randn(3, 2),
        "turned": whole_.T[1:4],
        "shared": whole_[2],
        "scalar": torch.tensor(2.5),
        "f16": torch.randn(5).half(),
        "bf16": torch.randn(5).bfloat16(),
        "f64": torch.randn(2).double(),
        "i32": torch.arange(3, dtype=torch.int32),
        "u8": torch.arange(3, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "empty": torch.randn(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pth"
        torch.save({"model": tensors, "n": 3}, path, _use_new_zipfile_serialization=zipped)
        found = read(path)
        assert list(found) == list(tensors)
        for name, exact in tensors.items():
            assert found[name].shape == tuple(exact.shape)
            np.testing.assert_array_equal(found[name].astype(np.float64), exact.detach().double().numpy())


def test_a_file_of_pytorch_cut_anywhere_is_refused(tmp_path, torch):
    path = tmp_path / "a.pth"
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save({"model": module.state_dict()}, path, _use_new_zipfile_serialization=False)
    size = os.path.getsize(path)
    assert len(read(path)) == 7
    raw = path.read_bytes()
    for end in range(0, size, 7):
        path.write_bytes(raw[:end])
        refused(lambda: read(path), "a.pth")


def test_checkpoints_of_pytorch_hold_optimizers(tmp_path, torch):
    """[state dict, optimizer], as NCSN saves them."""
    module = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    path = tmp_path / "a.pth"
    torch.save([module.state_dict(), optimizer.state_dict()], path, _use_new_zipfile_serialization=False)
    with TorchFile(path) as file:
        weights, moments = file.value
        np.testing.assert_array_equal(file.read(weights["weight"]), module.weight.detach().numpy())
        np.testing.assert_array_equal(
            file.read(moments["state"][0]["exp_avg"]), optimizer.state_dict()["state"][0]["exp_avg"].numpy()
        )
