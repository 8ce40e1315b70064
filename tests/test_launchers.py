"""The launchers for many machines: Ray with two nodes, also with a lost node, and submitit's stand-in for Slurm."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from test_sweep import ROOT, SLOW, alive, pids, ran, start, wait_until, write

pytestmark = pytest.mark.slow

# A cluster of a head and two nodes, which ends when its input is closed. Each line of input removes a node without a
# warning. The cluster ignores SIGINT, like a process that a script starts with `&`.
CLUSTER = """
    import signal, sys
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    print("address", cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("lost", flush=True)
    cluster.shutdown()
"""


@pytest.fixture
def cluster():
    pytest.importorskip("ray")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CLUSTER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        address = next(line.split()[1] for line in process.stdout if line.startswith("address"))
        yield address, process
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def complete(path: Path, out: Path, said: str) -> None:
    """All cells of SLOW are finished, except the cell that is made to fail, which the output names."""
    assert "11 of 12 cells finished, 1 failed" in said
    assert re.findall(r"^- `n=(\d+)-\w+`: .*made to fail", said, re.MULTILINE) == ["5"]
    assert sorted(map(int, set(ran(path)))) == [n for n in range(12) if n != 5]
    assert len(list(out.glob("cells/*/result.json"))) == 11


def test_a_sweep_on_ray_outlives_a_node(tmp_path, cluster):
    """The sweep itself is killed once before: its running cells end, and its finished cells are not run again."""
    address, nodes = cluster
    # Two cells are long, so that each node works on one of them.
    path, out = write(tmp_path / "slow", SLOW.replace("0.4", "8 if n in (6, 7) else 0.4")), tmp_path / "out"
    flags = ("--launcher=ray", f"--launch.address={address}")
    process = start(path, out, *flags)
    wait_until(lambda: len(ran(path)) >= 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(list(out.glob("cells/*/result.json")))
    assert done >= 1

    begun = path.parent / "begun"
    before = len(begun.read_text().splitlines())
    process = start(path, out, *flags)
    wait_until(lambda: {"6", "7"} <= {line.split()[0] for line in begun.read_text().splitlines()[before:]}, process)
    assert sum(map(alive, pids(path))) == 2
    nodes.stdin.write("lose one\n")
    nodes.stdin.flush()
    assert nodes.stdout.readline() == "lost\n"
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 1, said
    complete(path, out, said)
    # The cell of the lost node started again on the other node.
    cells = [line.split()[0] for line in begun.read_text().splitlines()[before:]]
    assert sorted(cells.count(n) for n in ("6", "7")) == [1, 2] and len(cells) == len(set(cells)) + 1


def test_ctrl_c_stops_the_cells_of_a_cluster(tmp_path, cluster):
    path, out = write(tmp_path / "slow", SLOW.replace("0.4", "30")), tmp_path / "out"
    process = start(path, out, "--launcher=ray", f"--launch.address={cluster[0]}")
    wait_until(lambda: (path.parent / "begun").is_file(), process)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "FAILED" not in said and "The same command continues" in said
    (first, *_) = (path.parent / "begun").read_text().split()
    assert "SIGTERM: stopping" in next(out.glob(f"cells/n={first}-*/log.txt")).read_text()
    assert not list(out.glob("cells/*/failed.json"))


def test_a_sweep_of_jobs(tmp_path):
    """submitit starts local processes as it would submit jobs. A parameter that submitit lacks is refused."""
    pytest.importorskip("submitit")
    path, out = write(tmp_path / "slow", SLOW), tmp_path / "out"
    flags = ("--launcher=slurm", "--launch.cluster=local", "--workers=2")
    process = start(path, out, *flags)
    wait_until(lambda: len(ran(path)) >= 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    process = start(path, out, *flags)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 1, said
    complete(path, out, said)
    assert len(ran(path)) == 11  # jobs outlive the sweep that submitted them, and no job runs twice

    process = start(path, out, *flags, "--launch.partitoin=gpu")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "--launcher=slurm: " in said and "partitoin" in said
