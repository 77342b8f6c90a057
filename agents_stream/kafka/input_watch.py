"""Watching what comes in, per partition: whether it is read, and what was read worked on.

Two ways to stand still that nothing else would show:

- *Reading.* Kafka has more for a partition, it is not paused because of what is in hand, and
  nothing of it is fetched: a fetch that hangs, a partition that the client has forgotten.
- *Work.* Records of a partition are in hand, and of none of the topics that a stage reads there
  any is finished. Per stage and partition, not per topic: in a backlog the merge by time rightly
  holds back a topic for as long as another has older records.

The watch judges what it can know: while Kafka does not answer its question, nothing is said to
stand still here, since then an idle worker waits for it.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Final, Protocol

from aiokafka.errors import KafkaError

from agents_stream.kafka.fail_stop import Standstill, fail_stop
from agents_stream.kafka.offsets import EndOffsets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agents_stream.kafka.consumer import BatchConsumer
    from agents_stream.kafka.engine import Engine

LOOK_S: Final = 5.0
ASK_LIMIT_S: Final = 5.0
LONG_S: Final = 5.0
"""A batch longer than this has kept all that waits for the stage, through no fault of theirs."""

Place = tuple[str, int]


class Busy(Protocol):
    """A stage: since when it is at a batch, and until when its last long one took."""

    name: str
    busy_since: float | None
    long_until: float


class InputWatch:
    """Looks every few seconds; `standing` is what the watchdog asks, from its own thread."""

    def __init__(
        self,
        engine: "Engine",
        consumer: "Callable[[], BatchConsumer]",
        stages: "Mapping[str, Busy]",
    ) -> None:
        """Watch what `consumer` consumes; `stages` tells which stage reads a topic."""
        self._consumer = consumer
        self._stages = stages
        self._ends = EndOffsets(engine.settings)
        self._behind: dict[Place, tuple[int, float]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect and begin to look."""
        await self._ends.start(self._stages)
        self._task = asyncio.create_task(self._look_for_ever(), name="input watch")

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._ends.stop()

    def standing(self) -> list[Standstill]:
        """What stands still, and for how long."""
        now = time.monotonic()
        unread = [
            Standstill(f"{topic}/{partition} has more to read and has not been read", now - since)
            for (topic, partition), (_, since) in list(self._behind.items())
        ]
        return unread + self._unworked(now)

    def _unworked(self, now: float) -> list[Standstill]:
        """Stages that have something of a partition in hand, and since when they finished none.

        A long batch (a backlog) is watched by itself; what waits for it counts from its end.
        """
        newest: dict[tuple[str, int], float] = {}
        for (topic, partition), moved_at in self._consumer().in_hand().items():
            stage = self._stages[topic]
            if stage.busy_since is not None and now - stage.busy_since > LONG_S:
                continue  # what waits for it is no news
            before = newest.get((stage.name, partition), stage.long_until)
            newest[stage.name, partition] = max(moved_at, before)
        return [
            Standstill(f"{name} has records of partition {partition} and finished none", now - at)
            for (name, partition), at in newest.items()
        ]

    async def _look_for_ever(self) -> None:
        try:
            while True:
                await self.look()
                await asyncio.sleep(LOOK_S)
        except Exception as error:  # noqa: BLE001 - nobody would look any more
            fail_stop(f"watching the input failed: {type(error).__name__}: {error}", error)

    async def look(self) -> None:
        """Compare what has been read with what Kafka has."""
        reading = self._consumer().reading()
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                ends = await self._ends.ask(reading) if reading else {}
        except (KafkaError, TimeoutError):
            self._behind = {}
            return
        now, before = time.monotonic(), self._behind
        self._behind = {
            place: before[place]
            if place in before and before[place][0] == position
            else (position, now)
            for place, position in reading.items()
            if position < ends[place]
        }
