"""timers: one wheel per owned partition, an index over the deadlines in the records.

It owns nothing and writes no table: the wheel is rebuilt from the rows after a recovery, and
follows every record that the sessions stage installs. Where a rebalance leaves the rows as they
are, it leaves their wheel as well. What is due it publishes, once, to
`session.deadlines`, in the partition in which the session's events arrive, so that ingress merges
it with them. A deadline is published again only after a restart, or when the reducer refused it
as early. It acts by the brokers' clock, of which it knows a lower bound: never early (G4).
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol
from weakref import WeakKeyDictionary, ref

import orjson
import structlog

from agents_stream.core.session import Alarms, SessionRecord, decode_alarms
from agents_stream.core.wheel import TimerWheel
from agents_stream.kafka import metrics
from agents_stream.kafka.appender import Appender, Line, Pending
from agents_stream.kafka.engine import Engine
from agents_stream.kafka.fail_stop import exit_code_of, fail_stop
from agents_stream.kafka.topics import DEADLINES

log = structlog.get_logger()

_IDLE_S: Final = 3_600.0
_REBUILD_SLICE: Final = 1_000
_PUBLISH_SLICE: Final = 5_000
# The bound on the brokers' time may sink a little from minute to minute; this is more.
_SET_BACK_MS: Final = 1_000


@dataclass(frozen=True, slots=True)
class _Timer:
    """What a timer id stands for."""

    session_id: str
    name: str
    generation: int
    due_at_ms: int
    home: int

    def to_wire(self) -> bytes:
        """The deadline as it stands on `session.deadlines`."""
        return orjson.dumps(
            {
                "sessionId": self.session_id,
                "name": self.name,
                "generation": self.generation,
                "dueAt": self.due_at_ms,
            }
        )


class Rows(Protocol):
    """The rows of a partition that is owned."""

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        """All rows, by key."""


@dataclass(slots=True)
class _Index:
    """One partition's wheel, and the deadlines it knows: those published are not in the wheel.

    `rows` tells the rows that it was made from and has followed since, while they are in use.
    """

    rows: Callable[[], Rows | None] = lambda: None
    wheel: TimerWheel = field(default_factory=TimerWheel)
    timers: dict[int, _Timer] = field(default_factory=dict)
    by_session: dict[str, dict[str, int]] = field(default_factory=dict)

    def turn_back(self, now_ms: int) -> None:
        """The brokers' clock was ahead and has been put right: a wheel turns one way only."""
        waiting = [timer_id for timer_id in self.timers if timer_id in self.wheel]
        log.warning("the brokers' clock went back", by_ms=self.wheel.now_ms - now_ms)
        self.wheel = TimerWheel(now_ms)
        for timer_id in waiting:
            self.wheel.schedule(timer_id, self.timers[timer_id].due_at_ms)


