"""What the gateway meets, for tests: tools and an engine that can misbehave, and Kafka's topics."""

import asyncio
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import ConsumerRecord

from agents_stream.kafka import topic_admin
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import (
    CRM_ORDER_CREATE,
    DEAD_LETTERS,
    TOOL_RESULTS,
    WHATSAPP_MESSAGE_SEND,
    load_topics,
)
from agents_stream.settings import Settings
from agents_stream.stages.gateway import run_gateway
from tests.kafka.cluster import environment

PATIENCE_S = 25.0
WHATSAPP, CRM = "whatsapp.message.send", "crm.order.create"
_TOPICS = {WHATSAPP: WHATSAPP_MESSAGE_SEND, CRM: CRM_ORDER_CREATE}
_ROOT = Path(__file__).parents[2]
# HALT_AT names a step of an attempt. `crash` ends the process there, as a power cut would; `pause`
# stops it there until somebody continues it.
_PROCESS = """
import asyncio, os, signal
from aiokafka import AIOKafkaProducer
from agents_stream.settings import Settings
from agents_stream.stages.gateway import run_gateway
from agents_stream.stages.gateway.memory import PartitionMemory
from agents_stream.stages.tools.http_call import HttpCaller

STEPS = {
    "before start": (PartitionMemory, "start", False),
    "started": (PartitionMemory, "start", True),
    "before call": (HttpCaller, "post", False),
    "answered": (PartitionMemory, "finish", False),
    "ended": (PartitionMemory, "finish", True),
    "published": (AIOKafkaProducer, "send_and_wait", True),
}

def halt(owner, name, behind, how):
    original = getattr(owner, name)
    async def until_here(*args, **kwargs):
        setattr(owner, name, original)
        result = await original(*args, **kwargs) if behind else None
        print("halted at", name, flush=True)
        os._exit(9) if how == "crash" else os.kill(os.getpid(), signal.SIGSTOP)
        return result if behind else await original(*args, **kwargs)
    setattr(owner, name, until_here)

how, _, step = os.environ.get("HALT_AT", "").partition(" at ")
if step:
    halt(*STEPS[step], how)
asyncio.run(run_gateway(Settings(), asyncio.Event()))
"""


@dataclass
class Call:
    """One request that came in. `ended_at` is 0 while it is being answered."""

    path: str
    headers: dict[str, str]
    raw: bytes
    began_at: float
    ended_at: float = 0.0

    @property
    def key(self) -> str:
        """The idempotency key of a tool's call, the id of an engine's."""
        return self.headers.get("Idempotency-Key") or self.headers["x-agents-stream-id"]

    @property
    def body(self) -> Any:
        """The body as JSON."""
        return orjson.loads(self.raw)


Answer = Callable[[Call], Awaitable[web.StreamResponse]]


async def says_yes(call: Call) -> web.StreamResponse:
    """Succeed at once, with an id made from the key."""
    return web.json_response({"id": f"done-{call.key}"})


