"""The live feed's words: what the journal and the topics say, one line per thing."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from agents_stream.core.decider import apply
from agents_stream.core.journal import Durations, Entry, EntryKind, Position, Source, encode_entry
from agents_stream.core.session import SessionRecord, encode_record
from agents_stream.live_feed import HOLD_MS, MAX_HELD, LiveFeed
from agents_stream.up.narration import Narrator
from agents_stream.up.tail import Seen

IDS = {"sessionId": "s", "conversationId": "c", "workspaceId": "w"}
START = {**IDS, "agentId": "a", "contactId": "k", "mode": "m"}
PRIVATE = "mi direccion es..."


class Log:
    """A journal of one partition as the feed reads it, and the record that the reducer has."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.offset = 0
        self.record: SessionRecord | None = None

    def append(self, kind: EntryKind, name: str, data: Mapping[str, Any], age_ms: int = 0) -> Seen:
        """Append an entry that came `age_ms` ago."""
        source = Source(f"in.{kind}", 0, self.offset, self.now_ms - age_ms, keyed=True)
        entry = Entry(kind, name, "s", data, source, Durations())
        at = Position("session.journal", 0, self.offset, self.now_ms)
        self.record = apply(self.record, entry, at).record
        self.offset += 1
        return Seen("session.journal", 0, at.offset, at.timestamp, "s", encode_entry(entry))

    def event(self, name: str, data: Mapping[str, Any], age_ms: int = 0) -> Seen:
        """Append an event."""
        return self.append("event", f"agent/{name}", data, age_ms)

    def fall_due(self, name: str, late_ms: int) -> Seen:
        """Append a deadline, as the wheel publishes it."""
        assert self.record is not None
        deadline = self.record.deadlines[name]
        self.now_ms = deadline.due_at_ms + late_ms
        data = {"sessionId": "s", "name": name, "generation": deadline.generation}
        return self.append("deadline", "session/deadline", {**data, "dueAt": deadline.due_at_ms})


def words(narrator: Narrator, seen: Seen) -> list[str]:
    """The lines of a record, as `kind text`."""
    return [f"{line.kind} {line.text}" for line in narrator.lines(seen)]


def topic(name: str, **value: Any) -> Seen:
    """A record of another topic."""
    return Seen(name, 0, 0, 1_000_000, "s", orjson.dumps(value))


def test_a_flow_is_told_with_its_timers() -> None:
    """Events, armed, cancelled and fired timers, modes, results, and why nothing happens."""
    log, narrator = Log(), Narrator(contents=False)
    assert words(narrator, log.event("session.started", START)) == [
        "engine session.started  mode m"
    ]
    assert words(narrator, log.event("collecting_data.started", IDS)) == [
        "engine collecting_data.started",
        "timer data_collection.reply armed: due in 360.0 s",
        "session mode is now collecting_data",
    ]
    log.now_ms += 60_000
    data = {**IDS, "messageId": "m1", "content": PRIVATE}
    assert words(narrator, log.event("customer.message", data)) == [
        "customer customer.message",
        "timer data_collection.reply cancelled, 300.0 s before its time",
    ]
    assert words(narrator, log.event("customer.message", data)) == [
        "customer customer.message",
        "session nothing more happens: duplicate",
    ]
    log.event("collecting_data.started", IDS)
    narrator.remember("s", encode_record(log.record))  # type: ignore[arg-type] # it is there
    assert words(narrator, log.fall_due("data_collection.reply", 4)) == [
        "timer data_collection.reply fires, 4 ms after its time"
    ]
    command = next(iter(log.record.pending))  # type: ignore[union-attr] # it is there
    failed = {"sessionId": "s", "commandId": command, "attempt": 1, "status": "failed"}
    error = {"error": {"code": "http_503", "message": PRIVATE}, "retryable": True}
    told = words(narrator, log.append("result", "tool/result", {**failed, **error}))
    assert told[0] == "tool <- whatsapp.message.send failed, to be retried: http_503"
    assert told[1].startswith("timer the pause before a retry armed: due in 1.")


def test_an_answer_from_a_backlog_counts_from_its_own_time() -> None:
    """What waited while the worker was away says so, and is measured at the time it came (G5)."""
    log, narrator = Log(), Narrator(contents=True)
    words(narrator, log.event("session.started", START))
    words(narrator, log.event("collecting_data.started", IDS))
    log.now_ms += 400_000
    data = {**IDS, "messageId": "m1", "content": "Perdon la\ndemora"}
    assert words(narrator, log.event("customer.message", data, age_ms=50_000)) == [
        'customer customer.message  "Perdon la demora"  (came 50.0 s ago)',
        "timer data_collection.reply cancelled, 10.0 s before its time",
    ]


