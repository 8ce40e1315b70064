"""The CIFAR-10 presets have the numbers of their papers."""

import pytest

from scoregen.app.config import load, presets
from scoregen.process import EDM as EDMProcess
from scoregen.samplers import grids
from scoregen.times import OWN, LogNormal

ADAM = {
    "train.batch": 128,
    "train.clip": 1.0,
    "train.accumulate": 1,
    "train.learning_rate": 2e-4,
    "optimizer.name": "adam",
    "optimizer.adam.b1": 0.9,
    "optimizer.adam.b2": 0.999,
    "optimizer.adam.eps": 1e-8,
    "schedule.name": "constant",
    "schedule.constant.warmup": 5000,
}
AVERAGE = {"train.ema.name": "decay", "train.ema.decay.rate": 0.9999, "train.ema.decay.ramp": False}
PLAIN = {"times.name": "own", "weighting.name": "own", "log_variance": False, "energy": False, "labels": False}

# Ho et al. 2020, section 4 and appendix B.
DDPM = {
    "data.flip": True,
    "scaling.name": "centered",
    "process.name": "ddpm",
    "process.ddpm.steps": 1000,
    "process.ddpm.beta_min": 1e-4,
    "process.ddpm.beta_max": 0.02,
    "target": "eps",
    "loss.name": "eps",
    "loss.eps.reduce": "mean",
    "learned_variance": False,
    "net.name": "unet",
    "net.condition": "index",
    "net.unet.channels": 128,
    "net.unet.multipliers": (1, 2, 2, 2),
    "net.unet.blocks": 2,
    "net.unet.attention": (16,),
    "net.unet.dropout": 0.1,
    "net.unet.form": "ddpm",
    "net.unet.attention_heads": 1,
    "net.unet.head_channels": 0,
    "net.unet.scale_shift": False,
    "sampler.x0.name": "clip",
    "sampler.step.name": "ancestral",
    "sampler.step.ancestral.eta": 1.0,
    "sampler.step.ancestral.variance": "large",
    "sampler.corrector.name": "none",
    "sampler.n": 0,
    "sampler.process.name": "trained",
    "train.steps": 800_000,
} | (ADAM | AVERAGE | PLAIN)

# Nichol & Dhariwal 2021, sections 3 and 4, and the flags of their code for CIFAR-10.
IDDPM = DDPM | {
    "data.flip": False,
    "process.name": "cosine",
    "process.cosine.steps": 4000,
    "learned_variance": True,
    "loss.name": "hybrid",
    "net.condition": "rescaled",
    "net.unet.form": "adm",
    "net.unet.blocks": 3,
    "net.unet.attention": (16, 8),
    "net.unet.attention_heads": 4,
    "net.unet.scale_shift": True,
    "net.unet.dropout": 0.3,
    "train.steps": 500_000,
    "train.learning_rate": 1e-4,
    "schedule.constant.warmup": 0,
    "train.clip": 0.0,
    "sampler.step.ancestral.variance": "learned",
}

# Song & Ermon 2019, section 5 and appendix B.
NCSN = {
    "data.flip": True,
    "scaling.name": "unit",
    "scaling.unit.dequantize": True,
    "process.name": "ncsn",
    "process.ncsn.sigma_min": 0.01,
    "process.ncsn.sigma_max": 1.0,
    "process.ncsn.levels": 10,
    "process.ncsn.start": "uniform",
    "target": "score",
    "loss.name": "dsm",
    "net.name": "refinenet",
    "net.refinenet.channels": 128,
    "net.condition": "index",
    "net.centered": True,
    "train.steps": 200_000,
    "train.ema.name": "none",
    "learned_variance": False,
    "sampler.x0.name": "free",
    "sampler.step.name": "hold",
    "sampler.corrector.name": "langevin",
    "sampler.n": 0,
    "sampler.corrector.langevin.step_size": 2e-5,
    "sampler.corrector.langevin.steps": 100,
    "sampler.denoise": False,
    "sampler.process.name": "trained",
} | (ADAM | {"train.learning_rate": 1e-3, "train.clip": 0.0, "schedule.constant.warmup": 0} | PLAIN)

# Song & Ermon 2020, table 3 of its appendix, and algorithm 1.
NCSNV2 = NCSN | {
    "scaling.unit.dequantize": False,
    "process.ncsn.sigma_max": 50.0,
    "process.ncsn.levels": 232,
    "net.name": "refinenet_v2",
    "net.refinenet_v2.channels": 128,
    "net.condition": "sigma",
    "train.steps": 300_000,
    "train.learning_rate": 1e-4,
    **AVERAGE,
    "train.ema.decay.rate": 0.999,
    "sampler.corrector.langevin.step_size": 6.2e-6,
    "sampler.corrector.langevin.steps": 5,
    "sampler.denoise": True,
}

