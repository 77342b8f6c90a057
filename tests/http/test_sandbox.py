"""The sandbox's tools, books and faults, over real HTTP."""

import asyncio
import io
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
from pydantic import SecretStr

from agents_stream.core.errors import TerminalError
from agents_stream.sandbox import Sandbox, Secrets, run_sandbox
from agents_stream.settings import Settings
from agents_stream.stages.gateway.webhook import sign

MESSAGE = {"contactId": "conversation-1", "message": "Hola!"}
ORDER = {
    "contact_id": "contact-1",
    "products": [{"product_id": "default-pack-1x", "quantity": 1}],
    "notes": "Auto-created after 10 min timeout. Pack: 1x",
}
WHATSAPP, CRM = "/whatsapp/messages", "/crm/orders"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Run a sandbox on a free port."""
    async with Sandbox() as running:
        yield running


@pytest.fixture
async def http(sandbox: Sandbox) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a client of that sandbox."""
    async with aiohttp.ClientSession(sandbox.url) as client:
        yield client


async def post(
    http: aiohttp.ClientSession, path: str, body: object, **headers: str
) -> tuple[int, dict[str, Any]]:
    """Post JSON; return the status and the answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.post(path, json=body, headers=named) as answer:
        return answer.status, await answer.json()


async def books(http: aiohttp.ClientSession, query: str = "") -> list[dict[str, Any]]:
    """Return the lines of the books."""
    async with http.get(f"/books{query}") as answer:
        items: list[dict[str, Any]] = (await answer.json())["items"]
        return items


async def test_a_key_is_performed_once_and_answered_alike(http: aiohttp.ClientSession) -> None:
    """The same Idempotency-Key gets the stored answer, has no second effect, and is recorded."""
    first = await post(http, CRM, ORDER, Idempotency_Key="k1")
    again = await post(http, CRM, ORDER, Idempotency_Key="k1")
    other = await post(http, CRM, ORDER, Idempotency_Key="k2")
    message = await post(http, WHATSAPP, MESSAGE, Idempotency_Key="k1")
    assert first == again == (200, {"id": "order-1"})
    assert other == (200, {"id": "order-2"})
    assert message == (200, {"id": "wamid-1"})
    told = [(item["attempt"], item["repeat"], item["performed"]) for item in await books(http)]
    assert told == [(1, False, True), (2, True, False), (1, False, True), (1, False, True)]


async def test_without_a_key_every_request_acts(http: aiohttp.ClientSession) -> None:
    """What has no key cannot be told from a second wish for the same."""
    assert await post(http, WHATSAPP, MESSAGE) == (200, {"id": "wamid-1"})
    assert await post(http, WHATSAPP, MESSAGE) == (200, {"id": "wamid-2"})


async def test_a_key_with_other_inputs_is_refused(http: aiohttp.ClientSession) -> None:
    """A key that comes back with other inputs is a mistake of the caller and does nothing."""
    await post(http, CRM, ORDER, Idempotency_Key="k1")
    status, body = await post(http, CRM, {**ORDER, "notes": "other"}, Idempotency_Key="k1")
    assert (status, body["error"]["code"]) == (422, "idempotency_key_reused")
    assert [item["performed"] for item in await books(http)] == [True, False]


async def test_concurrent_requests_with_one_key_act_once(http: aiohttp.ClientSession) -> None:
    """Twenty requests with one key at once, all of them slow, have one effect."""
    fault = {"tool": "crm.order.create", "mode": "slow", "delayMs": 50}
    await post(http, "/faults", fault)
    answers = await asyncio.gather(
        *(post(http, CRM, ORDER, Idempotency_Key="k1") for _ in range(20))
    )
    assert answers == [(200, {"id": "order-1"})] * 20
    lines = await books(http)
    assert sum(item["performed"] for item in lines) == 1
    assert sum(item["repeat"] for item in lines) == 19


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (WHATSAPP, {}),
        (WHATSAPP, {"contactId": "", "message": "x"}),
        (WHATSAPP, {"contactId": 7, "message": "x"}),
        (WHATSAPP, {"contactId": "c", "message": None}),
        (WHATSAPP, []),
        (
            WHATSAPP,
            {
                **MESSAGE,
                "deep": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]],
            },
        ),
        (CRM, {**ORDER, "products": []}),
        (CRM, {**ORDER, "products": [{"product_id": "p", "quantity": 0}]}),
        (CRM, {**ORDER, "contact_id": None}),
        (CRM, {**ORDER, "notes": 5}),
    ],
)
async def test_wrong_inputs_are_refused_and_kept(
    http: aiohttp.ClientSession, path: str, body: object
) -> None:
    """Inputs that the tool cannot take get 400, do nothing, and stand in the books."""
    status, answer = await post(http, path, body)
    assert status == 400
    assert answer["error"]["message"]
    (line,) = await books(http)
    assert (line["status"], line["performed"]) == (400, False)


async def test_what_is_no_json_is_refused(http: aiohttp.ClientSession) -> None:
    """JSON is required, by content type and in fact; a body above 2 MiB is refused."""
    as_json = {"Content-Type": "application/json"}
    async with http.post(CRM, data=b"{", headers=as_json) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_json")
    async with http.post(CRM, data="x", headers={"Content-Type": "text/plain"}) as answer:
        assert answer.status == 415
    large = io.BytesIO(b"x" * (2 * 1024 * 1024 + 1))
    async with http.post(CRM, data=large, headers=as_json) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"]["message"]


async def test_unknown_fields_are_kept(http: aiohttp.ClientSession) -> None:
    """The books hold the inputs as they were sent, with what the tool does not know."""
    await post(http, CRM, {**ORDER, "extra": {"a": [1]}})
    (line,) = await books(http)
    assert line["inputs"] == {**ORDER, "extra": {"a": [1]}}


async def test_a_configured_token_is_asked_for() -> None:
    """A wrong or missing bearer token gets 401; what it asked is kept, the token is not."""
    secrets = Secrets(whatsapp_token=SecretStr("s3cret-ñ"), crm_token=SecretStr("other"))
    async with Sandbox(secrets=secrets) as running, aiohttp.ClientSession(running.url) as http:
        assert (await post(http, WHATSAPP, MESSAGE))[0] == 401
        assert (await post(http, WHATSAPP, MESSAGE, Authorization="Bearer other"))[0] == 401
        right = "Bearer s3cret-ñ"
        assert (await post(http, WHATSAPP, MESSAGE, Authorization=right))[0] == 200
        lines = await books(http)
        assert [line["authorized"] for line in lines] == [False, False, True]
        assert [line["performed"] for line in lines] == [False, False, True]
        assert b"s3cret" not in orjson.dumps(lines)


@pytest.mark.parametrize(
    ("mode", "more", "status", "retry_after"),
    [
        ("fail", {}, 503, None),
        ("fail", {"status": 500, "retryAfterMs": 1}, 500, "1"),
        ("refuse", {}, 422, None),
        ("refuse", {"status": 404}, 404, None),
        ("429", {}, 429, "0"),
        ("429", {"retryAfterMs": 1500}, 429, "2"),
        ("down", {}, 503, None),
    ],
)
async def test_faults_that_answer(
    http: aiohttp.ClientSession,
    mode: str,
    more: dict[str, Any],
    status: int,
    retry_after: str | None,
) -> None:
    """A fault answers its status, with Retry-After rounded up to seconds, and nothing is done."""
    fault = {"tool": "crm.order.create", "mode": mode, **more}
    assert (await post(http, "/faults", fault))[0] == 201
    async with http.post(CRM, json=ORDER, headers={"Idempotency-Key": "k"}) as answer:
        assert answer.status == status
        assert answer.headers.get("Retry-After") == retry_after
    assert (await post(http, WHATSAPP, MESSAGE))[0] == 200
    await http.delete("/faults")
    assert await post(http, CRM, ORDER, Idempotency_Key="k") == (200, {"id": "order-1"})
    lines = await books(http, "?tool=crm.order.create")
    assert [(line["status"], line["performed"], line["repeat"]) for line in lines] == [
        (status, False, False),
        (200, True, False),
    ]


@pytest.mark.parametrize(("mode", "performed"), [("drop", False), ("act_then_drop", True)])
async def test_faults_that_close_the_connection(
    http: aiohttp.ClientSession, mode: str, *, performed: bool
) -> None:
    """`drop` ends the connection before acting, `act_then_drop` after: the caller cannot tell."""
    await post(http, "/faults", {"tool": "crm.order.create", "mode": mode, "times": 1})
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await post(http, CRM, ORDER, Idempotency_Key="k")
    assert await post(http, CRM, ORDER, Idempotency_Key="k") == (200, {"id": "order-1"})
    first, second = await books(http)
    assert (first["status"], first["performed"]) == (None, performed)
    assert (second["status"], second["repeat"]) == (200, performed)


async def test_a_slow_tool_acts_though_nobody_waits(http: aiohttp.ClientSession) -> None:
    """A caller that gives up on a slow tool cannot undo what the tool does then."""
    fault = {"tool": "crm.order.create", "mode": "slow", "delayMs": 300, "times": 1}
    await post(http, "/faults", fault)
    with pytest.raises(TimeoutError):
        async with http.post(CRM, json=ORDER, timeout=aiohttp.ClientTimeout(total=0.1)):
            pass
    assert [line["performed"] for line in await books(http)] == [False]
    for _ in range(50):
        if [line["performed"] for line in await books(http)] == [True]:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the slow tool never acted")


async def test_faults_are_counted_matched_and_taken_back(http: aiohttp.ClientSession) -> None:
    """A fault concerns its tool and its contact, `times` times, or until it is taken back."""
    match = {"contact": "contact-1"}
    fault = {"tool": "crm.order.create", "mode": "fail", "times": 2, "match": match}
    _, told = await post(http, "/faults", fault)
    assert (told["id"], told["left"], told["match"]) == ("fault-1", 2, match)
    other = {**ORDER, "contact_id": "contact-2"}
    statuses = [(await post(http, CRM, body))[0] for body in (other, ORDER, ORDER, ORDER)]
    assert statuses == [200, 503, 503, 200]
    await post(http, "/faults", {**fault, "times": None})
    async with http.get("/faults") as answer:
        (standing,) = (await answer.json())["items"]
    assert (standing["id"], standing["left"], standing["used"]) == ("fault-2", None, 0)
    async with http.delete("/faults/fault-2") as answer:
        assert answer.status == 200
    async with http.delete("/faults/fault-2") as answer:
        assert answer.status == 404
    assert (await post(http, CRM, ORDER))[0] == 200


@pytest.mark.parametrize(
    "fault",
    [
        {},
        {"tool": "other", "mode": "fail"},
        {"tool": "webhook", "mode": "explode"},
        {"tool": "webhook", "mode": "slow"},
        {"tool": "webhook", "mode": "slow", "delayMs": 10**9},
        {"tool": "webhook", "mode": "fail", "status": 200},
        {"tool": "webhook", "mode": "fail", "times": 0},
        {"tool": "webhook", "mode": "fail", "times": "3"},
        {"tool": "webhook", "mode": "429", "retryAfterMs": -1},
        {"tool": "webhook", "mode": "fail", "match": {}},
        {"tool": "webhook", "mode": "fail", "unknown": 1},
    ],
)
async def test_faults_are_checked(http: aiohttp.ClientSession, fault: dict[str, Any]) -> None:
    """A fault outside its limits is refused with the field's name."""
    status, body = await post(http, "/faults", fault)
    assert (status, body["error"]["code"]) == (400, "invalid_schema")


