"""By what an event is known again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.core.journal import Durations, Entry, Source
from agents_stream.core.message_ids import dedup_key


def key(
    event_id: str | None = None, name: str = "agent/customer.message", **data: Any
) -> str | None:
    """The key of an event."""
    source = Source("agent.n", 0, 0, 0, keyed=True)
    return dedup_key(Entry("event", name, "s1", data, source, Durations(), event_id))


def test_a_producers_id_counts_before_the_messages_own() -> None:
    """G2: "a `customer.message` without one by its messageId"."""
    assert key("e1", messageId="m1") == key("e1", messageId="m2") == key("e1", name="agent/other")
    assert key(messageId="m1") != key("m1")


@pytest.mark.parametrize("event_id", [None, ""])
def test_no_id_is_no_identity(event_id: str | None) -> None:
    """SPEC §2: an empty or null id means none."""
    assert key(event_id, name="agent/promos.offered", messageId="m1") is None
    assert key(event_id, messageId="m1") == key(messageId="m1")


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_different_ids_have_different_keys(one: str, other: str) -> None:
    """G1: no event is taken for another's repetition."""
    assert (key(one) == key(other)) is (one == other)
    assert (key(messageId=one) == key(messageId=other)) is (one == other)
    assert key(one) != key(messageId=other)


@given(st.text(min_size=30, max_size=2_000), st.sampled_from("ab"), st.sampled_from("ab"))
def test_keys_are_short_and_long_ids_still_differ(event_id: str, one: str, other: str) -> None:
    """STYLE rule 8: 256 of them in every record, however long a producer's ids are."""
    first, second = key(event_id + one), key(event_id + other)
    assert first
    assert len(first) <= 48
    assert (first == second) is (one == other)
