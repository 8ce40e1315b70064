"""Every option with its default. A preset changes some of these values.

    scoregen train ddpm_digits --steps=500 --config.loss.name=dsm

The options of a part (a loss, a sampler, a network ...) are the arguments of its constructor, under its name. They have
an effect only if the part is chosen. `option`, `section` and `choice` declare further conditions (`when`), the commands
that use an option (`modes`), and its effect (`changes`). By default an option changes the trained network.
"""

import inspect

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from scoregen.app.config import Config, choice, option, section, switches
from scoregen.data import SCALINGS, SOURCES
from scoregen.guidance import CONTROLS, X0S
from scoregen.likelihood import LIKELIHOODS
from scoregen.losses import LOSSES, WEIGHTINGS
from scoregen.metrics import FEATURES
from scoregen.nets import NETS
from scoregen.process import PROCESSES
from scoregen.samplers import CORRECTORS, GRIDS, STEPS
from scoregen.times import TIMES
from scoregen.train.ema import AVERAGES
from scoregen.train.loggers import LOGGERS
from scoregen.train.optimizers import OPTIMIZERS, SCHEDULES

# The data sources that read files.
ON_DISK = "|".join(name for name, source in SOURCES.items() if "dir" in inspect.signature(source).parameters)
# The data sources whose examples may have a context.
WITH_CONTEXT = "|".join(name for name, source in SOURCES.items() if "context" in inspect.signature(source).parameters)
CONDITIONAL = "labels=true or data.context!="  # the network is conditioned on something
SAMPLING = ("train", "sample", "eval", "trajectory")  # the commands that draw samples
DENOISING = (*SAMPLING, "likelihood")  # the commands that use the denoiser of the sampling
RESCALED = {"ddpm.rescale": ".ddpm.steps!=1000"}  # multiplies the betas by 1000 / steps
# With these options a step averages over the batch, so each sample depends on the other samples of its batch.
AVERAGED = ("sampler.corrector.name=snr", "sampler.corrector.snr.batch_mean=true")
POSTERIOR = "dps|pigdm|moments"  # the methods of a control that use a likelihood


