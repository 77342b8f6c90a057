"""What is in hand of a partition: how much, and when it last grew less."""

import pytest

from agents_stream.kafka.backlog import Backlog


def test_what_is_done_leaves_and_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is what is finished, not what is fetched on top."""
    now = 10.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    one = Backlog()
    one.add(5, 100)
    now = 20.0
    one.add(9, 50)
    assert (one.size, one.moved_at) == (150, 10.0)
    one.done(4)
    assert (one.size, one.moved_at) == (150, 10.0)
    one.done(5)
    assert (one.size, one.moved_at) == (50, 20.0)
    now = 30.0
    one.done(9)
    assert (one.size, list(one.fetched), one.moved_at) == (0, [], 30.0)
    now = 40.0
    one.add(12, 1)
    assert one.moved_at == 40.0
