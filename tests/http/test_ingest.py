"""`POST /api/events` and `POST /e/{eventKey}` over real HTTP: answers, refusals, secrets."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest
from structlog.testing import capture_logs

from agents_stream.core.errors import BrokerUnreachable
from agents_stream.core.json_list import MAX_ITEMS
from agents_stream.core.strict_json import MAX_VALUE_BYTES
from agents_stream.settings import Settings
from agents_stream.views.http import MAX_BODY_BYTES
from tests.http.serving import PlayedKafka, serve

TOKEN = "tok-" + "9" * 20
KEY = "evt-" + "7" * 20
SEED = {"x-inngest-event-id-seed": "1700000000000,dGVuIGJ5dGVzIQ=="}
SDK = {"x-inngest-sdk": "inngest-js:v4"}
BOTH = ["/api/events", f"/e/{KEY}"]


def message(message_id: str = "m-1", **more: Any) -> dict[str, Any]:
    """Return an envelope that is good."""
    data = {"sessionId": "s-1", "conversationId": "c-1", "messageId": message_id, "content": "Hola"}
    return {"name": "agent/customer.message", "data": data} | more


def close(session_id: str = "s-1", **more: Any) -> dict[str, Any]:
    """Return a good envelope of an event that has no identity of its own."""
    data = {"sessionId": session_id, "reason": "completed"}
    return {"name": "agent/session.close", "data": data} | more


@asynccontextmanager
async def worker(
    kafka: PlayedKafka | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the routes and give a client for them."""
    async with (
        serve(kafka or PlayedKafka(), Settings(**settings)) as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        yield client


def ids_on(kafka: PlayedKafka) -> list[object]:
    """Return the ids in the envelopes that Kafka took."""
    return [orjson.loads(event.value).get("id") for event in kafka.taken]


async def test_events_are_answered_with_their_ids_once_kafka_has_them() -> None:
    """One envelope or a list; the ids are those in the envelopes, extra fields stay (SPEC §8)."""
    kafka = PlayedKafka()
    async with worker(kafka) as client:
        one = await client.post("/api/events", json=close(id="e-1", ts=17, user={"x": 1}))
        many = await client.post("/api/events", json=[close("s-2"), message(), message(id="")])
        none = await client.post("/api/events", json=[])
    assert [answer.status_code for answer in (one, many, none)] == [202, 202, 202]
    assert [one.json(), none.json()] == [{"ids": ["e-1"]}, {"ids": []}]
    assert orjson.loads(kafka.taken[0].value) == close(id="e-1", ts=17, user={"x": 1})
    made = many.json()["ids"][0]
    assert many.json() == {"ids": [made, "m-1", "m-1"]}
    assert ids_on(kafka) == ["e-1", made, None, ""]
    assert [event.session_id for event in kafka.taken] == ["s-1", "s-2", "s-1", "s-1"]


async def test_inngests_answer_has_ids_and_status() -> None:
    """SPEC §8: `{"ids": [...], "status": 200}`, for one event, a list and an empty list."""
    kafka = PlayedKafka()
    async with worker(kafka) as client:
        one = await client.post("/e/any", json=close(id="e-1"))
        many = await client.post("/e/NO_EVENT_KEY_SET", json=[close(id="e-2"), close(id="e-3")])
        none = await client.post("/e/any", json=[])
        form = await client.post("/e/any", content=json.dumps(close(id="e-4")).encode())
    assert [answer.json() for answer in (one, many, none, form)] == [
        {"ids": ["e-1"], "status": 200},
        {"ids": ["e-2", "e-3"], "status": 200},
        {"ids": [], "status": 200},
        {"ids": ["e-4"], "status": 200},
    ]
    assert {answer.status_code for answer in (one, many, none, form)} == {200}


async def test_a_repeated_seed_gives_the_same_ids() -> None:
    """An SDK's retry is no new event (G2): ids come from seed and index, given ids stay."""
    kafka = PlayedKafka(failures=1, error=BrokerUnreachable("Kafka is away"))
    body = [close(), close(id="mine"), message(), close(id=None)]
    async with worker(kafka) as client:
        failed = await client.post("/e/k", json=body, headers=SEED)
        first = await client.post("/e/k", json=body, headers=SEED)
        again = await client.post("/e/k", json=body, headers=SEED)
        other = await client.post(
            "/e/k", json=body, headers={"x-inngest-event-id-seed": "1700000000001,xx"}
        )
    assert failed.status_code == 503
    tried = [orjson.loads(event.value)["id"] for event in kafka.refused]
    ids = first.json()["ids"]
    assert tried == ids == again.json()["ids"]
    assert len(set(ids)) == 4
    assert ids[1] == "mine"
    assert ids_on(kafka)[:8] == ids * 2
    assert set(other.json()["ids"]) & set(ids) == {"mine"}


async def test_one_event_alone_and_first_in_a_list_are_the_same() -> None:
    """Some SDKs send one event as a list of one when they retry."""
    async with worker() as client:
        alone = await client.post("/e/k", json=close(), headers=SEED)
        listed = await client.post("/e/k", json=[close()], headers=SEED)
    assert alone.json() == listed.json()


BAD: list[tuple[bytes, int, str, str]] = [
    (b"", 400, "invalid_json", "no value"),
    (b"{", 400, "invalid_json", ""),
    (b"[", 400, "invalid_json", "does not end"),
    (b"7", 400, "invalid_schema", ""),
    (b'{"name": "agent/customer.message"}', 400, "invalid_schema", "`data`"),
    (b'{"sessionId": "s", "reason": "timeout"}', 400, "invalid_schema", "`name`"),
    (json.dumps(close(id=7)).encode(), 400, "invalid_schema", "id is a string"),
    (json.dumps(close(id=["e"])).encode(), 400, "invalid_schema", "id is a string"),
    (json.dumps(close("")).encode(), 400, "invalid_schema", "sessionId"),
    (b'{"name": "agent/nothing", "data": {}}', 400, "unknown_event", "agent/nothing"),
    (b'{"name": "agent/session.close", "data": {"x": NaN}}', 400, "invalid_json", "NaN"),
    (b'{"name": "agent/session.close", "name": "x"}', 400, "invalid_json", "twice"),
    (json.dumps(close(x="y" * MAX_VALUE_BYTES)).encode(), 413, "too_large", ""),
    (b" " * (MAX_BODY_BYTES + 1), 413, "too_large", ""),
]


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize("body, status, code, told", BAD)
async def test_a_bad_event_is_refused_with_the_reason(
    path: str, body: bytes, status: int, code: str, told: str
) -> None:
    """400 or 413, the reason as code, a sentence that says what is wrong (SPEC §8)."""
    kafka = PlayedKafka()
    async with worker(kafka) as client:
        answer = await client.post(path, content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert told in answer.json()["error"]["message"]
    assert kafka.taken == []


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize("bad", [{"name": "x", "data": {}}, 7, None, [], close(id=3)])
async def test_nothing_of_a_request_with_one_bad_event_is_published(path: str, bad: object) -> None:
    """All or none; the answer says which event it was, counted from 0 (SPEC §8)."""
    kafka = PlayedKafka()
    async with worker(kafka) as client:
        answer = await client.post(path, json=[close(), message(), bad, close()])
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("event 2: ")
    assert kafka.taken == []


async def test_limits_of_an_event_hold_for_each_event_of_a_list() -> None:
    """A list has its own limits; being in one makes an event neither deeper nor larger."""
    deep: object = []
    for _ in range(28):
        deep = [deep]
    deepest = {"name": "agent/session.updated", "data": {"sessionId": "s", "state": {"x": deep}}}
    large = close(x="y" * (MAX_VALUE_BYTES - 200))
    kafka = PlayedKafka()
    async with worker(kafka) as client:
        good = await client.post("/api/events", json=[deepest, large, large, large])
        assert good.status_code == 202, good.text
        deepest["data"] = {"sessionId": "s", "state": {"x": [deep]}}
        deeper = await client.post("/api/events", json=[deepest])
        most = await client.post("/api/events", json=[close()] * MAX_ITEMS)
        more = await client.post("/api/events", json=[close()] * (MAX_ITEMS + 1))
    assert (deeper.status_code, deeper.json()["error"]["code"]) == (400, "invalid_json")
    assert (most.status_code, more.status_code) == (202, 413)
    assert len(set(most.json()["ids"])) == MAX_ITEMS


@pytest.mark.parametrize("path", BOTH)
async def test_without_kafka_the_answer_is_503(path: str) -> None:
    """Later it may succeed, so clients and SDKs try again (G11)."""
    kafka = PlayedKafka(failures=1, error=BrokerUnreachable("Kafka is away"))
    async with worker(kafka) as client:
        answer = await client.post(path, json=close())
        again = await client.post(path, json=close())
    assert answer.status_code == 503
    assert answer.json() == {"error": {"code": "unavailable", "message": "Kafka is away"}}
    assert answer.headers["Retry-After"] == "1"
    assert again.is_success


async def test_an_sdk_of_inngest_gets_errors_that_it_can_show() -> None:
    """The SDKs show `error` where it is a string, and hide an object behind their own words."""
    async with worker(event_key=KEY) as client:
        bad = await client.post(f"/e/{KEY}", json={"name": "x", "data": {}}, headers=SDK)
        wrong = await client.post("/e/wrong", json=close(), headers=SDK)
    assert (bad.status_code, bad.json()) == (
        400,
        {"error": "unknown_event: 'x' is no event of ours", "status": 400, "ids": []},
    )
    assert (wrong.status_code, wrong.json()["status"]) == (401, 401)
    assert wrong.json()["error"].startswith("unauthorized: ")


async def test_the_event_key_sends_and_does_nothing_else() -> None:
    """With a key only that key sends, and it opens nothing but sending (SPEC §8)."""
    kafka = PlayedKafka()
    async with worker(kafka, event_key=KEY, auth_token=TOKEN) as client:
        good = await client.post(f"/e/{KEY}", json=close())
        for wrong in ("x", KEY[:-1], KEY + "x", KEY.upper(), "é", "%ff", TOKEN):
            answer = await client.post(f"/e/{wrong}", json=close())
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        api = await client.post(
            "/api/events", json=close(), headers={"Authorization": f"Bearer {KEY}"}
        )
    assert (good.status_code, api.status_code) == (200, 401)
    assert len(kafka.taken) == 1


async def test_without_a_key_only_this_machine_may_send() -> None:
    """A worker that listens to other machines takes nothing without a secret."""
    kafka = PlayedKafka()
    async with worker(kafka, web_host="0.0.0.0") as client:
        inngest = await client.post("/e/any", json=close())
        api = await client.post("/api/events", json=close())
    assert "AGENTS_STREAM_EVENT_KEY" in inngest.json()["error"]["message"]
    assert "AGENTS_STREAM_AUTH_TOKEN" in api.json()["error"]["message"]
    assert (inngest.status_code, api.status_code, kafka.taken) == (401, 401, [])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_the_token_opens_the_api(host: str) -> None:
    """As a bearer token, or as the password with which a browser answers (SPEC §8)."""
    basic = base64.b64encode(f"anybody:{TOKEN}".encode()).decode()
    kafka = PlayedKafka()
    async with worker(kafka, web_host=host, auth_token=TOKEN) as client:
        for good in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Basic {basic}"):
            answer = await client.post("/api/events", json=close(), headers={"Authorization": good})
            assert answer.status_code == 202
        for bad in ("", f"Bearer {TOKEN}x", "Bearer", TOKEN, "Basic !", f"Basic {TOKEN}"):
            answer = await client.post("/api/events", json=close(), headers={"Authorization": bad})
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        missing = await client.get("/", headers={"Accept": "text/html"})
    assert (missing.status_code, missing.headers["WWW-Authenticate"][:5]) == (401, "Basic")
    assert len(kafka.taken) == 3


FOREIGN = [
    {"Host": "evil.example"},
    {"Host": "evil.example:6066"},
    {"Host": ""},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize("headers", FOREIGN)
async def test_a_foreign_web_page_cannot_send_to_a_worker_on_this_machine(
    path: str, headers: dict[str, str]
) -> None:
    """Neither by its origin nor by a name rebound to 127.0.0.1, since no secret is asked here."""
    kafka = PlayedKafka()
    async with worker(kafka) as client:
        answer = await client.post(path, json=close(), headers=headers)
        assert answer.status_code == 401
        own = str(client.base_url).rstrip("/")
        good = await client.post(
            path, json=close(), headers={"Origin": own, "Sec-Fetch-Site": "same-origin"}
        )
    assert good.is_success
    assert len(kafka.taken) == 1


async def test_a_worker_answers_to_the_name_that_its_url_gives_it() -> None:
    """Behind a proxy on this machine the name is the proxy's."""
    async with worker(web_url="https://agents.example") as client:
        headers = {"Host": "agents.example", "Origin": "https://agents.example"}
        answer = await client.post("/api/events", json=close(), headers=headers)
    assert answer.status_code == 202


async def test_no_log_line_holds_a_secret_or_a_message() -> None:
    """The event key is masked in every line, right or wrong; contents never appear (SPEC §8)."""
    kafka = PlayedKafka(failures=1, error=BrokerUnreachable("away"))
    with capture_logs() as lines:
        async with worker(kafka, event_key=KEY, auth_token=TOKEN) as client:
            for path in (f"/e/{KEY}", f"/e/{KEY}x", f"/e/{KEY}/more", f"/x//e/{KEY}", f"/E/{KEY}"):
                for body in (message(), message(), {"name": KEY[:3], "data": {}}):
                    await client.post(path, params={"key": KEY}, json=body)
                await client.get(path)
            await client.post("/api/events", headers={"Authorization": TOKEN + "x"})
    assert len(lines) > 20
    text = repr(lines)
    assert KEY not in text
    assert TOKEN not in text
    assert "Hola" not in text
    assert "/e/***" in text


async def test_what_is_no_route_is_told_as_json() -> None:
    """404 and 405 have the form of every other error."""
    async with worker() as client:
        missing = await client.get("/api/nothing")
        wrong = await client.get("/api/events")
        without_key = await client.post("/e/", json=close())
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert without_key.status_code == 404


async def test_a_fault_of_ours_is_answered_without_its_details() -> None:
    """An unexpected exception is a 500 with no word of it; the log has it whole."""

    class Broken(PlayedKafka):
        async def publish(self, events: object) -> Any:
            raise ZeroDivisionError(f"secret detail of {events}")

    with capture_logs() as lines:
        async with worker(Broken()) as client:
            answer = await client.post("/api/events", json=close())
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert any(line["log_level"] == "error" and line["exc_info"] for line in lines)


async def test_a_body_that_does_not_come_is_not_waited_for_forever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow sender holds a connection for a bounded time (G11)."""
    monkeypatch.setattr("agents_stream.views.http.BODY_TIME_S", 0.2)

    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" "
            await asyncio.sleep(0.05)

    async with worker() as client:
        answer = await client.post("/api/events", content=trickle())
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_slow")
