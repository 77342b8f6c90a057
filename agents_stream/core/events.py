"""Facts that come in: the data of every event of SPEC §2, of a tool result and of a deadline.

A model is both what a producer constructs (`CustomerMessage(session_id=...)`) and what ingress
validates a record with. Fields are camelCase on the wire. Extra fields are kept and ignored.
Validation is strict: no number is taken for a string, no string for a number.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from agents_stream.core.errors import InvalidEvent

MAX_SESSION_ID_BYTES = 256
MAX_ORDER_ID_CHARS = 1_024


def _fits(session_id: str) -> str:
    if len(session_id.encode()) > MAX_SESSION_ID_BYTES:
        raise ValueError(f"sessionId is longer than {MAX_SESSION_ID_BYTES} bytes")
    return session_id


Text = Annotated[str, StringConstraints(min_length=1)]
SessionId = Annotated[Text, AfterValidator(_fits)]

_IS_ISO_TIME = "is an ISO 8601 time or null"
_TYPED_STATE = {
    "datos_capturados": "is an object",
    "proactive_started_at": _IS_ISO_TIME,
    "ofrecer_promos_at": _IS_ISO_TIME,
    "pack_seleccionado": "is a string or null",
}


def _is_iso_time(value: object) -> bool:
    if not isinstance(value, str):
        return value is None
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _keeps_types(state: dict[str, Any] | None) -> dict[str, Any] | None:
    """Refuse a merge that would change the type of a field the flows rely on (SPEC §3)."""
    for field, rule in _TYPED_STATE.items():
        if state is None or field not in state:
            continue
        value = state[field]
        if field == "datos_capturados":
            good = isinstance(value, dict)
        elif field == "pack_seleccionado":
            good = value is None or isinstance(value, str)
        else:
            good = _is_iso_time(value)
        if not good:
            raise ValueError(f"state.{field} {rule}")
    return state


class Wire(BaseModel):
    """What every fact on the wire has in common: camelCase, strict, frozen, extras kept."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        strict=True,
        frozen=True,
        extra="allow",
    )

    NAME: ClassVar[str]

    session_id: SessionId

    def to_data(self) -> dict[str, Any]:
        """The JSON object that goes on the wire, without absent optional fields."""
        return self.model_dump(by_alias=True, exclude_unset=True, mode="json")


class Event(Wire):
    """An `agent/*` event; `NAME` is its name and its topic's name with "/" for the first "."."""


class SessionStarted(Event):
    """A conversation was handed to an agent."""

    NAME = "agent/session.started"
    workspace_id: Text
    agent_id: Text
    conversation_id: Text
    contact_id: Text
    mode: Text


class SessionUpdated(Event):
    """The engine changed the mode or merged fields into the state."""

    NAME = "agent/session.updated"
    expected_version: int | None = None
    mode: Text | None = None
    state: Annotated[dict[str, Any] | None, AfterValidator(_keeps_types)] = None


class DataCaptured(Event):
    """The engine read customer data; null and "" are kept and count as missing."""

    NAME = "agent/data.captured"
    data: dict[str, str | None]


class CustomerMessage(Event):
    """The customer wrote."""

    NAME = "agent/customer.message"
    conversation_id: Text
    message_id: Text
    content: str


class CollectingDataStarted(Event):
    """The agent asked the customer for the order's data and waits for the answer."""

    NAME = "agent/collecting_data.started"
    conversation_id: Text
    workspace_id: Text


class PromosOffered(Event):
    """The packs were offered; the customer has some time to choose one."""

    NAME = "agent/promos.offered"
    conversation_id: Text
    workspace_id: Text
    pack_options: list[Text]


class ProactiveSend(Event):
    """A message is to be sent to the customer without being asked."""

    NAME = "agent/proactive.send"
    conversation_id: Text
    workspace_id: Text
    message_type: Literal["reminder", "followup", "timeout_warning"]
    content: str | None = None


class SessionClose(Event):
    """The conversation is over."""

    NAME = "agent/session.close"
    reason: Literal["timeout", "completed", "handoff", "cancelled"]


class OperatorAction(Event):
    """A person acted on a session; `by` says who."""

    NAME = "agent/operator.action"
    action: Literal["cancel_timer", "fire_timer", "pause", "resume", "retry_command"]
    by: Text
    name: Text | None = None
    command_id: Text | None = None


class ToolError(BaseModel):
    """Why a tool did not do what it was asked to."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    code: str = "error"
    message: str = ""


class ToolResult(Wire):
    """How one attempt of a command ended (SPEC §5)."""

    NAME = "tool/result"
    command_id: Text
    attempt: Annotated[int, Field(ge=1)]
    status: Literal["succeeded", "failed", "unknown"]
    tool: str | None = None
    retryable: bool | None = None
    retry_after_ms: int | float | None = None
    outputs: dict[str, Any] | None = None
    error: ToolError | None = None

    @model_validator(mode="after")
    def _order_has_id(self) -> "ToolResult":
        created = self.tool == "crm.order.create" and self.status == "succeeded"
        if created and self.output_id is None:
            raise ValueError("outputs.id is required when an order succeeded")
        return self

    @property
    def output_id(self) -> str | int | None:
        """The order's id, if the outputs have a usable one."""
        value = (self.outputs or {}).get("id")
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        return value if 0 < len(str(value)) <= MAX_ORDER_ID_CHARS else None


class DeadlineDue(Wire):
    """The timer wheel found a deadline due. Internal, on `session.deadlines`."""

    NAME = "session/deadline"
    name: Text
    generation: int
    due_at: int


W = TypeVar("W", bound=Wire)

EVENTS: Mapping[str, type[Event]] = {
    model.NAME: model
    for model in (
        SessionStarted,
        SessionUpdated,
        DataCaptured,
        CustomerMessage,
        CollectingDataStarted,
        PromosOffered,
        ProactiveSend,
        SessionClose,
        OperatorAction,
    )
}


def validate(model: type[W], data: Mapping[str, Any]) -> W:
    """Read `data` as `model`, by wire names only.

    Raises:
        InvalidEvent: `invalid_schema`, with every field that is wrong in the detail.

    """
    try:
        return model.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidEvent("invalid_schema", _explain(model.NAME, error)) from None


def _explain(name: str, error: ValidationError) -> str:
    """One sentence for the sender; values stay out, they may be a customer's words."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    wrong = "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'data'}: {fault['msg']}"
        for fault in faults[:8]
    )
    return f"{name}: {wrong}"
