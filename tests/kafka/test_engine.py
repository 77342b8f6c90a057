"""The settings that close the holes of FAUST.md, and the worker's ends, as processes."""

import asyncio
import logging
import signal
import subprocess
import sys

import httpx
import orjson
import pytest

from agents_stream.kafka.consumer import BatchConsumer
from agents_stream.kafka.engine import consumer_of, create_app
from agents_stream.kafka.recovery import SessionTableManager
from agents_stream.kafka.table import SessionTable
from agents_stream.kafka.topics import ACTIONS, DEADLINES, SESSIONS_CHANGELOG, partition_for
from agents_stream.settings import Settings
from tests.conftest import free_port
from tests.kafka.cluster import Cluster, WorkerProcess, cluster, environment
from tests.kafka.fakes import Ended, World

RESPONDED = ("data_collection", "responded", "awaiting_more_data")
TIMED_OUT = ("data_collection", "timeout", "sent_pending_message")


async def test_faust_is_set_as_faust_md_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these has its hole when it is set otherwise, or left at its default."""
    world = World.made(monkeypatch)
    app = create_app(world.engine)
    conf = app.conf
    assert str(conf.processing_guarantee.value) == "at_least_once"  # exactly_once is unsound
    assert conf.table_standby_replicas == 0  # H5
    assert conf.stream_wait_empty
    assert not conf.stream_publish_on_commit
    assert not conf.producer_threaded
    assert conf.producer_acks == -1
    assert not conf.topic_allow_declare  # all topics are made first
    assert conf.topic_disable_leader
    assert conf.broker_commit_interval == 0.25
    assert conf.broker_session_timeout == 6
    assert conf.broker_heartbeat_interval == 0.3
    assert conf.broker_rebalance_timeout == 20
    assert conf.consumer_auto_offset_reset == "earliest"
    assert not conf.web_enabled
    assert isinstance(app.tables, SessionTableManager)
    assert isinstance(consumer_of(app), BatchConsumer)
    table = app.Table("t", key_type=bytes, value_type=bytes)
    assert isinstance(table, SessionTable)
    for name in ("faust", "mode", "aiokafka", "asyncio"):  # three debug records a message
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)


async def test_no_stamp_without_a_proven_membership(monkeypatch: pytest.MonkeyPatch) -> None:
    """G9: a changelog record without the fence would be one that nothing can refuse."""
    world = World.made(monkeypatch)
    assert world.engine.fence_timestamp() <= 1_000_000
    world.engine.on_revoked()
    with pytest.raises(Ended, match="proven membership"):
        world.engine.fence_timestamp()


BREAKING = """
import asyncio, sys
from agents_stream.app import run_worker
from agents_stream.settings import Settings
from agents_stream.stages.{module} import {stage}
async def broken(self, batches):
    if any(batch.records for batch in batches):
        raise ZeroDivisionError("a bug")
{stage}.work = broken
asyncio.run(run_worker(Settings(), asyncio.Event()))
"""


@pytest.mark.parametrize(
    "stage", [("ingress", "Ingress"), ("sessions", "Sessions")], ids=["ingress", "sessions"]
)
async def test_a_bug_in_a_stage_ends_the_worker_and_loses_nothing(
    kafka_settings: Settings, stage: tuple[str, str], tmp_path: str
) -> None:
    """G1: the process exits with 1 before anything is acknowledged; a sound one goes on."""
    async with cluster(kafka_settings) as seen:
        session = await seen.open()
        await seen.collect(session)
        await seen.message(session)
        env = environment(
            kafka_settings,
            AGENTS_STREAM_WEB_PORT=str(free_port()),
            AGENTS_STREAM_DATA_DIR=f"{tmp_path}/broken",
            PYTHONPATH=":".join(sys.path),
        )
        if stage[0] != "ingress":  # let the inputs become journal and actions first
            worker = await seen.worker().ready()
            await seen.until_outcomes(session, RESPONDED)
            worker.end()
            await seen.collect(session)
            await seen.message(session)
        broken = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", BREAKING.format(module=stage[0], stage=stage[1])],
            env=env,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert broken.returncode == 1, broken.stdout
        assert f"the stage {stage[0]} failed: ZeroDivisionError" in broken.stdout
        await seen.worker().ready()
        expected = [RESPONDED] if stage[0] == "ingress" else [RESPONDED, RESPONDED]
        await seen.until_outcomes(session, *expected)


async def test_more_workers_than_partitions(kafka_settings: Settings) -> None:
    """The spare worker is ready with nothing, and takes over when another dies."""
    settings = kafka_settings.model_copy(update={"partitions": 1})
    async with cluster(settings) as seen:
        first = await seen.worker().ready()
        session = await seen.open()
        second, third = seen.worker(), seen.worker()
        for worker in (first, second, third):
            await worker.ready()
        async with asyncio.timeout(20):
            while True:
                owned = [await _owned(worker.url) for worker in seen.workers]
                if sorted(map(len, owned)) == [0, 0, 1] and all(
                    [await _ready(worker.url) for worker in seen.workers]
                ):
                    break
                await asyncio.sleep(0.2)
        owner = seen.workers[[len(one) for one in owned].index(1)]
        await seen.offer(session)
        await seen.message(session)
        await seen.until_outcomes(session, ("promos", "responded", "awaiting_selection_processing"))
        owner.end(signal.SIGKILL)
        await seen.collect(session)
        await seen.until_outcomes(
            session, ("promos", "responded", "awaiting_selection_processing"), TIMED_OUT, seconds=40
        )


async def test_rebalances_in_a_row_during_a_backlog(kafka_settings: Settings) -> None:
    """G1, G2: workers come and go while much is to be done; each event is applied exactly once."""
    async with cluster(kafka_settings) as seen:
        sessions = [await seen.open() for _ in range(12)]
        for round_number in range(15):
            await asyncio.gather(
                *(
                    seen.send("agent/session.updated", session, state={"last": round_number})
                    for session in sessions
                )
            )
        first = await seen.worker().ready()
        second = seen.worker()
        await asyncio.sleep(1.0)
        third = seen.worker()
        await asyncio.sleep(1.5)
        second.end(signal.SIGTERM)
        await asyncio.sleep(0.5)
        third.end(signal.SIGKILL)
        await first.ready()
        async with httpx.AsyncClient(base_url=first.url, timeout=10) as http:
            for session in sessions:
                async with asyncio.timeout(30):
                    while True:
                        answer = await http.get(f"/api/sessions/{session}")
                        if answer.status_code == 200 and answer.json()["version"] >= 16:
                            break
                        await asyncio.sleep(0.2)
                assert answer.json()["version"] == 16
                assert answer.json()["state"]["last"] == 14


async def test_a_stop_while_starting_is_clean(kafka_settings: Settings) -> None:
    """SPEC §7: SIGTERM stops a worker cleanly, also one that has just come."""
    async with cluster(kafka_settings) as seen:
        for delay in (0.2, 0.9, 1.6, 2.3):
            worker = seen.worker()
            await asyncio.sleep(delay)
            code = await asyncio.to_thread(worker.end)
            # Before Python has set the handler up the signal itself ends it.
            assert code in ({0, -signal.SIGTERM} if delay < 1.5 else {0}), worker.tail()


async def test_a_worker_ends_on_a_stamp_that_is_too_old(kafka_settings: Settings) -> None:
    """G9, H2: what the broker refuses is no warning in a log; the successor does the work."""
    late = """
