"""A short stall of the program leaves a partition out of the next long poll, of 1.5 s."""

from agents_stream.core.journal import decode_entry
from agents_stream.settings import Settings
from tests.holes.conftest import Found
from tests.holes.ours import OurWorld, our_world
from tests.holes.plain import PlainWorld, Program, plain_world
from tests.kafka.cluster import WorkerProcess

HOLE = "The event loop is held for 0.4 s, then an event comes"
LONG_S = 0.8  # far above what an event takes, far below the fetch wait of 1.5 s
ATTEMPTS = 5  # a busy machine may miss the moment


async def test_faust_takes_most_of_its_fetch_wait_to_see_an_event(
    kafka_settings: Settings, found: Found
) -> None:
    """Faust as it comes: the event waits for a fetch that asks for every partition but its own."""
    async with plain_world(kafka_settings, partitions=2) as world:
        program = await world.ready("blocking")
        waits = []
        for attempt in range(ATTEMPTS):
            waits.append(await _faust_waits_s(world, program, attempt))
            if waits[-1] > LONG_S:
                break
        assert max(waits) > LONG_S, waits
    found(f"the next event lay in Kafka for {max(waits):.2f} s")


async def _faust_waits_s(world: PlainWorld, program: Program, attempt: int) -> float:
    """How long an event lies in Kafka, in seconds."""
    await world.send("block", b"block")
    await program.until("blocking", count=attempt + 1)
    await world.send("meanwhile")
    await program.until("done", offset=3 * attempt + 1)
    sent_at = await world.send("after")
    [seen] = await program.until("done", offset=3 * attempt + 2)
    waited_s: float = seen["at"] - sent_at
    return waited_s


async def test_ours_takes_it_at_once(kafka_settings: Settings, found: Found) -> None:
    """What has been fetched is taken at once, so that every fetch asks for every partition."""
    async with our_world(kafka_settings, partitions=2) as world:
        worker = await world.worker("blocking").ready()
        waits = []
        for attempt in range(ATTEMPTS):
            waits.append(await _ours_waits_s(world, worker, attempt))
            if waits[-1] < LONG_S:
                break
        assert min(waits) < LONG_S, waits
    found(f"the next event lay in Kafka for {min(waits):.2f} s")


async def _ours_waits_s(world: OurWorld, worker: WorkerProcess, attempt: int) -> float:
    """How long an event lies in Kafka before it is in the journal, by Kafka's own stamps."""
    await world.cluster.open(f"block-{attempt}")
    await world.said(worker, "blocking", count=attempt + 1)
    await world.cluster.open(f"meanwhile-{attempt}")
    await world.until_journal(3 * attempt + 2)
    await world.cluster.open(f"after-{attempt}")
    journal = await world.until_journal(3 * attempt + 3)
    [entry] = [record for record in journal if record.key == b"after-%d" % attempt]
    waited_ms: int = entry.timestamp - decode_entry(entry.value).source.timestamp
    return waited_ms / 1_000
