"""The producers' client against the real broker: keys, ids, order, refusals, bounded waiting."""

import asyncio
import gc
import math
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord

from agents_stream.client import (
    AgentsStream,
    BrokerUnreachable,
    CollectingDataStarted,
    CustomerMessage,
    DataCaptured,
    InvalidEvent,
    Sent,
    SessionClose,
    SessionStarted,
    SessionUpdated,
    TerminalError,
    ToolResult,
)
from agents_stream.client_sync import AgentsStreamSync
from agents_stream.kafka import embedded
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topic_admin import apply
from agents_stream.kafka.topics import partition_for
from agents_stream.settings import Settings
from tests.conftest import free_port


def message(session_id: str = "s-1", content: str = "Hola", message_id: str = "m-1") -> Any:
    """Make the event that most tests send."""
    return CustomerMessage(
        session_id=session_id, conversation_id="c-1", message_id=message_id, content=content
    )


@pytest.fixture
async def stream(kafka_settings: Settings) -> AsyncIterator[AgentsStream]:
    """Give a connected client; the topics exist."""
    await apply(kafka_settings)
    async with AgentsStream.from_settings(kafka_settings) as client:
        yield client


async def read(settings: Settings, sent: list[Sent]) -> list[ConsumerRecord]:
    """Read back the records of `sent`, in that order."""
    consumer = AIOKafkaConsumer(
        *{one.topic for one in sent}, **client_options(settings), auto_offset_reset="earliest"
    )
    await consumer.start()
    found: dict[tuple[str, int, int], ConsumerRecord] = {}
    try:
        async with asyncio.timeout(20):
            while not all((one.topic, one.partition, one.offset) in found for one in sent):
                record = await consumer.getone()
                found[record.topic, record.partition, record.offset] = record
    finally:
        await consumer.stop()
    return [found[one.topic, one.partition, one.offset] for one in sent]


async def test_an_event_becomes_an_envelope_under_its_session(
    stream: AgentsStream, kafka_settings: Settings
) -> None:
    """Key, partition, timestamp and id are those that `send` returned, the value is SPEC §2's."""
    before = time.time_ns() // 1_000_000
    sent = await stream.send(SessionClose(session_id="sesión-1", reason="handoff"))
    [record] = await read(kafka_settings, [sent])
    envelope = orjson.loads(record.value)
    assert sent.topic == f"{kafka_settings.topic_prefix}agent.session.close"
    assert record.key == "sesión-1".encode()
    assert sent.partition == partition_for(record.key, kafka_settings.partitions)
    assert record.timestamp == sent.timestamp
    assert record.timestamp_type == 1, "LogAppendTime: the broker's, not ours"
    assert envelope.pop("ts") >= before
    assert envelope == {
        "name": "agent/session.close",
        "data": {"sessionId": "sesión-1", "reason": "handoff"},
        "id": sent.id,
    }


async def test_partitions_are_those_of_javas_default_partitioner(
    stream: AgentsStream, kafka_settings: Settings
) -> None:
    """Events of a session lie together, whichever client sent them (G5)."""
    sent = await stream.send_many([message(f"s-{number}") for number in range(200)])
    expected = [
        partition_for(f"s-{number}".encode(), kafka_settings.partitions) for number in range(200)
    ]
    assert [one.partition for one in sent] == expected
    assert len(set(expected)) == kafka_settings.partitions


async def test_every_event_has_an_id_that_repetitions_share(
    stream: AgentsStream, kafka_settings: Settings
) -> None:
    """A given id is kept, a missing one made; a message keeps its own identity (G2)."""
    close = SessionClose(session_id="s-1", reason="completed")
    sent = [
        await stream.send(close),
        await stream.send(close),
        await stream.send(close, id="order-77"),
        await stream.send(message(message_id="wamid-9")),
        await stream.send(message(message_id="wamid-9"), id="mine"),
    ]
    assert [
        orjson.loads(record.value).get("id") for record in await read(kafka_settings, sent)
    ] == [
        sent[0].id,
        sent[1].id,
        "order-77",
        None,
        "mine",
    ]
    assert sent[0].id != sent[1].id
    assert [one.id for one in sent[2:]] == ["order-77", "wamid-9", "mine"]


