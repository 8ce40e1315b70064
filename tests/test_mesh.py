"""On eight devices, and on two processes of four, training is what it is on one; and all of them stop together."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import spread
from refusal import refused
from test_run import TINY, done, state_of, steps_logged
from test_train import same, toy

from scoregen import mesh, run, train
from scoregen.checkpoint import Checkpoints
from scoregen.experiment import assemble
from scoregen.process import example_keys
from scoregen.signals import Signals

ROOT = Path(__file__).parent.parent
QUICK = ("random64", "learned64")
# A reordered sum of n numbers is off by some sqrt(n) eps; Adam's quotients of small gradients make it more. Of the
# largest entry of an array 3e-14 and 1.4e-4 were seen. Two examples that trade their noise change it by more than 0.1.
TOLERANCE = {"float64": 1e-12, "float32": 1e-3}


STARTED = []


@pytest.fixture(autouse=True)
def nobody_is_left():
    """A process whose partner failed would wait for it."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.communicate()
    STARTED.clear()


def start(devices, *command, cwd=ROOT):
    """A Python process that has so many CPU devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    STARTED.append(process)
    return process


def address() -> str:
    """Of this machine, with a port that is free."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return f"localhost:{found.getsockname()[1]}"


def said(process) -> tuple[int, str, str]:
    """(exit code, stdout, stderr), without what the library of CPU collectives says."""
    out, err = process.communicate(timeout=900)
    return process.returncode, re.sub(r"\[Gloo\].*\n|\d* is connected to .*\n", "", out), err


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A folder with a checkpoint and, as they are asked for, the figures of one device."""
    folder = tmp_path_factory.mktemp("spread")
    with Checkpoints(folder / "one") as checkpoints:
        checkpoints.save(4, train.init_state(spread.experiment("random")))
    kept = {}

    def measures(*cases):
        with jax.numpy_dtype_promotion("standard"):  # of a float32 batch and float64 parameters
            for case in set(cases) - set(kept):
                kept[case] = spread.measures([case])
        return {name: value for case in cases for name, value in kept[case].items()}

    return folder, measures


def agree(one, many, processes=1):
    """Everything, but what it cost, is the same to the rounding of sums; how far it is apart is printed (pytest -s)."""
    apart = {}
    for name, value in one.items():
        case, what = name.split("/")
        # A softmax does not see a bias of its keys, whose gradient is rounding alone; Adam makes steps of it.
        if what in ("flops", "moves") or what.endswith("key.bias"):
            continue
        if what == "levels":  # several processes count in batches
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
    """What was restored from one device's checkpoint, and saved again, is what it was, bit for bit."""
    template = train.abstract_state(spread.experiment("random"))
    read, written = (Checkpoints(folder / which).restore(template) for which in ("one", name))
    assert read is not None and written is not None and same(read, written) and written[1] == 4
    before = spread.flat("restored", read[0], {})
    for process in range(processes):
        found = figures(folder / f"{name}.{process}.npz")
        assert all(found[key].tobytes() == value.tobytes() for key, value in before.items())


def test_eight_devices_make_the_same_steps_and_samples(one):
    """In float64 to 1e-12; each does its share, and no example goes from one to another."""
    folder, measures = one
    process = start(8, "tests/spread.py", folder, "eight", ",".join(QUICK))
    alone = measures(*QUICK)
    assert said(process) == (0, "", "")
    many = figures(folder / "eight.0.npz")
    agree(alone, many)
    sound(folder, "eight")
    for case in QUICK:
        assert many[f"{case}/flops"] < 0.4 * alone[f"{case}/flops"]  # not an eighth: the optimizer is on each
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


def commands(*argv, cwds=(ROOT, ROOT), devices=2):
    """The command line in two processes."""
    hosts = f"--coordinator={address()}", "--processes=2"
    code = "import sys; from scoregen import log, run; log.Bar.every = 0.2; sys.exit(run.main())"
    return [start(devices, "-c", code, *argv, *hosts, f"--process={i}", cwd=cwd) for i, cwd in enumerate(cwds)]


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_process_stops_both_and_they_go_on(tmp_path, told):
    """The checkpoint is whole, and what they end in is what one device trains without a stop."""
    workdir = tmp_path / "run"
    often = ("--config.train.checkpoint_every=100000", f"--workdir={workdir}")
    processes = commands(*TINY, *often, "--config.train.steps=100000")
    deadline = time.monotonic() + 120
    while not steps_logged(workdir):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[told].send_signal(signal.SIGTERM)
    (code, out, err), other = [said(process) for process in processes]
    assert (code, err) == (143, "") and other == (143, "", "")
    found = re.search(r"saved step (\d+) of 100000", out)
    assert found is not None
    step = int(found[1])
    assert Checkpoints(workdir / "checkpoints").steps() == [step]

    (code, out, err), other = [said(process) for process in commands(*TINY, *often, f"--config.train.steps={step + 2}")]
    assert (code, err) == (0, "") and other == (0, "", "")
    assert f"found the checkpoint of step {step}" in out
    assert {path.name for path in workdir.iterdir()} == {
        *(
            ".lock",
            "checkpoints",
            "config.json",
            "metrics.jsonl",
            "tensorboard",
            "samples.npz",
            "figure.png",
            "loss.png",
        )
    }
    assert steps_logged(workdir) == list(range(1, step + 3))
    straight = tmp_path / "straight"
    done(*TINY, f"--config.train.steps={step + 2}", f"--workdir={straight}")
    (cut, a), (whole, b) = state_of(workdir, *TINY), state_of(straight, *TINY)
    assert a == b == step + 2
    for x, y in zip(*map(jax.tree.leaves, (cut, whole)), strict=True):
        assert np.abs(np.asarray(x) - np.asarray(y)).max() <= 1e-3 * max(np.abs(np.asarray(y)).max(), 1e-6)


