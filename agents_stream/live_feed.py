"""The live feed: the records of several topics as lines, in the order in which things happened.

Records of different topics arrive in any order, so each waits for HOLD_MS and then goes by the
broker's time. Under a load that nobody could read along with, lines are counted instead.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from agents_stream.kafka import ranges
from agents_stream.kafka.topics import (
    CRM_ORDER_CREATE,
    DEAD_LETTERS,
    JOURNAL,
    OUTCOMES,
    SESSIONS_CHANGELOG,
    WHATSAPP_MESSAGE_SEND,
    load_topics,
)
from agents_stream.settings import Settings
from agents_stream.up.narration import Narrator
from agents_stream.up.screen import Line
from agents_stream.up.tail import Seen, Starts, committed_offsets

# In the order in which one thing leads to the other within a millisecond.
TOPICS: Final = (JOURNAL, WHATSAPP_MESSAGE_SEND, CRM_ORDER_CREATE, OUTCOMES, DEAD_LETTERS)
HOLD_MS: Final = 300
MAX_HELD: Final = 500
MAX_ROWS_READ: Final = 20_000
MAX_BACKLOG: Final = 2_000
_RANK: Final = {name: rank for rank, name in enumerate(TOPICS)}


class LiveFeed:
    """Takes records as they are read, gives lines when they are due."""

    def __init__(self, narrator: Narrator) -> None:
        self._narrator = narrator
        self._held: list[Seen] = []
        self._left_out = 0

    def take(self, records: Iterable[Seen]) -> None:
        """Take records in; beyond MAX_HELD they are only counted."""
        self._held += records
        if len(self._held) > MAX_HELD:
            self._left_out += len(self._held)
            self._held.clear()
            self._narrator.forget()

    def due(self, now_ms: int | None = None) -> Iterator[Line]:
        """Give the lines of what has waited long enough."""
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        ready = [seen for seen in self._held if seen.timestamp <= now_ms - HOLD_MS]
        self._held = [seen for seen in self._held if seen.timestamp > now_ms - HOLD_MS]
        if self._left_out:
            text = f"{self._left_out:,} records went by too fast to be told one by one"
            yield Line(now_ms, "", "up", text)
            self._left_out = 0
        for seen in sorted(ready, key=_place):
            yield from self._narrator.lines(seen)


def _place(seen: Seen) -> tuple[int, int, int]:
    return seen.timestamp, _RANK[seen.topic], seen.offset


@dataclass(frozen=True, slots=True)
class Beginning:
    """The place in the log from which the feed tells.

    `starts` is where each topic is read from: the journal from where the workers are, so that what
    they had not got to is told too. `rows` is the stretch of the changelog that says what the
    sessions were at that place; None: too much to read, the narrator does without.
    """

    starts: Starts
    rows: Mapping[ranges.Place, tuple[int, int]] | None


async def mark_beginning(settings: Settings) -> Beginning:
    """Say where the log is now. Before a worker starts, so that all that it does is told.

    Raises:
        RetryableError: Kafka cannot be asked.

    """
    committed = await committed_offsets(settings, settings.group_id, JOURNAL)
    names = {load_topics().name(topic, settings.topic_prefix): topic for topic in TOPICS}
    changelog = load_topics().name(SESSIONS_CHANGELOG, settings.topic_prefix)
    numbers = range(settings.partitions)
    async with ranges.reader(settings) as client:
        spans = await ranges.bounds(client, [(name, n) for name in names for n in numbers])
        rows = await ranges.bounds(client, [(changelog, n) for n in numbers])
    starts = {(names[name], number): end for (name, number), (_, end) in spans.items()}
    backlog = 0
    for (name, number), (begin, end) in spans.items():
        if names[name] == JOURNAL:
            starts[JOURNAL, number] = committed.get(number, begin)
            backlog += end - starts[JOURNAL, number]
    if backlog > MAX_BACKLOG:
        starts |= {(names[name], n): end for (name, n), (_, end) in spans.items()}
        return Beginning(starts, None)
    small = sum(end - begin for begin, end in rows.values()) <= MAX_ROWS_READ
    return Beginning(starts, rows if small else None)


async def tell_rows(settings: Settings, beginning: Beginning, narrator: Narrator) -> None:
    """Tell the narrator what the sessions were at the beginning.

    Raises:
        RetryableError: Kafka cannot be read.

    """
    if beginning.rows is None:
        narrator.forget()
        return
    if all(begin == end for begin, end in beginning.rows.values()):
        return
    async with ranges.reader(settings) as client:
        async for record in ranges.read(client, beginning.rows):
            if record.key is not None and record.value is not None:
                narrator.remember(record.key.decode(), record.value)
