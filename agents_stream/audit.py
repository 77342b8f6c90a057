"""audit: replay the journal and compare it with what stands (SPEC §7: G3, G7, G8).

The snapshot is taken backwards: first how far the workers' group has come, then the ends of the
commands and of the changelog, last those of the journal. So whatever stands in one of them has its
cause below the end of the next, also while workers run.

    G8  the highest record of each session equals the replay of its journal up to that record;
        what the group has acknowledged is in it
    G3  in that replay each armed deadline ends once, or stands in the record
    G7  each message about an order follows the success of that order; every such message on the
        tool's topic is one of the replay's

A session whose first entries are gone by retention cannot be proved; it is counted. One partition
at a time, so that memory holds the sessions of one partition.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from agents_stream.core.errors import RetryableError
from agents_stream.core.flows.promos import CREATED_TEXT
from agents_stream.core.journal import Position, decode_entry
from agents_stream.core.session import decode_record
from agents_stream.kafka import ranges
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import (
    JOURNAL,
    SESSIONS_CHANGELOG,
    WHATSAPP_MESSAGE_SEND,
    load_topics,
)
from agents_stream.replay import Replay, Report, Violation
from agents_stream.settings import Settings

PROGRESS_EVERY: Final = 500
COORDINATOR_ATTEMPTS: Final = 40
COORDINATOR_PAUSE_S: Final = 0.25
_ANNOUNCED: Final = CREATED_TEXT.encode()

OnProgress = Callable[[int, int], None]
Spans = dict[tuple[str, int], tuple[int, int]]


async def audit(settings: Settings, on_progress: OnProgress) -> Report:
    """Prove the guarantees on what the log holds now; `partitions` must be the cluster's.

    Raises:
        RetryableError: Kafka cannot be read just now.

    """
    report = Report()
    acknowledged = await _acknowledged(settings)
    async with ranges.reader(settings) as client:
        log = _Log(client, on_progress)
        messages = await log.spans(settings, WHATSAPP_MESSAGE_SEND)
        changelog = await log.spans(settings, SESSIONS_CHANGELOG)
        journal = await log.spans(settings, JOURNAL)
        announced: set[str] = set()
        unproved: set[str] = set()
        for (rows, span), (entries, journal_span) in zip(
            changelog.items(), journal.items(), strict=True
        ):
            number, begin = entries[1], journal_span[0]
            part = _Partition(entries, begin, acknowledged.get(number, 0), report, announced)
            async for line in log.read({rows: span}):
                part.take_row(line)
            async for line in log.read({entries: journal_span}):
                part.take_entry(line)
            part.finish()
            unproved |= part.unproved
        async for line in log.read(messages):
            _check_message(line, announced, unproved, report)
    return report


class _Log:
    """Reads stretches and tells how much of all of them has been read."""

    def __init__(self, client: Any, on_progress: OnProgress) -> None:
        self._client = client
        self._on_progress = on_progress
        self._total = 0
        self._done = 0

    async def spans(self, settings: Settings, name: str) -> Spans:
        """The stretches of a topic, from the first record to the present end."""
        topic = load_topics().name(name, settings.topic_prefix)
        places = [(topic, number) for number in range(settings.partitions)]
        found = await ranges.bounds(self._client, places)
        self._total += sum(end - begin for begin, end in found.values())
        return {place: found[place] for place in places}

    async def read(self, spans: Spans) -> AsyncGenerator[ConsumerRecord, None]:
        async with aclosing(ranges.read(self._client, spans)) as lines:
            async for line in lines:
                yield line
                self._done += 1
                if self._done % PROGRESS_EVERY == 0:
                    self._on_progress(self._done, self._total)


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
    announced: set[str]
    rows: dict[str, _Row] = field(default_factory=dict)
    replays: dict[str, Replay] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    unproved: set[str] = field(default_factory=set)

    def take_row(self, line: ConsumerRecord) -> None:
        """A record of the changelog: the highest of its session wins, as at a recovery (G9)."""
        if line.key is None or line.value is None:
            return
        session_id = line.key.decode(errors="replace")
        try:
            record = decode_record(line.value)
        except (ValueError, KeyError, TypeError) as error:
            detail = f"a record of the changelog cannot be read: {error}"
            self._violated(session_id, detail, None)
            return
        row = _Row(
            (record.journal_timestamp, record.journal_offset), record.opened_offset, line.value
        )
        known = self.rows.get(session_id)
        if known is None or row.position > known.position:
            self.rows[session_id] = row

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
            self.report.standing += len(replay.standing)
        self.report.not_provable += len(self.unproved)

    def _replay(self, session_id: str, line: ConsumerRecord) -> None:
        replay = self.replays.get(session_id)
        if replay is None:
            replay = Replay(session_id, self.place[1], self.report, self.announced)
            self.replays[session_id] = replay
        try:
            entry = decode_entry(line.value or b"")
        except (ValueError, KeyError, TypeError) as error:
            self._violated(session_id, f"an entry cannot be read: {error}", line.offset)
            del self.replays[session_id]
            self.done.add(session_id)
            return
        at = Position(line.topic, line.partition, line.offset, line.timestamp)
        replay.follow(entry, at)

    def _complete(self, session_id: str, row: _Row) -> None:
        """The replay has come to the record: compare, once, and let it go."""
        if session_id in self.done:
            return
        self.done.add(session_id)
        replay = self.replays.pop(session_id, None)
        if replay is None:
            replay = Replay(session_id, self.place[1], self.report, self.announced)
        replay.compare(decode_record(row.raw))
        self.report.standing += len(replay.standing)

    def _violated(self, session_id: str, detail: str, offset: int | None) -> None:
        self.report.add(Violation(session_id, "G8", detail, self.place[1], offset))


def _check_message(
    line: ConsumerRecord, announced: set[str], unproved: set[str], report: Report
) -> None:
    """G7 on the tool's own topic: what went out there was decided here."""
    if line.value is None or _ANNOUNCED not in line.value:
        return
    try:
        command = orjson.loads(line.value)
        told = command["inputs"]["message"] == CREATED_TEXT
        command_id, session_id = str(command["id"]), str(command["sessionId"])
    except (ValueError, KeyError, TypeError):
        return  # no command: no tool performs it
    if told and command_id not in announced and session_id not in unproved:
        detail = f"{line.topic} tells of an order, and no decision did"
        report.add(Violation(session_id, "G7", detail, line.partition, line.offset))


async def _acknowledged(settings: Settings) -> dict[int, int]:
    """Up to where the workers' group has applied the journal, by partition."""
    topic = load_topics().name(JOURNAL, settings.topic_prefix)
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        offsets = await _offsets_of(admin, settings.group_id)
    except KafkaError as error:
        raise RetryableError(f"Kafka cannot be read just now: {error!r}") from error
    finally:
        await admin.close()
    return {tp.partition: found.offset for tp, found in offsets.items() if tp.topic == topic}


async def _offsets_of(admin: Any, group: str) -> dict[Any, Any]:
    """What a group has committed. A new cluster needs seconds before it can tell of any group."""
    for _ in range(COORDINATOR_ATTEMPTS):
        try:
            offsets: dict[Any, Any] = await admin.list_consumer_group_offsets(group)
        except KafkaError as error:
            if not error.retriable:
                raise
            last = error
            await asyncio.sleep(COORDINATOR_PAUSE_S)
        else:
            return offsets
    raise last
