"""Opens files with weights: a diffusers folder, a .safetensors file, or a file of `torch.save`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scoregen.app.command import run_command
from scoregen.app.config import Config, load
from scoregen.contrib.weights import ncsn, unet
from scoregen.contrib.weights.layout import KINDS, Entry, to_ours
from scoregen.errors import UsageError
from scoregen.torch_file import Tensor, TorchFile

WEIGHTS = "diffusion_pytorch_model.safetensors"
FLOATS = ("float16", "bfloat16", "float32", "float64")
# Attention layers: the name in diffusers before 0.15, as in the first checkpoints on the hub -> today's name.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Array(NamedTuple):
    """The type and the shape of an array that is not read yet."""

    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights in a file, under their own names.

    Attributes:
        format: the kind of the file.
        arrays: name -> type and shape of the array.
        read: (name, averaged) -> the array. With `averaged` it is the average, if there is one.
        averaged: the names of the arrays that have an average.
        step: the training step, 0 if it is unknown.
        file: the file of the weights.
        configs: part of the pipeline -> its configuration in the same folder.
        notes: what to say about the import.
    """

    format: str
    arrays: Mapping[str, Array]
    read: Callable[[str, bool], np.ndarray]
    averaged: frozenset[str] = frozenset()
    step: int = 0
    file: Path = Path()
    configs: Mapping[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Format(NamedTuple):
    """A network of score_sde, of ADM or of EDM, in a file of `torch.save`.

    Attributes:
        layout: (our network, the shape of an example) -> the entries of its arrays.
        net: the name of our network in a configuration.
        preset: returns the default configuration.
        shape: the shape of an example.
        mark: the beginning of the name of some array in every such file, and in no file of another library.
        buffers: arrays in the state dict that are not weights.
        fixed: weights that are not trained, so they have no average.
        heads: for one array of query, key and value: our network -> the function `heads` of `unet.split`.
        labels: the array with the weights of the classes, and its axis that counts them.
    """

    layout: Callable[[Any, tuple[int, ...]], list[Entry]]
    net: str
    preset: Callable[[], Config]
    shape: tuple[int, ...]
    mark: str
    buffers: tuple[str, ...] = ("sigmas",)
    fixed: tuple[str, ...] = ()
    heads: Callable[[Any], Callable[[int], int]] | None = None
    labels: tuple[str, int] = ("", 0)

    def classes(self, arrays: Mapping[str, Array]) -> int:
        """The number of classes of the network in a file; 0 for none."""
        name, axis = self.labels
        return arrays[name].shape[axis] if name in arrays and len(arrays[name].shape) == 2 else 0


def _ddpm() -> Config:
    config = load("ddpm_cifar")
    config.net.unet.attention_last = True
    return config


_by_sigma = functools.partial(unet.score_sde, by_sigma=True)
_refine = lambda net, _: ncsn.layout(net)  # noqa: E731
_cifar = (32, 32, 3)
# Each network is one entry: its layout and its default preset.
FORMATS: dict[str, Format] = {
    "ddpm": Format(unet.score_sde, "unet", _ddpm, _cifar, "all_modules."),
    "ncsnpp": Format(
        _by_sigma, "ncsnpp", lambda: load("ncsnpp_ve_cifar"), _cifar, "all_modules.", fixed=("all_modules.0.W",)
    ),
    "ddpmpp": Format(unet.score_sde, "ncsnpp", lambda: load("ddpmpp_vp_cifar"), _cifar, "all_modules."),
    "ncsn": Format(_refine, "refinenet", lambda: load("ncsn_cifar"), _cifar, "begin_conv."),
    "ncsnv2": Format(_refine, "refinenet_v2", lambda: load("ncsnv2_cifar"), _cifar, "begin_conv."),
    "adm": Format(
        unet.adm,
        "unet",
        lambda: load("iddpm_cifar"),
        _cifar,
        "input_blocks.",
        buffers=(),
        heads=lambda net: net.heads_of,
        labels=("label_emb.weight", 0),
    ),
    "edm": Format(
        unet.edm,
        "ncsnpp",
        lambda: load("edm_cifar"),
        _cifar,
        "model.enc.",
        buffers=(),
        heads=lambda net: int,
        labels=("model.map_label.weight", 1),
    ),
}
# How names in the state dicts of denoising-diffusion-pytorch begin, whose networks have layers that none here has.
OTHER = ("model.init_conv.", "init_conv.")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Source]:
    """The weights at a path: a pipeline's or a model's folder, a .safetensors file, or a file of `torch.save`.

    Raises:
        UsageError: if there are no weights, or if they cannot be read.
    """
    if path.is_dir():
        with _folder(path) as source:
            yield source
    elif not path.exists():
        hub = len(path.parts) == 2 and not path.suffix
        get = f"; to get it: huggingface-cli download {path} --local-dir {path.name}, and then give {path.name}"
        raise UsageError(f"there is no {path}: a diffusers folder, a .safetensors or a .pth file is needed{get * hub}")
    elif not path.is_file():
        raise UsageError(f"{path} is neither a file nor a folder")
    elif path.suffix == ".safetensors":
        with _safetensors(path, "safetensors", {}) as source:
            yield source
    elif path.suffix == ".pkl":
        raise UsageError(
            f"{path} is a pickle, which is a program and is not read. If it is of NVlabs/edm, save the state dict in a "
            "checkout of it: python -c 'import pickle, torch; "
            'torch.save(pickle.load(open("OLD.pkl", "rb"))["ema"].state_dict(), "NEW.pt")'
            "', and import NEW.pt"
        )
    else:
        with TorchFile(path) as file:
            yield _trained(file)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[Source]:
    """A pipeline's folder, with `unet/` and `scheduler/`, the model's own, or a checkpoint of diffusers' training.

    Such a checkpoint has the parameters in `unet/` and their average in `unet_ema/`.
    """
    if (path / "checkpoints").is_dir():
        raise UsageError(f"{path} is a run of scoregen already: {run_command('sample', str(path))}")
    folders = [path / name for name in ("unet", "unet_ema") if (path / name).is_dir()] or [path]
    (config, _), (_, step) = _described(path, folders[0]), _described(path, folders[-1])
    configs = {"unet": config}
    if scheduler := _scheduler(path):
        configs["scheduler"] = read_json(scheduler)
    notes = ()
    if path.name == "unet" and (path.parent / "unet_ema").is_dir():
        notes = (f"The average beside it, unet_ema, was left out; to import both, name the folder {path.parent}",)
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(_safetensors(_weights(folder), "diffusers", configs)) for folder in folders]
        trained, average = sources[0], sources[-1]
        names = {**trained.arrays, **average.arrays}
        if differ := [name for name in names if trained.arrays.get(name) != average.arrays.get(name)]:
            raise UsageError(f"{path}: unet and unet_ema differ in {some(differ)}: they are not of one training")
        yield dataclasses.replace(
            average,
            read=lambda name, averaged: (average if averaged else trained).read(name, averaged),
            averaged=frozenset(names) if len(folders) == 2 else frozenset(),
            step=step,
            notes=notes,
        )


