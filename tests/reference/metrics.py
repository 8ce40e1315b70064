"""The metrics of torch-fidelity, pytorch-fid, prdc and POT on small features; as a script, it writes metrics.json.

    python tests/reference/metrics.py

It needs torch, torch-fidelity, pytorch-fid, prdc and POT. The tests compare with metrics.json, and, where the packages
are installed, with `reference` itself.
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".json")
SUBSETS = {"subsets": 10, "size": 30}


def cases() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(features of samples, features of real data, logits of the samples) by name."""
    rng = np.random.RandomState(0)  # its numbers never change

    def normal(*shape):
        return rng.standard_normal(shape)

    mix, logits = normal(64, 64) / 8, 3 * normal(500, 10)
    equal = normal(300, 64)
    return {
        "plain": (normal(500, 64), 0.1 + 1.1 * normal(400, 64), logits),
        "correlated": (normal(500, 64) @ mix + 3, normal(500, 64) @ mix + 3.1, logits.astype(np.float32)),
        "singular": (normal(40, 64), normal(50, 64), 100 * logits[:47]),  # fewer rows than features
        "equal": (equal, equal.copy(), logits[:100, :2]),
        "positive": (np.abs(normal(200, 16)), np.abs(normal(450, 16)) * 1.3, logits[:101]),
    }


def points() -> tuple[np.ndarray, np.ndarray]:
    """Two sets of 60 points in three dimensions."""
    rng = np.random.RandomState(1)
    return rng.standard_normal((60, 3)), 0.5 + rng.standard_normal((60, 3)) * [1.0, 2.0, 0.5]


def reference(x: np.ndarray, y: np.ndarray, logits: np.ndarray) -> dict[str, list[float]]:
    """The numbers of the libraries."""
    import prdc
    import torch
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b = torch.from_numpy(x), torch.from_numpy(y)
    fid = fid_statistics_to_metric(*map(fid_features_to_statistics, (a, b)), False)
    quiet = {"verbose": False}
    kid = kid_features_to_metric(a, b, kid_subsets=SUBSETS["subsets"], kid_subset_size=SUBSETS["size"], **quiet)
    found = {
        "torch-fidelity fid": fid,
        "pytorch-fid": {"fid": calculate_frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))},
        "torch-fidelity kid": kid,
        "torch-fidelity isc": isc_features_to_metric(torch.from_numpy(logits)),
        "torch-fidelity prc": prc_features_to_metric(a, b, **quiet),
        "prdc 3": prdc.compute_prdc(y, x, 3),
        "prdc 5": prdc.compute_prdc(y, x, 5),
    }
    return {name: [float(value) for value in values.values()] for name, values in found.items()}


def squared_wasserstein(x: np.ndarray, y: np.ndarray) -> float:
    """By POT."""
    import ot

    weights = np.full(len(x), 1 / len(x))
    return float(ot.emd2(weights, weights, ot.dist(x, y)))


if __name__ == "__main__":
    numbers = {name: reference(*case) for name, case in cases().items()}
    numbers["points"] = {"POT": [squared_wasserstein(*points())]}
    FILE.write_text(json.dumps(numbers, indent=1) + "\n")
