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

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord, TopicPartition

from agents_stream.core.errors import RetryableError, TerminalError
from agents_stream.core.flows.promos import CREATED_TEXT
from agents_stream.core.journal import Position, decode_entry
from agents_stream.core.session import SessionRecord, decode_record, journal_position
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
_ANNOUNCED: Final = CREATED_TEXT.encode()

OnProgress = Callable[[int, int], None]
Spans = dict[tuple[str, int], tuple[int, int]]


async def audit(settings: Settings, on_progress: OnProgress) -> Report:
    """Prove the guarantees on what the log holds now; `partitions` must be the cluster's.

    Raises:
        RetryableError: Kafka cannot be read just now.
        TerminalError: the log was written by a newer version.

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
        for rows, entries in zip(changelog.items(), journal.items(), strict=True):
            place, (begin, end) = entries
            part = _Partition(place, begin, end, acknowledged.get(place[1], 0), report, announced)
            async for line in log.read(dict([rows])):
                part.take_row(line)
            async for line in log.read(dict([entries])):
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


@dataclass(slots=True)
class _Partition:
    """One partition: its rows first, then its journal, then what is left over."""

    place: tuple[str, int]
    begin: int
    end: int
    acknowledged: int
    report: Report
    announced: set[str]
    rows: dict[str, tuple[tuple[int, int], bytes]] = field(default_factory=dict)
    replays: dict[str, Replay] = field(default_factory=dict)
    compared: dict[str, int] = field(default_factory=dict)
    unproved: set[str] = field(default_factory=set)

    def take_row(self, line: ConsumerRecord) -> None:
        """A record of the changelog: the highest of its session wins, as at a recovery (G9)."""
        if line.key is None or line.value is None:
            return
        key = line.key.decode(errors="replace")
        try:
            position = journal_position(line.value)
        except (ValueError, KeyError, TypeError):
            self._violated(key, "a record in the changelog cannot be read", None)
            return
        known = self.rows.get(key)
        if known is None or position > known[0]:
            self.rows[key] = (position, line.value)

    def take_entry(self, line: ConsumerRecord) -> None:
        """An entry of the journal."""
        key = (line.key or b"").decode(errors="replace")
        self.report.entries += 1
        if key in self.unproved:
            return
        if key in self.compared:
            # Beyond its record: not applied yet, unless the group says that it is.
            if line.offset < self.acknowledged and self.compared[key] >= 0:
                ...
