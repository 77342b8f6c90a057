"""The topic `tool.gateway.memory`: appending to it, and reading spans of it.

What may live here: Kafka. What the records mean is `memory.py`'s.
"""

import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import ConsumerRecord, TopicPartition

from agents_stream.core.errors import BrokerUnreachable
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import GATEWAY_MEMORY, load_topics
from agents_stream.settings import Settings

READ_LIMIT_S: Final = 120.0
_POLL_MS: Final = 500
# One fetch is in flight at a time, and while it waits it holds back the next.
_FETCH_WAIT_MS: Final = 50


@dataclass(frozen=True, slots=True)
class Written:
    """Where a record was appended. `offset` is None where Kafka did not say (a repeated batch)."""

    offset: int | None
    timestamp_ms: int


class MemoryLog:
    """Appends to and reads from the memory topic, with an idempotent producer's every ack."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self._settings = settings
        self._producer = producer
        self._topic = load_topics().name(GATEWAY_MEMORY, settings.topic_prefix)

    async def append(self, partition: int, key: str, value: bytes | None) -> Written:
        """Append one record and wait for its ack.

        Raises:
            KafkaError: it was refused, or the time was over; what was written is not known.

        """
        sent = await self._producer.send(
            self._topic, value=value, key=key.encode(), partition=partition
        )
        acked = await sent
        offset = acked.offset if acked.offset >= 0 else None
        stamp = acked.timestamp if acked.timestamp and acked.timestamp > 0 else wall_ms()
        return Written(offset, stamp)

    async def read(
        self, starts: Mapping[int, int | None], until: Mapping[int, int] | None = None
    ) -> AsyncGenerator[ConsumerRecord, None]:
        """Give the records of some partitions, each in order.

        `starts` is the first offset of each (None: the oldest), `until` the offset at which to
        stop (None: where the partition ends when asked).

        Raises:
            BrokerUnreachable: the end was not reached within READ_LIMIT_S.

        """
        consumer = AIOKafkaConsumer(
            **client_options(self._settings),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_FETCH_WAIT_MS,
        )
        by_tp = {TopicPartition(self._topic, number): number for number in starts}
        deadline = time.monotonic() + READ_LIMIT_S
        await consumer.start()
        try:
            ends = await self._ends(consumer, by_tp, until)
            begins = await consumer.beginning_offsets(list(by_tp))
            consumer.assign(list(by_tp))
            for tp, number in by_tp.items():
                consumer.seek(tp, max(starts[number] or 0, begins[tp]))
            unfinished = set(by_tp)
            while unfinished := {
                tp for tp in unfinished if await consumer.position(tp) < ends[by_tp[tp]]
            }:
                if time.monotonic() > deadline:
                    raise BrokerUnreachable(
                        f"{self._topic} could not be read to its end within {READ_LIMIT_S:g} s"
                    )
                batches = await consumer.getmany(*unfinished, timeout_ms=_POLL_MS)
                for tp, records in batches.items():
                    for record in records:
                        if record.offset < ends[by_tp[tp]]:
                            yield record
        finally:
            await consumer.stop()

    async def _ends(
        self,
        consumer: AIOKafkaConsumer,
        by_tp: Mapping[TopicPartition, int],
        until: Mapping[int, int] | None,
    ) -> Mapping[int, int]:
        if until is not None:
            return until
        ends = await consumer.end_offsets(list(by_tp))
        return {by_tp[tp]: offset for tp, offset in ends.items()}


def wall_ms() -> int:
    """The time of this machine's clock, in milliseconds since the epoch."""
    return round(time.time() * 1000)
