"""`python -m bench`: start a broker and a worker, measure, write bench/results, print a table."""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from agents_stream.kafka import embedded, topic_admin
from agents_stream.settings import Settings
from bench.failover import run_failover
from bench.floor import bare_chain
from bench.lateness import measure
from tests.conftest import free_port
from tests.kafka.cluster import environment

RESULTS = Path(__file__).parent / "results"
IDLE_S = 15
PARTS = ("low_rate", "failover")
LIMITS = {
    "event_to_command_ms": (40, 150),
    "due_to_command_ms": (40, 150),
    "floor_chain_ms": (None, None),
}


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of all values lie."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1)


def main() -> int:
    """Measure everything; the exit code says whether the issue's limits hold."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to run; else all")
    parser.add_argument("--sessions", type=int, default=150)
    parser.add_argument("--rate", type=float, default=10)
    parser.add_argument("--store", choices=["memory", "rocksdb"], default="memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            bootstrap_servers=f"127.0.0.1:{free_port()}",
            data_dir=Path(folder),
            web_port=free_port(),
            promos_reply_timeout=2_000,
            store=options.store,
        )
        embedded.start(settings)
        good = True
        try:
            if "low_rate" in (options.parts or PARTS):
                good &= low_rate(settings, options.sessions, options.rate)
            if "failover" in (options.parts or PARTS):
                apart = settings.model_copy(update={"topic_prefix": "failover."})
                good &= run_failover(apart, RESULTS)
        finally:
            embedded.stop(settings)
    return 0 if good else 1


def low_rate(settings: Settings, sessions: int, rate: float) -> bool:
    """Measure latency and lateness at a low rate; whether the limits hold."""
    figures = run(settings, sessions, rate)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "low_rate.json").write_text(json.dumps(figures, indent=2) + "\n")
    return show(figures) == 0


def run(settings: Settings, sessions: int, rate: float) -> dict[str, object]:
    """The figures of one run."""
    apart = settings.model_copy(update={"topic_prefix": "floor."})
    for one in (apart, settings):
        asyncio.run(topic_admin.apply(one))
    floor = asyncio.run(bare_chain(apart, sessions, rate))
    started = time.monotonic()
    worker = subprocess.Popen(
        [sys.executable, "-m", "agents_stream", "worker"],
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_ready(settings.listen_url)
        ready_s = time.monotonic() - started
        measured = asyncio.run(measure(settings, sessions, rate))
        before = cpu_seconds(worker.pid)
        time.sleep(IDLE_S)
        idle = (cpu_seconds(worker.pid) - before) / IDLE_S * 100
        resident = resident_mb(worker.pid)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(30)
    spread = {
        "event_to_command_ms": measured.event_to_command,
        "due_to_command_ms": measured.due_to_command,
        "floor_chain_ms": floor,
    }
    return {
        "sessions": sessions,
        "rate": rate,
        "store": settings.store,
        **{
            name: {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99)}
            for name, values in spread.items()
        },
        "worker_ready_s": round(ready_s, 1),
        "idle_cpu_percent": round(idle, 2),
        "idle_resident_mb": round(resident),
    }


def wait_ready(url: str) -> None:
    """Wait for /readyz."""
    for _ in range(400):
        try:
            if httpx.get(f"{url}/readyz", timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise SystemExit("the worker did not become ready")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def show(figures: dict[str, object]) -> int:
    """Print the table; 1 if a limit is broken."""
    table = Table("figure", "p50 / value", "p99", "limit")
    good = True
    for name, (median, tail) in LIMITS.items():
        spread = figures[name]
        assert isinstance(spread, dict)
        limit = "" if median is None else f"{median} / {tail}"
        good &= median is None or (spread["p50"] < median and spread["p99"] < tail)
        table.add_row(name, str(spread["p50"]), str(spread["p99"]), limit)
    for name, limit_value in (("idle_cpu_percent", 3), ("idle_resident_mb", 150)):
        value = figures[name]
        assert isinstance(value, int | float)
        good &= value < limit_value
        table.add_row(name, str(value), "", str(limit_value))
    table.add_row("worker_ready_s", str(figures["worker_ready_s"]), "", "")
    Console().print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
