"""A cluster for tests: workers as processes, and a bystander who only knows Kafka and HTTP."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import ConsumerRecord, RecordMetadata
from pydantic import SecretStr

from agents_stream.kafka import topic_admin
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import load_topics
from agents_stream.settings import Settings
from tests.conftest import free_port

READY_S = 40.0
TOOLS = ("tool.whatsapp.message.send", "tool.crm.order.create")

Reply = Callable[[dict[str, Any]], dict[str, Any] | None]


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """Settings as the variables of a child process, secrets and all."""
    given = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        unit = "ms" if name.endswith(("timeout", "delay", "backoff")) else ""
        text = value.get_secret_value() if isinstance(value, SecretStr) else f"{value}{unit}"
        given[f"AGENTS_STREAM_{name.upper()}"] = text
    return {**os.environ, **given, **more}


@dataclass
class WorkerProcess:
    """One worker, at its own port."""

    settings: Settings
    port: int
    store: str = "memory"
    process: "subprocess.Popen[bytes] | None" = None
    log: str = ""

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start the process; it is not ready yet."""
        place = self.settings.data_dir / f"worker-{self.port}"
        place.mkdir(parents=True, exist_ok=True)
        self.log = str(place / "log.txt")
        env = environment(
            self.settings,
            AGENTS_STREAM_WEB_PORT=str(self.port),
            AGENTS_STREAM_STORE=self.store,
            AGENTS_STREAM_DATA_DIR=str(place),
        )
        with open(self.log, "ab") as out:  # noqa: PTH123 - handed to the child
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agents_stream", "worker"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        return self

    async def ready(self) -> Self:
        """Wait until it owns its partitions and has recovered."""
        deadline = time.monotonic() + READY_S
        async with httpx.AsyncClient(timeout=2) as http:
            while time.monotonic() < deadline:
                assert self.process is not None
                if self.process.poll() is not None:
                    raise AssertionError(f"the worker ended: {self.tail()}")
                try:
                    answer = await http.get(f"{self.url}/readyz")
                except httpx.HTTPError:
                    pass
                else:
                    if answer.status_code == 200:
                        return self
                await asyncio.sleep(0.1)
        raise AssertionError(f"not ready within {READY_S} s: {self.tail()}")

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it."""
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for its end; the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.send_signal(number)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the worker did not end: {self.tail()}") from None

    def tail(self) -> str:
        """The end of its log."""
        with open(self.log, errors="replace") as lines:  # noqa: PTH123
            return lines.read()[-3000:]


@dataclass
class Cluster:
    """What a test does and sees. `records` are those of the outgoing topics, as they came."""

    settings: Settings
    producer: AIOKafkaProducer
    reply: Reply
    records: dict[str, list[ConsumerRecord]] = field(default_factory=dict)
    workers: list[WorkerProcess] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def topic(self, name: str) -> str:
        """The full name of a topic."""
        return load_topics().name(name, self.settings.topic_prefix)

    def worker(self, store: str = "memory", port: int | None = None) -> WorkerProcess:
        """A worker, started."""
        one = WorkerProcess(self.settings, port or free_port(), store)
        self.workers.append(one.start())
        return one

    async def send(self, name: str, session: str, **data: Any) -> RecordMetadata:
        """Publish an event as bare data and wait for the ack, then for the next millisecond."""
        topic = self.topic(load_topics().events[name].name)
        value = orjson.dumps({"sessionId": session, **data})
        metadata = await self.producer.send_and_wait(topic, value, key=session.encode())
        await asyncio.sleep(0.002)
        return metadata

    async def open(self, session: str | None = None, contact: str | None = "contact-1") -> str:
        """Start a session."""
        session = session or f"s-{uuid.uuid4().hex[:10]}"
        await self.send(
            "agent/session.started",
            session,
            workspaceId="w-1",
            agentId="a-1",
            conversationId=f"c-{session}",
            contactId=contact,
            mode="intro",
        )
        return session

    async def collect(self, session: str) -> RecordMetadata:
        """Begin to collect data."""
        name = "agent/collecting_data.started"
        return await self.send(name, session, conversationId=f"c-{session}", workspaceId="w-1")

    async def offer(self, session: str) -> RecordMetadata:
        """Offer the packs."""
        return await self.send(
            "agent/promos.offered",
            session,
            conversationId=f"c-{session}",
            workspaceId="w-1",
            packOptions=["1x", "2x", "3x"],
        )

    async def message(self, session: str, content: str = "hola") -> RecordMetadata:
        """The customer writes."""
        return await self.send(
            "agent/customer.message",
            session,
            conversationId=f"c-{session}",
            messageId=uuid.uuid4().hex,
            content=content,
        )

    def values(self, name: str, session: str | None = None) -> list[dict[str, Any]]:
        """What has come on an outgoing topic (for a session), one per id and attempt."""
        seen: dict[Any, dict[str, Any]] = {}
        for record in self.records.get(self.topic(name), []):
            value = orjson.loads(record.value)
            if session is None or record.key == session.encode():
                seen.setdefault((value.get("id"), value.get("attempt")), value)
        return list(seen.values())

    def outcomes(self, session: str) -> list[tuple[str, str, str]]:
        """The outcomes of a session as (flow, status, action), in their order."""
        found = self.values("agent.outcomes", session)
        return [(item["flow"], item["status"], item["action"]) for item in found]

    def messages(self, session: str) -> list[str]:
        """The texts that were to be sent to the customer."""
        return [item["inputs"]["message"] for item in self.values(TOOLS[0], session)]

    async def until(self, condition: Callable[[], Any], seconds: float = 20.0) -> None:
        """Wait for something to be seen."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            logs = "\n".join(worker.tail() for worker in self.workers)
            raise AssertionError(f"not seen within {seconds} s; the workers say: {logs}") from None

    async def until_outcomes(
        self, session: str, *expected: tuple[str, str, str], seconds: float = 20.0
    ) -> None:
        """Wait for exactly these outcomes of a session, in this order."""
        await self.until(lambda: len(self.outcomes(session)) >= len(expected), seconds)
        assert self.outcomes(session) == list(expected)

    async def _listen(self, consumer: AIOKafkaConsumer) -> None:
        async for record in consumer:
            self.records.setdefault(record.topic, []).append(record)
            if record.topic in {self.topic(tool) for tool in TOOLS}:
                command = orjson.loads(record.value)
                result = self.reply(command)
                if result is not None:
                    await self.result(command, **result)
            self.changed.set()

    async def result(self, command: dict[str, Any], **result: Any) -> None:
        """Say how a command ended."""
        whole = {
            "commandId": command["id"],
            "sessionId": command["sessionId"],
            "tool": command["tool"],
            "attempt": command["attempt"],
            **result,
        }
        await self.producer.send_and_wait(
            self.topic("tool.results"), orjson.dumps(whole), key=command["sessionId"].encode()
        )


def succeed(command: dict[str, Any]) -> dict[str, Any]:
    """A tool that always works."""
    return {"status": "succeeded", "outputs": {"id": f"order-of-{command['sessionId']}"}}


@asynccontextmanager
async def cluster(
    settings: Settings, reply: Reply = succeed, unheard: Collection[str] = ()
) -> AsyncIterator[Cluster]:
    """Topics, a producer, a bystander that answers commands; every worker ended afterwards."""
    await topic_admin.apply(settings)
    producer = AIOKafkaProducer(
        **client_options(settings), acks="all", enable_idempotence=True, max_request_size=2**25
    )
    outputs = [spec.name for spec in load_topics().specs if spec.role == "output"]
    outgoing = [name for name in outputs if name not in unheard]
    one = Cluster(settings, producer, reply)
    consumer = AIOKafkaConsumer(
        *(one.topic(name) for name in outgoing),
        **client_options(settings),
        auto_offset_reset="earliest",
    )
    await producer.start()
    await consumer.start()
    listening = asyncio.create_task(one._listen(consumer))
    try:
        yield one
    finally:
        for worker in one.workers:
            worker.end(signal.SIGKILL)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await consumer.stop()
        await producer.stop()
