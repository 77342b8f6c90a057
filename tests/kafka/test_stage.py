"""What all stages share: batches of this generation only, a few at a time, or the process ends."""

import asyncio
from collections.abc import Sequence

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError, MessageSizeTooLargeError

from agents_stream.core.errors import TerminalError
from agents_stream.kafka import stage as stage_module
from agents_stream.kafka.consumer import Batch
from agents_stream.kafka.stage import BatchStage
from tests.kafka.fakes import Ended, FakeStream, Read, World


class Noting(BatchStage):
    """A stage that notes what it is given, and fails as it is told."""

    name = "noting"
    error: BaseException | None = None

    def __init__(self, world: World) -> None:
        super().__init__(world.engine, None)
        self.world = world
        self.worked: list[list[int]] = []

    async def work(self, batches: Sequence[Batch]) -> None:
        """Note it."""
        assert self.lock.locked()
        assert "noting" in str(self.engine.watchdog._spans)
        if self.error is not None:
            raise self.error
        self.worked.append([batch.position for batch in batches])
        self.consumer.done("t", 0, batches[-1].position)


def batch(position: int, epoch: int = 0, count: int = 1) -> Batch:
    """A fetch."""
    records = tuple(Read("t", 0, position - 1, 0, b"k", b"v") for _ in range(count))
    return Batch("t", 0, records, position, epoch)


async def test_what_waits_is_worked_on_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits for Kafka are paid once for many events."""
    stage = Noting(World.made(monkeypatch))
    await stage.run(FakeStream([batch(1), batch(2), batch(3)]))
    assert stage.worked == [[1, 2, 3]]


async def test_a_backlog_is_worked_on_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """G11: a rebalance, and the watchdog, wait for a piece and not for the whole backlog."""
    monkeypatch.setattr(stage_module, "MAX_TAKEN_RECORDS", 10)
    stage = Noting(World.made(monkeypatch))
    await stage.run(FakeStream([batch(number, count=4) for number in range(8)]))
    assert stage.worked == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_nothing_of_an_earlier_generation_is_worked_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """G9: also when the rebalance came while the batch waited for the lock."""
    world = World.made(monkeypatch)
    stage = Noting(world)
    world.consumer.epoch = 3
    await stage.run(FakeStream([batch(1, epoch=2), batch(2, epoch=3)]))
    await stage.run(FakeStream([batch(3, epoch=2)]))
    assert stage.worked == [[2]]
    await stage.lock.acquire()
    running = asyncio.create_task(stage.run(FakeStream([batch(4, epoch=3)])))
    await asyncio.sleep(0)
    world.consumer.epoch = 4
    stage.lock.release()
    await running
    assert stage.worked == [[2]]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyError("a bug"), 1),
        (TerminalError("made anew"), 1),
        (MessageSizeTooLargeError(), 1),
        (KafkaConnectionError("gone"), 3),
        (KafkaTimeoutError("gone"), 3),
    ],
    ids=str,
)
async def test_an_exception_ends_the_process_and_acknowledges_nothing(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    """G1: Faust would acknowledge the event; the code says whether Kafka could be reached."""
    world = World.made(monkeypatch)
    stage = Noting(world)
    stage.error = error
    with pytest.raises(Ended, match="the stage noting failed") as ended:
        await stage.run(FakeStream([batch(1), batch(2)]))
    assert ended.value.code == code
    assert not world.consumer.done_offsets


async def test_a_cancelled_stage_acknowledges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean stop has waited for the batch; whatever else cancels it must lose nothing."""
    world = World.made(monkeypatch)
    stage = Noting(world)
    stage.error = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await stage.run(FakeStream([batch(1)]))
    assert not world.consumer.done_offsets
    assert not stage.lock.locked()
