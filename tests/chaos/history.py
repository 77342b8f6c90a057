"""What a run leaves behind, as the verifier reads it: plain values, nothing of the system's code.

A `History` holds what was sent and what Kafka answered, every record of every topic, the sandbox's
books, the exits of the processes and the faults. It comes from a run (`run.py`) or is made by hand
(`test_verifier.py`).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import orjson

# SPEC §1, in its order: events of one millisecond are applied in this order, deadlines last.
INPUTS: Final = (
    "agent.session.started",
    "agent.session.updated",
    "agent.data.captured",
    "agent.customer.message",
    "agent.collecting_data.started",
    "agent.promos.offered",
    "agent.proactive.send",
    "agent.session.close",
    "agent.operator",
    "tool.results",
    "session.deadlines",
)
WHATSAPP: Final = "tool.whatsapp.message.send"
CRM: Final = "tool.crm.order.create"
COMMANDS: Final = (WHATSAPP, CRM)
JOURNAL: Final = "session.journal"
OUTCOMES: Final = "agent.outcomes"
LETTERS: Final = "agent.dead_letters"
RESULTS: Final = "tool.results"
DEADLINES: Final = "session.deadlines"
CHANGELOG: Final = "agents-stream-sessions-changelog"
TOPICS: Final = (*INPUTS, JOURNAL, *COMMANDS, OUTCOMES, LETTERS, CHANGELOG)

Place = tuple[str, int, int]


@dataclass(frozen=True)
class Line:
    """One record of a topic; `timestamp` is the broker's."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None

    @property
    def place(self) -> Place:
        """Where it stands."""
        return (self.topic, self.partition, self.offset)

    @cached_property
    def json(self) -> Any:
        """Its value as JSON; None for what is none."""
        try:
            return orjson.loads(self.value or b"")
        except orjson.JSONDecodeError:
            return None


@dataclass
class Try:
    """One time that a producer sent an event: when, and what Kafka answered (None: nothing).

    An offset of -1 is an acknowledgement that names no place.
    """

    began_at_ms: int
    ended_at_ms: int = 0
    partition: int | None = None
    offset: int | None = None
    timestamp: int | None = None
    error: str | None = None

    @property
    def acknowledged(self) -> bool:
        """Whether Kafka said that it has it."""
        return self.offset is not None


@dataclass
class Sent:
    """An event as its producer knows it. `identity` is its id, or the message's own."""

    session_id: str
    topic: str
    name: str
    identity: str
    broken: bool = False
    tries: list[Try] = field(default_factory=list)


@dataclass
class Exit:
    """The end of a process. `cause` is the fault that ended it; None: it ended by itself."""

    process: str
    code: int
    at_ms: int
    cause: str | None
    words: str
    lived_s: float = 60.0


@dataclass
class FaultDone:
    """A fault that was injected, and where. `ended_at_ms` is when its cause was taken away."""

    kind: str
    target: str
    began_at_ms: int
    ended_at_ms: int


@dataclass(frozen=True)
class Timing:
    """The durations in force, in milliseconds."""

    data_reply_ms: int
    promos_delay_ms: int
    promos_reply_ms: int
    retry_backoff_ms: int


@dataclass
class History:
    """A whole run."""

    timing: Timing
    lines: dict[str, list[Line]] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    books: list[dict[str, Any]] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    faults: list[FaultDone] = field(default_factory=list)
    began_at_ms: int = 0
    ended_at_ms: int = 0

    def of(self, topic: str) -> list[Line]:
        """The records of a topic, each partition in its order."""
        return self.lines.get(topic, [])

    def inputs(self) -> Iterator[Line]:
        """Every record that is to take a place in the journal."""
        for topic in INPUTS:
            yield from self.of(topic)

    def save(self, folder: Path) -> None:
        """Keep what stands in no topic: what was sent, the books, the exits and the faults."""
        kept = {
            "timing": asdict(self.timing),
            "began_at_ms": self.began_at_ms,
            "ended_at_ms": self.ended_at_ms,
            "sent": [asdict(item) for item in self.sent],
            "books": self.books,
            "exits": [asdict(item) for item in self.exits],
            "faults": [asdict(item) for item in self.faults],
        }
        (folder / "history.json").write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2))
        with (folder / "records.jsonl").open("wb") as out:
            for topic in self.lines.values():
                for line in topic:
                    out.write(orjson.dumps(_shown(line)) + b"\n")


def _shown(line: Line) -> dict[str, Any]:
    """A record for people who look into it with grep."""
    return {
        "topic": line.topic,
        "partition": line.partition,
        "offset": line.offset,
        "timestamp": line.timestamp,
        "key": None if line.key is None else line.key.decode("utf-8", "replace"),
        "value": line.json if line.json is not None else repr((line.value or b"")[:200]),
    }
