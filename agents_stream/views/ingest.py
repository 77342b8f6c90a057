"""Events over HTTP: our own `POST /api/events`, and `POST /e/{eventKey}` as Inngest has it.

Both publish through a producer and answer once Kafka has acknowledged all events of the request.
Each event is judged first, exactly as ingress will judge it; if one is bad, none is published.

Inngest's SDKs keep their `send` calls. They repeat a failed request with the same seed in a
header; an event without an id gets one from the seed and its index, so repeating is harmless.
"""

import hashlib
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Protocol

import structlog
from aiohttp import web

from agents_stream.core.envelope import SealedEvent, seal
from agents_stream.core.errors import AgentsStreamError, InvalidEvent
from agents_stream.core.json_list import is_list, split_list
from agents_stream.core.strict_json import parse_object
from agents_stream.settings import Settings
from agents_stream.views.http import (
    Rejection,
    json_answer,
    read_body,
    require_this_machine,
    same_secret,
    told,
)

log = structlog.get_logger()

SEED_HEADER = "x-inngest-event-id-seed"
SDK_HEADER = "x-inngest-sdk"


class EventPublisher(Protocol):
    """What `agents_stream.client.AgentsStream` is to these handlers."""

    async def publish(self, events: Sequence[SealedEvent]) -> Sequence[object]:
        """Publish events in their order per session; return once Kafka has them all.

        Raises:
            BrokerUnreachable: Kafka did not acknowledge all of them in time.

        """
        ...


def ingest_routes(publisher: EventPublisher, settings: Settings) -> list[web.RouteDef]:
    """Return the routes by which events come in over HTTP."""

    async def post_events(request: web.Request) -> web.StreamResponse:
        ids = await _publish(publisher, await _read_events(request, seed=None))
        return json_answer({"ids": ids}, HTTPStatus.ACCEPTED)

    async def post_inngest(request: web.Request) -> web.StreamResponse:
        try:
            _check_event_key(request, settings)
            seed = request.headers.get(SEED_HEADER) or None
            ids = await _publish(publisher, await _read_events(request, seed))
        except AgentsStreamError as error:
            if SDK_HEADER not in request.headers:
                raise
            return _inngest_error(told(request, error))
        return json_answer({"ids": ids, "status": int(HTTPStatus.OK)})

    return [
        web.post("/api/events", post_events),
        web.post("/e/{event_key}", post_inngest),
    ]


async def _publish(publisher: EventPublisher, events: list[SealedEvent]) -> list[str]:
    await publisher.publish(events)
    for event in events:
        log.debug("event_received", name=event.name, session=event.session_id)
    return [event.event_id for event in events]


async def _read_events(request: web.Request, seed: str | None) -> list[SealedEvent]:
    """Read the events of a body: one envelope, or a list of them.

    Raises:
        InvalidEvent: one is bad; the detail says which, counted from 0.
        Rejection: the body is too large or too slow.

    """
    body = await read_body(request)
    if not is_list(body):
        return [_read_event(body, seed, 0)]
    events = []
    for index, item in enumerate(split_list(body)):
        try:
            events.append(_read_event(item, seed, index))
        except InvalidEvent as error:
            raise InvalidEvent(error.reason, f"event {index}: {error.detail}") from error
    return events


def _read_event(raw: bytes, seed: str | None, index: int) -> SealedEvent:
    envelope = parse_object(raw)
    if seed is not None and envelope.get("id") in (None, ""):
        envelope["id"] = _seeded_id(seed, index)
    return seal(envelope, uuid.uuid4().hex)


def _seeded_id(seed: str, index: int) -> str:
    """Derive the id that every repetition of a request gives to its event `index`."""
    return hashlib.sha256(f"{seed}\x00{index}".encode(errors="surrogatepass")).hexdigest()[:32]


def _check_event_key(request: web.Request, settings: Settings) -> None:
    """Let a sender in who knows `EVENT_KEY`; without one, anybody on this machine."""
    if settings.event_key is None:
        require_this_machine(request, settings, "AGENTS_STREAM_EVENT_KEY")
    elif not same_secret(request.match_info["event_key"], settings.event_key):
        log.warning("event_key_refused", peer=request.remote)
        raise Rejection(HTTPStatus.UNAUTHORIZED, "unauthorized", "Event key not found")


def _inngest_error(rejection: Rejection) -> web.Response:
    """Answer an SDK of Inngest: it shows people `error` only where that is a string."""
    body: dict[str, Any] = {
        "error": f"{rejection.code}: {rejection}",
        "status": int(rejection.status),
        "ids": [],
    }
    return json_answer(body, rejection.status)
