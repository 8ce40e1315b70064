"""Speed of the source `folder`, beside PyTorch's DataLoader on the same pictures, and beside a training step.

    python benchmarks/data/data.py                     about twenty minutes on two CPU cores
    python benchmarks/data/data.py --only=raw          some parts: raw, prepared, step, memory
    python benchmarks/data/data.py --memory            also the memory of a training on 4 GB of pictures

Two programs are timed alternately, one round of each, so that both run under the same conditions. The result is the
median of the ratios over the rounds, with the quartiles. The pictures are JPEGs of 320x240 pixels, drawn by the script.
It writes data.json beside itself, and from it data.md. Parts that are not run keep their old results. It needs torch;
without torchvision, the DataLoader's pictures are resized by the same operations of Pillow.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Otherwise PyTorch's threads would spin between two operations, and take the cores from the other program.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from scoregen.app.command import need

need("bench", "torch")

import jax
import numpy as np
import torch
from PIL import Image

from scoregen import files
from scoregen.app.build import Parts, build
from scoregen.app.config import Config, load
from scoregen.data import Dataset, folder
from scoregen.data.folder import find
from scoregen.data.pictures import Wanted
from scoregen.data.prepared import Index, Store, Table
from scoregen.train import init_state, make_step

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from timing import pair, say, seconds, table, times

try:
    from torchvision import transforms
except (ImportError, RuntimeError):  # the second, if it was built for another torch
    transforms = None

BATCH = 128
NETS = {  # the smallest network that we have for images, and the U-Net of the preset `images`
    "MLP of 96 units": {"net.name": "mlp"},
    "U-Net of 32 channels": {"net.name": "unet", "net.unet.channels": 32, "net.unet.attention": ()},
}


def draw_pictures(root: Path, count: int) -> None:
    """JPEGs with large and small structures, so that they take as many bytes as photographs of their size."""
    rng = np.random.default_rng(0)
    for i in range(count):
        wide, high = [(320, 240), (240, 320), (330, 220)][i % 3]
        coarse = [Image.fromarray(rng.integers(256, size=(n, n, 3), dtype=np.uint8)) for n in (5, 20)]
        layers = [np.asarray(part.resize((wide, high), Image.Resampling.BICUBIC), np.float32) for part in coarse]
        pixels = 0.6 * layers[0] + 0.4 * layers[1] + rng.normal(0, 6, (high, wide, 1))
        path = root / f"class {i % 4}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=88)


class Pictures(torch.utils.data.Dataset):
    """The usual data set of PyTorch: a picture is decoded, resized, cut from its center and made a tensor."""

    def __init__(self, root: Path, size: int):
        self.paths, self.size = sorted(root.glob("*/*.jpg")), size
        self.change = None
        if transforms is not None:
            resize = transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC)
            self.change = transforms.Compose([resize, transforms.CenterCrop(size), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> torch.Tensor:
        with Image.open(self.paths[at]) as image:
            image = image.convert("RGB")
        if self.change is not None:
            return self.change(image)
        scale = self.size / min(image.size)
        image = image.resize([round(scale * side) for side in image.size], Image.Resampling.BICUBIC)
        left, top = ((side - self.size) // 2 for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + self.size, top + self.size)))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def epoch(loader: Any) -> int:
    """Read all batches of a DataLoader; returns the number of examples."""
    return sum(len(batch[0] if isinstance(batch, list) else batch) for batch in loader)


def our_epoch(data: Dataset, numbers: Iterator[int]) -> None:
    """Read as many batches as an epoch has, of the next epoch."""
    first = next(numbers) * (steps := -(-len(data.train) // BATCH))
    for step in range(first, first + steps):
        data.batch(0, step, BATCH)


def quiet(make: Callable[[], Any]) -> Any:
    """The result of a call, without its progress bar."""
    with contextlib.redirect_stderr(io.StringIO()):
        return make()


@contextlib.contextmanager
def pictures(options: argparse.Namespace) -> Iterator[tuple[Path, Pictures]]:
    """A folder of pictures, and PyTorch's data set of it."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "pictures")
        draw_pictures(root, options.pictures)
        yield root, Pictures(root, options.size)


def loader(data: Any, workers: int) -> Any:
    """A plain DataLoader: shuffled batches, read by this number of processes; 0 reads in this process."""
    return torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers)


