"""Whose turn it is: one client's events of one session, one after the other.

Kafka orders nothing across topics; the worker applies a session's events by their record
timestamps, which are whole milliseconds of the broker's clock. So the next event on another topic
starts a millisecond after the last one was acknowledged: only then is its timestamp higher.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

# A tenth more than the millisecond: clocks that are being corrected run a little slow.
APART_S: Final = 0.0011
MAX_REMEMBERED: Final = 10_000


class Turn:
    """The turn of one session: which topic had its last event, and when that was acknowledged."""

    def __init__(self) -> None:
        self.users = 0
        self.lock = asyncio.Lock()
        self._topic: str | None = None
        self._free_at = 0.0

    async def wait_for(self, topic: str) -> None:
        """Wait until an event on `topic` cannot get the timestamp of the one before it."""
        # One topic and one key are one partition: there the offsets keep the order.
        if topic != self._topic and (left := self._free_at - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def acknowledged(self, topic: str) -> None:
        """Note that the last event went to `topic` and was acknowledged just now."""
        self._topic = topic
        self._free_at = time.monotonic() + APART_S

    @property
    def is_over(self) -> bool:
        """Whether forgetting this turn delays nobody and lets nobody pass."""
        return self.users == 0 and time.monotonic() >= self._free_at


class Turns:
    """The turns of all sessions of a client; those that are over are forgotten."""

    def __init__(self) -> None:
        self._turns: dict[str, Turn] = {}

    def __len__(self) -> int:
        return len(self._turns)

    @asynccontextmanager
    async def of(self, session_id: str) -> AsyncIterator[Turn]:
        """Hold the turn of a session; who asks first has it first."""
        turn = self._turns.get(session_id)
        if turn is None:
            self._forget()
            turn = self._turns[session_id] = Turn()
        turn.users += 1
        try:
            async with turn.lock:
                yield turn
        finally:
            turn.users -= 1

    def _forget(self) -> None:
        if len(self._turns) < MAX_REMEMBERED:
            return
        self._turns = {name: turn for name, turn in self._turns.items() if not turn.is_over}
