"""The embedded broker under `up`: started or joined, watched, stopped if it is ours."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from agents_stream.core.errors import TerminalError
from agents_stream.kafka import broker_process, embedded
from agents_stream.kafka.broker_process import BrokerNotStarted
from agents_stream.kafka.progress import Reporter
from agents_stream.settings import Settings
from agents_stream.up.children import GaveUp
from agents_stream.up.restarts import Restarts

LOOK_EVERY_S: Final = 0.5
_MARK_NAME: Final = "up.broker"


class StartInterrupted(TerminalError):  # noqa: N818 - it says what happened
    """The start was given up because `up` is to stop."""


class Broker:
    """The broker of one data directory.

    What `up` starts it stops; a broker that somebody else started (`kafka start`) it leaves alone.
    A mark with the process id tells the broker of a killed `up` from that.
    """

    def __init__(self, settings: Settings, reporter: Reporter, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._reporter = _Interruptible(reporter)
        self._say = say
        self._files = embedded.files_of(settings)
        self._mark: Path = settings.data_dir / _MARK_NAME
        self._restarts = Restarts()
        self._started_at = 0.0
        self._launching: asyncio.Task[None] | None = None
        self.ours = False

    async def start(self) -> None:
        """Start it, or join the one that runs.

        Raises:
            TerminalError: it cannot be started; the message says why.

        """
        self._launching = asyncio.create_task(self._launch())
        # Shielded: a thread cannot be cancelled, and what it starts has to be stopped.
        await asyncio.shield(self._launching)

    async def _launch(self) -> None:
        info = await asyncio.to_thread(embedded.start, self._settings, progress=self._reporter)
        self._started_at = time.monotonic()
        self.ours = info.started or self._marked_pid() == info.pid
        if info.started:
            self._mark.write_text(str(info.pid), "ascii")
        elif not self.ours:
            self._say(f"using the broker that runs already (process {info.pid}); it will stay")

    async def keep(self) -> None:
        """Watch it, and start it again when it dies, for ever, until cancelled.

        Raises:
            GaveUp: it died or would not start too often in a row.

        """
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if broker_process.is_alive(self._files):
                continue
            lived_s = time.monotonic() - self._started_at
            await self._start_again(lived_s, "its process is gone")

    async def _start_again(self, lived_s: float, why: str) -> None:
        while True:
            pause_s = self._restarts.pause_s(lived_s)
            if pause_s is None:
                raise GaveUp(f"the broker died too often in a row; the last time: {why}")
            self._say(f"the broker died ({why}); starting it again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            try:
                await self.start()
            except BrokerNotStarted as error:
                lived_s, why = 0.0, str(error)
            else:
                self._say("the broker is back, with all its data")
                return

    async def stop(self) -> None:
        """Stop it cleanly, if it is ours. A start under way is given up, or waited for.

        Raises:
            BrokerNotStarted: it could not be stopped.

        """
        self._reporter.stopped = True
        if self._launching is not None:
            # Whoever started it has heard of its error, or is no longer there to hear it.
            await asyncio.gather(self._launching, return_exceptions=True)
        if self.ours:
            await asyncio.to_thread(embedded.stop, self._settings)
            self._mark.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it at once, if it is ours."""
        if self.ours and broker_process.is_alive(self._files):
            with suppress(ProcessLookupError, BrokerNotStarted):
                os.kill(broker_process.pid_of(self._files), signal.SIGKILL)

    def _marked_pid(self) -> int | None:
        try:
            return int(self._mark.read_text("ascii"))
        except (FileNotFoundError, ValueError):
            return None


class _Interruptible:
    """A reporter by which the thread that starts the broker learns that it should not."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.stopped = False

    def say(self, text: str) -> None:
        """Pass it on."""
        self._check()
        self._reporter.say(text)

    def downloaded(self, done_bytes: int, total_bytes: int) -> None:
        """Pass it on."""
        self._check()
        self._reporter.downloaded(done_bytes, total_bytes)

    def _check(self) -> None:
        if self.stopped:
            raise StartInterrupted("the start of the broker was interrupted")
