"""Weights of other libraries in and out.

    scoregen weights import FOLDER --workdir=runs/google
    scoregen weights import checkpoint_26.pth --format=ddpm --workdir=runs/song
    scoregen weights export runs/ddpm_cifar --out=exported
    scoregen weights inspect exported

A diffusers folder (a pipeline's, or that of its UNet2DModel) or a checkpoint of score_sde_pytorch becomes a workdir,
from which scoregen.run samples and goes on training; a workdir becomes a diffusers pipeline, with a model card. Nothing
of a file is ever run, and no weight changes by a bit. docs/weights.md says more.

Exit codes: 0 done; 2 something that you can fix, said in one line.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from scoregen.app import config as config_lib
from scoregen.app.arguments import Flag, parse
from scoregen.app.command import answer, say
from scoregen.app.config import Config
from scoregen.errors import UsageError

if TYPE_CHECKING:
    from scoregen.contrib.weights.source import Source

FLAGS = {
    "import": (
        Flag("workdir", "where the run goes", value="DIR"),
        Flag("format", "which of score_sde's networks a .pth file holds (found out by its arrays)", "", value="NAME"),
    ),
    "export": (
        Flag("out", "where the folder goes", value="DIR"),
        Flag("best", "the checkpoint of the best held-out loss, not the newest", False),
        Flag("step", "the checkpoint of this step", kind=int, value="N"),
        Flag("raw", "the parameters themselves, not their average", False),
    ),
    "inspect": (),
}
USE = """from diffusers import DDPMPipeline

images = DDPMPipeline.from_pretrained("FOLDER")(batch_size=4).images"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(argv, _run, _help)


def _help(console: Console) -> None:
    say(console, __doc__ or "")
    say(console, "import PATH")
    say(
        console,
        "  --config=NAME, --config.SECTION.OPTION=VALUE  the configuration; without it, found from what is there",
    )
    _help_of(console, "import")
    say(console, "export RUN")
    _help_of(console, "export")
    say(console, "inspect PATH     a run, a diffusers folder, a .safetensors or a .pth file: its kind, and its arrays")


def _help_of(console: Console, mode: str) -> None:
    for flag in FLAGS[mode]:
        say(console, f"  {flag.usage:<14} {flag.help}")


def _run(argv: Sequence[str], console: Console) -> int:
    mode, *rest = argv
    config_lib.pick(FLAGS, mode, "command")
    if not rest or rest[0].startswith("-"):
        raise UsageError(f"{mode} what? Say: scoregen weights {mode} PATH; see --help")
    path, given = Path(rest[0]).expanduser(), parse(rest[1:], FLAGS[mode], needed=False)
    config, values = given.config, given.values
    if config is not None and mode != "import":
        raise UsageError(f"--config: {mode} takes the configuration of {path}; leave the flag out")
    for name in ("workdir", "out"):
        if name in values and not values[name]:
            raise UsageError(f"{mode} needs --{name}=DIR: where it goes")
    if mode == "import":
        return _import(path, Path(values["workdir"]).expanduser(), config, values["format"], console)
    if mode == "export":
        return _export(path, Path(values["out"]).expanduser(), values, console)
    return _inspect(path, console)


def _import(path: Path, workdir: Path, config: Config | None, name: str, console: Console) -> int:
    # Here and not above: a wrong flag is answered before JAX is loaded.
    from scoregen.contrib.weights import pipeline
    from scoregen.contrib.weights import workdir as runs
    from scoregen.contrib.weights.source import check, converted, opened

    with opened(path) as source:
        try:
            made, shape, arrays, entries, kind = _ours(source, config, name)
            check(entries, arrays, runs.shapes_of(made, shape))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        averaged = converted(source, entries, averaged=True)
        trained = converted(source, entries, averaged=False) if source.averaged else averaged
        kinds = sorted({array.dtype for array in arrays.values()})
        record = {
            "source": path.name,
            "format": kind,
            "sha256": source.checksum(),
            "step": source.step,
            "shape": list(shape),
            "dtypes": kinds[0] if len(kinds) == 1 else {key: array.dtype for key, array in arrays.items()},
            "scheduler": pipeline.grid_of(source.configs.get("scheduler", {})),
        }
        with runs.fresh_folder(workdir, "--workdir") as folder:
            runs.write(folder, made, trained, averaged, source.step, record)
    count = sum(_size(array.shape) for array in arrays.values())
    say(
        console,
        f"{path}: {kind}, {count:,} parameters, {', '.join(kinds)}, now the run of step {source.step} in {workdir}",
    )
    if kind == "diffusers" and "scheduler" not in source.configs:
        say(console, "It has no scheduler_config.json: the process and the sampler are those of the configuration")
    data = " --data=DIR" if runs.reads_files(made) else ""
    say(console, f"To sample: scoregen sample {shlex.quote(str(workdir))}{data}")
    return 0


