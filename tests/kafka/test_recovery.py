"""Recovery by itself: which rows win, which are kept, and what a rebalance in between does."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from tests.kafka.fakes import Ended, World
from tests.kafka.recovery_world import JOURNAL, Recovering, ends, made, row


@pytest.fixture
async def one(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Recovering]:
    """A recovery that runs, over a fake Kafka."""
    world = World.made(monkeypatch)
    recovering = made(world, monkeypatch)
    await recovering.recovery.start()
    yield recovering
    await recovering.recovery.stop()


async def test_the_highest_record_wins_and_is_written_again_after_a_lower_one(
    one: Recovering,
) -> None:
    """G9: what a paused worker wrote late loses, and compaction cannot make it win."""
    one.wrote(0, (b"a", row(1)), (b"a", row(5)), (b"a", row(2, "late")), (b"b", row(3)))
    await one.assign(1, 0)
    await one.settle()
    assert one.table.row(0, b"a") == row(5)
    assert [line.value for line in one.world.kafka.log[one.changelog, 0]][4:] == [row(5)]
    assert one.world.kafka.log[one.changelog, 0][4].timestamp_ms is not None
    assert one.flowing == [[0]]
    assert one.rebuilt == [0]
    assert one.recovery.completed.is_set()
    assert one.recovery.stalled_s() == 0


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.integers(0, 9)), max_size=20),
)
def test_any_changelog_recovers_to_the_highest_record_of_each_key(
    history: list[tuple[bytes, int]],
) -> None:
    """G9: and once the winners are written, the last record of a key is the highest."""

    async def recover() -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            recovering = made(World.made(monkeypatch), monkeypatch)
            recovering.wrote(0, *((key, row(offset)) for key, offset in history))
            await recovering.assign(1, 0)
            await recovering.recovery.start()
            async with asyncio.timeout(10):
                await recovering.recovery.completed.wait()
            log = recovering.world.kafka.log[recovering.changelog, 0]
            for key in {key for key, _ in history}:
                best = max(offset for other, offset in history if other == key)
                assert recovering.table.row(0, key) == row(best)
                assert [line.value for line in log if line.key == key][-1] == row(best)
            await recovering.recovery.stop()

    asyncio.run(recover())


async def test_each_generation_is_proven_anew(one: Recovering) -> None:
    """G11: also by a worker that owned nothing before, of whom Faust revokes nothing.

    Its last proof may be older than the fence allows: it would end at its first record.
    """
    one.prove()
    one.is_member = False
    await one.assign(1, 0)
    await one.settle()
    assert one.flowing == []
    assert one.world.engine.membership.proven_stamp_ms is None
    one.prove()
    await asyncio.sleep(0.05)
    assert one.flowing == [[0]]


async def test_a_tombstone_takes_a_row_away(one: Recovering) -> None:
    """A session that has left the table is not there; one that came back is, however low (G9)."""
    one.wrote(0, (b"a", row(9)), (b"b", row(9)), (b"a", None), (b"b", None), (b"b", row(2)))
    one.wrote(0, (b"c", row(7)), (b"c", row(1)), (b"c", None))
    await one.assign(1, 0)
    await one.settle()
    found = [one.table.row(0, key) for key in (b"a", b"b", b"c")]
    assert found == [None, row(2), None]
    assert len(one.world.kafka.log[one.changelog, 0]) == 8, "no winner is written again"


async def test_a_record_that_cannot_be_read_ends_the_process(
    one: Recovering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how to repair it; once a tombstone and the repaired row follow, all is well."""
    reasons = ends(monkeypatch)
    one.wrote(0, (b"a", row(1)), (b"a", b"garbage"), (b"a", row(2)))
    await one.assign(1, 0)
    await one.settle()
    assert len(reasons) == 1
    assert "'a'" in reasons[0]
    assert "agents-stream timers rebuild" in reasons[0]
    assert not one.recovery.completed.is_set()


async def test_a_repaired_record_is_recovered(one: Recovering) -> None:
    """Garbage, a tombstone, the row: the row."""
    one.wrote(0, (b"a", b"garbage"), (b"a", None), (b"a", row(2)))
    await one.assign(1, 0)
    await one.settle()
    assert one.table.row(0, b"a") == row(2)
    assert one.recovery.completed.is_set()


