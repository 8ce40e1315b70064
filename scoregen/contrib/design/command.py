"""Choose the noise levels of an NCSN, and the step size of its sampler, from the data.

    scoregen design ncsn_digits
    scoregen design ddpm_toy --sigma_min=0.02 --steps=10
    scoregen design ncsn_cifar --config.data.dir=DIR --overlap=0.567

Applies techniques 1, 2 and 4 of Song & Ermon 2020, "Improved techniques for training score-based generative models", to
the training data of any preset, scaled as its network sees them. Prints the designed levels beside the present levels
of the configuration, and a command that trains with the design. Writes a preset with the design, and a figure that
explains it.

Exit codes: 0 done; 2 an error that you can fix, one line each.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from scoregen.app import config as config_lib
from scoregen.app.arguments import CONFIG, Arguments, Flag, parse
from scoregen.app.command import answer, name_of, say, say_flags, say_help, say_presets, train_command
from scoregen.app.config import Config
from scoregen.errors import UsageError
from scoregen.files import make_folder

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from scoregen.app.build import Parts
    from scoregen.contrib.design.techniques import Levels

FLAGS = (
    Flag("sigma_min", "the smallest sigma, in units of the scaled data, [0, 1] or [-1, 1] for images", 0.01),
    Flag("steps", "number of Langevin steps at each level", 5, value="N"),
    Flag("overlap", "the overlap of neighbouring levels, between 0 and 1; more overlap gives more levels", 0.5),
    Flag("out", "the output folder for the preset and the figure", "runs/design", value="FOLDER"),
)
# The most products in the search for the largest distance: two minutes on two CPU cores that are shared.
BUDGET = 1e12


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(argv, _design, _help)


def _help(console: Console) -> None:
    lines = [(CONFIG.usage, CONFIG.help)]
    lines += [(flag.usage, f"{flag.help} (default: {flag.default})") for flag in FLAGS]
    lines.append(("--config.SECTION.OPTION=VALUE", "changes one option; options of config.data choose other data"))

    def flags() -> None:
        say_presets(console, "NAME")
        say_flags(console, lines)

    say_help(console, "design NAME", __doc__, flags)


def _design(argv: Sequence[str], console: Console) -> int:
    given = parse(argv, FLAGS, takes=1, preset=True, faults=_faults)
    config, values = given.config, given.values
    sigma_min, steps, overlap, folder = (values[flag.name] for flag in FLAGS)
    folder = Path(folder).expanduser()

    # Imported here, so that a wrong flag is reported before JAX is loaded.
    from scoregen.app.build import build
    from scoregen.contrib.design.figure import sampled_distances, save_figure
    from scoregen.contrib.design.preset import present, preset_text, settings, with_settings
    from scoregen.contrib.design.techniques import Levels, design, distance_bounds

    # Report what a run would refuse. The levels are arbitrary here, since the real ones are not known yet.
    unevaluated = settings(Levels(1.0, 2.0, 2, 1.0, steps), config.net.name) | {"eval.at_end": False}
    any_design = with_settings(config, unevaluated)
    without_effect = {key: text for key, text in given.typed().items() if config_lib.idle(config, [key])}
    if wrong := config_lib.idle(any_design, without_effect):
        raise UsageError(*wrong)
    with given.as_typed():
        parts = build(any_design)
    make_folder(folder, "--out")
    x = examples(parts)
    dims, data = x.shape[1], parts.dataset
    what = f"{len(x):,} {'images' if data.is_image else 'points'} of {config.data.name}, {dims:,} dimensions"
    low, high = distance_bounds(x, BUDGET)
    if low == 0:
        raise UsageError(f"{what}: they are all equal, and sigma_max is chosen from the distance between examples")
    if sigma_min >= low:
        raise UsageError(
            f"--sigma_min={sigma_min}: it must be smaller than the largest distance between two examples, {low:.4g}"
        )
    if sigma_min < 1e-6 * low:
        raise UsageError(f"--sigma_min={sigma_min}: too small for float32, next to a largest distance of {low:.4g}")
    try:
        found = design(dims, low, sigma_min, steps, overlap)
    except ValueError as error:
        raise UsageError(f"--{error}") from None

    # The written preset must find its base from any folder, so the path is absolute.
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
    say(console, f"\nOr, with the same result: scoregen train --config={shlex.quote(str(preset))}")
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
        yield f"--out={folder} is a file: a folder is needed"


def examples(parts: Parts) -> np.ndarray:
    """The training data as the network sees them, `[N, D]` float32: scaled, not mirrored.

    The noise of the scaling depends only on the seed of the configuration, so it is the same on every machine.
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
    """A table with a row for each quantity: its designed value, its present value, and the reason."""
    from rich.table import Table

    from scoregen.contrib.design.techniques import COARSEST, coverage, final_variance, ratio, step_size

    low, high = distance
    far = f"the largest distance between two examples is {low:.4g}"
    if high > low:
        far = f"the largest distance between two examples is {low:.4g} to {high:.4g} (not all were compared)"
    wanted = None if dims <= 4 else ratio(dims, overlap)
    if wanted is None:
        close = f"in {dims} dimensions levels overlap at any ratio; the limit is the ratio of NCSN v1, {COARSEST:.5g}"
    elif wanted > COARSEST:
        close = f"an overlap of {overlap:g} allows {wanted:.5g}; the limit is the ratio of NCSN v1, {COARSEST:.5g}"
    else:
        close = f"of neighbouring levels; {wanted:.5g} gives an overlap of {overlap:g}"
    assert found.steps is not None and found.final_variance is not None
    more = 2 * found.steps
    later = final_variance(step_size(found.sigma_min, found.gamma, more), found.sigma_min, found.gamma, more)
    # name of the row -> (attribute of Levels, reason)
    rows = {
        "sigma_max": ("sigma_max", f"{far}; noise of this size covers it"),
        "sigma_min": ("sigma_min", "as given; choose it so small that the noise is invisible"),
        "ratio": ("gamma", close),
        "overlap": ("", "the share of a level's noise that lies within the noise of the next noisier level"),
        "levels": ("levels", "the fewest with this ratio or a smaller one"),
        "steps": ("steps", "as given, at each level; more steps are better and slower"),
        "step_size": ("step_size", "shorter steps keep more noise of the level before, longer steps add more noise"),
        "variance": (
            "final_variance",
            f"after these steps, divided by the level's own variance; 1 is best, {more} steps would give {later:.4g}",
        ),
        "evaluations": ("evaluations", "of the network for a sample, without the one that denoises it at the end"),
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