def _ours(source: Source, config: Config, name: str) -> tuple[Config, tuple, dict, list, str]:
    """The configuration, the shape of an example, the arrays that are weights, where they lie, and the format."""
    from scoregen.app.build import network
    from scoregen.contrib.weights import pipeline, unet
    from scoregen.contrib.weights import workdir as runs
    from scoregen.contrib.weights.source import FORMATS, fitting, sized

    arrays = dict(source.arrays)
    if "unet" in source.configs:
        if name:
            raise UsageError(f"--format={name} is for a .pth file, and this is a diffusers folder")
        net, shape = pipeline.unet_of(source.configs["unet"])
        if config is None:
            config = pipeline.config_of(net, shape, source.configs.get("scheduler"))
        elif config.net.name != "unet":
            raise UsageError(f"config.net.name={config.net.name}: these are the weights of a unet")
        for field, given in config.net.unet.items():
            if field not in unet.IDLE and given != (theirs := getattr(net, field)):
                raise UsageError(f"config.net.unet.{field}={given}: its config.json says {theirs}")
        if (data := runs.data_shape(config)) != shape:
            raise UsageError(
                f"config.data.name={config.data.name}: examples of {sized(data)}, and its config.json says "
                f"{sized(shape)}"
            )
        return config, shape, arrays, unet.diffusers(net, shape), "diffusers"
    if source.format == "safetensors":
        raise UsageError("it says nothing of its network: name the folder that it is in, with its config.json")
    kind = fitting(source, config, name)
    it = FORMATS[kind]
    if config is None:
        config, shape = it.preset(), it.shape
    else:
        shape = runs.data_shape(config)
    if config.net.name != it.net:
        raise UsageError(f"config.net.name={config.net.name}: --format={kind} is a {it.net}")
    arrays = {key: array for key, array in arrays.items() if key not in it.buffers}
    return config, shape, arrays, it.layout(network(config), shape), kind


