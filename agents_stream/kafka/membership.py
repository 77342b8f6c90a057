"""Membership: when this worker was last known to own its partitions (the time fence of G9).

The changelog's records carry as their timestamp a lower bound of the brokers' time at which the
last good heartbeat of this generation was sent. The broker refuses stamps older than the topic's
`message.timestamp.before.max.ms`, which is shorter than the session timeout. Whoever takes over
can do so only a session timeout after that heartbeat: so a worker that was paused or cut off,
and still believes that it owns a partition, cannot write over its successor's records.

The bound is taken down when the heartbeat is sent, never worked out later: on a machine that sleeps
the monotonic clock stands still, and the first stamp seen after it would move every moment before
it to the present.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import LeaveGroupRequest

from agents_stream.kafka.clock import BrokerClock, monotonic_ms

log = structlog.get_logger()

_AGAIN_S: Final = 0.1


class Membership:
    """Knows when the last good heartbeat of this generation was sent.

    `proven_at_ms` is the local monotonic time, `proven_stamp_ms` a lower bound of the brokers', as
    it was known then; None without a clock.
    """

    def __init__(self, clock: BrokerClock | None = None) -> None:
        self.proven_at_ms: float | None = None
        self._coordinator: Any = None
        self.proven_stamp_ms: int | None = None
        self._clock = clock
        self._heartbeat: Callable[[], Awaitable[bool]] | None = None
        self._rejoining: Callable[[], bool] = lambda: False

    def watch(self, consumer: Any) -> None:
        """Note every heartbeat of a started aiokafka consumer from now on."""
        coordinator = consumer._coordinator  # noqa: SLF001 - aiokafka has no public hook
        original = coordinator._do_heartbeat  # noqa: SLF001

        def rejoining() -> bool:
            needed: bool = coordinator._rejoin_needed_fut.done()  # noqa: SLF001
            return needed

        async def heartbeat() -> bool:
            sent_at_ms, generation = monotonic_ms(), coordinator.generation
            stamp_ms = self._clock.now_ms() if self._clock and self._clock.known else None
            good: bool = await original()
            # Good while the group rebalances says only that we are still waited for, and what was
            # sent at a time that nobody can tell gives no stamp.
            counts = good and not rejoining() and coordinator.generation == generation
            if counts and (self._clock is None or stamp_ms is not None):
                self.proven_at_ms, self.proven_stamp_ms = sent_at_ms, stamp_ms
            return good

        coordinator._do_heartbeat = heartbeat  # noqa: SLF001
        self._coordinator = coordinator
        self._heartbeat = heartbeat
        self._rejoining = rejoining

    async def leave(self) -> None:
        """Leave the group at once, also while it rebalances.

        aiokafka leaves only once it has joined, on the connection on which the answer to that is
        awaited: nothing else gets through there. Nothing may be written afterwards.
        """
        coordinator = self._coordinator
        if coordinator is None or not coordinator.member_id or coordinator.coordinator_id is None:
            return
        request = LeaveGroupRequest(coordinator.group_id, coordinator.member_id)
        try:
            await coordinator._client.send(coordinator.coordinator_id, request)  # noqa: SLF001
        except KafkaError as error:
            log.info("the group could not be left, it will miss this worker", error=str(error))

    @property
    def joining(self) -> bool:
        """Whether a join has begun and has not ended."""
        return self._coordinator is not None and bool(self._coordinator._performed_join_prepare)  # noqa: SLF001

    def forget(self) -> None:
        """The partitions are gone; the next generation must prove itself anew."""
        self.proven_at_ms = self.proven_stamp_ms = None

    async def prove(self) -> None:
        """Wait for a good heartbeat of this generation, asking for one at once.

        Never while the worker rejoins: a late answer to a heartbeat of the old generation would
        throw the new one away.
        """
        assert self._heartbeat is not None, "the consumer has been started"
        while self.proven_at_ms is None:
            if not self._rejoining():
                await self._heartbeat()
            if self.proven_at_ms is None:
                await asyncio.sleep(_AGAIN_S)