# What EMAModel of diffusers adds to the config.json of its network.
EMA = {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}


def _described(path: Path, model: Path) -> tuple[dict[str, Any], int]:
    """The configuration of a network in a folder, and the updates of its average, which are the steps; 0 if unknown."""
    if not (model / "config.json").is_file():
        raise UsageError(f"{path} is not a diffusers folder: it has neither unet/config.json nor config.json")
    config = read_json(model / "config.json")
    step = config.get("optimization_step")
    if set(config) >= EMA:
        config = {key: value for key, value in config.items() if key not in EMA}
    return config, step if type(step) is int and 0 <= step < 1 << 31 else 0


def _scheduler(path: Path) -> Path | None:
    """The scheduler's file: in the pipeline, or beside the model as in the first models on the hub.

    A checkpoint of a training is in the folder of its pipeline.
    """
    beside = [path / "scheduler", path, path.parent / "scheduler"]
    if path.name in ("unet", "unet_ema"):
        beside.append(path.parent.parent / "scheduler")
    elif not re.fullmatch(r"checkpoint-\d+", path.name):
        beside.pop()
    files = (folder / "scheduler_config.json" for folder in beside)
    return next((file for file in files if file.is_file()), None)


def _weights(model: Path) -> Path:
    """The file of weights in a folder of diffusers."""
    if not (model / WEIGHTS).is_file():
        if parts := sorted(model.glob("diffusion_pytorch_model*.safetensors")):
            fix = (
                "diffusers' save_pretrained(FOLDER, max_shard_size='100GB') writes one"
                if len(parts) > 1
                else f"rename it to {WEIGHTS}"
            )
            raise UsageError(f"the weights in {model} are in {', '.join(p.name for p in parts[:3])}: {fix}")
        if any(model.glob("diffusion_pytorch_model*.bin")):
            raise UsageError(
                f"{model} has its weights only in a .bin file. This is a pickle, which is not read: save them with "
                "diffusers' save_pretrained(FOLDER), which writes safetensors"
            )
        raise UsageError(f"there is no {WEIGHTS} in {model}")
    return model / WEIGHTS


