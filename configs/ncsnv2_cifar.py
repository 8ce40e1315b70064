"""NCSNv2 on CIFAR-10 with the hyper-parameters of Song & Ermon 2020 (their figures: FID 10.87, Inception score 8.40).

    scoregen train ncsnv2_cifar --data=DIR

DIR is the folder of cifar-10-batches-bin or its archive; if it has neither, the data are downloaded into it. The
network is the paper's unconditional RefineNet: 29,694,083 parameters, 19.8 GFLOP per image forward (a multiplication
and an addition are two). A sample takes 1,161 evaluations: 1,160 as in the paper, and one to denoise. This preset is
for an accelerator; on a laptop, a short test is --batch=8 --steps=20 --config.sampler.n=10. From the paper, each with
the option that turns it off: data in [0, 1], flipped (--config.data.flip=false) and not dequantized
(--config.scaling.unit.dequantize=true); the network sees 2x - 1 (--config.net.centered=false) and gives the score as
its output divided by sigma (the network of --config.net.name=unet --config.target=eps instead gets sigma and gives
-sigma times the score); 232 levels from sigma 50, about the largest distance in the data, and the Langevin step size
(`scoregen design ncsnv2_cifar` computes both from the data); sampling starts at U[0, 1), although sigma is 50
there (--config.process.ncsn.start=normal), and ends with a denoising step (--config.sampler.denoise=false), and then
pictures are clipped to [0, 1] and rounded to bytes; the average of the parameters starts without a ramp
(--config.train.ema.decay.ramp=true); no clip of the gradient, no warm-up. Not from the paper: only `scoregen eval`
computes distances, in the features of a small classifier.
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
