"""Simulated time, and processes that can be killed and paused between any two steps.

One event loop runs everything: brokers, workers, gateways, customers. Time stands still while
something can run and jumps to the next timer when nothing can, so a minute costs milliseconds and
two runs of the same seed are the same run. Whatever a process starts carries it in its context:
a paused process's steps are put aside until it goes on, a killed one's never come.
"""

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

EPOCH_MS: Final = 1_700_000_000_000
MAX_STEPS: Final = 400_000

_PROCESS: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)


class Stuck(Exception):  # noqa: N818 - a state of the world, not of a program
    """The world does not come to an end: nothing is left to run, or far too much."""


class Ended(BaseException):
    """The process ends itself here. No `except Exception` may hold it up."""


@dataclass(eq=False)
class Machine:
    """What outlives a process: its disk, and a monotonic clock of its own."""

    name: str
    clock_ms: float
    wall_skew_ms: int
    slept_ms: float = 0.0
    disk: dict[str, dict[bytes, bytes]] = field(default_factory=dict)


@dataclass(eq=False)
class Process:
    """One run of a worker or a gateway."""

    name: str
    machine: Machine
    loop: "SimLoop"
    alive: bool = True
    paused: bool = False
    cut_until: float = 0.0
    tasks: dict["asyncio.Task[Any]", None] = field(default_factory=dict)  # a set has no order
    frozen: deque[asyncio.Handle] = field(default_factory=deque)
    reason: str = ""
    on_end: Callable[["Process"], None] = lambda _: None

    def run(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Start a task inside of this process."""
        context = contextvars.copy_context()
        context.run(_PROCESS.set, self)
        return self.loop.create_task(work, name=name, context=context)

    def pause(self) -> None:
        """SIGSTOP: no step of it runs any more. What it has sent is on its way."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self.paused = False
        self.loop.thaw(self.frozen)

    def end(self, reason: str) -> None:
        """The process is gone. Its tasks are wound up, with nothing left that they can reach."""
        if not self.alive:
            return
        self.alive, self.reason = False, reason
        self.resume()
        for task in list(self.tasks):
            task.cancel()
        self.on_end(self)

    def check(self) -> None:
        """Whoever reaches for the world from a dead process is stopped here."""
        if not self.alive:
            raise asyncio.CancelledError

    def monotonic(self) -> float:
        """Its machine's monotonic clock, in seconds."""
        return self.loop.time() + (self.machine.clock_ms - self.machine.slept_ms) / 1_000


def current() -> Process | None:
    """The process whose step this is; None in the world around them."""
    return _PROCESS.get()


class SimLoop(asyncio.BaseEventLoop):
    """An event loop whose time is simulated."""

    # BaseEventLoop's own state, which it does not declare.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self.steps = 0
        self.failures: list[str] = []
        self.set_task_factory(self._new_task)

    def time(self) -> float:
        """Seconds since the beginning of the world."""
        return self._now

    @property
    def now_ms(self) -> float:
        """The true time, which no clock in the world shows exactly."""
        return EPOCH_MS + self._now * 1_000

    def in_world(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> None:
        """Do something later that is no process's: a request on its way, a broker's work."""
        self.call_at(self._now + delay_s, callback, *args, context=_WORLD)

    def thaw(self, frozen: deque[asyncio.Handle]) -> None:
        """Let the steps go on that were put aside."""
        self._ready.extend(frozen)
        frozen.clear()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note what asyncio found; what was left over by a dead process is no failure."""
        error = context.get("exception")
        if not isinstance(error, Ended | asyncio.CancelledError):
            self.failures.append(f"{context['message']}: {error!r}")

    def _new_task(
        self, loop: asyncio.AbstractEventLoop, work: Any, **kwargs: Any
    ) -> "asyncio.Task[Any]":
        task = asyncio.Task(work, loop=loop, **kwargs)
        process = _process_of(kwargs.get("context"))
        if process is not None:
            process.tasks[task] = None
            task.add_done_callback(lambda done: process.tasks.pop(done, None))
            if not process.alive:
                task.cancel()
        return task

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        if not ready:
            while scheduled and scheduled[0].cancelled():
                heapq.heappop(scheduled)
            if not scheduled:
                raise Stuck("nothing is left to run")
            self._now = max(self._now, scheduled[0].when())
        while scheduled and scheduled[0].when() <= self._now:
            ready.append(heapq.heappop(scheduled))
        self.steps += len(ready)
        if self.steps > MAX_STEPS:
            raise Stuck(f"more than {MAX_STEPS} steps")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle.cancelled():
                continue
            process = handle._context.get(_PROCESS)  # type: ignore[attr-defined]
            if process is not None and process.paused:
                process.frozen.append(handle)
                continue
            handle._run()

    def _process_events(self, event_list: Any) -> None:
        """There are no files and sockets here."""

    def _write_to_self(self) -> None:
        """There is no other thread to be woken from."""

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are left to their time."""


def _process_of(context: contextvars.Context | None) -> Process | None:
    return _PROCESS.get() if context is None else context.get(_PROCESS)


_WORLD: Final = contextvars.copy_context()


class SimTime:
    """The module `time`, as a process of the world sees it."""

    @staticmethod
    def monotonic() -> float:
        """Seconds of this machine's monotonic clock."""
        process = _PROCESS.get()
        assert process is not None
        return process.monotonic()

    @staticmethod
    def time() -> float:
        """Seconds since the epoch, by this machine's clock, which may be far off."""
        process = _PROCESS.get()
        assert process is not None
        return (process.loop.now_ms + process.machine.wall_skew_ms) / 1_000
