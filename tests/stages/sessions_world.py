"""The reducer over a fake Kafka: journals made of words, and one life of the stage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agents_stream.core.actions import encode_action
from agents_stream.core.decider import apply
from agents_stream.core.journal import (
    Durations,
    Entry,
    EntryKind,
    Position,
    Source,
    decode_entry,
    encode_entry,
)
from agents_stream.core.session import SessionRecord, decode_record, encode_record
from agents_stream.kafka.consumer import Batch
from agents_stream.kafka.row_fold import later
from agents_stream.kafka.store import MemoryStore
from agents_stream.kafka.topics import JOURNAL, SESSIONS_CHANGELOG
from agents_stream.stages.sessions import Sessions
from tests.kafka.fakes import Read, World

T0 = 1_700_000_000_000
PLAN = ("start", "collect", "message", "offer", "send", "deadline", "result", "close", "early")


def entry(
    kind: EntryKind, name: str, session: str, data: dict[str, Any], number: int, at: int
) -> Entry:
    """An entry from a source of its own."""
    source = Source(f"topic-of-{name}", 0, number, at, keyed=True)
    data = {"sessionId": session, **data}
    return Entry(kind, name, session, data, source, Durations(2_000, 1_000, 2_000, 100))


def next_entry(  # noqa: PLR0911 - one word each
    word: str, session: str, record: SessionRecord | None, number: int, at: int
) -> Entry | None:
    """What a word of the plan means for a session in this state."""
    ids: dict[str, Any] = {"conversationId": "c", "workspaceId": "w"}
    data: dict[str, Any]
    match word:
        case "start":
            data = {**ids, "agentId": "a", "contactId": "x", "mode": "intro"}
            return entry("event", "agent/session.started", session, data, number, at)
        case "collect":
            return entry("event", "agent/collecting_data.started", session, ids, number, at)
        case "message":
            data = {"conversationId": "c", "messageId": f"m{number}", "content": "hola"}
            return entry("event", "agent/customer.message", session, data, number, at)
        case "offer":
            data = {**ids, "packOptions": ["1x"]}
            return entry("event", "agent/promos.offered", session, data, number, at)
        case "send":
            data = {**ids, "messageType": "reminder"}
            return entry("event", "agent/proactive.send", session, data, number, at)
        case "close":
            data = {"reason": "completed"}
            return entry("event", "agent/session.close", session, data, number, at)
        case "deadline" | "early" if record is not None and record.deadlines:
            name, deadline = next(iter(record.deadlines.items()))
            due = deadline.due_at_ms
            data = {"name": name, "generation": deadline.generation, "dueAt": due}
            seen = due - 7 if word == "early" else max(at, due)
            return entry("deadline", "session/deadline", session, data, number, seen)
        case "result" if record is not None and record.pending:
            command = next(iter(record.pending.values()))
            data = {"commandId": command.id, "attempt": 1, "status": "succeeded"}
            data["outputs"] = {"id": "order-1"}
            return entry("result", "tool/result", session, data, number, at)
    return None


@dataclass
class Story:
    """A journal, and what it must lead to."""

    journal: list[Read] = field(default_factory=list)
    records: dict[bytes, SessionRecord] = field(default_factory=dict)
    actions: list[dict[str, Any]] = field(default_factory=list)


def told(plan: Sequence[tuple[str, str]]) -> Story:
    """Make the journal of a plan, applying it as it grows."""
    story = Story()
    now = T0
    for number, (session, word) in enumerate(plan):
        key = session.encode()
        now += 10
        one = next_entry(word, session, story.records.get(key), number, now)
        if one is None:
            continue
        now = max(now, one.source.timestamp + 1)
        offset = 2 * len(story.journal)  # with gaps, as compaction and markers leave
        at = Position(JOURNAL, 1, offset, now)
        story.journal.append(Read(JOURNAL, 1, offset, now, key, encode_entry(one)))
        decision = apply(story.records.get(key), decode_entry(story.journal[-1].value or b""), at)
        if decision.record is not None:
            story.records[key] = decision.record
        story.actions += [encode_action(action) for action in decision.actions]
    return story


class FakeTable:
    """The table over the fake changelog."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = MemoryStore()
        self.installed: list[bytes] = []
        for line in world.kafka.log[SESSIONS_CHANGELOG, 1]:  # as recovery does
            assert line.key is not None
            assert line.value is not None
            if later(line.value, self.store.get(line.key)):
                self.store.put_many({line.key: line.value})

    @property
    def partitions_owned(self) -> dict[int, MemoryStore]:
        """The one partition."""
        return {1: self.store}

    def rows(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """All rows."""
        assert partition == 1
        return self.store.items()

    def row(self, partition: int, key: bytes) -> bytes | None:
        """A row."""
        assert partition == 1
        return self.store.get(key)

    def install(self, partition: int, rows: dict[bytes, bytes], next_offset: int) -> None:
        """Rows that the changelog has."""
        log = self.world.kafka.log[SESSIONS_CHANGELOG, partition]
        assert next_offset == len(log)
        acked = {line.value for line in log}
        assert all(row in acked for row in rows.values()), "installed before the ack"
        self.world.kafka.steps.append("install")
        self.store.put_many(rows)


class FakeWheel:
    """What the timers are told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.followed: list[SessionRecord] = []
        self.early: list[tuple[int, str, str, int]] = []

    def follow(self, partition: int, record: SessionRecord) -> None:
        """Note it."""
        assert partition == 1
        self.world.kafka.steps.append("follow")
        self.followed.append(record)

    def again(self, partition: int, session_id: str, name: str, late_by_ms: int) -> None:
        """Note it."""
        self.early.append((partition, session_id, name, late_by_ms))


@dataclass
class Running:
    """One life of the stage."""

    stage: Sessions
    table: FakeTable
    wheel: FakeWheel


def begun(world: World) -> Running:
    """A worker starts and has recovered."""
    table, wheel = FakeTable(world), FakeWheel(world)
    world.kafka.appends = 0
    return Running(Sessions(world.engine, None, table, wheel), table, wheel)  # type: ignore[arg-type]


def batches_of(journal: Sequence[Read], sizes: Iterator[int]) -> Iterator[Batch]:
    """Cut a stretch of the journal into fetches."""
    left = list(journal)
    while left:
        size = next(sizes)
        taken, left = left[:size], left[size:]
        position = left[0].offset if left else taken[-1].offset + 1
        yield Batch(JOURNAL, 1, tuple(taken), position, 0)


def substance(record: SessionRecord) -> SessionRecord:
    """A record without its bookkeeping of what was published."""
    return replace(decode_record(encode_record(record)), outbox={})
