"""A child process of `up`: started, watched, started again when it dies, stopped at the end."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents_stream import leash
from agents_stream.core.errors import TerminalError
from agents_stream.up.log_files import LogFile, LogLine
from agents_stream.up.restarts import MAX_QUICK_DEATHS, Restarts, exit_words

# Above the longest that a worker or a gateway allows itself for a clean stop.
STOP_LIMIT_S: Final = 50.0
KILL_LIMIT_S: Final = 5.0
MAX_TOLD_PER_LOOK: Final = 10
TELL_AGAIN_S: Final = 30.0

Say = Callable[[str], None]


class GaveUp(TerminalError):  # noqa: N818 - it says what happened
    """A process died again and again. The message has its last words."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run: `python -m agents_stream <arguments>`, known to people as `name`.

    `preload` is the module that its first life may load before it is let go. `ready_event` is the
    log event by which it says that it works; None where something else tells.
    """

    name: str
    arguments: Sequence[str]
    preload: str
    ready_event: str | None = None


class Child:
    """One process of ours, through all its lives.

    Args:
        spec: what to run.
        environment: its variables, all of them.
        logs: the folder of its log.
        lock: a descriptor that it inherits, by which the next `up` knows that it lives.
        say: where its deaths and warnings are told.

    """

    def __init__(
        self,
        spec: ChildSpec,
        environment: Mapping[str, str],
        logs: Path,
        lock: int,
        say: Say,
    ) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self._released = asyncio.Event()
        self.log = LogFile(logs, spec.name)
        self._environment = environment
        self._lock = lock
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._restarts = Restarts()
        self._told: dict[str, float] = {}

    @property
    def pid(self) -> int | None:
        """The process that lives now, or None between two lives."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def keep(self) -> None:
        """Run it, for ever, until cancelled.

        Raises:
            GaveUp: it died MAX_QUICK_DEATHS times in a row.

        """
        self.log.rotate()
        preload = {leash.PRELOAD: self.spec.preload}
        while True:
            process = await self._start(preload)
            if preload:
                await self._released.wait()
                self._let_go(process)
                preload = {}
            started = time.monotonic()
            code = await process.wait()
            self.look()
            self.ready.clear()
            pause_s = self._restarts.pause_s(time.monotonic() - started, code)
            if pause_s is None:
                raise GaveUp(self._last_words(code))
            self._say(
                f"{self.spec.name} died ({exit_words(code)}); starting it again in {pause_s:g} s"
            )
            await asyncio.sleep(pause_s)

    def release(self) -> None:
        """Let it begin: it is started and loaded by `keep`, and held back until now."""
        self._released.set()

    def look(self) -> list[LogLine]:
        """Read what it has logged; tell of its warnings."""
        lines = self.log.read_new()
        if any(line.event == self.spec.ready_event for line in lines):
            self.ready.set()
        told = [line for line in lines if line.told and self._is_new(line.words)]
        for line in told[:MAX_TOLD_PER_LOOK]:
            self._say(f"{self.spec.name} {line.level}: {line.words}")
        if len(told) > MAX_TOLD_PER_LOOK:
            hidden = len(told) - MAX_TOLD_PER_LOOK
            self._say(f"{self.spec.name}: {hidden} more warnings in {self.log.path}")
        return lines

    def _is_new(self, words: str) -> bool:
        """Whether a warning has not been told in the last TELL_AGAIN_S: a loop repeats itself."""
        now = time.monotonic()
        self._told = {w: at for w, at in self._told.items() if now - at < TELL_AGAIN_S}
        is_new = words not in self._told
        self._told.setdefault(words, now)
        return is_new

    async def stop(self) -> None:
        """Ask it to end and wait; end it by force if it does not. No error if it does not run."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.signal(signal.SIGTERM)
        if not await _ended(process, STOP_LIMIT_S):
            self._say(f"{self.spec.name} does not stop within {STOP_LIMIT_S:g} s: ended by force")
            self.signal(signal.SIGKILL)
            await _ended(process, KILL_LIMIT_S)

    def signal(self, number: signal.Signals) -> bool:
        """Send it a signal; say whether there was anybody to take it."""
        if self.pid is None or self._process is None:
            return False
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
            return True
        return False

    async def _start(self, more: Mapping[str, str]) -> asyncio.subprocess.Process:
        with self.log.open() as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "agents_stream",
                *self.spec.arguments,
                # The leash: this pipe ends when we do (leash.py).
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**self._environment, **more},
                pass_fds=(self._lock,),
                # Ctrl-C reaches the whole foreground group; children are stopped by us, in order.
                start_new_session=True,
            )
        self._process = process
        return process

    def _let_go(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        # A child that is dead by now is seen to be so by whoever waits for it.
        with suppress(OSError):
            process.stdin.write(leash.GO)

    def _last_words(self, code: int) -> str:
        said = "\n  ".join(self.log.last_lines()) or "(nothing)"
        return (
            f"{self.spec.name} died {MAX_QUICK_DEATHS} times in a row, the last time with"
            f" {exit_words(code)}. Its last words ({self.log.path}):\n  {said}"
        )


async def _ended(process: asyncio.subprocess.Process, limit_s: float) -> bool:
    try:
        await asyncio.wait_for(process.wait(), limit_s)
    except TimeoutError:
        return False
    return True
