"""Training on eight devices, or on two processes of four devices each, gives the same results as on one device."""

import jax
import numpy as np
import pytest
import spread
from hosts import address, nobody_is_left, said, start  # noqa: F401 - a fixture
from refusal import refused
from small import same, toy

from scoregen.random import example_keys
from scoregen.train import mesh
from scoregen.train.checkpoint import Checkpoints
from scoregen.train.step import check_even

QUICK = ("random64", "learned64")
# A reordered sum of n numbers has an error of about sqrt(n) eps, and Adam's quotients of small gradients enlarge this
# error. The largest errors seen, relative to the largest entry of their array, were 3e-14 in float64 and 1.4e-4 in
# float32. If two examples swap their noise, the relative error exceeds 0.1.
TOLERANCE = {"float64": 1e-12, "float32": 1e-3}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A folder with a checkpoint, and a function that measures the named cases on one device, each case once."""
    folder = tmp_path_factory.mktemp("spread")
    with Checkpoints(folder / "one") as checkpoints:
        checkpoints.save(4, spread.parts("random").init())
    kept = {}

    def measures(*cases):
        with jax.numpy_dtype_promotion("standard"):  # a float32 batch meets float64 parameters
            for case in set(cases) - set(kept):
                kept[case] = spread.measures([case])
        return {name: value for case in cases for name, value in kept[case].items()}

    return folder, measures


def agree(one, many, processes=1):
    """All measures but the costs agree up to the rounding of sums. `pytest -s` shows the printed differences."""
    apart = {}
    for name, value in one.items():
        case, what = name.split("/")
        # A bias of the keys does not change a softmax: its gradient is only rounding, which Adam turns into steps.
        if what in ("flops", "moves") or what.endswith("key.bias"):
            continue
        if what == "levels":  # several processes report their progress once a batch
            assert many[name].max() == value.max() and (processes > 1 or (many[name] == value).all())
        elif value.dtype.kind == "i":
            assert (value == many[name]).all(), name
        else:
            assert value.shape == many[name].shape and value.dtype == many[name].dtype, name
            key = case, what.partition(".")[0]
            found = np.abs(value - many[name]).max(initial=0) / np.abs(value).max(initial=1e-30)
            apart[key] = max(found, apart.get(key, 0.0))
    for (case, part), found in apart.items():
        print(f"{case:<12}{part:<12}{found:.1e}")
        assert found <= TOLERANCE["float64" if case.endswith("64") else "float32"], (case, part)


def figures(path):
    """All arrays in a file."""
    with np.load(path) as found:
        return dict(found)


def sound(folder, name, processes=1):
    """The state restored from one device's checkpoint, and the copy of it that was saved, are equal bit for bit."""
    template = spread.template("random")
    read, written = (Checkpoints(folder / which).restore(template) for which in ("one", name))
    assert read is not None and written is not None and same(read, written) and written[1] == 4
    before = spread.flat("restored", read[0], {})
    for process in range(processes):
        found = figures(folder / f"{name}.{process}.npz")
        assert all(found[key].tobytes() == value.tobytes() for key, value in before.items())


@pytest.mark.slow
def test_eight_devices_make_the_same_steps_and_samples(one):
    """In float64 to 1e-12. Each device does its share of the work, and no example moves between devices."""
    folder, measures = one
    process = start(8, "tests/spread.py", folder, "eight", ",".join(QUICK))
    alone = measures(*QUICK)
    assert said(process) == (0, "", "")
    many = figures(folder / "eight.0.npz")
    agree(alone, many)
    sound(folder, "eight")
    for case in QUICK:
        assert many[f"{case}/flops"] < 0.4 * alone[f"{case}/flops"]  # not an eighth: each runs the whole optimizer
        assert np.ptp(alone[f"{case}/samples"], axis=0).max() > 0.01
    assert many["random64/moves"] == 0


@pytest.mark.slow
def test_two_processes_of_four_devices_make_the_same_steps_and_samples(one):
    folder, measures = one
    cases = (*QUICK, "random", "learned")
    where = address()
    command = ("tests/spread.py", folder, "two", ",".join(cases), where)
    processes = [start(4, *command, i, 2) for i in range(2)]
    alone = measures(*cases)
    assert [said(process) for process in processes] == [(0, "", "")] * 2
    first, second = (figures(folder / f"two.{i}.npz") for i in range(2))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    agree(alone, first, processes=2)
    sound(folder, "two", processes=2)


@pytest.mark.slow
def test_eight_devices_make_the_same_steps_in_float32(one):
    folder, measures = one
    cases = ("random", "learned", "unet")
    process = start(8, "tests/spread.py", folder, "float32", ",".join(cases))
    alone = measures(*cases)
    assert said(process) == (0, "", "")
    many = figures(folder / "float32.0.npz")
    agree(alone, many)
    assert many["unet/flops"] < 0.2 * alone["unet/flops"] and many["unet/moves"] == 0


def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do(monkeypatch):
    monkeypatch.setattr(mesh, "devices", lambda: [None] * 8)

    def uneven(*sizes):
        with pytest.raises(ValueError, match="devices") as caught:
            check_even(*sizes)
        return str(caught.value)

    assert "batch=100" in uneven(100) and "8 devices" in uneven(100) and "96 or 104" in uneven(100)
    assert "multiple of 8, such as 8" in uneven(6)
    assert "microbatch=12" in uneven(96, 12) and "such as 8 or 16" in uneven(96, 12)
    check_even(96, 24)
    check_even(16)
    assert [mesh.round_up(size) for size in (1, 8, 9)] == [8, 8, 16]


def test_a_coordinator_that_is_not_there_is_one_line(monkeypatch):
    refused(lambda: mesh.start("nowhere"), "coordinator=nowhere", "auto or HOST:PORT", "10.0.0.2:8476")

    def missing(*_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", missing)
    message = refused(lambda: mesh.start("auto"), "coordinator=auto", "coordinator=HOST:PORT", "process=I")
    assert "--" not in message


def test_one_device_is_left_alone():
    """No array is moved and no sharding is set, so compiled programs are the same as without a mesh."""
    x, keys = np.ones(3), example_keys(jax.random.key(0), 3)
    for same_ in (mesh.spread, mesh.replicate, mesh.local, mesh.keep_spread, mesh.keep_whole):
        assert same_(x) is x and same_(keys) is keys
    assert mesh.everywhere() is None and mesh.count() == 1 and mesh.round_up(7) == 7
    state = toy().init()
    assert mesh.abstract(jax.eval_shape(lambda: state)) == jax.eval_shape(lambda: state)
