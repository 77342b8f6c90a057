"""aiokafka's producer and consumer, played over the simulated brokers."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from aiokafka.errors import IllegalStateError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from tests.simulation.brokers import Stored
from tests.simulation.coordinator import Coordinator
from tests.simulation.loop import current

if TYPE_CHECKING:
    from tests.simulation.world import World

SURVEY_LIMIT_S: Final = 20.0
IDLE_S: Final = 1.0  # a poll that brings nothing: longer than aiokafka's, which costs steps only


@dataclass(slots=True, eq=False)
class State:
    """How a consumer stands with one partition."""

    position: int = -1
    paused: bool = False
    slow_until: float = 0.0

    @property
    def has_valid_position(self) -> bool:
        """Whether it is known where to read."""
        return self.position >= 0


@dataclass(slots=True, eq=False)
class Assignment:
    """What a consumer has been given."""

    states: dict[TopicPartition, State] = field(default_factory=dict)

    @property
    def tps(self) -> set[TopicPartition]:
        """The partitions."""
        return set(self.states)

    def state_value(self, tp: Any) -> State | None:
        """The state of one of them."""
        return self.states.get(TopicPartition(tp[0], tp[1]))


class SimConsumer:
    """A consumer, with or without a group."""

    def __init__(self, world: "World", **options: Any) -> None:
        process = current()
        assert process is not None
        self.world, self.process, self.options = world, process, options
        self._given = Assignment()
        self._subscription = SimpleNamespace(subscription=SimpleNamespace(assignment=self._given))
        self._news = asyncio.Event()
        self._topics: Sequence[str] = ()
        group = options.get("group_id")
        self._coordinator = Coordinator(self, world.groups[group]) if group else None
        self._stopped = False
        self.reassigning = False
        self.guard: Any = None
        self._client = self

    # -- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, and take part in the group if there is one."""
        await self.world.network.ask(self.process, "connect", lambda: None)
        if self._coordinator is not None:
            self._coordinator.start()

    async def stop(self) -> None:
        """Leave the group, disconnect."""
        self._stopped = True
        if not self.process.alive:
            return
        self._listen(set())
        if self._coordinator is not None:
            await self._coordinator.close()

    async def set_topics(self, topics: Sequence[str]) -> None:
        """Learn where topics are: ours always know."""

    def subscribe(self, topics: Sequence[str], listener: Any) -> None:
        """Ask for topics."""
        assert self._coordinator is not None
        self._topics = tuple(topics)
        self._coordinator.subscribe(listener)

    def assign(self, tps: Iterable[TopicPartition]) -> None:
        """Take partitions without a group."""
        self._listen(set())
        self._given.states = {TopicPartition(*tp): State() for tp in tps}
        self._listen(self._given.tps)

    def take_over(self, numbers: frozenset[int]) -> set[TopicPartition]:
        """The group has given these partition numbers."""
        tps = {TopicPartition(topic, number) for topic in self._topics for number in numbers}
        self._given = Assignment()
        self._subscription.subscription.assignment = self._given
        self.assign(sorted(tps))
        self.reassigning = False
        return tps

    def assignment(self) -> set[TopicPartition]:
        """What it has."""
        return self._given.tps

    def _listen(self, tps: set[TopicPartition]) -> None:
        listeners = self.world.cluster.listeners
        for tp in self._given.states:
            listeners.get((tp.topic, tp.partition), {}).pop(self, None)
        for tp in tps:
            listeners.setdefault((tp.topic, tp.partition), {})[self] = self._news.set
        self._news.set()

    # -- positions --------------------------------------------------------------------------

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Read from there."""
        self._state(tp).position = offset
        self._news.set()

    def pause(self, *tps: TopicPartition) -> None:
        """Do not fetch."""
        for tp in tps:
            self._state(tp).paused = True

    def resume(self, *tps: TopicPartition) -> None:
        """Fetch again."""
        for tp in tps:
            self._state(tp).paused = False
        self._news.set()

    async def position(self, tp: TopicPartition) -> int:
        """The next offset."""
        while not self._state(tp).has_valid_position:  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.05)
        return self._state(tp).position

    def _state(self, tp: TopicPartition) -> State:
        state = self._given.state_value(tp)
        if state is None:
            raise IllegalStateError(f"Partition {tp} is not assigned")
        return state

    async def begin_where_committed(self) -> None:
        """Find the positions of a new assignment, as aiokafka does in the background."""
        assert self._coordinator is not None
        given = self._given
        missing = [tp for tp, state in given.states.items() if not state.has_valid_position]
        committed = await self._coordinator.fetch_committed_offsets(missing)
        for tp in missing:
            if not given.states[tp].has_valid_position:
                found = committed.get(tp)
                given.states[tp].position = 0 if found is None else found.offset
        self._news.set()

    async def committed(self, tp: TopicPartition) -> int | None:
        """What the group has committed."""
        assert self._coordinator is not None
        found = (await self._coordinator.fetch_committed_offsets([tp])).get(tp)
        return None if found is None else found.offset

    async def beginning_offsets(self, tps: Iterable[Any]) -> dict[Any, int]:
        """Where partitions begin."""
        return await self._bounds(list(tps), lambda tp: self.world.cluster.logs[tp].begin)

    async def end_offsets(self, tps: Iterable[Any]) -> dict[Any, int]:
        """Where partitions end: each broker is asked, and answers at its own moment."""
        return await self._bounds(list(tps), lambda tp: self.world.cluster.logs[tp].end)

    async def offsets_for_times(self, times: Mapping[Any, int]) -> dict[Any, Any]:
        """The first record that is as young, for each partition; None where none is."""

        def first(tp: tuple[str, int]) -> int:
            since_ms = times[TopicPartition(*tp)]
            young = (
                one for one in self.world.cluster.logs[tp].records if one.timestamp >= since_ms
            )
            return next((one.offset for one in young), -1)

        found = await self._bounds(list(times), first)
        return {
            tp: None if offset < 0 else SimpleNamespace(offset=offset)
            for tp, offset in found.items()
        }

    async def _bounds(
        self, tps: Sequence[Any], bound: Callable[[tuple[str, int]], int]
    ) -> dict[Any, int]:
        logs, network = self.world.cluster.logs, self.world.network
        by_broker: dict[int, list[Any]] = {}
        for tp in tps:
            by_broker.setdefault(logs[tp[0], tp[1]].leader, []).append(tp)

        async def ask(mine: list[Any]) -> dict[Any, int]:
            def act() -> dict[Any, int]:
                return {tp: bound((tp[0], tp[1])) for tp in mine}

            return await network.ask(self.process, "offsets", act)

        answers = await asyncio.gather(*(ask(mine) for mine in by_broker.values()))
        return {tp: offset for answer in answers for tp, offset in answer.items()}

    async def commit(self, offsets: Mapping[Any, Any]) -> None:
        """Commit offsets.

        Raises:
            IllegalStateError: one of the partitions is not assigned.
            CommitFailedError: the group has gone on.

        """
        assert self._coordinator is not None
        for tp in offsets:
            self._state(tp)
        plain = {
            tp: (meta.offset, meta.metadata) if isinstance(meta, OffsetAndMetadata) else (meta, "")
            for tp, meta in offsets.items()
        }
        await self._coordinator.commit(plain)

    # -- fetching ---------------------------------------------------------------------------

    async def getmany(
        self, *tps: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[Stored]]:
        """Fetch; some topics come later than others, and none comes whole."""
        loop, network = self.world.loop, self.world.network
        idle_s = IDLE_S if self._coordinator is not None else 0.0
        deadline = loop.time() + max(timeout_ms / 1_000, idle_s)
        await asyncio.sleep(network.latency())
        while True:
            self.process.check()
            if self.guard is not None and self.guard._held is not None:
                await self.guard._held()
            self._news.clear()
            may = network.reaches(self.process) and not self.reassigning
            if may and (fetched := self._fetch(tps, max_records)):
                return {tp: records for tp, records in fetched.items() if records}
            if loop.time() >= deadline or self._stopped:
                return {}
            alarm = loop.call_at(deadline, self._news.set)
            await self._news.wait()
            alarm.cancel()
            await asyncio.sleep(network.latency())

    def _fetch(
        self, tps: Sequence[TopicPartition], max_records: int | None
    ) -> dict[TopicPartition, list[Stored]]:
        """What is there to be read; an empty list where only the position moves."""
        world, now = self.world, self.world.loop.time()
        fetched: dict[TopicPartition, list[Stored]] = {}
        left = max_records or 10_000
        for tp, state in self._given.states.items():
            log = world.cluster.logs[tp.topic, tp.partition]
            if (
                (tps and tp not in tps)
                or state.paused
                or not 0 <= state.position < log.end
                or left <= 0
            ):
                continue
            if now < state.slow_until:
                continue
            if world.fetch_is_late():
                state.slow_until = now + world.late_by_s()
                world.loop.call_at(state.slow_until, self._news.set)
                continue
            limit = min(left, world.fetch_limit())
            fetched[tp], state.position = log.visible_from(state.position, limit)
            self._note_epochs(tp, fetched[tp])
            left -= len(fetched[tp])
        return fetched

    def _note_epochs(self, tp: TopicPartition, records: Sequence[Stored]) -> None:
        """What the guard reads from the heads of batches (`fetch_guard.py`)."""
        if self.guard is None or (tp.topic, tp.partition) not in self.guard._epochs:
            return
        for record in records:
            self.guard._epochs[tp.topic, tp.partition].note(record.offset, record.epoch)
