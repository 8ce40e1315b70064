"""NCSN++ under the VE SDE on CIFAR-10, with the hyper-parameters of Song et al. 2021 (their figure: FID 2.38).

    scoregen train ncsnpp_ve_cifar --data=DIR
    scoregen train ncsnpp_ve_cifar --data=DIR --config.net.ncsnpp.blocks=8 \
        --steps=950000

DIR holds cifar-10-batches-bin or its archive, or gets it. This is for an accelerator. 62,758,915 parameters and 21.75
GFLOP per image and evaluation, 2000 evaluations a sample; the second, "deep", has 107,587,075 (FID 2.20). From the
paper, each with the switch that turns it off: data in [0, 1] without dequantization
(--config.scaling.unit.dequantize=true); the network sees 2x - 1 (--config.net.centered=false); the length of a Langevin
step comes from norms that are averaged over the batch, so that draws depend on it
(--config.sampler.corrector.snr.batch_mean=false); the average of the parameters starts without a ramp
(--config.train.ema.decay.ramp=true); sampling starts at N(0, sigma_max^2 + data_std^2), the variance that x has there,
where theirs is sigma_max^2 (data_std is --config.process.ve.data_std). The paper's network is divided by sigma and
gives the score, which is -eps / sigma: what is divided is here the network, with the sign of its last layer turned, and
gives eps. Not from the paper: pictures are rounded to bytes, which its code cuts off; the gradient is added up over
parts of 64 images, to save memory (--config.train.microbatch=0 for all 128 at once), and distances are computed by
`scoregen eval` only, in the features of a small classifier.
"""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_cifar")
    config.scaling.name = "unit"
    config.scaling.unit.dequantize = False
    config.process.name = "ve"
    config.loss.name = "dsm"
    config.net.name = "ncsnpp"
    config.net.condition = "sigma"
    config.train.steps = 1_300_000
    config.train.ema.decay.rate = 0.999
    config.sampler.x0.name = "free"
    config.sampler.step.name = "reverse_diffusion"
    config.sampler.corrector.name = "snr"
    config.sampler.corrector.snr.batch_mean = True
    return config