async def test_faults_are_limited(http: aiohttp.ClientSession) -> None:
    """A hundred faults stand at a time, no more."""
    fault = {"tool": "webhook", "mode": "fail"}
    statuses = [(await post(http, "/faults", fault))[0] for _ in range(101)]
    assert statuses == [201] * 100 + [409]


async def test_the_engine_checks_the_signature() -> None:
    """A webhook is taken with the gateway's fresh signature of its bytes, once per id."""
    secret = SecretStr("secret")
    body = orjson.dumps({"id": "o1", "sessionId": "s1", "flow": "promos", "status": "timeout"})
    now_s = int(time.time())
    right = sign(secret, body, now_s)
    others = [sign(secret, b"{}", now_s), sign(SecretStr("x"), body, now_s), right.upper(), "é"]
    async with (
        Sandbox(secrets=Secrets(webhook_secret=secret)) as running,
        aiohttp.ClientSession(running.url) as http,
    ):
        for signature in [right, right, *others, sign(secret, body, now_s - 301), None]:
            headers = {"Content-Type": "application/json", "x-agents-stream-id": "o1"}
            if signature is not None:
                headers["x-agents-stream-signature"] = signature
            await (await http.post("/engine", data=body, headers=headers)).read()
        lines = await books(http, "?tool=webhook&contact=s1")
    assert [(line["status"], line["signature"], line["performed"]) for line in lines] == [
        (200, "valid", True),
        (200, "valid", False),
        *[(401, "invalid", False)] * 4,
        (401, "expired", False),
        (401, "missing", False),
    ]
    assert {line["key"] for line in lines} == {"o1"}


