"""Show what a training would see of a folder of pictures.

    scoregen data photos
    scoregen data photos --size=32 --crop=none --out=cut.png

Prepares the pictures as `scoregen train images --data=FOLDER` does. Prints how many there are, by class, format, size
and kind of pixels, and which files cannot be read. Draws some of them, as they are and as they would be trained on.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from scoregen.app import config as config_lib
from scoregen.app.arguments import Arguments, Flag, parse, source_of
from scoregen.app.command import answer, say, say_flags, say_help
from scoregen.errors import UsageError
from scoregen.files import make_folder

if TYPE_CHECKING:
    import numpy as np

    from scoregen.data.folder import Opened

FLAGS = (
    Flag("size", "height and width in pixels, as 64 or (48,64)", value="N", key="data.folder.size"),
    Flag(
        "prepared",
        "where to store the prepared pictures (default: the cache)",
        value="FOLDER",
        key="data.folder.prepared",
    ),
    Flag("crop", "center, random or none", value="NAME", key="data.folder.crop"),
    Flag("channels", "1 for grey, 3 for colour, 0 to find out", value="N", key="data.folder.channels"),
    Flag("background", "behind transparent pixels: grey, or (red,green,blue)", value="N", key="data.folder.background"),
    Flag("out", "the picture to write, a .png outside of FOLDER", "data.png", value="FILE"),
)
DRAWN = 8  # pictures
# What Pillow calls the kinds of pixels, in words.
_MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with transparency",
    "P": "palette",
    "RGB": "colour",
    "RGBA": "colour with transparency",
    "I": "grey of 32 bits",
    "F": "grey of floating-point numbers",
}
SIDE = 128  # the longer side of a picture that is drawn, in pixels


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(argv, _run, _help)


def _help(console: Console) -> None:
    lines = [(flag.usage, flag.help) for flag in FLAGS]
    lines.append(("--config.data.folder.OPTION=VALUE", "another option of the source, such as held_out or strict"))
    about = f"{__doc__}\nExit codes: 0 done; 2 an error that you can fix, one line each."
    say_help(console, "data FOLDER", about, lambda: say_flags(console, lines))


def _run(argv: Sequence[str], console: Console) -> int:
    given = parse(["--config=images", *argv], FLAGS, takes=1, faults=_faults)
    assert given.config is not None
    if wrong := [text for key, text in given.typed().items() if not key.startswith("data.folder.")]:
        raise UsageError(*(f"{text} has no effect here: options of config.data.folder have" for text in wrong))
    out = Path(given.values["out"]).expanduser()
    make_folder(out.parent, "--out")

    from scoregen.app import figures
    from scoregen.app.build import naming_options
    from scoregen.data.folder import Options

    with given.as_typed(), naming_options(given.config):
        options = Options(given.positional[0], **config_lib.tuples(given.config.data.folder.to_dict()))
        found = options.opened()
    for line in found.dataset.notes:
        say(console, line)
    for name, value in _counts(found):
        say(console, f"{name:<9}{value}")
    lines = list(_lines(found))
    page = figures.mosaic(lines, f"{len(lines[0][1])} of {len(found.table):,} pictures in {found.root}")
    say(console, f"The picture: {figures.save(out, page)}")
    return 0


def _faults(found: Arguments) -> Iterable[str]:
    if not found.positional:
        yield "say which folder, such as: scoregen data photos"
    elif source := source_of(found.positional[0]):
        file = shlex.quote(found.positional[0])
        others = "" if source == "table" else "; or the preset series, fields or volumes"
        yield (
            f"{file} is no folder of pictures. A training says what it reads of a file: scoregen train points "
            f"--data={file}{others}"
        )
    out = Path(found.values["out"]).expanduser()
    if out.suffix.lower() != ".png":
        yield f"--out={out}: a .png file is needed"
    elif out.exists() and not _is_ours(out):
        yield f"{out} is there, and scoregen did not write it: say another --out=FILE.png"
    elif found.positional and Path(found.positional[0]).expanduser().resolve() in out.resolve().parents:
        yield f"{out} would be one of the pictures in {found.positional[0]}: say --out=FILE.png with another folder"


def _is_ours(path: Path) -> bool:
    from scoregen.app import figures  # imported only if there is a picture to look at

    return figures.is_ours(path)


def _counts(found: Opened) -> Iterable[tuple[str, str]]:
    """What is in the folder, by format, kind of pixels and size."""
    import numpy as np

    kinds = found.table.counts()
    for name, key in (("formats", "format"), ("pixels", "mode")):
        counts = Counter()
        for kind, count in kinds:
            counts[_in_words(getattr(kind, key))] += count
        yield name, ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())
    sizes = found.table.rows["size"]
    sizes = sizes[np.argsort(sizes.astype(np.int64).prod(axis=1), kind="stable")].tolist()
    least, middle, most = (f"{size[0]}x{size[1]}" for size in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    if least == most:
        yield "sizes", f"all {least} (height x width)"
    else:
        yield "sizes", f"{least} to {most}, half of them up to {middle} (height x width)"


def _in_words(kind: str) -> str:
    """A kind of pixels in words; a format, and a kind without words, as it is."""
    return "grey of 16 bits" if kind.startswith("I;16") else _MODES.get(kind, kind)


def _lines(found: Opened) -> Iterable[tuple[str, list[np.ndarray]]]:
    """The first pictures, as they are and as they are trained on."""
    import numpy as np

    from scoregen.data.pictures import Unreadable, Wanted, read

    data, whole, cut = found.dataset, [], []
    first = zip(found.table.names[:DRAWN], found.table.rows["size"].tolist(), data.train, strict=False)
    for name, (high, wide), made in first:
        scale = SIDE / max(high, wide)
        wanted = Wanted(max(1, round(scale * high)), max(1, round(scale * wide)), "none", found.wanted.background)
        try:
            whole.append(read(found.root / name, wanted).pixels)
        except Unreadable:  # since it was prepared
            continue
        times = max(1, SIDE // max(made.shape[:2]))
        large: Any = made.repeat(times, 0).repeat(times, 1)
        cut.append(np.broadcast_to(large, (*large.shape[:2], 3)))
    yield "in the\nfolder", whole
    yield "for the\ntraining", cut
