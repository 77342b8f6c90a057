"""aiokafka's side of a consumer group: joining, heartbeats, callbacks, commits.

It follows `aiokafka/consumer/group_coordinator.py`: the revoke callback comes before the join and
only once for it; heartbeats go on during that callback and answer True while the group rebalances;
who finds his generation gone joins anew; a commit retries by itself what may be retried.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    KafkaError,
    NoError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from tests.simulation.groups import Committed, Group, Joined

if TYPE_CHECKING:
    from tests.simulation.clients import SimConsumer

BACKOFF_S: Final = 0.1
_MEMBERSHIP = (UnknownMemberIdError, IllegalGenerationError)


class Coordinator:
    """One member's view of its group."""

    def __init__(self, consumer: "SimConsumer", group: Group) -> None:
        self.consumer, self.group = consumer, group
        self.generation = -1
        self.member_id = ""
        self._rejoin_needed_fut: asyncio.Future[None] = self._new_future()
        self._closing: asyncio.Future[None] = self._new_future()
        self._listener: Any = None
        self._performed_join_prepare = False
        self._joined = False
        self._client = self
        self.coordinator_id = 0
        self.group_id = group.name
        self._tasks: list[asyncio.Task[None]] = []
        self._heartbeats: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to coordinate."""
        self._tasks.append(asyncio.get_running_loop().create_task(self._coordinate()))

    def subscribe(self, listener: Any) -> None:
        """Be told of partitions."""
        self._listener = listener
        self.request_rejoin()

    async def close(self) -> None:
        """Leave the group."""
        if self._closing.done():
            return
        self._closing.set_result(None)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stop_heartbeats()
        if self.generation > 0:
            await self._ask("leave", lambda: self.group.leave(self.member_id), 0)

    def request_rejoin(self) -> None:
        """Join again as soon as possible."""
        if not self._rejoin_needed_fut.done():
            self._rejoin_needed_fut.set_result(None)

    async def fetch_committed_offsets(
        self, tps: Sequence[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """What the group has committed."""
        committed = self.group.offsets

        def act() -> dict[TopicPartition, OffsetAndMetadata]:
            return {
                tp: OffsetAndMetadata(*committed[tp.topic, tp.partition])
                for tp in tps
                if (tp.topic, tp.partition) in committed
            }

        return await self.consumer.world.network.ask(
            self.consumer.process, "committed", act, limit_s=1e9
        )

    async def commit(self, offsets: Mapping[Any, Committed]) -> None:
        """Commit; what cannot be retried is a `CommitFailedError`."""
        while True:
            generation, member = self.generation, self.member_id
            try:
                await self.consumer.world.network.ask(
                    self.consumer.process,
                    f"commit {self.group.name}",
                    lambda: self.group.commit(member, generation, offsets),  # noqa: B023
                    limit_s=0,
                )
            except _MEMBERSHIP as error:
                if generation == self.generation:
                    self._reset()
                raise CommitFailedError("the group has rebalanced") from error
            except KafkaError:
                await asyncio.sleep(BACKOFF_S)
            else:
                return

    async def _do_heartbeat(self) -> bool:
        generation, member = self.generation, self.member_id
        answer = await self._ask("heartbeat", lambda: self.group.heartbeat(member, generation), 0)
        if answer is NoError:
            return True
        if answer is RebalanceInProgressError:
            self.request_rejoin()
            return True
        if answer in _MEMBERSHIP:
            self._reset()
        return False

    async def send(self, _: int, request: Any) -> None:
        """The one request that is sent past aiokafka's own coordination: leaving."""
        assert isinstance(request, LeaveGroupRequest), request
        await self._ask("leave", lambda: self.group.leave(self.member_id), 0)

    async def _send_req(self, request: Any) -> Any:
        """`heed_coordinator` looks at aiokafka's answers here; ours are right without it."""
        raise NotImplementedError(request)

    async def _coordinate(self) -> None:
        while not self._closing.done():
            if self._listener is not None and (not self._joined or self._rejoin_needed_fut.done()):
                await self._rejoin()
                continue
            await asyncio.wait(
                [self._closing, self._rejoin_needed_fut], return_when=asyncio.FIRST_COMPLETED
            )

    async def _rejoin(self) -> None:
        if not self._performed_join_prepare:
            self.consumer.reassigning = True  # aiokafka hands out no records until it is over
            await self._listener.on_partitions_revoked(list(self.consumer.assignment()))
            self._performed_join_prepare = True
        await self._stop_heartbeats()
        numbers = await self._join()
        if numbers is None:
            await asyncio.sleep(BACKOFF_S)
            return
        self._joined = True
        tps = self.consumer.take_over(numbers)
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self.consumer.begin_where_committed()))
        await self._listener.on_partitions_assigned(list(tps))
        self._performed_join_prepare = False
        self._heartbeats = loop.create_task(self._heartbeat_for_ever())

    async def _join(self) -> frozenset[int] | None:
        """JoinGroup, then SyncGroup; None where it has to be tried again."""
        options, member = self.consumer.options, self.member_id
        session_s = options["session_timeout_ms"] / 1_000
        rebalance_s = options["rebalance_timeout_ms"] / 1_000
        ticket = await self._ask("join", lambda: self.group.join(member, session_s, rebalance_s), 0)
        if not asyncio.isfuture(ticket):
            if ticket in _MEMBERSHIP:
                self._reset()
            return None
        joined = await self._answer_to(ticket)
        if joined is None:
            return None
        self.member_id, self.generation = joined
        self._rejoin_needed_fut = self._new_future()
        numbers = await self._ask("sync", lambda: self.group.sync(*joined), 0)
        if not isinstance(numbers, frozenset):
            if numbers in _MEMBERSHIP:
                self._reset()
            self.request_rejoin()
            return None
        return numbers

    async def _answer_to(self, ticket: "asyncio.Future[Joined]") -> Joined | None:
        """The answer to a JoinGroup, which may get lost like any other, or None while closing."""
        both: list[asyncio.Future[Any]] = [ticket, self._closing]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        self.consumer.process.check()
        await asyncio.sleep(self.consumer.world.network.latency())
        if not ticket.done() or ticket.cancelled():
            return None
        return None if self.consumer.world.network.loses(self.consumer.process) else ticket.result()

    async def _heartbeat_for_ever(self) -> None:
        interval_s = self.consumer.options["heartbeat_interval_ms"] / 1_000
        sleep_s = interval_s
        while self.member_id:
            await asyncio.sleep(sleep_s)
            good = await self._do_heartbeat()
            sleep_s = interval_s if good else BACKOFF_S

    async def _stop_heartbeats(self) -> None:
        if self._heartbeats is not None:
            self._heartbeats.cancel()
            await asyncio.gather(self._heartbeats, return_exceptions=True)
            self._heartbeats = None

    def _reset(self) -> None:
        self.generation, self.member_id = -1, ""
        self.request_rejoin()

    async def _ask(self, kind: str, act: Any, limit_s: float) -> Any:
        """Ask the coordinator once; an error is an answer, and no answer is its error's class."""
        try:
            return await self.consumer.world.network.ask(
                self.consumer.process, f"{kind} {self.group.name}", act, limit_s
            )
        except KafkaError as error:
            return type(error)

    @staticmethod
    def _new_future() -> "asyncio.Future[None]":
        return asyncio.get_running_loop().create_future()
