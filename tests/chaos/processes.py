"""Workers, gateways and the sandbox as processes, kept alive as a supervisor would.

What dies is started again. Every exit is written down with its cause: the fault that ended it, or
none where it ended by itself, with its last words.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import orjson

from agents_stream import leash
from tests.chaos.engine import now_ms
from tests.chaos.history import Exit

READY_LIMIT_S: Final = 60.0
STOP_LIMIT_S: Final = 45.0
OWN_RESTART_S: Final = 1.0
TAIL_BYTES: Final = 64 * 1024
MAX_WORDS: Final = 300


@dataclass
class Process:
    """One place for a process, through all its lives; folder and port stay the same."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    folder: Path
    port: int
    exits: list[Exit]
    _child: asyncio.subprocess.Process | None = None
    _keeper: asyncio.Task[None] | None = None
    _cause: str | None = None
    _again_s: float = OWN_RESTART_S
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)
    paused: bool = False

    @property
    def log(self) -> Path:
        """Where its output goes, all lives in one."""
        return self.folder / "log.txt"

    @property
    def url(self) -> str:
        """Where it answers, if it does."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether it runs (or is paused) and has not been told to end."""
        return self._child is not None and self._child.returncode is None and not self._cause

    @property
    def wanted(self) -> bool:
        """Whether it is to run."""
        return self._wanted.is_set()

    def start(self) -> None:
        """Run it, and again whenever it ends, until `leave` or `stop`."""
        self._wanted.set()
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name=self.name)

    def hit(self, number: signal.Signals, cause: str, again_s: float) -> bool:
        """End it for a while; False if there is nothing to end."""
        if not self.alive or self.paused:
            return False
        self._cause, self._again_s = cause, again_s
        self._signal(number)
        return True

    def leave(self, cause: str) -> bool:
        """End it and do not start it again."""
        self._wanted.clear()
        return self.hit(signal.SIGTERM, cause, 0.0)

    def pause(self) -> bool:
        """Stop the clock of it."""
        if not self.alive or self.paused:
            return False
        self.paused = True
        self._signal(signal.SIGSTOP)
        return True

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)
        self.paused = False

    async def ready(self) -> None:
        """Wait until it owns its partitions and has recovered (a worker), or answers at all.

        Raises:
            TimeoutError: it does not.

        """
        async with asyncio.timeout(READY_LIMIT_S), httpx.AsyncClient(timeout=2) as http:
            while True:
                try:
                    if (await http.get(f"{self.url}/readyz")).status_code in {200, 404}:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.2)

    async def stop(self, cause: str = "end") -> None:
        """End it cleanly and for good; by force if it does not end."""
        self._wanted.clear()
        self.hit(signal.SIGTERM, cause, 0.0)
        child = self._child
        if child is not None and child.returncode is None:
            try:
                await asyncio.wait_for(child.wait(), STOP_LIMIT_S)
            except TimeoutError:
                self._cause = None
                self._signal(signal.SIGKILL)
                await child.wait()
        if self._keeper is not None:
            await asyncio.sleep(0)
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None

    def kill(self) -> None:
        """End it now, paused or not."""
        self._wanted.clear()
        if self._keeper is not None:
            self._keeper.cancel()
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None and self._child.returncode is None:
            self._child.send_signal(number)

    async def _keep(self) -> None:
        while True:
            await self._wanted.wait()
            self.folder.mkdir(parents=True, exist_ok=True)
            size = self.log.stat().st_size if self.log.exists() else 0
            self._cause, self._again_s = None, OWN_RESTART_S
            self._child = await self._spawn()
            began = time.monotonic()
            code = await self._child.wait()
            words = "" if self._cause else last_words(self.log, size)
            lived_s = round(time.monotonic() - began, 1)
            self.exits.append(Exit(self.name, code, now_ms(), self._cause, words, lived_s))
            await asyncio.sleep(self._again_s)

    async def _spawn(self) -> asyncio.subprocess.Process:
        with self.log.open("ab") as out:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *self.command,
                # The leash: should this runner die, its processes end by themselves.
                stdin=asyncio.subprocess.PIPE,
                stdout=out,
                stderr=out,
                cwd=self.folder,  # no .env of whoever runs this
                env={**os.environ, **self.environment, leash.VARIABLE: leash.STDIN},
                start_new_session=True,
            )


def last_words(log: Path, since: int) -> str:
    """Why a process says that it ends: its last critical or error line, else its last line."""
    with log.open("rb") as file:
        file.seek(max(since, log.stat().st_size - TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    for line in reversed(said):
        told = _told(line)
        if told.get("level") == "critical":
            return f"{told.get('event')}: {told.get('reason', '')}"[:MAX_WORDS]
    return (said[-1] if said else "(nothing)")[:MAX_WORDS]


def _told(line: str) -> dict[str, str]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
