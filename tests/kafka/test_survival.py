"""Restarts, kills and absences: what was promised stays promised (G1 to G5, G9)."""

import asyncio
import signal
import time
from typing import Any

import httpx
import orjson
import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer as LibrdkafkaProducer

from agents_stream.core.session import decode_record
from agents_stream.kafka import ranges
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import SESSIONS_CHANGELOG, partition_for
from agents_stream.settings import Settings
from tests.kafka.cluster import Cluster, cluster

RESPONDED = ("data_collection", "responded", "awaiting_more_data")
TIMED_OUT = ("data_collection", "timeout", "sent_pending_message")
CHOSEN = ("promos", "responded", "awaiting_selection_processing")
ORDERED = ("promos", "timeout", "auto_created_order")


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
async def test_pending_timers_survive_a_restart(
    kafka_settings: Settings, store: str, number: signal.Signals
) -> None:
    """G3, G4: a timer armed before the worker's end fires after the next one's start, once."""
    async with cluster(kafka_settings) as seen:
        worker = await seen.worker(store).ready()
        sessions = [await seen.open() for _ in range(5)]
        for session in sessions:
            await seen.offer(session)
        await _applied(seen, sessions, "agent/promos.offered")
        code = worker.end(number)
        assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        await asyncio.sleep(2.5)  # every timer falls due meanwhile
        await worker.start().ready()
        for session in sessions:
            await seen.until_outcomes(session, ORDERED)
            assert len(seen.values("tool.crm.order.create", session)) == 1


@pytest.mark.parametrize("late", [False, True], ids=["in time", "after the due time"])
async def test_an_answer_beats_its_deadline_through_an_absence(
    kafka_settings: Settings,
    late: bool,  # noqa: FBT001 - the parameter of a parametrized test
) -> None:
    """G5: a message acknowledged while the worker was away counts as the answer."""
    async with cluster(kafka_settings) as seen:
        worker = await seen.worker().ready()
        session = await seen.open()
        silent = await seen.open()
        await seen.collect(session)
        await seen.collect(silent)
        await _applied(seen, [session, silent], "agent/collecting_data.started")
        worker.end(signal.SIGKILL)
        if late:
            await asyncio.sleep(2.5)
        await seen.message(session)
        if not late:
            await asyncio.sleep(2.5)
        await worker.start().ready()
        await seen.until_outcomes(session, RESPONDED)
        await seen.until_outcomes(silent, TIMED_OUT)
        assert seen.messages(session) == []


async def test_a_whole_conversation_in_an_absence(kafka_settings: Settings) -> None:
    """G1, G5: start, question and answer all came while no worker ran, on three topics."""
    async with cluster(kafka_settings) as seen:
        session = await seen.open()
        await seen.collect(session)
        await seen.message(session)
        silent = await seen.open()
        await seen.collect(silent)
        await seen.worker().ready()
        await seen.until_outcomes(session, RESPONDED)
        await seen.until_outcomes(silent, TIMED_OUT)


async def test_order_across_topics(kafka_settings: Settings) -> None:
    """SPEC §2 "Order": four events of a session, back to back on four topics, apply in order.

    A message applied before its question would leave the session to time out; data captured
    after the message would end it with another outcome.
    """
    async with cluster(kafka_settings) as seen:
        await seen.worker().ready()
        sessions = [f"order-{number}" for number in range(60)]

        async def talk(session: str) -> None:
            await seen.open(session)
            await seen.collect(session)
            data = {"nombre": "A", "telefono": "1", "ciudad": "C", "direccion": "D"}
            await seen.send("agent/data.captured", session, data=data)
            await seen.message(session)
            await seen.message(session)

        await asyncio.gather(*(talk(session) for session in sessions))
        await seen.until(lambda: all(seen.outcomes(session) for session in sessions), 30)
        expected = ("data_collection", "complete", "transitioned_to_promos")
        assert {seen.outcomes(session)[0] for session in sessions} == {expected}


async def test_librdkafka_producers(kafka_settings: Settings) -> None:
    """G5 for another partitioner: librdkafka's default is not Java's, answers still win."""
    settings = kafka_settings.model_copy(update={"promos_reply_timeout": 700})
    async with cluster(settings) as seen:
        await seen.worker().ready()
        producer = LibrdkafkaProducer({"bootstrap.servers": settings.bootstrap_servers})
        places: dict[str, int] = {}

        def send(name: str, session: str, **data: Any) -> None:
            def placed(error: object, message: Any) -> None:
                assert error is None
                places[session] = message.partition()

            value = orjson.dumps({"sessionId": session, **data})
            producer.produce(seen.topic(name), value, key=session, on_delivery=placed)
            producer.flush(10)
            time.sleep(0.002)

        sessions = [f"rd-{number}" for number in range(20)]
        ids = {"conversationId": "c", "workspaceId": "w"}
        for session in sessions:
            send("agent.promos.offered", session, packOptions=["1x"], **ids)
        assert any(
            places[session] != partition_for(session.encode(), settings.partitions)
            for session in sessions
        ), "the two partitioners agree on these keys: the test shows nothing"
        answered = sessions[::2]
        for session in answered:
            send("agent.customer.message", session, conversationId="c", messageId="m", content="")
        await seen.until(lambda: all(seen.outcomes(session) for session in sessions))
        for session in sessions:
            failed = ("promos", "failed", "contact_unknown")
            assert seen.outcomes(session) == [CHOSEN if session in answered else failed]


