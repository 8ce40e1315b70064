"""The files of a diffusers pipeline that are not weights: `unet/config.json` and the scheduler's, to ours and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from scoregen.config import Config, load
from scoregen.errors import UsageError
from scoregen.nets import UNet

# The presets whose data have this shape, to begin a configuration from.
PRESETS = {(32, 32, 3): "ddpm_cifar", (8, 8, 1): "ddpm_digits"}

# Options of UNet2DModel that must have one value: (what an absent one means to diffusers, what our U-Net is).
UNET: dict[str, tuple[Any, Any]] = {
    "act_fn": ("silu", "silu"),
    "add_attention": (True, True),
    "attn_norm_num_groups": (None, None),
    "center_input_sample": (False, False),
    "class_embed_type": (None, None),
    "downsample_padding": (1, 0),
    "downsample_type": ("conv", "conv"),
    "flip_sin_to_cos": (True, False),
    "freq_shift": (0, 1),
    "mid_block_scale_factor": (1, 1),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "norm_eps": (1e-5, 1e-6),
    "num_class_embeds": (None, None),
    "num_train_timesteps": (None, None),
    "resnet_time_scale_shift": ("default", "default"),
    "time_embedding_dim": (None, None),
    "time_embedding_type": ("positional", "positional"),
    "upsample_type": ("conv", "conv"),
}
# And those that say what a U-Net is.
SIZES = {
    *("attention_head_dim", "block_out_channels", "down_block_types", "dropout", "in_channels", "layers_per_block"),
    *("norm_num_groups", "out_channels", "sample_size", "up_block_types"),
}
# Options of a scheduler that must have one value.
SCHEDULER: dict[str, Any] = {"rescale_betas_zero_snr": False, "thresholding": False}
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "fixed_large_log": "large"}


def unet_of(theirs: dict[str, Any]) -> tuple[UNet, tuple[int, int, int]]:
    """Our network for the config.json of a `UNet2DModel`, and the shape of its images, (H, W, C).

    Raises:
        UsageError: naming the option that our network cannot be, or that is damaged.
    """
    if theirs.get("_class_name") != "UNet2DModel":
        raise UsageError(f"its class is {str(theirs.get('_class_name'))[:40]}, and UNet2DModel alone is known here")
    for option, (absent, ours) in UNET.items():
        if (value := theirs.get(option, absent)) != ours:
            raise UsageError(f"{option}={_shown(value)}: the U-Net here has {ours}")
    for option in sorted(set(theirs) - set(UNET) - SIZES):
        if not option.startswith("_") and theirs[option] not in (None, False):
            raise UsageError(f"{option}={_shown(theirs[option])}: this option is not known here")
    widths = _whole_list(theirs, "block_out_channels")
    channels = widths[0]
    if any(width % channels for width in widths):
        raise UsageError(f"block_out_channels={_shown(widths)}: all must be multiples of the first here")
    side = theirs.get("sample_size")
    height, width = side if isinstance(side, list) and len(side) == 2 else (side, side)
    size = _whole("sample_size", height), _whole("sample_size", width)
    c, out = (_whole(option, theirs.get(option, 3)) for option in ("in_channels", "out_channels"))
    if c != out:
        raise UsageError(f"out_channels={out}: as many as in_channels={c} are needed here")
    down, up = (_blocks(theirs, side, len(widths)) for side in ("Down", "Up"))
    if down != up[::-1]:
        raise UsageError(
            f"up_block_types={_shown(theirs['up_block_types'])}: attention is not where down_block_types has it"
        )
    heads = theirs.get("attention_head_dim", 8)
    for attended in [width for width, attends in zip(widths, down, strict=True) if attends] + widths[-1:]:
        if heads not in (None, attended):
            raise UsageError(f"attention_head_dim={_shown(heads)}: the U-Net here attends with one head, which is null")
    dropout = theirs.get("dropout", 0.0)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise UsageError(f"dropout={_shown(dropout)}: 0 up to, but not, 1 is needed")
    groups = _whole("norm_num_groups", theirs.get("norm_num_groups", 32))
    if channels % groups:
        raise UsageError(f"norm_num_groups={groups}: they do not divide block_out_channels={channels}")
    net = UNet(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=_whole("layers_per_block", theirs.get("layers_per_block", 2), 64),
        attention=tuple(size[0] >> i for i, attends in enumerate(down) if attends),
        dropout=float(dropout),
        groups=groups,
    )
    return net, (*size, c)


def config_of(net: UNet, shape: tuple[int, int, int], scheduler: dict[str, Any] | None) -> Config:
    """The preset for images of this shape, with this network and with the process of the scheduler's config.json.

    Without a scheduler the process is DDPM's of Ho et al. 2020.

    Raises:
        UsageError: naming the scheduler's option that is not known here, or the shape that no data here have.
    """
    if shape not in PRESETS:
        known = ", ".join("x".join(map(str, s)) for s in PRESETS)
        raise UsageError(f"images of {'x'.join(map(str, shape))}: there are presets for {known}; say --config=NAME")
    config = load(PRESETS[shape])
    config.net.name = "unet"
    set_unet(config, net)
    set_scheduler(config, {} if scheduler is None else scheduler)
    return config


def set_unet(config: Config, net: UNet) -> None:
    """Write the fields of a network into a configuration."""
    for field in config.net.unet:
        config.net.unet[field] = getattr(net, field)


def set_scheduler(config: Config, theirs: dict[str, Any]) -> None:
    """Write the process, the target and the sampler of a `DDPMScheduler` or `DDIMScheduler` into a configuration."""
    name = theirs.get("_class_name", "DDPMScheduler")
    if name not in ("DDPMScheduler", "DDIMScheduler"):
        raise UsageError(
            f"its scheduler is {_shown(name)}: DDPMScheduler and DDIMScheduler are known here; say --config=NAME"
        )
    for option, ours in SCHEDULER.items():
        if (value := theirs.get(option, ours)) != ours:
            raise UsageError(f"its scheduler has {option}={_shown(value)}: only {ours} is known here")
    steps = _whole("num_train_timesteps", theirs.get("num_train_timesteps", 1000))
    schedule, trained = theirs.get("beta_schedule", "linear"), theirs.get("trained_betas")
    ends = theirs.get("beta_start", 1e-4), theirs.get("beta_end", 0.02)
    if not all(type(end) in (int, float) and 0 < end < 1 for end in ends):
        raise UsageError(f"its scheduler has beta_start, beta_end={_shown(ends)}: numbers between 0 and 1 are needed")
    if trained is not None:
        if not isinstance(trained, list) or not all(type(beta) is float and 0 < beta < 1 for beta in trained):
            raise UsageError(f"its scheduler has trained_betas={_shown(trained)}: numbers between 0 and 1 are needed")
        config.process.name, config.process.betas["values"] = "betas", tuple(trained)
    elif schedule == "linear":
        config.process.name = "ddpm"
        config.process.ddpm.beta_min, config.process.ddpm.beta_max = map(float, ends)
        config.process.ddpm.steps = steps
    elif schedule == "scaled_linear":
        config.process.name = "betas"
        config.process.betas["values"] = tuple((np.linspace(ends[0] ** 0.5, ends[1] ** 0.5, steps) ** 2).tolist())
    elif schedule == "squaredcos_cap_v2":
        config.process.name, config.process.cosine.steps = "cosine", steps
    else:
        raise UsageError(
            f"its scheduler has beta_schedule={_shown(schedule)}: linear, scaled_linear, squaredcos_cap_v2 are known"
        )
    prediction = theirs.get("prediction_type", "epsilon")
    if prediction not in TARGETS:
        raise UsageError(f"its scheduler has prediction_type={_shown(prediction)}: {', '.join(TARGETS)} are known")
    config.target, config.net.condition, config.net.unit_input = TARGETS[prediction], "index", False
    reach = theirs.get("clip_sample_range", 1.0)
    clips = bool(theirs.get("clip_sample", True))
    if clips and reach != 1:
        raise UsageError(f"its scheduler has clip_sample_range={_shown(reach)}: x0 is clipped to [-1, 1] here")
    config.sampler.x0.name = "clip" if clips else "free"
    variance = theirs.get("variance_type", "fixed_small")
    if variance not in VARIANCES:
        raise UsageError(f"its scheduler has variance_type={_shown(variance)}: {', '.join(VARIANCES)} are known")
    config.sampler.predictor.name, config.sampler.corrector.name = "ancestral", "none"
    config.sampler.predictor.ancestral.variance = VARIANCES[variance]
    config.sampler.predictor.ancestral.eta = 1.0 if name == "DDPMScheduler" else 0.0


def unet_config(net: UNet, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The config.json of the `UNet2DModel` that our network is."""
    height, width, channels = shape
    attends = ["Attn" * (height >> i in net.attention) for i in range(len(net.multipliers))]
    return {option: ours for option, (_, ours) in UNET.items()} | {
        "_class_name": "UNet2DModel",
        "attention_head_dim": None,
        "block_out_channels": [net.channels * m for m in net.multipliers],
        "down_block_types": [f"{attn}DownBlock2D" for attn in attends],
        "dropout": net.dropout,
        "in_channels": channels,
        "layers_per_block": net.blocks,
        "norm_num_groups": min(net.groups, net.channels),
        "out_channels": channels,
        "sample_size": height if height == width else [height, width],
        "up_block_types": [f"{attn}UpBlock2D" for attn in attends[::-1]],
    }


