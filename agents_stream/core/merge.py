"""The order of things: one partition of all input topics as one sequence, by time.

What may live here: records that were read and wait for their place, and how far each topic has
been read. Who reads them, and who asks the brokers for end offsets, is the ingress stage.

Kafka orders nothing across topics. So ingress works in rounds (DESIGN §2): it asks for the end
offset of each input topic, reads up to there, and appends what lies below the ends in the order of

    (record timestamp, rank of the topic in SPEC §1, offset)

The topic of the deadlines has the last rank: an answer of the same millisecond comes first (G5).

**A backlog too large for memory** is merged like sorted files. A topic that has not been read up to
its end is *unfinished*. Everything that it will still show has a higher key than what it showed
last. So whatever has no higher key than the lowest last key of the unfinished topics can go now;
while an unfinished topic has shown nothing, nothing can. What was taken counts as shown. The topic
that holds a round back is the one whose records are all gone, so reading it is always possible: a
limit on what is in hand never locks the round. Where it has records in hand all the same, these are
younger than the round's question: then the question is asked anew, lest a full hand wait for ever.

**A timestamp that goes back** within one topic (the partition got a leader with another clock) is
treated as the highest before it in this round: offset order within a topic is never broken. The
highest is forgotten at the end of the round, lest one stray clock displace a topic for hours.
"""

from collections import deque
from collections.abc import Sequence
from operator import itemgetter
from typing import Generic, Protocol, TypeVar

MergeKey = tuple[int, int, int]
"""(record timestamp in ms, rank of the topic, offset)."""

_BEFORE_ALL_MS = -(1 << 63)
_AFTER_ALL: MergeKey = (1 << 63, 0, 0)
_BEFORE_ALL: MergeKey = (_BEFORE_ALL_MS, -1, 0)


class SourceRecord(Protocol):
    """What the merge needs to know of a record that was read; the timestamp is in ms."""

    @property
    def timestamp(self) -> int: ...  # noqa: D102 - named by Kafka

    @property
    def offset(self) -> int: ...  # noqa: D102 - named by Kafka


R = TypeVar("R", bound=SourceRecord)


class _Topic(Generic[R]):
    """One topic's share of the partition: what is in hand, and what it has shown this round."""

    __slots__ = ("position", "records", "shown_ms", "shown_offset", "taken_ms")

    def __init__(self, position: int) -> None:
        self.position = position
        self.records: deque[R] = deque()
        self.taken_ms = _BEFORE_ALL_MS
        self.shown_ms = _BEFORE_ALL_MS
        self.shown_offset = -1

    def start_round(self) -> None:
        """Forget the times of the last round, but not what is in hand for the next one."""
        self.taken_ms = _BEFORE_ALL_MS
        self.shown_ms = max((record.timestamp for record in self.records), default=_BEFORE_ALL_MS)


class PartitionMerge(Generic[R]):
    """One partition number across all input topics; a topic is named by its rank.

    `ends` are the end offsets of one round, one for each rank. They stay the same until the round
    is `complete`; then come those of the next.
    """

    __slots__ = ("_topics",)

    def __init__(self, positions: Sequence[int]) -> None:
        """Start where each topic's consumer starts."""
        self._topics: list[_Topic[R]] = [_Topic(position) for position in positions]

    @property
    def positions(self) -> tuple[int, ...]:
        """How far each topic has been read: the offset of its consumer's next record."""
        return tuple(topic.position for topic in self._topics)

    @property
    def done_offsets(self) -> tuple[int, ...]:
        """Per topic, the offset below which everything has been taken."""
        return tuple(
            topic.records[0].offset if topic.records else topic.position for topic in self._topics
        )

    @property
    def pending(self) -> bool:
        """Whether any record is in hand."""
        return any(topic.records for topic in self._topics)

    def accept(self, rank: int, records: Sequence[R], position: int) -> None:
        """Take in what was read of a topic.

        `position` is the consumer's next offset after these records. It passes transaction markers
        and deleted heads, so it may move without any record.

        Raises:
            AssertionError: offsets went back. The place of a record is decided once: what reads
                again must start with a new merge.

        """
        topic = self._topics[rank]
        expected = topic.position
        for record in records:
            if record.offset < expected:
                raise AssertionError(f"offset {record.offset} of topic {rank} after {expected}")
            expected = record.offset + 1
        if position < expected:
            raise AssertionError(f"position {position} of topic {rank} before {expected}")
        topic.position = position
        if records:
            topic.records.extend(records)
            topic.shown_ms = max(topic.shown_ms, *(record.timestamp for record in records))
            topic.shown_offset = expected - 1

    def complete(self, ends: Sequence[int]) -> bool:
        """Say whether the round is over: all below the ends has been read and taken."""
        return all(
            topic.position >= end and not (topic.records and topic.records[0].offset < end)
            for topic, end in zip(self._topics, ends, strict=True)
        )

    def awaited(self, ends: Sequence[int]) -> int | None:
        """Return the rank of the topic that holds the round back, or None."""
        unfinished = [
            rank
            for rank, (topic, end) in enumerate(zip(self._topics, ends, strict=True))
            if topic.position < end
        ]
        return min(unfinished, key=self._last_shown, default=None)

    def must_read(self, ends: Sequence[int]) -> bool:
        """Say, after a `take`, whether the round goes on with what is read next.

        Else it is over, or what holds it back is in hand and younger than its question.
        """
        awaited = self.awaited(ends)
        return awaited is not None and not self._topics[awaited].records

    def take(self, ends: Sequence[int], before_ms: int | None = None) -> list[tuple[int, R]]:
        """Take out all whose place in the round is certain, in order, as (rank, record).

        What is at or beyond the ends stays in hand for the next round, and so does what is stamped
        `before_ms` or later: the ends of two topics are never read at the same instant, and only
        what is older than the question itself is below all of them.
        """
        awaited = self.awaited(ends)
        bound = _AFTER_ALL if awaited is None else self._last_shown(awaited)
        if before_ms is not None:
            bound = min(bound, (before_ms, -1, 0))
        taken: list[tuple[MergeKey, R]] = []
        for rank, end in enumerate(ends):
            self._take_from(rank, end, bound, taken)
        taken.sort(key=itemgetter(0))
        if self.complete(ends):
            for topic in self._topics:
                topic.start_round()
        return [(key[1], record) for key, record in taken]

    def _last_shown(self, rank: int) -> MergeKey:
        topic = self._topics[rank]
        if topic.shown_ms == _BEFORE_ALL_MS:
            return _BEFORE_ALL
        return topic.shown_ms, rank, topic.shown_offset

    def _take_from(
        self, rank: int, end: int, bound: MergeKey, taken: list[tuple[MergeKey, R]]
    ) -> None:
        topic = self._topics[rank]
        records = topic.records
        while records and records[0].offset < end:
            at_ms = max(topic.taken_ms, records[0].timestamp)
            key = (at_ms, rank, records[0].offset)
            if key > bound:
                return
            topic.taken_ms = at_ms
            taken.append((key, records.popleft()))
