"""One session over the read API, and what every question has in common."""

from base64 import urlsafe_b64encode
from urllib.parse import quote

import httpx
import pytest

from tests.http.asking import all_pages, get, ok, refused
from tests.http.shown_worker import Log, run_cluster

SESSION_FIELDS = {
    "sessionId",
    "workspaceId",
    "agentId",
    "conversationId",
    "contactId",
    "mode",
    "status",
    "closeReason",
    "version",
    "state",
    "deadlines",
    "flows",
    "pendingCommands",
    "journalOffset",
    "updatedAt",
}


async def test_a_session_is_shown_as_the_contract_says() -> None:
    """SPEC §8: the fields of a session, with deadlines, flows and commands in ISO times."""
    log = Log()
    log.start("s1")
    log.ask_for_data("s1")
    log.offer("s1")
    log.fall_due("s1", "data_collection.reply")
    async with run_cluster(log) as cluster:
        session = await ok(f"{cluster.urls[0]}/api/sessions/s1")
    command = next(iter(log.record("s1").pending.values()))
    assert set(session) >= SESSION_FIELDS
    assert set(session) - SESSION_FIELDS == {"paused", "failedCommands"}
    assert session["deadlines"] == [
        {"name": "promos.reply", "dueAt": "2026-01-31T12:10:00.003Z", "generation": 7}
    ]
    assert session["flows"]["promos"] == {
        "step": "awaiting_choice",
        "run": 7,
        "conversationId": "c-s1",
        "workspaceId": "w1",
        "startedAt": "2026-01-31T12:00:00.003Z",
    }
    assert session["pendingCommands"] == [
        {
            "id": command.id,
            "tool": "whatsapp.message.send",
            "attempt": 1,
            "state": "awaiting",
            "flow": "data_collection",
            "issuedAt": "2026-01-31T12:06:00.005Z",
            "inputs": dict(command.inputs),
        }
    ]
    assert session["journalOffset"] == log.record("s1").journal_offset
    assert session["updatedAt"] == "2026-01-31T12:06:00.005Z"
    assert (session["status"], session["closeReason"], session["version"]) == ("open", None, 3)
    assert session["state"]["proactive_started_at"] == "2026-01-31T12:00:00.002Z"


async def test_a_closed_session_shows_the_state_that_it_had() -> None:
    """Its record keeps none: the journal tells it, or nobody, where the beginning is gone."""
    log = Log()
    log.start("s1")
    log.event("s1", "agent/data.captured", data={"nombre": "Ana"})
    log.event("s1", "agent/session.close", reason="completed")
    log.event("s1", "agent/data.captured", data={"nombre": "too late"})
    assert log.record("s1").state == {}
    async with run_cluster(log) as cluster:
        session = await ok(f"{cluster.urls[0]}/api/sessions/s1")
        assert (session["status"], session["version"]) == ("closed", 2)
        assert session["state"]["datos_capturados"] == {"nombre": "Ana"}
        assert "stateUnknown" not in session
        log.lose_head("s1")
        beheaded = await ok(f"{cluster.urls[0]}/api/sessions/s1")
        assert (beheaded["state"], beheaded["stateUnknown"]) == ({}, True)
        log.start("s1", mode="again")
        again = await ok(f"{cluster.urls[0]}/api/sessions/s1")
        assert again["state"]["datos_capturados"] == {}
        assert again["version"] == 3


async def test_a_command_that_failed_for_good_is_no_longer_pending() -> None:
    """It stands in `failedCommands`, where an operator finds its id."""
    log = Log()
    log.event(
        "s1",
        "agent/proactive.send",
        conversationId="c",
        workspaceId="w",
        messageType="reminder",
    )
    log.result("s1", "failed", retryable=False)
    async with run_cluster(log) as cluster:
        session = await ok(f"{cluster.urls[0]}/api/sessions/s1")
    assert session["pendingCommands"] == []
    assert [item["state"] for item in session["failedCommands"]] == ["failed"]


async def test_a_session_that_does_not_exist_is_not_found() -> None:
    """404 `not_found`, for the session and for its timeline, whoever owns the id."""
    async with run_cluster(Log(), count=2) as cluster:
        for session_id in ("a", "b", "c", "d"):
            url = f"{cluster.urls[0]}/api/sessions/{session_id}"
            assert (await refused(url, 404))[0] == "not_found"
            assert (await refused(f"{url}/timeline", 404))[0] == "not_found"


