"""H1: a commit passes events whose state changes have not been sent."""

import asyncio
import signal

from agents_stream.settings import Settings
from tests.holes.conftest import Found
from tests.holes.ours import our_world
from tests.holes.plain import plain_world
from tests.holes.proxy import PRODUCE, proxy

HOLE = "H1 kill -9 while the changelog's partition is slow"
EVENTS, SENT = 10, 2


async def test_faust_commits_events_whose_rows_were_never_sent(
    kafka_settings: Settings, found: Found
) -> None:
    """Faust as it comes: the changelog takes two records and then none; all ten are committed.

    `flush_atmost` gives up after 0.1 s, and a record that waits for room in aiokafka's batch is in
    nobody's books.
    """
    broker = kafka_settings.bootstrap_servers
    async with plain_world(kafka_settings) as world, proxy(broker) as way:
        program = await world.ready("table", way.address, HOLE_COMMIT_S="1.0")
        await world.send("first")
        await world.until_committed(1)  # so that all that follow are of one commit
        with way.hold(PRODUCE, world.changelog, passing=SENT) as held:
            keys = [f"k{number}" for number in range(EVENTS)]
            await world.send_all(keys, b"v" * 10_000)  # more than half a batch each
            await program.until("kept", 1 + EVENTS)
            await asyncio.sleep(1.5)
            assert await world.committed() == 1
            held.begin.set()
            await world.until_committed(1 + EVENTS)
            program.kill()
            await way.cut()
        successor = await world.ready("table")
        [rows] = await successor.until("rows")
        assert rows["keys"] == ["first", *keys[:SENT]]
        await world.send("afterwards")
        await successor.until("kept")
        assert successor.offsets("kept") == [1 + EVENTS]
    found(f"{EVENTS} events committed, {EVENTS - SENT} rows gone for ever")


async def test_ours_commits_only_what_the_changelog_has(
    kafka_settings: Settings, found: Found
) -> None:
    """G1, G2: the same, and the commit stays at the two records that Kafka acknowledged."""
    broker = kafka_settings.bootstrap_servers
    async with our_world(kafka_settings) as world, proxy(broker) as way:
        worker = await world.worker(broker=way.address).ready()
        names = [f"s{number}" for number in range(EVENTS)]
        with way.hold(PRODUCE, world.changelog, passing=SENT) as held:
            held.begin.set()
            for number, name in enumerate(names):
                await world.cluster.open(name)
                if number < SENT:
                    await world.until_changelog(number + 1)
            await world.until_journal(EVENTS)
            assert await world.most_committed(1.5) == SENT
            assert held.seen == SENT + 1
            worker.send_signal(signal.SIGKILL)
            await way.cut()
        successor = await world.worker().ready()
        assert await world.applied(successor, names) == EVENTS
    found(f"{SENT} events committed, {EVENTS} sessions there after the restart")
