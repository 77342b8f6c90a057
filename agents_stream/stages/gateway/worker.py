"""The gateway's process: what it is made of, and how it starts and ends."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from agents_stream.core.errors import TerminalError
from agents_stream.kafka.connection import client_options, in_our_words, require_broker
from agents_stream.kafka.resumption import Resumption
from agents_stream.kafka.topics import (
    DEAD_LETTERS,
    GATEWAY_MEMORY,
    OUTCOMES,
    PROMOS_OFFERED,
    TOOL_RESULTS,
)
from agents_stream.settings import Settings
from agents_stream.stages.gateway.consuming import Handler, OrderedConsumer
from agents_stream.stages.gateway.dead import DeadLetters
from agents_stream.stages.gateway.memory import GatewayMemory
from agents_stream.stages.gateway.memory_log import MemoryLog
from agents_stream.stages.gateway.performer import Performer, limits_of
from agents_stream.stages.gateway.starting import refuse_lost_offsets, refuse_unfit_topics
from agents_stream.stages.gateway.webhook import Webhook
from agents_stream.stages.tools.catalog import Endpoint, Tool, endpoint_of, tools_of

log = structlog.get_logger()

MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
# A bound for a rebalance and for a stop; below the group's rebalance timeout of 60 s.
MAX_DRAIN_S: Final = 45.0
FORGET_EVERY_S: Final = 60.0
WATCH_EVERY_S: Final = 10.0
BROKER_LIMIT_S: Final = 20.0
SILENT_LIMIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Plan:
    """What this gateway is configured to do: the tools that have a URL, and the engine."""

    tools: tuple[Tool, ...]
    engine: Endpoint | None

    @property
    def performs(self) -> bool:
        """Whether it performs commands at all."""
        return bool(self.tools)

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics it needs, without prefix."""
        names = [GATEWAY_MEMORY, DEAD_LETTERS]
        if self.performs:
            names += [TOOL_RESULTS, *(tool.topic for tool in self.tools)]
        if self.engine is not None:
            names += [OUTCOMES, PROMOS_OFFERED]
        return tuple(names)


async def run_gateway(
    settings: Settings, stop: asyncio.Event, resumption: Resumption | None = None
) -> None:
    """Perform tool commands and tell the engine, until `stop` is set.

    At `stop` it ends and records the calls under way, at most MAX_DRAIN_S, and returns.

    Raises:
        TerminalError: it cannot work as configured; the message says what to do.
        BrokerUnreachable: Kafka does not answer, or has stopped answering.

    """
    resumption = resumption or Resumption(allowed=False)
    settings = resumption.settings_of_this_life(settings)
    plan = _plan(settings)
    await asyncio.sleep(resumption.pause_s)
    # httpx logs each URL at INFO; ours may carry a customer's or a tool's secret.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        await resumption.require_broker(settings, BROKER_LIMIT_S)
        await refuse_unfit_topics(settings, plan.topics)
        async with _members(settings, plan) as members:
            log.info(
                "gateway_started",
                tools=[tool.name for tool in plan.tools],
                engine_webhook=plan.engine is not None,
            )
            resumption.ready()
            await _run_all(settings, members, stop)
    except KafkaError as error:
        raise in_our_words(settings, error) from error
    log.info("gateway_stopped")


def _plan(settings: Settings) -> _Plan:
    secret = settings.engine_webhook_secret
    if secret is not None and not secret.get_secret_value():
        raise TerminalError("AGENTS_STREAM_ENGINE_WEBHOOK_SECRET is empty")
    engine = endpoint_of("ENGINE_WEBHOOK", settings.engine_webhook_url, None)
    # A team may perform a tool itself: commands of a tool that has no URL here are left to it.
    plan = _Plan(tuple(tool for tool in tools_of(settings) if tool.endpoint), engine)
    if not plan.performs and engine is None:
        raise TerminalError(
            "the gateway has nothing to call: set AGENTS_STREAM_WHATSAPP_URL, AGENTS_STREAM_CRM_URL"
            " or AGENTS_STREAM_ENGINE_WEBHOOK_URL"
        )
    return plan


@dataclass(frozen=True, slots=True)
class _Members:
    consumers: tuple[OrderedConsumer, ...]
    memory: GatewayMemory


@asynccontextmanager
async def _members(settings: Settings, plan: _Plan) -> AsyncIterator[_Members]:
    """Connect everything, and close it in the opposite order."""
    async with AsyncExitStack() as stack:
        producer = AIOKafkaProducer(
            **client_options(settings),
            acks="all",
            enable_idempotence=True,
            max_request_size=MAX_REQUEST_BYTES,
            metadata_max_age_ms=60_000,
        )
        await producer.start()
        stack.push_async_callback(producer.stop)
        memory_log = MemoryLog(settings, producer)
        memory = GatewayMemory(memory_log, uuid.uuid4().hex)
        dead_letters = DeadLetters(settings, producer)
        handlers: list[Performer | Webhook] = []
        if plan.performs:
            handlers.append(Performer(settings, plan.tools, memory, producer, dead_letters))
        if plan.engine is not None:
            handlers.append(Webhook(settings, plan.engine, memory_log, dead_letters))
        consumers = []
        for handler in handlers:
            stack.push_async_callback(handler.close)
            consumers.append(await _consumer(settings, handler, memory_log, stack))
        yield _Members(tuple(consumers), memory)


async def _consumer(
    settings: Settings, handler: Handler, memory_log: MemoryLog, stack: AsyncExitStack
) -> OrderedConsumer:
    drain_s = min(limits_of(settings).total_s + 1, MAX_DRAIN_S)
    ordered = OrderedConsumer(settings, handler, drain_s)
    await ordered.start()
    stack.push_async_callback(ordered.close)
    await refuse_lost_offsets(
        settings,
        ordered.footing.ground,
        ordered.consumer,
        handler.topics,
        handler.group,
        memory_log,
    )
    return ordered


async def _run_all(settings: Settings, members: _Members, stop: asyncio.Event) -> None:
    """Run everything until `stop`, or until one part fails; then all of it ends in order."""
    ending = asyncio.Event()
    parts = [asyncio.create_task(one.run(ending)) for one in members.consumers]
    parts.append(asyncio.create_task(_forget_regularly(members.memory)))
    parts.append(asyncio.create_task(_watch_broker(settings)))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([*parts, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        ending.set()
        stopping.cancel()
        for task in parts[len(members.consumers) :]:
            task.cancel()
        results = await asyncio.gather(*parts, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    if not stop.is_set():
        raise TerminalError("a part of the gateway ended, and nobody asked it to")


async def _forget_regularly(memory: GatewayMemory) -> None:
    while True:
        await asyncio.sleep(FORGET_EVERY_S)
        await memory.forget_old()


async def _watch_broker(settings: Settings) -> None:
    """End the process when Kafka has been silent for too long: aiokafka would wait for ever."""
    while True:
        await asyncio.sleep(WATCH_EVERY_S)
        await require_broker(settings, SILENT_LIMIT_S)
