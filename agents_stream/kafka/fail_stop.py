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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NoReturn

import structlog
from aiokafka.errors import (
    InvalidTimestampError,
    KafkaConnectionError,
    KafkaTimeoutError,
    NodeNotReadyError,
    UnknownTopicOrPartitionError,
)

log = structlog.get_logger()

EXIT_DONE: Final = 0
EXIT_REFUSED: Final = 1
EXIT_UNREACHABLE: Final = 3

# aiokafka calls a topic unknown when no broker answered its question about it.
_UNREACHABLE = (
    InvalidTimestampError,  # no heartbeat got through for 5 s
    KafkaConnectionError,
    KafkaTimeoutError,
    NodeNotReadyError,
    UnknownTopicOrPartitionError,
)

_ways_on: list[Callable[[], None]] = []


def fail_stop(
    reason: str, error: BaseException | None = None, code: int = EXIT_REFUSED
) -> NoReturn:
    """End the process now. Nothing is flushed but the log; the log of Kafka is the state."""
    log.critical("worker ends itself", reason=reason, exc_info=error)
    if code == EXIT_UNREACHABLE:
        for begin_anew in _ways_on:
            begin_anew()
    _end(code)


def exit_code_of(error: Exception) -> int:
    """The exit code of a process that ends because of `error` (SPEC §7)."""
    return EXIT_UNREACHABLE if isinstance(error, _UNREACHABLE) else EXIT_REFUSED


def when_unreachable(begin_anew: Callable[[], None]) -> None:
    """Say what to do when Kafka is lost, instead of ending; where it returns, the process ends."""
    _ways_on.append(begin_anew)


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


LIMIT_S: Final = 60.0
WARNED_SHARE: Final = 0.25
_MAX_TOLD: Final = 5


@dataclass(frozen=True, slots=True)
class Standstill:
    """Something that should move: in words, and for how long it has not."""

    words: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.words} for {self.seconds:.0f} s"


class Watchdog:
    """A thread that ends the process when something that must move stands still.

    It watches spans (`with watchdog.span("sessions"):`, which may last `limit_s`), gauges
    (callables that return how many seconds something has stood still) and looks (callables that
    return what stands still, from any thread). A thread, because an event loop that hangs cannot
    watch itself. At a quarter of the limit it warns, and the worker is no longer ready.

    `code_of` gives the exit code: a watchdog does not know whose fault it is.
    """

    def __init__(self, limit_s: float | None = None, period_s: float = 2.0) -> None:
        self._limit_s = LIMIT_S if limit_s is None else limit_s
        self._period_s = period_s
        self.code_of: Callable[[], int] = lambda: EXIT_REFUSED
        self._spans: dict[int, tuple[str, float]] = {}
        self._tokens = itertools.count()
        self._gauges: dict[str, Callable[[], float]] = {}
        self._looks: list[Callable[[], Iterable[Standstill]]] = []
        self._warned: set[str] = set()
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

    def watch(self, look: Callable[[], Iterable[Standstill]]) -> None:
        """Watch several things by asking which of them stand still."""
        self._looks.append(look)

    @contextmanager
    def span(self, name: str, words: str = "has been at one batch") -> Iterator[Callable[[], None]]:
        """Watch a piece of work: it must end, or say that it has moved on, within the limit."""
        token = next(self._tokens)

        def moved() -> None:
            self._spans[token] = (f"{name} {words}", time.monotonic())

        moved()
        try:
            yield moved
        finally:
            del self._spans[token]

    def stalled(self) -> str | None:
        """What has stood still for too long, in words, or None."""
        return _told(self._standing(self._limit_s))

    def slow(self) -> str | None:
        """What has stood still for so long that something is wrong, in words, or None."""
        return _told(self._standing(self._limit_s * WARNED_SHARE))

    def _standing(self, beyond_s: float) -> list[Standstill]:
        now = time.monotonic()
        found = [Standstill(words, now - since) for words, since in list(self._spans.values())]
        for name, stalled_s in list(self._gauges.items()):
            found.append(Standstill(f"{name} has not moved", stalled_s()))
        for look in self._looks:
            found.extend(look())
        awake_s = now - self._resumed_at
        return [one for one in found if min(one.seconds, awake_s) > beyond_s]

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
            elif self.stalled() is not None:
                # With what has stood still for less long: the cause is often younger.
                fail_stop(f"watchdog: {self.slow()}", code=self.code_of())
            else:
                self._warn()

    def _warn(self) -> None:
        """Tell once what is slow, and again when it is slow anew."""
        slow = {one.words: one for one in self._standing(self._limit_s * WARNED_SHARE)}
        for words in slow.keys() - self._warned:
            log.warning("something stands still", what=str(slow[words]), limit_s=self._limit_s)
        self._warned = set(slow)


def _told(standing: list[Standstill]) -> str | None:
    """The longest first, not too many."""
    ordered = sorted(standing, key=lambda one: -one.seconds)
    return "; ".join(str(one) for one in ordered[:_MAX_TOLD]) or None
