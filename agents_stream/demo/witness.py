"""What the log says about each conversation: the demo believes nobody's word for it.

Deduplicated as a consumer should: outcomes and dead letters by id, commands by (id, attempt) (G6).
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from agents_stream.demo.script import After
from agents_stream.kafka.topics import DEAD_LETTERS, JOURNAL, OUTCOMES
from agents_stream.up.tail import Seen

MAX_REMEMBERED: Final = 100_000


@dataclass(frozen=True, slots=True)
class Command:
    """An attempt of a command, as it was published."""

    id: str
    tool: str
    attempt: int


@dataclass(slots=True)
class Testimony:
    """What was seen of one session."""

    outcomes: list[Mapping[str, Any]] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    dead_letters: list[str] = field(default_factory=list)

    def shows(self, after: After) -> bool:
        """Whether something has happened."""
        if after.outcome is not None:
            ends = [[one["flow"], one["status"], one["action"]] for one in self.outcomes]
            return after.outcome in ends
        return any(
            one.tool == after.command and one.attempt >= after.attempt for one in self.commands
        )


class Witness:
    """Takes the records as they are read."""

    def __init__(self) -> None:
        self._sessions: dict[str, Testimony] = defaultdict(Testimony)
        self._known: set[object] = set()
        self._changed = asyncio.Event()
        self._last_at = time.monotonic()

    def __getitem__(self, session_id: str) -> Testimony:
        return self._sessions[session_id]

    @property
    def quiet_s(self) -> float:
        """For how long nothing has happened at all."""
        return time.monotonic() - self._last_at

    def take(self, records: Iterable[Seen]) -> None:
        """Note what these records say."""
        for seen in records:
            self._last_at = time.monotonic()
            if seen.topic != JOURNAL and seen.value is not None:
                self._note(seen.topic, seen.key, orjson.loads(seen.value))
        assert len(self._known) <= MAX_REMEMBERED, "a demo is a few hundred records"
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, session_id: str, after: After) -> None:
        """Wait until something has been seen; whoever calls has a limit."""
        while not self[session_id].shows(after):
            await self._changed.wait()

    def _note(self, topic: str, key: str, value: Mapping[str, Any]) -> None:
        identity = (topic, value["id"], value.get("attempt"))
        if identity in self._known:
            return
        self._known.add(identity)
        if topic == OUTCOMES:
            self[value["sessionId"]].outcomes.append(value)
        elif topic == DEAD_LETTERS:
            self[key].dead_letters.append(value["reason"])
        else:
            command = Command(value["id"], value["tool"], value["attempt"])
            self[value["sessionId"]].commands.append(command)