def scheduler_config(config: Config) -> dict[str, Any]:
    """The config.json of the `DDPMScheduler` that walks as our ancestral sampler does.

    Raises:
        UsageError: for what a DDPMScheduler cannot walk, or a UNet2DModel cannot be told.
    """
    needed = {
        "net.condition": "index",
        "net.unit_input": False,
        "energy": False,
        "learned_variance": False,
        "labels": False,
    }
    for key, value in needed.items():
        section, _, option = key.rpartition(".")
        if (given := (config[section] if section else config)[option]) != value:
            raise UsageError(f"config.{key}={given}: a diffusers DDPMPipeline is {value} there")
    if config.scaling.name != "centered":
        raise UsageError(
            f"config.scaling.name={config.scaling.name}: a diffusers DDPMPipeline has data in [-1, 1], centered"
        )
    predictions = {ours: theirs for theirs, ours in TARGETS.items()}
    if config.target not in predictions:
        raise UsageError(f"config.target={config.target}: diffusers knows {', '.join(predictions)} under other names")
    name = config.process.name
    process = config.process[name]
    linear = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None}
    if name == "ddpm":
        betas = linear | {"beta_start": process.beta_min, "beta_end": process.beta_max}
        steps = process.steps
    elif name == "cosine":
        betas, steps = linear | {"beta_schedule": "squaredcos_cap_v2"}, process.steps
    elif name == "betas":
        betas, steps = linear | {"trained_betas": list(process["values"])}, len(process["values"])
    else:
        raise UsageError(
            f"config.process.name={name}: diffusers' DDPMScheduler walks a chain that keeps the variance: ddpm, "
            "cosine or betas"
        )
    ancestral = config.sampler.predictor.name == "ancestral"
    large = ancestral and config.sampler.predictor.ancestral.variance == "large"
    return betas | {
        "_class_name": "DDPMScheduler",
        "clip_sample": config.sampler.x0.name == "clip",
        "clip_sample_range": 1.0,
        "num_train_timesteps": steps,
        "prediction_type": predictions[config.target],
        "rescale_betas_zero_snr": False,
        "steps_offset": 0,
        "thresholding": False,
        "timestep_spacing": "leading",
        "variance_type": "fixed_large" if large else "fixed_small",
    }


def _blocks(theirs: dict[str, Any], side: str, count: int) -> list[bool]:
    """Whether there is attention, by block."""
    option = f"{side.lower()}_block_types"
    kinds = {f"{side}Block2D": False, f"Attn{side}Block2D": True}
    given = theirs.get(option)
    if not isinstance(given, list) or len(given) != count or not all(isinstance(kind, str) for kind in given):
        raise UsageError(f"{option}={_shown(given)}: {count} names are needed, as of block_out_channels")
    for kind in given:
        if kind not in kinds:
            raise UsageError(f"{option}: {_shown(kind)} is not known here; {' and '.join(kinds)} are")
    return [kinds[kind] for kind in given]


def _whole_list(theirs: dict[str, Any], option: str) -> list[int]:
    given = theirs.get(option)
    if not isinstance(given, list) or not 1 <= len(given) <= 16:
        raise UsageError(f"{option}={_shown(given)}: a list of whole numbers is needed")
    return [_whole(option, value) for value in given]


def _whole(option: str, value: Any, most: int = 1 << 16) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise UsageError(f"{option}={_shown(value)}: a whole number from 1 to {most} is needed")
    return value


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) < 60 else text[:57] + "..."
