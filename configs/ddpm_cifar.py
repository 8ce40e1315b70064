"""DDPM on CIFAR-10 with the hyper-parameters of Ho et al. 2020 (their figure: FID 3.17 after 800,000 steps).

    scoregen train ddpm_cifar --data=DIR

DIR is the folder of cifar-10-batches-bin or its archive; if it has neither, the data are downloaded into it. The
network has 35,746,307 parameters and takes 12.4 GFLOP per image forward (a multiplication and an addition are two).
This preset is for an accelerator; on a laptop, a short test is --steps=20 --config.sampler.n=50. From the paper, each
with the option that turns it off: the loss is a mean over dimensions (--config.loss.eps.reduce=sum); x0 is clipped in
sampling and the variance is beta, "fixedlarge" (--config.sampler.x0.name=free,
--config.sampler.step.ancestral.variance=small); the average of the parameters starts without a ramp
(--config.train.ema.decay.ramp=true); no dequantization. Not from the paper: the gradient is added up over parts of 64
images, to save memory (--config.train.microbatch=0 for all 128 at once); only `scoregen eval` computes distances, in
the features of a small classifier.
"""

from scoregen.app.config import load


def get_config():
    config = load("default")
    config.data.name = "cifar10"
    config.data.flip = True
    config.train.steps = 800_000
    config.train.batch = 128
    config.train.microbatch = 64
    config.train.learning_rate = 2e-4
    config.schedule.constant.warmup = 5000
    config.train.clip = 1.0
    config.train.ema.decay.rate = 0.9999
    config.train.ema.decay.ramp = False
    config.train.log_every = 100
    config.train.sample_every = 10_000
    config.train.checkpoint_every = 10_000
    config.sampler.x0.name = "clip"
    config.sampler.step.ancestral.variance = "large"
    config.sampler.batch = 16
    config.sampler.images = 16
    config.eval.samples = 10_000
    config.eval.at_end = False
    return config
