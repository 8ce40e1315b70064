"""The command line on two processes: they stop together, resume together, and sample as one process does."""

import re
import signal
import time

import jax
import numpy as np
import pytest
from hosts import ROOT, address, nobody_is_left, said, start  # noqa: F401 - a fixture
from refusal import refused
from test_run import TINY, done, once, state_of, steps_logged

from scoregen.app import actions
from scoregen.app.signals import Signals
from scoregen.train import mesh
from scoregen.train.checkpoint import Checkpoints


def commands(*argv, cwds=(ROOT, ROOT), devices=2):
    """The command line in two processes."""
    hosts = f"--coordinator={address()}", "--processes=2"
    code = "import sys; from scoregen import run; from scoregen.train import Bar; Bar.every = 0.2; sys.exit(run.main())"
    return [start(devices, "-c", code, *once(argv), *hosts, f"--process={i}", cwd=cwd) for i, cwd in enumerate(cwds)]


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_process_stops_both_and_they_go_on(tmp_path, told):
    """The checkpoint is whole, and the final state is the state that one device trains without a stop."""
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
            "distances.json",
            "model.json",
            "metrics.jsonl",
            "tensorboard",
            "samples.npy",
            "figure.png",
            "loss.png",
            "index.html",
            "page",
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
    before = np.load(tmp_path / "samples.npy")
    few = "--config.eval.likelihood.examples=6", "--config.eval.likelihood.bound.strata=4"
    for mode, more in (("eval", ()), ("likelihood", few), ("trajectory", ())):
        (code, out, err), other = [
            said(process) for process in commands(*more, f"--mode={mode}", f"--workdir={tmp_path}")
        ]
        assert (code, err) == (0, "") and other == (0, "", ""), mode
        assert f"ddpm_toy: {mode}" in out
    for name in ("distances.json", "likelihood.json", "trajectory.png", "trajectory.gif"):
        assert (tmp_path / name).is_file()
    assert np.allclose(np.load(tmp_path / "samples.npy"), before, rtol=1e-3, atol=1e-3)

    homes = [tmp_path / name for name in "ab"]
    for home in homes:
        home.mkdir()
    for process in commands(*TINY, "--workdir=run", cwds=homes):
        code, out, err = said(process)
        assert code == 2 and "--workdir=run is not the same folder on all hosts" in err and err.count("\n") == 1
        assert all(line.startswith("joining the other processes") for line in out.split("\n") if line)


def test_what_is_said_of_the_hosts_must_fit_together(monkeypatch):
    refused(lambda: actions._join("", 0, None), "--process and --processes go together")
    refused(lambda: actions._join("", 0, 2), "--process without --coordinator")
    monkeypatch.setattr(mesh, "processes", lambda: 4)
    refused(lambda: actions._join("", None, None), "this host is one of several", "--coordinator=auto")

    def nowhere(*_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nowhere)
    refused(lambda: actions._join("auto", None, None), "--coordinator=auto", "--coordinator=HOST:PORT", "--process=I")


def test_all_hear_at_the_same_call_what_one_was_sent():
    """With `loudest` as in `mesh`: its answer is the result of the call before."""
    others, before = [0, 15, 0, 0], [0]

    def loudest(mine):
        before.append(max(mine, others.pop(0)))
        return before[-2]

    signals = Signals(None, loudest)  # pyright: ignore[reportArgumentType] - it prints nothing
    assert [signals() for _ in range(3)] == [False, False, True] and signals.number == 15 and signals.caught is None
    assert signals() and len(others) == 1  # it no longer asks the others
    late = Signals(None, lambda mine: before.append(mine) or before[-2])  # pyright: ignore[reportArgumentType]
    before[:], late.caught = [0], 2
    assert late.now() and late.number == 2
    assert late.watch(lambda: "done") is None
