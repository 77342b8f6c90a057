"""upkeep: once an hour over all rows of a worker, in small steps between its other work.

It takes closed sessions out of the table that nothing old can name any more (`forgetting.py`), and
warns where Kafka keeps things for less time than the oldest session is open (`retention.py`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog
from aiokafka.errors import KafkaError

from agents_stream.core.errors import AgentsStreamError
from agents_stream.core.session import decode_record
from agents_stream.kafka import metrics, ranges
from agents_stream.kafka.appender import Line, Pending
from agents_stream.kafka.engine import Engine
from agents_stream.kafka.fail_stop import exit_code_of, fail_stop
from agents_stream.kafka.forgetting import may_leave
from agents_stream.kafka.retention import Oldest, watch
from agents_stream.kafka.table import SessionTable
from agents_stream.kafka.topics import JOURNAL, SESSIONS_CHANGELOG, load_topics

log = structlog.get_logger()

FIRST_AFTER_S: Final = 30.0
EVERY_S: Final = 3_600.0
ROWS_AT_ONCE: Final = 50
PAUSE_S: Final = 0.005  # a million rows take two minutes, and no deadline waits for them
FORGOTTEN_AT_ONCE: Final = 200

Place = tuple[str, int]
AskBegins = Callable[[], Awaitable[Mapping[Place, int]]]


@dataclass(frozen=True, slots=True)
class _Begins:
    """Where the journal begins, by partition, and every source, by its name in `seen`."""

    journal: Mapping[int, int]
    sources: Mapping[str, int]


class Upkeep:
    """The round over the rows. `lock` is that of the stage which writes the table."""

    def __init__(
        self,
        engine: Engine,
        app: Any,
        table: SessionTable,
        lock: asyncio.Lock,
        ask_begins: AskBegins | None = None,
    ) -> None:
        self.engine = engine
        self.app = app
        self.table = table
        self.lock = lock
        self._ask_begins = ask_begins or self._ask_kafka
        self._changelog = engine.topic(SESSIONS_CHANGELOG)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to go round."""
        self._task = asyncio.create_task(self._go_round_for_ever(), name="upkeep")

    async def stop(self) -> None:
        """Stop where it is: nothing is half done."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def go_round(self) -> int:
        """One round; how many sessions left the table."""
        found = await self._ask_begins()
        journal = self.engine.topic(JOURNAL)
        begins = _Begins(
            {number: begin for (topic, number), begin in found.items() if topic == journal},
            {f"{topic}/{number}": begin for (topic, number), begin in found.items()},
        )
        forgotten = 0
        oldest: list[Oldest] = []
        for partition in sorted(self.table.partitions_owned):
            leaving, eldest = await self._look_at(partition, begins)
            for index in range(0, len(leaving), FORGOTTEN_AT_ONCE):
                some = leaving[index : index + FORGOTTEN_AT_ONCE]
                forgotten += await self._forget(partition, some, begins)
            oldest += [] if eldest is None else [eldest]
        if forgotten:
            log.info("closed sessions left the table", sessions=forgotten)
            metrics.FORGOTTEN.inc(forgotten)
        await watch(self.engine, oldest, self.engine.clock.now_ms())
        return forgotten

    async def _look_at(self, partition: int, begins: _Begins) -> tuple[list[bytes], Oldest | None]:
        """The sessions of a partition that may leave, and the open one that is oldest."""
        found: list[bytes] = []
        oldest: Oldest | None = None
        for number, key in enumerate(self.table.session_keys(partition)):
            if number % ROWS_AT_ONCE == 0:
                await asyncio.sleep(PAUSE_S)
            row = self.table.row(partition, key)
            if row is None:
                continue
            told = orjson.loads(row)
            if told["status"] == "closed":
                is_named = told["journal_offset"] >= begins.journal.get(partition, 0)
                if not is_named and self._may_leave(partition, row, begins):
                    found.append(key)
            elif oldest is None or told["opened_offset"] < oldest.opened_offset:
                opened, touched = told["opened_offset"], told["journal_timestamp"]
                oldest = Oldest(told["session_id"], partition, opened, touched)
        return found, oldest

    def _may_leave(self, partition: int, row: bytes, begins: _Begins) -> bool:
        journal_begin = begins.journal.get(partition, 0)
        now_ms = self.engine.clock.now_ms()
        return may_leave(decode_record(row), journal_begin, begins.sources, now_ms)

    async def _forget(self, partition: int, keys: Sequence[bytes], begins: _Begins) -> int:
        """Write tombstones, wait, take the rows out; the stage and every revoke wait meanwhile."""
        async with self.lock:
            is_whole = self.app.tables.recovery.completed.is_set()
            if not is_whole or self.engine.membership.proven_at_ms is None:
                return 0  # a rebalance is under way: these rows may be of the past
            rows = {key: self.table.row(partition, key) for key in keys}
            gone: dict[bytes, bytes | None] = {
                key: None
                for key, row in rows.items()
                if row is not None and self._may_leave(partition, row, begins)
            }
            if not gone:
                return 0
            pending = Pending()
            stamp = self.engine.fence_timestamp()
            for key in gone:
                pending.add(self._changelog, partition, Line(key, None, (), stamp))
            try:
                nexts = await self.engine.sessions_appender.append(pending)
            except KafkaError as error:
                # What was written is not known, as for a stage: a restart finds out.
                fail_stop(f"the upkeep failed: {error!r}", error, exit_code_of(error))
            self.table.install(partition, gone, nexts[self._changelog, partition])
            return len(gone)

    async def _ask_kafka(self) -> Mapping[Place, int]:
        """Where the journal and the inputs begin now, in every partition."""
        names = [JOURNAL, *(spec.name for spec in load_topics().inputs)]
        numbers = range(self.engine.settings.partitions)
        places = [(self.engine.topic(name), number) for name in names for number in numbers]
        async with ranges.reader(self.engine.settings) as client:
            spans = await ranges.bounds(client, places)
        return {place: begin for place, (begin, _) in spans.items()}

    async def _go_round_for_ever(self) -> None:
        await asyncio.sleep(FIRST_AFTER_S)
        while True:
            try:
                await self.go_round()
            except (KafkaError, AgentsStreamError, OSError) as error:
                # Nothing hangs on it: what could not be done now is done in an hour.
                log.warning("the upkeep was left out", why=repr(error))
            await asyncio.sleep(EVERY_S)
