"""sessions: the reducer. Journal in, records to the table, actions out (DESIGN §3, step 4).

The order of things, by batch, and what a crash right after each step leaves behind:

1. decide everything in memory                        nothing happened
2. append the touched records, actions in their       the records are found at recovery; the
   outbox, to the changelog; wait                     journal is read again, the outbox published
3. install them in the table, tell the wheel          as above
4. publish the actions; wait                          published twice, with the same ids
5. acknowledge the journal                            as above, until the offset is committed
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import orjson
import structlog
from aiokafka.structs import ConsumerRecord

from agents_stream.core.actions import encode_action
from agents_stream.core.decider import Decision, apply
from agents_stream.core.journal import Entry, Position, decode_entry
from agents_stream.core.reasons import Reason
from agents_stream.core.session import SessionRecord, decode_record, encode_record
from agents_stream.kafka import metrics
from agents_stream.kafka.appender import Appender, Line, Pending
from agents_stream.kafka.consumer import Batch
from agents_stream.kafka.engine import Engine
from agents_stream.kafka.stage import BatchStage
from agents_stream.kafka.table import SessionTable
from agents_stream.kafka.topics import ACTIONS, SESSIONS_CHANGELOG

log = structlog.get_logger()

MAX_ENTRIES: Final = 1_000
MAX_PASS_BYTES: Final = 512 * 1024
# What a pass owes for one session must fit its record: an entry of a hundred bytes may owe an
# outcome or a command of 256 KiB.
MAX_OWED_BYTES: Final = 1024 * 1024


class Wheel(Protocol):
    """What the sessions stage tells the timers: every record it installs, every early deadline."""

    def follow(self, partition: int, record: SessionRecord) -> None:
        """The deadlines of this session are now those of the record."""

    def again(self, partition: int, session_id: str, name: str, late_by_ms: int) -> None:
        """A deadline came too early by so much: publish it again."""


@dataclass(slots=True)
class _Work:
    """What a batch does: the records it touched, what they owe, what the wheel must know."""

    records: dict[tuple[int, bytes], SessionRecord] = field(default_factory=dict)
    touched: set[tuple[int, bytes]] = field(default_factory=set)
    actions: Pending = field(default_factory=Pending)
    early: list[tuple[int, str, str, int]] = field(default_factory=list)
    owed_bytes: Counter[tuple[int, bytes]] = field(default_factory=Counter)


class Sessions(BatchStage):
    """The one writer of the table."""

    name = "sessions"

    def __init__(self, engine: Engine, app: Any, table: SessionTable, wheel: Wheel) -> None:
        super().__init__(engine, app)
        self.table = table
        self.wheel = wheel
        self._actions_appender = Appender(engine.settings, engine.clock, engine.watchdog)
        self._changelog = engine.topic(SESSIONS_CHANGELOG)
        self._actions = engine.topic(ACTIONS)
        engine.owed_hooks.append(self.publish_owed)

    async def start(self) -> None:
        """Connect."""
        await self.engine.sessions_appender.start()
        await self._actions_appender.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self.engine.sessions_appender.stop()
        await self._actions_appender.stop()

    async def work(self, batches: Sequence[Batch]) -> None:
        """Apply batches, in passes of a bounded size."""
        for part in _passes(batches):
            rest: Sequence[Batch] = part
            while rest:
                rest = await self._pass(rest)

    async def _pass(self, part: Sequence[Batch]) -> Sequence[Batch]:
        """Apply entries until a session owes enough; give those that are left."""
        work = _Work()
        batches, rest = self._decide_some(work, part)
        self._prune(work, batches)
        await self._write(work)
        if work.actions.lines:
            await self._actions_appender.append(work.actions)
        self.moved()
        for batch in batches:
            self.consumer.done(batch.topic, batch.partition, batch.position)
        return rest

    async def publish_owed(self, partition: int) -> None:
        """Publish every outbox of a partition again, same ids: actions or entries were lost."""
        async with self.lock:
            if partition not in self.table.partitions_owned:
                return
            pending, count = Pending(), 0
            for key, row in self.table.rows(partition):
                for offset, owed in sorted(decode_record(row).outbox.items()):
                    for action in owed:
                        pending.add(self._actions, partition, _action_line(key, offset, action))
                        count += 1
                if len(pending.lines[self._actions, partition]) >= MAX_ENTRIES:
                    await self._actions_appender.append(pending)
                    pending = Pending()
            if pending.lines[self._actions, partition]:
                await self._actions_appender.append(pending)
        log.warning("what the sessions owe is published again", partition=partition, actions=count)

    def _decide_some(
        self, work: _Work, batches: Sequence[Batch]
    ) -> tuple[Sequence[Batch], Sequence[Batch]]:
        """Decide entry after entry; give what was decided on, and what is for another pass."""
        for index, batch in enumerate(batches):
            for number, record in enumerate(batch.records, 1):
                if self._decide(work, record) < MAX_OWED_BYTES:
                    continue
                decided, left = batch.records[:number], batch.records[number:]
                head = replace(batch, records=decided, position=record.offset + 1)
                tail = replace(batch, records=left)
                return [*batches[:index], head], [tail, *batches[index + 1 :]]
        return batches, ()

    def _decide(self, work: _Work, record: ConsumerRecord) -> int:
        """Decide on an entry; give how much its session owes in this pass, in bytes."""
        entry = decode_entry(record.value)
        place = (record.partition, entry.session_id.encode())
        before = work.records.get(place) or self._load(*place)
        at = Position(record.topic, record.partition, record.offset, record.timestamp)
        decision = apply(before, entry, at)
        if decision.record is not None:
            work.records[place] = decision.record
        if decision.repeated:
            assert before is not None
            owed = before.outbox.get(record.offset, ())
        else:
            owed = tuple(encode_action(action) for action in decision.actions)
            if decision.record is not None:
                work.touched.add(place)
            _note(work, entry, at, decision)
        for action in owed:
            line = _action_line(place[1], at.offset, action)
            work.owed_bytes[place] += len(line.value or b"")
            work.actions.add(self._actions, at.partition, line)
        return work.owed_bytes[place]

    def _load(self, partition: int, key: bytes) -> SessionRecord | None:
        row = self.table.row(partition, key)
        return None if row is None else decode_record(row)

    @staticmethod
    def _prune(work: _Work, batches: Sequence[Batch]) -> None:
        """Drop what is known to be published: every outbox entry from before this pass.

        Entries below the offset at which this worker began were acknowledged by whoever committed
        it; those since then by this worker, which waits for every ack before the next pass.
        """
        first: dict[int, int] = {}
        for batch in batches:
            for record in batch.records[:1]:
                first.setdefault(batch.partition, record.offset)
        for place in work.touched:
            record = work.records[place]
            begin = first[place[0]]
            if any(offset < begin for offset in record.outbox):
                kept = {offset: owed for offset, owed in record.outbox.items() if offset >= begin}
                work.records[place] = replace(record, outbox=kept)

    async def _write(self, work: _Work) -> None:
        """Changelog, ack, table, wheel: in this order."""
        if work.touched:
            stamp = self.engine.fence_timestamp()
            rows: dict[int, dict[bytes, bytes]] = {}
            pending = Pending()
            for place in work.touched:
                partition, key = place
                row = encode_record(work.records[place])
                rows.setdefault(partition, {})[key] = row
                pending.add(self._changelog, partition, Line(key, row, (), stamp))
            nexts = await self.engine.sessions_appender.append(pending)
            for partition, written in rows.items():
                self.table.install(partition, written, nexts[self._changelog, partition])
            for place in work.touched:
                self.wheel.follow(place[0], work.records[place])
        for partition, session_id, name, late_by_ms in work.early:
            self.wheel.again(partition, session_id, name, late_by_ms)


def _action_line(key: bytes, offset: int, action: Mapping[str, Any]) -> Line:
    line = {"v": 1, "sessionId": key.decode(), "offset": offset, "action": action}
    return Line(key, orjson.dumps(line))


def _note(work: _Work, entry: Entry, at: Position, decision: Decision) -> None:
    """Count what happened, and remember the deadlines that came too early."""
    metrics.DECISIONS.labels(kind=entry.kind, name=entry.name).inc()
    for reason in decision.reasons:
        metrics.REASONS.labels(reason=reason).inc()
    for ended in decision.ended:
        name = ended.name.split(":")[0]
        metrics.DEADLINES_ENDED.labels(name=name, end=ended.end).inc()
        if ended.end == "fired" and entry.kind == "deadline":
            metrics.LATENESS.observe((at.timestamp - ended.due_at_ms) / 1_000)
    if Reason.EARLY_DEADLINE in decision.reasons and decision.record is not None:
        name = entry.data["name"]
        due = decision.record.deadlines[name].due_at_ms
        late_by_ms = due - entry.source.timestamp
        work.early.append((at.partition, entry.session_id, name, late_by_ms))
    if decision.crash is not None:
        log.error(
            "the decision failed; the event is in the dead letters",
            session=entry.session_id,
            offset=at.offset,
            exc_info=decision.crash,
        )


def _passes(batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    """Cut batches into passes, by entries and by bytes, keeping each partition's order."""
    part: list[Batch] = []
    count = size = 0
    for batch in batches:
        start = 0
        for index, record in enumerate(batch.records):
            length = len(record.value or b"")
            if count and (count >= MAX_ENTRIES or size + length > MAX_PASS_BYTES):
                done = batch.records[start:index]
                yield [*part, replace(batch, records=done, position=record.offset)]
                part, count, size, start = [], 0, 0, index
            count += 1
            size += length
        part.append(replace(batch, records=batch.records[start:]))
    if part:
        yield part
