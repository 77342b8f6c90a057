"""Whether every partition is read, and what was read is worked on (G11)."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from agents_stream.kafka import input_watch
from agents_stream.kafka.input_watch import InputWatch
from agents_stream.settings import Settings

MESSAGES, CLOSES, JOURNAL = "agent.customer.message", "agent.session.close", "session.journal"


class Watching:
    """A watch over a consumer and a Kafka that the test plays, on its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.positions: dict[tuple[str, int], int] = {}
        self.ends: dict[tuple[str, int], int] = {}
        self.moved: dict[tuple[str, int], float] = {}
        self.error: BaseException | None = None
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr(input_watch, "EndOffsets", lambda _: SimpleNamespace(ask=self.ask))
        consumer: Any = SimpleNamespace(
            reading=lambda: dict(self.positions), in_hand=lambda: dict(self.moved)
        )
        engine: Any = SimpleNamespace(settings=Settings())
        self.ingress: Any = SimpleNamespace(name="ingress", busy_since=None, long_until=0.0)
        sessions: Any = SimpleNamespace(name="sessions", busy_since=None, long_until=0.0)
        stages = {MESSAGES: self.ingress, CLOSES: self.ingress, JOURNAL: sessions}
        self.watch = InputWatch(engine, lambda: consumer, stages)

    async def ask(self, _wanted: object) -> dict[tuple[str, int], int]:
        """Answer as Kafka does, or not."""
        if self.error is not None:
            raise self.error
        return self.ends

    async def look(self, seconds: float = 5.0) -> list[str]:
        """Let time pass, look, and say what stands still."""
        self.now += seconds
        await self.watch.look()
        return [str(one) for one in self.watch.standing()]


@pytest.fixture
async def one(monkeypatch: pytest.MonkeyPatch) -> Watching:
    """A watch over one partition of two topics."""
    return Watching(monkeypatch)


async def test_a_partition_that_is_not_read_is_named(one: Watching) -> None:
    """Its neighbour is read; this one has more at the broker and does not move."""
    one.positions = {(MESSAGES, 3): 5, (MESSAGES, 4): 5}
    one.ends = {(MESSAGES, 3): 9, (MESSAGES, 4): 5}
    await one.look()
    one.ends[MESSAGES, 4] = 6
    one.positions[MESSAGES, 4] = 6
    assert await one.look(15) == [f"{MESSAGES}/3 has more to read and has not been read for 15 s"]
    one.positions[MESSAGES, 3] = 6  # it moves, and is behind all the same
    assert await one.look() == [f"{MESSAGES}/3 has more to read and has not been read for 0 s"]
    one.positions[MESSAGES, 3] = 9
    assert await one.look() == []


@pytest.mark.parametrize("error", [KafkaConnectionError(), TimeoutError()], ids=repr)
async def test_a_silent_kafka_is_not_held_against_a_partition(
    one: Watching, error: BaseException
) -> None:
    """An idle worker waits for Kafka; what it should have read begins to count anew."""
    one.positions, one.ends = {(MESSAGES, 3): 5}, {(MESSAGES, 3): 9}
    await one.look()
    one.error = error
    assert await one.look(90) == []
    one.error = None
    assert await one.look() == [f"{MESSAGES}/3 has more to read and has not been read for 0 s"]


async def test_work_that_stands_still_is_named_by_stage_and_partition(one: Watching) -> None:
    """What one topic has in hand may wait for another's older records; all of them may not."""
    one.moved = {(MESSAGES, 3): 90.0, (CLOSES, 3): 99.0, (JOURNAL, 1): 100.0}
    assert await one.look(20) == [
        "ingress has records of partition 3 and finished none for 21 s",
        "sessions has records of partition 1 and finished none for 20 s",
    ]


async def test_what_waits_for_a_long_batch_counts_from_its_end(one: Watching) -> None:
    """G11: a backlog takes its time; the batch itself is watched by its acks."""
    one.moved = {(MESSAGES, 3): 100.0}
    one.ingress.busy_since = 102.0
    assert await one.look(90) == []
    one.ingress.busy_since, one.ingress.long_until = None, 190.0
    assert await one.look() == ["ingress has records of partition 3 and finished none for 5 s"]


async def test_a_watch_that_fails_ends_the_process(
    one: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would look from then on."""
    ended: list[str] = []
    monkeypatch.setattr(input_watch, "fail_stop", lambda reason, _error: ended.append(reason))
    one.positions, one.error = {(MESSAGES, 3): 5}, KeyError("a bug")
    async with asyncio.timeout(5):
        await one.watch._look_for_ever()
    assert "KeyError" in ended[0]
