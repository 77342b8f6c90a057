"""Our worker in the situations in which a plain Faust program loses something."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import ConsumerRecord, TopicPartition

from agents_stream.kafka import topic_admin
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import JOURNAL, SESSIONS_CHANGELOG, load_topics
from agents_stream.settings import Settings
from tests.conftest import free_port
from tests.holes.seen import configure, read_all, until
from tests.kafka.cluster import Cluster, WorkerProcess, cluster, environment

SOON_S = 30.0


@dataclass
class OurWorld:
    """A cluster of ours, and eyes on its topics."""

    cluster: Cluster
    admin: AIOKafkaAdminClient

    @property
    def settings(self) -> Settings:
        """Those of the cluster."""
        return self.cluster.settings

    @property
    def changelog(self) -> str:
        """The topic of the table."""
        return self.cluster.topic(SESSIONS_CHANGELOG)

    def worker(
        self, accident: str | None = None, broker: str | None = None, **more: str
    ) -> WorkerProcess:
        """A worker, started. `broker`: a proxy's address, if it is to go through one."""
        program = ["tests.holes.our_worker", *([accident] if accident else [])]
        return self.run(program, broker, **more)

    def run(self, program: Sequence[str], broker: str | None = None, **more: str) -> WorkerProcess:
        """A program of ours with a worker's settings, started."""
        port = free_port()
        place = self.settings.data_dir / f"worker-{port}"
        place.mkdir(parents=True)
        worker = WorkerProcess(self.settings, port, log=str(place / "log.txt"))
        env = environment(
            self.settings,
            AGENTS_STREAM_WEB_PORT=str(port),
            AGENTS_STREAM_DATA_DIR=str(place),
            PYTHONPATH=":".join(sys.path),
            **({"AGENTS_STREAM_BOOTSTRAP_SERVERS": broker} if broker else {}),
            **more,
        )
        with open(worker.log, "wb") as out:  # noqa: PTH123 - handed to the child
            worker.process = subprocess.Popen(
                [sys.executable, "-m", *program],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self.cluster.workers.append(worker)
        return worker

    async def ended(self, worker: WorkerProcess) -> int:
        """Wait until a worker has ended itself; its exit code."""
        assert worker.process is not None
        return await asyncio.to_thread(worker.process.wait, SOON_S)

    async def said(self, worker: WorkerProcess, text: str, count: int = 1) -> None:
        """Wait until a worker's log says this, so often."""
        await until(lambda: log_of(worker).count(text) >= count, worker.tail, SOON_S)

    async def journal(self) -> list[ConsumerRecord]:
        """Everything in the journal."""
        topic = self.cluster.topic(JOURNAL)
        return await read_all(self.settings, topic, self.settings.partitions)

    async def until_journal(self, entries: int) -> list[ConsumerRecord]:
        """Wait until the journal has so many entries."""
        return await self._until_many(JOURNAL, entries)

    async def until_changelog(self, records: int) -> list[ConsumerRecord]:
        """Wait until the changelog has so many records."""
        return await self._until_many(SESSIONS_CHANGELOG, records)

    async def _until_many(self, name: str, count: int) -> list[ConsumerRecord]:
        async with asyncio.timeout(SOON_S):
            while True:
                topic = self.cluster.topic(name)
                found = await read_all(self.settings, topic, self.settings.partitions)
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.1)

    async def committed(self, partition: int = 0) -> int:
        """Below which entry of the journal the workers will never read again."""
        offsets = await self.admin.list_consumer_group_offsets(self.settings.group_id)
        place = offsets.get(TopicPartition(self.cluster.topic(JOURNAL), partition))
        return max(0, place.offset) if place is not None else 0

    async def until_committed(self, offset: int) -> None:
        """Wait for the workers' offset on the journal."""
        async with asyncio.timeout(SOON_S):
            while await self.committed() < offset:  # noqa: ASYNC110 - Kafka tells nobody
                await asyncio.sleep(0.05)

    async def most_committed(self, seconds: float) -> int:
        """The highest offset committed on the journal's first partition within a while."""
        most = 0
        for _ in range(int(seconds / 0.25)):
            most = max(most, await self.committed())
            await asyncio.sleep(0.25)
        return most

    async def changelog_takes(self, max_bytes: int | None) -> None:
        """Let the changelog refuse what is larger; None: as `topics.yaml` has it."""
        config = topic_admin.expected_config(load_topics()[SESSIONS_CHANGELOG], self.settings)
        if max_bytes is not None:
            config["max.message.bytes"] = str(max_bytes)
        await configure(self.admin, self.changelog, config)

    async def session(self, worker: WorkerProcess, name: str) -> dict[str, Any] | None:
        """What a worker answers about a session."""
        async with httpx.AsyncClient(base_url=worker.url, timeout=10) as http:
            answer = await http.get(f"/api/sessions/{name}")
        if answer.status_code == 404:
            return None
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    async def applied(self, worker: WorkerProcess, names: Iterable[str]) -> int:
        """How many of these sessions have come to be within a while, each by one event."""
        wanted, found = set(names), set[str]()
        try:
            async with asyncio.timeout(SOON_S):
                while wanted - found:
                    for name in wanted - found:
                        if (view := await self.session(worker, name)) is not None:
                            assert view["version"] == 1, f"{name} was applied twice"
                            found.add(name)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return len(found)
        return len(found)


def log_of(worker: WorkerProcess) -> str:
    """Everything that a worker has logged."""
    return Path(worker.log).read_text("utf-8", "replace")


@asynccontextmanager
async def our_world(settings: Settings, partitions: int = 1) -> AsyncIterator[OurWorld]:
    """Our topics and whoever looks at them; every worker is ended afterwards."""
    alone = settings.model_copy(update={"partitions": partitions})
    async with cluster(alone) as one:
        admin = AIOKafkaAdminClient(**client_options(alone))
        await admin.start()
        try:
            yield OurWorld(one, admin)
        finally:
            await admin.close()