def _export(path: Path, out: Path, values: dict[str, Any], console: Console) -> int:
    import ml_dtypes  # noqa: F401 - which teaches NumPy the name bfloat16

    from scoregen.app.build import network
    from scoregen.contrib.weights import card, pipeline, unet
    from scoregen.contrib.weights import workdir as runs
    from scoregen.contrib.weights.layout import to_theirs
    from scoregen.contrib.weights.source import WEIGHTS, checksum, finite

    config = runs.configuration(path)
    net, record = network(config), runs.record_of(path)
    scheduler = pipeline.scheduler_config(config)
    step = values["step"]
    if step is not None and (step < 0 or values["best"]):
        raise UsageError("--step=N names a checkpoint, N from 0 on, and goes without --best")
    shape = runs.example_shape(path, config)
    if len(shape) != 3:
        raise UsageError(f"{path} is of points, and a diffusers UNet2DModel is of images")
    entries = unet.diffusers(net, shape)
    ours, step = runs.read(path, runs.shapes_of(config, shape), not values["raw"], values["best"], step)
    arrays = to_theirs(entries, ours)
    if bad := [key for key, array in arrays.items() if not finite(array)]:
        raise UsageError(f"{path}: {len(bad)} arrays have weights that are not finite, the first {bad[0]}")
    kind = "as trained, no average" if values["raw"] else "averaged over training"
    untrained = record.get("step") == step
    if untrained:
        kind = "as they were imported"
    if untrained and record["format"] == "diffusers":  # to the last bit, and on the grid of times that it had
        kinds = record["dtypes"]
        scheduler |= {key: value for key, value in record.get("scheduler", {}).items() if key in scheduler}
        arrays = {key: a.astype(kinds if isinstance(kinds, str) else kinds[key]) for key, a in arrays.items()}

    pipe = scheduler["_class_name"].replace("Scheduler", "Pipeline")
    with runs.fresh_folder(out, "--out") as folder:
        for part in ("unet", "scheduler"):
            (folder / part).mkdir()
        _write_safetensors(folder / "unet" / WEIGHTS, arrays)
        index = {"_class_name": pipe, "scheduler": ["diffusers", scheduler["_class_name"]]}
        _write_json(folder / "model_index.json", index | {"unet": ["diffusers", "UNet2DModel"]})
        _write_json(folder / "unet" / "config.json", pipeline.unet_config(net, shape))
        _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        weights = {
            "file": f"unet/{WEIGHTS}",
            "sha256": checksum(folder / "unet" / WEIGHTS),
            "parameters": sum(array.size for array in arrays.values()),
            "kind": kind,
        }
        told = card.card(config, path, step, weights, record, averaged=not values["raw"])
        card.write(folder, told, USE.replace("FOLDER", out.resolve().name).replace("DDPMPipeline", pipe))
    if (name := config.sampler.step.name) != "ancestral":
        say(console, f"the run samples by {name}, and the pipeline as its scheduler does")
    say(console, f"{out}: a diffusers {pipe} of {weights['parameters']:,} parameters, of step {step} of {path}")
    return 0


def _inspect(path: Path, console: Console) -> int:
    from scoregen.contrib.weights import workdir as runs
    from scoregen.contrib.weights.source import check, opened, sized

    if (path / "checkpoints").is_dir():
        return _inspect_run(path, console)
    with opened(path) as source:
        _table(console, {key: (array.dtype, sized(array.shape)) for key, array in source.arrays.items()})
        bad = sum(_infinite(source, key) for key in source.arrays)
        try:
            config, shape, arrays, entries, kind = _ours(source, None, "")
            check(entries, arrays, runs.shapes_of(config, shape))
            fields = ", ".join(f"{key}={value}" for key, value in config.net[config.net.name].items())
            here = f"the net {config.net.name} ({fields}) of the preset {config.name}, as {kind}"
        except UsageError as error:
            here, kind = f"nothing: {error}", source.format
        say(console, f"{path}: {kind}, {len(source.arrays)} arrays, {source.parameters:,} numbers")
        if source.averaged:
            say(console, f"with an average of {len(source.averaged)} of them, of step {source.step:,}")
        if bad:
            say(console, f"of which {bad} arrays hold weights that are not finite")
        say(console, f"here it would be {here}")
    return 0


def _inspect_run(path: Path, console: Console) -> int:
    from scoregen.train.checkpoint import Checkpoints

    with Checkpoints(path / "checkpoints") as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise UsageError(f"no checkpoint in {path}: train first")
        arrays = checkpoints.leaves(step)
    _table(console, {key: tuple(kind.split(" ", 1)) for key, kind in arrays.items()})
    shapes = [kind.split(" ")[1] for key, kind in arrays.items() if key.startswith("ema.net.")]
    count = sum(_size([int(n) for n in shape.split("x")] if shape != "scalar" else ()) for shape in shapes)
    say(console, f"{path}: a run of scoregen, step {step:,}, {len(arrays)} arrays, {count:,} parameters")
    return 0


def _table(console: Console, rows: dict[str, tuple[str, ...]]) -> None:
    wide = max((len(key) for key in rows), default=0)
    for key, (kind, shape) in rows.items():
        say(console, f"{key:<{wide}}  {kind:<9}  {shape}".replace("\n", " "))


def _infinite(source: Source, key: str) -> bool:
    from scoregen.contrib.weights.source import finite

    array = source.read(key, False)
    return array.dtype.kind in "fV" and not finite(array)


def _size(shape: Sequence[int]) -> int:
    import math

    return math.prod(shape)


def _write_safetensors(path: Path, arrays: dict[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(arrays, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(None, str(error).splitlines()[0]) from None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    import json

    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
