"""The seams: what of the production modules is replaced while worlds run, and by what."""

import asyncio
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn
from unittest.mock import patch

import aiokafka
import structlog

from agents_stream import app
from agents_stream.core import decider
from agents_stream.core.flows import proactive
from agents_stream.kafka import (
    engine,
    fail_stop,
    fetch_guard,
    resumption,
    stage,
    store,
    survey,
    table,
)
from agents_stream.kafka.topics import SESSIONS_CHANGELOG
from agents_stream.stages import ingress, sessions
from agents_stream.stages.gateway import performer
from agents_stream.stages.gateway import worker as gateway
from tests.simulation.clients import SimConsumer
from tests.simulation.customers import POISON
from tests.simulation.hosting import FaustPart, watch_for_ever
from tests.simulation.loop import Ended, SimTime, current
from tests.simulation.producing import SimProducer
from tests.simulation.surveying import SimSurveyor
from tests.simulation.tools import ATTEMPT, SimCaller

if TYPE_CHECKING:
    from tests.simulation.world import World


@contextmanager
def patched(world: "World") -> Iterator[None]:
    """Have the production code run in this world."""
    with ExitStack() as stack:

        def put(module: Any, name: str, value: Any) -> None:
            stack.enter_context(patch.object(module, name, value))

        clients = {
            "AIOKafkaProducer": (aiokafka.AIOKafkaProducer, _in(world, SimProducer)),
            "AIOKafkaConsumer": (aiokafka.AIOKafkaConsumer, _in(world, SimConsumer)),
            "aiokafka": (aiokafka, SimpleNamespace(AIOKafkaConsumer=_in(world, SimConsumer))),
            "Surveyor": (survey.Surveyor, _in(world, SimSurveyor)),
            "time": (time, SimTime),
            "fail_stop": (fail_stop.fail_stop, _fail_stop),
        }
        for module in [sys.modules[name] for name in sorted(sys.modules)]:
            if module.__name__.startswith("agents_stream."):
                for name, (real, ours) in clients.items():
                    if getattr(module, name, None) is real:
                        put(module, name, ours)
        put(fetch_guard.FetchGuard, "watch", lambda guard, one: setattr(one, "guard", guard))
        put(fail_stop.Watchdog, "start", _start_watchdog)
        _patch_roots(world, put)
        _patch_limits(world, put)
        _patch_disk(world, put)
        put(decider, "RULES", {**decider.RULES, "agent/proactive.send": (_poisoned,)})
        put(performer.Performer, "_call", _noting(performer.Performer._call))
        stack.enter_context(_quiet())
        yield


def _patch_roots(world: "World", put: Callable[[Any, str, Any], None]) -> None:
    def create(parts: engine.Engine) -> Any:
        made = engine.create_app(parts)
        parts.max_backlog_bytes = world.plan.shape.backlog_bytes
        FaustPart(world, made, parts)
        return made

    async def answers(*_: Any, **__: Any) -> None:
        process = current()
        assert process is not None
        while not world.network.reaches(process):  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.5)

    put(app, "create_app", create)
    put(app, "end_now", lambda _code, why: _fail_stop(why))
    put(app, "WebServer", _Absent)
    put(app, "WorkerReads", _Absent)
    put(app, "LetterWatch", _Absent)
    put(app, "Upkeep", _AbsentUpkeep)
    put(app, "AgentsStream", SimpleNamespace(from_settings=_Absent))
    for module in (resumption, gateway):
        put(module, "require_broker", answers)
    for name in ("refuse_broken_topics", "refuse_other_members"):
        put(app, name, answers)
    put(app, "when_unreachable", lambda _: None)
    put(gateway, "refuse_unfit_topics", answers)
    put(gateway, "uuid", SimpleNamespace(uuid4=_seeded_uuid(world.plan.seed)))
    put(performer, "HttpCaller", _in(world, SimCaller))


def _patch_limits(world: "World", put: Callable[[Any, str, Any], None]) -> None:
    shape = world.plan.shape
    put(stage, "MAX_TAKEN_RECORDS", shape.taken_records)
    put(ingress, "MAX_LINES", shape.round_lines)
    put(sessions, "MAX_ENTRIES", shape.pass_entries)
    put(decider, "MAX_RECENT_IDS", shape.remembered_ids)


