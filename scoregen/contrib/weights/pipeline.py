"""Converts `unet/config.json` and the scheduler's configuration of a diffusers pipeline, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scoregen.app.config import Config, get, load
from scoregen.errors import UsageError
from scoregen.nets import UNet
from scoregen.process.chain import cosine_betas

# shape of an image -> the preset to start a configuration from.
PRESETS = {(32, 32, 3): "ddpm_cifar", (8, 8, 1): "ddpm_digits"}

# Options of UNet2DModel with only one supported value: (diffusers' default, the value of our U-Net).
UNET: dict[str, tuple[Any, Any]] = {
    "act_fn": ("silu", "silu"),
    "add_attention": (True, True),
    "center_input_sample": (False, False),
    "class_embed_type": (None, None),
    "downsample_type": ("conv", "conv"),
    "mid_block_scale_factor": (1, 1),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "num_class_embeds": (None, None),
    "num_train_timesteps": (None, None),
    "time_embedding_dim": (None, None),
    "time_embedding_type": ("positional", "positional"),
    "upsample_type": ("conv", "conv"),
}
# Options that belong together: each form of our U-Net fixes all of them. The second form has diffusers' defaults.
FORM = ("downsample_padding", "flip_sin_to_cos", "freq_shift", "norm_eps")
FORMS = {"ddpm": (0, False, 1, 1e-6), "adm": (1, True, 0, 1e-5)}
# All options that describe a U-Net.
SIZES = {
    *FORM,
    *("attn_norm_num_groups", "resnet_time_scale_shift"),
    *("attention_head_dim", "block_out_channels", "down_block_types", "dropout", "in_channels", "layers_per_block"),
    *("norm_num_groups", "out_channels", "sample_size", "up_block_types"),
}
SHIFTS = {"default": False, "scale_shift": True}
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "fixed_large_log": "large"}


def unet_of(theirs: dict[str, Any]) -> tuple[UNet, tuple[int, int, int]]:
    """Our network for the config.json of a `UNet2DModel`, and the shape of its images, (H, W, C).

    Raises:
        UsageError: with the options that our network does not support, or that are damaged.
    """
    if theirs.get("_class_name") != "UNet2DModel":
        raise UsageError(f"its class is {str(theirs.get('_class_name'))[:40]}, but only UNet2DModel is supported")
    wrong = [
        f"{option}={_shown(value)}: only {ours} is supported"
        for option, (absent, ours) in UNET.items()
        if (value := theirs.get(option, absent)) != ours
    ]
    wrong += [
        f"{option}={_shown(theirs[option])}: this option is not supported"
        for option in sorted(set(theirs) - set(UNET) - SIZES)
        if not option.startswith("_") and theirs[option] not in (None, False)
    ]
    if wrong:
        raise UsageError(*wrong)
    widths = _whole_list(theirs, "block_out_channels")
    channels = widths[0]
    if any(width % channels for width in widths):
        raise UsageError(f"block_out_channels={_shown(widths)}: all must be multiples of the first")
    side = theirs.get("sample_size")
    height, width = side if isinstance(side, list) and len(side) == 2 else (side, side)
    size = _whole("sample_size", height), _whole("sample_size", width)
    c, out = (_whole(option, theirs.get(option, 3)) for option in ("in_channels", "out_channels"))
    if c != out:
        raise UsageError(f"out_channels={out}: the same number as in_channels={c} is needed")
    down, up = (_blocks(theirs, side, len(widths)) for side in ("Down", "Up"))
    if down != up[::-1]:
        raise UsageError(
            f"up_block_types={_shown(theirs['up_block_types'])}: attention is not where down_block_types has it"
        )
    attended = {width for width, attends in zip(widths, down, strict=True) if attends} | {widths[-1]}
    head = theirs.get("attention_head_dim", 8)
    head = 0 if head is None or attended == {head} else _whole("attention_head_dim", head)
    if any(head and width % head for width in attended):
        raise UsageError(f"attention_head_dim={head}: it does not divide {_shown(sorted(attended))}, that attend")
    given = tuple(theirs.get(option, absent) for option, absent in zip(FORM, FORMS["adm"], strict=True))
    forms = [form for form, values in FORMS.items() if values == given]
    if not forms:
        said, *known = (
            ", ".join(f"{option}={_shown(value)}" for option, value in zip(FORM, values, strict=True))
            for values in (given, *FORMS.values())
        )
        raise UsageError(f"{said}: known here are {' and '.join(known)}")
    dropout = theirs.get("dropout", 0.0)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise UsageError(f"dropout={_shown(dropout)}: a number from 0 to below 1 is needed")
    groups = _whole("norm_num_groups", theirs.get("norm_num_groups", 32))
    if channels % groups:
        raise UsageError(f"norm_num_groups={groups}: they do not divide block_out_channels={channels}")
    shift = _one_of("resnet_time_scale_shift", theirs.get("resnet_time_scale_shift", "default"), SHIFTS)
    # With scale and shift, diffusers omits the norm of the middle attention unless this option is set.
    if (norm := theirs.get("attn_norm_num_groups")) != groups and (norm is not None or shift):
        raise UsageError(f"attn_norm_num_groups={_shown(norm)}: {groups} is needed, the value of norm_num_groups")
    net = UNet(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=_whole("layers_per_block", theirs.get("layers_per_block", 2), 64),
        attention=tuple(size[0] >> i for i, attends in enumerate(down) if attends),
        dropout=float(dropout),
        groups=groups,
        head_channels=head,
        scale_shift=shift,
        form=forms[0],
    )
    return net, (*size, c)


def config_of(net: UNet, shape: tuple[int, int, int], scheduler: dict[str, Any] | None) -> Config:
    """The preset for images of this shape, with this network and with the process of the scheduler's config.json.

    Without a scheduler the process is DDPM's of Ho et al. 2020.

    Raises:
        UsageError: for a scheduler's option that is not supported, or a shape without a preset.
    """
    if shape not in PRESETS:
        known = ", ".join("x".join(map(str, s)) for s in PRESETS)
        raise UsageError(f"images of {'x'.join(map(str, shape))}: there are presets for {known}; say --config=NAME")
    config = load(PRESETS[shape])
    config.net.name = "unet"
    for field in config.net.unet:
        config.net.unet[field] = getattr(net, field)
    set_scheduler(config, scheduler or {})
    return config


def set_scheduler(config: Config, theirs: dict[str, Any]) -> None:
    """Write the process, the target and the sampler of a `DDPMScheduler` or `DDIMScheduler` into a configuration."""
    name = theirs.get("_class_name", "DDPMScheduler")
    if name not in ("DDPMScheduler", "DDIMScheduler"):
        raise UsageError(
            f"its scheduler is {_shown(name)}: DDPMScheduler and DDIMScheduler are known here; say --config=NAME"
        )
    config.target = _one_of("prediction_type", theirs.get("prediction_type", "epsilon"), TARGETS)
    _set_process(config, theirs, name)
    config.net.condition, config.net.unit_input = "index", False
    _set_x0(config, theirs)
    variance = _one_of("variance_type", theirs.get("variance_type", "fixed_small"), VARIANCES)
    config.sampler.step.name, config.sampler.corrector.name = "ancestral", "none"
    config.sampler.step.ancestral.variance = variance
    config.sampler.step.ancestral.eta = 1.0 if name == "DDPMScheduler" else 0.0


def _set_process(config: Config, theirs: dict[str, Any], name: str) -> None:
    """The process of a scheduler's betas."""
    steps = _whole("num_train_timesteps", theirs.get("num_train_timesteps", 1000))
    schedule, trained = theirs.get("beta_schedule", "linear"), theirs.get("trained_betas")
    ends = theirs.get("beta_start", 1e-4), theirs.get("beta_end", 0.02)
    if not all(type(end) in (int, float) and 0 < end < 1 for end in ends):
        raise UsageError(f"its scheduler has beta_start, beta_end={_shown(ends)}: numbers between 0 and 1 are needed")
    rescale = _truth("rescale_betas_zero_snr", theirs.get("rescale_betas_zero_snr", False))
    table = None
    if trained is not None:
        sound = isinstance(trained, list) and all(type(beta) in (int, float) and 0 < beta <= 1 for beta in trained)
        if not sound or len(trained) != steps or 1 in trained[:-1]:
            raise UsageError(
                f"its scheduler has trained_betas={_shown(trained)}: {steps} numbers between 0 and 1 are needed"
            )
        table = np.asarray(trained, np.float64)
    elif schedule == "scaled_linear":
        table = np.linspace(ends[0] ** 0.5, ends[1] ** 0.5, steps) ** 2
    elif schedule == "sigmoid" and name == "DDPMScheduler":  # DDIMScheduler does not have it
        table = ends[0] + (ends[1] - ends[0]) / (1 + np.exp(-np.linspace(-6, 6, steps)))
    elif schedule == "linear" and rescale:
        table = np.linspace(*ends, steps)
    elif schedule == "linear":
        config.process.name = "ddpm"
        config.process.ddpm.beta_min, config.process.ddpm.beta_max = map(float, ends)
        config.process.ddpm.steps = steps
        config.process.ddpm.rescale = steps == 1000  # diffusers takes the betas as they are, whatever the steps
    elif schedule == "squaredcos_cap_v2":
        config.process.name, config.process.cosine.steps = "cosine", steps
        table = cosine_betas(steps) if rescale else None
    else:
        known = ["linear", "scaled_linear", "squaredcos_cap_v2", *["sigmoid"] * (name == "DDPMScheduler")]
        raise UsageError(f"its scheduler has beta_schedule={_shown(schedule)}: {', '.join(known)} are known")
    if table is not None:
        values = zero_snr(table) if rescale else table
        config.process.name, config.process.betas["values"] = "betas", tuple(values.tolist())
        if values[-1] == 1 and config.target == "eps":
            raise UsageError(
                "its scheduler ends in pure noise (rescale_betas_zero_snr=True, or a last beta of 1), where "
                "prediction_type=epsilon says nothing about x0: v_prediction or sample is needed"
            )


