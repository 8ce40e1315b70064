"""Each refusal gives a reason and fixes, the fixes are accepted, and every accepted combination works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from scoregen.app import config as config_lib
from scoregen.app.config import load
from scoregen.app.refusals import SECTIONS, Refusals, in_flags
from scoregen.denoiser import TARGETS, from_network
from scoregen.errors import Refusal, UsageError
from scoregen.losses import (
    DSM,
    FDSSM,
    ISM,
    LOSSES,
    SSM,
    VLB,
    WEIGHTINGS,
    X0MSE,
    EDMWeight,
    EpsilonMSE,
    FlowMatching,
    Hybrid,
    Objective,
)
from scoregen.nets import MLP, DiT, RefineNet
from scoregen.process import EDM, PROCESSES, VE, VP, CosineVP, Flow, cosine, ddpm, ncsn, perturb
from scoregen.samplers import MALA, Adaptive, Ancestral, EulerMaruyama, Heun, Hold, Langevin, OwnGrid, Sampler, UniPC
from scoregen.times import TIMES
from scoregen.train import Model, refusals

VARIANCE = VLB(None, variance="learned")


def reasons(process, target, loss, *, dims=1, times=None, net=None, weighting=None, **options) -> list[Refusal]:
    """The reasons why this model cannot be trained with this loss."""
    model = Model(process, net or MLP(), target, **options)
    return refusals(model, Objective(loss, weighting, times or TIMES["own"]()), dims)


# Refused arguments of `reasons`, parts of the reasons and fixes, and arguments that are accepted.
REFUSED = {
    "velocity-of-a-chain": (
        ((ddpm(), "velocity", DSM()), {}),
        ["derivative in time", "process=vp"],
        ((VP(), "velocity", DSM()), {}),
    ),
    "or-v": (((cosine(), "velocity", X0MSE()), {}), ["derivative in time", "target=v"], ((cosine(), "v", X0MSE()), {})),
    "flow-of-a-chain": (
        ((ncsn(), "v", FlowMatching()), {}),
        ["derivative in time", "process=ve"],
        ((VE(), "v", FlowMatching()), {}),
    ),
    "weighted-flow": (
        ((cosine(), "v", FlowMatching()), {"weighting": WEIGHTINGS["p2"]()}),
        ["derivative in time", "process=vp"],
        ((CosineVP(), "v", FlowMatching()), {"weighting": WEIGHTINGS["p2"]()}),
    ),
    "edm-target": (((EDM(data_std=0.0), "edm", X0MSE()), {}), ["process.data_std="], ((EDM(), "edm", X0MSE()), {})),
    "edm-weight": (
        ((VE(data_std=0.0), "x0", X0MSE()), {"weighting": EDMWeight()}),
        ["process.data_std="],
        ((VE(), "x0", X0MSE()), {"weighting": EDMWeight()}),
    ),
    "eps-at-the-end-of-flow": (
        ((Flow(), "eps", DSM()), {}),
        ["alpha = 0", "target=v", "target=edm"],
        ((Flow(), "v", DSM()), {}),
    ),
    "score-too": (((Flow(), "score", DSM()), {}), ["alpha = 0", "target=x0"], ((Flow(), "x0", DSM()), {})),
    "but-not-before": (((Flow(), "eps", DSM()), {}), ["alpha = 0"], ((Flow(t_max=0.999), "eps", DSM()), {})),
    "no-weight-there": (
        ((Flow(), "v", EpsilonMSE()), {"weighting": WEIGHTINGS["p2"]()}),
        ["weighting=own", "loss=x0"],
        ((Flow(), "v", X0MSE()), {"weighting": WEIGHTINGS["p2"]()}),
    ),
    "ism-in-many": (
        ((ddpm(), "eps", ISM()), {"dims": 3072}),
        ["3072", "loss=ssm", "loss.max_dims=3072"],
        ((ddpm(), "eps", SSM()), {"dims": 3072}),
    ),
    "or-more": (
        ((ddpm(), "eps", ISM()), {"dims": 300}),
        ["loss.max_dims=300"],
        ((ddpm(), "eps", ISM(300)), {"dims": 300}),
    ),
    "large-variance": (
        ((VP(), "eps", VLB(None, variance="large")), {}),
        ["process=ddpm"],
        ((VP(), "eps", VLB(None)), {}),
    ),
    "learned-variance": (
        ((CosineVP(), "eps", DSM()), {"learned_variance": True}),
        ["process=cosine"],
        ((cosine(), "eps", Hybrid(None)), {"learned_variance": True}),
    ),
    "hybrid-in-time": (
        ((VE(), "eps", Hybrid(None)), {"learned_variance": True}),
        ["process=ncsn"],
        ((ncsn(), "eps", Hybrid(None)), {"learned_variance": True}),
    ),
    "bound-of-a-uniform-start": (
        ((ncsn(start="uniform"), "score", VLB(None)), {}),
        ["uniform", "process.start=normal"],
        ((ncsn(start="normal"), "score", VLB(None)), {}),
    ),
    "hybrid-of-a-uniform-start": (
        ((ncsn(start="uniform"), "score", Hybrid(None)), {"learned_variance": True}),
        ["uniform", "process.start=normal"],
        ((ncsn(start="normal"), "score", Hybrid(None)), {"learned_variance": True}),
    ),
    "weighted-bound": (
        ((ddpm(), "eps", VLB(None)), {"weighting": WEIGHTINGS["constant"]()}),
        ["weighting=own"],
        ((ddpm(), "eps", DSM()), {"weighting": WEIGHTINGS["constant"]()}),
    ),
    "hybrid": (
        ((ddpm(), "eps", Hybrid(None)), {}),
        ["Hybrid", "model.learned_variance=true"],
        ((ddpm(), "eps", Hybrid(None)), {"learned_variance": True}),
    ),
    "vlb-learned": (
        ((ddpm(), "eps", VARIANCE), {}),
        ["VLB", "model.learned_variance=true"],
        ((ddpm(), "eps", VARIANCE), {"learned_variance": True}),
    ),
    "nothing-trains-it": (
        ((ddpm(), "eps", DSM()), {"learned_variance": True}),
        ["loss=hybrid", "model.learned_variance=false"],
        ((ddpm(), "eps", Hybrid(None)), {"learned_variance": True}),
    ),
    "nor-does-vlb": (
        ((ddpm(), "eps", VLB(None)), {"learned_variance": True}),
        ["loss.variance=learned"],
        ((ddpm(), "eps", VARIANCE), {"learned_variance": True}),
    ),
    "half-precision": (
        ((ddpm(), "eps", FDSSM()), {"net": DiT(dtype="bfloat16")}),
        ["FDSSM", "loss=ssm", "net.dtype=float32"],
        ((ddpm(), "eps", FDSSM()), {"net": DiT(dtype="float32")}),
    ),
    "and-weighted": (
        ((ddpm(), "eps", FDSSM()), {"net": DiT(dtype="bfloat16"), "weighting": EDMWeight()}),
        ["FDSSM", "bfloat16 rounds away"],
        ((ddpm(), "eps", FDSSM()), {"net": DiT(dtype="float32"), "weighting": EDMWeight()}),
    ),
    "variance-of-ssm": (
        ((ddpm(), "eps", SSM()), {"log_variance": True}),
        ["may be negative", "loss=eps", "loss=dsm"],
        ((ddpm(), "eps", DSM()), {"log_variance": True}),
    ),
    "variance-of-vlb": (
        ((ddpm(), "eps", VLB(None)), {"log_variance": True}),
        ["may be negative"],
        ((ddpm(), "eps", VLB(None)), {"times": TIMES["logsnr"]()}),
    ),
    "energy-without-alpha": (
        ((Flow(), "v", X0MSE()), {"energy": True}),
        ["alpha = 0", "model.energy=false", "process.t_max=0.999"],
        ((Flow(t_max=0.999), "v", X0MSE()), {"energy": True}),
    ),
    "energy-with-a-variance": (
        ((ddpm(), "eps", Hybrid(None)), {"energy": True, "learned_variance": True}),
        ["energy", "model.learned_variance=false"],
        ((ddpm(), "eps", EpsilonMSE()), {"energy": True}),
    ),
    "levels": (
        ((VE(), "score", DSM()), {"net": RefineNet(levels=10), "condition": "index"}),
        ["no levels", "net=unet"],
        ((ncsn(), "score", DSM()), {"net": RefineNet(levels=10), "condition": "index"}),
    ),
}


def is_said(found, parts):
    lines = [str(refusal) for refusal in found]
    assert lines and all("\n" not in line and len(line) < 400 for line in lines)
    text = " | ".join(lines)
    for part in parts:
        assert part in text


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_why_and_its_fixes_are_accepted(case):
    (refused, options), parts, (instead, more) = REFUSED[case]
    is_said(reasons(*refused, **options), parts)
    assert reasons(*instead, **more) == []


def test_a_learned_variance_of_the_loss_is_for_losses_that_are_positive():
    """A loss declares whether it is positive, and a weighting does not change this."""
    for loss, weighting in ((EpsilonMSE(), None), (DSM(), None), (X0MSE(), None), (DSM(), EDMWeight())):
        assert not reasons(ddpm(), "eps", loss, weighting=weighting, log_variance=True)
    for loss, weighting in ((ISM(), None), (SSM(), None), (SSM(), EDMWeight())):
        assert reasons(ddpm(), "eps", loss, weighting=weighting, log_variance=True)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("loss", [DSM(), VLB(None)])
def test_every_law_of_times_is_for_every_loss(times, loss):
    """A loss that is by definition an average over time is multiplied by p_own / q, so no law changes its mean."""
    assert not reasons(ddpm(), "eps", loss, times=TIMES[times]())


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PROCESSES)
def test_whatever_is_accepted_works(name, target):
    """For all processes x targets x losses: the loss is finite from end to end, or the combination is refused."""
    process = PROCESSES[name]()
    t = OwnGrid()(process, 4)
    noised = perturb(process, jax.random.key(0), jnp.array([[0.3, -0.2], [0.9, 0.1], [-0.5, 0.4], [0.2, 0.8]]), t)
    for loss_name, make in LOSSES.items():
        loss = make(bins=None) if loss_name in ("vlb", "hybrid") else make()
        heads = 2 if loss.trains_variance else 1
        found = reasons(process, target, loss, learned_variance=heads == 2, dims=2)
        if found:
            is_said(found, [])
            continue
        denoiser = from_network(
            process, target, lambda x, t, n=heads: jnp.concatenate([jnp.tanh(x)] * n, 1), heads == 2
        )
        value = loss(denoiser, noised, jax.random.key(1))
        assert np.isfinite(value).all(), (loss_name, value)


# Refused samplers, parts of the reasons and fixes, and samplers that are accepted

SAMPLERS = {
    "heun-on-a-chain": ((Sampler(Heun()), ddpm(), {}), ["Heun", "step=ancestral"], (Sampler(Ancestral()), ddpm(), {})),
    "drift-without-alpha": (
        (Sampler(EulerMaruyama()), Flow(), {}),
        ["alpha = 0", "process.t_max=0.999"],
        (Sampler(EulerMaruyama()), Flow(t_max=0.999), {}),
    ),
    "hold-alone": (
        (Sampler(Hold()), ncsn(), {}),
        ["corrector=langevin", "step=ancestral"],
        (Sampler(Hold(), Langevin()), ncsn(), {}),
    ),
    "unipc-corrected": (
        (Sampler(UniPC(), Langevin()), ncsn(), {}),
        ["corrector=none", "step=dpm"],
        (Sampler(UniPC()), ncsn(), {}),
    ),
    "mala-without-a-density": (
        (Sampler(Ancestral(), MALA()), ncsn(), {}),
        ["model.energy=true", "corrector=langevin"],
        (Sampler(Ancestral(), MALA()), ncsn(), {"density": True}),
    ),
    "no-variance": (
        (Sampler(Ancestral(variance="learned")), ddpm(), {}),
        ["step.variance=small", "step.variance=large"],
        (Sampler(Ancestral(variance="learned")), ddpm(), {"variance": True}),
    ),
    "diverging-langevin": (
        (Sampler(Hold(), Langevin(step_size=1.0)), ncsn(), {}),
        ["diverge", "corrector.step_size=2e-05"],
        (Sampler(Hold(), Langevin(step_size=2e-5)), ncsn(), {}),
    ),
    "too-many-levels": (
        (Sampler(Ancestral(), n=1001), ddpm(), {}),
        ["n=1001", "1000", "sampler.n=0"],
        (Sampler(Ancestral()), ddpm(), {}),
    ),
    "adaptive-at-many-levels": ((Sampler(Adaptive()), VP(), {}), ["sampler.n=2"], (Sampler(Adaptive(), n=2), VP(), {})),
}


@pytest.mark.parametrize("case", SAMPLERS)
def test_a_sampler_says_why_and_its_fixes_are_accepted(case):
    (sampler, process, options), parts, (instead, other, more) = SAMPLERS[case]
    is_said(sampler.refuse(process, **options), parts)
    assert instead.refuse(other, **more) == []


# The flags of the fixes


def test_every_fix_names_an_option_of_the_command_line():
    """Checks all fixes of the cases above. An option that only one part has may be in any part of its section."""
    config = load("default")
    config.sampler.corrector.name = "langevin"
    found = [refusal for (refused, options), _, _ in REFUSED.values() for refusal in reasons(*refused, **options)]
    found += [r for (sampler, process, more), _, _ in SAMPLERS.values() for r in sampler.refuse(process, **more)]
    fixes = {fix for refusal in found for fix in refusal.fixes}
    assert len(fixes) > 25
    for fix in fixes:
        key = in_flags(fix, config).removeprefix("--config.").partition("=")[0]
        section, _, name = key.rpartition(".")
        if fix.startswith(("loss.", "process.", "net.")):
            parts = config_lib.get(config, section.rpartition(".")[0]).values()
            assert any(name in part for part in parts if isinstance(part, ConfigDict)) or name == "levels", fix
        else:
            config_lib.get(config, key)


@pytest.mark.parametrize(
    ("fix", "sections", "flag"),
    [
        ("target=v", {}, "--config.target=v"),
        ("process=vp", {}, "--config.process.name=vp"),
        ("process.t_max=0.999", {}, "--config.process.ddpm.t_max=0.999"),
        ("process.t_max=0.999", {"process": "sampler.process"}, "--config.sampler.process.flow.t_max=0.999"),
        ("loss.variance=learned", {}, "--config.loss.vlb.variance=learned"),
        ("loss.hybrid.scale=1", {}, "--config.loss.hybrid.scale=1"),
        ("model.energy=true", {}, "--config.energy=true"),
        ("model.condition=sigma", {}, "--config.net.condition=sigma"),
        ("model.unit_input=false", {}, "--config.net.unit_input=false"),
        ("step=ancestral, step.eta=0", {},
         "--config.sampler.step.name=ancestral, --config.sampler.step.ancestral.eta=0"),
        ("sampler.n=0", {}, "--config.sampler.n=0"),
        ("eval.at_end=false", {}, "--config.eval.at_end=false"),
        ("label_dropout=0", {}, "--config.label_dropout=0"),
        ("a larger data set", {}, "a larger data set"),
    ],
)  # fmt: skip
def test_fixes_become_flags_of_the_chosen_part(fix, sections, flag):
    config = load("default")
    config.loss.name, config.sampler.process.name = "vlb", "flow"
    assert in_flags(fix, config, SECTIONS | sections) == flag


def test_refusals_are_raised_together_each_on_its_line():
    refusals = Refusals(ConfigDict({"target": "eps"}))
    refusals.check()
    refusals.add(None)
    for _ in range(2):
        refusals.add(Refusal("no x0 follows", ("target=v",)))
    with refusals.collect("config.train."):
        raise UsageError("batch=3: four are needed", "steps=0: one is needed")
    with refusals.collect():
        raise ValueError("the first line\nand more")
    with pytest.raises(UsageError) as caught:
        refusals.check()
    assert caught.value.args == (
        "no x0 follows: say --config.target=v",
        "config.train.batch=3: four are needed",
        "config.train.steps=0: one is needed",
        "the first line",
    )
