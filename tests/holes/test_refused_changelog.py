"""H2: a state change that the broker refuses is a line in the log."""

from agents_stream.settings import Settings
from tests.holes.conftest import Found
from tests.holes.ours import log_of, our_world
from tests.holes.plain import plain_world

HOLE = "H2 the broker refuses a record of the changelog"


async def test_faust_commits_an_event_whose_row_was_refused(
    kafka_settings: Settings, found: Found
) -> None:
    """Faust as it comes: it warns, commits the event, goes on, and the row is in memory only."""
    async with plain_world(kafka_settings) as world:
        await world.create(world.changelog, cleanup_policy="compact", max_message_bytes="500")
        program = await world.ready("table")
        await world.send("small")
        await world.send("large", b"v" * 2_000)
        await world.until_committed(2)  # so that the next one has a batch of its own
        await world.send("last")
        await program.until("kept", 3)
        await world.until_committed(3)
        assert sorted(await world.rows()) == ["last", "small"]
        assert program.alive()
        assert program.logged("_on_published error")
    found("warned, committed the event, and its row is gone at the next start")


async def test_ours_ends_and_the_event_is_applied_later(
    kafka_settings: Settings, found: Found
) -> None:
    """G1, G2: the worker ends itself before it acknowledges; a sound changelog gets the record."""
    async with our_world(kafka_settings) as world:
        worker = await world.worker().ready()
        await world.changelog_takes(200)
        await world.cluster.open("large")
        assert await world.ended(worker) == 1
        assert "MessageSizeTooLargeError" in log_of(worker)
        assert await world.committed() == 0
        await world.changelog_takes(None)
        successor = await world.worker().ready()
        assert await world.applied(successor, ["large"]) == 1
    found("ended with 1, committed nothing, applied once the topic was mended")
