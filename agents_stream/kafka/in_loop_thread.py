"""The aiokafka consumer in the worker's own loop, where Faust has a thread; its options."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import aiokafka
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Transport
from faust.types import TP
from mode.services import Service
from mode.utils.futures import maybe_async

from agents_stream.kafka.committed import heed_coordinator
from agents_stream.kafka.connection import client_options

if TYPE_CHECKING:
    from agents_stream.kafka.consumer import BatchConsumer

SESSION_TIMEOUT_MS: Final = 6_000
HEARTBEAT_MS: Final = 300  # also how late a worker learns of a rebalance: others wait for it
REBALANCE_TIMEOUT_MS: Final = 20_000
FETCH_WAIT_MS: Final = 500
MAX_FETCH_BYTES: Final = 1024 * 1024


class InLoopThread(AIOKafkaConsumerThread):
    """Faust's consumer thread without the thread: the same methods, in the caller's loop."""

    wait_for_shutdown = False
    consumer: "BatchConsumer"

    def __init__(self, consumer: "BatchConsumer", **kwargs: Any) -> None:
        super().__init__(consumer, thread_loop=asyncio.get_running_loop(), **kwargs)

    async def on_start(self) -> None:
        """Connect, and watch the heartbeats from the first one on."""
        await super().on_start()
        heed_coordinator(self._ensure_consumer())
        self.consumer.engine.membership.watch(self._ensure_consumer())
        self.consumer.engine.ground.guard.watch(self._ensure_consumer())

    async def start(self) -> None:
        """Start in this loop."""
        self._thread_started.set()
        await Service.start(self)

    async def stop(self) -> None:
        """Leave the group and disconnect."""
        if self._consumer is not None:
            if self.consumer.engine.membership.joining:
                await self.consumer.engine.membership.leave()
            await self._consumer.stop()
            self._consumer = None
        self._stopped.set()

    async def call_thread(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """There is no other thread: just call."""
        return await maybe_async(fun(*args, **kwargs))

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Hand over to Faust's consumer."""
        await self.consumer.on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Hand over to Faust's consumer."""
        await self.consumer.on_partitions_assigned(assigned, generation_id)

    def _create_worker_consumer(self, transport: Transport) -> aiokafka.AIOKafkaConsumer:  # noqa: ARG002
        self._assignor = self.app.assignor
        return aiokafka.AIOKafkaConsumer(
            **client_options(self.consumer.engine.settings),
            group_id=self.app.conf.id,
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=MAX_FETCH_BYTES,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            max_poll_interval_ms=24 * 3_600_000,  # our own watchdog watches; see fail_stop.py
            request_timeout_ms=30_000,
            metadata_max_age_ms=60_000,
        )
