"""A short stall of the program leaves a partition out of the next long poll, of 1.5 s."""

import re
from statistics import median

from agents_stream.settings import Settings
from tests.holes.conftest import Found
from tests.holes.our_engine import TOPIC
from tests.holes.ours import OurWorld, log_of, our_world
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
        program = world.run(["tests.holes.our_engine"])
        await world.said(program, "started")
        waits = [await _ours_waits_s(world, program, number) for number in range(ATTEMPTS)]
        usual_s = median(waits)
        assert usual_s < LONG_S, waits
    found(f"the next event lay in Kafka for {usual_s:.2f} s")


async def _ours_waits_s(world: OurWorld, program: WorkerProcess, attempt: int) -> float:
    """How long an event lies in Kafka, in seconds."""
    producer, topic = world.cluster.producer, world.cluster.topic(TOPIC)
    await producer.send_and_wait(topic, b"block", partition=0)
    await world.said(program, "held", count=attempt + 1)
    for number, value in ((1, b"meanwhile"), (2, b"after")):
        await producer.send_and_wait(topic, value, partition=0)
        await world.said(program, f"offset={3 * attempt + number} ")
    waits = re.findall(r"waited_ms=(\d+)", log_of(program))
    return int(waits[-1]) / 1_000
