"""The verifier's own reader: every committed record of every topic, from the first to the end."""

import asyncio

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from tests.chaos.history import CHANGELOG, TOPICS, Line

POLL_MS = 300


class LogReader:
    """Reads on from where it was at each `catch_up`; what it has read it never forgets."""

    def __init__(self, bootstrap: str, partitions: int) -> None:
        self._bootstrap = bootstrap
        self._next = {TopicPartition(t, n): 0 for t in TOPICS for n in range(partitions)}
        self.lines: dict[str, list[Line]] = {topic: [] for topic in TOPICS}

    async def catch_up(self) -> int:
        """Read everything up to the present ends; how many records were new."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=POLL_MS,
            request_timeout_ms=10_000,
        )
        await consumer.start()
        try:
            return await self._read(consumer)
        finally:
            # Apart: aiokafka, closing, may cancel what it awaits, and so whoever stops it.
            await asyncio.wait({asyncio.ensure_future(consumer.stop())})

    async def _read(self, consumer: AIOKafkaConsumer) -> int:
        ends = await consumer.end_offsets(list(self._next))
        left = {tp: end for tp, end in ends.items() if self._next[tp] < end}
        if not left:
            return 0
        consumer.assign(list(left))
        for tp in left:
            # A compacted topic may have lost its head; its own first offset will do.
            first = (await consumer.beginning_offsets([tp]))[tp] if tp.topic == CHANGELOG else 0
            consumer.seek(tp, max(self._next[tp], first))
        count = 0
        while left:
            for tp, records in (await consumer.getmany(timeout_ms=POLL_MS)).items():
                for record in records:
                    place = (tp.topic, tp.partition, record.offset)
                    line = Line(*place, record.timestamp, record.key, record.value)
                    self.lines[tp.topic].append(line)
                    count += 1
            for tp in left:
                self._next[tp] = await consumer.position(tp)
            left = {tp: end for tp, end in left.items() if self._next[tp] < end}
            consumer.pause(*(tp for tp in consumer.assignment() if tp not in left))
        return count
