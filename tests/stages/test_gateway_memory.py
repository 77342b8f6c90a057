"""The gateway's memory on a log that does what Kafka may: acks late, writers beside each other."""

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from typing import cast

import orjson
import pytest
from aiokafka.structs import ConsumerRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_stream.core.errors import TerminalError
from agents_stream.stages.gateway import memory as memory_module
from agents_stream.stages.gateway.memory import (
    FORGET_AFTER_MS,
    GatewayMemory,
    PartitionMemory,
    group_of,
)
from agents_stream.stages.gateway.memory_log import MemoryLog, Written
from agents_stream.stages.tools.results import Attempt, failed

ATTEMPTS = [Attempt(f"c{number}", "s1", "whatsapp.message.send", 1) for number in range(3)]


class Log:
    """One partition of a compacted topic. Everything takes as long as the seed says, or no time."""

    def __init__(self, seed: int | None = None, *, tells_offsets: bool = True) -> None:
        self.records: list[ConsumerRecord] = []
        self.end = 0
        self.reads = 0
        self._random = None if seed is None else random.Random(seed)
        self._tells_offsets = tells_offsets

    async def append(self, _partition: int, key: str, value: bytes | None) -> Written:
        """Append after a while, and tell of it after another."""
        await self._pass_time()
        offset, self.end = self.end, self.end + 1
        self.records.append(_record(offset, key, value))
        await self._pass_time()
        return Written(offset if self._tells_offsets else None, _stamp(offset))

    async def read(
        self, starts: Mapping[int, int | None], until: Mapping[int, int] | None = None
    ) -> AsyncGenerator[ConsumerRecord, None]:
        """Give the records of a span."""
        self.reads += 1
        start, end = starts[0] or 0, self.end if until is None else until[0]
        for record in list(self.records):
            if start <= record.offset < end:
                await self._pass_time()
                yield record

    def compact(self) -> None:
        """Keep the last record of each key."""
        last = {record.key: record.offset for record in self.records}
        self.records = [one for one in self.records if last[one.key] == one.offset]

    async def _pass_time(self) -> None:
        for _ in range(self._random.choice((0, 0, 1, 2, 5)) if self._random else 0):
            await asyncio.sleep(0)


def _stamp(offset: int) -> int:
    return 1_000 + offset


def _record(offset: int, key: str, value: bytes | None) -> ConsumerRecord:
    return ConsumerRecord(
        topic="m", partition=0, offset=offset, timestamp=_stamp(offset), timestamp_type=1,
        key=key.encode(), value=value, checksum=None, serialized_key_size=0,
        serialized_value_size=0, headers=(),
    )  # fmt: skip


def memory_on(log: Log, run_id: str) -> PartitionMemory:
    """Give the memory of one gateway."""
    return PartitionMemory(cast("MemoryLog", log), 0, run_id)


def result_of(attempt: Attempt, who: str) -> dict[str, object]:
    """Give a result that tells whose it is."""
    return failed(attempt, who, "", retryable=True)


async def perform(memory: PartitionMemory, attempt: Attempt, who: str, calls: list[str]) -> bytes:
    """Do what the performer does with a WhatsApp message."""
    known = memory.recall(attempt)
    if known is None and await memory.start(attempt):
        calls.append(attempt.key)
    elif (known := memory.recall(attempt)) is not None and known.result is not None:
        return known.result
    return await memory.finish(attempt, result_of(attempt, who))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_of_two_gateways_that_believe_they_own_a_partition_one_calls(
    seed: int,
    tells_offsets: bool,  # noqa: FBT001 - drawn
) -> None:
    """One call per attempt, and one result, however two gateways' writes mix (G6).

    After compaction a third gateway knows the same result.
    """

    async def scenario() -> None:
        log, calls = Log(seed, tells_offsets=tells_offsets), list[str]()
        gateways = [memory_on(log, "a"), memory_on(log, "b")]
        results = await asyncio.gather(
            *(perform(one, attempt, one._run_id, calls) for one in gateways for attempt in ATTEMPTS)
        )
        assert sorted(set(calls)) == sorted(calls), "performed twice"
        for index, _attempt in enumerate(ATTEMPTS):
            assert results[index] == results[index + len(ATTEMPTS)], "two results"
        log.compact()
        later = memory_on(log, "c")
        await later.catch_up()
        for index, attempt in enumerate(ATTEMPTS):
            known = later.recall(attempt)
            assert known is not None
            assert known.result == results[index], "the log tells another result"

    asyncio.run(scenario())


