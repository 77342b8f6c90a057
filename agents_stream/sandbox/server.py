"""The sandbox's server: puts the tools, the books, the faults and the chat behind one address."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self

import structlog
from aiohttp import web
from pydantic import SecretStr

from agents_stream.core.errors import TerminalError
from agents_stream.sandbox.answers import (
    MAX_BODY_BYTES,
    Rejection,
    errors_as_json,
    json_answer,
    list_answer,
    query_int,
    read_model,
)
from agents_stream.sandbox.books import MAX_ENTRIES, Books, Tool
from agents_stream.sandbox.chat import Chat
from agents_stream.sandbox.conversations import Conversations
from agents_stream.sandbox.faults import Fault, Faults
from agents_stream.sandbox.guard import add_security_headers, guard
from agents_stream.sandbox.tools import Receiver, Tools, receivers
from agents_stream.sandbox.worker import WorkerApi
from agents_stream.settings import Settings

log = structlog.get_logger()

SHUTDOWN_S = 2.0
MAX_TIME_MS = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What the sandbox has to know and never shows.

    `auth_token` is the worker's; the others are what the tools and the webhook ask of the
    gateway. None: nothing is asked.
    """

    auth_token: SecretStr | None = None
    whatsapp_token: SecretStr | None = None
    crm_token: SecretStr | None = None
    webhook_secret: SecretStr | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Secrets":
        """Return the secrets of `settings`, so that a gateway with the same ones is let in."""
        return cls(
            auth_token=settings.auth_token,
            whatsapp_token=settings.whatsapp_token,
            crm_token=settings.crm_token,
            webhook_secret=settings.engine_webhook_secret,
        )


class Sandbox:
    """A running sandbox: `async with Sandbox(port=0) as sandbox: ... sandbox.url`.

    Args:
        host: the address to listen on.
        port: the port; 0 takes a free one.
        worker_url: the worker whose HTTP API the chat uses; None: the chat cannot publish.
        secrets: the tokens and the webhook's secret.

    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        worker_url: str | None = None,
        secrets: Secrets | None = None,
    ) -> None:
        secrets = secrets or Secrets()
        self._host = host
        self._port = port
        self.books = Books()
        self.faults = Faults()
        self.conversations = Conversations()
        self._worker = WorkerApi(worker_url, secrets.auth_token)
        self._chat = Chat(self._worker, self.conversations)
        self._tools = Tools(self.books, self.faults, self._chat.on_effect)
        self._receivers = receivers(
            secrets.whatsapp_token, secrets.crm_token, secrets.webhook_secret
        )
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where it listens, such as `http://127.0.0.1:41234`; known once it has started."""
        host = "127.0.0.1" if self._host in {"0.0.0.0", "::"} else self._host
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    async def start(self) -> None:
        """Start to listen; after a stop, on the same port again, with all that it remembers.

        Raises:
            TerminalError: the address is in use, or is none of this machine's.

        """
        if self._runner is not None:
            return
        self._chat.open()
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port)
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise TerminalError(
                f"The sandbox cannot listen on {self._host}:{self._port}: {error.strerror}"
            ) from error
        self._port = runner.addresses[0][1]
        self._runner = runner
        log.info("sandbox_listening", url=self.url)

    async def stop(self) -> None:
        """Stop to listen, end the open pages and close the connections. Twice is no error."""
        self._chat.stop()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            log.info("sandbox_stopped")
        await self._worker.close()

    def _application(self) -> web.Application:
        app = web.Application(
            client_max_size=MAX_BODY_BYTES, middlewares=[errors_as_json, guard(self._host)]
        )
        app.on_response_prepare.append(add_security_headers)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/books", self._show_books)
        app.router.add_get("/books/orders", self._show_orders)
        app.router.add_get("/books/messages", self._show_messages)
        app.router.add_delete("/books", self._empty_books)
        app.router.add_get("/faults", self._show_faults)
        app.router.add_post("/faults", self._add_fault)
        app.router.add_delete("/faults", self._clear_faults)
        app.router.add_delete("/faults/{fault_id}", self._remove_fault)
        for path, receiver in self._receivers.items():
            app.router.add_post(path, self._taking(receiver))
        app.router.add_routes(self._chat.routes())
        return app

    def _taking(self, receiver: Receiver) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def take(request: web.Request) -> web.StreamResponse:
            return await self._tools.take(receiver, request)

        return take

    async def _healthz(self, _request: web.Request) -> web.StreamResponse:
        return json_answer({"status": "ok"})

    async def _show_books(self, request: web.Request) -> web.StreamResponse:
        tool = request.query.get("tool") or None
        if tool is not None and tool not in set(Tool):
            told = ", ".join(Tool)
            raise Rejection(HTTPStatus.BAD_REQUEST, "invalid_query", f"tool is one of {told}")
        limit = query_int(request, "limit", MAX_ENTRIES, 1, MAX_ENTRIES)
        found = list(
            self.books.select(
                tool,
                request.query.get("contact") or None,
                query_int(request, "since", 0, 0, MAX_TIME_MS),
                query_int(request, "cursor", 0, 0, MAX_TIME_MS),
            )
        )
        shown = found[:limit]
        cursor = str(shown[-1].seq) if len(found) > limit else None
        return list_answer([entry.as_json() for entry in shown], cursor, dropped=self.books.dropped)

    async def _show_orders(self, request: web.Request) -> web.StreamResponse:
        return list_answer(self.books.effects(Tool.CRM, request.query.get("contact") or None))

    async def _show_messages(self, request: web.Request) -> web.StreamResponse:
        conversation_id = request.query.get("conversation") or None
        return list_answer(
            [
                {**item, "conversationId": item["contactId"]}
                for item in self.books.effects(Tool.WHATSAPP, conversation_id)
            ]
        )

    async def _empty_books(self, _request: web.Request) -> web.StreamResponse:
        removed = self.books.clear()
        self.conversations.clear()
        log.info("sandbox_books_emptied", removed=removed)
        return json_answer({"removed": removed})

    async def _show_faults(self, _request: web.Request) -> web.StreamResponse:
        return list_answer([standing.as_json() for standing in self.faults.in_force()])

    async def _add_fault(self, request: web.Request) -> web.StreamResponse:
        fault = await read_model(request, Fault)
        standing = self.faults.add(fault)
        log.info("sandbox_fault_set", id=standing.id, tool=fault.tool.value, mode=fault.mode.value)
        return json_answer(standing.as_json(), HTTPStatus.CREATED)

    async def _clear_faults(self, _request: web.Request) -> web.StreamResponse:
        removed = self.faults.clear()
        log.info("sandbox_faults_cleared", removed=removed)
        return json_answer({"removed": removed})

    async def _remove_fault(self, request: web.Request) -> web.StreamResponse:
        fault_id = request.match_info["fault_id"]
        if not self.faults.remove(fault_id):
            raise Rejection(HTTPStatus.NOT_FOUND, "not_found", "No fault of this id is in force")
        log.info("sandbox_faults_cleared", id=fault_id, removed=1)
        return json_answer({"removed": 1})


async def run_sandbox(settings: Settings, port: int, host: str = "127.0.0.1") -> None:
    """Run a sandbox for the worker of `settings` until SIGTERM or SIGINT, or until cancelled."""
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    caught: list[signal.Signals] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        # Only the main thread takes signals; elsewhere the caller cancels us.
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(number, asked_to_stop.set)
            caught.append(number)
    try:
        async with Sandbox(host, port, settings.listen_url, Secrets.of(settings)):
            await asked_to_stop.wait()
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
