"""The merge against a full sort, over any way in which the topics can be read."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.core.merge import PartitionMerge


class Read(NamedTuple):
    """A record as it was read."""

    timestamp: int
    offset: int


class Log(NamedTuple):
    """One topic: its records, with gaps where transaction markers stood, and where it ends."""

    records: list[Read]
    end: int


@st.composite
def logs(draw: st.DrawFn, steps_ms: st.SearchStrategy[int]) -> Log:
    """A topic whose timestamps go by `steps_ms`."""
    steps = draw(st.lists(st.tuples(st.integers(1, 3), steps_ms), max_size=12))
    offsets = accumulate((gap for gap, _ in steps), initial=-1)
    times = accumulate((step_ms for _, step_ms in steps), initial=1000)
    records = [Read(at, offset) for at, offset in zip(times, offsets, strict=True)][1:]
    last = records[-1].offset if records else -1
    return Log(records, last + draw(st.integers(1, 3)))


forward = st.integers(0, 3)
also_back = st.integers(-4, 4)


def expected_order(topics: Sequence[Log], ends: Sequence[int]) -> list[tuple[int, Read]]:
    """Sort everything below the ends at once; a time that goes back counts as the highest."""
    keyed = []
    for rank, (log, end) in enumerate(zip(topics, ends, strict=True)):
        below = [record for record in log.records if record.offset < end]
        highest = accumulate((record.timestamp for record in below), max)
        keyed += [
            ((at, rank, record.offset), record) for at, record in zip(highest, below, strict=True)
        ]
    return [(key[1], record) for key, record in sorted(keyed)]


class Reader:
    """Reads topics in chunks, as a consumer would."""

    def __init__(self, topics: Sequence[Log]) -> None:
        self.topics = topics
        self.merge: PartitionMerge[Read] = PartitionMerge([0] * len(topics))

    def read(self, rank: int, count: int) -> None:
        """Read up to `count` records, and the markers behind them when the end is near."""
        log, position = self.topics[rank], self.merge.positions[rank]
        chunk = [record for record in log.records if record.offset >= position][:count]
        position = chunk[-1].offset + 1 if chunk else log.end
        self.merge.accept(rank, chunk, position)

    def at_end(self, rank: int) -> bool:
        """Whether there is nothing more to read."""
        return self.merge.positions[rank] >= self.topics[rank].end

    def finish_round(self, ends: Sequence[int], count: int) -> list[tuple[int, Read]]:
        """Read nothing but the awaited topic until the round is over."""
        taken = self.merge.take(ends)
        while (rank := self.merge.awaited(ends)) is not None:
            assert self.merge.done_offsets[rank] == self.merge.positions[rank]
            self.read(rank, count)
            taken += self.merge.take(ends)
        assert self.merge.complete(ends)
        return taken


@given(st.data(), st.lists(logs(also_back), min_size=1, max_size=4))
def test_any_way_of_reading_gives_the_order_of_one_full_sort(
    data: st.DataObject, topics: list[Log]
) -> None:
    """G2, G5: a backlog in chunks comes out as if it had been sorted at once, each record once."""
    ends = [log.end for log in topics]
    reader = Reader(topics)
    taken: list[tuple[int, Read]] = []
    while unread := [rank for rank in range(len(topics)) if not reader.at_end(rank)]:
        reader.read(data.draw(st.sampled_from(unread)), data.draw(st.integers(1, 4)))
        if data.draw(st.booleans()):
            taken += reader.merge.take(ends)
    taken += reader.merge.take(ends)
    assert taken == expected_order(topics, ends)
    assert reader.merge.complete(ends)
    assert not reader.merge.pending


@given(st.data(), st.lists(logs(also_back), min_size=1, max_size=4))
def test_rounds_follow_each_other_and_keep_what_is_beyond_their_ends(
    data: st.DataObject, topics: list[Log]
) -> None:
    """G5: each round is sorted by itself; nothing at or beyond its ends is taken with it."""
    reader = Reader(topics)
    starts = [0] * len(topics)
    while any(start < log.end for start, log in zip(starts, topics, strict=True)):
        ends = [
            data.draw(st.integers(start, log.end))
            for start, log in zip(starts, topics, strict=True)
        ]
        for rank in data.draw(st.lists(st.integers(0, len(topics) - 1), max_size=3)):
            if not reader.at_end(rank):
                reader.read(rank, data.draw(st.integers(1, 4)))
        taken = reader.finish_round(ends, data.draw(st.integers(1, 3)))
        this_round = [
            Log([record for record in log.records if record.offset >= start], log.end)
            for start, log in zip(starts, topics, strict=True)
        ]
        assert taken == expected_order(this_round, ends)
        assert reader.merge.take(ends) == []
        starts = ends


@given(st.lists(logs(also_back), min_size=1, max_size=4), st.integers(1, 5))
def test_reading_only_the_awaited_topic_ends_the_round_with_little_in_hand(
    topics: list[Log], count: int
) -> None:
    """G11: the topic that holds the round back has nothing in hand, so it is never paused."""
    ends = [log.end for log in topics]
    assert Reader(topics).finish_round(ends, count) == expected_order(topics, ends)


@given(st.data(), st.lists(logs(forward), min_size=2, max_size=4))
def test_what_was_taken_is_never_later_than_what_comes(
    data: st.DataObject, topics: list[Log]
) -> None:
    """Safety at every single take: all that is taken later in the round has a higher key."""
    ends = [log.end for log in topics]
    reader = Reader(topics)
    last = (-1, -1, -1)
    while not reader.merge.complete(ends):
        unread = [rank for rank in range(len(topics)) if not reader.at_end(rank)]
        if unread:
            reader.read(data.draw(st.sampled_from(unread)), data.draw(st.integers(1, 4)))
        for rank, record in reader.merge.take(ends):
            assert last < (record.timestamp, rank, record.offset)
            last = (record.timestamp, rank, record.offset)


def test_events_of_one_millisecond_come_in_the_order_of_the_topics_deadlines_last() -> None:
    """G5: an answer that Kafka acknowledged in the very millisecond beats its deadline."""
    merge: PartitionMerge[Read] = PartitionMerge([0, 0, 0])
    answer, result, deadline = Read(7, 0), Read(7, 0), Read(7, 0)
    merge.accept(2, [deadline], 1)
    merge.accept(1, [result], 1)
    merge.accept(0, [answer], 1)
    assert not merge.complete([1, 1, 1])
    assert [rank for rank, _ in merge.take([1, 1, 1])] == [0, 1, 2]


def test_nothing_goes_while_an_unfinished_topic_has_shown_nothing() -> None:
    """G5: a deadline waits for a topic whose first record has not been read."""
    merge: PartitionMerge[Read] = PartitionMerge([5, 0])
    merge.accept(1, [Read(1, 0)], 1)
    assert merge.take([6, 1]) == []
    assert merge.awaited([6, 1]) == 0
    merge.accept(0, [], 6)
    assert merge.take([6, 1]) == [(1, Read(1, 0))]
    assert merge.complete([6, 1])


def test_what_was_taken_still_counts_as_shown() -> None:
    """A topic with nothing left in hand holds back what is later than its last record."""
    merge: PartitionMerge[Read] = PartitionMerge([0, 0])
    merge.accept(0, [Read(10, 0)], 1)
    merge.accept(1, [Read(10, 0), Read(11, 1)], 2)
    assert merge.take([2, 2]) == [(0, Read(10, 0))]
    merge.accept(0, [Read(12, 1)], 2)
    assert merge.take([2, 2]) == [(1, Read(10, 0)), (1, Read(11, 1)), (0, Read(12, 1))]


def test_a_timestamp_that_goes_back_keeps_the_offset_order_and_the_record() -> None:
    """Offset order within a topic holds; the record itself keeps the timestamp that it has."""
    merge: PartitionMerge[Read] = PartitionMerge([0, 0])
    merge.accept(0, [Read(20, 0), Read(10, 1)], 2)
    merge.accept(1, [Read(15, 0), Read(25, 1)], 2)
    taken = merge.take([2, 2])
    assert taken == [(1, Read(15, 0)), (0, Read(20, 0)), (0, Read(10, 1)), (1, Read(25, 1))]


def test_a_stray_clock_displaces_a_topic_for_one_round_only() -> None:
    """A record an hour ahead does not let deadlines pass the topic's answers in later rounds."""
    merge: PartitionMerge[Read] = PartitionMerge([0, 0])
    merge.accept(0, [Read(3_600_000, 0), Read(10, 1), Read(20, 2)], 3)
    merge.accept(1, [], 0)
    assert [record.timestamp for _, record in merge.take([1, 0])] == [3_600_000]
    merge.accept(1, [Read(15, 0)], 1)
    assert [rank for rank, _ in merge.take([3, 1])] == [0, 1, 0]


