"""The error family: split by what the caller must do (STYLE rule 6)."""

import pytest

from agents_stream.core.errors import (
    AgentsStreamError,
    BrokerUnreachable,
    InvalidEvent,
    RetryableError,
    TerminalError,
)


def test_an_invalid_event_says_why() -> None:
    """SPEC §2: a dead letter has the reason's code and a sentence for the sender."""
    error = InvalidEvent("invalid_json", "NaN is no JSON")
    assert (error.reason, error.detail) == ("invalid_json", "NaN is no JSON")
    assert str(error) == "invalid_json: NaN is no JSON"


@pytest.mark.parametrize("kind", [RetryableError, TerminalError, BrokerUnreachable])
def test_the_family_has_one_root(kind: type[AgentsStreamError]) -> None:
    """What we raise on purpose can be told from bugs; the three branches exclude each other."""
    branches = [InvalidEvent, RetryableError, TerminalError]
    assert [issubclass(kind, branch) for branch in branches].count(True) == 1
    assert issubclass(kind, AgentsStreamError)
