"""One HTTP POST, and exactly what became of it: answered, sent without an answer, or never sent.

The difference decides whether a message may be sent again, so it is not guessed from the kind of
an exception: httpcore's trace tells when the first byte of the request goes out. Before that
nothing can have happened at the other end; after that anything can.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import httpx
import structlog

from agents_stream import __version__
from agents_stream.stages.tools.catalog import Endpoint

log = structlog.get_logger()

MAX_BODY_BYTES: Final = 64 * 1024
_FIRST_BYTE: Final = "http11.send_request_headers.started"
_IDLE_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The other end answered.

    `body` is at most MAX_BODY_BYTES of it. `cut`: the connection ended, or the time was over,
    before the body's end. `retry_after` is the header of that name as it came.
    """

    status: int
    phrase: str
    body: bytes
    cut: bool = False
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class NotSent:
    """Nothing left this machine. `why` is for people."""

    why: str


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The request went out, at least in part, and no answer came. `why` is for people."""

    why: str


Reply: TypeAlias = Answer | NotSent | NoAnswer


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a call may take: to connect, and then for the whole answer. In seconds."""

    connect_s: float
    read_s: float

    @property
    def total_s(self) -> float:
        """How long any call takes at most. Connecting counts twice: TCP, then TLS."""
        return 2 * self.connect_s + self.read_s


class HttpCaller:
    """Calls one endpoint. `reuse` keeps connections open between calls.

    Without it each call has a connection of its own: a server that closes an idle connection at
    the moment of the next request leaves a request without an answer, and where such a request
    may not be repeated a handshake costs less than a message that nobody can vouch for.
    """

    def __init__(
        self, endpoint: Endpoint, limits: Limits, connections: int, *, reuse: bool
    ) -> None:
        self._url = endpoint.url
        self._limits = limits
        headers = {
            "User-Agent": f"agents-stream/{__version__}",
            "Content-Type": "application/json",
            "Accept": "application/json",
            # What is not compressed cannot grow beyond its limit while it is unpacked.
            "Accept-Encoding": "identity",
        }
        if endpoint.token is not None:
            headers["Authorization"] = f"Bearer {endpoint.token.get_secret_value()}"
        if not reuse:
            headers["Connection"] = "close"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(limits.read_s, connect=limits.connect_s, pool=None),
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=connections if reuse else 0,
                keepalive_expiry=_IDLE_S,
            ),
            follow_redirects=False,
            # A proxy of the environment is for the world, not for this machine's own services.
            trust_env=not endpoint.on_this_machine,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def post(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        """POST `body` once. Never raises for what the network or the other end does."""
        call = _Call()
        try:
            async with (
                asyncio.timeout(self._limits.total_s),
                self._client.stream(
                    "POST",
                    self._url,
                    content=body,
                    headers=dict(headers),
                    extensions={"trace": call.trace},
                ) as response,
            ):
                call.response = response
                await call.read()
        except Exception as error:  # noqa: BLE001 - whatever TLS, h11 or anyio raise is a reply
            log.debug("http_call_ended_early", error=repr(error), sent=call.sent)
            return call.reply_to(error)
        return call.answer(cut=False)


class _Call:
    """What is known of one call so far."""

    def __init__(self) -> None:
        self.sent = False
        self.response: httpx.Response | None = None
        self._body = bytearray()

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Follow httpcore. It awaits this before it does what the event says."""
        # What a proxy is told in order to connect is not the request yet.
        if event == _FIRST_BYTE and info["request"].method != b"CONNECT":
            self.sent = True

    async def read(self) -> None:
        """Read the body up to its limit."""
        assert self.response is not None
        async for part in self.response.aiter_bytes():
            self._body += part
            if len(self._body) > MAX_BODY_BYTES:
                return

    def answer(self, *, cut: bool) -> Answer:
        """Give the answer, as much of it as came."""
        assert self.response is not None
        return Answer(
            status=self.response.status_code,
            phrase=self.response.reason_phrase[:80],
            body=bytes(self._body[:MAX_BODY_BYTES]),
            cut=cut,
            retry_after=self.response.headers.get("retry-after"),
        )

    def reply_to(self, error: Exception) -> Reply:
        """Say what an exception means at this point of the call."""
        if self.response is not None:
            return self.answer(cut=True)
        why = type(error).__name__ if not str(error) else f"{type(error).__name__}: {error}"
        return NoAnswer(why[:200]) if self.sent else NotSent(why[:200])
