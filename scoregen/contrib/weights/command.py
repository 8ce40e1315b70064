"""Import and export the weights of other libraries.

    scoregen weights import FOLDER --workdir=runs/google
    scoregen weights import checkpoint_26.pth --format=ddpm --workdir=runs/song
    scoregen weights export runs/ddpm_cifar --out=exported
    scoregen weights inspect exported

`import` makes a run from a diffusers folder (a whole pipeline, only its UNet2DModel, or a checkpoint of its
training), from a checkpoint of score_sde_pytorch, NCSN or NCSNv2, or from a state dict of ADM, improved DDPM or EDM.
The run can be sampled and trained further. `export` makes a diffusers pipeline from a run, with a model card.
`inspect` lists the arrays of a run, a diffusers folder, a .safetensors or a .pth file. No code in a file is executed,
and every weight is copied bit for bit. See docs/weights.md.

Exit codes: 0 done; 2 an error that you can fix, one line each.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from scoregen.app import config as config_lib
from scoregen.app.arguments import CONFIG, Arguments, Flag, parse
from scoregen.app.command import answer, say, say_flags, say_help
from scoregen.app.config import Config
from scoregen.errors import UsageError
from scoregen.files import sha256

if TYPE_CHECKING:
    from scoregen.contrib.weights.source import Source

FLAGS = {
    "import": (
        Flag("workdir", "the folder for the run", value="FOLDER"),
        Flag("format", "the network of a .pth or .pt file (default: found from its arrays)", "", value="NAME"),
    ),
    "export": (
        Flag("out", "the folder for the pipeline", value="FOLDER"),
        Flag("best", "export the checkpoint with the best held-out loss instead of the newest", False),
        Flag("step", "export the checkpoint of this step", kind=int, value="N"),
        Flag("raw", "export the parameters instead of their average (EMA)", False),
    ),
    "inspect": (),
}
CONFIGURES = (  # the flags of `import` that `parse` adds
    (CONFIG.usage, f"{CONFIG.help} (default: recognised from the weights)"),
    ("--config.SECTION.OPTION=VALUE", "with --config: changes one option of it"),
)
USE = """from diffusers import DDPMPipeline

images = DDPMPipeline.from_pretrained("FOLDER")(batch_size=4).images"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(argv, _run, _help)


def _help(console: Console) -> None:
    lines = {mode: [(flag.usage, flag.help) for flag in flags] for mode, flags in FLAGS.items()}

    def flags() -> None:
        say_flags(console, [*lines["import"], *CONFIGURES], "Flags of `import PATH`")
        say_flags(console, lines["export"], "Flags of `export RUN`")

    say_help(console, "weights import|export|inspect PATH", __doc__, flags)


def _run(argv: Sequence[str], console: Console) -> int:
    mode, *rest = argv
    config_lib.pick(FLAGS, mode, "command")
    given = parse(rest, FLAGS[mode], takes=1, needed=False, faults=functools.partial(_faults, mode))
    if given.config is not None and (wrong := config_lib.idle(given.config, given.typed())):
        raise UsageError(*wrong)
    path, values = Path(given.positional[0]).expanduser(), given.values
    if mode == "import":
        return _import(path, Path(values["workdir"]).expanduser(), given.config, values["format"], console)
    if mode == "export":
        return _export(path, Path(values["out"]).expanduser(), values, console)
    return _inspect(path, console)


def _faults(mode: str, found: Arguments) -> Iterator[str]:
    if not found.positional:
        yield f"{mode}: a path is needed: scoregen weights {mode} PATH; see --help"
    for name in ("workdir", "out"):
        if name in found.values and not found.values[name]:
            yield f"{mode} needs --{name}=FOLDER, the folder to write"
    if mode != "import" and found.values["config"]:
        yield f"--config: {mode} uses the configuration of the run; leave the flag out"
    step = found.values.get("step")
    if step is not None and (step < 0 or found.values["best"]):
        yield "--step=N: N is the step of a checkpoint, 0 or more, and --best cannot be combined with it"


