"""The card of exported weights: what they are, and every figure with the file that it is from."""

from __future__ import annotations

import importlib.metadata as installed
import json
from pathlib import Path
from typing import Any

from scoregen.config import Config
from scoregen.log import MetricsLog
from scoregen.weights.source import read_json


def card(config: Config, workdir: Path, step: int, weights: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """What is told of weights of this step, as a table.

    Args:
        config: of the run.
        workdir: where its figures are.
        step: of the checkpoint that was exported.
        weights: what the weights are: the file, its checksum, the number of parameters, and of which kind.
        record: where they came from, if they were imported.
    """
    told = {
        "name": config.name,
        "scoregen": _version(),
        "step": step,
        "weights": weights,
        "data": {"name": config.data.name, "scaling": config.scaling.name, "flip": config.data.flip},
        "process": {"name": config.process.name, **config.process[config.process.name].to_dict()},
        "target": config.target,
        "loss": config.loss.name,
        "net": {"name": config.net.name, **config.net[config.net.name].to_dict()},
        "training": config.train.to_dict() | {"seed": config.seed},
        "metrics": metrics(workdir),
    }
    return told | ({"imported_from": record} if record else {})


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """Every figure that the run measured: its value, the step it is of, how it was come by, and the file it is from."""
    found = []
    rows = [row for row in MetricsLog.read(workdir) if "held_out_loss" in row]
    if rows:
        value, step = rows[-1]["held_out_loss"], rows[-1]["step"]
        found.append({"name": "held-out loss", "value": value, "step": step, "from": "metrics.jsonl"})
    for file, key in (("distances.json", "distances"), ("likelihood.json", "likelihoods")):
        if not (workdir / file).is_file():
            continue
        whole = read_json(workdir / file)
        how = {name: whole[name] for name in ("step", "seed", "samples", "examples", "scaling") if name in whole}
        found += [dict(row) | how | {"from": file} for row in whole.get(key, [])]
    return found


def _version() -> str:
    try:
        return installed.version("scoregen")
    except installed.PackageNotFoundError:
        return "not installed, from its folder"


def write(folder: Path, told: dict[str, Any], use: str) -> None:
    """`model_card.json`, and the same for the eye, `README.md`; `use` is how the weights are used."""
    (folder / "model_card.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_text(told, use), encoding="utf-8")


def _text(told: dict[str, Any], use: str) -> str:
    weights, net, train = told["weights"], told["net"], told["training"]
    fields = ", ".join(f"{name}={value}" for name, value in net.items() if name != "name")
    origin = told.get("imported_from")
    lines = [
        f"# {told['name']}",
        "",
        f"A network ({net['name']}: {fields}) of {weights['parameters']:,} parameters, which gives {told['target']} "
        f"under the process {told['process']['name']}. "
        + (
            f"Its weights were imported from {origin['source']} ({origin['format']}, SHA-256 {origin['sha256']})."
            if origin
            else f"Trained on {told['data']['name']} with the loss {told['loss']}, batches of {train['batch']} and "
            f"seed {train['seed']}."
        ),
        "",
        "| | |",
        "|---|---|",
        f"| weights | {weights['file']}, {weights['kind']} |",
        f"| SHA-256 | {weights['sha256']} |",
        f"| step | {told['step']:,} |",
        f"| data | {told['data']['name']}, scaled by {told['data']['scaling']} |",
        f"| written by | scoregen {told['scoregen']} |",
        "",
        "## Figures",
        "",
    ]
    if told["metrics"]:
        lines += ["| figure | value | of step | how | from |", "|---|---|---|---|---|"]
        for row in told["metrics"]:
            how = [f"{row[key]} {key}" for key in ("samples", "examples") if row.get(key)]
            how += [f"floor {row['floor']:.4g}"] if row.get("floor") else []
            how += [f"+- {row['error']:.2g}"] if row.get("error") else []
            how += [str(row[key]) for key in ("note", "unit") if row.get(key)]
            other = "" if row["step"] == told["step"] else " (another than the weights)"
            value = f"{row['value']:.6g}"
            lines.append(f"| {row['name']} | {value} | {row['step']}{other} | {', '.join(how)} | {row['from']} |")
    else:
        lines.append("None was measured.")
    return "\n".join([*lines, "", "## Use", "", "```python", use, "```", ""])
