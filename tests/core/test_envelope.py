"""What a record's value says: SPEC §2's envelope rules, with hypothesis for the shapes."""

import string
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_stream.core.envelope import (
    AcceptedEvent,
    read_deadline,
    read_event,
    read_result,
)
from agents_stream.core.errors import InvalidEvent
from agents_stream.core.events import EVENTS
from agents_stream.core.strict_json import MAX_VALUE_BYTES

CONVERSATION = {"sessionId": "s-1", "conversationId": "c-1"}
WITH_WORKSPACE = CONVERSATION | {"workspaceId": "w-1"}

GOOD: dict[str, dict[str, Any]] = {
    "agent/session.started": WITH_WORKSPACE | {"agentId": "a", "contactId": "k", "mode": "m"},
    "agent/session.updated": {"sessionId": "s-1", "state": {"free": [1, None]}},
    "agent/data.captured": {"sessionId": "s-1", "data": {"nombre": "Ana", "ciudad": None}},
    "agent/customer.message": CONVERSATION | {"messageId": "m-1", "content": ""},
    "agent/collecting_data.started": WITH_WORKSPACE,
    "agent/promos.offered": WITH_WORKSPACE | {"packOptions": ["1x"]},
    "agent/proactive.send": WITH_WORKSPACE | {"messageType": "reminder"},
    "agent/session.close": {"sessionId": "s-1", "reason": "handoff"},
    "agent/operator.action": {"sessionId": "s-1", "action": "pause", "by": "ana"},
}

MESSAGE = GOOD["agent/customer.message"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
extra_names = st.text(string.ascii_lowercase, min_size=1, max_size=12).map(lambda name: f"x_{name}")


def read(value: object, topic_event: str | None = None) -> AcceptedEvent:
    """Read a value as a record on the topic of `topic_event`."""
    return read_event(topic_event, orjson.dumps(value))


def reason(value: object, topic_event: str | None = None) -> str:
    """Return the reason for which a value is refused."""
    with pytest.raises(InvalidEvent) as refused:
        read(value, topic_event)
    return refused.value.reason


def test_there_is_an_example_of_every_event() -> None:
    """The examples below cover all of SPEC §2's events."""
    assert set(GOOD) == set(EVENTS)


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=30)  # of each of the nine events
@given(extra=st.dictionaries(extra_names, json_values, max_size=3), ts=json_values)
def test_envelope_and_bare_data_mean_the_same(name: str, extra: dict[str, Any], ts: object) -> None:
    """Both forms are read alike; extra fields and `ts` are kept as they are, whatever they hold."""
    data = GOOD[name] | extra
    bare = read(data, topic_event=name)
    enveloped = read({"name": name, "data": data, "id": "e-1", "ts": ts} | extra)
    assert bare == AcceptedEvent(name, "s-1", data)
    assert enveloped == AcceptedEvent(name, "s-1", data, "e-1", ts)


@pytest.mark.parametrize("topic_event", [*GOOD, None])
def test_the_envelopes_name_decides_on_whichever_topic(topic_event: str | None) -> None:
    """A name beats the topic."""
    event = read({"name": "agent/customer.message", "data": MESSAGE}, topic_event)
    assert (event.name, event.data) == ("agent/customer.message", MESSAGE)


@pytest.mark.parametrize("none", [None, ""])
def test_an_empty_or_null_id_is_none(none: object) -> None:
    """Two events with the id "" are not the same event (G1)."""
    assert read({"name": "agent/customer.message", "data": MESSAGE, "id": none}).event_id is None


@pytest.mark.parametrize("bad", [7, True, ["e"], {"e": 1}, 0, False])
def test_an_id_that_is_no_string_is_refused(bad: object) -> None:
    """We would not know which other id it equals."""
    value = {"name": "agent/customer.message", "data": MESSAGE, "id": bad}
    assert reason(value) == "invalid_schema"


def test_an_object_with_a_top_level_session_id_is_bare_data() -> None:
    """`agent/data.captured` has a field `data` and may have one called `name`."""
    data = {"name": "agent/session.close", "data": {"nombre": "Ana"}, "sessionId": "s-1"}
    assert read(data, "agent/data.captured") == AcceptedEvent("agent/data.captured", "s-1", data)


