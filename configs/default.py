"""Every option with its default; a preset is a difference from this.

    python -m scoregen.run --config=ddpm_digits --config.train.steps=500 --config.loss.name=dsm

Options of a part (a loss, a sampler, a network ...) are the arguments of its constructor, under its name.
"""

from ml_collections import ConfigDict

from scoregen.averages import AVERAGES
from scoregen.config import Config, choice
from scoregen.data import SCALINGS, SOURCES
from scoregen.guidance import CONTROLS, X0S
from scoregen.likelihood import LIKELIHOODS
from scoregen.losses import LOSSES, WEIGHTINGS
from scoregen.nets import NETS
from scoregen.process import PROCESSES
from scoregen.samplers import CORRECTORS, GRIDS, PREDICTORS
from scoregen.times import TIMES


def get_config() -> Config:
    config: Config = ConfigDict()
    config.seed = 0

    config.data = choice(SOURCES, "digits")
    config.data.dir = ""  # where data on disk are, or go; "" is the cache folder
    config.data.flip = False  # mirror half of the training images
    config.data.augment = 0.0  # how often each is turned, scaled ..., of which the network is told; 0: never
    config.scaling = choice(SCALINGS, "centered")

    config.process = choice(PROCESSES, "ddpm")
    config.times = choice(TIMES, "own")  # which noise levels training draws
    config.target = "eps"  # what the network gives: eps, x0, score, v, velocity, edm
    config.energy = False  # take the network's noise for that of an energy, whose gradient is then the score
    config.learned_variance = False  # and the variance of a step beside it, for the losses hybrid and vlb
    config.loss = choice(LOSSES, "eps", without=("width",))  # of a byte, which the scaling knows
    config.weighting = choice(WEIGHTINGS, "own")  # how much each noise level counts; own: as the loss has it
    config.log_variance = False  # scale the loss of each noise level by a variance that is learned

    config.labels = False  # tell the network the class of each example
    config.label_dropout = 0.1  # how often it is not told, so that it also learns what any example looks like
    config.net = choice(NETS, "unet")
    config.net.condition = "index"  # what tells it the noise level: index, rescaled, sigma, logsnr, edm
    config.net.centered = True  # show it data of [0, 1] as 2x - 1
    config.net.unit_input = False  # show it x with unit variance: EDM's c_in

    config.train = ConfigDict()
    config.train.steps = 1000
    config.train.batch = 128
    config.train.microbatch = 0  # examples at a time, to save memory; 0: the whole batch
    config.train.learning_rate = 2e-4  # of Adam
    config.train.warmup = 0  # steps of linear warm-up from 0
    config.train.decay_from = 0  # the step from which the rate falls as 1 / sqrt(step); 0: it stays
    config.train.clip = 1.0  # global norm of the gradient; 0: do not clip
    config.train.ema = choice(AVERAGES, "decay")  # how the parameters are averaged, to sample with
    config.train.log_every = 50
    config.train.sample_every = 0  # steps between pictures while training; 0: none
    config.train.checkpoint_every = 1000  # steps between checkpoints, each with a held-out loss
    config.train.keep = 3  # the newest checkpoints that are kept, beside the best

    config.sampler = ConfigDict()
    config.sampler.predictor = choice(PREDICTORS, "ancestral")
    config.sampler.corrector = choice(CORRECTORS, "none")
    config.sampler.grid = choice(GRIDS, "own")  # how the levels to walk are spaced
    config.sampler.x0 = choice(X0S, "free")  # whether the estimates of x0 are held in the range of the data
    config.sampler.label = -1  # the class to draw; -1: each as often as in the data
    # eps = eps of any class + guidance (eps of the class - eps of any): 1 is the conditional model, 0 is no class.
    config.sampler.guidance = 1.0
    config.sampler.control = choice(CONTROLS, "none")  # of --mode=sample: complete held-out images
    # Sample under another process than the network was trained for (scoregen.denoiser.as_process).
    config.sampler.process = choice({"trained": lambda: None, **PROCESSES}, "trained")
    config.sampler.n = 0  # levels to walk; 0: all of the chain's
    config.sampler.denoise = True  # end with the denoised mean
    config.sampler.best = False  # sample and eval take the checkpoint of the best held-out loss, not the newest
    config.sampler.batch = 256  # examples at a time
    config.sampler.images = 64  # in the grid, and of --mode=sample

    config.eval = ConfigDict()
    config.eval.samples = 1000  # that the distances are computed from
    config.eval.at_end = True  # compute them at the end of training, not only by --mode=eval
    # What --mode=likelihood computes: both, ode, bound.
    config.eval.likelihood = choice(LIKELIHOODS, "both", without=("width",))
    config.eval.likelihood.examples = 64  # held-out ones, or all that there are
    config.eval.likelihood.batch = 64  # examples at a time
    return config
