"""Score-based and diffusion generative models in JAX, from one perturbation kernel.

    import scoregen as sg

    model = sg.Model(sg.ddpm(), sg.nets.MLP())
    state = sg.fit(model, sg.data.mixture(), sg.Objective(sg.EpsilonMSE()), optax.adam(2e-3), steps=2000)
    x0 = sg.Sampler(sg.Ancestral(), n=100)(model.denoiser(state.ema), jax.random.key(1), (2000, 2))

The names below are imported when they are first used, so that `import scoregen` itself takes no time. Each package has
a table of its parts by name, such as `scoregen.losses.LOSSES`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from scoregen import data, guidance, losses, metrics, nets, process, samplers, testing, times, train
    from scoregen.app.api import Run, load
    from scoregen.cond import Cond
    from scoregen.denoiser import Denoiser, Prediction, as_energy, from_energy, from_network
    from scoregen.errors import Refusal, UsageError
    from scoregen.guidance import (
        ClassifierFree,
        Clip,
        DynamicThreshold,
        Grey,
        Linear,
        Matrix,
        Pixels,
        Posterior,
        Replace,
    )
    from scoregen.likelihood import Bound, LogLikelihood, ProbabilityFlow
    from scoregen.losses import (
        DSM,
        FDSSM,
        ISM,
        P2,
        SSM,
        VLB,
        X0MSE,
        Constant,
        EDMWeight,
        EpsilonMSE,
        FlowMatching,
        Hybrid,
        Likelihood,
        Loss,
        MinSNR,
        Objective,
        Sigma2,
        Sigmoid,
        Weighting,
    )
    from scoregen.process import (
        EDM,
        VE,
        VP,
        Chain,
        Continuous,
        CosineVP,
        Flow,
        Noised,
        Process,
        SubVP,
        betas,
        cosine,
        ddpm,
        drift_diffusion,
        ncsn,
        perturb,
        posterior,
        sigmas,
    )
    from scoregen.samplers import (
        MALA,
        Adaptive,
        Ancestral,
        Consistent,
        Corrector,
        DPMSolver,
        EDMHeun,
        Euler,
        EulerMaruyama,
        EvenLogSNR,
        EvenTime,
        Grid,
        Heun,
        Hold,
        Karras,
        Langevin,
        Listed,
        OwnGrid,
        Power,
        ReverseDiffusion,
        Sampler,
        SNRLangevin,
        Step,
        UniPC,
        decode,
        encode,
        interpolate,
    )
    from scoregen.times import LogitNormal, LogNormal, Own, SecondMoment, TimeLaw, Uniform, UniformLogSNR
    from scoregen.train import Model, State, fit, init_state, make_eval, make_optimizer, make_step
    from scoregen.train.ema import Decay, HalfLife

_PACKAGES = ("data", "guidance", "losses", "metrics", "nets", "process", "samplers", "testing", "times", "train")
_NAMES = {
    "scoregen.app.api": "Run load",
    "scoregen.cond": "Cond",
    "scoregen.denoiser": "Denoiser Prediction as_energy from_energy from_network",
    "scoregen.errors": "Refusal UsageError",
    "scoregen.guidance": "ClassifierFree Clip DynamicThreshold Grey Linear Matrix Pixels Posterior Replace",
    "scoregen.likelihood": "Bound LogLikelihood ProbabilityFlow",
    "scoregen.losses": (
        "DSM FDSSM ISM P2 SSM VLB X0MSE Constant EDMWeight EpsilonMSE FlowMatching Hybrid Likelihood Loss "
        "MinSNR Objective Sigma2 Sigmoid Weighting"
    ),
    "scoregen.process": (
        "EDM VE VP Chain Continuous CosineVP Flow Noised Process SubVP betas cosine ddpm drift_diffusion ncsn "
        "perturb posterior sigmas"
    ),
    "scoregen.samplers": (
        "MALA Adaptive Ancestral Consistent Corrector DPMSolver EDMHeun Euler EulerMaruyama EvenLogSNR "
        "EvenTime Grid Heun Hold Karras Langevin Listed OwnGrid Power ReverseDiffusion SNRLangevin Sampler "
        "Step UniPC decode encode interpolate"
    ),
    "scoregen.times": "LogNormal LogitNormal Own SecondMoment TimeLaw Uniform UniformLogSNR",
    "scoregen.train": "Model State fit init_state make_eval make_optimizer make_step",
    "scoregen.train.ema": "Decay HalfLife",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "DSM",
    "EDM",
    "FDSSM",
    "ISM",
    "MALA",
    "P2",
    "SSM",
    "VE",
    "VLB",
    "VP",
    "X0MSE",
    "Adaptive",
    "Ancestral",
    "Bound",
    "Chain",
    "ClassifierFree",
    "Clip",
    "Cond",
    "Consistent",
    "Constant",
    "Continuous",
    "Corrector",
    "CosineVP",
    "DPMSolver",
    "Decay",
    "Denoiser",
    "DynamicThreshold",
    "EDMHeun",
    "EDMWeight",
    "EpsilonMSE",
    "Euler",
    "EulerMaruyama",
    "EvenLogSNR",
    "EvenTime",
    "Flow",
    "FlowMatching",
    "Grey",
    "Grid",
    "HalfLife",
    "Heun",
    "Hold",
    "Hybrid",
    "Karras",
    "Langevin",
    "Likelihood",
    "Linear",
    "Listed",
    "LogLikelihood",
    "LogNormal",
    "LogitNormal",
    "Loss",
    "Matrix",
    "MinSNR",
    "Model",
    "Noised",
    "Objective",
    "Own",
    "OwnGrid",
    "Pixels",
    "Posterior",
    "Power",
    "Prediction",
    "ProbabilityFlow",
    "Process",
    "Refusal",
    "Replace",
    "ReverseDiffusion",
    "Run",
    "SNRLangevin",
    "Sampler",
    "SecondMoment",
    "Sigma2",
    "Sigmoid",
    "State",
    "Step",
    "SubVP",
    "TimeLaw",
    "UniPC",
    "Uniform",
    "UniformLogSNR",
    "UsageError",
    "Weighting",
    "__version__",
    "as_energy",
    "betas",
    "cosine",
    "data",
    "ddpm",
    "decode",
    "drift_diffusion",
    "encode",
    "fit",
    "from_energy",
    "from_network",
    "guidance",
    "init_state",
    "interpolate",
    "load",
    "losses",
    "make_eval",
    "make_optimizer",
    "make_step",
    "metrics",
    "ncsn",
    "nets",
    "perturb",
    "posterior",
    "process",
    "samplers",
    "sigmas",
    "testing",
    "times",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("scoregen")
    elif name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")  # the import sets the attribute
    elif name in _MODULE_OF:
        found = getattr(importlib.import_module(_MODULE_OF[name]), name)
    else:
        raise AttributeError(_unknown(name))
    globals()[name] = found
    return found


def _unknown(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, __all__, n=1)
    return f"module {__name__!r} has no attribute {name!r}" + (f": did you mean {near[0]!r}?" if near else "")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