def _import(path: Path, workdir: Path, config: Config | None, name: str, console: Console) -> int:
    # Imported here, so that a wrong flag is reported before JAX is loaded.
    from scoregen.contrib.weights import pipeline, source
    from scoregen.contrib.weights import workdir as runs

    with source.opened(path) as found:
        try:
            made, shape, found, entries, kind, classes = _ours(found, config, name)
            arrays = found.arrays
            source.check(entries, arrays, runs.shapes_of(made, shape, classes))
        except UsageError as error:
            raise UsageError(*(f"{path}: {line}" for line in error.args)) from None
        averaged = source.converted(found, entries, averaged=True)
        trained = source.converted(found, entries, averaged=False) if found.averaged else averaged
        kinds = sorted({array.dtype for array in arrays.values()})
        record = {
            "source": path.name,
            "format": kind,
            "sha256": sha256(found.file),
            "step": found.step,
            "shape": list(shape),
            "dtypes": kinds[0] if len(kinds) == 1 else {key: array.dtype for key, array in arrays.items()},
            "scheduler": pipeline.grid_of(found.configs.get("scheduler", {})),
        }
        with runs.fresh_folder(workdir, "--workdir") as folder:
            runs.write(folder, made, trained, averaged, found.step, record)
    what = f"{kind}, {source.size(arrays):,} parameters, {', '.join(kinds)}"
    say(console, f"{path}: {what}; written as a run of step {found.step} to {workdir}")
    if kind == "diffusers" and "scheduler" not in found.configs:
        say(console, "It has no scheduler_config.json, so the process and the sampler come from the configuration")
    for note in (*found.notes, pipeline.note_of(made, found.configs.get("scheduler", {}))):
        if note:
            say(console, note)
    data = " --data=DIR" if runs.reads_files(made) else ""
    say(console, f"To sample: scoregen sample {shlex.quote(str(workdir))}{data}")
    return 0


def _ours(source: Source, config: Config, name: str) -> tuple[Config, tuple, Source, list, str, int]:
    """The configuration, the shape of an example, the weights, their layout, the format and the number of classes."""
    from scoregen.app.build import network
    from scoregen.contrib.weights import pipeline, unet
    from scoregen.contrib.weights import workdir as runs
    from scoregen.contrib.weights.source import FORMATS, fitting, separated, sized

    if "unet" in source.configs:
        if name:
            raise UsageError(f"--format={name} is for a .pth or .pt file, but this is a diffusers folder")
        net, shape = pipeline.unet_of(source.configs["unet"])
        if config is None:
            config = pipeline.config_of(net, shape, source.configs.get("scheduler"))
        elif config.net.name != "unet":
            raise UsageError(f"config.net.name={config.net.name}: the weights are for a unet")
        wrong = [
            f"config.net.unet.{field}={given}: its config.json says {theirs}"
            for field, given in config.net.unet.items()
            if field not in unet.IDLE and given != (theirs := getattr(net, field))
        ]
        if (data := runs.data_shape(config)) != shape:
            what = f"examples of {sized(data)}, but its config.json says {sized(shape)}"
            wrong.append(f"config.data.name={config.data.name}: {what}")
        _refuse_labels(config)
        if wrong:
            raise UsageError(*wrong)
        return config, shape, source, unet.diffusers(net, shape), "diffusers", 0
    if source.format == "safetensors":
        raise UsageError("the file does not describe its network: name the folder with this file and its config.json")
    kind = fitting(source, config, name)
    it = FORMATS[kind]
    shape = it.shape if config is None else runs.data_shape(config)
    config = it.preset() if config is None else config
    if config.net.name != it.net:
        raise UsageError(f"config.net.name={config.net.name}: --format={kind} needs a {it.net}")
    net, classes = network(config, shape=shape), it.classes(source.arrays)
    if classes:  # an option of the data would say so, but they are not read
        net, config.labels, config.label_dropout = net.clone(num_classes=classes), True, 0.0
        no_class = (
            f"It has the classes 0 to {classes - 1}, and was trained without dropping them: samples need a class, and "
            "guidance is not possible"
        )
        source = dataclasses.replace(source, notes=(*source.notes, no_class))
    else:
        _refuse_labels(config)
    source = separated(source, it, net)
    arrays = {key: array for key, array in source.arrays.items() if key not in it.buffers}
    return config, shape, dataclasses.replace(source, arrays=arrays), it.layout(net, shape), kind, classes


def _refuse_labels(config: Config) -> None:
    if config.labels:
        raise UsageError("config.labels=True: the file has no weights for it: say --config.labels=false")


