"""A small, correct history made by hand, for the verifier to find right, and then to be spoilt.

One partition, one clock, no processes: the production core decides, and everything else happens at
once. So these histories are also a second opinion on the contract as `contract.py` reads it.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import orjson

from agents_stream.core.actions import (
    BuryDeadLetter,
    IssueCommand,
    PublishEvent,
    PublishOutcome,
)
from agents_stream.core.decider import apply
from agents_stream.core.journal import Durations, Entry, Position, Source, encode_entry
from agents_stream.core.session import SessionRecord, encode_record
from tests.chaos.history import (
    CHANGELOG,
    DEADLINES,
    JOURNAL,
    LETTERS,
    OUTCOMES,
    RESULTS,
    Exit,
    FaultDone,
    History,
    Line,
    Sent,
    Timing,
    Try,
)

TIMING = Timing(3_000, 1_000, 2_500, 200)
DURATIONS = Durations(3_000, 1_000, 2_500, 200)
IDS = {"conversationId": "c-1", "workspaceId": "w-1"}
HOP_MS = 5

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def works(command: dict[str, Any]) -> dict[str, Any]:
    """A tool that acts and says so."""
    return {"status": "succeeded", "outputs": {"id": f"done-{command['id'][:8]}"}}


class Recording:
    """Plays events into a history; `answer` says what becomes of each command."""

    def __init__(self, answer: Answer = works) -> None:
        self.history = History(TIMING)
        self.clock = self.history.began_at_ms = 1_700_000_000_000
        self.records: dict[str, SessionRecord] = {}
        self.answer = answer

    def put(self, topic: str, session: str, value: bytes) -> Line:
        """Append a record to a topic."""
        lines = self.history.lines.setdefault(topic, [])
        line = Line(topic, 0, len(lines), self.clock, session.encode(), value)
        lines.append(line)
        return line

    def event(self, name: str, session: str, **data: Any) -> Line:
        """An event of a producer, acknowledged and applied."""
        self.clock += HOP_MS
        whole = {"sessionId": session, **data}
        identity = data.get("messageId") or f"id-{self.clock}"
        value: dict[str, Any] = {"name": f"agent/{name}", "data": whole, "id": identity}
        line = self.put(
            f"agent.{name}",
            session,
            orjson.dumps(whole if name == "customer.message" else value),
        )
        self.sent(line, session, identity)
        own = None if name == "customer.message" else identity
        self.journal(line, "event", f"agent/{name}", whole, own)
        return line

    def sent(self, line: Line, session: str, identity: str, *, broken: bool = False) -> None:
        """Note in the producer's books that Kafka has it."""
        tried = Try(self.clock, self.clock, line.partition, line.offset, line.timestamp)
        self.history.sent.append(Sent(session, line.topic, "", identity, broken, [tried]))

    def broken(self, session: str) -> None:
        """Something that is no event, and its letter."""
        line = self.put("agent.session.close", session, b"{ no JSON")
        self.sent(line, session, f"broken-{session}", broken=True)
        source = {"topic": line.topic, "partition": 0, "offset": line.offset}
        letter = {"id": f"dl:{line.offset}", "reason": "invalid_json", "detail": "it is none"}
        self.put(LETTERS, session, orjson.dumps({**letter, "source": source, "key": session}))

    def journal(
        self, line: Line, kind: Any, name: str, data: dict[str, Any], event_id: str | None = None
    ) -> None:
        """Give a record its place in the journal and apply it."""
        self.clock += HOP_MS
        session = data["sessionId"]
        source = Source(line.topic, line.partition, line.offset, line.timestamp, keyed=True)
        sent_at = None if event_id is None else (line.json or {}).get("ts")
        entry = Entry(kind, name, session, data, source, DURATIONS, event_id, sent_at)
        at = self.put(JOURNAL, session, encode_entry(entry))
        position = Position(JOURNAL, 0, at.offset, at.timestamp)
        decision = apply(self.records.get(session), entry, position)
        if decision.record is None:
            return
        record = replace(decision.record, outbox={})
        self.records[session] = record
        self.put(CHANGELOG, session, encode_record(record))
        for action in decision.actions:
            self._publish(session, action)

    def _publish(self, session: str, action: Any) -> None:
        match action:
            case IssueCommand(command):
                self.put(f"tool.{command['tool']}", session, orjson.dumps(command))
                self._perform(dict(command))
            case PublishOutcome(outcome):
                self.put(OUTCOMES, session, orjson.dumps(outcome))
            case BuryDeadLetter(letter):
                self.put(LETTERS, session, orjson.dumps(letter))
            case PublishEvent(envelope):
                line = self.put("agent.promos.offered", session, orjson.dumps(envelope))
                self.journal(line, "event", envelope["name"], envelope["data"], envelope["id"])

    def _perform(self, command: dict[str, Any]) -> None:
        """The gateway calls the tool, which enters it into its books, and publishes the result."""
        self.clock += HOP_MS
        said = self.answer(command)
        acted = said["status"] == "succeeded"
        books = self.history.books
        books.append(
            {
                "seq": len(books) + 1,
                "tool": command["tool"],
                "key": command["id"],
                "inputs": command["inputs"],
                "performed": acted,
                "repeat": False,
                "id": said.get("outputs", {}).get("id"),
            }
        )
        result = {
            "commandId": command["id"],
            "sessionId": command["sessionId"],
            "tool": command["tool"],
            "attempt": command["attempt"],
            "retryable": False,
            "retryAfterMs": None,
            **said,
        }
        line = self.put(RESULTS, command["sessionId"], orjson.dumps(result))
        self.journal(line, "result", "tool/result", result)

    def wait(self, milliseconds: int) -> None:
        """Let time pass; what falls due fires."""
        end = self.clock + milliseconds
        while (due := self._next_due()) is not None and due[0] <= end:
            at, session, name, generation = due
            self.clock = max(self.clock, at + 2)
            value = {"sessionId": session, "name": name, "generation": generation, "dueAt": at}
            line = self.put(DEADLINES, session, orjson.dumps(value))
            self.journal(line, "deadline", "session/deadline", value)
        self.clock = max(self.clock, end)

    def _next_due(self) -> tuple[int, str, str, int] | None:
        standing = [
            (deadline.due_at_ms, session, name, deadline.generation)
            for session, record in self.records.items()
            for name, deadline in record.deadlines.items()
        ]
        return min(standing, default=None)

    def open(self, session: str) -> None:
        """Start a session."""
        self.event(
            "session.started",
            session,
            agentId="a-1",
            contactId=f"p-{self.clock}",
            mode="intro",
            **IDS,
        )

    def message(self, session: str) -> Line:
        """The customer writes."""
        more = {"conversationId": "c-1", "messageId": f"m-{self.clock}", "content": "hola"}
        return self.event("customer.message", session, **more)

    def end(self) -> History:
        """The run is over; a worker was killed in it, and everything ended cleanly."""
        self.wait(20_000)
        history = self.history
        history.ended_at_ms = self.clock
        history.faults.append(FaultDone("worker_kill", "worker-0", 1, 2))
        history.exits += [
            Exit("worker-0", -9, 1, "worker_kill", ""),
            Exit("worker-0", 0, self.clock, "end", ""),
        ]
        return history


