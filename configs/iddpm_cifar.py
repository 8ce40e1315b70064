"""Improved DDPM on CIFAR-10, L_hybrid of Nichol & Dhariwal 2021 (their figures: FID 3.19, 3.17 bits/dim).

    scoregen train iddpm_cifar --data=DIR
    scoregen train iddpm_cifar --data=DIR --config.loss.name=vlb \
        --config.loss.vlb.variance=learned --config.times.name=second_moment

The second command trains with L_vlb (their figures: FID 11.47, 2.94 bits/dim). Only for this loss they draw times by
importance sampling. DIR is the folder of cifar-10-batches-bin or its archive; if it has neither, the data are
downloaded into it. The network has 52,546,438 parameters and takes 16.8 GFLOP per image forward (a multiplication and
an addition are two). This preset is for an accelerator; on a laptop, a short test is --steps=20 --config.sampler.n=50,
and --config.net.unet.remat=true saves memory. From the paper, each with the option that turns it off: 4000 levels of
the cosine schedule (--config.process.cosine.steps=1000); the network also gives the variance of a step
(--config.learned_variance=false --config.loss.name=eps --config.sampler.step.ancestral.variance=small); 4 heads, scale
and shift by the time, and details as in their code (--config.net.unet.attention_heads=1,
--config.net.unet.scale_shift=false, --config.net.unet.form=ddpm); the network gets the index rescaled to 1000 levels
(--config.net.condition=index); dropout 0.3 (--config.net.unet.dropout=0.1); x0 is clipped in sampling
(--config.sampler.x0.name=free); 500,000 steps, no warm-up, no clip of the gradient, no flip, no dequantization; the
average of the parameters starts without a ramp (--config.train.ema.decay.ramp=true). Their AdamW has no weight decay,
so it is Adam. Sampling with fewer steps, as in the paper: --config.sampler.n=100. Not from the paper: the initial
values, which are PyTorch's in their code; the gradient is added up over parts of 64 images (--config.train.microbatch=0
for all 128 at once); only `scoregen eval` computes distances, in the features of a small classifier.
"""

from scoregen.app.config import load


def get_config():
    config = load("ddpm_cifar")
    config.data.flip = False
    config.process.name = "cosine"
    config.process.cosine.steps = 4000
    config.learned_variance = True
    config.loss.name = "hybrid"
    config.net.condition = "rescaled"
    config.net.unet.blocks = 3
    config.net.unet.attention = (16, 8)
    config.net.unet.attention_heads = 4
    config.net.unet.scale_shift = True
    config.net.unet.form = "adm"
    config.net.unet.dropout = 0.3
    config.train.steps = 500_000
    config.train.learning_rate = 1e-4
    config.schedule.constant.warmup = 0
    config.train.clip = 0.0
    config.sampler.step.ancestral.variance = "learned"
    return config
