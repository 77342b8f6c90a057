"""A short stall of the program leaves a partition out of the next long poll, of 1.5 s."""

from agents_stream.core.journal import decode_entry
from agents_stream.settings import Settings
from tests.holes.conftest import Found
from tests.holes.ours import our_world
from tests.holes.plain import plain_world

HOLE = "The event loop is held for 0.4 s, then an event comes"
LONG_S = 0.8  # far above what an event takes, far below the fetch wait of 1.5 s


async def test_faust_takes_over_a_second_to_see_an_event(
    kafka_settings: Settings, found: Found
) -> None:
    """Faust as it comes: the event waits for a fetch that asks for every partition but its own."""
    async with plain_world(kafka_settings, partitions=2) as world:
        program = await world.ready("blocking")
        await world.send("before")
        await program.until("done", offset=0)
        await world.send("block", b"block")
        await program.until("blocking")
        await world.send("meanwhile")
        await program.until("done", offset=2)
        sent_at = await world.send("after")
        [seen] = await program.until("done", offset=3)
        stalled_s = seen["at"] - sent_at
        assert stalled_s > LONG_S
    found(f"the next event lay in Kafka for {stalled_s:.2f} s")


async def test_ours_takes_it_at_once(kafka_settings: Settings, found: Found) -> None:
    """What has been fetched is taken at once, so that every fetch asks for every partition."""
    async with our_world(kafka_settings, partitions=2) as world:
        worker = await world.worker("blocking").ready()
        await world.cluster.open("block")
        await world.said(worker, "blocking")
        await world.cluster.open("meanwhile")
        await world.until_journal(2)
        await world.cluster.open("after")
        journal = await world.until_journal(3)
        [entry] = [record for record in journal if record.key == b"after"]
        waited_s = (entry.timestamp - decode_entry(entry.value).source.timestamp) / 1_000
        assert waited_s < LONG_S
    found(f"the next event lay in Kafka for {waited_s:.2f} s")
