"""Performing commands: each attempt is called once at most, and every one gets a result.

The order of steps is the guarantee (G6): recall, start written, call, end written, result
published, offset committed. What a crash between any two leaves behind stands in `memory.py`.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.structs import ConsumerRecord

from agents_stream.core.errors import InvalidEvent
from agents_stream.kafka.topics import TOOL_RESULTS, load_topics
from agents_stream.settings import Settings
from agents_stream.stages.gateway import metrics
from agents_stream.stages.gateway.commands import Command, read_command
from agents_stream.stages.gateway.consuming import Job, Turn
from agents_stream.stages.gateway.dead import DeadLetters
from agents_stream.stages.gateway.memory import GatewayMemory, PartitionMemory, Remembered
from agents_stream.stages.gateway.memory_log import wall_ms
from agents_stream.stages.tools.catalog import Tool
from agents_stream.stages.tools.http_call import HttpCaller, Limits
from agents_stream.stages.tools.results import (
    NOT_SENT,
    Result,
    failed,
    interrupted,
    judge,
)

log = structlog.get_logger()

KEY_HEADER: Final = "Idempotency-Key"
# A lane that no session has: what could not be read. Session ids are never empty.
_UNREADABLE: Final = ""


class Performer:
    """The handler of the tool topics."""

    def __init__(
        self,
        settings: Settings,
        tools: tuple[Tool, ...],
        memory: GatewayMemory,
        producer: AIOKafkaProducer,
        dead_letters: DeadLetters,
    ) -> None:
        prefix = settings.topic_prefix
        self.group = settings.gateway_group_id
        self._tools: Mapping[str, Tool] = {prefix + tool.topic: tool for tool in tools}
        self.topics = tuple(self._tools)
        self._results = load_topics().name(TOOL_RESULTS, prefix)
        self._memory = memory
        self._producer = producer
        self._dead_letters = dead_letters
        self._slots = asyncio.Semaphore(settings.tool_concurrency)
        self._under_way: dict[str, asyncio.Event] = {}
        limits = limits_of(settings)
        self._callers = {
            tool.name: HttpCaller(
                tool.endpoint, limits, settings.tool_concurrency, reuse=tool.idempotent
            )
            for tool in tools
            if tool.endpoint is not None
        }

    async def close(self) -> None:
        """Close the connections to the tools."""
        for caller in self._callers.values():
            await caller.close()

    async def open(self, numbers: set[int]) -> None:
        """Load the memory of these partitions."""
        await self._memory.open(numbers)

    async def begin(self, numbers: set[int]) -> None:
        """Write down that the group has begun there."""
        for number in numbers:
            await self._memory[number].join(self.group)

    def job_for(self, record: ConsumerRecord) -> Job:
        """Perform a command in its session's lane; bury what is none."""
        tool = self._tools[record.topic]
        try:
            command = read_command(tool, record.value)
        except InvalidEvent as error:
            reason, detail = error.reason, error.detail
            return Job(_UNREADABLE, lambda _: self._dead_letters.bury(record, reason, detail))
        number = record.partition
        return Job(
            command.attempt.session_id, lambda turn: self._perform(number, tool, command, turn)
        )

    async def _perform(self, number: int, tool: Tool, command: Command, turn: Turn) -> None:
        """Do what is left to do of an attempt, and publish its result."""
        memory, attempt = self._memory[number], command.attempt
        while (event := self._under_way.get(attempt.key)) is not None:
            # We held this partition before, and the call of that time has not ended yet.
            await event.wait()
        known = memory.recall(attempt)
        if known is not None and known.result is not None:
            result, how = known.result, "repeated"
        else:
            self._under_way[attempt.key] = asyncio.Event()
            try:
                result, how = await self._end_of(memory, tool, command, known, turn)
            finally:
                self._under_way.pop(attempt.key).set()
        await self._producer.send_and_wait(
            self._results, value=result, key=attempt.session_id.encode()
        )
        metrics.commands.labels(tool=tool.name, status=how).inc()
        log.info(
            "command_performed",
            tool=tool.name,
            session_id=attempt.session_id,
            command_id=attempt.command_id,
            attempt=attempt.number,
            status=how,
        )

    async def _end_of(
        self,
        memory: PartitionMemory,
        tool: Tool,
        command: Command,
        known: Remembered | None,
        turn: Turn,
    ) -> tuple[bytes, str]:
        """Bring an attempt to its end: never started, or started and then interrupted."""
        attempt, caller = command.attempt, self._callers[tool.name]
        if known is not None and not tool.idempotent:
            result = interrupted(attempt)
        else:
            async with self._slots:
                await turn.claim()
                if known is None and not await memory.start(attempt):
                    # Somebody else was first. What he wrote down is known now.
                    other = memory.recall(attempt)
                    if other is not None and other.result is not None:
                        return other.result, "repeated"
                    result = await self._repeat(tool, command, caller, turn)
                else:
                    result = await self._call(tool, command, caller, turn)
        return await memory.finish(attempt, result), str(result["status"])

    async def _repeat(self, tool: Tool, command: Command, caller: HttpCaller, turn: Turn) -> Result:
        """Another gateway started this attempt and has not ended it: it counts as sent."""
        if tool.idempotent:
            return await self._call(tool, command, caller, turn)
        return interrupted(command.attempt)

    async def _call(self, tool: Tool, command: Command, caller: HttpCaller, turn: Turn) -> Result:
        if not turn.still_holds():
            message = "This gateway was paused before it sent anything"
            return failed(command.attempt, NOT_SENT, message, retryable=True)
        began = time.monotonic()
        with metrics.in_flight.labels(target=tool.name).track_inprogress():
            headers = {KEY_HEADER: command.attempt.command_id}
            reply = await caller.post(command.body, headers)
        metrics.http_seconds.labels(target=tool.name).observe(time.monotonic() - began)
        return judge(tool, command.attempt, reply, wall_ms())


def limits_of(settings: Settings) -> Limits:
    """Give the limits of every HTTP call, as the settings say."""
    return Limits(settings.tool_connect_timeout / 1000, settings.tool_read_timeout / 1000)