async def test_two_workers_share_and_answer_for_each_other(kafka_settings: Settings) -> None:
    """Any worker answers for any session; when one goes, the other takes its partitions over."""
    async with cluster(kafka_settings) as seen:
        first = await seen.worker().ready()
        second = await seen.worker().ready()
        await first.ready()
        sessions = [await seen.open() for _ in range(12)]
        for session in sessions:
            await seen.offer(session)
        await _applied(seen, sessions, "agent/promos.offered", worker=1)
        owners = {await _owned(worker.url) for worker in (first, second)}
        assert {len(owned) for owned in owners} == {2}, owners
        first.end(signal.SIGTERM)
        for session in sessions:
            await seen.until_outcomes(session, ORDERED)
            assert len(seen.values("tool.crm.order.create", session)) == 1
        second.end()


async def test_a_paused_worker_cannot_undo(kafka_settings: Settings) -> None:
    """G9: SIGSTOP for longer than the session timeout, a successor, SIGCONT: nothing is undone."""
    async with cluster(kafka_settings) as seen:
        paused = await seen.worker().ready()
        sessions = [await seen.open() for _ in range(8)]
        for session in sessions:
            await seen.offer(session)
        await _applied(seen, sessions, "agent/promos.offered")
        paused.send_signal(signal.SIGSTOP)
        successor = seen.worker()
        for session in sessions[:4]:
            await seen.message(session)
        await successor.ready()
        for number, session in enumerate(sessions):
            await seen.until_outcomes(session, CHOSEN if number < 4 else ORDERED, seconds=40)
        paused.send_signal(signal.SIGCONT)
        await asyncio.sleep(3)
        for number, session in enumerate(sessions):
            assert seen.outcomes(session) == [CHOSEN if number < 4 else ORDERED]
            record = await _record(seen, session)
            assert record.mode == ("ofrecer_promos" if number < 4 else "compra_confirmada")


async def test_the_highest_record_wins_at_recovery(kafka_settings: Settings) -> None:
    """G9: a lower record that a paused worker wrote late loses, and is covered again."""
    async with cluster(kafka_settings) as seen:
        worker = await seen.worker().ready()
        session = await seen.open()
        await _applied(seen, [session], "agent/session.started")
        old = await _row(seen, session)
        await seen.send("agent/session.updated", session, mode="later")
        await _applied(seen, [session], "agent/session.updated")
        worker.end()
        place = partition_for(session.encode(), kafka_settings.partitions)
        await seen.producer.send_and_wait(
            seen.topic(SESSIONS_CHANGELOG), old, key=session.encode(), partition=place
        )
        assert (await _record(seen, session)).mode == "intro"  # the last one is the stale one
        await worker.start().ready()
        assert (await _record(seen, session)).mode == "later"


async def test_aborted_transactions_are_no_events(kafka_settings: Settings) -> None:
    """SPEC §2: a record of an aborted transaction is no event, and holds nothing back."""
    async with cluster(kafka_settings) as seen:
        await seen.worker().ready()
        session = await seen.open()
        await seen.offer(session)
        topic = seen.topic("agent.customer.message")
        value = orjson.dumps(
            {"sessionId": session, "conversationId": "c", "messageId": "m", "content": "no"}
        )
        async with AIOKafkaProducer(
            **client_options(kafka_settings), transactional_id=f"tx-{session}"
        ) as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, value, key=session.encode())
            await producer.abort_transaction()
        await seen.until_outcomes(session, ORDERED)


async def _applied(seen: Cluster, sessions: list[str], name: str, worker: int = 0) -> None:
    """Wait until the sessions' last event is applied, as the API tells."""
    async with httpx.AsyncClient(base_url=seen.workers[worker].url, timeout=10) as http:
        for session in sessions:
            for _ in range(100):
                answer = await http.get(f"/api/sessions/{session}/timeline")
                items = answer.json().get("items", []) if answer.status_code == 200 else []
                if any(item["name"] == name for item in items):
                    break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError(f"{name} of {session} was not applied: {answer.text}")


async def _owned(url: str) -> tuple[int, ...]:

    async with httpx.AsyncClient(base_url=url, timeout=10) as http:
        cluster_view = (await http.get("/api/cluster")).json()
    [own] = [item for item in cluster_view["members"] if item["url"] == url]
    return tuple(own["partitions"])


async def _row(seen: Cluster, session: str) -> bytes:
    """The last changelog record of a session, read committed by nobody in particular."""
    topic = seen.topic(SESSIONS_CHANGELOG)
    place = (topic, partition_for(session.encode(), seen.settings.partitions))
    last: bytes | None = None
    async with ranges.reader(seen.settings) as client:
        span = (await ranges.bounds(client, [place]))[place]
        async for record in ranges.read(client, {place: span}):
            if record.key == session.encode():
                last = record.value
    assert last is not None
    return last


async def _record(seen: Cluster, session: str) -> Any:
    return decode_record(await _row(seen, session))
