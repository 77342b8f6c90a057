"""Closed sessions leave the table when nothing old can name them, and not before (G2, G8, G9)."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import InvalidTimestampError
from aiokafka.structs import TopicPartition

from agents_stream.core.session import PendingCommand, SessionRecord, decode_record, encode_record
from agents_stream.kafka import ranges, topic_admin, upkeep
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.forgetting import MIN_AGE_MS, may_leave
from agents_stream.kafka.store import MemoryStore
from agents_stream.kafka.topics import JOURNAL, SESSIONS_CHANGELOG, load_topics
from agents_stream.kafka.upkeep import Upkeep
from agents_stream.settings import Settings
from tests.kafka.cluster import Cluster, WorkerProcess, cluster
from tests.kafka.command_line import variables
from tests.kafka.fakes import Ended, World
from tests.kafka.test_audit import audit
from tests.kafka.test_rebuild import rebuild

CLOSED = SessionRecord(
    "s",
    status="closed",
    journal_offset=10,
    journal_timestamp=1,
    seen={"a/0": (5, 1), "b/3": (7, 1)},
)
BEGINS = {"a/0": 6, "b/3": 8}
ORDER: Any = PendingCommand(
    "c", "crm.order.create", "promos", "ordered", 1, "orphaned", 1, None, None, {}, 1, 1
)
NOW = MIN_AGE_MS + 1


@pytest.mark.parametrize(
    "record, journal_begin, begins, now_ms, leaves",
    [
        (CLOSED, 11, BEGINS, NOW, True),
        (CLOSED, 11, {"b/3": 8}, NOW, True),  # a topic that is not there any more
        (CLOSED, 10, BEGINS, NOW, False),  # its last journal entry could be read again
        (CLOSED, 11, {**BEGINS, "a/0": 5}, NOW, False),  # a source could be appended again
        (CLOSED, 11, BEGINS, NOW - 1, False),
        (replace(CLOSED, status="open"), 11, BEGINS, NOW, False),
        (replace(CLOSED, pending={"c": ORDER}), 11, BEGINS, NOW, False),
    ],
)
def test_when_a_session_may_leave(
    record: SessionRecord, journal_begin: int, begins: dict[str, int], now_ms: int, leaves: object
) -> None:
    """Only closed, only when all that it would recognise is gone, and no order is under way."""
    assert may_leave(record, journal_begin, begins, now_ms) is leaves


class Rows:
    """The table's partitions."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.partitions_owned = {1: MemoryStore()}

    def put(self, record: SessionRecord) -> None:
        """A row."""
        key = record.session_id.encode()
        self.partitions_owned[1].put_many({key: encode_record(record)})

    def row(self, partition: int, key: bytes) -> bytes | None:
        """A row."""
        return self.partitions_owned[partition].get(key)

    def session_keys(self, partition: int) -> Any:
        """All keys."""
        return self.partitions_owned[partition].keys()

    def install(self, partition: int, rows: dict[bytes, bytes | None], next_offset: int) -> None:
        """What the changelog has acknowledged."""
        assert next_offset == len(self.world.kafka.log[SESSIONS_CHANGELOG, partition])
        self.partitions_owned[partition].put_many(rows)


