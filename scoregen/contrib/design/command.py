"""Choose the noise levels of an NCSN, and the step of its sampler, from the data.

    scoregen design --config=ncsn_digits
    scoregen design --config=ddpm_toy --sigma_min=0.02 --steps=10
    scoregen design --config=ncsn_cifar --config.data.dir=DIR --overlap=0.567

Techniques 1, 2 and 4 of Song & Ermon 2020, "Improved techniques for training score-based generative models", for the
training data of any preset, scaled as its network sees them. Prints the design beside the levels of the configuration,
and the command that trains with it. Writes a preset that does the same, and a figure that shows why.

Exit codes: 0 done; 2 something that you can fix, in one line each.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from scoregen.app import config as config_lib
from scoregen.app.arguments import Arguments, Flag, parse
from scoregen.app.command import answer, name_of, say, say_presets
from scoregen.app.config import Config
from scoregen.contrib.commands import train_command
from scoregen.errors import UsageError
from scoregen.files import make_folder

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from scoregen.app.build import Parts
    from scoregen.contrib.design.techniques import Levels

FLAGS = (
    Flag("sigma_min", "the least noise, in the units of the scaled data ([0, 1] or [-1, 1] for images)", 0.01),
    Flag("steps", "Langevin steps at each level", 5),
    Flag("overlap", "the overlap of neighbouring levels; more overlap means more levels", 0.5),
    Flag("out", "the folder for the preset and the figure, which are named after the changed options", "runs/design"),
)
# Products that the search for the largest distance may take: two minutes on two CPU cores that others use too.
BUDGET = 1e12


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(argv, _design, _help)


def _help(console: Console) -> None:
    say(console, __doc__ or "")
    say_presets(console)
    say(console, "--config.SECTION.OPTION=VALUE changes one option; --config.data.... chooses other data")
    for flag in FLAGS:
        say(console, f"{f'--{flag.name}={flag.default}':<18} {flag.help}")


def _design(argv: Sequence[str], console: Console) -> int:
    given = parse(argv, FLAGS, faults=_faults)
    config, values = given.config, given.values
    sigma_min, steps, overlap, folder = (values[flag.name] for flag in FLAGS)
    folder = Path(folder).expanduser()

    # Here and not above: a wrong flag is answered before JAX is loaded.
    from scoregen.app.build import build
    from scoregen.contrib.design.figure import sampled_distances, save_figure
    from scoregen.contrib.design.preset import present, preset_text, settings, with_settings
    from scoregen.contrib.design.techniques import Levels, design, distance_bounds

    # What a run would refuse is refused here, by any levels, since none are known yet. The evaluation is left out.
    unevaluated = settings(Levels(1.0, 2.0, 2, 1.0, steps), config.net.name) | {"eval.at_end": False}
    any_design = with_settings(config, unevaluated)
    without_effect = {key: text for key, text in given.said().items() if config_lib.idle(config, [key])}
    if wrong := config_lib.idle(any_design, without_effect):
        raise UsageError(*wrong)
    parts = build(any_design)
    make_folder(folder, "--out")
    x = examples(parts)
    dims, data = x.shape[1], parts.dataset
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

    # A preset in a file is found from anywhere by its absolute path.
    base = values["config"]
    base = base if config_lib.is_bare(base) else str(Path(base).expanduser().resolve())
    original, options = config_lib.load(base), settings(found, config.net.name)
    designed = with_settings(config, options)
    own = {key: value for key, _, value in config_lib.changes(original, config) if key not in options}
    now = present(config)
    say(console, "")
    console.print(_table(config, what, dims, found, now, (low, high), overlap), soft_wrap=False)
    command = train_command(base, designed, config_lib.changes(original, designed))
    say(console, f"\nTo train with it:\n\n{command}")

    changed = [(name, values[name]) for name in ("sigma_min", "steps", "overlap") if name in given.given]
    name = name_of(config.name, [*own.items(), *changed])
    preset, figure = folder / f"{name}_designed.py", folder / f"{name}_designed.png"
    try:
        preset.write_text(preset_text(base, preset, what, own | options), encoding="utf-8")
        save_figure(figure, sampled_distances(x), dims, found, now)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None
    say(console, f"\nor, which is the same: scoregen train --config={shlex.quote(str(preset))}")
    say(console, f"The figure: {figure}")
    return 0


def _faults(found: Arguments) -> Iterator[str]:
    sigma_min, steps, overlap, folder = (found.values[flag.name] for flag in FLAGS)
    if not 0 < sigma_min < math.inf:
        yield f"--sigma_min={sigma_min}: a positive number is needed"
    if not 1 <= steps <= 1_000_000:
        yield f"--steps={steps}: 1 to a million are needed"
    if not 0 < overlap < 1:
        yield f"--overlap={overlap}: a number between 0 and 1 is needed"
    if Path(folder).expanduser().is_file():
        yield f"--out={folder} is a file, a folder is needed"


def examples(parts: Parts) -> np.ndarray:
    """The training data as the network sees them, `[N, D]` float32: scaled, not mirrored.

    The noise of the scaling depends on the seed of the configuration, and on no machine.
    """
    import jax
    import numpy as np

    from scoregen.contrib.design.techniques import BLOCK
    from scoregen.random import example_keys, fold_keys

    raw = parts.dataset.train
    x = np.empty((len(raw), math.prod(parts.dataset.shape)), np.float32)
    for i in range(0, len(raw), BLOCK):
        part = raw[i : i + BLOCK]
        keys = fold_keys(example_keys(jax.random.key(parts.config.seed), len(part)), i)
        x[i : i + len(part)] = np.asarray(parts.scaling(part, keys)).reshape(len(part), -1)
    return x


def _table(
    config: Config,
    what: str,
    dims: int,
    found: Levels,
    now: Levels | None,
    distance: tuple[float, float],
    overlap: float,
) -> Table:
    """The design, the levels of the configuration, and the reasons, a line each."""
    from rich.table import Table

    from scoregen.contrib.design.techniques import COARSEST, coverage, final_variance, ratio, step_size

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
    assert found.steps is not None and found.final_variance is not None
    more = 2 * found.steps
    later = final_variance(step_size(found.sigma_min, found.gamma, more), found.sigma_min, found.gamma, more)
    # The line's name: the attribute of Levels, and the reason.
    rows = {
        "sigma_max": ("sigma_max", f"{far}: noise joins all"),
        "sigma_min": ("sigma_min", "as given; the only rule is that nobody should see so much noise"),
        "ratio": ("gamma", close),
        "overlap": ("", "the part of a level's noise that lies where the next noisier level's does"),
        "levels": ("levels", "the fewest at that ratio: rounded up, which makes the ratio a little less"),
        "steps": ("steps", "as given, at each level; as many as time allows"),
        "step_size": ("step_size", "shorter steps keep more of the level before, longer ones add noise"),
        "variance": (
            "final_variance",
            f"after them, over the level's own: 1 is best; {more} steps would give {later:.4g}",
        ),
        "evaluations": ("evaluations", "of the network for a sample, and one more to denoise it"),
    }
    table = Table(title=f"{config.name}: {what}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("", style="bold", no_wrap=True)
    table.add_column("designed", justify="right", no_wrap=True, style="bold")
    table.add_column("now" if now else f"now: {config.process.name}", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for name, (attribute, why) in rows.items():
        values = [it and (getattr(it, attribute) if attribute else coverage(dims, it.gamma)) for it in (found, now)]
        table.add_row(name, *map(_number, values), why)
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if math.isinf(value):
        return "diverges"
    return str(value) if isinstance(value, int) else f"{value:.5g}"
