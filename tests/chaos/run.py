"""One run: a cluster of processes on a broker of its own, a crowd, faults, and then the verdict."""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
from aiokafka.errors import KafkaError

from agents_stream.kafka import embedded, topic_admin
from agents_stream.settings import Settings
from tests.chaos.customers import Crowd
from tests.chaos.engine import Engine, now_ms
from tests.chaos.faults import Ground, Saboteur, kill_broker
from tests.chaos.history import Exit, History, Timing
from tests.chaos.log_reader import LogReader
from tests.chaos.plan import make_plan
from tests.chaos.processes import Process
from tests.chaos.report import make_report
from tests.chaos.verifier import unfinished, verify
from tests.conftest import free_port

TIMING: Final = Timing(3_000, 1_000, 2_500, 200)
WORKERS: Final = 3
WORKER_PLACES: Final = 4
GATEWAYS: Final = 2
PARTITIONS: Final = 8
PROGRESS_S: Final = 10.0
DRAIN_LIMIT_S: Final = 90.0
LAST_WORDS_S: Final = 60.0
LOOK_AGAIN_S: Final = 1.5
BOOKS_EVERY_S: Final = 5.0
# A request may be under way for as long as the slowest fault, and is entered when it begins.
BOOKS_BACK_MS: Final = 30_000
ROOT: Final = Path(__file__).resolve().parents[2]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What is to be run. `store`: memory, rocksdb or mixed."""

    seed: int
    seconds: float
    store: str = "mixed"
    per_second: float = 4.0


@dataclass
class Run:
    """A run and all that it starts; `end` ends every process of it."""

    wish: Wish
    folder: Path
    say: Say
    exits: list[Exit] = field(default_factory=list)
    books: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = Settings(
            bootstrap_servers=f"127.0.0.1:{free_port()}",
            data_dir=self.folder / "broker",
            partitions=PARTITIONS,
        )
        self.sandbox = self._process("sandbox", ["sandbox"], free_port(), {})
        self.sandbox.command += ["--port", str(self.sandbox.port)]
        self.gateways = [
            self._process(f"gateway-{number}", ["gateway"], free_port(), {})
            for number in range(GATEWAYS)
        ]
        self.workers = [
            self._process(f"worker-{number}", ["worker"], free_port(), {"STORE": store})
            for number, store in zip(range(WORKER_PLACES), self._stores(), strict=True)
        ]
        self.engine = Engine(self.settings.bootstrap_servers)
        self.crowd = Crowd(self.engine, TIMING, self.wish.seed, self.wish.per_second)
        self.saboteur = Saboteur(
            Ground(self.settings, self.workers, self.gateways, self.sandbox.url), self.crowd.burst
        )
        self.reader = LogReader(self.settings.bootstrap_servers, PARTITIONS)
        self.began_at_ms = 0
        self._looked_at_ms = 0

    def _stores(self) -> list[str]:
        if self.wish.store == "mixed":
            return ["memory", "rocksdb"] * (WORKER_PLACES // 2)
        return [self.wish.store] * WORKER_PLACES

    def _process(self, name: str, command: list[str], port: int, more: dict[str, str]) -> Process:
        given = {
            "BOOTSTRAP_SERVERS": self.settings.bootstrap_servers,
            "PARTITIONS": str(PARTITIONS),
            "DATA_DIR": str(self.folder / name),
            "WEB_PORT": str(port),
            "LOG_FORMAT": "json",
            "DATA_REPLY_TIMEOUT": f"{TIMING.data_reply_ms}ms",
            "PROMOS_DELAY": f"{TIMING.promos_delay_ms}ms",
            "PROMOS_REPLY_TIMEOUT": f"{TIMING.promos_reply_ms}ms",
            "RETRY_BACKOFF": f"{TIMING.retry_backoff_ms}ms",
            "TOOL_CONNECT_TIMEOUT": "1s",
            "TOOL_READ_TIMEOUT": "4s",
            **more,
        }
        if name.startswith("gateway"):
            given["WHATSAPP_URL"] = f"{self.sandbox.url}/whatsapp/messages"
            given["CRM_URL"] = f"{self.sandbox.url}/crm/orders"
        environment = {f"AGENTS_STREAM_{key}": value for key, value in given.items()}
        environment["PYTHONPATH"] = str(ROOT)
        arguments = ["-m", "agents_stream", *command]
        return Process(name, arguments, environment, self.folder / name, port, self.exits)

    async def whole(self) -> dict[str, Any]:
        """Start, break, drain, stop and verify; the report."""
        try:
            await self._start()
            await self._break()
            drained = await self._drain()
            await self._stop()
        finally:
            await self.end()
        history = self._history()
        history.save(self.folder)
        violations = verify(history)
        report = make_report(history, violations)
        report["drainedInS"] = drained
        report["conversations"] = self.crowd.begun
        report["faultsSkipped"] = dict(self.saboteur.skipped)
        failures = [repr(error) for error in (*self.crowd.failures, *self.saboteur.failures)]
        if failures:
            report["ok"] = False
            report["violations"] += [f"run: {words}" for words in failures]
        (self.folder / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
        return report

    async def _start(self) -> None:
        began = time.monotonic()
        await asyncio.to_thread(embedded.start, self.settings)
        await topic_admin.apply(self.settings)
        self.sandbox.start()
        for process in (*self.gateways, *self.workers[:WORKERS]):
            process.start()
        await self.engine.start()
        for process in self.workers[:WORKERS]:
            await process.ready()
        self.say(f"{WORKERS} workers, {GATEWAYS} gateways after {time.monotonic() - began:.0f} s")

    async def _break(self) -> None:
        """The crowd talks and the faults come, until the time is over; then all faults end."""
        plan = make_plan(self.wish.seed, self.wish.seconds)
        self.began_at_ms = now_ms()
        telling = asyncio.create_task(self._tell())
        booking = asyncio.create_task(self._keep_books())
        sabotage = asyncio.create_task(
            self.saboteur.follow(plan, asyncio.get_running_loop().time())
        )
        try:
            await self.crowd.run(self.wish.seconds)
            await sabotage
            await self.saboteur.finish()
            for process in self.workers[:WORKERS]:
                process.start()
            await self.crowd.end(LAST_WORDS_S)
        finally:
            for task in (telling, booking, sabotage):
                task.cancel()
            await asyncio.gather(telling, booking, sabotage, return_exceptions=True)

    async def _drain(self) -> float | None:
        """Wait until nothing is left to come; in how many seconds, None if never."""
        began = time.monotonic()
        left: dict[str, int] = {"everything": 1}
        while time.monotonic() - began < DRAIN_LIMIT_S:
            try:
                await self.reader.catch_up()
            except KafkaError as error:
                self.say(f"the log cannot be read just now: {error!r}")
            await self._look_at_books()
            left = unfinished(self._history())
            if not left:
                return round(time.monotonic() - began, 1)
            self.say(f"draining: {left}")
            await asyncio.sleep(LOOK_AGAIN_S)
        self.say(f"not drained within {DRAIN_LIMIT_S:g} s: {left}")
        return None

    async def _stop(self) -> None:
        await asyncio.gather(*(one.stop() for one in (*self.workers, *self.gateways)))
        await self.reader.catch_up()
        await self._look_at_books()
        await self.sandbox.stop()
        await self.engine.stop()

    async def end(self) -> None:
        """End every process of this run, however far it came."""
        await self.saboteur.cut()
        await self.crowd.cut()
        for process in (*self.workers, *self.gateways, self.sandbox):
            process.kill()
        with suppress(Exception):
            await self.engine.stop()
        if embedded.status(self.settings).running:
            await asyncio.to_thread(kill_broker, self.settings)

    def _history(self) -> History:
        return History(
            TIMING,
            lines=self.reader.lines,
            sent=self.engine.sent,
            books=[self.books[seq] for seq in sorted(self.books)],
            exits=self.exits,
            faults=self.saboteur.done,
            began_at_ms=self.began_at_ms,
            ended_at_ms=now_ms(),
        )

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            seconds = (now_ms() - self.began_at_ms) / 1_000
            running = sum(one.alive and not one.paused for one in self.workers)
            own = sum(one.cause is None for one in self.exits)
            self.say(
                f"{seconds:4.0f} s: {self.crowd.begun} conversations ({self.crowd.talking} go on),"
                f" {len(self.engine.sent)} events, {len(self.saboteur.done)} faults done,"
                f" {running} workers run, {own} ended by themselves, load {os.getloadavg()[0]:.1f}"
            )

    async def _keep_books(self) -> None:
        while True:
            await asyncio.sleep(BOOKS_EVERY_S)
            try:
                await self._look_at_books()
            except httpx.HTTPError as error:
                self.say(f"the sandbox's books cannot be read just now: {error!r}")

    async def _look_at_books(self) -> None:
        """Take over the sandbox's books; the newest lines again, since they are not final."""
        since, looked_at_ms = max(0, self._looked_at_ms - BOOKS_BACK_MS), now_ms()
        async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
            answer = await http.get(f"{self.sandbox.url}/books", params={"since": since})
        for item in answer.raise_for_status().json()["items"]:
            self.books[item["seq"]] = item
        self._looked_at_ms = looked_at_ms
