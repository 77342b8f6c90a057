"""Workers as the views see them: real records, made by the real decider from a real journal.

Only Kafka is played: a `Log` holds what its topics would, and every `ShownWorker` reads the one
log through the partitions that it owns.
"""

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from pydantic import SecretStr

from agents_stream.core.decider import Decision, apply
from agents_stream.core.envelope import SealedEvent
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
from agents_stream.kafka.topics import partition_for
from agents_stream.settings import Settings
from agents_stream.views.reads import Letter, LetterPlace, Member
from agents_stream.views.server import WebServer
from tests.conftest import free_port

START_MS = 1_769_860_800_000  # 2026-01-31T12:00:00.000Z
PARTITIONS = 4


class Log:
    """The journal, the records that follow from it, and the dead letters."""

    def __init__(self, partitions: int = PARTITIONS) -> None:
        self.partitions = partitions
        self.now_ms = START_MS
        self.rows: dict[str, bytes] = {}
        self.letters: list[Letter] = []
        self._journal: dict[int, list[tuple[bytes, Position]]] = {n: [] for n in range(partitions)}
        self._sources = 0

    def record(self, session_id: str) -> SessionRecord:
        """The record of a session."""
        return decode_record(self.rows[session_id])

    def event(self, session_id: str, name: str, **data: Any) -> Decision:
        """An event of a session, one millisecond after whatever was last."""
        return self._append("event", name, session_id, {"sessionId": session_id, **data})

    def start(self, session_id: str, **data: Any) -> Decision:
        """`agent/session.started`, with whatever differs from the usual."""
        told = {"workspaceId": "w1", "agentId": "a1", "mode": "greeting", **data}
        told = {"conversationId": f"c-{session_id}", "contactId": f"k-{session_id}", **told}
        return self.event(session_id, "agent/session.started", **told)

    def ask_for_data(self, session_id: str) -> Decision:
        """`agent/collecting_data.started`."""
        told = {"conversationId": f"c-{session_id}", "workspaceId": "w1"}
        return self.event(session_id, "agent/collecting_data.started", **told)

    def offer(self, session_id: str) -> Decision:
        """`agent/promos.offered`."""
        told = {"conversationId": f"c-{session_id}", "workspaceId": "w1", "packOptions": ["1x"]}
        return self.event(session_id, "agent/promos.offered", **told)

    def message(self, session_id: str, content: str) -> Decision:
        """`agent/customer.message`."""
        told = {"conversationId": f"c-{session_id}", "messageId": f"m{self._sources}"}
        return self.event(session_id, "agent/customer.message", content=content, **told)

    def fall_due(self, session_id: str, name: str) -> Decision:
        """Let the time of a deadline come."""
        deadline = self.record(session_id).deadlines[name]
        self.now_ms = max(self.now_ms, deadline.due_at_ms)
        data = {"name": name, "generation": deadline.generation, "dueAt": deadline.due_at_ms}
        told = {"sessionId": session_id, **data}
        return self._append("deadline", "session/deadline", session_id, told)

    def result(self, session_id: str, status: str, **data: Any) -> Decision:
        """The result of the command that a session waits for."""
        waiting = self.record(session_id).pending.values()
        command = next(item for item in waiting if item.state == "awaiting")
        told = {"commandId": command.id, "attempt": command.attempt, "status": status, **data}
        told = {"sessionId": session_id, **told}
        return self._append("result", "tool/result", session_id, told)

    def bury(self, partition: int, value: bytes, key: bytes | None = b"s1") -> None:
        """A dead letter."""
        self.now_ms += 1
        offset = sum(letter.partition == partition for letter in self.letters)
        self.letters.append(Letter(partition, offset, self.now_ms, key, value))

    def partition_of(self, session_id: str) -> int:
        """The partition of a session."""
        return partition_for(session_id.encode(), self.partitions)

    def lines(self, session_id: str) -> list[tuple[Entry, Position]]:
        """The journal of a session."""
        read = [(decode_entry(raw), at) for raw, at in self._journal[self.partition_of(session_id)]]
        return [(entry, at) for entry, at in read if entry.session_id == session_id]

    def lose_head(self, session_id: str) -> None:
        """Retention takes the first entry of a session's partition."""
        del self._journal[self.partition_of(session_id)][0]

    def _append(
        self, kind: EntryKind, name: str, session_id: str, data: Mapping[str, Any]
    ) -> Decision:
        self.now_ms += 1
        self._sources += 1
        partition = self.partition_of(session_id)
        source = Source("input", partition, self._sources, self.now_ms, keyed=True)
        raw = encode_entry(Entry(kind, name, session_id, data, source, Durations()))
        lines = self._journal[partition]
        # Journal offsets have gaps, and its clock is a little later than the source's.
        offset = lines[-1][1].offset + 3 if lines else 1
        at = Position("session.journal", partition, offset, self.now_ms + 2)
        lines.append((raw, at))
        row = self.rows.get(session_id)
        decision = apply(decode_record(row) if row else None, decode_entry(raw), at)
        if decision.record is not None:
            self.rows[session_id] = encode_record(replace(decision.record, outbox={}))
        return decision


