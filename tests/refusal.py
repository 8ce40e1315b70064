"""What every refusal is: a UsageError of one line that holds what a person needs."""

import pytest

from scoregen.errors import UsageError


def refused(call, *parts: str) -> str:
    """The line that `call()` refuses with; it holds all the parts."""
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message
