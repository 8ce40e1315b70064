"""The page of a run, RUN/index.html: one file that fetches nothing, made from the files in the folder of the run."""

from __future__ import annotations

import dataclasses
import datetime
import math
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from scoregen.app import config as config_lib
from scoregen.app import report
from scoregen.app.command import IMPORTED, preset_file, run_command, saved_step, train_command
from scoregen.app.config import Config
from scoregen.app.evaluate import Measured, Metric
from scoregen.app.page_parts import (
    Curve,
    card,
    command,
    course,
    document,
    facts,
    figure,
    image,
    items,
    line,
    links,
    plot,
    scrolled,
    sections,
)
from scoregen.app.report import so_many
from scoregen.files import from_json, is_locked
from scoregen.metrics.neighbours import RARE
from scoregen.train import MetricsLog, describe

FOLDER = "page"  # in the folder of a run: what only the page shows
RECORD = "record.json"  # in FOLDER
NEAREST = "nearest.png"
FRAMES = 24  # pictures of the course, at most
COURSE = 2_500_000  # characters of all pictures of the course, at most
FILES = (
    *("config.json", "model.json", "metrics.jsonl", "checkpoints", "tensorboard", "loss.png", "samples.png"),
    *("figure.png", "samples.npy", "samples.csv", "samples.tsv", "samples.parquet", "samples", "distances.json"),
    *("nearest.png", "likelihood.json", "fid.json", "trajectory.png", "trajectory.gif", IMPORTED),
)
# How a distance is explained to someone who meets it for the first time, by the begin of its name.
MEANINGS = {
    "sliced Wasserstein": "how far the samples must be moved to become the data, seen along a direction, on average "
    "over all directions",
    "MMD": "the maximum mean discrepancy: how differently samples and data fill space, at the scale of the whole data; "
    "0 if not at all",
    "Frechet distance": "how differently samples and data are distributed in the features of a network: the squared "
    "distance between two Gaussians that are fitted to the features; it is not the FID",
    "FID": "how differently samples and data are distributed in the features of the Inception network: the squared "
    "distance between two Gaussians that are fitted to the features",
    "distance to nearest training image": "how far an image is from the training image that is most similar to it, in "
    "grey levels of 0 to 255 (the median); the second number is that of real images which were held out",
    "memorised (%)": "how many samples are as near to a training image as the nearest 1 % of the held-out images, or "
    "as the nearest one of fewer than 100; the second number is the share of the held-out images that are as near, and "
    "a far larger share of samples means that the network copies training images",
}
FLOOR = (
    "The floor is the distance of real examples, as many as there are samples, to the held-out data: a perfect sampler "
    "has this distance on average. In the column “samples”, the number after +- is the standard error of the value "
    "over draws of the samples; it is left out where it is not known. In the column “floor”, it is the standard "
    "deviation of the floor between draws of the real examples. “At the floor” means that a perfect sampler may have "
    "the same distance, and “1.9x the floor” that the distance is 1.9 times as large."
)
REAL = (
    "The floor is the same number for other real pictures, as many as there are samples. In the columns “samples” and "
    "“floor”, the number after +- is the standard error of the value over draws of the samples, and the standard "
    "deviation of the floor between draws of the real pictures."
)
LIKELIHOOD = (
    "This is -log p of held-out examples: the smaller it is, the more probable the network finds data that it has not "
    "seen. The number after +- is the standard error of the mean over the examples."
)


def read(workdir: Path) -> dict[str, Any]:
    """The record of a run; {} if there is none, or if it is damaged."""
    return json_of(workdir / FOLDER / RECORD)


