"""The fold: instructions, one after the other, into a new record and the actions it owes.

What may live here: the meaning of each instruction. What may not: rules of a flow. A `Draft`
lives as long as one decision and never leaves it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, assert_never

import orjson

from agents_stream.core import instructions as do
from agents_stream.core.actions import (
    OWN_EVENT_PREFIX,
    Action,
    BuryDeadLetter,
    IssueCommand,
    PublishEvent,
    PublishOutcome,
    derive_id,
)
from agents_stream.core.journal import Position, Source
from agents_stream.core.reasons import Reason
from agents_stream.core.session import (
    MAX_FAILED_COMMANDS,
    MAX_OWN_EVENTS,
    Deadline,
    FlowRun,
    PendingCommand,
    SessionRecord,
)

MAX_LETTER_BYTES = 1024 * 1024
KEPT_OF_LARGE = 256 * 1024

DeadlineEnd = Literal["fired", "cancelled", "replaced"]


@dataclass(frozen=True, slots=True)
class EndedDeadline:
    """A deadline that a decision ended, and how (G3)."""

    name: str
    generation: int
    due_at_ms: int
    end: DeadlineEnd


class Draft:
    """A decision in the making. `record` is always complete: flows may read it in between."""

    def __init__(self, record: SessionRecord, cause: do.Cause, at: Position) -> None:
        self.record = record
        self.actions: list[Action] = []
        self.reasons: list[Reason] = []
        self.ended: list[EndedDeadline] = []
        self._cause = cause
        self._at = at
        self._ids = 0

    def follow(self, instructions: Iterable[do.Instruction]) -> bool:
        """Fold instructions in; whether there were any."""
        followed = False
        for instruction in instructions:
            followed = True
            self._fold(instruction)
        return followed

    def _fold(self, instruction: do.Instruction) -> None:  # noqa: C901, PLR0912 - one case each
        match instruction:
            case do.Arm(name, due_at_ms):
                self._arm(name, due_at_ms)
            case do.Cancel(name):
                self._end(name, "cancelled")
            case do.Fire(name):
                self._end(name, "fired")
            case do.Change(mode, state):
                self._change(mode, state)
            case do.Enter():
                self._enter(instruction)
            case do.Proceed(flow, step, run):
                self._proceed(flow, step, run)
            case do.CallTool():
                self._call(instruction)
            case do.Reissue(command_id, redriven):
                self._reissue(command_id, redriven=redriven)
            case do.Settle(command_id):
                rest = {k: v for k, v in self.record.pending.items() if k != command_id}
                self.record = replace(self.record, pending=rest)
            case do.KeepAs(command):
                self._keep(command)
            case do.Bury(reason, detail, command):
                self._bury(reason, detail, command.to_wire(self.record.session_id))
            case do.Publish(name, data):
                self._publish(name, data)
            case do.Finish():
                self._finish(instruction)
            case do.Lifecycle(fields):
                self.record = replace(self.record, **dict(fields))
            case do.Because(reason):
                self.reasons.append(reason)
            case _:
                assert_never(instruction)

    def _next_id(self) -> str:
        """An id of this decision's own. A held command takes one too, long before its action."""
        at, index = self._at, self._ids
        self._ids += 1
        return derive_id(self.record.session_id, at.timestamp, at.offset, index)

    def _arm(self, name: str, due_at_ms: int) -> None:
        self._end(name, "replaced")
        deadline = Deadline(due_at_ms, self._cause.offset)
        armed = {**self.record.deadlines, name: deadline}
        self.record = replace(self.record, deadlines=armed)

    def _end(self, name: str, end: DeadlineEnd) -> None:
        if (deadline := self.record.deadlines.get(name)) is None:
            return
        rest = {k: v for k, v in self.record.deadlines.items() if k != name}
        self.record = replace(self.record, deadlines=rest)
        self.ended.append(EndedDeadline(name, deadline.generation, deadline.due_at_ms, end))

    def _change(self, mode: str | None, state: Mapping[str, Any]) -> None:
        merged = {**self.record.state, **state}
        self.record = replace(self.record, mode=mode or self.record.mode, state=merged)

    def _enter(self, begin: do.Enter) -> None:
        run = FlowRun(
            step=begin.step,
            run=self._cause.offset if begin.run is None else begin.run,
            conversation_id=begin.conversation_id,
            workspace_id=begin.workspace_id,
            started_at_ms=self._cause.now_ms,
        )
        self.record = replace(self.record, flows={**self.record.flows, begin.flow: run})

    def _proceed(self, flow: str, step: str, run: int) -> None:
        current = self.record.flows.get(flow)
        if current is not None and current.run == run:
            flows = {**self.record.flows, flow: replace(current, step=step)}
            self.record = replace(self.record, flows=flows)

    def _call(self, call: do.CallTool) -> None:
        command = PendingCommand(
            id=self._next_id(),
            tool=call.tool,
            flow=call.flow,
            then=call.then,
            run=call.run,
            state="awaiting",
            attempt=1,
            workspace_id=call.workspace_id,
            conversation_id=call.conversation_id,
            inputs=call.inputs,
            issued_at_ms=self._cause.now_ms,
            as_of=self._at.offset,
            status=call.status,
            action=call.action,
            extra=call.extra,
            redriven=call.redriven,
        )
        self._issue(command)

    def _reissue(self, command_id: str, *, redriven: bool) -> None:
        command = self.record.pending[command_id]
        held = command.state == "held"
        again = replace(
            command,
            state="awaiting",
            attempt=command.attempt if held else command.attempt + 1,
            issued_at_ms=command.issued_at_ms if held else self._cause.now_ms,
            as_of=command.as_of if held else self._at.offset,
            redriven=command.redriven or redriven,
        )
        self._issue(again)

    def _issue(self, command: PendingCommand) -> None:
        """Ask the tool, or hold the command while the session is paused."""
        if self.record.paused:
            self._keep(replace(command, state="held"))
            self.reasons.append(Reason.PAUSED)
            return
        self._keep(command)
        self.actions.append(IssueCommand(command.to_wire(self.record.session_id)))

    def _keep(self, command: PendingCommand) -> None:
        pending = {**self.record.pending, command.id: command}
        failed = [item.id for item in pending.values() if item.state == "failed"]
        for command_id in failed[:-MAX_FAILED_COMMANDS]:
            del pending[command_id]
        self.record = replace(self.record, pending=pending)

    def _bury(self, reason: str, detail: str, value: Mapping[str, Any]) -> None:
        self.actions.append(BuryDeadLetter(self.letter(reason, detail, value, self._at)))

    def letter(
        self, reason: str, detail: str, value: Mapping[str, Any], source: Position | Source
    ) -> dict[str, Any]:
        """A dead letter (SPEC §2, §5); `source` is the Kafka record that it is about."""
        return {
            "id": self._next_id(),
            "reason": reason,
            "detail": detail,
            "source": {
                "topic": source.topic,
                "partition": source.partition,
                "offset": source.offset,
                "timestamp": source.timestamp,
            },
            "key": self.record.session_id,
            "value": orjson.dumps(value).decode(),
            "encoding": "utf-8",
        }

    def refusal(
        self, reason: str, detail: str, value: Mapping[str, Any], source: Source
    ) -> dict[str, Any]:
        """A dead letter about a record that came in; a large one by its beginning (SPEC §2)."""
        letter = self.letter(reason, detail, value, source)
        raw = letter["value"].encode()
        if len(raw) > MAX_LETTER_BYTES:
            letter["value"] = raw[:KEPT_OF_LARGE].decode(errors="ignore")
            digest = hashlib.sha256(raw).hexdigest()
            letter |= {"truncated": True, "size": len(raw), "sha256": digest}
        return letter

    def _publish(self, name: str, data: Mapping[str, Any]) -> None:
        event_id = OWN_EVENT_PREFIX + self._next_id()
        envelope = {"name": name, "data": data, "id": event_id, "ts": self._cause.now_ms}
        own = (*self.record.own_events, event_id)[-MAX_OWN_EVENTS:]
        self.record = replace(self.record, own_events=own)
        self.actions.append(PublishEvent(envelope, self.record.home))

    def _finish(self, end: do.Finish) -> None:
        run = self.record.flows.get(end.flow)
        if run is not None and run.run == end.run:
            rest = {k: v for k, v in self.record.flows.items() if k != end.flow}
            self.record = replace(self.record, flows=rest)
        outcome = {
            "id": self._next_id(),
            "sessionId": self.record.session_id,
            "workspaceId": end.workspace_id,
            "flow": end.flow,
            "status": end.status,
            "action": end.action,
            "at": self._cause.now_ms,
            **end.extra,
        }
        self.actions.append(PublishOutcome(outcome))
