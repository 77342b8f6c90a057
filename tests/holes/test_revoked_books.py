"""H6: after a revoke the books know nothing, and whatever is acknowledged first is committed."""

import asyncio
import signal

import pytest

from agents_stream.kafka.topics import partition_for
from agents_stream.settings import Settings
from tests.holes.conftest import Found
from tests.holes.ours import our_world
from tests.holes.plain import plain_world
from tests.holes.proxy import PRODUCE, proxy

pytestmark = pytest.mark.by_name
HOLE = "H6 a rebalance while events are in flight, then kill -9"


async def test_faust_commits_past_events_in_flight_at_a_revoke(
    kafka_settings: Settings, found: Found
) -> None:
    """Faust as it comes, `concurrency=3`: two events are in flight, which holds the commit back.

    A second worker joins; the revoke forgets what was committed; the next ack is committed, beyond
    both of them.
    """
    async with plain_world(kafka_settings, partitions=2) as world:
        program = await world.ready("rebalanced")
        for name in ("first", "second"):
            await world.send(name)
        await program.until("done", 2)
        await world.until_committed(2)
        await world.send("slow", b"slow")
        await world.send("slow too", b"slow")
        await program.until("begun", offset=3)
        await world.send("quick")
        await program.until("done", offset=4)
        await asyncio.sleep(1.0)
        assert await world.committed() == 2  # so far the books are right
        await world.send("late", b"late")
        await program.until("begun", offset=5)
        second = world.run("rebalanced", HOLE_HEALTHY="1")
        await program.until("done", offset=5)  # the rebalance has begun
        await world.until_committed(6)
        program.kill()
        await second.until("ready")
        await world.send("afterwards")
        await second.until("done", offset=6)
        handled = set(program.offsets("done") + second.offsets("done"))
        assert handled == {0, 1, 4, 5, 6}
    found("2 of 6 events committed in flight, never handled")


async def test_ours_commits_only_what_is_done_at_a_revoke(
    kafka_settings: Settings, found: Found
) -> None:
    """G1, G2: a revoke waits for the batch in hand; what it does not finish is done by the next."""
    names = [name for name in map(str, range(40)) if partition_for(name.encode(), 2) == 0][:6]
    broker = kafka_settings.bootstrap_servers
    async with our_world(kafka_settings, partitions=2) as world, proxy(broker) as way:
        worker = await world.worker(broker=way.address).ready()
        for name in names[:2]:
            await world.cluster.open(name)
        await world.until_committed(2)
        with way.hold(PRODUCE, world.changelog) as held:
            for name in names[2:]:
                await world.cluster.open(name)
            await world.until_journal(len(names))
            second = world.worker()
            assert await world.most_committed(8.0) == 2  # the rebalance is under way
            assert held.seen == 1
            worker.send_signal(signal.SIGKILL)
            await way.cut()
        await second.ready()
        assert await world.applied(second, names) == len(names)
    found("committed 2 of 6, all 6 applied by the worker that took over")
