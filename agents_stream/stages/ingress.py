"""ingress: all inputs, merged by time, into the journal (DESIGN §2).

Per partition, in rounds: ask the brokers where every input topic ends; take everything below; sort
by (record timestamp, topic order, offset); append to the journal; wait for the acks; only then
acknowledge the sources. What cannot be accepted goes to the dead letters in the same round. So an
answer that Kafka had acknowledged before a deadline's record comes before it (G5), in normal
running and after any outage, because deadlines are an input like the others.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson
import structlog
from aiokafka.structs import ConsumerRecord

from agents_stream.core.envelope import AcceptedEvent, read_deadline, read_event, read_result
from agents_stream.core.errors import InvalidEvent, TerminalError
from agents_stream.core.journal import Durations, Entry, EntryKind, Source, encode_entry
from agents_stream.core.merge import PartitionMerge
from agents_stream.core.strict_json import MAX_VALUE_BYTES
from agents_stream.kafka import metrics
from agents_stream.kafka.appender import Appender, Line, Pending
from agents_stream.kafka.consumer import Batch
from agents_stream.kafka.decompression import MAX_UNPACKED_BYTES
from agents_stream.kafka.engine import Engine
from agents_stream.kafka.offsets import EndOffsets
from agents_stream.kafka.stage import BatchStage
from agents_stream.kafka.topics import (
    DEAD_LETTERS,
    DEADLINES,
    JOURNAL,
    TOOL_RESULTS,
    load_topics,
    partition_for,
)
from agents_stream.kafka.unpacking import Cut
from agents_stream.settings import Settings
from agents_stream.stages.dead_letters import letter_key, letter_of

log = structlog.get_logger()

MAX_LINES: Final = 1_000
MAX_PIECE_BYTES: Final = 8 * 1024 * 1024


_BY_BROKER: Final = 1  # Kafka's timestamp type LogAppendTime
_UNSTAMPED: Final = (
    "the record has its producer's time, not a broker's: the topic was not LogAppendTime when it "
    "came. `agents-stream topics check` names what differs"
)


@dataclass(frozen=True, slots=True)
class _Unstamped:
    """A record whose time is its producer's word. It is no event, and must hold up none.

    Only a topic whose settings were changed has such records. In its place they would wait for
    the year that the producer wrote, and everything behind them too.
    """

    record: ConsumerRecord
    offset: int
    timestamp: int = -1


_Taken: TypeAlias = ConsumerRecord | _Unstamped


@dataclass(frozen=True, slots=True)
class _Round:
    """A question and its answer: where each topic ended, and the time when it was asked."""

    ends: tuple[int, ...]
    before_ms: int | None


class Ingress(BatchStage):
    """The one stream over all inputs."""

    name = "ingress"

    def __init__(self, engine: Engine, app: Any) -> None:
        super().__init__(engine, app)
        settings = engine.settings
        self.appender = Appender(settings, engine.clock, engine.watchdog)
        self.end_offsets = EndOffsets(settings)
        self.inputs = tuple(engine.topic(spec.name) for spec in load_topics().inputs)
        self._ranks = {topic: rank for rank, topic in enumerate(self.inputs)}
        self._read = Reader(settings)
        self._merges: dict[int, PartitionMerge[_Taken]] = {}
        self._ends: dict[int, _Round] = {}
        self._buried: Counter[tuple[str, str]] = Counter()
        engine.revoke_hooks.append(self.forget)

    async def start(self) -> None:
        """Connect."""
        await self.appender.start()
        await self.end_offsets.start(self.inputs)

    async def stop(self) -> None:
        """Disconnect."""
        await self.appender.stop()
        await self.end_offsets.stop()

    def forget(self) -> None:
        """The partitions are gone: whoever owns them reads again what was not acknowledged."""
        self._merges.clear()
        self._ends.clear()

    async def work(self, batches: Sequence[Batch]) -> None:
        """Take batches in; do as many rounds as what is in hand allows."""
        for batch in batches:
            self._accept(batch)
        touched = {batch.partition for batch in batches}
        while touched:
            touched = await self._round(touched)

    def _accept(self, batch: Batch) -> None:
        merge = self._merges.get(batch.partition)
        if merge is None:
            # Zero is before every position: a topic not heard of yet holds the round back.
            merge = self._merges[batch.partition] = PartitionMerge([0] * len(self.inputs))
        rank = self._ranks[batch.topic]
        if batch.position < merge.positions[rank]:
            raise TerminalError(
                f"{batch.topic}/{batch.partition} went back from offset {merge.positions[rank]} to "
                f"{batch.position}: it was made anew, or the broker lost its tail. A restart reads "
                "it from its beginning; what was applied before is not applied twice"
            )
        merge.accept(rank, [_placed(record) for record in batch.records], batch.position)

    async def _round(self, partitions: set[int]) -> set[int]:
        """One round for some partitions; those that may have more to take at once."""
        waiting = {number for number in partitions if self._merges[number].pending}
        await self._ask_ends({number for number in waiting if number not in self._ends})
        taken: dict[int, list[tuple[int, _Taken]]] = {}
        for number in waiting:
            merge, asked = self._merges[number], self._ends[number]
            taken[number] = merge.take(asked.ends, asked.before_ms)
            if not merge.must_read(asked.ends):
                del self._ends[number]
        if not await self._append(taken):
            return set()  # nothing of it is acknowledged: the next owner appends it again
        for number in partitions:
            self._acknowledge(number)
        # What is still in hand came after the ends of the round: it has a round of its own.
        return {
            number
            for number in waiting
            if number not in self._ends and self._merges[number].pending
        }

    async def _ask_ends(self, partitions: set[int]) -> None:
        """Everything that the brokers have acknowledged by now belongs to the round."""
        if not partitions:
            return
        # A lower bound of the brokers' time now: what is stamped earlier was there when the first
        # end was read, in every topic. What is not waits a millisecond for the next round.
        clock = self.engine.clock
        before_ms = clock.now_ms() if clock.known else None
        wanted = [(topic, number) for number in partitions for topic in self.inputs]
        ends = await self.end_offsets.ask(wanted)
        for number in partitions:
            mine = tuple(ends[topic, number] for topic in self.inputs)
            self._ends[number] = _Round(mine, before_ms)

    async def _append(self, taken: Mapping[int, Sequence[tuple[int, _Taken]]]) -> bool:
        """Append what a round took, piece by piece; False where a rebalance cuts it short."""
        pending, count, size = Pending(), 0, 0
        for records in taken.values():
            for _, record in records:
                size += self._add(pending, record)
                count += 1
                if count >= MAX_LINES or size >= MAX_PIECE_BYTES:
                    await self._append_piece(pending)
                    pending, count, size = Pending(), 0, 0
                    if not self.consumer.flow_active:
                        return False
        if pending.lines:
            await self._append_piece(pending)
        return True

    async def _append_piece(self, pending: Pending) -> None:
        await self.appender.append(pending)
        self.moved()
        # A line each would let whoever sends rubbish fill the disk with our log.
        for (reason, topic), count in self._buried.items():
            log.warning("dead letter", reason=reason, topic=topic, count=count)
        self._buried.clear()

    def _add(self, pending: Pending, taken: _Taken) -> int:
        """Put what a record becomes behind the rest: a journal entry or a dead letter. Its size."""
        if isinstance(taken, _Unstamped):
            return self._bury(pending, taken.record, "invalid_timestamp", _UNSTAMPED)
        try:
            entry = self._read(taken)
        except InvalidEvent as error:
            return self._bury(pending, taken, error.reason, error.detail)
        key = entry.session_id.encode()
        place = partition_for(key, self.engine.settings.partitions)
        line = Line(key, encode_entry(entry))
        pending.add(self.engine.topic(JOURNAL), place, line)
        metrics.INPUTS.labels(name=entry.name).inc()
        return len(line.value or b"")

    def _bury(self, pending: Pending, record: ConsumerRecord, reason: str, detail: str) -> int:
        letter = letter_of(record, reason, detail)
        metrics.DEAD_LETTERS.labels(reason=reason).inc()
        self._buried[reason, record.topic] += 1
        # By the key as it is kept: to hash a giant one takes longer than the group waits for us.
        key = letter_key(record.key)
        count = self.engine.settings.partitions
        place = partition_for(key, count) if key else record.partition
        line = Line(key, orjson.dumps(letter), _id_header(letter["id"]))
        pending.add(self.engine.topic(DEAD_LETTERS), place, line)
        return len(line.value or b"")

    def _acknowledge(self, number: int) -> None:
        """Say how far each source is done: up to the first record that is still in hand."""
        for topic, offset in zip(self.inputs, self._merges[number].done_offsets, strict=True):
            self.consumer.done(topic, number, offset)


class Reader:
    """Turns a record of an input topic into the journal entry that it becomes."""

    def __init__(self, settings: Settings) -> None:
        prefix = settings.topic_prefix
        topics = load_topics()
        self._events = {prefix + spec.name: spec.event for spec in topics.inputs}
        self._results = prefix + TOOL_RESULTS
        self._deadlines = prefix + DEADLINES
        self._durations = Durations(
            data_reply_ms=settings.data_reply_timeout,
            promos_delay_ms=settings.promos_delay,
            promos_reply_ms=settings.promos_reply_timeout,
            retry_backoff_ms=settings.retry_backoff,
        )

    def __call__(self, record: ConsumerRecord) -> Entry:
        """Read a record.

        Raises:
            InvalidEvent: it is none of ours; the reason and the detail go to the dead letters.

        """
        if isinstance(record.value, Cut):
            raise InvalidEvent("too_large", _size_told(record.value))
        kind, fact = self._judge(record)
        keyed = record.key == fact.session_id.encode()
        if not record.key:
            metrics.KEYLESS.inc()
        source = Source(
            record.topic, record.partition, record.offset, record.timestamp, keyed=keyed
        )
        return Entry(
            kind=kind,
            name=fact.name,
            session_id=fact.session_id,
            data=fact.data,
            source=source,
            durations=self._durations,
            event_id=fact.event_id,
            sent_at=fact.ts,
        )

    def _judge(self, record: ConsumerRecord) -> tuple[EntryKind, AcceptedEvent]:
        if record.topic == self._results:
            return "result", read_result(record.value)
        if record.topic == self._deadlines:
            return "deadline", read_deadline(record.value)
        return "event", read_event(self._events[record.topic], record.value)


def _placed(record: ConsumerRecord) -> _Taken:
    """A record as it is merged: by the broker's time, or before all others if it has none."""
    if record.timestamp_type == _BY_BROKER:
        return record
    return _Unstamped(record, record.offset)


def _size_told(value: Cut) -> str:
    if value.size is None:
        return (
            "the record was not unpacked: its batch cannot be, or holds more than "
            f"{MAX_UNPACKED_BYTES} bytes uncompressed"
        )
    return f"{value.size} bytes; {MAX_VALUE_BYTES} are allowed"


def _id_header(letter_id: str) -> tuple[tuple[str, bytes], ...]:
    return (("id", letter_id.encode()),)
