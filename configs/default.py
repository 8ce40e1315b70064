"""Every option with its default; a preset is a difference from this.

    scoregen train ddpm_digits --steps=500 --config.loss.name=dsm

Options of a part (a loss, a sampler, a network ...) are the arguments of its constructor, under its name. They have an
effect if the part is chosen. `option`, `section` and `choice` declare when else an option has an effect (`when`), in
which commands (`modes`), and what it changes (`changes`): the trained network, unless something else is declared.
"""

import inspect

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from scoregen.app.config import Config, choice, option, section
from scoregen.data import SCALINGS, SOURCES
from scoregen.guidance import CONTROLS, X0S
from scoregen.likelihood import LIKELIHOODS
from scoregen.losses import LOSSES, WEIGHTINGS
from scoregen.nets import NETS
from scoregen.process import PROCESSES
from scoregen.samplers import CORRECTORS, GRIDS, STEPS
from scoregen.times import TIMES
from scoregen.train.ema import AVERAGES
from scoregen.train.optimizers import OPTIMIZERS, SCHEDULES

# The sources that read files.
ON_DISK = "|".join(name for name, source in SOURCES.items() if "dir" in inspect.signature(source).parameters)
SAMPLING = ("train", "sample", "eval", "trajectory")  # the commands that draw samples
DENOISING = (*SAMPLING, "likelihood")  # and those that use the denoiser that is sampled with
RESCALED = {"ddpm.rescale": ".ddpm.steps!=1000"}  # betas times 1000 / steps
# Where a step averages over the batch, a draw depends on those beside it.
AVERAGED = ("sampler.corrector.name=snr", "sampler.corrector.snr.batch_mean=true")
POSTERIOR = "dps|pigdm|moments"  # the methods of a control that have a likelihood


