"""What may come in: SPEC §2's table field by field, the state's types of §3, results of §5."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.core.errors import InvalidEvent
from agents_stream.core.events import (
    EVENTS,
    MAX_ORDER_ID_CHARS,
    MAX_SESSION_ID_BYTES,
    CustomerMessage,
    DeadlineDue,
    ProactiveSend,
    SessionUpdated,
    ToolResult,
    Wire,
    validate,
)

TALK = {"sessionId": "s1", "conversationId": "c1"}
WORK = TALK | {"workspaceId": "w1"}
MINIMAL: dict[str, dict[str, Any]] = {
    "agent/session.started": WORK | {"agentId": "a1", "contactId": "k1", "mode": "m"},
    "agent/session.updated": {"sessionId": "s1"},
    "agent/data.captured": {"sessionId": "s1", "data": {"nombre": "Ana", "ciudad": None}},
    "agent/customer.message": TALK | {"messageId": "m1", "content": ""},
    "agent/collecting_data.started": WORK,
    "agent/promos.offered": WORK | {"packOptions": []},
    "agent/proactive.send": WORK | {"messageType": "reminder"},
    "agent/session.close": {"sessionId": "s1", "reason": "timeout"},
    "agent/operator.action": {"sessionId": "s1", "action": "pause", "by": "olga"},
}
RESULT = {"sessionId": "s1", "commandId": "x", "attempt": 1, "status": "succeeded"}
REQUIRED = [(name, field) for name, data in MINIMAL.items() for field in data]
STRINGS = [(name, field) for name, field in REQUIRED if isinstance(MINIMAL[name][field], str)]


def refused(model: type[Wire], data: dict[str, Any]) -> str:
    """The detail with which data is refused."""
    with pytest.raises(InvalidEvent) as caught:
        validate(model, data)
    assert caught.value.reason == "invalid_schema"
    return caught.value.detail


def test_the_table_names_every_event() -> None:
    """SPEC §2: these events and no others."""
    assert set(EVENTS) == set(MINIMAL)


@pytest.mark.parametrize("name", MINIMAL)
def test_what_is_required_suffices(name: str) -> None:
    """SPEC §2: the optional fields may be absent; extra fields are kept."""
    event = validate(EVENTS[name], MINIMAL[name] | {"extra": [1]})
    assert event.to_data() == MINIMAL[name] | {"extra": [1]}


@pytest.mark.parametrize(("name", "field"), REQUIRED)
def test_what_is_required_is_missed(name: str, field: str) -> None:
    """SPEC §2: "required unless marked ?"; the detail names event and field."""
    without = {key: value for key, value in MINIMAL[name].items() if key != field}
    for data in (without, without | {field: None}):
        detail = refused(EVENTS[name], data)
        assert detail.startswith(f"{name}: {field}: ")


@pytest.mark.parametrize(("name", "field"), STRINGS)
@pytest.mark.parametrize("value", ["", 7, True, ["x"], {"x": 1}])
def test_strings_are_strings_and_not_empty(name: str, field: str, value: object) -> None:
    """SPEC §2: all strings are non-empty except `content`; no number passes for a string."""
    data = MINIMAL[name] | {field: value}
    if field == "content" and value == "":
        assert validate(EVENTS[name], data)
    else:
        assert field in refused(EVENTS[name], data)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("agent/session.updated", {"expectedVersion": None}, {"expectedVersion": "1"}),
        ("agent/session.updated", {"expectedVersion": 3}, {"expectedVersion": True}),
        ("agent/session.updated", {"expectedVersion": 0}, {"expectedVersion": 1.5}),
        ("agent/session.updated", {"mode": None}, {"mode": ""}),
        ("agent/session.updated", {"state": None}, {"state": []}),
        ("agent/session.updated", {"state": {"x": [None, 1]}}, {"state": "x"}),
        ("agent/data.captured", {"data": {}}, {"data": []}),
        ("agent/data.captured", {"data": {"a": ""}}, {"data": {"a": 1}}),
        ("agent/data.captured", {"data": {"": "x"}}, {"data": {"a": {"b": "c"}}}),
        ("agent/promos.offered", {"packOptions": ["1x"]}, {"packOptions": [1]}),
        ("agent/promos.offered", {"packOptions": ["1x"]}, {"packOptions": [""]}),
        ("agent/promos.offered", {"packOptions": ["1x"]}, {"packOptions": "1x"}),
        ("agent/proactive.send", {"messageType": "followup"}, {"messageType": "hello"}),
        ("agent/proactive.send", {"messageType": "timeout_warning"}, {"content": 1}),
        ("agent/proactive.send", {"content": ""}, {"content": ["x"]}),
        ("agent/session.close", {"reason": "handoff"}, {"reason": "other"}),
        ("agent/session.close", {"reason": "cancelled"}, {"reason": "Completed"}),
        ("agent/operator.action", {"name": "promos.reply"}, {"action": "stop"}),
        ("agent/operator.action", {"name": None}, {"name": ""}),
        ("agent/operator.action", {"commandId": "x"}, {"commandId": ""}),
        ("agent/operator.action", {"commandId": None}, {"commandId": 7}),
    ],
)
def test_optional_and_chosen_fields(name: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
    """SPEC §2's types, choices and fields marked `?`; a null there means absent."""
    assert validate(EVENTS[name], MINIMAL[name] | good)
    assert refused(EVENTS[name], MINIMAL[name] | bad)


