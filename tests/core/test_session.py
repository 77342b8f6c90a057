"""The record: its bytes, its limits, and the questions it answers about itself."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.core.session import (
    REQUIRED_DATA,
    Deadline,
    FlowRun,
    PendingCommand,
    SessionRecord,
    content_size,
    decode_alarms,
    decode_record,
    empty_state,
    encode_record,
    iso,
    journal_position,
)

COMMAND = PendingCommand(
    id="x",
    tool="whatsapp.message.send",
    flow="proactive",
    then="sent",
    run=4,
    state="awaiting",
    attempt=2,
    workspace_id="w1",
    conversation_id="c1",
    inputs={"contactId": "c1", "message": "hola"},
    issued_at_ms=9,
    as_of=8,
    extra={"missing": ["ciudad"]},
)
FULL = SessionRecord(
    session_id="s1",
    workspace_id="w1",
    state=empty_state() | {"nota": [1, {"a": None}]},
    deadlines={"promos.reply": Deadline(7, 3)},
    flows={"promos": FlowRun("awaiting_choice", 3, "c1", "w1", 1)},
    pending={"x": COMMAND},
    own_events=("e1",),
    seen={"agent.n/2": (5, 6)},
    recent_ids=("i:1", "m:2"),
    home=2,
    journal_offset=8,
    journal_timestamp=9,
    outbox={8: ({"type": "command", "body": {"id": "x"}},)},
)


@pytest.mark.parametrize("record", [FULL, SessionRecord("s1")])
def test_what_is_written_is_what_is_read(record: SessionRecord) -> None:
    """G8: a record that went through the changelog is equal; random ones are in the properties."""
    assert decode_record(encode_record(record)) == record


@pytest.mark.parametrize("record", [FULL, SessionRecord("s1"), replace(FULL, paused=True)])
def test_a_wheel_reads_of_a_record_what_it_says(record: SessionRecord) -> None:
    """G3: a wheel made of alarms is the wheel made of the records."""
    alarms = decode_alarms(encode_record(record))
    assert alarms == (record.session_id, record.deadlines, record.home, record.paused)


def test_what_a_newer_version_wrote_is_refused() -> None:
    """DESIGN §1: records carry a version, so that sessions survive an upgrade."""
    line = orjson.loads(encode_record(FULL))
    assert line["v"] == 1
    with pytest.raises(ValueError, match="upgrade this worker"):
        decode_record(orjson.dumps(line | {"v": 2}))
    with pytest.raises(ValueError, match="upgrade this worker"):
        decode_alarms(orjson.dumps(line | {"v": 2}))


def test_recovery_compares_records_by_their_bytes() -> None:
    """DESIGN §3: recovery keeps the highest (time, offset), without reading all of a record."""
    assert journal_position(encode_record(FULL)) == (9, 8)


@pytest.mark.parametrize(
    ("offset", "timestamp", "expected"),
    [(8, 9, True), (7, 9, True), (7, 8, True), (9, 9, False), (8, 10, False), (3, 10, False)],
)
def test_a_position_is_passed_in_offset_and_time(
    offset: int, timestamp: int, expected: object
) -> None:
    """DESIGN §3 step 1: not beyond, in both; a lower offset with a later time is new."""
    assert FULL.passed(offset, timestamp) is expected


@given(st.dictionaries(st.sampled_from(REQUIRED_DATA), st.sampled_from(["x", "", None, " ", 0])))
def test_missing_data_is_absent_null_or_empty(captured: dict[str, Any]) -> None:
    """SPEC §3: in the order of the contract, whatever the order in which it came."""
    record = SessionRecord("s1", state=empty_state() | {"datos_capturados": captured})
    expected = [
        name
        for name in ("nombre", "telefono", "ciudad", "direccion")
        if name not in captured or captured[name] is None or captured[name] == ""
    ]
    assert record.missing_data() == expected


def test_a_new_state_is_that_of_the_contract() -> None:
    """SPEC §3: `datos_capturados` is {} at first; no two sessions share it."""
    assert empty_state() == {
        "datos_capturados": {},
        "proactive_started_at": None,
        "ofrecer_promos_at": None,
        "pack_seleccionado": None,
    }
    assert empty_state()["datos_capturados"] is not empty_state()["datos_capturados"]


@pytest.mark.parametrize(
    ("timestamp_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_769_860_800_000, "2026-01-31T12:00:00.000Z"),
        (1_769_860_800_007, "2026-01-31T12:00:00.007Z"),
        (1_769_860_799_999, "2026-01-31T11:59:59.999Z"),
    ],
)
def test_times_are_iso_8601_with_milliseconds(timestamp_ms: int, text: str) -> None:
    """SPEC: times that are said to be ISO 8601 are UTC with milliseconds and a Z."""
    assert iso(timestamp_ms) == text


@pytest.mark.parametrize(
    "changes",
    [{"outbox": {}}, {"seen": {}}, {"recent_ids": ()}, {"journal_offset": 1_000_000}],
)
def test_bookkeeping_does_not_count_as_content(changes: dict[str, Any]) -> None:
    """SPEC §3 limits what events add; what we keep for ourselves has limits of its own."""
    assert content_size(replace(FULL, **changes)) == content_size(FULL)
    assert content_size(replace(FULL, mode="longer")) > content_size(FULL)


def test_to_close_or_pause_a_session_needs_no_room() -> None:
    """SPEC §3: a full session can still be closed."""
    closed = replace(FULL, status="closed", close_reason="completed", paused=True)
    assert content_size(closed) == content_size(FULL)


def test_a_command_on_the_wire() -> None:
    """SPEC §5: these fields and no others."""
    assert COMMAND.to_wire("s1") == {
        "id": "x",
        "tool": "whatsapp.message.send",
        "workspaceId": "w1",
        "sessionId": "s1",
        "attempt": 2,
        "issuedAt": 9,
        "asOf": 8,
        "inputs": {"contactId": "c1", "message": "hola"},
    }


@pytest.mark.parametrize(("state", "issued"), [("awaiting", 2), ("retrying", 2), ("held", 1)])
def test_a_held_attempt_was_not_issued(state: Any, issued: int) -> None:
    """SPEC §5: only a success of an issued attempt counts."""
    assert replace(COMMAND, state=state).issued_attempts == issued