def test_a_round_whose_question_is_too_old_is_asked_anew() -> None:
    """G11: what holds the round back is in hand: to read on could be forbidden for ever."""
    merge: PartitionMerge[Read] = PartitionMerge([0, 0])
    merge.accept(0, [Read(10, 0), Read(20, 1)], 2)
    merge.accept(1, [], 0)
    assert [record.offset for _, record in merge.take([4, 0], before_ms=15)] == [0]
    assert not merge.must_read([4, 0])
    assert [record.offset for _, record in merge.take([5, 0], before_ms=25)] == [1]
    assert merge.must_read([5, 0])
    merge.accept(0, [Read(21, 2), Read(22, 3), Read(24, 4)], 5)
    assert len(merge.take([5, 0], before_ms=25)) == 3
    assert not merge.must_read([5, 0])


def test_done_is_what_has_been_taken_and_never_what_is_in_hand() -> None:
    """G1: a source is acknowledged up to its first record in hand, else as far as it was read."""
    merge: PartitionMerge[Read] = PartitionMerge([0, 3])
    merge.accept(0, [Read(10, 0), Read(11, 2)], 4)
    assert merge.done_offsets == (0, 3)
    merge.accept(1, [Read(10, 5)], 6)
    assert merge.done_offsets == (0, 5)
    merge.take([2, 6])
    assert merge.done_offsets == (2, 6)
    merge.take([4, 6])
    assert merge.done_offsets == (4, 6)


@pytest.mark.parametrize(
    ("records", "position"),
    [([Read(1, 4)], 6), ([Read(1, 6), Read(1, 6)], 8), ([Read(1, 6)], 6), ([], 4)],
    ids=["read twice", "one offset twice", "position before the record", "position back"],
)
def test_offsets_that_go_back_are_our_own_bug(records: list[Read], position: int) -> None:
    """G2: a record that was read twice is never merged twice."""
    merge: PartitionMerge[Read] = PartitionMerge([5])
    with pytest.raises(AssertionError):
        merge.accept(0, records, position)
    assert not merge.pending
    assert merge.positions == (5,)


def test_ends_are_one_for_each_topic() -> None:
    """A missing end would let a topic through unmerged."""
    merge: PartitionMerge[Read] = PartitionMerge([0, 0])
    with pytest.raises(ValueError, match="zip"):
        merge.take([1])
