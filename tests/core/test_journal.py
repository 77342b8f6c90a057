"""The journal's entries: what is written is what is read."""

import string
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.core.journal import (
    RULES_VERSION,
    SCHEMA_VERSION,
    Durations,
    Entry,
    Source,
    decode_entry,
    encode_entry,
)

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(string.printable),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abñ\x00"), inner),
    max_leaves=8,
)
offsets = st.integers(0, 2**63 - 1)
entries = st.builds(
    Entry,
    kind=st.sampled_from(["event", "deadline", "result"]),
    name=st.text("abc/._"),
    session_id=st.text(min_size=1),
    data=st.dictionaries(st.text(), json_values, max_size=4),
    source=st.builds(Source, st.text("ab."), offsets, offsets, offsets, st.booleans()),
    durations=st.builds(Durations, offsets, offsets, offsets, offsets),
    event_id=st.none() | st.text(min_size=1),
    sent_at=json_values,
)
PLAIN = Entry("event", "n", "s1", {}, Source("agent.n", 2, 5, 9, keyed=True), Durations())


@given(entries)
def test_what_is_written_is_what_is_read(entry: Entry) -> None:
    """G8: replay needs nothing that is not in the entry, and finds all of it."""
    raw = encode_entry(entry)
    assert decode_entry(raw) == entry
    assert encode_entry(decode_entry(raw)) == raw


def test_an_entry_carries_the_settings_and_the_rules() -> None:
    """G8: "each journalled event carries the settings that its decision depends on"."""
    line = orjson.loads(encode_entry(replace(PLAIN, durations=Durations(1, 2, 3, 4))))
    assert line["durations"] == [1, 2, 3, 4]
    assert (line["v"], line["rules"]) == (SCHEMA_VERSION, RULES_VERSION)


def test_the_durations_of_the_contract() -> None:
    """SPEC §4 and §7: 6 minutes, 2 minutes, 10 minutes, 1 second."""
    assert Durations() == Durations(360_000, 120_000, 600_000, 1_000)


@pytest.mark.parametrize("field", ["v", "rules"])
def test_what_a_newer_version_wrote_is_refused(field: str) -> None:
    """DESIGN §1: entries carry a version, so that sessions survive an upgrade, and a downgrade."""
    line = orjson.loads(encode_entry(PLAIN))
    line[field] += 1
    with pytest.raises(ValueError, match="upgrade this worker"):
        decode_entry(orjson.dumps(line))


def test_a_source_is_placed_by_its_partition() -> None:
    """Records remember what they have seen by topic and partition."""
    assert PLAIN.source.place == "agent.n/2"