def zero_snr(betas: np.ndarray) -> np.ndarray:
    """Betas `[N]` changed so that the last level is pure noise (Lin et al. 2024, arXiv:2305.08891, algorithm 1).

    With a_t = sqrt(abar_t), every a_t becomes a_1 (a_t - a_N) / (a_1 - a_N). The last beta is then 1.

    >>> betas = zero_snr(np.array([0.19, 0.36]))
    >>> float(betas[0].round(12)), float(betas[1])
    (0.19, 1.0)
    """
    a = np.sqrt(np.cumprod(1 - betas))
    a = a[0] * (a - a[-1]) / (a[0] - a[-1])
    return 1 - a**2 / np.concatenate([[1.0], a[:-1] ** 2])


def _set_x0(config: Config, theirs: dict[str, Any]) -> None:
    """How estimates of x0 are clipped. In diffusers, `thresholding` replaces `clip_sample`."""
    x0 = config.sampler.x0
    if _truth("thresholding", theirs.get("thresholding", False)):
        x0.name = "dynamic"
        x0.dynamic.quantile = _number("dynamic_thresholding_ratio", theirs.get("dynamic_thresholding_ratio", 0.995), 1)
        x0.dynamic.most = _number("sample_max_value", theirs.get("sample_max_value", 1.0))
        if x0.dynamic.most < 1:
            raise UsageError(f"its scheduler has sample_max_value={x0.dynamic.most}: at least 1 is needed")
        return
    x0.name = "clip" if _truth("clip_sample", theirs.get("clip_sample", True)) else "free"
    if x0.name == "clip":
        x0.clip.reach = _number("clip_sample_range", theirs.get("clip_sample_range", 1.0))