def get_config() -> Config:
    config: Config = ConfigDict()
    config.seed = 0  # 0 to 4294967295

    config.data = choice(SOURCES, "digits", without=("prepared", "strict", "context"))
    config.data.folder.prepared = option("", changes="nothing")  # where prepared pictures are stored; "": the cache
    config.data.folder.strict = option(False, changes="nothing")  # refuse a folder with a file that cannot be read
    # The folder of data on disk, also for downloads; "" is the cache folder, except for pictures of your own, where the
    # folder must be named. For Fashion-MNIST, whose files have checksums, the folder changes nothing.
    config.data.dir = option(
        "", when=f"data.name={ON_DISK}", changes="training", also={"nothing": "data.name=fashion_mnist"}
    )
    # The context of each example, on which the network is conditioned: columns of a table, separated by commas, or a
    # .npy file beside an array.
    config.data.context = option("", when=f"data.name={WITH_CONTEXT}")
    config.data.flip = False  # mirror half of the training images
    config.data.augment = 0.0  # probability of each augmentation (also an input of the network); 0: none
    config.data.crop = 0  # pixels by which training images are shifted at most, reflected at their edges; 0: not at all
    config.data.shift = False  # shift each series in training around its end
    config.scaling = choice(SCALINGS, "centered")

    config.process = choice(PROCESSES, "ddpm", when=RESCALED)
    config.times = choice(TIMES, "own")  # the distribution of noise levels in training
    config.target = "eps"  # the meaning of the network's output: eps, x0, score, v, velocity, edm
    config.energy = False  # derive an energy from the network's output; its gradient gives the score
    config.learned_variance = False  # the network also gives the variance of a step, for the losses hybrid and vlb
    config.loss = choice(LOSSES, "eps", without=("bins", "width"))  # these come from the scaling
    config.weighting = choice(WEIGHTINGS, "own")  # the weight of each noise level; own: the weight of the loss
    config.log_variance = False  # divide the loss of each noise level by a learned variance

    config.labels = False  # give the network the class of each example
    # The probability of dropping the class and the context in training, so that the network also works without them.
    config.label_dropout = option(0.1, when=CONDITIONAL)
    config.net = choice(
        NETS,
        "unet",
        without=("num_classes", "context_dim", "out_channels", "augment_dim", "batch"),
        when={"unet.attention_heads": ".unet.head_channels=0", "ncsnpp.fourier_scale": ".ncsnpp.embedding=fourier"},
    )
    config.net.condition = "index"  # the network's input for the noise level: index, rescaled, sigma, logsnr, edm
    config.net.centered = option(True, when="scaling.name=unit")  # the network sees data in [0, 1] as 2x - 1
    config.net.unit_input = False  # the network sees x with unit variance: EDM's c_in

    config.optimizer = choice(OPTIMIZERS, "adam")
    config.schedule = choice(SCHEDULES, "constant")  # of the learning rate
    config.train = section(modes=("train",))
    # If the learning rate decays until the last step, the number of steps also changes the network.
    config.train.steps = option(1000, changes="training", also={"network": "schedule.name!=constant|inverse_sqrt"})
    config.train.batch = 128
    config.train.microbatch = option(0, changes="training")  # examples at a time, to save memory; 0: the whole batch
    config.train.learning_rate = 2e-4
    config.train.clip = 1.0  # global norm of the gradient; 0: do not clip
    config.train.accumulate = 1  # gradients that are averaged for each step of the optimizer
    config.train.ema = choice(AVERAGES, "decay")  # the average of the parameters, for sampling
    # Where the metrics go beside metrics.jsonl, which is always written: true or false, or the name of a project.
    config.train.log = switches(LOGGERS, on=("tensorboard",), without=("jsonl",), changes="nothing")
    config.train.log_every = option(50, changes="nothing")
    config.train.sample_every = option(0, changes="nothing")  # steps between pictures during training; 0: none
    config.train.checkpoint_every = option(1000, changes="training")  # steps between checkpoints
    config.train.keep = option(3, changes="training")  # how many of the newest checkpoints are kept, beside the best

    config.sampler = section(modes=SAMPLING, changes="results")
    config.sampler.step = choice(
        STEPS,
        "ancestral",
        when={"ancestral.variance": ".ancestral.eta>0"}
        | {f"edm.{name}": ".edm.churn>0" for name in ("low", "high", "noise")},
    )
    config.sampler.corrector = choice(CORRECTORS, "none")
    config.sampler.grid = choice(GRIDS, "own")  # the spacing of the noise levels
    # How estimates of x0 are kept in the range of the data; free: not at all.
    config.sampler.x0 = choice(X0S, "free", modes=DENOISING)
    # The class of all samples, or of all held-out examples. -1: classes in the proportions of the data, or the
    # example's own class.
    config.sampler.label = option(-1, when=("labels=true", ".guidance!=0"), modes=DENOISING)
    # The context of all samples, or of all held-out examples, in the units of the data; (): contexts of the data.
    config.sampler.context = option((), when=("data.context!=", ".guidance!=0"), modes=DENOISING)
    # eps = eps(no class) + guidance (eps(class) - eps(no class)). 1: the conditional model, 0: no class and no context.
    config.sampler.guidance = option(1.0, when=CONDITIONAL, modes=DENOISING)
    config.sampler.control = choice(
        CONTROLS,
        "none",
        modes=("sample",),  # it completes held-out images
        when={f"{part}.std": f".{part}.method={POSTERIOR}" for part in ("inpaint", "colorize")}
        | {f"{part}.scale": f".{part}.method={POSTERIOR}" for part in ("inpaint", "colorize")}
        | {f"{part}.max_measured": f".{part}.method=moments" for part in ("inpaint", "colorize")},
    )
    # Sample under another process than the trained one (Denoiser.under).
    config.sampler.process = choice({"trained": lambda: None, **PROCESSES}, "trained", modes=DENOISING, when=RESCALED)
    config.sampler.n = option(0, when="sampler.grid.name!=list")  # number of noise levels; 0: all of the chain
    config.sampler.denoise = True  # end with a denoising step
    # Use the checkpoint with the best held-out loss instead of the newest.
    config.sampler.best = option(False, modes=("sample", "eval", "trajectory", "likelihood"))
    config.sampler.seed = option(placeholder(int))  # the random seed of the sampling; None: config.seed
    config.sampler.batch = option(  # examples at a time
        256, modes=("train", "sample", "eval"), changes="nothing", also={"results": AVERAGED}
    )
    config.sampler.images = 64  # the number of samples in the picture, and of `scoregen sample`

    config.eval = section(changes="results")
    # The number of samples for the distances; 0: the number of training examples, at most 1000.
    config.eval.samples = option(0, modes=("train", "eval"), when="train:eval.at_end=true")
    config.eval.at_end = option(True, modes=("train",))  # whether training also ends with the distances
    # What images are compared by; auto: a classifier that is trained on the labels, or without labels EfficientNet.
    config.eval.features = choice(
        FEATURES,
        "auto",
        without=("cache_dir", "seed", "steps"),
        modes=("train", "eval"),
        when={"name": "train:eval.at_end=true"},
    )
    # The results of `scoregen likelihood`: both, ode, bound.
    config.eval.likelihood = choice(LIKELIHOODS, "both", without=("bins", "width"), modes=("likelihood",))
    config.eval.likelihood.examples = 64  # the number of held-out examples, at most all
    config.eval.likelihood.batch = option(64, changes="nothing")  # examples at a time
    return config