async def test_one_writer_never_reads() -> None:
    """While nobody else writes, the own offsets say so and cost no read."""
    log = Log()
    memory = memory_on(log, "a")
    await asyncio.gather(*(perform(memory, attempt, "a", []) for attempt in ATTEMPTS))
    assert log.reads == 0


async def test_a_start_that_comes_behind_anothers_end_leaves_the_end_last() -> None:
    """A paused gateway's late start gets no right to call, and compaction keeps the end (G6)."""
    log = Log()
    owner, paused = memory_on(log, "owner"), memory_on(log, "paused")
    assert await owner.start(ATTEMPTS[0])
    result = await owner.finish(ATTEMPTS[0], result_of(ATTEMPTS[0], "owner"))
    assert not await paused.start(ATTEMPTS[0])
    log.compact()
    again = memory_on(log, "again")
    await again.catch_up()
    known = again.recall(ATTEMPTS[0])
    assert known is not None
    assert known.result == result


async def test_started_without_an_end_is_known_after_a_restart() -> None:
    """It counts as sent without an answer: the next run knows who began it, and no result."""
    log = Log()
    assert await memory_on(log, "before").start(ATTEMPTS[0])
    after = memory_on(log, "after")
    await after.catch_up()
    known = after.recall(ATTEMPTS[0])
    assert known is not None
    assert (known.started_by, known.result) == ("before", None)
    assert after.recall(Attempt("c0", "s1", "whatsapp.message.send", 2)) is None


async def test_what_is_too_old_is_forgotten_in_the_log_too() -> None:
    """The memory is bounded by age; its topic too, by tombstones."""
    log = Log()
    memory = memory_on(log, "a")
    await memory.join("g")
    for attempt in ATTEMPTS:
        await memory.start(attempt)
    assert await memory.forget_old(_stamp(0) + FORGET_AFTER_MS) == 0
    assert await memory.forget_old(_stamp(2) + FORGET_AFTER_MS) == 1
    assert memory.recall(ATTEMPTS[0]) is None
    assert memory.recall(ATTEMPTS[1]) is not None
    log.compact()
    later = memory_on(log, "b")
    await later.catch_up()
    assert later.size == 2
    assert later.has_joined("g")


async def test_what_is_too_much_is_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is bounded by number, whatever the age, a bounded number at once."""
    monkeypatch.setattr(memory_module, "MAX_REMEMBERED", 1)
    monkeypatch.setattr(memory_module, "MAX_FORGOTTEN_AT_ONCE", 1)
    memory = memory_on(Log(), "a")
    for attempt in ATTEMPTS:
        await memory.start(attempt)
    assert [await memory.forget_old(0) for _ in range(3)] == [1, 1, 0]
    assert [memory.recall(attempt) is None for attempt in ATTEMPTS] == [True, True, False]


async def test_foreign_and_newer_records_are_met() -> None:
    """Garbage on the topic stops nothing (G10); a newer version's memory ends the process."""
    log = Log()
    for value in (b"{", b"[]", b'"x"', b"{}"):
        await log.append(0, "c0/1", value)
    memory = memory_on(log, "a")
    await memory.catch_up()
    assert memory.recall(ATTEMPTS[0]) is None
    await log.append(0, "c0/1", orjson.dumps({"v": 2}))
    with pytest.raises(TerminalError, match="newer version"):
        await memory.catch_up()


async def test_a_partition_that_stays_is_only_caught_up_with() -> None:
    """After a rebalance what another gateway wrote meanwhile is known, what left is dropped."""
    log = Log()
    memory = GatewayMemory(cast("MemoryLog", log), "a")
    await memory.open({0})
    kept = memory[0]
    assert await kept.start(ATTEMPTS[0])
    await memory_on(log, "b").start(ATTEMPTS[1])
    await memory.open({0})
    assert memory[0] is kept
    assert kept.recall(ATTEMPTS[1]) is not None
    await memory.open(set())
    with pytest.raises(KeyError):
        memory[0]


async def test_a_marker_names_its_group() -> None:
    """Markers are told from attempts by their key."""
    log = Log()
    memory = memory_on(log, "a")
    await memory.join("g")
    await memory.join("g")
    await memory.start(ATTEMPTS[0])
    assert [group_of(record) for record in log.records] == ["g", None]
