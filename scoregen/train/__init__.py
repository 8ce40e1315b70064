"""Training: the model, the training step and loop, optimizers, averages, checkpoints, devices, logs.

Names are imported at their first use. Only `Checkpoints` imports orbax, which takes most of a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoregen.train.checkpoint import Checkpoints
    from scoregen.train.ema import AVERAGES, Average, Decay, HalfLife, NoAverage, Power
    from scoregen.train.log import Bar, MetricsLog
    from scoregen.train.loggers import LOGGERS, JsonLines, LoggedRun, Logger, TensorBoard, Trackio, WandB
    from scoregen.train.loop import check_scale, fit
    from scoregen.train.model import Model
    from scoregen.train.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer
    from scoregen.train.state import State, abstract_state, init_state, refusals, restore_average
    from scoregen.train.step import TrainStep, check_even, check_shapes, make_eval, make_step

_MODULES = {
    "checkpoint": ("Checkpoints",),
    "ema": ("AVERAGES", "Average", "Decay", "HalfLife", "NoAverage", "Power"),
    "log": ("Bar", "MetricsLog"),
    "loggers": ("LOGGERS", "JsonLines", "LoggedRun", "Logger", "TensorBoard", "Trackio", "WandB"),
    "loop": ("check_scale", "fit"),
    "model": ("Model",),
    "optimizers": ("OPTIMIZERS", "SCHEDULES", "make_optimizer"),
    "state": ("State", "abstract_state", "init_state", "refusals", "restore_average"),
    "step": ("TrainStep", "check_even", "check_shapes", "make_eval", "make_step"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AVERAGES",
    "LOGGERS",
    "OPTIMIZERS",
    "SCHEDULES",
    "Average",
    "Bar",
    "Checkpoints",
    "Decay",
    "HalfLife",
    "JsonLines",
    "LoggedRun",
    "Logger",
    "MetricsLog",
    "Model",
    "NoAverage",
    "Power",
    "State",
    "TensorBoard",
    "Trackio",
    "TrainStep",
    "WandB",
    "abstract_state",
    "check_even",
    "check_scale",
    "check_shapes",
    "fit",
    "init_state",
    "make_eval",
    "make_optimizer",
    "make_step",
    "refusals",
    "restore_average",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
