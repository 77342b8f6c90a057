"""How many dead letters there are, as a metric that an alarm can be written on.

Each process counts the letters that it writes itself, and forgets the count when it ends; the
gateway serves no metrics at all. The topic forgets nothing, so its ends are what is watched.
"""

import asyncio
from typing import Final

import structlog
from aiokafka.errors import KafkaError

from agents_stream.kafka import metrics
from agents_stream.kafka.engine import Engine
from agents_stream.kafka.offsets import EndOffsets
from agents_stream.kafka.topics import DEAD_LETTERS

log = structlog.get_logger()

LOOK_EVERY_S: Final = 10.0


class LetterWatch:
    """Looks at the ends of the dead letters every few seconds, on a connection of its own."""

    def __init__(self, engine: Engine) -> None:
        topic = engine.topic(DEAD_LETTERS)
        self._places = [(topic, number) for number in range(engine.settings.partitions)]
        self._ends = EndOffsets(engine.settings)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, look once, and go on looking."""
        await self._ends.start()
        await self.look()
        self._task = asyncio.create_task(self._look_for_ever(), name="letter watch")

    async def stop(self) -> None:
        """Disconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._ends.stop()

    async def look(self) -> None:
        """Set the metric. Without Kafka it stays as it was: the worker's own watches tell of that.

        The metric is a help for people and nothing hangs on it, so no error here ends the worker.
        """
        try:
            ends = await self._ends.ask(self._places)
        except (KafkaError, OSError) as error:
            log.warning("dead letters not counted", why=repr(error))
            return
        metrics.LETTERS_WRITTEN.set(sum(ends.values()))

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()
