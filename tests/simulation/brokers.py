"""Kafka, as far as its promises reach: logs, idempotent appends, stamps, the fence, compaction.

Every partition has a leader, and every broker a clock. A leader stamps what it appends to a
LogAppendTime topic; on a CreateTime topic it refuses stamps that are older than the topic's
`message.timestamp.before.max.ms`. All settings are read from topics.yaml, so that a change there is
a change here. What is in the log stays; only compaction takes away, and never the last of a key
nor anything younger than `min.compaction.lag.ms`.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka.errors import InvalidTimestampError, OutOfOrderSequenceNumber

from agents_stream.kafka.topics import TopicSpec, load_topics
from tests.simulation.loop import SimLoop

KEPT_BATCHES: Final = 5  # of each producer and partition, by which a broker knows a repeated batch


@dataclass(slots=True, eq=False)
class Stored:
    """A record in a log, as a consumer sees it; and, for the checkers, when it truly came."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    at_ms: float
    by: str
    epoch: int
    hidden: bool = False  # of an aborted transaction, or its marker: no consumer sees it


@dataclass(frozen=True, slots=True)
class Draft:
    """A record on its way to a log. `timestamp` counts only on a CreateTime topic."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    timestamp: int | None = None
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Acked:
    """What a broker answers to an append; -1 where it does not tell."""

    offset: int
    timestamp: int


@dataclass(slots=True)
class _Producer:
    """What a partition knows of an idempotent producer."""

    next_sequence: int
    batches: list[tuple[int, int, Acked]] = field(default_factory=list)


class Partition:
    """One log."""

    def __init__(self, cluster: "Cluster", spec: TopicSpec, number: int, leader: int) -> None:
        self.cluster = cluster
        self.topic, self.number, self.leader = spec.name, number, leader
        self.records: list[Stored] = []
        self.ever: list[Stored] = []  # what was there before compaction, for the checkers
        self.end = 0
        self.epochs: list[int] = [0]  # where each leader's epoch begins
        self.appended_by_time = spec.config.get("message.timestamp.type") == "LogAppendTime"
        oldest = spec.config.get("message.timestamp.before.max.ms")
        self.oldest_ms = None if oldest is None else int(oldest)
        lag = spec.config.get("min.compaction.lag.ms", "0")
        compacted = spec.config.get("cleanup.policy") == "compact"
        self.compaction_lag_ms = int(lag) if compacted else None
        self._producers: dict[int, _Producer] = {}

    @property
    def begin(self) -> int:
        """The first offset; compaction leaves it where it is."""
        return 0

    @property
    def epoch(self) -> int:
        """How often the partition has had another leader."""
        return len(self.epochs) - 1

    def lead(self, leader: int) -> None:
        """Another broker leads from now on."""
        self.leader = leader
        self.epochs.append(self.end)

    def epoch_end(self, epoch: int) -> int:
        """The first offset that a later leader wrote, or the end of the log."""
        return self.epochs[epoch + 1] if epoch < self.epoch else self.end

    def append(
        self, drafts: Sequence[Draft], by: str, producer: tuple[int, int] | None = None
    ) -> Acked:
        """Append a batch. `producer` is an idempotent producer's id and the batch's sequence."""
        now_ms = self.cluster.clock_ms(self.leader)
        if producer is not None and (known := self._known(producer, len(drafts))) is not None:
            return known
        if self.oldest_ms is not None:
            for draft in drafts:
                if draft.timestamp is not None and draft.timestamp < now_ms - self.oldest_ms:
                    self.cluster.seen["fenced writes refused"] += 1
                    raise InvalidTimestampError
        stamp = now_ms if self.appended_by_time else -1
        acked = Acked(self.end, stamp)
        for draft in drafts:
            self._store(draft, now_ms, by)
        if producer is not None:
            self._remember(producer, len(drafts), acked)
        self.cluster.appended(self)
        return acked

    def visible_from(self, position: int, limit: int) -> tuple[list[Stored], int]:
        """Some records from a position on, and the position after them."""
        start = bisect_left(self.records, position, key=_offset)
        found: list[Stored] = []
        for record in self.records[start:]:
            if len(found) == limit:
                return found, record.offset
            if not record.hidden:
                found.append(record)
        return found, self.end

    def compact(self) -> int:
        """Remove what compaction may remove; how many went."""
        if self.compaction_lag_ms is None:
            return 0
        now_ms = self.cluster.clock_ms(self.leader)
        last = {record.key: record.offset for record in self.records}
        kept = [
            record
            for record in self.records
            if last[record.key] == record.offset or now_ms - record.at_ms <= self.compaction_lag_ms
        ]
        gone = len(self.records) - len(kept)
        self.records = kept
        return gone

    def _store(self, draft: Draft, now_ms: int, by: str) -> None:
        by_time = self.appended_by_time
        stamp = now_ms if by_time or draft.timestamp is None else draft.timestamp
        record = Stored(
            self.topic,
            self.number,
            self.end,
            stamp,
            int(by_time),
            draft.key,
            draft.value,
            draft.headers,
            self.cluster.loop.now_ms,
            by,
            self.epoch,
            draft.hidden,
        )
        self.records.append(record)
        if self.compaction_lag_ms is not None:
            self.ever.append(record)
        self.end += 1

    def _known(self, producer: tuple[int, int], count: int) -> Acked | None:
        """The answer to a batch that came before; None for a new one.

        Of a producer that it does not know a broker takes any sequence, gaps included.
        """
        known = self._producers.get(producer[0])
        if known is None:
            return None
        for sequence, length, acked in known.batches:
            if (sequence, length) == (producer[1], count):
                self.cluster.seen["repeated batches recognised"] += 1
                forgotten = self.cluster.forgets_offsets()
                return Acked(-1, -1) if forgotten else acked
        if producer[1] != known.next_sequence:
            raise OutOfOrderSequenceNumber
        return None

    def _remember(self, producer: tuple[int, int], count: int, acked: Acked) -> None:
        known = self._producers.setdefault(producer[0], _Producer(0))
        known.next_sequence = producer[1] + count
        known.batches.append((producer[1], count, acked))
        del known.batches[:-KEPT_BATCHES]


def _offset(record: Stored) -> int:
    return record.offset


class Cluster:
    """All partitions of all topics, the brokers' clocks, and who waits for news."""

    def __init__(
        self,
        loop: SimLoop,
        partitions: int,
        skews_ms: Sequence[int],
        forgets_offsets: Callable[[], bool],
    ) -> None:
        self.loop = loop
        self.skews_ms = list(skews_ms)
        self.forgets_offsets = forgets_offsets
        self.seen: Counter[str] = Counter()
        self.listeners: dict[tuple[str, int], dict[object, Callable[[], None]]] = {}
        self.on_append: list[Callable[[Partition], None]] = []
        brokers = len(self.skews_ms)
        self.logs: dict[tuple[str, int], Partition] = {
            (spec.name, number): Partition(self, spec, number, (rank + number) % brokers)
            for rank, spec in enumerate(load_topics().specs)
            for number in range(partitions)
        }
        self._topics: dict[str, list[Partition]] = {}
        for log in self.logs.values():
            self._topics.setdefault(log.topic, []).append(log)

    def clock_ms(self, broker: int) -> int:
        """A broker's own clock."""
        return int(self.loop.now_ms) + self.skews_ms[broker]

    def appended(self, partition: Partition) -> None:
        """Wake whoever waits for a partition."""
        for hook in self.on_append:
            hook(partition)
        place = (partition.topic, partition.number)
        for wake in list(self.listeners.get(place, {}).values()):
            wake()

    def topic(self, name: str) -> list[Partition]:
        """A topic's partitions."""
        return self._topics[name]

    def records(self, name: str) -> list[Stored]:
        """Everything that a topic holds and shows, partition by partition."""
        return [record for log in self.topic(name) for record in log.records if not record.hidden]

    def ends(self, tps: Sequence[Any]) -> Mapping[Any, int]:
        """Where partitions end now."""
        return {tp: self.logs[tp[0], tp[1]].end for tp in tps}

    def compact(self) -> None:
        """Run the cleaner once over everything."""
        for log in self.logs.values():
            self.seen["records compacted"] += log.compact()