@given(st.text(min_size=1, max_size=300))
def test_a_session_id_has_at_most_256_bytes(session_id: str) -> None:
    """SPEC §2: bytes, not characters."""
    data = {"sessionId": session_id, "reason": "timeout"}
    if len(session_id.encode(errors="surrogatepass")) <= MAX_SESSION_ID_BYTES == 256:
        assert validate(EVENTS["agent/session.close"], data).session_id == session_id
    else:
        assert "256 bytes" in refused(EVENTS["agent/session.close"], data)


def test_a_session_id_of_wide_characters() -> None:
    """SPEC §2: 128 characters of two bytes fit, 129 do not."""
    fits, too_long = "ñ" * 128, "ñ" * 129
    assert validate(EVENTS["agent/session.updated"], {"sessionId": fits})
    assert "256 bytes" in refused(EVENTS["agent/session.updated"], {"sessionId": too_long})


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("datos_capturados", [{}, {"nombre": 1}], [None, [], "x", 1]),
        ("proactive_started_at", [None, "2026-01-31T12:00:00.000Z"], [1, "", "now", {}]),
        ("ofrecer_promos_at", [None, "2026-01-31T12:00:00+01:00"], [0, "31/01/2026", True]),
        ("pack_seleccionado", [None, "2x", ""], [2, [], {}]),
        ("nota", [None, 1, "x", [], {"datos_capturados": None}], []),
    ],
)
def test_four_fields_keep_their_types(field: str, good: list[Any], bad: list[Any]) -> None:
    """SPEC §3: what `session.updated` merges in is free, but for these four."""
    for value in good:
        data = {"sessionId": "s1", "state": {field: value}}
        assert validate(SessionUpdated, data).to_data() == data
    for value in bad:
        assert field in refused(SessionUpdated, {"sessionId": "s1", "state": {field: value}})


@pytest.mark.parametrize("field", ["commandId", "sessionId", "attempt", "status"])
def test_a_result_needs_four_fields(field: str) -> None:
    """SPEC §5: these are required; the tool is not."""
    assert validate(ToolResult, RESULT)
    assert field in refused(ToolResult, {key: RESULT[key] for key in RESULT if key != field})


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"status": "failed"}, {"status": "done"}),
        ({"status": "unknown"}, {"status": None}),
        ({"attempt": 4}, {"attempt": 0}),
        ({"attempt": 5}, {"attempt": "1"}),
        ({"retryable": None}, {"retryable": "yes"}),
        ({"retryAfterMs": 1.5}, {"retryAfterMs": "1"}),
        ({"retryAfterMs": -1}, {"retryAfterMs": True}),
        ({"error": None}, {"error": "broken"}),
        ({"error": {"code": "x", "more": 1}}, {"error": {"code": 7}}),
        ({"outputs": None}, {"outputs": []}),
    ],
)
def test_the_types_of_a_result(good: dict[str, Any], bad: dict[str, Any]) -> None:
    """SPEC §5: the shape of a result; null stands for absent."""
    assert validate(ToolResult, RESULT | good)
    assert refused(ToolResult, RESULT | bad)


@pytest.mark.parametrize("order_id", [None, "", True, 1.5, [], {}, "x" * (MAX_ORDER_ID_CHARS + 1)])
def test_an_order_that_succeeded_has_an_id(order_id: object) -> None:
    """SPEC §5, G7: an order's success needs `outputs.id`; a message's does not."""
    order = RESULT | {"tool": "crm.order.create", "outputs": {"id": order_id}}
    assert "outputs.id is required" in refused(ToolResult, order)
    assert "outputs.id is required" in refused(ToolResult, order | {"outputs": None})
    assert validate(ToolResult, order | {"status": "failed"})
    assert validate(ToolResult, order | {"tool": "whatsapp.message.send"}).output_id is None


@pytest.mark.parametrize("order_id", ["order-1", 7, 0, -1, "0", "x" * MAX_ORDER_ID_CHARS])
def test_an_order_id_is_a_string_or_a_whole_number(order_id: object) -> None:
    """SPEC §5: `outputs.id` is passed on as it came."""
    order = RESULT | {"tool": "crm.order.create", "outputs": {"id": order_id}}
    assert validate(ToolResult, order).output_id == order_id


def test_wire_names_only() -> None:
    """A producer's Python name is an extra field on the wire, not a way around the contract."""
    snake = {"session_id": "s1", "conversation_id": "c1", "message_id": "m1", "content": "x"}
    assert "sessionId" in refused(CustomerMessage, snake)
    both = validate(CustomerMessage, MINIMAL["agent/customer.message"] | {"session_id": "other"})
    assert both.session_id == "s1"


def test_a_producer_constructs_events_by_python_names() -> None:
    """DESIGN §6: the same models are what producers import; absent fields stay absent."""
    event = ProactiveSend(
        session_id="s1", conversation_id="c1", workspace_id="w1", message_type="followup"
    )
    assert event.to_data() == WORK | {"messageType": "followup"}


def test_a_deadline_is_a_fact_like_others() -> None:
    """DESIGN §4: name, generation and the time for which it was armed."""
    due = {"sessionId": "s1", "name": "promos.reply", "generation": 0, "dueAt": 5}
    assert validate(DeadlineDue, due).to_data() == due
    assert "generation" in refused(DeadlineDue, due | {"generation": None})


def test_the_detail_keeps_what_a_customer_wrote_to_itself() -> None:
    """Dead letters hold the value; their detail goes into logs, and names fields only."""
    data = MINIMAL["agent/customer.message"] | {"content": ["secret words"], "messageId": 0}
    detail = refused(CustomerMessage, data)
    assert "content" in detail
    assert "messageId" in detail
    assert "secret" not in detail
