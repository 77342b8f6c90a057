"""The brokers' time, as far as a worker can know it: a lower bound, never ahead of the truth.

Every record that a broker stamped proves that its clock had reached the stamp when we saw the
record. So the offset between our monotonic clock and the brokers' is at least the largest
(stamp - monotonic time) seen. The last minute decides, so that a drifting clock is followed; with
nothing newer, the last bound stands. A monotonic clock that stops while the machine sleeps makes
the bound lower, which is safe: a deadline is late, never early (G4).
"""

import time
from collections.abc import Callable
from typing import Final

_WINDOW_MS: Final = 60_000.0
_NEVER: Final = float("-inf")


def monotonic_ms() -> float:
    """Milliseconds of this machine's monotonic clock."""
    return time.monotonic() * 1_000.0


class BrokerClock:
    """A lower bound of the brokers' time, learnt from the stamps of LogAppendTime topics."""

    def __init__(self, local_ms: Callable[[], float] = monotonic_ms) -> None:
        self._local_ms = local_ms
        self._current = _NEVER
        self._previous = _NEVER
        self._window_end = _NEVER
        self._last_sample = _NEVER

    def observe(self, timestamp_ms: int) -> None:
        """Learn from a broker's stamp that has just been seen. -1 (a duplicate's ack) is none."""
        if timestamp_ms < 0:
            return
        local = self._local_ms()
        if local >= self._window_end:
            self._previous, self._current = self._current, _NEVER
            self._window_end = local + _WINDOW_MS
        self._current = max(self._current, timestamp_ms - local)
        self._last_sample = local

    @property
    def known(self) -> bool:
        """Whether any stamp has been seen."""
        return self._best() > _NEVER

    def age_ms(self) -> float:
        """Milliseconds since the last stamp was seen; infinite before the first."""
        return self._local_ms() - self._last_sample

    def now_ms(self) -> int:
        """The brokers' time is at least this. Only meaningful once `known`."""
        return self.at(self._local_ms())

    def at(self, local_ms: float) -> int:
        """A lower bound of the brokers' time at a past moment of the local monotonic clock."""
        return int(local_ms + self._best())

    def wait_ms(self, due_at_ms: int) -> float:
        """Milliseconds until the bound reaches `due_at_ms`; zero or less when it has."""
        return due_at_ms - (self._local_ms() + self._best())

    def _best(self) -> float:
        return max(self._current, self._previous)
