"""Any worker answers for all of them; what it cannot answer it refuses in clear words."""

import asyncio
import contextlib
import re

import httpx
import pytest

from agents_stream.core.errors import RetryableError
from agents_stream.views import local, remote
from agents_stream.views.http import Rejection
from agents_stream.views.local import LocalViews
from agents_stream.views.queries import (
    SessionQuery,
    TimelineQuery,
    TimerQuery,
)
from agents_stream.views.reads import Member
from agents_stream.views.remote import FORWARDED, Peers
from tests.http.asking import ids, many, ok, refused
from tests.http.shown_worker import Log, ShownWorker, run_cluster


async def test_any_worker_answers_for_any_session() -> None:
    """A worker that does not own a session asks its owner, and only that; the answers are equal."""
    log = many(12)
    async with run_cluster(log, count=3) as cluster:
        for session_id in log.rows:
            owner = cluster.owner_of(session_id)
            for worker in cluster.workers:
                worker.asked.clear()
            for path in (f"/api/sessions/{session_id}", f"/api/sessions/{session_id}/timeline"):
                answers = [await ok(url + path) for url in cluster.urls]
                assert answers[0] == answers[1] == answers[2]
            asked = [worker.asked for worker in cluster.workers]
            assert set(asked[owner]) == {session_id}
            assert not any(asked[n] for n in range(3) if n != owner)


async def test_a_question_is_passed_on_once_at_most() -> None:
    """Two workers that each take the other for the owner say so instead of asking in circles."""
    log = Log()
    log.start("s1")
    async with run_cluster(log, count=2) as cluster:
        here, there = cluster.owner_of("s1"), 1 - cluster.owner_of("s1")
        # The owner has lost the partition and believes that the other one has it.
        everything = tuple(range(log.partitions))
        cluster.workers[here].members_told = [
            Member(cluster.urls[here], (), is_self=True),
            Member(cluster.urls[there], everything, is_self=False),
        ]
        for url in cluster.urls:
            code, _ = await refused(f"{url}/api/sessions/s1", 503)
            assert code == "owner_unavailable"


async def test_a_forwarded_question_is_answered_from_this_workers_own_table() -> None:
    """The header of a forwarded question (or `scope=local`) keeps a list to this worker."""
    log = many(20)
    async with run_cluster(log, count=2) as cluster:
        own = [s for s in sorted(log.rows) if cluster.owner_of(s) == 0]
        url = f"{cluster.urls[0]}/api/sessions"
        assert ids((await ok(url, scope="local"))["items"]) == own
        async with httpx.AsyncClient(headers={FORWARDED: "1"}) as client:
            assert ids((await client.get(url)).json()["items"]) == own
            foreign = next(s for s in log.rows if s not in own)
            assert (await client.get(f"{url}/{foreign}")).status_code == 503


async def test_a_dead_worker_is_named() -> None:
    """A list that would have a gap is refused with the address of the worker that is missing."""
    log = many(20)
    async with run_cluster(log, count=3) as cluster:
        await cluster.servers[2].stop()
        for path in ("/api/sessions", "/api/timers"):
            code, message = await refused(cluster.urls[0] + path, 503)
            assert code == "worker_unavailable"
            assert cluster.urls[2] in message
        for session_id in log.rows:
            url = f"{cluster.urls[0]}/api/sessions/{session_id}"
            if cluster.owner_of(session_id) == 2:
                code, message = await refused(url, 503)
                assert code == "worker_unavailable"
                assert cluster.urls[2] in message
            else:
                assert (await ok(url))["sessionId"] == session_id
        members = (await ok(f"{cluster.urls[0]}/api/cluster"))["members"]
        assert [member["ready"] for member in members] == [True, True, False]


@pytest.mark.parametrize("bytes_each", [0, 1])
async def test_a_worker_that_hangs_costs_a_bounded_time(bytes_each: int) -> None:
    """A stopped process still takes connections, a sick one drips: the question ends (G11)."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" * bytes_each)
            while not reader.at_eof():
                writer.write(b" " * bytes_each)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1_000), 0.05)

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as deaf:
        url = f"http://127.0.0.1:{deaf.sockets[0].getsockname()[1]}"
        peers = Peers(None, limit_s=0.3)
        peers.open()
        try:
            async with asyncio.timeout(3):
                with pytest.raises(Rejection, match=re.escape(url)) as refusal:
                    await peers.ask(url, "/api/sessions", {})
        finally:
            await peers.close()
    assert (refusal.value.status, refusal.value.code) == (503, "worker_unavailable")


async def test_an_answer_without_end_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that sends more than it may is not read to the end."""
    monkeypatch.setattr(remote, "MAX_ANSWER_BYTES", 10_000)
    log = many(20)
    async with run_cluster(log, count=2) as cluster:
        foreign = next(s for s in log.rows if cluster.owner_of(s) == 1)
        url = f"{cluster.urls[0]}/api/sessions/{foreign}"
        await ok(url)
        log.event(foreign, "agent/session.updated", state={"long": "x" * 20_000})
        code, message = await refused(url, 503)
        assert code == "worker_unavailable"
        assert cluster.urls[1] in message