@pytest.mark.parametrize(
    "session_id",
    [
        "a/b", "a/timeline", "timeline", "/", "//", "..", ".", "../api/timers", "a?b=c", "a#b",
        "a%2Fb", "100%", "x y", "x+y", "ñandú-😀", "a;b=c", "<script>", "\n", "\x00", "z" * 256,
    ],
)  # fmt: skip
async def test_any_session_id_can_be_asked_for(session_id: str) -> None:
    """A percent-encoded id arrives as it is, at its owner and at a worker that has to ask it."""
    log = Log()
    log.start(session_id)
    encoded = quote(session_id, safe="").replace(".", "%2E")
    async with run_cluster(log, count=2) as cluster:
        for url in cluster.urls:
            session = await ok(f"{url}/api/sessions/{encoded}")
            assert session["sessionId"] == session_id
            timeline = await ok(f"{url}/api/sessions/{encoded}/timeline")
            assert timeline["items"][0]["data"]["sessionId"] == session_id


async def test_an_id_that_is_no_utf8_is_refused() -> None:
    """400 `bad_request`, and no fault of ours."""
    async with run_cluster(Log()) as cluster:
        url = f"{cluster.urls[0]}/api/sessions/%FF"
        assert (await refused(url, 400))[0] == "bad_request"


async def test_a_timeline_is_paged_and_can_be_read_backwards() -> None:
    """`limit`, `cursor` and `order` work at the owner and at a worker that asks it."""
    log = Log()
    log.start("s1")
    for number in range(11):
        log.message("s1", str(number))
    offsets = [at.offset for _, at in log.lines("s1")]
    async with run_cluster(log, count=2) as cluster:
        for urls in (cluster.urls, cluster.urls[::-1]):
            path = "/api/sessions/s1/timeline"
            items = await all_pages(urls, path, limit=4)
            assert [item["offset"] for item in items] == offsets
            items = await all_pages(urls, path, limit=5, order="desc")
            assert [item["offset"] for item in items] == offsets[::-1]


CURSOR_OF_TIMERS = urlsafe_b64encode(b'["timers",1,"a","b"]').decode()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/sessions", {"limit": "0"}),
        ("/api/sessions", {"limit": "-1"}),
        ("/api/sessions", {"limit": "ten"}),
        ("/api/sessions", {"limit": "1.5"}),
        ("/api/sessions", {"limit": "\N{ARABIC-INDIC DIGIT ONE}"}),
        ("/api/sessions", {"status": "asleep"}),
        ("/api/sessions", {"q": "x" * 2000}),
        ("/api/sessions", {"cursor": "%%%"}),
        ("/api/sessions", {"cursor": "ñ"}),
        ("/api/sessions", {"cursor": "bm9wZQ"}),
        ("/api/sessions", {"cursor": CURSOR_OF_TIMERS}),
        ("/api/sessions", {"cursor": "W" * 5000}),
        ("/api/timers", {"before": "tomorrow"}),
        ("/api/timers", {"before": "9" * 30}),
        ("/api/timers", {"cursor": urlsafe_b64encode(b'["timers","a","b"]').decode()}),
        ("/api/timers", {"limit": "0"}),
        ("/api/dead-letters", {"cursor": CURSOR_OF_TIMERS}),
        ("/api/dead-letters", {"limit": "x"}),
        ("/api/sessions/s1/timeline", {"order": "up"}),
        ("/api/sessions/s1/timeline", {"limit": "0"}),
        ("/api/sessions/s1/timeline", {"cursor": CURSOR_OF_TIMERS}),
        ("/api/sessions/s1/timeline", {"changes": "1"}),
    ],
)
async def test_a_bad_parameter_is_refused_by_name(path: str, words: dict[str, str]) -> None:
    """400 `bad_request`; the message names the parameter."""
    log = Log()
    log.start("s1")
    async with run_cluster(log) as cluster:
        code, message = await refused(cluster.urls[0] + path, 400, **words)
    assert code == "bad_request"
    assert message.startswith(next(iter(words)))


async def test_metrics_are_what_prometheus_reads() -> None:
    """The process's registry in the text format."""
    async with run_cluster(Log()) as cluster:
        answer = await get(f"{cluster.urls[0]}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "# TYPE python_info gauge" in answer.text


async def test_events_can_be_posted_to_the_same_server() -> None:
    """The server takes events too (their rules are tested with `ingest.py`)."""
    async with run_cluster(Log()) as cluster:
        data = {"sessionId": "s1", "conversationId": "c", "messageId": "m", "content": "hola"}
        envelope = {"name": "agent/customer.message", "data": data, "id": "e1"}
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{cluster.urls[0]}/api/events", json=envelope)
        assert (answer.status_code, answer.json()) == (202, {"ids": ["e1"]})
        assert [event.session_id for event in cluster.publisher.events] == ["s1"]


async def test_an_unknown_path_is_a_404_in_the_form_of_an_error() -> None:
    """So is a method that a path does not have (405)."""
    async with run_cluster(Log()) as cluster:
        await refused(f"{cluster.urls[0]}/api/nothing", 404)
        async with httpx.AsyncClient() as client:
            answer = await client.delete(f"{cluster.urls[0]}/api/sessions/s1")
        assert answer.status_code == 405
        assert set(answer.json()["error"]) == {"code", "message"}