def _truth(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"its scheduler has {option}={_shown(value)}: true or false is needed")
    return value


def _number(option: str, value: Any, most: float = 1e6) -> float:
    if type(value) not in (int, float) or not 0 < value <= most:
        raise UsageError(f"its scheduler has {option}={_shown(value)}: a number above 0, at most {most:g}, is needed")
    return float(value)


def note_of(config: Config, theirs: dict[str, Any]) -> str:
    """What differs between their scheduler and our sampler; "" for nothing."""
    if theirs.get("_class_name") != "DDIMScheduler" or config.sampler.x0.name == "free":
        return ""
    return (
        "Its DDIMScheduler limits x0 and keeps eps, but here eps follows from the limited x0, as in diffusers with "
        "use_clipped_model_output=True"
    )


def unet_config(net: UNet, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The config.json of the `UNet2DModel` that equals our network."""
    height, width, channels = shape
    attends = ["Attn" * (height >> i in net.attention) for i in range(len(net.multipliers))]
    if net.attention_heads != 1:
        raise UsageError(
            f"net.unet.attention_heads={net.attention_heads}: diffusers' UNet2DModel needs the channels per head "
            "(net.unet.head_channels), the same on every level"
        )
    groups = min(net.groups, net.channels)
    return (
        {option: ours for option, (_, ours) in UNET.items()}
        | dict(zip(FORM, FORMS[net.form], strict=True))
        | {
            "_class_name": "UNet2DModel",
            "attention_head_dim": net.head_channels or None,
            "attn_norm_num_groups": groups if net.scale_shift else None,
            "block_out_channels": [net.channels * m for m in net.multipliers],
            "down_block_types": [f"{attn}DownBlock2D" for attn in attends],
            "dropout": net.dropout,
            "in_channels": channels,
            "layers_per_block": net.blocks,
            "norm_num_groups": groups,
            "out_channels": channels,
            "resnet_time_scale_shift": "scale_shift" if net.scale_shift else "default",
            "sample_size": height if height == width else [height, width],
            "up_block_types": [f"{attn}UpBlock2D" for attn in attends[::-1]],
        }
    )


def scheduler_config(config: Config) -> dict[str, Any]:
    """The config.json of a `DDPMScheduler`, or without noise `DDIMScheduler`, that samples like our ancestral sampler.

    Raises:
        UsageError: for options that these schedulers or a UNet2DModel do not support.
    """
    predictions = {ours: theirs for theirs, ours in TARGETS.items()}
    never = dict.fromkeys(
        ("net.unit_input", "energy", "learned_variance", "labels"),
        ((False,), "a diffusers DDPMPipeline has False"),
    )
    needed: dict[str, tuple[tuple, str]] = {
        "sampler.x0.name": (("free", "clip", "dynamic"), "a diffusers pipeline has free, clip or dynamic"),
        "net.condition": (("index",), "a diffusers DDPMPipeline has index"),
        **never,
        "scaling.name": (("centered",), "a diffusers DDPMPipeline has data in [-1, 1], centered"),
        "target": (tuple(predictions), f"diffusers knows {', '.join(predictions)} under other names"),
        "process.name": (("ddpm", "cosine", "betas"), "diffusers has DDPM's chains alone: ddpm, cosine or betas"),
    }
    given = {key: get(config, key) for key in needed}
    if wrong := [
        f"config.{key}={given[key]}: {why}" for key, (known, why) in needed.items() if given[key] not in known
    ]:
        raise UsageError(*wrong)
    name = config.process.name
    process = config.process[name]
    linear = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None}
    if name == "ddpm":
        steps, scale = process.steps, 1000 / process.steps if process.rescale else 1
        betas = linear | {"beta_start": scale * process.beta_min, "beta_end": scale * process.beta_max}
    elif name == "cosine":
        betas, steps = linear | {"beta_schedule": "squaredcos_cap_v2"}, process.steps
    else:
        betas, steps = linear | {"trained_betas": list(process["values"])}, len(process["values"])
    ancestral, x0 = config.sampler.step.ancestral, config.sampler.x0
    asked = config.sampler.step.name == "ancestral"
    if asked and ancestral.eta == 0:
        last: dict[str, Any] = {"_class_name": "DDIMScheduler", "set_alpha_to_one": True}
    else:
        large = asked and ancestral.variance == "large"
        last = {"_class_name": "DDPMScheduler", "variance_type": "fixed_large" if large else "fixed_small"}
    return (
        betas
        | last
        | {
            "clip_sample": x0.name == "clip",
            "clip_sample_range": x0.clip.reach if x0.name == "clip" else 1.0,
            "num_train_timesteps": steps,
            "prediction_type": predictions[config.target],
            "rescale_betas_zero_snr": False,  # the betas are those after it
            "steps_offset": 0,
            "thresholding": x0.name == "dynamic",
            # An infinity is not JSON; estimates of x0 do not reach this number.
            "sample_max_value": min(x0.dynamic.most, 1e6) if x0.name == "dynamic" else 1.0,
            "dynamic_thresholding_ratio": x0.dynamic.quantile if x0.name == "dynamic" else 0.995,
            "timestep_spacing": "leading",
        }
    )


def grid_of(theirs: dict[str, Any]) -> dict[str, Any]:
    """The options in a scheduler's config.json for sampling with fewer steps, which our sampler does not use."""
    kinds = {"set_alpha_to_one": bool, "steps_offset": int, "timestep_spacing": str}
    return {key: theirs[key] for key, kind in kinds.items() if type(theirs.get(key)) is kind}


def _blocks(theirs: dict[str, Any], side: str, count: int) -> list[bool]:
    """For each block, whether it has attention."""
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


def _one_of(option: str, value: Any, known: Mapping[str, Any]) -> Any:
    if not isinstance(value, str) or value not in known:
        raise UsageError(f"{option}={_shown(value)}: {', '.join(known)} are known here")
    return known[value]


def _whole(option: str, value: Any, most: int = 1 << 16) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise UsageError(f"{option}={_shown(value)}: a whole number from 1 to {most} is needed")
    return value


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) < 60 else text[:57] + "..."
