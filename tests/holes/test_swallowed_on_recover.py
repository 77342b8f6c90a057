"""What a recovery callback raises is swallowed: the program works, with an empty wheel."""

import pytest

from agents_stream.settings import Settings
from tests.holes.conftest import Found
from tests.holes.ours import log_of, our_world
from tests.holes.plain import plain_world

HOLE = "The rebuilding of the wheel raises after a recovery"
TIMED_OUT = ("data_collection", "timeout", "sent_pending_message")


async def test_faust_goes_on_with_an_empty_wheel(kafka_settings: Settings, found: Found) -> None:
    """Faust as it comes: `on_recover` raises, the worker says it is ready, and takes events."""
    async with plain_world(kafka_settings) as world:
        program = await world.ready("wheel")
        for number in range(3):
            await world.send(f"k{number}")
        await program.until("kept", 3)
        await world.until_committed(3)
        program.end()
        broken = await world.ready("wheel", HOLE_BUG="1")
        await world.send("new")
        [kept] = await broken.until("kept", offset=3)
        assert kept["due"] == ["new"]
        assert sorted(await world.rows()) == ["k0", "k1", "k2", "new"]
        assert broken.alive()
        assert broken.logged("Worker ready")
    found("'Worker ready', and 3 of 4 deadlines will never fire")


@pytest.mark.by_name
async def test_ours_ends_and_the_deadline_fires_later(
    kafka_settings: Settings, found: Found
) -> None:
    """G3: no worker without its wheel."""
    later = kafka_settings.model_copy(update={"data_reply_timeout": 5_000})
    async with our_world(later) as world:
        worker = await world.worker().ready()
        session = await world.cluster.open()
        await world.cluster.collect(session)
        await world.until_committed(2)
        assert worker.end() == 0
        broken = world.worker("rebuilding")
        assert await world.ended(broken) == 1
        assert "recovery failed: ValueError" in log_of(broken)
        await world.worker().ready()
        await world.cluster.until_outcomes(session, TIMED_OUT)
    found("ended with 1 before it was ready; the mended worker fired the deadline")
