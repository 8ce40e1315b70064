"""Memory-mapped arrays: what was read does not stay in memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scoregen.data import Dataset
from scoregen.data.mapped import release

linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells which pages are in memory")


def mapped(path: Path, rows: int, mode: str = "r", side: int = 64) -> np.memmap:
    """An array of pictures, of zeros that take no room on the disk."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (rows, side, side, 3)}
        )
        file.truncate(file.tell() + rows * side * side * 3)
    return np.load(path, mmap_mode=mode)


def resident(path: Path) -> int:
    """The bytes of a mapped file that are in the memory of this process."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if line.endswith(str(path))]
    return 1024 * sum(int(next(line for line in lines[i:] if line.startswith("Rss:")).split()[1]) for i in starts)


@linux
def test_an_array_or_a_part_of_it_is_given_back(tmp_path):
    array = mapped(tmp_path / "x.npy", 1000)
    for given in (array, array[:900], np.asarray(array[100:])[None]):
        assert array.sum() == 0 and resident(tmp_path / "x.npy") > 11e6
        release(given)
        whole = isinstance(given, np.memmap)  # of other arrays it is not known whether they may be changed
        assert (resident(tmp_path / "x.npy") < 1e5) == whole


@linux
def test_what_was_changed_in_memory_alone_is_kept(tmp_path):
    array = mapped(tmp_path / "x.npy", 20_000, "c")
    array[7] = 1
    release(array)
    Dataset("changed", array).batch(0, 0, 1000)
    assert array[7].min() == 1


@linux
def test_a_batch_of_a_large_array_is_given_back(tmp_path):
    for rows, kept in ((5_000, True), (20_000, False)):  # 61 and 246 MB
        array = mapped(tmp_path / "x.npy", rows, "r+")
        index = Dataset("large", array).indices(0, 3, 130)
        array[index, 0, 0, 0] = np.arange(1, 131)
        array.flush()
        del array  # which has pages in memory, too
        data = Dataset("large", *[np.load(tmp_path / "x.npy", mmap_mode="r")] * 2)
        for found in (data.batch(0, 3, 130), data.examples(index, test=True)):
            assert (resident(tmp_path / "x.npy") > 1e6) == kept
            np.testing.assert_array_equal(found[:, 0, 0, 0], np.arange(1, 131))


TRAIN = """
import resource, sys
import flax.linen as nn, numpy as np, optax
import scoregen as sg

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, cond, train=False):
        return nn.Dense(3)(x)

array = np.load(sys.argv[1], mmap_mode="r")
model = sg.Model(sg.ddpm(), Net(), target="eps", condition="logsnr")
sg.fit(model, sg.data.Dataset("large", array[512:], array[:512]), sg.Objective(sg.EpsilonMSE()), optax.sgd(1e-3),
       steps=30, batch=256, prepare=sg.data.Prepare(sg.data.Centered()))
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@linux
@pytest.mark.slow
def test_the_memory_of_a_training_does_not_grow_with_the_array(tmp_path):
    peaks = []
    for rows in (20_000, 60_000):  # 246 and 737 MB
        mapped(tmp_path / "x.npy", rows)
        command = [sys.executable, "-c", TRAIN, str(tmp_path / "x.npy")]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert abs(peaks[1] - peaks[0]) < 100e6, peaks
