"""The chat: one page on which a person is the customer.

The browser talks to the sandbox alone. What the customer types goes from here to the worker as
`agent/customer.message`; what the agent sends comes in through the WhatsApp tool.
"""

import asyncio
import uuid
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any, Literal

import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from agents_stream.core.errors import RetryableError, TerminalError
from agents_stream.sandbox.answers import Rejection, json_answer, list_answer, read_model
from agents_stream.sandbox.books import Entry, Tool
from agents_stream.sandbox.conversations import Conversations
from agents_stream.sandbox.stream import PageStream, SessionWatch, Sightings
from agents_stream.sandbox.worker import WorkerApi

log = structlog.get_logger()

MAX_STREAMS = 64
MAX_CONTENT_CHARS = 4_096
MAX_ID_BYTES = 256
PACKS = ["1x", "2x", "3x"]
WORKSPACE_ID = "sandbox"
AGENT_ID = "sandbox-agent"

_ASSETS = {
    "chat.css": "text/css",
    "chat.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}

Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_BYTES)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CustomerLine(_Body):
    """What the customer typed. The page makes the messageId, so that a retry is no second one."""

    conversationId: Id  # noqa: N815 - the name on the wire
    sessionId: Id  # noqa: N815 - likewise
    content: str = Field(min_length=1, max_length=MAX_CONTENT_CHARS)
    messageId: Id | None = None  # noqa: N815 - likewise


class Start(_Body):
    """A conversation to start: with a question for the customer's data, or with the promos."""

    flow: Literal["data_collection", "promos"] = "data_collection"
    contactId: Id | None = None  # noqa: N815 - the name on the wire


