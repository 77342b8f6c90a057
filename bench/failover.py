"""Lateness through failures: three workers, deadlines due all the time, one of them taken away.

A deadline's lateness is its due time subtracted from the stamp that the broker put on the command
that it led to. `extra` is what the failure added: the lateness less the median of the quiet time.
"""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from agents_stream.kafka import topic_admin
from agents_stream.settings import Settings
from tests.conftest import free_port
from tests.kafka.cluster import WorkerProcess
from tests.kafka.deadlines import Deadlines, now_ms

WORKERS: Final = 3
REPLY_MS: Final = 12_000
SETTLE_S: Final = 6.0
MARGIN_MS: Final = 500  # what is due just before a stretch ends may be late by what follows

# Scenario → the bounds of the extra lateness in ms: (p99, max).
LIMITS: Final[dict[str, tuple[float | None, float | None]]] = {
    "quiet": (None, None),
    "kill -9": (15_000, None),
    "join": (None, 3_000),
    "SIGTERM": (None, 3_000),
    "rolling restart": (None, 3_000),
}


@dataclass
class Stretch:
    """One scenario: from when to when its deadlines are counted."""

    name: str
    start_ms: float
    end_ms: float


class Trial:
    """Three workers, and what is done to them."""

    def __init__(self, settings: Settings) -> None:
        self.workers = [WorkerProcess(settings, free_port()) for _ in range(WORKERS)]
        self.stretches: list[Stretch] = []

    async def begin(self) -> None:
        """Start all workers."""
        for worker in self.workers:
            worker.start()
        for worker in self.workers:
            await worker.ready()

    async def stretch(self, name: str, act: Callable[[], Awaitable[None]], settle_s: float) -> None:
        """Do something, let it settle, and note when that was."""
        start_ms = now_ms()
        await act()
        await asyncio.sleep(settle_s)
        self.stretches.append(Stretch(name, start_ms, now_ms() - MARGIN_MS))

    async def rest(self) -> None:
        """Do nothing."""

    async def kill(self) -> None:
        """Take the first worker away without a word."""
        await asyncio.to_thread(self.workers[0].end, signal.SIGKILL)

    async def rejoin(self) -> None:
        """Start the first worker again."""
        await self.workers[0].start().ready()

    async def stop_one(self) -> None:
        """Stop the second worker cleanly."""
        await self._stop(self.workers[1])

    async def roll(self) -> None:
        """Restart one after the other, the next when the last is ready."""
        for worker in self.workers:
            await self._stop(worker)
            await worker.start().ready()
            await asyncio.sleep(1)

    @staticmethod
    async def _stop(worker: WorkerProcess) -> None:
        code = await asyncio.to_thread(worker.end, signal.SIGTERM)
        if code != 0:
            raise SystemExit(f"a worker ended with {code}: {worker.tail()}")

    def end(self) -> None:
        """End whatever runs."""
        for worker in self.workers:
            worker.end(signal.SIGKILL)


async def measure_failover(settings: Settings) -> dict[str, dict[str, float]]:
    """Run all scenarios; of each the count and p50, p99 and max of the extra lateness in ms."""
    settings = settings.model_copy(update={"data_reply_timeout": REPLY_MS})
    await topic_admin.apply(settings)
    trial = Trial(settings)
    async with Deadlines.running(settings) as deadlines:
        try:
            await trial.begin()
            await asyncio.sleep(REPLY_MS / 1_000 + 1)
            await trial.stretch("quiet", trial.rest, 8.0)
            await trial.stretch("kill -9", trial.kill, 14.0)
            await trial.stretch("join", trial.rejoin, SETTLE_S)
            await trial.stretch("SIGTERM", trial.stop_one, SETTLE_S)
            await trial.workers[1].start().ready()
            await asyncio.sleep(SETTLE_S)
            await trial.stretch("rolling restart", trial.roll, SETTLE_S)
            await deadlines.all_ended(now_ms())
        finally:
            trial.end()
    return figures_of(deadlines, trial.stretches)


def figures_of(deadlines: Deadlines, stretches: list[Stretch]) -> dict[str, dict[str, float]]:
    """The extra lateness of each scenario."""
    quiet = sorted(deadlines.lateness(stretches[0].start_ms, stretches[0].end_ms))
    usual = quiet[len(quiet) // 2]
    figures = {}
    for part in stretches:
        extra = sorted(late - usual for late in deadlines.lateness(part.start_ms, part.end_ms))
        figures[part.name] = {
            "deadlines": len(extra),
            "p50": round(extra[len(extra) // 2], 1),
            "p99": round(extra[min(len(extra) - 1, int(len(extra) * 0.99))], 1),
            "max": round(extra[-1], 1),
        }
    return figures


def show_failover(figures: dict[str, dict[str, float]]) -> bool:
    """Print the table; whether every bound of the issue holds."""
    table = Table("scenario", "deadlines", "extra p50 ms", "p99", "max", "limit")
    good = True
    for name, spread in figures.items():
        p99, worst = LIMITS[name]
        good &= (p99 is None or spread["p99"] < p99) and (worst is None or spread["max"] < worst)
        limit = f"p99 {p99:g}" if p99 else f"max {worst:g}" if worst else ""
        cells = (f"{spread[one]:g}" for one in ("deadlines", "p50", "p99", "max"))
        table.add_row(name, *cells, limit)
    Console().print(table)
    return good


def run_failover(settings: Settings, results: Path) -> bool:
    """Measure, write `failover.json`, print; whether the bounds hold."""
    figures = asyncio.run(measure_failover(settings))
    results.mkdir(exist_ok=True)
    (results / "failover.json").write_text(json.dumps(figures, indent=2) + "\n")
    return show_failover(figures)