async def test_a_later_time_wins_over_a_higher_offset(one: Recovering) -> None:
    """DESIGN §3: a journal made anew starts at offset 0 again, later."""
    one.wrote(0, (b"a", row(900, timestamp=10)), (b"a", row(2, timestamp=20)))
    await one.assign(1, 0)
    await one.settle()
    assert one.table.row(0, b"a") == row(2, timestamp=20)


async def test_rows_found_on_disk_are_read_on_from_their_offset(one: Recovering) -> None:
    """A clean stop's rows save the replay; what was written since is applied on top."""
    one.wrote(0, (b"old", row(1)), (b"new", row(2)))
    one.table.found[0] = 1
    await one.assign(1, 0)
    await one.settle()
    assert one.table.row(0, b"old") is None  # it would have been on the disk
    assert one.table.row(0, b"new") == row(2)
    assert one.table.changelog_offsets == {0: 2}


@pytest.mark.parametrize(("age_h", "opened"), [(11, [0]), (13, [0, 0])])
async def test_rows_that_may_have_missed_a_tombstone_are_dropped(
    one: Recovering, age_h: int, opened: list[int]
) -> None:
    """G8: a session left while this worker was away, and compaction has dropped its tombstone."""
    now_ms = 1_700_000_000_000
    one.world.engine.clock.observe(now_ms)
    one.wrote(0, (b"k", row(1)), (b"another", row(2)), at_ms=now_ms - age_h * 3_600_000)
    one.wrote(0, (b"new", row(3)), at_ms=now_ms)
    one.table.found[0] = 1  # of what came next, a tombstone may be gone
    await one.assign(1, 0)
    await one.settle()
    assert one.table.opened == opened
    assert one.table.row(0, b"new") == row(3)
    assert one.world.engine.journal_again == {}


async def test_rows_of_a_partition_that_rested_are_kept_however_old(one: Recovering) -> None:
    """Nothing has been written since, so nothing was missed."""
    now_ms = 1_700_000_000_000
    one.world.engine.clock.observe(now_ms)
    one.wrote(0, (b"k", row(1)), at_ms=1)
    one.table.found[0] = 1
    await one.assign(1, 0)
    await one.settle()
    assert one.table.opened == [0]


async def test_rows_ahead_of_the_changelog_are_dropped_and_the_journal_read_again(
    one: Recovering,
) -> None:
    """G1: the changelog lost its tail; what it held is made again from the journal."""
    one.wrote(0, (b"k", row(25_000)))
    one.table.found[0] = 7
    await one.assign(1, 0)
    await one.settle()
    assert one.table.opened == [0, 0]
    assert one.table.row(0, b"k") == row(25_000)
    assert one.world.engine.journal_again == {0: 15_000}


async def test_a_partition_owned_in_both_generations_keeps_its_rows(one: Recovering) -> None:
    """No replay for what nobody else can have written."""
    one.wrote(0, (b"a", row(1)))
    await one.assign(4, 0, 1)
    await one.settle()
    one.revoke()
    one.prove()
    await one.assign(5, 0, 2)
    await one.settle()
    assert one.table.opened == [0, 1, 2]
    assert set(one.table.partitions_owned) == {0, 2}
    assert one.flowing == [[0, 1], [0], [2]]


async def test_what_stays_goes_on_before_what_comes_is_read(one: Recovering) -> None:
    """A rebalance stops the partitions of a worker that keep their rows for a moment only.

    And when the others follow, what has been delivered since is not thrown away (G1).
    """
    await one.assign(4, 0, 1)
    await one.settle()
    one.revoke()
    one.prove()
    one.wrote(2, *((b"k%d" % number, row(number)) for number in range(30)))
    read = asyncio.Event()
    one.reading = read.wait
    await one.assign(5, 0, 1, 2)
    await one.settle()
    assert one.flowing == [[0, 1], [0, 1]]
    assert not one.recovery.completed.is_set()
    assert one.recovery.stalled_s() > 0
    read.set()
    await one.settle()
    assert one.flowing == [[0, 1], [0, 1], [2]]
    assert one.recovery.completed.is_set()
    assert one.emptied == 2


async def test_after_a_generation_without_this_worker_nothing_is_kept(one: Recovering) -> None:
    """G9: somebody else may have written in between."""
    await one.assign(4, 0)
    await one.settle()
    one.revoke()
    one.wrote(0, (b"a", row(1)))
    one.prove()
    await one.assign(6, 0)
    await one.settle()
    assert one.table.opened == [0, 0]
    assert one.table.row(0, b"a") == row(1)