class Keeping:
    """An upkeep over a fake Kafka."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = World.made(monkeypatch)
        self.world.engine.clock.observe(NOW + 1_000)
        self.rows = Rows(self.world)
        self.lock = asyncio.Lock()
        self.begins = {(JOURNAL, 1): 11, ("a", 0): 6, ("b", 3): 8}
        self.completed = asyncio.Event()
        self.completed.set()
        self.oldest: list[Any] = []
        recovery = SimpleNamespace(completed=self.completed)
        app = SimpleNamespace(tables=SimpleNamespace(recovery=recovery))

        async def begins() -> Any:
            return self.begins

        async def watch(_engine: Any, oldest: Any, _now_ms: int) -> None:
            self.oldest = list(oldest)

        monkeypatch.setattr(upkeep, "watch", watch)
        engine, rows = self.world.engine, self.rows
        self.upkeep = Upkeep(engine, app, rows, self.lock, begins)  # type: ignore[arg-type]

    @property
    def tombstones(self) -> list[tuple[bytes | None, bytes | None]]:
        """What was written to the changelog."""
        lines = self.world.kafka.lines(SESSIONS_CHANGELOG)
        assert all(line.timestamp_ms is not None for line in lines), "without the fence"
        return [(line.key, line.value) for line in lines]


@pytest.fixture
async def keeping(monkeypatch: pytest.MonkeyPatch) -> Keeping:
    """An upkeep with one session that may leave, one that may not, and two open ones."""
    one = Keeping(monkeypatch)
    one.rows.put(CLOSED)
    one.rows.put(replace(CLOSED, session_id="later", journal_offset=11))
    one.rows.put(SessionRecord("young", opened_offset=9, journal_timestamp=5))
    one.rows.put(SessionRecord("old", opened_offset=2, journal_timestamp=5))
    return one


async def test_a_round(keeping: Keeping) -> None:
    """A tombstone with the fence's stamp, acknowledged, then the row goes; once."""
    assert await keeping.upkeep.go_round() == 1
    assert keeping.tombstones == [(b"s", None)]
    assert keeping.rows.row(1, b"s") is None
    assert len(keeping.rows.partitions_owned[1]) == 3
    assert [(one.session_id, one.opened_offset) for one in keeping.oldest] == [("old", 2)]
    assert await keeping.upkeep.go_round() == 0
    assert len(keeping.tombstones) == 1


async def test_what_the_stage_writes_meanwhile_stays(keeping: Keeping) -> None:
    """G8: the round waits for the stage's pass, and looks again afterwards."""
    await keeping.lock.acquire()
    going = asyncio.create_task(keeping.upkeep.go_round())
    await asyncio.sleep(0.1)
    keeping.rows.put(replace(CLOSED, status="open", journal_offset=12))
    keeping.lock.release()
    assert await going == 0
    assert keeping.tombstones == []


async def test_nothing_is_forgotten_in_a_rebalance(keeping: Keeping) -> None:
    """G9: rows of an unfinished recovery may be of the past, and no heartbeat, no write."""
    keeping.completed.clear()
    assert await keeping.upkeep.go_round() == 0
    keeping.completed.set()
    keeping.world.engine.membership.forget()
    assert await keeping.upkeep.go_round() == 0
    assert keeping.tombstones == []


async def test_a_refused_tombstone_ends_the_process(keeping: Keeping) -> None:
    """G9: a worker that has been out for long is told so by the broker; the row stays."""
    keeping.world.kafka.error = InvalidTimestampError()
    with pytest.raises(Ended):
        await keeping.upkeep.go_round()
    assert keeping.rows.row(1, b"s") is not None


QUICK = (
    "from agents_stream.kafka import forgetting, upkeep\n"
    "forgetting.MIN_AGE_MS, upkeep.FIRST_AFTER_S, upkeep.EVERY_S = 0, 0.2, 0.5\n"
    "from agents_stream.cli import main\n"
    "main(['worker'])\n"
)


