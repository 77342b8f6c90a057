"""Appending to Kafka with every ack awaited, one batch in flight per partition.

Faust's own producer hands out no futures for table writes and swallows failed deliveries (H1, H2),
so our stages write through this. The producer is idempotent; any error is raised to the caller,
who ends the process: a broker that does not know a fresh producer id accepts a gap, and what was
refused would later look like a duplicate.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.structs import RecordMetadata

from agents_stream.kafka.clock import BrokerClock
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.fail_stop import Watchdog
from agents_stream.kafka.fetch_guard import GroundChanged
from agents_stream.settings import Settings

MAX_BATCH_BYTES: Final = 1024 * 1024
MAX_REQUEST_BYTES: Final = 40 * 1024 * 1024
REQUEST_TIMEOUT_MS: Final = 30_000

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Line:
    """One record to append. `timestamp_ms` only where the topic is CreateTime."""

    key: bytes | None
    value: bytes | None
    headers: Headers = field(default=())
    timestamp_ms: int | None = None


@dataclass(slots=True)
class Pending:
    """What is to be appended, by topic and partition, in order."""

    lines: dict[tuple[str, int], list[Line]] = field(default_factory=lambda: defaultdict(list))

    def add(self, topic: str, partition: int, line: Line) -> None:
        """Put a line behind those that its partition already has."""
        self.lines[topic, partition].append(line)


class Appender:
    """An idempotent producer whose every append is awaited. One belongs to one stage."""

    def __init__(
        self, settings: Settings, clock: BrokerClock, watchdog: Watchdog | None = None
    ) -> None:
        """With a watchdog every append is watched until its ack; else its caller does that."""
        self._clock = clock
        self._nexts: dict[tuple[str, int], int] = {}
        self._watchdog = watchdog
        self._producer = AIOKafkaProducer(
            **client_options(settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=MAX_REQUEST_BYTES,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            metadata_max_age_ms=60_000,
        )

    async def start(self) -> None:
        """Connect."""
        await self._producer.start()

    async def stop(self) -> None:
        """Flush and disconnect."""
        await self._producer.stop()

    async def append(self, pending: Pending) -> dict[tuple[str, int], int]:
        """Append everything and wait until Kafka has acknowledged all of it.

        Returns:
            The offset after the last line, by topic and partition; -1 where Kafka did not say.

        Raises:
            KafkaError: something was refused or timed out; what was written is not known.
            GroundChanged: what was acknowledged earlier is gone.

        """
        nexts = await asyncio.gather(
            *(
                self._append_all(topic, partition, lines)
                for (topic, partition), lines in pending.lines.items()
            )
        )
        return dict(zip(pending.lines, nexts, strict=True))

    async def _append_all(self, topic: str, partition: int, lines: Sequence[Line]) -> int:
        """One partition's lines, batch by batch, the next only after the last one's ack."""
        batch = self._producer.create_batch()
        for line in lines:
            if not _put(batch, line):
                await self._send(batch, topic, partition)
                batch = self._producer.create_batch()
                if not _put(batch, line):
                    raise AssertionError("a fresh batch takes any record")
        return await self._send(batch, topic, partition)

    async def _send(self, batch: Any, topic: str, partition: int) -> int:
        count: int = batch.record_count()
        with self._watched(f"{topic}/{partition}"):
            acked = await self._producer.send_batch(batch, topic, partition=partition)
            metadata: RecordMetadata = await acked
        if metadata.timestamp_type == 1 and metadata.timestamp is not None:
            self._clock.observe(metadata.timestamp)
        if metadata.offset < 0:
            return -1
        self._require_progress(topic, partition, metadata.offset)
        after: int = metadata.offset + count
        self._nexts[topic, partition] = after
        return after

    def _require_progress(self, topic: str, partition: int, offset: int) -> None:
        """What was acknowledged stays below what is appended later, or it is gone."""
        before = self._nexts.get((topic, partition), 0)
        if offset < before:
            raise GroundChanged(
                f"{topic}/{partition} went back from offset {before} to {offset} while we wrote it:"
                " it was made anew, or a broker lost its tail. What Kafka had acknowledged is gone;"
                " a restart finds out what and makes it again"
            )

    def _watched(self, place: str) -> AbstractContextManager[object]:
        if self._watchdog is None:
            return nullcontext()
        return self._watchdog.span(place, "has not acknowledged an append")


def _put(batch: Any, line: Line) -> bool:
    return (
        batch.append(
            key=line.key,
            value=line.value,
            timestamp=line.timestamp_ms,
            headers=list(line.headers),
        )
        is not None
    )
