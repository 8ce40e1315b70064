"""Noise levels in configurations: reads the present levels, and writes the preset with the designed levels."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoregen.app.config import Config
from scoregen.contrib.design.techniques import Levels

# For the network of NCSN v1: use the network of v2, which divides by sigma itself, with the start and average of v2.
_REFINENET: dict[str, Any] = {
    "net.name": "refinenet_v2",
    "target": "score",
    "process.ncsn.start": "uniform",
    "train.ema.decay.ramp": False,
}


def settings(found: Levels, net: str) -> dict[str, Any]:
    """The options, by their dotted keys, that turn a configuration into NCSN v2 with these levels.

    They include technique 3 (the network gives -sigma times the score, so its output is divided by sigma; the paper's
    network divides by sigma itself) and technique 5 (an average of the parameters). `net` is the network's name.

    >>> settings(Levels(0.01, 50.0, 232, 6.2e-6, 5), "unet")["process.ncsn.levels"]
    232
    """
    return {
        "process.name": "ncsn",
        "process.ncsn.sigma_min": found.sigma_min,
        "process.ncsn.sigma_max": found.sigma_max,
        "process.ncsn.levels": found.levels,
        "process.ncsn.start": "normal",
        "target": "eps",
        "learned_variance": False,
        "loss.name": "dsm",
        "net.condition": "sigma",
        "train.ema.name": "decay",
        "train.ema.decay.rate": 0.999,
        "sampler.process.name": "trained",
        "sampler.step.name": "hold",
        "sampler.corrector.name": "langevin",
        "sampler.corrector.langevin.step_size": found.step_size,
        "sampler.corrector.langevin.steps": found.steps,
        "sampler.n": 0,
        "sampler.denoise": True,
    } | (_REFINENET if net in ("refinenet", "refinenet_v2") else {})


def with_settings(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of a configuration with other values under these dotted keys, locked.

    >>> from scoregen.app.config import load
    >>> with_settings(load("ncsn_toy"), {"process.ncsn.levels": 7}).process.ncsn.levels
    7
    """
    fresh = config.copy_and_resolve_references()
    fresh.update_from_flattened_dict(dict(values))
    return fresh.lock()


def present(config: Config) -> Levels | None:
    """The present levels of a configuration, or None if its process is not NCSN's.

    The Langevin steps are None unless the sampler is annealed Langevin dynamics on all levels.

    >>> from scoregen.app.config import load
    >>> present(load("ncsn_cifar"))
    Levels(sigma_min=0.01, sigma_max=1.0, levels=10, step_size=2e-05, steps=100)
    >>> present(load("ddpm_toy"))
    """
    ncsn, sampler, langevin = config.process.ncsn, config.sampler, config.sampler.corrector.langevin
    if config.process.name != "ncsn" or ncsn.levels < 2 or not 0 < ncsn.sigma_min < ncsn.sigma_max:
        return None
    names = (sampler.process.name, sampler.step.name, sampler.corrector.name)
    walked = names == ("trained", "hold", "langevin") and sampler.n == 0
    step, steps = langevin.step_size, langevin.steps
    if not (walked and step > 0 and steps >= 1):
        step = steps = None
    return Levels(ncsn.sigma_min, ncsn.sigma_max, ncsn.levels, step, steps)


def preset_text(base: str, path: Path, what: str, values: Mapping[str, Any]) -> str:
    """The source of a preset: it loads `base` and sets the options in `values`."""
    lines = [f"    config.{key} = {_source(value)}" for key, value in values.items()]
    return "\n".join(
        [
            f'r"""{Path(base).stem} at the noise levels that Song & Ermon 2020 choose for its data.',
            "",
            f"    scoregen train --config={shlex.quote(str(path))}",
            "",
            f"Written by `scoregen design` for {what}.",
            '"""',
            "",
            "from scoregen.app.config import load",
            "",
            "",
            "def get_config():",
            f"    config = load({_source(base)})",
            *lines,
            "    return config",
            "",
        ]
    )


def _source(value: Any) -> str:
    """A value as Python source, with the quotes that the other presets have."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