def test_no_contents_unless_asked() -> None:
    """Neither a customer's words nor an agent's are shown, except in the demo."""
    log = Log()
    message = log.event("customer.message", {**IDS, "messageId": "m", "content": PRIVATE})
    command = {"tool": "whatsapp.message.send", "sessionId": "s", "attempt": 2, "id": "x"}
    sent = topic("tool.whatsapp.message.send", **command, inputs={"message": PRIVATE})
    for contents in (False, True):
        narrator = Narrator(contents=contents)
        told = "\n".join(words(narrator, message) + words(narrator, sent))
        assert (PRIVATE in told) is contents
        assert "-> whatsapp.message.send (attempt 2)" in told


def test_outcomes_orders_and_dead_letters() -> None:
    """What was published is told from its own topic."""
    narrator = Narrator(contents=True)
    outcome = {"sessionId": "s", "flow": "promos", "status": "failed", "action": "order_failed"}
    error = {"code": "http_422", "message": "long"}
    assert words(narrator, topic("agent.outcomes", **outcome, error=error)) == [
        'outcome promos: failed / order_failed  {"error":"http_422"}'
    ]
    order = {"contact_id": "k", "products": [{"product_id": "p", "quantity": 2}]}
    command = {"tool": "crm.order.create", "sessionId": "s", "attempt": 1, "inputs": order}
    assert words(narrator, topic("tool.crm.order.create", **command)) == [
        "tool -> crm.order.create  2 of p for k"
    ]
    assert words(narrator, topic("agent.dead_letters", reason="invalid_json", detail="d")) == [
        "dead letter invalid_json: d"
    ]


@pytest.mark.parametrize("value", [b"no json", b"[]", b"{}", b'{"v": 99, "rules": 1}'])
@pytest.mark.parametrize("name", ["session.journal", "agent.outcomes", "agent.dead_letters"])
def test_foreign_records_are_shown_and_never_fatal(name: str, value: bytes) -> None:
    """Whoever writes to our topics cannot end `up` (G10)."""
    seen = Seen(name, 0, 0, 1_000_000, "k", value)
    (line,) = Narrator(contents=False).lines(seen)
    assert "cannot be read" in line.text


def test_a_session_that_is_not_known_is_told_without_guessing() -> None:
    """After a gap in what was read no timer is told of that may not exist."""
    log, narrator = Log(), Narrator(contents=False)
    log.event("session.started", START)
    log.event("collecting_data.started", IDS)
    narrator.forget()
    told = words(narrator, log.fall_due("data_collection.reply", 7))
    assert told == ["timer data_collection.reply fires, 7 ms after its time"]
    message = log.event("customer.message", {**IDS, "messageId": "m", "content": ""})
    assert words(narrator, message) == ["customer customer.message"]


def test_rows_from_the_changelog_are_where_the_telling_begins() -> None:
    """What was applied before is not told again; the row further in the journal counts."""
    log, narrator = Log(), Narrator(contents=False)
    old = log.event("session.started", START)
    assert log.record is not None
    earlier = encode_record(log.record)
    asked = log.event("collecting_data.started", IDS)
    narrator.remember("s", encode_record(log.record))
    narrator.remember("s", earlier)
    assert words(narrator, old) == []
    assert words(narrator, asked) == []
    assert len(words(narrator, log.event("session.close", {**IDS, "reason": "completed"}))) == 2


def test_the_feed_waits_and_sorts() -> None:
    """Records of several topics come out by their time, the journal before what it led to."""
    log, feed = Log(), LiveFeed(Narrator(contents=False))
    outcome = {"sessionId": "s", "flow": "session", "status": "closed", "action": "completed"}
    closed = topic("agent.outcomes", **outcome)
    feed.take([closed, log.event("session.started", START)])
    assert list(feed.due(now_ms=1_000_000 + HOLD_MS - 1)) == []
    told = [line.kind for line in feed.due(now_ms=1_000_000 + HOLD_MS)]
    assert told == ["engine", "outcome"]
    assert list(feed.due(now_ms=2_000_000)) == []


def test_under_load_the_feed_counts() -> None:
    """More than anybody could read is one line with a number, and memory stays bounded."""
    log, feed = Log(), LiveFeed(Narrator(contents=False))
    feed.take([log.event("session.started", START)] * (MAX_HELD + 1))
    (line,) = feed.due(now_ms=1_000_001)
    assert line.text.startswith(f"{MAX_HELD + 1} records went by")
