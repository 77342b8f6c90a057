"""Changed ground: topics made anew, lost tails, forgotten offsets, added partitions (G1 to G3, G9).

Each is refused with clear words or survived, never a silent loss. On a broker of its own, which is
killed with its tail cut off.
"""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from agents_stream.kafka import embedded, topic_admin
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import (
    ACTIONS,
    CUSTOMER_MESSAGE,
    DEADLINES,
    JOURNAL,
    SESSIONS_CHANGELOG,
    load_topics,
    partition_for,
)
from agents_stream.settings import Settings
from tests.conftest import free_port
from tests.kafka.cluster import Cluster, WorkerProcess, cluster
from tests.kafka.ground_world import (
    ForgetfulBroker,
    add_partitions,
    delete_records,
    ended,
    forget_group,
    make_anew,
)

pytestmark = pytest.mark.kafka

RESPONDED = ("data_collection", "responded", "awaiting_more_data")
TIMED_OUT = ("data_collection", "timeout", "sent_pending_message")


@pytest.fixture
async def seen(ground: Settings) -> AsyncIterator[Cluster]:
    """The bystander."""
    async with cluster(ground) as one:
        yield one


async def applied(worker: WorkerProcess, session: str, name: str) -> None:
    """Wait until the session's last event is this one."""
    async with httpx.AsyncClient(base_url=worker.url, timeout=10) as http:
        for _ in range(150):
            answer = await http.get(f"/api/sessions/{session}/timeline")
            items = answer.json().get("items", []) if answer.status_code == 200 else []
            if items and items[-1]["name"] == name:
                return
            await asyncio.sleep(0.1)
    raise AssertionError(f"{name} was not applied: {worker.tail()}")


async def until_committed(worker: WorkerProcess) -> None:
    """What is done is committed every quarter of a second."""
    assert worker.process is not None
    await asyncio.sleep(1)


async def until_mode(worker: WorkerProcess, session: str, mode: str) -> None:
    """Wait until the worker tells this mode of a session."""
    for _ in range(150):
        found = await mode_of(worker, session)
        if found == mode:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{session} is {found}, not {mode}: {worker.tail()}")


async def mode_of(worker: WorkerProcess, session: str) -> str | None:
    """The session's mode, as the worker tells it."""
    async with httpx.AsyncClient(base_url=worker.url, timeout=10) as http:
        answer = await http.get(f"/api/sessions/{session}")
        return answer.json().get("mode") if answer.status_code == 200 else None


async def test_an_input_made_anew_is_survived(seen: Cluster) -> None:
    """G1, G3: the worker ends and says why; the next one reads it from its beginning."""
    worker = await seen.worker().ready()
    session = await seen.open()
    for _ in range(3):
        await seen.message(session)
    await applied(worker, session, "agent/customer.message")
    await make_anew(seen.settings, CUSTOMER_MESSAGE, DEADLINES)
    assert await ended(worker) == 1
    assert CUSTOMER_MESSAGE in worker.tail()
    assert "was deleted" in worker.tail()
    await worker.start().ready()
    assert await mode_of(worker, session) == "intro"
    await seen.collect(session)
    await seen.message(session)  # a lower offset than the last one seen
    await seen.until_outcomes(session, RESPONDED)
    silent = await seen.open()
    await seen.collect(silent)
    await seen.until_outcomes(silent, TIMED_OUT)


async def test_a_journal_made_anew_is_refused_and_survived_if_told_so(seen: Cluster) -> None:
    """G1: what it held unapplied is read again from the inputs, what was applied is known."""
    worker = await seen.worker().ready()
    session = await seen.open()
    await seen.send("agent/session.updated", session, mode="later")
    await applied(worker, session, "agent/session.updated")
    await make_anew(seen.settings, JOURNAL)
    assert await ended(worker) == 1
    assert f"{JOURNAL} was deleted" in worker.tail()
    assert await ended(worker.start()) == 1
    assert "the history of every session is gone" in worker.tail()
    told = seen.settings.model_copy(update={"start_from": "earliest"})
    again = WorkerProcess(told, worker.port)
    seen.workers.append(again)
    await again.start().ready()
    assert await mode_of(again, session) == "later"
    await seen.collect(session)
    await seen.until_outcomes(session, TIMED_OUT)
    again.end()
    await worker.start().ready()  # told once is told for good
    assert await mode_of(worker, session) == "collecting_data"


