"""The chat's HTTP side: what it publishes, what it streams, and whom it refuses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import aiohttp
import orjson
import pytest
from pydantic import SecretStr

from agents_stream.sandbox import Sandbox, Secrets
from agents_stream.sandbox.guard import is_loopback
from tests.http.played_worker import PlayedWorker
from tests.http.test_sandbox import ORDER, WHATSAPP, post

Event = tuple[str, dict[str, Any]]


@pytest.fixture
async def worker() -> AsyncIterator[PlayedWorker]:
    """Run a worker that wants a token."""
    async with PlayedWorker(token="token") as running:  # noqa: S106 - a test's own token
        yield running


@pytest.fixture
async def sandbox(worker: PlayedWorker) -> AsyncIterator[Sandbox]:
    """Run a sandbox beside that worker."""
    secrets = Secrets(auth_token=SecretStr("token"))
    async with Sandbox(worker_url=worker.url, secrets=secrets) as running:
        yield running


@pytest.fixture
async def http(sandbox: Sandbox) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a client of that sandbox."""
    async with aiohttp.ClientSession(sandbox.url) as client:
        yield client


@asynccontextmanager
async def stream(
    http: aiohttp.ClientSession, query: dict[str, str], last_id: str = ""
) -> AsyncIterator[AsyncIterator[Event]]:
    """Open a page's stream and read its events."""

    async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[Event]:
        name = ""
        async for raw in answer.content:
            field, _, value = raw.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, orjson.loads(value)

    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with http.get("/api/chat/stream", params=query, headers=headers) as answer:
        assert answer.content_type == "text/event-stream"
        yield events(answer)


async def wait_for(events: AsyncIterator[Event], name: str) -> Any:
    """Return the data of the next event of this name."""
    async with asyncio.timeout(5):
        async for found, data in events:
            if found == name:
                return data
    pytest.fail(f"the stream ended without {name}")


async def start(http: aiohttp.ClientSession, **more: str) -> dict[str, str]:
    """Start a conversation."""
    status, made = await post(http, "/api/chat/start", more)
    assert status == 201
    return made


async def test_a_conversation_starts_with_the_flow(
    http: aiohttp.ClientSession, worker: PlayedWorker
) -> None:
    """A start publishes session.started and then the flow's event, complete after SPEC §2."""
    made = await start(http, flow="promos", contactId="maria")
    first, second = worker.events
    assert first["name"] == "agent/session.started"
    assert set(first["data"]) == {
        "sessionId",
        "workspaceId",
        "agentId",
        "conversationId",
        "contactId",
        "mode",
    }
    assert (made["contactId"], first["data"]["contactId"]) == ("maria", "maria")
    assert second["name"] == "agent/promos.offered"
    assert second["data"]["packOptions"] == ["1x", "2x", "3x"]
    assert second["data"]["sessionId"] == made["sessionId"] == first["data"]["sessionId"]
    await start(http)
    assert worker.events[-1]["name"] == "agent/collecting_data.started"


async def test_what_the_customer_types_is_published(
    http: aiohttp.ClientSession, worker: PlayedWorker
) -> None:
    """A line becomes agent/customer.message; sent again with its messageId it is one line."""
    said = {"conversationId": "c/1 ñ", "sessionId": "s1", "content": "<b>Hola</b>"}
    status, first = await post(http, "/api/chat/messages", said)
    again = {**said, "messageId": first["messageId"]}
    _, second = await post(http, "/api/chat/messages", again)
    assert second == first
    assert status == 202
    assert [event["data"] for event in worker.events] == [again, again]
    async with stream(http, {"conversation": "c/1 ñ"}) as events:
        line = await wait_for(events, "line")
        assert (line["from"], line["text"], line["seq"]) == ("customer", "<b>Hola</b>", 1)
        assert await wait_for(events, "conversations")