def _patch_disk(world: "World", put: Callable[[Any, str, Any], None]) -> None:
    put(store, "Rdict", _in(world, Rows))
    put(table.SessionTable, "install", _durable(world, table.SessionTable.install))
    put(store, "WriteBatch", Writes)
    put(store, "_options", lambda: None)


def _in(world: "World", kind: Any) -> Any:
    return lambda *args, **options: kind(world, *args, **options)


def _fail_stop(reason: str, error: BaseException | None = None, code: int = 1) -> NoReturn:
    process = current()
    assert process is not None
    process.end(reason)
    raise Ended(reason) from error


def _start_watchdog(watchdog: fail_stop.Watchdog) -> None:
    asyncio.get_running_loop().create_task(watch_for_ever(watchdog, _fail_stop))


def _poisoned(session: Any, cause: Any) -> Any:
    """`proactive.send`, with the bug that G10 speaks of: a decision that raises, always."""
    if cause.data.get("content") == POISON:
        raise ZeroDivisionError
    return proactive.on_send(session, cause)


def _noting(call: Any) -> Any:
    """Let the tools' books know which attempt they are called for."""

    async def noted(self: Any, tool: Any, command: Any, caller: Any, turn: Any) -> Any:
        ATTEMPT.set(command.attempt)
        return await call(self, tool, command, caller, turn)

    return noted


def _durable(world: "World", install: Any) -> Any:
    """Look at every row that is installed: the changelog must have it already (DESIGN §3)."""

    def looked_at(self: Any, partition: int, rows: Any, next_offset: int) -> None:
        log = world.cluster.logs[SESSIONS_CHANGELOG, partition]
        written = {record.value for record in log.ever[-200:]}
        if not written.issuperset(rows.values()):
            world.fault("G8: a row was installed that is not in the changelog")
        install(self, partition, rows, next_offset)

    return looked_at


def _seeded_uuid(seed: int) -> Callable[[], uuid.UUID]:
    rng = random.Random(f"uuid {seed}")
    return lambda: uuid.UUID(int=rng.getrandbits(128))


@contextmanager
def _quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        yield
    finally:
        structlog.configure(**before)


class _Absent:
    """A part of the worker that no guarantee rests on: its pages, and the producer behind them."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def close(self) -> None:
        """Nothing to close."""


class _AbsentUpkeep(_Absent):
    """No session leaves the table within these minutes, and nobody is warned."""

    def start(self) -> None:  # type: ignore[override] # this one is not awaited
        """Nothing to start."""


class Writes:
    """RocksDB's batch of writes."""

    def __init__(self, **_: Any) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.gone: set[bytes] = set()

    def delete(self, key: bytes) -> None:
        """Take a row away."""
        self.gone.add(key)

    def put(self, key: bytes, row: bytes) -> None:
        """Add a row."""
        self.rows[key] = row


class Rows:
    """RocksDB, on the disk of the machine: whatever was written survives, marked or not."""

    def __init__(self, world: "World", path: str, _: Any) -> None:
        process = current()
        assert process is not None
        self._process = process
        disk = process.machine.disk
        if Path(path).exists():
            world.seen["rows found on disk after a clean stop"] += 1
        else:
            Path(path).mkdir()
            disk.pop(path, None)
        self._rows = disk.setdefault(path, {})

    def get(self, key: bytes) -> bytes | None:
        """A row."""
        return self._rows.get(key)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def write(self, batch: Writes) -> None:
        """Write a batch, unless the process is dead by now."""
        if self._process.alive:
            self._rows.update(batch.rows)
            for key in batch.gone:
                self._rows.pop(key, None)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows."""
        return iter(sorted(self._rows.items()))

    def keys(self, from_key: bytes = b"") -> Iterator[bytes]:
        """All keys from one on."""
        return iter(sorted(key for key in self._rows if key >= from_key))

    def close(self) -> None:
        """Nothing is open. A dead process writes no mark behind it."""
        self._process.check()
