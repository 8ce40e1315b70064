"""NCSN on CIFAR-10 with the hyper-parameters of Song & Ermon 2019 (their figures: FID 25.32, Inception score 8.87).

    python -m scoregen.run --config=ncsn_cifar --config.data.dir=DIR
    python -m scoregen.run --config=ncsn_cifar --config.data.dir=DIR --config.loss.name=ssm

DIR holds cifar-10-batches-bin or its archive, or gets it. This is for an accelerator; on a laptop it shows that all
is well with --config.train.steps=20 --config.sampler.corrector.langevin.steps=5. What is the paper's, and the switch
that turns it off: data in [0, 1], dequantized (--config.scaling.unit.dequantize=false); the network sees 2x - 1
(--config.net.centered=false) and gives the score itself (--config.target=eps); sampling starts at U[0, 1)
(--config.process.ncsn.start=normal) and ends without a denoising step (--config.sampler.denoise); no average of the
parameters (--config.train.ema.name=decay), no clip of the gradient, no warm-up. Not the paper's: the network. Where the
paper has its RefineNet of 128 filters, this is the U-Net of `ddpm_cifar` at half its width, without dropout, told the
index (--config.net.unet.channels=128 for the whole); and the gradient is added up over parts of 64 images.
"""

from scoregen.config import load


def get_config():
    config = load("ddpm_cifar")
    config.data.flip = False
    config.scaling.name = "unit"
    config.process.name = "ncsn"
    config.process.ncsn.start = "uniform"
    config.target = "score"
    config.loss.name = "dsm"
    config.net.unet.channels = 64
    config.net.unet.dropout = 0.0
    config.train.steps = 200_000
    config.train.learning_rate = 1e-3
    config.train.warmup = 0
    config.train.clip = 0.0
    config.train.ema.name = "none"
    config.sampler.predictor.name = "hold"
    config.sampler.corrector.name = "langevin"
    config.sampler.denoise = False
    return config
