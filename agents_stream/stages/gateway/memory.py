"""What the gateway remembers of each attempt, so that it performs none twice (G6).

The memory is the compacted topic `tool.gateway.memory`. An attempt's records lie in the partition
of the same number as its command's, so the memory follows a rebalance; its key is
`<command id>/<attempt>`. A start is written before the call and an end, with the result, after it.

**The log decides, not the clock.** The first start of an attempt in the log gives the right to
call, the first end is its result. Every write learns from its own offset whether somebody else
wrote in between (offsets of one writer have no gaps), reads what that was, and obeys it. So two
gateways that both believe that they own a partition, one of them after a pause, cannot both call.

What a crash leaves behind:

1. before the start is in the log: nothing was sent, the attempt is performed when it comes again;
2. after the start, before the end: it counts as sent without an answer;
3. after the end, before the result is on `tool.results`: the stored result is published;
4. after that, before the offset is committed: the stored result is published again.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog
from aiokafka.structs import ConsumerRecord

from agents_stream.core.errors import TerminalError
from agents_stream.stages.gateway import metrics
from agents_stream.stages.gateway.memory_log import MemoryLog, wall_ms
from agents_stream.stages.tools.results import Attempt, Result

log = structlog.get_logger()

SCHEMA_VERSION: Final = 1
# An attempt comes again only if its record was not committed, or if the worker that published it
# crashed before it committed: both for as long as something is down. A week outlasts that, the
# longest retry (24 h), and the time after which a group's offsets are lost and we refuse to start.
FORGET_AFTER_MS: Final = 7 * 86_400_000
# About 25 MB per partition; what is older than so many attempts was committed long ago.
MAX_REMEMBERED: Final = 50_000
MAX_FORGOTTEN_AT_ONCE: Final = 500
_JOINED: Final = "joined/"


def marker_of(group: str) -> tuple[str, bytes]:
    """Key and value of the record which says that a group has begun on a partition.

    A group that has begun and has no offsets has lost them (Kafka forgets those of a group that
    was away for 7 days); one that never began has none yet. See `starting.py`.
    """
    line = {"v": SCHEMA_VERSION, "state": "joined", "at": wall_ms()}
    return _JOINED + group, orjson.dumps(line)


def group_of(record: ConsumerRecord) -> str | None:
    """Give the group that a marker is about; None for every other record."""
    key = (record.key or b"").decode("utf-8", "replace")
    return key.removeprefix(_JOINED) if key.startswith(_JOINED) else None


@dataclass(slots=True)
class Remembered:
    """One attempt: who started it and when (broker's time), and its result once it has ended."""

    started_by: str
    at_ms: int
    result: bytes | None = None


class PartitionMemory:
    """The memory of the commands of one partition."""

    def __init__(self, memory_log: MemoryLog, number: int, run_id: str) -> None:
        self.number = number
        self._log = memory_log
        self._run_id = run_id
        self._next: int | None = None
        self._attempts: dict[str, Remembered] = {}
        self._joined: set[str] = set()
        self._in_order = asyncio.Lock()

    @property
    def size(self) -> int:
        """How many attempts are remembered."""
        return len(self._attempts)

    @property
    def next_offset(self) -> int | None:
        """The first offset that has not been seen; None before anything was."""
        return self._next

    def recall(self, attempt: Attempt) -> Remembered | None:
        """Give what is known of an attempt."""
        return self._attempts.get(attempt.key)

    def has_joined(self, group: str) -> bool:
        """Whether a consumer group has ever begun on this partition."""
        return group in self._joined

    async def start(self, attempt: Attempt) -> bool:
        """Write a start down and wait for its ack.

        Returns:
            Whether it is the attempt's first in the log. Only then may the tool be called.

        Raises:
            KafkaError: it could not be written.

        """
        await self._write(attempt.key, self._line(attempt, "started", None))
        known = self._attempts[attempt.key]
        if known.result is not None:
            # Our start came behind the end. Compaction keeps what is last: let that be the end.
            await self._write(attempt.key, self._line(attempt, "done", known.result))
            return False
        return known.started_by == self._run_id

    async def finish(self, attempt: Attempt, result: Result) -> bytes:
        """Write an end down and wait for its ack.

        Returns:
            The result that counts, as JSON: the first in the log, which may be another's.

        Raises:
            KafkaError: it could not be written.

        """
        ours = orjson.dumps(result)
        await self._write(attempt.key, self._line(attempt, "done", ours))
        counts = self._attempts[attempt.key].result
        assert counts is not None, "an end was absorbed"
        if counts != ours:
            log.warning(
                "attempt_ended_elsewhere",
                session_id=attempt.session_id,
                command_id=attempt.command_id,
                attempt=attempt.number,
                ours=result["status"],
            )
            await self._write(attempt.key, self._line(attempt, "done", counts))
        return counts

    async def join(self, group: str) -> None:
        """Write down that a consumer group has begun on this partition."""
        if group not in self._joined:
            key, value = marker_of(group)
            await self._write(key, orjson.loads(value))

    async def forget_old(self, now_ms: int) -> int:
        """Forget attempts that are too old, or too many, a bounded number of them at once.

        Returns:
            How many were forgotten.

        """
        excess = len(self._attempts) - MAX_REMEMBERED
        old: list[str] = []
        for key, known in self._attempts.items():
            too_old = now_ms - known.at_ms > FORGET_AFTER_MS
            if len(old) == MAX_FORGOTTEN_AT_ONCE or not (too_old or len(old) < excess):
                break
            old.append(key)
        await asyncio.gather(*(self._write(key, None) for key in old))
        return len(old)

    def absorb(self, record: ConsumerRecord) -> None:
        """Take in a record that was read from the log.

        Raises:
            TerminalError: a newer version wrote it.

        """
        key = (record.key or b"").decode("utf-8", "replace")
        try:
            line = None if record.value is None else orjson.loads(record.value)
            self._absorb(record.offset, key, line, record.timestamp)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            # None of ours. What it was about counts as never started.
            log.exception("memory_record_unreadable", partition=self.number, offset=record.offset)

    async def catch_up(self, until: int | None = None) -> None:
        """Read what has been written since, up to the end, or up to an offset."""
        ends = None if until is None else {self.number: until}
        async with aclosing(self._log.read({self.number: self._next}, ends)) as records:
            async for record in records:
                self.absorb(record)
        if until is not None:
            self._next = max(self._next or 0, until)

    def _line(self, attempt: Attempt, state: str, result: bytes | None) -> dict[str, Any]:
        return {
            "v": SCHEMA_VERSION,
            "state": state,
            "commandId": attempt.command_id,
            "attempt": attempt.number,
            "sessionId": attempt.session_id,
            "tool": attempt.tool,
            "at": wall_ms(),
            "by": self._run_id,
            "result": None if result is None else orjson.loads(result),
        }

    async def _write(self, key: str, line: dict[str, Any] | None) -> None:
        """Append a line, take in whatever came before it, then the line itself."""
        value = None if line is None else orjson.dumps(line)
        before = self._next or 0
        written = await self._log.append(self.number, key, value)
        if written.offset is not None and written.offset < before:
            raise TerminalError(
                f"the gateway's memory (partition {self.number}) went back from offset {before} to "
                f"{written.offset}: its topic was made anew, or a broker lost its tail. Nothing is "
                "performed on it; at its restart the gateway says what follows"
            )
        # Under the lock, so that what lies before many own lines is read once.
        async with self._in_order:
            if written.offset is None:
                await self.catch_up()
                return
            if written.offset > (self._next or 0):
                await self.catch_up(written.offset)
            self._absorb(written.offset, key, line, written.timestamp_ms)

    def _absorb(
        self, offset: int, key: str, line: Mapping[str, Any] | None, timestamp_ms: int
    ) -> None:
        if offset < (self._next or 0):
            return
        self._next = offset + 1
        if line is None:
            self._attempts.pop(key, None)
            return
        if line["v"] > SCHEMA_VERSION:
            raise TerminalError(
                f"the gateway's memory was written by a newer version (schema {line['v']}):"
                " upgrade this gateway"
            )
        if key.startswith(_JOINED):
            self._joined.add(key.removeprefix(_JOINED))
            return
        known = self._attempts.setdefault(key, Remembered(line["by"], timestamp_ms))
        if known.result is None and line["result"] is not None:
            known.result = orjson.dumps(line["result"])


class GatewayMemory:
    """The memories of the partitions that this gateway holds."""

    def __init__(self, memory_log: MemoryLog, run_id: str) -> None:
        self._log = memory_log
        self._run_id = run_id
        self._partitions: dict[int, PartitionMemory] = {}

    def __getitem__(self, number: int) -> PartitionMemory:
        return self._partitions[number]

    async def open(self, numbers: set[int]) -> None:
        """Hold exactly these partitions, and know all that the log says about them.

        What was held before is only caught up with.

        Raises:
            KafkaError: Kafka cannot be read.
            TerminalError: a newer version wrote the memory.

        """
        self._partitions = {
            number: self._partitions.get(number, PartitionMemory(self._log, number, self._run_id))
            for number in sorted(numbers)
        }
        if numbers:
            starts = {number: one.next_offset for number, one in self._partitions.items()}
            opened = dict(self._partitions)
            async with aclosing(self._log.read(starts)) as records:
                async for record in records:
                    opened[record.partition].absorb(record)
        self._count()

    async def forget_old(self, now_ms: Callable[[], int] = wall_ms) -> None:
        """Forget what is too old, in every partition held."""
        for one in list(self._partitions.values()):
            forgotten = await one.forget_old(now_ms())
            if forgotten:
                log.info("attempts_forgotten", partition=one.number, count=forgotten)
        self._count()

    def _count(self) -> None:
        metrics.remembered.set(sum(one.size for one in self._partitions.values()))
