"""H3: with two events at a time the commit passes the one that is still in flight."""

import signal

import pytest

from agents_stream.settings import Settings
from tests.holes.conftest import Found
from tests.holes.ours import our_world
from tests.holes.plain import plain_world

HOLE = "H3 kill -9 while one event takes long and the next is done"


async def test_faust_commits_past_an_event_in_flight(
    kafka_settings: Settings, found: Found
) -> None:
    """Faust as it comes, `concurrency=2`: the event after a slow one is done, and both committed.

    `_new_offset` wants a gap of two before it minds one.
    """
    async with plain_world(kafka_settings) as world:
        program = await world.ready("concurrent")
        await world.send("first")
        await program.until("done", offset=0)
        await world.until_committed(1)
        await world.send("slow", b"slow")
        await program.until("begun", offset=1)
        await world.send("quick")
        await program.until("done", offset=2)
        await world.until_committed(3)
        program.kill()
        successor = await world.ready("concurrent", HOLE_HEALTHY="1")
        await world.send("afterwards")
        await successor.until("done", offset=3)
        assert program.offsets("done") == [0, 2]
        assert successor.offsets("done") == [3]
    found("1 of 3 events committed in flight, never handled")


@pytest.mark.by_name
async def test_ours_commits_nothing_beyond_the_first_that_is_not_done(
    kafka_settings: Settings, found: Found
) -> None:
    """G1: what follows a slow event waits with it."""
    async with our_world(kafka_settings) as world:
        worker = await world.worker("slow").ready()
        await world.cluster.open("first")
        await world.until_committed(1)
        await world.cluster.open("slow")
        await world.said(worker, "slow begun")
        await world.cluster.open("quick")
        await world.until_journal(3)
        assert await world.most_committed(1.5) == 1
        worker.send_signal(signal.SIGKILL)
        successor = await world.worker().ready()
        assert await world.applied(successor, ["first", "slow", "quick"]) == 3
    found("committed up to the slow one, all 3 applied after the restart")
