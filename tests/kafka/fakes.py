"""Stand-ins for what the engine does not own: Kafka, aiokafka's clients, the end of the process."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NoReturn, Self

import pytest

from agents_stream.kafka import consumer, engine, fail_stop, recovery, stage, starting, upkeep
from agents_stream.kafka.appender import Line, Pending
from agents_stream.kafka.engine import Engine
from agents_stream.settings import Settings
from agents_stream.stages import effects, ingress, sessions, timers

_STOPPING = (consumer, engine, fail_stop, recovery, stage, starting, timers, upkeep)
_APPENDING = (engine, effects, ingress, sessions, timers)


class Ended(BaseException):
    """The process would have ended here. No `except Exception` may hold it up."""

    def __init__(self, reason: str, code: int = 1) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


class Crash(BaseException):
    """The process is killed here, without a word."""


def end_by_raising(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `fail_stop` raise `Ended` wherever the engine calls it."""

    def fail(reason: str, error: BaseException | None = None, code: int = 1) -> NoReturn:
        raise Ended(reason, code) from error

    for module in _STOPPING:
        monkeypatch.setattr(module, "fail_stop", fail)


@dataclass(frozen=True)
class Read:
    """A record as aiokafka hands it on."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    timestamp_type: int = 1
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass
class FakeKafka:
    """A log per partition. `refuse_at` and `crash_at` name an append by its number, from 1.

    `crash_late`: the crash comes after the broker took the append, before its ack was seen.
    """

    log: dict[tuple[str, int], list[Line]] = field(default_factory=lambda: defaultdict(list))
    steps: list[str] = field(default_factory=list)
    appends: int = 0
    crash_at: int = 0
    crash_late: bool = False
    error: Exception | None = None

    def appender(self, *_args: Any) -> "FakeAppender":
        """Make an appender, in the place of `Appender`."""
        return FakeAppender(self)

    def lines(self, topic: str) -> list[Line]:
        """Everything on a topic, partition by partition."""
        return [line for place in sorted(self.log) if place[0] == topic for line in self.log[place]]


class FakeAppender:
    """Appends to the fake log, or does not."""

    def __init__(self, kafka: FakeKafka) -> None:
        self.kafka = kafka

    async def start(self) -> None:
        """Nothing to connect."""

    async def stop(self) -> None:
        """Nothing to disconnect."""

    async def append(self, pending: Pending) -> dict[tuple[str, int], int]:
        """Append, with the planned accident."""
        kafka = self.kafka
        kafka.appends += 1
        crash = kafka.appends == kafka.crash_at
        if kafka.error is not None:
            raise kafka.error
        if crash and not kafka.crash_late:
            raise Crash
        for place, lines in pending.lines.items():
            kafka.log[place] += lines
            kafka.steps.append(f"append {place[0]}")
        if crash:
            raise Crash
        return {place: len(kafka.log[place]) for place in pending.lines}


@dataclass
class FakeConsumer:
    """What a stage sees of the consumer."""

    kafka: FakeKafka
    epoch: int = 0
    flow_active: bool = True
    done_offsets: dict[tuple[str, int], int] = field(default_factory=dict)

    def done(self, topic: str, partition: int, offset: int) -> None:
        """Note it."""
        self.kafka.steps.append(f"done {topic}")
        self.done_offsets[topic, partition] = offset


@dataclass
class World:
    """An engine whose appenders write to a fake Kafka."""

    kafka: FakeKafka
    engine: Engine
    consumer: FakeConsumer

    @classmethod
    def made(cls, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Self:
        """Build it; the stages made afterwards take part in it."""
        end_by_raising(monkeypatch)
        kafka = FakeKafka()
        for module in _APPENDING:
            monkeypatch.setattr(module, "Appender", kafka.appender)
        monkeypatch.setattr(ingress, "EndOffsets", lambda _: ends_of({}))
        fake = FakeConsumer(kafka)
        monkeypatch.setattr(stage.BatchStage, "consumer", property(lambda _: fake))
        one = cls(kafka, Engine(Settings(partitions=4, **settings)), fake)
        one.engine.clock.observe(1_000_000)
        one.engine.membership.proven_at_ms = one.engine.clock._local_ms()
        one.engine.membership.proven_stamp_ms = 1_000_000
        return one


class FakeStream:
    """What a Faust agent iterates over: a channel with a queue."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.waiting = list(batches)
        self.channel = SimpleNamespace(queue=self)

    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self.waiting

    def get_nowait(self) -> Any:
        """Take the next one."""
        return self.waiting.pop(0)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if not self.waiting:
            raise StopAsyncIteration
        return self.waiting.pop(0)


def ends_of(offsets: Mapping[tuple[str, int], int]) -> Any:
    """Stand in for `EndOffsets`: the partitions end there, the others at zero."""

    async def ask(wanted: Any) -> dict[tuple[str, int], int]:
        return {place: offsets.get(place, 0) for place in wanted}

    return SimpleNamespace(ask=ask)
