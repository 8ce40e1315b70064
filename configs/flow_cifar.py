"""Flow matching on CIFAR-10 along straight paths, Lipman et al. 2023 (their figures: FID 6.35, 2.99 bits/dim).

    scoregen train flow_cifar --data=DIR
    scoregen sample runs/flow_cifar --config.sampler.step.name=euler --config.sampler.n=50

A trained run samples as in the paper, with an adaptive solver (142 network evaluations, as they report). The second
command uses Euler's method with 50 evaluations. Heun's method takes two per step: --config.sampler.step.name=heun
--config.sampler.n=26 gives 51. DIR is the folder of cifar-10-batches-bin or its archive; if it has neither, the data
are downloaded into it. The network has 171,268,099 parameters and takes 56.1 GFLOP per image forward (a multiplication
and an addition are two). This preset is for an accelerator; on a laptop, a short test is --steps=20
--config.net.unet.channels=32 --config.net.unet.head_channels=32, and --config.net.unet.remat=true saves memory. From
the paper (appendix E), each with the option that turns it off: ADM's U-Net of 256 channels with 2 blocks per level,
attention at 16 pixels with 64 channels per head, and no dropout (--config.net.unet.channels=128,
--config.net.unet.head_channels=0, --config.net.unet.dropout=0.1); the network gives the velocity, and the loss is its
error (--config.target=v, --config.loss.name=x0); 391,000 steps of 256 images at 5e-4, with a warm-up of 45,000; a
tolerance of 1e-5 (--config.sampler.step.ode.rtol=1e-3, --config.sampler.step.ode.atol=1e-3); no clip of the gradient.
Different from the paper, or not stated there: no flip (--config.data.flip=true); their path keeps a little noise
sigma_min at the data, but here t ends at 1e-3 (--config.process.flow.t_min=1e-5); after the warm-up the learning rate
is constant, but theirs falls to zero; an average of the parameters (--config.train.ema.name=none); blocks that
resample, and scale and shift by the time, as in ADM (--config.net.unet.resample=conv,
--config.net.unet.scale_shift=false); the network gets the time as 1000 t (--config.net.condition=index, 999 t); the
initial values, which are PyTorch's in their code; the gradient is added up over parts of 64 images
(--config.train.microbatch=0 for all 256 at once); only `scoregen eval` computes distances, in the features of a small
classifier.
"""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_cifar")
    config.data.flip = False
    config.process.name = "flow"
    config.net.condition = "rescaled"
    config.target = "velocity"
    config.loss.name = "flow"
    config.net.unet.channels = 256
    config.net.unet.head_channels = 64
    config.net.unet.scale_shift = True
    config.net.unet.resample = "block"
    config.net.unet.form = "adm"
    config.net.unet.dropout = 0.0
    config.train.steps = 391_000
    config.train.batch = 256
    config.train.learning_rate = 5e-4
    config.schedule.constant.warmup = 45_000
    config.train.clip = 0.0
    config.sampler.step.name = "ode"
    config.sampler.n = 2
    config.sampler.x0.name = "free"
    return config
