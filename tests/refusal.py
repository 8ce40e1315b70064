"""Every refusal is a UsageError of one line, which holds what the user needs."""

import pytest

from scoregen.errors import UsageError


def refused(call, *parts: str) -> str:
    """The message of the UsageError that `call()` raises: one line, which holds all the parts."""
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message