async def test_a_changelog_made_anew_is_refused(seen: Cluster) -> None:
    """G2, G3: the sessions would be forgotten, or every action done again; nobody may do that."""
    worker = await seen.worker().ready()
    session = await seen.open()
    await applied(worker, session, "agent/session.started")
    worker.end(signal.SIGKILL)
    await make_anew(seen.settings, SESSIONS_CHANGELOG)
    for _ in range(2):
        assert await ended(worker.start()) == 1
        assert "the records of all sessions, with their deadlines, are gone" in worker.tail()


async def test_actions_made_anew_are_refused(seen: Cluster) -> None:
    """G1: what was decided and not yet published is gone; the records say again what they owe."""
    worker = await seen.worker().ready()
    session = await seen.open()
    await seen.send(
        "agent/proactive.send",
        session,
        conversationId="c",
        workspaceId="w-1",
        messageType="reminder",
    )
    await seen.until(lambda: seen.messages(session))
    worker.end(signal.SIGKILL)
    await make_anew(seen.settings, ACTIONS)
    assert await ended(worker.start()) == 1
    assert f"{ACTIONS} was deleted and made anew" in worker.tail()
    told = seen.settings.model_copy(update={"start_from": "earliest"})
    again = WorkerProcess(told, worker.port)
    seen.workers.append(again)
    await again.start().ready()
    assert "published again" in again.tail()
    assert len(seen.messages(session)) == 1


def in_partition(number: int, partitions: int) -> str:
    """A session's id that lies in this partition."""
    while True:
        session = f"s-{secrets.token_hex(5)}"
        if partition_for(session.encode(), partitions) == number:
            return session


async def update(seen: Cluster, session: str, mode: str) -> None:
    """Change something that shows."""
    await seen.send("agent/session.updated", session, mode=mode)


async def test_a_lost_tail_under_a_stopped_worker_is_made_again(
    forgetful: ForgetfulBroker, ground: Settings
) -> None:
    """G1, G2: one partition lost the tail of its changelog, one of its journal, one of both.

    And one that of an input, which was written on since: the new record has the old one's offset.
    """
    ground = ground.model_copy(update={"partitions": 4})
    updated = f"{ground.topic_prefix}agent.session.updated"
    journal, changelog = (f"{ground.topic_prefix}{name}" for name in (JOURNAL, SESSIONS_CHANGELOG))
    losses = [(0, changelog), (1, journal), (2, changelog), (2, journal), (3, updated)]
    async with cluster(ground) as seen:
        worker = await seen.worker().ready()
        sessions = [in_partition(number, 4) for number in range(4)]
        for session in sessions:
            await seen.open(session)
            await update(seen, session, "first")
            await applied(worker, session, "agent/session.updated")
        sizes = {place: forgetful.size(place[1], place[0]) for place in losses}
        for session in sessions:
            await update(seen, session, "second")
        for session in sessions:
            await until_mode(worker, session, "second")
        await until_committed(worker)
        worker.end(signal.SIGKILL)
        await asyncio.to_thread(forgetful.crash, sizes)
        # The bystander's own producer would be refused: the broker forgot its sequence.
        async with AIOKafkaProducer(**client_options(ground)) as afterwards:
            value = orjson.dumps({"sessionId": sessions[3], "mode": "third"})
            await afterwards.send_and_wait(updated, value, key=sessions[3].encode())
        await worker.start().ready()
        for session in sessions[:3]:
            await until_mode(worker, session, "second")
        await until_mode(worker, sessions[3], "third")
        assert worker.tail().count("lost the end of a topic") == len(losses)
        for session in sessions:  # and everything works as before
            await seen.collect(session)
        for session in sessions:
            await seen.until_outcomes(session, TIMED_OUT)


async def test_a_lost_tail_under_a_running_worker_is_made_again(
    forgetful: ForgetfulBroker, ground: Settings
) -> None:
    """G1: what was written on since would otherwise stand below the offset that was reached."""
    async with cluster(ground) as seen:
        worker = await seen.worker().ready()
        session, other = await seen.open(), await seen.open()
        await update(seen, session, "first")
        await applied(worker, session, "agent/session.updated")
        topics = [f"{ground.topic_prefix}{name}" for name in (JOURNAL, SESSIONS_CHANGELOG)]
        sizes = {(0, topic): forgetful.size(topic) for topic in topics}
        await update(seen, session, "second")
        await until_mode(worker, session, "second")
        await until_committed(worker)
        await asyncio.to_thread(forgetful.crash, sizes)
        for number in range(8):
            await update(seen, other, f"m{number}")
        assert await ended(worker, 60) in {1, 3}
        for _ in range(3):  # as a supervisor would
            try:
                await worker.start().ready()
                break
            except AssertionError:
                assert await ended(worker) in {1, 3}
        await until_mode(worker, other, "m7")
        await until_mode(worker, session, "second")


