"""What every stage of the worker has in common: batches in, one at a time, or the process ends.

A stage is a Faust agent over a stream of `Batch`es. What has been queued is worked on in one go,
so that the waits for Kafka are paid once; up to a limit, since a rebalance waits for it. An
exception ends the process before anything could acknowledge what was not done.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

from aiokafka.errors import InvalidTimestampError

from agents_stream.kafka.consumer import Batch, BatchConsumer
from agents_stream.kafka.engine import Engine, consumer_of
from agents_stream.kafka.fail_stop import exit_code_of, fail_stop
from agents_stream.kafka.input_watch import LONG_S

MAX_TAKEN_RECORDS: Final = 2_000
_FENCED = (
    "Kafka refused a record of the table as too old: no heartbeat of this worker got through for 5 "
    "s, because Kafka was away or the worker was paused. Another may own the partitions by now; a "
    "restart recovers, and nothing is lost"
)


def _nothing() -> None:
    """Before the first batch nobody watches."""


class BatchStage(ABC):
    """One stage. `lock` is held while a batch is worked on; a revoke waits for it.

    `moved` tells the watchdog that Kafka has acknowledged something: a backlog may take longer
    than the watchdog waits, and to end the process then would begin it anew for ever.
    """

    name: str

    def __init__(self, engine: Engine, app: Any) -> None:
        self.engine = engine
        self.app = app
        self.lock = asyncio.Lock()
        self.moved: Callable[[], None] = _nothing
        self.busy_since: float | None = None
        self.long_until = 0.0
        engine.stages.append(self)

    @property
    def consumer(self) -> BatchConsumer:
        """The worker's consumer."""
        return consumer_of(self.app)

    @abstractmethod
    async def work(self, batches: Sequence[Batch]) -> None:
        """Do everything that the batches ask for and say what is done."""

    async def run(self, stream: Any) -> None:
        """The Faust agent's body."""
        queue = stream.channel.queue
        async for first in stream:
            batches, taken = [first], len(first.records)
            while taken < MAX_TAKEN_RECORDS and not queue.empty():
                batches.append(queue.get_nowait())
                taken += len(batches[-1].records)
            async with self.lock:
                current = [batch for batch in batches if batch.epoch == self.consumer.epoch]
                if not current:
                    continue
                await self._work_or_die(current)

    async def _work_or_die(self, batches: Sequence[Batch]) -> None:
        try:
            self.busy_since = time.monotonic()
            with self.engine.watchdog.span(self.name) as self.moved:
                await self.work(batches)
            if time.monotonic() - self.busy_since > LONG_S:
                self.long_until = time.monotonic()
            self.busy_since = None
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, a restart is the cure
            words = f"the stage {self.name} failed: {type(error).__name__}: {error}"
            if isinstance(error, InvalidTimestampError):
                words = _FENCED
            fail_stop(words, error, exit_code_of(error))