@contextlib.contextmanager
def _safetensors(path: Path, kind: str, configs: dict[str, dict]) -> Iterator[Source]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
        names = list(file.keys())
        theirs = {_today(name): name for name in names}
        if len(theirs) != len(names):
            raise UsageError(f"{path} has one array under a name of today and under one of diffusers before 0.15")
        slices = {name: file.get_slice(old) for name, old in theirs.items()}
        arrays = {
            name: Array(DTYPES.get(str(s.get_dtype()), str(s.get_dtype())), tuple(s.get_shape()))
            for name, s in slices.items()
        }
    except SafetensorError as error:
        raise UsageError(f"{path} is no safetensors file, or is cut short ({_line(error)}): get it again") from None

    def read(name: str, averaged: bool) -> np.ndarray:
        try:
            return file.get_tensor(theirs[name])
        except (SafetensorError, TypeError, AttributeError, ValueError, MemoryError) as error:
            raise UsageError(f"{path}: {name} cannot be read ({_line(error)})") from None

    yield Source(kind, arrays, read, file=path, configs=configs)


DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}


def _today(name: str) -> str:
    *path, layer, last = name.split(".") if name.count(".") else ("", name)
    if "attentions" in path and layer in RENAMED:
        return ".".join([*path, RENAMED[layer], last])
    return name


