"""What the sandbox has been told to do wrong, and how often."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from math import ceil
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from agents_stream.sandbox.answers import Rejection
from agents_stream.sandbox.books import MAX_CONTACT_CHARS, Tool

MAX_FAULTS = 100
MAX_DELAY_MS = 600_000
MAX_RETRY_AFTER_MS = 7 * 86_400_000
MAX_TIMES = 1_000_000


class Mode(StrEnum):
    """How a request goes wrong. Every mode waits `delayMs` first."""

    FAIL = "fail"
    """Answers `status` (503 unless told) and does nothing."""
    SLOW = "slow"
    """Waits `delayMs`, then acts and answers as always."""
    TOO_MANY = "429"
    """Answers 429 with a `Retry-After` header and does nothing."""
    REFUSE = "refuse"
    """Answers `status` (422 unless told): the tool says no for good."""
    DROP = "drop"
    """Closes the connection without an answer and without having acted."""
    ACT_THEN_DROP = "act_then_drop"
    """Acts, then closes the connection without an answer: the response is lost."""
    DOWN = "down"
    """Answers 503: the tool is away. An outage lasts until it is taken back, or `times` calls."""


_STATUS = {
    Mode.FAIL: HTTPStatus.SERVICE_UNAVAILABLE,
    Mode.TOO_MANY: HTTPStatus.TOO_MANY_REQUESTS,
    Mode.REFUSE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Mode.DOWN: HTTPStatus.SERVICE_UNAVAILABLE,
}


class Match(BaseModel):
    """Which requests a fault is for."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    contact: str = Field(min_length=1, max_length=MAX_CONTACT_CHARS)


class Fault(BaseModel):
    """One instruction to misbehave, as `POST /faults` takes it. `times` null: until taken back."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, alias_generator=to_camel, validate_by_name=True
    )

    tool: Tool
    mode: Mode
    status: int | None = Field(None, ge=400, le=599)
    delay_ms: int = Field(0, ge=0, le=MAX_DELAY_MS)
    retry_after_ms: int = Field(0, ge=0, le=MAX_RETRY_AFTER_MS)
    times: int | None = Field(None, ge=1, le=MAX_TIMES)
    match: Match | None = None

    @model_validator(mode="after")
    def _slow_needs_a_delay(self) -> "Fault":
        if self.mode is Mode.SLOW and self.delay_ms == 0:
            raise ValueError("slow needs a delayMs above 0")
        return self

    @property
    def acts(self) -> bool:
        """Whether the tool does what it was asked all the same."""
        return self.mode in {Mode.SLOW, Mode.ACT_THEN_DROP}

    @property
    def drops(self) -> bool:
        """Whether the connection ends without an answer."""
        return self.mode in {Mode.DROP, Mode.ACT_THEN_DROP}

    @property
    def answer_status(self) -> int:
        """The HTTP status of the modes that answer an error."""
        if self.mode is Mode.TOO_MANY:
            return HTTPStatus.TOO_MANY_REQUESTS
        return self.status or _STATUS[self.mode]

    @property
    def answer_headers(self) -> dict[str, str]:
        """`Retry-After`, in whole seconds, rounded up: the header knows no milliseconds."""
        if self.retry_after_ms or self.mode is Mode.TOO_MANY:
            return {"Retry-After": str(ceil(self.retry_after_ms / 1000))}
        return {}

    def concerns(self, tool: Tool, contact: str | None) -> bool:
        """Whether a request to `tool` about `contact` is to go wrong."""
        return self.tool is tool and (self.match is None or self.match.contact == contact)


@dataclass(slots=True)
class Standing:
    """A fault in force, and how often it has been used."""

    id: str
    fault: Fault
    used: int = 0

    @property
    def left(self) -> int | None:
        """How many requests it still concerns; None: all until it is taken back."""
        return None if self.fault.times is None else self.fault.times - self.used

    def as_json(self) -> dict[str, Any]:
        """Return it as `GET /faults` shows it."""
        told = self.fault.model_dump(mode="json", by_alias=True)
        return {"id": self.id, **told, "used": self.used, "left": self.left}


class Faults:
    """The faults in force. The oldest that concerns a request is the one that it meets."""

    def __init__(self) -> None:
        self._standing: list[Standing] = []
        self._count = 0

    def add(self, fault: Fault) -> Standing:
        """Put a fault in force.

        Raises:
            Rejection: 409, there are `MAX_FAULTS` already.

        """
        if len(self._standing) >= MAX_FAULTS:
            raise Rejection(
                HTTPStatus.CONFLICT, "too_many_faults", f"At most {MAX_FAULTS} faults at a time"
            )
        self._count += 1
        standing = Standing(f"fault-{self._count}", fault)
        self._standing.append(standing)
        return standing

    def take(self, tool: Tool, contact: str | None) -> Fault | None:
        """Use up one turn of the fault that a request meets, if there is one."""
        for standing in self._standing:
            if standing.fault.concerns(tool, contact):
                standing.used += 1
                if standing.left == 0:
                    self._standing.remove(standing)
                return standing.fault
        return None

    def in_force(self) -> Sequence[Standing]:
        """Return the faults in force, oldest first."""
        return tuple(self._standing)

    def remove(self, fault_id: str) -> bool:
        """Take one fault back; whether it was in force."""
        kept = [standing for standing in self._standing if standing.id != fault_id]
        found = len(kept) < len(self._standing)
        self._standing = kept
        return found

    def clear(self) -> int:
        """Take all faults back; how many there were."""
        count = len(self._standing)
        self._standing = []
        return count
