"""Kafka is away for longer than anybody waits: the same process goes on by itself (G1, G3, G11)."""

import asyncio
import subprocess
import sys

import pytest
from aiokafka import conn

from agents_stream.client import AgentsStream, BrokerUnreachable
from agents_stream.kafka import topic_admin
from agents_stream.settings import Settings
from tests.conftest import free_port
from tests.kafka.cluster import WorkerProcess, cluster, environment
from tests.kafka.silent_proxy import SilentProxy
from tests.kafka.test_client import message

RESPONDED = ("data_collection", "responded", "awaiting_more_data")
TIMED_OUT = ("data_collection", "timeout", "sent_pending_message")
AWAY_S = 15.0

# The command, but that it reaches Kafka through the proxy and that its patience is short.
WORKER = """
from aiokafka import conn
from agents_stream.cli import main
from agents_stream.kafka import engine, fail_stop
direct = conn.AIOKafkaConnection.__init__
def through(self, host, port, **options):
    direct(self, host, {port}, **options)
conn.AIOKafkaConnection.__init__ = through
fail_stop.LIMIT_S, engine.SILENT_MS = 6.0, 4_000
main(["worker"])
"""


async def test_a_worker_waits_for_kafka_and_goes_on(kafka_settings: Settings) -> None:
    """What fell due and what came meanwhile is done afterwards, by a process nobody restarted."""
    async with (
        cluster(kafka_settings) as seen,
        SilentProxy.before(kafka_settings.bootstrap_servers) as proxy,
    ):
        worker = _started(kafka_settings, proxy.port)
        try:
            await worker.ready()
            silent, late = [await seen.open(f"away-{name}") for name in ("silent", "late")]
            for session in (silent, late):
                await seen.collect(session)
            await asyncio.sleep(0.5)
            await proxy.cut()
            await seen.message(late)  # before its deadline, and nobody reads it
            await asyncio.sleep(AWAY_S)
            assert worker.process is not None
            assert worker.process.poll() is None, worker.tail()
            assert seen.outcomes(silent) == []
            await proxy.open()
            await worker.ready()
            await seen.until_outcomes(silent, TIMED_OUT)
            await seen.until_outcomes(late, RESPONDED)
            assert len(seen.messages(silent)) == 1
            assert await asyncio.to_thread(worker.end) == 0, worker.tail()
        finally:
            if worker.process is not None:
                worker.process.kill()


def _started(settings: Settings, port: int) -> WorkerProcess:
    """Start a worker whose Kafka is at `port`."""
    worker = WorkerProcess(settings, free_port())
    place = settings.data_dir / f"worker-{worker.port}"
    place.mkdir(parents=True)
    worker.log = str(place / "log.txt")
    env = environment(
        settings,
        AGENTS_STREAM_WEB_PORT=str(worker.port),
        AGENTS_STREAM_DATA_DIR=str(place),
        PYTHONPATH=":".join(sys.path),
    )
    with (place / "log.txt").open("wb") as out:
        worker.process = subprocess.Popen(
            [sys.executable, "-c", WORKER.format(port=port)],
            env=env,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
        )
    return worker


async def test_an_event_without_kafka_is_not_told_to_make_topics(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The topic is there; what aiokafka calls unknown is that nobody answered."""
    await topic_admin.apply(kafka_settings)
    direct = conn.AIOKafkaConnection.__init__
    async with SilentProxy.before(kafka_settings.bootstrap_servers) as proxy:

        def through(self: object, host: str, _port: int, **options: object) -> None:
            direct(self, host, proxy.port, **options)

        monkeypatch.setattr(conn.AIOKafkaConnection, "__init__", through)
        async with AgentsStream.from_settings(kafka_settings, timeout_s=4) as stream:
            await proxy.cut()
            with pytest.raises(BrokerUnreachable):
                await stream.send(message())