@pytest.mark.parametrize(
    ("failing", "status", "code"),
    [
        ((503, "later"), 503, "worker_unavailable"),
        ((429, "later"), 503, "worker_unavailable"),
        ((400, "no"), 502, "worker_refused"),
    ],
)
async def test_what_the_worker_does_not_take_is_not_shown(
    http: aiohttp.ClientSession,
    worker: PlayedWorker,
    failing: tuple[int, str],
    status: int,
    code: str,
) -> None:
    """The customer is told that a line was not sent, and why; it is no line of the conversation."""
    worker.failing = failing
    said = {"conversationId": "c1", "sessionId": "s1", "content": "Hola"}
    answered, body = await post(http, "/api/chat/messages", said)
    assert (answered, body["error"]) == (status, {"code": code, "message": failing[1]})
    async with http.get("/api/chat/conversations") as answer:
        assert (await answer.json())["items"] == []


async def test_without_a_worker_the_chat_says_so() -> None:
    """A sandbox alone, or whose worker is gone, answers 503 and its pages go on."""
    for url in (None, "http://127.0.0.1:9"):
        async with Sandbox(worker_url=url) as alone, aiohttp.ClientSession(alone.url) as http:
            assert (await post(http, "/api/chat/start", {}))[0] == 503
            async with stream(http, {"conversation": "c", "session": "s"}) as events:
                told = await wait_for(events, "session")
                while "problem" not in told:
                    told = await wait_for(events, "session")
                assert (bool(told["problem"]), told["session"]) == (True, None)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"conversationId": "c", "sessionId": "s", "content": ""},
        {"conversationId": "c", "sessionId": "", "content": "x"},
        {"conversationId": "c" * 257, "sessionId": "s", "content": "x"},
        {"conversationId": "c", "sessionId": "s", "content": "x" * 4097},
        {"conversationId": "c", "sessionId": "s", "content": "x", "more": 1},
    ],
)
async def test_what_the_page_sends_is_checked(
    http: aiohttp.ClientSession, worker: PlayedWorker, said: dict[str, str]
) -> None:
    """A line outside the limits is refused and published to nobody."""
    assert (await post(http, "/api/chat/messages", said))[0] == 400
    assert worker.events == []


async def test_the_stream_tells_lines_and_timers(
    http: aiohttp.ClientSession, worker: PlayedWorker
) -> None:
    """A page hears the agent at once, and of each timer while it runs and when it is gone."""
    made = await start(http, contactId="contact-1")
    conversation, session = made["conversationId"], made["sessionId"]
    async with stream(http, {"conversation": conversation, "session": session}) as events:
        told = await wait_for(events, "session")
        while not (told.get("session") or {}).get("deadlines"):
            told = await wait_for(events, "session")
        (deadline,) = told["session"]["deadlines"]
        assert deadline["name"] == "data_collection.reply"
        assert abs(deadline["seenAt"] - told["now"]) < 5_000
        sent_at = monotonic()
        await post(http, WHATSAPP, {"contactId": conversation, "message": "Hola!"})
        line = await wait_for(events, "line")
        assert (line["from"], line["text"]) == ("agent", "Hola!")
        assert monotonic() - sent_at < 0.5
        await post(http, "/crm/orders", ORDER)
        outcome = {"sessionId": session, "flow": "promos", "status": "timeout", "action": "x"}
        await post(http, "/engine", outcome)
        notes = [(await wait_for(events, "line"))["text"] for _ in range(2)]
        assert notes == ["Order order-1 created: 1 of default-pack-1x", notes[1]]
        assert notes[1] == "Outcome of promos: timeout / x"
        said = {"conversationId": conversation, "sessionId": session, "content": "si"}
        await post(http, "/api/chat/messages", said)
        while told["session"]["deadlines"]:
            told = await wait_for(events, "session")


async def test_a_reconnecting_page_hears_only_what_is_new(http: aiohttp.ClientSession) -> None:
    """With Last-Event-ID a stream goes on after the line seen last; repeats are no lines."""
    for text in ("one", "two", "three"):
        body = {"contactId": "c", "message": text}
        await post(http, WHATSAPP, body, Idempotency_Key=text)
        await post(http, WHATSAPP, body, Idempotency_Key=text)
    for last_id, expected in (("", "one"), ("2", "three"), ("x", "one"), ("9" * 20, "one")):
        async with stream(http, {"conversation": "c"}, last_id) as events:
            assert (await wait_for(events, "line"))["text"] == expected


