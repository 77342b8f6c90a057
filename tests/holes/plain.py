"""A plain Faust program as a process, and what it leaves in Kafka."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import TopicPartition

from agents_stream.kafka.connection import client_options
from agents_stream.settings import Settings
from tests.holes.seen import read_all, until

ROOT = Path(__file__).resolve().parents[2]
SOON_S = 30.0


@dataclass
class Program:
    """A plain Faust program that runs, and what it has said so far."""

    log: Path
    process: "subprocess.Popen[bytes]"

    def facts(self, what: str) -> list[dict[str, Any]]:
        """Everything of one kind that it has said."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        whole = [line for line in lines if line.startswith('{"what"') and line.endswith("}")]
        said = [json.loads(line) for line in whole]
        return [fact for fact in said if fact["what"] == what]

    def offsets(self, what: str) -> list[int]:
        """The offsets of the events of which it has said this, in order, each once."""
        return sorted({fact["offset"] for fact in self.facts(what)})

    async def until(
        self, what: str, count: int = 1, seconds: float = SOON_S, **having: Any
    ) -> list[dict[str, Any]]:
        """Wait until it has said something so often, with these values."""

        def found() -> list[dict[str, Any]]:
            return [fact for fact in self.facts(what) if having.items() <= fact.items()]

        await until(lambda: len(found()) >= count, self.tail, seconds)
        return found()

    def logged(self, text: str) -> list[str]:
        """The lines of its log that hold a text."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return [line for line in lines if text in line]

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text("utf-8", "replace")[-3_000:]

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Let it leave its group."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(SOON_S)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass
class PlainWorld:
    """A topic of events for one plain program, a producer, and eyes on Kafka."""

    settings: Settings
    producer: AIOKafkaProducer
    admin: AIOKafkaAdminClient
    partitions: int
    programs: list[Program] = field(default_factory=list)

    @property
    def place(self) -> str:
        """What the app and its topics are named after."""
        return self.settings.topic_prefix.rstrip(".")

    @property
    def events(self) -> str:
        """The topic of events."""
        return f"{self.place}-events"

    @property
    def changelog(self) -> str:
        """The changelog of the table `rows`, as Faust names it."""
        return f"{self.place}-rows-changelog"

    def run(self, story: str, broker: str | None = None, **more: str) -> Program:
        """Start a program. `broker`: a proxy's address, if it is to go through one."""
        number = len(self.programs)
        data = self.settings.data_dir / f"plain-{number}"
        data.mkdir(parents=True)
        log = self.settings.data_dir / f"plain-{number}.log"
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOLE_PLACE": self.place,
            "HOLE_PARTITIONS": str(self.partitions),
            "HOLE_BROKER": broker or self.settings.bootstrap_servers,
            "HOLE_DATA": str(data),
            **more,
        }
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.holes.plain_faust", story],
                env=env,
                cwd=data,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self.programs.append(Program(log, process))
        return self.programs[-1]

    async def ready(self, story: str, broker: str | None = None, **more: str) -> Program:
        """Start a program and wait until it works."""
        program = self.run(story, broker, **more)
        await program.until("ready")
        return program

    async def send(self, key: str, value: bytes = b"x", partition: int = 0) -> float:
        """Publish an event, wait for the ack, and say when it came."""
        await self.producer.send_and_wait(self.events, value, key=key.encode(), partition=partition)
        return time.time()

    async def send_all(self, keys: Iterable[str], value: bytes) -> None:
        """Publish events in one batch."""
        batch = self.producer.create_batch()
        for key in keys:
            assert batch.append(key=key.encode(), value=value, timestamp=None) is not None
        await (await self.producer.send_batch(batch, self.events, partition=0))

    async def committed(self) -> int:
        """Below which offset of the first partition the group will never read again."""
        offsets = await self.admin.list_consumer_group_offsets(self.place)
        place = offsets.get(TopicPartition(self.events, 0))
        return max(0, place.offset) if place is not None else 0

    async def until_committed(self, offset: int) -> None:
        """Wait for the group's offset."""
        reached = 0
        async with asyncio.timeout(SOON_S):
            while reached < offset:
                await asyncio.sleep(0.05)
                reached = await self.committed()
        assert reached == offset

    async def create(self, topic: str, **config: str) -> None:
        """Make a topic; an underscore in a setting's name stands for a dot."""
        configs = {name.replace("_", "."): value for name, value in config.items()}
        await self.admin.create_topics([NewTopic(topic, self.partitions, 1, topic_configs=configs)])

    async def rows(self) -> dict[str, Any]:
        """What the changelog holds: what any restart will find."""
        records = await read_all(self.settings, self.changelog, self.partitions)
        return {json.loads(record.key): json.loads(record.value) for record in records}


@asynccontextmanager
async def plain_world(settings: Settings, partitions: int = 1) -> AsyncIterator[PlainWorld]:
    """A topic of events and whoever looks at it; every program is ended afterwards."""
    producer = AIOKafkaProducer(**client_options(settings), acks="all", max_batch_size=2**20)
    admin = AIOKafkaAdminClient(**client_options(settings))
    await producer.start()
    await admin.start()
    one = PlainWorld(settings, producer, admin, partitions)
    try:
        await one.create(one.events)
        yield one
    finally:
        for program in one.programs:
            program.kill()
        topics = [name for name in await admin.list_topics() if name.startswith(one.place)]
        await admin.delete_topics(topics)
        await admin.close()
        await producer.stop()
