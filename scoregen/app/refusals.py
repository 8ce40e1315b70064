"""The reasons why a configuration is refused, all at once, each with the flag that fixes it.

Parts give the accepted settings as "part=value" or "part.option=value" (see `scoregen.errors.Refusal`). The table that
turns them into flags is here, and only here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from scoregen.app.config import first_line
from scoregen.errors import Refusal, UsageError

if TYPE_CHECKING:
    from scoregen.app.config import Config

# part -> its section in the configuration. The options of "model" are at the top, or in the section of the network.
SECTIONS = {
    **{name: name for name in ("data", "scaling", "process", "times", "target", "loss", "weighting", "net")},
    **{name: name for name in ("label_dropout", "train", "optimizer", "schedule", "sampler", "eval")},
    **{name: f"sampler.{name}" for name in ("step", "corrector", "grid", "x0", "control")},
    "model": "",
    "ema": "train.ema",
    "likelihood": "eval.likelihood",
}
_FIX = re.compile(rf"(?<![\w.])({'|'.join(SECTIONS)})((?:\.\w+)*)=(?=\S)")


def in_flags(fix: str, config: Config, sections: Mapping[str, str] = SECTIONS) -> str:
    """A fix with its settings written as flags of the command line; other text stays as it is.

    >>> config = ConfigDict({"target": "eps", "loss": {"name": "ism", "ism": {"max_dims": 256}, "vlb": {}}})
    >>> for fix in ("target=v", "loss=ssm", "loss.max_dims=300", "loss.vlb.variance=learned", "another seed"):
    ...     print(in_flags(fix, config))
    --config.target=v
    --config.loss.name=ssm
    --config.loss.ism.max_dims=300
    --config.loss.vlb.variance=learned
    another seed
    """

    def flag(found: re.Match) -> str:
        part, option = found[1], found[2].removeprefix(".")
        return f"--config.{_key(part, option, config, sections)}="

    return _FIX.sub(flag, fix)


def _key(part: str, option: str, config: Config, sections: Mapping[str, str]) -> str:
    if part == "model":  # some options of a model are in the section of the network
        return option if option in config else f"net.{option}"
    path = sections[part]
    section = config
    for name in path.split("."):
        section = section.get(name, ConfigDict()) if isinstance(section, ConfigDict) else ConfigDict()
    if not isinstance(section, ConfigDict):
        return path
    if not option:
        return f"{path}.name" if "name" in section else path
    own = option in section or option.partition(".")[0] in section
    return f"{path}.{option}" if own or "name" not in section else f"{path}.{section.name}.{option}"


class Refusals:
    """Collects the reasons why a configuration is refused, to raise them together.

    >>> refusals = Refusals(ConfigDict({"target": "eps", "net": {"name": "mlp", "mlp": {}}}))
    >>> refusals.add(Refusal("no x0 follows from this output", ("target=v", "target=x0")))
    >>> refusals.add("images are needed", "net=unet")
    >>> for reason in refusals.reasons:
    ...     print(reason)
    no x0 follows from this output: say --config.target=v or --config.target=x0
    images are needed: say --config.net.name=unet
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.reasons: list[str] = []

    def add(self, refusal: Refusal | str | None, *fixes: str, sections: Mapping[str, str] = SECTIONS) -> None:
        """Add a reason and its fixes. None adds nothing, and the same reason is added only once.

        `sections` overrides the sections of the parts, such as "sampler.process" for the process of the sampling.
        """
        if refusal is None:
            return
        refusal = refusal if isinstance(refusal, Refusal) else Refusal(refusal, fixes)
        said = " or ".join(in_flags(fix, self.config, sections) for fix in refusal.fixes)
        reason = f"{refusal.reason}: say {said}" if said else refusal.reason
        if reason not in self.reasons:
            self.reasons.append(reason)

    def extend(self, refusals: Iterable[Refusal], sections: Mapping[str, str] = SECTIONS) -> None:
        """Add all of these refusals."""
        for refusal in refusals:
            self.add(refusal, sections=sections)

    @contextlib.contextmanager
    def collect(self, before: str = "") -> Iterator[None]:
        """Turn a UsageError, ValueError or TypeError of the block into a reason, with `before` in front of it."""
        try:
            yield
        except (UsageError, ValueError, TypeError) as error:
            for line in error.args if isinstance(error, UsageError) else [first_line(error)]:
                self.add(f"{before}{line}")

    def check(self) -> None:
        """Raise one UsageError with a line for each reason, if there are any."""
        if self.reasons:
            raise UsageError(*self.reasons)
