"""What a record's value says: an event in its envelope or bare, a tool result, a deadline.

These are the rules of SPEC §2, and the only place that knows them: ingress reads records with
them, the HTTP API and the producers' client ask them before anything is sent, so that what was
accepted once is accepted everywhere. Pure: bytes or JSON values in, facts or `InvalidEvent` out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agents_stream.core.errors import InvalidEvent
from agents_stream.core.events import (
    EVENTS,
    CustomerMessage,
    DeadlineDue,
    ToolResult,
    Wire,
    validate,
)
from agents_stream.core.strict_json import MAX_VALUE_BYTES, dump, parse_object

_MAX_NAME_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class AcceptedEvent:
    """A fact that may enter the journal.

    `data` is what the producer wrote, extra fields included; `event_id` is its id for
    deduplication, if it gave one; `ts` whatever it wrote there, kept as information only.
    """

    name: str
    session_id: str
    data: Mapping[str, Any]
    event_id: str | None = None
    ts: Any = None


@dataclass(frozen=True, slots=True)
class SealedEvent:
    """An event that was judged and is ready for its topic.

    `event_id` is what it will be recognised by: the id in its envelope, or a message's own.
    """

    name: str
    session_id: str
    event_id: str
    value: bytes


def read_event(topic_event: str | None, raw: bytes | None) -> AcceptedEvent:
    """Read the value of a record on an `agent.*` topic.

    `topic_event` is the event that bare data on that topic stands for; None where only an
    envelope is one (the HTTP API, the client).

    Raises:
        InvalidEvent: `too_large`, `invalid_json`, `invalid_schema` or `unknown_event`.

    """
    return accept_event(topic_event, parse_object(raw))


def accept_event(topic_event: str | None, value: Mapping[str, Any]) -> AcceptedEvent:
    """Judge a JSON object as `read_event` does, for those who have parsed it already.

    The object must come from `strict_json`: here nobody looks for NaN or for its depth again.

    Raises:
        InvalidEvent: `invalid_schema` or `unknown_event`.

    """
    if is_envelope(value):
        event_id = _event_id(value.get("id"))
        return _accept(value["name"], value["data"], event_id, value.get("ts"))
    if topic_event is None:
        raise InvalidEvent("invalid_schema", _missing(value))
    return _accept(topic_event, value, None, None)


def seal(envelope: Mapping[str, Any], new_id: str) -> SealedEvent:
    """Judge an envelope and make it a record's value; what has no id gets `new_id`.

    Only a customer's message stays without: it is recognised by its `messageId`, and a new id
    each time would hide that the same message is sent twice (G2).

    Raises:
        InvalidEvent: what ingress would put into the dead letters.

    """
    event = accept_event(None, envelope)
    identity = event.event_id
    if identity is None and event.name == CustomerMessage.NAME:
        identity = str(event.data["messageId"])
    elif identity is None:
        identity, envelope = new_id, {**envelope, "id": new_id}
    value = dump(envelope)
    if len(value) > MAX_VALUE_BYTES:
        raise InvalidEvent("too_large", f"{len(value)} bytes; {MAX_VALUE_BYTES} are allowed")
    return SealedEvent(event.name, event.session_id, identity, value)


def is_envelope(value: Mapping[str, Any]) -> bool:
    """Whether a JSON object is an envelope; on a topic of events it is bare data otherwise."""
    return (
        isinstance(value.get("name"), str)
        and isinstance(value.get("data"), dict)
        and "sessionId" not in value
    )


def read_result(raw: bytes | None) -> AcceptedEvent:
    """Read the value of a record on `tool.results`; its name is `ToolResult.NAME`.

    Raises:
        InvalidEvent: `too_large`, `invalid_json` or `invalid_schema`.

    """
    return _read_bare(ToolResult, raw)


def read_deadline(raw: bytes | None) -> AcceptedEvent:
    """Read the value of a record on `session.deadlines`; its name is `DeadlineDue.NAME`.

    Raises:
        InvalidEvent: `too_large`, `invalid_json` or `invalid_schema`.

    """
    return _read_bare(DeadlineDue, raw)


def _read_bare(model: type[Wire], raw: bytes | None) -> AcceptedEvent:
    value = parse_object(raw)
    return AcceptedEvent(model.NAME, validate(model, value).session_id, value)


def _accept(name: str, data: Mapping[str, Any], event_id: str | None, ts: object) -> AcceptedEvent:
    model = EVENTS.get(name)
    if model is None:
        raise InvalidEvent("unknown_event", f"{name[:_MAX_NAME_SHOWN]!r} is no event of ours")
    return AcceptedEvent(name, validate(model, data).session_id, data, event_id, ts)


def _event_id(value: object) -> str | None:
    """The producer's id. An empty or null one is none: two such events are not the same."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InvalidEvent("invalid_schema", "id is a string, or absent")
    return value


def _missing(value: Mapping[str, Any]) -> str:
    """Say which rule of an envelope a JSON object breaks."""
    if not isinstance(value.get("name"), str):
        return "an envelope has a string `name`"
    if not isinstance(value.get("data"), dict):
        return "an envelope has an object `data`"
    return "an envelope has no `sessionId` beside its data: it belongs into `data`"
