"""Which combinations of process, target and objective make no sense, and why: one reason a line, for a person.

What is refused here is refused when a run is configured, and is a cell with a reason in the conformance matrix.
"""

from __future__ import annotations

import jax.numpy as jnp

from scoregen.denoiser import TARGETS, velocity_row
from scoregen.losses import FDSSM, ISM, VLB, WEIGHTINGS, FlowMatching, Hybrid, Loss, Weighted
from scoregen.process import Process
from scoregen.samplers import (
    MALA,
    PREDICTORS,
    Corrector,
    Euler,
    EulerMaruyama,
    Heun,
    Hold,
    NoCorrector,
    Predictor,
    UniPC,
)
from scoregen.times import TimeLaw


def refusal(
    process: Process,
    target: str,
    loss: Loss | Weighted,
    *,
    learned_variance: bool = False,
    log_variance: bool = False,
    energy: bool = False,
    times: TimeLaw | None = None,
    dims: int = 1,
    dtype: str = "float32",
    name: str = "NAME",
    net: str = "NAME",
) -> str | None:
    """Why a network that gives `target` cannot be trained so, or None if it can.

    Args:
        process: the process.
        target: a name in `TARGETS`.
        loss: the objective, with its weighting if it has another than its own.
        learned_variance: whether the network also gives the variance of a step.
        log_variance: whether the loss of each noise level is scaled by a learned variance.
        energy: whether the score is the gradient of an energy that the network gives.
        times: the time law, if it is not the process's own.
        dims: how many dimensions an example has.
        dtype: of the network's arithmetic.
        name, net: what the configuration calls the process and the network.

    >>> from scoregen.losses import DSM
    >>> from scoregen.process import Flow, ddpm
    >>> refusal(ddpm(), "eps", DSM())
    >>> print(refusal(Flow(), "eps", DSM()))
    at its noisiest level this process has alpha = 0, so x is all noise and the clean data cannot be ...
    """
    bare, weighting = (loss.loss, loss.by) if isinstance(loss, Weighted) else (loss, None)
    row = TARGETS[target]
    twin = "take its continuous twin (vp for ddpm, vp_cosine for cosine, ve for ncsn)"
    if process.discrete and row is velocity_row:
        return f"the velocity is a derivative in time, and a chain has levels instead: {twin}, or the target v"
    if process.discrete and isinstance(bare, FlowMatching):
        return f"the loss 'flow' is of a derivative in time, and a chain has levels instead: {twin}, or the loss x0"
    if energy and learned_variance:
        return "an energy has no variance of a step to learn beside it: take learned_variance=false, or energy=false"
    if energy and float(process.alpha(process.grid(1))[0]) == 0:
        return (
            "at its noisiest level this process has alpha = 0, where x0 cannot be had from the gradient of an energy: "
            "say --config.energy=false, or let the process begin a little below (--config.process.flow.t_max=0.999)"
        )
    if process.data_std == 0 and (target == "edm" or isinstance(weighting, WEIGHTINGS["edm"])):
        return (
            "edm's preconditioning and weighting divide by the data's standard deviation, and it is 0 here: say what "
            f"it is, such as --config.process.{name}.data_std=0.5"
        )
    top = process.grid(1)
    a, b = row(process, top)
    if float(jnp.abs(process.alpha(top) * b - a * process.sigma(top))[0]) == 0:
        return (
            "at its noisiest level this process has alpha = 0, so x is all noise and the clean data cannot be computed "
            f"from {'the noise' if target == 'eps' else 'the score'} in it: take the target velocity, v, edm or x0"
        )
    if weighting is not None and float(bare.weight(process, top)[0]) == 0:
        return (
            "at its noisiest level this process has alpha = 0, where this loss has no weight at all that another could "
            "take the place of: take the loss x0 or flow, or the weighting own"
        )
    if isinstance(bare, ISM) and dims > bare.max_dims:
        return (
            f"the loss 'ism' takes one derivative for each of the data's {dims} dimensions, so a step would cost about "
            f"{dims} times as much: take the loss ssm, smaller images, or a larger --config.loss.ism.max_dims"
        )
    if isinstance(bare, FDSSM) and dtype == "bfloat16":
        return (
            "the loss 'fdssm' takes the difference of two outputs that are nearly equal, which bfloat16 rounds away: "
            f"take the loss ssm, or --config.net.{net}.dtype=float32"
        )
    return _of_the_bound(process, bare, weighting is not None, learned_variance, log_variance, times)


