"""What is refused says why and what to do instead, that instead is allowed, and what is allowed works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoregen.denoiser import TARGETS, denoiser
from scoregen.losses import (
    DSM,
    FDSSM,
    ISM,
    LOSSES,
    SSM,
    VLB,
    WEIGHTINGS,
    X0MSE,
    EpsilonMSE,
    FlowMatching,
    Hybrid,
    Weighted,
)
from scoregen.process import EDM, PROCESSES, VE, VP, CosineVP, Flow, cosine, ddpm, ncsn, perturb
from scoregen.rules import refusal
from scoregen.times import TIMES

LEARNED, EDM_WEIGHT = VLB(None, variance="learned"), WEIGHTINGS["edm"]()

# What is refused, words that its reason has, and what they lead to.
REFUSED = {
    "velocity-of-a-chain": (
        (ddpm(), "velocity", DSM()),
        {},
        ["the velocity", "vp for ddpm"],
        (VP(), "velocity", DSM()),
    ),
    "or-v": ((cosine(), "velocity", X0MSE()), {}, ["the velocity", "or the target v"], (cosine(), "v", X0MSE())),
    "flow-of-a-chain": ((ncsn(), "v", FlowMatching()), {}, ["'flow'", "ve for ncsn"], (VE(), "v", FlowMatching())),
    "weighted-flow": (
        (cosine(), "v", Weighted(FlowMatching(), WEIGHTINGS["p2"]())),
        {},
        ["'flow'", "vp_cosine for cosine"],
        (CosineVP(), "v", Weighted(FlowMatching(), WEIGHTINGS["p2"]())),
    ),
    "edm-target": ((EDM(data_std=0.0), "edm", X0MSE()), {}, ["process.NAME.data_std="], (EDM(), "edm", X0MSE())),
    "edm-weight": (
        (VE(data_std=0.0), "x0", Weighted(X0MSE(), EDM_WEIGHT)),
        {},
        ["--config.process.NAME.data_std="],
        (VE(), "x0", Weighted(X0MSE(), EDM_WEIGHT)),
    ),
    "eps-at-the-end-of-flow": ((Flow(), "eps", DSM()), {}, ["alpha = 0", "the noise", "v, edm"], (Flow(), "v", DSM())),
    "score-too": ((Flow(), "score", DSM()), {}, ["alpha = 0", "the score", "or x0"], (Flow(), "x0", DSM())),
    "but-not-before": ((Flow(), "eps", DSM()), {}, ["alpha = 0"], (Flow(t_max=0.999), "eps", DSM())),
    "ism-in-many": (
        (ddpm(), "eps", ISM()),
        {"dims": 3072},
        ["3072 dimensions", "take the loss ssm", "--config.loss.ism.max_dims"],
        (ddpm(), "eps", SSM()),
    ),
    "or-more": ((ddpm(), "eps", ISM()), {"dims": 300}, ["ism.max_dims"], (ddpm(), "eps", ISM(300))),
    "large-variance": ((VP(), "eps", VLB(None, variance="large")), {}, ["ddpm for vp"], (VP(), "eps", VLB(None))),
    "learned-variance": (
        (CosineVP(), "eps", DSM()),
        {"learned_variance": True},
        ["cosine for vp_cosine"],
        (cosine(), "eps", Hybrid(None)),
    ),
    "hybrid-in-time": (
        (VE(), "eps", Hybrid(None)),
        {"learned_variance": True},
        ["ncsn for ve"],
        (ncsn(), "eps", Hybrid(None)),
    ),
    "bound-of-a-uniform-start": (
        (ncsn(start="uniform"), "score", VLB(None)),
        {},
        ["'vlb'", "infinitely far", "--config.process.ncsn.start=normal"],
        (ncsn(start="normal"), "score", VLB(None)),
    ),
    "hybrid-of-a-uniform-start": (
        (ncsn(start="uniform"), "score", Hybrid(None)),
        {"learned_variance": True},
        ["'hybrid'", "--config.process.ncsn.start=normal"],
        (ncsn(start="normal"), "score", Hybrid(None)),
    ),
    "weighted-bound": (
        (ddpm(), "eps", Weighted(VLB(None), WEIGHTINGS["constant"]())),
        {},
        ["'vlb'", "another loss, or the weighting own"],
        (ddpm(), "eps", Weighted(DSM(), WEIGHTINGS["constant"]())),
    ),
}

# The same for options, which are mended by another.
OPTIONS = {
    "hybrid": (Hybrid(None), {}, ["'hybrid'", "--config.learned_variance=true"], {"learned_variance": True}),
    "vlb-learned": (LEARNED, {}, ["'vlb'", "--config.learned_variance=true"], {"learned_variance": True}),
    "nothing-trains-it": (DSM(), {"learned_variance": True}, ["the loss hybrid", "vlb.variance=learned"], {}),
    "nor-does-vlb": (VLB(None), {"learned_variance": True}, ["--config.loss.vlb.variance=learned"], {}),
    "times": (VLB(None), {"times": TIMES["lognormal"]()}, ["own, logsnr or second_moment"], {"times": TIMES["own"]()}),
    "times-of-hybrid": (
        Hybrid(None),
        {"learned_variance": True, "times": TIMES["logitnormal"]()},
        ["'hybrid'", "own, logsnr or second_moment"],
        {"learned_variance": True, "times": TIMES["second_moment"]()},
    ),
    "half-precision": (
        FDSSM(),
        {"dtype": "bfloat16", "net": "dit"},
        ["'fdssm'", "loss ssm", "--config.net.dit.dtype=float32"],
        {"dtype": "float32"},
    ),
    "and-weighted": (
        Weighted(FDSSM(), EDM_WEIGHT),
        {"dtype": "bfloat16"},
        ["'fdssm'", "bfloat16 rounds away"],
        {"dtype": "float32"},
    ),
    "variance-of-ssm": (SSM(), {"log_variance": True}, ["may be negative", "eps, x0, flow or dsm"], {}),
    "variance-of-vlb": (VLB(None), {"log_variance": True}, ["may be negative"], {"times": TIMES["logsnr"]()}),
}


def is_refused(reason, parts):
    assert reason is not None and "\n" not in reason and len(reason) < 300
    for part in parts:
        assert part in reason


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_and_what_to_do_instead(case):
    refused, options, parts, instead = REFUSED[case]
    is_refused(refusal(*refused, **options), parts)
    learned = isinstance(instead[2], Hybrid)
    assert refusal(*instead, learned_variance=learned, dims=options.get("dims", 1)) is None


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_are_refused_and_what_mends_them(case):
    loss, options, parts, mended = OPTIONS[case]
    is_refused(refusal(ddpm(), "eps", loss, **options), parts)
    assert refusal(ddpm(), "eps", loss, **mended) is None


def test_a_learned_variance_of_the_loss_is_for_what_is_positive():
    """Which a loss says of itself, and a weighting does not change."""
    for loss in (EpsilonMSE(), DSM(), X0MSE(), Weighted(DSM(), EDM_WEIGHT)):
        assert refusal(ddpm(), "eps", loss, log_variance=True) is None
    for loss in (ISM(), SSM(), Weighted(SSM(), EDM_WEIGHT)):
        assert refusal(ddpm(), "eps", loss, log_variance=True) is not None


@pytest.mark.parametrize("times", TIMES)
def test_every_law_of_times_is_for_losses_that_are_no_bound(times):
    assert refusal(ddpm(), "eps", DSM(), times=TIMES[times]()) is None


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PROCESSES)
def test_what_is_allowed_works(name, target):
    """Of all processes x targets x losses: the loss is finite from end to end, or there is a reason."""
    process = PROCESSES[name]()
    t = process.grid(min(4, process.levels))
    noised = perturb(process, jax.random.key(0), jnp.array([[0.3, -0.2], [0.9, 0.1], [-0.5, 0.4], [0.2, 0.8]]), t)
    for loss_name, make in LOSSES.items():
        loss = make(bins=None) if loss_name in ("vlb", "hybrid") else make()
        heads = 2 if loss_name == "hybrid" else 1
        reason = refusal(process, target, loss, learned_variance=heads == 2, dims=2)
        if reason is not None:
            assert "\n" not in reason
            continue
        predict = denoiser(
            process, TARGETS[target], lambda x, t, n=heads: jnp.concatenate([jnp.tanh(x)] * n, 1), heads == 2
        )
        value = loss(process, predict, noised, jax.random.key(1))
        assert np.isfinite(value).all(), (loss_name, value)
