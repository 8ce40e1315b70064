"""NCSN on CIFAR-10 with the hyper-parameters of Song & Ermon 2019 (their figures: FID 25.32, Inception score 8.87).

    scoregen train ncsn_cifar --data=DIR
    scoregen train ncsn_cifar --data=DIR --config.loss.name=ssm

DIR is the folder of cifar-10-batches-bin or its archive; if it has neither, the data are downloaded into it. The
network is the paper's RefineNet: 30,117,635 parameters, 19.8 GFLOP per image forward (a multiplication and an addition
are two). A sample takes 1,000 evaluations. This preset is for an accelerator with about 16 GiB for the activations of
the batch, or half of it with --config.train.microbatch=64; on a laptop, a short test is --batch=8 --steps=20
--config.sampler.corrector.langevin.steps=5. From the paper, each with the option that turns it off: data in [0, 1],
dequantized (--config.scaling.unit.dequantize=false) and flipped (--config.data.flip=false); the network sees 2x - 1
(--config.net.centered=false), gets the index of the noise level and gives the score itself, without dividing by sigma
(--config.net.name=refinenet_v2 --config.net.condition=sigma divides by sigma); sampling starts at U[0, 1)
(--config.process.ncsn.start=normal) and ends without a denoising step (--config.sampler.denoise); no average of the
parameters (--config.train.ema.name=decay), no clip of the gradient, no warm-up. Not from the paper: their index 0 is
the noisiest level, but here it is the least noisy level; only `scoregen eval` computes distances, in the features of a
small classifier.
"""

from scoregen.app.config import load


def get_config():
    config = load("default")
    config.data.name = "cifar10"
    config.data.flip = True
    config.scaling.name = "unit"
    config.process.name = "ncsn"
    config.process.ncsn.start = "uniform"
    config.target = "score"
    config.loss.name = "dsm"
    config.net.name = "refinenet"
    config.train.steps = 200_000
    config.train.batch = 128
    config.train.learning_rate = 1e-3
    config.train.clip = 0.0
    config.train.ema.name = "none"
    config.train.log_every = 100
    config.train.sample_every = 10_000
    config.train.checkpoint_every = 10_000
    config.sampler.step.name = "hold"
    config.sampler.corrector.name = "langevin"
    config.sampler.denoise = False
    config.sampler.batch = 16
    config.sampler.images = 16
    config.eval.samples = 10_000
    config.eval.at_end = False
    return config
