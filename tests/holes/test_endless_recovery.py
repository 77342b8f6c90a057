"""An error while the changelog is read: a warning, and a recovery that never ends."""

import asyncio

import pytest

from agents_stream.settings import Settings
from tests.holes.conftest import Found
from tests.holes.ours import log_of, our_world
from tests.holes.plain import SOON_S, plain_world
from tests.holes.seen import until

HOLE = "A row of the changelog cannot be applied"
AWAITED_S = 12.0  # recovery looks at its progress every 5 s


@pytest.mark.by_name
async def test_faust_recovers_for_ever(kafka_settings: Settings, found: Found) -> None:
    """Faust as it comes: a row of an older model; the program lives, and takes no event."""
    async with plain_world(kafka_settings) as world:
        await world.create(world.changelog, cleanup_policy="compact")
        for key, value in ((b'"a"', b"1"), (b'"b"', b'{"n": 1}')):
            await world.producer.send_and_wait(world.changelog, value, key=key)
        program = world.run("numbers")
        await world.send("waits")
        await until(lambda: program.logged("Error in recovery"), program.tail, SOON_S)
        # What could not be decoded never comes, and its offset is awaited: a wait without a limit.
        await asyncio.sleep(AWAITED_S)
        assert program.alive()
        assert not program.facts("ready")
        assert not program.facts("kept")
    found(f"alive, not ready after {AWAITED_S:g} s where 0.01 s is usual; no event taken")


async def test_ours_ends_with_a_word(kafka_settings: Settings, found: Found) -> None:
    """G11: recovery ends, or the process does; and standing still for 60 s is such an end too."""
    async with our_world(kafka_settings) as world:
        for value in (b"no record", b"no record either"):
            await world.cluster.producer.send_and_wait(world.changelog, value, key=b"k")
        worker = world.worker()
        assert await world.ended(worker) == 1
        assert "of the changelog cannot be read" in log_of(worker)
    found("ended with 1 and said why")