# Song et al. 2021, appendices C, D, G and H, and the configurations of their code.
SCORE_SDE = {
    "data.flip": True,
    "target": "eps",
    "learned_variance": False,
    "net.name": "ncsnpp",
    "net.centered": True,
    "net.unit_input": False,
    "net.ncsnpp.channels": 128,
    "net.ncsnpp.blocks": 4,
    "net.ncsnpp.multipliers": (1, 2, 2, 2),
    "net.ncsnpp.attention": (16,),
    "net.ncsnpp.dropout": 0.1,
    "train.steps": 1_300_000,
    "sampler.n": 0,
    "sampler.x0.name": "free",
    "sampler.denoise": True,
} | (ADAM | AVERAGE | PLAIN)
NCSNPP = SCORE_SDE | {
    "scaling.name": "unit",
    "scaling.unit.dequantize": False,
    "process.name": "ve",
    "loss.name": "dsm",
    "process.ve.sigma_min": 0.01,
    "process.ve.sigma_max": 50.0,
    "process.ve.t_min": 1e-5,
    "process.ve.t_max": 1.0,
    "net.condition": "sigma",
    "net.ncsnpp.filter": (1, 3, 3, 1),
    "net.ncsnpp.progressive": "residual",
    "net.ncsnpp.embedding": "fourier",
    "net.ncsnpp.fourier_scale": 16.0,
    "train.ema.decay.rate": 0.999,
    "sampler.process.name": "trained",
    "sampler.step.name": "reverse_diffusion",
    "sampler.corrector.name": "snr",
    "sampler.corrector.snr.snr": 0.16,
    "sampler.corrector.snr.steps": 1,
    "sampler.corrector.snr.batch_mean": True,
}
DDPMPP = SCORE_SDE | {
    "scaling.name": "centered",
    "process.name": "vp",
    "process.vp.beta_min": 0.1,
    "process.vp.beta_max": 20.0,
    "process.vp.t_min": 1e-5,
    "loss.name": "eps",
    "loss.eps.reduce": "mean",
    "net.condition": "index",
    "net.ncsnpp.filter": (1, 1),
    "net.ncsnpp.progressive": "none",
    "net.ncsnpp.embedding": "positional",
    "sampler.process.name": "vp",
    "sampler.process.vp.t_min": 1e-3,
    "sampler.step.name": "euler_maruyama",
    "sampler.corrector.name": "none",
}
SUBVP = DDPMPP | {
    "process.name": "subvp",
    "process.subvp.beta_min": 0.1,
    "process.subvp.beta_max": 20.0,
    "process.subvp.t_min": 1e-5,
    "sampler.process.name": "subvp",
    "sampler.process.subvp.t_min": 1e-3,
}

# Karras et al. 2022, table 1 and appendix F.
EDM = {
    "data.flip": False,
    "data.augment": 0.12,
    "scaling.name": "centered",
    "process.name": "edm",
    "target": "edm",
    "process.edm.data_std": 0.5,
    "process.edm.sigma_min": 0.002,
    "process.edm.sigma_max": 80.0,
    "loss.name": "x0",
    "net.condition": "edm",
    "net.name": "ncsnpp",
    "net.unit_input": True,
    "net.ncsnpp.channels": 128,
    "net.ncsnpp.blocks": 4,
    "net.ncsnpp.multipliers": (2, 2, 2),
    "net.ncsnpp.attention": (16,),
    "net.ncsnpp.dropout": 0.13,
    "net.ncsnpp.filter": (1, 1),
    "net.ncsnpp.progressive": "none",
    "net.ncsnpp.embedding": "positional",
    "train.ema.name": "halflife",
    "train.ema.halflife.images": 500_000,
    "train.ema.halflife.ramp": 0.05,
    "label_dropout": 0.0,
    "sampler.step.name": "edm",
    "sampler.step.edm.churn": 0.0,
    "sampler.n": 18,
    "sampler.corrector.name": "none",
    "sampler.x0.name": "free",
    "sampler.grid.name": "own",
    "train.batch": 512,
    "train.steps": 390_625,
    "schedule.constant.warmup": 19_531,
    "train.learning_rate": 1e-3,
    "train.clip": 0.0,
    "schedule.name": "constant",
    "optimizer.name": "adam",
    **PLAIN,
    "weighting.name": "edm",
}

# Lipman et al. 2023, table 3 of appendix E.
FLOW = {
    "scaling.name": "centered",
    "process.name": "flow",
    "target": "velocity",
    "loss.name": "flow",
    "net.name": "unet",
    "net.unet.channels": 256,
    "net.unet.multipliers": (1, 2, 2, 2),
    "net.unet.blocks": 2,
    "net.unet.attention": (16,),
    "net.unet.head_channels": 64,
    "net.unet.dropout": 0.0,
    "train.batch": 256,
    "train.steps": 391_000,
    "train.learning_rate": 5e-4,
    "schedule.constant.warmup": 45_000,
    "sampler.step.name": "ode",
    "sampler.step.ode.rtol": 1e-5,
    "sampler.step.ode.atol": 1e-5,
    **PLAIN,
}

PAPERS = {
    "ddpm_cifar": DDPM,
    "iddpm_cifar": IDDPM,
    "ncsn_cifar": NCSN,
    "ncsnv2_cifar": NCSNV2,
    "edm_cifar": EDM,
    "ncsnpp_ve_cifar": NCSNPP,
    "ddpmpp_vp_cifar": DDPMPP,
    "ddpmpp_subvp_cifar": SUBVP,
    "flow_cifar": FLOW,
}


def test_every_preset_of_a_paper_is_here():
    assert sorted(PAPERS) == [name for name in presets() if name.endswith("_cifar")]


@pytest.mark.parametrize("name", PAPERS)
def test_a_preset_has_its_paper_s_numbers(name):
    config = load(name)
    found = {key: config[key] for key in PAPERS[name]}
    assert found == PAPERS[name]
    assert {key: type(value) for key, value in found.items()} == {key: type(v) for key, v in PAPERS[name].items()}


def test_edm_s_own_law_and_grid_are_its_paper_s():
    """The preset chooses the law and the grid by the name `own`: ln sigma ~ N(-1.2, 1.2^2), and rho = 7."""
    assert OWN[EDMProcess] == LogNormal(-1.2, 1.2)
    assert grids.OWN[EDMProcess] == grids.Karras(7.0)