def get_config() -> Config:
    config: Config = ConfigDict()
    config.seed = 0  # 0 to 4294967295

    config.data = choice(SOURCES, "digits")
    # Where data on disk are, or go; "" is the cache folder. Fashion-MNIST is the same everywhere: it has checksums.
    config.data.dir = option(
        "", when=f"data.name={ON_DISK}", changes="training", also={"nothing": "data.name=fashion_mnist"}
    )
    config.data.flip = False  # mirror half of the training images
    config.data.augment = 0.0  # how often each is turned, scaled ..., with numbers for the network; 0: never
    config.scaling = choice(SCALINGS, "centered")

    config.process = choice(PROCESSES, "ddpm", when=RESCALED)
    config.times = choice(TIMES, "own")  # which noise levels training draws
    config.target = "eps"  # what the network gives: eps, x0, score, v, velocity, edm
    config.energy = False  # take the network's noise for that of an energy, whose gradient is then the score
    config.learned_variance = False  # and the variance of a step beside it, for the losses hybrid and vlb
    config.loss = choice(LOSSES, "eps", without=("bins", "width"))  # of a byte, which the scaling knows
    config.weighting = choice(WEIGHTINGS, "own")  # how much each noise level counts; own: as the loss has it
    config.log_variance = False  # scale the loss of each noise level by a variance that is learned

    config.labels = False  # give the network the class of each example
    # How often the class is dropped, so that the network also learns what any example looks like.
    config.label_dropout = option(0.1, when="labels=true")
    config.net = choice(
        NETS,
        "unet",
        without=("num_classes", "out_channels", "augment_dim"),
        when={"unet.attention_heads": ".unet.head_channels=0", "ncsnpp.fourier_scale": ".ncsnpp.embedding=fourier"},
    )
    config.net.condition = "index"  # its input for the noise level: index, rescaled, sigma, logsnr, edm
    config.net.centered = option(True, when="scaling.name=unit")  # show it data of [0, 1] as 2x - 1
    config.net.unit_input = False  # show it x with unit variance: EDM's c_in

    config.optimizer = choice(OPTIMIZERS, "adam")
    config.schedule = choice(SCHEDULES, "constant")  # of the learning rate
    config.train = section(modes=("train",))
    # A rate that decays to the last step makes another network of another number of steps.
    config.train.steps = option(1000, changes="training", also={"network": "schedule.name!=constant|inverse_sqrt"})
    config.train.batch = 128
    config.train.microbatch = option(0, changes="training")  # examples at a time, to save memory; 0: the whole batch
    config.train.learning_rate = 2e-4
    config.train.clip = 1.0  # global norm of the gradient; 0: do not clip
    config.train.accumulate = 1  # gradients that are averaged for each step of the optimizer
    config.train.ema = choice(AVERAGES, "decay")  # how the parameters are averaged, to sample with
    config.train.log_every = option(50, changes="nothing")
    config.train.sample_every = option(0, changes="nothing")  # steps between pictures while training; 0: none
    config.train.checkpoint_every = option(1000, changes="training")  # steps between checkpoints
    config.train.keep = option(3, changes="training")  # the newest checkpoints that are kept, beside the best

    config.sampler = section(modes=SAMPLING, changes="results")
    config.sampler.step = choice(
        STEPS,
        "ancestral",
        when={"ancestral.variance": ".ancestral.eta>0"}
        | {f"edm.{name}": ".edm.churn>0" for name in ("low", "high", "noise")},
    )
    config.sampler.corrector = choice(CORRECTORS, "none")
    config.sampler.grid = choice(GRIDS, "own")  # how the levels to walk are spaced
    # Whether the estimates of x0 are held in the range of the data.
    config.sampler.x0 = choice(X0S, "free", modes=DENOISING)
    # The class to draw, or of all examples; -1: each as often as in the data, or its own.
    config.sampler.label = option(-1, when=("labels=true", ".guidance!=0"), modes=DENOISING)
    # eps = eps of any class + guidance (eps of the class - eps of any): 1 is the conditional model, 0 is no class.
    config.sampler.guidance = option(1.0, when="labels=true", modes=DENOISING)
    config.sampler.control = choice(
        CONTROLS,
        "none",
        modes=("sample",),  # it completes held-out images
        when={f"{part}.std": f".{part}.method={POSTERIOR}" for part in ("inpaint", "colorize")}
        | {f"{part}.scale": f".{part}.method={POSTERIOR}" for part in ("inpaint", "colorize")}
        | {f"{part}.max_measured": f".{part}.method=moments" for part in ("inpaint", "colorize")},
    )
    # Sample under another process than the network was trained for (Denoiser.under).
    config.sampler.process = choice({"trained": lambda: None, **PROCESSES}, "trained", modes=DENOISING, when=RESCALED)
    config.sampler.n = option(0, when="sampler.grid.name!=list")  # levels to walk; 0: all of the chain's
    config.sampler.denoise = True  # end with the denoised mean
    # Take the checkpoint of the best held-out loss, not the newest.
    config.sampler.best = option(False, modes=("sample", "eval", "trajectory", "likelihood"))
    config.sampler.seed = option(placeholder(int))  # of the draws; None: config.seed
    config.sampler.batch = option(  # examples at a time
        256, modes=("train", "sample", "eval"), changes="nothing", also={"results": AVERAGED}
    )
    config.sampler.images = 64  # in the grid, and of `scoregen sample`

    config.eval = section(changes="results")
    # Samples that the distances are computed from; 0: as many as there are training examples, 1000 at most.
    config.eval.samples = option(0, modes=("train", "eval"), when="train:eval.at_end=true")
    config.eval.at_end = option(True, modes=("train",))  # compute them at the end of training too
    # What `scoregen likelihood` computes: both, ode, bound.
    config.eval.likelihood = choice(LIKELIHOODS, "both", without=("bins", "width"), modes=("likelihood",))
    config.eval.likelihood.examples = 64  # held-out ones, or all that there are
    config.eval.likelihood.batch = option(64, changes="nothing")  # examples at a time
    return config
