"""What the log says, in words: one line per thing that happens.

The journal tells what came in. What a decision did with the timers is written nowhere, so each
entry is decided once more, as the timeline does (a record is a function of its journal, G8); the
records at which that starts come from the table's changelog. Commands, outcomes and dead letters
are told as they are read on their own topics. What a customer or an agent wrote is told only to
those who ask for it. No clock, no Kafka: records in, lines out.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from agents_stream.core.decider import Decision, apply
from agents_stream.core.errors import AgentsStreamError
from agents_stream.core.fold import EndedDeadline
from agents_stream.core.journal import Entry, Position, decode_entry
from agents_stream.core.session import Deadline, SessionRecord, decode_record, journal_position
from agents_stream.kafka.topics import DEAD_LETTERS, JOURNAL, OUTCOMES
from agents_stream.up.screen import Kind, Line
from agents_stream.up.tail import Seen

MAX_SESSIONS: Final = 5_000
MAX_TEXT_CHARS: Final = 100
# What waited longer than this says so: the worker was away or behind.
TOLD_AGE_MS: Final = 1_000
RETRY: Final = "retry:"

Json = Mapping[str, Any]


class Narrator:
    """Turns records into lines.

    Args:
        contents: whether lines may show what customers and agents wrote.

    """

    def __init__(self, *, contents: bool) -> None:
        self._contents = contents
        self._rows: OrderedDict[str, bytes | SessionRecord] = OrderedDict()
        # Whether a session without a row is certainly a new one.
        self._knows_all = True

    def remember(self, session_id: str, row: bytes) -> None:
        """Take a row of the table; the one further in the journal stays."""
        known = self._rows.get(session_id)
        if isinstance(known, bytes) and journal_position(known) > journal_position(row):
            return
        self._keep(session_id, row)

    def forget(self) -> None:
        """Entries were left out: what is known of the sessions is no longer right."""
        self._rows.clear()
        self._knows_all = False

    def lines(self, seen: Seen) -> Iterator[Line]:
        """Tell of one record; nothing, if there is nothing to tell."""
        if seen.value is None:
            return
        try:
            if seen.topic == JOURNAL:
                yield from self._journal(decode_entry(seen.value), seen)
            else:
                yield from self._published(seen, orjson.loads(seen.value))
        except (AgentsStreamError, ValueError, KeyError, TypeError, AttributeError) as error:
            # Somebody else wrote it, or a newer version did: shown, never fatal.
            text = f"a record on {seen.topic} cannot be read ({type(error).__name__})"
            yield Line(seen.timestamp, seen.key, "up", text)

    def _journal(self, entry: Entry, seen: Seen) -> Iterator[Line]:
        at = Position(JOURNAL, seen.partition, seen.offset, seen.timestamp)
        before, known = self._row(entry.session_id)
        decision = apply(before, entry, at) if known else None
        if decision is not None and decision.repeated:
            return
        if decision is not None and decision.record is not None:
            self._keep(entry.session_id, replace(decision.record, outbox={}))
        teller = _Teller(seen.timestamp, entry, contents=self._contents)
        yield teller.entry(before, decision)
        if decision is not None:
            yield from teller.decision(before, decision)

    def _row(self, session_id: str) -> tuple[SessionRecord | None, bool]:
        """The record of a session, and whether what is given is certain."""
        row = self._rows.get(session_id)
        if row is None:
            return None, self._knows_all
        record = decode_record(row) if isinstance(row, bytes) else row
        return replace(record, outbox={}), True

    def _keep(self, session_id: str, row: bytes | SessionRecord) -> None:
        self._rows[session_id] = row
        self._rows.move_to_end(session_id)
        if len(self._rows) > MAX_SESSIONS:
            self._rows.popitem(last=False)
            self._knows_all = False

    def _published(self, seen: Seen, value: Json) -> Iterator[Line]:
        if seen.topic == OUTCOMES:
            text = f"{value['flow']}: {value['status']} / {value['action']}{_extras(value)}"
            yield Line(seen.timestamp, value["sessionId"], "outcome", text)
        elif seen.topic == DEAD_LETTERS:
            text = f"{value['reason']}: {_clip(str(value.get('detail', '')))}"
            yield Line(seen.timestamp, seen.key, "dead letter", text)
        else:
            shown = f"  {_inputs_words(value['inputs'])}" if self._contents else ""
            again = f" (attempt {value['attempt']})" if value["attempt"] > 1 else ""
            text = f"-> {value['tool']}{again}{shown}"
            yield Line(seen.timestamp, value["sessionId"], "tool", text)


class _Teller:
    """Words for one journal entry and what it led to."""

    def __init__(self, at_ms: int, entry: Entry, *, contents: bool) -> None:
        self._at_ms = at_ms
        self._entry = entry
        self._contents = contents
        # The time of the event in hand, from which its deadlines count (SPEC §4).
        self._now_ms = at_ms if entry.kind == "deadline" else entry.source.timestamp

    def entry(self, before: SessionRecord | None, decision: Decision | None) -> Line:
        """Tell what came in."""
        entry = self._entry
        if entry.kind == "deadline":
            return self._line("timer", self._due(before, decision))
        if entry.kind == "result":
            return self._line("tool", _result_words(entry.data, before) + self._age())
        kind: Kind = "customer" if entry.name == "agent/customer.message" else "engine"
        return self._line(kind, self._event() + self._age())

    def decision(self, before: SessionRecord | None, decision: Decision) -> Iterator[Line]:
        """Tell what the decision did with the timers and the mode, and why nothing."""
        for ended in decision.ended:
            if ended.end == "cancelled":
                yield self._line("timer", f"{_timer(ended.name)} cancelled{self._left(ended)}")
        known = before.deadlines if before else {}
        after = decision.record.deadlines if decision.record else {}
        for name, deadline in after.items():
            if known.get(name) != deadline:
                yield self._line("timer", self._armed(name, deadline, again=name in known))
        mode = before.mode if before else None
        started = self._entry.name == "agent/session.started"
        if decision.record and decision.record.mode != mode and not started:
            yield self._line("session", f"mode is now {decision.record.mode}")
        if decision.reasons and self._entry.kind != "deadline":
            yield self._line("session", f"nothing more happens: {', '.join(decision.reasons)}")

    def _line(self, kind: Kind, text: str) -> Line:
        return Line(self._at_ms, self._entry.session_id, kind, text)

    def _age(self) -> str:
        """Say when it came, if it had to wait until somebody took it in."""
        age_ms = self._at_ms - self._now_ms
        return f"  (came {_seconds(age_ms)} ago)" if age_ms > TOLD_AGE_MS else ""

    def _event(self) -> str:
        name, data = self._entry.name, self._entry.data
        short = name.removeprefix("agent/")
        if self._contents and "content" in data:
            return f"{short}  {_quoted(str(data['content']))}"
        if name == "agent/data.captured":
            return f"{short}: {', '.join(data['data']) or 'nothing'}"
        told = [f"{field} {data[field]}" for field in _TOLD_OF_EVENTS if data.get(field)]
        return f"{short}  {', '.join(told)}".rstrip()

    def _due(self, before: SessionRecord | None, decision: Decision | None) -> str:
        data = self._entry.data
        name = _timer(data["name"])
        why = ", ".join(decision.reasons) if decision else ""
        if decision is not None and why and not decision.actions:
            return f"{name} is due, and nothing happens: {why}"
        deadline = before.deadlines.get(data["name"]) if before else None
        due_at_ms = deadline.due_at_ms if deadline else data["dueAt"]
        late = _seconds(self._entry.source.timestamp - due_at_ms)
        return f"{name} fires, {late} after its time{f': {why}' if why else ''}"

    def _armed(self, name: str, deadline: Deadline, *, again: bool) -> str:
        how = "armed again" if again else "armed"
        return f"{_timer(name)} {how}: due in {_seconds(deadline.due_at_ms - self._now_ms)}"

    def _left(self, ended: EndedDeadline) -> str:
        left_ms = ended.due_at_ms - self._now_ms
        return f", {_seconds(left_ms)} before its time" if left_ms > 0 else ""


_TOLD_OF_EVENTS: Final = ("mode", "messageType", "reason", "action", "name", "expectedVersion")
_TOLD_OF_OUTCOMES: Final = ("missing", "orderId", "notified", "unknown", "redriven")


def _extras(outcome: Json) -> str:
    """What an outcome says beyond its three words; of an error only its code."""
    extras = {name: outcome[name] for name in _TOLD_OF_OUTCOMES if name in outcome}
    if error := outcome.get("error"):
        extras["error"] = error.get("code")
    return f"  {_compact(extras)}" if extras else ""


def _inputs_words(inputs: Json) -> str:
    """What a tool is asked to do."""
    if "products" in inputs:
        lines = [f"{one['quantity']} of {one['product_id']}" for one in inputs["products"]]
        return f"{', '.join(lines)} for {inputs.get('contact_id')}"
    return _quoted(str(inputs.get("message", "")))


def _timer(name: str) -> str:
    return "the pause before a retry" if name.startswith(RETRY) else name


def _result_words(data: Json, before: SessionRecord | None) -> str:
    command = before.pending.get(data["commandId"]) if before else None
    tool = data.get("tool") or (command.tool if command else "a tool")
    text = f"<- {tool} {data['status']}"
    if order_id := (data.get("outputs") or {}).get("id"):
        text += f" ({order_id})"
    if error := data.get("error"):
        kind = "to be retried" if data.get("retryable") else "for good"
        text += f", {kind}: {_clip(str(error.get('code', '')))}"
    return text


def _seconds(milliseconds: int) -> str:
    if abs(milliseconds) < 1_000:  # noqa: PLR2004 - a second
        return f"{milliseconds} ms"
    return f"{milliseconds / 1000:.1f} s"


def _quoted(text: str) -> str:
    return f'"{_clip(text)}"'


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT_CHARS else f"{line[: MAX_TEXT_CHARS - 3]}..."


def _compact(value: object) -> str:
    return _clip(orjson.dumps(value).decode())
