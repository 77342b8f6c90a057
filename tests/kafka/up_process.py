"""`agents-stream up` as a process: what a person at a terminal has of it."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import httpx

from agents_stream.kafka import embedded
from agents_stream.settings import Settings
from tests.conftest import free_port

ROOT = Path(__file__).parents[2]
READY_S = 60.0
LIMIT_S = 60.0
POLL_S = 0.1


def until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait until a condition holds."""
    give_up_at = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {limit_s:g} s: {what}"
        time.sleep(POLL_S)


@dataclass
class Up:
    """One `up`, with a data directory and ports of its own. Leaving it leaves no process."""

    folder: Path
    arguments: Sequence[str] = ()
    variables: dict[str, str] = field(default_factory=dict)
    kafka_port: int = field(default_factory=free_port)
    web_port: int = field(default_factory=free_port)
    sandbox_port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def place(self) -> Path:
        """Where it keeps its broker and its lock."""
        return self.folder / "data"

    @property
    def settings(self) -> Settings:
        """Its settings, for those who talk to its Kafka."""
        return Settings(bootstrap_servers=f"127.0.0.1:{self.kafka_port}", data_dir=self.place)

    @property
    def web(self) -> str:
        """Where the worker answers."""
        return f"http://127.0.0.1:{self.web_port}"

    @property
    def sandbox(self) -> str:
        """Where the sandbox answers."""
        return f"http://127.0.0.1:{self.sandbox_port}"

    @property
    def output(self) -> str:
        """What it has said so far, over all its starts."""
        return (self.folder / "output.txt").read_text("utf-8")

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the process."""
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "AGENTS_STREAM_BOOTSTRAP_SERVERS": f"127.0.0.1:{self.kafka_port}",
            "AGENTS_STREAM_DATA_DIR": str(self.folder / "data"),
            "AGENTS_STREAM_WEB_PORT": str(self.web_port),
            "AGENTS_STREAM_PARTITIONS": "2",
            **self.variables,
        }

    @property
    def command(self) -> list[str]:
        """The command line."""
        ports = ("--sandbox-port", str(self.sandbox_port))
        return [sys.executable, "-m", "agents_stream", "up", *ports, *self.arguments]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(LIMIT_S)
            self.process.kill()
            self.process.wait()
        until(self.is_over, "every child has ended")
        embedded.stop(self.settings)

    def start(self) -> None:
        """Start it and return at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def until_ready(self, starts: int = 1) -> None:
        """Wait until it has said `starts` times that it is ready."""
        until(lambda: self.output.count("  ready in ") >= starts or self.has_ended(), "ready")
        assert not self.has_ended(), self.output

    def until_said(self, words: str) -> None:
        """Wait until it has said something."""
        until(lambda: words in self.output, f"{words!r} in {self.output}")

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self.process is None or self.process.poll() is not None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)

    def children(self) -> dict[str, int]:
        """The processes of its children by name."""
        assert self.process is not None
        found = {}
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        for line in listed.stdout.splitlines():
            pid, *words = line.split()
            if "agents_stream" in words:
                found[words[words.index("agents_stream") + 1]] = int(pid)
        return found

    def is_over(self) -> bool:
        """Whether no process of it lives: its children inherit its lock."""
        try:
            with (self.place / "up.lock").open() as lock:
                return _can_lock(lock)
        except FileNotFoundError:
            return True

    def answers(self, url: str) -> bool:
        """Whether somebody answers 200."""
        try:
            return httpx.get(url, timeout=2).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def send(self, name: str, **data: str) -> None:
        """Publish an event over HTTP."""
        answer = httpx.post(f"{self.web}/api/events", json={"name": name, "data": data}, timeout=5)
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text

    def messages(self) -> list[str]:
        """What WhatsApp was really asked to send, since the sandbox was started."""
        items = httpx.get(f"{self.sandbox}/books/messages", timeout=5).json()["items"]
        return [item["message"] for item in items]


def _can_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