class Timers:
    """All wheels of a worker, and the task that publishes what is due."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._appender = Appender(engine.settings, engine.clock, engine.watchdog)
        self._indexes: dict[int, _Index] = {}
        self._resting: WeakKeyDictionary[Rows, _Index] = WeakKeyDictionary()
        self._topic = engine.topic(DEADLINES)
        self._next_id = 0
        self._revokes = 0
        self._wake = asyncio.Event()
        self._look_by = math.inf
        self._task: asyncio.Task[None] | None = None
        engine.revoke_hooks.append(self.forget)
        metrics.PENDING_TIMERS.set_function(lambda: sum(self.sizes().values()))

    async def start(self) -> None:
        """Connect and begin to publish what is due."""
        await self._appender.start()
        self._task = asyncio.create_task(self._publish_for_ever(), name="timers")

    async def stop(self) -> None:
        """Stop publishing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._appender.stop()

    def sizes(self) -> dict[int, int]:
        """How many deadlines each owned partition's wheel holds."""
        return {partition: len(index.wheel) for partition, index in self._indexes.items()}

    def forget(self) -> None:
        """The partitions are gone, and those being rebuilt as well; their wheels rest."""
        for index in self._indexes.values():
            if (rows := index.rows()) is not None:
                self._resting[rows] = index
        self._indexes = {}
        self._revokes += 1

    async def rebuild(self, partition: int, rows: Rows) -> None:
        """Make a partition's wheel from its rows, and from nothing else.

        If these very rows were here before the rebalance, their wheel has followed every change
        of them, and is taken up again as it is.
        """
        resting = self._resting.pop(rows, None)
        if resting is not None:
            self._indexes[partition] = resting
            self._wake_up()
            return
        index, revokes = _Index(ref(rows)), self._revokes
        for number, (_, row) in enumerate(rows.items()):
            self._follow(index, partition, decode_alarms(row))
            if number % _REBUILD_SLICE == 0:
                await asyncio.sleep(0)
        if self._revokes == revokes:
            self._indexes[partition] = index
            self._wake_up()

    def follow(self, partition: int, record: SessionRecord) -> None:
        """The deadlines of this session are now those of the record; none while it is paused."""
        self._follow(self._indexes.setdefault(partition, _Index()), partition, record)

    def _follow(self, index: _Index, partition: int, record: SessionRecord | Alarms) -> None:
        known = index.by_session.get(record.session_id, {})
        wanted = {} if record.paused else record.deadlines
        for name in [name for name in known if name not in wanted]:
            self._drop(index, record.session_id, name)
        for name, deadline in wanted.items():
            timer_id = known.get(name)
            home = partition if record.home is None else record.home
            if timer_id is not None:
                timer = index.timers[timer_id]
                # What waits goes where the events arrive now; what is under way has been sent.
                is_well_placed = timer.home == home or timer_id not in index.wheel
                if timer.generation == deadline.generation and is_well_placed:
                    continue
                self._drop(index, record.session_id, name)
            timer = _Timer(record.session_id, name, deadline.generation, deadline.due_at_ms, home)
            self._add(index, timer, deadline.due_at_ms)

    def again(self, partition: int, session_id: str, name: str, late_by_ms: int) -> None:
        """The reducer refused a deadline as early by so much: publish it again then."""
        index = self._indexes.get(partition, _Index())
        timer_id = index.by_session.get(session_id, {}).get(name)
        if timer_id is None:
            return
        log.info("deadline was early", session=session_id, name=name, by_ms=late_by_ms)
        index.wheel.schedule(timer_id, self.engine.clock.now_ms() + late_by_ms)
        self._wake_up()

    def _add(self, index: _Index, timer: _Timer, due_at_ms: int) -> None:
        self._next_id += 1
        index.timers[self._next_id] = timer
        index.by_session.setdefault(timer.session_id, {})[timer.name] = self._next_id
        index.wheel.schedule(self._next_id, due_at_ms)
        self._wake_up()

    @staticmethod
    def _drop(index: _Index, session_id: str, name: str) -> None:
        names = index.by_session[session_id]
        timer_id = names.pop(name)
        if not names:
            del index.by_session[session_id]
        del index.timers[timer_id]
        index.wheel.cancel(timer_id)

    def stalled_s(self) -> float:
        """How long the wheels have not been looked at although it was time, in seconds."""
        return max(0.0, time.monotonic() - self._look_by)

    def _wake_up(self) -> None:
        self._look_by = min(self._look_by, time.monotonic())
        self._wake.set()

    async def _publish_for_ever(self) -> None:
        try:
            while True:
                self._wake.clear()
                await self._publish_due()
                await self._sleep_until_next()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, a restart is the cure
            words = f"the timers failed: {type(error).__name__}: {error}"
            fail_stop(words, error, exit_code_of(error))

    async def _publish_due(self) -> None:
        if not self.engine.clock.known:
            return
        now_ms = self.engine.clock.now_ms()
        for index in self._indexes.values():
            if index.wheel.now_ms - now_ms > _SET_BACK_MS:
                index.turn_back(now_ms)
        due = [
            index.timers[timer_id]
            for index in self._indexes.values()
            for _, timer_id in index.wheel.advance(now_ms)
        ]
        # After an outage all timers may be due at once: other work goes on between the slices.
        for start in range(0, len(due), _PUBLISH_SLICE):
            pending = Pending()
            for timer in due[start : start + _PUBLISH_SLICE]:
                line = Line(timer.session_id.encode(), timer.to_wire())
                pending.add(self._topic, timer.home, line)
            with self.engine.watchdog.span("timers"):
                await self._appender.append(pending)

    async def _sleep_until_next(self) -> None:
        """Wait for the next due time, or for word of an earlier one."""
        dues = [
            max(due, index.wheel.now_ms)
            for index in self._indexes.values()
            if (due := index.wheel.next_due_at_ms()) is not None
        ]
        nearest = min(dues, default=None)
        wait_s = _IDLE_S
        if nearest is not None and self.engine.clock.known:
            wait_s = min(wait_s, max(0.0, self.engine.clock.wait_ms(nearest) / 1_000))
        self._look_by = time.monotonic() + wait_s
        if wait_s == 0.0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            pass
