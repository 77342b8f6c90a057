"""The HTTP API as an OpenAPI document, at `/openapi.json`: for programs that make clients or tests.

Written by hand where it says what is asked and answered, and taken from the events' own models
where it says what an event is. A test holds it against a real server, answer by answer.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from agents_stream.core.events import EVENTS
from agents_stream.core.json_list import MAX_ITEMS
from agents_stream.views.http import MAX_BODY_BYTES
from agents_stream.views.queries import MAX_CURSOR, MAX_LIMIT, MAX_WORD

Schema = Mapping[str, Any]

_NULLABLE_TEXT: Final[Schema] = {"type": ["string", "null"]}
_SESSION: Final[Schema] = {
    "type": "object",
    "required": ["sessionId", "status", "version", "mode", "journalOffset", "updatedAt"],
    "properties": {
        "sessionId": {"type": "string"},
        "workspaceId": _NULLABLE_TEXT,
        "agentId": _NULLABLE_TEXT,
        "conversationId": _NULLABLE_TEXT,
        "contactId": _NULLABLE_TEXT,
        "mode": _NULLABLE_TEXT,
        "status": {"enum": ["open", "closed"]},
        "closeReason": _NULLABLE_TEXT,
        "version": {"type": "integer", "minimum": 1},
        "state": {"type": "object"},
        "journalOffset": {"type": "integer"},
        "updatedAt": {"type": "string"},
    },
}
_TIMER: Final[Schema] = {
    "type": "object",
    "required": ["sessionId", "name", "dueAt", "generation"],
    "properties": {
        "sessionId": {"type": "string"},
        "name": {"type": "string"},
        "dueAt": {"type": "string"},
        "generation": {"type": "integer"},
    },
}
_TIMELINE_ITEM: Final[Schema] = {
    "type": "object",
    "required": ["offset", "at", "kind", "name", "data", "actions", "reasons", "version"],
    "properties": {
        "offset": {"type": "integer"},
        "kind": {"enum": ["event", "deadline", "result"]},
        "actions": {"type": "array"},
        "reasons": {"type": "array", "items": {"type": "string"}},
    },
}
_ERROR: Final[Schema] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
            "additionalProperties": False,
        }
    },
}
_REFUSALS: Final = {
    "400": "The question is wrong; the message says where",
    "401": "No token, or a page of another site asks",
    "404": "There is no such session",
    "413": "The body, an event or the list is too large",
    "503": "Kafka or the owner of the session cannot answer now, or one client asks too much",
}


@cache
def document() -> Schema:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "agents_stream", "version": _version()},
        "paths": {
            "/healthz": _probe("The process is alive"),
            "/readyz": _probe("The worker owns its partitions and has recovered", "503"),
            "/metrics": {"get": _operation("metrics", {"200": _text()})},
            "/openapi.json": _read("openapi", {"type": "object"}),
            "/api/sessions": _read("sessions", _list_of(_SESSION), *_SESSION_WORDS),
            "/api/sessions/{sessionId}": _read("session", _SESSION, _ID, also=("404",)),
            "/api/sessions/{sessionId}/timeline": _read(
                "timeline", _list_of(_TIMELINE_ITEM), _ID, *_TIMELINE_WORDS, also=("404",)
            ),
            "/api/timers": _read("timers", _list_of(_TIMER), _word("before"), *_PAGING),
            "/api/dead-letters": _read("deadLetters", _list_of({"type": "object"}), *_LETTER_WORDS),
            "/api/cluster": _read("cluster", {"type": "object"}),
            "/api/events": {"post": _sending("events", "202")},
            "/e/{eventKey}": {"post": _sending("inngestEvents", "200", _path("eventKey"))},
        },
        "components": {"schemas": {"Error": _ERROR, "Events": _events()}},
    }


def _word(name: str, longest: int = MAX_WORD, **schema: Any) -> Schema:
    described = {"type": "string", "maxLength": longest, **schema}
    return {"name": name, "in": "query", "required": False, "schema": described}


def _path(name: str, **schema: Any) -> Schema:
    described = {"type": "string", "minLength": 1, **schema}
    return {"name": name, "in": "path", "required": True, "schema": described}


_LIMIT: Final = {
    "name": "limit",
    "in": "query",
    "required": False,
    "description": f"More than {MAX_LIMIT} are not given at once",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
}
_PAGING: Final = (_LIMIT, _word("cursor", MAX_CURSOR))
_SESSION_WORDS: Final = (
    _word("status", enum=["open", "closed"]),
    _word("mode"),
    _word("workspace"),
    _word("q"),
    *_PAGING,
)
_TIMELINE_WORDS: Final = (
    _word("order", enum=["asc", "desc"]),
    _word("changes", enum=["true", "false"]),
    *_PAGING,
)
_LETTER_WORDS: Final = _PAGING
_ID: Final = _path("sessionId", maxLength=256)


def _list_of(item: Schema) -> Schema:
    return {
        "type": "object",
        "required": ["items", "nextCursor"],
        "properties": {"items": {"type": "array", "items": item}, "nextCursor": _NULLABLE_TEXT},
        "additionalProperties": False,
    }


def _json(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _text() -> Schema:
    return {"description": "Prometheus", "content": {"text/plain": {"schema": {"type": "string"}}}}


def _operation(name: str, answers: Schema, *words: Schema, **more: Any) -> Schema:
    return {"operationId": name, "parameters": list(words), "responses": answers, **more}


def _refusals(*statuses: str) -> dict[str, Schema]:
    schema = {"$ref": "#/components/schemas/Error"}
    answers: dict[str, Any] = {status: _json(_REFUSALS[status], schema) for status in statuses}
    if "400" in answers:
        # What is no HTTP, or has a line above 8 KiB, is refused before anybody asks for JSON.
        answers["400"]["content"]["text/plain"] = {"schema": {"type": "string"}}
    return answers


def _probe(description: str, *also: str) -> Schema:
    good = _json(description, {"type": "object", "required": ["status"]})
    name = "ready" if also else "healthy"
    return {"get": _operation(name, {"200": good, **_refusals(*also)})}


def _read(name: str, schema: Schema, *words: Schema, also: tuple[str, ...] = ()) -> Schema:
    answers = {"200": _json("What was asked for", schema)}
    return {"get": _operation(name, answers | _refusals("400", "401", "503", *also), *words)}


def _sending(name: str, good: str, *words: Schema) -> Schema:
    ids = {"type": "object", "required": ["ids"]}
    answers = {good: _json("Kafka has acknowledged all events", ids)}
    body = {
        "required": True,
        "description": f"At most {MAX_BODY_BYTES} bytes",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Events"}}},
    }
    refusals = _refusals("400", "401", "413", "503")
    return _operation(name, answers | refusals, *words, requestBody=body)


def _events() -> Schema:
    """One envelope or a list; each event's data as its model has it."""
    envelopes = [
        {
            "type": "object",
            "required": ["name", "data"],
            "properties": {
                "name": {"const": name},
                "data": model.model_json_schema(by_alias=True),
                "id": _NULLABLE_TEXT,
                "ts": {"type": "integer", "minimum": 0, "maximum": 2**53},
            },
            "not": {"required": ["sessionId"]},
        }
        for name, model in EVENTS.items()
    ]
    one = {"oneOf": envelopes}
    return {"anyOf": [one, {"type": "array", "items": one, "maxItems": MAX_ITEMS}]}


def _version() -> str:
    try:
        return version("agents-stream")
    except PackageNotFoundError:  # a checkout that nobody installed
        return "0"
