"""NCSNv2 on CIFAR-10 with the hyper-parameters of Song & Ermon 2020 (their figures: FID 10.87, Inception score 8.40).

    scoregen train ncsnv2_cifar --data=DIR

DIR holds cifar-10-batches-bin or its archive, or gets it. The network is the paper's RefineNet without conditions:
29,694,083 parameters, 19.8 GFLOP an image forward (a product and a sum are two), and a sample takes 1,161 evaluations,
the paper's 1,160 and one to denoise. This is for an accelerator; on a laptop it shows that all is well with --batch=8
--steps=20 --config.sampler.n=10. From the paper, each with the switch that turns it off: data in [0, 1], flipped
(--config.data.flip=false) and not dequantized (--config.scaling.unit.dequantize=true); the network sees 2x - 1
(--config.net.centered=false) and gives the score as its output over sigma (--config.net.name=unet --config.target=eps
gets sigma, and gives -sigma times the score); 232 levels from sigma 50, about the largest distance in the data, and the
steps between them (`scoregen design --config=ncsnv2_cifar` computes both anew); sampling starts at U[0, 1), although
sigma is 50 there (--config.process.ncsn.start=normal), and ends with a denoising step (--config.sampler.denoise=false),
after which pictures are cut to [0, 1] and rounded to bytes; the average of the parameters starts without a ramp
(--config.train.ema.decay.ramp=true); no clip of the gradient, no warm-up. Not from the paper: distances are computed by
`scoregen eval` only, in the features of a small classifier.
"""

from scoregen.app.config import load


def get_config():
    config = load("ncsn_cifar")
    config.scaling.unit.dequantize = False
    config.process.ncsn.sigma_max = 50.0
    config.process.ncsn.levels = 232
    config.net.name = "refinenet_v2"
    config.net.condition = "sigma"
    config.train.steps = 300_000
    config.train.learning_rate = 1e-4
    config.train.ema.name = "decay"
    config.train.ema.decay.rate = 0.999
    config.train.ema.decay.ramp = False
    config.sampler.corrector.langevin.step_size = 6.2e-6
    config.sampler.corrector.langevin.steps = 5
    config.sampler.denoise = True
    return config
