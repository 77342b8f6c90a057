"""aiokafka's producer and consumer, played over the simulated brokers."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from aiokafka.errors import IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata, RecordMetadata, TopicPartition

from agents_stream.kafka.survey import Survey, TopicSeen
from agents_stream.kafka.topics import partition_for
from tests.simulation.brokers import Acked, Draft, Stored
from tests.simulation.coordinator import Coordinator
from tests.simulation.loop import current

if TYPE_CHECKING:
    from tests.simulation.world import World

SURVEY_LIMIT_S: Final = 20.0
IDLE_S: Final = 1.0  # a poll that brings nothing: longer than aiokafka's, which costs steps only

Queued = tuple[list[Draft], "asyncio.Future[RecordMetadata]"]


class Batch:
    """What `create_batch` gives: records up to a limit of bytes and of records."""

    def __init__(self, max_bytes: int, max_records: int) -> None:
        self.drafts: list[Draft] = []
        self._left = max_bytes
        self._max_records = max_records

    def append(
        self,
        *,
        key: bytes | None,
        value: bytes | None,
        timestamp: int | None,
        headers: Sequence[tuple[str, bytes]],
    ) -> object | None:
        """Take a record, or None where the batch is full; the first always fits."""
        size = len(key or b"") + len(value or b"") + 70
        full = size > self._left or len(self.drafts) >= self._max_records
        if self.drafts and full:
            return None
        self._left -= size
        self.drafts.append(Draft(key, value, tuple(headers), timestamp))
        return self

    def record_count(self) -> int:
        """How many there are."""
        return len(self.drafts)


class SimProducer:
    """An idempotent producer: per partition one batch after the other, each until it is acked."""

    def __init__(self, world: "World", **options: Any) -> None:
        process = current()
        assert process is not None
        self.world, self.process = world, process
        self._max_bytes = int(options.get("max_batch_size", 16_384))
        self._pid = world.new_producer_id() if options.get("enable_idempotence") else None
        self._sequences: dict[tuple[str, int], int] = {}
        self._queues: dict[tuple[str, int], deque[Queued]] = {}

    async def start(self) -> None:
        """Connect."""
        await self.world.network.ask(self.process, "connect", lambda: None)

    async def stop(self) -> None:
        """Flush."""
        while self.process.alive and any(self._queues.values()):  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.05)

    def create_batch(self) -> Batch:
        """Begin a batch."""
        return Batch(self._max_bytes, self.world.plan.shape.batch_records)

    async def send_batch(
        self, batch: Batch, topic: str, *, partition: int
    ) -> "asyncio.Future[RecordMetadata]":
        """Queue a batch; the future is its ack."""
        return self._enqueue(topic, partition, batch.drafts)

    async def send(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> "asyncio.Future[RecordMetadata]":
        """Queue a record; the future is its ack."""
        if partition is None:
            partition = partition_for(key or b"", self.world.plan.shape.partitions)
        return self._enqueue(topic, partition, [Draft(key, value, headers)])

    async def send_and_wait(self, topic: str, **record: Any) -> RecordMetadata:
        """Send a record and wait for its ack."""
        return await (await self.send(topic, **record))

    def _enqueue(
        self, topic: str, partition: int, drafts: list[Draft]
    ) -> "asyncio.Future[RecordMetadata]":
        self.process.check()
        acked: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        place = (topic, partition)
        queue = self._queues.setdefault(place, deque())
        queue.append((drafts, acked))
        if len(queue) == 1:
            asyncio.get_running_loop().create_task(self._drain(place, queue))
        return acked

    async def _drain(self, place: tuple[str, int], queue: deque[Queued]) -> None:
        log = self.world.cluster.logs[place]
        while queue:
            drafts, waiting = queue[0]
            sequence = self._sequences.get(place, 0)
            producer = None if self._pid is None else (self._pid, sequence)
            landed: list[Acked] = []

            def act(
                drafts: list[Draft] = drafts,
                producer: tuple[int, int] | None = producer,
                landed: list[Acked] = landed,
            ) -> Acked:
                landed.append(log.append(drafts, self.process.name, producer))
                return landed[-1]

            try:
                acked = await self.world.network.ask(self.process, f"produce {place[0]}", act)
            except KafkaError as error:
                if not waiting.done():
                    waiting.set_exception(error)
                    waiting.exception()  # whoever waits sees it; nobody has to
            else:
                if not waiting.done():
                    waiting.set_result(_metadata(place, acked, log.appended_by_time))
            if landed:
                self._sequences[place] = sequence + len(drafts)
            queue.popleft()


def _metadata(place: tuple[str, int], acked: Acked, by_time: bool) -> RecordMetadata:  # noqa: FBT001
    told = by_time and acked.timestamp >= 0
    stamp = acked.timestamp if told else None
    tp = TopicPartition(*place)
    return RecordMetadata(*place, tp, acked.offset, stamp, int(told), 0)


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
            listeners.get((tp.topic, tp.partition), set()).discard(self._news.set)
        for tp in tps:
            listeners.setdefault((tp.topic, tp.partition), set()).add(self._news.set)
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
        known = None if self.guard is None else self.guard._epochs.get((tp.topic, tp.partition))
        for record in records if known is not None else ():
            known.note(record.offset, record.epoch)


class SimSurveyor:
    """What the brokers say about topics and leaders, in the place of `Surveyor`."""

    def __init__(self, world: "World", _: Any) -> None:
        process = current()
        assert process is not None
        self.world, self.process = world, process

    async def start(self) -> None:
        """Connect."""
        await self.world.network.ask(self.process, "connect", lambda: None)

    async def stop(self) -> None:
        """Nothing is open."""

    async def look(self, topics: Iterable[str]) -> Survey:
        """Every topic's id and leaders."""

        def act() -> Survey:
            return Survey("cluster", {topic: self._seen(topic) for topic in names})

        names = list(topics)
        return await self.world.network.ask(self.process, "survey", act, SURVEY_LIMIT_S)

    def _seen(self, topic: str) -> TopicSeen:
        logs = self.world.cluster.topic(topic)
        epochs = {log.number: log.epoch for log in logs}
        return TopicSeen(f"id of {topic}", epochs, {log.number: log.leader for log in logs})

    async def epoch_ends(self, epochs: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        """Where leaders' epochs ended."""

        def act() -> dict[tuple[str, int], int]:
            logs = self.world.cluster.logs
            return {place: logs[place].epoch_end(epoch) for place, epoch in epochs.items()}

        return await self.world.network.ask(self.process, "survey", act, SURVEY_LIMIT_S)
