"""Fail-stop: on any surprise the process ends, at once and with a clear word, to be restarted.

Everything that matters is in the log; a worker that goes on after a surprise could acknowledge
what it has not done (Faust acknowledges an event when its handler raises). Recovery is the one
way back, so it is also the way out of every error.
"""

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import structlog

log = structlog.get_logger()

EXIT_DONE: Final = 0
EXIT_REFUSED: Final = 1
EXIT_UNREACHABLE: Final = 3


def fail_stop(
    reason: str, error: BaseException | None = None, code: int = EXIT_REFUSED
) -> NoReturn:
    """End the process now. Nothing is flushed but the log; the log of Kafka is the state."""
    log.critical("worker ends itself", reason=reason, exc_info=error)
    _end(code)


def end_now(code: int, why: str) -> NoReturn:
    """End the process without winding Faust down, where no batch can be in hand.

    Half-started services of Faust wait for each other when they are cancelled.
    """
    log.info(why)
    _end(code)


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Watchdog:
    """A thread that ends the process when something that must move stands still.

    It watches spans (`with watchdog.span("sessions"):`, which may last `limit_s`) and gauges
    (callables that return how many seconds something has stood still). A thread, because an event
    loop that hangs cannot watch itself.
    """

    def __init__(self, limit_s: float = 60.0, period_s: float = 2.0) -> None:
        self._limit_s = limit_s
        self._period_s = period_s
        self._spans: dict[int, tuple[str, float]] = {}
        self._tokens = itertools.count()
        self._gauges: dict[str, Callable[[], float]] = {}
        self._resumed_at = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def gauge(self, name: str, stalled_s: Callable[[], float]) -> None:
        """Watch something by asking how long it has stood still."""
        self._gauges[name] = stalled_s

    @contextmanager
    def span(self, name: str) -> Iterator[Callable[[], None]]:
        """Watch a piece of work: it must end, or say that it has moved on, within the limit."""
        token = next(self._tokens)

        def moved() -> None:
            self._spans[token] = (name, time.monotonic())

        moved()
        try:
            yield moved
        finally:
            del self._spans[token]

    def stalled(self) -> str | None:
        """What has stood still for too long, in words, or None."""
        now = time.monotonic()
        for name, since in list(self._spans.values()):
            seconds = now - max(since, self._resumed_at)
            if seconds > self._limit_s:
                return f"{name} has been at one batch for {seconds:.0f} s"
        for name, stalled_s in list(self._gauges.items()):
            if (seconds := stalled_s()) > self._limit_s:
                return f"{name} has not moved for {seconds:.0f} s"
        return None

    def _watch(self) -> None:
        try:
            self._watch_for_ever()
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody would watch any more
            fail_stop(f"the watchdog failed: {type(error).__name__}: {error}", error)

    def _watch_for_ever(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(self._period_s):
            now = time.monotonic()
            # A process that was itself paused (SIGSTOP, a sleeping laptop) is not to blame.
            paused = now - last > 5 * self._period_s
            last = now
            if paused:
                self._resumed_at = now
            elif (what := self.stalled()) is not None:
                fail_stop(f"watchdog: {what}")