def json_of(path: Path) -> dict[str, Any]:
    """The table in a JSON file; {} if there is none, or if it is damaged."""
    try:
        found = from_json(path.read_text(errors="replace"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def page(workdir: Path) -> str:
    """The HTML of the page of a run.

    Raises:
        UsageError: if the folder has no readable config.json.
    """
    path = workdir / "config.json"
    config = config_lib.from_json(path.read_text(errors="replace"), str(path))
    metrics, found = MetricsLog.read(workdir), json_of(workdir / "distances.json")
    record: dict[str, Any] = {"step": metrics[-1]["step"] if metrics else saved_step(workdir) or 0} | read(workdir)
    origin = json_of(workdir / IMPORTED)
    distances = [_metric(row) for row in found.get("distances", ())]
    compared, likelihood = json_of(workdir / "fid.json"), json_of(workdir / "likelihood.json")
    warnings = _warnings(record, metrics, [*distances, *map(_metric, compared.get("metrics", ()))], likelihood)
    title = f"{config.name} on {config.data.name}"
    file = preset_file(record.get("command", ""))
    preset, changed = differences(config, file)
    again = _commands(workdir, config, record, changed, file, origin)
    texts = {
        "What was trained": _trained(workdir, config, record, preset, changed, origin),
        "Commands": "<p>To be typed in the folder in which the training was started.</p>"
        + "".join(f"<h4>{escape(what)}</h4>{command(said)}" for what, said in again.items()),
        "Versions and devices": _machines(record),
        "Loss, gradient and speed": _curves(metrics, record),
        "Samples over the course of training": _course(workdir, record),
        "Samples beside real data": _samples(workdir, record),
        "Distances": _distances(distances, found, record) or _absent(again.get("Compute the distances")),
        "Compared by scoregen fid": _compared(compared),
        "Likelihoods": _likelihoods(likelihood, record) or _absent(again.get("Compute the likelihoods")),
        "Nearest neighbours": _nearest(workdir),
        "Warnings": items(map(escape, warnings)) if warnings else "<p>None of the checks of this run has warned.</p>",
        "Files": links(workdir, FILES, workdir),
    }
    warned = f' <a href="#warnings">{so_many(len(warnings), "warning")}</a>' if warnings else ""
    now = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    head = [
        f"<h1>{escape(title)}</h1>",
        f'<p>{escape(_state(workdir, config, record, origin))}.{warned} <span class="soft">Written {now}.</span></p>',
    ]
    if failed := record.get("failed"):
        head.append(card(escape(failed), " failed"))
    return document(title, [*head, *sections(texts)])


def _state(workdir: Path, config: Config, record: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    """Whether the run is imported, training, finished, stopped or failed, and at which step."""
    step, steps = record["step"], config.train.steps
    if _is_as_imported(record, origin):
        return f"Imported, at step {step:,}"
    at = f"step {step:,} of {steps:,}"
    if record.get("failed"):
        return f"Failed after {at}" if step < steps else f"Trained: {step:,} steps, but what follows has failed"
    if step >= steps:
        return f"Finished: {step:,} steps"
    if is_locked(workdir / ".lock"):
        return f"Training: {at}"
    return f"Stopped at {at}"


def _is_as_imported(record: Mapping[str, Any], origin: Mapping[str, Any]) -> bool:
    """Whether the weights of a run were imported, and it was not trained further."""
    return bool(origin) and not record.get("machines")


# What was trained


def differences(config: Config, file: str = "") -> tuple[str, list[tuple[str, Any, Any]]]:
    """The preset of a configuration, and its differences from it: (option, the preset's value, its own value).

    The preset is "default" if the package does not have it, as for a preset in a `file`. Options without effect are
    left out. Those that change the network come first.

    >>> config = config_lib.load("ddpm_toy")
    >>> with config.unlocked():
    ...     config.train.steps, config.loss.ssm.slices = 7, 9
    >>> differences(config)[0], [(key, new) for key, _, new in differences(config)[1]]
    ('ddpm_toy', [('train.steps', 7)])
    """
    name = "default" if file or config.name not in config_lib.presets() else config.name
    in_use = {key for key, _ in config_lib.leaves(config_lib.used(config))} - {"name"}
    found = [row for row in config_lib.changes(config_lib.load(name), config) if row[0] in in_use]
    order = ("network", "training", "results", "nothing")
    return name, sorted(found, key=lambda row: order.index(config_lib.effect(row[0], config)))


def _trained(
    workdir: Path,
    config: Config,
    record: Mapping[str, Any],
    preset: str,
    changed: Sequence[tuple[str, Any, Any]],
    origin: Mapping[str, Any],
) -> str:
    own = "the default options; its preset is a file of its own"
    of = f"the preset {preset}" if preset == config.name else own
    if changed:
        lines = [_head("option", preset, "this run")]
        lines += [line(map(escape, (key, _value(old), _value(new)))) for key, old, new in changed]
        differs = f"<p>It differs from {escape(of)}.</p>{scrolled(lines, 'differences from the preset', ' fit')}"
    else:
        differs = f"<p>Every option is that of {escape(of)}.</p>"
    every = [_head("option", "value")]
    every += [line(map(escape, (key, _value(value)))) for key, value in config_lib.leaves(config_lib.used(config))]
    folded = "<details><summary>The whole configuration, without the options that have no effect</summary>"
    imported = [("imported from", escape(_origin(origin)))] if origin else []
    about = [
        *imported,
        *_data(workdir, config, record),
        *((name, escape(text)) for name, text in record.get("about", ())),
    ]
    return f"{differs}{facts(about, 'what was trained')}{folded}{scrolled(every, 'configuration', ' fit')}</details>"


def _origin(origin: Mapping[str, Any]) -> str:
    """Where imported weights are from."""
    known = {"format": "format", "step": "at step", "sha256": "SHA-256 of the file"}
    more = [f"{said} {origin[key]}" for key, said in known.items() if key in origin]
    return ", ".join([str(origin.get("source", "an unknown file")), *more])


def _data(workdir: Path, config: Config, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A line about the data, with the notes of their reading."""
    found = (describe.read(workdir) or {}).get("data", {})
    said = [config.data.name]
    if found:
        shape = "x".join(map(str, found["shape"]))
        said[0] += f": {found['size']:,} examples of shape {shape} ({found['dtype']}) to train on"
    if columns := found.get("columns"):
        said.append(f"columns: {', '.join(map(str, columns))}")
    if classes := found.get("classes"):
        said.append(f"classes: {', '.join(map(str, classes))}")
    return [("data", "<br>".join(escape(_short(text, 500)) for text in [*said, *record.get("notes", ())]))]


def _head(*names: str) -> str:
    return f"<thead>{line(map(escape, names), 'th')}</thead>"


def _value(value: Any) -> str:
    """The value of an option as one types it."""
    return "–" if value is None else "(empty)" if value == "" else str(value)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


# Commands, versions


def _commands(
    workdir: Path,
    config: Config,
    record: Mapping[str, Any],
    changed: Sequence[tuple[str, Any, Any]],
    file: str,
    origin: Mapping[str, Any],
) -> dict[str, str]:
    """What one may do with the run -> the command, for the folder in which the training was started."""
    run, step = _as_typed(workdir, record), record["step"]
    train = record.get("command", "")
    if origin:
        train = ""  # no training makes these weights
    elif not file and config.name in config_lib.presets():
        train = f"{train_command(config.name, config, changed)} {shlex.quote(f'--workdir={run}')}"
    more = [f"--steps={2 * step}"] if step >= config.train.steps else []
    further = "Train further" if more or _is_as_imported(record, origin) else "Continue the training"
    found = {"Train": train} if train else {}
    if saved_step(workdir) is None:
        return found
    return found | {
        further: run_command("train", run, file, *more),
        "Sample again": run_command("sample", run, file, "--n=64"),
        "Compute the distances": run_command("eval", run, file),
        "Compute the likelihoods": run_command("likelihood", run, file),
    }


def _as_typed(workdir: Path, record: Mapping[str, Any]) -> str:
    """The run as one types it where its training was started; in full if this is unknown, or if the run was moved."""
    full = workdir.resolve()
    typed, started = record.get("run"), record.get("folder")
    known = isinstance(typed, str) and isinstance(started, str) and Path(started, typed).resolve() == full
    return str(typed if known else full)


def _machines(record: Mapping[str, Any]) -> str:
    """The versions and devices of each part of the training."""
    starts = record.get("machines", [])
    if not starts:
        return ""
    found = []
    for start in starts:
        versions = ", ".join(f"{name} {version}" for name, version in start["versions"].items())
        found.append((f"from step {start['step']:,}", f"{escape(start['devices'])}<br>{escape(versions)}"))
    return facts(found, "versions and devices")


# Curves


def _curves(metrics: Sequence[dict[str, Any]], record: Mapping[str, Any]) -> str:
    """Loss, gradient norm and speed over the steps."""
    steps, losses = report.values_of(metrics, "loss")
    held = list(zip(*report.values_of(metrics, "held_out_loss"), strict=True))
    curves, reach = [], len(losses) // report.SMOOTHED
    if reach:
        span = report.span_of(steps, reach)
        curves.append(Curve("single batches", list(zip(steps, losses, strict=True)), "var(--ink)", "faint"))
        smooth = list(zip(steps, report.smooth(losses, reach), strict=True))
        curves.append(Curve(f"mean of {span:,} steps", smooth, "var(--ink)"))
    else:
        curves.append(Curve("single batches", list(zip(steps, losses, strict=True)), "var(--ink)", "dots"))
    curves.append(Curve("held-out loss", held, "var(--accent)", "dots"))
    drawn = [plot(curves, "Training loss", "training step", record.get("loss", "loss"))]
    for key, title, of, zero in (
        ("grad_norm", "Norm of the gradient, before clipping", "norm", False),
        (
            "steps_per_second",
            "Speed, as the mean since the training was started or continued",
            "steps per second",
            True,
        ),
    ):
        points = [point for point in zip(*report.values_of(metrics, key), strict=True) if point[1] > 0]
        drawn.append(plot([Curve(of, points, "var(--ink)")], title, "training step", of, zero))
    shown = "".join(map(card, filter(None, drawn)))
    best = min(held, key=lambda point: point[1], default=None)
    said = ""
    if best is not None and len(held) > 1:
        said = f"The held-out loss of the last checkpoint, {held[-1][1]:.4g}, "
        said += "is the lowest." if best == held[-1] else f"is above the lowest, {best[1]:.4g} at step {best[0]:,.0f}."
    return f'<div class="small cards">{shown}</div><p class="soft">{said}</p>' if shown else ""


# Pictures


def _course(workdir: Path, record: Mapping[str, Any]) -> str:
    """The pictures that were drawn during the training, and at its ends, with a slider."""
    found = {_step(path): path for path in (workdir / FOLDER).glob("course_*.png")}
    found |= {_step(path): path for path in drawn_in_training(workdir)}
    known = [(step, path) for step, path in sorted(found.items()) if step <= record["step"]]
    if len(known) < 2:
        return ""
    return card(course(_frames(known), "samples at"))


def _frames(known: Sequence[tuple[int, Path]]) -> list[tuple[str, str]]:
    """Some of the pictures (step, path), few enough for a page: the name of each, and its figure."""
    every = 1
    while True:
        # Powers of 2, so that the pictures of an earlier page, which are encoded already, are chosen again.
        chosen = [*known[:-1:every], known[-1]]
        every *= 2
        if len(chosen) > FRAMES:  # before any picture is encoded, which is slow
            continue
        names = [f"step {step:,}" for step, _ in chosen]
        pictures = [image(path, f"samples at {name}") for name, (_, path) in zip(names, chosen, strict=True)]
        if len(pictures) <= 2 or sum(map(len, pictures)) <= COURSE:
            return [(name, figure(picture, name)) for name, picture in zip(names, pictures, strict=True)]


def _step(path: Path) -> int:
    digits = path.stem.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else 0


def drawn_in_training(workdir: Path) -> list[Path]:
    """The pictures of samples that a training has drawn at some of its steps."""
    return [path for path in workdir.glob("samples_[0-9]*.png") if path.stem.rpartition("_")[2].isdecimal()]


def _samples(workdir: Path, record: Mapping[str, Any]) -> str:
    """The newest samples beside real data, and how they were drawn."""
    found = record.get("sampled", {})
    pictures = [(said, workdir / name) for said, name in found.get("pictures", ()) if (workdir / name).is_file()]
    if not pictures:
        return ""
    drawn = [card(figure(image(path, said), said)) for said, path in pictures]
    shown = f'<div class="small cards">{"".join(drawn)}</div>' if len(drawn) > 1 else drawn[0]
    return shown + facts([(name, escape(text)) for name, text in found["facts"]], "how the samples were drawn")


def _nearest(workdir: Path) -> str:
    if not (workdir / NEAREST).is_file():
        return ""
    said = "The samples that are nearest to a training image, each above the training image that is nearest to it"
    how = (
        "<p>If the two lines show the same images, the network copies training images. Similar images alone are no "
        "sign of this: simple images are similar to many others.</p>"
    )
    return card(figure(image(workdir / NEAREST, said), said)) + how


# Numbers


def _metric(row: Mapping[str, Any]) -> Metric:
    known = {field.name for field in dataclasses.fields(Metric)}
    return Metric(**{key: value for key, value in row.items() if key in known})


def _distances(metrics: Sequence[Metric], found: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    if not metrics:
        return ""
    said = f"{found.get('samples', 0):,} samples of step {found.get('step', 0):,}.{_stale(found, record)} {FLOOR}"
    return _table("distance", metrics, said)


def _compared(found: Mapping[str, Any]) -> str:
    """The results of the last `scoregen fid` on the run."""
    metrics = [_metric(row) for row in found.get("metrics", ())]
    if not metrics:
        return ""
    sides = (found.get("judged", {}), found.get("reference", {}))
    said = [f"{side['count']:,} pictures" if side.get("count") else "pictures" for side in sides]
    names = [str(side.get("name", "unknown")) for side in sides]
    features = found.get("features")
    text = f"Samples: {said[0]} of {names[0]}. Reference: {said[1]} of {names[1]}. "
    return _table("metric", metrics, text + (f"Features: {features}. " if features else "") + REAL)


def _table(kind: str, metrics: Sequence[Metric], said: str) -> str:
    """Metrics with their floors, the text `said`, and what the metrics mean."""
    lines, meanings = [_head(kind, "samples", "floor", "in words")], []
    for metric in metrics:
        value, floor = report.numbers(metric)
        words = report.verdict(metric)
        if _of_held_out(metric):
            floor, words = f"held out: {metric.floor:.3g}", "–"
        lines.append(line(map(escape, (metric.name, value, floor.removeprefix("floor "), words))))
        if meaning := _meaning(metric):
            meanings.append(f"<strong>{escape(metric.name)}</strong>: {escape(meaning)}")
    return f"{scrolled(lines, f'{kind}s', ' numbers')}<p>{escape(said)}</p>{items(meanings)}"


def _of_held_out(metric: Metric) -> bool:
    """Whether the floor is the value of the held-out images, which has no spread."""
    return metric.floor is not None and metric.floor_std is None


def _absent(how: str | None) -> str:
    return "" if how is None else f"<p>They have not been computed. To compute them:</p>{command(how)}"


def _meaning(metric: Metric) -> str:
    meant = next((text for name, text in MEANINGS.items() if metric.name.startswith(name)), "")
    note = metric.note if metric.name.startswith(("Frechet", "FID")) or not meant else ""
    return " ".join(f"{text[:1].upper()}{text[1:]}." for text in (meant, note, metric.text) if text)


def _stale(found: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """A sentence for results of an earlier step than the newest."""
    return " The training has gone on since." if found.get("step", 0) < record["step"] else ""


def _likelihoods(found: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    if not found.get("likelihoods"):
        return ""
    measured = [Measured(**row) for row in found["likelihoods"]]
    lines = [_head("how", "-log p", "what it is")]
    lines += [line(map(escape, (of.name, report.describe_likelihood(of), _way(of.name)))) for of in measured]
    count, step = found.get("examples", 0), found.get("step", 0)
    said = f"{count:,} held-out examples, at step {step:,}.{_stale(found, record)} {LIKELIHOOD}"
    return f"{scrolled(lines, 'likelihoods', ' numbers')}<p>{escape(said)}</p>"


def _way(name: str) -> str:
    ways = {
        "ode": "by the probability-flow ODE: of the sampler without noise",
        "bound": "by the variational bound: an upper limit on average, for the sampler that adds noise",
        "exact": "of the distribution that the data were drawn from: no model can be better on average",
    }
    return ways.get(name, "the difference of the two, for the same examples")


# Warnings


def _warnings(
    record: Mapping[str, Any],
    metrics: Sequence[dict[str, Any]],
    distances: Sequence[Metric],
    likelihood: Mapping[str, Any],
) -> list[str]:
    """What the checks of the run have warned of, and what its numbers show."""
    lines = [*filter(None, [record.get("failed")]), *record.get("warnings", ())]
    lines += record.get("sampled", {}).get("warnings", ())
    for key in ("loss", "grad_norm", "held_out_loss"):
        if bad := [row["step"] for row in metrics if key in row and row[key] is None]:
            lines.append(
                f"{key} was not finite in {so_many(len(bad), 'line')} of metrics.jsonl, first at step {bad[0]:,}"
            )
    for metric in distances:
        if not math.isfinite(metric.value):
            lines.append(f"the {metric.name} is not finite: {metric.value}")
        elif metric.chance is not None and metric.chance < RARE:
            lines.append(metric.text)
        elif not _of_held_out(metric) and report.verdict(metric).startswith("far below"):
            lines.append(f"the {metric.name} is {report.verdict(metric)}")
    for row in likelihood.get("likelihoods", ()):
        if not math.isfinite(row["value"]):
            lines.append(f"the likelihood '{row['name']}' is not finite: {row['value']}")
    return lines
