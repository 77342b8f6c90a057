"""What the consumer tells of its own progress, and what never holds up a rebalance (G11)."""

import asyncio

import pytest

from agents_stream.kafka import consumer as consumer_module
from agents_stream.kafka.topics import ACTIONS, JOURNAL
from tests.kafka.test_consumer import A, B, Consuming, one, records

__all__ = ["one"]  # the fixture: a consumer of two partitions


async def test_a_commit_that_hangs_holds_up_no_rebalance(
    one: Consuming, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G11: the group waits for it; what was done is done again by the next owner, and known."""
    monkeypatch.setattr(consumer_module, "COMMIT_LIMIT_S", 0.02)
    one.client.hang = asyncio.Event()
    one.consumer.done(JOURNAL, 0, 2)
    committing = asyncio.create_task(one.consumer.commit())
    await asyncio.sleep(0.01)
    assert one.consumer.committing_s() > 0
    await asyncio.wait_for(one.consumer.wait_empty(), 5)
    assert one.consumer.epoch == 1
    one.client.hang.set()
    await committing
    assert one.consumer.committing_s() == 0


async def test_a_long_first_recovery_is_no_standstill(one: Consuming) -> None:
    """Until the flow is opened nothing is to be polled, however long the rows take."""
    one.consumer.polled_at -= 3_600
    assert one.consumer.stalled_s() == 0
    one.consumer.app.flow_control.resume()
    one.consumer.resume_flow()
    assert 0 < one.consumer.stalled_s() < 60


async def test_what_should_be_read_now(one: Consuming) -> None:
    """Not what rests because of its backlog, and nothing while the flow rests."""
    one.world.engine.max_backlog_bytes = 1_000
    one.client.fetches = [{A: records(A, 0, size=2_000), B: records(B, 0)}]
    assert one.consumer.reading() == {}  # no position is known yet
    await one.drain()
    assert one.consumer.reading() == {(ACTIONS, 0): 1}
    assert set(one.consumer.in_hand()) == {(JOURNAL, 0), (ACTIONS, 0)}
    one.consumer.done(JOURNAL, 0, 1)
    assert one.consumer.reading() == {(JOURNAL, 0): 1, (ACTIONS, 0): 1}
    assert set(one.consumer.in_hand()) == {(ACTIONS, 0)}
    one.consumer.stop_flow()
    assert one.consumer.reading() == {}