class ShownWorker:
    """`Reads` over a log. What a test may set: `members_told`, `missing`, `listed`, `kafka`."""

    def __init__(self, log: Log, owned: Sequence[int]) -> None:
        self.log = log
        self.owned = tuple(owned)
        self.members_told: list[Member] = []
        self.missing = ""
        self.asked: list[str] = []
        self.listed: list[str] | None = None
        self.kafka: Callable[[], Awaitable[None]] = _answer
        self.open_reads = 0

    def ready(self) -> tuple[bool, str]:
        """Ready unless the test says what is missing."""
        return not self.missing, self.missing

    def members(self) -> list[Member]:
        """What the last rebalance told."""
        return self.members_told

    def partition_count(self) -> int:
        """The partitions of the log."""
        return self.log.partitions

    def partition_of(self, session_id: str) -> int:
        """The partition of a session."""
        return self.log.partition_of(session_id)

    def get(self, session_id: str) -> SessionRecord | None:
        """The record, if the session is this worker's."""
        self.asked.append(session_id)
        row = self.log.rows.get(session_id)
        return decode_record(row) if row and self.partition_of(session_id) in self.owned else None

    def session_ids(self) -> Iterator[str]:
        """The ids of this worker, in the order in which they came."""
        if self.listed is not None:
            yield from self.listed
            return
        for session_id in list(self.log.rows):
            if self.partition_of(session_id) in self.owned:
                yield session_id

    async def journal(self, session_id: str) -> AsyncGenerator[tuple[Entry, Position], None]:
        """The journal of a session."""
        self.open_reads += 1
        try:
            await self.kafka()
            for line in self.log.lines(session_id):
                yield line
        finally:
            self.open_reads -= 1

    async def dead_letters(
        self, limit: int, before: LetterPlace | None
    ) -> AsyncGenerator[Letter, None]:
        """The dead letters of all partitions."""
        await self.kafka()
        newest = sorted(self.log.letters, key=lambda letter: letter.place, reverse=True)
        found = [letter for letter in newest if before is None or letter.place < before]
        for letter in found[:limit]:
            yield letter

    def table_sizes(self) -> dict[int, tuple[int, int]]:
        """The sizes of this worker's tables."""
        sizes = {}
        for partition in self.owned:
            ids = [item for item in self.log.rows if self.partition_of(item) == partition]
            timers = sum(len(self.log.record(item).deadlines) for item in ids)
            sizes[partition] = (len(ids), timers)
        return sizes


async def _answer() -> None:
    """Kafka as it should be: at once."""


class Publisher:
    """Takes what is published and keeps it."""

    def __init__(self) -> None:
        self.events: list[SealedEvent] = []

    async def publish(self, events: Sequence[SealedEvent]) -> list[object]:
        """Keep the events."""
        self.events.extend(events)
        return list(events)


class Cluster:
    """Workers with servers, each owning its share of the partitions of one log."""

    def __init__(self, log: Log, count: int, tokens: Sequence[str | None]) -> None:
        self.log = log
        self.settings = [
            Settings(web_port=free_port(), auth_token=SecretStr(token) if token else None)
            for token in tokens[:count]
        ]
        self.urls = [item.public_url for item in self.settings]
        shares = [tuple(range(n, log.partitions, count)) for n in range(count)]
        self.workers = [ShownWorker(log, share) for share in shares]
        for number, worker in enumerate(self.workers):
            worker.members_told = [
                Member(url, share, is_self=number == other)
                for other, (url, share) in enumerate(zip(self.urls, shares, strict=True))
            ]
        self.publisher = Publisher()
        self.servers = [
            WebServer(item, worker, self.publisher)
            for item, worker in zip(self.settings, self.workers, strict=True)
        ]

    def owner_of(self, session_id: str) -> int:
        """The number of the worker that owns a session."""
        partition = self.log.partition_of(session_id)
        return next(n for n, worker in enumerate(self.workers) if partition in worker.owned)


@asynccontextmanager
async def run_cluster(
    log: Log, count: int = 1, token: str | None = None, tokens: Sequence[str | None] = ()
) -> AsyncIterator[Cluster]:
    """Run so many workers over a log, with one token or with one each."""
    cluster = Cluster(log, count, tokens or [token] * count)
    for server in cluster.servers:
        await server.start()
    try:
        yield cluster
    finally:
        for server in cluster.servers:
            await server.stop()
