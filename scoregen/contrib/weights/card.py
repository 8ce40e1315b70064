"""The model card of exported weights: their origin, and every measured value with its file."""

from __future__ import annotations

import importlib.metadata as installed
import json
import math
from pathlib import Path
from typing import Any

from scoregen.app.config import Config
from scoregen.contrib.weights.source import read_json
from scoregen.errors import UsageError
from scoregen.train.log import MetricsLog


def card(
    config: Config, workdir: Path, step: int, weights: dict[str, Any], record: dict[str, Any], averaged: bool = True
) -> dict[str, Any]:
    """The model card as a dict.

    Args:
        config: the configuration of the run.
        workdir: the folder of the run.
        step: the step of the exported checkpoint.
        weights: the file, its checksum, the number of parameters, and the kind of the weights.
        record: the origin of imported weights; empty for others.
        averaged: whether the weights are the average (EMA). All measured values belong to the average.

    Raises:
        UsageError: if a file with measured values is damaged.
    """
    # If weights were imported and not trained here, their data and training are unknown.
    known = record.get("step") != step
    card = {
        "name": config.name if known else record["source"],
        "scoregen": _version(),
        "step": step,
        "weights": weights,
        "scaling": config.scaling.name,
        "process": {"name": config.process.name, **config.process[config.process.name].to_dict()},
        "target": config.target,
        "net": {"name": config.net.name, **config.net[config.net.name].to_dict()},
        "metrics": metrics(workdir, step, averaged),
    }
    if known:
        card |= {
            "data": {"name": config.data.name, "flip": config.data.flip},
            "loss": config.loss.name,
            "training": config.train.to_dict() | {"seed": config.seed},
        }
    return card | ({"imported_from": record} if record else {})


def metrics(workdir: Path, step: int, averaged: bool = True) -> list[dict[str, Any]]:
    """Every value that the run measured, with its step, its settings and its file.

    The held-out loss is from this `step`, or else the last one. Without `averaged`, each value gets a note that it
    belongs to the average.
    """
    found: list[dict[str, Any]] = []
    name = "held-out loss"
    rows = [{"name": name, "value": row.get("held_out_loss"), "step": row.get("step")} for row in _lines(workdir)]
    rows = [row | {"from": "metrics.jsonl"} for row in rows if _sound(row, row)]
    if rows:
        found.append(next((row for row in reversed(rows) if row["step"] == step), rows[-1]))
    for file, key in (("distances.json", "distances"), ("likelihood.json", "likelihoods")):
        if not (workdir / file).is_file():
            continue
        whole = read_json(workdir / file)
        how = {name: whole[name] for name in ("step", "seed", "samples", "examples", "scaling") if name in whole}
        rows = whole.get(key, [])
        if not isinstance(rows, list) or not all(_sound(row, how) for row in rows):
            raise UsageError(f"{workdir / file} is damaged: make it again, or remove it")
        found += [row | how | {"from": file} for row in rows]
    return found if averaged else [row | {"of": "for the average, not for these weights"} for row in found]


def _lines(workdir: Path) -> list[dict[str, Any]]:
    return [row for row in MetricsLog.read(workdir) if isinstance(row, dict)]


def _sound(row: Any, how: dict[str, Any]) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or type(how.get("step")) is not int:
        return False
    numbers = [row.get("value"), *(row[key] for key in ("floor", "error") if row.get(key) is not None)]
    return all(type(number) in (int, float) and math.isfinite(number) for number in numbers)


def _version() -> str:
    try:
        return installed.version("scoregen")
    except installed.PackageNotFoundError:
        return "not installed, run from its folder"


def write(folder: Path, card: dict[str, Any], use: str) -> None:
    """Write the card as `model_card.json` and as text in `README.md`, with the example code `use`."""
    (folder / "model_card.json").write_text(json.dumps(card, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_text(card, use), encoding="utf-8")


def _text(card: dict[str, Any], use: str) -> str:
    weights, net, train = card["weights"], card["net"], card.get("training")
    fields = ", ".join(f"{name}={value}" for name, value in net.items() if name != "name")
    origin = card.get("imported_from")
    came = ""
    if origin:
        came = f" Its weights were imported from {origin['source']} ({origin['format']}, SHA-256 {origin['sha256']})."
    if train is not None:
        came += f" {'Then trained' if origin else 'Trained'} on {card['data']['name']} with the loss {card['loss']}, "
        came += f"batches of {train['batch']} and seed {train['seed']}."
    lines = [
        f"# {card['name']}",
        "",
        f"A network ({net['name']}: {fields}) of {weights['parameters']:,} parameters, which gives {card['target']} "
        f"under the process {card['process']['name']}.{came}",
        "",
        "| | |",
        "|---|---|",
        f"| weights | {weights['file']}, {weights['kind']} |",
        f"| SHA-256 | {weights['sha256']} |",
        f"| step | {card['step']:,} |",
        f"| data | {card['data']['name'] if train else 'not known here'}, scaled by {card['scaling']} |",
        f"| written by | scoregen {card['scoregen']} |",
        "",
        "## Figures",
        "",
    ]
    if card["metrics"]:
        lines += ["| figure | value | of step | how | from |", "|---|---|---|---|---|"]
        for row in card["metrics"]:
            how = [f"{row[key]} {key}" for key in ("samples", "examples") if row.get(key)]
            how += [f"floor {row['floor']:.4g}"] if row.get("floor") else []
            how += [f"+- {row['error']:.2g}"] if row.get("error") else []
            how += [str(row[key]) for key in ("note", "unit", "of") if row.get(key)]
            other = "" if row["step"] == card["step"] else " (another than the weights)"
            value = f"{row['value']:.6g}"
            lines.append(f"| {row['name']} | {value} | {row['step']}{other} | {', '.join(how)} | {row['from']} |")
    else:
        lines.append("None was measured.")
    return "\n".join([*lines, "", "## Use", "", "```python", use, "```", ""])
