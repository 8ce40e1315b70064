"""EDM on CIFAR-10, with the hyper-parameters of Karras et al. 2022 (their figures: FID 1.97, and 1.79 with classes).

    scoregen train edm_cifar --data=DIR
    scoregen train edm_cifar --data=DIR --config.labels=true

DIR is the folder of cifar-10-batches-bin or its archive; if it has neither, the data are downloaded into it. This
preset is for an accelerator: 55,733,891 parameters, 55,735,299 with classes, 42.38 GFLOP per image and evaluation, 35
evaluations per sample. The network is DDPM++ with 256 channels at all levels. From the paper, each with the option that
turns it off: images are augmented, also by mirroring, and the network gets the parameters of the augmentation
(--config.data.augment=0; --config.data.flip=true then still mirrors); the class, if there is one, is never dropped
(--config.label_dropout=0.1, which guidance needs); c_noise = ln(sigma) / 4 (--config.net.condition=sigma); the gradient
is not clipped (--config.train.clip=1); the learning rate rises over 10 million images
(--config.schedule.constant.warmup=0). The average of the parameters has a half-life of half a million images, but at
most a twentieth of the images seen (--config.train.ema.name=decay). Not from the paper: training noise is clipped to
the noise range of the sampling; sampling starts at N(0, sigma_max^2 + data_std^2), theirs at N(0, sigma_max^2); a
gradient that is not finite stops the run, but theirs counts as 0; the gradient is added up over parts of 128 images, to
save memory (--config.train.microbatch=0 for all 512 at once); only `scoregen eval` computes distances, in the features
of a small classifier.
"""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_cifar")
    config.data.flip = False
    config.data.augment = 0.12
    config.process.name = "edm"
    config.target = "edm"
    config.loss.name = "x0"
    config.weighting.name = "edm"
    config.label_dropout = 0.0
    config.net.name = "ncsnpp"
    config.net.condition = "edm"
    config.net.unit_input = True
    config.net.ncsnpp.update(multipliers=(2, 2, 2), dropout=0.13)
    config.net.ncsnpp.update(filter=(1, 1), progressive="none", embedding="positional")
    config.train.steps = 200_000_000 // 512
    config.train.batch = 512
    config.train.microbatch = 128
    config.train.learning_rate = 1e-3
    config.schedule.constant.warmup = 10_000_000 // 512
    config.train.clip = 0.0
    config.train.ema.name = "halflife"  # of half a million images, after a ramp of 5 %
    config.sampler.x0.name = "free"
    config.sampler.step.name = "edm"
    config.sampler.n = 18
    return config
