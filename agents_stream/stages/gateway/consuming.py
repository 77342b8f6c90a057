"""Consuming in a group: order per session, bounded work in hand, offsets only for what is done.

Records of one session wait in one lane and are performed one after another; lanes run beside each
other. A partition number of all topics of the group is held as one, since a session's records have
the same number on each. What a record means is the handler's.

A rebalance takes everything away and gives it out anew. Then what was not yet begun is dropped
(its next owner will do it), what was begun is waited for within a bound, and what is done is
committed.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import ConsumerRecord, TopicPartition

from agents_stream.core.errors import TerminalError
from agents_stream.kafka.clock import monotonic_ms
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.membership import Membership
from agents_stream.settings import Settings
from agents_stream.stages.gateway.footing import Footing
from agents_stream.stages.gateway.progress import Progress

log = structlog.get_logger()

SESSION_TIMEOUT_MS: Final = 6_000
HEARTBEAT_MS: Final = 1_000
REBALANCE_TIMEOUT_MS: Final = 60_000
# Less than the session timeout: nobody else can hold our partitions before that is over.
CLAIM_WITHIN_MS: Final = 4_000
CALL_WITHIN_MS: Final = 5_000
# Records of one partition number that are taken and not yet committed; above it is paused.
MAX_IN_HAND: Final = 256
MAX_POLLED: Final = 256
POLL_MS: Final = 500
FETCH_WAIT_MS: Final = 250
COMMIT_EVERY_S: Final = 0.5
COMMIT_LIMIT_S: Final = 5.0
CLOSE_LIMIT_S: Final = 5.0
_LOOK_AGAIN_S: Final = 0.05


class Turn:
    """A job's right to act: that we still hold its partition."""

    def __init__(self, held: "Held", lane: "Lane", membership: Membership) -> None:
        self._held = held
        self._lane = lane
        self._membership = membership

    async def own(self) -> None:
        """Wait until the group has just confirmed us. A rebalance ends the wait by cancelling."""
        while not self._is_fresh(CLAIM_WITHIN_MS):  # noqa: ASYNC110 - aiokafka has no event
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def claim(self) -> None:
        """Own, and from now on be waited for by a rebalance, not cancelled."""
        await self.own()
        self._lane.claimed = True

    def still_holds(self) -> bool:
        """Whether nobody else can have been given the partition yet."""
        return self._is_fresh(CALL_WITHIN_MS)

    def _is_fresh(self, within_ms: int) -> bool:
        proven_at_ms = self._membership.proven_at_ms
        return proven_at_ms is not None and monotonic_ms() - proven_at_ms < within_ms


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done about a record; jobs of one `lane` are done in order."""

    lane: str
    perform: Callable[[Turn], Awaitable[None]]


class Handler(Protocol):
    """What a group's records mean."""

    group: str
    topics: tuple[str, ...]

    async def open(self, numbers: set[int]) -> None:
        """Get ready for exactly these partition numbers. None of their jobs runs before."""

    async def begin(self, numbers: set[int]) -> None:
        """The group has committed offsets for these partitions, perhaps its first."""

    def job_for(self, record: ConsumerRecord) -> Job | None:
        """Say what is to be done about a record; None if nothing is."""


@dataclass(slots=True, eq=False)
class Lane:
    """One session's jobs in hand, in order. `claimed`: the first has begun to act."""

    waiting: deque[tuple[ConsumerRecord, Job]] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None
    claimed: bool = False


@dataclass(slots=True, eq=False)
class Held:
    """One partition number while we hold it."""

    number: int
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    revoked: bool = False
    paused: bool = False
    progress: dict[TopicPartition, Progress] = field(default_factory=dict)
    lanes: dict[str, Lane] = field(default_factory=dict)

    @property
    def in_hand(self) -> int:
        """How many records are taken and cannot be committed yet."""
        return sum(len(one) for one in self.progress.values())

    def drop_unclaimed(self) -> list[asyncio.Task[None]]:
        """End what has not begun; return what has."""
        self.revoked = True
        begun = []
        for lane in self.lanes.values():
            if lane.task is not None and lane.claimed:
                begun.append(lane.task)
            elif lane.task is not None:
                lane.task.cancel()
        return begun


