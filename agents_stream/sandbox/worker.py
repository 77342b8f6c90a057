"""The sandbox's view of the worker: its HTTP API (SPEC §8), as the chat needs it."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import structlog
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from agents_stream.core.errors import RetryableError, TerminalError

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 2.0
TOTAL_TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_CONNECTIONS = 64
SEARCH_LIMIT = 50


class WorkerUnavailable(RetryableError):  # noqa: N818 - it says what happened
    """The worker does not answer, or answers that it cannot now. The same call may do later."""


class WorkerRefused(TerminalError):  # noqa: N818 - it says what happened
    """The worker will not take this request. The message is the worker's."""


class _View(BaseModel):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, validate_by_name=True)


class DeadlineView(_View):
    """A running timer of a session."""

    name: str
    due_at: str
    generation: int | str = 0


class SessionView(_View):
    """What the chat shows of a session."""

    session_id: str
    conversation_id: str | None = None
    contact_id: str | None = None
    mode: str | None = None
    status: str = "open"
    deadlines: list[DeadlineView] = Field(default_factory=list)
    pending_commands: list[Any] = Field(default_factory=list)


class _SessionList(_View):
    items: list[SessionView]


class _ErrorBody(_View):
    code: str = "error"
    message: str = ""


class _ErrorAnswer(_View):
    error: _ErrorBody


_ids = TypeAdapter(dict[str, Any])

View = TypeVar("View", bound=_View)


class WorkerApi:
    """Talks to one worker, which answers for every session of its cluster.

    Args:
        url: where the worker listens; None when the sandbox plays alone.
        token: the worker's `AUTH_TOKEN`, if it has one.

    """

    def __init__(self, url: str | None, token: SecretStr | None = None) -> None:
        self._url = url.rstrip("/") if url else None
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def publish(self, envelope: Mapping[str, Any]) -> list[str]:
        """Publish one event; returns once Kafka has acknowledged it, with the worker's ids.

        Raises:
            WorkerUnavailable: no answer, or one that says "later". It may have been published.
            WorkerRefused: the worker says no for good.

        """
        _, body = await self._call("POST", "/api/events", json=dict(envelope))
        try:
            return [str(item) for item in _ids.validate_json(body).get("ids", [])]
        except (ValidationError, TypeError) as error:
            raise WorkerUnavailable("The worker's answer is not understood") from error

    async def session(self, session_id: str) -> SessionView | None:
        """Return a session, or None where there is none of this id.

        Raises:
            WorkerUnavailable: no answer, or one that says "later".
            WorkerRefused: the worker says no for good.

        """
        status, body = await self._call("GET", f"/api/sessions/{quote(session_id, safe='')}")
        if status == HTTPStatus.NOT_FOUND:
            return None
        return _read(SessionView, body)

    async def find_session(self, conversation_id: str) -> str | None:
        """Return the id of an open session of a conversation, if the worker finds one.

        Raises:
            WorkerUnavailable: no answer, or one that says "later".
            WorkerRefused: the worker says no for good.

        """
        query = {"q": conversation_id, "status": "open", "limit": str(SEARCH_LIMIT)}
        status, body = await self._call("GET", "/api/sessions", params=query)
        if status == HTTPStatus.NOT_FOUND:
            return None
        found = _read(_SessionList, body).items
        return next(
            (item.session_id for item in found if item.conversation_id == conversation_id), None
        )

    async def _call(
        self,
        method: str,
        path: str,
        json: object = None,
        params: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Send one request; 404 is an answer, every other error raises."""
        if self._url is None:
            raise WorkerUnavailable("This sandbox was started without a worker")
        session = self._open()
        try:
            async with session.request(
                method, self._url + path, json=json, params=params, allow_redirects=False
            ) as response:
                body = await _read_bounded(response)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("sandbox_worker_unreachable", error=type(error).__name__)
            raise WorkerUnavailable("The worker does not answer") from error
        _raise_for(status, body, method)
        return status, body

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {}
            if self._token is not None:
                headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
            self._session = aiohttp.ClientSession(
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=TOTAL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
            )
        return self._session


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    """Read an answer of at most `MAX_ANSWER_BYTES`."""
    try:
        await response.content.readexactly(MAX_ANSWER_BYTES + 1)
    except asyncio.IncompleteReadError as end:
        return end.partial
    raise WorkerUnavailable("The worker's answer is too large")


def _raise_for(status: int, body: bytes, method: str) -> None:
    """Raise for a status that is no success. A GET that finds nothing is an answer."""
    if status < HTTPStatus.MULTIPLE_CHOICES or (status == HTTPStatus.NOT_FOUND and method == "GET"):
        return
    try:
        message = _ErrorAnswer.model_validate_json(body).error.message
    except ValidationError:
        message = ""
    told = message or f"The worker answered {status}"
    if status in {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}:
        raise WorkerUnavailable(told)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise WorkerUnavailable(told)
    raise WorkerRefused(told)


def _read(model: type[View], body: bytes) -> View:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise WorkerUnavailable("The worker's answer is not understood") from error
