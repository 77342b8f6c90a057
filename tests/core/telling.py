"""How a transcript tells what a decision did: one line for each thing, in a fixed order."""

from collections.abc import Iterator, Sequence
from typing import Final, assert_never

import orjson

from agents_stream.core.actions import (
    Action,
    BuryDeadLetter,
    IssueCommand,
    PublishEvent,
    PublishOutcome,
)
from agents_stream.core.decider import Decision
from agents_stream.core.journal import Entry, Position
from agents_stream.core.session import SessionRecord, empty_state, iso

# The texts of SPEC §4, by the names that the transcripts give them.
TEXTS: Final = {
    "Quedamos pendientes! Cuando tengas un momento, me cuentas para ayudarte con tu pedido.": (
        "PENDING"
    ),
    "Para continuar con tu pedido, necesito que me confirmes: ": "MISSING ",
    "He creado tu pedido con el Pack 1x. Un asesor se pondra en contacto contigo pronto para "
    "confirmar los detalles.": "CREATED",
    "Hola! Sigues interesado en tu pedido?": "REMINDER",
    "Hola! Quedo pendiente por si tienes alguna pregunta sobre tu pedido.": "FOLLOWUP",
    "Tu sesion se cerrara pronto si no recibimos respuesta.": "WARNING",
}
_KNOWN = {
    "workspace_id": "workspaceId",
    "agent_id": "agentId",
    "conversation_id": "conversationId",
    "contact_id": "contactId",
}
_COMMON = ("id", "sessionId", "workspaceId", "flow", "status", "action", "at")


def now_of(entry: Entry, at: Position) -> int:
    """SPEC §4's "now": a deadline's time is its journal record's, all else has its own."""
    return at.timestamp if entry.kind == "deadline" else entry.source.timestamp


class Teller:
    """Tells one decision. `commands` are the ids that the transcript calls `@1`, `@2`, ..."""

    def __init__(self, before: SessionRecord | None, commands: Sequence[str], now_ms: int) -> None:
        self.before = before
        self.commands = commands
        self.now_ms = now_ms

    def tell(self, decision: Decision) -> Iterator[str]:
        """The lines under a step."""
        after = decision.record
        if after is not None:
            yield from self._changes(self.before or SessionRecord(after.session_id), after)
        for ended in decision.ended:
            yield f"ends {self._called(ended.name)} {ended.end}"
        if after is not None:
            yield from self._arms(after)
            yield from self._holds(after)
        for action in decision.actions:
            yield from self._act(action)
        yield from (f"because {reason}" for reason in decision.reasons)
        if decision.repeated:
            yield "was applied before"

    def _changes(self, before: SessionRecord, after: SessionRecord) -> Iterator[str]:
        if self.before is None or (before.status, after.status) == ("closed", "open"):
            yield "opens"
        if (before.status, after.status) == ("open", "closed"):
            yield f"closes {after.close_reason}"
        known = {
            wire: getattr(after, field)
            for field, wire in _KNOWN.items()
            if getattr(after, field) != getattr(before, field)
        }
        if known:
            yield f"knows {compact(known)}"
        if after.paused is not before.paused:
            yield "pauses" if after.paused else "resumes"
        had = before.state or empty_state()  # of a closed session nothing is kept
        changed = {
            key: self._news(had.get(key), value)
            for key, value in after.state.items()
            if compact(value) != compact(had.get(key))
        }
        if after.mode != before.mode:
            changed = {"mode": after.mode, **changed}
        if changed or after.version != before.version:
            yield f"v{after.version} {compact(changed)}"

    def _news(self, before: object, after: object) -> object:
        if isinstance(before, dict) and isinstance(after, dict) and after:
            return {key: value for key, value in after.items() if before.get(key, ...) != value}
        return "now" if after == iso(self.now_ms) else after

    def _arms(self, after: SessionRecord) -> Iterator[str]:
        before = self.before.deadlines if self.before else {}
        for name, deadline in after.deadlines.items():
            if before.get(name) != deadline:
                # The moment of a retry is derived from its command's id: not for a transcript.
                due = duration(deadline.due_at_ms - self.now_ms)
                yield f"arms {self._called(name)}" + ("" if "retry:" in name else f" +{due}")

    def _holds(self, after: SessionRecord) -> Iterator[str]:
        for command in after.pending.values():
            earlier = self.before.pending.get(command.id) if self.before else None
            if command.state == "held" and (earlier is None or earlier.state != "held"):
                yield f"holds {self._called(command.id)}"

    def _called(self, name: str) -> str:
        """A name or text with its command ids as `@1`."""
        for number, command_id in enumerate(self.commands, 1):
            name = name.replace(command_id, f"@{number}")
        return name

    def _act(self, action: Action) -> Iterator[str]:
        match action:
            case IssueCommand(command):
                inputs = command["inputs"]
                again = "" if command["attempt"] == 1 else f" (attempt {command['attempt']})"
                if command["tool"] == "crm.order.create":
                    asked = f"orders for {inputs['contact_id']}"
                else:
                    asked = f"tells {inputs['contactId']}: {_shortened(inputs['message'])}"
                yield f"{self._called(command['id'])} {asked}{again}"
            case PublishEvent(envelope):
                data = envelope["data"]
                packs = ", ".join(data["packOptions"])
                yield f"publishes {envelope['name']} for {data['conversationId']}: {packs}"
            case PublishOutcome(outcome):
                yield f"outcome {outcome['flow']} {outcome['status']}/{outcome['action']}"
                extra = {k: v for k, v in outcome.items() if k not in _COMMON}
                extra |= {} if outcome["workspaceId"] == "w1" else {"in": outcome["workspaceId"]}
                if extra:
                    yield f"    with {compact(extra)}"
            case BuryDeadLetter(letter):
                value = orjson.loads(letter["value"])
                what = self._called(value.get("id") or value.get("commandId") or "the event")
                yield f"buries {what}: {letter['reason']}, {letter['detail']}"
            case _:
                assert_never(action)


def compact(value: object) -> str:
    """JSON as people write it in one line."""
    return orjson.dumps(value).decode().replace('":', '": ').replace(',"', ', "')


def duration(span_ms: int) -> str:
    """A number as `6m`."""
    units = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
    unit = next(unit for unit, size in units.items() if span_ms % size == 0)
    return f"{span_ms // units[unit]}{unit}"


def _shortened(text: str) -> str:
    """A text of SPEC §4 by its name, another as it is."""
    for whole, name in TEXTS.items():
        text = text.replace(whole, name)
    return text