async def test_a_generation_that_was_skipped_keeps_no_rows_alive(one: Recovering) -> None:
    """G9: generation 5 was another worker's, 6 came and went in an instant, 7 follows on 6."""
    await one.assign(4, 0)
    await one.settle()
    one.revoke()
    one.wrote(0, (b"a", row(1)))  # by the owner of generation 5
    await one.assign(6, 0)
    one.revoke()
    one.prove()
    await one.assign(7, 0)
    await one.settle()
    assert one.table.row(0, b"a") == row(1)
    assert one.flowing == [[0], [0]]


async def test_a_rebalance_during_recovery_resumes_nothing(one: Recovering) -> None:
    """G2: records of a partition whose rows are not back must reach no stage."""
    one.revoke()
    await one.assign(4, 0)
    await one.settle()  # it waits for a heartbeat: the group rebalances again
    assert one.flowing == []
    one.revoke()
    one.prove()  # the next generation's heartbeat, before its assignment is told
    await one.settle()
    assert (one.seeks, one.flowing) == ([], [])
    assert not one.recovery.completed.is_set()
    await one.assign(5, 0, 1)
    await one.settle()
    assert one.flowing == [[0], [1]]


async def test_a_rebalance_during_the_seek_resumes_nothing(one: Recovering) -> None:
    """The same, one step later."""
    once = iter([True])

    async def overtaken() -> None:
        if next(once, False):
            one.revoke()
            await one.assign(5, 0, 1)

    one.during_seek = overtaken
    await one.assign(4, 0)
    await one.settle()
    one.prove()
    await one.settle()
    assert one.flowing == [[0], [1]]
    assert one.seeks == [[0], [0], [1]]


async def test_winners_are_not_written_for_partitions_that_have_gone(one: Recovering) -> None:
    """G9: the next owner may have written higher records; and if it is us, we look again."""
    one.wrote(0, (b"a", row(5)), (b"a", row(2)))
    one.revoke()
    await one.assign(4, 0)
    await one.settle()  # the rows are read; the winner waits for a proof of membership
    one.revoke()
    one.prove()
    await one.settle()
    assert len(one.world.kafka.log[one.changelog, 0]) == 2
    await one.assign(5, 0)
    await one.settle()
    assert [line.value for line in one.world.kafka.log[one.changelog, 0]][2:] == [row(5)]


async def test_a_revoke_waits_for_the_winners(one: Recovering) -> None:
    """G9: like a stage's batch, they are in the log before anybody else may own the partition."""
    one.wrote(0, (b"a", row(5)), (b"a", row(2)))
    held: list[bool] = []
    append = one.world.engine.sessions_appender.append

    async def watched(pending: Any) -> Any:
        held.append(any(stage.lock.locked() for stage in one.world.engine.stages))
        return await append(pending)

    one.world.engine.sessions_appender.append = watched  # type: ignore[method-assign]
    await one.assign(1, 0)
    await one.settle()
    assert held == [True]


async def test_a_rebalance_that_does_not_end_is_noticed(one: Recovering) -> None:
    """G11: between a revoke and the next assignment the watchdog has something to watch."""
    await one.assign(1, 0)
    await one.settle()
    assert one.recovery.stalled_s() == 0
    one.revoke()
    await asyncio.sleep(0.01)
    assert one.recovery.stalled_s() > 0


async def test_a_worker_that_owns_nothing_is_ready(one: Recovering) -> None:
    """More workers than partitions: the spare one is healthy."""
    await one.assign(1)
    await one.settle()
    assert one.recovery.completed.is_set()
    assert (one.flowing, one.seeks) == ([], [])


async def test_unlike_partitions_end_the_process(one: Recovering) -> None:
    """DESIGN §2: without all inputs of a partition there is no merging by time."""
    assigned = {TopicPartition(JOURNAL, 0), TopicPartition(JOURNAL, 1)}
    assigned.add(TopicPartition(one.changelog, 0))
    with pytest.raises(Ended, match="does not own the same partitions"):
        await one.recovery.on_rebalance(assigned, set(), set(), 1)


async def test_an_error_ends_the_process(one: Recovering, monkeypatch: pytest.MonkeyPatch) -> None:
    """G11: Faust logs a warning and never ends; here the worker is restarted."""
    ended = ends(monkeypatch)

    async def breaks(_: int) -> None:
        raise ValueError("a wheel that breaks")

    one.world.engine.assign_hooks.append(breaks)
    await one.assign(1, 0)
    await one.settle()
    assert ended[0].startswith("recovery failed")
    assert one.flowing == []
