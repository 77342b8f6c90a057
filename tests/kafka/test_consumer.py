"""Faust's consumer, hardened: every hole of FAUST.md that a mock can show."""

import asyncio
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    UnknownError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from agents_stream.kafka import consumer as consumer_module
from agents_stream.kafka.consumer import Batch, BatchConsumer
from agents_stream.kafka.engine import consumer_of, create_app
from agents_stream.kafka.topics import ACTIONS, JOURNAL
from tests.kafka.fakes import Ended, Read, World

A, B = TopicPartition(JOURNAL, 0), TopicPartition(ACTIONS, 0)


class FakeClient:
    """aiokafka's consumer: assigned partitions with positions, and what was asked of it."""

    def __init__(self, tps: Iterable[TopicPartition]) -> None:
        self.states = {
            tp: SimpleNamespace(position=0, has_valid_position=True, paused=False) for tp in tps
        }
        self.committed: dict[TopicPartition, int] = {}
        self.begins: dict[TopicPartition, int] = {}
        self.ends: dict[TopicPartition, int] = {}
        self.commits: list[dict[TopicPartition, int]] = []
        self.refuse: Exception | None = None
        self.hang: asyncio.Event | None = None
        self.fetches: list[Any] = []
        self.asked: Any = None
        self._coordinator = self

    @property
    def _subscription(self) -> Any:
        assignment = SimpleNamespace(tps=set(self.states), state_value=self.states.get)
        return SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))

    def assignment(self) -> set[TopicPartition]:
        """What is assigned."""
        return set(self.states)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Move."""
        self.states[tp].position = offset

    def pause(self, *tps: TopicPartition) -> None:
        """Stop fetching."""
        for tp in tps:
            self.states[tp].paused = True

    def resume(self, *tps: TopicPartition) -> None:
        """Fetch again."""
        for tp in tps:
            self.states[tp].paused = False

    async def fetch_committed_offsets(self, tps: Iterable[TopicPartition]) -> Any:
        """What the group has committed; -1 where it has not."""
        if self.asked is not None:
            await self.asked()
        return {tp: OffsetAndMetadata(self.committed.get(tp, -1), "") for tp in tps}

    async def beginning_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Where they begin."""
        return {tp: self.begins.get(tp, 0) for tp in tps}

    async def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Where they end."""
        return {tp: self.ends.get(tp, 0) for tp in tps}

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """Commit, or refuse."""
        if self.hang is not None:
            await self.hang.wait()
        if self.refuse is not None:
            raise self.refuse
        self.commits.append({tp: meta.offset for tp, meta in offsets.items()})
        self.committed |= self.commits[-1]

    async def getmany(self, **_: Any) -> Any:
        """Bring what is next; then nothing more."""
        await asyncio.sleep(0)
        if not self.fetches:
            await asyncio.sleep(0.05)
            return {}
        fetched = self.fetches.pop(0)
        if isinstance(fetched, BaseException):
            raise fetched
        for tp, records in fetched.items():
            self.states[tp].position = records[-1].offset + 1
        return fetched


class Consuming:
    """A consumer over a fake client, with one queue for both topics."""

    def __init__(self, world: World, tps: Iterable[TopicPartition] = (A, B)) -> None:
        self.world = world
        self.app = create_app(world.engine)
        self.consumer: BatchConsumer = consumer_of(self.app)
        self.client = FakeClient(tps)
        self.consumer._thread._consumer = self.client
        self.queue = self.app.FlowControlQueue(maxsize=4)
        channel = SimpleNamespace(queue=self.queue)
        for tp in tps:
            self.app.topics._tp_index[tp] = (channel,)  # type: ignore[attr-defined]
        self.consumer.assignment = lambda: set(tps)  # type: ignore[method-assign]

    def batches(self) -> list[Batch]:
        """What has been delivered since the last time."""
        found = []
        while not self.queue.empty():
            found.append(self.queue.get_nowait())
        return found

    async def drain(self, seconds: float = 0.05) -> None:
        """Let it consume for a while."""
        fetcher = SimpleNamespace(should_stop=False)
        draining = asyncio.create_task(self.consumer._drain_messages(fetcher))
        await asyncio.sleep(seconds)
        fetcher.should_stop = True
        await draining


@pytest.fixture
async def one(monkeypatch: pytest.MonkeyPatch) -> Consuming:
    """A consumer of two partitions that has been assigned and is at its start."""
    monkeypatch.setattr(consumer_module, "POLL_S", 0.005)
    consuming = Consuming(World.made(monkeypatch))
    await consuming.consumer.perform_seek({0})
    consuming.client.commits.clear()
    return consuming


def records(tp: TopicPartition, *offsets: int, size: int = 1) -> list[Read]:
    """Records of a partition."""
    return [
        Read(tp.topic, tp.partition, offset, 1_000_000 + offset, b"k", b"x" * size)
        for offset in offsets
    ]


async def test_a_fetch_is_handed_on_by_partition_with_its_position(one: Consuming) -> None:
    """The first poll tells every position; afterwards only what brought records or moved."""
    await one.drain()
    assert {(batch.topic, batch.position) for batch in one.batches()} == {
        (JOURNAL, 0),
        (ACTIONS, 0),
    }
    one.client.fetches = [{A: records(A, 0, 1)}]
    await one.drain()
    [batch] = one.batches()
    assert [record.offset for record in batch.records] == [0, 1]
    assert (batch.topic, batch.partition, batch.position) == (JOURNAL, 0, 2)
    one.client.states[B].position = 3  # two transaction markers and an aborted record
    await one.drain()
    [batch] = one.batches()
    assert (batch.topic, batch.records, batch.position) == (ACTIONS, (), 3)


async def test_everything_is_taken_while_the_stages_are_busy(one: Consuming) -> None:
    """No partition is left out of the next long poll (the "1.5 s stall"), however much waits."""
    one.client.fetches = [{A: records(A, number)} for number in range(20)]
    await one.drain(0.2)
    assert not one.client.fetches
    assert len(one.batches()) == 21


async def test_a_partition_with_too_much_in_hand_rests_until_half_is_done(one: Consuming) -> None:
    """G11: memory is bounded; the other partitions go on."""
    one.world.engine.max_backlog_bytes = 1_900
    one.client.fetches = [{A: records(A, number, size=300)} for number in range(3)]
    await one.drain()
    assert (one.client.states[A].paused, one.client.states[B].paused) == (True, False)
    one.consumer.done(JOURNAL, 0, 1)
    assert one.client.states[A].paused
    one.consumer.done(JOURNAL, 0, 2)
    assert not one.client.states[A].paused


async def test_what_comes_while_the_flow_is_stopped_is_read_again(one: Consuming) -> None:
    """G1: nothing is skipped because a rebalance began during a fetch."""
    fetched = {A: records(A, 5, 6)}
    one.client.states[A].position = 7
    one.consumer.stop_flow()
    one.consumer._take(fetched)
    assert (one.client.states[A].position, one.batches()) == (5, [])


async def test_a_stopped_flow_fetches_nothing(one: Consuming) -> None:
    """Nor does it spin or pile up tasks."""
    one.consumer.stop_flow()
    one.client.fetches = [{A: records(A, 0)}]
    tasks = len(asyncio.all_tasks())
    await one.drain(0.1)
    assert len(one.client.fetches) == 1
    assert len(asyncio.all_tasks()) <= tasks
    assert one.consumer.stalled_s() == 0


@pytest.mark.parametrize("error", [KafkaConnectionError("gone"), KeyError("a bug")], ids=str)
async def test_an_error_while_consuming_ends_the_process(one: Consuming, error: Exception) -> None:
    """G11: Faust's fetcher would die, and the worker would go on without input."""
    one.client.fetches = [error]
    with pytest.raises(Ended, match="consuming"):
        await one.drain()