class Chat:
    """The chat page, its assets and what it asks for.

    Args:
        worker: where the customer's words go, and who knows the timers.
        conversations: what is shown.

    """

    def __init__(self, worker: WorkerApi, conversations: Conversations) -> None:
        self._worker = worker
        self._conversations = conversations
        self._watch = SessionWatch(worker, conversations, Sightings())
        self._stopping = asyncio.Event()
        self._streams = 0
        static = files("agents_stream.sandbox") / "static"
        self._page = (static / "chat.html").read_bytes()
        self._assets = {name: (static / name).read_bytes() for name in _ASSETS}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the page and of what it asks for."""
        return [
            web.get("/", self._home),
            web.get("/chat", self._show_page),
            # Any id: aiohttp's own pattern for a part knows no braces.
            web.get("/chat/{conversation_id:.+}", self._show_page),
            web.get("/static/{name}", self._show_asset),
            web.get("/api/chat/conversations", self._list),
            web.get("/api/chat/stream", self._stream),
            web.post("/api/chat/messages", self._say),
            web.post("/api/chat/start", self._start),
        ]

    def open(self) -> None:
        """Let pages open streams (again)."""
        self._stopping.clear()

    def stop(self) -> None:
        """End the open streams."""
        self._stopping.set()
        self._conversations.wake()

    def on_effect(self, entry: Entry) -> None:
        """Show what a tool did: the agent's message, an order, the outcome of a flow."""
        receipt = entry.receipt
        effect_id = entry.answer_id or ""
        if receipt.tool is Tool.WHATSAPP:
            self._conversations.add(
                receipt.inputs["contactId"], "agent", effect_id, receipt.inputs["message"]
            )
        elif receipt.tool is Tool.CRM:
            self._conversations.note(
                f"Order {effect_id} created: {_products(receipt.inputs['products'])}",
                effect_id,
                contact=receipt.contact,
                session=None,
            )
        else:
            self._conversations.note(
                _told_to_engine(receipt.inputs), effect_id, contact=None, session=receipt.contact
            )

    async def _home(self, _request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/chat")

    async def _show_page(self, request: web.Request) -> web.StreamResponse:
        if len(request.match_info.get("conversation_id", "").encode()) > MAX_ID_BYTES:
            raise Rejection(
                HTTPStatus.BAD_REQUEST, "invalid_id", f"An id has at most {MAX_ID_BYTES} bytes"
            )
        return web.Response(
            body=self._page,
            content_type="text/html",
            charset="utf-8",
            headers={"Cache-Control": "no-cache"},
        )

    async def _show_asset(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in self._assets:
            raise web.HTTPNotFound
        return web.Response(
            body=self._assets[name],
            content_type=_ASSETS[name],
            charset="utf-8",
            headers={"Cache-Control": "no-cache"},
        )

    async def _list(self, _request: web.Request) -> web.StreamResponse:
        return list_answer(self._conversations.listed())

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self._streams >= MAX_STREAMS:
            raise Rejection(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too_many_pages",
                f"At most {MAX_STREAMS} chat pages at a time",
            )
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        self._streams += 1
        try:
            await response.prepare(request)
            page = PageStream(
                self._conversations, self._watch, request.query.get("conversation") or None
            )
            await page.run(request, response, request.query.get("session") or None, self._stopping)
        except ConnectionError:
            log.debug("sandbox_page_closed")
        finally:
            self._streams -= 1
        return response

    async def _say(self, request: web.Request) -> web.StreamResponse:
        said = await read_model(request, CustomerLine)
        message_id = said.messageId or str(uuid.uuid4())
        await self._publish(
            "agent/customer.message",
            {
                "sessionId": said.sessionId,
                "conversationId": said.conversationId,
                "messageId": message_id,
                "content": said.content,
            },
        )
        self._conversations.touch(said.conversationId, said.sessionId)
        line = self._conversations.add(said.conversationId, "customer", message_id, said.content)
        return json_answer({"messageId": message_id, "line": line.as_json()}, HTTPStatus.ACCEPTED)

    async def _start(self, request: web.Request) -> web.StreamResponse:
        start = await read_model(request, Start)
        unique = uuid.uuid4().hex[:10]
        session_id, conversation_id = f"session-{unique}", f"chat-{unique}"
        contact_id = start.contactId or f"customer-{unique}"
        of_session = {
            "sessionId": session_id,
            "conversationId": conversation_id,
            "workspaceId": WORKSPACE_ID,
        }
        self._conversations.touch(conversation_id, session_id, contact_id)
        # One after the other: an event sent after the last was acknowledged is applied after it.
        await self._publish(
            "agent/session.started",
            {**of_session, "agentId": AGENT_ID, "contactId": contact_id, "mode": "initial"},
        )
        if start.flow == "promos":
            await self._publish("agent/promos.offered", {**of_session, "packOptions": PACKS})
        else:
            await self._publish("agent/collecting_data.started", of_session)
        log.info("sandbox_conversation_started", session_id=session_id, flow=start.flow)
        return json_answer(
            {"sessionId": session_id, "conversationId": conversation_id, "contactId": contact_id},
            HTTPStatus.CREATED,
        )

    async def _publish(self, name: str, data: dict[str, Any]) -> None:
        """Publish one event through the worker.

        Raises:
            Rejection: 503, the worker does not answer; 502, it refuses.

        """
        try:
            await self._worker.publish({"name": name, "data": data})
        except RetryableError as error:
            raise Rejection(
                HTTPStatus.SERVICE_UNAVAILABLE, "worker_unavailable", str(error)
            ) from error
        except TerminalError as error:
            raise Rejection(HTTPStatus.BAD_GATEWAY, "worker_refused", str(error)) from error


def _products(products: list[dict[str, Any]]) -> str:
    """Name the products of an order, such as `2 of default-pack-1x`."""
    return ", ".join(f"{product['quantity']} of {product['product_id']}" for product in products)


def _told_to_engine(body: dict[str, Any]) -> str:
    """Say what the engine was told: the outcome of a flow, or the name of an event."""
    if "flow" in body:
        return f"Outcome of {body['flow']}: {body.get('status')} / {body.get('action')}"
    return f"Event for the engine: {body.get('name', 'without a name')}"
