"""Choose the noise levels of an NCSN, and the step of its sampler, from the data.

    python -m scoregen.design --config=ncsn_digits
    python -m scoregen.design --config=ddpm_toy --sigma_min=0.02 --steps=10
    python -m scoregen.design --config=ncsn_cifar --config.data.dir=DIR --overlap=0.567

Techniques 1, 2 and 4 of Song & Ermon 2020, "Improved techniques for training score-based generative models", for the
training data of any preset, as its network is trained on them. Prints what it finds beside what the configuration has,
and the command that trains with it; writes a preset that does the same, and a figure that shows why.

Exit codes: 0 done; 2 something that you can mend, said in one line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags as absl_flags
from ml_collections import config_flags
from rich.console import Console
from scipy.optimize import brentq
from scipy.special import gammaln, ndtr

from scoregen import config as config_lib
from scoregen.command import answer, say, say_presets
from scoregen.config import Config
from scoregen.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from scoregen.experiment import Experiment

# The ratio of NCSN v1, ten levels from 1 to 0.01: no published NCSN has a coarser one.
COARSEST = 100 ** (1 / 9)
# Products that the search for the largest distance may take: two minutes on two CPU cores that others use too.
BUDGET = 1e12
BLOCK = 1024  # examples at a time


def largest_distance(x: np.ndarray) -> float:
    """The largest Euclidean distance between two examples: technique 1 of Song & Ermon 2020 for sigma_max.

        max_{i,j} ||x_i - x_j||

    x is `[N, ...]`, the distance in its units. It is exact up to the rounding of float64, and 0 for one example. Of
    N (N - 1) / 2 pairs only those are compared that may be the farthest; see `distance_bounds`.

    >>> largest_distance(np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]))
    5.0
    """
    return distance_bounds(x)[0]


def distance_bounds(x: np.ndarray, budget: float = math.inf) -> tuple[float, float]:
    """Two bounds of the largest distance between examples `[N, ...]`, equal unless the budget ran out.

    With r_i = ||x_i - mean||, no pair is farther apart than r_i + r_j. So blocks of examples are compared from the
    outermost inwards, until what is left cannot exceed what was found. Images are thereby done with after a few
    thousand of them; for data that all lie equally far out, every pair is compared.

    Args:
        x: the examples, finite.
        budget: how many products may be spent, D a pair (and 200 at least, which is what looking at it costs); then
            the second bound is the r_i + r_j of what was not compared.

    >>> distance_bounds(np.eye(3000), budget=0)  # after one block
    (1.41421, 1.99967)
    """
    x = x.reshape(len(x), -1)
    centre = x.mean(axis=0, dtype=np.float64)
    starts = range(0, len(x), BLOCK)
    radius = np.concatenate([np.linalg.norm(x[i : i + BLOCK] - centre, axis=1) for i in starts])
    order = np.argsort(-radius, kind="stable")
    radius = radius[order]

    def block(start: int) -> tuple[np.ndarray, np.ndarray]:
        part = x[order[start : start + BLOCK]] - centre
        return part, np.square(part).sum(axis=1)

    best, spent = 0.0, 0.0
    for j in starts:
        if radius[0] + radius[j] <= best:
            break
        outer, outer_norms = block(j)
        for i in range(0, j + 1, BLOCK):
            if radius[i] + radius[j] <= best:
                break
            if spent > budget:
                return best, float(radius[0] + radius[j])
            inner, inner_norms = block(i)
            squares = inner @ outer.T
            squares *= -2
            squares += inner_norms[:, None]
            squares += outer_norms
            a, b = np.unravel_index(squares.argmax(), squares.shape)
            # The pair is taken from the products, its distance is not: equal examples are to have a distance of 0.
            best = max(best, float(np.linalg.norm(inner[a] - outer[b])))
            spent += squares.size * max(x.shape[1], 200)
    return best, best


def coverage(dims: int, gamma: float) -> float:
    """How much of one noise level lies where the next noisier does (Song & Ermon 2020, technique 2).

        C = Phi(sqrt(2D) (gamma - 1) + 3 gamma) - Phi(sqrt(2D) (gamma - 1) - 3 gamma)

    In D dimensions, the norm r of noise of level sigma is nearly N(sqrt(D) sigma, sigma^2 / 2) (their proposition 2).
    C is the probability that r lies within three standard deviations of its mean at the level gamma sigma.

    >>> coverage(3072, 1.0398)
    0.500
    """
    shift = math.sqrt(2 * dims) * (gamma - 1)
    return float(ndtr(3 * gamma - shift) - ndtr(-3 * gamma - shift))  # by symmetry: no difference of two near 1


def ratio(dims: int, overlap: float = 0.5) -> float:
    """The ratio gamma > 1 of neighbouring noise levels with `coverage(dims, gamma) = overlap` (technique 2).

    Raises:
        ValueError: if there is none. In four dimensions and fewer the levels overlap more the farther they are apart,
            since three standard deviations reach down to 0; and nothing overlaps more than Phi(3) - Phi(-3) = 0.9973
            at gamma = 1, since three standard deviations are all that is looked at.

    >>> ratio(3072)
    1.0398
    """
    if dims <= 4:
        raise ValueError(f"in {dims} dimensions noise levels overlap however far apart they are")
    most = coverage(dims, 1.0)
    if not 0 < overlap < most:
        raise ValueError(f"overlap={overlap}: a number between 0 and {most:.4f} is needed")
    high = 2.0
    while coverage(dims, high) > overlap:  # it falls to 0, though it takes a ratio of 20 in five dimensions
        high *= 2
    return _root(lambda gamma: coverage(dims, gamma) - overlap, 1.0, high)


def levels(sigma_min: float, sigma_max: float, gamma: float) -> int:
    """The least number L >= 2 of geometric levels, both ends included, with a ratio of at most gamma (technique 2).

        (sigma_max / sigma_min)^{1 / (L - 1)} <= gamma

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max and gamma > 1.

    >>> levels(0.01, 1.0, 1.67), levels(0.01, 50.0, ratio(3072))
    (10, 220)
    """
    if not (0 < sigma_min < sigma_max and gamma > 1):
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}, gamma={gamma}: 0 < min < max, 1 < gamma")
    exact = math.log(sigma_max / sigma_min) / math.log(gamma)
    return max(2, math.ceil(exact - 1e-9) + 1)  # a ratio that fits exactly is not to cost a level by its rounding


def settled(step: float, sigma_min: float, gamma: float, steps: int) -> float:
    """The variance after T Langevin steps at a level, over that level's own sigma^2 (Song & Ermon 2020, eq. 4).

        a^{2T} (gamma^2 - c) + c,    a = 1 - step / sigma_min^2,    c = 2 step / (sigma_min^2 (1 - a^2))

    for data at a point and the exact score, where the sampler comes from the level before with the variance
    gamma^2 sigma^2. It is what the recursion v <- a^2 v + 2 step / sigma_min^2 gives from gamma^2, and the same at
    every level. With h = step / sigma_min^2, c is 1 / (1 - h / 2), where `samplers.Langevin` settles in the end. It
    is above 1 always: the steps are too few, or too long.

    Args:
        step: the `step_size` of `samplers.Langevin`: h at the least noisy level, in units of sigma^2.
        sigma_min: that level's sigma.
        gamma: the ratio of neighbouring levels.
        steps: T, the steps at each level.

    Raises:
        ValueError: unless 0 < step < 2 sigma_min^2, outside of which the steps diverge.

    >>> settled(6.2e-6, 0.01, (50 / 0.01) ** (1 / 231), 5)  # NCSN v2 on CIFAR-10
    1.055
    >>> settled(2e-5, 0.01, 100 ** (1 / 9), 100)  # NCSN v1
    1.111
    """
    h = step / sigma_min**2
    if not 0 < h < 2:
        raise ValueError(f"step={step}: 0 < step < 2 sigma_min^2 = {2 * sigma_min**2:.3g} is needed")
    left, c = (1 - h) ** (2 * steps), 1 / (1 - h / 2)
    return left * (gamma**2 - c) + c


def step_size(sigma_min: float, gamma: float, steps: int) -> float:
    """The Langevin step whose `settled` variance is nearest to 1 (Song & Ermon 2020, technique 4).

    In h = step / sigma_min^2, with q = (1 - h)^{2T}, the derivative is

        c' (1 - q) + q' (gamma^2 - c),    c' = 2 / (2 - h)^2,    q' = -2T (1 - h)^{2T - 1}

    It is -2T (gamma^2 - 1) at h = 0, rises as long as c < gamma^2, and is positive from there to h = 1. So it has one
    root, the minimum: beyond 1 no variance is less than the lesser of gamma^2 and 2. In units of sigma^2, for
    `samplers.Langevin`.

    Raises:
        ValueError: unless sigma_min > 0, gamma > 1 and steps >= 1.

    >>> step_size(0.01, (50 / 0.01) ** (1 / 231), 5)  # the paper's 6.2e-6
    6.18e-06
    """
    if not (sigma_min > 0 and gamma > 1 and steps >= 1):
        raise ValueError(f"sigma_min={sigma_min}, gamma={gamma}, steps={steps}: above 0, above 1, at least 1")

    def slope(h: float) -> float:
        q, dq = (1 - h) ** (2 * steps), -2 * steps * (1 - h) ** (2 * steps - 1)
        return 2 / (2 - h) ** 2 * (1 - q) + dq * (gamma**2 - 1 / (1 - h / 2))

    return sigma_min**2 * _root(slope, 0.0, 1.0)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that differs in sign at the two ends is 0, to 14 digits."""
    found: Any = brentq(function, low, high, xtol=1e-15, rtol=np.float64(1e-14))
    return float(found)


