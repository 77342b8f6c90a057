"""Performing the plan: on processes, on the broker, on the sandbox's tools."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from agents_stream.kafka import embedded
from agents_stream.kafka.broker_process import is_alive, pid_of, wait_until
from agents_stream.settings import Settings
from tests.chaos.engine import now_ms
from tests.chaos.history import FaultDone
from tests.chaos.plan import TOOLS, Fault
from tests.chaos.processes import Process

MIN_WORKERS: Final = 2
STIR_MS: Final = 300
# When the deadlines of a burst begin to be due (`run.TIMING`), and what calls then take.
BURST_DUE_S: Final = 2.5
CALL_MS: Final = 150
CALLS: Final = 10
# Long enough for every stage to come to its next wait, too short for anybody's patience.
STILL_S: Final = 0.15
# After a broker is back, until the next fault of a broker.
CALM_AFTER_S: Final = 12.0
KILL_LIMIT_S: Final = 10.0
_MODES: Final = {
    "tool_fail": "fail",
    "tool_slow": "slow",
    "tool_429": "429",
    "tool_drop": "drop",
    "tool_act_then_drop": "act_then_drop",
}


@dataclass
class Ground:
    """What can be hit."""

    settings: Settings
    workers: list[Process]
    gateways: list[Process]
    sandbox_url: str


@dataclass
class Saboteur:
    """Performs faults at their times; `finish` takes all of them back."""

    ground: Ground
    stir: Callable[[], None]
    done: list[FaultDone] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _broker: asyncio.Lock = field(default_factory=asyncio.Lock)
    _still: asyncio.Lock = field(default_factory=asyncio.Lock)
    failures: list[BaseException] = field(default_factory=list)

    async def follow(self, plan: list[Fault], began: float) -> None:
        """Perform a plan; each fault runs beside the others."""
        loop = asyncio.get_running_loop()
        for fault in plan:
            await asyncio.sleep(max(0.0, began + fault.at_s - loop.time()))
            task = asyncio.create_task(self._perform(fault))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)

    async def finish(self) -> None:
        """Wait for the faults under way, so that each is taken back."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def cut(self) -> None:
        """Drop the faults under way; what was paused goes on."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _perform(self, fault: Fault) -> None:
        kind = fault.kind
        if kind.startswith("tool_"):
            await self._break_tool(fault)
        elif kind.startswith("broker_"):
            await self._break_broker(fault)
        elif kind == "worker_join":
            self._join()
        elif kind == "worker_leave":
            self._leave(fault)
        else:
            await self._hit(fault)

    async def _stir(self, fault: Fault) -> None:
        """Have much under way when the fault comes, each time at another moment of it.

        Half of the faults come when the burst begins, half when its deadlines are due and the
        tools are called; those take a little longer then, so that a gateway is hit in a call.
        """
        self.stir()
        if fault.pick % 2 and not fault.kind.startswith("gateway"):
            await asyncio.sleep(fault.pick % STIR_MS / 1_000)
            return
        await asyncio.sleep(BURST_DUE_S)
        for tool in TOOLS:
            wish = {"tool": tool, "mode": "slow", "delayMs": CALL_MS, "times": CALLS}
            await self._post_fault(wish)
        await asyncio.sleep(fault.pick % STIR_MS / 1_000)

    async def _hit(self, fault: Fault) -> None:
        await self._stir(fault)
        what, how = fault.kind.split("_")
        process = self._pick(
            self.ground.workers if what == "worker" else self.ground.gateways, fault
        )
        if process is None:
            self.skipped[fault.kind] += 1
            return
        began = now_ms()
        if how == "pause":
            process.pause()
            try:
                await asyncio.sleep(fault.for_s)
            finally:
                process.resume()
                self._note(fault.kind, process.name, began)
            return
        if how == "crash":
            await self._crash(process, fault)
        else:
            number = signal.SIGKILL if how == "kill" else signal.SIGTERM
            process.hit(number, fault.kind, fault.for_s)
        self._note(fault.kind, process.name, began, began + round(fault.for_s * 1_000))

    async def _crash(self, process: Process, fault: Fault) -> None:
        """Kill it between two steps: the broker stands still for a moment, and so does each wait.

        What was sent and is not read yet is appended all the same, by a broker that finds nobody
        to acknowledge it to.
        """
        if not is_alive(embedded.files_of(self.ground.settings)):
            process.hit(signal.SIGKILL, fault.kind, fault.for_s)
            return
        async with self._still:
            pid = pid_of(embedded.files_of(self.ground.settings))
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(STILL_S)
                process.hit(signal.SIGKILL, fault.kind, fault.for_s)
                await asyncio.sleep(STILL_S)
            finally:
                os.kill(pid, signal.SIGCONT)

    def _pick(self, places: list[Process], fault: Fault) -> Process | None:
        """One that runs and is not paused; the sabotage of one place waits for its recovery."""
        there = [one for one in places if one.alive and not one.paused]
        return there[fault.pick % len(there)] if there else None

    def _join(self) -> None:
        away = [one for one in self.ground.workers if not one.wanted]
        if not away:
            self.skipped["worker_join"] += 1
            return
        away[0].start()
        self._note("worker_join", away[0].name, now_ms())

    def _leave(self, fault: Fault) -> None:
        wanted = [one for one in self.ground.workers if one.wanted]
        process = self._pick(wanted, fault)
        if len(wanted) <= MIN_WORKERS or process is None or not process.leave("worker_leave"):
            self.skipped["worker_leave"] += 1
            return
        self._note("worker_leave", process.name, now_ms())

    async def _break_broker(self, fault: Fault) -> None:
        """One at a time, with time to recover in between; what has waited too long is left out."""
        asked = time.monotonic()
        async with self._broker:
            if time.monotonic() - asked > CALM_AFTER_S:
                self.skipped[fault.kind] += 1
                return
            await self._stir(fault)
            began = now_ms()
            async with self._still:
                if fault.kind == "broker_pause":
                    pid = pid_of(embedded.files_of(self.ground.settings))
                    os.kill(pid, signal.SIGSTOP)
                    try:
                        await asyncio.sleep(fault.for_s)
                    finally:
                        os.kill(pid, signal.SIGCONT)
                else:
                    await self._restart_broker(fault)
            self._note(fault.kind, "broker", began)
            await asyncio.sleep(CALM_AFTER_S)

    async def _restart_broker(self, fault: Fault) -> None:
        how = kill_broker if fault.kind == "broker_kill" else embedded.stop
        await asyncio.to_thread(how, self.ground.settings)
        await asyncio.sleep(fault.for_s)
        await asyncio.to_thread(embedded.start, self.ground.settings)

    async def _break_tool(self, fault: Fault) -> None:
        tool = TOOLS[fault.pick % len(TOOLS)]
        wish: dict[str, Any] = {"tool": tool, "mode": _MODES[fault.kind]}
        if fault.kind == "tool_slow":
            wish["delayMs"] = fault.delay_ms
        elif fault.kind == "tool_429":
            wish["retryAfterMs"] = fault.delay_ms
        elif fault.kind == "tool_fail":
            wish["status"] = 500
        began = now_ms()
        name = await self._post_fault(wish)
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            async with self._sandbox() as http:
                await http.delete(f"/faults/{name}")
            self._note(fault.kind, tool, began)

    async def _post_fault(self, wish: dict[str, Any]) -> str:
        """Have a tool misbehave; the name by which that is taken back."""
        async with self._sandbox() as http:
            answer = (await http.post("/faults", json=wish)).raise_for_status()
        return str(answer.json()["id"])

    def _sandbox(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.ground.sandbox_url, timeout=10, trust_env=False)

    def _note(self, kind: str, target: str, began: int, ended: int | None = None) -> None:
        self.done.append(FaultDone(kind, target, began, ended or now_ms()))


def kill_broker(settings: Settings) -> None:
    """Kill -9, and wait until it is gone."""
    files = embedded.files_of(settings)
    with suppress(ProcessLookupError):
        os.kill(pid_of(files), signal.SIGKILL)
    assert wait_until(lambda: not is_alive(files), KILL_LIMIT_S), "the broker survived kill -9"