def _export(path: Path, out: Path, values: dict[str, Any], console: Console) -> int:
    import ml_dtypes  # noqa: F401 - the import teaches NumPy the name bfloat16

    from scoregen.app.build import network
    from scoregen.contrib.weights import card, pipeline, source, unet
    from scoregen.contrib.weights import workdir as runs
    from scoregen.contrib.weights.layout import to_theirs

    config = runs.configuration(path)
    record, shape = runs.record_of(path), runs.example_shape(path, config)
    net = network(config, shape=shape)
    scheduler = pipeline.scheduler_config(config)
    if len(shape) != 3:
        raise UsageError(f"{path} is a run on points, but a diffusers UNet2DModel is for images")
    entries = unet.diffusers(net, shape)
    ours, step = runs.read(path, runs.shapes_of(config, shape), not values["raw"], values["best"], values["step"])
    arrays = to_theirs(entries, ours)
    source.check_finite(path, arrays)
    kind = "as trained, not averaged" if values["raw"] else "averaged over training"
    if record.get("step") == step:
        kind = "as they were imported"
        if record["format"] == "diffusers":  # exported with the same bits and the same grid of times
            kinds = record["dtypes"]
            scheduler |= {key: value for key, value in record.get("scheduler", {}).items() if key in scheduler}
            arrays = {key: a.astype(kinds if isinstance(kinds, str) else kinds[key]) for key, a in arrays.items()}

    pipe = scheduler["_class_name"].replace("Scheduler", "Pipeline")
    index = {"_class_name": pipe, "scheduler": ["diffusers", scheduler["_class_name"]]}
    files = {
        "model_index.json": index | {"unet": ["diffusers", "UNet2DModel"]},
        "unet/config.json": pipeline.unet_config(net, shape),
        "scheduler/scheduler_config.json": scheduler,
    }
    with runs.fresh_folder(out, "--out") as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        _write_safetensors(folder / "unet" / source.WEIGHTS, arrays)
        weights = {
            "file": f"unet/{source.WEIGHTS}",
            "sha256": sha256(folder / "unet" / source.WEIGHTS),
            "parameters": source.size(arrays),
            "kind": kind,
        }
        facts = card.card(config, path, step, weights, record, averaged=not values["raw"])
        card.write(folder, facts, USE.replace("FOLDER", out.resolve().name).replace("DDPMPipeline", pipe))
    if (name := config.sampler.step.name) != "ancestral":
        say(console, f"the run samples with {name}, but the pipeline samples with its own scheduler")
    say(console, f"{out}: a diffusers {pipe} with {weights['parameters']:,} parameters, from step {step} of {path}")
    return 0


def _inspect(path: Path, console: Console) -> int:
    from scoregen.contrib.weights import source
    from scoregen.contrib.weights import workdir as runs

    if (path / "checkpoints").is_dir():
        return _inspect_run(path, console)
    with source.opened(path) as found:
        _table(console, {key: (array.dtype, source.sized(array.shape)) for key, array in found.arrays.items()})
        bad = sum(not source.finite(found.read(key, False)) for key in found.arrays)
        try:
            config, shape, ours, entries, kind, classes = _ours(found, None, "")
            source.check(entries, ours.arrays, runs.shapes_of(config, shape, classes))
            fields = ", ".join(f"{key}={value}" for key, value in config.net[config.net.name].items())
            here = f"the net {config.net.name} ({fields}) of the preset {config.name}, as {kind}"
        except UsageError as error:
            here, kind = f"nothing: {error}", found.format
        say(console, f"{path}: {kind}, {len(found.arrays)} arrays, {source.size(found.arrays):,} numbers")
        if found.averaged:
            say(console, f"{len(found.averaged)} of the arrays also have an average; it is from step {found.step:,}")
        if bad:
            say(console, f"{bad} of the arrays hold weights that are not finite")
        say(console, f"`import` would give {here}")
    return 0


def _inspect_run(path: Path, console: Console) -> int:
    from scoregen.train.checkpoint import Checkpoints

    with Checkpoints(path / "checkpoints") as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise UsageError(f"no checkpoint in {path}: train first")
        arrays = {key: tuple(kind.split(" ", 1)) for key, kind in checkpoints.leaves(step).items()}
    _table(console, arrays)
    shapes = [shape for key, (_, shape) in arrays.items() if key.startswith("ema.net.")]
    count = sum(math.prod(int(n) for n in shape.split("x") if n != "scalar") for shape in shapes)
    say(console, f"{path}: a run of scoregen, step {step:,}, {len(arrays)} arrays, {count:,} parameters")
    return 0


def _table(console: Console, rows: dict[str, tuple[str, ...]]) -> None:
    wide = max((len(key) for key in rows), default=0)
    for key, (kind, shape) in rows.items():
        say(console, f"{key:<{wide}}  {kind:<9}  {shape}".replace("\n", " "))


def _write_safetensors(path: Path, arrays: dict[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(arrays, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(None, str(error).splitlines()[0]) from None
