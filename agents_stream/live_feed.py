"""The live feed: the records of several topics as lines, in the order in which things happened.

Records of different topics arrive in any order, so each waits for HOLD_MS and then goes by the
broker's time. Under a load that nobody could read along with, lines are counted instead.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Final

from aiokafka.errors import KafkaError

from agents_stream.core.errors import RetryableError
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


async def starts_of(settings: Settings, narrator: Narrator) -> Starts:
    """Say where the feed begins, after telling the narrator what the sessions are by now.

    The journal is read from where the workers are; what they have applied is in the rows. Where
    there is too much of either, or Kafka cannot be asked, the narrator does without.
    """
    try:
        committed = await committed_offsets(settings, settings.group_id, JOURNAL)
        async with ranges.reader(settings) as client:
            numbers = range(settings.partitions)
            journal = load_topics().name(JOURNAL, settings.topic_prefix)
            spans = await ranges.bounds(client, [(journal, n) for n in numbers])
            starts = {(JOURNAL, n): committed.get(n, spans[journal, n][0]) for n in numbers}
            backlog = sum(spans[journal, n][1] - starts[JOURNAL, n] for n in numbers)
            changelog = load_topics().name(SESSIONS_CHANGELOG, settings.topic_prefix)
            rows = await ranges.bounds(client, [(changelog, n) for n in numbers])
            if backlog <= MAX_BACKLOG and sum(e - b for b, e in rows.values()) <= MAX_ROWS_READ:
                async for record in ranges.read(client, rows):
                    if record.key is not None and record.value is not None:
                        narrator.remember(record.key.decode(), record.value)
                return starts
    except (KafkaError, RetryableError):
        narrator.forget()
        return {}
    narrator.forget()
    return {}