@pytest.mark.slow
def test_two_processes_judge_and_draw_as_one(tmp_path):
    """Every mode, of a run that one process of four devices trained; a folder that is not shared is refused by both."""
    code, _, err = said(start(4, "-m", "scoregen.run", *TINY, f"--workdir={tmp_path}"))
    assert (code, err) == (0, "")
    before = np.load(tmp_path / "samples.npz")["samples"]
    for mode in ("eval", "likelihood", "trajectory"):
        few = "--config.eval.likelihood.examples=6", "--config.eval.likelihood.bound.strata=4"
        (code, out, err), other = [
            said(process) for process in commands(*TINY, *few, f"--mode={mode}", f"--workdir={tmp_path}")
        ]
        assert (code, err) == (0, "") and other == (0, "", ""), mode
        assert f"ddpm_toy: {mode}" in out
    for name in ("distances.json", "likelihood.json", "trajectory.png", "trajectory.gif"):
        assert (tmp_path / name).is_file()
    assert np.allclose(np.load(tmp_path / "samples.npz")["samples"][:20], before, rtol=1e-3, atol=1e-3)

    homes = [tmp_path / name for name in "ab"]
    for home in homes:
        home.mkdir()
    for process in commands(*TINY, "--workdir=run", cwds=homes):
        code, out, err = said(process)
        assert code == 2 and "--workdir=run is not one folder on all hosts" in err and err.count("\n") == 1
        assert all(line.startswith("joining the other processes") for line in out.split("\n") if line)


def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do(monkeypatch):
    monkeypatch.setattr(mesh, "devices", lambda: [None] * 8)
    even = lambda **sizes: train.refuse_uneven(assemble(toy(**sizes)))  # noqa: E731
    refused(lambda: even(train__batch=100), "config.train.batch=100", "8 devices", "96 or 104")
    refused(lambda: even(train__batch=6), "multiple of 8, such as 8")
    refused(
        lambda: even(train__batch=96, train__microbatch=12), "config.train.microbatch=12", ": 8, 16, 24, 32, 48, 96"
    )
    even(train__batch=96, train__microbatch=24)
    even(train__batch=16)
    assert [mesh.round_up(size) for size in (1, 8, 9)] == [8, 8, 16]


def test_what_is_said_of_the_hosts_must_fit_together(monkeypatch):
    refused(lambda: run._join("", 0, None), "--process and --processes go together")
    refused(lambda: run._join("", 0, 2), "--process without --coordinator")
    monkeypatch.setattr(mesh, "processes", lambda: 4)
    refused(lambda: run._join("", None, None), "one host of several", "--coordinator=auto")

    def nowhere(*_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nowhere)
    refused(lambda: run._join("auto", None, None), "--coordinator=auto", "--coordinator=HOST:PORT", "--process=I")


def test_all_hear_at_the_same_call_what_one_was_sent():
    """With the answers of `mesh.loudest`, which are to what was said at the call before."""
    others, before = [0, 15, 0, 0], [0]

    def loudest(mine):
        before.append(max(mine, others.pop(0)))
        return before[-2]

    signals = Signals(None, loudest)  # pyright: ignore[reportArgumentType] - it says nothing
    assert [signals() for _ in range(3)] == [False, False, True] and signals.heard == 15 and signals.caught is None
    assert signals() and len(others) == 1  # it asks no more
    late = Signals(None, lambda mine: before.append(mine) or before[-2])  # pyright: ignore[reportArgumentType]
    before[:], late.caught = [0], 2
    assert late.now() and late.heard == 2
    assert late.watch(lambda: "done") is None


def test_one_device_is_left_alone():
    """No array is moved and no sharding said, so that programs are what they were."""
    x, keys = np.ones(3), example_keys(jax.random.key(0), 3)
    for same_ in (mesh.spread, mesh.replicate, mesh.local, mesh.keep_spread, mesh.keep_whole):
        assert same_(x) is x and same_(keys) is keys
    assert mesh.everywhere() is None and mesh.count() == 1 and mesh.round_up(7) == 7
    state = train.init_state(assemble(toy()))
    assert mesh.abstract(jax.eval_shape(lambda: state)) == jax.eval_shape(lambda: state)