import asyncio
from agents_stream.app import run_worker
from agents_stream.kafka.engine import Engine
from agents_stream.settings import Settings
Engine.fence_timestamp = lambda self: self.clock.now_ms() - 30_000
asyncio.run(run_worker(Settings(), asyncio.Event()))
"""
    async with cluster(kafka_settings) as seen:
        session = await seen.open()
        await seen.collect(session)
        await seen.message(session)
        env = environment(
            kafka_settings,
            AGENTS_STREAM_WEB_PORT=str(free_port()),
            PYTHONPATH=":".join(sys.path),
        )
        refused = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", late],
            env=env,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert refused.returncode == 3
        assert "InvalidTimestampError" in refused.stdout
        await seen.worker().ready()
        await seen.until_outcomes(session, RESPONDED)


async def test_a_forgotten_group_refuses_to_act_again(kafka_settings: Settings) -> None:
    """DESIGN §4: without committed offsets on a topic of actions the user must say where."""
    async with cluster(kafka_settings) as seen:
        await seen.producer.send_and_wait(seen.topic(ACTIONS), b"{}", key=b"k")
        worker = seen.worker()
        assert worker.process is not None
        assert await asyncio.to_thread(worker.process.wait, 30) == 1
        assert "AGENTS_STREAM_START_FROM" in worker.tail()


async def test_a_changelog_that_cannot_be_read_ends_the_worker(kafka_settings: Settings) -> None:
    """G11: Faust's recovery would log a warning and hang."""
    async with cluster(kafka_settings) as seen:
        topic = seen.topic(SESSIONS_CHANGELOG)
        for _ in range(2):
            await seen.producer.send_and_wait(topic, b"no record", key=b"k")
        worker = seen.worker()
        assert worker.process is not None
        assert await asyncio.to_thread(worker.process.wait, 30) == 1
        assert "cannot be read" in worker.tail()