class OrderedConsumer:
    """One member of a group; see the module.

    `drain_limit_s` is how long a rebalance or a stop waits for what has begun.
    """

    def __init__(self, settings: Settings, handler: Handler, drain_limit_s: float) -> None:
        self._handler = handler
        self._drain_limit_s = drain_limit_s
        self._held: dict[int, Held] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self._membership = Membership()
        self.footing = Footing(settings, handler.group, handler.topics, self._fail)
        self.consumer = AIOKafkaConsumer(
            **client_options(settings),
            group_id=handler.group,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset=settings.start_from or "earliest",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            metadata_max_age_ms=60_000,
            # Gives all topics' partitions of one number to the same member.
            partition_assignment_strategy=(RangePartitionAssignor,),
        )

    async def start(self) -> None:
        """Connect. The group is joined by `run`."""
        await self.footing.start()
        await self.consumer.start()
        self._membership.watch(self.consumer)
        self.footing.guard(self.consumer)

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop`, then end what has begun and leave the group.

        Raises:
            KafkaError: Kafka failed in a way that waiting does not mend.
            Exception: what a handler raised. Nothing of that record was committed.

        """
        self.consumer.subscribe(list(self._handler.topics), listener=_Listener(self))
        loops = [
            asyncio.create_task(self._poll()),
            asyncio.create_task(self._commit_regularly()),
            asyncio.create_task(self.footing.watch()),
        ]
        for loop in loops:
            loop.add_done_callback(self._note_end)
        ends = [asyncio.create_task(stop.wait()), asyncio.create_task(self._failed.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*loops, *ends):
                task.cancel()
            await asyncio.gather(*loops, *ends, return_exceptions=True)
            await self.release()
            await self._leave()
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Disconnect, if `run` has not done so."""
        await self._leave()

    async def take_over(self, assigned: Iterable[TopicPartition]) -> None:
        """The group gave us these partitions. Nothing is fetched before it is known from where."""
        if await self.footing.settle(self.consumer, assigned):
            self.hold(assigned)

    def hold(self, assigned: Iterable[TopicPartition]) -> None:
        """Hold these partitions."""
        tps = set(assigned)
        numbers = {tp.partition for tp in tps}
        if len(tps) != len(numbers) * len(self._handler.topics):
            self._fail(
                TerminalError(
                    f"group {self._handler.group}: this member was not given the same partitions of"
                    f" {', '.join(self._handler.topics)}: another version of the gateway runs, or"
                    " the topics have different partition counts"
                )
            )
            return
        for tp in tps:
            self._held_for(tp)
        log.info("partitions_held", group=self._handler.group, partitions=sorted(numbers))
        self._opening = self._run_task(self._open(tps, numbers))

    async def release(self) -> None:
        """The group takes everything away: drop, wait, commit."""
        self.footing.leave()
        if self._opening is not None:
            self._opening.cancel()
        held, self._held = list(self._held.values()), {}
        begun = [task for one in held for task in one.drop_unclaimed()]
        if begun:
            _, late = await asyncio.wait(begun, timeout=self._drain_limit_s)
            if late:
                log.warning("calls_outlast_release", group=self._handler.group, count=len(late))
        await self._commit(held)
        self._committed.clear()
        self._membership.forget()

    async def _open(self, tps: set[TopicPartition], numbers: set[int]) -> None:
        """Get everything ready for the partitions' jobs, then let them run."""
        held = dict(self._held)
        await self._handler.open(numbers)
        try:
            await self._commit_first_offsets(tps)
        except (CommitFailedError, IllegalStateError) as error:
            # The next rebalance has begun already; it will give the partitions out anew.
            log.info("rebalanced_while_opening", group=self._handler.group, error=repr(error))
            return
        await self._handler.begin(numbers)
        await self._membership.prove()
        for number in numbers:
            held[number].ready.set()

    async def _commit_first_offsets(self, tps: set[TopicPartition]) -> None:
        """Commit where the group begins, so that it is never again taken for a new one."""
        first: dict[TopicPartition, int] = {}
        for tp in tps:
            marked = tp not in self.footing.unmarked
            if not marked or await self.consumer.committed(tp) is None:
                taken = self._held_for(tp).progress[tp].committable
                start = await self.consumer.position(tp) if marked else self.footing.unmarked[tp]
                first[tp] = start if taken is None else taken
        if first:
            await self.consumer.commit(self.footing.marked(first))

    async def _poll(self) -> None:
        while True:
            batches = await self.consumer.getmany(timeout_ms=POLL_MS, max_records=MAX_POLLED)
            # Merged, not sorted: within a partition the order is the log's, whatever the clock.
            for record in heapq.merge(*batches.values(), key=lambda one: one.timestamp):
                self._take(record)
            self._balance()

    def _take(self, record: ConsumerRecord) -> None:
        tp = TopicPartition(record.topic, record.partition)
        held = self._held_for(tp)
        held.progress[tp].take(record.offset)
        job = self._handler.job_for(record)
        if job is None:
            held.progress[tp].finish(record.offset)
            return
        lane = held.lanes.setdefault(job.lane, Lane())
        lane.waiting.append((record, job))
        if lane.task is None:
            lane.task = self._run_task(self._run_lane(held, job.lane, lane))

    async def _run_lane(self, held: Held, name: str, lane: Lane) -> None:
        await held.ready.wait()
        while lane.waiting and not held.revoked:
            record, job = lane.waiting[0]
            await job.perform(Turn(held, lane, self._membership))
            lane.claimed = False
            lane.waiting.popleft()
            held.progress[TopicPartition(record.topic, record.partition)].finish(record.offset)
        del held.lanes[name]

    def _balance(self) -> None:
        """Pause the partitions with too much in hand, resume those that have caught up."""
        assigned = self.consumer.assignment()
        for held in self._held.values():
            tps = [tp for tp in held.progress if tp in assigned]
            if not held.paused and held.in_hand >= MAX_IN_HAND:
                self.consumer.pause(*tps)
                held.paused = True
            elif held.paused and held.in_hand <= MAX_IN_HAND // 2:
                self.consumer.resume(*tps)
                held.paused = False

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_EVERY_S)
            await self._commit(list(self._held.values()))

    async def _commit(self, held: Iterable[Held]) -> None:
        """Commit what is done. What cannot be committed will be done again, from memory."""
        assigned = self.consumer.assignment()
        offsets = {
            tp: offset
            for one in held
            for tp, progress in one.progress.items()
            if (offset := progress.committable) is not None
            and tp in assigned
            and self._committed.get(tp) != offset
        }
        if not offsets:
            return
        try:
            async with asyncio.timeout(COMMIT_LIMIT_S):
                await self.consumer.commit(self.footing.marked(offsets))
        except (CommitFailedError, IllegalStateError, TimeoutError) as error:
            log.warning("offsets_not_committed", group=self._handler.group, error=repr(error))
        else:
            self._committed.update(offsets)

    def _held_for(self, tp: TopicPartition) -> Held:
        """Find what we hold. Records may arrive just before we are told that we hold them."""
        held = self._held.setdefault(tp.partition, Held(tp.partition))
        held.progress.setdefault(tp, Progress())
        return held

    def _run_task(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End `run` with this error, the first of them if there are more."""
        log.error("consumer_failed", group=self._handler.group, error=repr(error))
        if self._failure is None:
            self._failure = error
        self._failed.set()

    async def _leave(self) -> None:
        await self.footing.stop()
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self.consumer.stop()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # A fetch that aiokafka cancelled before it had begun. Nobody asked us to end here: it
            # must not hide what we end of.
            log.warning("group_not_left", group=self._handler.group, error="cancelled by aiokafka")
        except (TimeoutError, KafkaError) as error:
            log.warning("group_not_left", group=self._handler.group, error=repr(error))


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # untyped in aiokafka
    """Passes the group's word on."""

    def __init__(self, owner: OrderedConsumer) -> None:
        self._owner = owner

    async def on_partitions_revoked(self, _revoked: list[TopicPartition]) -> None:
        """Everything is taken away, before it is given out anew."""
        await self._owner.release()

    async def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        """We hold these from now on."""
        await self._owner.take_over(assigned)