def _trained(file: TorchFile) -> Source:
    """A state dict alone, or one in a checkpoint.

    score_sde's checkpoints are {"model": state dict, "ema": {"shadow_params": [...]}, "step": n}, NCSN's [state dict,
    optimizer] and NCSNv2's [state dict, optimizer, epoch, step, averages by name].
    """
    value, path = file.value, file.path
    if isinstance(value, list):
        value = {"model": value[0] if value else None} | dict(zip(("step", "ema"), value[3:], strict=False))
    whole = value if isinstance(value, dict) else {}
    model = whole.get("model", whole)
    if isinstance(model, dict) and any(str(name).startswith(OTHER) for name in model):
        raise UsageError(
            f"{path} is of denoising-diffusion-pytorch: this format is not supported, since no network here has all of "
            "its layers. To use its weights with a network of your own, save the state dict as safetensors: "
            "safetensors.torch.save_file(trainer.ema.ema_model.model.state_dict(), 'NEW.safetensors'), and read it as "
            "docs/weights.md shows"
        )
    if not isinstance(model, dict) or not model or not all(isinstance(a, Tensor) for a in model.values()):
        raise UsageError(
            f"{path} holds no state dict, as a whole, under 'model' or first in a list, of tensors alone; to take the "
            "part that is one: found = torch.load(OLD, weights_only=True); torch.save(found[...], NEW)"
        )
    prefix = "module." if all(str(name).startswith("module.") for name in model) else ""  # of DataParallel
    tensors = {str(name).removeprefix(prefix): tensor for name, tensor in model.items()}
    if len(tensors) != len(model):
        raise UsageError(f"{path} has two arrays of one name")
    # ADM writes a state dict alone, and its step into the name.
    named = re.fullmatch(r"(model|ema_[\d.]+_)(\d{6,9})\.pt", path.name)
    step = whole.get("step", int(named[2]) if named else 0)
    step = step if type(step) is int and 0 <= step < 1 << 31 else 0
    averages = _averages(path, whole.get("ema"), tensors)

    def read(name: str, averaged: bool) -> np.ndarray:
        return file.read(averages[name] if averaged and name in averages else tensors[name])

    arrays = {name: Array(str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
    apart = "These are the parameters; their average is in the file ema_RATE_STEP.pt of the same step"
    notes = (apart,) if named and named[1] == "model" else ()
    return Source("torch", arrays, read, frozenset(averages), step, path, notes=notes)


def _averages(path: Path, ema: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name -> average. A list of averages has the order of the model's arrays, without buffers and fixed weights."""
    if ema is None:
        return {}
    buffers = {name for it in FORMATS.values() for name in it.buffers}
    fixed = {name for it in FORMATS.values() for name in it.fixed}
    shadow = ema.get("shadow_params", ema) if isinstance(ema, dict) else None
    averages = list(shadow.values()) if isinstance(shadow, dict) else shadow
    if not isinstance(averages, list) or not all(isinstance(tensor, Tensor) for tensor in averages):
        raise UsageError(f"{path}: its 'ema' has no list of shadow_params, and no averages by name")
    for left_out in (buffers | fixed, buffers):
        names = [name for name in tensors if name not in left_out]
        found = shadow if isinstance(shadow, dict) else dict(zip(names, averages, strict=False))
        wanted = {name: tensors[name].shape for name in names}
        if len(averages) == len(names) and {name: average.shape for name, average in found.items()} == wanted:
            return found
    raise UsageError(
        f"{path}: its {len(averages)} averages are not those of the {len(tensors)} arrays of its model, in order"
    )


def fitting(source: Source, config: Config | None, name: str) -> str:
    """The name of the format of these arrays.

    Without a configuration, the arrays are those of a format's preset, or else begin with the mark of one format.

    Raises:
        UsageError: if no format fits.
    """
    from scoregen.app.build import network
    from scoregen.app.config import pick

    if name:
        pick(FORMATS, name, "--format")
        return name
    found = set(source.arrays)
    marked = [name for name, it in FORMATS.items() if any(key.startswith(it.mark) for key in found)]
    for name in marked:
        it = FORMATS[name]
        if config is not None:
            # Two formats can belong to the same network. The first is recognised by its fixed weights.
            if it.net == config.net.name and found.issuperset(it.fixed):
                return name
        else:
            net = network(it.preset())
            entries = it.layout(net, it.shape)
            if {entry.theirs for entry in entries} == set(separated(source, it, net).arrays) - set(it.buffers):
                return name
    if len(marked) == 1 and config is None:
        return marked[0]
    known = ", ".join(marked or FORMATS)
    if config is not None and marked:
        nets = " or ".join(dict.fromkeys(FORMATS[name].net for name in marked))
        raise UsageError(f"config.net.name={config.net.name}: its arrays are those of {known}, which needs a {nets}")
    raise UsageError(f"its arrays fit no known network ({known}); say --config=NAME")


def separated(source: Source, it: Format, net: Any) -> Source:
    """The source with separate arrays of query, key and value, if those of the format are joined (see `unet.split`)."""
    if it.heads is None:
        return source
    heads, arrays, origin = it.heads(net), {}, {}
    for name, array in source.arrays.items():
        if ".qkv." in name and array.shape:
            part = array._replace(shape=(array.shape[0] // 3, *array.shape[1:]))
            origin |= {name.replace(".qkv.", f".{which}."): name for which in unet.THREE}
            arrays |= {name.replace(".qkv.", f".{which}."): part for which in unet.THREE}
        elif not name.endswith(".resample_filter"):
            arrays[name], origin[name] = array, name

    def read(name: str, averaged: bool) -> np.ndarray:
        return unet.split({origin[name]: source.read(origin[name], averaged)}, heads)[name]

    averaged = frozenset(name for name in arrays if origin[name] in source.averaged)
    return dataclasses.replace(source, arrays=arrays, read=read, averaged=averaged)


def check(entries: Sequence[Entry], arrays: Mapping[str, Array], ours: Mapping[str, Any]) -> None:
    """Refuse arrays whose names or shapes differ from the layout, before any array is read.

    Args:
        entries: the layout.
        arrays: the arrays in the file.
        ours: our network's parameters, nested; arrays or shapes.

    Raises:
        UsageError: with a line for missing arrays, one for unknown arrays, one for shapes and one for types; each names
            the first three.
    """
    wanted, wrong = {entry.theirs: entry for entry in entries}, []
    if missing := [name for name in wanted if name not in arrays]:
        wrong.append(f"there is no {some(missing)} ({len(missing)} of {len(wanted)} arrays are missing)")
    if unknown := sorted(set(arrays) - set(wanted)):
        wrong.append(f"there is {some(unknown)}, which the network does not have ({len(unknown)} such arrays)")
    shapes, kinds = [], []
    for name in wanted.keys() & arrays.keys():
        needed: Any = ours
        for part in wanted[name].ours.split("."):
            needed = needed[part]
        needed = KINDS[wanted[name].kind][1](np.empty(needed.shape, np.int8)).shape
        if arrays[name].shape != needed:
            shapes.append(f"{name} is {sized(arrays[name].shape)}, but the network's is {sized(needed)}")
        if arrays[name].dtype not in FLOATS:
            kinds.append(f"{name} holds {arrays[name].dtype}")
    if shapes:
        wrong.append(f"{some(sorted(shapes), '; ')} ({len(shapes)} arrays of another shape)")
    if kinds:
        wrong.append(f"{some(sorted(kinds))}, but weights must be floating-point numbers")
    if wrong:
        raise UsageError(*wrong)


def some(names: Sequence[str], between: str = ", ", most: int = 3) -> str:
    """The first names as text.

    >>> some(["a", "b", "c", "d"])
    'a, b, c ...'
    """
    return between.join(names[:most]) + " ..." * (len(names) > most)


def converted(source: Source, entries: Sequence[Entry], averaged: bool) -> dict[str, Any]:
    """Our parameters, nested, in float32, which holds half precision exactly.

    Raises:
        UsageError: for weights that are not finite, or that float32 cannot represent.
    """
    theirs = {entry.theirs: source.read(entry.theirs, averaged) for entry in entries}
    check_finite(source.file, theirs)
    for name, array in theirs.items():
        with np.errstate(over="ignore"):
            theirs[name] = array.astype(np.float32)
        if array.dtype == np.float64 and (theirs[name].astype(np.float64) != array).any():
            raise UsageError(f"{source.file}: {name} is float64, and float32 cannot represent it: save it as float32")
    return to_ours(entries, theirs)


def check_finite(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse weights that are not finite.

    Raises:
        UsageError: with the number of such arrays, and the first.
    """
    if bad := [name for name, array in arrays.items() if not finite(array)]:
        raise UsageError(f"{path}: {len(bad)} arrays have weights that are not finite, the first {bad[0]}")


def finite(array: np.ndarray) -> bool:
    """Whether all numbers of an array, of any type, are finite."""
    return bool(np.isfinite(array.astype(np.float32) if array.dtype.kind == "V" else array).all())


def size(arrays: Mapping[str, Any]) -> int:
    """The total number of elements."""
    return sum(math.prod(array.shape) for array in arrays.values())


def read_json(path: Path) -> dict[str, Any]:
    """The dict in a small JSON file.

    Raises:
        UsageError: if the file does not hold a dict.
    """
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(1 << 22))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is damaged: it is no table in JSON")
    return found


def sized(shape: Sequence[int]) -> str:
    """A shape as text.

    >>> sized((3, 3)), sized(())
    ('3x3', 'a scalar')
    """
    return "x".join(map(str, shape)) or "a scalar"


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