async def test_only_what_is_done_is_committed(one: Consuming) -> None:
    """H3, H6: whatever was delivered; and each offset once."""
    one.client.fetches = [{A: records(A, 0, 1, 2), B: records(B, 0, 1)}]
    await one.drain()
    assert not await one.consumer.commit()
    one.consumer.done(JOURNAL, 0, 2)
    assert await one.consumer.commit()
    assert one.client.commits == [{A: 2}]
    assert not await one.consumer.commit()


async def test_a_refused_commit_counts_as_none(one: Consuming) -> None:
    """H4: what Kafka did not take is committed the next time, or done again by the next owner."""
    one.consumer.done(JOURNAL, 0, 2)
    for error in (CommitFailedError(), KafkaConnectionError()):
        one.client.refuse = error
        assert not await one.consumer.commit()
    one.client.refuse = None
    assert await one.consumer.commit()
    assert one.client.commits == [{A: 2}]


@pytest.mark.parametrize("error", [GroupAuthorizationFailedError(), UnknownError()], ids=repr)
async def test_a_commit_that_can_never_succeed_ends_the_process(
    one: Consuming, error: Exception
) -> None:
    """G11: no worker that works for ever and commits nothing."""
    one.consumer.done(JOURNAL, 0, 2)
    one.client.refuse = error
    with pytest.raises(Ended, match="committing"):
        await one.consumer.commit()


async def test_a_revoke_commits_what_is_done_and_forgets(one: Consuming) -> None:
    """H6: nothing done in one generation is committed in another."""
    one.consumer.done(JOURNAL, 0, 2)
    forgotten: list[bool] = []
    one.world.engine.revoke_hooks.append(lambda: forgotten.append(True))
    await one.consumer.wait_empty()
    assert one.client.commits == [{A: 2}]
    assert one.world.engine.membership.proven_at_ms is None
    assert (one.consumer.epoch, forgotten) == (1, [True])
    one.client.committed.clear()
    assert not await one.consumer.commit()
    one.client.fetches = [{A: records(A, 2)}]
    await one.drain()
    assert one.batches() == []  # until the next seek says where to begin


