"""Ground that changes, for tests: topics made anew, a broker that forgets, another cluster."""

import asyncio
import os
import signal
import time
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.structs import TopicPartition
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from agents_stream.kafka import embedded, topic_admin
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import load_topics
from agents_stream.settings import Settings
from tests.kafka.cluster import WorkerProcess

END_S = 30.0


async def make_anew(settings: Settings, *names: str) -> None:
    """Delete topics and create them again, as somebody with Kafka's tools would."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        full = [load_topics().name(name, settings.topic_prefix) for name in names]
        await admin.delete_topics(full)
        while set(full) & set(await admin.list_topics()):  # noqa: ASYNC110 - Kafka's to know
            await asyncio.sleep(0.05)
    finally:
        await admin.close()
    await topic_admin.apply(settings)


async def add_partitions(settings: Settings, count: int, *names: str) -> None:
    """Raise the number of partitions."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        wanted = {
            load_topics().name(name, settings.topic_prefix): NewPartitions(count) for name in names
        }
        await admin.create_partitions(wanted)
    finally:
        await admin.close()


def forget_group(settings: Settings) -> None:
    """Kafka forgets the workers' offsets, as it does after a week without them."""
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    deadline = time.monotonic() + END_S
    while True:
        [forgotten] = admin.delete_consumer_groups([settings.group_id]).values()
        try:
            forgotten.result()
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)  # the last member has not left yet
        else:
            return


async def delete_records(settings: Settings, name: str, before: int) -> None:
    """Delete what a topic's partition 0 holds below an offset, as retention does."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        place = TopicPartition(load_topics().name(name, settings.topic_prefix), 0)
        await admin.delete_records({place: RecordsToDelete(before)})
    finally:
        await admin.close()


class ForgetfulBroker:
    """An embedded broker that can lose what it had not written to disk."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pid = 0

    def start(self) -> None:
        """Start, or start again with what is left."""
        self.pid = embedded.start(self.settings).pid

    def kill(self) -> None:
        """Cut the power."""
        os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while embedded.status(self.settings).running and time.monotonic() < deadline:
            time.sleep(0.05)

    def log_of(self, topic: str, partition: int = 0) -> Path:
        """The one segment of a partition."""
        folder = self.settings.data_dir.resolve() / "kafka" / "data" / f"{topic}-{partition}"
        return folder / "00000000000000000000.log"

    def size(self, topic: str, partition: int = 0) -> int:
        """How long the partition's log is now, in bytes: what a loss can go back to."""
        return self.log_of(topic, partition).stat().st_size

    def crash(self, sizes: dict[tuple[int, str], int]) -> None:
        """A power cut: what lies beyond these sizes was never on the disk. Then start again."""
        self.kill()
        for (partition, topic), size in sizes.items():
            with self.log_of(topic, partition).open("rb+") as log:
                log.truncate(size)
        self.start()


def end_of(worker: WorkerProcess, seconds: float = END_S) -> int:
    """Wait until the worker has ended itself; its exit code."""
    assert worker.process is not None
    return worker.process.wait(seconds)


async def ended(worker: WorkerProcess, seconds: float = END_S) -> int:
    """Wait for that without holding up the bystander."""
    return await asyncio.to_thread(end_of, worker, seconds)
