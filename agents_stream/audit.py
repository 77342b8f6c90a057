"""audit: replay the journal and compare it with what stands (SPEC §7: G3, G7, G8).

The snapshot is taken backwards: first how far the workers' group has come, then the ends of what it
publishes and of the changelog, last those of the journal. So whatever stands in one of them has its
cause below the end of the next, also while workers run.

    G8  the highest record of each session equals the replay of its journal up to that record;
        what the group has acknowledged is in it
    G3  in that replay each armed deadline ends once, or stands in the record
    G6  in that replay each command ends once, with one outcome, or is pending in the record;
        what stands on the topics of commands and outcomes was decided there
    G1  what was decided and acknowledged stands on its topic
    G7  each message about an order follows the success of that order; every such message on the
        tool's topic is one of the replay's

A session whose first entries are gone by retention cannot be proved; it is counted. One partition
at a time, so that memory holds the sessions of one partition.
"""

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
from aiokafka.structs import ConsumerRecord

from agents_stream.core.decider import apply
from agents_stream.core.journal import Entry, Position, decode_entry
from agents_stream.core.session import SessionRecord, decode_record
from agents_stream.kafka import ranges
from agents_stream.kafka.row_fold import RowFold
from agents_stream.kafka.topics import (
    ACTIONS,
    JOURNAL,
    PROMOS_OFFERED,
    SESSIONS_CHANGELOG,
    load_topics,
)
from agents_stream.published import OUTWARD, OwnEvents, Published
from agents_stream.replay import Replay, Report, Violation
from agents_stream.settings import Settings
from agents_stream.worker_group import committed_offsets

PROGRESS_EVERY: Final = 500

OnProgress = Callable[[int, int], None]
Spans = dict[tuple[str, int], tuple[int, int]]


async def audit(settings: Settings, on_progress: OnProgress) -> Report:
    """Prove the guarantees on what the log holds now; `partitions` must be the cluster's.

    Raises:
        RetryableError: Kafka cannot be read just now.

    """
    report = Report()
    committed = await committed_offsets(settings)
    async with ranges.reader(settings) as client:
        log = _Log(client, on_progress)
        outward = {name: await log.spans(settings, name) for name in OUTWARD}
        offers = await log.spans(settings, PROMOS_OFFERED)
        actions = await log.spans(settings, ACTIONS, since=committed)
        changelog = await log.spans(settings, SESSIONS_CHANGELOG)
        journal = await log.spans(settings, JOURNAL)
        own = OwnEvents()
        async for line in log.read(offers):
            own.take(line, offers)
        for (rows, span), (entries, journal_span) in zip(
            changelog.items(), journal.items(), strict=True
        ):
            number, acknowledged = entries[1], committed.get(entries, 0)
            unsaid = {place: span for place, span in actions.items() if place[1] == number}
            waiting = await _waiting(log, unsaid, report)
            published = Published(number, report, own, acknowledged, waiting)
            part = _Partition(entries, journal_span[0], acknowledged, report, published)
            async for line in log.read({rows: span}):
                part.take_row(line)
            part.end_rows()
            async for line in log.read({entries: journal_span}):
                part.take_entry(line)
            part.finish()
            await _compare_published(log, outward, part)
    return report


async def _waiting(log: "_Log", spans: Spans, report: Report) -> set[int]:
    """The journal offsets whose actions the group has not said to be published."""
    waiting: set[int] = set()
    async for line in log.read(spans):
        try:
            waiting.add(orjson.loads(line.value or b"")["offset"])
        except (ValueError, KeyError, TypeError) as error:
            session_id = (line.key or b"").decode(errors="replace")
            detail = f"a record of {line.topic} cannot be read: {error}"
            report.add(Violation(session_id, "G8", detail, line.partition, line.offset))
    return waiting


async def _compare_published(log: "_Log", outward: dict[str, Spans], part: "_Partition") -> None:
    """What one partition's decisions led to, against the same partition of the outward topics."""
    empty = set()
    for name, spans in outward.items():
        [(place, span)] = [item for item in spans.items() if item[0][1] == part.place[1]]
        if span[0] == span[1] > 0:
            empty.add(name)
        async for line in log.read({place: span}):
            part.published.take(line, name, span[0], part.provable_since)
    part.published.finish(empty, part.unproved)


@dataclass(slots=True)
class _Log:
    """Reads stretches and tells how much of all of them has been read."""

    client: Any
    on_progress: OnProgress
    total: int = 0
    done: int = 0

    async def spans(
        self, settings: Settings, name: str, since: dict[tuple[str, int], int] | None = None
    ) -> Spans:
        """The stretches of a topic, from the first record (or from `since`) to the present end."""
        topic = load_topics().name(name, settings.topic_prefix)
        places = [(topic, number) for number in range(settings.partitions)]
        found = await ranges.bounds(self.client, places)
        for place, (begin, end) in found.items():
            start = begin if since is None else since.get(place, begin)
            found[place] = (max(begin, min(start, end)), end)
        self.total += sum(end - begin for begin, end in found.values())
        return {place: found[place] for place in places}

    async def read(self, spans: Spans) -> AsyncGenerator[ConsumerRecord, None]:
        async with aclosing(ranges.read(self.client, spans)) as lines:
            async for line in lines:
                yield line
                self.done += 1
                if self.done % PROGRESS_EVERY == 0:
                    self.on_progress(self.done, self.total)


@dataclass(frozen=True, slots=True)
class _Row:
    """A session's highest record: its place in the journal, where it began, its bytes."""

    position: tuple[int, int]
    opened_offset: int
    raw: bytes

    @property
    def journal_offset(self) -> int:
        return self.position[1]