async def test_the_books_can_be_searched_and_emptied(http: aiohttp.ClientSession) -> None:
    """Books are read by tool, contact, time and page; emptying them forgets no key."""
    for number in range(5):
        await post(http, WHATSAPP, {"contactId": f"c{number % 2}", "message": str(number)})
    await post(http, CRM, ORDER, Idempotency_Key="k1")
    assert [line["seq"] for line in await books(http, "?contact=c1")] == [2, 4]
    assert [line["seq"] for line in await books(http, "?tool=crm.order.create")] == [6]
    assert await books(http, "?since=9007199254740992") == []
    async with http.get("/books?limit=4") as answer:
        page = await answer.json()
    assert ([line["seq"] for line in page["items"]], page["nextCursor"]) == ([1, 2, 3, 4], "4")
    assert [line["seq"] for line in await books(http, "?limit=4&cursor=4")] == [5, 6]
    for wrong in ("?tool=x", "?since=x", "?limit=0", "?since=-1", "?cursor=²"):
        async with http.get(f"/books{wrong}") as answer:
            assert answer.status == 400
    async with http.get("/books/messages?conversation=c1") as answer:
        told = [(item["id"], item["message"]) for item in (await answer.json())["items"]]
    assert told == [("wamid-2", "1"), ("wamid-4", "3")]
    async with http.get("/books/orders") as answer:
        (order,) = (await answer.json())["items"]
    assert (order["id"], order["contact_id"], order["key"]) == ("order-1", "contact-1", "k1")
    await http.delete("/books")
    assert await books(http) == []
    assert await post(http, CRM, ORDER, Idempotency_Key="k1") == (200, {"id": "order-1"})


async def test_stop_and_start_again() -> None:
    """A stopped sandbox refuses connections; started again it has its port and its books."""
    running = Sandbox()
    await running.start()
    async with aiohttp.ClientSession(running.url) as http:
        await post(http, CRM, ORDER, Idempotency_Key="k")
        await running.stop()
        await running.stop()
        with pytest.raises(aiohttp.ClientConnectionError):
            await post(http, CRM, ORDER)
        await running.start()
        await post(http, CRM, ORDER, Idempotency_Key="k")
        assert [line["repeat"] for line in await books(http)] == [False, True]
        taken = Sandbox(port=int(running.url.rsplit(":", 1)[1]))
        with pytest.raises(TerminalError, match="cannot listen"):
            await taken.start()
    await running.stop()


async def test_run_sandbox_ends_with_the_signal() -> None:
    """The process's sandbox listens until SIGTERM, then stops cleanly."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = asyncio.create_task(run_sandbox(Settings(), port))
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        for _ in range(100):
            try:
                async with http.get("/healthz") as answer:
                    assert await answer.json() == {"status": "ok"}
                break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 5)
