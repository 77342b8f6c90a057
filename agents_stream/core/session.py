"""The record of a session: all that the system knows about one conversation, in one value.

What may live here: the shape of the record, its bytes, and questions it can answer about itself.
What may not: rules (see `flows/`) and bookkeeping steps (see `decider.py`). A record is frozen;
a decision makes a new one. Wheel, views and caches are rebuilt from records, never trusted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import orjson

RECORD_SCHEMA = 1
REQUIRED_DATA = ("nombre", "telefono", "ciudad", "direccion")
MAX_RECENT_IDS = 256
MAX_RECORD_BYTES = 256 * 1024
MAX_FAILED_COMMANDS = 32
MAX_OWN_EVENTS = 64

FlowName = Literal["data_collection", "promos", "proactive", "session"]
CommandStatus = Literal["awaiting", "retrying", "held", "failed", "orphaned"]


def iso(timestamp_ms: int) -> str:
    """Milliseconds since the epoch as `2026-01-31T12:00:00.000Z`."""
    moment = datetime.fromtimestamp(timestamp_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{timestamp_ms % 1000:03d}Z"


@dataclass(frozen=True, slots=True)
class Deadline:
    """A promise to act. `generation` is the journal offset of the entry that armed it."""

    due_at_ms: int
    generation: int


@dataclass(frozen=True, slots=True)
class FlowRun:
    """A flow in progress. `run` is the journal offset of the entry that started it."""

    step: str
    run: int
    conversation_id: str
    workspace_id: str
    started_at_ms: int


@dataclass(frozen=True, slots=True)
class PendingCommand:
    """A command that a tool was asked for, or is about to be, and how it goes on.

    `awaiting` a result, `retrying` (a retry deadline is armed), `held` (the session is paused),
    `failed` for good (kept so that an operator can retry it) or `orphaned` (its session closed;
    a late result is recorded). `then` names the step that the result leads to; `status` and
    `action` are those of the outcome that a success publishes, `extra` its further fields.
    """

    id: str
    tool: str
    flow: FlowName
    then: str
    run: int
    state: CommandStatus
    attempt: int
    workspace_id: str | None
    conversation_id: str | None
    inputs: Mapping[str, Any]
    issued_at_ms: int
    as_of: int
    status: str = ""
    action: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    redriven: bool = False

    @property
    def issued_attempts(self) -> int:
        """How many attempts have gone out: a held one has not."""
        return self.attempt - (self.state == "held")

    def to_wire(self, session_id: str) -> dict[str, Any]:
        """The command as it stands on its tool's topic (SPEC §5)."""
        return {
            "id": self.id,
            "tool": self.tool,
            "workspaceId": self.workspace_id,
            "sessionId": session_id,
            "attempt": self.attempt,
            "issuedAt": self.issued_at_ms,
            "asOf": self.as_of,
            "inputs": self.inputs,
        }


def empty_state() -> dict[str, Any]:
    """The state of a session that has just been opened (SPEC §3)."""
    return {
        "datos_capturados": {},
        "proactive_started_at": None,
        "ofrecer_promos_at": None,
        "pack_seleccionado": None,
    }


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One session. Everything but `outbox` is a pure function of the journal (G8).

    `seen` maps a source partition to the offset last applied from it and the latest timestamp;
    `journal_offset` and `journal_timestamp` are the same for the journal;
    `recent_ids` holds the last ids for deduplication; `own_events` the ids of events that we
    published and that have not come back; `home` the partition in which the session's events
    arrive; `outbox` the actions, by journal offset, that are not known to be published.
    """

    session_id: str
    workspace_id: str | None = None
    agent_id: str | None = None
    conversation_id: str | None = None
    contact_id: str | None = None
    mode: str | None = None
    status: Literal["open", "closed"] = "open"
    close_reason: str | None = None
    version: int = 1
    started: bool = False
    paused: bool = False
    state: Mapping[str, Any] = field(default_factory=empty_state)
    deadlines: Mapping[str, Deadline] = field(default_factory=dict)
    flows: Mapping[str, FlowRun] = field(default_factory=dict)
    pending: Mapping[str, PendingCommand] = field(default_factory=dict)
    own_events: tuple[str, ...] = ()
    seen: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    recent_ids: tuple[str, ...] = ()
    home: int | None = None
    opened_offset: int = 0
    journal_offset: int = -1
    journal_timestamp: int = -1
    outbox: Mapping[int, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)

    def missing_data(self) -> list[str]:
        """The required fields that are absent, null or empty, in the order of SPEC §3."""
        captured = self.state["datos_capturados"]
        return [name for name in REQUIRED_DATA if captured.get(name) in (None, "")]

    def passed(self, offset: int, timestamp: int) -> bool:
        """Whether a journal position is not beyond this record's."""
        return offset <= self.journal_offset and timestamp <= self.journal_timestamp


def encode_record(record: SessionRecord) -> bytes:
    """The record as it stands in the table and its changelog."""
    return orjson.dumps(
        {"v": RECORD_SCHEMA, **{name: getattr(record, name) for name in _FIELDS}},
        option=orjson.OPT_NON_STR_KEYS,
    )


def decode_record(raw: bytes) -> SessionRecord:
    """Read a record of this or an older schema.

    Raises:
        ValueError: the record was written by a newer version; upgrade this worker.

    """
    line = orjson.loads(raw)
    _require_known(line.pop("v"))
    line["deadlines"] = {name: Deadline(**item) for name, item in line["deadlines"].items()}
    line["flows"] = {name: FlowRun(**item) for name, item in line["flows"].items()}
    line["pending"] = {name: PendingCommand(**item) for name, item in line["pending"].items()}
    line["seen"] = {place: (at[0], at[1]) for place, at in line["seen"].items()}
    line["own_events"] = tuple(line["own_events"])
    line["recent_ids"] = tuple(line["recent_ids"])
    line["outbox"] = {int(offset): tuple(owed) for offset, owed in line["outbox"].items()}
    return SessionRecord(**line)


class Alarms(NamedTuple):
    """What of a record a timing wheel needs."""

    session_id: str
    deadlines: Mapping[str, Deadline]
    home: int | None
    paused: bool


def decode_alarms(raw: bytes) -> Alarms:
    """Read only that of a record: a wheel is made of many.

    Raises:
        ValueError: the record was written by a newer version; upgrade this worker.

    """
    line = orjson.loads(raw)
    _require_known(line["v"])
    deadlines = {name: Deadline(**item) for name, item in line["deadlines"].items()}
    return Alarms(line["session_id"], deadlines, line.get("home"), line.get("paused", False))


def _require_known(schema: int) -> None:
    if schema > RECORD_SCHEMA:
        raise ValueError("a session's record has a newer schema: upgrade this worker")


def content_size(record: SessionRecord) -> int:
    """The bytes that SPEC §3 limits: the record without its bookkeeping.

    Whether it is open or paused does not count: a full session can still be closed.
    """
    return len(orjson.dumps({name: getattr(record, name) for name in _CONTENT}))


def journal_position(raw: bytes) -> tuple[int, int]:
    """`(timestamp, offset)` of the last journal entry in a record's bytes, to compare records."""
    line = orjson.loads(raw)
    return line["journal_timestamp"], line["journal_offset"]


_FIELDS = tuple(item.name for item in fields(SessionRecord))
_BOOKKEEPING = {"outbox", "seen", "recent_ids", "journal_offset", "journal_timestamp"}
_STANDING = {"status", "close_reason", "paused"}
_CONTENT = tuple(name for name in _FIELDS if name not in _BOOKKEEPING | _STANDING)