@dataclass(slots=True)
class _Partition:
    """One partition: its rows first, then its journal, then what is left over."""

    place: tuple[str, int]
    begin: int
    acknowledged: int
    report: Report
    published: Published
    announced: set[str] = field(default_factory=set)
    began: dict[str, float] = field(default_factory=dict)
    rows: dict[str, _Row] = field(default_factory=dict)
    replays: dict[str, Replay] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    unproved: set[str] = field(default_factory=set)
    beyond: dict[str, SessionRecord] = field(default_factory=dict)
    _raws: dict[bytes, bytes | None] = field(default_factory=dict)
    _fold: RowFold = field(init=False)

    def __post_init__(self) -> None:
        self._fold = RowFold(self._raws.get)

    def provable_since(self, session_id: str) -> float:
        """From when on (in ms) the replay of a session knows what was decided."""
        # Nothing is gone of a journal that begins at zero: whoever is not in it never was.
        unknown = math.inf if self.begin > 0 else 0.0
        return self.began.get(session_id, unknown)

    def take_row(self, line: ConsumerRecord) -> None:
        """A record of the changelog: the highest of its session wins, as at a recovery (G9)."""
        if line.key is not None:
            self._fold.take(line.key, line.value)
            self._raws.update(self._fold.drain())

    def end_rows(self) -> None:
        """The changelog is read: the journal follows."""
        for key, raw in self._raws.items():
            session_id = key.decode(errors="replace")
            if raw is None:
                continue
            try:
                record = decode_record(raw)
            except (ValueError, KeyError, TypeError) as error:
                self._fold.unreadable.setdefault(key, str(error))
                continue
            place = record.journal_timestamp, record.journal_offset
            self.rows[session_id] = _Row(place, record.opened_offset, raw)
        for key, words in self._fold.unreadable.items():
            detail = f"a record of the changelog cannot be read: {words}"
            self._violated(key.decode(errors="replace"), detail, None)
        self._raws.clear()

    def take_entry(self, line: ConsumerRecord) -> None:
        """An entry of the journal: replayed up to the record of its session, not beyond."""
        self.report.entries += 1
        session_id = (line.key or b"").decode(errors="replace")
        row = self.rows.get(session_id)
        if row is not None and row.opened_offset < self.begin:
            self.unproved.add(session_id)
        elif row is not None and line.offset > row.journal_offset:
            self._complete(session_id, row)
            if line.offset < self.acknowledged:
                detail = "an entry was acknowledged that is not in the record"
                self._violated(session_id, detail, line.offset)
            self._foresee(session_id, row, line)
        elif session_id not in self.done:
            self._replay(session_id, line)

    def finish(self) -> None:
        """The journal is read: look at what it did not lead to."""
        known = self.rows.keys() | self.replays.keys() | self.done
        self.report.sessions += len(known)
        for session_id, row in self.rows.items():
            if row.opened_offset < self.begin:
                self.unproved.add(session_id)
            else:
                self._complete(session_id, row)
        for session_id, replay in self.replays.items():
            record = replay.record
            if record is not None and record.opened_offset < self.acknowledged:
                self._violated(session_id, "it has no record", record.opened_offset)
            self._count(replay)
        self.report.not_provable += len(self.unproved)

    def _replay(self, session_id: str, line: ConsumerRecord) -> None:
        replay = self.replays.get(session_id)
        if replay is None:
            replay = self._begun(session_id)
            self.replays[session_id] = replay
            # Of a life before this one, which retention has taken, nothing can be said.
            self.began[session_id] = line.timestamp if self.begin > 0 else 0
        entry = self._read(session_id, line)
        if entry is None:
            del self.replays[session_id]
            self.began[session_id] = math.inf
            self.done.add(session_id)
            return
        at = Position(line.topic, line.partition, line.offset, line.timestamp)
        replay.follow(entry, at)

    def _read(self, session_id: str, line: ConsumerRecord) -> Entry | None:
        """An entry of the journal; None for one that would end every worker that comes to it."""
        try:
            return decode_entry(line.value or b"")
        except (ValueError, KeyError, TypeError) as error:
            self._violated(session_id, f"an entry cannot be read: {error}", line.offset)
            return None

    def _foresee(self, session_id: str, row: _Row, line: ConsumerRecord) -> None:
        """What an entry beyond the record will lead to.

        It may be published already: a rebuilt record is behind what its session had done.
        """
        entry = self._read(session_id, line)
        if entry is None:
            return
        at = Position(line.topic, line.partition, line.offset, line.timestamp)
        before = self.beyond.get(session_id) or decode_record(row.raw)
        decision = apply(before, entry, at)
        self.published.decide(session_id, decision.actions, at)
        assert decision.record is not None
        self.beyond[session_id] = replace(decision.record, outbox={})

    def _complete(self, session_id: str, row: _Row) -> None:
        """The replay has come to the record: compare, once, and let it go."""
        if session_id in self.done:
            return
        self.done.add(session_id)
        replay = self.replays.pop(session_id, None)
        if replay is None:
            replay = self._begun(session_id)
        replay.compare(decode_record(row.raw))
        self._count(replay)

    def _begun(self, session_id: str) -> Replay:
        place = self.place[1]
        decide = self.published.decide
        return Replay(session_id, place, self.report, self.announced, on_actions=decide)

    def _count(self, replay: Replay) -> None:
        """What is left open at the end of a replay."""
        self.report.standing += len(replay.standing)
        pending = {} if replay.record is None else replay.record.pending
        self.report.commands_pending += sum(one.state != "failed" for one in pending.values())

    def _violated(self, session_id: str, detail: str, offset: int | None) -> None:
        self.report.add(Violation(session_id, "G8", detail, self.place[1], offset))
