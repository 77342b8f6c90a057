"""How much of a worker its HTTP clients may take: requests per second, and memory for bodies.

A worker decides on timers; its pages and its API must not keep it from that. What is too much is
answered with 503 and `Retry-After`: nothing of it was published, and senders of events repeat it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from agents_stream.core.errors import RetryableError

BURST_S: Final = 2.0
MAX_CLIENTS: Final = 10_000
MAX_BODIES_BYTES: Final = 64 * 1024 * 1024


class Rates:
    """So many requests a second for each client, and `BURST_S` seconds' worth at once.

    Each of the last `MAX_CLIENTS` clients is remembered as the time at which it has used up what it
    took (the generic cell rate algorithm); a forgotten one begins anew.
    """

    def __init__(self, per_second: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._step_s = 1 / per_second
        self._now_s = now_s
        self._used_up: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """How many clients are remembered."""
        return len(self._used_up)

    def take(self, client: str) -> bool:
        """Count a request of a client; False if it has made too many."""
        now = self._now_s()
        used_up = max(self._used_up.get(client, now), now) + self._step_s
        if used_up > now + BURST_S:
            return False
        self._used_up[client] = used_up
        self._used_up.move_to_end(client)
        if len(self._used_up) > MAX_CLIENTS:
            self._used_up.popitem(last=False)
        return True


class Bodies:
    """The memory that the bodies of all requests under way take, in bytes."""

    def __init__(self, limit: int = MAX_BODIES_BYTES) -> None:
        self.limit = limit
        self.held = 0


class Hold:
    """The share of one request in `Bodies`: it grows with the body and ends with the request."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._mine = 0

    def add(self, size: int) -> None:
        """Account for a part of the body.

        Raises:
            RetryableError: the worker has its hands full of other requests.

        """
        if self._bodies.held + size > self._bodies.limit:
            raise RetryableError("The worker has its hands full of other requests: try again")
        self._bodies.held += size
        self._mine += size

    def release(self) -> None:
        """Give everything back."""
        self._bodies.held -= self._mine
        self._mine = 0
