"""The log as it grows: what `up` shows and what the demo counts, read like `tail -f`.

A consumer without a group: it changes nothing, and a broker that comes back finds it waiting at
the offset where it was.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from agents_stream.core.errors import RetryableError
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import JOURNAL, load_topics
from agents_stream.settings import Settings

log = structlog.get_logger()

POLL_MS: Final = 200
FETCH_WAIT_MS: Final = 500
RETRY_S: Final = 1.0
COORDINATOR_LIMIT_S: Final = 10.0
COORDINATOR_PAUSE_S: Final = 0.1
MAX_POLLED: Final = 1_000

Starts = Mapping[tuple[str, int], int]
"""(topic without prefix, partition) to the offset at which to start."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A record of the log. `topic` is without prefix, `timestamp` the broker's, in ms."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: str
    value: bytes | None


async def follow(
    settings: Settings, names: Iterable[str], starts: Starts | None = None
) -> AsyncGenerator[list[Seen], None]:
    """Give what comes on the topics `names`, for ever; an empty list when nothing came for a while.

    A partition that `starts` does not name is read from its present end. While Kafka cannot be
    reached this yields empty lists.
    """
    given = starts or {}
    positions: dict[TopicPartition, int] = {}
    full = {settings.topic_prefix + name: name for name in names}
    tps = [TopicPartition(topic, n) for topic in full for n in range(settings.partitions)]
    while True:
        consumer = AIOKafkaConsumer(
            **client_options(settings),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=FETCH_WAIT_MS,
        )
        try:
            await consumer.start()
            if not positions:
                ends = await consumer.end_offsets(tps)
                positions = {tp: given.get((full[tp.topic], tp.partition), ends[tp]) for tp in tps}
            consumer.assign(tps)
            for tp, offset in positions.items():
                consumer.seek(tp, offset)
            while True:
                fetched = await consumer.getmany(timeout_ms=POLL_MS, max_records=MAX_POLLED)
                for tp, records in fetched.items():
                    positions[tp] = records[-1].offset + 1
                yield [
                    _seen(full[tp.topic], record)
                    for tp, records in fetched.items()
                    for record in records
                ]
        except KafkaError as error:
            log.debug("tail interrupted", error=repr(error))
        finally:
            await consumer.stop()
        yield []
        await asyncio.sleep(RETRY_S)


async def wake_coordinator(settings: Settings) -> None:
    """Have a new broker make its topic of offsets now, before a group's first member asks for it.

    No error if that does not come about: the members ask again themselves.
    """
    try:
        async with asyncio.timeout(COORDINATOR_LIMIT_S):
            while True:
                try:
                    await committed_offsets(settings, settings.group_id, JOURNAL)
                except RetryableError:
                    await asyncio.sleep(COORDINATOR_PAUSE_S)
                else:
                    return
    except TimeoutError:
        log.debug("no coordinator yet")


async def committed_offsets(settings: Settings, group: str, name: str) -> dict[int, int]:
    """Give the offsets that a group has committed on the topic `name`, by partition.

    Raises:
        RetryableError: Kafka cannot be asked just now.

    """
    topic = load_topics().name(name, settings.topic_prefix)
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        found = await admin.list_consumer_group_offsets(group)
    except KafkaError as error:
        raise RetryableError(f"Kafka cannot be asked just now: {error!r}") from error
    finally:
        await admin.close()
    return {tp.partition: at.offset for tp, at in found.items() if tp.topic == topic}


def _seen(topic: str, record: Any) -> Seen:
    key = (record.key or b"").decode("utf-8", "replace")
    return Seen(topic, record.partition, record.offset, record.timestamp, key, record.value)
