"""A tool command as it stands on its topic (SPEC §5), read and checked.

The topics are our own, but others may write to them: what is no command goes to the dead letters.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from agents_stream.core.errors import InvalidEvent
from agents_stream.core.events import SessionId
from agents_stream.stages.tools.catalog import Tool, is_header_text
from agents_stream.stages.tools.results import Attempt

MAX_ID_CHARS: Final = 200
_MAX_FAULTS_TOLD: Final = 8


def _can_be_sent(command_id: str) -> str:
    if not is_header_text(command_id) or len(command_id) > MAX_ID_CHARS:
        raise ValueError(f"an id is 1 to {MAX_ID_CHARS} visible ASCII characters")
    return command_id


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    id: Annotated[str, AfterValidator(_can_be_sent)]
    tool: str
    sessionId: SessionId  # noqa: N815 - the name on the wire
    attempt: Annotated[int, Field(ge=1, le=1_000_000)]
    inputs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Command:
    """One attempt of a command. `body` is what is posted to the tool: its inputs as JSON."""

    attempt: Attempt
    body: bytes


def read_command(tool: Tool, raw: bytes | None) -> Command:
    """Read the value of a record on the tool's topic.

    Raises:
        InvalidEvent: `invalid_json` or `invalid_schema`.

    """
    try:
        value = orjson.loads(raw or b"")
    except orjson.JSONDecodeError as error:
        raise InvalidEvent("invalid_json", f"no command: {error}") from None
    try:
        wire = _Wire.model_validate(value)
    except ValidationError as error:
        raise InvalidEvent("invalid_schema", _explain(error)) from None
    if wire.tool != tool.name:
        raise InvalidEvent("invalid_schema", f"tool: on this topic it is {tool.name!r}")
    attempt = Attempt(wire.id, wire.sessionId, wire.tool, wire.attempt)
    try:
        return Command(attempt, orjson.dumps(wire.inputs))
    except orjson.JSONEncodeError:  # it reads 1,024 levels and writes 254
        raise InvalidEvent("invalid_schema", "inputs: more levels than can be sent") from None


def _explain(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    wrong = "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'command'}: {fault['msg']}"
        for fault in faults[:_MAX_FAULTS_TOLD]
    )
    return f"no command: {wrong}"