def full_run() -> History:
    """Every flow, with tools that fail, refuse and do not answer."""
    failing: Iterator[dict[str, Any]] = iter(
        [
            {"status": "failed", "retryable": True, "error": {"code": "http_500", "message": ""}},
            {"status": "failed", "error": {"code": "http_422", "message": ""}},
            {"status": "unknown", "error": {"code": "no_answer", "message": ""}},
        ]
    )

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        return next(failing, works(command)) if command["sessionId"] == "nudged" else works(command)

    run = Recording(answer)
    run.open("silent")
    run.event("collecting_data.started", "silent", **IDS)
    run.open("answered")
    run.event("collecting_data.started", "answered", **IDS)
    run.event("collecting_data.started", "answered", **IDS)
    run.wait(2_900)
    run.message("answered")
    run.open("complete")
    data = {"nombre": "A", "telefono": "1", "ciudad": "C", "direccion": "D"}
    run.event("collecting_data.started", "complete", **IDS)
    run.event("data.captured", "complete", data=data)
    run.message("complete")
    run.open("nudged")
    for kind in ("reminder", "followup", "timeout_warning"):
        run.event("proactive.send", "nudged", messageType=kind, **IDS)
        run.wait(1_000)
    run.event("session.updated", "nudged", expectedVersion=9, state={"a": 1})
    run.event("session.updated", "nudged", mode="other", state={"a": 1})
    run.open("closed")
    run.event("promos.offered", "closed", packOptions=["1x"], **IDS)
    run.event("session.close", "closed", reason="handoff")
    run.message("closed")
    run.open("closed")
    run.event("promos.offered", "closed", packOptions=["1x"], **IDS)
    run.open("gone")
    run.event("data.captured", "gone", data={"nombre": "Ana"})
    run.event("session.close", "gone", reason="completed")
    run.broken("silent")
    return run.end()
