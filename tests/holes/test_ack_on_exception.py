"""An exception in a handler acknowledges the event."""

import pytest

from agents_stream.settings import Settings
from tests.holes.conftest import Found
from tests.holes.ours import log_of, our_world
from tests.holes.plain import plain_world

HOLE = "The handler raises"


async def test_faust_acknowledges_what_its_handler_raised_for(
    kafka_settings: Settings, found: Found
) -> None:
    """Faust as it comes, with `stream_ack_exceptions=False`: the event is committed anyway."""
    async with plain_world(kafka_settings) as world:
        program = await world.ready("raising")
        await world.send("first")
        await world.send("bad", b"bad")
        await world.send("last")
        await program.until("done", offset=2)
        await world.until_committed(3)
        assert program.offsets("done") == [0, 2]
        assert program.alive()
        program.end()
        mended = await world.ready("raising", HOLE_HEALTHY="1")
        await world.send("afterwards")
        await mended.until("done", offset=3)
        assert mended.offsets("done") == [3]
    found("the event is committed; the mended program never sees it")


@pytest.mark.by_name
async def test_ours_ends_and_a_mended_worker_goes_on(
    kafka_settings: Settings, found: Found
) -> None:
    """G1: the process ends before anything could acknowledge; nothing is passed over."""
    async with our_world(kafka_settings) as world:
        worker = await world.worker("raising").ready()
        await world.cluster.open("first")
        await world.until_committed(1)
        for name in ("bad", "last"):
            await world.cluster.open(name)
        assert await world.ended(worker) == 1
        assert "ZeroDivisionError" in log_of(worker)
        assert await world.committed() == 1
        mended = await world.worker().ready()
        assert await world.applied(mended, ["first", "bad", "last"]) == 3
    found("ended with 1, nothing committed; the mended worker applied all 3")