async def test_awaited_sends_on_several_topics_never_share_a_millisecond(
    stream: AgentsStream,
) -> None:
    """So the worker, which orders by timestamp, applies them in the order they were sent."""
    events = [
        SessionStarted(
            session_id="s-1",
            workspace_id="w",
            agent_id="a",
            conversation_id="c",
            contact_id="k",
            mode="m",
        ),
        SessionUpdated(session_id="s-1", mode="x"),
        DataCaptured(session_id="s-1", data={"nombre": "Ana"}),
        CollectingDataStarted(session_id="s-1", conversation_id="c", workspace_id="w"),
    ]
    one_by_one = [await stream.send(event) for _ in range(25) for event in events]
    in_one_call = await stream.send_many(events * 25)
    at_once = await asyncio.gather(*(stream.send(event) for event in events * 25))
    for sent in (one_by_one, in_one_call, at_once):
        times = [one.timestamp for one in sent]
        assert times == sorted(set(times))


async def test_send_many_keeps_the_order_within_a_topic(
    stream: AgentsStream, kafka_settings: Settings
) -> None:
    """Offsets of a session rise with the place in the list; the answers stand in its places."""
    events = [message(f"s-{n % 3}", str(n), f"m-{n}") for n in range(1_500)]
    sent = await stream.send_many(events)
    records = await read(kafka_settings, sent)
    assert [orjson.loads(record.value)["data"]["content"] for record in records] == [
        str(n) for n in range(1_500)
    ]
    for session in range(3):
        offsets = [one.offset for one in sent[session::3]]
        assert offsets == sorted(offsets)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"data": {}}, "invalid_schema"),
    "unknown name": ({"name": "agent/x", "data": {}}, "unknown_event"),
    "missing field": (
        {"name": "agent/session.close", "data": {"sessionId": "s"}},
        "invalid_schema",
    ),
    "not a number": ({"name": "agent/session.close", "data": {"x": math.nan}}, "invalid_json"),
    "half a character": ({"name": "agent/session.close", "data": {"x": "\ud800"}}, "invalid_json"),
    "a date": ({"name": "a", "data": {"x": datetime.now(UTC)}}, "invalid_json"),
    "a large number": ({"name": "a", "data": {"x": 2**64}}, "invalid_json"),
    "too large": (
        {"name": "agent/session.close", "data": {"sessionId": "s", "x": "x" * 2**20}},
        "too_large",
    ),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_event_is_refused_before_anything_is_sent(what: str) -> None:
    """No broker is asked, so none is needed; the detail says which event of a list it was."""
    stream = AgentsStream(f"127.0.0.1:{free_port()}")
    envelope, reason = BAD[what]
    with pytest.raises(InvalidEvent) as refused:
        await stream.send_envelope(envelope)
    assert refused.value.reason == reason
    with pytest.raises(InvalidEvent, match="event 1: ") as refused:
        await stream.send_many([message(), envelope, message()])
    assert refused.value.reason == reason
    await stream.close()


async def test_an_event_of_a_whole_mebibyte_is_sent(
    stream: AgentsStream, kafka_settings: Settings
) -> None:
    """What SPEC §2 allows fits through the producer and the topics."""
    frame = len(
        orjson.dumps({"name": "agent/customer.message", "data": message(content="").to_data()})
    )
    data = message(content="x" * (2**20 - frame)).to_data()
    sent = await stream.send_envelope({"name": "agent/customer.message", "data": data})
    [record] = await read(kafka_settings, [sent])
    assert len(record.value) == 2**20


async def test_a_tool_result_goes_bare_to_its_topic(
    stream: AgentsStream, kafka_settings: Settings
) -> None:
    """A team that performs commands itself reports through the same client (SPEC §5)."""
    sent = await stream.send_result(
        ToolResult(
            session_id="s-1",
            command_id="c-1",
            tool="crm.order.create",
            attempt=2,
            status="succeeded",
            outputs={"id": "order-1"},
        )
    )
    [record] = await read(kafka_settings, [sent])
    assert record.topic == f"{kafka_settings.topic_prefix}tool.results"
    assert (record.key, sent.id) == (b"s-1", "c-1")
    assert orjson.loads(record.value) == {
        "sessionId": "s-1",
        "commandId": "c-1",
        "tool": "crm.order.create",
        "attempt": 2,
        "status": "succeeded",
        "outputs": {"id": "order-1"},
    }


