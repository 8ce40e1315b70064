"""DDPM++ under the VP SDE on CIFAR-10, with the hyper-parameters of Song et al. 2021 (FID 2.55, 3.16 bits/dim).

    scoregen train ddpmpp_vp_cifar --data=DIR
    scoregen train ddpmpp_vp_cifar --data=DIR --config.net.ncsnpp.blocks=8 \
        --steps=950000
    scoregen likelihood runs/ddpmpp_vp_cifar --config.sampler.process.name=trained

DIR is the folder of cifar-10-batches-bin or its archive; if it has neither, the data are downloaded into it. This
preset is for an accelerator: 61,804,419 parameters, 21.69 GFLOP per image and evaluation, 1000 evaluations per sample.
The second command trains the "deep" network with 106,632,579 parameters (FID 2.41, 3.13 bits/dim). From the paper, each
with the option that turns it off: the loss is a mean over dimensions (--config.loss.eps.reduce=sum); training uses
times from 1e-5, but sampling ends at 1e-3 (--config.sampler.process.name=trained uses 1e-5 for both, as the likelihood
needs); the average of the parameters starts without a ramp (--config.train.ema.decay.ramp=true); no dequantization. The
network gets 999 t. Not from the paper: the last step gives E[x0 | x], but theirs is a step of the SDE without its
noise; pictures are rounded to bytes, but their code truncates; the gradient is added up over parts of 64 images, to
save memory (--config.train.microbatch=0 for all 128 at once); only `scoregen eval` computes distances, in the features
of a small classifier.
"""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_cifar")
    config.process.name = "vp"
    config.process.vp.t_min = 1e-5
    config.net.name = "ncsnpp"
    config.net.ncsnpp.update(filter=(1, 1), progressive="none", embedding="positional")
    config.train.steps = 1_300_000
    config.sampler.x0.name = "free"
    config.sampler.process.name = "vp"
    config.sampler.step.name = "euler_maruyama"
    return config
