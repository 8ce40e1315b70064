"""FID beside pytorch-fid and torch-fidelity: the same numbers on the same weights, and the speed.

    python benchmarks/fid/fid.py --data=FOLDER             about an hour on two CPU cores
    python benchmarks/fid/fid.py --data=FOLDER --only=speed

FOLDER holds the binary version of CIFAR-10. The first half of its test images is compared with the second half. The
weights of Inception are random, since the agreement does not depend on them; all three libraries read the same file.
Features are compared as numbers (`agree`), and timed alternately, with Inception and a batch of each library's own
choice (`speed`). `memory` is the peak of the resident memory while 50,000 images are judged as statistics. The script
writes fid.json beside itself, and from it fid.md. It needs the extra `interop`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Otherwise PyTorch's threads would spin between two operations, and take the cores from the other program.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from scoregen.app.command import need

need("interop", "torch", "pytorch_fid", "torch_fidelity")

import numpy as np
import torch

from scoregen import files
from scoregen.data import cifar10
from scoregen.metrics import (
    Outputs,
    frechet_distance,
    inception_features,
    inception_score,
    kid_subsets,
    prdc,
)
from scoregen.metrics.inception import _theirs as names
from scoregen.metrics.pretrained import arrays_of
from scoregen.nets.inception import Inception

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "tests" / "reference")]
import features as reference  # tests/reference/features.py
from timing import pair, say, seconds, table, times

BATCH = 50  # of pytorch-fid, by default
PARTS = ("agree", "speed", "memory")


def batched(outputs: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Callable[[np.ndarray], Outputs]:
    """Features and logits of many images, a batch at a time."""

    def all_of(images: np.ndarray) -> Outputs:
        rows = [outputs(images[at : at + BATCH]) for at in range(0, len(images), BATCH)]
        return Outputs(*map(np.concatenate, zip(*rows, strict=True)))

    return all_of


def agree(options: argparse.Namespace, ours: dict[str, Any], theirs: dict[str, Any]) -> list[dict[str, Any]]:
    """FID of two sets of images, by our features and by theirs; the other metrics on the same features."""
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    test = cifar10(dir=options.data).test[: 2 * options.images]
    sets = np.array_split(test, 2)
    rows = []
    for name, by in theirs.items():
        mine, other = [ours[name].outputs(x) for x in sets], [by(x) for x in sets]
        moments = [of for found, _ in other for of in (found.mean(0), np.cov(found, rowvar=False))]
        values = {
            "FID": (
                frechet_distance(mine[0].features, mine[1].features),
                float(calculate_frechet_distance(*moments)),
            )
        }
        if name == "torch-fidelity":
            x, y = (of.features for of in other)  # the same features for both libraries
            sized = {"subsets": 20, "size": min(500, len(x))}
            size = {f"kid_subset{name}": value for name, value in (("s", 20), ("_size", sized["size"]))} | {
                "verbose": False
            }
            split = isc_features_to_metric(torch.tensor(other[0].logits))
            of_kid = kid_features_to_metric(torch.tensor(x), torch.tensor(y), **size)
            close = prc_features_to_metric(torch.tensor(y), torch.tensor(x), prc_neighborhood=3, verbose=False)
            precision, recall, *_ = prdc(x, y)
            values |= {
                "Inception score": (inception_score(other[0].logits).value, split["inception_score_mean"]),
                "KID": (
                    float(kid_subsets(x, y, subsets=20, size=500).mean()),
                    of_kid["kernel_inception_distance_mean"],
                ),
                "precision": (precision.value, close["precision"]),
                "recall": (recall.value, close["recall"]),
            }
        for metric, (a, b) in values.items():
            apart = abs(a - b) / max(abs(b), 1e-12)
            say(f"agree {name}: {metric} {a:.8g} and {b:.8g}, apart {apart:.2e}")
            rows.append({"library": name, "metric": metric, "ours": float(a), "theirs": float(b), "apart": apart})
    return rows


def speed(options: argparse.Namespace, ours: dict[str, Any], theirs: dict[str, Any]) -> list[dict[str, Any]]:
    """Features of the same images, alternately."""
    images = cifar10(dir=options.data).test[: options.timed]
    found = []
    for name, by in theirs.items():
        row = pair(lambda name=name: ours[name](images), lambda by=by: by(images), options.rounds)
        say(f"speed {name}: {row}")
        found.append({"library": name, "images": len(images)} | row._asdict())
    return found


def memory(options: argparse.Namespace, *_: Any) -> list[dict[str, Any]]:
    """The peak of a process that judges this many images, in which one batch is in memory at a time."""
    code = (
        "import sys, resource, numpy as np\n"
        "from scoregen.metrics import inception_features, Statistics\n"
        "features = inception_features(sys.argv[1])\n"
        "batches = (np.full((500, 32, 32, 3), i % 256, np.uint8) for i in range(int(sys.argv[2]) // 500))\n"
        "print(Statistics.of(found.features for found in features.stream(batches)).count)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(options.weights), str(options.held)],
        capture_output=True,
        text=True,
        check=True,
    )
    count, peak = map(int, done.stdout.split())
    say(f"memory {count} images: {peak / 2**20:.2f} GiB")
    return [{"images": count, "gib": peak / 2**20}]


def page(kept: dict[str, Any]) -> str:
    """The results as Markdown."""
    text = ""
    if rows := kept.get("agree"):
        numbers = [[f"{r[side]:.6g}" for side in ("ours", "theirs")] for r in rows]
        lines = [(r["library"], r["metric"], *two, f"{r['apart']:.1e}") for r, two in zip(rows, numbers, strict=True)]
        text += table(("library", "metric", "here", "there", "relative difference"), lines) + "\n"
    if rows := kept.get("speed"):
        lines = [
            (f"Inception, {r['images']} images", r["library"], seconds(r["ours"]), seconds(r["theirs"]), times(r))
            for r in rows
        ]
        text += table(("features of", "beside", "here", "there", "there / here"), lines) + "\n"
    for row in kept.get("memory", ()):
        text += f"Statistics of {row['images']:,} images: at most {row['gib']:.2f} GiB of memory.\n"
    return text


def main() -> None:
    """Run the parts, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of CIFAR-10")
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--images", type=int, default=2000, help="in each of two sets")
    parser.add_argument("--timed", type=int, default=100)
    parser.add_argument("--held", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        state = reference.random_state(arrays_of(Inception(), names, 299))
        options.weights = Path(folder, "inception.pth")
        torch.save(reference.tensors(state), options.weights)
        ours = {name: inception_features(options.weights, resize=name) for name in ("pytorch-fid", "torch-fidelity")}
        theirs = {
            "pytorch-fid": batched(reference.pytorch_fid(state)),
            "torch-fidelity": batched(reference.torch_fidelity(state)),
        }
        file = HERE / "fid.json"
        kept = json.loads(file.read_text()) if file.is_file() else {}
        for part in options.only or PARTS:
            kept[part] = globals()[part](options, ours, theirs)
            with files.whole(file) as fresh:
                fresh.write_text(files.to_json(kept))
            with files.whole(HERE / "fid.md") as fresh:
                fresh.write_text(page(kept))
    say(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
