"""What the views read from Kafka and from the stores."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from agents_stream.kafka import topic_admin
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.store import MemoryStore, RocksStore
from agents_stream.kafka.topics import DEAD_LETTERS, load_topics
from agents_stream.settings import Settings
from agents_stream.views.reads import Letter, LetterPlace
from agents_stream.views.worker_reads import WorkerReads


def reads_of(settings: Settings) -> WorkerReads:
    """The reads of a worker that has nothing but Kafka."""

    def topic(name: str) -> str:
        return load_topics().name(name, settings.topic_prefix)

    engine: Any = SimpleNamespace(settings=settings, topic=topic)
    table: Any = SimpleNamespace(partitions_owned={})
    return WorkerReads(engine, None, table, dict)


async def bury(settings: Settings, batches: list[tuple[int, int]]) -> None:
    """Append batches of so many letters to partitions: one batch, one timestamp."""
    topic = load_topics().name(DEAD_LETTERS, settings.topic_prefix)
    async with AIOKafkaProducer(**client_options(settings)) as producer:
        for partition, count in batches:
            batch = producer.create_batch()
            for number in range(count):
                value = orjson.dumps({"reason": "x", "id": f"{partition}-{number}"})
                assert batch.append(key=None, value=value, timestamp=None) is not None
            batch.close()
            await (await producer.send_batch(batch, topic, partition=partition))


@pytest.mark.parametrize("limit", [5, 100])
async def test_pages_of_dead_letters_hold_each_exactly_once(
    kafka_settings: Settings, limit: int
) -> None:
    """Also where one batch, with one timestamp, has more letters than a page."""
    await topic_admin.apply(kafka_settings)
    batches = [(0, 5), (2, 12), (1, 3), (2, 4)] if limit < 100 else [(1, 350), (3, 20), (1, 120)]
    await bury(kafka_settings, batches)
    reads = reads_of(kafka_settings)
    seen: list[Letter] = []
    before: LetterPlace | None = None
    while page := [letter async for letter in reads.dead_letters(limit, before)]:
        assert len(page) <= limit
        seen += page
        before = seen[-1].place
    assert len(seen) == sum(count for _, count in batches)
    places = [letter.place for letter in seen]
    assert places == sorted(set(places), reverse=True)


def test_keys_of_a_store_that_is_closed_meanwhile_end(tmp_path: Path) -> None:
    """A list in the making keeps no lock: the partition can be opened again at once (G11)."""
    store = RocksStore(tmp_path / "rows", "here")
    store.put_many({b"%05d" % number: b"row" for number in range(9_000)})
    standing = store.keys()
    assert next(standing) == b"00000"
    store.close(7)
    again = RocksStore(tmp_path / "rows", "here")
    assert len(list(standing)) < 9_000
    assert list(again.keys()) == [b"%05d" % number for number in range(9_000)]
    again.close(None)


@pytest.mark.parametrize("kind", ["memory", "rocksdb"])
def test_keys_bear_a_store_that_changes(tmp_path: Path, kind: str) -> None:
    """Each key that was there all the time comes exactly once."""
    store = MemoryStore() if kind == "memory" else RocksStore(tmp_path / "rows", "here")
    store.put_many({b"%05d" % number: b"row" for number in range(0, 10_000, 2)})
    seen = []
    for count, key in enumerate(store.keys()):
        seen.append(key)
        if count % 1_000 == 0:
            store.put_many({b"%05d" % (count + 1): b"new", b"": b"empty"})
    old = [b"%05d" % number for number in range(0, 10_000, 2)]
    assert [key for key in seen if key in set(old)] == old
    store.close(None)