async def test_without_a_broker_connecting_fails_in_the_time_allowed() -> None:
    """The error says whom it asked (G11)."""
    where = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    with pytest.raises(BrokerUnreachable, match=where):
        async with AgentsStream(where, timeout_s=1.0):
            raise AssertionError("it must not connect")
    assert time.monotonic() - began < 4.0


async def test_a_missing_topic_is_told(kafka_settings: Settings) -> None:
    """A cluster without our topics is no broken cluster."""
    async with AgentsStream.from_settings(kafka_settings, timeout_s=4.0) as stream:
        with pytest.raises(TerminalError, match="topics apply"):
            await stream.send(message())


async def test_a_broker_that_hangs_delays_and_loses_nothing(tmp_path: Path) -> None:
    """A send fails in the time allowed; the same id sent again gets through later (G11)."""
    settings = Settings(
        bootstrap_servers=f"127.0.0.1:{free_port()}", data_dir=tmp_path, partitions=1
    )
    broker = await asyncio.to_thread(embedded.start, settings)
    try:
        await apply(settings)
        async with AgentsStream.from_settings(settings, timeout_s=2.0) as stream:
            await stream.send(message())
            os.kill(broker.pid, signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(BrokerUnreachable, match="within 2 s"):
                await stream.send(SessionClose(session_id="s", reason="timeout"), id="close-1")
            waited = time.monotonic() - began
            os.kill(broker.pid, signal.SIGCONT)
            again = await _until_sent(stream)
            again_record = (await read(settings, [again]))[0]
        assert waited < 5.0
        assert orjson.loads(again_record.value)["id"] == "close-1"
    finally:
        os.kill(broker.pid, signal.SIGCONT)
        await asyncio.to_thread(embedded.stop, settings)


async def test_closing_does_not_wait_for_a_dead_broker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A program ends when told to, also with something unsent; it was told so (G11)."""
    settings = Settings(
        bootstrap_servers=f"127.0.0.1:{free_port()}", data_dir=tmp_path, partitions=1
    )
    broker = await asyncio.to_thread(embedded.start, settings)
    try:
        await apply(settings)
        stream = AgentsStream.from_settings(settings, timeout_s=2.0)
        await stream.send(message())
        os.kill(broker.pid, signal.SIGKILL)
        with pytest.raises(BrokerUnreachable):
            await stream.send(message())
        began = time.monotonic()
        await stream.close()
        assert time.monotonic() - began < 7.0
        gc.collect()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing goes on trying"
        assert "never retrieved" not in caplog.text
        with pytest.raises(TerminalError, match="closed"):
            await stream.send(message())
    finally:
        await asyncio.to_thread(embedded.stop, settings)


async def _until_sent(stream: AgentsStream) -> Sent:
    for _ in range(10):
        try:
            return await stream.send(SessionClose(session_id="s", reason="timeout"), id="close-1")
        except BrokerUnreachable:
            continue
    raise AssertionError("the broker is back, but nothing gets through")


def test_threads_share_a_client_without_asyncio(kafka_settings: Settings) -> None:
    """Each thread's session keeps its order across topics; closing ends the client's thread."""
    asyncio.run(apply(kafka_settings))
    sent: dict[str, list[Sent]] = {}

    def talk(stream: AgentsStreamSync, session_id: str) -> None:
        sent[session_id] = [
            stream.send(message(session_id, str(n), f"m-{n}"))
            if n % 2
            else stream.send(SessionUpdated(session_id=session_id, mode=f"mode-{n}"))
            for n in range(20)
        ]

    with AgentsStreamSync.from_settings(kafka_settings) as stream:
        threads = [threading.Thread(target=talk, args=(stream, f"s-{n}")) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert [len(stream.send_many([message(), message(message_id="m-2")]))] == [2]
    assert "agents-stream-client" not in {thread.name for thread in threading.enumerate()}
    for one in sent.values():
        assert [event.timestamp for event in one] == sorted({event.timestamp for event in one})
    with pytest.raises(TerminalError, match="closed"):
        stream.send(message())


def test_without_a_broker_the_client_without_asyncio_ends_its_thread() -> None:
    """A failed start leaves nothing running."""
    with pytest.raises(BrokerUnreachable), AgentsStreamSync("127.0.0.1:1", timeout_s=0.5):
        raise AssertionError("it must not connect")
    assert "agents-stream-client" not in {thread.name for thread in threading.enumerate()}
