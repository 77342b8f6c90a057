"""Every append is awaited, and what Kafka refuses is raised (H1, H2)."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.errors import InvalidTimestampError, MessageSizeTooLargeError

from agents_stream.kafka import ranges, topic_admin
from agents_stream.kafka import topics as names
from agents_stream.kafka.appender import Appender, Line, Pending
from agents_stream.kafka.clock import BrokerClock
from agents_stream.kafka.fetch_guard import GroundChanged
from agents_stream.settings import Settings


@asynccontextmanager
async def appending(settings: Settings) -> AsyncIterator[tuple[Appender, BrokerClock]]:
    """An appender on made topics."""
    await topic_admin.apply(settings)
    clock = BrokerClock()
    appender = Appender(settings, clock)
    await appender.start()
    try:
        yield appender, clock
    finally:
        await appender.stop()


def full(settings: Settings, name: str) -> str:
    """The full name of a topic."""
    return names.load_topics().name(name, settings.topic_prefix)


async def read(settings: Settings, topic: str, partition: int = 0) -> list[Any]:
    """All records of a partition."""
    place = (topic, partition)
    async with ranges.reader(settings) as client:
        span = (await ranges.bounds(client, [place]))[place]
        return [record async for record in ranges.read(client, {place: span})]


async def test_what_does_not_fit_one_batch_arrives_whole_and_in_order(
    kafka_settings: Settings,
) -> None:
    """Batch by batch, each partition in its order; the answer says where each of them ends."""
    journal = full(kafka_settings, names.JOURNAL)
    async with appending(kafka_settings) as (appender, _):
        pending = Pending()
        for number in range(40):
            pending.add(journal, 0, Line(b"k", b"%d:" % number + b"x" * 100_000))
        pending.add(journal, 0, Line(b"large", b"y" * 3_000_000, (("id", b"7"),)))
        pending.add(journal, 1, Line(None, b"other"))
        nexts = await appender.append(pending)
    assert nexts == {(journal, 0): 41, (journal, 1): 1}
    found = await read(kafka_settings, journal)
    assert [record.value.split(b":")[0] for record in found[:40]] == [
        b"%d" % number for number in range(40)
    ]
    assert (found[40].key, len(found[40].value)) == (b"large", 3_000_000)
    assert found[40].headers == (("id", b"7"),)


async def test_a_stamp_too_old_is_refused_and_raised(kafka_settings: Settings) -> None:
    """G9, H2: the broker refuses a worker that has been out for long, and the caller hears it."""
    changelog = full(kafka_settings, names.SESSIONS_CHANGELOG)
    async with appending(kafka_settings) as (appender, _):
        now_ms = int(time.time() * 1_000)
        for stamp, refused in ((now_ms - 500, False), (now_ms - 60_000, True)):
            pending = Pending()
            pending.add(changelog, 0, Line(b"k", b"%d" % stamp, (), stamp))
            if refused:
                with pytest.raises(InvalidTimestampError):
                    await appender.append(pending)
            else:
                await appender.append(pending)
    [record] = await read(kafka_settings, changelog)
    assert record.timestamp == now_ms - 500


async def test_one_partition_that_refuses_fails_the_whole_append(kafka_settings: Settings) -> None:
    """H2: no caller goes on because most of it arrived."""
    dead = full(kafka_settings, names.DEAD_LETTERS)
    async with appending(kafka_settings) as (appender, _):
        pending = Pending()
        pending.add(dead, 0, Line(b"k", b"small"))
        pending.add(dead, 1, Line(b"k", b"x" * 5_000_000))
        with pytest.raises(MessageSizeTooLargeError):
            await appender.append(pending)


async def test_the_acks_of_the_brokers_own_time_move_the_clock(kafka_settings: Settings) -> None:
    """Where the broker stamps, its ack tells its time; a worker's own stamp tells nothing."""
    async with appending(kafka_settings) as (appender, clock):
        pending = Pending()
        stamp = int(time.time() * 1_000) + 100
        line = Line(b"k", b"v", (), stamp)
        pending.add(full(kafka_settings, names.SESSIONS_CHANGELOG), 0, line)
        await appender.append(pending)
        assert not clock.known
        pending = Pending()
        pending.add(full(kafka_settings, names.CLOCK), 0, Line(None, b"{}"))
        await appender.append(pending)
        assert 0 <= time.time() * 1_000 - clock.now_ms() < 1_000


async def test_the_next_batch_waits_for_the_ack_of_the_last() -> None:
    """DESIGN §2: one unacknowledged batch a partition; a broker may accept a gap otherwise."""
    appender = Appender.__new__(Appender)
    appender._clock, appender._nexts, appender._watchdog = BrokerClock(), {}, None
    producer = SlowProducer()
    appender._producer = producer
    pending = Pending()
    for number in range(5):
        pending.add("t", 0, Line(b"k", b"%d" % number))
    assert await appender.append(pending) == {("t", 0): -1}
    assert producer.most_in_flight == 1
    assert producer.sent == 5


async def test_an_ack_that_goes_back_is_an_error() -> None:
    """G1: what was acknowledged before is gone, and whoever wrote it must not go on."""
    appender = Appender.__new__(Appender)
    appender._clock, appender._nexts, appender._watchdog = BrokerClock(), {}, None
    producer = SlowProducer()
    appender._producer = producer
    pending = Pending()
    pending.add("t", 0, Line(b"k", b"v"))
    for producer.offset in (4, 5, -1, 6):
        await appender.append(pending)
    producer.offset = 6
    with pytest.raises(GroundChanged, match="went back from offset 7 to 6"):
        await appender.append(pending)


class SlowProducer:
    """A producer whose batches hold one record, and whose acks come later, as duplicates."""

    def __init__(self) -> None:
        self.in_flight = self.most_in_flight = self.sent = 0
        self.offset = -1

    def create_batch(self) -> Any:
        """A batch for one record."""
        return OneRecord()

    async def send_batch(self, batch: Any, _topic: str, *, partition: int) -> Any:
        """Count what is under way."""
        assert (batch.record_count(), partition) == (1, 0)
        self.in_flight += 1
        self.sent += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return asyncio.create_task(self._ack())

    async def _ack(self) -> Any:
        await asyncio.sleep(0.001)
        self.in_flight -= 1
        return type("Ack", (), {"timestamp_type": 1, "timestamp": -1, "offset": self.offset})


class OneRecord:
    """A batch that takes one record."""

    def __init__(self) -> None:
        self.count = 0

    def append(self, **_: Any) -> Any:
        """Take the first, refuse the second."""
        if self.count:
            return None
        self.count = 1
        return object()

    def record_count(self) -> int:
        """How many it has."""
        return self.count