@pytest.mark.parametrize(
    "value, told",
    [
        ({"data": MESSAGE}, "`name`"),
        ({"name": 3, "data": MESSAGE}, "`name`"),
        ({"name": "agent/customer.message"}, "`data`"),
        ({"name": "agent/customer.message", "data": [MESSAGE]}, "`data`"),
        ({"name": "agent/customer.message", "data": {}, "sessionId": "s"}, "`sessionId`"),
        ([], "no object"),
        ("agent/customer.message", "no object"),
        (None, "no object"),
    ],
)
def test_without_a_topic_only_an_envelope_is_an_event(value: object, told: str) -> None:
    """The HTTP API says which rule of the envelope was broken."""
    with pytest.raises(InvalidEvent, match=told) as refused:
        read(value)
    assert refused.value.reason == "invalid_schema"


@pytest.mark.parametrize("name", ["", "agent/customer", "agent/customer.message ", "tool/result"])
def test_an_unknown_name_is_an_unknown_event(name: str) -> None:
    """Even on a topic that could tell what bare data is."""
    assert reason({"name": name, "data": MESSAGE}, "agent/customer.message") == "unknown_event"


@pytest.mark.parametrize("name", GOOD)
def test_every_required_field_is_required(name: str) -> None:
    """Without a required field an event is refused; the detail names it, and no value (SPEC §2)."""
    optional = {"state"}
    for field in set(GOOD[name]) - optional:
        less = {key: value for key, value in GOOD[name].items() if key != field}
        with pytest.raises(InvalidEvent, match=field) as refused:
            read({"name": name, "data": less})
        assert refused.value.reason == "invalid_schema"
        assert "Ana" not in refused.value.detail


@given(st.text(alphabet="aé€😀", min_size=1, max_size=260))
def test_a_session_id_has_at_most_256_bytes(session_id: str) -> None:
    """Bytes of UTF-8, not characters."""
    value = {"name": "agent/customer.message", "data": MESSAGE | {"sessionId": session_id}}
    if len(session_id.encode()) <= 256:
        assert read(value).session_id == session_id
    else:
        assert reason(value) == "invalid_schema"


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff{}", b'{"a": NaN}', b'{"a":1,"a":2}', None])
def test_what_is_no_json_is_invalid_json(raw: bytes | None) -> None:
    """Strict JSON only; a record without a value (a tombstone) says nothing either (G10)."""
    for read_value in (lambda value: read_event(None, value), read_result, read_deadline):
        with pytest.raises(InvalidEvent) as refused:
            read_value(raw)
        assert refused.value.reason == "invalid_json"


def test_a_value_above_one_mib_is_too_large() -> None:
    """The limit is exact, and it is judged before anything is parsed."""
    frame = len(orjson.dumps({"name": "agent/customer.message", "data": MESSAGE}))
    fits = MESSAGE | {"content": "x" * (MAX_VALUE_BYTES - frame)}
    assert read({"name": "agent/customer.message", "data": fits}).data == fits
    with pytest.raises(InvalidEvent, match="1048577 bytes") as refused:
        read_event(None, b"{" * (MAX_VALUE_BYTES + 1))
    assert refused.value.reason == "too_large"


def test_a_result_and_a_deadline_are_bare_data() -> None:
    """They have no id and no envelope; what is extra is kept."""
    result = {"commandId": "c", "sessionId": "s", "attempt": 1, "status": "failed", "x": 1}
    deadline = {"sessionId": "s", "name": "promos.reply", "generation": 4, "dueAt": 7}
    assert read_result(orjson.dumps(result)) == AcceptedEvent("tool/result", "s", result)
    assert read_deadline(orjson.dumps(deadline)) == AcceptedEvent("session/deadline", "s", deadline)


@pytest.mark.parametrize("value", [[], "x", {}, {"name": "tool/result", "data": {}}])
def test_a_result_or_deadline_that_is_none_is_invalid(value: object) -> None:
    """Whatever else may lie on those topics stops nothing (G10)."""
    for read_value in (read_result, read_deadline):
        with pytest.raises(InvalidEvent) as refused:
            read_value(orjson.dumps(value))
        assert refused.value.reason == "invalid_schema"