async def test_an_early_deadline_is_refused_and_published_again(kafka_settings: Settings) -> None:
    """G3, G4: a worker whose clock is 700 ms ahead fires in time all the same."""
    ahead = """
import asyncio
from agents_stream.app import run_worker
from agents_stream.kafka.clock import BrokerClock
from agents_stream.settings import Settings
best = BrokerClock._best
BrokerClock._best = lambda self: best(self) + 700
asyncio.run(run_worker(Settings(), asyncio.Event()))
"""
    async with cluster(kafka_settings) as seen:
        port = free_port()
        env = environment(
            kafka_settings,
            AGENTS_STREAM_WEB_PORT=str(port),
            PYTHONPATH=":".join(sys.path),
        )
        process = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", ahead], env=env)
        try:
            await WorkerProcess(kafka_settings, port, process=process).ready()
            session = await seen.open()
            started = await seen.collect(session)
            await seen.until_outcomes(session, TIMED_OUT, seconds=30)
        finally:
            process.kill()
            process.wait()
        [outcome] = seen.values("agent.outcomes", session)
        due = started.timestamp + kafka_settings.data_reply_timeout
        [command] = seen.values("tool.whatsapp.message.send", session)
        assert command["issuedAt"] >= due
        assert outcome["at"] >= due
        assert await _deadlines(seen, session) >= 2


async def _deadlines(seen: Cluster, session: str) -> int:
    """How often a deadline of a session was published."""
    from agents_stream.kafka import ranges  # noqa: PLC0415

    place = (seen.topic(DEADLINES), partition_for(session.encode(), seen.settings.partitions))
    async with ranges.reader(seen.settings) as client:
        span = (await ranges.bounds(client, [place]))[place]
        records = [record async for record in ranges.read(client, {place: span})]
    return sum(orjson.loads(record.value)["sessionId"] == session for record in records)


async def _owned(url: str) -> tuple[int, ...]:
    async with httpx.AsyncClient(base_url=url, timeout=10) as http:
        cluster_view = (await http.get("/api/cluster")).json()
    own = [item for item in cluster_view["members"] if item["url"] == url]
    return tuple(own[0]["partitions"]) if own else ()


async def _ready(url: str) -> bool:
    async with httpx.AsyncClient(base_url=url, timeout=10) as http:
        return (await http.get("/readyz")).status_code == 200
