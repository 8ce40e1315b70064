"""NCSN++ under the VE SDE on CIFAR-10, with the hyper-parameters of Song et al. 2021 (their figure: FID 2.38).

    scoregen train ncsnpp_ve_cifar --data=DIR
    scoregen train ncsnpp_ve_cifar --data=DIR --config.net.ncsnpp.blocks=8 \
        --steps=950000

DIR is the folder of cifar-10-batches-bin or its archive; if it has neither, the data are downloaded into it. This
preset is for an accelerator: 62,758,915 parameters, 21.75 GFLOP per image and evaluation, 2000 evaluations per sample.
The second command trains the "deep" network with 107,587,075 parameters (FID 2.20). From the paper, each with the
option that turns it off: data in [0, 1] without dequantization (--config.scaling.unit.dequantize=true); the network
sees 2x - 1 (--config.net.centered=false); the size of a Langevin step comes from norms averaged over the batch, so
samples depend on their batch (--config.sampler.corrector.snr.batch_mean=false); the average of the parameters starts
without a ramp (--config.train.ema.decay.ramp=true); sampling starts at N(0, sigma_max^2 + data_std^2), the true
variance of x there, but theirs starts at N(0, sigma_max^2) (data_std is --config.process.ve.data_std). The paper
divides the network's output by sigma to get the score, -eps / sigma. Here the network gives eps itself, so its last
layer has the opposite sign. Not from the paper: pictures are rounded to bytes, but their code truncates; the gradient
is added up over parts of 64 images, to save memory (--config.train.microbatch=0 for all 128 at once); only `scoregen
eval` computes distances, in the features of a small classifier.
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
