"""One POST against real servers that behave in every way a server can."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from pydantic import SecretStr

from agents_stream.stages.tools.catalog import Endpoint
from agents_stream.stages.tools.http_call import (
    MAX_BODY_BYTES,
    Answer,
    HttpCaller,
    Limits,
    NoAnswer,
    NotSent,
    Reply,
)

LIMITS = Limits(connect_s=0.3, read_s=0.3)
KEY = {"Idempotency-Key": "c1"}

Connection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(serve: Connection) -> AsyncIterator[int]:
    """Serve each connection with a function, which says byte for byte what happens."""

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def http_server(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[int]:
    """Serve POST / with an aiohttp handler."""
    app = web.Application()
    app.router.add_post("/", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def post(url: str, *, reuse: bool = False, limits: Limits = LIMITS) -> Reply:
    """POST once with a caller of its own."""
    caller = HttpCaller(Endpoint(url), limits, 4, reuse=reuse)
    try:
        return await caller.post(b'{"a":1}', KEY)
    finally:
        await caller.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read one request of `post`, head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(7)


async def closes_at_once(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Close without a look at the request."""
    return


async def closes_after_request(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Take the request, then close."""
    await read_request(reader)


async def resets_after_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take the request, then reset the connection."""
    await read_request(reader)
    link = writer.get_extra_info("socket")
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def says_nothing(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Take the request and stay silent."""
    await read_request(reader)
    await asyncio.sleep(3)


async def talks_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer in another protocol."""
    await read_request(reader)
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    await writer.drain()


async def drips_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer so slowly that each read succeeds and the headers never end."""
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(40):
        writer.write(b"x-%d: y\r\n" % number)
        await writer.drain()
        await asyncio.sleep(0.1)


async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Promise a body and close in its middle."""
    await read_request(reader)
    writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"id":')
    await writer.drain()


async def drips_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Promise a body and send it too slowly."""
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
    for _ in range(40):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    "serve",
    [
        closes_after_request,
        resets_after_request,
        says_nothing,
        talks_nonsense,
        drips_headers,
        closes_at_once,
    ],
)
async def test_what_was_sent_and_got_no_answer_is_said_to_have_been_sent(
    serve: Connection,
) -> None:
    """A request that went out, even in part, may have acted: nobody may call it unsent (G6)."""
    async with raw_server(serve) as port, asyncio.timeout(3):
        assert isinstance(await post(f"http://127.0.0.1:{port}/"), NoAnswer)


@pytest.mark.parametrize("serve", [breaks_off, drips_body])
async def test_an_answer_whose_body_breaks_off_is_still_an_answer(serve: Connection) -> None:
    """The status decides whether the tool acted; only the body is missing."""
    async with raw_server(serve) as port, asyncio.timeout(3):
        reply = await post(f"http://127.0.0.1:{port}/")
    assert isinstance(reply, Answer)
    assert (reply.status, reply.cut) == (200, True)


async def test_a_refused_connection_sent_nothing() -> None:
    """Nobody listens: the call may be made again."""
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        port = placeholder.getsockname()[1]
        assert isinstance(await post(f"http://127.0.0.1:{port}/"), NotSent)


async def test_a_name_that_does_not_resolve_sent_nothing() -> None:
    """No address, no connection."""
    assert isinstance(await post("http://tool.invalid/", limits=Limits(2, 2)), NotSent)


async def test_a_tls_handshake_that_hangs_or_fails_sent_nothing() -> None:
    """The request goes out only after the handshake, so without one it may be made again."""

    async def mute(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await asyncio.sleep(2)

    async with raw_server(mute) as port, asyncio.timeout(3):
        assert isinstance(await post(f"https://127.0.0.1:{port}/"), NotSent)
    async with raw_server(talks_nonsense_at_once) as port, asyncio.timeout(3):
        assert isinstance(await post(f"https://127.0.0.1:{port}/"), NotSent)


async def talks_nonsense_at_once(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer a TLS handshake in plain HTTP."""
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await writer.drain()


async def test_a_proxy_that_refuses_to_connect_sent_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a proxy is told in order to connect is not the request (https through a proxy)."""

    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()

    async with raw_server(refuses) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert isinstance(await post("https://tool.invalid/"), NotSent)


async def test_the_request_carries_inputs_key_and_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """One POST of the inputs with Idempotency-Key and bearer token, past any proxy of the env."""
    seen: list[tuple[bytes, dict[str, str]]] = []

    async def keep(request: web.Request) -> web.Response:
        seen.append((await request.read(), dict(request.headers)))
        return web.json_response({"id": "order-1"}, status=201)

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with http_server(keep) as port:
        endpoint = Endpoint(f"http://127.0.0.1:{port}/", SecretStr("t0p"))
        caller = HttpCaller(endpoint, LIMITS, 4, reuse=False)
        reply = await caller.post(b'{"a":1}', KEY)
        await caller.close()
    assert reply == Answer(201, "Created", b'{"id": "order-1"}')
    body, headers = seen[0]
    assert body == b'{"a":1}'
    assert headers["Idempotency-Key"] == "c1"
    assert headers["Authorization"] == "Bearer t0p"
    assert headers["Content-Type"] == "application/json"


async def test_a_body_without_end_is_read_up_to_the_limit() -> None:
    """A tool cannot fill our memory, and its status counts all the same."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b"x" * 8192)
        return response

    async with http_server(endless) as port:
        reply = await post(f"http://127.0.0.1:{port}/", limits=Limits(2, 2))
    assert isinstance(reply, Answer)
    assert (reply.status, len(reply.body), reply.cut) == (200, MAX_BODY_BYTES, False)


async def test_redirects_are_not_followed() -> None:
    """A second request would be a second call."""
    calls = 0

    async def elsewhere(_request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        return web.Response(status=307, headers={"Location": "/"})

    async with http_server(elsewhere) as port:
        reply = await post(f"http://127.0.0.1:{port}/")
    assert isinstance(reply, Answer)
    assert (reply.status, calls) == (307, 1)


@pytest.mark.parametrize("reuse", [False, True])
async def test_connections_are_reused_only_where_a_lost_call_may_be_repeated(
    reuse: bool,  # noqa: FBT001 - a case of the table
) -> None:
    """A fresh connection per message: an idle one may be closed just as the request goes out."""
    connections: set[tuple[str, int]] = set()

    async def note(request: web.Request) -> web.Response:
        assert request.transport is not None
        connections.add(request.transport.get_extra_info("peername"))
        return web.json_response({})

    async with http_server(note) as port:
        caller = HttpCaller(Endpoint(f"http://127.0.0.1:{port}/"), LIMITS, 4, reuse=reuse)
        for _ in range(3):
            await caller.post(b"{}", KEY)
        await caller.close()
    assert len(connections) == (1 if reuse else 3)


async def test_a_connection_that_the_server_closed_while_idle_is_not_used_again() -> None:
    """With reuse, what the server closed between two calls costs no call."""

    async def one_answer_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()

    async with raw_server(one_answer_each) as port:
        caller = HttpCaller(Endpoint(f"http://127.0.0.1:{port}/"), LIMITS, 4, reuse=True)
        for _ in range(3):
            reply = await caller.post(b'{"a":1}', KEY)
            assert isinstance(reply, Answer)
            await asyncio.sleep(0.05)
        await caller.close()
