"""The recorded conversations: what is sent when, and what is to come of it.

examples/README.md tells how a line is written. Everything is checked before anything starts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agents_stream.core.errors import TerminalError

MAX_CONVERSATIONS: Final = 500
MAX_STEPS: Final = 100
MAX_AT_MS: Final = 120_000

_PACKAGED: Final = Path(__file__).with_name("conversations.jsonl")
_IN_CHECKOUT: Final = Path(__file__).parents[2] / "examples" / "conversations.jsonl"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class After(_Model):
    """What has to have happened in this conversation before a step's time begins to count."""

    outcome: Annotated[list[str], Field(min_length=3, max_length=3)] | None = None
    command: str | None = None
    attempt: int = 1


class _Step(_Model):
    """`at`: milliseconds from the start of the demo, or from `after`."""

    at: int = Field(ge=0, le=MAX_AT_MS)
    after: After | None = None


class EventStep(_Step):
    """Send an event in its envelope. The sessionId is the conversation's unless data has one."""

    event: str
    data: dict[str, Any] = {}
    id: str | None = None


class Raw(_Model):
    """A record as it is: `value` as text, or an object that is sent as JSON."""

    topic: str
    value: str | dict[str, Any]
    key: str | None = None


class RawStep(_Step):
    """Send a record that no producer of ours would send."""

    raw: Raw


class FaultStep(_Step):
    """Have the sandbox misbehave: the body of its `POST /faults`."""

    fault: dict[str, Any]


class WorldStep(_Step):
    """Do something to the system itself."""

    world: Literal["kill_worker"]


Step = EventStep | RawStep | FaultStep | WorldStep


class Expect(_Model):
    """What is to come of a conversation.

    `outcomes` are `[flow, status, action]` or the same with an object of further fields, in their
    order. `state` and the objects hold what must be there; there may be more.
    """

    outcomes: list[Annotated[list[Any], Field(min_length=3, max_length=4)]] = []
    messages: list[str] = []
    orders: int = 0
    mode: str | None = None
    status: Literal["open", "closed"] = "open"
    state: dict[str, Any] = {}
    version: int | None = None
    deadLetters: list[str] = []  # noqa: N815 - as on the wire
    attempts: dict[str, int] = {}


class Conversation(_Model):
    """One line of the file."""

    session: str = Field(min_length=1, max_length=60)
    title: str
    steps: Annotated[list[Step], Field(min_length=1, max_length=MAX_STEPS)]
    expect: Expect

    def named(self, field: str) -> set[str]:
        """Give what the events say of a field of their data, such as `conversationId`."""
        told = [step.data.get(field) for step in self.steps if isinstance(step, EventStep)]
        raw = [step.raw.value for step in self.steps if isinstance(step, RawStep)]
        told += [value.get(field) for value in raw if isinstance(value, dict)]
        return {value for value in told if isinstance(value, str)}


def read_script(path: Path | None) -> Sequence[Conversation]:
    """Read the conversations of a file; without one, those that come with this package.

    Raises:
        TerminalError: it cannot be read, or a line is no conversation; the message says which.

    """
    place = path or (_PACKAGED if _PACKAGED.exists() else _IN_CHECKOUT)
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TerminalError(f"the conversations of {place} cannot be read: {error}") from error
    script = [
        _read_line(place, number, line) for number, line in enumerate(lines, 1) if line.strip()
    ]
    ids = [conversation.session for conversation in script]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if not script or twice or len(script) > MAX_CONVERSATIONS:
        raise TerminalError(
            f"{place} holds {len(script)} conversations (1 to {MAX_CONVERSATIONS} are allowed), and"
            f" a session may be there only once (twice: {', '.join(twice) or 'none'})"
        )
    return script


def _read_line(place: Path, number: int, line: str) -> Conversation:
    try:
        return Conversation.model_validate_json(line)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        told = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in faults[:5]
        )
        raise TerminalError(f"{place}, line {number} is no conversation: {told}") from None
