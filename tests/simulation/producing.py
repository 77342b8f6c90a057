"""aiokafka's producer, played over the simulated brokers."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata, TopicPartition

from agents_stream.kafka.topics import partition_for
from tests.simulation.brokers import Acked, Draft
from tests.simulation.loop import current

if TYPE_CHECKING:
    from tests.simulation.world import World

Queued = tuple[list[Draft], "asyncio.Future[RecordMetadata]"]


class Batch:
    """What `create_batch` gives: records up to a limit of bytes and of records."""

    def __init__(self, max_bytes: int, max_records: int) -> None:
        self.drafts: list[Draft] = []
        self._left = max_bytes
        self._max_records = max_records

    def append(
        self,
        *,
        key: bytes | None,
        value: bytes | None,
        timestamp: int | None,
        headers: Sequence[tuple[str, bytes]],
    ) -> object | None:
        """Take a record, or None where the batch is full; the first always fits."""
        size = len(key or b"") + len(value or b"") + 70
        full = size > self._left or len(self.drafts) >= self._max_records
        if self.drafts and full:
            return None
        self._left -= size
        self.drafts.append(Draft(key, value, tuple(headers), timestamp))
        return self

    def record_count(self) -> int:
        """How many there are."""
        return len(self.drafts)


class SimProducer:
    """An idempotent producer: per partition one batch after the other, each until it is acked."""

    def __init__(self, world: "World", **options: Any) -> None:
        process = current()
        assert process is not None
        self.world, self.process = world, process
        self._max_bytes = int(options.get("max_batch_size", 16_384))
        self._pid = world.new_producer_id() if options.get("enable_idempotence") else None
        self._sequences: dict[tuple[str, int], int] = {}
        self._queues: dict[tuple[str, int], deque[Queued]] = {}

    async def start(self) -> None:
        """Connect."""
        await self.world.network.ask(self.process, "connect", lambda: None)

    async def stop(self) -> None:
        """Flush."""
        while self.process.alive and any(self._queues.values()):  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.05)

    def create_batch(self) -> Batch:
        """Begin a batch."""
        return Batch(self._max_bytes, self.world.plan.shape.batch_records)

    async def send_batch(
        self, batch: Batch, topic: str, *, partition: int
    ) -> "asyncio.Future[RecordMetadata]":
        """Queue a batch; the future is its ack."""
        return self._enqueue(topic, partition, batch.drafts)

    async def send(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> "asyncio.Future[RecordMetadata]":
        """Queue a record; the future is its ack."""
        if partition is None:
            partition = partition_for(key or b"", self.world.plan.shape.partitions)
        return self._enqueue(topic, partition, [Draft(key, value, headers)])

    async def send_and_wait(self, topic: str, **record: Any) -> RecordMetadata:
        """Send a record and wait for its ack."""
        return await (await self.send(topic, **record))

    def _enqueue(
        self, topic: str, partition: int, drafts: list[Draft]
    ) -> "asyncio.Future[RecordMetadata]":
        self.process.check()
        acked: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        place = (topic, partition)
        queue = self._queues.setdefault(place, deque())
        queue.append((drafts, acked))
        if len(queue) == 1:
            asyncio.get_running_loop().create_task(self._drain(place, queue))
        return acked

    async def _drain(self, place: tuple[str, int], queue: deque[Queued]) -> None:
        log = self.world.cluster.logs[place]
        while queue:
            drafts, waiting = queue[0]
            sequence = self._sequences.get(place, 0)
            producer = None if self._pid is None else (self._pid, sequence)
            landed: list[Acked] = []

            def act(
                drafts: list[Draft] = drafts,
                producer: tuple[int, int] | None = producer,
                landed: list[Acked] = landed,
            ) -> Acked:
                landed.append(log.append(drafts, self.process.name, producer))
                return landed[-1]

            try:
                acked = await self.world.network.ask(self.process, f"produce {place[0]}", act)
            except KafkaError as error:
                if not waiting.done():
                    waiting.set_exception(error)
                    waiting.exception()  # whoever waits sees it; nobody has to
            else:
                if not waiting.done():
                    waiting.set_result(_metadata(place, acked, log.appended_by_time))
            if landed:
                self._sequences[place] = sequence + len(drafts)
            queue.popleft()


def _metadata(place: tuple[str, int], acked: Acked, by_time: bool) -> RecordMetadata:  # noqa: FBT001
    told = by_time and acked.timestamp >= 0
    stamp = acked.timestamp if told else None
    tp = TopicPartition(*place)
    return RecordMetadata(*place, tp, acked.offset, stamp, int(told), 0)
