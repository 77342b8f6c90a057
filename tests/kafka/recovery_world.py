"""A recovery over a fake Kafka: what its tests do to it, and what they see."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from aiokafka.structs import TopicPartition

from agents_stream.kafka import recovery as recovery_module
from agents_stream.kafka.appender import Line
from agents_stream.kafka.ground import Finding
from agents_stream.kafka.marks import Found, judge
from agents_stream.kafka.recovery import ChangelogRecovery
from agents_stream.kafka.store import MemoryStore
from agents_stream.kafka.topics import SESSIONS_CHANGELOG
from tests.kafka.fakes import Read, World

JOURNAL = "session.journal"


def row(offset: int, text: str = "", timestamp: int | None = None) -> bytes:
    """A record's bytes, as far as recovery looks at them."""
    at = offset if timestamp is None else timestamp
    return orjson.dumps({"journal_offset": offset, "journal_timestamp": at, "text": text})


class FakeReader:
    """The consumer that reads the changelog back, a few records at a time."""

    def __init__(self, recovering: "Recovering") -> None:
        self.recovering = recovering
        self.kafka = recovering.world.kafka
        self.positions: dict[TopicPartition, int] = {}

    async def start(self) -> None:
        """Nothing to connect."""

    async def stop(self) -> None:
        """Nothing to disconnect."""

    def assign(self, tps: Iterable[TopicPartition]) -> None:
        """Read these."""
        self.positions = dict.fromkeys(tps, 0)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Start there."""
        self.positions[tp] = offset

    async def beginning_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """All begin at zero."""
        return dict.fromkeys(tps, 0)

    async def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Where they end now."""
        return {tp: len(self.kafka.log[tuple(tp)]) for tp in tps}

    async def offsets_for_times(
        self, times: dict[TopicPartition, int]
    ) -> dict[TopicPartition, SimpleNamespace | None]:
        """The first record that is as young; one without a stamp has just been written."""
        found: dict[TopicPartition, SimpleNamespace | None] = dict.fromkeys(times)
        for tp, since_ms in times.items():
            for offset, line in reversed(list(enumerate(self.kafka.log[tuple(tp)]))):
                if line.timestamp_ms is None or line.timestamp_ms >= since_ms:
                    found[tp] = SimpleNamespace(offset=offset)
        return found

    async def position(self, tp: TopicPartition) -> int:
        """How far it has been read."""
        return self.positions[tp]

    async def getmany(self, **_: Any) -> dict[TopicPartition, list[Read]]:
        """Three records of each partition."""
        await asyncio.sleep(0)
        if self.recovering.reading is not None:
            await self.recovering.reading()
        fetched = {}
        for tp, start in self.positions.items():
            lines = self.kafka.log[tuple(tp)][start : start + 3]
            self.positions[tp] += len(lines)
            fetched[tp] = [
                Read(tp.topic, tp.partition, start + index, 0, line.key, line.value)
                for index, line in enumerate(lines)
            ]
        return fetched


WELL = Found(committed=0, beginning=0, end=0)


class FakeTable:
    """The table's partitions, without Faust."""

    def __init__(self) -> None:
        self.partitions_owned: dict[int, MemoryStore] = {}
        self.changelog_offsets: dict[int, int] = {}
        self.opened: list[int] = []
        self.found: dict[int, int] = {}

    def open(self, partition: int, *, trusted: bool = True) -> MemoryStore:
        """Take a store into use; `found` says how far rows on disk are complete."""
        self.opened.append(partition)
        store = MemoryStore()
        if partition in self.found and trusted:
            store.resume_offset = lambda: self.found[partition]  # type: ignore[method-assign]
        self.partitions_owned[partition] = store
        return store

    def close_partition(self, partition: int, *, complete: bool) -> None:
        """Put it away."""
        assert not complete
        self.partitions_owned.pop(partition).close(None)
        self.changelog_offsets.pop(partition, None)

    def row(self, partition: int, key: bytes) -> bytes | None:
        """A row."""
        return self.partitions_owned[partition].get(key)