async def test_partitions_added_are_refused(seen: Cluster) -> None:
    """A session would move away from its journal and its record."""
    worker = await seen.worker().ready()
    session = await seen.open()
    await applied(worker, session, "agent/session.started")
    await add_partitions(seen.settings, 2, CUSTOMER_MESSAGE)
    assert await ended(worker) == 1
    assert "has 2 partitions now, should be 1" in worker.tail()
    assert await ended(worker.start()) == 1
    assert "partitions is 2, should be 1" in worker.tail()
    others = [spec.name for spec in load_topics().specs if spec.name != CUSTOMER_MESSAGE]
    await add_partitions(seen.settings, 2, *others)
    raised = WorkerProcess(seen.settings.model_copy(update={"partitions": 2}), free_port())
    seen.workers.append(raised.start())
    assert await ended(raised) == 1
    assert "worked with 1 partitions" in raised.tail()


async def test_forgotten_offsets_do_nothing_again(seen: Cluster) -> None:
    """G1, G2: inputs and journal are read from the beginning and known; actions need a word."""
    worker = await seen.worker().ready()
    session = await seen.open()
    await seen.collect(session)
    await seen.until_outcomes(session, TIMED_OUT)
    await until_committed(worker)
    worker.end()
    await asyncio.to_thread(forget_group, seen.settings)
    assert await ended(worker.start()) == 1
    assert "AGENTS_STREAM_START_FROM=earliest or latest" in worker.tail()
    before = {topic: len(records) for topic, records in seen.records.items()}
    told = seen.settings.model_copy(update={"start_from": "latest"})
    again = WorkerProcess(told, worker.port)
    seen.workers.append(again)
    await again.start().ready()
    await seen.collect(session)
    await seen.until(lambda: len(seen.outcomes(session)) == 2)
    commands = "tool.whatsapp.message.send"
    assert len(seen.records[seen.topic(commands)]) == before[seen.topic(commands)] + 1


async def test_records_deleted_unread_are_said_loudly(seen: Cluster) -> None:
    """G1 ends with the inputs' retention: what it took is counted, and nothing else is lost."""
    worker = await seen.worker().ready()
    session = await seen.open()
    await seen.message(session)
    await applied(worker, session, "agent/customer.message")
    await until_committed(worker)
    worker.end()
    for _ in range(3):
        await seen.message(session)
    await delete_records(seen.settings, CUSTOMER_MESSAGE, 3)
    await worker.start().ready()
    assert "RECORDS WERE LOST" in worker.tail()
    async with httpx.AsyncClient(base_url=worker.url, timeout=10) as http:
        metrics = (await http.get("/metrics")).text
        answer = await http.get(f"/api/sessions/{session}/timeline")
    lost = f'agents_stream_records_lost_total{{topic="{CUSTOMER_MESSAGE}"}} 2.0'
    assert lost in metrics
    assert len(answer.json()["items"]) == 3


async def test_a_worker_with_another_topic_list_does_not_join(seen: Cluster) -> None:
    """G11: it would tear at the group for ever; it says what to do, and the group goes on."""
    older = AIOKafkaConsumer(
        seen.topic(CUSTOMER_MESSAGE),
        **client_options(seen.settings),
        group_id=seen.settings.group_id,
    )
    await older.start()
    try:
        worker = seen.worker()
        assert await ended(worker) == 1
        assert "a worker of another version is in the group" in worker.tail()
        assert "Stop all workers of the old version" in worker.tail()
    finally:
        await older.stop()
    await worker.start().ready()


async def test_another_cluster_at_the_same_address(tmp_path: Path) -> None:
    """G9: rows of one cluster are never used on another, and a running worker ends."""
    address = f"127.0.0.1:{free_port()}"
    first, second = (
        Settings(bootstrap_servers=address, data_dir=tmp_path / name, partitions=1)
        for name in ("first", "second")
    )
    worker = WorkerProcess(first.model_copy(), free_port(), "rocksdb")
    embedded.start(first)
    try:
        async with cluster(first) as seen:
            await worker.start().ready()
            session = await seen.open()
            await applied(worker, session, "agent/session.started")
        worker.end()
        embedded.stop(first)
        embedded.start(second)
        await topic_admin.apply(second)
        await worker.start().ready()
        assert "of another cluster or topic" in worker.tail()
        assert await mode_of(worker, session) is None
        embedded.stop(second)
        embedded.start(first)
        assert await ended(worker, 60) == 1
        assert "another Kafka cluster answers at this address" in worker.tail()
        await worker.start().ready()
        assert await mode_of(worker, session) == "intro"
    finally:
        worker.end(signal.SIGKILL)
        embedded.stop(second)
        embedded.stop(first)
