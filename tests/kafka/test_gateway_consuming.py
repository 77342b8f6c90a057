"""Consuming in a group, with a handler that can be held up."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import ConsumerRecord, TopicPartition

from agents_stream.kafka import topic_admin
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import CRM_ORDER_CREATE, WHATSAPP_MESSAGE_SEND
from agents_stream.settings import Settings
from agents_stream.stages.gateway.consuming import (
    MAX_IN_HAND,
    MAX_POLLED,
    Job,
    OrderedConsumer,
    Turn,
)

TOPICS = (WHATSAPP_MESSAGE_SEND, CRM_ORDER_CREATE)


class Notes:
    """A handler that notes what it did; jobs of the lane `held` wait for `open_gate`."""

    def __init__(self, settings: Settings) -> None:
        self.group = f"{settings.topic_prefix}notes"
        self.topics = tuple(settings.topic_prefix + name for name in TOPICS)
        self.done: list[tuple[str, int]] = []
        self.opened: list[set[int]] = []
        self.open_gate = asyncio.Event()
        self.fails_at: int | None = None

    async def open(self, numbers: set[int]) -> None:
        """Note it."""
        self.opened.append(numbers)

    async def begin(self, numbers: set[int]) -> None:
        """Nothing to write."""

    def job_for(self, record: ConsumerRecord) -> Job:
        """Note the record in its key's lane."""
        lane = record.key.decode()

        async def note(turn: Turn) -> None:
            if lane == "held":
                await self.open_gate.wait()
            await turn.claim()
            if record.offset == self.fails_at:
                raise ValueError("this job fails")
            self.done.append((lane, record.offset))

        return Job(lane, note)


@pytest.fixture
async def producer(kafka_settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """Give a producer, and the topics."""
    await topic_admin.apply(kafka_settings)
    one = AIOKafkaProducer(**client_options(kafka_settings), acks="all")
    await one.start()
    yield one
    await one.stop()


@asynccontextmanager
async def consuming(settings: Settings, notes: Notes) -> AsyncIterator[OrderedConsumer]:
    """Run a member of the group while the block lasts."""
    ordered, stop = OrderedConsumer(settings, notes, 5.0), asyncio.Event()
    await ordered.start()
    running = asyncio.create_task(ordered.run(stop))
    try:
        yield ordered
    finally:
        stop.set()
        await running


async def until(met: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait until a condition is met."""
    async with asyncio.timeout(within_s):
        while not met():  # noqa: ASYNC110 - whatever the condition is
            await asyncio.sleep(0.01)


async def committed(settings: Settings, notes: Notes, number: int) -> int | None:
    """Give the group's offset in the first topic."""
    consumer = AIOKafkaConsumer(**client_options(settings), group_id=notes.group)
    await consumer.start()
    try:
        offset: int | None = await consumer.committed(TopicPartition(notes.topics[0], number))
        return offset
    finally:
        await consumer.stop()


async def test_one_stuck_session_holds_back_no_partition_but_its_own(
    kafka_settings: Settings, producer: AIOKafkaProducer
) -> None:
    """Work in hand is bounded, and when the session goes on so does everything behind it."""
    notes = Notes(kafka_settings)
    async with consuming(kafka_settings, notes) as ordered:
        await producer.send_and_wait(notes.topics[0], b"", key=b"held", partition=0)
        for number in range(1_500):
            await producer.send(notes.topics[0], b"", key=b"%d" % (number % 7), partition=0)
        await producer.flush()
        for _ in range(20):
            await producer.send_and_wait(notes.topics[1], b"", key=b"other", partition=1)
        await until(lambda: sum(lane == "other" for lane, _ in notes.done) == 20)
        await until(lambda: len(notes.done) >= MAX_IN_HAND)
        await asyncio.sleep(1)
        assert len(notes.done) < MAX_IN_HAND + MAX_POLLED + 20
        assert max(held.in_hand for held in ordered._held.values()) <= MAX_IN_HAND + MAX_POLLED
        assert await committed(kafka_settings, notes, 0) == 0
        notes.open_gate.set()
        await until(lambda: len(notes.done) == 1_521)
    by_lane: dict[str, list[int]] = {}
    for lane, offset in notes.done:
        by_lane.setdefault(lane, []).append(offset)
    assert all(offsets == sorted(offsets) for offsets in by_lane.values())
    assert await committed(kafka_settings, notes, 0) == 1_501


async def test_a_job_that_raises_ends_the_consumer_and_is_not_committed(
    kafka_settings: Settings, producer: AIOKafkaProducer
) -> None:
    """What was not done comes again: nothing is logged and dropped (G1, G11)."""
    notes = Notes(kafka_settings)
    notes.fails_at = 2
    for _ in range(4):
        await producer.send_and_wait(notes.topics[0], b"", key=b"s", partition=0)
    ordered = OrderedConsumer(kafka_settings, notes, 5.0)
    await ordered.start()
    with pytest.raises(ValueError, match="this job fails"):
        await asyncio.wait_for(ordered.run(asyncio.Event()), 20)
    assert await committed(kafka_settings, notes, 0) == 2


async def test_a_failure_is_told_also_when_leaving_the_group_is_cancelled(
    kafka_settings: Settings, producer: AIOKafkaProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G11: aiokafka, closing, may cancel its own fetch under us; the reason of our end is kept.

    Seen in chaos: a gateway that Kafka had failed ended with exit code 0, as if asked to.
    """
    notes = Notes(kafka_settings)
    notes.fails_at = 0
    await producer.send_and_wait(notes.topics[0], b"", key=b"s", partition=0)
    ordered = OrderedConsumer(kafka_settings, notes, 5.0)
    await ordered.start()
    stop = ordered.consumer.stop

    async def stopped_by_a_cancelled_fetch() -> None:
        await stop()
        raise asyncio.CancelledError

    monkeypatch.setattr(ordered.consumer, "stop", stopped_by_a_cancelled_fetch)
    with pytest.raises(ValueError, match="this job fails"):
        await asyncio.wait_for(ordered.run(asyncio.Event()), 20)


async def test_members_get_the_same_partitions_of_every_topic(
    kafka_settings: Settings, producer: AIOKafkaProducer
) -> None:
    """A session's commands to both tools are one member's, so that they keep their order."""
    first, second = Notes(kafka_settings), Notes(kafka_settings)
    async with (
        consuming(kafka_settings, first) as one,
        consuming(kafka_settings, second) as two,
    ):
        await until(lambda: first.opened and second.opened and len(first.opened[-1]) == 2)
        for member in (one, two):
            tps = member.consumer.assignment()
            by_topic = [{tp.partition for tp in tps if tp.topic == name} for name in first.topics]
            assert by_topic[0] == by_topic[1]
        assert first.opened[-1] | second.opened[-1] == {0, 1, 2, 3}