async def test_a_page_without_session_finds_it(
    http: aiohttp.ClientSession, worker: PlayedWorker
) -> None:
    """Opened by its conversation alone, a page gets the open session that the worker has for it."""
    worker.add_session({"sessionId": "s9", "conversationId": "c9-other"})
    worker.add_session({"sessionId": "s/1", "conversationId": "c9", "contactId": "maria"})
    async with stream(http, {"conversation": "c9"}) as events:
        told = await wait_for(events, "session")
        while not told.get("session"):
            told = await wait_for(events, "session")
    assert told["session"]["sessionId"] == "s/1"


async def test_pages_that_are_gone_are_not_asked_for(
    http: aiohttp.ClientSession, worker: PlayedWorker
) -> None:
    """The worker is asked about once a second while a page is open, and not after."""
    worker.add_session({"sessionId": "s", "conversationId": "c"})
    async with stream(http, {"conversation": "c", "session": "s"}) as events:
        await wait_for(events, "session")
        await asyncio.sleep(1.3)
        assert 1 <= worker.asked <= 4
    await asyncio.sleep(1.2)
    asked = worker.asked
    await asyncio.sleep(1.2)
    assert worker.asked == asked


async def test_streams_are_limited_and_end_with_the_sandbox(
    sandbox: Sandbox, http: aiohttp.ClientSession
) -> None:
    """The 65th page is refused; open pages do not hold up a stop."""
    async with aiohttp.ClientSession(sandbox.url, connector=aiohttp.TCPConnector(limit=0)) as pages:
        streams = [await pages.get("/api/chat/stream") for _ in range(64)]
        async with pages.get("/api/chat/stream") as refused:
            assert refused.status == 503
        began = monotonic()
        await sandbox.stop()
        assert monotonic() - began < 1.5
        for answer in streams:
            answer.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"Origin": "SELF"}, 201),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost@evil.example"}, 403),
        ({"Host": "localhost"}, 201),
        ({"Host": "[::1]:80"}, 201),
    ],
)
async def test_foreign_pages_are_refused(
    sandbox: Sandbox,
    http: aiohttp.ClientSession,
    worker: PlayedWorker,
    headers: dict[str, str],
    status: int,
) -> None:
    """A foreign page (its origin) and a rebound name (its host) publish nothing."""
    headers = {name: sandbox.url if value == "SELF" else value for name, value in headers.items()}
    async with http.post("/api/chat/start", json={}, headers=headers) as answer:
        assert answer.status == status
    assert bool(worker.events) == (status == 201)


async def test_a_rebound_name_reads_nothing(http: aiohttp.ClientSession) -> None:
    """Customers' words are not read through a foreign name, and a form's post is refused."""
    for path in ("/books", "/api/chat/stream", "/chat"):
        async with http.get(path, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    async with http.post("/api/chat/start", data=b"{}", headers=form) as answer:
        assert answer.status == 415


async def test_a_public_address_takes_any_host_name_but_no_foreign_origin() -> None:
    """Bound to every address, the sandbox cannot know its names; the origin is checked still."""
    async with Sandbox(host="0.0.0.0") as running, aiohttp.ClientSession(running.url) as http:
        named = {"Host": "sandbox.internal:80"}
        async with http.delete("/faults", headers=named) as answer:
            assert answer.status == 200
        foreign = {**named, "Origin": "http://other.internal"}
        async with http.delete("/faults", headers=foreign) as answer:
            assert answer.status == 403


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("app.localhost", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost.evil.example", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback_names(host: str, *, expected: bool) -> None:
    """Only a name that can mean nothing but this machine is taken for it."""
    assert is_loopback(host) == expected


async def test_pages_forbid_foreign_content(http: aiohttp.ClientSession) -> None:
    """Every page has a policy without unsafe-inline; the page itself holds nothing of anyone."""
    for path in ("/chat", "/chat/%3Cscript%3E", "/chat/a%2Fb", "/nowhere", "/books"):
        async with http.get(path) as answer:
            policy = answer.headers["Content-Security-Policy"]
            body = await answer.text()
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "<script>" not in body
        assert answer.status == (404 if path == "/nowhere" else 200)
    async with http.get("/chat/" + "x" * 257) as answer:
        assert answer.status == 400
    async with http.get("/static/..%2Fserver.py") as answer:
        assert answer.status == 404
