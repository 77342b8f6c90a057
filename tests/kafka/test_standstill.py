"""G11: whatever stands still is named in the log and by /readyz, and then the process ends.

Each fault in turn befalls a worker that works; its successor finds what was left undone.
"""

import asyncio
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx

from agents_stream.settings import Settings
from tests.conftest import free_port
from tests.kafka.cluster import Cluster, WorkerProcess, cluster, environment
from tests.kafka.silent_proxy import FETCH, OFFSET_COMMIT, PRODUCE, SilentProxy

RESPONDED = ("data_collection", "responded", "awaiting_more_data")
TIMED_OUT = ("data_collection", "timeout", "sent_pending_message")
LIMIT_S = 4.0

# A worker that reaches Kafka through the proxy. At SIGUSR1 the watchdog gets a limit of seconds,
# and the code of the fault is broken.
WORKER = """
import asyncio, signal
from aiokafka import conn
from agents_stream.app import run_worker
from agents_stream.kafka import fail_stop, input_watch
from agents_stream.settings import Settings
from agents_stream.stages.ingress import Ingress
from agents_stream.stages.timers import Timers
direct = conn.AIOKafkaConnection.__init__
def through(self, host, port, **options):
    direct(self, host, {port}, **options)
conn.AIOKafkaConnection.__init__ = through
input_watch.LOOK_S = input_watch.LONG_S = 0.5
input_watch.ASK_LIMIT_S = 2.0
dogs = []
made = fail_stop.Watchdog.__init__
def make(self, *args):
    made(self, *args)
    self._period_s = 0.5
    dogs.append(self)
fail_stop.Watchdog.__init__ = make
async def hang(self, *args):
    await asyncio.sleep(3600)
async def forget(self, batches):
    pass
def begin(*_):
    for dog in dogs:
        dog._limit_s = {limit}
    {broken}
signal.signal(signal.SIGUSR1, begin)
{at_once}
asyncio.run(run_worker(Settings(), asyncio.Event()))
"""


@dataclass(frozen=True)
class Fault:
    """What is swallowed or broken, what is said then, and what the session comes to."""

    words: str
    swallowed: frozenset[int] = frozenset()
    broken: str = "pass"
    answered: bool = True


FAULTS = (
    Fault("has more to read and has not been read", frozenset({FETCH})),
    Fault("has not acknowledged an append", frozenset({PRODUCE})),
    Fault("committing offsets has not moved", frozenset({OFFSET_COMMIT})),
    Fault("ingress has records of partition", broken="Ingress.work = forget"),
    Fault("the timers' task has not moved", broken="Timers._publish_due = hang", answered=False),
)


async def test_what_stands_still_is_named_and_ends_the_process(kafka_settings: Settings) -> None:
    """G1, G11: the words in the log and in /readyz, exit code 1, and nothing is lost."""
    async with (
        cluster(kafka_settings) as seen,
        SilentProxy.before(kafka_settings.bootstrap_servers) as proxy,
    ):
        left: list[tuple[str, Fault]] = []
        for fault in FAULTS:
            worker = _started(kafka_settings, proxy, fault)
            try:
                await worker.ready()
                left.append((await _befall(seen, proxy, worker, fault), fault))
                await _ends(worker, fault.words)
            finally:
                proxy.swallowed = frozenset()
                worker.end(signal.SIGKILL)
        await _hangs_in_recovery(kafka_settings, proxy)
        await seen.worker().ready()
        for session, fault in left:
            await seen.until_outcomes(session, RESPONDED if fault.answered else TIMED_OUT)


def _started(
    settings: Settings, proxy: SilentProxy, fault: Fault, at_once: str = ""
) -> WorkerProcess:
    """Start a worker behind the proxy."""
    port = free_port()
    place = settings.data_dir / f"worker-{port}"
    place.mkdir(parents=True)
    worker = WorkerProcess(settings, port, log=str(place / "log.txt"))
    env = environment(
        settings,
        AGENTS_STREAM_WEB_PORT=str(port),
        AGENTS_STREAM_DATA_DIR=str(place),
        PYTHONPATH=":".join(sys.path),
    )
    code = WORKER.format(port=proxy.port, limit=LIMIT_S, broken=fault.broken, at_once=at_once)
    with (place / "log.txt").open("wb") as out:
        worker.process = subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
    return worker


async def _befall(seen: Cluster, proxy: SilentProxy, worker: WorkerProcess, fault: Fault) -> str:
    """Let the fault happen and give the worker something to do; the session it is about."""
    proxy.swallowed = fault.swallowed
    worker.send_signal(signal.SIGUSR1)
    session = await seen.open()
    await seen.collect(session)
    if fault.answered:
        await seen.message(session)
    return session


async def _ends(worker: WorkerProcess, words: str) -> None:
    """It is not ready any more and says why; then it ends, for the same reason."""
    assert worker.process is not None
    said = set()
    async with asyncio.timeout(60), httpx.AsyncClient(base_url=worker.url, timeout=2) as http:
        while worker.process.poll() is None:
            try:
                answer = await http.get("/readyz")
            except httpx.HTTPError:
                pass
            else:
                said.add(answer.text if answer.status_code == 503 else "ready")
            await asyncio.sleep(0.1)
    assert any(words in one for one in said), (words, said, worker.tail())
    assert worker.process.returncode == 1, worker.tail()
    lines = await asyncio.to_thread(_lines, worker)
    for event in ("something stands still", "watchdog: "):
        assert any(event in line and words in line for line in lines), worker.tail()


def _lines(worker: WorkerProcess) -> list[str]:
    return Path(worker.log).read_text().splitlines()


async def _hangs_in_recovery(settings: Settings, proxy: SilentProxy) -> None:
    """The same from the first moment: the rows cannot be read back."""
    proxy.swallowed = frozenset({FETCH})
    worker = _started(settings, proxy, Fault(""), f"fail_stop.LIMIT_S = {LIMIT_S}")
    try:
        await _ends(worker, "recovery, reading the changelog of the partitions")
    finally:
        proxy.swallowed = frozenset()
        worker.end(signal.SIGKILL)