@dataclasses.dataclass(frozen=True)
class Levels:
    """Geometric noise levels, and the Langevin steps that walk them, in the units of the scaled data.

    >>> v2 = Levels(0.01, 50.0, 232, 6.2e-6, 5)
    >>> v2.gamma, v2.settled
    (1.0376, 1.055)
    """

    sigma_min: float
    sigma_max: float
    levels: int
    step_size: float | None
    steps: int | None

    @property
    def gamma(self) -> float:
        """The ratio of neighbouring levels."""
        return (self.sigma_max / self.sigma_min) ** (1 / (self.levels - 1))

    @property
    def settled(self) -> float | None:
        """See the function `settled`; infinite if the steps diverge, None without Langevin steps."""
        if self.step_size is None or self.steps is None:
            return None
        if self.step_size >= 2 * self.sigma_min**2:
            return math.inf
        return settled(self.step_size, self.sigma_min, self.gamma, self.steps)

    @property
    def evaluations(self) -> int | None:
        """Of the network for one sample; to end with the denoised mean takes one more."""
        return None if self.steps is None else self.levels * self.steps


def design(dims: int, distance: float, sigma_min: float, steps: int, overlap: float = 0.5) -> Levels:
    """Techniques 1, 2 and 4 of Song & Ermon 2020, one after the other.

    sigma_max is `distance`, rounded up to three digits; the ratio is at most `ratio(dims, overlap)`, and at most that
    of NCSN v1, 1.67, which is what stands where few dimensions would allow for any; the step is for the ratio that
    the whole number of levels gives, rounded to three digits.

    Raises:
        ValueError: unless 0 < sigma_min < distance, steps >= 1, and the overlap is one that `ratio` takes.

    >>> design(3072, 49.9, 0.01, 5, overlap=0.567)
    Levels(sigma_min=0.01, sigma_max=49.9, levels=232, step_size=6.18e-06, steps=5)
    """
    sigma_max = _rounded_up(distance)
    gamma = COARSEST if dims <= 4 else min(COARSEST, ratio(dims, overlap))
    count = levels(sigma_min, sigma_max, gamma)
    actual = Levels(sigma_min, sigma_max, count, None, None).gamma
    return Levels(sigma_min, sigma_max, count, float(f"{step_size(sigma_min, actual, steps):.3g}"), steps)