@dataclass
class Recovering:
    """A recovery under way, and what it did."""

    world: World
    recovery: ChangelogRecovery
    table: FakeTable
    seeks: list[list[int]] = field(default_factory=list)
    emptied: int = 0
    flowing: list[list[int]] = field(default_factory=list)
    rebuilt: list[int] = field(default_factory=list)
    during_seek: Any = None
    reading: Any = None
    is_member: bool = True

    @property
    def changelog(self) -> str:
        """The topic."""
        return SESSIONS_CHANGELOG

    def wrote(
        self, partition: int, *rows: tuple[bytes, bytes | None], at_ms: int | None = None
    ) -> None:
        """Let the changelog have records."""
        for key, value in rows:
            line = Line(key, value, (), at_ms)
            self.world.kafka.log[self.changelog, partition].append(line)

    async def assign(self, generation: int, *partitions: int) -> None:
        """A generation begins."""
        assigned = {TopicPartition(topic, number) for topic in self.topics for number in partitions}
        self.recovery.app.consumer_generation_id = generation
        await self.recovery.on_rebalance(assigned, set(), set(), generation)

    def revoke(self) -> None:
        """A rebalance begins."""
        self.recovery.on_partitions_revoked(set())
        self.recovery.app.flow_control.active = False
        self.world.engine.membership.forget()
        self.is_member = False
        self.world.consumer.epoch += 1

    def prove(self) -> None:
        """A heartbeat is answered."""
        self.is_member = True
        self.world.engine.membership.proven_at_ms = 1.0
        self.world.engine.membership.proven_stamp_ms = 1_000_000

    @property
    def topics(self) -> tuple[str, str]:
        """The topics of the app."""
        return (JOURNAL, self.changelog)

    async def settle(self) -> None:
        """Let everything happen that can."""
        for _ in range(200):
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        for _ in range(50):
            await asyncio.sleep(0)


def made(world: World, monkeypatch: pytest.MonkeyPatch) -> Recovering:
    """Put the parts together."""
    recovering: Recovering
    table = FakeTable()
    monkeypatch.setattr(recovery_module, "AIOKafkaConsumer", lambda **_: FakeReader(recovering))
    monkeypatch.setattr("agents_stream.kafka.membership._AGAIN_S", 0.001)

    async def nothing(*_: Any) -> None:
        return None

    async def seek(partitions: frozenset[int]) -> None:
        recovering.seeks.append(sorted(partitions))
        if recovering.during_seek is not None:
            await recovering.during_seek()

    def empty_queues() -> None:
        recovering.emptied += 1
        flow_control.active = True

    async def examine(partitions: Iterable[int]) -> dict[int, Finding]:
        return {number: Finding(WELL, judge(WELL)) for number in partitions}

    world.consumer.examine_changelog = examine  # type: ignore[attr-defined]
    flow_control = SimpleNamespace(active=False, resume=empty_queues)
    flow_control.is_active = lambda: flow_control.active
    world.consumer.perform_seek = seek  # type: ignore[attr-defined]
    world.consumer.resume_flow = lambda: None  # type: ignore[attr-defined]
    world.consumer.assignment = set  # type: ignore[attr-defined]
    world.consumer.inputs_of = lambda partitions: partitions  # type: ignore[attr-defined]
    world.consumer.resume_partitions = (  # type: ignore[attr-defined]
        lambda partitions: recovering.flowing.append(sorted(partitions))
    )
    app = SimpleNamespace(
        engine=world.engine,
        consumer=world.consumer,
        consumer_generation_id=None,
        topics=SimpleNamespace(_topic_name_index={JOURNAL: 0, SESSIONS_CHANGELOG: 0}),
        on_rebalance_complete=SimpleNamespace(send=nothing),
        flow_control=flow_control,
        _fetcher=SimpleNamespace(maybe_start=nothing),
        on_rebalance_end=lambda: None,
    )
    tables = Tables(table)

    async def heartbeat() -> bool:
        if recovering.is_member:
            recovering.prove()
        return recovering.is_member

    world.engine.membership._heartbeat = heartbeat
    recovering = Recovering(world, ChangelogRecovery(app, tables), table)  # type: ignore[arg-type]

    async def rebuild(partition: int) -> None:
        recovering.rebuilt.append(partition)

    world.engine.assign_hooks.append(rebuild)
    return recovering


class Tables(dict[str, FakeTable]):
    """The table manager."""

    def __init__(self, table: FakeTable) -> None:
        super().__init__(sessions=table)

    def on_actives_ready(self) -> None:
        """Faust's bookkeeping."""

    on_standbys_ready = on_actives_ready


def ends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note why the process would end, and end the task instead."""
    reasons: list[str] = []

    def fail(reason: str, *_: Any) -> None:
        reasons.append(reason)
        raise asyncio.CancelledError

    monkeypatch.setattr(recovery_module, "fail_stop", fail)
    return reasons
