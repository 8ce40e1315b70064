"""Which combinations of process, target and objective make no sense, and why: one reason a line, for a person.

What is refused here is refused when a run is configured, and is a cell with a reason in the conformance matrix.
"""

from __future__ import annotations

import jax.numpy as jnp

from scoregen.denoiser import TARGETS, velocity_row
from scoregen.losses import FDSSM, ISM, VLB, WEIGHTINGS, FlowMatching, Hybrid, Loss, Weighted
from scoregen.process import Process
from scoregen.times import TimeLaw


def refusal(
    process: Process,
    target: str,
    loss: Loss | Weighted,
    *,
    learned_variance: bool = False,
    log_variance: bool = False,
    times: TimeLaw | None = None,
    dims: int = 1,
    dtype: str = "float32",
) -> str | None:
    """Why a network that gives `target` cannot be trained so, or None if it can.

    Args:
        process: the process.
        target: a name in `TARGETS`.
        loss: the objective, with its weighting if it has another than its own.
        learned_variance: whether the network also gives the variance of a step.
        log_variance: whether the loss of each noise level is scaled by a learned variance.
        times: the time law, if it is not the process's own.
        dims: how many dimensions an example has.
        dtype: of the network's arithmetic; the U-Net alone has the choice.

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
    if process.data_std == 0 and (target == "edm" or isinstance(weighting, WEIGHTINGS["edm"])):
        return "edm's preconditioning and weighting divide by the data's standard deviation: set the process's data_std"
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
            "take the loss ssm, or --config.net.unet.dtype=float32"
        )
    return _of_the_bound(process, bare, weighting is not None, learned_variance, log_variance, times)


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
