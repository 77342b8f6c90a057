"""What a flow wants: the small vocabulary between the rules and the decider's fold.

Flows are generators of these. They see the session as it was when they were asked, and every
instruction is folded into the record in the order given (`fold.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from agents_stream.core.journal import Durations
from agents_stream.core.reasons import Reason
from agents_stream.core.session import FlowName, PendingCommand


@dataclass(frozen=True, slots=True)
class Cause:
    """What an entry gives to the rules: its time ("now"), its place, the durations in force."""

    now_ms: int
    offset: int
    durations: Durations
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """Set a deadline; one of the same name is replaced."""

    name: str
    due_at_ms: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a deadline unfired, if it is armed."""

    name: str


@dataclass(frozen=True, slots=True)
class Fire:
    """End a deadline because its time has come."""

    name: str


@dataclass(frozen=True, slots=True)
class Change:
    """Set the mode (None: as it is) and merge fields into the state."""

    mode: str | None = None
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Enter:
    """Start a run of a flow; `run` only where an earlier run is taken up again."""

    flow: FlowName
    step: str
    conversation_id: str
    workspace_id: str
    run: int | None = None


@dataclass(frozen=True, slots=True)
class Proceed:
    """A run in progress is at another step; a run that is over stays so."""

    flow: FlowName
    step: str
    run: int


@dataclass(frozen=True, slots=True)
class CallTool:
    """Issue a command. `then` is the step its result leads to; the rest is as in PendingCommand."""

    tool: str
    inputs: Mapping[str, Any]
    flow: FlowName
    then: str
    run: int
    conversation_id: str
    workspace_id: str | None
    status: str = ""
    action: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    redriven: bool = False


@dataclass(frozen=True, slots=True)
class Reissue:
    """Send a pending command out as its next attempt; `redriven` when a person asked for it."""

    command_id: str
    redriven: bool = False


@dataclass(frozen=True, slots=True)
class Settle:
    """A command is over: forget it."""

    command_id: str


@dataclass(frozen=True, slots=True)
class KeepAs:
    """A command goes on in another state (retrying, failed, orphaned)."""

    command: PendingCommand


@dataclass(frozen=True, slots=True)
class Bury:
    """Put a command that failed for good into the dead letters."""

    reason: str
    detail: str
    command: PendingCommand


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish an event of our own."""

    name: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finish:
    """Publish an outcome; the run it belongs to, if one is in progress, is over."""

    flow: FlowName
    status: str
    action: str
    workspace_id: str | None
    run: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """Set top-level fields of the record: who takes part, whether it is open, paused, started."""

    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Because:
    """State a reason."""

    reason: Reason


Instruction: TypeAlias = (
    Arm
    | Cancel
    | Fire
    | Change
    | Enter
    | Proceed
    | CallTool
    | Reissue
    | Settle
    | KeepAs
    | Bury
    | Publish
    | Finish
    | Lifecycle
    | Because
)
