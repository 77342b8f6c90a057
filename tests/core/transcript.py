"""Tests of the decider as transcripts: what happens, and under it all that the session does.

    session.started
        opens {"workspaceId": "w1", ...}
    +1m customer.message
        because not_waiting

A line at the margin happens; `+6m` before it lets time pass. What is indented below is everything
that the decision did, in a fixed order. `retell` plays the first and writes the second, so that a
test is one comparison of two texts. Every step goes through the bytes of journal and record, is
decided twice (purity), and must leave its input as it was.

What can happen: an event by its short name (`data.captured {...}`), `operator ACTION [NAME]`,
`due [NAME]` (that deadline, else the earliest, at its time; `early` before it, `stale` of another
generation), `succeeded|failed|unknown [@N]` (a result for the N-th command, else the latest),
`own` (the event that we published comes in) and `again [N]` (ingress appends the last N source
records a second time). `word=value` are options, JSON goes into the data. `given A; B; C` lets
happen what another transcript has told.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from agents_stream.core.actions import PublishEvent
from agents_stream.core.decider import Decision, apply
from agents_stream.core.journal import (
    Durations,
    Entry,
    EntryKind,
    Position,
    Source,
    decode_entry,
    encode_entry,
)
from agents_stream.core.session import SessionRecord, decode_record, encode_record
from tests.core.telling import Teller, now_of

START_MS: Final = 1_700_000_000_000
JOURNAL_LAG_MS: Final = 5
SESSION: Final = "s1"

COMPLETE: Final = {"nombre": "Ana", "telefono": "300", "ciudad": "Cali", "direccion": "Calle 1"}
_TALK = {"conversationId": "c1", "workspaceId": "w1"}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "session.started": _TALK | {"agentId": "a1", "contactId": "k1", "mode": "welcome"},
    "session.updated": {},
    "data.captured": {},
    "customer.message": {"conversationId": "c1", "content": "hola"},
    "collecting_data.started": _TALK,
    "promos.offered": _TALK | {"packOptions": ["1x"]},
    "proactive.send": _TALK | {"messageType": "reminder"},
    "session.close": {"reason": "completed"},
    "operator.action": {"by": "olga"},
}
_TAKES_ARGUMENT = {"session.close": "reason", "proactive.send": "messageType"}
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}


def retell(script: str) -> str:
    """Play what happens in a script, and write under it what the session really does."""
    return Conversation().tell(line for line in lines_of(script) if not line.startswith(" "))


def tidy(script: str) -> str:
    """A script without its margin and its empty lines, to compare with `retell`."""
    return "\n".join(lines_of(script))


def lines_of(script: str) -> list[str]:
    """The lines of a script; those that happen start at the margin."""
    return [line.rstrip() for line in textwrap.dedent(script).splitlines() if line.strip()]


class Conversation:
    """One session and its journal: a small world with its own clock."""

    def __init__(self, durations: Durations | None = None) -> None:
        self.now_ms = START_MS
        self.record: SessionRecord | None = None
        self.journal: list[tuple[bytes, Position]] = []
        self.decisions: list[Decision] = []
        self.commands: list[str] = []
        self.durations = durations or Durations()
        self._sources: dict[str, int] = {}

    # What happens.

    def tell(self, steps: Iterator[str]) -> str:
        """Play the steps; the transcript of it all."""
        return "\n".join(text for step in steps for text in (step, *self.play(step)))

    def play(self, step: str) -> list[str]:
        """Let one line of a transcript happen. Returns the lines that belong under it."""
        if step.startswith("given "):
            for line in step.removeprefix("given ").split("; "):
                self.play(line)
            return []
        count = len(self.decisions)
        head, brace, rest = step.partition("{")
        words = [word for word in head.split() if "=" not in word]
        options = dict(word.split("=", 1) for word in head.split() if "=" in word)
        given = orjson.loads(brace + rest) if brace else {}
        if words[0].startswith("+"):
            self.now_ms += milliseconds(words.pop(0)[1:])
        before = self.record
        self._happen(words, options, given)
        told: list[str] = []
        news = zip(self.decisions[count:], self.journal[count:], strict=True)
        for decision, (raw, at) in news:
            teller = Teller(before, self.commands, now_of(decode_entry(raw), at))
            told += [f"    {text}" for text in teller.tell(decision)]
            before = decision.record
        return told

    def _happen(self, words: list[str], options: dict[str, str], given: dict[str, Any]) -> None:
        verb, argument = words[0], words[1] if len(words) > 1 else None
        match verb:
            case "due":
                self.due(argument)
            case "early" | "stale":
                self.wrong_deadline(verb)
            case "succeeded" | "failed" | "unknown":
                numbers = [int(word[1:]) for word in words if word.startswith("@")]
                given = {"retryable": True} | given if "retryable" in words else given
                attempt = int(options["attempt"]) if "attempt" in options else None
                self.result(numbers[0] if numbers else len(self.commands), verb, attempt, given)
            case "own":
                self.own_event()
            case "again":
                self.again(int(argument or 1))
            case "operator":
                asked = {"action": argument} | given
                if len(words) > 2:
                    asked |= self._operand(words[2])
                self.event("operator.action", asked, options.get("id"))
            case "data.captured":
                data = COMPLETE if argument == "complete" else given
                self.event(verb, {"data": data}, options.get("id"))
            case _:
                if argument:
                    given = {_TAKES_ARGUMENT[verb]: argument} | given
                self.event(verb, given, options.get("id"))

    def _operand(self, word: str) -> dict[str, str]:
        if word.startswith("@"):
            return {"commandId": self.command_id(word)}
        prefix, at, number = word.partition("@")
        return {"name": prefix + self.command_id(at + number) if at else word}

    def command_id(self, word: str) -> str:
        """The id of the command that a transcript calls `@1`; nobody's, if there is none yet."""
        return next(iter(self.commands[int(word[1:]) - 1 :]), "nobody")

    def event(
        self, name: str, data: Mapping[str, Any] | None = None, event_id: str | None = None
    ) -> Decision:
        """An event of a producer comes in, with the data that a transcript leaves unsaid."""
        full = {"sessionId": SESSION, **_DEFAULTS[name], **(data or {})}
        if name == "customer.message":
            full.setdefault("messageId", f"m{len(self.journal)}")
        topic = "agent.operator" if name == "operator.action" else f"agent.{name}"
        return self.take("event", f"agent/{name}", topic, full, event_id)

    def due(self, name: str | None = None) -> Decision | None:
        """A deadline's time comes: the wheel publishes it a millisecond later."""
        deadlines = self.record.deadlines if self.record else {}
        if not deadlines:
            return None
        if name is None:
            name = min(deadlines, key=lambda name: (deadlines[name].due_at_ms, name))
        elif "@" in name:
            name = self._operand(name)["name"]
        deadline = deadlines[name]
        self.now_ms = max(self.now_ms, deadline.due_at_ms + 1)
        return self.deadline(name, deadline.generation, deadline.due_at_ms)

    def wrong_deadline(self, kind: str) -> Decision | None:
        """The earliest deadline comes in a millisecond too soon, or with another generation."""
        if not self.record or not self.record.deadlines:
            return None
        name, found = min(self.record.deadlines.items(), key=lambda item: item[1].due_at_ms)
        if kind == "stale":
            return self.deadline(name, found.generation - 1, found.due_at_ms)
        self.now_ms = max(self.now_ms, found.due_at_ms - 1)
        return self.deadline(name, found.generation, found.due_at_ms)

    def deadline(self, name: str, generation: int, due_at_ms: int) -> Decision:
        """A record of `session.deadlines` comes in, whatever the session says to it."""
        data = {"sessionId": SESSION, "name": name, "generation": generation, "dueAt": due_at_ms}
        return self.take("deadline", "session/deadline", "session.deadlines", data)

    def result(
        self,
        number: int,
        status: str,
        attempt: int | None = None,
        said: Mapping[str, Any] | None = None,
    ) -> Decision | None:
        """A tool answers the `number`-th command: its latest attempt, unless another is named."""
        if not 0 < number <= len(self.commands):
            return None
        command_id = self.commands[number - 1]
        pending = self.record.pending.get(command_id) if self.record else None
        answer = {
            "commandId": command_id,
            "sessionId": SESSION,
            "attempt": attempt or (pending.attempt if pending else 1),
            "status": status,
        }
        if status == "succeeded":
            answer["outputs"] = {"id": "order-1"}
        else:
            answer["error"] = {"code": "boom", "message": "no"}
        data = {**answer, **(said or {})}
        return self.take("result", "tool/result", "tool.results", data)

    def own_event(self) -> Decision | None:
        """The event that we published last comes in from its topic."""
        envelope = next((dict(event.envelope) for event in reversed(list(self.published()))), None)
        if envelope is None:
            return None
        name, topic = envelope["name"], "agent.promos.offered"
        return self.take("event", name, topic, envelope["data"], envelope["id"])

    def again(self, count: int) -> None:
        """Ingress lost an ack: it appends the last source records a second time."""
        for raw, _ in self.journal[-count:]:
            self.append(raw)

    # How it is taken.

    def take(
        self,
        kind: EntryKind,
        name: str,
        topic: str,
        data: Mapping[str, Any],
        event_id: str | None = None,
    ) -> Decision:
        """Give a source record its place on its topic and in the journal."""
        offset = self._sources.get(topic, -1) + 1
        self._sources[topic] = offset
        source = Source(topic, 3, offset, self.now_ms, keyed=True)
        entry = Entry(kind, name, SESSION, data, source, self.durations, event_id)
        return self.append(encode_entry(entry))

    def append(self, raw: bytes) -> Decision:
        """Append bytes to the journal and apply them, twice, to the bytes of the record."""
        last = self.journal[-1][1] if self.journal else None
        offset = 100 if last is None else last.offset + 1
        timestamp = max(self.now_ms + JOURNAL_LAG_MS, last.timestamp if last else 0)
        at = Position("session.journal", 3, offset, timestamp)
        self.journal.append((raw, at))
        decision = decide(self.record, raw, at)
        assert decision == decide(self.record, raw, at), "the same input, another decision"
        self.decisions.append(decision)
        self.record = decision.record
        for command_id in self.record.pending if self.record else ():
            if command_id not in self.commands:
                self.commands.append(command_id)
        return decision

    def published(self) -> Iterator[PublishEvent]:
        """The events that we published, in their order."""
        for decision in self.decisions:
            yield from (act for act in decision.actions if isinstance(act, PublishEvent))


def decide(record: SessionRecord | None, raw: bytes, at: Position) -> Decision:
    """`apply` as the reducer calls it, through bytes; the input must stay as it was."""
    stored = None if record is None else encode_record(record)
    loaded = None if stored is None else decode_record(stored)
    assert loaded == record, "a record that is read back is equal"
    entry = decode_entry(raw)
    decision = apply(loaded, entry, at)
    assert encode_entry(entry) == raw, "a decision leaves its entry alone"
    assert loaded is None or encode_record(loaded) == stored, "and its record"
    return decision


def replayed(journal: list[tuple[bytes, Position]]) -> SessionRecord | None:
    """The record that a journal gives in one go, with no bytes in between."""
    record: SessionRecord | None = None
    for raw, at in journal:
        record = apply(record, decode_entry(raw), at).record
    return record


def substance(record: SessionRecord | None) -> SessionRecord | None:
    """A record without its journal position: what an entry that counts for nothing leaves."""
    if record is None:
        return None
    return replace(record, journal_offset=0, journal_timestamp=0)


def milliseconds(text: str) -> int:
    """`6m` as a number."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", text).groups()  # type: ignore[union-attr]
    return int(number) * _UNITS_MS[unit]
