"""What an open chat page is told, as server-sent events.

`line`: a line of its conversation. `conversations`: the list, when it changed. `session`: the
session's mode, status and running timers, asked of the worker once a second, with the server's
time, from which the page counts down by itself. `cleared`: the books were emptied.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import orjson
import structlog
from aiohttp import web

from agents_stream.core.errors import RetryableError, TerminalError
from agents_stream.sandbox.books import now_ms
from agents_stream.sandbox.conversations import Conversations
from agents_stream.sandbox.worker import SessionView, WorkerApi

log = structlog.get_logger()

POLL_S = 1.0
HEARTBEAT_MS = 15_000
MIN_PAUSE_S = 0.05
SETTLE_S = 0.1
MAX_SIGHTINGS = 10_000

NO_WORKER_ANSWER = "The worker does not answer. What you see may be old."


class Sightings:
    """When each deadline was first seen, which is about when it was armed.

    The worker says when a deadline is due and not how long it was to run: a bar that shrinks
    needs both.
    """

    def __init__(self) -> None:
        self._first: OrderedDict[tuple[str, str, str], int] = OrderedDict()

    def first_seen_ms(self, session_id: str, name: str, generation: str, at_ms: int) -> int:
        """Return when a deadline was first seen: now, if it never was."""
        key = (session_id, name, generation)
        first = self._first.setdefault(key, at_ms)
        self._first.move_to_end(key)
        if len(self._first) > MAX_SIGHTINGS:
            self._first.popitem(last=False)
        return first


class SessionWatch:
    """Keeps asking the worker about the session of one page."""

    def __init__(
        self,
        worker: WorkerApi,
        conversations: Conversations,
        sightings: Sightings,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._worker = worker
        self._conversations = conversations
        self._sightings = sightings
        self._clock = clock

    async def look(self, conversation_id: str, session_id: str | None) -> dict[str, Any]:
        """Ask once, and return what the page is to show. A silent worker is something to show."""
        problem: str | None = None
        view: SessionView | None = None
        try:
            known = session_id or await self._find(conversation_id)
            view = await self._worker.session(known) if known else None
        except RetryableError:
            problem = NO_WORKER_ANSWER
        except TerminalError as error:
            problem = str(error)
        if view is not None:
            self._conversations.identify(conversation_id, view.session_id, view.contact_id)
        return {
            "problem": problem,
            "session": None if view is None else self._shown(view),
        }

    async def _find(self, conversation_id: str) -> str | None:
        conversation = self._conversations.get(conversation_id)
        if conversation is not None and conversation.session_id is not None:
            return conversation.session_id
        return await self._worker.find_session(conversation_id)

    def _shown(self, view: SessionView) -> dict[str, Any]:
        at_ms = self._clock()
        return {
            "sessionId": view.session_id,
            "contactId": view.contact_id,
            "mode": view.mode,
            "status": view.status,
            "pendingCommands": len(view.pending_commands),
            "deadlines": [
                {
                    "name": deadline.name,
                    "dueAt": deadline.due_at,
                    "generation": str(deadline.generation),
                    "seenAt": self._sightings.first_seen_ms(
                        view.session_id, deadline.name, str(deadline.generation), at_ms
                    ),
                }
                for deadline in view.deadlines
            ],
        }


class PageStream:
    """Tells one open page what happens, until the page goes away or the sandbox stops."""

    def __init__(
        self, conversations: Conversations, watch: SessionWatch, conversation_id: str | None
    ) -> None:
        self._conversations = conversations
        self._watch = watch
        self._conversation_id = conversation_id
        self._last_seq = 0
        self._cleared = conversations.cleared
        self._listed: bytes = b""
        self._snapshot: dict[str, Any] | None = None
        self._told: dict[str, Any] | None = None
        self._told_at_ms = 0
        self._something_said = asyncio.Event()

    async def run(
        self,
        request: web.Request,
        response: web.StreamResponse,
        session_id: str | None,
        stopping: asyncio.Event,
    ) -> None:
        """Write events to `response`, starting after the line that the page saw last."""
        self._last_seq = _resume_after(request)
        with self._conversations.watch() as changed:
            asking = asyncio.create_task(self._keep_asking(session_id, changed))
            try:
                while not stopping.is_set() and _is_open(request):
                    if asking.done():
                        asking.result()  # raises what ended it
                    changed.clear()
                    for event in self._news():
                        await response.write(event)
                    await asyncio.sleep(MIN_PAUSE_S)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), POLL_S)
            finally:
                asking.cancel()
                with suppress(asyncio.CancelledError):
                    await asking

    async def _keep_asking(self, session_id: str | None, changed: asyncio.Event) -> None:
        if self._conversation_id is None:
            return
        while True:
            self._snapshot = await self._watch.look(self._conversation_id, session_id)
            changed.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._something_said.wait(), POLL_S)
                # A word changes timers, once the worker has applied it.
                await asyncio.sleep(SETTLE_S)
            self._something_said.clear()

    def _news(self) -> list[bytes]:
        """Return the events that the page has not been told of."""
        events: list[bytes] = []
        if self._conversations.cleared != self._cleared:
            self._cleared = self._conversations.cleared
            events.append(_event("cleared", {}))
        events += self._new_lines()
        listed = orjson.dumps(self._conversations.listed())
        if listed != self._listed:
            self._listed = listed
            events.append(b"event: conversations\ndata: " + listed + b"\n\n")
        at_ms = now_ms()
        if self._snapshot != self._told or at_ms - self._told_at_ms >= HEARTBEAT_MS:
            self._told, self._told_at_ms = self._snapshot, at_ms
            events.append(_event("session", {**(self._snapshot or {}), "now": at_ms}))
        return events

    def _new_lines(self) -> list[bytes]:
        if self._conversation_id is None:
            return []
        conversation = self._conversations.get(self._conversation_id)
        if conversation is None:
            return []
        new = [line for line in conversation.lines if line.seq > self._last_seq]
        if new:
            self._last_seq = new[-1].seq
            self._something_said.set()
        return [_event("line", line.as_json(), line.seq) for line in new]


def _event(name: str, data: dict[str, Any], event_id: int | None = None) -> bytes:
    """Write one server-sent event. JSON has no raw line breaks, so one data line is enough."""
    head = f"id: {event_id}\n" if event_id is not None else ""
    return f"{head}event: {name}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"


def _resume_after(request: web.Request) -> int:
    """Return the last line that a reconnecting page has seen, as its browser says."""
    last = request.headers.get("Last-Event-ID", "")
    return int(last) if last.isascii() and last.isdigit() and len(last) < 16 else 0  # noqa: PLR2004 - 15 digits are exact in JavaScript


def _is_open(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()