def raw(options: argparse.Namespace) -> list[dict[str, Any]]:
    """From the files: our preparation, with hashes and checksums, beside an epoch of the DataLoader."""
    with pictures(options) as (root, theirs), tempfile.TemporaryDirectory() as place:
        names = map(str, itertools.count())

        def ours() -> None:
            quiet(lambda: folder(str(root), size=options.size, held_out=0.0, prepared=f"{place}/{next(names)}"))

        found = pair(ours, lambda: epoch(loader(theirs, options.workers)), options.rounds)
        mean = sum(path.stat().st_size for path in theirs.paths) / len(theirs)
    say(f"raw {found}")
    return [{"count": len(theirs), "bytes": mean, "workers": options.workers} | found._asdict()]


def prepared(options: argparse.Namespace) -> list[dict[str, Any]]:
    """An epoch after the first: our batches, beside the files again, and beside the same array as a TensorDataset."""
    rows = []
    with pictures(options) as (root, theirs), tempfile.TemporaryDirectory() as place:
        data = quiet(lambda: folder(str(root), size=options.size, held_out=0.0, prepared=place))
        numbers = itertools.count()
        in_memory = torch.utils.data.TensorDataset(torch.from_numpy(np.array(data.train)))
        cases = {
            "the files, again": loader(theirs, options.workers),
            "a TensorDataset of the same array": loader(in_memory, 0),
        }
        for beside, other in cases.items():
            found = pair(lambda: our_epoch(data, numbers), lambda other=other: epoch(other), options.rounds)
            rows.append({"count": len(data.train), "beside": beside} | found._asdict())
            say(f"prepared {rows[-1]}")
    return rows


def noise(path: Path, count: int, side: int) -> np.memmap:
    """A memory-mapped array of pictures of noise."""
    rng, shape = np.random.default_rng(0), (count, side, side, 3)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for first in range(0, count, 1024):
            file.write(rng.bytes(min(1024, count - first) * side * side * 3))
    return np.load(path, mmap_mode="r")


def parts_of(data: Dataset, chosen: dict[str, Any]) -> Parts:
    """The parts of a training of this network."""
    config: Config = load("ddpm_cifar")
    config.data.flip, config.eval.at_end, config.net.unet.dropout = False, False, 0.0
    config.train.batch, config.train.microbatch = BATCH, 0
    config.update_from_flattened_dict(chosen)
    return build(config, dataset=data)


def step(options: argparse.Namespace) -> list[dict[str, Any]]:
    """At 32x32: the batch of a training step, beside the step of our smallest networks."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        array = noise(Path(place, "x.npy"), options.step_pictures, 32)
        data, numbers = Dataset("noise", array), itertools.count()
        for net, chosen in NETS.items():
            parts = parts_of(data, chosen)
            trained = parts.model, parts.objective, parts.optimizer
            state = init_state(*trained, (BATCH, *data.shape), 0)
            run, images = make_step(*trained, parts.average, prepare=parts.prepare, seed=0), data.batch(0, 0, BATCH)

            def work(run: Any = run, images: Any = images) -> None:
                nonlocal state
                state, metrics = run(state, images)
                jax.block_until_ready((state, metrics))

            found = pair(lambda: data.batch(0, next(numbers), BATCH), work, 3 * options.rounds)
            rows.append({"net": net, "bytes": array.nbytes} | found._asdict())
            say(f"step {rows[-1]}")
    return rows


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The peak memory of a process that opens and trains on a prepared folder of 64x64 pictures."""
    count = int(options.gigabytes * 1e9) // (64 * 64 * 3)
    with tempfile.TemporaryDirectory() as place:
        pretend(Path(place, "pictures"), Path(place, "prepared"), count)
        command = [sys.executable, __file__, f"--child={place}", f"--steps={options.steps}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    say(f"memory {found}")
    return [{"count": count, "bytes": count * 64 * 64 * 3, "steps": options.steps} | found]


def pretend(root: Path, place: Path, count: int) -> None:
    """A folder of empty files, and what their preparation would have left: the array is a file without content."""
    for i in range(count):
        path = root / f"class {i % 100:02d}" / f"picture number {i:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    store, table, rng = Store(root, Wanted(64, 64), 3, str(place)), Table(), np.random.default_rng(0)
    known = {"size": (240, 320), "format": "JPEG", "mode": "RGB", "grey": False, "notes": ()}
    for name, stamp in find(root).pictures.items():
        table.add(name, stamp, 0, known | {"key": rng.bytes(16).hex()})
    table = table[np.argsort(-table.places())]
    place.mkdir()
    array = place / f"pictures-{0:016x}.npy"
    with array.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, 64, 64, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + count * 64 * 64 * 3)
    checksum = files.crc32(array)
    assert checksum is not None
    Index(store.options, array.name, checksum, table, {}).write(place / "index.npz")


