"""What a person can fix, and what a part refuses."""

from __future__ import annotations

import dataclasses


class UsageError(Exception):
    """Something that a user can fix. Each argument is one line that says what is wrong and what to do.

    >>> print(UsageError("steps=0: at least 1 is needed", "batch=0: at least 1 is needed"))
    steps=0: at least 1 is needed; batch=0: at least 1 is needed
    """

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why parts do not go together, and what would.

    Attributes:
        reason: one sentence without a full stop, in the words of the field.
        fixes: what would be accepted, each "part=value" or "part.option=value", such as "target=v" or
            "process.t_max=0.999". A command line turns them into its own options.

    >>> print(Refusal("the velocity is a derivative in time, and a chain has none", ("target=v", "process=vp")))
    the velocity is a derivative in time, and a chain has none: take target=v or process=vp
    """

    reason: str
    fixes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.reason}: take {' or '.join(self.fixes)}" if self.fixes else self.reason
