"""What the views see of a worker: its rows, its wheel's sizes, the journal, who owns what."""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any, Final

from aiokafka.structs import TopicPartition

from agents_stream.core.journal import Entry, Position, decode_entry
from agents_stream.core.session import SessionRecord, decode_record
from agents_stream.kafka import ranges
from agents_stream.kafka.engine import Engine
from agents_stream.kafka.table import SessionTable
from agents_stream.kafka.topics import DEAD_LETTERS, JOURNAL, SESSIONS_CHANGELOG, partition_for
from agents_stream.views.reads import Letter, LetterPlace, Member

MAX_SILENCE_MS: Final = 60_000
"""The clock is probed every 20 s where nothing else is appended: longer means no Kafka."""


class WorkerReads:
    """Implements `views.reads.Reads` over a running worker. It changes nothing."""

    def __init__(
        self,
        engine: Engine,
        app: Any,
        table: SessionTable,
        wheel_sizes: Callable[[], Mapping[int, int]],
    ) -> None:
        self._engine = engine
        self._app = app
        self._table = table
        self._wheel_sizes = wheel_sizes

    def ready(self) -> tuple[bool, str]:
        """Ready once the partitions are owned and the rows are back."""
        if not self._engine.clock.known:
            return False, "starting: waiting for Kafka"
        if (slow := self._engine.watchdog.slow()) is not None:
            return False, slow
        if (silent_ms := self._engine.clock.age_ms()) > MAX_SILENCE_MS:
            return False, f"no word from Kafka for {silent_ms / 1_000:.0f} s"
        if not self._app.tables.recovery.completed.is_set():
            return False, "recovering: the rows are read back from the changelog"
        return True, "ready"

    def members(self) -> list[Member]:
        """Every worker of the cluster, as Faust's assignor told all of them."""
        changelog = self._engine.topic(SESSIONS_CHANGELOG)
        here = self._engine.settings.public_url
        return [
            Member(
                url=str(url).rstrip("/"),
                partitions=tuple(sorted(topics.get(changelog, ()))),
                is_self=str(url).rstrip("/") == here,
            )
            for url, topics in self._app.assignor.changelog_distribution.items()
        ]

    def partition_count(self) -> int:
        """How many partitions the journal has."""
        return self._engine.settings.partitions

    def partition_of(self, session_id: str) -> int:
        """The partition of the journal and the table that a session lives in."""
        return partition_for(session_id.encode(), self._engine.settings.partitions)

    def get(self, session_id: str) -> SessionRecord | None:
        """The record of a session of this worker."""
        row = self._table.row(self.partition_of(session_id), session_id.encode())
        return None if row is None else decode_record(row)

    def session_ids(self) -> Iterator[str]:
        """The ids of every session of this worker."""
        for partition in sorted(self._table.partitions_owned):
            yield from (key.decode() for key in self._table.session_keys(partition))

    async def journal(self, session_id: str) -> AsyncGenerator[tuple[Entry, Position], None]:
        """The journal entries of one session, from its first to the present end."""
        record = self.get(session_id)
        if record is None:
            return
        topic, partition = self._engine.topic(JOURNAL), self.partition_of(session_id)
        key = session_id.encode()
        async with ranges.reader(self._engine.settings) as client:
            span = (await ranges.bounds(client, [(topic, partition)]))[topic, partition]
            start = max(record.opened_offset, span[0])
            async for line in ranges.read(client, {(topic, partition): (start, span[1])}):
                if line.key == key and line.value is not None:
                    at = Position(line.topic, line.partition, line.offset, line.timestamp)
                    yield decode_entry(line.value), at

    async def dead_letters(
        self, limit: int, before: LetterPlace | None
    ) -> AsyncGenerator[Letter, None]:
        """The newest dead letters below a place, the highest place first."""
        topic = self._engine.topic(DEAD_LETTERS)
        places = [(topic, number) for number in range(self.partition_count())]
        found: list[Letter] = []
        async with ranges.reader(self._engine.settings) as client:
            spans = await ranges.bounds(client, places)
            if before is not None:
                spans = await _cut(client, spans, before)
            tails = {place: (max(start, end - limit), end) for place, (start, end) in spans.items()}
            async for line in ranges.read(client, tails):
                letter = Letter(line.partition, line.offset, line.timestamp, line.key, line.value)
                if before is None or letter.place < before:
                    found.append(letter)
        for letter in sorted(found, key=lambda item: item.place, reverse=True)[:limit]:
            yield letter

    def table_sizes(self) -> dict[int, tuple[int, int]]:
        """Per owned partition: how many records, how many deadlines in the wheel."""
        wheels = self._wheel_sizes()
        return {
            partition: (len(store), wheels.get(partition, 0))
            for partition, store in sorted(self._table.partitions_owned.items())
        }


async def _cut(
    client: Any, spans: Mapping[tuple[str, int], tuple[int, int]], before: LetterPlace
) -> dict[tuple[str, int], tuple[int, int]]:
    """End each partition just before the place `before`.

    All records of a batch have one timestamp, so a millisecond may hold more letters than a page.
    Letters of the same millisecond are ordered by partition: in lower ones they are still wanted.
    """
    timestamp, partition, offset = before
    times = {
        TopicPartition(*place): timestamp + 1 if place[1] < partition else timestamp
        for place in spans
        if place[1] != partition
    }
    later = await client.offsets_for_times(times) if times else {}
    cut = {}
    for place, (start, end) in spans.items():
        found = later.get(TopicPartition(*place))
        ends_at = found.offset if found is not None else end
        cut[place] = (start, min(end, offset) if place[1] == partition else ends_at)
    return cut