async def test_what_a_revoke_could_not_commit_is_never_committed(one: Consuming) -> None:
    """H6: by the next generation it is another's to say."""
    one.consumer.done(JOURNAL, 0, 2)
    one.client.refuse = CommitFailedError()
    await one.consumer.wait_empty()
    one.client.refuse = None
    assert not await one.consumer.commit()


async def test_a_revoke_waits_for_the_batch_in_hand(one: Consuming) -> None:
    """What the stage does before it lets go is committed with this generation."""
    stage = SimpleNamespace(lock=asyncio.Lock())
    one.world.engine.stages.append(stage)
    await stage.lock.acquire()
    revoking = asyncio.create_task(one.consumer.wait_empty())
    await asyncio.sleep(0.01)
    assert not revoking.done()
    one.consumer.done(JOURNAL, 0, 9)
    stage.lock.release()
    await revoking
    assert one.client.commits == [{A: 9}]
    assert not stage.lock.locked()


async def test_a_stage_that_does_not_let_go_ends_the_process(
    one: Consuming, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G11: a rebalance waits for nobody for ever."""
    monkeypatch.setattr(consumer_module, "REVOKE_LIMIT_S", 0.02)
    stage = SimpleNamespace(lock=asyncio.Lock())
    one.world.engine.stages.append(stage)
    await stage.lock.acquire()
    with pytest.raises(Ended, match="did not finish its batch"):
        await one.consumer.wait_empty()


async def test_a_worker_begins_at_its_committed_offsets(one: Consuming) -> None:
    """Where the group has none it begins at the beginning, and says so to Kafka at once."""
    one.client.committed = {A: 7}
    one.client.ends = {A: 9}
    await one.consumer.perform_seek({0})
    assert (one.client.states[A].position, one.client.states[B].position) == (7, 0)
    assert one.client.commits == [{B: 0}]


async def test_a_topic_that_ends_before_its_offset_is_read_from_its_beginning(
    one: Consuming,
) -> None:
    """G1: without a mark (an older version's commit) nobody knows from where on it is another."""
    one.client.committed, one.client.ends = {A: 100, B: 0}, {A: 3}
    await one.consumer.perform_seek({0})
    assert one.client.states[A].position == 0
    assert one.client.commits == [{A: 0}]


async def test_what_retention_took_is_passed(one: Consuming) -> None:
    """A deleted head is no reason to reset anything else."""
    one.client.committed, one.client.begins, one.client.ends = {A: 5, B: 0}, {A: 20}, {A: 30}
    await one.consumer.perform_seek({0})
    assert one.client.states[A].position == 20


async def test_a_forgotten_group_does_not_do_everything_again(one: Consuming) -> None:
    """DESIGN §4: actions without a committed offset need a word from the user."""
    one.client.committed, one.client.ends = {}, {A: 10, B: 10}
    with pytest.raises(Ended, match="AGENTS_STREAM_START_FROM"):
        await one.consumer.perform_seek({0})


@pytest.mark.parametrize(("start", "position"), [("earliest", 0), ("latest", 10)])
async def test_the_user_says_where_a_forgotten_group_begins(
    monkeypatch: pytest.MonkeyPatch, start: str, position: int
) -> None:
    """G1: it is about the actions; events that nobody has applied are never skipped."""
    one = Consuming(World.made(monkeypatch, start_from=start))
    one.client.ends = {A: 10, B: 10}
    await one.consumer.perform_seek({0})
    assert one.client.states[B].position == position
    assert one.client.states[A].position == 0


async def test_a_rebalance_during_the_seek_leaves_nothing_behind(one: Consuming) -> None:
    """Two rebalances in a row: positions of partitions that have gone are nobody's."""
    await one.drain()
    one.batches()

    async def overtaken() -> None:
        one.client.asked = None
        await one.consumer.wait_empty()
        del one.client.states[B]

    one.client.asked = overtaken
    one.client.commits.clear()
    one.client.committed, one.client.ends = {A: 4}, {A: 9}
    await one.consumer.perform_seek({0})
    await one.drain()
    assert one.batches() == []
    assert not await one.consumer.commit()


async def test_a_flow_that_is_open_and_not_polled_is_noticed(one: Consuming) -> None:
    """G11: the watchdog's gauge."""
    one.app.flow_control.resume()
    one.consumer.resume_flow()
    await asyncio.sleep(0.02)
    assert one.consumer.stalled_s() > 0.01
    await one.drain(0.01)
    assert one.consumer.stalled_s() < 0.1