def unsuited(process: Process, predictor: Predictor, corrector: Corrector, *, density: bool = False) -> str | None:
    """Why a network cannot be sampled so, or None if it can.

    Args:
        process: the one that is walked.
        predictor, corrector: the moves.
        density: whether the denoiser knows its density.

    >>> from scoregen.process import ddpm
    >>> from scoregen.samplers import Heun, NoCorrector
    >>> print(unsuited(ddpm(), Heun(), NoCorrector()))
    the steps of the predictor 'heun' are in time, and a chain has levels instead: take --config.sampler.predictor...
    """
    if process.discrete and isinstance(predictor, Euler | EulerMaruyama | Heun):
        name = next(name for name, kind in PREDICTORS.items() if kind is type(predictor))
        return (
            f"the steps of the predictor '{name}' are in time, and a chain has levels instead: take "
            "--config.sampler.predictor.name=ancestral with ancestral.eta=0, reverse_diffusion with noise=false, edm, "
            "dpm or unipc"
        )
    if isinstance(predictor, EulerMaruyama) and float(process.alpha(process.grid(1))[0]) == 0:
        return (
            "at its noisiest level this process has alpha = 0, where the drift of its SDE is infinite: take the "
            "predictor ancestral, or let the process begin a little below (--config.process.flow.t_max=0.999)"
        )
    if isinstance(predictor, Hold) and isinstance(corrector, NoCorrector):
        return (
            "the predictor 'hold' moves nothing by itself: add --config.sampler.corrector.name=langevin, or take "
            "--config.sampler.predictor.name=ancestral"
        )
    if isinstance(predictor, UniPC) and not isinstance(corrector, NoCorrector):
        return (
            "the predictor 'unipc' goes back to where it was before it corrects itself, and what another corrector did "
            "would be lost: say --config.sampler.corrector.name=none, or take the predictor dpm"
        )
    if isinstance(corrector, MALA) and not density:
        return (
            "the corrector 'mala' accepts or refuses a move by the density, and this network gives the score alone: "
            "train with --config.energy=true, or take the corrector langevin"
        )
    return None


def unlikely(process: Process) -> str | None:
    """Why nothing sampled under `process` has a likelihood, by the ODE or by the bound, or None if it has.

    >>> from scoregen.process import ncsn
    >>> unlikely(ncsn())
    >>> print(unlikely(ncsn(start="uniform")))
    sampling starts from a uniform law, outside of which nothing has a likelihood, and x at the noisiest level ...
    """
    if getattr(process, "start", "normal") == "uniform":
        return (
            "sampling starts from a uniform law, outside of which nothing has a likelihood, and x at the noisiest "
            "level is nearly always outside: evaluate it from a normal start, without training again, by "
            "--config.sampler.process.name=ncsn with the options of config.process.ncsn below "
            "--config.sampler.process.ncsn, but start=normal"
        )
    return None


def _of_the_bound(
    process: Process, loss: Loss, weighted: bool, learned_variance: bool, log_variance: bool, times: TimeLaw | None
) -> str | None:
    bound = isinstance(loss, VLB | Hybrid)
    steps = isinstance(loss, Hybrid) or (isinstance(loss, VLB) and loss.variance != "small")
    learns = isinstance(loss, Hybrid) or (isinstance(loss, VLB) and loss.variance == "learned")
    name = "hybrid" if isinstance(loss, Hybrid) else "vlb"
    if (steps or learned_variance) and not process.discrete:
        return (
            "the variance of a step can be chosen, or learned, only where steps have a length: in continuous time "
            "the two ends meet. Take a chain: ddpm for vp, cosine for vp_cosine, ncsn for ve"
        )
    if learns and not learned_variance:
        return (
            f"the loss '{name}' trains the variance of a step, and the network gives none: say "
            "--config.learned_variance=true"
        )
    if learned_variance and not learns:
        return (
            "nothing would train the variance that the network gives: take the loss hybrid, or vlb with "
            "--config.loss.vlb.variance=learned"
        )
    if bound and getattr(process, "start", "normal") == "uniform":
        return (
            f"the loss '{name}' measures how far the noisiest level is from where sampling starts, and from a uniform "
            "start that is infinitely far: say --config.process.ncsn.start=normal"
        )
    if bound and weighted:
        return f"the weights of the loss '{name}' are what makes it a bound: take another loss, or the weighting own"
    if bound and times is not None and not times.importance:
        return (
            f"the loss '{name}' is an average over the process's own times: take the times own, logsnr or second_moment"
        )
    if log_variance and not loss.positive:
        return (
            "a loss that may be negative has no variance to learn: it would be made smaller without end. Take the loss "
            "eps, x0, flow or dsm"
        )
    return None