async def test_a_worker_that_is_not_ready_says_what_is_missing() -> None:
    """503 `not_ready`, from the owner itself and through another worker; the others go on."""
    log = many(20)
    async with run_cluster(log, count=2) as cluster:
        cluster.workers[1].missing = "recovering partitions 1, 3"
        assert await refused(f"{cluster.urls[1]}/readyz", 503) == (
            "not_ready",
            "recovering partitions 1, 3",
        )
        assert (await ok(f"{cluster.urls[0]}/readyz")) == {"status": "ok"}
        assert (await ok(f"{cluster.urls[1]}/healthz")) == {"status": "ok"}
        for session_id in log.rows:
            for url in cluster.urls:
                if cluster.owner_of(session_id) == 1:
                    code, message = await refused(f"{url}/api/sessions/{session_id}", 503)
                    assert code == "not_ready"
                    assert "recovering partitions 1, 3" in message
                else:
                    await ok(f"{url}/api/sessions/{session_id}")
        for url in cluster.urls:
            code, message = await refused(f"{url}/api/sessions", 503)
            assert code == "not_ready"
            assert "recovering partitions 1, 3" in message


async def test_a_partition_without_owner_makes_no_silent_gap() -> None:
    """While partitions move, 503 `owner_unavailable` instead of a list without them."""
    log = many(20)
    async with run_cluster(log, count=2) as cluster:
        for worker in cluster.workers:
            worker.members_told = [item for item in worker.members_told if item.is_self]
        assert (await refused(f"{cluster.urls[0]}/api/sessions", 503))[0] == "owner_unavailable"
        assert (await refused(f"{cluster.urls[0]}/api/timers", 503))[0] == "owner_unavailable"
        foreign = next(s for s in log.rows if cluster.owner_of(s) == 1)
        code, _ = await refused(f"{cluster.urls[0]}/api/sessions/{foreign}", 503)
        assert code == "owner_unavailable"


async def test_a_partition_that_leaves_while_it_is_listed_does_no_harm() -> None:
    """An id whose record has gone meanwhile is left out."""
    log = many(20)
    worker = ShownWorker(log, range(log.partitions))
    listed = list(worker.session_ids())
    gone = [item for item in listed if log.partition_of(item) == 1]
    assert gone
    worker.listed = listed
    worker.owned = (0, 2, 3)
    page = await LocalViews(worker).sessions(SessionQuery(limit=500))
    assert ids(page.items) == sorted(set(listed) - set(gone))


async def test_a_session_that_two_workers_show_is_listed_once() -> None:
    """While a partition moves, the later state of a session counts."""
    log, behind = many(8), many(8)
    for session_id in log.rows:
        log.event(session_id, "agent/session.close", reason="handoff")
    async with run_cluster(log, count=2) as cluster:
        for worker in cluster.workers:
            worker.owned = tuple(range(log.partitions))
        for late in cluster.workers:
            for worker in cluster.workers:
                worker.log = behind if worker is late else log
            items = (await ok(f"{cluster.urls[0]}/api/sessions"))["items"]
            assert ids(items) == sorted(log.rows)
            offsets = [log.record(session_id).journal_offset for session_id in ids(items)]
            assert [item["journalOffset"] for item in items] == offsets


async def test_other_work_goes_on_while_a_large_table_is_read() -> None:
    """The worker's timers must not wait for a reader: no turn of the event loop is long."""
    log = many(20)
    worker = ShownWorker(log, range(log.partitions))
    row = log.rows["s001"]
    for number in range(5_000):
        log.rows[f"x{number}"] = row
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await LocalViews(worker).timers(TimerQuery())
    assert turns >= 5_000 / local.BREATH_EVERY
    turns = 0
    await LocalViews(worker).sessions(SessionQuery(text="nobody"))
    assert turns >= 5_000 / local.BREATH_EVERY
    counting.cancel()


async def test_a_reading_that_takes_too_long_ends_with_503() -> None:
    """Kafka hangs: the question ends after its limit (G11)."""
    log = many(3)
    worker = ShownWorker(log, range(log.partitions))
    worker.members_told = [Member("http://here", tuple(range(log.partitions)), is_self=True)]

    async def hang() -> None:
        await asyncio.sleep(60)

    worker.kafka = hang
    with pytest.raises(Rejection) as refusal:
        await LocalViews(worker, limit_s=0.05).timeline("s001", TimelineQuery())
    assert (refusal.value.status, refusal.value.code) == (503, "too_slow")
    log.event("s001", "agent/data.captured", data={"nombre": "Ana"})
    log.event("s001", "agent/session.close", reason="completed")
    shown = await LocalViews(worker, limit_s=0.05).session("s001")
    assert (shown["status"], shown["state"], shown["stateUnknown"]) == ("closed", {}, True)


async def test_kafka_out_of_reach_is_503() -> None:
    """What a reading of Kafka raises as retryable is answered as "later"."""
    log = many(3)
    async with run_cluster(log) as cluster:

        async def fail() -> None:
            raise RetryableError("Kafka does not answer")

        cluster.workers[0].kafka = fail
        for path in ("/api/sessions/s001/timeline", "/api/dead-letters"):
            code, message = await refused(cluster.urls[0] + path, 503)
            assert (code, message) == ("unavailable", "Kafka does not answer")


async def test_the_cluster_is_shown_with_its_tables() -> None:
    """`/api/cluster`: members, their partitions, sizes of their tables and wheels."""
    log = many(20)
    async with run_cluster(log, count=2) as cluster:
        told = await ok(f"{cluster.urls[0]}/api/cluster")
    assert (told["ready"], told["partitionCount"]) == (True, 4)
    assert [member["self"] for member in told["members"]] == [True, False]
    tables = [table for member in told["members"] for table in member["tables"]]
    assert sorted(table["partition"] for table in tables) == [0, 1, 2, 3]
    assert sum(table["sessions"] for table in tables) == 20
    assert told["tables"] == told["members"][0]["tables"]