def trained(place: Path, steps: int) -> dict[str, Any]:
    """Open a prepared folder and train on it in this process; returns the peak bytes after opening and some steps."""
    data = folder(str(place / "pictures"), size=64, channels=3, prepared=str(place / "prepared"))
    opened = peak()
    parts = parts_of(data, {"net.name": "mlp"})  # a small one: the memory of other networks is mostly their own
    state = init_state(parts.model, parts.objective, parts.optimizer, (BATCH, *data.shape), 0)
    run = make_step(parts.model, parts.objective, parts.optimizer, parts.average, prepare=parts.prepare, seed=0)
    peaks = []
    for step in range(steps):
        state, _ = jax.block_until_ready(run(state, data.batch(0, step, BATCH)))
        peaks.append(peak())
    return {"opened": opened, "first": peaks[0], "peak": peaks[-1]}


def peak() -> int:
    """The peak resident bytes of this process so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "raw": raw,
    "prepared": prepared,
    "step": step,
    "memory": memory,
}


def rate(row: dict[str, Any], whose: str) -> str:
    """Pictures in a second."""
    return f"{row['count'] / row[whose]:,.0f}"


def page(found: dict[str, Any]) -> str:
    """All tables in Markdown."""
    text = ["Ratios are their time over our time: more than 1 means that ours is faster.\n"]
    if "raw" in found:
        (r,) = found["raw"]["rows"]
        text += [
            f"### From the files: {r['count']:,} JPEGs of {r['bytes'] / 1e3:.0f} kB, with {r['workers']} processes\n",
            table(
                ("preparation here, pictures/s", "an epoch of the DataLoader, pictures/s", "ratio"),
                [(rate(r, "ours"), rate(r, "theirs"), times(r))],
            ),
        ]
    if "prepared" in found:
        head = ("beside", "here, pictures/s", "theirs, pictures/s", "ratio")
        rows = [(r["beside"], rate(r, "ours"), rate(r, "theirs"), times(r)) for r in found["prepared"]["rows"]]
        text += ["### An epoch after the first\n", table(head, rows)]
    if "step" in found:
        text += [f"### A batch of {BATCH} pictures of 32x32, beside the training step that uses it\n"]
        head = ("network", "batch", "step", "step / batch")
        rows = [(r["net"], seconds(r["ours"]), seconds(r["theirs"]), times(r)) for r in found["step"]["rows"]]
        text += [table(head, rows)]
    if "memory" in found:
        (r,) = found["memory"]["rows"]
        text += [
            "### Memory\n",
            f"{r['count']:,} prepared pictures of 64x64, {r['bytes'] / 1e9:.1f} GB: the peak resident memory of the "
            f"process is {r['opened'] / 1e9:.2f} GB after opening them, {r['first'] / 1e9:.2f} GB after the first "
            f"training step of {BATCH} with a small MLP, and {r['peak'] / 1e9:.2f} GB after {r['steps']} steps.\n",
        ]
    return "\n".join([*text, found["versions"] + "\n"])


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="parts, separated by commas")
    parser.add_argument("--memory", action="store_true", help="the part memory, too")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of the DataLoader")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--step-pictures", type=int, default=100_000, help="pictures of 32x32 for the part step")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="the array of the part memory")
    parser.add_argument("--steps", type=int, default=300, help="training steps of the part memory")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder for data.json and data.md")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(trained(Path(options.child), options.steps)))
        return
    chosen = options.only.split(",") if options.only else [part for part in PARTS if part != "memory"]
    file = options.out / "data.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for part in dict.fromkeys([*chosen, *["memory"] * options.memory]):
        found[part] = {"rows": PARTS[part](options)}
        vision = "Pillow instead of torchvision"
        if transforms is not None:
            import torchvision

            vision = f"torchvision {torchvision.__version__}"
        found["versions"] = (
            f"{os.cpu_count()} CPU cores: JAX {jax.__version__}, PyTorch {torch.__version__}, {vision}, Pillow "
            f"{Image.__version__}."
        )
        file.write_text(json.dumps(found, indent=1) + "\n")
    text = page(found)
    file.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