def quick(worker: WorkerProcess) -> WorkerProcess:
    """A worker that keeps house every half second."""
    place = worker.settings.data_dir / f"worker-{worker.port}"
    place.mkdir(parents=True, exist_ok=True)
    worker.log = str(place / "log.txt")
    port = {"AGENTS_STREAM_WEB_PORT": str(worker.port), "AGENTS_STREAM_STORE": worker.store}
    env = variables(worker.settings, AGENTS_STREAM_DATA_DIR=str(place), **port)
    with open(worker.log, "ab") as out:  # noqa: PTH123 - handed to the child
        worker.process = subprocess.Popen(
            [sys.executable, "-c", QUICK], env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
    return worker


async def status(worker: WorkerProcess, session: str) -> tuple[int, str | None]:
    """What the API says of a session."""
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{worker.url}/api/sessions/{session}")
    return answer.status_code, answer.json().get("status")


async def until_status(worker: WorkerProcess, session: str, expected: tuple[int, Any]) -> None:
    """Wait for it."""
    for _ in range(100):
        if await status(worker, session) == expected:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{session}: {await status(worker, session)}: {worker.tail()}")


async def cut(seen: Cluster, topics: list[str]) -> None:
    """Retention takes everything that is on some topics now."""
    places = [(seen.topic(name), n) for name in topics for n in range(seen.settings.partitions)]
    async with ranges.reader(seen.settings) as client:
        spans = await ranges.bounds(client, places)
    admin = AIOKafkaAdminClient(**client_options(seen.settings))
    await admin.start()
    try:
        ends = {TopicPartition(*place): RecordsToDelete(end) for place, (_, end) in spans.items()}
        await admin.delete_records(ends)
    finally:
        await admin.close()


async def keep_journal_for(settings: Settings, milliseconds: int) -> None:
    """Somebody shortens the journal's retention."""
    spec = load_topics()[JOURNAL]
    config = topic_admin.expected_config(spec, settings) | {"retention.ms": str(milliseconds)}
    name = settings.topic_prefix + JOURNAL
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, config)])
    finally:
        await admin.close()


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
async def test_a_closed_session_leaves(kafka_settings: Settings, store: str) -> None:
    """G2, G8: it stays while anything old names it, leaves, stays away, and may come again."""
    async with cluster(kafka_settings) as seen:
        worker = quick(WorkerProcess(kafka_settings, kafka_settings.web_port, store))
        seen.workers.append(worker)
        await worker.ready()
        closed, open_one = await seen.open("closed"), await seen.open("open")
        await seen.send("agent/session.close", closed, reason="completed")
        await until_status(worker, closed, (200, "closed"))
        inputs = [spec.name for spec in load_topics().inputs]
        await cut(seen, inputs)
        await asyncio.sleep(1.5)
        assert await status(worker, closed) == (200, "closed"), "the journal still names it"
        assert "retention is shorter" not in worker.tail()
        await keep_journal_for(kafka_settings, 1_000)
        await cut(seen, [JOURNAL])
        await until_status(worker, closed, (404, None))
        assert await status(worker, open_one) == (200, "open")
        for _ in range(50):
            if "retention is shorter" in worker.tail():
                break
            await asyncio.sleep(0.1)
        line = next(one for one in worker.tail().splitlines() if "retention is shorter" in one)
        assert "open" in line
        assert worker.end() == 0
        await keep_journal_for(kafka_settings, -1)  # no worker starts on less than a week
        quick(worker)
        await worker.ready()
        assert await status(worker, closed) == (404, None)
        await seen.send("agent/session.updated", closed, mode="again")
        await until_status(worker, closed, (200, "open"))
        assert worker.end() == 0
        told = (await audit(kafka_settings)).json
        assert (told["ok"], told["notProvable"]) == (True, 1), told
        assert (await rebuild(kafka_settings)).json["repairs"] == []
        topic = seen.topic(SESSIONS_CHANGELOG)
        places = [(topic, number) for number in range(kafka_settings.partitions)]
        async with ranges.reader(kafka_settings) as client:
            spans = await ranges.bounds(client, places)
            lines = [line async for line in ranges.read(client, spans) if line.key == b"closed"]
        assert [line.value is None for line in lines].count(True) == 1
        last = decode_record(lines[-1].value)
        assert (last.mode, last.version, last.status) == ("again", 2, "open")


def test_the_worker_of_these_tests_is_ours() -> None:
    """What is patched are the names that the worker reads."""
    code = QUICK.replace("main(['worker'])", "print(upkeep.may_leave.__globals__['MIN_AGE_MS'])")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == b"0"