@dataclass
class World:
    """A prefix of its own on the broker, and the servers that the gateway calls."""

    settings: Settings
    producer: AIOKafkaProducer
    answer: Answer = says_yes
    calls: list[Call] = field(default_factory=list)
    records: dict[str, list[ConsumerRecord]] = field(default_factory=dict)

    def topic(self, name: str) -> str:
        """Give the full name of a topic."""
        return load_topics().name(name, self.settings.topic_prefix)

    async def command(
        self, command_id: str, session: str = "s1", tool: str = WHATSAPP, attempt: int = 1
    ) -> None:
        """Publish a command, as the effects do."""
        value = {
            "id": command_id,
            "tool": tool,
            "workspaceId": "w1",
            "sessionId": session,
            "attempt": attempt,
            "issuedAt": 1,
            "asOf": 1,
            "inputs": {"session": session, "message": "Hola"},
        }
        await self.publish(_TOPICS[tool], orjson.dumps(value), session)

    async def publish(self, name: str, value: bytes | None, key: str | None) -> None:
        """Publish a record and wait for its ack."""
        raw_key = None if key is None else key.encode()
        await self.producer.send_and_wait(self.topic(name), value, key=raw_key)

    def seen(self, name: str) -> list[Any]:
        """Give the values seen on a topic, as JSON, in the order of arrival."""
        return [orjson.loads(one.value) for one in self.records.get(self.topic(name), [])]

    @property
    def results(self) -> list[dict[str, Any]]:
        """The results published so far."""
        return self.seen(TOOL_RESULTS)

    def results_of(self, command_id: str) -> list[dict[str, Any]]:
        """Give the results of one command."""
        return [one for one in self.results if one["commandId"] == command_id]

    def calls_of(self, command_id: str) -> list[Call]:
        """Give the calls of one command."""
        return [one for one in self.calls if one.key == command_id]

    async def until(self, met: Callable[[], object], within_s: float = PATIENCE_S) -> None:
        """Wait until a condition is met."""
        deadline = time.monotonic() + within_s
        while not met():
            assert time.monotonic() < deadline, f"not met: {self.results=} {len(self.calls)=}"
            await asyncio.sleep(0.01)

    async def take(self, request: web.Request) -> web.StreamResponse:
        """Take a request down and answer it."""
        headers, raw = dict(request.headers), await request.read()
        call = Call(request.path, headers, raw, time.monotonic())
        self.calls.append(call)
        try:
            return await self.answer(call)
        finally:
            call.ended_at = time.monotonic()


@asynccontextmanager
async def world_of(settings: Settings, **more: Any) -> AsyncIterator[World]:
    """Make topics and servers, and follow what comes out."""
    async with AsyncExitStack() as stack:
        runner = web.AppRunner(app := web.Application(), access_log=None)
        stack.push_async_callback(runner.cleanup)
        producer = AIOKafkaProducer(**client_options(settings), acks="all")
        world = World(settings, producer)
        app.router.add_post("/{target}", world.take)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        urls = {"whatsapp_url": f"{url}/whatsapp", "crm_url": f"{url}/crm"}
        if more.pop("engine", False):
            urls["engine_webhook_url"] = f"{url}/engine"
        world.settings = settings.model_copy(update={**urls, **more})
        await topic_admin.apply(settings)
        await producer.start()
        stack.push_async_callback(producer.stop)
        names = [world.topic(name) for name in (TOOL_RESULTS, DEAD_LETTERS)]
        consumer = AIOKafkaConsumer(
            *names, **client_options(settings), auto_offset_reset="earliest", fetch_max_wait_ms=100
        )
        await consumer.start()
        stack.push_async_callback(consumer.stop)
        following = asyncio.create_task(_follow(consumer, world))
        stack.callback(following.cancel)
        yield world


async def _follow(consumer: AIOKafkaConsumer, world: World) -> None:
    async for record in consumer:
        world.records.setdefault(record.topic, []).append(record)


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[asyncio.Event]:
    """Run a gateway in this process; it ends with the block, or when the event is set."""
    stop = asyncio.Event()
    running = asyncio.create_task(run_gateway(settings, stop))
    try:
        yield stop
    finally:
        stop.set()
        await running


@asynccontextmanager
async def gateway_process(
    settings: Settings, log: Path, halt_at: str = ""
) -> AsyncIterator[Process]:
    """Run a gateway as a process of its own, to be killed or paused; its output goes to `log`."""
    env = environment(settings, PYTHONPATH=str(_ROOT), HALT_AT=halt_at)
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _PROCESS, env=env, stdout=out, stderr=out, cwd=log.parent
        )
    try:
        yield process
    except BaseException:
        said = log.read_text(errors="replace")  # noqa: ASYNC240 - the test has failed already
        print(said[-4000:])  # noqa: T201 - pytest shows it
        raise
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