def settings(found: Levels) -> dict[str, Any]:
    """The options of a configuration, by their dotted keys, that make it NCSN v2 at these levels.

    Technique 3 is among them (the network gives -sigma times the score, so its output is divided by sigma), and
    technique 5 (an average of the parameters).

    >>> settings(Levels(0.01, 50.0, 232, 6.2e-6, 5))["process.ncsn.levels"]
    232
    """
    return {
        "process.name": "ncsn",
        "process.ncsn.sigma_min": found.sigma_min,
        "process.ncsn.sigma_max": found.sigma_max,
        "process.ncsn.levels": found.levels,
        "process.ncsn.start": "normal",
        "target": "eps",
        "learned_variance": False,
        "loss.name": "dsm",
        "net.condition": "sigma",
        "train.ema": 0.999,
        "sampler.process.name": "trained",
        "sampler.predictor.name": "hold",
        "sampler.corrector.name": "langevin",
        "sampler.corrector.langevin.step_size": found.step_size,
        "sampler.corrector.langevin.steps": found.steps,
        "sampler.n": 0,
        "sampler.denoise": True,
    }


def with_settings(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of a configuration with other values under these dotted keys, locked.

    >>> with_settings(config_lib.load("ncsn_toy"), {"process.ncsn.levels": 7}).process.ncsn.levels
    7
    """
    fresh = config.copy_and_resolve_references()
    fresh.update_from_flattened_dict(dict(values))
    return fresh.lock()


def present(config: Config) -> Levels | None:
    """The levels that a configuration has now, or None if its process is not NCSN's.

    Without the steps, unless annealed Langevin dynamics walk all of the levels.

    >>> present(config_lib.load("ncsn_cifar"))
    Levels(sigma_min=0.01, sigma_max=1.0, levels=10, step_size=2e-05, steps=100)
    >>> present(config_lib.load("ddpm_toy"))
    """
    ncsn, sampler, langevin = config.process.ncsn, config.sampler, config.sampler.corrector.langevin
    if config.process.name != "ncsn" or ncsn.levels < 2 or not 0 < ncsn.sigma_min < ncsn.sigma_max:
        return None
    names = (sampler.process.name, sampler.predictor.name, sampler.corrector.name)
    walked = names == ("trained", "hold", "langevin") and sampler.n == 0
    step, steps = langevin.step_size, langevin.steps
    if not (walked and step > 0 and steps >= 1):
        step = steps = None
    return Levels(ncsn.sigma_min, ncsn.sigma_max, ncsn.levels, step, steps)


def examples(experiment: Experiment) -> np.ndarray:
    """The training data as the network is trained on them, `[N, D]` float32: scaled, not mirrored.

    What the scaling adds of noise is that of the configuration's seed, the same whatever the machine.
    """
    import jax

    from scoregen.process import example_keys, fold_keys

    raw = experiment.dataset.train
    x = np.empty((len(raw), math.prod(experiment.dataset.shape)), np.float32)
    for i in range(0, len(raw), BLOCK):
        part = raw[i : i + BLOCK]
        keys = fold_keys(example_keys(jax.random.key(experiment.config.seed), len(part)), i)
        x[i : i + len(part)] = np.asarray(experiment.scaling(part, keys)).reshape(len(part), -1)
    return x


def sampled_distances(x: np.ndarray, most: int = 1500) -> np.ndarray:
    """The distances of all pairs among `most` examples `[N, D]`, evenly spaced in the data's order: `[pairs]`.

    >>> sampled_distances(np.array([[0.0], [1.0], [3.0]])).tolist()
    [1.0, 3.0, 2.0]
    """
    some = x[np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).astype(int))].astype(np.float64)
    some -= some.mean(axis=0)
    norms = np.square(some).sum(axis=1)
    squares = norms[:, None] + norms - 2 * some @ some.T
    return np.sqrt(np.maximum(squares[np.triu_indices(len(some), 1)], 0))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(argv, _design, _help)


def _help(console: Console) -> None:
    say(console, __doc__ or "")
    say_presets(console)
    say(console, "--config.SECTION.OPTION=VALUE changes one option; --config.data.... chooses other data")
    say(console, "--sigma_min=0.01  the least noise, in the units of the scaled data ([0, 1] or [-1, 1] for images)")
    say(console, "--steps=5         Langevin steps at each level")
    say(console, "--overlap=0.5     how much of one level lies where the next does: more means more levels")
    say(console, "--out=DIR         where the preset and the figure go (runs/design)")


def _design(argv: Sequence[str], console: Console) -> int:
    flags = absl_flags.FlagValues()
    absl_flags.DEFINE_float("sigma_min", 0.01, "the least noise", flag_values=flags)
    absl_flags.DEFINE_integer("steps", 5, "Langevin steps at each level", flag_values=flags)
    absl_flags.DEFINE_float("overlap", 0.5, "of neighbouring levels", flag_values=flags)
    absl_flags.DEFINE_string("out", "runs/design", "where the preset and the figure go", flag_values=flags)
    config, _ = config_lib.parse(argv, flags)
    asked: dict[str, Any] = {name: flags[name].value for name in ("sigma_min", "steps", "overlap", "out")}
    sigma_min, steps, overlap, folder = asked["sigma_min"], asked["steps"], asked["overlap"], asked["out"]
    if not 0 < sigma_min < math.inf:
        raise UsageError(f"--sigma_min={sigma_min}: a positive number is needed")
    if not 1 <= steps <= 1_000_000:
        raise UsageError(f"--steps={steps}: 1 to a million are needed")
    if not 0 < overlap < 1:
        raise UsageError(f"--overlap={overlap}: a number between 0 and 1 is needed")
    folder = Path(folder).expanduser()

    # Here and not above: a wrong flag is answered before JAX is loaded.
    from scoregen.experiment import assemble

    # What a run would refuse is refused here. It depends on no number of the levels, which are not known yet.
    experiment = assemble(with_settings(config, settings(Levels(1.0, 2.0, 2, 1.0, steps))))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None
    x = examples(experiment)
    dims, data = x.shape[1], experiment.dataset
    what = f"{len(x):,} {'images' if data.is_image else 'points'} of {config.data.name}, {dims:,} dimensions"
    low, high = distance_bounds(x, BUDGET)
    if low == 0:
        raise UsageError(f"{what}: they are all equal, and a distance between them is what sigma_max is chosen by")
    if sigma_min >= low:
        raise UsageError(
            f"--sigma_min={sigma_min}: it must be less than the largest distance between two examples, {low:.4g}"
        )
    if sigma_min < 1e-6 * low:
        raise UsageError(
            f"--sigma_min={sigma_min}: beside a distance of {low:.4g}, float32 cannot hold so little noise"
        )
    try:
        found = design(dims, low, sigma_min, steps, overlap)
    except ValueError as error:
        raise UsageError(f"--{error}") from None

    base = _base(config_flags.get_config_filename(flags["config"]))
    original = config_lib.load(base)
    differ = config_lib.changes(original, with_settings(config, settings(found)))
    command = ["python", "-m", "scoregen.run", f"--config={base}", *(_flag(key, value) for key, _, value in differ)]
    preset, figure = folder / f"{config.name}_designed.py", folder / f"{config.name}_designed.png"
    own = {key: value for key, _, value in config_lib.changes(original, config) if key not in settings(found)}
    now = present(config)
    try:
        preset.write_text(_preset(base, preset, what, found, own), encoding="utf-8")
        save_figure(figure, sampled_distances(x), dims, found, now)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None

    say(console, "")
    console.print(_table(config, what, dims, found, now, (low, high), overlap), soft_wrap=False)
    say(console, "\nTo train with it:\n")
    say(console, shlex.join(command))
    say(console, f"\nor, which is the same: python -m scoregen.run --config={shlex.quote(str(preset))}")
    say(console, f"The figure: {figure}")
    return 0


def _base(name: str) -> str:
    """A preset's bare name as it is; the path of a file made absolute, so that the preset finds it from anywhere."""
    return name if config_lib.is_bare(name) else str(Path(name).expanduser().resolve())


def _flag(key: str, value: Any) -> str:
    return f"--config.{key}={value}"


def _rounded_up(value: float) -> float:
    """The least number of three significant digits that is not below `value`."""
    near = float(f"{value:.3g}")
    return near if near >= value else float(f"{near + 10.0 ** (math.floor(math.log10(value)) - 2):.3g}")


def _preset(base: str, path: Path, what: str, found: Levels, own: Mapping[str, Any]) -> str:
    """The text of a preset: the base, the options that were given on the command line, and the design."""
    lines = [f"    config.{key} = {_source(value)}" for key, value in (dict(own) | settings(found)).items()]
    return "\n".join(
        [
            f'r"""{Path(base).stem} at the noise levels that Song & Ermon 2020 choose for its data.',
            "",
            f"    python -m scoregen.run --config={shlex.quote(str(path))}",
            "",
            f"Written by scoregen.design for {what}.",
            '"""',
            "",
            "from scoregen.config import load",
            "",
            "",
            "def get_config():",
            f"    config = load({_source(base)})",
            *lines,
            "    return config",
            "",
        ]
    )


def _source(value: Any) -> str:
    """A value as Python source, with the quotes that the other presets have."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _table(
    config: Config,
    what: str,
    dims: int,
    found: Levels,
    now: Levels | None,
    distance: tuple[float, float],
    overlap: float,
) -> Table:
    """What was found, what the configuration has, and why, a line each."""
    from rich.table import Table

    low, high = distance
    far = f"no two examples are farther apart than {low:.4g}"
    if high > low:
        far = f"two examples are {low:.4g} apart, and none more than {high:.4g} (not all were compared)"
    wanted = None if dims <= 4 else ratio(dims, overlap)
    if wanted is None:
        close = f"in {dims} dimensions any ratio leaves an overlap; {COARSEST:.5g} was NCSN v1's, and is the limit"
    elif wanted > COARSEST:
        close = f"an overlap of {overlap:g} allows {wanted:.5g}; {COARSEST:.5g} was NCSN v1's, and is the limit"
    else:
        close = f"of neighbours; {wanted:.5g} leaves an overlap of {overlap:g}, by which one hands on to the next"
    assert found.steps is not None and found.settled is not None
    more = 2 * found.steps
    later = settled(step_size(found.sigma_min, found.gamma, more), found.sigma_min, found.gamma, more)
    rows: list[tuple[str, Callable[[Levels], float | None], str]] = [
        ("sigma_max", lambda it: it.sigma_max, f"{far}: noise joins all"),
        (
            "sigma_min",
            lambda it: it.sigma_min,
            "as asked for; there is no rule but that so much noise should not be seen",
        ),
        ("ratio", lambda it: it.gamma, close),
        (
            "overlap",
            lambda it: coverage(dims, it.gamma),
            "so much of a level's noise lies where the next noisier level's does",
        ),
        ("levels", lambda it: it.levels, "the fewest from sigma_max to sigma_min at that ratio"),
        ("steps", lambda it: it.steps, "as asked for, at each level; as many as time allows"),
        (
            "step_size",
            lambda it: it.step_size,
            "shorter steps forget the level before too little, longer ones add noise",
        ),
        (
            "variance",
            lambda it: it.settled,
            f"after them, over the level's own: 1 is best, and {more} steps would give {later:.4g}",
        ),
        ("evaluations", lambda it: it.evaluations, "of the network for a sample, and one more to denoise it"),
    ]
    table = Table(title=f"{config.name}: {what}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("", style="bold", no_wrap=True)
    table.add_column("designed", justify="right", no_wrap=True, style="bold")
    table.add_column("now" if now else f"now: {config.process.name}", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for name, value, why in rows:
        table.add_row(name, _number(value(found)), _number(value(now) if now else None), why)
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if math.isinf(value):
        return "diverges"
    return str(value) if isinstance(value, int) else f"{value:.5g}"


def save_figure(path: Path, distances: np.ndarray, dims: int, found: Levels, now: Levels | None) -> Path:
    """Why these levels, in four panels: distances, overlap of neighbours, the levels, the step.

    Args:
        path: of the PNG.
        distances: some of the distances between examples, `[pairs]`.
        dims: D.
        found: the design.
        now: what the configuration has, drawn beside it.
    """
    from scoregen.report import ACCENT, INK, _pyplot

    plt = _pyplot()
    assert found.step_size is not None and found.steps is not None

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.6), layout="constrained")
    panel = axes[0, 0]
    heights, _, _ = panel.hist(distances, 80, color=INK, alpha=0.35)
    tall = float(np.max(heights))
    panel.vlines(found.sigma_max, 0, tall, color=ACCENT, lw=2, label=f"sigma_max designed: {found.sigma_max:.4g}")
    if now:
        panel.vlines(now.sigma_max, 0, tall, color=INK, ls=":", lw=2, label=f"sigma_max now: {now.sigma_max:.4g}")
    panel.set(xlabel="distance", ylabel="pairs of examples", xlim=(0, None), ylim=(0, 1.3 * tall), yticks=[])
    panel.set_title("sigma_max: the largest distance in the data")

    panel = axes[0, 1]
    root, half = math.sqrt(dims), math.sqrt(0.5)
    begin, end = found.gamma * (root - 3 * half), found.gamma * (root + 3 * half)
    r = np.linspace(max(0.0, root - 5 * half), end + 1.5 * half, 600)
    here, there = _radial(r, dims, 1.0), _radial(r, dims, found.gamma)
    inside = (r >= begin) & (r <= end)
    panel.plot(r, here, color=INK, label="noise of one level")
    panel.plot(r, there, color=ACCENT, label=f"of the next noisier, {found.gamma:.4g} times it; dotted: within 3 std")
    panel.fill_between(r[inside], here[inside], color=INK, alpha=0.25, lw=0)
    edges = [edge for edge in (begin, end) if edge > r[0]]
    panel.vlines(edges, 0, here.max(), color=ACCENT, ls=":", lw=1.5)
    panel.set(xlabel="norm of the noise / sigma", ylabel="density", ylim=(0, 1.3 * here.max()), yticks=[])
    panel.set_title(f"ratio: {coverage(dims, found.gamma):.0%} of a level lies where the next does")

    panel = axes[1, 0]
    for name, it, color, size in (("designed", found, ACCENT, 3), ("now", now, INK, 2)):
        if it:
            sigmas = np.geomspace(it.sigma_max, it.sigma_min, it.levels)
            panel.plot(sigmas, marker="o", ms=size, lw=0.8, color=color, label=f"{name}: {it.levels} levels")
    panel.set(xlabel="level, in the order of sampling", ylabel="sigma", yscale="log")
    panel.set_title(f"levels: from {found.sigma_max:.4g} to {found.sigma_min:.4g} at that ratio")

    panel = axes[1, 1]
    best = settled(found.step_size, found.sigma_min, found.gamma, found.steps)
    steps = np.geomspace(0.02 * found.step_size, min(8 * found.step_size, found.sigma_min**2), 300)
    panel.plot(
        steps,
        [settled(step, found.sigma_min, found.gamma, found.steps) for step in steps],
        color=INK,
        label=f"after {found.steps} step{'s' * (found.steps > 1)} at a level",
    )
    panel.plot(
        [found.step_size],
        [best],
        "o",
        color=ACCENT,
        ms=8,
        label=f"step_size {found.step_size:.3g}, variance {best:.4g}",
    )
    panel.axhline(1, color=INK, ls="--", lw=1, label="1: the level's own variance")
    top = max(found.gamma**2, 1 + 2 * (best - 1))
    panel.set(xlabel="step_size", ylabel="variance / sigma²", xscale="log")
    panel.set_ylim(1 - 0.1 * (top - 1), 1 + 1.5 * (top - 1))
    panel.set_title("step_size: where the variance comes nearest to 1")

    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.legend(frameon=False, fontsize=9, loc="upper left" if panel in axes[0] else "upper center")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _radial(r: np.ndarray, dims: int, sigma: float) -> np.ndarray:
    """The exact density of the norm of N(0, sigma^2 I) in D dimensions: a chi distribution, scaled."""
    with np.errstate(divide="ignore", invalid="ignore"):
        powers = 0.0 if dims == 1 else (dims - 1) * np.log(r)  # at r = 0 it is -inf, and the density 0
    constant = math.log(2) - dims / 2 * math.log(2 * sigma**2) - gammaln(dims / 2)
    return np.exp(constant + powers - r**2 / (2 * sigma**2))


if __name__ == "__main__":
    sys.exit(main())
